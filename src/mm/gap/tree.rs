//! The B+tree of gaps: its shape, how it is built, and how a gap is found by address.

use super::GapError;
use super::node::{Entry, FANOUT, GapNodes, node};
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
    pub(super) path: Path,
}

/// The way from the root to a leaf that was gone last: a node of each level, leaf first, and the entry by which the way leaves it. What is found is taken
/// next, and what is taken is given back soon.
#[derive(Debug)]
pub(super) struct Path {
    nodes: [Slot; MAX_HEIGHT + 1],
    entries: [u8; MAX_HEIGHT + 1],
    /// Whether there is still such a way.
    leads: bool,
}

impl Path {
    const fn none(root: Slot) -> Self {
        Self { nodes: [root; MAX_HEIGHT + 1], entries: [0; MAX_HEIGHT + 1], leads: false }
    }

    /// Notes a step: at `level` the way leaves `slot` by `entry`, or in a leaf has counted so many. Once all are noted it
    /// [leads](Self::set_leads) somewhere.
    #[inline]
    pub(super) const fn note(&mut self, level: usize, slot: Slot, entry: usize) {
        self.nodes[level] = slot;
        self.entries[level] = entry as u8;
    }

    /// Notes that all steps are noted, or that a node has come or gone.
    #[inline]
    pub(super) const fn set_leads(&mut self, leads: bool) {
        self.leads = leads;
    }

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
        mut gaps: impl Iterator<Item = Entry>,
    ) -> Result<Self, GapError> {
        let mut builder = Builder { nodes, open: [None; MAX_HEIGHT + 1] };
        let mut count = 0;
        let built = builder
            .begin()
            .and_then(|()| {
                gaps.try_for_each(|gap| {
                    count += 1;
                    builder.push(0, gap)
                })
            })
            .and_then(|()| builder.finish());
        match built {
            Ok((root, height)) => Ok(Self { root, height, gaps: count, path: Path::none(root) }),
            Err(error) => {
                builder.abandon();
                Err(error)
            }
        }
    }

    /// The lowest gap.
    pub(super) fn first<S: GapNodes>(&self, nodes: &S) -> Option<Entry> {
        let leaf = (0..self.height).fold(self.root, |slot, _| node(nodes, slot).child(0));
        node(nodes, leaf).entries().next()
    }

    /// The highest gap.
    pub(super) fn last<S: GapNodes>(&self, nodes: &S) -> Option<Entry> {
        let end = |slot| node(nodes, slot).count().saturating_sub(1);
        let leaf = (0..self.height).fold(self.root, |slot, _| node(nodes, slot).child(end(slot)));
        node(nodes, leaf).entries().last()
    }

    /// Gives all nodes back to the store.
    pub(super) fn give_back<S: GapNodes>(self, nodes: &S) {
        give_back(nodes, self.root, self.height);
    }

    /// How many nodes `edits` edits take at worst: each may split a node of every level, and the root splits again
    /// only after half a node's worth of edits.
    #[inline]
    pub(super) const fn nodes_for(&self, edits: u32) -> u32 {
        edits.saturating_mul(self.height as u32 + 1).saturating_add(1 + edits / (FANOUT as u32 / 2))
    }

    /// Goes to the last gap that starts at or before `addr`. In the leaf the last step counts the gaps that do: the one found
    /// is just before it, and there is none if it is 0.
    pub(super) fn find<S: GapNodes>(&mut self, nodes: &S, addr: u64) {
        let (slot, _) = self.path.at(0);
        let leaf = node(nodes, slot);
        // The way that was gone last often leads there.
        if self.path.leads && leaf.spans(addr) {
            self.path.note(0, slot, leaf.up_to(addr));
        } else {
            self.go(nodes, addr);
        }
    }

    fn go<S: GapNodes>(&mut self, nodes: &S, addr: u64) {
        let mut slot = self.root;
        for below in (0..usize::from(self.height)).rev() {
            let inner = node(nodes, slot);
            let at = inner.up_to(addr).saturating_sub(1);
            self.path.note(below + 1, slot, at);
            slot = inner.child(at);
        }
        self.path.note(0, slot, node(nodes, slot).up_to(addr));
        self.path.set_leads(true);
    }
}

/// Gives a node and all below it back.
fn give_back<S: GapNodes>(nodes: &S, slot: Slot, height: u8) {
    if let Some(below) = height.checked_sub(1) {
        node(nodes, slot)
            .entries()
            .filter_map(|entry| entry.slot)
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
