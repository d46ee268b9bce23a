//! Pages that can go: those of files that nobody has open or mapped any more, which go by themselves, and those that go where memory is short.

use core::iter;
use core::ops::Range;

use crate::collections::Slot;
use crate::flags::PageFlags;
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::sync::words::Ordering::Relaxed;

use super::PageCache;
use super::flusher::Cursor;
use super::mapping::{Batch, Cut, FileId, Kind, LOOKS};
use super::pages::{Found, Pages};

impl PageCache<'_> {
    /// How many pages were dropped that could go, modulo 2^64.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// How many pages were looked at for that, modulo 2^64.
    ///
    /// # Linux
    /// `pgscan_direct` of `/proc/vmstat`, beside `pgsteal_direct`.
    #[doc(alias = "pgscan_direct")]
    pub fn scanned(&self) -> u64 {
        self.scanned.load(Relaxed)
    }

    /// Drops those of some pages that can go, if the file has no users, and its place with the last of all. All are looked at when the last user goes; one that
    /// had to stay is looked at again when its read or write is over, or a pin has gone. Answers whether the file has ended by this call.
    pub(super) fn drop_unused<S: PageSource>(&self, source: &S, file: FileId, pages: Range<u32>) -> bool {
        let mut from = pages.start;
        loop {
            let (taken, is_empty) = {
                let pin = source.platform().pin();
                let Ok(mut locked) = self.lock(source, &pin, file) else { return false };
                if locked.users != 0 {
                    return false;
                }
                (Taken::from(&mut locked, from..pages.end, u64::MAX, is_unused), locked.tree.is_empty())
            };
            let more = self.let_go(source, taken);
            if is_empty {
                return self.end_file(source, file);
            }
            let Some(more) = more else { return false };
            from = more;
        }
    }

    /// Drops clean pages that nobody uses, of files that are open or mapped, until so many have gone or each was looked at. It goes on where the last call ended, so
    /// that each has its turn. Answers how many have gone. Pages of files in memory have nowhere else to be, and stay.
    ///
    /// Which pages will be needed again nobody knows here: reclaim by age, which also takes pages that are mapped, is to come.
    ///
    /// # Locking
    /// The caller holds no pin, and at most the lock of an address space or of a VMA. Nothing is written or waited for.
    ///
    /// # Linux
    /// `invalidate_mapping_pages` in `mm/truncate.c`, and `shrink_folio_list` in `mm/vmscan.c`.
    #[doc(alias = "invalidate_mapping_pages")]
    pub fn shrink<S: PageSource>(&self, source: &S, pages: u64) -> u64 {
        let begin = Cursor::from_bits(self.shrinker.load(Relaxed));
        let places = self.files.lock(&source.platform().pin()).places();
        let others = (1..places).map(|step| ((begin.place + step) % places, 0..u32::MAX));
        let (rest, passed) = ((begin.place, begin.page..u32::MAX), (begin.place, 0..begin.page));
        let mut left = pages;
        for (place, range) in iter::once(rest).chain(others).chain([passed]) {
            if left == 0 {
                break;
            }
            if let Some(file) = self.file_at(source, place as usize) {
                left -= self.drop_clean(source, file, range, left);
            }
        }
        pages - left
    }

    /// Drops those of some pages that are clean and that nobody uses, up to `most`; how many.
    fn drop_clean<S: PageSource>(&self, source: &S, file: FileId, pages: Range<u32>, most: u64) -> u64 {
        let (mut from, mut left) = (pages.start, most);
        while left != 0 && from < pages.end {
            let taken = {
                let pin = source.platform().pin();
                let Ok(mut locked) = self.lock(source, &pin, file) else { break };
                if locked.store().is_none() {
                    break;
                }
                Taken::from(&mut locked, from..pages.end, left, |_, page| is_clean(page))
            };
            left -= taken.gone.len() as u64;
            from = self.let_go(source, taken).unwrap_or(pages.end);
            // Of two who do this at a time, one may set back the other: then some pages have their turn later.
            self.shrinker.store(Cursor { place: file.place() as u32, page: from }.to_bits(), Relaxed);
        }
        most - left
    }

    /// Drops the cache's references to pages that were taken out. Answers where to go on.
    fn let_go<S: PageSource>(&self, source: &S, taken: Taken) -> Option<u32> {
        self.scanned.fetch_add(taken.looks as u64, Relaxed);
        self.dropped.fetch_add(taken.gone.len() as u64, Relaxed);
        taken.gone.put_all(source);
        taken.more
    }

    /// Does what is left to do for reads and writes that are over. None is begun.
    ///
    /// # Locking
    /// As [`shrink`](Self::shrink): stores are [asked](crate::platform::BackingStore::poll), and nothing else.
    pub fn collect<S: PageSource>(&self, source: &S) {
        while self.ask_pending(source, None) {}
    }

    /// Gives the place of a file up, if it still has neither users nor pages, and all of it lasts that was written; whether it was this call that did.
    fn end_file<S: PageSource>(&self, source: &S, file: FileId) -> bool {
        let (kind, cut) = {
            let pin = source.platform().pin();
            let mut files = self.files.lock(&pin);
            let Ok(mut pages) = self.lock(source, &pin, file) else { return false };
            let Some(slot) = Slot::from_index(file.place()) else { return false };
            if pages.users != 0 || !pages.tree.is_empty() || !pages.lasting.is_all() {
                return false;
            }
            pages.turn = (pages.turn + 1) & (u32::MAX >> FileId::PLACE_BITS);
            files.give_up(slot);
            (core::mem::replace(&mut pages.kind, Kind::None), pages.cut.take())
        };
        if let Kind::Store { store, inode } = kind {
            if let Some(Cut { size, refused: Some(error) }) = cut {
                source.platform().report(format_args!(
                    "kernmm: file {inode}: what was cut off behind byte {size} is in its store yet: {error}\n"
                ));
            }
            store.release(inode);
        }
        true
    }
}

