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
//! - A gap comes with a guess at what is above it, so that who takes room there need not look for his neighbours.
//! - What lies above the *border*, where top-down searches begin, is kept in a tree of its own, so that they do not come by it; and the gap that was found last is kept
//!   as long as no higher one of its size comes to be.
//! - Nodes come from a [`GapNodes`] store by number. [`GapIndex::reserve`] takes what the edits of a call can need at worst, so
//!   that nothing fails after the first change. An edit that has no node left deletes the index, which is then built anew.
//!
//! # Locking
//! None inside. Edits take `&mut`; the address space's lock is held for writing.

mod check;
mod edit;
mod fit;
mod memo;
mod node;
mod tree;

#[cfg(test)]
mod tests;

pub use check::GapFault;
pub use fit::{Candidate, Fit};
pub use node::{GapNode, GapNodes};

use crate::addr::{VirtAddr, VirtRange};
use crate::collections::Slot;
use crate::error::Errno;
use fit::{End, Search};
use memo::Memo;
use node::{Entry, Gap, Spares};
use tree::GapTree;

/// How many VMAs make an index worth its upkeep. Below it, a walk along the VMA list is as fast.
pub const BUILD_AT: usize = 48;

/// How many nodes beyond those that a change may need stay with an index, so that not each change goes to the store.
const SLACK: u32 = 16;

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

/// A range that is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Used {
    /// Its addresses.
    pub range: VirtRange,
    /// Who has it, for whoever finds room below it.
    pub slot: Option<Slot>,
}

impl From<VirtRange> for Used {
    fn from(range: VirtRange) -> Self {
        Self { range, slot: None }
    }
}

/// A range that is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Free {
    /// Its addresses.
    pub range: VirtRange,
    /// Who has what begins at its end, if that is known: see [`Candidate::above`].
    pub above: Option<Slot>,
}

impl Free {
    /// Both, of which the second begins where this one ends.
    fn with(self, beyond: Self) -> Self {
        let range = VirtRange::new(self.range.start(), beyond.range.end());
        Self { range: range.unwrap_or(self.range), ..beyond }
    }
}

impl From<VirtRange> for Free {
    fn from(range: VirtRange) -> Self {
        Self { range, above: None }
    }
}

/// The free ranges of an address space, indexed by address and by size. Dropping it gives its nodes back.
///
/// # Linux
/// Does what `rb_subtree_gap` in `vm_area_struct` did for `unmapped_area_topdown` (`mm/mmap.c`, v6.0), beside the VMA tree instead of
/// inside it.
pub struct GapIndex<S: GapNodes> {
    nodes: S,
    space: VirtRange,
    border: VirtAddr,
    trees: Option<Trees>,
    memo: Option<Memo>,
    spares: Spares,
}

/// The gaps below the border and those above it, if anything is. One that lies across it is in both, in part.
#[derive(Debug)]
struct Trees {
    below: GapTree,
    above: Option<GapTree>,
}

impl<S: GapNodes> GapIndex<S> {
    /// An index of `space` that is not built. Ranges outside `space` are never free.
    pub const fn new(nodes: S, space: VirtRange) -> Self {
        Self { nodes, space, border: space.end(), trees: None, memo: None, spares: Spares::new() }
    }

    /// The addresses that it is about.
    pub const fn space(&self) -> VirtRange {
        self.space
    }

    /// Says where searches from the top begin, which are fastest from there: at the end of the space at first. An index that was built for another
    /// border is deleted.
    ///
    /// # Linux
    /// `mmap_base` in `mm_struct`.
    pub fn set_border(&mut self, border: VirtAddr) {
        let border = border.clamp(self.space.start(), self.space.end());
        if self.border != border {
            self.clear();
            self.border = border;
        }
    }

    /// Whether the index is built, so that looking for room takes O(log n).
    pub const fn is_built(&self) -> bool {
        self.trees.is_some()
    }

