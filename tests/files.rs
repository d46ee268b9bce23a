//! Open files: what read, write and truncate do, and what mappings see of it.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use kernmm::addr::VirtAddr;
use kernmm::cache::{CacheError, MAX_FILE_BYTES, Pattern};
use kernmm::error::Errno;
use kernmm::fault::{Access, Attempt, Fault, Resolved, Signal};
use kernmm::flags::{Advice, MapFlags, Prot};
use kernmm::memory::{
    File, FutexKey, Memory, Process, Refused, SpinRwLock, TransferError, User, Vm, VmLimits,
};
use kernmm::mm::MmError;
use kernmm::platform::hosted::{Disk, Failure, Latency, Machine, Operation, Stage, Unsafe};
use kernmm::platform::{BackingStore, Cluster, CpuId, Platform, StoreError, Submitted};
use kernmm::syscall::{MapFile, MmapArgs, OpenMode};

const PAGE: u64 = 4096;
const INODE: u64 = 3;

type Mem<'m> = Memory<'m, Machine>;
type Proc<'v, 'a, 'm> = Process<'v, 'a, Mem<'m>>;

/// Runs a test with a file of three pages and a bit on a disk, and looks afterwards whether all frames are back.
fn with_disk(latency: Latency, test: impl for<'a, 'm> FnOnce(&Vm<'a, Mem<'m>>, &'a Disk<'m>)) {
    let machine = Machine::pc(32 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disk = Disk::new(&machine);
    disk.put(INODE, &contents());
    disk.set_latency(latency);
    let free = || {
        memory.phys().drain_all(&memory.pin());
        memory.phys().free_pages_total()
    };
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let before = free();
    test(&vm, &disk);
    while vm.cache().reap(&memory) != 0 {
        machine.relax();
    }
    assert_eq!(free(), before, "frames were lost");
}

fn contents() -> Vec<u8> {
    (0..3 * PAGE + 100).map(|at| (at % 251) as u8).collect()
}

fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

fn map(process: &Proc<'_, '_, '_>, file: &File<'_, '_, Mem<'_>>, pages: u64, flags: MapFlags) -> u64 {
    let (prot, file) = (Prot::READ | Prot::WRITE, Ok(Some(file.map_file())));
    process.mmap(&MmapArgs { addr: 0, len: pages * PAGE, prot, flags, file, offset: 0 }).unwrap().get()
}

fn anonymous(process: &Proc<'_, '_, '_>, pages: u64, flags: MapFlags) -> u64 {
    let (prot, flags) = (Prot::READ | Prot::WRITE, flags | MapFlags::ANONYMOUS);
    process
        .mmap(&MmapArgs { addr: 0, len: pages * PAGE, prot, flags, file: Ok(None), offset: 0 })
        .unwrap()
        .get()
}

fn new<'v, 'a, 'm>(vm: &'v Vm<'a, Mem<'m>>) -> Proc<'v, 'a, 'm> {
    Process::new(vm).unwrap()
}

#[test]
fn reads_and_writes_wait_for_the_disk_and_stop_at_the_end() {
    for latency in [Latency::None, Latency::Polls(5)] {
        with_disk(latency, |vm, disk| {
            let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
            let mut bytes = vec![0; 4 * PAGE as usize];
            assert_eq!(file.read_at(0, &mut bytes), Ok(3 * PAGE as usize + 100));
            assert_eq!(bytes[..contents().len()], contents());
            assert_eq!(file.read_at(3 * PAGE + 90, &mut bytes), Ok(10));
            assert_eq!(file.read_at(3 * PAGE + 100, &mut bytes), Ok(0));
            assert_eq!(file.read_at(u64::MAX, &mut bytes), Ok(0));
            assert_eq!(file.write_at(5 * PAGE - 2, b"four"), Ok(4));
            assert_eq!(file.size(), Ok(5 * PAGE + 2));
            assert_eq!(file.read_at(5 * PAGE - 4, &mut bytes), Ok(6));
            assert_eq!(&bytes[..6], b"\0\0four");
            assert_eq!(file.write_at(MAX_FILE_BYTES, b"x"), Err(CacheError::TooLarge));
            assert_eq!(disk.files().size(INODE), Some(3 * PAGE + 100), "the disk learns of it later");
            file.sync().unwrap();
            assert_eq!(disk.files().size(INODE), Some(5 * PAGE + 2));
        });
    }
}

