//! Bytes of a frame that can be reached for a moment.

use core::marker::PhantomData;
use core::ptr::NonNull;
#[cfg(feature = "std")]
use core::sync::atomic::AtomicU32;
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::{CpuPin, Platform};
use crate::addr::{PAGE_SIZE, Pfn};

/// Bytes in a word.
const WORD: usize = size_of::<usize>();
/// Entries in a page table of one frame.
const ENTRIES: usize = PAGE_SIZE / size_of::<u64>();

/// The bytes of one frame, at the address where they can be reached while `'a` lasts.
///
/// Bytes are copied in and out; no reference to them is ever made. Others may write to the frame at the same time, another
/// CPU through a window of its own or user space: all accesses are relaxed atomics, of whole words where the range
/// allows it, so each word read is one that somebody wrote: the aligned words of the frame that lie in a range are copied by one access each, wherever
/// the bytes on the other side lie.
#[derive(Debug)]
pub struct Window<'a> {
    start: NonNull<u8>,
    frame: PhantomData<&'a AtomicU8>,
}

impl<'a> Window<'a> {
    /// A window on a frame of the direct map; `None` for a HIGHMEM frame.
    ///
    /// For `phys::kmap`, which has checked that the frame holds data: such frames are reached through windows alone.
    #[inline]
    pub(crate) fn direct<P: Platform + ?Sized>(platform: &'a P, pfn: Pfn) -> Option<Self> {
        let start = platform.direct_map(pfn)?;
        // SAFETY: by the contract of `Platform` this is the frame's RAM, and data are reached through windows alone.
        Some(unsafe { Self::new(start) })
    }

    /// A window on a HIGHMEM frame, in a free slot of the pin's CPU, which the caller closes later; `None` if the platform cannot
    /// map it.
    pub(crate) fn in_slot(pin: &'a CpuPin<'_>, slot: u32, pfn: Pfn) -> Option<Self> {
        let start = pin.platform().kmap(pin.cpu(), slot, pfn)?;
        // SAFETY: as in `direct`; the slot is closed by the caller, who has the window.
        Some(unsafe { Self::new(start) })
    }

    /// A window on the frame that can be reached at `start`.
    ///
    /// # Safety
    /// `start` is aligned to a page. While `'a` lasts, the [`PAGE_SIZE`] bytes from there are RAM that can be read and
    /// written, and nobody holds a reference to any of them or accesses them other than atomically.
    pub unsafe fn new(start: NonNull<u8>) -> Self {
        Self { start, frame: PhantomData }
    }

