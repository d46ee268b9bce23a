//! How much metadata a memory map needs, and where its parts lie.

use core::alloc::Layout;

use crate::addr::PfnRange;
use crate::phys::cpu_pages::{CpuPages, CpuSlot};
use crate::phys::deferred::{DeferredBound, Merging};
use crate::phys::error::InitError;
use crate::phys::kmap::KmapSlots;
use crate::phys::mem_map::{BLOCK_PAGES, BLOCK_SHIFT, Mixed, NEAR_BLOCKS, PageBlock, ROOT_SHIFT, Root};
use crate::phys::node::{MAX_NODES, Node, Zonelists};
use crate::phys::page::Page;
use crate::phys::watermark::WatermarkConfig;
use crate::phys::zone::{Zone, ZoneKind, ZoneSpan};

use super::carve::Sizes;
use super::map::{Distances, Extent, Map, ZoneLimits};
use crate::platform::{MemoryRange, NodeRange};

/// The most CPUs.
const MAX_CPUS: usize = 4096;
/// The most zones.
pub(super) const MAX_ZONES: usize = MAX_NODES * ZoneKind::COUNT;

/// How memory is divided and managed. The default is one node, one CPU and Linux's numbers.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// Where the zones end.
    pub zones: ZoneLimits,
    /// Which addresses belong to which node; what none names belongs to node 0.
    pub nodes: &'a [NodeRange],
    /// The distances between the nodes, row by row; empty: 10 to itself, 20 to others.
    pub distances: &'a [u8],
    /// The node of each CPU. Its length is the number of CPUs.
    pub cpus: &'a [u8],
    /// When freed blocks are merged.
    pub merging: Merging,
    /// How many pages may wait for their merge.
    pub deferred_bound: DeferredBound,
    /// Pages that move between a CPU's lists and a zone at once: `None` for Linux's number, 0 for no lists.
    pub batch: Option<u64>,
    /// The watermarks.
    pub watermarks: WatermarkConfig,
}

impl Default for Config<'_> {
    fn default() -> Self {
        Self {
            zones: ZoneLimits::default(),
            nodes: &[],
            distances: &[],
            cpus: &[0],
            merging: Merging::default(),
            deferred_bound: DeferredBound::default(),
            batch: None,
            watermarks: WatermarkConfig::default(),
        }
    }
}

/// What was counted of one zone.
#[derive(Clone, Copy, Debug)]
pub(super) struct ZonePlan {
    pub(super) blocks: u32,
    last_block: u64,
    pub(super) span: Option<ZoneSpan>,
}

/// The metadata that a memory map needs.
#[derive(Clone, Debug)]
pub struct Plan {
    zones: [ZonePlan; MAX_ZONES],
    pub(super) nodes: usize,
    pub(super) cpus: usize,
    pub(super) blocks: u32,
    pub(super) first_block: u64,
    pub(super) near: usize,
    pub(super) first_root: u64,
    pub(super) roots: usize,
    pub(super) far: usize,
    pub(super) mixed: usize,
    managed_pages: u64,
}

impl Plan {
    /// Counts what `ranges` need.
    ///
    /// # Errors
    /// All of [`InitError`] but those about the memory for the metadata.
    pub fn new(
        ranges: impl Iterator<Item = MemoryRange> + Clone,
        config: &Config<'_>,
    ) -> Result<Self, InitError> {
        Self::of(&Map::new(ranges, config.nodes, config.zones)?, config)
    }

    /// The size and alignment of the memory that the metadata need.
    #[doc(alias = "metadata_size")]
    pub fn metadata_layout(&self) -> Layout {
        self.sizes().layout()
    }

    /// Frames that the map leaves to the allocator.
    pub fn managed_pages(&self) -> u64 {
        self.managed_pages
    }

    /// How many frames will have metadata, at most: [`Phys::slots`](super::Phys::slots).
    pub fn slots(&self) -> usize {
        self.blocks as usize * BLOCK_PAGES
    }

    pub(super) fn of<I: Iterator<Item = MemoryRange> + Clone>(
        map: &Map<'_, I>,
        config: &Config<'_>,
    ) -> Result<Self, InitError> {
        let distances = Distances::new(config.distances)?;
        if config.cpus.is_empty() || config.cpus.len() > MAX_CPUS {
            return Err(InitError::BadCpus);
        }
        let numbers = config.nodes.iter().map(|node| node.node).chain(config.cpus.iter().copied());
        let highest = numbers.max().unwrap_or(0);
        if usize::from(highest) >= MAX_NODES {
            return Err(InitError::NodeTooHigh(highest));
        }
        let mut plan = Self {
            zones: [ZonePlan { blocks: 0, last_block: u64::MAX, span: None }; MAX_ZONES],
            nodes: (usize::from(highest) + 1).max(distances.nodes()),
            cpus: config.cpus.len(),
            blocks: 0,
            first_block: 0,
            near: 0,
            first_root: 0,
            roots: 0,
            far: 0,
            mixed: 0,
            managed_pages: 0,
        };
        if plan.nodes > MAX_NODES {
            return Err(InitError::BadDistances);
        }
        plan.count(map.extents())?;
        if plan.managed_pages == 0 { Err(InitError::NoMemory) } else { Ok(plan) }
    }

