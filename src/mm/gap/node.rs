//! A node of the gap index, and where nodes come from.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::{Free, GapError, GapFault};
use crate::addr::{VirtAddr, VirtRange};
use crate::collections::{Slot, Slots};

/// Entries of a node: as many as keep it at five cache lines.
pub(super) const FANOUT: usize = 15;

/// Entries that are looked at together.
const GROUP: usize = 5;
/// Where the groups of a node begin.
const GROUPS: [usize; FANOUT / GROUP] = [0, GROUP, 2 * GROUP];

/// A store of nodes. Nodes are shared by number and changed in place, so one store can serve many address spaces.
pub trait GapNodes: Slots<Item = GapNode> {
    /// Hands out a node that nobody else has; `None` if there is none left.
    fn take(&self) -> Option<Slot>;

    /// Takes back a node that [`Self::take`] has handed out.
    fn give(&self, node: Slot);
}

/// A node of a gap index: up to 15 entries in ascending order, each a gap in a leaf, a child elsewhere.
///
/// Unused entries start at the end of the world and have length 0, so that look-ups need not count.
#[repr(align(64))]
pub struct GapNode {
    /// Where the gap starts; elsewhere where the child's first gap starts.
    start: [AtomicU64; FANOUT],
    /// The gap's length; elsewhere the length of the child's largest gap.
    len: [AtomicU64; FANOUT],
    /// The child; in a leaf what is above the gap.
    slot: [AtomicU32; FANOUT],
    count: AtomicU32,
    /// For whoever gives nodes out: the next free one.
    free: AtomicU32,
}

static_assertions::const_assert_eq!(size_of::<GapNode>(), 320);

impl GapNode {
    /// A node without entries.
    pub const fn new() -> Self {
        Self {
            start: [const { AtomicU64::new(u64::MAX) }; FANOUT],
            len: [const { AtomicU64::new(0) }; FANOUT],
            slot: [const { AtomicU32::new(0) }; FANOUT],
            count: AtomicU32::new(0),
            free: AtomicU32::new(0),
        }
    }

    /// The word that a store links free nodes by.
    pub(in crate::mm) const fn free_link(&self) -> &AtomicU32 {
        &self.free
    }

    #[inline]
    pub(super) fn count(&self) -> usize {
        self.count.load(Relaxed) as usize
    }

    #[inline]
    pub(super) fn gap(&self, at: usize) -> Gap {
        Gap { start: self.start[at].load(Relaxed), len: self.len[at].load(Relaxed) }
    }

    #[inline]
    pub(super) fn start(&self, at: usize) -> u64 {
        self.start[at].load(Relaxed)
    }

    /// Where the entry after `at` starts; the end of the world if there is none.
    #[inline]
    pub(super) fn start_after(&self, at: usize) -> u64 {
        self.start.get(at + 1).map_or(u64::MAX, |start| start.load(Relaxed))
    }

    /// Which entries have at least `bytes`. Which those are cannot be guessed, so there is no branch on any: each adds the carry of its comparison.
    #[inline]
    pub(super) fn fitting(&self, bytes: u64) -> Entries {
        let fits = |at: usize| u32::from(self.len[at].load(Relaxed) >= bytes);
        // By groups, so that not each waits for the one before.
        let group = |first: usize| (first..first + GROUP).rev().fold(0, |bits, at| bits + bits + fits(at));
        Entries(group(GROUPS[0]) | group(GROUPS[1]) << GROUPS[1] | group(GROUPS[2]) << GROUPS[2])
    }

    /// The last entry that has at least `bytes`. Not inlined: in a loop, comparisons become branches that cannot be guessed.
    #[inline(never)]
    pub(super) fn last_fitting(&self, bytes: u64) -> Option<usize> {
        let last = |first: usize| {
            let fits = |at: usize| self.len[at].load(Relaxed) >= bytes;
            (first..first + GROUP).fold(0, |found, at| if fits(at) { at + 1 } else { found })
        };
        // By groups, so that not each waits for the one before.
        last(GROUPS[0]).max(last(GROUPS[1])).max(last(GROUPS[2])).checked_sub(1)
    }

    #[inline]
    pub(super) fn child(&self, at: usize) -> Slot {
        match Slot::from_code(self.slot[at].load(Relaxed)) {
            Some(child) => child,
            None => unreachable!("an entry of an inner node has a child"),
        }
    }

    #[inline]
    pub(super) fn entry(&self, at: usize) -> Entry {
        Entry { gap: self.gap(at), slot: Slot::from_code(self.slot[at].load(Relaxed)) }
    }

