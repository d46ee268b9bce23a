//! Virtual addresses, virtual page numbers and page offsets in a file.

use super::{PAGE_OFFSET_MASK, PAGE_SHIFT, unit, unit_range};

/// A virtual address in bytes. Any 64-bit number is one; whether it is canonical or a user's is not its affair.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct VirtAddr(u64);
unit!(VirtAddr, u64::MAX, "a virtual address");

impl From<u64> for VirtAddr {
    #[inline]
    fn from(raw: u64) -> Self {
        Self(raw)
    }
}

impl VirtAddr {
    /// The virtual page that holds this byte.
    #[inline]
    pub const fn vpn(self) -> Vpn {
        Vpn(self.0 >> PAGE_SHIFT)
    }

    /// The offset inside the page, in bytes.
    #[inline]
    pub const fn page_offset(self) -> u64 {
        self.0 & PAGE_OFFSET_MASK
    }

    /// Whether this is the first byte of a page.
    #[inline]
    pub const fn is_page_aligned(self) -> bool {
        self.page_offset() == 0
    }

    /// The first byte of this page.
    #[inline]
    pub const fn page_floor(self) -> Self {
        Self(self.0 & !PAGE_OFFSET_MASK)
    }

    /// The first page boundary at or after this byte, unless that wraps.
    #[inline]
    pub const fn checked_page_ceil(self) -> Option<Self> {
        match self.0.checked_add(PAGE_OFFSET_MASK) {
            Some(sum) => Some(Self(sum & !PAGE_OFFSET_MASK)),
            None => None,
        }
    }
}

/// A virtual page number: a virtual address divided by the page size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Vpn(u64);
unit!(Vpn, u64::MAX >> PAGE_SHIFT, "a virtual page number");

impl Vpn {
    /// The address of the page's first byte.
    #[inline]
    pub const fn addr(self) -> VirtAddr {
        VirtAddr(self.0 << PAGE_SHIFT)
    }
}

/// An offset in a file, in pages.
///
/// # Linux
/// `pgoff_t` in `include/linux/types.h`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[doc(alias = "pgoff_t")]
#[repr(transparent)]
pub struct PgOff(u64);
unit!(PgOff, u64::MAX >> PAGE_SHIFT, "a page offset");

/// A half-open range of virtual bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct VirtRange {
    start: VirtAddr,
    end: VirtAddr,
}
unit_range!(VirtRange, VirtAddr);

impl VirtRange {
    /// The range `start..end` for constants; empty if `end` is before `start`.
    pub(crate) const fn between(start: u64, end: u64) -> Self {
        let end = if end < start { start } else { end };
        Self { start: VirtAddr(start), end: VirtAddr(end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_ceil_refuses_to_wrap() {
        let ceil = |raw| VirtAddr::new(raw).unwrap().checked_page_ceil().map(VirtAddr::get);
        assert_eq!(ceil(0), Some(0));
        assert_eq!(ceil(1), Some(0x1000));
        assert_eq!(ceil(u64::MAX - 0xfff), Some(u64::MAX - 0xfff));
        assert_eq!(ceil(u64::MAX - 0xffe), None);
    }

    #[test]
    fn ranges_of_zero_length_overlap_nothing() {
        let range = |start, end| VirtRange::new(VirtAddr::new(start).unwrap(), VirtAddr::new(end).unwrap());
        assert!(range(2, 1).is_none());
        let empty = range(5, 5).unwrap();
        let around = range(0, 10).unwrap();
        assert!(!around.overlaps(empty));
        assert!(around.encloses(empty));
        assert!(around.overlaps(range(9, 11).unwrap()));
        assert!(!around.overlaps(range(10, 11).unwrap()));
    }
}
