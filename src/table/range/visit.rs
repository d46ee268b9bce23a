//! Reading the entries of a range.

use core::sync::atomic::Ordering::Relaxed;

use super::{Found, Reader, Run, Walker};
use crate::addr::{PageOrder, VirtAddr, VirtRange};
use crate::phys::PageSource;
use crate::table::format::EntryFormat;
use crate::table::huge::HugeRef;
use crate::table::leaf::TableRef;
use crate::table::root::PageTable;

impl<S: PageSource, F: EntryFormat> PageTable<'_, S, F> {
    /// Shows the entries of a range to `each`, in order of their addresses; holes cost nothing.
    ///
    /// # Locking
    /// `each` is called with a table locked.
    ///
    /// # Linux
    /// `walk_page_range` in `mm/pagewalk.c`.
    #[inline]
    #[doc(alias = "walk_page_range")]
    pub fn visit_range(&self, range: VirtRange, mut each: impl FnMut(Found)) {
        self.visit_runs(range, |run| run.iter().for_each(&mut each));
    }

    /// As [`visit_range`](Self::visit_range), with entries that go on as the ones before shown together, where that is seen at a glance: one run may
    /// go on where another ended.
    ///
    /// # Locking
    /// `each` is called with a table locked.
    #[inline]
    pub fn visit_runs(&self, range: VirtRange, each: impl FnMut(Run)) {
        self.over(range, &mut Visitor(each));
    }
}

/// Shows what a walk comes to.
struct Visitor<E>(E);

impl<F: EntryFormat, E: FnMut(Run)> Walker<F> for Visitor<E> {
    #[inline]
    fn table(&mut self, table: &TableRef<'_, F>, rest: VirtRange) -> VirtAddr {
        visit_table(table, rest, &mut self.0);
        table.end()
    }

    #[inline]
    fn huge(&mut self, huge: HugeRef<'_, F>, _: VirtRange) -> VirtAddr {
        let first = Found { addr: huge.base(), pte: huge.get(), order: PageOrder::MAX };
        (self.0)(Run { first, len: 1 });
        huge.end()
    }
}

#[inline(never)]
fn visit_table<F: EntryFormat>(table: &TableRef<'_, F>, rest: VirtRange, each: &mut impl FnMut(Run)) {
    if table.used() == 0 {
        return;
    }
    let (mut groups, mut reader) = (table.groups(rest), Reader::<F>::new());
    while !groups.is_done() {
        while let (index, Some((first, len))) = (groups.next(), groups.take_run::<F>()) {
            each(Run { first: table.found(index, reader.decode_seen(first)), len });
        }
        for (index, entry) in groups.take() {
            let raw = entry.load(Relaxed);
            if raw != 0 {
                each(Run { first: table.found(index, reader.decode(raw)), len: 1 });
            }
        }
    }
}
