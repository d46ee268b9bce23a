//! One allocator, the figures it has made so far, and which workload makes which figures.

use crate::count::{self, Counting, Memory};
use crate::frames::{FRAMES, Frames};
use crate::targets::{Figures, Metric};
use crate::workloads::{Boot, Mix};
use crate::{threads, workloads};
use std::env::var_os;

/// How much to measure.
pub struct Effort {
    pub rounds: u64,
    /// Operations of a round on one CPU.
    pub operations: u64,
    /// Steps of a churn.
    pub steps: u64,
    /// How many contenders get their instructions counted, which takes valgrind a second or more each.
    pub counted: usize,
}

impl Effort {
    /// Just enough to see that everything runs.
    pub const SMOKE: Self = Self { rounds: 1, operations: 10_000, steps: 10_000, counted: 0 };
    const USUAL: Self = Self { rounds: 7, operations: 400_000, steps: 300_000, counted: 5 };
    const LONG: Self = Self { rounds: 21, operations: 2_000_000, steps: 300_000, counted: usize::MAX };

    /// What the environment asks for.
    pub fn from_env() -> Self {
        if var_os("KERNMM_LONG").is_some_and(|value| value == "1") { Self::LONG } else { Self::USUAL }
    }
}

/// A workload, all of whose figures come from one run.
#[derive(Clone, Copy)]
pub enum Workload {
    Pairs,
    PairsFragmented,
    Bulk,
    Churn(Mix),
    PairsEverywhere,
    ChurnEverywhere,
    Pipe,
}

/// All workloads that are repeated each round.
pub const WORKLOADS: [Workload; 8] = [
    Workload::Pairs,
    Workload::PairsFragmented,
    Workload::Bulk,
    Workload::Churn(Mix::Uniform),
    Workload::Churn(Mix::Geometric),
    Workload::PairsEverywhere,
    Workload::ChurnEverywhere,
    Workload::Pipe,
];

/// An allocator that takes part.
pub trait Contender {
    fn name(&self) -> &'static str;
    fn figures(&self) -> &Figures;
    fn failures(&self) -> u64;
    fn run(&mut self, workload: Workload, effort: &Effort, round: u64);
    fn count_instructions(&mut self);
}

/// How an allocator comes to take part.
pub struct Entrant {
    pub name: &'static str,
    /// Enters it, with what can be said about it before any round.
    pub enter: fn() -> Box<dyn Contender>,
    /// Runs pairs whose instructions are counted from outside.
    pub count: fn(Memory),
}

impl Entrant {
    /// Names an allocator.
    pub const fn new<F: Frames + 'static>() -> Self {
        Self { name: F::NAME, enter: || Box::new(Entry::<F>::new()), count: count::run::<F> }
    }
}

struct Entry<F> {
    frames: F,
    boot: Boot,
    figures: Figures,
    failures: u64,
}

impl<F: Frames> Entry<F> {
    fn new() -> Self {
        let frames = F::new();
        let boot = workloads::boot(&frames);
        let mut figures = Figures::default();
        figures.add(Metric::Reachable, threads::reachable(&frames, boot));
        if let Some(bytes) = frames.metadata_bytes() {
            figures.add(Metric::Metadata, bytes as f64 / FRAMES as f64);
        }
        Self { frames, boot, figures, failures: 0 }
    }
}

impl<F: Frames> Contender for Entry<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn figures(&self) -> &Figures {
        &self.figures
    }

    fn failures(&self) -> u64 {
        self.failures
    }

    fn run(&mut self, workload: Workload, effort: &Effort, round: u64) {
        let (frames, figures, operations) = (&self.frames, &mut self.figures, effort.operations);
        match workload {
            Workload::Pairs => figures.add(Metric::Pair, workloads::pairs_all_free(frames, operations)),
            Workload::PairsFragmented => {
                figures.add(Metric::PairFragmented, workloads::pairs_fragmented(frames, operations));
            }
            Workload::Bulk => {
                let bulk = workloads::bulk(frames, round);
                figures.add(Metric::BulkAlloc, bulk.alloc);
                figures.add(Metric::BulkFree, bulk.free);
                figures.add(Metric::FirstLargest, bulk.first_largest_us);
            }
            Workload::Churn(mix) => {
                let churned = workloads::churn(frames, mix, effort.steps / F::SLOWNESS, self.boot, round);
                let (step, contiguity) = match mix {
                    Mix::Uniform => (Metric::Uniform, Metric::ContiguityUniform),
                    Mix::Geometric => (Metric::Geometric, Metric::ContiguityGeometric),
                };
                figures.add(step, churned.step);
                figures.add(contiguity, churned.contiguity);
                figures.add(Metric::Recovered, churned.recovered);
                self.failures += churned.failures;
            }
            // Contended locks are slow, and fewer operations tell as much.
            Workload::PairsEverywhere => {
                figures.add(Metric::PairTwo, threads::pairs_everywhere(frames, operations / 8));
            }
            Workload::ChurnEverywhere => {
                let steps = effort.steps / 3 / F::SLOWNESS;
                figures.add(Metric::GeometricTwo, threads::churn_everywhere(frames, steps, round));
            }
            Workload::Pipe => figures.add(Metric::Pipe, threads::pipe(frames, operations / 4)),
        }
    }

    fn count_instructions(&mut self) {
        let all_free = count::start(F::NAME, Memory::AllFree);
        let fragmented = count::start(F::NAME, Memory::Fragmented);
        let counts = [(Metric::PairInstructions, all_free), (Metric::PairFragmentedInstructions, fragmented)];
        for (metric, counting) in counts {
            if let Some(instructions) = counting.and_then(Counting::each) {
                self.figures.add(metric, instructions);
            }
        }
    }
}
