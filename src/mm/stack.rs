//! Growing a VMA downwards to a fault below it.
//!
//! # Linux
//! `expand_downwards` and `acct_stack_growth` in `mm/vma.c` (6.18).

use super::error::MmError;
use super::limits::Totals;
use super::space::Mm;
use super::vma::{Vma, pgoff_before};
use crate::addr::{PAGE_SHIFT, VirtAddr, VirtRange};
use crate::collections::Slot;
use crate::flags::VmFlags;

impl Mm<'_> {
    /// The VMA that holds `addr`, grown down to it if need be.
    ///
    /// # Errors
    /// [`MmError::NotMapped`] if nothing is mapped there and nothing grows, else why it may not grow:
    /// [`MmError::BelowMinimum`], [`MmError::StackGap`], [`MmError::StackLimit`], [`MmError::AddressSpaceLimit`],
    /// [`MmError::LockLimit`], [`MmError::Overcommit`]. All of them mean SIGSEGV with `SEGV_MAPERR`.
    ///
    /// # Linux
    /// `lock_mm_and_find_vma` in `mm/memory.c`.
    pub fn find_vma_or_grow(&mut self, addr: VirtAddr) -> Result<Slot, MmError> {
        let slot = self.find_vma(addr).ok_or(MmError::NotMapped)?;
        let vma = self.vma(slot);
        if vma.start <= addr {
            return Ok(slot);
        }
        if !vma.flags.contains(VmFlags::GROWSDOWN) {
            return Err(MmError::NotMapped);
        }
        self.grow_down(slot, addr.page_floor())?;
        Ok(slot)
    }

    /// Grows a VMA that grows down, so that it begins at `start`, a page below it.
    fn grow_down(&mut self, slot: Slot, start: VirtAddr) -> Result<(), MmError> {
        if start.get() < self.sysctl().mmap_min_addr {
            return Err(MmError::BelowMinimum);
        }
        if let Some(prev) = self.set.prev(slot).map(|prev| self.vma(prev)) {
            let stops = !prev.flags.contains(VmFlags::GROWSDOWN) && prev.flags.is_accessible();
            if stops && start.get() - prev.end.get() < self.sysctl().stack_guard_gap {
                return Err(MmError::StackGap);
            }
        }
        // Before the limits are looked at, and so even if it does not grow.
        self.prepare_anon(slot)?;
        let vma = self.vma(slot);
        let pages = (vma.start.get() - start.get()) >> PAGE_SHIFT;
        if pages > vma.pgoff.get() {
            return Err(MmError::OutOfMemory);
        }
        self.may_grow(&vma, start, pages)?;
        self.totals.add(&Totals::of(vma.flags, pages));
        self.set.resize(slot, start, vma.end, pgoff_before(vma.pgoff, pages));
        if let Some(grown) = VirtRange::new(start, vma.start) {
            self.set.note_used(grown, slot);
        }
        self.mark_seam(slot);
        Ok(())
    }

    fn may_grow(&self, vma: &Vma, start: VirtAddr, pages: u64) -> Result<(), MmError> {
        self.may_expand(vma.flags, pages)?;
        if vma.end.get() - start.get() > self.rlimits.stack {
            return Err(MmError::StackLimit);
        }
        self.may_lock_future(vma.flags, pages << PAGE_SHIFT)?;
        // Linux charges every stack; one without the flag (mapped with NORESERVE) would never be uncharged.
        if vma.flags.contains(VmFlags::ACCOUNT) {
            self.charge(pages)?;
        }
        Ok(())
    }
}
