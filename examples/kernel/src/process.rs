//! Processes: an address space of kernmm's, files, signals, threads, and how they begin and end.

use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kernmm::addr::VirtAddr;
use kernmm::error::Errno;
use kernmm::platform::Platform;
use kernmm::table::X86_64;
use spin::Mutex;

use crate::cpu::MAX_CPUS;
use crate::files::Files;
use crate::interrupts::Frame;
use crate::lock::SleepLock;
use crate::memory::{self, Frames};
use crate::platform::MACHINE;
use crate::sched::{self, Event, Woken};
use crate::signal::Actions;
use crate::syscall::futex;
use crate::thread::{self, Thread};
use crate::x86::without_interrupts;
use crate::{init, oom, platform};

/// An address space of this kernel.
pub type Space = kernmm::memory::Process<'static, 'static, Frames, X86_64, SleepLock>;

/// The parent of processes that the kernel itself began.
pub const KERNEL: u32 = 0;
/// The parent of those whose parent has ended: nobody asks how they ended.
const NOBODY: u32 = u32::MAX;

/// Says that a process is over; its wait status is in the bits below.
const OVER: u32 = 1 << 31;

/// A process.
pub struct Process {
    pub id: u32,
    pub name: Mutex<String>,
    pub files: Mutex<Files>,
    pub actions: Mutex<Actions>,
    pub faults: FaultCounts,
    /// How often CPUs had been asked to forget translations when it began.
    pub shoot_downs_before: u64,
    parent: u32,
    space: Option<Space>,
    threads: AtomicU32,
    over: AtomicU32,
    /// Its first thread, or the one that has become another program.
    first: AtomicU32,
    /// The wait status that this one left, for the case that its threads end one by one.
    first_status: AtomicU32,
    /// The only thread that is to go on, by its number: it becomes another program. 0 for all.
    only: AtomicU32,
}

/// How many faults were resolved, without and with input.
#[derive(Default)]
pub struct FaultCounts {
    pub minor: AtomicU64,
    pub major: AtomicU64,
    /// Both, by the CPU on which they came.
    pub by_cpu: [AtomicU64; MAX_CPUS],
}

/// What is known of a process by its number.
struct Entry {
    id: u32,
    parent: u32,
    process: Weak<Process>,
    /// Its wait status, once it has ended and nothing of it is left.
    ended: Option<u32>,
}

/// All that run, or whose parent does not know yet that they have ended.
static TABLE: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
/// Processes, at most.
const MAX_PROCESSES: usize = sched::MAX_THREADS;
/// A child of the process with the key's number has ended.
static CHILDREN: Event = Event::new();

/// Makes room for all processes there can be.
pub fn init() {
    *TABLE.lock() = Vec::with_capacity(MAX_PROCESSES);
}

impl Process {
    /// A process with one thread to come, known from now on.
    fn new(
        id: u32,
        parent: u32,
        name: String,
        space: Space,
        files: Files,
        actions: Actions,
    ) -> Result<Arc<Self>, Errno> {
        let process = Arc::new(Self {
            id,
            name: Mutex::new(name),
            files: Mutex::new(files),
            actions: Mutex::new(actions),
            faults: FaultCounts::default(),
            shoot_downs_before: platform::shoot_downs(),
            parent,
            space: Some(space),
            threads: AtomicU32::new(1),
            over: AtomicU32::new(0),
            first: AtomicU32::new(id),
            first_status: AtomicU32::new(0),
            only: AtomicU32::new(0),
        });
        let entry = Entry { id, parent, process: Arc::downgrade(&process), ended: None };
        let mut table = TABLE.lock();
        if table.len() == MAX_PROCESSES {
            return Err(Errno::EAGAIN);
        }
        table.push(entry);
        drop(table);
        Ok(process)
    }

    /// Its memory.
    pub fn space(&self) -> &Space {
        self.space.as_ref().expect("it is taken away at the very end")
    }

