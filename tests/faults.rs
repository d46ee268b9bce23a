//! What faults and calls do to pages, case by case, as Linux does it.

use std::cell::RefCell;

use kernmm::addr::{Pfn, PgOff, VirtAddr, VirtRange};
use kernmm::cache::{FileId, Moved, Pattern, ReadAhead, Step};
use kernmm::collections::Slot;
use kernmm::fault::{Access, Attempt, EntryState, Fault, FrameTally, PageKind, Resolved, Signal};
use kernmm::flags::{Advice, MapFlags, MlockFlags, Prot, VmFlags};
use kernmm::memory::{Memory, Process, Refused, User, Vm};
use kernmm::mm::{Backing, FileKind, FileRef, MmError, RssKind, Vma};
use kernmm::platform::CpuId;
use kernmm::platform::hosted::{Disk, Machine};
use kernmm::rmap::{Copies, MmAccess};
use kernmm::syscall::{MapFile, MmapArgs, OpenMode};
use kernmm::table::PteBits;

const PAGE: u64 = 4096;
const RW: Prot = Prot::READ.union(Prot::WRITE);

type Proc<'v, 'a, 'm> = Process<'v, 'a, Memory<'m, Machine>>;

/// Runs a test on a small machine, and looks afterwards whether all frames are back.
fn on_machine(test: impl FnOnce(&Vm<'_, Memory<'_, Machine>>)) {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let free = || {
        memory.phys().drain_all(&memory.pin());
        memory.phys().free_pages_total()
    };
    let before = free();
    test(&vm);
    assert_eq!(free(), before, "frames were lost");
}

fn map(process: &Proc<'_, '_, '_>, pages: u64, prot: Prot, flags: MapFlags) -> u64 {
    let flags = flags | MapFlags::ANONYMOUS;
    let args = MmapArgs { addr: 0, len: pages * PAGE, prot, flags, file: Ok(None), offset: 0 };
    process.mmap(&args).unwrap().get()
}

/// A file in memory, `pages` long, each page full of its number.
fn memory_file(vm: &Vm<'_, Memory<'_, Machine>>, pages: u64) -> FileId {
    let file = vm.cache().create_memory(vm.source(), pages * PAGE).unwrap();
    for page in 0..pages {
        let bytes = [page as u8; PAGE as usize];
        let moved = vm.cache().write_at(vm.source(), file, page * PAGE, &bytes).unwrap();
        assert_eq!(moved, Moved { bytes: PAGE as usize, wait: None });
    }
    file
}

/// Maps `pages` of a file from its page `first` on, at `addr`.
fn map_file(
    process: &Proc<'_, '_, '_>,
    file: FileId,
    (addr, first, pages): (u64, u64, u64),
    prot: Prot,
    flags: MapFlags,
) {
    let file = FileRef::new(file.0.get(), 1, FileKind::Memory).unwrap();
    let file = Ok(Some(MapFile::new(file, OpenMode::ReadWrite)));
    let flags = flags | MapFlags::FIXED;
    let args = MmapArgs { addr, len: pages * PAGE, prot, flags, file, offset: first * PAGE };
    assert_eq!(process.mmap(&args), Ok(at(addr)));
}

fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

/// The pages from `start` on, a letter each: `.` nothing, `z` the zero page, `a` anonymous, `f` of a file or shared memory, `g` a guard.
fn pages(process: &Proc<'_, '_, '_>, start: u64, pages: u64) -> String {
    let mut letters = vec!['.'; pages as usize];
    let range = VirtRange::with_len(at(start), pages * PAGE).unwrap();
    process.visit_pages(range, |page, state| {
        letters[((page.get() - start) / PAGE) as usize] = match state {
            EntryState::Guard => 'g',
            EntryState::Swapped(_) => 's',
            EntryState::Resident(page) => match page.kind {
                PageKind::Zero => 'z',
                PageKind::Anonymous => 'a',
                _ => 'f',
            },
        };
    });
    letters.into_iter().collect()
}

