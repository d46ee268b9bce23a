//! Reading and writing files by calls: in the pages that mappings show.

use core::ops::Range;

use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PAGE_SIZE_U64, PageOrder, Pfn, PgOff};
use crate::flags::{GfpFlags, PageFlags};
use crate::phys::PageSource;
use crate::platform::{Platform, StoreError};

use super::error::CacheError;
use super::fetch::{Fetched, place};
use super::files::StoreKey;
use super::io::IoTicket;
use super::iter::{Part, ReadTo, Told, WriteFrom};
use super::mapping::{FileId, put};
use super::pages::zero;
use super::readahead::{Pattern, ReadAhead, Wanted};
use super::{MAX_FILE_BYTES, PageCache};

/// How far a read or write call has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "there may be something to wait for"]
pub struct Moved {
    /// How many bytes were copied.
    pub bytes: usize,
    /// What to wait for before the call is made again for the rest; `None` if it is through: fewer bytes than were asked for are then
    /// all there are.
    pub wait: Option<IoTicket>,
}

impl Moved {
    /// An error counts only if nothing was copied before: the next call meets it again.
    fn ended<E>(bytes: usize, how: Result<Option<IoTicket>, E>) -> Result<Self, E> {
        match how {
            Ok(wait) => Ok(Self { bytes, wait }),
            Err(_) if bytes != 0 => Ok(Self { bytes, wait: None }),
            Err(error) => Err(error),
        }
    }
}

/// What part of a page a write is for.
#[derive(Clone, Copy)]
struct Piece {
    index: u32,
    within: usize,
    len: usize,
}

impl Piece {
    /// Where it begins in the file.
    fn start(&self) -> u64 {
        (u64::from(self.index) << PAGE_SHIFT) + self.within as u64
    }

    /// Where it ends in the file.
    fn end(&self) -> u64 {
        self.start() + self.len as u64
    }

    /// Whether nothing of the page's former contents stays, in a file of `size` bytes.
    fn covers(&self, size: u64) -> bool {
        let start = u64::from(self.index) << PAGE_SHIFT;
        start >= size || self.within == 0 && (self.len == PAGE_SIZE || self.end() >= size)
    }
}

/// What a page for writing is.
enum Target {
    /// In the cache, with a reference.
    There(Pfn),
    /// Not there, and its contents are not needed.
    New,
    /// To be read first.
    Read,
    Wait(IoTicket),
}

/// How far a write inside one page has come.
enum Wrote {
    Bytes(usize),
    Wait(IoTicket),
}

/// What became of a new page.
enum New {
    /// It is in the file, with so many bytes.
    There(usize),
    /// Only so many bytes could be had, and others of the page have to stay: it is to be read first.
    Short(usize),
    /// Somebody else was faster, or the file's length is another.
    Again,
}

