//! Sequence counters: readers that take no lock and try again when a writer was there.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// An atomic counter of some width.
///
/// The count wraps. A reader that sleeps through exactly half the counter's range of writes takes the old data for new: with
/// 8 bits after 128 writes, which tests use to show it; with 32 bits after 2^31; with 64 bits never.
pub trait SeqWord {
    /// A value of the counter.
    type Value: Copy + Eq + Default;

    /// The value after `value`, wrapping.
    fn step(value: Self::Value) -> Self::Value;

    /// Whether `value` is odd.
    fn is_odd(value: Self::Value) -> bool;

    /// Reads the counter.
    fn load(&self, order: Ordering) -> Self::Value;

    /// Sets the counter.
    fn store(&self, value: Self::Value, order: Ordering);

    /// A fence of the same memory model as the counter's.
    fn fence(order: Ordering);
}

macro_rules! seq_words {
    ($($atomic:path, $value:ty;)*) => { $(
        impl SeqWord for $atomic {
            type Value = $value;

            #[inline]
            fn step(value: $value) -> $value {
                value.wrapping_add(1)
            }

            #[inline]
            fn is_odd(value: $value) -> bool {
                value & 1 == 1
            }

            #[inline]
            fn load(&self, order: Ordering) -> $value {
                self.load(order)
            }

            #[inline]
            fn store(&self, value: $value, order: Ordering) {
                self.store(value, order);
            }

            #[inline]
            fn fence(order: Ordering) {
                fence(order);
            }
        }
    )* };
}

seq_words! {
    AtomicU8, u8;
    AtomicU32, u32;
    AtomicU64, u64;
}

#[cfg(loom)]
seq_words! {
    loom::sync::atomic::AtomicU32, u32;
}

#[cfg(shuttle)]
seq_words! {
    shuttle::sync::atomic::AtomicU8, u8;
    shuttle::sync::atomic::AtomicU32, u32;
}

/// Counts the writes to data that is read without a lock. Odd while a writer is inside.
///
/// The data itself must be atomics, read and written with relaxed order or stronger: a reader may meet half a write, sees
/// that from the count, and throws away what it read. Until then it must not act on it; it must be able to bear any mix of
/// old and new values, so loops need a bound of their own.
///
/// # Locking
/// Writers exclude each other by a lock of the caller. Readers never block one.
///
/// # Linux
/// `seqcount_t` in `include/linux/seqlock.h`.
#[derive(Debug, Default)]
#[doc(alias = "seqcount_t")]
pub struct SeqCount<W>(W);

/// The count that a reader began with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "what was read counts only if `SeqCount::unchanged` says so"]
pub struct SeqSnapshot<V>(V);

impl<W: SeqWord> SeqCount<W> {
    /// Starts from the value of `word`, which should be even.
    #[inline]
    pub const fn new(word: W) -> Self {
        Self(word)
    }

    /// Begins to read; `None` while a writer is inside.
    #[inline]
    #[doc(alias = "read_seqcount_begin")]
    pub fn begin(&self) -> Option<SeqSnapshot<W::Value>> {
        // Acquire pairs with the Release store at the end of a write: that write's data is seen.
        let count = self.0.load(Ordering::Acquire);
        if W::is_odd(count) { None } else { Some(SeqSnapshot(count)) }
    }

    /// Whether no writer has begun since `snapshot`: all that was read in between is of one state.
    #[inline]
    #[doc(alias = "read_seqcount_retry")]
    pub fn unchanged(&self, snapshot: SeqSnapshot<W::Value>) -> bool {
        // This fence pairs with the Release fence at the beginning of a write: had we read any of its data, we would see
        // its odd count, or a later one, in the load below.
        W::fence(Ordering::Acquire);
        self.0.load(Ordering::Relaxed) == snapshot.0
    }

