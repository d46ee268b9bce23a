//! A quick answer to whether anything reaches a frame: nearly always no.

use std::sync::OnceLock;
use std::sync::atomic::{
    AtomicU32,
    Ordering::{AcqRel, Acquire},
};

use crate::addr::{PageOrder, Pfn};

/// log2 of the number of counters.
const BITS: u32 = 16;
/// Pages of 4 KiB, 2 MiB and 1 GiB.
const SIZES: u8 = 3;

/// Counters of what reaches the frames that share one. A zero says that nothing reaches any of them.
#[derive(Debug, Default)]
pub(super) struct Reach(OnceLock<Box<[AtomicU32]>>);

impl Reach {
    /// Notes that something reaches a block of `512^size` frames.
    pub(super) fn add(&self, target: Pfn, size: u8) {
        let counters = self.0.get_or_init(|| (0..1 << BITS).map(|_| AtomicU32::new(0)).collect());
        counters[place(target, size)].fetch_add(1, AcqRel);
    }

    /// Undoes an `add`.
    pub(super) fn remove(&self, target: Pfn, size: u8) {
        if let Some(counters) = self.0.get() {
            counters[place(target, size)].fetch_sub(1, AcqRel);
        }
    }

    /// `false` if nothing reaches a frame of the block.
    pub(super) fn may_reach(&self, pfn: Pfn, order: PageOrder) -> bool {
        let Some(counters) = self.0.get() else { return false };
        let is_counted = |pfn, size| counters[place(pfn, size)].load(Acquire) != 0;
        (1..SIZES).any(|size| is_counted(pfn, size))
            || (0..order.pages()).filter_map(|at| pfn.checked_add(at)).any(|pfn| is_counted(pfn, 0))
    }
}

fn place(target: Pfn, size: u8) -> usize {
    let key = (target.get() >> (9 * u32::from(size))) << 2 | u64::from(size);
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS)) as usize
}
