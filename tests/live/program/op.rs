//! The operations that programs are made of.

/// The most processes that live at a time.
pub(crate) const PROCESSES: usize = 5;
/// The most bytes that an access touches.
pub(crate) const ACCESS: usize = 8;

/// Which file an mmap names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum File {
    None,
    /// A descriptor that is not open.
    Bad,
    /// One of the files of the world.
    Number(usize),
}

/// Up to eight bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bytes {
    bytes: [u8; ACCESS],
    len: u8,
}

impl Bytes {
    pub(crate) fn new(bytes: [u8; ACCESS], len: usize) -> Self {
        Self { bytes, len: len.min(ACCESS) as u8 }
    }

    pub(crate) fn get(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// An operation. Addresses are absolute, all numbers those of the system calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    Mmap {
        addr: u64,
        len: u64,
        prot: u64,
        flags: u64,
        file: File,
        offset: u64,
    },
    Munmap {
        addr: u64,
        len: u64,
    },
    Mprotect {
        addr: u64,
        len: u64,
        prot: u64,
    },
    Mremap {
        addr: u64,
        old: u64,
        new: u64,
        flags: u64,
        to: u64,
    },
    Madvise {
        addr: u64,
        len: u64,
        advice: i32,
    },
    Mlock {
        addr: u64,
        len: u64,
    },
    Mlock2 {
        addr: u64,
        len: u64,
        flags: u64,
    },
    Munlock {
        addr: u64,
        len: u64,
    },
    Mlockall {
        flags: u64,
    },
    Munlockall,
    Msync {
        addr: u64,
        len: u64,
        flags: u64,
    },
    Mincore {
        addr: u64,
        len: u64,
    },
    Brk {
        addr: u64,
    },
    Load {
        addr: u64,
        len: usize,
    },
    Store {
        addr: u64,
        bytes: Bytes,
    },
    /// An atomic exchange of four bytes at a multiple of four.
    Exchange {
        addr: u64,
        current: u32,
        new: u32,
    },
    /// Executes one instruction.
    Fetch {
        addr: u64,
    },
    /// write(2) of memory to a pipe: the kernel reads.
    WritePipe {
        addr: u64,
        len: usize,
    },
    /// read(2) from a pipe to memory: the kernel writes.
    ReadPipe {
        addr: u64,
        bytes: Bytes,
    },
    /// pread(2) of a file to memory.
    ReadFile {
        file: usize,
        addr: u64,
        len: u64,
        offset: u64,
    },
    /// pwrite(2) of memory to a file.
    WriteFile {
        file: usize,
        addr: u64,
        len: u64,
        offset: u64,
    },
    /// Somebody else reads a file.
    OtherReads {
        file: usize,
        len: usize,
        offset: u64,
    },
    /// Somebody else writes to a file.
    OtherWrites {
        file: usize,
        bytes: Bytes,
        offset: u64,
    },
    Truncate {
        file: usize,
        size: u64,
    },
    /// A child, in the lowest free place.
    Fork,
    Exit,
}

impl Op {
    /// What the table calls it.
    pub(crate) const fn verb(&self) -> &'static str {
        match self {
            Self::Mmap { .. } => "mmap",
            Self::Munmap { .. } => "munmap",
            Self::Mprotect { .. } => "mprotect",
            Self::Mremap { .. } => "mremap",
            Self::Madvise { .. } => "madvise",
            Self::Mlock { .. } => "mlock",
            Self::Mlock2 { .. } => "mlock2",
            Self::Munlock { .. } => "munlock",
            Self::Mlockall { .. } => "mlockall",
            Self::Munlockall => "munlockall",
            Self::Msync { .. } => "msync",
            Self::Mincore { .. } => "mincore",
            Self::Brk { .. } => "brk",
            Self::Load { .. } => "load",
            Self::Store { .. } => "store",
            Self::Exchange { .. } => "exchange",
            Self::Fetch { .. } => "fetch",
            Self::WritePipe { .. } => "write pipe",
            Self::ReadPipe { .. } => "read pipe",
            Self::ReadFile { .. } => "pread",
            Self::WriteFile { .. } => "pwrite",
            Self::OtherReads { .. } => "other pread",
            Self::OtherWrites { .. } => "other pwrite",
            Self::Truncate { .. } => "truncate",
            Self::Fork => "fork",
            Self::Exit => "exit",
        }
    }

    /// Whether it may change a layout.
    pub(crate) const fn is_call(&self) -> bool {
        !matches!(
            self,
            Self::Load { .. }
                | Self::Store { .. }
                | Self::Exchange { .. }
                | Self::Fetch { .. }
                | Self::WritePipe { .. }
                | Self::ReadPipe { .. }
                | Self::ReadFile { .. }
                | Self::WriteFile { .. }
                | Self::OtherReads { .. }
                | Self::OtherWrites { .. }
                | Self::Truncate { .. }
                | Self::Mincore { .. }
        )
    }
}

/// An operation, and which process performs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    pub(crate) by: usize,
    pub(crate) op: Op,
}

/// What came of an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The call's result, or the negative error number.
    Result(i64),
    /// The same, and bytes that came with it.
    Bytes(i64, Vec<u8>),
    /// A signal after so many bytes.
    Signal { number: u32, code: u32, addr: u64, done: usize },
}
