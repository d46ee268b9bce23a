//! Dirty pages of files that stay open or mapped: whether the disk has room for them, and how the flusher gets them there.

mod scene;

use std::cell::Cell;

use kernmm::addr::{Pfn, VirtAddr, VirtRange};
use kernmm::cache::CacheError;
use kernmm::collections::Slot;
use kernmm::flags::MsyncFlags;
use kernmm::memory::{Memory, Vm, VmLimits};
use kernmm::platform::hosted::{Disk, Failure, Latency, Machine, Operation, Room, Stage, Unsafe};
use kernmm::platform::{CpuId, Platform, StoreError};
use kernmm::rmap::{Copies, MmAccess};
use kernmm::syscall::{MmapArgs, OpenMode};
use scene::*;

/// What the disk holds at a byte of a file.
fn on_disk(disk: &Disk<'_>, inode: u64, at: u64) -> u8 {
    disk.files().contents(inode).unwrap()[at as usize]
}

/// Calls the flusher until nothing is under way; how many pages it has begun to write.
fn flush(vm: &Vm<'_, Mem<'_>>, disk: &Disk<'_>, pages: u32) -> u32 {
    let begun = vm.write_back(pages);
    while disk.under_way() != 0 {
        vm.source().platform().relax();
        assert_eq!(vm.write_back(0), 0);
    }
    begun
}

#[test]
fn what_a_mapping_stores_is_written_while_it_is_mapped_and_a_later_store_by_the_next_call() {
    for latency in [Latency::None, Latency::Polls(3)] {
        on_machine(|vm, disk| {
            disk.set_latency(latency);
            let process = process(vm);
            let file = open(vm, disk);
            let start = map_file(&process, &file, 4, RW, SHARED);
            store(&process, start, b'a').unwrap();
            process.msync(start, PAGE, MsyncFlags::ASYNC).unwrap();
            assert_eq!(on_disk(disk, INODE, 0), content(0), "MS_ASYNC writes nothing");
            assert_eq!(flush(vm, disk, 8), 1);
            assert_eq!(on_disk(disk, INODE, 0), b'a');
            assert_eq!(flush(vm, disk, 8), 0, "it is clean");

            // The CPU has the translation that allowed the first store: it must have forgotten it.
            let faults = process.faults().minor;
            store(&process, start + 1, b'b').unwrap();
            assert_eq!(process.faults().minor, faults + 1);
            assert_eq!(flush(vm, disk, 8), 1);
            assert_eq!([0, 1].map(|at| on_disk(disk, INODE, at)), *b"ab");

            file.write_at(PAGE, b"c").unwrap();
            assert_eq!(flush(vm, disk, 8), 1);
            assert_eq!(on_disk(disk, INODE, PAGE), b'c');
        });
    }
}

#[test]
fn it_writes_no_more_than_it_is_asked_for_and_each_page_has_its_turn() {
    on_machine(|vm, disk| {
        disk.put(INODE + 1, &[0; 2]);
        let process = process(vm);
        let file = open(vm, disk);
        let other = vm.open_file(disk, INODE + 1, OpenMode::ReadWrite).unwrap();
        let start = map_file(&process, &file, 4, RW, SHARED);
        (0..4).for_each(|page| store(&process, start + page * PAGE, b'x').unwrap());
        other.write_at(0, b"y").unwrap();
        assert_eq!(flush(vm, disk, 2), 2);
        // The first page is stored to again and again: the others come first all the same.
        store(&process, start, b'z').unwrap();
        assert_eq!(flush(vm, disk, 2), 2);
        assert_eq!([0, 1, 2, 3].map(|page| on_disk(disk, INODE, page * PAGE)), *b"xxxx");
        store(&process, start, b'z').unwrap();
        assert_eq!(flush(vm, disk, 1), 1);
        assert_eq!(on_disk(disk, INODE + 1, 0), b'y', "the other file's turn");
        assert_eq!(flush(vm, disk, 1), 1);
        assert_eq!(on_disk(disk, INODE, 0), b'z');
        assert_eq!(flush(vm, disk, u32::MAX), 0);
    });
}

/// The page tables as they are, and how many entries were to be write-protected.
struct Counted<A> {
    entries: A,
    cleaned: Cell<usize>,
}

impl<A: MmAccess> MmAccess for Counted<A> {
    fn clean(&self, mm: Slot, addr: VirtAddr, pfn: Pfn) -> bool {
        self.cleaned.set(self.cleaned.get() + 1);
        self.entries.clean(mm, addr, pfn)
    }

