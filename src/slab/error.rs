//! Why a cache was not made, or an object not freed.

use crate::error::Errno;
use crate::phys::AllocError;

use super::cache::CacheId;

/// Why a cache, or the slab allocator, was not made. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CreateError {
    /// Objects of no bytes, or of more than the largest block holds.
    InvalidSize,
    /// An alignment that is no power of two, or above 2 MiB.
    InvalidAlign,
    /// The memory is smaller than asked for. With the bytes needed.
    MetadataTooSmall(usize),
    /// The memory is not aligned as asked for.
    MetadataMisaligned,
    /// The platform does not tell frames by their address.
    NoVirtToPfn,
    /// The source is over other frames than the slab allocator.
    WrongSource,
    /// No cache number is left.
    TooManyCaches,
    /// No memory for the cache itself.
    Alloc(AllocError),
}

impl CreateError {
    /// Linux's number.
    pub const fn errno(self) -> Errno {
        match self {
            Self::InvalidSize
            | Self::InvalidAlign
            | Self::MetadataTooSmall(_)
            | Self::MetadataMisaligned
            | Self::WrongSource => Errno::EINVAL,
            Self::NoVirtToPfn => Errno::EOPNOTSUPP,
            Self::TooManyCaches => Errno::EOVERFLOW,
            Self::Alloc(error) => error.errno(),
        }
    }
}

impl core::fmt::Display for CreateError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::InvalidSize => f.write_str("no slab holds objects of this size"),
            Self::InvalidAlign => f.write_str("the alignment is no power of two, or above 2 MiB"),
            Self::MetadataTooSmall(bytes) => write!(f, "the cache needs {bytes} bytes"),
            Self::MetadataMisaligned => f.write_str("the memory for the cache is misaligned"),
            Self::NoVirtToPfn => f.write_str("the platform does not tell frames by their address"),
            Self::WrongSource => f.write_str("the source is over other frames"),
            Self::TooManyCaches => f.write_str("no cache number is left"),
            Self::Alloc(error) => write!(f, "no memory for the cache: {error}"),
        }
    }
}

impl core::error::Error for CreateError {}

/// Why a cache was not unmade. It goes on as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DestroyError {
    /// So many objects are in use, or lost because they were found damaged.
    InUse(u64),
    /// A kmalloc class, or a cache of another slab allocator.
    Foreign,
}

impl DestroyError {
    /// Linux's number.
    pub const fn errno(self) -> Errno {
        match self {
            Self::InUse(_) => Errno::EBUSY,
            Self::Foreign => Errno::EINVAL,
        }
    }
}

impl core::fmt::Display for DestroyError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::InUse(objects) => write!(f, "{objects} objects are in use"),
            Self::Foreign => f.write_str("not a cache that can be unmade here"),
        }
    }
}

impl core::error::Error for DestroyError {}

/// Why an object was not freed. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ObjectError {
    /// Not an address in the direct map of a managed frame.
    Foreign,
    /// In no slab: it never was, or the slab has been given back.
    NotSlab,
    /// In a slab, but no object begins there.
    Interior,
    /// The object is free already.
    DoubleFree,
    /// The object is another cache's.
    WrongCache(CacheId),
    /// The bytes after the object were written. Found with feature `check` alone.
    RedZone,
    /// The source is over other frames than the slab allocator.
    WrongSource,
    /// The platform's CPU is not one of those given at boot.
    UnknownCpu,
}

impl ObjectError {
    /// Linux's number. Linux itself reports a bug and goes on.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Foreign | Self::NotSlab => Errno::EFAULT,
            Self::Interior
            | Self::DoubleFree
            | Self::WrongCache(_)
            | Self::RedZone
            | Self::WrongSource
            | Self::UnknownCpu => Errno::EINVAL,
        }
    }
}

impl core::fmt::Display for ObjectError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Foreign => f.write_str("not an address of a managed frame"),
            Self::NotSlab => f.write_str("not in a slab"),
            Self::Interior => f.write_str("inside an object or between objects"),
            Self::DoubleFree => f.write_str("already free"),
            Self::WrongCache(id) => write!(f, "an object of cache {}", id.get()),
            Self::RedZone => f.write_str("the bytes after the object were written"),
            Self::WrongSource => f.write_str("the source is over other frames"),
            Self::UnknownCpu => f.write_str("no such CPU"),
        }
    }
}

impl core::error::Error for ObjectError {}
