//! The C functions that compiled Rust code calls by name: memcpy and its kin.
//!
//! They are written with string instructions rather than loops, since a compiler may turn a loop that copies into a call
//! of memcpy, and so into endless recursion.

use core::arch::asm;
use core::ffi::{c_char, c_int};

/// Copies `len` bytes between buffers that do not overlap.
///
/// # Safety
/// `from` must be readable and `to` writable for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: writes `len` bytes at `to` from `from`, which the caller vouches for; the direction flag is clear.
    unsafe {
        asm!(
            "rep movsq", "mov ecx, {tail:e}", "rep movsb",
            tail = in(reg) len & 7, inout("rcx") len >> 3 => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
    to
}

/// Copies `len` bytes between buffers that may overlap.
///
/// # Safety
/// `from` must be readable and `to` writable for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= len {
        // SAFETY: `to` is below `from`, or not inside it, so that copying upwards reads each byte before it is written.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: copies downwards from the last byte, within what the caller vouches for; `len` is above 0 here.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rcx") len => _,
            inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _,
            options(nostack)
        );
    }
    to
}

/// Fills `len` bytes with the low byte of `value`.
///
/// # Safety
/// `to` must be writable for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, value: c_int, len: usize) -> *mut u8 {
    let word = u64::from(value as u8) * 0x0101_0101_0101_0101;
    // SAFETY: writes `len` bytes at `to`, which the caller vouches for; the direction flag is clear.
    unsafe {
        asm!(
            "rep stosq", "mov ecx, {tail:e}", "rep stosb",
            tail = in(reg) len & 7, inout("rcx") len >> 3 => _, inout("rdi") to => _, in("rax") word,
            options(nostack, preserves_flags)
        );
    }
    to
}

/// Compares `len` bytes as unsigned numbers, the first difference deciding.
///
/// # Safety
/// `a` and `b` must be readable for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> c_int {
    let (above, below): (u8, u8);
    // SAFETY: reads at most `len` bytes from each, which the caller vouches for. `cmp` sets the flags to "equal" first,
    // for a count of 0 leaves them alone.
    unsafe {
        asm!(
            "cmp eax, eax", "repe cmpsb", "seta {above}", "setb {below}",
            above = out(reg_byte) above, below = out(reg_byte) below, out("eax") _,
            inout("rcx") len => _, inout("rsi") a => _, inout("rdi") b => _,
            options(readonly, nostack)
        );
    }
    c_int::from(above) - c_int::from(below)
}

/// Whether `len` bytes differ: 0 if not.
///
/// # Safety
/// `a` and `b` must be readable for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> c_int {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, len) }
}

/// The number of bytes before the first zero.
///
/// # Safety
/// `text` must be readable up to a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn strlen(text: *const c_char) -> usize {
    let left: usize;
    // SAFETY: reads up to the zero byte, which the caller vouches for; the direction flag is clear.
    unsafe {
        asm!(
            "repne scasb",
            inout("rcx") usize::MAX => left, inout("rdi") text => _, in("al") 0u8,
            options(readonly, nostack)
        );
    }
    usize::MAX - left - 1
}

/// Precompiled code names these two; with `panic = "abort"` nothing calls them.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
