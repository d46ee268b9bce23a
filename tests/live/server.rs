//! A forked child that performs the system calls it is sent.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use super::arena::Callee;
use super::host::{last_error, pipe};

/// A system call: number and arguments.
pub(crate) type Call = [u64; 7];

const CALL_BYTES: usize = size_of::<Call>();

/// The child, as its parent sees it. It is killed when this is dropped.
pub(crate) struct Server {
    pid: libc::pid_t,
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
            0 => serve(call_read.as_raw_fd(), answer_write.as_raw_fd()),
            _ => Ok(Self { pid, calls: call_write.into(), answers: answer_read.into() }),
        }
    }
}

impl Callee for Server {
    fn pid(&self) -> i32 {
        self.pid
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
        // SAFETY: `pid` is our child, not yet waited for, so that the number is nobody else's.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // SAFETY: no status is asked for.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
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
        let [number, a, b, c, d, e, f] = call;
        // SAFETY: the calls keep to the arena, which holds nothing that this program uses.
        let result = unsafe { libc::syscall(number as libc::c_long, a, b, c, d, e, f) };
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let answer: i64 = if result == -1 { -i64::from(errno) } else { result };
        // SAFETY: `answer` has as many bytes.
        unsafe { libc::write(answers, (&raw const answer).cast(), size_of::<i64>()) };
    }
}
