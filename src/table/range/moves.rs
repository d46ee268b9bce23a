//! Moving the entries of a range elsewhere in the same tree.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use super::{GROUP, Stale};
use crate::addr::{Pfn, VirtAddr, VirtRange};
use crate::phys::PageSource;
use crate::platform::{CpuPin, Platform};
use crate::sync::TaskLock;
use crate::table::format::{self, EntryFormat, EntryKind};
use crate::table::frame::{self, TableLock};
use crate::table::gather::TlbGather;
use crate::table::leaf::{Leaf, TableRef};
use crate::table::root::PageTable;

/// The target of a move has no leaf table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoTable;

impl<'a, S: PageSource, F: EntryFormat> PageTable<'a, S, F> {
    /// Moves the leaf table of the 2 MiB from `from` on, with all that is in it, to those from `to` on, where nothing is or an empty leaf
    /// table: that goes to the
    /// gather, which has [room](TlbGather::make_room). What CPUs are to forget is noted there. `false` and no change if no entry is there,
    /// or a huge one, or
    /// the target is in use.
    ///
    /// # Locking
    /// Takes `table_lock`. Whoever walks to these addresses is kept away, as by [`free_empty`](Self::free_empty): who holds the leaf
    /// table's lock all the same is
    /// waited for, and who waits for it finds afterwards that it is another address's.
    ///
    /// # Linux
    /// `move_normal_pmd` in `mm/mremap.c`. There an empty table at the target is in the way.
    #[doc(alias = "move_normal_pmd")]
    pub(crate) fn move_table(
        &self,
        from: VirtAddr,
        to: VirtAddr,
        table_lock: &TaskLock<()>,
        gather: &mut TlbGather<'_, S>,
    ) -> bool {
        let (Some(half), Some(span)) = (F::half(to), format::span(1, from)) else { return false };
        let _others = table_lock.lock();
        let pin = self.source.platform().pin();
        let at = |addr| self.reach(&pin, addr, 1).ok().filter(|at| at.level == 1);
        let (Some(old), Some(new)) = (at(from), at(to)) else { return false };
        let EntryKind::Table(leaf) = F::kind(1, old.raw) else { return false };
        let Ok(page) = frame::table_page(self.source.phys(), leaf) else { return false };
        let lock = TableLock::take(&pin, page);
        if lock.used() == 0 {
            return false;
        }
        let (index, way) = (format::index::<F>(1, to), F::table(1, half, leaf));
        match F::kind(1, new.raw) {
            // For a moment both ways lead there, as they do to a CPU that has not forgotten the old one.
            EntryKind::Empty if new.frame.install(index, way) => {}
            EntryKind::Table(empty) if self.is_unused(&pin, empty) => {
                new.frame.entry(index).store(way, Release);
                self.uncount_table();
                gather.table_at(empty, to, format::span(1, to));
            }
            _ => return false,
        }
        old.frame.entry(format::index::<F>(1, from)).swap(0, AcqRel);
        frame::sub_used(old.frame.page());
        gather.moved_table(span);
        true
    }

    /// Whether a leaf table has no entry.
    fn is_unused(&self, pin: &CpuPin<'_>, table: Pfn) -> bool {
        let page = frame::table_page(self.source.phys(), table);
        page.is_ok_and(|page| TableLock::take(pin, page).used() == 0)
    }

    /// Moves the entries that a range has in a locked leaf table to `to` and behind it, which one leaf table covers, and where no entry
    /// is. Answers what
    /// CPUs are to forget: until then they reach the pages by both ways.
    ///
    /// # Errors
    /// [`NoTable`] and no change if there are entries, and no leaf table for them.
    ///
    /// # Locking
    /// Takes the lock of the other table inside that of this one.
    ///
    /// # Linux
    /// `move_ptes` in `mm/mremap.c`.
    #[doc(alias = "move_ptes")]
    pub(crate) fn move_run<'p>(
        &self,
        pin: &'p CpuPin<'_>,
        from: &TableRef<'p, F>,
        range: VirtRange,
        to: VirtAddr,
    ) -> Result<Option<VirtRange>, NoTable>
    where
        'a: 'p,
    {
        if from.used() == 0 {
            return Ok(None);
        }
        if let Some(index) = from.index(to) {
            return Ok(move_within(from, range, from, index));
        }
        let Leaf::Table(target) = self.lock(pin, to) else { return Err(NoTable) };
        let index = target.index(to).ok_or(NoTable)?;
        Ok(move_within(from, range, &target, index))
    }
}

/// Moves the entries that a range has in one table to where they follow each other from an index on in another, or in the same.
#[inline(never)]
fn move_within<F: EntryFormat>(
    from: &TableRef<'_, F>,
    range: VirtRange,
    to: &TableRef<'_, F>,
    first: usize,
) -> Option<VirtRange> {
    let (start, end) = from.indices(range);
    let (sources, targets) = (from.entries().get(start..end)?, to.entries().get(first..)?);
    let (mut stale, mut moved, used) = (Stale::NONE, 0, from.used());
    let groups = (start..).step_by(GROUP).zip(sources.chunks(GROUP).zip(targets.chunks(GROUP)));
    for (index, (group, places)) in groups {
        if moved == used {
            break;
        }
        debug_assert!(
            places.iter().zip(group).all(|(place, _)| place.load(Relaxed) == 0),
            "pages move onto others"
        );
        moved += match (group.first_chunk(), places.first_chunk()) {
            (Some(group), Some(places)) if move_settled::<F>(group, places) => {
                stale.add_range(index, index + GROUP);
                GROUP as u32
            }
            _ => move_each::<F>(group, places, index, &mut stale),
        };
    }
    from.note_used(from.used() - moved);
    to.note_used(to.used() + moved);
    stale.range(from)
}

/// Moves a group in which hardware has nothing to note, so that plain stores lose nothing; `false` and no change if it may have.
#[inline]
fn move_settled<F: EntryFormat>(group: &[AtomicU64; GROUP], places: &[AtomicU64; GROUP]) -> bool {
    let raws = group.each_ref().map(|entry| entry.load(Relaxed));
    if raws.iter().fold(F::SETTLED, |common, raw| common & raw) != F::SETTLED {
        return false;
    }
    group.iter().for_each(|entry| entry.store(0, Relaxed));
    // Release: what a frame holds was written before somebody finds it here.
    places.iter().zip(raws).for_each(|(place, raw)| place.store(raw, Release));
    true
}

/// Moves entries of which anything may be; how many there are.
fn move_each<F: EntryFormat>(
    group: &[AtomicU64],
    places: &[AtomicU64],
    first: usize,
    stale: &mut Stale,
) -> u32 {
    let mut moved = 0;
    for (index, (entry, place)) in (first..).zip(group.iter().zip(places)) {
        let mut raw = entry.load(Relaxed);
        if raw == 0 {
            continue;
        }
        if F::may_change(raw) {
            raw = entry.swap(0, AcqRel);
        } else {
            entry.store(0, Relaxed);
        }
        // Release, as above.
        place.store(raw, Release);
        moved += 1;
        if raw & F::SEEN != 0 {
            stale.add(index);
        }
    }
    moved
}