#[test]
fn a_process_reads_and_writes_as_far_as_its_memory_goes() {
    with_disk(Latency::Polls(2), |vm, disk| {
        let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
        let process = new(vm);
        let memory = anonymous(&process, 2, MapFlags::PRIVATE);
        assert_eq!(file.read_to_user(&process, 10, at(memory + 1), 5000), Ok(5000));
        let mut bytes = vec![0; 5000];
        User::new(&process).load(at(memory + 1), &mut bytes).unwrap();
        assert_eq!(bytes, contents()[10..5010]);
        // The memory ends before the file does: what fits was read, and then there is nothing that could be.
        for fits in [1, 511, 1000] {
            let end = at(memory + 2 * PAGE - fits);
            assert_eq!(file.read_to_user(&process, 0, end, PAGE), Ok(fits));
            assert_eq!(file.write_from_user(&process, 0, end, PAGE), Ok(fits));
        }
        let fault = Err(TransferError::User(Refused::Signal(Signal::NotMapped)));
        assert_eq!(file.read_to_user(&process, 0, at(memory + 2 * PAGE), 10), fault);
        assert_eq!(fault.map_err(TransferError::errno), Err(Errno::EFAULT));
        assert_eq!(file.write_from_user(&process, 0, at(memory + 2 * PAGE), 10), fault);
        assert_eq!(file.write_from_user(&process, 3 * PAGE + 99, at(memory + 1), 300), Ok(300));
        assert_eq!(file.size(), Ok(3 * PAGE + 399));
        assert_eq!(file.read_to_user(&process, 3 * PAGE + 399, at(memory), 10), Ok(0));
    });
}

#[test]
fn a_fault_that_was_waited_for_is_a_major_one_though_the_page_is_there_by_now() {
    with_disk(Latency::Ticks(10), |vm, disk| {
        let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
        let process = new(vm);
        let start = at(map(&process, &file, 1, MapFlags::SHARED));
        let first = process.handle_fault(start, Access::Read, Attempt::First);
        let Fault::Wait(ticket) = first else { panic!("{first:?}") };
        disk.advance(10);
        vm.cache().wait(vm.source(), ticket);
        let again = process.handle_fault(start, Access::Read, Attempt::Again);
        assert_eq!(again, Fault::Done(Resolved::Major));
        assert_eq!((process.faults().minor, process.faults().major), (0, 1));
    });
}

#[test]
fn what_is_mapped_around_a_page_counts_against_the_misses_of_a_mapping() {
    with_disk(Latency::Polls(0), |vm, disk| {
        let windows = 130;
        disk.put(INODE, &vec![1; (windows * 32 * PAGE) as usize]);
        let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
        let process = new(vm);
        let start = map(&process, &file, windows * 32, MapFlags::SHARED);
        disk.record_requests();
        for window in 0..windows {
            // The first is not there; the second is, and is mapped with those around it.
            for page in [window * 32 + 8, window * 32 + 3] {
                assert_eq!(User::new(&process).load_byte(at(start + page * PAGE)), Ok(1));
            }
        }
        let requests = disk.take_requests();
        let read: Vec<u64> = requests.iter().map(|request| request.pages).collect();
        assert_eq!(read.len() as u64, windows, "{read:?}");
        assert!(read.iter().all(|&pages| pages >= 24), "it was given up reading around: {read:?}");
    });
}

