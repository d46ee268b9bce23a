//! Pages of a file, found or brought in.

use core::ops::Range;

use crate::addr::{PAGE_SIZE, PageOrder, Pfn, PgOff};
use crate::flags::{GfpFlags, PageFlags};
use crate::phys::PageSource;
use crate::platform::Platform;

use super::PageCache;
use super::error::CacheError;
use super::io::{IoKind, IoTicket, MAX_CLUSTER};
use super::mapping::{FileId, LOOKS, put};
use super::pages::{Found, Pages, zero};
use super::plug::Plug;
use super::readahead::{Pattern, ReadAhead, Wanted, Window};

/// What [`PageCache::fetch`] answers with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a page that is ready comes with a reference"]
pub enum Fetched {
    /// The page is up to date. The caller has a reference, which [`put_page`](PageSource::put_page) drops.
    Ready {
        /// The frame.
        pfn: Pfn,
        /// Whether it was read from the store by this very call. (One that had to be waited for was so too, by an earlier one.)
        major: bool,
    },
    /// The page is being read. When [`PageCache::io_done`] says that this is over, ask again.
    Wait(IoTicket),
}

/// How one look at the cache ended.
enum Look {
    Ready {
        pfn: Pfn,
        is_marked: bool,
    },
    Busy(IoTicket),
    /// It is there without its contents.
    Stale,
    Missing {
        before: u32,
    },
    Hole,
}

/// How an attempt to read ended.
enum Attempt {
    /// The read is prepared.
    Prepared(IoTicket),
    /// It cannot be before this is over.
    Full(IoTicket),
    /// Somebody else was faster, or there is nothing to do.
    Nothing,
}

