//! What firmware says of the machine's memory.

use super::Platform;

/// What firmware says of a range.
///
/// # Linux
/// `enum e820_type` in `arch/x86/include/asm/e820/types.h`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "e820_type")]
#[non_exhaustive]
pub enum MemoryKind {
    /// RAM.
    Usable,
    /// Not to be touched.
    Reserved,
    /// ACPI tables, RAM once they are read. Until the embedder says so by calling it usable, it is reserved.
    AcpiReclaimable,
    /// Kept for ACPI.
    AcpiNvs,
    /// RAM that is broken.
    Bad,
    /// RAM that keeps its contents without power.
    Persistent,
    /// The kernel's image, the boot loader's modules: RAM in use.
    Kernel,
}

/// A line of the memory map: `len` bytes from `base`. One of zero bytes says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "e820_entry")]
pub struct MemoryRange {
    /// The first byte.
    pub base: u64,
    /// How many bytes.
    pub len: u64,
    /// What they are.
    pub kind: MemoryKind,
}

/// The addresses of a node's memory, as ACPI's SRAT gives them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NodeRange {
    /// The first byte.
    pub base: u64,
    /// How many bytes.
    pub len: u64,
    /// The node, below [`MAX_NODES`](crate::phys::MAX_NODES).
    pub node: u8,
}

/// A platform's memory map whose usable frames nobody uses: with it the library may not only count frames but also write to them. It is
/// used up by the memory manager that is booted from it.
#[derive(Debug)]
pub struct MemoryMap<'p, P, I> {
    platform: &'p P,
    ranges: I,
}

impl<'p, P: Platform, I: Iterator<Item = MemoryRange> + Clone> MemoryMap<'p, P, I> {
    /// Takes the lines of a map, in any order, overlapping, unaligned, with holes, and the platform whose frames they speak of.
    ///
    /// # Safety
    /// From now on nobody uses a frame of `platform` of which all bytes are called usable and none anything else, unless the memory manager that
    /// is booted from this map has handed it out. Only one is.
    pub unsafe fn new(platform: &'p P, ranges: I) -> Self {
        Self { platform, ranges }
    }

    /// The platform that the frames belong to.
    pub fn platform(&self) -> &'p P {
        self.platform
    }

    /// The lines.
    pub fn ranges(&self) -> I {
        self.ranges.clone()
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::platform::hosted::Machine;

    // A copy of a map would boot a second memory manager over the same frames.
    static_assertions::assert_not_impl_any!(MemoryMap<'static, Machine, core::iter::Empty<MemoryRange>>: Clone, Copy);
}
