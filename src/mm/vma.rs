//! A VMA as a value: what the rules reason about and what readers are given.

use core::hash::{Hash, Hasher};
use core::num::NonZeroU32;

use super::anon::AnonVma;
use super::context::HugePages;
use super::error::MmError;
use crate::addr::{PAGE_SHIFT, PgOff, VirtAddr, VirtRange};
use crate::flags::{PageProt, VmFlags};
use crate::table::HUGE_SIZE;

use crate::cache::FileId;

/// Names one opening of a file. A duplicated descriptor has the same one, a file opened again has another; only
/// mappings through the same opening merge.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "struct file")]
pub struct OpenId(pub NonZeroU32);

/// Where a file's pages live, as far as placement and the maps of it depend on that.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FileKind {
    /// On a file system that keeps large folios: placement aligns mappings of 2 MiB of it.
    Regular,
    /// In memory (memfd, tmpfs).
    Memory,
    /// In memory, made for one shared anonymous mapping.
    SharedAnonymous,
}

/// The file behind a VMA. Two are equal if file, opening and kind are.
#[derive(Clone, Copy, Debug)]
pub struct FileRef {
    /// Which file.
    pub file: FileId,
    /// Which opening of it.
    pub open: OpenId,
    /// Where its pages live.
    pub kind: FileKind,
    /// Whether the opening cannot write, as far as mmap was told: what `check` holds shared VMAs against.
    pub(crate) read_only: bool,
}

impl PartialEq for FileRef {
    fn eq(&self, other: &Self) -> bool {
        (self.file, self.open, self.kind) == (other.file, other.open, other.kind)
    }
}

impl Eq for FileRef {}

impl Hash for FileRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.file, self.open, self.kind).hash(state);
    }
}

impl FileRef {
    /// The file with this number, through the opening with that number; `None` if one of them is 0.
    pub const fn new(file: u32, open: u32, kind: FileKind) -> Option<Self> {
        match (NonZeroU32::new(file), NonZeroU32::new(open)) {
            (Some(file), Some(open)) => {
                Some(Self { file: FileId(file), open: OpenId(open), kind, read_only: false })
            }
            _ => None,
        }
    }

    /// Whether its pages have a store to be written to.
    pub const fn has_store(&self) -> bool {
        matches!(self.kind, FileKind::Regular)
    }
}

/// What a VMA's pages come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "vm_operations_struct")]
pub enum Backing {
    /// Private memory that begins as zeroes.
    Anonymous,
    /// A file, or the object behind a shared anonymous mapping.
    File(FileRef),
    /// Pages that the kernel has mapped for itself, such as the vdso; the number is its owner's.
    #[doc(alias = "special_mapping_vmops")]
    Special(u32),
    /// Bare frames of a device; the number is its driver's.
    Device(u32),
}

impl Backing {
    /// The file, if there is one.
    pub const fn file(self) -> Option<FileRef> {
        match self {
            Self::File(file) => Some(file),
            Self::Anonymous | Self::Special(_) | Self::Device(_) => None,
        }
    }

    /// Whether this is private anonymous memory.
    #[doc(alias = "vma_is_anonymous")]
    pub const fn is_anonymous(self) -> bool {
        matches!(self, Self::Anonymous)
    }
}

/// A copy of what a VMA says about itself.
///
/// # Linux
/// `struct vm_area_struct` in `include/linux/mm_types.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "vm_area_struct")]
pub struct Vma {
    /// The first byte.
    pub start: VirtAddr,
    /// The first byte after it.
    pub end: VirtAddr,
    /// What it is and allows.
    pub flags: VmFlags,
    /// Where `start` lies in the file, in pages. For private anonymous memory the page number that `start` had when
    /// the memory was first touched.
    pub pgoff: PgOff,
    /// What its pages come from.
    pub backing: Backing,
    /// The anonymous pages' owner, once there was a need for one.
    pub anon: Option<AnonVma>,
}

