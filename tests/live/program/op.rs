//! The operations that programs are made of.

use crate::live::call::Call;

/// The most processes that live at a time.
pub(crate) const PROCESSES: usize = 5;
/// The most bytes that an access touches.
pub(crate) const ACCESS: usize = 8;

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
    Call(Call),
    Mincore {
        addr: u64,
        len: u64,
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
            Self::Call(call) => call.verb(),
            Self::Mincore { .. } => "mincore",
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
        matches!(self, Self::Call(_) | Self::Fork | Self::Exit)
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
