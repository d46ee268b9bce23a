//! Faults that are over, counted.

use core::cell::Cell;

use super::{At, Attempt, MmPager, Resolved, Stop};
use crate::phys::PageSource;
use crate::table::EntryFormat;

/// How many faults are over, whoever made them: an access, or a call that makes pages resident.
///
/// # Linux
/// What `mm_account_fault` in `mm/memory.c` counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(alias = "mm_account_fault")]
pub struct FaultTally {
    /// Resolved without input from a store (`min_flt`).
    pub minor: u64,
    /// Resolved with input from a store (`maj_flt`).
    pub major: u64,
    /// Not resolved, in a VMA that allows the access: for want of a page of the file, or of memory. With the others they are `PGFAULT`.
    pub failed: u64,
}

/// The faults of one [`MmPager`].
#[derive(Debug)]
pub(super) struct Faults {
    tally: Cell<FaultTally>,
    /// What the next one is.
    next: Cell<Attempt>,
}

impl Faults {
    pub(super) const fn new() -> Self {
        let none = FaultTally { minor: 0, major: 0, failed: 0 };
        Self { tally: Cell::new(none), next: Cell::new(Attempt::First) }
    }

    /// The next fault is the first for its access.
    pub(super) fn begin(&self) {
        self.next.set(Attempt::First);
    }

    /// Counts a fault, unless it comes again; what it is with its attempts before.
    fn note(&self, result: Result<Resolved, Stop>) -> Result<Resolved, Stop> {
        let result = result.map(|resolved| self.next.get().all_in_all(resolved));
        self.begin();
        let mut tally = self.tally.get();
        match result {
            Ok(Resolved::Minor) => tally.minor += 1,
            Ok(Resolved::Major) => tally.major += 1,
            Err(Stop::Wait(_)) => {}
            Err(Stop::Signal(_) | Stop::OutOfMemory) => tally.failed += 1,
        }
        self.tally.set(tally);
        result
    }
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Whether the next fault is the first for its access, which it is if nothing is said, or comes [again](Attempt::Again).
    pub fn note_attempt(&self, attempt: Attempt) {
        self.faults.next.set(attempt);
    }

    /// The faults since this was asked last. They are the caller's to count.
    pub fn take_faults(&self) -> FaultTally {
        self.faults.tally.take()
    }

    /// Resolves a fault in a VMA that allows the access, and counts it.
    pub(super) fn resolve_and_count(&self, at: &At<'_, '_>) -> Result<Resolved, Stop> {
        self.faults.note(self.resolve(at))
    }
}
