//! fork: a child's address space.

use super::exit;
use crate::mm::{Mm, MmError, Tables};

/// Copies the address space to `child`, an empty one with tables of its own (see [`Mm::new_child`]): the VMAs that it
/// inherits, their pages to be shared until one of the two writes, the layout and the limits; no locks.
///
/// # Errors
/// [`MmError::InUse`] if there are VMAs in `child`; then nothing is changed. [`MmError::Overcommit`],
/// [`MmError::OutOfSlots`], [`MmError::OutOfMemory`]: the parent is as it was, except that its pages may be
/// write-protected, and the child is empty again.
///
/// # Linux
/// `dup_mmap` in `mm/mmap.c` (6.18).
pub fn fork<'c, T: Tables>(
    parent: &mut Mm<'c>,
    tables: &mut T,
    child: &mut Mm<'c>,
    child_tables: &mut T,
) -> Result<(), MmError> {
    if !child.vmas().is_empty() {
        return Err(MmError::InUse);
    }
    child.inherit(parent);
    let copied = parent.copy_vmas_to(tables, child, child_tables);
    if copied.is_err() {
        exit(child, child_tables);
    }
    copied
}
