//! Calls about files.

use alloc::string::String;

use kernmm::addr::VirtAddr;
use kernmm::error::Errno;
use kernmm::memory::TransferError;
use kernmm::syscall::OpenMode;

use super::{Answer, Call};
use crate::files::{File, LENGTHS, Open, OpenFile, Writes};
use crate::fs::{self, Missing};
use crate::{oom, print};

/// Flags of open.
const WRITE_ONLY: u64 = 1;
const READ_WRITE: u64 = 2;
const CREATE: u64 = 0x40;
const EXCLUSIVE: u64 = 0x80;
const TRUNCATE: u64 = 0x200;
const APPEND: u64 = 0x400;
/// The longest path.
const MAX_PATH: usize = 256;

fn open_file(call: &Call<'_>) -> Result<alloc::sync::Arc<Open>, i32> {
    call.process.files.lock().get(call.args[0] as i32).ok_or(Errno::EBADF.get())
}

pub fn open(call: &Call<'_>) -> Answer {
    let [path, flags, ..] = call.args;
    let path = call.text(path, MAX_PATH)?;
    let path = core::str::from_utf8(&path).map_err(|_| Errno::ENOENT.get())?;
    let mode = match flags & 3 {
        WRITE_ONLY => OpenMode::WriteOnly,
        READ_WRITE => OpenMode::ReadWrite,
        _ => OpenMode::ReadOnly,
    };
    let missing = match flags & (CREATE | EXCLUSIVE) {
        0 | EXCLUSIVE => Missing::Refuse,
        CREATE => Missing::Create,
        _ => Missing::CreateNew,
    };
    let writes = if flags & APPEND != 0 { Writes::AtItsEnd } else { Writes::There };
    let (file, inode) = fs::open(path, mode, missing).map_err(|errno| errno.get())?;
    if flags & TRUNCATE != 0 && mode != OpenMode::ReadOnly {
        set_length(call, &file, 0)?;
    }
    let open = Open::File(OpenFile::new(file, inode, writes));
    call.process.files.lock().add(open).map(|fd| fd as u64).ok_or(EMFILE)
}

/// Too many descriptors: a number that kernmm has no use for.
const EMFILE: i32 = 24;
/// Not to be sought in: likewise.
const ESPIPE: i32 = 29;

pub fn close(call: &Call<'_>) -> Answer {
    let closed = call.process.files.lock().close(call.args[0] as i32);
    closed.map(|_| 0).ok_or(Errno::EBADF.get())
}

pub fn read(call: &Call<'_>) -> Answer {
    let [_, to, len, ..] = call.args;
    let open = open_file(call)?;
    let Open::File(open) = &*open else { return Ok(0) };
    let read = oom::retry(&call.process, || {
        let mut at = open.position();
        let read = open.file.read_to_user(call.process.space(), *at, VirtAddr::from(to), len)?;
        *at += read;
        Ok::<_, TransferError>(read)
    });
    read.map_err(|errno| errno.get())
}

pub fn write(call: &Call<'_>) -> Answer {
    let [_, from, len, ..] = call.args;
    let open = open_file(call)?;
    let Open::File(open) = &*open else { return write_console(call, from, len) };
    let written = oom::retry(&call.process, || {
        let mut at = open.position();
        let _changing = LENGTHS.write();
        if open.writes == Writes::AtItsEnd {
            *at = open.file.size()?;
        }
        let written = open.file.write_from_user(call.process.space(), *at, VirtAddr::from(from), len)?;
        *at += written;
        Ok::<_, TransferError>(written)
    });
    written.map_err(|errno| errno.get())
}

/// Prints; a line that fits into the buffer is not torn apart by others.
fn write_console(call: &Call<'_>, from: u64, len: u64) -> Answer {
    let mut buffer = [0; 512];
    let mut done = 0;
    while done < len {
        let here = (len - done).min(buffer.len() as u64) as usize;
        match call.read(from.wrapping_add(done), &mut buffer[..here]) {
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
            Ok(()) => print!("{}", String::from_utf8_lossy(&buffer[..here])),
        }
        done += here as u64;
    }
    Ok(done)
}

pub fn lseek(call: &Call<'_>) -> Answer {
    let [_, offset, whence, ..] = call.args;
    let open = open_file(call)?;
    let Open::File(open) = &*open else { return Err(ESPIPE) };
    let mut position = open.position();
    let base = match whence {
        0 => 0,
        1 => *position,
        2 => open.file.size().map_err(|error| error.errno().get())?,
        _ => return Err(Errno::EINVAL.get()),
    };
    let to = base.checked_add_signed(offset as i64).filter(|&to| to <= i64::MAX as u64);
    *position = to.ok_or(Errno::EINVAL.get())?;
    Ok(*position)
}

/// Linux's `struct stat`, as far as this file system fills it: number, kind, size, blocks.
pub fn fstat(call: &Call<'_>) -> Answer {
    const REGULAR: u32 = 0o100_644;
    const TERMINAL: u32 = 0o020_600;
    let open = open_file(call)?;
    let (inode, mode, size) = match &*open {
        Open::File(open) => (open.inode, REGULAR, open.file.size().map_err(|error| error.errno().get())?),
        Open::Console => (0, TERMINAL, 0),
    };
    let mut stat = [0; 144];
    stat[8..16].copy_from_slice(&inode.to_le_bytes());
    stat[16..24].copy_from_slice(&1_u64.to_le_bytes());
    stat[24..28].copy_from_slice(&mode.to_le_bytes());
    stat[48..56].copy_from_slice(&size.to_le_bytes());
    stat[56..64].copy_from_slice(&4096_u64.to_le_bytes());
    stat[64..72].copy_from_slice(&size.div_ceil(512).to_le_bytes());
    call.write(call.args[1], &stat)
}

pub fn unlink(call: &Call<'_>) -> Answer {
    let path = call.text(call.args[0], MAX_PATH)?;
    let path = core::str::from_utf8(&path).map_err(|_| Errno::ENOENT.get())?;
    fs::unlink(path).map(|()| 0).map_err(|errno| errno.get())
}

pub fn ftruncate(call: &Call<'_>) -> Answer {
    let open = open_file(call)?;
    let Open::File(open) = &*open else { return Err(Errno::EINVAL.get()) };
    if call.args[1] > i64::MAX as u64 {
        return Err(Errno::EINVAL.get());
    }
    set_length(call, &open.file, call.args[1])
}

fn set_length(call: &Call<'_>, file: &File, len: u64) -> Answer {
    let cut = oom::retry(&call.process, || {
        let _changing = LENGTHS.write();
        file.truncate(len)
    });
    cut.map(|()| 0).map_err(|errno| errno.get())
}
