//! What the calls do to pages.

use super::zap::Guards;
use super::{Access, Fault, MmPager};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, VirtAddr, VirtRange, Vpn};
use crate::cache::WriteBack;
use crate::collections::Slot;
use crate::flags::{Advice, VmFlags};
use crate::mm::{Backing, FileKind, FileRef, Mm, MmError, Tables, Touch, Vma};
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
        self.table.free_empty(hole, self.shared.table_lock(), &mut gather);
        gather.finish();
    }

    fn protect(&mut self, vma: &Vma, range: VirtRange) {
        self.change_protection(vma, range);
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
                Backing::File(file) => self.pager.cache.residency(file.file, vma.pgoff_at(addr)),
                Backing::Anonymous | Backing::Special(_) => false,
            }
    }

    fn advise(&mut self, vma: &Vma, range: VirtRange, advice: Advice) -> Result<(), MmError> {
        match advice {
            Advice::DontNeed | Advice::DontNeedLocked => {
                let mut gather = self.gather();
                self.zap(range, Guards::Stay, &mut gather);
                gather.finish();
                Ok(())
            }
            Advice::Remove => self.punch(vma, range),
            Advice::WillNeed => self.read_ahead(vma, range),
            Advice::GuardInstall => self.install_guards(range),
            Advice::GuardRemove => {
                self.remove_guards(range);
                Ok(())
            }
            // Advice for reclaim: as long as no page is taken away, following it changes nothing that can be seen.
            _ => Ok(()),
        }
    }

    fn sync(&mut self, vma: &Vma, range: VirtRange) -> Result<(), MmError> {
        let Backing::File(file) = vma.backing else { return Ok(()) };
        let first = vma.pgoff_at(range.start());
        let end = vma.pgoff_at(range.end());
        self.pager.write_back(file.file, first, end, WriteBack::Sync)
    }

    fn shared_anonymous(&mut self, pages: u64, flags: VmFlags) -> Result<FileRef, MmError> {
        self.pager.create_shared(pages, flags)
    }

    fn open(&mut self, slot: Slot, vma: &Vma) {
        if let Backing::File(file) = vma.backing {
            self.pager.cache.map(file.file, slot);
        }
    }

    fn close(&mut self, slot: Slot, vma: &Vma) {
        if let Backing::File(file) = vma.backing {
            self.pager.cache.unmap(self.pager.source, file.file, slot);
        }
    }
}