    /// Builds the index anew. `vmas` yields what is in use, ascending and disjoint. O(n).
    ///
    /// # Errors
    /// `NoNodes` if the store has too few; the index is then not built.
    pub fn build(&mut self, vmas: impl Iterator<Item = impl Into<Used>>) -> Result<(), GapError> {
        self.clear();
        let (border, mut rest) = (self.border, None);
        let mut gaps = fit::gaps_between(self.space, vmas);
        let below = GapTree::build(&self.nodes, below(border, &mut gaps, &mut rest))?;
        let mut trees = Trees { below, above: None };
        if border < self.space.end() {
            match GapTree::build(&self.nodes, rest.into_iter().chain(gaps.map(Entry::leaf))) {
                Ok(above) => trees.above = Some(above),
                Err(error) => {
                    trees.give_back(&self.nodes);
                    return Err(error);
                }
            }
        }
        self.trees = Some(trees);
        Ok(())
    }

    /// Deletes the index and gives all nodes back.
    pub fn clear(&mut self) {
        self.memo = None;
        if let Some(trees) = self.trees.take() {
            trees.give_back(&self.nodes);
        }
        self.trim(0);
    }

    /// Takes the nodes that `edits` calls of [`Self::open`] and [`Self::close`] need at worst, so that they keep the index. Many more than these,
    /// which earlier edits have left, go back to the store: others need them.
    ///
    /// # Errors
    /// `NoNodes` if the store has too few. What was taken is kept for the next time.
    #[inline]
    pub fn reserve(&mut self, edits: u32) -> Result<(), GapError> {
        let needed = self.nodes_for(edits);
        if self.spares.count() > needed.saturating_add(SLACK) {
            self.spares.shrink(&self.nodes, needed);
        }
        self.spares.fill(&self.nodes, needed)
    }

    /// Gives back the nodes that are not in use, except what `edits` edits need at worst.
    pub fn trim(&mut self, edits: u32) {
        let keep = self.nodes_for(edits);
        self.spares.shrink(&self.nodes, keep);
    }

    /// How many nodes so many edits need at worst.
    #[inline]
    fn nodes_for(&self, edits: u32) -> u32 {
        let Some(trees) = &self.trees else { return 0 };
        let above = trees.above.as_ref().map_or(0, |above| above.nodes_for(edits));
        trees.below.nodes_for(edits).saturating_add(above)
    }

    /// Notes that a range is free now, all of it, whatever was before.
    pub fn open(&mut self, free: impl Into<Free>) {
        let free: Free = free.into();
        let Some(range) = intersection(free.range, self.space) else { return };
        let (below, above) = parts(self.border, range);
        self.edit(|trees, nodes, spares, memo| {
            if let Some((above, tree)) = above.zip(trees.above.as_mut()) {
                tree.open(nodes, spares, Entry::below(above, free.above))?;
            }
            if let Some(below) = below {
                let slot = free.above.filter(|_| above.is_none());
                let opened = trees.below.open(nodes, spares, Entry::below(below, slot))?;
                if let Some(memo) = memo {
                    memo.open(opened);
                }
            }
            Ok(())
        });
    }

    /// Notes that a range is in use now, all of it, whatever was before.
    pub fn close(&mut self, used: impl Into<Used>) {
        let Used { range, slot } = used.into();
        let Some(range) = intersection(range, self.space) else { return };
        let (below, above) = parts(self.border, range);
        self.edit(|trees, nodes, spares, memo| {
            if let Some((above, tree)) = above.zip(trees.above.as_mut()) {
                tree.close(nodes, spares, above, slot)?;
            }
            if let Some(below) = below {
                trees.below.close(nodes, spares, below, slot)?;
                *memo = memo.and_then(|memo| memo.closed(below, slot));
            }
            Ok(())
        });
    }

    /// The last gap that starts at or before `addr`, if that and the border are known: what is above it begins at its end, so
    /// it is at `addr` or not far below.
    #[inline]
    pub fn up_to(&mut self, addr: VirtAddr) -> Option<Free> {
        let trees = self.trees.as_mut().filter(|_| addr < self.border)?;
        trees.below.find(&self.nodes, addr.get());
        trees.below.found(&self.nodes).map(Entry::free)
    }

