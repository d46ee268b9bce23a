//! The scheduler: which thread runs where, and what threads wait for.
//!
//! One queue of threads that are ready, round robin, for all CPUs; a tick of [`TICKS_PER_SECOND`] takes the CPU from a thread of ring 3. The kernel itself is
//! left only where it waits, so a CPU that is in it stays with its thread, and what is per CPU is safe there.
//!
//! # Locking
//! [`QUEUES`] is taken with interrupts off, and nothing is allocated or freed under it. It is held across the switch from one
//! thread to the next, which lets go of it.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;

use crate::thread::Thread;
use crate::x86::{MSR_FS_BASE, disable_interrupts, enable_interrupts, wait_for_interrupt, wrmsr};
use crate::{apic, cpu, memory, process};

/// The most threads, those of the kernel included.
pub const MAX_THREADS: usize = 256;
/// Ticks of each CPU's timer in a second.
pub const TICKS_PER_SECOND: u64 = 100;

/// What a thread waits for: the address of an [`Event`], and which of those that it stands for.
type Channel = (usize, u128);

/// A thread that waits.
struct Waiting {
    channel: Channel,
    /// The tick at which it has waited long enough.
    until: Option<u64>,
    /// The end of its process wakes it too.
    ends: Ends,
    thread: Arc<Thread>,
}

/// Whether the end of a process, or of a thread, ends a wait of its threads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// As soon as it is over. Linux: `TASK_INTERRUPTIBLE`.
    Early,
    /// What it waits for comes first. Linux: `TASK_UNINTERRUPTIBLE`.
    Late,
}

/// Why a wait is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// The event has happened.
    Happened,
    /// The time is over.
    Late,
    /// The thread is to end.
    Over,
}

/// The threads that run nowhere.
struct Queues {
    ready: VecDeque<Arc<Thread>>,
    waiting: Vec<Waiting>,
}

static QUEUES: Mutex<Queues> = Mutex::new(Queues { ready: VecDeque::new(), waiting: Vec::new() });
/// Ticks of CPU 0 since it began.
static TICKS: AtomicU64 = AtomicU64::new(0);
/// What [`TICKS_PER_SECOND`] means to the APICs' timers.
static COUNTS_PER_TICK: AtomicU32 = AtomicU32::new(0);

/// What the scheduler knows of a CPU.
pub struct Turn {
    /// Its thread, by an `Arc` that belongs to this.
    thread: AtomicPtr<Thread>,
    /// What it runs when no other is ready: the thread that `boot.s` began.
    idle: Mutex<Option<Arc<Thread>>>,
    /// A thread that has ended, whose stack is free once the CPU has left it.
    ended: Mutex<Option<Arc<Thread>>>,
    /// The thread in ring 3 has had its time.
    is_over: AtomicBool,
    /// It sleeps, or is about to.
    is_idle: AtomicBool,
}

impl Turn {
    /// Of a CPU that runs no thread yet.
    pub const fn new() -> Self {
        Self {
            thread: AtomicPtr::new(core::ptr::null_mut()),
            idle: Mutex::new(None),
            ended: Mutex::new(None),
            is_over: AtomicBool::new(false),
            is_idle: AtomicBool::new(false),
        }
    }

    /// Whether the thread in ring 3 has had its time; asks once.
    pub fn take_over(&self) -> bool {
        self.is_over.swap(false, Ordering::Relaxed)
    }

