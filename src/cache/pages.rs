//! The pages of one file, in a tree by their place in it.

use core::ops::{Deref, DerefMut, Range};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use crate::collections::{IndexTree, Search, Slot, TreeLink, TreeOrder, XaMark};
use crate::flags::PageFlags;
use crate::phys::{Page, Phys};
use crate::sync::SpinGuard;

use super::error::CacheError;
use super::mapping::{FileId, Kind, State};

/// What the page cache keeps for each frame: 16 bytes.
///
/// # Locking
/// The links of a page that is in a file belong to the lock of that file's [`Mapping`](super::Mapping).
#[derive(Debug, Default)]
pub struct PageExt {
    links: TreeLink,
    /// The page's place in its file, which is the key of the tree.
    index: AtomicU32,
}

#[cfg(not(shuttle))]
static_assertions::const_assert_eq!(size_of::<PageExt>(), 16);

impl PageExt {
    /// Of a frame that is in no file.
    pub const fn new() -> Self {
        Self { links: TreeLink::new(), index: AtomicU32::new(0) }
    }

    pub(super) fn is_linked(&self) -> bool {
        self.links.is_linked()
    }

    pub(super) fn index(&self) -> u32 {
        self.index.load(Relaxed)
    }
}

crate::tree_link!(marked PageExt, ByIndex => links);

/// What pages are marked as in their file's tree, so that those who look for such look at no others. A page has the mark if and only if it has
/// the flag: both are changed here alone.
///
/// # Linux
/// `PAGECACHE_TAG_DIRTY` and `PAGECACHE_TAG_WRITEBACK` in `include/linux/fs.h`.
#[doc(alias = "PAGECACHE_TAG_DIRTY")]
#[doc(alias = "PAGECACHE_TAG_WRITEBACK")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tag {
    Dirty,
    Writeback,
}

impl Tag {
    pub(super) const ALL: [Self; 2] = [Self::Dirty, Self::Writeback];

    pub(super) const fn flag(self) -> PageFlags {
        match self {
            Self::Dirty => PageFlags::DIRTY,
            Self::Writeback => PageFlags::WRITEBACK,
        }
    }

    const fn mark(self) -> XaMark {
        match self {
            Self::Dirty => XaMark::MARK_0,
            Self::Writeback => XaMark::MARK_1,
        }
    }
}

/// The order of a file's pages.
#[derive(Debug)]
pub enum ByIndex {}

impl TreeOrder<PageExt> for ByIndex {
    type Key = u32;

    fn key(item: &PageExt) -> u32 {
        item.index()
    }
}

pub(super) type Tree<'m> = IndexTree<&'m [PageExt], ByIndex>;

/// A page of a file, found under the file's lock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'a> {
    pub(super) index: u32,
    pub(super) pfn: Pfn,
    pub(super) page: &'a Page,
    slot: Slot,
}

impl Found<'_> {
    pub(super) fn is(&self, flags: PageFlags) -> bool {
        self.page.flags().contains(flags)
    }

    /// Whether input or output of the page is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.page.flags().intersects(PageFlags::LOCKED | PageFlags::WRITEBACK)
    }

    /// Takes a reference for the caller. The cache has one, so this fails only if the counts are wrong.
    pub(super) fn get(&self) -> Option<Pfn> {
        self.page.try_get().then_some(self.pfn)
    }
}

/// A file, locked.
pub(super) struct Pages<'a, 'm> {
    state: SpinGuard<'a, State<'m>>,
    phys: &'a Phys<'a>,
    pub(super) file: FileId,
}

impl<'m> Deref for Pages<'_, 'm> {
    type Target = State<'m>;

    fn deref(&self) -> &State<'m> {
        &self.state
    }
}

impl DerefMut for Pages<'_, '_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.state
    }
}

impl<'a, 'm> Pages<'a, 'm> {
    pub(super) fn new(state: SpinGuard<'a, State<'m>>, phys: &'a Phys<'a>, file: FileId) -> Self {
        Self { state, phys, file }
    }

