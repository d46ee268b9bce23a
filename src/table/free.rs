//! Taking tables out.

use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use super::format::{self, ENTRIES, EntryFormat, EntryKind, Half};
use super::frame::{self, Frame, TableLock};
use super::gather::{TlbGather, WithRoom};
use super::root::{PageTable, Reached};
use crate::addr::{Pfn, VirtAddr, VirtRange};
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::sync::TaskLock;

/// What became of a place where a table might be taken out.
enum Tried {
    /// Nothing is to be done before this address.
    GoOn(VirtAddr),
    /// A table was taken out, which covered these addresses.
    Out(Pfn, VirtAddr),
}

impl<'a, S: PageSource, F: EntryFormat> PageTable<'a, S, F> {
    /// Takes out the empty tables that lie wholly inside `hole`, of all levels.
    ///
    /// No VMA lies in the hole, which should reach from the one before to the one after: a table of which a part lies outside stays.
    ///
    /// # Locking
    /// Takes `table_lock` and drops it again for each table. Whoever walks these tables by an address is kept away
    /// by the caller; see the [room](super).
    ///
    /// # Linux
    /// `free_pgtables` and `free_pgd_range` in `mm/memory.c`.
    #[doc(alias = "free_pgtables")]
    pub fn free_empty(&self, hole: VirtRange, table_lock: &TaskLock<()>, gather: &mut TlbGather<'_, S>) {
        self.free_empty_around(hole, hole, table_lock, gather);
    }

    /// As [`free_empty`](Self::free_empty), of those tables alone that lead to addresses of `range`, a part of the hole: what was unmapped there has emptied no
    /// others. The time it takes grows with the range, not with the hole.
    ///
    /// # Locking
    /// As [`free_empty`](Self::free_empty).
    ///
    /// # Linux
    /// `free_pgd_range` in `mm/memory.c`, whose floor and ceiling are the hole's ends.
    #[doc(alias = "free_pgd_range")]
    pub fn free_empty_around(
        &self,
        range: VirtRange,
        hole: VirtRange,
        table_lock: &TaskLock<()>,
        gather: &mut TlbGather<'_, S>,
    ) {
        self.free_empty_by(range, hole, table_lock, gather);
    }

