//! The lock of an address space, and of what else is held while somebody waits: a thread that cannot have it lets others run.

use core::sync::atomic::{AtomicU32, Ordering};

use lock_api::{GuardSend, RawRwLock};

use crate::sched;

/// One thread has it for writing.
const WRITER: u32 = 1 << 31;
/// A thread waits to have it for writing: no more readers come in.
const WAITING: u32 = 1 << 30;

/// A read-write lock whose waiters yield the CPU. The library takes it as its `mmap_lock`.
///
/// # Linux
/// `struct rw_semaphore`, without a queue.
pub struct SleepLock(AtomicU32);

// SAFETY: a writer comes in only where the state is 0 but for WAITING, and leaves WRITER there; a reader comes in only where neither is, and is
// counted; so writers are alone.
unsafe impl RawRwLock for SleepLock {
    const INIT: Self = Self(AtomicU32::new(0));

    type GuardMarker = GuardSend;

    fn lock_shared(&self) {
        while !self.try_lock_shared() {
            wait();
        }
    }

    fn try_lock_shared(&self) -> bool {
        let more = |state: u32| (state < WAITING).then_some(state + 1);
        self.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).is_ok()
    }

    unsafe fn unlock_shared(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }

    fn lock_exclusive(&self) {
        while !self.try_lock_exclusive() {
            self.0.fetch_or(WAITING, Ordering::Relaxed);
            wait();
        }
    }

    fn try_lock_exclusive(&self) -> bool {
        let alone = |state: u32| (state & !WAITING == 0).then_some(WRITER);
        self.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, alone).is_ok()
    }

    unsafe fn unlock_exclusive(&self) {
        // Others that wait note that again.
        self.0.fetch_and(WAITING, Ordering::Release);
    }
}

fn wait() {
    core::hint::spin_loop();
    if sched::has_begun() {
        sched::yield_now();
    }
}