impl Vma {
    /// Its addresses.
    pub fn range(&self) -> VirtRange {
        VirtRange::new(self.start, self.end).unwrap_or_default()
    }

    /// What a page that is mapped here gets at first.
    #[doc(alias = "vm_page_prot")]
    pub fn page_prot(&self) -> PageProt {
        page_prot(self.flags, self.backing)
    }

    /// The addresses of the huge page that a first touch at `addr` should get, if the VMA may have one there: where it lies wholly inside.
    ///
    /// # Linux
    /// `thp_vma_suitable_order` in `include/linux/huge_mm.h`.
    #[doc(alias = "thp_vma_suitable_order")]
    pub fn huge_page_at(&self, addr: VirtAddr, setting: HugePages) -> Option<VirtRange> {
        let page = huge_page_around(addr).filter(|&page| self.range().encloses(page))?;
        self.wants_huge_pages(setting).then_some(page)
    }

    /// Whether it may have a huge page anywhere.
    ///
    /// # Linux
    /// `thp_vma_allowable_orders` in `include/linux/huge_mm.h`, as smaps asks.
    #[doc(alias = "THPeligible")]
    pub fn may_be_huge(&self, setting: HugePages) -> bool {
        self.holds_huge_page() && self.wants_huge_pages(setting)
    }

    /// Whether the addresses of a whole huge page lie in it.
    pub(crate) fn holds_huge_page(&self) -> bool {
        let first = self.start.get().checked_next_multiple_of(HUGE_SIZE);
        first.and_then(|first| first.checked_add(HUGE_SIZE)).is_some_and(|end| end <= self.end.get())
    }

    /// Anonymous memory may have huge pages, as the setting and the advice for it say.
    ///
    /// # Linux
    /// `__thp_vma_allowable_orders` in `mm/huge_memory.c`.
    #[doc(alias = "thp_vma_allowable_order")]
    fn wants_huge_pages(&self, setting: HugePages) -> bool {
        self.backing.is_anonymous()
            && match setting {
                HugePages::Never => false,
                HugePages::Madvise => self.flags.contains(VmFlags::HUGEPAGE),
                HugePages::Always => !self.flags.contains(VmFlags::NOHUGEPAGE),
            }
    }

    /// The number of its protection key: the first for execute-only memory, 0 for all other.
    ///
    /// # Linux
    /// `vma_pkey` in `arch/x86/include/asm/mmu_context.h`.
    #[doc(alias = "vma_pkey")]
    pub const fn protection_key(&self) -> u8 {
        if self.flags.contains(VmFlags::EXECUTE_ONLY_KEY) { 1 } else { 0 }
    }

    /// Whether `mincore` may tell which of its pages are resident. What others do with a file is told only to who owns it or may write it; what the kernel has
    /// mapped for itself is nobody's.
    ///
    /// # Linux
    /// `can_do_mincore` in `mm/mincore.c`.
    #[doc(alias = "can_do_mincore")]
    pub const fn tells_residency(&self) -> bool {
        !matches!(self.backing, Backing::Special(_)) && !self.flags.contains(VmFlags::RESIDENCY_HIDDEN)
    }

    /// Its size in pages.
    #[doc(alias = "vma_pages")]
    pub const fn pages(&self) -> u64 {
        self.end.get().saturating_sub(self.start.get()) >> PAGE_SHIFT
    }

    /// The file offset, in pages, of an address in (or at the end of) it.
    #[doc(alias = "linear_page_index")]
    pub fn pgoff_at(&self, addr: VirtAddr) -> PgOff {
        pgoff_after(self.pgoff, addr.get().saturating_sub(self.start.get()) >> PAGE_SHIFT)
    }

    /// The same VMA cut down to `start..end`, which lies inside it.
    pub fn part(&self, start: VirtAddr, end: VirtAddr) -> Self {
        Self { start, end, pgoff: self.pgoff_at(start), ..*self }
    }

