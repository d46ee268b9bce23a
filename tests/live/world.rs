//! An address space of ours beside that of a child process.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

use kernmm::addr::{PgOff, VirtAddr};
use kernmm::error::Errno;
use kernmm::flags::{
    MapFlags, MlockFlags, MlockallFlags, MremapFlags, MsyncFlags, Prot, VM_FLAG_CODES, VmFlags,
};
use kernmm::mm::{
    Backing, FileKind, FileRef, Image, Mm, MmContext, MmError, MmStores, Overcommit, OvercommitMode, Rlimits,
    Touch, Vma,
};
use kernmm::syscall::{self, MapFile, MmapArgs, OpenMode};

use super::arena::{self, Callee, Plan};
use super::host::{memfd, parse_range, pipe, read, sysctl};
use super::ops::{File, Maker, Op};
use super::server::Server;
use crate::pages::Pages;

const PAGE: u64 = 4096;
const BASE: u64 = 0x2000_0000_0000;
const ARENA: u64 = 64 << 20;
const END: u64 = BASE + ARENA;
const HEAP: u64 = BASE + 0x800 * PAGE;
const MEMLOCK: u64 = 96 * PAGE;
const BAD_FD: u64 = 999;
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

/// How often each verb gave each answer.
#[derive(Default)]
pub(crate) struct Table(BTreeMap<(&'static str, &'static str), u64>);

/// What every run is to see.
const EXPECTED: &[(&str, &[&str])] = &[
    (
        "mmap",
        &[
            "ok",
            "EINVAL",
            "EBADF",
            "ENOMEM",
            "EOVERFLOW",
            "EPERM",
            "EEXIST",
            "EAGAIN",
            "EACCES",
            "EOPNOTSUPP",
        ],
    ),
    ("munmap", &["ok", "EINVAL"]),
    ("mprotect", &["ok", "EINVAL", "ENOMEM", "EACCES"]),
    ("mremap", &["ok", "EINVAL", "EFAULT", "ENOMEM", "EAGAIN"]),
    ("madvise", &["ok", "EINVAL", "ENOMEM", "EACCES", "EFAULT"]),
    // EINVAL for a range that wraps cannot be reached: such a range is beyond any limit.
    ("mlock", &["ok", "ENOMEM"]),
    ("mlock2", &["ok", "ENOMEM", "EINVAL"]),
    ("munlock", &["ok", "ENOMEM", "EINVAL"]),
    ("mlockall", &["ok", "ENOMEM", "EINVAL"]),
    ("munlockall", &["ok"]),
    ("msync", &["ok", "EINVAL", "ENOMEM", "EBUSY"]),
    ("mincore", &["ok", "EINVAL", "ENOMEM", "EFAULT"]),
    ("brk", &["ok", "unchanged"]),
    ("load", &["ok", "EFAULT"]),
    ("store", &["ok", "EFAULT"]),
];

impl Table {
    fn note(&mut self, verb: &'static str, answer: &'static str) {
        *self.0.entry((verb, answer)).or_default() += 1;
    }

    /// What was to be seen and was not.
    pub(crate) fn missing(&self) -> Vec<(&'static str, &'static str)> {
        let expected =
            EXPECTED.iter().flat_map(|(verb, answers)| answers.iter().map(move |answer| (*verb, *answer)));
        expected.filter(|cell| !self.0.contains_key(cell)).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|((verb, answer), n)| writeln!(f, "{verb:>10} {answer:<10} {n:>9}"))
    }
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
    mm: Mm<'c>,
    pages: Pages,
    server: Server,
    files: Vec<Opened>,
    zero: OwnedFd,
    pipe: (OwnedFd, OwnedFd),
    maker: Maker,
    /// Inodes of the objects of shared anonymous mappings: theirs for ours.
    objects: Vec<(u32, u64)>,
}