#[test]
fn memory_that_is_to_be_populated_is_resident_when_the_call_returns() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let private = map(&process, 3, RW, MapFlags::PRIVATE | MapFlags::POPULATE);
        assert_eq!(pages(&process, private, 3), "aaa");
        let read_only = map(&process, 2, Prot::READ, MapFlags::PRIVATE | MapFlags::POPULATE);
        assert_eq!(pages(&process, read_only, 2), "zz");
        let shared = map(&process, 2, RW, MapFlags::SHARED | MapFlags::POPULATE);
        assert_eq!(pages(&process, shared, 2), "ff");
        let later = map(&process, 2, RW, MapFlags::PRIVATE | MapFlags::POPULATE | MapFlags::NONBLOCK);
        assert_eq!(pages(&process, later, 2), "..");
        let none = map(&process, 2, Prot::NONE, MapFlags::PRIVATE | MapFlags::POPULATE);
        assert_eq!(pages(&process, none, 2), "..");
    });
}

#[test]
fn advice_populates_by_reading_or_by_writing_and_stops_at_what_forbids_it() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let start = map(&process, 6, RW, MapFlags::PRIVATE);
        let advise = |page, pages, advice| process.madvise(start + page * PAGE, pages * PAGE, advice as i32);
        assert_eq!(advise(0, 2, Advice::PopulateRead), Ok(()));
        assert_eq!(advise(1, 2, Advice::PopulateWrite), Ok(()));
        assert_eq!(pages(&process, start, 6), "zaa...");
        assert_eq!(advise(4, 1, Advice::GuardInstall), Ok(()));
        assert_eq!(advise(3, 3, Advice::PopulateWrite), Err(MmError::Unreachable));
        assert_eq!(pages(&process, start, 6), "zaaag.");
        process.mprotect(start + 5 * PAGE, PAGE, Prot::READ).unwrap();
        assert_eq!(advise(5, 1, Advice::PopulateWrite), Err(MmError::BadAdvice));
        process.munmap(start + 2 * PAGE, PAGE).unwrap();
        assert_eq!(advise(0, 4, Advice::PopulateWrite), Err(MmError::NotMapped));
        assert_eq!(pages(&process, start, 6), "aa.ag.");
    });
}

#[test]
fn locked_memory_is_resident_and_what_is_locked_on_fault_when_it_is_touched() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let start = map(&process, 8, RW, MapFlags::PRIVATE);
        process.mlock(start, 2 * PAGE).unwrap();
        process.mlock2(start + 2 * PAGE, 2 * PAGE, MlockFlags::ONFAULT).unwrap();
        User::new(&process).store_u32(at(start + 3 * PAGE), 1).unwrap();
        assert_eq!(pages(&process, start, 8), "aa.a....");
        process.mprotect(start + 4 * PAGE, PAGE, Prot::NONE).unwrap();
        // What cannot be touched is an error, and locked all the same.
        assert_eq!(process.mlock(start + 4 * PAGE, 2 * PAGE), Err(MmError::NotMapped));
        process.mprotect(start + 6 * PAGE, 2 * PAGE, Prot::READ).unwrap();
        process.mlock(start + 6 * PAGE, 2 * PAGE).unwrap();
        assert_eq!(pages(&process, start, 8), "aa.a..zz");
        process.mprotect(start + 6 * PAGE, PAGE, RW).unwrap();
        assert_eq!(pages(&process, start, 8), "aa.a..az");
    });
}

