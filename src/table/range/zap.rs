//! Taking the entries of a range out.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use super::{Found, GROUP, Groups, Reader, Stale, Walker, groups_len};
use crate::addr::{PageOrder, VirtAddr, VirtRange};
use crate::phys::PageSource;
use crate::table::format::{self, EntryFormat, Pte};
use crate::table::gather::TlbGather;
use crate::table::huge::HugeRef;
use crate::table::leaf::TableRef;
use crate::table::root::PageTable;

/// Whether an entry is to be taken out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zap {
    /// Yes.
    Take,
    /// It stays as it is.
    Keep,
}

/// Who takes entries out of a range.
pub(crate) trait Zapper<F: EntryFormat> {
    /// Notes that CPUs are to forget the pages of a range.
    fn forget(&mut self, range: VirtRange);

    /// Whether so many entries more can be taken out.
    fn has_room(&self, entries: usize) -> bool;

    /// Makes room for so many, by letting go of what was taken or otherwise. No lock is held.
    fn make_room(&mut self, entries: usize);

    /// Whether an entry is to be taken out. Asked more than once, and of a huge entry before it is split.
    fn choose(&mut self, found: Found) -> Zap;

    /// Gets what an entry led to that was taken out. A table is locked.
    fn take(&mut self, found: Found);

    /// Takes a huge entry out.
    fn zap_huge(&mut self, huge: HugeRef<'_, F>) -> Pte;

    /// Splits a huge entry that lies in the range in part; `false` and no change if there is no table for that.
    fn split(&mut self, huge: HugeRef<'_, F>) -> bool;

    /// The table for these addresses has no entry; a part of them may lie outside the range. A table is locked.
    #[inline]
    fn emptied(&mut self, _table: VirtRange) {}
}

/// Who does so for a caller outside.
struct Functions<'z, 'g, S: PageSource, C, E> {
    gather: &'z mut TlbGather<'g, S>,
    choose: C,
    each: E,
}

impl<'g, S, F, C, E> Zapper<F> for Functions<'_, 'g, S, C, E>
where
    S: PageSource,
    F: EntryFormat,
    C: FnMut(Found) -> Zap,
    E: FnMut(&mut TlbGather<'g, S>, Found),
{
    fn forget(&mut self, range: VirtRange) {
        self.gather.flush_range(range);
    }

    #[inline]
    fn has_room(&self, entries: usize) -> bool {
        self.gather.has_room(entries)
    }

    fn make_room(&mut self, entries: usize) {
        if !self.gather.has_room(entries) {
            self.gather.make_room_with(|_| {});
        }
    }

    #[inline]
    fn choose(&mut self, found: Found) -> Zap {
        (self.choose)(found)
    }

    #[inline]
    fn take(&mut self, found: Found) {
        (self.each)(self.gather, found);
    }

    fn zap_huge(&mut self, huge: HugeRef<'_, F>) -> Pte {
        huge.zap(self.gather)
    }

    fn split(&mut self, huge: HugeRef<'_, F>) -> bool {
        huge.split_kept()
    }
}

impl<S: PageSource, F: EntryFormat> PageTable<'_, S, F> {
    /// Takes all entries of a range out and hands them to `each`, which gives what they led to to the gather: one frame for each at most. A huge
    /// entry that lies in the range in part is split first. What CPUs are to forget is noted in the gather.
    ///
    /// # Locking
    /// Called with no lock held: the gather may flush between two tables. `each` is called with a table locked.
    ///
    /// # Linux
    /// `unmap_page_range` in `mm/memory.c`.
    #[doc(alias = "unmap_page_range")]
    pub fn unmap_range<'g>(
        &self,
        range: VirtRange,
        gather: &mut TlbGather<'g, S>,
        each: impl FnMut(&mut TlbGather<'g, S>, Found),
    ) {
        self.zap_range(range, gather, |_| Zap::Take, each);
    }

    /// As [`unmap_range`](Self::unmap_range), of those entries alone that `choose` wants out. It may be asked more than once, and of a huge entry
    /// before that is split.
    ///
    /// # Linux
    /// `zap_page_range_single` in `mm/memory.c`.
    #[doc(alias = "zap_page_range")]
    pub fn zap_range<'g>(
        &self,
        range: VirtRange,
        gather: &mut TlbGather<'g, S>,
        choose: impl FnMut(Found) -> Zap,
        each: impl FnMut(&mut TlbGather<'g, S>, Found),
    ) {
        self.zap_by(range, &mut Functions { gather, choose, each });
    }

    /// Takes entries of a range out, as [`zap_range`](Self::zap_range).
    pub(crate) fn zap_by<Z: Zapper<F>>(&self, range: VirtRange, zapper: &mut Z) {
        self.over(range, &mut Zapping(zapper));
    }
}

/// Takes out what a walk comes to.
struct Zapping<'z, Z>(&'z mut Z);

impl<F: EntryFormat, Z: Zapper<F>> Walker<F> for Zapping<'_, Z> {
    #[inline]
    fn prepare(&mut self) {
        if !self.0.has_room(GROUP) {
            self.0.make_room(GROUP);
        }
    }