    fn zap(&self, mm: Slot, range: VirtRange, copies: Copies) -> Option<VirtAddr> {
        self.entries.zap(mm, range, copies)
    }

    fn is_full(&self) -> bool {
        self.entries.is_full()
    }

    fn flush(&self) {
        self.entries.flush();
    }
}

/// Fails if the list of all who map the file is gone through again for each few of them, or not to its end.
#[test]
fn a_page_that_many_map_is_write_protected_once_in_each() {
    const MANY: usize = 20;
    on_machine(|vm, disk| {
        let file = open(vm, disk);
        let processes: Vec<_> = (0..MANY).map(|_| process(vm)).collect();
        // Every other one maps it from its second page on.
        let starts: Vec<_> = processes
            .iter()
            .enumerate()
            .map(|(number, process)| {
                let first = number as u64 % 2;
                let args = of_file(&file, 0, 4 - first, RW, SHARED);
                let args = MmapArgs { offset: first * PAGE, ..args };
                process.mmap(&args).unwrap().get() - first * PAGE
            })
            .collect();
        let store_all = |byte| {
            for (process, start) in processes.iter().zip(&starts) {
                [1, 2].iter().for_each(|page| store(process, start + page * PAGE, byte).unwrap());
            }
        };
        store_all(b'a');
        let access = Counted { entries: vm.pager().entries(), cleaned: Cell::new(0) };
        assert_eq!(vm.cache().write_dirty(vm.source(), &access, 8), 2);
        assert_eq!(access.cleaned.get(), 2 * MANY);
        drop(access);
        // Each is noticed when it stores again.
        for (process, start) in processes.iter().zip(&starts) {
            for page in [1, 2] {
                let faults = process.faults().minor;
                store(process, start + page * PAGE, b'b').unwrap();
                assert_eq!(process.faults().minor, faults + 1);
            }
        }
        assert_eq!(flush(vm, disk, 8), 2);
        assert_eq!([1, 2].map(|page| on_disk(disk, INODE, page * PAGE)), *b"bb");
    });
}

#[test]
fn files_in_memory_have_nowhere_to_be_written() {
    on_machine(|vm, disk| {
        let process = process(vm);
        let file = vm.memory_file(PAGE).unwrap();
        let start = map_file(&process, &file, 1, RW, SHARED);
        store(&process, start, 1).unwrap();
        assert_eq!(flush(vm, disk, 8), 0);
        vm.sync();
        assert_eq!(disk.operations(), 0);
    });
}

#[test]
fn pages_that_could_not_be_written_are_tried_again_and_the_error_is_told() {
    on_machine(|vm, disk| {
        let file = open(vm, disk);
        file.write_at(0, b"x").unwrap();
        let (operation, error) = (Some(Operation::Write), StoreError::Io);
        disk.fail(Failure { operation, after: 0, times: 1, error, stage: Stage::Completion });
        assert_eq!(flush(vm, disk, 8), 1);
        assert_eq!(on_disk(disk, INODE, 0), content(0));
        assert_eq!(flush(vm, disk, 8), 1);
        assert_eq!(on_disk(disk, INODE, 0), b'x');
        assert_eq!(file.sync(), Err(CacheError::Io));
    });
}

/// Fails if `reap` answers 0 while a write that failed is to be tried again.
#[test]
fn what_nobody_has_open_is_reaped_though_a_write_of_it_failed() {
    for stage in [Stage::Submission, Stage::Completion] {
        on_machine(|vm, disk| {
            let file = open(vm, disk);
            file.write_at(0, b"x").unwrap();
            drop(file);
            let (operation, error) = (Some(Operation::Write), StoreError::Io);
            disk.fail(Failure { operation, after: 0, times: 2, error, stage });
            while vm.reap() != 0 {}
            assert_eq!(on_disk(disk, INODE, 0), b'x');
        });
    }
}

