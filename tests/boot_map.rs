//! From a memory map to zones: the state hangs on what the map means alone, and a bad map changes nothing.

mod common;

use std::mem::MaybeUninit;

use common::{Random, boot, frames, leaked, line, pc, pfn, pin, usable};
use kernmm::addr::PageOrder;
use kernmm::flags::GfpFlags;
use kernmm::phys::{
    Config, DeferredBound, InitError, MAX_NODES, PageState, Phys, Plan, WatermarkConfig, Watermarks, Zone,
    ZoneKind, ZoneLimits,
};
use kernmm::platform::{MemoryKind, MemoryRange, NodeRange};

const BARE: Config<'static> = Config {
    zones: ZoneLimits { dma_end: kernmm::addr::Pfn::ZERO, normal_end: kernmm::addr::Pfn::MAX },
    nodes: &[],
    distances: &[],
    cpus: &[0],
    merging: kernmm::phys::Merging::Deferred,
    deferred_bound: DeferredBound::Pages(0),
    batch: Some(0),
    watermarks: WatermarkConfig::NONE,
};

/// All that can be seen of a machine: zones, marks, the states of all pages up to `frames`, and in which order the free lists give
/// their blocks away.
#[derive(PartialEq, Eq, Debug)]
struct Digest {
    zones: Vec<(u8, ZoneKind, kernmm::phys::ZoneSpan, Watermarks, [u64; 3], u64)>,
    pages: Vec<(PageState, Option<u8>, Option<u8>)>,
    given: Vec<u64>,
}

fn digest(phys: &Phys<'_>, frames: u64) -> Digest {
    let pin = pin(0);
    assert_eq!(phys.check(&pin), Ok(()));
    let of = |zone: &Zone<'_>| {
        let reserve = ZoneKind::ALL.map(|kind| zone.lowmem_reserve(kind));
        (zone.node(), zone.kind(), zone.span(), zone.watermarks(), reserve, zone.batch())
    };
    let pages = (0..frames).map(|frame| match phys.page(pfn(frame)) {
        None => (PageState::Absent, None, None),
        Some(page) => (page.state(), page.order().map(PageOrder::get), Some(page.zone().get())),
    });
    let (zones, pages) = (phys.zones().iter().map(of).collect(), pages.collect());
    let mut given = vec![];
    let greedy = GfpFlags::HIGHUSER_MOVABLE | GfpFlags::MEMALLOC;
    for node in 0..phys.nodes().len() as u8 {
        for order in PageOrder::all().rev() {
            while let Ok(frame) = phys.alloc_pages_node(&pin, node, greedy, order) {
                given.push(frame.get());
            }
        }
    }
    Digest { zones, pages, given }
}

/// All orders of a list, by Heap's algorithm.
fn permutations(items: &[MemoryRange], mut each: impl FnMut(&[MemoryRange])) {
    let mut items = items.to_vec();
    let mut counters = vec![0; items.len()];
    each(&items);
    let mut at = 0;
    while at < items.len() {
        if counters[at] < at {
            items.swap(if at % 2 == 0 { 0 } else { counters[at] }, at);
            each(&items);
            counters[at] += 1;
            at = 0;
        } else {
            counters[at] = 0;
            at += 1;
        }
    }
}

const SMALL: u64 = 4096;

fn small_config<'a>(nodes: &'a [NodeRange]) -> Config<'a> {
    Config { zones: ZoneLimits { dma_end: pfn(600), normal_end: pfn(2500) }, nodes, ..BARE }
}

#[test]
fn every_order_of_a_maps_lines_gives_the_identical_state() {
    let nodes = [
        NodeRange { base: 0, len: 1300 << 12, node: 0 },
        NodeRange { base: 1300 << 12, len: 4000 << 12, node: 1 },
    ];
    let config = small_config(&nodes);
    let map = [
        usable(0x800, 0x9_f000),
        usable(0x10_0000, 0x50_0000),
        usable(0x40_0000, 0x60_0123),
        line(MemoryKind::Reserved, 0x30_0000, 0x1001),
        line(MemoryKind::AcpiNvs, 0x9f_ffff, 2),
        line(MemoryKind::Bad, 0x48_0000, 0x1000),
    ];
    let expected = digest(&boot(&map, &config), SMALL);
    let memory = leaked(Plan::new(map.into_iter(), &config).unwrap().metadata_layout());
    let mut count = 0;
    permutations(&map, |map| {
        let phys = Phys::init(&pin(0), map.iter().copied(), &config, memory).unwrap();
        assert_eq!(digest(&phys, SMALL), expected, "{map:?}");
        count += 1;
    });
    assert_eq!(count, 720);
}

