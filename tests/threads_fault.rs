//! Real threads, a CPU each, in address spaces that change under them: what they read is what they, or nobody, wrote, signals come only where they must, and in the end
//! every count is right and nothing is missing. The machine's TLBs are stale until they are flushed, and end the run if a frame goes too early.
//!
//! `KERNMM_LONG=1` runs fifty times as long.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use kernmm::addr::VirtAddr;
use kernmm::fault::{Access, Attempt, Fault, Signal};
use kernmm::flags::{MapFlags, Prot};
use kernmm::memory::{Memory, Process, Refused, User, Vm};
use kernmm::mm::{FileKind, MmError};
use kernmm::platform::CpuId;
use kernmm::platform::hosted::{Disk, Latency, Machine};
use kernmm::syscall::{MapFile, MmapArgs, OpenMode};

const PAGE: u64 = 4096;
const AT: u64 = 0x10_0000_0000;
const RW: Prot = Prot::READ.union(Prot::WRITE);
const CPUS: u32 = 3;

type Proc<'v, 'a, 'm> = Process<'v, 'a, Memory<'m, Machine>>;
type Machinery<'a, 'm> = Vm<'a, Memory<'m, Machine>>;

fn rounds(short: u32) -> u32 {
    if std::env::var_os("KERNMM_LONG").is_some() { short * 50 } else { short }
}

/// Runs a test on a machine of three CPUs, and looks afterwards whether all frames are back.
fn on_machine(test: impl FnOnce(&Machine, &Machinery<'_, '_>)) {
    let machine = Machine::pc(24 << 20).cpus(CPUS as usize).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let free = || {
        memory.phys().drain_all(&memory.pin());
        memory.phys().free_pages_total()
    };
    let before = free();
    test(&machine, &vm);
    assert_eq!(free(), before, "frames were lost");
    memory.check().unwrap();
}

/// Runs `work` on CPUs 1 and 2 while `main` runs on the first; `stop` is set when that has ended.
fn beside(
    machine: &Machine,
    process: &Proc<'_, '_, '_>,
    main: impl FnOnce(),
    work: impl Fn(u32, &AtomicBool) + Sync,
) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for cpu in 1..CPUS {
            let (work, stop) = (&work, &stop);
            scope.spawn(move || {
                let _cpu = machine.cpu(CpuId(cpu)).unwrap();
                work(cpu, stop);
                // The CPU goes away; it must not go with the process's tables in its hands.
                process.deactivate();
            });
        }
        main();
        stop.store(true, SeqCst);
    });
}

fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

fn fixed(process: &Proc<'_, '_, '_>, addr: u64, pages: u64, flags: MapFlags) {
    let flags = flags | MapFlags::ANONYMOUS | MapFlags::FIXED;
    let args = MmapArgs { addr, len: pages * PAGE, prot: RW, flags, file: Ok(None), offset: 0 };
    process.mmap(&args).unwrap();
}

fn file_at(process: &Proc<'_, '_, '_>, addr: u64, pages: u64, file: MapFile) {
    let flags = MapFlags::SHARED | MapFlags::FIXED;
    let args = MmapArgs { addr, len: pages * PAGE, prot: RW, flags, file: Ok(Some(file)), offset: 0 };
    process.mmap(&args).unwrap();
}

