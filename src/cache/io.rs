//! Reads and writes under way.

use core::fmt;

use crate::addr::Pfn;
use crate::flags::PageFlags;
use crate::phys::PageSource;
use crate::platform::{BackingStore, CpuPin, FrameBytes, IoState, Platform, StoreError, Submitted, Ticket};
use crate::sync::words::Ordering::Relaxed;

use super::PageCache;
use super::files::StoreKey;
use super::hole::Asks;
use super::mapping::{FileId, State};
use super::plug::Submission;
use super::room::Full;

/// The most pages that one read or write is for.
pub(super) const MAX_CLUSTER: usize = 64;

/// The most reads and writes that are under way at a time.
pub const MAX_IOS: usize = 64;

/// Names a read or write of the cache that is under way, whichever store does it, or a hole that is being punched, or room for a read or write. [`PageCache::io_done`] tells
/// when it is over.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IoTicket {
    pub(super) slot: u32,
    turn: u32,
}

impl IoTicket {
    /// Of nothing: it is over.
    pub const OVER: Self = Self { slot: u32::MAX, turn: 0 };

    /// In `slot`: what is waited for is no read or write, but a hole in the file whose place is in the bits below,
    const HOLE: u32 = 1 << 31;
    /// a place in the table for its store,
    const PLACE: u32 = 1 << 30;
    /// or room in its store.
    const ROOM: u32 = 1 << 29;

    pub(super) fn of_hole(file: FileId, turn: u32) -> Self {
        Self::of(Self::HOLE, file, turn)
    }

    /// A place in the table.
    pub(super) fn of_place(file: FileId) -> Self {
        Self::of(Self::PLACE, file, 0)
    }

    /// Room in a store that was too busy when so much had [ended](PageCache::ended).
    pub(super) fn of_room(file: FileId, ended: u32) -> Self {
        Self::of(Self::ROOM, file, ended)
    }

    fn of(kind: u32, file: FileId, turn: u32) -> Self {
        // A place has fewer bits than that.
        Self { slot: kind | file.place() as u32, turn }
    }

    /// What is waited for.
    fn awaited(self) -> Awaited {
        let file = (self.slot & !(Self::HOLE | Self::PLACE | Self::ROOM)) as usize;
        match self.slot {
            slot if slot & Self::HOLE != 0 => Awaited::Hole(file),
            slot if slot & Self::PLACE != 0 => Awaited::Place(file),
            slot if slot & Self::ROOM != 0 => Awaited::Room(file),
            _ => Awaited::Io,
        }
    }
}

/// What a ticket is of; of a file there is its place.
enum Awaited {
    Io,
    Hole(usize),
    Place(usize),
    Room(usize),
}

/// What is read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum IoKind {
    /// Pages are read; they are LOCKED. `wanted` is the one that somebody waits for.
    Read { wanted: Option<u32> },
    /// Pages are written; they are under WRITEBACK.
    Write,
    /// What was written is made to last: so much was [done](super::mapping::Lasting::done) before.
    Barrier { done: u32 },
}

/// How far it is.
#[derive(Clone, Copy)]
enum Stage {
    /// There is none.
    Free,
    /// It has its pages, and the store has not been asked for it; or it has refused it, asked when so much had [ended](PageCache::ended). Whoever holds no lock may ask.
    Prepared { refused: Option<u32> },
    /// The store is being asked, or has answered and the pages are being seen to.
    Busy,
    /// The store has begun.
    Pending(Ticket),
}

/// What somebody does who has asked the store, which is not done yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// He is told that it is not over, and waits.
    Waits,
    /// He has begun it, and goes on.
    Goes,
}

/// A read or write.
#[derive(Clone, Copy)]
pub(super) struct Io<'m> {
    turn: u32,
    stage: Stage,
    pub(super) kind: IoKind,
    pub(super) file: Option<FileId>,
    store: Option<&'m dyn BackingStore>,
    pub(super) first: u32,
    pub(super) count: u32,
    /// Somebody was told that it is not over, and waits.
    is_awaited: bool,
}

