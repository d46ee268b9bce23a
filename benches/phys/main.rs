//! Allocators of page frames side by side: `cargo bench --bench phys`.
//!
//! All contenders take turns in each round, so that noise hits them alike, and the table shows medians over the rounds. After `--`:
//! `--gate` makes a missed target an error, `--only TEXT` keeps the contenders whose names contain it (repeat it for more). Environment:
//! `KERNMM_LONG=1` for more rounds of more operations.

mod contender;
mod count;
mod floor;
mod frames;
mod huge;
mod ours;
mod peers;
mod targets;
mod threads;
mod workloads;

use contender::{Contender, Effort, Entrant, WORKLOADS};
use count::Memory;
use frames::Frames;
use kernmm::phys::Page;
use std::env::args;
use std::process::ExitCode;
use std::time::Instant;
use targets::{Field, Metric, TARGETS, judge_metadata};

/// Us, the floors and the peer of the targets first.
#[global_allocator]
static MEMORY: huge::HugePages = huge::HugePages;

const ENTRANTS: [Entrant; 8] = [
    Entrant::new::<ours::Kernmm>(),
    Entrant::new::<floor::InlineListFloor>(),
    Entrant::new::<floor::ListFloor>(),
    Entrant::new::<floor::LockedBuddy>(),
    Entrant::new::<peers::FrameDepot>(),
    Entrant::new::<peers::BuddySystem>(),
    Entrant::new::<peers::Bitmap>(),
    Entrant::new::<peers::BuddySlab>(),
];

struct Options {
    gate: bool,
    only: Vec<String>,
    count: Option<(String, Memory)>,
    effort: Effort,
}

impl Options {
    /// `cargo bench` passes `--bench`; without it, `cargo test` only wants to see that all workloads run.
    fn from_args() -> Self {
        let mut options = Self { gate: false, only: Vec::new(), count: None, effort: Effort::SMOKE };
        let mut args = args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => options.effort = Effort::from_env(),
                "--gate" => options.gate = true,
                "--only" => options.only.extend(args.next()),
                "--count" => {
                    options.count = args.next().zip(args.next().as_deref().and_then(Memory::from_name))
                }
                _ => eprintln!("phys: {arg} means nothing here"),
            }
        }
        options
    }

    fn wants(&self, entrant: &Entrant) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| entrant.name.contains(text.as_str()))
    }
}

fn main() -> ExitCode {
    let options = Options::from_args();
    if let Some((name, memory)) = options.count {
        ENTRANTS.iter().filter(|entrant| entrant.name == name).for_each(|entrant| (entrant.count)(memory));
        return ExitCode::SUCCESS;
    }
    let start = Instant::now();
    let wanted = ENTRANTS.iter().filter(|entrant| options.wants(entrant));
    let mut contenders: Vec<_> = wanted.map(|entrant| (entrant.enter)()).collect();
    for workload in WORKLOADS {
        for round in 0..options.effort.rounds {
            for contender in &mut contenders {
                contender.run(workload, &options.effort, round);
            }
        }
    }
    for contender in contenders.iter_mut().take(options.effort.counted) {
        contender.count_instructions();
    }
    print_table(&contenders, &options.effort);
    let missed = print_targets(&contenders);
    println!("took {:.0} s", start.elapsed().as_secs_f64());
    if options.gate && missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn print_table(contenders: &[Box<dyn Contender>], effort: &Effort) {
    println!(
        "2^20 frames, medians of {} rounds; ns a pair (a, aw), a frame (b, pipe), a step (c, cgeo)",
        effort.rounds
    );
    print!("{:32}", "");
    for column in Metric::COLUMNS {
        print!("{:>10}", column.heading);
    }
    println!();
    for contender in contenders {
        print!("{:32}", contender.name());
        for column in Metric::COLUMNS {
            match contender.figures().median(column.metric) {
                Some(value) => print!("{:>10.*}", column.digits, value * column.factor),
                None => print!("{:>10}", "-"),
            }
        }
        println!();
    }
    for contender in contenders.iter().filter(|contender| contender.failures() > 0) {
        println!("{}: {} allocations failed in c and cgeo", contender.name(), contender.failures());
    }
}

/// Prints a line for each target; whether one was missed.
fn print_targets(contenders: &[Box<dyn Contender>]) -> bool {
    let figures =
        |name| contenders.iter().find(|contender| contender.name() == name).map(|found| found.figures());
    let (Some(ours), Some(floor), Some(depot)) =
        (figures(ours::Kernmm::NAME), figures(floor::LockedBuddy::NAME), figures(peers::FrameDepot::NAME))
    else {
        println!("no targets without kernmm, the floor and the depot");
        return false;
    };
    let field = Field { ours, floor, depot };
    let mut missed = false;
    for target in &TARGETS {
        match target.judge(&field) {
            Some(verdict) => {
                println!("{}", verdict.line);
                missed |= verdict.missed;
            }
            None => println!("{} was not measured (instructions need valgrind)", target.name()),
        }
    }
    if let Some(verdict) = judge_metadata(size_of::<Page>(), ours) {
        println!("{}", verdict.line);
        missed |= verdict.missed;
    }
    missed
}
