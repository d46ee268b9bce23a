//! Programs on the running kernel.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::child::{Children, First, Reply};
use super::op::{Op, Outcome, PROCESSES};
use super::place::{self, BAD_FD, END, OPENINGS, Opened, PAGE, SIZES, in_arena};
use crate::live::arena;
use crate::live::call::File as MapFile;
use crate::live::host::{is_noexec, last_error, memfd, parse_range, pipe, read};
use crate::live::shown::told;

/// A line of `/proc/PID/maps`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) perms: String,
    pub(crate) offset: u64,
    pub(crate) inode: u64,
    /// The flags that smaps tells.
    pub(crate) flags: Option<String>,
}

/// What an entry of `/proc/PID/pagemap` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) present: bool,
    /// Of a file, or of shared memory.
    pub(crate) file: bool,
    /// Mapped once only, and no page of zeros.
    pub(crate) exclusive: bool,
    pub(crate) guard: bool,
}

/// Pages that all processes share with us, at one address, for what calls are to write that is not in the arena.
struct Desk(*mut u8);

const DESK_BYTES: usize = ((END - place::BASE) / PAGE) as usize;

/// The running kernel's side.
pub(crate) struct Theirs {
    children: Children,
    files: Vec<OwnedFd>,
    inodes: Vec<u64>,
    pipe: (OwnedFd, OwnedFd),
    desk: Desk,
}

impl Theirs {
    /// With the file that is to lie in a file system at `path`.
    pub(crate) fn new(path: &Path) -> Result<Self, String> {
        let (files, inodes) = make_files(path)?;
        let pipe = pipe()?;
        let desk = Desk::new()?;
        let mut children = Children::new()?;
        arena::prepare(&mut First(&mut children), &place::plan(), &pipe)?;
        Ok(Self { children, files, inodes, pipe, desk })
    }

    /// Which of the world's files has this inode.
    pub(crate) fn file_of(&self, inode: u64) -> Option<usize> {
        self.inodes.iter().position(|&other| other == inode)
    }

    /// Whether a pipe is refused to whoever would execute it before it is seen that it cannot be mapped.
    pub(crate) fn pipe_is_noexec(&self) -> bool {
        is_noexec(&self.pipe.0)
    }

    fn fd(&self, file: usize) -> RawFd {
        self.files[file].as_raw_fd()
    }

    pub(crate) fn perform(&mut self, by: usize, op: &Op) -> Result<Outcome, String> {
        let fd = |file| match file {
            MapFile::None => u64::MAX,
            MapFile::Bad => BAD_FD,
            MapFile::Number(file) => self.fd(file) as u64,
            MapFile::Pipe => self.pipe.0.as_raw_fd() as u64,
        };
        let (number, args): (_, Vec<u64>) = match *op {
            Op::Call(call) => call.to_linux(fd),
            Op::ReadFile { file, addr, len, offset } => {
                (libc::SYS_pread64, vec![self.fd(file) as u64, addr, len, offset])
            }
            Op::WriteFile { file, addr, len, offset } => {
                (libc::SYS_pwrite64, vec![self.fd(file) as u64, addr, len, offset])
            }
            _ => return self.perform_other(by, op),
        };
        Ok(Outcome::Result(self.children.call(by, number, &args)?))
    }