/// Fails if what nobody has open any more and cannot be written is tried for ever, or not again.
#[test]
fn what_nobody_has_open_and_the_disk_cannot_write_is_given_up_in_the_end() {
    for error in [StoreError::Io, StoreError::NoSpace] {
        for (latency, stage) in [(Latency::None, Stage::Submission), (Latency::Polls(2), Stage::Completion)] {
            on_machine(|vm, disk| {
                disk.set_latency(latency);
                let write_and_close = || {
                    let file = open(vm, disk);
                    file.write_at(0, &[9; 100 * PAGE as usize]).unwrap();
                };
                let pages = || vm.cache().pages(vm.source());
                let fail = |times| {
                    disk.fail(Failure { operation: Some(Operation::Write), after: 0, times, error, stage });
                };
                // It fails for a while: each of four writes, seven times.
                fail(28);
                write_and_close();
                for _ in 0..8 {
                    flush(vm, disk, u32::MAX);
                }
                assert_eq!((pages(), on_disk(disk, INODE, 99 * PAGE)), (0, 9));
                // It fails for good: as often as it is asked, and it is asked again.
                disk.put(INODE, &contents());
                fail(u64::MAX);
                write_and_close();
                for _ in 0..8 {
                    assert_eq!(pages(), 100);
                    flush(vm, disk, u32::MAX);
                }
                assert_eq!((pages(), flush(vm, disk, u32::MAX)), (0, 0));
                let reports = vm.source().platform().take_reports();
                let lost: Vec<_> = reports.lines().collect();
                assert_eq!(lost.len(), 4, "each write that is not tried again: {reports}");
                assert!(
                    lost[3].contains("file 3: what was written to pages 96 up to 100 is lost"),
                    "{reports}"
                );
                assert_eq!(open(vm, disk).size(), Ok(contents().len() as u64), "it has given its place up");

                // As long as somebody has it open it is not given up.
                let file = open(vm, disk);
                file.write_at(0, b"x").unwrap();
                for _ in 0..12 {
                    flush(vm, disk, u32::MAX);
                }
                disk.clear_failures();
                drop(file);
                flush(vm, disk, u32::MAX);
                assert_eq!(on_disk(disk, INODE, 0), b'x');
            });
        }
    }
}

#[test]
fn a_disk_that_is_full_of_requests_gets_the_rest_later() {
    on_machine(|vm, disk| {
        disk.set_latency(Latency::Polls(2));
        let file = open(vm, disk);
        // Every other page: each is a write of its own.
        (0..8).for_each(|page| assert_eq!(file.write_at(2 * page * PAGE, b"x"), Ok(1)));
        disk.set_depth(Some(3));
        // The fourth is refused, and comes by itself.
        assert_eq!((vm.write_back(100), disk.under_way()), (4, 3));
        let mut begun = 4;
        while begun < 8 {
            begun += flush(vm, disk, 100);
        }
        assert!((0..8).all(|page| on_disk(disk, INODE, 2 * page * PAGE) == b'x'));
    });
}

/// Fails if the files behind the one for which a store was too busy are tried too, or those of another store are not.
#[test]
fn a_store_that_is_full_of_requests_is_left_alone_and_the_others_are_not() {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disks = [Disk::new(&machine), Disk::new(&machine)];
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let [busy, free] = disks.each_ref();
    busy.set_depth(Some(2));
    let requests = || disks.each_ref().map(|disk| disk.take_requests().len());
    for close in [false, true] {
        disks.iter().for_each(|disk| disk.set_latency(Latency::Ticks(10)));
        // By turns a file of each disk.
        let files = (0..10).map(|file| {
            let disk = &disks[file % 2];
            disk.put(file as u64, b"old");
            let file = vm.open_file(disk, file as u64, OpenMode::ReadWrite).unwrap();
            file.write_at(0, b"new").unwrap();
            (!close).then_some(file)
        });
        let files: Vec<_> = files.collect();
        disks.iter().for_each(Disk::record_requests);
        requests();
        let begun = || match close {
            true => vm.reap(),
            false => vm.write_back(100) as usize,
        };
        // What a closed file has left to be written is counted too.
        assert_eq!((begun(), requests()), (if close { 10 } else { 8 }, [3, 5]), "of five it takes two");
        // There is no room before one of them has ended: it is not even asked.
        assert_eq!((begun(), requests()), (if close { 10 } else { 0 }, [0, 0]));
        while [busy, free].iter().any(|disk| disk.under_way() != 0) {
            disks.iter().for_each(|disk| disk.advance(10));
            begun();
        }
        let contents = |file: usize| disks[file % 2].files().contents(file as u64).unwrap().to_vec();
        assert!((0..10).all(|file| contents(file) == b"new"));
        drop(files);
        while vm.reap() != 0 {
            disks.iter().for_each(|disk| disk.advance(10));
        }
    }
}

