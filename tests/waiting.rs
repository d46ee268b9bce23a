//! Who waits for a store inside a call holds no lock of the address space meanwhile.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use kernmm::addr::{PgOff, VirtAddr};
use kernmm::cache::{IoTicket, Plug};
use kernmm::flags::{Advice, MapFlags, MsyncFlags, Prot};
use kernmm::memory::{Memory, Process, User, Vm};
use kernmm::mm::{FileKind, FileRef, MmError};
use kernmm::platform::CpuId;
use kernmm::platform::hosted::{Disk, Latency, Machine};
use kernmm::syscall::{MapFile, MmapArgs, OpenMode, Residency};
use kernmm::table::X86_64;

const PAGE: u64 = 4096;
const PAGES: u64 = 4;
const INODE: u64 = 3;
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// A lock that fails the test where a spin lock would hang it.
struct Patient(spin::RwLock<()>);

impl Patient {
    fn until(&self, take: impl Fn(&spin::RwLock<()>) -> bool) {
        let begun = Instant::now();
        while !take(&self.0) {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "the lock is held while a store is waited for"
            );
            thread::yield_now();
        }
    }
}

// SAFETY: it is the spin lock's, taken by trying.
unsafe impl lock_api::RawRwLock for Patient {
    const INIT: Self = Self(spin::RwLock::new(()));
    type GuardMarker = lock_api::GuardSend;

    fn lock_shared(&self) {
        self.until(lock_api::RawRwLock::try_lock_shared);
    }

    fn try_lock_shared(&self) -> bool {
        lock_api::RawRwLock::try_lock_shared(&self.0)
    }

    unsafe fn unlock_shared(&self) {
        // SAFETY: the caller holds it.
        unsafe { lock_api::RawRwLock::unlock_shared(&self.0) }
    }

    fn lock_exclusive(&self) {
        self.until(lock_api::RawRwLock::try_lock_exclusive);
    }

    fn try_lock_exclusive(&self) -> bool {
        lock_api::RawRwLock::try_lock_exclusive(&self.0)
    }

    unsafe fn unlock_exclusive(&self) {
        // SAFETY: the caller holds it.
        unsafe { lock_api::RawRwLock::unlock_exclusive(&self.0) }
    }
}

type Proc<'v, 'a, 'm> = Process<'v, 'a, Memory<'m, Machine>, X86_64, Patient>;

fn anonymous(process: &Proc<'_, '_, '_>) -> u64 {
    let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS;
    let args = MmapArgs { addr: 0, len: PAGE, prot: RW, flags, file: Ok(None), offset: 0 };
    process.mmap(&args).unwrap().get()
}

/// Dropped, it lets the call come to its end, also where the test has failed.
struct LetEnd<'a, 'm>(&'a Disk<'m>, &'a AtomicBool);

impl Drop for LetEnd<'_, '_> {
    fn drop(&mut self) {
        let begun = Instant::now();
        while !self.1.load(SeqCst) && begun.elapsed() < Duration::from_secs(20) {
            self.0.advance(1);
            thread::yield_now();
        }
    }
}

/// Has one CPU make a call that waits for the disk, and another one work on the same process meanwhile.
fn beside(
    sharing: MapFlags,
    prepare: impl FnOnce(&Proc<'_, '_, '_>, u64),
    call: impl FnOnce(&Proc<'_, '_, '_>, u64) -> Result<(), MmError> + Send,
) {
    let machine = Machine::pc(16 << 20).cpus(2).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disk = Disk::new(&machine);
    disk.put(INODE, &[7; (PAGES * PAGE) as usize]);
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let file = vm.cache().open(&memory, &disk, INODE).unwrap();
    let process: Proc<'_, '_, '_> = Process::new(&vm).unwrap();
    let mapped = FileRef::new(file.0.get(), 1, FileKind::Regular).unwrap();
    let mapped = Ok(Some(MapFile::new(mapped, OpenMode::ReadWrite)));
    let args = MmapArgs { addr: 0, len: PAGES * PAGE, prot: RW, flags: sharing, file: mapped, offset: 0 };
    let start = process.mmap(&args).unwrap().get();
    prepare(&process, start);
    disk.set_latency(Latency::Ticks(1));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _cpu = machine.cpu(CpuId(1)).unwrap();
            let result = call(&process, start);
            done.store(true, SeqCst);
            assert_eq!(result, Ok(()));
        });
        let ends = LetEnd(&disk, &done);
        while disk.under_way() == 0 {
            assert!(!done.load(SeqCst), "the call did not wait");
            thread::yield_now();
        }
        let other = anonymous(&process);
        User::new(&process).store_u32(VirtAddr::from(other), 5).unwrap();
        process.mprotect(other, PAGE, Prot::READ).unwrap();
        process.munmap(other, PAGE).unwrap();
        assert!(!done.load(SeqCst), "the call did not wait for the disk");
        drop(ends);
    });
    drop(process);
    vm.cache().put_user(&memory, file).unwrap();
    disk.set_latency(Latency::None);
    disk.advance(1000);
    while vm.cache().reap(&memory) != 0 {}
}

