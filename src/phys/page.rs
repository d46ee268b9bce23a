//! `struct page`: what is known of one frame.

mod word;

use crate::addr::{PageOrder, Pfn};
use crate::flags::PageFlags;
use crate::sync::atomic::{
    AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed, Release},
};

use super::migrate::MigrateType;
use super::zone::ZoneId;

pub(super) use word::BlockWord;
pub use word::PageState;

/// The metadata of one frame: 32 bytes.
///
/// All fields are atomics. Who may write which of them:
///
/// | field | written by |
/// |---|---|
/// | block word, links | the allocator: under the zone's lock, or by the CPU on whose list the page is; the owner of an allocated page may use the links |
/// | count, map count, flags, mapping, index | the owner of an allocated page; but [`SLAB`](PageFlags::SLAB), [`TABLE`](PageFlags::TABLE) and [`HEAD`](PageFlags::HEAD), and what a page with one of the first two notes of itself, only the crate |
/// | zone | once, at boot |
///
/// # Linux
/// `struct page` in `include/linux/mm_types.h`.
#[derive(Debug)]
#[doc(alias = "struct page")]
#[cfg_attr(not(any(loom, shuttle)), repr(C, align(32)))]
pub struct Page {
    /// The reference count in the low half, the map count in the high half: one comparison finds whether anybody uses the page.
    counts: AtomicU64,
    flags: AtomicU32,
    mapping: AtomicU32,
    next: AtomicU32,
    prev: AtomicU32,
    index_low: AtomicU32,
    block: AtomicU16,
    index_high: AtomicU8,
    zone: AtomicU8,
}

#[cfg(not(any(loom, shuttle)))]
static_assertions::assert_eq_size!(Page, [u8; 32]);

/// No page: the end of a list.
pub(super) const NIL: u32 = u32::MAX;

/// Flags that a page must have lost when it is freed.
///
/// # Linux
/// `PAGE_FLAGS_CHECK_AT_FREE`.
const BUSY: u32 = PageFlags::LOCKED
    .union(PageFlags::LRU)
    .union(PageFlags::SLAB)
    .union(PageFlags::TABLE)
    .union(PageFlags::WRITEBACK)
    .union(PageFlags::SWAP_CACHE)
    .union(PageFlags::MLOCKED)
    .bits();

/// Flags that say what the crate itself uses a block for. Nobody else sets or clears them.
const KIND: PageFlags = PageFlags::SLAB.union(PageFlags::TABLE).union(PageFlags::HEAD);

/// One reference, in the word of both counts.
const COUNT: u64 = 1;
/// One page-table entry, in the word of both counts.
const MAP_COUNT: u64 = 1 << 32;

/// The reference count.
#[inline]
fn low(counts: u64) -> u32 {
    (counts & u64::from(u32::MAX)) as u32
}

/// The map count.
#[inline]
fn high(counts: u64) -> u32 {
    (counts >> 32) as u32
}

/// The largest index: 40 bits.
const MAX_INDEX: u64 = (1 << 40) - 1;

/// What the index of a free page says of its contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum PoisonNote {
    /// They are the pattern.
    Poisoned = 0,
    /// They are what the last owner left, since the frame could not be reached.
    Unpoisoned = MAX_INDEX,
}

impl Page {
    /// The metadata of a frame before its state is known.
    pub(super) fn new(state: PageState, zone: ZoneId) -> Self {
        Self {
            counts: AtomicU64::new(0),
            flags: AtomicU32::new(0),
            mapping: AtomicU32::new(0),
            next: AtomicU32::new(NIL),
            prev: AtomicU32::new(NIL),
            index_low: AtomicU32::new(0),
            block: AtomicU16::new(BlockWord::of(state).0),
            index_high: AtomicU8::new(0),
            zone: AtomicU8::new(zone.get()),
        }
    }

    /// Where the page lies.
    pub fn state(&self) -> PageState {
        self.word().state()
    }

