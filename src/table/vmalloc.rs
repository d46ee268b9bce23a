//! Memory of the kernel's by addresses of their own: frames that do not follow each other, and the memory of devices.
//!
//! Each area is followed by a page that is never mapped, so running over its end faults. What is unmapped is forgotten by all CPUs before
//! its frames are free and its addresses are given out again.

use core::sync::atomic::Ordering::Relaxed;

use super::TableError;
use super::area::{AreaKind, VmArea};
use super::format::{Caching, EntryFormat, Pte, PteBits};
use super::gather::TlbGather;
use super::kernel::KernelTables;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE_U64, PageOrder, Pfn, PhysAddr, VirtAddr, VirtRange};
use crate::error::Errno;
use crate::flags::GfpFlags;
use crate::phys::{AllocError, PageSource, PageState};
use crate::platform::Platform;

/// How many frames are allocated between two looks at the tables.
const BATCH: usize = 64;

/// What the kernel may do with an area, marked as used and written so that hardware has nothing to note.
const KERNEL: PteBits =
    PteBits::READ.union(PteBits::WRITE).union(PteBits::ACCESSED).union(PteBits::DIRTY).union(PteBits::GLOBAL);

/// Why an area was not made or unmapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum VmallocError {
    /// No bytes are asked for, or more than there is memory.
    BadLength,
    /// No range of addresses is long enough.
    NoRange,
    /// There are as many areas as there may be.
    TooManyAreas,
    /// No frame.
    OutOfMemory,
    /// A page table cannot be made.
    Table(TableError),
    /// A frame that nobody has allocated cannot be mapped.
    BadFrame(Pfn),
    /// Memory that the allocator gives out is no device's.
    Ram(Pfn),
    /// No area begins there.
    NoArea,
    /// The area was made by another call.
    OtherKind,
}

impl VmallocError {
    /// The number that fits; Linux answers with a null pointer, or warns.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NoRange | Self::TooManyAreas | Self::OutOfMemory => Errno::ENOMEM,
            Self::Table(error) => error.errno(),
            Self::BadLength | Self::BadFrame(_) | Self::Ram(_) | Self::NoArea | Self::OtherKind => {
                Errno::EINVAL
            }
        }
    }
}

impl core::fmt::Display for VmallocError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::BadLength => f.write_str("no bytes, or more than there is memory"),
            Self::NoRange => f.write_str("no range of addresses is long enough"),
            Self::TooManyAreas => f.write_str("too many areas"),
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::Table(error) => error.fmt(f),
            Self::BadFrame(pfn) => write!(f, "frame {pfn:#x} is not allocated"),
            Self::Ram(pfn) => write!(f, "frame {pfn:#x} is no device's but RAM"),
            Self::NoArea => f.write_str("no area begins there"),
            Self::OtherKind => f.write_str("the area was made by another call"),
        }
    }
}

impl core::error::Error for VmallocError {}

impl From<TableError> for VmallocError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::OutOfMemory => Self::OutOfMemory,
            other => Self::Table(other),
        }
    }
}

impl From<AllocError> for VmallocError {
    fn from(_: AllocError) -> Self {
        Self::OutOfMemory
    }
}

impl<'a, S: PageSource, F: EntryFormat> KernelTables<'a, S, F> {
    /// Allocates memory of so many bytes, rounded up to pages, from single frames wherever they are. `gfp` is for the frames, which may be in HIGHMEM.
    ///
    /// # Errors
    /// [`VmallocError::BadLength`], [`VmallocError::NoRange`], [`VmallocError::TooManyAreas`], [`VmallocError::OutOfMemory`]: no frame is
    /// lost then, but there may be page tables more.
    ///
    /// # Locking
    /// Allocates; called with no lock held and no pin.
    ///
    /// # Linux
    /// `vmalloc` in `mm/vmalloc.c`; with [`GfpFlags::ZERO`] `vzalloc`.
    #[doc(alias = "vzalloc")]
    pub fn vmalloc(&self, bytes: u64, gfp: GfpFlags) -> Result<VirtAddr, VmallocError> {
        let bytes = whole_pages(bytes)?;
        if bytes >> PAGE_SHIFT > self.source().phys().managed_pages() {
            return Err(VmallocError::BadLength);
        }
        self.with_area(bytes, AreaKind::Vmalloc, |range| {
            let filled = self.fill(range, gfp | GfpFlags::HIGHMEM);
            filled.inspect_err(|_| self.clear(range, AreaKind::Vmalloc))
        })
    }

