//! Random operations beside a naive model: two nodes, three zones each, two CPUs.
//!
//! The model knows which frames are allocated and nothing of lists. After every operation free + per-CPU + depot +
//! allocated = managed holds for each zone; a block given is aligned, was free and lies in a zone that the request may use. A request
//! fails exactly if no zone that it may use has, above the mark, an aligned free block: completeness, from the other side.

mod common;

use std::collections::BTreeMap;

use common::{Random, boot, frames, order, pfn, pin};
use kernmm::addr::{PageOrder, Pfn, PfnRange};
use kernmm::flags::GfpFlags;
use kernmm::phys::{
    AllocError, Config, DeferredBound, FreeError, Merging, Phys, WatermarkConfig, Zone, ZoneKind, ZoneLimits,
};
use kernmm::platform::{CpuPin, NodeRange};

/// Frames from 0 to here, some of them holes.
const FRAMES: usize = 8192;

const GFP: [GfpFlags; 13] = [
    GfpFlags::KERNEL,
    GfpFlags::DMA.union(GfpFlags::KERNEL),
    GfpFlags::HIGHUSER,
    GfpFlags::HIGHUSER_MOVABLE,
    GfpFlags::ATOMIC,
    GfpFlags::NOWAIT,
    GfpFlags::NOIO,
    GfpFlags::NOFS.union(GfpFlags::RECLAIMABLE),
    GfpFlags::KERNEL.union(GfpFlags::MEMALLOC),
    GfpFlags::KERNEL.union(GfpFlags::MEMALLOC).union(GfpFlags::NOMEMALLOC),
    GfpFlags::HIGHUSER_MOVABLE.union(GfpFlags::COMP),
    GfpFlags::KERNEL.union(GfpFlags::THISNODE),
    GfpFlags::KERNEL.union(GfpFlags::HIGH).union(GfpFlags::NORETRY),
];

struct Model {
    phys: Phys<'static>,
    pins: [CpuPin<'static>; 2],
    random: Random,
    seed: u64,
    used: Vec<bool>,
    /// Live blocks by their first frame, and the same in an order to draw from.
    live: BTreeMap<u64, PageOrder>,
    drawn: Vec<u64>,
    allocated: [u64; 6],
    failures: u64,
    served: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        let map =
            [frames(1, 900), frames(1024, 2871), frames(4096, 1), frames(4200, 3000), frames(7300, 892)];
        let nodes = [
            NodeRange { base: 0, len: 3333 << 12, node: 0 },
            NodeRange { base: 3333 << 12, len: 5000 << 12, node: 1 },
        ];
        let config = Config {
            zones: ZoneLimits { dma_end: pfn(700), normal_end: pfn(5000) },
            nodes: &nodes,
            cpus: &[0, 1],
            ..Config::default()
        };
        Self {
            phys: boot(&map, &config),
            pins: [pin(0), pin(1)],
            random: Random::new(seed),
            seed,
            used: vec![false; FRAMES],
            live: BTreeMap::new(),
            drawn: vec![],
            allocated: [0; 6],
            failures: 0,
            served: 0,
        }
    }

    /// Enters a block that the allocator gave.
    fn enter(&mut self, at: Pfn, order: PageOrder) {
        assert!(at.is_aligned(order), "seed {}: {at:?} is misaligned for order {}", self.seed, order.get());
        let range = PfnRange::with_len(at, order.pages()).unwrap();
        for frame in range.iter() {
            let used = &mut self.used[frame.get() as usize];
            assert!(!*used, "seed {}: {frame:?} was allocated twice", self.seed);
            *used = true;
        }
        let zone = self.phys.zone_of(at).unwrap();
        assert!(zone.span().span.encloses(range), "seed {}: {at:?} crosses its zone", self.seed);
        self.allocated[usize::from(zone.id().get())] += order.pages();
        self.live.insert(at.get(), order);
        self.drawn.push(at.get());
    }

    /// Forgets a live block, drawn at random.
    fn draw(&mut self) -> Option<(Pfn, PageOrder)> {
        loop {
            let len = self.drawn.len() as u64;
            if len == 0 {
                return None;
            }
            let at = self.drawn.swap_remove(self.random.below(len) as usize);
            if let Some(order) = self.live.remove(&at) {
                self.leave(pfn(at), order);
                return Some((pfn(at), order));
            }
        }
    }