#[test]
fn mappings_see_what_is_written_and_lose_what_is_cut() {
    with_disk(Latency::Polls(2), |vm, disk| {
        let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
        let process = new(vm);
        let user = User::new(&process);
        let shared = map(&process, &file, 4, MapFlags::SHARED);
        let private = map(&process, &file, 4, MapFlags::PRIVATE);
        file.write_at(PAGE, b"call").unwrap();
        assert_eq!(user.load_u32(at(shared + PAGE)), Ok(u32::from_le_bytes(*b"call")));
        user.store(at(shared + 2 * PAGE), b"maps").unwrap();
        let mut bytes = [0; 4];
        file.read_at(2 * PAGE, &mut bytes).unwrap();
        assert_eq!(&bytes, b"maps");
        user.store(at(private + PAGE), b"mine").unwrap();
        file.read_at(PAGE, &mut bytes).unwrap();
        assert_eq!(&bytes, b"call");

        file.truncate(PAGE + 2).unwrap();
        assert_eq!(user.load_u32(at(shared + PAGE)), Ok(u32::from_le_bytes(*b"ca\0\0")));
        let beyond = Err(Refused::Signal(Signal::NoPage));
        assert_eq!(user.load_u32(at(shared + 2 * PAGE)), beyond);
        assert_eq!(user.load_u32(at(private + 2 * PAGE)), beyond);
        assert_eq!(
            user.load_u32(at(private + PAGE)),
            Ok(u32::from_le_bytes(*b"mine")),
            "the page is still there"
        );
        assert_eq!(disk.files().size(INODE), Some(PAGE + 2));
        // Closing it does not close the mappings.
        drop(file);
        user.store(at(shared), b"last").unwrap();
        process.munmap(shared, 4 * PAGE).unwrap();
        process.munmap(private, 4 * PAGE).unwrap();
        while vm.cache().reap(vm.source()) != 0 {
            vm.source().platform().relax();
        }
        assert_eq!(&disk.files().contents(INODE).unwrap()[..4], b"last");
    });
}

#[test]
fn what_sync_has_written_survives_a_power_cut() {
    with_disk(Latency::Polls(3), |vm, disk| {
        disk.start_log();
        let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
        file.write_at(100, b"safe").unwrap();
        file.sync().unwrap();
        let end = disk.log_len();
        file.write_at(100, b"lost").unwrap();
        let left = disk.crash_image(end, Unsafe::Lost).unwrap().contents(INODE).unwrap();
        assert_eq!(&left[100..104], b"safe");
    });
}

#[test]
fn each_opening_is_told_once_of_an_error_of_the_disk() {
    with_disk(Latency::None, |vm, disk| {
        let files = [(); 2].map(|()| vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap());
        let (operation, error) = (Some(Operation::Write), StoreError::Io);
        disk.fail(Failure { operation, after: 0, times: 1, error, stage: Stage::Completion });
        files[0].write_at(0, b"x").unwrap();
        assert_eq!(files[0].sync(), Err(CacheError::Io));
        assert_eq!(files[0].sync(), Ok(()));
        assert_eq!(files[1].sync(), Err(CacheError::Io), "the other opening has not been told");
        assert_eq!(
            disk.files().contents(INODE).unwrap()[0],
            b'x',
            "the page stayed dirty, and was written again"
        );
        let (operation, stage) = (Some(Operation::Read), Stage::Completion);
        disk.fail(Failure { operation, after: 0, times: 1, error, stage });
        assert_eq!(files[0].read_at(2 * PAGE, &mut [0; 8]), Err(CacheError::Io));
        assert_eq!(files[0].read_at(2 * PAGE, &mut [0; 8]), Ok(8));
    });
}

#[test]
fn calls_that_an_opening_does_not_allow_are_refused() {
    with_disk(Latency::None, |vm, disk| {
        let process = new(vm);
        let memory = at(anonymous(&process, 1, MapFlags::PRIVATE));
        let open = |mode| vm.open_file(disk, INODE, mode).unwrap();
        let (read, write) = (open(OpenMode::ReadOnly), open(OpenMode::WriteOnly));
        let size = read.size().unwrap();
        let (unreadable, unwritable) = (CacheError::NotReadable, CacheError::NotWritable);
        assert_eq!((write.read_at(0, &mut [0]), read.write_at(0, &[0])), (Err(unreadable), Err(unwritable)));
        // Linux looks at the opening before it looks at the length.
        for len in [0, 1] {
            assert_eq!(write.read_to_user(&process, 0, memory, len), Err(unreadable.into()));
            assert_eq!(read.write_from_user(&process, 0, memory, len), Err(unwritable.into()));
        }
        assert_eq!(read.truncate(size + 1), Err(CacheError::NotResizable));
        assert_eq!((unreadable.errno(), unwritable.errno()), (Errno::EBADF, Errno::EBADF));
        assert_eq!(CacheError::NotResizable.errno(), Errno::EINVAL);
        assert_eq!((write.write_at(0, &[9]), read.read_at(0, &mut [0])), (Ok(1), Ok(1)));
        write.truncate(size - 1).unwrap();
        assert_eq!(read.size(), Ok(size - 1));
    });
}

