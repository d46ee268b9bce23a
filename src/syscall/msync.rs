//! msync.

use super::{is_aligned, page_align, range};
use crate::addr::VirtRange;
use crate::flags::{MsyncFlags, VmFlags};
use crate::mm::{Mm, MmError, Tables, Vma, clip};

/// Writes what was changed through shared mappings in the range to the files' stores.
///
/// # Errors
/// As [`Msync::new`] and [`Msync::next`]; what the store says.
///
/// # Locking
/// The store is waited for under the lock. Who must not do that goes through an [`Msync`].
///
/// # Linux
/// `msync` in `mm/msync.c` (6.18).
pub fn msync(
    mm: &Mm<'_>,
    tables: &mut impl Tables,
    addr: u64,
    len: u64,
    flags: MsyncFlags,
) -> Result<(), MmError> {
    let mut call = Msync::new(addr, len, flags)?;
    while let Some((vma, part)) = call.next(mm)? {
        tables.sync(&vma, part)?;
    }
    Ok(())
}

/// An msync under way. Between two steps the address space may be let go of.
#[derive(Clone, Copy, Debug)]
pub struct Msync {
    rest: VirtRange,
    flags: MsyncFlags,
    hole: bool,
}

impl Msync {
    /// Begins.
    ///
    /// # Errors
    /// [`MmError::BadFlags`], [`MmError::Unaligned`], [`MmError::Wraps`].
    pub fn new(addr: u64, len: u64, flags: MsyncFlags) -> Result<Self, MmError> {
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
        let rest = range(addr, addr.wrapping_add(page_align(len))).ok_or(MmError::Wraps)?;
        Ok(Self { rest, flags, hole: false })
    }

    /// The next part that is to be written, and the VMA that maps it; `None` when all is done.
    ///
    /// # Errors
    /// [`MmError::LockedBusy`] for locked memory with `MS_INVALIDATE`; [`MmError::NotMapped`] if there were holes, after everything else was
    /// written (at once, with `MS_ASYNC` alone).
    pub fn next(&mut self, mm: &Mm<'_>) -> Result<Option<(Vma, VirtRange)>, MmError> {
        while !self.rest.is_empty() {
            let slot = mm.find_vma(self.rest.start()).ok_or(MmError::NotMapped)?;
            let vma = mm.vma(slot);
            if self.rest.start() < vma.start {
                if self.flags == MsyncFlags::ASYNC || vma.start >= self.rest.end() {
                    return Err(MmError::NotMapped);
                }
                self.hole = true;
            }
            if self.flags.contains(MsyncFlags::INVALIDATE) && vma.flags.contains(VmFlags::LOCKED) {
                return Err(MmError::LockedBusy);
            }
            let part = clip(&vma, self.rest).range();
            self.rest = VirtRange::new(part.end(), self.rest.end()).unwrap_or_default();
            let written = self.flags.contains(MsyncFlags::SYNC)
                && vma.backing.file().is_some()
                && vma.flags.contains(VmFlags::SHARED);
            if written {
                return Ok(Some((vma, part)));
            }
        }
        if self.hole { Err(MmError::NotMapped) } else { Ok(None) }
    }
}
