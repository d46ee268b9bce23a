//! What all address spaces of one memory share: limits of the system, committed memory, and where VMAs come from.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::anon::AnonVma;
use super::error::MmError;
use super::pool::{GapPool, GapRoom, VmaPool};
use super::shared::{MmPool, MmSlot};
use super::slot::{VmaNode, VmaSlot};
use super::vma_lock::{WaitForFaults, Waiter};
use crate::addr::PAGE_SHIFT;
use crate::rmap::{AnonFault, AnonNode, AnonVmas, RmapNodes};
use crate::table::{EntryFormat, X86_64};

/// Settings that hold for all address spaces. The default is Linux's on x86-64; [`for_format`](Self::for_format) gives that of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sysctl {
    /// The first address that is not the user's, in bytes: a multiple of the page size, [`EntryFormat::TASK_SIZE`] at most.
    #[doc(alias = "TASK_SIZE")]
    pub task_size: u64,
    /// The lowest address that placement and hints lead to, in bytes.
    pub mmap_min_addr: u64,
    /// The lowest address that `MAP_FIXED` may name, in bytes.
    pub dac_mmap_min_addr: u64,
    /// Room that stays free below a VMA that grows down, in bytes.
    pub stack_guard_gap: u64,
    /// How many VMAs an address space may have; a call may exceed it by one, as in Linux.
    pub max_map_count: u32,
    /// Whether placement aligns long mappings for huge pages.
    pub huge_alignment: HugeAlignment,
    /// Which memory gets huge pages on its first touch.
    pub huge_pages: HugePages,
    /// Whether the processor has protection keys, which make execute-only memory unreadable. On x86-64 the kernel has set CR4.PKE, and PKRU so that
    /// key 1 allows no data access; what a format has instead does as well.
    pub protection_keys: ProtectionKeys,
}

/// Whether the processor has protection keys.
///
/// # Linux
/// `execute_only_pkey` in `arch/x86/mm/pkeys.c`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProtectionKeys {
    /// Memory that may be executed only can be read all the same.
    Absent,
    /// It cannot.
    Present,
}

/// Whether placement aligns long mappings for huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HugeAlignment {
    /// Mappings that can hold a huge page begin where one can.
    On,
    /// Plain first fit.
    Off,
}

/// Which memory gets huge pages on its first touch.
///
/// # Linux
/// `/sys/kernel/mm/transparent_hugepage/enabled`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HugePages {
    /// None.
    Never,
    /// What was advised to.
    Madvise,
    /// All that was not advised against.
    Always,
}

impl Default for Sysctl {
    fn default() -> Self {
        Self::for_format::<X86_64>()
    }
}

impl Sysctl {
    /// Linux's defaults on an architecture with page tables in format `F`.
    ///
    /// ```
    /// use kernmm::{mm::Sysctl, table::{EntryFormat, Sv39, X86_64}};
    ///
    /// assert_eq!(Sysctl::for_format::<X86_64>(), Sysctl::default());
    /// assert_eq!(Sysctl::for_format::<Sv39>().task_size, Sv39::TASK_SIZE);
    /// ```
    pub const fn for_format<F: EntryFormat>() -> Self {
        Self {
            task_size: F::TASK_SIZE,
            mmap_min_addr: 64 << 10,
            dac_mmap_min_addr: 4 << 10,
            stack_guard_gap: 256 << PAGE_SHIFT,
            max_map_count: 65530,
            huge_alignment: HugeAlignment::On,
            huge_pages: HugePages::Madvise,
            protection_keys: ProtectionKeys::Absent,
        }
    }
}

/// How much memory may be promised.
///
/// # Linux
/// `vm.overcommit_memory`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OvercommitMode {
    /// 0: refuse only a single request for more than there is at all.
    Guess,
    /// 1: refuse nothing.
    Always,
    /// 2: promise no more than the limit.
    Never,
}

/// The committed memory of the system, in pages, and its limit.
#[derive(Debug)]
#[doc(alias = "vm_committed_as")]
pub struct Overcommit {
    mode: OvercommitMode,
    ram_pages: u64,
    swap_pages: u64,
    ratio_percent: u64,
    user_reserve_pages: u64,
    admin_reserve_pages: u64,
    committed: AtomicU64,
}

impl Overcommit {
    /// A system with so much memory, with Linux's default ratio (50 %) and reserves (3 % of memory, at most 128 MiB for
    /// a user and 8 MiB for the administrator).
    pub const fn new(mode: OvercommitMode, ram_pages: u64, swap_pages: u64) -> Self {
        let mebibyte = (1 << 20) >> PAGE_SHIFT;
        let share = ram_pages / 32;
        Self {
            mode,
            ram_pages,
            swap_pages,
            ratio_percent: 50,
            user_reserve_pages: if share < 128 * mebibyte { share } else { 128 * mebibyte },
            admin_reserve_pages: if share < 8 * mebibyte { share } else { 8 * mebibyte },
            committed: AtomicU64::new(0),
        }
    }

    /// The same with another ratio, in percent of memory.
    pub const fn with_ratio(mut self, percent: u64) -> Self {
        self.ratio_percent = percent;
        self
    }

    /// The same with other reserves, in pages.
    pub const fn with_reserves(mut self, user_pages: u64, admin_pages: u64) -> Self {
        self.user_reserve_pages = user_pages;
        self.admin_reserve_pages = admin_pages;
        self
    }

    /// How it decides.
    pub const fn mode(&self) -> OvercommitMode {
        self.mode
    }

    /// Pages promised so far.
    pub fn committed(&self) -> u64 {
        self.committed.load(Relaxed)
    }