    pub(crate) fn free_empty_by<'g>(
        &self,
        range: VirtRange,
        hole: VirtRange,
        table_lock: &TaskLock<()>,
        gather: &mut impl WithRoom<'g, S>,
    ) where
        S: 'g,
    {
        for level in 1..F::LEVELS {
            let mut addr = format::floor(level, range.start());
            while addr < range.end() {
                let gather = gather.with_room();
                match self.try_out(addr, hole, level, table_lock) {
                    Tried::GoOn(next) => addr = next,
                    Tried::Out(table, at) => {
                        self.uncount_table();
                        gather.table_at(table, at.max(range.start()), format::span(level, at));
                        addr = format::next(level, at);
                    }
                }
            }
        }
    }

    /// Takes out the table that the entry of `level` for `addr` leads to, if it is empty and inside the hole.
    fn try_out(&self, addr: VirtAddr, hole: VirtRange, level: u32, table_lock: &TaskLock<()>) -> Tried {
        let next = format::next(level, addr);
        if !format::span(level, addr).is_some_and(|span| hole.encloses(span)) || self.stays(addr, level) {
            return Tried::GoOn(next);
        }
        let _others = table_lock.lock();
        let pin = self.source.platform().pin();
        let Ok(at) = self.reach(&pin, addr, level) else { return Tried::GoOn(next) };
        if at.raw == 0 {
            return Tried::GoOn(after_empty::<F>(&at, addr));
        }
        if at.level != level {
            return Tried::GoOn(format::next(at.level, addr));
        }
        let EntryKind::Table(pfn) = F::kind(level, at.raw) else { return Tried::GoOn(next) };
        let Ok(page) = frame::table_page(self.source.phys(), pfn) else { return Tried::GoOn(next) };
        let lock = TableLock::take(&pin, page);
        if lock.used() != 0 {
            return Tried::GoOn(next);
        }
        at.frame.entry(format::index::<F>(level, addr)).store(0, Release);
        frame::sub_used(at.frame.page());
        // What it keeps goes with it.
        frame::kept_tables(self.source.phys(), page).for_each(|_| self.uncount_table());
        Tried::Out(pfn, format::floor(level, addr))
    }

    /// Whether the table behind the root's entry stays for as long as the root: hardware may not notice, or other roots share it.
    fn stays(&self, addr: VirtAddr, level: u32) -> bool {
        match F::half(addr) {
            None => true,
            Some(Half::Kernel) if !self.root_page().is_some_and(frame::owns_kernel) => true,
            Some(half) => level + 1 == F::LEVELS && (F::ROOT_IS_CACHED || half == Half::Kernel),
        }
    }

    /// Takes the whole tree out, the root included. Entries that still map something are forgotten.
    ///
    /// # Locking
    /// Nobody walks these tables any more, no CPU has them loaded, and nobody comes: who finds them by a page was kept from the root before.
    ///
    /// # Linux
    /// `pgd_free` in `arch/x86/mm/pgtable.c`, after `free_pgtables`.
    #[doc(alias = "pgd_free")]
    pub fn destroy(self, gather: &mut TlbGather<'_, S>) {
        self.take_apart(|table| {
            gather.make_room();
            gather.table(table);
        });
    }

    /// As [`destroy`](Self::destroy), of tables that no CPU ever had.
    pub(super) fn free_all(self) {
        self.take_apart(|table| frame::free(self.source, table));
    }

    fn take_apart(&self, mut out: impl FnMut(Pfn)) {
        let owns_kernel = self.root_page().is_some_and(frame::owns_kernel);
        let user = (0, F::USER_END - 1);
        let kernel = (F::KERNEL_START, F::KERNEL_START | ((1 << (F::ADDRESS_BITS - 1)) - 1));
        // From the leaves up: a table goes when nothing hangs on it any more.
        for level in 1..F::LEVELS {
            for (start, last) in [Some(user), owns_kernel.then_some(kernel)].into_iter().flatten() {
                let mut addr = VirtAddr::from(start);
                while addr.get() <= last {
                    let (table, next) = self.take_table(addr, level);
                    if let Some(table) = table {
                        self.uncount_table();
                        out(table);
                    }
                    if next == VirtAddr::MAX {
                        break;
                    }
                    addr = next;
                }
            }
        }
        out(self.pgd);
    }

    /// Cuts the way that the entry of `level` for `addr` is; what it led to, and where to go on.
    fn take_table(&self, addr: VirtAddr, level: u32) -> (Option<Pfn>, VirtAddr) {
        let pin = self.source.platform().pin();
        let Ok(at) = self.reach(&pin, addr, level) else { return (None, format::next(level, addr)) };
        if at.raw == 0 {
            return (None, after_empty::<F>(&at, addr));
        }
        let next = format::next(at.level, addr);
        match F::kind(at.level, at.raw) {
            EntryKind::Table(pfn) if Frame::open(self.source.phys(), &pin, pfn).is_ok() => {
                at.frame.entry(format::index::<F>(level, addr)).swap(0, AcqRel);
                frame::sub_used(at.frame.page());
                (Some(pfn), next)
            }
            _ => (None, next),
        }
    }
}

/// The first address behind the empty entry that a walk for `addr` has come to, and behind all empty ones that follow it in that table: what a
/// tree of a few tables costs must not grow with the addresses that it could have.
fn after_empty<F: EntryFormat>(at: &Reached<'_>, addr: VirtAddr) -> VirtAddr {
    let entries = if at.level + 1 == F::LEVELS { F::root_entries() } else { ENTRIES };
    let behind = format::index::<F>(at.level, addr) + 1..entries;
    let empty = behind.take_while(|&index| at.frame.entry(index).load(Relaxed) == 0).count() as u64;
    let bytes = (empty + 1) << format::shift(at.level);
    format::floor(at.level, addr).checked_add(bytes).unwrap_or(VirtAddr::MAX)
}
