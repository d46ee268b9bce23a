//! What is in the cache, and what becomes of it.

use crate::addr::{Pfn, PgOff};
use crate::collections::{LinkError, Slot};
use crate::flags::PageFlags;
use crate::phys::{Page, PageSource};
use crate::platform::{CpuPin, Platform};

use super::PageCache;
use super::mapping::FileId;
use super::pages::{Found, Pages};

impl<'m> PageCache<'m> {
    /// A page that is in the cache and up to date, with a reference for the caller; none beyond the end of the file. Nothing is read.
    ///
    /// # Linux
    /// `find_get_page` in `include/linux/pagemap.h`.
    #[doc(alias = "find_get_page")]
    pub fn find<S: PageSource>(&self, source: &S, file: FileId, index: PgOff) -> Option<Pfn> {
        let pin = source.platform().pin();
        let pages = self.lock(source, &pin, file).ok()?;
        let index = u32::try_from(index.get()).ok().filter(|&index| index < pages.end())?;
        pages.at(index).filter(|page| page.is(PageFlags::UPTODATE))?.get()
    }

    /// Shows those of the `count` pages from `first` on to `each` that are in the cache, up to date and below the end of the file, with their places from `first` on. One
    /// that was marked by read-ahead is left out: who touches it begins the next read.
    ///
    /// # Locking
    /// `each` is called with the file locked once for all of them: what it enters into a page table that the caller has locked, with a reference of its own, a truncation
    /// that comes later finds.
    ///
    /// # Linux
    /// `filemap_map_pages`, `next_uptodate_folio` in `mm/filemap.c`.
    #[doc(alias = "filemap_map_pages")]
    pub(crate) fn visit_around<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        first: PgOff,
        count: u64,
        mut each: impl FnMut(u32, Pfn, &Page),
    ) {
        let pin = source.platform().pin();
        let Ok(mut pages) = self.lock(source, &pin, file) else { return };
        let Ok(first) = u32::try_from(first.get()) else { return };
        let end = u64::from(first).saturating_add(count).min(u64::from(pages.end())) as u32;
        let mut next = pages.from(first);
        while let Some(page) = next.filter(|page| page.index < end) {
            let shows = page.is(PageFlags::UPTODATE) && !page.is(PageFlags::READAHEAD);
            if shows && !pages.hole.has(page.index) {
                pages.hole.got(page.index);
                each(page.index - first, page.pfn, page.page);
            }
            next = pages.after(&page);
        }
    }

    /// Whether [`visit_around`](Self::visit_around) would show any.
    pub(crate) fn has_around<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        first: PgOff,
        count: u64,
    ) -> bool {
        let mut has = false;
        self.visit_around(source, file, first, count, |_, _, _| has = true);
        has
    }

    /// Whether a page that was found is still that page of the file, and not beyond its end or where it is about to get a hole. Who enters it, or a private copy of it, into a page
    /// table asks this with the table locked: a truncation that comes later then finds the entry.
    pub fn still_has<S: PageSource>(&self, source: &S, file: FileId, index: PgOff, pfn: Pfn) -> bool {
        self.if_still_has(source, file, index, pfn, |_, _, _| ())
    }

    /// The same for an entry through which somebody writes: the page is noted to be newer than the store, as by [`set_dirty`](Self::set_dirty), with the file locked once.
    pub fn dirty_if_still_has<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        index: PgOff,
        pfn: Pfn,
    ) -> bool {
        self.if_still_has(source, file, index, pfn, |pin, pages, page| {
            pages.mark_dirty(page);
            self.note_work(pin, pages);
        })
    }

    fn if_still_has<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        index: PgOff,
        pfn: Pfn,
        then: impl FnOnce(&CpuPin<'_>, &mut Pages<'_, 'm>, &Found<'_>),
    ) -> bool {
        let pin = source.platform().pin();
        let Ok(mut pages) = self.lock(source, &pin, file) else { return false };
        let shows = |&index: &u32| index < pages.end() && !pages.hole.has(index);
        let index = u32::try_from(index.get()).ok().filter(shows);
        let has = index.and_then(|index| pages.at(index)).filter(|page| page.pfn == pfn);
        if let Some(page) = has {
            pages.hole.got(page.index);
            then(&pin, &mut pages, &page);
        }
        has.is_some()
    }

    /// Whether a page is in memory and up to date, as mincore tells it.
    ///
    /// # Linux
    /// `mincore_page` in `mm/mincore.c`.
    #[doc(alias = "mincore_page")]
    pub fn residency<S: PageSource>(&self, source: &S, file: FileId, index: PgOff) -> bool {
        let pin = source.platform().pin();
        let Ok(pages) = self.lock(source, &pin, file) else { return false };
        let page = u32::try_from(index.get()).ok().and_then(|index| pages.at(index));
        page.is_some_and(|page| page.is(PageFlags::UPTODATE))
    }

    /// Notes that a page of a file is newer than the store: before an entry lets anybody write to it, with the table locked, and when an entry
    /// goes that was written through. `false` if it is no page of a file (any more); a page that has left its file is nobody's to write back.
    ///
    /// # Locking
    /// The caller has a reference. Of a page that is dirty already the file is not locked.
    ///
    /// # Linux
    /// `set_page_dirty` in `mm/folio-compat.c`, `file_update_time` apart.
    #[doc(alias = "set_page_dirty")]
    pub fn set_dirty<S: PageSource>(&self, source: &S, pfn: Pfn) -> bool {
        let Some((page, file)) = source.page(pfn).and_then(|page| Some((page, file_of(page)?))) else {
            return false;
        };
        // It is dirty already, and has its place among what is to be written. Who notes it as clean after this finds what was written before it, since
        // both change the flags, and so
        // writes that; and he write-protects entries afterwards, with their table locked: also one that the caller, who has it locked, is about to make writable.
        if page.set_flags(PageFlags::empty()).contains(PageFlags::DIRTY) {
            return true;
        }
        let pin = source.platform().pin();
        let Ok(mut pages) = self.lock(source, &pin, file) else { return false };
        // Under the lock: it may have left the file since.
        let ours = pages.page_of(pfn, page);
        if let Some(page) = ours {
            pages.mark_dirty(&page);
            self.note_work(&pin, &mut pages);
        }
        ours.is_some()
    }

    /// A page may have lost its last pin, and the caller has a reference to it: if it was kept for its pins alone, it leaves its file.
    pub(crate) fn unpinned<S: PageSource>(&self, source: &S, pfn: Pfn) {
        let Some(page) = source.page(pfn).filter(|page| !page.maybe_pinned()) else { return };
        if let (Some(file), Ok(index)) = (file_of(page), u32::try_from(page.index())) {
            self.drop_unused(source, file, index..index.saturating_add(1));
        }
    }

    /// Notes that the VMA in a slot maps a file. It is found there until [`unshare`](Self::unshare).
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn share(&self, file: FileId, vma: Slot) -> Result<(), LinkError> {
        let mapping = self.mappings.get(file.place()).ok_or(LinkError::OutOfRange)?;
        mapping.sharers.add(self.nodes, vma)
    }

    /// A VMA of a file is about to be split, merged or moved; see [`ShareList::begin_change`](crate::rmap::ShareList::begin_change).
    pub fn begin_change<S: PageSource>(&self, source: &S, file: FileId) {
        if let Some(mapping) = self.mappings.get(file.place()) {
            mapping.sharers.begin_change(source.platform());
        }
    }

    /// The change is over.
    pub fn end_change<S: PageSource>(&self, source: &S, file: FileId) {
        if let Some(mapping) = self.mappings.get(file.place()) {
            mapping.sharers.end_change(source.platform());
        }
    }

    /// Notes that a VMA maps the file no longer.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn unshare(&self, file: FileId, vma: Slot) -> Result<(), LinkError> {
        let mapping = self.mappings.get(file.place()).ok_or(LinkError::OutOfRange)?;
        mapping.sharers.remove(self.nodes, vma)
    }

    /// How many pages are in files at this moment.
    ///
    /// # Linux
    /// `NR_FILE_PAGES` in `include/linux/mmzone.h`.
    #[doc(alias = "nr_file_pages")]
    pub fn pages<S: PageSource>(&self, source: &S) -> u64 {
        let files = (0..self.mappings.len()).filter_map(|place| self.file_at(source, place));
        files.filter_map(|file| self.stat(source, file).ok()).map(|stat| u64::from(stat.pages)).sum()
    }

    /// The file in a place, if there is one.
    pub(super) fn file_at<S: PageSource>(&self, source: &S, place: usize) -> Option<FileId> {
        let pin = source.platform().pin();
        self.mappings.get(place)?.file(&pin, place)
    }
}

/// The file that a page says it belongs to.
fn file_of(page: &Page) -> Option<FileId> {
    let is_file = !page.flags().contains(PageFlags::ANON);
    core::num::NonZeroU32::new(page.mapping()).filter(|_| is_file).map(FileId)
}