    /// The order of the block that the page heads; `None` for a page that heads none.
    pub fn order(&self) -> Option<PageOrder> {
        let word = self.word();
        word.state().is_head().then(|| word.order())
    }

    /// The migrate type of the block that the page heads; `None` for a page that heads none.
    pub fn migrate_type(&self) -> Option<MigrateType> {
        let word = self.word();
        word.state().is_head().then(|| word.migrate())
    }

    /// The zone that the page belongs to.
    ///
    /// # Linux
    /// `page_zonenum` with `page_to_nid`.
    #[inline]
    pub fn zone(&self) -> ZoneId {
        ZoneId::new(self.zone.load(Relaxed))
    }

    /// The flags.
    #[inline]
    pub fn flags(&self) -> PageFlags {
        PageFlags::from_bits_retain(self.flags.load(Relaxed))
    }

    /// Sets flags and answers with those from before. SLAB, TABLE and HEAD stay as they are.
    #[inline]
    pub fn set_flags(&self, flags: PageFlags) -> PageFlags {
        self.set_kind(flags - KIND)
    }

    /// Clears flags and answers with those from before. SLAB, TABLE and HEAD stay as they are.
    #[inline]
    pub fn clear_flags(&self, flags: PageFlags) -> PageFlags {
        self.clear_kind(flags - KIND)
    }

    /// Sets flags, those that say what the block is for among them.
    #[inline]
    pub(crate) fn set_kind(&self, flags: PageFlags) -> PageFlags {
        PageFlags::from_bits_retain(self.flags.fetch_or(flags.bits(), AcqRel))
    }

    /// Clears flags, those that say what the block is for among them.
    #[inline]
    pub(crate) fn clear_kind(&self, flags: PageFlags) -> PageFlags {
        PageFlags::from_bits_retain(self.flags.fetch_and(!flags.bits(), AcqRel))
    }

    /// Whether the page heads an allocated block of data: one whose mapping and index are its owner's.
    fn is_data(&self) -> bool {
        self.state() == PageState::Allocated && !self.flags().intersects(PageFlags::SLAB | PageFlags::TABLE)
    }

    /// The reference count.
    #[inline]
    #[doc(alias = "_refcount")]
    pub fn count(&self) -> u32 {
        low(self.counts.load(Relaxed))
    }

    /// How many page-table entries map the page.
    #[inline]
    #[doc(alias = "_mapcount")]
    pub fn map_count(&self) -> u32 {
        high(self.counts.load(Relaxed))
    }

    /// Takes a reference, unless the page has none (it is free); at the top the count sticks and the page is never freed.
    ///
    /// # Locking
    /// Not at the same moment as [`Phys::free_pages`](super::Phys::free_pages) of the block: that looks at the count and then changes it,
    /// so a reference taken between the two would be to a free page. Whoever frees has first removed the page from every place where
    /// others look it up. [`PageSource::put_page`](super::PageSource::put_page) has no such condition.
    ///
    /// # Linux
    /// `get_page_unless_zero` in `include/linux/page_ref.h`.
    pub fn try_get(&self) -> bool {
        self.adjust(|counts| match low(counts) {
            0 => None,
            u32::MAX => Some(counts),
            _ => Some(counts + COUNT),
        })
        .is_some()
    }

    /// Drops a reference, unless it is the last: that one is given up by
    /// [`Phys::free_pages`](super::Phys::free_pages). Answers whether it was dropped.
    pub fn put_unless_last(&self) -> bool {
        self.adjust(|counts| match low(counts) {
            0 | 1 => None,
            u32::MAX => Some(counts),
            _ => Some(counts - COUNT),
        })
        .is_some()
    }

    /// How many references a pin is.
    ///
    /// # Linux
    /// `GUP_PIN_COUNTING_BIAS` in `include/linux/mm.h`.
    #[doc(alias = "GUP_PIN_COUNTING_BIAS")]
    pub const PIN_BIAS: u32 = 1 << 10;

