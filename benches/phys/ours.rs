//! kernmm: the default configuration, release checks on, called as an embedder calls it.

use crate::frames::{CPUS, FRAMES, Frames};
use kernmm::addr::{PAGE_SIZE_U64, PageOrder, Pfn};
use kernmm::flags::GfpFlags;
use kernmm::phys::{Config, Phys, Plan, ZoneLimits};
use kernmm::platform::{CpuId, CpuPin, Kick, MemoryKind, MemoryRange, Platform};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// Down to the last frame, so that "all" means all; above the watermarks the flags do not matter.
const GFP: GfpFlags = GfpFlags::KERNEL.union(GfpFlags::MEMALLOC);

/// Threads as CPUs, without interrupts.
struct Threads;

// SAFETY: no frame has an address; one thread at a time is a CPU, and nothing interrupts it; `kick` never says that a CPU is halted.
unsafe impl Platform for Threads {
    fn direct_map(&self, _pfn: Pfn) -> Option<NonNull<u8>> {
        None
    }

    fn kick(&self, _cpu: CpuId) -> Kick {
        Kick::Sent
    }
}

/// kernmm's frames.
pub struct Kernmm {
    phys: Phys<'static>,
    metadata_bytes: u64,
}

/// A CPU at work, as a kernel's is inside the kernel: pinned. It lets others have its lists when it goes.
pub struct Cpu<'a> {
    phys: &'a Phys<'static>,
    pin: CpuPin<'static>,
}

impl Drop for Cpu<'_> {
    fn drop(&mut self) {
        self.phys.idle(&self.pin);
    }
}

fn pin(id: usize) -> CpuPin<'static> {
    // SAFETY: the workloads give an id to one thread at a time, and nothing interrupts a thread.
    unsafe { CpuPin::new(&Threads, CpuId(id as u32)) }
}

#[cold]
fn misused() -> ! {
    panic!("a workload freed what it did not have");
}

impl Frames for Kernmm {
    type Cpu<'a> = Cpu<'a>;
    const NAME: &'static str = "kernmm";

    fn new() -> Self {
        let ram = [MemoryRange { base: 0, len: FRAMES * PAGE_SIZE_U64, kind: MemoryKind::Usable }];
        // All of it is one zone, as with the peers.
        let zones = ZoneLimits { dma_end: Pfn::ZERO, ..ZoneLimits::default() };
        let config = Config { cpus: &[0; CPUS], zones, ..Config::default() };
        let plan = Plan::new(ram.iter().copied(), &config).expect("a plain memory map");
        let layout = plan.metadata_layout();
        let memory =
            Box::leak(vec![MaybeUninit::uninit(); layout.size() + layout.align()].into_boxed_slice());
        let unaligned = memory.as_ptr().align_offset(layout.align());
        let memory = &mut memory[unaligned..][..layout.size()];
        let phys =
            Phys::init(&pin(0), ram.iter().copied(), &config, memory).expect("what the plan asked for");
        Self { phys, metadata_bytes: layout.size() as u64 }
    }

    fn cpu(&self, id: usize) -> Cpu<'_> {
        Cpu { phys: &self.phys, pin: pin(id) }
    }

    #[inline(never)]
    fn alloc(&self, cpu: &mut Cpu<'_>, order: u32) -> Option<u64> {
        let order = PageOrder::new(order as u8)?;
        let pfn = self.phys.alloc_pages(&cpu.pin, GFP, order).ok()?;
        Some(pfn.get())
    }

    #[inline(never)]
    fn free(&self, cpu: &mut Cpu<'_>, pfn: u64, order: u32) {
        let (Some(pfn), Some(order)) = (Pfn::new(pfn), PageOrder::new(order as u8)) else { misused() };
        if self.phys.free_pages(&cpu.pin, pfn, order).is_err() {
            misused();
        }
    }

    fn metadata_bytes(&self) -> Option<u64> {
        Some(self.metadata_bytes)
    }
}
