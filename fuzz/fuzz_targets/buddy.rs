//! Operations on the frame allocator beside a naive model.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use kernmm::addr::{PageOrder, Pfn, PfnRange};
use kernmm::flags::GfpFlags;
use kernmm::phys::{
    AllocError, Config, DeferredBound, FailRule, Merging, PageState, Phys, Plan, WatermarkConfig, ZoneKind,
    ZoneLimits,
};
use kernmm::platform::{CpuPin, MemoryKind, MemoryRange};
use libfuzzer_sys::fuzz_target;

mod machine;

#[derive(Arbitrary, Debug)]
struct Input {
    batch: Option<u8>,
    bound: u8,
    min_free: u8,
    frames: u16,
    hole: u16,
    ops: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
enum Op {
    Alloc { cpu: bool, gfp: u8, order: u8 },
    Free { cpu: bool, which: u16 },
    FreeWrong { frame: u16, order: u8 },
    Bulk { cpu: bool, order: u8, count: u8 },
    Exact { cpu: bool, pages: u8 },
    Split { which: u16, part: u8 },
    Range { start: u16, len: u8 },
    Drain { cpu: bool, all: bool },
    Idle { cpu: bool },
    Coalesce,
    Batch(u8),
    Bound(u8),
    Merge(bool),
    Marks(u8),
    Fail(u8),
}

const GFP: [GfpFlags; 8] = [
    GfpFlags::KERNEL,
    GfpFlags::DMA,
    GfpFlags::HIGHUSER,
    GfpFlags::HIGHUSER_MOVABLE,
    GfpFlags::ATOMIC,
    GfpFlags::NOWAIT,
    GfpFlags::KERNEL.union(GfpFlags::RECLAIMABLE),
    GfpFlags::KERNEL.union(GfpFlags::MEMALLOC).union(GfpFlags::COMP),
];

struct Model<'m> {
    phys: Phys<'m>,
    pins: [CpuPin<'static>; 2],
    used: Vec<bool>,
    live: BTreeMap<u64, PageOrder>,
}

fn order(raw: u8) -> PageOrder {
    PageOrder::new(raw % 10).expect("below 10")
}

fn pfn(raw: u64) -> Pfn {
    Pfn::new(raw).expect("small")
}

impl Model<'_> {
    fn enter(&mut self, at: Pfn, order: PageOrder) {
        assert!(at.is_aligned(order));
        for frame in at.get()..at.get() + order.pages() {
            assert!(
                !std::mem::replace(&mut self.used[frame as usize], true),
                "frame {frame} was given twice"
            );
        }
        self.live.insert(at.get(), order);
    }

    fn leave(&mut self, which: u16) -> Option<(Pfn, PageOrder)> {
        let at = *self.live.keys().nth(usize::from(which) % self.live.len().max(1))?;
        let order = self.live.remove(&at)?;
        (at..at + order.pages()).for_each(|frame| self.used[frame as usize] = false);
        Some((pfn(at), order))
    }

    /// Whether some zone that the request may use has an aligned free block: marks are left out, so `true` proves nothing.
    fn has_block(&self, gfp: GfpFlags, order: PageOrder) -> bool {
        let highest = match (gfp.contains(GfpFlags::DMA), gfp.contains(GfpFlags::HIGHMEM)) {
            (true, _) => ZoneKind::Dma,
            (_, true) => ZoneKind::HighMem,
            _ => ZoneKind::Normal,
        };
        (0..self.used.len() as u64).step_by(order.pages() as usize).any(|at| {
            (at..at + order.pages()).all(|frame| {
                !self.used.get(frame as usize).copied().unwrap_or(true)
                    && self
                        .phys
                        .zone_of(pfn(frame))
                        .is_some_and(|zone| zone.kind() <= highest && zone.span().span.contains(pfn(at)))
                    && self
                        .phys
                        .page(pfn(frame))
                        .is_some_and(|page| !matches!(page.state(), PageState::Absent | PageState::Reserved))
            })
        })
    }

