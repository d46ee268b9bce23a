//! Where there is no running kernel to be asked.
#![expect(non_upper_case_globals, reason = "the names are those of the C library")]

use kernmm::mm::MmError;
use kernmm::syscall::OpenMode;

/// Numbers of calls.
pub(crate) mod number {
    pub(crate) const SYS_madvise: i64 = 0;
    pub(crate) const SYS_mlock: i64 = 0;
    pub(crate) const SYS_mlock2: i64 = 0;
    pub(crate) const SYS_mmap: i64 = 0;
    pub(crate) const SYS_mprotect: i64 = 0;
    pub(crate) const SYS_mremap: i64 = 0;
    pub(crate) const SYS_msync: i64 = 0;
    pub(crate) const SYS_munlock: i64 = 0;
    pub(crate) const SYS_munmap: i64 = 0;
}

/// A question to nobody.
pub(crate) struct Linux<'a, const N: usize>(Box<dyn Fn([u64; N]) -> [u64; 6] + 'a>);

impl<'a, const N: usize> Linux<'a, N> {
    pub(crate) fn new(_number: i64, args: impl Fn([u64; N]) -> [u64; 6] + 'a) -> Self {
        Self(Box::new(args))
    }
}

/// No file.
pub(crate) const fn file(_mode: OpenMode) -> u64 {
    u64::MAX
}

/// Says that nobody is asked.
pub(crate) fn compare<const N: usize>(linux: &Linux<'_, N>, refused: &[([u64; N], MmError)]) {
    let asked: Vec<[u64; 6]> = refused.iter().map(|(args, _)| (linux.0)(*args)).collect();
    println!("skipped: {} error numbers are compared on Linux for x86-64 alone", asked.len());
}
