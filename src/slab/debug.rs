//! Red zones and poison: writes beyond an object and after its end are found. Feature `check` alone; without it these functions are empty.
//!
//! # Linux
//! `SLAB_RED_ZONE` and `SLAB_POISON` in `mm/slub.c`; the bytes are those of `include/linux/poison.h`.

use super::cache::SlabCache;
use super::error::ObjectError;
use super::slab_page::Object;

#[cfg(feature = "check")]
mod bytes {
    /// What the bytes after an object hold.
    ///
    /// # Linux
    /// `SLUB_RED_INACTIVE`.
    pub(super) const RED: u8 = 0xbb;
    /// What a free object holds.
    pub(super) const POISON_FREE: u8 = 0x6b;
    /// What the last byte of a free object holds.
    pub(super) const POISON_END: u8 = 0xa5;
}

/// Bytes of a red zone that are looked at; where the alignment makes it larger, the rest is padding.
#[cfg(feature = "check")]
const LOOKED_AT: usize = 64;

/// Prepares a new object: its red zone, and poison where there is no constructor.
#[inline]
pub(super) fn prepare(cache: &SlabCache<'_>, object: Object) {
    #[cfg(feature = "check")]
    {
        let (size, whole) = (cache.layout.object_size as usize, cache.layout.size as usize);
        // SAFETY: the red zone begins where the object ends.
        let red = unsafe { object.start().add(size) };
        // SAFETY: up to the next object the memory is the red zone's.
        unsafe { red.write_bytes(bytes::RED, whole - size) };
    }
    poison(cache, object);
}

/// Fills an object that is free from now on, unless a constructor made it.
#[inline]
pub(super) fn poison(cache: &SlabCache<'_>, object: Object) {
    #[cfg(feature = "check")]
    if !cache.has_constructor() {
        let last = cache.layout.object_size as usize - 1;
        // SAFETY: the object is free and of this size.
        unsafe { object.start().write_bytes(bytes::POISON_FREE, last) };
        // SAFETY: the last byte is the object's.
        let end = unsafe { object.start().add(last) };
        // SAFETY: as above.
        unsafe { end.write(bytes::POISON_END) };
    }
    let _ = (cache, object);
}

/// Whether a free object and its red zone are as they were left.
#[inline]
pub(super) fn is_intact(cache: &SlabCache<'_>, object: Object) -> bool {
    let _ = (cache, object);
    #[cfg(feature = "check")]
    {
        check_red_zone(cache, object).is_ok() && (cache.has_constructor() || is_poisoned(cache, object))
    }
    #[cfg(not(feature = "check"))]
    true
}

/// Whether nobody wrote beyond an object.
///
/// # Errors
/// [`ObjectError::RedZone`].
#[inline]
pub(super) fn check_red_zone(cache: &SlabCache<'_>, object: Object) -> Result<(), ObjectError> {
    #[cfg(feature = "check")]
    {
        let size = cache.layout.object_size as usize;
        if !is_filled(cache, object, size, size + LOOKED_AT, bytes::RED) {
            return Err(ObjectError::RedZone);
        }
    }
    let _ = (cache, object);
    Ok(())
}

#[cfg(feature = "check")]
fn is_poisoned(cache: &SlabCache<'_>, object: Object) -> bool {
    let last = cache.layout.object_size as usize - 1;
    is_filled(cache, object, 0, last, bytes::POISON_FREE)
        && is_filled(cache, object, last, last + 1, bytes::POISON_END)
}

/// Whether an object and its red zone hold nothing but `byte` from one offset to another.
#[cfg(feature = "check")]
fn is_filled(cache: &SlabCache<'_>, object: Object, from: usize, to: usize, byte: u8) -> bool {
    const WORD: usize = size_of::<u64>();
    let to = to.min(cache.layout.size as usize);
    let mut at = from;
    // Word by word, since a debug build looks at every free and allocated object.
    while at + WORD <= to {
        // SAFETY: the offset is below the size of an object with its red zone.
        let word = unsafe { object.start().add(at) };
        // SAFETY: the slab filled these bytes, and the object is free, or its red zone nobody's.
        if unsafe { word.cast::<u64>().read_unaligned() } != u64::from_ne_bytes([byte; WORD]) {
            return false;
        }
        at += WORD;
    }
    while at < to {
        // SAFETY: as above.
        let rest = unsafe { object.start().add(at) };
        // SAFETY: as above.
        if unsafe { rest.read() } != byte {
            return false;
        }
        at += 1;
    }
    true
}
