//! Many blocks at once.

use crate::addr::{PageOrder, Pfn};
use crate::flags::GfpFlags;
use crate::platform::CpuPin;

use super::Phys;
use super::error::{AllocError, FreeError};

impl Phys<'_> {
    /// Allocates blocks of one order until `out` is full or memory is short; answers with how many there are, at least one.
    ///
    /// # Errors
    /// Those of [`alloc_pages`](Self::alloc_pages) for the first block; [`AllocError::InvalidCount`] if `out` is empty.
    ///
    /// # Linux
    /// `alloc_pages_bulk` in `mm/page_alloc.c`, for any order.
    pub fn alloc_pages_bulk(
        &self,
        pin: &CpuPin<'_>,
        gfp: GfpFlags,
        order: PageOrder,
        out: &mut [Pfn],
    ) -> Result<usize, AllocError> {
        let (first, rest) = out.split_first_mut().ok_or(AllocError::InvalidCount)?;
        *first = self.alloc_pages(pin, gfp, order)?;
        let mut count = 1;
        for slot in rest {
            let Ok(pfn) = self.alloc_pages(pin, gfp, order) else { break };
            *slot = pfn;
            count += 1;
        }
        Ok(count)
    }

    /// Frees blocks of one order.
    ///
    /// # Errors
    /// [`FreeError`] and the place of the first block that was not freed; those before it were, those after it were not.
    pub fn free_pages_bulk(
        &self,
        pin: &CpuPin<'_>,
        blocks: &[Pfn],
        order: PageOrder,
    ) -> Result<(), (usize, FreeError)> {
        blocks
            .iter()
            .enumerate()
            .try_for_each(|(at, &pfn)| self.free_pages(pin, pfn, order).map_err(|error| (at, error)))
    }

    /// Whether [`free_pages`](Self::free_pages) would free this block; changes nothing.
    ///
    /// # Errors
    /// As `free_pages`.
    pub fn may_free(&self, pfn: Pfn, order: PageOrder) -> Result<(), FreeError> {
        let (index, page) = self.sections.find(pfn).ok_or(FreeError::Foreign)?;
        let zone = self.zone(page.zone()).ok_or(FreeError::Foreign)?;
        super::free::verdict(zone, index, page, order)
    }
}
