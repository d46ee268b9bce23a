//! Children that perform the calls and accesses that they are sent, and report the signals that come of it.

use std::arch::asm;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use super::op::{ACCESS, PROCESSES};
use crate::live::arena::Callee;
use crate::live::host::{last_error, pipe};

/// What a child is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
enum Kind {
    Call,
    Load,
    Store,
    Exchange,
    Fetch,
    Fork,
    Exit,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Request {
    /// A [`Kind`].
    kind: u64,
    /// Of a call its number and arguments; else an address, a length, two values.
    words: [u64; 7],
    bytes: [u8; ACCESS],
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Reply {
    /// The call's result, or the negative error number; else how many bytes were touched.
    pub(crate) result: i64,
    /// The signal; 0 if none came.
    pub(crate) signal: u32,
    pub(crate) code: u32,
    pub(crate) addr: u64,
    pub(crate) bytes: [u8; ACCESS],
}

/// The pipes to one process.
struct Line {
    requests: (OwnedFd, OwnedFd),
    replies: (OwnedFd, OwnedFd),
}

/// The children: all of them ours, also those that were forked by one another.
pub(crate) struct Children {
    pids: [Option<i32>; PROCESSES],
    lines: Vec<Line>,
}

/// The first of them.
pub(crate) struct First<'a>(pub(crate) &'a mut Children);

impl Children {
    /// Forks the first.
    pub(crate) fn new() -> Result<Self, String> {
        let line = |_| Ok(Line { requests: pipe()?, replies: pipe()? });
        let lines: Vec<Line> = (0..PROCESSES).map(line).collect::<Result<_, String>>()?;
        let ends: Ends = std::array::from_fn(|place| {
            (lines[place].requests.0.as_raw_fd(), lines[place].replies.1.as_raw_fd())
        });
        // SAFETY: the child does nothing but what it is sent; it takes no lock and allocates nothing.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => Err(last_error()),
            0 => serve(0, &ends),
            _ => {
                let mut pids = [None; PROCESSES];
                pids[0] = Some(pid);
                Ok(Self { pids, lines })
            }
        }
    }

    /// The process in a place.
    pub(crate) fn pid(&self, place: usize) -> Option<i32> {
        self.pids[place]
    }

    fn ask(&mut self, place: usize, request: &Request) -> Result<Reply, String> {
        let line = &self.lines[place];
        write_all(line.requests.1.as_raw_fd(), request)?;
        read_all(line.replies.0.as_raw_fd(), self.pids[place].unwrap_or(0))
    }

    /// Performs a system call.
    pub(crate) fn call(&mut self, place: usize, number: libc::c_long, args: &[u64]) -> Result<i64, String> {
        let mut words = [0; 7];
        words[0] = number as u64;
        words[1..=args.len()].copy_from_slice(args);
        Ok(self.ask(place, &Request { kind: Kind::Call as u64, words, bytes: [0; ACCESS] })?.result)
    }

    /// Loads bytes, one after the other.
    pub(crate) fn load(&mut self, place: usize, addr: u64, len: usize) -> Result<Reply, String> {
        self.touch(place, Kind::Load, [addr, len as u64, 0, 0, 0, 0, 0], &[])
    }

    /// Stores bytes, one after the other.
    pub(crate) fn store(&mut self, place: usize, addr: u64, bytes: &[u8]) -> Result<Reply, String> {
        self.touch(place, Kind::Store, [addr, bytes.len() as u64, 0, 0, 0, 0, 0], bytes)
    }

    /// Compares and exchanges a word; the old one is in the reply's bytes.
    pub(crate) fn exchange(
        &mut self,
        place: usize,
        addr: u64,
        current: u32,
        new: u32,
    ) -> Result<Reply, String> {
        self.touch(place, Kind::Exchange, [addr, 4, current.into(), new.into(), 0, 0, 0], &[])
    }

    /// Executes one instruction; SIGTRAP says that this was done.
    pub(crate) fn fetch(&mut self, place: usize, addr: u64) -> Result<Reply, String> {
        self.touch(place, Kind::Fetch, [addr, 1, 0, 0, 0, 0, 0], &[])
    }

    fn touch(&mut self, place: usize, kind: Kind, words: [u64; 7], from: &[u8]) -> Result<Reply, String> {
        let mut bytes = [0; ACCESS];
        bytes[..from.len()].copy_from_slice(from);
        self.ask(place, &Request { kind: kind as u64, words, bytes })
    }

    /// Forks the process in `parent` to the place `child`: 0, or the negative error number.
    pub(crate) fn fork(&mut self, parent: usize, child: usize) -> Result<i64, String> {
        let words = [child as u64, 0, 0, 0, 0, 0, 0];
        let reply = self.ask(parent, &Request { kind: Kind::Fork as u64, words, bytes: [0; ACCESS] })?;
        if reply.result < 0 {
            return Ok(reply.result);
        }
        self.pids[child] = Some(reply.result as i32);
        Ok(0)
    }

