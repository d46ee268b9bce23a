//! Taking the entries of a range out.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use super::{Found, GROUP, Groups, Reader, Stale, group_with, split};
use crate::addr::{PageOrder, VirtAddr, VirtRange};
use crate::phys::PageSource;
use crate::table::format::{self, EntryFormat};
use crate::table::gather::TlbGather;
use crate::table::huge::HugeRef;
use crate::table::leaf::{Leaf, TableRef};
use crate::table::root::PageTable;

/// Whether an entry is to be taken out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zap {
    /// Yes.
    Take,
    /// It stays as it is.
    Keep,
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
        mut choose: impl FnMut(Found) -> Zap,
        mut each: impl FnMut(&mut TlbGather<'g, S>, Found),
    ) {
        self.over(range, gather, |gather, leaf, rest| match leaf {
            Leaf::Absent { next } => next,
            Leaf::Table(table) => zap_table(&table, rest, gather, &mut choose, &mut each),
            Leaf::Huge(huge) => zap_huge(huge, rest, gather, &mut choose, &mut each),
        });
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

/// Takes entries out of a table; where to go on, which is inside it if the gather is full.
#[inline(never)]
fn zap_table<'g, S: PageSource, F: EntryFormat>(
    table: &TableRef<'_, F>,
    rest: VirtRange,
    gather: &mut TlbGather<'g, S>,
    choose: &mut impl FnMut(Found) -> Zap,
    each: &mut impl FnMut(&mut TlbGather<'g, S>, Found),
) -> VirtAddr {
    let mut groups = table.groups(rest);
    let mut zapped = Zapped { table, reader: Reader::new(), stale: Stale::NONE, left: table.used() };
    let mut next = table.end();
    while !groups.is_done() && zapped.left != 0 {
        zapped.settled(&mut groups, gather, choose, each);
        if let Some(full) = zapped.one_by_one(groups.take(), gather, choose, each) {
            next = full;
            break;
        }
    }
    table.note_used(zapped.left);
    zapped.stale.note(table, gather);
    next
}

impl<F: EntryFormat> Zapped<'_, '_, F> {
    /// Takes out whole groups in which hardware has nothing to note, so that plain stores lose nothing, up to one of which that does not hold.
    #[inline]
    fn settled<'g, S: PageSource>(
        &mut self,
        groups: &mut Groups<'_>,
        gather: &mut TlbGather<'g, S>,
        choose: &mut impl FnMut(Found) -> Zap,
        each: &mut impl FnMut(&mut TlbGather<'g, S>, Found),
    ) {
        let (table, first) = (self.table, groups.next());
        while gather.has_room(GROUP) {
            let index = groups.next();
            let Some((group, raws, behind)) = group_with(groups.entries, F::SETTLED) else { break };
            let mut found = |at: usize| table.found(index + at, self.reader.decode_seen(raws[at]));
            if !(0..GROUP).all(|at| choose(found(at)) == Zap::Take) {
                break;
            }
            groups.entries = behind;
            group.iter().for_each(|entry| entry.store(0, Relaxed));
            (0..GROUP).for_each(|at| each(gather, found(at)));
        }
        self.left -= (groups.next() - first) as u32;
        self.stale.add_range(first, groups.next());
    }

    /// Takes out entries of which anything may be; the address of the first that the gather has no room for.
    #[inline]
    fn one_by_one<'g, 'e, S: PageSource>(
        &mut self,
        group: impl Iterator<Item = (usize, &'e AtomicU64)>,
        gather: &mut TlbGather<'g, S>,
        choose: &mut impl FnMut(Found) -> Zap,
        each: &mut impl FnMut(&mut TlbGather<'g, S>, Found),
    ) -> Option<VirtAddr> {
        for (index, entry) in group {
            let raw = entry.load(Relaxed);
            if raw == 0 {
                continue;
            }
            let mut found = self.table.found(index, self.reader.decode(raw));
            if choose(found) == Zap::Keep {
                continue;
            }
            if gather.is_full() {
                return Some(found.addr);
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
            each(gather, found);
        }
        None
    }
}

/// Takes a huge entry out, or splits it; where to go on.
fn zap_huge<'g, S: PageSource, F: EntryFormat>(
    huge: HugeRef<'_, F>,
    rest: VirtRange,
    gather: &mut TlbGather<'g, S>,
    choose: &mut impl FnMut(Found) -> Zap,
    each: &mut impl FnMut(&mut TlbGather<'g, S>, Found),
) -> VirtAddr {
    let mut found = Found { addr: huge.base(), pte: huge.get(), order: PageOrder::MAX };
    let next = huge.end();
    if choose(found) == Zap::Keep {
        return next;
    }
    if !format::span(1, huge.base()).is_some_and(|span| rest.encloses(span)) {
        return split(huge, rest);
    }
    if gather.is_full() {
        return found.addr;
    }
    found.pte = huge.zap(gather);
    each(gather, found);
    next
}
