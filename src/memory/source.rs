//! The façade as a source of frames.
#![expect(unsafe_code, reason = "the slab writes to the frames that a source answers with")]

use core::ptr::NonNull;

use crate::addr::{PageOrder, Pfn};
use crate::flags::GfpFlags;
use crate::phys::{AllocError, FreeError, PageSource, Phys};
use crate::platform::Platform;
use crate::slab::ObjectError;

use super::Memory;

impl<P: Platform> Memory<'_, P> {
    /// Allocates from the [slab allocator](Self::slabs), as [`Slabs::kmalloc`](crate::slab::Slabs::kmalloc).
    ///
    /// # Errors
    /// As there; [`AllocError::NoSlab`] on a platform without [`virt_to_pfn`](Platform::virt_to_pfn), where there is no slab allocator.
    ///
    /// # Linux
    /// `kmalloc` in `include/linux/slab.h`.
    pub fn kmalloc(&self, size: usize, gfp: GfpFlags) -> Result<NonNull<u8>, AllocError> {
        self.slabs().ok_or(AllocError::NoSlab)?.kmalloc(self, size, gfp)
    }

    /// Frees what [`kmalloc`](Self::kmalloc) gave.
    ///
    /// # Errors
    /// As [`Slabs::kfree`](crate::slab::Slabs::kfree); nothing has changed.
    ///
    /// # Safety
    /// As [`Slabs::kfree`](crate::slab::Slabs::kfree).
    ///
    /// # Linux
    /// `kfree` in `mm/slub.c`.
    pub unsafe fn kfree(&self, address: NonNull<u8>) -> Result<(), ObjectError> {
        let slabs = self.slabs().ok_or(ObjectError::Foreign)?;
        // SAFETY: the caller gives the memory up.
        unsafe { slabs.kfree(self, address) }
    }
}

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