    /// Where the room that must stay free below it begins.
    ///
    /// # Linux
    /// `vm_start_gap` in `include/linux/mm.h`.
    #[doc(alias = "vm_start_gap")]
    pub const fn start_gap(&self, guard_gap: u64) -> VirtAddr {
        if !self.flags.contains(VmFlags::GROWSDOWN) {
            return self.start;
        }
        match self.start.checked_sub(guard_gap) {
            Some(start) => start,
            None => VirtAddr::ZERO,
        }
    }

    /// Whether it may become several VMAs, and be unmapped or moved in part. What the kernel has mapped for itself, such as the vdso and its
    /// data, is one piece; the bare frames of a device may be divided as a file may.
    ///
    /// # Linux
    /// `special_mapping_split` in `mm/mmap.c`, the `may_split` of a VMA's operations.
    #[doc(alias = "special_mapping_split")]
    pub const fn may_split(&self) -> bool {
        !matches!(self.backing, Backing::Special(_))
    }

    /// Whether it may become several VMAs if a border that `range` has lies inside of it.
    pub(super) fn may_split_around(&self, range: VirtRange) -> Result<(), MmError> {
        let is_inside = |border| self.start < border && border < self.end;
        let splits = is_inside(range.start()) || is_inside(range.end());
        if splits && !self.may_split() { Err(MmError::NotDivisible) } else { Ok(()) }
    }

    /// Whether the first store to a clean page of it has to be noticed: it shares a file that has a store.
    ///
    /// # Linux
    /// `vma_needs_dirty_tracking` in `mm/vma.c`.
    #[doc(alias = "vma_wants_writenotify")]
    pub const fn wants_notice(&self) -> bool {
        wants_notice(self.flags, self.backing)
    }

    /// Whether it is shared with a file that may be written through it.
    pub const fn is_shared_writable(&self) -> bool {
        self.flags.contains(VmFlags::SHARED.union(VmFlags::MAYWRITE))
    }
}

/// What a page gets at first that is mapped with these flags: those of shared files of a store are not writable at first,
/// so that the first store to a page can be noted.
///
/// # Linux
/// `vma_set_page_prot` in `mm/mmap.c`, `vma_wants_writenotify` in `mm/vma.c`.
#[doc(alias = "vma_set_page_prot")]
pub(crate) fn page_prot(flags: VmFlags, backing: Backing) -> PageProt {
    let prot = flags.page_prot();
    if wants_notice(flags, backing) { prot - PageProt::WRITE } else { prot }
}

const fn wants_notice(flags: VmFlags, backing: Backing) -> bool {
    match backing {
        Backing::File(file) => file.has_store() && flags.contains(VmFlags::SHARED),
        _ => false,
    }
}

/// `pgoff + pages`, wrapping as the numbers of moved anonymous memory may.
pub(crate) fn pgoff_after(pgoff: PgOff, pages: u64) -> PgOff {
    pgoff_wrapping(pgoff.get().wrapping_add(pages))
}

/// `pgoff - pages`, wrapping as the numbers of moved anonymous memory may.
pub(crate) fn pgoff_before(pgoff: PgOff, pages: u64) -> PgOff {
    pgoff_wrapping(pgoff.get().wrapping_sub(pages))
}

fn pgoff_wrapping(raw: u64) -> PgOff {
    PgOff::new(raw & PgOff::MAX.get()).unwrap_or(PgOff::MAX)
}

/// The page offset of private anonymous memory that nobody has touched yet: its page number.
pub(crate) fn anon_pgoff(start: VirtAddr) -> PgOff {
    pgoff_wrapping(start.vpn().get())
}

/// The addresses of the huge page that an address would lie in; `None` for the last one of all.
pub(crate) fn huge_page_around(addr: VirtAddr) -> Option<VirtRange> {
    VirtRange::with_len(VirtAddr::from(addr.get() & !(HUGE_SIZE - 1)), HUGE_SIZE)
}
