//! A thread of a process: what a program runs on.

use std::cell::{Cell, RefCell};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use kernmm::addr::{PAGE_SIZE_U64, VirtAddr};
use kernmm::fault::Signal;
use kernmm::memory::{Program, Refused, User};
use kernmm::platform::hosted::Machine;
use kernmm::table::EntryFormat;
use kernmm_programs::{Addr, Calls, Errno, MapFlags, SIGBUS, SIGSEGV, SigInfo, System, Thread};

use super::files::Descriptors;
use super::wait::Cpu;
use super::{Job, Os, Proc, locked};

/// A process: what its threads share.
pub(crate) struct Group<'e, 'v, 'a, 'm, F: EntryFormat> {
    pub(super) process: Proc<'v, 'a, 'm, F>,
    pub(super) pid: i32,
    pub(super) descriptors: Mutex<Descriptors<'v, 'a, 'm, F>>,
    /// The handlers of SIGBUS and SIGSEGV.
    handlers: Mutex<[Option<Handler<'e, 'v, 'a, 'm, F>>; 2]>,
    /// Where it begins, and where its vectors lie.
    start: Mutex<(u64, u64)>,
    /// How it ended; [`ALIVE`] before that.
    status: AtomicI32,
}

type Handler<'e, 'v, 'a, 'm, F> = fn(&Task<'e, 'v, 'a, 'm, F>, &SigInfo);

const ALIVE: i32 = -1;

impl<'e, 'v, 'a, 'm, F: EntryFormat> Group<'e, 'v, 'a, 'm, F> {
    pub(super) fn new(
        process: Proc<'v, 'a, 'm, F>,
        pid: i32,
        descriptors: Descriptors<'v, 'a, 'm, F>,
    ) -> Self {
        Self {
            process,
            pid,
            descriptors: Mutex::new(descriptors),
            handlers: Mutex::default(),
            start: Mutex::default(),
            status: AtomicI32::new(ALIVE),
        }
    }

    /// How it ended, as wait(2) tells it.
    pub(super) fn status(&self) -> i32 {
        self.status.load(Ordering::Acquire).max(0)
    }
}

/// What ends a thread: the host's stack is unwound with it.
#[derive(Clone, Copy)]
pub(super) enum Ended {
    Thread,
    Exited(i32),
    Killed(i32),
}

/// A thread.
pub(crate) struct Task<'e, 'v, 'a, 'm, F: EntryFormat> {
    pub(super) os: &'e Os<'v, 'a, 'm, F>,
    pub(super) group: Arc<Group<'e, 'v, 'a, 'm, F>>,
    jobs: Sender<Job<'e>>,
    cpu: RefCell<Option<Cpu<'m>>>,
    stack: Cell<u64>,
    /// Where 0 is to be written when it ends.
    clear_tid: Cell<Option<u64>>,
}

/// The stack of a thread that is not the first, in bytes.
const STACK: u64 = 64 << 10;
const SIGILL: i32 = 4;
const SIGKILL: i32 = 9;

impl<'e, 'v, 'a, 'm, F: EntryFormat> Task<'e, 'v, 'a, 'm, F> {
    pub(super) fn new(
        os: &'e Os<'v, 'a, 'm, F>,
        group: Arc<Group<'e, 'v, 'a, 'm, F>>,
        jobs: Sender<Job<'e>>,
        cpu: Cpu<'m>,
        stack: u64,
    ) -> Self {
        let (cpu, stack) = (RefCell::new(Some(cpu)), Cell::new(stack));
        Self { os, group, jobs, cpu, stack, clear_tid: Cell::new(None) }
    }

