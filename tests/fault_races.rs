//! What one CPU does, with another [overtaking] it at each moment at which it can: each race here is met every time, if it is one.

#[path = "smp/overtaking.rs"]
mod overtaking;
mod smp;

use kernmm::addr::PgOff;
use kernmm::fault::Signal;
use kernmm::flags::{MapFlags, MremapFlags, Prot};
use kernmm::memory::Refused;
use kernmm::platform::hosted::Disk;
use kernmm::platform::{CpuId, Platform};
use kernmm::syscall::{MapFile, MmapArgs, OpenMode};

use overtaking::{Process, at_each_moment};
use smp::{AT, INODE, PAGE, at, enter, load, map, map_file, sound, store};

const PRIVATE: MapFlags = MapFlags::PRIVATE;
const SHARED: MapFlags = MapFlags::SHARED;
const NO_PAGE: Refused = Refused::Signal(Signal::NoPage);
const MOVE: MremapFlags = MremapFlags::MAYMOVE.union(MremapFlags::FIXED);

fn byte_on(disk: &Disk<'_>, byte: u64) -> u8 {
    disk.files().contents(INODE).unwrap()[byte as usize]
}

/// A store that was noted as one before the entry's table was locked could be taken for written by a write-back in between, which did not find the entry.
///
/// Fails if `note_writing` comes before the lock in `allow_writing`, or `dirty_if_still_has` in `map_file_page`, or without the flush of `Entries::clean`.
#[test]
fn a_write_back_between_the_steps_of_a_write_fault_loses_no_store() {
    for mapped in [false, true] {
        at_each_moment(|run, vm, disk| {
            let process = Process::new(vm).unwrap();
            let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
            map_file(&process, AT, 2, &file, SHARED);
            enter(&process);
            if mapped {
                store(&process, AT, 2).unwrap();
                file.sync().unwrap();
            }
            run.race(&process, || store(&process, AT, 3).unwrap(), || file.sync().unwrap());
            file.sync().unwrap();
            assert_eq!(byte_on(disk, 0), 3, "overtaken at {}", run.moment);
            sound(vm, &[&process]);
        });
    }
}

/// A store that comes while the page is on its way to the disk is there after the next write-back.
///
/// Fails if `Entries::clean` leaves the right to write.
#[test]
fn a_store_between_the_steps_of_a_write_back_is_not_lost() {
    at_each_moment(|run, vm, disk| {
        let process = Process::new(vm).unwrap();
        let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
        map_file(&process, AT, 2, &file, SHARED);
        enter(&process);
        store(&process, AT, 2).unwrap();
        run.race(&process, || file.sync().unwrap(), || store(&process, AT, 3).unwrap());
        assert_ne!(byte_on(disk, 0), 1);
        file.sync().unwrap();
        assert_eq!(byte_on(disk, 0), 3, "overtaken at {}", run.moment);
    });
}

/// A file that nobody has is written without a look at entries. Meanwhile somebody opens it, and stores through a mapping.
///
/// Fails without the look at the users in `write_some`.
#[test]
fn a_store_to_a_file_that_is_opened_while_it_is_written_back_is_not_lost() {
    at_each_moment(|run, vm, disk| {
        let process = Process::new(vm).unwrap();
        let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
        file.write_at(0, &[2]).unwrap();
        drop(file);
        let file = run.race(
            &process,
            || _ = vm.reap(),
            || {
                let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
                map_file(&process, AT, 1, &file, SHARED);
                store(&process, AT, 3).unwrap();
                file
            },
        );
        enter(&process);
        store(&process, AT, 4).unwrap();
        file.sync().unwrap();
        assert_eq!(byte_on(disk, 0), 4, "overtaken at {}", run.moment);
        sound(vm, &[&process]);
    });
}