    /// Copies bytes out of the frame; `false` and no change if they do not all lie inside.
    #[must_use]
    pub fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        if !inside(offset, out.len()) {
            return false;
        }
        let (head, rest) = out.split_at_mut(to_next_word(offset).min(out.len()));
        self.read_bytes(offset, head);
        let mut at = offset + head.len();
        let mut words = rest.chunks_exact_mut(WORD);
        for word in &mut words {
            word.copy_from_slice(&self.word(at).load(Relaxed).to_ne_bytes());
            at += WORD;
        }
        self.read_bytes(at, words.into_remainder());
        true
    }

    /// Copies bytes into the frame; `false` and no change if they would not all lie inside.
    #[must_use]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        if !inside(offset, bytes.len()) {
            return false;
        }
        let (head, rest) = bytes.split_at(to_next_word(offset).min(bytes.len()));
        self.write_bytes(offset, head);
        let mut at = offset + head.len();
        let mut words = rest.chunks_exact(WORD);
        for word in &mut words {
            let mut value = [0; WORD];
            value.copy_from_slice(word);
            self.word(at).store(usize::from_ne_bytes(value), Relaxed);
            at += WORD;
        }
        self.write_bytes(at, words.remainder());
        true
    }

    /// Sets every byte of the frame.
    #[inline]
    pub fn fill(&self, byte: u8) {
        let word = usize::from_ne_bytes([byte; WORD]);
        if strings::fill(self.start, word) {
            return;
        }
        for at in (0..PAGE_SIZE).step_by(WORD) {
            self.word(at).store(word, Relaxed);
        }
    }

    /// Copies the whole frame from another.
    #[inline]
    pub fn copy_from(&self, from: &Window<'_>) {
        if strings::copy(self.start, from.start) {
            return;
        }
        for at in (0..PAGE_SIZE).step_by(WORD) {
            self.word(at).store(from.word(at).load(Relaxed), Relaxed);
        }
    }

    /// Copies bytes from another frame, or from another place in this one; `false` and no change if they do not all lie inside both. Where
    /// the two places overlap, what is left there is bytes of theirs in some order.
    #[must_use]
    pub fn copy_part(&self, offset: usize, from: &Window<'_>, from_offset: usize, len: usize) -> bool {
        if !inside(offset, len) || !inside(from_offset, len) {
            return false;
        }
        if len == PAGE_SIZE {
            self.copy_from(from);
            return true;
        }
        let head = to_next_word(offset).min(len);
        self.copy_bytes(offset, from, from_offset, head);
        let (mut to_at, mut from_at) = (offset + head, from_offset + head);
        let words = (len - head) / WORD * WORD;
        let (end, shift) = (to_at + words, from_at % WORD);
        if shift == 0 {
            while to_at < end {
                self.word(to_at).store(from.word(from_at).load(Relaxed), Relaxed);
                (to_at, from_at) = (to_at + WORD, from_at + WORD);
            }
        } else if words != 0 {
            // Each word is made of two, of which the second is the first of the next.
            let mut before = from.word(from_at - shift).load(Relaxed);
            while to_at < end {
                let behind = from.word(from_at - shift + WORD).load(Relaxed);
                self.word(to_at).store(straddling(before, behind, shift), Relaxed);
                before = behind;
                (to_at, from_at) = (to_at + WORD, from_at + WORD);
            }
        }
        self.copy_bytes(to_at, from, from_at, len - head - words);
        true
    }

    fn copy_bytes(&self, offset: usize, from: &Window<'_>, from_offset: usize, len: usize) {
        for at in 0..len {
            self.byte(offset + at).store(from.byte(from_offset + at).load(Relaxed), Relaxed);
        }
    }

    /// The place and value of the first byte that differs from `byte`.
    pub fn find_other(&self, byte: u8) -> Option<(usize, u8)> {
        let word = usize::from_ne_bytes([byte; WORD]);
        let odd = (0..PAGE_SIZE).step_by(WORD).find(|&at| self.word(at).load(Relaxed) != word)?;
        let values = (odd..odd + WORD).map(|at| (at, self.byte(at).load(Relaxed)));
        values.into_iter().find(|&(_, value)| value != byte)
    }

    /// An entry of the page table that the frame holds.
    #[cfg(feature = "std")]
    pub(in crate::platform) fn entry(&self, index: usize) -> Option<&AtomicU64> {
        let at = index.checked_mul(8).filter(|&at| inside(at, 8))?;
        // SAFETY: the eight bytes lie inside the aligned frame, at a multiple of eight; by the promise to `new` they are valid and only
        // accessed atomically.
        Some(unsafe { AtomicU64::from_ptr(self.place(at).cast().as_ptr()) })
    }

    /// Four bytes.
    #[cfg(feature = "std")]
    pub(in crate::platform) fn half(&self, offset: usize) -> Option<&AtomicU32> {
        (offset % 4 == 0 && inside(offset, 4)).then_some(())?;
        // SAFETY: as in `entry`, at a multiple of four.
        Some(unsafe { AtomicU32::from_ptr(self.place(offset).cast().as_ptr()) })
    }

    /// The frame as a page table. For the room of tables, which knows that the frame is one: hardware reads and writes it too.
    #[inline]
    pub(crate) fn entries(&self) -> &[AtomicU64; ENTRIES] {
        // SAFETY: by the promise to `new` the frame is valid and aligned, and accessed atomically alone.
        unsafe { self.start.cast().as_ref() }
    }

    /// Copies bytes one at a time: what is left before and behind the words.
    fn read_bytes(&self, offset: usize, out: &mut [u8]) {
        for (at, byte) in (offset..).zip(out) {
            *byte = self.byte(at).load(Relaxed);
        }
    }

    fn write_bytes(&self, offset: usize, bytes: &[u8]) {
        for (at, &byte) in (offset..).zip(bytes) {
            self.byte(at).store(byte, Relaxed);
        }
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        // SAFETY: by the promise to `new` the byte is valid, and only accessed atomically.
        unsafe { AtomicU8::from_ptr(self.place(at).as_ptr()) }
    }

    fn word(&self, at: usize) -> &AtomicUsize {
        // SAFETY: by the promise to `new` the bytes are valid and only accessed atomically; the callers pass multiples of the
        // word's size, and the frame is aligned.
        unsafe { AtomicUsize::from_ptr(self.place(at).cast().as_ptr()) }
    }

    fn place(&self, at: usize) -> NonNull<u8> {
        // SAFETY: the callers pass a place inside the frame.
        unsafe { self.start.add(at) }
    }
}

