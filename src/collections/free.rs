//! Who gives out the numbers of a store.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use super::slots::Slot;

/// The numbers of a store that are free.
///
/// # Locking
/// None: the free numbers are a stack that is changed by one compare-and-exchange of its head, whose upper half counts the
/// changes, so that a head that left and came back is not taken for one that stayed.
#[derive(Debug, Default)]
pub(crate) struct FreeStack {
    /// The number on top, plus one, below the count of changes.
    head: AtomicU64,
    /// How many numbers were given out at least once.
    touched: AtomicU32,
}

impl FreeStack {
    /// All numbers are free.
    pub(crate) const fn new() -> Self {
        Self { head: AtomicU64::new(0), touched: AtomicU32::new(0) }
    }

    /// How many numbers are given out, found by counting those that were given back: nobody counts along, for who takes a number is to change one
    /// word only. O(numbers given back), and right if none is taken or given back meanwhile.
    pub(crate) fn used<'p>(&self, link: impl Fn(Slot) -> Option<&'p AtomicU32>) -> u32 {
        let next = |top: u32| Slot::new(top.checked_sub(1)?);
        let touched = self.touched.load(Relaxed);
        let first = next(self.head.load(Acquire) as u32);
        let back = core::iter::successors(first, |&slot| next(link(slot)?.load(Relaxed)));
        touched - back.take(touched as usize).count() as u32
    }

    /// How many numbers of a store of `len` were never given out.
    pub(crate) fn untouched(&self, len: usize) -> usize {
        len.saturating_sub(self.touched.load(Relaxed) as usize)
    }

    /// A free number of a store of `len`; `link` is where a number keeps the next one.
    pub(crate) fn take<'p>(&self, len: usize, link: impl Fn(Slot) -> &'p AtomicU32) -> Option<Slot> {
        self.pop(link).or_else(|| self.touch(len))
    }

    fn pop<'p>(&self, link: impl Fn(Slot) -> &'p AtomicU32) -> Option<Slot> {
        // Acquire pairs with the Release of `give`: who gets the number sees its link.
        let mut head = self.head.load(Acquire);
        loop {
            let slot = Slot::new((head as u32).checked_sub(1)?)?;
            let next = link(slot).load(Relaxed);
            match self.head.compare_exchange_weak(head, changed(head, next), Acquire, Acquire) {
                Ok(_) => return Some(slot),
                Err(now) => head = now,
            }
        }
    }

    fn touch(&self, len: usize) -> Option<Slot> {
        let limit = u32::try_from(len).unwrap_or(u32::MAX).min(Slot::MAX_INDEX >> 1);
        let index = self.touched.fetch_update(Relaxed, Relaxed, |n| (n < limit).then(|| n + 1)).ok()?;
        Slot::new(index)
    }

    /// Takes a number back.
    pub(crate) fn give<'p>(&self, slot: Slot, link: impl Fn(Slot) -> &'p AtomicU32) {
        let mut head = self.head.load(Relaxed);
        loop {
            link(slot).store(head as u32, Relaxed);
            match self.head.compare_exchange_weak(head, changed(head, slot.get() + 1), Release, Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

const fn changed(head: u64, top: u32) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | top as u64
}
