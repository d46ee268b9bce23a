//! Freeing.

use crate::addr::{PageOrder, Pfn, PfnRange};
use crate::phys::FreeError;
use crate::platform::Platform;

use super::Memory;

impl<P: Platform> Memory<'_, P> {
    /// Frees a block that was allocated with `order`.
    ///
    /// # Errors
    /// [`FreeError`]; nothing has changed.
    ///
    /// # Linux
    /// `__free_pages` in `mm/page_alloc.c`.
    pub fn free_pages(&self, pfn: Pfn, order: PageOrder) -> Result<(), FreeError> {
        let pin = self.pin();
        if self.is_poisoning() {
            self.phys.may_free(pfn, order)?;
            self.poison_block(&pin, pfn, order);
        }
        self.platform.frames_freed(pfn, order);
        self.phys.free_pages(&pin, pfn, order)
    }

    /// Frees frames that are a block each.
    ///
    /// # Errors
    /// [`FreeError`] for the first frame that cannot be freed; nothing has changed.
    ///
    /// # Linux
    /// `free_pages_exact` in `mm/page_alloc.c`.
    pub fn free_pages_exact(&self, frames: PfnRange) -> Result<(), FreeError> {
        frames.iter().try_for_each(|pfn| self.phys.may_free(pfn, PageOrder::ZERO))?;
        frames.iter().try_for_each(|pfn| self.free_pages(pfn, PageOrder::ZERO))
    }

    /// Frees blocks of one order.
    ///
    /// # Errors
    /// [`FreeError`] and the place of the first block that was not freed; those before it were, those after it were not.
    pub fn free_pages_bulk(&self, blocks: &[Pfn], order: PageOrder) -> Result<(), (usize, FreeError)> {
        let mut blocks = blocks.iter().enumerate();
        blocks.try_for_each(|(at, &pfn)| self.free_pages(pfn, order).map_err(|error| (at, error)))
    }
}
