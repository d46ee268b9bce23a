//! What is left to do when a read or write is over.

use core::ops::Range;

use crate::flags::PageFlags;
use crate::phys::PageSource;
use crate::platform::{Platform, StoreError};
use crate::sync::words::Ordering::Relaxed;

use super::PageCache;
use super::io::{Io, IoKind, IoTicket};
use super::mapping::{Batch, FileId};

impl PageCache<'_> {
    /// Does what is left to do with the pages, then gives the place in the table back.
    pub(super) fn end_io<S: PageSource>(&self, source: &S, ticket: IoTicket, result: Result<(), StoreError>) {
        self.ended.fetch_add(1, Relaxed);
        let io = {
            let pin = source.platform().pin();
            let ios = self.ios.lock(&pin);
            ios.places.get(ticket.slot as usize).copied()
        };
        let Some((io, file)) = io.and_then(|io| Some((io, io.file?))) else { return };
        match io.kind {
            IoKind::Read { wanted } => self.end_read(source, file, &io, wanted, result),
            IoKind::Write => self.end_write(source, file, (ticket, &io), result),
            IoKind::Barrier { done } => self.end_barrier(source, file, done, result),
        }
        self.release_io(source, ticket);
        self.drop_unused(source, file, io.first..io.first.saturating_add(io.count));
    }

    /// Pages that were read are up to date. Of those that were not only the wanted one stays: alone it is noted as bad, after a larger
    /// read it is to be read alone.
    fn end_read<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        io: &Io<'_>,
        wanted: Option<u32>,
        result: Result<(), StoreError>,
    ) {
        let mut gone = Batch::new();
        {
            let pin = source.platform().pin();
            let Ok(mut pages) = self.lock(source, &pin, file) else { return };
            let (end, mut next) = (io.first.saturating_add(io.count), pages.from(io.first));
            while let Some(page) = next.filter(|page| page.index < end) {
                next = pages.after(&page);
                if result.is_ok() && pages.zero_tail(&page, &pin, u64::MAX).is_ok() {
                    page.page.set_flags(PageFlags::UPTODATE);
                    page.page.clear_flags(PageFlags::LOCKED);
                    continue;
                }
                page.page.clear_flags(PageFlags::LOCKED | PageFlags::READAHEAD);
                if wanted != Some(page.index) {
                    pages.remove(&page);
                    gone.push(page.pfn);
                } else if io.count == 1 {
                    page.page.set_flags(PageFlags::ERROR);
                }
            }
        }
        gone.put_all(source);
    }

    /// Pages that were written are no longer under write-back; those that were not are still newer than the store, unless they are given up, which is reported.
    fn end_write<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        (ticket, io): (IoTicket, &Io<'_>),
        result: Result<(), StoreError>,
    ) {
        let pin = source.platform().pin();
        let Ok(mut pages) = self.lock(source, &pin, file) else { return };
        let range = io.first..io.first.saturating_add(io.count);
        let again = match result {
            Ok(()) => {
                pages.failures.written(&range);
                false
            }
            Err(_) => pages.users != 0 || !pages.failures.failed(&range),
        };
        let mut next = pages.from(range.start);
        while let Some(page) = next.filter(|page| page.index < range.end) {
            next = pages.after(&page);
            pages.end_writeback(&page);
            if again {
                pages.mark_dirty(&page);
            }
        }
        match result {
            Ok(()) => pages.lasting.note_done(),
            Err(error) => pages.errors.note(error),
        }
        self.note_work(&pin, &mut pages);
        // As long as the file is locked: who finds one of the pages being written again must not take this write for that one.
        self.set_io_pages(&pin, ticket, 0, 0);
        let inode = pages.store().map_or(0, |(_, inode)| inode);
        drop(pages);
        drop(pin);
        if let Some(error) = result.err().filter(|_| !again) {
            let Range { start, end } = range;
            source.platform().report(format_args!(
                "kernmm: file {inode}: what was written to pages {start} up to {end} is lost: {error}\n"
            ));
        }
    }

    /// What was done before a barrier lasts. After one that failed it is not said to, so that the next sync asks for another; for a file without users
    /// one is asked for as often as a write is tried, and then it is given up, which is reported.
    fn end_barrier<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        done: u32,
        result: Result<(), StoreError>,
    ) {
        let pin = source.platform().pin();
        let Ok(mut pages) = self.lock(source, &pin, file) else { return };
        let Err(error) = result else {
            pages.lasting.note_barrier(done);
            return;
        };
        pages.errors.note(error);
        if pages.users != 0 || !pages.lasting.note_refused() {
            return;
        }
        pages.lasting.note_barrier(done);
        let inode = pages.store().map_or(0, |(_, inode)| inode);
        drop(pages);
        drop(pin);
        source
            .platform()
            .report(format_args!("kernmm: file {inode}: what was written may not last: {error}\n"));
    }
}