#[test]
fn the_tables_tell_who_maps_a_page_and_what_was_done_to_it() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let user = User::new(&process);
        let start = map(&process, 4, RW, MapFlags::PRIVATE);
        user.store_u32(at(start), 1).unwrap();
        user.load_u32(at(start + PAGE)).unwrap();
        let resident = |process: &Proc<'_, '_, '_>, page: u64| {
            process.entry_state(at(start + page * PAGE)).and_then(EntryState::resident)
        };
        let (written, read) = (resident(&process, 0).unwrap(), resident(&process, 1).unwrap());
        assert_eq!((written.kind, written.mappings), (PageKind::Anonymous, 1));
        assert!(written.bits.contains(PteBits::ACCESSED | PteBits::DIRTY | PteBits::WRITE));
        assert_eq!((read.kind, read.mappings, read.pfn), (PageKind::Zero, 0, vm.zero_page()));
        assert!(!read.bits.intersects(PteBits::WRITE | PteBits::DIRTY));
        assert_eq!(resident(&process, 2), None);
        let child = process.fork().unwrap();
        let (ours, theirs) = (resident(&process, 0).unwrap(), resident(&child, 0).unwrap());
        assert_eq!((ours.mappings, theirs.mappings, ours.pfn), (2, 2, theirs.pfn));
        assert!(!ours.bits.contains(PteBits::WRITE) && !theirs.bits.contains(PteBits::WRITE));
        assert_eq!(child.with(|mm| mm.shared().rss(RssKind::Anon)), 1);
    });
}

#[test]
fn a_fetch_from_memory_that_may_not_be_executed_makes_it_resident_and_is_refused_then() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let fetch = |addr| User::new(&process).fetch(at(addr), &mut [0]);
        let start = map(&process, 3, RW, MapFlags::PRIVATE);
        assert_eq!(fetch(start), Err(Refused::Signal(Signal::Denied)));
        process.madvise(start + PAGE, PAGE, Advice::GuardInstall as i32).unwrap();
        assert_eq!(fetch(start + PAGE), Err(Refused::Signal(Signal::NotMapped)));
        assert_eq!(pages(&process, start, 3), "zg.");
        let file = memory_file(vm, 1);
        map_file(&process, file, (1 << 30, 0, 2), Prot::READ, MapFlags::SHARED);
        // Beyond the end of the file there is no page to refuse.
        assert_eq!(fetch((1 << 30) + PAGE), Err(Refused::Signal(Signal::NoPage)));
        assert_eq!(fetch(1 << 30), Err(Refused::Signal(Signal::Denied)));
        assert_eq!(pages(&process, 1 << 30, 2), "f.");
        let none = map(&process, 1, Prot::NONE, MapFlags::PRIVATE);
        assert_eq!(fetch(none), Err(Refused::Signal(Signal::Denied)));
        assert_eq!(pages(&process, none, 1), ".");
        vm.cache().put_user(vm.source(), file).unwrap();
    });
}

#[test]
fn a_read_maps_sixteen_pages_from_an_aligned_place_or_the_start_of_the_mapping() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let file = memory_file(vm, 64);
        let read = |page: u64| User::new(&process).load_byte(at((1 << 30) + page * PAGE));
        // It begins in the middle of sixteen pages: as many are mapped all the same.
        map_file(&process, file, ((1 << 30) + 10 * PAGE, 0, 54), Prot::READ, MapFlags::SHARED);
        assert_eq!(read(13), Ok(3));
        assert_eq!(pages(&process, 1 << 30, 28), "..........ffffffffffffffff..");
        assert_eq!(read(30), Ok(20));
        assert_eq!(pages(&process, (1 << 30) + 26 * PAGE, 8), "ffffff..");
        // But none by another page table.
        let late = (1 << 30) + (2 << 20) - 2 * PAGE;
        map_file(&process, file, (late, 0, 20), Prot::READ, MapFlags::SHARED);
        assert_eq!(User::new(&process).load_byte(at(late)), Ok(0));
        assert_eq!(pages(&process, late, 4), "ff..");
        let noted = |page: u64| {
            let bits = process.entry_state(at((1 << 30) + page * PAGE)).unwrap().resident().unwrap().bits;
            bits & (PteBits::ACCESSED | PteBits::DIRTY)
        };
        // smaps calls all of them referenced.
        assert!((10..26).all(|page| noted(page) == PteBits::ACCESSED));
        vm.cache().put_user(vm.source(), file).unwrap();
    });
}

