//! Boots a simulated machine with two nodes and two CPUs from a PC's memory map, and prints the reports that Linux would print.
//!
//! - It allocates and frees pages as recorded workloads did.
//! - It runs the course's programs, from ELF files on a disk that takes its time, counts their faults, and looks whether every frame is back
//!   afterwards.
//! - It performs the calls and the faults of recorded programs, compares every layout with Linux's, and prints their maps.
//!
//! ```text
//! cargo run --release --example machine [-- RECORDING…]
//! ```
//!
//! Without arguments the recordings are those of `tests/data/pagealloc`.

#[path = "replay/common.rs"]
mod common;
#[path = "common/elf.rs"]
mod elf;
#[path = "replay/layout.rs"]
mod layout;
#[path = "common/os/mod.rs"]
mod os;
#[path = "replay/recording.rs"]
mod recording;
#[path = "replay/snapshot.rs"]
mod snapshot;
#[path = "replay/subject.rs"]
mod subject;
#[path = "common/workload.rs"]
mod workload;

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use kernmm::addr::PhysAddr;
use kernmm::memory::{Memory, Vm};
use kernmm::platform::hosted::{CpuGuard, Disk, Latency, Machine};
use kernmm::platform::{CpuId, Platform};
use kernmm::report;
use kernmm::syscall::ElfMachine;

use os::Os;
use recording::Recording;
use workload::Workload;

const GIB: u64 = 1 << 30;
const RAM: u64 = 8 * GIB;
/// Where the direct map ends, so that there is HIGHMEM too.
const HIGHMEM: u64 = 7 * GIB;

fn main() -> Result<(), Box<dyn Error>> {
    let highmem = PhysAddr::new(HIGHMEM).ok_or("HIGHMEM begins beyond all memory")?;
    let machine = Machine::pc(RAM).nodes(2).cpus(2).highmem_from(highmem).build()?;
    let cpus = machine.all_cpus()?;
    let start = Instant::now();
    let memory = Memory::on(&machine)?;
    println!("{} GiB booted in {} ms\n", RAM / GIB, start.elapsed().as_millis());

    let boot = memory.buddyinfo().to_string();
    println!("/proc/buddyinfo after boot\n{boot}");
    for file in recordings()? {
        run(&memory, &cpus, &Recording::read(&file)?, &boot)?;
    }
    println!("\n/proc/pagetypeinfo\n{}", memory.pagetypeinfo());
    println!("/proc/zoneinfo\n{}", memory.zoneinfo());
    println!("/proc/vmstat\n{}", memory.vmstat());
    println!("/proc/meminfo\n{}", memory.meminfo());
    println!("{}", memory.mem_info());
    drop(cpus);
    run_course(&machine, &memory)?;
    PROGRAMS.iter().try_for_each(|program| run_program(program))
}

/// How often the disk is asked before it is done with a page or a few.
const LATENCY: Latency = Latency::Polls(20);

/// Runs the course's programs. No thread has claimed a CPU.
fn run_course<'m>(machine: &'m Machine, memory: &Memory<'m, Machine>) -> Result<(), Box<dyn Error>> {
    let disk = Disk::new(machine);
    let vm: Vm<'_, _> = on_boot_cpu(machine, || Vm::on(memory))??;
    let result = run_course_on(machine, memory, &disk, &vm);
    on_boot_cpu(machine, || drop(vm))?;
    result
}

