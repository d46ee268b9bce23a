//! Where the rooms above get their frames from.
#![expect(unsafe_code, reason = "the slab writes to the frames that a source answers with")]

use core::ptr::NonNull;

use crate::addr::{PageOrder, Pfn};
use crate::flags::GfpFlags;
use crate::platform::Platform;

use super::Phys;
use super::error::{AllocError, FreeError};
use super::page::{Page, PageState};

/// Allocation as slab, page tables, page cache and faults see it.
///
/// The façade implements it and adds what frames alone cannot do: reclaim, retries, zeroing. `phys` knows nothing of those.
///
/// A source is called without a pin, since it may reclaim and so block: it pins the CPU itself.
///
/// # Safety
/// An implementation promises, as long as it lives:
/// - [`phys`](Self::phys) and [`platform`](Self::platform) answer with the same ones each time, and the former was booted with a pin of the latter.
/// - [`alloc_pages`](Self::alloc_pages) and [`free_pages`](Self::free_pages) allocate and free blocks of that `phys`; what was allocated is nobody else's until it is freed.
/// - the methods that have a body are not given another.
pub unsafe trait PageSource: Sync {
    /// The platform that the frames belong to.
    type Platform: Platform;

    /// The hooks of that platform.
    fn platform(&self) -> &Self::Platform;

    /// The frames: the same ones each time.
    fn phys(&self) -> &Phys<'_>;

    /// Allocates a block; may reclaim, and so block, as the flags say.
    ///
    /// # Errors
    /// As [`Phys::alloc_pages`].
    fn alloc_pages(&self, gfp: GfpFlags, order: PageOrder) -> Result<Pfn, AllocError>;

    /// Frees a block.
    ///
    /// # Errors
    /// As [`Phys::free_pages`].
    fn free_pages(&self, pfn: Pfn, order: PageOrder) -> Result<(), FreeError>;

    /// Drops a reference to the block that `pfn` heads, and frees the block if it was the last. Others may look the block up and
    /// [try to get](Page::try_get) a reference at the same moment.
    ///
    /// # Errors
    /// As [`free_pages`](Self::free_pages), where the block cannot be freed: the last reference then stays.
    ///
    /// # Linux
    /// `put_page` in `include/linux/mm.h`.
    fn put_page(&self, pfn: Pfn) -> Result<(), FreeError> {
        let page = self.page(pfn).ok_or(FreeError::Foreign)?;
        loop {
            if page.put_unless_last() {
                return Ok(());
            }
            let order = page.order().unwrap_or(PageOrder::ZERO);
            if page.freeze() {
                return self.free_pages(pfn, order).inspect_err(|_| page.unfreeze());
            }
            // Unless somebody got a reference meanwhile, the caller had none: the block is free, or others have entries or the last reference.
            match (page.state(), page.count()) {
                (PageState::Allocated, 0) => return Err(FreeError::Busy),
                (PageState::Allocated, 1) if page.map_count() != 0 => return Err(FreeError::Busy),
                (PageState::Allocated, _) => {}
                _ => return self.free_pages(pfn, order),
            }
        }
    }

    /// Drops a reference to each of the pages from `pfn` on that a block of `order` was [split](Phys::split_pages) into. If those were the last
    /// ones, they are freed as one block.
    fn put_pages(&self, pfn: Pfn, order: PageOrder) {
        let joined = self.phys().join_pages(&self.platform().pin(), pfn, order).is_ok();
        if joined && self.free_pages(pfn, order).is_ok() {
            return;
        }
        for page in (0..order.pages()).filter_map(|page| pfn.checked_add(page)) {
            // Whoever says that they are to be put has a reference to each.
            let put = self.put_page(page);
            debug_assert!(put.is_ok(), "a page of a block was free: {put:?}");
        }
    }

    /// What is known of a frame; `None` for one without metadata.
    #[inline]
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.phys().page(pfn)
    }

    /// The address of a frame in the direct map; `None` for a HIGHMEM frame.
    #[inline]
    fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        self.platform().direct_map(pfn)
    }

    /// The frame that an address of the direct map belongs to; `None` for any other address.
    #[inline]
    fn virt_to_pfn(&self, address: NonNull<u8>) -> Option<Pfn> {
        self.platform().virt_to_pfn(address)
    }
}

/// The plainest [`PageSource`]: frames as they come, without reclaim, retries or zeroing.
#[derive(Debug)]
pub struct NoReclaim<'m, P> {
    phys: &'m Phys<'m>,
    platform: &'m P,
}

impl<'m, P: Platform> NoReclaim<'m, P> {
    /// A source of the frames of `phys`.
    ///
    /// # Safety
    /// `phys` was booted with a pin of `platform`, and hands out frames of its that nobody else uses.
    pub const unsafe fn new(phys: &'m Phys<'m>, platform: &'m P) -> Self {
        Self { phys, platform }
    }
}

impl<P> Clone for NoReclaim<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for NoReclaim<'_, P> {}

// SAFETY: both are those that `new` was given, and what allocates and frees is this `phys`, which is right by the promise to `new`.
unsafe impl<P: Platform> PageSource for NoReclaim<'_, P> {
    type Platform = P;

    #[inline]
    fn platform(&self) -> &P {
        self.platform
    }

    #[inline]
    fn phys(&self) -> &Phys<'_> {
        self.phys
    }

    fn alloc_pages(&self, gfp: GfpFlags, order: PageOrder) -> Result<Pfn, AllocError> {
        self.phys.alloc_pages(&self.platform.pin(), gfp, order)
    }

    fn free_pages(&self, pfn: Pfn, order: PageOrder) -> Result<(), FreeError> {
        let pin = self.platform.pin();
        self.platform.frames_freed(pfn, order);
        self.phys.free_pages(&pin, pfn, order)
    }
}