    fn machine(&self) -> &'m Machine {
        self.os.machine
    }

    /// Replaces the process's program; ends it if that cannot be.
    fn exec_file(&self, path: &str, args: &[&[u8]]) {
        let program = Program::new(self.os.elf_machine, args);
        let open = |path: &[u8]| {
            let path = core::str::from_utf8(path).map_err(|_| kernmm::error::Errno::ENOENT)?;
            self.os.open_regular(path, 0)
        };
        let start = open(path.as_bytes()).and_then(|file| {
            let started = self.group.process.exec_elf(&file, &program, open);
            started.map_err(|error| error.errno())
        });
        match start {
            Ok(start) => {
                *locked(&self.group.start) = (start.entry.get(), start.stack.get());
                self.stack.set(start.stack.get());
            }
            Err(_) => self.end(Ended::Killed(SIGKILL)),
        }
    }

    /// Replaces the process's program, and runs that one to its end: its first instructions answer with its number.
    pub(super) fn become_program(&self, name: &str) -> ! {
        self.exec_file(&format!("/bin/{name}"), &[name.as_bytes()]);
        let (entry, _) = *locked(&self.group.start);
        let known = kernmm_programs::NAMES.get(self.call(entry) as usize).copied();
        let status = kernmm_programs::run(self, known.unwrap_or_default());
        self.end(Ended::Exited(status.unwrap_or(127)))
    }

    /// Sleeps: others have the CPU meanwhile.
    pub(super) fn without_cpu<R>(&self, sleep: impl FnOnce() -> R) -> R {
        self.give_cpu();
        let result = sleep();
        self.take_cpu();
        result
    }

    pub(super) fn give_cpu(&self) {
        self.group.process.deactivate();
        if let Some(cpu) = self.cpu.take() {
            self.os.cpus.release(cpu);
        }
    }

    pub(super) fn take_cpu(&self) {
        self.cpu.replace(Some(self.os.cpus.claim()));
    }

    /// Ends this thread, and the process if it was not only the thread's end.
    pub(super) fn end(&self, how: Ended) -> ! {
        let status = match how {
            Ended::Thread => ALIVE,
            Ended::Exited(status) => (status & 0xff) << 8,
            Ended::Killed(signal) => signal,
        };
        if status != ALIVE {
            let _ = self.group.status.compare_exchange(ALIVE, status, Ordering::AcqRel, Ordering::Acquire);
            self.os.sleepers.look_up();
            self.os.family.look_up();
        }
        resume_unwind(Box::new(how))
    }

    /// The process ends with a panic of the host's.
    pub(super) fn give_up(&self) {
        let _ = self.group.status.compare_exchange(ALIVE, SIGKILL, Ordering::AcqRel, Ordering::Acquire);
        self.os.sleepers.look_up();
        self.os.family.look_up();
    }

    /// What is left to do when the thread has ended.
    pub(super) fn leave(self) {
        if let Some(tid) = self.clear_tid.take() {
            // Whose memory is gone waits for nothing.
            let _ = self.group.process.copy_to_user(VirtAddr::from(tid), &[0; 4]);
            self.os.futex_wake(&self.group.process, tid, u32::MAX).unwrap_or(0);
        }
        self.group.process.deactivate();
        let Self { os, group, cpu, .. } = self;
        if let Some(last) = Arc::into_inner(group) {
            os.bury(last);
        }
        if let Some(cpu) = cpu.into_inner() {
            os.cpus.release(cpu);
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.group.status.load(Ordering::Acquire) == ALIVE
    }

    /// Ends the thread if its process has ended.
    pub(super) fn check_alive(&self) {
        if !self.is_alive() {
            self.end(Ended::Thread);
        }
    }

    /// Touches memory until that goes without a signal, or ends the process.
    fn touch<R>(&self, addr: u64, mut touch: impl FnMut(User<'_, 'v, 'a, 'm, F>) -> Result<R, Refused>) -> R {
        loop {
            self.check_alive();
            if self.machine().poll() {
                self.os.vm.source().serve();
            }
            match touch(Os::user(&self.group.process)) {
                Ok(done) => return done,
                Err(Refused::Signal(signal)) => self.signal(signal, addr),
                Err(Refused::OutOfMemory) => self.end(Ended::Killed(SIGKILL)),
            }
        }
    }

    /// Runs the handler of a signal, or ends the process.
    fn signal(&self, signal: Signal, addr: u64) {
        let number = signal.number() as i32;
        let handler = place_of(number).and_then(|place| locked(&self.group.handlers)[place]);
        let Some(handler) = handler else { self.end(Ended::Killed(number)) };
        let info = SigInfo { signal: number, code: signal.code() as i32, addr };
        handler(self, &info);
    }

    /// Fetches the bytes of an instruction.
    fn fetch<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut bytes = [0; N];
        for (byte, addr) in bytes.iter_mut().zip(addr..) {
            self.touch(addr, |user| user.fetch(VirtAddr::from(addr), std::slice::from_mut(byte)));
        }
        bytes
    }
}

fn place_of(signal: i32) -> Option<usize> {
    match signal {
        SIGBUS => Some(0),
        SIGSEGV => Some(1),
        _ => None,
    }
}

/// A range, cut at pages: where each part begins, and which bytes it has. A page is refused as a whole, so the first byte of a part is the one that a
/// signal tells.
fn parts(addr: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < len).then_some(())?;
        let at = addr.wrapping_add(done as u64);
        let end = len.min(done + (PAGE_SIZE_U64 - at % PAGE_SIZE_U64) as usize);
        Some((at, std::mem::replace(&mut done, end)..end))
    })
}

