//! What is counted, for reports and tests.

use crate::addr::PageOrder;
use crate::sync::atomic::Ordering::Relaxed;

use super::cpu_pages::lists;
use super::migrate::MigrateType;
use super::zone::Zone;

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
    pub blocks: [[u64; MigrateType::COUNT]; PageOrder::COUNT],
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

/// What one CPU keeps of a zone, in pages.
///
/// # Linux
/// `struct per_cpu_pages` in `include/linux/mmzone.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct CpuPagesStat {
    /// On its lists.
    pub pages: u64,
    /// The most that its lists hold.
    pub high: u64,
    /// How many single pages move at once.
    pub batch: u64,
}

impl Zone<'_> {
    /// What each CPU keeps of the zone. A CPU may be changing that at this moment.
    pub fn cpu_stats(&self) -> impl Iterator<Item = CpuPagesStat> {
        self.cpu_pages.iter().map(|cpu| {
            let capacity = |(list, order, _): (usize, PageOrder, MigrateType)| {
                2 * u64::from(cpu.lists[list].capacity()) * order.pages()
            };
            CpuPagesStat {
                pages: cpu.pages(),
                high: lists().map(capacity).sum(),
                batch: u64::from(cpu.lists[0].capacity()),
            }
        })
    }

    /// How many page blocks of each migrate type the zone has.
    pub fn page_blocks(&self) -> [u64; MigrateType::COUNT] {
        let mut blocks = [0; MigrateType::COUNT];
        for block in self.map.own_blocks() {
            blocks[block.migrate() as usize] += 1;
        }
        blocks
    }

    /// Frames of the zone's span that the memory map mentions: the managed ones, and those that firmware or the metadata keep.
    pub fn present_pages(&self) -> u64 {
        self.present_pages.load(Relaxed)
    }
}
