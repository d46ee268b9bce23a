//! The workloads on one CPU. Each starts with all memory free and leaves it so.

use crate::frames::{FRAMES, Frames, MAX_ORDER, Rng, below};
use std::hint::black_box;
use std::time::Instant;

/// Frees of the blocks of one order, so that a measured part ends where its operations end.
fn free_all<F: Frames>(frames: &F, cpu: &mut F::Cpu<'_>, blocks: &[u64], order: u32) {
    for &pfn in blocks {
        frames.free(cpu, pfn, order);
    }
}

/// Takes blocks of one order until there is none.
pub fn take_all<F: Frames>(frames: &F, cpu: &mut F::Cpu<'_>, order: u32) -> Vec<u64> {
    let mut blocks = Vec::with_capacity((FRAMES >> order) as usize);
    blocks.extend(std::iter::from_fn(|| frames.alloc(cpu, order)));
    blocks
}

/// Nanoseconds since `start` for each of `operations`.
pub fn nanos_each(start: Instant, operations: u64) -> f64 {
    start.elapsed().as_nanos() as f64 / operations.max(1) as f64
}

/// An allocation and a free of one frame, `count` times. Instruction counts find this function by its name.
#[inline(never)]
pub fn alloc_free_pairs<F: Frames>(frames: &F, cpu: &mut F::Cpu<'_>, count: u64) {
    for _ in 0..count {
        if let Some(pfn) = frames.alloc(cpu, 0) {
            frames.free(cpu, black_box(pfn), 0);
        }
    }
}

/// `a`: pairs with all memory free. Nanoseconds a pair.
pub fn pairs_all_free<F: Frames>(frames: &F, operations: u64) -> f64 {
    let mut cpu = frames.cpu(0);
    alloc_free_pairs(frames, &mut cpu, operations / 16);
    let start = Instant::now();
    alloc_free_pairs(frames, &mut cpu, operations);
    nanos_each(start, operations)
}

/// Leaves every second frame allocated, so that no free frame has a free buddy.
pub fn fragment<F: Frames>(frames: &F, cpu: &mut F::Cpu<'_>) -> Vec<u64> {
    let (odd, even): (Vec<_>, Vec<_>) = take_all(frames, cpu, 0).iter().partition(|&pfn| pfn % 2 == 1);
    free_all(frames, cpu, &odd, 0);
    even
}

/// `aw`: pairs where no two free frames are neighbours. Nanoseconds a pair.
pub fn pairs_fragmented<F: Frames>(frames: &F, operations: u64) -> f64 {
    let mut cpu = frames.cpu(0);
    let held = fragment(frames, &mut cpu);
    alloc_free_pairs(frames, &mut cpu, operations / 16);
    let start = Instant::now();
    alloc_free_pairs(frames, &mut cpu, operations);
    let nanos = nanos_each(start, operations);
    free_all(frames, &mut cpu, &held, 0);
    nanos
}

/// What `b` measures.
pub struct Bulk {
    /// Nanoseconds to allocate one frame of all of them.
    pub alloc: f64,
    /// Nanoseconds to free one of them, in random order.
    pub free: f64,
    /// Microseconds that the first block of the largest order takes after that.
    pub first_largest_us: f64,
}

/// `b`: allocates every frame, then frees them in random order.
pub fn bulk<F: Frames>(frames: &F, seed: u64) -> Bulk {
    let mut cpu = frames.cpu(0);
    // Ones, so that the pages are there before the clock runs.
    let mut blocks = vec![1; FRAMES as usize];
    let start = Instant::now();
    let mut taken = 0;
    while taken < blocks.len() {
        let Some(pfn) = frames.alloc(&mut cpu, 0) else { break };
        blocks[taken] = pfn;
        taken += 1;
    }
    let alloc = nanos_each(start, taken as u64);
    blocks.truncate(taken);
    Rng::new(seed).shuffle(&mut blocks);
    let start = Instant::now();
    free_all(frames, &mut cpu, &blocks, 0);
    let free = nanos_each(start, taken as u64);
    let start = Instant::now();
    let largest = frames.alloc(&mut cpu, MAX_ORDER);
    let first_largest_us = start.elapsed().as_nanos() as f64 / 1000.0;
    if let Some(pfn) = largest {
        frames.free(&mut cpu, pfn, MAX_ORDER);
    }
    Bulk { alloc, free, first_largest_us: if largest.is_some() { first_largest_us } else { f64::INFINITY } }
}

/// How a churn chooses orders, and how much it holds.
#[derive(Clone, Copy)]
pub enum Mix {
    /// `c`: orders 0 to 9 alike, half of memory held.
    Uniform,
    /// `cgeo`: order k with probability 2^-(k+1), 55 % of memory held.
    Geometric,
}

impl Mix {
    #[inline(always)]
    fn order(self, bits: u64) -> u32 {
        match self {
            Self::Uniform => below(bits, MAX_ORDER as usize + 1) as u32,
            Self::Geometric => match bits.trailing_zeros() {
                order @ 0..=MAX_ORDER => order,
                _ => 0,
            },
        }
    }

    fn held_frames(self) -> u64 {
        match self {
            Self::Uniform => FRAMES / 2,
            Self::Geometric => FRAMES * 55 / 100,
        }
    }
}

/// A steady state of allocations of random orders and frees of random blocks.
pub struct Churn {
    mix: Mix,
    /// `pfn << 4 | order` of every block held.
    held: Vec<u32>,
    held_frames: u64,
    wanted_frames: u64,
    failures: u64,
    rng: Rng,
}