#[test]
fn faults_run_beside_calls_that_change_other_vmas() {
    on_machine(|machine, vm| {
        let process = Process::new(vm).unwrap();
        let other = AT + 0x100_0000;
        let main = || {
            for round in 0..rounds(200) {
                fixed(&process, other, 8, MapFlags::PRIVATE);
                User::new(&process).store_u32(at(other + 3 * PAGE), round).unwrap();
                process.mprotect(other + 2 * PAGE, 2 * PAGE, Prot::READ).unwrap();
                process.munmap(other + PAGE, 5 * PAGE).unwrap();
                process.munmap(other, 8 * PAGE).unwrap();
            }
        };
        beside(machine, &process, main, |cpu, stop| {
            let (user, start) = (User::new(&process), AT + u64::from(cpu) * 0x10_0000);
            let mut round = 0;
            while !stop.load(SeqCst) {
                fixed(&process, start, 4, MapFlags::PRIVATE);
                for page in 0..4 {
                    assert_eq!(user.load_u32(at(start + page * PAGE)), Ok(0), "not a page of zeros");
                    user.store_u32(at(start + page * PAGE), cpu << 24 | round).unwrap();
                }
                for page in 0..4 {
                    assert_eq!(user.load_u32(at(start + page * PAGE)), Ok(cpu << 24 | round));
                }
                process.madvise(start, 2 * PAGE, 4).unwrap();
                assert_eq!(user.load_u32(at(start + PAGE)), Ok(0));
                round += 1;
            }
        });
        process.with(|mm| mm.check()).unwrap();
    });
}

#[test]
fn an_access_waits_for_no_call() {
    on_machine(|machine, vm| {
        let process = Process::new(vm).unwrap();
        fixed(&process, AT, 1, MapFlags::PRIVATE);
        User::new(&process).store_u32(at(AT), 7).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let loads = || {
            let _cpu = machine.cpu(CpuId(1)).unwrap();
            tell.send(User::new(&process).load_u32(at(AT))).unwrap();
            process.deactivate();
        };
        thread::scope(|scope| {
            let loaded = process.with_mut(|_| {
                scope.spawn(loads);
                told.recv_timeout(Duration::from_secs(20))
            });
            assert_eq!(loaded, Ok(Ok(7)), "the load waits for who changes the address space");
        });
    });
}

#[test]
fn threads_that_fault_on_one_page_get_one_page() {
    on_machine(|machine, vm| {
        let process = Process::new(vm).unwrap();
        let arrived = AtomicU32::new(0);
        let rounds = rounds(100);
        let touch = |cpu: u32| {
            let user = User::new(&process);
            for round in 0..rounds {
                // All begin a round together, each with a word of its own in the page.
                arrived.fetch_add(1, SeqCst);
                while arrived.load(SeqCst) < (round + 1) * CPUS {
                    thread::yield_now();
                }
                let word = at(AT + u64::from(round) * PAGE + u64::from(cpu) * 8);
                user.store_u32(word, round + 1).unwrap();
                assert_eq!(user.load_u32(word), Ok(round + 1), "a store was lost");
            }
        };
        fixed(&process, AT, u64::from(rounds), MapFlags::PRIVATE);
        beside(machine, &process, || touch(0), |cpu, _| touch(cpu));
        assert_eq!(process.with(|mm| mm.shared().resident()), u64::from(rounds));
        for (round, cpu) in (0..rounds).flat_map(|round| (0..CPUS).map(move |cpu| (round, cpu))) {
            let word = at(AT + u64::from(round) * PAGE + u64::from(cpu) * 8);
            assert_eq!(User::new(&process).load_u32(word), Ok(round + 1), "a store of CPU {cpu} was lost");
        }
    });
}

