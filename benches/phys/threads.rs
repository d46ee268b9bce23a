//! The workloads on two CPUs.

use crate::frames::{CPUS, Frames};
use crate::workloads::{Boot, Churn, Mix, alloc_free_pairs, nanos_each, take_all};
use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

/// A line where CPUs wait for one another, awake.
struct Line(AtomicUsize);

impl Line {
    fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    fn wait(&self) {
        let arrived = self.0.fetch_add(1, Ordering::AcqRel);
        let complete = arrived / CPUS * CPUS + CPUS;
        while self.0.load(Ordering::Acquire) < complete {
            spin_loop();
        }
    }
}

/// Runs `work` on every CPU and returns the mean of their answers.
fn on_every_cpu(work: impl Fn(usize) -> f64 + Sync) -> f64 {
    let work = &work;
    let total: f64 = thread::scope(|scope| {
        let threads: Vec<_> = (0..CPUS).map(|id| scope.spawn(move || work(id))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a workload that does not panic")).sum()
    });
    total / CPUS as f64
}

/// `a` on every CPU at once. Nanoseconds a pair.
pub fn pairs_everywhere<F: Frames>(frames: &F, operations: u64) -> f64 {
    let line = Line::new();
    on_every_cpu(|id| {
        let mut cpu = frames.cpu(id);
        alloc_free_pairs(frames, &mut cpu, operations / 16);
        line.wait();
        let start = Instant::now();
        alloc_free_pairs(frames, &mut cpu, operations);
        nanos_each(start, operations)
    })
}

/// `cgeo` on every CPU at once, each holding its part. Nanoseconds a step.
pub fn churn_everywhere<F: Frames>(frames: &F, steps: u64, seed: u64) -> f64 {
    let line = Line::new();
    on_every_cpu(|id| {
        let mut cpu = frames.cpu(id);
        let mut churn = Churn::new(Mix::Geometric, CPUS as u64, seed + id as u64);
        churn.run(frames, &mut cpu, churn.warm_up_steps() / F::SLOWNESS);
        line.wait();
        let start = Instant::now();
        churn.run(frames, &mut cpu, steps);
        let step = nanos_each(start, steps);
        line.wait();
        churn.finish(frames, &mut cpu);
        step
    })
}

const SLOTS: usize = 4096;
/// Frames that the ends of the pipe hand over at once, so that the pipe itself costs little.
const HANDED: usize = 32;

/// A position on its own cache line.
#[repr(align(128))]
struct Position(AtomicUsize);

/// A ring between one producer and one consumer.
struct Pipe {
    slots: Vec<AtomicU32>,
    written: Position,
    read: Position,
}

impl Pipe {
    fn new() -> Self {
        let slots = (0..SLOTS).map(|_| AtomicU32::new(0)).collect();
        Self { slots, written: Position(AtomicUsize::new(0)), read: Position(AtomicUsize::new(0)) }
    }

    fn produce<F: Frames>(&self, frames: &F, cpu: &mut F::Cpu<'_>, count: usize) {
        for first in (0..count).step_by(HANDED) {
            // Pairs with the consumer's release: the slots have been read.
            while first + HANDED > self.read.0.load(Ordering::Acquire) + SLOTS {
                spin_loop();
            }
            for at in first..first + HANDED {
                let pfn = loop {
                    match frames.alloc(cpu, 0) {
                        Some(pfn) => break pfn,
                        None => spin_loop(),
                    }
                };
                self.slots[at % SLOTS].store(pfn as u32, Ordering::Relaxed);
            }
            // Pairs with the consumer's acquire: the slots have been written.
            self.written.0.store(first + HANDED, Ordering::Release);
        }
    }

    fn consume<F: Frames>(&self, frames: &F, cpu: &mut F::Cpu<'_>, count: usize) {
        for first in (0..count).step_by(HANDED) {
            while self.written.0.load(Ordering::Acquire) < first + HANDED {
                spin_loop();
            }
            for at in first..first + HANDED {
                frames.free(cpu, u64::from(self.slots[at % SLOTS].load(Ordering::Relaxed)), 0);
            }
            self.read.0.store(first + HANDED, Ordering::Release);
        }
    }
}

/// `pipe`: CPU 0 allocates frames, CPU 1 frees them. Nanoseconds a frame.
pub fn pipe<F: Frames>(frames: &F, operations: u64) -> f64 {
    let count = (operations as usize).next_multiple_of(HANDED);
    let warm_up = (count / 16).next_multiple_of(HANDED);
    let line = Line::new();
    let (first, second) = (Pipe::new(), Pipe::new());
    on_every_cpu(|id| {
        let mut cpu = frames.cpu(id);
        let work = |pipe: &Pipe, cpu: &mut F::Cpu<'_>, count| match id {
            0 => pipe.produce(frames, cpu, count),
            _ => pipe.consume(frames, cpu, count),
        };
        work(&first, &mut cpu, warm_up);
        line.wait();
        let start = Instant::now();
        work(&second, &mut cpu, count);
        nanos_each(start, count as u64)
    })
}

/// The share of all frames that one CPU can have after another has freed them, the worse of both ways.
pub fn reachable<F: Frames>(frames: &F, boot: Boot) -> f64 {
    let mut worst = 1.0_f64;
    for (freeing, asking) in [(1, 0), (0, 1)] {
        let alone = |work: &(dyn Fn() -> f64 + Sync)| {
            thread::scope(|scope| scope.spawn(work).join()).expect("a workload that does not panic")
        };
        let count_on = |id| {
            let mut cpu = frames.cpu(id);
            let all = take_all(frames, &mut cpu, 0);
            for &pfn in &all {
                frames.free(&mut cpu, pfn, 0);
            }
            all.len() as f64 / boot.frames as f64
        };
        alone(&|| count_on(freeing));
        worst = worst.min(alone(&|| count_on(asking)));
    }
    worst
}
