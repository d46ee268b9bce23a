//! From a frame number to its page and back.
//!
//! Metadata exist for page blocks (2 MiB) that hold managed frames, never for the span between them. A block's 512
//! pages keep their places, holes included; so the buddy of a page is found by flipping one bit of its *index*, and
//! no arithmetic on frame numbers is needed below the allocator's surface.

use crate::addr::{PageOrder, Pfn};
use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::migrate::MigrateType;
use super::page::{BlockWord, Page, PageState};

/// log2 of the pages in a page block.
pub(super) const BLOCK_SHIFT: u32 = PageOrder::MAX.get() as u32;
/// Pages in a page block.
pub(super) const BLOCK_PAGES: usize = 1 << BLOCK_SHIFT;
/// The bits of an index or a frame number that lie inside a page block.
const BLOCK_MASK: u64 = BLOCK_PAGES as u64 - 1;

/// What is known of a page block.
///
/// # Linux
/// An entry of `pageblock_flags`.
#[derive(Debug)]
pub(super) struct PageBlock {
    /// The number of its first frame, in page blocks.
    number: u32,
    migrate: AtomicU32,
}

impl PageBlock {
    pub(super) fn new(number: u32, migrate: MigrateType) -> Self {
        Self { number, migrate: AtomicU32::new(migrate as u32) }
    }

    #[inline]
    pub(super) fn first(&self) -> Pfn {
        pfn(u64::from(self.number) << BLOCK_SHIFT)
    }

    #[inline]
    pub(super) fn migrate(&self) -> MigrateType {
        MigrateType::from_bits(self.migrate.load(Relaxed))
    }

    pub(super) fn set_migrate(&self, migrate: MigrateType) {
        self.migrate.store(migrate as u32, Relaxed);
    }
}

/// The pages of one zone.
///
/// # Linux
/// `zone_mem_map` of 2.4's `struct zone_struct`.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "zone_mem_map")]
pub(super) struct MemMap<'m> {
    pages: &'m [Page],
    blocks: &'m [PageBlock],
}

impl<'m> MemMap<'m> {
    pub(super) fn new(pages: &'m [Page], blocks: &'m [PageBlock]) -> Self {
        Self { pages, blocks }
    }

    /// All pages, holes included, by index.
    #[inline]
    pub(super) fn pages(&self) -> &'m [Page] {
        self.pages
    }

    #[inline]
    pub(super) fn page(&self, index: u32) -> &'m Page {
        &self.pages[index as usize]
    }

    /// The page block that a page lies in.
    #[inline]
    pub(super) fn block_of(&self, index: u32) -> &'m PageBlock {
        &self.blocks[(index >> BLOCK_SHIFT) as usize]
    }

    /// The frame of a page.
    #[inline]
    pub(super) fn pfn(&self, index: u32) -> Pfn {
        pfn(self.block_of(index).first().get() | u64::from(index) & BLOCK_MASK)
    }

    /// The page of a frame, if the zone has its page block.
    pub(super) fn index_of(&self, pfn: Pfn) -> Option<u32> {
        let number = (pfn.get() >> BLOCK_SHIFT) as u32;
        let block = self.blocks.binary_search_by_key(&number, |block| block.number).ok()? as u32;
        Some(block << BLOCK_SHIFT | (pfn.get() & BLOCK_MASK) as u32)
    }

    /// The head of the block that holds a page, with its word; `None` where no block does.
    pub(super) fn head_of(&self, index: u32) -> Option<(u32, BlockWord)> {
        PageOrder::all().find_map(|order| {
            let head = index & !(order.pages() as u32 - 1);
            let word = self.page(head).word();
            (word.state().is_head() && word.order() >= order).then_some((head, word))
        })
    }
}

/// A frame number made of one of our own: it is in range since the map was checked at boot.
#[inline]
fn pfn(raw: u64) -> Pfn {
    Pfn::new(raw & ((1 << 40) - 1)).unwrap_or(Pfn::ZERO)
}

/// log2 of the page blocks that one root entry covers: 128 GiB.
pub(super) const ROOT_SHIFT: u32 = 16;
const ROOT_MASK: u64 = (1 << ROOT_SHIFT) - 1;

/// A run of page blocks in the table of [`Sections`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Root {
    /// The first block with metadata, counted from the root's start.
    pub(super) low: u32,
    /// How many blocks there are from there to the last one with metadata.
    pub(super) len: u32,
    /// Where these blocks' entries lie in the table.
    pub(super) start: u32,
}

/// In an entry: page blocks of several zones lie here, and the rest of the entry is a place in `mixed`.
pub(super) const MIXED: u32 = 1 << 31;

/// A page block of one zone that shares its frames with another zone's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mixed {
    /// The number of its first frame, in page blocks.
    pub(super) number: u32,
    /// Its place among all zones' blocks.
    pub(super) dense: u32,
}

/// The sparse table from frame numbers to pages: two loads, whatever the holes.
///
/// # Linux
/// `mem_section` in `mm/sparse.c`.
#[derive(Debug)]
pub(super) struct Sections<'m> {
    /// The number of the first root.
    pub(super) first_root: u64,
    pub(super) roots: &'m [Root],
    /// For each page block, one more than its place among all zones' blocks; 0 is none.
    pub(super) table: &'m [u32],
    pub(super) mixed: &'m [Mixed],
    /// All zones' pages.
    pub(super) pages: &'m [Page],
}

impl<'m> Sections<'m> {
    /// The page of a frame, and its place among all zones' pages; `None` for a frame without metadata.
    #[inline]
    pub(super) fn find(&self, pfn: Pfn) -> Option<(u32, &'m Page)> {
        let number = pfn.get() >> BLOCK_SHIFT;
        let root = self.roots.get((number >> ROOT_SHIFT).wrapping_sub(self.first_root) as usize)?;
        let entry = (number & ROOT_MASK).wrapping_sub(u64::from(root.low));
        if entry >= u64::from(root.len) {
            return None;
        }
        let entry = *self.table.get(root.start as usize + entry as usize)?;
        if entry == 0 || entry & MIXED != 0 {
            return self.find_mixed(entry, pfn);
        }
        self.in_block(entry - 1, pfn)
    }

    #[inline]
    fn in_block(&self, dense: u32, pfn: Pfn) -> Option<(u32, &'m Page)> {
        let index = dense << BLOCK_SHIFT | (pfn.get() & BLOCK_MASK) as u32;
        Some((index, self.pages.get(index as usize)?))
    }

    /// Among the zones that share a page block, the one that has this frame.
    #[cold]
    fn find_mixed(&self, entry: u32, pfn: Pfn) -> Option<(u32, &'m Page)> {
        if entry == 0 {
            return None;
        }
        let start = (entry & !MIXED) as usize;
        let number = pfn.get() >> BLOCK_SHIFT;
        let sharers = self.mixed.get(start..)?.iter().take_while(|mixed| u64::from(mixed.number) == number);
        let mut found = None;
        for mixed in sharers {
            let place = self.in_block(mixed.dense, pfn)?;
            if place.1.state() != PageState::Absent {
                return Some(place);
            }
            found = found.or(Some(place));
        }
        found
    }
}
