//! The process that a trace is replayed on: it has memory of a simulated machine, and files whose bytes are made up.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use kernmm::addr::{PAGE_SIZE, PgOff, VirtAddr, VirtRange};
use kernmm::cache::{FileId, Step};
use kernmm::fault::{PageKind, Signal};
use kernmm::memory::{self, Memory, Refused, User, Vm};
use kernmm::mm::{Backing, FileKind, FileRef, MmError};
use kernmm::platform::hosted::Machine;
use kernmm::platform::{BackingStore, Cluster, StoreError, Submitted};

/// Files of zeros, of any size.
#[derive(Debug, Default)]
pub(crate) struct MadeUp(Mutex<HashMap<u64, u64>>);

impl BackingStore for MadeUp {
    fn size(&self, inode: u64) -> Result<u64, StoreError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&inode).copied().unwrap_or(0))
    }

    fn read(&self, _inode: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError> {
        let filled = (0..pages.frames().len()).all(|page| pages.fill(page, 0, &[0; PAGE_SIZE]));
        if filled { Ok(Submitted::Done) } else { Err(StoreError::Io) }
    }

    fn write(&self, _inode: u64, _pages: &Cluster<'_>, _len: u64) -> Result<Submitted, StoreError> {
        Ok(Submitted::Done)
    }

    fn set_size(&self, inode: u64, size: u64) -> Result<(), StoreError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(inode, size);
        Ok(())
    }
}

/// How a recorded fault came about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Touched {
    Load,
    Store,
    Fetch,
    /// The kernel's access, for a call.
    KernelLoad,
    KernelStore,
}

/// A file of the recording.
#[derive(Clone, Copy)]
struct Known {
    kind: FileKind,
    size: u64,
    open: Option<FileId>,
    grew: bool,
}

/// What of a range is resident, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Resident {
    pub(crate) all: u64,
    pub(crate) anon: u64,
}

pub(crate) struct Subject<'v, 'a, 'm> {
    vm: &'v Vm<'a, Memory<'m, Machine>>,
    store: &'a MadeUp,
    pub(crate) process: memory::Process<'v, 'a, Memory<'m, Machine>>,
    /// By the recording's numbers.
    files: HashMap<u32, Known>,
}

impl<'v, 'a, 'm> Subject<'v, 'a, 'm> {
    pub(crate) fn new(vm: &'v Vm<'a, Memory<'m, Machine>>, store: &'a MadeUp) -> Result<Self, MmError> {
        Ok(Self { vm, store, process: memory::Process::new(vm)?, files: HashMap::new() })
    }

    /// Learns of a file; where its size is not known it is empty, and grows where it is touched.
    pub(crate) fn learn(&mut self, number: u32, kind: FileKind, size: u64) {
        self.files.insert(number, Known { kind, size, open: None, grew: false });
    }

    /// A file as mmap gets it, opened if it was not. `open` tells one opening from another.
    pub(crate) fn file(&mut self, number: u32, open: u32) -> Result<FileRef, String> {
        let known = self.files.get_mut(&number).ok_or(format!("unknown file {number}"))?;
        let file = match known.open {
            Some(file) => file,
            None => {
                let (cache, source, inode) = (self.vm.cache(), self.vm.source(), u64::from(number));
                let opened = if known.kind == FileKind::Regular {
                    let size = self.store.set_size(inode, known.size);
                    size.map_err(|error| error.to_string())?;
                    // Most of what a program maps was in memory when it was recorded.
                    cache.open(source, self.store, inode).and_then(|file| {
                        cache.will_need(source, file, PgOff::ZERO, known.size.div_ceil(PAGE_SIZE as u64))?;
                        Ok(file)
                    })
                } else {
                    cache.create_memory(source, known.size)
                };
                *known.open.insert(opened.map_err(|error| format!("file {number}: {error:?}"))?)
            }
        };
        FileRef::new(file.0.get(), open, known.kind).ok_or(format!("bad file {number}"))
    }

    /// The recording's number of a file.
    pub(crate) fn number(&self, file: FileRef) -> Option<u32> {
        let known = self.files.iter().find(|(_, known)| known.open.is_some_and(|open| open.0 == file.file.0));
        known.map(|(&number, _)| number)
    }

    /// Whether a touch has shown that a file was longer than the recording says.
    pub(crate) fn grew(&self, file: FileRef) -> bool {
        self.number(file).is_some_and(|number| self.files[&number].grew)
    }

    /// Makes an access that was recorded. If the file was too short for it, it was longer by then. What the kernel itself has mapped has no
    /// pages here, and needs none.
    pub(crate) fn touch(&mut self, at: VirtAddr, how: Touched) -> Result<(), Refused> {
        let vma = self.process.with(|mm| mm.lookup(at).map(|slot| mm.vma(slot)));
        if vma.is_some_and(|vma| matches!(vma.backing, Backing::Special(_))) {
            return Ok(());
        }
        let first = self.access(at, how);
        if first != Err(Refused::Signal(Signal::NoPage)) || !self.grow_file_at(at) {
            return first;
        }
        self.access(at, how)
    }

    fn access(&self, at: VirtAddr, how: Touched) -> Result<(), Refused> {
        let user = User::new(&self.process);
        match how {
            Touched::Load => user.load_byte(at).map(drop),
            Touched::Store => user.store(at, &[1]),
            Touched::Fetch => user.fetch(at, &mut [0]),
            Touched::KernelLoad => self.process.copy_from_user(at, &mut [0]),
            Touched::KernelStore => self.process.copy_to_user(at, &[1]),
        }
    }

    fn grow_file_at(&mut self, at: VirtAddr) -> bool {
        let vma = self.process.with(|mm| mm.lookup(at).map(|slot| mm.vma(slot)));
        let Some((file, index)) = vma.and_then(|vma| Some((vma.backing.file()?, vma.pgoff_at(at)))) else {
            return false;
        };
        let Some(known) = self.number(file).and_then(|number| self.files.get_mut(&number)) else {
            return false;
        };
        known.grew = true;
        let size = (index.get() + 1) * PAGE_SIZE as u64;
        let entries = self.vm.pager().entries();
        self.vm.cache().truncate(self.vm.source(), &entries, FileId(file.file.0), size) == Ok(Step::Done)
    }

    /// As `/proc/PID/smaps` counts it.
    pub(crate) fn resident(&self, range: VirtRange) -> Resident {
        let mut resident = Resident::default();
        self.process.visit_pages(range, |_, state| {
            if let Some(page) = state.resident().filter(|page| page.mappings != 0) {
                resident.all += 1;
                resident.anon += u64::from(page.kind == PageKind::Anonymous);
            }
        });
        resident
    }
}

impl Drop for Subject<'_, '_, '_> {
    fn drop(&mut self) {
        for file in self.files.values().filter_map(|known| known.open) {
            let closed = self.vm.cache().put_user(self.vm.source(), file);
            assert!(closed.is_ok(), "an open file was gone");
        }
    }
}
