//! Frames that nobody counts: a device's memory in user space.

use super::entry::{PageHold, rights};
use super::{At, MmPager, Pager, Resolved, Signal, Stop};
use crate::addr::{Pfn, VirtRange};
use crate::flags::GfpFlags;
use crate::mm::{MmError, Vma};
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::{Caching, EntryFormat, Mapped, PteBits, TableError};

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Maps the frames from `first` on in a range where nothing is mapped.
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`] if a table could not be had; [`MmError::Exists`] if something is mapped. Nothing is mapped then.
    ///
    /// # Linux
    /// `remap_pfn_range_internal` in `mm/memory.c`.
    pub(super) fn map_special(
        &self,
        vma: &Vma,
        range: VirtRange,
        first: Pfn,
        caching: Caching,
    ) -> Result<(), MmError> {
        let bits = rights(vma) | PteBits::SPECIAL | caching.bits();
        self.table.map_range(range, first, bits, GfpFlags::KERNEL).map_err(|error| match error {
            TableError::Occupied => MmError::Exists,
            _ => MmError::OutOfMemory,
        })
    }

    /// The first write to a page of a private mapping of bare frames: the process gets a copy.
    ///
    /// # Linux
    /// `wp_page_copy` in `mm/memory.c` for a page that `vm_normal_page` does not know.
    pub(super) fn copy_special(&self, at: &At<'_, '_>, entry: Mapped) -> Result<Resolved, Stop> {
        let copy = self.pager.copied_special(entry.pfn)?;
        self.replace(at, entry, copy)
    }
}

impl<'a, S: PageSource, F: EntryFormat> Pager<'a, '_, S, F> {
    /// A frame for a process with the bytes of one that may be anybody's. Where the platform does not reach that, it cannot be copied.
    fn copied_special(&self, from: Pfn) -> Result<PageHold<'a, S>, Stop> {
        let new = self.user_frame()?;
        let pin = self.source.platform().pin();
        let phys = self.source.phys();
        match (phys.kmap_any(&pin, from), phys.kmap(&pin, new.pfn())) {
            (Ok(from), Ok(to)) => to.copy_from(&from),
            _ => return Err(Stop::Signal(Signal::NoPage)),
        }
        Ok(new)
    }
}
