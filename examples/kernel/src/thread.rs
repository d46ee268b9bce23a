//! Threads: a kernel stack each, and what the user sees of one.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use kernmm::addr::{PageOrder, Pfn};
use kernmm::flags::GfpFlags;
use kernmm::platform::Platform;
use spin::Mutex;

use crate::interrupts::Frame;
use crate::platform::MACHINE;
use crate::process::{self, Process};
use crate::x86::{disable_interrupts, enable_interrupts};
use crate::{cpu, memory, sched, signal};

unsafe extern "C" {
    /// `interrupts.s`: leaves a thread, whose stack pointer goes to `*from`, and goes on with the one whose stack pointer is `to`.
    pub unsafe fn switch_stacks(from: *mut u64, to: u64);
    /// `interrupts.s`: where a new thread begins.
    unsafe fn thread_entry();
}

/// Frames of a kernel stack: 32 KiB, which debug builds need.
const STACK_ORDER: u8 = 3;
/// Stands at the far end of each stack.
const CANARY: u64 = 0x6b65_726e_6d6d_2121;
/// Words that `switch_stacks` finds on a stack, and the address that it returns to.
const SWITCH_WORDS: usize = 7;

/// A kernel stack.
struct Stack {
    block: Pfn,
    base: *mut u8,
}

// SAFETY: the block of frames belongs to this value alone.
unsafe impl Send for Stack {}
// SAFETY: as above.
unsafe impl Sync for Stack {}

/// The blocks of all stacks, for who recounts frames.
#[cfg(feature = "check")]
static STACKS: Mutex<alloc::vec::Vec<Pfn>> = Mutex::new(alloc::vec::Vec::new());

/// The blocks of all stacks.
#[cfg(feature = "check")]
pub fn stacks() -> alloc::vec::Vec<Pfn> {
    STACKS.lock().clone()
}

impl Stack {
    fn order() -> PageOrder {
        PageOrder::new(STACK_ORDER).expect("an order")
    }

    fn new() -> Option<Self> {
        let block = memory::frames()?.alloc_pages(GfpFlags::KERNEL | GfpFlags::NOWARN, Self::order()).ok()?;
        let base = MACHINE.direct_map(block).expect("GFP_KERNEL memory is in the direct map").as_ptr();
        // SAFETY: the block was just allocated, and is aligned.
        unsafe { base.cast::<u64>().write(CANARY) };
        #[cfg(feature = "check")]
        STACKS.lock().push(block);
        Some(Self { block, base })
    }

    fn top(&self) -> u64 {
        self.base.expose_provenance() as u64 + Self::order().bytes() as u64
    }

    fn is_whole(&self) -> bool {
        // SAFETY: the block is ours, and aligned.
        unsafe { self.base.cast::<u64>().read_volatile() == CANARY }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        #[cfg(feature = "check")]
        STACKS.lock().retain(|block| *block != self.block);
        let frames = memory::frames().expect("the stack came from there");
        frames.free_pages(self.block, Self::order()).expect("the block was allocated");
    }
}

/// A thread.
pub struct Thread {
    /// Its number; that of a process's first thread is the process's.
    pub id: u32,
    /// `None` for threads of the kernel, and for one that is about to end.
    process: Mutex<Option<Arc<Process>>>,
    stack: Option<Stack>,
    /// Where its stack pointer is while it does not run.
    pub saved_stack: AtomicU64,
    /// What the user's `fs` is relative to.
    pub fs_base: AtomicU64,
    /// Where to write 0 at the end, for whoever joins it; 0 for nowhere.
    pub clear_at_end: AtomicU64,
    /// It has called exit: it is not in ring 3 again.
    is_ending: AtomicBool,
    /// It waited for a time, which is over.
    pub was_late: AtomicBool,
    /// The signals that it keeps out, and the alternate stack of its handlers.
    pub signals: Mutex<signal::Mask>,
    /// What a thread of the kernel does.
    work: Option<fn()>,
}

/// The last number that was given out.
static LAST_ID: AtomicU32 = AtomicU32::new(0);
/// Threads that there are, the idle ones not counted.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A new number.
pub fn next_id() -> u32 {
    LAST_ID.fetch_add(1, Ordering::Relaxed) + 1
}

impl Thread {
    fn new(id: u32, process: Option<Arc<Process>>, stack: Option<Stack>, work: Option<fn()>) -> Self {
        Self {
            id,
            process: Mutex::new(process),
            stack,
            saved_stack: AtomicU64::new(0),
            fs_base: AtomicU64::new(0),
            clear_at_end: AtomicU64::new(0),
            is_ending: AtomicBool::new(false),
            was_late: AtomicBool::new(false),
            signals: Mutex::new(signal::Mask::default()),
            work,
        }
    }

