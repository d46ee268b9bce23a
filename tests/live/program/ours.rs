//! Programs on the simulated machine: through its memory management unit and TLB.

mod files;
mod scope;

use std::collections::HashSet;

use kernmm::addr::{PgOff, VirtAddr, VirtRange};
use kernmm::cache::{FileId, Step as Progress, SyncMode, WriteBack};
use kernmm::fault::{EntryState, PageKind};
use kernmm::flags::{Advice, MapFlags, MlockFlags, MlockallFlags, MremapFlags, MsyncFlags, Prot, VmFlags};
use kernmm::memory::{Memory, Process, Refused, User, Vm};
use kernmm::mm::{Backing, FileKind, FileRef, Image, MmError, NullTables, Rlimits, Vma};
use kernmm::platform::hosted::{HostFiles, Machine};
use kernmm::syscall::{MapFile, MmapArgs, OpenMode};

use super::answers::{bad_address, errno, failed, name, signal};
use super::op::{Op, Outcome, PROCESSES};
use super::place::{
    self, BASE, END, HEAP, MEMLOCK, OPENINGS, Opened, PAGE, REGULAR, SIZES, TASK_SIZE, in_arena,
};
use super::theirs::Seen;
use crate::live::call::{Call, File};
use crate::live::host::pipe_file;

type Proc<'v, 'a, 'm> = Process<'v, 'a, Memory<'m, Machine>>;

