//! kernmm: the default configuration, release checks on, called as an embedder calls it.

use crate::frames::{CPUS, FRAMES, Frames};
use kernmm::addr::{PAGE_SIZE_U64, PageOrder, Pfn};
use kernmm::flags::GfpFlags;
use kernmm::phys::{Config, MemoryKind, MemoryRange, Phys, Plan};
use kernmm::platform::{CpuId, Kick, Platform};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// RAM begins above the DMA zone, so that all of it is one zone as with the peers.
const BASE: u64 = FRAMES;

/// Down to the last frame, so that "all" means all; above the watermarks the flags do not matter.
const GFP: GfpFlags = GfpFlags::KERNEL.union(GfpFlags::MEMALLOC);

thread_local! {
    static CPU: Cell<u32> = const { Cell::new(0) };
}

/// Threads as CPUs, without interrupts.
struct Threads;

// SAFETY: no frame has an address; a thread keeps the id that `Kernmm::cpu` gave it, the workloads give an id to one thread at a time,
// and nothing interrupts it; `kick` never says that a CPU is halted.
unsafe impl Platform for Threads {
    fn direct_map(&self, _pfn: Pfn) -> Option<NonNull<u8>> {
        None
    }

    #[inline]
    fn cpu_id(&self) -> CpuId {
        CpuId(CPU.get())
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

/// A CPU at work; it lets others have its lists when it goes.
pub struct Cpu<'a>(&'a Phys<'static>);

impl Drop for Cpu<'_> {
    fn drop(&mut self) {
        self.0.idle(&Threads.pin());
    }
}

impl Frames for Kernmm {
    type Cpu<'a> = Cpu<'a>;
    const NAME: &'static str = "kernmm";

    fn new() -> Self {
        let ram = [MemoryRange {
            base: BASE * PAGE_SIZE_U64,
            len: FRAMES * PAGE_SIZE_U64,
            kind: MemoryKind::Usable,
        }];
        let config = Config { cpus: &[0; CPUS], ..Config::default() };
        let plan = Plan::new(ram.iter().copied(), &config).expect("a plain memory map");
        let layout = plan.metadata_layout();
        let memory =
            Box::leak(vec![MaybeUninit::uninit(); layout.size() + layout.align()].into_boxed_slice());
        let unaligned = memory.as_ptr().align_offset(layout.align());
        let memory = &mut memory[unaligned..][..layout.size()];
        let phys = Phys::init(&Threads.pin(), ram.iter().copied(), &config, memory)
            .expect("what the plan asked for");
        Self { phys, metadata_bytes: layout.size() as u64 }
    }

    fn cpu(&self, id: usize) -> Cpu<'_> {
        CPU.set(id as u32);
        Cpu(&self.phys)
    }

    #[inline(never)]
    fn alloc(&self, _cpu: &mut Cpu<'_>, order: u32) -> Option<u64> {
        let order = PageOrder::new(order as u8)?;
        let pfn = self.phys.alloc_pages(&Threads.pin(), GFP, order).ok()?;
        Some(pfn.get() - BASE)
    }

    #[inline(never)]
    fn free(&self, _cpu: &mut Cpu<'_>, pfn: u64, order: u32) {
        let block = Pfn::new(BASE + pfn).zip(PageOrder::new(order as u8));
        let freed =
            block.is_some_and(|(pfn, order)| self.phys.free_pages(&Threads.pin(), pfn, order).is_ok());
        assert!(freed, "a workload freed what it did not have");
    }

    fn metadata_bytes(&self) -> Option<u64> {
        Some(self.metadata_bytes)
    }
}
