//! Pages of 2 MiB, one CPU at work on them and another [overtaking] it at each moment: faults, splits, forks, moves.
//!
//! Whatever became of the huge page, each store is there or was refused, and the recount of tables, counts and rmap finds no fault.

#[path = "smp/overtaking.rs"]
mod overtaking;
mod smp;

use kernmm::addr::PageOrder;
use kernmm::fault::Signal;
use kernmm::flags::{Advice, MapFlags, MremapFlags, Prot};
use kernmm::memory::Refused;
use kernmm::platform::hosted::Disk;
use kernmm::platform::{CpuId, Platform};

use overtaking::{Machinery, Process, Run, at_moments};
use smp::{AT, PAGE, at, enter, load, map, sound, store};

const HUGE: u64 = 2 << 20;
const PAGES: u64 = HUGE / PAGE;
/// A page in the middle.
const MIDDLE: u64 = AT + 100 * PAGE;
const NOT_MAPPED: Refused = Refused::Signal(Signal::NotMapped);
const DENIED: Refused = Refused::Signal(Signal::Denied);

/// Runs `test` with memory for several huge pages.
fn at_each_moment(test: impl for<'a, 'm> Fn(&Run, &Machinery<'a, 'm>, &'a Disk<'m>)) {
    at_moments(|| smp::machine_of(6 * PAGES), 0.., test);
}

/// The same for work that fills a huge page with zeros. Nearly all of its moments lie between a page of it and the next; the short form of the suite takes
/// few of these.
fn at_each_moment_but_for_zeroing(test: impl for<'a, 'm> Fn(&Run, &Machinery<'a, 'm>, &'a Disk<'m>)) {
    let few = if std::env::var_os("KERNMM_LONG").is_some() { 1 } else { 100 };
    let zeroing = 2 * PAGES as i64;
    at_moments(|| smp::machine_of(6 * PAGES), (0..zeroing).step_by(few).chain(zeroing..), test);
}

/// Memory that may have huge pages, where they may be.
fn map_huge(process: &Process<'_, '_, '_>, addr: u64, huge: u64) {
    map(process, addr, huge * PAGES, MapFlags::PRIVATE);
    process.madvise(addr, huge * HUGE, Advice::HugePage as i32).unwrap();
}

/// Whether one entry of 2 MiB maps a page.
fn is_huge(process: &Process<'_, '_, '_>, addr: u64) -> bool {
    let page = process.entry_state(at(addr)).and_then(|state| state.resident());
    page.is_some_and(|page| page.order == PageOrder::MAX)
}

/// Two CPUs touch one area that nobody has touched, or only read: there is one page of each address, and both stores are there.
///
/// Fails without the look at the entry under the lock in `put_huge`.
#[test]
fn faults_on_one_area_leave_one_page_and_both_stores() {
    for was_read in [false, true] {
        for second in [AT + 1, MIDDLE] {
            at_each_moment_but_for_zeroing(|run, vm, _| {
                let process = Process::new(vm).unwrap();
                map_huge(&process, AT, 1);
                enter(&process);
                if was_read {
                    assert_eq!(load(&process, AT), Ok(0));
                }
                run.race(
                    &process,
                    || store(&process, AT, 1).unwrap(),
                    || store(&process, second, 2).unwrap(),
                );
                assert_eq!((load(&process, AT), load(&process, second)), (Ok(1), Ok(2)), "at {}", run.moment);
                // While all CPUs are made to forget the zeros, the page is not to be written yet: who does splits it.
                assert!(was_read || is_huge(&process, AT), "overtaken at {}", run.moment);
                sound(vm, &[&process]);
            });
        }
    }
}

/// While one CPU replaces the huge page of zeros, a second writes and a third knows the zeros: once it is written, nobody reads the zeros any more.
///
/// Fails without the second reference that `replace_huge_zero` takes to each page, or without its flush.
#[test]
fn a_page_in_the_place_of_zeros_is_written_when_no_tlb_knows_the_zeros() {
    at_each_moment_but_for_zeroing(|run, vm, _| {
        let process = Process::new(vm).unwrap();
        map_huge(&process, AT, 1);
        enter(&process);
        assert_eq!(load(&process, AT), Ok(0));
        let machine = vm.source().platform().machine;
        let (third, moment) = (CpuId(2), run.moment);
        let read = || {
            let mut byte = [0];
            machine.load(at(MIDDLE), &mut byte).map(|()| byte[0])
        };
        let tables = machine.tables();
        machine.run_on(third, || machine.switch_tables(tables)).unwrap();
        assert_eq!(machine.run_on(third, read).unwrap(), Ok(0));
        process.with(|mm| assert!(mm.shared().cpus().insert(third)));
        run.race(
            &process,
            || store(&process, AT, 1).unwrap(),
            || {
                store(&process, MIDDLE, 2).unwrap();
                let found = machine.run_on(third, read).unwrap();
                assert!(!matches!(found, Ok(0)), "read by an old translation; at {moment}");
            },
        );
        assert_eq!((load(&process, AT), load(&process, MIDDLE)), (Ok(1), Ok(2)), "at {}", run.moment);
        machine.run_on(third, || machine.switch_tables(None)).unwrap();
        sound(vm, &[&process]);
    });
}

