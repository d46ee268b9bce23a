//! CPUs that leave it to the kernel to note in entries that pages were used and written, as those of RISC-V without Svadu: each access that is not noted
//! yet is one fault, and no more.

use kernmm::addr::{PageOrder, VirtAddr};
use kernmm::flags::{Advice, GfpFlags, MapFlags, Prot};
use kernmm::memory::{Memory, Process, Vm};
use kernmm::mm::{HugePages, Sysctl};
use kernmm::platform::hosted::{AccessedDirty, Disk, Machine, Mmu};
use kernmm::platform::{Access, CpuId};
use kernmm::syscall::{Device, MmapArgs, OpenMode};
use kernmm::table::{Caching, EntryFormat, Pae, PteBits, Sv39, X86_64};

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;
const AT: u64 = 0x1000_0000;
const RW: Prot = Prot::READ.union(Prot::WRITE);
const INODE: u64 = 5;

type Mem<'m> = Memory<'m, Machine>;
type Virt<'a, 'm, F> = Vm<'a, Mem<'m>, F>;
type Proc<'v, 'a, 'm, F> = Process<'v, 'a, Mem<'m>, F>;

fn on_machine<F: EntryFormat>(mmu: Mmu, test: impl for<'a, 'm> FnOnce(&Virt<'a, 'm, F>, &'a Disk<'m>)) {
    let machine = Machine::pc(32 << 20).mmu(mmu).accessed_dirty(AccessedDirty::Software).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disk = Disk::new(&machine);
    disk.put(INODE, &[7; PAGE as usize]);
    let linux = Sysctl::default();
    let task_size = linux.task_size.min(F::USER_END - PAGE);
    let vm: Virt<'_, '_, F> =
        Vm::on_with(&memory, Sysctl { task_size, huge_pages: HugePages::Madvise, ..linux }).unwrap();
    test(&vm, &disk);
}

/// In all formats of page tables: x86's CPUs note uses themselves, but the rule is the same.
fn everywhere(
    x86_64: impl for<'a, 'm> FnOnce(&Virt<'a, 'm, X86_64>, &'a Disk<'m>),
    pae: impl for<'a, 'm> FnOnce(&Virt<'a, 'm, Pae>, &'a Disk<'m>),
    sv39: impl for<'a, 'm> FnOnce(&Virt<'a, 'm, Sv39>, &'a Disk<'m>),
) {
    on_machine::<X86_64>(Mmu::X86_64, x86_64);
    on_machine::<Pae>(Mmu::Pae, pae);
    on_machine::<Sv39>(Mmu::Sv39, sv39);
}

fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

fn map<F: EntryFormat>(process: &Proc<'_, '_, '_, F>, len: u64, flags: MapFlags) {
    let flags = flags | MapFlags::ANONYMOUS | MapFlags::FIXED;
    process.mmap(&MmapArgs { addr: AT, len, prot: RW, flags, file: Ok(None), offset: 0 }).unwrap();
}

/// Makes an access; how many faults it took.
fn faults<F: EntryFormat>(process: &Proc<'_, '_, '_, F>, addr: u64, access: Access) -> u32 {
    process.activate().unwrap();
    let machine = process.vm().source().platform();
    for faults in 0..4 {
        let done = match access {
            Access::Write => machine.store(at(addr), &[1]),
            Access::Read => machine.load(at(addr), &mut [0]),
            Access::Exec => machine.fetch(at(addr), &mut [0]),
        };
        let Err(fault) = done else { return faults };
        process.fault(fault.addr, fault.access).unwrap();
    }
    panic!("{access:?} at {addr:#x} faults again and again");
}

/// Which of the two bits the entry has.
fn noted<F: EntryFormat>(process: &Proc<'_, '_, '_, F>, addr: u64) -> PteBits {
    let page = process.entry_state(at(addr)).and_then(|state| state.resident()).expect("a page");
    page.bits & (PteBits::ACCESSED | PteBits::DIRTY)
}

const READ: PteBits = PteBits::ACCESSED;
const WRITTEN: PteBits = PteBits::ACCESSED.union(PteBits::DIRTY);

/// A child begins with entries that note no use.
fn child_of_small_pages<F: EntryFormat>(vm: &Virt<'_, '_, F>, _: &Disk<'_>) {
    let parent: Proc<'_, '_, '_, F> = Process::new(vm).unwrap();
    map(&parent, 2 * PAGE, MapFlags::PRIVATE);
    assert_eq!((faults(&parent, AT, Access::Write), noted(&parent, AT)), (1, WRITTEN));
    let child = parent.fork().unwrap();
    assert_eq!(noted(&child, AT) & READ, PteBits::empty());
    assert_eq!(faults(&child, AT, Access::Read), 1);
    assert_eq!(noted(&child, AT) & READ, READ);
    assert_eq!((faults(&child, AT, Access::Read), faults(&child, AT, Access::Write)), (0, 1));
    assert_eq!((faults(&parent, AT, Access::Read), faults(&parent, AT, Access::Write)), (0, 1));
    process_is_sound(&parent);
}