    /// Pins the page, unless it has no reference or so many that the count could stick.
    ///
    /// # Locking
    /// As [`try_get`](Self::try_get).
    ///
    /// # Linux
    /// `try_grab_folio` in `mm/gup.c`.
    pub(crate) fn try_pin(&self) -> bool {
        self.adjust(|counts| match low(counts) {
            0 | 0x8000_0000.. => None,
            _ => Some(counts + u64::from(Self::PIN_BIAS)),
        })
        .is_some()
    }

    /// Takes a pin back but for one reference, which is the caller's to put; `false` and no change if the page has no pin.
    pub(crate) fn unpin_but_one(&self) -> bool {
        self.adjust(|counts| match low(counts) {
            ..Self::PIN_BIAS => None,
            u32::MAX => Some(counts),
            _ => Some(counts - u64::from(Self::PIN_BIAS - 1)),
        })
        .is_some()
    }

    /// Whether the page is pinned, or has as many references as if it were.
    ///
    /// # Linux
    /// `folio_maybe_dma_pinned` in `include/linux/mm.h`.
    #[doc(alias = "folio_maybe_dma_pinned")]
    pub fn maybe_pinned(&self) -> bool {
        self.count() >= Self::PIN_BIAS
    }

    /// Counts one more page-table entry; at the top the count sticks.
    pub(crate) fn add_map(&self) {
        self.adjust(|counts| Some(if high(counts) == u32::MAX { counts } else { counts + MAP_COUNT }));
    }

    /// Counts one more page-table entry that has a reference of its own. Each count sticks at its top.
    ///
    /// # Locking
    /// As [`try_get`](Self::try_get): the caller knows of a reference that stays.
    ///
    /// # Linux
    /// `folio_try_dup_anon_rmap_pte` in `include/linux/rmap.h`, with `folio_get`.
    pub(crate) fn add_map_with_reference(&self) {
        self.adjust(|counts| {
            let count = if matches!(low(counts), 0 | u32::MAX) { 0 } else { COUNT };
            let map_count = if high(counts) == u32::MAX { 0 } else { MAP_COUNT };
            Some(counts + count + map_count)
        });
    }

    /// Counts one page-table entry less and answers with how many are left; `None` if there was none.
    pub(crate) fn remove_map(&self) -> Option<u32> {
        let counts = self.adjust(|counts| match high(counts) {
            0 => None,
            u32::MAX => Some(counts),
            _ => Some(counts - MAP_COUNT),
        });
        counts.map(high)
    }

    /// The number of the file, anonymous group or cache that the page belongs to; 0 is none.
    #[inline]
    pub fn mapping(&self) -> u32 {
        self.mapping.load(Relaxed)
    }

    /// Names the file or anonymous group that the page belongs to; `false` and no change unless the page heads an allocated block, and no
    /// slab's or page table's.
    #[must_use]
    pub fn set_mapping(&self, mapping: u32) -> bool {
        let is_data = self.is_data();
        if is_data {
            self.mapping.store(mapping, Relaxed);
        }
        is_data
    }

    /// Names the cache that a slab belongs to.
    #[inline]
    pub(crate) fn set_cache(&self, cache: u32) {
        self.mapping.store(cache, Relaxed);
    }

    /// How many blocks are in the magazine that this page, which is free, heads: in the mapping's place.
    #[inline]
    pub(super) fn chain_len(&self) -> u16 {
        self.mapping.load(Relaxed) as u16
    }

    #[inline]
    pub(super) fn set_chain_len(&self, len: u16) {
        self.mapping.store(u32::from(len), Relaxed);
    }

    /// The page's place in its mapping, in pages: 40 bits.
    #[inline]
    pub fn index(&self) -> u64 {
        u64::from(self.index_high.load(Relaxed)) << 32 | u64::from(self.index_low.load(Relaxed))
    }

