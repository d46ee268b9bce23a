//! What the kernel tries on itself before others rely on it, and the ways to fail that a test can ask for.

use core::hint::black_box;

use crate::paging::direct_map;
use crate::pvh::StartInfo;
use crate::string::{memcmp, memcpy, memmove, memset, strlen};

/// The buffers' length: moves of all distances and lengths in it cross words and leave odd tails.
const LEN: usize = 24;

/// Compares the C functions of `string.rs` with plain loops, byte by byte.
///
/// # Panics
/// If one of them differs.
pub fn string_functions() {
    let source: [u8; LEN] = core::array::from_fn(|i| 0x80 ^ (i as u8 * 7));
    for len in 0..=LEN {
        for from in 0..=LEN - len {
            for to in 0..=LEN - len {
                check_copies(&source, from, to, len);
            }
            let mut filled = source;
            // SAFETY: `from + len` is at most LEN.
            unsafe { memset(filled[from..].as_mut_ptr(), 0x1fe, len) };
            let expected = |i: usize| if (from..from + len).contains(&i) { 0xfe } else { source[i] };
            check_bytes(&filled, expected, "memset");
        }
        check_comparisons(&source, len);
    }
    for (text, len) in [(c"", 0), (c"a", 1), (c"kernmm", 6)] {
        // SAFETY: a C string ends with a zero byte.
        assert!(unsafe { strlen(black_box(text).as_ptr()) } == len, "strlen");
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
fn check_copies(source: &[u8; LEN], from: usize, to: usize, len: usize) {
    let expected = |i: usize| if (to..to + len).contains(&i) { source[i - to + from] } else { source[i] };
    let mut copied = *source;
    // SAFETY: both ranges end at LEN at most, in different buffers.
    unsafe { memcpy(copied[to..].as_mut_ptr(), source[from..].as_ptr(), len) };
    check_bytes(&copied, expected, "memcpy");
    let mut moved = *source;
    let base = moved.as_mut_ptr();
    // SAFETY: both ranges end at LEN at most.
    unsafe { memmove(base.wrapping_add(to), base.wrapping_add(from), len) };
    check_bytes(&moved, expected, "memmove");
}

/// memcmp of equal buffers, and of buffers that differ in one byte.
fn check_comparisons(source: &[u8; LEN], len: usize) {
    // SAFETY: `len` is at most LEN.
    let order = unsafe { memcmp(source.as_ptr(), black_box(source).as_ptr(), len) };
    assert!(order == 0, "memcmp of equal bytes");
    for different in 0..len {
        let mut other = *source;
        other[different] = !source[different];
        // SAFETY: `len` is at most LEN.
        let order = unsafe { memcmp(source.as_ptr(), black_box(&other).as_ptr(), len) };
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
