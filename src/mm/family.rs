//! What whole address spaces do to each other: a child copies its parent, an end frees everything.

use super::anon::{AnonVma, Lineage};
use super::error::MmError;
use super::limits::Totals;
use super::space::Mm;
use super::tables::{EmptyTables, Tables};
use super::vma::Vma;
use crate::flags::VmFlags;

impl<'c> Mm<'c> {
    /// Gives the empty `child` copies of the VMAs that a child inherits. On an error the child has some of them.
    ///
    /// # Errors
    /// [`MmError::Overcommit`], [`MmError::OutOfSlots`], [`MmError::OutOfMemory`].
    pub(crate) fn copy_vmas_to<T: Tables>(
        &mut self,
        tables: &mut T,
        child: &mut Mm<'c>,
        child_tables: &mut T,
    ) -> Result<(), MmError> {
        let copied = self.copy_each_vma_to(tables, child, child_tables);
        tables.forked();
        copied
    }

    fn copy_each_vma_to<T: Tables>(
        &mut self,
        tables: &mut T,
        child: &mut Mm<'c>,
        child_tables: &mut T,
    ) -> Result<(), MmError> {
        let mut at = self.set.first();
        while let Some(slot) = at {
            let vma = self.vma(slot);
            at = self.set.next(slot);
            if vma.flags.contains(VmFlags::DONTCOPY) {
                continue;
            }
            let mut spare = child.reserve(1)?;
            let charged = if vma.flags.contains(VmFlags::ACCOUNT) { vma.pages() } else { 0 };
            self.charge(charged)?;
            let copy = self.inherited(&vma).inspect_err(|_| self.uncharge(charged))?;
            child.totals.add(&Totals::of_vma(&copy));
            let new = spare.pop();
            let below = child.set.last();
            child.insert(child_tables, below, new, &copy);
            child.mark_seam(new);
            child.set.note_used(copy.range(), new);
            if !copy.flags.contains(VmFlags::WIPEONFORK) {
                self.set.lock(slot);
                tables.fork(child_tables, &copy)?;
            }
        }
        Ok(())
    }

    /// What a child gets of a VMA: nothing is locked, and anonymous pages have an owner of their own, below the parent's;
    /// memory to be wiped begins anew.
    ///
    /// # Linux
    /// `anon_vma_fork` in `mm/rmap.c`.
    #[doc(alias = "anon_vma_fork")]
    fn inherited(&self, vma: &Vma) -> Result<Vma, MmError> {
        let flags = vma.flags - VmFlags::LOCKED_MASK;
        let anon = match vma.anon.filter(|_| !flags.contains(VmFlags::WIPEONFORK)) {
            Some(parent) => {
                let id = self.context.anon_vmas.fork(parent.id()).ok_or(MmError::OutOfMemory)?;
                Some(AnonVma::new(id, Lineage::Inherited))
            }
            None => None,
        };
        Ok(Vma { flags, anon, ..*vma })
    }

    /// Unmaps all VMAs and gives their slots back. Needs no memory.
    pub(crate) fn unmap_everything(&mut self, tables: &mut impl Tables) {
        self.set.gaps.clear();
        let range = self.set.space();
        self.lock_vmas(range);
        tables.unmap(self.parts_from(self.set.first(), range), Some(EmptyTables { range, hole: range }));
        while let Some(slot) = self.set.first() {
            let vma = self.vma(slot);
            self.remove(tables, slot, &vma);
            let freed = Totals::of_vma(&vma);
            self.totals.sub(&freed);
            self.uncharge(freed.committed);
        }
    }
}
