//! The firmware's memory map, made clean.
//!
//! Firmware lists ranges in any order, overlapping, unaligned, with holes. Usable is a byte that some range calls usable and
//! none calls anything else; usable is a frame whose every byte is. A sweep over the ranges' ends finds the runs of usable
//! frames in order, without memory of its own: each step looks for the next end, so a map of `n` ranges costs `n²`.

use crate::addr::{PAGE_SIZE_U64, Pfn, PfnRange, PhysAddr, PhysRange};
use crate::phys::error::InitError;
use crate::phys::mem_map::BLOCK_SHIFT;
use crate::phys::node::{LOCAL_DISTANCE, MAX_NODES, REMOTE_DISTANCE};
use crate::phys::zone::ZoneKind;

use crate::platform::{MemoryKind, MemoryRange, NodeRange};

/// Where the zones end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZoneLimits {
    /// The first frame above DMA.
    pub dma_end: Pfn,
    /// The first frame above NORMAL: where the direct map ends.
    pub normal_end: Pfn,
}

impl Default for ZoneLimits {
    /// DMA below 16 MiB, everything else in the direct map.
    fn default() -> Self {
        Self { dma_end: PhysAddr::new(16 << 20).map_or(Pfn::ZERO, PhysAddr::pfn), normal_end: Pfn::MAX }
    }
}

impl ZoneLimits {
    /// The zone of a frame and where it ends.
    fn zone_of(&self, pfn: Pfn) -> (ZoneKind, Pfn) {
        match pfn {
            pfn if pfn < self.dma_end => (ZoneKind::Dma, self.dma_end),
            pfn if pfn < self.normal_end => (ZoneKind::Normal, self.normal_end),
            _ => (ZoneKind::HighMem, Pfn::MAX),
        }
    }
}

/// A run of usable frames of one zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::phys) struct Extent {
    pub(in crate::phys) frames: PfnRange,
    pub(in crate::phys) node: u8,
    pub(in crate::phys) kind: ZoneKind,
}

impl Extent {
    /// The numbers of the page blocks that the run touches, first and last.
    pub(in crate::phys) fn blocks(&self) -> (u64, u64) {
        (self.frames.start().get() >> BLOCK_SHIFT, (self.frames.end().get() - 1) >> BLOCK_SHIFT)
    }
}

/// A memory map with what divides it: checked, to be walked as often as needed.
#[derive(Clone, Copy, Debug)]
pub(in crate::phys) struct Map<'a, I> {
    ranges: I,
    nodes: &'a [NodeRange],
    limits: ZoneLimits,
    /// The frames taken for the metadata.
    taken: Option<PfnRange>,
}

impl<'a, I: Iterator<Item = MemoryRange> + Clone> Map<'a, I> {
    pub(in crate::phys) fn new(
        ranges: I,
        nodes: &'a [NodeRange],
        limits: ZoneLimits,
    ) -> Result<Self, InitError> {
        for range in ranges.clone() {
            bytes(range.base, range.len)?;
        }
        for (at, node) in nodes.iter().enumerate() {
            let own = bytes(node.base, node.len)?;
            if usize::from(node.node) >= MAX_NODES {
                return Err(InitError::NodeTooHigh(node.node));
            }
            for other in nodes[..at].iter().filter(|other| other.node != node.node) {
                if own.overlaps(bytes(other.base, other.len)?) {
                    return Err(InitError::NodesOverlap(node.base.max(other.base)));
                }
            }
        }
        if limits.normal_end < limits.dma_end {
            return Err(InitError::BadZoneLimits);
        }
        Ok(Self { ranges, nodes, limits, taken: None })
    }

    /// The same map with some frames in use.
    pub(in crate::phys) fn without(self, taken: PfnRange) -> Self {
        Self { taken: Some(taken), ..self }
    }

    /// The runs of usable frames in the order of their addresses, cut where node or zone changes.
    pub(in crate::phys) fn extents(&self) -> impl Iterator<Item = Extent> + use<'_, 'a, I> {
        let mut runs = self.runs();
        let mut rest: Option<PfnRange> = None;
        core::iter::from_fn(move || {
            let run = match rest.take() {
                Some(run) => run,
                None => runs.next()?,
            };
            let (node, kind, mut end) = self.place_of(run.start());
            while end < run.end() {
                match self.place_of(end) {
                    (next_node, next_kind, next_end) if (next_node, next_kind) == (node, kind) => {
                        end = next_end
                    }
                    _ => break,
                }
            }
            let end = end.min(run.end());
            rest = PfnRange::new(end, run.end()).filter(|rest| !rest.is_empty());
            Some(Extent { frames: PfnRange::new(run.start(), end)?, node, kind })
        })
    }

    /// The node and zone of a frame, and the frame at which they may change.
    fn place_of(&self, pfn: Pfn) -> (u8, ZoneKind, Pfn) {
        let (kind, zone_end) = self.limits.zone_of(pfn);
        let (node, node_end) = self.node_of(pfn);
        (node, kind, zone_end.min(node_end))
    }

