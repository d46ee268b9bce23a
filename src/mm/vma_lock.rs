//! The lock of one VMA: a fault that holds it needs no lock of the address space. [`LockedVma`](super::LockedVma) tells how it works.
//!
//! # Linux
//! `vma_start_read` and `vma_start_write` in `include/linux/mm.h` (6.4), `vm_lock_seq` and `mm_lock_seq`.

use crate::collections::SeqWord;
use crate::sync::words::{
    self, Ordering, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, Word64,
};

/// How often a writer looks by itself whether the faults have left.
const TRIES: u32 = if cfg!(any(loom, shuttle)) { 1 } else { 64 };

/// Beside the count of faults: somebody waits for them to leave.
const WRITER: u64 = 1 << 31;
/// The count of faults, with that.
const FAULTS: u64 = u32::MAX as u64;
/// Where the section begins.
const SECTION: u32 = 32;

/// How a call waits until the faults have left a VMA that it is about to change.
///
/// # Linux
/// `rcuwait_wait_event` in `__vma_enter_locked`, `mm/mmap_lock.c` (6.16).
#[doc(alias = "rcuwait_wait_event")]
pub trait WaitForFaults: Sync {
    /// Waits until `done` answers yes.
    ///
    /// # Locking
    /// The caller holds the address space's lock for writing and no other. A fault in a VMA needs none of those that it holds; it waits for no
    /// store, but may reclaim, and may want what this CPU keeps of free frames.
    fn wait_until(&self, done: &dyn Fn() -> bool);

    /// The last fault has left a VMA for which somebody waits.
    ///
    /// # Linux
    /// `rcuwait_wake_up` in `vma_refcount_put`, `include/linux/mmap_lock.h` (6.16).
    fn wake_waiters(&self) {}
}

/// What waits, or the CPU itself.
#[derive(Clone, Copy, Default)]
pub(super) struct Waiter<'c>(Option<&'c dyn WaitForFaults>);

impl<'c> Waiter<'c> {
    /// The CPU asks all the time.
    pub(super) const SPINS: Self = Self(None);

    pub(super) const fn new(waits: &'c dyn WaitForFaults) -> Self {
        Self(Some(waits))
    }

    pub(super) fn wait_until(self, done: &dyn Fn() -> bool) {
        // Most faults are out again before anybody could be told.
        if (0..TRIES).any(|_| {
            done() || {
                words::relax();
                false
            }
        }) {
            return;
        }
        match self.0 {
            Some(waits) => waits.wait_until(done),
            None => {
                while !done() {
                    words::relax()
                }
            }
        }
    }
}

impl Waiter<'_> {
    fn wake(self) {
        if let Some(waits) = self.0 {
            waits.wake_waiters();
        }
    }
}

impl core::fmt::Debug for Waiter<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(if self.0.is_some() { "Waiter" } else { "Spins" })
    }
}

/// Counts the sections of an address space; never zero.
///
/// The count wraps. A VMA that was locked last in the section which the count comes back to would be taken for locked by a writer, who would
/// not wait for the faults in it: so whoever ends the last section before the wrap has all VMAs forget theirs.
#[derive(Debug, Default)]
#[doc(alias = "mm_lock_seq")]
pub(super) struct Sections<W>(W);

/// Whether the count came back to its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "VMAs must forget their sections when the count wraps"]
pub(super) enum Sectioned {
    /// No section had this number before.
    Fresh,
    /// Numbers are given out again.
    Wrapped,
}

/// The section that no address space is ever in.
fn none<W: SeqWord>() -> W::Value {
    W::Value::default()
}

fn after<W: SeqWord>(section: W::Value) -> W::Value {
    let next = W::step(section);
    if next == none::<W>() { W::step(next) } else { next }
}

impl<W: SeqWord> Sections<W> {
    /// The first section begins; `word` is 1.
    pub(super) const fn new(word: W) -> Self {
        Self(word)
    }

    /// The section that the address space is in, or that will be the next.
    #[inline]
    fn now(&self) -> W::Value {
        // Acquire pairs with the Release of `end`: who sees a section over sees what was changed in it.
        self.0.load(Acquire)
    }

    /// Lets a test begin where the count is about to wrap.
    #[cfg(all(test, not(any(loom, shuttle))))]
    pub(super) fn set(&self, section: W::Value) {
        self.0.store(section, Release);
    }

    /// Whether ending the section brings the count back to its start; all VMAs must have forgotten theirs before that.
    pub(super) fn next(&self) -> Sectioned {
        match W::step(self.0.load(Relaxed)) == none::<W>() {
            true => Sectioned::Wrapped,
            false => Sectioned::Fresh,
        }
    }

    /// Ends the section: what was locked is open again.
    #[doc(alias = "vma_end_write_all")]
    pub(super) fn end(&self) {
        self.0.store(after::<W>(self.0.load(Relaxed)), Release);
    }
}