#[test]
fn pages_of_a_file_in_memory_are_counted_as_shared_memory_however_they_came_to_be() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let file = memory_file(vm, 1);
        let grown = vm.cache().truncate(vm.source(), &vm.pager().entries(), file, 2 * PAGE).unwrap();
        assert_eq!(grown, Step::Done);
        map_file(&process, file, (1 << 30, 0, 2), RW, MapFlags::SHARED);
        let user = User::new(&process);
        assert_eq!((user.load_byte(at(1 << 30)), user.load_byte(at((1 << 30) + PAGE))), (Ok(0), Ok(0)));
        let counts = || process.with(|mm| RssKind::ALL.map(|kind| mm.shared().rss(kind)));
        assert_eq!(counts(), [0, 0, 2, 0]);
        for page in 0..2 {
            let kind = process.entry_state(at((1 << 30) + page * PAGE)).unwrap().resident().unwrap().kind;
            assert_eq!(kind, PageKind::Shmem);
        }
        process.munmap(1 << 30, 2 * PAGE).unwrap();
        assert_eq!(counts(), [0, 0, 0, 0]);
        vm.cache().put_user(vm.source(), file).unwrap();
    });
}

#[test]
fn a_child_has_the_guards_of_its_parent_in_shared_memory_too() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        for sharing in [MapFlags::SHARED, MapFlags::PRIVATE] {
            let start = map(&process, 3, RW, sharing | MapFlags::POPULATE);
            process.madvise(start + PAGE, PAGE, Advice::GuardInstall as i32).unwrap();
            let child = process.fork().unwrap();
            assert_eq!(pages(&child, start + PAGE, 1), "g");
            let refused = User::new(&child).load_byte(at(start + PAGE));
            assert_eq!(refused, Err(Refused::Signal(Signal::NotMapped)));
            assert_eq!(User::new(&child).load_byte(at(start)), Ok(0));
        }
    });
}

#[test]
fn a_store_beyond_the_end_of_a_file_makes_its_private_mapping_an_owner_of_pages() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let file = memory_file(vm, 1);
        map_file(&process, file, (1 << 30, 0, 2), RW, MapFlags::PRIVATE);
        let owner = || process.with(|mm| mm.vma(mm.lookup(at(1 << 30)).unwrap()).anon);
        assert_eq!(User::new(&process).load_byte(at((1 << 30) + PAGE)), Err(Refused::Signal(Signal::NoPage)));
        assert_eq!(owner(), None);
        let store = User::new(&process).store(at((1 << 30) + PAGE), &[1]);
        assert_eq!(store, Err(Refused::Signal(Signal::NoPage)));
        assert!(owner().is_some());
        vm.cache().put_user(vm.source(), file).unwrap();
    });
}

#[test]
fn reading_a_hole_of_a_file_in_memory_takes_no_page() {
    on_machine(|vm| {
        let file = memory_file(vm, 1);
        let (cache, source) = (vm.cache(), vm.source());
        let grown = cache.truncate(source, &vm.pager().entries(), file, 3 * PAGE).unwrap();
        assert_eq!(grown, Step::Done);
        let mut bytes = vec![1; 3 * PAGE as usize];
        let (mut ahead, pattern) = (ReadAhead::new(), Pattern::Stream);
        let moved = cache.read_at(source, file, 1, &mut bytes, &mut ahead, pattern).unwrap();
        assert_eq!(moved, Moved { bytes: 3 * PAGE as usize - 1, wait: None });
        assert!(bytes[..bytes.len() - 1].iter().all(|&byte| byte == 0));
        assert_eq!(cache.stat(source, file).unwrap().pages, 1);
        cache.put_user(source, file).unwrap();
    });
}

