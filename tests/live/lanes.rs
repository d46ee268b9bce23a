//! Seeds, one after the other in each of as many lanes as there are CPUs.
//!
//! A lane is a thread on a CPU of its own. It and its child answer each other in turn, which is fast where neither has to wake another CPU. It
//! also has file descriptors of its own: a child that another lane forks holds no end of its pipes, so that a child's death is seen at once.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{available_parallelism, scope};

use super::host::last_error;
use super::table::Table;

/// What went wrong, and with which seed.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    pub(crate) seed: u64,
    pub(crate) what: String,
}

/// The seeds that nobody has begun.
struct Seeds {
    next: AtomicU64,
    end: u64,
}

impl Seeds {
    fn take(&self) -> Option<u64> {
        let seed = self.next.fetch_add(1, Relaxed);
        (seed < self.end).then_some(seed)
    }

    fn abandon(&self) {
        self.next.store(self.end, Relaxed);
    }
}

/// As many lanes as there are CPUs for us.
pub(crate) fn per_cpu() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Runs every seed, and adds up the answers that were seen.
///
/// # Errors
/// The lowest seed that fails, whatever the other lanes do meanwhile: seeds are begun in order, and those that are begun are ended.
pub(crate) fn run(
    lanes: usize,
    seeds: Range<u64>,
    seed: impl Fn(u64, &mut Table) -> Result<(), String> + Sync,
) -> Result<Table, Failure> {
    let left = Seeds { next: AtomicU64::new(seeds.start), end: seeds.end };
    let ended: Vec<_> = scope(|threads| {
        let (left, seed) = (&left, &seed);
        let lanes: Vec<_> =
            (0..lanes).map(|lane| threads.spawn(move || run_lane(lane, left, seed))).collect();
        lanes.into_iter().map(|lane| lane.join().expect("panics are caught")).collect()
    });
    let mut all = Table::default();
    let mut failures = Vec::new();
    for lane in ended {
        match lane {
            Ok(table) => all.add(&table),
            Err(failure) => failures.push(failure),
        }
    }
    failures.into_iter().min_by_key(|failure| failure.seed).map_or(Ok(all), Err)
}

fn run_lane(
    lane: usize,
    left: &Seeds,
    run: impl Fn(u64, &mut Table) -> Result<(), String>,
) -> Result<Table, Failure> {
    let mut table = Table::default();
    let apart = own_descriptors();
    keep_to_cpu(lane);
    while let Some(seed) = left.take() {
        let run = AssertUnwindSafe(|| apart.clone().and_then(|()| run(seed, &mut table)));
        let ended = catch_unwind(run).unwrap_or_else(|panic| Err(format!("it panicked: {}", said(&*panic))));
        if let Err(what) = ended {
            left.abandon();
            return Err(Failure { seed, what });
        }
        if seed % 100 == 0 {
            println!("seed {seed}");
        }
    }
    Ok(table)
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of something that is no text")
}

/// Gives this thread a table of descriptors of its own.
fn own_descriptors() -> Result<(), String> {
    // SAFETY: what this thread opens from now on is used by it alone, and what was open stays so.
    if unsafe { libc::unshare(libc::CLONE_FILES) } == 0 { Ok(()) } else { Err(last_error()) }
}

