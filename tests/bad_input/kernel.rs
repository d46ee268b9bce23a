//! The running kernel's side: a process that has nothing mapped but what the test says and the one instruction that calls, and that performs
//! calls under our eyes, as a debugger has it do. So it survives whatever it unmaps.

use std::io::Write;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::FileExt;

use super::elf;
use super::host::{self, last_error, memfd, parse_range, read};
use super::ours::{Answer, CODE, HEAP, Line, MAPPED, NOT_ASKED, OK, Outcome, UNCHANGED, first_layout};
use super::shown::told;
use super::space::PAGE;
use super::tries::{Args, READ_ONLY, READ_WRITE, TASK, Try, Verb, WRITE_ONLY};

/// What is mapped at first: page, number of pages, protection, flags.
const FURNITURE: [(u64, u64, u64, u64); 4] = [
    (MAPPED, 4, 3, 0x32),
    (MAPPED + 4 * PAGE, 1, 1, 0x32),
    (MAPPED + 8 * PAGE, 2, 1, 0x31),
    (HEAP + 16 * PAGE, 1, 0, 0x32),
];

/// A process that stands still until it is told to call.
struct Process {
    pid: libc::pid_t,
    /// Where its instruction is.
    syscall_at: u64,
}

/// What Linux answers, call by call; where the layout changes it is what `ours` says.
///
/// # Errors
/// Why no process can be had that could be asked.
///
/// # Panics
/// If a layout differs, or a process does what it was not told.
pub(crate) fn answers(tried: &Try, ours: &[Outcome]) -> Result<Vec<Answer>, String> {
    if tried.verb == Verb::Sbrk {
        return tried.calls().map(|args| sbrk_answer(args[0] as i64)).collect();
    }
    stay_on_this_cpu();
    let first = Process::new(tried.memlock)?;
    Ok(ask(&first, tried, ours).unwrap_or_else(|what| panic!("{}: {what}", tried.title())))
}

fn ask(first: &Process, tried: &Try, ours: &[Outcome]) -> Result<Vec<Answer>, String> {
    assert_eq!(first.layout()?, first_layout(), "what there is at first");
    let mut current = first.fork()?;
    let mut answers = Vec::with_capacity(ours.len());
    for (args, outcome) in tried.calls().zip(ours) {
        if !tried.is_asked(&args) {
            answers.push(NOT_ASKED);
            continue;
        }
        let answer = answer_of(
            tried.verb,
            &args,
            current.call(number(tried.verb), as_linux_has_them(tried.verb, args))?,
        );
        answers.push(answer);
        if let Some(layout) = outcome.layout.as_ref().filter(|_| answer == outcome.answer) {
            assert_eq!(
                &current.layout()?,
                layout,
                "what {:?} {args:x?} leaves behind (ours is on the right)",
                tried.verb
            );
        }
        if answer == OK || outcome.layout.is_some() || may_leave_something(tried.verb, &args, answer) {
            current = first.fork()?;
        }
    }
    Ok(answers)
}

/// Keeps this thread, and the processes that it begins, on one CPU: they take turns, and waking another CPU each time would take longer.
fn stay_on_this_cpu() {
    let mut set = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: asks for a number.
    let cpu = unsafe { libc::sched_getcpu() };
    // SAFETY: all zeros is the set of no CPU.
    let set = unsafe { set.assume_init_mut() };
    // SAFETY: the set has room for every CPU that there is.
    unsafe { libc::CPU_SET(cpu.max(0) as usize, set) };
    // SAFETY: of this thread; if it cannot be, it only takes longer.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) };
}

/// Whether a refused call may have done a part of what it was to do.
const fn may_leave_something(verb: Verb, args: &Args, answer: Answer) -> bool {
    match verb {
        // Moving onto what is mapped unmaps that first.
        Verb::Mremap => answer != libc::EINVAL && (answer != libc::EFAULT || args[4] == MAPPED),
        // VMAs are cut before it is seen that there is not so much memory.
        Verb::Mmap | Verb::Mmap2 => answer == libc::ENOMEM && args[3] & libc::MAP_FIXED as u64 != 0,
        Verb::Mprotect | Verb::Madvise | Verb::Mlock | Verb::Mlock2 | Verb::Munlock => answer != libc::EINVAL,
        _ => false,
    }
}

