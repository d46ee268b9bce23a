//! Where the rooms above get their frames from.

use core::ptr::NonNull;

use crate::addr::{PageOrder, Pfn};
use crate::flags::GfpFlags;

use super::error::{AllocError, FreeError};
use super::page::Page;

/// Allocation as slab, page tables, page cache and faults see it.
///
/// The façade implements it and adds what frames alone cannot do: reclaim, retries, zeroing. `phys` knows nothing of those.
pub trait PageSource {
    /// Allocates a block; may reclaim, and so block, as the flags say.
    ///
    /// # Errors
    /// As [`Phys::alloc_pages`](super::Phys::alloc_pages).
    fn alloc_pages(&self, gfp: GfpFlags, order: PageOrder) -> Result<Pfn, AllocError>;

    /// Frees a block.
    ///
    /// # Errors
    /// As [`Phys::free_pages`](super::Phys::free_pages).
    fn free_pages(&self, pfn: Pfn, order: PageOrder) -> Result<(), FreeError>;

    /// What is known of a frame; `None` for one without metadata.
    fn page(&self, pfn: Pfn) -> Option<&Page>;

    /// The address of a frame in the direct map; `None` for a HIGHMEM frame.
    fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>>;
}