    /// Whether its threads are to end.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire) & OVER != 0
    }

    /// Whether one of its threads is to end.
    pub fn is_over_for(&self, thread: u32) -> bool {
        let only = self.only.load(Ordering::Acquire);
        self.is_over() || only != 0 && only != thread
    }

    /// Ends it with a wait status, unless it is over already: each of its threads ends before it is in ring 3 again.
    pub fn finish(&self, status: u32) {
        let first = self.over.compare_exchange(0, OVER | status, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if first && self.threads.load(Ordering::Acquire) > 1 {
            self.interrupt();
        }
    }

    /// Ends it by a signal.
    pub fn kill(&self, signal: u32) {
        self.finish(signal);
        self.interrupt();
    }

    /// Wakes its threads that sleep, so that they find out. Whoever has not gone to sleep yet looks first, with the scheduler's queues locked.
    fn interrupt(&self) {
        sched::interrupt(|thread| thread.process_id() == Some(self.id));
    }

    /// Ends all threads but the running one, and waits until they have.
    ///
    /// # Errors
    /// EAGAIN if another thread does the same; EINTR if the process is over.
    ///
    /// # Linux
    /// `de_thread` in `fs/exec.c`.
    pub fn end_other_threads(&self, own: u32) -> Result<(), Errno> {
        let first = self.only.compare_exchange(0, own, Ordering::AcqRel, Ordering::Relaxed);
        first.map_err(|_| Errno::EAGAIN)?;
        self.interrupt();
        while self.threads() > 1 && !self.is_over() {
            sched::yield_now();
        }
        self.only.store(0, Ordering::Release);
        if self.is_over() { Err(Errno::EINTR) } else { Ok(()) }
    }

    /// Notes with which wait status a thread ends that calls exit; that of the first thread is the process's if nothing else ends it.
    pub fn note_status(&self, thread: u32, status: u32) {
        if thread == self.first.load(Ordering::Relaxed) {
            self.first_status.store(status, Ordering::Release);
        }
    }

    /// Its only thread has become another program, of which it is the first.
    pub fn note_first(&self, thread: u32) {
        self.first.store(thread, Ordering::Relaxed);
    }

    /// Copies bytes into its memory, for a call.
    ///
    /// # Errors
    /// EFAULT; EINTR if the process is over.
    pub fn copy_to_user(&self, to: u64, bytes: &[u8]) -> Result<(), Errno> {
        oom::retry(self, || self.space().copy_to_user(VirtAddr::from(to), bytes))
    }

    /// Copies bytes out of its memory, for a call.
    ///
    /// # Errors
    /// As [`copy_to_user`](Self::copy_to_user).
    pub fn copy_from_user(&self, from: u64, out: &mut [u8]) -> Result<(), Errno> {
        oom::retry(self, || self.space().copy_from_user(VirtAddr::from(from), out))
    }

    /// How many threads it has.
    pub fn threads(&self) -> u32 {
        self.threads.load(Ordering::Acquire)
    }

    /// Begins one more thread.
    ///
    /// # Errors
    /// EAGAIN if there is no room for one.
    pub fn begin_thread(
        self: &Arc<Self>,
        id: u32,
        frame: &Frame,
        fs_base: u64,
        clear_at_end: u64,
    ) -> Result<(), Errno> {
        let thread = Thread::of_user(id, self.clone(), frame).ok_or(Errno::EAGAIN)?;
        thread.fs_base.store(fs_base, Ordering::Relaxed);
        thread.clear_at_end.store(clear_at_end, Ordering::Relaxed);
        self.threads.fetch_add(1, Ordering::AcqRel);
        sched::start(thread);
        Ok(())
    }
}

impl Drop for Process {
    /// The end of the last thread, and of whoever looked at it: memory and files go, and then the parent is told.
    fn drop(&mut self) {
        drop(self.space.take());
        self.files.get_mut().close_all();
        let over = self.over.load(Ordering::Acquire);
        let status = if over == 0 { self.first_status.load(Ordering::Acquire) } else { over & !OVER };
        let parent = {
            let mut table = TABLE.lock();
            for entry in table.iter_mut().filter(|entry| entry.parent == self.id) {
                entry.parent = NOBODY;
            }
            let own = table.iter_mut().find(|entry| entry.id == self.id);
            let parent = own.map(|entry| (entry.ended = Some(status), entry.parent).1);
            table.retain(|entry| entry.parent != NOBODY || entry.ended.is_none());
            parent.unwrap_or(NOBODY)
        };
        CHILDREN.wake(u128::from(parent), usize::MAX);
    }
}

/// Begins a process of the kernel's: the program at `path`, with arguments. Answers with its number.
///
/// # Errors
/// Those of [`exec`](crate::exec::exec); ENOMEM, EAGAIN.
pub fn spawn(path: &str, arguments: &[&str]) -> Result<u32, Errno> {
    let space = Space::new(memory::vm()).map_err(|error| error.errno())?;
    let texts: Vec<Vec<u8>> = arguments.iter().map(|text| text.as_bytes().into()).collect();
    let frame = crate::exec::exec(&space, path, &texts, &[])?;
    let id = thread::next_id();
    let name = arguments.first().map_or(path, |name| *name).into();
    let process = Process::new(id, KERNEL, name, space, Files::of_console(), Actions::default())?;
    start_first(process, &frame)
}