    /// The same, without forgetting it.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// Makes room for all threads there can be, and finds out how long a tick is; before any CPU calls [`begin`].
pub fn init() {
    let mut queues = lock();
    queues.ready = VecDeque::with_capacity(MAX_THREADS);
    queues.waiting = Vec::with_capacity(MAX_THREADS);
    unlock(queues);
    let counts = apic::timer_counts(|| cpu::delay_microseconds(10_000));
    COUNTS_PER_TICK.store(counts.max(100), Ordering::Relaxed);
}

/// Makes what the running CPU does its first thread, and starts its timer.
pub fn begin() {
    let cpu = cpu::current();
    let idle = Arc::new(Thread::of_boot());
    cpu.turn.thread.store(Arc::into_raw(idle.clone()).cast_mut(), Ordering::Relaxed);
    *cpu.turn.idle.lock() = Some(idle);
    apic::start_timer(COUNTS_PER_TICK.load(Ordering::Relaxed));
}

/// The thread that runs on this CPU.
///
/// # Panics
/// Before [`begin`].
pub fn current() -> Arc<Thread> {
    let thread = cpu::current().turn.thread.load(Ordering::Relaxed);
    assert!(!thread.is_null(), "a CPU without a thread");
    // SAFETY: the pointer is an `Arc`'s that belongs to the running CPU's turn; the thread that asks is the one, so it is not given up now.
    unsafe { Arc::increment_strong_count(thread) };
    // SAFETY: the count that was just added is this one's.
    unsafe { Arc::from_raw(thread) }
}

/// Whether the running CPU has threads at all.
pub fn has_begun() -> bool {
    !cpu::current().turn.thread.load(Ordering::Relaxed).is_null()
}

/// Lets a new thread run.
pub fn start(thread: Arc<Thread>) {
    let mut queues = lock();
    queues.ready.push_back(thread);
    unlock(queues);
    wake_a_cpu();
}

/// Lets others run first.
pub fn yield_now() {
    let queues = lock();
    if queues.ready.is_empty() {
        unlock(queues);
        return;
    }
    leave(queues, |queues, me| queues.ready.push_back(me));
}

/// Ends the running thread.
pub fn end() -> ! {
    leave(lock(), |_, me| *cpu::current().turn.ended.lock() = Some(me));
    unreachable!("a thread that has ended is never run again");
}

/// Something that threads wait for. Whoever waits looks at its state first ([`listen`](Self::listen)), then at what it wants to happen, and then waits
/// unless the state has changed: nothing is missed in between.
pub struct Event {
    happened: AtomicU32,
}

impl Event {
    /// One that has not happened.
    pub const fn new() -> Self {
        Self { happened: AtomicU32::new(0) }
    }

    /// The state to give to [`wait`](Self::wait).
    pub fn listen(&self) -> u32 {
        self.happened.load(Ordering::Acquire)
    }

    /// Waits until it happens for `key`, unless it has since `seen`; at the latest until a tick.
    pub fn wait(&self, seen: u32, key: u128, until: Option<u64>) {
        self.wait_as(seen, key, until, Ends::Late);
    }

    /// The same, but no longer than the running thread may go on.
    pub fn wait_unless_over(&self, seen: u32, key: u128, until: Option<u64>) -> Woken {
        self.wait_as(seen, key, until, Ends::Early)
    }

    fn wait_as(&self, seen: u32, key: u128, until: Option<u64>, ends: Ends) -> Woken {
        let thread = current();
        assert!(!thread.is_idle(), "the idle thread of a CPU is in no queue: nobody would wake it");
        let queues = lock();
        if self.happened.load(Ordering::Acquire) != seen {
            unlock(queues);
            return Woken::Happened;
        }
        // With the queues locked: who ends the process after this finds the thread among those that wait.
        if ends == Ends::Early && thread.is_over() {
            unlock(queues);
            return Woken::Over;
        }
        let channel = (core::ptr::from_ref(self).addr(), key);
        leave(queues, |queues, thread| queues.waiting.push(Waiting { channel, until, ends, thread }));
        match thread.was_late.swap(false, Ordering::Relaxed) {
            true => Woken::Late,
            false if ends == Ends::Early && thread.is_over() => Woken::Over,
            false => Woken::Happened,
        }
    }