    /// Runs `look` until it has seen one state, at most `tries` times; `None` if a writer came in between each time.
    pub fn read<R>(&self, tries: u32, mut look: impl FnMut() -> R) -> Option<R> {
        for _ in 0..tries {
            let Some(snapshot) = self.begin() else {
                core::hint::spin_loop();
                continue;
            };
            let seen = look();
            if self.unchanged(snapshot) {
                return Some(seen);
            }
        }
        None
    }

    /// Begins to write; the write ends when the guard is dropped.
    ///
    /// # Panics
    /// In debug builds, if a writer is inside: the caller does not hold the writers' lock, or writes inside a write.
    #[inline]
    #[doc(alias = "write_seqcount_begin")]
    pub fn write(&self) -> SeqWrite<'_, W> {
        let count = self.0.load(Ordering::Relaxed);
        debug_assert!(!W::is_odd(count), "two writers in one sequence");
        self.0.store(W::step(count), Ordering::Relaxed);
        // This fence pairs with the Acquire fence of `unchanged`: no data of this write is seen before the odd count.
        W::fence(Ordering::Release);
        SeqWrite(self)
    }
}

/// A write under way.
#[must_use = "the write ends when this is dropped"]
pub struct SeqWrite<'a, W: SeqWord>(&'a SeqCount<W>);

impl<W: SeqWord> core::fmt::Debug for SeqWrite<'_, W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SeqWrite")
    }
}

impl<W: SeqWord> Drop for SeqWrite<'_, W> {
    #[inline]
    fn drop(&mut self) {
        let count = self.0.0.load(Ordering::Relaxed);
        // Release pairs with the Acquire of `begin`: who sees this count sees the data of this write.
        self.0.0.store(W::step(count), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    #[test]
    fn a_reader_sees_a_write_that_came_in_between() {
        let seq = SeqCount::new(AtomicU32::new(0));
        let snapshot = seq.begin().unwrap();
        assert!(seq.unchanged(snapshot));
        let write = seq.write();
        assert!(!seq.unchanged(snapshot));
        assert!(seq.begin().is_none());
        drop(write);
        assert!(!seq.unchanged(snapshot));
        assert!(seq.begin().is_some_and(|again| again != snapshot && seq.unchanged(again)));
    }

    #[test]
    fn read_gives_up_after_so_many_tries() {
        let seq = SeqCount::new(AtomicU64::new(0));
        let mut looks = 0;
        let seen = seq.read(3, || {
            looks += 1;
            drop(seq.write());
        });
        assert_eq!((seen, looks), (None, 3));
        assert_eq!(seq.read(1, || 7), Some(7));
        let inside = seq.write();
        assert_eq!(seq.read(3, || looks += 1), None);
        drop(inside);
        assert_eq!(looks, 3);
    }

    #[test]
    fn eight_bits_are_fooled_by_exactly_128_writes() {
        let seq = SeqCount::new(AtomicU8::new(250));
        let snapshot = seq.begin().unwrap();
        for _ in 0..127 {
            drop(seq.write());
            assert!(!seq.unchanged(snapshot));
        }
        drop(seq.write());
        assert!(seq.unchanged(snapshot));
    }

    #[test]
    fn threads_never_see_half_a_write() {
        let (seq, stop) = (SeqCount::new(AtomicU64::new(0)), AtomicBool::new(false));
        let data = [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)];
        let look = || data.each_ref().map(|word| word.load(Ordering::Relaxed));
        thread::scope(|scope| {
            let readers = [(); 2].map(|()| {
                scope.spawn(|| {
                    let mut whole = 0_u64;
                    while !stop.load(Ordering::Relaxed) || whole == 0 {
                        if let Some([a, b, c]) = seq.read(100, look) {
                            assert!(a == b && b == c, "{a} {b} {c}");
                            whole += 1;
                        }
                    }
                    whole
                })
            });
            for value in 1..=200_000 {
                let _write = seq.write();
                data.iter().for_each(|word| word.store(value, Ordering::Relaxed));
            }
            stop.store(true, Ordering::Relaxed);
            for reader in readers {
                assert!(reader.join().unwrap() > 0);
            }
        });
        assert_eq!(seq.read(1, look), Some([200_000; 3]));
    }
}
