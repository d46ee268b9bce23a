//! What can go wrong with page tables.

use crate::error::Errno;
use crate::phys::AllocError;

/// Why page tables were not changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TableError {
    /// No frame for a table.
    OutOfMemory,
    /// The address is translated to nothing in this format.
    OutOfRange,
    /// Not aligned as the entry asks.
    Misaligned,
    /// Something is mapped there already.
    Occupied,
    /// The frame is no page table.
    NotATable,
    /// The platform cannot map the frame of a table.
    Unreachable,
}

impl TableError {
    /// Linux's number.
    pub const fn errno(self) -> Errno {
        match self {
            Self::OutOfMemory | Self::Unreachable => Errno::ENOMEM,
            Self::OutOfRange | Self::Misaligned | Self::NotATable => Errno::EINVAL,
            Self::Occupied => Errno::EBUSY,
        }
    }
}

impl core::fmt::Display for TableError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "no frame for a page table",
            Self::OutOfRange => "no entry has this address",
            Self::Misaligned => "the address or the frame is not aligned",
            Self::Occupied => "something is mapped there",
            Self::NotATable => "the frame is no page table",
            Self::Unreachable => "the platform does not map the frame of a table",
        })
    }
}

impl core::error::Error for TableError {}

impl From<AllocError> for TableError {
    fn from(_: AllocError) -> Self {
        Self::OutOfMemory
    }
}