#[test]
fn what_is_stored_behind_the_end_of_a_file_is_gone_when_it_grows_or_is_written_back() {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let disk = Disk::new(&machine);
    disk.put(1, &[b'a'; 100]);
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let file = vm.open_file(&disk, 1, OpenMode::ReadWrite).unwrap();
    let process: Proc<'_, '_, '_> = Process::new(&vm).unwrap();
    let args = MmapArgs {
        addr: 0,
        len: PAGE,
        prot: RW,
        flags: MapFlags::SHARED,
        file: Ok(Some(file.map_file())),
        offset: 0,
    };
    let start = process.mmap(&args).unwrap().get();
    let user = User::new(&process);
    let stored = |at_byte| user.load_byte(at(start + at_byte)).unwrap();
    let store = || {
        user.store(at(start + 200), b"T").unwrap();
        user.store(at(start + 3000), b"U").unwrap();
    };
    // A write makes zero what comes to lie before it, and leaves the rest as it is.
    store();
    assert_eq!(file.write_at(1000, b"w"), Ok(1));
    assert_eq!((stored(99), stored(200), stored(1000), stored(3000)), (b'a', 0, b'w', b'U'));
    // What is written to the store ends with the file, and so does its page from then on.
    file.sync().unwrap();
    assert_eq!((stored(1000), stored(3000)), (b'w', 0));
    // A truncation to more makes all zero.
    store();
    file.truncate(1002).unwrap();
    assert_eq!((stored(200), stored(1000), stored(3000)), (b'T', b'w', 0));
    // As one to the length that it has does.
    store();
    file.truncate(1002).unwrap();
    assert_eq!((stored(200), stored(1000), stored(3000)), (b'T', b'w', 0));
    drop(process);
    let mut expected = vec![0; 1002];
    expected[..100].fill(b'a');
    (expected[200], expected[1000]) = (b'T', b'w');
    file.sync().unwrap();
    assert_eq!(disk.files().contents(1).unwrap(), expected);
}

#[test]
fn a_hole_leaves_processes_their_own_copies_and_a_truncation_takes_them() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let file = memory_file(vm, 3);
        map_file(&process, file, (1 << 30, 0, 3), RW, MapFlags::PRIVATE);
        map_file(&process, file, (1 << 31, 0, 3), RW, MapFlags::SHARED);
        let user = User::new(&process);
        user.store(at((1 << 30) + PAGE), &[9]).unwrap();
        assert_eq!(user.load_byte(at((1 << 30) + 2 * PAGE)), Ok(2));
        assert_eq!(pages(&process, 1 << 30, 3), "faf");
        process.madvise((1 << 31) + PAGE, 2 * PAGE, Advice::Remove as i32).unwrap();
        assert_eq!(pages(&process, 1 << 30, 3), "fa.");
        assert_eq!(
            (user.load_byte(at((1 << 30) + PAGE)), user.load_byte(at((1 << 31) + PAGE))),
            (Ok(9), Ok(0))
        );
        assert_eq!(vm.cache().truncate(vm.source(), &vm.pager().entries(), file, PAGE), Ok(Step::Done));
        assert_eq!(pages(&process, 1 << 30, 3), "f..");
        assert_eq!(user.load_byte(at((1 << 30) + PAGE)), Err(Refused::Signal(Signal::NoPage)));
        vm.cache().put_user(vm.source(), file).unwrap();
    });
}

/// The entries of all address spaces, and something that happens at each flush.
struct Beside<E, W>(E, W);

impl<E: MmAccess, W: Fn()> MmAccess for Beside<E, W> {
    fn clean(&self, mm: Slot, addr: VirtAddr, pfn: Pfn) -> bool {
        self.0.clean(mm, addr, pfn)
    }

    fn zap(&self, mm: Slot, range: VirtRange, copies: Copies) -> Option<VirtAddr> {
        self.0.zap(mm, range, copies)
    }

    fn is_full(&self) -> bool {
        self.0.is_full()
    }

    fn flush(&self) {
        self.0.flush();
        self.1();
    }
}

