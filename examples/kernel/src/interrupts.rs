//! Interrupts: the descriptor table, the vectors and what each does.

use core::arch::global_asm;
use core::ffi::c_char;

use spin::Once;

use crate::segments::{InterruptStack, KERNEL_CODE};
use crate::x86::{TableRegister, fault_address, load_idt, outb};
use crate::{apic, cpu};

global_asm!(include_str!("interrupts.s"), interrupt = sym interrupt);

unsafe extern "C" {
    safe static interrupt_entries: c_char;
}

/// A page fault.
const PAGE_FAULT: u64 = 14;
/// The first vector that is no fault of the running code.
const FIRST_DEVICE: u64 = 32;
/// Where the 8259 pair is moved to, out of the way of the faults; it stays masked.
const LEGACY_FIRST: u8 = 0x20;
const LEGACY_LAST: u64 = 0x2f;
/// Another CPU wants this one to look at its requests.
pub const KICK: u8 = 0xf0;
/// The local APIC took an interrupt back; there is nothing to acknowledge.
pub const SPURIOUS: u8 = 0xff;

/// What an entry in `interrupts.s` leaves on the stack, lowest address first.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// An interrupt gate: where to go, in which segment, on which stack.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Gate {
    low: u64,
    high: u64,
}

impl Gate {
    /// A gate of ring 0 that keeps interrupts out.
    fn new(entry: u64, stack: InterruptStack) -> Self {
        let low = entry & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | (stack as u64) << 32
            | 0x8e << 40
            | (entry >> 16 & 0xffff) << 48;
        Self { low, high: entry >> 32 }
    }
}

/// The table, one for all CPUs; their interrupt stacks differ.
static GATES: Once<[Gate; 256]> = Once::new();

/// Gives the running CPU the interrupt descriptor table; `segments::load` came before.
pub fn load() {
    let gates = GATES.call_once(|| {
        let entries = (&raw const interrupt_entries) as u64;
        core::array::from_fn(|vector| {
            let stack = match vector {
                2 | 8 | 18 => InterruptStack::Fatal,
                0..32 => InterruptStack::Exception,
                _ => InterruptStack::Device,
            };
            Gate::new(entries + 16 * vector as u64, stack)
        })
    });
    // SAFETY: the gates lead to the entries of interrupts.s, on stacks that `segments::load` has set.
    unsafe { load_idt(&TableRegister::of(gates)) };
}

/// Moves the two 8259 controllers to vectors of their own and masks all their lines.
///
/// Masked or not, they may raise a spurious interrupt, and at reset that would look like a fault.
pub fn silence_legacy_controllers() {
    let second = LEGACY_FIRST + 8;
    let initialise = [(0x20, 0x11), (0xa0, 0x11), (0x21, LEGACY_FIRST), (0xa1, second), (0x21, 4), (0xa1, 2)];
    let mode_and_masks = [(0x21, 1), (0xa1, 1), (0x21, 0xff), (0xa1, 0xff)];
    for (port, value) in initialise.into_iter().chain(mode_and_masks) {
        // SAFETY: every vector has an entry, wherever the controllers are moved to.
        unsafe { outb(port, value) };
    }
}

/// Every interrupt comes here, on a stack of its kind, with interrupts off.
extern "C" fn interrupt(frame: &mut Frame) {
    match frame.vector {
        vector if vector < FIRST_DEVICE => fault(frame),
        vector if vector == u64::from(KICK) => {
            cpu::kicked();
            apic::end_of_interrupt();
        }
        vector if vector == u64::from(SPURIOUS) || vector <= LEGACY_LAST => {}
        vector => panic!("interrupt with vector {vector:#x}, which nothing asked for"),
    }
}

/// The running code did what it must not.
fn fault(frame: &Frame) -> ! {
    const NAMES: [&str; 32] = [
        "divide error",
        "debug",
        "NMI",
        "breakpoint",
        "overflow",
        "bound range",
        "invalid opcode",
        "no device",
        "double fault",
        "coprocessor overrun",
        "invalid TSS",
        "segment not present",
        "stack fault",
        "general protection",
        "page fault",
        "15",
        "x87 error",
        "alignment check",
        "machine check",
        "SIMD error",
        "virtualization",
        "control protection",
        "22",
        "23",
        "24",
        "25",
        "26",
        "27",
        "hypervisor injection",
        "VMM communication",
        "security",
        "31",
    ];
    let name = NAMES[frame.vector as usize & 31];
    if frame.vector == PAGE_FAULT {
        panic!("{name} at address {:#x}, error {:#x}: {frame:#x?}", fault_address(), frame.error);
    }
    panic!("{name}, error {:#x}: {frame:#x?}", frame.error);
}
