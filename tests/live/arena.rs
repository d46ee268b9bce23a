//! A child whose address space is an arena: whatever the kernel places by itself falls into it.

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use super::host::{parse_range, read};

const PAGE: u64 = 4096;
/// What is said to be the program's data: one byte.
pub(crate) const DATA: Range<u64> = 0x2_0000..0x2_0001;

/// A child that performs system calls for us.
pub(crate) trait Callee {
    /// Performs a call: its result, or the negative error number.
    fn call(&mut self, number: libc::c_long, args: &[u64]) -> Result<i64, String>;

    /// Its process.
    fn pid(&self) -> i32;
}

/// Where things lie, and how much may be locked.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) arena: Range<u64>,
    pub(crate) heap: u64,
    pub(crate) task_size: u64,
    pub(crate) memlock: u64,
}

/// Fills the child's addresses around the arena, sets its heap and takes its privileges. The pipe is for what it is to read.
pub(crate) fn prepare(child: &mut impl Callee, plan: &Plan, pipe: &(OwnedFd, OwnedFd)) -> Result<(), String> {
    fill(child, plan)?;
    move_heap(child, plan, pipe)?;
    drop_privileges(child, plan, pipe)
}

fn fill(child: &mut impl Callee, plan: &Plan) -> Result<(), String> {
    let mut free_from = 0x1_0000;
    let maps = read(&format!("/proc/{}/maps", child.pid()))?;
    let used = maps.lines().filter(|line| !line.ends_with("[vsyscall]")).map(|line| {
        let (start, end) = parse_range(line);
        // Below a stack the guard gap stays free: nothing is placed there anyway.
        if line.ends_with("[stack]") { (start - (256 << 12), end) } else { (start, end) }
    });
    let used: BTreeSet<(u64, u64)> = used.chain([(plan.arena.start, plan.arena.end)]).collect();
    for (start, end) in used.into_iter().chain([(plan.task_size, plan.task_size)]) {
        if start > free_from {
            // Shared, since shared anonymous mappings merge with nothing; NORESERVE, since there is so much of it.
            let flags = 0x1 | 0x20 | 0x4000 | 0x10_0000;
            let args = [free_from, start - free_from, 0, flags, u64::MAX, 0];
            let at = child.call(libc::SYS_mmap, &args)?;
            if at != free_from as i64 {
                return Err(format!("the child's addresses could not be filled from {free_from:x}: {at}"));
            }
        }
        free_from = free_from.max(end);
    }
    Ok(())
}

/// Moves the heap into the arena, as a program that restores a checkpoint does.
fn move_heap(child: &mut impl Callee, plan: &Plan, pipe: &(OwnedFd, OwnedFd)) -> Result<(), String> {
    // The layout of `struct prctl_mm_map`: code, data, heap, stack, arguments, environment, no vector, no file.
    // All but the heap lies far from the arena: `ps` reads arguments, and a stack would grow to meet it.
    let (low, near, heap) = (DATA.start, DATA.end, plan.heap);
    let map = [low, near, low, near, heap, heap, low, low, near, low, near, 0, 0xffff_ffff << 32];
    let bytes: Vec<u8> = map.iter().flat_map(|word: &u64| word.to_ne_bytes()).collect();
    let at = lend_bytes(child, plan, pipe, &bytes)?;
    let args = [libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64, at, bytes.len() as u64, 0];
    expect_zero(child, libc::SYS_prctl, &args)
}

/// Limits locked memory, and drops every capability that would lift a limit.
fn drop_privileges(child: &mut impl Callee, plan: &Plan, pipe: &(OwnedFd, OwnedFd)) -> Result<(), String> {
    let limit: Vec<u8> = [plan.memlock, plan.memlock].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let at = lend_bytes(child, plan, pipe, &limit)?;
    expect_zero(child, libc::SYS_prlimit64, &[0, libc::RLIMIT_MEMLOCK as u64, at, 0])?;
    // Version 3, this process; no effective, permitted or inheritable capability.
    let header: [u32; 2] = [0x2008_0522, 0];
    let caps: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).chain([0; 24]).collect();
    let at = lend_bytes(child, plan, pipe, &caps)?;
    expect_zero(child, libc::SYS_capset, &[at, at + 8])?;
    expect_zero(child, libc::SYS_munmap, &[plan.arena.start, PAGE])
}

/// Puts bytes at the start of the child's arena: what it has of our memory is as of the fork, so a pipe carries them there.
fn lend_bytes(
    child: &mut impl Callee,
    plan: &Plan,
    pipe: &(OwnedFd, OwnedFd),
    bytes: &[u8],
) -> Result<u64, String> {
    let at = plan.arena.start;
    child.call(libc::SYS_mmap, &[at, PAGE, 3, 0x32, u64::MAX, 0])?;
    let mut file = std::fs::File::from(pipe.1.try_clone().map_err(|error| error.to_string())?);
    file.write_all(bytes).map_err(|error| error.to_string())?;
    child.call(libc::SYS_read, &[pipe.0.as_raw_fd() as u64, at, bytes.len() as u64])?;
    Ok(at)
}

fn expect_zero(child: &mut impl Callee, number: libc::c_long, args: &[u64]) -> Result<(), String> {
    match child.call(number, args)? {
        0 => Ok(()),
        other => Err(format!("preparing the child: call {number} answered {other}")),
    }
}