impl Churn {
    /// A churn that will hold `1 / share` of what its mix asks for.
    pub fn new(mix: Mix, share: u64, seed: u64) -> Self {
        let held = Vec::with_capacity(FRAMES as usize / 4);
        let wanted_frames = mix.held_frames() / share;
        Self { mix, held, held_frames: 0, wanted_frames, failures: 0, rng: Rng::new(seed) }
    }

    /// Allocates while less is held than wanted, frees a random block otherwise; `steps` times.
    #[inline(never)]
    pub fn run<F: Frames>(&mut self, frames: &F, cpu: &mut F::Cpu<'_>, steps: u64) {
        match self.mix {
            Mix::Uniform => (0..steps).for_each(|_| self.step(frames, cpu, Mix::Uniform)),
            Mix::Geometric => (0..steps).for_each(|_| self.step(frames, cpu, Mix::Geometric)),
        }
    }

    #[inline(always)]
    fn step<F: Frames>(&mut self, frames: &F, cpu: &mut F::Cpu<'_>, mix: Mix) {
        let bits = self.rng.bits();
        if self.held_frames < self.wanted_frames {
            let order = mix.order(bits);
            match frames.alloc(cpu, order) {
                Some(pfn) => {
                    self.held.push((pfn as u32) << 4 | order);
                    self.held_frames += 1 << order;
                }
                None => self.failures += 1,
            }
        } else {
            let block = self.held.swap_remove(below(bits, self.held.len()));
            let order = block & 15;
            frames.free(cpu, u64::from(block >> 4), order);
            self.held_frames -= 1 << order;
        }
    }

    /// Frees what is held.
    pub fn finish<F: Frames>(&mut self, frames: &F, cpu: &mut F::Cpu<'_>) {
        for block in self.held.drain(..) {
            frames.free(cpu, u64::from(block >> 4), block & 15);
        }
        self.held_frames = 0;
    }

    /// Steps that fill up and then turn over about half of what is held.
    pub fn warm_up_steps(&self) -> u64 {
        let mean_frames = match self.mix {
            Mix::Uniform => 102,
            Mix::Geometric => 5,
        };
        2 * self.wanted_frames / mean_frames
    }

    /// Blocks of the largest order that hold nothing of this churn.
    fn untouched_largest(&self) -> u64 {
        let mut touched = vec![false; (FRAMES >> MAX_ORDER) as usize];
        for block in &self.held {
            touched[(block >> 4 >> MAX_ORDER) as usize] = true;
        }
        touched.iter().filter(|touched| !**touched).count() as u64
    }
}

/// What `c` and `cgeo` measure.
pub struct Churned {
    /// Nanoseconds a step.
    pub step: f64,
    /// The share of free memory that can be had in blocks of the largest order.
    pub contiguity: f64,
    /// Of the blocks of the largest order there were at first, how many are there after all is freed.
    pub recovered: f64,
    /// Allocations that failed.
    pub failures: u64,
}

/// `c` and `cgeo`: runs a churn, then asks how much of the free memory is whole.
///
/// The longer a churn runs, the more it breaks up what is held, whatever the allocator: a figure for contiguity belongs to a number
/// of steps.
pub fn churn<F: Frames>(frames: &F, mix: Mix, steps: u64, boot: Boot, seed: u64) -> Churned {
    let mut cpu = frames.cpu(0);
    let mut churn = Churn::new(mix, 1, seed);
    churn.run(frames, &mut cpu, churn.warm_up_steps() / F::SLOWNESS);
    let start = Instant::now();
    churn.run(frames, &mut cpu, steps);
    let step = nanos_each(start, steps);
    let whole = take_all(frames, &mut cpu, MAX_ORDER);
    assert!(whole.len() as u64 <= churn.untouched_largest(), "{}: a block was given out twice", F::NAME);
    let free_frames = boot.frames - churn.held_frames;
    let contiguity = ((whole.len() as u64) << MAX_ORDER) as f64 / free_frames as f64;
    free_all(frames, &mut cpu, &whole, MAX_ORDER);
    churn.finish(frames, &mut cpu);
    let recovered = take_all(frames, &mut cpu, MAX_ORDER);
    free_all(frames, &mut cpu, &recovered, MAX_ORDER);
    Churned {
        step,
        contiguity,
        recovered: recovered.len() as f64 / boot.largest as f64,
        failures: churn.failures,
    }
}

/// What an allocator had to give before any workload.
#[derive(Clone, Copy)]
pub struct Boot {
    /// Frames.
    pub frames: u64,
    /// Blocks of the largest order.
    pub largest: u64,
}

/// Counts what there is, and proves that no frame is given out twice.
pub fn boot<F: Frames>(frames: &F) -> Boot {
    let mut cpu = frames.cpu(0);
    let whole = take_all(frames, &mut cpu, MAX_ORDER);
    free_all(frames, &mut cpu, &whole, MAX_ORDER);
    let mut all = take_all(frames, &mut cpu, 0);
    free_all(frames, &mut cpu, &all, 0);
    all.sort_unstable();
    assert!(all.windows(2).all(|two| two[0] < two[1]), "{}: a frame was given out twice", F::NAME);
    assert!(all.iter().all(|&pfn| pfn < FRAMES), "{}: a frame that does not exist", F::NAME);
    Boot { frames: all.len() as u64, largest: whole.len() as u64 }
}
