//! A small operating system on the simulated machine: processes that run the course's programs, with files, signals and waiting.
//!
//! | file | what |
//! |---|---|
//! | this one | the system: what is on its disk, which CPUs it has, who runs |
//! | `task` | a thread of a process: a [`System`](kernmm_programs::System) for programs, over the simulated CPU |
//! | `calls` | the system calls: each takes its arguments apart and makes one call of kernmm's |
//! | `files` | names, descriptors, positions |
//! | `wait` | who sleeps, and at what: CPUs, children, futexes |
//!
//! It knows nothing of VMAs and page tables: those are kernmm's. Programs are functions of the host, since there is no CPU here that could run
//! machine code; but they are begun from ELF files, and all of their memory that counts lies in the simulated machine.
#![allow(dead_code, reason = "not everybody who shares this needs all of it")]
#![allow(clippy::allow_attributes, reason = "expect would fail where all of it is used")]

mod calls;
mod files;
mod task;
mod wait;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Instant;

use kernmm::memory::{FaultCounts, Memory, Process, User, Vm};
use kernmm::platform::hosted::{Disk, Machine};
use kernmm::platform::{CpuId, Platform};
use kernmm::report::{FileName, Names};
use kernmm::syscall::ElfMachine;
use kernmm::table::{EntryFormat, X86_64};

use crate::elf;
use files::{Descriptors, Directory};
use task::{Ended, Group, Task};
use wait::{Cpus, Family, Sleepers};

pub(crate) type Proc<'v, 'a, 'm, F> = Process<'v, 'a, Memory<'m, Machine>, F>;
/// What a new host thread is to do.
pub(crate) type Job<'e> = Box<dyn FnOnce() + Send + 'e>;

/// The operating system.
pub(crate) struct Os<'v, 'a, 'm, F: EntryFormat = X86_64> {
    machine: &'m Machine,
    vm: &'v Vm<'a, Memory<'m, Machine>, F>,
    disk: &'a Disk<'m>,
    elf_machine: ElfMachine,
    directory: Mutex<Directory>,
    cpus: Cpus<'m>,
    family: Family,
    sleepers: Sleepers,
    /// Whoever changes the length of a file has this.
    changing: Mutex<()>,
    console: Mutex<Vec<u8>>,
    /// What the last process looked like when it came to its end.
    last: Mutex<Last>,
    started: Instant,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// What is known of a process that has ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Last {
    /// Its maps, as `/proc/PID/maps` had them.
    pub(crate) maps: String,
    /// Its smaps, likewise.
    pub(crate) smaps: String,
    /// How often it faulted.
    pub(crate) faults: FaultCounts,
}

/// What a program did.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// What it, and its children, printed.
    pub(crate) text: String,
    /// How it ended, as wait(2) tells it.
    pub(crate) status: i32,
    /// What it looked like then.
    pub(crate) last: Last,
}

/// Where programs lie in memory.
const BASE: u64 = 0x40_0000;
/// How much text a program's file has: more than its start needs, as real programs do.
const TEXT: usize = 40 * 4096;

impl<'v, 'a, 'm, F: EntryFormat> Os<'v, 'a, 'm, F> {
    /// A system with the programs on its disk, for whose CPUs `vm` has tables.
    pub(crate) fn new(
        vm: &'v Vm<'a, Memory<'m, Machine>, F>,
        disk: &'a Disk<'m>,
        elf_machine: ElfMachine,
    ) -> Self {
        let machine: &'m Machine = vm.source().platform();
        let os = Self {
            machine,
            vm,
            disk,
            elf_machine,
            directory: Mutex::default(),
            cpus: Cpus::new(machine),
            family: Family::default(),
            sleepers: Sleepers::default(),
            changing: Mutex::default(),
            console: Mutex::default(),
            last: Mutex::default(),
            started: Instant::now(),
            panic: Mutex::default(),
        };
        for (number, name) in (0_u32..).zip(kernmm_programs::NAMES) {
            let inode = locked(&os.directory).create(&format!("/bin/{name}"));
            disk.put(inode, &program(number).file(elf_machine as u16));
        }
        os
    }

