//! Runs recorded page allocations through the façade.

use std::collections::BTreeMap;

use kernmm::addr::{PageOrder, Pfn};
use kernmm::flags::GfpFlags;
use kernmm::memory::Memory;
use kernmm::phys::FreeError;
use kernmm::platform::hosted::{CpuGuard, Machine};

use crate::recording::Event;

/// What came of a workload.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    /// Blocks allocated and freed.
    pub(crate) allocated: u64,
    pub(crate) freed: u64,
    /// Requests that failed.
    pub(crate) failed: u64,
    /// Frees of pages that were allocated before the recording began.
    pub(crate) older: u64,
}

#[derive(Clone, Copy)]
struct Live {
    pfn: Pfn,
    order: PageOrder,
}

/// A workload on its way: recorded blocks and those that stand for them here.
pub(crate) struct Workload<'a, 'm> {
    memory: &'a Memory<'m, Machine>,
    cpus: &'a [CpuGuard<'m>],
    /// By recorded frame; a block of order 10 is two of order 9.
    live: BTreeMap<u64, Live>,
    outcome: Outcome,
}

impl<'a, 'm> Workload<'a, 'm> {
    pub(crate) fn new(memory: &'a Memory<'m, Machine>, cpus: &'a [CpuGuard<'m>]) -> Self {
        Self { memory, cpus, live: BTreeMap::new(), outcome: Outcome::default() }
    }

    /// Does what was recorded, on the CPU where it happened.
    pub(crate) fn step(&mut self, event: Event) -> Result<(), FreeError> {
        match event {
            Event::Alloc { cpu, pfn, order, gfp } => {
                halves(pfn, order).try_for_each(|(pfn, order)| self.alloc(cpu, pfn, order, gfp))
            }
            Event::Free { cpu, pfn, order } | Event::FreeOther { cpu, pfn, order } => {
                halves(pfn, order).try_for_each(|(pfn, order)| self.free(cpu, pfn, order))
            }
        }
    }

    /// Frees all that is still in use.
    pub(crate) fn finish(mut self) -> Result<Outcome, FreeError> {
        for (_, block) in std::mem::take(&mut self.live) {
            self.release(0, block)?;
        }
        Ok(self.outcome)
    }

    fn on<R>(&self, cpu: u32, work: impl FnOnce() -> R) -> R {
        self.cpus[cpu as usize % self.cpus.len()].run(work)
    }

    fn alloc(&mut self, cpu: u32, recorded: u64, order: PageOrder, gfp: GfpFlags) -> Result<(), FreeError> {
        let block = self.on(cpu, || self.memory.alloc_pages(gfp | GfpFlags::NOWARN, order));
        let Ok(pfn) = block else {
            self.outcome.failed += 1;
            return Ok(());
        };
        self.outcome.allocated += 1;
        // A page that was recorded as allocated twice: the free between was not seen, so it happens now.
        match self.live.insert(recorded, Live { pfn, order }) {
            Some(old) => self.release(cpu, old),
            None => Ok(()),
        }
    }

    /// Frees a block, or pages inside a larger one, which its owner has split.
    fn free(&mut self, cpu: u32, recorded: u64, order: PageOrder) -> Result<(), FreeError> {
        let around = self.live.range(..=recorded).next_back().map(|(&first, &live)| (first, live));
        let inside = |&(first, live): &(u64, Live)| {
            order <= live.order && recorded + order.pages() <= first + live.order.pages()
        };
        let Some((first, live)) = around.filter(inside) else {
            self.outcome.older += 1;
            return Ok(());
        };
        if live.order != order {
            self.on(cpu, || self.memory.phys().split_pages(&self.memory.pin(), live.pfn, live.order, order))?;
            for at in (0..live.order.pages()).step_by(order.pages() as usize) {
                let pfn = live.pfn.checked_add(at).unwrap_or(live.pfn);
                self.live.insert(first + at, Live { pfn, order });
            }
        }
        match self.live.remove(&recorded) {
            Some(part) => self.release(cpu, part),
            None => Ok(()),
        }
    }

    fn release(&mut self, cpu: u32, block: Live) -> Result<(), FreeError> {
        self.outcome.freed += 1;
        self.on(cpu, || self.memory.free_pages(block.pfn, block.order))
    }
}

/// A recorded block as blocks of ours: one of order 10 is two of order 9.
fn halves(pfn: u64, order: u8) -> impl Iterator<Item = (u64, PageOrder)> {
    let size = PageOrder::new(order).unwrap_or(PageOrder::MAX);
    (0..1_u64 << (order - size.get())).map(move |part| (pfn + part * size.pages(), size))
}
