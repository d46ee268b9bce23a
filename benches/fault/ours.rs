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
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
    let [other, reader] = [writer.fork(), writer.fork()].map(|child| child.expect("memory"));
    let faulting = faulting(&other, start, pages);
    read_absent(&reader, start, pages, &faulting)
}

/// A store that has every page of every file at hand, and copies it as a device would.
pub struct AtHand {
    pub pages: u64,
    now: fn() -> f64,
    /// How long it has copied, ns.
    copied: AtomicU64,
}

impl AtHand {
    /// Files of so many pages; the time is `now`.
    pub const fn new(pages: u64, now: fn() -> f64) -> Self {
        Self { pages, now, copied: AtomicU64::new(0) }
    }

    /// How long it has copied since this was asked last, ns.
    fn take_copied(&self) -> f64 {
        self.copied.swap(0, Relaxed) as f64
    }
}

const CONTENTS: [u8; PAGE_SIZE] = [7; PAGE_SIZE];

impl BackingStore for AtHand {
    fn size(&self, _: u64) -> Result<u64, StoreError> {
        Ok(self.pages * PAGE_SIZE_U64)
    }

    fn read(&self, _: u64, cluster: &Cluster<'_>) -> Result<Submitted, StoreError> {
        let (begin, mut pages) = ((self.now)(), 0..cluster.frames().len());
        let filled = pages.all(|page| cluster.fill(page, 0, &CONTENTS));
        self.copied.fetch_add(((self.now)() - begin) as u64, Relaxed);
        match filled {
            true => Ok(Submitted::Done),
            false => Err(StoreError::Io),
        }
    }

    fn write(&self, _: u64, _: &Cluster<'_>, _: u64) -> Result<Submitted, StoreError> {
        Ok(Submitted::Done)
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

/// What reading a file through a mapping takes, page after page; ns a page.
#[derive(Clone, Copy, Default)]
pub struct Stored {
    /// From its store, with what is read ahead.
    pub cold: f64,
    /// What the store took of that.
    pub copy: f64,
    /// By another process, when all is in memory.
    pub warm: f64,
}

/// Read faults on the pages of a file that its store has.
pub fn stored_file(vm: TheVm, store: &'static AtHand, inode: u64) -> Stored {
    let pages = store.pages;
    let readers = [process(vm), process(vm), process(vm), process(vm)];
    // Two files alike: which faults come is found out with the one, what they take with the other.
    let files = [2 * inode, 2 * inode, 2 * inode + 1, 2 * inode + 1];
    let at: [_; 4] =
        std::array::from_fn(|reader| map_stored(&readers[reader], store, files[reader], Prot::READ));
    let [cold_faults, warm_faults] = [0, 1].map(|reader| faulting(&readers[reader], at[reader], pages));
    store.take_copied();
    let cold = read_absent(&readers[2], at[2], pages, &cold_faults);
    let copy = store.take_copied() / pages as f64;
    Stored { cold, copy, warm: read_absent(&readers[3], at[3], pages, &warm_faults) }
}

/// Reads pages in order; at which of them a fault came, since none before it had mapped them too.
pub fn faulting(reader: &Proc, start: u64, pages: u64) -> Vec<u64> {
    let read = |&page: &u64| {
        let at = VirtAddr::from(start + page * PAGE_SIZE_U64);
        reader.entry_state(at).is_none()
            && reader.fault(at, Access::Read).map(|_| true).expect("it is mapped")
    };
    (0..pages).filter(read).collect()
}

/// The faults of a reader, at the pages where a reader like him has had one; ns for each of `pages`.
fn read_absent(reader: &Proc, start: u64, pages: u64, faulting: &[u64]) -> f64 {
    let begin = now();
    for page in faulting {
        let at = VirtAddr::from(start + page * PAGE_SIZE_U64);
        reader.fault(at, Access::Read).expect("it is mapped");
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