    /// Frees what [`vmalloc`](Self::vmalloc) allocated.
    ///
    /// # Errors
    /// [`VmallocError::NoArea`], [`VmallocError::OtherKind`]; nothing is freed.
    ///
    /// # Locking
    /// Flushes; called with no lock held and no pin.
    ///
    /// # Linux
    /// `vfree` in `mm/vmalloc.c`, which puts the flush off.
    pub fn vfree(&self, addr: VirtAddr) -> Result<(), VmallocError> {
        self.unmap_area(addr, |kind| kind == AreaKind::Vmalloc)
    }

    /// Maps frames one after the other. Each has a reference more until the area is unmapped, so it can be given back by its owner but
    /// is not freed before.
    ///
    /// # Errors
    /// As [`vmalloc`](Self::vmalloc); [`VmallocError::BadFrame`] for one that is not allocated.
    ///
    /// # Locking
    /// As [`vmalloc`](Self::vmalloc).
    ///
    /// # Linux
    /// `vmap` in `mm/vmalloc.c`, which takes no reference.
    pub fn vmap(&self, frames: &[Pfn], caching: Caching) -> Result<VirtAddr, VmallocError> {
        let bytes = whole_pages((frames.len() as u64).saturating_mul(PAGE_SIZE_U64))?;
        self.hold(frames)?;
        let mapped = self.with_area(bytes, AreaKind::Vmap, |range| {
            let mut next = frames.iter();
            let bits = KERNEL | caching.bits();
            self.table().map_with(range, GfpFlags::KERNEL, |_| {
                next.next().map_or(Pte::None, |&pfn| Pte::mapping(pfn, bits))
            })?;
            Ok(())
        });
        if mapped.is_err() {
            self.drop_all(frames);
        }
        mapped
    }

    /// Unmaps what [`vmap`](Self::vmap) mapped.
    ///
    /// # Errors
    /// [`VmallocError::NoArea`], [`VmallocError::OtherKind`].
    ///
    /// # Locking
    /// As [`vfree`](Self::vfree).
    ///
    /// # Linux
    /// `vunmap` in `mm/vmalloc.c`.
    pub fn vunmap(&self, addr: VirtAddr) -> Result<(), VmallocError> {
        self.unmap_area(addr, |kind| kind == AreaKind::Vmap)
    }

    /// Maps the memory of a device; answers with the address of its first byte. The library does not know how the same memory is mapped elsewhere: two
    /// mappings should be cached alike.
    ///
    /// # Errors
    /// [`VmallocError::BadLength`] also for addresses that end; [`VmallocError::Ram`] for memory that the allocator gives out; as [`vmalloc`](Self::vmalloc).
    ///
    /// # Locking
    /// As [`vmalloc`](Self::vmalloc).
    ///
    /// # Linux
    /// `ioremap` in `arch/x86/mm/ioremap.c`: `ioremap`, `ioremap_wc`, `ioremap_cache` by the kind of caching.
    #[doc(alias = "ioremap_wc")]
    #[doc(alias = "ioremap_cache")]
    pub fn ioremap(&self, start: PhysAddr, bytes: u64, caching: Caching) -> Result<VirtAddr, VmallocError> {
        let offset = start.get() & (PAGE_SIZE_U64 - 1);
        let whole = bytes.checked_add(offset).filter(|_| bytes != 0).ok_or(VmallocError::BadLength)?;
        let whole = whole_pages(whole)?;
        let first = Pfn::new(start.get() >> PAGE_SHIFT).ok_or(VmallocError::BadLength)?;
        let pages = whole >> PAGE_SHIFT;
        first.checked_add(pages).ok_or(VmallocError::BadLength)?;
        if whole > self.vmalloc_range().len() {
            return Err(VmallocError::NoRange);
        }
        if let Some(pfn) = self.first_ram(first, pages) {
            return Err(VmallocError::Ram(pfn));
        }
        let area = self.with_area(whole, AreaKind::Ioremap(start, caching), |range| {
            self.table().map_range(range, first, KERNEL | caching.bits(), GfpFlags::KERNEL)?;
            Ok(())
        })?;
        area.checked_add(offset).ok_or(VmallocError::NoRange)
    }

