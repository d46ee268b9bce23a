//! The bytes of frames: zero, copy, read, write.

use crate::addr::{PageOrder, Pfn};
use crate::phys::{Kmap, KmapError, PageSource};
use crate::platform::{CpuPin, Platform, Window};

use super::Memory;

impl<P: Platform> Memory<'_, P> {
    /// Brings an allocated frame within reach, as long as the caller keeps its CPU. Until the answer is dropped the block has a reference more: to
    /// free it is answered with [`FreeError::Busy`](crate::phys::FreeError::Busy). Somebody else must have one until then: the last reference is not
    /// given up by the drop.
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
        self.with_frame(pfn, |frame| frame.fill(0))
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
        self.with_frame(from, |from| self.with_frame(to, |to| to.copy_from(from)))?
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
        match self.with_frame(pfn, |frame| frame.read(offset, out))? {
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
        match self.with_frame(pfn, |frame| frame.write(offset, bytes))? {
            true => Ok(()),
            false => Err(KmapError::OutOfBounds),
        }
    }

    /// Runs `touch` with an allocated frame within reach. Should all others let go of its block meanwhile, it is freed.
    fn with_frame<R>(&self, pfn: Pfn, touch: impl FnOnce(&Window<'_>) -> R) -> Result<R, KmapError> {
        let pin = self.pin();
        let frame = self.phys.kmap(&pin, pfn)?;
        let touched = touch(&frame);
        if let Some(head) = frame.into_head() {
            let put = self.put_page(head);
            debug_assert!(put.is_ok(), "a block with a reference was free: {put:?}");
        }
        Ok(touched)
    }
}

/// The frames of a block.
pub(super) fn frames(first: Pfn, order: PageOrder) -> impl Iterator<Item = Pfn> {
    (0..order.pages()).filter_map(move |at| first.checked_add(at))
}

#[cfg(all(test, feature = "std", not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::flags::GfpFlags;
    use crate::platform::CpuId;
    use crate::platform::hosted::Machine;

    #[test]
    fn a_block_that_its_owner_lets_go_of_while_it_is_read_is_freed_afterwards() {
        let machine = Machine::pc(16 << 20).build().unwrap();
        let _cpu = machine.cpu(CpuId::BOOT).unwrap();
        let memory = Memory::on(&machine).unwrap();
        let free = || {
            memory.phys().drain_all(&memory.pin());
            memory.phys().free_pages_total()
        };
        let before = free();
        for order in [0, 3] {
            let order = PageOrder::new(order).unwrap();
            let pfn = memory.alloc_pages(GfpFlags::KERNEL, order).unwrap();
            let last = pfn.checked_add(order.pages() - 1).unwrap();
            let put =
                memory.with_frame(last, |_| (memory.put_page(pfn), memory.phys().page(pfn).unwrap().count()));
            assert_eq!(put, Ok((Ok(()), 1)));
            assert_eq!(free(), before, "{order:?}");
        }
    }
}
