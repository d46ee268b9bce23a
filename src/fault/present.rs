//! Faults where something is mapped that forbids the access.

use super::entry::{PageHold, RIGHTS, allows, noted, one_page, rights, writable};
use super::{Access, At, MmPager, Resolved, Signal, Stop};
use crate::addr::Pfn;
use crate::flags::{PageFlags, VmFlags};
use crate::phys::{Page, PageSource};
use crate::platform::{CpuMask, Platform};
use crate::table::{EntryFormat, Leaf, Mapped, Pte, PteBits, TableRef};

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    pub(super) fn present(&self, at: &At<'_, '_>, entry: Mapped) -> Result<Resolved, Stop> {
        if at.access == Access::Write && !entry.bits.contains(PteBits::WRITE) {
            return self.write_protected(at, entry);
        }
        if at.access == Access::Exec && !at.vma.flags.contains(VmFlags::EXEC) {
            return Err(Stop::Signal(Signal::Denied));
        }
        // The entry allows it: another fault was faster, the CPU remembers an older entry, or it leaves it to us to note the access.
        self.note_access(at, noted(at.access));
        self.forget_here(at);
        Ok(Resolved::Minor)
    }

    /// Notes an access in the entry of its page: that it was written only if it may be.
    ///
    /// # Linux
    /// `pte_mkyoung` and `pte_mkdirty` in `handle_pte_fault`; `FOLL_TOUCH` in `mm/gup.c`.
    #[doc(alias = "pte_mkyoung")]
    pub(super) fn note_access(&self, at: &At<'_, '_>, noted: PteBits) {
        let note = |now: Mapped| {
            let noted = if allows(now.bits, at.access) { noted } else { noted - PteBits::DIRTY };
            Mapped { bits: now.bits | noted, ..now }
        };
        let pin = self.pager.source.platform().pin();
        match self.table.lock(&pin, at.page) {
            Leaf::Absent { .. } => {}
            Leaf::Table(table) => {
                table.update(at.page, |now| match now {
                    Pte::Present(now) => Pte::Present(note(now)),
                    other => other,
                });
            }
            Leaf::Huge(huge) => {
                huge.update(note);
            }
        }
    }

    /// Makes this CPU forget what it knows of the page.
    ///
    /// # Linux
    /// `flush_tlb_fix_spurious_fault`.
    #[doc(alias = "flush_tlb_fix_spurious_fault")]
    fn forget_here(&self, at: &At<'_, '_>) {
        let mut here = CpuMask::EMPTY;
        let cpu = self.pager.source.platform().pin().cpu();
        if here.insert(cpu) {
            self.flush(&here, one_page(at.page));
        }
    }

    /// # Linux
    /// `do_wp_page` in `mm/memory.c`.
    #[doc(alias = "do_wp_page")]
    fn write_protected(&self, at: &At<'_, '_>, entry: Mapped) -> Result<Resolved, Stop> {
        if entry.bits.contains(PteBits::SPECIAL) {
            return match entry.pfn == self.pager.zero_page {
                true => self.replace(at, entry, self.pager.zeroed_frame()?),
                // A frame of a device: writing to it is what the mapping is for, unless the mapping is private.
                false if at.vma.flags.contains(VmFlags::SHARED) => self.allow_writing(at, entry),
                false => self.copy_special(at, entry),
            };
        }
        let Some(page) = self.pager.page(entry.pfn) else { return Ok(Resolved::Minor) };
        if at.vma.flags.contains(VmFlags::SHARED) {
            return self.allow_writing(at, entry);
        }
        let hold = |table: &TableRef<'_, F>| {
            if page.flags().contains(PageFlags::ANON) && self.reuse(at, entry, page, table) {
                return None;
            }
            // The entry's own reference keeps the page, as long as the entry is there: ours must be taken while it is.
            self.pager.try_hold(entry.pfn)
        };
        match self.with_same(at, entry, hold).flatten() {
            Some(held) => self.copy_held(at, entry, held),
            // It is the process's own now, or another fault changed it: the access is tried again.
            None => Ok(Resolved::Minor),
        }
    }

    /// The file is told that a page of it is about to be written.
    ///
    /// # Locking
    /// The table of the entry that is to allow it: a write-back that has taken the page for clean since then waits for the table, finds the
    /// entry and forbids writing again.
    ///
    /// # Linux
    /// `fault_dirty_shared_page` in `mm/memory.c`.
    #[doc(alias = "fault_dirty_shared_page")]
    fn note_writing(&self, pfn: Pfn) {
        self.pager.cache.set_dirty(self.pager.source, pfn);
    }

    /// Lets the entry be written through, if it is still the same.
    ///
    /// # Linux
    /// `wp_page_shared` in `mm/memory.c`.
    #[doc(alias = "wp_page_shared")]
    fn allow_writing(&self, at: &At<'_, '_>, entry: Mapped) -> Result<Resolved, Stop> {
        if let Some(file) = at.vma.backing.file() {
            self.prepare_writing(at, file)?;
        }
        self.with_same(at, entry, |table| {
            if !entry.bits.contains(PteBits::SPECIAL) {
                self.note_writing(entry.pfn);
            }
            let bits = writable(entry.bits, at.vma.flags) | PteBits::ACCESSED;
            table.set(at.page, Pte::Present(Mapped { bits, ..entry }));
        });
        Ok(Resolved::Minor)
    }

    /// Lets an anonymous page be written that nobody else has, with its table locked; whether that was so.
    ///
    /// # Linux
    /// `wp_can_reuse_anon_folio` in `mm/memory.c`.
    #[doc(alias = "wp_can_reuse_anon_folio")]
    fn reuse(&self, at: &At<'_, '_>, entry: Mapped, page: &Page, table: &TableRef<'_, F>) -> bool {
        let alone =
            page.flags().contains(PageFlags::ANON_EXCLUSIVE) || (page.map_count() == 1 && page.count() == 1);
        if alone {
            page.set_flags(PageFlags::ANON_EXCLUSIVE);
            let bits = writable(entry.bits, at.vma.flags) | PteBits::ACCESSED;
            table.set(at.page, Pte::Present(Mapped { bits, ..entry }));
        }
        alone
    }

    /// # Linux
    /// `wp_page_copy` in `mm/memory.c`.
    #[doc(alias = "wp_page_copy")]
    pub(super) fn copy_on_write(&self, at: &At<'_, '_>, entry: Mapped) -> Result<Resolved, Stop> {
        match self.with_same(at, entry, |_| self.pager.try_hold(entry.pfn)).flatten() {
            Some(held) => self.copy_held(at, entry, held),
            None => Ok(Resolved::Minor),
        }
    }

    /// The same with the page held until the end: until then an entry that maps it is the one that was copied.
    fn copy_held(&self, at: &At<'_, '_>, entry: Mapped, held: PageHold<'_, S>) -> Result<Resolved, Stop> {
        let copy = self.pager.copied_frame(held.pfn())?;
        self.replace(at, entry, copy)
    }

    /// Puts a frame of the process's own in the place of the page that `entry` maps.
    ///
    /// All CPUs must have forgotten the old page before any of them writes to the new one; else one could read the old bytes after
    /// another has changed them. So the new page is mapped for reading, the old translation is flushed, and only then may it be written.
    /// Until then there is a reference to it more, so that who faults on it in between finds it not to be his alone and makes a copy of
    /// his own, which is right if slow.
    pub(super) fn replace(
        &self,
        at: &At<'_, '_>,
        old: Mapped,
        new: PageHold<'_, S>,
    ) -> Result<Resolved, Stop> {
        let _one_more = self.pager.try_hold(new.pfn()).ok_or(Stop::OutOfMemory)?;
        let page = self.pager.page(new.pfn()).ok_or(Stop::OutOfMemory)?;
        let (anon, pgoff) = self.owner(at)?;
        Self::dress(page, anon, pgoff, PageFlags::empty())?;
        let readable = Mapped { pfn: new.pfn(), bits: rights(&at.vma) | PteBits::ACCESSED };
        let replaced = self.with_same(at, old, |table| {
            self.book_new_anon(page, anon);
            table.set(at.page, Pte::Present(readable));
        });
        if replaced.is_none() {
            return Ok(Resolved::Minor);
        }
        new.leave();
        self.let_go_of(old, at.page);
        self.with_same(at, readable, |table| {
            page.set_flags(PageFlags::ANON_EXCLUSIVE);
            let bits = writable(readable.bits, at.vma.flags);
            table.set(at.page, Pte::Present(Mapped { bits, ..readable }));
        });
        Ok(Resolved::Minor)
    }

    /// Runs `change` with the leaf table locked, if the entry still maps the same page with the same rights.
    fn with_same<R>(
        &self,
        at: &At<'_, '_>,
        entry: Mapped,
        change: impl FnOnce(&TableRef<'_, F>) -> R,
    ) -> Option<R> {
        let pin = self.pager.source.platform().pin();
        let Leaf::Table(table) = self.table.lock(&pin, at.page) else { return None };
        match table.get(at.page) {
            Pte::Present(now) if now.pfn == entry.pfn && now.bits & RIGHTS == entry.bits & RIGHTS => {
                Some(change(&table))
            }
            _ => None,
        }
    }
}
