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
    /// By one of two openings.
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
    /// The kernel copies, of several pages at once.
    Copy {
        at: u8,
        within: u16,
        len: u16,
        how: u8,
        byte: u8,
    },
    /// Bytes of a file go to memory, or the other way.
    Transfer {
        file: u8,
        from: u16,
        at: u8,
        within: u16,
        len: u16,
        how: u8,
    },
    Lock {
        at: u8,
        pages: u8,
        how: u8,
    },
    LockAll {
        how: u8,
    },
    Brk {
        to: u16,
        how: u8,
    },
    Exec {
        shape: u8,
    },
    /// A device gets pages of the process.
    Pin {
        at: u8,
        pages: u8,
        how: u8,
    },
    /// It writes to one of them.
    Dma {
        pin: u8,
        within: u16,
        byte: u8,
    },
    /// It gives one back.
    Unpin {
        pin: u8,
    },
    /// From now on the store refuses what a file asks it for.
    FailStore {
        file: u8,
        how: u8,
        kind: u8,
    },
    /// It is too busy for one request in so many.
    Busy {
        every: u8,
    },
    /// Of what the next operation allocates one fails.
    FailAllocation {
        nth: u8,
    },
    /// A file is closed and opened again.
    Reopen {
        file: u8,
    },
}
