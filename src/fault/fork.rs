//! A child gets its parent's pages, to be shared until one of the two writes.

use super::entry::{PageHold, one_page};
use super::{MmPager, Pager};
use crate::addr::{Pfn, VirtAddr, VirtRange};
use crate::flags::{GfpFlags, PageFlags, VmFlags};
use crate::mm::{MmError, RssKind, Vma};
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::{EntryFormat, Leaf, Mapped, Pte, PteBits};

/// Where CPUs may know entries that forbid writing since a fork.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LostRights {
    small: Option<VirtRange>,
    huge: Option<VirtRange>,
}

impl LostRights {
    fn note(&mut self, range: VirtRange) {
        self.small = Some(around(self.small, range));
    }

    pub(super) fn note_huge(&mut self, range: VirtRange) {
        self.huge = Some(around(self.huge, range));
    }
}

/// What encloses both.
fn around(noted: Option<VirtRange>, range: VirtRange) -> VirtRange {
    let both =
        |noted: VirtRange| VirtRange::new(noted.start().min(range.start()), noted.end().max(range.end()));
    noted.and_then(both).unwrap_or(range)
}

/// What became of the entries of a leaf.
enum Copied {
    /// The leaf is done, or there is nothing up to here.
    UpTo(VirtAddr),
    /// The child has no table here yet.
    NoTable,
    /// A huge entry, up to here.
    Huge(VirtAddr),
    /// A page from here on must be copied, and there was no frame for that.
    NoFrame(VirtAddr),
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Copies the entries of `vma` to a child's tables. Of memory without anonymous pages or guards nothing is copied: faults will find
    /// it in the file. What the parent may no longer write must be [forgotten](Self::forget_lost_rights) before anybody trusts in it.
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`]; the child has some entries then.
    ///
    /// # Linux
    /// `copy_page_range` in `mm/memory.c`.
    #[doc(alias = "copy_page_range")]
    pub(super) fn copy_range(&mut self, child: &Self, vma: &Vma) -> Result<(), MmError> {
        let only_here = VmFlags::PFNMAP | VmFlags::MIXEDMAP | VmFlags::MAYBE_GUARD;
        let needed = vma.anon.is_some() || vma.flags.intersects(only_here);
        if !needed {
            return Ok(());
        }
        let mut lost = self.lost;
        let result = self.copy_leaves(child, vma, &mut lost);
        self.lost = lost;
        result
    }

    /// Makes CPUs forget what forks have made read-only.
    pub(super) fn forget_lost_rights(&mut self) {
        let LostRights { small, huge } = core::mem::take(&mut self.lost);
        if small.is_none() && huge.is_none() {
            return;
        }
        let mut gather = self.gather();
        small.into_iter().for_each(|range| gather.tlb.flush_range(range));
        huge.into_iter().for_each(|range| gather.tlb.flush_huge(range));
        gather.finish();
    }

    fn copy_leaves(&self, child: &Self, vma: &Vma, lost: &mut LostRights) -> Result<(), MmError> {
        // A frame for the copy of a pinned page, taken while no table is locked.
        let mut spare = Spare { pager: self.pager, frame: None };
        let mut at = vma.start;
        while at < vma.end {
            match self.copy_leaf(child, vma, at, &mut spare, lost) {
                Copied::UpTo(next) => at = next,
                Copied::NoTable => {
                    child.table.ensure(at, GfpFlags::KERNEL).map_err(|_| MmError::OutOfMemory)?;
                }
                // If it is none any more, what it has become is looked at.
                Copied::Huge(next) => {
                    if self.copy_huge(child, vma, at, lost)? {
                        at = next;
                    }
                }
                Copied::NoFrame(page) => {
                    spare.refill()?;
                    at = page;
                }
            }
        }
        Ok(())
    }

    /// Copies what one leaf table has of a VMA from `at` on.
    fn copy_leaf(
        &self,
        child: &Self,
        vma: &Vma,
        at: VirtAddr,
        spare: &mut Spare<'_, '_, S, F>,
        lost: &mut LostRights,
    ) -> Copied {
        let pin = self.pager.source.platform().pin();
        let ours = match self.table.lock(&pin, at) {
            Leaf::Absent { next } => return Copied::UpTo(next),
            Leaf::Huge(huge) => return Copied::Huge(huge.end()),
            Leaf::Table(ours) => ours,
        };
        let Leaf::Table(theirs) = child.table.lock(&pin, at) else { return Copied::NoTable };
        let end = vma.end.min(ours.end());
        let part = VirtRange::new(at, end).unwrap_or_default();
        let (mut rss, mut stale) = ([0; RssKind::ALL.len()], None);
        let mut copied = Copied::UpTo(end);
        for (at, pte) in ours.iter(part) {
            match pte {
                Pte::None => {}
                Pte::Present(entry) if self.needs_copy(vma, entry) => {
                    let copy = spare.filled_with(entry.pfn);
                    let Some(copy) = copy.and_then(|copy| child.book_child_copy(vma, entry, copy)) else {
                        copied = Copied::NoFrame(at);
                        break;
                    };
                    if let Some(frame) = spare.frame.take() {
                        frame.leave();
                    }
                    theirs.set(at, Pte::Present(copy));
                }
                Pte::Present(entry) => {
                    let (kept, copy) = self.share(vma, entry, &mut rss);
                    if kept != entry {
                        ours.update(at, |now| match now {
                            Pte::Present(now) => {
                                Pte::Present(Mapped { bits: now.bits - PteBits::WRITE, ..now })
                            }
                            other => other,
                        });
                        stale = Some(around(stale, one_page(at)));
                    }
                    theirs.set(at, Pte::Present(copy));
                }
                // Markers and swapped pages.
                other => theirs.set(at, other),
            }
        }
        for (kind, pages) in RssKind::ALL.into_iter().zip(rss).filter(|&(_, pages)| pages != 0) {
            child.shared.add_rss(kind, pages);
        }
        stale.into_iter().for_each(|range| lost.note(range));
        copied
    }

    /// What parent and child have of a page from now on. The child's resident pages are counted in `rss`.
    ///
    /// # Linux
    /// `copy_present_ptes` in `mm/memory.c`.
    #[doc(alias = "copy_present_ptes")]
    fn share(&self, vma: &Vma, entry: Mapped, rss: &mut [u64; RssKind::ALL.len()]) -> (Mapped, Mapped) {
        let private = !vma.flags.contains(VmFlags::SHARED);
        let bits = if private { entry.bits - PteBits::WRITE } else { entry.bits };
        let kept = Mapped { bits, ..entry };
        // A child's entry of a shared file has not been written through yet.
        let clean = if private { PteBits::ACCESSED } else { PteBits::ACCESSED | PteBits::DIRTY };
        let copy = Mapped { bits: bits - clean, ..entry };
        if !entry.bits.contains(PteBits::SPECIAL) {
            if let Some(page) = self.pager.page(entry.pfn) {
                // The entry's own reference keeps the page; a count that stuck never frees it.
                page.add_map_with_reference();
                if page.flags().contains(PageFlags::ANON_EXCLUSIVE) {
                    page.clear_flags(PageFlags::ANON_EXCLUSIVE);
                }
                rss[self.rss_kind(page) as usize] += 1;
            }
        }
        (kept, copy)
    }
}

/// A frame that may be needed; it is given back if it was not.
struct Spare<'a, 'm, S: PageSource, F: EntryFormat> {
    pager: Pager<'a, 'm, S, F>,
    frame: Option<PageHold<'a, S>>,
}

impl<S: PageSource, F: EntryFormat> Spare<'_, '_, S, F> {
    /// The frame with the bytes of another, if there is one.
    fn filled_with(&self, from: Pfn) -> Option<Pfn> {
        self.frame.as_ref().map(PageHold::pfn).filter(|&to| self.pager.copy(to, from))
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
