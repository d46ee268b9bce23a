//! When a put-off merge is done: each trigger by its counter, and how much one call may have to merge.

mod common;

use common::{Random, boot, frames, order, pfn, pin};
use kernmm::addr::{PageOrder, Pfn, PfnRange};
use kernmm::flags::GfpFlags;
use kernmm::phys::{
    BuddyEvents, Config, DeferredBound, Merging, PageState, Phys, WatermarkConfig, ZoneLimits,
};

/// One zone, no reserves, no per-CPU lists.
const PLAIN: Config<'static> = Config {
    zones: ZoneLimits { dma_end: Pfn::ZERO, normal_end: Pfn::MAX },
    nodes: &[],
    distances: &[],
    cpus: &[0],
    merging: Merging::Deferred,
    deferred_bound: DeferredBound::Pages(64),
    batch: Some(0),
    watermarks: WatermarkConfig::NONE,
};

fn events(phys: &Phys<'_>) -> BuddyEvents {
    phys.zones()[0].stat(&pin(0)).events
}

fn alloc(phys: &Phys<'_>, at: u8) -> Pfn {
    phys.alloc_pages(&pin(0), GfpFlags::KERNEL, order(at)).unwrap()
}

fn free(phys: &Phys<'_>, frame: Pfn, at: u8) {
    phys.free_pages(&pin(0), frame, order(at)).unwrap();
}

fn state(phys: &Phys<'_>, frame: Pfn) -> (PageState, Option<u8>) {
    let page = phys.page(frame).unwrap();
    (page.state(), page.order().map(PageOrder::get))
}

/// Allocates and frees a pair of buddies, which then wait for their merge.
fn deferred_pair(phys: &Phys<'_>) -> [Pfn; 2] {
    let pair = [alloc(phys, 0), alloc(phys, 0)];
    assert_eq!(pair[0].get() ^ 1, pair[1].get());
    pair.iter().for_each(|&frame| free(phys, frame, 0));
    for frame in pair {
        assert_eq!(state(phys, frame), (PageState::Deferred, Some(0)));
    }
    pair
}

#[test]
fn a_freed_pair_stays_split_and_is_allocated_again_without_a_split() {
    let phys = boot(&[frames(0, 512)], &PLAIN);
    let pair = deferred_pair(&phys);
    let before = events(&phys);
    assert_eq!((before.deferred, before.merges), (2, 0));
    for _ in 0..100 {
        let again = [alloc(&phys, 0), alloc(&phys, 0)];
        assert_eq!([again[1], again[0]], pair, "last in, first out");
        pair.iter().for_each(|&frame| free(&phys, frame, 0));
    }
    let after = events(&phys);
    assert_eq!((after.splits, after.merges), (before.splits, 0));
    assert_eq!(after.deferred_hits, 200);
    assert_eq!(phys.zones()[0].stat(&pin(0)).deferred, 2);
    assert_eq!(phys.free_pages_total(), 512, "deferred pages count as free");
}

#[test]
fn immediate_merging_defers_nothing_and_merges_what_waits() {
    let phys = boot(&[frames(0, 512)], &Config { merging: Merging::Immediate, ..PLAIN });
    let frame = alloc(&phys, 0);
    free(&phys, frame, 0);
    assert_eq!((events(&phys).deferred, events(&phys).merges), (0, 9));
    let phys = boot(&[frames(0, 512)], &PLAIN);
    deferred_pair(&phys);
    phys.set_merging(&pin(0), Merging::Immediate);
    assert_eq!(phys.zones()[0].merging(&pin(0)), Merging::Immediate);
    assert_eq!(state(&phys, pfn(0)), (PageState::Free, Some(9)));
    assert_eq!(events(&phys).merges, 9);
}

#[test]
fn a_request_that_finds_nothing_large_enough_merges_until_it_is_satisfied() {
    let phys = boot(&[frames(0, 64)], &Config { deferred_bound: DeferredBound::Unbounded, ..PLAIN });
    let all: Vec<_> = (0..64).map(|_| alloc(&phys, 0)).collect();
    all.iter().take(32).for_each(|&frame| free(&phys, frame, 0));
    let before = events(&phys);
    assert_eq!(before.merges, 0);
    assert_eq!(phys.zones()[0].stat(&pin(0)).deferred, 32);
    let block = alloc(&phys, 1);
    assert_eq!(block.get() % 2, 0);
    let after = events(&phys);
    assert_eq!(after.coalesced_order - before.coalesced_order, 1);
    assert_eq!(after.merges - before.merges, 1, "one merge makes a block of order 1, and no more is done");
    assert_eq!(after.coalesced_asked, before.coalesced_asked);
    phys.check(&pin(0)).unwrap();
    free(&phys, block, 1);
    let big = alloc(&phys, 5);
    assert_eq!(big.get() % 32, 0, "all 32 pages freed make one block of order 5");
}