    /// Whether firmware says anything of a frame, or the metadata lie there.
    pub(in crate::phys) fn mentions(&self, pfn: Pfn) -> bool {
        let start = pfn.addr();
        let frame = PhysRange::with_len(start, PAGE_SIZE_U64);
        self.taken.is_some_and(|taken| taken.contains(pfn))
            || self.ranges.clone().any(|range| {
                let range = bytes(range.base, range.len).ok();
                frame.zip(range).is_some_and(|(frame, range)| frame.overlaps(range))
            })
    }

    /// The maximal runs of frames that are usable.
    fn runs(&self) -> impl Iterator<Item = PfnRange> + use<'_, 'a, I> {
        let mut at = Some(PhysAddr::ZERO);
        core::iter::from_fn(move || {
            loop {
                let start = self.next_usable(at?)?;
                let end = self.end_of_usable(start);
                at = (end < PhysAddr::MAX).then_some(end);
                let frames = PhysRange::new(start, end)?.whole_frames();
                if !frames.is_empty() {
                    return Some(frames);
                }
            }
        })
    }

    /// The first usable byte at or after `at`.
    fn next_usable(&self, mut at: PhysAddr) -> Option<PhysAddr> {
        while !self.is_usable(at) {
            at = self.next_edge(at)?;
        }
        Some(at)
    }

    /// The first byte after `start` that is not usable.
    fn end_of_usable(&self, start: PhysAddr) -> PhysAddr {
        let mut at = start;
        loop {
            match self.next_edge(at) {
                Some(edge) if self.is_usable(edge) => at = edge,
                Some(edge) => return edge,
                None => return PhysAddr::MAX,
            }
        }
    }

    /// Whether some range calls the byte usable, and none anything else.
    fn is_usable(&self, at: PhysAddr) -> bool {
        let mut usable = false;
        for range in self.ranges.clone() {
            if bytes(range.base, range.len).is_ok_and(|range| range.contains(at)) {
                if range.kind != MemoryKind::Usable {
                    return false;
                }
                usable = true;
            }
        }
        usable && !self.taken.is_some_and(|taken| taken.contains(at.pfn()))
    }

    /// The first byte after `at` where a range begins or ends.
    fn next_edge(&self, at: PhysAddr) -> Option<PhysAddr> {
        let taken = self.taken.into_iter().flat_map(|taken| [taken.start().addr(), taken.end().addr()]);
        let ranges = self.ranges.clone().filter_map(|range| bytes(range.base, range.len).ok());
        let edges = ranges.filter(|range| !range.is_empty()).flat_map(|range| [range.start(), range.end()]);
        edges.chain(taken).filter(|&edge| edge > at).min()
    }

    /// The node of a frame, which is that of its first byte, and the frame at which it may change. Node 0 has what no range names.
    fn node_of(&self, pfn: Pfn) -> (u8, Pfn) {
        let at = pfn.addr();
        let ranges = self.nodes.iter().filter_map(|node| Some((node.node, bytes(node.base, node.len).ok()?)));
        let ranges = ranges.filter(|(_, range)| !range.is_empty());
        let node = ranges.clone().find(|(_, range)| range.contains(at)).map_or(0, |(node, _)| node);
        let frame_from = |edge: PhysAddr| Pfn::new(edge.get().div_ceil(PAGE_SIZE_U64)).unwrap_or(Pfn::MAX);
        let edges = ranges.flat_map(|(_, range)| [range.start(), range.end()]).map(frame_from);
        (node, edges.filter(|&edge| edge > pfn).min().unwrap_or(Pfn::MAX))
    }
}

/// The distance table of the nodes.
#[derive(Clone, Copy, Debug)]
pub(in crate::phys) struct Distances<'a> {
    table: &'a [u8],
    nodes: usize,
}

impl<'a> Distances<'a> {
    /// Takes a square table, row by row; an empty one says nothing of any node.
    pub(in crate::phys) fn new(table: &'a [u8]) -> Result<Self, InitError> {
        let nodes = table.len().isqrt();
        let square = nodes * nodes == table.len();
        let local = (0..nodes).all(|node| table[node * nodes + node] == LOCAL_DISTANCE);
        if !square || !local || table.iter().any(|&distance| distance < LOCAL_DISTANCE) {
            return Err(InitError::BadDistances);
        }
        Ok(Self { table, nodes })
    }

    /// How many nodes the table has.
    pub(in crate::phys) fn nodes(&self) -> usize {
        self.nodes
    }

    pub(in crate::phys) fn between(&self, from: usize, to: usize) -> u8 {
        let known = from < self.nodes && to < self.nodes;
        match known.then(|| self.table.get(from * self.nodes + to)).flatten() {
            Some(&distance) => distance,
            None if from == to => LOCAL_DISTANCE,
            None => REMOTE_DISTANCE,
        }
    }
}

/// The bytes from `base`, if they end within 2^52.
fn bytes(base: u64, len: u64) -> Result<PhysRange, InitError> {
    PhysAddr::new(base).and_then(|start| PhysRange::with_len(start, len)).ok_or(InitError::RangeTooHigh(base))
}