    fn leave(&mut self, at: Pfn, order: PageOrder) {
        let zone = self.phys.zone_of(at).unwrap().id();
        self.allocated[usize::from(zone.get())] -= order.pages();
        for frame in at.get()..at.get() + order.pages() {
            self.used[frame as usize] = false;
        }
    }

    /// The free frames that a request must leave in a zone, worked out anew.
    fn floor(zone: &Zone<'_>, gfp: GfpFlags, highest: ZoneKind) -> Option<u64> {
        let min = zone.watermarks().min;
        let stay_out = gfp.contains(GfpFlags::NOMEMALLOC);
        if gfp.contains(GfpFlags::MEMALLOC) && !stay_out {
            return None;
        }
        let mut floor = min;
        if gfp.contains(GfpFlags::HIGH) {
            floor -= min / 2;
            if !gfp.contains(GfpFlags::DIRECT_RECLAIM) && !stay_out {
                floor -= floor / 4;
            }
        }
        Some(floor + zone.lowmem_reserve(highest))
    }

    /// Whether the model says that a request can be served.
    fn can(&self, gfp: GfpFlags, order: PageOrder, node: u8) -> bool {
        let highest = match (gfp.contains(GfpFlags::DMA), gfp.contains(GfpFlags::HIGHMEM)) {
            (true, _) => ZoneKind::Dma,
            (_, true) => ZoneKind::HighMem,
            _ => ZoneKind::Normal,
        };
        self.phys.zones().iter().any(|zone| {
            let free = zone.span().managed_pages - self.allocated[usize::from(zone.id().get())];
            let floor = Self::floor(zone, gfp, highest);
            zone.kind() <= highest
                && (!gfp.contains(GfpFlags::THISNODE) || zone.node() == node)
                && floor.is_none_or(|floor| free >= floor + order.pages())
                && self.has_block(zone, order)
        })
    }

    fn has_block(&self, zone: &Zone<'_>, order: PageOrder) -> bool {
        let span = zone.span().span;
        let step = order.pages();
        let first = span.start().get().next_multiple_of(step);
        (first..span.end().get()).step_by(step as usize).any(|at| {
            (at..at + step).all(|frame| {
                !self.used.get(frame as usize).copied().unwrap_or(true)
                    && self.phys.zone_of(pfn(frame)).is_some_and(|home| home.id() == zone.id())
                    && is_managed(&self.phys, frame)
            })
        })
    }

    fn alloc(&mut self) {
        let cpu = self.random.below(2) as usize;
        let gfp = GFP[self.random.below(GFP.len() as u64) as usize];
        let order = order(match self.random.below(8) {
            0 => self.random.below(10) as u8,
            1 | 2 => self.random.below(4) as u8,
            _ => 0,
        });
        let node = self.random.below(2) as u8;
        let (node, got) = match self.random.below(4) {
            0 => (node, self.phys.alloc_pages_node(&self.pins[cpu], node, gfp, order)),
            _ => (cpu as u8, self.phys.alloc_pages(&self.pins[cpu], gfp, order)),
        };
        match got {
            Ok(at) => {
                self.served += 1;
                self.enter(at, order);
            }
            Err(error) => {
                assert_eq!(error, AllocError::OutOfMemory);
                self.failures += 1;
                assert!(!self.can(gfp, order, node), "seed {}: {gfp:?} {order:?} failed unjustly", self.seed);
                self.phys.drain_all(&self.pins[cpu]);
                let again = self.phys.alloc_pages_node(&self.pins[cpu], node, gfp, order);
                assert_eq!(again, Err(AllocError::OutOfMemory), "seed {}: served after merging", self.seed);
            }
        }
    }

    fn free(&mut self) {
        let cpu = self.random.below(2) as usize;
        let Some((at, order)) = self.draw() else { return };
        assert_eq!(self.phys.free_pages(&self.pins[cpu], at, order), Ok(()), "seed {}", self.seed);
        let twice = self.phys.free_pages(&self.pins[cpu], at, order);
        let known = [FreeError::DoubleFree, FreeError::DoubleFreeDeferred, FreeError::DoubleFreeOnCpu];
        assert!(twice.is_err_and(|error| known.contains(&error)), "seed {}: {twice:?}", self.seed);
    }

