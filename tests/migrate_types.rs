//! Fallback between migrate types: whom a request takes from, and when it claims the page block.
//!
//! # Linux
//! `__rmqueue_claim` and `__rmqueue_steal` in `mm/page_alloc.c` (6.18).

mod common;

use common::{boot, frames, order, pin};
use kernmm::addr::Pfn;
use kernmm::flags::GfpFlags;
use kernmm::phys::{Config, DeferredBound, MigrateType, Phys, WatermarkConfig, ZoneLimits};

const UNMOVABLE: GfpFlags = GfpFlags::KERNEL;
const MOVABLE: GfpFlags = GfpFlags::HIGHUSER_MOVABLE;
const RECLAIMABLE: GfpFlags = GfpFlags::KERNEL.union(GfpFlags::RECLAIMABLE);

/// So many page blocks, all movable at boot, merged at once and without per-CPU lists.
fn machine(blocks: u64) -> Phys<'static> {
    let config = Config {
        zones: ZoneLimits { dma_end: Pfn::ZERO, normal_end: Pfn::MAX },
        deferred_bound: DeferredBound::Pages(0),
        batch: Some(0),
        watermarks: WatermarkConfig::NONE,
        ..Config::default()
    };
    boot(&[frames(0, blocks * 512)], &config)
}

fn alloc(phys: &Phys<'_>, gfp: GfpFlags, at: u8) -> Pfn {
    phys.alloc_pages(&pin(0), gfp, order(at)).unwrap()
}

fn block_of(frame: Pfn) -> u64 {
    frame.get() >> 9
}

/// Free blocks of an order, by type: unmovable, movable, reclaimable.
fn free_blocks(phys: &Phys<'_>, at: u8) -> [u64; 3] {
    phys.zones()[0].stat(&pin(0)).blocks[usize::from(at)]
}

/// Claims and steals so far.
fn taken(phys: &Phys<'_>) -> (u64, u64) {
    let events = phys.zones()[0].stat(&pin(0)).events;
    (events.claims, events.steals)
}

#[test]
fn a_request_whose_lists_are_empty_claims_the_largest_block_of_another_type() {
    let phys = machine(8);
    assert_eq!(free_blocks(&phys, 9), [0, 8, 0]);
    let frame = alloc(&phys, UNMOVABLE, 0);
    assert_eq!(taken(&phys), (1, 0));
    assert_eq!(free_blocks(&phys, 9), [0, 7, 0]);
    assert_eq!(free_blocks(&phys, 8), [1, 0, 0], "the rest of the page block is unmovable now");
    let more: Vec<_> = (0..511).map(|_| alloc(&phys, UNMOVABLE, 0)).collect();
    assert!(more.iter().all(|&other| block_of(other) == block_of(frame)));
    assert_eq!(taken(&phys), (1, 0), "no second page block is needed before the first is full");
    alloc(&phys, UNMOVABLE, 0);
    assert_eq!(taken(&phys), (2, 0));
    phys.check(&pin(0)).unwrap();
}

/// Four page blocks in use by movable pages, but for what `gaps` frees of the first.
fn movable_but_for(gaps: &[(u64, u8)]) -> Phys<'static> {
    let phys = machine(4);
    let singles: Vec<_> = (0..2048).map(|_| alloc(&phys, MOVABLE, 0)).collect();
    assert_eq!(phys.free_pages_total(), 0);
    assert_eq!(singles.len(), 2048);
    for &(first, at) in gaps {
        for frame in first..first + (1 << at) {
            phys.free_pages(&pin(0), common::pfn(frame), order(0)).unwrap();
        }
    }
    phys
}

#[test]
fn an_unmovable_request_claims_a_page_block_that_is_half_free() {
    let phys = movable_but_for(&[(0, 8)]);
    let frame = alloc(&phys, UNMOVABLE, 0);
    assert_eq!((block_of(frame), taken(&phys)), (0, (1, 0)));
    assert_eq!(free_blocks(&phys, 7), [1, 0, 0], "what is free of the page block changed lists");
    phys.check(&pin(0)).unwrap();
}

#[test]
fn an_unmovable_request_steals_from_a_page_block_with_one_page_less_free() {
    let phys =
        movable_but_for(&[(0, 7), (128, 6), (192, 5), (224, 4), (240, 3), (248, 2), (252, 1), (254, 0)]);
    assert_eq!(phys.free_pages_total(), 255);
    let frame = alloc(&phys, UNMOVABLE, 0);
    assert_eq!(taken(&phys), (0, 1));
    assert_eq!(frame.get(), 254, "the smallest block that will do");
    assert_eq!(free_blocks(&phys, 7), [0, 1, 0], "the rest stays movable");
    phys.check(&pin(0)).unwrap();
}

