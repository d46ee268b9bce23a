//! Taking the pages of a range away.

use super::MmPager;
use super::entry::one_page;
use super::gather::Gather;
use crate::addr::{PAGE_SIZE, PageOrder, VirtAddr, VirtRange};
use crate::flags::GfpFlags;
use crate::mm::{Advised, EmptyTables, MmError};
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::{EntryFormat, Found, HUGE_SIZE, HugeRef, Leaf, Pte, Zap, Zapper};

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
    range: VirtRange,
    guards: Guards,
    gather: &'z mut Gather<'a, 'm, S>,
    /// The addresses of tables that have no entry any more, and what lies between them.
    emptied: Option<VirtRange>,
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

    fn emptied(&mut self, table: VirtRange) {
        // A leaf table may lie in what the caller takes away next; one of a GiB seldom does.
        if table.len() <= HUGE_SIZE || self.range.encloses(table) {
            self.emptied = Some(hull(self.emptied, table));
        }
    }
}

/// So often pages are taken away to make room for markers.
///
/// # Linux
/// `MAX_MADVISE_GUARD_RETRIES` in `mm/madvise.c`.
#[doc(alias = "MAX_MADVISE_GUARD_RETRIES")]
const GUARD_ROUNDS: u32 = 5;

/// Two ranges and what lies between them.
fn hull(noted: Option<VirtRange>, range: VirtRange) -> VirtRange {
    let noted = noted.unwrap_or(range);
    VirtRange::new(noted.start().min(range.start()), noted.end().max(range.end())).unwrap_or(range)
}

/// The first address of the next page.
pub(super) fn after(page: VirtAddr) -> VirtAddr {
    page.checked_add(PAGE_SIZE as u64).unwrap_or(VirtAddr::MAX)
}

impl<'a, 'm, S: PageSource, F: EntryFormat> MmPager<'a, 'm, S, F> {
    /// Takes all entries of `range` out. Pages and translations go with `gather`. Answers where tables have no entry now, if any are there.
    ///
    /// # Linux
    /// `zap_page_range_single` and `unmap_page_range` in `mm/memory.c`.
    #[doc(alias = "zap_page_range")]
    pub(super) fn zap(
        &self,
        range: VirtRange,
        guards: Guards,
        gather: &mut Gather<'a, 'm, S>,
    ) -> Option<VirtRange> {
        let mut zapper = PageZapper { pages: self, range, guards, gather, emptied: None };
        self.table.zap_by(range, &mut zapper);
        zapper.emptied
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
    /// Faults may put pages there meanwhile. They are taken away so many times: who comes first each time is kept out by [`Advised::Outrun`].
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`] if a table could not be had; the markers before it stay.
    ///
    /// # Linux
    /// `madvise_guard_install` in `mm/madvise.c`, which lets signals in after as many rounds, and begins anew.
    #[doc(alias = "MADV_GUARD_INSTALL")]
    pub(super) fn install_guards(&self, range: VirtRange) -> Result<Advised, MmError> {
        let mut rest = range;
        for _ in 0..GUARD_ROUNDS {
            let mut gather = self.gather();
            self.zap(rest, Guards::Stay, &mut gather);
            gather.finish();
            match self.mark(rest)? {
                Some(pages) => rest = pages,
                None => return Ok(Advised::Done),
            }
        }
        Ok(Advised::Outrun)
    }

    /// Puts markers where nothing is. Answers where the first and the last page are that are in the way.
    ///
    /// # Errors
    /// As [`install_guards`](Self::install_guards).
    fn mark(&self, range: VirtRange) -> Result<Option<VirtRange>, MmError> {
        let (mut at, mut pages) = (range.start(), None);
        while at < range.end() {
            self.table.ensure(at, GfpFlags::KERNEL).map_err(|_| MmError::OutOfMemory)?;
            let pin = self.pager.source.platform().pin();
            let leaf = self.table.lock(&pin, at);
            let end = match &leaf {
                Leaf::Table(table) => table.end(),
                Leaf::Huge(huge) => huge.end(),
                Leaf::Absent { next } => *next,
            };
            let end = end.min(range.end());
            match leaf {
                Leaf::Table(table) => {
                    for page in core::iter::successors(Some(at), |&page| Some(after(page))) {
                        if page >= end {
                            break;
                        }
                        match table.get(page) {
                            Pte::None => table.set(page, Pte::Guard),
                            Pte::Guard => {}
                            Pte::Present(_) | Pte::Swap(_) => pages = Some(hull(pages, one_page(page))),
                        }
                    }
                }
                // Of a huge page, or of nothing where a table was, what lies here is looked at again.
                _ => pages = VirtRange::new(at, end).map(|part| hull(pages, part)),
            }
            at = end;
        }
        Ok(pages)
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
