//! Calls about processes, threads, signals and time.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use kernmm::error::Errno;

use super::{Answer, Call};
use crate::process::{self, Block, ECHILD, Waited};
use crate::signal::{self, Action, SIGKILL, SIGNALS, SIGSEGV, is_users};
use crate::{exec, sched, thread, time};

/// Flags of clone.
const CLONE_VM: u64 = 0x100;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_SETTLS: u64 = 0x8_0000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
/// The signal that the parent gets at the end.
const CSIGNAL: u64 = 0xff;

/// Arguments of a program, and bytes of one, at most.
const MAX_ARGUMENTS: usize = 64;
const MAX_TEXT: usize = 4096;
/// Of all arguments and the environment together.
const MAX_ARGUMENT_BYTES: usize = 32 << 10;

pub fn fork(call: &Call<'_>) -> Answer {
    let mut frame = call.frame.clone();
    frame.rax = 0;
    let child = process::fork(&call.process, &frame, &call.thread);
    child.map(u64::from).map_err(|errno| errno.get())
}

/// A thread of the same process, or (without flags) a fork.
pub fn clone(call: &Call<'_>) -> Answer {
    let [flags, stack, parent_tid, child_tid, tls, _] = call.args;
    if flags & !CSIGNAL == 0 && stack == 0 {
        return fork(call);
    }
    if flags & (CLONE_VM | CLONE_THREAD) != CLONE_VM | CLONE_THREAD || stack == 0 {
        return Err(Errno::EINVAL.get());
    }
    let mut frame = call.frame.clone();
    (frame.rax, frame.rsp) = (0, stack);
    let id = thread::next_id();
    if flags & CLONE_PARENT_SETTID != 0 {
        call.write(parent_tid, &id.to_le_bytes())?;
    }
    if flags & CLONE_SETTLS != 0 && !is_users(tls) {
        return Err(Errno::EPERM.get());
    }
    let fs_base = if flags & CLONE_SETTLS != 0 { tls } else { call.thread.fs_base.load(Ordering::Relaxed) };
    let clear_at_end = if flags & CLONE_CHILD_CLEARTID != 0 { child_tid } else { 0 };
    call.process.begin_thread(id, &frame, fs_base, clear_at_end).map_err(|errno| errno.get())?;
    Ok(u64::from(id))
}

pub fn execve(call: &mut Call<'_>) -> Result<(), i32> {
    let [path, arguments, environment, ..] = call.args;
    let path = call.text(path, MAX_TEXT)?;
    let mut room = MAX_ARGUMENT_BYTES;
    let (arguments, environment) = (texts(call, arguments, &mut room)?, texts(call, environment, &mut room)?);
    let path = core::str::from_utf8(&path).map_err(|_| Errno::ENOENT.get())?;
    // Other threads would go on in a program that is gone. (They end even if the new one turns out to be none.)
    call.process.end_other_threads(call.thread.id).map_err(|errno| errno.get())?;
    process::leave_tables(&call.process);
    let frame =
        exec::exec(call.process.space(), path, &arguments, &environment).map_err(|errno| errno.get())?;
    *call.process.name.lock() = path.into();
    call.process.actions.lock().0 = [Action::default(); SIGNALS];
    call.process.note_first(call.thread.id);
    // What these point to was the old program's.
    call.thread.clear_at_end.store(0, Ordering::Relaxed);
    sched::set_fs_base(&call.thread, 0);
    *call.frame = frame;
    Ok(())
}

/// A vector of pointers to texts, which take away from how many bytes are allowed.
fn texts(call: &Call<'_>, vector: u64, room: &mut usize) -> Result<Vec<Vec<u8>>, i32> {
    let mut texts = Vec::new();
    if vector == 0 {
        return Ok(texts);
    }
    loop {
        let at = call.read_u64(vector.wrapping_add(8 * texts.len() as u64))?;
        if at == 0 {
            return Ok(texts);
        }
        if texts.len() == MAX_ARGUMENTS {
            return Err(E2BIG);
        }
        let text = call.text(at, MAX_TEXT)?;
        *room = room.checked_sub(text.len() + 1).ok_or(E2BIG)?;
        texts.try_reserve(1).map_err(|_| Errno::ENOMEM.get())?;
        texts.push(text);
    }
}

/// The arguments are too long: a number that kernmm has no use for.
const E2BIG: i32 = 7;

/// The wait status of who exits with a number.
fn exited(number: u64) -> u32 {
    (number as u32 & 0xff) << 8
}

/// Ends the thread, and with the last one the process.
pub fn exit(call: &Call<'_>) -> Answer {
    call.process.note_status(call.thread.id, exited(call.args[0]));
    call.thread.end_in_kernel();
    Ok(0)
}

pub fn exit_group(call: &Call<'_>) -> Answer {
    call.process.finish(exited(call.args[0]));
    Ok(0)
}

pub fn wait4(call: &Call<'_>) -> Answer {
    const WNOHANG: u64 = 1;
    let [which, status_at, options, ..] = call.args;
    let which = match which as i32 {
        -1 | 0 => None,
        id if id > 0 => Some(id as u32),
        _ => return Err(ECHILD),
    };
    let block = if options & WNOHANG != 0 { Block::No } else { Block::Yes };
    match process::wait(call.process.id, which, block)? {
        Waited::None => Ok(0),
        Waited::Ended(id, status) => {
            if status_at != 0 {
                call.write(status_at, &status.to_le_bytes())?;
            }
            Ok(u64::from(id))
        }
    }
}

pub fn sched_yield() -> Answer {
    sched::yield_now();
    Ok(0)
}

pub fn rt_sigaction(call: &Call<'_>) -> Answer {
    const SIGSTOP: u64 = 19;
    let [signal, new, old, size, ..] = call.args;
    let is_changed = new != 0;
    if size != 8
        || signal == 0
        || signal > SIGNALS as u64
        || is_changed && (signal == u64::from(SIGKILL) || signal == SIGSTOP)
    {
        return Err(Errno::EINVAL.get());
    }
    let mut bytes = [0; Action::BYTES];
    if is_changed {
        call.read(new, &mut bytes)?;
    }
    let before = {
        let mut actions = call.process.actions.lock();
        let place = &mut actions.0[signal as usize - 1];
        if is_changed { core::mem::replace(place, Action::from_bytes(bytes)) } else { *place }
    };
    if old == 0 { Ok(0) } else { call.write(old, &before.to_bytes()) }
}

pub fn rt_sigreturn(call: &mut Call<'_>) {
    if !signal::leave_handler(call.frame, &call.process) {
        call.process.kill(SIGSEGV);
    }
}

pub fn clock_gettime(call: &Call<'_>) -> Answer {
    let [_, at, ..] = call.args;
    let nanoseconds = time::nanoseconds();
    let (seconds, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    call.write(at, &seconds.to_le_bytes())?;
    call.write(at.wrapping_add(8), &rest.to_le_bytes())
}
