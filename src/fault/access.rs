//! Entries of any address space, for those who come from a file.

use core::cell::RefCell;
use core::sync::atomic::{Ordering::SeqCst, fence};

use super::count::Faults;
use super::entry::one_page;
use super::gather::Owners;
use super::{MmPager, Pager};
use crate::addr::{PAGE_SHIFT, Pfn, VirtAddr, VirtRange};
use crate::cache::Plug;
use crate::collections::Slot;
use crate::flags::PageFlags;
use crate::mm::MmSlot;
use crate::phys::PageSource;
use crate::platform::{Platform, TlbFlush};
use crate::rmap::{Copies, MmAccess};
use crate::table::{EntryFormat, Leaf, Mapped, PageTable, Pte, PteBits, scope_of};

/// Pages whose references wait for a flush.
const PAGES: usize = 64;
/// Address spaces that wait for one.
const SPACES: usize = 8;

/// What was changed and is still to be flushed.
#[derive(Debug)]
struct Pending {
    pages: [Option<Pfn>; PAGES],
    spaces: [Option<(Slot, VirtRange)>; SPACES],
    owners: Owners,
}

impl Pending {
    /// Whether one more page, of one more address space, might not fit.
    fn is_full(&self) -> bool {
        self.pages.iter().all(Option::is_some)
            || self.spaces.iter().all(Option::is_some)
            || self.owners.is_full()
    }

    /// Whether an address space waits.
    fn has(&self, mm: Slot) -> bool {
        self.spaces.iter().flatten().any(|&(other, _)| other == mm)
    }

    /// Notes what an address space is to forget. One of its tables is locked, or nothing was changed.
    fn note(&mut self, mm: Slot, shared: &MmSlot, range: VirtRange) {
        if !self.has(mm) {
            shared.cpus().begin_gather();
        }
        let own = |place: &&mut Option<(Slot, VirtRange)>| place.is_none_or(|(other, _)| other == mm);
        let Some(place) = self.spaces.iter_mut().find(own) else { return };
        let all = match *place {
            None => range,
            Some((_, before)) => {
                let (start, end) = (before.start().min(range.start()), before.end().max(range.end()));
                VirtRange::new(start, end).unwrap_or(range)
            }
        };
        *place = Some((mm, all));
    }

    fn keep(&mut self, pfn: Pfn) {
        if let Some(place) = self.pages.iter_mut().find(|place| place.is_none()) {
            *place = Some(pfn);
        }
    }
}

/// The entries of all address spaces, for one walk from a file. What it has changed is flushed at the latest when it is dropped.
#[derive(Debug)]
pub struct Entries<'a, 'm, S: PageSource, F: EntryFormat> {
    pager: Pager<'a, 'm, S, F>,
    pending: RefCell<Pending>,
}

impl<'a, 'm, S: PageSource, F: EntryFormat> Pager<'a, 'm, S, F> {
    /// The entries of all address spaces.
    pub fn entries(self) -> Entries<'a, 'm, S, F> {
        let owners = Owners::default();
        let pending = Pending { pages: [None; PAGES], spaces: [None; SPACES], owners };
        Entries { pager: self, pending: RefCell::new(pending) }
    }
}

impl<'a, 'm, S: PageSource, F: EntryFormat> Entries<'a, 'm, S, F> {
    /// The pages of the address space in a slot.
    fn of(&self, mm: Slot) -> Option<MmPager<'a, 'm, S, F>> {
        let shared = self.pager.context.mms().get(mm)?;
        let table = PageTable::at(self.pager.source, shared.pgd()?);
        Some(MmPager {
            pager: self.pager,
            shared,
            table,
            unclaimed: None,
            deferred: None,
            faults: Faults::new(),
            plug: Plug::new(),
            lost: Default::default(),
        })
    }

    /// Whether the page is a process's own, and none of the file.
    fn is_copy(&self, entry: Mapped) -> bool {
        let page = self.pager.page(entry.pfn).filter(|_| !entry.bits.contains(PteBits::SPECIAL));
        page.is_some_and(|page| page.flags().contains(PageFlags::ANON))
    }

