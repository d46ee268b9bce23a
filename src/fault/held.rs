//! How a fault keeps its VMA from changing.

use super::{Access, At, Fault, MmPager, refusal};
use crate::addr::VirtAddr;
use crate::collections::Slot;
use crate::flags::VmFlags;
use crate::mm::{LockedVma, Mm, MmError, Vma, VmaSlot};
use crate::phys::PageSource;
use crate::table::EntryFormat;

/// What a fault holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held<'f, 'c> {
    /// The address space's lock, for reading at least.
    Space(&'f Mm<'c>),
    /// The lock of its VMA alone. One that needs an owner of anonymous pages has it.
    Vma(&'f LockedVma<'c>),
}

impl<'c> Held<'_, 'c> {
    /// As [`Mm::prepare_anon`].
    pub(super) fn prepare_anon(&self, slot: Slot) -> Result<(), MmError> {
        match self {
            Self::Space(mm) => mm.prepare_anon(slot),
            // Getting one asks neighbours; so a VMA without is not locked alone for that.
            Self::Vma(_) => Ok(()),
        }
    }

    pub(super) fn vma(&self, slot: Slot) -> Vma {
        match self {
            Self::Space(mm) => mm.vma(slot),
            Self::Vma(locked) => locked.vma(),
        }
    }

    pub(super) fn vma_slot(&self, slot: Slot) -> &'c VmaSlot {
        match self {
            Self::Space(mm) => mm.vma_slot(slot),
            Self::Vma(locked) => locked.vma_slot(),
        }
    }
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Resolves an access that the hardware refused, with nothing locked but the VMA that holds `addr`. `None` if that is not enough: the access
    /// is forbidden, or the VMA must get an owner of anonymous pages first.
    ///
    /// # Locking
    /// The VMA is locked; the address space's lock need not be held. No pin, no spin lock.
    ///
    /// # Linux
    /// `handle_mm_fault` in `mm/memory.c` with `FAULT_FLAG_VMA_LOCK`.
    #[doc(alias = "FAULT_FLAG_VMA_LOCK")]
    pub fn handle_fault_in(&self, locked: &LockedVma<'_>, addr: VirtAddr, access: Access) -> Option<Fault> {
        let vma = locked.vma();
        if refusal(&vma, access).is_some() || (vma.anon.is_none() && self.wants_owner(&vma, addr, access)) {
            return None;
        }
        let at = At { mm: Held::Vma(locked), slot: locked.slot(), vma, page: addr.page_floor(), access };
        Some(self.resolve_and_count(&at).into())
    }

    /// Whether a fault needs an owner of anonymous pages. A small page of zeros is nobody's; a huge one has an owner all the same.
    ///
    /// # Linux
    /// Where `vmf_anon_prepare` in `mm/memory.c` is called: by `do_anonymous_page` for a store alone, by `do_huge_pmd_anonymous_page` before it
    /// looks what kind of access it is.
    #[doc(alias = "vmf_anon_prepare")]
    fn wants_owner(&self, vma: &Vma, addr: VirtAddr, access: Access) -> bool {
        let may_be_huge = || vma.huge_page_at(addr, self.pager.context.sysctl().huge_pages).is_some();
        !vma.flags.contains(VmFlags::SHARED)
            && (access == Access::Write || vma.backing.is_anonymous() && may_be_huge())
    }
}
