//! Pages that appear elsewhere in the same address space.

use super::MmPager;
use super::gather::Gather;
use super::huge_range::is_huge_aligned;
use crate::addr::{VirtAddr, VirtRange};
use crate::flags::GfpFlags;
use crate::mm::{MmError, huge_page_around};
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::{EntryFormat, HUGE_SIZE, Leaf, WithRoom};

/// What must be there before entries can be moved to a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Needed {
    /// Nothing, since nothing is moved.
    Nothing,
    /// The way to an entry of 2 MiB: a huge page or a leaf table comes there as a whole.
    Way,
    /// The leaf table.
    Table,
}

impl<'a, 'm, S: PageSource, F: EntryFormat> MmPager<'a, 'm, S, F> {
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
                Needed::Way => self.table.ensure_huge(target, GfpFlags::KERNEL),
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
        let next = piece_end(at, end, target);
        let pin = self.pager.source.platform().pin();
        let needed = match self.table.lock(&pin, at) {
            Leaf::Absent { next } => return (Needed::Nothing, next),
            Leaf::Huge(_) | Leaf::Table(_) if whole(at, end, target).is_some() => Needed::Way,
            Leaf::Huge(_) | Leaf::Table(_) => Needed::Table,
        };
        (needed, next)
    }

    /// Moves the entries of `from` to `to`, where no page is and tables are. CPUs are made to forget the old place once, at the end.
    ///
    /// # Locking
    /// Until then pages are reached by both ways, and nobody may take one away by the new one alone, nor its right to be written: a CPU
    /// that has not forgotten
    /// the old one would go on with it. So nobody else comes to them. From an address: the VMAs of both places are locked. From a page:
    /// walks from the
    /// file wait until the change of the VMA [ends](crate::mm::Tables::end_change), and there are none from anonymous pages.
    ///
    /// # Linux
    /// `move_page_tables` in `mm/mremap.c`, which lets others in after each table, and so flushes for each.
    #[doc(alias = "move_page_tables")]
    pub(super) fn move_entries(&self, from: VirtRange, to: VirtAddr) {
        let mut gather = self.gather();
        let mut at = from.start();
        while at < from.end() {
            gather.with_room();
            let target = shifted(at, from, to);
            at = match whole(at, from.end(), target) {
                Some(piece) if self.move_whole(piece, target, &mut gather) => piece.end(),
                _ => self.move_piece(at, from.end(), target, &mut gather),
            };
        }
        gather.finish();
    }

    /// Moves what 2 MiB have as a whole by the one entry that leads to it; `false` and no change if that cannot be.
    fn move_whole(&self, piece: VirtRange, to: VirtAddr, gather: &mut Gather<'a, 'm, S>) -> bool {
        let (table, table_lock) = (&self.table, self.shared.table_lock());
        table.move_table(piece.start(), to, table_lock, &mut gather.tlb) || self.move_huge(piece, to, gather)
    }

    /// Moves entries one by one, as far as one leaf table reaches here and there; how far that is.
    fn move_piece(
        &self,
        at: VirtAddr,
        end: VirtAddr,
        target: VirtAddr,
        gather: &mut Gather<'a, 'm, S>,
    ) -> VirtAddr {
        let next = piece_end(at, end, target);
        let pin = self.pager.source.platform().pin();
        match self.table.lock(&pin, at) {
            Leaf::Absent { next } => next,
            // It lies in the range in part, or would lie across two huge pages.
            Leaf::Huge(huge) => {
                let next = huge.end();
                if self.split(huge) { at } else { next }
            }
            Leaf::Table(table) => {
                let piece = VirtRange::new(at, next).unwrap_or_default();
                // What could not be moved stays, and goes with its mapping.
                let moved = self.table.move_run(&pin, &table, piece, target);
                debug_assert!(moved.is_ok(), "entries are moved to where no table is");
                if let Ok(Some(stale)) = moved {
                    gather.flush_range(stale);
                }
                next
            }
        }
    }
}

/// The 2 MiB that begin at an address and end in the range, if they are 2 MiB at the target too.
fn whole(at: VirtAddr, end: VirtAddr, target: VirtAddr) -> Option<VirtRange> {
    huge_page_around(at).filter(|piece| piece.start() == at && piece.end() <= end && is_huge_aligned(target))
}

/// As far as one leaf table reaches, here and there.
fn piece_end(at: VirtAddr, end: VirtAddr, target: VirtAddr) -> VirtAddr {
    let reach = |addr: VirtAddr| HUGE_SIZE - addr.get() % HUGE_SIZE;
    at.checked_add(reach(at).min(reach(target))).unwrap_or(VirtAddr::MAX).min(end)
}

fn shifted(at: VirtAddr, from: VirtRange, to: VirtAddr) -> VirtAddr {
    VirtAddr::from(to.get().wrapping_add(at.get() - from.start().get()))
}