#[test]
fn every_cutting_of_a_map_gives_the_identical_state() {
    let random = Random::new(7);
    let whole = [
        usable(0x1800, 0x9_0000),
        usable(0x10_0000, 0xd0_0000),
        line(MemoryKind::Kernel, 0x20_0000, 0x8_0000),
    ];
    let srat = [(0, 0x40_0000, 0), (0x40_0000, 0x60_1000, 1), (0xa0_1000, 0xf0_0000, 0)];
    let whole_nodes = srat.map(|(base, len, node)| NodeRange { base, len, node });
    let expected = digest(&boot(&whole, &small_config(&whole_nodes)), SMALL);
    let memory = leaked(Plan::new(whole.into_iter(), &small_config(&whole_nodes)).unwrap().metadata_layout());
    for round in 0..if cfg!(debug_assertions) { 100 } else { 1000 } {
        // Cuts each line at random bytes, doubles some pieces, and shuffles.
        let mut map: Vec<MemoryRange> = vec![];
        for range in whole {
            let (mut base, end) = (range.base, range.base + range.len);
            while base < end {
                let len = (1 + random.below(range.len)).min(end - base);
                map.extend(std::iter::repeat_n(
                    MemoryRange { base, len, ..range },
                    1 + random.below(2) as usize,
                ));
                base += len;
            }
            map.push(MemoryRange { len: 0, ..range });
        }
        let mut nodes: Vec<NodeRange> = vec![];
        for node in whole_nodes {
            let cut = random.below(node.len);
            nodes.push(NodeRange { base: node.base + cut, len: node.len - cut, ..node });
            nodes.push(NodeRange { len: cut, ..node });
        }
        for at in (1..map.len()).rev() {
            map.swap(at, random.below(at as u64 + 1) as usize);
        }
        nodes.rotate_left(random.below(6) as usize);
        let phys = Phys::init(&pin(0), map.iter().copied(), &small_config(&nodes), memory).unwrap();
        assert_eq!(digest(&phys, SMALL), expected, "round {round}: {map:?} {nodes:?}");
    }
}

/// Which frames are managed, worked out byte by byte's edge anew: those of which all bytes are usable and none anything else.
#[test]
fn managed_are_the_frames_of_which_every_byte_is_usable() {
    let random = Random::new(3);
    for round in 0..400 {
        let lines = 1 + random.below(8);
        let map: Vec<_> = (0..lines)
            .map(|_| {
                let kind = [MemoryKind::Usable, MemoryKind::Usable, MemoryKind::Usable, MemoryKind::Reserved];
                line(kind[random.below(4) as usize], random.below(200 << 8) << 4, random.below(100 << 8) << 4)
            })
            .collect();
        // Sixteen bytes at a time: all edges are multiples of that.
        let inside = |range: &MemoryRange, at: u64| range.base <= at && at < range.base + range.len;
        let good = |at: u64| {
            let mut at_byte = map.iter().filter(|range| inside(range, at)).peekable();
            at_byte.peek().is_some() && at_byte.all(|range| range.kind == MemoryKind::Usable)
        };
        let managed = |frame: u64| (frame << 12..(frame + 1) << 12).step_by(16).all(good);
        let expected: Vec<_> = (0..320).map(managed).collect();
        let count = expected.iter().filter(|&&managed| managed).count() as u64;
        let plan = Plan::new(map.iter().copied(), &BARE);
        if count == 0 {
            assert_eq!(plan.err(), Some(InitError::NoMemory), "round {round}");
            continue;
        }
        let phys = boot(&map, &BARE);
        assert_eq!((phys.managed_pages(), plan.unwrap().managed_pages()), (count, count), "round {round}");
        for (frame, &managed) in (0..).zip(&expected) {
            let state = phys.page(pfn(frame)).map(|page| page.state());
            let free = state.is_some_and(|state| !matches!(state, PageState::Absent | PageState::Reserved));
            assert_eq!(free, managed, "round {round} frame {frame} of {map:?}");
        }
        phys.check(&pin(0)).unwrap();
    }
}