impl<'m> Io<'m> {
    pub(super) const FREE: Self = Self {
        turn: 0,
        stage: Stage::Free,
        kind: IoKind::Barrier { done: 0 },
        file: None,
        store: None,
        first: 0,
        count: 0,
        is_awaited: false,
    };

    #[cfg(test)]
    pub(super) fn take_for(&mut self, store: &'m dyn BackingStore) {
        (self.stage, self.store) = (Stage::Busy, Some(store));
    }

    /// The pages that are read or written, and the flag that they bear.
    pub(super) fn pages(&self) -> Option<(FileId, core::ops::Range<u32>, PageFlags)> {
        let flag = match (self.stage, self.kind) {
            (Stage::Free, _) | (_, IoKind::Barrier { .. }) => return None,
            (_, IoKind::Read { .. }) => PageFlags::LOCKED,
            (_, IoKind::Write) => PageFlags::WRITEBACK,
        };
        Some((self.file?, self.first..self.first.saturating_add(self.count), flag))
    }

    /// What names it, in this place of the table.
    pub(super) const fn ticket(&self, slot: u32) -> IoTicket {
        IoTicket { slot, turn: self.turn }
    }

    pub(super) fn store_key(&self) -> Option<StoreKey> {
        self.store.map(StoreKey::of)
    }

    pub(super) const fn is_free(&self) -> bool {
        matches!(self.stage, Stage::Free)
    }

    /// Whether its store has it, or is being asked for it.
    pub(super) const fn is_asked(&self) -> bool {
        matches!(self.stage, Stage::Busy | Stage::Pending(_))
    }

    pub(super) const fn is_prepared(&self) -> bool {
        matches!(self.stage, Stage::Prepared { .. })
    }

    /// Whether it waits for room in its store, and is no read.
    pub(super) const fn is_refused_write(&self) -> bool {
        self.is_prepared() && !matches!(self.kind, IoKind::Read { .. })
    }

    pub(super) fn concerns(&self, file: FileId, index: u32) -> bool {
        !matches!(self.stage, Stage::Free)
            && self.file == Some(file)
            && index.checked_sub(self.first).is_some_and(|at| at < self.count)
    }
}

impl fmt::Debug for Io<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { turn, kind, file, first, count, .. } = self;
        f.debug_struct("Io")
            .field("turn", turn)
            .field("kind", kind)
            .field("file", file)
            .field("first", first)
            .field("count", count)
            .finish_non_exhaustive()
    }
}

/// How a store reaches the bytes of the frames that it is given.
pub(super) struct Reach<'s, S>(pub(super) &'s S);

impl<S: PageSource> FrameBytes for Reach<'_, S> {
    fn read(&self, pfn: Pfn, offset: usize, out: &mut [u8]) -> bool {
        let pin = self.0.platform().pin();
        self.0.phys().kmap(&pin, pfn).is_ok_and(|kmap| kmap.read(offset, out))
    }

    fn write(&self, pfn: Pfn, offset: usize, bytes: &[u8]) -> bool {
        let pin = self.0.platform().pin();
        self.0.phys().kmap(&pin, pfn).is_ok_and(|kmap| kmap.write(offset, bytes))
    }
}

impl<'m> PageCache<'m> {
    /// Takes a place in the table; where there is none, answers with what is full, and what to wait for.
    pub(super) fn begin_io(
        &self,
        pin: &CpuPin<'_>,
        file: FileId,
        store: &'m dyn BackingStore,
        kind: IoKind,
    ) -> Result<IoTicket, (Full, IoTicket)> {
        let mut ios = self.ios.lock(pin);
        let (slot, io) = ios.take(StoreKey::of(store)).map_err(|full| (full, IoTicket::of_place(file)))?;
        let turn = io.turn;
        *io = Io { turn, stage: Stage::Busy, kind, file: Some(file), store: Some(store), ..Io::FREE };
        Ok(io.ticket(slot))
    }

    /// Notes which pages it is for. It is called with the file locked, before anybody can find these pages.
    pub(super) fn set_io_pages(&self, pin: &CpuPin<'_>, ticket: IoTicket, first: u32, count: u32) {
        if let Some(io) = self.ios.lock(pin).places.get_mut(ticket.slot as usize) {
            (io.first, io.count) = (first, count);
        }
    }

