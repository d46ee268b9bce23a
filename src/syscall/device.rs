//! Mapping a device's memory: what mmap of a device file comes to.

use super::mmap::{MapFile, MmapArgs, OpenMode, map_over};
use super::{is_aligned, page_align};
use crate::addr::{PAGE_SHIFT, Pfn, PgOff, VirtAddr, VirtRange};
use crate::flags::VmFlags;
use crate::mm::{Backing, FileKind, FileRef, Mm, MmError, Tables};
use crate::table::Caching;

/// What a VMA of bare frames is.
pub(super) const BARE: VmFlags =
    VmFlags::IO.union(VmFlags::PFNMAP).union(VmFlags::DONTEXPAND).union(VmFlags::DONTDUMP);

/// A device's memory that processes may map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    /// The number by which reports ask for its name: of [`Backing::Device`].
    pub special: u32,
    /// How it was opened.
    pub mode: OpenMode,
    /// Its first frame.
    pub first: Pfn,
    /// How many frames it has.
    pub pages: u64,
    /// How accesses go through caches. Who maps the same memory elsewhere does it alike.
    pub caching: Caching,
}

impl Device {
    /// The frame `pgoff` pages behind the first, if the device has `pages` frames from there on.
    pub(super) fn frames(&self, pgoff: u64, pages: u64) -> Result<Pfn, MmError> {
        let end = pgoff.checked_add(pages).ok_or(MmError::OffsetOverflow)?;
        let first = self.first.checked_add(pgoff).filter(|_| end <= self.pages);
        first.filter(|first| first.checked_add(pages).is_some()).ok_or(MmError::DeviceRange)
    }

    /// The device as mmap sees files: with no limit of its own to the offset.
    pub(super) fn as_file(&self) -> Option<MapFile> {
        let file = FileRef::new(self.special.max(1), 1, FileKind::Memory)?;
        Some(MapFile { max_bytes: u64::MAX, ..MapFile::new(file, self.mode) })
    }

    /// What backs a VMA of it, and from which page on: of a private one the frame itself.
    pub(super) fn backing(
        &self,
        pgoff: u64,
        first: Pfn,
        flags: VmFlags,
    ) -> Result<(Backing, PgOff), MmError> {
        let pgoff = if is_cow_mapping(flags) { first.get() } else { pgoff };
        Ok((Backing::Device(self.special), PgOff::new(pgoff).ok_or(MmError::OffsetOverflow)?))
    }
}

/// Maps a device's memory, all of it at once: later there are no faults but for the first write to each page of a private mapping, which
/// copies it. `args.offset` is into the device's memory; `args.file` is not looked at.
///
/// # Errors
/// As [`mmap`](super::mmap()); [`MmError::DeviceRange`] if the device's memory ends before the mapping does;
/// [`MmError::OutOfMemory`] if a page table could not be had: what `MAP_FIXED` was to replace is gone then, as on Linux.
///
/// # Linux
/// `mmap_region` in `mm/vma.c` with the mmap of a driver that calls `vm_iomap_memory` in `mm/memory.c`.
#[doc(alias = "vm_iomap_memory")]
pub fn mmap_device(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    args: &MmapArgs,
    device: &Device,
) -> Result<VirtAddr, MmError> {
    if !is_aligned(args.offset) {
        return Err(MmError::Unaligned);
    }
    let pgoff = args.offset >> PAGE_SHIFT;
    let addr = map_over(mm, tables, args, pgoff, Some(device))?;
    let bytes = page_align(args.len);
    let mapped = device
        .frames(pgoff, bytes >> PAGE_SHIFT)
        .and_then(|first| remap_pfn_range(mm, tables, addr, first, bytes, device.caching));
    if let Err(error) = mapped {
        let range = VirtRange::with_len(addr, bytes).ok_or(MmError::NoGap)?;
        // The VMA is new, and no neighbour's: nothing is split.
        let all = mm.prepare_unmap(range)?;
        mm.commit_unmap(tables, all);
        return Err(error);
    }
    Ok(addr)
}

/// Maps frames that nobody counts into a VMA of bare frames, in which nothing is mapped there yet.
///
/// # Errors
/// [`MmError::Unaligned`]; [`MmError::DeviceRange`] if the range is not inside one VMA of bare frames, if frames end before it does, or if the mapping
/// is private and writable, and this is not all of it, or not the frames that it was made for; [`MmError::Exists`] if something is mapped there;
/// [`MmError::OutOfMemory`].
///
/// # Linux
/// `remap_pfn_range` in `mm/memory.c`.
pub fn remap_pfn_range(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    addr: VirtAddr,
    first: Pfn,
    bytes: u64,
    caching: Caching,
) -> Result<(), MmError> {
    if !addr.is_page_aligned() || !is_aligned(bytes) {
        return Err(MmError::Unaligned);
    }
    let range = VirtRange::with_len(addr, bytes).ok_or(MmError::DeviceRange)?;
    first.checked_add(bytes >> PAGE_SHIFT).ok_or(MmError::DeviceRange)?;
    let vma = mm.lookup(addr).map(|slot| mm.vma(slot)).filter(|vma| vma.range().encloses(range));
    let vma = vma.filter(|vma| vma.flags.contains(BARE)).ok_or(MmError::DeviceRange)?;
    let is_all = vma.range() == range && vma.pgoff.get() == first.get();
    if is_cow_mapping(vma.flags) && !is_all {
        return Err(MmError::DeviceRange);
    }
    tables.map_frames(&vma, range, first, caching)
}

/// Whether writes through a mapping with these flags go to copies.
///
/// # Linux
/// `is_cow_mapping` in `include/linux/mm.h`.
pub(super) fn is_cow_mapping(flags: VmFlags) -> bool {
    flags & (VmFlags::SHARED | VmFlags::MAYWRITE) == VmFlags::MAYWRITE
}
