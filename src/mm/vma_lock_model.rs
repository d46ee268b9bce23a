//! The lock of one VMA between a fault and a writer, under loom: every order that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --lib vma_lock_model --target-dir target/loom`
//!
//! Both models together detect `Acquire` weakened in `Sections::now`, of the `fetch_add` in `VmaLock::try_enter` and of the load in the loop that waits in
//! `VmaLock::lock_when_left`; `Release` weakened in `Sections::end`, in `VmaLock::leave` and of the sum in `VmaLock::lock_when_left`; either half of `AcqRel` weakened
//! in `VmaLock::lock_in`; and the removal of the loop that waits, of the count's part in what `lock_in` compares, or of either question after the count in
//! `try_enter`. They need no order of the other loads, nor of the `fetch_or`.

use std::sync::atomic::{AtomicU32 as Plain, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64};
use loom::thread;

use super::vma_lock::{Sections, VmaLock, Waiter};

/// A VMA whose fields are no atomics: loom stops at whoever reads one while it may be written, or may not have seen it written.
struct Kept {
    sections: Sections<AtomicU32>,
    lock: VmaLock<AtomicU64>,
    fields: [UnsafeCell<()>; 2],
}

impl Kept {
    fn new() -> Arc<Self> {
        let lock = VmaLock::new(AtomicU64::new(0));
        let sections = Sections::new(AtomicU32::new(1));
        Arc::new(Self { sections, lock, fields: [UnsafeCell::new(()), UnsafeCell::new(())] })
    }

    /// What a call does.
    fn change(&self) {
        self.lock.lock(&self.sections, Waiter::SPINS);
        self.fields.iter().for_each(|field| field.with_mut(|_| ()));
        self.sections.end();
    }

    /// What a fault does; whether it got in.
    fn fault(&self) -> bool {
        let enters = self.lock.try_enter(&self.sections, Waiter::SPINS);
        if enters {
            self.fields.iter().for_each(|field| field.with(|_| ()));
            self.lock.leave(Waiter::SPINS);
        }
        enters
    }
}

/// Runs a writer of `sections` sections beside a fault that tries `tries` times; a fault gets in beside it in some orders, and is turned away in others.
fn writer_beside_a_fault(sections: u32, tries: u32) {
    let entered: &[Plain; 2] = Box::leak(Box::default());
    loom::model(move || {
        let kept = Kept::new();
        let fault = thread::spawn({
            let kept = kept.clone();
            move || {
                for _ in 0..tries {
                    entered[usize::from(kept.fault())].fetch_add(1, Relaxed);
                }
            }
        });
        (0..sections).for_each(|_| kept.change());
        fault.join().unwrap();
        assert!(kept.fault(), "nobody is in it, and none gets in");
    });
    assert!(entered.iter().all(|times| times.load(Relaxed) > 0), "{entered:?}");
}

#[test]
fn a_fault_meets_a_vma_before_or_after_a_change_and_never_during_it() {
    writer_beside_a_fault(1, 2);
}

#[test]
fn a_fault_is_kept_out_of_the_second_section_as_of_the_first() {
    writer_beside_a_fault(2, 2);
}
