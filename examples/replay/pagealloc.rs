//! Replaying page allocations: nothing may overlap, leak, or fail without need.

use std::collections::BTreeMap;
use std::io::Error;
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use kernmm::addr::{PageOrder, Pfn};
use kernmm::flags::GfpFlags;
use kernmm::phys::{Config, DeferredBound, Merging, Phys, Plan, Zone, ZoneKind};
use kernmm::platform::{CpuId, CpuPin, Kick, MemoryKind, MemoryRange, Platform};

use crate::recording::{Event, Recording};

/// Pages of the machine that the recordings are replayed on: 8 GiB.
const PAGES: u64 = (8 << 30) >> 12;

/// How a replay is run.
#[derive(Clone, Copy)]
struct Setup {
    pages: u64,
    merging: Merging,
    bound: DeferredBound,
    batch: Option<u64>,
    /// Every so many events all blocks of the largest order are asked for, and the longest time that takes is kept.
    probe_every: usize,
}

impl Setup {
    /// 8 GiB and nothing out of the ordinary.
    const LARGE: Self = Self {
        pages: PAGES,
        merging: Merging::Deferred,
        bound: DeferredBound::Auto,
        batch: None,
        probe_every: 0,
    };
}

/// What came of a replay.
#[derive(Debug, Default)]
struct Outcome {
    events: usize,
    failed: usize,
    unjustified: usize,
    overlaps: usize,
    leaks: u64,
    restored: bool,
    foreign_frees: usize,
    work: u64,
    hits: u64,
    merges_at_once: u64,
    stall: Duration,
}

/// Replays each file on 8 GiB and on the smallest machine that immediate merging manages with, and with `--table` compares
/// deferred with immediate merging.
pub(crate) fn run(arguments: &[String]) -> Result<bool, Error> {
    let table = arguments.iter().any(|argument| argument == "--table");
    let mut good = true;
    for file in arguments.iter().filter(|argument| !argument.starts_with("--")) {
        let recording = Recording::read(Path::new(file))?;
        let large = Setup::LARGE;
        good &= replays_soundly(&recording);
        let [off, on] = [Lists::Off, Lists::On].map(|lists| deferred_over_immediate(&recording, lists));
        println!("  splits+merges, deferred over immediate: lists off {off:.3}, on {on:.3}");
        let smallest = smallest_machine(&recording);
        good &= report(&recording, Setup { pages: smallest, ..large }, &format!("{} MiB", smallest >> 8));
        good &= report(
            &recording,
            Setup { pages: smallest, merging: Merging::Immediate, ..large },
            "the same, immediate",
        );
        if table {
            print_table(&recording, large);
        }
    }
    Ok(good)
}

fn report(recording: &Recording, setup: Setup, title: &str) -> bool {
    let outcome = replay(recording, setup);
    println!(
        "{} ({title}): events {}, failed {}, unjustified {}, overlaps {}, leaks {}, restored {}, splits+merges {}, deferred hits {}, frees of older pages {}",
        recording.name,
        outcome.events,
        outcome.failed,
        outcome.unjustified,
        outcome.overlaps,
        outcome.leaks,
        if outcome.restored { "yes" } else { "no" },
        outcome.work,
        outcome.hits,
        outcome.foreign_frees,
    );
    outcome.unjustified == 0 && outcome.overlaps == 0 && outcome.leaks == 0 && outcome.restored
}

/// The smallest machine, to 1 MiB, on which nothing fails with immediate merging.
fn smallest_machine(recording: &Recording) -> u64 {
    let (mut fails, mut manages) = (0, PAGES >> 8);
    while manages - fails > 1 {
        let middle = fails.midpoint(manages);
        let setup = Setup {
            pages: middle << 8,
            merging: Merging::Immediate,
            bound: DeferredBound::Auto,
            batch: None,
            probe_every: 0,
        };
        if replay(recording, setup).failed == 0 { manages = middle } else { fails = middle }
    }
    manages << 8
}

