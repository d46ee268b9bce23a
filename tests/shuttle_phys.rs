//! Two CPUs on the shipped allocator, under thousands of schedules.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --release --test shuttle_phys --target-dir target/shuttle`
//!
//! Shuttle interleaves at every atomic and lock, with sequential consistency; the orderings of the gate between a CPU and whoever
//! drains its lists are the loom model's affair (`src/phys/gate_model.rs`). A model names the line whose removal makes it fail, where that was tried and seen.
#![cfg(shuttle)]

mod common;

use std::ptr::NonNull;
use std::sync::Arc;

use common::{frames, leaked, order};
use kernmm::addr::{PageOrder, Pfn};
use kernmm::flags::GfpFlags;
use kernmm::phys::{AllocError, Config, DeferredBound, Phys, Plan, WatermarkConfig, ZoneLimits};
use kernmm::platform::{CpuId, CpuPin, Kick, Platform};
use shuttle::thread;

/// CPUs that are threads: one that is asked for its lists runs, and serves when it comes to it.
struct Running;

// SAFETY: no frame is mapped; each thread of a model makes the pin of its own CPU.
unsafe impl Platform for Running {
    fn direct_map(&self, _: Pfn) -> Option<NonNull<u8>> {
        None
    }

    fn kick(&self, _: CpuId) -> Kick {
        Kick::Sent
    }

    fn relax(&self) {
        thread::yield_now();
    }
}

fn pin(cpu: u32) -> CpuPin<'static> {
    // SAFETY: each thread makes the pin of its own CPU.
    unsafe { CpuPin::new(&Running, CpuId(cpu)) }
}

const CONFIG: Config<'static> = Config {
    zones: ZoneLimits { dma_end: Pfn::ZERO, normal_end: Pfn::MAX },
    nodes: &[],
    distances: &[],
    cpus: &[0, 0],
    merging: kernmm::phys::Merging::Deferred,
    deferred_bound: DeferredBound::Pages(4),
    batch: Some(2),
    watermarks: WatermarkConfig::NONE,
};

