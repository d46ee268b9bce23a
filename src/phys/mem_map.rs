//! From a frame number to its page and back.
//!
//! Metadata exist for page blocks (2 MiB) that hold managed frames, never for the span between them. A block's 512
//! pages keep their places, holes included; so the buddy of a page is found by flipping one bit of its *index*, and
//! no arithmetic on frame numbers is needed below the allocator's surface.

use core::ops::Range;

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
        Pfn::trusted(u64::from(self.number) << BLOCK_SHIFT)
    }

    #[inline]
    pub(super) fn migrate(&self) -> MigrateType {
        MigrateType::from_bits(self.migrate.load(Relaxed))
    }

    pub(super) fn set_migrate(&self, migrate: MigrateType) {
        self.migrate.store(migrate as u32, Relaxed);
    }
}

/// The pages of one zone: a run of all zones' pages. A page's index counts from the first page of all.
///
/// # Linux
/// `zone_mem_map` of 2.4's `struct zone_struct`.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "zone_mem_map")]
pub(super) struct MemMap<'m> {
    /// All zones' pages, holes included.
    pages: &'m [Page],
    /// All zones' page blocks.
    blocks: &'m [PageBlock],
    /// The zone's own pages.
    start: u32,
    end: u32,
}

impl<'m> MemMap<'m> {
    /// The map of the page blocks `own`.
    pub(super) fn new(pages: &'m [Page], blocks: &'m [PageBlock], own: Range<u32>) -> Self {
        Self { pages, blocks, start: own.start << BLOCK_SHIFT, end: own.end << BLOCK_SHIFT }
    }

    /// All zones' pages, by index.
    #[inline]
    pub(super) fn pages(&self) -> &'m [Page] {
        self.pages
    }

    #[inline]
    pub(super) fn page(&self, index: u32) -> &'m Page {
        &self.pages[index as usize]
    }

    /// The indices of the zone's own pages, holes included.
    pub(super) fn own(&self) -> Range<u32> {
        self.start..self.end
    }

    /// The zone's own page blocks.
    pub(super) fn own_blocks(&self) -> &'m [PageBlock] {
        let own = (self.start >> BLOCK_SHIFT) as usize..(self.end >> BLOCK_SHIFT) as usize;
        self.blocks.get(own).unwrap_or_default()
    }

    /// What to add to an index to have its frame, if the zone's page blocks follow each other without holes; else [`SCATTERED`].
    pub(super) fn shift(&self) -> u64 {
        let blocks = self.own_blocks();
        let in_a_row = blocks.windows(2).all(|pair| pair[0].number + 1 == pair[1].number);
        let first = blocks.first().filter(|_| in_a_row);
        first.map_or(SCATTERED, |block| block.first().get().wrapping_sub(u64::from(self.start)))
    }

    /// Loads what merging a block will look at first, so that the cache misses of many blocks overlap.
    #[inline]
    pub(super) fn touch_buddies(&self, index: u32, order: PageOrder) {
        for level in 0..3 {
            if let Some(buddy) = self.pages.get((index ^ (order.pages() as u32) << level) as usize) {
                core::hint::black_box(buddy.word());
            }
        }
    }

    /// The page block that a page lies in.
    #[inline]
    pub(super) fn block_of(&self, index: u32) -> &'m PageBlock {
        &self.blocks[(index >> BLOCK_SHIFT) as usize]
    }

    /// The frame of a page.
    #[inline]
    pub(super) fn pfn(&self, index: u32) -> Pfn {
        pfn_in(self.blocks, index)
    }

    /// The page of a frame, if the zone has its page block.
    pub(super) fn index_of(&self, pfn: Pfn) -> Option<u32> {
        let number = (pfn.get() >> BLOCK_SHIFT) as u32;
        let block = self.own_blocks().binary_search_by_key(&number, |block| block.number).ok()? as u32;
        Some(self.start + (block << BLOCK_SHIFT | (pfn.get() & BLOCK_MASK) as u32))
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

/// The page blocks of a zone do not follow each other: no index gives a frame by one addition. No shift has this value, since all are multiples of a page block.
pub(super) const SCATTERED: u64 = u64::MAX;

/// The frame of a page, by its page block.
#[inline]
fn pfn_in(blocks: &[PageBlock], index: u32) -> Pfn {
    let first = blocks[(index >> BLOCK_SHIFT) as usize].first();
    Pfn::trusted(first.get() | u64::from(index) & BLOCK_MASK)
}

/// Page blocks that the near table can reach from the first one on: 128 GiB.
pub(super) const NEAR_BLOCKS: u64 = 1 << 16;
/// log2 of the page blocks that one root entry covers: 128 GiB.
pub(super) const ROOT_SHIFT: u32 = 16;
const ROOT_MASK: u64 = (1 << ROOT_SHIFT) - 1;

/// A run of page blocks in the far table of [`Sections`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Root {
    /// The first block with metadata, counted from the root's start.
    pub(super) low: u32,
    /// How many blocks there are from there to the last one with metadata.
    pub(super) len: u32,
    /// Where these blocks' entries lie in the far table.
    pub(super) start: u32,
}

