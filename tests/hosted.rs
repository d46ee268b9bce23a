//! The simulated machine, through the public interface.

use std::process::Command;
use std::sync::Barrier;
use std::thread;

use kernmm::addr::{PAGE_SIZE, PageOrder, Pfn, PhysAddr};
use kernmm::flags::GfpFlags;
use kernmm::memory::Memory;
use kernmm::phys::KmapError;
use kernmm::platform::hosted::{ClaimError, KMAP_SLOTS, Machine, MachineError};
use kernmm::platform::{CpuId, Kick, MemoryKind, MemoryRange, Platform};

const MIB: u64 = 1 << 20;

fn address(raw: u64) -> PhysAddr {
    PhysAddr::new(raw).unwrap()
}

/// 48 MiB, of which the upper 16 MiB are HIGHMEM.
fn with_highmem() -> Machine {
    Machine::pc(48 * MIB).cpus(2).highmem_from(address(32 * MIB)).build().unwrap()
}

fn alloc_highmem(memory: &Memory<'_, Machine>) -> Pfn {
    let pfn = memory.alloc_pages(GfpFlags::HIGHUSER, PageOrder::ZERO).unwrap();
    assert!(memory.platform().direct_map(pfn).is_none(), "there is HIGHMEM, and it goes first");
    pfn
}

#[test]
fn a_cpu_is_one_threads_at_a_time() {
    let machine = Machine::pc(4 * MIB).cpus(2).build().unwrap();
    let boot = machine.cpu(CpuId::BOOT).unwrap();
    assert_eq!(machine.cpu(CpuId(2)).map(drop), Err(ClaimError::UnknownCpu));
    assert_eq!(machine.cpu(CpuId::BOOT).map(drop), Err(ClaimError::Busy), "not even twice by one thread");
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(machine.cpu(CpuId::BOOT).map(drop), Err(ClaimError::Busy));
            let second = machine.cpu(CpuId(1)).unwrap();
            assert_eq!(machine.pin().cpu(), second.id());
        });
    });
    drop(boot);
    thread::scope(|scope| {
        scope.spawn(|| machine.cpu(CpuId::BOOT).map(drop).unwrap());
    });
}

#[test]
fn a_thread_with_several_cpus_runs_as_one_of_them() {
    let machine = Machine::pc(4 * MIB).cpus(3).build().unwrap();
    let mut cpus = machine.all_cpus().unwrap();
    let here = || machine.pin().cpu().0;
    assert_eq!((here(), cpus[2].run(here), here()), (0, 2, 0));
    cpus[1].run(|| {
        assert_eq!((here(), cpus[2].run(here), here()), (1, 2, 1));
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cpus[0].run(|| panic!("unwinds through the switch"))
        }));
        assert!(unwound.is_err());
        assert_eq!(here(), 1);
    });
    drop(cpus.remove(0));
    assert_ne!(here(), 0, "the CPU given up was the one in use");
    assert_eq!(machine.run_on(CpuId(0), here), Ok(0), "claimed for as long");
    cpus.clear();
    assert_eq!(machine.run_on(CpuId(1), here), Ok(1));
    assert!(machine.cpu(CpuId(1)).is_ok());
}

#[test]
fn two_machines_in_one_thread_do_not_mix() {
    let first = Machine::pc(4 * MIB).cpus(2).build().unwrap();
    let second = Machine::pc(4 * MIB).cpus(2).build().unwrap();
    let (_a, _b) = (first.cpu(CpuId(1)).unwrap(), second.cpu(CpuId(0)).unwrap());
    for _ in 0..3 {
        assert_eq!((first.pin().cpu(), second.pin().cpu()), (CpuId(1), CpuId(0)));
    }
}

#[test]
fn a_cpu_that_nobody_runs_is_halted_until_the_pin_goes() {
    let machine = Machine::pc(4 * MIB).cpus(4).build().unwrap();
    let _boot = machine.cpu(CpuId(0)).unwrap();
    let second = machine.cpu(CpuId(1)).unwrap();
    let pin = machine.pin();
    assert_eq!(machine.kick(CpuId(1)), Kick::Halted, "this thread runs as another one of its CPUs");
    assert_eq!(machine.kick(CpuId(2)), Kick::Halted, "nobody has claimed it");
    assert_eq!(machine.kick(CpuId(2)), Kick::Halted, "and it stays so");
    assert_eq!(machine.cpu(CpuId(2)).map(drop), Err(ClaimError::Busy), "held by this thread's pin");
    let start = Barrier::new(2);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            start.wait();
            let third = machine.cpu(CpuId(2));
            third.is_ok()
        });
        start.wait();
        thread::sleep(std::time::Duration::from_millis(20));
        assert!(!waiting.is_finished(), "the CPU waits for us");
        drop(pin);
        assert!(waiting.join().unwrap());
    });
    drop(second);
}