    /// Notes which pages a read is for, and leaves it for whoever holds no lock. It is called with the file locked, before anybody can find these pages.
    pub(super) fn leave_prepared(&self, pin: &CpuPin<'_>, ticket: IoTicket, first: u32, count: u32) {
        if let Some(io) = self.ios.lock(pin).places.get_mut(ticket.slot as usize) {
            (io.first, io.count, io.stage) = (first, count, Stage::Prepared { refused: None });
        }
    }

    /// Gives the place back, and tells those who wait.
    ///
    /// # Locking
    /// The caller holds no pin, and at most the lock of an address space or of a VMA.
    pub(super) fn release_io<S: PageSource>(&self, source: &S, ticket: IoTicket) {
        let (before, room_wanted) = {
            let pin = source.platform().pin();
            let mut ios = self.ios.lock(&pin);
            let Some(io) = ios.places.get_mut(ticket.slot as usize) else { return };
            let before = core::mem::replace(io, Io { turn: io.turn.wrapping_add(1), ..Io::FREE });
            ios.give_back(ticket.slot);
            (before, self.room_wanted.swap(0, Relaxed) != 0)
        };
        if before.is_awaited || room_wanted {
            source.platform().wake_waiters();
        }
    }

    /// Goes on with what a store answered that was asked when so much had [ended](Self::ended).
    pub(super) fn submitted<S: PageSource>(
        &self,
        source: &S,
        ticket: IoTicket,
        ended: u32,
        answer: Result<Submitted, StoreError>,
    ) -> Submission {
        match answer {
            Ok(Submitted::Pending(pending)) => {
                // Whoever asked before the store could be asked may have missed that it ended.
                if self.set_pending(source, ticket, pending, Asker::Goes) {
                    source.platform().wake_waiters();
                }
                return Submission::UnderWay;
            }
            Err(StoreError::Busy) => return self.put_back(source, ticket, Some(ended)),
            Ok(Submitted::Done) => self.end_io(source, ticket, Ok(())),
            Err(error) => self.end_io(source, ticket, Err(error)),
        }
        Submission::Over
    }

    /// From now on the store can be asked; whether somebody wanted to ask before.
    fn set_pending<S: PageSource>(
        &self,
        source: &S,
        ticket: IoTicket,
        pending: Ticket,
        asker: Asker,
    ) -> bool {
        let pin = source.platform().pin();
        let mut ios = self.ios.lock(&pin);
        let Some(io) = ios.places.get_mut(ticket.slot as usize) else { return false };
        io.stage = Stage::Pending(pending);
        core::mem::replace(&mut io.is_awaited, asker == Asker::Waits)
    }

    /// What is in a place of the table.
    pub(super) fn ticket_at(&self, pin: &CpuPin<'_>, slot: u32) -> Option<IoTicket> {
        let ios = self.ios.lock(pin);
        let io = ios.places.get(slot as usize).filter(|io| !matches!(io.stage, Stage::Free))?;
        Some(io.ticket(slot))
    }

    /// Takes what is prepared, to ask its store for it, with how much has ended before; else how it stands. What was refused beside others is not asked
    /// for again before something has ended.
    pub(super) fn take_prepared(
        &self,
        pin: &CpuPin<'_>,
        ticket: IoTicket,
    ) -> Result<(Io<'m>, u32), Submission> {
        let mut ios = self.ios.lock(pin);
        let ended = self.ended();
        let (refused, store) = match ios.places.get(ticket.slot as usize).filter(|io| io.turn == ticket.turn)
        {
            None | Some(Io { stage: Stage::Free, .. }) => return Err(Submission::Over),
            Some(Io { stage: Stage::Prepared { refused }, store: Some(store), .. }) => {
                (*refused, StoreKey::of(*store))
            }
            Some(_) => return Err(Submission::UnderWay),
        };
        if refused == Some(ended) && ios.is_asked(store) {
            self.room_wanted.store(1, Relaxed);
            return Err(Submission::Refused { store, others: true });
        }
        let io = ios.places.get_mut(ticket.slot as usize).ok_or(Submission::Over)?;
        io.stage = Stage::Busy;
        Ok((*io, ended))
    }