    /// The populated zones with their numbers among all: node, kind, plan.
    pub(super) fn zones(&self) -> impl Iterator<Item = (u8, ZoneKind, &ZonePlan)> {
        let kinds =
            (0..MAX_ZONES).map(|at| ((at / ZoneKind::COUNT) as u8, ZoneKind::ALL[at % ZoneKind::COUNT]));
        kinds
            .zip(&self.zones)
            .filter(|(_, zone)| zone.span.is_some())
            .map(|((node, kind), zone)| (node, kind, zone))
    }

    /// The number of a zone among the populated ones.
    pub(super) fn id_of(&self, node: u8, kind: ZoneKind) -> Option<usize> {
        self.zones().position(|(at_node, at_kind, _)| (at_node, at_kind) == (node, kind))
    }

    /// The place of a zone's first page block among all zones'.
    pub(super) fn base_of(&self, id: usize) -> u32 {
        self.zones().take(id).map(|(_, _, zone)| zone.blocks).sum()
    }

    fn count(&mut self, extents: impl Iterator<Item = Extent>) -> Result<(), InitError> {
        let mut first = None;
        let mut last_far = None;
        for extent in extents {
            let (first_block, last_block) = extent.blocks();
            self.note_extent(&extent, first_block, last_block)?;
            self.managed_pages += extent.frames.len();
            self.mixed += 2;
            self.first_block = *first.get_or_insert(first_block);
            let near_end = self.first_block + NEAR_BLOCKS;
            if first_block < near_end {
                self.near = (last_block.min(near_end - 1) - self.first_block + 1) as usize;
            }
            if last_block >= near_end {
                self.count_far(&mut last_far, first_block.max(near_end), last_block);
            }
        }
        self.blocks = self.zones().map(|(_, _, zone)| zone.blocks).sum();
        Ok(())
    }

    /// Counts the table entries of page blocks beyond the near table: within a root all from the first block with metadata to the last.
    fn count_far(&mut self, last: &mut Option<u64>, first_block: u64, last_block: u64) {
        let fresh = last.map_or(first_block, |last| first_block.max(last + 1));
        self.first_root = if last.is_none() { first_block >> ROOT_SHIFT } else { self.first_root };
        self.roots = ((last_block >> ROOT_SHIFT) - self.first_root + 1) as usize;
        let same_root = last.filter(|last| last >> ROOT_SHIFT == fresh >> ROOT_SHIFT);
        let from = same_root.map_or(fresh, |last| last + 1);
        self.far += (last_block + 1).saturating_sub(from) as usize;
        *last = Some(last_block);
    }

    fn note_extent(&mut self, extent: &Extent, first_block: u64, last_block: u64) -> Result<(), InitError> {
        let zone = &mut self.zones[usize::from(extent.node) * ZoneKind::COUNT + extent.kind as usize];
        let shared = u64::from(zone.last_block == first_block);
        let blocks = last_block - first_block + 1 - shared;
        let total = u64::from(self.blocks) + blocks;
        if total << BLOCK_SHIFT >= u64::from(u32::MAX) {
            return Err(InitError::TooManyFrames);
        }
        self.blocks = total as u32;
        zone.blocks += blocks as u32;
        zone.last_block = last_block;
        let before =
            zone.span.map_or((extent.frames.start(), 0), |span| (span.span.start(), span.managed_pages));
        zone.span = PfnRange::new(before.0, extent.frames.end())
            .map(|span| ZoneSpan { span, managed_pages: before.1 + extent.frames.len() });
        Ok(())
    }

    fn sizes(&self) -> Sizes {
        let zones = self.zones().count();
        let mut sizes = Sizes::default();
        sizes.add::<Page>(self.blocks as usize * BLOCK_PAGES);
        sizes.add::<PageBlock>(self.blocks as usize);
        sizes.add::<u32>(self.near);
        sizes.add::<Root>(self.roots);
        sizes.add::<u32>(self.far);
        sizes.add::<Mixed>(self.mixed);
        sizes.add::<Node>(self.nodes);
        sizes.add::<u8>(Zonelists::bytes(self.nodes, zones));
        sizes.add::<CpuSlot>(self.cpus);
        sizes.add::<KmapSlots>(self.cpus);
        sizes.add::<CpuPages>(self.cpus * zones);
        sizes.add::<Zone<'_>>(zones);
        sizes
    }
}
