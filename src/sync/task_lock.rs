//! The lock of tasks, which no interrupt handler takes.

use core::ops::{Deref, DerefMut};

use spin::RelaxStrategy;
use spin::mutex::{SpinMutex, SpinMutexGuard};

/// A spin lock that leaves interrupts alone, for what only tasks touch: the lists of who maps a page, an address space's
/// tables. It can be made in a constant.
///
/// Whoever holds it may take a [`SpinLock`](super::SpinLock) inside, never the other way round, and does not sleep. It knows no platform, so that
/// whoever preempts threads has to heed [what that says](crate::platform::Platform#preemption).
///
/// # Linux
/// `spinlock_t` taken by `spin_lock`; where it stands Linux has reader-writer semaphores, on which tasks may sleep.
#[derive(Debug, Default)]
#[doc(alias = "spinlock_t")]
pub struct TaskLock<T>(SpinMutex<T, Relax>);

/// What a waiter does between two tries.
#[derive(Debug)]
enum Relax {}

impl RelaxStrategy for Relax {
    #[inline]
    fn relax() {
        super::words::relax();
    }
}

impl<T> TaskLock<T> {
    /// Makes an open lock.
    pub const fn new(value: T) -> Self {
        Self(SpinMutex::new(value))
    }

    /// Waits until the lock is free and takes it.
    #[inline]
    pub fn lock(&self) -> TaskGuard<'_, T> {
        TaskGuard(self.0.lock())
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<TaskGuard<'_, T>> {
        self.0.try_lock().map(TaskGuard)
    }
}

/// A lock held.
#[must_use = "the lock is free again when the guard is dropped"]
pub struct TaskGuard<'a, T>(SpinMutexGuard<'a, T, Relax>);

impl<T> core::fmt::Debug for TaskGuard<'_, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("TaskGuard")
    }
}

impl<T> Deref for TaskGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for TaskGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
