//! Edits of the tree: gaps grow, shrink, split, merge, come and go.

use super::GapError;
use super::node::{Entry, FANOUT, Gap, GapNode, GapNodes, Spares, node};
use super::tree::{GapTree, MAX_HEIGHT};
use crate::collections::Slot;

/// Neighbours with no more entries than this together become one node. Well below a full node, so that an edit back and
/// forth does not split and merge each time.
const MERGE_AT: usize = 11;

impl GapTree {
    /// Makes all of `free` free: it becomes one gap with all gaps that it overlaps or touches, which is the answer.
    pub(super) fn open<S: GapNodes>(
        &mut self,
        nodes: &S,
        spares: &mut Spares,
        mut free: Entry,
    ) -> Result<Entry, GapError> {
        loop {
            self.find(nodes, free.gap.end());
            let Some(last) = self.found(nodes).filter(|last| last.gap.end() >= free.gap.start) else {
                self.insert(nodes, spares, free, 0)?;
                return Ok(free);
            };
            let joined = free.joined(last);
            if last.gap.start <= free.gap.start {
                self.set(nodes, joined);
                return Ok(joined);
            }
            match self.before(nodes, last) {
                Before::InLeaf(leaf, at, before)
                    if before.gap.end() >= free.gap.start && before.gap.start <= free.gap.start =>
                {
                    // The usual case: what was between two gaps is free now. The lower one takes it all.
                    let joined = joined.joined(before);
                    node(nodes, leaf).put(at, joined);
                    self.remove(nodes, spares, joined.gap.len);
                    return Ok(joined);
                }
                Before::InLeaf(_, _, before) | Before::Elsewhere(before)
                    if before.gap.end() >= free.gap.start =>
                {
                    self.remove(nodes, spares, 0);
                    free = joined;
                }
                _ => {
                    self.set(nodes, joined);
                    return Ok(joined);
                }
            }
        }
    }

