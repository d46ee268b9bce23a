//! Filling the entries of a range.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Relaxed, Release};
use core::sync::atomic::fence;

use super::{GROUP, rest};
use crate::addr::{PAGE_SHIFT, Pfn, VirtAddr, VirtRange};
use crate::flags::GfpFlags;
use crate::phys::PageSource;
use crate::platform::{CpuPin, Platform};
use crate::table::TableError;
use crate::table::format::{self, EntryFormat, Pte, PteBits};
use crate::table::frame::{self, Frame};
use crate::table::leaf::Leaf;
use crate::table::root::{Cursor, PageTable, Whole};

impl<'a, S: PageSource, F: EntryFormat> PageTable<'a, S, F> {
    /// Maps the frames from `first` on at the pages of a range, all with the same bits.
    ///
    /// # Errors
    /// [`TableError::Misaligned`] if the range is not one of whole pages; [`TableError::OutOfRange`] if addresses or frames end before it does;
    /// [`TableError::Occupied`] if anything is mapped in it; as [`ensure`](Self::ensure). No page is mapped then, but there may be tables more.
    ///
    /// # Locking
    /// Allocates; called with no lock held. Nobody else maps anything in the range meanwhile, or makes a table where the range has all of its addresses.
    ///
    /// # Linux
    /// `remap_pfn_range` in `mm/memory.c`, `vmap_range` in `mm/vmalloc.c`.
    #[doc(alias = "remap_pfn_range")]
    #[doc(alias = "vmap_range")]
    pub fn map_range(
        &self,
        range: VirtRange,
        first: Pfn,
        bits: PteBits,
        gfp: GfpFlags,
    ) -> Result<(), TableError> {
        let pages = range.len() >> PAGE_SHIFT;
        first.checked_add(pages).ok_or(TableError::OutOfRange)?;
        // From frame to frame an entry changes by the same number: the frame's field is counted up, or down where it is written inverted.
        let encode = |pfn| F::encode(0, Pte::mapping(pfn, bits));
        let mut raw = encode(first);
        let step = first.checked_add(1).map_or(0, |second| encode(second).wrapping_sub(raw));
        self.fill_range(range, gfp, |_, entries| {
            raw = fill_run(entries, raw, step);
            entries.len() as u32
        })
    }

    /// Writes what `entry` answers into the empty entries of a range, in order of their addresses.
    ///
    /// # Errors
    /// As [`map_range`](Self::map_range).
    ///
    /// # Locking
    /// As [`map_range`](Self::map_range); `entry` is called with a table locked, or in a pin.
    pub fn map_with(
        &self,
        range: VirtRange,
        gfp: GfpFlags,
        mut entry: impl FnMut(VirtAddr) -> Pte,
    ) -> Result<(), TableError> {
        self.fill_range(range, gfp, |start, entries| {
            let mut used = 0;
            for (page, place) in (0..).zip(entries) {
                let raw = F::encode(0, entry(VirtAddr::from(start.get() + (page << PAGE_SHIFT))));
                used += u32::from(raw != 0);
                place.store(raw, Relaxed);
            }
            used
        })
    }

    /// Fills the entries of a range, in which nothing is mapped, a table at a time; `fill` says how many it has left in use.
    #[inline]
    fn fill_range(
        &self,
        range: VirtRange,
        gfp: GfpFlags,
        mut fill: impl FnMut(VirtAddr, &[AtomicU64]) -> u32,
    ) -> Result<(), TableError> {
        let mut unlinked = self.prepare(range, gfp)?;
        let (mut addr, mut cursor) = (range.start(), Cursor::start());
        while addr < range.end() {
            let pin = self.source.platform().pin();
            match self.lock_along(&pin, addr, &mut cursor, Whole) {
                Leaf::Table(table) => {
                    let entries = table.groups(rest(range, addr)).entries;
                    // Release: what the frames hold was written before somebody finds them here.
                    fence(Release);
                    table.note_used(table.used() + fill(addr, entries));
                }
                Leaf::Absent { .. } => {
                    // One that is the range's in part was made before; who has taken it away?
                    let is_whole = format::span(1, addr).is_some_and(|span| range.encloses(span));
                    let table = if is_whole { unlinked.take() } else { None };
                    let table = table.ok_or(TableError::Occupied)?;
                    match self.link_filled(&pin, addr, &cursor, table, &mut fill) {
                        Ok(()) => self.count_table(),
                        Err(error) => {
                            frame::free(self.source, table);
                            return Err(error);
                        }
                    }
                }
                Leaf::Huge(_) => return Err(TableError::Occupied),
            }
            addr = format::next(1, addr);
        }
        Ok(())
    }

