//! Building the zones.

use core::mem::MaybeUninit;

use crate::addr::{PAGE_SIZE, Pfn, PfnRange};
use crate::flags::GfpFlags;
use crate::phys::Phys;
use crate::phys::buddy::Buddy;
use crate::phys::cpu_pages::{CpuPages, CpuPagesOf, CpuSlot};
use crate::phys::error::InitError;
use crate::phys::fail::FaultInjector;
use crate::phys::kmap::KmapSlots;
use crate::phys::mem_map::{
    BLOCK_PAGES, MIXED, MemMap, Mixed, NEAR_BLOCKS, NO_BLOCK, PageBlock, ROOT_SHIFT, Root, Sections,
};
use crate::phys::migrate::MigrateType;
use crate::phys::node::{NO_ZONE, Node, Zonelists};
use crate::phys::page::{BlockWord, Page, PageState};
use crate::phys::settings::Settings;
use crate::phys::zone::{Zone, ZoneId, ZoneKind, ZoneParts};
use crate::platform::{CpuPin, MemoryMap, MemoryRange, Platform};
use crate::sync::atomic::Ordering::Relaxed;

use super::carve::{Carver, frames};
use super::map::{Distances, Extent, Map};
use super::plan::{Config, MAX_ZONES, Plan};

impl<'m> Phys<'m> {
    /// Builds the allocator of the frames in `ranges`, with its metadata in `memory`.
    ///
    /// `memory` must be as large and aligned as [`Plan::metadata_layout`] says, and must not lie in a usable range unless
    /// another range reserves it.
    ///
    /// # Errors
    /// [`InitError`]; nothing has been built.
    ///
    /// # Linux
    /// `free_area_init` and `memblock_free_all`.
    pub fn init(
        pin: &CpuPin<'_>,
        ranges: impl Iterator<Item = MemoryRange> + Clone,
        config: &Config<'_>,
        memory: &'m mut [MaybeUninit<u8>],
    ) -> Result<Self, InitError> {
        let map = Map::new(ranges, config.nodes, config.zones)?;
        let plan = Plan::of(&map, config)?;
        build(pin, &map, &plan, config, memory)
    }

    /// Builds the allocator with its metadata in frames of the map itself: the end of the highest run in the direct map that
    /// is long enough. Answers with these frames too.
    ///
    /// # Errors
    /// [`InitError`]; nothing has been built.
    ///
    /// # Safety
    /// Nobody uses the usable frames of `ranges`, as long as `'m` and the pin's platform last, unless they are allocated.
    #[expect(unsafe_code, reason = "frames become memory")]
    pub unsafe fn init_in_map(
        pin: &CpuPin<'_>,
        ranges: impl Iterator<Item = MemoryRange> + Clone,
        config: &Config<'_>,
    ) -> Result<(Self, PfnRange), InitError> {
        let map = Map::new(ranges, config.nodes, config.zones)?;
        // SAFETY: as the caller promises.
        let (phys, home, _) = unsafe { build_in(pin, map, config, 0) }?;
        Ok((phys, home))
    }

    /// As [`init_in_map`](Self::init_in_map), from a map that says that nobody uses its frames. Sets `extra` bytes aside for the
    /// rooms above, aligned as metadata are.
    ///
    /// # Errors
    /// [`InitError`]; nothing has been built.
    #[expect(unsafe_code, reason = "frames become memory")]
    pub(crate) fn init_in_own_map<P: Platform>(
        map: &MemoryMap<'m, P, impl Iterator<Item = MemoryRange> + Clone>,
        config: &Config<'_>,
        extra: usize,
    ) -> Result<(Self, &'m mut [MaybeUninit<u8>]), InitError> {
        let pin = map.platform().pin();
        let map = Map::new(map.ranges(), config.nodes, config.zones)?;
        // SAFETY: by the promise to `MemoryMap::new` nobody uses the frames of this platform, and it lives for `'m`.
        let (phys, _, extra) = unsafe { build_in(&pin, map, config, extra) }?;
        Ok((phys, extra))
    }
}

/// What is built in the map itself: the allocator, the frames that hold its metadata, and what of them is for others.
type InMap<'m> = (Phys<'m>, PfnRange, &'m mut [MaybeUninit<u8>]);

