//! The kernel's half of the addresses is the same in every process, be it the library's own or the one that a kernel booted with.

mod hand;

use hand::*;
use kernmm::addr::{PageOrder, Pfn, VirtRange};
use kernmm::flags::GfpFlags;
use kernmm::memory::{Memory, Process, SpinRwLock, Vm};
use kernmm::platform::hosted::{Machine, Mmu};
use kernmm::platform::{Access, Platform};
use kernmm::table::{EntryFormat, Pae, PteBits, Sv39, TableError, X86_64};

type Mem<'m> = Memory<'m, Machine>;
type Proc<'v, 'a, 'm, F> = Process<'v, 'a, Mem<'m>, F, SpinRwLock>;

const RW: PteBits = PteBits::READ.union(PteBits::WRITE).union(PteBits::GLOBAL);

fn range(start: u64, len: u64) -> VirtRange {
    VirtRange::with_len(addr(start), len).unwrap()
}

fn free(memory: &Mem<'_>) -> u64 {
    memory.phys().drain_all(&memory.pin());
    memory.phys().free_pages_total()
}

/// What the kernel reads through the tables with this root.
fn byte(machine: &Machine, root: Pfn, at: u64) -> u8 {
    machine.switch_tables(Some(root));
    let mut byte = [0];
    machine.kernel_load(addr(at), &mut byte).unwrap();
    byte[0]
}

fn root_of<F: EntryFormat>(process: &Proc<'_, '_, '_, F>) -> Pfn {
    process.with(|mm| mm.shared().pgd()).unwrap()
}

fn kernel_bits(format: Mmu) -> u64 {
    match format {
        Mmu::Sv39 => sv39::V | sv39::R | sv39::W,
        _ => x86::P | x86::RW,
    }
}

/// Runs a test on a machine of a format with virtual memory and with tables by hand.
fn with_vm<F: EntryFormat>(
    format: Mmu,
    test: impl for<'a, 'm> FnOnce(&'m Machine, &Hand<'a>, Vm<'a, Mem<'m>, F>),
) {
    let machine = machine(format);
    let _cpus = machine.all_cpus().unwrap();
    let memory = Memory::on(&machine).unwrap();
    let hand = Hand::new(&memory, format);
    test(&machine, &hand, Vm::on(&memory).unwrap());
    machine.switch_tables(None);
}

fn shared_by_all<F: EntryFormat>(format: Mmu) {
    with_vm::<F>(format, |machine, hand, vm| {
        let before: Proc<'_, '_, '_, F> = Process::new(&vm).unwrap();
        let frame = hand.frame(0x5a);
        let at = F::VMALLOC.start().get() + 7 * PAGE;
        let kernel = vm.kernel_tables();
        kernel.table().map_range(range(at, PAGE), frame, RW, GfpFlags::KERNEL).unwrap();
        let after: Proc<'_, '_, '_, F> = Process::new(&vm).unwrap();
        let child = before.fork().unwrap();
        for root in [root_of(&before), root_of(&after), root_of(&child), kernel.pgd()] {
            assert_eq!(byte(machine, root, at), 0x5a);
            let user = machine.load(addr(at), &mut [0]);
            assert_eq!(user, Err(fault(at, Access::Read, true)), "the kernel's alone");
        }
        kernel.table().check().unwrap();
        machine.switch_tables(None);
        drop((before, child));
        assert_eq!(byte(machine, root_of(&after), at), 0x5a, "a process that ends takes nothing along");
        machine.switch_tables(None);
    });
}

#[test]
fn what_is_mapped_in_the_kernels_half_is_seen_by_processes_older_and_younger() {
    shared_by_all::<X86_64>(Mmu::X86_64);
    shared_by_all::<Pae>(Mmu::Pae);
    shared_by_all::<Sv39>(Mmu::Sv39);
}

