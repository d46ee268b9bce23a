//! Allocation flags.

use bitflags::bitflags;
use static_assertions::const_assert;

bitflags! {
    /// What an allocation of pages may do to succeed, and where the pages may lie.
    ///
    /// Single bits say one thing; [`KERNEL`](Self::KERNEL), [`HIGHUSER_MOVABLE`](Self::HIGHUSER_MOVABLE) and the
    /// like are the combinations that callers use.
    ///
    /// # Linux
    /// `gfp_t` in `include/linux/gfp_types.h`; the bits have the numbers of 6.12.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    #[doc(alias = "gfp_t")]
    pub struct GfpFlags: u32 {
        /// From the DMA zone only.
        const DMA = 1 << 0;
        /// HIGHMEM will do.
        const HIGHMEM = 1 << 1;
        /// The page can be moved or reclaimed by migration.
        const MOVABLE = 1 << 3;
        /// The page can be reclaimed by a shrinker.
        const RECLAIMABLE = 1 << 4;
        /// High priority: half of the minimum watermark may be used.
        const HIGH = 1 << 5;
        /// Physical input and output may be started.
        const IO = 1 << 6;
        /// The file system may be entered.
        const FS = 1 << 7;
        /// The frames are zeroed.
        const ZERO = 1 << 8;
        /// The caller may reclaim (and so block).
        const DIRECT_RECLAIM = 1 << 10;
        /// Background reclaim is woken below the low watermark.
        const KSWAPD_RECLAIM = 1 << 11;
        /// A failure is not reported.
        const NOWARN = 1 << 13;
        /// The allocation is retried until it succeeds.
        const NOFAIL = 1 << 15;
        /// One round of reclaim, then failure.
        const NORETRY = 1 << 16;
        /// No watermark holds: the caller is about to free memory.
        const MEMALLOC = 1 << 17;
        /// The block becomes a compound page.
        const COMP = 1 << 18;
        /// The reserves stay closed even in a MEMALLOC context.
        const NOMEMALLOC = 1 << 19;
        /// Only from the node asked for.
        const THISNODE = 1 << 21;

        /// Both kinds of reclaim.
        const RECLAIM = Self::DIRECT_RECLAIM.bits() | Self::KSWAPD_RECLAIM.bits();
        /// For an interrupt handler: may not sleep, may use reserves.
        const ATOMIC = Self::HIGH.bits() | Self::KSWAPD_RECLAIM.bits();
        /// May not sleep, may not use reserves.
        const NOWAIT = Self::KSWAPD_RECLAIM.bits() | Self::NOWARN.bits();
        /// Reclaim without input and output.
        const NOIO = Self::RECLAIM.bits();
        /// Reclaim without entering the file system.
        const NOFS = Self::RECLAIM.bits() | Self::IO.bits();
        /// For the kernel's own data, in the direct map.
        const KERNEL = Self::RECLAIM.bits() | Self::IO.bits() | Self::FS.bits();
        /// For user space, in the direct map.
        const USER = Self::KERNEL.bits();
        /// For user space, anywhere, not movable.
        const HIGHUSER = Self::USER.bits() | Self::HIGHMEM.bits();
        /// For user space, anywhere, movable: anonymous memory and page cache.
        const HIGHUSER_MOVABLE = Self::HIGHUSER.bits() | Self::MOVABLE.bits();
    }
}

/// The two pairs of flags that tables are indexed with: each lies side by side.
///
/// # Linux
/// `GFP_ZONEMASK` without DMA32, `GFP_MOVABLE_MASK` and `GFP_MOVABLE_SHIFT` in `include/linux/gfp_types.h`.
impl GfpFlags {
    const ZONES: Self = Self::DMA.union(Self::HIGHMEM);
    const MOBILITY: Self = Self::MOVABLE.union(Self::RECLAIMABLE);
    const MOBILITY_SHIFT: u32 = Self::MOVABLE.bits().trailing_zeros();

    /// The flags that choose a zone as a number below 4: bit 0 is [`DMA`](Self::DMA), bit 1 [`HIGHMEM`](Self::HIGHMEM).
    #[inline]
    pub(crate) const fn zone_bits(self) -> usize {
        (self.bits() & Self::ZONES.bits()) as usize
    }

    /// The flags with these [`zone_bits`](Self::zone_bits), and no others.
    pub(crate) const fn of_zone_bits(bits: usize) -> Self {
        Self::from_bits_retain(bits as u32).intersection(Self::ZONES)
    }

    /// The flags that choose a migrate type as a number below 4: bit 0 is [`MOVABLE`](Self::MOVABLE), bit 1 [`RECLAIMABLE`](Self::RECLAIMABLE).
    #[inline]
    pub(crate) const fn mobility_bits(self) -> usize {
        ((self.bits() & Self::MOBILITY.bits()) >> Self::MOBILITY_SHIFT) as usize
    }
}

const_assert!(
    GfpFlags::DMA.zone_bits() == 1 && GfpFlags::HIGHMEM.zone_bits() == 2 && GfpFlags::ZONES.zone_bits() == 3
);
const_assert!(GfpFlags::MOVABLE.mobility_bits() == 1 && GfpFlags::RECLAIMABLE.mobility_bits() == 2);
const_assert!(GfpFlags::MOBILITY.mobility_bits() == 3);

#[cfg(test)]
mod tests {
    use super::GfpFlags;

    #[test]
    fn combinations_differ_in_what_they_may_do() {
        assert!(!GfpFlags::ATOMIC.contains(GfpFlags::DIRECT_RECLAIM));
        assert!(!GfpFlags::NOIO.intersects(GfpFlags::IO | GfpFlags::FS));
        assert!(GfpFlags::NOFS.contains(GfpFlags::IO) && !GfpFlags::NOFS.contains(GfpFlags::FS));
        assert!(GfpFlags::HIGHUSER_MOVABLE.contains(GfpFlags::HIGHUSER | GfpFlags::MOVABLE));
        assert!(!GfpFlags::KERNEL.intersects(GfpFlags::HIGHMEM | GfpFlags::MOVABLE));
    }
}
