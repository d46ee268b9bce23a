//! Pinned pages: their frames stay what they are for a device, whatever the process does to its mapping.

mod scene;

use kernmm::addr::{PageOrder, Pfn, VirtAddr};
use kernmm::fault::{Access, PinTerm, PinUse, Signal};
use kernmm::flags::{Advice, GfpFlags, MapFlags, Prot};
use kernmm::memory::{Memory, Process, Refused, User, Vm};
use kernmm::phys::Page;
use kernmm::platform::hosted::{Disk, Latency, Machine};
use kernmm::platform::{CpuId, Platform};
use kernmm::syscall::{Device, MmapArgs, OpenMode};
use kernmm::table::Caching;

const PAGE: u64 = 4096;
const RW: Prot = Prot::READ.union(Prot::WRITE);

type Mem<'m> = Memory<'m, Machine>;
type Proc<'v, 'a, 'm> = Process<'v, 'a, Mem<'m>>;

fn on_machine(test: impl FnOnce(&Vm<'_, Mem<'_>>)) {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let before = free(&vm);
    test(&vm);
    assert_eq!(free(&vm), before, "frames were lost");
}

fn free(vm: &Vm<'_, Mem<'_>>) -> u64 {
    vm.source().phys().drain_all(&vm.source().pin());
    vm.source().phys().free_pages_total()
}

fn anonymous(process: &Proc<'_, '_, '_>, pages: u64, prot: Prot, sharing: MapFlags) -> VirtAddr {
    let flags = sharing | MapFlags::ANONYMOUS;
    let args = MmapArgs { addr: 0, len: pages * PAGE, prot, flags, file: Ok(None), offset: 0 };
    process.mmap(&args).unwrap()
}

fn pin(process: &Proc<'_, '_, '_>, addr: VirtAddr, access: Access, term: PinTerm) -> Result<Pfn, Refused> {
    let mut one = [Pfn::ZERO];
    process.pin_pages(addr, access, term, &mut one).map(|count| {
        assert_eq!(count, 1);
        one[0]
    })
}

/// What a device writes to a frame.
fn dma(vm: &Vm<'_, Mem<'_>>, pfn: Pfn, byte: u8) {
    vm.source().write_frame(pfn, 0, &[byte]).unwrap();
}

fn count(vm: &Vm<'_, Mem<'_>>, pfn: Pfn) -> u32 {
    vm.source().phys().page(pfn).unwrap().count()
}

#[test]
fn a_write_after_fork_leaves_the_pinned_page_with_the_parent() {
    on_machine(|vm| {
        let parent: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let user = User::new(&parent);
        let start = anonymous(&parent, 3, RW, MapFlags::PRIVATE);
        let next = start.checked_add(PAGE).unwrap();
        user.store(start, &[1]).unwrap();
        user.store(next, &[2]).unwrap();
        let pinned = pin(&parent, start, Access::Write, PinTerm::Long).unwrap();
        assert_eq!(count(vm, pinned), 1 + Page::PIN_BIAS);
        let child: Proc<'_, '_, '_> = parent.fork().unwrap();
        assert_eq!(count(vm, pinned), 1 + Page::PIN_BIAS, "the child has a copy from the start");
        // Both what the parent writes and what the device writes is seen by the other.
        user.store(start, &[3]).unwrap();
        let mut byte = [0];
        vm.source().read_frame(pinned, 0, &mut byte).unwrap();
        assert_eq!(byte, [3]);
        dma(vm, pinned, 4);
        assert_eq!(user.load_byte(start), Ok(4));
        let son = User::new(&child);
        assert_eq!((son.load_byte(start), son.load_byte(next)), (Ok(1), Ok(2)));
        son.store(start, &[5]).unwrap();
        assert_eq!((user.load_byte(start), son.load_byte(start)), (Ok(4), Ok(5)));
        let rss = |process: &Proc<'_, '_, '_>| process.with(|mm| mm.shared().resident());
        assert_eq!((rss(&parent), rss(&child)), (2, 2));
        assert_eq!(vm.unpin_pages(&[pinned], PinUse::Dirtied), 1);
        assert_eq!(vm.unpin_pages(&[pinned], PinUse::Clean), 0, "twice");
        assert_eq!(user.load_byte(start), Ok(4));
    });
}

#[test]
fn a_page_that_is_shared_after_fork_is_unshared_before_it_is_pinned_for_reading() {
    on_machine(|vm| {
        let parent: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let user = User::new(&parent);
        let start = anonymous(&parent, 1, RW, MapFlags::PRIVATE);
        user.store(start, &[1]).unwrap();
        let child: Proc<'_, '_, '_> = parent.fork().unwrap();
        let son = User::new(&child);
        // The child reads by a device what it must not learn: CVE-2020-29374.
        let pinned = pin(&child, start, Access::Read, PinTerm::Short).unwrap();
        user.store(start, &[9]).unwrap();
        let mut byte = [0];
        vm.source().read_frame(pinned, 0, &mut byte).unwrap();
        assert_eq!(byte, [1], "what the parent wrote is not seen");
        son.store(start, &[2]).unwrap();
        vm.source().read_frame(pinned, 0, &mut byte).unwrap();
        assert_eq!(byte, [2], "what the child itself writes is");
        vm.unpin_pages(&[pinned], PinUse::Clean);
    });
}

