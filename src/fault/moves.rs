//! Pages that appear elsewhere in the same address space.

use super::MmPager;
use super::entry::one_page;
use super::gather::Gather;
use super::huge_range::is_huge_aligned;
use crate::addr::{VirtAddr, VirtRange};
use crate::flags::GfpFlags;
use crate::mm::MmError;
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::{EntryFormat, HUGE_SIZE, Leaf, Pte};

/// How many entries are moved at a time.
const BATCH: usize = 64;

/// What must be there before entries can be moved to a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Needed {
    /// Nothing, since nothing is moved.
    Nothing,
    /// The way to a huge entry.
    Huge,
    /// The leaf table.
    Table,
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Makes the tables that the entries of `from` will need at `to`.
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`].
    pub(super) fn prepare_entries(&self, from: VirtRange, to: VirtAddr) -> Result<(), MmError> {
        let mut at = from.start();
        while at < from.end() {
            let target = shifted(at, from, to);
            let (needed, next) = self.needed_for_move(at, from.end(), target);
            let made = match needed {
                Needed::Nothing => Ok(()),
                Needed::Huge => self.table.ensure_huge(target, GfpFlags::KERNEL),
                // What is huge there goes before the move, and its table would go with it.
                Needed::Table => self.table.ensure(target, GfpFlags::KERNEL).map(|()| self.split_at(target)),
            };
            made.map_err(|_| MmError::OutOfMemory)?;
            at = next;
        }
        Ok(())
    }

    /// What must be there at `target` for what lies at `at`, and how far that goes.
    fn needed_for_move(&self, at: VirtAddr, end: VirtAddr, target: VirtAddr) -> (Needed, VirtAddr) {
        // As far as one leaf table reaches, here and there.
        let reach = |addr: VirtAddr| HUGE_SIZE - addr.get() % HUGE_SIZE;
        let next = at.checked_add(reach(at).min(reach(target))).unwrap_or(VirtAddr::MAX);
        let pin = self.pager.source.platform().pin();
        match self.table.lock(&pin, at) {
            Leaf::Absent { next } => (Needed::Nothing, next),
            Leaf::Huge(huge) if at == huge.base() && huge.end() <= end && is_huge_aligned(target) => {
                (Needed::Huge, next)
            }
            Leaf::Huge(_) | Leaf::Table(_) => (Needed::Table, next),
        }
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
            if self.move_huge(at, from.end(), shifted(at, from, to)) {
                at = at.checked_add(HUGE_SIZE).unwrap_or(VirtAddr::MAX);
                continue;
            }
            let mut batch = [(VirtAddr::ZERO, Pte::None); BATCH];
            let mut taken = 0;
            let mut gather = self.gather();
            at = self.take_batch(at, from.end(), &mut batch, &mut taken, &mut gather);
            gather.finish();
            for &(old, entry) in batch.iter().take(taken) {
                let new = shifted(old, from, to);
                if !self.put_moved(new, entry) {
                    debug_assert!(false, "an entry is moved to where no table is");
                    entry.mapped().into_iter().for_each(|entry| self.let_go_of(entry, new));
                }
            }
        }
    }

    /// Writes an entry; whether there is a leaf table for it.
    fn put_moved(&self, at: VirtAddr, entry: Pte) -> bool {
        let pin = self.pager.source.platform().pin();
        let Leaf::Table(table) = self.table.lock(&pin, at) else { return false };
        table.set(at, entry);
        true
    }

    fn take_batch(
        &self,
        from: VirtAddr,
        end: VirtAddr,
        batch: &mut [(VirtAddr, Pte); BATCH],
        taken: &mut usize,
        gather: &mut Gather<'_, '_, S>,
    ) -> VirtAddr {
        let pin = self.pager.source.platform().pin();
        match self.table.lock(&pin, from) {
            Leaf::Absent { next } => next,
            // It lies in the range in part, or would lie across two huge pages.
            Leaf::Huge(huge) => {
                let next = huge.end();
                if self.split(huge) { from } else { next }
            }
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