impl<'c> World<'c> {
    pub(crate) fn new(context: &'c MmContext<'c>, seed: u64) -> Result<Self, String> {
        let files = make_files()?;
        let zero = std::fs::File::open("/dev/zero").map_err(|error| error.to_string())?.into();
        let pipe = pipe()?;
        let server = Server::new()?;
        let sysctl = context.sysctl();
        let mut world = Self {
            mm: Mm::new(context).map_err(|error| error.to_string())?,
            pages: Pages::default(),
            server,
            files,
            zero,
            pipe,
            maker: Maker::new(seed, BASE, END, sysctl.task_size, HEAP),
            objects: Vec::new(),
        };
        let task_size = sysctl.task_size;
        let plan = Plan { arena: BASE..END, heap: HEAP, task_size, memlock: MEMLOCK };
        arena::prepare(&mut world.server, &plan, &world.pipe)?;
        world.prepare_ours().map_err(|error| error.to_string())?;
        Ok(world)
    }

    fn prepare_ours(&mut self) -> Result<(), MmError> {
        let sysctl = self.mm.context().sysctl();
        self.mm.set_mmap_base(VirtAddr::from(END));
        self.mm.set_rlimits(Rlimits { memlock: MEMLOCK, ..Rlimits::default() });
        for (start, end) in [(sysctl.mmap_min_addr, BASE), (END, sysctl.task_size)] {
            let (start, end) = (VirtAddr::from(start), VirtAddr::from(end));
            let backing = Backing::Special(0);
            let vma = Vma { start, end, flags: VmFlags::DONTEXPAND, pgoff: PgOff::ZERO, backing, anon: None };
            self.mm.insert_vma(&mut self.pages, &vma)?;
        }
        let heap = VirtAddr::from(HEAP);
        self.mm.set_image(Image { start_brk: heap, brk: heap, ..Image::default() });
        for opened in &self.files {
            self.pages.set_size(opened.file, FILE_BYTES[opened.file as usize - 1].div_ceil(PAGE));
        }
        Ok(())
    }

    /// Performs random operations on both sides.
    pub(crate) fn run(mut self, operations: u64, table: &mut Table) -> Result<(), String> {
        for n in 0..operations {
            let op = self.maker.next();
            if self.meets_known_bug(&op) {
                continue;
            }
            let (verb, ours, theirs) = self.perform(&op)?;
            if ours != theirs {
                return Err(format!(
                    "operation {n} {op:x?}: ours {ours:?}, theirs {theirs:?}\n{}",
                    self.both()
                ));
            }
            table.note(verb, answer_name(&op, ours));
            self.mm
                .check()
                .map_err(|violation| format!("operation {n} {op:x?}: {violation:?}\n{}", self.both()))?;
            // Flags cost the kernel more than addresses.
            let flags = n % 16 == 0 || n + 1 == operations;
            self.compare(flags).map_err(|what| format!("operation {n} {op:x?}: {what}\n{}", self.both()))?;
        }
        syscall::exit(&mut self.mm, &mut self.pages);
        if *self.mm.totals() != kernmm::mm::Totals::default() {
            return Err(format!("left over: {:?}", self.mm.totals()));
        }
        Ok(())
    }

    /// What we answer otherwise than Linux on purpose: it forgets to take locked memory out of its sum when that stays mapped
    /// without its pages; and it cuts off a range's tail, and unmaps what lies where the range is to go, before it sees that it may not go to
    /// the lowest addresses, or that its source has gone with the target.
    fn meets_known_bug(&self, op: &Op) -> bool {
        let Op::Mremap { addr, old, new, flags, to } = *op else { return false };
        let end = addr.saturating_add(old);
        let locked = |vma: &Vma| vma.flags.contains(VmFlags::LOCKED);
        let touched = |vma: &Vma| vma.start.get() < end && addr < vma.end.get();
        let forgets = flags & 4 != 0 && self.arena().any(|vma| locked(&vma) && touched(&vma));
        let fixed = flags & 2 != 0;
        let unmaps = to.saturating_add(new) > self.mm.context().sysctl().mmap_min_addr;
        let is_alias = old.wrapping_add(PAGE - 1) < PAGE;
        let on_itself = is_alias && (to..to.saturating_add(new)).contains(&addr);
        forgets || fixed && (on_itself || to < PAGE && (new < old || unmaps))
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

    fn arena(&self) -> impl Iterator<Item = Vma> + '_ {
        self.mm.vmas().iter().map(|(_, vma)| vma).filter(|vma| in_arena(vma.start.get()))
    }

