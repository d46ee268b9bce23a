//! The console: a 16550 UART at COM1, `print!` and `println!`.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::x86::{inb, outb, without_interrupts};

/// The first I/O port of COM1.
const COM1: u16 = 0x3f8;
/// Line status, bit 5: the transmitter takes another byte.
const LINE_STATUS: u16 = COM1 + 5;

/// Keeps lines of different CPUs apart.
static CONSOLE: spin::Mutex<Uart> = spin::Mutex::new(Uart);
/// Set by a CPU that panics: it may have interrupted the holder of the lock, so it prints without it.
static BROKEN: AtomicBool = AtomicBool::new(false);

/// Sets up COM1: 115200 baud, 8 bits, no parity, one stop bit, FIFO on, no interrupts.
pub fn init() {
    for (register, value) in [(1, 0x00), (3, 0x80), (0, 0x01), (1, 0x00), (3, 0x03), (2, 0xc7), (4, 0x03)] {
        // SAFETY: the UART's registers reach no memory.
        unsafe { outb(COM1 + register, value) };
    }
}

/// From now on prints without taking the lock.
pub fn break_lock() {
    BROKEN.store(true, Ordering::Relaxed);
}

/// Prints; `print!` and `println!` come here.
pub fn print(text: fmt::Arguments<'_>) {
    let result = without_interrupts(|| {
        if BROKEN.load(Ordering::Relaxed) { Uart.write_fmt(text) } else { CONSOLE.lock().write_fmt(text) }
    });
    // The UART takes everything; an error can only come from a `Display` that fails on purpose.
    debug_assert!(result.is_ok());
}

/// The UART; a value of it adds nothing to the ports.
struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: reading the line status changes nothing.
            while unsafe { inb(LINE_STATUS) } & 0x20 == 0 {
                core::hint::spin_loop();
            }
            // SAFETY: the transmit register reaches no memory.
            unsafe { outb(COM1, byte) };
        }
        Ok(())
    }
}

/// Prints to the serial console.
#[macro_export]
macro_rules! print {
    ($($text:tt)*) => { $crate::serial::print(format_args!($($text)*)) };
}

/// Prints a line to the serial console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($text:tt)*) => { $crate::serial::print(format_args!("{}\n", format_args!($($text)*))) };
}