#[test]
fn a_running_cpu_sees_a_kick_once() {
    let machine = Machine::pc(4 * MIB).cpus(2).build().unwrap();
    let (claimed, kicked) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _second = machine.cpu(CpuId(1)).unwrap();
            assert!(!machine.poll());
            claimed.wait();
            kicked.wait();
            assert!(machine.poll());
            assert!(!machine.poll());
        });
        let _boot = machine.cpu(CpuId(0)).unwrap();
        claimed.wait();
        let pin = machine.pin();
        assert_eq!(machine.kick(CpuId(1)), Kick::Sent);
        drop(pin);
        kicked.wait();
    });
}

#[test]
fn an_address_in_the_direct_map_leads_back_to_its_frame() {
    let machine = with_highmem();
    for raw in [0, 0x9f, 0x100, 0x1234, 0x1fff] {
        let pfn = Pfn::new(raw).unwrap();
        let address = machine.direct_map(pfn).unwrap();
        assert_eq!(machine.virt_to_pfn(address), Some(pfn));
        // SAFETY: the byte is in the frame.
        let last = unsafe { address.add(PAGE_SIZE - 1) };
        assert_eq!(machine.virt_to_pfn(last), Some(pfn));
    }
    assert_eq!(machine.virt_to_pfn(std::ptr::NonNull::from(&machine).cast()), None);
}

#[test]
fn ram_is_backed_when_it_is_touched() {
    let machine = Machine::pc(1 << 40).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let last = address((1 << 40) + (1 << 30) - 1).pfn();
    assert!(machine.direct_map(last).is_some());
    assert!(machine.direct_map(last.checked_add(1).unwrap()).is_none());
    assert!(machine.direct_map(address(0xa_0000).pfn()).is_none(), "a hole has no RAM");
    assert!(machine.direct_map(address(0xc000_0000).pfn()).is_none(), "nor has the PCI hole");
}

#[test]
fn a_machine_that_cannot_be_is_an_error() {
    let build = |machine: kernmm::platform::hosted::MachineBuilder| machine.build().map(drop);
    assert_eq!(build(Machine::pc(MIB).cpus(0)), Err(MachineError::BadCount));
    assert_eq!(build(Machine::pc(MIB).nodes(0)), Err(MachineError::BadCount));
    let range = MemoryRange { base: 1 << 52, len: 1 << 52, kind: MemoryKind::Usable };
    assert_eq!(build(Machine::with_map([range])), Err(MachineError::RangeTooHigh));
    let range = MemoryRange { base: 0, len: 1 << 51, kind: MemoryKind::Usable };
    assert_eq!(build(Machine::with_map([range])), Err(MachineError::NoHostMemory));
}

#[test]
fn highmem_keeps_its_bytes_while_it_is_out_of_reach() {
    let machine = with_highmem();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let frames: Vec<Pfn> = (0..40).map(|_| alloc_highmem(&memory)).collect();
    for (at, &pfn) in frames.iter().enumerate() {
        memory.write_frame(pfn, at * 100, &[at as u8; 96]).unwrap();
    }
    for (at, &pfn) in frames.iter().enumerate() {
        let mut bytes = [0xff; 96];
        memory.read_frame(pfn, at * 100, &mut bytes).unwrap();
        assert_eq!(bytes, [at as u8; 96]);
    }
    memory.copy_frame(frames[0], frames[39]).unwrap();
    let mut bytes = [0; 2];
    memory.read_frame(frames[0], 3900, &mut bytes).unwrap();
    assert_eq!(bytes, [39; 2]);
    memory.zero_frame(frames[39]).unwrap();
    memory.read_frame(frames[39], 3900, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 2]);
    assert_eq!(memory.read_frame(frames[0], PAGE_SIZE - 1, &mut bytes), Err(KmapError::OutOfBounds));
    assert_eq!(machine.kmap_leaks(), 0);
}

#[test]
fn two_cpus_with_one_frame_open_see_each_others_writes() {
    let machine = with_highmem();
    let cpus = machine.all_cpus().unwrap();
    let memory = Memory::on(&machine).unwrap();
    let pfn = alloc_highmem(&memory);
    let pin = memory.pin();
    let here = memory.kmap(&pin, pfn).unwrap();
    cpus[1].run(|| {
        let pin = memory.pin();
        let there = memory.kmap(&pin, pfn).unwrap();
        assert!(here.write(16, b"from CPU 0"));
        let mut bytes = [0; 10];
        assert!(there.read(16, &mut bytes) && &bytes == b"from CPU 0");
        assert!(there.write(32, b"from CPU 1"));
        assert!(here.read(32, &mut bytes) && &bytes == b"from CPU 1");
    });
}

#[test]
fn a_cpu_has_eight_slots_and_each_is_free_again() {
    let machine = with_highmem();
    let cpus = machine.all_cpus().unwrap();
    let memory = Memory::on(&machine).unwrap();
    let frames: Vec<Pfn> = (0..9).map(|_| alloc_highmem(&memory)).collect();
    let pin = memory.pin();
    let mut open: Vec<_> = frames[..8].iter().map(|&pfn| memory.kmap(&pin, pfn).unwrap()).collect();
    assert_eq!(memory.kmap(&pin, frames[8]).map(drop), Err(KmapError::NoSlot));
    cpus[1].run(|| memory.zero_frame(frames[8]).unwrap());
    drop(open.remove(3));
    assert_eq!(memory.phys().kmaps_in_use(&pin), KMAP_SLOTS - 1);
    assert!(memory.kmap(&pin, frames[8]).is_ok(), "given back out of order");
    drop(open);
    assert_eq!(memory.phys().kmaps_in_use(&pin), 0);
}