impl<'m> PageCache<'m> {
    /// The first of the wanted pages of a file, from the cache or else from its store; a hole of a file in memory is filled with zeros.
    ///
    /// `state` is the caller's memory of what was read ahead; it belongs to the opening or the VMA.
    ///
    /// # Errors
    /// [`CacheError::BeyondEnd`]; [`CacheError::Io`] once for each read of this page that failed: the next call tries again;
    /// [`CacheError::OutOfMemory`], [`CacheError::BadFile`], [`CacheError::Unreachable`].
    ///
    /// # Locking
    /// The caller holds no lock and no pin: the store is asked.
    ///
    /// # Linux
    /// `filemap_get_pages` in `mm/filemap.c`, `shmem_get_folio` in `mm/shmem.c`.
    #[doc(alias = "filemap_get_pages")]
    pub fn fetch<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        wanted: Wanted,
        state: &mut ReadAhead,
    ) -> Result<Fetched, CacheError> {
        let mut read = false;
        loop {
            let plug = Plug::new();
            let fetched = self.fetch_plugged(source, file, wanted, state, &plug)?;
            let prepared = !plug.is_empty();
            self.finish_plug(source, plug);
            match fetched {
                Fetched::Ready { pfn, .. } => return Ok(Fetched::Ready { pfn, major: read }),
                Fetched::Wait(ticket) if prepared && self.io_is_over(source, ticket) => read = true,
                wait => return Ok(wait),
            }
        }
    }

    /// The same for callers that hold locks, as a fault does: what has to be read is prepared, and goes into `plug`. No store is asked, so no page is ever
    /// [major](Fetched::Ready).
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    ///
    /// # Locking
    /// Frames are allocated. Before the page is entered into a page table, [`still_has`](Self::still_has) is to be asked with that table locked.
    ///
    /// # Linux
    /// `filemap_fault` in `mm/filemap.c`, which lets go of the locks before it reads.
    #[doc(alias = "filemap_fault")]
    pub fn fetch_plugged<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        wanted: Wanted,
        state: &mut ReadAhead,
        plug: &Plug,
    ) -> Result<Fetched, CacheError> {
        let pattern = wanted.pattern;
        let index = u32::try_from(wanted.index.get()).map_err(|_| CacheError::BeyondEnd)?;
        loop {
            let window = match self.look(source, file, index, pattern)? {
                Look::Ready { pfn, is_marked } => {
                    state.hit(pattern);
                    if is_marked {
                        self.read_on(source, file, index, &wanted, state, plug);
                    }
                    return Ok(Fetched::Ready { pfn, major: false });
                }
                Look::Busy(ticket) => return Ok(Fetched::Wait(ticket)),
                Look::Hole => match self.fill_hole(source, file, index)? {
                    Some(pfn) => return Ok(Fetched::Ready { pfn, major: false }),
                    None => continue,
                },
                Look::Stale => None,
                Look::Missing { before } => Some(state.miss(index, &wanted, before)),
            };
            let attempt = match window {
                Some(window) => self.read(source, file, window, Some(index), plug)?,
                None => self.read_again(source, file, index, plug)?,
            };
            match attempt {
                Attempt::Prepared(ticket) | Attempt::Full(ticket) => return Ok(Fetched::Wait(ticket)),
                Attempt::Nothing => {}
            }
        }
    }

    /// Begins to read pages that will be needed, as far as they are not there and can be had. Nothing is waited for.
    ///
    /// # Errors
    /// [`CacheError::BadFile`].
    ///
    /// # Locking
    /// The caller holds no lock and no pin: the store is asked.
    ///
    /// # Linux
    /// `force_page_cache_ra` in `mm/readahead.c`, for `POSIX_FADV_WILLNEED`.
    #[doc(alias = "force_page_cache_readahead")]
    pub fn will_need<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        first: PgOff,
        pages: u64,
    ) -> Result<(), CacheError> {
        let (mut next, end) = (first, first.get().saturating_add(pages));
        loop {
            let (before, plug) = (next, Plug::new());
            let full = self.will_need_plugged(source, file, &mut next, end, &plug)?;
            self.finish_plug(source, plug);
            if full.is_none() || next == before {
                return Ok(());
            }
        }
    }

    /// The same for callers that hold locks, from `next` on, which goes up, to `end`: reads are prepared, of a few pages at a time and beside a few pages that are there.
    /// `Some` if there is more to do, when the caller has let go of its locks and this is over: [`IoTicket::OVER`] already, or the table of reads is full.
    ///
    /// # Errors
    /// [`CacheError::BadFile`].
    ///
    /// # Locking
    /// Frames are allocated.
    pub fn will_need_plugged<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        next: &mut PgOff,
        end: u64,
        plug: &Plug,
    ) -> Result<Option<IoTicket>, CacheError> {
        let end = end.min(u64::from(u32::MAX)) as u32;
        let Ok(first) = u32::try_from(next.get()) else { return Ok(None) };
        let (mut at, part) = (first, end.min(first.saturating_add(LOOKS as u32)));
        while at < part {
            let Some(missing) = self.next_missing(source, file, at, part)? else { return Ok(None) };
            if !missing.is_empty() {
                let window = Window::unmarked(missing.start, missing.len() as u32);
                *next = place(missing.start);
                match self.read(source, file, window, None, plug) {
                    Ok(Attempt::Prepared(_) | Attempt::Nothing) => {}
                    Ok(Attempt::Full(ticket)) => return Ok(Some(ticket)),
                    // What cannot be read now is read when it is needed.
                    Err(_) => return Ok(None),
                }
            }
            at = missing.end;
        }
        *next = place(at);
        Ok((at < end).then_some(IoTicket::OVER))
    }

    /// The first pages from `at` up to and without `end` that are not there, as many as one read is for; none before `end` if all are; `None` if there is nothing to read.
    fn next_missing<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        at: u32,
        end: u32,
    ) -> Result<Option<Range<u32>>, CacheError> {
        let pin = source.platform().pin();
        let pages = self.lock(source, &pin, file)?;
        let end = end.min(pages.end());
        if at >= end || pages.is_memory() {
            return Ok(None);
        }
        let Some(gap) = pages.gap_from(at, end) else { return Ok(Some(end..end)) };
        let (first, behind) = (gap.start.max(at), gap.end.min(end));
        Ok(Some(first..behind.min(first.saturating_add(MAX_CLUSTER as u32))))
    }

    fn look<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        index: u32,
        pattern: Pattern,
    ) -> Result<Look, CacheError> {
        let pin = source.platform().pin();
        let mut pages = self.lock(source, &pin, file)?;
        if index >= pages.end() {
            return Err(CacheError::BeyondEnd);
        }
        if let Some(ticket) = pages.hole.hold_back(file, index) {
            return Ok(Look::Busy(ticket));
        }
        let Some(page) = pages.at(index) else {
            if pages.is_memory() {
                return Ok(Look::Hole);
            }
            let before = match ReadAhead::history(pattern) {
                0 => 0,
                most => pages.run_before(index, most),
            };
            return Ok(Look::Missing { before });
        };
        if page.is(PageFlags::UPTODATE) {
            // Who goes here and there leaves marks to others.
            let is_marked = pattern != Pattern::Random
                && page.is(PageFlags::READAHEAD)
                && page.page.clear_flags(PageFlags::READAHEAD).contains(PageFlags::READAHEAD);
            page.page.set_flags(PageFlags::REFERENCED);
            let pfn = page.get().ok_or(CacheError::OutOfMemory)?;
            return Ok(Look::Ready { pfn, is_marked });
        }
        if page.is(PageFlags::LOCKED) {
            return Ok(Look::Busy(self.io_of(&pin, file, index)));
        }
        if page.page.clear_flags(PageFlags::ERROR).contains(PageFlags::ERROR) {
            return Err(CacheError::Io);
        }
        Ok(Look::Stale)
    }

    /// Begins the next window, since a marked page was reached.
    fn read_on<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        index: u32,
        wanted: &Wanted,
        state: &mut ReadAhead,
        plug: &Plug,
    ) {
        let gap = {
            let pin = source.platform().pin();
            let Ok(pages) = self.lock(source, &pin, file) else { return };
            let end = pages.end().min(index.saturating_add(MAX_CLUSTER as u32 + 1));
            pages.gap_from(index, end).map_or(end, |gap| gap.start.max(index))
        };
        if let Some(window) = state.marked(index, wanted, gap) {
            // What cannot be read ahead is read when it is needed.
            let _ = self.read(source, file, window, None, plug);
        }
    }

    /// Prepares to read the pages of a window that are not there, in one piece: the one with the page that is wanted, or the first.
    fn read<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        window: Window,
        wanted: Option<u32>,
        plug: &Plug,
    ) -> Result<Attempt, CacheError> {
        // Frames are for pages that are to be read alone.
        let missing = {
            let pin = source.platform().pin();
            missing_in(&self.lock(source, &pin, file)?, window, wanted)
        };
        let Some(places) = missing else { return Ok(Attempt::Nothing) };
        let window = Window { first: places.start, count: places.len() as u32, ..window };
        let mut frames = Frames::new();
        let window = frames.allocate(source, window, wanted)?;
        let attempt =
            self.prepare_read(source, file, wanted, plug, |pages| frames.insert(pages, window, wanted));
        frames.put_spare(source);
        attempt
    }

    /// Prepares to read a page again that is there without its contents.
    fn read_again<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        index: u32,
        plug: &Plug,
    ) -> Result<Attempt, CacheError> {
        self.prepare_read(source, file, Some(index), plug, |pages| {
            let stale =
                |page: &Found<'_>| !page.page.flags().intersects(PageFlags::UPTODATE | PageFlags::LOCKED);
            let page = pages.at(index).filter(stale)?;
            page.page.set_flags(PageFlags::LOCKED);
            Some((index, 1))
        })
    }

    /// Takes a place for a read and has `lock_pages` say which pages it is for, which it leaves LOCKED.
    fn prepare_read<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        wanted: Option<u32>,
        plug: &Plug,
        lock_pages: impl FnOnce(&mut Pages<'_, 'm>) -> Option<(u32, u32)>,
    ) -> Result<Attempt, CacheError> {
        let ticket = {
            let pin = source.platform().pin();
            let mut pages = self.lock(source, &pin, file)?;
            let Some((store, _)) = pages.store() else { return Ok(Attempt::Nothing) };
            let ticket = match self.begin_io(&pin, file, store, IoKind::Read { wanted }) {
                Ok(ticket) => ticket,
                Err((_, other)) => return Ok(Attempt::Full(other)),
            };
            if let Some((first, count)) = lock_pages(&mut pages) {
                self.leave_prepared(&pin, ticket, first, count);
                plug.add(ticket);
                return Ok(Attempt::Prepared(ticket));
            }
            ticket
        };
        // There is nothing to read.
        self.release_io(source, ticket);
        Ok(Attempt::Nothing)
    }

    /// Puts a frame of zeros where a file in memory has none; `None` if somebody else was faster.
    pub(super) fn fill_hole<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        index: u32,
    ) -> Result<Option<Pfn>, CacheError> {
        let pfn = zeroed_frame(source)?;
        let got = {
            let pin = source.platform().pin();
            self.lock(source, &pin, file).map(|mut pages| {
                let fits = index < pages.end()
                    && !pages.hole.has(index)
                    && pages.insert(index, pfn, PageFlags::UPTODATE);
                if fits { pages.at(index) } else { None }.and_then(|page| page.get())
            })
        };
        if !matches!(got, Ok(Some(_))) {
            put(source, pfn);
        }
        got
    }
}

