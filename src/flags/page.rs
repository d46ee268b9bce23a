//! Page flags.

use bitflags::bitflags;

bitflags! {
    /// What a page is in use for, set and cleared by its owner while it is allocated.
    ///
    /// Where a page lies (free list, per-CPU list, …) is not a flag: the allocator keeps that apart, so that an
    /// owner cannot change it by mistake. All flags are clear on a freshly allocated page, except
    /// [`HEAD`](Self::HEAD) on a compound one.
    ///
    /// # Linux
    /// `enum pageflags` in `include/linux/page-flags.h`.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    #[doc(alias = "pageflags")]
    pub struct PageFlags: u32 {
        /// Under input or output, or under change by its owner.
        const LOCKED = 1 << 0;
        /// Used since it was last looked at.
        const REFERENCED = 1 << 2;
        /// The contents are those of the store.
        const UPTODATE = 1 << 3;
        /// The contents are newer than those of the store.
        const DIRTY = 1 << 4;
        /// On a replacement list.
        const LRU = 1 << 5;
        /// On the active one.
        const ACTIVE = 1 << 6;
        /// The first page of a compound page.
        const HEAD = 1 << 7;
        /// Belongs to a slab.
        const SLAB = 1 << 8;
        /// Is a page table.
        const TABLE = 1 << 9;
        /// Being written to the store.
        const WRITEBACK = 1 << 10;
        /// Anonymous memory.
        const ANON = 1 << 11;
        /// In the swap cache.
        const SWAP_CACHE = 1 << 12;
        /// Has contents that only swap can hold.
        const SWAP_BACKED = 1 << 13;
        /// Reclaim once it is written.
        const RECLAIM = 1 << 14;
        /// Locked into memory.
        const UNEVICTABLE = 1 << 15;
        /// In a locked VMA.
        const MLOCKED = 1 << 16;
        /// Mapped by one page table only, and may be written there.
        const ANON_EXCLUSIVE = 1 << 17;
        /// Read ahead of need; a hit here starts the next read.
        const READAHEAD = 1 << 18;
        /// The store failed.
        const ERROR = 1 << 19;
    }
}