    /// Pages that mode [`Never`](OvercommitMode::Never) promises at most, before reserves.
    #[doc(alias = "vm_commit_limit")]
    pub const fn limit(&self) -> u64 {
        let share = self.ram_pages as u128 * self.ratio_percent as u128 / 100;
        (share as u64).saturating_add(self.swap_pages)
    }

    /// Promises `pages` to an address space that has `total_vm` pages.
    ///
    /// # Errors
    /// [`MmError::Overcommit`]; then nothing is promised.
    ///
    /// # Linux
    /// `__vm_enough_memory` in `mm/util.c`.
    pub fn charge(&self, pages: u64, total_vm: u64) -> Result<(), MmError> {
        let allowed = match self.mode {
            OvercommitMode::Always => u64::MAX,
            OvercommitMode::Guess if pages > self.ram_pages.saturating_add(self.swap_pages) => {
                return Err(MmError::Overcommit);
            }
            OvercommitMode::Guess => u64::MAX,
            OvercommitMode::Never => self
                .limit()
                .saturating_sub(self.admin_reserve_pages)
                .saturating_sub(self.user_reserve_pages.min(total_vm / 32)),
        };
        self.committed
            .fetch_update(Relaxed, Relaxed, |now| {
                let then = now.checked_add(pages)?;
                (pages == 0 || allowed == u64::MAX || then < allowed).then_some(then)
            })
            .map(drop)
            .map_err(|_| MmError::Overcommit)
    }

    /// Takes a promise back.
    pub fn uncharge(&self, pages: u64) {
        // The word is everybody's: who has nothing to take leaves it alone.
        if pages != 0 {
            self.committed.fetch_sub(pages, Relaxed);
        }
    }
}

/// The memory that address spaces are made of: the embedder's, for as long as any of them lives.
#[derive(Clone, Copy, Debug)]
pub struct MmStores<'c> {
    /// As many as there may be address spaces.
    pub mms: &'c [MmSlot],
    /// As many as there may be VMAs: where they lie.
    pub vma_nodes: &'c [VmaNode],
    /// As many again: the rest of them.
    pub vmas: &'c [VmaSlot],
    /// Owners of anonymous pages. As many as there are VMAs serve any layout, unless pages outlive the VMAs that they were
    /// made in: those of a parent that has gone, in its children.
    pub anon_vmas: &'c [AnonNode],
    /// Gap indexes of large address spaces. A quarter as many as VMAs serve any layout, and some 30 more for each address space that was ever large;
    /// without them, looking for room takes O(n).
    pub gaps: &'c [GapRoom],
}

/// What all address spaces of one memory share.
#[derive(Debug)]
pub struct MmContext<'c> {
    pub(super) mms: MmPool<'c>,
    pub(super) pool: VmaPool<'c>,
    pub(super) gap_nodes: GapPool<'c>,
    pub(super) sysctl: Sysctl,
    pub(super) overcommit: Overcommit,
    pub(super) anon_vmas: AnonVmas<'c>,
    pub(super) waiter: Waiter<'c>,
}

impl<'c> MmContext<'c> {
    /// Address spaces, their VMAs and all else live in `stores`.
    pub const fn new(stores: MmStores<'c>, sysctl: Sysctl, overcommit: Overcommit) -> Self {
        Self {
            mms: MmPool::new(stores.mms),
            pool: VmaPool::new(stores.vma_nodes, stores.vmas),
            gap_nodes: GapPool::new(stores.gaps),
            sysctl,
            overcommit,
            anon_vmas: AnonVmas::new(stores.anon_vmas),
            waiter: Waiter::SPINS,
        }
    }

    /// The same with a way to wait for the faults that are in a VMA; without it the CPU asks all the time. No address space has been made yet.
    #[must_use]
    pub const fn with_waiter(mut self, waits: &'c dyn WaitForFaults) -> Self {
        self.waiter = Waiter::new(waits);
        self
    }

    /// The same with another rule for committed memory. No address space has been made yet.
    #[must_use]
    pub fn with_overcommit(mut self, overcommit: Overcommit) -> Self {
        self.set_overcommit(overcommit);
        self
    }

    /// Sets another rule for committed memory. No address space has been made yet.
    pub fn set_overcommit(&mut self, overcommit: Overcommit) {
        self.overcommit = overcommit;
    }

    /// The address spaces.
    pub const fn mms(&self) -> &MmPool<'c> {
        &self.mms
    }

    /// Where VMAs come from.
    pub const fn pool(&self) -> &VmaPool<'c> {
        &self.pool
    }

    /// The VMAs, for those who come from a page.
    pub const fn rmap_nodes(&self) -> &dyn RmapNodes {
        &self.pool
    }

    /// The owners of anonymous pages.
    pub const fn anon_vmas(&self) -> &AnonVmas<'c> {
        &self.anon_vmas
    }

    /// Where nodes of gap indexes come from.
    pub const fn gap_nodes(&self) -> &GapPool<'c> {
        &self.gap_nodes
    }

    /// The settings.
    pub const fn sysctl(&self) -> &Sysctl {
        &self.sysctl
    }

    /// The committed memory.
    pub const fn overcommit(&self) -> &Overcommit {
        &self.overcommit
    }

    /// Recounts who owns anonymous pages: every VMA that has an owner is on exactly that one's list. No address space may
    /// be changed meanwhile.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check_anon(&self) -> Result<(), AnonFault> {
        let owner_of = |slot| self.pool.get(slot).and_then(VmaSlot::anon).map(AnonVma::id);
        self.anon_vmas.check(&self.pool, owner_of, self.pool.owned())
    }
}