/// Lets this thread and the children that it forks run on one of the CPUs only. Where that is not allowed it is only slower.
fn keep_to_cpu(lane: usize) {
    // SAFETY: a set of CPUs is bits, of which none may be set.
    let (mut allowed, mut one): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { std::mem::zeroed() };
    // SAFETY: `allowed` has room for the answer.
    unsafe { libc::sched_getaffinity(0, size_of_val(&allowed), &raw mut allowed) };
    // SAFETY: the set has as many bits.
    let is_allowed = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &allowed) };
    let Some(cpu) = (0..libc::CPU_SETSIZE as usize).filter(is_allowed).nth(lane) else { return };
    // SAFETY: the set has as many bits.
    unsafe { libc::CPU_SET(cpu, &mut one) };
    // SAFETY: `one` is a set of one CPU.
    unsafe { libc::sched_setaffinity(0, size_of_val(&one), &raw const one) };
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::time::{Duration, Instant};

    use super::super::arena::Callee;
    use super::super::server::Server;
    use super::*;

    /// Waits until the other lane has come so far.
    fn await_stage(stage: &AtomicU32, least: u32) -> Result<(), String> {
        let begin = Instant::now();
        while stage.load(Relaxed) < least {
            if begin.elapsed() > Duration::from_secs(20) {
                return Err(format!("the other lane never came to {least}"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    #[test]
    fn every_seed_is_run_once_and_its_answers_are_added_up() {
        let stage = AtomicU32::new(0);
        let table = run(2, 10..110, |seed, table| {
            table.note(if seed % 2 == 0 { "fork" } else { "exec" }, "ok")?;
            if seed < 12 {
                // One in each lane.
                stage.fetch_add(1, Relaxed);
                return await_stage(&stage, 2);
            }
            if seed == 50 { table.note("mlock", "ENOMEM") } else { Ok(()) }
        });
        let table = table.expect("nothing fails");
        let seen = [("fork", "ok"), ("exec", "ok"), ("mlock", "ENOMEM"), ("brk", "ok")];
        assert_eq!(seen.map(|(verb, answer)| table.seen(verb, answer)), [50, 50, 1, 0]);
    }

    #[test]
    fn after_a_failure_no_seed_is_begun() {
        let begun = AtomicU32::new(0);
        let failed = run(2, 0..1000, |seed, _| {
            begun.fetch_add(1, Relaxed);
            std::thread::sleep(Duration::from_millis(1));
            if seed == 0 { Err("at once".to_owned()) } else { Ok(()) }
        });
        assert_eq!(failed.err().map(|failure| failure.seed), Some(0));
        // The other lane may have been faster.
        assert!(begun.into_inner() < 900);
    }

    #[test]
    fn the_lowest_seed_that_fails_is_named_though_it_fails_last() {
        let stage = AtomicU32::new(0);
        let failed = run(2, 1..1000, |seed, _| match seed {
            7 => {
                await_stage(&stage, 1)?;
                Err("late".to_owned())
            }
            8 => {
                stage.store(1, Relaxed);
                Err("early".to_owned())
            }
            _ => Ok(()),
        });
        assert_eq!(failed.err(), Some(Failure { seed: 7, what: "late".to_owned() }));
    }

    #[test]
    fn a_panic_names_its_seed() {
        let failed = run(2, 1..10, |seed, _| {
            assert_ne!(seed, 5, "on purpose");
            Ok(())
        });
        let Some(Failure { seed: 5, what }) = failed.err() else { panic!("seed 5 panics") };
        assert!(what.contains("on purpose"), "{what}");
    }

    /// How many children each lane forks, at the same time as the other.
    const CHILDREN: usize = 50;

    #[test]
    fn a_child_that_is_killed_fails_its_seed_though_another_lane_forks_meanwhile() {
        if let Err(why) = super::super::host::comparable() {
            return crate::skip::skip(&why);
        }
        let stage = AtomicU32::new(0);
        let failed = run(2, 1..3, |seed, _| {
            stage.fetch_add(1, Relaxed);
            await_stage(&stage, 2)?;
            if seed == 1 {
                let _alive = (0..CHILDREN).map(|_| Server::new()).collect::<Result<Vec<_>, _>>()?;
                return await_stage(&stage, 3);
            }
            let ends: Vec<_> = (0..CHILDREN).map(|_| kill_and_call()).collect();
            stage.store(3, Relaxed);
            if ends.iter().all(|end| end.starts_with("the child")) { Err("seen".to_owned()) } else { Ok(()) }
        });
        assert_eq!(failed.err(), Some(Failure { seed: 2, what: "seen".to_owned() }));
    }

    fn kill_and_call() -> String {
        let mut server = Server::new().expect("a child");
        // SAFETY: the child is ours, and nobody has waited for its end.
        unsafe { libc::kill(server.pid(), libc::SIGKILL) };
        server.call(libc::SYS_getpid, &[]).map_or_else(|error| error, |pid| format!("{pid} answers"))
    }
}
