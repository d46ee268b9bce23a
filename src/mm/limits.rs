//! Limits of one process, and the sums that are held against them.

use super::error::MmError;
use super::vma::Vma;
use crate::addr::PAGE_SHIFT;
use crate::flags::VmFlags;

/// The resource limits that an address space obeys, in bytes; [`INFINITY`](Self::INFINITY) means no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "rlimit")]
pub struct Rlimits {
    /// All mappings together (`RLIMIT_AS`).
    pub address_space: u64,
    /// Private writable memory (`RLIMIT_DATA`). 0 forbids a heap; what else is mapped is held against [`data_max`](Self::data_max) then.
    pub data: u64,
    /// What `data` may be raised to (the hard limit of `RLIMIT_DATA`).
    pub data_max: u64,
    /// A VMA that grows down (`RLIMIT_STACK`).
    pub stack: u64,
    /// Locked memory (`RLIMIT_MEMLOCK`); whoever may lock without limit has infinity here.
    pub memlock: u64,
}

impl Rlimits {
    /// No limit.
    pub const INFINITY: u64 = u64::MAX;

    /// `bytes` as whole pages.
    const fn pages(bytes: u64) -> u64 {
        if bytes == Self::INFINITY { u64::MAX } else { bytes >> PAGE_SHIFT }
    }

    /// How many pages of data there may be.
    const fn data_pages(&self) -> u64 {
        Self::pages(if self.data == 0 { self.data_max } else { self.data })
    }

    /// Whether memory may be locked at all.
    #[doc(alias = "can_do_mlock")]
    pub(crate) const fn may_lock(&self) -> bool {
        self.memlock != 0
    }

    /// How many pages may be locked.
    pub(crate) const fn memlock_pages(&self) -> u64 {
        Self::pages(self.memlock)
    }
}

impl Default for Rlimits {
    /// Those of a Linux process that nobody has limited: 8 MiB of stack, 8 MiB locked.
    fn default() -> Self {
        Self {
            address_space: Self::INFINITY,
            data: Self::INFINITY,
            data_max: Self::INFINITY,
            stack: 8 << 20,
            memlock: 8 << 20,
        }
    }
}

/// Sums over the VMAs of an address space, in pages.
///
/// # Linux
/// The fields of the same names in `struct mm_struct`; `committed` is what it has charged to `vm_committed_as`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// All pages.
    pub total_vm: u64,
    /// Those of locked VMAs.
    pub locked_vm: u64,
    /// Private, writable, no stack.
    pub data_vm: u64,
    /// Executable, not writable, no stack.
    pub exec_vm: u64,
    /// Those of VMAs that grow down.
    pub stack_vm: u64,
    /// Those charged to the committed memory.
    pub committed: u64,
}

impl Totals {
    /// What `pages` pages with these flags add to the sums.
    #[doc(alias = "vm_stat_account")]
    pub(crate) fn of(flags: VmFlags, pages: u64) -> Self {
        let when = |condition: bool| if condition { pages } else { 0 };
        Self {
            total_vm: pages,
            locked_vm: when(flags.contains(VmFlags::LOCKED)),
            data_vm: when(flags.is_data()),
            exec_vm: when(flags.is_exec()),
            stack_vm: when(flags.is_stack()),
            committed: when(flags.contains(VmFlags::ACCOUNT)),
        }
    }

    /// What a VMA adds to the sums.
    pub(crate) fn of_vma(vma: &Vma) -> Self {
        Self::of(vma.flags, vma.pages())
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.each(other, u64::wrapping_add);
    }

    pub(crate) fn sub(&mut self, other: &Self) {
        self.each(other, u64::wrapping_sub);
    }

    fn each(&mut self, other: &Self, op: fn(u64, u64) -> u64) {
        self.total_vm = op(self.total_vm, other.total_vm);
        self.locked_vm = op(self.locked_vm, other.locked_vm);
        self.data_vm = op(self.data_vm, other.data_vm);
        self.exec_vm = op(self.exec_vm, other.exec_vm);
        self.stack_vm = op(self.stack_vm, other.stack_vm);
        self.committed = op(self.committed, other.committed);
    }

    /// Whether `pages` more pages with these flags stay within the limits.
    ///
    /// # Errors
    /// [`MmError::AddressSpaceLimit`].
    ///
    /// # Linux
    /// `may_expand_vm` in `mm/mmap.c`.
    pub(crate) fn may_expand(&self, rlimits: &Rlimits, flags: VmFlags, pages: u64) -> Result<(), MmError> {
        let within = |now: u64, limit: u64| now.checked_add(pages).is_some_and(|then| then <= limit);
        let is_allowed = within(self.total_vm, Rlimits::pages(rlimits.address_space))
            && (!flags.is_data() || within(self.data_vm, rlimits.data_pages()));
        if is_allowed { Ok(()) } else { Err(MmError::AddressSpaceLimit) }
    }

    /// Whether `bytes` more bytes with these flags stay within the limit on locked memory.
    ///
    /// # Linux
    /// `mlock_future_ok` in `mm/mmap.c`.
    pub(crate) fn may_lock_future(&self, rlimits: &Rlimits, flags: VmFlags, bytes: u64) -> bool {
        !flags.contains(VmFlags::LOCKED)
            || (bytes >> PAGE_SHIFT).saturating_add(self.locked_vm) <= rlimits.memlock_pages()
    }
}