    /// Lets a process come to its end, and waits for that.
    pub(crate) fn exit(&mut self, place: usize) -> Result<(), String> {
        let request = Request { kind: Kind::Exit as u64, words: [0; 7], bytes: [0; ACCESS] };
        write_all(self.lines[place].requests.1.as_raw_fd(), &request)?;
        let Some(pid) = self.pids[place].take() else { return Ok(()) };
        // SAFETY: no status is asked for.
        match unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } {
            -1 => Err(last_error()),
            _ => Ok(()),
        }
    }
}

impl Callee for First<'_> {
    fn call(&mut self, number: libc::c_long, args: &[u64]) -> Result<i64, String> {
        self.0.call(0, number, args)
    }

    fn pid(&self) -> i32 {
        self.0.pids[0].unwrap_or(0)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for pid in self.pids.into_iter().flatten() {
            // SAFETY: `pid` is our child, not yet waited for, so that the number is nobody else's.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            // SAFETY: no status is asked for.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
    }
}

fn write_all<T>(fd: RawFd, value: &T) -> Result<(), String> {
    // SAFETY: reads as many bytes as the value has; of a pipe, whose writes of so few bytes are whole.
    let written = unsafe { libc::write(fd, std::ptr::from_ref(value).cast(), size_of::<T>()) };
    if written == size_of::<T>() as isize { Ok(()) } else { Err(last_error()) }
}

/// A reply, unless the process dies before it gives one.
fn read_all(fd: RawFd, pid: i32) -> Result<Reply, String> {
    let mut reply = Reply::default();
    loop {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor is asked about.
        if unsafe { libc::poll(&raw mut poll, 1, 1000) } > 0 {
            let at = (&raw mut reply).cast();
            // SAFETY: `reply` has room for as many bytes, any of which make a reply.
            let got = unsafe { libc::read(fd, at, size_of::<Reply>()) };
            return if got == size_of::<Reply>() as isize { Ok(reply) } else { Err(last_error()) };
        }
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: `info` has room for the answer.
        unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, info.as_mut_ptr(), options) };
        // SAFETY: it was filled with zeros, or by the call.
        let info = unsafe { info.assume_init() };
        // SAFETY: the call fills this field, with 0 where nobody has died.
        if unsafe { info.si_pid() } == pid {
            // SAFETY: of a child the call fills this field too.
            let status = unsafe { info.si_status() };
            return Err(format!("the child died of it, with {status}"));
        }
    }
}

/// The ends of the pipes that a process uses, place by place: to read requests from, to write replies to.
type Ends = [(RawFd, RawFd); PROCESSES];

/// Where the program goes on after a signal.
static RESUME: AtomicU64 = AtomicU64::new(0);
/// The address of the instruction that is to be executed.
static TARGET: AtomicU64 = AtomicU64::new(0);
/// How often the processor has stopped there.
static STOPS: AtomicU32 = AtomicU32::new(0);
static SIGNAL: AtomicU32 = AtomicU32::new(0);
static CODE: AtomicU32 = AtomicU32::new(0);
static ADDR: AtomicU64 = AtomicU64::new(0);
/// For the handler, since the stack pointer may be anything then.
static mut HANDLER_STACK: [u8; 1 << 16] = [0; 1 << 16];
/// What two zero bytes add to.
static mut SCRATCH: u64 = 0;

/// A process's life.
fn serve(mut place: usize, ends: &Ends) -> ! {
    prepare_signals();
    die_with_parent();
    loop {
        let mut request = Request { kind: 0, words: [0; 7], bytes: [0; ACCESS] };
        let at = (&raw mut request).cast();
        // SAFETY: `request` has room for as many bytes, any of which make a request.
        let got = unsafe { libc::read(ends[place].0, at, size_of::<Request>()) };
        if got != size_of::<Request>() as isize {
            quit(1);
        }
        let reply = match request.kind {
            kind if kind == Kind::Call as u64 => perform(&request),
            kind if kind == Kind::Exit as u64 => quit(0),
            kind if kind == Kind::Fork as u64 => match fork() {
                0 => {
                    place = request.words[0] as usize;
                    die_with_parent();
                    continue;
                }
                pid => Reply { result: pid, ..Reply::default() },
            },
            _ => touch(&request),
        };
        if write_all(ends[place].1, &reply).is_err() {
            quit(2);
        }
    }
}

