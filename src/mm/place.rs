//! Where a new mapping goes.
//!
//! # Linux
//! `get_unmapped_area` (`mm/mmap.c`), `arch_get_unmapped_area_topdown` (`arch/x86/kernel/sys_x86_64.c`),
//! `unmapped_area` and `unmapped_area_topdown` (`mm/vma.c`), `__thp_get_unmapped_area` (`mm/huge_memory.c`); 6.18.

use super::context::HugeAlignment;
use super::error::MmError;
use super::gap::{Candidate, Fit};
use super::layout::MmapLayout;
use super::pool::VmaPool;
use super::set::Above;
use super::space::Mm;
use super::vma::FileKind;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE_U64, VirtAddr, VirtRange};
use crate::collections::Slot;
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
    /// Where to look.
    pub(crate) window: Window,
}

/// Where to look for room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Window {
    /// Where the layout says.
    Layout,
    /// Between 1 and 2 GiB, upwards, and below that for hints (`MAP_32BIT`).
    Low,
    /// Not below 4 GiB where the search goes downwards, but for hints (`MAP_ABOVE4G`).
    Above4G,
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

impl<'c> Mm<'c> {
    /// The address for a new mapping.
    ///
    /// # Errors
    /// [`MmError::NoGap`]; [`MmError::Unaligned`] and [`MmError::BelowMinimum`] for exact addresses.
    pub(crate) fn get_unmapped_area(&mut self, wish: &Wish) -> Result<VirtAddr, MmError> {
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

    fn place(&mut self, wish: &Wish) -> Option<u64> {
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
            .and_then(|offset| self.place_huge(wish, offset))
            .or_else(|| self.place_plain(wish.addr, wish.len, wish.window))
    }

    /// A place where a huge page of the file begins at a huge page of addresses, if the range holds a whole one.
    fn place_huge(&mut self, wish: &Wish, offset: u64) -> Option<u64> {
        let Wish { addr: hint, len, window, .. } = *wish;
        let first = offset.checked_add(HUGE_SIZE - 1)? & !(HUGE_SIZE - 1);
        let end = offset.checked_add(len)?;
        if end.checked_sub(first)? < HUGE_SIZE {
            return None;
        }
        let padded = len.checked_add(HUGE_SIZE)?;
        offset.checked_add(padded)?;
        let addr = self.place_plain(hint, padded, window)?;
        if addr == hint {
            return Some(addr);
        }
        match offset.wrapping_sub(addr) & (HUGE_SIZE - 1) {
            0 if self.layout() == MmapLayout::TopDown => Some(addr + HUGE_SIZE),
            shift => Some(addr + shift),
        }
    }

    fn place_plain(&mut self, hint: u64, len: u64, window: Window) -> Option<u64> {
        let hint = hint & !(PAGE_SIZE_U64 - 1);
        let low = if window == Window::Low { self.low_window() } else { None };
        let limit = low.map_or(self.sysctl().task_size, |low| low.end().get());
        if hint != 0 && self.hint_is_free(hint, len, limit) {
            return Some(hint);
        }
        self.set.prepare_gaps(self.mmap_base());
        if let Some(low) = low {
            return self.lowest(low.start().max(self.floor()), low.end(), len);
        }
        match self.layout() {
            MmapLayout::TopDown => self.highest_of_layout(len, window).or_else(|| self.lowest_of_layout(len)),
            MmapLayout::BottomUp => self.lowest_of_layout(len),
        }
    }

    fn hint_is_free(&self, hint: u64, len: u64, limit: u64) -> bool {
        let Some(end) = hint.checked_add(len) else { return false };
        if end > limit {
            return false;
        }
        self.find_vma(VirtAddr::from(hint))
            .is_none_or(|next| end <= self.vma(next).start_gap(self.sysctl().stack_guard_gap).get())
    }

    /// The lowest address that anything is placed at.
    fn floor(&self) -> VirtAddr {
        VirtAddr::from(self.sysctl().mmap_min_addr.max(PAGE_SIZE_U64))
    }

    #[doc(alias = "arch_get_unmapped_area_topdown")]
    fn highest_of_layout(&mut self, len: u64, window: Window) -> Option<u64> {
        let is_above = window == Window::Above4G && self.low_window().is_some();
        let low = if is_above { self.floor().max(VirtAddr::from(1 << 32)) } else { self.floor() };
        self.highest(low, self.mmap_base(), len)
    }

    #[doc(alias = "arch_get_unmapped_area")]
    fn lowest_of_layout(&mut self, len: u64) -> Option<u64> {
        let low = self.mmap_legacy_base().max(self.floor());
        self.lowest(low, VirtAddr::from(self.sysctl().task_size), len)
    }

    /// The highest address in `low..high` with `len` free bytes, none of them in the guard gap of a stack above.
    #[doc(alias = "unmapped_area_topdown")]
    fn highest(&mut self, low: VirtAddr, high: VirtAddr, len: u64) -> Option<u64> {
        let guards = self.guards();
        // A guard that is in the way once bounds all that follows, though it may reach below smaller VMAs.
        let mut limit = high;
        let accept = |candidate: Candidate, above: &Above<'_, '_>| {
            let candidate = candidate.below(limit)?;
            match guards.below(above.find(candidate)) {
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
    fn lowest(&mut self, low: VirtAddr, high: VirtAddr, len: u64) -> Option<u64> {
        let guards = self.guards();
        let accept = |candidate: Candidate, above: &Above<'_, '_>| {
            let guard = guards.below(above.find(candidate));
            guard.map_or(Some(candidate), |guard| candidate.below(guard))?.lowest()
        };
        let fit = Fit::new(len, VirtRange::new(low, high)?)?;
        self.set.lowest_fit(fit, accept).map(VirtAddr::get)
    }

    fn guards(&self) -> Guards<'c> {
        Guards { pool: &self.context.pool, bytes: self.sysctl().stack_guard_gap }
    }
}

/// Knows the gaps below stacks that nothing is placed in.
#[derive(Clone, Copy)]
struct Guards<'p> {
    pool: &'p VmaPool<'p>,
    bytes: u64,
}

impl Guards<'_> {
    /// Where the guard gap of a VMA begins, if that grows down.
    #[inline]
    fn below(self, vma: Option<Slot>) -> Option<VirtAddr> {
        let grows = |&slot: &Slot| self.pool.at(slot).flags().contains(VmFlags::GROWSDOWN);
        vma.filter(grows).map(|slot| self.pool.load(slot).start_gap(self.bytes))
    }
}
