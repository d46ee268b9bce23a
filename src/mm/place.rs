//! Where a new mapping goes.
//!
//! # Linux
//! `get_unmapped_area` (`mm/mmap.c`), `arch_get_unmapped_area_topdown` (`arch/x86/kernel/sys_x86_64.c`),
//! `unmapped_area` and `unmapped_area_topdown` (`mm/vma.c`), `__thp_get_unmapped_area` (`mm/huge_memory.c`); 6.18.

use super::context::HugeAlignment;
use super::error::MmError;
use super::gap::{Candidate, Fit};
use super::layout::MmapLayout;
use super::space::Mm;
use super::vma::FileKind;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE_U64, VirtAddr, VirtRange};
use crate::flags::VmFlags;
use crate::table::HUGE_SIZE;

/// A wish for a free range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// The hint, 0 for none; the address itself if `exact`.
    pub(crate) addr: u64,
    /// A whole number of pages, not 0.
    pub(crate) len: u64,
    /// The kind of the file to be mapped, if there is one.
    pub(crate) file: Option<FileKind>,
    /// Where in the file, in pages.
    pub(crate) pgoff: u64,
    /// Whether the mapping is shared.
    pub(crate) sharing: Sharing,
    /// Whether the address is a must.
    pub(crate) exact: Exact,
}

/// Whether a mapping is shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sharing {
    Private,
    Shared,
}

/// Whether an address is a must.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exact {
    Hint,
    Fixed,
}

impl Mm<'_> {
    /// The address for a new mapping.
    ///
    /// # Errors
    /// [`MmError::NoGap`]; [`MmError::Unaligned`] and [`MmError::BelowMinimum`] for exact addresses.
    pub(crate) fn get_unmapped_area(&self, wish: &Wish) -> Result<VirtAddr, MmError> {
        let task_size = self.sysctl().task_size;
        if wish.len > task_size {
            return Err(MmError::NoGap);
        }
        let addr = self.place(wish).ok_or(MmError::NoGap)?;
        if addr > task_size - wish.len {
            return Err(MmError::NoGap);
        }
        if addr % PAGE_SIZE_U64 != 0 {
            return Err(MmError::Unaligned);
        }
        if addr < self.sysctl().dac_mmap_min_addr {
            return Err(MmError::BelowMinimum);
        }
        Ok(VirtAddr::from(addr))
    }

    fn place(&self, wish: &Wish) -> Option<u64> {
        if wish.exact == Exact::Fixed {
            return Some(wish.addr);
        }
        let offset = match wish.file {
            Some(FileKind::Regular) => Some(wish.pgoff << PAGE_SHIFT),
            Some(FileKind::Memory | FileKind::SharedAnonymous) => None,
            None if wish.sharing == Sharing::Shared => None,
            None => (wish.addr == 0 && wish.len % HUGE_SIZE == 0).then_some(0),
        };
        offset
            .filter(|_| self.sysctl().huge_alignment == HugeAlignment::On)
            .and_then(|offset| self.place_huge(wish.addr, wish.len, offset))
            .or_else(|| self.place_plain(wish.addr, wish.len))
    }

    /// A place where a huge page of the file begins at a huge page of addresses, if the range holds a whole one.
    fn place_huge(&self, hint: u64, len: u64, offset: u64) -> Option<u64> {
        let first = offset.checked_add(HUGE_SIZE - 1)? & !(HUGE_SIZE - 1);
        let end = offset.checked_add(len)?;
        if end.checked_sub(first)? < HUGE_SIZE {
            return None;
        }
        let padded = len.checked_add(HUGE_SIZE)?;
        offset.checked_add(padded)?;
        let addr = self.place_plain(hint, padded)?;
        if addr == hint {
            return Some(addr);
        }
        match offset.wrapping_sub(addr) & (HUGE_SIZE - 1) {
            0 if self.layout() == MmapLayout::TopDown => Some(addr + HUGE_SIZE),
            shift => Some(addr + shift),
        }
    }

    fn place_plain(&self, hint: u64, len: u64) -> Option<u64> {
        let hint = hint & !(PAGE_SIZE_U64 - 1);
        if hint != 0 && self.hint_is_free(hint, len) {
            return Some(hint);
        }
        match self.layout() {
            MmapLayout::TopDown => self
                .lowest_or_highest(MmapLayout::TopDown, len)
                .or_else(|| self.lowest_or_highest(MmapLayout::BottomUp, len)),
            MmapLayout::BottomUp => self.lowest_or_highest(MmapLayout::BottomUp, len),
        }
    }

    fn hint_is_free(&self, hint: u64, len: u64) -> bool {
        let Some(end) = hint.checked_add(len) else { return false };
        if end > self.sysctl().task_size {
            return false;
        }
        self.find_vma(VirtAddr::from(hint))
            .is_none_or(|next| end <= self.vma(next).start_gap(self.sysctl().stack_guard_gap).get())
    }

    fn lowest_or_highest(&self, layout: MmapLayout, len: u64) -> Option<u64> {
        let floor = self.sysctl().mmap_min_addr.max(PAGE_SIZE_U64);
        match layout {
            MmapLayout::TopDown => self.highest(VirtAddr::from(floor), self.mmap_base(), len),
            MmapLayout::BottomUp => {
                let low = self.mmap_legacy_base().max(VirtAddr::from(floor));
                self.lowest(low, VirtAddr::from(self.sysctl().task_size), len)
            }
        }
    }

    /// The highest address in `low..high` with `len` free bytes, none of them in the guard gap of a stack above.
    #[doc(alias = "unmapped_area_topdown")]
    fn highest(&self, low: VirtAddr, high: VirtAddr, len: u64) -> Option<u64> {
        // A guard that is in the way once bounds all that follows, though it may reach below smaller VMAs.
        let mut limit = high;
        let accept = |candidate: Candidate| {
            let candidate = candidate.below(limit)?;
            match self.guard_of(candidate.gap()) {
                Some(guard) if guard < candidate.part().end() => {
                    limit = guard;
                    candidate.below(guard)?.highest()
                }
                _ => candidate.highest(),
            }
        };
        let fit = Fit::new(len, VirtRange::new(low, high)?)?;
        self.set.highest_fit(fit, accept).map(VirtAddr::get)
    }

    /// The lowest address in `low..high` with `len` free bytes, none of them in the guard gap of a stack above.
    #[doc(alias = "unmapped_area")]
    fn lowest(&self, low: VirtAddr, high: VirtAddr, len: u64) -> Option<u64> {
        let accept = |candidate: Candidate| {
            let guard = self.guard_of(candidate.gap());
            guard.map_or(Some(candidate), |guard| candidate.below(guard))?.lowest()
        };
        let fit = Fit::new(len, VirtRange::new(low, high)?)?;
        self.set.lowest_fit(fit, accept).map(VirtAddr::get)
    }

    /// Where the guard gap of the VMA at the end of a gap begins, if that grows down.
    fn guard_of(&self, gap: VirtRange) -> Option<VirtAddr> {
        // An address in the gap, as what is to be mapped there will look for it.
        let next = self.set.find_to_change(gap.start())?;
        let grows = self.set.node(next).flags().contains(VmFlags::GROWSDOWN);
        grows.then(|| self.vma(next).start_gap(self.sysctl().stack_guard_gap))
    }
}
