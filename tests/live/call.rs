//! Calls of the mmap family, as both sides take them.

/// Which file an mmap names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum File {
    None,
    /// A descriptor that is not open.
    Bad,
    /// One of the files of the world.
    Number(usize),
    /// The end of a pipe that is read from: it cannot be mapped.
    Pipe,
}

/// A call. Addresses are absolute, all numbers those of the system calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Mmap { addr: u64, len: u64, prot: u64, flags: u64, file: File, offset: u64 },
    Munmap { addr: u64, len: u64 },
    Mprotect { addr: u64, len: u64, prot: u64 },
    Mremap { addr: u64, old: u64, new: u64, flags: u64, to: u64 },
    Madvise { addr: u64, len: u64, advice: i32 },
    Mlock { addr: u64, len: u64 },
    Mlock2 { addr: u64, len: u64, flags: u32 },
    Munlock { addr: u64, len: u64 },
    Mlockall { flags: u32 },
    Munlockall,
    Msync { addr: u64, len: u64, flags: u32 },
    Brk { addr: u64 },
}

impl Call {
    /// What tables of answers call it.
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
            Self::Brk { .. } => "brk",
        }
    }

    /// The number and the arguments that Linux knows it by; `fd` is the descriptor of a file.
    pub(crate) fn to_linux(self, fd: impl FnOnce(File) -> u64) -> (libc::c_long, Vec<u64>) {
        match self {
            Self::Mmap { addr, len, prot, flags, file, offset } => {
                (libc::SYS_mmap, vec![addr, len, prot, flags, fd(file), offset])
            }
            Self::Munmap { addr, len } => (libc::SYS_munmap, vec![addr, len]),
            Self::Mprotect { addr, len, prot } => (libc::SYS_mprotect, vec![addr, len, prot]),
            Self::Mremap { addr, old, new, flags, to } => (libc::SYS_mremap, vec![addr, old, new, flags, to]),
            Self::Madvise { addr, len, advice } => (libc::SYS_madvise, vec![addr, len, advice as u64]),
            Self::Mlock { addr, len } => (libc::SYS_mlock, vec![addr, len]),
            Self::Mlock2 { addr, len, flags } => (libc::SYS_mlock2, vec![addr, len, flags.into()]),
            Self::Munlock { addr, len } => (libc::SYS_munlock, vec![addr, len]),
            Self::Mlockall { flags } => (libc::SYS_mlockall, vec![flags.into()]),
            Self::Munlockall => (libc::SYS_munlockall, vec![]),
            Self::Msync { addr, len, flags } => (libc::SYS_msync, vec![addr, len, flags.into()]),
            Self::Brk { addr } => (libc::SYS_brk, vec![addr]),
        }
    }
}
