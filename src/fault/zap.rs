//! Taking the pages of a range away.

use super::MmPager;
use super::entry::one_page;
use crate::addr::{PAGE_SIZE, VirtAddr, VirtRange};
use crate::flags::GfpFlags;
use crate::mm::MmError;
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::{EntryFormat, Leaf, Mapped, Pte, TableRef, TlbGather};

/// What to do with the markers of guard regions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Guards {
    /// They go too, as the mapping itself does.
    Go,
    /// They stay, as when a file is truncated or memory is given back.
    Stay,
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
    pub(super) fn zap(&self, range: VirtRange, guards: Guards, gather: &mut TlbGather<'_, S>) {
        let mut at = range.start();
        while at < range.end() {
            if gather.is_full() {
                gather.flush();
            }
            let next = self.zap_leaf(at, range.end(), guards, gather);
            at = if next == at { self.split_huge_or_skip(at, gather) } else { next };
        }
    }

    /// What lies in one leaf, up to `end`, or until `gather` is full. Answers where to go on; the same place if a page of 2 MiB has to be split.
    pub(super) fn zap_leaf(
        &self,
        at: VirtAddr,
        end: VirtAddr,
        guards: Guards,
        gather: &mut TlbGather<'_, S>,
    ) -> VirtAddr {
        let pin = self.pager.source.platform().pin();
        match self.table.lock(&pin, at) {
            Leaf::Absent { next } => next.min(end),
            Leaf::Table(mut table) => self.zap_entries(&mut table, at, end, guards, gather),
            Leaf::Huge(mut huge) => {
                let whole = huge.range();
                if at == whole.start() && whole.end() <= end {
                    if let Some(entry) = huge.take() {
                        self.unbook_huge(entry, whole, gather);
                    }
                    whole.end()
                } else {
                    at
                }
            }
        }
    }

    fn zap_entries(
        &self,
        table: &mut TableRef<'_, F>,
        from: VirtAddr,
        end: VirtAddr,
        guards: Guards,
        gather: &mut TlbGather<'_, S>,
    ) -> VirtAddr {
        let end = end.min(table.range().end());
        let mut at = from;
        while at < end {
            match table.get(at) {
                Pte::None => {}
                Pte::Guard if guards == Guards::Stay => {}
                _ if gather.is_full() => return at,
                _ => {
                    if let Pte::Present(entry) = table.take(at) {
                        self.unbook(entry, at, gather);
                    }
                }
            }
            at = after(at);
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
            if let Leaf::Table(mut table) = self.table.lock(&pin, at) {
                // A fault may have put a page here again meanwhile: Linux then zaps and tries again.
                if let Pte::Present(_) = table.get(at) {
                    drop(table);
                    drop(pin);
                    let mut gather = self.gather();
                    self.zap(one_page(at), Guards::Stay, &mut gather);
                    gather.finish();
                    continue;
                }
                table.set(at, Pte::Guard);
            }
            at = after(at);
        }
        Ok(())
    }

    /// Takes the markers of `range` out.
    ///
    /// # Linux
    /// `madvise_guard_remove` in `mm/madvise.c`.
    pub(super) fn remove_guards(&self, range: VirtRange) {
        self.for_each_entry(range, |table, at, entry| {
            if entry == Pte::Guard {
                table.set(at, Pte::None);
            }
        });
    }

    /// Runs `change` for each entry of `range` that is not empty, a leaf table locked at a time. Pages of 2 MiB are passed over.
    pub(super) fn for_each_entry(
        &self,
        range: VirtRange,
        mut change: impl FnMut(&mut TableRef<'_, F>, VirtAddr, Pte),
    ) {
        let mut at = range.start();
        while at < range.end() {
            let pin = self.pager.source.platform().pin();
            at = match self.table.lock(&pin, at) {
                Leaf::Absent { next } => next,
                Leaf::Huge(huge) => huge.range().end(),
                Leaf::Table(mut table) => {
                    let end = range.end().min(table.range().end());
                    let mut page = at;
                    while page < end {
                        match table.get(page) {
                            Pte::None => {}
                            entry => change(&mut table, page, entry),
                        }
                        page = after(page);
                    }
                    end
                }
            };
        }
    }

    /// Whether a page is mapped here, the zero page among them.
    pub(super) fn is_mapped(&self, page: VirtAddr) -> bool {
        matches!(self.entry_at(page), Some(_))
    }

    /// What maps an address, if anything.
    pub(super) fn entry_at(&self, page: VirtAddr) -> Option<Mapped> {
        let pin = self.pager.source.platform().pin();
        match self.table.lock(&pin, page) {
            Leaf::Absent { .. } => None,
            Leaf::Huge(huge) => huge.get(),
            Leaf::Table(table) => match table.get(page) {
                Pte::Present(entry) => Some(entry),
                _ => None,
            },
        }
    }
}
