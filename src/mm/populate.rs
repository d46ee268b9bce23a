//! Making a range resident, as mlock and `MAP_POPULATE` do.
//!
//! # Linux
//! `__mm_populate` and `populate_vma_page_range` in `mm/gup.c`.

use super::error::MmError;
use super::space::Mm;
use super::tables::{Tables, Touch};
use super::unmap::clip;
use crate::addr::{VirtAddr, VirtRange};
use crate::collections::Slot;
use crate::flags::VmFlags;

/// What to do at a page that cannot be made resident.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnError {
    /// Go on with the next VMA.
    Skip,
    /// Stop.
    Stop,
}

impl Mm<'_> {
    /// Makes what is mapped in `range` resident; holes are no error.
    ///
    /// # Errors
    /// With [`OnError::Stop`], [`MmError::Unreachable`] or [`MmError::OutOfMemory`] at the first page that cannot be.
    pub(crate) fn populate(
        &mut self,
        tables: &mut impl Tables,
        range: VirtRange,
        on_error: OnError,
    ) -> Result<(), MmError> {
        let mut at = if range.is_empty() { None } else { self.find_vma(range.start()) };
        while let Some(slot) = at {
            let vma = self.set.get(slot);
            if vma.start >= range.end() {
                break;
            }
            at = self.set.next(slot);
            if vma.flags.intersects(VmFlags::IO | VmFlags::PFNMAP) {
                continue;
            }
            match self.populate_vma(tables, slot, clip(&vma, range).range()) {
                Err(error) if on_error == OnError::Stop => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes a part of one VMA resident: by writing where that breaks copy-on-write, else by reading.
    pub(crate) fn populate_vma(
        &mut self,
        tables: &mut impl Tables,
        slot: Slot,
        range: VirtRange,
    ) -> Result<(), MmError> {
        let flags = self.set.get(slot).flags;
        if flags.contains(VmFlags::LOCKONFAULT) {
            return Ok(());
        }
        if !flags.is_accessible() || flags.contains(VmFlags::EXECUTE_ONLY_KEY) {
            return Err(MmError::Unreachable);
        }
        let touch = if flags.is_private_writable() { Touch::Write } else { Touch::Read };
        self.touch_range(tables, slot, range, touch)
    }

    /// Touches all pages of a part of one VMA, which allows it.
    pub(crate) fn touch_range(
        &mut self,
        tables: &mut impl Tables,
        slot: Slot,
        range: VirtRange,
        touch: Touch,
    ) -> Result<(), MmError> {
        let vma = self.set.get(slot);
        if self.needs_anon_in(&vma, range, touch) {
            self.prepare_anon(slot)?;
        }
        tables.populate(&self.set.get(slot), range, touch)
    }

    fn needs_anon_in(&self, vma: &super::vma::Vma, range: VirtRange, touch: Touch) -> bool {
        let last = VirtAddr::from(range.end().get() - 1);
        let inner = VirtAddr::from((range.start().get() | (super::context::HUGE_SIZE - 1)).saturating_add(1));
        // A huge page that fits at all fits at the start, at the end, or after the first boundary.
        self.touch_needs_anon(vma, range.start(), touch)
            || self.touch_needs_anon(vma, last, touch)
            || (inner < range.end() && self.touch_needs_anon(vma, inner, touch))
    }
}
