//! The B+tree of gaps: its shape, how it is built, and how a gap is found by address.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use super::GapError;
use super::node::{Entry, FANOUT, Gap, GapNodes, node};
use crate::addr::VirtRange;
use crate::collections::Slot;

/// Levels above the leaves, at most: enough for 2^31 gaps in nodes that are 40 % full. A tree that would grow higher is
/// given up and built anew, which makes its nodes 80 % full.
pub(super) const MAX_HEIGHT: usize = 11;
/// How full `build` makes nodes, so that the first edits find room.
const BUILD_FILL: usize = 12;

/// The gaps of an address space. All methods are given the same store of nodes.
#[derive(Debug)]
pub(super) struct GapTree {
    pub(super) root: Slot,
    /// Levels above the leaves.
    pub(super) height: u8,
    pub(super) gaps: u32,
    pub(super) last: LastPath,
}

/// The way from the root to a leaf: a node of each level, leaf first, and the entry by which the way leaves it.
pub(super) struct Path {
    nodes: [Slot; MAX_HEIGHT + 1],
    entries: [u8; MAX_HEIGHT + 1],
}

/// The way that was gone last: what is found is taken next, and what is taken is given back soon.
///
/// Readers beside each other note theirs, and may mix them: so whoever goes by it looks at every step whether it is one.
#[derive(Debug)]
pub(super) struct LastPath {
    nodes: [AtomicU32; MAX_HEIGHT + 1],
    entries: [AtomicU8; MAX_HEIGHT + 1],
}

impl LastPath {
    const fn new() -> Self {
        Self {
            nodes: [const { AtomicU32::new(0) }; MAX_HEIGHT + 1],
            entries: [const { AtomicU8::new(0) }; MAX_HEIGHT + 1],
        }
    }

    /// Notes a step: at `level` the way leaves `slot` by `entry`, or in a leaf has counted so many.
    #[inline]
    pub(super) fn note(&self, level: usize, slot: Slot, entry: usize) {
        self.nodes[level].store(slot.code(), Relaxed);
        self.entries[level].store(entry as u8, Relaxed);
    }

    #[inline]
    fn step(&self, level: usize) -> Option<(Slot, usize)> {
        let slot = Slot::from_code(self.nodes[level].load(Relaxed))?;
        Some((slot, usize::from(self.entries[level].load(Relaxed))))
    }
}

impl Path {
    /// The node at `level` and the entry taken there.
    #[inline]
    pub(super) const fn at(&self, level: usize) -> (Slot, usize) {
        (self.nodes[level], self.entries[level] as usize)
    }
}

impl GapTree {
    /// Builds a tree of `gaps`, which ascend.
    pub(super) fn build<S: GapNodes>(
        nodes: &S,
        mut gaps: impl Iterator<Item = VirtRange>,
    ) -> Result<Self, GapError> {
        let mut builder = Builder { nodes, open: [None; MAX_HEIGHT + 1] };
        let mut count = 0;
        let built = builder
            .begin()
            .and_then(|()| {
                gaps.try_for_each(|gap| {
                    count += 1;
                    builder.push(0, Entry::leaf(Gap::of(gap)))
                })
            })
            .and_then(|()| builder.finish());
        match built {
            Ok((root, height)) => Ok(Self { root, height, gaps: count, last: LastPath::new() }),
            Err(error) => {
                builder.abandon();
                Err(error)
            }
        }
    }

    /// Gives all nodes back to the store.
    pub(super) fn give_back<S: GapNodes>(self, nodes: &S) {
        give_back(nodes, self.root, self.height);
    }

    /// How many nodes `edits` edits take at worst: each may split a node of every level, and the root splits again
    /// only after half a node's worth of edits.
    pub(super) const fn nodes_for(&self, edits: u32) -> u32 {
        edits.saturating_mul(self.height as u32 + 1).saturating_add(1 + edits / (FANOUT as u32 / 2))
    }

    /// The way to the last gap that starts at or before `addr`. In the leaf the step counts the gaps that do: the one found
    /// is just before it, and there is none if it is 0.
    pub(super) fn find<S: GapNodes>(&self, nodes: &S, addr: u64) -> Path {
        self.find_again(nodes, addr).unwrap_or_else(|| self.find_anew(nodes, addr))
    }

