//! mprotect.

use super::{is_aligned, page_align, range};
use crate::addr::{PAGE_SHIFT, VirtRange};
use crate::collections::Slot;
use crate::flags::{Prot, VmFlags};
use crate::mm::{Mm, MmError, Tables, clip};

/// Gives `len` bytes from `addr`, rounded up to whole pages, the protection `prot`.
///
/// # Errors
/// [`MmError::BadProt`], [`MmError::Unaligned`], [`MmError::Wraps`]. [`MmError::NotMapped`] if the first page is not
/// mapped, [`MmError::NotGrowsDown`]: nothing is changed. [`MmError::NotMapped`] at a later hole, [`MmError::Denied`],
/// [`MmError::AddressSpaceLimit`], [`MmError::Overcommit`], [`MmError::TooManyVmas`], [`MmError::NotDivisible`], [`MmError::OutOfSlots`]: **the
/// VMAs before it stay changed**, as in Linux.
///
/// # Linux
/// `do_mprotect_pkey` in `mm/mprotect.c` (6.18).
pub fn mprotect(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    addr: u64,
    len: u64,
    prot: Prot,
) -> Result<(), MmError> {
    let grows = prot & (Prot::GROWSDOWN | Prot::GROWSUP);
    let prot = prot - grows;
    if grows == Prot::GROWSDOWN | Prot::GROWSUP {
        return Err(MmError::BadProt);
    }
    if !is_aligned(addr) {
        return Err(MmError::Unaligned);
    }
    if len == 0 {
        return Ok(());
    }
    let end = addr.wrapping_add(page_align(len));
    let mut range = range(addr, end).filter(|range| !range.is_empty()).ok_or(MmError::Wraps)?;
    if !(Prot::READ | Prot::WRITE | Prot::EXEC | Prot::SEM).contains(prot) {
        return Err(MmError::BadProt);
    }
    let first = mm.find_vma_intersection(range.start(), range.end()).ok_or(MmError::NotMapped)?;
    let vma = mm.vma(first);
    if grows == Prot::GROWSDOWN {
        range = VirtRange::new(vma.start, range.end()).ok_or(MmError::NotMapped)?;
        if !vma.flags.contains(VmFlags::GROWSDOWN) {
            return Err(MmError::NotGrowsDown);
        }
    } else if vma.start > range.start() {
        return Err(MmError::NotMapped);
    } else if grows == Prot::GROWSUP {
        return Err(MmError::NotGrowsDown);
    }
    protect_range(mm, tables, first, range, prot)
}

fn protect_range(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    first: Slot,
    range: VirtRange,
    prot: Prot,
) -> Result<(), MmError> {
    let mut at = Some(first);
    let mut done = range.start();
    while done < range.end() {
        let slot = at.filter(|&slot| mm.vma(slot).start <= done).ok_or(MmError::NotMapped)?;
        let part = clip(&mm.vma(slot), VirtRange::new(done, range.end()).ok_or(MmError::Wraps)?).range();
        let flags = mm.vma(slot).flags;
        let wanted = (flags - VmFlags::ACCESS - VmFlags::EXECUTE_ONLY_KEY) | mm.access_flags(prot);
        // Each flag lies four bits below the one that says whether it may be given.
        let may = VmFlags::from_bits_truncate((flags & VmFlags::MAY_ACCESS).bits() >> 4);
        if !may.contains(prot.vm_flags()) {
            return Err(MmError::Denied);
        }
        let slot = protect_part(mm, tables, slot, part, wanted)?;
        done = mm.vma(slot).end;
        at = mm.vmas().next(slot);
    }
    Ok(())
}

/// Gives a part of one VMA other flags.
///
/// # Linux
/// `mprotect_fixup` in `mm/mprotect.c`.
fn protect_part(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    slot: Slot,
    part: VirtRange,
    mut flags: VmFlags,
) -> Result<Slot, MmError> {
    let old = mm.vma(slot);
    if flags == old.flags {
        return Ok(slot);
    }
    let pages = part.len() >> PAGE_SHIFT;
    let mut charged = 0;
    if flags.contains(VmFlags::WRITE) {
        // Only what becomes data by this is held against the limit, not what was beyond it already.
        if mm.may_expand(flags, pages).is_err() && mm.may_expand(old.flags, pages).is_ok() {
            return Err(MmError::AddressSpaceLimit);
        }
        let never_charged =
            !old.flags.intersects(VmFlags::ACCOUNT | VmFlags::WRITE | VmFlags::SHARED | VmFlags::NORESERVE);
        if never_charged {
            charged = pages;
            mm.charge(charged)?;
            flags |= VmFlags::ACCOUNT;
        }
    } else if old.flags.contains(VmFlags::ACCOUNT) && old.backing.is_anonymous() && old.anon.is_none() {
        // Nobody has written, so that nothing has to be kept.
        flags -= VmFlags::ACCOUNT;
    }
    let slot = match mm.modify_flags(tables, slot, part, flags) {
        Ok(slot) => slot,
        Err(error) => {
            mm.uncharge(charged);
            return Err(error);
        }
    };
    tables.protect(&mm.vma(slot), part);
    if old.flags.contains(VmFlags::ACCOUNT) && !flags.contains(VmFlags::ACCOUNT) {
        mm.uncharge(pages);
    }
    let locked_until_now =
        old.flags & (VmFlags::WRITE | VmFlags::SHARED | VmFlags::LOCKED) == VmFlags::LOCKED;
    if locked_until_now && flags.contains(VmFlags::WRITE) {
        // Copies are made now, so that the stores to come need not wait for them.
        mm.populate_locked(tables, slot, part);
    }
    Ok(slot)
}
