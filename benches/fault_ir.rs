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
use kernmm::table::HUGE_SIZE;
use machine::Proc;
use ours::AtHand;

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

/// So many VMAs of one written page each.
const VMAS: u64 = 1024;

fn mapped_apart() -> Ready {
    let vm = machine::boot(1 << 14);
    let process = ours::process(vm);
    let start = ours::map_apart(&process, VMAS);
    Ready { process, other: None, start }
}

/// At most this many instructions a page: about 3 % more than was measured.
fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, instructions * PAGES)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
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
#[bench::pages(args = (file_in_store()), config = at_most(3_300))]
fn file_cold((ready, faults): (Ready, Vec<VirtAddr>)) -> Ready {
    for at in faults {
        assert!(ready.process.fault(at, Access::Read).is_ok());
    }
    ready
}

// The first store to each page of a shared file: where nothing is mapped, and where it is mapped for reading.
#[library_benchmark]
#[bench::missing(args = (file_in_memory()), config = at_most(1_957))]
#[bench::protected(args = (file_that_was_read()), config = at_most(1_257))]
fn file_store(ready: Ready) -> Ready {
    fault_all(&ready, Access::Write);
    ready
}

// By a store that takes all at once: what is left is write-protecting the entries and keeping account of the pages.
#[library_benchmark]
#[bench::pages(args = (file_that_was_written()), config = at_most(1_420))]
fn file_write_back(ready: Ready) -> Ready {
    assert_eq!(ready.process.vm().write_back(u32::MAX), PAGES as u32);
    ready
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
