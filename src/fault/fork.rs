//! A child gets its parent's pages, to be shared until one of the two writes.

use super::entry::one_page;
use super::gather::Gather;
use super::{MmPager, Pager};
use crate::addr::{Pfn, VirtAddr, VirtRange};
use crate::flags::{GfpFlags, PageFlags, VmFlags};
use crate::mm::{MmError, Vma};
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::{EntryFormat, Leaf, Mapped, Pte, PteBits};

/// What a place has entries in.
enum Kind {
    /// Nothing, up to here.
    Hole(VirtAddr),
    /// One huge entry, up to here.
    Huge(VirtAddr),
    /// A leaf table.
    Table,
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Copies the entries of `vma` to a child's tables. Of memory without anonymous pages or guards nothing is copied: faults will find
    /// it in the file.
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`]; the child has some entries then.
    ///
    /// # Linux
    /// `copy_page_range` in `mm/memory.c`.
    #[doc(alias = "copy_page_range")]
    pub(super) fn copy_range(&self, child: &Self, vma: &Vma) -> Result<(), MmError> {
        let only_here = VmFlags::PFNMAP | VmFlags::MIXEDMAP | VmFlags::MAYBE_GUARD;
        let needed = vma.anon.is_some() || vma.flags.intersects(only_here);
        if !needed {
            return Ok(());
        }
        let mut gather = self.gather();
        let result = self.copy_leaves(child, vma, &mut gather);
        // What the parent may no longer write must be forgotten before anybody trusts in it.
        gather.finish();
        result
    }

    fn copy_leaves(&self, child: &Self, vma: &Vma, gather: &mut Gather<'_, '_, S>) -> Result<(), MmError> {
        // A frame for the copy of a pinned page, taken while no table is locked.
        let mut spare = Spare { pager: self.pager, frame: None };
        let mut at = vma.start;
        while at < vma.end {
            match self.kind_at(at) {
                Kind::Hole(next) => {
                    at = next;
                    continue;
                }
                Kind::Huge(next) => {
                    // If it is none any more, what it has become is looked at.
                    if self.copy_huge(child, vma, at, gather)? {
                        at = next;
                    }
                    continue;
                }
                Kind::Table => {}
            }
            child.table.ensure(at, GfpFlags::KERNEL).map_err(|_| MmError::OutOfMemory)?;
            let pin = self.pager.source.platform().pin();
            let Leaf::Table(ours) = self.table.lock(&pin, at) else { continue };
            let Leaf::Table(theirs) = child.table.lock(&pin, at) else { continue };
            let end = vma.end.min(ours.end());
            let part = VirtRange::new(at, end).unwrap_or_default();
            let mut pinned = None;
            for (at, pte) in ours.iter(part) {
                match pte {
                    Pte::None => {}
                    Pte::Present(entry) if self.needs_copy(vma, entry) => {
                        let copy = spare.filled_with(entry.pfn);
                        let Some(copy) = copy.and_then(|copy| child.book_child_copy(vma, entry, copy)) else {
                            pinned = Some(at);
                            break;
                        };
                        spare.frame = None;
                        theirs.set(at, Pte::Present(copy));
                    }
                    Pte::Present(entry) => {
                        let (kept, copy) = self.share(child, vma, entry);
                        if kept != entry {
                            ours.update(at, |now| match now {
                                Pte::Present(now) => {
                                    Pte::Present(Mapped { bits: now.bits - PteBits::WRITE, ..now })
                                }
                                other => other,
                            });
                            gather.flush_range(one_page(at));
                        }
                        theirs.set(at, Pte::Present(copy));
                    }
                    // Markers and swapped pages.
                    other => theirs.set(at, other),
                }
            }
            drop((ours, theirs));
            at = match pinned {
                None => end,
                Some(at) => {
                    drop(pin);
                    spare.refill()?;
                    at
                }
            };
        }
        Ok(())
    }

    fn kind_at(&self, at: VirtAddr) -> Kind {
        let pin = self.pager.source.platform().pin();
        match self.table.lock(&pin, at) {
            Leaf::Absent { next } => Kind::Hole(next),
            Leaf::Huge(huge) => Kind::Huge(huge.end()),
            Leaf::Table(_) => Kind::Table,
        }
    }

    /// What parent and child have of a page from now on.
    ///
    /// # Linux
    /// `copy_present_ptes` in `mm/memory.c`.
    #[doc(alias = "copy_present_ptes")]
    pub(super) fn share(&self, child: &Self, vma: &Vma, entry: Mapped) -> (Mapped, Mapped) {
        let private = !vma.flags.contains(VmFlags::SHARED);
        let bits = if private { entry.bits - PteBits::WRITE } else { entry.bits };
        let kept = Mapped { bits, ..entry };
        // A child's entry of a shared file has not been written through yet.
        let clean = if private { PteBits::ACCESSED } else { PteBits::ACCESSED | PteBits::DIRTY };
        let copy = Mapped { bits: bits - clean, ..entry };
        if !entry.bits.contains(PteBits::SPECIAL) {
            if let Some(page) = self.pager.page(entry.pfn) {
                // The entry's own reference keeps the page; a count that stuck never frees it.
                page.try_get();
                page.add_map();
                page.clear_flags(PageFlags::ANON_EXCLUSIVE);
                child.shared.add_rss(self.rss_kind(page), 1);
            }
        }
        (kept, copy)
    }
}

/// A frame that may be needed; it is given back if it was not.
struct Spare<'a, 'm, S: PageSource, F: EntryFormat> {
    pager: Pager<'a, 'm, S, F>,
    frame: Option<Pfn>,
}

impl<S: PageSource, F: EntryFormat> Spare<'_, '_, S, F> {
    /// The frame with the bytes of another, if there is one.
    fn filled_with(&self, from: Pfn) -> Option<Pfn> {
        self.frame.filter(|&to| self.pager.copy(to, from))
    }

    /// Takes a frame. Where there is one already, it was not to be filled.
    fn refill(&mut self) -> Result<(), MmError> {
        if self.frame.is_none() {
            self.frame = Some(self.pager.user_frame().map_err(|_| MmError::OutOfMemory)?);
            return Ok(());
        }
        Err(MmError::OutOfMemory)
    }
}

impl<S: PageSource, F: EntryFormat> Drop for Spare<'_, '_, S, F> {
    fn drop(&mut self) {
        if let Some(pfn) = self.frame {
            self.pager.drop_page(pfn);
        }
    }
}
