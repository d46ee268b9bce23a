//! Entry: `boot.s` takes the CPUs from the firmware's mode to 64-bit code in the upper half; here is what it links to.

use core::arch::global_asm;
use core::ffi::c_char;

use crate::cpu::STARTING;
use crate::paging::TOP_ENTRY;
use crate::segments::{MAIN_STACK_BYTES, STACKS, Stacks};

global_asm!(
    include_str!("boot.s"),
    start = sym start,
    starting = sym STARTING,
    stacks = sym STACKS,
    stacks_bytes = const size_of::<Stacks>(),
    main_stack_bytes = const MAIN_STACK_BYTES,
    direct_map_entry = const TOP_ENTRY,
);

/// The first Rust code of every CPU, on its main stack: interrupts are off, the tables are those of `boot.s`.
///
/// `start_info` is the physical address of what the firmware hands over, on CPU 0 only.
extern "C" fn start(start_info: u32, cpu: u32) -> ! {
    match cpu {
        0 => crate::kernel_main(u64::from(start_info)),
        other => crate::secondary_main(other as usize),
    }
}

unsafe extern "C" {
    safe static kernel_start: c_char;
    safe static kernel_end: c_char;
    safe static ap_trampoline: c_char;
    safe static ap_trampoline_end: c_char;
}

/// How far above its physical address the kernel is linked; linker.ld has the same number, and `boot.s` the entries.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;

/// The physical range of the kernel's image: first byte, first byte after.
pub fn image() -> (u64, u64) {
    ((&raw const kernel_start) as u64 - KERNEL_BASE, (&raw const kernel_end) as u64 - KERNEL_BASE)
}

/// The code that a CPU runs first, to be copied into a page below 1 MiB.
pub fn trampoline() -> &'static [u8] {
    let start = (&raw const ap_trampoline).cast::<u8>();
    let end = (&raw const ap_trampoline_end).cast::<u8>();
    // SAFETY: boot.s defines both symbols around constant bytes in .rodata.
    unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
}
