//! Physical addresses and page frame numbers.

use super::{PAGE_OFFSET_MASK, PAGE_SHIFT, PageOrder, unit, unit_range};

/// A physical address in bytes, below 2^52.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PhysAddr(u64);
unit!(PhysAddr, 1 << 52, "a physical address");

impl PhysAddr {
    /// The frame that holds this byte.
    #[inline]
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }

    /// The offset inside the frame, in bytes.
    #[inline]
    pub const fn page_offset(self) -> u64 {
        self.0 & PAGE_OFFSET_MASK
    }
}

/// A page frame number: a physical address divided by the page size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Pfn(u64);
unit!(Pfn, 1 << 40, "a page frame number");

impl Pfn {
    /// Makes a frame number of one that is known to be in range.
    #[inline]
    pub(crate) const fn trusted(raw: u64) -> Self {
        debug_assert!(raw <= Self::MAX.0);
        Self(raw)
    }

    /// The address of the frame's first byte.
    #[inline]
    pub const fn addr(self) -> PhysAddr {
        PhysAddr(self.0 << PAGE_SHIFT)
    }

    /// Whether a block of `order` may start here.
    #[inline]
    pub const fn is_aligned(self, order: PageOrder) -> bool {
        self.0 & (order.pages() - 1) == 0
    }
}

/// A half-open range of physical bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PhysRange {
    start: PhysAddr,
    end: PhysAddr,
}
unit_range!(PhysRange, PhysAddr);

/// A half-open range of page frames.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PfnRange {
    start: Pfn,
    end: Pfn,
}
unit_range!(PfnRange, Pfn);

impl PfnRange {
    /// The frames inside, in order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Pfn> + Clone {
        (self.start.get()..self.end.get()).map(Pfn)
    }
}

impl PhysRange {
    /// The frames of which every byte lies inside.
    #[inline]
    pub const fn whole_frames(self) -> PfnRange {
        let start = Pfn(self.start.0.div_ceil(1 << PAGE_SHIFT));
        let end = self.end.pfn();
        if start.0 < end.0 { PfnRange { start, end } } else { PfnRange { start, end: start } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(start: u64, end: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start).unwrap(), PhysAddr::new(end).unwrap()).unwrap()
    }

    #[test]
    fn whole_frames_clips_inward() {
        let frames = |start, end| {
            let range = bytes(start, end).whole_frames();
            (range.start().get(), range.len())
        };
        assert_eq!(frames(0, 0x1000), (0, 1));
        assert_eq!(frames(1, 0x2fff), (1, 1));
        assert_eq!(frames(1, 0x1fff), (1, 0));
        assert_eq!(frames((1 << 52) - 0x1000, 1 << 52), ((1 << 40) - 1, 1));
    }

    #[test]
    fn addresses_beyond_52_bits_are_refused() {
        assert!(PhysAddr::new(1 << 52).is_some(), "the end of the last range");
        assert!(PhysAddr::new((1 << 52) + 1).is_none());
        assert!(PhysAddr::MAX.checked_add(1).is_none());
    }
}