#[test]
fn two_mappings_of_one_opening_merge_and_those_of_two_do_not() {
    with_disk(Latency::None, |vm, disk| {
        let process = new(vm);
        let file = vm.open_file(disk, INODE, OpenMode::ReadOnly).unwrap();
        let again = vm.open_file(disk, INODE, OpenMode::ReadOnly).unwrap();
        assert_eq!(file.id(), again.id());
        let base = anonymous(&process, 3, MapFlags::PRIVATE);
        for (page, open) in [(0, &file), (1, &file), (2, &again)] {
            let (addr, offset) = (base + page * PAGE, page * PAGE);
            let (flags, file) = (MapFlags::PRIVATE | MapFlags::FIXED, Ok(Some(open.map_file())));
            process.mmap(&MmapArgs { addr, len: PAGE, prot: Prot::READ, flags, file, offset }).unwrap();
        }
        assert_eq!(process.with(|mm| mm.map_count()), 2);
    });
}

#[test]
fn a_futex_is_the_same_for_all_who_share_its_memory() {
    with_disk(Latency::None, |vm, disk| {
        let parent = new(vm);
        let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
        let (first, second) =
            (map(&parent, &file, 2, MapFlags::SHARED), map(&parent, &file, 2, MapFlags::SHARED));
        let copy = map(&parent, &file, 2, MapFlags::PRIVATE);
        let (private, shared) =
            (anonymous(&parent, 1, MapFlags::PRIVATE), anonymous(&parent, 1, MapFlags::SHARED));
        let child = parent.fork().unwrap();
        let key = |process: &Proc<'_, '_, '_>, addr| process.futex_key(at(addr)).unwrap();
        assert_eq!(key(&parent, first + PAGE + 8), key(&child, second + PAGE + 8));
        assert_eq!(key(&parent, shared + 8), key(&child, shared + 8));
        assert_ne!(key(&parent, first + 8), key(&parent, first + 12));
        assert_ne!(key(&parent, first + 8), key(&parent, first + PAGE + 8));
        assert_ne!(key(&parent, private + 8), key(&child, private + 8));
        assert_eq!(key(&parent, private + 8), FutexKey::Private(parent.with(|mm| mm.id()), at(private + 8)));
        assert!(matches!(key(&parent, copy), FutexKey::Private(..)));
        assert_eq!(parent.futex_key(at(8)), Err(Refused::Signal(Signal::NotMapped)));
    });
}

#[test]
fn a_file_is_the_same_for_all_who_open_it_and_gives_its_place_up_when_nobody_has_it() {
    with_disk(Latency::None, |vm, disk| {
        let open = |inode| vm.open_file(disk, inode, OpenMode::ReadOnly);
        let mut files = Vec::new();
        // As many as there is room for.
        let refused = loop {
            match open(1000 + files.len() as u64) {
                Ok(file) => files.push(file),
                Err(error) => break error,
            }
        };
        assert_eq!(
            (refused, files.len()),
            (CacheError::TooManyFiles, VmLimits::for_frames(vm.source().phys().managed_pages()).files)
        );
        for (number, file) in files.iter().enumerate().step_by(7) {
            assert_eq!(open(1000 + number as u64).unwrap().id(), file.id());
        }
        let gone = files.swap_remove(50);
        let (inode, old) = (1050, gone.id());
        drop(gone);
        let again = open(inode).unwrap();
        assert_ne!(again.id(), old, "the number of a file that has ended names no other for a while");
        assert_eq!(vm.cache().stat(vm.source(), old), Err(CacheError::BadFile));
        assert_eq!(open(5).err(), Some(CacheError::TooManyFiles));
        vm.assert_sound::<SpinRwLock>(&[]);
    });
}

#[test]
fn mincore_tells_of_a_file_only_who_owns_it_or_may_write_it() {
    with_disk(Latency::None, |vm, disk| {
        let [read, both] =
            [OpenMode::ReadOnly, OpenMode::ReadWrite].map(|mode| vm.open_file(disk, INODE, mode).unwrap());
        let process = new(vm);
        let answers = |file: MapFile, flags| {
            let args = MmapArgs::file(file, 2 * PAGE, Prot::READ, flags);
            let start = process.mmap(&args).unwrap().get();
            let mut there = [7; 2];
            process.mincore(start, 2 * PAGE, there.as_mut_slice()).unwrap();
            there
        };
        for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
            assert_eq!(answers(both.map_file(), flags), [0, 0]);
            assert_eq!(answers(read.map_file().owned(), flags), [0, 0]);
            assert_eq!(answers(read.map_file(), flags), [1, 1]);
        }
    });
}

