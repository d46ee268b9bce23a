//! What is asked of the machine that the tests run on.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use kernmm::mm::{FileKind, FileRef, HugePages, ProtectionKeys, Sysctl};
use kernmm::syscall::{MapFile, OpenMode};

/// Whether the running kernel is one that we claim to equal.
pub(crate) fn comparable() -> Result<(), String> {
    let release = read("/proc/sys/kernel/osrelease")?;
    if !release.starts_with("6.18.") {
        return Err(format!("the semantics are those of Linux 6.18, this is {}", release.trim()));
    }
    if read("/proc/self/status")?.lines().any(|line| line == "Seccomp:\t2") {
        return Err("system calls are filtered here".to_owned());
    }
    Ok(())
}

pub(crate) fn read(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

/// What the last failed call of this thread says.
pub(crate) fn last_error() -> String {
    std::io::Error::last_os_error().to_string()
}

/// Settings as the running kernel has them.
pub(crate) fn sysctl() -> Sysctl {
    let huge = read("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let huge_pages = match huge.split('[').nth(1).and_then(|rest| rest.split(']').next()) {
        Some("always") => HugePages::Always,
        Some("madvise") => HugePages::Madvise,
        _ => HugePages::Never,
    };
    let keys = read("/proc/cpuinfo").is_ok_and(|info| info.split_whitespace().any(|flag| flag == "ospke"));
    let protection_keys = if keys { ProtectionKeys::Present } else { ProtectionKeys::Absent };
    let max_map_count = read("/proc/sys/vm/max_map_count").ok().and_then(|count| count.trim().parse().ok());
    let max_map_count = max_map_count.unwrap_or(Sysctl::default().max_map_count);
    Sysctl { huge_pages, protection_keys, max_map_count, ..Sysctl::default() }
}

/// A pipe: the end to read and the end to write.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd), String> {
    let mut ends: [RawFd; 2] = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } != 0 {
        return Err(last_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let read = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: the descriptor is new and nobody else's.
    let write = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    Ok((read, write))
}

/// A file in memory.
pub(crate) fn memfd() -> Result<OwnedFd, String> {
    // SAFETY: the name is a string that ends in 0.
    let fd = unsafe { libc::memfd_create(c"kernmm".as_ptr(), 0) };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The range that a line of `/proc/PID/maps` begins with.
pub(crate) fn parse_range(line: &str) -> (u64, u64) {
    let range = line.split(' ').next().unwrap_or_default();
    let mut ends = range.split('-').map(|end| u64::from_str_radix(end, 16).unwrap_or(0));
    (ends.next().unwrap_or(0), ends.next().unwrap_or(0))
}

/// Whether mapping a pipe to execute it is refused for that, and not for its being a pipe.
pub(crate) fn is_noexec(pipe: &OwnedFd) -> bool {
    // SAFETY: a pipe cannot be mapped, so nothing is.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_EXEC, libc::MAP_PRIVATE, pipe.as_raw_fd(), 0)
    };
    at == libc::MAP_FAILED && std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// The end of a pipe that is read from, as mmap sees it.
pub(crate) fn pipe_file(noexec: bool) -> MapFile {
    let file = FileRef::new(u32::MAX, u32::MAX, FileKind::Regular).expect("numbers from 1");
    // Only files have a greatest size.
    MapFile { mappable: false, noexec, max_bytes: u64::MAX, ..MapFile::new(file, OpenMode::ReadOnly) }
}