/// A page's place as stores know it.
pub(super) fn place(index: u32) -> PgOff {
    // 32 bits are always a page offset.
    PgOff::new(u64::from(index)).unwrap_or(PgOff::MAX)
}

/// A frame of zeros.
pub(super) fn zeroed_frame<S: PageSource>(source: &S) -> Result<Pfn, CacheError> {
    let pfn = source
        .alloc_pages(GfpFlags::HIGHUSER_MOVABLE, PageOrder::ZERO)
        .map_err(|_| CacheError::OutOfMemory)?;
    let zeroed = zero(source.phys(), &source.platform().pin(), pfn, 0..PAGE_SIZE);
    if zeroed.is_err() {
        put(source, pfn);
    }
    zeroed.map(|()| pfn)
}

/// The places of a window that have no page and are read in one piece: around the one that is wanted, or the first; none beyond the end of the file.
fn missing_in(pages: &Pages<'_, '_>, window: Window, wanted: Option<u32>) -> Option<Range<u32>> {
    let end = window.first.saturating_add(window.count).min(pages.end());
    let gap = match wanted {
        Some(wanted) => pages.gap_at(wanted).filter(|_| wanted < end)?,
        None => pages.gap_from(window.first, end)?,
    };
    Some(gap.start.max(window.first)..gap.end.min(end))
}

