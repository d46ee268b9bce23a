//! fork: a child's address space.

use super::exit;
use crate::mm::{Mm, MmError, Tables};

/// Copies the address space for a child: the VMAs that it inherits, their pages to be shared until one of the two writes,
/// the layout and the limits; no locks.
///
/// # Errors
/// [`MmError::Overcommit`], [`MmError::OutOfSlots`], [`MmError::OutOfMemory`]. The parent is as it was, except that its
/// pages may be write-protected.
///
/// # Linux
/// `dup_mmap` in `mm/mmap.c` (6.18).
pub fn fork<'c, T: Tables>(
    parent: &mut Mm<'c>,
    tables: &mut T,
    child_tables: &mut T,
) -> Result<Mm<'c>, MmError> {
    let mut child = parent.new_like();
    match parent.copy_vmas_to(tables, &mut child, child_tables) {
        Ok(()) => Ok(child),
        Err(error) => {
            exit(&mut child, child_tables);
            Err(error)
        }
    }
}
