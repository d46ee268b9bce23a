//! Boots a simulated machine with two nodes and two CPUs from a PC's memory map, and prints the reports that Linux would print.
//!
//! - It allocates and frees pages as recorded workloads did.
//! - It runs the course's programs, from ELF files on a disk that takes its time, counts their faults, and looks whether every frame is back
//!   afterwards.
//! - It performs the calls and the faults of recorded programs, compares every layout with Linux's, and prints their maps.
//!
//! ```text
//! cargo run --release --example machine [-- [-v] [RECORDING…]]
//! ```
//!
//! Without arguments the recordings are those of `tests/data/pagealloc`. With `-v` all reports of the machine, what the programs print, and the maps of the
//! recorded ones are printed too. A summary comes last.

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
use std::ffi::OsString;
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

/// What is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    /// The state of the free blocks, and the reports of one process.
    Short,
    /// All reports.
    Full,
}

fn main() -> Result<(), Box<dyn Error>> {
    let (flags, files): (Vec<_>, Vec<_>) = std::env::args_os().skip(1).partition(|arg| arg == "-v");
    let detail = if flags.is_empty() { Detail::Short } else { Detail::Full };
    let highmem = PhysAddr::new(HIGHMEM).ok_or("HIGHMEM begins beyond all memory")?;
    let machine = Machine::pc(RAM).nodes(2).cpus(2).highmem_from(highmem).build()?;
    let cpus = machine.all_cpus()?;
    let start = Instant::now();
    let memory = Memory::on(&machine)?;
    let mut summary = vec![format!("{} GiB booted in {} ms", RAM / GIB, start.elapsed().as_millis())];

    let boot = memory.buddyinfo().to_string();
    println!("/proc/buddyinfo after boot\n{boot}");
    for file in recordings(files)? {
        summary.push(run(&memory, &cpus, &Recording::read(&file)?, &boot)?);
    }
    if detail == Detail::Full {
        println!("\n/proc/pagetypeinfo\n{}", memory.pagetypeinfo());
        println!("/proc/zoneinfo\n{}", memory.zoneinfo());
        println!("/proc/vmstat\n{}", memory.vmstat());
        println!("/proc/meminfo\n{}", memory.meminfo());
        println!("{}", memory.mem_info());
    }
    drop(cpus);
    summary.extend(run_course(&machine, &memory, detail)?);
    for program in PROGRAMS {
        summary.push(run_program(program, detail)?);
    }
    println!("\nSummary");
    summary.iter().for_each(|line| println!("  {line}"));
    Ok(())
}

/// How often the disk is asked before it is done with a page or a few.
const LATENCY: Latency = Latency::Polls(20);

/// Runs the course's programs. No thread has claimed a CPU.
fn run_course<'m>(
    machine: &'m Machine,
    memory: &Memory<'m, Machine>,
    detail: Detail,
) -> Result<Vec<String>, Box<dyn Error>> {
    let disk = Disk::new(machine);
    let vm: Vm<'_, _> = on_boot_cpu(machine, || Vm::on(memory))??;
    let result = run_course_on(machine, memory, &disk, &vm, detail);
    on_boot_cpu(machine, || drop(vm))?;
    result
}

/// Runs them, the one with the persistent variable a second time, and answers with a line for each.
fn run_course_on<'a, 'm>(
    machine: &'m Machine,
    memory: &Memory<'m, Machine>,
    disk: &'a Disk<'m>,
    vm: &Vm<'a, Memory<'m, Machine>>,
    detail: Detail,
) -> Result<Vec<String>, Box<dyn Error>> {
    let before = on_boot_cpu(machine, || settled(memory, vm))?;
    let os = Os::new(vm, disk, ElfMachine::X86_64);
    disk.set_latency(LATENCY);
    let start = Instant::now();
    let mut last = os::Last::default();
    let mut lines = vec![];
    for name in kernmm_programs::NAMES.iter().chain(&["persistent"]) {
        let outcome = os.run(name);
        let faults = outcome.last.faults;
        let line = format!("{name}: {} faults without and {} with input", faults.minor, faults.major);
        if detail == Detail::Full {
            outcome.text.lines().for_each(|line| println!("  {line}"));
            println!("  ({line})\n");
        }
        lines.push(line);
        if outcome.status != 0 {
            return Err(format!("{name} ended with status {:#x}", outcome.status).into());
        }
        last = outcome.last;
    }
    let elapsed = start.elapsed();
    println!("\n/proc/persistent/maps\n{}\n/proc/persistent/smaps\n{}", last.maps, last.smaps);
    lines.push(format!(
        "these programs: {} requests to the disk, {} ms in all, every frame back",
        disk.operations(),
        elapsed.as_millis()
    ));
    let vmstat = on_boot_cpu(machine, || vm.vmstat().to_string())?;
    println!("\nFaults in /proc/vmstat");
    vmstat.lines().filter(|line| line.contains("fault")).for_each(|line| println!("{line}"));
    let after = on_boot_cpu(machine, || settled(memory, vm))?;
    println!("\n/proc/buddyinfo after the programs\n{after}");
    if after == before { Ok(lines) } else { Err(format!("before them it was\n{before}").into()) }
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

/// The recorded programs. The maps of the first are always printed.
const PROGRAMS: [&str; 3] = ["tar_c", "redis", "bash_pipe"];

/// Performs a recorded program's calls; a line that tells of it.
fn run_program(program: &str, detail: Detail) -> Result<String, Box<dyn Error>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/traces/{program}.txt.gz"));
    let mut maps = String::new();
    let outcome = layout::replay(&file.to_string_lossy(), |mm, names| {
        // Writing into a string does not fail.
        let _ = report::maps(&mut maps, mm, names);
    })?;
    if detail == Detail::Full || program == PROGRAMS[0] {
        println!("\n/proc/{program}/maps\n{maps}");
    }
    if !outcome.is_equal || !outcome.files.is_good() {
        return Err(format!("{program}: layout or pages differ from Linux's").into());
    }
    Ok(format!("{program}: every layout as Linux's, {} mappings at the end", maps.lines().count()))
}

/// The files named on the command line, or all that come with the source.
fn recordings(named: Vec<OsString>) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    if !named.is_empty() {
        return Ok(named.into_iter().map(PathBuf::from).collect());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pagealloc");
    let files = folder.read_dir().map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files = files.map(|file| Ok(file?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "gz"));
    files.sort();
    Ok(files)
}

/// Runs one recording, frees all that it left, and checks that the machine is as it was after boot; a line that tells of it.
fn run<'m>(
    memory: &Memory<'m, Machine>,
    cpus: &[CpuGuard<'m>],
    recording: &Recording,
    boot: &str,
) -> Result<String, Box<dyn Error>> {
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
    let line = format!(
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
    Ok(line)
}

/// Writes over the last progress line, where somebody can see it.
fn progress(line: &str) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let _ = write!(out, "\r{line:<70}\r");
    }
}
