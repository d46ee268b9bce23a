//! Taking a range out of an address space: prepared, then done.
//!
//! munmap, brk, mremap and `MAP_FIXED` share this. What is prepared holds the one slot that a hole in the middle of a VMA
//! costs, and knows what will be freed; doing it cannot fail.

use super::error::MmError;
use super::limits::Totals;
use super::pool::Reserved;
use super::set::Beside;
use super::space::Mm;
use super::tables::{EmptyTables, Tables};
use super::vma::Vma;
use crate::addr::{VirtAddr, VirtRange};
use crate::collections::Slot;
use crate::flags::VmFlags;

/// The most bytes that a page table below the root stands for: those of one entry of an x86-64 root.
const TABLE_REACH: u64 = 1 << 39;

/// A range that can be unmapped without fail.
#[derive(Debug)]
#[must_use]
pub(crate) struct PreparedUnmap<'c> {
    range: VirtRange,
    spare: Reserved<'c>,
    /// What the sums lose.
    pub(super) freed: Totals,
    /// How many of the committed pages stay promised: to what comes in the place of this.
    inherited: u64,
}

/// What becomes of page tables that are empty when a range was unmapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Emptied {
    Go,
    Stay,
}

impl PreparedUnmap<'_> {
    /// Whether nothing is mapped there anyway.
    const fn is_free(&self) -> bool {
        self.freed.total_vm == 0
    }

    /// Leaves what is promised for the range to `pages` committed pages that come in its place. Answers how many more than those are wanted.
    pub(super) const fn bequeath(&mut self, pages: u64) -> u64 {
        self.inherited = if pages < self.freed.committed { pages } else { self.freed.committed };
        pages - self.inherited
    }
}

