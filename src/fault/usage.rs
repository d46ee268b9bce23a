//! What the pages of a range come to: the sums of smaps.

use super::MmPager;
use super::query::{EntryState, PageKind, ResidentPage};
use crate::addr::{PAGE_SIZE_U64, PageOrder};
use crate::flags::{PageFlags, VmFlags};
use crate::mm::Vma;
use crate::phys::PageSource;
use crate::table::{EntryFormat, PteBits};

/// How finely the parts of shared pages are added up: a page's part for each who maps it, times 4096.
const PSS_SHIFT: u32 = 12;

/// Bytes by use. Of a page that several map, `pss` and its kin have this one's part.
///
/// # Linux
/// `struct mem_size_stats` in `fs/proc/task_mmu.c`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(alias = "mem_size_stats")]
#[non_exhaustive]
pub struct MemUsage {
    /// In memory.
    pub resident: u64,
    /// Mapped by several, and as their store has it.
    pub shared_clean: u64,
    /// Mapped by several, and newer than their store.
    pub shared_dirty: u64,
    /// Mapped here alone, and as their store has it.
    pub private_clean: u64,
    /// Mapped here alone, and newer than their store.
    pub private_dirty: u64,
    /// Used lately.
    pub referenced: u64,
    /// Anonymous.
    pub anonymous: u64,
    /// Anonymous, and to be dropped rather than swapped out.
    pub lazy_free: u64,
    /// Anonymous, in pages of 2 MiB.
    pub anonymous_huge: u64,
    /// In a swap area.
    pub swap: u64,
    pss: u64,
    pss_anon: u64,
    pss_file: u64,
    pss_shmem: u64,
    pss_dirty: u64,
    pss_locked: u64,
}

impl MemUsage {
    /// The part of resident pages that falls to this one.
    pub const fn pss(&self) -> u64 {
        self.pss >> PSS_SHIFT
    }

    /// Of these the anonymous ones.
    pub const fn pss_anon(&self) -> u64 {
        self.pss_anon >> PSS_SHIFT
    }

    /// Of these the ones of files.
    pub const fn pss_file(&self) -> u64 {
        self.pss_file >> PSS_SHIFT
    }

    /// Of these the ones of shared memory.
    pub const fn pss_shmem(&self) -> u64 {
        self.pss_shmem >> PSS_SHIFT
    }

    /// Of these the ones that are newer than their store.
    pub const fn pss_dirty(&self) -> u64 {
        self.pss_dirty >> PSS_SHIFT
    }

    /// Of these the locked ones.
    pub const fn pss_locked(&self) -> u64 {
        self.pss_locked >> PSS_SHIFT
    }

    /// Adds a page of a VMA with these flags.
    ///
    /// # Linux
    /// `smaps_pte_entry`, `smaps_account` and `smaps_page_accumulate` in `fs/proc/task_mmu.c`.
    pub fn add(&mut self, state: &EntryState, flags: VmFlags) {
        match state {
            EntryState::Guard => {}
            EntryState::Swapped(_) => self.swap += PAGE_SIZE_U64,
            EntryState::Resident(page) if page.mappings == 0 => {}
            EntryState::Resident(page) => self.add_resident(page, flags),
        }
    }

    fn add_resident(&mut self, page: &ResidentPage, flags: VmFlags) {
        let dirty = page.bits.contains(PteBits::DIRTY) || page.flags.contains(PageFlags::DIRTY);
        let used = page.bits.contains(PteBits::ACCESSED) || page.flags.contains(PageFlags::REFERENCED);
        self.resident += PAGE_SIZE_U64;
        self.referenced += if used { PAGE_SIZE_U64 } else { 0 };
        if page.kind == PageKind::Anonymous {
            self.anonymous += PAGE_SIZE_U64;
            let lazy = !page.flags.contains(PageFlags::SWAP_BACKED) && !dirty;
            self.lazy_free += if lazy { PAGE_SIZE_U64 } else { 0 };
            self.anonymous_huge += if page.order == PageOrder::MAX { PAGE_SIZE_U64 } else { 0 };
        }
        let pss = (PAGE_SIZE_U64 << PSS_SHIFT) / u64::from(page.mappings);
        self.pss += pss;
        match page.kind {
            PageKind::Anonymous => self.pss_anon += pss,
            PageKind::Shmem => self.pss_shmem += pss,
            _ => self.pss_file += pss,
        }
        self.pss_dirty += if dirty { pss } else { 0 };
        self.pss_locked += if flags.contains(VmFlags::LOCKED) { pss } else { 0 };
        let sum = match (page.mappings > 1, dirty) {
            (true, false) => &mut self.shared_clean,
            (true, true) => &mut self.shared_dirty,
            (false, false) => &mut self.private_clean,
            (false, true) => &mut self.private_dirty,
        };
        *sum += PAGE_SIZE_U64;
    }
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Adds what the pages of a VMA come to.
    ///
    /// # Locking
    /// The address space's lock is held, reading is enough.
    ///
    /// # Linux
    /// `smap_gather_stats` in `fs/proc/task_mmu.c`.
    #[doc(alias = "smap_gather_stats")]
    pub fn add_usage(&self, vma: &Vma, usage: &mut MemUsage) {
        self.visit_pages(vma.range(), |_, state| usage.add(&state, vma.flags));
    }
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// How many page tables there are, the root not counted.
    pub fn tables(&self) -> u32 {
        self.table.tables()
    }
}
