//! The gap index: where in an address space there is room, in O(log n).
//!
//! The free ranges of an address space (its *gaps*) are kept in a B+tree, in which each child comes with the length of its
//! largest gap. The highest gap that is large enough is found by going down the last child that has one.
//!
//! ```text
//!                    [ start 0, largest 9 | start 40, largest 4 ]
//!                       /                              \
//!    [ 0..3 | 7..16 | 20..22 ]              [ 40..44 | 51..52 ]
//! ```
//!
//! - The index is an accelerator and never the truth: it is built from the VMAs when an address space has
//!   [`BUILD_AT`] of them and somebody looks for room, can be deleted at any time, and answers the same with and without.
//! - Gaps are kept raw. What else keeps a range from use (the guard below a stack, alignment, huge pages) is asked of the
//!   caller, gap by gap, when looking for room.
//! - Nodes come from a [`GapNodes`] store by number. [`GapIndex::reserve`] takes what the edits of a call can need at worst, so
//!   that nothing fails after the first change. An edit that has no node left deletes the index, which is then built anew.
//!
//! # Locking
//! None inside. Edits take `&mut`; the address space's lock is held for writing.

mod check;
mod edit;
mod fit;
mod node;
mod tree;

#[cfg(test)]
mod tests;

pub use check::GapFault;
pub use fit::{Candidate, Fit};
pub use node::{GapNode, GapNodes};

use crate::addr::{VirtAddr, VirtRange};
use crate::error::Errno;
use node::Spares;
use tree::GapTree;

/// How many VMAs make an index worth its upkeep. Below it, a walk along the VMA list is as fast.
pub const BUILD_AT: usize = 48;

/// Why the index could not be made ready. It is as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GapError {
    /// The store has no node left.
    NoNodes,
}

impl GapError {
    /// The Linux error number of this cause.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NoNodes => Errno::ENOMEM,
        }
    }
}

impl core::fmt::Display for GapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoNodes => "no node left for the gap index",
        })
    }
}

impl core::error::Error for GapError {}

/// The free ranges of an address space, indexed by address and by size. Dropping it gives its nodes back.
///
/// # Linux
/// Does what `rb_subtree_gap` in `vm_area_struct` did for `unmapped_area_topdown` (`mm/mmap.c`, v6.0), beside the VMA tree instead of
/// inside it.
pub struct GapIndex<S: GapNodes> {
    nodes: S,
    space: VirtRange,
    tree: Option<GapTree>,
    spares: Spares,
}

impl<S: GapNodes> GapIndex<S> {
    /// An index of `space` that is not built. Ranges outside `space` are never free. Windows that are all of `space` are searched
    /// fastest, so it should end where top-down searches begin.
    pub const fn new(nodes: S, space: VirtRange) -> Self {
        Self { nodes, space, tree: None, spares: Spares::new() }
    }

    /// The addresses that it is about.
    pub const fn space(&self) -> VirtRange {
        self.space
    }

    /// Whether the index is built, so that looking for room takes O(log n).
    pub const fn is_built(&self) -> bool {
        self.tree.is_some()
    }

    /// Builds the index anew. `vmas` yields what is in use, ascending and disjoint. O(n).
    ///
    /// # Errors
    /// `NoNodes` if the store has too few; the index is then not built.
    pub fn build(&mut self, vmas: impl Iterator<Item = VirtRange>) -> Result<(), GapError> {
        self.clear();
        self.tree = Some(GapTree::build(&self.nodes, fit::gaps_between(self.space, vmas))?);
        Ok(())
    }

    /// Deletes the index and gives all nodes back.
    pub fn clear(&mut self) {
        if let Some(tree) = self.tree.take() {
            tree.give_back(&self.nodes);
        }
        self.trim(0);
    }

    /// Takes the nodes that `edits` calls of [`Self::open`] and [`Self::close`] need at worst, so that they keep the index.
    ///
    /// # Errors
    /// `NoNodes` if the store has too few. What was taken is kept for the next time.
    pub fn reserve(&mut self, edits: u32) -> Result<(), GapError> {
        let Some(tree) = &self.tree else { return Ok(()) };
        self.spares.fill(&self.nodes, tree.nodes_for(edits))
    }

