//! The buddy core of a zone: splitting, merging, and taking from other migrate types.
//!
//! Plain data behind the zone's lock, with the zone's map as an argument. A block of order `n` starts at an index that is
//! a multiple of `2^n`; its buddy is the one at `index ^ 2^n`, and both lie in one page block. The first page of a block
//! carries its state, order and migrate type; the others are [`PageState::Interior`].
//!
//! # Linux
//! `__rmqueue` and `__free_one_page` in `mm/page_alloc.c`.

use crate::addr::PageOrder;

use super::deferred::{DeferredBound, DeferredLists, Merging};
use super::free_area::PageList;
use super::mem_map::{BLOCK_PAGES, BLOCK_SHIFT, MemMap};
use super::migrate::MigrateType;
use super::page::{BlockWord, PageState};
use super::stat::BuddyEvents;

/// The free blocks of one order.
///
/// # Linux
/// `struct free_area` in `include/linux/mmzone.h`.
#[derive(Debug)]
#[doc(alias = "free_area")]
pub(super) struct FreeArea {
    lists: [PageList; MigrateType::COUNT],
    /// How many blocks each list has.
    blocks: [u64; MigrateType::COUNT],
}

impl FreeArea {
    const fn new() -> Self {
        Self { lists: [const { PageList::new() }; MigrateType::COUNT], blocks: [0; MigrateType::COUNT] }
    }
}

/// The free frames of a zone.
#[derive(Debug)]
pub(super) struct Buddy {
    areas: [FreeArea; PageOrder::COUNT],
    /// For each migrate type a bit an order, set while that list is not empty.
    nonempty: [u16; MigrateType::COUNT],
    pub(super) deferred: DeferredLists,
    /// Free pages, deferred ones included.
    free_pages: u64,
    /// Blocks of each order that are allocated or on a CPU's list.
    in_use: [u64; PageOrder::COUNT],
    /// Below this many free pages nothing is deferred.
    low_watermark: u64,
    pub(super) events: BuddyEvents,
}

impl Buddy {
    pub(super) fn new(merging: Merging) -> Self {
        Self {
            areas: [const { FreeArea::new() }; PageOrder::COUNT],
            nonempty: [0; MigrateType::COUNT],
            deferred: DeferredLists::new(merging),
            free_pages: 0,
            in_use: [0; PageOrder::COUNT],
            low_watermark: 0,
            events: BuddyEvents::default(),
        }
    }

    /// Free pages, deferred ones included.
    #[inline]
    pub(super) fn free_pages(&self) -> u64 {
        self.free_pages
    }

    /// Blocks of one order on the free lists, by migrate type.
    pub(super) fn free_blocks(&self, order: PageOrder) -> [u64; MigrateType::COUNT] {
        self.areas[order.index()].blocks
    }

    /// Blocks of one order that are allocated or on a CPU's list.
    pub(super) fn in_use(&self, order: PageOrder) -> u64 {
        self.in_use[order.index()]
    }

    /// A bit an order, set where the free list of this type is not empty.
    pub(super) fn nonempty(&self, migrate: MigrateType) -> u16 {
        self.nonempty[migrate as usize]
    }

    /// Sets the numbers that the deferral policy goes by.
    pub(super) fn set_limits(
        &mut self,
        map: &MemMap<'_>,
        low_watermark: u64,
        batch: u64,
        cpus: u64,
        bound: DeferredBound,
    ) {
        self.low_watermark = low_watermark;
        self.deferred.set_bound(match bound {
            DeferredBound::Auto => (low_watermark / 2).min(2 * batch * cpus),
            DeferredBound::Pages(pages) => pages,
            DeferredBound::Unbounded => u64::MAX,
        });
        while self.deferred.pages() > self.deferred.bound() {
            self.merge_oldest(map, PageOrder::MAX.get());
        }
    }

    /// Switches between deferred and immediate merging; what waits is merged when immediate merging begins.
    pub(super) fn set_merging(&mut self, map: &MemMap<'_>, merging: Merging) {
        self.deferred.set_merging(merging);
        if merging == Merging::Immediate {
            self.coalesce(map);
        }
    }

