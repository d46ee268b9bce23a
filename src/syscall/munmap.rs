//! munmap.

use super::{is_aligned, page_align};
use crate::addr::{VirtAddr, VirtRange};
use crate::mm::{Mm, MmError, Tables};

/// Unmaps `len` bytes from `addr`, rounded up to whole pages. What is not mapped is no error.
///
/// # Errors
/// [`MmError::Unaligned`], [`MmError::ZeroLength`], [`MmError::OutOfRange`]; [`MmError::TooManyVmas`], [`MmError::NotDivisible`]
/// and [`MmError::OutOfSlots`] if a VMA would have to be split. Nothing is unmapped then.
///
/// # Linux
/// `do_vmi_munmap` in `mm/vma.c`.
pub fn munmap(mm: &mut Mm<'_>, tables: &mut impl Tables, addr: u64, len: u64) -> Result<(), MmError> {
    let range = user_range(mm, addr, len)?;
    let prepared = mm.prepare_unmap(range)?;
    mm.commit_unmap(tables, prepared);
    Ok(())
}

/// What munmap takes for a range.
fn user_range(mm: &Mm<'_>, addr: u64, len: u64) -> Result<VirtRange, MmError> {
    let task_size = mm.context().sysctl().task_size;
    if !is_aligned(addr) {
        return Err(MmError::Unaligned);
    }
    if addr > task_size || len > task_size - addr {
        return Err(MmError::OutOfRange);
    }
    if len == 0 {
        return Err(MmError::ZeroLength);
    }
    VirtRange::with_len(VirtAddr::from(addr), page_align(len)).ok_or(MmError::OutOfRange)
}