    /// Sets the page's place in its mapping; `false` and no change above 40 bits, and where [`set_mapping`](Self::set_mapping) changes nothing.
    #[must_use]
    pub fn set_index(&self, index: u64) -> bool {
        let fits = index <= MAX_INDEX && self.is_data();
        if fits {
            self.store_index(index);
        }
        fits
    }

    fn store_index(&self, index: u64) {
        self.index_low.store((index & 0xffff_ffff) as u32, Relaxed);
        self.index_high.store((index >> 32) as u8, Relaxed);
    }

    /// Notes in the index, which is nobody's while the page is free, whether it was filled with poison.
    pub(crate) fn note_poison(&self, poison: PoisonNote) {
        self.store_index(poison as u64);
    }

    /// Whether the page was noted to be free without poison; forgets it.
    pub(crate) fn take_unpoisoned(&self) -> bool {
        let unpoisoned = self.index() == PoisonNote::Unpoisoned as u64;
        if unpoisoned {
            self.store_index(0);
        }
        unpoisoned
    }

    /// What a slab notes of itself in its first page: the low word of the index.
    #[inline]
    pub(crate) fn slab_word(&self) -> u32 {
        self.index_low.load(Relaxed)
    }

    #[inline]
    pub(crate) fn set_slab_word(&self, word: u32) {
        self.index_low.store(word, Relaxed);
    }

    /// What a page table notes of itself: its lock, and how many of its entries are in use. The low word of the index.
    #[inline]
    pub(crate) fn table_word(&self) -> &AtomicU32 {
        &self.index_low
    }

    /// The frame of a table that this one keeps for later, in the links' place; `None` if it keeps none.
    pub(crate) fn kept_table(&self) -> Option<Pfn> {
        let raw = u64::from(self.next.load(Relaxed)) << 32 | u64::from(self.prev.load(Relaxed));
        Pfn::new(raw)
    }

    /// Notes the frame of a table that is kept for later.
    pub(crate) fn set_kept_table(&self, table: Option<Pfn>) {
        let raw = table.map_or(u64::MAX, Pfn::get);
        self.next.store((raw >> 32) as u32, Relaxed);
        self.prev.store((raw & 0xffff_ffff) as u32, Relaxed);
    }

    /// How many tables hang on the root that this page is: in the mapping's place.
    #[inline]
    pub(crate) fn table_count(&self) -> &AtomicU32 {
        &self.mapping
    }

    /// The state of the slab object that begins in this page, where objects are pages or larger: the high byte of the index.
    #[inline]
    pub(crate) fn object_state(&self) -> u8 {
        self.index_high.load(Relaxed)
    }

    #[inline]
    pub(crate) fn set_object_state(&self, state: u8) {
        self.index_high.store(state, Relaxed);
    }

    #[inline]
    pub(super) fn word(&self) -> BlockWord {
        BlockWord(self.block.load(Relaxed))
    }

    #[inline]
    pub(super) fn set_word(&self, word: BlockWord) {
        self.block.store(word.0, Relaxed);
    }

    #[inline]
    pub(super) fn next(&self) -> u32 {
        self.next.load(Relaxed)
    }

    #[inline]
    pub(super) fn set_next(&self, next: u32) {
        self.next.store(next, Relaxed);
    }

    #[inline]
    pub(super) fn prev(&self) -> u32 {
        self.prev.load(Relaxed)
    }

    #[inline]
    pub(super) fn set_prev(&self, prev: u32) {
        self.prev.store(prev, Relaxed);
    }

    /// Makes the page the head of an allocated block: one reference and these flags, nothing else.
    #[inline]
    pub(super) fn hand_out(&self, word: BlockWord, flags: PageFlags) {
        self.set_word(word);
        self.mapping.store(0, Relaxed);
        self.counts.store(COUNT, Relaxed);
        self.flags.store(flags.bits(), Relaxed);
    }

