//! A small x86-64 kernel on kernmm, to copy from. It boots in QEMU by PVH: `cargo run --release` in this folder.
//!
//! | file | what |
//! |---|---|
//! | `boot.s`, `boot.rs` | from the firmware to Rust, on every CPU; the first page tables |
//! | `pvh.rs` | what the firmware hands over: memory map, command line |
//! | `paging.rs` | the direct map of all RAM, slots for what is not to be in it |
//! | `acpi.rs` | CPUs and NUMA nodes |
//! | `cpu.rs`, `segments.rs`, `apic.rs`, `time.rs` | CPUs: numbers, stacks, starting them, kicking them, their timers |
//! | **`platform.rs`** | kernmm's hooks: the file to copy from |
//! | `memory.rs` | all RAM given to kernmm; kmalloc as the global allocator; virtual memory |
//! | `interrupts.s`, `interrupts.rs` | vectors and system calls, and what they do |
//! | `thread.rs`, `sched.rs`, `lock.rs` | threads, who runs where, what threads wait for |
//! | `process.rs`, `exec.rs`, `fault.rs`, `signal.rs`, `oom.rs` | processes: memory of kernmm's, faults, signals, the end |
//! | `syscall/` | Linux's calls |
//! | `disk.rs`, `layout.rs`, `fs.rs`, `files.rs` | a PIO disk, a small file system as kernmm's `BackingStore`, open files |
//! | `init.rs` | what the kernel runs, and what it reports at the end |
//! | `serial.rs`, `qemu.rs` | the console and the end of the run |
//! | `x86.rs`, `string.rs` | instructions without a name in Rust, C functions that Rust needs |
//! | `checks.rs`, `exercise.rs` | what the kernel tries on itself, and on kernmm |
//! | `user/` | the programs: a binary of its own, for ring 3 |
//!
//! Words on the kernel's command line (`cargo run --release -- --append "WORD ..."`):
//!
//! | word | |
//! |---|---|
//! | `panic`, `fault` | fail on purpose |
//! | `run=NAME,...` | run these programs only |
//! | `highmem=MEGABYTES` | the direct map ends there; RAM above is HIGHMEM |
//! | `no-shootdown` | other CPUs are not asked to forget translations, which goes wrong |
#![no_std]
#![no_main]

extern crate alloc;

mod acpi;
mod apic;
mod boot;
mod checks;
mod cpu;
mod disk;
mod exec;
mod exercise;
mod fault;
mod files;
mod fs;
mod init;
mod interrupts;
mod layout;
mod lock;
mod memory;
mod oom;
mod paging;
mod platform;
mod process;
mod pvh;
mod qemu;
mod sched;
mod segments;
mod serial;
mod signal;
mod string;
mod syscall;
mod thread;
mod time;
mod x86;

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use acpi::Acpi;
use kernmm::addr::Pfn;
use kernmm::report;
use paging::EarlyFrames;
use platform::MACHINE;
use pvh::StartInfo;
use spin::Once;
use thread::Thread;

/// What the firmware handed over.
pub static INFO: Once<StartInfo> = Once::new();

/// CPU 0 comes here from `boot.rs`; `start_info` is a physical address.
fn kernel_main(start_info: u64) -> ! {
    serial::init();
    checks::string_functions();
    // SAFETY: this is what the firmware left; the kernel has written to its own image only, which is not part of it.
    let info =
        unsafe { StartInfo::read(start_info) }.expect("the loader gives a PVH start info with a memory map");
    let info = INFO.call_once(|| info);
    println!("kernmm's example kernel");
    for range in info.ranges() {
        println!("pvh: {range}");
    }
    if info.ranges_left_out() > 0 {
        println!("pvh: {} more ranges left out", info.ranges_left_out());
    }
    let mut frames = EarlyFrames::behind_kernel(info.ranges());
    paging::map_ram(info.ranges(), &mut frames).expect("all RAM fits into the direct map");
    if let Some(megabytes) = info.number("highmem=") {
        paging::make_slots(&mut frames).expect("there is RAM for a page table");
        platform::limit_direct_map(Pfn::new(megabytes << 8).expect("so many megabytes have frames"));
    }
    println!("kernel: {}", frames.used());

    // SAFETY: the firmware's tables lie in ranges that are not usable, so nobody writes to them.
    let acpi = unsafe { Acpi::find(info.rsdp()) };
    print_nodes(&acpi);
    // SAFETY: the CPU that booted is number 0 and comes here once.
    unsafe { cpu::init(0) };
    x86::enable_interrupts();
    cpu::start_others(acpi.cpus(), info.ranges());
    paging::forget_low_half();
    x86::flush_tlb();
    for id in 0..cpu::online() {
        println!("cpu {id}: APIC id {}, node {}", cpu::apic_id(id), acpi.node_of_cpu(cpu::apic_id(id)));
    }
    for id in 1..cpu::online() {
        cpu::start_work(id, x86::flush_tlb);
        cpu::wait_for_work(id);
        kick_and_wait(id);
    }
    // SAFETY: the kernel uses its image and the early frames, of which no more are taken; the trampoline's page has served.
    unsafe { memory::init(info.ranges(), frames.used(), &acpi) };
    let phys = memory::phys().expect("built a line ago");
    exercise::run(phys);
    print!("{}", report::buddyinfo(&MACHINE, phys));
    checks::fail_on_request(info);
    time::init();
    sched::init();
    process::init();
    sched::begin();
    for id in 1..cpu::online() {
        cpu::start_work(id, sched::begin);
        cpu::wait_for_work(id);
    }
    sched::start(Thread::of_kernel(init::run).expect("there is room for the first thread"));
    cpu::idle()
}

/// The other CPUs come here from `boot.rs`.
fn secondary_main(id: usize) -> ! {
    // SAFETY: the number is the one that boot.s gave to this CPU, which comes here once.
    unsafe { cpu::init(id) };
    cpu::idle()
}

fn print_nodes(acpi: &Acpi) {
    for memory in acpi.memory() {
        println!(
            "acpi: node {}: [mem {:#018x}-{:#018x}]",
            memory.node,
            memory.base,
            memory.base + memory.len - 1
        );
    }
    for from in 0..acpi.nodes() {
        print!("acpi: distances of node {from}:");
        for to in 0..acpi.nodes() {
            print!(" {}", acpi.distance(from, to));
        }
        println!();
    }
}

/// Interrupts a CPU at work and waits until it has seen that.
fn kick_and_wait(id: usize) {
    cpu::start_work(id, checks::hold_registers_through_a_kick);
    while !checks::AWAITING_KICK.swap(false, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    cpu::kick(id);
    cpu::wait_for_work(id);
    println!("cpu {id}: handled a kick from CPU {}", cpu::id());
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    /// A panic inside of a panic only stops the CPU.
    static PANICKING: AtomicBool = AtomicBool::new(false);
    x86::disable_interrupts();
    if !PANICKING.swap(true, Ordering::Relaxed) {
        serial::break_lock();
        println!("\n{info}");
        qemu::exit(qemu::Exit::Panic);
    }
    x86::halt_forever()
}