#[test]
fn a_read_that_the_disk_has_no_room_for_is_made_when_there_is_some() {
    with_disk(Latency::Ticks(1), |vm, disk| {
        disk.put(INODE + 1, &[8; 2 * PAGE as usize]);
        disk.set_depth(Some(1));
        let open = |inode| vm.open_file(disk, inode, OpenMode::ReadWrite).unwrap();
        let (file, other) = (open(INODE), open(INODE + 1));
        let process = new(vm);
        let first = map(&process, &file, 3, MapFlags::SHARED);
        let second = map(&process, &other, 2, MapFlags::SHARED);
        let will_need = |start, pages| process.madvise(start, pages * PAGE, Advice::WillNeed as i32).unwrap();
        let there = |start| {
            let mut there = [0; 2];
            process.mincore(start, 2 * PAGE, there.as_mut_slice()).unwrap();
            there
        };
        // The disk is full with the first, so the second stays where it is, though nobody waits for it.
        will_need(first, 2);
        will_need(second, 2);
        assert_eq!(disk.under_way(), 1);
        disk.advance(1);
        assert_eq!(vm.reap(), 1);
        assert_eq!((there(first), there(second)), ([1, 1], [0, 0]));
        // Nor does one that is waited for.
        let fault = |attempt| process.handle_fault(at(first + 2 * PAGE), Access::Read, attempt);
        let Fault::Wait(ticket) = fault(Attempt::First) else { panic!("the page is not there") };
        assert!(!vm.io_done(ticket));
        disk.advance(1);
        // What was before it is over, and now it is the disk's.
        assert!(!vm.io_done(ticket));
        assert_eq!((vm.reap(), there(second), disk.under_way()), (1, [1, 1], 1));
        disk.advance(1);
        assert!(vm.io_done(ticket));
        assert_eq!(fault(Attempt::Again), Fault::Done(Resolved::Major));
        assert_eq!(User::new(&process).load_byte(at(first + 2 * PAGE)), Ok(contents()[2 * PAGE as usize]));
    });
}

/// Fails if what the page cache lacks is all called memory.
#[test]
fn shared_memory_without_a_place_or_too_large_for_a_file_is_told_from_memory_that_is_short() {
    with_disk(Latency::None, |vm, disk| {
        let process = new(vm);
        let flags = MapFlags::SHARED | MapFlags::ANONYMOUS | MapFlags::NORESERVE;
        let mmap = |len, flags| {
            let prot = Prot::READ | Prot::WRITE;
            process.mmap(&MmapArgs { addr: 0, len, prot, flags, file: Ok(None), offset: 0 })
        };
        let start = mmap(MAX_FILE_BYTES, flags).unwrap().get();
        assert_eq!(mmap(MAX_FILE_BYTES + PAGE, flags), Err(MmError::FileTooLarge));
        let open = |inode| vm.open_file(disk, 1000 + inode, OpenMode::ReadOnly).ok();
        let files: Vec<_> = (0_u64..).map_while(open).collect();
        let committed = vm.context().overcommit().committed();
        assert_eq!(mmap(PAGE, flags - MapFlags::NORESERVE), Err(MmError::OutOfFiles));
        assert_eq!(vm.context().overcommit().committed(), committed);
        assert_eq!([MmError::FileTooLarge, MmError::OutOfFiles].map(MmError::errno), [Errno::ENOMEM; 2]);
        process.munmap(start, MAX_FILE_BYTES).unwrap();
        assert!(mmap(PAGE, flags).is_ok());
        drop(files);
    });
}

/// A store that cannot say how long its files are, but for the first time.
struct Forgetful(AtomicU32);

impl BackingStore for Forgetful {
    fn size(&self, _: u64) -> Result<u64, StoreError> {
        match self.0.fetch_add(1, SeqCst) {
            0 => Ok(PAGE),
            _ => Err(StoreError::Io),
        }
    }

    fn read(&self, _: u64, _: &Cluster<'_>) -> Result<Submitted, StoreError> {
        Err(StoreError::Io)
    }

