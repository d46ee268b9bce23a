//! Looking for room: what is asked, and the answer without an index.

use super::intersection;
use super::node::{Entries, GapNodes, node};
use super::tree::{GapTree, LastPath};
use crate::addr::{VirtAddr, VirtRange};
use crate::collections::Slot;

/// How much room is sought, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fit {
    bytes: u64,
    window: VirtRange,
}

impl Fit {
    /// `bytes` of room inside `window`; `None` for 0 bytes.
    pub const fn new(bytes: u64, window: VirtRange) -> Option<Self> {
        if bytes == 0 { None } else { Some(Self { bytes, window }) }
    }

    /// The length sought, in bytes, never 0.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// Where the room must lie.
    #[inline]
    pub const fn window(self) -> VirtRange {
        self.window
    }

    /// Offers a gap to `accept` if enough of it lies in the window.
    #[inline]
    pub(super) fn offer(
        self,
        gap: VirtRange,
        accept: &mut impl FnMut(Candidate) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        let part = intersection(gap, self.window)?;
        if part.len() < self.bytes { None } else { accept(Candidate { gap, part, bytes: self.bytes }) }
    }
}

/// A gap with enough room inside the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    gap: VirtRange,
    part: VirtRange,
    bytes: u64,
}

impl Candidate {
    /// The whole gap. A VMA begins at its end, unless the address space ends there.
    #[inline]
    pub const fn gap(self) -> VirtRange {
        self.gap
    }

    /// The part inside the window, at least as long as sought.
    #[inline]
    pub const fn part(self) -> VirtRange {
        self.part
    }

    /// The highest address at which what is sought fits.
    #[inline]
    pub fn highest(self) -> Option<VirtAddr> {
        self.part.end().checked_sub(self.bytes)
    }

    /// The lowest address at which what is sought fits.
    #[inline]
    pub const fn lowest(self) -> Option<VirtAddr> {
        Some(self.part.start())
    }

    /// The same candidate without what lies at or above `limit`, if still enough is left: for a guard that belongs to the
    /// VMA at the end of the gap.
    #[inline]
    pub fn below(self, limit: VirtAddr) -> Option<Self> {
        let part = VirtRange::new(self.part.start(), self.part.end().min(limit))?;
        if part.len() < self.bytes { None } else { Some(Self { part, ..self }) }
    }
}

/// What `vmas`, ascending, leave free of `space`, ascending.
pub(super) fn gaps_between(
    space: VirtRange,
    vmas: impl Iterator<Item = VirtRange>,
) -> impl Iterator<Item = VirtRange> {
    let mut free_from = space.start();
    vmas.map(Some).chain(core::iter::once(None)).filter_map(move |vma| {
        let (start, end) = vma.map_or((space.end(), space.end()), |vma| (vma.start(), vma.end()));
        let gap = VirtRange::new(free_from, start.min(space.end()));
        free_from = free_from.max(end);
        gap.filter(|gap| !gap.is_empty())
    })
}

/// What `vmas`, descending, leave free of `space`, descending.
pub(super) fn gaps_below(
    space: VirtRange,
    vmas: impl Iterator<Item = VirtRange>,
) -> impl Iterator<Item = VirtRange> {
    let mut free_to = space.end();
    vmas.map(Some).chain(core::iter::once(None)).filter_map(move |vma| {
        let (start, end) = vma.map_or((space.start(), space.start()), |vma| (vma.start(), vma.end()));
        let gap = VirtRange::new(end.max(space.start()), free_to);
        free_to = free_to.min(start);
        gap.filter(|gap| !gap.is_empty())
    })
}

impl GapTree {
    /// The highest gap that `accept` makes an address of.
    pub(super) fn highest<S: GapNodes>(
        &self,
        nodes: &S,
        space: VirtRange,
        fit: Fit,
        accept: &mut impl FnMut(Candidate) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        let mut look = Look { nodes, last: &self.last, fit, accept, from: End::Top };
        look.below(self.root, self.height, Edges::of(fit.window, space))
    }

    /// The lowest gap that `accept` makes an address of.
    pub(super) fn lowest<S: GapNodes>(
        &self,
        nodes: &S,
        space: VirtRange,
        fit: Fit,
        accept: &mut impl FnMut(Candidate) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        let mut look = Look { nodes, last: &self.last, fit, accept, from: End::Bottom };
        look.below(self.root, self.height, Edges::of(fit.window, space))
    }
}

/// Where looking begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Top,
    Bottom,
}

/// A search under way.
struct Look<'a, S, F> {
    nodes: &'a S,
    fit: Fit,
    accept: &'a mut F,
    from: End,
    /// Where the way to what was found is noted.
    last: &'a LastPath,
}

impl<S: GapNodes, F: FnMut(Candidate) -> Option<VirtAddr>> Look<'_, S, F> {
    /// Looks below `slot`, a node `level` levels above the leaves that lies wholly inside the window: whatever is long enough there is offered.
    fn inside(&mut self, slot: Slot, level: u8) -> Option<VirtAddr> {
        let node = node(self.nodes, slot);
        let mut fitting = node.fitting(self.fit.bytes);
        while let Some(at) = self.next(&mut fitting) {
            let found = match level.checked_sub(1) {
                None => self.fit.offer(node.gap(at).range(), self.accept),
                Some(below) => self.inside(node.child(at), below),
            };
            if found.is_some() {
                self.note(level, slot, at);
                return found;
            }
        }
        None
    }

    /// Notes a step of the way to what was found, for who takes it.
    #[inline]
    fn note(&self, level: u8, slot: Slot, at: usize) {
        self.last.note(level.into(), slot, if level == 0 { at + 1 } else { at });
    }

    /// The entry that is to be looked at next.
    #[inline]
    const fn next(&self, entries: &mut Entries) -> Option<usize> {
        match self.from {
            End::Top => entries.pop_last(),
            End::Bottom => entries.pop_first(),
        }
    }

    /// Looks below `slot`, a node `level` levels above the leaves. A child that lies inside the window and has a gap large
    /// enough holds a candidate for sure, so only the children at the window's edges can be looked into in vain.
    fn below(&mut self, slot: Slot, level: u8, edges: Edges) -> Option<VirtAddr> {
        if !edges.low && !edges.high {
            return self.inside(slot, level);
        }
        let node = node(self.nodes, slot);
        let (low, high) = (self.fit.window.start().get(), self.fit.window.end().get());
        let mut fitting = node.fitting(self.fit.bytes);
        while let Some(at) = self.next(&mut fitting) {
            let (start, next) = (node.start(at), node.start_after(at));
            let outside = (edges.high && start >= high) || (edges.low && next <= low);
            if !outside {
                let found = if level == 0 {
                    self.fit.offer(node.gap(at).range(), self.accept)
                } else {
                    let edges = Edges { low: edges.low && start < low, high: edges.high && next >= high };
                    self.below(node.child(at), level - 1, edges)
                };
                if found.is_some() {
                    self.note(level, slot, at);
                    return found;
                }
            }
        }
        None
    }
}

/// Which ends of the window a node may reach across.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Edges {
    low: bool,
    high: bool,
}

impl Edges {
    fn of(window: VirtRange, space: VirtRange) -> Self {
        Self { low: window.start() > space.start(), high: window.end() < space.end() }
    }
}
