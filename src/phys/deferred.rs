//! When a freed block is merged: at once, or later.
//!
//! A freed block of a size that is in steady use is about to be allocated again, and merging it only to split it then is work
//! for nothing. The lazy buddy system of Barkley and Lee ("A lazy buddy system bounded by two coalescing delays per
//! class", SOSP 1989) keeps, for each order, the *slack* `N - 2L - G` non-negative, where `N` blocks exist, `L` of them are
//! free but unmerged and `G` free and merged; as `N = A + L + G` with `A` in use, that says `L <= A`: no more blocks are kept
//! back than are in use. Three things differ. A constant [`FLOOR`] lets a few blocks wait even where nothing
//! else is in use; and where `A` falls by frees, the freed blocks are merged and those that wait already wait on. And a bound on the sum over all orders limits what one call may ever have to merge.
//!
//! Deferred blocks count as free. [`Buddy`](super::buddy::Buddy) merges them
//! - a freed block that would pass the bound: at once,
//! - when a request finds no block that is large enough: those of smaller orders, until it is satisfied,
//! - when the zone falls below its low watermark: all,
//! - when it is asked to: all.

use crate::addr::PageOrder;

use super::free_area::PageList;
use super::migrate::MigrateType;
use super::page::Page;

/// How many blocks of each order may wait although none is in use.
pub(super) const FLOOR: u64 = 32;

/// When freed blocks are merged with their buddies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Merging {
    /// On every free, as in Linux 2.4.
    Immediate,
    /// Put off while the order is in steady use.
    #[default]
    Deferred,
}

/// How many pages may wait for their merge in a zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DeferredBound {
    /// `min(low watermark / 2, 2 × batch × CPUs)` of the zone.
    #[default]
    Auto,
    /// This many pages.
    Pages(u64),
    /// As many as there are. A request for a large block may then have to merge all of them.
    Unbounded,
}

/// The deferred lists of a zone and the rule that admits to them.
#[derive(Debug)]
pub(super) struct DeferredLists {
    lists: [[PageList; MigrateType::COUNT]; PageOrder::COUNT],
    /// A bit an order, set while its list is not empty.
    pub(super) nonempty: [u16; MigrateType::COUNT],
    blocks: [u64; PageOrder::COUNT],
    pages: u64,
    merging: Merging,
    /// The most pages that may wait.
    bound: u64,
}

impl DeferredLists {
    pub(super) const fn new(merging: Merging) -> Self {
        Self {
            lists: [const { [const { PageList::new() }; MigrateType::COUNT] }; PageOrder::COUNT],
            nonempty: [0; MigrateType::COUNT],
            blocks: [0; PageOrder::COUNT],
            pages: 0,
            merging,
            bound: 0,
        }
    }

    pub(super) fn set_bound(&mut self, bound: u64) {
        self.bound = bound;
    }

    pub(super) fn bound(&self) -> u64 {
        self.bound
    }

    pub(super) fn merging(&self) -> Merging {
        self.merging
    }

    pub(super) fn set_merging(&mut self, merging: Merging) {
        self.merging = merging;
    }

    /// Whether a block of `order` may wait at all while `in_use` others are allocated. The largest never does: it has no buddy.
    #[inline]
    pub(super) fn admits(&self, order: PageOrder, in_use: u64) -> bool {
        self.merging == Merging::Deferred
            && order < PageOrder::MAX
            && order.pages() <= self.bound
            && self.blocks[order.index()] < in_use + FLOOR
    }

    /// Whether one more block of `order` would break the bound.
    #[inline]
    pub(super) fn is_full_for(&self, order: PageOrder) -> bool {
        self.pages + order.pages() > self.bound
    }

    /// Pages that wait.
    #[inline]
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// Blocks of one order that wait.
    pub(super) fn blocks(&self, order: PageOrder) -> u64 {
        self.blocks[order.index()]
    }

    #[inline]
    pub(super) fn push(&mut self, map: &[Page], index: u32, order: PageOrder, migrate: MigrateType) {
        self.lists[order.index()][migrate as usize].push_front(map, index);
        self.nonempty[migrate as usize] |= 1 << order.get();
        self.blocks[order.index()] += 1;
        self.pages += order.pages();
    }

    /// Takes a block out that is on one of these lists.
    #[inline]
    pub(super) fn remove(&mut self, map: &[Page], index: u32, order: PageOrder, migrate: MigrateType) {
        let list = &mut self.lists[order.index()][migrate as usize];
        list.remove(map, index);
        if list.is_empty() {
            self.nonempty[migrate as usize] &= !(1 << order.get());
        }
        self.blocks[order.index()] -= 1;
        self.pages -= order.pages();
    }

    /// The block that came last.
    #[inline]
    pub(super) fn newest(&self, order: PageOrder, migrate: MigrateType) -> Option<u32> {
        self.lists[order.index()][migrate as usize].front()
    }

    /// The block that has waited longest, of some order below `limit`, the largest of these orders first.
    pub(super) fn oldest_below(&self, limit: u8) -> Option<(u32, PageOrder, MigrateType)> {
        let orders = PageOrder::all().filter(|order| order.get() < limit).rev();
        orders.flat_map(|order| self.oldest_of(order)).next()
    }

    /// The blocks of one order that have waited longest, one for each migrate type.
    pub(super) fn oldest_of(
        &self,
        order: PageOrder,
    ) -> impl Iterator<Item = (u32, PageOrder, MigrateType)> + use<'_> {
        MigrateType::ALL.into_iter().filter_map(move |migrate| {
            Some((self.lists[order.index()][migrate as usize].back()?, order, migrate))
        })
    }

    /// The blocks of one list.
    pub(super) fn iter<'a>(
        &self,
        map: &'a [Page],
        order: PageOrder,
        migrate: MigrateType,
    ) -> impl Iterator<Item = u32> + use<'a> {
        self.lists[order.index()][migrate as usize].iter(map)
    }
}
