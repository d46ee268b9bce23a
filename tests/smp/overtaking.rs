//! One CPU overtakes another at each moment at which it can: at the first such moment, in a run of its own at the second, and so on until there is none
//! left.
//!
//! The one that overtakes runs to its end, unless it waits for the first: then that goes on.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]
#![allow(clippy::allow_attributes, reason = "expect would fail in the binary that uses all of it")]

use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::Duration;

use kernmm::memory::SpinRwLock;
use kernmm::platform::hosted::{Disk, Machine};
use kernmm::platform::{CpuId, Platform};

use crate::smp::{self, Schedule, Smp, enter};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The second CPU has not begun.
    Before,
    Running,
    Over,
}

/// Lets the second CPU run when the first has come to a moment.
pub struct Overtaking {
    /// How many moments are left until then; below 0 if it is over, or nobody counts.
    left: AtomicI64,
    /// How often the second CPU has said that it waits.
    waits: AtomicI64,
    phase: Mutex<Phase>,
    changed: Condvar,
}

impl Schedule for Overtaking {
    fn cpu(&self, machine: &Machine) -> CpuId {
        machine.cpu_id()
    }

    fn point(&self, cpu: CpuId) {
        if cpu == CpuId::BOOT && self.left.fetch_sub(1, SeqCst) == 0 {
            self.overtake();
        }
    }

    fn relax(&self) {
        if self.waits.fetch_add(1, SeqCst) == WAITS {
            self.changed.notify_all();
        }
        thread::yield_now();
    }
}

/// It waits for nothing that passes by itself.
const WAITS: i64 = 100;

impl Overtaking {
    fn new() -> Self {
        let waits = AtomicI64::new(0);
        Self { left: AtomicI64::new(-1), waits, phase: Mutex::new(Phase::Before), changed: Condvar::new() }
    }

    fn set(&self, phase: Phase) {
        *self.phase.lock().unwrap() = phase;
        self.changed.notify_all();
    }

    fn overtake(&self) {
        self.waits.store(0, SeqCst);
        self.set(Phase::Running);
        let runs = |phase: &mut Phase| *phase == Phase::Running && self.waits.load(SeqCst) <= WAITS;
        let phase = self.phase.lock().unwrap();
        // Not all who wait say so.
        drop(self.changed.wait_timeout_while(phase, Duration::from_millis(50), runs).unwrap());
    }

    fn wait_for_turn(&self) {
        let has_not = |phase: &mut Phase| *phase == Phase::Before;
        drop(self.changed.wait_while(self.phase.lock().unwrap(), has_not).unwrap());
    }
}

pub type Machinery<'a, 'm> = smp::Machinery<'a, 'm, Overtaking>;
pub type Process<'v, 'a, 'm> = smp::Proc<'v, 'a, 'm, Overtaking, SpinRwLock>;

/// A run, and the moment at which the first CPU is overtaken in it.
pub struct Run {
    pub moment: i64,
    /// Whether there was such a moment.
    overtaken: Cell<bool>,
}

impl Run {
    /// Runs `first`, and `second` as another CPU of `process`.
    pub fn race<R: Send>(
        &self,
        process: &Process<'_, '_, '_>,
        first: impl FnOnce(),
        second: impl FnOnce() -> R + Send,
    ) -> R {
        let smp = process.vm().source().platform();
        let schedule = &smp.schedule;
        thread::scope(|scope| {
            let second = scope.spawn(move || {
                let _cpu = smp.machine.cpu(CpuId(1)).unwrap();
                smp.run(CpuId(1), || {
                    schedule.wait_for_turn();
                    enter(process);
                    let result = second();
                    process.deactivate();
                    schedule.set(Phase::Over);
                    result
                })
            });
            schedule.left.store(self.moment, SeqCst);
            first();
            let left = schedule.left.swap(-1, SeqCst);
            self.overtaken.set(left < 0);
            if left >= 0 {
                schedule.set(Phase::Running);
            }
            second.join().unwrap()
        })
    }
}

/// Runs `test` on a [small machine](smp::machine) until there is no moment left at which the first CPU could be overtaken.
pub fn at_each_moment(test: impl for<'a, 'm> Fn(&Run, &Machinery<'a, 'm>, &'a Disk<'m>)) {
    at_moments(smp::machine, 0.., test);
}

/// The same at some moments, on machines of another kind.
pub fn at_moments(
    machine: impl Fn() -> Machine,
    moments: impl Iterator<Item = i64>,
    test: impl for<'a, 'm> Fn(&Run, &Machinery<'a, 'm>, &'a Disk<'m>),
) {
    for moment in moments {
        let run = Run { moment, overtaken: Cell::new(false) };
        let machine = machine();
        let _cpu = machine.cpu(CpuId::BOOT).unwrap();
        let smp = Smp::new(&machine, Overtaking::new());
        smp::boot::<_, SpinRwLock>(&smp, |vm, disk| test(&run, vm, disk));
        if !run.overtaken.get() {
            assert!(moment > 0, "there is nothing to overtake");
            return;
        }
    }
}