/// An atomic for the lock of a VMA: one made in a constant, or, in a model of the lock, a model checker's.
pub(super) trait LockWord {
    fn load(&self, order: Ordering) -> u64;
    fn fetch_add(&self, value: u64, order: Ordering) -> u64;
    fn fetch_sub(&self, value: u64, order: Ordering) -> u64;
    fn fetch_or(&self, value: u64, order: Ordering) -> u64;
    fn fetch_and(&self, value: u64, order: Ordering) -> u64;
    fn replaces(&self, old: u64, new: u64, order: Ordering) -> bool;
}

macro_rules! lock_word {
    ($word:ty: $($name:ident($($value:ident)?))*) => {
        impl LockWord for $word {
            $(
                #[inline]
                fn $name(&self, $($value: u64,)? order: Ordering) -> u64 {
                    <$word>::$name(self, $($value,)? order)
                }
            )*

            #[inline]
            fn replaces(&self, old: u64, new: u64, order: Ordering) -> bool {
                self.compare_exchange(old, new, order, Relaxed).is_ok()
            }
        }
    };
}

lock_word!(Word64: load() fetch_add(value) fetch_sub(value) fetch_or(value) fetch_and(value));
#[cfg(loom)]
lock_word!(loom::sync::atomic::AtomicU64: load() fetch_add(value) fetch_sub(value) fetch_or(value) fetch_and(value));

/// The lock of one VMA: how many faults are in it, and in the upper half the section in which it was locked last. Being one word, it is locked by one
/// step if nobody is in it.
#[derive(Debug, Default)]
#[doc(alias = "vma_lock")]
pub(super) struct VmaLock<L = Word64>(L);

#[inline]
const fn section_of(word: u64) -> u32 {
    (word >> SECTION) as u32
}

impl<L: LockWord> VmaLock<L> {
    /// An open lock; `word` is 0.
    pub(super) const fn new(word: L) -> Self {
        Self(word)
    }