    /// All entries, first to last.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> {
        (0..self.count().min(FANOUT)).map(|at| self.entry(at))
    }

    /// Whether the unused entries are blank, as look-ups rely on.
    pub(super) fn is_blank_after_count(&self) -> bool {
        self.count() <= FANOUT && (self.count()..FANOUT).all(|at| self.entry(at) == Entry::NONE)
    }

    /// What the parent keeps of this node: the first start and the largest length.
    #[inline]
    pub(super) fn summary(&self) -> Gap {
        Gap { start: self.start(0), len: self.largest() }
    }

    /// The largest length. Not inlined: in a loop, comparisons become branches that cannot be guessed.
    #[inline(never)]
    pub(super) fn largest(&self) -> u64 {
        // By groups, so that not each waits for the one before.
        let largest =
            |first: usize| (first..first + GROUP).fold(0, |max, at| max.max(self.len[at].load(Relaxed)));
        largest(GROUPS[0]).max(largest(GROUPS[1])).max(largest(GROUPS[2]))
    }

    /// How many entries start at or before `addr`: first by groups, then in one, without a branch to guess and with little to wait for.
    #[inline]
    pub(super) fn up_to(&self, addr: u64) -> usize {
        let is_before = |start: &AtomicU64| usize::from(start.load(Relaxed) <= addr);
        let groups = is_before(&self.start[GROUPS[1] - 1]) + is_before(&self.start[GROUPS[2] - 1]);
        let first = GROUP * groups;
        first + self.start[first..first + GROUP].iter().map(is_before).sum::<usize>()
    }

    /// Whether `addr` lies between the start of the first entry and the end of the last gap. Where else it lies is anybody's guess: so this is one comparison.
    #[inline]
    pub(super) fn spans(&self, addr: u64) -> bool {
        let Some(last) = self.count().checked_sub(1) else { return false };
        addr.wrapping_sub(self.start(0)) < self.gap(last).end() - self.start(0)
    }

    pub(super) fn reset(&self) {
        self.truncate(0);
    }

    #[inline]
    pub(super) fn set_gap(&self, at: usize, gap: Gap) {
        self.start[at].store(gap.start, Relaxed);
        self.len[at].store(gap.len, Relaxed);
    }

    pub(super) fn push(&self, entry: Entry) {
        self.insert(self.count(), entry);
    }

    /// Makes room at `at` and puts an entry there. The node must not be full.
    pub(super) fn insert(&self, at: usize, entry: Entry) {
        let count = self.count().min(FANOUT - 1);
        (at..count).rev().for_each(|at| self.put(at + 1, self.entry(at)));
        self.put(at, entry);
        self.count.store(count as u32 + 1, Relaxed);
    }

    pub(super) fn remove(&self, at: usize) {
        let last = self.count().min(FANOUT) - 1;
        (at..last).for_each(|at| self.put(at, self.entry(at + 1)));
        self.put(last, Entry::NONE);
        self.count.store(last as u32, Relaxed);
    }

    /// Moves the entries from `from` on to the end of `other`.
    pub(super) fn move_to(&self, other: &Self, from: usize) {
        (from..self.count()).for_each(|at| other.push(self.entry(at)));
        self.truncate(from);
    }

    fn truncate(&self, count: usize) {
        (count..FANOUT).for_each(|at| self.put(at, Entry::NONE));
        self.count.store(count as u32, Relaxed);
    }

    #[inline]
    pub(super) fn put(&self, at: usize, entry: Entry) {
        self.set_gap(at, entry.gap);
        self.slot[at].store(Slot::code_of(entry.slot), Relaxed);
    }

    /// Overwrites an entry, so that a test can see `check` find it.
    #[cfg(test)]
    pub(super) fn corrupt(&self, at: usize, entry: Entry) {
        self.put(at, entry);
    }
}

impl Default for GapNode {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for GapNode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}

/// Some of the entries of a node.
#[derive(Clone, Copy)]
pub(super) struct Entries(u32);

impl Entries {
    /// Takes the last one out.
    #[inline]
    pub(super) const fn pop_last(&mut self) -> Option<usize> {
        match self.0.checked_ilog2() {
            Some(at) => {
                self.0 ^= 1 << at;
                Some(at as usize)
            }
            None => None,
        }
    }

    /// Takes the first one out.
    #[inline]
    pub(super) const fn pop_first(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let at = self.0.trailing_zeros();
        self.0 ^= 1 << at;
        Some(at as usize)
    }
}