/// A machine of so many frames.
fn machine(count: u64, config: &Config<'_>) -> Arc<Phys<'static>> {
    let map = [frames(0, count)];
    let plan = Plan::new(map.iter().copied(), config).unwrap();
    // Each execution leaks its metadata: the allocator holds them for as long as the process.
    let memory = leaked(plan.metadata_layout());
    Arc::new(Phys::init(&pin(0), map.iter().copied(), config, memory).unwrap())
}

fn alloc(phys: &Phys<'_>, pin: &CpuPin<'_>, gfp: GfpFlags) -> Result<Pfn, AllocError> {
    phys.alloc_pages(pin, gfp, PageOrder::ZERO)
}

fn free(phys: &Phys<'_>, pin: &CpuPin<'_>, frame: Pfn) {
    phys.free_pages(pin, frame, PageOrder::ZERO).unwrap();
}

fn all_come_back(phys: &Phys<'_>) {
    let pin = pin(0);
    phys.check(&pin).unwrap();
    phys.drain_all(&pin);
    phys.check(&pin).unwrap();
    assert_eq!(phys.free_pages_total(), phys.managed_pages());
}

/// Runs a model under so many random schedules, ten times as many in the long suite, and under ones with few switches at bad moments.
fn explore(schedules: usize, model: impl Fn() + Send + Sync + Clone + 'static) {
    let schedules = schedules * if common::long() { 10 } else { 1 };
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    let config = || {
        let mut config = shuttle::Config::new();
        // The plan of a boot is larger than the stacks that shuttle gives by default.
        config.stack_size = 1 << 18;
        config
    };
    shuttle::Runner::new(RandomScheduler::new(schedules), config()).run(model.clone());
    shuttle::Runner::new(PctScheduler::new(3, schedules), config()).run(model);
}

/// A block that was just taken must not look free to a CPU that frees its buddy.
///
/// Detects the removal of `set_word` in `Buddy::note_taken`.
#[test]
fn a_block_being_taken_is_not_merged_with_its_freed_buddy() {
    explore(600, || {
        let phys = machine(2, &Config { batch: Some(0), deferred_bound: DeferredBound::Pages(0), ..CONFIG });
        let held = alloc(&phys, &pin(0), GfpFlags::KERNEL).unwrap();
        let other = thread::spawn({
            let phys = phys.clone();
            move || {
                let pin = pin(1);
                let frame = alloc(&phys, &pin, GfpFlags::KERNEL).unwrap();
                phys.idle(&pin);
                frame
            }
        });
        free(&phys, &pin(0), held);
        let frame = other.join().unwrap();
        phys.check(&pin(0)).unwrap();
        free(&phys, &pin(0), frame);
        all_come_back(&phys);
    });
}

/// A CPU that goes idle publishes its lists, and wakes while another one drains them.
///
/// Detects the removal of the loop over `IDLE | STEALING` in `Gate::attend`.
#[test]
fn an_idle_cpu_that_wakes_waits_for_whoever_drains_its_lists() {
    explore(400, || {
        let phys = machine(8, &CONFIG);
        let sleeper = thread::spawn({
            let phys = phys.clone();
            move || {
                let pin = pin(1);
                for _ in 0..5 {
                    let frame = alloc(&phys, &pin, GfpFlags::KERNEL).unwrap();
                    free(&phys, &pin, frame);
                    phys.idle(&pin);
                    thread::yield_now();
                }
            }
        });
        let pin = pin(0);
        for _ in 0..5 {
            phys.drain_all(&pin);
        }
        phys.idle(&pin);
        sleeper.join().unwrap();
        all_come_back(&phys);
    });
}

/// A running CPU is asked to drain, and does so between two operations.
///
/// Detects the removal of `drain()` in `Gate::attend`: the frames stay with CPU 1, and CPU 0 fails.
#[test]
fn a_running_cpu_drains_its_lists_when_asked() {
    explore(200, || {
        let phys = machine(4, &CONFIG);
        let owner = pin(1);
        // CPU 1 keeps frames, and runs.
        let frames = [(); 4].map(|()| alloc(&phys, &owner, GfpFlags::KERNEL).unwrap());
        frames.iter().for_each(|&frame| free(&phys, &owner, frame));
        let done = Arc::new(shuttle::sync::atomic::AtomicBool::new(false));
        let serving = thread::spawn({
            let (phys, done) = (phys.clone(), done.clone());
            move || {
                let pin = pin(1);
                while !done.load(shuttle::sync::atomic::Ordering::SeqCst) {
                    phys.serve(&pin);
                    thread::yield_now();
                }
                phys.idle(&pin);
            }
        });
        let pin = pin(0);
        let got = [(); 4].map(|()| alloc(&phys, &pin, GfpFlags::KERNEL));
        done.store(true, shuttle::sync::atomic::Ordering::SeqCst);
        for frame in got {
            free(&phys, &pin, frame.expect("no frame is out of reach"));
        }
        phys.idle(&pin);
        serving.join().unwrap();
        all_come_back(&phys);
    });
}

/// One CPU allocates, the other frees what it gets: full magazines go through the depot, and no block is given twice.
///
/// Detects the removal of `*head = first.prev()` in `Depot::take`.
#[test]
fn the_depot_hands_each_magazine_to_one_cpu() {
    explore(300, || {
        let phys = machine(64, &CONFIG);
        let held: Vec<_> = (0..10).map(|_| alloc(&phys, &pin(0), GfpFlags::KERNEL).unwrap()).collect();
        let consumer = thread::spawn({
            let phys = phys.clone();
            let mine = held[..5].to_vec();
            move || {
                let pin = pin(1);
                mine.into_iter().for_each(|frame| free(&phys, &pin, frame));
                let got: Vec<_> = (0..5).map(|_| alloc(&phys, &pin, GfpFlags::KERNEL).unwrap()).collect();
                phys.idle(&pin);
                got
            }
        });
        let pin = pin(0);
        held[5..].iter().for_each(|&frame| free(&phys, &pin, frame));
        let mut got: Vec<_> = (0..5).map(|_| alloc(&phys, &pin, GfpFlags::KERNEL).unwrap()).collect();
        phys.idle(&pin);
        got.extend(consumer.join().unwrap());
        let mut seen = got.clone();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 10, "a block was given twice: {got:?}");
        got.into_iter().for_each(|frame| free(&phys, &pin, frame));
        phys.idle(&pin);
        all_come_back(&phys);
    });
}