impl<'e, 'v, 'a, 'm, F: EntryFormat> System for Task<'e, 'v, 'a, 'm, F> {
    fn syscall(&self, number: usize, args: [u64; 6]) -> i64 {
        self.check_alive();
        match self.dispatch(number, args) {
            Ok(value) => value as i64,
            Err(errno) => -i64::from(errno.get()),
        }
    }

    fn load(&self, addr: Addr, out: &mut [u8]) {
        for (at, part) in parts(addr, out.len()) {
            self.touch(at, |user| user.load(VirtAddr::from(at), &mut out[part.clone()]));
        }
    }

    fn store(&self, addr: Addr, bytes: &[u8]) {
        for (at, part) in parts(addr, bytes.len()) {
            self.touch(at, |user| user.store(VirtAddr::from(at), &bytes[part.clone()]));
        }
    }

    fn compare_exchange(&self, addr: Addr, current: u32, new: u32) -> u32 {
        self.touch(addr, |user| user.compare_exchange(VirtAddr::from(addr), current, new))
    }

    /// Runs the few instructions that programs here are made of.
    fn call(&self, addr: Addr) -> u32 {
        let (mut at, mut eax) = (addr, 0_u32);
        loop {
            match self.fetch(at) {
                // nop
                [0x90] => at += 1,
                // mov eax, imm32
                [0xb8] => (eax, at) = (u32::from_le_bytes(self.fetch(at + 1)), at + 5),
                // add eax, imm32
                [0x05] => (eax, at) = (eax.wrapping_add(u32::from_le_bytes(self.fetch(at + 1))), at + 5),
                // ret
                [0xc3] => return eax,
                _ => self.end(Ended::Killed(SIGILL)),
            }
        }
    }

    /// Below the stack pointer.
    fn lend<R>(&self, bytes: &mut [u8], lend: impl FnOnce(Addr) -> R) -> R {
        let before = self.stack.get();
        let addr = before.wrapping_sub(bytes.len() as u64) & !15;
        self.stack.set(addr);
        self.store(addr, bytes);
        let result = lend(addr);
        self.load(addr, bytes);
        self.stack.set(before);
        result
    }

    fn fork(&self, body: impl FnOnce(&Self) -> i32 + Send + 'static) -> Result<i32, Errno> {
        let process = self.group.process.fork().map_err(|error| Errno(error.errno().get()))?;
        let pid = self.os.family.add(self.group.pid);
        let child = Group::new(process, pid, locked(&self.group.descriptors).clone());
        *locked(&child.handlers) = *locked(&self.group.handlers);
        *locked(&child.start) = *locked(&self.group.start);
        let (os, jobs, stack) = (self.os, self.jobs.clone(), self.stack.get());
        self.send(Box::new(move || {
            let task = Task::new(os, Arc::new(child), jobs, os.cpus.claim(), stack);
            os.live(task, |task| {
                let status = body(task);
                task.exit(status)
            });
        }));
        Ok(pid)
    }

    fn thread(&self, body: impl FnOnce(&Self) + Send + 'static) -> Result<Thread, Errno> {
        let stack = self.map_anonymous(STACK, MapFlags::PRIVATE)?;
        let tid = stack + STACK - 16;
        self.store_u32(tid, 1);
        let (os, group, jobs) = (self.os, self.group.clone(), self.jobs.clone());
        self.send(Box::new(move || {
            let task = Task::new(os, group, jobs, os.cpus.claim(), tid);
            task.clear_tid.set(Some(tid));
            os.live(task, |task| body(task));
        }));
        Ok(Thread { tid, stack, len: STACK })
    }

    fn exec(&self, program: &str) -> Errno {
        self.become_program(program)
    }

    fn on_signal(&self, signal: i32, handler: Option<fn(&Self, &SigInfo)>) -> Result<(), Errno> {
        let place = place_of(signal).ok_or(Errno::EINVAL)?;
        locked(&self.group.handlers)[place] = handler;
        Ok(())
    }

    fn auxv(&self, key: u64) -> Option<u64> {
        let (_, mut at) = *locked(&self.group.start);
        let mut word = || {
            let mut bytes = [0; 8];
            self.load(at, &mut bytes);
            at += 8;
            u64::from_le_bytes(bytes)
        };
        let arguments = word();
        for _ in 0..=arguments {
            word();
        }
        while word() != 0 {}
        loop {
            match (word(), word()) {
                (0, _) => return None,
                (found, value) if found == key => return Some(value),
                _ => {}
            }
        }
    }

    fn exit(&self, status: i32) -> ! {
        self.end(Ended::Exited(status))
    }
}

impl<'e, F: EntryFormat> Task<'e, '_, '_, '_, F> {
    /// Has a host thread begun.
    fn send(&self, job: Job<'e>) {
        // Whoever begins them ends after all who send.
        let _ = self.jobs.send(job);
    }
}