    /// Takes a block of `order`; `None` if there is none even with every merge done.
    ///
    /// The block is in no list, and its word says that a CPU has it: a buddy that is freed meanwhile must not take it for free.
    pub(super) fn take(&mut self, map: &MemMap<'_>, order: PageOrder, migrate: MigrateType) -> Option<u32> {
        let index = self
            .take_smallest(map, order, migrate)
            .or_else(|| self.merge_for(map, order).then(|| self.take_smallest(map, order, migrate)).flatten())
            .or_else(|| self.claim(map, order, migrate))
            .or_else(|| self.steal(map, order, migrate))?;
        self.note_taken(map, index, order, migrate);
        if self.free_pages < self.low_watermark && self.deferred.pages() != 0 {
            self.events.coalesced_low += 1;
            self.coalesce(map);
        }
        Some(index)
    }

    /// Takes a block of `order` from the lists of one migrate type, without merging and without a look at others.
    #[inline]
    pub(super) fn take_own(
        &mut self,
        map: &MemMap<'_>,
        order: PageOrder,
        migrate: MigrateType,
    ) -> Option<u32> {
        let index = self.take_smallest(map, order, migrate)?;
        self.note_taken(map, index, order, migrate);
        Some(index)
    }

    /// Frees a block, which is in no list: merges it, or puts that off.
    #[inline]
    pub(super) fn free(&mut self, map: &MemMap<'_>, index: u32, order: PageOrder) {
        self.free_pages += order.pages();
        self.in_use[order.index()] -= 1;
        let migrate = map.block_of(index).migrate();
        if !self.deferred.admits(order, self.in_use[order.index()]) || self.free_pages < self.low_watermark {
            self.merge(map, index, order, migrate);
            return;
        }
        if self.deferred.is_full_for(order) {
            self.events.coalesced_bound += 1;
            self.merge(map, index, order, migrate);
            return;
        }
        map.page(index).set_word(BlockWord::new(PageState::Deferred, order, migrate));
        self.deferred.push(map.pages(), index, order, migrate);
        self.events.deferred += 1;
    }

    /// Merges all that waits.
    pub(super) fn coalesce(&mut self, map: &MemMap<'_>) {
        while self.merge_oldest(map, PageOrder::MAX.get()).is_some() {}
    }

    /// Adds frames at boot: the largest aligned blocks that the run `start..end` holds.
    pub(super) fn add_run(&mut self, map: &MemMap<'_>, start: u32, end: u32, migrate: MigrateType) {
        let mut at = start;
        while at < end {
            let aligned =
                PageOrder::new(at.trailing_zeros().min(BLOCK_SHIFT) as u8).unwrap_or(PageOrder::MAX);
            let fits = PageOrder::new((end - at).ilog2().min(BLOCK_SHIFT) as u8).unwrap_or(PageOrder::MAX);
            let order = aligned.min(fits);
            self.free_pages += order.pages();
            self.push(map, at, order, migrate, End::Tail);
            at += order.pages() as u32;
        }
    }

    /// Takes one given block out of the free lists, splitting what surrounds it; `false` and no change if it is not free.
    pub(super) fn take_at(&mut self, map: &MemMap<'_>, index: u32, order: PageOrder) -> bool {
        let Some((head, word)) = map.head_of(index) else { return false };
        match word.state() {
            PageState::Free if word.order() >= order => self.remove(map, head, word),
            PageState::Deferred if word.order() >= order => {
                self.deferred.remove(map.pages(), head, word.order(), word.migrate());
            }
            _ => return false,
        }
        let (mut at, mut size) = (head, word.order());
        map.page(at).set_word(BlockWord::of(PageState::Interior));
        while size > order {
            let Some(half) = size.down() else { break };
            size = half;
            let upper = at + size.pages() as u32;
            let other = if index >= upper { core::mem::replace(&mut at, upper) } else { upper };
            self.events.splits += 1;
            self.push(map, other, size, word.migrate(), End::Head);
        }
        self.note_taken(map, at, order, word.migrate());
        true
    }

    /// Notes that an allocated block of `order` is from now on `parts` blocks of `part`.
    pub(super) fn note_split(&mut self, order: PageOrder, part: PageOrder, parts: u64) {
        self.in_use[order.index()] -= 1;
        self.in_use[part.index()] += parts;
    }

    /// Notes that so many allocated pages are from now on one block of `order`.
    pub(super) fn note_join(&mut self, order: PageOrder) {
        self.in_use[0] -= order.pages();
        self.in_use[order.index()] += 1;
    }