#[test]
fn what_is_unmapped_while_it_is_pinned_is_free_when_it_is_unpinned() {
    on_machine(|vm| {
        let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let start = anonymous(&process, 4, RW, MapFlags::PRIVATE);
        let mut pinned = [Pfn::ZERO; 4];
        assert_eq!(process.pin_pages(start, Access::Write, PinTerm::Short, &mut pinned), Ok(4));
        let more = pin(&process, start, Access::Read, PinTerm::Short).unwrap();
        assert_eq!(more, pinned[0]);
        process.munmap(start.get(), 4 * PAGE).unwrap();
        let before = free(vm);
        for pfn in pinned {
            dma(vm, pfn, 7);
            let other = vm.source().alloc_pages(GfpFlags::KERNEL, PageOrder::ZERO).unwrap();
            assert!(!pinned.contains(&other));
            vm.source().free_pages(other, PageOrder::ZERO).unwrap();
        }
        assert_eq!(vm.unpin_pages(&pinned, PinUse::Dirtied), 4);
        assert_eq!(free(vm), before + 3, "one is pinned twice");
        assert_eq!(vm.unpin_pages(&[more], PinUse::Clean), 1);
        assert_eq!(free(vm), before + 4);
    });
}

#[test]
fn pins_are_refused_as_accesses_are_and_stop_at_the_first_that_is() {
    on_machine(|vm| {
        let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let start = anonymous(&process, 3, RW, MapFlags::PRIVATE);
        let third = start.checked_add(2 * PAGE).unwrap();
        process.mprotect(third.get(), PAGE, Prot::READ).unwrap();
        let mut pinned = [Pfn::ZERO; 3];
        assert_eq!(process.pin_pages(start, Access::Write, PinTerm::Short, &mut pinned), Ok(2));
        assert_eq!(vm.unpin_pages(&pinned[..2], PinUse::Clean), 2);
        let denied = Err(Refused::Signal(Signal::Denied));
        assert_eq!(pin(&process, third, Access::Write, PinTerm::Short), denied);
        // The page of zeros may be read by a device, too.
        let zero = pin(&process, third, Access::Read, PinTerm::Short).unwrap();
        assert_eq!(zero, vm.zero_page());
        vm.unpin_pages(&[zero], PinUse::Clean);
        let end = start.checked_add(3 * PAGE).unwrap();
        let unmapped = Err(Refused::Signal(Signal::NotMapped));
        assert_eq!(pin(&process, end, Access::Read, PinTerm::Short), unmapped);
        let (mode, caching) = (OpenMode::ReadWrite, Caching::Uncached);
        let first = Pfn::new(0xfee00).unwrap();
        let device = Device { special: 1, mode, first, pages: 1, caching };
        let flags = MapFlags::SHARED;
        let args = MmapArgs { addr: 0, len: PAGE, prot: RW, flags, file: Ok(None), offset: 0 };
        let registers = process.mmap_device(&args, &device).unwrap();
        assert_eq!(pin(&process, registers, Access::Read, PinTerm::Short), denied, "bare frames");
    });
}

#[test]
fn fork_without_a_frame_for_the_copy_of_a_pinned_page_fails_and_changes_nothing() {
    on_machine(|vm| {
        let memory = vm.source();
        let parent: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let user = User::new(&parent);
        let start = anonymous(&parent, 8, RW, MapFlags::PRIVATE);
        for page in 0..8 {
            user.store(start.checked_add(page * PAGE).unwrap(), &[page as u8]).unwrap();
        }
        let mut pinned = [Pfn::ZERO; 8];
        parent.pin_pages(start, Access::Write, PinTerm::Short, &mut pinned).unwrap();
        let mut taken = vec![];
        while let Ok(pfn) = memory.alloc_pages(GfpFlags::KERNEL, PageOrder::ZERO) {
            taken.push(pfn);
        }
        // Below this nobody gets a frame; above it are enough for the tables and for some of the copies.
        let reserve = free(vm);
        for left in 0..20 {
            let before = free(vm);
            assert_eq!(before, reserve + left);
            match parent.fork() {
                Ok(child) => {
                    let son = User::new(&child);
                    assert_eq!(son.load_byte(start.checked_add(7 * PAGE).unwrap()), Ok(7));
                    assert!(left >= 12, "four tables and eight pages, with {left} frames");
                }
                Err(_) => assert!(left < 14),
            }
            assert_eq!(free(vm), before);
            memory.free_pages(taken.pop().unwrap(), PageOrder::ZERO).unwrap();
        }
        taken.iter().for_each(|&pfn| memory.free_pages(pfn, PageOrder::ZERO).unwrap());
        assert_eq!(vm.unpin_pages(&pinned, PinUse::Clean), 8);
    });
}

