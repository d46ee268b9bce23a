//! msync.

use super::{is_aligned, page_align, range};
use crate::addr::VirtRange;
use crate::flags::{MsyncFlags, VmFlags};
use crate::mm::{Mm, MmError, Tables, clip};

/// Writes what was changed through shared mappings in the range to the files' stores.
///
/// # Errors
/// [`MmError::BadFlags`], [`MmError::Unaligned`], [`MmError::Wraps`]. [`MmError::LockedBusy`] for locked memory with
/// `MS_INVALIDATE`; [`MmError::NotMapped`] if there were holes, after everything else was written (at once, with
/// `MS_ASYNC` alone); what the store says.
///
/// # Linux
/// `msync` in `mm/msync.c` (6.18).
pub fn msync(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    addr: u64,
    len: u64,
    flags: MsyncFlags,
) -> Result<(), MmError> {
    let both = MsyncFlags::ASYNC | MsyncFlags::SYNC;
    if !(both | MsyncFlags::INVALIDATE).contains(flags) {
        return Err(MmError::BadFlags);
    }
    if !is_aligned(addr) {
        return Err(MmError::Unaligned);
    }
    if flags.contains(both) {
        return Err(MmError::BadFlags);
    }
    let range = range(addr, addr.wrapping_add(page_align(len))).ok_or(MmError::Wraps)?;
    let mut hole = false;
    let mut done = range.start();
    while done < range.end() {
        let Some(slot) = mm.find_vma(done) else { return Err(MmError::NotMapped) };
        let vma = mm.vma(slot);
        if done < vma.start {
            if flags == MsyncFlags::ASYNC || vma.start >= range.end() {
                return Err(MmError::NotMapped);
            }
            hole = true;
        }
        if flags.contains(MsyncFlags::INVALIDATE) && vma.flags.contains(VmFlags::LOCKED) {
            return Err(MmError::LockedBusy);
        }
        if flags.contains(MsyncFlags::SYNC)
            && vma.backing.file().is_some()
            && vma.flags.contains(VmFlags::SHARED)
        {
            let part = VirtRange::new(done.max(vma.start), range.end()).ok_or(MmError::Wraps)?;
            tables.sync(&vma, clip(&vma, part).range())?;
        }
        done = vma.end;
    }
    if hole { Err(MmError::NotMapped) } else { Ok(()) }
}
