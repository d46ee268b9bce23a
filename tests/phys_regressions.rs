//! Mistakes that were made once, each by its name.

mod common;

use common::{boot, frames, order, pfn, pin};
use kernmm::addr::{PageOrder, PfnRange};
use kernmm::flags::GfpFlags;
use kernmm::phys::{AllocError, Config, DeferredBound, PageState, WatermarkConfig};
use kernmm::platform::{MemoryRange, NodeRange};

const BARE: Config<'static> = Config {
    zones: kernmm::phys::ZoneLimits { dma_end: kernmm::addr::Pfn::ZERO, normal_end: kernmm::addr::Pfn::MAX },
    nodes: &[],
    distances: &[],
    cpus: &[0],
    merging: kernmm::phys::Merging::Deferred,
    deferred_bound: DeferredBound::Auto,
    batch: None,
    watermarks: WatermarkConfig::NONE,
};

#[test]
fn this_node_holds_on_the_fast_path_of_a_cpu_without_memory() {
    let nodes = [NodeRange { base: 0, len: 64 << 20, node: 0 }];
    let config = Config { nodes: &nodes, cpus: &[0, 1], ..BARE };
    let phys = boot(&[frames(0, 16384)], &config);
    let pin = pin(1);
    // Fills the CPU's magazine with frames of node 0.
    let near = phys.alloc_pages(&pin, GfpFlags::KERNEL, PageOrder::ZERO).unwrap();
    phys.free_pages(&pin, near, PageOrder::ZERO).unwrap();
    let only_own = GfpFlags::KERNEL | GfpFlags::THISNODE;
    assert_eq!(phys.alloc_pages(&pin, only_own, PageOrder::ZERO), Err(AllocError::OutOfMemory));
    assert!(phys.alloc_pages(&pin, GfpFlags::KERNEL, PageOrder::ZERO).is_ok());
}

#[test]
fn contradicting_flags_fail_on_the_fast_path_too() {
    for pages in [600, 16384] {
        let phys = boot(&[frames(0, pages)], &BARE);
        let pin = pin(0);
        let frame = phys.alloc_pages(&pin, GfpFlags::KERNEL, PageOrder::ZERO).unwrap();
        phys.free_pages(&pin, frame, PageOrder::ZERO).unwrap();
        for gfp in [GfpFlags::MOVABLE | GfpFlags::RECLAIMABLE, GfpFlags::DMA | GfpFlags::HIGHMEM] {
            assert_eq!(
                phys.alloc_pages(&pin, gfp, PageOrder::ZERO),
                Err(AllocError::InvalidFlags),
                "{pages}"
            );
        }
    }
}

#[test]
fn an_allocated_range_is_counted_as_allocated() {
    let phys = boot(&[frames(0, 2048)], &Config { batch: Some(0), ..BARE });
    let pin = pin(0);
    phys.alloc_range(&pin, PfnRange::new(pfn(100), pfn(140)).unwrap()).unwrap();
    let stat = phys.zones()[0].stat(&pin);
    assert_eq!((stat.allocated_ever, stat.freed_ever), (40, 0));
    let unknown = common::pin(7);
    let range = PfnRange::new(pfn(200), pfn(201)).unwrap();
    assert_eq!(phys.alloc_range(&unknown, range), Err(AllocError::UnknownCpu));
    assert_eq!(phys.page(pfn(200)).unwrap().state(), PageState::Interior);
}

#[test]
fn the_automatic_bound_does_not_hang_on_the_per_cpu_lists() {
    let watermarks = WatermarkConfig::default();
    let config = Config { watermarks, cpus: &[0, 0], ..BARE };
    let map = [frames(0, 1 << 18)];
    let pin = pin(0);
    let on = boot(&map, &config);
    let off = boot(&map, &Config { batch: Some(0), ..config });
    assert_eq!(on.zones()[0].deferred_bound(&pin), 2 * 63 * 2);
    assert_eq!(off.zones()[0].deferred_bound(&pin), 2 * 63 * 2);
}

/// Linux looks at the first other type that has a block of the size, claims its page block or goes on to the next smaller size.
#[test]
fn a_claim_looks_at_the_first_other_type_only() {
    let phys = boot(
        &[frames(0, 4 * 512)],
        &Config { batch: Some(0), deferred_bound: DeferredBound::Pages(0), ..BARE },
    );
    let pin = pin(0);
    let alloc = |gfp, at| phys.alloc_pages(&pin, gfp, order(at)).unwrap();
    // Block 0 becomes reclaimable and keeps a block of order 7 free, of 384 in use; block 1 becomes movable alike.
    let reclaimable = [7, 7, 7].map(|at| alloc(GfpFlags::RECLAIMABLE, at));
    let rest: Vec<_> = (0..3).map(|_| alloc(GfpFlags::MOVABLE, 9)).collect();
    let home = |frame: kernmm::addr::Pfn| frame.get() >> 9;
    assert!(reclaimable.iter().all(|&frame| home(frame) == home(reclaimable[0])));
    phys.free_pages(&pin, rest[0], order(9)).unwrap();
    alloc(GfpFlags::MOVABLE, 7);
    alloc(GfpFlags::MOVABLE, 7);
    alloc(GfpFlags::MOVABLE, 7);
    let before = phys.zones()[0].stat(&pin).events;
    // A movable page block with 128 free of 512, all in use movable: an unmovable request may not claim either of the two.
    let taken = phys.alloc_pages(&pin, GfpFlags::KERNEL, order(7)).unwrap();
    let after = phys.zones()[0].stat(&pin).events;
    assert_eq!((after.claims - before.claims, after.steals - before.steals), (0, 1));
    assert_eq!(
        home(taken),
        home(reclaimable[0]),
        "the first fallback of an unmovable request is reclaimable"
    );
    phys.check(&pin).unwrap();
}

/// A map whose lines change while they are read is refused, without a panic.
#[test]
fn a_map_that_changes_between_two_readings_is_refused() {
    use std::cell::Cell;

    #[derive(Clone)]
    struct Liar<'a> {
        readings: &'a Cell<u64>,
        seed: u64,
        at: usize,
    }
    impl Iterator for Liar<'_> {
        type Item = MemoryRange;
        fn next(&mut self) -> Option<MemoryRange> {
            if self.at == 0 {
                self.readings.set(self.readings.get() + 1);
            }
            self.at += 1;
            let turn = common::Random::new((self.readings.get() / 40) * self.seed).next();
            let far = ((turn >> 20) % 3) << 26;
            (self.at <= 3).then(|| frames((turn % 7) * 300 + self.at as u64 * 1000 + far, 1 + turn % 600))
        }
    }
    let memory = common::leaked(std::alloc::Layout::from_size_align(2 << 20, 64).unwrap());
    let mut refused = 0;
    for seed in 0..300 {
        let readings = Cell::new(seed);
        let liar = Liar { readings: &readings, seed, at: 0 };
        let config = Config { zones: kernmm::phys::ZoneLimits { dma_end: pfn(1500), ..BARE.zones }, ..BARE };
        let booted = kernmm::phys::Phys::init(&pin(0), liar, &config, memory);
        refused += u64::from(booted.is_err_and(|error| error == kernmm::phys::InitError::MapChanged));
    }
    assert!(refused > 30, "the lies were noticed {refused} times");
}