    fn write(&self, _: u64, _: &Cluster<'_>, _: u64) -> Result<Submitted, StoreError> {
        Err(StoreError::Io)
    }

    fn set_size(&self, _: u64, _: u64) -> Result<(), StoreError> {
        Err(StoreError::Io)
    }
}

/// Fails if the store is asked for a file that is known, or its error taken for a length.
#[test]
fn a_file_whose_length_cannot_be_told_is_not_opened() {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let store = Forgetful(AtomicU32::new(0));
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let file = vm.open_file(&store, 1, OpenMode::ReadOnly).unwrap();
    let again = vm.open_file(&store, 1, OpenMode::ReadOnly).unwrap();
    assert_eq!((again.id(), again.size(), store.0.load(SeqCst)), (file.id(), Ok(PAGE), 1));
    for _ in 0..VmLimits::for_frames(4096).files {
        assert_eq!(vm.open_file(&store, 2, OpenMode::ReadOnly).err(), Some(CacheError::Io));
    }
    drop((file, again));
    assert_eq!(vm.open_file(&store, 1, OpenMode::ReadOnly).err(), Some(CacheError::Io));
    vm.assert_sound::<SpinRwLock>(&[]);
}

/// Pages that are there bound what is read, on both sides, however many lie one behind the other.
///
/// Fails if a gap is taken to reach beyond the page behind it or the one before it, or frames are allocated for what is there or behind the end.
#[test]
fn what_is_read_ahead_fills_the_gap_around_the_page_and_no_more() {
    const PAGES: u64 = 256;
    with_disk(Latency::Polls(0), |vm, disk| {
        disk.put(INODE, &vec![1; (PAGES * PAGE) as usize]);
        let file = vm.open_file(disk, INODE, OpenMode::ReadOnly).unwrap();
        let process = new(vm);
        let args = MmapArgs::file(file.map_file(), PAGES * PAGE, Prot::READ, MapFlags::SHARED);
        let start = process.mmap(&args).unwrap().get();
        let advise = |advice: Advice| process.madvise(start, PAGES * PAGE, advice as i32).unwrap();
        let freed =
            || vm.vmstat().to_string().lines().find(|line| line.starts_with("pgfree ")).map(str::to_string);
        let reads = |page: u64| {
            let before = freed();
            disk.record_requests();
            assert_eq!(User::new(&process).load_byte(at(start + page * PAGE)), Ok(1));
            assert_eq!(freed(), before, "frames for pages that were not read");
            pages_of(disk)
        };
        advise(Advice::Random);
        for page in [10, 40, 100, 101, 102, 103] {
            assert_eq!(reads(page), [(page, 1)]);
        }
        advise(Advice::Normal);
        // The window of page 20 is 4..36.
        assert_eq!(reads(20), [(11, 25)]);
        assert_eq!(reads(38), [(36, 4)]);
        assert_eq!(reads(5), [(0, 10)]);
        assert_eq!(reads(PAGES - 1), [(PAGES - 17, 17)]);
        disk.record_requests();
        advise(Advice::WillNeed);
        assert_eq!(pages_of(disk), [(41, 59), (104, 64), (168, 64), (232, 7)]);
    });
}

/// Which pages were asked for of the disk, and how many from each.
fn pages_of(disk: &Disk<'_>) -> Vec<(u64, u64)> {
    disk.take_requests().iter().map(|request| (request.first.get(), request.pages)).collect()
}

/// A reader by calls who begins in the middle has a window as long as what he finds right before, and the next one begins where it is marked, at the first
/// page that is not there.
///
/// Fails if pages that do not lie right before count, or if the next window begins elsewhere.
#[test]
fn what_was_read_before_tells_how_much_is_read_ahead() {
    const PAGES: u64 = 256;
    with_disk(Latency::Polls(0), |vm, disk| {
        disk.put(INODE, &vec![1; (PAGES * PAGE) as usize]);
        let read = |file: &File<'_, '_, _>, page: u64| {
            disk.record_requests();
            assert_eq!(file.read_at(page * PAGE, &mut [0; 8]), Ok(8));
            pages_of(disk)
        };
        let open = || vm.open_file(disk, INODE, OpenMode::ReadOnly).unwrap();
        // Each by an opening of its own, of which none is gone before the end.
        let alone: Vec<_> = [20, 50, 54, 53, 52].map(|page| (open(), page)).into();
        for (file, page) in &alone {
            assert_eq!(read(file, *page), [(*page, 1)]);
        }
        assert_eq!(read(&open(), 22), [(22, 1)]);
        let file = open();
        assert_eq!(read(&file, 55), [(55, 4)]);
        assert_eq!(read(&file, 57), []);
        assert_eq!(read(&file, 58), [(59, 5)]);
        assert_eq!(read(&file, 59), [(64, 8)]);
        // Another's mark: he goes on where that one's window ends.
        assert_eq!(read(&open(), 64), [(72, 16)]);
    });
}