#[test]
fn zeros_are_pinned_as_small_pages_and_for_long_as_the_process_s_own() {
    on_machine(|vm| {
        let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let user = User::new(&process);
        let huge = 2 << 20;
        let start = anonymous(&process, 2 * huge / PAGE, RW, MapFlags::PRIVATE);
        let start = VirtAddr::from(start.get().next_multiple_of(huge));
        process.madvise(start.get(), huge, Advice::HugePage as i32).unwrap();
        assert_eq!(user.load_byte(start), Ok(0));
        assert!(vm.huge_zero_page().pfn().is_some(), "one entry maps 2 MiB of zeros");
        let inside = start.checked_add(5 * PAGE).unwrap();
        for addr in [start, inside] {
            assert_eq!(pin(&process, addr, Access::Read, PinTerm::Short), Ok(vm.zero_page()));
        }
        assert_eq!(vm.unpin_pages(&[vm.zero_page(); 2], PinUse::Clean), 2);
        // What is pinned for long is what the process writes to later.
        let pinned = pin(&process, inside, Access::Read, PinTerm::Long).unwrap();
        assert_ne!(pinned, vm.zero_page());
        user.store(inside, &[7]).unwrap();
        let mut byte = [0];
        vm.source().read_frame(pinned, 0, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        assert_eq!(vm.unpin_pages(&[pinned], PinUse::Clean), 1);
    });
}

/// The file's first byte as the disk has it.
fn on_disk(disk: &Disk<'_>) -> u8 {
    disk.files().contents(scene::INODE).unwrap()[0]
}

fn reap(vm: &Vm<'_, Mem<'_>>) {
    while vm.reap() != 0 {
        vm.source().platform().relax();
    }
}

/// What happens to the file between the pin and what the device writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meanwhile {
    /// All is closed, and then written.
    Closed,
    /// It is written, so that the page is clean when all is closed.
    Written,
    /// The same, and it is open again when the device writes.
    Reopened,
    /// It loses the page, and then has another in its place.
    Cut,
}

#[test]
fn what_a_device_writes_to_a_file_s_page_is_the_file_s_though_nobody_has_it_open_or_mapped_any_more() {
    use Meanwhile::{Closed, Cut, Reopened, Written};
    for latency in [Latency::None, Latency::Polls(3)] {
        for meanwhile in [Closed, Written, Reopened, Cut] {
            scene::on_machine(|vm, disk| {
                disk.set_latency(latency);
                let file = scene::open(vm, disk);
                let process = scene::process(vm);
                let start = scene::map_file(&process, &file, 2, RW, MapFlags::SHARED);
                scene::store(&process, start, b'o').unwrap();
                let pinned = pin(&process, scene::at(start), Access::Write, PinTerm::Short).unwrap();
                let twice = pin(&process, scene::at(start), Access::Read, PinTerm::Short).unwrap();
                assert_eq!(pinned, twice);
                match meanwhile {
                    Written => file.sync().unwrap(),
                    Cut => {
                        file.truncate(0).unwrap();
                        file.write_at(0, b"c").unwrap();
                    }
                    Closed | Reopened => {}
                }
                process.munmap(start, 2 * PAGE).unwrap();
                drop(file);
                reap(vm);
                assert_eq!(on_disk(disk), if meanwhile == Cut { b'c' } else { b'o' });
                let open = (meanwhile == Reopened).then(|| scene::open(vm, disk));
                dma(vm, pinned, b'd');
                assert_eq!(vm.unpin_pages(&[pinned], PinUse::Dirtied), 1);
                reap(vm);
                assert_eq!(vm.unpin_pages(&[twice], PinUse::Clean), 1);
                let mut byte = [0];
                open.unwrap_or_else(|| scene::open(vm, disk)).read_at(0, &mut byte).unwrap();
                // Of what was cut off the bytes are gone by right.
                assert_eq!(byte[0], if meanwhile == Cut { b'c' } else { b'd' }, "{meanwhile:?}");
                reap(vm);
                assert_eq!(on_disk(disk), byte[0], "{meanwhile:?}");
                assert_eq!(vm.cache().pages(vm.source()), 0, "nothing is kept that nobody needs");
            });
        }
    }
}

#[test]
fn a_pinned_page_of_a_file_in_memory_goes_with_the_file_or_its_hole() {
    for with_hole in [false, true] {
        on_machine(|vm| {
            let before = free(vm);
            let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
            let file = vm.memory_file(2 * PAGE).unwrap();
            let start = scene::map_file(&process, &file, 2, RW, MapFlags::SHARED);
            let pinned = pin(&process, scene::at(start), Access::Write, PinTerm::Long).unwrap();
            if with_hole {
                process.madvise(start, PAGE, Advice::Remove as i32).unwrap();
            }
            process.munmap(start, 2 * PAGE).unwrap();
            dma(vm, pinned, b'd');
            let mut byte = [b'x'];
            file.read_at(0, &mut byte).unwrap();
            assert_eq!(byte[0], if with_hole { 0 } else { b'd' });
            drop(file);
            assert_eq!(vm.cache().pages(vm.source()), 0);
            assert_eq!(vm.unpin_pages(&[pinned], PinUse::Dirtied), 1);
            drop(process);
            assert_eq!(free(vm), before);
        });
    }
}