    fn bulk(&mut self) {
        let cpu = self.random.below(2) as usize;
        let order = order(self.random.below(4) as u8);
        let mut out = [Pfn::ZERO; 40];
        let wanted = 1 + self.random.below(40) as usize;
        match self.phys.alloc_pages_bulk(
            &self.pins[cpu],
            GfpFlags::HIGHUSER_MOVABLE,
            order,
            &mut out[..wanted],
        ) {
            Ok(count) => {
                out[..count].iter().for_each(|&at| self.enter(at, order));
                if self.random.below(2) == 0 {
                    out[..count].iter().for_each(|&at| {
                        self.live.remove(&at.get());
                        self.leave(at, order);
                    });
                    self.drawn.retain(|at| self.live.contains_key(at));
                    assert_eq!(self.phys.free_pages_bulk(&self.pins[1 - cpu], &out[..count], order), Ok(()));
                }
            }
            Err(error) => {
                assert_eq!(error, AllocError::OutOfMemory);
                assert!(!self.can(GfpFlags::HIGHUSER_MOVABLE, order, cpu as u8), "seed {}", self.seed);
            }
        }
    }

    fn exact(&mut self) {
        let cpu = self.random.below(2) as usize;
        let pages = 1 + self.random.below(64);
        if let Ok(range) = self.phys.alloc_pages_exact(&self.pins[cpu], GfpFlags::HIGHUSER, pages) {
            assert_eq!(range.len(), pages);
            range.iter().for_each(|at| self.enter(at, PageOrder::ZERO));
        }
    }

    fn split(&mut self) {
        let Some((at, whole)) = self.draw() else { return };
        let part = order(self.random.below(u64::from(whole.get()) + 1) as u8);
        assert_eq!(self.phys.split_pages(&self.pins[0], at, whole, part), Ok(()), "seed {}", self.seed);
        for piece in (at.get()..at.get() + whole.pages()).step_by(part.pages() as usize) {
            self.enter(pfn(piece), part);
        }
    }

    fn range(&mut self) {
        let (start, len) = (self.random.below(FRAMES as u64 - 64), 1 + self.random.below(64));
        let range = PfnRange::with_len(pfn(start), len).unwrap();
        let home = self.phys.zone_of(range.start()).map(|zone| zone.id());
        let free = |at: Pfn| {
            is_managed(&self.phys, at.get())
                && !self.used[at.get() as usize]
                && self.phys.zone_of(at).map(|zone| zone.id()) == home
        };
        let busy = range.iter().find(|&at| !free(at));
        match self.phys.alloc_range(&self.pins[self.random.below(2) as usize], range) {
            Ok(()) => {
                assert_eq!(busy, None, "seed {}", self.seed);
                range.iter().for_each(|at| self.enter(at, PageOrder::ZERO));
            }
            Err(AllocError::RangeBusy(_)) => {
                assert!(busy.is_some(), "seed {}: {range:?} was free", self.seed)
            }
            Err(error) => panic!("seed {}: {error}", self.seed),
        }
    }

    fn bad_free(&mut self) {
        let at = pfn(self.random.below(FRAMES as u64 + 600));
        let order = order(self.random.below(10) as u8);
        if self.live.get(&at.get()) != Some(&order) {
            let got = self.phys.free_pages(&self.pins[0], at, order);
            assert!(got.is_err(), "seed {}: {at:?} order {order:?} was freed", self.seed);
        }
    }

    fn tune(&mut self) {
        let pin = &self.pins[self.random.below(2) as usize];
        let pick = self.random.next();
        match self.random.below(4) {
            0 => self.phys.set_merging(
                pin,
                [Merging::Deferred, Merging::Deferred, Merging::Immediate][pick as usize % 3],
            ),
            1 => {
                let bounds =
                    [DeferredBound::Auto, DeferredBound::Unbounded, DeferredBound::Pages(pick >> 8 & 255)];
                self.phys.set_deferred_bound(pin, bounds[pick as usize % 3]);
            }
            2 => self.phys.set_batch(pin, [None, Some(0), Some(2), Some(15)][pick as usize % 4]),
            _ => {
                let some =
                    WatermarkConfig { min_free_kbytes: Some(pick >> 8 & 2047), ..WatermarkConfig::default() };
                self.phys.set_watermarks(
                    pin,
                    [WatermarkConfig::NONE, WatermarkConfig::default(), some][pick as usize % 3],
                );
            }
        }
    }