/// Runs them, the one with the persistent variable a second time, and prints what they print.
fn run_course_on<'a, 'm>(
    machine: &'m Machine,
    memory: &Memory<'m, Machine>,
    disk: &'a Disk<'m>,
    vm: &Vm<'a, Memory<'m, Machine>>,
) -> Result<(), Box<dyn Error>> {
    let before = on_boot_cpu(machine, || settled(memory, vm))?;
    let os = Os::new(vm, disk, ElfMachine::X86_64);
    disk.set_latency(LATENCY);
    let start = Instant::now();
    let mut last = os::Last::default();
    println!("The course's programs, on two CPUs and a disk");
    for name in kernmm_programs::NAMES.iter().chain(&["persistent"]) {
        let outcome = os.run(name);
        println!();
        outcome.text.lines().for_each(|line| println!("  {line}"));
        let faults = outcome.last.faults;
        println!("  ({name}: {} faults without and {} with input)", faults.minor, faults.major);
        if outcome.status != 0 {
            return Err(format!("{name} ended with status {:#x}", outcome.status).into());
        }
        last = outcome.last;
    }
    let elapsed = start.elapsed();
    println!("\n/proc/persistent/maps\n{}\n/proc/persistent/smaps\n{}", last.maps, last.smaps);
    println!("{} requests to the disk, {} ms in all", disk.operations(), elapsed.as_millis());
    let vmstat = on_boot_cpu(machine, || vm.vmstat().to_string())?;
    println!("\nFaults in /proc/vmstat");
    vmstat.lines().filter(|line| line.contains("fault")).for_each(|line| println!("{line}"));
    let after = on_boot_cpu(machine, || settled(memory, vm))?;
    println!("\n/proc/buddyinfo after the programs\n{after}");
    if after == before { Ok(()) } else { Err(format!("before them it was\n{before}").into()) }
}

/// Runs `work` as the first CPU.
fn on_boot_cpu<R>(machine: &Machine, work: impl FnOnce() -> R) -> Result<R, Box<dyn Error>> {
    let _cpu = machine.cpu(CpuId::BOOT)?;
    Ok(work())
}

/// The free blocks when nothing is under way, and no CPU has any for itself.
fn settled(memory: &Memory<'_, Machine>, vm: &Vm<'_, Memory<'_, Machine>>) -> String {
    while vm.reap() != 0 {
        memory.platform().relax();
    }
    memory.phys().drain_all(&memory.pin());
    memory.buddyinfo().to_string()
}

/// The recorded programs whose maps are printed.
const PROGRAMS: [&str; 3] = ["tar_c", "redis", "bash_pipe"];

/// Performs a program's calls, and prints its maps at the end.
fn run_program(program: &str) -> Result<(), Box<dyn Error>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/traces/{program}.txt.gz"));
    let mut maps = String::new();
    let equal = layout::replay(&file.to_string_lossy(), |mm, names| {
        // Writing into a string does not fail.
        let _ = report::maps(&mut maps, mm, names);
    })?;
    println!("\n/proc/{program}/maps\n{maps}");
    if equal { Ok(()) } else { Err(format!("{program}: a layout differs from Linux's").into()) }
}

/// The files named on the command line, or all that come with the source.
fn recordings() -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let named: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if !named.is_empty() {
        return Ok(named);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pagealloc");
    let files = folder.read_dir().map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files = files.map(|file| Ok(file?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "gz"));
    files.sort();
    Ok(files)
}

/// Runs one recording, frees all that it left, and checks that the machine is as it was after boot.
fn run<'m>(
    memory: &Memory<'m, Machine>,
    cpus: &[CpuGuard<'m>],
    recording: &Recording,
    boot: &str,
) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let mut workload = Workload::new(memory, cpus);
    for (at, &event) in recording.events.iter().enumerate() {
        workload.step(event)?;
        if at % 65536 == 0 {
            progress(&format!("{}: {} of {} events", recording.name, at, recording.events.len()));
        }
    }
    let free = (memory.phys().free_pages_total() * 4) >> 10;
    let outcome = workload.finish()?;
    let elapsed = start.elapsed();
    progress("");
    memory.phys().drain_all(&memory.pin());
    let restored = memory.buddyinfo().to_string() == boot;
    memory.phys().check(&memory.pin())?;
    println!(
        "{}: events {}, {free} MiB free at the end, failed {}, frees of older pages {}, {} ns an event, restored {}",
        recording.name,
        recording.events.len(),
        outcome.failed,
        outcome.older,
        elapsed.as_nanos() / recording.events.len().max(1) as u128,
        if restored { "yes" } else { "no" },
    );
    if !restored || outcome.allocated != outcome.freed {
        return Err(
            format!("{} left the machine in another state\n{}", recording.name, memory.buddyinfo()).into()
        );
    }
    Ok(())
}

/// Writes over the last progress line, where somebody can see it.
fn progress(line: &str) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let _ = write!(out, "\r{line:<70}\r");
    }
}