/// A page of shared memory that was first read may be written at once, but its entry does not say so yet.
fn shared_memory<F: EntryFormat>(vm: &Virt<'_, '_, F>, _: &Disk<'_>) {
    let process: Proc<'_, '_, '_, F> = Process::new(vm).unwrap();
    map(&process, PAGE, MapFlags::SHARED);
    assert_eq!((faults(&process, AT, Access::Read), noted(&process, AT)), (1, READ));
    assert_eq!((faults(&process, AT, Access::Write), noted(&process, AT)), (1, WRITTEN));
    assert_eq!(faults(&process, AT, Access::Write), 0);
    process_is_sound(&process);
}

/// The frames of a device come with neither bit.
fn device<F: EntryFormat>(vm: &Virt<'_, '_, F>, _: &Disk<'_>) {
    let first = vm.source().alloc_pages(GfpFlags::KERNEL, PageOrder::ZERO).unwrap();
    let device =
        Device { special: 1, mode: OpenMode::ReadWrite, first, pages: 1, caching: Caching::WriteBack };
    let process: Proc<'_, '_, '_, F> = Process::new(vm).unwrap();
    let flags = MapFlags::SHARED | MapFlags::FIXED;
    let args = MmapArgs { addr: AT, len: PAGE, prot: RW, flags, file: Ok(None), offset: 0 };
    process.mmap_device(&args, &device).unwrap();
    assert_eq!((faults(&process, AT, Access::Read), noted(&process, AT)), (1, READ));
    assert_eq!((faults(&process, AT, Access::Write), noted(&process, AT)), (1, WRITTEN));
    drop(process);
    vm.source().free_pages(first, PageOrder::ZERO).unwrap();
}

/// A huge entry is one: a fault notes the use of all its pages.
fn huge_page<F: EntryFormat>(vm: &Virt<'_, '_, F>, _: &Disk<'_>) {
    let parent: Proc<'_, '_, '_, F> = Process::new(vm).unwrap();
    map(&parent, HUGE, MapFlags::PRIVATE);
    parent.madvise(AT, HUGE, Advice::HugePage as i32).unwrap();
    assert_eq!(faults(&parent, AT, Access::Write), 1);
    assert_eq!(faults(&parent, AT + HUGE - 1, Access::Write), 0, "one huge page");
    let child = parent.fork().unwrap();
    assert_eq!(faults(&child, AT + PAGE, Access::Read), 1);
    assert_eq!((faults(&child, AT + 5 * PAGE, Access::Read), noted(&child, AT) & READ), (0, READ));
    process_is_sound(&parent);
}

/// What is written through an entry is written back, and a page that is clean again is noticed when it is written.
fn file<'a, F: EntryFormat>(vm: &Virt<'a, '_, F>, disk: &'a Disk<'_>) {
    let file = vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap();
    let process: Proc<'_, '_, '_, F> = Process::new(vm).unwrap();
    let flags = MapFlags::SHARED | MapFlags::FIXED;
    let args = MmapArgs { addr: AT, len: PAGE, prot: RW, flags, file: Ok(Some(file.map_file())), offset: 0 };
    process.mmap(&args).unwrap();
    for _ in 0..2 {
        assert!(faults(&process, AT, Access::Read) <= 1);
        assert_eq!(noted(&process, AT), READ);
        assert_eq!((faults(&process, AT, Access::Write), noted(&process, AT)), (1, WRITTEN));
        file.sync().unwrap();
        assert_eq!(noted(&process, AT) & PteBits::DIRTY, PteBits::empty());
    }
    let mut first = [0];
    assert_eq!((file.read_at(0, &mut first), first), (Ok(1), [1]));
}

fn process_is_sound<F: EntryFormat>(process: &Proc<'_, '_, '_, F>) {
    process.with(|mm| mm.check().unwrap());
}

#[test]
fn a_child_reads_its_parents_page_after_one_fault() {
    everywhere(child_of_small_pages, child_of_small_pages, child_of_small_pages);
}

#[test]
fn shared_memory_that_was_read_is_written_after_one_fault() {
    everywhere(shared_memory, shared_memory, shared_memory);
}

#[test]
fn a_devices_frames_are_read_and_written_after_one_fault_each() {
    everywhere(device, device, device);
}

#[test]
fn a_huge_page_is_read_after_one_fault() {
    everywhere(huge_page, huge_page, huge_page);
}

#[test]
fn a_files_page_is_written_after_one_fault_each_time_it_is_clean() {
    everywhere(file, file, file);
}
