//! Faults beside faults, calls and truncation, on CPUs whose TLBs are stale until they are flushed, under thousands of schedules.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --release --test shuttle_fault --target-dir target/shuttle`
//!
//! Shuttle interleaves at every atomic of `sync` and every lock, or, so that few switches go a long way, only at the moments that [`smp`] names. Each model
//! names the lines whose removal makes it fail, where that was tried and seen.
#![cfg(shuttle)]

#[path = "smp/schedules.rs"]
mod schedules;
mod smp;

use kernmm::addr::PgOff;
use kernmm::fault::Signal;
use kernmm::flags::{Advice, MapFlags, MremapFlags, MsyncFlags, Prot};
use kernmm::memory::Refused;
use kernmm::mm::MmError;
use kernmm::platform::StoreError;
use kernmm::platform::hosted::{Disk, Failure, Latency, Operation, Stage, Unsafe};
use kernmm::syscall::OpenMode;
use shuttle::sync::atomic::{AtomicU32, Ordering::SeqCst};
use shuttle::thread;

use schedules::{Machinery, Process, explore, on};
use smp::{AT, PAGE, enter, load, map, map_file, sound, store};

const PRIVATE: MapFlags = MapFlags::PRIVATE;
const SHARED: MapFlags = MapFlags::SHARED;
const NOT_MAPPED: Refused = Refused::Signal(Signal::NotMapped);
const NO_PAGE: Refused = Refused::Signal(Signal::NoPage);

fn resident(process: &Process<'_, '_, '_>) -> u64 {
    process.with(|mm| mm.shared().resident())
}

