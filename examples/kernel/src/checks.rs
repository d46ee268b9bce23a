//! What the kernel tries on itself before others rely on it, and the ways to fail that a test can ask for.

use core::arch::asm;
use core::ffi::{c_char, c_int};
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::memory::Owners;
use crate::paging::direct_map;
use crate::pvh::StartInfo;
use crate::string;
use crate::{cpu, println};

/// The buffers' length: moves of all distances and lengths in it cross words and leave odd tails.
const LEN: usize = 24;

/// Set when [`hold_registers_through_a_kick`] is ready for the kick.
pub static AWAITING_KICK: AtomicBool = AtomicBool::new(false);

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

/// The running CPU is interrupted by a kick of CPU 0 while it keeps patterns where compiled code may keep its own data:
/// in the SSE registers, and below the stack pointer (the red zone, which precompiled code uses). They must survive.
///
/// Needs [`AWAITING_KICK`] to be seen by CPU 0.
///
/// # Panics
/// If one changed.
pub fn hold_registers_through_a_kick() {
    const WORDS: usize = 16;
    let pattern: [u64; 2 * WORDS] = core::array::from_fn(|i| 0x0123_4567_89ab_cdef ^ (i as u64) << 56);
    let mut registers = [0; 2 * WORDS];
    let mut red_zone = [0; WORDS];
    let kicks = cpu::kick_counter(cpu::id());
    let before = kicks.load(Ordering::Relaxed);
    // SAFETY: reads `pattern` and writes the two arrays, each of the length that is copied; the words below the stack
    // pointer are free, since the block does not promise to leave the stack alone.
    unsafe {
        asm!(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "movdqu xmm\\n, [{pattern} + 16 * \\n]",
            "mov {word}, [{pattern} + 8 * \\n]",
            "mov [rsp - 128 + 8 * \\n], {word}",
            ".endr",
            "mov byte ptr [{awaiting}], 1",
            "2: pause",
            "cmp [{kicks}], {before}",
            "je 2b",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "movdqu [{registers} + 16 * \\n], xmm\\n",
            "mov {word}, [rsp - 128 + 8 * \\n]",
            "mov [{red_zone} + 8 * \\n], {word}",
            ".endr",
            pattern = in(reg) &pattern,
            registers = in(reg) &mut registers,
            red_zone = in(reg) &mut red_zone,
            awaiting = in(reg) &AWAITING_KICK,
            kicks = in(reg) kicks,
            before = in(reg) before,
            word = out(reg) _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
        );
    }
    assert!(registers == pattern, "an interrupt changed SSE registers: {registers:x?}");
    assert!(red_zone == pattern[..WORDS], "an interrupt changed the red zone: {red_zone:x?}");
}

/// Fails as the command line asks for: `panic` or `fault`.
pub fn fail_on_request(info: &StartInfo) {
    assert!(!info.has_option("panic"), "asked for on the command line");
    if info.has_option("fault") {
        // SAFETY: not safe at all, and that is the point: nothing is mapped there.
        unsafe { direct_map::<u8>(1 << 45).write_volatile(0) };
    }
}

/// All that was allocated since boot is free again. The heap may have become smaller: what it holds lies in fewer slabs then than at first.
///
/// # Panics
/// If something is not.
pub fn frames_are_back(before: Owners, now: Owners) {
    let same = Owners { free: before.free, heap: before.heap, ..now } == before;
    let is_back = same && now.heap <= before.heap && now.free >= before.free;
    assert!(is_back, "frames by owner were {before:?} and became {now:?}");
    println!("init: every frame is back");
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
