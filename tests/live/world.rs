//! An address space of ours beside that of a child process.

use std::os::fd::{AsRawFd, OwnedFd};

use kernmm::addr::{PgOff, VirtAddr};
use kernmm::error::Errno;
use kernmm::flags::{MapFlags, MlockFlags, MlockallFlags, MremapFlags, MsyncFlags, Prot, VmFlags};
use kernmm::mm::{
    Backing, FileKind, FileRef, Image, Mm, MmContext, MmError, MmStores, Overcommit, OvercommitMode, Rlimits,
    Touch, Vma,
};
use kernmm::syscall::{self, MapFile, MmapArgs, OpenMode};

use super::arena::{self, Callee, Plan};
use super::call::{Call, File};
use super::family::Program;
use super::host::{is_noexec, memfd, parse_range, pipe, pipe_file, read, sysctl};
use super::ops::{Maker, Op};
use super::server::Server;
use super::shown;
use super::table::Table;
use crate::pages::Pages;

const PAGE: u64 = 4096;
pub(super) const BASE: u64 = 0x2000_0000_0000;
const ARENA: u64 = 1 << 30;
const END: u64 = BASE + ARENA;
pub(super) const HEAP: u64 = BASE + 0x800 * PAGE;
const MEMLOCK: u64 = 96 * PAGE;
pub(super) const LIMITS: Rlimits =
    Rlimits { memlock: MEMLOCK, address_space: u64::MAX, data: u64::MAX, data_max: u64::MAX, stack: 8 << 20 };
const BAD_FD: u64 = 999;
/// Where the child's vdso goes, among what is mapped and unmapped.
const VDSO: u64 = BASE + 0x2010 * PAGE;
/// Bytes of the files, which are opened for reading and writing, for reading twice, and for writing.
const FILE_BYTES: [u64; 2] = [5 * PAGE + 100, 0x20 * PAGE];

/// Settings as the running kernel has them.
pub(crate) fn context(stores: MmStores<'_>) -> MmContext<'_> {
    let ram = read("/proc/meminfo")
        .ok()
        .and_then(|info| info.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()))
        .unwrap_or(1 << 22);
    MmContext::new(stores, sysctl(), Overcommit::new(OvercommitMode::Guess, ram / 4, 0))
}

/// An opened file of the child.
struct Opened {
    fd: OwnedFd,
    mode: OpenMode,
    /// Which of [`FILE_BYTES`], plus one.
    file: u32,
    inode: u64,
}

/// An address space of ours beside that of a child process.
pub(crate) struct World<'c> {
    pub(super) mm: Mm<'c>,
    pub(super) pages: Pages,
    /// The parents, which wait.
    pub(super) ancestors: Vec<(Mm<'c>, Pages)>,
    pub(super) server: Server,
    pub(super) program: Program,
    /// How many pages they have mapped outside of the arena, and we have not.
    pub(super) foreign: u64,
    /// How many of them are a stack's.
    foreign_stack: u64,
    files: Vec<Opened>,
    zero: OwnedFd,
    pipe: (OwnedFd, OwnedFd),
    /// Whether a pipe is noexec here, which is seen first.
    noexec_pipe: bool,
    maker: Maker,
    /// Inodes of the objects of shared anonymous mappings: theirs for ours.
    objects: Vec<(u32, u64)>,
}

impl<'c> World<'c> {
    pub(crate) fn new(context: &'c MmContext<'c>, seed: u64) -> Result<Self, String> {
        let files = make_files()?;
        let zero = std::fs::File::open("/dev/zero").map_err(|error| error.to_string())?.into();
        let pipe = pipe()?;
        let program = Program::new()?;
        // The child has the files that are open now.
        let server = Server::new()?;
        let sysctl = context.sysctl();
        let mut world = Self {
            mm: Mm::new(context).map_err(|error| error.to_string())?,
            pages: Pages::default(),
            ancestors: Vec::new(),
            server,
            program,
            foreign: 0,
            foreign_stack: 0,
            noexec_pipe: is_noexec(&pipe.0),
            files,
            zero,
            pipe,
            maker: Maker::new(seed, BASE, END, sysctl.task_size, HEAP),
            objects: Vec::new(),
        };
        let task_size = sysctl.task_size;
        let plan = Plan { arena: BASE..END, heap: HEAP, task_size, memlock: MEMLOCK };
        let vdso_bytes = world.move_vdso()?;
        arena::prepare(&mut world.server, &plan, &world.pipe)?;
        world.prepare_ours(vdso_bytes)?;
        Ok(world)
    }

