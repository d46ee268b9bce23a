//! vmalloc, vmap and ioremap: mapped for all processes, followed by a page that faults, forgotten by all CPUs before anything is free.

mod hand;

use std::collections::HashSet;

use hand::*;
use kernmm::addr::{PageOrder, Pfn, PhysAddr, VirtAddr, VirtRange};
use kernmm::flags::GfpFlags;
use kernmm::memory::{Memory, Process, SpinRwLock, Vm, VmLimits};
use kernmm::mm::Sysctl;
use kernmm::phys::PageSource;
use kernmm::platform::hosted::{LoseFlushes, Machine, Mmu};
use kernmm::platform::{CpuId, FlushScope, Platform};
use kernmm::table::{AreaKind, Caching, EntryFormat, KernelTables, Pae, PteBits, Sv39, VmallocError, X86_64};

type Mem<'m> = Memory<'m, Machine>;
type Kernel<'a, 'm, F> = KernelTables<'a, Mem<'m>, F>;

const GFP: GfpFlags = GfpFlags::KERNEL;

fn free(memory: &Mem<'_>) -> u64 {
    memory.phys().drain_all(&memory.pin());
    memory.phys().free_pages_total()
}

/// Runs a test with virtual memory in a format, on CPU 0, which walks the kernel's tables. At the end all is as it was, tables excepted.
fn on<F: EntryFormat>(format: Mmu, areas: usize, test: impl FnOnce(&Machine, &Mem<'_>, &Vm<'_, Mem<'_>, F>)) {
    let machine = machine(format);
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let limits = VmLimits { areas, ..VmLimits::for_frames(memory.phys().managed_pages()) };
    let metadata = machine.set_aside(Vm::<Mem<'_>, F>::metadata_layout(memory.phys(), &limits));
    let vm = Vm::<_, F>::new(&memory, &limits, Sysctl::for_format::<F>(), metadata).unwrap();
    machine.switch_tables(Some(vm.kernel_tables().pgd()));
    let tables = |vm: &Vm<'_, Mem<'_>, F>| u64::from(vm.kernel_tables().table().tables());
    let before = free(&memory) + tables(&vm);
    test(&machine, &memory, &vm);
    machine.switch_tables(None);
    vm.kernel_tables().check().unwrap();
    assert_eq!(vm.kernel_tables().vmalloc_pages(), 0);
    assert_eq!(free(&memory) + tables(&vm), before, "frames were lost");
}

fn kernel_byte(machine: &Machine, at: u64) -> Option<u8> {
    let mut byte = [0];
    machine.kernel_load(addr(at), &mut byte).ok().map(|()| byte[0])
}

fn allocated<F: EntryFormat>(machine: &Machine, _: &Mem<'_>, vm: &Vm<'_, Mem<'_>, F>) {
    let kernel = vm.kernel_tables();
    let old: Process<'_, '_, _, F, SpinRwLock> = Process::new(vm).unwrap();
    // More than a table and more than a batch.
    let pages = 700;
    let start = kernel.vmalloc(pages * PAGE - 5, GFP | GfpFlags::ZERO).unwrap().get();
    assert!(F::VMALLOC.contains(addr(start)));
    assert_eq!(kernel.vmalloc_pages(), pages);
    let frames: HashSet<Pfn> =
        (0..pages).filter_map(|page| kernel.frame_at(addr(start + page * PAGE))).collect();
    assert_eq!(frames.len() as u64, pages, "each page has a frame of its own");
    let text: Vec<u8> = (0..3 * PAGE).map(|at| (at % 251) as u8).collect();
    machine.kernel_store(addr(start + 510 * PAGE + 77), &text).unwrap();
    machine.switch_tables(old.with(|mm| mm.shared().pgd()));
    let mut found = vec![0; text.len()];
    machine.kernel_load(addr(start + 510 * PAGE + 77), &mut found).unwrap();
    assert!(found == text, "another process's tables lead to the same");
    assert_eq!(kernel_byte(machine, start), Some(0));
    assert!(machine.load(addr(start), &mut [0]).is_err(), "the kernel's alone");
    assert_eq!(kernel_byte(machine, start + pages * PAGE), None, "a guard page");
    kernel.check().unwrap();
    let next = kernel.vmalloc(1, GFP).unwrap().get();
    assert_eq!(next, start + (pages + 1) * PAGE);
    assert_eq!(kernel.find_area(addr(next - 1)), None);
    let area = kernel.find_area(addr(next - PAGE - 1)).unwrap();
    assert_eq!(
        (area.range().start().get(), area.bytes(), area.kind()),
        (start, pages * PAGE, AreaKind::Vmalloc)
    );
    kernel.vfree(addr(start)).unwrap();
    assert_eq!(kernel_byte(machine, start), None);
    assert_eq!(kernel.frame_at(addr(start)), None);
    assert_eq!(kernel.vmalloc(1, GFP).unwrap().get(), start, "the lowest range is taken");
    kernel.vfree(addr(start)).unwrap();
    kernel.vfree(addr(next)).unwrap();
    machine.switch_tables(None);
    drop(old);
}

#[test]
fn vmalloc_maps_frames_for_all_processes_and_frees_them() {
    on::<X86_64>(Mmu::X86_64, 8, allocated);
    on::<Pae>(Mmu::Pae, 8, allocated);
    on::<Sv39>(Mmu::Sv39, 8, allocated);
}

fn mapped<F: EntryFormat>(machine: &Machine, memory: &Mem<'_>, vm: &Vm<'_, Mem<'_>, F>) {
    let kernel = vm.kernel_tables();
    let order = PageOrder::new(1).unwrap();
    let block = memory.alloc_pages(GFP, order).unwrap();
    let single = memory.alloc_pages(GfpFlags::HIGHUSER, PageOrder::ZERO).unwrap();
    let second = block.checked_add(1).unwrap();
    let start = kernel.vmap(&[single, second, single], Caching::WriteBack).unwrap().get();
    machine.kernel_store(addr(start + 8), &[7]).unwrap();
    machine.kernel_store(addr(start + PAGE), &[8]).unwrap();
    assert_eq!(kernel_byte(machine, start + 2 * PAGE + 8), Some(7), "the same frame");
    let mut byte = [0];
    memory.read_frame(second, 0, &mut byte).unwrap();
    assert_eq!(byte, [8]);
    kernel.check().unwrap();
    let mut held = vec![];
    kernel.for_each_frame(|pfn| held.push(pfn));
    assert_eq!(held, [single, second, single]);
    // Given up while it is mapped, a frame stays until it is not.
    assert_eq!(memory.phys().page(single).map(|page| page.count()), Some(3));
    memory.put_page(single).unwrap();
    memory.put_page(block).unwrap();
    assert_eq!(kernel_byte(machine, start + 8), Some(7));
    kernel.vunmap(addr(start)).unwrap();
    assert!(memory.put_page(single).is_err(), "it is free");
}

#[test]
fn vmap_maps_frames_in_any_order_and_keeps_them() {
    on::<X86_64>(Mmu::X86_64, 8, mapped);
    on::<Pae>(Mmu::Pae, 8, mapped);
    on::<Sv39>(Mmu::Sv39, 8, mapped);
}

fn device<F: EntryFormat>(machine: &Machine, memory: &Mem<'_>, vm: &Vm<'_, Mem<'_>, F>) {
    let kernel = vm.kernel_tables();
    let phys = |at: u64| PhysAddr::new(at).unwrap();
    for (caching, bits) in [
        (Caching::WriteBack, PteBits::empty()),
        (Caching::WriteCombining, PteBits::WRITE_COMBINING),
        (Caching::Uncached, PteBits::UNCACHED),
    ] {
        // Two bytes on either side of a page's end.
        let start = kernel.ioremap(phys(0xfee0_0ffe), 4, caching).unwrap().get();
        assert_eq!(start % PAGE, 0xffe);
        assert_eq!(kernel_byte(machine, start + 3), Some(0xff), "nobody is there");
        assert_eq!(kernel_byte(machine, start + 2 + PAGE), None);
        let pin = memory.pin();
        let entry = kernel.table().get(&pin, addr(start + 2)).mapped().unwrap();
        drop(pin);
        assert_eq!(entry.pfn.get(), 0xfee01);
        let kinds = PteBits::WRITE_COMBINING | PteBits::UNCACHED | PteBits::USER | PteBits::EXEC;
        assert_eq!(entry.bits & kinds, bits);
        let area = kernel.find_area(addr(start)).unwrap();
        assert_eq!(area.kind(), AreaKind::Ioremap(phys(0xfee0_0ffe), caching));
        kernel.check().unwrap();
        kernel.iounmap(addr(start)).unwrap();
        assert_eq!(kernel_byte(machine, start), None);
    }
    let ram = kernel.ioremap(phys(20 << 20), 1, Caching::Uncached);
    assert_eq!(ram, Err(VmallocError::Ram(Pfn::new(5 << 10).unwrap())));
    let top = phys((1 << 52) - 1);
    assert_eq!(kernel.ioremap(top, 2, Caching::Uncached), Err(VmallocError::BadLength));
    let too_much = kernel.ioremap(phys(1 << 46), 1 << 51, Caching::Uncached);
    assert_eq!(too_much, Err(VmallocError::NoRange), "and nobody walks through all of it");
    assert_eq!(kernel.ioremap(phys(0), 0, Caching::Uncached), Err(VmallocError::BadLength));
    assert_eq!(kernel.ioremap(phys(1), u64::MAX, Caching::Uncached), Err(VmallocError::BadLength));
}

#[test]
fn ioremap_maps_a_device_as_it_is_to_be_cached_and_never_ram() {
    on::<X86_64>(Mmu::X86_64, 8, device);
    on::<Pae>(Mmu::Pae, 8, device);
    on::<Sv39>(Mmu::Sv39, 8, device);
}

#[test]
fn every_cause_of_failure_has_its_name_and_changes_nothing() {
    on::<X86_64>(Mmu::X86_64, 3, |_, memory, vm| {
        let kernel = vm.kernel_tables();
        assert_eq!(kernel.vmalloc(0, GFP), Err(VmallocError::BadLength));
        assert_eq!(kernel.vmalloc(u64::MAX, GFP), Err(VmallocError::BadLength));
        let more = (memory.phys().managed_pages() + 1) * PAGE;
        assert_eq!(kernel.vmalloc(more, GFP), Err(VmallocError::BadLength));
        assert_eq!(kernel.vmap(&[], Caching::WriteBack), Err(VmallocError::BadLength));
        let whole = kernel.vmalloc(more - PAGE, GFP);
        assert_eq!(whole, Err(VmallocError::OutOfMemory), "page tables and the kernel have some");
        kernel.check().unwrap();
        let one = kernel.vmalloc(PAGE, GFP).unwrap();
        assert_eq!(kernel.vfree(addr(one.get() + PAGE)), Err(VmallocError::NoArea));
        assert_eq!(kernel.vunmap(one), Err(VmallocError::OtherKind));
        assert_eq!(kernel.iounmap(one), Err(VmallocError::OtherKind));
        let free_frame = memory.alloc_pages(GFP, PageOrder::ZERO).unwrap();
        memory.free_pages(free_frame, PageOrder::ZERO).unwrap();
        memory.phys().drain_all(&memory.pin());
        let held = kernel.frame_at(one).unwrap();
        let foreign = Pfn::new(1 << 30).unwrap();
        for bad in [free_frame, foreign] {
            assert_eq!(kernel.vmap(&[held, bad], Caching::WriteBack), Err(VmallocError::BadFrame(bad)));
        }
        assert_eq!(memory.phys().page(held).map(|page| page.count()), Some(1));
        let huge = kernel.ioremap(PhysAddr::new(1 << 40).unwrap(), 1 << 40, Caching::Uncached);
        assert_eq!(huge, Err(VmallocError::NoRange));
        let others = [kernel.vmalloc(1, GFP).unwrap(), kernel.vmalloc(1, GFP).unwrap()];
        assert_eq!(kernel.vmalloc(1, GFP), Err(VmallocError::TooManyAreas));
        for area in [one, others[1], others[0]] {
            kernel.vfree(area).unwrap();
            assert_eq!(kernel.vfree(area), Err(VmallocError::NoArea), "twice");
        }
    });
}

#[test]
fn all_cpus_forget_exactly_what_was_unmapped() {
    on::<X86_64>(Mmu::X86_64, 8, |machine, _, vm| {
        let kernel = vm.kernel_tables();
        let (small, large) =
            (kernel.vmalloc(2 * PAGE, GFP).unwrap(), kernel.vmalloc(400 * PAGE, GFP).unwrap());
        machine.record_flushes();
        let flushed =
            || machine.take_flushes().into_iter().map(|(on, flush)| (on, flush.scope)).collect::<Vec<_>>();
        let range = |start: VirtAddr, pages: u64| VirtRange::with_len(start, pages * PAGE).unwrap();
        kernel.vfree(small).unwrap();
        assert_eq!(flushed(), [(cpus(&[0, 1, 2]), FlushScope::Kernel(range(small, 2)))]);
        kernel.vfree(large).unwrap();
        let (mut at, all) = (large, flushed());
        for (on, scope) in all {
            let FlushScope::Kernel(part) = scope else { panic!("{scope:?}") };
            assert_eq!((on, part.start()), (cpus(&[0, 1, 2]), at));
            at = part.end();
        }
        assert_eq!(at, range(large, 400).end());
    });
}

/// Another CPU has looked at an area, through a process's tables; then it is freed.
fn freed_while_another_cpu_knows_it(lost: LoseFlushes) {
    let machine = machine(Mmu::X86_64);
    let _cpus = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let kernel = vm.kernel_tables();
    let process: Process<'_, '_, _, X86_64, SpinRwLock> = Process::new(&vm).unwrap();
    let start = kernel.vmalloc(40 * PAGE, GFP | GfpFlags::ZERO).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _other = machine.cpu(CpuId(1)).unwrap();
            process.activate().unwrap();
            for page in 0..40 {
                assert_eq!(kernel_byte(&machine, start.get() + page * PAGE), Some(0));
            }
        });
    });
    machine.lose_flushes(lost);
    kernel.vfree(start).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _other = machine.cpu(CpuId(1)).unwrap();
            assert_eq!(kernel_byte(&machine, start.get()), None);
            process.deactivate();
        });
    });
}

