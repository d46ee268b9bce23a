//! Out of memory: the process that uses most ends, and the others go on.

use kernmm::cache::CacheError;
use kernmm::error::Errno;
use kernmm::memory::{Refused, TransferError};

use crate::process::{self, Process};
use crate::signal::SIGKILL;
use crate::{println, sched};

/// Ends the process with the most pages in memory, and lets it go: the caller tries again what it could not do.
///
/// # Linux
/// `out_of_memory` in `mm/oom_kill.c`, without adjustments.
pub fn end_a_process() {
    let all = process::all();
    // One that ends already brings memory back, if it gets the CPU.
    if all.iter().all(|process| !process.is_over()) {
        let pages = |process: &Process| process.space().with(|mm| mm.shared().resident());
        if let Some(victim) = all.iter().max_by_key(|process| pages(process)) {
            let name = victim.name.lock().clone();
            println!("Out of memory: Killed process {} ({name}) rss:{}kB", victim.id, pages(victim) * 4);
            victim.kill(SIGKILL);
        }
    }
    drop(all);
    sched::yield_now();
}

/// What the kernel does with a process's memory, or with the page cache, in a call: made again when memory ran out, like an access of
/// ring 3. No lock is held that a process could need to come to its end.
///
/// # Errors
/// Linux's number of what it answers; EINTR if the process itself is over.
pub fn retry<R, E: MayRunOut>(
    process: &Process,
    mut attempt: impl FnMut() -> Result<R, E>,
) -> Result<R, Errno> {
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if !error.is_out_of_memory() => return Err(error.errno()),
            Err(_) if process.is_over() => return Err(Errno::EINTR),
            Err(_) => end_a_process(),
        }
    }
}

/// Errors, one of which is that no memory is left.
pub trait MayRunOut {
    fn is_out_of_memory(&self) -> bool;
    /// Linux's number.
    fn errno(&self) -> Errno;
}

impl MayRunOut for Refused {
    fn is_out_of_memory(&self) -> bool {
        *self == Self::OutOfMemory
    }

    fn errno(&self) -> Errno {
        TransferError::User(*self).errno()
    }
}

impl MayRunOut for CacheError {
    fn is_out_of_memory(&self) -> bool {
        *self == Self::OutOfMemory
    }

    fn errno(&self) -> Errno {
        CacheError::errno(*self)
    }
}

impl MayRunOut for TransferError {
    fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::File(CacheError::OutOfMemory) | Self::User(Refused::OutOfMemory))
    }

    fn errno(&self) -> Errno {
        TransferError::errno(*self)
    }
}
