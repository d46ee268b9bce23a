//! Who can give frames back when memory is short.

use crate::addr::PageOrder;
use crate::flags::GfpFlags;
use crate::platform::Platform;
use crate::sync::{Rank, SpinLock};

use super::Memory;

/// The most shrinkers of a [`Memory`].
pub const MAX_SHRINKERS: usize = 16;

/// What reclaim is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ShrinkRequest {
    /// How many pages would be welcome.
    pub pages: u64,
    /// The order that could not be allocated.
    pub order: PageOrder,
    /// The flags of the request: whether input and output may be started, the file system be entered.
    pub gfp: GfpFlags,
}

/// Something that keeps frames which it can do without: a cache.
///
/// # Linux
/// `struct shrinker` in `include/linux/shrinker.h`.
pub trait Shrinker: Sync {
    /// Frees frames; answers with how many, 0 if it can free none now.
    ///
    /// Called with interrupts as the caller of the allocation had them, on several CPUs at once. No lock of the library is held but those of an
    /// address space and of a VMA: a fault holds one of them for reading, a call that changes VMAs the first for writing. So it never waits for
    /// an address space, nor for another lock that a caller of the allocator may hold, and allocates with [`GfpFlags::MEMALLOC`] alone, which
    /// forbids recursion.
    fn shrink(&self, request: &ShrinkRequest) -> u64;
}

/// There is no place for another shrinker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooManyShrinkers;

impl core::fmt::Display for TooManyShrinkers {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{MAX_SHRINKERS} shrinkers are registered already")
    }
}

impl core::error::Error for TooManyShrinkers {}

type List<'m> = [Option<&'m dyn Shrinker>; MAX_SHRINKERS];

/// The shrinkers, in the order in which they were registered.
pub(super) struct Shrinkers<'m> {
    list: SpinLock<List<'m>>,
}

impl Shrinkers<'_> {
    pub(super) fn new() -> Self {
        Self { list: SpinLock::new(Rank::Leaf, [None; MAX_SHRINKERS]) }
    }
}

impl core::fmt::Debug for Shrinkers<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Shrinkers").finish_non_exhaustive()
    }
}

impl<'m, P: Platform> Memory<'m, P> {
    /// Registers somebody who can give frames back.
    ///
    /// # Errors
    /// [`TooManyShrinkers`].
    ///
    /// # Linux
    /// `shrinker_register` in `mm/shrinker.c`.
    #[doc(alias = "shrinker_register")]
    pub fn register_shrinker(&self, shrinker: &'m dyn Shrinker) -> Result<(), TooManyShrinkers> {
        let pin = self.pin();
        let mut list = self.shrinkers.list.lock(&pin);
        let place = list.iter_mut().find(|place| place.is_none()).ok_or(TooManyShrinkers)?;
        *place = Some(shrinker);
        Ok(())
    }

    /// Asks the slab allocator and the shrinkers, one after the other, until they have freed as many pages as are wanted; answers with how many.
    ///
    /// # Locking
    /// The caller holds no lock and no pin.
    ///
    /// # Linux
    /// `shrink_slab` in `mm/shrinker.c`.
    pub fn shrink(&self, request: &ShrinkRequest) -> u64 {
        let shrinkers: List<'m> = *self.shrinkers.list.lock(&self.pin());
        let mut freed = self.slabs().map_or(0, |slabs| slabs.shrink_by(self, request.pages));
        for shrinker in shrinkers.into_iter().flatten() {
            if freed >= request.pages {
                break;
            }
            freed = freed.saturating_add(shrinker.shrink(request));
        }
        freed
    }
}
