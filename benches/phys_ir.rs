//! Instruction counts of allocators of page frames: `cargo bench --bench phys_ir`, with valgrind and gungraun-runner.
//!
//! A count repeats exactly, so a limit on it is a gate. Locks and cache misses do not show here; `--bench phys` shows them.
#![expect(dead_code, reason = "the phys bench uses the rest of the shared modules")]

#[path = "phys/floor.rs"]
mod floor;
#[path = "phys/frames.rs"]
mod frames;
#[path = "phys/ours.rs"]
mod ours;
#[path = "phys/peers.rs"]
mod peers;
#[path = "phys/workloads.rs"]
mod workloads;

use floor::{ListFloor, LockedBuddy};
use frames::Frames;
use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use ours::Kernmm;
use peers::FrameDepot;
use workloads::{Churn, Mix, alloc_free_pairs, fragment};

/// Operations of a run: enough that what a run costs once is lost among them.
const OPERATIONS: u64 = 10_000;

/// An allocator with its CPU 0, made ready outside what is counted.
struct Ready<F: Frames + 'static> {
    frames: &'static F,
    cpu: F::Cpu<'static>,
    churn: Churn,
}

impl<F: Frames> Ready<F> {
    fn new(mix: Mix) -> Self {
        let frames: &'static F = Box::leak(Box::new(F::new()));
        Self { frames, cpu: frames.cpu(0), churn: Churn::new(mix, 1, 1) }
    }
}

fn all_free<F: Frames>() -> Ready<F> {
    let mut ready = Ready::<F>::new(Mix::Uniform);
    alloc_free_pairs(ready.frames, &mut ready.cpu, 1);
    ready
}

fn fragmented<F: Frames>() -> Ready<F> {
    let mut ready = Ready::<F>::new(Mix::Uniform);
    fragment(ready.frames, &mut ready.cpu);
    alloc_free_pairs(ready.frames, &mut ready.cpu, 1);
    ready
}

fn churned<F: Frames>(mix: Mix) -> Ready<F> {
    let mut ready = Ready::<F>::new(mix);
    let steps = ready.churn.warm_up_steps();
    ready.churn.run(ready.frames, &mut ready.cpu, steps);
    ready
}

/// At most this many instructions an operation: about 3 % more than was measured.
fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, instructions * OPERATIONS)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

#[library_benchmark]
#[bench::kernmm(args = (all_free::<Kernmm>()), config = at_most(143))]
#[bench::lists(args = (all_free::<ListFloor>()), config = at_most(60))]
#[bench::floor(args = (all_free::<LockedBuddy>()), config = at_most(550))]
#[bench::depot(all_free::<FrameDepot>())]
fn a<F: Frames>(mut ready: Ready<F>) -> Ready<F> {
    alloc_free_pairs(ready.frames, &mut ready.cpu, OPERATIONS);
    ready
}

#[library_benchmark]
#[bench::kernmm(args = (fragmented::<Kernmm>()), config = at_most(143))]
#[bench::lists(fragmented::<ListFloor>())]
#[bench::floor(fragmented::<LockedBuddy>())]
#[bench::depot(fragmented::<FrameDepot>())]
fn aw<F: Frames>(mut ready: Ready<F>) -> Ready<F> {
    alloc_free_pairs(ready.frames, &mut ready.cpu, OPERATIONS);
    ready
}

#[library_benchmark]
#[bench::kernmm(churned::<Kernmm>(Mix::Uniform))]
#[bench::lists(churned::<ListFloor>(Mix::Uniform))]
#[bench::floor(churned::<LockedBuddy>(Mix::Uniform))]
#[bench::depot(churned::<FrameDepot>(Mix::Uniform))]
fn c<F: Frames>(mut ready: Ready<F>) -> Ready<F> {
    ready.churn.run(ready.frames, &mut ready.cpu, OPERATIONS);
    ready
}

#[library_benchmark]
#[bench::kernmm(churned::<Kernmm>(Mix::Geometric))]
#[bench::lists(churned::<ListFloor>(Mix::Geometric))]
#[bench::floor(churned::<LockedBuddy>(Mix::Geometric))]
#[bench::depot(churned::<FrameDepot>(Mix::Geometric))]
fn cgeo<F: Frames>(mut ready: Ready<F>) -> Ready<F> {
    ready.churn.run(ready.frames, &mut ready.cpu, OPERATIONS);
    ready
}

library_benchmark_group!(name = frames_by_instructions, benchmarks = [a, aw, c, cgeo]);

main!(library_benchmark_groups = frames_by_instructions);