/// Splits and merges below the per-CPU lists, deferred over immediate, and the longest time that a request of order 9 took.
fn print_table(recording: &Recording, setup: Setup) {
    println!(
        "{:24} {:>10} {:>10} {:>10} {:>10} {:>10}",
        recording.name, "64", "252", "1024", "8192", "unbounded"
    );
    for (title, batch) in [("lists off", Lists::Off.batch()), ("lists on", Lists::On.batch())] {
        let immediate = work(recording, setup, Merging::Immediate, setup.bound, batch);
        let bounds =
            [64, 252, 1024, 8192].map(DeferredBound::Pages).into_iter().chain([DeferredBound::Unbounded]);
        let (mut ratios, mut stalls) = (String::new(), String::new());
        for bound in bounds {
            let deferred = work(recording, setup, Merging::Deferred, bound, batch);
            ratios += &format!(" {:>10.3}", deferred as f64 / immediate.max(1) as f64);
            let probed =
                replay(recording, Setup { bound, batch, probe_every: recording.events.len() / 64, ..setup });
            stalls += &format!(" {:>5}/{:<4}", probed.stall.as_micros(), probed.merges_at_once);
        }
        println!("  {title:22}{ratios}");
        println!("  {:22}{stalls}", "order 9: worst µs/merges");
    }
}

/// Whether the per-CPU lists stand before the buddy allocator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lists {
    Off,
    On,
}

impl Lists {
    const fn batch(self) -> Option<u64> {
        match self {
            Self::Off => Some(0),
            Self::On => None,
        }
    }
}

/// Whether a recording replays on 8 GiB without overlap, leak or needless failure.
pub(crate) fn replays_soundly(recording: &Recording) -> bool {
    report(recording, Setup::LARGE, "8 GiB")
}

/// Splits and merges below the per-CPU lists with the default bound, over those with immediate merging.
pub(crate) fn deferred_over_immediate(recording: &Recording, lists: Lists) -> f64 {
    let of = |merging| work(recording, Setup::LARGE, merging, DeferredBound::Auto, lists.batch());
    of(Merging::Deferred) as f64 / of(Merging::Immediate).max(1) as f64
}

/// Splits and merges below the per-CPU lists.
fn work(
    recording: &Recording,
    setup: Setup,
    merging: Merging,
    bound: DeferredBound,
    batch: Option<u64>,
) -> u64 {
    replay(recording, Setup { merging, bound, batch, ..setup }).work
}

/// A machine whose frames are never touched. Both CPUs are driven by one thread, so the other one is always halted.
struct Bare;

// SAFETY: no frame is mapped, and one thread drives all CPUs, so a CPU that is asked for its lists runs nothing.
unsafe impl Platform for Bare {
    fn direct_map(&self, _: Pfn) -> Option<NonNull<u8>> {
        None
    }

    fn kick(&self, _: CpuId) -> Kick {
        Kick::Halted
    }
}

fn pin(cpu: u32) -> CpuPin<'static> {
    // SAFETY: there is one thread, and no pin is used while another one for the same CPU is.
    unsafe { CpuPin::new(&Bare, CpuId(cpu)) }
}

/// A block of the recording and where it lies here.
#[derive(Clone, Copy)]
struct Live {
    pfn: Pfn,
    order: PageOrder,
}

fn replay(recording: &Recording, setup: Setup) -> Outcome {
    let cpus = vec![0; recording.cpus as usize];
    let config = Config {
        cpus: &cpus,
        merging: setup.merging,
        deferred_bound: setup.bound,
        batch: setup.batch,
        ..Config::default()
    };
    let map = [MemoryRange { base: 0, len: setup.pages << 12, kind: MemoryKind::Usable }];
    let plan = Plan::new(map.into_iter(), &config).expect("a machine of this size can be planned");
    let mut memory =
        vec![MaybeUninit::uninit(); plan.metadata_layout().size() + plan.metadata_layout().align()];
    let skip = memory.as_ptr().align_offset(plan.metadata_layout().align());
    let phys = Phys::init(&pin(0), map.into_iter(), &config, &mut memory[skip..])
        .expect("a planned machine can be built");
    let mut replay = Replay {
        boot: free_blocks(&phys),
        taken: vec![false; setup.pages as usize],
        live: BTreeMap::new(),
        outcome: Outcome::default(),
        phys,
    };
    let start = replay.work();
    for (at, event) in recording.events.iter().enumerate() {
        replay.step(*event);
        if setup.probe_every != 0 && at % setup.probe_every == 0 {
            replay.probe();
        }
    }
    replay.outcome.events = recording.events.len();
    (replay.outcome.work, replay.outcome.hits) = (replay.work().0 - start.0, replay.work().1 - start.1);
    replay.finish()
}