    /// Notes a range if others have changed entries of the address space that CPUs may not have forgotten: who found them gone says that they are. Answers where
    /// to go on if there is no room for that before the next flush.
    fn forget_too(&self, mm: Slot, shared: &MmSlot, range: VirtRange) -> Option<VirtAddr> {
        let mut pending = self.pending.borrow_mut();
        let has_own = pending.has(mm);
        if shared.cpus().gathers() > u32::from(has_own) {
            if !has_own && pending.is_full() {
                return Some(range.start());
            }
            pending.note(mm, shared, range);
        }
        None
    }

    fn unmap(&self, pages: &MmPager<'a, 'm, S, F>, mm: Slot, addr: VirtAddr, entry: Mapped) {
        let mut pending = self.pending.borrow_mut();
        pending.note(mm, pages.shared, one_page(addr));
        if let Some(gone) = pages.unmap_page(entry, &mut pending.owners) {
            pages.sub_rss(gone.kind, 1);
            pending.keep(gone.pfn);
        }
    }
}

impl<S: PageSource, F: EntryFormat> MmAccess for Entries<'_, '_, S, F> {
    fn clean(&self, mm: Slot, addr: VirtAddr, pfn: Pfn) -> bool {
        let Some(pages) = self.of(mm) else { return false };
        let _tables_stay = pages.shared.table_lock().lock();
        let pin = self.pager.source.platform().pin();
        // No file's pages are huge.
        let Leaf::Table(table) = pages.table.lock(&pin, addr) else { return false };
        let Some(entry) = table.get(addr).mapped().filter(|entry| entry.pfn == pfn) else { return false };
        let gone = PteBits::WRITE | PteBits::DIRTY;
        if self.is_full() && entry.bits.intersects(gone) {
            return false;
        }
        let before = table.update(addr, |now| match now {
            Pte::Present(entry) => Pte::Present(Mapped { bits: entry.bits - gone, ..entry }),
            other => other,
        });
        if before.mapped().is_some_and(|before| before.bits.intersects(gone)) {
            self.pending.borrow_mut().note(mm, pages.shared, one_page(addr));
        }
        true
    }

    fn zap(&self, mm: Slot, range: VirtRange, copies: Copies) -> Option<VirtAddr> {
        let pages = self.of(mm)?;
        let _tables_stay = pages.shared.table_lock().lock();
        let mut at = range.start();
        while at < range.end() {
            let pin = self.pager.source.platform().pin();
            at = match pages.table.lock(&pin, at) {
                Leaf::Absent { next } => next,
                // No file's pages.
                Leaf::Huge(huge) => huge.end(),
                Leaf::Table(table) => {
                    let end = range.end().min(table.end());
                    for (addr, pte) in table.iter(VirtRange::new(at, end).unwrap_or_default()) {
                        if self.is_full() {
                            return Some(addr);
                        }
                        if let Pte::Present(entry) = pte {
                            if copies == Copies::Stay && self.is_copy(entry) {
                                continue;
                            }
                            if let Some(entry) = table.take(addr).mapped() {
                                self.unmap(&pages, mm, addr, entry);
                            }
                        }
                    }
                    end
                }
            };
        }
        self.forget_too(mm, pages.shared, range)
    }

    fn is_full(&self) -> bool {
        self.pending.borrow().is_full()
    }

    fn flush(&self) {
        let mut pending = self.pending.borrow_mut();
        // The entries were changed before the sets of CPUs are looked at; see `CpuSet`.
        fence(SeqCst);
        let platform = self.pager.source.platform();
        for (mm, range) in pending.spaces.iter_mut().filter_map(Option::take) {
            // An address space that has come to its end meanwhile was flushed as a whole.
            let Some(shared) = self.pager.context.mms().get(mm) else { continue };
            let (cpus, scope) = (shared.cpus().load(), scope_of(range, PAGE_SHIFT));
            if let Some(pgd) = shared.pgd().filter(|_| !cpus.is_empty()) {
                platform.flush_tlb(&cpus, &TlbFlush { pgd, scope, tables: false });
            }
            shared.cpus().end_gather();
        }
        for pfn in pending.pages.iter_mut().filter_map(Option::take) {
            self.pager.drop_page(pfn);
        }
        pending.owners.tell(self.pager.context);
    }
}

impl<S: PageSource, F: EntryFormat> Drop for Entries<'_, '_, S, F> {
    fn drop(&mut self) {
        self.flush();
    }
}
