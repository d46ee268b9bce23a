//! Reads that are prepared under locks, and submitted when none is held; what a store has refused, submitted again.

use core::cell::Cell;

use crate::addr::Pfn;
use crate::phys::PageSource;
use crate::platform::{BackingStore, Cluster, Platform, StoreError, Submitted};

use super::PageCache;
use super::fetch::place;
use super::files::StoreKey;
use super::io::{Io, IoKind, IoTicket, MAX_CLUSTER, MAX_IOS, Reach};
use super::pages::pages_of;

/// Reads that were prepared, and are to be submitted when the caller has let go of all its locks: [`PageCache::finish_plug`].
///
/// A prepared read has its place, its frames, and its pages in the file, LOCKED. Nothing is lost with a plug that is dropped: whoever waits for one of these pages
/// [submits](PageCache::io_done) its read, and so does [`PageCache::reap`].
///
/// # Linux
/// `struct blk_plug` in `include/linux/blkdev.h`.
#[derive(Debug, Default)]
#[doc(alias = "blk_plug")]
#[must_use = "the reads in it are to be submitted when no lock is held"]
pub struct Plug(Cell<u64>);

const _: () = assert!(MAX_IOS <= u64::BITS as usize, "a plug has a bit for each place in the table");

impl Plug {
    /// Nothing is prepared.
    #[doc(alias = "blk_start_plug")]
    pub const fn new() -> Self {
        Self(Cell::new(0))
    }

    /// Whether nothing is to be submitted.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.get() == 0
    }

    /// What is in it, which leaves it empty.
    #[inline]
    pub fn take(&self) -> Self {
        Self(Cell::new(self.0.take()))
    }

    pub(super) fn add(&self, ticket: IoTicket) {
        self.0.set(self.0.get() | 1_u64.wrapping_shl(ticket.slot));
    }
}

/// How it stands with something that a store was to be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Submission {
    /// It is over.
    Over,
    /// The store has it, or somebody else is asking the store.
    UnderWay,
    /// The store takes no more for now: it is still prepared. If the store has others of this cache's, one of them will end.
    Refused { store: StoreKey, others: bool },
}

impl<'m> PageCache<'m> {
    /// Submits the reads of a plug. What a store takes no more of stays prepared.
    ///
    /// # Locking
    /// The caller holds no lock and no pin.
    ///
    /// # Linux
    /// `blk_finish_plug` in `block/blk-core.c`.
    #[doc(alias = "blk_finish_plug")]
    pub fn finish_plug<S: PageSource>(&self, source: &S, plug: Plug) {
        let mut slots = plug.0.take();
        while slots != 0 {
            let slot = slots.trailing_zeros();
            slots &= slots - 1;
            let ticket = self.ticket_at(&source.platform().pin(), slot);
            if let Some(ticket) = ticket {
                self.submit(source, ticket);
            }
        }
    }

    /// Asks the store for what is prepared, unless somebody has by now.
    ///
    /// # Locking
    /// The caller holds no lock and no pin.
    pub(super) fn submit<S: PageSource>(&self, source: &S, ticket: IoTicket) -> Submission {
        let taken = self.take_prepared(&source.platform().pin(), ticket);
        match taken {
            Ok((io, ended)) => self.submitted(source, ticket, ended, self.ask_store(source, &io)),
            Err(stands) => stands,
        }
    }

    fn ask_store<S: PageSource>(&self, source: &S, io: &Io<'m>) -> Result<Submitted, StoreError> {
        let (mut frames, reach) = ([Pfn::ZERO; MAX_CLUSTER], Reach(source));
        let Request { store, inode, frames, bytes } =
            self.request(source, io, &mut frames).ok_or(StoreError::Io)?;
        let cluster = Cluster::new(place(io.first), frames, &reach);
        match io.kind {
            IoKind::Read { .. } => store.read(inode, &cluster),
            // The file ends before it by now: a truncation waits for these pages.
            IoKind::Write if bytes == 0 => Ok(Submitted::Done),
            IoKind::Write => store.write(inode, &cluster, bytes),
            IoKind::Barrier { .. } => store.barrier(inode),
        }
    }

    /// What a store is asked for: of a read or write the frames of its pages, which stay in the file as long as they are LOCKED or under WRITEBACK.
    fn request<'f, S: PageSource>(
        &self,
        source: &S,
        io: &Io<'_>,
        frames: &'f mut [Pfn; MAX_CLUSTER],
    ) -> Option<Request<'m, 'f>> {
        let pin = source.platform().pin();
        let pages = self.lock(source, &pin, io.file?).ok()?;
        let (store, inode) = pages.store()?;
        let bytes = pages.bytes_in(io.first, io.count);
        let count = match io.kind {
            IoKind::Write => pages_of(bytes),
            IoKind::Read { .. } | IoKind::Barrier { .. } => io.count,
        };
        let mut next = pages.from(io.first);
        let frames = frames.get_mut(..count as usize)?;
        for (index, frame) in (io.first..).zip(frames.iter_mut()) {
            let page = next.filter(|page| page.index == index)?;
            *frame = page.pfn;
            next = pages.after(&page);
        }
        Some(Request { store, inode, frames, bytes })
    }
}

struct Request<'m, 'f> {
    store: &'m dyn BackingStore,
    inode: u64,
    frames: &'f [Pfn],
    /// How many of their bytes belong to the file.
    bytes: u64,
}
