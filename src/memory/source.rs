//! The façade as a source of frames.
#![expect(unsafe_code, reason = "the slab writes to the frames that a source answers with")]

use crate::addr::{PageOrder, Pfn};
use crate::flags::GfpFlags;
use crate::phys::{AllocError, FreeError, PageSource, Phys};
use crate::platform::Platform;

use super::Memory;

// SAFETY: the frames were booted with a pin of the platform, from its own map, of which there is one; blocks are allocated and freed there.
unsafe impl<P: Platform> PageSource for Memory<'_, P> {
    type Platform = P;

    fn platform(&self) -> &P {
        self.platform
    }

    fn phys(&self) -> &Phys<'_> {
        &self.phys
    }

    fn alloc_pages(&self, gfp: GfpFlags, order: PageOrder) -> Result<Pfn, AllocError> {
        Memory::alloc_pages(self, gfp, order)
    }

    fn free_pages(&self, pfn: Pfn, order: PageOrder) -> Result<(), FreeError> {
        Memory::free_pages(self, pfn, order)
    }
}