/// A part of a huge page goes, or may be written no more, while another part of it is written: that one is where it was.
#[test]
fn a_store_beside_a_split_is_not_lost() {
    type Call<'f> = &'f (dyn Fn(&Process<'_, '_, '_>) + Sync);
    let unmap = |process: &Process<'_, '_, '_>| process.munmap(MIDDLE, 3 * PAGE).unwrap();
    let forbid = |process: &Process<'_, '_, '_>| process.mprotect(MIDDLE, 3 * PAGE, Prot::READ).unwrap();
    let give_back = |process: &Process<'_, '_, '_>| {
        process.madvise(MIDDLE, 3 * PAGE, Advice::DontNeed as i32).unwrap();
    };
    let calls: [Call<'_>; 3] = [&unmap, &forbid, &give_back];
    for (call, addr) in calls.into_iter().flat_map(|call| [(call, AT), (call, MIDDLE + PAGE)]) {
        for call_first in [true, false] {
            at_each_moment(|run, vm, _| {
                let process = Process::new(vm).unwrap();
                map_huge(&process, AT, 1);
                enter(&process);
                store(&process, AT + 8, 7).unwrap();
                let write = || store(&process, addr, 5);
                let mut stored = Ok(());
                if call_first {
                    stored = run.race(&process, || call(&process), write);
                } else {
                    run.race(&process, || stored = write(), || call(&process));
                }
                let found = load(&process, addr);
                if addr == AT {
                    assert_eq!((stored, found), (Ok(()), Ok(5)), "overtaken at {}", run.moment);
                } else {
                    let is_right = matches!(
                        (stored, found),
                        (Ok(()), Ok(5 | 0) | Err(NOT_MAPPED))
                            | (Err(NOT_MAPPED), Err(NOT_MAPPED))
                            | (Err(DENIED), Ok(0))
                    );
                    assert!(is_right, "{stored:?}, then {found:?}; overtaken at {}", run.moment);
                }
                assert_eq!(load(&process, AT + 8), Ok(7));
                sound(vm, &[&process]);
            });
        }
    }
}

/// A child has its parent's huge page of one moment, and the parent loses nothing.
#[test]
fn a_fork_beside_a_store_takes_all_of_one_moment() {
    at_each_moment(|run, vm, _| {
        let parent = Process::new(vm).unwrap();
        map_huge(&parent, AT, 1);
        enter(&parent);
        store(&parent, AT, 1).unwrap();
        let mut child = None;
        run.race(
            &parent,
            || child = Some(parent.fork().unwrap()),
            || {
                store(&parent, AT, 2).unwrap();
                store(&parent, MIDDLE, 2).unwrap();
            },
        );
        assert_eq!((load(&parent, AT), load(&parent, MIDDLE)), (Ok(2), Ok(2)), "overtaken at {}", run.moment);
        let child = child.unwrap();
        enter(&child);
        let seen = (load(&child, AT).unwrap(), load(&child, MIDDLE).unwrap());
        assert!([(1, 0), (2, 0), (2, 2)].contains(&seen), "torn: {seen:?}, overtaken at {}", run.moment);
        sound(vm, &[&parent, &child]);
    });
}

/// A page of a huge one that two processes share is written by both at once.
#[test]
fn a_copy_on_write_beside_another_keeps_processes_apart() {
    for other in [AT + 1, MIDDLE] {
        at_each_moment(|run, vm, _| {
            let parent = Process::new(vm).unwrap();
            map_huge(&parent, AT, 1);
            enter(&parent);
            store(&parent, AT, 1).unwrap();
            let child = parent.fork().unwrap();
            run.race(&child, || store(&parent, AT, 2).unwrap(), || store(&child, other, 3).unwrap());
            assert_eq!((load(&parent, AT), load(&parent, other)), (Ok(2), Ok(0)), "at {}", run.moment);
            sound(vm, &[&parent, &child]);
            enter(&child);
            assert_eq!((load(&child, AT), load(&child, other)), (Ok(1), Ok(3)), "at {}", run.moment);
        });
    }
}

/// A huge page moves: whole, so that its entry does, or by halves, so that it is split.
#[test]
fn a_store_beside_a_move_arrives_or_is_refused() {
    let flags = MremapFlags::MAYMOVE | MremapFlags::FIXED;
    for (from, pages) in [(AT, PAGES), (MIDDLE, 50)] {
        let to = from + 4 * HUGE;
        at_each_moment(|run, vm, _| {
            let process = Process::new(vm).unwrap();
            map_huge(&process, AT, 1);
            enter(&process);
            store(&process, from + 8, 7).unwrap();
            let stored = run.race(
                &process,
                || assert!(process.mremap(from, pages * PAGE, pages * PAGE, flags, to).is_ok()),
                || store(&process, from, 5),
            );
            let expected = match stored {
                Ok(()) => 5,
                Err(NOT_MAPPED) => 0,
                other => panic!("{other:?}"),
            };
            assert_eq!(
                (load(&process, to), load(&process, to + 8)),
                (Ok(expected), Ok(7)),
                "at {}",
                run.moment
            );
            sound(vm, &[&process]);
        });
    }
}

/// What one CPU takes from a huge page, another, whose TLB knows all of it by one entry, reaches no more.
#[test]
fn no_tlb_reaches_what_was_split_off() {
    at_each_moment(|run, vm, _| {
        let process = Process::new(vm).unwrap();
        map_huge(&process, AT, 1);
        enter(&process);
        store(&process, AT, 1).unwrap();
        run.race(
            &process,
            || {
                process.mprotect(MIDDLE, PAGE, Prot::READ).unwrap();
                let seen = load(&process, MIDDLE).unwrap();
                // The other goes on, by what it remembers if it may.
                std::thread::yield_now();
                assert_eq!(
                    load(&process, MIDDLE),
                    Ok(seen),
                    "written by an old translation; at {}",
                    run.moment
                );
            },
            || {
                for value in 1..4 {
                    if store(&process, MIDDLE, value).is_err() {
                        return;
                    }
                }
            },
        );
        assert_eq!(store(&process, MIDDLE, 9), Err(DENIED));
        sound(vm, &[&process]);
    });
}
