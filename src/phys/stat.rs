//! What is counted, for reports and tests.

use crate::addr::PageOrder;

/// What a zone's buddy core did since boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct BuddyEvents {
    /// Blocks cut in two.
    pub splits: u64,
    /// Pairs of buddies made one.
    pub merges: u64,
    /// Frees whose merge was put off.
    pub deferred: u64,
    /// Allocations served by a block whose merge had been put off: a merge and a split saved.
    pub deferred_hits: u64,
    /// Freed blocks merged at once because the bound was reached.
    pub coalesced_bound: u64,
    /// Requests that found no block large enough and made the allocator merge.
    pub coalesced_order: u64,
    /// Times all was merged because the zone fell below its low watermark.
    pub coalesced_low: u64,
    /// Times all was merged because somebody asked.
    pub coalesced_asked: u64,
    /// Page blocks that changed their migrate type.
    pub claims: u64,
    /// Blocks taken from another migrate type's page block.
    pub steals: u64,
}

/// The state of a zone at one moment, pages unless said otherwise.
///
/// # Linux
/// What `/proc/zoneinfo` and `/proc/buddyinfo` are printed from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ZoneStat {
    /// Free, deferred ones included; those on CPUs' lists are not.
    pub free: u64,
    /// Free with their merge put off.
    pub deferred: u64,
    /// On CPUs' lists.
    pub on_cpus: u64,
    /// In the depot.
    pub in_depot: u64,
    /// Blocks of each order and migrate type on the free lists.
    pub blocks: [[u64; super::MigrateType::COUNT]; PageOrder::COUNT],
    /// Blocks of each order whose merge is put off.
    pub deferred_blocks: [u64; PageOrder::COUNT],
    /// Allocated since boot.
    pub allocated_ever: u64,
    /// Freed since boot.
    pub freed_ever: u64,
    /// What the buddy core did.
    pub events: BuddyEvents,
}

impl ZoneStat {
    /// Blocks of one order on the free lists.
    pub fn free_blocks(&self, order: PageOrder) -> u64 {
        self.blocks[order.index()].iter().sum()
    }
}
