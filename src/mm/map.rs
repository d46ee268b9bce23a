//! Mapping something over a range: what lies there goes, the new comes.

use super::error::MmError;
use super::limits::Totals;
use super::merge::{Proposal, Reach, Source, would_merge};
use super::space::Mm;
use super::tables::Tables;
use super::vma::{Backing, Vma, anon_pgoff};
use crate::addr::{PAGE_SHIFT, PgOff, VirtRange};
use crate::collections::Slot;
use crate::flags::VmFlags;

/// What to map.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    /// Private memory that begins as zeroes.
    Anonymous,
    /// Shared memory that begins as zeroes: a new object.
    SharedAnonymous,
    /// A file from this page on, or pages of the kernel.
    Backed(Backing, PgOff),
}

impl<'c> Mm<'c> {
    /// Maps `content` over `range`. Answers the VMA that the range is part of then.
    ///
    /// # Errors
    /// Those of [`prepare_unmap`](Self::prepare_unmap), [`MmError::AddressSpaceLimit`], [`MmError::Overcommit`],
    /// [`MmError::OutOfSlots`], and what a new object costs. What lay in the range is still there then.
    ///
    /// # Linux
    /// `mmap_region` in `mm/vma.c`.
    pub(crate) fn map_region(
        &mut self,
        tables: &mut impl Tables,
        range: VirtRange,
        mut flags: VmFlags,
        content: Content,
    ) -> Result<Slot, MmError> {
        let pages = range.len() >> PAGE_SHIFT;
        let mut old = self.prepare_unmap(range)?;
        let mut spare = self.reserve(1)?;
        self.may_expand(flags, pages - old.freed.total_vm)?;
        let mut charged = 0;
        if flags.is_accountable() {
            charged = old.bequeath(pages);
            self.charge(charged)?;
            flags |= VmFlags::ACCOUNT;
        }
        let (backing, pgoff) = match self.back(tables, content, range, flags) {
            Ok(back) => back,
            Err(error) => {
                self.uncharge(charged);
                return Err(error);
            }
        };
        let beside = self.commit_unmap(tables, old);
        let mut reach = Reach::BothSides;
        if flags.intersects(VmFlags::NEVER_LOCKED) && flags.intersects(VmFlags::LOCKED_MASK) {
            // It has been compared with its neighbours as what it was to be: none of them is locked.
            reach = Reach::Neither;
            flags -= VmFlags::LOCKED_MASK;
        }
        let new = Proposal {
            start: range.start(),
            end: range.end(),
            flags,
            pgoff,
            backing,
            anon: None,
            source: Source::None,
        };
        let slot = self.place_new(tables, &new, beside, reach, &mut spare);
        if reach == Reach::Neither {
            self.mark_seams(slot);
        }
        Ok(slot)
    }

    fn back(
        &self,
        tables: &mut impl Tables,
        content: Content,
        range: VirtRange,
        flags: VmFlags,
    ) -> Result<(Backing, PgOff), MmError> {
        Ok(match content {
            Content::Anonymous => (Backing::Anonymous, anon_pgoff(range.start())),
            Content::SharedAnonymous => {
                let object = tables.shared_anonymous(self, range.len() >> PAGE_SHIFT, flags)?;
                (Backing::File(object), PgOff::ZERO)
            }
            Content::Backed(backing, pgoff) => (backing, pgoff),
        })
    }

    /// Puts a VMA where nothing lies, as it is: it is not merged. For loaders and for pages of the kernel. It has no owner of anonymous pages yet, whatever
    /// `vma` says.
    ///
    /// # Errors
    /// [`MmError::OutOfRange`] if it is empty, unaligned or not in the user's addresses; [`MmError::Denied`] if its flags allow more than it may be given;
    /// [`MmError::Exists`], [`MmError::AddressSpaceLimit`], [`MmError::Overcommit`], [`MmError::OutOfSlots`].
    ///
    /// # Linux
    /// `insert_vm_struct` in `mm/vma.c`.
    #[doc(alias = "insert_vm_struct")]
    pub fn insert_vma(&mut self, tables: &mut impl Tables, vma: &Vma) -> Result<Slot, MmError> {
        let fits = vma.start < vma.end && vma.start.get() >= self.sysctl().dac_mmap_min_addr;
        let fits = fits && vma.start.is_page_aligned() && vma.end.is_page_aligned();
        if !fits || vma.end.get() > self.sysctl().task_size {
            return Err(MmError::OutOfRange);
        }
        if !vma.flags.is_within_ceiling() {
            return Err(MmError::Denied);
        }
        let vma = &Vma { anon: None, ..*vma };
        let beside = self.set.beside(vma.range()).ok_or(MmError::Exists)?;
        self.may_expand(vma.flags, vma.pages())?;
        let mut spare = self.reserve(1)?;
        if vma.flags.contains(VmFlags::ACCOUNT) {
            self.charge(vma.pages())?;
        }
        self.totals.add(&Totals::of_vma(vma));
        let slot = spare.pop();
        self.insert(tables, beside.below, slot, vma);
        self.set.note_used(vma.range(), slot);
        self.mark_seams(slot);
        Ok(slot)
    }

    /// Appends `range` to the heap, which ends where the range starts.
    ///
    /// # Errors
    /// [`MmError::AddressSpaceLimit`], [`MmError::TooManyVmas`], [`MmError::Overcommit`], [`MmError::OutOfSlots`].
    ///
    /// # Linux
    /// `do_brk_flags` in `mm/vma.c`.
    pub(crate) fn map_heap(&mut self, tables: &mut impl Tables, range: VirtRange) -> Result<Slot, MmError> {
        let pages = range.len() >> PAGE_SHIFT;
        let flags = VmFlags::DATA_DEFAULT | VmFlags::ACCOUNT | self.def_flags;
        self.may_expand(flags, pages)?;
        if self.map_count() > self.sysctl().max_map_count {
            return Err(MmError::TooManyVmas);
        }
        let mut spare = self.reserve(1)?;
        self.charge(pages)?;
        let new = Proposal {
            start: range.start(),
            end: range.end(),
            flags,
            pgoff: anon_pgoff(range.start()),
            backing: Backing::Anonymous,
            anon: None,
            source: Source::None,
        };
        // Only the heap's own VMA is extended: what ends where the heap begins is not the heap's.
        let is_first = range.start() <= self.image.start_brk;
        let reach = if is_first { Reach::Neither } else { Reach::OnlyPrev };
        let beside = self.beside(range);
        let slot = self.place_new(tables, &new, beside, reach, &mut spare);
        if is_first {
            self.mark_seam(slot);
        }
        self.mark_seam_above(slot);
        Ok(slot)
    }

    /// Notes that a VMA was put beside its neighbours, or changed, without being merged with them.
    pub(super) fn mark_seams(&mut self, slot: Slot) {
        self.mark_seam(slot);
        self.mark_seam_above(slot);
    }

    /// The same, of the VMA below alone.
    pub(super) fn mark_seam(&mut self, slot: Slot) {
        let below = self.set.prev(slot).map(|below| self.set.get(below));
        match below.is_some_and(|below| would_merge(&below, &self.set.get(slot))) {
            true => self.set.at(slot).set_seam(),
            false => self.set.at(slot).clear_seam(),
        }
    }

    /// The same, of the VMA above alone.
    fn mark_seam_above(&mut self, slot: Slot) {
        if let Some(next) = self.set.next(slot) {
            self.mark_seam(next);
        }
    }
}
