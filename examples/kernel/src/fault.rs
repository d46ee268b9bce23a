//! Faults of ring 3: what the hardware says becomes one call of kernmm, and what that answers a signal, if it must.

use core::sync::atomic::Ordering;

use kernmm::addr::VirtAddr;
use kernmm::fault::{Access, Resolved, Signal};
use kernmm::memory::Refused;

use crate::interrupts::{self, Frame};
use crate::process::Process;
use crate::signal::{self, SIGFPE, SIGILL, SIGSEGV};
use crate::{cpu, oom, println, sched};

/// Bits of a page fault's error code: the access was a store, an instruction fetch.
const STORE: u64 = 1 << 1;
const FETCH: u64 = 1 << 4;

/// A page fault of ring 3 at an address, with interrupts let in: the handler may wait for the disk.
pub fn page_fault(frame: &mut Frame, address: u64) {
    let access = match frame.error {
        error if error & FETCH != 0 => Access::Exec,
        error if error & STORE != 0 => Access::Write,
        _ => Access::Read,
    };
    let thread = sched::current();
    let process = thread.process().expect("a thread of ring 3 has a process");
    process.faults.by_cpu[cpu::id()].fetch_add(1, Ordering::Relaxed);
    match process.space().fault(VirtAddr::from(address), access) {
        Ok(Resolved::Minor) => _ = process.faults.minor.fetch_add(1, Ordering::Relaxed),
        Ok(Resolved::Major) => _ = process.faults.major.fetch_add(1, Ordering::Relaxed),
        // The access is made again, by whoever is left.
        Err(Refused::OutOfMemory) => oom::end_a_process(),
        Err(Refused::Signal(cause)) => refuse(frame, &process, cause, address),
    }
}

/// An access that nothing allows: a handler runs, or the process ends.
fn refuse(frame: &mut Frame, process: &Process, cause: Signal, address: u64) {
    let info = signal::Info { signal: cause.number(), code: cause.code() as i32, addr: address };
    if signal::deliver(frame, process, &info) {
        return;
    }
    let name = process.name.lock().clone();
    // As Linux's `show_signal_msg` and its shells put it.
    let what = if cause.number() == SIGSEGV { "segfault" } else { "bus error" };
    println!(
        "{name}[{}]: {what} at {address:x} ip {:x} sp {:x} error {:x}: {cause}",
        process.id, frame.rip, frame.rsp, frame.error
    );
    process.kill(cause.number());
}

/// Another exception of ring 3.
pub fn exception(frame: &mut Frame) {
    let thread = sched::current();
    let process = thread.process().expect("a thread of ring 3 has a process");
    let (signal, code) = match frame.vector {
        0 | 16 | 19 => (SIGFPE, 1),
        6 => (SIGILL, 2),
        // A non-canonical address, a privileged instruction: SI_KERNEL.
        _ => (SIGSEGV, 128),
    };
    if signal::deliver(frame, &process, &signal::Info { signal, code, addr: 0 }) {
        return;
    }
    let name = process.name.lock().clone();
    let what = interrupts::name_of(frame.vector);
    println!("{name}[{}]: {what} ip:{:x} sp:{:x} error:{:x}", process.id, frame.rip, frame.rsp, frame.error);
    process.kill(signal);
}
