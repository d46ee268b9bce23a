//! The calls that change an address space, a file each, with Linux's arguments, results and order of checks.
//!
//! Addresses and lengths are what the caller alleges, raw 64-bit numbers; each call checks them once, on entry. The
//! parts that calls share (unmapping, merging, placing) are the [`mm`](crate::mm) room's; no call calls another, except that what
//! fork or exec has begun and cannot end goes by [`exit()`].

mod brk;
mod device;
mod elf;
mod exec;
mod exit;
mod fork;
mod madvise;
mod mincore;
mod mlock;
mod mmap;
mod mprotect;
mod mremap;
mod msync;
mod munmap;
mod vectors;

pub use brk::{brk, sbrk};
pub use device::{Device, mmap_device, remap_pfn_range};
pub use elf::{Elf, ElfError, ElfMachine, MAX_SEGMENTS};
pub use exec::{Binary, ElfType, ExecImage, LoadBias, Segment, StackImage, exec};
pub(crate) use exec::{load_new, replace};
pub use exit::exit;
pub use fork::fork;
pub use madvise::{AdviceStep, AdviceWork, PageAdvice, madvise};
pub use mincore::{Mincore, Residency, Resident, mincore};
pub use mlock::{mlock, mlock2, mlockall, munlock, munlockall};
pub use mmap::{MapFile, MmapArgs, OpenMode, Seals, mmap, mmap2};
pub use mprotect::mprotect;
pub use mremap::mremap;
pub use msync::{Msync, msync};
pub use munmap::munmap;
pub use vectors::{Vectors, aux};

use crate::addr::{PAGE_OFFSET_MASK, VirtAddr, VirtRange};

/// `len` rounded up to whole pages, wrapping to 0 as Linux's `PAGE_ALIGN` does.
const fn page_align(len: u64) -> u64 {
    len.wrapping_add(PAGE_OFFSET_MASK) & !PAGE_OFFSET_MASK
}

const fn is_aligned(addr: u64) -> bool {
    addr & PAGE_OFFSET_MASK == 0
}

/// `start..end`; `None` if that is inverted.
fn range(start: u64, end: u64) -> Option<VirtRange> {
    VirtRange::new(VirtAddr::from(start), VirtAddr::from(end))
}