impl<'m> PageCache<'m> {
    /// Copies bytes out of a file, as far as it goes.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), if nothing was copied.
    ///
    /// # Linux
    /// `filemap_read` in `mm/filemap.c`.
    #[doc(alias = "filemap_read")]
    pub fn read_at<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        offset: u64,
        out: &mut [u8],
        state: &mut ReadAhead,
        pattern: Pattern,
    ) -> Result<Moved, CacheError> {
        let end = offset.saturating_add(out.len() as u64);
        self.read_to(source, file, offset..end, &mut &mut *out, state, pattern)
    }

    /// The same to wherever the caller likes.
    pub(crate) fn read_to<S: PageSource, T: ReadTo>(
        &self,
        source: &S,
        file: FileId,
        wanted: Range<u64>,
        to: &mut T,
        state: &mut ReadAhead,
        pattern: Pattern,
    ) -> Result<Moved, T::Error> {
        let mut done = 0;
        let moved = loop {
            let at = wanted.start.saturating_add(done as u64);
            let size = self.size(source, file).map_err(T::Error::from)?;
            let Some(left) = size.min(wanted.end).checked_sub(at).filter(|&left| left != 0) else {
                break Ok(None);
            };
            let (index, within) = Self::locate(at).map_err(T::Error::from)?;
            let len = left.min((PAGE_SIZE - within) as u64) as usize;
            if self.is_memory_hole(source, file, index).map_err(T::Error::from)? {
                match to.put_all(source, done, Told::Zeros, len) {
                    Ok(bytes) => done += bytes,
                    Err(error) => break Err(error),
                }
                continue;
            }
            let pages = wanted.end.div_ceil(PAGE_SIZE_U64).saturating_sub(u64::from(index));
            let pages = pages.min(u64::from(u32::MAX)) as u32;
            let pfn = match self.fetch(source, file, Wanted { index: place(index), pages, pattern }, state) {
                Ok(Fetched::Ready { pfn, .. }) => pfn,
                Ok(Fetched::Wait(ticket)) => break Ok(Some(ticket)),
                // Truncated meanwhile.
                Err(CacheError::BeyondEnd) => break Ok(None),
                Err(error) => break Err(error.into()),
            };
            let put_there = to.put_all(source, done, Told::Frame(pfn, within), len);
            put(source, pfn);
            match put_there {
                Ok(bytes) => done += bytes,
                Err(error) => break Err(error),
            }
        };
        if done != 0 {
            state.read_to(wanted.start.saturating_add(done as u64));
        }
        Moved::ended(done, moved)
    }

    /// Whether a file in memory has no page there, which reading does not make.
    ///
    /// # Linux
    /// `SGP_READ` in `include/linux/shmem_fs.h`.
    #[doc(alias = "SGP_READ")]
    fn is_memory_hole<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        index: u32,
    ) -> Result<bool, CacheError> {
        let pin = source.platform().pin();
        let pages = self.lock(source, &pin, file)?;
        Ok(pages.is_memory() && pages.at(index).is_none())
    }

    /// Copies bytes into a file, which grows if they go beyond its end. They reach the store with the next write-back.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch) and [`prepare_write`](Self::prepare_write), if nothing was copied; [`CacheError::TooLarge`] beyond [`MAX_FILE_BYTES`], and up to there the bytes are copied;
    /// [`CacheError::Truncating`] where the file would grow before a truncation is through.
    ///
    /// # Locking
    /// Calls that change a file's length exclude each other by a lock of the caller. If they do not, the length is that of any of them, bytes that one has
    /// written may be gone, and bytes that another has cut off be there.
    ///
    /// # Linux
    /// `generic_perform_write` in `mm/filemap.c`.
    #[doc(alias = "generic_perform_write")]
    pub fn write_at<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Moved, CacheError> {
        self.write_from(source, file, offset, bytes.len(), &mut &*bytes)
    }

    /// The same from wherever the caller likes.
    pub(crate) fn write_from<S: PageSource, W: WriteFrom>(
        &self,
        source: &S,
        file: FileId,
        offset: u64,
        len: usize,
        from: &mut W,
    ) -> Result<Moved, W::Error> {
        if offset >= MAX_FILE_BYTES && len != 0 {
            return Err(CacheError::TooLarge.into());
        }
        let room = MAX_FILE_BYTES.saturating_sub(offset).min(len as u64) as usize;
        let mut done = 0;
        while done < room {
            let (index, within) = Self::locate(offset + done as u64)?;
            let piece = Piece { index, within, len: (room - done).min(PAGE_SIZE - within) };
            match self.write_piece(source, file, piece, from, done) {
                Ok(Wrote::Bytes(bytes)) => done += bytes,
                Ok(Wrote::Wait(ticket)) => return Moved::ended(done, Ok(Some(ticket))),
                Err(error) => return Moved::ended(done, Err(error)),
            }
        }
        Ok(Moved { bytes: done, wait: None })
    }

    /// Writes inside one page the bytes from `at` on: those of the piece, or the first of them.
    fn write_piece<S: PageSource, W: WriteFrom>(
        &self,
        source: &S,
        file: FileId,
        mut piece: Piece,
        from: &mut W,
        at: usize,
    ) -> Result<Wrote, W::Error> {
        loop {
            // Nothing is read or made ready for bytes that cannot be had.
            from.fault_in(at)?;
            self.make_growable(source, file, piece.end(), piece.start())?;
            if let Some(ticket) = self.prepare_write(source, file, place(piece.index))? {
                return Ok(Wrote::Wait(ticket));
            }
            let pfn = match self.target(source, file, &piece)? {
                Target::Wait(ticket) => return Ok(Wrote::Wait(ticket)),
                Target::There(pfn) => pfn,
                Target::New => match self.write_new(source, file, &piece, from, at)? {
                    New::There(bytes) => return Ok(Wrote::Bytes(bytes)),
                    New::Short(bytes) => {
                        piece.len = bytes;
                        continue;
                    }
                    New::Again => continue,
                },
                Target::Read => {
                    // Its neighbours are not needed.
                    let wanted = Wanted::page(place(piece.index), Pattern::Random);
                    match self.fetch(source, file, wanted, &mut ReadAhead::new()) {
                        Ok(Fetched::Ready { pfn, .. }) => pfn,
                        Ok(Fetched::Wait(ticket)) => return Ok(Wrote::Wait(ticket)),
                        Err(CacheError::BeyondEnd) => continue,
                        Err(error) => return Err(error.into()),
                    }
                }
            };
            let written = from.show(at, piece.len, |part| self.write_there(source, file, &piece, pfn, part));
            put(source, pfn);
            if let Some(bytes) = written?.transpose()?.flatten() {
                return Ok(Wrote::Bytes(bytes));
            }
        }
    }

    /// Has the store of a file make room for a page that is about to become dirty; `Some` if it is busy, and has to be asked again.
    ///
    /// # Errors
    /// What the store [refuses](crate::platform::BackingStore::prepare_write); [`CacheError::BadFile`].
    ///
    /// # Locking
    /// The caller holds no spin lock.
    ///
    /// # Linux
    /// `do_page_mkwrite` in `mm/memory.c`.
    #[doc(alias = "do_page_mkwrite")]
    pub fn prepare_write<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        index: PgOff,
    ) -> Result<Option<IoTicket>, CacheError> {
        let store = self.lock(source, &source.platform().pin(), file)?.store();
        let Some((store, inode)) = store else { return Ok(None) };
        let ended = self.ended();
        match store.prepare_write(inode, index) {
            Ok(()) => Ok(None),
            Err(StoreError::Busy) => {
                let room = self.room_in(source, file, StoreKey::of(store), ended);
                if room == IoTicket::OVER {
                    source.platform().relax();
                }
                Ok(Some(room))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn target<S: PageSource>(&self, source: &S, file: FileId, piece: &Piece) -> Result<Target, CacheError> {
        let pin = source.platform().pin();
        let mut pages = self.lock(source, &pin, file)?;
        let is_new = piece.covers(pages.size) || pages.is_memory();
        let Some(page) = pages.at(piece.index) else {
            return Ok(if is_new { Target::New } else { Target::Read });
        };
        if page.is(PageFlags::UPTODATE) {
            return page.get().map(Target::There).ok_or(CacheError::OutOfMemory);
        }
        if page.is(PageFlags::LOCKED) {
            return Ok(Target::Wait(self.io_of(&pin, file, piece.index)));
        }
        if !is_new {
            return Ok(Target::Read);
        }
        // It could not be read, and need not be.
        pages.remove(&page);
        let pfn = page.pfn;
        drop(pages);
        drop(pin);
        put(source, pfn);
        Ok(Target::New)
    }

    /// Writes into a page of the file, to which the caller has a reference; how many bytes. `None` if it left the file meanwhile.
    ///
    /// # Locking
    /// The caller holds no lock but that of a page table.
    fn write_there<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        piece: &Piece,
        pfn: Pfn,
        part: &Part<'_>,
    ) -> Result<Option<usize>, CacheError> {
        let pin = source.platform().pin();
        // Locked while the bytes are copied: who zeroes what lies behind the end must find either none of them, or the new end.
        let mut pages = self.lock(source, &pin, file)?;
        let Some(page) = pages.at(piece.index).filter(|page| page.pfn == pfn) else { return Ok(None) };
        if !part.write_to(&*source.phys().kmap(&pin, pfn)?, piece.within) {
            return Err(CacheError::Unreachable);
        }
        pages.mark_dirty(&page);
        self.note_work(&pin, &mut pages);
        pages.size = pages.size.max(piece.start() + part.len() as u64);
        Ok(Some(part.len()))
    }

    /// Puts a page with these bytes where the file has none.
    fn write_new<S: PageSource, W: WriteFrom>(
        &self,
        source: &S,
        file: FileId,
        piece: &Piece,
        from: &mut W,
        at: usize,
    ) -> Result<New, W::Error> {
        let frame = source.alloc_pages(GfpFlags::HIGHUSER_MOVABLE, PageOrder::ZERO);
        let pfn = frame.map_err(|_| CacheError::OutOfMemory)?;
        let inserted = fill_frame(source, pfn, piece, from, at).and_then(|bytes| {
            let piece = Piece { len: bytes, ..*piece };
            Ok(self.insert_new(source, file, &piece, pfn)?)
        });
        match inserted {
            Ok(New::There(_)) => {}
            _ => put(source, pfn),
        }
        match inserted {
            Ok(New::Short(bytes)) if bytes == piece.len => Ok(New::Again),
            inserted => inserted,
        }
    }

    /// Puts a frame that has what is to be written where the file has no page, if nothing has to be read for that.
    fn insert_new<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        piece: &Piece,
        pfn: Pfn,
    ) -> Result<New, CacheError> {
        let pin = source.platform().pin();
        let mut pages = self.lock(source, &pin, file)?;
        if !piece.covers(pages.size) && !pages.is_memory() {
            return Ok(New::Short(piece.len));
        }
        if !pages.insert(piece.index, pfn, PageFlags::UPTODATE | PageFlags::DIRTY) {
            return Ok(New::Again);
        }
        self.note_work(&pin, &mut pages);
        pages.size = pages.size.max(piece.end());
        Ok(New::There(piece.len))
    }

    /// Sees to it that a file can be `size` bytes long: what a former truncation owes the store is done, and what lies behind the end, up
    /// to the byte `zero_until` of the file, is zero, whatever was written there through mappings.
    ///
    /// # Linux
    /// `pagecache_isize_extended` in `mm/truncate.c`.
    #[doc(alias = "pagecache_isize_extended")]
    pub(super) fn make_growable<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        size: u64,
        zero_until: u64,
    ) -> Result<(), CacheError> {
        let (cut, store) = {
            let pin = source.platform().pin();
            let pages = self.lock(source, &pin, file)?;
            if size <= pages.size {
                return Ok(());
            }
            if let Some(tail) = pages.end().checked_sub(1).and_then(|index| pages.at(index)) {
                pages.zero_tail(&tail, &pin, zero_until)?;
            }
            let Some(cut) = pages.cut else { return Ok(()) };
            if pages.last().is_some_and(|page| page.index >= pages.end()) {
                return Err(CacheError::Truncating);
            }
            (cut, pages.store())
        };
        self.tell_cut(source, file, store, cut)
    }
}

