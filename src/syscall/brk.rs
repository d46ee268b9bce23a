//! brk and sbrk.

use super::{page_align, range};
use crate::addr::{PAGE_SIZE_U64, VirtAddr, VirtRange};
use crate::error::Errno;
use crate::flags::VmFlags;
use crate::mm::{Exact, Mm, MmError, Purpose, Rlimits, Sharing, Tables, Window, Wish};

/// Moves the end of the heap to `addr` and answers where it is then: `addr`, or the old end if that cannot be.
///
/// # Linux
/// `brk` in `mm/mmap.c` (6.18), with `CONFIG_COMPAT_BRK` off.
pub fn brk(mm: &mut Mm<'_>, tables: &mut impl Tables, addr: u64) -> VirtAddr {
    match try_brk(mm, tables, addr) {
        Ok(()) => VirtAddr::from(addr),
        Err(_) => mm.image().brk,
    }
}

/// Moves the end of the heap by `delta` bytes and answers where it was.
///
/// # Errors
/// `ENOMEM` whatever the reason, as the C library's `sbrk` has it: the cause where that means `ENOMEM` ([`MmError::AddressSpaceLimit`],
/// [`MmError::TooManyVmas`], [`MmError::Overcommit`], …), else [`MmError::NoGap`]. Nothing is changed then. (The C library's does not notice
/// where the heap cannot shrink.)
pub fn sbrk(mm: &mut Mm<'_>, tables: &mut impl Tables, delta: i64) -> Result<VirtAddr, MmError> {
    let old = mm.image().brk;
    let new = old.get().checked_add_signed(delta).ok_or(MmError::NoGap)?;
    match try_brk(mm, tables, new) {
        Ok(()) => Ok(old),
        Err(error) if error.errno() == Errno::ENOMEM => Err(error),
        Err(_) => Err(MmError::NoGap),
    }
}

fn try_brk(mm: &mut Mm<'_>, tables: &mut impl Tables, addr: u64) -> Result<(), MmError> {
    let image = *mm.image();
    let start_brk = image.start_brk.get();
    if addr < start_brk {
        return Err(MmError::OutOfRange);
    }
    let data = image.end_data.get().saturating_sub(image.start_data.get());
    if mm.rlimits.data != Rlimits::INFINITY && (addr - start_brk).saturating_add(data) > mm.rlimits.data {
        return Err(MmError::AddressSpaceLimit);
    }
    let old = page_align(image.brk.get());
    let new = page_align(addr);
    if new != old {
        if addr <= image.brk.get() {
            shrink(mm, tables, range(new, old).ok_or(MmError::OutOfRange)?)?;
        } else {
            grow(mm, tables, range(old, new).ok_or(MmError::OutOfRange)?)?;
        }
    }
    mm.image.brk = VirtAddr::from(addr);
    Ok(())
}

fn shrink(mm: &mut Mm<'_>, tables: &mut impl Tables, range: VirtRange) -> Result<(), MmError> {
    if mm.find_vma_intersection(range.start(), range.end()).is_none() {
        return Err(MmError::NotMapped);
    }
    let prepared = mm.prepare_unmap(range)?;
    mm.commit_unmap(tables, prepared);
    Ok(())
}

fn grow(mm: &mut Mm<'_>, tables: &mut impl Tables, range: VirtRange) -> Result<(), MmError> {
    mm.get_unmapped_area(&Wish {
        addr: range.start().get(),
        len: range.len(),
        file: None,
        pgoff: 0,
        sharing: Sharing::Private,
        exact: Exact::Fixed,
        window: Window::Layout,
    })?;
    mm.may_lock_future(mm.def_flags, range.len())?;
    let guard_gap = mm.sysctl().stack_guard_gap;
    let room = range.end().get().saturating_add(PAGE_SIZE_U64);
    let next = mm.find_vma(range.start()).map(|next| mm.vma(next).start_gap(guard_gap).get());
    if next.is_some_and(|next| room > next) {
        return Err(MmError::NoGap);
    }
    mm.map_heap(tables, range)?;
    if mm.def_flags.contains(VmFlags::LOCKED) {
        let _ = mm.populate(tables, range, Purpose::Mapping);
    }
    Ok(())
}