    /// Makes the tables of a range, in which nothing is mapped. Leaf tables that are the range's alone are not in the tree yet, so that they can be
    /// filled while nobody finds them.
    fn prepare(&self, range: VirtRange, gfp: GfpFlags) -> Result<Unlinked<'a, S>, TableError> {
        if !range.start().is_page_aligned() || !range.end().is_page_aligned() {
            return Err(TableError::Misaligned);
        }
        let mut unlinked = Unlinked { source: self.source, first: None };
        let (mut addr, mut cursor) = (range.start(), Cursor::start());
        while addr < range.end() {
            let part = rest(range, addr);
            if !self.is_there_and_empty(part, &mut cursor)? {
                // Nobody else maps anything here meanwhile, so a new table is empty.
                if format::span(1, addr).is_some_and(|span| part.encloses(span)) {
                    if cursor.table_for(addr).is_none() {
                        self.ensure_level(addr, 1, gfp)?;
                    }
                    unlinked.add(gfp)?;
                } else {
                    self.ensure_level(addr, 0, gfp)?;
                }
            }
            addr = format::next(1, addr);
        }
        Ok(unlinked)
    }

    /// Whether the range begins in a leaf table that is there.
    ///
    /// # Errors
    /// [`TableError::Occupied`] if that has an entry of the range.
    fn is_there_and_empty(&self, range: VirtRange, cursor: &mut Cursor) -> Result<bool, TableError> {
        let pin = self.source.platform().pin();
        match self.lock_along(&pin, range.start(), cursor, Whole) {
            Leaf::Absent { .. } => Ok(false),
            Leaf::Table(table) if table.iter(range).next().is_none() => Ok(true),
            Leaf::Table(_) | Leaf::Huge(_) => Err(TableError::Occupied),
        }
    }

    /// Puts a table that is in no tree in its place, once it is filled.
    ///
    /// # Errors
    /// [`TableError::Occupied`] if another is there.
    #[inline]
    fn link_filled(
        &self,
        pin: &CpuPin<'_>,
        addr: VirtAddr,
        cursor: &Cursor,
        table: Pfn,
        fill: impl FnOnce(VirtAddr, &[AtomicU64]) -> u32,
    ) -> Result<(), TableError> {
        let half = F::half(addr).ok_or(TableError::OutOfRange)?;
        let above = self.reach_along(pin, addr, cursor)?;
        let frame = Frame::open(self.source.phys(), pin, table)?;
        frame.set_used(fill(addr, frame.entries()));
        let is_linked = above.install(format::index::<F>(1, addr), F::table(1, half, table));
        if is_linked { Ok(()) } else { Err(TableError::Occupied) }
    }
}

/// Leaf tables that are in no tree yet, with anything in their entries.
struct Unlinked<'a, S: PageSource> {
    source: &'a S,
    /// One of them, which keeps the others.
    first: Option<Pfn>,
}

impl<S: PageSource> Unlinked<'_, S> {
    fn add(&mut self, gfp: GfpFlags) -> Result<(), TableError> {
        let table = frame::alloc_unfilled(self.source, gfp)?;
        match self.first.map(|first| frame::table_page(self.source.phys(), first)) {
            Some(first) => frame::keep(self.source.phys(), first?, table),
            None => self.first = Some(table),
        }
        Ok(())
    }

    fn take(&mut self) -> Option<Pfn> {
        let first = frame::table_page(self.source.phys(), self.first?).ok()?;
        frame::take_kept(self.source.phys(), first).or_else(|| self.first.take())
    }
}

impl<S: PageSource> Drop for Unlinked<'_, S> {
    fn drop(&mut self) {
        if let Some(first) = self.first {
            frame::free(self.source, first);
        }
    }
}

/// Writes entries, of which each is by `step` greater than the one before; what follows the last.
#[inline]
fn fill_run(entries: &[AtomicU64], first: u64, step: u64) -> u64 {
    let mut raw = first;
    for group in entries.chunks(GROUP) {
        for entry in group {
            entry.store(raw, Relaxed);
            raw = raw.wrapping_add(step);
        }
    }
    raw
}
