//! The paths of faults, fork and exit, as a kernel's handlers call them.

use crate::clock::{now, timed};
use crate::machine::{Mem, Proc};
use kernmm::addr::{PAGE_SIZE_U64, VirtAddr};
use kernmm::fault::Access;
use kernmm::flags::{MapFlags, Prot};
use kernmm::memory::Vm;
use kernmm::syscall::MmapArgs;
use kernmm::table::X86_64;

type TheVm = &'static Vm<'static, Mem, X86_64>;

const RW: Prot = Prot::READ.union(Prot::WRITE);
/// MADV_NOHUGEPAGE: single pages are what is measured.
const NOHUGEPAGE: i32 = 15;

pub fn process(vm: TheVm) -> Proc {
    Proc::new(vm).expect("an address space")
}

pub fn map(process: &Proc, pages: u64, sharing: MapFlags) -> u64 {
    let flags = sharing | MapFlags::ANONYMOUS;
    let args = MmapArgs { addr: 0, len: pages * PAGE_SIZE_U64, prot: RW, flags, file: Ok(None), offset: 0 };
    let start = process.mmap(&args).expect("room").get();
    process.madvise(start, pages * PAGE_SIZE_U64, NOHUGEPAGE).expect("it is mapped");
    start
}

/// Faults on every page; ns a page.
pub fn touch(process: &Proc, start: u64, pages: u64, access: Access) -> f64 {
    let begin = now();
    for page in 0..pages {
        let at = VirtAddr::from(start + page * PAGE_SIZE_U64);
        process.fault(at, access).expect("it is mapped");
    }
    (now() - begin) / pages as f64
}

/// What is measured of a process with so many anonymous pages; ns a page.
#[derive(Clone, Copy, Default)]
pub struct Life {
    pub write_fault: f64,
    pub read_fault: f64,
    pub fork: f64,
    pub copy_fault: f64,
    pub exit: f64,
    pub munmap: f64,
}

pub fn life(vm: TheVm, pages: u64) -> Life {
    let each = |ns: f64| ns / pages as f64;
    let parent = process(vm);
    let start = map(&parent, pages, MapFlags::PRIVATE);
    let write_fault = touch(&parent, start, pages, Access::Write);
    let (child, fork) = timed(|| parent.fork().expect("memory"));
    let copied = pages.min(1 << 16);
    let copy_fault = touch(&child, start, copied, Access::Write);
    drop(child);
    let ((), munmap) = timed(|| parent.munmap(start, pages * PAGE_SIZE_U64).expect("it is mapped"));
    let zeros = map(&parent, pages, MapFlags::PRIVATE);
    let read_fault = touch(&parent, zeros, pages, Access::Read);
    parent.munmap(zeros, pages * PAGE_SIZE_U64).expect("it is mapped");
    let again = map(&parent, pages, MapFlags::PRIVATE);
    touch(&parent, again, pages, Access::Write);
    let ((), exit) = timed(|| drop(parent));
    Life { write_fault, read_fault, fork: each(fork), copy_fault, exit: each(exit), munmap: each(munmap) }
}

/// Read faults on pages that a file in memory has, with those around each; ns a page.
pub fn file(vm: TheVm, pages: u64) -> f64 {
    let writer = process(vm);
    let start = map(&writer, pages, MapFlags::SHARED);
    touch(&writer, start, pages, Access::Write);
    let reader = writer.fork().expect("memory");
    let begin = now();
    for page in 0..pages {
        let at = VirtAddr::from(start + page * PAGE_SIZE_U64);
        // As hardware does: only where nothing is mapped yet.
        if reader.page_state(at).is_none() {
            reader.fault(at, Access::Read).expect("it is mapped");
        }
    }
    (now() - begin) / pages as f64
}

/// fork and the child's exit, of a process with so many VMAs of one touched page each; ns.
pub fn fork_exit(vm: TheVm, vmas: u64) -> f64 {
    let parent = process(vm);
    let start = map(&parent, 2 * vmas, MapFlags::PRIVATE);
    for vma in 0..vmas {
        let at = start + 2 * vma * PAGE_SIZE_U64;
        parent.mprotect(at + PAGE_SIZE_U64, PAGE_SIZE_U64, Prot::READ).expect("it is mapped");
        parent.fault(VirtAddr::from(at), Access::Write).expect("it is mapped");
    }
    let (child, fork) = timed(|| parent.fork().expect("memory"));
    drop(child);
    fork
}
