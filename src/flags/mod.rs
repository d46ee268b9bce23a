//! Flag sets: what an allocation may do ([`GfpFlags`]), what a page is ([`PageFlags`]), what a VMA is ([`VmFlags`]), and
//! the flag arguments of the mmap family.

mod gfp;
mod page;
mod vm;

pub use gfp::GfpFlags;
pub use page::PageFlags;
pub use vm::{
    Advice, MapFlags, MapType, MlockFlags, MlockallFlags, MremapFlags, MsyncFlags, PageProt, Prot,
    VM_FLAG_CODES, VmFlags,
};
