//! What an address space needs from the rooms that hold pages: [`Tables`].

use super::error::MmError;
use super::populate::Populate;
use super::space::Mm;
use super::vma::{FileKind, FileRef, Vma};
use crate::addr::{Pfn, VirtAddr, VirtRange};
use crate::cache::Step;
use crate::collections::Slot;
use crate::flags::{Advice, VmFlags};
use crate::table::Caching;

/// How pages are to be touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// As a load would.
    Read,
    /// As a store would.
    Write,
}

/// Page tables that may be empty, where nothing is mapped any more.
///
/// # Linux
/// What `free_pgtables` in `mm/memory.c` gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EmptyTables {
    /// What was unmapped: tables for addresses of it may be empty by that.
    pub range: VirtRange,
    /// Where no VMA lies, or soon none will, or all are locked, which holds the range: it reaches to the neighbours, as far as matters. A table of which a part lies outside stays.
    pub hole: VirtRange,
}

/// What came of advice about pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Advised {
    /// It was followed.
    Done,
    /// It was followed, and among the page tables that lead to these addresses there are some that have no entry now.
    Emptied(VirtRange),
    /// Faults have put pages where none are to be, each time that they were taken away: it is to be followed again with the VMA locked.
    /// What was done stays.
    Outrun,
}

/// The pages behind VMAs.
///
/// Every method has a default that does nothing, for memory without pages. Ranges are page-aligned, not empty, and lie
/// inside the VMA that comes with them.
///
/// The calls decide and change VMAs; whatever happens to pages goes through [`Tables`]. [`NullTables`] has no pages, so
/// that everything here can be tested and fuzzed alone:
///
/// ```
/// use kernmm::addr::VirtAddr;
/// use kernmm::flags::Prot;
/// use kernmm::mm::{Mm, MmContext, MmSlot, MmStores, NullTables, Overcommit, OvercommitMode, Sysctl, VmaNode, VmaSlot};
/// use kernmm::rmap::AnonNode;
/// use kernmm::syscall::{self, MmapArgs};
///
/// let mms = [MmSlot::new()];
/// let (vma_nodes, vmas): ([VmaNode; 16], [VmaSlot; 16]) = Default::default();
/// let anon_vmas: [AnonNode; 16] = Default::default();
/// let stores = MmStores { mms: &mms, vma_nodes: &vma_nodes, vmas: &vmas, anon_vmas: &anon_vmas, gaps: &[] };
/// let context = MmContext::new(stores, Sysctl::default(), Overcommit::new(OvercommitMode::Guess, 1 << 20, 0));
/// let mut mm = Mm::new(&context)?;
/// let mut tables = NullTables::default();
/// let at = syscall::mmap(&mut mm, &mut tables, &MmapArgs::anonymous(8192, Prot::READ | Prot::WRITE))?;
/// syscall::munmap(&mut mm, &mut tables, at.get(), 4096)?;
/// assert_eq!(mm.map_count(), 1);
/// mm.check().unwrap();
/// # syscall::exit(&mut mm, &mut tables);
/// # Ok::<(), kernmm::mm::MmError>(())
/// ```
///
/// # Locking
/// The VMA of a range whose pages change is locked: no fault is in it. All are called with the address space's lock held for writing, except [`populate`](Self::populate),
/// [`residency`](Self::residency), [`read_ahead`](Self::read_ahead), [`advise`](Self::advise) (but for [`Advice::Collapse`]) and [`sync`](Self::sync),
/// for which reading would do; faults
/// may be in the VMA of these.
pub trait Tables {
    /// These ranges, upwards, are about to be no longer mapped: each is a VMA or a part of one. If `emptied` says so, page tables that are empty then go as well.
    ///
    /// No CPU reaches any of the pages when this is over.
    ///
    /// # Linux
    /// `unmap_vmas` in `mm/memory.c`, between `tlb_gather_mmu` and `tlb_finish_mmu`.
    #[doc(alias = "unmap_vmas")]
    fn unmap(&mut self, parts: impl Iterator<Item = VirtRange>, emptied: Option<EmptyTables>) {
        let _ = (parts, emptied);
    }

