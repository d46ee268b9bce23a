//! What keeps virtual memory from being set up.

use crate::error::Errno;
use crate::phys::InitError;

#[cfg(doc)]
use super::Vm;
#[cfg(doc)]
use crate::table::EntryFormat;

/// Why there is no [`Vm`]. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum VmError {
    /// The memory for its metadata is too small or misaligned.
    Metadata(InitError),
    /// There is no frame for the page of zeros.
    NoZeroPage,
    /// There are no frames for the kernel's tables.
    NoKernelTables,
    /// The addresses of processes end beyond what the format of the page tables has, at 0, or inside a page. With the most that there can be, in bytes:
    /// [`EntryFormat::TASK_SIZE`].
    BadTaskSize(u64),
    /// The format of the page tables has no way to keep execute-only memory from being read, which
    /// [`Sysctl::protection_keys`](crate::mm::Sysctl::protection_keys) promises.
    NoProtectionKeys,
}

impl VmError {
    /// Linux's number.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Metadata(error) => error.errno(),
            Self::NoZeroPage | Self::NoKernelTables => Errno::ENOMEM,
            Self::BadTaskSize(_) | Self::NoProtectionKeys => Errno::EINVAL,
        }
    }
}

impl core::fmt::Display for VmError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Metadata(error) => error.fmt(f),
            Self::NoZeroPage => f.write_str("no frame for the page of zeros"),
            Self::NoKernelTables => f.write_str("no frames for the kernel's tables"),
            Self::NoProtectionKeys => f.write_str("page tables of this format have no protection keys"),
            Self::BadTaskSize(most) => {
                write!(f, "the addresses of processes must end at a page's start, at {most:#x} or below")
            }
        }
    }
}

impl core::error::Error for VmError {}

impl From<InitError> for VmError {
    fn from(error: InitError) -> Self {
        Self::Metadata(error)
    }
}