    /// Moves the child's vdso, which nothing there calls, into the arena. Answers its length.
    fn move_vdso(&mut self) -> Result<u64, String> {
        let maps = read(&format!("/proc/{}/maps", self.server.pid()))?;
        let (start, end) = maps
            .lines()
            .find(|line| line.ends_with("[vdso]"))
            .map(parse_range)
            .ok_or("the child has no vdso")?;
        let fixed = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let at = self.server.call(libc::SYS_mremap, &[start, end - start, end - start, fixed, VDSO])?;
        if at == VDSO as i64 { Ok(end - start) } else { Err(format!("the vdso could not be moved: {at}")) }
    }

    /// Fills our addresses as theirs are filled: as many VMAs, as much data, all outside the arena but for the vdso.
    fn prepare_ours(&mut self, vdso_bytes: u64) -> Result<(), String> {
        let sysctl = self.mm.context().sysctl();
        self.mm.set_mmap_base(VirtAddr::from(END));
        self.mm.set_rlimits(LIMITS);
        let special = Backing::Special(0);
        let data = (Backing::Anonymous, VmFlags::WRITE | VmFlags::MAY_ACCESS, self.theirs("VmData")?);
        let vmas = self.their_map_count()?;
        // One of data, one above the arena, the vdso in it, the others below it.
        let small = (0..vmas - 4).map(|_| (special, VmFlags::DONTEXPAND, 1));
        let mut start = sysctl.mmap_min_addr;
        let mut put = |mm: &mut Mm<'_>, backing, flags, start, end| {
            let (start, end) = (VirtAddr::from(start), VirtAddr::from(end));
            let vma = Vma { start, end, flags, pgoff: PgOff::ZERO, backing, anon: None };
            mm.insert_vma(&mut self.pages, &vma).map(drop).map_err(|error| error.to_string())
        };
        for (backing, flags, pages) in small.chain([data]) {
            put(&mut self.mm, backing, flags, start, start + pages * PAGE)?;
            start += pages * PAGE;
        }
        for (start, end) in [(start, BASE), (END, sysctl.task_size)] {
            put(&mut self.mm, special, VmFlags::DONTEXPAND, start, end)?;
        }
        let code = VmFlags::READ | VmFlags::EXEC | VmFlags::MAY_ACCESS | VmFlags::DONTEXPAND;
        put(&mut self.mm, special, code, VDSO, VDSO + vdso_bytes)?;
        let heap = VirtAddr::from(HEAP);
        let data = (VirtAddr::from(arena::DATA.start), VirtAddr::from(arena::DATA.end));
        let image =
            Image { start_brk: heap, brk: heap, start_data: data.0, end_data: data.1, ..Image::default() };
        self.mm.set_image(image);
        for opened in &self.files {
            self.pages.set_size(opened.file, FILE_BYTES[opened.file as usize - 1].div_ceil(PAGE));
        }
        let totals = *self.mm.totals();
        self.foreign = self.theirs("VmSize")?.wrapping_sub(totals.total_vm);
        self.foreign_stack = self.theirs("VmStk")?.wrapping_sub(totals.stack_vm);
        Ok(())
    }

    /// What `/proc/PID/status` says of the child, in pages.
    pub(super) fn theirs(&self, name: &str) -> Result<u64, String> {
        let status = read(&format!("/proc/{}/status", self.server.pid()))?;
        let line =
            status.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':')));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        Ok(kib.ok_or(format!("no {name}"))? / 4)
    }

    /// Compares the sums, apart from what is foreign.
    fn compare_sums(&self) -> Result<(), String> {
        let ours = *self.mm.totals();
        for (name, sum) in [
            ("VmSize", ours.total_vm.wrapping_add(self.foreign)),
            ("VmLck", ours.locked_vm),
            ("VmData", ours.data_vm),
            ("VmStk", ours.stack_vm.wrapping_add(self.foreign_stack)),
        ] {
            let theirs = self.theirs(name)?;
            if theirs != sum {
                return Err(format!("{name} is {theirs} pages, ours {sum}"));
            }
        }
        Ok(())
    }

    fn their_map_count(&self) -> Result<u64, String> {
        let maps = read(&format!("/proc/{}/maps", self.server.pid()))?;
        Ok(maps.lines().filter(|line| !line.ends_with("[vsyscall]")).count() as u64)
    }

    /// Performs random operations on both sides.
    pub(crate) fn run(mut self, operations: u64, table: &mut Table) -> Result<(), String> {
        for n in 0..operations {
            let op = self.maker.next();
            if self.meets_known_bug(&op) || self.would_lock_everything(&op) {
                continue;
            }
            self.step(&op, table)
                .map_err(|what| format!("operation {n} {op:x?}: {what}\n{}", self.both()))?;
            // Flags cost the kernel more than addresses.
            let flags = n % 16 == 0 || n + 1 == operations;
            self.compare(flags).map_err(|what| format!("operation {n} {op:x?}: {what}\n{}", self.both()))?;
        }
        while !self.ancestors.is_empty() {
            self.step(&Op::Exit, table)?;
            self.compare(true)?;
        }
        self.leave()
    }

    /// Performs one operation on both sides, and compares the answers.
    pub(super) fn step(&mut self, op: &Op, table: &mut Table) -> Result<(), String> {
        let done = match *op {
            Op::Limit(limit) => return self.limit(limit, table),
            Op::Fork | Op::Exit | Op::Exec => self.perform_on_process(op)?,
            _ => Some(self.perform(op)?),
        };
        let Some((verb, ours, theirs)) = done else { return Ok(()) };
        if ours != theirs {
            return Err(format!("ours {ours:?}, theirs {theirs:?}"));
        }
        table.note(verb, answer_name(op, ours))?;
        self.mm.check().map_err(|violation| format!("{violation:?}"))
    }

    /// Without a limit it would lock, and touch, all that lies outside the arena.
    fn would_lock_everything(&self, op: &Op) -> bool {
        let is_locked = |flags| MlockallFlags::from_bits_retain(flags).contains(MlockallFlags::CURRENT);
        matches!(*op, Op::Call(Call::Mlockall { flags }) if is_locked(flags))
            && self.mm.rlimits().memlock == u64::MAX
    }

    fn both(&self) -> String {
        let theirs = read(&format!("/proc/{}/maps", self.server.pid())).unwrap_or_default();
        let theirs: Vec<&str> = theirs.lines().filter(|line| in_arena(parse_range(line).0)).collect();
        let ours: Vec<String> = self.arena().map(|vma| format!("{vma:x?}")).collect();
        let status = read(&format!("/proc/{}/status", self.server.pid())).unwrap_or_default();
        let locked = status.lines().find(|line| line.starts_with("VmLck")).unwrap_or_default();
        let (ours, theirs) = (ours.join("\n"), theirs.join("\n"));
        format!("ours: {:?}\n{ours}\ntheirs: {locked}\n{theirs}", self.mm.totals())
    }

    pub(super) fn arena(&self) -> impl Iterator<Item = Vma> + '_ {
        self.mm.vmas().iter().map(|(_, vma)| vma).filter(|vma| in_arena(vma.start.get()))
    }

    /// Performs one operation on both sides: the verb, our answer, theirs.
    fn perform(&mut self, op: &Op) -> Result<(&'static str, i64, i64), String> {
        match *op {
            Op::Call(call) => {
                let ours = self.call(&call);
                let (number, args) = call.to_linux(|file| self.named(file).1);
                Ok((call.verb(), ours, self.server.call(number, &args)?))
            }
            // The call is that of 32-bit programs; the other one does the same.
            Op::Mmap2 { addr, len, prot, flags, file, pages } => {
                let (file, fd) = self.named(file);
                let args = mmap_args(addr, len, prot, flags, file, pages);
                let ours = syscall::mmap2(&mut self.mm, &mut self.pages, &args);
                let theirs = self.server.call(libc::SYS_mmap, &[addr, len, prot, flags, fd, pages * PAGE])?;
                Ok(("mmap2", place(ours), theirs))
            }
            Op::Mincore { addr, len } => self.mincore(addr, len),
            Op::Sbrk { delta } => self.sbrk(delta),
            Op::Load { addr } => {
                let ours = touch(&mut self.mm, &self.pages, addr, Touch::Read);
                let args = [self.pipe.1.as_raw_fd() as u64, addr, 1];
                let theirs = self.server.call(libc::SYS_write, &args)?;
                if theirs == 1 {
                    self.drain_pipe()?;
                }
                Ok(("load", ours, theirs))
            }
            Op::Store { addr } => {
                let ours = touch(&mut self.mm, &self.pages, addr, Touch::Write);
                let args = [self.zero.as_raw_fd() as u64, addr, 1];
                Ok(("store", ours, self.server.call(libc::SYS_read, &args)?))
            }
            Op::Limit(_) | Op::Fork | Op::Exit | Op::Exec => Err("not memory's".to_owned()),
        }
    }

    /// Our side of a call.
    fn call(&mut self, call: &Call) -> i64 {
        let file = if let Call::Mmap { file, .. } = *call { self.named(file).0 } else { Ok(None) };
        let (mm, pages) = (&mut self.mm, &mut self.pages);
        match *call {
            Call::Mmap { addr, len, prot, flags, offset, .. } => {
                place(syscall::mmap(mm, pages, &mmap_args(addr, len, prot, flags, file, offset)))
            }
            Call::Munmap { addr, len } => none(syscall::munmap(mm, pages, addr, len)),
            Call::Mprotect { addr, len, prot } => {
                none(syscall::mprotect(mm, pages, addr, len, Prot::from_bits_retain(prot)))
            }
            Call::Mremap { addr, old, new, flags, to } => {
                let flags = MremapFlags::from_bits_retain(flags);
                place(syscall::mremap(mm, pages, addr, old, new, flags, to))
            }
            Call::Madvise { addr, len, advice } => none(syscall::madvise(mm, pages, addr, len, advice)),
            Call::Mlock { addr, len } => none(syscall::mlock(mm, pages, addr, len)),
            Call::Mlock2 { addr, len, flags } => {
                none(syscall::mlock2(mm, pages, addr, len, MlockFlags::from_bits_retain(flags)))
            }
            Call::Munlock { addr, len } => none(syscall::munlock(mm, pages, addr, len)),
            Call::Mlockall { flags } => {
                none(syscall::mlockall(mm, pages, MlockallFlags::from_bits_retain(flags)))
            }
            Call::Munlockall => {
                syscall::munlockall(mm, pages);
                0
            }
            Call::Msync { addr, len, flags } => {
                none(syscall::msync(mm, pages, addr, len, MsyncFlags::from_bits_retain(flags)))
            }
            Call::Brk { addr } => syscall::brk(mm, pages, addr).get() as i64,
        }
    }

    fn drain_pipe(&self) -> Result<(), String> {
        use std::io::Read;
        let mut pipe = std::fs::File::from(self.pipe.0.try_clone().map_err(|error| error.to_string())?);
        pipe.read_exact(&mut [0]).map_err(|error| error.to_string())
    }

    /// A file as our calls take it, and its descriptor.
    fn named(&self, file: File) -> (Result<Option<MapFile>, MmError>, u64) {
        match file {
            File::None => (Ok(None), u64::MAX),
            File::Bad => (Err(MmError::BadDescriptor), BAD_FD),
            File::Number(n) => (Ok(Some(map_file(n, &self.files[n]))), self.files[n].fd.as_raw_fd() as u64),
            File::Pipe => (Ok(Some(pipe_file(self.noexec_pipe))), self.pipe.0.as_raw_fd() as u64),
        }
    }

    /// As the C library does it.
    fn sbrk(&mut self, delta: i64) -> Result<(&'static str, i64, i64), String> {
        let ours = syscall::sbrk(&mut self.mm, &mut self.pages, delta);
        let old = self.server.call(libc::SYS_brk, &[0])?;
        let new = self.server.call(libc::SYS_brk, &[(old + delta) as u64])?;
        let theirs = if new == old + delta { old } else { -i64::from(Errno::ENOMEM.get()) };
        Ok(("sbrk", ours.map_or_else(failed, |addr| addr.get() as i64), theirs))
    }

    /// The vector lies outside what can be written, so that an answer for even one page is EFAULT.
    fn mincore(&mut self, addr: u64, len: u64) -> Result<(&'static str, i64, i64), String> {
        struct Nowhere;
        impl syscall::Residency for Nowhere {
            fn can_hold(&self, _pages: u64) -> bool {
                true
            }
            fn put(&mut self, _index: u64, _resident: bool) -> Result<(), MmError> {
                Err(MmError::BadVector)
            }
        }
        let ours =
            syscall::mincore(&self.mm, &mut self.pages, addr, len, &mut Nowhere).map_or_else(failed, |()| 0);
        let theirs = self.server.call(libc::SYS_mincore, &[addr, len, PAGE])?;
        Ok(("mincore", ours, theirs))
    }

    pub(super) fn compare(&mut self, flags: bool) -> Result<(), String> {
        let what = if flags { "smaps" } else { "maps" };
        let text = read(&format!("/proc/{}/{what}", self.server.pid()))?;
        let ours: Vec<Vma> = self.arena().collect();
        let mut ours = ours.iter();
        let mut current: Option<&Vma> = None;
        let mut count = 0;
        for line in text.lines() {
            if line.as_bytes().first().is_some_and(|first| first.is_ascii_uppercase()) {
                if let (Some(vma), Some(codes)) = (current, line.strip_prefix("VmFlags: ")) {
                    if shown::told(codes) != shown::codes(vma.flags) {
                        return Err(format!("flags of {vma:x?} are {codes}"));
                    }
                }
                continue;
            }
            current = None;
            count += u32::from(!line.ends_with("[vsyscall]"));
            if !in_arena(parse_range(line).0) {
                continue;
            }
            let vma = ours.next().ok_or(format!("we have no {line}"))?;
            self.compare_line(vma, line)?;
            current = Some(vma);
        }
        if let Some(vma) = ours.next() {
            return Err(format!("they have no {vma:x?}"));
        }
        match self.mm.map_count() {
            ours if ours == count && flags => self.compare_sums(),
            ours if ours == count => Ok(()),
            ours => Err(format!("{ours} VMAs, they have {count}")),
        }
    }

    pub(super) fn compare_line(&mut self, vma: &Vma, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let inode: u64 = words[4].parse().map_err(|_| format!("bad line {line}"))?;
        let (offset, known) = match vma.backing {
            Backing::File(file) => (vma.pgoff.get() * PAGE, self.is_inode(file, inode)),
            _ => (0, inode == 0),
        };
        let equal = parse_range(line) == (vma.start.get(), vma.end.get())
            && words[1] == shown::perms(vma.flags)
            && u64::from_str_radix(words[2], 16) == Ok(offset)
            && known;
        if equal { Ok(()) } else { Err(format!("ours {vma:x?}, theirs {line}")) }
    }

    fn is_inode(&mut self, file: FileRef, inode: u64) -> bool {
        let number = file.file.0.get();
        if file == self.program.file {
            return inode == self.program.inode;
        }
        if file.kind != FileKind::SharedAnonymous {
            return self.files.iter().any(|opened| opened.file == number && opened.inode == inode);
        }
        match self.objects.iter().find(|(ours, theirs)| *ours == number || *theirs == inode) {
            Some(pair) => *pair == (number, inode),
            None => {
                self.objects.push((number, inode));
                true
            }
        }
    }
}