const fn number(verb: Verb) -> libc::c_long {
    match verb {
        Verb::Mmap | Verb::Mmap2 => libc::SYS_mmap,
        Verb::Munmap => libc::SYS_munmap,
        Verb::Mprotect => libc::SYS_mprotect,
        Verb::Mremap => libc::SYS_mremap,
        Verb::Brk | Verb::Sbrk => libc::SYS_brk,
        Verb::Madvise => libc::SYS_madvise,
        Verb::Mlock => libc::SYS_mlock,
        Verb::Mlock2 => libc::SYS_mlock2,
        Verb::Munlock => libc::SYS_munlock,
        Verb::Mlockall => libc::SYS_mlockall,
        Verb::Munlockall => libc::SYS_munlockall,
        Verb::Msync => libc::SYS_msync,
        Verb::Mincore => libc::SYS_mincore,
    }
}

fn as_linux_has_them(verb: Verb, args: Args) -> Args {
    let [a, b, c, d, e, pages] = args;
    if verb == Verb::Mmap2 { [a, b, c, d, e, pages << 12] } else { args }
}

fn answer_of(verb: Verb, args: &Args, result: i64) -> Answer {
    match (verb, result) {
        (Verb::Brk, end) => {
            if end as u64 == args[0] {
                OK
            } else {
                UNCHANGED
            }
        }
        (_, -4095..=-1) => -result as Answer,
        _ => OK,
    }
}

