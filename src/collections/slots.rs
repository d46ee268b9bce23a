//! Slot numbers, stores, and the two pointer traits of intrusive-collections for links that are numbers.

use core::num::NonZeroU32;

use intrusive_collections::PointerOps;

use crate::error::Errno;

/// The number of an element in a store; an `Option` of it takes four bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Slot(NonZeroU32);

impl Slot {
    /// The greatest index. Links keep the index plus one, and the code above means a state of a link.
    pub const MAX_INDEX: u32 = u32::MAX - 2;

    /// Makes a slot of an index that counts from 0; `None` above [`Self::MAX_INDEX`].
    #[inline]
    pub const fn new(index: u32) -> Option<Self> {
        if index > Self::MAX_INDEX { None } else { Self::from_code(index + 1) }
    }

    /// Makes a slot of an index into a slice; `None` above [`Self::MAX_INDEX`].
    #[inline]
    pub const fn from_index(index: usize) -> Option<Self> {
        if index > Self::MAX_INDEX as usize { None } else { Self::new(index as u32) }
    }

    /// The index, from 0.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0.get() - 1
    }

    /// The index, from 0, for slices.
    #[inline]
    pub const fn index(self) -> usize {
        // Widened first: then the one goes into the address that the index becomes a part of.
        self.code() as usize - 1
    }

    /// What a link or another 32-bit word keeps for this slot: the index plus one.
    #[inline]
    pub const fn code(self) -> u32 {
        self.0.get()
    }

    pub(super) const fn non_zero(self) -> NonZeroU32 {
        self.0
    }

    /// The slot that such a word means; `None` for 0.
    #[inline]
    pub const fn from_code(code: u32) -> Option<Self> {
        match NonZeroU32::new(code) {
            Some(code) => Some(Self(code)),
            None => None,
        }
    }

    /// What such a word keeps for `slot`, 0 for none.
    #[inline]
    pub const fn code_of(slot: Option<Self>) -> u32 {
        match slot {
            Some(slot) => slot.code(),
            None => 0,
        }
    }
}

impl core::fmt::Debug for Slot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Slot({})", self.get())
    }
}

/// A store of elements that are reached by number. A list head carries a copy of it, so it should be small: a reference.
pub trait Slots: Copy {
    /// The element that embeds the links.
    type Item;

    /// The element with this number; `None` outside the store.
    fn get(&self, slot: Slot) -> Option<&Self::Item>;
}

/// A store whose answers never change. Trees ask for it, since they follow links without looking back.
///
/// # Safety
/// Once [`Slots::get`] has answered with an element, this value and all its copies answer with the same element, at the same
/// address, for as long as any of them lives; two slots never share an element; the element is not moved or
/// overwritten in that time. `get` does not panic.
pub unsafe trait StableSlots: Slots {}

impl<T> Slots for &[T] {
    type Item = T;

    #[inline]
    fn get(&self, slot: Slot) -> Option<&T> {
        <[T]>::get(self, slot.index())
    }
}

// SAFETY: a shared slice borrows its elements for its whole life, so they stay where they are; the range check is get's.
unsafe impl<T> StableSlots for &[T] {}

impl<S: Slots> Slots for &S {
    type Item = S::Item;

    #[inline]
    fn get(&self, slot: Slot) -> Option<&S::Item> {
        S::get(self, slot)
    }
}

// SAFETY: answers what the store behind the reference answers, which promised it.
unsafe impl<S: StableSlots> StableSlots for &S {}

/// Why a collection refused a slot. The collection and the slot are as they were.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum LinkError {
    /// The store has no such slot, or the collection cannot number it.
    OutOfRange,
    /// The slot is on a collection of this kind already.
    AlreadyLinked,
    /// The slot is not on this collection.
    NotMember,
    /// The tree has an element with this key.
    KeyExists,
    /// The key does not lie between those of the neighbours it was to be put between.
    OutOfOrder,
    /// The other list is over another store.
    ForeignStore,
}

impl LinkError {
    /// The Linux error number of this cause.
    pub const fn errno(self) -> Errno {
        match self {
            Self::OutOfRange | Self::OutOfOrder | Self::ForeignStore => Errno::EINVAL,
            Self::AlreadyLinked => Errno::EBUSY,
            Self::NotMember => Errno::ENOENT,
            Self::KeyExists => Errno::EEXIST,
        }
    }
}

impl core::fmt::Display for LinkError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::OutOfRange => "no such slot",
            Self::AlreadyLinked => "the slot is linked already",
            Self::NotMember => "the slot is not on this collection",
            Self::KeyExists => "an element has this key",
            Self::OutOfOrder => "the key is out of order",
            Self::ForeignStore => "the lists are over different stores",
        })
    }
}

impl core::error::Error for LinkError {}

/// What intrusive-collections takes for the element. It has no bytes, so a reference to it may carry any address that is
/// not null: the slot's code. No collection ever holds a pointer into a store.
pub(super) struct Place;

impl Place {
    #[inline]
    pub(super) const fn of(slot: Slot) -> *const Self {
        core::ptr::without_provenance(slot.code() as usize)
    }

    #[inline]
    pub(super) fn slot(place: *const Self) -> Slot {
        match Slot::from_code(place.addr() as u32) {
            Some(slot) => slot,
            None => unreachable!("places are made of slots"),
        }
    }
}

/// Turns slots into places and back.
#[derive(Clone, Copy)]
pub(super) struct ByNumber;

// SAFETY: `from_raw` undoes `into_raw`; neither panics on a value that the other made.
unsafe impl PointerOps for ByNumber {
    type Value = Place;
    type Pointer = Slot;

    #[inline]
    unsafe fn from_raw(&self, value: *const Place) -> Slot {
        Place::slot(value)
    }

    #[inline]
    fn into_raw(&self, slot: Slot) -> *const Place {
        Place::of(slot)
    }
}
