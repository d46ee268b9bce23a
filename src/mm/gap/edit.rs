//! Edits of the tree: gaps grow, shrink, split, merge, come and go.

use super::GapError;
use super::node::{Entry, FANOUT, Gap, GapNodes, Spares, node};
use super::tree::{GapTree, MAX_HEIGHT, Path};
use crate::addr::VirtRange;
use crate::collections::Slot;

/// Neighbours with no more entries than this together become one node. Well below a full node, so that an edit back and
/// forth does not split and merge each time.
const MERGE_AT: usize = 11;

impl GapTree {
    /// Makes all of `range` free: it becomes one gap with all gaps that it overlaps or touches.
    pub(super) fn open<S: GapNodes>(
        &mut self,
        nodes: &S,
        spares: &mut Spares,
        range: VirtRange,
    ) -> Result<(), GapError> {
        let mut free = Gap::of(range);
        loop {
            let path = self.find(nodes, free.end());
            let Some(last) = found(nodes, &path).filter(|last| last.end() >= free.start) else {
                return self.insert(nodes, spares, &path, free, 0);
            };
            let joined = last.joined(free);
            if last.start <= free.start {
                self.set(nodes, &path, joined);
                return Ok(());
            }
            match self.before(nodes, &path, last) {
                Before::InLeaf(leaf, at, before)
                    if before.end() >= free.start && before.start <= free.start =>
                {
                    // The usual case: what was between two gaps is free now. The lower one takes it all.
                    node(nodes, leaf).set_gap(at, before.joined(joined));
                    self.remove(nodes, spares, &path, before.joined(joined).len);
                    return Ok(());
                }
                Before::InLeaf(_, _, before) | Before::Elsewhere(before) if before.end() >= free.start => {
                    self.remove(nodes, spares, &path, 0);
                    free = joined;
                }
                _ => {
                    self.set(nodes, &path, joined);
                    return Ok(());
                }
            }
        }
    }

    /// Takes all of `range` out of the gaps.
    pub(super) fn close<S: GapNodes>(
        &mut self,
        nodes: &S,
        spares: &mut Spares,
        range: VirtRange,
    ) -> Result<(), GapError> {
        let used = Gap::of(range);
        loop {
            // The last gap that starts before the end of the range: from the top down.
            let path = self.find(nodes, used.end() - 1);
            let Some(gap) = found(nodes, &path).filter(|gap| gap.end() > used.start) else { return Ok(()) };
            let last = gap.start == used.start;
            match (gap.start < used.start, gap.end() > used.end()) {
                (false, false) => self.remove(nodes, spares, &path, 0),
                (false, true) => self.set(nodes, &path, Gap::between(used.end(), gap.end())),
                (true, false) => {
                    self.set(nodes, &path, Gap::between(gap.start, used.start));
                    return Ok(());
                }
                (true, true) => {
                    let (leaf, at) = path.at(0);
                    node(nodes, leaf).set_gap(at - 1, Gap::between(gap.start, used.start));
                    return self.insert(nodes, spares, &path, Gap::between(used.end(), gap.end()), gap.len);
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    /// The gap before `gap`, which `path` has found.
    fn before<S: GapNodes>(&self, nodes: &S, path: &Path, gap: Gap) -> Before {
        match path.at(0) {
            (leaf, at @ 2..) => Before::InLeaf(leaf, at - 2, node(nodes, leaf).gap(at - 2)),
            _ => {
                let below = gap.start.checked_sub(1).and_then(|end| found(nodes, &self.find(nodes, end)));
                below.map_or(Before::None, Before::Elsewhere)
            }
        }
    }

    /// Changes the gap that `path` has found, in place. It must stay between its neighbours.
    fn set<S: GapNodes>(&mut self, nodes: &S, path: &Path, gap: Gap) {
        let (leaf, at) = path.at(0);
        let leaf = node(nodes, leaf);
        let lost = leaf.gap(at - 1).len;
        leaf.set_gap(at - 1, gap);
        self.refresh(nodes, path, 1, lost, gap.len);
    }

    /// Puts a gap after the one that `path` has found. That one may have shrunk from a length of `lost`.
    fn insert<S: GapNodes>(
        &mut self,
        nodes: &S,
        spares: &mut Spares,
        path: &Path,
        gap: Gap,
        lost: u64,
    ) -> Result<(), GapError> {
        let levels = 0..=usize::from(self.height);
        let full = levels.take_while(|&level| node(nodes, path.at(level).0).count() == FANOUT).count();
        let root_splits = full > usize::from(self.height);
        if spares.count() < full as u32 + u32::from(root_splits)
            || (root_splits && usize::from(self.height) == MAX_HEIGHT)
        {
            return Err(GapError::NoNodes);
        }
        let (mut entry, mut at) = (Entry::leaf(gap), path.at(0).1);
        for level in 0..full {
            let (slot, _) = path.at(level);
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
            let (parent, index) = path.at(level + 1);
            node(nodes, parent).set_gap(index, node(nodes, slot).summary());
            at = index + 1;
        }
        let into = node(nodes, path.at(full).0);
        // A split has moved entries out of a summary, too: that is as if the largest was lost.
        let lost = if full == 0 { lost } else { u64::MAX };
        into.insert(at, entry);
        self.refresh(nodes, path, full + 1, lost, gap.len);
        self.gaps += 1;
        Ok(())
    }

    /// Takes away the gap that `path` has found; another of its leaf may have grown to `gained`. Nodes that become empty or
    /// small go to the spares.
    fn remove<S: GapNodes>(&mut self, nodes: &S, spares: &mut Spares, path: &Path, gained: u64) {
        self.gaps -= 1;
        let (mut level, mut at) = (0, path.at(0).1 - 1);
        loop {
            let (slot, _) = path.at(level);
            let lost = if level == 0 { node(nodes, slot).gap(at).len } else { u64::MAX };
            node(nodes, slot).remove(at);
            if level == usize::from(self.height) {
                break self.lower_root(nodes, spares);
            }
            let (parent, index) = path.at(level + 1);
            match merge(nodes, slot, parent, index) {
                None => break self.refresh(nodes, path, level + 1, lost, gained),
                Some((gone, index)) => {
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
            spares.put(nodes, self.root);
            (self.root, self.height) = (child, self.height - 1);
        }
    }

    /// Brings the summaries along `path` up to date, from the one kept at `level`, after the node below it has lost an
    /// entry of one length and gained one of another.
    fn refresh<S: GapNodes>(&self, nodes: &S, path: &Path, level: usize, mut lost: u64, mut gained: u64) {
        for level in level..=usize::from(self.height) {
            let ((child, _), (parent, index)) = (path.at(level - 1), path.at(level));
            let (child, parent) = (node(nodes, child), node(nodes, parent));
            let kept = parent.gap(index);
            let len = if gained >= kept.len {
                gained
            } else if lost < kept.len {
                kept.len
            } else {
                child.largest()
            };
            let summary = Gap { start: child.start(0), len };
            if summary == kept {
                return;
            }
            parent.set_gap(index, summary);
            (lost, gained) = (kept.len, len);
        }
    }
}

/// The gap before another.
enum Before {
    /// In the same leaf, at this entry.
    InLeaf(Slot, usize, Gap),
    Elsewhere(Gap),
    None,
}

/// The gap that a path has found.
fn found<S: GapNodes>(nodes: &S, path: &Path) -> Option<Gap> {
    let (leaf, at) = path.at(0);
    Some(node(nodes, leaf).gap(at.checked_sub(1)?))
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
    if this.count() == 0 {
        return Some((slot, index));
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