    /// It happens for `key`: wakes at most so many; answers how many.
    pub fn wake(&self, key: u128, most: usize) -> usize {
        let channel = (core::ptr::from_ref(self).addr(), key);
        let mut queues = lock();
        self.happened.fetch_add(1, Ordering::Release);
        let mut woken = 0;
        let mut at = 0;
        while at < queues.waiting.len() && woken < most {
            if queues.waiting[at].channel == channel {
                let waiting = queues.waiting.remove(at);
                queues.ready.push_back(waiting.thread);
                woken += 1;
            } else {
                at += 1;
            }
        }
        unlock(queues);
        (0..woken).for_each(|_| wake_a_cpu());
        woken
    }
}

/// Makes threads that wait no longer than they may go on ready, to find that they may not.
pub fn interrupt(is_meant: impl Fn(&Thread) -> bool) {
    let mut queues = lock();
    let ends = |waiting: &Waiting| waiting.ends == Ends::Early && is_meant(&waiting.thread);
    while let Some(at) = queues.waiting.iter().position(ends) {
        let waiting = queues.waiting.remove(at);
        queues.ready.push_back(waiting.thread);
    }
    unlock(queues);
    cpu::all().filter(|cpu| cpu.id() != cpu::id()).for_each(|cpu| cpu::kick(cpu.id()));
}

/// An input or output is over, or what else the library waits for: the disk's thread says so, and `Platform::wake_waiters`.
pub static IO: Event = Event::new();

/// Waits until `done`, which is asked again whenever something is over that it could stand for.
pub fn wait_for_io(done: &dyn Fn() -> bool) {
    if !has_begun() {
        while !done() {
            core::hint::spin_loop();
        }
        return;
    }
    loop {
        let seen = IO.listen();
        if done() {
            return;
        }
        IO.wait(seen, 0, None);
    }
}

/// What the addresses of the caller's thread by `fs` are relative to.
pub fn set_fs_base(thread: &Thread, base: u64) {
    thread.fs_base.store(base, Ordering::Relaxed);
    // SAFETY: the register exists; what the user's `fs` is relative to is the user's.
    unsafe { wrmsr(MSR_FS_BASE, base) };
}

/// The timer's interrupt: the thread in ring 3 has had its time, and who waits for a time is woken.
pub fn tick() {
    let cpu = cpu::current();
    cpu.turn.is_over.store(true, Ordering::Relaxed);
    if cpu.id() != 0 {
        return;
    }
    let now = TICKS.fetch_add(1, Ordering::Relaxed) + 1;
    // The interrupted code may hold the queues with interrupts on for no moment: they are locked with interrupts off.
    let mut queues = QUEUES.lock();
    while let Some(at) =
        queues.waiting.iter().position(|waiting| waiting.until.is_some_and(|until| until <= now))
    {
        let waiting = queues.waiting.remove(at);
        waiting.thread.was_late.store(true, Ordering::Relaxed);
        queues.ready.push_back(waiting.thread);
    }
}

/// Ticks since the start.
pub fn ticks() -> u64 {
    TICKS.load(Ordering::Relaxed)
}

/// What a CPU does that has no thread: takes one, or sleeps until an interrupt. Called with interrupts off, comes back with interrupts on.
pub fn idle() {
    let turn = &cpu::current().turn;
    // Before it counts as idle: from then on another CPU may recount, and nothing changes.
    memory::idle();
    turn.is_idle.store(true, Ordering::SeqCst);
    let is_ready = has_begun() && !QUEUES.lock().ready.is_empty();
    if is_ready {
        turn.is_idle.store(false, Ordering::SeqCst);
        #[cfg(feature = "check")]
        check::wait_for_end();
        enable_interrupts();
        yield_now();
        return;
    }
    #[cfg(feature = "check")]
    check::when_all_is_quiet();
    wait_for_interrupt();
    turn.is_idle.store(false, Ordering::SeqCst);
}

/// Recounting of all memory while nothing runs.
#[cfg(feature = "check")]
pub mod check {
    use super::*;

    /// A CPU recounts: the others stay where they are.
    static IS_ON: AtomicBool = AtomicBool::new(false);
    /// The tick of the last time.
    static LAST: AtomicU64 = AtomicU64::new(0);
    static COUNT: AtomicU64 = AtomicU64::new(0);

    /// How often all was recounted.
    pub fn count() -> u64 {
        COUNT.load(Ordering::Relaxed)
    }

    /// Holds a CPU that would go on while another recounts; with interrupts let in.
    pub fn wait_for_end() {
        while IS_ON.load(Ordering::SeqCst) {
            enable_interrupts();
            core::hint::spin_loop();
        }
    }