#[test]
fn an_access_beside_munmap_is_served_or_refused_and_never_sees_old_memory() {
    on_machine(|machine, vm| {
        let process = Process::new(vm).unwrap();
        let served = AtomicU32::new(0);
        let main = || {
            // On a busy machine the others may come late.
            for round in 0..rounds(20_000) {
                if round >= rounds(200) && served.load(SeqCst) > 0 {
                    break;
                }
                fixed(&process, AT, 2, MapFlags::PRIVATE);
                thread::yield_now();
                process.munmap(AT, 2 * PAGE).unwrap();
            }
        };
        beside(machine, &process, main, |cpu, stop| {
            let (user, word) = (User::new(&process), at(AT + u64::from(cpu) * 8));
            while !stop.load(SeqCst) {
                match user.load_u32(word) {
                    // Only this thread writes here; 7 may have been written to this mapping or not yet.
                    Ok(0 | 7) => served.fetch_add(1, SeqCst),
                    Err(Refused::Signal(Signal::NotMapped)) => {
                        // Lets the one go on that waits for the lock which refusals take.
                        thread::yield_now();
                        0
                    }
                    other => panic!("{other:?}"),
                };
                match user.store_u32(word, 7) {
                    Ok(()) | Err(Refused::Signal(Signal::NotMapped)) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        assert!(served.load(SeqCst) > 0, "no access met a mapping");
        assert_eq!(process.with(|mm| (mm.map_count(), mm.shared().resident())), (0, 0));
    });
}

#[test]
fn a_child_of_a_process_that_writes_meanwhile_has_memory_that_stands_still() {
    on_machine(|machine, vm| {
        let parent = Process::new(vm).unwrap();
        fixed(&parent, AT, 4, MapFlags::PRIVATE);
        let main = || {
            for _ in 0..rounds(30) {
                let child = parent.fork().unwrap();
                let user = User::new(&child);
                let look = || [1, 2].map(|cpu| user.load_u32(at(AT + cpu * PAGE)).unwrap());
                let seen = look();
                thread::yield_now();
                user.store_u32(at(AT), 1).unwrap();
                assert_eq!(look(), seen, "a child saw what its parent wrote later");
                child.with(|mm| mm.check()).unwrap();
            }
        };
        beside(machine, &parent, main, |cpu, stop| {
            let (user, word) = (User::new(&parent), at(AT + u64::from(cpu) * PAGE));
            let mut count = 0;
            while !stop.load(SeqCst) {
                assert_eq!(user.load_u32(word), Ok(count), "a store was lost, or a child's was seen");
                count += 1;
                user.store_u32(word, count).unwrap();
                assert_eq!(user.load_u32(at(AT)), Ok(0));
            }
        });
    });
}

#[test]
fn an_access_beside_truncation_is_served_or_a_bus_error() {
    on_machine(|machine, vm| {
        let (process, file) = (Process::new(vm).unwrap(), vm.memory_file(4 * PAGE).unwrap());
        file_at(&process, AT, 4, file.map_file());
        let main = || {
            for _ in 0..rounds(100) {
                file.truncate(0).unwrap();
                thread::yield_now();
                file.truncate(4 * PAGE).unwrap();
            }
        };
        beside(machine, &process, main, |cpu, stop| {
            let (user, word) = (User::new(&process), at(AT + u64::from(cpu) * PAGE));
            while !stop.load(SeqCst) {
                match user.load_u32(word) {
                    Ok(0 | 9) | Err(Refused::Signal(Signal::NoPage)) => {}
                    other => panic!("{other:?}"),
                }
                match user.store_u32(word, 9) {
                    Ok(()) | Err(Refused::Signal(Signal::NoPage)) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        file.truncate(0).unwrap();
        assert_eq!(process.with(|mm| mm.shared().resident()), 0, "pages beyond the end of the file");
    });
}

#[test]
fn what_one_cpu_may_no_longer_write_the_other_finds_unchanged() {
    on_machine(|machine, vm| {
        let process = Process::new(vm).unwrap();
        fixed(&process, AT, 1, MapFlags::PRIVATE);
        let main = || {
            let user = User::new(&process);
            for _ in 0..rounds(100) {
                process.mprotect(AT, PAGE, Prot::READ).unwrap();
                // From here on no CPU has a translation left that lets it write.
                let look = || [1, 2].map(|cpu| user.load_u32(at(AT + cpu * 8)).unwrap());
                let seen = look();
                (0..5).for_each(|_| thread::yield_now());
                assert_eq!(look(), seen, "written to through an old translation");
                process.mprotect(AT, PAGE, RW).unwrap();
            }
        };
        beside(machine, &process, main, |cpu, stop| {
            let (user, word) = (User::new(&process), at(AT + u64::from(cpu) * 8));
            let mut count = 0;
            while !stop.load(SeqCst) {
                count += 1;
                match user.store_u32(word, count) {
                    Ok(()) => assert_eq!(user.load_u32(word), Ok(count)),
                    // Lets the one go on that waits for the lock which refusals take.
                    Err(Refused::Signal(Signal::Denied)) => thread::yield_now(),
                    other => panic!("{other:?}"),
                }
            }
        });
    });
}

#[test]
fn a_fault_that_is_stalled_in_a_store_delays_no_other_fault_and_no_call() {
    let machine = Machine::pc(24 << 20).cpus(2).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let disk = Disk::new(&machine);
    disk.put(5, &[0x5a; 4 * PAGE as usize]);
    disk.set_latency(Latency::Ticks(10));
    let memory = Memory::on(&machine).unwrap();
    let vm: Machinery<'_, '_> = Vm::on(&memory).unwrap();
    let process = Process::new(&vm).unwrap();
    let file = vm.open_file(&disk, 5, OpenMode::ReadWrite).unwrap();
    assert_eq!(file.reference().kind, FileKind::Regular);
    file_at(&process, AT, 4, file.map_file());
    thread::scope(|scope| {
        let stalled = scope.spawn(|| {
            let _cpu = machine.cpu(CpuId(1)).unwrap();
            let loaded = User::new(&process).load_byte(at(AT));
            process.deactivate();
            loaded
        });
        while disk.under_way() == 0 {
            thread::yield_now();
        }
        // The other thread waits for the disk, and does so until its clock moves.
        let user = User::new(&process);
        assert!(matches!(process.handle_fault(at(AT), Access::Read, Attempt::First), Fault::Wait(_)));
        let other = AT + 0x10_0000;
        fixed(&process, other, 2, MapFlags::PRIVATE);
        user.store_u32(at(other), 3).unwrap();
        assert_eq!(user.load_u32(at(other)), Ok(3));
        process.munmap(other, PAGE).unwrap();
        // Even of the VMA that it waits in a part can go, and all of it can be protected.
        process.munmap(AT + PAGE, 3 * PAGE).unwrap();
        process.mprotect(AT, PAGE, Prot::READ).unwrap();
        assert_eq!(process.munmap(AT + 1, PAGE), Err(MmError::Unaligned));
        let child = process.fork().unwrap();
        child.munmap(AT, PAGE).unwrap();
        drop(child);
        assert!(!stalled.is_finished(), "nothing was stalled");
        disk.advance(10);
        while !stalled.is_finished() {
            // Reading ahead may have asked for more.
            disk.advance(10);
            thread::yield_now();
        }
        assert_eq!(stalled.join().unwrap(), Ok(0x5a));
    });
    process.with(|mm| mm.check()).unwrap();
}

#[test]
fn a_page_that_comes_after_its_mapping_has_gone_is_not_mapped() {
    let machine = Machine::pc(24 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let disk = Disk::new(&machine);
    disk.put(5, &[0x5a; PAGE as usize]);
    disk.set_latency(Latency::Ticks(10));
    let memory = Memory::on(&machine).unwrap();
    let vm: Machinery<'_, '_> = Vm::on(&memory).unwrap();
    let process = Process::new(&vm).unwrap();
    let file = vm.open_file(&disk, 5, OpenMode::ReadWrite).unwrap();
    file_at(&process, AT, 1, file.map_file());
    let Fault::Wait(_) = process.handle_fault(at(AT), Access::Read, Attempt::First) else {
        panic!("the page was there")
    };
    // Another mapping takes its place while it is on its way.
    fixed(&process, AT, 1, MapFlags::PRIVATE);
    disk.advance(10);
    let user = User::new(&process);
    assert_eq!(user.load_byte(at(AT)), Ok(0));
    process.munmap(AT, PAGE).unwrap();
    assert_eq!(process.handle_fault(at(AT), Access::Read, Attempt::First), Fault::Signal(Signal::NotMapped));
    file_at(&process, AT, 1, file.map_file());
    assert_eq!(user.load_byte(at(AT)), Ok(0x5a));
}