struct Replay<'m> {
    phys: Phys<'m>,
    boot: Vec<[u64; PageOrder::COUNT]>,
    /// The frames that are in use, by the replay's own account.
    taken: Vec<bool>,
    /// The blocks in use by their recorded frame; one of order 10 is two of order 9.
    live: BTreeMap<u64, Live>,
    outcome: Outcome,
}

impl Replay<'_> {
    fn step(&mut self, event: Event) {
        match event {
            Event::Alloc { cpu, pfn, order, gfp } => {
                for (pfn, order) in halves(pfn, order) {
                    self.alloc(cpu, pfn, order, gfp);
                }
            }
            Event::Free { cpu, pfn, order } => {
                for (pfn, order) in halves(pfn, order) {
                    self.free(cpu, pfn, order);
                }
            }
            Event::FreeOther { cpu, pfn, order } => {
                for (pfn, order) in halves(pfn, order) {
                    self.free_part(cpu, pfn, order);
                }
            }
        }
    }

    fn alloc(&mut self, cpu: u32, recorded: u64, order: PageOrder, gfp: GfpFlags) {
        let Ok(pfn) = self.phys.alloc_pages(&pin(cpu), gfp, order) else {
            self.outcome.failed += 1;
            self.outcome.unjustified += usize::from(self.could_succeed(gfp, order));
            return;
        };
        for taken in &mut self.taken[span(pfn, order)] {
            self.outcome.overlaps += usize::from(std::mem::replace(taken, true));
        }
        // A page that was recorded as allocated twice: the free between was not seen, so it happens now.
        if let Some(old) = self.live.insert(recorded, Live { pfn, order }) {
            self.release(cpu, old);
        }
    }

    fn free(&mut self, cpu: u32, recorded: u64, order: PageOrder) {
        match self.live.get(&recorded) {
            Some(live) if live.order == order => {
                let live = *live;
                self.live.remove(&recorded);
                self.release(cpu, live);
            }
            // Its allocation failed here, or it was split since.
            _ => self.free_part(cpu, recorded, order),
        }
    }

    /// Frees pages inside a block that is in use, which is split for it.
    fn free_part(&mut self, cpu: u32, recorded: u64, order: PageOrder) {
        let around = self.live.range(..=recorded).next_back().map(|(&first, &live)| (first, live));
        let Some((first, live)) = around.filter(|(first, live)| {
            order <= live.order && recorded + order.pages() <= first + live.order.pages()
        }) else {
            self.outcome.foreign_frees += 1;
            return;
        };
        self.phys.split_pages(&pin(cpu), live.pfn, live.order, order).expect("a block in use can be split");
        for at in (0..live.order.pages()).step_by(order.pages() as usize) {
            let pfn = live.pfn.checked_add(at).expect("a part lies in its block");
            self.live.insert(first + at, Live { pfn, order });
        }
        if let Some(part) = self.live.remove(&recorded) {
            self.release(cpu, part);
        }
    }

    fn release(&mut self, cpu: u32, block: Live) {
        self.taken[span(block.pfn, block.order)].fill(false);
        self.phys.free_pages(&pin(cpu), block.pfn, block.order).expect("a block in use can be freed");
    }

    /// Whether a request that failed would have succeeded with every page that nobody uses on the free lists, and merged: by the replay's own account of which are in use.
    fn could_succeed(&self, gfp: GfpFlags, order: PageOrder) -> bool {
        let highest = match gfp {
            gfp if gfp.contains(GfpFlags::DMA) => ZoneKind::Dma,
            gfp if gfp.contains(GfpFlags::HIGHMEM) => ZoneKind::HighMem,
            _ => ZoneKind::Normal,
        };
        self.phys.zones().iter().filter(|zone| zone.kind() <= highest).any(|zone| {
            let frames = frames_of(zone, &self.taken);
            let free = frames.iter().filter(|taken| !**taken).count() as u64;
            let keep = floor(zone, gfp).map_or(0, |floor| floor + zone.lowmem_reserve(highest));
            let start = zone.span().span.start().get();
            let pages = order.pages();
            let first = start.next_multiple_of(pages) - start;
            let whole = |at: u64| {
                frames.get(at as usize..(at + pages) as usize).is_some_and(|run| !run.contains(&true))
            };
            free >= keep + pages && (first..frames.len() as u64).step_by(pages as usize).any(whole)
        })
    }

    /// Asks for blocks of the largest order until there are no more, and keeps the longest time that one request took: sooner or later one has
    /// to merge all that waits.
    fn probe(&mut self) {
        let mut blocks = Vec::new();
        loop {
            let before = self.work().2;
            let start = Instant::now();
            let got = self.phys.alloc_pages(&pin(0), GfpFlags::KERNEL, PageOrder::MAX);
            self.outcome.stall = self.outcome.stall.max(start.elapsed());
            self.outcome.merges_at_once = self.outcome.merges_at_once.max(self.work().2 - before);
            let Ok(block) = got else { break };
            blocks.push(block);
        }
        for block in blocks {
            self.phys.free_pages(&pin(0), block, PageOrder::MAX).expect("a block in use can be freed");
        }
    }

    /// Splits and merges, deferred hits, and merges alone.
    fn work(&self) -> (u64, u64, u64) {
        let events = self.phys.zones().iter().map(|zone| zone.stat(&pin(0)).events);
        events.fold((0, 0, 0), |sum, zone| {
            (sum.0 + zone.splits + zone.merges, sum.1 + zone.deferred_hits, sum.2 + zone.merges)
        })
    }

    /// Frees all and compares with the state after boot.
    fn finish(mut self) -> Outcome {
        for (_, block) in std::mem::take(&mut self.live) {
            self.release(0, block);
        }
        self.phys.drain_all(&pin(0));
        self.outcome.leaks = self.phys.managed_pages() - self.phys.free_pages_total();
        self.outcome.restored = free_blocks(&self.phys) == self.boot && self.phys.check(&pin(0)).is_ok();
        self.outcome
    }
}