    /// Whether nobody uses the page but the caller that frees it: who has the last reference, or [took it away](Self::freeze).
    #[inline]
    pub(super) fn is_unused(&self) -> bool {
        self.counts.load(Relaxed) <= COUNT && self.flags.load(Relaxed) & BUSY == 0
    }

    /// Takes the last reference away, unless there are others or an entry maps the page. From then on nobody gets one, so that the caller can
    /// free the block though others may be trying.
    ///
    /// # Linux
    /// `page_ref_freeze` in `include/linux/page_ref.h`.
    #[doc(alias = "page_ref_freeze")]
    pub(super) fn freeze(&self) -> bool {
        // Acquire pairs with the Release of others' last changes: what they did with the page is over.
        self.counts.compare_exchange(COUNT, 0, AcqRel, Relaxed).is_ok()
    }

    /// Gives the last reference back to who took it away.
    pub(super) fn unfreeze(&self) {
        self.counts.store(COUNT, Release);
    }

    /// Replaces the counts by what `change` makes of them, or leaves them where that is `None`; answers with the new ones.
    fn adjust(&self, change: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let mut old = self.counts.load(Relaxed);
        loop {
            let new = change(old)?;
            match self.counts.compare_exchange_weak(old, new, AcqRel, Relaxed) {
                Ok(_) => return Some(new),
                Err(seen) => old = seen,
            }
        }
    }

    /// Takes the last reference: nobody can get one any more.
    #[inline]
    pub(super) fn take_back(&self) {
        self.counts.store(0, Relaxed);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn counts_saturate_instead_of_wrapping() {
        let page = Page::new(PageState::Allocated, ZoneId::new(0));
        assert!(!page.try_get(), "a free page gives no reference");
        page.counts.store(u64::from(u32::MAX) - 1, Relaxed);
        assert!(page.try_get());
        assert!(page.try_get());
        assert_eq!(page.count(), u32::MAX);
        assert!(page.put_unless_last());
        assert_eq!(page.count(), u32::MAX, "a count that reached the top stays there");
        page.counts.store(u64::MAX << 32, Relaxed);
        page.add_map();
        assert_eq!(page.remove_map(), Some(u32::MAX));
    }

    #[test]
    fn an_index_has_forty_bits() {
        let page = Page::new(PageState::Allocated, ZoneId::new(0));
        assert!(page.set_index((1 << 40) - 1));
        assert!(!page.set_index(1 << 40));
        assert_eq!(page.index(), (1 << 40) - 1);
    }

    #[test]
    fn what_a_block_is_for_is_not_its_owners_to_say() {
        let page = Page::new(PageState::Allocated, ZoneId::new(0));
        page.set_flags(PageFlags::SLAB | PageFlags::TABLE | PageFlags::HEAD | PageFlags::DIRTY);
        assert_eq!(page.flags(), PageFlags::DIRTY);
        assert!(page.set_mapping(3) && page.set_index(4));
        page.set_kind(PageFlags::SLAB);
        page.clear_flags(PageFlags::SLAB | PageFlags::DIRTY);
        assert_eq!(page.flags(), PageFlags::SLAB);
        assert!(!page.set_mapping(5) && !page.set_index(6), "they are the slab's");
        assert_eq!((page.mapping(), page.index()), (3, 4));
        let free = Page::new(PageState::OnCpu, ZoneId::new(0));
        free.set_chain_len(9);
        assert!(!free.set_mapping(0) && !free.set_index(0));
        assert_eq!(free.chain_len(), 9);
    }

    #[test]
    fn a_block_word_gives_back_what_it_was_made_of() {
        for order in PageOrder::all() {
            for migrate in MigrateType::ALL {
                let word = BlockWord::new(PageState::Deferred, order, migrate);
                assert_eq!(
                    (word.state(), word.order(), word.migrate()),
                    (PageState::Deferred, order, migrate)
                );
                assert!(word.is(PageState::Deferred, order) && !word.is(PageState::Free, order));
                assert_eq!(word.list(), order.index() << 2 | migrate as usize);
            }
        }
    }
}