    /// Unmaps what [`ioremap`](Self::ioremap) mapped, by any address in its first page.
    ///
    /// # Errors
    /// [`VmallocError::NoArea`], [`VmallocError::OtherKind`].
    ///
    /// # Locking
    /// As [`vfree`](Self::vfree).
    ///
    /// # Linux
    /// `iounmap` in `arch/x86/mm/ioremap.c`.
    pub fn iounmap(&self, addr: VirtAddr) -> Result<(), VmallocError> {
        self.unmap_area(addr.page_floor(), |kind| matches!(kind, AreaKind::Ioremap(..)))
    }

    /// The frame behind an address of an area.
    ///
    /// # Linux
    /// `vmalloc_to_pfn` in `mm/vmalloc.c`.
    #[doc(alias = "vmalloc_to_pfn")]
    #[doc(alias = "vmalloc_to_page")]
    pub fn frame_at(&self, addr: VirtAddr) -> Option<Pfn> {
        self.areas().lock().find(addr)?;
        let pin = self.source().platform().pin();
        self.table().get(&pin, addr).mapped().map(|entry| entry.pfn)
    }

    /// The area that holds an address.
    ///
    /// # Linux
    /// `find_vm_area` in `mm/vmalloc.c`.
    #[doc(alias = "find_vm_area")]
    pub fn find_area(&self, addr: VirtAddr) -> Option<VmArea> {
        self.areas().lock().find(addr)
    }

    /// How many pages have been allocated by [`vmalloc`](Self::vmalloc).
    ///
    /// # Linux
    /// `vmalloc_nr_pages` in `mm/vmalloc.c`: VmallocUsed.
    #[doc(alias = "vmalloc_nr_pages")]
    pub fn vmalloc_pages(&self) -> u64 {
        self.pages().load(Relaxed)
    }

    /// Runs `map` with the addresses of a new area, which goes if that fails.
    fn with_area(
        &self,
        bytes: u64,
        kind: AreaKind,
        map: impl FnOnce(VirtRange) -> Result<(), VmallocError>,
    ) -> Result<VirtAddr, VmallocError> {
        let range = self.areas().lock().take(self.vmalloc_range(), bytes, kind)?;
        match map(range) {
            Ok(()) => {
                if kind == AreaKind::Vmalloc {
                    self.pages().fetch_add(bytes >> PAGE_SHIFT, Relaxed);
                }
                self.areas().lock().note_there(range.start());
                Ok(range.start())
            }
            Err(error) => {
                self.areas().lock().give(range.start());
                Err(error)
            }
        }
    }

    fn unmap_area(
        &self,
        addr: VirtAddr,
        is_right: impl FnOnce(AreaKind) -> bool,
    ) -> Result<(), VmallocError> {
        let area = self.areas().lock().begin_unmap(addr, is_right)?;
        self.clear(area.range(), area.kind());
        if area.kind() == AreaKind::Vmalloc {
            self.pages().fetch_sub(area.bytes() >> PAGE_SHIFT, Relaxed);
        }
        self.areas().lock().give(addr);
        Ok(())
    }

