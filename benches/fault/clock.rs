//! The processor time of this thread: what others do on the machine counts least there.

use std::sync::OnceLock;

/// ns so far.
pub fn now() -> f64 {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place is ours to write to.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Runs something; what it answers and how many ns it took, without those that the clock takes itself.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    static IDLE: OnceLock<f64> = OnceLock::new();
    let idle = IDLE.get_or_init(|| (0..100).map(|_| with_clock(|| {}).1).fold(f64::INFINITY, f64::min));
    let (done, ns) = with_clock(work);
    (done, ns - idle)
}

fn with_clock<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let begin = now();
    let done = std::hint::black_box(work());
    (done, now() - begin)
}

/// What children that are gone have used, ns.
pub fn of_children() -> f64 {
    // SAFETY: all zeros is a value of this struct of numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the place is ours to write to.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) };
    let ns = |time: libc::timeval| time.tv_sec as f64 * 1e9 + time.tv_usec as f64 * 1e3;
    ns(usage.ru_utime) + ns(usage.ru_stime)
}
