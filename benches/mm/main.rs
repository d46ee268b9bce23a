//! Stores of VMAs side by side: `cargo bench --bench mm`.
//!
//! All contenders take turns in each round, so that noise hits them alike, and the tables show medians over the rounds, in ns an
//! operation. `kernmm set` is our set of VMAs, as the peers are sets; `kernmm calls` is a whole address space: its changes are system calls with all that belongs
//! to them but pages, and no trap is paid. After `--`: `--gate` makes a missed target an error, `--only WORDS` runs the rows whose names hold them (`linux`: those beside the running kernel), `--who NAME` one contender alone, `--faults FILE` (repeat it for more) replays these recorded fault
//! streams, plain or gzipped, instead of those in `tests/data`. Environment: `KERNMM_LONG=1` for more rounds and a million VMAs.

mod faults;
#[cfg(target_os = "linux")]
mod linux;
mod ours;
mod peers;
mod stores;
mod targets;
mod workloads;

use faults::Recording;
use stores::Vmas;
use targets::{Figures, Metric, Stream};
use workloads::{Effort, Layout};

use std::env::args;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

struct Options {
    gate: bool,
    faults: Vec<PathBuf>,
    /// Only rows whose names hold these words.
    only: String,
    /// Only this contender.
    who: String,
    effort: Effort,
}

impl Options {
    /// `cargo bench` passes `--bench`; without it, `cargo test` only wants to see that all workloads run.
    fn from_args() -> Self {
        let mut options = Self {
            gate: false,
            faults: Vec::new(),
            only: String::new(),
            who: String::new(),
            effort: Effort::SMOKE,
        };
        let mut args = args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => options.effort = Effort::from_env(),
                "--gate" => options.gate = true,
                "--only" => options.only = args.next().unwrap_or_default(),
                "--who" => options.who = args.next().unwrap_or_default(),
                "--faults" => options.faults.extend(args.next().map(PathBuf::from)),
                _ => eprintln!("mm: {arg} means nothing here"),
            }
        }
        if options.faults.is_empty() && options.effort.rounds > 1 {
            options.faults = faults::recorded();
        }
        options
    }

    fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || format!(" {row} ").contains(&format!(" {} ", self.only))
    }

    fn wants_of(&self, contender: &str) -> bool {
        self.who.is_empty() || self.who == contender
    }
}