/// Builds the allocator with its metadata, and `extra` bytes, in frames of the map.
///
/// # Safety
/// As for [`Phys::init_in_map`].
#[expect(unsafe_code, reason = "frames become memory")]
unsafe fn build_in<'m, I: Iterator<Item = MemoryRange> + Clone>(
    pin: &CpuPin<'_>,
    map: Map<'_, I>,
    config: &Config<'_>,
    extra: usize,
) -> Result<InMap<'m>, InitError> {
    let bytes = Plan::of(&map, config)?.metadata_layout().size().saturating_add(extra);
    let pages = bytes.div_ceil(PAGE_SIZE) as u64;
    let direct_map = |pfn: Pfn| pin.platform().direct_map(pfn);
    let low = map.extents().filter(|extent| extent.kind != ZoneKind::HighMem && extent.frames.len() >= pages);
    let home =
        low.filter_map(|extent| PfnRange::new(extent.frames.end().checked_sub(pages)?, extent.frames.end()));
    let home = home.filter(|home| {
        let start = direct_map(home.start()).map_or(0, |start| start.addr().get());
        let mut places = (start..).step_by(PAGE_SIZE).zip(home.iter());
        start != 0 && places.all(|(at, pfn)| direct_map(pfn).is_some_and(|place| place.addr().get() == at))
    });
    let home = home.last().ok_or(InitError::NoRoomForMetadata)?;
    // SAFETY: the frames are usable, so nobody uses them, and the map without them never hands them out.
    let memory = unsafe { frames(home, direct_map) }.ok_or(InitError::NoRoomForMetadata)?;
    let (extra, memory) = memory.split_at_mut_checked(extra).ok_or(InitError::NoRoomForMetadata)?;
    let map = map.without(home);
    let plan = Plan::of(&map, config)?;
    Ok((build(pin, &map, &plan, config, memory)?, home, extra))
}

fn build<'m, I: Iterator<Item = MemoryRange> + Clone>(
    pin: &CpuPin<'_>,
    map: &Map<'_, I>,
    plan: &Plan,
    config: &Config<'_>,
    memory: &'m mut [MaybeUninit<u8>],
) -> Result<Phys<'m>, InitError> {
    let mut carver = Carver::new(memory, plan.metadata_layout())?;
    let zone_count = plan.zones().count();
    let pages = cut_pages(&mut carver, plan)?;
    // Movable as long as there are page blocks enough to keep the types apart.
    let grouped = usize::try_from(plan.blocks).unwrap_or(usize::MAX) > MigrateType::COUNT;
    let migrate = if grouped { MigrateType::Movable } else { MigrateType::Unmovable };
    let blocks = carver.cut(plan.blocks as usize, |_| Ok(PageBlock::new(0, migrate)))?;
    let mut tables = Tables {
        near: carver.cut(plan.near, |_| Ok(NO_BLOCK))?,
        roots: carver.cut(plan.roots, |_| Ok(Root::default()))?,
        far: carver.cut(plan.far, |_| Ok(NO_BLOCK))?,
        far_len: 0,
        mixed: carver.cut(plan.mixed, |_| Ok(Mixed { number: u32::MAX, dense: 0 }))?,
        mixed_len: 0,
    };
    number_blocks(map, plan, migrate, blocks, &mut tables)?;
    let blocks = &*blocks;
    let sections = tables.freeze(plan, pages, blocks);

    let nodes = carver.cut(plan.nodes, |_| Ok(Node::EMPTY))?;
    for (id, (node, kind, _)) in plan.zones().enumerate() {
        nodes[usize::from(node)].set_zone(kind, ZoneId::new(id as u8));
    }
    let nodes = &*nodes;
    let distances = Distances::new(config.distances)?;
    let distance = |from, to| distances.between(from, to);
    let lists = carver.cut(Zonelists::bytes(plan.nodes, zone_count), |at| {
        Ok(Zonelists::byte(nodes, &distance, zone_count, at))
    })?;
    let zonelists = Zonelists::new(lists, zone_count);
    let cpus = carver.cut(plan.cpus, |cpu| {
        let node = config.cpus.get(cpu).copied().unwrap_or(0);
        let first_zone = first_zones(&zonelists, nodes, node);
        let place =
            |zone| if zone == NO_ZONE { u32::MAX } else { (cpu * zone_count) as u32 + u32::from(zone) };
        Ok(CpuSlot { node, first: first_zone.map(place), first_zone })
    })?;
    let kmaps = carver.cut(plan.cpus, |_| Ok(KmapSlots::new()))?;
    let map_of = |id| MemMap::new(pages, blocks, plan.base_of(id)..plan.base_of(id + 1));
    let cpu_pages: &'m [CpuPages] =
        carver.cut(plan.cpus * zone_count, |at| Ok(CpuPages::new(map_of(at % zone_count).shift())))?;
    let zones = cut_zones(&mut carver, map, plan, config, map_of, cpu_pages)?;

    let phys = Phys {
        platform: pin.platform_id(),
        sections,
        zones,
        nodes,
        zonelists,
        cpus,
        kmaps,
        cpu_pages,
        migrate_of: if grouped { MigrateType::BY_MOBILITY } else { MigrateType::UNGROUPED },
        settings: Settings::lock(config),
        faults: FaultInjector::new(),
    };
    mark_reserved(map, &phys);
    phys.apply_settings(pin);
    Ok(phys)
}