    /// Leaves prepared what its store has refused, asked when so much had ended, or has ended without doing it. Who waits is told when anything is over.
    ///
    /// # Linux
    /// `blk_mq_requeue_request` in `block/blk-mq.c`: what a driver has no room for (`BLK_STS_RESOURCE`) is dispatched again later, and its pages are
    /// under write-back all the while.
    #[doc(alias = "blk_mq_requeue_request")]
    fn put_back<S: PageSource>(&self, source: &S, ticket: IoTicket, refused: Option<u32>) -> Submission {
        let (tell, store, others) = {
            let pin = source.platform().pin();
            let mut ios = self.ios.lock(&pin);
            let Some(io) = ios.places.get_mut(ticket.slot as usize) else { return Submission::Over };
            io.stage = Stage::Prepared { refused };
            let was_awaited = core::mem::replace(&mut io.is_awaited, false);
            let store = io.store_key().unwrap_or(StoreKey::NONE);
            let others = ios.is_asked(store);
            // Who waits for room in a store waits for one of its requests: of this one, if it has ended or there is no other.
            let room_wanted = self.room_wanted.swap(1, Relaxed) != 0 && (refused.is_none() || !others);
            (was_awaited || room_wanted, store, others)
        };
        if tell {
            source.platform().wake_waiters();
        }
        if !others {
            source.platform().relax();
        }
        Submission::Refused { store, others }
    }

    /// The read or write that a page is under; [`IoTicket::OVER`] if that has just ended.
    pub(super) fn io_of(&self, pin: &CpuPin<'_>, file: FileId, index: u32) -> IoTicket {
        let ios = self.ios.lock(pin);
        let mut all = ios.places.iter().enumerate();
        let found = all.find(|(_, io)| io.concerns(file, index));
        found.map_or(IoTicket::OVER, |(slot, io)| io.ticket(slot as u32))
    }

    /// Whether a write or barrier waits for room in a store.
    pub(super) fn has_refused_write(&self, pin: &CpuPin<'_>, store: StoreKey) -> bool {
        self.ios.lock(pin).has_refused_write(store)
    }