    /// Runs a program until it and all its children have ended. The caller's thread has claimed no CPU.
    pub(crate) fn run(&self, name: &str) -> Outcome {
        std::thread::scope(|scope| {
            let (jobs, new) = channel::<Job<'_>>();
            let name = name.to_owned();
            let pid = self.family.add(0);
            let first = jobs.clone();
            let job: Job<'_> = Box::new(move || self.begin(pid, &name, first));
            // There is a receiver: it is right here.
            let _ = jobs.send(job);
            drop(jobs);
            // Each thread has a sender: when the last has ended, there are no more.
            for job in new {
                scope.spawn(job);
            }
        });
        if let Some(panic) = locked(&self.panic).take() {
            resume_unwind(panic);
        }
        let status = self.family.status_of_first();
        let text = String::from_utf8_lossy(&std::mem::take(&mut *locked(&self.console))).into_owned();
        let last = std::mem::take(&mut *locked(&self.last));
        Outcome { text, status, last }
    }

    /// The first thread of a new program.
    fn begin<'e>(&'e self, pid: i32, name: &str, jobs: Sender<Job<'e>>) {
        let cpu = self.cpus.claim();
        let group =
            Process::new(self.vm).map(|process| Arc::new(Group::new(process, pid, Descriptors::console())));
        match group {
            Ok(group) => {
                let task = Task::new(self, group, jobs, cpu, 0);
                self.live(task, |task| task.become_program(name));
            }
            Err(_) => {
                self.cpus.release(cpu);
                self.family.ended(pid, 9);
            }
        }
    }

    /// Runs a thread to its end, and its process with it if it was the last.
    pub(crate) fn live<'e>(
        &'e self,
        task: Task<'e, 'v, 'a, 'm, F>,
        body: impl FnOnce(&Task<'e, 'v, 'a, 'm, F>),
    ) {
        // A program's end unwinds, like a panic of its: only a panic is one.
        if let Err(end) = catch_unwind(AssertUnwindSafe(|| body(&task))) {
            if !end.is::<Ended>() {
                task.give_up();
                *locked(&self.panic) = Some(end);
            }
        }
        task.leave();
    }

    /// A process has ended: its memory goes, and whoever waits for it is told.
    fn bury<'e>(&self, group: Group<'e, 'v, 'a, 'm, F>) {
        let status = group.status();
        *locked(&self.last) = self.look(&group.process);
        let pid = group.pid;
        drop(group);
        self.sweep();
        self.family.ended(pid, status);
    }

    fn look(&self, process: &Proc<'v, 'a, 'm, F>) -> Last {
        let names = OpenNames(locked(&self.directory).opened.clone());
        let (mut maps, mut smaps) = (String::new(), String::new());
        // Writing into a string does not fail.
        let _ = process.maps(&mut maps, &names);
        let _ = process.smaps(&mut smaps, &names);
        Last { maps, smaps, faults: process.faults() }
    }

    /// Locks what is held while a store works. Other CPUs may want something of this one meanwhile.
    fn lock<'l, T>(&self, lock: &'l Mutex<T>) -> MutexGuard<'l, T> {
        loop {
            match lock.try_lock() {
                Ok(guard) => return guard,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => self.vm.source().serve(),
            }
            self.machine.relax();
        }
    }

    pub(crate) fn user<'p>(process: &'p Proc<'v, 'a, 'm, F>) -> User<'p, 'v, 'a, 'm, F> {
        User::new(process)
    }
}

/// What files are called that have ever been opened.
struct OpenNames(std::collections::HashMap<u32, (u64, String)>);

impl Names for OpenNames {
    fn file(&self, file: kernmm::mm::FileRef) -> FileName<'_> {
        let known = self.0.get(&file.file.0.get()).map(|(inode, path)| (*inode, path.as_str()));
        let (inode, path) = known.unwrap_or((0, "/dev/zero (deleted)"));
        FileName { major: 8, minor: 1, inode, path }
    }

    fn special(&self, _: u32) -> &str {
        ""
    }
}

/// The file of a program: its first instructions answer with its number.
fn program(number: u32) -> elf::Program {
    let mut text = vec![0xb8];
    text.extend(number.to_le_bytes());
    text.push(0xc3);
    text.resize(TEXT, 0x90);
    elf::Program { base: BASE, text, data: b"data of a program".to_vec(), bss: 2 * 4096 }
}

/// Locks; what a panic left behind is looked at by whoever passes it on.
pub(crate) fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A CPU that a thread runs as.
pub(crate) fn claim(machine: &Machine, cpu: CpuId) -> kernmm::platform::hosted::CpuGuard<'_> {
    loop {
        match machine.cpu(cpu) {
            Ok(guard) => return guard,
            // Another CPU is just serving in its place.
            Err(_) => std::thread::yield_now(),
        }
    }
}
