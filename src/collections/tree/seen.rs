//! What a search has come by.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Search;
use crate::collections::slots::Slot;

/// Two slots that a search has come by: they are on the tree, which need not be found out again as long as none has left it.
///
/// Readers beside each other note theirs, and each is right: nothing leaves the tree while it is shared.
#[derive(Default)]
pub(super) struct Seen(AtomicU64);

impl Seen {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    #[inline]
    pub(super) fn note(&self, found: Search) {
        let (one, other) = match found {
            Search::Found(slot) => (Some(slot), None),
            Search::Missing { before, after } => (before, after),
        };
        self.0.store(u64::from(Slot::code_of(one)) << 32 | u64::from(Slot::code_of(other)), Relaxed);
    }

    #[inline]
    pub(super) fn holds(&self, slot: Slot) -> bool {
        let both = self.0.load(Relaxed);
        (both >> 32) as u32 == slot.code() || both as u32 == slot.code()
    }

    pub(super) fn forget(&mut self) {
        *self.0.get_mut() = 0;
    }
}
