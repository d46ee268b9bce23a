//! New rights for the pages of a range.

use super::MmPager;
use super::entry::{one_page, rights};
use crate::addr::VirtRange;
use crate::flags::{PageFlags, VmFlags};
use crate::mm::{FileKind, Vma};
use crate::phys::PageSource;
use crate::table::{EntryFormat, Mapped, Pte, PteBits};

/// What an entry allows, all else aside.
const RIGHTS: PteBits = PteBits::READ.union(PteBits::WRITE).union(PteBits::EXEC).union(PteBits::PROT_NONE);

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Gives the pages of `range` the rights of `vma`, whose flags are new. Only translations that allowed more are flushed.
    ///
    /// # Linux
    /// `change_protection` in `mm/mprotect.c`.
    pub(super) fn change_protection(&self, vma: &Vma, range: VirtRange) {
        let mut gather = self.gather();
        self.for_each_entry(range, |table, at, entry| {
            let Pte::Present(old) = entry else { return };
            let new = self.new_rights(vma, old);
            if new == old.bits {
                return;
            }
            // Accessed and dirty, which the CPU may set at this very moment, are kept.
            table.update(at, |now| match now {
                Pte::Present(now) => {
                    let kept = now.bits - RIGHTS;
                    Pte::Present(Mapped { bits: kept | new & RIGHTS, ..now })
                }
                other => other,
            });
            if takes_away(old.bits, new) {
                gather.flush_range(one_page(at));
            }
        });
        gather.finish();
    }

    /// # Linux
    /// `can_change_pte_writable` in `mm/mprotect.c`.
    #[doc(alias = "can_change_pte_writable")]
    pub(super) fn new_rights(&self, vma: &Vma, old: Mapped) -> PteBits {
        let mut bits = (old.bits - RIGHTS) | (rights(vma) & RIGHTS);
        let may_write = if old.bits.contains(PteBits::SPECIAL) {
            old.pfn != self.pager.zero_page && vma.flags.contains(VmFlags::SHARED)
        } else if vma.flags.contains(VmFlags::SHARED) {
            // A clean page's first write has to be noticed.
            old.bits.contains(PteBits::DIRTY) || !wants_notice(vma)
        } else {
            let exclusive = |page: &crate::phys::Page| page.flags().contains(PageFlags::ANON_EXCLUSIVE);
            self.pager.page(old.pfn).is_some_and(exclusive)
        };
        bits.set(PteBits::WRITE, may_write && vma.flags.contains(VmFlags::WRITE));
        bits
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

/// Whether `new` forbids something that `old` allowed.
pub(super) fn takes_away(old: PteBits, new: PteBits) -> bool {
    let access = PteBits::READ | PteBits::WRITE | PteBits::EXEC;
    let allowed = |bits: PteBits| match bits.contains(PteBits::PROT_NONE) {
        true => PteBits::empty(),
        false => bits & access,
    };
    !allowed(new).contains(allowed(old))
}