/// A byte copied by the kernel from or to the program's memory.
fn touch(mm: &mut Mm<'_>, pages: &Pages, addr: u64, touch: Touch) -> i64 {
    let fault = -i64::from(Errno::EFAULT.get());
    if addr >= mm.context().sysctl().task_size {
        return fault;
    }
    let addr = VirtAddr::from(addr);
    let Ok(slot) = mm.find_vma_or_grow(addr) else { return fault };
    let vma = mm.vma(slot);
    let needed = if touch == Touch::Write { VmFlags::WRITE } else { VmFlags::ACCESS };
    // What may be written or executed may be read, except behind a key.
    if !vma.flags.intersects(needed) || vma.flags.contains(VmFlags::EXECUTE_ONLY_KEY) || pages.is_guard(addr)
    {
        return fault;
    }
    if mm.touch_needs_anon(&vma, addr, touch) && mm.prepare_anon(slot).is_err() {
        return fault;
    }
    if pages.lies_in_file(&vma, addr.vpn().get()) { 1 } else { fault }
}

fn mmap_args(
    addr: u64,
    len: u64,
    prot: u64,
    flags: u64,
    file: Result<Option<MapFile>, MmError>,
    offset: u64,
) -> MmapArgs {
    let (prot, flags) = (Prot::from_bits_retain(prot), MapFlags::from_bits_retain(flags));
    MmapArgs { addr, len, prot, flags, file, offset }
}

