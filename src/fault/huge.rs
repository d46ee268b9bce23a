//! Pages of 2 MiB: faults.
//!
//! A huge entry is 512 entries written as one, and counts as that: its block is split in the allocator before it is mapped, so that each of
//! its 512 pages has counts, flags, owner and index of its own, as any other page. Whether a page is mapped by a small entry or by a
//! part of a huge one, its count and map count are one for each; a huge entry can become 512 small ones, in one address space and
//! not in another, without a count being touched; and a page of it that is unmapped alone is free at once. When all of a block's
//! pages go together they are freed as one block again.
//!
//! The price is that a fault, a fork and an exit touch the metadata of 512 pages where Linux touches one's: a few microseconds, beside
//! the hundred or more that filling 2 MiB with zeros takes.
//!
//! Huge entries are there in anonymous private memory only, each inside one VMA; for each a leaf table is kept for its split, which
//! therefore cannot fail.

use super::entry::{PageHold, RIGHTS, rights, writable};
use super::{Access, At, MmPager, Resolved, Signal, Stop, no_table};
use crate::addr::{PageOrder, Pfn, PgOff, VirtAddr, VirtRange};
use crate::flags::{GfpFlags, PageFlags, VmFlags};
use crate::mm::{AnonVma, RssKind, huge_page_around};
use crate::phys::{Page, PageSource};
use crate::platform::Platform;
use crate::table::{EntryFormat, HugeRef, Leaf, Mapped, PreparedTable, Pte, PteBits, TableError};

/// How many pages a huge entry maps.
pub(super) const PAGES: u64 = PageOrder::MAX.pages();

/// What a huge page may be allocated with: a small page does as well, so that nobody waits for one, unless the memory was advised to have them.
///
/// # Linux
/// `vma_thp_gfp_mask` in `mm/huge_memory.c`, with `transparent_hugepage/defrag` at its default, `madvise`.
#[doc(alias = "GFP_TRANSHUGE_LIGHT")]
fn gfp_mask(flags: VmFlags) -> GfpFlags {
    let light = (GfpFlags::HIGHUSER_MOVABLE | GfpFlags::NOMEMALLOC | GfpFlags::NOWARN) - GfpFlags::RECLAIM;
    if flags.contains(VmFlags::HUGEPAGE) { light | GfpFlags::DIRECT_RECLAIM } else { light }
}

/// A block of 2 MiB full of zeros; `None` if there is none.
pub(super) fn zeroed_block(source: &impl PageSource, gfp: GfpFlags) -> Option<Pfn> {
    let block = source.alloc_pages(gfp, PageOrder::MAX).ok()?;
    // A frame at a time, so that interrupts are not masked for 2 MiB.
    let zero = |pfn: Pfn| {
        let pin = source.platform().pin();
        source.phys().kmap(&pin, pfn).map(|frame| frame.fill(0)).is_ok()
    };
    if frames(block).all(zero) {
        return Some(block);
    }
    let freed = source.free_pages(block, PageOrder::MAX);
    debug_assert!(freed.is_ok(), "a block just allocated can be freed: {freed:?}");
    None
}

/// The 512 frames from `first` on.
pub(super) fn frames(first: Pfn) -> impl Iterator<Item = Pfn> {
    (0..PAGES).filter_map(move |page| first.checked_add(page))
}