    /// What a CPU does since `boot.s`, and when it has nothing else to do.
    pub fn of_boot() -> Self {
        Self::new(0, None, None, None)
    }

    /// Whether it is that of a CPU.
    pub fn is_idle(&self) -> bool {
        self.id == 0
    }

    /// A thread of the kernel; `None` if there is no room for it.
    pub fn of_kernel(work: fn()) -> Option<Arc<Self>> {
        Self::prepare(next_id(), None, None, Some(work))
    }

    /// A thread of a process, that is to begin as `frame` says; `None` if there is no room for it.
    pub fn of_user(id: u32, process: Arc<Process>, frame: &Frame) -> Option<Arc<Self>> {
        Self::prepare(id, Some(process), Some(frame), None)
    }

    fn prepare(
        id: u32,
        process: Option<Arc<Process>>,
        frame: Option<&Frame>,
        work: Option<fn()>,
    ) -> Option<Arc<Self>> {
        if COUNT.fetch_add(1, Ordering::Relaxed) as usize >= sched::MAX_THREADS {
            COUNT.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let Some(stack) = Stack::new() else {
            COUNT.fetch_sub(1, Ordering::Relaxed);
            return None;
        };
        let mut top = stack.top() - size_of::<Frame>() as u64;
        if let Some(frame) = frame {
            // SAFETY: the stack is ours, and the frame's place lies at its top, aligned to 16.
            unsafe { core::ptr::with_exposed_provenance_mut::<Frame>(top as usize).write(frame.clone()) };
        }
        // As if it had called `switch_stacks`, from where `thread_entry` is. The words below the entry are registers.
        top -= 16;
        let words = [0, 0, 0, 0, 0, 0, thread_entry as *const () as u64];
        top -= (SWITCH_WORDS * 8) as u64;
        // SAFETY: the words lie on the stack, which is ours, below the frame.
        unsafe { core::ptr::with_exposed_provenance_mut::<[u64; SWITCH_WORDS]>(top as usize).write(words) };
        let thread = Self::new(id, process, Some(stack), work);
        thread.saved_stack.store(top, Ordering::Relaxed);
        Some(Arc::new(thread))
    }

    /// The process.
    pub fn process(&self) -> Option<Arc<Process>> {
        self.process.lock().clone()
    }

    /// The number of its process.
    pub fn process_id(&self) -> Option<u32> {
        self.process.lock().as_ref().map(|process| process.id)
    }

    /// Takes the process away, at the end.
    pub fn leave_process(&self) {
        // The caller has it too: this is not the last of its owners.
        self.process.lock().take();
    }

    /// Whether it is to end: it has called exit, or its process is over.
    pub fn is_over(&self) -> bool {
        self.is_ending.load(Ordering::Relaxed)
            || self.process.lock().as_ref().is_some_and(|process| process.is_over_for(self.id))
    }

    /// Ends it when it has left the kernel's functions that it is in.
    pub fn end_in_kernel(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
    }

    /// The top of its kernel stack; 0 for the idle threads, which never are in ring 3.
    pub fn stack_top(&self) -> u64 {
        self.stack.as_ref().map_or(0, Stack::top)
    }

    /// # Panics
    /// If the stack was too small.
    pub fn check_stack(&self) {
        assert!(
            self.stack.as_ref().is_none_or(Stack::is_whole),
            "thread {} has left its kernel stack",
            self.id
        );
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if self.stack.is_some() {
            COUNT.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The first Rust code of a new thread.
pub extern "C" fn begins() {
    sched::arrive();
    let me = sched::current();
    if let Some(work) = me.work {
        drop(me);
        work();
        sched::end();
    }
    drop(me);
    prepare_for_user();
}

/// What is to be done before a thread goes back to ring 3. Interrupts are off when it returns.
pub fn prepare_for_user() {
    loop {
        enable_interrupts();
        let thread = sched::current();
        let process = thread.process().expect("a thread of ring 3 has a process");
        if thread.is_over() {
            drop((thread, process));
            process::end_thread();
        }
        if cpu::current().turn.take_over() {
            sched::yield_now();
        }
        process::walk_tables(&process);
        disable_interrupts();
        if !cpu::current().turn.is_over() && !thread.is_over() && process::walks_tables() {
            return;
        }
    }
}

const _: () = assert!(size_of::<AtomicPtr<u8>>() == 8 && size_of::<Frame>() == 512 + 22 * 8);