/// The processor's own loops over a frame. They write each word at once, as relaxed atomics would, and need not read what they overwrite.
///
/// # Linux
/// `clear_page_rep` and `copy_page` in `arch/x86/lib`.
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(any(miri, loom, shuttle))))]
mod strings {
    use super::{NonNull, PAGE_SIZE, WORD};

    /// Bytes that come from memory together.
    const LINE: usize = 64;

    /// Asks for all lines of a frame at once. The loops ask for few at a time, so that a frame that no cache has takes half as long again.
    #[inline]
    fn ask_for(start: NonNull<u8>) {
        for at in (0..PAGE_SIZE).step_by(8 * LINE) {
            let lines = start.as_ptr().wrapping_add(at);
            // SAFETY: this reads and writes nothing that a program can see, whatever the address.
            unsafe {
                core::arch::asm!(
                    "prefetcht0 [{0}]",
                    "prefetcht0 [{0} + {1}]",
                    "prefetcht0 [{0} + 2 * {1}]",
                    "prefetcht0 [{0} + 3 * {1}]",
                    "prefetcht0 [{0} + 4 * {1}]",
                    "prefetcht0 [{0} + 5 * {1}]",
                    "prefetcht0 [{0} + 6 * {1}]",
                    "prefetcht0 [{0} + 7 * {1}]",
                    in(reg) lines,
                    const LINE,
                    options(nostack, preserves_flags, readonly),
                );
            }
        }
    }

    /// Fills the frame at `start` with a word.
    pub(super) fn fill(start: NonNull<u8>, word: usize) -> bool {
        ask_for(start);
        // SAFETY: only windows call this, with their frame: RAM that may be written, and is accessed atomically alone. The direction flag is
        // clear, as the ABI has it.
        unsafe {
            core::arch::asm!(
                "rep stosq",
                inout("rcx") PAGE_SIZE / WORD => _,
                inout("rdi") start.as_ptr() => _,
                in("rax") word,
                options(nostack, preserves_flags),
            );
        }
        true
    }

    /// Copies the frame at `from` to the one at `to`.
    pub(super) fn copy(to: NonNull<u8>, from: NonNull<u8>) -> bool {
        ask_for(from);
        ask_for(to);
        // SAFETY: as in `fill`, for both frames.
        unsafe {
            core::arch::asm!(
                "rep movsq",
                inout("rcx") PAGE_SIZE / WORD => _,
                inout("rdi") to.as_ptr() => _,
                inout("rsi") from.as_ptr() => _,
                options(nostack, preserves_flags),
            );
        }
        true
    }
}

/// Elsewhere there are none that could be trusted with memory that others access.
#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64", not(any(miri, loom, shuttle)))))]
mod strings {
    use super::NonNull;

    pub(super) fn fill(_: NonNull<u8>, _: usize) -> bool {
        false
    }

    pub(super) fn copy(_: NonNull<u8>, _: NonNull<u8>) -> bool {
        false
    }
}

/// How many bytes from `offset` on lie before the next whole word.
fn to_next_word(offset: usize) -> usize {
    offset.wrapping_neg() % WORD
}

/// The word that begins at byte `shift` of the first of two that follow each other, 0 excepted.
fn straddling(before: usize, behind: usize, shift: usize) -> usize {
    let (near, far) = (8 * shift, 8 * (WORD - shift));
    if cfg!(target_endian = "little") {
        before >> near | behind << far
    } else {
        before << near | behind >> far
    }
}

