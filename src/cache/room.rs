//! Room for reads and writes: in the table of all that are under way, and in the stores.

use crate::phys::PageSource;
use crate::platform::{CpuPin, Platform};
use crate::sync::words::Ordering::Relaxed;

use super::PageCache;
use super::files::StoreKey;
use super::hole::Asks;
use super::io::{Io, IoTicket, MAX_IOS};
use super::mapping::FileId;
use super::plug::Submission;

/// What takes no more reads and writes for now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Full {
    /// The table of all that are under way.
    Table,
    Store(StoreKey),
}

/// A store gets a place in the table as long as it has fewer than so many times those that are free: at most 48 of 64. So one that never answers leaves room for the
/// others, and a second one and a third.
///
/// # Linux
/// `hctx_may_queue` in `block/blk-mq.h`, which divides the tags among the queues that are busy.
const SHARE: u32 = 3;

/// Reads and writes under way, each in its place.
pub(super) struct Ios<'m> {
    pub(super) places: [Io<'m>; MAX_IOS],
    /// A bit for each place that is taken.
    taken: u64,
}

impl<'m> Ios<'m> {
    pub(super) const NONE: Self = Self { places: [Io::FREE; MAX_IOS], taken: 0 };

    /// What is in a place that is taken.
    fn at(&self, place: u32) -> Option<&Io<'m>> {
        self.places.get(place as usize).filter(|_| self.taken & 1_u64.wrapping_shl(place) != 0)
    }

    /// What a store has.
    fn of(&self, store: StoreKey) -> impl Iterator<Item = &Io<'m>> {
        let mut rest = self.taken;
        let taken = core::iter::from_fn(move || {
            let place = (rest != 0).then(|| rest.trailing_zeros())?;
            rest &= rest - 1;
            Some(place)
        });
        taken
            .filter_map(|place| self.places.get(place as usize))
            .filter(move |io| io.store_key() == Some(store))
    }

    /// A place that a store may take.
    fn place_for(&self, store: StoreKey) -> Result<u32, Full> {
        let place = self.taken.trailing_ones();
        if place == MAX_IOS as u32 {
            return Err(Full::Table);
        }
        let own = self.of(store).count() as u32;
        if own < SHARE * self.taken.count_zeros() { Ok(place) } else { Err(Full::Store(store)) }
    }

    /// Takes a place for a store.
    pub(super) fn take(&mut self, store: StoreKey) -> Result<(u32, &mut Io<'m>), Full> {
        let place = self.place_for(store)?;
        self.taken |= 1 << place;
        self.places.get_mut(place as usize).map(|io| (place, io)).ok_or(Full::Table)
    }

    /// Gives it back.
    pub(super) const fn give_back(&mut self, place: u32) {
        self.taken &= !(1 << place);
    }

    /// The first place that is taken for nothing, or that has something and is free.
    pub(super) fn wrong_place(&self) -> Option<usize> {
        let is_taken = |place: usize| self.taken & (1 << place) != 0;
        let mut places = self.places.iter().enumerate();
        places.find(|&(place, io)| io.is_free() == is_taken(place)).map(|(place, _)| place)
    }

    /// Whether a store has been asked for something that has not ended.
    pub(super) fn is_asked(&self, store: StoreKey) -> bool {
        self.of(store).any(Io::is_asked)
    }

    /// Whether a write or barrier waits for room in a store.
    pub(super) fn has_refused_write(&self, store: StoreKey) -> bool {
        self.of(store).any(Io::is_refused_write)
    }
}

impl<'m> PageCache<'m> {
    /// How often something has ended that a store had begun, modulo 2^32. Who asks a store looks first, for [`room_in`](Self::room_in).
    pub(super) fn ended(&self) -> u32 {
        // Who ends what leaves room for one that was refused has asked the store after that, and counts after that.
        self.ended.load(Relaxed)
    }

