//! The local APIC of each CPU: acknowledges interrupts and sends them to other CPUs.

use crate::interrupts::{SPURIOUS, TIMER};
use crate::paging::{direct_map, make_uncached};
use crate::x86::{MSR_APIC_BASE, rdmsr, without_interrupts, wrmsr};

/// Bit 11 of IA32_APIC_BASE: enabled.
const ENABLED: u64 = 1 << 11;
/// The bits of IA32_APIC_BASE that are the address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Registers, as offsets in bytes.
const ID: usize = 0x20;
const TASK_PRIORITY: usize = 0x80;
const END_OF_INTERRUPT: usize = 0xb0;
const SPURIOUS_VECTOR: usize = 0xf0;
const COMMAND_LOW: usize = 0x300;
const COMMAND_HIGH: usize = 0x310;
const TIMER_VECTOR: usize = 0x320;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;

/// The timer counts every 16th cycle of its clock.
const DIVIDE_BY_16: u32 = 0b0011;
/// Bits of the timer's vector register: again and again, and not at all.
const PERIODIC: u32 = 1 << 17;
const MASKED: u32 = 1 << 16;

/// Bit 12 of the command register: the last command is not delivered yet.
const PENDING: u32 = 1 << 12;

/// What another CPU is told.
#[derive(Clone, Copy)]
pub enum Command {
    /// Take the interrupt with this vector.
    Interrupt(u8),
    /// Reset, and wait for `Startup`.
    Init,
    /// Start in real mode at this page (below 256).
    Startup(u8),
}

impl Command {
    /// The low half of the command register.
    fn bits(self) -> u32 {
        match self {
            Self::Interrupt(vector) => 0x4000 | u32::from(vector),
            Self::Init => 0x4500,
            Self::Startup(page) => 0x4600 | u32::from(page),
        }
    }
}

/// Makes the registers reachable; once, on the first CPU, before [`init`].
pub fn map() {
    make_uncached(base());
}

/// Enables the running CPU's APIC.
pub fn init() {
    // SAFETY: every 64-bit CPU has this register.
    let value = unsafe { rdmsr(MSR_APIC_BASE) };
    // SAFETY: enables the APIC where it is.
    unsafe { wrmsr(MSR_APIC_BASE, value | ENABLED) };
    write(TASK_PRIORITY, 0);
    write(SPURIOUS_VECTOR, 0x100 | u32::from(SPURIOUS));
}

/// Counts how far the timer gets while `wait` runs.
pub fn timer_counts(wait: impl FnOnce()) -> u32 {
    write(TIMER_DIVIDE, DIVIDE_BY_16);
    write(TIMER_VECTOR, MASKED | u32::from(TIMER));
    write(TIMER_INITIAL, u32::MAX);
    wait();
    u32::MAX - read(TIMER_CURRENT)
}

/// Makes the running CPU's timer interrupt it each time it has counted so far.
pub fn start_timer(counts: u32) {
    write(TIMER_DIVIDE, DIVIDE_BY_16);
    write(TIMER_VECTOR, PERIODIC | u32::from(TIMER));
    write(TIMER_INITIAL, counts);
}

/// The running CPU's APIC id.
pub fn id() -> u32 {
    read(ID) >> 24
}

/// Tells the APIC that the handler of its last interrupt is done.
pub fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// Sends a command to the CPU with the given APIC id (below 255). Waits for the delivery of the one before, which takes
/// some bus cycles and needs no help of the other CPU.
pub fn send(apic_id: u32, command: Command) {
    // The two halves must not be torn apart by a handler that sends as well.
    without_interrupts(|| {
        while read(COMMAND_LOW) & PENDING != 0 {
            core::hint::spin_loop();
        }
        write(COMMAND_HIGH, apic_id << 24);
        write(COMMAND_LOW, command.bits());
    });
}

/// The physical address of the registers, the same on every CPU.
fn base() -> u64 {
    // SAFETY: every 64-bit CPU has this register.
    unsafe { rdmsr(MSR_APIC_BASE) & ADDRESS }
}

fn read(register: usize) -> u32 {
    // SAFETY: the APIC's page is mapped without caching (`map`); its registers are aligned words.
    unsafe { direct_map::<u32>(base() + register as u64).read_volatile() }
}

fn write(register: usize, value: u32) {
    // SAFETY: as for `read`; what is written here reaches no memory.
    unsafe { direct_map::<u32>(base() + register as u64).write_volatile(value) }
}
