//! Reading and writing files by calls: in the pages that mappings show.

use core::ops::Range;

use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PAGE_SIZE_U64, Pfn, PgOff};
use crate::flags::PageFlags;
use crate::phys::PageSource;
use crate::platform::{Platform, StoreError};

use super::error::CacheError;
use super::fetch::{Fetched, place, zeroed_frame};
use super::files::StoreKey;
use super::io::IoTicket;
use super::mapping::{FileId, put};
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
    fn ended(bytes: usize, how: Result<Option<IoTicket>, CacheError>) -> Result<Self, CacheError> {
        match how {
            Ok(wait) => Ok(Self { bytes, wait }),
            Err(_) if bytes != 0 => Ok(Self { bytes, wait: None }),
            Err(error) => Err(error),
        }
    }
}

/// What part of a page a write is for.
struct Piece<'a> {
    index: u32,
    within: usize,
    bytes: &'a [u8],
}

impl Piece<'_> {
    /// Where it begins in the file.
    fn start(&self) -> u64 {
        (u64::from(self.index) << PAGE_SHIFT) + self.within as u64
    }

    /// Where it ends in the file.
    fn end(&self) -> u64 {
        self.start() + self.bytes.len() as u64
    }

    /// Whether nothing of the page's former contents stays, in a file of `size` bytes.
    fn covers(&self, size: u64) -> bool {
        let start = u64::from(self.index) << PAGE_SHIFT;
        start >= size || self.within == 0 && (self.bytes.len() == PAGE_SIZE || self.end() >= size)
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
        self.read_of(source, file, offset..end, out, state, pattern)
    }

    /// The first of the bytes that the caller wants, as [`read_at`](Self::read_at).
    pub(crate) fn read_of<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        wanted: Range<u64>,
        out: &mut [u8],
        state: &mut ReadAhead,
        pattern: Pattern,
    ) -> Result<Moved, CacheError> {
        let mut done = 0;
        let moved = loop {
            let at = wanted.start.saturating_add(done as u64);
            let left = self.size(source, file)?.saturating_sub(at).min((out.len() - done) as u64) as usize;
            if left == 0 {
                break Ok(None);
            }
            let (index, within) = Self::locate(at)?;
            let len = left.min(PAGE_SIZE - within);
            if self.is_memory_hole(source, file, index)? {
                out.get_mut(done..done + len).unwrap_or_default().fill(0);
                done += len;
                continue;
            }
            let pages = wanted.end.div_ceil(PAGE_SIZE_U64).saturating_sub(u64::from(index));
            let pages = pages.min(u64::from(u32::MAX)) as u32;
            let pfn = match self.fetch(source, file, Wanted { index: place(index), pages, pattern }, state) {
                Ok(Fetched::Ready { pfn, .. }) => pfn,
                Ok(Fetched::Wait(ticket)) => break Ok(Some(ticket)),
                // Truncated meanwhile.
                Err(CacheError::BeyondEnd) => break Ok(None),
                Err(error) => break Err(error),
            };
            let copied =
                out.get_mut(done..done + len).is_some_and(|part| read_frame(source, pfn, within, part));
            put(source, pfn);
            if !copied {
                break Err(CacheError::Unreachable);
            }
            done += len;
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
        if offset >= MAX_FILE_BYTES && !bytes.is_empty() {
            return Err(CacheError::TooLarge);
        }
        let room = MAX_FILE_BYTES.saturating_sub(offset).min(bytes.len() as u64) as usize;
        let mut done = 0;
        while done < room {
            let (index, within) = Self::locate(offset + done as u64)?;
            let len = (room - done).min(PAGE_SIZE - within);
            let Some(bytes) = bytes.get(done..done + len) else { break };
            match self.write_piece(source, file, &Piece { index, within, bytes }) {
                Ok(None) => done += len,
                how => return Moved::ended(done, how),
            }
        }
        Ok(Moved { bytes: done, wait: None })
    }

    /// Writes inside one page; `Some` if there is something to wait for first.
    fn write_piece<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        piece: &Piece<'_>,
    ) -> Result<Option<IoTicket>, CacheError> {
        loop {
            self.make_growable(source, file, piece.end(), piece.start())?;
            if let Some(ticket) = self.prepare_write(source, file, place(piece.index))? {
                return Ok(Some(ticket));
            }
            let done = match self.target(source, file, piece)? {
                Target::Wait(ticket) => return Ok(Some(ticket)),
                Target::There(pfn) => self.write_there(source, file, piece, pfn)?,
                Target::New => self.write_new(source, file, piece)?,
                Target::Read => {
                    // Its neighbours are not needed.
                    let mut state = ReadAhead::new();
                    match self.fetch(
                        source,
                        file,
                        Wanted::page(place(piece.index), Pattern::Random),
                        &mut state,
                    ) {
                        Ok(Fetched::Ready { pfn, .. }) => self.write_there(source, file, piece, pfn)?,
                        Ok(Fetched::Wait(ticket)) => return Ok(Some(ticket)),
                        Err(CacheError::BeyondEnd) => false,
                        Err(error) => return Err(error),
                    }
                }
            };
            if done {
                return Ok(None);
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

    fn target<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        piece: &Piece<'_>,
    ) -> Result<Target, CacheError> {
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

    /// Writes into a page of the file, to which the caller has a reference, and drops that. `false` if it left the file meanwhile.
    fn write_there<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        piece: &Piece<'_>,
        pfn: Pfn,
    ) -> Result<bool, CacheError> {
        let written = {
            let pin = source.platform().pin();
            // Locked while the bytes are copied: who zeroes what lies behind the end must find either none of them, or the new end.
            self.lock(source, &pin, file).and_then(|mut pages| {
                let Some(page) = pages.at(piece.index).filter(|page| page.pfn == pfn) else {
                    return Ok(false);
                };
                if !source.phys().kmap(&pin, pfn)?.write(piece.within, piece.bytes) {
                    return Err(CacheError::Unreachable);
                }
                pages.mark_dirty(page.page);
                self.note_work(&pin, &mut pages);
                pages.size = pages.size.max(piece.end());
                Ok(true)
            })
        };
        put(source, pfn);
        written
    }

    /// Puts a page with these bytes where the file has none; `false` if somebody else was faster.
    fn write_new<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        piece: &Piece<'_>,
    ) -> Result<bool, CacheError> {
        let pfn = zeroed_frame(source)?;
        let inserted = match write_frame(source, pfn, piece.within, piece.bytes) {
            false => Err(CacheError::Unreachable),
            true => {
                let pin = source.platform().pin();
                self.lock(source, &pin, file).map(|mut pages| {
                    let is_new = piece.covers(pages.size) || pages.is_memory();
                    let inserted =
                        is_new && pages.insert(piece.index, pfn, PageFlags::UPTODATE | PageFlags::DIRTY);
                    if inserted {
                        self.note_work(&pin, &mut pages);
                        pages.size = pages.size.max(piece.end());
                    }
                    inserted
                })
            }
        };
        if !matches!(inserted, Ok(true)) {
            put(source, pfn);
        }
        inserted
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

fn read_frame<S: PageSource>(source: &S, pfn: Pfn, offset: usize, out: &mut [u8]) -> bool {
    source.phys().kmap(&source.platform().pin(), pfn).is_ok_and(|kmap| kmap.read(offset, out))
}

fn write_frame<S: PageSource>(source: &S, pfn: Pfn, offset: usize, bytes: &[u8]) -> bool {
    source.phys().kmap(&source.platform().pin(), pfn).is_ok_and(|kmap| kmap.write(offset, bytes))
}
