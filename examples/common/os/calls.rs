//! The system calls, by Linux's numbers.

use kernmm::addr::VirtAddr;
use kernmm::error::Errno;
use kernmm::flags::{MapFlags, MremapFlags, MsyncFlags, Prot};
use kernmm::memory::Refused;
use kernmm::mm::MmError;
use kernmm::syscall::{MmapArgs, Residency};
use kernmm::table::EntryFormat;
use kernmm_programs::number;

use super::files::Open;
use super::task::{Ended, Task};
use super::{Os, Proc, locked};

type Answer = Result<u64, Errno>;

fn done(result: Result<(), MmError>) -> Answer {
    result.map(|()| 0).map_err(MmError::errno)
}

fn address(result: Result<VirtAddr, MmError>) -> Answer {
    result.map(VirtAddr::get).map_err(MmError::errno)
}

const FUTEX_WAIT: u64 = 0;
const FUTEX_WAKE: u64 = 1;
const FUTEX_CMD_MASK: u64 = 0x7f;
const PATH_MAX: u64 = 4096;
/// The size of `struct stat`, and where the size lies in it.
const STAT: (usize, usize) = (144, 48);

/// What mincore answers, before it is copied to the caller.
struct Pages(Vec<u8>);

impl Residency for Pages {
    fn can_hold(&self, _: u64) -> bool {
        true
    }

    fn put(&mut self, _: u64, resident: bool) -> Result<(), MmError> {
        self.0.push(resident.into());
        Ok(())
    }
}

impl<'e, 'v, 'a, 'm, F: EntryFormat> Task<'e, 'v, 'a, 'm, F> {
    /// One call. Those of memory take their arguments apart and make one call of kernmm's.
    pub(super) fn dispatch(&self, call: usize, args: [u64; 6]) -> Answer {
        let [a, b, c, d, e, f] = args;
        let process = &self.group.process;
        match call {
            number::MMAP => self.mmap([a, b, c, d, e, f]),
            number::MUNMAP => done(process.munmap(a, b)),
            number::MPROTECT => done(process.mprotect(a, b, Prot::from_bits_retain(c))),
            number::MREMAP => address(process.mremap(a, b, c, MremapFlags::from_bits_retain(d), e)),
            number::MSYNC => done(process.msync(a, b, MsyncFlags::from_bits_retain(c as u32))),
            number::MADVISE => done(process.madvise(a, b, c as i32)),
            number::MLOCK => done(process.mlock(a, b)),
            number::MUNLOCK => done(process.munlock(a, b)),
            number::MINCORE => self.mincore(a, b, c),
            number::BRK => address(process.brk(a)),
            number::OPEN => {
                let open = self.os.open(&self.path(a)?, b)?;
                Ok(locked(&self.group.descriptors).add(open))
            }
            number::CLOSE => self.close(a),
            number::READ => self.os.read(process, &*self.open_file(a)?, VirtAddr::from(b), c),
            number::WRITE => self.os.write(process, &*self.open_file(a)?, VirtAddr::from(b), c),
            number::LSEEK => self.lseek(a, b as i64, c),
            number::FSTAT => self.fstat(a, b),
            number::FTRUNCATE => self.os.truncate(&*self.open_file(a)?, b),
            number::UNLINK => self.os.unlink(&self.path(a)?).map(|()| 0),
            number::FUTEX => self.futex(a, b & FUTEX_CMD_MASK, c as u32),
            number::WAIT4 => self.wait4(b),
            number::GETPID => Ok(self.group.pid as u64),
            number::SCHED_YIELD => {
                self.without_cpu(|| ());
                Ok(0)
            }
            number::CLOCK_GETTIME => self.clock_gettime(b),
            number::EXIT => self.end(Ended::Thread),
            number::EXIT_GROUP => self.end(Ended::Exited(a as i32)),
            _ => Err(Errno::ENOSYS),
        }
    }

    fn mmap(&self, [addr, len, prot, flags, fd, offset]: [u64; 6]) -> Answer {
        let open = self.open_file(fd);
        let file = match open.as_deref() {
            // There is one user, who owns all.
            Ok(Open::File(file, _)) => Ok(Some(file.map_file().owned())),
            Ok(Open::Console) => Err(MmError::NotMappable),
            Err(_) => Err(MmError::BadDescriptor),
        };
        let (prot, flags) = (Prot::from_bits_retain(prot), MapFlags::from_bits_retain(flags));
        address(self.group.process.mmap(&MmapArgs { addr, len, prot, flags, file, offset }))
    }