/// The pages of all zones, absent as yet.
fn cut_pages<'m>(carver: &mut Carver<'m>, plan: &Plan) -> Result<&'m [Page], InitError> {
    let (mut zone, mut end) = (0, 0);
    let pages = carver.cut(plan.blocks as usize * BLOCK_PAGES, |at| {
        if at == end {
            let blocks = plan.zones().nth(zone).map_or(0, |(_, _, zone)| zone.blocks);
            end += blocks as usize * BLOCK_PAGES;
            zone += 1;
        }
        Ok(Page::new(PageState::Absent, ZoneId::new((zone - 1) as u8)))
    })?;
    Ok(pages)
}

/// Numbers the page blocks and enters them in the tables that find them.
fn number_blocks<I: Iterator<Item = MemoryRange> + Clone>(
    map: &Map<'_, I>,
    plan: &Plan,
    migrate: MigrateType,
    blocks: &mut [PageBlock],
    tables: &mut Tables<'_>,
) -> Result<(), InitError> {
    // For each zone the place of its next page block among all zones', and the number of the last one entered.
    let mut next: [(u32, Option<u32>); MAX_ZONES] = core::array::from_fn(|id| (plan.base_of(id), None));
    for extent in map.extents() {
        let id = plan.id_of(extent.node, extent.kind).ok_or(InitError::MapChanged)?;
        let (dense, last) = next.get_mut(id).ok_or(InitError::MapChanged)?;
        let (first_block, last_block) = extent.blocks();
        for number in first_block as u32..=last_block as u32 {
            if *last == Some(number) {
                continue;
            }
            *blocks.get_mut(*dense as usize).ok_or(InitError::MapChanged)? = PageBlock::new(number, migrate);
            tables.enter(plan, number, *dense).ok_or(InitError::MapChanged)?;
            (*dense, *last) = (*dense + 1, Some(number));
        }
    }
    Ok(())
}

/// The tables of [`Sections`] while they are filled, in the order of the addresses.
struct Tables<'m> {
    near: &'m mut [u32],
    roots: &'m mut [Root],
    far: &'m mut [u32],
    far_len: u32,
    mixed: &'m mut [Mixed],
    mixed_len: u32,
}

impl<'m> Tables<'m> {
    /// Enters a zone's page block; if another zone has one with the same frames, both go to the list of mixed ones.
    fn enter(&mut self, plan: &Plan, number: u32, dense: u32) -> Option<()> {
        let near = u64::from(number).checked_sub(plan.first_block)?;
        let far = if near < NEAR_BLOCKS { None } else { Some(self.far_place(plan, number)?) };
        let place = match far {
            None => self.near.get_mut(near as usize)?,
            Some(far) => self.far.get_mut(far)?,
        };
        let mut push = |dense| {
            *self.mixed.get_mut(self.mixed_len as usize)? = Mixed { number, dense };
            self.mixed_len += 1;
            Some(self.mixed_len - 1)
        };
        *place = match *place {
            NO_BLOCK => dense,
            shared if shared & MIXED != 0 => push(dense).map(|_| shared)?,
            single => {
                let start = push(single)?;
                push(dense)?;
                MIXED | start
            }
        };
        Some(())
    }

