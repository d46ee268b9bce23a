//! A device's memory in user space: bare frames that nobody counts.

use kernmm::addr::{PageOrder, Pfn, VirtAddr};
use kernmm::fault::Signal;
use kernmm::flags::{GfpFlags, MapFlags, MremapFlags, Prot, VmFlags};
use kernmm::memory::{Memory, Process, Refused, User, Vm};
use kernmm::mm::{MmError, RssKind};
use kernmm::platform::CpuId;
use kernmm::platform::hosted::Machine;
use kernmm::syscall::{Device, MmapArgs, OpenMode};
use kernmm::table::{Caching, PteBits};

const PAGE: u64 = 4096;
const RW: Prot = Prot::READ.union(Prot::WRITE);

type Mem<'m> = Memory<'m, Machine>;
type Proc<'v, 'a, 'm> = Process<'v, 'a, Mem<'m>>;

/// Runs a test with four frames of a driver's, which hold 0x10 to 0x13, as a device's memory. At the end they are as they were and the
/// driver's alone.
fn with_device(test: impl FnOnce(&Vm<'_, Mem<'_>>, &Device)) {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let order = PageOrder::new(2).unwrap();
    let first = memory.alloc_pages(GfpFlags::KERNEL, order).unwrap();
    for page in 0..4 {
        let bytes = [0x10 + page as u8; PAGE as usize];
        memory.write_frame(first.checked_add(page).unwrap(), 0, &bytes).unwrap();
    }
    let free = || {
        memory.phys().drain_all(&memory.pin());
        memory.phys().free_pages_total()
    };
    let before = free();
    let (mode, caching) = (OpenMode::ReadWrite, Caching::Uncached);
    test(&vm, &Device { special: 9, mode, first, pages: 4, caching });
    assert_eq!(free(), before, "frames were lost");
    let page = memory.phys().page(first).unwrap();
    assert_eq!((page.count(), page.map_count()), (1, 0), "nobody counts it");
    memory.free_pages(first, order).unwrap();
}

fn args(pages: u64, offset_pages: u64, prot: Prot, flags: MapFlags) -> MmapArgs {
    MmapArgs { addr: 0, len: pages * PAGE, prot, flags, file: Ok(None), offset: offset_pages * PAGE }
}

fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

fn byte_of(vm: &Vm<'_, Mem<'_>>, device: &Device, page: u64) -> u8 {
    let mut byte = [0];
    vm.source().read_frame(device.first.checked_add(page).unwrap(), 0, &mut byte).unwrap();
    byte[0]
}

fn bits(process: &Proc<'_, '_, '_>, addr: u64) -> Option<PteBits> {
    process.entry_state(at(addr)).and_then(|state| state.resident()).map(|page| page.bits)
}

fn vma_flags(process: &Proc<'_, '_, '_>, addr: u64) -> VmFlags {
    process.with(|mm| mm.vma(mm.find_vma(at(addr)).unwrap()).flags)
}

#[test]
fn a_shared_mapping_is_the_device() {
    with_device(|vm, device| {
        let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let user = User::new(&process);
        let start = process.mmap_device(&args(3, 1, RW, MapFlags::SHARED), device).unwrap().get();
        let bare = VmFlags::IO | VmFlags::PFNMAP | VmFlags::DONTEXPAND | VmFlags::DONTDUMP;
        assert!(vma_flags(&process, start).contains(bare | VmFlags::SHARED));
        assert!(bits(&process, start + 2 * PAGE).unwrap().contains(PteBits::UNCACHED | PteBits::SPECIAL));
        assert_eq!(user.load_byte(at(start)), Ok(0x11), "all is mapped at once");
        user.store(at(start + 2 * PAGE), &[0x55]).unwrap();
        assert_eq!(byte_of(vm, device, 3), 0x55);
        assert_eq!(process.with(|mm| mm.shared().resident()), 0);
        let child: Proc<'_, '_, '_> = process.fork().unwrap();
        User::new(&child).store(at(start), &[0x66]).unwrap();
        assert_eq!((user.load_byte(at(start)), byte_of(vm, device, 1)), (Ok(0x66), 0x66));
        assert!(bits(&child, start).unwrap().contains(PteBits::UNCACHED));
        drop(child);
        process.munmap(start, PAGE).unwrap();
        assert_eq!(user.load_byte(at(start)), Err(Refused::Signal(Signal::NotMapped)));
        assert_eq!(user.load_byte(at(start + PAGE)), Ok(0x12));
    });
}