fn resident(process: &Proc<'_, '_, '_>) -> u64 {
    process.with(|mm| mm.shared().resident())
}

#[test]
fn mlock_waits_for_pages_of_a_file_without_the_lock() {
    beside(
        MapFlags::PRIVATE,
        |_, _| (),
        |process, start| {
            process.mlock(start, PAGES * PAGE)?;
            assert_eq!(resident(process), PAGES);
            Ok(())
        },
    );
}

#[test]
fn advice_to_populate_waits_for_pages_of_a_file_without_the_lock() {
    beside(
        MapFlags::SHARED,
        |_, _| (),
        |process, start| process.madvise(start, PAGES * PAGE, Advice::PopulateWrite as i32),
    );
}

/// Fails if advice about pages takes the lock for writing: a reader has it all the while.
#[test]
fn advice_about_pages_is_followed_beside_other_readers() {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let process: Proc<'_, '_, '_> = Process::new(&vm).unwrap();
    let map = |sharing| {
        let flags = sharing | MapFlags::ANONYMOUS;
        let args = MmapArgs { addr: 0, len: PAGES * PAGE, prot: RW, flags, file: Ok(None), offset: 0 };
        process.mmap(&args).unwrap().get()
    };
    let (private, shared) = (map(MapFlags::PRIVATE), map(MapFlags::SHARED));
    let advise = |start, advice: Advice| {
        process.with(|_| process.madvise(start, PAGES * PAGE, advice as i32)).unwrap();
        resident(&process)
    };
    assert_eq!(advise(private, Advice::PopulateWrite), PAGES);
    for kept in [Advice::PopulateRead, Advice::WillNeed, Advice::Free, Advice::Cold, Advice::PageOut] {
        assert_eq!(advise(private, kept), PAGES, "{kept:?}");
    }
    assert_eq!(advise(private, Advice::DontNeed), 0);
    User::new(&process).store_u32(VirtAddr::from(private), 5).unwrap();
    assert_eq!(advise(private, Advice::DontNeedLocked), 0);
    assert_eq!(advise(private, Advice::GuardInstall), 0);
    assert!(User::new(&process).store_u32(VirtAddr::from(private), 5).is_err());
    advise(private, Advice::GuardRemove);
    User::new(&process).store_u32(VirtAddr::from(private), 5).unwrap();
    assert_eq!(advise(shared, Advice::PopulateWrite), PAGES + 1);
    assert_eq!(advise(shared, Advice::Remove), 1);
    vm.assert_sound(&[&process]);
}

#[test]
fn msync_waits_for_its_writes_without_the_lock() {
    beside(
        MapFlags::SHARED,
        |process, start| User::new(process).store_u32(VirtAddr::from(start), 9).unwrap(),
        |process, start| process.msync(start, PAGES * PAGE, MsyncFlags::SYNC),
    );
}

#[test]
fn advice_that_pages_will_be_needed_begins_to_read_them_and_waits_for_nothing() {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disk = Disk::new(&machine);
    disk.put(INODE, &[7; (PAGES * PAGE) as usize]);
    disk.set_latency(Latency::Ticks(1));
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let file = vm.cache().open(&memory, &disk, INODE).unwrap();
    let process: Proc<'_, '_, '_> = Process::new(&vm).unwrap();
    let mapped = FileRef::new(file.0.get(), 1, FileKind::Regular).unwrap();
    let mapped = Ok(Some(MapFile::new(mapped, OpenMode::ReadWrite)));
    let args =
        MmapArgs { addr: 0, len: PAGES * PAGE, prot: RW, flags: MapFlags::PRIVATE, file: mapped, offset: 0 };
    let start = process.mmap(&args).unwrap().get();
    // All is done though there is a hole behind it, and then that is an error.
    let advised = process.madvise(start, (PAGES + 1) * PAGE, Advice::WillNeed as i32);
    assert_eq!((advised, disk.under_way()), (Err(MmError::NotMapped), 1));
    assert_eq!(process.madvise(start, PAGES * PAGE, Advice::WillNeed as i32), Ok(()));
    let mut there = [9; PAGES as usize];
    process.mincore(start, PAGES * PAGE, there.as_mut_slice()).unwrap();
    assert_eq!(there, [0; PAGES as usize]);
    disk.advance(1);
    vm.cache().reap(&memory);
    process.mincore(start, PAGES * PAGE, there.as_mut_slice()).unwrap();
    assert_eq!((there, resident(&process)), ([1; PAGES as usize], 0));
    drop(process);
    vm.cache().put_user(&memory, file).unwrap();
}