    fn failed(&mut self, cpu: usize, gfp: GfpFlags, order: PageOrder, error: AllocError) {
        if error == AllocError::Injected {
            return;
        }
        assert_eq!(error, AllocError::OutOfMemory);
        let marks = self.phys.zones().iter().any(|zone| zone.watermarks().high != 0)
            || self
                .phys
                .zones()
                .iter()
                .any(|zone| ZoneKind::ALL.iter().any(|&kind| zone.lowmem_reserve(kind) != 0));
        assert!(marks || !self.has_block(gfp, order), "{gfp:?} {order:?} failed although there is a block");
        self.phys.drain_all(&self.pins[cpu]);
        match self.phys.alloc_pages(&self.pins[cpu], gfp, order) {
            Ok(at) => panic!("{at:?} after a merge"),
            Err(error) => assert!(matches!(error, AllocError::OutOfMemory | AllocError::Injected)),
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Alloc { cpu, gfp, order: raw } => {
                let (cpu, gfp, order) = (usize::from(cpu), GFP[usize::from(gfp) % GFP.len()], order(raw));
                match self.phys.alloc_pages(&self.pins[cpu], gfp, order) {
                    Ok(at) => self.enter(at, order),
                    Err(error) => self.failed(cpu, gfp, order, error),
                }
            }
            Op::Free { cpu, which } => {
                if let Some((at, order)) = self.leave(which) {
                    let pin = &self.pins[usize::from(cpu)];
                    self.phys.free_pages(pin, at, order).expect("it was allocated");
                    self.phys.free_pages(pin, at, order).expect_err("it is free");
                }
            }
            Op::FreeWrong { frame, order: raw } => {
                let (at, order) = (u64::from(frame), order(raw));
                if self.live.get(&at) != Some(&order) {
                    self.phys.free_pages(&self.pins[0], pfn(at), order).expect_err("no such block");
                }
            }
            Op::Bulk { cpu, order: raw, count } => {
                let (order, mut out) = (order(raw % 4), [Pfn::ZERO; 256]);
                let out = &mut out[..usize::from(count)];
                if let Ok(count) =
                    self.phys.alloc_pages_bulk(&self.pins[usize::from(cpu)], GfpFlags::HIGHUSER, order, out)
                {
                    out[..count].iter().for_each(|&at| self.enter(at, order));
                }
            }
            Op::Exact { cpu, pages } => {
                let got = self.phys.alloc_pages_exact(
                    &self.pins[usize::from(cpu)],
                    GfpFlags::HIGHUSER,
                    pages.into(),
                );
                if let Ok(range) = got {
                    assert_eq!(range.len(), u64::from(pages));
                    range.iter().for_each(|at| self.enter(at, PageOrder::ZERO));
                }
            }
            Op::Split { which, part } => {
                if let Some((at, whole)) = self.leave(which) {
                    let part = order(part % (whole.get() + 1));
                    self.phys.split_pages(&self.pins[0], at, whole, part).expect("it was allocated");
                    (at.get()..at.get() + whole.pages())
                        .step_by(part.pages() as usize)
                        .for_each(|piece| self.enter(pfn(piece), part));
                }
            }
            Op::Range { start, len } => {
                let range = PfnRange::with_len(pfn(start.into()), len.into()).expect("small");
                if self.phys.alloc_range(&self.pins[1], range).is_ok() {
                    range.iter().for_each(|at| self.enter(at, PageOrder::ZERO));
                }
            }
            Op::Drain { cpu, all: true } => self.phys.drain_all(&self.pins[usize::from(cpu)]),
            Op::Drain { cpu, all: false } => self.phys.drain_own(&self.pins[usize::from(cpu)]),
            Op::Idle { cpu } => self.phys.idle(&self.pins[usize::from(cpu)]),
            Op::Coalesce => self.phys.coalesce(&self.pins[0]),
            Op::Batch(batch) => {
                self.phys.set_batch(&self.pins[0], (batch != 255).then_some(u64::from(batch) % 32))
            }
            Op::Bound(bound) => self.phys.set_deferred_bound(&self.pins[0], bound_of(bound)),
            Op::Merge(deferred) => {
                let merging = if deferred { Merging::Deferred } else { Merging::Immediate };
                self.phys.set_merging(&self.pins[0], merging);
            }
            Op::Marks(min_free) => self.phys.set_watermarks(&self.pins[0], marks_of(min_free)),
            Op::Fail(every) => {
                let rule = if every < 32 { FailRule::Every(every.into()) } else { FailRule::Never };
                self.phys.set_fail_rule(&self.pins[0], rule);
            }
        }
    }

    fn check(&self) {
        self.phys.check(&self.pins[0]).expect("every frame is in one place");
        for zone in self.phys.zones() {
            let stat = zone.stat(&self.pins[0]);
            let allocated = stat.allocated_ever - stat.freed_ever;
            assert_eq!(stat.free + stat.on_cpus + stat.in_depot + allocated, zone.span().managed_pages);
        }
        let kept: u64 = self
            .phys
            .zones()
            .iter()
            .map(|zone| {
                let stat = zone.stat(&self.pins[0]);
                stat.free + stat.on_cpus + stat.in_depot
            })
            .sum();
        let used = self.used.iter().filter(|&&used| used).count() as u64;
        assert_eq!(kept + used, self.phys.managed_pages());
    }
}

fn bound_of(raw: u8) -> DeferredBound {
    match raw {
        255 => DeferredBound::Unbounded,
        254 => DeferredBound::Auto,
        pages => DeferredBound::Pages(pages.into()),
    }
}

fn marks_of(min_free: u8) -> WatermarkConfig {
    match min_free {
        0..128 => WatermarkConfig::NONE,
        min_free => {
            WatermarkConfig { min_free_kbytes: Some(u64::from(min_free) * 4), ..WatermarkConfig::default() }
        }
    }
}

fuzz_target!(|input: Input| {
    let frames = 1 + u64::from(input.frames) % 3000;
    let hole = u64::from(input.hole) % frames;
    let usable = |from: u64, to: u64| MemoryRange {
        base: from << 12,
        len: (to - from) << 12,
        kind: MemoryKind::Usable,
    };
    let map = [usable(0, hole), usable((hole + 3).min(frames), frames)];
    let config = Config {
        zones: ZoneLimits { dma_end: pfn(400), normal_end: pfn(1600) },
        cpus: &[0, 0],
        batch: input.batch.map(|batch| u64::from(batch) % 32),
        deferred_bound: bound_of(input.bound),
        watermarks: marks_of(input.min_free),
        ..Config::default()
    };
    let Ok(plan) = Plan::new(map.into_iter(), &config) else { return };
    let mut memory = machine::Memory::new(plan.metadata_layout().size());
    let pins = [machine::pin(0), machine::pin(1)];
    let phys = Phys::init(&pins[0], map.into_iter(), &config, memory.bytes()).expect("as planned");
    let mut model = Model { phys, pins, used: vec![false; frames as usize], live: BTreeMap::new() };
    for op in &input.ops {
        model.run(op);
        model.check();
    }
    model.phys.set_fail_rule(&model.pins[0], FailRule::Never);
    while let Some((at, order)) = model.leave(0) {
        model.phys.free_pages(&model.pins[0], at, order).expect("it was allocated");
    }
    model.phys.drain_all(&model.pins[0]);
    model.check();
    assert_eq!(model.phys.free_pages_total(), model.phys.managed_pages());
});