#[test]
fn sync_waits_until_the_bytes_of_all_files_last() {
    on_machine(|vm, disk| {
        disk.put(INODE + 1, b"old");
        disk.set_latency(Latency::Polls(3));
        disk.start_log();
        let process = process(vm);
        let (file, other) = (open(vm, disk), vm.open_file(disk, INODE + 1, OpenMode::ReadWrite).unwrap());
        let start = map_file(&process, &file, 4, RW, SHARED);
        store(&process, start + 2 * PAGE, b'm').unwrap();
        other.write_at(0, b"new").unwrap();
        vm.sync();
        let left = disk.crash_image(disk.log_len(), Unsafe::Lost).unwrap();
        assert_eq!(left.contents(INODE).unwrap()[2 * PAGE as usize], b'm');
        assert_eq!(left.contents(INODE + 1).unwrap(), b"new");
        // What the flusher has written is made to last too.
        other.write_at(0, b"two").unwrap();
        flush(vm, disk, 8);
        vm.sync();
        let left = disk.crash_image(disk.log_len(), Unsafe::Lost).unwrap();
        assert_eq!(left.contents(INODE + 1).unwrap(), b"two");
    });
}

/// What a power cut leaves now of a file that began as `old`.
fn lasts(disk: &Disk<'_>, inode: u64) -> Vec<u8> {
    disk.crash_image(disk.log_len(), Unsafe::Lost).unwrap().contents(inode).unwrap().to_vec()
}

/// Fails if a file without users is forgotten when its last page is written.
#[test]
fn sync_makes_files_last_that_nobody_has_open_any_more() {
    for latency in [Latency::None, Latency::Polls(3)] {
        on_machine(|vm, disk| {
            disk.set_latency(latency);
            (1..5).for_each(|file| disk.put(INODE + file, b"old"));
            disk.start_log();
            let write_and_close = |file, bytes: &[u8]| {
                let file = vm.open_file(disk, INODE + file, OpenMode::ReadWrite).unwrap();
                file.write_at(0, bytes).unwrap();
            };
            // One that the flusher has written before it is closed, one that it writes then, one that it is writing, one that is dirty.
            let file = vm.open_file(disk, INODE + 1, OpenMode::ReadWrite).unwrap();
            file.write_at(0, b"one").unwrap();
            flush(vm, disk, 8);
            drop(file);
            write_and_close(2, b"two");
            assert_eq!(flush(vm, disk, 8), 1);
            write_and_close(3, b"tri");
            vm.write_back(8);
            write_and_close(4, b"for");
            vm.sync();
            assert_eq!([1, 2, 3, 4].map(|file| lasts(disk, INODE + file)), [b"one", b"two", b"tri", b"for"]);

            // A length is as good as bytes.
            let file = vm.open_file(disk, INODE + 1, OpenMode::ReadWrite).unwrap();
            file.truncate(2).unwrap();
            drop(file);
            vm.sync();
            assert_eq!(lasts(disk, INODE + 1), b"on");
        });
    }
}

/// Files that nobody has are made to last as they are written, and give their places back.
#[test]
fn files_that_are_written_and_closed_one_after_the_other_do_not_use_up_the_places() {
    for latency in [Latency::None, Latency::Polls(3)] {
        on_machine(|vm, disk| {
            disk.set_latency(latency);
            disk.start_log();
            disk.record_requests();
            let files = 3 * VmLimits::for_frames(vm.source().phys().managed_pages()).files as u64;
            for file in 10..10 + files {
                disk.put(file, b"old");
                let file = vm.open_file(disk, file, OpenMode::ReadWrite).unwrap();
                file.write_at(0, b"new").unwrap();
                drop(file);
                flush(vm, disk, 8);
            }
            while vm.reap() != 0 {}
            assert!((10..10 + files).all(|file| lasts(disk, file) == b"new"));
            let barriers =
                disk.take_requests().iter().filter(|made| made.operation == Operation::Barrier).count();
            assert_eq!(barriers as u64, files);
            vm.sync();
            assert_eq!(disk.take_requests(), [], "nothing is known any more of what lasts");
        });
    }
}

#[test]
fn a_barrier_for_which_the_disk_was_too_busy_is_no_error() {
    on_machine(|vm, disk| {
        disk.put(INODE + 1, b"old");
        let (file, other) = (open(vm, disk), vm.open_file(disk, INODE + 1, OpenMode::ReadWrite).unwrap());
        disk.set_latency(Latency::Polls(2));
        disk.set_depth(Some(1));
        other.write_at(0, b"new").unwrap();
        assert_eq!(vm.write_back(1), 1);
        assert_eq!((disk.under_way(), file.sync()), (1, Ok(())));
    });
}

