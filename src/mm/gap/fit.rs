//! Looking for room: what is asked, and the answer without an index.

use super::node::{Entries, Entry, GapNodes, node};
use super::tree::{GapTree, Path};
use super::{Free, Used, intersection};
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
        free: Free,
        accept: &mut impl FnMut(Candidate) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        let part = intersection(free.range, self.window)?;
        if part.len() < self.bytes { None } else { accept(Candidate { free, part, bytes: self.bytes }) }
    }

    /// The same for another window.
    pub(super) const fn within(self, window: VirtRange) -> Self {
        Self { window, ..self }
    }
}

/// A gap with enough room inside the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    free: Free,
    part: VirtRange,
    bytes: u64,
}

impl Candidate {
    /// The whole gap. A VMA begins at its end, unless the address space ends there.
    #[inline]
    pub const fn gap(self) -> VirtRange {
        self.free.range
    }

    /// What is probably at the end of the gap: what was there when the gap got that end, if anybody said so. It may have moved since, and its slot may be
    /// another's.
    #[inline]
    pub const fn above(self) -> Option<Slot> {
        self.free.above
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
    vmas: impl Iterator<Item = impl Into<Used>>,
) -> impl Iterator<Item = Free> {
    let mut free_from = space.start();
    vmas.map(|vma| Some(vma.into())).chain(core::iter::once(None)).filter_map(move |vma| {
        let (start, end) = vma.map_or((space.end(), space.end()), |vma| (vma.range.start(), vma.range.end()));
        let gap = VirtRange::new(free_from, start.min(space.end()));
        free_from = free_from.max(end);
        let range = gap.filter(|gap| !gap.is_empty())?;
        Some(Free { range, above: vma.and_then(|vma| vma.slot) })
    })
}

/// What `vmas`, descending, leave free of `space`, descending.
pub(super) fn gaps_below(
    space: VirtRange,
    vmas: impl Iterator<Item = impl Into<Used>>,
) -> impl Iterator<Item = Free> {
    let (mut free_to, mut above) = (space.end(), None);
    vmas.map(|vma| Some(vma.into())).chain(core::iter::once(None)).filter_map(move |vma| {
        let (start, end) =
            vma.map_or((space.start(), space.start()), |vma| (vma.range.start(), vma.range.end()));
        let gap = VirtRange::new(end.max(space.start()), free_to);
        free_to = free_to.min(start);
        let above = core::mem::replace(&mut above, vma.and_then(|vma| vma.slot));
        Some(Free { range: gap.filter(|gap| !gap.is_empty())?, above })
    })
}

/// Where looking begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Top,
    Bottom,
}

/// What a search is told besides what fits.
#[derive(Clone, Copy)]
pub(super) struct Search {
    pub(super) fit: Fit,
    pub(super) from: End,
    /// What the tree is about.
    pub(super) space: VirtRange,
    /// The gap above the tree's addresses, if one begins where they end: one that ends there goes on in it.
    pub(super) beyond: Option<Free>,
}

impl GapTree {
    /// The highest gap of at least so many bytes.
    #[inline]
    pub(super) fn highest<S: GapNodes>(&mut self, nodes: &S, bytes: u64) -> Option<Entry> {
        let mut slot = self.root;
        self.path.set_leads(false);
        for below in (0..usize::from(self.height)).rev() {
            let inner = node(nodes, slot);
            let at = inner.last_fitting(bytes)?;
            self.path.note(below + 1, slot, at);
            slot = inner.child(at);
        }
        let leaf = node(nodes, slot);
        let at = leaf.last_fitting(bytes)?;
        self.path.note(0, slot, at + 1);
        self.path.set_leads(true);
        Some(leaf.entry(at))
    }

    /// The gap nearest to where looking begins that `accept` makes an address of, and that is not `refused`.
    pub(super) fn search<S: GapNodes>(
        &mut self,
        nodes: &S,
        search: Search,
        refused: Option<Entry>,
        accept: &mut impl FnMut(Candidate) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        let edges = Edges::of(search.fit.window, search.space);
        let mut look = Look { nodes, path: &mut self.path, search, accept, refused };
        let found = look.below(self.root, self.height, edges);
        self.path.set_leads(found.is_some());
        found
    }
}

/// A search under way.
struct Look<'a, S, F> {
    nodes: &'a S,
    search: Search,
    accept: &'a mut F,
    /// Where the way to what was found is noted.
    path: &'a mut Path,
    /// What was offered already.
    refused: Option<Entry>,
}

impl<S: GapNodes, F: FnMut(Candidate) -> Option<VirtAddr>> Look<'_, S, F> {
    /// Looks below `slot`, a node `level` levels above the leaves that lies wholly inside the window: whatever is long enough there is offered.
    fn inside(&mut self, slot: Slot, level: u8) -> Option<VirtAddr> {
        let node = node(self.nodes, slot);
        let mut fitting = node.fitting(self.search.fit.bytes);
        while let Some(at) = self.next(&mut fitting) {
            let found = match level.checked_sub(1) {
                None => self.offer(node.entry(at)),
                Some(below) => self.inside(node.child(at), below),
            };
            if found.is_some() {
                self.note(level, slot, at);
                return found;
            }
        }
        None
    }

    #[inline]
    fn offer(&mut self, entry: Entry) -> Option<VirtAddr> {
        if self.refused == Some(entry) {
            return None;
        }
        let free = entry.free();
        let beyond = self.search.beyond.filter(|beyond| beyond.range.start() == free.range.end());
        self.search.fit.offer(beyond.map_or(free, |beyond| free.with(beyond)), self.accept)
    }

    /// Notes a step of the way to what was found, for who takes it.
    #[inline]
    const fn note(&mut self, level: u8, slot: Slot, at: usize) {
        self.path.note(level as usize, slot, if level == 0 { at + 1 } else { at });
    }

    /// The entry that is to be looked at next.
    #[inline]
    const fn next(&self, entries: &mut Entries) -> Option<usize> {
        match self.search.from {
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
        let window = self.search.fit.window;
        let (low, high) = (window.start().get(), window.end().get());
        let mut fitting = node.fitting(self.search.fit.bytes);
        while let Some(at) = self.next(&mut fitting) {
            let (start, next) = (node.start(at), node.start_after(at));
            let outside = (edges.high && start >= high) || (edges.low && next <= low);
            if !outside {
                let found = if level == 0 {
                    self.offer(node.entry(at))
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
