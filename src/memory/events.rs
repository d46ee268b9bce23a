//! Counted faults.

use crate::fault::FaultTally;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How many faults there were.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultCounts {
    /// Without input from a store.
    pub minor: u64,
    /// With input from a store.
    pub major: u64,
}

/// Counts faults.
#[derive(Debug)]
pub(super) struct FaultEvents {
    minor: AtomicU64,
    major: AtomicU64,
    failed: AtomicU64,
}

impl FaultEvents {
    pub(super) fn new() -> Self {
        Self { minor: AtomicU64::new(0), major: AtomicU64::new(0), failed: AtomicU64::new(0) }
    }

    pub(super) fn note(&self, faults: FaultTally) {
        let counts =
            [(&self.minor, faults.minor), (&self.major, faults.major), (&self.failed, faults.failed)];
        for (count, new) in counts.into_iter().filter(|&(_, new)| new != 0) {
            count.fetch_add(new, Relaxed);
        }
    }

    /// All, those that were not resolved too.
    ///
    /// # Linux
    /// `PGFAULT`.
    #[doc(alias = "PGFAULT")]
    pub(super) fn all(&self) -> u64 {
        let FaultCounts { minor, major } = self.counts();
        minor + major + self.failed.load(Relaxed)
    }

    pub(super) fn counts(&self) -> FaultCounts {
        FaultCounts { minor: self.minor.load(Relaxed), major: self.major.load(Relaxed) }
    }
}
