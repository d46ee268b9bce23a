//! Where placement begins, and what chance moves.
//!
//! # Linux
//! `mmap_base` in `arch/x86/mm/mmap.c`, `randomize_stack_top` and `randomize_page` in `mm/util.c`, `ELF_ET_DYN_BASE` and `STACK_RND_MASK` in `asm/elf.h` of
//! x86 and RISC-V (6.18).

use super::space::Mm;
use crate::addr::{PAGE_OFFSET_MASK, PAGE_SHIFT, VirtAddr, VirtRange};

/// Which end of the free addresses placement begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "MMF_TOPDOWN")]
pub enum MmapLayout {
    /// The highest free range below [`Mm::mmap_base`].
    TopDown,
    /// The lowest free range above [`Mm::mmap_legacy_base`].
    #[doc(alias = "ADDR_COMPAT_LAYOUT")]
    BottomUp,
}

/// What chance moves in the layout of a program. Each has numbers of its own from one seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Chance {
    /// The base of placement.
    Mmap = 1,
    /// A program that may lie anywhere.
    Program,
    /// The end of the stack.
    Stack,
    /// The beginning of the heap.
    Heap,
}

/// How far chance may move things, and where programs go. Linux fixes it for an architecture, which we know by how far its addresses reach.
struct Spread {
    mmap_pages: u64,
    stack_pages: u64,
    heap_pages: u64,
    dyn_base: u64,
}

impl Spread {
    const fn of(task_size: u64) -> Self {
        // `ARCH_MMAP_RND_BITS` of x86-64, RISC-V and i386, and their `STACK_RND_MASK`.
        let (mmap_bits, stack_bits) = match task_size {
            0..=0x1_0000_0000 => (8, 11),
            0x1_0000_0001..=BELOW_X86_64 => (18, 18),
            _ => (28, 22),
        };
        let (heap_bytes, dyn_base) =
            if task_size <= 1 << 32 { (32 << 20, 0x40_0000) } else { (1 << 30, task_size / 3 * 2) };
        // However short the addresses may be.
        let most = (task_size / 3) >> PAGE_SHIFT;
        Self {
            mmap_pages: least(1 << mmap_bits, most),
            stack_pages: least(1 << stack_bits, most),
            heap_pages: least(heap_bytes >> PAGE_SHIFT, most),
            dyn_base,
        }
    }
}

/// Addresses that reach further are those of x86-64.
const BELOW_X86_64: u64 = 0x3fff_ffff_ffff;

/// The least room above [`Mm::mmap_base`], in bytes.
const GAP_MIN: u64 = 128 << 20;

impl Mm<'_> {
    /// Sets where the search begins from the stack's limit and a random number, which may be 0 for no randomness. Both bases lie below the end of the
    /// addresses.
    ///
    /// # Linux
    /// `arch_pick_mmap_layout` in `arch/x86/mm/mmap.c`: there, an infinite stack does not mean to search upwards.
    #[doc(alias = "arch_pick_mmap_layout")]
    pub fn randomize_mmap_base(&mut self, seed: u64) {
        let task_size = self.sysctl().task_size;
        let spread = Spread::of(task_size);
        let random = draw(seed, Chance::Mmap, spread.mmap_pages) << PAGE_SHIFT;
        let stack_random = if seed == 0 { 0 } else { spread.stack_pages.saturating_sub(1) << PAGE_SHIFT };
        let pad = self.sysctl().stack_guard_gap.saturating_add(stack_random);
        // A limit near infinity has no room for the pad.
        let stack = self.rlimits.stack;
        let gap = stack.checked_add(pad).unwrap_or(stack).max(GAP_MIN).min(task_size / 6 * 5);
        let base = page_align(task_size.saturating_sub(gap).saturating_sub(random));
        self.set_mmap_base(VirtAddr::from(base));
        self.set_mmap_legacy_base(VirtAddr::from(legacy_base(task_size) + random));
    }

    /// Where a stack ends: at the end of the addresses, or as far below as a random number says, which may be 0 for no randomness.
    #[doc(alias = "STACK_TOP", alias = "randomize_stack_top")]
    pub fn stack_top(&self, seed: u64) -> VirtAddr {
        let task_size = self.sysctl().task_size;
        let down = draw(seed, Chance::Stack, Spread::of(task_size).stack_pages) << PAGE_SHIFT;
        VirtAddr::from((task_size & !PAGE_OFFSET_MASK).saturating_sub(down))
    }

    /// Where programs go that may lie anywhere and have an interpreter, and the heaps of those that have none.
    #[doc(alias = "ELF_ET_DYN_BASE")]
    pub(crate) const fn dyn_base(&self) -> u64 {
        Spread::of(self.sysctl().task_size).dyn_base
    }

    /// The same for programs, moved by a random number.
    pub(crate) const fn dyn_program_base(&self, seed: u64) -> u64 {
        let pages = Spread::of(self.sysctl().task_size).mmap_pages;
        self.dyn_base() + (draw(seed, Chance::Program, pages) << PAGE_SHIFT)
    }

    /// Where `MAP_32BIT` looks: x86-64 has it, whose code of the small model reaches 2 GiB.
    ///
    /// # Linux
    /// `find_start_end` in `arch/x86/kernel/sys_x86_64.c`.
    #[doc(alias = "find_start_end")]
    pub(super) fn low_window(&self) -> Option<VirtRange> {
        let range = VirtRange::new(VirtAddr::from(1 << 30), VirtAddr::from(2 << 30));
        range.filter(|_| self.sysctl().task_size > BELOW_X86_64)
    }

    /// How far a heap begins behind where it could.
    #[doc(alias = "arch_randomize_brk")]
    pub(crate) const fn heap_shift(&self, seed: u64) -> u64 {
        let pages = Spread::of(self.sysctl().task_size).heap_pages;
        draw(seed, Chance::Heap, pages) << PAGE_SHIFT
    }
}

/// Where the search upwards begins without randomness.
#[doc(alias = "TASK_UNMAPPED_BASE")]
pub(super) const fn legacy_base(task_size: u64) -> u64 {
    page_align(task_size / 3)
}

/// A number below `choices`; 0 without a seed.
const fn draw(seed: u64, what: Chance, choices: u64) -> u64 {
    if seed == 0 || choices == 0 {
        return 0;
    }
    // The mixing function of splitmix64: every bit of the seed moves every bit of what is drawn.
    let mut bits = seed.wrapping_add((what as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (bits ^ (bits >> 31)) % choices
}

const fn page_align(addr: u64) -> u64 {
    match addr.checked_next_multiple_of(PAGE_OFFSET_MASK + 1) {
        Some(aligned) => aligned,
        None => addr & !PAGE_OFFSET_MASK,
    }
}

const fn least(one: u64, other: u64) -> u64 {
    if one < other { one } else { other }
}