fn quit(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

fn die_with_parent() {
    // SAFETY: sets a number of the process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Forks a child that is the test's, so that it may outlive its parent: its number, 0 in the child, or the negative error number.
fn fork() -> i64 {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without a stack of its own and with a copy of all memory the child goes on here.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if result < 0 { -i64::from(errno()) } else { result }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn perform(request: &Request) -> Reply {
    let [number, a, b, c, d, e, f] = request.words;
    // SAFETY: the calls keep to the arena, which holds nothing that this program uses.
    let result = unsafe { libc::syscall(number as libc::c_long, a, b, c, d, e, f) };
    let result = if result == -1 { -i64::from(errno()) } else { result };
    Reply { result, ..Reply::default() }
}

fn prepare_signals() {
    let stack = libc::stack_t {
        ss_sp: (&raw mut HANDLER_STACK).cast(),
        ss_flags: 0,
        ss_size: size_of::<[u8; 1 << 16]>(),
    };
    // SAFETY: the stack is nobody else's.
    unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
    // SAFETY: all zeros is an action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as extern "C" fn(_, _, _) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP] {
        // SAFETY: the handler uses nothing but atomics and its own stack.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// Trap after each instruction.
const TRAP_FLAG: i64 = 0x100;

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a context, which is the handler's to change.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let at = &mut registers[libc::REG_RIP as usize];
    // The first stop is before the instruction, after the jump to it.
    if signal == libc::SIGTRAP && *at as u64 == TARGET.load(SeqCst) && STOPS.fetch_add(1, SeqCst) == 0 {
        return;
    }
    let resume = RESUME.swap(0, SeqCst);
    if resume == 0 {
        quit(100 + signal);
    }
    *at = resume as i64;
    registers[libc::REG_EFL as usize] &= !TRAP_FLAG;
    SIGNAL.store(signal as u32, SeqCst);
    // SAFETY: the kernel passes what the signal is about.
    let info = unsafe { &*info };
    CODE.store(info.si_code as u32, SeqCst);
    // SAFETY: those who come with an address have this field, and of others it is not looked at.
    let addr = unsafe { info.si_addr() };
    ADDR.store(addr as u64, SeqCst);
}

fn touch(request: &Request) -> Reply {
    SIGNAL.store(0, SeqCst);
    let [addr, len, current, new, ..] = request.words;
    let mut bytes = request.bytes;
    let buffer = bytes.as_mut_ptr() as u64;
    let left = match request.kind {
        kind if kind == Kind::Load as u64 => copy(addr, buffer, len),
        kind if kind == Kind::Store as u64 => copy(buffer, addr, len),
        kind if kind == Kind::Exchange as u64 => {
            let (old, left) = exchange(addr, current as u32, new as u32);
            bytes[..4].copy_from_slice(&old.to_le_bytes());
            left
        }
        _ => {
            step(addr);
            0
        }
    };
    RESUME.store(0, SeqCst);
    Reply {
        result: (len - left) as i64,
        signal: SIGNAL.load(SeqCst),
        code: CODE.load(SeqCst),
        addr: ADDR.load(SeqCst),
        bytes,
    }
}

/// Copies bytes one by one; answers how many are left when a signal ends it.
fn copy(from: u64, to: u64, len: u64) -> u64 {
    let left;
    // SAFETY: one of the two is a buffer of ours; what the other is nobody else relies on. After a signal it goes on at the end.
    unsafe {
        asm!(
            "lea {tmp}, [rip + 3f]",
            "mov [{resume}], {tmp}",
            "2:",
            "test {left}, {left}",
            "jz 3f",
            "mov {tmp:l}, byte ptr [{from}]",
            "mov byte ptr [{to}], {tmp:l}",
            "inc {from}",
            "inc {to}",
            "dec {left}",
            "jmp 2b",
            "3:",
            tmp = out(reg_abcd) _,
            resume = in(reg) RESUME.as_ptr(),
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            left = inout(reg) len => left,
        );
    }
    left
}

/// Compares and exchanges: what stood there, and how many of the four bytes were not reached.
fn exchange(addr: u64, current: u32, new: u32) -> (u32, u64) {
    let (old, left);
    // SAFETY: nobody relies on what lies at the address. After a signal it goes on at the end.
    unsafe {
        asm!(
            "lea {tmp}, [rip + 3f]",
            "mov [{resume}], {tmp}",
            "lock cmpxchg dword ptr [{addr}], {new:e}",
            "xor {left:e}, {left:e}",
            "3:",
            tmp = out(reg) _,
            resume = in(reg) RESUME.as_ptr(),
            addr = in(reg) addr,
            new = in(reg) new,
            left = inout(reg) 4_u64 => left,
            inout("eax") current => old,
        );
    }
    (old, left)
}

/// Executes one instruction: one that changes nothing but flags, `rax`, `rcx`, `rdx`, `rsi`, `rdi` and the stack pointer, or two zero
/// bytes, which add to what `rax` points to.
fn step(addr: u64) {
    STOPS.store(0, Relaxed);
    TARGET.store(addr, SeqCst);
    let scratch = &raw mut SCRATCH;
    // SAFETY: after the instruction, or a signal in its place, it goes on at the end, with its stack as it was.
    unsafe {
        asm!(
            "lea r9, [rip + 3f]",
            "mov [r8], r9",
            "mov r10, rsp",
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "jmp r11",
            "3:",
            "mov rsp, r10",
            "cld",
            in("r8") RESUME.as_ptr(),
            in("r11") addr,
            inout("rax") scratch => _,
            out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r9") _, out("r10") _,
        );
    }
}
