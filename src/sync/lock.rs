//! The spin lock.

use core::ops::{Deref, DerefMut};

use crate::platform::CpuPin;

#[cfg(loom)]
use loom::sync::{Mutex as Raw, MutexGuard as RawGuard};
#[cfg(shuttle)]
use shuttle::sync::{Mutex as Raw, MutexGuard as RawGuard};
#[cfg(not(any(loom, shuttle)))]
use spin::mutex::{SpinMutex as Raw, SpinMutexGuard as RawGuard};

/// The place of a lock in the order: one is taken only while all held ones have a smaller rank.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Rank {
    /// An allocator's tunables.
    Settings = 4,
    /// The slab allocator's list of caches.
    Caches = 6,
    /// A cache's list of slabs.
    Slab = 8,
    /// A page table.
    Table = 10,
    /// A second page table.
    SecondTable = 11,
    /// The page cache's list of files.
    Files = 12,
    /// A file's pages.
    Mapping = 13,
    /// The page cache's list of inputs and outputs under way.
    CacheIo = 14,
    /// A zone's stock of full magazines.
    Depot = 16,
    /// A zone's free lists.
    Zone = 20,
    /// Takes nothing inside.
    Leaf = 24,
}

/// A spin lock that is taken with interrupts masked, which its [`CpuPin`] proves.
///
/// # Linux
/// `spinlock_t` taken by `spin_lock_irqsave`.
#[derive(Debug)]
pub struct SpinLock<T> {
    rank: Rank,
    raw: Raw<T>,
}

impl<T> SpinLock<T> {
    /// Makes an open lock.
    pub fn new(rank: Rank, value: T) -> Self {
        Self { rank, raw: Raw::new(value) }
    }

    /// Waits until the lock is free and takes it.
    ///
    /// # Panics
    /// With feature `check`, if a lock of the same or a higher rank is held: a mistake in the library.
    #[inline]
    pub fn lock<'a>(&'a self, pin: &'a CpuPin<'_>) -> SpinGuard<'a, T> {
        #[cfg(feature = "check")]
        assert!(pin.note_locked(self.rank as u32), "lock of rank {:?} taken out of order", self.rank);
        let guard = SpinGuard { raw: self.raw_lock(), rank: self.rank, pin };
        guard.touch();
        guard
    }

    /// The value, without locking, by exclusive access.
    pub fn get_mut(&mut self) -> &mut T {
        #[cfg(any(loom, shuttle))]
        let value = self.raw.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        #[cfg(not(any(loom, shuttle)))]
        let value = self.raw.get_mut();
        value
    }

    #[cfg(any(loom, shuttle))]
    fn raw_lock(&self) -> RawGuard<'_, T> {
        self.raw.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    #[cfg(not(any(loom, shuttle)))]
    #[inline]
    fn raw_lock(&self) -> RawGuard<'_, T> {
        self.raw.lock()
    }
}

/// A lock held.
#[derive(Debug)]
#[must_use = "the lock is free again when the guard is dropped"]
pub struct SpinGuard<'a, T> {
    raw: RawGuard<'a, T>,
    rank: Rank,
    pin: &'a CpuPin<'a>,
}

impl<T> SpinGuard<'_, T> {
    /// Keeps the fields that only a `check` build reads in use.
    #[inline(always)]
    fn touch(&self) {
        let _ = (self.rank, self.pin);
    }
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.raw
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.raw
    }
}

#[cfg(feature = "check")]
impl<T> Drop for SpinGuard<'_, T> {
    fn drop(&mut self) {
        self.pin.note_unlocked(self.rank as u32);
    }
}