/// A contender: its name and how it runs one workload.
struct Contender {
    name: &'static str,
    run: fn(&Workload<'_>, &Effort, u64) -> Option<f64>,
    figures: Figures,
}

impl Contender {
    fn new<V: Vmas>() -> Self {
        Self { name: V::NAME, run: run::<V>, figures: Figures::default() }
    }
}

/// One cell of the tables.
enum Workload<'a> {
    Find(&'a Layout, Stream),
    Replace(&'a Layout),
    Churn(&'a Layout),
    Room(&'a Layout),
    Gap(&'a Layout),
    Faults(&'a Recording),
}

impl Workload<'_> {
    fn rounds(&self, effort: &Effort) -> u64 {
        match self {
            Self::Find(layout, _)
            | Self::Replace(layout)
            | Self::Churn(layout)
            | Self::Room(layout)
            | Self::Gap(layout) => effort.rounds_at(layout.count()),
            Self::Faults(_) => effort.rounds,
        }
    }
}

/// Runs a workload on a fresh store; the time of an operation in ns, if the store is fit for it.
fn run<V: Vmas>(workload: &Workload<'_>, effort: &Effort, round: u64) -> Option<f64> {
    if !V::HAS_VMAS && !matches!(workload, Workload::Gap(_) | Workload::Room(_)) {
        return None;
    }
    match workload {
        Workload::Find(layout, stream) => Some(workloads::find::<V>(layout, *stream, effort, round)),
        Workload::Replace(layout) => workloads::replace::<V>(layout, effort, round),
        Workload::Churn(layout) => workloads::churn::<V>(layout, effort, round),
        Workload::Room(layout) => V::HAS_ROOM.then(|| workloads::room::<V>(layout, effort, round)),
        Workload::Gap(layout) => Some(workloads::gap::<V>(layout, effort, round)),
        Workload::Faults(recording) => Some(faults::replay::<V>(recording, effort)),
    }
}

fn main() -> ExitCode {
    let options = Options::from_args();
    let start = Instant::now();
    let mut contenders = [
        Contender::new::<ours::Set>(),
        Contender::new::<ours::Space>(),
        Contender::new::<ours::Gaps>(),
        Contender::new::<peers::MemorySet>(),
        Contender::new::<peers::BTree>(),
        Contender::new::<peers::RangeMap>(),
    ];
    let recordings: Vec<Recording> = options.faults.iter().filter_map(|path| faults::read(path)).collect();
    print_what_is_compared(recordings.len());
    let layouts: Vec<Layout> = options.effort.sizes.iter().map(|&count| Layout::new(count)).collect();
    for (metric, workload) in cells(&layouts, &recordings) {
        if !options.wants(&metric.name(&recordings)) {
            continue;
        }
        for round in 0..workload.rounds(&options.effort) {
            for contender in contenders.iter_mut().filter(|contender| options.wants_of(contender.name)) {
                if let Some(value) = (contender.run)(&workload, &options.effort, round) {
                    contender.figures.add(metric, value);
                }
            }
        }
        print_row(metric, &contenders, &recordings);
    }
    let mut missed = print_targets(&contenders, &recordings);
    #[cfg(target_os = "linux")]
    if options.only.is_empty() || options.only == "linux" {
        missed |= linux::print(&options.effort);
    }
    println!("took {:.0} s", start.elapsed().as_secs_f64());
    if options.gate && missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What a figure of each contender is a figure of: they do not do the same.
fn print_what_is_compared(recordings: usize) {
    println!(
        "kernmm set     BareSet: our set of VMAs by itself, as the peers are sets: list, tree, VMAs found last, VMA locks, highest room by the gap index. Its slot \
         is taken before a VMA is put in\n\
         kernmm calls   whole munmap and mmap calls on that set, with checks, limits, sums, merging, placing, committed memory; no pages, no trap. No \
         peer does as much\n\
         its gap index  the index by which the highest room is found, alone, for orientation\n\
        memory_set     its map, unmap and find_free_area (the lowest room), with a backend that maps nothing\n\
         BTreeMap       from starts to ends and nothing else: no list, no checks, no merging; room by a walk\n\
         rangemap       its insert, remove and gaps (the lowest room)\n\
         far room       5 to 64 pages where only the gap that is looked at last has them: a search, and with mmap and munmap of what was found; all do it as \
         often\n\
         Stores that walk make fewer changes at more than 10,000 VMAs; memory_set, whose unmap walks too, makes none at a million. That many get one round.\n\
         targets        of the set against the peers, like for like; ratio lines have no goal: whole calls, and searches with what follows them\n\
         recorded programs: {recordings}; a look-up's time is what look-ups add to a replay of the changes\n\
         Times are those that the thread has run for.\n"
    );
}

/// All cells, in the order of the output.
fn cells<'a>(layouts: &'a [Layout], recordings: &'a [Recording]) -> Vec<(Metric, Workload<'a>)> {
    let mut cells = Vec::new();
    for layout in layouts {
        for stream in Stream::ALL {
            cells.push((Metric::Find(stream, layout.count()), Workload::Find(layout, stream)));
        }
    }
    for layout in layouts {
        cells.push((Metric::Replace(layout.count()), Workload::Replace(layout)));
        cells.push((Metric::Churn(layout.count()), Workload::Churn(layout)));
        cells.push((Metric::Room(layout.count()), Workload::Room(layout)));
        cells.push((Metric::Gap(layout.count()), Workload::Gap(layout)));
    }
    for (index, recording) in recordings.iter().enumerate() {
        cells.push((Metric::Faults(index), Workload::Faults(recording)));
    }
    cells
}

fn print_row(metric: Metric, contenders: &[Contender], recordings: &[Recording]) {
    if metric.is_first() {
        print!("{:28}", "ns an operation");
        contenders.iter().for_each(|contender| print!("{:>16}", contender.name));
        println!();
    }
    print!("{:28}", metric.name(recordings));
    for contender in contenders {
        match contender.figures.median(metric) {
            Some(value) => print!("{value:>16.1}"),
            None => print!("{:>16}", "-"),
        }
    }
    println!();
}

/// Prints a line for each target; whether one was missed.
fn print_targets(contenders: &[Contender], recordings: &[Recording]) -> bool {
    let figures = |name| contenders.iter().find(|found| found.name == name).map(|found| &found.figures);
    let peers: Vec<&Figures> = contenders
        .iter()
        .filter(|contender| !["kernmm set", "kernmm calls", "its gap index"].contains(&contender.name))
        .map(|contender| &contender.figures)
        .collect();
    let mut missed = false;
    for target in targets::targets(recordings) {
        let against = target.against.map(|name| figures(name).into_iter().collect()).unwrap_or(peers.clone());
        match figures(target.ours).and_then(|ours| target.judge(ours, &against)) {
            Some(verdict) => {
                println!("{}", verdict.line);
                missed |= verdict.missed;
            }
            None => println!("{} was not measured", target.name),
        }
    }
    missed
}
