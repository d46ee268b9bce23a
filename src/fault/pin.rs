//! Pins: pages whose frames somebody outside uses, a device above all, whatever becomes of the mapping.
//!
//! A pin is [`Page::PIN_BIAS`] references. A page that has so many counts as pinned, so that one with very many ordinary references is taken for
//! pinned too; that costs a copy and harms nobody.

use super::entry::noted;
use super::held::Held;
use super::{Access, At, MmPager, Pager, Signal, Stop};
use crate::addr::{PAGE_SHIFT, Pfn, VirtAddr};
use crate::flags::{PageFlags, VmFlags};
use crate::mm::{Mm, RssKind, Vma};
use crate::phys::{Page, PageSource};
use crate::platform::Platform;
use crate::rmap::AnonVmaId;
use crate::table::{EntryFormat, Leaf, Mapped, Pte, PteBits};

/// For how long pages are pinned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PinTerm {
    /// Until an input or output is over.
    Short,
    /// For as long as user space likes: not with pages of a file that has to notice when they are written.
    #[doc(alias = "FOLL_LONGTERM")]
    Long,
}

/// Whether a page was written while it was pinned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PinUse {
    /// It was not.
    Clean,
    /// It was: if it is a file's, it is to be written back.
    Dirtied,
}

/// What came of an attempt to pin a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PinAttempt {
    /// It has one pin more.
    Page(Pfn),
    /// Nothing is mapped that allows the access: fault first.
    Fault,
    /// The process has got a page of its own, or something has changed: try again.
    Again,
}

/// What is to be done about an entry.
enum Verdict {
    Fault,
    /// Small entries are to be made of a huge one first.
    Split,
    Unshare(Mapped),
    Pinned(Pfn),
    Full,
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Pins the page at an address, for reading or for writing.
    ///
    /// An anonymous page is pinned only if it is this process's alone: else a write by the process would give it another page than the one
    /// that is pinned.
    ///
    /// # Locking
    /// As [`handle_fault`](Self::handle_fault).
    ///
    /// # Linux
    /// `follow_page_pte`, `gup_must_unshare` and `check_vma_flags` in `mm/gup.c`.
    #[doc(alias = "gup_must_unshare")]
    pub(crate) fn pin_page(
        &self,
        mm: &Mm<'_>,
        addr: VirtAddr,
        access: Access,
        term: PinTerm,
    ) -> Result<PinAttempt, Stop> {
        let slot = mm.find_vma(addr).ok_or(Stop::Signal(Signal::NotMapped))?;
        let vma = mm.vma(slot);
        if vma.start > addr {
            return Err(Stop::Signal(Signal::NotMapped));
        }
        if !may_pin(&vma, access, term) {
            return Err(Stop::Signal(Signal::Denied));
        }
        let page = addr.page_floor();
        match self.try_pin(&vma, page, access, term) {
            Verdict::Fault => Ok(PinAttempt::Fault),
            Verdict::Pinned(pfn) => Ok(PinAttempt::Page(pfn)),
            // It has as many as it can have.
            Verdict::Full => Err(Stop::OutOfMemory),
            Verdict::Split => {
                self.split_at(page);
                Ok(PinAttempt::Again)
            }
            Verdict::Unshare(entry) => {
                // Of a huge page one small page is copied.
                self.split_at(page);
                self.copy_on_write(&At { mm: Held::Space(mm), slot, vma, page, access }, entry)?;
                Ok(PinAttempt::Again)
            }
        }
    }

    /// Pins what the entry of a page leads to, if it allows the access and need not be unshared first.
    fn try_pin(&self, vma: &Vma, page: VirtAddr, access: Access, term: PinTerm) -> Verdict {
        let used = noted(access);
        let pin = self.pager.source.platform().pin();
        match self.table.lock(&pin, page) {
            Leaf::Absent { .. } => Verdict::Fault,
            Leaf::Table(table) => {
                let verdict = self.verdict(vma, table.get(page).mapped(), access, term);
                if let Verdict::Pinned(_) = verdict {
                    table.update(page, |pte| match pte {
                        Pte::Present(now) => Pte::Present(Mapped { bits: now.bits | used, ..now }),
                        other => other,
                    });
                }
                verdict
            }
            // Small pages of zeros can be pinned.
            Leaf::Huge(huge)
                if access != Access::Write
                    && huge.get().mapped().is_some_and(|whole| self.is_huge_zero(whole)) =>
            {
                Verdict::Split
            }
            Leaf::Huge(huge) => {
                let inside = (page.get() - huge.base().get()) >> PAGE_SHIFT;
                let entry = huge
                    .get()
                    .mapped()
                    .and_then(|entry| Some(Mapped { pfn: entry.pfn.checked_add(inside)?, ..entry }));
                let verdict = self.verdict(vma, entry, access, term);
                if let Verdict::Pinned(_) = verdict {
                    huge.update(|now| Mapped { bits: now.bits | used, ..now });
                }
                verdict
            }
        }
    }