    fn perform_other(&mut self, by: usize, op: &Op) -> Result<Outcome, String> {
        match *op {
            Op::Load { addr, len } => Ok(outcome(&self.children.load(by, addr, len)?)),
            Op::Store { addr, bytes } => {
                let reply = self.children.store(by, addr, bytes.get())?;
                Ok(without_bytes(outcome(&reply)))
            }
            Op::Exchange { addr, current, new } => {
                Ok(outcome(&self.children.exchange(by, addr, current, new)?))
            }
            Op::Fetch { addr } => {
                let reply = self.children.fetch(by, addr)?;
                if reply.signal == libc::SIGTRAP as u32 {
                    return Ok(Outcome::Result(1));
                }
                Ok(outcome(&Reply { result: 0, ..reply }))
            }
            Op::WritePipe { addr, len } => self.write_pipe(by, addr, len),
            Op::ReadPipe { addr, bytes } => self.read_pipe(by, addr, bytes.get()),
            Op::Mincore { addr, len } => self.mincore(by, addr, len),
            Op::OtherReads { file, len, offset } => {
                let mut bytes = vec![0; len];
                // SAFETY: `bytes` has room for as many.
                let read = unsafe {
                    libc::pread(self.fd(file), bytes.as_mut_ptr().cast(), len, offset as libc::off_t)
                };
                bytes.truncate(read.max(0) as usize);
                Ok(Outcome::Bytes(result(read), bytes))
            }
            Op::OtherWrites { file, bytes, offset } => {
                let bytes = bytes.get();
                // SAFETY: `bytes` has as many.
                let written = unsafe {
                    libc::pwrite(self.fd(file), bytes.as_ptr().cast(), bytes.len(), offset as libc::off_t)
                };
                Ok(Outcome::Result(result(written)))
            }
            Op::Truncate { file, size } => {
                // SAFETY: nobody relies on the file's length.
                let truncated = unsafe { libc::ftruncate(self.fd(file), size as libc::off_t) };
                Ok(Outcome::Result(result(truncated as isize)))
            }
            Op::Fork => match (0..PROCESSES).find(|&place| self.children.pid(place).is_none()) {
                Some(place) => Ok(Outcome::Result(self.children.fork(by, place)?)),
                None => Err("no place is free".to_owned()),
            },
            Op::Exit => self.children.exit(by).map(|()| Outcome::Result(0)),
            _ => unreachable!("the calls were performed"),
        }
    }

    fn write_pipe(&mut self, by: usize, addr: u64, len: usize) -> Result<Outcome, String> {
        let args = [self.pipe.1.as_raw_fd() as u64, addr, len as u64];
        let written = self.children.call(by, libc::SYS_write, &args)?;
        Ok(Outcome::Bytes(written, self.drain(written.max(0) as usize)?))
    }

    fn read_pipe(&mut self, by: usize, addr: u64, bytes: &[u8]) -> Result<Outcome, String> {
        let mut pipe = File::from(self.pipe.1.try_clone().map_err(|error| error.to_string())?);
        pipe.write_all(bytes).map_err(|error| error.to_string())?;
        let args = [self.pipe.0.as_raw_fd() as u64, addr, bytes.len() as u64];
        let read = self.children.call(by, libc::SYS_read, &args)?;
        self.drain(bytes.len() - read.max(0) as usize)?;
        Ok(Outcome::Result(read))
    }

    fn drain(&self, len: usize) -> Result<Vec<u8>, String> {
        let mut pipe = File::from(self.pipe.0.try_clone().map_err(|error| error.to_string())?);
        let mut bytes = vec![0; len];
        pipe.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    fn mincore(&mut self, by: usize, addr: u64, len: u64) -> Result<Outcome, String> {
        const UNTOUCHED: u8 = 0xff;
        let desk = self.desk.bytes();
        desk.fill(UNTOUCHED);
        let args = [addr, len, self.desk.0 as u64];
        let result = self.children.call(by, libc::SYS_mincore, &args)?;
        let told = self.desk.bytes().iter().take_while(|&&byte| byte != UNTOUCHED);
        Ok(Outcome::Bytes(result, told.map(|byte| byte & 1).collect()))
    }

    fn proc(&self, by: usize, what: &str) -> String {
        format!("/proc/{}/{what}", self.children.pid(by).unwrap_or(0))
    }

    /// What the arena of a process holds; with flags if they are asked for, which takes the kernel longer.
    pub(crate) fn layout(&self, by: usize, with_flags: WithFlags) -> Result<Vec<Line>, String> {
        let what = if with_flags == WithFlags::Yes { "smaps" } else { "maps" };
        let text = read(&self.proc(by, what))?;
        let mut lines: Vec<Line> = Vec::new();
        let mut inside = false;
        for line in text.lines() {
            if let Some(flags) = line.strip_prefix("VmFlags: ").filter(|_| inside) {
                if let Some(line) = lines.last_mut() {
                    line.flags = Some(told(flags));
                }
            }
            if line.as_bytes().first().is_some_and(|first| first.is_ascii_uppercase()) {
                continue;
            }
            inside = in_arena(parse_range(line).0);
            if inside {
                lines.push(parse_line(line)?);
            }
        }
        Ok(lines)
    }

    /// Pages that are locked.
    pub(crate) fn locked(&self, by: usize) -> Result<u64, String> {
        let status = read(&self.proc(by, "status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|kib| kib / 4).ok_or("no VmLck".to_owned())
    }

    /// The entries of a range.
    pub(crate) fn pagemap(&self, by: usize, start: u64, end: u64) -> Result<Vec<Seen>, String> {
        let file = File::open(self.proc(by, "pagemap")).map_err(|error| error.to_string())?;
        let mut bytes = vec![0; ((end - start) / PAGE * 8) as usize];
        file.read_exact_at(&mut bytes, start / PAGE * 8).map_err(|error| error.to_string())?;
        let words = bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()));
        let bit = |word: u64, bit: u32| word >> bit & 1 != 0;
        let seen = |word| Seen {
            present: bit(word, 63),
            file: bit(word, 61),
            exclusive: bit(word, 56),
            guard: bit(word, 58),
        };
        Ok(words.map(seen).collect())
    }

    /// Opens a process's memory.
    pub(crate) fn memory(&self, by: usize) -> Result<File, String> {
        File::open(self.proc(by, "mem")).map_err(|error| error.to_string())
    }

    /// What a file holds.
    pub(crate) fn contents(&self, opening: usize) -> Result<Vec<u8>, String> {
        let file = self.files[opening].try_clone().map_err(|error| error.to_string())?;
        let file = File::from(file);
        let size = file.metadata().map_err(|error| error.to_string())?.len();
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, 0).map_err(|error| error.to_string())?;
        Ok(bytes)
    }
}

