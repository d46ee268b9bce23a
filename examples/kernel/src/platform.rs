//! kernmm's hooks: all that the library has to know of this machine.

use core::ptr::NonNull;

use kernmm::addr::{PAGE_SIZE_U64, Pfn};
use kernmm::platform::{CpuId, Kick, Platform};

use crate::{cpu, paging, x86};

/// This machine: all RAM in the direct map, CPUs that interrupt each other.
pub struct Machine;

/// The one there is.
pub static MACHINE: Machine = Machine;

// SAFETY:
// - `direct_map`: `paging` maps RAM at a fixed distance, so consecutive frames have consecutive addresses. Who does not own
//   a frame does not touch it: the kernel's own image and tables are reserved in the map that kernmm is given.
// - `virt_to_pfn` is its inverse, for the same addresses.
// - `irq_save` keeps interrupts out, and nothing else could take the CPU away.
// - `cpu_id`: CPUs are numbered from 0 without gaps.
// - `kick` never says that a CPU is halted.
unsafe impl Platform for Machine {
    fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        let at = pfn.addr().get();
        NonNull::new(paging::direct_map(at)).filter(|_| paging::is_mapped(at, PAGE_SIZE_U64))
    }

    fn virt_to_pfn(&self, address: NonNull<u8>) -> Option<Pfn> {
        let at = paging::direct_map_offset(address)?;
        Pfn::new(at / PAGE_SIZE_U64)
    }

    fn irq_save(&self) -> usize {
        let were_enabled = x86::interrupts_enabled();
        x86::disable_interrupts();
        usize::from(were_enabled)
    }

    unsafe fn irq_restore(&self, were_enabled: usize) {
        if were_enabled != 0 {
            x86::enable_interrupts();
        }
    }

    fn cpu_id(&self) -> CpuId {
        CpuId(cpu::id() as u32)
    }

    fn kick(&self, cpu: CpuId) -> Kick {
        cpu::kick(cpu.index());
        Kick::Sent
    }
}