/// The last two frames are a magazine in the depot, and each CPU asks for one: whoever takes the magazine must not keep the other
/// frame out of reach in its hands.
///
/// Detects a `drain_depot` that does not keep the depot locked until its magazines are on the free lists.
#[test]
fn a_magazine_on_its_way_from_the_depot_is_not_out_of_reach() {
    explore(1500, || {
        let phys = machine(64, &CONFIG);
        let owner = pin(1);
        let mut held: Vec<_> = (0..56).map(|_| alloc(&phys, &owner, GfpFlags::KERNEL).unwrap()).collect();
        // Six frees fill both magazines and put one into the depot; four allocations empty the two.
        held.drain(..6).for_each(|frame| free(&phys, &owner, frame));
        held.extend((0..4).map(|_| alloc(&phys, &owner, GfpFlags::KERNEL).unwrap()));
        // What the zone itself has left goes as one block.
        let rest = phys.alloc_pages(&owner, GfpFlags::KERNEL, order(3)).unwrap();
        let stat = phys.zones()[0].stat(&owner);
        assert_eq!((stat.in_depot, stat.on_cpus, stat.free), (2, 0, 0));
        let cpus = [0, 1].map(|cpu| {
            let phys = phys.clone();
            thread::spawn(move || {
                let pin = pin(cpu);
                let frame = alloc(&phys, &pin, GfpFlags::KERNEL);
                phys.idle(&pin);
                frame.expect("there is one for each")
            })
        });
        held.extend(cpus.map(|cpu| cpu.join().unwrap()));
        held.into_iter().for_each(|frame| free(&phys, &pin(0), frame));
        phys.free_pages(&pin(0), rest, order(3)).unwrap();
        all_come_back(&phys);
    });
}

/// Of 16 frames at most 8 are ever in use, so no request may fail, whatever the other CPU keeps or takes.
#[test]
fn out_of_memory_is_never_spurious() {
    explore(300, || {
        let phys = machine(16, &Config { batch: Some(4), ..CONFIG });
        let cpus = [0, 1].map(|cpu| {
            let phys = phys.clone();
            thread::spawn(move || {
                let pin = pin(cpu);
                let mut held = vec![];
                for round in 0..10 {
                    // Up to four frames for each CPU.
                    if round % 5 < 4 {
                        let got = alloc(&phys, &pin, GfpFlags::KERNEL);
                        held.push(got.expect("8 of 16 frames at most are in use"));
                    } else {
                        held.drain(..).for_each(|frame| free(&phys, &pin, frame));
                    }
                }
                held.drain(..).for_each(|frame| free(&phys, &pin, frame));
                phys.idle(&pin);
            })
        });
        cpus.into_iter().for_each(|cpu| cpu.join().unwrap());
        all_come_back(&phys);
    });
}

/// The one frame that is not in use lies on either CPU's list, and is found.
#[test]
fn the_last_frame_is_found_wherever_it_lies() {
    explore(400, || {
        // 6 frames. CPU 1 holds at most 3, CPU 0 at most 2: one is free at every moment.
        let phys = machine(6, &Config { batch: Some(2), ..CONFIG });
        let other = thread::spawn({
            let phys = phys.clone();
            move || {
                let pin = pin(1);
                for _ in 0..3 {
                    let held = [(); 3].map(|()| alloc(&phys, &pin, GfpFlags::KERNEL).expect("one is free"));
                    held.iter().for_each(|&frame| free(&phys, &pin, frame));
                }
                phys.idle(&pin);
            }
        });
        let pin = pin(0);
        for _ in 0..3 {
            let held = [(); 2].map(|()| alloc(&phys, &pin, GfpFlags::KERNEL).expect("one is free"));
            held.iter().for_each(|&frame| free(&phys, &pin, frame));
        }
        phys.idle(&pin);
        other.join().unwrap();
        all_come_back(&phys);
    });
}

/// Both CPUs ask for a block as large as the machine and wait for each other's lists: both get on.
///
/// Detects the removal of `self.serve(pin)` in `Phys::drain_other`: the model never ends.
#[test]
fn two_cpus_that_wait_for_each_other_both_get_on() {
    explore(400, || {
        let phys = machine(8, &CONFIG);
        let cpus = [0, 1].map(|cpu| {
            let phys = phys.clone();
            thread::spawn(move || {
                let pin = pin(cpu);
                // Both may fail while the other holds all that there is; they must end.
                if let Ok(frame) = alloc(&phys, &pin, GfpFlags::KERNEL) {
                    free(&phys, &pin, frame);
                }
                let block = phys.alloc_pages(&pin, GfpFlags::KERNEL, order(3));
                if let Ok(block) = block {
                    phys.free_pages(&pin, block, order(3)).unwrap();
                }
                phys.idle(&pin);
                block.is_ok()
            })
        });
        let got = cpus.map(|cpu| cpu.join().unwrap());
        assert!(got[0] || got[1], "neither was served");
        all_come_back(&phys);
    });
}