impl<'a, S: PageSource, F: EntryFormat> MmPager<'a, '_, S, F> {
    /// The 512 pages of a huge entry.
    pub(super) fn pages_of(&self, entry: Mapped) -> impl Iterator<Item = &'a Page> {
        let pager = self.pager;
        frames(entry.pfn).filter_map(move |pfn| pager.page(pfn))
    }

    /// Whether a huge entry maps the page of zeros.
    pub(super) fn is_huge_zero(&self, entry: Mapped) -> bool {
        entry.bits.contains(PteBits::SPECIAL) && self.pager.huge_zero.pfn() == Some(entry.pfn)
    }

    /// Whether an entry maps zeros that are nobody's, small or huge.
    pub(super) fn is_zero(&self, entry: Mapped) -> bool {
        entry.pfn == self.pager.zero_page || self.is_huge_zero(entry)
    }

    /// The first touch of a place that a huge page fits: maps one, unless there is a leaf table already or no block to be had, where `None` says
    /// that a small page must do.
    ///
    /// # Linux
    /// `create_huge_pmd` in `mm/memory.c`, `do_huge_pmd_anonymous_page` in `mm/huge_memory.c`.
    #[doc(alias = "do_huge_pmd_anonymous_page")]
    pub(super) fn missing_huge(&self, at: &At<'_, '_>) -> Result<Option<Resolved>, Stop> {
        let Some(range) = self.huge_page_at(at) else { return Ok(None) };
        if !self.has_no_table(range.start()) {
            return Ok(None);
        }
        let (anon, _) = self.owner(at)?;
        if at.access != Access::Write {
            return self.map_huge_zero(at, range);
        }
        let pgoff = at.vma.pgoff_at(range.start());
        let Some(block) = self.block_for(at, anon, pgoff, PageFlags::ANON_EXCLUSIVE)? else {
            return Ok(None);
        };
        let entry = Mapped { pfn: block.pfn(), bits: writable(rights(&at.vma), at.vma.flags) };
        if self.put_huge(range, entry, || self.book_huge(entry, anon))? {
            block.leave();
        }
        Ok(Some(Resolved::Minor))
    }

    /// A block of zeros for a fault, as 512 anonymous pages, the first of them with the index `pgoff`.
    ///
    /// # Linux
    /// `vma_alloc_anon_folio_pmd` in `mm/huge_memory.c`.
    fn block_for(
        &self,
        at: &At<'_, '_>,
        anon: AnonVma,
        pgoff: PgOff,
        extra: PageFlags,
    ) -> Result<Option<PageHold<'a, S>>, Stop> {
        let source = self.pager.source;
        let Some(block) = zeroed_block(source, gfp_mask(at.vma.flags)) else {
            self.pager.huge_zero.events().note_fallback();
            return Ok(None);
        };
        let split =
            source.phys().split_pages(&source.platform().pin(), block, PageOrder::MAX, PageOrder::ZERO);
        debug_assert!(split.is_ok(), "a block just allocated can be split: {split:?}");
        let block = PageHold::of_block(source, block);
        let pages = frames(block.pfn()).filter_map(|pfn| self.pager.page(pfn));
        for (page, index) in pages.zip(0..) {
            let place = pgoff.checked_add(index).ok_or(Stop::Signal(Signal::NoPage))?;
            Self::dress(page, anon, place, extra)?;
        }
        Ok(Some(block))
    }

    fn huge_page_at(&self, at: &At<'_, '_>) -> Option<VirtRange> {
        at.vma.huge_page_at(at.page, self.pager.context.sysctl().huge_pages)
    }

    /// A load maps zeros.
    ///
    /// # Linux
    /// `set_huge_zero_folio` in `mm/huge_memory.c`, with `transparent_hugepage/use_zero_page` at its default, 1.
    #[doc(alias = "set_huge_zero_folio")]
    fn map_huge_zero(&self, at: &At<'_, '_>, range: VirtRange) -> Result<Option<Resolved>, Stop> {
        let Some(pfn) = self.huge_zero() else {
            self.pager.huge_zero.events().note_fallback();
            return Ok(None);
        };
        let bits = rights(&at.vma) | PteBits::SPECIAL;
        self.put_huge(range, Mapped { pfn, bits }, || {})?;
        Ok(Some(Resolved::Minor))
    }

    /// The huge page of zeros, of which this address space is a user from now on.
    ///
    /// # Linux
    /// `mm_get_huge_zero_folio` in `mm/huge_memory.c`.
    #[doc(alias = "mm_get_huge_zero_folio")]
    pub(super) fn huge_zero(&self) -> Option<Pfn> {
        let zero = self.pager.huge_zero;
        if self.shared.uses_huge_zero() {
            return zero.pfn();
        }
        let pfn = zero.get(self.pager.source)?;
        if self.shared.set_uses_huge_zero(true) {
            // Another fault was faster, and has counted already.
            zero.put(self.pager.source);
        }
        Some(pfn)
    }

    /// This address space, which maps nothing any more, is no user of the huge page of zeros either.
    ///
    /// # Linux
    /// `mm_put_huge_zero_folio` in `mm/huge_memory.c`.
    #[doc(alias = "mm_put_huge_zero_folio")]
    pub(super) fn leave_huge_zero(&self) {
        if self.shared.set_uses_huge_zero(false) {
            self.pager.huge_zero.put(self.pager.source);
        }
    }

    /// Maps 2 MiB where neither an entry nor a leaf table is; `false` if there is one by now.
    fn put_huge(&self, range: VirtRange, entry: Mapped, book: impl FnOnce()) -> Result<bool, Stop> {
        let no_table = |error: TableError| no_table::<F>(error, range.start());
        self.table.ensure_huge(range.start(), GfpFlags::KERNEL).map_err(no_table)?;
        let table = PreparedTable::new(self.pager.source, GfpFlags::KERNEL).map_err(no_table)?;
        let entry = Mapped { bits: entry.bits | PteBits::ACCESSED, ..entry };
        let put = {
            let pin = self.pager.source.platform().pin();
            self.table.put_huge(&pin, range.start(), entry, table, None, book)
        };
        Ok(put.is_ok())
    }

    /// Books that a huge entry maps its pages from now on. Their one reference is the entry's.
    ///
    /// # Linux
    /// `map_anon_folio_pmd` in `mm/huge_memory.c`.
    #[doc(alias = "map_anon_folio_pmd")]
    fn book_huge(&self, entry: Mapped, anon: AnonVma) {
        self.pager.context.anon_vmas().add_pages(anon.id(), PAGES as u32);
        self.pages_of(entry).for_each(Page::add_map);
        self.shared.add_rss(RssKind::Anon, PAGES);
        self.pager.huge_zero.events().note_alloc();
        self.pager.huge_zero.events().add_mapped();
    }

    /// A touch of a huge page that its entry forbids.
    ///
    /// # Linux
    /// `wp_huge_pmd` in `mm/memory.c`, `do_huge_pmd_wp_page` in `mm/huge_memory.c`.
    #[doc(alias = "do_huge_pmd_wp_page")]
    pub(super) fn present_huge(&self, at: &At<'_, '_>, entry: Mapped) -> Result<Resolved, Stop> {
        if at.access != Access::Write || entry.bits.contains(PteBits::WRITE) {
            return self.present(at, entry);
        }
        let done = match self.is_huge_zero(entry) {
            true => self.replace_huge_zero(at, entry)?,
            false => self.reuse_huge(at, entry),
        };
        if done {
            return Ok(Resolved::Minor);
        }
        self.split_at(at.page);
        self.resolve(at)
    }

    /// Lets a huge page be written of which nobody else has a page; whether that was so.
    fn reuse_huge(&self, at: &At<'_, '_>, entry: Mapped) -> bool {
        self.with_same_huge(at, entry, |huge| {
            let alone = self.pages_of(entry).all(|page| {
                page.flags().contains(PageFlags::ANON_EXCLUSIVE)
                    || (page.map_count() == 1 && page.count() == 1)
            });
            if alone {
                self.allow_writing_huge(at, huge, entry);
            }
            alone
        })
        // Another fault changed it: the access is tried again.
        .unwrap_or(true)
    }

    /// Lets a huge page be written that is this process's alone.
    fn allow_writing_huge(&self, at: &At<'_, '_>, huge: &HugeRef<'_, F>, entry: Mapped) {
        for page in self.pages_of(entry) {
            page.set_flags(PageFlags::ANON_EXCLUSIVE);
        }
        huge.update(|now| Mapped { bits: writable(now.bits, at.vma.flags) | PteBits::ACCESSED, ..now });
    }

    /// Puts a huge page of the process's own in the place of the one of zeros; `false` if there is no block for it.
    ///
    /// As with a small page, all CPUs must have forgotten the zeros before any of them writes: until then the new page is mapped for
    /// reading, and each of its 512 pages has a reference more. A write of another CPU in that moment splits it.
    ///
    /// # Linux
    /// `do_huge_zero_wp_pmd` in `mm/huge_memory.c`.
    #[doc(alias = "do_huge_zero_wp_pmd")]
    fn replace_huge_zero(&self, at: &At<'_, '_>, zero: Mapped) -> Result<bool, Stop> {
        let Some(range) = huge_page_around(at.page) else { return Ok(false) };
        let (anon, _) = self.owner(at)?;
        let pgoff = at.vma.pgoff_at(range.start());
        let Some(block) = self.block_for(at, anon, pgoff, PageFlags::empty())? else { return Ok(false) };
        let readable = Mapped { pfn: block.pfn(), bits: rights(&at.vma) | PteBits::ACCESSED };
        self.pages_of(readable).for_each(|page| {
            page.try_get();
        });
        let _one_more = PageHold::of_block(self.pager.source, block.pfn());
        let replaced = self.with_same_huge(at, zero, |huge| {
            let set = huge.set(Pte::Present(readable)).is_ok();
            if set {
                self.book_huge(readable, anon);
            }
            set
        });
        if replaced == Some(true) {
            block.leave();
            let mut gather = self.gather();
            gather.tlb.flush_huge(range);
            gather.finish();
            self.with_same_huge(at, readable, |huge| self.allow_writing_huge(at, huge, readable));
        }
        Ok(true)
    }

    /// Runs `change` with the huge entry locked, if it still maps the same pages with the same rights.
    fn with_same_huge<R>(
        &self,
        at: &At<'_, '_>,
        entry: Mapped,
        change: impl FnOnce(&HugeRef<'_, F>) -> R,
    ) -> Option<R> {
        let pin = self.pager.source.platform().pin();
        let Leaf::Huge(huge) = self.table.lock(&pin, at.page) else { return None };
        let same = huge
            .get()
            .mapped()
            .is_some_and(|now| now.pfn == entry.pfn && now.bits & RIGHTS == entry.bits & RIGHTS);
        same.then(|| change(&huge))
    }

    /// Makes small entries of the huge one at an address, if there is one. No count changes.
    ///
    /// # Locking
    /// The caller holds no pin: CPUs are waited for.
    ///
    /// # Linux
    /// `__split_huge_pmd` in `mm/huge_memory.c`.
    #[doc(alias = "split_huge_pmd")]
    pub(super) fn split_at(&self, addr: VirtAddr) {
        let moved = {
            let pin = self.pager.source.platform().pin();
            let Leaf::Huge(huge) = self.table.lock(&pin, addr) else { return };
            let is_zero = huge.get().mapped().is_some_and(|whole| self.is_huge_zero(whole));
            self.split(huge) && is_zero
        };
        // Small pages of zeros are another frame; all else stays where CPUs know it to be.
        if let Some(page) = huge_page_around(addr).filter(|_| moved) {
            let mut gather = self.gather();
            gather.tlb.flush_huge(page);
            gather.finish();
        }
    }

    /// Makes small entries of a huge one, which the caller flushes if it was of zeros; `false` if it had no table for that, which cannot be.
    pub(super) fn split(&self, huge: HugeRef<'_, F>) -> bool {
        let counted = huge.get().mapped().is_some_and(|whole| !whole.bits.contains(PteBits::SPECIAL));
        let small_zero = huge.get().mapped().filter(|&whole| self.is_huge_zero(whole));
        let split = huge.split_with(|index, whole| match small_zero {
            Some(_) => Mapped { pfn: self.pager.zero_page, ..whole },
            None => Mapped { pfn: whole.pfn.checked_add(index).unwrap_or(whole.pfn), ..whole },
        });
        debug_assert!(split, "a huge entry had no table for its split");
        if split {
            self.pager.huge_zero.events().note_split();
        }
        if split && counted {
            self.pager.huge_zero.events().sub_mapped();
        }
        split
    }

    fn has_no_table(&self, addr: VirtAddr) -> bool {
        let pin = self.pager.source.platform().pin();
        matches!(self.table.lock(&pin, addr), Leaf::Absent { .. })
    }
}