    fn found(&self, slot: Slot) -> Option<Found<'a>> {
        let index = self.state.tree.slots().get(slot.index())?.index();
        let (pfn, page) = self.phys.at_slot(slot)?;
        Some(Found { index, pfn, page, slot })
    }

    fn search(&self, index: u32) -> Search {
        self.state.tree.search(|ext| ext.index().cmp(&index))
    }

    /// The page at `index`.
    pub(super) fn at(&self, index: u32) -> Option<Found<'a>> {
        self.found(self.search(index).found()?)
    }

    /// The first page from `index` on.
    pub(super) fn from(&self, index: u32) -> Option<Found<'a>> {
        self.found(self.search(index).found_or_after()?)
    }

    /// The page after one that is in the file.
    pub(super) fn after(&self, page: &Found<'_>) -> Option<Found<'a>> {
        self.found(self.state.tree.next(page.slot)?)
    }

    /// The page before one that is in the file.
    fn before(&self, page: &Found<'_>) -> Option<Found<'a>> {
        self.found(self.state.tree.prev(page.slot)?)
    }

    /// The places around `index` that have no page; `None` if it has one.
    pub(super) fn gap_at(&self, index: u32) -> Option<Range<u32>> {
        match self.search(index) {
            Search::Found(_) => None,
            Search::Missing { before, after } => {
                let at = |slot: Option<Slot>| Some(self.found(slot?)?.index);
                Some(at(before).map_or(0, |before| before + 1)..at(after).unwrap_or(u32::MAX))
            }
        }
    }

    /// The first places from `index` on, and before `end`, that have no page.
    pub(super) fn gap_from(&self, index: u32, end: u32) -> Option<Range<u32>> {
        let Some(mut last) = self.at(index) else { return self.gap_at(index).filter(|_| index < end) };
        loop {
            let (after, missing) = (self.after(&last), last.index + 1);
            match after {
                _ if missing >= end => return None,
                Some(page) if page.index == missing => last = page,
                after => return Some(missing..after.map_or(u32::MAX, |page| page.index)),
            }
        }
    }

    /// How many pages lie right before `index`, where none is: up to `most`.
    pub(super) fn run_before(&self, index: u32, most: u32) -> u32 {
        let Search::Missing { before, .. } = self.search(index) else { return 0 };
        let (mut page, mut run) = (before.and_then(|slot| self.found(slot)), 0);
        while let Some(there) = page.filter(|page| run < most && page.index + run + 1 == index) {
            run += 1;
            page = self.before(&there);
        }
        run
    }

    /// The last page.
    pub(super) fn last(&self) -> Option<Found<'a>> {
        self.found(self.state.tree.last()?)
    }

    /// Puts a frame at `index`, with these flags. Its reference is the cache's from now on. `false`, and it stays the caller's, if a page is
    /// there or the frame cannot be one.
    #[must_use]
    pub(super) fn insert(&mut self, index: u32, pfn: Pfn, flags: PageFlags) -> bool {
        self.insert_run(index, core::iter::once((pfn, flags))) == 1
    }

    /// The same for frames one behind the other from `first` on, up to where one cannot be put; how many were.
    #[must_use]
    pub(super) fn insert_run(&mut self, first: u32, frames: impl Iterator<Item = (Pfn, PageFlags)>) -> usize {
        // What has no store can only go to swap.
        let backed = if self.is_memory() { PageFlags::SWAP_BACKED } else { PageFlags::empty() };
        let (file, state) = (self.file, &mut *self.state);
        let ext: &[PageExt] = state.tree.slots();
        let mut place = state.tree.entry(|ext| ext.index().cmp(&first));
        let mut done = 0;
        for (index, (pfn, flags)) in (first..).zip(frames) {
            let Some((slot, page)) = claim(self.phys, ext, pfn, (file, index)) else { break };
            let Ok(behind) = place.insert_and_go_on(slot) else {
                let _owner_none = page.set_mapping(0);
                break;
            };
            place = behind;
            // Nobody has found it yet.
            let before = page.set_flags(flags | backed);
            if flags.contains(PageFlags::DIRTY) && !before.contains(PageFlags::DIRTY) {
                place.set_mark(slot, Tag::Dirty.mark());
                state.dirty += 1;
            }
            done += 1;
        }
        done
    }

    /// Takes a page out that no input or output is under way for. The cache's reference is the caller's.
    pub(super) fn remove(&mut self, page: &Found<'_>) {
        self.clear_dirty(page);
        page.page.clear_flags(
            PageFlags::UPTODATE | PageFlags::READAHEAD | PageFlags::ERROR | PageFlags::REFERENCED,
        );
        if self.state.tree.remove(page.slot).is_ok() {
            let _is_data = page.page.set_mapping(0);
        }
    }

    /// Notes that a page is newer than the store.
    pub(super) fn mark_dirty(&mut self, page: &Found<'_>) {
        if self.set(page, Tag::Dirty) {
            self.state.dirty += 1;
        }
    }

    /// Notes that it is not.
    pub(super) fn clear_dirty(&mut self, page: &Found<'_>) {
        if self.clear(page, Tag::Dirty) {
            self.state.dirty -= 1;
        }
    }

    /// Notes that a page is being written.
    pub(super) fn begin_writeback(&mut self, page: &Found<'_>) {
        if self.set(page, Tag::Writeback) {
            self.state.writeback += 1;
        }
    }

    /// Notes that it is no longer.
    pub(super) fn end_writeback(&mut self, page: &Found<'_>) {
        if self.clear(page, Tag::Writeback) {
            self.state.writeback -= 1;
        }
    }

    /// Whether the page had not the flag.
    fn set(&mut self, page: &Found<'_>, tag: Tag) -> bool {
        let is_new = !page.page.set_flags(tag.flag()).contains(tag.flag());
        if is_new {
            self.state.tree.set_mark(page.slot, tag.mark());
        }
        is_new
    }

    /// Whether the page had the flag.
    fn clear(&mut self, page: &Found<'_>, tag: Tag) -> bool {
        let had = page.page.clear_flags(tag.flag()).contains(tag.flag());
        if had {
            self.state.tree.clear_mark(page.slot, tag.mark());
        }
        had
    }

    /// Whether a page of the file is marked.
    pub(super) fn has_tag(&self, page: &Found<'_>, tag: Tag) -> bool {
        self.state.tree.has_mark(page.slot, tag.mark())
    }

    /// The first page with a mark from `index` on.
    ///
    /// # Linux
    /// `filemap_get_folios_tag` in `mm/filemap.c`.
    #[doc(alias = "filemap_get_folios_tag")]
    pub(super) fn tagged_from(&self, index: u32, tag: Tag) -> Option<Found<'a>> {
        let from = self.search(index).found_or_after()?;
        self.found(self.state.tree.marked_from(from, tag.mark())?)
    }

    /// The page that a frame is, if it is one of this file.
    pub(super) fn page_of<'p>(&self, pfn: Pfn, page: &'p Page) -> Option<Found<'p>> {
        let slot = self.phys.slot_of(pfn).filter(|_| self.has(page))?;
        Some(Found { index: page.index() as u32, pfn, page, slot })
    }

    /// Whether the page is one of this file.
    fn has(&self, page: &Page) -> bool {
        page.mapping() == self.file.0.get()
    }

    /// How many pages the file's bytes take.
    pub(super) fn end(&self) -> u32 {
        pages_of(self.state.size)
    }

    /// How many bytes of so many pages from `first` on belong to the file.
    pub(super) fn bytes_in(&self, first: u32, count: u32) -> u64 {
        let start = u64::from(first) << PAGE_SHIFT;
        self.state.size.saturating_sub(start).min(u64::from(count) << PAGE_SHIFT)
    }

    /// Notes that the store, if there is one, was told a length.
    pub(super) fn note_length_told(&mut self) {
        if self.state.store().is_some() {
            self.state.lasting.note_done();
        }
    }

    /// Whether the file's pages are in memory alone.
    pub(super) fn is_memory(&self) -> bool {
        matches!(self.state.kind, Kind::Memory)
    }

    /// Sets the bytes beyond the end of the file to zero, up to the byte `until` of the file, as far as they lie in this page.
    pub(super) fn zero_tail(
        &self,
        page: &Found<'_>,
        pin: &crate::platform::CpuPin<'_>,
        until: u64,
    ) -> Result<(), CacheError> {
        let start = u64::from(page.index) << PAGE_SHIFT;
        let inside = |at: u64| at.saturating_sub(start).min(PAGE_SIZE as u64) as usize;
        match inside(self.state.size)..inside(until) {
            none if none.is_empty() => Ok(()),
            tail => zero(self.phys, pin, page.pfn, tail),
        }
    }
}