    /// The way that was gone last, if it leads there.
    #[inline]
    fn find_again<S: GapNodes>(&self, nodes: &S, addr: u64) -> Option<Path> {
        let mut path = Path { nodes: [self.root; MAX_HEIGHT + 1], entries: [0; MAX_HEIGHT + 1] };
        let (leaf, after) = self.last.step(0)?;
        let (gaps, at) = (node(nodes, leaf), after.checked_sub(1)?);
        if after > gaps.count() || addr < gaps.start(at) {
            return None;
        }
        // What lies beyond the last gap of a leaf may be in the next.
        let end = if after < gaps.count() { gaps.start(after) } else { gaps.gap(at).end() };
        if addr >= end {
            return None;
        }
        (path.nodes[0], path.entries[0]) = (leaf, after as u8);
        let mut below = leaf;
        for level in 1..=usize::from(self.height) {
            let (slot, at) = self.last.step(level)?;
            let inner = node(nodes, slot);
            if at >= inner.count() || inner.entry(at).child != Some(below) {
                return None;
            }
            (path.nodes[level], path.entries[level]) = (slot, at as u8);
            below = slot;
        }
        (below == self.root).then_some(path)
    }

    fn find_anew<S: GapNodes>(&self, nodes: &S, addr: u64) -> Path {
        let mut path = Path { nodes: [self.root; MAX_HEIGHT + 1], entries: [0; MAX_HEIGHT + 1] };
        let mut slot = self.root;
        for level in (1..=usize::from(self.height)).rev() {
            let inner = node(nodes, slot);
            let at = inner.up_to(addr).saturating_sub(1);
            (path.nodes[level], path.entries[level]) = (slot, at as u8);
            self.last.note(level, slot, at);
            slot = inner.child(at);
        }
        let after = node(nodes, slot).up_to(addr);
        (path.nodes[0], path.entries[0]) = (slot, after as u8);
        self.last.note(0, slot, after);
        path
    }
}

/// Gives a node and all below it back.
fn give_back<S: GapNodes>(nodes: &S, slot: Slot, height: u8) {
    if let Some(below) = height.checked_sub(1) {
        node(nodes, slot)
            .entries()
            .filter_map(|entry| entry.child)
            .for_each(|child| give_back(nodes, child, below));
    }
    nodes.give(slot);
}

/// Fills nodes in ascending order; the last node of each level is open.
struct Builder<'a, S> {
    nodes: &'a S,
    open: [Option<Slot>; MAX_HEIGHT + 1],
}

impl<S: GapNodes> Builder<'_, S> {
    /// Opens the first leaf, so that there is one even if there is no gap.
    fn begin(&mut self) -> Result<(), GapError> {
        self.open[0] = Some(self.fresh()?);
        Ok(())
    }

    /// Adds an entry to the open node of a level, which is closed and replaced when it is full.
    fn push(&mut self, level: usize, entry: Entry) -> Result<(), GapError> {
        let full = match self.open.get(level).ok_or(GapError::NoNodes)? {
            Some(slot) if node(self.nodes, *slot).count() < BUILD_FILL => {
                node(self.nodes, *slot).push(entry);
                return Ok(());
            }
            full => *full,
        };
        if let Some(slot) = full {
            self.push(level + 1, Entry::inner(slot, node(self.nodes, slot)))?;
            self.open[level] = None;
        }
        let fresh = self.fresh()?;
        node(self.nodes, fresh).push(entry);
        self.open[level] = Some(fresh);
        Ok(())
    }

    /// Closes all nodes; answers the root and its height.
    fn finish(&mut self) -> Result<(Slot, u8), GapError> {
        for level in 0..MAX_HEIGHT {
            let Some(slot) = self.open[level] else { break };
            if self.open[level + 1].is_none() {
                return Ok((slot, level as u8));
            }
            self.push(level + 1, Entry::inner(slot, node(self.nodes, slot)))?;
            self.open[level] = None;
        }
        Err(GapError::NoNodes)
    }

    /// Gives everything back.
    fn abandon(&mut self) {
        for (level, open) in self.open.iter_mut().enumerate() {
            if let Some(slot) = open.take() {
                give_back(self.nodes, slot, level as u8);
            }
        }
    }

    fn fresh(&self) -> Result<Slot, GapError> {
        let slot = self.nodes.take().ok_or(GapError::NoNodes)?;
        node(self.nodes, slot).reset();
        Ok(slot)
    }
}
