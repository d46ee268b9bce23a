//! New rights for the pages of a range.

use super::MmPager;
use super::entry::{RIGHTS, one_page, rights};
use super::gather::Gather;
use super::zap::Entry;
use crate::addr::VirtRange;
use crate::flags::{PageFlags, VmFlags};
use crate::mm::{FileKind, Vma, huge_page_around};
use crate::phys::PageSource;
use crate::table::{Change, EntryFormat, HugeRef, Mapped, Pte, PteBits};

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Gives the pages of `range` the rights of `vma`, whose flags are new. Only translations that allowed more are flushed.
    ///
    /// # Linux
    /// `change_protection` in `mm/mprotect.c`.
    pub(super) fn change_protection(&self, vma: &Vma, range: VirtRange) {
        self.split_edges(range);
        let mut gather = self.gather();
        if !vma.flags.contains(VmFlags::WRITE) {
            // Then it does not matter whose a page is.
            let change = Change { clear: RIGHTS, set: rights(vma) & RIGHTS };
            self.table.protect_range(range, &mut gather.tlb, change);
            return gather.finish();
        }
        self.for_each_entry(range, |entry| match entry {
            Entry::Small(table, at, Pte::Present(old)) => {
                let new = self.new_rights(vma, old);
                if new == old.bits {
                    return;
                }
                // Accessed and dirty, which the CPU may set at this very moment, are kept.
                table.update(at, |now| match now {
                    Pte::Present(now) => Pte::Present(with_rights(now, new)),
                    other => other,
                });
                if takes_away(old.bits, new) {
                    gather.flush_range(one_page(at));
                }
            }
            Entry::Small(..) => {}
            Entry::Huge(huge) => self.change_huge(vma, huge, &mut gather),
        });
        gather.finish();
    }

    /// # Linux
    /// `change_huge_pmd` in `mm/huge_memory.c`.
    #[doc(alias = "change_huge_pmd")]
    fn change_huge(&self, vma: &Vma, huge: &HugeRef<'_, F>, gather: &mut Gather<'_, '_, S>) {
        let Some(old) = huge.get().mapped() else { return };
        let new = self.new_rights(vma, old);
        if new == old.bits {
            return;
        }
        huge.update(|now| with_rights(now, new));
        if let Some(page) = huge_page_around(huge.base()).filter(|_| takes_away(old.bits, new)) {
            gather.tlb.flush_huge(page);
        }
    }

    /// Of a huge page the first small one stands for all: a fork makes all of them common, and a fault all or none a process's own.
    ///
    /// # Linux
    /// `can_change_pte_writable` and `can_change_pmd_writable` in `mm/mprotect.c`.
    #[doc(alias = "can_change_pte_writable")]
    pub(super) fn new_rights(&self, vma: &Vma, old: Mapped) -> PteBits {
        let mut bits = (old.bits - RIGHTS) | (rights(vma) & RIGHTS);
        let may_write = if old.bits.contains(PteBits::SPECIAL) {
            !self.is_zero(old) && vma.flags.contains(VmFlags::SHARED)
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

/// An entry with the rights of `new` and all else as it is.
fn with_rights(now: Mapped, new: PteBits) -> Mapped {
    Mapped { bits: (now.bits - RIGHTS) | (new & RIGHTS), ..now }
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