fn none(result: Result<(), MmError>) -> i64 {
    result.map_or_else(failed, |()| 0)
}

fn place(result: Result<VirtAddr, MmError>) -> i64 {
    result.map_or_else(failed, |addr| addr.get() as i64)
}

pub(super) fn failed(error: MmError) -> i64 {
    -i64::from(error.errno().get())
}

fn answer_name(op: &Op, answer: i64) -> &'static str {
    match *op {
        Op::Call(Call::Brk { addr }) if answer as u64 != addr => "unchanged",
        _ if answer >= 0 => "ok",
        _ => MmError::ALL
            .iter()
            .map(|error| error.errno())
            .find(|errno| i64::from(errno.get()) == -answer)
            .map_or("?", Errno::name),
    }
}

fn in_arena(addr: u64) -> bool {
    (BASE..END).contains(&addr)
}

fn map_file(n: usize, opened: &Opened) -> MapFile {
    let file = FileRef::new(opened.file, n as u32 + 1, FileKind::Memory).expect("numbers from 1");
    MapFile::new(file, opened.mode)
}

fn make_files() -> Result<Vec<Opened>, String> {
    use std::os::unix::fs::MetadataExt;
    let mut files = Vec::new();
    for (file, bytes) in (1..).zip(FILE_BYTES) {
        let opened = std::fs::File::from(memfd()?);
        opened.set_len(bytes).map_err(|error| error.to_string())?;
        let inode = opened.metadata().map_err(|error| error.to_string())?.ino();
        // The thread has descriptors of its own.
        let path = format!("/proc/thread-self/fd/{}", opened.as_raw_fd());
        let mut options = std::fs::OpenOptions::new();
        let (mode, again) = match file {
            1 => (OpenMode::ReadOnly, options.read(true).open(path)),
            _ => (OpenMode::WriteOnly, options.write(true).open(path)),
        };
        let again = again.map_err(|error| error.to_string())?;
        files.push(Opened { fd: opened.into(), mode: OpenMode::ReadWrite, file, inode });
        files.push(Opened { fd: again.into(), mode, file, inode });
    }
    Ok(files)
}