/// Begins a copy of a process, whose only thread goes on as `frame` says. Answers with its number.
///
/// # Errors
/// Those of fork; EAGAIN if there are too many processes or threads.
pub fn fork(parent: &Process, frame: &Frame, thread: &Thread) -> Result<u32, Errno> {
    let space = parent.space().fork().map_err(|error| error.errno())?;
    let name = parent.name.lock().clone();
    let (files, actions) = (parent.files.lock().clone(), parent.actions.lock().clone());
    let child = Process::new(thread::next_id(), parent.id, name, space, files, actions)?;
    let id = child.id;
    let copy = Thread::of_user(id, child.clone(), frame);
    let Some(copy) = copy else {
        forget(child);
        return Err(Errno::EAGAIN);
    };
    copy.fs_base.store(thread.fs_base.load(Ordering::Relaxed), Ordering::Relaxed);
    *copy.signals.lock() = thread.signals.lock().clone();
    drop(child);
    sched::start(copy);
    Ok(id)
}

fn start_first(process: Arc<Process>, frame: &Frame) -> Result<u32, Errno> {
    let id = process.id;
    match Thread::of_user(id, process.clone(), frame) {
        Some(thread) => {
            drop(process);
            sched::start(thread);
            Ok(id)
        }
        None => {
            forget(process);
            Err(Errno::EAGAIN)
        }
    }
}

/// Ends a process that never had a thread, as if it had never been.
fn forget(process: Arc<Process>) {
    let mut parent = NOBODY;
    if let Some(entry) = TABLE.lock().iter_mut().find(|entry| entry.id == process.id) {
        parent = core::mem::replace(&mut entry.parent, NOBODY);
    }
    drop(process);
    // A thread of the parent may wait for this child.
    CHILDREN.wake(u128::from(parent), usize::MAX);
}

/// What [`wait`] found.
pub enum Waited {
    /// A child, by its number and wait status; it is known no more.
    Ended(u32, u32),
    /// All run.
    None,
}

/// Waits for a child of `parent` to end: the one with number `which`, or any. Without `block` only looks.
///
/// # Errors
/// ECHILD if there is no such child; EINTR if the parent is over.
pub fn wait(parent: u32, which: Option<u32>, block: Block) -> Result<Waited, i32> {
    loop {
        let seen = CHILDREN.listen();
        {
            let mut table = TABLE.lock();
            let mine = |entry: &Entry| entry.parent == parent && which.is_none_or(|which| which == entry.id);
            if !table.iter().any(mine) {
                return Err(ECHILD);
            }
            let ended = table.iter().position(|entry| mine(entry) && entry.ended.is_some());
            if let Some(entry) = ended.map(|at| table.remove(at)) {
                return Ok(Waited::Ended(entry.id, entry.ended.unwrap_or(0)));
            }
        }
        if block == Block::No {
            return Ok(Waited::None);
        }
        if CHILDREN.wait_unless_over(seen, u128::from(parent), None) == Woken::Over {
            return Err(Errno::EINTR.get());
        }
    }
}

/// Whether a call waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Block {
    Yes,
    No,
}

/// No child: a number that kernmm has no use for.
pub const ECHILD: i32 = 10;

/// All processes that there are.
pub fn all() -> Vec<Arc<Process>> {
    TABLE.lock().iter().filter_map(|entry| entry.process.upgrade()).collect()
}

/// Ends the running thread, and the process with its last one.
pub fn end_thread() -> ! {
    let thread = sched::current();
    let process = thread.process().expect("the thread of a process");
    // Whoever joins the thread waits for its word; if the word is gone, nobody does. All that may wait comes first, while this is one of the
    // process's threads like any other.
    let word = thread.clear_at_end.load(Ordering::Relaxed);
    if word != 0 && process.copy_to_user(word, &[0; 4]).is_ok() {
        futex::wake(&process, word, usize::MAX);
    }
    leave_tables(&process);
    thread.leave_process();
    // The one that leaves none behind sees what all others did.
    if process.threads.fetch_sub(1, Ordering::AcqRel) == 1 && process.parent == KERNEL {
        init::note_end(&process);
    }
    drop((thread, process));
    sched::end()
}

// ------------------------------------------------------------------------------------------ whose tables a CPU walks

/// Makes this CPU walk the tables of the running thread's process, if it does not yet. It does as long as threads of that process run on it: a thread that
/// gives its CPU to any other takes them along (`sched::leave`). So tables that nobody runs on are walked by no CPU, and
/// may go.
pub fn walk_tables(process: &Process) {
    if !walks_tables() {
        // With interrupts masked, since `sched::leave` does the other with the queues locked, for which a tick would wait here.
        without_interrupts(|| process.space().activate())
            .expect("a process that runs has tables, and a CPU a small number");
    }
}

/// Whether this CPU walks any process's tables; exec and the end of a process take them away.
pub fn walks_tables() -> bool {
    MACHINE.tables().is_some()
}

/// Makes this CPU walk the kernel's tables alone; `process` is whose it walks now.
pub fn leave_tables(process: &Process) {
    // The thread would walk them again on another CPU only after it has waited, which nothing here does.
    if walks_tables() {
        without_interrupts(|| process.space().deactivate());
    }
}