impl Process {
    /// Begins a process of its own program, takes from it what it has besides, and maps [`FURNITURE`].
    fn new(memlock: u64) -> Result<Self, String> {
        // `syscall`, and nothing behind it.
        let program = elf::Program { base: CODE, text: vec![0x0f, 0x05], data: vec![1; 8], bss: 0 };
        let mut file = std::fs::File::from(memfd()?);
        file.write_all(&program.file(62)).map_err(|error| error.to_string())?;
        let files = [(READ_ONLY, libc::O_RDONLY), (WRITE_ONLY, libc::O_WRONLY), (READ_WRITE, libc::O_RDWR)];
        let memory = memfd()?;
        let path = std::ffi::CString::new(format!("/proc/self/fd/{}", memory.as_raw_fd()));
        let path = path.map_err(|error| error.to_string())?;
        // SAFETY: the child does nothing but system calls, until it becomes another program.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            become_program(file.into_raw_fd(), &path, &files);
        }
        if pid < 0 {
            return Err(last_error());
        }
        let process = Self { pid, syscall_at: program.entry() };
        let status = process.wait()?;
        if !libc::WIFSTOPPED(status) || libc::WSTOPSIG(status) != libc::SIGTRAP {
            return Err(format!("no process can be traced here: status {status:x}"));
        }
        let options = libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_EXITKILL;
        process.trace(libc::PTRACE_SETOPTIONS, 0, options as u64)?;
        process.prepare(memlock)?;
        Ok(process)
    }

    fn prepare(&self, memlock: u64) -> Result<(), String> {
        // No limit is to have the right to exceed it.
        let unlimited = memlock == u64::MAX;
        let limit = libc::rlimit { rlim_cur: memlock, rlim_max: memlock };
        // SAFETY: `limit` holds the limits.
        let limited = || unsafe {
            libc::prlimit(self.pid, libc::RLIMIT_MEMLOCK, &raw const limit, std::ptr::null_mut()) == 0
        };
        if !unlimited && !limited() {
            return Err(format!("a limit of {memlock:x}: {}", last_error()));
        }
        self.expect_zero(libc::SYS_close_range, [0, READ_ONLY - 1, 0, 0, 0, 0])?;
        self.expect_zero(libc::SYS_close_range, [READ_WRITE + 1, u64::from(u32::MAX), 0, 0, 0, 0])?;
        // The layout of `struct prctl_mm_map`: code, data, heap, stack, arguments, environment, no vector, no file.
        let map = [
            CODE,
            CODE + 1,
            CODE,
            CODE + 1,
            HEAP,
            HEAP,
            CODE,
            CODE,
            CODE + 1,
            CODE,
            CODE + 1,
            0,
            0xffff_ffff << 32,
        ];
        let at = self.lend(&map)?;
        let size = size_of_val(&map) as u64;
        self.expect_zero(
            libc::SYS_prctl,
            [libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64, at, size, 0, 0],
        )?;
        // Version 3, this process; of the effective, permitted and inheritable capabilities at most one.
        let ipc_lock = if unlimited { 1 << 14 } else { 0 };
        let at = self.lend(&[0x2008_0522, ipc_lock << 32 | ipc_lock, 0, 0])?;
        self.expect_zero(libc::SYS_capset, [at, at + 8, 0, 0, 0, 0])?;
        self.expect_zero(libc::SYS_munmap, [0, CODE, 0, 0, 0, 0])?;
        self.expect_zero(libc::SYS_munmap, [CODE + PAGE, TASK - CODE - PAGE, 0, 0, 0, 0])?;
        for (addr, pages, prot, flags) in FURNITURE {
            let at = self.call(libc::SYS_mmap, [addr, pages * PAGE, prot, flags, u64::MAX, 0])?;
            if at != addr as i64 {
                return Err(format!("nothing can be mapped at {addr:x}: {at}"));
            }
        }
        Ok(())
    }

    /// Puts words on its stack.
    fn lend(&self, words: &[u64]) -> Result<u64, String> {
        let at = (self.registers()?.rsp - 1024) & !7;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let memory = std::fs::File::options().write(true).open(format!("/proc/{}/mem", self.pid));
        memory.and_then(|memory| memory.write_all_at(&bytes, at)).map_err(|error| error.to_string())?;
        Ok(at)
    }

    fn expect_zero(&self, number: libc::c_long, args: Args) -> Result<(), String> {
        match self.call(number, args)? {
            0 => Ok(()),
            other => Err(format!("preparing the process: call {number} answered {other}")),
        }
    }

    /// A child with the same memory, of which we are the parent.
    fn fork(&self) -> Result<Self, String> {
        self.set_call(libc::SYS_clone, [(libc::CLONE_PARENT | libc::SIGCHLD) as u64, 0, 0, 0, 0, 0])?;
        self.step()?;
        let mut pid: libc::c_ulong = 0;
        self.trace(libc::PTRACE_GETEVENTMSG, 0, (&raw mut pid) as u64)?;
        self.step()?;
        let child = Self { pid: pid as libc::pid_t, ..*self };
        child.wait()?;
        Ok(child)
    }

    /// Has it perform a call: its result, or the negative error number.
    fn call(&self, number: libc::c_long, args: Args) -> Result<i64, String> {
        self.set_call(number, args)?;
        self.step()?;
        Ok(self.registers()?.rax as i64)
    }

    fn set_call(&self, number: libc::c_long, [a, b, c, d, e, f]: Args) -> Result<(), String> {
        let registers = libc::user_regs_struct {
            rip: self.syscall_at,
            rax: number as u64,
            orig_rax: u64::MAX,
            rdi: a,
            rsi: b,
            rdx: c,
            r10: d,
            r8: e,
            r9: f,
            ..self.registers()?
        };
        self.trace(libc::PTRACE_SETREGS, 0, (&raw const registers) as u64)
    }

    fn registers(&self) -> Result<libc::user_regs_struct, String> {
        let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
        self.trace(libc::PTRACE_GETREGS, 0, registers.as_mut_ptr() as u64)?;
        // SAFETY: numbers, all of which were written.
        Ok(unsafe { registers.assume_init() })
    }

    /// Executes one instruction.
    fn step(&self) -> Result<(), String> {
        self.trace(libc::PTRACE_SINGLESTEP, 0, 0)?;
        match self.wait()? {
            status if libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == libc::SIGTRAP => Ok(()),
            status => Err(format!("the process did not come back: status {status:x}")),
        }
    }

    fn trace(&self, request: libc::c_uint, addr: u64, data: u64) -> Result<(), String> {
        // SAFETY: what the request writes to is as large as it has to be.
        match unsafe { libc::ptrace(request, self.pid, addr, data) } {
            -1 => Err(format!("ptrace {request}: {}", last_error())),
            _ => Ok(()),
        }
    }

    fn wait(&self) -> Result<i32, String> {
        let mut status = 0;
        // SAFETY: `status` has room for the answer.
        let waited = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
        if waited == self.pid { Ok(status) } else { Err(last_error()) }
    }

    fn layout(&self) -> Result<Vec<Line>, String> {
        let text = read(&format!("/proc/{}/smaps", self.pid))?;
        let mut lines: Vec<Line> = vec![];
        for line in text.lines().take_while(|line| !line.ends_with("[vsyscall]")) {
            if let Some(flags) = line.strip_prefix("VmFlags: ") {
                lines.last_mut().ok_or("flags of nothing")?.4 = told(flags);
            } else if line.starts_with(|first: char| first.is_ascii_hexdigit() && !first.is_ascii_uppercase())
            {
                let words: Vec<&str> = line.split_whitespace().collect();
                let offset = u64::from_str_radix(words[2], 16).map_err(|error| error.to_string())?;
                let (start, end) = parse_range(line);
                lines.push((start, end, words[1].to_owned(), offset, String::new()));
            }
        }
        Ok(lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nobody has waited for its end, so that the number is nobody else's.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // SAFETY: no status is asked for.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WALL) };
    }
}

