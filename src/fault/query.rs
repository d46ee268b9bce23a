//! What the page tables say of a range, as data: for smaps, pagemap, and whoever wants to know.

use super::MmPager;
use crate::addr::{PAGE_SHIFT, PageOrder, Pfn, VirtAddr, VirtRange};
use crate::flags::PageFlags;
use crate::phys::PageSource;
use crate::table::{EntryFormat, Found, Mapped, Pte, PteBits, SwapEntry};

/// What a resident page is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageKind {
    /// The page of zeros, which all share and nobody counts.
    Zero,
    /// Anonymous memory, the private copy of a file's page among it.
    Anonymous,
    /// A page of a file.
    File,
    /// A page of shared memory, or of a file in memory.
    Shmem,
    /// No page that is counted: a device's memory.
    Device,
}

/// A page that an entry maps.
///
/// # Linux
/// What `smaps_pte_entry` and `pte_to_pagemap_entry` in `fs/proc/task_mmu.c` look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ResidentPage {
    /// The frame; in a page of 2 MiB the one for this address.
    pub pfn: Pfn,
    /// What it is.
    pub kind: PageKind,
    /// How many entries map it, this one among them; 0 for what is not counted.
    #[doc(alias = "page_mapcount")]
    pub mappings: u32,
    /// What the entry allows and notes: [`PteBits::ACCESSED`] and [`PteBits::DIRTY`] are this entry's alone.
    pub bits: PteBits,
    /// What the page itself notes.
    pub flags: PageFlags,
    /// How large the page is that the entry maps.
    pub order: PageOrder,
}

/// What an entry says. Where there is none, nothing is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryState {
    /// The mark of a guard region.
    Guard,
    /// It is in a swap area.
    Swapped(SwapEntry),
    /// It is in memory.
    Resident(ResidentPage),
}

impl EntryState {
    /// The page, if it is in memory.
    pub const fn resident(self) -> Option<ResidentPage> {
        match self {
            Self::Resident(page) => Some(page),
            Self::Guard | Self::Swapped(_) => None,
        }
    }
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Shows what is known of the pages of `range` to `each`, page by page, in order of their addresses. Where there is no entry `each` is not called; holes
    /// cost nothing. A page of 2 MiB is shown as the 512 that it is made of.
    ///
    /// # Locking
    /// The address space's lock is held, reading is enough. `each` is called with a page table locked.
    ///
    /// # Linux
    /// `walk_page_vma` in `mm/pagewalk.c`, as `fs/proc/task_mmu.c` uses it.
    #[doc(alias = "walk_page_vma")]
    pub fn visit_pages(&self, range: VirtRange, mut each: impl FnMut(VirtAddr, EntryState)) {
        self.table.visit_range(range, |found| {
            for index in 0..found.order.pages() {
                let Some(at) = found.addr.checked_add(index << PAGE_SHIFT) else { return };
                if let Some(state) = self.state(found, index).filter(|_| range.contains(at)) {
                    each(at, state);
                }
            }
        });
    }

    /// What is known of one page; `None` if nothing is mapped there.
    ///
    /// # Locking
    /// As [`visit_pages`](Self::visit_pages).
    pub fn entry_state(&self, page: VirtAddr) -> Option<EntryState> {
        let mut state = None;
        self.visit_pages(super::entry::one_page(page.page_floor()), |_, now| state = Some(now));
        state
    }

    /// What an entry says of the page with this index in it.
    fn state(&self, found: Found, index: u64) -> Option<EntryState> {
        match found.pte {
            Pte::None => None,
            Pte::Guard => Some(EntryState::Guard),
            Pte::Swap(entry) => Some(EntryState::Swapped(entry)),
            Pte::Present(entry) => {
                let pfn = entry.pfn.checked_add(index)?;
                let part = Mapped { pfn, ..entry };
                let page = match entry.bits.contains(PteBits::SPECIAL) {
                    true if self.is_zero(entry) => uncounted(part, found.order, PageKind::Zero),
                    true => uncounted(part, found.order, PageKind::Device),
                    false => self.resident(part, found.order),
                };
                Some(EntryState::Resident(page))
            }
        }
    }

    fn resident(&self, entry: Mapped, order: PageOrder) -> ResidentPage {
        let Mapped { pfn, bits } = entry;
        let Some(page) = self.pager.page(pfn) else { return uncounted(entry, order, PageKind::Device) };
        let flags = page.flags();
        let kind = if flags.contains(PageFlags::ANON) {
            PageKind::Anonymous
        } else if flags.contains(PageFlags::SWAP_BACKED) {
            PageKind::Shmem
        } else {
            PageKind::File
        };
        ResidentPage { pfn, kind, mappings: page.map_count(), bits, flags, order }
    }
}

/// A page that nobody counts the entries of.
const fn uncounted(entry: Mapped, order: PageOrder, kind: PageKind) -> ResidentPage {
    ResidentPage { pfn: entry.pfn, kind, mappings: 0, bits: entry.bits, flags: PageFlags::empty(), order }
}