#[test]
fn a_store_to_a_hole_of_a_full_disk_is_a_sigbus_and_a_write_call_says_so() {
    for latency in [Latency::None, Latency::Polls(2)] {
        on_machine(|vm, disk| {
            disk.set_latency(latency);
            let process = process(vm);
            let file = open(vm, disk);
            file.truncate(8 * PAGE).unwrap();
            let start = map_file(&process, &file, 8, RW, SHARED);
            let private = map_file(&process, &file, 8, RW, PRIVATE);
            disk.set_room(Room::WhenDirtied);
            disk.set_capacity(Some(5)); // The file has four pages and a hole of four.
            assert_eq!(store(&process, start + 4 * PAGE, b'x'), Ok(()));
            assert_eq!(store(&process, start + 5 * PAGE, b'x'), Err(NO_PAGE), "nothing is mapped");
            assert_eq!(load(&process, start + 5 * PAGE), Ok(0));
            assert_eq!(store(&process, start + 5 * PAGE, b'x'), Err(NO_PAGE), "it is mapped for reading");
            assert_eq!(load(&process, start + 5 * PAGE), Ok(0));
            assert_eq!(store(&process, start, b'x'), Ok(()), "it has room");
            assert_eq!(store(&process, private + 5 * PAGE, b'x'), Ok(()), "that is none of the disk's");
            assert_eq!(file.write_at(5 * PAGE, b"x"), Err(CacheError::NoSpace));
            assert_eq!(file.write_at(9 * PAGE, b"x"), Err(CacheError::NoSpace));
            assert_eq!(file.size(), Ok(8 * PAGE));
            assert_eq!(file.write_at(5 * PAGE - 2, b"xyz"), Ok(2), "as far as there is room");
            file.sync().unwrap();
            assert_eq!(on_disk(disk, INODE, 4 * PAGE), b'x');

            // What is cut off gives its room back.
            file.truncate(4 * PAGE).unwrap();
            file.truncate(8 * PAGE).unwrap();
            assert_eq!(store(&process, start + 5 * PAGE, b'y'), Ok(()));
            assert_eq!(store(&process, start + 4 * PAGE, b'y'), Err(NO_PAGE));
            file.sync().unwrap();
            assert_eq!([4, 5].map(|page| on_disk(disk, INODE, page * PAGE)), [0, b'y']);
        });
    }
}

#[test]
fn a_disk_is_asked_for_room_whenever_a_page_becomes_dirty_and_again_if_it_is_busy() {
    on_machine(|vm, disk| {
        let process = process(vm);
        let file = open(vm, disk);
        let start = map_file(&process, &file, 4, RW, SHARED);
        disk.set_room(Room::WhenDirtied);
        disk.record_requests();
        let asked = || {
            let all = disk.take_requests();
            all.iter()
                .filter(|made| made.operation == Operation::Reserve)
                .map(|made| made.first.get())
                .collect()
        };
        let (operation, error) = (Some(Operation::Reserve), StoreError::Busy);
        disk.fail(Failure { operation, after: 0, times: 2, error, stage: Stage::Submission });
        load(&process, start + PAGE).unwrap();
        let _reads: Vec<u64> = asked();
        store(&process, start + PAGE, 1).unwrap();
        store(&process, start + PAGE, 2).unwrap();
        assert_eq!(asked(), [1, 1, 1], "twice it was busy");
        flush(vm, disk, 8);
        store(&process, start + PAGE, 3).unwrap();
        assert_eq!(asked(), [1]);
        disk.fail(Failure { operation, after: 0, times: 1, error, stage: Stage::Submission });
        assert_eq!(file.write_at(2 * PAGE, b"x"), Ok(1));
        assert_eq!(asked(), [2, 2]);
        let error = StoreError::Io;
        disk.fail(Failure { operation, after: 0, times: 1, error, stage: Stage::Submission });
        assert_eq!(store(&process, start, 1), Err(NO_PAGE));
        assert_eq!(store(&process, start, 1), Ok(()));
    });
}

/// Fails if all pages that are left are looked at again for each few that were written.
#[test]
fn what_a_closed_file_has_left_is_looked_at_twice_however_much_it_is() {
    for pages in [64, 1024] {
        for latency in [Latency::None, Latency::Polls(2)] {
            on_machine(|vm, disk| {
                disk.set_latency(latency);
                let file = open(vm, disk);
                (0..pages).for_each(|page| assert_eq!(file.write_at(page * PAGE, b"x"), Ok(1)));
                let (scanned, dropped) = (vm.cache().scanned(), vm.cache().dropped());
                drop(file);
                while vm.reap() != 0 {
                    vm.source().platform().relax();
                }
                assert_eq!(vm.cache().dropped() - dropped, pages);
                // When it is closed, and when they are written.
                assert_eq!(vm.cache().scanned() - scanned, 2 * pages);
            });
        }
    }
}
