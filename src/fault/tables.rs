//! What the calls do to pages.

use super::missing::id;
use super::zap::Guards;
use super::{MmPager, Pager};
use crate::addr::{PAGE_SHIFT, VirtAddr, VirtRange, Vpn};
use crate::cache::{CacheError, FileId, Step, SyncMode, WriteBack};
use crate::collections::Slot;
use crate::flags::{Advice, VmFlags};
use crate::mm::{Backing, FileKind, FileRef, MmError, Tables, Vma};
use crate::phys::PageSource;
use crate::table::EntryFormat;

impl<S: PageSource, F: EntryFormat> Tables for MmPager<'_, '_, S, F> {
    fn unmap(&mut self, _vma: &Vma, range: VirtRange) {
        let mut gather = self.gather();
        self.zap(range, Guards::Go, &mut gather);
        gather.finish();
    }

    fn free_tables(&mut self, hole: VirtRange) {
        let mut gather = self.gather();
        self.table.free_empty(hole, self.shared.table_lock(), &mut gather.tlb);
        gather.finish();
    }

    fn protect(&mut self, vma: &Vma, range: VirtRange) {
        self.change_protection(vma, range);
    }

    fn split_huge(&mut self, at: VirtAddr) {
        self.split_at(at);
    }

    fn prepare_move(&mut self, _vma: &Vma, from: VirtRange, to: VirtAddr) -> Result<(), MmError> {
        self.prepare_entries(from, to)
    }

    fn move_pages(&mut self, _vma: &Vma, from: VirtRange, to: VirtAddr) {
        self.move_entries(from, to);
    }

    fn fork(&mut self, child: &mut Self, vma: &Vma) -> Result<(), MmError> {
        self.copy_range(child, vma)
    }

    fn is_resident(&mut self, vma: &Vma, page: Vpn) -> bool {
        let addr = page.addr();
        self.is_mapped(addr)
            || match vma.backing {
                Backing::File(file) => {
                    self.pager.cache.residency(self.pager.source, id(file), vma.pgoff_at(addr))
                }
                Backing::Anonymous | Backing::Special(_) => false,
            }
    }

    fn advise(&mut self, vma: &Vma, range: VirtRange, advice: Advice) -> Result<(), MmError> {
        match advice {
            Advice::DontNeed | Advice::DontNeedLocked => {
                let mut gather = self.gather();
                self.zap(range, Guards::Stay, &mut gather);
                gather.finish();
                // Leaf tables that have become empty go too (Linux: `try_to_free_pte`), so that huge pages can come again.
                self.free_tables(range);
                Ok(())
            }
            Advice::Remove => self.punch(vma, range),
            Advice::WillNeed => {
                self.will_need(vma, range);
                Ok(())
            }
            Advice::GuardInstall => self.install_guards(range),
            Advice::GuardRemove => {
                self.remove_guards(range);
                Ok(())
            }
            Advice::Free | Advice::Cold | Advice::PageOut => {
                self.split_own_edges(range);
                Ok(())
            }
            // Advice for reclaim: as long as no page is taken away, following it changes nothing that can be seen.
            _ => Ok(()),
        }
    }

    fn sync(&mut self, vma: &Vma, range: VirtRange) -> Result<(), MmError> {
        let Backing::File(file) = vma.backing else { return Ok(()) };
        let (first, end) = (vma.pgoff_at(range.start()), vma.pgoff_at(range.end()));
        self.write_back(id(file), WriteBack::new(id(file), first, end, SyncMode::Wait))
    }

    fn shared_anonymous(&mut self, pages: u64, flags: VmFlags) -> Result<FileRef, MmError> {
        let charged = if flags.contains(VmFlags::NORESERVE) { 0 } else { pages };
        self.pager.context.overcommit().charge(charged, 0)?;
        match self.pager.cache.create_memory(self.pager.source, pages << PAGE_SHIFT) {
            Ok(file) => {
                self.unclaimed = Some(file);
                FileRef::new(file.0.get(), file.0.get(), FileKind::SharedAnonymous)
                    .ok_or(MmError::OutOfMemory)
            }
            Err(_) => {
                self.pager.context.overcommit().uncharge(charged);
                Err(MmError::OutOfMemory)
            }
        }
    }