#[test]
fn below_the_low_watermark_all_is_merged_and_nothing_deferred() {
    let watermarks =
        WatermarkConfig { min_free_kbytes: Some(64 * 4), scale_factor: 0, lowmem_reserve_ratio: [0; 3] };
    let phys = boot(&[frames(0, 512)], &Config { watermarks, ..PLAIN });
    let low = phys.zones()[0].watermarks().low;
    assert_eq!(low, 64 + 16);
    let pair = deferred_pair(&phys);
    let mut held = vec![];
    while phys.free_pages_total() > low {
        // From large blocks, past the pair, which waits on.
        held.push((alloc(&phys, 3), 3));
        let waits = phys.free_pages_total() >= low;
        assert_eq!(state(&phys, pair[0]).0 == PageState::Deferred, waits, "{} free", phys.free_pages_total());
    }
    assert_eq!(events(&phys).coalesced_low, 0, "at the mark nothing is merged");
    assert_eq!(phys.free_pages_total(), low);
    held.push((alloc(&phys, 3), 3));
    assert_eq!(events(&phys).coalesced_low, 1);
    assert_eq!(phys.zones()[0].stat(&pin(0)).deferred, 0);
    let before = events(&phys);
    let one = alloc(&phys, 0);
    free(&phys, one, 0);
    assert_eq!(events(&phys).deferred, before.deferred, "below the mark a free merges at once");
    held.into_iter().for_each(|(frame, at)| free(&phys, frame, at));
    phys.check(&pin(0)).unwrap();
}

#[test]
fn the_bound_holds_at_every_moment() {
    for bound in [1, 7, 64] {
        let phys = boot(&[frames(0, 2048)], &Config { deferred_bound: DeferredBound::Pages(bound), ..PLAIN });
        let live: Vec<_> = (0..=255).map(|at| (alloc(&phys, at % 3), at % 3)).collect();
        for (frame, at) in live {
            free(&phys, frame, at);
            assert!(phys.zones()[0].stat(&pin(0)).deferred <= bound);
        }
        assert_eq!(phys.zones()[0].deferred_bound(&pin(0)), bound);
        assert!(events(&phys).coalesced_bound > 0);
        phys.set_deferred_bound(&pin(0), DeferredBound::Pages(bound / 2));
        assert!(phys.zones()[0].stat(&pin(0)).deferred <= bound / 2, "a smaller bound holds at once");
        phys.set_deferred_bound(&pin(0), DeferredBound::Pages(0));
        assert_eq!(state(&phys, pfn(0)), (PageState::Free, Some(9)));
        phys.check(&pin(0)).unwrap();
    }
}

/// A block is put off only while fewer wait than are in use and 32 more.
#[test]
fn a_block_waits_only_where_fewer_wait_than_are_in_use_and_a_few() {
    let phys = boot(&[frames(0, 2048)], &Config { deferred_bound: DeferredBound::Unbounded, ..PLAIN });
    let live: Vec<_> = (0..400).map(|_| alloc(&phys, 0)).collect();
    let (mut waited, mut merged) = (0, 0);
    for (freed, frame) in (1..).zip(live) {
        let stat = || phys.zones()[0].stat(&pin(0));
        let before = stat();
        free(&phys, frame, 0);
        let waits = stat().events.deferred != before.events.deferred;
        assert_eq!(waits, before.deferred_blocks[0] < 400 - freed + 32, "after {freed} frees");
        if waits { waited += 1 } else { merged += 1 }
    }
    assert!(waited > 200 && merged > 100, "{waited} {merged}");
}

