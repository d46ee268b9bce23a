//! exit: an address space comes to its end.

use crate::mm::{Image, Mm, Tables};

/// Unmaps everything. The sums are 0 then, and nothing is charged.
///
/// # Linux
/// `exit_mmap` in `mm/mmap.c` (6.18).
pub fn exit(mm: &mut Mm<'_>, tables: &mut impl Tables) {
    mm.unmap_everything(tables);
    mm.set_image(Image::default());
}