/// Whether `len` bytes from `offset` lie inside a frame.
fn inside(offset: usize, len: usize) -> bool {
    offset.checked_add(len).is_some_and(|end| end <= PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(4096))]
    struct Frame([u8; PAGE_SIZE]);

    fn window(frame: &mut Frame) -> Window<'_> {
        // SAFETY: the frame is ours alone while it is borrowed.
        unsafe { Window::new(NonNull::from(&mut frame.0).cast()) }
    }

    #[test]
    fn what_is_written_anywhere_is_read_back() {
        let mut frame = Frame([0; PAGE_SIZE]);
        let window = window(&mut frame);
        let data: [u8; 40] = core::array::from_fn(|at| at as u8 + 1);
        for offset in (0..20).chain(PAGE_SIZE - 60..=PAGE_SIZE - 40) {
            window.fill(0xee);
            assert!(window.write(offset, &data));
            let mut back = [0; 42];
            let (from, len) = (offset.saturating_sub(1), 42.min(PAGE_SIZE - offset.saturating_sub(1)));
            assert!(window.read(from, &mut back[..len]));
            let mut expected = [0xee; 42];
            expected[offset - from..offset - from + 40].copy_from_slice(&data);
            assert_eq!(back[..len], expected[..len], "at {offset}");
        }
    }

    #[test]
    fn a_part_is_copied_to_anywhere_from_anywhere() {
        let (mut from, mut to) = (Frame(core::array::from_fn(|at| (at % 251) as u8)), Frame([0; PAGE_SIZE]));
        let contents = from.0;
        let (from, to) = (window(&mut from), window(&mut to));
        let places = [0, 1, 2, 3, 4, 5, 6, 7, 8, 100, PAGE_SIZE - 17, PAGE_SIZE - 9];
        for (from_offset, offset) in places.iter().flat_map(|&from| places.map(|to| (from, to))) {
            for len in [0, 1, 7, 8, 9, 17, 40, PAGE_SIZE - 100, PAGE_SIZE - 1, PAGE_SIZE] {
                to.fill(0xff);
                let fits = len + from_offset.max(offset) <= PAGE_SIZE;
                assert_eq!(to.copy_part(offset, &from, from_offset, len), fits);
                let mut expected = [0xff; PAGE_SIZE];
                if fits {
                    expected[offset..offset + len].copy_from_slice(&contents[from_offset..from_offset + len]);
                }
                let mut copied = [0; PAGE_SIZE];
                assert!(to.read(0, &mut copied));
                assert!(copied == expected, "{len} bytes from {from_offset} to {offset}");
            }
        }
    }

    /// A word is a word on the frame's side, whatever the alignment on the other: of two writers' words a reader finds one or the other.
    #[test]
    fn an_aligned_word_is_written_and_read_at_once() {
        use core::sync::atomic::AtomicBool;
        #[repr(align(4096))]
        struct Shared([AtomicU64; ENTRIES]);
        /// What is copied: three bytes, words, three bytes.
        const LEN: usize = 24 * WORD + 6;
        let frame = Shared([const { AtomicU64::new(0) }; ENTRIES]);
        // SAFETY: the frame outlives the threads, and is made of atomics.
        let window = || unsafe { Window::new(NonNull::from(&frame.0).cast()) };
        let (rounds, done) = (if cfg!(miri) { 20 } else { 300_000 }, AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (zeros, ones) = ([0; LEN + 1], [0xff; LEN + 1]);
                while !done.load(Relaxed) {
                    for bytes in [&ones[1..], &zeros[..LEN], &ones[..LEN], &zeros[1..]] {
                        assert!(window().write(WORD - 3, bytes));
                    }
                }
            });
            let mut out = [0; LEN + 1];
            let torn = (0..rounds).find_map(|round| {
                let out = &mut out[round % 2..][..LEN];
                let read = window().read(WORD - 3, out);
                let torn = |word: &&[u8]| word.iter().any(|byte| *byte != word[0]);
                if read {
                    out[3..LEN - 3].chunks_exact(WORD).find(torn).map(<[u8]>::to_vec)
                } else {
                    Some(vec![])
                }
            });
            done.store(true, Relaxed);
            assert_eq!(torn, None);
        });
    }

    #[test]
    fn nothing_outside_the_frame_is_reached() {
        let mut frame = Frame([7; PAGE_SIZE]);
        let window = window(&mut frame);
        assert!(!window.write(PAGE_SIZE - 1, &[1, 2]) && !window.write(usize::MAX, &[1]));
        assert!(!window.read(PAGE_SIZE, &mut [0]));
        assert!(window.write(PAGE_SIZE, &[]));
        assert_eq!(window.find_other(7), None);
    }

    #[test]
    fn the_first_byte_that_differs_is_found() {
        let mut frame = Frame([0xaa; PAGE_SIZE]);
        let window = window(&mut frame);
        assert!(window.write(1003, &[0xab]) && window.write(1004, &[1]) && window.write(4095, &[2]));
        assert_eq!(window.find_other(0xaa), Some((1003, 0xab)));
        assert_eq!(window.find_other(0), Some((0, 0xaa)));
    }
}
