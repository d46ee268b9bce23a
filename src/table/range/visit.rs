//! Reading the entries of a range.

use core::sync::atomic::Ordering::Relaxed;

use super::{Found, Reader, rest};
use crate::addr::{PageOrder, VirtRange};
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::format::EntryFormat;
use crate::table::leaf::{Leaf, TableRef};
use crate::table::root::{Cursor, PageTable};

impl<S: PageSource, F: EntryFormat> PageTable<'_, S, F> {
    /// Shows the entries of a range to `each`, in order of their addresses; holes cost nothing.
    ///
    /// # Locking
    /// `each` is called with a table locked.
    ///
    /// # Linux
    /// `walk_page_range` in `mm/pagewalk.c`.
    #[doc(alias = "walk_page_range")]
    pub fn visit_range(&self, range: VirtRange, mut each: impl FnMut(Found)) {
        let (mut addr, mut cursor) = (range.start(), Cursor::start());
        while addr < range.end() {
            let pin = self.source.platform().pin();
            addr = match self.lock_along(&pin, addr, &mut cursor) {
                Leaf::Absent { next } => next,
                Leaf::Table(table) => {
                    visit_table(&table, rest(range, addr), &mut each);
                    table.end()
                }
                Leaf::Huge(huge) => {
                    each(Found { addr: huge.base(), pte: huge.get(), order: PageOrder::MAX });
                    huge.end()
                }
            };
        }
    }
}

#[inline]
fn visit_table<F: EntryFormat>(table: &TableRef<'_, F>, rest: VirtRange, each: &mut impl FnMut(Found)) {
    if table.used() == 0 {
        return;
    }
    let (mut groups, mut reader) = (table.groups(rest), Reader::<F>::new());
    while !groups.is_done() {
        let first = groups.first;
        if let Some((_, raws)) = groups.take_all_with(F::SEEN) {
            for (index, raw) in (first..).zip(raws) {
                each(table.found(index, reader.decode_seen(raw)));
            }
            continue;
        }
        for (index, entry) in groups.take() {
            let raw = entry.load(Relaxed);
            if raw != 0 {
                each(table.found(index, reader.decode(raw)));
            }
        }
    }
}
