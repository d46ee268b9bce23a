//! Linux's calls, by name: what a C library has of them.

use core::ops::BitOr;

use crate::Errno;
use crate::system::{Addr, System, Thread};

/// The calls' numbers on x86-64 (`arch/x86/entry/syscalls/syscall_64.tbl`).
pub mod number {
    macro_rules! numbers {
        ($($name:ident $number:literal)*) => {
            $(#[doc = concat!("`", stringify!($name), "`")] pub const $name: usize = $number;)*
        };
    }

    numbers! {
        READ 0 WRITE 1 OPEN 2 CLOSE 3 FSTAT 5 LSEEK 8 MMAP 9 MPROTECT 10 MUNMAP 11 BRK 12 RT_SIGACTION 13 RT_SIGRETURN 15 SCHED_YIELD 24
        MREMAP 25 MSYNC 26 MINCORE 27 MADVISE 28 GETPID 39 CLONE 56 FORK 57 EXECVE 59 EXIT 60 WAIT4 61 FTRUNCATE 77 UNLINK 87
        MLOCK 149 MUNLOCK 150 FUTEX 202 CLOCK_GETTIME 228 EXIT_GROUP 231
    }
}

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident: $type:ty { $($(#[$flag_doc:meta])* $flag:ident = $value:literal)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name(pub $type);

        impl $name {
            $($(#[$flag_doc])* pub const $flag: Self = Self($value);)*
        }

        impl BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }
    };
}

flags! {
    /// What may be done with memory.
    Prot: u64 {
        /// Nothing.
        NONE = 0
        /// It may be loaded.
        READ = 1
        /// It may be stored to.
        WRITE = 2
        /// It may be executed.
        EXEC = 4
    }
}

flags! {
    /// How memory is mapped.
    MapFlags: u64 {
        /// Stores are seen by all who map it, and reach the file.
        SHARED = 0x01
        /// Stores are seen here only.
        PRIVATE = 0x02
        /// Exactly there, in place of what is there.
        FIXED = 0x10
        /// No file.
        ANONYMOUS = 0x20
        /// With its pages.
        POPULATE = 0x8000
    }
}

flags! {
    /// How a file is opened.
    Open: u64 {
        /// For reading.
        READ = 0
        /// For writing.
        WRITE = 1
        /// For both.
        READ_WRITE = 2
        /// It is made if it does not exist.
        CREATE = 0x40
        /// It is emptied.
        TRUNCATE = 0x200
    }
}

/// From where a position counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    /// From the file's beginning.
    Start = 0,
    /// From where it is.
    Here = 1,
    /// From the file's end.
    End = 2,
}

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// The longest path, its end mark included.
const PATH: usize = 64;
/// The size of `struct stat`.
const STAT: usize = 144;
/// Where `st_size` lies in it.
const STAT_SIZE: usize = 48;
const FUTEX_WAIT: u64 = 0;
const FUTEX_WAKE: u64 = 1;
const CLOCK_MONOTONIC: u64 = 1;
const AT_PAGESZ: u64 = 6;
const MS_SYNC: u64 = 4;
const MREMAP_MAYMOVE: u64 = 1;
const MADV_DONTNEED: u64 = 4;

/// The calls that programs make. All errors are the kernel's.
#[expect(clippy::missing_errors_doc, reason = "each answers with what the kernel answers")]
pub trait Calls: System {
    /// Maps memory or a file and answers where. `fd` is −1 for anonymous memory.
    fn mmap(
        &self,
        addr: Addr,
        len: u64,
        prot: Prot,
        flags: MapFlags,
        fd: i32,
        offset: u64,
    ) -> Result<Addr, Errno> {
        let args = [addr, len, prot.0, flags.0, fd as u64, offset];
        Errno::check(self.syscall(number::MMAP, args))
    }

    /// Maps memory of this process's own, or, with [`MapFlags::SHARED`], of it and its children to come.
    fn map_anonymous(&self, len: u64, sharing: MapFlags) -> Result<Addr, Errno> {
        self.mmap(0, len, Prot::READ | Prot::WRITE, sharing | MapFlags::ANONYMOUS, -1, 0)
    }

    /// Unmaps.
    fn munmap(&self, addr: Addr, len: u64) -> Result<(), Errno> {
        self.done(number::MUNMAP, &[addr, len])
    }

    /// Changes the protection.
    fn mprotect(&self, addr: Addr, len: u64, prot: Prot) -> Result<(), Errno> {
        self.done(number::MPROTECT, &[addr, len, prot.0])
    }

    /// Makes a mapping larger or smaller, moving it if need be; answers where it is.
    fn mremap(&self, addr: Addr, old_len: u64, new_len: u64) -> Result<Addr, Errno> {
        Errno::check(self.syscall(number::MREMAP, [addr, old_len, new_len, MREMAP_MAYMOVE, 0, 0]))
    }

    /// Writes what was stored in a mapping of a file to the file's device, and waits for that.
    fn msync(&self, addr: Addr, len: u64) -> Result<(), Errno> {
        self.done(number::MSYNC, &[addr, len, MS_SYNC])
    }

    /// Gives the pages back; the memory stays mapped and reads as if it had just been mapped.
    fn madvise_dontneed(&self, addr: Addr, len: u64) -> Result<(), Errno> {
        self.done(number::MADVISE, &[addr, len, MADV_DONTNEED])
    }

    /// Moves the end of the heap and answers where it is then; 0 only asks.
    fn brk(&self, end: Addr) -> Addr {
        self.syscall(number::BRK, [end, 0, 0, 0, 0, 0]) as Addr
    }

    /// Makes memory resident and keeps it so.
    fn mlock(&self, addr: Addr, len: u64) -> Result<(), Errno> {
        self.done(number::MLOCK, &[addr, len])
    }

    /// Undoes [`mlock`](Self::mlock).
    fn munlock(&self, addr: Addr, len: u64) -> Result<(), Errno> {
        self.done(number::MUNLOCK, &[addr, len])
    }

    /// Whether pages are resident: the lowest bit of a byte for each page.
    fn mincore(&self, addr: Addr, len: u64, pages: &mut [u8]) -> Result<(), Errno> {
        self.lend(pages, |vector| self.done(number::MINCORE, &[addr, len, vector]))
    }

    /// Opens a file; answers with its descriptor.
    fn open(&self, path: &str, how: Open) -> Result<i32, Errno> {
        let mut name = path_bytes(path)?;
        let answer = self.lend(&mut name, |name| self.syscall(number::OPEN, [name, how.0, 0o644, 0, 0, 0]));
        Errno::check(answer).map(|fd| fd as i32)
    }

    /// Reads to an address; answers with how many bytes.
    fn read(&self, fd: i32, addr: Addr, len: u64) -> Result<u64, Errno> {
        Errno::check(self.syscall(number::READ, [fd as u64, addr, len, 0, 0, 0]))
    }

    /// Writes from an address; answers with how many bytes.
    fn write(&self, fd: i32, addr: Addr, len: u64) -> Result<u64, Errno> {
        Errno::check(self.syscall(number::WRITE, [fd as u64, addr, len, 0, 0, 0]))
    }

    /// Reads into a variable; answers with how many bytes.
    fn read_bytes(&self, fd: i32, out: &mut [u8]) -> Result<u64, Errno> {
        let len = out.len() as u64;
        self.lend(out, |addr| self.read(fd, addr, len))
    }

    /// Writes all of a variable.
    fn write_bytes(&self, fd: i32, bytes: &mut [u8]) -> Result<(), Errno> {
        let len = bytes.len() as u64;
        self.lend(bytes, |addr| self.write_all(fd, addr, len))
    }

    /// Writes all of a range.
    fn write_all(&self, fd: i32, addr: Addr, len: u64) -> Result<(), Errno> {
        let mut done = 0;
        while done < len {
            match self.write(fd, addr + done, len - done)? {
                0 => return Err(Errno::EIO),
                written => done += written,
            }
        }
        Ok(())
    }

    /// Moves a descriptor's position; answers where it is then.
    fn lseek(&self, fd: i32, offset: i64, from: Seek) -> Result<u64, Errno> {
        Errno::check(self.syscall(number::LSEEK, [fd as u64, offset as u64, from as u64, 0, 0, 0]))
    }

    /// The size of an open file (`fstat`).
    fn file_size(&self, fd: i32) -> Result<u64, Errno> {
        let mut stat = [0; STAT];
        self.lend(&mut stat, |addr| self.done(number::FSTAT, &[fd as u64, addr]))?;
        let size = stat.get(STAT_SIZE..).and_then(|rest| rest.first_chunk());
        size.map(|bytes| u64::from_le_bytes(*bytes)).ok_or(Errno::EIO)
    }

    /// Makes a file so long.
    fn ftruncate(&self, fd: i32, len: u64) -> Result<(), Errno> {
        self.done(number::FTRUNCATE, &[fd as u64, len])
    }

    /// Closes a descriptor.
    fn close(&self, fd: i32) -> Result<(), Errno> {
        self.done(number::CLOSE, &[fd as u64])
    }

    /// Takes a file's name away; the file goes with its last user.
    fn unlink(&self, path: &str) -> Result<(), Errno> {
        let mut name = path_bytes(path)?;
        self.lend(&mut name, |name| self.done(number::UNLINK, &[name]))
    }

    /// Makes a file with these bytes; answers with a descriptor for reading and writing, at its end.
    fn create(&self, path: &str, contents: &[u8]) -> Result<i32, Errno> {
        let fd = self.open(path, Open::READ_WRITE | Open::CREATE | Open::TRUNCATE)?;
        let mut buffer = [0; 256];
        for part in contents.chunks(buffer.len()) {
            let (part_of_buffer, _) = buffer.split_at_mut(part.len());
            part_of_buffer.copy_from_slice(part);
            self.write_bytes(fd, part_of_buffer)?;
        }
        Ok(fd)
    }

    /// Waits for a child; answers with its number and how it ended.
    fn wait(&self) -> Result<(i32, Status), Errno> {
        let mut word = [0; 4];
        let any = -1_i64 as u64;
        let pid = self.lend(&mut word, |addr| self.syscall(number::WAIT4, [any, addr, 0, 0, 0, 0]));
        let pid = Errno::check(pid)? as i32;
        let status = i32::from_le_bytes(word);
        Ok((
            pid,
            if status & 0x7f == 0 {
                Status::Exited(status >> 8 & 0xff)
            } else {
                Status::Killed(status & 0x7f)
            },
        ))
    }

    /// The number of this process.
    fn getpid(&self) -> i32 {
        self.syscall(number::GETPID, [0; 6]) as i32
    }

    /// Lets others run.
    fn sched_yield(&self) {
        self.syscall(number::SCHED_YIELD, [0; 6]);
    }

    /// Sleeps until the word is woken, if `expected` stands there.
    fn futex_wait(&self, word: Addr, expected: u32) -> Result<(), Errno> {
        match self.done(number::FUTEX, &[word, FUTEX_WAIT, expected.into()]) {
            // Another value, or a signal: the caller looks again anyway.
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            other => other,
        }
    }

    /// Wakes as many as sleep at the word, `most` at most.
    fn futex_wake(&self, word: Addr, most: u32) -> Result<u64, Errno> {
        Errno::check(self.syscall(number::FUTEX, [word, FUTEX_WAKE, most.into(), 0, 0, 0]))
    }

    /// Nanoseconds since some moment.
    fn clock(&self) -> Result<u64, Errno> {
        let mut time = [0; 16];
        self.lend(&mut time, |addr| self.done(number::CLOCK_GETTIME, &[CLOCK_MONOTONIC, addr]))?;
        let (seconds, nanoseconds) = time.split_at(8);
        let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Ok(word(seconds) * 1_000_000_000 + word(nanoseconds))
    }

    /// The size of a page in bytes (`sysconf(_SC_PAGESIZE)`).
    fn page_size(&self) -> u64 {
        self.auxv(AT_PAGESZ).unwrap_or(4096)
    }

    /// Waits until a thread has ended, and unmaps its stack.
    fn join(&self, thread: Thread) -> Result<(), Errno> {
        loop {
            match self.load_atomic(thread.tid) {
                0 => return self.munmap(thread.stack, thread.len),
                tid => self.futex_wait(thread.tid, tid)?,
            }
        }
    }

    /// Loads a byte.
    fn load_u8(&self, addr: Addr) -> u8 {
        let mut byte = [0];
        self.load(addr, &mut byte);
        byte[0]
    }

    /// Loads a word of 32 bits.
    fn load_u32(&self, addr: Addr) -> u32 {
        let mut word = [0; 4];
        self.load(addr, &mut word);
        u32::from_le_bytes(word)
    }

    /// Stores a word of 32 bits.
    fn store_u32(&self, addr: Addr, word: u32) {
        self.store(addr, &word.to_le_bytes());
    }

    /// Loads a word that others change. It must be writable.
    fn load_atomic(&self, addr: Addr) -> u32 {
        self.compare_exchange(addr, 0, 0)
    }

    /// Adds to a word that others change; answers with what stood there.
    fn fetch_add(&self, addr: Addr, more: u32) -> u32 {
        let mut now = self.load_atomic(addr);
        loop {
            match self.compare_exchange(addr, now, now.wrapping_add(more)) {
                found if found == now => return now,
                found => now = found,
            }
        }
    }

    /// A call that answers with 0.
    #[doc(hidden)]
    fn done(&self, number: usize, args: &[u64]) -> Result<(), Errno> {
        let mut all = [0; 6];
        for (all, arg) in all.iter_mut().zip(args) {
            *all = *arg;
        }
        Errno::check(self.syscall(number, all)).map(drop)
    }
}

impl<S: System> Calls for S {}

/// A path with the mark at its end.
fn path_bytes(path: &str) -> Result<[u8; PATH], Errno> {
    let mut bytes = [0; PATH];
    let room = bytes.get_mut(..path.len()).filter(|room| room.len() < PATH).ok_or(Errno::ENAMETOOLONG)?;
    room.copy_from_slice(path.as_bytes());
    Ok(bytes)
}