#[test]
fn a_slot_that_nobody_closes_is_counted() {
    let machine = with_highmem();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let pfn = alloc_highmem(&memory);
    {
        let pin = memory.pin();
        std::mem::forget(memory.kmap(&pin, pfn).unwrap());
        assert_eq!(machine.kmap_leaks(), 0, "it might still be closed");
    }
    assert_eq!(machine.kmap_leaks(), 1);
    assert_eq!(memory.phys().kmaps_in_use(&memory.pin()), 1);
    memory.zero_frame(pfn).unwrap();
    assert_eq!(machine.kmap_leaks(), 1, "the other slots are in order");
}

/// Runs a test of this binary in a process of its own, with the variable that lets it do the forbidden thing.
fn run_alone(test: &str) -> std::process::Output {
    let binary = std::env::current_exe().unwrap();
    Command::new(binary).args(["--exact", test, "--nocapture"]).env("TOUCH_HIGHMEM", "1").output().unwrap()
}

/// What must end the run: each is a test that does nothing unless it runs in a process of its own.
mod forbidden {
    use super::*;

    fn is_alone() -> bool {
        std::env::var_os("TOUCH_HIGHMEM").is_some()
    }

    fn stale_address() -> (Machine, *mut u8) {
        let machine = with_highmem();
        let stale = {
            let _boot = machine.cpu(CpuId::BOOT).unwrap();
            let memory = Memory::on(&machine).unwrap();
            let pfn = alloc_highmem(&memory);
            let pin = memory.pin();
            let address = machine.kmap(pin.cpu(), 5, pfn).unwrap().as_ptr();
            // SAFETY: the slot is open.
            unsafe { address.write(1) };
            machine.kunmap(pin.cpu(), 5);
            drop(pin);
            for _ in 0..20 {
                memory.zero_frame(pfn).unwrap();
            }
            address
        };
        (machine, stale)
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn read_after_kunmap() {
        if is_alone() {
            let (_machine, stale) = stale_address();
            println!("about to touch");
            // SAFETY: none; the process ends here.
            println!("survived: {}", unsafe { stale.read_volatile() });
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn write_after_kunmap() {
        if is_alone() {
            let (_machine, stale) = stale_address();
            println!("about to touch");
            // SAFETY: none; the process ends here.
            unsafe { stale.write_volatile(1) };
            println!("survived");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn write_beyond_the_frame() {
        if is_alone() {
            let machine = with_highmem();
            let boot = machine.cpu(CpuId::BOOT).unwrap();
            let memory = Memory::on(&machine).unwrap();
            let pfn = alloc_highmem(&memory);
            let address = machine.kmap(boot.id(), 0, pfn).unwrap().as_ptr();
            machine.kmap(boot.id(), 1, pfn).unwrap();
            println!("about to touch");
            // SAFETY: none; the process ends here.
            unsafe { address.wrapping_add(PAGE_SIZE).write_volatile(1) };
            println!("survived");
        }
    }

    #[test]
    fn open_an_open_slot() {
        if is_alone() {
            let machine = with_highmem();
            let boot = machine.cpu(CpuId::BOOT).unwrap();
            let pfn = address(40 * MIB).pfn();
            machine.kmap(boot.id(), 0, pfn).unwrap();
            println!("about to touch");
            machine.kmap(boot.id(), 0, pfn);
            println!("survived");
        }
    }

    #[test]
    fn close_a_closed_slot() {
        if is_alone() {
            let machine = with_highmem();
            let boot = machine.cpu(CpuId::BOOT).unwrap();
            println!("about to touch");
            machine.kunmap(boot.id(), 0);
            println!("survived");
        }
    }

    #[test]
    fn give_up_a_cpu_under_a_pin() {
        if is_alone() {
            let machine = with_highmem();
            let boot = machine.cpu(CpuId::BOOT).unwrap();
            let (pin, inner) = (machine.pin(), machine.pin());
            drop(pin);
            println!("about to touch");
            drop(boot);
            println!("survived {inner:?}");
        }
    }
}

#[test]
fn what_is_forbidden_ends_the_run() {
    let slots = ["open_an_open_slot", "close_a_closed_slot", "give_up_a_cpu_under_a_pin"];
    let touches = ["read_after_kunmap", "write_after_kunmap", "write_beyond_the_frame"];
    let touches = touches.into_iter().filter(|_| cfg!(target_os = "linux"));
    for test in slots.into_iter().chain(touches) {
        let output = run_alone(&format!("forbidden::{test}"));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("about to touch"), "{test} came to the point: {said}");
        assert!(!said.contains("survived") && !output.status.success(), "{test}: {said}");
    }
}