#[test]
fn for_an_unmovable_request_pages_that_cannot_move_count_as_alike() {
    // A movable page block with 128 free and, after a steal or two, unmovable pages in it.
    let phys = movable_but_for(&[(0, 7)]);
    for _ in 0..128 {
        alloc(&phys, UNMOVABLE, 0);
    }
    assert_eq!(taken(&phys), (0, 128), "128 of 512 are not enough to claim");
    for frame in 256..384 {
        phys.free_pages(&pin(0), common::pfn(frame), order(0)).unwrap();
    }
    alloc(&phys, UNMOVABLE, 0);
    assert_eq!(taken(&phys), (1, 128), "128 free and 128 unmovable are half of the page block");
    phys.check(&pin(0)).unwrap();
}

#[test]
fn a_movable_request_claims_around_large_blocks_alone_and_else_steals_the_smallest() {
    // All unmovable, then gaps: one of order 3 and one of order 2.
    let phys = machine(4);
    let _all: Vec<_> = (0..2048).map(|_| alloc(&phys, UNMOVABLE, 0)).collect();
    let gap = |first: u64, at: u8| {
        (first..first + (1 << at))
            .for_each(|frame| phys.free_pages(&pin(0), common::pfn(frame), order(0)).unwrap());
    };
    gap(8, 3);
    gap(512 + 4, 2);
    let before = taken(&phys);
    assert_eq!(alloc(&phys, MOVABLE, 0).get() & !3, 512 + 4, "from the smallest block");
    assert_eq!(taken(&phys), (before.0, before.1 + 1));
    // Half a page block free, in pieces of order 3 only: below order 4 a movable request claims nothing.
    (0..32).for_each(|at| gap(1024 + at * 16, 3));
    alloc(&phys, MOVABLE, 3);
    assert_eq!(taken(&phys), (before.0, before.1 + 2));
    // One of order 4 among them: now it does.
    gap(1024 + 8, 3);
    alloc(&phys, MOVABLE, 3);
    assert_eq!(taken(&phys), (before.0 + 1, before.1 + 2));
    phys.check(&pin(0)).unwrap();
}

/// Unmovable: reclaimable, movable. Movable: reclaimable, unmovable. Reclaimable: unmovable, movable.
#[test]
fn fallbacks_go_in_linuxs_order() {
    for (asks, gfp, first) in [
        (MigrateType::Unmovable, UNMOVABLE, MigrateType::Reclaimable),
        (MigrateType::Movable, MOVABLE, MigrateType::Reclaimable),
        (MigrateType::Reclaimable, RECLAIMABLE, MigrateType::Unmovable),
    ] {
        let others: Vec<_> = MigrateType::ALL.into_iter().filter(|&other| other != asks).collect();
        let phys = machine(4);
        let of = |kind| match kind {
            MigrateType::Unmovable => UNMOVABLE,
            MigrateType::Movable => MOVABLE,
            MigrateType::Reclaimable => RECLAIMABLE,
        };
        // Two page blocks of each other type, all in use but for a gap of one page each, which is too little to claim.
        let mut gaps = vec![];
        for &other in &others {
            let frames: Vec<_> = (0..1024).map(|_| alloc(&phys, of(other), 0)).collect();
            gaps.push((other, frames[10]));
        }
        for &(_, frame) in &gaps {
            phys.free_pages(&pin(0), frame, order(0)).unwrap();
        }
        let before = taken(&phys);
        let got = [alloc(&phys, gfp, 0), alloc(&phys, gfp, 0)];
        assert_eq!(taken(&phys), (before.0, before.1 + 2));
        let expected = gaps.iter().find(|(kind, _)| *kind == first).unwrap().1;
        assert_eq!(got[0], expected, "{asks:?} falls back to {first:?} first");
        phys.check(&pin(0)).unwrap();
    }
}

#[test]
fn a_freed_page_goes_back_to_the_type_of_its_page_block() {
    let phys = movable_but_for(&[(0, 7)]);
    let stolen = alloc(&phys, UNMOVABLE, 0);
    assert_eq!(phys.page(stolen).unwrap().migrate_type(), Some(MigrateType::Unmovable));
    phys.free_pages(&pin(0), stolen, order(0)).unwrap();
    assert_eq!(free_blocks(&phys, 7), [0, 1, 0]);
    phys.check(&pin(0)).unwrap();
}

#[test]
fn with_too_few_page_blocks_all_requests_are_of_one_type() {
    let phys = machine(3);
    for gfp in [UNMOVABLE, MOVABLE, RECLAIMABLE] {
        let frame = alloc(&phys, gfp, 0);
        assert_eq!(phys.page(frame).unwrap().migrate_type(), Some(MigrateType::Unmovable));
    }
    assert_eq!(taken(&phys), (0, 0));
}
