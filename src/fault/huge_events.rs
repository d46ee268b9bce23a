//! What is counted of huge pages.

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts what becomes of huge pages, of all address spaces.
#[derive(Debug)]
pub(super) struct HugeEvents {
    fault_alloc: AtomicU64,
    fault_fallback: AtomicU64,
    split_pmd: AtomicU64,
    zero_page_alloc: AtomicU64,
    zero_page_alloc_failed: AtomicU64,
    mapped: AtomicU64,
}

/// The same as numbers, by Linux's names.
///
/// # Linux
/// `THP_FAULT_ALLOC` and its like in `include/linux/vm_event_item.h`, `NR_ANON_THPS` in `include/linux/mmzone.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HugeCounts {
    /// Faults that were given a huge page.
    pub thp_fault_alloc: u64,
    /// Faults that were to get one and got a small page, since there was no block.
    pub thp_fault_fallback: u64,
    /// Huge entries that small ones were made of.
    pub thp_split_pmd: u64,
    /// How often the huge page of zeros was made.
    pub thp_zero_page_alloc: u64,
    /// How often there was no block for it.
    pub thp_zero_page_alloc_failed: u64,
    /// Huge entries of anonymous pages now. Linux counts a page once that several processes map as a whole.
    pub nr_anon_transparent_hugepages: u64,
}

impl HugeEvents {
    /// Nothing so far.
    pub(super) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            fault_alloc: zero(),
            fault_fallback: zero(),
            split_pmd: zero(),
            zero_page_alloc: zero(),
            zero_page_alloc_failed: zero(),
            mapped: zero(),
        }
    }

    pub(super) fn note_alloc(&self) {
        self.fault_alloc.fetch_add(1, Relaxed);
    }

    pub(super) fn note_fallback(&self) {
        self.fault_fallback.fetch_add(1, Relaxed);
    }

    pub(super) fn note_split(&self) {
        self.split_pmd.fetch_add(1, Relaxed);
    }

    /// The huge page of zeros was to be made.
    pub(super) fn note_zero_page(&self, block: Option<crate::addr::Pfn>) {
        let count = if block.is_some() { &self.zero_page_alloc } else { &self.zero_page_alloc_failed };
        count.fetch_add(1, Relaxed);
    }

    /// There is a huge entry of anonymous pages more.
    pub(super) fn add_mapped(&self) {
        self.mapped.fetch_add(1, Relaxed);
    }

    /// There is one less.
    pub(super) fn sub_mapped(&self) {
        self.mapped.fetch_sub(1, Relaxed);
    }

    /// The numbers now.
    pub(super) fn counts(&self) -> HugeCounts {
        HugeCounts {
            thp_fault_alloc: self.fault_alloc.load(Relaxed),
            thp_fault_fallback: self.fault_fallback.load(Relaxed),
            thp_split_pmd: self.split_pmd.load(Relaxed),
            thp_zero_page_alloc: self.zero_page_alloc.load(Relaxed),
            thp_zero_page_alloc_failed: self.zero_page_alloc_failed.load(Relaxed),
            nr_anon_transparent_hugepages: self.mapped.load(Relaxed),
        }
    }
}
