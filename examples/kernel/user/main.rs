//! The programs that the kernel runs: the course's, and those that try this kernel hard. One file on the disk; the first argument says which.
#![no_std]
#![no_main]

#[path = "../src/string.rs"]
mod string;
mod tests;

use core::arch::global_asm;
use core::ffi::CStr;
use core::fmt::{self, Write};
use core::panic::PanicInfo;

use kernmm_programs::{Calls, Ring3, System};

// The stack pointer is where the kernel left the vectors; Rust wants it aligned as after a call.
global_asm!(".globl start", "start:", "xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {main}", "ud2", main = sym main);

/// What `start` calls.
unsafe extern "C" fn main(stack: *const u64) -> ! {
    // SAFETY: the kernel left its vectors there.
    let system = unsafe { Ring3::at_start(stack) };
    let names = stack.wrapping_add(1);
    // SAFETY: the first argument's address stands behind their number.
    let name = unsafe { names.read() } as *const core::ffi::c_char;
    // SAFETY: the kernel was given a text, which ends with 0.
    let name = unsafe { CStr::from_ptr(name) }.to_str().unwrap_or("?");
    let status = tests::run(&system, name).or_else(|| kernmm_programs::run(&system, name));
    let status = status.unwrap_or_else(|| {
        say(&system, format_args!("{name}: no such program"));
        127
    });
    system.exit(status)
}

/// A line, put together before it is written.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let place = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

/// Prints a line.
pub fn say(system: &Ring3, text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 256], len: 0 };
    // What does not fit is cut off.
    let _ = line.write_fmt(text);
    line.len = line.len.min(255);
    line.bytes[line.len] = b'\n';
    let len = line.len + 1;
    let _ = system.write_bytes(1, &mut line.bytes[..len]);
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let system = Ring3::new();
    say(&system, format_args!("{info}"));
    system.exit(101)
}