/// Tells how often an address space was locked for reading, by this thread.
struct Counted(spin::RwLock<()>);

thread_local! {
    static READERS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: it is the spin lock's.
unsafe impl lock_api::RawRwLock for Counted {
    const INIT: Self = Self(spin::RwLock::new(()));
    type GuardMarker = lock_api::GuardSend;

    fn lock_shared(&self) {
        READERS.set(READERS.get() + 1);
        lock_api::RawRwLock::lock_shared(&self.0);
    }

    fn try_lock_shared(&self) -> bool {
        lock_api::RawRwLock::try_lock_shared(&self.0)
    }

    unsafe fn unlock_shared(&self) {
        // SAFETY: the caller holds it.
        unsafe { lock_api::RawRwLock::unlock_shared(&self.0) }
    }

    fn lock_exclusive(&self) {
        lock_api::RawRwLock::lock_exclusive(&self.0);
    }

    fn try_lock_exclusive(&self) -> bool {
        lock_api::RawRwLock::try_lock_exclusive(&self.0)
    }

    unsafe fn unlock_exclusive(&self) {
        // SAFETY: the caller holds it.
        unsafe { lock_api::RawRwLock::unlock_exclusive(&self.0) }
    }
}

/// Fails if all of the range is gone through under one lock.
#[test]
fn advice_about_many_pages_lets_others_have_the_lock_in_between() {
    const PAGES: u64 = 2100;
    let machine = Machine::pc(32 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disk = Disk::new(&machine);
    disk.put(INODE, &[7; (PAGES * PAGE) as usize]);
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let file = vm.open_file(&disk, INODE, OpenMode::ReadOnly).unwrap();
    let process: Process<'_, '_, _, X86_64, Counted> = Process::new(&vm).unwrap();
    let start = process.mmap(&MmapArgs::file(file.map_file(), PAGES * PAGE, Prot::READ, MapFlags::PRIVATE));
    let start = start.unwrap().get();
    disk.record_requests();
    // First nothing is there, then all is.
    for read in [33, 0] {
        let before = READERS.get();
        process.madvise(start, PAGES * PAGE, Advice::WillNeed as i32).unwrap();
        assert!(READERS.get() - before > 4, "{}", READERS.get() - before);
        assert_eq!(disk.take_requests().len(), read);
        assert_eq!(vm.cache().stat(&memory, file.id()).unwrap().pages, PAGES as u32);
    }
    let looked = |from: u64| {
        let (mut next, plug) = (PgOff::new(from).unwrap(), Plug::new());
        let more = vm.cache().will_need_plugged(&memory, file.id(), &mut next, PAGES, &plug).unwrap();
        (more, next.get() - from)
    };
    assert_eq!((looked(0), looked(2000)), ((Some(IoTicket::OVER), 512), (None, 100)));
}

/// A vector of mincore that lies in the process's own memory, where it is faulted in.
struct InUser<'p, 'v, 'a, 'm>(&'p Proc<'v, 'a, 'm>, u64);

impl Residency for InUser<'_, '_, '_, '_> {
    fn can_hold(&self, _pages: u64) -> bool {
        true
    }

    fn put(&mut self, index: u64, resident: bool) -> Result<(), MmError> {
        let at = VirtAddr::from(self.1 + index);
        self.0.copy_to_user(at, &[u8::from(resident)]).map_err(|_| MmError::BadVector)
    }
}

#[test]
fn mincore_answers_into_memory_that_grows_down_to_take_it() {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let process: Proc<'_, '_, '_> = Process::new(&vm).unwrap();
    let pages = 600;
    let len = pages * PAGE;
    let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED;
    let map = |addr, len, flags| {
        process.mmap(&MmapArgs { addr, len, prot: RW, flags, file: Ok(None), offset: 0 }).unwrap().get()
    };
    let start = map(1 << 30, len, flags);
    let stack = map(2 << 30, PAGE, flags | MapFlags::GROWSDOWN);
    for page in [0, 255, 256, 599] {
        User::new(&process).store_u32(VirtAddr::from(start + page * PAGE), 1).unwrap();
    }
    let vector = stack - pages;
    // One page more: the answers up to the hole are written.
    let answered = process.mincore(start, len + PAGE, &mut InUser(&process, vector));
    assert_eq!(answered, Err(MmError::NotMapped));
    let mut answers = vec![0; pages as usize];
    process.copy_from_user(VirtAddr::from(vector), &mut answers).unwrap();
    let there: Vec<usize> = (0..answers.len()).filter(|&page| answers[page] == 1).collect();
    assert_eq!(there, [0, 255, 256, 599]);
    process.munmap(1 << 30, len).unwrap();
}
