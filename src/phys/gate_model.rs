//! The gate between a CPU and whoever drains its lists, under loom: every order that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --lib gate_model --target-dir target/loom`
//!
//! Each model names the line whose weakening makes it fail.

use loom::sync::Arc;
use loom::sync::atomic::{
    AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use loom::thread;

use super::cpu_pages::{CpuPages, Magazines};
use super::page::{Page, PageState};
use super::zone::ZoneId;

/// One CPU's lists and the pages that they are linked through.
struct Kept {
    own: CpuPages,
    map: Vec<Page>,
}

impl Kept {
    fn new(capacity: u16) -> Arc<Self> {
        let own = CpuPages::new(0);
        own.list(0).set_capacity(capacity);
        let map = (0..3).map(|_| Page::new(PageState::OnCpu, ZoneId::new(0))).collect();
        Arc::new(Self { own, map })
    }

    fn list(&self) -> &Magazines {
        self.own.list(0)
    }

    fn push(&self, index: u32) -> bool {
        self.list().push(&self.map[index as usize], index)
    }

    /// Takes all blocks off the list, as a set of bits.
    fn drain(&self) -> u32 {
        let mut found = 0;
        while let Some((index, _)) = self.list().pop(&self.map) {
            assert_eq!(found >> index & 1, 0, "block {index} came twice");
            found |= 1 << index;
        }
        found
    }

    fn attend(&self, drain: impl FnOnce(), starving: impl Fn() -> bool) {
        self.own.gate.attend(thread::yield_now, drain, starving);
    }
}

/// Detects `Release` weakened in `Gate::publish` or `Gate::end_steal`, and `AcqRel` in `Gate::try_steal`: one side then sees the other's
/// list as it was.
#[test]
fn what_an_idle_cpu_keeps_is_seen_once_by_the_thief_or_the_owner() {
    loom::model(|| {
        let kept = Kept::new(2);
        let owner = thread::spawn({
            let kept = kept.clone();
            move || {
                kept.attend(|| (), || false);
                assert!(kept.push(1) && kept.push(2));
                kept.own.gate.publish();
                kept.attend(|| (), || false);
                let found = kept.drain();
                kept.own.gate.publish();
                found
            }
        });
        let mut stolen = 0;
        if kept.own.gate.try_steal(false) {
            stolen = kept.drain();
            kept.own.gate.end_steal();
        }
        let found = owner.join().unwrap();
        assert_eq!(stolen & found, 0, "a block was seen by both");
        assert_eq!(stolen | found, 0b110, "a block was lost");
    });
}

/// Detects `Acquire` weakened in `Gate::is_requested`, and the removal of `self.0.fetch_or(LEAN, …)` in `Gate::attend`.
#[test]
fn a_cpu_that_was_asked_has_drained_and_stays_lean() {
    loom::model(|| {
        let kept = Kept::new(2);
        let zone = Arc::new(AtomicU32::new(0));
        let starving = Arc::new(AtomicU32::new(0));
        // The owner runs, with a block on its list.
        kept.attend(|| (), || false);
        assert!(kept.push(1));
        let owner = thread::spawn({
            let (kept, zone, starving) = (kept.clone(), zone.clone(), starving.clone());
            move || {
                let drain = || zone.store(kept.drain(), Relaxed);
                let mut asked = false;
                while !asked {
                    asked = kept.own.gate.is_requested();
                    thread::yield_now();
                }
                kept.attend(drain, || starving.load(Acquire) != 0);
                let lean = kept.own.gate.is_lean();
                assert!(
                    lean || starving.load(Relaxed) == 0,
                    "the owner fills its lists while the other starves"
                );
            }
        });
        starving.fetch_add(1, AcqRel);
        kept.own.gate.request();
        while kept.own.gate.is_requested() {
            thread::yield_now();
        }
        assert_eq!(zone.load(Relaxed), 0b10, "the request was served and its frames are not there");
        starving.fetch_sub(1, AcqRel);
        owner.join().unwrap();
    });
}