    /// The place in the far table of a page block, which is not below those asked for before.
    fn far_place(&mut self, plan: &Plan, number: u32) -> Option<usize> {
        let root = (u64::from(number) >> ROOT_SHIFT).checked_sub(plan.first_root)?;
        let root = self.roots.get_mut(root as usize)?;
        let within = number & ((1 << ROOT_SHIFT) - 1);
        if root.len == 0 {
            *root = Root { low: within, len: 1, start: self.far_len };
            self.far_len += 1;
        } else {
            let len = within.checked_sub(root.low)? + 1;
            self.far_len += len.checked_sub(root.len)?;
            root.len = len;
        }
        Some((root.start + root.len - 1) as usize)
    }

    fn freeze(self, plan: &Plan, pages: &'m [Page], blocks: &'m [PageBlock]) -> Sections<'m> {
        let (first_block, first_root) = (plan.first_block, plan.first_root);
        let Self { near, roots, far, mixed, .. } = self;
        Sections { first_block, near, first_root, roots, far, mixed, pages, blocks }
    }
}

/// The zones with their frames on the free lists.
fn cut_zones<'m, I: Iterator<Item = MemoryRange> + Clone>(
    carver: &mut Carver<'m>,
    map: &Map<'_, I>,
    plan: &Plan,
    config: &Config<'_>,
    map_of: impl Fn(usize) -> MemMap<'m>,
    cpu_pages: &'m [CpuPages],
) -> Result<&'m [Zone<'m>], InitError> {
    let count = plan.zones().count();
    let zones = carver.cut(count, |id| {
        let (node, kind, zone) = plan.zones().nth(id).ok_or(InitError::MapChanged)?;
        let zone_map = map_of(id);
        let mut buddy = Buddy::new(config.merging);
        for extent in map.extents().filter(|extent| (extent.node, extent.kind) == (node, kind)) {
            add_extent(&mut buddy, &zone_map, &extent)?;
        }
        let span = zone.span.ok_or(InitError::MapChanged)?;
        let cpu_pages = CpuPagesOf::new(cpu_pages, id, count);
        let id = ZoneId::new(id as u8);
        Ok(Zone::new(ZoneParts { id, kind, node, span, map: zone_map, cpu_pages }, buddy))
    })?;
    Ok(zones)
}

/// Puts a run of frames on the free lists of its zone.
fn add_extent(buddy: &mut Buddy, map: &MemMap<'_>, extent: &Extent) -> Result<(), InitError> {
    let start = map.index_of(extent.frames.start()).ok_or(InitError::MapChanged)?;
    let end = u32::try_from(extent.frames.len()).ok().and_then(|len| start.checked_add(len));
    let end = end.ok_or(InitError::MapChanged)?;
    for page in map.pages().get(start as usize..end as usize).ok_or(InitError::MapChanged)? {
        page.set_word(BlockWord::of(PageState::Interior));
    }
    buddy.add_run(map, start, end, map.block_of(start).migrate());
    Ok(())
}

/// Tells holes from frames that are not managed: the memory map says something of the latter.
fn mark_reserved<I: Iterator<Item = MemoryRange> + Clone>(map: &Map<'_, I>, phys: &Phys<'_>) {
    for zone in phys.zones {
        let mut present = zone.span().managed_pages;
        for index in zone.map.own() {
            let page = zone.map.page(index);
            if page.state() != PageState::Absent {
                continue;
            }
            let pfn = zone.pfn(index);
            let elsewhere =
                phys.sections.find(pfn).is_some_and(|(_, page)| page.state() != PageState::Absent);
            if !elsewhere && map.mentions(pfn) {
                page.set_word(BlockWord::of(PageState::Reserved));
                present += u64::from(zone.span().span.contains(pfn));
            }
        }
        zone.present_pages.store(present, Relaxed);
    }
}

/// For each pair of zone bits in the allocation flags the zone to try first, if it is the node's own: of another node's the fast path could
/// not tell whether the request may use it.
fn first_zones(zonelists: &Zonelists<'_>, nodes: &[Node], node: u8) -> [u8; 4] {
    let own = nodes.get(usize::from(node)).copied().unwrap_or(Node::EMPTY);
    let own = ZoneKind::ALL.map(|kind| own.zone(kind).map(|id| usize::from(id.get())));
    core::array::from_fn(|bits| {
        let highest = ZoneKind::highest_for(GfpFlags::of_zone_bits(bits));
        let first = highest.and_then(|highest| zonelists.list(node, highest).next());
        first.filter(|&zone| own.contains(&Some(zone))).map_or(NO_ZONE, |zone| zone as u8)
    })
}
