//! What a program may do.

/// An operation, as small numbers that the machine makes addresses and lengths of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
pub(crate) enum Op {
    Mmap {
        at: u8,
        pages: u8,
        prot: u8,
        how: u8,
        file: u8,
        offset: u8,
    },
    Munmap {
        at: u8,
        pages: u8,
    },
    Mprotect {
        at: u8,
        pages: u8,
        prot: u8,
    },
    Mremap {
        at: u8,
        old: u8,
        new: u8,
        how: u8,
        to: u8,
    },
    Madvise {
        at: u8,
        pages: u8,
        advice: u8,
    },
    Load {
        at: u8,
        within: u16,
        len: u8,
        how: u8,
    },
    Store {
        at: u8,
        within: u16,
        len: u8,
        how: u8,
        byte: u8,
    },
    Fork,
    Exit,
    /// What follows is another process's.
    Switch {
        to: u8,
    },
    /// And runs on another CPU.
    Cpu {
        to: u8,
    },
    FileRead {
        file: u8,
        at: u16,
        len: u16,
    },
    FileWrite {
        file: u8,
        at: u16,
        len: u16,
        byte: u8,
    },
    Truncate {
        file: u8,
        size: u16,
    },
    Msync {
        at: u8,
        pages: u8,
    },
    Sync {
        file: u8,
    },
    /// Begins to write a file back, and does not wait.
    WriteBack {
        file: u8,
    },
    /// Asks after what is under way.
    Reap,
    /// The disk takes so many polls from now on.
    Latency {
        polls: u8,
    },
}
