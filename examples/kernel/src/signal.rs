//! Signals that faults raise: handlers in ring 3, with Linux's frame on the user's stack.
//!
//! Only what the running thread itself causes is delivered; nobody sends signals to others.

use kernmm::mm::Sysctl;

use crate::interrupts::{Frame, Sse};
use crate::process::Process;
use crate::sched;
use crate::segments::{USER_CODE, USER_DATA};

pub const SIGILL: u32 = 4;
pub const SIGFPE: u32 = 8;
pub const SIGKILL: u32 = 9;
pub const SIGSEGV: u32 = 11;
/// Signals are numbered from 1.
pub const SIGNALS: usize = 64;

/// `SA_RESTORER`: the action says where a handler returns to. On x86-64 it must.
const SA_RESTORER: u64 = 0x0400_0000;
/// `SA_NODEFER`: the signal may come again while its handler runs.
const SA_NODEFER: u64 = 0x4000_0000;
/// `SA_RESETHAND`: the handler runs once.
const SA_RESETHAND: u64 = 0x8000_0000;

/// Linux's `struct sigaction`, as the kernel sees it.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Action {
    /// 0: the process ends; 1: ignored; else the handler.
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

impl Action {
    /// Its bytes in memory.
    pub const BYTES: usize = 32;

    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        bytes_of(&[self.handler, self.flags, self.restorer, self.mask])
    }

    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [handler, flags, restorer, mask] = words_of(&bytes);
        Self { handler, flags, restorer, mask }
    }
}

/// What a process does about each signal; the first is number 1.
#[derive(Clone)]
pub struct Actions(pub [Action; SIGNALS]);

impl Default for Actions {
    fn default() -> Self {
        Self([Action::default(); SIGNALS])
    }
}

/// The signals that a thread keeps out, a bit each.
#[derive(Clone, Default)]
pub struct Mask(pub u64);

/// What a handler is told.
pub struct Info {
    pub signal: u32,
    pub code: i32,
    pub addr: u64,
}

/// Linux's `struct ucontext` with the registers in `struct sigcontext_64`: words.
const CONTEXT_WORDS: usize = 5 + 32 + 1;
/// Where in it, in words: the registers begin; the pointer to the floating-point state; the signal mask.
const REGISTERS: usize = 5;
const FLOATING_POINT: usize = REGISTERS + 23;
const SIGNAL_MASK: usize = 5 + 32;
/// Bytes of `siginfo_t`.
const INFO: usize = 128;
/// What lies on the user's stack while a handler runs: return address, context, siginfo.
const SIGFRAME: usize = 8 + CONTEXT_WORDS * 8 + INFO;
/// Bytes below the stack pointer that belong to the interrupted function.
const RED_ZONE: u64 = 128;

/// Prepares the thread to run its process's handler; `false` if there is none, or no place for its frame.
///
/// # Linux
/// `setup_rt_frame` in `arch/x86/kernel/signal_64.c`.
pub fn deliver(frame: &mut Frame, process: &Process, info: &Info) -> bool {
    let thread = sched::current();
    let mut signals = thread.signals.lock();
    let place = info.signal as usize - 1;
    let action = process.actions.lock().0[place];
    // A fault cannot be ignored or put off: the access would fault again and again.
    if action.handler < 2
        || !is_users(action.handler)
        || action.flags & SA_RESTORER == 0
        || signals.0 >> place & 1 == 1
    {
        return false;
    }
    // No stack reaches below 0.
    let Some(room) = frame.rsp.checked_sub(RED_ZONE + 512 + SIGFRAME as u64).filter(|&room| room >= 128)
    else {
        return false;
    };
    let sse_at = (room + SIGFRAME as u64) & !63;
    // The handler is entered as if called: the stack pointer is 8 below a multiple of 16.
    let at = ((sse_at - SIGFRAME as u64) & !15) - 8;
    let context_at = at + 8;
    let info_at = context_at + CONTEXT_WORDS as u64 * 8;
    let mut words = [0; CONTEXT_WORDS];
    words[REGISTERS..REGISTERS + 18].copy_from_slice(&registers(frame));
    words[REGISTERS + 18] = u64::from(USER_CODE) | u64::from(USER_DATA) << 48;
    words[REGISTERS + 19] = frame.error;
    words[REGISTERS + 20] = frame.vector;
    words[REGISTERS + 21] = signals.0;
    words[REGISTERS + 22] = info.addr;
    words[FLOATING_POINT] = sse_at;
    words[SIGNAL_MASK] = signals.0;
    let mut siginfo = [0; INFO];
    siginfo[..4].copy_from_slice(&info.signal.to_le_bytes());
    siginfo[8..12].copy_from_slice(&info.code.to_le_bytes());
    siginfo[16..24].copy_from_slice(&info.addr.to_le_bytes());
    let context: [u8; CONTEXT_WORDS * 8] = bytes_of(&words);
    let parts: [(u64, &[u8]); 4] = [
        (sse_at, &frame.sse.0),
        (at, &action.restorer.to_le_bytes()),
        (context_at, &context),
        (info_at, &siginfo),
    ];
    if parts.into_iter().any(|(at, bytes)| process.copy_to_user(at, bytes).is_err()) {
        return false;
    }
    if action.flags & SA_RESETHAND != 0 {
        process.actions.lock().0[place] = Action::default();
    }
    signals.0 |= action.mask | if action.flags & SA_NODEFER == 0 { 1 << place } else { 0 };
    (frame.rdi, frame.rsi, frame.rdx, frame.rax) = (u64::from(info.signal), info_at, context_at, 0);
    (frame.rip, frame.rsp) = (action.handler, at);
    frame.flags &= !(1 << 8 | 1 << 10);
    frame.restore_all();
    true
}