    /// Allocates frames and maps them.
    fn fill(&self, range: VirtRange, gfp: GfpFlags) -> Result<(), VmallocError> {
        let mut at = range.start();
        while at < range.end() {
            let left = (range.end().get() - at.get()) >> PAGE_SHIFT;
            let mut batch = [Pfn::ZERO; BATCH];
            let batch = batch.get_mut(..left.min(BATCH as u64) as usize).unwrap_or_default();
            self.alloc_all(batch, gfp)?;
            let end = at.checked_add((batch.len() as u64) << PAGE_SHIFT).ok_or(VmallocError::NoRange)?;
            let part = VirtRange::new(at, end).ok_or(VmallocError::NoRange)?;
            let mut next = batch.iter();
            let mapped = self.table().map_with(part, GfpFlags::KERNEL, |_| {
                next.next().map_or(Pte::None, |&pfn| Pte::mapping(pfn, KERNEL))
            });
            if let Err(error) = mapped {
                self.drop_all(batch);
                return Err(error.into());
            }
            at = end;
        }
        Ok(())
    }

    /// Allocates a frame for each place, or none.
    fn alloc_all(&self, batch: &mut [Pfn], gfp: GfpFlags) -> Result<(), VmallocError> {
        for at in 0..batch.len() {
            match self.source().alloc_pages(gfp, PageOrder::ZERO) {
                Ok(pfn) => batch[at] = pfn,
                Err(error) => {
                    self.drop_all(batch.get(..at).unwrap_or_default());
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Takes a reference to the block of each frame, or to none.
    fn hold(&self, frames: &[Pfn]) -> Result<(), VmallocError> {
        for (at, &pfn) in frames.iter().enumerate() {
            let head = self.head(pfn).and_then(|head| self.source().page(head));
            if !head.is_some_and(|page| page.state() == PageState::Allocated && page.try_get()) {
                self.drop_all(frames.get(..at).unwrap_or_default());
                return Err(VmallocError::BadFrame(pfn));
            }
        }
        Ok(())
    }

    fn drop_all(&self, frames: &[Pfn]) {
        for head in frames.iter().filter_map(|&pfn| self.head(pfn)) {
            // We have had a reference to each, or have allocated it.
            let dropped = self.source().put_page(head);
            debug_assert!(dropped.is_ok(), "a frame was not ours: {dropped:?}");
        }
    }

    /// The first frame of the block that a frame is in.
    fn head(&self, pfn: Pfn) -> Option<Pfn> {
        self.source().phys().head_of(pfn)
    }

    /// Empties the entries of an area, has all CPUs forget them, and then lets go of the frames.
    fn clear(&self, range: VirtRange, kind: AreaKind) {
        let mut gather = TlbGather::for_kernel(self.source(), self.pgd());
        self.table().unmap_range(range, &mut gather, |gather, found| {
            if let (Pte::Present(entry), AreaKind::Vmalloc | AreaKind::Vmap) = (found.pte, kind) {
                gather.page(self.head(entry.pfn).unwrap_or(entry.pfn));
            }
        });
        gather.finish();
    }

    /// The first of these frames that the allocator gives out.
    fn first_ram(&self, first: Pfn, pages: u64) -> Option<Pfn> {
        let managed = |pfn: &Pfn| {
            let page = self.source().page(*pfn);
            page.is_some_and(|page| !matches!(page.state(), PageState::Absent | PageState::Reserved))
        };
        (0..pages).filter_map(|at| first.checked_add(at)).find(managed)
    }
}

/// So many bytes, rounded up to whole pages.
fn whole_pages(bytes: u64) -> Result<u64, VmallocError> {
    let whole = bytes.checked_add(PAGE_SIZE_U64 - 1).ok_or(VmallocError::BadLength)? & !(PAGE_SIZE_U64 - 1);
    if whole == 0 { Err(VmallocError::BadLength) } else { Ok(whole) }
}
