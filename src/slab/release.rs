//! Blocks on their way back to the source, which is called without a lock.

use crate::addr::{PageOrder, Pfn};
use crate::phys::PageSource;

/// The most blocks that are taken off lists at a time.
const BATCH: usize = 16;

/// Blocks that are no slabs any more and not yet free.
#[derive(Debug, Default)]
#[must_use = "the blocks are lost unless they are given back"]
pub(super) struct Detached {
    blocks: [Option<(Pfn, PageOrder)>; BATCH],
    len: usize,
}

impl Detached {
    pub(super) fn is_full(&self) -> bool {
        self.len == BATCH
    }

    /// Adds a block; there must be room.
    pub(super) fn push(&mut self, pfn: Pfn, order: PageOrder) {
        self.blocks[self.len] = Some((pfn, order));
        self.len += 1;
    }

    /// Pages of all blocks.
    pub(super) fn pages(&self) -> u64 {
        self.blocks.iter().flatten().map(|(_, order)| order.pages()).sum()
    }

    /// Frees the blocks. Answers whether there may be more, since there was no room left.
    pub(super) fn give_back<S: PageSource>(self, source: &S) -> bool {
        for (pfn, order) in self.blocks.into_iter().flatten() {
            give_back(source, pfn, order);
        }
        self.len == BATCH
    }
}

/// Gives a block that the slab owned back to the source.
pub(super) fn give_back<S: PageSource>(source: &S, pfn: Pfn, order: PageOrder) {
    let freed = source.free_pages(pfn, order);
    debug_assert_eq!(freed, Ok(()), "a block of the slab's own can be freed");
}
