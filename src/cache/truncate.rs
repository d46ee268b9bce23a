//! Files that become shorter or longer, and holes.

use crate::addr::{PAGE_OFFSET_MASK, PgOff};
use crate::phys::PageSource;
use crate::platform::{BackingStore, Platform};
use crate::rmap::{Copies, MmAccess, Place, Walk};

use super::error::CacheError;
use super::fetch::place;
use super::io::IoTicket;
use super::mapping::{Batch, Cut, FileId, LOOKS};
use super::pages::pages_of;
use super::writeback::Step;
use super::{MAX_FILE_BYTES, PageCache};

impl<'m> PageCache<'m> {
    /// Makes a file `size` bytes long. What comes to lie beyond the end is gone, from mappings too, private copies among it, and reads as zero
    /// should the file grow again; what appears is a hole.
    ///
    /// The length that it has already is one too: what was written behind the end through mappings is gone.
    ///
    /// Where something has to be waited for, the file has its new length already, and the call is to be made again with the same arguments.
    ///
    /// # Errors
    /// [`CacheError::TooLarge`], [`CacheError::BadFile`]; [`CacheError::Io`], [`CacheError::NoSpace`] of the store: a file that was to grow is as it was,
    /// one that was to shrink has its new length, which the store is told before the file grows again, and every [sync](Self::write_back) of it fails
    /// until then; [`CacheError::Truncating`] if it is to grow while another call shrinks it; [`CacheError::Unreachable`].
    ///
    /// # Locking
    /// Callers exclude each other, and those of [`write_at`](Self::write_at), by a lock of theirs (Linux: the inode's).
    ///
    /// # Linux
    /// `truncate_setsize` and `truncate_pagecache` in `mm/truncate.c`.
    #[doc(alias = "truncate_setsize")]
    pub fn truncate<S: PageSource>(
        &self,
        source: &S,
        access: &impl MmAccess,
        file: FileId,
        size: u64,
    ) -> Result<Step, CacheError> {
        if size > MAX_FILE_BYTES {
            return Err(CacheError::TooLarge);
        }
        let grows = {
            let pin = source.platform().pin();
            let mut pages = self.lock(source, &pin, file)?;
            let grows = size > pages.size;
            if !grows {
                pages.size = size;
                pages.cut =
                    Some(Cut { size: pages.cut.map_or(size, |cut| cut.size.min(size)), refused: None });
            }
            grows
        };
        match grows {
            true => self.extend(source, file, size).map(|()| Step::Done),
            false => self.shorten(source, access, file, size),
        }
    }

    /// Gives a file in memory a hole: the pages from `first` up to and without `end` read as zero from now on, and take no frames. Processes keep their
    /// own copies.
    ///
    /// # Errors
    /// [`CacheError::Unsupported`] if the file has a store; [`CacheError::BadFile`].
    ///
    /// # Linux
    /// `shmem_fallocate` with `FALLOC_FL_PUNCH_HOLE` in `mm/shmem.c`.
    #[doc(alias = "FALLOC_FL_PUNCH_HOLE")]
    pub fn punch_hole<S: PageSource>(
        &self,
        source: &S,
        access: &impl MmAccess,
        file: FileId,
        first: PgOff,
        end: PgOff,
    ) -> Result<(), CacheError> {
        {
            let pin = source.platform().pin();
            if !self.lock(source, &pin, file)?.is_memory() {
                return Err(CacheError::Unsupported);
            }
        }
        let clip = |at: PgOff| at.get().min(u64::from(u32::MAX)) as u32;
        let hole = (clip(first), clip(end));
        // Pages of files in memory are never under input or output: there is nothing to wait for.
        self.with_hole(source, file, hole, || self.drop_unmapped(source, access, file, hole, Copies::Stay))
            .map(drop)
    }

    fn extend<S: PageSource>(&self, source: &S, file: FileId, size: u64) -> Result<(), CacheError> {
        self.make_growable(source, file, size, u64::MAX)?;
        let store = {
            let pin = source.platform().pin();
            self.lock(source, &pin, file)?.store()
        };
        if let Some((store, inode)) = store {
            store.set_size(inode, size)?;
        }
        let pin = source.platform().pin();
        let mut pages = self.lock(source, &pin, file)?;
        pages.note_length_told();
        self.note_work(&pin, &mut pages);
        pages.size = pages.size.max(size);
        Ok(())
    }