#[test]
fn a_fault_on_a_page_that_is_getting_a_hole_waits_until_the_hole_is_there() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let file = memory_file(vm, 4);
        map_file(&process, file, (1 << 30, 0, 4), RW, MapFlags::SHARED);
        map_file(&process, file, (1 << 31, 0, 4), RW, MapFlags::PRIVATE);
        let user = User::new(&process);
        for page in 0..4 {
            assert_eq!(user.load_byte(at((1 << 30) + page * PAGE)), Ok(page as u8));
        }
        let waits = RefCell::new(Vec::new());
        // Who takes pages away must not be kept from it by who faults on them, however often.
        let entries = Beside(vm.pager().entries(), || {
            for (addr, access) in
                [(1 << 30, Access::Read), (1 << 30, Access::Write), (1 << 31, Access::Write)]
            {
                let fault = |page| process.handle_fault(at(addr + page * PAGE), access, Attempt::First);
                assert_eq!(fault(3), Fault::Done(Resolved::Minor), "beside the hole");
                match fault(1) {
                    Fault::Wait(ticket) if !vm.io_done(ticket) => waits.borrow_mut().push(ticket),
                    other => panic!("where the hole will be: {other:?}"),
                }
            }
        });
        let [first, end] = [1, 3].map(|page| PgOff::new(page).unwrap());
        assert_eq!(vm.cache().punch_hole(vm.source(), &entries, file, first, end), Ok(()));
        let waits = waits.into_inner();
        // All is taken away at once: three faults for each flush.
        assert_eq!(waits.len(), 3);
        assert!(waits.iter().all(|&ticket| vm.io_done(ticket)));
        for page in [1, 2] {
            assert_eq!(user.load_byte(at((1 << 30) + page * PAGE)), Ok(0));
        }
        assert_eq!(user.load_byte(at((1 << 31) + PAGE)), Ok(0));
        assert_eq!(user.load_byte(at((1 << 31) + 3 * PAGE)), Ok(3));
        vm.assert_sound(&[&process]);
        vm.cache().put_user(vm.source(), file).unwrap();
    });
}

/// The entries of all address spaces, and the ranges that were asked for, with where to go on.
struct Asked<E>(E, RefCell<Vec<(VirtRange, Option<VirtAddr>)>>);

impl<E: MmAccess> MmAccess for Asked<E> {
    fn clean(&self, mm: Slot, addr: VirtAddr, pfn: Pfn) -> bool {
        self.0.clean(mm, addr, pfn)
    }

    fn zap(&self, mm: Slot, range: VirtRange, copies: Copies) -> Option<VirtAddr> {
        let rest = self.0.zap(mm, range, copies);
        self.1.borrow_mut().push((range, rest));
        rest
    }

    fn flush(&self) {
        self.0.flush();
    }
}

#[test]
fn a_truncation_goes_through_each_mapping_once_however_many_pages_it_has() {
    const PAGES: u64 = 200;
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let file = memory_file(vm, PAGES);
        let places = [1 << 30, 1 << 31, 1 << 32];
        for addr in places {
            map_file(&process, file, (addr, 0, PAGES), RW, MapFlags::SHARED);
            process.madvise(addr, PAGES * PAGE, Advice::PopulateRead as i32).unwrap();
        }
        let entries = Asked(vm.pager().entries(), RefCell::new(Vec::new()));
        assert_eq!(vm.cache().truncate(vm.source(), &entries, file, PAGE), Ok(Step::Done));
        let asked = entries.1.into_inner();
        let mut expected = places.map(|addr| addr + PAGE).to_vec();
        expected.reverse();
        let mut go_on = None;
        for (range, rest) in asked {
            let start = go_on.unwrap_or_else(|| at(expected.pop().unwrap()));
            assert_eq!(range.start(), start, "neither again nor with anything left out");
            go_on = rest;
        }
        assert_eq!((go_on, expected), (None, vec![]));
        vm.assert_sound(&[&process]);
        vm.cache().put_user(vm.source(), file).unwrap();
    });
}