/// Whether a page of a file without users can go. What a device may be writing to is not lost: it is the file's, if that has a store.
///
/// # Linux
/// `__remove_mapping` in `mm/vmscan.c` takes no page that has other references, and `inode_add_lru` in `fs/inode.c` no file that has pages.
fn is_unused(pages: &Pages<'_, '_>, page: &Found<'_>) -> bool {
    let is_kept = page.is(PageFlags::DIRTY) || page.page.maybe_pinned();
    !page.is_busy() && (pages.is_memory() || !is_kept)
}

/// Whether a page of a store's file can be read again, and has no reference but the cache's: who takes one locks the file first.
fn is_clean(page: &Found<'_>) -> bool {
    let (busy, flags) = (PageFlags::LOCKED | PageFlags::WRITEBACK | PageFlags::DIRTY, page.page.flags());
    // Who waits for one that could not be read is still to be told.
    let is_clean = flags.contains(PageFlags::UPTODATE) && !flags.intersects(busy);
    is_clean && page.page.count() == 1 && page.page.map_count() == 0
}

/// Pages that were taken out of a file, after so many looks, and the next one to look at.
struct Taken {
    gone: Batch,
    looks: usize,
    more: Option<u32>,
}

impl Taken {
    /// Takes those of some pages out that may go, as many as one look at the file is for, and `most` of them.
    fn from(
        pages: &mut Pages<'_, '_>,
        range: Range<u32>,
        most: u64,
        may_go: impl Fn(&Pages<'_, '_>, &Found<'_>) -> bool,
    ) -> Self {
        let mut taken = Self { gone: Batch::new(), looks: 0, more: None };
        let mut next = pages.from(range.start);
        while let Some(page) = next.filter(|page| page.index < range.end) {
            if taken.looks == LOOKS || taken.gone.is_full() || taken.gone.len() as u64 == most {
                taken.more = Some(page.index);
                break;
            }
            next = pages.after(&page);
            taken.looks += 1;
            if may_go(pages, &page) {
                pages.remove(&page);
                taken.gone.push(page.pfn);
            }
        }
        taken
    }
}
