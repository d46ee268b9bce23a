//! Collections without a heap: lists and red-black trees whose links are numbers, and sequence counters.
//!
//! An element lives in a slot of a store that its owner keeps (the frame metadata of a zone, a slab of VMAs) and embeds a
//! [`ListLink`] or a [`TreeLink`] for each collection it can be on. Links are 32-bit slot numbers, never pointers: they
//! are half the size, they can be checked against the store, and the collections are `Sync`. The list and tree code
//! itself is that of intrusive-collections, which reaches the links through its `LinkOps` traits.
//!
//! | type | for |
//! |---|---|
//! | [`Slot`], [`Slots`], [`StableSlots`] | the number of an element, and how it is reached in a store |
//! | [`IndexList`] | free lists, LRU lists, the VMA list |
//! | [`ListHead`] | lists whose heads live in a store themselves: who maps a file |
//! | [`IndexTree`] | VMAs by address |
//! | [`SeqCount`] | readers that look without a lock and try again when a writer was there |
//!
//! # Locking
//! None inside. Changing a collection takes `&mut`; the links of one slot must not be changed by two threads at a time,
//! which holds when all collections that a slot can be on sit behind one lock. Should that rule be broken, lists get
//! confused and `check` says so, but memory stays safe; for trees the claim of a slot is atomic.
#![expect(
    unsafe_code,
    reason = "implements the unsafe link traits of intrusive-collections, wrapped safely here"
)]

mod free;
mod list;
mod seq;
mod slots;
mod tree;
pub(crate) mod words;

pub(crate) use free::FreeStack;
pub use list::{HasListLink, IndexList, ListFault, ListHead, ListId, ListIter, ListLink};
pub use seq::{SeqCount, SeqSnapshot, SeqWord, SeqWrite};
pub use slots::{LinkError, Slot, Slots, StableSlots};
pub use tree::{
    HasTreeLink, IndexTree, Lies, Search, TreeEntry, TreeFault, TreeIter, TreeLink, TreeMark, TreeOrder,
    XaMark, search_from,
};
