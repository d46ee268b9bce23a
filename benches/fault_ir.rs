//! Instruction counts of faults, of fork and exit, and of calls on ranges: `cargo bench --bench fault_ir`, with valgrind and gungraun-runner.
//!
//! A count repeats exactly, so a limit on it is a gate. A frame filled or copied by the processor's own loop counts 512 instructions, and each
//! frame that is asked for before that 80. Locks and cache misses do not show here; `--bench fault` shows them.
#![expect(dead_code, reason = "the fault bench uses the rest of the shared modules")]

#[path = "fault/clock.rs"]
mod clock;
#[path = "fault/machine.rs"]
mod machine;
#[path = "fault/ours.rs"]
mod ours;

use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use kernmm::addr::{PAGE_SIZE_U64, VirtAddr};
use kernmm::fault::Access;
use kernmm::flags::{MapFlags, MremapFlags, Prot};
use kernmm::syscall::OpenMode;
use kernmm::table::HUGE_SIZE;
use machine::{Mem, Proc};
use ours::AtHand;

type File = kernmm::memory::File<'static, 'static, Mem>;

/// Pages of a run: two leaf tables, so that what a run costs once is lost among them.
const PAGES: u64 = 1024;

/// A process with pages at an address, made ready outside what is counted.
struct Ready {
    process: Proc,
    other: Option<Proc>,
    start: u64,
}

fn mapped() -> Ready {
    let vm = machine::boot(1 << 14);
    let process = ours::process(vm);
    let start = ours::map(&process, PAGES, MapFlags::PRIVATE);
    // The VMA's owner of anonymous pages and the tables above the leaves are there.
    let near = ours::map(&process, 1, MapFlags::PRIVATE);
    ours::touch(&process, near, 1, Access::Write);
    Ready { process, other: None, start }
}

fn written() -> Ready {
    let ready = mapped();
    ours::touch(&ready.process, ready.start, PAGES, Access::Write);
    ready
}

/// The same, where 2 MiB begin, and so many pages behind where 2 MiB begin, where they are to go.
fn to_move(pages_behind: u64) -> (Ready, u64) {
    let vm = machine::boot(1 << 14);
    let process = ours::process(vm);
    let near = ours::map(&process, 3 * PAGES, MapFlags::PRIVATE).next_multiple_of(HUGE_SIZE);
    let start = near + PAGES * PAGE_SIZE_U64;
    ours::touch(&process, start, PAGES, Access::Write);
    // The tables above the leaves are there, for what is moved too.
    let to = near - 4 * PAGES * PAGE_SIZE_U64 + pages_behind * PAGE_SIZE_U64;
    (Ready { process, other: None, start }, to)
}

fn shared() -> Ready {
    let ready = written();
    let child = ready.process.fork().expect("memory");
    Ready { other: Some(child), ..ready }
}

/// What a process of one VMA comes to whose end is counted.
fn whole() -> Proc {
    let vm = machine::boot(1 << 14);
    let process = ours::process(vm);
    let start = ours::map(&process, PAGES, MapFlags::PRIVATE);
    ours::touch(&process, start, PAGES, Access::Write);
    process
}

static STORE: AtHand = AtHand::new(PAGES, || 0.0);

/// A file that is mapped and whose pages are in memory, in no table of this process.
fn file_in_memory() -> Ready {
    let vm = machine::boot(1 << 14);
    let (reader, process) = (ours::process(vm), ours::process(vm));
    let [seen, start] =
        [&reader, &process].map(|process| ours::map_stored(process, &STORE, 1, Prot::READ | Prot::WRITE));
    ours::touch(&reader, seen, PAGES, Access::Read);
    Ready { process, other: Some(reader), start }
}

/// The same, and each page is mapped for reading.
fn file_that_was_read() -> Ready {
    let ready = file_in_memory();
    ours::touch(&ready.process, ready.start, PAGES, Access::Read);
    ready
}

/// The same, and each page was written through the mapping.
fn file_that_was_written() -> Ready {
    let ready = file_in_memory();
    ours::touch(&ready.process, ready.start, PAGES, Access::Write);
    ready
}

/// A file of which nothing is in memory, and the faults that come to one who reads all of it, page after page.
fn file_in_store() -> (Ready, Vec<VirtAddr>) {
    let map = || {
        let process = ours::process(machine::boot(1 << 14));
        let start = ours::map_stored(&process, &STORE, 1, Prot::READ);
        Ready { process, other: None, start }
    };
    let (other, ready) = (map(), map());
    let faulting = ours::faulting(&other.process, other.start, PAGES);
    let faults = faulting.iter().map(|page| VirtAddr::from(ready.start + page * PAGE_SIZE_U64)).collect();
    (ready, faults)
}

