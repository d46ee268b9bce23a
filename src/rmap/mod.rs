//! Who maps a page.
//!
//! Every VMA of a file is on that file's sharing list, every VMA with anonymous pages on that of the pages' owner. The VMAs themselves
//! live further down: here they are numbers of slots. What is to be done to the page-table entries of a VMA is [`MmAccess`], which
//! whoever walks a list is given.

mod anon;
mod share;

pub use anon::{AnonFault, AnonNode, AnonVmaId, AnonVmas};
pub use share::{Settled, ShareList, Walk};

use crate::addr::{Pfn, PgOff, VirtAddr, VirtRange};
use crate::collections::{ListLink, Slot};

/// What a VMA embeds, so that it can be found from the pages that it maps.
///
/// # Linux
/// `shared`, `anon_vma_chain` in `struct vm_area_struct`.
#[derive(Debug, Default)]
#[doc(alias = "anon_vma_chain")]
pub struct RmapLinks {
    pub(in crate::rmap) file: ListLink,
    pub(in crate::rmap) anon: ListLink,
}

impl RmapLinks {
    /// Those of a VMA that is on no list.
    pub const fn new() -> Self {
        Self { file: ListLink::new(), anon: ListLink::new() }
    }

    /// Whether the VMA is on a file's list.
    pub fn is_on_file(&self) -> bool {
        self.file.is_linked()
    }

    /// Whether the VMA is on the list of an owner of anonymous pages.
    pub fn is_on_anon(&self) -> bool {
        self.anon.is_linked()
    }
}

/// The VMAs, as far as lists of them need to know.
pub trait RmapNodes: Sync {
    /// The links of the VMA in a slot.
    fn links(&self, slot: Slot) -> Option<&RmapLinks>;

    /// Where the VMA in a slot lies, of one moment; `None` if it is no address space's.
    fn place(&self, slot: Slot) -> Option<Place>;
}

/// What a walk has met.
///
/// A VMA that is just being merged, split or moved can be missed. Whoever needs all entries of a page compares with the
/// number of its mappings and walks again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "a walk may have missed a VMA that was being changed"]
pub struct Walked {
    /// VMAs that were looked at, whether they show the page or not.
    pub vmas_visited: u32,
    /// Entries that were found.
    pub entries: u32,
}

impl Walked {
    const fn count(&mut self, entries: u32) {
        self.vmas_visited = self.vmas_visited.saturating_add(1);
        self.entries = self.entries.saturating_add(entries);
    }
}

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

/// What becomes of a process's own copies of a file's pages when the file loses those.
///
/// # Linux
/// `even_cows` of `unmap_mapping_range` in `mm/memory.c`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "even_cows")]
pub enum Copies {
    /// They go too: the file has become shorter.
    Go,
    /// They stay: the file has got a hole.
    Stay,
}

/// Page-table entries of any address space, for those who come from a file.
///
/// # Locking
/// [`clean`](Self::clean) and [`zap`](Self::zap) are called with the lock of the list held that the VMA was found on, so the address space and its
/// tables are there; [`flush`](Self::flush) with no lock held, since it waits for other CPUs.
pub trait MmAccess {
    /// Forbids writing by the entry at `addr` of the address space in slot `mm`, and notes it as not dirty, if it maps `pfn`; whether it does.
    fn clean(&self, mm: Slot, addr: VirtAddr, pfn: Pfn) -> bool;

    /// Takes all entries of a range out, or as many as fit in before the next [`flush`](Self::flush): answers where to go on then.
    fn zap(&self, mm: Slot, range: VirtRange, copies: Copies) -> Option<VirtAddr>;

    /// Whether no more fits in before the next [`flush`](Self::flush): what [`clean`](Self::clean) was asked for last may not have been done.
    fn is_full(&self) -> bool {
        false
    }

    /// Makes all CPUs forget the translations that were changed, and lets go of what they led to.
    fn flush(&self);
}