    /// The blocks of one free list.
    pub(super) fn iter_free<'a>(
        &self,
        map: &MemMap<'a>,
        order: PageOrder,
        migrate: MigrateType,
    ) -> impl Iterator<Item = u32> + use<'a> {
        self.areas[order.index()].lists[migrate as usize].iter(map.pages())
    }

    #[inline]
    fn note_taken(&mut self, map: &MemMap<'_>, index: u32, order: PageOrder, migrate: MigrateType) {
        map.page(index).set_word(BlockWord::new(PageState::OnCpu, order, migrate));
        self.free_pages -= order.pages();
        self.in_use[order.index()] += 1;
    }

    /// Takes the smallest block that is large enough from the lists of one migrate type; a deferred one before a merged one.
    ///
    /// # Linux
    /// `__rmqueue_smallest`.
    #[inline]
    fn take_smallest(&mut self, map: &MemMap<'_>, order: PageOrder, migrate: MigrateType) -> Option<u32> {
        let kind = migrate as usize;
        let waiting = self.deferred.nonempty[kind];
        let fitting = (self.nonempty[kind] | waiting) >> order.get();
        if fitting == 0 {
            return None;
        }
        let found = PageOrder::new(order.get() + fitting.trailing_zeros() as u8)?;
        let index = if waiting >> found.get() & 1 != 0 {
            let index = self.deferred.newest(found, migrate)?;
            self.deferred.remove(map.pages(), index, found, migrate);
            self.events.deferred_hits += u64::from(found == order);
            index
        } else {
            let index = self.areas[found.index()].lists[kind].front()?;
            self.remove(map, index, BlockWord::new(PageState::Free, found, migrate));
            index
        };
        self.split(map, index, found, order, migrate);
        Some(index)
    }

    /// Merges blocks of smaller orders until one of `order` is free; `false` if that cannot be had.
    fn merge_for(&mut self, map: &MemMap<'_>, order: PageOrder) -> bool {
        if order == PageOrder::ZERO || self.deferred.pages() == 0 {
            return false;
        }
        self.events.coalesced_order += 1;
        while let Some(made) = self.merge_oldest(map, order.get()) {
            if made >= order {
                return true;
            }
        }
        false
    }

    /// Takes the largest block of another migrate type, if the page block around it may be claimed.
    ///
    /// # Linux
    /// `__rmqueue_claim` and `try_to_claim_block`.
    fn claim(&mut self, map: &MemMap<'_>, order: PageOrder, migrate: MigrateType) -> Option<u32> {
        for size in order.and_above().rev().filter(|&size| migrate.claims(size)) {
            let lists = &self.areas[size.index()].lists;
            let first = |victim: MigrateType| Some((victim, lists[victim as usize].front()?));
            let Some((victim, index)) = migrate.fallbacks().into_iter().find_map(first) else { continue };
            if size == PageOrder::MAX {
                self.remove(map, index, BlockWord::new(PageState::Free, size, victim));
                map.block_of(index).set_migrate(migrate);
                self.events.claims += 1;
                self.split(map, index, size, order, migrate);
                return Some(index);
            }
            if self.claim_block(map, index, migrate) {
                return self.take_smallest(map, order, migrate);
            }
        }
        None
    }

    /// Changes a page block's type if half of it is free or of a like type; its free blocks change lists.
    fn claim_block(&mut self, map: &MemMap<'_>, index: u32, migrate: MigrateType) -> bool {
        let block = map.block_of(index);
        let start = index & !(BLOCK_PAGES as u32 - 1);
        let (mut free, mut movable) = (0, 0);
        for (_, word) in heads(map, start) {
            match word.state() {
                PageState::Free | PageState::Deferred => free += word.order().pages(),
                PageState::Allocated | PageState::OnCpu if word.migrate() == MigrateType::Movable => {
                    movable += word.order().pages();
                }
                _ => {}
            }
        }
        let alike = match (migrate, block.migrate()) {
            (MigrateType::Movable, _) => movable,
            (_, MigrateType::Movable) => BLOCK_PAGES as u64 - free - movable,
            _ => 0,
        };
        if free + alike < BLOCK_PAGES as u64 / 2 {
            return false;
        }
        for (head, word) in heads(map, start) {
            match word.state() {
                PageState::Free => {
                    self.remove(map, head, word);
                    self.push(map, head, word.order(), migrate, End::Head);
                }
                PageState::Deferred => {
                    self.deferred.remove(map.pages(), head, word.order(), word.migrate());
                    map.page(head).set_word(BlockWord::new(PageState::Deferred, word.order(), migrate));
                    self.deferred.push(map.pages(), head, word.order(), migrate);
                }
                _ => {}
            }
        }
        block.set_migrate(migrate);
        self.events.claims += 1;
        true
    }

    /// Takes the smallest block of another migrate type and leaves its page block as it is.
    ///
    /// # Linux
    /// `__rmqueue_steal`.
    fn steal(&mut self, map: &MemMap<'_>, order: PageOrder, migrate: MigrateType) -> Option<u32> {
        let smallest = order.and_above().find_map(|size| {
            let victims = migrate.fallbacks().into_iter();
            victims.map(|victim| (size, victim)).find(|&(size, victim)| {
                (self.nonempty[victim as usize] | self.deferred.nonempty[victim as usize]) >> size.get() & 1
                    != 0
            })
        });
        let index = self.take_smallest(map, order, smallest?.1)?;
        self.events.steals += 1;
        Some(index)
    }

    /// Cuts the upper halves off a block until it has `order`.
    ///
    /// # Linux
    /// `expand`.
    #[inline]
    fn split(
        &mut self,
        map: &MemMap<'_>,
        index: u32,
        from: PageOrder,
        order: PageOrder,
        migrate: MigrateType,
    ) {
        let mut size = from;
        while let Some(half) = size.down().filter(|&half| half >= order) {
            size = half;
            self.events.splits += 1;
            self.push(map, index + half.pages() as u32, half, migrate, End::Head);
        }
    }

    /// Merges the deferred block that has waited longest, of an order below `limit`; answers with the order it came to.
    fn merge_oldest(&mut self, map: &MemMap<'_>, limit: u8) -> Option<PageOrder> {
        let (index, order, migrate) = self.deferred.oldest_below(limit)?;
        Some(self.merge_deferred(map, index, order, migrate))
    }

    fn merge_deferred(
        &mut self,
        map: &MemMap<'_>,
        index: u32,
        order: PageOrder,
        migrate: MigrateType,
    ) -> PageOrder {
        self.deferred.remove(map.pages(), index, order, migrate);
        self.merge(map, index, order, map.block_of(index).migrate())
    }

    /// Merges a block, which is in no list, with its free buddies and puts it on a free list; answers with its order.
    ///
    /// A buddy that waits for its own merge is merged too.
    ///
    /// # Linux
    /// `__free_one_page`.
    #[inline]
    fn merge(&mut self, map: &MemMap<'_>, index: u32, order: PageOrder, migrate: MigrateType) -> PageOrder {
        let (mut at, mut size) = (index, order);
        while let Some(up) = size.up() {
            let buddy = at ^ size.pages() as u32;
            let word = map.page(buddy).word();
            if word.is(PageState::Free, size) {
                self.remove(map, buddy, word);
            } else if word.is(PageState::Deferred, size) {
                self.deferred.remove(map.pages(), buddy, size, word.migrate());
            } else {
                break;
            }
            map.page(at | buddy).set_word(BlockWord::of(PageState::Interior));
            self.events.merges += 1;
            at &= buddy;
            size = up;
        }
        self.push(map, at, size, migrate, End::Head);
        size
    }

    #[inline]
    fn push(&mut self, map: &MemMap<'_>, index: u32, order: PageOrder, migrate: MigrateType, end: End) {
        map.page(index).set_word(BlockWord::new(PageState::Free, order, migrate));
        let area = &mut self.areas[order.index()];
        let list = &mut area.lists[migrate as usize];
        match end {
            End::Head => list.push_front(map.pages(), index),
            End::Tail => list.push_back(map.pages(), index),
        }
        area.blocks[migrate as usize] += 1;
        self.nonempty[migrate as usize] |= 1 << order.get();
    }

    /// Takes a block out of the free list that its word names.
    #[inline]
    fn remove(&mut self, map: &MemMap<'_>, index: u32, word: BlockWord) {
        let area = &mut self.areas[word.order().index()];
        let list = &mut area.lists[word.migrate() as usize];
        list.remove(map.pages(), index);
        area.blocks[word.migrate() as usize] -= 1;
        if list.is_empty() {
            self.nonempty[word.migrate() as usize] &= !(1 << word.order().get());
        }
    }
}

/// Which end of a list.
#[derive(Clone, Copy)]
enum End {
    Head,
    Tail,
}

/// The heads of the blocks in the page block that begins at `start`, with their words.
pub(super) fn heads<'a>(map: &MemMap<'a>, start: u32) -> impl Iterator<Item = (u32, BlockWord)> + use<'a> {
    let map = *map;
    let end = start + BLOCK_PAGES as u32;
    let mut at = start;
    core::iter::from_fn(move || {
        while at < end {
            let (index, word) = (at, map.page(at).word());
            if word.state().is_head() {
                at += word.order().pages() as u32;
                return Some((index, word));
            }
            at += 1;
        }
        None
    })
}
