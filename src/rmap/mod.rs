//! Who maps a page.
//!
//! Every VMA of a file is on that file's sharing list, every VMA with anonymous pages on that of the pages' owner. The VMAs themselves
//! live further down: here they are numbers of slots. What is to be done to the page-table entries of a VMA is [`MmAccess`], which
//! whoever walks a list is given.

mod anon;

pub use anon::AnonNode;

use crate::addr::{Pfn, PgOff, VirtAddr, VirtRange};
use crate::collections::Slot;

/// Where a VMA lies, in its address space and in what it maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The slot of its address space.
    pub mm: Slot,
    /// Its first address.
    pub start: VirtAddr,
    /// Its length in pages.
    pub pages: u64,
    /// Which page of the file, or of the anonymous memory, its first one is.
    pub pgoff: PgOff,
}

impl Place {
    /// The address of a page of the file; `None` if this VMA does not show it.
    ///
    /// # Linux
    /// `vma_address` in `mm/internal.h`.
    #[doc(alias = "vma_address")]
    pub fn addr_of(&self, index: PgOff) -> Option<VirtAddr> {
        let page = index.get().checked_sub(self.pgoff.get()).filter(|&page| page < self.pages)?;
        self.start.checked_add(page << crate::addr::PAGE_SHIFT)
    }

    /// The addresses that show any page from `first` on, up to and without `end`.
    pub fn range_of(&self, first: PgOff, end: PgOff) -> Option<VirtRange> {
        let from = first.get().saturating_sub(self.pgoff.get());
        let to = end.get().saturating_sub(self.pgoff.get()).min(self.pages);
        if from >= to {
            return None;
        }
        let at = |page: u64| self.start.checked_add(page << crate::addr::PAGE_SHIFT);
        VirtRange::new(at(from)?, at(to)?)
    }
}

/// What was found at an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// The entry mapped the page.
    pub mapped: bool,
    /// It had been used since it was last looked at.
    pub accessed: bool,
    /// It had been written through.
    pub dirty: bool,
}

/// What is to be done with the entries of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visit {
    /// Take them out.
    Unmap,
    /// Forbid writing, and note as not dirty.
    Clean,
    /// Note as not used.
    Age,
}

/// Page-table entries of any address space, for those who come from a page.
///
/// # Locking
/// [`visit`](Self::visit) and [`zap`](Self::zap) are called with the lock of the list held that the VMA was found on, so the address space and its
/// tables are there; [`flush`](Self::flush) with no lock held, since it waits for other CPUs.
pub trait MmAccess {
    /// Does `visit` to the entry at `addr` of the address space in slot `mm`, if it maps `pfn`.
    fn visit(&self, mm: Slot, addr: VirtAddr, pfn: Pfn, visit: Visit) -> Seen;

    /// Takes all entries of a range out, copies of the file's pages among them.
    fn zap(&self, mm: Slot, range: VirtRange);

    /// Makes all CPUs forget the translations that were changed, and lets go of what they led to.
    fn flush(&self);
}
