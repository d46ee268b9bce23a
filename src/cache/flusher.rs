//! The flusher's work: what is newer than the store goes there, whoever has the file open or mapped.

use core::cell::Cell;
use core::iter;

use crate::phys::PageSource;
use crate::platform::Platform;
use crate::rmap::MmAccess;
use crate::sync::words::Ordering::Relaxed;

use super::PageCache;
use super::fetch::place;
use super::files::StoreKey;
use super::io::MAX_IOS;
use super::mapping::State;
use super::room::Full;
use super::writeback::{Flush, NoEntries, Step, SyncMode, WriteBack};

/// How often it is looked whether a store has written something where memory is short.
const PATIENCE: u32 = 1 << 12;

/// Where the flusher goes on, or the shrinker: a file's place and a page of it.
#[derive(Clone, Copy, Default)]
pub(super) struct Cursor {
    pub(super) place: u32,
    pub(super) page: u32,
}

impl Cursor {
    pub(super) const fn from_bits(bits: u64) -> Self {
        Self { place: (bits >> 32) as u32, page: bits as u32 }
    }

    pub(super) const fn to_bits(self) -> u64 {
        (self.place as u64) << 32 | self.page as u64
    }
}

/// What took no more writes: it is left alone until the next time. Of more stores than there can be writes some are asked again.
struct Refusals {
    stores: [StoreKey; MAX_IOS],
    count: usize,
    all: bool,
}

impl Refusals {
    const NONE: Self = Self { stores: [StoreKey::NONE; MAX_IOS], count: 0, all: false };

    fn note(&mut self, full: Full) {
        match full {
            Full::Table => self.all = true,
            Full::Store(store) => {
                if let Some(place) = self.stores.get_mut(self.count) {
                    *place = store;
                    self.count += 1;
                }
            }
        }
    }

    /// Whether a file has a store that may have room.
    fn may_ask(&self, state: &State<'_>) -> bool {
        let Some((store, _)) = state.store() else { return false };
        let key = StoreKey::of(store);
        !self.all && !self.stores.iter().take(self.count).any(|&full| full == key)
    }

    fn may_write(&self, state: &State<'_>) -> bool {
        state.dirty != 0 && self.may_ask(state)
    }
}

impl<'m> PageCache<'m> {
    /// Begins to write dirty pages of all files, `pages` of them at most, and asks after all that is under way. It goes on where the last call ended, so that
    /// each page has its turn. What files without users have left is made to last when it is written. Answers how many it has begun to write, those among
    /// them that their store is too busy for
    /// and gets [later](Self::write_back); what a write met with is told by [`take_error`](Self::take_error). A
    /// [`Vm`](crate::memory::Vm::write_back) calls it for its cache.
    ///
    /// # Linux
    /// `wb_writeback` in `fs/fs-writeback.c`, with the `range_cyclic` of `write_cache_pages` in `mm/page-writeback.c`.
    #[doc(alias = "wb_writeback")]
    pub fn write_dirty<S: PageSource>(&self, source: &S, access: &impl MmAccess, pages: u32) -> u32 {
        let left = self.begin_writes(source, access, pages);
        self.ask_all(source);
        self.end_unused(source);
        pages - left
    }

    /// Goes once around all files; how many of the pages are left to be begun.
    fn begin_writes<S: PageSource>(&self, source: &S, access: &impl MmAccess, pages: u32) -> u32 {
        let begin = Cursor::from_bits(self.flusher.load(Relaxed));
        let all = 0..u32::MAX;
        let places = |first, end| self.places_with_work(source, first, end);
        let behind = places(begin.place.saturating_add(1), u32::MAX).map(|place| (place, all.clone()));
        let before = places(0, begin.place).map(|place| (place, all.clone()));
        let (rest, passed) = ((begin.place, begin.page..u32::MAX), (begin.place, 0..begin.page));
        let (mut left, mut refusals) = (pages, Refusals::NONE);
        for (at, range) in iter::once(rest).chain(behind).chain(before).chain([passed]) {
            if left == 0 {
                break;
            }
            let Some(file) = self.file_with_work(source, at, |state| refusals.may_write(state)) else {
                continue;
            };
            let job = WriteBack::new(file, place(range.start), place(range.end), SyncMode::Start);
            let mut job = job.of_at_most(left);
            // It begins writes alone, and there is nobody to tell of a file that has just gone.
            let _ = self.write_back(source, access, &mut job);
            job.full().into_iter().for_each(|full| refusals.note(full));
            left = job.left();
            if let Some(page) = job.reached() {
                // Of two who do this at a time, one may set back the other: then some pages have their turn later.
                self.flusher.store(Cursor { place: at, page }.to_bits(), Relaxed);
            }
        }
        left
    }

