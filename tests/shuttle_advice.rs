//! Memory that is given back beside faults, with its tables, on CPUs whose TLBs are stale until they are flushed, under thousands of schedules.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --release --test shuttle_advice --target-dir target/shuttle`
#![cfg(shuttle)]

#[path = "smp/schedules.rs"]
mod schedules;
mod smp;

use kernmm::addr::VirtAddr;
use kernmm::flags::{Advice, MapFlags};
use kernmm::platform::hosted::Disk;
use shuttle::sync::atomic::{AtomicU32, Ordering::SeqCst};
use shuttle::thread;

use schedules::{Machinery, Process, explore, explore_all_steps, on};
use smp::{AT, PAGE, enter, load, map, sound, store};

const PRIVATE: MapFlags = MapFlags::PRIVATE;

fn resident(process: &Process<'_, '_, '_>) -> u64 {
    process.with(|mm| mm.shared().resident())
}

/// Two CPUs give memory back that a third stores to: each store is there or was given back, what a child has never changes, and nothing is left over. Of a whole
/// table the writer among them takes the table too.
fn advice_beside_fault(vm: &Machinery<'_, '_>, kind: u32) {
    let process = Process::new(vm).unwrap();
    let (at, pages) = if kind == 2 { (AT.next_multiple_of(2 << 20), 512) } else { (AT, 2) };
    map(&process, at, pages, PRIVATE | MapFlags::NORESERVE);
    enter(&process);
    process.madvise(at, pages * PAGE, Advice::NoHugePage as i32).unwrap();
    store(&process, at, 9).unwrap();
    let child = (kind == 1).then(|| process.fork().unwrap());
    thread::scope(|scope| {
        let give_back = || process.madvise(at, pages * PAGE, Advice::DontNeed as i32).unwrap();
        let stores = on(scope, 1, &process, || {
            for value in 1..4 {
                store(&process, at, value).unwrap();
                let found = load(&process, at).unwrap();
                assert!(found == value || found == 0, "{found} where {value} was stored");
            }
        });
        let other = on(scope, 2, &process, give_back);
        give_back();
        stores.join().unwrap();
        other.join().unwrap();
        give_back();
    });
    assert_eq!((load(&process, at), resident(&process)), (Ok(0), 0), "pages that were given back");
    match &child {
        Some(child) => {
            let mut byte = [0];
            child.copy_from_user(VirtAddr::from(at), &mut byte).unwrap();
            assert_eq!(byte, [9], "a child's memory has changed");
            sound(vm, &[&process, child]);
        }
        None => sound(vm, &[&process]),
    }
}

#[test]
fn memory_that_is_given_back_beside_faults_is_zero_or_what_was_stored_since() {
    for kind in 0..3 {
        explore(700, move |vm, _| advice_beside_fault(vm, kind));
    }
}

/// Two CPUs give memory back, of which all tables but the uppermost go, for as long as a third stores to it: each store is there or was given back, and no table
/// is lost.
///
/// Fails if `Process::advise_pages` frees tables with the address space's lock held for reading; without `self.lock_vmas(range)` in `Mm::free_empty_tables`.
fn tables_beside_fault(vm: &Machinery<'_, '_>, _: &Disk<'_>) {
    let process = Process::new(vm).unwrap();
    let (at, len) = (AT.next_multiple_of(1 << 30), 1 << 30);
    map(&process, at, len / PAGE, PRIVATE | MapFlags::NORESERVE);
    enter(&process);
    process.madvise(at, len, Advice::NoHugePage as i32).unwrap();
    let stored = AtomicU32::new(0);
    let give_back = || process.madvise(at, len, Advice::DontNeed as i32).unwrap();
    thread::scope(|scope| {
        let stores = on(scope, 1, &process, || {
            for value in 1..5 {
                store(&process, at, value).unwrap();
                let found = load(&process, at).unwrap();
                assert!(found == value || found == 0, "{found} where {value} was stored");
                // So that the next one finds neither page nor table.
                while resident(&process) != 0 {
                    thread::yield_now();
                }
            }
            stored.store(1, SeqCst);
        });
        let gives_back = || {
            while stored.load(SeqCst) == 0 {
                give_back();
            }
        };
        let other = on(scope, 2, &process, gives_back);
        gives_back();
        stores.join().unwrap();
        other.join().unwrap();
    });
    give_back();
    assert_eq!((load(&process, at), resident(&process)), (Ok(0), 0), "pages that were given back");
    sound(vm, &[&process]);
}

#[test]
fn no_table_goes_under_a_fault_that_walks_it() {
    explore_all_steps(1000, tables_beside_fault);
}