    /// What to wait for where a store was too busy that was asked when so much had [ended](Self::ended): that something of it ends. If it has nothing, what it was busy
    /// with has ended since, or is none of this cache's, and nobody tells of it: then it is to be asked again.
    pub(super) fn room_in<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        store: StoreKey,
        ended: u32,
    ) -> IoTicket {
        match self.ios.lock(&source.platform().pin()).is_asked(store) {
            true => IoTicket::of_room(file, ended),
            false => IoTicket::OVER,
        }
    }

    /// Asks a store again for the writes and barriers that it has refused, which come before new ones; whether it still takes no more.
    ///
    /// # Locking
    /// The caller holds no lock and no pin.
    pub(super) fn is_too_busy<S: PageSource>(&self, source: &S, store: StoreKey) -> bool {
        self.tickets(source, Some(store), Io::is_refused_write)
            .any(|ticket| matches!(self.submit(source, ticket), Submission::Refused { .. }))
    }

    pub(super) fn store_of_place<S: PageSource>(&self, source: &S, place: usize) -> Option<StoreKey> {
        let pin = source.platform().pin();
        let (store, _) = self.mappings.get(place)?.state.lock(&pin).store()?;
        Some(StoreKey::of(store))
    }

    /// Whether something of a file's store has ended since it was refused something, or nothing of it is under way any more.
    pub(super) fn room_is_over<S: PageSource>(
        &self,
        source: &S,
        place: usize,
        ended: u32,
        asks: Asks,
    ) -> bool {
        let Some(store) = self.store_of_place(source, place) else { return true };
        let has_room = |pin: &CpuPin<'_>| {
            let ios = self.ios.lock(pin);
            let is_over = self.ended() != ended || !ios.is_asked(store);
            self.note_wanted(is_over, asks);
            is_over
        };
        loop {
            if has_room(&source.platform().pin()) {
                return true;
            }
            if asks == Asks::ToKnow || !self.ask_pending(source, Some(store)) {
                return false;
            }
        }
    }

    /// Whether a file's store may take a place in the table.
    pub(super) fn place_is_over<S: PageSource>(&self, source: &S, place: usize, asks: Asks) -> bool {
        let Some(store) = self.store_of_place(source, place) else { return true };
        loop {
            let room = {
                let pin = source.platform().pin();
                let room = self.ios.lock(&pin).place_for(store);
                self.note_wanted(room.is_ok(), asks);
                room
            };
            let of = match room {
                Ok(_) => return true,
                Err(_) if asks == Asks::ToKnow => return false,
                Err(Full::Table) => None,
                Err(Full::Store(store)) => Some(store),
            };
            // What is prepared takes places too, and perhaps nobody waits for it.
            if !self.ask_pending(source, of) && !self.submit_prepared(source, of) {
                return false;
            }
        }
    }

    /// The table is locked: whoever gives a place back finds this.
    fn note_wanted(&self, is_over: bool, asks: Asks) {
        if !is_over && asks == Asks::ToWait {
            self.room_wanted.store(1, Relaxed);
        }
    }

    /// Asks after what a store, or all, have been asked for; whether any of it has ended. Nothing is submitted.
    ///
    /// # Locking
    /// The caller holds no lock and no pin.
    pub(super) fn ask_pending<S: PageSource>(&self, source: &S, store: Option<StoreKey>) -> bool {
        self.tickets(source, store, Io::is_asked).any(|ticket| {
            matches!(self.ask(source, ticket), Some(Submission::Over | Submission::Refused { .. }))
        })
    }

    /// Submits what is prepared, until a store takes no more; whether any of it is over.
    fn submit_prepared<S: PageSource>(&self, source: &S, store: Option<StoreKey>) -> bool {
        for ticket in self.tickets(source, store, Io::is_prepared) {
            match self.submit(source, ticket) {
                Submission::Over => return true,
                Submission::Refused { .. } if store.is_some() => return false,
                Submission::UnderWay | Submission::Refused { .. } => {}
            }
        }
        false
    }

    /// The reads and writes of a store, or of all, that are so now. None is locked while the caller looks at one.
    fn tickets<S: PageSource>(
        &self,
        source: &S,
        store: Option<StoreKey>,
        is_so: impl Fn(&Io<'m>) -> bool,
    ) -> impl Iterator<Item = IoTicket> {
        (0..MAX_IOS as u32).filter_map(move |place| {
            let pin = source.platform().pin();
            let ios = self.ios.lock(&pin);
            let io = ios.at(place).filter(|io| store.is_none_or(|store| io.store_key() == Some(store)))?;
            is_so(io).then(|| io.ticket(place))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{BackingStore, Cluster, StoreError, Submitted};

    struct Store(u8);

    impl BackingStore for Store {
        fn size(&self, _: u64) -> Result<u64, StoreError> {
            Ok(u64::from(self.0))
        }

        fn read(&self, _: u64, _: &Cluster<'_>) -> Result<Submitted, StoreError> {
            Err(StoreError::Io)
        }

        fn write(&self, _: u64, _: &Cluster<'_>, _: u64) -> Result<Submitted, StoreError> {
            Err(StoreError::Io)
        }

        fn set_size(&self, _: u64, _: u64) -> Result<(), StoreError> {
            Err(StoreError::Io)
        }
    }

    #[test]
    fn no_store_takes_all_places_and_none_is_taken_twice() {
        static STORES: [Store; 5] = [Store(1), Store(2), Store(3), Store(4), Store(5)];
        let mut ios = Ios::NONE;
        let fill = |ios: &mut Ios<'_>, store: &'static Store| {
            let key = StoreKey::of(store);
            let mut count = 0;
            loop {
                match ios.take(key) {
                    Ok((_, io)) => io.take_for(store),
                    Err(full) => return (count, full == Full::Store(key)),
                }
                count += 1;
            }
        };
        let taken = STORES.each_ref().map(|store| fill(&mut ios, store));
        assert_eq!(taken, [(48, true), (12, true), (3, true), (1, false), (0, false)]);
        ios.give_back(17);
        assert_eq!(ios.place_for(StoreKey::of(&STORES[0])), Err(Full::Store(StoreKey::of(&STORES[0]))));
        assert_eq!(ios.place_for(StoreKey::of(&STORES[4])), Ok(17));
    }

    #[test]
    fn a_place_that_is_taken_for_nothing_and_one_that_has_something_and_is_free_are_found() {
        static STORE: Store = Store(1);
        let mut ios = Ios::NONE;
        assert_eq!(ios.wrong_place(), None);
        let (place, io) = ios.take(StoreKey::of(&STORE)).unwrap();
        io.take_for(&STORE);
        assert_eq!(ios.wrong_place(), None);
        ios.give_back(place);
        assert_eq!(ios.wrong_place(), Some(0), "it has something");
        ios.places = [Io::FREE; MAX_IOS];
        ios.taken = 1 << 63;
        assert_eq!(ios.wrong_place(), Some(63), "it has nothing");
    }
}