#[test]
fn frame_zero_is_a_frame_and_a_zone_may_have_one_page() {
    let phys = boot(&[frames(0, 1)], &BARE);
    let pin = pin(0);
    assert_eq!(phys.zones().len(), 1);
    assert_eq!(phys.zones()[0].span().managed_pages, 1);
    let frame = phys.alloc_pages(&pin, GfpFlags::KERNEL, PageOrder::ZERO).unwrap();
    assert_eq!(frame.get(), 0);
    assert!(phys.alloc_pages(&pin, GfpFlags::KERNEL, PageOrder::ZERO).is_err());
    phys.free_pages(&pin, frame, PageOrder::ZERO).unwrap();
    phys.check(&pin).unwrap();
}

#[test]
fn without_frames_above_the_direct_map_there_is_no_highmem_zone() {
    let limits = ZoneLimits { dma_end: pfn(256), normal_end: pfn(1024) };
    let config = Config { zones: limits, ..BARE };
    let kinds = |count| boot(&[frames(0, count)], &config).zones().iter().map(Zone::kind).collect::<Vec<_>>();
    assert_eq!(kinds(256), [ZoneKind::Dma]);
    assert_eq!(kinds(1024), [ZoneKind::Dma, ZoneKind::Normal]);
    assert_eq!(kinds(1025), [ZoneKind::Dma, ZoneKind::Normal, ZoneKind::HighMem]);
    let phys = boot(&[frames(0, 1024)], &config);
    assert!(phys.alloc_pages(&pin(0), GfpFlags::HIGHUSER, PageOrder::ZERO).is_ok());
    assert_eq!(phys.nodes()[0].zone(ZoneKind::HighMem), None);
}

#[test]
fn blocks_never_reach_across_holes_ends_or_borders() {
    let nodes = [
        NodeRange { base: 0, len: 700 << 12, node: 0 },
        NodeRange { base: 700 << 12, len: 1 << 30, node: 1 },
    ];
    let config =
        Config { zones: ZoneLimits { dma_end: pfn(300), normal_end: pfn(1100) }, nodes: &nodes, ..BARE };
    // Holes on both sides of the page-block border at 512 and at 1024, an unaligned start, a partial last block.
    let map = [frames(3, 508), frames(513, 511), frames(1025, 600)];
    let phys = boot(&map, &config);
    let pin = pin(0);
    phys.check(&pin).unwrap();
    let by_zone: Vec<_> = phys
        .zones()
        .iter()
        .map(|zone| (zone.node(), zone.kind(), zone.span().span.start().get(), zone.span().span.end().get()))
        .collect();
    use ZoneKind::{Dma, HighMem, Normal};
    assert_eq!(
        by_zone,
        [(0, Dma, 3, 300), (0, Normal, 300, 700), (1, Normal, 700, 1100), (1, HighMem, 1100, 1625)]
    );
    for (frame, kind) in [(511, None), (512, None), (1024, None), (299, Some(Dma)), (300, Some(Normal))] {
        let found = phys.page(pfn(frame)).filter(|page| page.state() != PageState::Absent);
        assert_eq!(found.map(|_| phys.zone_of(pfn(frame)).unwrap().kind()), kind, "frame {frame}");
    }
    assert_eq!(phys.zone_of(pfn(699)).unwrap().node(), 0);
    assert_eq!(phys.zone_of(pfn(700)).unwrap().node(), 1);
    assert_eq!(phys.managed_pages(), 508 + 511 + 600);
    let mut given = vec![];
    for order in PageOrder::all().rev() {
        for node in [0, 1] {
            while let Ok(at) = phys.alloc_pages_node(&pin, node, GfpFlags::HIGHUSER, order) {
                given.push((at, order));
            }
        }
    }
    assert_eq!(given.iter().map(|(_, order)| order.pages()).sum::<u64>(), phys.managed_pages());
    for (at, order) in given {
        phys.free_pages(&pin, at, order).unwrap();
    }
    phys.drain_all(&pin);
    phys.check(&pin).unwrap();
}