/// Has a frame that is in no file bear its place in one; `None` if it cannot.
fn claim<'a>(
    phys: &'a Phys<'a>,
    ext: &[PageExt],
    pfn: Pfn,
    (file, index): (FileId, u32),
) -> Option<(Slot, &'a Page)> {
    let slot = phys.slot_of(pfn)?;
    let (_, page) = phys.at_slot(slot)?;
    let ext = ext.get(slot.index()).filter(|ext| !ext.is_linked())?;
    let bears = page.set_mapping(file.0.get()) && page.set_index(u64::from(index));
    ext.index.store(index, Relaxed);
    bears.then_some((slot, page))
}

/// Sets some bytes of a frame to zero.
pub(super) fn zero(
    phys: &Phys<'_>,
    pin: &crate::platform::CpuPin<'_>,
    pfn: Pfn,
    bytes: Range<usize>,
) -> Result<(), CacheError> {
    static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
    let kmap = phys.kmap(pin, pfn)?;
    match ZEROS.get(bytes.clone()).is_some_and(|zeros| kmap.write(bytes.start, zeros)) {
        true => Ok(()),
        false => Err(CacheError::Unreachable),
    }
}

/// How many pages so many bytes take, none of more than [`MAX_FILE_BYTES`](super::MAX_FILE_BYTES).
pub(super) const fn pages_of(bytes: u64) -> u32 {
    let pages = bytes.div_ceil(PAGE_SIZE as u64);
    if pages > u32::MAX as u64 { u32::MAX } else { pages as u32 }
}
