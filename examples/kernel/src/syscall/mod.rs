//! System calls, with Linux's numbers, arguments and errors.
//!
//! | file | calls |
//! |---|---|
//! | `memory` | mmap, munmap, mprotect, mremap, msync, madvise, brk, mlock, munlock, mincore: arguments decoded, one call of kernmm each |
//! | `files` | open, read, write, lseek, fstat, close, unlink, ftruncate |
//! | `process` | fork, clone, execve, exit, exit_group, wait4, getpid, sched_yield, rt_sigaction, rt_sigreturn, clock_gettime |
//! | `futex` | futex |

mod files;
pub mod futex;
mod memory;
mod process;

use alloc::sync::Arc;
use alloc::vec::Vec;

use kernmm::error::Errno;

use crate::interrupts::Frame;
use crate::process::Process;
use crate::sched;
use crate::thread::Thread;

/// What a call answers: a number, or Linux's number of the error.
pub type Answer = Result<u64, i32>;

/// Who calls, and with what.
pub struct Call<'f> {
    pub thread: Arc<Thread>,
    pub process: Arc<Process>,
    pub frame: &'f mut Frame,
    /// The arguments.
    pub args: [u64; 6],
}

/// A call of the thread whose registers these are.
pub fn call(frame: &mut Frame) {
    let args = [frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9];
    let thread = sched::current();
    let process = thread.process().expect("a thread of ring 3 has a process");
    let number = frame.rax;
    let mut call = Call { thread, process, frame, args };
    let answer = match number {
        0 => files::read(&call),
        1 => files::write(&call),
        2 => files::open(&call),
        3 => files::close(&call),
        5 => files::fstat(&call),
        8 => files::lseek(&call),
        9 => memory::mmap(&call),
        10 => memory::mprotect(&call),
        11 => memory::munmap(&call),
        12 => memory::brk(&call),
        13 => process::rt_sigaction(&call),
        15 => return process::rt_sigreturn(&mut call),
        24 => process::sched_yield(),
        25 => memory::mremap(&call),
        26 => memory::msync(&call),
        27 => memory::mincore(&call),
        28 => memory::madvise(&call),
        39 => Ok(u64::from(call.process.id)),
        56 => process::clone(&call),
        57 => process::fork(&call),
        59 => match process::execve(&mut call) {
            // The registers are the new program's.
            Ok(()) => return,
            Err(errno) => Err(errno),
        },
        60 => process::exit(&call),
        61 => process::wait4(&call),
        77 => files::ftruncate(&call),
        87 => files::unlink(&call),
        149 => memory::mlock(&call),
        150 => memory::munlock(&call),
        186 => Ok(u64::from(call.thread.id)),
        202 => futex::futex(&call),
        228 => process::clock_gettime(&call),
        231 => process::exit_group(&call),
        _ => Err(Errno::ENOSYS.get()),
    };
    call.frame.rax = match answer {
        Ok(value) => value,
        Err(errno) => i64::from(-errno) as u64,
    };
}

impl Call<'_> {
    /// Copies bytes out of the caller's memory.
    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), i32> {
        self.process.copy_from_user(at, out).map_err(|errno| errno.get())
    }

    /// Copies bytes into the caller's memory.
    fn write(&self, at: u64, bytes: &[u8]) -> Result<u64, i32> {
        self.process.copy_to_user(at, bytes).map(|()| 0).map_err(|errno| errno.get())
    }

    fn read_u32(&self, at: u64) -> Result<u32, i32> {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes).map(|()| u32::from_le_bytes(bytes))
    }

    fn read_u64(&self, at: u64) -> Result<u64, i32> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes).map(|()| u64::from_le_bytes(bytes))
    }

    /// A text that ends with a zero byte, of at most so many bytes.
    fn text(&self, at: u64, most: usize) -> Result<Vec<u8>, i32> {
        let mut text = Vec::new();
        while text.len() < most {
            let mut byte = [0];
            self.read(at.wrapping_add(text.len() as u64), &mut byte)?;
            if byte == [0] {
                return Ok(text);
            }
            // Of what the kernel keeps for itself: a program must not be able to take it all.
            text.try_reserve(1).map_err(|_| Errno::ENOMEM.get())?;
            text.push(byte[0]);
        }
        Err(ENAMETOOLONG)
    }
}

/// A name is too long: a number that kernmm has no use for.
const ENAMETOOLONG: i32 = 36;