/// The pages that must stay free in a zone, as the request's flags go.
fn floor(zone: &Zone<'_>, gfp: GfpFlags) -> Option<u64> {
    let min = zone.watermarks().min;
    let half = min - min / 2;
    let patient = gfp.intersects(GfpFlags::DIRECT_RECLAIM | GfpFlags::NOMEMALLOC);
    match gfp {
        gfp if gfp.contains(GfpFlags::MEMALLOC) && !gfp.contains(GfpFlags::NOMEMALLOC) => None,
        gfp if !gfp.contains(GfpFlags::HIGH) => Some(min),
        _ if patient => Some(half),
        _ => Some(half - half / 4),
    }
}

fn frames_of<'a>(zone: &Zone<'_>, taken: &'a [bool]) -> &'a [bool] {
    let span = zone.span().span;
    &taken[span.start().get() as usize..span.end().get() as usize]
}

fn free_blocks(phys: &Phys<'_>) -> Vec<[u64; PageOrder::COUNT]> {
    let blocks = phys.zones().iter().map(|zone| zone.stat(&pin(0)).blocks);
    blocks.map(|orders| orders.map(|types| types.iter().sum())).collect()
}

/// A recorded block as blocks of ours: one of order 10 is two of order 9.
fn halves(pfn: u64, order: u8) -> impl Iterator<Item = (u64, PageOrder)> {
    let size = PageOrder::new(order).unwrap_or(PageOrder::MAX);
    (0..1_u64 << (order - size.get())).map(move |part| (pfn + part * size.pages(), size))
}

fn span(pfn: Pfn, order: PageOrder) -> std::ops::Range<usize> {
    let start = pfn.get() as usize;
    start..start + order.pages() as usize
}