    /// Gives back the nodes that are not in use, except what `edits` edits need at worst.
    pub fn trim(&mut self, edits: u32) {
        let keep = self.tree.as_ref().map_or(0, |tree| tree.nodes_for(edits));
        self.spares.shrink(&self.nodes, keep);
    }

    /// Notes that `range` is free now, all of it, whatever was before.
    pub fn open(&mut self, range: VirtRange) {
        let Some(range) = intersection(range, self.space) else { return };
        self.edit(|tree, nodes, spares| tree.open(nodes, spares, range));
    }

    /// Notes that `range` is in use now, all of it, whatever was before.
    pub fn close(&mut self, range: VirtRange) {
        if !range.is_empty() {
            self.edit(|tree, nodes, spares| tree.close(nodes, spares, range));
        }
    }

    /// Looks for the highest gap with room, gap by gap from the top: every gap of which at least `fit` bytes lie in the
    /// window is offered to `accept`, until that makes an address of one.
    ///
    /// `vmas` yields what is in use from the highest down; it is asked only while the index is not built.
    ///
    /// # Linux
    /// `unmapped_area_topdown` in `mm/mmap.c` (v6.0).
    #[doc(alias = "unmapped_area_topdown")]
    pub fn highest_fit(
        &self,
        fit: Fit,
        vmas: impl Iterator<Item = VirtRange>,
        mut accept: impl FnMut(Candidate) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        match &self.tree {
            Some(tree) => tree.highest(&self.nodes, self.space, fit, &mut accept),
            None => fit::gaps_below(self.space, vmas).find_map(|gap| fit.offer(gap, &mut accept)),
        }
    }

    /// Looks for the lowest gap with room, from the bottom, as [`Self::highest_fit`] does from the top. `vmas` ascends.
    ///
    /// # Linux
    /// `unmapped_area` in `mm/mmap.c` (v6.0).
    #[doc(alias = "unmapped_area")]
    pub fn lowest_fit(
        &self,
        fit: Fit,
        vmas: impl Iterator<Item = VirtRange>,
        mut accept: impl FnMut(Candidate) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        match &self.tree {
            Some(tree) => tree.lowest(&self.nodes, self.space, fit, &mut accept),
            None => fit::gaps_between(self.space, vmas).find_map(|gap| fit.offer(gap, &mut accept)),
        }
    }

    /// Verifies the order of the gaps, every largest length, the depth and the counts from scratch, and that the gaps are
    /// exactly what `vmas`, ascending, leave free. O(n).
    ///
    /// # Errors
    /// The first fault found.
    pub fn check(&self, vmas: impl Iterator<Item = VirtRange>) -> Result<(), GapFault> {
        self.spares.check(&self.nodes)?;
        match &self.tree {
            Some(tree) => tree.check(&self.nodes, fit::gaps_between(self.space, vmas)),
            None => Ok(()),
        }
    }

    /// Edits the tree, if there is one; deletes it if the edit ran out of nodes half-way.
    fn edit(&mut self, edit: impl FnOnce(&mut GapTree, &S, &mut Spares) -> Result<(), GapError>) {
        let Some(tree) = &mut self.tree else { return };
        if edit(tree, &self.nodes, &mut self.spares).is_err() {
            self.clear();
        }
    }
}

impl<S: GapNodes> Drop for GapIndex<S> {
    fn drop(&mut self) {
        self.clear();
    }
}

impl<S: GapNodes> core::fmt::Debug for GapIndex<S> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GapIndex")
            .field("space", &self.space)
            .field("tree", &self.tree)
            .finish_non_exhaustive()
    }
}

/// What two ranges share, unless that is nothing.
fn intersection(a: VirtRange, b: VirtRange) -> Option<VirtRange> {
    let shared = VirtRange::new(a.start().max(b.start()), a.end().min(b.end()))?;
    if shared.is_empty() { None } else { Some(shared) }
}
