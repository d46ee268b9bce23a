//! What faults and calls do to pages, case by case, as Linux does it.

use kernmm::addr::{VirtAddr, VirtRange};
use kernmm::fault::{PageKind, PageState};
use kernmm::flags::{Advice, MapFlags, MlockFlags, Prot};
use kernmm::memory::{Memory, Process, User, Vm};
use kernmm::mm::{MmError, RssKind};
use kernmm::platform::CpuId;
use kernmm::platform::hosted::Machine;
use kernmm::syscall::MmapArgs;
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

fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

/// The pages from `start` on, a letter each: `.` nothing, `z` the zero page, `a` anonymous, `f` of a file or shared memory, `g` a guard.
fn pages(process: &Proc<'_, '_, '_>, start: u64, pages: u64) -> String {
    let mut letters = vec!['.'; pages as usize];
    let range = VirtRange::with_len(at(start), pages * PAGE).unwrap();
    process.visit_pages(range, |page, state| {
        letters[((page.get() - start) / PAGE) as usize] = match state {
            PageState::Guard => 'g',
            PageState::Swapped(_) => 's',
            PageState::Resident(page) => match page.kind {
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
            process.page_state(at(start + page * PAGE)).and_then(PageState::resident)
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
