//! Taking the pages of a range away.

use super::MmPager;
use super::entry::one_page;
use super::gather::Gather;
use crate::addr::{PAGE_SIZE, VirtAddr, VirtRange};
use crate::flags::GfpFlags;
use crate::mm::MmError;
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::{EntryFormat, HugeRef, Leaf, Pte, TableRef};

/// What to do with the markers of guard regions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Guards {
    /// They go too, as the mapping itself does.
    Go,
    /// They stay, as when a file is truncated or memory is given back.
    Stay,
}

/// An entry that is not empty, with its table locked.
#[derive(Debug)]
pub(super) enum Entry<'e, 't, F: EntryFormat> {
    /// Of one page, in this table, at this address.
    Small(&'e TableRef<'t, F>, VirtAddr, Pte),
    /// Of 2 MiB.
    Huge(&'e HugeRef<'t, F>),
}

/// The first address of the next page.
pub(super) fn after(page: VirtAddr) -> VirtAddr {
    page.checked_add(PAGE_SIZE as u64).unwrap_or(VirtAddr::MAX)
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Takes all entries of `range` out. Pages and translations go with `gather`.
    ///
    /// # Linux
    /// `zap_page_range_single` and `unmap_page_range` in `mm/memory.c`.
    #[doc(alias = "zap_page_range")]
    pub(super) fn zap(&self, range: VirtRange, guards: Guards, gather: &mut Gather<'_, '_, S>) {
        let mut at = range.start();
        while at < range.end() {
            gather.make_room();
            at = self.zap_leaf(at, range.end(), guards, gather);
        }
    }

    /// What lies in one leaf, up to `end`, or until `gather` is full. Answers where to go on.
    pub(super) fn zap_leaf(
        &self,
        at: VirtAddr,
        end: VirtAddr,
        guards: Guards,
        gather: &mut Gather<'_, '_, S>,
    ) -> VirtAddr {
        let pin = self.pager.source.platform().pin();
        match self.table.lock(&pin, at) {
            Leaf::Absent { next } => next.min(end),
            Leaf::Table(table) => self.zap_entries(&table, at, end, guards, gather),
            Leaf::Huge(huge) => self.zap_huge(huge, at, end, gather),
        }
    }

    fn zap_entries(
        &self,
        table: &TableRef<'_, F>,
        from: VirtAddr,
        end: VirtAddr,
        guards: Guards,
        gather: &mut Gather<'_, '_, S>,
    ) -> VirtAddr {
        let end = end.min(table.end());
        let Some(range) = VirtRange::new(from, end) else { return end };
        for (at, pte) in table.iter(range) {
            if pte == Pte::Guard && guards == Guards::Stay {
                continue;
            }
            if gather.is_full() {
                return at;
            }
            if let Pte::Present(entry) = table.take(at) {
                self.unbook(entry, at, gather);
            }
        }
        end
    }

    /// Markers in the place of all pages of `range`: touching them is SIGSEGV.
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`] if a table could not be had; the markers before it stay.
    ///
    /// # Linux
    /// `madvise_guard_install` in `mm/madvise.c`.
    pub(super) fn install_guards(&self, range: VirtRange) -> Result<(), MmError> {
        let mut gather = self.gather();
        self.zap(range, Guards::Stay, &mut gather);
        gather.finish();
        let mut at = range.start();
        while at < range.end() {
            self.table.ensure(at, GfpFlags::KERNEL).map_err(|_| MmError::OutOfMemory)?;
            let pin = self.pager.source.platform().pin();
            let marked = match self.table.lock(&pin, at) {
                // A fault may have put a page here again meanwhile.
                Leaf::Table(table) if matches!(table.get(at), Pte::None | Pte::Guard) => {
                    table.set(at, Pte::Guard);
                    true
                }
                _ => false,
            };
            drop(pin);
            if marked {
                at = after(at);
            } else {
                let mut gather = self.gather();
                self.zap(one_page(at), Guards::Stay, &mut gather);
                gather.finish();
            }
        }
        Ok(())
    }

    /// Takes the markers of `range` out.
    ///
    /// # Linux
    /// `madvise_guard_remove` in `mm/madvise.c`.
    pub(super) fn remove_guards(&self, range: VirtRange) {
        self.for_each_entry(range, |entry| {
            if let Entry::Small(table, at, Pte::Guard) = entry {
                table.set(at, Pte::None);
            }
        });
    }

    /// Runs `change` for each entry of `range` that is not empty, a table locked at a time. Huge ones come whole, also where they lie in the
    /// range in part.
    pub(super) fn for_each_entry(&self, range: VirtRange, mut change: impl FnMut(Entry<'_, '_, F>)) {
        let mut at = range.start();
        while at < range.end() {
            let pin = self.pager.source.platform().pin();
            at = match self.table.lock(&pin, at) {
                Leaf::Absent { next } => next,
                Leaf::Huge(huge) => {
                    change(Entry::Huge(&huge));
                    huge.end()
                }
                Leaf::Table(table) => {
                    let end = range.end().min(table.end());
                    let part = VirtRange::new(at, end).unwrap_or_default();
                    table.iter(part).for_each(|(page, pte)| change(Entry::Small(&table, page, pte)));
                    end
                }
            };
        }
    }
}