    /// Looks for the highest gap with room, gap by gap from the top: every gap of which at least `fit` bytes lie in the
    /// window is offered to `accept`, until that makes an address of one.
    ///
    /// `vmas` yields what is in use from the highest down; it is asked only while the index is not built.
    ///
    /// # Linux
    /// `unmapped_area_topdown` in `mm/mmap.c` (v6.0). That the search begins at what was found last, `free_area_cache` and `cached_hole_size` of 2.6,
    /// which did not see what had become free above.
    #[doc(alias = "unmapped_area_topdown")]
    #[doc(alias = "free_area_cache")]
    pub fn highest_fit(
        &mut self,
        fit: Fit,
        vmas: impl Iterator<Item = impl Into<Used>>,
        mut accept: impl FnMut(Candidate) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        let Some(trees) = &mut self.trees else {
            return fit::gaps_below(self.space, vmas).find_map(|gap| fit.offer(gap, &mut accept));
        };
        let end = fit.window().end();
        if end > self.border {
            return self.fit_across(fit, End::Top, &mut accept);
        }
        if end != self.border {
            let search = trees.search_below(&self.nodes, self.space, self.border, fit, End::Top);
            return trees.below.search(&self.nodes, search, None, &mut accept);
        }
        let known = self.memo.filter(|memo| memo.answers(fit.bytes())).map(Memo::entry);
        let first = known.or_else(|| trees.below.highest(&self.nodes, fit.bytes()))?;
        // Nearly all searches end here.
        let found = match first.gap.end() < self.border.get() {
            true => fit.offer(first.free(), &mut accept),
            false => fit.offer(trees.whole(&self.nodes, self.border, first), &mut accept),
        };
        if let Some(addr) = found {
            if known.is_none() {
                self.memo = Some(Memo::new(fit.bytes(), first));
            }
            return Some(addr);
        }
        let search = trees.search_below(&self.nodes, self.space, self.border, fit, End::Top);
        trees.below.search(&self.nodes, search, Some(first), &mut accept)
    }

    /// Looks for the lowest gap with room, from the bottom, as [`Self::highest_fit`] does from the top. `vmas` ascends.
    ///
    /// # Linux
    /// `unmapped_area` in `mm/mmap.c` (v6.0).
    #[doc(alias = "unmapped_area")]
    pub fn lowest_fit(
        &mut self,
        fit: Fit,
        vmas: impl Iterator<Item = impl Into<Used>>,
        mut accept: impl FnMut(Candidate) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        let Some(trees) = &mut self.trees else {
            return fit::gaps_between(self.space, vmas).find_map(|gap| fit.offer(gap, &mut accept));
        };
        if fit.window().end() > self.border {
            return self.fit_across(fit, End::Bottom, &mut accept);
        }
        let search = trees.search_below(&self.nodes, self.space, self.border, fit, End::Bottom);
        trees.below.search(&self.nodes, search, None, &mut accept)
    }

    /// Looks for room on both sides of the border: above it, in the gap that lies across it or touches it, and below.
    fn fit_across(
        &mut self,
        fit: Fit,
        from: End,
        accept: &mut impl FnMut(Candidate) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        let (trees, nodes) = (self.trees.as_mut()?, &self.nodes);
        let across = trees.across(nodes, self.border);
        let within = |tree: Option<&mut GapTree>, range: Option<VirtRange>, accept: &mut _| {
            let (tree, space) = tree.zip(range)?;
            let fit = fit.within(intersection(fit.window(), space)?);
            tree.search(nodes, Search { fit, from, space, beyond: None }, None, accept)
        };
        let below = VirtRange::new(self.space.start(), across.range.start());
        let above = VirtRange::new(across.range.end(), self.space.end());
        match from {
            End::Top => within(trees.above.as_mut(), above, accept)
                .or_else(|| fit.offer(across, accept))
                .or_else(|| within(Some(&mut trees.below), below, accept)),
            End::Bottom => within(Some(&mut trees.below), below, accept)
                .or_else(|| fit.offer(across, accept))
                .or_else(|| within(trees.above.as_mut(), above, accept)),
        }
    }