/// Three CPUs store into one page of memory that nobody has touched, that was read before, that a child shares, and of a file. One page is there afterwards,
/// with all that was stored.
///
/// Fails without: `table.get(page) == Pte::None` in `put_entry`; `table.get(addr) == Pte::None` in `map_file_page`.
fn fault_beside_fault(vm: &Machinery<'_, '_>, kind: u32) {
    let process = Process::new(vm).unwrap();
    let file = vm.memory_file(PAGE).unwrap();
    match kind {
        0..=2 => map(&process, AT, 1, PRIVATE),
        3 => map_file(&process, AT, 1, &file, PRIVATE),
        _ => map_file(&process, AT, 1, &file, SHARED),
    }
    enter(&process);
    match kind {
        1 => assert_eq!(load(&process, AT), Ok(0)),
        2 => {
            store(&process, AT + 9, 9).unwrap();
            drop(process.fork().unwrap());
        }
        _ => {}
    }
    thread::scope(|scope| {
        let touch = |cpu: u32| {
            let word = AT + u64::from(cpu);
            store(&process, word, cpu as u8 + 1).unwrap();
            assert_eq!(load(&process, word), Ok(cpu as u8 + 1), "a store was lost");
        };
        let others = [1, 2].map(|cpu| on(scope, cpu, &process, move || touch(cpu)));
        touch(0);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
    for cpu in 0..3 {
        assert_eq!(load(&process, AT + cpu), Ok(cpu as u8 + 1), "a store of CPU {cpu} was lost");
    }
    assert_eq!((load(&process, AT + 9), resident(&process)), (Ok(if kind == 2 { 9 } else { 0 }), 1));
    sound(vm, &[&process]);
}

#[test]
fn faults_on_one_page_leave_one_page_and_every_store() {
    explore(450, |vm, _| fault_beside_fault(vm, 0));
    explore(450, |vm, _| fault_beside_fault(vm, 1));
    explore(450, |vm, _| fault_beside_fault(vm, 2));
    explore(450, |vm, _| fault_beside_fault(vm, 3));
    explore(450, |vm, _| fault_beside_fault(vm, 4));
}

/// A mapping goes, and another takes its place: an access is served by the one or the other, or refused.
///
/// Fails without: `self.set.lock(slot)` before `tables.unmap` in `Mm::commit_unmap`; `gather.flush_range` in `MmPager::unbook`.
fn fault_beside_munmap(vm: &Machinery<'_, '_>, _: &Disk<'_>) {
    let process = Process::new(vm).unwrap();
    map(&process, AT, 2, PRIVATE);
    enter(&process);
    store(&process, AT, 7).unwrap();
    thread::scope(|scope| {
        let other = on(scope, 1, &process, || {
            for page in [0, 1, 0] {
                match store(&process, AT + page * PAGE + 1, 5) {
                    Ok(()) | Err(NOT_MAPPED) => {}
                    other => panic!("{other:?}"),
                }
                match load(&process, AT + page * PAGE) {
                    Ok(0 | 7) | Err(NOT_MAPPED) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        process.munmap(AT, 2 * PAGE).unwrap();
        assert_eq!(resident(&process), 0, "pages of a mapping that is gone");
        map(&process, AT, 2, PRIVATE);
        assert_eq!(load(&process, AT), Ok(0), "the old mapping's page");
        other.join().unwrap();
    });
    sound(vm, &[&process]);
    process.munmap(AT, 2 * PAGE).unwrap();
    assert_eq!(resident(&process), 0);
}

#[test]
fn an_access_beside_munmap_meets_the_old_mapping_or_the_new_or_none() {
    explore(1000, fault_beside_munmap);
}

/// A child has its parent's memory of one moment, whatever the parent's threads store meanwhile, and the parent loses nothing.
///
/// Fails without: `self.set.lock(slot)` before `tables.fork` in `Mm::copy_vmas_to`; `gather.flush_range` or `clear_flags(ANON_EXCLUSIVE)` in `fork.rs`.
fn fork_beside_fault(vm: &Machinery<'_, '_>, _: &Disk<'_>) {
    let process = Process::new(vm).unwrap();
    // By another table, so that a fault may come in between.
    let second = AT + (2 << 20);
    for addr in [AT, second] {
        map(&process, addr, 1, PRIVATE);
    }
    enter(&process);
    store(&process, AT, 1).unwrap();
    store(&process, second, 1).unwrap();
    let child = thread::scope(|scope| {
        let other = on(scope, 1, &process, || {
            for value in 2..5 {
                store(&process, AT, value).unwrap();
                assert_eq!(load(&process, AT), Ok(value), "a store was lost");
                // The second never runs ahead of the first.
                store(&process, second, value).unwrap();
            }
        });
        let child = process.fork().unwrap();
        enter(&child);
        let seen = [AT, second].map(|addr| load(&child, addr).unwrap());
        assert!(seen[0] == seen[1] || seen[0] == seen[1] + 1, "torn: {seen:?}");
        store(&child, AT + 1, 9).unwrap();
        assert_eq!([AT, second].map(|addr| load(&child, addr).unwrap()), seen, "a later store was seen");
        other.join().unwrap();
        assert_eq!([AT, second].map(|addr| load(&child, addr).unwrap()), seen, "a later store was seen");
        child.deactivate();
        child
    });
    enter(&process);
    for (addr, value) in [(AT, 4), (second, 4), (AT + 1, 0)] {
        assert_eq!(load(&process, addr), Ok(value));
    }
    sound(vm, &[&process, &child]);
}

#[test]
fn a_child_never_sees_what_its_parent_stores_after_the_fork() {
    explore(1000, fork_beside_fault);
}

/// What lies beyond a file's new end is mapped nowhere, private copies neither, when truncation is through.
///
/// Fails without: `still_has` in `map_file_page`; `pending.note` in `Entries::unmap`; the reference that `copy_on_write` takes to the page it copies.
fn truncate_beside_fault(vm: &Machinery<'_, '_>, _: &Disk<'_>) {
    let process = Process::new(vm).unwrap();
    let file = vm.memory_file(2 * PAGE).unwrap();
    map_file(&process, AT, 2, &file, SHARED);
    map_file(&process, AT + 16 * PAGE, 2, &file, PRIVATE);
    enter(&process);
    thread::scope(|scope| {
        let other = on(scope, 1, &process, || {
            for addr in [AT + PAGE, AT + 17 * PAGE] {
                for _ in 0..2 {
                    match (load(&process, addr), store(&process, addr, 9)) {
                        (Ok(0 | 9) | Err(NO_PAGE), Ok(()) | Err(NO_PAGE)) => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
        });
        file.truncate(PAGE).unwrap();
        for addr in [AT + PAGE, AT + 17 * PAGE] {
            assert_eq!(process.entry_state(smp::at(addr)), None, "a page beyond the end of the file");
            assert_eq!(load(&process, addr), Err(NO_PAGE));
        }
        other.join().unwrap();
    });
    for addr in [AT + PAGE, AT + 17 * PAGE] {
        assert_eq!(process.entry_state(smp::at(addr)), None, "a page beyond the end of the file");
    }
    file.truncate(2 * PAGE).unwrap();
    assert_eq!(load(&process, AT + PAGE), Ok(0));
    sound(vm, &[&process]);
}

#[test]
fn no_page_beyond_the_end_of_a_file_stays_mapped() {
    explore(1000, truncate_beside_fault);
}

/// A file gets a hole: what was there is seen by nobody afterwards, and all see what comes then.
fn hole_beside_fault(vm: &Machinery<'_, '_>, _: &Disk<'_>) {
    let (process, other) = (Process::new(vm).unwrap(), Process::new(vm).unwrap());
    let file = vm.memory_file(PAGE).unwrap();
    file.write_at(0, &[9]).unwrap();
    map_file(&process, AT, 1, &file, SHARED);
    map_file(&other, AT, 1, &file, SHARED);
    thread::scope(|scope| {
        let reader = on(scope, 1, &process, || {
            assert!(matches!(load(&process, AT), Ok(0 | 5 | 9)));
        });
        other.madvise(AT, PAGE, Advice::Remove as i32).unwrap();
        enter(&other);
        assert_eq!(load(&other, AT), Ok(0));
        store(&other, AT, 5).unwrap();
        reader.join().unwrap();
        other.deactivate();
    });
    enter(&process);
    assert_eq!(load(&process, AT), Ok(5), "a page that is the file's no more");
    sound(vm, &[&process, &other]);
}

#[test]
fn no_page_that_a_hole_took_from_a_file_stays_mapped() {
    explore(600, hole_beside_fault);
}

/// A mapping moves: an access meets it at the one place or at the other, and all of it arrives.
///
/// Fails without: `self.lock_vmas(from)` in `Mm::prepare_move`.
fn fault_beside_move(vm: &Machinery<'_, '_>, _: &Disk<'_>) {
    let process = Process::new(vm).unwrap();
    // Two pages by two tables, of which one is not there yet.
    let (from, to) = (AT + (2 << 20) - PAGE, AT + (6 << 20) - PAGE);
    map(&process, from, 2, PRIVATE);
    enter(&process);
    store(&process, from + PAGE, 7).unwrap();
    thread::scope(|scope| {
        let other = on(scope, 1, &process, || {
            let stored = store(&process, from, 5);
            assert!(matches!(stored, Ok(()) | Err(NOT_MAPPED)));
            let there = load(&process, to);
            assert!(matches!(there, Ok(0 | 5) | Err(NOT_MAPPED)));
            stored.is_ok()
        });
        let flags = MremapFlags::MAYMOVE | MremapFlags::FIXED;
        process.mremap(from, 2 * PAGE, 2 * PAGE, flags, to).unwrap();
        let stored = other.join().unwrap();
        assert_eq!(load(&process, to), Ok(if stored { 5 } else { 0 }), "a store was lost on the way");
        assert_eq!(load(&process, to + PAGE), Ok(7));
    });
    sound(vm, &[&process]);
}

#[test]
fn a_store_beside_a_move_arrives_or_is_refused() {
    explore(600, fault_beside_move);
}

/// A mapping is split, merged and moved while its file is truncated: no private copy beyond the end stays.
///
/// Fails without: `begin_change` in `modify_flags`, in `cut`, or in `move_pages`; the wait for changes in `ShareList::settle`.
fn truncate_beside_calls(vm: &Machinery<'_, '_>, kind: u32) {
    let process = Process::new(vm).unwrap();
    let file = vm.memory_file(4 * PAGE).unwrap();
    map_file(&process, AT, 4, &file, PRIVATE);
    enter(&process);
    for page in 0..4 {
        store(&process, AT + page * PAGE, 9).unwrap();
    }
    let to = AT + 16 * PAGE;
    thread::scope(|scope| {
        let other = on(scope, 1, &process, || match kind {
            0 => {
                process.mprotect(AT + PAGE, PAGE, Prot::READ).unwrap();
                process.mprotect(AT + PAGE, PAGE, smp::RW).unwrap();
            }
            1 => {
                let flags = MremapFlags::MAYMOVE | MremapFlags::FIXED;
                process.mremap(AT, 4 * PAGE, 4 * PAGE, flags, to).unwrap();
            }
            _ => {
                process.munmap(AT + PAGE, PAGE).unwrap();
            }
        });
        file.truncate(PAGE).unwrap();
        other.join().unwrap();
    });
    let start = if kind == 1 { to } else { AT };
    for page in 1..4 {
        assert_eq!(process.entry_state(smp::at(start + page * PAGE)), None, "page {page} is beyond the end");
    }
    assert_eq!(load(&process, start), Ok(9));
    sound(vm, &[&process]);
}

#[test]
fn truncation_finds_every_private_copy_while_vmas_are_split_merged_and_moved() {
    explore(600, |vm, _| truncate_beside_calls(vm, 0));
    explore(600, |vm, _| truncate_beside_calls(vm, 1));
    explore(600, |vm, _| truncate_beside_calls(vm, 2));
}

/// What was stored before a write-back began is in the store after it, and what came later is after the next.
///
/// Fails without: `dirty_if_still_has` in `map_file_page`; taking the right to write in `Entries::clean`; the flush that this notes.
fn write_back_beside_write_fault<'a>(vm: &Machinery<'a, '_>, disk: &'a Disk<'_>, how: u32) {
    let process = Process::new(vm).unwrap();
    let file = vm.open_file(disk, smp::INODE, OpenMode::ReadWrite).unwrap();
    map_file(&process, AT, 2, &file, SHARED);
    enter(&process);
    store(&process, AT, 2).unwrap();
    thread::scope(|scope| {
        let other = on(scope, 1, &process, || {
            store(&process, AT, 3).unwrap();
            store(&process, AT + PAGE, 3).unwrap();
            if how == 1 {
                process.munmap(AT, 2 * PAGE).unwrap();
            }
        });
        let third = (how == 1).then(|| {
            on(scope, 2, &process, || match store(&process, AT + 8, 4) {
                Ok(()) => true,
                Err(NOT_MAPPED) => false,
                other => panic!("{other:?}"),
            })
        });
        file.sync_pages(PgOff::ZERO, PgOff::MAX).unwrap();
        assert_ne!(disk.files().contents(smp::INODE).unwrap()[0], 1, "not written back");
        other.join().unwrap();
        let stored = third.is_some_and(|third| third.join().unwrap());
        file.sync().unwrap();
        let contents = disk.files().contents(smp::INODE).unwrap();
        assert_eq!([0, PAGE].map(|byte| contents[byte as usize]), [3, 3], "a store was lost to the disk");
        if stored {
            assert_eq!(contents[8], 4, "a store by an old translation was lost to the disk");
        }
    });
    sound(vm, &[&process]);
}

#[test]
fn no_store_is_lost_to_the_disk() {
    explore(1000, |vm, disk| write_back_beside_write_fault(vm, disk, 0));
    explore(600, |vm, disk| write_back_beside_write_fault(vm, disk, 1));
}

/// The disk fails once while the flusher and an msync are about the same page: who was told that it is safe finds it after a power cut.
fn flusher_beside_msync<'a>(vm: &Machinery<'a, '_>, disk: &'a Disk<'_>, failure: Failure) {
    let process = Process::new(vm).unwrap();
    let file = vm.open_file(disk, smp::INODE, OpenMode::ReadWrite).unwrap();
    map_file(&process, AT, 2, &file, SHARED);
    enter(&process);
    store(&process, AT, 2).unwrap();
    disk.start_log();
    disk.set_latency(Latency::Polls(1));
    disk.fail(failure);
    thread::scope(|scope| {
        let flusher = on(scope, 1, &process, || {
            vm.write_back(8);
        });
        match process.msync(AT, PAGE, MsyncFlags::SYNC) {
            Ok(()) => {
                let left = disk.crash_image(disk.log_len(), Unsafe::Lost).unwrap();
                assert_eq!(left.contents(smp::INODE).unwrap()[0], 2, "it is not safe: {failure:?}");
            }
            Err(error) => assert_eq!((error, failure.error), (MmError::Io, StoreError::Io)),
        }
        flusher.join().unwrap();
    });
    disk.clear_failures();
    sound(vm, &[&process]);
}

/// Fails without: the count of what was refused in `PageCache::end_write`; the look at what lasts after `Stage::Flushed`.
#[test]
fn what_msync_says_is_safe_is_safe_whoever_wrote_it_and_whatever_failed() {
    for error in [StoreError::Busy, StoreError::Io] {
        for operation in [Operation::Write, Operation::Barrier] {
            for stage in [Stage::Submission, Stage::Completion] {
                let failure = Failure { operation: Some(operation), after: 0, times: 1, error, stage };
                explore(300, move |vm, disk| flusher_beside_msync(vm, disk, failure));
            }
        }
    }
}

/// A page is written that a child shares, while the child ends and others give the page back and write it again: each store is there, or was given back, and
/// what the child has never changes.
fn copy_on_write_beside_everything(vm: &Machinery<'_, '_>, _: &Disk<'_>) {
    let process = Process::new(vm).unwrap();
    map(&process, AT, 1, PRIVATE);
    enter(&process);
    store(&process, AT, 1).unwrap();
    let (first, second) = (process.fork().unwrap(), process.fork().unwrap());
    thread::scope(|scope| {
        let writer = on(scope, 1, &process, || {
            store(&process, AT + 1, 5).unwrap();
            assert!(matches!(load(&process, AT), Ok(0 | 1 | 7)), "bytes of nobody");
        });
        let ends = on(scope, 2, &second, || {
            store(&second, AT + 2, 6).unwrap();
            assert_eq!((load(&second, AT), load(&second, AT + 1)), (Ok(1), Ok(0)), "a sibling's store");
            second.munmap(AT, PAGE).unwrap();
        });
        process.madvise(AT, PAGE, Advice::DontNeed as i32).unwrap();
        store(&process, AT, 7).unwrap();
        let third = process.fork().unwrap();
        process.deactivate();
        enter(&third);
        assert_eq!(load(&third, AT), Ok(7));
        writer.join().unwrap();
        assert_eq!(load(&third, AT), Ok(7));
        third.deactivate();
        ends.join().unwrap();
        sound(vm, &[&process, &first, &second, &third]);
    });
    enter(&first);
    assert_eq!((load(&first, AT), load(&first, AT + 1), load(&first, AT + 2)), (Ok(1), Ok(0), Ok(0)));
    first.deactivate();
}

#[test]
fn a_copy_on_write_keeps_processes_apart_whoever_gives_the_page_back_meanwhile() {
    explore(1000, copy_on_write_beside_everything);
}

/// What one CPU unmaps or forbids, another, whose TLB knows it, reaches no more when the call is through.
///
/// Fails without: `gather.flush_range` in `take_batch` of `moves.rs`, and in `change_protection`.
fn two_tlbs(vm: &Machinery<'_, '_>, kind: u32) {
    let process = Process::new(vm).unwrap();
    map(&process, AT, 2, PRIVATE);
    enter(&process);
    store(&process, AT, 1).unwrap();
    thread::scope(|scope| {
        let other = on(scope, 1, &process, || {
            for value in 2..6 {
                match store(&process, AT, value) {
                    Ok(()) => {}
                    Err(Refused::Signal(Signal::Denied | Signal::NotMapped)) => return,
                    other => panic!("{other:?}"),
                }
            }
        });
        match kind {
            0 => {
                process.mprotect(AT, PAGE, Prot::READ).unwrap();
                let seen = load(&process, AT);
                thread::yield_now();
                assert_eq!(load(&process, AT), seen, "written to through an old translation");
            }
            1 => {
                let child = process.fork().unwrap();
                enter(&child);
                let seen = load(&child, AT);
                other.join().unwrap();
                assert_eq!(load(&child, AT), seen, "written to through an old translation");
                child.deactivate();
                return;
            }
            2 => {
                let flags = MremapFlags::MAYMOVE | MremapFlags::FIXED;
                process.mremap(AT, PAGE, PAGE, flags, AT + 8 * PAGE).unwrap();
                let seen = load(&process, AT + 8 * PAGE);
                thread::yield_now();
                assert_eq!(load(&process, AT + 8 * PAGE), seen, "written to through an old translation");
            }
            _ => {
                process.munmap(AT, PAGE).unwrap();
                store(&process, AT + PAGE, 1).unwrap();
            }
        }
        other.join().unwrap();
    });
    sound(vm, &[&process]);
}

/// While one CPU of a process copies a page that a child shares, a second reads it through its TLB; a third writes it too, of the process or the child. The
/// second sees the third's store as soon as that is over if it is of the same process, and never if it is the child's.
///
/// Fails if `replace` lets the new page be written at once, or takes no reference more to it; without `page.count() == 1` in `reuse`.
fn copy_on_write_beside_a_reader(vm: &Machinery<'_, '_>, by_child: bool) {
    let process = Process::new(vm).unwrap();
    map(&process, AT, 1, PRIVATE);
    enter(&process);
    store(&process, AT, 1).unwrap();
    let child = process.fork().unwrap();
    let (ready, stored) = (AtomicU32::new(0), AtomicU32::new(0));
    let wait_for = |flag: &AtomicU32| {
        while flag.load(SeqCst) == 0 {
            thread::yield_now();
        }
    };
    let third = if by_child { &child } else { &process };
    thread::scope(|scope| {
        let reader = on(scope, 1, &process, || {
            assert_eq!(load(&process, AT + 2), Ok(0));
            ready.store(1, SeqCst);
            wait_for(&stored);
            let expected = if by_child { 0 } else { 5 };
            assert_eq!(load(&process, AT + 2), Ok(expected), "read through an old translation");
        });
        let writer = on(scope, 2, third, || {
            wait_for(&ready);
            store(third, AT + 2, 5).unwrap();
            stored.store(1, SeqCst);
        });
        wait_for(&ready);
        store(&process, AT + 1, 4).unwrap();
        reader.join().unwrap();
        writer.join().unwrap();
    });
    sound(vm, &[&process, &child]);
}

#[test]
fn a_page_is_written_when_no_tlb_knows_the_one_before() {
    explore(1000, |vm, _| copy_on_write_beside_a_reader(vm, false));
    explore(1000, |vm, _| copy_on_write_beside_a_reader(vm, true));
}

#[test]
fn no_tlb_reaches_what_another_cpu_unmapped_or_forbade() {
    explore(450, |vm, _| two_tlbs(vm, 0));
    explore(450, |vm, _| two_tlbs(vm, 1));
    explore(450, |vm, _| two_tlbs(vm, 2));
    explore(450, |vm, _| two_tlbs(vm, 3));
}