    fn mincore(&self, addr: u64, len: u64, vector: u64) -> Answer {
        let mut pages = Pages(vec![]);
        let collected = self.group.process.mincore(addr, len, &mut pages);
        self.group.process.copy_to_user(VirtAddr::from(vector), &pages.0).map_err(errno)?;
        done(collected)
    }

    fn close(&self, fd: u64) -> Answer {
        let closed = locked(&self.group.descriptors).close(fd)?;
        drop(closed);
        self.os.sweep();
        Ok(0)
    }

    fn lseek(&self, fd: u64, offset: i64, whence: u64) -> Answer {
        let open = self.open_file(fd)?;
        let Open::File(file, position) = &*open else { return Err(Errno::EINVAL) };
        let mut position = self.os.lock(position);
        let from = match whence {
            0 => 0,
            1 => *position,
            2 => file.size().map_err(|error| error.errno())?,
            _ => return Err(Errno::EINVAL),
        };
        *position = from.checked_add_signed(offset).ok_or(Errno::EINVAL)?;
        Ok(*position)
    }

    fn fstat(&self, fd: u64, to: u64) -> Answer {
        let open = self.open_file(fd)?;
        let size = match &*open {
            Open::File(file, _) => file.size().map_err(|error| error.errno())?,
            Open::Console => 0,
        };
        let mut stat = [0; STAT.0];
        stat[STAT.1..STAT.1 + 8].copy_from_slice(&size.to_le_bytes());
        self.group.process.copy_to_user(VirtAddr::from(to), &stat).map(|()| 0).map_err(errno)
    }

    fn futex(&self, word: u64, command: u64, value: u32) -> Answer {
        match command {
            FUTEX_WAIT => self.futex_wait(word, value),
            FUTEX_WAKE => self.os.futex_wake(&self.group.process, word, value),
            _ => Err(Errno::ENOSYS),
        }
    }

    fn futex_wait(&self, word: u64, expected: u32) -> Answer {
        let process = &self.group.process;
        let key = process.futex_key(VirtAddr::from(word)).map_err(errno)?;
        let stays = || {
            let mut found = [0; 4];
            process.copy_from_user(VirtAddr::from(word), &mut found).map_err(errno)?;
            if u32::from_le_bytes(found) == expected { Ok(()) } else { Err(Errno::EAGAIN) }
        };
        // The CPU goes when it is certain that this thread sleeps, and comes back when it has been woken.
        self.os.sleepers.sleep(key, stays, || self.give_cpu(), || self.is_alive())?;
        self.take_cpu();
        Ok(0)
    }

    fn wait4(&self, status: u64) -> Answer {
        let ended = self.without_cpu(|| self.os.family.wait(self.group.pid, || self.is_alive()));
        let (pid, how) = ended.ok_or(Errno::ECHILD)?;
        if status != 0 {
            self.group.process.copy_to_user(VirtAddr::from(status), &how.to_le_bytes()).map_err(errno)?;
        }
        Ok(pid as u64)
    }

    fn clock_gettime(&self, to: u64) -> Answer {
        let now = self.os.started.elapsed();
        let mut time = [0; 16];
        time[..8].copy_from_slice(&now.as_secs().to_le_bytes());
        time[8..].copy_from_slice(&u64::from(now.subsec_nanos()).to_le_bytes());
        self.group.process.copy_to_user(VirtAddr::from(to), &time).map(|()| 0).map_err(errno)
    }

    fn open_file(&self, fd: u64) -> Result<super::files::OpenFile<'v, 'a, 'm, F>, Errno> {
        locked(&self.group.descriptors).get(fd)
    }

    /// The path at an address.
    fn path(&self, addr: u64) -> Result<String, Errno> {
        let mut path = vec![];
        for at in addr..addr.saturating_add(PATH_MAX) {
            let mut byte = [0];
            self.group.process.copy_from_user(VirtAddr::from(at), &mut byte).map_err(errno)?;
            if byte == [0] {
                return String::from_utf8(path).map_err(|_| Errno::ENOENT);
            }
            path.extend(byte);
        }
        Err(Errno::ENAMETOOLONG)
    }
}

impl<'v, 'a, 'm, F: EntryFormat> Os<'v, 'a, 'm, F> {
    pub(super) fn futex_wake(&self, process: &Proc<'v, 'a, 'm, F>, word: u64, most: u32) -> Answer {
        let key = process.futex_key(VirtAddr::from(word)).map_err(errno)?;
        Ok(self.sleepers.wake(key, most).into())
    }
}

fn errno(refused: Refused) -> Errno {
    match refused {
        Refused::Signal(_) => Errno::EFAULT,
        Refused::OutOfMemory => Errno::ENOMEM,
    }
}
