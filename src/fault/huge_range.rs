//! Pages of 2 MiB: what the calls do to those of a range.
//!
//! A huge page that lies in the range as a whole is treated as one; of one that lies in it in part small pages are made first.

use super::MmPager;
use super::fork::LostRights;
use super::gather::Gather;
use super::huge::{PAGES, frames};
use crate::addr::{PageOrder, VirtAddr, VirtRange};
use crate::flags::{GfpFlags, PageFlags};
use crate::mm::{MmError, RssKind, Vma, huge_page_around};
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::{EntryFormat, HUGE_SIZE, Leaf, Mapped, PreparedTable, Pte, PteBits};

/// Whether one huge page begins at an address.
pub(super) fn is_huge_aligned(addr: VirtAddr) -> bool {
    huge_page_around(addr).is_some_and(|page| page.start() == addr)
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Books that a huge entry, which has been taken out, maps its pages no more. Their references go to `gather`.
    pub(super) fn unbook_huge(&self, entry: Mapped, gather: &mut Gather<'_, '_, S>) {
        if entry.bits.contains(PteBits::SPECIAL) {
            return;
        }
        self.sub_rss(RssKind::Anon, PAGES);
        for page in self.pages_of(entry) {
            if page.remove_map() == Some(0) {
                gather.owners.lose(page);
            }
        }
        self.pager.huge_zero.events().sub_mapped();
        gather.tlb.huge_page(entry.pfn);
    }

    /// Makes small pages of those that lie in a range in part.
    pub(super) fn split_edges(&self, range: VirtRange) {
        for edge in [range.start(), range.end()] {
            if !is_huge_aligned(edge) {
                self.split_at(edge);
            }
        }
    }

    /// As [`split_edges`](Self::split_edges), for advice that is about this process's pages alone: what others map too stays, and zeros do.
    ///
    /// # Linux
    /// `madvise_free_huge_pmd` in `mm/huge_memory.c`, `madvise_cold_or_pageout_pte_range` in `mm/madvise.c`.
    #[doc(alias = "madvise_free_huge_pmd")]
    pub(super) fn split_own_edges(&self, range: VirtRange) {
        for edge in [range.start(), range.end()].into_iter().filter(|&edge| !is_huge_aligned(edge)) {
            let pin = self.pager.source.platform().pin();
            let Leaf::Huge(huge) = self.table.lock(&pin, edge) else { continue };
            let is_own = |entry: Mapped| {
                !entry.bits.contains(PteBits::SPECIAL)
                    && self.pages_of(entry).all(|page| page.map_count() == 1)
            };
            if huge.get().mapped().is_some_and(is_own) {
                self.split(huge);
            }
        }
    }

    /// Answers a wish for huge pages in the place of small ones. None are made by copying small pages: where that would be needed the answer is
    /// that of a Linux that has no block for it.
    ///
    /// # Errors
    /// [`MmError::BadAdvice`] where no huge page fits, or nothing is to be made one; [`MmError::OutOfMemory`] where small pages are.
    ///
    /// # Linux
    /// `madvise_collapse` in `mm/khugepaged.c`.
    #[doc(alias = "madvise_collapse")]
    pub(super) fn collapse(&self, range: VirtRange) -> Result<(), MmError> {
        let mut at = VirtAddr::from(range.start().get().next_multiple_of(HUGE_SIZE));
        // Linux counts from one border to the next: a range without any is refused, and none is to be done between a border and itself.
        let mut result = if at <= range.end() { Ok(()) } else { Err(MmError::BadAdvice) };
        while let Some(page) = huge_page_around(at).filter(|page| page.end() <= range.end()) {
            let pin = self.pager.source.platform().pin();
            match self.table.lock(&pin, at) {
                Leaf::Huge(_) => {}
                Leaf::Absent { .. } => result = Err(MmError::BadAdvice),
                Leaf::Table(_) => return Err(MmError::OutOfMemory),
            }
            at = page.end();
        }
        result
    }

    /// Shares a huge page with a child. `false` if there is none any more: what it has become is to be looked at.
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`].
    ///
    /// # Linux
    /// `copy_huge_pmd` in `mm/huge_memory.c`.
    #[doc(alias = "copy_huge_pmd")]
    pub(super) fn copy_huge(
        &self,
        child: &Self,
        vma: &Vma,
        addr: VirtAddr,
        lost: &mut LostRights,
    ) -> Result<bool, MmError> {
        let source = self.pager.source;
        let is_zero =
            |pager: &Self| pager.find(addr).pte.mapped().is_some_and(|entry| self.is_huge_zero(entry));
        // Not with a table locked. The parent is a user, so that there is a page for the child too.
        if is_zero(self) && child.huge_zero().is_none() {
            return Err(MmError::OutOfMemory);
        }
        child.table.ensure_huge(addr, GfpFlags::KERNEL).map_err(|_| MmError::OutOfMemory)?;
        let table = PreparedTable::new(source, GfpFlags::KERNEL).map_err(|_| MmError::OutOfMemory)?;
        let pin = source.platform().pin();
        let Leaf::Huge(ours) = self.table.lock(&pin, addr) else { return Ok(false) };
        let Some(entry) = ours.get().mapped() else { return Ok(false) };
        if !entry.bits.contains(PteBits::SPECIAL)
            && frames(entry.pfn).any(|pfn| self.needs_copy(vma, Mapped { pfn, ..entry }))
        {
            // Of a page that is pinned the child gets a copy.
            return if self.split(ours) { Ok(false) } else { Err(MmError::OutOfMemory) };
        }
        let bits = entry.bits - PteBits::WRITE - PteBits::ACCESSED;
        let put = child.table.put_huge(&pin, addr, Mapped { bits, ..entry }, table, None, || {
            self.share_huge(child, entry);
        });
        // A child has nothing where nothing was copied to yet.
        debug_assert!(put.is_ok(), "a child has pages of its own");
        put.map_err(|_table| MmError::OutOfMemory)?;
        if entry.bits.contains(PteBits::WRITE) {
            ours.update(|now| Mapped { bits: now.bits - PteBits::WRITE, ..now });
            if let Some(range) = huge_page_around(addr) {
                lost.note_huge(range);
            }
        }
        Ok(true)
    }

    /// Books that a child maps the pages of a huge entry too.
    fn share_huge(&self, child: &Self, entry: Mapped) {
        if entry.bits.contains(PteBits::SPECIAL) {
            return;
        }
        for page in self.pages_of(entry) {
            // The entry's own reference keeps the page; a count that stuck never frees it.
            page.try_get();
            page.add_map();
            page.clear_flags(PageFlags::ANON_EXCLUSIVE);
        }
        child.shared.add_rss(RssKind::Anon, PAGES);
        self.pager.huge_zero.events().add_mapped();
    }

    /// Moves the huge page at the start of 2 MiB to the start of others, where no page is; what is in the way of that is at most an empty leaf table. What
    /// CPUs are to forget is noted in `gather`. `false` and no change if there is none.
    ///
    /// # Linux
    /// `move_huge_pmd` in `mm/huge_memory.c`.
    #[doc(alias = "move_huge_pmd")]
    pub(super) fn move_huge(&self, from: VirtRange, to: VirtAddr, gather: &mut Gather<'_, '_, S>) -> bool {
        let _walkers_wait = self.shared.table_lock().lock();
        let pin = self.pager.source.platform().pin();
        let Leaf::Huge(huge) = self.table.lock(&pin, from.start()) else { return false };
        let (Pte::Present(entry), table) = huge.withdraw(self.pager.source) else { return true };
        gather.tlb.flush_huge(from);
        let put = self.table.put_huge(&pin, to, entry, table, Some(&mut gather.tlb), || {});
        debug_assert!(put.is_ok(), "pages were moved onto others");
        if put.is_err() {
            self.unbook_huge(entry, gather);
        }
        true
    }

    /// The part of a huge entry that maps the page at an address; `None` if its frame has no number.
    pub(super) fn part_of(&self, entry: Mapped, addr: VirtAddr) -> Option<Mapped> {
        let offset = addr.get() & (PageOrder::MAX.bytes() as u64 - 1);
        let pfn = entry.pfn.checked_add(offset >> crate::addr::PAGE_SHIFT)?;
        Some(Mapped { pfn, ..entry })
    }
}
