//! What one CPU finds taken out by another it says is gone: then no CPU may know it any more, though the other has not come to its flush.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --release --test shuttle_flush --target-dir target/shuttle`
//!
//! The first three fail if `TlbGather::finish_with` does not ask who else gathers, the second and third if `Entries` does not `begin_gather`, and the last one
//! without `forget_too`.
#![cfg(shuttle)]

#[path = "smp/schedules.rs"]
mod schedules;
mod smp;

use kernmm::fault::Signal;
use kernmm::flags::{Advice, MapFlags, Prot};
use kernmm::memory::Refused;
use kernmm::platform::hosted::Disk;
use kernmm::syscall::MmapArgs;
use shuttle::thread;

use schedules::{Machinery, Process, explore, on};
use smp::{AT, PAGE, enter, load, map, map_file, sound, store};

const PRIVATE: MapFlags = MapFlags::PRIVATE;
const SHARED: MapFlags = MapFlags::SHARED;

fn advise(process: &Process<'_, '_, '_>, advice: Advice) {
    process.madvise(AT, PAGE, advice as i32).unwrap();
}

/// Two CPUs give a page back, or one of them makes it a guard: what was in it is nowhere to be read when that call is over.
fn given_back_twice(vm: &Machinery<'_, '_>, becomes_guard: bool) {
    let process = Process::new(vm).unwrap();
    map(&process, AT, 1, PRIVATE);
    enter(&process);
    store(&process, AT, 7).unwrap();
    thread::scope(|scope| {
        let other = on(scope, 1, &process, || advise(&process, Advice::DontNeed));
        assert!(matches!(load(&process, AT), Ok(0 | 7)));
        if becomes_guard {
            advise(&process, Advice::GuardInstall);
            assert_eq!(load(&process, AT), Err(Refused::Signal(Signal::NotMapped)));
        } else {
            advise(&process, Advice::DontNeed);
            assert_eq!(load(&process, AT), Ok(0));
        }
        other.join().unwrap();
    });
    sound(vm, &[&process]);
}

/// A file is cut while a CPU maps something else where it was shown: what is stored there stays.
fn mapped_over_what_is_cut(vm: &Machinery<'_, '_>, _: &Disk<'_>) {
    let process = Process::new(vm).unwrap();
    let file = vm.memory_file(2 * PAGE).unwrap();
    map_file(&process, AT, 2, &file, SHARED);
    enter(&process);
    let second = AT + PAGE;
    store(&process, second, 7).unwrap();
    // The page table stays.
    map(&process, AT + 8 * PAGE, 1, PRIVATE);
    store(&process, AT + 8 * PAGE, 1).unwrap();
    thread::scope(|scope| {
        let other = on(scope, 1, &process, || file.truncate(0).unwrap());
        let (prot, flags) = (Prot::READ | Prot::WRITE, PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED);
        process.mmap(&MmapArgs { addr: AT, len: 2 * PAGE, prot, flags, file: Ok(None), offset: 0 }).unwrap();
        assert_eq!(load(&process, second), Ok(0), "what the file had");
        store(&process, second, 5).unwrap();
        other.join().unwrap();
        assert_eq!(load(&process, second), Ok(5), "a store was lost");
    });
    sound(vm, &[&process]);
}

/// A page that is written back is forbidden to be written meanwhile.
fn forbidden_while_written_back<'a>(vm: &Machinery<'a, '_>, disk: &'a Disk<'_>) {
    disk.put(3, &[1; PAGE as usize]);
    let process = Process::new(vm).unwrap();
    let file = vm.open_file(disk, 3, kernmm::syscall::OpenMode::ReadWrite).unwrap();
    map_file(&process, AT, 1, &file, SHARED);
    enter(&process);
    store(&process, AT, 7).unwrap();
    thread::scope(|scope| {
        let other = on(scope, 1, &process, || {
            vm.write_back(1);
        });
        process.mprotect(AT, PAGE, Prot::READ).unwrap();
        assert_eq!(store(&process, AT, 8), Err(Refused::Signal(Signal::Denied)));
        other.join().unwrap();
    });
    drop(process);
    drop(file);
    while vm.reap() != 0 {
        thread::yield_now();
    }
}

/// A file is cut whose page a process is giving back: nobody reads it afterwards.
fn cut_while_given_back(vm: &Machinery<'_, '_>, _: &Disk<'_>) {
    let process = Process::new(vm).unwrap();
    let file = vm.memory_file(PAGE).unwrap();
    map_file(&process, AT, 1, &file, SHARED);
    enter(&process);
    store(&process, AT, 7).unwrap();
    thread::scope(|scope| {
        let other = on(scope, 1, &process, || advise(&process, Advice::DontNeed));
        file.truncate(0).unwrap();
        assert_eq!(load(&process, AT), Err(Refused::Signal(Signal::NoPage)));
        other.join().unwrap();
    });
    sound(vm, &[&process]);
}

#[test]
fn what_was_given_back_by_two_is_read_by_neither() {
    explore(400, |vm, _| given_back_twice(vm, false));
    explore(400, |vm, _| given_back_twice(vm, true));
}

#[test]
fn what_is_stored_where_a_cut_file_was_shown_stays() {
    explore(400, mapped_over_what_is_cut);
}

#[test]
fn what_is_forbidden_beside_a_write_back_is_not_written() {
    explore(400, forbidden_while_written_back);
}

#[test]
fn what_is_cut_off_while_it_is_given_back_is_not_read() {
    explore(400, cut_while_given_back);
}