    #[inline]
    fn table(&mut self, table: &TableRef<'_, F>, rest: VirtRange) -> VirtAddr {
        zap_table(table, rest, self.0)
    }

    #[inline]
    fn huge(&mut self, huge: HugeRef<'_, F>, rest: VirtRange) -> VirtAddr {
        zap_huge(huge, rest, self.0)
    }
}

/// A table that entries are taken out of.
struct Zapped<'t, 'p, F: EntryFormat> {
    table: &'t TableRef<'p, F>,
    reader: Reader<F>,
    stale: Stale,
    /// How many entries are in use yet.
    left: u32,
}

/// Takes entries out of a table; where to go on, which is inside it if room is to be made first.
#[inline(never)]
fn zap_table<F: EntryFormat>(
    table: &TableRef<'_, F>,
    rest: VirtRange,
    zapper: &mut impl Zapper<F>,
) -> VirtAddr {
    let mut groups = table.groups(rest);
    let mut zapped = Zapped { table, reader: Reader::new(), stale: Stale::NONE, left: table.used() };
    let mut has_room = true;
    while !groups.is_done() && zapped.left != 0 && has_room {
        zapped.settled(&mut groups, zapper);
        has_room = zapper.has_room(GROUP);
        if has_room {
            zapped.one_by_one(groups.take(), zapper);
        }
    }
    table.note_used(zapped.left);
    if zapped.left == 0 {
        format::span(1, table.base()).into_iter().for_each(|span| zapper.emptied(span));
    }
    if let Some(stale) = zapped.stale.range(table) {
        zapper.forget(stale);
    }
    // The index behind the last is no address of this table.
    if has_room || groups.is_done() { table.end() } else { table.addr(groups.next()) }
}

impl<F: EntryFormat> Zapped<'_, '_, F> {
    /// Takes out whole groups in which hardware has nothing to note, so that plain stores lose nothing, up to one of which that does not hold.
    #[inline]
    fn settled(&mut self, groups: &mut Groups<'_>, zapper: &mut impl Zapper<F>) {
        let (table, first) = (self.table, groups.next());
        let taken = groups_len(groups.entries, |group, before| {
            let raws = group.each_ref().map(|entry| entry.load(Relaxed));
            let is_settled = raws.iter().fold(F::SETTLED, |common, raw| common & raw) == F::SETTLED;
            if !is_settled || !zapper.has_room(GROUP) {
                return false;
            }
            self.reader.decode_seen(raws[0]);
            let found = |at: usize| table.found(first + before + at, self.reader.decode_alike(raws[at]));
            if !(0..GROUP).all(|at| zapper.choose(found(at)) == Zap::Take) {
                return false;
            }
            group.iter().for_each(|entry| entry.store(0, Relaxed));
            (0..GROUP).for_each(|at| zapper.take(found(at)));
            true
        });
        groups.entries = groups.entries.get(taken..).unwrap_or_default();
        self.left -= taken as u32;
        self.stale.add_range(first, groups.next());
    }

    /// Takes out entries of which anything may be.
    #[inline]
    fn one_by_one<'e>(
        &mut self,
        group: impl Iterator<Item = (usize, &'e AtomicU64)>,
        zapper: &mut impl Zapper<F>,
    ) {
        for (index, entry) in group {
            let raw = entry.load(Relaxed);
            let mut found = self.table.found(index, self.reader.decode(raw));
            if raw == 0 || zapper.choose(found) == Zap::Keep {
                continue;
            }
            if F::may_change(raw) {
                found.pte = self.reader.decode(entry.swap(0, AcqRel));
            } else {
                entry.store(0, Relaxed);
            }
            self.left -= 1;
            if raw & F::SEEN != 0 {
                self.stale.add(index);
            }
            zapper.take(found);
        }
    }
}

/// Takes a huge entry out, or splits it; where to go on.
fn zap_huge<F: EntryFormat>(huge: HugeRef<'_, F>, rest: VirtRange, zapper: &mut impl Zapper<F>) -> VirtAddr {
    let mut found = Found { addr: huge.base(), pte: huge.get(), order: PageOrder::MAX };
    let next = huge.end();
    if zapper.choose(found) == Zap::Keep {
        return next;
    }
    if !format::span(1, huge.base()).is_some_and(|span| rest.encloses(span)) {
        return if zapper.split(huge) { rest.start() } else { next };
    }
    let above = if huge.is_alone() { format::span(2, huge.base()) } else { None };
    found.pte = zapper.zap_huge(huge);
    zapper.take(found);
    above.into_iter().for_each(|span| zapper.emptied(span));
    next
}