/// A file of so many pages that are all in memory, of which a few in between were written.
const RESIDENT: u64 = 4096;
const FEW: u64 = 4;
static LARGE: AtHand = AtHand::new(RESIDENT, || 0.0);

fn file_with_few_written() -> File {
    let vm = machine::boot(1 << 14);
    let file = vm.open_file(&LARGE, 1, OpenMode::ReadWrite).expect("a file");
    let mut page = [0; PAGE_SIZE_U64 as usize];
    for at in 0..RESIDENT {
        assert_eq!(file.read_at(at * PAGE_SIZE_U64, &mut page), Ok(page.len()));
    }
    for at in 0..FEW {
        assert_eq!(file.write_at((at * RESIDENT / FEW + 100) * PAGE_SIZE_U64, &[1; 16]), Ok(16));
    }
    assert!(vm.cache().stat(vm.source(), file.id()).is_ok_and(|stat| u64::from(stat.dirty) == FEW));
    file
}

/// What calls read and write: a file whose pages are in memory, and as much of a process's memory.
struct Called {
    file: File,
    process: Proc,
    start: VirtAddr,
    len: u64,
}

/// Bytes of the calls together.
const MOVED: u64 = 1 << 20;
/// Bytes of a call.
const CALL: u64 = 64 << 10;

fn file_to_call() -> Called {
    let vm = machine::boot(1 << 14);
    let process = ours::process(vm);
    let len = MOVED + PAGE_SIZE_U64;
    let start = ours::map(&process, len / PAGE_SIZE_U64, MapFlags::PRIVATE);
    ours::touch(&process, start, len / PAGE_SIZE_U64, Access::Write);
    let file = vm.open_file(&STORE, 1, OpenMode::ReadWrite).expect("a file");
    let mut page = [0; PAGE_SIZE_U64 as usize];
    for at in 0..MOVED / PAGE_SIZE_U64 {
        assert_eq!(file.read_at(at * PAGE_SIZE_U64, &mut page), Ok(page.len()));
    }
    Called { file, process, start: VirtAddr::from(start), len: MOVED }
}

/// The same, and the process's bytes begin in the middle of a page, in the middle of a word.
fn file_to_call_shifted() -> Called {
    let called = file_to_call();
    Called { start: called.start.checked_add(1001).expect("a page more is mapped"), ..called }
}

/// The same, and nothing of the file is in memory.
fn file_to_call_cold() -> Called {
    let called = file_to_call();
    let file = called.process.vm().open_file(&STORE, 2, OpenMode::ReadWrite).expect("a file");
    Called { file, ..called }
}

/// So many VMAs of one written page each.
const VMAS: u64 = 1024;

fn mapped_apart() -> Ready {
    let vm = machine::boot(1 << 14);
    let process = ours::process(vm);
    let start = ours::map_apart(&process, VMAS);
    Ready { process, other: None, start }
}

/// At most this many instructions.
fn in_all(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, instructions)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

/// At most this many instructions a page: about 3 % more than was measured.
fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    in_all(instructions * PAGES)
}

fn fault_all(ready: &Ready, access: Access) {
    for page in 0..PAGES {
        let at = VirtAddr::from(ready.start + page * PAGE_SIZE_U64);
        assert!(ready.process.fault(at, access).is_ok());
    }
}

#[library_benchmark]
#[bench::anonymous(args = (mapped()), config = at_most(2_120))]
#[bench::copy_on_write(args = (shared()), config = at_most(3_500))]
fn write(ready: Ready) -> Ready {
    fault_all(&ready, Access::Write);
    ready
}

#[library_benchmark]
#[bench::zeros(args = (mapped()), config = at_most(1_065))]
fn read(ready: Ready) -> Ready {
    fault_all(&ready, Access::Read);
    ready
}

#[library_benchmark]
#[bench::pages(args = (written()), config = at_most(297))]
fn fork(ready: Ready) -> (Ready, Option<Proc>) {
    let child = ready.process.fork().ok();
    (ready, child)
}

// Per VMA: one with a page, and the one of no page between it and the next.
#[library_benchmark]
#[bench::vmas(args = (mapped_apart()), config = at_most(3_450))]
fn fork_vmas(ready: Ready) -> (Ready, Option<Proc>) {
    let child = ready.process.fork().ok();
    (ready, child)
}

#[library_benchmark]
#[bench::pages(args = (written()), config = at_most(692))]
#[bench::dirty_file(args = (file_that_was_written()), config = at_most(347))]
fn munmap(ready: Ready) -> Ready {
    assert!(ready.process.munmap(ready.start, PAGES * PAGE_SIZE_U64).is_ok());
    ready
}

