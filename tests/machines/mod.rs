//! Machines that page tables are tried on.

use kernmm::addr::PhysAddr;
use kernmm::memory::Memory;
use kernmm::platform::CpuId;
use kernmm::platform::hosted::Machine;

/// Runs a test on a machine with all RAM in the direct map and on one with most of it in HIGHMEM. Afterwards all frames are back.
pub(crate) fn on_machines(test: impl Fn(&Memory<'_, Machine>)) {
    for highmem in [false, true] {
        let builder = Machine::pc(32 << 20);
        let builder = if highmem { builder.highmem_from(PhysAddr::new(8 << 20).unwrap()) } else { builder };
        let machine = builder.build().unwrap();
        let _cpu = machine.cpu(CpuId::BOOT).unwrap();
        let memory = Memory::on(&machine).unwrap();
        let free = memory.phys().free_pages_total();
        test(&memory);
        memory.phys().drain_all(&memory.pin());
        assert_eq!(memory.phys().free_pages_total(), free, "nothing leaks");
        assert_eq!(machine.kmap_leaks(), 0);
    }
}
