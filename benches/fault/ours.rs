//! The paths of faults, fork and exit, as a kernel's handlers call them.

use crate::clock::{now, timed};
use crate::machine::{Mem, Proc};
use kernmm::addr::{PAGE_SIZE, PAGE_SIZE_U64, VirtAddr};
use kernmm::fault::Access;
use kernmm::flags::{MapFlags, Prot};
use kernmm::memory::Vm;
use kernmm::platform::{BackingStore, Cluster, StoreError, Submitted};
use kernmm::syscall::{MmapArgs, OpenMode};
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
    read_absent(&reader, start, pages)
}

/// A store that has every page of every file at hand, and copies it as a device would.
pub struct AtHand {
    pub pages: u64,
}

const CONTENTS: [u8; PAGE_SIZE] = [7; PAGE_SIZE];

impl BackingStore for AtHand {
    fn size(&self, _: u64) -> Result<u64, StoreError> {
        Ok(self.pages * PAGE_SIZE_U64)
    }

    fn read(&self, _: u64, cluster: &Cluster<'_>) -> Result<Submitted, StoreError> {
        let mut pages = 0..cluster.frames().len();
        match pages.all(|page| cluster.fill(page, 0, &CONTENTS)) {
            true => Ok(Submitted::Done),
            false => Err(StoreError::Io),
        }
    }

    fn write(&self, _: u64, _: &Cluster<'_>, _: u64) -> Result<Submitted, StoreError> {
        Err(StoreError::NoSpace)
    }

    fn set_size(&self, _: u64, _: u64) -> Result<(), StoreError> {
        Err(StoreError::NoSpace)
    }
}

/// Maps a file of a store, shared; where it begins.
pub fn map_stored(process: &Proc, store: &'static AtHand, inode: u64, prot: Prot) -> u64 {
    let mode = if prot.contains(Prot::WRITE) { OpenMode::ReadWrite } else { OpenMode::ReadOnly };
    let file = process.vm().open_file(store, inode, mode).expect("a file");
    let args = MmapArgs::file(file.map_file(), store.pages * PAGE_SIZE_U64, prot, MapFlags::SHARED);
    process.mmap(&args).expect("room").get()
}

/// Read faults on the pages of a file that its store has, one after the other, with what is read ahead; ns a page.
pub fn stored_file(vm: TheVm, store: &'static AtHand, inode: u64) -> f64 {
    let reader = process(vm);
    let start = map_stored(&reader, store, inode, Prot::READ);
    read_absent(&reader, start, store.pages)
}

/// Read faults where nothing is mapped yet, as hardware makes them; ns a page.
fn read_absent(reader: &Proc, start: u64, pages: u64) -> f64 {
    let begin = now();
    for page in 0..pages {
        let at = VirtAddr::from(start + page * PAGE_SIZE_U64);
        if reader.entry_state(at).is_none() {
            reader.fault(at, Access::Read).expect("it is mapped");
        }
    }
    (now() - begin) / pages as f64
}

/// So many VMAs of one touched page each, a VMA of one untouched page behind each; where they begin.
pub fn map_apart(process: &Proc, vmas: u64) -> u64 {
    let start = map(process, 2 * vmas, MapFlags::PRIVATE);
    for vma in 0..vmas {
        let at = start + 2 * vma * PAGE_SIZE_U64;
        process.mprotect(at + PAGE_SIZE_U64, PAGE_SIZE_U64, Prot::READ).expect("it is mapped");
        process.fault(VirtAddr::from(at), Access::Write).expect("it is mapped");
    }
    start
}

/// fork of a process with so many VMAs of one touched page each, and as many untouched ones; ns.
pub fn fork_vmas(vm: TheVm, vmas: u64) -> f64 {
    let parent = process(vm);
    map_apart(&parent, vmas);
    let (child, fork) = timed(|| parent.fork().expect("memory"));
    drop(child);
    fork
}