impl<'c> Mm<'c> {
    /// Prepares to unmap `range`, which may be unmapped already.
    ///
    /// # Errors
    /// [`MmError::TooManyVmas`] for a hole in the middle of a VMA when the limit is reached, [`MmError::NotDivisible`],
    /// [`MmError::OutOfSlots`].
    ///
    /// # Linux
    /// `vms_gather_munmap_vmas` in `mm/vma.c`.
    pub(crate) fn prepare_unmap(&mut self, range: VirtRange) -> Result<PreparedUnmap<'c>, MmError> {
        let first = self.set.find_to_change(range.start());
        let hole = first
            .map(|slot| self.set.node(slot))
            .is_some_and(|at| at.start() < range.start() && at.end() > range.end());
        if hole && self.map_count() >= self.sysctl().max_map_count {
            return Err(MmError::TooManyVmas);
        }
        self.prepare_unmap_from(first, range, usize::from(hole))
    }

    /// Whether the limits allow so many more pages with these flags when `unmapped` has gone.
    ///
    /// # Errors
    /// [`MmError::AddressSpaceLimit`].
    pub(crate) fn may_expand_beside(
        &self,
        unmapped: Option<&PreparedUnmap<'_>>,
        flags: VmFlags,
        pages: u64,
    ) -> Result<(), MmError> {
        let mut totals = self.totals;
        if let Some(unmapped) = unmapped {
            totals.sub(&unmapped.freed);
        }
        totals.may_expand(&self.rlimits, flags, pages)
    }

    /// Like [`prepare_unmap`](Self::prepare_unmap), for a range that may lie in the middle of a larger VMA by the time
    /// that it is unmapped.
    pub(crate) fn prepare_unmap_later(&mut self, range: VirtRange) -> Result<PreparedUnmap<'c>, MmError> {
        let first = self.set.find_to_change(range.start());
        self.prepare_unmap_from(first, range, 1)
    }

    fn prepare_unmap_from(
        &self,
        first: Option<Slot>,
        range: VirtRange,
        spare: usize,
    ) -> Result<PreparedUnmap<'c>, MmError> {
        let mut freed = Totals::default();
        let mut at = first.filter(|_| !range.is_empty());
        while let Some((_, vma)) = self.next_overlapping(&mut at, range) {
            vma.may_split_around(range)?;
            freed.add(&Totals::of_vma(&clip(&vma, range)));
        }
        let spare = Reserved::new(&self.context.pool, spare)?;
        Ok(PreparedUnmap { range, spare, freed, inherited: 0 })
    }

    /// How many VMAs there will be when this has been unmapped.
    pub(super) fn map_count_after(&self, prepared: &PreparedUnmap<'_>) -> u64 {
        let range = prepared.range;
        let change: i64 = self
            .overlapping(range)
            .map(|(_, vma)| i64::from(vma.start < range.start()) + i64::from(vma.end > range.end()) - 1)
            .sum();
        u64::from(self.map_count()).saturating_add_signed(change)
    }

    /// The VMAs that share a byte with `range`, upwards.
    pub(crate) fn overlapping(&self, range: VirtRange) -> impl Iterator<Item = (Slot, Vma)> + '_ {
        self.overlapping_from(self.find_vma(range.start()), range)
    }

    /// The same; `first` is the first that ends above the start of the range.
    fn overlapping_from(
        &self,
        first: Option<Slot>,
        range: VirtRange,
    ) -> impl Iterator<Item = (Slot, Vma)> + '_ {
        let mut at = first.filter(|_| !range.is_empty());
        core::iter::from_fn(move || self.next_overlapping(&mut at, range))
    }

    /// The VMA at `at`, if it begins before the range ends; then that has the next one.
    #[inline(always)]
    fn next_overlapping(&self, at: &mut Option<Slot>, range: VirtRange) -> Option<(Slot, Vma)> {
        // Of the one that is beyond nothing else is read.
        let slot = at.filter(|&slot| self.set.node(slot).start() < range.end())?;
        *at = self.set.next(slot);
        Some((slot, self.set.get(slot)))
    }

    /// Unmaps what was prepared. Nothing may have changed in the range since, except that VMAs elsewhere may have. Answers the neighbours of
    /// the range.
    ///
    /// # Linux
    /// `vms_complete_munmap_vmas` in `mm/vma.c`.
    pub(crate) fn commit_unmap(&mut self, tables: &mut impl Tables, prepared: PreparedUnmap<'c>) -> Beside {
        self.commit_unmap_and(tables, prepared, Emptied::Go)
    }

    /// Like [`commit_unmap`](Self::commit_unmap), without giving page tables back: some may have been made for what is to
    /// come.
    pub(crate) fn commit_unmap_keeping_tables(
        &mut self,
        tables: &mut impl Tables,
        prepared: PreparedUnmap<'c>,
    ) -> Beside {
        self.commit_unmap_and(tables, prepared, Emptied::Stay)
    }

    fn commit_unmap_and(
        &mut self,
        tables: &mut impl Tables,
        mut prepared: PreparedUnmap<'c>,
        emptied: Emptied,
    ) -> Beside {
        let range = prepared.range;
        if prepared.is_free() {
            return self.beside(range);
        }
        self.hiwater_vm = self.peak_vm();
        let first = self.set.find_to_change(range.start());
        let below = match first {
            Some(first) if self.set.node(first).start() < range.start() => Some(first),
            Some(first) => self.set.prev(first),
            None => self.set.last(),
        };
        let above = self.lock_from(first, range);
        let emptied = match emptied {
            Emptied::Go => self.empty_tables(range, Beside { below, above }),
            Emptied::Stay => None,
        };
        tables.unmap(self.parts_from(first, range), emptied);
        let mut at = first;
        while let Some(slot) = at.filter(|&slot| self.set.node(slot).start() < range.end()) {
            let vma = self.set.get(slot);
            at = self.set.next(slot);
            self.cut(tables, slot, &vma, range, &mut prepared.spare);
        }
        let above = match below {
            Some(below) => self.set.next(below),
            None => self.set.first(),
        };
        self.set.note_free(range, above);
        self.totals.sub(&prepared.freed);
        self.uncharge(prepared.freed.committed - prepared.inherited);
        // What comes next is often a mapping of the same place.
        self.set.note_near(above.or(below));
        Beside { below, above }
    }

    /// Gives back the page tables of a range that was unmapped, if nothing has been mapped there since.
    pub(crate) fn free_tables_if_free(&mut self, tables: &mut impl Tables, range: VirtRange) {
        let beside = self.set.beside(range);
        if let Some(emptied) = beside.and_then(|beside| self.empty_tables(range, beside)) {
            tables.free_tables(emptied);
        }
    }

    /// The page tables of a range that was unmapped, or soon will be, between its neighbours. They may reach into it yet.
    fn empty_tables(&self, range: VirtRange, beside: Beside) -> Option<EmptyTables> {
        let floor =
            beside.below.map_or(VirtAddr::ZERO, |below| self.set.node(below).end().min(range.start()));
        let task_end = VirtAddr::from(self.sysctl().task_size);
        let ceiling = beside.above.map_or(task_end, |above| self.set.node(above).start().max(range.end()));
        // No table of those that a process has many of covers more than this.
        let floor = floor.max(VirtAddr::from(range.start().get() & !(TABLE_REACH - 1)));
        let ceiling = ceiling
            .min(VirtAddr::from(range.end().get().saturating_add(TABLE_REACH - 1) & !(TABLE_REACH - 1)));
        let hole = VirtRange::new(floor, ceiling).filter(|hole| hole.encloses(range))?;
        Some(EmptyTables { range, hole })
    }

    /// Gives back the page tables that are empty and lie wholly in `range`, whatever is mapped there.
    ///
    /// # Linux
    /// `try_to_free_pte` in `mm/pt_reclaim.c`.
    #[doc(alias = "try_to_free_pte")]
    pub fn free_empty_tables(&mut self, tables: &mut impl Tables, range: VirtRange) {
        // No fault is on its way to one of them.
        self.lock_vmas(range);
        tables.free_tables(EmptyTables { range, hole: range });
    }

    /// Locks the VMAs that share a byte with `range`, of which `first` is the lowest. Answers the one that holds the byte after the range, or lies next above.
    fn lock_from(&mut self, first: Option<Slot>, range: VirtRange) -> Option<Slot> {
        let mut at = first;
        while let Some(slot) = at.filter(|&slot| self.set.node(slot).start() < range.end()) {
            self.set.lock(slot);
            if self.set.node(slot).end() > range.end() {
                break;
            }
            at = self.set.next(slot);
        }
        at
    }

    /// What lies in `range` of the VMAs from `first` on, upwards.
    pub(super) fn parts_from(
        &self,
        first: Option<Slot>,
        range: VirtRange,
    ) -> impl Iterator<Item = VirtRange> + '_ {
        let vmas = core::iter::successors(first, |&slot| self.set.next(slot)).map(|slot| self.set.node(slot));
        let inside = vmas.take_while(move |vma| vma.start() < range.end());
        inside
            .filter_map(move |vma| VirtRange::new(vma.start().max(range.start()), vma.end().min(range.end())))
    }

    /// Takes `range` out of one VMA.
    fn cut(
        &mut self,
        tables: &mut impl Tables,
        slot: Slot,
        vma: &Vma,
        range: VirtRange,
        spare: &mut Reserved<'c>,
    ) {
        let keeps_below = vma.start < range.start();
        let keeps_above = vma.end > range.end();
        if !keeps_below && !keeps_above {
            return self.remove(tables, slot, vma);
        }
        // Whoever goes through the file's VMAs must not go on in a range that is somebody else's by then.
        tables.begin_change(vma);
        if keeps_below {
            self.set.resize(slot, vma.start, range.start(), vma.pgoff);
        } else {
            self.set.resize(slot, range.end(), vma.end, vma.pgoff_at(range.end()));
        }
        if keeps_below && keeps_above {
            let new = spare.pop();
            self.insert(tables, Some(slot), new, &vma.part(range.end(), vma.end));
        }
        tables.end_change(vma);
    }
}

/// The part of `vma` that lies in `range`, which it overlaps.
pub(crate) fn clip(vma: &Vma, range: VirtRange) -> Vma {
    let start: VirtAddr = vma.start.max(range.start());
    let end: VirtAddr = vma.end.min(range.end());
    vma.part(start, end)
}
