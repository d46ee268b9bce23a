//! Programs in processes of their own: what ends one of them ends nothing else, and what differs is made smaller.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::op::Step;
use super::pair::{Script, run};
use super::table::Table;
use crate::live::host::{last_error, memfd};

/// Runs random programs in a directory of its own.
pub(crate) struct Runner {
    directory: PathBuf,
}

/// How a program ended.
struct Ended {
    steps: Vec<Step>,
    lines: String,
    difference: Option<String>,
}

/// Steps in memory that is shared with the process that makes them, so that they outlive it.
struct Ledger {
    count: *mut AtomicUsize,
    steps: *mut Step,
    capacity: usize,
}

impl Ledger {
    /// Before the steps there is room for their number.
    const HEADER: usize = 64;

    fn new(capacity: usize) -> Result<Self, String> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let bytes = Self::bytes(capacity);
        // SAFETY: new memory, wherever there is room.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(last_error());
        }
        // SAFETY: there are more bytes than that.
        let steps = unsafe { at.byte_add(Self::HEADER) }.cast();
        Ok(Self { count: at.cast(), steps, capacity })
    }

    const fn bytes(capacity: usize) -> usize {
        Self::HEADER + capacity * size_of::<Step>()
    }

    fn count(&self) -> &AtomicUsize {
        // SAFETY: memory of zeros, aligned to a page, for nothing else.
        unsafe { &*self.count }
    }

    fn push(&self, step: Step) {
        let at = self.count().load(SeqCst);
        if at < self.capacity {
            // SAFETY: there is room for so many.
            let place = unsafe { self.steps.add(at) };
            // SAFETY: the place is in the memory, and aligned, as the header is.
            unsafe { place.write(step) };
            self.count().store(at + 1, SeqCst);
        }
    }

    fn steps(&self) -> Vec<Step> {
        // SAFETY: so many were written, by a process that runs the same program.
        unsafe { std::slice::from_raw_parts(self.steps, self.count().load(SeqCst)) }.to_vec()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { libc::munmap(self.count.cast(), Self::bytes(self.capacity)) };
    }
}

impl Runner {
    pub(crate) fn new() -> Result<Self, String> {
        let directory = std::env::temp_dir().join(format!("kernmm-live-{}", std::process::id()));
        std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
        Ok(Self { directory })
    }

    /// Runs the program of a seed. Where the two sides differ the answer tells how, with the fewest steps that were found to show it.
    pub(crate) fn random(&self, seed: u64, steps: usize, table: &mut Table) -> Result<(), String> {
        let ended = self.apart(steps, |directory, table, made| {
            run(Script::Random { seed, steps, made }, directory, table)
        })?;
        table.add_lines(&ended.lines);
        let Some(difference) = ended.difference else { return Ok(()) };
        let (fewest, difference) = self.shrink(ended.steps, difference);
        let list = fewest.iter().map(|step| format!("  {step:x?},\n")).collect::<String>();
        Err(format!("seed {seed}: {difference}\n{} steps show it:\n{list}", fewest.len()))
    }

    /// Leaves out what can be left out.
    fn shrink(&self, mut steps: Vec<Step>, mut difference: String) -> (Vec<Step>, String) {
        let mut size = steps.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            let mut smaller = false;
            while at < steps.len() {
                let mut fewer = steps.clone();
                fewer.drain(at..(at + size).min(steps.len()));
                match self.differs(&fewer) {
                    Some(what) => (steps, difference, smaller) = (fewer, what, true),
                    None => at += size,
                }
            }
            size = if smaller && size == 1 { 1 } else { size / 2 };
        }
        (steps, difference)
    }

    fn differs(&self, steps: &[Step]) -> Option<String> {
        let ended = self.apart(0, |directory, table, _| run(Script::Steps(steps), directory, table));
        ended.ok()?.difference
    }

    /// Runs a program of at most so many steps in a process of its own.
    fn apart(
        &self,
        steps: usize,
        program: impl FnOnce(&Path, &mut Table, &mut dyn FnMut(Step)) -> Result<(), String>,
    ) -> Result<Ended, String> {
        let ledger = Ledger::new(steps)?;
        let mut report = File::from(memfd()?);
        // SAFETY: the child runs on with a copy of everything, as the only thread, which holds no lock.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let mut table = Table::default();
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                program(&self.directory, &mut table, &mut |step| ledger.push(step))
            }));
            let (mark, what) = match ended {
                Ok(Ok(())) => ('=', String::new()),
                Ok(Err(what)) => ('!', what),
                Err(_) => ('!', "it panicked".to_owned()),
            };
            let _ = write!(report, "{}{mark}{what}", table.to_lines());
            // SAFETY: ends the process; nothing is to be cleaned up.
            unsafe { libc::_exit(0) };
        }
        if pid < 0 {
            return Err(last_error());
        }
        let mut status = 0;
        // SAFETY: `status` has room for the answer.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        let mut text = String::new();
        report.rewind().map_err(|error| error.to_string())?;
        report.read_to_string(&mut text).map_err(|error| error.to_string())?;
        let (lines, end) = text.split_at(text.find(['=', '!']).unwrap_or(text.len()));
        let difference = match end.strip_prefix('!') {
            Some(what) => Some(what.to_owned()),
            None if end.is_empty() => Some(format!("it died, with status {status:x}")),
            None => None,
        };
        Ok(Ended { steps: ledger.steps(), lines: lines.to_owned(), difference })
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
