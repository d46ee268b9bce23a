//! The VMAs that were found last.
//!
//! Programs touch the same few VMAs again and again, a thread its own, and what is new is touched soon. One word names the VMA that came or
//! was searched for last; 15 more, the one found last for each class of addresses, where 2 MiB belong together: one cache line in all. On recorded
//! faults that finds 98.6 % of VMAs (one word finds 93.0 %, Linux's four 96.0 %), so the tree is gone down seldom.
//!
//! A name is a guess: it counts only if the VMA holds the address. No change of VMAs makes all names worthless, therefore; one that goes is
//! taken out, and one that shrinks out of its classes, which `check()` relies on.
//!
//! # Linux
//! `mmap_cache` in `struct mm_struct` (2.6), `mm/vmacache.c` (3.15 to 6.0): those of a thread, all of which every change forgot.

use crate::addr::{VirtAddr, VirtRange};
use crate::collections::Slot;
use crate::sync::words::{Ordering::Relaxed, Word32};

const CLASSES: usize = 15;
/// Addresses that belong together: 2 MiB.
const TOGETHER: u32 = 21;

/// The VMAs that were found last, by their slots' codes.
#[derive(Debug, Default)]
#[repr(align(64))]
#[doc(alias = "mmap_cache")]
#[doc(alias = "vmacache")]
pub(super) struct Recent {
    last: Word32,
    classes: [Word32; CLASSES],
}

#[inline]
const fn class(addr: VirtAddr) -> usize {
    let hash = ((addr.get() >> TOGETHER) as u32).wrapping_mul(0x9e37_79b1);
    ((hash as u64 * CLASSES as u64) >> 32) as usize
}

/// The classes of the addresses of a range; `None` if it is so long that they may be all.
#[inline]
fn classes(range: VirtRange) -> Option<impl Iterator<Item = usize>> {
    let (first, end) = (range.start().get() >> TOGETHER, range.end().get().div_ceil(1 << TOGETHER));
    let few = end - first < CLASSES as u64;
    few.then(|| (first..end).map(|chunk| class(VirtAddr::from(chunk << TOGETHER))))
}

#[inline]
fn forget(word: &Word32, slot: Slot) {
    if word.load(Relaxed) == slot.code() {
        word.store(0, Relaxed);
    }
}

impl Recent {
    pub(super) const fn new() -> Self {
        Self { last: Word32::new(0), classes: [const { Word32::new(0) }; CLASSES] }
    }

    /// Tries the VMAs that may hold `addr`; answers what `hit` makes of the first that does.
    #[inline]
    pub(super) fn probe<R>(&self, addr: VirtAddr, mut hit: impl FnMut(Slot) -> Option<R>) -> Option<R> {
        let place = &self.classes[class(addr)];
        let code = place.load(Relaxed);
        if let Some(found) = Slot::from_code(code).and_then(&mut hit) {
            return Some(found);
        }
        let last = self.last.load(Relaxed);
        if last == code {
            return None;
        }
        let found = Slot::from_code(last).and_then(hit)?;
        place.store(last, Relaxed);
        Some(found)
    }

    /// Notes the VMA that was found for an address in it.
    #[inline]
    pub(super) fn note(&self, addr: VirtAddr, slot: Slot) {
        self.classes[class(addr)].store(slot.code(), Relaxed);
        self.last.store(slot.code(), Relaxed);
    }

    /// Notes a VMA near which the next look-up is likely: one that is new, or right above or below what was asked for.
    #[inline]
    pub(super) fn note_last(&self, slot: Slot) {
        self.last.store(slot.code(), Relaxed);
    }

    /// The VMA that was noted last.
    #[inline]
    pub(super) fn last(&self) -> Option<Slot> {
        Slot::from_code(self.last.load(Relaxed))
    }

    /// Forgets a VMA that lies in `range` and goes.
    ///
    /// # Locking
    /// The VMA is locked, so that no fault notes it again.
    #[inline]
    pub(super) fn forget(&self, slot: Slot, range: VirtRange) {
        forget(&self.last, slot);
        self.forget_classes(slot, range);
    }

    /// Forgets for which addresses of `range` a VMA was found that will not hold all of it any more.
    ///
    /// # Locking
    /// As [`forget`](Self::forget).
    #[inline]
    pub(super) fn forget_classes(&self, slot: Slot, range: VirtRange) {
        match classes(range) {
            Some(classes) => classes.for_each(|class| forget(&self.classes[class], slot)),
            None => self.classes.iter().for_each(|word| forget(word, slot)),
        }
    }

    /// Whether a VMA that lies in `range` is named in no class but those of its addresses.
    pub(super) fn names_rightly(&self, slot: Slot, range: VirtRange) -> bool {
        let named = |&class: &usize| self.classes[class].load(Relaxed) == slot.code();
        match classes(range) {
            Some(own) => {
                let own: u32 = own.fold(0, |own, class| own | 1 << class);
                (0..CLASSES).filter(named).all(|class| own & 1 << class != 0)
            }
            None => true,
        }
    }

    pub(super) fn clear(&self) {
        self.words().for_each(|word| word.store(0, Relaxed));
    }

    /// The VMAs that are named.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.words().filter_map(|word| Slot::from_code(word.load(Relaxed)))
    }

    fn words(&self) -> impl Iterator<Item = &Word32> {
        core::iter::once(&self.last).chain(&self.classes)
    }
}
