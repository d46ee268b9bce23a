//! The lock of one VMA: a fault that holds it needs no lock of the address space. [`LockedVma`](super::LockedVma) tells how it works.
//!
//! # Linux
//! `vma_start_read` and `vma_start_write` in `include/linux/mm.h` (6.4), `vm_lock_seq` and `mm_lock_seq`.

use crate::collections::SeqWord;
use crate::sync::words::{self, Ordering, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, Word32};

/// How often a writer looks by itself whether the faults have left.
const TRIES: u32 = if cfg!(any(loom, shuttle)) { 1 } else { 64 };

/// In the count of faults: somebody waits for them to leave.
const WRITER: u32 = 1 << 31;

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

/// An atomic that faults are counted in: one made in a constant, or, in a model of the lock, a model checker's.
pub(super) trait FaultWord {
    fn load(&self, order: Ordering) -> u32;
    fn fetch_add(&self, value: u32, order: Ordering) -> u32;
    fn fetch_sub(&self, value: u32, order: Ordering) -> u32;
    fn fetch_or(&self, value: u32, order: Ordering) -> u32;
    fn fetch_and(&self, value: u32, order: Ordering) -> u32;
}

macro_rules! fault_word {
    ($word:ty: $($name:ident($($value:ident)?))*) => {
        impl FaultWord for $word {
            $(
                #[inline]
                fn $name(&self, $($value: u32,)? order: Ordering) -> u32 {
                    <$word>::$name(self, $($value,)? order)
                }
            )*
        }
    };
}

fault_word!(Word32: load() fetch_add(value) fetch_sub(value) fetch_or(value) fetch_and(value));
#[cfg(loom)]
fault_word!(loom::sync::atomic::AtomicU32: load() fetch_add(value) fetch_sub(value) fetch_or(value) fetch_and(value));

/// The lock of one VMA.
#[derive(Debug, Default)]
#[doc(alias = "vma_lock")]
pub(super) struct VmaLock<W, F = Word32> {
    /// How many faults are in it.
    faults: F,
    /// The section in which it was locked last.
    section: W,
}

impl<W: SeqWord, F: FaultWord> VmaLock<W, F> {
    /// An open lock; both words are 0.
    pub(super) const fn new(faults: F, section: W) -> Self {
        Self { faults, section }
    }

    /// Lets a fault in, unless the VMA is locked or about to be.
    ///
    /// What the VMA is, and whether it is one at all, may be asked only then.
    #[doc(alias = "vma_start_read")]
    pub(super) fn try_enter(&self, sections: &Sections<W>, waiter: Waiter<'_>) -> bool {
        if self.is_locked(sections) {
            return false;
        }
        // Acquire pairs with the Release of `lock`: who comes after a writer sees the section that it has left.
        let before = self.faults.fetch_add(1, Acquire);
        let enters = before & WRITER == 0 && !self.is_locked(sections);
        if !enters {
            self.leave(waiter);
        }
        enters
    }

    fn is_locked(&self, sections: &Sections<W>) -> bool {
        self.section.load(Acquire) == sections.now()
    }

    /// A fault leaves, and tells the writer that waits for the last one.
    #[doc(alias = "vma_end_read")]
    pub(super) fn leave(&self, waiter: Waiter<'_>) {
        // Release pairs with the Acquire of `lock`: what the fault did is done before the VMA changes.
        if self.faults.fetch_sub(1, Release) == WRITER + 1 {
            waiter.wake();
        }
    }

    /// Waits for the faults that are in the VMA, and keeps others out until the section is over. Nothing is to do if that was done in
    /// this section.
    ///
    /// # Locking
    /// The address space's lock, held for writing, and none that a fault may take.
    #[doc(alias = "vma_start_write")]
    pub(super) fn lock(&self, sections: &Sections<W>, waiter: Waiter<'_>) {
        let now = sections.now();
        if self.section.load(Relaxed) == now {
            return;
        }
        self.faults.fetch_or(WRITER, Acquire);
        waiter.wait_until(&|| self.faults.load(Acquire) == WRITER);
        self.section.store(now, Release);
        self.faults.fetch_and(!WRITER, Release);
    }

    /// Forgets the section: another life of the slot, or another count of sections begins.
    pub(super) fn forget(&self) {
        self.section.store(none::<W>(), Release);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use core::sync::atomic::AtomicU8;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    type Narrow = (Sections<AtomicU8>, VmaLock<AtomicU8>);

    fn narrow() -> Narrow {
        (Sections::new(AtomicU8::new(1)), VmaLock::new(Word32::new(0), AtomicU8::new(0)))
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
            while lock.faults.load(Relaxed) & WRITER == 0 {
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
        struct Leaves<'l>(&'l VmaLock<AtomicU8>);
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
        struct Told(Word32);
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
        lock.faults.fetch_or(WRITER, Relaxed);
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
