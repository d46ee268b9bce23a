//! The façade's reports.

use crate::flags::GfpFlags;
use crate::phys::ZoneKind;
use crate::platform::Platform;
use crate::report::{self, Counters, Report, SlabReport};
use crate::slab::Slabs;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Memory;

/// What the façade counts.
#[derive(Debug)]
pub(super) struct Events {
    allocstall: [AtomicU64; ZoneKind::COUNT],
}

impl Events {
    pub(super) fn new() -> Self {
        Self { allocstall: [0; ZoneKind::COUNT].map(AtomicU64::new) }
    }

    /// Counts a request that has to reclaim.
    pub(super) fn note_stall(&self, gfp: GfpFlags) {
        if let Some(highest) = ZoneKind::highest_for(gfp) {
            self.allocstall[highest as usize].fetch_add(1, Relaxed);
        }
    }
}

impl<'m, P: Platform> Memory<'m, P> {
    /// [`report::buddyinfo`] of this memory.
    pub fn buddyinfo(&self) -> Report<'_, P> {
        report::buddyinfo(self.platform, &self.phys)
    }

    /// [`report::pagetypeinfo`] of this memory.
    pub fn pagetypeinfo(&self) -> Report<'_, P> {
        report::pagetypeinfo(self.platform, &self.phys)
    }

    /// [`report::zoneinfo`] of this memory.
    pub fn zoneinfo(&self) -> Report<'_, P> {
        report::zoneinfo(self.platform, &self.phys)
    }

    /// [`report::vmstat`] of this memory.
    pub fn vmstat(&self) -> Report<'_, P> {
        report::vmstat(self.platform, &self.phys, self.counters())
    }

    /// [`report::meminfo`] of this memory.
    pub fn meminfo(&self) -> Report<'_, P> {
        report::meminfo(self.platform, &self.phys, self.counters())
    }

    /// [`report::mem_info`] of this memory: the dump after a failed allocation.
    pub fn mem_info(&self) -> Report<'_, P> {
        report::mem_info(self.platform, &self.phys)
    }

    /// [`report::slabinfo`] of this memory; `None` if it has no slab allocator.
    pub fn slabinfo(&self) -> Option<SlabReport<'_, 'm, Self>> {
        Some(report::slabinfo(self.slabs.as_ref()?, self))
    }

    pub(super) fn counters(&self) -> Counters {
        let pages_of = |slabs: &Slabs<'_>| {
            slabs.large_pages() + slabs.infos(self).map(|cache| cache.num_pages).sum::<u64>()
        };
        Counters {
            allocstall: self.events.allocstall.each_ref().map(|count| count.load(Relaxed)),
            nr_slab_unreclaimable: self.slabs.as_ref().map_or(0, pages_of),
            vm: None,
        }
    }
}