    /// Performs one operation on both sides: the verb, our answer, theirs.
    fn perform(&mut self, op: &Op) -> Result<(&'static str, i64, i64), String> {
        let none = |result: Result<(), MmError>| result.map_or_else(failed, |()| 0);
        let place = |result: Result<VirtAddr, MmError>| result.map_or_else(failed, |addr| addr.get() as i64);
        let (mm, pages) = (&mut self.mm, &mut self.pages);
        let (verb, ours, number, args): (_, _, _, Vec<u64>) = match *op {
            Op::Mmap { addr, len, prot, flags, file, offset } => {
                let fd = match file {
                    File::None => u64::MAX,
                    File::Bad => BAD_FD,
                    File::Number(n) => self.files[n].fd.as_raw_fd() as u64,
                };
                let file = match file {
                    File::None => Ok(None),
                    File::Bad => Err(MmError::BadDescriptor),
                    File::Number(n) => Ok(Some(map_file(n, &self.files[n]))),
                };
                let (prot_bits, flag_bits) =
                    (Prot::from_bits_retain(prot), MapFlags::from_bits_retain(flags));
                let args = MmapArgs { addr, len, prot: prot_bits, flags: flag_bits, file, offset };
                let ours = place(syscall::mmap(mm, pages, &args));
                ("mmap", ours, libc::SYS_mmap, vec![addr, len, prot, flags, fd, offset])
            }
            Op::Munmap { addr, len } => {
                ("munmap", none(syscall::munmap(mm, pages, addr, len)), libc::SYS_munmap, vec![addr, len])
            }
            Op::Mprotect { addr, len, prot } => {
                let ours = none(syscall::mprotect(mm, pages, addr, len, Prot::from_bits_retain(prot)));
                ("mprotect", ours, libc::SYS_mprotect, vec![addr, len, prot])
            }
            Op::Mremap { addr, old, new, flags, to } => {
                let bits = MremapFlags::from_bits_retain(flags);
                let ours = place(syscall::mremap(mm, pages, addr, old, new, bits, to));
                ("mremap", ours, libc::SYS_mremap, vec![addr, old, new, flags, to])
            }
            Op::Madvise { addr, len, advice } => {
                let ours = none(syscall::madvise(mm, pages, addr, len, advice));
                ("madvise", ours, libc::SYS_madvise, vec![addr, len, advice as u64])
            }
            Op::Mlock { addr, len } => {
                ("mlock", none(syscall::mlock(mm, pages, addr, len)), libc::SYS_mlock, vec![addr, len])
            }
            Op::Mlock2 { addr, len, flags } => {
                let ours = none(syscall::mlock2(mm, pages, addr, len, MlockFlags::from_bits_retain(flags)));
                ("mlock2", ours, libc::SYS_mlock2, vec![addr, len, flags])
            }
            Op::Munlock { addr, len } => {
                ("munlock", none(syscall::munlock(mm, pages, addr, len)), libc::SYS_munlock, vec![addr, len])
            }
            Op::Mlockall { flags } => {
                let ours = none(syscall::mlockall(mm, pages, MlockallFlags::from_bits_retain(flags)));
                ("mlockall", ours, libc::SYS_mlockall, vec![flags])
            }
            Op::Munlockall => {
                syscall::munlockall(mm, pages);
                ("munlockall", 0, libc::SYS_munlockall, vec![])
            }
            Op::Msync { addr, len, flags } => {
                let ours = none(syscall::msync(mm, pages, addr, len, MsyncFlags::from_bits_retain(flags)));
                ("msync", ours, libc::SYS_msync, vec![addr, len, flags])
            }
            Op::Mincore { addr, len } => return self.mincore(addr, len),
            Op::Brk { addr } => {
                ("brk", syscall::brk(mm, pages, addr).get() as i64, libc::SYS_brk, vec![addr])
            }
            Op::Load { addr } => {
                let ours = touch(mm, pages, addr, Touch::Read);
                ("load", ours, libc::SYS_write, vec![self.pipe.1.as_raw_fd() as u64, addr, 1])
            }
            Op::Store { addr } => {
                let ours = touch(mm, pages, addr, Touch::Write);
                ("store", ours, libc::SYS_read, vec![self.zero.as_raw_fd() as u64, addr, 1])
            }
        };
        let theirs = self.server.call(number, &args)?;
        if verb == "load" && theirs == 1 {
            use std::io::Read;
            let mut pipe = std::fs::File::from(self.pipe.0.try_clone().map_err(|error| error.to_string())?);
            pipe.read_exact(&mut [0]).map_err(|error| error.to_string())?;
        }
        Ok((verb, ours, theirs))
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

    fn compare(&mut self, flags: bool) -> Result<(), String> {
        let what = if flags { "smaps" } else { "maps" };
        let text = read(&format!("/proc/{}/{what}", self.server.pid()))?;
        let ours: Vec<Vma> = self.arena().collect();
        let mut ours = ours.iter();
        let mut current: Option<&Vma> = None;
        for line in text.lines() {
            if line.as_bytes().first().is_some_and(|first| first.is_ascii_uppercase()) {
                if let (Some(vma), Some(codes)) = (current, line.strip_prefix("VmFlags: ")) {
                    let expected: String = VM_FLAG_CODES
                        .iter()
                        .filter(|(flag, _)| vma.flags.contains(*flag))
                        .map(|(_, code)| format!("{code} "))
                        .collect();
                    if codes.trim_end() != expected.trim_end() {
                        return Err(format!("flags of {vma:x?} are {codes}"));
                    }
                }
                continue;
            }
            current = None;
            if !in_arena(parse_range(line).0) {
                continue;
            }
            let vma = ours.next().ok_or(format!("we have no {line}"))?;
            self.compare_line(vma, line)?;
            current = Some(vma);
        }
        ours.next().map_or(Ok(()), |vma| Err(format!("they have no {vma:x?}")))
    }

    fn compare_line(&mut self, vma: &Vma, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let letter = |flag, letter, none| if vma.flags.contains(flag) { letter } else { none };
        let perms: String = [
            letter(VmFlags::READ, 'r', '-'),
            letter(VmFlags::WRITE, 'w', '-'),
            letter(VmFlags::EXEC, 'x', '-'),
            letter(VmFlags::MAYSHARE, 's', 'p'),
        ]
        .iter()
        .collect();
        let inode: u64 = words[4].parse().map_err(|_| format!("bad line {line}"))?;
        let (offset, known) = match vma.backing {
            Backing::File(file) => (vma.pgoff.get() * PAGE, self.is_inode(file, inode)),
            _ => (0, inode == 0),
        };
        let equal = parse_range(line) == (vma.start.get(), vma.end.get())
            && words[1] == perms
            && u64::from_str_radix(words[2], 16) == Ok(offset)
            && known;
        if equal { Ok(()) } else { Err(format!("ours {vma:x?}, theirs {line}")) }
    }

    fn is_inode(&mut self, file: FileRef, inode: u64) -> bool {
        let number = file.file.0.get();
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

fn failed(error: MmError) -> i64 {
    -i64::from(error.errno().get())
}

fn answer_name(op: &Op, answer: i64) -> &'static str {
    match *op {
        Op::Brk { addr } if answer as u64 != addr => "unchanged",
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
        let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
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
