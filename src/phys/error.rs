//! What can go wrong with frames.

use crate::addr::{PageOrder, Pfn};
use crate::error::Errno;

/// Why an allocation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AllocError {
    /// No zone that the request may use has a block, with every merge done and every CPU's list drained.
    OutOfMemory,
    /// A deterministic fault was injected.
    Injected,
    /// Flags that contradict each other: DMA with HIGHMEM, MOVABLE with RECLAIMABLE.
    InvalidFlags,
    /// A count of pages that is zero or more than the largest block.
    InvalidCount,
    /// No node of this number.
    UnknownNode,
    /// The pin's CPU is not one of those given at boot.
    UnknownCpu,
    /// The pin is of another platform than the frames.
    WrongPlatform,
    /// A frame of the range is not managed, not free, or lies in another zone than the first.
    RangeBusy(Pfn),
    /// The platform could not map a frame that was to be zeroed.
    Unreachable,
    /// The source is over other frames than the allocator that was asked.
    WrongSource,
    /// There is no slab allocator: the platform finds no frame by its address ([`Platform::virt_to_pfn`](crate::platform::Platform::virt_to_pfn)).
    NoSlab,
    /// What was to be reallocated is not allocated, or its surroundings were written to.
    BadObject,
}

impl AllocError {
    /// Linux's number.
    pub const fn errno(self) -> Errno {
        match self {
            Self::OutOfMemory | Self::Injected | Self::Unreachable => Errno::ENOMEM,
            Self::InvalidFlags
            | Self::InvalidCount
            | Self::UnknownNode
            | Self::UnknownCpu
            | Self::WrongPlatform
            | Self::WrongSource
            | Self::NoSlab
            | Self::BadObject => Errno::EINVAL,
            Self::RangeBusy(_) => Errno::EBUSY,
        }
    }
}

impl core::fmt::Display for AllocError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::Injected => f.write_str("failure injected"),
            Self::InvalidFlags => f.write_str("flags contradict each other"),
            Self::InvalidCount => f.write_str("no block holds that many pages"),
            Self::UnknownNode => f.write_str("no such node"),
            Self::UnknownCpu => f.write_str("no such CPU"),
            Self::WrongPlatform => f.write_str("the pin is of another platform"),
            Self::Unreachable => f.write_str("the frame cannot be mapped"),
            Self::RangeBusy(pfn) => write!(f, "frame {pfn:#x} of the range is not free"),
            Self::WrongSource => f.write_str("the source is over other frames"),
            Self::NoSlab => f.write_str("there is no slab allocator"),
            Self::BadObject => f.write_str("what was to be reallocated is not allocated"),
        }
    }
}

impl core::error::Error for AllocError {}

/// Why a block was not freed. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FreeError {
    /// Not a frame that the allocator knows: a hole of the memory map; or RAM without metadata, in a block of 2 MiB of which nothing is usable.
    Foreign,
    /// RAM that is not managed, in a block of 2 MiB with usable frames: of firmware, the kernel's image, the metadata.
    Reserved,
    /// The block is free already.
    DoubleFree,
    /// The block is free already and waits for its merge.
    DoubleFreeDeferred,
    /// The block is free already and on a CPU's list.
    DoubleFreeOnCpu,
    /// The block was allocated with another order.
    WrongOrder(PageOrder),
    /// The frame lies inside an allocated block that begins elsewhere.
    Interior(Pfn),
    /// References, mappings or flags say that the page is in use.
    Busy,
    /// The pin's CPU is not one of those given at boot.
    UnknownCpu,
    /// The pin is of another platform than the frames.
    WrongPlatform,
}

impl FreeError {
    /// Linux's number. Linux itself reports a bad page and goes on.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Busy => Errno::EBUSY,
            Self::Foreign
            | Self::Reserved
            | Self::DoubleFree
            | Self::DoubleFreeDeferred
            | Self::DoubleFreeOnCpu
            | Self::WrongOrder(_)
            | Self::Interior(_)
            | Self::UnknownCpu
            | Self::WrongPlatform => Errno::EINVAL,
        }
    }
}

