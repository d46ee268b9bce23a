//! Files larger than memory, and what an allocation that is short of it may do: it drops clean pages that nobody uses, and writes nothing.

mod scene;

use kernmm::addr::{PageOrder, Pfn};
use kernmm::cache::CacheError;
use kernmm::fault::{Access, Attempt, Fault, PinTerm, PinUse};
use kernmm::flags::{Advice, GfpFlags, MapFlags};
use kernmm::memory::{File, Memory, Refused, Vm};
use kernmm::phys::PageSource;
use kernmm::platform::hosted::{Disk, Failure, Latency, Machine, Operation, Stage};
use kernmm::platform::{CpuId, StoreError};
use kernmm::syscall::{MmapArgs, OpenMode};
use scene::*;

type Machines = Vm<'static, Mem<'static>>;

/// Of the machine.
const MEMORY: u64 = 16 << 20;
/// Of a file that is larger.
const LARGE: u64 = 2 * MEMORY;
const OTHER: u64 = INODE + 1;

/// Things that are there for as long as a kernel is.
fn forever<T>(thing: T) -> &'static T {
    Box::leak(Box::new(thing))
}

/// A machine whose files go where memory is short, with a large file on its disk.
fn on_machine(latency: Latency, test: impl FnOnce(&'static Machines, &'static Disk<'static>)) {
    let machine = forever(Machine::pc(MEMORY).build().unwrap());
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = forever(Memory::on(machine).unwrap());
    let disk = forever(Disk::new(machine));
    disk.put(INODE, &large());
    disk.put(OTHER, b"");
    disk.set_latency(latency);
    let vm: &Machines = forever(Vm::on(memory).unwrap());
    memory.register_shrinker(vm).unwrap();
    test(vm, disk);
    vm.sync();
    while vm.reap() != 0 {}
    assert_eq!(vm.cache().pages(memory), 0);
    vm.assert_sound::<spin::RwLock<()>>(&[]);
}

/// Each page has its number, and none is zeros.
fn large() -> Vec<u8> {
    (0..LARGE / PAGE)
        .flat_map(|page| [page.to_le_bytes(), [0x5a; 8]].concat().repeat(PAGE as usize / 16))
        .collect()
}

/// Whether bytes are those of the file from an offset on.
fn is_large(bytes: &[u8], offset: u64) -> bool {
    (offset..).step_by(16).zip(bytes.chunks(16)).all(|(at, bytes)| bytes[..8] == (at / PAGE).to_le_bytes())
}

fn open_other(vm: &'static Machines, disk: &'static Disk<'static>) -> File<'static, 'static, Mem<'static>> {
    vm.open_file(disk, OTHER, OpenMode::ReadWrite).unwrap()
}

fn pages(vm: &Machines, file: &File<'_, '_, Mem<'_>>) -> u32 {
    vm.cache().stat(vm.source(), file.id()).unwrap().pages
}

#[test]
fn a_file_larger_than_memory_is_read_by_the_kernel_and_by_a_process() {
    for latency in [Latency::None, Latency::Polls(2)] {
        on_machine(latency, |vm, disk| {
            let file = open(vm, disk);
            let (process, piece) = (process(vm), 1 << 18);
            let start = map(&process, piece / PAGE, RW, PRIVATE);
            let mut bytes = vec![0; piece as usize];
            for offset in (0..LARGE).step_by(piece as usize) {
                assert_eq!(file.read_at(offset, &mut bytes), Ok(piece as usize));
                assert!(is_large(&bytes, offset));
            }
            for offset in (0..LARGE).step_by(piece as usize) {
                assert_eq!(file.read_to_user(&process, offset, at(start), piece), Ok(piece));
                assert!(is_large(&load_all(&process, start, piece), offset));
            }
        });
    }
}

#[test]
fn a_file_larger_than_memory_is_mapped_in_windows() {
    on_machine(Latency::Polls(2), |vm, disk| {
        let (file, process, window) = (open(vm, disk), process(vm), 1 << 20);
        for offset in (0..LARGE).step_by(window as usize) {
            let whole = of_file(&file, 0, window / PAGE, RW, SHARED);
            let start = process.mmap(&MmapArgs { offset, ..whole }).unwrap().get();
            assert!(is_large(&load_all(&process, start, window), offset));
            // What is written by the way is not lost.
            store(&process, start + PAGE + 8, b'd').unwrap();
            process.munmap(start, window).unwrap();
        }
        file.sync().unwrap();
        let contents = disk.files().contents(INODE).unwrap();
        let dirtied = contents.iter().skip(PAGE as usize + 8).step_by(window as usize);
        assert!(dirtied.clone().all(|&byte| byte == b'd') && dirtied.count() as u64 == LARGE / window);
    });
}

#[test]
fn a_file_larger_than_memory_is_copied_and_nobody_else_writes() {
    for latency in [Latency::None, Latency::Polls(2)] {
        on_machine(latency, |vm, disk| {
            let (from, to) = (open(vm, disk), open_other(vm, disk));
            let mut bytes = vec![0; 1 << 16];
            for offset in (0..LARGE).step_by(bytes.len()) {
                assert_eq!(from.read_at(offset, &mut bytes), Ok(bytes.len()));
                assert_eq!(to.write_at(offset, &bytes), Ok(bytes.len()), "at {offset:#x}");
            }
            to.sync().unwrap();
            assert!(disk.files().contents(OTHER).unwrap() == large(), "it is not the same");
        });
    }
}

#[test]
fn a_store_that_cannot_write_ends_in_out_of_memory_and_nothing_is_lost() {
    on_machine(Latency::None, |vm, disk| {
        let (file, mut end) = (open_other(vm, disk), 0);
        let (operation, error, stage) = (Some(Operation::Write), StoreError::Io, Stage::Submission);
        disk.fail(Failure { operation, after: 0, times: u64::MAX, error, stage });
        let failed = loop {
            match file.write_at(end, &[7; PAGE as usize]) {
                Ok(written) => end += written as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(failed, CacheError::OutOfMemory);
        disk.clear_failures();
        assert_eq!(file.write_at(end, &[7; PAGE as usize]), Ok(PAGE as usize));
        let _told = file.sync();
        let contents = disk.files().contents(OTHER).unwrap();
        assert!(contents.len() as u64 == end + PAGE && contents.iter().all(|&byte| byte == 7));
    });
}

/// Fails if a page goes that anybody uses, or if one is looked at twice.
#[test]
fn what_is_dirty_or_used_stays_and_of_the_rest_each_page_has_its_turn() {
    on_machine(Latency::None, |vm, disk| {
        let cache = vm.cache();
        let shrink = |pages| {
            let scanned = cache.scanned();
            let gone = cache.shrink(vm.source(), pages);
            assert!(cache.scanned() - scanned <= cache.pages(vm.source()) + gone);
            gone
        };
        let (file, other, memory) = (open(vm, disk), open_other(vm, disk), vm.memory_file(8 * PAGE).unwrap());
        let process = process(vm);
        memory.write_at(0, &[1; 8 * PAGE as usize]).unwrap();
        other.write_at(0, &[2; 8 * PAGE as usize]).unwrap();
        other.sync().unwrap();
        let all = pages(vm, &other);
        // The first is mapped, the second pinned, the third dirty, the fourth read by a look-up that is under way.
        let start = map_file(&process, &other, 4, RW, SHARED);
        process.munmap(start + 2 * PAGE, 2 * PAGE).unwrap();
        load(&process, start).unwrap();
        let mut pinned = [Pfn::ZERO];
        process.pin_pages(at(start + PAGE), Access::Read, PinTerm::Short, &mut pinned).unwrap();
        process.munmap(start + PAGE, PAGE).unwrap();
        other.write_at(2 * PAGE, b"d").unwrap();
        let fourth = cache.find(vm.source(), other.id(), kernmm::addr::PgOff::new(3).unwrap()).unwrap();
        assert_eq!(shrink(u64::MAX), u64::from(all) - 4);
        assert_eq!((pages(vm, &other), pages(vm, &memory)), (4, 8));
        assert_eq!(shrink(u64::MAX), 0);
        vm.source().put_page(fourth).unwrap();
        assert_eq!(vm.unpin_pages(&pinned, PinUse::Clean), 1);
        process.munmap(start, PAGE).unwrap();
        other.sync().unwrap();
        assert_eq!(shrink(3), 3);

        let mut bytes = vec![0; 16 * PAGE as usize];
        file.read_at(0, &mut bytes).unwrap();
        other.read_at(0, &mut bytes).unwrap();
        let before = (pages(vm, &file), pages(vm, &other));
        let total = u64::from(before.0 + before.1);
        // Whoever asks for a page at a time gets each page once, though all are read again.
        for _ in 0..total {
            assert_eq!(shrink(1), 1);
        }
        assert_eq!((pages(vm, &file), pages(vm, &other)), (0, 0));
    });
}

/// Fails if a store is written to, or made to last, for an allocation whose caller has an address space locked.
#[test]
fn a_fault_that_is_short_of_memory_writes_nothing_under_its_lock_and_waits_for_writes_without_it() {
    for latency in [Latency::None, Latency::Polls(2)] {
        on_machine(latency, |vm, disk| {
            let file = open_other(vm, disk);
            (0..64).for_each(|page| assert_eq!(file.write_at(page * PAGE, b"x"), Ok(1)));
            drop(file);
            let process = process(vm);
            let start = map(&process, MEMORY / PAGE, RW, PRIVATE | MapFlags::NORESERVE);
            let mut next = (start..).step_by(PAGE as usize);
            disk.record_requests();
            let short = next.find(|&page| {
                let fault = process.handle_fault(at(page), Access::Write, Attempt::First);
                assert!(matches!(fault, Fault::Done(_) | Fault::OutOfMemory), "{fault:?}");
                fault == Fault::OutOfMemory
            });
            let short = short.unwrap();
            assert!(disk.take_requests().is_empty(), "with a lock held");
            assert!(store(&process, short, 1).is_ok(), "who waits has the pages written");
            assert!(!disk.take_requests().is_empty());
            assert_eq!(disk.files().size(OTHER), Some(63 * PAGE + 1));
            process.munmap(start, MEMORY).unwrap();
        });
    }
}

#[test]
fn an_allocation_without_input_and_output_takes_clean_pages() {
    on_machine(Latency::None, |vm, disk| {
        let file = open(vm, disk);
        let mut bytes = vec![0; 1 << 20];
        file.read_at(0, &mut bytes).unwrap();
        let mut taken = vec![];
        disk.record_requests();
        while let Ok(pfn) = vm.source().alloc_pages(GfpFlags::NOIO | GfpFlags::NOWARN, PageOrder::ZERO) {
            taken.push(pfn);
        }
        assert_eq!(pages(vm, &file), 0);
        assert!(disk.take_requests().is_empty());
        taken.into_iter().for_each(|pfn| vm.source().free_pages(pfn, PageOrder::ZERO).unwrap());
    });
}

/// Fails if who is short of memory waits for a store that never answers, though nothing of it would help.
#[test]
fn who_needs_memory_is_not_held_up_by_a_store_that_never_answers() {
    on_machine(Latency::Ticks(10), |vm, disk| {
        let (other, process) = (open_other(vm, disk), process(vm));
        other.write_at(0, b"x").unwrap();
        assert_eq!(vm.write_back(1), 1);
        let refused = (0..).find_map(|_| {
            let start = map(&process, 256, RW, PRIVATE);
            (0..256).find_map(|page| store(&process, start + page * PAGE, 1).err())
        });
        assert_eq!((refused, disk.under_way()), (Some(Refused::OutOfMemory), 1));
        drop(process);
        disk.set_latency(Latency::None);
        disk.advance(10);
    });
}

/// Fails if a call that makes pages resident, or a pin, gives up where a fault has pages written.
#[test]
fn pages_are_made_resident_by_calls_where_a_store_to_them_would_be() {
    for how in 0..4 {
        on_machine(Latency::Polls(2), |vm, disk| {
            let (process, other) = (process(vm), open_other(vm, disk));
            let len = MEMORY / 2;
            let start = map(&process, len / PAGE, RW, PRIVATE);
            process.madvise(start, len, Advice::NoHugePage as i32).unwrap();
            // What is left of memory is dirty.
            let bytes = vec![7; 1 << 16];
            let mut offset = 0;
            while vm.cache().stat(vm.source(), other.id()).unwrap().dirty < 2600 {
                offset += other.write_at(offset, &bytes).unwrap() as u64;
            }
            match how {
                0 => process.mlock(start, len).unwrap(),
                1 => process.madvise(start, len, Advice::PopulateWrite as i32).unwrap(),
                2 => {
                    let flags = PRIVATE | MapFlags::POPULATE | MapFlags::FIXED;
                    process.mmap(&anonymous(start, len / PAGE, RW, flags)).unwrap();
                }
                _ => {
                    let mut frames = vec![Pfn::ZERO; (len / PAGE) as usize];
                    let pinned = process.pin_pages(at(start), Access::Write, PinTerm::Short, &mut frames);
                    assert_eq!(pinned, Ok(frames.len()));
                    assert_eq!(vm.unpin_pages(&frames, PinUse::Dirtied), frames.len());
                }
            }
            assert_eq!(process.with(|mm| mm.shared().resident()), len / PAGE, "{how}");
        });
    }
}
