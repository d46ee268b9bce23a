//! What the kernel tries on itself before others rely on it, and the ways to fail that a test can ask for.

use core::ffi::{c_char, c_int};
use core::hint::black_box;

use crate::paging::direct_map;
use crate::pvh::StartInfo;
use crate::string;

/// The buffers' length: moves of all distances and lengths in it cross words and leave odd tails.
const LEN: usize = 24;

/// Compiled code knows these functions by name and may do without the call; behind a pointer that it cannot see through
/// it must call.
struct Functions {
    memcpy: unsafe extern "C" fn(*mut u8, *const u8, usize) -> *mut u8,
    memmove: unsafe extern "C" fn(*mut u8, *const u8, usize) -> *mut u8,
    memset: unsafe extern "C" fn(*mut u8, c_int, usize) -> *mut u8,
    memcmp: unsafe extern "C" fn(*const u8, *const u8, usize) -> c_int,
    strlen: unsafe extern "C" fn(*const c_char) -> usize,
}

/// Compares the C functions of `string.rs` with plain loops, byte by byte.
///
/// # Panics
/// If one of them differs.
pub fn string_functions() {
    let functions = black_box(Functions {
        memcpy: string::memcpy,
        memmove: string::memmove,
        memset: string::memset,
        memcmp: string::memcmp,
        strlen: string::strlen,
    });
    let source: [u8; LEN] = core::array::from_fn(|i| 0x80 ^ (i as u8 * 7));
    for len in 0..=LEN {
        for from in 0..=LEN - len {
            for to in 0..=LEN - len {
                check_copies(&functions, &source, from, to, len);
            }
            let mut filled = source;
            // SAFETY: `from + len` is at most LEN.
            unsafe { (functions.memset)(filled[from..].as_mut_ptr(), 0x1fe, len) };
            let expected = |i: usize| if (from..from + len).contains(&i) { 0xfe } else { source[i] };
            check_bytes(&filled, expected, "memset");
        }
        check_comparisons(&functions, &source, len);
    }
    for (text, len) in [(c"", 0), (c"a", 1), (c"kernmm", 6)] {
        // SAFETY: a C string ends with a zero byte.
        assert!(unsafe { (functions.strlen)(text.as_ptr()) } == len, "strlen");
    }
}

/// Fails as the command line asks for: `panic` or `fault`.
pub fn fail_on_request(info: &StartInfo) {
    assert!(!info.has_option("panic"), "asked for on the command line");
    if info.has_option("fault") {
        // SAFETY: not safe at all, and that is the point: nothing is mapped there.
        unsafe { direct_map::<u8>(1 << 45).write_volatile(0) };
    }
}

/// memcpy to another buffer, and memmove within one.
fn check_copies(functions: &Functions, source: &[u8; LEN], from: usize, to: usize, len: usize) {
    let expected = |i: usize| if (to..to + len).contains(&i) { source[i - to + from] } else { source[i] };
    let mut copied = *source;
    // SAFETY: both ranges end at LEN at most, in different buffers.
    unsafe { (functions.memcpy)(copied[to..].as_mut_ptr(), source[from..].as_ptr(), len) };
    check_bytes(&copied, expected, "memcpy");
    let mut moved = *source;
    let base = moved.as_mut_ptr();
    // SAFETY: both ranges end at LEN at most.
    unsafe { (functions.memmove)(base.wrapping_add(to), base.wrapping_add(from), len) };
    check_bytes(&moved, expected, "memmove");
}

/// memcmp of equal buffers, and of buffers that differ in one byte.
fn check_comparisons(functions: &Functions, source: &[u8; LEN], len: usize) {
    // SAFETY: `len` is at most LEN.
    let order = unsafe { (functions.memcmp)(source.as_ptr(), source.as_ptr(), len) };
    assert!(order == 0, "memcmp of equal bytes");
    for different in 0..len {
        let mut other = *source;
        other[different] = !source[different];
        // SAFETY: `len` is at most LEN.
        let order = unsafe { (functions.memcmp)(source.as_ptr(), other.as_ptr(), len) };
        assert!(
            (order < 0) == (source[different] < other[different]) && order != 0,
            "memcmp at byte {different}"
        );
    }
}

fn check_bytes(found: &[u8; LEN], expected: impl Fn(usize) -> u8, what: &str) {
    for (i, &byte) in found.iter().enumerate() {
        // Seen through `black_box`, the loop is not made into a call of what it checks.
        assert!(black_box(byte) == expected(i), "{what}: byte {i}");
    }
}
