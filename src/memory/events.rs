//! Counted faults.

use crate::fault::Resolved;
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
}

impl FaultEvents {
    pub(super) fn new() -> Self {
        Self { minor: AtomicU64::new(0), major: AtomicU64::new(0) }
    }

    pub(super) fn note(&self, resolved: Resolved) {
        let count = match resolved {
            Resolved::Minor => &self.minor,
            Resolved::Major => &self.major,
        };
        count.fetch_add(1, Relaxed);
    }

    pub(super) fn counts(&self) -> FaultCounts {
        FaultCounts { minor: self.minor.load(Relaxed), major: self.major.load(Relaxed) }
    }
}
