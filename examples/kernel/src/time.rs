//! Time, by the time-stamp counter.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{cpu, x86};

/// Counts of the time-stamp counter in a millisecond, and where it stood at the start.
static COUNTS_PER_MILLISECOND: AtomicU64 = AtomicU64::new(1);
static START: AtomicU64 = AtomicU64::new(0);

/// Measures how fast the counter runs.
pub fn init() {
    let before = x86::timestamp();
    cpu::delay_microseconds(10_000);
    let counts = (x86::timestamp() - before) / 10;
    COUNTS_PER_MILLISECOND.store(counts.max(1), Ordering::Relaxed);
    START.store(before, Ordering::Relaxed);
}

/// Nanoseconds since the start.
pub fn nanoseconds() -> u64 {
    let counts = x86::timestamp().saturating_sub(START.load(Ordering::Relaxed));
    (u128::from(counts) * 1_000_000 / u128::from(COUNTS_PER_MILLISECOND.load(Ordering::Relaxed))) as u64
}
