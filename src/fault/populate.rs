//! Pages that are wanted before they are touched.

use super::{Access, At, Held, Look, MmPager, Stop};
use crate::addr::VirtRange;
use crate::cache::Step;
use crate::collections::Slot;
use crate::mm::{Mm, MmError, Populate, Touch};
use crate::phys::PageSource;
use crate::table::{EntryFormat, PteBits};

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// What the last call has left to be made resident. It is to be [done](Populate::step) when the lock that the call ran under has been let go of.
    pub const fn take_deferred(&mut self) -> Option<Populate> {
        self.deferred.take()
    }

    /// Faults on each page of `rest` that is not there, or cannot be written to if that is wanted.
    ///
    /// # Linux
    /// `faultin_page` in `mm/gup.c`, in a loop.
    #[doc(alias = "faultin_page")]
    pub(super) fn fault_in(
        &self,
        mm: &Mm<'_>,
        slot: Slot,
        rest: &mut VirtRange,
        touch: Touch,
    ) -> Result<Step, MmError> {
        let access = if touch == Touch::Write { Access::Write } else { Access::Read };
        while !rest.is_empty() {
            // Looked at anew: the first of these faults may have given it an owner of anonymous pages.
            let at = At { mm: Held::Space(mm), slot, vma: mm.vma(slot), page: rest.start(), access };
            match self.fault_in_page(&at) {
                Ok(()) => {}
                Err(Stop::Wait(ticket)) => return Ok(Step::Wait(ticket)),
                Err(Stop::Signal(_)) => return Err(MmError::Unreachable),
                Err(Stop::OutOfMemory) => return Err(MmError::OutOfMemory),
            }
            self.faults.begin();
            *rest = VirtRange::new(super::zap::after(at.page), rest.end()).unwrap_or_default();
        }
        Ok(Step::Done)
    }

    fn fault_in_page(&self, at: &At<'_, '_>) -> Result<(), Stop> {
        loop {
            match self.look(at.page) {
                Look::Page(entry) | Look::Huge(entry)
                    if at.access != Access::Write || entry.bits.contains(PteBits::WRITE) =>
                {
                    self.note_access(at, PteBits::ACCESSED);
                    return Ok(());
                }
                _ => self.resolve_and_count(at).map(drop)?,
            }
        }
    }
}