    /// Takes all of `used` out of the gaps; what is left below it is below `by`.
    pub(super) fn close<S: GapNodes>(
        &mut self,
        nodes: &S,
        spares: &mut Spares,
        used: Gap,
        by: Option<Slot>,
    ) -> Result<(), GapError> {
        loop {
            // The last gap that starts before the end of the range: from the top down.
            self.find(nodes, used.end() - 1);
            let found = self.found(nodes).filter(|found| found.gap.end() > used.start);
            let Some(Entry { gap, slot: above }) = found else { return Ok(()) };
            let last = gap.start == used.start;
            match (gap.start < used.start, gap.end() > used.end()) {
                (false, false) => self.remove(nodes, spares, 0),
                (false, true) => {
                    self.set(nodes, Entry::below(Gap::between(used.end(), gap.end()), above));
                }
                (true, false) => {
                    self.set(nodes, Entry::below(Gap::between(gap.start, used.start), by));
                    return Ok(());
                }
                (true, true) => {
                    let (leaf, at) = self.path.at(0);
                    node(nodes, leaf).put(at - 1, Entry::below(Gap::between(gap.start, used.start), by));
                    let rest = Entry::below(Gap::between(used.end(), gap.end()), above);
                    return self.insert(nodes, spares, rest, gap.len);
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    /// The gap that was found.
    fn found<S: GapNodes>(&self, nodes: &S) -> Option<Entry> {
        let (leaf, at) = self.path.at(0);
        Some(node(nodes, leaf).entry(at.checked_sub(1)?))
    }

    /// The gap before `entry`, which was found.
    fn before<S: GapNodes>(&mut self, nodes: &S, entry: Entry) -> Before {
        match self.path.at(0) {
            (leaf, at @ 2..) => Before::InLeaf(leaf, at - 2, node(nodes, leaf).entry(at - 2)),
            _ => {
                let Some(end) = entry.gap.start.checked_sub(1) else { return Before::None };
                self.find(nodes, end);
                let below = self.found(nodes);
                self.find(nodes, entry.gap.start);
                below.map_or(Before::None, Before::Elsewhere)
            }
        }
    }

    /// Changes the gap that was found, in place. It must stay between its neighbours.
    fn set<S: GapNodes>(&mut self, nodes: &S, entry: Entry) {
        let (leaf, at) = self.path.at(0);
        let leaf = node(nodes, leaf);
        let lost = leaf.gap(at - 1).len;
        leaf.put(at - 1, entry);
        self.refresh(nodes, 1, lost, entry.gap.len);
    }

    /// Puts a gap after the one that was found. That one may have shrunk from a length of `lost`.
    fn insert<S: GapNodes>(
        &mut self,
        nodes: &S,
        spares: &mut Spares,
        new: Entry,
        lost: u64,
    ) -> Result<(), GapError> {
        let levels = 0..=usize::from(self.height);
        let full = levels.take_while(|&level| node(nodes, self.path.at(level).0).count() == FANOUT).count();
        let root_splits = full > usize::from(self.height);
        if spares.count() < full as u32 + u32::from(root_splits)
            || (root_splits && usize::from(self.height) == MAX_HEIGHT)
        {
            return Err(GapError::NoNodes);
        }
        let (mut entry, mut at) = (new, self.path.at(0).1);
        self.path.set_leads(full == 0);
        for level in 0..full {
            let (slot, _) = self.path.at(level);
            let right = spares.take(nodes)?;
            split(nodes, slot, right, at, entry);
            entry = Entry::inner(right, node(nodes, right));
            if level == usize::from(self.height) {
                let root = spares.take(nodes)?;
                node(nodes, root).push(Entry::inner(slot, node(nodes, slot)));
                node(nodes, root).push(entry);
                (self.root, self.height) = (root, self.height + 1);
                self.gaps += 1;
                return Ok(());
            }
            let (parent, index) = self.path.at(level + 1);
            node(nodes, parent).set_gap(index, node(nodes, slot).summary());
            at = index + 1;
        }
        let into = node(nodes, self.path.at(full).0);
        // A split has moved entries out of a summary, too: that is as if the largest was lost.
        let lost = if full == 0 { lost } else { u64::MAX };
        into.insert(at, entry);
        self.refresh(nodes, full + 1, lost, new.gap.len);
        self.gaps += 1;
        Ok(())
    }

    /// Takes away the gap that was found; another of its leaf may have grown to `gained`. Nodes that become empty or
    /// small go to the spares.
    fn remove<S: GapNodes>(&mut self, nodes: &S, spares: &mut Spares, gained: u64) {
        self.gaps -= 1;
        let (mut level, mut at) = (0, self.path.at(0).1 - 1);
        loop {
            let (slot, _) = self.path.at(level);
            let lost = if level == 0 { node(nodes, slot).gap(at).len } else { u64::MAX };
            node(nodes, slot).remove(at);
            if level == usize::from(self.height) {
                break self.lower_root(nodes, spares);
            }
            let (parent, index) = self.path.at(level + 1);
            match merge(nodes, slot, parent, index) {
                None => break self.refresh(nodes, level + 1, lost, gained),
                Some((gone, index)) => {
                    self.path.set_leads(false);
                    spares.put(nodes, gone);
                    at = index;
                }
            }
            level += 1;
        }
    }

    /// Drops the root while it has but one child.
    fn lower_root<S: GapNodes>(&mut self, nodes: &S, spares: &mut Spares) {
        while self.height > 0 && node(nodes, self.root).count() == 1 {
            let child = node(nodes, self.root).child(0);
            self.path.set_leads(false);
            spares.put(nodes, self.root);
            (self.root, self.height) = (child, self.height - 1);
        }
    }

    /// Brings the summaries along `path` up to date, from the one kept at `level`, after the node below it has lost an
    /// entry of one length and gained one of another.
    fn refresh<S: GapNodes>(&self, nodes: &S, level: usize, mut lost: u64, mut gained: u64) {
        if lost <= gained {
            return self.raise(nodes, level, gained);
        }
        for level in level..usize::from(self.height) + 1 {
            let (child, parent, index) = self.step(nodes, level);
            let kept = parent.gap(index);
            let len = if lost < kept.len { kept.len.max(gained) } else { child.largest() };
            let summary = Gap { start: child.start(0), len };
            if summary == kept {
                return;
            }
            parent.set_gap(index, summary);
            (lost, gained) = (kept.len, len);
        }
    }

    /// The same after nothing has become shorter. Which summaries change is anybody's guess, so all are written.
    fn raise<S: GapNodes>(&self, nodes: &S, level: usize, gained: u64) {
        for level in level..usize::from(self.height) + 1 {
            let (child, parent, index) = self.step(nodes, level);
            let len = parent.gap(index).len.max(gained);
            parent.set_gap(index, Gap { start: child.start(0), len });
        }
    }

    /// A step of the way: the node below `level`, the one at it, and where that keeps the summary of the other.
    #[inline]
    fn step<'s, S: GapNodes>(&self, nodes: &'s S, level: usize) -> (&'s GapNode, &'s GapNode, usize) {
        let ((child, _), (parent, index)) = (self.path.at(level - 1), self.path.at(level));
        (node(nodes, child), node(nodes, parent), index)
    }
}

/// The gap before another.
enum Before {
    /// In the same leaf, at this entry.
    InLeaf(Slot, usize, Entry),
    Elsewhere(Entry),
    None,
}

/// Puts `entry` at `at` of a full node, whose upper half goes to `right`.
fn split<S: GapNodes>(nodes: &S, slot: Slot, right: Slot, at: usize, entry: Entry) {
    const HALF: usize = FANOUT.div_ceil(2);
    let (left, right) = (node(nodes, slot), node(nodes, right));
    left.move_to(right, HALF);
    if at <= HALF { left.insert(at, entry) } else { right.insert(at - HALF, entry) }
}

/// Joins a node that has lost an entry with a neighbour under the same parent, if it is empty or both are small. Answers the
/// node that is gone and its entry in the parent, which is still there.
fn merge<S: GapNodes>(nodes: &S, slot: Slot, parent: Slot, index: usize) -> Option<(Slot, usize)> {
    let (this, parent) = (node(nodes, slot), node(nodes, parent));
    match this.count() {
        0 => return Some((slot, index)),
        MERGE_AT.. => return None,
        _ => {}
    }
    let small = |left: Slot, right: Slot| node(nodes, left).count() + node(nodes, right).count() <= MERGE_AT;
    let join = |left: Slot, right: Slot, index: usize| {
        node(nodes, right).move_to(node(nodes, left), 0);
        parent.set_gap(index, node(nodes, left).summary());
        (right, index + 1)
    };
    if index + 1 < parent.count() && small(slot, parent.child(index + 1)) {
        return Some(join(slot, parent.child(index + 1), index));
    }
    if index > 0 && small(parent.child(index - 1), slot) {
        return Some(join(parent.child(index - 1), slot, index - 1));
    }
    None
}
