//! A forked child that performs the system calls it is sent.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use super::arena::Callee;
use super::host::{last_error, pipe};

/// A system call: number and arguments.
pub(crate) type Call = [u64; 7];

const CALL_BYTES: usize = size_of::<Call>();

/// Instead of a number: fork, and let the new process answer until it ends.
const FORK: libc::c_long = -1;
/// Instead of a number: fork, and run the program in a file.
const EXEC: libc::c_long = -2;
/// Instead of a number: map single pages, with one between them, so many times.
const DOT: libc::c_long = -3;

/// The child, as its parent sees it. It is killed when this is dropped.
pub(crate) struct Server {
    /// The child, its child, and so on: the last one answers, the others wait for its end.
    pids: Vec<libc::pid_t>,
    calls: std::fs::File,
    answers: std::fs::File,
}

impl Server {
    /// Forks a child.
    pub(crate) fn new() -> Result<Self, String> {
        let (call_read, call_write) = pipe()?;
        let (answer_read, answer_write) = pipe()?;
        // SAFETY: the child does nothing but read, write and the calls it is sent; it takes no lock and allocates nothing.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => Err(last_error()),
            0 => {
                // So that it sees when nobody calls any more.
                drop((call_write, answer_read));
                serve(call_read.as_raw_fd(), answer_write.as_raw_fd())
            }
            _ => Ok(Self { pids: vec![pid], calls: call_write.into(), answers: answer_read.into() }),
        }
    }

    /// Makes a child of the child, which answers from now on. Its result, or the negative error number.
    pub(crate) fn fork(&mut self) -> Result<i64, String> {
        let answer = self.call(FORK, &[])?;
        if answer > 0 {
            self.pids.push(answer as libc::pid_t);
        }
        Ok(answer)
    }

    /// Ends the one that answers; its parent answers from now on, with the status that it got.
    pub(crate) fn exit(&mut self, code: u64) -> Result<i64, String> {
        let status = self.call(libc::SYS_exit_group, &[code])?;
        self.pids.pop();
        Ok(status)
    }

    /// Runs the program in the file in a process of its own, which has begun it: its number.
    pub(crate) fn spawn(&mut self, file: RawFd) -> Result<i64, String> {
        self.call(EXEC, &[file as u64])
    }

    /// Ends a process that was spawned.
    pub(crate) fn end(&mut self, pid: i64) -> Result<(), String> {
        self.call(libc::SYS_kill, &[pid as u64, libc::SIGKILL as u64])?;
        match self.call(libc::SYS_wait4, &[pid as u64, 0, 0, 0])? {
            ended if ended == pid => Ok(()),
            other => Err(format!("waiting for {pid}: {other}")),
        }
    }

    /// Maps `count` single pages from `addr` on, readable, with a page between them.
    pub(crate) fn dot(&mut self, addr: u64, count: u64) -> Result<i64, String> {
        self.call(DOT, &[addr, count])
    }
}

impl Callee for Server {
    fn pid(&self) -> i32 {
        self.pids.last().copied().unwrap_or(0)
    }

    fn call(&mut self, number: libc::c_long, args: &[u64]) -> Result<i64, String> {
        let mut call: Call = [0; 7];
        call[0] = number as u64;
        call[1..=args.len()].copy_from_slice(args);
        let bytes: Vec<u8> = call.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.calls.write_all(&bytes).map_err(|error| format!("the child is gone: {error}"))?;
        let mut answer = [0; 8];
        self.answers.read_exact(&mut answer).map_err(|error| format!("the child died of it: {error}"))?;
        Ok(i64::from_ne_bytes(answer))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for &pid in self.pids.iter().rev() {
            // SAFETY: the processes wait for each other, so that the numbers are nobody else's.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        if let Some(&child) = self.pids.first() {
            // SAFETY: no status is asked for.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        }
    }
}

/// The child's life.
fn serve(calls: RawFd, answers: RawFd) -> ! {
    loop {
        let mut call: Call = [0; 7];
        // SAFETY: `call` has room for as many bytes.
        let got = unsafe { libc::read(calls, call.as_mut_ptr().cast(), CALL_BYTES) };
        if got != CALL_BYTES as isize {
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) };
        }
        let [number, args @ ..] = call;
        let answer = match number as libc::c_long {
            FORK => fork(),
            EXEC => exec(args[0]),
            DOT => dot(args[0], args[1]),
            number => syscall(number, args),
        };
        // SAFETY: `answer` has as many bytes.
        unsafe { libc::write(answers, (&raw const answer).cast(), size_of::<i64>()) };
    }
}

fn syscall(number: libc::c_long, [a, b, c, d, e, f]: [u64; 6]) -> i64 {
    // SAFETY: the calls keep to the arena, which holds nothing that this program uses.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    if result == -1 { -i64::from(errno) } else { result }
}

/// The child answers with its number and goes on; the parent waits for its end and answers with its status.
fn fork() -> i64 {
    let pid = syscall(libc::SYS_fork, [0; 6]);
    if pid == 0 {
        return syscall(libc::SYS_getpid, [0; 6]);
    }
    let mut status = 0_i32;
    let waited = syscall(libc::SYS_wait4, [pid as u64, (&raw mut status) as u64, 0, 0, 0, 0]);
    if pid < 0 || waited != pid { pid } else { i64::from(status) }
}

/// Returns when the program has begun, or could not.
fn exec(file: u64) -> i64 {
    let flags = (libc::CLONE_VFORK | libc::SIGCHLD) as u64;
    let pid = syscall(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]);
    if pid == 0 {
        let argv = [c"program".as_ptr(), std::ptr::null()];
        let (none, envp) = (c"".as_ptr() as u64, [std::ptr::null::<u8>()]);
        syscall(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0, 0]);
        let empty_path = libc::AT_EMPTY_PATH as u64;
        let args = [file, none, argv.as_ptr() as u64, envp.as_ptr() as u64, empty_path, 0];
        let failed = syscall(libc::SYS_execveat, args);
        // SAFETY: ends the process.
        unsafe { libc::_exit(-failed as i32) };
    }
    pid
}

fn dot(addr: u64, count: u64) -> i64 {
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64;
    let mut mapped = 0;
    for n in 0..count {
        let at = addr + n * 2 * 4096;
        let answer = syscall(libc::SYS_mmap, [at, 4096, libc::PROT_READ as u64, flags, u64::MAX, 0]);
        mapped += i64::from(answer == at as i64);
    }
    mapped
}