/// Fills a new frame with what is written to its page, and zeros around it; with how many bytes. Fewer than the piece has if no more can be had.
fn fill_frame<S: PageSource, W: WriteFrom>(
    source: &S,
    pfn: Pfn,
    piece: &Piece,
    from: &mut W,
    at: usize,
) -> Result<usize, W::Error> {
    let mut bytes = 0;
    while bytes < piece.len {
        let shown = from.show(at + bytes, piece.len - bytes, |part| {
            let pin = source.platform().pin();
            let copied =
                source.phys().kmap(&pin, pfn).is_ok_and(|to| part.write_to(&to, piece.within + bytes));
            copied.then_some(part.len())
        });
        let ready = match shown {
            Ok(Some(Some(shown))) => {
                bytes += shown;
                Ok(())
            }
            Ok(Some(None)) => Err(CacheError::Unreachable.into()),
            Ok(None) => from.fault_in(at + bytes),
            Err(error) => Err(error),
        };
        match ready {
            Ok(()) => {}
            Err(_) if bytes != 0 => break,
            Err(error) => return Err(error),
        }
    }
    let around = [0..piece.within, piece.within + bytes..PAGE_SIZE];
    for zeros in around.into_iter().filter(|zeros| !zeros.is_empty()) {
        zero(source.phys(), &source.platform().pin(), pfn, zeros)?;
    }
    Ok(bytes)
}
