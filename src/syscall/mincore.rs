//! mincore.

use super::is_aligned;
use crate::addr::{PAGE_OFFSET_MASK, PAGE_SHIFT, VirtAddr, Vpn};
use crate::mm::{Mm, MmError, Tables};

/// Where mincore writes its answers to: the caller's vector.
pub trait Residency {
    /// Whether this many bytes can be the caller's vector at all.
    fn can_hold(&self, pages: u64) -> bool;

    /// Writes the byte of the page with this index.
    ///
    /// # Errors
    /// [`MmError::BadVector`] if it cannot be written.
    fn put(&mut self, index: u64, resident: bool) -> Result<(), MmError>;
}

impl Residency for [u8] {
    fn can_hold(&self, pages: u64) -> bool {
        pages <= self.len() as u64
    }

    fn put(&mut self, index: u64, resident: bool) -> Result<(), MmError> {
        let byte = usize::try_from(index).ok().and_then(|index| self.get_mut(index));
        *byte.ok_or(MmError::BadVector)? = u8::from(resident);
        Ok(())
    }
}

/// Tells which of the pages that hold the `len` bytes from `addr` are resident.
///
/// # Errors
/// [`MmError::Unaligned`], [`MmError::Wraps`] (outside the user's addresses), [`MmError::BadVector`];
/// [`MmError::NotMapped`] at a hole: **the answers up to it are written**, as in Linux.
///
/// # Linux
/// `mincore` in `mm/mincore.c` (6.18).
pub fn mincore(
    mm: &Mm<'_>,
    tables: &mut impl Tables,
    addr: u64,
    len: u64,
    answers: &mut (impl Residency + ?Sized),
) -> Result<(), MmError> {
    if !is_aligned(addr) {
        return Err(MmError::Unaligned);
    }
    // The whole lower half is taken for the user's here, a page more than can be mapped.
    let limit = (mm.context().sysctl().task_size).checked_next_power_of_two().unwrap_or(u64::MAX);
    let limit = limit - 1;
    if addr.checked_add(len).is_none_or(|end| end > limit) {
        return Err(MmError::Wraps);
    }
    let pages = (len >> PAGE_SHIFT) + u64::from(len & PAGE_OFFSET_MASK != 0);
    if !answers.can_hold(pages) {
        return Err(MmError::BadVector);
    }
    for index in 0..pages {
        let at = VirtAddr::from(addr + (index << PAGE_SHIFT));
        let slot = mm.lookup(at).ok_or(MmError::NotMapped)?;
        let page: Vpn = at.vpn();
        answers.put(index, tables.is_resident(&mm.vma(slot), page))?;
    }
    Ok(())
}
