//! The same on the running Linux, with real faults and calls: what is paid there for the trap is not paid by us.

use crate::clock::{now, of_children};
use crate::ours::{Life, Stored};
use std::io::Read;
use std::os::fd::FromRawFd;

const PAGE: usize = 4096;

/// Runs `measure` in a child and hands its numbers over.
fn in_child<const N: usize>(measure: impl FnOnce() -> [f64; N]) -> Option<[f64; N]> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both ends.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        0 => {
            let numbers = measure();
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
            // SAFETY: the bytes are there, and the pipe is open.
            unsafe { libc::write(ends[1], bytes.as_ptr().cast(), bytes.len()) };
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { libc::_exit(0) }
        }
        ..0 => None,
        child => {
            // SAFETY: the descriptor is ours, and closed once.
            unsafe { libc::close(ends[1]) };
            // SAFETY: the descriptor is open, and nobody else's.
            let mut from = unsafe { std::fs::File::from_raw_fd(ends[0]) };
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).ok()?;
            // SAFETY: a null status is allowed.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            let mut numbers = [0.0; N];
            for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
                *number = f64::from_ne_bytes(bytes.try_into().ok()?);
            }
            (bytes.len() == 8 * N).then_some(numbers)
        }
    }
}

fn map(pages: usize, sharing: i32) -> *mut u8 {
    // SAFETY: a new mapping, wherever the kernel likes.
    let start = unsafe {
        let flags = sharing | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(std::ptr::null_mut(), pages * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    assert!(start != libc::MAP_FAILED, "no room");
    // SAFETY: the range was mapped just now; the advice changes no bytes.
    unsafe { libc::madvise(start, pages * PAGE, libc::MADV_NOHUGEPAGE) };
    start.cast()
}

fn unmap(start: *mut u8, pages: usize) {
    // SAFETY: the range was mapped by `map`, and nobody uses it any more.
    unsafe { libc::munmap(start.cast(), pages * PAGE) };
}

fn write_all(start: *mut u8, pages: usize) -> f64 {
    let begin = now();
    for page in 0..pages {
        // SAFETY: the page is mapped.
        let at = unsafe { start.add(page * PAGE) };
        // SAFETY: it is mapped for writing.
        unsafe { at.write_volatile(1) };
    }
    (now() - begin) / pages as f64
}

fn read_all(start: *mut u8, pages: usize) -> f64 {
    let begin = now();
    for page in 0..pages {
        // SAFETY: the page is mapped.
        let at = unsafe { start.add(page * PAGE) };
        // SAFETY: it is, for reading.
        std::hint::black_box(unsafe { at.read_volatile() });
    }
    (now() - begin) / pages as f64
}

/// Forks a child that ends at once: what fork took of the parent, and all that the child did, in ns.
fn fork_exit() -> (f64, f64) {
    let (begin, before) = (now(), of_children());
    // SAFETY: the child only ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) }
    }
    let forked = now() - begin;
    // SAFETY: a null status is allowed.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    (forked, of_children() - before)
}

pub fn life(pages: u64) -> Option<Life> {
    let pages = pages as usize;
    let [write_fault, read_fault, fork, copy_fault, exit, munmap] = in_child(move || {
        let (idle, idle_child) = fork_exit();
        let start = map(pages, libc::MAP_PRIVATE);
        let write_fault = write_all(start, pages);
        let (forked, gone) = fork_exit();
        // The parent's own pages are write-protected now, and its alone again: a child is kept for the copies.
        let copied = pages.min(1 << 16);
        let copy_fault = with_sharer(|| write_all(start, copied));
        let begin = now();
        unmap(start, pages);
        let munmap = (now() - begin) / pages as f64;
        let zeros = map(pages, libc::MAP_PRIVATE);
        let read_fault = read_all(zeros, pages);
        let each = |ns: f64| ns / pages as f64;
        [write_fault, read_fault, each(forked - idle), copy_fault, each(gone - idle_child), munmap]
    })?;
    Some(Life { write_fault, read_fault, fork, copy_fault, exit, munmap })
}

/// Runs `work` while a child has all pages too.
fn with_sharer(work: impl FnOnce() -> f64) -> f64 {
    // SAFETY: the child only waits and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) }
    }
    let ns = work();
    // SAFETY: the child is ours and not waited for yet.
    unsafe { libc::kill(child, libc::SIGKILL) };
    // SAFETY: a null status is allowed.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    ns
}

pub fn file(pages: u64) -> Option<f64> {
    let pages = pages as usize;
    let [ns] = in_child(move || {
        let start = map(pages, libc::MAP_SHARED);
        write_all(start, pages);
        in_child(|| [read_all(start, pages)]).unwrap_or([f64::NAN])
    })?;
    Some(ns)
}

/// Read faults on a file of a disk that is in no cache, and again when it is. Only the processor's time counts, so the device's is not in it.
pub fn stored_file(pages: u64) -> Option<Stored> {
    let pages = pages as usize;
    let path = std::env::temp_dir().join(format!("kernmm-bench-{}", std::process::id()));
    std::fs::write(&path, vec![7; pages * PAGE]).ok()?;
    let file = std::fs::File::open(&path);
    // Whatever happens from here on, nothing is left behind.
    std::fs::remove_file(&path).ok()?;
    let file = file.ok()?;
    file.sync_all().ok()?;
    let [cold, warm] = in_child(move || {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is open; the advice changes no bytes.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        [(); 2].map(|()| {
            // SAFETY: a new mapping, wherever the kernel likes.
            let start = unsafe {
                let len = pages * PAGE;
                libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
            };
            if start == libc::MAP_FAILED { f64::NAN } else { read_all(start.cast(), pages) }
        })
    })?;
    Some(Stored { cold, copy: 0.0, warm })
}

pub fn fork_vmas(vmas: u64) -> Option<f64> {
    let vmas = vmas as usize;
    let [ns] = in_child(move || {
        let start = map(2 * vmas, libc::MAP_PRIVATE);
        for vma in 0..vmas {
            // SAFETY: the page was mapped above.
            let at = unsafe { start.add(2 * vma * PAGE) };
            // SAFETY: the page behind it was, too.
            let behind = unsafe { at.add(PAGE) };
            // SAFETY: nobody else uses it.
            unsafe { libc::mprotect(behind.cast(), PAGE, libc::PROT_READ) };
            // SAFETY: the page is writable.
            unsafe { at.write_volatile(1) };
        }
        [fork_exit().0]
    })?;
    Some(ns)
}