/// Frames for a read: those in use first, then those that were not needed.
struct Frames {
    list: [Pfn; MAX_CLUSTER],
    len: usize,
    used: usize,
}

impl Frames {
    const fn new() -> Self {
        Self { list: [Pfn::ZERO; MAX_CLUSTER], len: 0, used: 0 }
    }

    /// Allocates frames for a window; answers with the window that there are frames for. What is not wanted is not worth much effort.
    fn allocate<S: PageSource>(
        &mut self,
        source: &S,
        window: Window,
        wanted: Option<u32>,
    ) -> Result<Window, CacheError> {
        let willing = GfpFlags::HIGHUSER_MOVABLE | GfpFlags::NORETRY | GfpFlags::NOWARN;
        for place in self.list.iter_mut().take(window.count as usize) {
            let first = self.len == 0 && wanted.is_some();
            let gfp = if first { GfpFlags::HIGHUSER_MOVABLE } else { willing };
            match source.alloc_pages(gfp, PageOrder::ZERO) {
                Ok(pfn) => *place = pfn,
                Err(_) if first => return Err(CacheError::OutOfMemory),
                Err(_) => break,
            }
            self.len += 1;
        }
        let count = self.len as u32;
        let beyond = wanted.filter(|&wanted| wanted.wrapping_sub(window.first) >= count);
        Ok(Window { first: beyond.unwrap_or(window.first), count, ..window })
    }

    /// Puts frames where the file has none, LOCKED: around the wanted page, or from the first that is missing on.
    fn insert(
        &mut self,
        pages: &mut Pages<'_, '_>,
        window: Window,
        wanted: Option<u32>,
    ) -> Option<(u32, u32)> {
        let places = missing_in(pages, window, wanted)?;
        let frames = places.clone().zip(self.list.iter().take(self.len)).map(|(index, &pfn)| {
            let mark = if window.mark == Some(index) { PageFlags::READAHEAD } else { PageFlags::empty() };
            (pfn, PageFlags::LOCKED | mark)
        });
        self.used = pages.insert_run(places.start, frames);
        (self.used != 0).then_some((places.start, self.used as u32))
    }

    /// Gives back what was not needed.
    fn put_spare<S: PageSource>(&self, source: &S) {
        for &pfn in self.list.get(self.used..self.len).unwrap_or_default() {
            put(source, pfn);
        }
    }
}
