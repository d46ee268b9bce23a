//! Pages that appear elsewhere in the same address space.

use super::MmPager;
use super::entry::one_page;
use super::gather::Gather;
use super::zap::after;
use crate::addr::{VirtAddr, VirtRange};
use crate::flags::GfpFlags;
use crate::mm::MmError;
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::{EntryFormat, Leaf, Pte};

/// How many entries are moved at a time.
const BATCH: usize = 64;

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Makes the tables that the entries of `from` will need at `to`.
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`].
    pub(super) fn prepare_entries(&self, from: VirtRange, to: VirtAddr) -> Result<(), MmError> {
        let mut at = from.start();
        while at < from.end() {
            let next = {
                let pin = self.pager.source.platform().pin();
                match self.table.lock(&pin, at) {
                    Leaf::Absent { next } => Some(next),
                    Leaf::Huge(_) | Leaf::Table(_) => None,
                }
            };
            let Some(next) = next else {
                let target = shifted(at, from, to);
                self.table.ensure(target, GfpFlags::KERNEL).map_err(|_| MmError::OutOfMemory)?;
                at = after(at);
                continue;
            };
            at = next;
        }
        Ok(())
    }

    /// Moves the entries of `from` to `to`, where no page is and tables are.
    ///
    /// Entries leave the old place, their translations are flushed, then they appear at the new: nobody who comes from the page can free it
    /// through its new place while a CPU still reaches it through the old.
    ///
    /// # Linux
    /// `move_page_tables` in `mm/mremap.c`.
    #[doc(alias = "move_page_tables")]
    pub(super) fn move_entries(&self, from: VirtRange, to: VirtAddr) {
        let mut at = from.start();
        while at < from.end() {
            let mut batch = [(VirtAddr::ZERO, Pte::None); BATCH];
            let mut taken = 0;
            let mut gather = self.gather();
            at = self.take_batch(at, from.end(), &mut batch, &mut taken, &mut gather);
            gather.finish();
            for &(old, entry) in batch.iter().take(taken) {
                let new = shifted(old, from, to);
                let pin = self.pager.source.platform().pin();
                if let Leaf::Table(table) = self.table.lock(&pin, new) {
                    table.set(new, entry);
                }
            }
        }
    }

    fn take_batch(
        &self,
        from: VirtAddr,
        end: VirtAddr,
        batch: &mut [(VirtAddr, Pte); BATCH],
        taken: &mut usize,
        gather: &mut Gather<'_, S>,
    ) -> VirtAddr {
        let pin = self.pager.source.platform().pin();
        match self.table.lock(&pin, from) {
            Leaf::Absent { next } => next,
            // Split before the move began.
            Leaf::Huge(huge) => huge.end(),
            Leaf::Table(table) => {
                let end = end.min(table.end());
                let range = VirtRange::new(from, end).unwrap_or_default();
                for (at, _) in table.iter(range) {
                    let Some(place) = batch.get_mut(*taken) else { return at };
                    *place = (at, table.take(at));
                    *taken += 1;
                    if place.1.mapped().is_some() {
                        gather.flush_range(one_page(at));
                    }
                }
                end
            }
        }
    }
}

fn shifted(at: VirtAddr, from: VirtRange, to: VirtAddr) -> VirtAddr {
    VirtAddr::from(to.get().wrapping_add(at.get() - from.start().get()))
}
