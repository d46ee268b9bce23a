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
use super::mapping::{Batch, FileId};
use super::plug::{PutBack, Submission};
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
    /// A read that has its pages, and that the store has not been asked for. Whoever holds no lock may do that.
    Prepared,
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

    /// Whether its store has it, or is being asked for it.
    pub(super) const fn is_asked(&self) -> bool {
        matches!(self.stage, Stage::Busy | Stage::Pending(_))
    }

    pub(super) const fn is_prepared(&self) -> bool {
        matches!(self.stage, Stage::Prepared)
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
            (io.first, io.count, io.stage) = (first, count, Stage::Prepared);
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

    /// Goes on with what the store answered; whether it is over.
    pub(super) fn submitted<S: PageSource>(
        &self,
        source: &S,
        ticket: IoTicket,
        answer: Result<Submitted, StoreError>,
    ) -> bool {
        match answer {
            Ok(Submitted::Pending(pending)) => {
                // Whoever asked before the store could be asked may have missed that it ended.
                if self.set_pending(source, ticket, pending, Asker::Goes) {
                    source.platform().wake_waiters();
                }
                false
            }
            Ok(Submitted::Done) => {
                self.end_begun(source, ticket, Ok(()));
                true
            }
            // No room has come of that.
            Err(StoreError::Busy) => {
                self.end_io(source, ticket, Err(StoreError::Busy));
                true
            }
            Err(error) => {
                self.end_begun(source, ticket, Err(error));
                true
            }
        }
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

    /// Takes a read to submit it, if it is prepared.
    pub(super) fn take_prepared(&self, pin: &CpuPin<'_>, ticket: IoTicket) -> Option<Io<'m>> {
        let mut ios = self.ios.lock(pin);
        let io = ios.places.get_mut(ticket.slot as usize).filter(|io| io.turn == ticket.turn)?;
        if !matches!(io.stage, Stage::Prepared) {
            return None;
        }
        io.stage = Stage::Busy;
        Some(*io)
    }

    /// Leaves a read prepared that its store would not take. Who waits is told when any other read or write is over.
    pub(super) fn put_back(&self, pin: &CpuPin<'_>, ticket: IoTicket, store: StoreKey) -> PutBack {
        let mut ios = self.ios.lock(pin);
        let room_wanted = self.room_wanted.swap(1, Relaxed) != 0;
        let was_awaited = ios.places.get_mut(ticket.slot as usize).is_some_and(|io| {
            io.stage = Stage::Prepared;
            core::mem::replace(&mut io.is_awaited, false)
        });
        let others = ios.is_asked(store);
        // Who waits for room in a store waits for one of its requests: of this one, if there is no other.
        PutBack { was_awaited: was_awaited || room_wanted && !others, others }
    }

    /// The read or write that a page is under; [`IoTicket::OVER`] if that has just ended.
    pub(super) fn io_of(&self, pin: &CpuPin<'_>, file: FileId, index: u32) -> IoTicket {
        let ios = self.ios.lock(pin);
        let mut all = ios.places.iter().enumerate();
        let found = all.find(|(_, io)| io.concerns(file, index));
        found.map_or(IoTicket::OVER, |(slot, io)| io.ticket(slot as u32))
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
            let ask = {
                let pin = source.platform().pin();
                let mut ios = self.ios.lock(&pin);
                let Some(io) = ios.places.get_mut(ticket.slot as usize).filter(|io| io.turn == ticket.turn)
                else {
                    return true;
                };
                match (io.store, io.stage) {
                    (_, Stage::Free) => return true,
                    (Some(store), Stage::Pending(pending)) => {
                        // A store tells once that it ended: nobody else asks meanwhile.
                        (io.stage, io.is_awaited) = (Stage::Busy, false);
                        Some((store, pending))
                    }
                    (_, Stage::Prepared) => None,
                    (_, Stage::Busy | Stage::Pending(_)) => {
                        io.is_awaited = true;
                        return false;
                    }
                }
            };
            let Some((store, pending)) = ask else {
                match self.submit(source, ticket) {
                    Submission::Over => return true,
                    Submission::UnderWay => continue,
                    Submission::Busy { store } if self.ask_pending(source, Some(store)) => continue,
                    Submission::Busy { .. } => return false,
                }
            };
            match store.poll(pending) {
                // Whoever wanted to ask meanwhile was told to wait: it may have ended since, and its store have told that already.
                IoState::Pending if self.set_pending(source, ticket, pending, Asker::Waits) => {}
                IoState::Pending => return false,
                IoState::Ended(result) => {
                    self.end_begun(source, ticket, result);
                    return true;
                }
            }
        }
    }

    /// Asks after everything that is under way, begins to write what files without users have left, and has their stores make it last. Answers with how many reads,
    /// writes and barriers are still under way: 0 if all is done that can be. A [`Vm`](crate::memory::Vm::reap) calls it for its cache.
    pub fn reap<S: PageSource>(&self, source: &S) -> usize {
        self.write_unused(source);
        let under_way = self.ask_all(source);
        under_way + self.end_unused(source)
    }

    /// Asks after everything that is under way. Answers with how many reads and writes still are.
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

    /// Something is over that the store had begun.
    fn end_begun<S: PageSource>(&self, source: &S, ticket: IoTicket, result: Result<(), StoreError>) {
        self.ended.fetch_add(1, Relaxed);
        self.end_io(source, ticket, result);
    }

    /// Does what is left to do with the pages, then gives the place in the table back.
    fn end_io<S: PageSource>(&self, source: &S, ticket: IoTicket, result: Result<(), StoreError>) {
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
                } else if io.count == 1 && result != Err(StoreError::Busy) {
                    page.page.set_flags(PageFlags::ERROR);
                }
            }
        }
        gone.put_all(source);
    }

    /// Pages that were written are no longer under write-back; those that were not are still newer than the store, unless they are given up. A sync that has waited for one that its store
    /// was too busy for [begins again](super::WriteBack).
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
            Err(StoreError::Busy) => true,
            Err(_) => pages.users != 0 || !pages.failures.failed(&range),
        };
        for index in range {
            let Some(page) = pages.at(index) else { continue };
            if page.page.clear_flags(PageFlags::WRITEBACK).contains(PageFlags::WRITEBACK) {
                pages.writeback -= 1;
            }
            if again {
                pages.mark_dirty(page.page);
            }
        }
        match result {
            Ok(()) => pages.lasting.note_done(),
            Err(StoreError::Busy) => pages.refused = pages.refused.wrapping_add(1),
            Err(error) => pages.errors.note(error),
        }
        self.note_work(&pin, &mut pages);
        // As long as the file is locked: who finds one of the pages being written again must not take this write for that one.
        self.set_io_pages(&pin, ticket, 0, 0);
    }

    /// What was done before a barrier lasts. One that failed is not tried again, unless somebody asks: he who syncs the file is told.
    fn end_barrier<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        done: u32,
        result: Result<(), StoreError>,
    ) {
        let pin = source.platform().pin();
        let Ok(mut pages) = self.lock(source, &pin, file) else { return };
        match result {
            Ok(()) => pages.lasting.note_barrier(done),
            Err(StoreError::Busy) => {}
            Err(error) => {
                pages.lasting.note_barrier(done);
                pages.errors.note(error);
            }
        }
    }
}