#[test]
fn the_first_write_to_a_private_mapping_copies_the_page() {
    with_device(|vm, device| {
        let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let user = User::new(&process);
        let start = process.mmap_device(&args(4, 0, RW, MapFlags::PRIVATE), device).unwrap().get();
        let pgoff = process.with(|mm| mm.vma(mm.find_vma(at(start)).unwrap()).pgoff.get());
        assert_eq!(pgoff, device.first.get(), "it tells the frames from copies");
        assert_eq!(user.load_byte(at(start + PAGE)), Ok(0x11));
        user.store(at(start + PAGE + 1), &[0x77]).unwrap();
        assert_eq!(
            (user.load_byte(at(start + PAGE)), user.load_byte(at(start + PAGE + 1))),
            (Ok(0x11), Ok(0x77))
        );
        assert_eq!(byte_of(vm, device, 1), 0x11);
        let copied = bits(&process, start + PAGE).unwrap();
        assert!(!copied.intersects(PteBits::SPECIAL | PteBits::UNCACHED), "the copy is RAM");
        assert_eq!(process.with(|mm| mm.shared().rss(RssKind::Anon)), 1);
        let child: Proc<'_, '_, '_> = process.fork().unwrap();
        let son = User::new(&child);
        son.store(at(start + PAGE), &[0x78]).unwrap();
        son.store(at(start + 2 * PAGE), &[0x79]).unwrap();
        assert_eq!(
            (user.load_byte(at(start + PAGE)), user.load_byte(at(start + 2 * PAGE))),
            (Ok(0x11), Ok(0x12))
        );
        assert_eq!(byte_of(vm, device, 2), 0x12);
    });
}

#[test]
fn calls_treat_bare_frames_as_linux_does() {
    with_device(|vm, device| {
        let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let user = User::new(&process);
        let start = process.mmap_device(&args(2, 0, RW, MapFlags::SHARED), device).unwrap().get();
        // DONTNEED, FREE, COLD, PAGEOUT: include/uapi/asm-generic/mman-common.h.
        for advice in [4, 8, 20, 21] {
            assert_eq!(process.madvise(start, PAGE, advice), Err(MmError::BadAdvice), "{advice}");
        }
        process.mlock(start, PAGE).unwrap();
        assert!(!vma_flags(&process, start).contains(VmFlags::LOCKED));
        let grown = process.mremap(start, 2 * PAGE, 3 * PAGE, MremapFlags::MAYMOVE, 0);
        assert_eq!(grown, Err(MmError::NotExpandable));
        process.mprotect(start, PAGE, Prot::READ).unwrap();
        assert_eq!(user.store(at(start), &[1]), Err(Refused::Signal(Signal::Denied)));
        assert_eq!(user.store(at(start + PAGE), &[0x21]), Ok(()));
        process.mprotect(start, PAGE, RW).unwrap();
        user.store(at(start), &[0x20]).unwrap();
        assert!(bits(&process, start).unwrap().contains(PteBits::UNCACHED | PteBits::SPECIAL));
        assert_eq!((byte_of(vm, device, 0), byte_of(vm, device, 1)), (0x20, 0x21));
        let flags = MremapFlags::MAYMOVE | MremapFlags::FIXED;
        let moved = process.mremap(start, 2 * PAGE, 2 * PAGE, flags, start - 64 * PAGE).unwrap().get();
        assert_eq!(user.load_byte(at(moved + PAGE)), Ok(0x21));
        assert_eq!(user.load_byte(at(start)), Err(Refused::Signal(Signal::NotMapped)));
    });
}

