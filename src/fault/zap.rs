//! Taking the pages of a range away.

use super::MmPager;
use super::entry::one_page;
use super::gather::Gather;
use crate::addr::{PAGE_SIZE, PageOrder, VirtAddr, VirtRange};
use crate::flags::GfpFlags;
use crate::mm::{EmptyTables, MmError};
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::{EntryFormat, Found, HugeRef, Leaf, Pte, Zap, Zapper};

/// What to do with the markers of guard regions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Guards {
    /// They go too, as the mapping itself does.
    Go,
    /// They stay, as when a file is truncated or memory is given back.
    Stay,
}

/// Takes pages of an address space away.
struct PageZapper<'z, 'a, 'm, S: PageSource, F: EntryFormat> {
    pages: &'z MmPager<'a, 'm, S, F>,
    guards: Guards,
    gather: &'z mut Gather<'a, 'm, S>,
}

impl<S: PageSource, F: EntryFormat> Zapper<F> for PageZapper<'_, '_, '_, S, F> {
    fn forget(&mut self, range: VirtRange) {
        self.gather.flush_range(range);
    }

    #[inline]
    fn has_room(&self, entries: usize) -> bool {
        self.gather.has_room(entries)
    }

    fn make_room(&mut self, entries: usize) {
        self.gather.make_room(entries);
    }

    #[inline]
    fn choose(&mut self, found: Found) -> Zap {
        if found.pte == Pte::Guard && self.guards == Guards::Stay { Zap::Keep } else { Zap::Take }
    }

    #[inline]
    fn take(&mut self, found: Found) {
        let Pte::Present(entry) = found.pte else { return };
        match found.order {
            PageOrder::ZERO => self.pages.unbook(entry, self.gather),
            _ => self.pages.unbook_huge(entry, self.gather),
        }
    }

    fn zap_huge(&mut self, huge: HugeRef<'_, F>) -> Pte {
        huge.zap(&mut self.gather.tlb)
    }

    fn split(&mut self, huge: HugeRef<'_, F>) -> bool {
        self.pages.split(huge)
    }
}

/// The first address of the next page.
pub(super) fn after(page: VirtAddr) -> VirtAddr {
    page.checked_add(PAGE_SIZE as u64).unwrap_or(VirtAddr::MAX)
}

impl<'a, 'm, S: PageSource, F: EntryFormat> MmPager<'a, 'm, S, F> {
    /// Takes all entries of `range` out. Pages and translations go with `gather`.
    ///
    /// # Linux
    /// `zap_page_range_single` and `unmap_page_range` in `mm/memory.c`.
    #[doc(alias = "zap_page_range")]
    pub(super) fn zap(&self, range: VirtRange, guards: Guards, gather: &mut Gather<'a, 'm, S>) {
        self.table.zap_by(range, &mut PageZapper { pages: self, guards, gather });
    }

    /// Takes out the tables that are empty: they go with `gather`.
    ///
    /// # Linux
    /// `free_pgtables` in `mm/memory.c`.
    pub(super) fn free_emptied(&self, emptied: EmptyTables, gather: &mut Gather<'a, 'm, S>) {
        self.table.free_empty_by(emptied.range, emptied.hole, self.shared.table_lock(), gather);
    }

    /// Markers in the place of all pages of `range`: touching them is SIGSEGV.
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`] if a table could not be had; the markers before it stay.
    ///
    /// # Linux
    /// `madvise_guard_install` in `mm/madvise.c`.
    pub(super) fn install_guards(&self, range: VirtRange) -> Result<(), MmError> {
        let mut gather = self.gather();
        self.zap(range, Guards::Stay, &mut gather);
        gather.finish();
        let mut at = range.start();
        while at < range.end() {
            self.table.ensure(at, GfpFlags::KERNEL).map_err(|_| MmError::OutOfMemory)?;
            let marked = self.mark(at, range.end());
            if marked == at {
                // A fault has put a page here again meanwhile.
                let mut gather = self.gather();
                self.zap(one_page(at), Guards::Stay, &mut gather);
                gather.finish();
            }
            at = marked;
        }
        Ok(())
    }

    /// Puts markers where nothing is, up to a page or the end of a leaf table; where that is.
    fn mark(&self, from: VirtAddr, end: VirtAddr) -> VirtAddr {
        let pin = self.pager.source.platform().pin();
        let Leaf::Table(table) = self.table.lock(&pin, from) else { return from };
        let end = end.min(table.end());
        let mut at = from;
        while at < end && matches!(table.get(at), Pte::None | Pte::Guard) {
            table.set(at, Pte::Guard);
            at = after(at);
        }
        at
    }

    /// Takes the markers of `range` out.
    ///
    /// # Linux
    /// `madvise_guard_remove` in `mm/madvise.c`.
    pub(super) fn remove_guards(&self, range: VirtRange) {
        let choose = |found: Found| if found.pte == Pte::Guard { Zap::Take } else { Zap::Keep };
        let mut gather = self.gather();
        self.table.zap_range(range, &mut gather.tlb, choose, |_, _| {});
        gather.finish();
    }
}
