//! The page cache: the pages of files that are in memory.
//!
//! ```text
//!  fetch, find, read_at, write_at, write_back, truncate      by file and page; no lock is held while a store or the allocator works
//!    Mapping     one file: length, tree of pages, users, the VMAs that map it            a spin lock each
//!      PageExt   16 bytes a frame: its links in that tree                                so that to insert a page cannot fail
//!    Io          what is being read and written                                          one table for all stores
//! ```
//!
//! A page is in at most one file. The cache has one reference to it; whoever finds it gets one more. Its flags say how it stands:
//!
//! | flags | |
//! |---|---|
//! | LOCKED | being read, or to be read when its store takes more: nobody looks at its bytes, nobody takes it out |
//! | UPTODATE | its bytes are the file's |
//! | DIRTY | and the store's are older |
//! | WRITEBACK | being written, or to be written when its store takes more: nobody takes it out. It may be DIRTY again |
//! | ERROR | could not be read: the next who asks is told, and the flag goes |
//! | READAHEAD | was read ahead; who reaches it begins the next read |
//!
//! # Waiting
//! Nothing here blocks. What has to wait answers with an [`IoTicket`]; when [`PageCache::io_done`] says that this is over, the call is made again and finds
//! what has changed meanwhile. Stores that do all at once never make anybody wait who holds no lock.
//!
//! A store that never answers keeps nobody from another: it cannot take all places in the table of reads and writes (four such stores can), and where one is too busy, that
//! something of this one ends is waited for.
//!
//! No store is asked while a lock is held, but for the [room](crate::platform::BackingStore::prepare_write) of a page that is about to be written. Who holds one, as a fault does, has its reads [prepared](Plug): they have their frames, and their pages are in the file and
//! LOCKED. Submitted they are by the one who prepared them, when he has let go of his locks, or by the first who waits for such a page.
//!
//! What a store is too busy for keeps its place in the table, and is submitted again when something has ended. So a read, write or barrier that is over
//! is done or has failed, and who
//! waits for one need not ask whether it was refused.
//!
//! # Locking
//! ```text
//! a file's sharing list          while entries of page tables are visited
//!   page tables
//!     Files                      which files there are
//!       Mapping                  one file's pages, their flags and its length; never two
//!         CacheIo                the table of reads and writes
//!         Leaf                   which files have something to be written
//! ```
//!
//! # Races
//! | | |
//! |---|---|
//! | look-up and removal | both have the file locked; a reference is taken under that lock, so a page found is not free |
//! | last user and pin | a pinned page of a file that nobody has open or mapped stays in it, and the file with it, until the last pin goes: what a device writes belongs to the file |
//! | look-up and shrinker | a page goes that has one reference, the cache's, with the file locked; who looks it up takes one under that lock, who maps it has one |
//! | removal and last use | a page taken out lives until its last reference goes ([`PageSource::put_page`](crate::phys::PageSource::put_page)) |
//! | read and truncation | a page being read is not taken out: truncation waits |
//! | fault and truncation | the length is set first, then entries are taken out, then pages dropped; a fault asks [`PageCache::still_has`] with the table locked: what it has entered before is taken out, and after that it finds the page gone |
//! | fault and hole | the same: where a hole is being punched no page is shown, and a fault waits until it is there |
//! | hole and hole | one after the other; between them the faults that have waited come in |
//! | write and write-back | a page is noted as clean first, then its entries are write-protected, then it is written: a later write dirties it again |

mod check;
mod end;
mod error;
mod failures;
mod fetch;
mod files;
mod flusher;
mod hole;
mod io;
mod iter;
mod lookup;
mod mapping;
mod pages;
mod plug;
mod readahead;
mod room;
mod rw;
mod truncate;
mod unused;
mod work;
mod writeback;

pub use check::CacheCheckError;
pub use error::CacheError;
pub use fetch::Fetched;
pub use io::{IoTicket, MAX_IOS};
pub(crate) use iter::{Part, ReadTo, Told, WriteFrom};
pub use mapping::{ErrorsSeen, FileId, FileStat, Mapping};
pub use pages::{ByIndex, PageExt};
pub use plug::Plug;
pub use readahead::{Pattern, ReadAhead, Wanted};
pub use rw::Moved;
pub use writeback::{Step, SyncMode, WriteBack};

use crate::addr::PAGE_SIZE_U64;
use crate::rmap::RmapNodes;
use crate::sync::words::{Word32, Word64};
use crate::sync::{Rank, SpinLock};

use files::Files;
use room::Ios;
use work::Work;

/// The most bytes that a file can have: as many pages as 32 bits number, 16 TiB, less one page.
///
/// # Linux
/// `MAX_LFS_FILESIZE` in `include/linux/fs.h`, as 32-bit kernels have it.
pub const MAX_FILE_BYTES: u64 = u32::MAX as u64 * PAGE_SIZE_U64;

/// The pages of files.
pub struct PageCache<'m> {
    ext: &'m [PageExt],
    mappings: &'m [Mapping<'m>],
    nodes: &'m dyn RmapNodes,
    files: SpinLock<Files<'m>>,
    ios: SpinLock<Ios<'m>>,
    /// Not 0 if somebody is to be told when any of `ios` is over, since a store took no more. Changed with them locked.
    room_wanted: Word64,
    /// How often something has ended that a store had begun, modulo 2^32.
    ended: Word32,
    /// The files that have something to be written or made to last. Locked last.
    work: SpinLock<Work<'m>>,
    /// How many pages were looked at whether they can go, and how many went.
    scanned: Word64,
    dropped: Word64,
    /// Where [`write_dirty`](Self::write_dirty) goes on.
    flusher: Word64,
    /// And where [`shrink`](Self::shrink) does.
    shrinker: Word64,
}

impl<'m> PageCache<'m> {
    /// An empty cache for as many files as there are `mappings`. Of `ext` there is one for each of [`Phys::slots`](crate::phys::Phys::slots); a frame without one
    /// cannot be in a file.
    /// Where the VMAs lie that map files, `nodes` knows.
    pub fn new(ext: &'m [PageExt], mappings: &'m [Mapping<'m>], nodes: &'m dyn RmapNodes) -> Self {
        let ios = SpinLock::new(Rank::CacheIo, Ios::NONE);
        let files = SpinLock::new(Rank::Files, Files::new(mappings));
        Self {
            ext,
            mappings,
            nodes,
            files,
            ios,
            room_wanted: Word64::new(0),
            ended: Word32::new(0),
            work: SpinLock::new(Rank::Leaf, Work::new(mappings)),
            scanned: Word64::new(0),
            dropped: Word64::new(0),
            flusher: Word64::new(0),
            shrinker: Word64::new(0),
        }
    }
}

impl core::fmt::Debug for PageCache<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PageCache").field("mappings", &self.mappings).finish_non_exhaustive()
    }
}