/// A CPU goes on storing through a translation whose entry is gone; a write-back in between has not got that.
///
/// Fails without `gather.written` in `unbook`.
#[test]
fn a_store_by_a_translation_that_is_not_flushed_yet_is_not_lost() {
    at_each_moment(|run, vm, disk| {
        let process = Process::new(vm).unwrap();
        let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
        map_file(&process, AT, 2, &file, SHARED);
        enter(&process);
        store(&process, AT, 2).unwrap();
        let smp = vm.source().platform();
        // The second CPU knows the page, and that it is dirty.
        smp.machine
            .run_on(CpuId(1), || {
                smp.machine.switch_tables(smp.machine.run_on(CpuId::BOOT, || smp.machine.tables()).unwrap());
                smp.machine.store(at(AT + 1), &[2]).unwrap();
            })
            .unwrap();
        process.with(|mm| assert!(mm.shared().cpus().insert(CpuId(1))));
        let stored = run.race(
            &process,
            || process.munmap(AT, PAGE).unwrap(),
            || {
                file.sync().unwrap();
                smp.machine.store(at(AT), &[7]).is_ok()
            },
        );
        file.sync().unwrap();
        assert_eq!(byte_on(disk, 0), if stored { 7 } else { 2 }, "overtaken at {}", run.moment);
    });
}

/// The entry is the same, the page another: what was copied for a private write is of a page that is gone.
///
/// Fails without the reference that `copy_on_write` takes to the page it copies.
#[test]
fn a_copy_on_write_does_not_take_a_new_page_in_an_old_frame_for_the_one_it_copied() {
    at_each_moment(|run, vm, _| {
        let process = Process::new(vm).unwrap();
        let file = vm.memory_file(PAGE).unwrap();
        file.write_at(0, &[9; 8]).unwrap();
        map_file(&process, AT, 1, &file, PRIVATE);
        enter(&process);
        assert_eq!(load(&process, AT), Ok(9));
        run.race(
            &process,
            || match store(&process, AT + 8, 5) {
                Ok(()) | Err(NO_PAGE) => {}
                other => panic!("{other:?}"),
            },
            || {
                file.truncate(0).unwrap();
                file.truncate(PAGE).unwrap();
                assert_eq!(load(&process, AT), Ok(0));
            },
        );
        assert_eq!(load(&process, AT), Ok(0), "bytes that were truncated; overtaken at {}", run.moment);
        sound(vm, &[&process]);
    });
}

/// A fault that has found a page of the file maps nothing, or nothing for long, once that is beyond the end.
///
/// Fails without `still_has` in `copy_of_file` or in `map_file_page`.
#[test]
fn a_truncation_between_the_steps_of_a_fault_leaves_nothing_mapped() {
    for (write, flags) in [(false, SHARED), (true, SHARED), (false, PRIVATE), (true, PRIVATE)] {
        // A page that was read is there, and is not faulted on again.
        for read_before in [false, true].into_iter().filter(|&read| write || !read) {
            at_each_moment(|run, vm, _| {
                let process = Process::new(vm).unwrap();
                let file = vm.memory_file(2 * PAGE).unwrap();
                map_file(&process, AT, 2, &file, flags);
                file.write_at(PAGE, &[9]).unwrap();
                enter(&process);
                if read_before {
                    assert_eq!(load(&process, AT + PAGE), Ok(9));
                }
                let touch = || match write {
                    true => store(&process, AT + PAGE, 5),
                    false => load(&process, AT + PAGE).map(drop),
                };
                let fault = || assert!(matches!(touch(), Ok(()) | Err(NO_PAGE)));
                run.race(&process, fault, || file.truncate(PAGE).unwrap());
                let state = process.entry_state(at(AT + PAGE));
                assert_eq!(state, None, "beyond the end; overtaken at {}", run.moment);
                assert_eq!(load(&process, AT + PAGE), Err(NO_PAGE));
                sound(vm, &[&process]);
            });
        }
    }
}