    /// Whether a file's store is making something of it last.
    pub(super) fn has_barrier(&self, pin: &CpuPin<'_>, file: FileId) -> bool {
        let is_one = |io: &Io<'_>| {
            !matches!(io.stage, Stage::Free)
                && io.file == Some(file)
                && matches!(io.kind, IoKind::Barrier { .. })
        };
        self.ios.lock(pin).places.iter().any(is_one)
    }

    /// Whether a read or write is over, as far as is known. No store is asked: locks that stand outside a file's may be held.
    pub fn io_is_over<S: PageSource>(&self, source: &S, ticket: IoTicket) -> bool {
        if let Some(is_over) = self.other_is_over(source, ticket, Asks::ToKnow) {
            return is_over;
        }
        let pin = source.platform().pin();
        let ios = self.ios.lock(&pin);
        let is_it = |io: &&Io<'_>| io.turn == ticket.turn && !matches!(io.stage, Stage::Free);
        ios.places.get(ticket.slot as usize).filter(is_it).is_none()
    }

    /// Whether what is no read or write is over.
    fn other_is_over<S: PageSource>(&self, source: &S, ticket: IoTicket, asks: Asks) -> Option<bool> {
        match ticket.awaited() {
            Awaited::Io => None,
            Awaited::Hole(file) => Some(self.hole_is_over(source, file, ticket.turn, asks)),
            Awaited::Place(file) => Some(self.place_is_over(source, file, asks)),
            Awaited::Room(file) => Some(self.room_is_over(source, file, ticket.turn, asks)),
        }
    }

    /// Whether a read or write is over. Asks its store, and if it has just ended does what is left to do with its pages: anybody may ask. What is only
    /// [prepared](super::Plug) is submitted by that.
    ///
    /// # Locking
    /// The caller holds no lock and no pin.
    pub fn io_done<S: PageSource>(&self, source: &S, ticket: IoTicket) -> bool {
        if let Some(is_over) = self.other_is_over(source, ticket, Asks::ToWait) {
            return is_over;
        }
        loop {
            let (store, others) = match self.ask(source, ticket) {
                Some(Submission::Over) => return true,
                Some(Submission::UnderWay) => return false,
                Some(Submission::Refused { store, others }) => (store, others),
                None => match self.submit(source, ticket) {
                    Submission::Over => return true,
                    Submission::UnderWay => continue,
                    Submission::Refused { store, others } => (store, others),
                },
            };
            if !others {
                // Nobody tells of room in a store that has nothing of this cache's: who waits is not to sleep.
                source.platform().wake_waiters();
                return false;
            }
            if !self.ask_pending(source, Some(store)) {
                return false;
            }
        }
    }

    /// Asks the store of something under way how it stands, and if it has just ended does what is left to do with its pages; `None` if it is prepared.
    pub(super) fn ask<S: PageSource>(&self, source: &S, ticket: IoTicket) -> Option<Submission> {
        loop {
            let (store, pending) = {
                let pin = source.platform().pin();
                let mut ios = self.ios.lock(&pin);
                let Some(io) = ios.places.get_mut(ticket.slot as usize).filter(|io| io.turn == ticket.turn)
                else {
                    return Some(Submission::Over);
                };
                match (io.store, io.stage) {
                    (_, Stage::Free) => return Some(Submission::Over),
                    (_, Stage::Prepared { .. }) => return None,
                    (Some(store), Stage::Pending(pending)) => {
                        // A store tells once that it ended: nobody else asks meanwhile.
                        (io.stage, io.is_awaited) = (Stage::Busy, false);
                        (store, pending)
                    }
                    (_, Stage::Busy | Stage::Pending(_)) => {
                        io.is_awaited = true;
                        return Some(Submission::UnderWay);
                    }
                }
            };
            match store.poll(pending) {
                // Whoever wanted to ask meanwhile was told to wait: it may have ended since, and its store have told that already.
                IoState::Pending if self.set_pending(source, ticket, pending, Asker::Waits) => {}
                IoState::Pending => return Some(Submission::UnderWay),
                IoState::Ended(Err(StoreError::Busy)) => {
                    self.ended.fetch_add(1, Relaxed);
                    return Some(self.put_back(source, ticket, None));
                }
                IoState::Ended(result) => {
                    self.end_io(source, ticket, result);
                    return Some(Submission::Over);
                }
            }
        }
    }

    /// Begins to write what files without users have left, asks after everything that is under way, and has stores make last what is written of such
    /// files. Answers with how many reads, writes and barriers are under way or wait for room in their stores, and how many such files have something
    /// to be written or made to last yet, as after a write or barrier that failed: 0 if all is done that can be. A [`Vm`](crate::memory::Vm::reap) calls it for its cache.
    pub fn reap<S: PageSource>(&self, source: &S) -> usize {
        self.write_unused(source);
        let under_way = self.ask_all(source);
        let begun = self.end_unused(source);
        // While something is under way it is what is waited for.
        let is_left = |state: &State<'_>| {
            state.users == 0 && (state.dirty != 0 || under_way + begun == 0 && state.has_work())
        };
        let places = self.places_with_work(source, 0, u32::MAX);
        under_way + begun + places.filter_map(|place| self.file_with_work(source, place, is_left)).count()
    }

    /// Asks after everything that is under way, and submits what is prepared. Answers with how many reads, writes and barriers are not over.
    pub(super) fn ask_all<S: PageSource>(&self, source: &S) -> usize {
        let mut under_way = 0;
        for slot in 0..MAX_IOS {
            let ticket = self.ticket_at(&source.platform().pin(), slot as u32);
            under_way += usize::from(ticket.is_some_and(|ticket| !self.io_done(source, ticket)));
        }
        under_way
    }

    /// Waits until a read or write is over, as the [platform](Platform::wait_until) waits.
    ///
    /// # Locking
    /// The caller holds no lock and no pin.
    ///
    /// # Linux
    /// `folio_wait_locked` in `include/linux/pagemap.h`.
    #[doc(alias = "folio_wait_locked")]
    pub fn wait<S: PageSource>(&self, source: &S, ticket: IoTicket) {
        source.platform().wait_until(&|| self.io_done(source, ticket));
    }
}