/// Whether the flags of VMAs are asked for too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WithFlags {
    Yes,
    No,
}

impl Desk {
    fn new() -> Result<Self, String> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, wherever there is room.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), DESK_BYTES, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED { Err(last_error()) } else { Ok(Self(at.cast())) }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the memory has as many bytes, and the children touch it only while we wait for their answer.
        unsafe { std::slice::from_raw_parts_mut(self.0, DESK_BYTES) }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { libc::munmap(self.0.cast(), DESK_BYTES) };
    }
}

fn result(of: isize) -> i64 {
    if of < 0 { -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { of as i64 }
}

fn outcome(reply: &Reply) -> Outcome {
    let done = reply.result as usize;
    match reply.signal {
        0 => Outcome::Bytes(reply.result, reply.bytes[..done].to_vec()),
        number => Outcome::Signal { number, code: reply.code, addr: reply.addr, done },
    }
}

fn without_bytes(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Bytes(result, _) => Outcome::Result(result),
        other => other,
    }
}

fn parse_line(line: &str) -> Result<Line, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (start, end) = parse_range(line);
    let bad = || format!("bad line {line}");
    let [_, perms, offset, _, inode, ..] = words[..] else { return Err(bad()) };
    let offset = u64::from_str_radix(offset, 16).map_err(|_| bad())?;
    let inode = inode.parse().map_err(|_| bad())?;
    Ok(Line { start, end, perms: perms.to_owned(), offset, inode, flags: None })
}

/// The openings of the files, and their inodes.
fn make_files(path: &Path) -> Result<(Vec<OwnedFd>, Vec<u64>), String> {
    let text = |error: std::io::Error| error.to_string();
    let (mut files, mut inodes) = (Vec::new(), Vec::new());
    let mut first: Vec<File> = Vec::new();
    for number in 0..SIZES.len() {
        let file = match number {
            place::REGULAR => {
                let options =
                    File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
                options.map_err(text)?
            }
            _ => File::from(memfd()?),
        };
        file.write_all_at(&place::contents(number), 0).map_err(text)?;
        inodes.push(file.metadata().map_err(text)?.ino());
        first.push(file);
    }
    for (number, opened) in OPENINGS {
        let file = match opened {
            Opened::ReadWrite => first[number].try_clone(),
            _ => {
                let path = format!("/proc/self/fd/{}", first[number].as_raw_fd());
                File::options().read(opened.reads()).write(opened.writes()).open(path)
            }
        };
        files.push(file.map_err(text)?.into());
    }
    Ok((files, inodes))
}
