//! What the kernel runs once it stands, and what it reports at the end.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use kernmm::cache::FileId;
use kernmm::mm::FileRef;
use kernmm::report::{self, FileName};

use spin::Mutex;

use crate::platform::MACHINE;
use crate::process::{self, Block, Process, Waited};
use crate::sched::{self, Event, TICKS_PER_SECOND};
use crate::thread::Thread;
use crate::{INFO, checks, cpu, disk, fs, memory, platform, print, println, qemu};

/// The file on the disk that has all programs; which one it is, its first argument says.
const PROGRAMS: &str = "programs";

/// What is run if the command line does not say, after the programs that any system has: those that try this kernel hard.
const HARD: [&str; 3] = ["demand", "shoot_down", "stress"];

/// The first thread of the kernel's own.
pub fn run() {
    let info = INFO.get().expect("the firmware's words come first");
    if info.has_option("no-shootdown") {
        platform::switch_shoot_down_off();
    }
    let has_disk = fs::mount();
    start(disk::serve);
    start(flush);
    #[cfg(feature = "check")]
    memory::prepare_check();
    let before = settled();
    println!("init: after boot: {before:?}");
    let all_well = if has_disk {
        let all_well = run_programs(info.value("run="));
        fs::sync();
        all_well
    } else {
        println!("init: no disk with a file system; nothing is run");
        true
    };
    println!("# {} TLB shoot-downs", platform::shoot_downs());
    #[cfg(feature = "check")]
    println!("init: memory was recounted {} times when idle", sched::check::count());
    print_state();
    compare(before);
    println!("done");
    qemu::exit(if all_well { qemu::Exit::Success } else { qemu::Exit::ProgramFailed })
}

fn start(work: fn()) {
    sched::start(Thread::of_kernel(work).expect("there is room for the kernel's threads"));
}

/// How many pages are written each time, at most: 1 MiB, so that programs get at the disk in between.
const FLUSHED: u32 = 256;

/// Writes what is newer than the disk, and frees files that nobody uses and that have no name, a few times a second.
fn flush() {
    static NEVER: Event = Event::new();
    let vm = memory::vm();
    loop {
        vm.write_back(FLUSHED);
        vm.reap();
        fs::forget_unused();
        NEVER.wait(NEVER.listen(), 0, Some(sched::ticks() + TICKS_PER_SECOND / 5));
    }
}

/// Runs programs, one after the other; whether all ended well.
fn run_programs(chosen: Option<&str>) -> bool {
    let names: Vec<&str> = match chosen {
        Some(names) => names.split(',').collect(),
        None => kernmm_programs::NAMES.iter().copied().chain(HARD).collect(),
    };
    let mut all_well = true;
    for name in names {
        all_well &= match process::spawn(PROGRAMS, &[name]) {
            Ok(id) => wait_for(name, id),
            Err(errno) => {
                println!("init: {name} cannot be run: {errno}");
                false
            }
        };
    }
    all_well
}

/// Waits for a program, and says how it ended and what it cost; whether it ended well.
fn wait_for(name: &str, id: u32) -> bool {
    let ended = process::wait(process::KERNEL, Some(id), Block::Yes);
    match ended {
        Ok(Waited::Ended(_, status)) if status & 0x7f == 0 => {
            println!("init: {name} exited with {}", status >> 8)
        }
        Ok(Waited::Ended(_, status)) => println!("init: {name} was ended by signal {}", status & 0x7f),
        Ok(Waited::None) | Err(_) => println!("init: {name} is lost"),
    }
    matches!(ended, Ok(Waited::Ended(_, 0)))
}

/// The memory of the last program, as it was at its end.
static LAST_MAPS: Mutex<String> = Mutex::new(String::new());

/// What a program cost, before it goes: pages that were there at most, of those that are mapped; faults.
pub fn note_end(process: &Process) {
    // All its memory is there, and nothing runs: time for a recount.
    #[cfg(feature = "check")]
    {
        static NEVER: Event = Event::new();
        let (before, end) = (sched::check::count(), sched::ticks() + 20 * TICKS_PER_SECOND);
        while sched::check::count() == before {
            assert!(sched::ticks() < end, "memory is not recounted: a CPU is never idle");
            NEVER.wait(NEVER.listen(), 0, Some(sched::ticks() + TICKS_PER_SECOND / 10));
        }
    }
    let (resident, mapped) = process.space().with(|mm| (mm.shared().peak_resident(), mm.totals().total_vm));
    let name = process.name.lock().clone();
    let (minor, major) =
        (process.faults.minor.load(Ordering::Relaxed), process.faults.major.load(Ordering::Relaxed));
    println!(
        "# {name}[{}]: {minor} minor faults, {major} major faults, at most {resident} pages in memory, {mapped} mapped",
        process.id
    );
    let by_cpu = process.faults.by_cpu.iter().take(cpu::online()).map(|count| count.load(Ordering::Relaxed));
    let asked = platform::shoot_downs() - process.shoot_downs_before;
    println!("# of {name}: faults by CPU {:?}, {asked} shoot-downs", by_cpu.collect::<Vec<_>>());
    let mut text = String::new();
    let names = Names(fs::open_names());
    if process.space().with(|mm| report::maps(&mut text, mm, &names)).is_ok() {
        *LAST_MAPS.lock() = text;
    }
}

/// Prints the state of memory, as Linux's `/proc` has it.
fn print_state() {
    let frames = memory::frames().expect("memory is there");
    for (name, report) in [
        ("buddyinfo", frames.buddyinfo()),
        ("zoneinfo", frames.zoneinfo()),
        ("vmstat", report::vmstat(&MACHINE, frames.phys(), memory::counters())),
        ("meminfo", report::meminfo(&MACHINE, frames.phys(), memory::counters())),
    ] {
        println!("---- {name}");
        print!("{report}");
    }
    println!("---- maps of the last program");
    print!("{}", core::mem::take(&mut *LAST_MAPS.lock()));
}

/// The names of the disk's files, for maps.
struct Names(Vec<(FileId, u64, String)>);

impl report::Names for Names {
    fn file(&self, file: FileRef) -> FileName<'_> {
        let known = self.0.iter().find(|(id, ..)| *id == file.file);
        let (inode, path) =
            known.map_or((0, "/dev/zero (deleted)"), |(_, inode, path)| (*inode, path.as_str()));
        FileName { major: 3, minor: 0, inode, path }
    }

    fn special(&self, _: u32) -> &str {
        "[special]"
    }
}

/// Frames by owner, once all that ends has ended.
fn settled() -> memory::Owners {
    (0..20).for_each(|_| sched::yield_now());
    memory::owners()
}

fn compare(before: memory::Owners) {
    // Threads that have ended leave their stacks when their CPU runs something else.
    let mut now = settled();
    for _ in 0..50 {
        if now == before {
            break;
        }
        static NEVER: Event = Event::new();
        NEVER.wait(NEVER.listen(), 0, Some(sched::ticks() + 1));
        now = settled();
    }
    println!("init: in the end: {now:?}");
    checks::frames_are_back(before, now);
}
