//! What the running kernel answers where we refuse.

use kernmm::mm::MmError;
use kernmm::syscall::OpenMode;

#[path = "../live/host.rs"]
#[expect(dead_code, reason = "others who share this use more of it")]
mod host;

const PAGE: u64 = super::PAGE;
const MAPPED: u64 = super::MAPPED;
const FIXED: u64 = (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) as u64;
/// Numbers of calls.
pub(crate) mod number {
    pub(crate) use libc::{
        SYS_madvise, SYS_mlock, SYS_mlock2, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_msync, SYS_munlock,
        SYS_munmap,
    };
}

/// No answer: the call was the end of who made it.
const DIED: i32 = -1;

/// The system call that stands for a call of ours with `N` arguments.
pub(crate) struct Linux<'a, const N: usize> {
    number: libc::c_long,
    args: Box<dyn Fn([u64; N]) -> [u64; 6] + 'a>,
}

impl<'a, const N: usize> Linux<'a, N> {
    pub(crate) fn new(number: libc::c_long, args: impl Fn([u64; N]) -> [u64; 6] + 'a) -> Self {
        Self { number, args: Box::new(args) }
    }
}

/// A file opened like this, for as long as the test runs.
pub(crate) fn file(mode: OpenMode) -> u64 {
    use std::os::fd::{AsRawFd, IntoRawFd};
    let memory = host::memfd().expect("a file in memory");
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let mut options = std::fs::OpenOptions::new();
    let options = match mode {
        OpenMode::ReadOnly => options.read(true),
        OpenMode::WriteOnly => options.write(true),
        _ => options.read(true).write(true),
    };
    options.open(path).expect("it can be opened again").into_raw_fd() as u64
}

/// Asks for everything that was refused, of a process whose addresses look as those of the test do.
///
/// # Panics
/// If the kernel does not refuse it, or otherwise.
pub(crate) fn compare<const N: usize>(linux: &Linux<'_, N>, refused: &[([u64; N], MmError)]) {
    if let Err(why) = host::comparable() {
        println!("the running kernel is not asked: {why}");
        return;
    }
    let calls: Vec<([u64; 6], i32)> = refused
        .iter()
        .map(|(args, error)| ((linux.args)(*args), error.errno().get()))
        .filter(|(args, _)| can_be_asked(linux.number, *args))
        .collect();
    let answers = answers(linux.number, &calls);
    for ((args, ours), theirs) in calls.iter().zip(answers) {
        assert_eq!(*ours, theirs, "call {} {args:x?}", linux.number);
    }
}

/// Whether the answer says something.
///
/// Advice goes on behind a hole, and so would reach the memory of the process that asks; whether small pages can become a huge one is the
/// tables' to say. Linux takes a fixed address among the last 4095 for an error of that number.
const fn can_be_asked(number: libc::c_long, args: [u64; 6]) -> bool {
    match number {
        libc::SYS_madvise => args[1] < 1 << 40 && args[2] != libc::MADV_COLLAPSE as u64,
        libc::SYS_mmap => args[3] & FIXED == 0 || args[0] < PAGE.wrapping_neg(),
        _ => true,
    }
}

/// Performs the calls, each beside the VMAs of the test: the error numbers, 0 for none.
fn answers(number: libc::c_long, calls: &[([u64; 6], i32)]) -> Vec<i32> {
    let bytes = (calls.len() + 1) * size_of::<i32>();
    // SAFETY: a new mapping, of which nothing is known.
    let shared = unsafe { libc::mmap(std::ptr::null_mut(), bytes, 3, 0x21, -1, 0) };
    assert_ne!(shared, libc::MAP_FAILED);
    let shared: *mut i32 = shared.cast();
    let mut answers = Vec::new();
    while answers.len() < calls.len() {
        let from = answers.len();
        // SAFETY: the child only calls, and writes to what is shared.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "{}", host::last_error());
        if pid == 0 {
            child(number, &calls[from..], shared);
        }
        // SAFETY: no status is asked for.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        // SAFETY: the first word is how many were answered.
        let done = unsafe { shared.read() } as usize;
        // SAFETY: so many words follow it; each is written before the count.
        answers.extend((0..done).map(|n| unsafe { shared.wrapping_add(1 + n).read() }));
        if done == 0 {
            answers.push(DIED);
        }
    }
    // SAFETY: nothing refers to it.
    unsafe { libc::munmap(shared.cast(), bytes) };
    answers
}

/// Calls until something may have changed.
fn child(number: libc::c_long, calls: &[([u64; 6], i32)], shared: *mut i32) -> ! {
    // SAFETY: the first word counts.
    unsafe { shared.write_volatile(0) };
    furnish();
    for (n, ([a, b, c, d, e, f], _)) in calls.iter().enumerate() {
        // SAFETY: what it may change is the child's own, and it is about to end.
        let result = unsafe { libc::syscall(number, *a, *b, *c, *d, *e, *f) };
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let answer = if result == -1 { errno } else { 0 };
        // SAFETY: there is a word for each call.
        unsafe { shared.wrapping_add(1 + n).write_volatile(answer) };
        // SAFETY: the first word counts.
        unsafe { shared.write_volatile(n as i32 + 1) };
        // Moving onto what is mapped unmaps that first, and the source perhaps with it.
        let in_vain = number == libc::SYS_mremap && *e == MAPPED;
        let refused = answer == libc::EINVAL || answer == libc::EFAULT && !in_vain;
        if !refused && changes(number) {
            break;
        }
    }
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) };
}

/// Whether the call may leave something behind when it fails otherwise than by its arguments: mremap cuts off a tail before it sees that
/// the rest may not go to the lowest addresses.
const fn changes(number: libc::c_long) -> bool {
    matches!(
        number,
        libc::SYS_mremap
            | libc::SYS_mprotect
            | libc::SYS_madvise
            | libc::SYS_mlock
            | libc::SYS_mlock2
            | libc::SYS_munlock
    )
}

/// Maps what the tests have mapped, and gives up what lifts limits.
fn furnish() {
    let fixed = |page: u64, pages: u64, prot: u64, flags: u64| {
        // SAFETY: nothing is mapped there.
        unsafe {
            libc::syscall(libc::SYS_mmap, MAPPED + page * PAGE, pages * PAGE, prot, flags | 0x30, u64::MAX, 0)
        };
    };
    fixed(0, 4, 3, 2);
    fixed(4, 1, 1, 2);
    fixed(8, 2, 1, 1);
    // Version 3, this process; no effective, permitted or inheritable capability.
    let (header, none) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    // SAFETY: both are what the call reads.
    unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
}