    /// What is to be done with an entry, which is locked: its page is pinned already if that is the answer.
    fn verdict(&self, vma: &Vma, entry: Option<Mapped>, access: Access, term: PinTerm) -> Verdict {
        let needed = if access == Access::Write { PteBits::WRITE } else { PteBits::READ };
        let allows = |entry: &Mapped| entry.bits.contains(needed) && !entry.bits.contains(PteBits::PROT_NONE);
        let Some(entry) = entry.filter(allows) else { return Verdict::Fault };
        if self.must_unshare(vma, entry, access, term) {
            return Verdict::Unshare(entry);
        }
        match self.pager.page(entry.pfn).is_some_and(Page::try_pin) {
            true => Verdict::Pinned(entry.pfn),
            false => Verdict::Full,
        }
    }

    fn must_unshare(&self, vma: &Vma, entry: Mapped, access: Access, term: PinTerm) -> bool {
        let Some(page) = self.pager.page(entry.pfn) else { return false };
        if access == Access::Write {
            return false;
        }
        let flags = page.flags();
        match flags.contains(PageFlags::ANON) {
            true => !flags.contains(PageFlags::ANON_EXCLUSIVE),
            // The first write of the process would map a copy, and leave the pin behind: of the page of zeros too.
            false => term == PinTerm::Long && is_private(vma),
        }
    }

    /// Whether a child must get a copy of its own at once: what is pinned stays the parent's.
    ///
    /// # Linux
    /// `folio_needs_cow_for_dma` in `include/linux/mm.h`.
    #[doc(alias = "page_needs_cow_for_dma")]
    pub(super) fn needs_copy(&self, vma: &Vma, entry: Mapped) -> bool {
        is_private(vma)
            && !entry.bits.contains(PteBits::SPECIAL)
            && self.pager.page(entry.pfn).is_some_and(|page| {
                page.flags().contains(PageFlags::ANON | PageFlags::ANON_EXCLUSIVE) && page.maybe_pinned()
            })
    }

    /// Books `copy`, which has the bytes of the anonymous page that `entry` maps, as mapped by this address space: a child of the one that has the
    /// entry. Answers the entry for it; `None` if the page has lost its owner.
    ///
    /// # Linux
    /// `copy_present_page` in `mm/memory.c`.
    #[doc(alias = "copy_present_page")]
    pub(super) fn book_child_copy(&self, vma: &Vma, entry: Mapped, copy: Pfn) -> Option<Mapped> {
        let (old, new) = (self.pager.page(entry.pfn)?, self.pager.page(copy)?);
        let owner = AnonVmaId::new(old.mapping())?;
        let noted = new.set_mapping(old.mapping()) && new.set_index(old.index());
        debug_assert!(noted, "a frame was allocated for this just now");
        new.set_flags(super::entry::ANONYMOUS | PageFlags::ANON_EXCLUSIVE);
        self.pager.context.anon_vmas().add_page(owner);
        new.add_map();
        self.shared.add_rss(RssKind::Anon, 1);
        let bits = super::entry::writable(entry.bits, vma.flags);
        Some(Mapped { pfn: copy, bits })
    }
}

impl<S: PageSource, F: EntryFormat> Pager<'_, '_, S, F> {
    /// Takes a pin back; the frame is free if nobody else has it. A page of a file is the file's as long as it is pinned, though nobody has that open or mapped any more:
    /// what was written to it goes to the store, unless the file was truncated meanwhile.
    ///
    /// # Linux
    /// `unpin_user_page` and `unpin_user_pages_dirty_lock` in `mm/gup.c`.
    pub(crate) fn unpin(&self, pfn: Pfn, used: PinUse) -> bool {
        let Some(page) = self.page(pfn) else { return false };
        if used == PinUse::Dirtied && !page.flags().contains(PageFlags::ANON) {
            self.cache.set_dirty(self.source, pfn);
        }
        let unpinned = page.unpin_but_one();
        if unpinned {
            self.cache.unpinned(self.source, pfn);
            self.drop_page(pfn);
        }
        unpinned
    }
}

/// Whether writes of the process through this VMA go to pages of its own.
fn is_private(vma: &Vma) -> bool {
    !vma.flags.intersects(VmFlags::SHARED | VmFlags::MAYSHARE)
}

/// Whether pages of a VMA may be pinned like this.
///
/// # Linux
/// `check_vma_flags` and `writable_file_mapping_allowed` in `mm/gup.c`.
#[doc(alias = "check_vma_flags")]
fn may_pin(vma: &Vma, access: Access, term: PinTerm) -> bool {
    let allowed = match access {
        Access::Write => vma.flags.contains(VmFlags::WRITE),
        Access::Read | Access::Exec => vma.flags.contains(VmFlags::READ),
    };
    let for_long = term == PinTerm::Long && access == Access::Write;
    allowed && !vma.flags.intersects(VmFlags::IO | VmFlags::PFNMAP) && !(for_long && vma.wants_notice())
}