/// What came of an operation, and what the table calls it.
pub(crate) type Answer = (Outcome, &'static str);

/// The simulated machine's side.
pub(crate) struct Ours<'v, 'a, 'm> {
    vm: &'v Vm<'a, Memory<'m, Machine>>,
    processes: [Option<Proc<'v, 'a, 'm>>; PROCESSES],
    /// By their numbers in [`SIZES`].
    files: Vec<FileId>,
    /// Whether the process in a place was forked by another.
    forked: [bool; PROCESSES],
    /// Pages with anonymous contents that were advised away, process by process.
    dropped: HashSet<(usize, u64)>,
    /// Whether a pipe is noexec, which is seen first.
    noexec_pipe: bool,
}

/// What an address is before it is touched.
#[derive(Clone, Copy, Debug)]
struct Look {
    vma: Option<Vma>,
    state: Option<EntryState>,
    /// Whether it lies behind the end of a file, in its last page.
    tail: bool,
}

impl<'v, 'a, 'm> Ours<'v, 'a, 'm> {
    /// With the store's file of this number for the one that is to lie in a file system.
    pub(crate) fn new(
        vm: &'v Vm<'a, Memory<'m, Machine>>,
        store: &'a HostFiles,
        inode: u64,
        noexec_pipe: bool,
    ) -> Result<Self, String> {
        let mut ours = Self {
            vm,
            processes: Default::default(),
            files: Vec::new(),
            forked: [false; PROCESSES],
            dropped: HashSet::new(),
            noexec_pipe,
        };
        for (number, &size) in SIZES.iter().enumerate() {
            let (cache, source) = (vm.cache(), vm.source());
            let file = match number {
                REGULAR => cache.open(source, store, inode),
                _ => cache.create_memory(source, size),
            };
            ours.files.push(file.map_err(|error| error.to_string())?);
            if number != REGULAR {
                ours.write_to(number, 0, &place::contents(number)).map_err(|error| error.to_string())?;
            }
        }
        ours.processes[0] = Some(first(vm).map_err(|error| error.to_string())?);
        Ok(ours)
    }

    /// Ends what is left.
    pub(crate) fn close(&mut self) -> Result<(), String> {
        self.processes = Default::default();
        let (cache, source) = (self.vm.cache(), self.vm.source());
        for file in self.files.drain(..) {
            cache.put_user(source, file).map_err(|error| error.to_string())?;
        }
        cache.reap(source);
        Ok(())
    }

    /// The processes that live.
    pub(crate) fn alive(&self) -> Vec<usize> {
        (0..PROCESSES).filter(|&place| self.processes[place].is_some()).collect()
    }

    fn process(&self, by: usize) -> &Proc<'v, 'a, 'm> {
        self.processes[by].as_ref().expect("only processes that live are asked")
    }

    /// What the arena of a process holds.
    pub(crate) fn arena(&self, by: usize) -> Vec<Vma> {
        let inside = |vma: &Vma| in_arena(vma.start.get());
        self.process(by).with(|mm| mm.vmas().iter().map(|(_, vma)| vma).filter(inside).collect())
    }

    /// Pages that are locked.
    pub(crate) fn locked(&self, by: usize) -> u64 {
        self.process(by).with(|mm| mm.totals().locked_vm)
    }

    /// The limits and sums of a process, and its laws.
    pub(crate) fn check(&self, by: usize) -> Result<(), String> {
        self.process(by).with(|mm| mm.check()).map_err(|violation| format!("{violation:?}"))
    }

    /// The entries of a range.
    pub(crate) fn pagemap(&self, by: usize, start: u64, end: u64) -> Vec<Seen> {
        let nothing = Seen { present: false, file: false, exclusive: false, guard: false };
        let mut seen = vec![nothing; ((end - start) / PAGE) as usize];
        let range = VirtRange::new(at(start), at(end)).unwrap_or_default();
        self.process(by).visit_pages(range, |addr, state| {
            seen[((addr.get() - start) / PAGE) as usize] = match state {
                EntryState::Guard => Seen { guard: true, ..nothing },
                EntryState::Swapped(_) => nothing,
                EntryState::Resident(page) => Seen {
                    present: true,
                    file: matches!(page.kind, PageKind::File | PageKind::Shmem),
                    exclusive: page.mappings == 1,
                    guard: false,
                },
            };
        });
        seen
    }

    /// The bytes of a page, unless an access of it is a signal.
    pub(crate) fn page(&self, by: usize, addr: u64) -> Result<Vec<u8>, Refused> {
        let mut bytes = vec![0; PAGE as usize];
        User::new(self.process(by)).load(at(addr), &mut bytes).map(|()| bytes)
    }

    /// The length of a file.
    pub(crate) fn size(&self, file: usize) -> u64 {
        self.vm.cache().size(self.vm.source(), self.files[file]).unwrap_or(0)
    }

    /// Where in a VMA its file ends.
    pub(crate) fn end_of_file(&self, vma: &Vma) -> Option<u64> {
        let size = self.size(self.file_of(vma.backing.file()?)?);
        let end = vma.start.get() + size.checked_sub(vma.pgoff.get().saturating_mul(PAGE))?;
        (end <= vma.end.get()).then_some(end)
    }

    /// What a file holds.
    pub(crate) fn contents(&self, file: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; self.size(file) as usize];
        let read = self.read_from(file, 0, &mut bytes).map_err(|error| error.to_string())?;
        if read == bytes.len() { Ok(bytes) } else { Err(format!("only {read} bytes could be read")) }
    }

    /// Writes what is newer than the store to it.
    pub(crate) fn write_back(&self) -> Result<(), String> {
        let (cache, source) = (self.vm.cache(), self.vm.source());
        let entries = self.vm.pager().entries();
        let mut job = WriteBack::all(self.files[REGULAR], SyncMode::Wait);
        loop {
            match cache.write_back(source, &entries, &mut job).map_err(|error| error.to_string())? {
                Progress::Done => return Ok(()),
                Progress::Wait(ticket) => cache.wait(source, ticket),
            }
        }
    }

    /// Whether this file is one of the world's, and which.
    pub(crate) fn file_of(&self, file: FileRef) -> Option<usize> {
        self.files.iter().position(|&other| other == file.file)
    }

    pub(crate) fn perform(&mut self, by: usize, op: &Op) -> Result<Answer, String> {
        match *op {
            Op::Load { addr, .. }
            | Op::Store { addr, .. }
            | Op::Exchange { addr, .. }
            | Op::Fetch { addr }
            | Op::WritePipe { addr, .. }
            | Op::ReadPipe { addr, .. } => {
                let look = self.look(by, addr);
                let outcome = self.touch(by, op)?;
                let label = self.label(by, addr, op, &look, &outcome);
                Ok((outcome, label))
            }
            Op::ReadFile { file, addr, len, offset } => {
                Ok(plain(self.read_file(by, file, addr, len, offset)?))
            }
            Op::WriteFile { file, addr, len, offset } => {
                let gap = offset > self.size(OPENINGS[file].0);
                let outcome = self.write_file(by, file, addr, len, offset)?;
                let wrote = matches!(outcome, Outcome::Result(1..));
                let label = if gap && wrote { "behind the end" } else { name(&outcome) };
                Ok((outcome, label))
            }
            Op::OtherReads { file, len, offset } => {
                let mut bytes = vec![0; len];
                let read = self.read_from(OPENINGS[file].0, offset, &mut bytes);
                let read = read.map_err(|error| error.to_string())?;
                bytes.truncate(read);
                Ok(plain(Outcome::Bytes(read as i64, bytes)))
            }
            Op::OtherWrites { file, bytes, offset } => {
                let written = self.write_to(OPENINGS[file].0, offset, bytes.get());
                Ok(plain(Outcome::Result(written.map_err(|error| error.to_string())? as i64)))
            }
            Op::Truncate { file, size } => self.truncate(OPENINGS[file].0, size),
            Op::Fork => {
                let child = self.process(by).fork().map_err(|error| error.to_string())?;
                let place = self.processes.iter().position(Option::is_none).ok_or("no place is free")?;
                self.processes[place] = Some(child);
                self.forked[place] = true;
                Ok(plain(Outcome::Result(0)))
            }
            Op::Exit => {
                self.processes[by] = None;
                self.dropped.retain(|(place, _)| *place != by);
                Ok(plain(Outcome::Result(0)))
            }
            Op::Call(call) => {
                if let Call::Madvise { addr, len, advice } = call {
                    self.note_dropped(by, addr, len, advice);
                }
                Ok(plain(Outcome::Result(self.call(by, &call))))
            }
            Op::Mincore { addr, len } => Ok(plain(self.mincore(by, addr, len))),
        }
    }

    /// Performs a call of the mmap family.
    fn call(&self, by: usize, call: &Call) -> i64 {
        let process = self.process(by);
        let none = |result: Result<(), MmError>| result.map_or_else(failed, |()| 0);
        let place = |result: Result<VirtAddr, MmError>| result.map_or_else(failed, |addr| addr.get() as i64);
        match *call {
            Call::Mmap { addr, len, prot, flags, file, offset } => {
                let (prot, flags) = (Prot::from_bits_retain(prot), MapFlags::from_bits_retain(flags));
                place(process.mmap(&MmapArgs { addr, len, prot, flags, file: self.named(file), offset }))
            }
            Call::Munmap { addr, len } => none(process.munmap(addr, len)),
            Call::Mprotect { addr, len, prot } => {
                none(process.mprotect(addr, len, Prot::from_bits_retain(prot)))
            }
            Call::Mremap { addr, old, new, flags, to } => {
                place(process.mremap(addr, old, new, MremapFlags::from_bits_retain(flags), to))
            }
            Call::Madvise { addr, len, advice } => none(process.madvise(addr, len, advice)),
            Call::Mlock { addr, len } => none(process.mlock(addr, len)),
            Call::Mlock2 { addr, len, flags } => {
                none(process.mlock2(addr, len, MlockFlags::from_bits_retain(flags)))
            }
            Call::Munlock { addr, len } => none(process.munlock(addr, len)),
            Call::Mlockall { flags } => none(process.mlockall(MlockallFlags::from_bits_retain(flags))),
            Call::Munlockall => none(process.munlockall()),
            Call::Msync { addr, len, flags } => {
                none(process.msync(addr, len, MsyncFlags::from_bits_retain(flags)))
            }
            Call::Brk { addr } => place(process.brk(addr)),
        }
    }

    /// A file as our calls take it.
    fn named(&self, file: File) -> Result<Option<MapFile>, MmError> {
        match file {
            File::None => Ok(None),
            File::Bad => Err(MmError::BadDescriptor),
            File::Number(file) => Ok(Some(self.map_file(file))),
            File::Pipe => Ok(Some(pipe_file(self.noexec_pipe))),
        }
    }

    fn map_file(&self, opening: usize) -> MapFile {
        let (number, opened) = OPENINGS[opening];
        let kind = if number == REGULAR { FileKind::Regular } else { FileKind::Memory };
        let id = self.files[number].0.get();
        let file = FileRef::new(id, opening as u32 + 1, kind).expect("numbers from 1");
        let mode = match opened {
            Opened::ReadWrite => OpenMode::ReadWrite,
            Opened::ReadOnly => OpenMode::ReadOnly,
            Opened::WriteOnly => OpenMode::WriteOnly,
        };
        // Whoever asks here has made the files.
        MapFile::new(file, mode).owned()
    }

    fn mincore(&self, by: usize, addr: u64, len: u64) -> Outcome {
        const UNTOUCHED: u8 = 0xff;
        let mut answers = vec![UNTOUCHED; ((END - BASE) / PAGE) as usize];
        let result = self.process(by).mincore(addr, len, &mut answers[..]).map_or_else(failed, |()| 0);
        answers.truncate(answers.iter().take_while(|&&byte| byte != UNTOUCHED).count());
        Outcome::Bytes(result, answers)
    }

    /// Makes an access, in the pieces that lie in one page each, as a program does that touches byte after byte.
    fn touch(&self, by: usize, op: &Op) -> Result<Outcome, String> {
        let user = User::new(self.process(by));
        match *op {
            Op::Load { addr, len } => {
                let mut bytes = vec![0; len];
                let mut left = &mut bytes[..];
                for (start, len) in pieces(addr, len) {
                    let (part, rest) = left.split_at_mut(len);
                    if let Err(refused) = user.load(at(start), part) {
                        return signal(refused, start, (start - addr) as usize);
                    }
                    left = rest;
                }
                Ok(Outcome::Bytes(len as i64, bytes))
            }
            Op::Store { addr, bytes } => {
                let mut left = bytes.get();
                for (start, len) in pieces(addr, bytes.get().len()) {
                    let (part, rest) = left.split_at(len);
                    if let Err(refused) = user.store(at(start), part) {
                        return signal(refused, start, (start - addr) as usize);
                    }
                    left = rest;
                }
                Ok(Outcome::Result(bytes.get().len() as i64))
            }
            Op::Exchange { addr, current, new } => match user.compare_exchange(at(addr), current, new) {
                Ok(old) => Ok(Outcome::Bytes(4, old.to_le_bytes().to_vec())),
                Err(refused) => signal(refused, addr, 0),
            },
            Op::Fetch { addr } => match user.fetch(at(addr), &mut [0]) {
                Ok(()) => Ok(Outcome::Result(1)),
                Err(refused) => signal(refused, addr, 0),
            },
            Op::WritePipe { addr, len } => {
                let mut bytes = vec![0; len];
                match self.process(by).copy_from_user(at(addr), &mut bytes) {
                    Ok(()) => Ok(Outcome::Bytes(len as i64, bytes)),
                    Err(refused) => bad_address(refused).map(|errno| Outcome::Bytes(errno, vec![])),
                }
            }
            Op::ReadPipe { addr, bytes } => match self.process(by).copy_to_user(at(addr), bytes.get()) {
                Ok(()) => Ok(Outcome::Result(bytes.get().len() as i64)),
                Err(refused) => bad_address(refused).map(Outcome::Result),
            },
            _ => unreachable!("the others are no accesses"),
        }
    }

    /// Notes which pages with anonymous contents such advice takes away.
    fn note_dropped(&mut self, by: usize, addr: u64, len: u64, advice: i32) {
        let drops = [Advice::DontNeed as i32, Advice::DontNeedLocked as i32];
        let range = addr.checked_add(len).and_then(|end| VirtRange::new(at(addr), at(end)));
        let Some(range) = range.filter(|range| drops.contains(&advice) && in_arena(range.start().get()))
        else {
            return;
        };
        let mut pages = Vec::new();
        self.process(by).visit_pages(range, |addr, state| {
            if state.resident().is_some_and(|page| page.kind == PageKind::Anonymous) {
                pages.push((by, addr.get()));
            }
        });
        self.dropped.extend(pages);
    }

    fn look(&self, by: usize, addr: u64) -> Look {
        let process = self.process(by);
        let found = |mm: &kernmm::mm::Mm<'v>| {
            (addr < TASK_SIZE).then(|| mm.lookup(at(addr)).map(|slot| mm.vma(slot))).flatten()
        };
        let vma = process.with(found);
        let state = vma.and_then(|_| process.entry_state(at(addr)));
        let tail = vma.is_some_and(|vma| {
            let Backing::File(file) = vma.backing else { return false };
            let size = self.vm.cache().size(self.vm.source(), file.file).unwrap_or(0);
            let offset = vma.pgoff_at(at(addr)).get().wrapping_mul(PAGE).wrapping_add(addr % PAGE);
            offset >= size && offset / PAGE < size.div_ceil(PAGE)
        });
        Look { vma, state, tail }
    }

    /// What the table calls the outcome of an access.
    fn label(&mut self, by: usize, addr: u64, op: &Op, look: &Look, outcome: &Outcome) -> &'static str {
        if let Outcome::Signal { .. } = outcome {
            return if look.state == Some(EntryState::Guard) { "SIGSEGV guard" } else { name(outcome) };
        }
        if matches!(*outcome, Outcome::Result(result) | Outcome::Bytes(result, _) if result < 0) {
            return name(outcome);
        }
        let reads = matches!(op, Op::Load { .. } | Op::Fetch { .. } | Op::WritePipe { .. });
        if self.dropped.remove(&(by, addr & !(PAGE - 1))) && reads {
            return "after DONTNEED";
        }
        let Some(vma) = look.vma else { return "grown stack" };
        let shared = vma.flags.contains(VmFlags::SHARED);
        let page = look.state.and_then(EntryState::resident);
        if reads {
            return match page.map(|page| page.kind) {
                _ if look.tail => "tail of a file",
                Some(PageKind::Anonymous) => "anonymous",
                Some(PageKind::Zero) => "zero page",
                None if vma.backing.is_anonymous() => "zero page at first",
                None => "file at first",
                Some(_) => "file",
            };
        }
        match page {
            _ if look.tail && shared => "tail of a file",
            None if shared => "shared at first",
            None if vma.backing.is_anonymous() => "anonymous at first",
            None => "copy of a file's at first",
            Some(page) => match page.kind {
                PageKind::Zero => "over the zero page",
                PageKind::Anonymous if page.mappings > 1 && self.forked[by] => "copy in a child",
                PageKind::Anonymous if page.mappings > 1 => "copy in the parent",
                PageKind::Anonymous if !page.bits.contains(kernmm::table::PteBits::WRITE) => "reuse",
                PageKind::Anonymous => "again",
                _ if shared => "shared",
                _ => "copy of a file's",
            },
        }
    }
}