#[test]
fn what_firmware_mentions_is_reserved_and_what_it_does_not_is_foreign() {
    use kernmm::phys::FreeError;
    let map = [
        frames(0, 100),
        line(MemoryKind::Reserved, 50 << 12, 1),
        line(MemoryKind::AcpiReclaimable, 200 << 12, 4096),
    ];
    let phys = boot(&map, &BARE);
    let free = |frame| phys.free_pages(&pin(0), pfn(frame), PageOrder::ZERO);
    assert_eq!(free(50), Err(FreeError::Reserved), "one reserved byte reserves its frame");
    assert_eq!(free(200), Err(FreeError::Reserved));
    assert_eq!(free(150), Err(FreeError::Foreign));
    assert_eq!(free(1 << 30), Err(FreeError::Foreign));
    assert_eq!(free(49), Err(FreeError::DoubleFree));
    assert_eq!(phys.managed_pages(), 99);
}

#[test]
fn a_bad_map_is_refused_with_its_error_and_the_memory_is_untouched() {
    let good = [frames(0, 2000)];
    let node = |base, len, node| NodeRange { base, len, node };
    let overlap = [node(0, 0x2000, 0), node(0x1fff, 0x1000, 1)];
    let high = [node(0, 0x1000, MAX_NODES as u8)];
    let wraps = [node(u64::MAX, 2, 0)];
    let cases: &[(&[MemoryRange], Config<'_>, InitError)] = &[
        (&[], BARE, InitError::NoMemory),
        (&[usable(1, 0x1ffe)], BARE, InitError::NoMemory),
        (&[frames(5, 1), line(MemoryKind::Bad, 5 << 12, 1)], BARE, InitError::NoMemory),
        (&[usable(u64::MAX, 2)], BARE, InitError::RangeTooHigh(u64::MAX)),
        (&[good[0], usable(1 << 52, 1)], BARE, InitError::RangeTooHigh(1 << 52)),
        (&[usable(0x1000, 1 << 52)], BARE, InitError::RangeTooHigh(0x1000)),
        (&[usable(0, 1 << 52)], BARE, InitError::TooManyFrames),
        (&good, Config { nodes: &overlap, ..BARE }, InitError::NodesOverlap(0x1fff)),
        (&good, Config { nodes: &high, ..BARE }, InitError::NodeTooHigh(MAX_NODES as u8)),
        (&good, Config { nodes: &wraps, ..BARE }, InitError::RangeTooHigh(u64::MAX)),
        (&good, Config { cpus: &[], ..BARE }, InitError::BadCpus),
        (&good, Config { cpus: &[0; 4097], ..BARE }, InitError::BadCpus),
        (&good, Config { cpus: &[200], ..BARE }, InitError::NodeTooHigh(200)),
        (&good, Config { distances: &[10, 20, 20], ..BARE }, InitError::BadDistances),
        (&good, Config { distances: &[10, 9, 20, 10], ..BARE }, InitError::BadDistances),
        (&good, Config { distances: &[11, 20, 20, 10], ..BARE }, InitError::BadDistances),
        (
            &good,
            Config { zones: ZoneLimits { dma_end: pfn(9), normal_end: pfn(8) }, ..BARE },
            InitError::BadZoneLimits,
        ),
    ];
    let mut memory = vec![MaybeUninit::new(0x5a_u8); 1 << 20];
    for (map, config, error) in cases {
        assert_eq!(Plan::new(map.iter().copied(), config).err(), Some(*error), "{map:?}");
        let refused = Phys::init(&pin(0), map.iter().copied(), config, &mut memory).err();
        assert_eq!(refused, Some(*error), "{map:?}");
    }
    let needed = Plan::new(good.iter().copied(), &BARE).unwrap().metadata_layout();
    let aligned = memory.as_ptr().align_offset(needed.align());
    let mut init = |from: usize, len: usize| {
        Phys::init(&pin(0), good.iter().copied(), &BARE, &mut memory[from..from + len]).map(drop).err()
    };
    assert_eq!(init(aligned, needed.size() - 1), Some(InitError::MetadataTooSmall(needed.size())));
    assert_eq!(init(aligned + 8, needed.size()), Some(InitError::MetadataMisaligned));
    // SAFETY: all bytes were given a value, and nothing was built in them.
    assert!(memory.iter().all(|byte| unsafe { byte.assume_init() } == 0x5a), "a refused map left traces");
}

#[test]
fn exactly_the_memory_asked_for_is_enough() {
    for map in [vec![frames(0, 1)], pc(64 << 20), vec![frames(511, 2), frames(1 << 39, 70_000)]] {
        let layout = Plan::new(map.iter().copied(), &BARE).unwrap().metadata_layout();
        let memory = &mut leaked(layout)[..layout.size()];
        Phys::init(&pin(0), map.iter().copied(), &BARE, memory).unwrap().check(&pin(0)).unwrap();
    }
}

#[test]
fn metadata_follow_the_frames_and_not_the_span() {
    let map = [usable(0, 64 << 20), usable(1 << 51, 64 << 20)];
    let bytes = Plan::new(map.iter().copied(), &Config::default()).unwrap().metadata_layout().size();
    assert!(bytes < 5 << 20, "{bytes} bytes for 128 MiB");
    let phys = boot(&map, &Config { watermarks: WatermarkConfig::NONE, ..Config::default() });
    let pin = pin(0);
    let (mut low, mut high) = (0, 0);
    while let Ok(frame) = phys.alloc_pages(&pin, GfpFlags::KERNEL, PageOrder::MAX) {
        if frame.addr().get() >> 51 == 0 { low += 1 } else { high += 1 }
    }
    assert_eq!((low, high), (32, 32));
    phys.check(&pin).unwrap();
    println!("metadata of 64 MiB at 0 and at 2^51: {bytes} bytes");
}

/// Linux's square root by search.
fn root(square: u64) -> u64 {
    (0..).find(|root: &u64| (root + 1) * (root + 1) > square).unwrap()
}

#[test]
fn watermarks_and_reserves_are_linuxs_to_the_page() {
    use ZoneKind::{Dma, HighMem, Normal};
    let limits = ZoneLimits { dma_end: pfn(4096), normal_end: pfn(0x3_8000) };
    let config = Config { zones: limits, watermarks: WatermarkConfig::default(), ..Config::default() };
    let map = [frames(1, 158), frames(256, 0x5_0000 - 256)];
    let phys = boot(&map, &config);
    let [dma, normal, high] = phys.zones() else { panic!("three zones") };
    let managed = [dma, normal, high].map(|zone| zone.span().managed_pages);
    assert_eq!(managed, [158 + 3840, 0x3_8000 - 4096, 0x5_0000 - 0x3_8000]);
    let lowmem = managed[0] + managed[1];
    let min_free = root(lowmem * 4 * 16);
    assert_eq!(phys.min_free_kbytes(&pin(0)), min_free);
    for (zone, managed) in [(dma, managed[0]), (normal, managed[1]), (high, managed[2])] {
        let share = min_free / 4 * managed / lowmem;
        let min = if zone.kind() == HighMem { (managed / 1024).clamp(32, 128) } else { share };
        let gap = (share / 4).max(managed * 10 / 10_000);
        assert_eq!(
            zone.watermarks(),
            Watermarks { min, low: min + gap, high: min + 2 * gap },
            "{:?}",
            zone.kind()
        );
    }
    let reserve = |zone: &Zone<'_>| [Dma, Normal, HighMem].map(|kind| zone.lowmem_reserve(kind));
    assert_eq!(reserve(dma), [0, managed[1] / 256, (managed[1] + managed[2]) / 256]);
    assert_eq!(reserve(normal), [0, 0, managed[2] / 256]);
    assert_eq!(reserve(high), [0, 0, 0]);
}

/// With all lists off a request of each kind gets frames down to exactly its mark plus the reserve.
#[test]
fn each_request_stops_at_exactly_its_mark() {
    use GfpFlags as G;
    let limits = ZoneLimits { dma_end: pfn(0), normal_end: pfn(8192) };
    let config = Config {
        zones: limits,
        batch: Some(0),
        watermarks: WatermarkConfig { min_free_kbytes: Some(1003 * 4), ..WatermarkConfig::default() },
        ..Config::default()
    };
    let map = [frames(0, 8192 + 2048)];
    let marks = Watermarks { min: 1003, low: 1253, high: 1503 };
    // Half of 1003 is 501, so 502 stay; a quarter of these is 125.
    let cases = [
        (G::KERNEL, 0, 1003),
        (G::NOWAIT, 0, 1003),
        (G::KERNEL | G::HIGH, 0, 502),
        (G::ATOMIC, 0, 377),
        (G::KERNEL | G::MEMALLOC, 0, 0),
        (G::KERNEL | G::MEMALLOC | G::NOMEMALLOC, 0, 1003),
        (G::HIGHUSER, 0, 1003 + 2048 / 256),
        (G::KERNEL, 3, 1003),
    ];
    for (gfp, order, mark) in cases {
        let phys = boot(&map, &config);
        let pin = pin(0);
        let [normal, high] = phys.zones() else { panic!("two zones") };
        assert_eq!(normal.watermarks(), marks);
        let order = common::order(order);
        while phys.alloc_pages(&pin, gfp, order).is_ok() {}
        let left = normal.free_pages();
        assert!(mark <= left && left < mark + order.pages(), "{gfp:?} left {left}, not {mark}");
        let touched = high.free_pages() != high.span().managed_pages;
        assert_eq!(touched, gfp.contains(G::HIGHMEM));
        phys.check(&pin).unwrap();
    }
}

#[test]
fn zonelists_go_by_distance_and_take_the_highest_zone_of_a_node_first() {
    let quarter = 2048_u64;
    let nodes: Vec<_> = (0..4)
        .map(|node| NodeRange { base: (node * quarter) << 12, len: quarter << 12, node: node as u8 })
        .collect();
    let distances = [10, 20, 30, 20, 20, 10, 20, 30, 30, 20, 10, 20, 20, 30, 20, 10];
    let config = Config { nodes: &nodes, distances: &distances, cpus: &[0, 1, 2, 3], ..BARE };
    for (cpu, order) in [(0, [0, 1, 3, 2]), (1, [1, 2, 0, 3]), (2, [2, 3, 1, 0]), (3, [3, 0, 2, 1])] {
        let phys = boot(&[frames(0, 4 * quarter)], &config);
        let pin = pin(cpu);
        let mut seen = vec![];
        while let Ok(frame) = phys.alloc_pages(&pin, GfpFlags::KERNEL, PageOrder::MAX) {
            seen.push(phys.zone_of(frame).unwrap().node());
        }
        assert_eq!(seen.len(), 16);
        seen.dedup();
        assert_eq!(seen, order, "from node {cpu}");
    }
    let limits = ZoneLimits { dma_end: pfn(512), normal_end: pfn(1024) };
    let phys = boot(&[frames(0, 2 * quarter)], &Config { zones: limits, nodes: &nodes[..2], ..BARE });
    let mut seen = vec![];
    while let Ok(frame) = phys.alloc_pages(&pin(0), GfpFlags::HIGHUSER, PageOrder::MAX) {
        let zone = phys.zone_of(frame).unwrap();
        seen.push((zone.node(), zone.kind()));
    }
    seen.dedup();
    use ZoneKind::{Dma, HighMem, Normal};
    assert_eq!(seen, [(0, HighMem), (0, Normal), (0, Dma), (1, HighMem)]);
}

/// 2^28 frames: 8 GiB of metadata, in the long suite alone.
#[test]
fn a_tebibyte_boots_in_the_long_suite() {
    let frames_log2 = if common::long() { 28 } else { 18 };
    let map = [frames(0, 1 << frames_log2)];
    let layout = Plan::new(map.iter().copied(), &Config::default()).unwrap().metadata_layout();
    let mut lines = Vec::<[u64; 8]>::new();
    lines.try_reserve_exact(layout.size() / 64 + 1).expect("memory for the metadata");
    let spare: &mut [MaybeUninit<[u64; 8]>] = lines.spare_capacity_mut();
    let bytes = size_of_val(spare);
    // SAFETY: the spare capacity is that many bytes, of which nothing is asked.
    let memory =
        unsafe { std::slice::from_raw_parts_mut(spare.as_mut_ptr().cast::<MaybeUninit<u8>>(), bytes) };
    let skip = memory.as_ptr().align_offset(layout.align());
    let started = std::time::Instant::now();
    let phys = Phys::init(&pin(0), map.iter().copied(), &Config::default(), &mut memory[skip..]);
    let took = started.elapsed();
    let size = layout.size();
    println!(
        "2^{frames_log2} frames: booted in {took:?} with {size} bytes, {:.2} a frame",
        size as f64 / (1_u64 << frames_log2) as f64
    );
    let phys = phys.expect("boots");
    assert_eq!(phys.managed_pages(), 1 << frames_log2);
    let frame = phys.alloc_pages(&pin(0), GfpFlags::HIGHUSER_MOVABLE, PageOrder::MAX).unwrap();
    phys.free_pages(&pin(0), frame, PageOrder::MAX).unwrap();
    assert!(size as u64 <= (1 << frames_log2) * 33, "metadata of more than 32 bytes a frame and a little");
}
