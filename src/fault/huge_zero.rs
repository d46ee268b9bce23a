//! The huge page of zeros.

use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

use super::huge::zeroed_block;
use super::huge_events::{HugeCounts, HugeEvents};
use crate::addr::{PageOrder, Pfn};
use crate::flags::GfpFlags;
use crate::phys::PageSource;
use crate::sync::TaskLock;

/// What a huge page is read as before it is written: 2 MiB of zeros, there as long as an address space uses it.
///
/// Its block is one of order 9 with one reference, this one's. As the small page of zeros it is mapped by entries with
/// [`SPECIAL`](crate::table::PteBits::SPECIAL), and not counted.
///
/// # Linux
/// `huge_zero_folio` in `mm/huge_memory.c`. There a shrinker frees it some time after its last user has gone.
#[derive(Debug)]
#[doc(alias = "huge_zero_folio")]
pub struct HugeZeroPage {
    /// The address spaces that may have mapped it.
    users: TaskLock<u32>,
    /// Its first frame plus one, or 0.
    block: AtomicU64,
    /// What is counted of it and of other huge pages.
    events: HugeEvents,
}

impl Default for HugeZeroPage {
    fn default() -> Self {
        Self::new()
    }
}

impl HugeZeroPage {
    /// None yet.
    pub fn new() -> Self {
        Self { users: TaskLock::new(0), block: AtomicU64::new(0), events: HugeEvents::new() }
    }

    /// What was counted of huge pages.
    pub fn counts(&self) -> HugeCounts {
        self.events.counts()
    }

    pub(super) const fn events(&self) -> &HugeEvents {
        &self.events
    }

    /// Its first frame, while it is there.
    pub fn pfn(&self) -> Option<Pfn> {
        // Acquire pairs with the Release of `get`: who sees the block sees the zeros.
        Pfn::new(self.block.load(Acquire).checked_sub(1)?)
    }

    /// Counts one more user, and makes the page for the first one; `None`, and nothing is counted, if there is no block for it.
    #[doc(alias = "get_huge_zero_folio")]
    pub(super) fn get(&self, source: &impl PageSource) -> Option<Pfn> {
        if let Some(pfn) = self.join() {
            return Some(pfn);
        }
        // No lock is held while the allocation may reclaim.
        let gfp = GfpFlags::HIGHUSER | GfpFlags::NOMEMALLOC | GfpFlags::NOWARN;
        let block = zeroed_block(source, gfp);
        self.events.note_zero_page(block);
        let block = block?;
        let other = {
            let mut users = self.users.lock();
            let other = self.pfn().filter(|_| *users != 0);
            if other.is_none() {
                self.block.store(block.get() + 1, Release);
            }
            *users += 1;
            other
        };
        if other.is_some() {
            free(source, block);
        }
        other.or(Some(block))
    }

    /// Counts one more user, if there are others.
    fn join(&self) -> Option<Pfn> {
        let mut users = self.users.lock();
        let pfn = self.pfn().filter(|_| *users != 0)?;
        *users += 1;
        Some(pfn)
    }

    /// Counts one user less, which maps it no more, and whose CPUs have forgotten it. The last one frees the page.
    #[doc(alias = "put_huge_zero_folio")]
    pub(super) fn put(&self, source: &impl PageSource) {
        let last = {
            let mut users = self.users.lock();
            *users = users.saturating_sub(1);
            self.pfn().filter(|_| *users == 0).inspect(|_| self.block.store(0, Release))
        };
        if let Some(block) = last {
            free(source, block);
        }
    }
}

fn free(source: &impl PageSource, block: Pfn) {
    let freed = source.free_pages(block, PageOrder::MAX);
    debug_assert!(freed.is_ok(), "the huge page of zeros was somebody else's: {freed:?}");
}