    fn open(&mut self, slot: Slot, vma: &Vma) {
        let Backing::File(file) = vma.backing else { return };
        let file = id(file);
        // What made an object for a mapping counts as its user until the mapping is there.
        if self.unclaimed == Some(file) {
            self.unclaimed = None;
        } else {
            let counted = self.pager.cache.add_user(self.pager.source, file);
            debug_assert!(counted.is_ok(), "a file is mapped that is not there: {counted:?}");
        }
        let shared = self.pager.cache.share(file, slot);
        debug_assert!(shared.is_ok(), "a VMA is new, and on a file's list already: {shared:?}");
    }

    fn close(&mut self, slot: Slot, vma: &Vma) {
        let Backing::File(file) = vma.backing else { return };
        let cache = self.pager.cache;
        let unshared = cache.unshare(id(file), slot);
        debug_assert!(unshared.is_ok(), "a VMA was not on its file's list: {unshared:?}");
        let size = cache.size(self.pager.source, id(file)).unwrap_or(0);
        let put = cache.put_user(self.pager.source, id(file));
        debug_assert!(put.is_ok(), "a file was gone before its mapping: {put:?}");
        let is_gone = cache.size(self.pager.source, id(file)).is_err();
        let was_charged = file.kind == FileKind::SharedAnonymous && !vma.flags.contains(VmFlags::NORESERVE);
        if is_gone && was_charged {
            self.pager.context.overcommit().uncharge(size >> PAGE_SHIFT);
        }
    }
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Writes, and waits until it is written.
    fn write_back(&self, file: FileId, mut job: WriteBack) -> Result<(), MmError> {
        let Pager { source, cache, .. } = self.pager;
        let entries = self.pager.entries();
        let before = cache.errors_so_far(source, file).map_err(cause)?;
        while let Step::Wait(ticket) = cache.write_back(source, &entries, &mut job).map_err(cause)? {
            cache.wait(source, ticket);
        }
        let mut seen = before;
        cache.take_error(source, file, &mut seen).map_err(cause)
    }

    /// MADV_REMOVE: the file gets a hole.
    fn punch(&self, vma: &Vma, range: VirtRange) -> Result<(), MmError> {
        let Backing::File(file) = vma.backing else { return Err(MmError::BadAdvice) };
        let (first, end) = (vma.pgoff_at(range.start()), vma.pgoff_at(range.end()));
        let entries = self.pager.entries();
        self.pager.cache.punch_hole(self.pager.source, &entries, id(file), first, end).map_err(cause)
    }

    /// MADV_WILLNEED: the file's pages are read, and nobody waits for them.
    fn will_need(&self, vma: &Vma, range: VirtRange) {
        let Backing::File(file) = vma.backing else { return };
        let (first, pages) = (vma.pgoff_at(range.start()), range.len() >> PAGE_SHIFT);
        // Advice that cannot be followed is no error.
        let _ = self.pager.cache.will_need(self.pager.source, id(file), first, pages);
    }

    /// Gives the tables of an address space back that has nothing mapped any more.
    pub fn destroy(self) {
        let mut gather = self.gather();
        self.table.destroy(&mut gather.tlb);
        gather.finish();
        self.leave_huge_zero();
    }
}

/// What the mmap family answers where the page cache refused.
const fn cause(error: CacheError) -> MmError {
    match error {
        CacheError::Io => MmError::Io,
        CacheError::NoSpace => MmError::NoSpace,
        CacheError::BadFile => MmError::BadDescriptor,
        CacheError::Unsupported => MmError::UnsupportedFlag,
        _ => MmError::OutOfMemory,
    }
}
