//! What a store of VMAs must offer to take part.

use std::ops::Range;

/// A store of disjoint address ranges.
pub trait Vmas: Sized {
    const NAME: &'static str;

    /// The most VMAs at which removals and insertions are worth waiting for.
    const REPLACE_AT_MOST: usize = usize::MAX;

    /// Whether it can be asked for VMAs; else only for room.
    const HAS_VMAS: bool = true;

    /// Whether it can be asked for room without taking it.
    const HAS_ROOM: bool = true;

    /// Whether room is given at the lowest address.
    const ROOM_FROM_BELOW: bool;

    /// A store of `vmas`, which are disjoint and put in as they come, for an address space that room is looked for in. It will never have
    /// to hold more than `most`.
    fn new(vmas: &[Range<u64>], space: Range<u64>, most: usize) -> Self;

    /// The start of the VMA that holds `addr`.
    fn find(&mut self, addr: u64) -> Option<u64>;

    /// Takes out a VMA that is in the store.
    fn remove(&mut self, vma: Range<u64>);

    /// Puts in a VMA that overlaps none.
    fn insert(&mut self, vma: Range<u64>);

    /// An address where `bytes` are free inside `space`: the highest, or the lowest if that is what the store looks for.
    fn room(&mut self, bytes: u64, space: Range<u64>) -> Option<u64> {
        let _ = (bytes, space);
        None
    }

    /// Puts in a VMA of `bytes` where there is room; where that was.
    fn insert_anywhere(&mut self, bytes: u64, space: Range<u64>) -> Option<u64> {
        let at = self.room(bytes, space)?;
        self.insert(at..at + bytes);
        Some(at)
    }
}