/// Whether the CPU may be sent there: an address that is none makes the way to ring 3 fault, in ring 0.
pub fn is_users(address: u64) -> bool {
    address < Sysctl::default().task_size
}

/// rt_sigreturn: the thread is again what it was before the handler ran. `false` if its frame cannot be read.
pub fn leave_handler(frame: &mut Frame, process: &Process) -> bool {
    // The handler's `ret` has taken the return address off.
    let mut context = [0; CONTEXT_WORDS * 8];
    if process.copy_from_user(frame.rsp, &mut context).is_err() {
        return false;
    }
    let words: [u64; CONTEXT_WORDS] = words_of(&context);
    let mut sse = Sse([0; 512]);
    if process.copy_from_user(words[FLOATING_POINT], &mut sse.0).is_err() {
        return false;
    }
    // Bits of MXCSR that do not exist would fault in the kernel.
    sse.0[26..28].fill(0);
    let r = |index: usize| words[REGISTERS + index];
    if !is_users(r(16)) {
        return false;
    }
    (frame.r8, frame.r9, frame.r10, frame.r11) = (r(0), r(1), r(2), r(3));
    (frame.r12, frame.r13, frame.r14, frame.r15) = (r(4), r(5), r(6), r(7));
    (frame.rdi, frame.rsi, frame.rbp, frame.rbx) = (r(8), r(9), r(10), r(11));
    (frame.rdx, frame.rax, frame.rcx, frame.rsp) = (r(12), r(13), r(14), r(15));
    frame.rip = r(16);
    // Carry, parity, adjust, zero, sign, direction, overflow are the user's; interrupts stay let in.
    const USERS_FLAGS: u64 = 0xcd5;
    frame.flags = frame.flags & !USERS_FLAGS | r(17) & USERS_FLAGS;
    frame.sse = sse;
    sched::current().signals.lock().0 = words[SIGNAL_MASK];
    frame.restore_all();
    true
}

/// The registers in the order of `struct sigcontext_64`.
fn registers(frame: &Frame) -> [u64; 18] {
    let f = frame;
    [
        f.r8, f.r9, f.r10, f.r11, f.r12, f.r13, f.r14, f.r15, f.rdi, f.rsi, f.rbp, f.rbx, f.rdx, f.rax,
        f.rcx, f.rsp, f.rip, f.flags,
    ]
}

/// The bytes of words, the lowest first.
fn bytes_of<const WORDS: usize, const BYTES: usize>(words: &[u64; WORDS]) -> [u8; BYTES] {
    core::array::from_fn(|at| words[at / 8].to_le_bytes()[at % 8])
}

/// And back.
fn words_of<const WORDS: usize, const BYTES: usize>(bytes: &[u8; BYTES]) -> [u64; WORDS] {
    core::array::from_fn(|at| {
        bytes[at * 8..at * 8 + 8].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
    })
}
