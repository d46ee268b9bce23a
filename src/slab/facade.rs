//! The slab allocator of the façade.

use core::mem::MaybeUninit;

use crate::phys::{NoReclaim, Phys};
use crate::platform::Platform;

use super::error::CreateError;
use super::kmalloc::Slabs;

impl<'m> Slabs<'m> {
    /// As [`new`](Self::new), for the façade, which then is the source: it was booted from a map that says that nobody else uses the
    /// frames, and allocates blocks of `phys`.
    pub(crate) fn of_facade<P: Platform>(
        phys: &Phys<'m>,
        platform: &'m P,
        memory: &'m mut [MaybeUninit<u8>],
    ) -> Result<Self, CreateError> {
        // SAFETY: the façade booted `phys` with this platform's pin and from its own map.
        let source = unsafe { NoReclaim::new(phys, platform) };
        // SAFETY: frames and platform are there for `'m`. Nobody but their owners uses allocated blocks: the façade reaches only those that
        // are no slab's, frees none of a slab's, and calls that are given a source of other frames do nothing; by the promise of
        // `PageSource` one of the same frames has this platform.
        unsafe { Self::new(&source, memory) }
    }
}
