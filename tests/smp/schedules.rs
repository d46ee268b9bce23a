//! Thousands of schedules by shuttle: a task for each CPU.
#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::allow_attributes, reason = "expect would fail in the binary that uses all of it")]

use std::cell::Cell;

use kernmm::platform::CpuId;
use kernmm::platform::hosted::{Disk, Machine};
use lock_api::{GuardSend, RawRwLock};
use shuttle::scheduler::{RandomScheduler, Scheduler, Task, TaskId};
use shuttle::sync::atomic::{AtomicU32, Ordering::SeqCst};
use shuttle::thread::{self, Scope, ScopedJoinHandle};

use crate::smp::{self, Schedule, Smp, enter};

shuttle::thread_local! {
    static CPU: Cell<u32> = Cell::new(0);
}

std::thread_local! {
    /// Set while a task is at a moment that [`smp`] names.
    static AT_POINT: Cell<bool> = const { Cell::new(false) };
}

/// Tasks of shuttle, a CPU each.
pub(super) struct Tasks {
    point: AtomicU32,
}

impl Schedule for Tasks {
    fn cpu(&self, _: &Machine) -> CpuId {
        CpuId(CPU.with(Cell::get))
    }

    fn point(&self, _: CpuId) {
        AT_POINT.set(true);
        self.point.load(SeqCst);
        AT_POINT.set(false);
    }

    fn relax(&self) {
        thread::yield_now();
    }
}

/// The lock of an address space.
pub(super) struct Lock(AtomicU32);

const WRITER: u32 = 1 << 31;

// SAFETY: a writer is alone, by a compare-and-exchange of 0.
unsafe impl RawRwLock for Lock {
    const INIT: Self = Self(AtomicU32::new(0));
    type GuardMarker = GuardSend;

    fn lock_shared(&self) {
        while !self.try_lock_shared() {
            thread::yield_now();
        }
    }

    fn try_lock_shared(&self) -> bool {
        let more = |readers| (readers & WRITER == 0).then_some(readers + 1);
        self.0.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    unsafe fn unlock_shared(&self) {
        self.0.fetch_sub(1, SeqCst);
    }

    fn lock_exclusive(&self) {
        while !self.try_lock_exclusive() {
            thread::yield_now();
        }
    }

    fn try_lock_exclusive(&self) -> bool {
        self.0.compare_exchange(0, WRITER, SeqCst, SeqCst).is_ok()
    }

    unsafe fn unlock_exclusive(&self) {
        self.0.store(0, SeqCst);
    }
}

pub(super) type Process<'v, 'a, 'm> = smp::Proc<'v, 'a, 'm, Tasks, Lock>;
pub(super) type Machinery<'a, 'm> = smp::Machinery<'a, 'm, Tasks>;

/// Where one task may be overtaken by another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moments {
    /// At those that [`smp`] names.
    Named,
    /// Before each step.
    All,
}

/// Switches at such moments alone, one time in `odds`, and where a task cannot go on.
struct Coarse {
    runs: usize,
    moments: Moments,
    odds: u64,
    state: u64,
}

impl Coarse {
    fn below(&mut self, limit: u64) -> u64 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.state >> 33) % limit
    }
}

impl Scheduler for Coarse {
    fn new_execution(&mut self) -> Option<shuttle::scheduler::Schedule> {
        self.runs = self.runs.checked_sub(1)?;
        Some(shuttle::scheduler::Schedule::new(self.state))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yields: bool) -> Option<TaskId> {
        let here = runnable.iter().map(|task| task.id()).find(|&task| Some(task) == current);
        let may_switch = AT_POINT.get() || self.moments == Moments::All;
        let goes_on = !(yields || may_switch && self.below(self.odds) == 0);
        if let Some(here) = here.filter(|_| goes_on || runnable.len() == 1) {
            return Some(here);
        }
        let others: Vec<_> =
            runnable.iter().map(|task| task.id()).filter(|&task| Some(task) != here).collect();
        Some(others[self.below(others.len() as u64) as usize])
    }

    fn next_u64(&mut self) -> u64 {
        self.state
    }
}

/// Runs a model under `runs` schedules of few switches, and a tenth as many in which each step may be another task's.
pub(super) fn explore(
    runs: usize,
    model: impl for<'a, 'm> Fn(&Machinery<'a, 'm>, &'a Disk<'m>) + Copy + Send + Sync + 'static,
) {
    let runs = long(runs);
    for odds in [2, 6, 16] {
        run(Coarse { runs: runs / 3, moments: Moments::Named, odds, state: odds }, model);
    }
    run(RandomScheduler::new_from_seed(1, runs / 10), model);
}

/// Runs a model under `runs` schedules of few switches, each of which may come before any step.
pub(super) fn explore_all_steps(
    runs: usize,
    model: impl for<'a, 'm> Fn(&Machinery<'a, 'm>, &'a Disk<'m>) + Copy + Send + Sync + 'static,
) {
    for odds in [4, 16, 64] {
        run(Coarse { runs: long(runs) / 3, moments: Moments::All, odds, state: odds }, model);
    }
}

fn long(runs: usize) -> usize {
    runs * if std::env::var_os("KERNMM_LONG").is_some() { 50 } else { 1 }
}

fn run(
    scheduler: impl Scheduler + 'static,
    model: impl for<'a, 'm> Fn(&Machinery<'a, 'm>, &'a Disk<'m>) + Copy + Send + Sync + 'static,
) {
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 19;
    // The schedules are the same each time: a failure comes again.
    config.failure_persistence = shuttle::FailurePersistence::None;
    let once = move || {
        AT_POINT.set(false);
        let machine = smp::machine();
        let smp = Smp::new(&machine, Tasks { point: AtomicU32::new(0) });
        smp::boot::<_, Lock>(&smp, model);
    };
    shuttle::Runner::new(scheduler, config).run(once);
}

/// Runs `work`, of a thread of `process`, as a CPU of its own.
pub(super) fn on<'s, R: Send + 's>(
    scope: &'s Scope<'s, '_>,
    cpu: u32,
    process: &'s Process<'_, '_, '_>,
    work: impl FnOnce() -> R + Send + 's,
) -> ScopedJoinHandle<'s, R> {
    scope.spawn(move || {
        CPU.with(|own| own.set(cpu));
        process.vm().source().platform().run(CpuId(cpu), || {
            enter(process);
            let result = work();
            process.deactivate();
            result
        })
    })
}
