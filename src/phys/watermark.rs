//! Watermarks: how many free frames a zone keeps, and for whom.
//!
//! Pure functions with Linux's formulas; [`Zone`](super::zone::Zone) keeps their results.

use crate::flags::GfpFlags;

/// The three marks of a zone, in pages.
///
/// # Linux
/// `enum zone_watermarks` in `include/linux/mmzone.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(alias = "zone_watermarks")]
pub struct Watermarks {
    /// Below it only requests with a right to the reserves are served.
    pub min: u64,
    /// Below it background reclaim is woken.
    pub low: u64,
    /// Background reclaim rests above it.
    pub high: u64,
}

/// How the marks are set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatermarkConfig {
    /// The frames of all lowmem zones kept as a reserve, in KiB; `None` for Linux's square root.
    pub min_free_kbytes: Option<u64>,
    /// The distance between the marks in 1/10000 of a zone.
    #[doc(alias = "watermark_scale_factor")]
    pub scale_factor: u64,
    /// For DMA, NORMAL and HIGHMEM: one page of the zone in so many pages of higher zones is kept from requests that could
    /// use these; 0 keeps none.
    pub lowmem_reserve_ratio: [u64; 3],
}

impl Default for WatermarkConfig {
    fn default() -> Self {
        Self { min_free_kbytes: None, scale_factor: 10, lowmem_reserve_ratio: [256, 256, 32] }
    }
}

impl WatermarkConfig {
    /// No reserves at all, for tests that count every frame.
    pub const NONE: Self = Self { min_free_kbytes: Some(0), scale_factor: 0, lowmem_reserve_ratio: [0; 3] };
}

/// `sqrt(16 × lowmem)` in KiB, within 128 and 262144.
///
/// # Linux
/// `calculate_min_free_kbytes` in `mm/page_alloc.c`.
pub(super) fn default_min_free_kbytes(lowmem_pages: u64) -> u64 {
    (lowmem_pages.saturating_mul(4).saturating_mul(16)).isqrt().clamp(128, 262_144)
}

/// The marks of a zone of `managed` pages.
///
/// # Linux
/// `__setup_per_zone_wmarks` in `mm/page_alloc.c`.
pub(super) fn zone_watermarks(
    config: &WatermarkConfig,
    min_free_kbytes: u64,
    managed: u64,
    lowmem_pages: u64,
    highmem: bool,
) -> Watermarks {
    let wide = |a: u64, b: u64, c: u64| {
        if c == 0 {
            0
        } else {
            (u128::from(a) * u128::from(b) / u128::from(c)).min(u128::from(u64::MAX)) as u64
        }
    };
    let share = wide(min_free_kbytes / 4, managed, lowmem_pages);
    let min = match highmem {
        true if min_free_kbytes == 0 => 0,
        true => (managed / 1024).clamp(32, 128),
        false => share,
    };
    let gap = (share / 4).max(wide(managed, config.scale_factor, 10_000));
    let low = min.saturating_add(gap);
    Watermarks { min, low, high: low.saturating_add(gap) }
}

/// The lists' batch of a zone of `managed` pages: how many pages move between a CPU and the zone at once.
///
/// # Linux
/// `zone_batchsize` in `mm/page_alloc.c`.
pub(super) fn zone_batch(managed: u64) -> u64 {
    let quarter = ((managed >> 10).min(256) / 4).max(1);
    let spread = quarter + quarter / 2;
    ((1 << spread.ilog2()) - 1).max(1)
}

/// What a request may use of a zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reach {
    /// Down to the low mark.
    Low,
    /// Down to the minimum mark.
    Min,
    /// Down to half of the minimum mark.
    High,
    /// Down to three eighths of the minimum mark.
    Atomic,
    /// Everything.
    All,
}

impl Reach {
    /// How far down a request may go once the low mark has failed it.
    ///
    /// # Linux
    /// `gfp_to_alloc_flags` and `__gfp_pfmemalloc_flags` in `mm/page_alloc.c`.
    pub(super) fn of(gfp: GfpFlags) -> Self {
        let no_reserves = gfp.contains(GfpFlags::NOMEMALLOC);
        if gfp.contains(GfpFlags::MEMALLOC) && !no_reserves {
            return Self::All;
        }
        match (gfp.contains(GfpFlags::HIGH), gfp.contains(GfpFlags::DIRECT_RECLAIM) || no_reserves) {
            (false, _) => Self::Min,
            (true, true) => Self::High,
            (true, false) => Self::Atomic,
        }
    }

    /// The number of free pages that must stay, apart from the lowmem reserve; `None` if none.
    ///
    /// # Linux
    /// `__zone_watermark_ok`.
    pub(super) fn floor(self, marks: Watermarks) -> Option<u64> {
        let half = marks.min - marks.min / 2;
        match self {
            Self::Low => Some(marks.low),
            Self::Min => Some(marks.min),
            Self::High => Some(half),
            Self::Atomic => Some(half - half / 4),
            Self::All => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pc_with_four_gibibytes_has_linux_marks() {
        let lowmem = 1 << 20;
        assert_eq!(default_min_free_kbytes(lowmem), 8192);
        let marks = zone_watermarks(&WatermarkConfig::default(), 8192, lowmem, lowmem, false);
        assert_eq!(marks, Watermarks { min: 2048, low: 2048 + 1048, high: 2048 + 2 * 1048 });
    }

    #[test]
    fn the_default_reserve_is_clamped() {
        assert_eq!(default_min_free_kbytes(0), 128);
        assert_eq!(default_min_free_kbytes(u64::MAX), 262_144);
    }

    #[test]
    fn highmem_keeps_between_32_and_128_pages() {
        let config = WatermarkConfig::default();
        let min = |managed| zone_watermarks(&config, 4096, managed, 1 << 18, true).min;
        assert_eq!((min(100), min(64 * 1024), min(1 << 24)), (32, 64, 128));
    }

    #[test]
    fn batches_follow_the_zone_size() {
        let batch = |managed| zone_batch(managed);
        assert_eq!((batch(0), batch(4096), batch(1 << 16), batch(1 << 20)), (1, 1, 15, 63));
    }

    #[test]
    fn reserves_open_by_need() {
        let marks = Watermarks { min: 1000, low: 1250, high: 1500 };
        let floor = |gfp| Reach::of(gfp).floor(marks);
        assert_eq!(floor(GfpFlags::KERNEL), Some(1000));
        assert_eq!(floor(GfpFlags::KERNEL | GfpFlags::HIGH), Some(500));
        assert_eq!(floor(GfpFlags::ATOMIC), Some(375));
        assert_eq!(floor(GfpFlags::NOWAIT), Some(1000));
        assert_eq!(floor(GfpFlags::KERNEL | GfpFlags::MEMALLOC), None);
        assert_eq!(floor(GfpFlags::KERNEL | GfpFlags::MEMALLOC | GfpFlags::NOMEMALLOC), Some(1000));
    }
}