    /// A VMA is about to be split, cut or merged: for a moment pages of it may be where no VMA of its file says, or somebody else's where it says. Ends with
    /// [`end_change`](Self::end_change); nothing is allocated, no fault waited for and no other change begun in between.
    ///
    /// # Linux
    /// `vma_prepare` in `mm/vma.c`.
    #[doc(alias = "vma_prepare")]
    fn begin_change(&mut self, vma: &Vma) {
        let _ = vma;
    }

    /// All pages of the VMA are where it says.
    ///
    /// # Linux
    /// `vma_complete` in `mm/vma.c`.
    #[doc(alias = "vma_complete")]
    fn end_change(&mut self, vma: &Vma) {
        let _ = vma;
    }

    /// The flags of `vma`, of which `range` is a part, are new.
    fn protect(&mut self, vma: &Vma, range: VirtRange) {
        let _ = (vma, range);
    }

    /// A VMA with anonymous pages is about to be cut at `at`, or its border moved there: a huge page that would lie on both sides is made
    /// one of small pages.
    ///
    /// # Linux
    /// `vma_adjust_trans_huge` in `mm/huge_memory.c`.
    #[doc(alias = "vma_adjust_trans_huge")]
    fn split_huge(&mut self, at: VirtAddr) {
        let _ = at;
    }

