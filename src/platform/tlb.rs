//! Translations that CPUs remember: which CPUs, and what they are to forget.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64};

use super::CpuId;
use crate::addr::{Pfn, VirtAddr, VirtRange};

/// The most CPUs that page tables can be active on.
pub const MAX_TLB_CPUS: usize = 256;
const WORDS: usize = MAX_TLB_CPUS / 64;

/// Some CPUs.
///
/// # Linux
/// `struct cpumask` in `include/linux/cpumask.h`.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[doc(alias = "cpumask")]
pub struct CpuMask([u64; WORDS]);

impl CpuMask {
    /// None.
    pub const EMPTY: Self = Self([0; WORDS]);

    /// The first `count`, or all that there can be.
    pub fn first(count: usize) -> Self {
        Self(core::array::from_fn(|word| match count.saturating_sub(word * 64) {
            bits @ ..64 => (1 << bits) - 1,
            _ => u64::MAX,
        }))
    }

    /// Adds a CPU; `false` if its number is too high.
    #[must_use]
    pub fn insert(&mut self, cpu: CpuId) -> bool {
        let word = self.0.get_mut(cpu.index() / 64);
        word.map(|word| *word |= 1 << (cpu.0 % 64)).is_some()
    }

    /// Whether a CPU is among them.
    pub fn contains(&self, cpu: CpuId) -> bool {
        self.0.get(cpu.index() / 64).is_some_and(|word| word >> (cpu.0 % 64) & 1 == 1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The CPUs, by number.
    pub fn iter(&self) -> impl Iterator<Item = CpuId> + '_ {
        (0..MAX_TLB_CPUS as u32).map(CpuId).filter(|&cpu| self.contains(cpu))
    }
}

impl core::fmt::Debug for CpuMask {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_set().entries(self.iter().map(|cpu| cpu.0)).finish()
    }
}

/// CPUs that come and go: those that an address space is active on.
///
/// # Linux
/// `mm_cpumask` in `include/linux/mm_types.h`.
#[derive(Debug, Default)]
#[doc(alias = "mm_cpumask")]
pub struct CpuSet {
    words: [AtomicU64; WORDS],
    /// How many are changing entries and have not made these CPUs forget them yet.
    gathers: AtomicU32,
}

impl CpuSet {
    /// None.
    pub const fn new() -> Self {
        Self { words: [const { AtomicU64::new(0) }; WORDS], gathers: AtomicU32::new(0) }
    }

    /// Somebody is about to change entries, or has changed some and has their table locked: who finds them changed sees that they may not be forgotten yet.
    ///
    /// # Linux
    /// `inc_tlb_flush_pending` in `include/linux/mm_types.h`.
    #[doc(alias = "inc_tlb_flush_pending")]
    pub(crate) fn begin_gather(&self) {
        // The lock of a table orders this before the change, for who takes that lock later.
        self.gathers.fetch_add(1, Relaxed);
    }

    /// These CPUs have forgotten what somebody changed.
    ///
    /// # Linux
    /// `dec_tlb_flush_pending` in `include/linux/mm_types.h`.
    #[doc(alias = "dec_tlb_flush_pending")]
    pub(crate) fn end_gather(&self) {
        // Release: who sees that nobody else gathers comes after the flush.
        let before = self.gathers.fetch_sub(1, Release);
        debug_assert_ne!(before, 0, "more ends than beginnings");
    }

    /// How many have begun and not ended.
    ///
    /// # Linux
    /// `mm_tlb_flush_nested` in `include/linux/mm_types.h` is more than one.
    #[doc(alias = "mm_tlb_flush_nested")]
    pub(crate) fn gathers(&self) -> u32 {
        self.gathers.load(Acquire)
    }

    // SeqCst here and in `load`: a CPU enters the set before it walks tables, and who changes an entry looks at the set
    // afterwards. Of the two, at least one sees the other.

    /// Adds a CPU; `false` if its number is too high.
    #[must_use]
    pub fn insert(&self, cpu: CpuId) -> bool {
        let word = self.words.get(cpu.index() / 64);
        word.map(|word| word.fetch_or(1 << (cpu.0 % 64), SeqCst)).is_some()
    }

    /// Removes a CPU.
    pub fn remove(&self, cpu: CpuId) {
        if let Some(word) = self.words.get(cpu.index() / 64) {
            word.fetch_and(!(1 << (cpu.0 % 64)), SeqCst);
        }
    }

    /// Those in it at this moment.
    pub fn load(&self) -> CpuMask {
        CpuMask(self.words.each_ref().map(|word| word.load(SeqCst)))
    }
}

/// What is to be forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushScope {
    /// The translation of one page.
    Page(VirtAddr),
    /// Those of a range, pages of any size.
    Range(VirtRange),
    /// All of the address space.
    All,
    /// Those of a range of the kernel's half, from whatever tables they came, [global](crate::table::PteBits::GLOBAL) ones too. All CPUs are to
    /// forget them, and where there are more than [`MAX_TLB_CPUS`], those that the set cannot name as well. A CPU may forget everything
    /// instead: on x86 that takes more than a load of CR3.
    ///
    /// # Linux
    /// `flush_tlb_kernel_range` in `arch/x86/mm/tlb.c`.
    #[doc(alias = "flush_tlb_kernel_range")]
    Kernel(VirtRange),
}

/// Translations that CPUs must not use any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlbFlush {
    /// The root of the page tables that they came from.
    pub pgd: Pfn,
    /// Which of them.
    pub scope: FlushScope,
    /// Whether page tables go too, so that what a CPU remembers of the way to entries is to be forgotten as well: of each table that goes, at least one of
    /// the addresses that it led to is in the scope, and the way through it to the others goes with that one's. (x86: INVLPG of one address forgets the way to all. RISC-V:
    /// only SFENCE.VMA without an address forgets ways.)
    pub tables: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in_and_refuses_what_it_cannot_hold() {
        let set = CpuSet::new();
        for cpu in [0, 63, 64, 255] {
            assert!(set.insert(CpuId(cpu)));
        }
        assert!(!set.insert(CpuId(256)));
        set.remove(CpuId(63));
        set.remove(CpuId(300));
        let mask = set.load();
        assert_eq!(mask.iter().collect::<Vec<_>>(), [CpuId(0), CpuId(64), CpuId(255)]);
        assert_eq!((mask.len(), mask.is_empty(), CpuMask::EMPTY.is_empty()), (3, false, true));
        for count in [0, 1, 63, 64, 65, 255, 256] {
            let first = CpuMask::first(count);
            assert!((0..300).all(|cpu| first.contains(CpuId(cpu)) == ((cpu as usize) < count)), "{count}");
        }
        assert_eq!(CpuMask::first(1000), CpuMask::first(256));
        assert!(!mask.contains(CpuId(1)) && !mask.contains(CpuId(4096)));
    }
}