    /// Lets a fault in, unless the VMA is locked or about to be.
    ///
    /// What the VMA is, and whether it is one at all, may be asked only then.
    #[doc(alias = "vma_start_read")]
    #[inline]
    pub(super) fn try_enter<W: SeqWord>(&self, sections: &Sections<W>, waiter: Waiter<'_>) -> bool
    where
        W::Value: Into<u32>,
    {
        if self.is_locked(sections) {
            return false;
        }
        // Acquire pairs with the Release of `lock`: who comes after a writer sees the section that it has left.
        let before = self.0.fetch_add(1, Acquire);
        let enters = before & WRITER == 0 && section_of(before) != sections.now().into();
        if !enters {
            self.leave(waiter);
        }
        enters
    }

    #[inline]
    fn is_locked<W: SeqWord>(&self, sections: &Sections<W>) -> bool
    where
        W::Value: Into<u32>,
    {
        section_of(self.0.load(Relaxed)) == sections.now().into()
    }

    /// A fault leaves, and tells the writer that waits for the last one.
    #[doc(alias = "vma_end_read")]
    #[inline]
    pub(super) fn leave(&self, waiter: Waiter<'_>) {
        // Release pairs with the Acquire of `lock`: what the fault did is done before the VMA changes.
        if self.0.fetch_sub(1, Release) & FAULTS == WRITER + 1 {
            waiter.wake();
        }
    }

    /// Waits for the faults that are in the VMA, and keeps others out until the section is over. Nothing is to do if that was done in
    /// this section.
    ///
    /// # Locking
    /// The address space's lock, held for writing, and none that a fault may take.
    #[doc(alias = "vma_start_write")]
    #[inline]
    pub(super) fn lock<W: SeqWord>(&self, sections: &Sections<W>, waiter: Waiter<'_>)
    where
        W::Value: Into<u32>,
    {
        let (now, word) = (sections.now().into(), self.0.load(Relaxed));
        if section_of(word) != now {
            self.lock_in(now, word, waiter);
        }
    }

    /// The same for a slot that begins another life: whatever section it was locked in last was not one of this life.
    #[inline]
    pub(super) fn lock_anew<W: SeqWord>(&self, sections: &Sections<W>, waiter: Waiter<'_>)
    where
        W::Value: Into<u32>,
    {
        self.lock_in(sections.now().into(), self.0.load(Relaxed), waiter);
    }

    #[inline]
    fn lock_in(&self, section: u32, word: u64, waiter: Waiter<'_>) {
        let locked = u64::from(section) << SECTION;
        // Acquire pairs with the Release of `leave`, Release with the Acquire of `try_enter`.
        if word & FAULTS != 0 || !self.0.replaces(word, locked, AcqRel) {
            self.lock_when_left(section, waiter);
        }
    }

    #[cold]
    fn lock_when_left(&self, section: u32, waiter: Waiter<'_>) {
        // From here on nobody gets in; one who tries is counted for a moment all the same.
        let word = self.0.fetch_or(WRITER, Relaxed);
        waiter.wait_until(&|| self.0.load(Acquire) & FAULTS == WRITER);
        // Nobody else changes these two, so one sum sets the section, lets go of the mark, and keeps the count.
        let from = (word & !FAULTS) | WRITER;
        self.0.fetch_add((u64::from(section) << SECTION).wrapping_sub(from), Release);
    }

    /// Forgets the section: another count of sections begins.
    pub(super) fn forget(&self) {
        self.0.fetch_and(FAULTS, Release);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use core::sync::atomic::{AtomicU8, AtomicU32};
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    type Narrow = (Sections<AtomicU8>, VmaLock);

    fn narrow() -> Narrow {
        (Sections::new(AtomicU8::new(1)), VmaLock::new(Word64::new(0)))
    }

    /// What an address space does at the end of a section.
    fn end((sections, lock): &Narrow) {
        if sections.next() == Sectioned::Wrapped {
            lock.forget();
        }
        sections.end();
    }

    #[test]
    fn a_vma_that_was_locked_lets_faults_in_when_the_section_is_over() {
        let both = narrow();
        let (sections, lock) = &both;
        assert!(lock.try_enter(sections, Waiter::SPINS) && lock.try_enter(sections, Waiter::SPINS));
        lock.leave(Waiter::SPINS);
        lock.leave(Waiter::SPINS);
        lock.lock(sections, Waiter::SPINS);
        assert!(!lock.try_enter(sections, Waiter::SPINS));
        lock.lock(sections, Waiter::SPINS);
        end(&both);
        assert!(lock.try_enter(sections, Waiter::SPINS));
    }

    #[test]
    fn a_writer_waits_for_the_faults_that_are_in() {
        let (sections, lock) = narrow();
        let locked = AtomicBool::new(false);
        assert!(lock.try_enter(&sections, Waiter::SPINS) && lock.try_enter(&sections, Waiter::SPINS));
        thread::scope(|scope| {
            scope.spawn(|| {
                lock.lock(&sections, Waiter::SPINS);
                locked.store(true, Relaxed);
            });
            // It says that it waits, and so lets nobody in.
            while lock.0.load(Relaxed) & WRITER == 0 {
                thread::yield_now();
            }
            assert!(!lock.try_enter(&sections, Waiter::SPINS));
            lock.leave(Waiter::SPINS);
            assert!(!locked.load(Relaxed));
            lock.leave(Waiter::SPINS);
        });
        assert!(locked.load(Relaxed) && !lock.try_enter(&sections, Waiter::SPINS));
    }

    #[test]
    fn a_writer_waits_as_the_platform_does() {
        struct Leaves<'l>(&'l VmaLock);
        impl WaitForFaults for Leaves<'_> {
            fn wait_until(&self, done: &dyn Fn() -> bool) {
                assert!(!done());
                self.0.leave(Waiter::SPINS);
                assert!(done());
            }
        }
        let (sections, lock) = narrow();
        assert!(lock.try_enter(&sections, Waiter::SPINS));
        lock.lock(&sections, Waiter::new(&Leaves(&lock)));
        assert!(!lock.try_enter(&sections, Waiter::SPINS));
    }

    #[test]
    fn the_last_fault_tells_a_writer_that_waits_and_no_other_does() {
        #[derive(Default)]
        struct Told(AtomicU32);
        impl WaitForFaults for Told {
            fn wait_until(&self, _: &dyn Fn() -> bool) {}

            fn wake_waiters(&self) {
                self.0.fetch_add(1, Relaxed);
            }
        }
        let (told, (sections, lock)) = (Told::default(), narrow());
        let (waiter, times) = (Waiter::new(&told), || told.0.load(Relaxed));
        assert!(lock.try_enter(&sections, waiter) && lock.try_enter(&sections, waiter));
        lock.leave(waiter);
        assert_eq!(times(), 0);
        lock.0.fetch_or(WRITER, Relaxed);
        // One that is turned away counts for a moment, and the writer may have looked in it; but another is still in.
        assert!(!lock.try_enter(&sections, waiter));
        assert_eq!(times(), 0);
        lock.leave(waiter);
        assert_eq!(times(), 1);
        assert!(!lock.try_enter(&sections, waiter));
        assert_eq!(times(), 2);
    }

    #[test]
    fn eight_bits_of_sections_wrap_and_no_old_section_is_taken_for_the_present_one() {
        let both = narrow();
        let (sections, lock) = &both;
        lock.lock(sections, Waiter::SPINS);
        for _ in 0..1_000 {
            end(&both);
            assert!(sections.now() != 0 && lock.try_enter(sections, Waiter::SPINS));
            lock.leave(Waiter::SPINS);
        }
        // One that is not told of the wrap would not be waited for: 255 sections later it counts as locked.
        lock.lock(sections, Waiter::SPINS);
        (0..255).for_each(|_| sections.end());
        assert!(lock.is_locked(sections));
    }
}
