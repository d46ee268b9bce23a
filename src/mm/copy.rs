//! Moving a part of a VMA elsewhere, growing one where it is.
//!
//! # Linux
//! `copy_vma` and `vma_merge_extend` in `mm/vma.c`, `move_vma` in `mm/mremap.c` (6.18).

use super::error::MmError;
use super::limits::Totals;
use super::merge::{Proposal, Reach, Source};
use super::pool::Reserved;
use super::set::Beside;
use super::space::Mm;
use super::tables::Tables;
use super::unmap::PreparedUnmap;
use super::vma::{Vma, anon_pgoff};
use crate::addr::{PAGE_SHIFT, VirtAddr, VirtRange};
use crate::collections::Slot;
use crate::flags::VmFlags;

/// What becomes of the range that was moved from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SourceFate {
    /// It is unmapped.
    Unmap,
    /// It stays mapped, without its pages.
    Keep,
}

/// A move that can be done without fail.
#[derive(Debug)]
#[must_use]
pub(crate) struct PreparedMove<'c> {
    vma: Vma,
    from: VirtRange,
    to: VirtRange,
    copy: Reserved<'c>,
    source: Option<PreparedUnmap<'c>>,
}

impl<'c> Mm<'c> {
    /// Prepares to move `from`, a part of `vma` (or nothing of it, for an alias), to `to`, which is as long or longer, and of which what is mapped there
    /// will be unmapped first: that makes room under limits, and leaves what it was promised.
    ///
    /// # Errors
    /// [`MmError::TooManyVmas`], [`MmError::NotDivisible`], [`MmError::OutOfSlots`], [`MmError::OutOfMemory`], [`MmError::Overcommit`].
    #[doc(alias = "prep_move_vma")]
    pub(crate) fn prepare_move(
        &mut self,
        tables: &mut impl Tables,
        vma: &Vma,
        from: VirtRange,
        to: VirtRange,
        fate: SourceFate,
        mut target: Option<&mut PreparedUnmap<'c>>,
    ) -> Result<PreparedMove<'c>, MmError> {
        let vmas = match &target {
            Some(target) => self.map_count_after(target),
            None => self.map_count().into(),
        };
        if vmas + 3 >= self.sysctl().max_map_count.into() {
            return Err(MmError::TooManyVmas);
        }
        if from != vma.range() && !vma.may_split() {
            return Err(MmError::NotDivisible);
        }
        let copy = self.reserve(1)?;
        let mut source = match fate {
            SourceFate::Unmap => Some(self.prepare_unmap_later(from)?),
            SourceFate::Keep => None,
        };
        let mut charge = if vma.flags.contains(VmFlags::ACCOUNT) { to.len() >> PAGE_SHIFT } else { 0 };
        let mut total_vm = self.totals.total_vm;
        if let Some(source) = &mut source {
            charge = source.bequeath(charge);
        }
        if let Some(target) = &mut target {
            charge = target.bequeath(charge);
            total_vm -= target.freed.total_vm;
        }
        self.context.overcommit.charge(charge, total_vm)?;
        if !from.is_empty() {
            // A fault might need a table that is not prepared.
            self.lock_vmas(from);
            if let Err(error) = tables.prepare_move(vma, from, to.start()) {
                self.uncharge(charge);
                self.free_tables_if_free(tables, to);
                return Err(error);
            }
        }
        Ok(PreparedMove { vma: *vma, from, to, copy, source })
    }

    /// Moves what was prepared. Nothing may lie at the new range. Answers the VMA that it is part of then.
    pub(crate) fn commit_move(&mut self, tables: &mut impl Tables, mut prepared: PreparedMove<'c>) -> Slot {
        let PreparedMove { vma, from, to, .. } = prepared;
        let before = self.totals.total_vm;
        let untouched = vma.backing.is_anonymous() && vma.anon.is_none();
        let pgoff = if untouched { anon_pgoff(to.start()) } else { vma.pgoff_at(from.start()) };
        let new = Proposal { start: to.start(), end: to.end(), pgoff, ..Proposal::of(&vma) };
        let beside = self.beside(to);
        let slot = self.place_new(tables, &new, beside, Reach::BothSides, &mut prepared.copy);
        if !from.is_empty() {
            tables.move_pages(&vma, from, to.start());
        }
        match prepared.source {
            Some(source) => {
                // For a moment both are mapped, which is no peak.
                let peak = self.hiwater_vm.max(before);
                self.commit_unmap(tables, source);
                self.hiwater_vm = peak;
                self.find_vma(to.start()).unwrap_or(slot)
            }
            None => {
                if !from.is_empty() {
                    self.forsake(from, slot);
                }
                slot
            }
        }
    }

    /// What a range that stays mapped without its pages loses: it is no longer locked (Linux clears the flag and forgets
    /// the sum), and if the VMA moved as a whole, its anonymous pages have another owner.
    #[doc(alias = "dontunmap_complete")]
    fn forsake(&mut self, from: VirtRange, copy: Slot) {
        let Some(slot) = self.lookup(from.start()) else { return };
        let vma = self.vma(slot);
        self.retag(slot, vma.flags - VmFlags::LOCKED_MASK);
        if slot != copy && vma.range() == from {
            self.set_anon(slot, None);
        }
        self.mark_seams(slot);
    }

    /// Gives a whole VMA other flags, without merging; the sums follow.
    pub(crate) fn retag(&mut self, slot: Slot, flags: VmFlags) {
        let vma = self.vma(slot);
        self.totals.sub(&Totals::of_vma(&vma));
        self.set_flags(slot, flags);
        self.totals.add(&Totals::of(flags, vma.pages()));
    }

    /// Notes that there may be guard markers in a VMA. No merge is decided by it, and it is in no sum, so the lock held for reading is enough.
    ///
    /// # Linux
    /// `vma_set_atomic_flag` in `include/linux/mm.h`.
    pub(crate) fn note_guards(&self, slot: Slot) {
        self.set.at(slot).note_guards();
    }

    /// Whether `vma` can grow to `end` where it is.
    #[doc(alias = "vma_expandable")]
    pub(crate) fn is_expandable(&self, vma: &Vma, end: VirtAddr) -> bool {
        end.get() <= self.sysctl().task_size
            && vma.start.get() >= self.sysctl().dac_mmap_min_addr
            && self.find_vma_intersection(vma.end, end).is_none()
    }

    /// Grows `vma` up to `end`, up to which nothing lies.
    ///
    /// # Errors
    /// [`MmError::OutOfSlots`], [`MmError::Overcommit`], [`MmError::CannotExpand`] for VMAs that never merge.
    pub(crate) fn expand_in_place(
        &mut self,
        tables: &mut impl Tables,
        vma: &Vma,
        end: VirtAddr,
    ) -> Result<(), MmError> {
        if vma.flags.intersects(VmFlags::SPECIAL) {
            return Err(MmError::CannotExpand);
        }
        let pages = (end.get() - vma.end.get()) >> PAGE_SHIFT;
        let mut none = self.reserve(0)?;
        if vma.flags.contains(VmFlags::ACCOUNT) {
            self.charge(pages)?;
        }
        // No VMA stands behind the new part: that of a child may take in an untouched neighbour here.
        let pgoff = vma.pgoff_at(vma.end);
        let new = Proposal { start: vma.end, end, pgoff, source: Source::None, ..Proposal::of(vma) };
        let beside = VirtRange::new(vma.end, end).map_or(Beside::default(), |range| self.beside(range));
        self.place_new(tables, &new, beside, Reach::BothSides, &mut none);
        Ok(())
    }
}
