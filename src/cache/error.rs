//! What the page cache cannot do.

use core::fmt;

use crate::error::Errno;
use crate::phys::KmapError;
use crate::platform::StoreError;

/// Why a call of the page cache failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum CacheError {
    /// No file has this number.
    BadFile,
    /// All places for files are taken.
    TooManyFiles,
    /// The page lies beyond the end of the file.
    BeyondEnd,
    /// The file would be larger than [`MAX_FILE_BYTES`](super::MAX_FILE_BYTES).
    TooLarge,
    /// The store failed.
    Io,
    /// The store is full.
    NoSpace,
    /// No frame could be had.
    OutOfMemory,
    /// A truncation of the file was begun and not ended.
    Truncating,
    /// The file was not opened for reading.
    NotReadable,
    /// The file was not opened for writing.
    NotWritable,
    /// The file was not opened for writing, so its length stays.
    NotResizable,
    /// Not for files of this kind.
    Unsupported,
    /// The platform does not let the frame's bytes be reached.
    Unreachable,
}

impl CacheError {
    /// Linux's number. A fault answers with a signal instead: SIGBUS for all but [`OutOfMemory`](Self::OutOfMemory).
    pub const fn errno(self) -> Errno {
        match self {
            Self::BadFile | Self::NotReadable | Self::NotWritable => Errno::EBADF,
            Self::TooManyFiles | Self::OutOfMemory => Errno::ENOMEM,
            Self::BeyondEnd => Errno::EFAULT,
            Self::TooLarge => Errno::EFBIG,
            Self::Io => Errno::EIO,
            Self::NoSpace => Errno::ENOSPC,
            Self::Truncating => Errno::EBUSY,
            Self::NotResizable => Errno::EINVAL,
            Self::Unsupported => Errno::EOPNOTSUPP,
            Self::Unreachable => Errno::EFAULT,
        }
    }
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadFile => "no such file",
            Self::TooManyFiles => "too many files",
            Self::BeyondEnd => "beyond the end of the file",
            Self::TooLarge => "the file would be too large",
            Self::Io => "the store failed",
            Self::NoSpace => "the store is full",
            Self::OutOfMemory => "out of memory",
            Self::Truncating => "a truncation is not ended",
            Self::NotReadable => "not opened for reading",
            Self::NotWritable => "not opened for writing",
            Self::NotResizable => "not opened for writing, so its length stays",
            Self::Unsupported => "not for files of this kind",
            Self::Unreachable => "the frame cannot be reached",
        })
    }
}

impl core::error::Error for CacheError {}

impl From<StoreError> for CacheError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSpace => Self::NoSpace,
            _ => Self::Io,
        }
    }
}

impl From<KmapError> for CacheError {
    fn from(_: KmapError) -> Self {
        Self::Unreachable
    }
}
