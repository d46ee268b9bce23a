//! Reads that are prepared under locks, and submitted when none is held.

use core::cell::Cell;

use crate::addr::Pfn;
use crate::phys::PageSource;
use crate::platform::{BackingStore, Cluster, Platform, StoreError};

use super::PageCache;
use super::fetch::place;
use super::files::StoreKey;
use super::io::{Io, IoTicket, MAX_CLUSTER, MAX_IOS, Reach};

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

/// How an attempt to submit a read ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Submission {
    /// The read is over.
    Over,
    /// The store has it, or somebody else is asking the store.
    UnderWay,
    /// The store takes no more for now: the read is still prepared.
    Busy { store: StoreKey },
}

/// How one attempt to submit a read ended.
pub(super) enum Attempted {
    Over,
    /// The store has it, or somebody else is asking the store.
    UnderWay,
    /// The store refused it while it had others, of which one will end.
    BesideOthers(StoreKey),
    /// While it had none of this cache's.
    Alone(StoreKey),
}

/// How a read was left prepared.
pub(super) struct PutBack {
    /// Somebody waits for it.
    pub(super) was_awaited: bool,
    /// Others are under way.
    pub(super) others: bool,
}

/// How often a store that has nothing under way may refuse a read in a row.
const TRIES: u32 = 64;

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

    /// Asks the store for a read that is prepared, unless somebody has by now.
    ///
    /// # Locking
    /// The caller holds no lock and no pin.
    pub(super) fn submit<S: PageSource>(&self, source: &S, ticket: IoTicket) -> Submission {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_submit(source, ticket) {
                // All that it was busy with may have ended since: then nobody tells of it any more.
                Attempted::Alone(_) if tries < TRIES => source.platform().relax(),
                Attempted::Alone(store) | Attempted::BesideOthers(store) => {
                    return Submission::Busy { store };
                }
                Attempted::Over => return Submission::Over,
                Attempted::UnderWay => return Submission::UnderWay,
            }
        }
    }

    /// The same once.
    pub(super) fn try_submit<S: PageSource>(&self, source: &S, ticket: IoTicket) -> Attempted {
        let Some(io) = self.take_prepared(&source.platform().pin(), ticket) else {
            return match self.io_is_over(source, ticket) {
                true => Attempted::Over,
                false => Attempted::UnderWay,
            };
        };
        let (mut frames, reach) = ([Pfn::ZERO; MAX_CLUSTER], Reach(source));
        let (answer, store) = match self.frames_of(source, &io, &mut frames) {
            Some((store, inode, frames)) => {
                let cluster = Cluster::new(place(io.first), frames, &reach);
                (store.read(inode, &cluster), StoreKey::of(store))
            }
            None => (Err(StoreError::Io), StoreKey::NONE),
        };
        if answer == Err(StoreError::Busy) {
            let PutBack { was_awaited, others } = self.put_back(&source.platform().pin(), ticket, store);
            if was_awaited {
                source.platform().wake_waiters();
            }
            return if others { Attempted::BesideOthers(store) } else { Attempted::Alone(store) };
        }
        match self.submitted(source, ticket, answer) {
            true => Attempted::Over,
            false => Attempted::UnderWay,
        }
    }

    /// The store of a read, and the frames of its pages, which stay in the file as long as they are LOCKED.
    fn frames_of<'f, S: PageSource>(
        &self,
        source: &S,
        io: &Io<'_>,
        frames: &'f mut [Pfn; MAX_CLUSTER],
    ) -> Option<(&'m dyn BackingStore, u64, &'f [Pfn])> {
        let pin = source.platform().pin();
        let pages = self.lock(source, &pin, io.file?).ok()?;
        let (store, inode) = pages.store()?;
        let mut next = pages.from(io.first);
        let frames = frames.get_mut(..io.count as usize)?;
        for (index, frame) in (io.first..).zip(frames.iter_mut()) {
            let page = next.filter(|page| page.index == index)?;
            *frame = page.pfn;
            next = pages.after(&page);
        }
        Some((store, inode, frames))
    }
}