    /// Writes all dirty pages of all files, and waits until they last; not for those that are written to meanwhile. What a write met with is told by
    /// [`take_error`](Self::take_error).
    ///
    /// # Locking
    /// The caller holds no lock and no pin.
    ///
    /// # Linux
    /// `ksys_sync` in `fs/sync.c`.
    #[doc(alias = "ksys_sync")]
    pub fn sync<S: PageSource>(&self, source: &S, access: &impl MmAccess) {
        // All at once, before any is waited for.
        self.begin_writes(source, access, u32::MAX);
        for place in self.places_with_work(source, 0, u32::MAX) {
            let Some(file) = self.file_with_work(source, place, |_| true) else { continue };
            let mut job = WriteBack::all(file, SyncMode::Wait);
            // A file that has just gone has nothing left.
            while let Ok(Step::Wait(ticket)) = self.write_back(source, access, &mut job) {
                self.wait(source, ticket);
            }
        }
    }

    /// Writes some of what is dirty where memory is short, and waits until something is over; whether it is. What another has begun to write is waited for a moment
    /// alone: a store may never answer, and who asks may need none.
    ///
    /// # Locking
    /// The caller holds no lock and no pin.
    ///
    /// # Linux
    /// `reclaim_throttle` in `mm/vmscan.c`, with `VMSCAN_THROTTLE_WRITEBACK`; who dirties pages is held up before that by `balance_dirty_pages`.
    #[doc(alias = "reclaim_throttle")]
    pub fn write_out<S: PageSource>(&self, source: &S, access: &impl MmAccess, pages: u32) -> bool {
        let (ended, looks) = (self.ended(), Cell::new(0_u32));
        let is_over = || {
            looks.set(looks.get() + 1);
            self.ended() != ended || looks.get() == PATIENCE || self.ask_all(source) == 0
        };
        if self.write_dirty(source, access, pages) != 0 {
            source.platform().wait_until(&is_over);
        } else {
            while !is_over() {
                source.platform().relax();
            }
        }
        self.ended() != ended
    }

    /// Begins to write what files without users have left.
    pub(super) fn write_unused<S: PageSource>(&self, source: &S) {
        let mut refusals = Refusals::NONE;
        for place in self.places_with_work(source, 0, u32::MAX) {
            let is_dirty = |state: &State<'_>| state.users == 0 && refusals.may_write(state);
            let Some(file) = self.file_with_work(source, place, is_dirty) else { continue };
            let mut job = WriteBack::all(file, SyncMode::Start).of_unused();
            // It begins writes alone, and there is nobody to tell of a file that has just gone.
            let _ = self.write_back(source, &NoEntries, &mut job);
            job.full().into_iter().for_each(|full| refusals.note(full));
        }
    }

    /// Has stores make last what they have of files without users, all of which is written: else nobody would know any more for which files to ask when all is to
    /// last. Answers how many barriers have begun and are under way.
    pub(super) fn end_unused<S: PageSource>(&self, source: &S) -> usize {
        let is_written = |state: &State<'_>| {
            state.users == 0 && state.dirty + state.writeback == 0 && !state.lasting.is_all()
        };
        let (mut begun, mut refusals) = (0, Refusals::NONE);
        for place in self.places_with_work(source, 0, u32::MAX) {
            let is_wanted = |state: &State<'_>| is_written(state) && refusals.may_ask(state);
            let Some(file) = self.file_with_work(source, place, is_wanted) else { continue };
            let Some(store) = self.store_of_place(source, place as usize) else { continue };
            let has_to_wait = {
                let pin = source.platform().pin();
                self.has_barrier(&pin, file) || self.has_refused_write(&pin, store)
            };
            if has_to_wait {
                continue;
            }
            match self.barrier(source, file) {
                Ok(Flush::Begun { full, .. }) => {
                    begun += 1;
                    full.into_iter().for_each(|full| refusals.note(full));
                }
                Ok(Flush::Full(full, _)) => refusals.note(full),
                Ok(Flush::Done) | Err(_) => {}
            }
        }
        begun
    }
}