/// What faults on a page while that gets a hole waits, and finds a page of zeros; a store is in that page, for all to see.
///
/// Fails without the look at holes in `visit_around`, or without those in `look` and in `still_has`: a page that leaves its file is mapped then.
#[test]
fn a_fault_between_the_steps_of_a_hole_maps_nothing_that_leaves_the_file() {
    for (write, flags) in [(false, SHARED), (true, SHARED), (false, PRIVATE)] {
        at_each_moment(|run, vm, _| {
            let (process, other) = (Process::new(vm).unwrap(), Process::new(vm).unwrap());
            let file = vm.memory_file(3 * PAGE).unwrap();
            map_file(&process, AT, 3, &file, flags);
            map_file(&other, AT, 3, &file, SHARED);
            file.write_at(PAGE, &[9, 9]).unwrap();
            enter(&process);
            assert_eq!(load(&process, AT + PAGE), Ok(9));
            let touched = run.race(
                &process,
                || {
                    let [first, end] = [1, 2].map(|page| PgOff::new(page).unwrap());
                    let entries = vm.pager().entries();
                    vm.cache().punch_hole(vm.source(), &entries, file.id(), first, end).unwrap();
                },
                || match write {
                    true => store(&process, AT + PAGE + 1, 5).map(|()| 0),
                    false => load(&process, AT + PAGE),
                },
            );
            assert!(matches!(touched, Ok(0 | 9)), "{touched:?}");
            assert_eq!(load(&process, AT + PAGE), Ok(0), "overtaken at {}", run.moment);
            let stored = load(&process, AT + PAGE + 1).unwrap();
            assert!(stored == 0 || write && stored == 5, "{stored}; overtaken at {}", run.moment);
            process.deactivate();
            enter(&other);
            assert_eq!(load(&other, AT + PAGE + 1), Ok(stored), "overtaken at {}", run.moment);
            other.deactivate();
            sound(vm, &[&process, &other]);
        });
    }
}

/// While a VMA is split, merged or moved, the pages of it are for a moment where no VMA says.
///
/// Fails without any of the `begin_change` in `modify_flags`, `place_new`, `cut` and `move_pages`, or the wait in `ShareList::settle`.
#[test]
fn a_truncation_between_the_steps_of_a_call_finds_every_private_copy() {
    let split = |process: &Process<'_, '_, '_>| process.mprotect(AT + PAGE, PAGE, Prot::READ).unwrap();
    let merge = |process: &Process<'_, '_, '_>| process.mprotect(AT + PAGE, PAGE, smp::RW).unwrap();
    let hole = |process: &Process<'_, '_, '_>| process.munmap(AT + PAGE, PAGE).unwrap();
    let to = AT + 16 * PAGE;
    let shift =
        |process: &Process<'_, '_, '_>| assert!(process.mremap(AT, 4 * PAGE, 4 * PAGE, MOVE, to).is_ok());
    let nothing = |_: &Process<'_, '_, '_>| {};
    // What is mapped into the hole joins what lies on both its sides.
    let fill = |process: &Process<'_, '_, '_>| {
        let file = process.with(|mm| mm.vma(mm.find_vma(at(AT)).unwrap()).backing.file()).unwrap();
        let file = Ok(Some(MapFile::new(file, OpenMode::ReadWrite)));
        let flags = PRIVATE | MapFlags::FIXED;
        let args = MmapArgs { addr: AT + PAGE, len: PAGE, prot: smp::RW, flags, file, offset: PAGE };
        process.mmap(&args).unwrap();
        assert_eq!(process.with(|mm| mm.map_count()), 1);
    };
    type Call<'f> = &'f dyn Fn(&Process<'_, '_, '_>);
    let cases: [(Call<'_>, Call<'_>, u64); 5] = [
        (&nothing, &split, AT),
        (&split, &merge, AT),
        (&nothing, &hole, AT),
        (&hole, &fill, AT),
        (&nothing, &shift, to),
    ];
    for (before, call, start) in cases {
        at_each_moment(|run, vm, _| {
            let process = Process::new(vm).unwrap();
            let file = vm.memory_file(4 * PAGE).unwrap();
            map_file(&process, AT, 4, &file, PRIVATE);
            enter(&process);
            (0..4).for_each(|page| store(&process, AT + page * PAGE, 9).unwrap());
            before(&process);
            run.race(&process, || call(&process), || file.truncate(PAGE).unwrap());
            for page in 1..4 {
                let state = process.entry_state(at(start + page * PAGE));
                assert_eq!(state, None, "page {page} is beyond the end; overtaken at {}", run.moment);
            }
            assert_eq!(load(&process, start), Ok(9));
            sound(vm, &[&process]);
        });
    }
}

/// So many bytes has a leaf table: as a whole it moves by its entry, and pages of it one by one.
const TABLE: u64 = 2 << 20;

