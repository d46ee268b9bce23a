//! Cutting the memory for the metadata into slices.
#![expect(unsafe_code, reason = "bytes that the caller hands over become typed slices")]

use core::alloc::Layout;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use crate::addr::{PAGE_SIZE, Pfn, PfnRange};
use crate::phys::error::InitError;

/// The alignment of every part: a cache line, so that CPUs do not share one by accident.
const ALIGN: usize = 64;

/// Adds up the sizes of the parts, in the order in which they are cut later.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sizes {
    bytes: usize,
}

impl Sizes {
    pub(crate) fn add<T>(&mut self, count: usize) {
        const { assert!(align_of::<T>() <= ALIGN) };
        self.bytes = self.bytes.saturating_add(part_bytes::<T>(count));
    }

    pub(crate) fn layout(self) -> Layout {
        // What nobody can have stands for all that is more.
        const MOST: usize = isize::MAX as usize & !(ALIGN - 1);
        Layout::from_size_align(self.bytes.min(MOST), ALIGN).unwrap_or(Layout::new::<()>())
    }
}

/// The bytes of a part, rounded up so that the next one is aligned.
fn part_bytes<T>(count: usize) -> usize {
    size_of::<T>().saturating_mul(count).saturating_add(ALIGN - 1) & !(ALIGN - 1)
}

/// Memory that parts are cut from, front to back.
#[derive(Debug)]
pub(crate) struct Carver<'m> {
    next: NonNull<u8>,
    left: usize,
    memory: PhantomData<&'m mut [MaybeUninit<u8>]>,
}

impl<'m> Carver<'m> {
    /// # Errors
    /// [`InitError::MetadataTooSmall`], [`InitError::MetadataMisaligned`].
    pub(crate) fn new(memory: &'m mut [MaybeUninit<u8>], needed: Layout) -> Result<Self, InitError> {
        if memory.len() < needed.size() {
            return Err(InitError::MetadataTooSmall(needed.size()));
        }
        let next = NonNull::from(&mut *memory).cast::<u8>();
        if next.addr().get() % needed.align() != 0 {
            return Err(InitError::MetadataMisaligned);
        }
        Ok(Self { next, left: memory.len(), memory: PhantomData })
    }

    /// Cuts a slice of `count` values, made one after the other.
    ///
    /// # Errors
    /// [`InitError::MapChanged`] if less memory is left than was planned for, and what `make` answers.
    pub(crate) fn cut<T>(
        &mut self,
        count: usize,
        mut make: impl FnMut(usize) -> Result<T, InitError>,
    ) -> Result<&'m mut [T], InitError> {
        const { assert!(align_of::<T>() <= ALIGN) };
        let bytes = part_bytes::<T>(count);
        self.left = self.left.checked_sub(bytes).ok_or(InitError::MapChanged)?;
        let start = self.next.cast::<T>();
        // SAFETY: `bytes` bytes from `next` lie in the memory, as `left` says.
        self.next = unsafe { self.next.add(bytes) };
        for at in 0..count {
            let value = make(at)?;
            // SAFETY: element `at` lies in the part just cut.
            let place = unsafe { start.add(at) };
            // SAFETY: the place is in memory that is ours alone, and aligned since every part starts at a multiple of `ALIGN`.
            unsafe { place.write(value) };
        }
        // SAFETY: `count` values were written from `start` on, no other part overlaps them, and they live as long as the memory.
        Ok(unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), count) })
    }
}

/// The memory of a run of frames in the direct map.
///
/// # Safety
/// The frames are RAM that nobody uses for `'m`, and `direct_map` answers with their addresses, consecutive for
/// consecutive frames.
pub(super) unsafe fn frames<'m>(
    run: PfnRange,
    direct_map: impl Fn(Pfn) -> Option<NonNull<u8>>,
) -> Option<&'m mut [MaybeUninit<u8>]> {
    let start = direct_map(run.start())?.cast::<MaybeUninit<u8>>();
    let bytes = usize::try_from(run.len()).ok()?.checked_mul(PAGE_SIZE)?;
    // SAFETY: the caller promises memory of this length, in use by nobody else.
    Some(unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), bytes) })
}
