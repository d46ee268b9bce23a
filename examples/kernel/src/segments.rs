//! Each CPU's stacks, task state segment and descriptor table.

use core::cell::UnsafeCell;

use crate::cpu::MAX_CPUS;
use crate::x86::{TableRegister, load_gdt, load_task_register};

/// The selector of the kernel's code.
pub const KERNEL_CODE: u16 = 0x08;
/// The selector of the kernel's data.
pub const KERNEL_DATA: u16 = 0x10;
/// The selector of the user's data, with its privilege; `sysret` wants it here.
pub const USER_DATA: u16 = 0x18 | 3;
/// The selector of the user's code, with its privilege; `sysret` wants it here.
pub const USER_CODE: u16 = 0x20 | 3;
/// The selector of the task state segment.
const TASK_STATE: u16 = 0x28;

/// Bytes of the stack that a CPU starts on.
pub const MAIN_STACK_BYTES: usize = 64 << 10;
/// Bytes of a stack that an interrupt switches to.
const INTERRUPT_STACK_BYTES: usize = 16 << 10;

/// The stacks that interrupts switch to: entries of the TSS's interrupt stack table.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum InterruptStack {
    /// Faults of the running code.
    Exception = 1,
    /// Devices and other CPUs.
    Device = 2,
    /// What may come at any time, even in the other two: NMI, double fault, machine check.
    Fatal = 3,
}

/// A CPU's stacks; the main one comes first, `boot.s` counts on it.
#[repr(C, align(4096))]
pub struct Stacks {
    main: [u8; MAIN_STACK_BYTES],
    interrupt: [[u8; INTERRUPT_STACK_BYTES]; 3],
}

/// A task state segment: in 64-bit mode, a table of stacks.
#[repr(C, packed(4))]
struct TaskState {
    reserved_0: u32,
    privilege_stacks: [u64; 3],
    reserved_1: u64,
    /// What the manual calls IST1 to IST7.
    interrupt_stacks: [u64; 7],
    reserved_2: [u16; 5],
    io_map: u16,
}

/// A CPU's descriptors and what they describe.
#[repr(C)]
struct Segments {
    descriptors: [u64; 7],
    task_state: TaskState,
}

/// Memory that one CPU reaches by raw pointers only.
#[repr(transparent)]
pub struct PerCpu<T>(UnsafeCell<[T; MAX_CPUS]>);

// SAFETY: CPU n alone uses element n.
unsafe impl<T: Send> Sync for PerCpu<T> {}

impl<T> PerCpu<T> {
    /// A pointer to the element of `cpu`.
    ///
    /// # Panics
    /// If there is no such CPU.
    fn element(&self, cpu: usize) -> *mut T {
        assert!(cpu < MAX_CPUS);
        self.0.get().cast::<T>().wrapping_add(cpu)
    }
}

const NO_STACKS: Stacks = Stacks { main: [0; MAIN_STACK_BYTES], interrupt: [[0; INTERRUPT_STACK_BYTES]; 3] };
const NO_SEGMENTS: Segments = Segments {
    descriptors: [0; 7],
    task_state: TaskState {
        reserved_0: 0,
        privilege_stacks: [0; 3],
        reserved_1: 0,
        interrupt_stacks: [0; 7],
        reserved_2: [0; 5],
        io_map: size_of::<TaskState>() as u16,
    },
};

/// The stacks; `boot.s` takes the main one.
pub static STACKS: PerCpu<Stacks> = PerCpu(UnsafeCell::new([NO_STACKS; MAX_CPUS]));
static SEGMENTS: PerCpu<Segments> = PerCpu(UnsafeCell::new([NO_SEGMENTS; MAX_CPUS]));

/// Gives the running CPU, which is number `cpu`, its segments and interrupt stacks.
///
/// # Safety
/// `cpu` must be the running CPU's number, and this its first call.
pub unsafe fn load(cpu: usize) {
    let stacks = STACKS.element(cpu);
    let segments = SEGMENTS.element(cpu);
    let mut new = NO_SEGMENTS;
    for stack in 0..3 {
        // SAFETY: an offset within the element; nothing is read.
        let base = unsafe { &raw const (*stacks).interrupt[stack] };
        new.task_state.interrupt_stacks[stack] = base.wrapping_add(1) as u64;
    }
    // SAFETY: an offset within the element; nothing is read.
    let task_state = unsafe { &raw const (*segments).task_state } as u64;
    let limit = (size_of::<TaskState>() - 1) as u64;
    new.descriptors = [
        0,
        0x00af_9b00_0000_ffff, // 64-bit code, ring 0
        0x00cf_9300_0000_ffff, // data, ring 0
        0x00cf_f300_0000_ffff, // data, ring 3
        0x00af_fb00_0000_ffff, // 64-bit code, ring 3
        // An available 64-bit TSS; its base is scattered over two words.
        limit | (task_state & 0x00ff_ffff) << 16 | 0x89 << 40 | (task_state >> 24 & 0xff) << 56,
        task_state >> 32,
    ];
    // SAFETY: this element is the running CPU's, which has not loaded it yet.
    unsafe { segments.write(new) };
    // SAFETY: an offset within the element; nothing is read.
    let table = TableRegister::of(unsafe { &raw const (*segments).descriptors });
    // SAFETY: the table was filled above, lives forever and has these two descriptors.
    unsafe { load_gdt(&table, KERNEL_CODE, KERNEL_DATA) };
    // SAFETY: the descriptor was filled above, with the TSS of this CPU alone.
    unsafe { load_task_register(TASK_STATE) };
}
