//! Who sleeps, and at what.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Condvar, Mutex};

use kernmm::memory::FutexKey;
use kernmm::platform::CpuId;
use kernmm::platform::hosted::{CpuGuard, Machine};

use super::{claim, locked};

/// A CPU that a thread has.
pub(super) struct Cpu<'m> {
    id: CpuId,
    guard: CpuGuard<'m>,
}

/// The machine's CPUs: a thread has one while it runs, and gives it up to sleep.
pub(super) struct Cpus<'m> {
    machine: &'m Machine,
    free: Mutex<Vec<CpuId>>,
    freed: Condvar,
}

impl<'m> Cpus<'m> {
    pub(super) fn new(machine: &'m Machine) -> Self {
        let all = (0..machine.cpu_count()).map(|cpu| CpuId(cpu as u32));
        Self { machine, free: Mutex::new(all.collect()), freed: Condvar::new() }
    }

    pub(super) fn claim(&self) -> Cpu<'m> {
        let mut free = locked(&self.free);
        loop {
            match free.pop() {
                Some(id) => return Cpu { id, guard: claim(self.machine, id) },
                None => free = self.freed.wait(free).unwrap_or_else(|poisoned| poisoned.into_inner()),
            }
        }
    }

    pub(super) fn release(&self, cpu: Cpu<'m>) {
        let Cpu { id, guard } = cpu;
        drop(guard);
        // The one that waited longest is next, so that everybody's turn comes.
        locked(&self.free).insert(0, id);
        self.freed.notify_one();
    }
}

/// Processes, by number.
#[derive(Default)]
pub(super) struct Family {
    members: Mutex<Members>,
    changed: Condvar,
}

#[derive(Default)]
struct Members {
    last: i32,
    alive_or_not: BTreeMap<i32, Member>,
}

#[derive(Clone, Copy)]
struct Member {
    parent: i32,
    status: Option<i32>,
}

impl Family {
    /// A new member.
    pub(super) fn add(&self, parent: i32) -> i32 {
        let mut members = locked(&self.members);
        members.last += 1;
        let pid = members.last;
        members.alive_or_not.insert(pid, Member { parent, status: None });
        pid
    }

    /// One that never came to life.
    pub(super) fn remove(&self, pid: i32) {
        locked(&self.members).alive_or_not.remove(&pid);
    }

    /// A process has ended; its children have no parent any more, and nobody waits for those that have ended.
    pub(super) fn ended(&self, pid: i32, status: i32) {
        let mut members = locked(&self.members);
        members.alive_or_not.retain(|_, member| member.parent != pid || member.status.is_none());
        for member in members.alive_or_not.values_mut().filter(|member| member.parent == pid) {
            member.parent = -1;
        }
        match members.alive_or_not.get_mut(&pid) {
            Some(member) if member.parent != -1 => member.status = Some(status),
            _ => drop(members.alive_or_not.remove(&pid)),
        }
        self.changed.notify_all();
    }

    /// A process is about to end: those of its threads that wait find that out.
    pub(super) fn look_up(&self) {
        let members = locked(&self.members);
        self.changed.notify_all();
        drop(members);
    }

    /// The status of the process that a run began with, which has no parent.
    pub(super) fn status_of_first(&self) -> i32 {
        let mut members = locked(&self.members);
        let first = members.alive_or_not.iter().find(|(_, member)| member.parent == 0).map(|(&pid, _)| pid);
        let first = first.and_then(|pid| members.alive_or_not.remove(&pid));
        first.and_then(|member| member.status).unwrap_or(-1)
    }

    /// A child of this one that has ended, and how; `None` if there is no child at all, or the parent has ended itself.
    pub(super) fn wait(&self, parent: i32, is_alive: impl Fn() -> bool) -> Option<(i32, i32)> {
        let mut members = locked(&self.members);
        loop {
            let mut children =
                members.alive_or_not.iter().filter(|(_, member)| member.parent == parent).peekable();
            children.peek()?;
            let ended = children.find_map(|(&pid, member)| Some((pid, member.status?)));
            if let Some((pid, status)) = ended {
                members.alive_or_not.remove(&pid);
                return Some((pid, status));
            }
            if !is_alive() {
                return None;
            }
            members = self.changed.wait(members).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

/// Threads that sleep at futexes.
#[derive(Default)]
pub(super) struct Sleepers {
    beds: Mutex<HashMap<FutexKey, Bed>>,
    woken: Condvar,
}

/// Those who sleep at one word: how many came, and how many of them may go.
#[derive(Default)]
struct Bed {
    asleep: u32,
    may_go: u32,
}

impl Sleepers {
    /// Sleeps if `stays`, which is asked with the beds locked, so that no call to wake comes between; what it answers otherwise is handed on. Sleeps no
    /// longer than its process lives. `before` is run when it is certain that this thread sleeps.
    pub(super) fn sleep<E>(
        &self,
        key: FutexKey,
        stays: impl FnOnce() -> Result<(), E>,
        before: impl FnOnce(),
        is_alive: impl Fn() -> bool,
    ) -> Result<(), E> {
        let mut beds = locked(&self.beds);
        stays()?;
        beds.entry(key).or_default().asleep += 1;
        before();
        loop {
            let may_go = beds.get(&key).is_some_and(|bed| bed.may_go > 0);
            if may_go || !is_alive() {
                let bed = beds.entry(key).or_default();
                bed.asleep -= 1;
                bed.may_go = bed.may_go.saturating_sub(1).min(bed.asleep);
                if bed.asleep == 0 {
                    beds.remove(&key);
                }
                return Ok(());
            }
            beds = self.woken.wait(beds).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// A process has ended: those of its threads that sleep find that out.
    pub(super) fn look_up(&self) {
        let beds = locked(&self.beds);
        self.woken.notify_all();
        drop(beds);
    }

    /// Wakes as many, and answers how many those were.
    pub(super) fn wake(&self, key: FutexKey, most: u32) -> u32 {
        let mut beds = locked(&self.beds);
        let Some(bed) = beds.get_mut(&key) else { return 0 };
        let woken = most.min(bed.asleep - bed.may_go);
        bed.may_go += woken;
        self.woken.notify_all();
        woken
    }
}