fn boots_on_tables_of_its_own<F: EntryFormat>(format: Mmu) {
    with_vm::<F>(format, |machine, hand, mut vm| {
        let image = F::KERNEL_START + (5 << 30) + 3 * PAGE;
        hand.map(image, hand.frame(0x42), kernel_bits(format));
        // What is in the lower half while a kernel starts is none of a process's.
        hand.map(AT, hand.frame(0x43), hand.all());
        vm.adopt_kernel_half(hand.root, F::VMALLOC).unwrap();
        let kernel = vm.kernel_tables();
        assert_ne!(kernel.pgd(), hand.root);
        assert_eq!(kernel.vmalloc_range(), F::VMALLOC);
        kernel.table().check().unwrap();
        let process: Proc<'_, '_, '_, F> = Process::new(&vm).unwrap();
        let at = F::VMALLOC.end().get() - PAGE;
        kernel.table().map_range(range(at, PAGE), hand.frame(0x5a), RW, GfpFlags::KERNEL).unwrap();
        for root in [kernel.pgd(), root_of(&process), hand.root] {
            assert_eq!(byte(machine, root, image), 0x42);
            assert_eq!(byte(machine, root, at), 0x5a);
        }
        machine.switch_tables(Some(root_of(&process)));
        assert_eq!(machine.load(addr(AT), &mut [0]), Err(fault(AT, Access::Read, false)));
        kernel.table().check().unwrap();
        machine.switch_tables(None);
    });
}

#[test]
fn a_kernel_hands_the_tables_over_that_it_booted_on() {
    boots_on_tables_of_its_own::<X86_64>(Mmu::X86_64);
    boots_on_tables_of_its_own::<Sv39>(Mmu::Sv39);
}

fn refuses<F: EntryFormat>(format: Mmu) {
    with_vm::<F>(format, |_, hand, mut vm| {
        let memory = hand.memory;
        let own = vm.kernel_tables().pgd();
        hand.map(F::KERNEL_START + PAGE, hand.frame(1), kernel_bits(format));
        let before = free(memory);
        let mut adopt = |boot, vmalloc| vm.adopt_kernel_half(boot, vmalloc);
        assert_eq!(adopt(hand.root, range(0, LARGE)), Err(TableError::OutOfRange), "not the kernel's");
        let below = range(F::KERNEL_START - PAGE, LARGE);
        assert_eq!(adopt(hand.root, below), Err(TableError::OutOfRange), "in part");
        assert_eq!(adopt(hand.root, range(F::KERNEL_START, 0)), Err(TableError::OutOfRange), "empty");
        let taken = range(F::KERNEL_START + LARGE, LARGE);
        assert_eq!(adopt(hand.root, taken), Err(TableError::Occupied), "behind the same entry of the root");
        assert_eq!(vm.kernel_tables().pgd(), own);
        assert_eq!(free(memory), before);
    });
}

#[test]
fn what_cannot_be_taken_over_changes_nothing() {
    refuses::<X86_64>(Mmu::X86_64);
    refuses::<Pae>(Mmu::Pae);
    refuses::<Sv39>(Mmu::Sv39);
}

#[test]
fn out_of_memory_while_taking_over_changes_nothing() {
    with_vm::<X86_64>(Mmu::X86_64, |_, hand, mut vm| {
        let memory = hand.memory;
        hand.map(X86_64::KERNEL_START, hand.frame(1), kernel_bits(Mmu::X86_64));
        // Two frames are left, of which the root takes one, and ten tables are asked for.
        let vmalloc = range(X86_64::VMALLOC.start().get(), 10 << 39);
        let mut taken = vec![];
        while let Ok(pfn) = memory.alloc_pages(GfpFlags::KERNEL, PageOrder::ZERO) {
            taken.push(pfn);
        }
        let spare: Vec<Pfn> = taken.drain(..2).collect();
        spare.iter().for_each(|&pfn| memory.free_pages(pfn, PageOrder::ZERO).unwrap());
        let boot = |hand: &Hand<'_>| (0..512).map(|at| hand.read(hand.root, at)).collect::<Vec<_>>();
        let (before, entries) = (free(memory), boot(hand));
        assert_eq!(vm.adopt_kernel_half(hand.root, vmalloc), Err(TableError::OutOfMemory));
        assert_eq!((free(memory), boot(hand)), (before, entries));
        taken.iter().for_each(|&pfn| memory.free_pages(pfn, PageOrder::ZERO).unwrap());
        vm.adopt_kernel_half(hand.root, vmalloc).unwrap();
    });
}