#[test]
fn a_load_of_zeros_that_are_nobodys_needs_its_vma_alone() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let start = map(&process, 2, RW, MapFlags::PRIVATE);
        let id = process.with(|mm| mm.id());
        let fault = |addr: u64, access| {
            let locked = vm.context().lock_vma(id, at(addr)).unwrap();
            vm.pager().of_space(locked.mm()).unwrap().handle_fault_in(&locked, at(addr), access)
        };
        assert_eq!(fault(start, Access::Write), None, "it must get an owner first");
        assert_eq!(fault(start, Access::Read), Some(Fault::Done(Resolved::Minor)));
        assert_eq!(pages(&process, start, 2), "z.");
        let has_owner =
            || process.with(|mm| mm.find_vma(at(start)).is_some_and(|slot| mm.vma(slot).anon.is_some()));
        assert!(!has_owner());
        process.fault(at(start), Access::Write).unwrap();
        assert!(has_owner());
        assert_eq!(fault(start + PAGE, Access::Write), Some(Fault::Done(Resolved::Minor)));
        assert_eq!(pages(&process, start, 2), "aa");
    });
}

#[test]
fn a_page_that_cannot_name_its_place_is_not_mapped() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let user = User::new(&process);
        // A page's index has 40 bits: the last place that has one, and the first that has none.
        let insert = |start: u64, pages: u64, pgoff: u64, flags: VmFlags| {
            let (start, end) = (at(start), at(start + pages * PAGE));
            let pgoff = PgOff::new(pgoff).unwrap();
            let flags = flags | VmFlags::DATA_DEFAULT;
            let vma = Vma { start, end, flags, pgoff, backing: Backing::Anonymous, anon: None };
            process.insert_vma(&vma).unwrap();
        };
        let refused = Err(Refused::Signal(Signal::NoPage));
        let small = 0x10_0000_0000;
        insert(small, 2, (1 << 40) - 1, VmFlags::empty());
        assert_eq!((user.store_u32(at(small), 1), user.store_u32(at(small + PAGE), 1)), (Ok(()), refused));
        // A page of zeros is nobody's.
        assert_eq!(user.load_u32(at(small + PAGE)), Ok(0));
        assert_eq!(
            (user.store_u32(at(small + PAGE), 1), pages(&process, small, 2)),
            (refused, "az".to_owned())
        );
        let huge = 0x20_0000_0000;
        insert(huge, 512, (1 << 40) - 511, VmFlags::HUGEPAGE);
        assert_eq!(user.store_u32(at(huge), 1), refused);
        assert_eq!(user.load_u32(at(huge)), Ok(0));
        assert_eq!(user.store_u32(at(huge), 1), refused);
        let mut tallies = vec![FrameTally::new(); vm.source().phys().slots()];
        vm.check(&[&process], |_| 0, &mut tallies).unwrap();
    });
}

/// Fails if a page is lost that was to take the place of one, and cannot have an owner.
#[test]
fn a_page_that_cannot_have_an_owner_is_not_mapped() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        let user = User::new(&process);
        // A page of zeros, one of a file that was read, and one that is not there.
        let file = memory_file(vm, 1);
        let zeros = map(&process, 2, RW, MapFlags::PRIVATE);
        let copy = 0x10_0000_0000;
        map_file(&process, file, (copy, 0, 1), RW, MapFlags::PRIVATE);
        assert_eq!((user.load_byte(at(zeros)), user.load_byte(at(copy))), (Ok(0), Ok(0)));
        let owners = vm.context().anon_vmas();
        let taken: Vec<_> = core::iter::from_fn(|| owners.fresh()).collect();
        for addr in [zeros, zeros + PAGE, copy] {
            assert_eq!(user.store(at(addr), &[1]), Err(Refused::OutOfMemory));
        }
        assert_eq!((pages(&process, zeros, 2), pages(&process, copy, 1)), ("z.".to_owned(), "f".to_owned()));
        taken.into_iter().for_each(|owner| owners.release(owner));
        let mut tallies = vec![FrameTally::new(); vm.source().phys().slots()];
        vm.check(&[&process], |_| 0, &mut tallies).unwrap();
        for addr in [zeros, zeros + PAGE, copy] {
            assert_eq!(user.store(at(addr), &[1]), Ok(()));
        }
        drop(process);
        assert_eq!(vm.cache().put_user(vm.source(), file), Ok(true));
    });
}