impl core::fmt::Display for FreeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Foreign => f.write_str("not a frame that the allocator knows"),
            Self::Reserved => f.write_str("a reserved frame"),
            Self::DoubleFree => f.write_str("already free"),
            Self::DoubleFreeDeferred => f.write_str("already free, waiting for its merge"),
            Self::DoubleFreeOnCpu => f.write_str("already free, on a CPU's list"),
            Self::WrongOrder(order) => write!(f, "allocated with order {}", order.get()),
            Self::Interior(head) => write!(f, "inside the block that begins at frame {head:#x}"),
            Self::Busy => f.write_str("in use"),
            Self::UnknownCpu => f.write_str("no such CPU"),
            Self::WrongPlatform => f.write_str("the pin is of another platform"),
        }
    }
}

impl core::error::Error for FreeError {}

/// Why a memory map was not accepted. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum InitError {
    /// A range wraps around or reaches beyond 2^52. With its base.
    RangeTooHigh(u64),
    /// Not a single whole usable frame.
    NoMemory,
    /// More frames than 32-bit indices can tell apart (16 TiB).
    TooManyFrames,
    /// Two nodes claim one address.
    NodesOverlap(u64),
    /// A node number at or above [`MAX_NODES`](super::MAX_NODES).
    NodeTooHigh(u8),
    /// The distance table is not square, or has a distance below 10, or one to itself that is not 10.
    BadDistances,
    /// NORMAL ends before DMA does.
    BadZoneLimits,
    /// No CPU, or more than 4096.
    BadCpus,
    /// The memory for the metadata is smaller than [`Plan::metadata_layout`](super::Plan::metadata_layout) says. With the bytes needed.
    MetadataTooSmall(usize),
    /// The memory for the metadata is not aligned as [`Plan::metadata_layout`](super::Plan::metadata_layout) says.
    MetadataMisaligned,
    /// No usable run in the direct map is large enough for the metadata: there is too little RAM, or [`Platform::direct_map`](crate::platform::Platform::direct_map) has no address for it.
    NoRoomForMetadata,
    /// The memory map is not the one that was planned with.
    MapChanged,
}

impl InitError {
    /// Linux's number.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NoMemory | Self::MetadataTooSmall(_) | Self::NoRoomForMetadata => Errno::ENOMEM,
            Self::TooManyFrames | Self::RangeTooHigh(_) => Errno::EOVERFLOW,
            Self::NodesOverlap(_)
            | Self::NodeTooHigh(_)
            | Self::BadDistances
            | Self::BadZoneLimits
            | Self::BadCpus
            | Self::MetadataMisaligned
            | Self::MapChanged => Errno::EINVAL,
        }
    }
}

impl core::fmt::Display for InitError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::RangeTooHigh(base) => write!(f, "the range at {base:#x} ends beyond 2^52"),
            Self::NoMemory => f.write_str("no usable frame"),
            Self::TooManyFrames => f.write_str("more frames than 16 TiB"),
            Self::NodesOverlap(base) => write!(f, "two nodes claim the address {base:#x}"),
            Self::NodeTooHigh(node) => write!(f, "node {node} is too high"),
            Self::BadDistances => f.write_str("the distance table is malformed"),
            Self::BadZoneLimits => f.write_str("the zones' limits are out of order"),
            Self::BadCpus => f.write_str("no CPU, or too many"),
            Self::MetadataTooSmall(bytes) => write!(f, "the metadata need {bytes} bytes"),
            Self::MetadataMisaligned => f.write_str("the memory for the metadata is misaligned"),
            Self::NoRoomForMetadata => {
                f.write_str("no run of usable frames in the direct map holds the metadata")
            }
            Self::MapChanged => f.write_str("the memory map changed since it was planned with"),
        }
    }
}

impl core::error::Error for InitError {}