/// While pages of a file move, a CPU that has not forgotten the old place stores there, and a write-back takes the right to write from
/// them: it finds no page at
/// the new place before all have forgotten the old.
///
/// Fails without the `begin_change` in `move_pages`, or without the flush of `move_entries`, be it one table that moves or the pages of two.
#[test]
fn a_store_by_the_old_place_of_a_file_that_moves_is_not_lost() {
    for to in [AT + 2 * TABLE, AT + 2 * TABLE + PAGE] {
        for stores_first in [false, true] {
            at_each_moment(|run, vm, disk| {
                let process = Process::new(vm).unwrap();
                let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
                map_file(&process, AT, TABLE / PAGE, &file, SHARED);
                enter(&process);
                store(&process, AT, 2).unwrap();
                let smp = vm.source().platform();
                // The second CPU knows the page, and that it is dirty.
                let tables = smp.machine.tables();
                smp.machine
                    .run_on(CpuId(1), || {
                        smp.machine.switch_tables(tables);
                        smp.machine.store(at(AT + 1), &[2]).unwrap();
                    })
                    .unwrap();
                process.with(|mm| assert!(mm.shared().cpus().insert(CpuId(1))));
                let store_by_old = || smp.machine.store(at(AT), &[7]).is_ok();
                let stored = run.race(
                    &process,
                    || assert!(process.mremap(AT, TABLE, TABLE, MOVE, to).is_ok()),
                    || {
                        let before = stores_first && store_by_old();
                        file.sync().unwrap();
                        before || store_by_old()
                    },
                );
                file.sync().unwrap();
                assert_eq!(byte_on(disk, 0), if stored { 7 } else { 2 }, "overtaken at {}", run.moment);
                assert_eq!(load(&process, to), Ok(byte_on(disk, 0)));
                sound(vm, &[&process]);
            });
        }
    }
}

/// A fault comes between the steps of a move of a whole table, or of pages of two: its page arrives, or it is refused.
///
/// Fails without `self.lock_vmas(from)` in `Mm::prepare_move`.
#[test]
fn a_store_beside_a_move_of_a_table_arrives_or_is_refused() {
    // A page of a table that is there, and of one that is not.
    for (to, page) in [(AT + 2 * TABLE, 0), (AT + 2 * TABLE + PAGE, TABLE)] {
        at_each_moment(|run, vm, _| {
            let process = Process::new(vm).unwrap();
            map(&process, AT, 2 * TABLE / PAGE, PRIVATE.union(MapFlags::NORESERVE));
            enter(&process);
            store(&process, AT + 300 * PAGE, 9).unwrap();
            let stored = run.race(
                &process,
                || assert!(process.mremap(AT, 2 * TABLE, 2 * TABLE, MOVE, to).is_ok()),
                || store(&process, AT + page, 5),
            );
            let expected = match stored {
                Ok(()) => 5,
                Err(Refused::Signal(Signal::NotMapped)) => 0,
                other => panic!("{other:?}"),
            };
            assert_eq!(load(&process, to + page), Ok(expected), "overtaken at {}", run.moment);
            assert_eq!(load(&process, to + 300 * PAGE), Ok(9));
            sound(vm, &[&process]);
        });
    }
}

/// What is mapped in the place of a part of a file's VMA is no page of the file, although a truncation may have seen that VMA reach there.
///
/// Fails without the `begin_change` in `cut`.
#[test]
fn a_truncation_takes_nothing_that_was_mapped_where_a_part_of_the_file_has_been() {
    // From which page on the file is cut off, and which pages are somebody else's meanwhile.
    for (pages, new, count) in [(1, 2, 2), (0, 0, 2), (0, 1, 2)] {
        for unmaps_before in [false, true] {
            at_each_moment(|run, vm, _| {
                let process = Process::new(vm).unwrap();
                let file = vm.memory_file(4 * PAGE).unwrap();
                map_file(&process, AT, 4, &file, PRIVATE);
                enter(&process);
                (0..4).for_each(|page| store(&process, AT + page * PAGE, 9).unwrap());
                let at_new = AT + new * PAGE;
                run.race(
                    &process,
                    || file.truncate(pages * PAGE).unwrap(),
                    || {
                        if unmaps_before {
                            process.munmap(at_new, count * PAGE).unwrap();
                        }
                        map(&process, at_new, count, PRIVATE);
                        store(&process, at_new, 5).unwrap();
                    },
                );
                assert_eq!(load(&process, at_new), Ok(5), "overtaken at {}", run.moment);
                sound(vm, &[&process]);
            });
        }
    }
}