#[test]
fn frames_are_free_only_when_no_cpu_knows_them() {
    freed_while_another_cpu_knows_it(LoseFlushes::None);
}

#[test]
fn a_flush_that_another_cpu_misses_ends_the_run() {
    if is_alone() {
        return freed_while_another_cpu_knows_it(LoseFlushes::Remote);
    }
    let output = run_alone("a_flush_that_another_cpu_misses_ends_the_run");
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("freed while CPU 1 translates"), "{said}");
}

#[test]
fn several_cpus_allocate_and_free_at_once() {
    let machine = machine(Mmu::Sv39);
    let memory = {
        let _cpu = machine.cpu(CpuId::BOOT).unwrap();
        Memory::on(&machine).unwrap()
    };
    let vm = {
        let _cpu = machine.cpu(CpuId::BOOT).unwrap();
        Vm::<_, Sv39>::on(&memory).unwrap()
    };
    let kernel: &Kernel<'_, '_, Sv39> = vm.kernel_tables();
    std::thread::scope(|scope| {
        for cpu in 0..3 {
            let machine = &machine;
            scope.spawn(move || {
                let _cpu = machine.cpu(CpuId(cpu)).unwrap();
                machine.switch_tables(Some(kernel.pgd()));
                let mut have = vec![];
                for round in 0..200_u64 {
                    let at = kernel.vmalloc((round % 7 + 1) * PAGE, GFP).unwrap();
                    machine.kernel_store(at, &[cpu as u8; 8]).unwrap();
                    have.push(at);
                    if round % 3 != 0 {
                        let old = have.swap_remove(round as usize % have.len());
                        assert_eq!(kernel_byte(machine, old.get()), Some(cpu as u8));
                        kernel.vfree(old).unwrap();
                    }
                    if have.len() > 12 {
                        have.drain(..).for_each(|at| kernel.vfree(at).unwrap());
                    }
                }
                have.drain(..).for_each(|at| kernel.vfree(at).unwrap());
                machine.switch_tables(None);
            });
        }
    });
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    kernel.check().unwrap();
    assert_eq!(kernel.vmalloc_pages(), 0);
    // While the thread still has a CPU.
    drop(vm);
}