    fn step(&mut self, aim: u64) {
        let used = self.allocated.iter().sum::<u64>();
        match self.random.below(2000) {
            0..20 => self.exact(),
            20..30 => self.bulk(),
            30..50 => self.split(),
            50..52 => self.range(),
            52..100 => self.bad_free(),
            100..103 => self.phys.drain_own(&self.pins[self.random.below(2) as usize]),
            103 => self.phys.drain_all(&self.pins[self.random.below(2) as usize]),
            104..115 => self.phys.idle(&self.pins[self.random.below(2) as usize]),
            115..117 => self.phys.serve(&self.pins[self.random.below(2) as usize]),
            117 => self.tune(),
            118 => self.phys.coalesce(&self.pins[0]),
            roll if (used < aim) == (roll % 4 != 0) => self.alloc(),
            _ => self.free(),
        }
        for zone in self.phys.zones() {
            let stat = zone.stat(&self.pins[0]);
            let allocated = self.allocated[usize::from(zone.id().get())];
            let sum = stat.free + stat.on_cpus + stat.in_depot + allocated;
            assert_eq!(sum, zone.span().managed_pages, "seed {}: {stat:?}", self.seed);
            assert_eq!(stat.allocated_ever - stat.freed_ever, allocated, "seed {}", self.seed);
        }
    }

    /// Frees all and asserts that the free lists are as at boot.
    fn end(mut self, boot: &[[u64; 10]]) {
        while let Some((at, order)) = self.draw() {
            assert_eq!(self.phys.free_pages(&self.pins[0], at, order), Ok(()));
        }
        self.phys.drain_all(&self.pins[1]);
        assert_eq!(self.phys.check(&self.pins[0]), Ok(()), "seed {}", self.seed);
        assert_eq!(blocks(&self.phys, &self.pins[0]), boot, "seed {}", self.seed);
        assert!(self.failures > 100 && self.served > 1000, "{} {}", self.failures, self.served);
    }
}

fn is_managed(phys: &Phys<'_>, frame: u64) -> bool {
    use kernmm::phys::PageState::{Absent, Reserved};
    phys.page(pfn(frame)).is_some_and(|page| !matches!(page.state(), Absent | Reserved))
}

/// Free blocks by zone and order.
fn blocks(phys: &Phys<'_>, pin: &CpuPin<'_>) -> Vec<[u64; 10]> {
    let by_order = |zone: &Zone<'_>| zone.stat(pin).blocks.map(|kinds| kinds.iter().sum());
    phys.zones().iter().map(by_order).collect()
}

fn run(seed: u64, operations: u64, check_every: u64) -> (u64, u64) {
    let mut model = Model::new(seed);
    assert_eq!(model.phys.zones().len(), 4);
    let boot = blocks(&model.phys, &model.pins[0]);
    let managed = model.phys.managed_pages();
    let mut aim = managed / 2;
    for at in 0..operations {
        if at % 5000 == 0 {
            aim = [managed / 4, managed * 3 / 4, managed, managed + 1][model.random.below(4) as usize];
        }
        model.step(aim);
        if at % check_every == 0 {
            assert_eq!(model.phys.check(&model.pins[0]), Ok(()), "seed {seed} operation {at}");
        }
    }
    let counts = (model.served, model.failures);
    model.end(&boot);
    counts
}

#[test]
fn random_operations_agree_with_the_naive_model() {
    let operations = match (common::long(), cfg!(debug_assertions)) {
        (true, _) => 2_500_000,
        (false, true) => 20_000,
        (false, false) => 100_000,
    };
    let threads = [1, 2, 3, 4].map(|seed| std::thread::spawn(move || (seed, run(seed, operations, 1009))));
    for thread in threads {
        let (seed, (served, failed)) = thread.join().expect("agrees");
        println!("seed {seed}: {operations} operations, {served} served, {failed} failed justly");
    }
}

/// The same with `check` after each operation.
#[test]
fn a_shorter_run_is_checked_after_each_operation() {
    let operations = if cfg!(debug_assertions) { 1500 } else { 10_000 };
    for seed in [11, 12] {
        println!("seed {seed}: {:?} served and failed", run_checked(seed, operations));
    }
}

fn run_checked(seed: u64, operations: u64) -> (u64, u64) {
    let mut model = Model::new(seed);
    let managed = model.phys.managed_pages();
    for at in 0..operations {
        model.step(managed);
        assert_eq!(model.phys.check(&model.pins[0]), Ok(()), "seed {seed} operation {at}");
    }
    (model.served, model.failures)
}
