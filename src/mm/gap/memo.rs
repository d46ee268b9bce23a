//! What was found last.

use super::node::{Entry, Gap};
use crate::collections::Slot;

/// The highest gap below the border of at least so many bytes. Whoever asks for as much or more finds none above it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memo {
    bytes: u64,
    entry: Entry,
}

impl Memo {
    #[inline]
    pub(super) const fn new(bytes: u64, entry: Entry) -> Self {
        Self { bytes, entry }
    }

    pub(super) const fn bytes(self) -> u64 {
        self.bytes
    }

    pub(super) const fn gap(self) -> Gap {
        self.entry.gap
    }

    pub(super) const fn entry(self) -> Entry {
        self.entry
    }

    /// Whether it is what a search for so many bytes, which begins at the border, comes to first.
    #[inline]
    pub(super) const fn answers(self, bytes: u64) -> bool {
        bytes >= self.bytes && self.entry.gap.len >= bytes
    }

    /// Notes that a gap has grown or come to be.
    #[inline]
    pub(super) const fn open(&mut self, entry: Entry) {
        if entry.gap.end() > self.entry.gap.start && entry.gap.len >= self.bytes {
            self.entry = entry;
        }
    }

    /// What it is once a range is used, by `by`, if that is known without a search.
    #[inline]
    pub(super) fn closed(self, used: Gap, by: Option<Slot>) -> Option<Self> {
        let Entry { gap, slot } = self.entry;
        if used.end() <= gap.start || used.start >= gap.end() {
            return Some(self);
        }
        let above = gap.end().checked_sub(used.end()).filter(|&rest| rest >= self.bytes);
        let below = used.start.checked_sub(gap.start).filter(|&rest| rest >= self.bytes);
        let entry = match (above, below) {
            (Some(len), _) => Entry::below(Gap { start: used.end(), len }, slot),
            (None, Some(len)) => Entry::below(Gap { start: gap.start, len }, by),
            (None, None) => return None,
        };
        Some(Self { entry, ..self })
    }
}
