//! Page tables, faults, fork and exit beside others: `cargo bench --bench fault`.
//!
//! Ranges of tables against two crates, and the paths of faults against the running Linux, in ns a page; contenders take turns, and the tables
//! show medians over the rounds. Times are of the processor, so that others on the machine disturb least.
//!
//! What is not alike is said where the figures are printed, and here:
//! - **Linux pays for a trap or a system call and for its TLB, we do not**: its column says what the same work costs there in all.
//! - Our address spaces are active on no CPU, so nothing is ever flushed.
//! - "exit" is the end of an address space for us, and all that ends a process for Linux: the difference that its pages make is what is shown.
//! - Entries of ranges are as of memory in use, accessed and dirty; one line says what those cost that hardware may still note something in.
//!
//! After `--`: `--gate` makes a missed target an error, which it should on a quiet machine alone: the targets are ratios of a few tenths of a
//! nanosecond. `--ranges` measures ranges alone. Environment: `KERNMM_LONG=1` for a million pages and more rounds.

mod clock;
mod linux;
mod machine;
mod ours;
mod tables;

use kernmm::flags::MapFlags;
use ours::Life;
use std::env::{args, var_os};
use std::process::ExitCode;
use tables::Noted;

/// How much is measured.
struct Effort {
    rounds: usize,
    range_pages: u64,
    lives: &'static [u64],
    vmas: [u64; 2],
}

const SMOKE: Effort = Effort { rounds: 1, range_pages: 1 << 10, lives: &[1_000], vmas: [50, 100] };
const SHORT: Effort =
    Effort { rounds: 7, range_pages: 1 << 16, lives: &[1_000, 10_000, 100_000], vmas: [1_000, 11_000] };
const LONG: Effort = Effort {
    rounds: 15,
    range_pages: 1 << 16,
    lives: &[1_000, 10_000, 100_000, 1_000_000],
    vmas: [1_000, 11_000],
};

fn main() -> ExitCode {
    let (mut gate, mut effort, mut only_ranges) = (false, SMOKE, false);
    for arg in args().skip(1) {
        match arg.as_str() {
            "--bench" => effort = if var_os("KERNMM_LONG").is_some() { LONG } else { SHORT },
            "--gate" => gate = true,
            "--ranges" => only_ranges = true,
            _ => eprintln!("fault: {arg} means nothing here"),
        }
    }
    let most = effort.lives.iter().copied().max().unwrap_or(0);
    // What a life needs, its copies, and tables.
    let vm = machine::boot(most + most / 8 + (1 << 17));
    let mut targets = Targets::default();
    ranges(vm, &effort, &mut targets);
    if !only_ranges {
        lives(vm, &effort, &mut targets);
        others(vm, &effort, &mut targets);
    }
    if gate && targets.missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[derive(Default)]
struct Targets {
    missed: bool,
}

impl Targets {
    fn check(&mut self, name: &str, value: f64, goal: f64) {
        let holds = value <= goal;
        self.missed |= !holds;
        println!("target {name} {value:.3} <= {goal} {}", if holds { "ok" } else { "MISS" });
    }
}

type Vm = kernmm::memory::Vm<'static, machine::Mem, kernmm::table::X86_64>;

/// What the contenders for ranges do.
const CONTENDERS: &str = "\
kernmm: atomic entries, each table locked, entries in use counted, what is stale gathered for a flush; one way down a leaf table. Hardware has
noted use and writes in all entries before they are measured, so plain stores change them.
page_table_multiarch: plain entries, no lock; ranges by a cursor, a query from the root for each page.
x86_64: plain entries, no lock, no ranges: each page from the root.
floor: relaxed loads and stores of as many words, and nothing else.
The tables are in use on no CPU, so nothing is flushed; the frames lie one behind the other. All allocate their tables when they map, the floor
does not.";

fn ranges(vm: &'static Vm, effort: &Effort, targets: &mut Targets) {
    let pages = effort.range_pages;
    let (mut times, mut unsettled) = ([const { Vec::new() }; 4], vec![]);
    for _ in 0..effort.rounds {
        times[0].push(tables::ours(vm, pages, Noted::All));
        times[1].push(tables::multiarch(pages));
        times[2].push(tables::x86_64(pages));
        times[3].push(tables::floor(pages));
        unsettled.push(tables::ours(vm, pages, Noted::Nothing));
    }
    println!("{CONTENDERS}");
    println!("a range of {pages} pages, ns a page       kernmm  page_table_multiarch  x86_64  floor");
    for (step, name) in tables::STEPS.iter().enumerate() {
        let [ours, multiarch, x86_64, floor] =
            times.each_ref().map(|rounds| median(rounds.iter().map(|times| times[step]).collect()));
        println!("{name:<40}{ours:8.2}{multiarch:22.2}{x86_64:8.2}{floor:7.2}");
        targets.check(&format!("{name}/page_table_multiarch"), ours / multiarch, 0.2);
        targets.check(&format!("{name}/x86_64"), ours / x86_64, 0.125);
    }
    let [_, protect, _, unmap] = std::array::from_fn(|step| {
        median(unsettled.iter().map(|times: &tables::Times| times[step]).collect())
    });
    println!(
        "where hardware may note something yet, and each entry takes an exchange: protect {protect:.2}, unmap {unmap:.2}"
    );
}

fn lives(vm: &'static Vm, effort: &Effort, targets: &mut Targets) {
    type Field = (&'static str, fn(&Life) -> f64, Option<f64>);
    let fields: [Field; 6] = [
        ("anonymous write fault, with zeroing", |life| life.write_fault, Some(0.5)),
        ("anonymous read fault", |life| life.read_fault, None),
        ("copy-on-write fault", |life| life.copy_fault, None),
        ("fork", |life| life.fork, None),
        ("munmap", |life| life.munmap, None),
        ("exit", |life| life.exit, None),
    ];
    for &pages in effort.lives {
        let (mut own, mut host) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            own.push(ours::life(vm, pages));
            host.extend(linux::life(pages));
        }
        println!("{pages:>7} anonymous pages, ns a page          kernmm   Linux (with trap)");
        for (name, of, goal) in fields {
            let [ours, linux] = [&own, &host].map(|rounds| median(rounds.iter().map(of).collect()));
            println!("{name:<40}{ours:14.1}{linux:10.1}");
            if let (Some(goal), true) = (goal, pages == 100_000) {
                targets.check("anonymous fault/Linux", ours / linux, goal);
            }
        }
    }
}

fn others(vm: &'static Vm, effort: &Effort, targets: &mut Targets) {
    let pages = effort.range_pages;
    let (mut own, mut host) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        own.push(ours::file(vm, pages));
        host.extend(linux::file(pages));
    }
    println!("others, ns each                               kernmm   Linux (with trap)");
    println!("read of a file's page in memory, 16 at a fault{:8.1}{:10.1}", median(own), median(host));
    stored_files(vm, effort);
    fork_vmas(vm, effort, targets);
    // One mapping more, so that what is left of the measurements cannot be optimised away.
    std::hint::black_box(ours::map(&ours::process(vm), 1, MapFlags::PRIVATE));
}