    /// Makes what moving the pages of `from` to `to` will need. Something may still be mapped at `to`.
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`] if a table could not be had.
    fn prepare_move(&mut self, vma: &Vma, from: VirtRange, to: VirtAddr) -> Result<(), MmError> {
        let _ = (vma, from, to);
        Ok(())
    }

    /// The pages of `from` are to appear at `to`, where no page is. Follows a
    /// [`prepare_move`](Self::prepare_move) of the same range.
    fn move_pages(&mut self, vma: &Vma, from: VirtRange, to: VirtAddr) {
        let _ = (vma, from, to);
    }

    /// Takes over what a call leaves to be made resident, to be done once the address space's lock has been let go of; gives it back if nothing
    /// can have to be waited for, so that it may be done at once, or if the call has left something before.
    fn defer(&mut self, populate: Populate) -> Option<Populate> {
        Some(populate)
    }

    /// Makes pages resident, upwards: those of `rest`, which lies in the VMA in `slot` and shrinks by what is done. Where
    /// there are no pages, what is left of it is what touching them does to VMAs.
    ///
    /// Only those who [`defer`](Self::defer) may answer [`Step::Wait`].
    ///
    /// # Errors
    /// [`MmError::Unreachable`] beyond the end of a file or in a guard region, [`MmError::OutOfMemory`]; `rest` begins with that page.
    fn populate(
        &mut self,
        mm: &Mm<'_>,
        slot: Slot,
        rest: &mut VirtRange,
        touch: Touch,
    ) -> Result<Step, MmError> {
        mm.touch_range(slot, *rest, touch)?;
        Ok(Step::Done)
    }

    /// Which pages of `range` are resident, be it in the tables or in the cache of their file: an answer for each, all `false` before.
    ///
    /// # Linux
    /// `mincore_pte_range` in `mm/mincore.c`.
    #[doc(alias = "mincore_pte_range")]
    fn residency(&mut self, vma: &Vma, range: VirtRange, answers: &mut [bool]) {
        let _ = (vma, range, answers);
    }

    /// Begins to read the pages of `rest`, which shrinks by what is done, from the file of `vma`; they are not waited for. [`Step::Wait`] where no more can be begun
    /// before something else is over, or the address space is to be let go of between two parts.
    ///
    /// # Linux
    /// `madvise_willneed` in `mm/madvise.c`.
    #[doc(alias = "MADV_WILLNEED")]
    fn read_ahead(&mut self, vma: &Vma, rest: &mut VirtRange) -> Step {
        let _ = (vma, rest);
        Step::Done
    }

    /// Advice that concerns pages; that which concerns VMAs does not come here. [`Advised::Outrun`] never if the VMA is locked.
    ///
    /// # Errors
    /// What the pages' owner refuses.
    fn advise(&mut self, vma: &Vma, range: VirtRange, advice: Advice) -> Result<Advised, MmError> {
        let _ = (vma, range, advice);
        Ok(Advised::Done)
    }

    /// Writes a file's dirty pages in this range to its store.
    ///
    /// # Errors
    /// [`MmError::Io`], [`MmError::NoSpace`], [`MmError::FrameUnreachable`].
    fn sync(&mut self, vma: &Vma, range: VirtRange) -> Result<(), MmError> {
        let _ = (vma, range);
        Ok(())
    }

    /// Copies the pages of a VMA to `child`, sharing them until one of the two writes.
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`]; the child is then taken apart, page by page of what it got.
    fn fork(&mut self, child: &mut Self, vma: &Vma) -> Result<(), MmError> {
        let _ = (child, vma);
        Ok(())
    }

    /// The VMAs of a fork are copied, or as many of them as could be: what CPUs still know of rights that the parent has lost by that is to be
    /// forgotten now. Nobody has written through them in the child's name: it does not run yet.
    ///
    /// # Linux
    /// `flush_tlb_mm` in `dup_mmap` in `mm/mmap.c`.
    #[doc(alias = "flush_tlb_mm")]
    fn forked(&mut self) {}

    /// Makes the object behind a mapping of shared anonymous memory that `mm` is about to get; it is charged, as memory that this address space
    /// asks for, unless `flags` say `NORESERVE`.
    ///
    /// # Errors
    /// [`MmError::OutOfFiles`], [`MmError::FileTooLarge`], [`MmError::OutOfMemory`], [`MmError::Overcommit`].
    fn shared_anonymous(&mut self, mm: &Mm<'_>, pages: u64, flags: VmFlags) -> Result<FileRef, MmError>;

    /// Maps frames that nobody counts, from `first` on, in a range where nothing is mapped.
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`]; nothing is mapped then.
    #[doc(alias = "remap_pfn_range")]
    fn map_frames(
        &mut self,
        vma: &Vma,
        range: VirtRange,
        first: Pfn,
        caching: Caching,
    ) -> Result<(), MmError> {
        let _ = (vma, range, first, caching);
        Ok(())
    }

    /// A VMA is new in this slot: one more refers to what backs it.
    #[doc(alias = "get_file")]
    fn open(&mut self, slot: Slot, vma: &Vma) {
        let _ = (slot, vma);
    }

    /// The VMA in this slot is about to go: one fewer refers to what backs it.
    #[doc(alias = "fput")]
    fn close(&mut self, slot: Slot, vma: &Vma) {
        let _ = (slot, vma);
    }

    /// Page tables that are empty can go.
    ///
    /// # Linux
    /// `free_pgtables` in `mm/memory.c`.
    #[doc(alias = "free_pgtables")]
    fn free_tables(&mut self, emptied: EmptyTables) {
        let _ = emptied;
    }
}

/// No pages at all.
#[derive(Clone, Debug, Default)]
pub struct NullTables {
    objects: u32,
}

impl NullTables {
    /// The objects of shared anonymous mappings are numbered from here upwards; files have smaller numbers.
    pub const FIRST_OBJECT: u32 = 1 << 30;
}

impl Tables for NullTables {
    fn shared_anonymous(&mut self, _mm: &Mm<'_>, _pages: u64, _flags: VmFlags) -> Result<FileRef, MmError> {
        let number = Self::FIRST_OBJECT.saturating_add(self.objects);
        self.objects = self.objects.saturating_add(1);
        FileRef::new(number, number, FileKind::SharedAnonymous).ok_or(MmError::OutOfMemory)
    }
}
