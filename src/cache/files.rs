//! Which files there are: an index by store and number, and the places that are free.

use core::cmp::Ordering;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use crate::collections::{IndexTree, LinkError, Slot, TreeFault, TreeLink, TreeOrder};
use crate::platform::BackingStore;
use crate::sync::words::Word64;

use super::mapping::Mapping;

/// What names a file of a store: the store, and the file's number there.
pub(super) type Key = (StoreKey, u64);

/// The name of a file of a store.
pub(super) fn key_of(store: &dyn BackingStore, inode: u64) -> Key {
    (StoreKey::of(store), inode)
}

/// Tells stores apart: where one lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StoreKey(usize);

impl StoreKey {
    pub(super) const NONE: Self = Self(0);

    pub(super) fn of(store: &dyn BackingStore) -> Self {
        Self(core::ptr::from_ref(store).cast::<()>().addr())
    }
}

/// What the list of files keeps in each place.
///
/// # Locking
/// All of it belongs to the lock of that list.
#[derive(Debug, Default)]
pub(super) struct Named {
    store: AtomicUsize,
    inode: Word64,
    /// Of a place that was given up: the one given up before it.
    next_free: AtomicU32,
}

impl Named {
    pub(super) fn key(&self) -> Key {
        (StoreKey(self.store.load(Relaxed)), self.inode.load(Relaxed))
    }

    fn set(&self, (store, inode): Key) {
        self.store.store(store.0, Relaxed);
        self.inode.store(inode, Relaxed);
    }
}

/// The order of files by their names.
#[derive(Debug)]
pub enum ByName {}

impl TreeOrder<Mapping<'_>> for ByName {
    type Key = Key;

    fn key(item: &Mapping<'_>) -> Key {
        item.named.key()
    }
}

crate::tree_link!(Mapping<'_>, ByName => links);

/// The links of a place in the index.
pub(super) type Links = TreeLink;

/// All files of stores by name, and the places that are free: nothing here goes through all of them.
///
/// # Linux
/// `inode_hashtable` in `fs/inode.c`.
#[doc(alias = "inode_hashtable")]
pub(super) struct Files<'m> {
    /// Never dropped: links that are forgotten hurt nobody, and so a cache may lie beside what it is made of.
    named: ManuallyDrop<IndexTree<&'m [Mapping<'m>], ByName>>,
    /// The place that was given up last.
    free: Option<Slot>,
    /// Places from here on were never used.
    fresh: usize,
}

impl<'m> Files<'m> {
    pub(super) const fn new(mappings: &'m [Mapping<'m>]) -> Self {
        Self { named: ManuallyDrop::new(IndexTree::new(mappings)), free: None, fresh: 0 }
    }

    /// The place of a file of a store.
    pub(super) fn find(&self, key: Key) -> Option<Slot> {
        self.find_by(|mapping| mapping.named.key().cmp(&key))
    }

    fn find_by(&self, compare: impl FnMut(&Mapping<'m>) -> Ordering) -> Option<Slot> {
        self.named.search(compare).found()
    }

    /// A place that is free.
    pub(super) fn take_place(&mut self) -> Option<Slot> {
        let mappings: &[Mapping<'_>] = self.named.slots();
        if let Some(slot) = self.free {
            self.free = Slot::from_code(mappings.get(slot.index())?.named.next_free.load(Relaxed));
            return Some(slot);
        }
        let slot = Slot::from_index(self.fresh).filter(|slot| slot.index() < mappings.len())?;
        self.fresh += 1;
        Some(slot)
    }

    /// Gives a file of a store, which has a place, its name.
    pub(super) fn name(&mut self, slot: Slot, key: Key) -> Result<(), LinkError> {
        let mappings: &[Mapping<'_>] = self.named.slots();
        mappings.get(slot.index()).ok_or(LinkError::OutOfRange)?.named.set(key);
        self.named.insert(slot)
    }

    /// Takes the name away from a file, if it has one, and gives its place up.
    pub(super) fn give_up(&mut self, slot: Slot) {
        let mappings: &[Mapping<'_>] = self.named.slots();
        let Some(mapping) = mappings.get(slot.index()) else { return };
        if mapping.links.is_linked() {
            let removed = self.named.remove(slot);
            debug_assert!(removed.is_ok(), "a file was not where it was named: {removed:?}");
        }
        mapping.named.next_free.store(Slot::code_of(self.free), Relaxed);
        self.free = Some(slot);
    }

    /// How many places have been used.
    pub(super) fn places(&self) -> u32 {
        // There are fewer than 2^20.
        self.fresh as u32
    }

    /// How many files have names.
    pub(super) fn len(&self) -> usize {
        self.named.len()
    }

    pub(super) fn check(&self) -> Result<(), TreeFault> {
        self.named.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_file_is_found_and_a_place_taken_without_going_through_all() {
        const FILES: usize = 4096;
        let mappings: Vec<Mapping<'_>> = (0..FILES).map(|_| Mapping::new()).collect();
        let mut files = Files::new(&mappings);
        let key = |number: usize| (StoreKey(0x1000 + number % 3 * 16), (number * 7919 % FILES) as u64);
        let slots: Vec<Slot> = (0..FILES).map(|_| files.take_place().unwrap()).collect();
        assert_eq!(files.take_place(), None);
        slots.iter().enumerate().for_each(|(number, &slot)| files.name(slot, key(number)).unwrap());
        files.check().unwrap();
        let mut most = 0;
        for (number, &slot) in slots.iter().enumerate() {
            let mut visits = 0;
            let found = files.find_by(|mapping| {
                visits += 1;
                mapping.named.key().cmp(&key(number))
            });
            assert_eq!((found, files.find(key(number))), (Some(slot), Some(slot)));
            most = most.max(visits);
        }
        // A red-black tree of 2^12 is at most twice as deep as it need be.
        assert!(most <= 24, "{most} of {FILES} files were looked at");
        assert_eq!(files.find((StoreKey(0x1000), u64::MAX)), None);
        files.give_up(slots[17]);
        files.give_up(slots[4000]);
        assert_eq!(
            (files.find(key(17)), files.find(key(18)), files.len()),
            (None, Some(slots[18]), FILES - 2)
        );
        assert_eq!([files.take_place(), files.take_place()], [Some(slots[4000]), Some(slots[17])]);
        assert_eq!(files.take_place(), None);
        files.check().unwrap();
    }
}