/// A page that the parent has alone when it looks may be a child's a moment later, and the other way round.
///
/// Fails without the flush of `fork.rs`, or its `clear_flags(ANON_EXCLUSIVE)`.
#[test]
fn a_page_that_others_come_to_share_or_leave_meanwhile_is_written_by_its_owner_alone() {
    at_each_moment(|run, vm, _| {
        let parent = Process::new(vm).unwrap();
        map(&parent, AT, 1, PRIVATE);
        enter(&parent);
        store(&parent, AT, 1).unwrap();
        let child = parent.fork().unwrap();
        run.race(
            &child,
            || store(&parent, AT, 2).unwrap(),
            || {
                assert_eq!(load(&child, AT), Ok(1));
                store(&child, AT + 1, 3).unwrap();
                let son = child.fork().unwrap();
                store(&child, AT, 4).unwrap();
                assert_eq!(load(&child, AT + 1), Ok(3));
                child.deactivate();
                enter(&son);
                assert_eq!((load(&son, AT), load(&son, AT + 1)), (Ok(1), Ok(3)));
                son.deactivate();
                enter(&child);
            },
        );
        assert_eq!((load(&parent, AT), load(&parent, AT + 1)), (Ok(2), Ok(0)), "overtaken at {}", run.moment);
        sound(vm, &[&parent, &child]);
    });
}

/// Two faults on one page, the one in the middle of the other: of zeros, of nothing, of a file.
///
/// Fails without the look at the entry in `put_entry` or `map_file_page`.
#[test]
fn a_fault_between_the_steps_of_another_leaves_one_page_and_both_stores() {
    for kind in 0..4 {
        at_each_moment(|run, vm, _| {
            let process = Process::new(vm).unwrap();
            let file = vm.memory_file(PAGE).unwrap();
            match kind {
                0 | 1 => map(&process, AT, 1, PRIVATE),
                2 => map_file(&process, AT, 1, &file, PRIVATE),
                _ => map_file(&process, AT, 1, &file, SHARED),
            }
            enter(&process);
            if kind == 1 {
                assert_eq!(load(&process, AT), Ok(0));
            }
            run.race(&process, || store(&process, AT, 1).unwrap(), || store(&process, AT + 1, 2).unwrap());
            assert_eq!((load(&process, AT), load(&process, AT + 1)), (Ok(1), Ok(2)), "at {}", run.moment);
            assert_eq!(process.with(|mm| mm.shared().resident()), 1);
            sound(vm, &[&process]);
        });
    }
}

/// A load of zeros by whoever has locked nothing but a VMA without an owner, and in its middle another CPU gets it one: by a store to the same page, or with
/// a fork or a new right behind it.
///
/// Fails without the look at the entry in `put_entry`.
#[test]
fn a_load_of_zeros_in_the_middle_of_which_another_cpu_stores_hides_no_store() {
    for kind in 0..3 {
        at_each_moment(|run, vm, _| {
            let process = Process::new(vm).unwrap();
            map(&process, AT, 2, PRIVATE);
            enter(&process);
            let child = run.race(
                &process,
                || assert!(matches!(load(&process, AT), Ok(0 | 7))),
                || {
                    store(&process, AT, 7).unwrap();
                    if kind == 1 {
                        process.mprotect(AT, PAGE, Prot::READ).unwrap();
                    }
                    (kind == 2).then(|| process.fork().unwrap())
                },
            );
            assert_eq!((load(&process, AT), load(&process, AT + PAGE)), (Ok(7), Ok(0)), "at {}", run.moment);
            assert_eq!(process.with(|mm| mm.shared().resident()), 1);
            match &child {
                Some(child) => sound(vm, &[&process, child]),
                None => sound(vm, &[&process]),
            }
        });
    }
}