    /// What is left to do when the length is set.
    fn shorten<S: PageSource>(
        &self,
        source: &S,
        access: &impl MmAccess,
        file: FileId,
        size: u64,
    ) -> Result<Step, CacheError> {
        let end = pages_of(size);
        if let Some(ticket) = self.drop_unmapped(source, access, file, (end, u32::MAX), Copies::Go)? {
            return Ok(Step::Wait(ticket));
        }
        let store = {
            let pin = source.platform().pin();
            let pages = self.lock(source, &pin, file)?;
            let tail = end.checked_sub(1).filter(|_| size & PAGE_OFFSET_MASK != 0);
            if let Some(tail) = tail.and_then(|tail| pages.at(tail)) {
                // What is being written may be longer than the file now: it must not come after the store is told.
                if tail.is_busy() {
                    return Ok(Step::Wait(self.io_of(&pin, file, tail.index)));
                }
                pages.zero_tail(&tail, &pin, u64::MAX)?;
            }
            pages.store()
        };
        let cut = Cut { size, refused: None };
        self.tell_cut(source, file, store, cut)?;
        Ok(Step::Done)
    }

    /// Tells a store to what length its file was cut. One that refuses is told before the file grows again; until then no sync of the file succeeds.
    pub(super) fn tell_cut<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        store: Option<(&dyn BackingStore, u64)>,
        cut: Cut,
    ) -> Result<(), CacheError> {
        let told = store.map_or(Ok(()), |(store, inode)| store.set_size(inode, cut.size));
        let pin = source.platform().pin();
        let mut pages = self.lock(source, &pin, file)?;
        let is_this = pages.cut.is_some_and(|now| now.size == cut.size);
        if told.is_ok() {
            pages.note_length_told();
            self.note_work(&pin, &mut pages);
        }
        if is_this {
            pages.cut = told.err().map(|error| Cut { refused: Some(error), ..cut });
        }
        Ok(told?)
    }

    /// Takes all entries out that show pages from `first` up to and without `end`.
    ///
    /// # Linux
    /// `unmap_mapping_pages` in `mm/memory.c`.
    #[doc(alias = "unmap_mapping_range")]
    fn zap<S: PageSource>(
        &self,
        source: &S,
        access: &impl MmAccess,
        file: FileId,
        (first, end): (PgOff, PgOff),
        copies: Copies,
    ) {
        let Some(mapping) = self.mappings.get(file.place()) else { return };
        // Private copies do not lead back to the file: none may be where no VMA says until the list is walked to its end.
        let mut settled = mapping.sharers.settle(source.platform());
        loop {
            let zap = |place: &Place, range| access.zap(place.mm, range, copies);
            let walk = settled.walk(self.nodes, first, end, zap);
            access.flush();
            if walk == Walk::Through {
                return;
            }
        }
    }

    /// Takes pages out of a file and out of all page tables, but for those that are being read or written; answers with one of these to wait for.
    ///
    /// The file does not [show](Self::still_has) these pages any more: they lie beyond its end by now, or in a [hole](Self::with_hole). So once its VMAs were gone
    /// through none of them is mapped, nor will be.
    ///
    /// # Linux
    /// `truncate_inode_pages_range` in `mm/truncate.c`.
    #[doc(alias = "truncate_inode_pages")]
    fn drop_unmapped<S: PageSource>(
        &self,
        source: &S,
        access: &impl MmAccess,
        file: FileId,
        (first, end): (u32, u32),
        copies: Copies,
    ) -> Result<Option<IoTicket>, CacheError> {
        let past = if end == u32::MAX { PgOff::MAX } else { place(end) };
        self.zap(source, access, file, (place(first), past), copies);
        self.drop_pages(source, file, first, end)
    }

    /// Takes pages out of a file, but for those that are being read or written; answers with one of these to wait for.
    fn drop_pages<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        first: u32,
        end: u32,
    ) -> Result<Option<IoTicket>, CacheError> {
        let (mut from, mut busy) = (first, None);
        loop {
            let mut gone = Batch::new();
            let more;
            {
                let pin = source.platform().pin();
                let mut pages = self.lock(source, &pin, file)?;
                let mut next = pages.from(from).filter(|page| page.index < end);
                for _ in 0..LOOKS {
                    let Some(page) = next.filter(|_| !gone.is_full()) else { break };
                    next = pages.after(&page).filter(|page| page.index < end);
                    if page.is_busy() {
                        busy = busy.or_else(|| Some(self.io_of(&pin, file, page.index)));
                    } else {
                        // It may be counted as mapped yet, by who has taken its entry out and is about to say so.
                        pages.remove(&page);
                        gone.push(page.pfn);
                    }
                }
                more = next.map(|page| page.index);
            }
            gone.put_all(source);
            let Some(more) = more else { return Ok(busy) };
            from = more;
        }
    }
}