/// A free range, never empty unless it stands for no entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gap {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Gap {
    #[inline]
    pub(super) const fn of(range: VirtRange) -> Self {
        Self { start: range.start().get(), len: range.len() }
    }

    #[inline]
    pub(super) const fn between(start: u64, end: u64) -> Self {
        Self { start, len: end - start }
    }

    #[inline]
    pub(super) const fn end(self) -> u64 {
        self.start + self.len
    }

    /// The smallest gap that holds both.
    #[inline]
    pub(super) fn joined(self, other: Self) -> Self {
        Self::between(self.start.min(other.start), self.end().max(other.end()))
    }

    #[inline]
    pub(super) fn range(self) -> VirtRange {
        let addr = |raw| VirtAddr::new(raw).unwrap_or(VirtAddr::MAX);
        match VirtRange::new(addr(self.start), addr(self.end())) {
            Some(range) => range,
            None => unreachable!("a gap ends after its start"),
        }
    }
}

/// An entry: a gap of a leaf and what is above it, or a child and its summary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) gap: Gap,
    pub(super) slot: Option<Slot>,
}

impl Entry {
    const NONE: Self = Self { gap: Gap { start: u64::MAX, len: 0 }, slot: None };

    #[inline]
    pub(super) const fn leaf(free: Free) -> Self {
        Self { gap: Gap::of(free.range), slot: free.above }
    }

    #[inline]
    pub(super) fn inner(slot: Slot, node: &GapNode) -> Self {
        Self { gap: node.summary(), slot: Some(slot) }
    }

    /// The gap of a leaf.
    #[inline]
    pub(super) fn free(self) -> Free {
        Free { range: self.gap.range(), above: self.slot }
    }

    /// A gap of a leaf with what is above it.
    #[inline]
    pub(super) const fn below(gap: Gap, above: Option<Slot>) -> Self {
        Self { gap, slot: above }
    }

    /// The smallest gap that holds both, below whatever the higher one is below.
    #[inline]
    pub(super) fn joined(self, other: Self) -> Self {
        let slot = if other.gap.end() > self.gap.end() { other.slot } else { self.slot };
        Self { gap: self.gap.joined(other.gap), slot }
    }
}

/// The node with this number.
///
/// # Panics
/// If the store no longer has a node that it has handed out.
#[inline]
pub(super) fn node<S: GapNodes>(nodes: &S, slot: Slot) -> &GapNode {
    match nodes.get(slot) {
        Some(node) => node,
        None => panic!("the store has lost a node of the gap index"),
    }
}

/// Nodes taken and not used yet, chained by their first child.
pub(super) struct Spares {
    first: Option<Slot>,
    count: u32,
}

impl Spares {
    pub(super) const fn new() -> Self {
        Self { first: None, count: 0 }
    }

    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    /// Takes nodes from the store until there are `count`.
    #[inline]
    pub(super) fn fill<S: GapNodes>(&mut self, nodes: &S, count: u32) -> Result<(), GapError> {
        while self.count < count {
            self.put(nodes, nodes.take().ok_or(GapError::NoNodes)?);
        }
        Ok(())
    }

    /// Gives nodes back to the store until there are `count`.
    pub(super) fn shrink<S: GapNodes>(&mut self, nodes: &S, count: u32) {
        while self.count > count {
            match self.take(nodes) {
                Ok(spare) => nodes.give(spare),
                Err(_) => return,
            }
        }
    }

    /// Adds a node that is no longer used.
    pub(super) fn put<S: GapNodes>(&mut self, nodes: &S, slot: Slot) {
        node(nodes, slot).slot[0].store(Slot::code_of(self.first), Relaxed);
        self.first = Some(slot);
        self.count += 1;
    }

    /// Takes a node to use, without entries.
    pub(super) fn take<S: GapNodes>(&mut self, nodes: &S) -> Result<Slot, GapError> {
        let slot = self.first.ok_or(GapError::NoNodes)?;
        let spare = node(nodes, slot);
        self.first = Slot::from_code(spare.slot[0].load(Relaxed));
        self.count -= 1;
        spare.reset();
        Ok(slot)
    }

    /// Recounts the chain.
    pub(super) fn check<S: GapNodes>(&self, nodes: &S) -> Result<(), GapFault> {
        let (mut at, mut counted) = (self.first, 0);
        while let Some(slot) = at {
            if counted == self.count {
                return Err(GapFault::Spares);
            }
            let spare = nodes.get(slot).ok_or(GapFault::OutOfRange(slot))?;
            (at, counted) = (Slot::from_code(spare.slot[0].load(Relaxed)), counted + 1);
        }
        if counted == self.count { Ok(()) } else { Err(GapFault::Spares) }
    }
}
