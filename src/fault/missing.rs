//! Faults where nothing is mapped.

use super::entry::{PageHold, rights, writable};
use super::{Access, At, MmPager, Pager, Resolved, Signal, Stop, no_table};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn, PgOff, VirtAddr};
use crate::cache::{CacheError, Fetched, Pattern, ReadAhead, Wanted};
use crate::flags::{GfpFlags, PageFlags, VmFlags};
use crate::mm::{Backing, FileRef};
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::{EntryFormat, HUGE_SIZE, Leaf, Mapped, Pte, PteBits, TableRef};

/// How many pages around the one that is read are mapped with it, as far as the cache has them.
///
/// # Linux
/// `fault_around_pages` in `mm/memory.c`.
#[doc(alias = "fault_around_bytes")]
const AROUND: u64 = 16;

impl<'a, S: PageSource, F: EntryFormat> MmPager<'a, '_, S, F> {
    pub(super) fn missing(&self, at: &At<'_, '_>) -> Result<Resolved, Stop> {
        match at.vma.backing {
            Backing::Anonymous => self.anonymous(at),
            Backing::File(file) => self.file(at, file),
            // All pages that there are were mapped by their owner.
            Backing::Special(_) | Backing::Device(_) => Err(Stop::Signal(Signal::NoPage)),
        }
    }

    /// # Linux
    /// `do_anonymous_page` in `mm/memory.c`.
    #[doc(alias = "do_anonymous_page")]
    fn anonymous(&self, at: &At<'_, '_>) -> Result<Resolved, Stop> {
        if let Some(resolved) = self.missing_huge(at)? {
            return Ok(resolved);
        }
        if at.access != Access::Write {
            let bits = rights(&at.vma);
            let entry = Mapped { pfn: self.pager.zero_page, bits: bits | PteBits::SPECIAL };
            self.put_entry(at.page, entry, |_| true)?;
            return Ok(Resolved::Minor);
        }
        let new = self.pager.zeroed_frame()?;
        self.put_new_anon(at, new, || true)
    }

    /// Maps a frame that was filled for this process alone, if `stays` says, with the table locked, that it still may, and no other fault was
    /// faster.
    fn put_new_anon(
        &self,
        at: &At<'_, '_>,
        new: PageHold<'_, S>,
        stays: impl FnOnce() -> bool,
    ) -> Result<Resolved, Stop> {
        let (anon, pgoff) = self.owner(at)?;
        let page = self.pager.page(new.pfn()).ok_or(Stop::OutOfMemory)?;
        Self::dress(page, anon, pgoff, PageFlags::ANON_EXCLUSIVE)?;
        let entry = Mapped { pfn: new.pfn(), bits: writable(rights(&at.vma), at.vma.flags) };
        let put = self.put_entry(at.page, entry, |this| {
            let stays = stays();
            if stays {
                this.book_new_anon(page, anon);
            }
            stays
        })?;
        if put {
            new.leave();
        }
        Ok(Resolved::Minor)
    }

    /// The owner of this VMA's anonymous pages, which it gets now if it has none, and the page's place.
    pub(super) fn owner(&self, at: &At<'_, '_>) -> Result<(crate::mm::AnonVma, PgOff), Stop> {
        let pgoff = at.vma.pgoff_at(at.page);
        if let Some(anon) = at.vma.anon {
            return Ok((anon, pgoff));
        }
        at.mm.prepare_anon(at.slot).map_err(|_| Stop::OutOfMemory)?;
        let anon = at.mm.vma(at.slot).anon.ok_or(Stop::OutOfMemory)?;
        Ok((anon, pgoff))
    }

    /// Puts an entry where none is, if `book` books it; `false` if that refuses or there is one by now.
    pub(super) fn put_entry(
        &self,
        page: VirtAddr,
        entry: Mapped,
        book: impl FnOnce(&Self) -> bool,
    ) -> Result<bool, Stop> {
        let entry = Mapped { bits: entry.bits | PteBits::ACCESSED, ..entry };
        let put = self.with_table(page, |table| {
            let puts = table.get(page) == Pte::None && book(self);
            if puts {
                table.set(page, Pte::Present(entry));
            }
            puts
        });
        Ok(put?.unwrap_or(false))
    }

    /// Runs `work` with the leaf table of `page` locked, which is made if there is none; `None` where a huge entry is.
    ///
    /// # Linux
    /// `pte_alloc_map_lock` in `include/linux/mm.h`.
    #[doc(alias = "pte_alloc_map_lock")]
    fn with_table<R>(
        &self,
        page: VirtAddr,
        work: impl FnOnce(&TableRef<'_, F>) -> R,
    ) -> Result<Option<R>, Stop> {
        self.with_table_for(page, || true, work)
    }

    /// The same, but a table is made only if there is something for it; else `None`.
    fn with_table_for<R>(
        &self,
        page: VirtAddr,
        has_use: impl Fn() -> bool,
        work: impl FnOnce(&TableRef<'_, F>) -> R,
    ) -> Result<Option<R>, Stop> {
        loop {
            {
                let pin = self.pager.source.platform().pin();
                match self.table.lock(&pin, page) {
                    Leaf::Table(table) => return Ok(Some(work(&table))),
                    Leaf::Huge(_) => return Ok(None),
                    Leaf::Absent { .. } => {}
                }
            }
            if !has_use() {
                return Ok(None);
            }
            // Nobody takes it out again: the VMA is held.
            self.table.ensure(page, GfpFlags::KERNEL).map_err(|error| no_table::<F>(error, page))?;
        }
    }

    /// # Linux
    /// `do_fault` in `mm/memory.c`.
    #[doc(alias = "do_fault")]
    fn file(&self, at: &At<'_, '_>, file: FileRef) -> Result<Resolved, Stop> {
        let shared = at.vma.flags.contains(VmFlags::SHARED);
        if at.access != Access::Write && self.map_around(at, file)? {
            return Ok(Resolved::Minor);
        }
        if at.access == Access::Write && !shared {
            // Before the page is looked for: also a VMA whose file is too short has an owner then, and merges accordingly.
            self.owner(at)?;
        }
        let (page, resolved) = self.fetch(at, file)?;
        match (at.access, shared) {
            (Access::Write, false) => self.copy_of_file(at, file, page.pfn())?,
            (Access::Write, true) => {
                self.prepare_writing(at, file)?;
                self.map_file_page(at, file, page, writable(rights(&at.vma), at.vma.flags))?;
            }
            _ => self.map_file_page(at, file, page, rights(&at.vma))?,
        }
        Ok(resolved)
    }

    /// The file's page.
    fn fetch(&self, at: &At<'_, '_>, file: FileRef) -> Result<(PageHold<'a, S>, Resolved), Stop> {
        let wanted = Wanted::page(at.vma.pgoff_at(at.page), pattern(at.vma.flags));
        let vma = at.mm.vma_slot(at.slot);
        let mut ahead = ReadAhead::from_bits(vma.readahead());
        let Pager { source, cache, .. } = self.pager;
        let fetched = cache.fetch_plugged(source, file.file, wanted, &mut ahead, &self.plug);
        vma.set_readahead(ahead.to_bits());
        match fetched {
            Ok(Fetched::Ready { pfn, .. }) => Ok((PageHold::new(source, pfn), Resolved::Minor)),
            Ok(Fetched::Wait(ticket)) => Err(Stop::Wait(ticket)),
            Err(CacheError::OutOfMemory) => Err(Stop::OutOfMemory),
            Err(_) => Err(Stop::Signal(Signal::NoPage)),
        }
    }

    /// A private write: the process gets a copy of its own.
    ///
    /// # Linux
    /// `do_cow_fault` in `mm/memory.c`.
    #[doc(alias = "do_cow_fault")]
    fn copy_of_file(&self, at: &At<'_, '_>, file: FileRef, from: Pfn) -> Result<(), Stop> {
        let copy = self.pager.copied_frame(from)?;
        let index = at.vma.pgoff_at(at.page);
        let stays = || self.pager.cache.still_has(self.pager.source, file.file, index, from);
        self.put_new_anon(at, copy, stays).map(drop)
    }

    /// The store of the file is asked whether the page may be written to.
    ///
    /// # Locking
    /// No spin lock: the store is asked. It may answer for a page that a truncation takes meanwhile, of which the entry tells afterwards.
    ///
    /// # Linux
    /// `do_page_mkwrite` in `mm/memory.c`.
    #[doc(alias = "do_page_mkwrite")]
    pub(super) fn prepare_writing(&self, at: &At<'_, '_>, file: FileRef) -> Result<(), Stop> {
        if !file.has_store() {
            return Ok(());
        }
        let Pager { source, cache, .. } = self.pager;
        match cache.prepare_write(source, file.file, at.vma.pgoff_at(at.page)) {
            Ok(None) => Ok(()),
            Ok(Some(ticket)) => Err(Stop::Wait(ticket)),
            Err(CacheError::OutOfMemory) => Err(Stop::OutOfMemory),
            Err(_) => Err(Stop::Signal(Signal::NoPage)),
        }
    }

    /// Maps a page of a file, unless there is an entry by now.
    ///
    /// # Linux
    /// `do_shared_fault` and `do_read_fault` in `mm/memory.c`.
    #[doc(alias = "do_shared_fault")]
    #[doc(alias = "do_read_fault")]
    fn map_file_page(
        &self,
        at: &At<'_, '_>,
        file: FileRef,
        held: PageHold<'_, S>,
        bits: PteBits,
    ) -> Result<(), Stop> {
        let (addr, pfn) = (at.page, held.pfn());
        let index = at.vma.pgoff_at(addr);
        let kind = Self::file_rss(&at.vma);
        let mapped = self.with_table(addr, |table| {
            let Some(page) = self.pager.page(pfn).filter(|_| table.get(addr) == Pte::None) else {
                return false;
            };
            // Under the table's lock: a truncation that comes later finds the entry. So does a write-back that has taken the page for clean since it is dirty,
            // and forbids writing again.
            let Pager { source, cache, .. } = self.pager;
            let stays = match bits.contains(PteBits::DIRTY) {
                true => cache.dirty_if_still_has(source, file.file, index, pfn),
                false => cache.still_has(source, file.file, index, pfn),
            };
            if stays {
                page.add_map();
                self.shared.add_rss(kind, 1);
                let bits = bits | PteBits::ACCESSED;
                table.set(addr, Pte::Present(Mapped { pfn, bits }));
            }
            stays
        });
        if mapped? == Some(true) {
            held.leave();
        }
        Ok(())
    }

    /// Maps the pages around a read that the cache has at hand, with the table and the file locked once; whether the page itself was among them.
    ///
    /// # Linux
    /// `do_fault_around` in `mm/memory.c`, `filemap_map_pages` in `mm/filemap.c`.
    #[doc(alias = "do_fault_around")]
    fn map_around(&self, at: &At<'_, '_>, file: FileRef) -> Result<bool, Stop> {
        let window = AROUND * PAGE_SIZE as u64;
        let aligned = at.page.get() & !(window - 1);
        let first = VirtAddr::from(aligned.max(at.vma.start.get()));
        // Where the VMA begins late, as many pages are mapped behind it; all by entries of one table.
        let table_end = (at.page.get() | (HUGE_SIZE - 1)).saturating_add(1);
        let end = first.get().saturating_add(window).min(table_end).min(at.vma.end.get());
        let Pager { source, cache, .. } = self.pager;
        let (index, pages) = (at.vma.pgoff_at(first), (end - first.get()) >> PAGE_SHIFT);
        // Pages around the one that is touched are noted as used too, as on x86.
        let bits = rights(&at.vma) | PteBits::ACCESSED;
        let (mut hit, mut mapped) = (false, 0);
        let has_pages = || cache.has_around(source, file.file, index, pages);
        self.with_table_for(at.page, has_pages, |table| {
            // Under both locks: a truncation that comes later finds the entries.
            cache.visit_around(source, file.file, index, pages, |place, pfn, page| {
                let addr = VirtAddr::from(first.get() + (u64::from(place) << PAGE_SHIFT));
                hit |= addr == at.page;
                if table.get(addr) == Pte::None {
                    page.add_map_with_reference();
                    table.set(addr, Pte::Present(Mapped { pfn, bits }));
                    mapped += 1;
                }
            });
            if mapped != 0 {
                self.shared.add_rss(Self::file_rss(&at.vma), u64::from(mapped));
            }
        })?;
        if mapped != 0 {
            let vma = at.mm.vma_slot(at.slot);
            let mut ahead = ReadAhead::from_bits(vma.readahead());
            ahead.mapped(mapped);
            vma.set_readahead(ahead.to_bits());
        }
        Ok(hit)
    }
}

/// How a mapping with these flags is read.
pub(super) fn pattern(flags: VmFlags) -> Pattern {
    if flags.contains(VmFlags::RAND_READ) {
        Pattern::Random
    } else if flags.contains(VmFlags::SEQ_READ) {
        Pattern::MappedSequential
    } else {
        Pattern::Mapped
    }
}
