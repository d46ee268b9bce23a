//! A given range of frames.

use crate::addr::{PageOrder, Pfn, PfnRange};
use crate::flags::PageFlags;
use crate::platform::CpuPin;

use super::cpu_pages::list_of;
use super::error::AllocError;
use super::migrate::MigrateType;
use super::page::{BlockWord, PageState};
use super::{Patience, Phys};

impl Phys<'_> {
    /// Allocates the frames of `range`, if all of them are free and of one zone. Each is then a block of its own.
    ///
    /// The lists of all CPUs are drained first. Watermarks do not hold.
    ///
    /// # Errors
    /// [`AllocError::InvalidCount`] for an empty range; [`AllocError::RangeBusy`] with the first frame that cannot be had; [`AllocError::UnknownCpu`]. Nothing has
    /// changed, but that lists were drained and blocks merged.
    ///
    /// # Locking
    /// As [`drain_all`](Self::drain_all), then the zone's lock for a time that grows with the range.
    ///
    /// # Linux
    /// `alloc_contig_range` in `mm/page_alloc.c`, without moving pages out of the way.
    #[doc(alias = "alloc_contig_range")]
    pub fn alloc_range(&self, pin: &CpuPin<'_>, range: PfnRange) -> Result<(), AllocError> {
        if range.is_empty() {
            return Err(AllocError::InvalidCount);
        }
        let busy = AllocError::RangeBusy(range.start());
        let zone = self.zone_of(range.start()).ok_or(busy)?;
        if range.end() > zone.span().span.end() {
            return Err(AllocError::RangeBusy(zone.span().span.end().max(range.start())));
        }
        let own = zone.cpu_pages.get(pin.cpu().index()).ok_or(AllocError::UnknownCpu)?;
        let _starving = self.gather(pin, Patience::Waits, self.zones.iter());
        let mut buddy = zone.lock(pin);
        buddy.coalesce(&zone.map);
        let free_index = |pfn: Pfn| {
            let index = zone.map.index_of(pfn)?;
            let (_, word) = zone.map.head_of(index)?;
            (word.state() == PageState::Free).then_some(index)
        };
        if let Some(pfn) = range.iter().find(|&pfn| free_index(pfn).is_none()) {
            return Err(AllocError::RangeBusy(pfn));
        }
        let word = BlockWord::new(PageState::Allocated, PageOrder::ZERO, MigrateType::Unmovable);
        for index in range.iter().filter_map(free_index) {
            let taken = buddy.take_at(&zone.map, index, PageOrder::ZERO);
            debug_assert!(taken, "the frame was found free under this lock");
            zone.map.page(index).hand_out(word, PageFlags::empty());
            own.list(list_of(PageOrder::ZERO, MigrateType::Unmovable)).note_allocated();
        }
        Ok(())
    }
}