/// An entry: no metadata here. It has the bit of [`MIXED`] too, so that one test finds all that is out of the ordinary.
pub(super) const NO_BLOCK: u32 = u32::MAX;

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

/// The sparse table from frame numbers to pages: one load for the first 128 GiB, two beyond, whatever the holes.
///
/// An entry is the block's place among all zones' blocks, unless it is [`NO_BLOCK`] or [`MIXED`].
///
/// # Linux
/// `mem_section` in `mm/sparse.c`.
#[derive(Debug)]
pub(super) struct Sections<'m> {
    /// The number of the first page block.
    pub(super) first_block: u64,
    /// The blocks from the first one on.
    pub(super) near: &'m [u32],
    /// The number of the first root.
    pub(super) first_root: u64,
    pub(super) roots: &'m [Root],
    /// The blocks that roots lead to.
    pub(super) far: &'m [u32],
    pub(super) mixed: &'m [Mixed],
    /// All zones' pages.
    pub(super) pages: &'m [Page],
    /// All zones' page blocks.
    pub(super) blocks: &'m [PageBlock],
}

impl<'m> Sections<'m> {
    /// The frame of a page, by its page block.
    #[inline]
    pub(super) fn pfn(&self, index: u32) -> Pfn {
        pfn_in(self.blocks, index)
    }

    /// The page of a frame, and its place among all zones' pages; `None` for a frame without metadata.
    #[inline]
    pub(super) fn find(&self, pfn: Pfn) -> Option<(u32, &'m Page)> {
        match self.find_near(pfn) {
            Some(place) => Some(place),
            None => self.find_elsewhere(pfn),
        }
    }

    /// The page of a frame that the near table tells of; for others see [`find`](Self::find).
    #[inline]
    pub(super) fn find_near(&self, pfn: Pfn) -> Option<(u32, &'m Page)> {
        let number = (pfn.get() >> BLOCK_SHIFT).wrapping_sub(self.first_block);
        let entry = *self.near.get(number as usize)?;
        if entry & MIXED != 0 {
            return None;
        }
        self.in_block(entry, pfn)
    }

    /// Beyond the near table, or in a page block of several zones.
    #[cold]
    #[inline(never)]
    fn find_elsewhere(&self, pfn: Pfn) -> Option<(u32, &'m Page)> {
        let number = pfn.get() >> BLOCK_SHIFT;
        let near = self.near.get(number.wrapping_sub(self.first_block) as usize);
        let entry = match near {
            Some(&entry) => entry,
            None => {
                let root = self.roots.get((number >> ROOT_SHIFT).wrapping_sub(self.first_root) as usize)?;
                let within = (number & ROOT_MASK).checked_sub(u64::from(root.low))?;
                if within >= u64::from(root.len) {
                    return None;
                }
                *self.far.get(root.start as usize + within as usize)?
            }
        };
        match entry {
            NO_BLOCK => None,
            entry if entry & MIXED == 0 => self.in_block(entry, pfn),
            entry => self.find_mixed((entry & !MIXED) as usize, pfn),
        }
    }

    #[inline]
    fn in_block(&self, dense: u32, pfn: Pfn) -> Option<(u32, &'m Page)> {
        let index = dense << BLOCK_SHIFT | (pfn.get() & BLOCK_MASK) as u32;
        if index as usize >= self.pages.len() {
            return None;
        }
        Some((index, &self.pages[index as usize]))
    }

    /// Among the zones that share a page block, the one that has this frame.
    fn find_mixed(&self, start: usize, pfn: Pfn) -> Option<(u32, &'m Page)> {
        let number = pfn.get() >> BLOCK_SHIFT;
        let sharers = self.mixed.get(start..)?.iter().take_while(|mixed| u64::from(mixed.number) == number);
        let mut places = sharers.filter_map(|mixed| self.in_block(mixed.dense, pfn));
        let first = places.next()?;
        let own = |place: &(u32, &Page)| place.1.state() != PageState::Absent;
        if own(&first) { Some(first) } else { places.find(own).or(Some(first)) }
    }
}
