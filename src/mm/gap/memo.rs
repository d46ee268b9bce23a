//! What was found last.

use super::fit::{Candidate, Search};
use super::node::{Entry, Gap};
use crate::addr::VirtAddr;
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

    /// Offers the gap to `accept`, if it is the highest that a search, which begins at the border, can find.
    #[inline]
    pub(super) fn offer(
        self,
        search: Search,
        accept: &mut impl FnMut(Candidate) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        let fits = search.fit.bytes() >= self.bytes && self.entry.gap.len >= search.fit.bytes();
        if fits { search.fit.offer(search.whole(self.entry)?, accept) } else { None }
    }

    /// What it is once a gap has grown or come to be.
    #[inline]
    pub(super) const fn opened(self, entry: Entry) -> Self {
        let is_higher = entry.gap.end() > self.entry.gap.start;
        if is_higher && entry.gap.len >= self.bytes { Self { entry, ..self } } else { self }
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
