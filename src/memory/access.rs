//! The bytes of frames: zero, copy, read, write.

use crate::addr::{PageOrder, Pfn};
use crate::phys::{Kmap, KmapError};
use crate::platform::{CpuPin, Platform};

use super::Memory;

impl<P: Platform> Memory<'_, P> {
    /// Brings an allocated frame within reach, as long as the caller keeps its CPU. Until the answer is dropped the block has a reference more: to
    /// free it is answered with [`FreeError::Busy`](crate::phys::FreeError::Busy).
    ///
    /// # Errors
    /// [`KmapError`].
    ///
    /// # Linux
    /// `kmap_local_page` in `include/linux/highmem.h`.
    #[doc(alias = "kmap_local_page")]
    pub fn kmap<'a>(&'a self, pin: &'a CpuPin<'_>, pfn: Pfn) -> Result<Kmap<'a>, KmapError> {
        self.phys.kmap(pin, pfn)
    }

    /// Fills a frame with zeros.
    ///
    /// # Errors
    /// [`KmapError`].
    ///
    /// # Linux
    /// `clear_highpage` in `include/linux/highmem.h`.
    #[doc(alias = "clear_highpage")]
    pub fn zero_frame(&self, pfn: Pfn) -> Result<(), KmapError> {
        self.phys.kmap(&self.pin(), pfn)?.fill(0);
        Ok(())
    }

    /// Copies a frame to another one.
    ///
    /// # Errors
    /// [`KmapError`]; nothing was copied.
    ///
    /// # Linux
    /// `copy_highpage` in `include/linux/highmem.h`.
    #[doc(alias = "copy_highpage")]
    pub fn copy_frame(&self, to: Pfn, from: Pfn) -> Result<(), KmapError> {
        let pin = self.pin();
        let from = self.phys.kmap(&pin, from)?;
        self.phys.kmap(&pin, to)?.copy_from(&from);
        Ok(())
    }

    /// Copies bytes out of a frame.
    ///
    /// # Errors
    /// [`KmapError`]; nothing was copied.
    ///
    /// # Linux
    /// `memcpy_from_page` in `include/linux/highmem.h`.
    #[doc(alias = "memcpy_from_page")]
    pub fn read_frame(&self, pfn: Pfn, offset: usize, out: &mut [u8]) -> Result<(), KmapError> {
        match self.phys.kmap(&self.pin(), pfn)?.read(offset, out) {
            true => Ok(()),
            false => Err(KmapError::OutOfBounds),
        }
    }

    /// Copies bytes into a frame.
    ///
    /// # Errors
    /// [`KmapError`]; nothing was copied.
    ///
    /// # Linux
    /// `memcpy_to_page` in `include/linux/highmem.h`.
    #[doc(alias = "memcpy_to_page")]
    pub fn write_frame(&self, pfn: Pfn, offset: usize, bytes: &[u8]) -> Result<(), KmapError> {
        match self.phys.kmap(&self.pin(), pfn)?.write(offset, bytes) {
            true => Ok(()),
            false => Err(KmapError::OutOfBounds),
        }
    }
}

/// The frames of a block.
pub(super) fn frames(first: Pfn, order: PageOrder) -> impl Iterator<Item = Pfn> {
    (0..order.pages()).filter_map(move |at| first.checked_add(at))
}