#[test]
fn whoever_asks_gets_everything_merged() {
    let ways: [fn(&Phys<'_>); 3] = [
        |phys| phys.coalesce(&pin(0)),
        |phys| phys.drain_all(&pin(0)),
        |phys| phys.alloc_range(&pin(0), PfnRange::new(pfn(0), pfn(1)).unwrap()).unwrap(),
    ];
    for ask in ways {
        let phys = boot(&[frames(0, 512), frames(1024, 512)], &PLAIN);
        deferred_pair(&phys);
        ask(&phys);
        assert_eq!(phys.zones()[0].stat(&pin(0)).deferred, 0);
        assert_eq!(events(&phys).coalesced_asked, 1);
        phys.coalesce(&pin(0));
        assert_eq!(events(&phys).coalesced_asked, 1, "nothing waited");
    }
}

#[test]
fn the_largest_blocks_never_wait_having_no_buddy() {
    let phys = boot(&[frames(0, 1024)], &Config { deferred_bound: DeferredBound::Unbounded, ..PLAIN });
    let frame = alloc(&phys, 9);
    free(&phys, frame, 9);
    assert_eq!(state(&phys, frame), (PageState::Free, Some(9)));
    assert_eq!(events(&phys).deferred, 0);
}

/// The worst single call. With per-CPU lists off an allocation may have to merge all that waits: `bound` pages, which are at most `bound`
/// blocks, and each block that is merged meets at most 9 buddies. A free merges its own block alone: at most 9.
#[test]
fn one_call_merges_no_more_than_nine_times_the_bound() {
    let mut worst = (0, 0);
    for (seed, bound) in [(1, 16), (2, 64), (3, 252)] {
        let watermarks = WatermarkConfig { min_free_kbytes: Some(200 * 4), ..WatermarkConfig::default() };
        let deferred_bound = DeferredBound::Pages(bound);
        let phys = boot(&[frames(0, 4096)], &Config { deferred_bound, watermarks, ..PLAIN });
        let random = Random::new(seed);
        let mut live = vec![];
        for round in 0..60_000_u64 {
            let before = events(&phys).merges;
            let filling = round / 4000 % 2 == 0;
            let allocates = live.is_empty() || random.below(8) < if filling { 5 } else { 3 };
            let at = if random.below(16) == 0 { random.below(10) as u8 } else { random.below(2) as u8 };
            if allocates {
                let gfp = [GfpFlags::KERNEL, GfpFlags::HIGHUSER_MOVABLE][random.below(2) as usize];
                live.extend(phys.alloc_pages(&pin(0), gfp, order(at)).map(|frame| (frame, at)));
            } else {
                let (frame, at) = live.swap_remove(random.below(live.len() as u64) as usize);
                free(&phys, frame, at);
            }
            let merges = events(&phys).merges - before;
            let limit = if allocates { 9 * bound } else { 9 };
            assert!(merges <= limit, "seed {seed} bound {bound}: {merges} merges in one call");
            let side = if allocates { &mut worst.0 } else { &mut worst.1 };
            *side = merges.max(*side);
        }
        phys.check(&pin(0)).unwrap();
    }
    println!("worst single call: {} merges in an allocation, {} in a free", worst.0, worst.1);
    assert!(worst.0 > 16 && worst.1 == 9, "the run was too tame to show anything: {worst:?}");
}

/// A zone of a GiB for two CPUs, whose magazines and depot are on, without reserves. By the bounds, what waits is at most 252 deferred
/// blocks, 2 × 3 × 2 × (63 + 31 + 15 + 7) in the magazines of the CPUs for three types and orders 0 to 3, and 504 in the depot.
#[test]
fn one_call_merges_no_more_than_nine_times_what_lists_and_bound_let_wait() {
    const WAITING: u64 = 252 + 1392 + 504;
    const KINDS: [GfpFlags; 3] =
        [GfpFlags::KERNEL, GfpFlags::HIGHUSER_MOVABLE, GfpFlags::NOFS.union(GfpFlags::RECLAIMABLE)];
    let config = Config { cpus: &[0, 0], batch: None, deferred_bound: DeferredBound::Auto, ..PLAIN };
    let phys = boot(&[frames(0, 1 << 18)], &config);
    let pins = [pin(0), pin(1)];
    let random = Random::new(7);
    let (mut worst, mut most) = (0, 0);
    for round in 0..12 {
        // Small blocks of every kind all over a part of the zone, freed in any order.
        let mut small = vec![];
        for at in 0..40_000_u64 {
            let (cpu, size) = (at as usize % 2, random.below(4) as u8);
            let gfp = KINDS[random.below(3) as usize];
            small.push((phys.alloc_pages(&pins[cpu], gfp, order(size)).unwrap(), size));
        }
        while !small.is_empty() {
            let (frame, size) = small.swap_remove(random.below(small.len() as u64) as usize);
            phys.free_pages(&pins[random.below(2) as usize], frame, order(size)).unwrap();
        }
        // Whole page blocks until none can be had; the request that ends it gathers and merges all there is.
        let mut whole = vec![];
        loop {
            let before = phys.zones()[0].stat(&pins[0]);
            let deferred: u64 = before.deferred_blocks.iter().sum();
            let got = phys.alloc_pages(&pins[round % 2], GfpFlags::KERNEL, PageOrder::MAX);
            let merges = events(&phys).merges - before.events.merges;
            // A magazine for order 9 has one block, which has no buddy.
            let kept: u64 = before.on_cpus.min(2 * 3 * 2 * 4 * 63) + before.in_depot;
            assert!(
                deferred <= 252 && merges <= 9 * (deferred + kept).min(WAITING),
                "{merges} merges, {before:?}"
            );
            worst = merges.max(worst);
            most = (deferred + kept).max(most);
            match got {
                Ok(block) => whole.push(block),
                Err(_) => break,
            }
        }
        whole.into_iter().for_each(|block| phys.free_pages(&pins[0], block, PageOrder::MAX).unwrap());
        phys.check(&pins[0]).unwrap();
    }
    println!("worst single call with lists on: {worst} merges; at most {most} pages waited");
    assert!(worst > 500, "the run was too tame to show anything: {worst}");
}