    /// Verifies the order of the gaps, every largest length, the depth and the counts from scratch, that the gaps are
    /// exactly what `vmas`, ascending, leave free, and that what was found last is the highest gap of its size. O(n).
    ///
    /// # Errors
    /// The first fault found.
    pub fn check(&self, vmas: impl Iterator<Item = impl Into<Used>>) -> Result<(), GapFault> {
        self.spares.check(&self.nodes)?;
        let Some(Trees { below: lower, above: upper }) = &self.trees else { return Ok(()) };
        let mut rest = None;
        let mut gaps = fit::gaps_between(self.space, vmas);
        let mut highest = None;
        let bytes = self.memo.map_or(u64::MAX, Memo::bytes);
        let free = below(self.border, &mut gaps, &mut rest).map(|free| free.gap).inspect(|gap| {
            if gap.len >= bytes {
                highest = Some(*gap);
            }
        });
        lower.check(&self.nodes, free)?;
        if let Some(upper) = upper {
            upper.check(&self.nodes, rest.into_iter().chain(gaps.map(Entry::leaf)).map(|free| free.gap))?;
        }
        match self.memo {
            Some(memo) if highest != Some(memo.gap()) => Err(GapFault::Memo { start: memo.gap().start }),
            _ => Ok(()),
        }
    }

    /// Edits the trees, if there are any; deletes them if the edit ran out of nodes half-way.
    fn edit(
        &mut self,
        edit: impl FnOnce(&mut Trees, &S, &mut Spares, &mut Option<Memo>) -> Result<(), GapError>,
    ) {
        let Some(trees) = &mut self.trees else { return };
        if edit(trees, &self.nodes, &mut self.spares, &mut self.memo).is_err() {
            self.clear();
        }
    }
}

impl Trees {
    /// A search among the gaps below the border.
    #[inline]
    fn search_below<S: GapNodes>(
        &self,
        nodes: &S,
        space: VirtRange,
        border: VirtAddr,
        fit: Fit,
        from: End,
    ) -> Search {
        let space = VirtRange::new(space.start(), border).unwrap_or(space);
        Search { fit, from, space, beyond: self.beyond(nodes, border) }
    }

    /// A gap below the border that touches it, with what lies beyond.
    #[cold]
    fn whole<S: GapNodes>(&self, nodes: &S, border: VirtAddr, entry: Entry) -> Free {
        let free = entry.free();
        self.beyond(nodes, border).map_or(free, |beyond| free.with(beyond))
    }

    /// The gap above the border, if it begins there.
    #[inline]
    fn beyond<S: GapNodes>(&self, nodes: &S, border: VirtAddr) -> Option<Free> {
        let first = self.above.as_ref()?.first(nodes)?.free();
        Some(first).filter(|free| free.range.start() == border)
    }

    fn give_back<S: GapNodes>(self, nodes: &S) {
        self.below.give_back(nodes);
        if let Some(above) = self.above {
            above.give_back(nodes);
        }
    }

    /// The gap that lies across the border or touches it, empty if there is none.
    fn across<S: GapNodes>(&self, nodes: &S, border: VirtAddr) -> Free {
        let below = self.below.last(nodes).map(Entry::free).filter(|free| free.range.end() == border);
        let above = self.beyond(nodes, border);
        let start = below.map_or(border, |below| below.range.start());
        let end = above.map_or(border, |above| above.range.end());
        Free {
            range: VirtRange::new(start, end).unwrap_or_default(),
            above: above.or(below).and_then(|free| free.above),
        }
    }
}

/// The parts of a range below and above the border.
#[inline]
fn parts(border: VirtAddr, range: VirtRange) -> (Option<Gap>, Option<Gap>) {
    let (start, end, border) = (range.start().get(), range.end().get(), border.get());
    let part = |start, end| if start < end { Some(Gap::between(start, end)) } else { None };
    (part(start, end.min(border)), part(start.max(border), end))
}

/// Of gaps, which ascend, those below the border; the first part of one above goes into `rest`.
fn below(
    border: VirtAddr,
    gaps: &mut impl Iterator<Item = Free>,
    rest: &mut Option<Entry>,
) -> impl Iterator<Item = Entry> {
    core::iter::from_fn(move || {
        if rest.is_some() {
            return None;
        }
        let free = gaps.next()?;
        let (below, above) = parts(border, free.range);
        *rest = above.map(|above| Entry::below(above, free.above));
        below.map(|below| Entry::below(below, free.above.filter(|_| above.is_none())))
    })
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
            .field("border", &self.border)
            .field("trees", &self.trees)
            .finish_non_exhaustive()
    }
}

/// What two ranges share, unless that is nothing.
#[inline]
fn intersection(a: VirtRange, b: VirtRange) -> Option<VirtRange> {
    let shared = VirtRange::new(a.start().max(b.start()), a.end().min(b.end()))?;
    if shared.is_empty() { None } else { Some(shared) }
}