/// What calls read ahead, by where they begin and how much they ask for.
///
/// Fails if an opening forgets between two calls where it was, or if what a call asks for does not count.
#[test]
fn an_opening_remembers_where_it_was_and_windows_fit_what_is_asked_for() {
    const PAGES: u64 = 512;
    with_disk(Latency::Polls(0), |vm, disk| {
        disk.put(INODE, &vec![1; (PAGES * PAGE) as usize]);
        let read = |file: &File<'_, '_, _>, page: u64, pages: u64| {
            disk.record_requests();
            let mut bytes = vec![0; (pages * PAGE) as usize];
            assert_eq!(file.read_at(page * PAGE, &mut bytes), Ok(bytes.len()));
            pages_of(disk)
        };
        let open = || vm.open_file(disk, INODE, OpenMode::ReadOnly).unwrap();
        let (file, random, sequential) = (open(), open(), open());
        // A jump, and on from there.
        assert_eq!(read(&file, 400, 2), [(400, 2)]);
        assert_eq!(read(&file, 402, 2), [(402, 4)]);
        assert_eq!(read(&file, 404, 1), [(406, 6)]);
        // As much as is asked for, and as much again.
        assert_eq!(read(&file, 0, 6), [(0, 16)]);
        random.advise(Pattern::Random);
        assert_eq!(read(&random, 100, 1), [(100, 1)]);
        assert_eq!(read(&random, 101, 3), [(101, 3)]);
        sequential.advise(Pattern::Sequential);
        assert_eq!(read(&sequential, 200, 65), [(200, 64), (264, 64), (328, 64)]);
    });
}

/// Fails if the pieces in which a process gets what it asks for count for what it asks for.
#[test]
fn a_read_into_a_process_has_a_window_for_all_that_it_asks_for() {
    with_disk(Latency::Polls(0), |vm, disk| {
        disk.put(INODE, &vec![1; 64 * PAGE as usize]);
        let file = vm.open_file(disk, INODE, OpenMode::ReadOnly).unwrap();
        let process = new(vm);
        let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS;
        let len = 6 * PAGE;
        let args =
            MmapArgs { addr: 0, len, prot: Prot::READ | Prot::WRITE, flags, file: Ok(None), offset: 0 };
        let to = process.mmap(&args).unwrap();
        disk.record_requests();
        assert_eq!(file.read_to_user(&process, 0, to, len), Ok(len));
        assert_eq!(pages_of(disk), [(0, 16)]);
    });
}

/// Fails if such a mapping is read around the page that is missing, or if its windows begin small.
#[test]
fn a_mapping_that_is_gone_straight_through_is_read_a_window_at_a_time() {
    const PAGES: u64 = 256;
    with_disk(Latency::Polls(0), |vm, disk| {
        disk.put(INODE, &vec![1; (PAGES * PAGE) as usize]);
        let file = vm.open_file(disk, INODE, OpenMode::ReadOnly).unwrap();
        let process = new(vm);
        let args = MmapArgs::file(file.map_file(), PAGES * PAGE, Prot::READ, MapFlags::SHARED);
        let start = process.mmap(&args).unwrap().get();
        process.madvise(start, PAGES * PAGE, Advice::Sequential as i32).unwrap();
        let reads = |page: u64| {
            disk.record_requests();
            assert_eq!(User::new(&process).load_byte(at(start + page * PAGE)), Ok(1));
            pages_of(disk)
        };
        assert_eq!(reads(100), [(100, 32)]);
        assert_eq!(reads(0), [(0, 32)]);
        assert_eq!(reads(16), [(32, 32)]);
    });
}
