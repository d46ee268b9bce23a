//! Pages that can go, and files with them.

use core::ops::Range;

use crate::collections::Slot;
use crate::flags::PageFlags;
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::sync::words::Ordering::Relaxed;

use super::PageCache;
use super::mapping::{Batch, FileId, Kind, LOOKS};
use super::pages::{Found, Pages};

impl PageCache<'_> {
    /// How many pages were dropped of files without users, modulo 2^64.
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
            let (mut gone, mut looks) = (Batch::new(), 0);
            let (more, is_empty);
            {
                let pin = source.platform().pin();
                let Ok(mut locked) = self.lock(source, &pin, file) else { return false };
                if locked.users != 0 {
                    return false;
                }
                let mut next = locked.from(from).filter(|page| page.index < pages.end);
                while looks < LOOKS && !gone.is_full() {
                    let Some(page) = next else { break };
                    next = locked.after(&page).filter(|page| page.index < pages.end);
                    looks += 1;
                    if is_unused(&locked, &page) {
                        locked.remove(&page);
                        gone.push(page.pfn);
                    }
                }
                more = next.map(|page| page.index);
                is_empty = locked.tree.is_empty();
            }
            self.scanned.fetch_add(looks as u64, Relaxed);
            self.dropped.fetch_add(gone.len() as u64, Relaxed);
            gone.put_all(source);
            if is_empty {
                return self.end_file(source, file);
            }
            let Some(more) = more else { return false };
            from = more;
        }
    }

    /// Gives the place of a file up, if it still has neither users nor pages, and all of it lasts that was written; whether it was this call that did.
    fn end_file<S: PageSource>(&self, source: &S, file: FileId) -> bool {
        let pin = source.platform().pin();
        let mut files = self.files.lock(&pin);
        let Ok(mut pages) = self.lock(source, &pin, file) else { return false };
        let Some(slot) = Slot::from_index(file.place()) else { return false };
        let ends = pages.users == 0 && pages.tree.is_empty() && pages.lasting.is_all();
        if ends {
            pages.kind = Kind::None;
            pages.turn = (pages.turn + 1) & (u32::MAX >> FileId::PLACE_BITS);
            files.give_up(slot);
        }
        ends
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
