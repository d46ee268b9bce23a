//! Interrupts: the descriptor table, the vectors and what each does.

use core::arch::global_asm;
use core::ffi::c_char;
use core::mem::offset_of;

use spin::Once;

use crate::cpu::Cpu;
use crate::segments::{InterruptStack, KERNEL_CODE, KERNEL_DATA, USER_CODE, USER_DATA};
use crate::x86::{
    MSR_EFER, MSR_FMASK, MSR_LSTAR, MSR_STAR, TableRegister, enable_interrupts, fault_address, load_idt,
    outb, rdmsr, wrmsr,
};
use crate::{apic, cpu, fault, platform, sched, syscall, thread};

global_asm!(
    include_str!("interrupts.s"),
    interrupt = sym interrupt,
    thread_begins = sym thread::begins,
    kernel_stack = const offset_of!(Cpu, kernel_stack),
    user_stack = const offset_of!(Cpu, user_stack),
    user_code = const USER_CODE,
    user_data = const USER_DATA,
);

unsafe extern "C" {
    safe static interrupt_entries: c_char;
    safe static syscall_entry: c_char;
}

/// A page fault.
pub const PAGE_FAULT: u64 = 14;
/// The first vector that is no fault of the running code.
const FIRST_DEVICE: u64 = 32;
/// Where the 8259 pair is moved to, out of the way of the faults; it stays masked.
const LEGACY_FIRST: u8 = 0x20;
const LEGACY_LAST: u64 = 0x2f;
/// The local APIC's timer.
pub const TIMER: u8 = 0xe0;
/// Another CPU wants this one to look at its requests.
pub const KICK: u8 = 0xf0;
/// Another CPU wants this one to forget translations.
pub const TLB: u8 = 0xf1;
/// The local APIC took an interrupt back; there is nothing to acknowledge.
pub const SPURIOUS: u8 = 0xff;
/// What `interrupts.s` calls a system call; no vector of the CPU's.
const SYSCALL: u64 = 256;

/// EFER: system calls by `syscall`; pages that must not be executed.
const EFER_SYSCALL: u64 = 1 << 0;
const EFER_NO_EXECUTE: u64 = 1 << 11;
/// Flags that are clear in a system call: trap, interrupts, direction, privilege, nested task (with which `iretq` faults), alignment check.
const CLEARED_FLAGS: u64 = 1 << 8 | 1 << 9 | 1 << 10 | 3 << 12 | 1 << 14 | 1 << 18;

/// What an entry in `interrupts.s` leaves on the stack, lowest address first: all that a thread is.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Frame {
    pub sse: Sse,
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub flags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// The area of `fxsave`.
#[repr(C, align(16))]
#[derive(Clone)]
pub struct Sse(pub [u8; 512]);

impl core::fmt::Debug for Sse {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("..")
    }
}

impl Frame {
    /// A thread of ring 3 that is to begin at `rip`, all else zero, interrupts let in, floating point as Linux has it.
    pub fn of_user(rip: u64, rsp: u64) -> Self {
        let mut sse = Sse([0; 512]);
        sse.0[..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        sse.0[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        let (cs, ss) = (u64::from(USER_CODE), u64::from(USER_DATA));
        let (r15, r14, r13, r12, r11, r10, r9, r8, rbp) = (0, 0, 0, 0, 0, 0, 0, 0, 0);
        let (rdi, rsi, rdx, rcx, rbx, rax, vector, error) = (0, 0, 0, 0, 0, 0, 0, 0);
        let flags = 1 << 9 | 1 << 1;
        Self {
            sse,
            r15,
            r14,
            r13,
            r12,
            r11,
            r10,
            r9,
            r8,
            rbp,
            rdi,
            rsi,
            rdx,
            rcx,
            rbx,
            rax,
            vector,
            error,
            rip,
            cs,
            flags,
            rsp,
            ss,
        }
    }

    /// Makes the way back restore every register, for a frame that was changed: that of a system call keeps `rcx` and `r11` only by `iret`.
    pub fn restore_all(&mut self) {
        self.vector = 0;
    }
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
    let segments = u64::from(KERNEL_CODE) << 32 | u64::from(KERNEL_DATA | 3) << 48;
    let entry = (&raw const syscall_entry) as u64;
    // SAFETY: every 64-bit CPU has this register.
    let efer = unsafe { rdmsr(MSR_EFER) } | EFER_SYSCALL | EFER_NO_EXECUTE;
    for (register, value) in
        [(MSR_STAR, segments), (MSR_LSTAR, entry), (MSR_FMASK, CLEARED_FLAGS), (MSR_EFER, efer)]
    {
        // SAFETY: `syscall` goes to its entry in interrupts.s, with the segments that `segments::load` has set.
        unsafe { wrmsr(register, value) };
    }
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

/// Every interrupt and system call comes here with interrupts off: one of ring 3 on its thread's stack, another on a stack of its kind.
extern "C" fn interrupt(frame: &mut Frame) {
    let from_user = frame.cs & 3 != 0;
    match frame.vector {
        SYSCALL => {
            enable_interrupts();
            syscall::call(frame);
        }
        PAGE_FAULT if from_user => {
            let address = fault_address();
            enable_interrupts();
            fault::page_fault(frame, address);
        }
        vector if vector < FIRST_DEVICE && from_user && !matches!(vector, 2 | 8 | 18) => {
            enable_interrupts();
            fault::exception(frame);
        }
        vector if vector < FIRST_DEVICE => kernel_fault(frame),
        vector if vector == u64::from(TIMER) => {
            apic::end_of_interrupt();
            sched::tick();
        }
        vector if vector == u64::from(KICK) => {
            cpu::kicked();
            apic::end_of_interrupt();
        }
        vector if vector == u64::from(TLB) => {
            platform::asked_to_forget();
            apic::end_of_interrupt();
        }
        vector if vector == u64::from(SPURIOUS) || vector <= LEGACY_LAST => {}
        vector => panic!("interrupt with vector {vector:#x}, which nothing asked for"),
    }
    if from_user {
        thread::prepare_for_user();
    }
}

/// The kernel's code did what it must not.
fn kernel_fault(frame: &Frame) -> ! {
    let name = name_of(frame.vector);
    if frame.vector == PAGE_FAULT {
        panic!("{name} at address {:#x}, error {:#x}: {frame:#x?}", fault_address(), frame.error);
    }
    panic!("{name}, error {:#x}: {frame:#x?}", frame.error);
}

/// What a fault is called.
pub fn name_of(vector: u64) -> &'static str {
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
    NAMES[vector as usize & 31]
}
