//! Reading the entries of a range.

use core::sync::atomic::Ordering::Relaxed;

use super::{Found, Reader, Run};
use crate::addr::{PageOrder, VirtRange};
use crate::phys::PageSource;
use crate::table::format::EntryFormat;
use crate::table::leaf::{Leaf, TableRef};
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
    pub fn visit_runs(&self, range: VirtRange, mut each: impl FnMut(Run)) {
        self.over(
            range,
            &mut each,
            |_| {},
            |each, leaf, rest| match leaf {
                Leaf::Absent { next } => next,
                Leaf::Table(table) => {
                    visit_table(&table, rest, each);
                    table.end()
                }
                Leaf::Huge(huge) => {
                    let first = Found { addr: huge.base(), pte: huge.get(), order: PageOrder::MAX };
                    each(Run { first, len: 1 });
                    huge.end()
                }
            },
        );
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
