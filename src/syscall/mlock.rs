//! mlock, mlock2, munlock, mlockall, munlockall.

use super::{page_align, range};
use crate::addr::{PAGE_OFFSET_MASK, PAGE_SHIFT, VirtRange};
use crate::collections::Slot;
use crate::flags::{MlockFlags, MlockallFlags, VmFlags};
use crate::mm::{Mm, MmError, Purpose, Tables, clip};

/// Locks the pages that hold the `len` bytes from `addr`, and makes them resident.
///
/// # Errors
/// [`MmError::MayNotLock`], [`MmError::LockLimitNoMemory`], [`MmError::OutOfRange`] (wraps): nothing is changed.
/// [`MmError::NotMapped`], [`MmError::TooManyVmas`], [`MmError::OutOfSlots`]: **the VMAs before it stay locked**;
/// [`MmError::NotMapped`] too if a page cannot be made resident: all of the range stays locked. As in Linux.
///
/// # Linux
/// `do_mlock` in `mm/mlock.c` (6.18).
pub fn mlock(mm: &mut Mm<'_>, tables: &mut impl Tables, addr: u64, len: u64) -> Result<(), MmError> {
    lock(mm, tables, addr, len, VmFlags::LOCKED)
}

/// Like [`mlock`]; with [`MlockFlags::ONFAULT`] pages are locked when they are touched.
///
/// # Errors
/// [`MmError::BadFlags`], and those of [`mlock`].
pub fn mlock2(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    addr: u64,
    len: u64,
    flags: MlockFlags,
) -> Result<(), MmError> {
    if !MlockFlags::ONFAULT.contains(flags) {
        return Err(MmError::BadFlags);
    }
    let on_fault = if flags.contains(MlockFlags::ONFAULT) { VmFlags::LOCKONFAULT } else { VmFlags::empty() };
    lock(mm, tables, addr, len, VmFlags::LOCKED | on_fault)
}

/// Undoes [`mlock`].
///
/// # Errors
/// [`MmError::OutOfRange`] (wraps): nothing is changed. [`MmError::NotMapped`], [`MmError::TooManyVmas`],
/// [`MmError::OutOfSlots`]: **the VMAs before it stay unlocked**, as in Linux.
pub fn munlock(mm: &mut Mm<'_>, tables: &mut impl Tables, addr: u64, len: u64) -> Result<(), MmError> {
    let (start, len) = whole_pages(addr, len);
    set_lock_flags(mm, tables, start, len, VmFlags::empty())
}

/// Locks all that is mapped, all that will be, or both.
///
/// # Errors
/// [`MmError::BadFlags`], [`MmError::MayNotLock`], [`MmError::LockLimitNoMemory`]; nothing is changed.
///
/// # Linux
/// `mlockall` in `mm/mlock.c` (6.18).
pub fn mlockall(mm: &mut Mm<'_>, tables: &mut impl Tables, flags: MlockallFlags) -> Result<(), MmError> {
    let known = MlockallFlags::CURRENT | MlockallFlags::FUTURE | MlockallFlags::ONFAULT;
    if flags.is_empty() || !known.contains(flags) || flags == MlockallFlags::ONFAULT {
        return Err(MmError::BadFlags);
    }
    if !mm.rlimits().may_lock() {
        return Err(MmError::MayNotLock);
    }
    let current = flags.contains(MlockallFlags::CURRENT);
    if current && mm.totals().total_vm > mm.rlimits().memlock_pages() {
        return Err(MmError::LockLimitNoMemory);
    }
    let mut lock = VmFlags::LOCKED;
    lock.set(VmFlags::LOCKONFAULT, flags.contains(MlockallFlags::ONFAULT));
    mm.def_flags -= VmFlags::LOCKED_MASK;
    if flags.contains(MlockallFlags::FUTURE) {
        mm.def_flags |= lock;
    }
    if current {
        set_all_lock_flags(mm, tables, lock);
        if let Some(all) = range(0, mm.sysctl().task_size) {
            let _ = mm.populate(tables, all, Purpose::Mapping);
        }
    }
    Ok(())
}

/// Unlocks all that is mapped, and no longer locks what will be.
pub fn munlockall(mm: &mut Mm<'_>, tables: &mut impl Tables) {
    mm.def_flags -= VmFlags::LOCKED_MASK;
    set_all_lock_flags(mm, tables, VmFlags::empty());
}

fn lock(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    addr: u64,
    len: u64,
    flags: VmFlags,
) -> Result<(), MmError> {
    if !mm.rlimits().may_lock() {
        return Err(MmError::MayNotLock);
    }
    let (start, len) = whole_pages(addr, len);
    let limit = mm.rlimits().memlock_pages();
    let mut locked = (len >> PAGE_SHIFT).saturating_add(mm.totals().locked_vm);
    if locked > limit {
        locked -= locked_pages(mm, start, len);
    }
    if locked > limit {
        return Err(MmError::LockLimitNoMemory);
    }
    set_lock_flags(mm, tables, start, len, flags)?;
    let Some(range) = range(start, start.wrapping_add(len)) else { return Ok(()) };
    mm.populate(tables, range, Purpose::Lock)
}

/// The pages that hold the bytes.
fn whole_pages(addr: u64, len: u64) -> (u64, u64) {
    (addr & !PAGE_OFFSET_MASK, page_align(len.wrapping_add(addr & PAGE_OFFSET_MASK)))
}

/// How many pages of the range are locked already.
#[doc(alias = "count_mm_mlocked_page_nr")]
fn locked_pages(mm: &Mm<'_>, start: u64, len: u64) -> u64 {
    let end = start.saturating_add(len);
    let Some(range) = range(start, end) else { return 0 };
    mm.overlapping(range)
        .filter(|(_, vma)| vma.flags.contains(VmFlags::LOCKED))
        .map(|(_, vma)| clip(&vma, range).pages())
        .sum()
}

/// Gives a range other lock flags, VMA by VMA up to the first hole.
#[doc(alias = "apply_vma_lock_flags")]
fn set_lock_flags(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    start: u64,
    len: u64,
    flags: VmFlags,
) -> Result<(), MmError> {
    let range = range(start, start.wrapping_add(len)).ok_or(MmError::OutOfRange)?;
    let mut done = range.start();
    while done < range.end() {
        let slot = mm.lookup(done).ok_or(MmError::NotMapped)?;
        let part = clip(&mm.vma(slot), VirtRange::new(done, range.end()).ok_or(MmError::OutOfRange)?).range();
        let slot = set_part_lock_flags(mm, tables, slot, part, flags)?;
        done = mm.vma(slot).end;
    }
    Ok(())
}

#[doc(alias = "mlock_fixup")]
fn set_part_lock_flags(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    slot: Slot,
    part: VirtRange,
    flags: VmFlags,
) -> Result<Slot, MmError> {
    let old = mm.vma(slot).flags;
    let new = (old - VmFlags::LOCKED_MASK) | flags;
    if new == old || old.intersects(VmFlags::NEVER_LOCKED) {
        return Ok(slot);
    }
    mm.modify_flags(tables, slot, part, new)
}

/// Gives everything other lock flags; a VMA that cannot be changed is passed over.
#[doc(alias = "apply_mlockall_flags")]
fn set_all_lock_flags(mm: &mut Mm<'_>, tables: &mut impl Tables, flags: VmFlags) {
    let mut at = mm.vmas().first();
    while let Some(slot) = at {
        let whole = mm.vma(slot).range();
        let slot = set_part_lock_flags(mm, tables, slot, whole, flags).unwrap_or(slot);
        at = mm.vmas().next(slot);
    }
}
