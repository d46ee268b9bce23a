//! New rights for the pages of a range.

use super::MmPager;
use super::entry::{RIGHTS, rights};
use crate::addr::VirtRange;
use crate::flags::{PageFlags, VmFlags};
use crate::mm::{FileKind, Vma};
use crate::phys::{Page, PageSource};
use crate::table::{Change, EntryFormat, Mapped, PteBits};

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Gives the pages of `range` the rights of `vma`, whose flags are new. Only translations that allowed more are flushed.
    ///
    /// # Linux
    /// `change_protection` in `mm/mprotect.c`.
    pub(super) fn change_protection(&self, vma: &Vma, range: VirtRange) {
        self.split_edges(range);
        let mut gather = self.gather();
        let change = Change { clear: RIGHTS, set: (rights(vma) & RIGHTS) - PteBits::WRITE };
        if vma.flags.contains(VmFlags::WRITE) {
            let writable = Change { set: change.set | PteBits::WRITE, ..change };
            let choose = |old| if self.may_write(vma, old) { writable } else { change };
            self.table.protect_with(range, &mut gather.tlb, choose);
        } else {
            // Then it does not matter whose a page is.
            self.table.protect_range(range, &mut gather.tlb, change);
        }
        gather.finish();
    }

    /// Whether an entry of a VMA that may be written lets its page be written at once. Of a huge page the first small one stands for all: a fork makes all of them common, and a fault all or none a process's own.
    ///
    /// # Linux
    /// `can_change_pte_writable` and `can_change_pmd_writable` in `mm/mprotect.c`.
    #[doc(alias = "can_change_pte_writable")]
    fn may_write(&self, vma: &Vma, old: Mapped) -> bool {
        if old.bits.contains(PteBits::SPECIAL) {
            !self.is_zero(old) && vma.flags.contains(VmFlags::SHARED)
        } else if vma.flags.contains(VmFlags::SHARED) {
            // A clean page's first write has to be noticed.
            old.bits.contains(PteBits::DIRTY) || !wants_notice(vma)
        } else {
            let exclusive = |page: &Page| page.flags().contains(PageFlags::ANON_EXCLUSIVE);
            self.pager.page(old.pfn).is_some_and(exclusive)
        }
    }
}

/// Whether the first write to a clean page of a shared mapping has to be noticed.
///
/// # Linux
/// `vma_wants_writenotify` in `mm/mmap.c`.
#[doc(alias = "vma_wants_writenotify")]
pub(super) fn wants_notice(vma: &Vma) -> bool {
    vma.backing.file().is_some_and(|file| file.kind == FileKind::Regular)
}