    /// Recounts, a few times a second, if all CPUs are idle and stay so. Called by CPU 0 with interrupts off; comes back with interrupts off.
    pub fn when_all_is_quiet() {
        let is_due = ticks() >= LAST.load(Ordering::Relaxed) + TICKS_PER_SECOND / 4;
        if cpu::id() != 0 || !is_due || !has_begun() {
            return;
        }
        // Who leaves idleness looks at this after it has said so: either it stops there, or it is seen here.
        IS_ON.store(true, Ordering::SeqCst);
        if cpu::all().all(|cpu| cpu.turn.is_idle.load(Ordering::SeqCst)) {
            enable_interrupts();
            memory::check();
            disable_interrupts();
            COUNT.fetch_add(1, Ordering::Relaxed);
            LAST.store(ticks(), Ordering::Relaxed);
        }
        IS_ON.store(false, Ordering::SeqCst);
    }
}

/// Kicks a CPU that sleeps, so that it looks for a thread.
fn wake_a_cpu() {
    let sleeps = |cpu: &&cpu::Cpu| cpu.id() != cpu::id() && cpu.turn.is_idle.swap(false, Ordering::SeqCst);
    if let Some(cpu) = cpu::all().find(sleeps) {
        cpu::kick(cpu.id());
    }
}

/// The queues, with interrupts off.
type Locked = spin::MutexGuard<'static, Queues>;

fn lock() -> Locked {
    debug_assert!(crate::x86::interrupts_enabled() || !has_begun(), "a thread waits with interrupts off");
    disable_interrupts();
    QUEUES.lock()
}

fn unlock(queues: Locked) {
    drop(queues);
    enable_interrupts();
}

/// Leaves the running thread, which `keep` puts where it can be found again, for the next one; comes back when it is its turn again.
fn leave(mut queues: Locked, keep: impl FnOnce(&mut Queues, Arc<Thread>)) {
    let cpu = cpu::current();
    let me = current();
    let from = me.saved_stack.as_ptr();
    // Not the last owner: the thread is one too.
    let leaving = me.process();
    // The idle thread is in no queue: it runs when there is no other.
    if !me.is_idle() {
        keep(&mut queues, me);
    }
    let idle = || cpu.turn.idle.lock().clone();
    let next = queues.ready.pop_front().or_else(idle).expect("a CPU that has begun has an idle thread");
    // Only its own threads keep a process's tables walked: another CPU may be about to free them.
    if let Some(process) = leaving.filter(|process| next.process_id() != Some(process.id)) {
        process::leave_tables(&process);
    }
    #[cfg(feature = "check")]
    assert!(
        next.process_id().is_some() || !process::walks_tables(),
        "tables of a process without its threads"
    );
    let to = next.saved_stack.load(Ordering::Relaxed);
    next.check_stack();
    cpu.kernel_stack.store(next.stack_top(), Ordering::Relaxed);
    // SAFETY: the register exists; what the user's `fs` is relative to is the user's.
    unsafe { wrmsr(MSR_FS_BASE, next.fs_base.load(Ordering::Relaxed)) };
    let before = cpu.turn.thread.swap(Arc::into_raw(next).cast_mut(), Ordering::Relaxed);
    // SAFETY: the pointer was an `Arc`'s of this turn, as long as the thread ran. It is kept above, so it is not the last.
    unsafe { Arc::decrement_strong_count(before) };
    core::mem::forget(queues);
    // SAFETY: `from` is the running thread's place, which `keep` keeps, and `to` what this function, or the thread's maker, left for the other. The
    // queues stay locked until that one has arrived.
    unsafe { crate::thread::switch_stacks(from, to) };
    arrive();
}

/// What a thread does first when its turn comes, on whichever CPU.
pub fn arrive() {
    // SAFETY: the thread that was left has locked the queues and forgotten the guard.
    unsafe { QUEUES.force_unlock() };
    let ended = cpu::current().turn.ended.lock().take();
    enable_interrupts();
    drop(ended);
}