/// The child's way to its program: traced, with addresses that are not random, an ordinary stack and the files.
fn become_program(program: i32, path: &std::ffi::CStr, files: &[(u64, i32); 3]) -> ! {
    let stack = libc::rlimit { rlim_cur: 8 << 20, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: of this process alone.
    unsafe { libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) };
    // SAFETY: `stack` holds the limits.
    if unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const stack) } != 0 {
        let lower = libc::rlimit { rlim_max: 8 << 20, ..stack };
        // SAFETY: `lower` holds the limits.
        unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const lower) };
    }
    for &(number, mode) in files {
        // SAFETY: the path ends with a 0.
        let fd = unsafe { libc::open(path.as_ptr(), mode) };
        // SAFETY: descriptors are numbers.
        unsafe { libc::dup2(fd, number as i32) };
    }
    // SAFETY: it is a request of this process's own.
    unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
    let argv = [c"program".as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    // SAFETY: strings that end with 0, and lists of them.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    // SAFETY: ends the process.
    unsafe { libc::_exit(1) }
}

/// What the C library's sbrk answers in a process whose heap begins where ours does.
fn sbrk_answer(delta: i64) -> Result<Answer, String> {
    /// What the child ends with if its heap cannot be moved.
    const UNPREPARED: i32 = 255;
    // SAFETY: the child calls, and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let (low, near) = (HEAP - PAGE, HEAP - PAGE + 1);
        let map = [low, near, low, near, HEAP, HEAP, low, low, near, low, near, 0, 0xffff_ffff_u64 << 32];
        let size = size_of_val(&map);
        // SAFETY: what the call reads is as long as it is said to be; nothing is allocated from here on.
        let moved = unsafe { libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, map.as_ptr(), size, 0) } == 0;
        for (addr, pages, prot, flags) in FURNITURE {
            // SAFETY: nothing else lies there.
            unsafe { libc::syscall(libc::SYS_mmap, addr, pages * PAGE, prot, flags, u64::MAX, 0) };
        }
        // SAFETY: the heap is not used any more. The library remembers where it ends.
        let known = unsafe { libc::brk(HEAP as *mut libc::c_void) } == 0;
        // SAFETY: as before.
        let answer = unsafe { libc::sbrk(delta as isize) };
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let answer = if answer as isize == -1 { errno } else { OK };
        // SAFETY: ends the process.
        unsafe { libc::_exit(if moved && known { answer } else { UNPREPARED }) };
    }
    let mut status = 0;
    // SAFETY: `status` has room for the answer.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    if waited != pid || !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) == UNPREPARED {
        return Err(format!("sbrk by {delta:x}: status {status:x}"));
    }
    Ok(libc::WEXITSTATUS(status))
}

/// Why the running kernel cannot be asked.
pub(crate) fn comparable() -> Result<(), String> {
    host::comparable()?;
    match read("/proc/sys/vm/mmap_min_addr")?.trim() {
        "4096" => Ok(()),
        other => Err(format!("the lowest address that may be mapped is {other}, not 4096")),
    }
}