#[test]
fn what_the_device_has_not_is_not_mapped_and_nothing_changes() {
    with_device(|vm, device| {
        let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let before = process.with(|mm| mm.map_count());
        let map = |args: &MmapArgs, device: &Device| process.mmap_device(args, device);
        assert_eq!(map(&args(4, 1, RW, MapFlags::SHARED), device), Err(MmError::DeviceRange));
        assert_eq!(map(&args(1, 1 << 50, RW, MapFlags::SHARED), device), Err(MmError::DeviceRange));
        let closed = Device { mode: OpenMode::ReadOnly, ..*device };
        assert_eq!(map(&args(1, 0, RW, MapFlags::SHARED), &closed), Err(MmError::NotWritable));
        let end = Device { first: Pfn::MAX, ..*device };
        assert_eq!(map(&args(1, 0, RW, MapFlags::SHARED), &end), Err(MmError::DeviceRange));
        assert_eq!(process.with(|mm| mm.map_count()), before);
        let start = map(&args(4, 0, RW, MapFlags::PRIVATE), device).unwrap();
        let remap = |addr: u64, first: Pfn, pages: u64| {
            process.remap_pfn_range(at(addr), first, pages * PAGE, Caching::WriteBack)
        };
        let second = device.first.checked_add(1).unwrap();
        assert_eq!(remap(start.get(), device.first, 3), Err(MmError::DeviceRange), "not all of it");
        assert_eq!(remap(start.get(), second, 4), Err(MmError::DeviceRange), "other frames");
        assert_eq!(remap(start.get(), device.first, 4), Err(MmError::Exists));
        assert_eq!(remap(start.get() + 1, device.first, 4), Err(MmError::Unaligned));
        assert_eq!(remap(start.get() + 4 * PAGE, device.first, 1), Err(MmError::DeviceRange), "no VMA");
    });
}

#[test]
fn without_a_page_table_the_mapping_fails_and_leaves_a_gap() {
    with_device(|vm, device| {
        let memory = vm.source();
        let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let anywhere = args(1, 0, RW, MapFlags::PRIVATE | MapFlags::ANONYMOUS);
        let start = process.mmap(&anywhere).unwrap().get();
        let mut taken = vec![];
        while let Ok(pfn) = memory.alloc_pages(GfpFlags::KERNEL, PageOrder::ZERO) {
            taken.push(pfn);
        }
        let fixed = MmapArgs { addr: start, ..args(1, 0, RW, MapFlags::SHARED | MapFlags::FIXED) };
        assert_eq!(process.mmap_device(&fixed, device), Err(MmError::OutOfMemory));
        assert_eq!(process.with(|mm| mm.map_count()), 0);
        process.with(|mm| mm.check().unwrap());
        taken.iter().for_each(|&pfn| memory.free_pages(pfn, PageOrder::ZERO).unwrap());
        assert_eq!(process.mmap_device(&fixed, device).unwrap().get(), start);
    });
}

#[test]
fn where_no_ram_is_the_kernel_and_copies_do_not_reach() {
    with_device(|vm, device| {
        let registers = Device { first: Pfn::new(0xfee00).unwrap(), ..*device };
        let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let user = User::new(&process);
        let start = process.mmap_device(&args(1, 0, RW, MapFlags::SHARED), &registers).unwrap();
        assert_eq!(user.load_byte(start), Ok(0xff), "nobody answers");
        user.store(start, &[1]).unwrap();
        assert_eq!(process.copy_to_user(start, &[1]), Err(Refused::Signal(Signal::NoPage)));
        let private = process.mmap_device(&args(1, 0, RW, MapFlags::PRIVATE), &registers).unwrap();
        assert_eq!(user.load_byte(private), Ok(0xff));
        assert_eq!(user.store(private, &[1]), Err(Refused::Signal(Signal::NoPage)));
    });
}