// Per VMA, as fork_vmas.
#[library_benchmark]
#[bench::vmas(args = (mapped_apart()), config = at_most(2_665))]
fn munmap_vmas(ready: Ready) -> Ready {
    assert!(ready.process.munmap(ready.start, 2 * VMAS * PAGE_SIZE_U64).is_ok());
    ready
}

// Each maps its window: sixteen pages that the cache has.
#[library_benchmark]
#[bench::pages(args = (file_in_memory()), config = at_most(272))]
fn file_read(ready: Ready) -> Ready {
    for window in (0..PAGES).step_by(16) {
        let at = VirtAddr::from(ready.start + window * PAGE_SIZE_U64);
        assert!(ready.process.fault(at, Access::Read).is_ok());
    }
    ready
}

// What is read from the store is copied from there, a word at a time, and read ahead: a fault is for more than one page.
#[library_benchmark]
#[bench::pages(args = (file_in_store()), config = at_most(3_450))]
fn file_cold((ready, faults): (Ready, Vec<VirtAddr>)) -> Ready {
    for at in faults {
        assert!(ready.process.fault(at, Access::Read).is_ok());
    }
    ready
}

// The first store to each page of a shared file: where nothing is mapped, and where it is mapped for reading.
#[library_benchmark]
#[bench::missing(args = (file_in_memory()), config = at_most(1_957))]
#[bench::protected(args = (file_that_was_read()), config = at_most(1_315))]
fn file_store(ready: Ready) -> Ready {
    fault_all(&ready, Access::Write);
    ready
}

// By a store that takes all at once: what is left is write-protecting the entries and keeping account of the pages.
#[library_benchmark]
#[bench::pages(args = (file_that_was_written()), config = at_most(1_680))]
fn file_write_back(ready: Ready) -> Ready {
    assert_eq!(ready.process.vm().write_back(u32::MAX), PAGES as u32);
    ready
}

// A few pages of a large file are newer than the store: clean ones are not looked at.
#[library_benchmark]
#[bench::few_of_many(args = (file_with_few_written()), config = in_all(17_100))]
fn fsync(file: File) -> File {
    assert_eq!(file.sync(), Ok(()));
    file
}

// A MiB by calls of 64 KiB: a page at a time by the processor's own loop, or a word at a time where the two sides lie differently in their pages.
#[library_benchmark]
#[bench::mib(args = (file_to_call()), config = in_all(500_000))]
#[bench::mib_shifted(args = (file_to_call_shifted()), config = in_all(2_270_000))]
fn read_call(called: Called) -> Called {
    for at in (0..called.len).step_by(CALL as usize) {
        let to = called.start.checked_add(at).expect("mapped");
        assert_eq!(called.file.read_to_user(&called.process, at, to, CALL), Ok(CALL));
    }
    called
}

#[library_benchmark]
#[bench::mib(args = (file_to_call()), config = in_all(648_000))]
#[bench::mib_shifted(args = (file_to_call_shifted()), config = in_all(2_701_000))]
#[bench::mib_cold(args = (file_to_call_cold()), config = in_all(932_000))]
fn write_call(called: Called) -> Called {
    for at in (0..called.len).step_by(CALL as usize) {
        let from = called.start.checked_add(at).expect("mapped");
        assert_eq!(called.file.write_from_user(&called.process, at, from, CALL), Ok(CALL));
    }
    called
}

#[library_benchmark]
#[bench::pages(args = (whole()), config = at_most(733))]
fn exit(process: Proc) {
    drop(process);
}

// The right to write goes from every page, and comes back.
#[library_benchmark]
#[bench::pages(args = (written()), config = at_most(137))]
fn mprotect(ready: Ready) -> Ready {
    for prot in [Prot::READ, Prot::READ | Prot::WRITE] {
        assert!(ready.process.mprotect(ready.start, PAGES * PAGE_SIZE_U64, prot).is_ok());
    }
    ready
}

// To where 2 MiB begin as they do here: each leaf table moves as one. And a page beside that: each entry moves. No CPU is asked to forget.
#[library_benchmark]
#[bench::tables(args = (to_move(0)), config = at_most(9))]
#[bench::pages(args = (to_move(1)), config = at_most(28))]
fn mremap((ready, to): (Ready, u64)) -> Ready {
    let (flags, len) = (MremapFlags::MAYMOVE | MremapFlags::FIXED, PAGES * PAGE_SIZE_U64);
    assert!(ready.process.mremap(ready.start, len, len, flags, to).is_ok());
    ready
}

library_benchmark_group!(
    name = faults_by_instructions,
    benchmarks = [
        write,
        read,
        file_read,
        file_cold,
        file_store,
        file_write_back,
        fsync,
        read_call,
        write_call,
        fork,
        fork_vmas,
        exit,
        mprotect,
        mremap,
        munmap,
        munmap_vmas
    ]
);

main!(library_benchmark_groups = faults_by_instructions);