/// Pages of a file that have to be read: ours are copied from memory by the store, Linux's come from a disk, whose time does not count.
fn stored_files(vm: &'static Vm, effort: &Effort) {
    let store: &'static ours::AtHand =
        Box::leak(Box::new(ours::AtHand::new(effort.range_pages / 8, clock::now)));
    let (mut own, mut host) = (Vec::new(), Vec::new());
    for round in 0..effort.rounds {
        own.push(ours::stored_file(vm, store, round as u64 + 1));
        host.extend(linux::stored_file(store.pages));
    }
    let of =
        |times: &[ours::Stored], field: fn(&ours::Stored) -> f64| median(times.iter().map(field).collect());
    let [cold, copy, warm] =
        [|t: &ours::Stored| t.cold, |t: &ours::Stored| t.copy, |t: &ours::Stored| t.warm]
            .map(|field| of(&own, field));
    let [linux_cold, linux_warm] =
        [|t: &ours::Stored| t.cold, |t: &ours::Stored| t.warm].map(|field| of(&host, field));
    println!("read of a file's page in its store, read ahead{cold:8.1}{linux_cold:10.1}");
    println!("  without the store, which copies the page    {:8.1}{linux_cold:10.1}", cold - copy);
    println!("read of that page in memory, 16 at a fault    {warm:8.1}{linux_warm:10.1}");
    println!("ratio file fault from a store/Linux {:.3}", cold / linux_cold);
    println!("ratio file fault from a store, without the copy/Linux {:.3}", (cold - copy) / linux_cold);
    println!("ratio file fault in memory/Linux {:.3}", warm / linux_warm);
    println!(
        "A file fault of ours pays for no trap. A disk of Linux copies by itself, and what it interrupts is not all counted."
    );
}

fn fork_vmas(vm: &'static Vm, effort: &Effort, targets: &mut Targets) {
    let [few, many] = effort.vmas;
    let (mut own, mut host) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let more = (many - few) as f64;
        own.push((ours::fork_vmas(vm, many) - ours::fork_vmas(vm, few)) / more);
        if let (Some(few), Some(many)) = (linux::fork_vmas(few), linux::fork_vmas(many)) {
            host.push((many - few) / more);
        }
    }
    let (own, host) = (median(own), median(host));
    println!("fork, a VMA with one page and one without     {own:8.1}{host:10.1}");
    targets.check("fork of a VMA/Linux", own / host, 0.5);
}
