//! Recounts the index from scratch.

use super::node::{Gap, GapNode, GapNodes};
use super::tree::GapTree;
use crate::collections::Slot;

/// A fault that [`GapIndex::check`](super::GapIndex::check) found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GapFault {
    /// This node, or a child that it names, is not in the store.
    OutOfRange(Slot),
    /// A node other than a root leaf has no entry, or an unused entry is not blank.
    Entries(Slot),
    /// The summary that the parent keeps of this node is wrong: its first start or its largest length.
    Summary(Slot),
    /// A gap of this leaf is empty, or overlaps, touches or precedes the one before it.
    Order(Slot),
    /// A gap does not start or end where the VMAs leave room.
    Differs {
        /// Where the index has the gap; the end of the address space if it has none more.
        kept: u64,
        /// Where the VMAs leave one; the end of the address space if they leave none more.
        free: u64,
    },
    /// The root has but one child.
    Root,
    /// The count of gaps is wrong.
    Count {
        /// How many gaps there are.
        counted: u32,
        /// How many the head says there are.
        kept: u32,
    },
    /// The chain of spare nodes is longer or shorter than its count.
    Spares,
    /// The gap that was found last is none, or is not the highest one of its size.
    Memo {
        /// Where it starts.
        start: u64,
    },
}

impl core::fmt::Display for GapFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::OutOfRange(slot) => write!(f, "{slot:?} or a child of it is outside the store"),
            Self::Entries(slot) => write!(f, "{slot:?} has too few entries or stale ones"),
            Self::Summary(slot) => write!(f, "the summary of {slot:?} is wrong"),
            Self::Order(slot) => write!(f, "the gaps of {slot:?} are out of order"),
            Self::Differs { kept, free } => write!(f, "a gap is kept at {kept:#x}, free is {free:#x}"),
            Self::Root => f.write_str("the root has one child"),
            Self::Count { counted, kept } => write!(f, "{counted} gaps counted, {kept} kept"),
            Self::Spares => f.write_str("the spare nodes are miscounted"),
            Self::Memo { start } => write!(f, "the gap at {start:#x} is not what was found"),
        }
    }
}

impl core::error::Error for GapFault {}

impl GapTree {
    /// Verifies the tree, and that its gaps are exactly `free`.
    pub(super) fn check<S: GapNodes>(
        &self,
        nodes: &S,
        free: impl Iterator<Item = Gap>,
    ) -> Result<(), GapFault> {
        let mut walk = Walk { nodes, free, counted: 0, end: None };
        let root = nodes.get(self.root).ok_or(GapFault::OutOfRange(self.root))?;
        if self.height > 0 && root.count() == 1 {
            return Err(GapFault::Root);
        }
        if self.height > 0 || root.count() > 0 {
            walk.below(self.root, self.height)?;
        }
        if let Some(free) = walk.free.next() {
            return Err(GapFault::Differs { kept: u64::MAX, free: free.start });
        }
        if walk.counted != self.gaps {
            return Err(GapFault::Count { counted: walk.counted, kept: self.gaps });
        }
        Ok(())
    }
}

/// A check under way.
struct Walk<'a, S, I> {
    nodes: &'a S,
    free: I,
    counted: u32,
    /// Where the gap before ended.
    end: Option<u64>,
}

impl<S: GapNodes, I: Iterator<Item = Gap>> Walk<'_, S, I> {
    /// Verifies the node `slot`, which lies `height` levels above the leaves, and all below.
    fn below(&mut self, slot: Slot, height: u8) -> Result<(), GapFault> {
        let node = self.nodes.get(slot).ok_or(GapFault::OutOfRange(slot))?;
        if node.count() == 0 || !node.is_blank_after_count() {
            return Err(GapFault::Entries(slot));
        }
        let Some(below) = height.checked_sub(1) else { return self.leaf(slot, node) };
        for entry in node.entries() {
            let child = entry.slot.ok_or(GapFault::OutOfRange(slot))?;
            let summary = self.nodes.get(child).ok_or(GapFault::OutOfRange(slot))?.summary();
            if entry.gap != summary {
                return Err(GapFault::Summary(child));
            }
            self.below(child, below)?;
        }
        Ok(())
    }

    fn leaf(&mut self, slot: Slot, node: &GapNode) -> Result<(), GapFault> {
        for entry in node.entries() {
            let gap = entry.gap;
            let end = gap.start.checked_add(gap.len).filter(|_| gap.len > 0).ok_or(GapFault::Order(slot))?;
            if self.end.replace(end).is_some_and(|before| before >= gap.start) {
                return Err(GapFault::Order(slot));
            }
            let free = self.free.next();
            if free != Some(gap) {
                let free = free.map_or(u64::MAX, |free| free.start);
                return Err(GapFault::Differs { kept: gap.start, free });
            }
            self.counted += 1;
        }
        Ok(())
    }
}
