//! Atomics that can be made in constants: those of `core`, or of the one model checker that has such.

#[cfg(not(shuttle))]
pub(crate) use core::sync::atomic::{AtomicU32 as Word32, AtomicU64 as Word64, Ordering};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicU32 as Word32, AtomicU64 as Word64, Ordering};

/// What a waiter does between two tries.
#[inline]
pub(crate) fn relax() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(shuttle)]
    shuttle::thread::yield_now();
    #[cfg(not(any(loom, shuttle)))]
    core::hint::spin_loop();
}
