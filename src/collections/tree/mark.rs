//! Which tree an element is on.

use core::num::NonZeroU32;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::collections::words::Word32;

/// The name of a tree. None is ever given twice, so what was noted by a tree that is gone means no other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct TreeId(Option<NonZeroU32>);

/// The name that was given last.
static LAST: AtomicU32 = AtomicU32::new(0);

impl TreeId {
    /// What a tree is called that has no name: its elements are known by where their parents lead.
    pub(super) const NONE: Self = Self(None);

    /// A new name, or none once all were given.
    pub(super) fn new() -> Self {
        let last = LAST.fetch_update(Relaxed, Relaxed, |last| last.checked_add(1));
        Self(last.ok().and_then(|last| NonZeroU32::new(last + 1)))
    }
}

/// What an element notes of the tree that it is on: 4 bytes.
#[derive(Debug, Default)]
pub struct TreeMark(Word32);

impl TreeMark {
    /// A mark of no tree.
    #[inline]
    pub const fn new() -> Self {
        Self(Word32::new(0))
    }

    #[inline]
    pub(super) fn is(&self, id: TreeId) -> bool {
        self.0.load(Relaxed) == id.0.map_or(0, NonZeroU32::get)
    }

    /// Breaks it, for tests.
    #[cfg(test)]
    pub(crate) fn clear(&self) {
        self.set(TreeId::NONE);
    }

    /// Only who has claimed the element notes it.
    #[inline]
    pub(super) fn set(&self, id: TreeId) {
        self.0.store(id.0.map_or(0, NonZeroU32::get), Relaxed);
    }
}
