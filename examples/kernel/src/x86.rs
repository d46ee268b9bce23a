//! The instructions that have no name in Rust, one function each.

use core::arch::asm;

/// IA32_APIC_BASE: where this CPU's local APIC lies.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_EFER: system calls, 64-bit mode, no-execute.
pub const MSR_EFER: u32 = 0xc000_0080;
/// IA32_STAR: the segments that `syscall` and `sysret` load.
pub const MSR_STAR: u32 = 0xc000_0081;
/// IA32_LSTAR: where `syscall` goes.
pub const MSR_LSTAR: u32 = 0xc000_0082;
/// IA32_FMASK: the flags that `syscall` clears.
pub const MSR_FMASK: u32 = 0xc000_0084;
/// IA32_FS_BASE: the address that `fs:` is relative to; a thread's own data.
pub const MSR_FS_BASE: u32 = 0xc000_0100;
/// IA32_GS_BASE: the address that `gs:` is relative to.
pub const MSR_GS_BASE: u32 = 0xc000_0101;
/// RFLAGS.IF: interrupts are let in.
const FLAG_INTERRUPTS: u64 = 1 << 9;

/// Writes a byte to an I/O port.
///
/// # Safety
/// The device behind `port` must not break memory safety when it gets `value`.
pub unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller vouches for the device.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

/// Reads a byte from an I/O port.
///
/// # Safety
/// The device behind `port` must not break memory safety when it is read.
pub unsafe fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: the caller vouches for the device.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Reads a model-specific register.
///
/// # Safety
/// `register` must exist.
pub unsafe fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the register exists; reading one changes nothing.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// `register` must exist and `value` must not break memory safety in it.
pub unsafe fn wrmsr(register: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller vouches for the register and its value.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack, preserves_flags));
    }
}

/// The physical address of this CPU's top page table.
pub fn page_table_root() -> u64 {
    let cr3: u64;
    // SAFETY: reading CR3 in ring 0 changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) }
    cr3 & 0x000f_ffff_ffff_f000
}

/// The address of the last page fault on this CPU.
pub fn fault_address() -> u64 {
    let cr2;
    // SAFETY: reading CR2 in ring 0 changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags)) }
    cr2
}

/// Forgets all translations of this CPU (the kernel maps no page as global).
pub fn flush_tlb() {
    // SAFETY: loading CR3 with what it holds only empties the TLB.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) }
}

/// Forgets this CPU's translation of the page at an address.
pub fn flush_page(address: u64) {
    // SAFETY: forgetting a translation breaks nothing: it is looked up again.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) }
}

/// Makes this CPU walk the page tables with their top at a physical address, and forget all translations.
///
/// # Safety
/// The tables must map the kernel as the current ones do, and stay for as long as the CPU walks them.
pub unsafe fn set_page_table_root(root: u64) {
    // SAFETY: the caller vouches for the tables.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) }
}

/// The time-stamp counter.
pub fn timestamp() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Reads as many words from an I/O port as `words` has room for.
///
/// # Safety
/// As for [`inb`].
pub unsafe fn read_words(port: u16, words: &mut [u16]) {
    // SAFETY: writes into the slice alone; the caller vouches for the device.
    unsafe {
        asm!("rep insw", in("dx") port, inout("rdi") words.as_mut_ptr() => _, inout("rcx") words.len() => _,
            options(nostack, preserves_flags));
    }
}

/// Writes words to an I/O port.
///
/// # Safety
/// As for [`outb`].
pub unsafe fn write_words(port: u16, words: &[u16]) {
    // SAFETY: reads the slice alone; the caller vouches for the device.
    unsafe {
        asm!("rep outsw", in("dx") port, inout("rsi") words.as_ptr() => _, inout("rcx") words.len() => _,
            options(nostack, preserves_flags));
    }
}

/// A table register's operand: the last byte's offset and the address.
#[repr(C, packed)]
pub struct TableRegister {
    limit: u16,
    base: u64,
}

impl TableRegister {
    /// Describes `table`.
    pub fn of<T>(table: *const T) -> Self {
        Self { limit: (size_of::<T>() - 1) as u16, base: table as u64 }
    }
}

/// Loads the global descriptor table and the segment registers.
///
/// # Safety
/// `table` must describe a valid table that is never moved, with 64-bit code at `code` and writable data at `data`.
pub unsafe fn load_gdt(table: &TableRegister, code: u16, data: u16) {
    // SAFETY: the caller vouches for the table; the far return goes to the next line, in the new code segment.
    unsafe {
        asm!(
            "lgdt [{table}]",
            "push {code:r}",
            "lea {next}, [rip + 2f]",
            "push {next}",
            "retfq",
            "2:",
            "mov ss, {data:x}",
            "mov ds, {data:x}",
            "mov es, {data:x}",
            table = in(reg) table, code = in(reg) u64::from(code), data = in(reg) data, next = out(reg) _,
        );
    }
}

/// Loads the task register.
///
/// # Safety
/// `selector` must name an available 64-bit TSS in the loaded table; it is never moved.
pub unsafe fn load_task_register(selector: u16) {
    // SAFETY: the caller vouches for the descriptor.
    unsafe { asm!("ltr {:x}", in(reg) selector, options(nostack, preserves_flags)) }
}

/// Loads the interrupt descriptor table.
///
/// # Safety
/// `table` must describe valid gates; it is never moved.
pub unsafe fn load_idt(table: &TableRegister) {
    // SAFETY: the caller vouches for the table.
    unsafe { asm!("lidt [{}]", in(reg) table, options(readonly, nostack, preserves_flags)) }
}

/// Whether this CPU lets interrupts in.
pub fn interrupts_enabled() -> bool {
    let flags: u64;
    // SAFETY: pushes and pops one word of the stack, and changes nothing.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) }
    flags & FLAG_INTERRUPTS != 0
}

/// Lets interrupts in; the IDT must be loaded (`interrupts::load`).
pub fn enable_interrupts() {
    // SAFETY: every vector has a handler that keeps the interrupted code's state.
    unsafe { asm!("sti", options(nostack)) }
}

/// Keeps interrupts out.
pub fn disable_interrupts() {
    // SAFETY: keeping interrupts out breaks nothing.
    unsafe { asm!("cli", options(nostack)) }
}

/// Runs `work` with interrupts kept out, then restores what was before.
pub fn without_interrupts<R>(work: impl FnOnce() -> R) -> R {
    let were_enabled = interrupts_enabled();
    disable_interrupts();
    let result = work();
    if were_enabled {
        enable_interrupts();
    }
    result
}

/// Lets interrupts in and sleeps until one comes; none is lost in between, for `sti` takes effect
/// one instruction late.
pub fn wait_for_interrupt() {
    // SAFETY: as for `enable_interrupts`.
    unsafe { asm!("sti", "hlt", options(nostack)) }
}

/// Stops this CPU for good.
pub fn halt_forever() -> ! {
    loop {
        disable_interrupts();
        // SAFETY: stopping breaks nothing.
        unsafe { asm!("hlt", options(nomem, nostack)) }
    }
}