/// What has no label of its own.
fn plain(outcome: Outcome) -> Answer {
    let label = name(&outcome);
    (outcome, label)
}

/// A process with the arena to itself.
fn first<'v, 'a, 'm>(vm: &'v Vm<'a, Memory<'m, Machine>>) -> Result<Proc<'v, 'a, 'm>, MmError> {
    let process = Process::new(vm)?;
    process.with_mut(|mm| {
        mm.set_mmap_base(at(END));
        mm.set_rlimits(Rlimits { memlock: MEMLOCK, ..Rlimits::default() });
        for (start, end) in [(mm.context().sysctl().mmap_min_addr, BASE), (END, TASK_SIZE)] {
            let (start, end) = (at(start), at(end));
            let backing = Backing::Special(0);
            let pgoff = PgOff::ZERO;
            let vma = Vma { start, end, flags: VmFlags::DONTEXPAND, pgoff, backing, anon: None };
            // There are no pages in it, nor will there be.
            mm.insert_vma(&mut NullTables::default(), &vma)?;
        }
        let heap = at(HEAP);
        mm.set_image(Image { start_brk: heap, brk: heap, ..Image::default() });
        Ok::<(), MmError>(())
    })?;
    Ok(process)
}

fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

fn is_kind(vma: &Vma, kind: FileKind) -> bool {
    vma.backing.file().is_some_and(|file| file.kind == kind)
}

/// The parts of a range that lie in one page each.
fn pieces(addr: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let start = addr.wrapping_add(done as u64);
        let here = (len - done).min((PAGE - start % PAGE) as usize);
        done += here;
        (here != 0).then_some((start, here))
    })
}
