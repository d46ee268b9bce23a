//! The order of a block of pages.

use super::PAGE_SHIFT;

/// log2 of a number of pages: 0 is one page, 9 is 512 pages (2 MiB).
///
/// # Linux
/// The `order` argument of `alloc_pages` with `MAX_PAGE_ORDER` 9.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct PageOrder(Level);

/// The orders one by one, so that the compiler knows that there are no others and leaves out the checks of indices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
enum Level {
    #[default]
    L0,
    L1,
    L2,
    L3,
    L4,
    L5,
    L6,
    L7,
    L8,
    L9,
}

impl PageOrder {
    /// One page.
    pub const ZERO: Self = Self(Level::L0);
    /// The largest block: 512 pages, which is also a page block of one migrate type.
    pub const MAX: Self = Self(Level::L9);
    /// How many orders there are.
    pub const COUNT: usize = 10;

    /// Makes an order; `None` above 9.
    #[inline]
    pub const fn new(order: u8) -> Option<Self> {
        Some(Self(match order {
            0 => Level::L0,
            1 => Level::L1,
            2 => Level::L2,
            3 => Level::L3,
            4 => Level::L4,
            5 => Level::L5,
            6 => Level::L6,
            7 => Level::L7,
            8 => Level::L8,
            9 => Level::L9,
            _ => return None,
        }))
    }

    /// The raw number, at most 9.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0 as u8
    }

    /// The raw number as an index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Pages in a block of this order.
    #[inline]
    pub const fn pages(self) -> u64 {
        1 << self.0 as u8
    }

    /// Bytes in a block of this order.
    #[inline]
    pub const fn bytes(self) -> usize {
        1 << (self.0 as u32 + PAGE_SHIFT)
    }

    /// The next larger order, if there is one.
    #[inline]
    pub const fn up(self) -> Option<Self> {
        Self::new(self.get() + 1)
    }

    /// The next smaller order, if there is one.
    #[inline]
    pub const fn down(self) -> Option<Self> {
        match self.get().checked_sub(1) {
            Some(order) => Self::new(order),
            None => None,
        }
    }

    /// The smallest order whose block holds `bytes`; `None` for 0 bytes or more than the largest block.
    ///
    /// # Linux
    /// `get_order` in `include/asm-generic/getorder.h`.
    #[inline]
    pub const fn for_bytes(bytes: usize) -> Option<Self> {
        match bytes.checked_sub(1) {
            None => None,
            Some(last) => Self::for_last_page(last >> PAGE_SHIFT),
        }
    }

    /// The smallest order whose block holds `pages`; `None` for 0 pages or more than the largest block.
    #[inline]
    pub const fn for_pages(pages: u64) -> Option<Self> {
        if pages == 0 || pages > Self::MAX.pages() { None } else { Self::for_last_page((pages - 1) as usize) }
    }

    /// All orders, smallest first.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + Clone {
        (0..Self::COUNT as u8).filter_map(Self::new)
    }

    /// The orders from `self` up to the largest.
    pub fn and_above(self) -> impl DoubleEndedIterator<Item = Self> + Clone {
        Self::all().filter(move |&order| order >= self)
    }

    const fn for_last_page(last: usize) -> Option<Self> {
        let order = usize::BITS - last.leading_zeros();
        if order <= Self::MAX.get() as u32 { Self::new(order as u8) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::PageOrder;

    #[test]
    fn for_bytes_rounds_up_to_the_next_block() {
        let order = |bytes| PageOrder::for_bytes(bytes).map(PageOrder::get);
        assert_eq!(order(0), None);
        assert_eq!(order(1), Some(0));
        assert_eq!(order(4096), Some(0));
        assert_eq!(order(4097), Some(1));
        assert_eq!(order(2 << 20), Some(9));
        assert_eq!(order((2 << 20) + 1), None);
        assert_eq!(order(usize::MAX), None);
    }

    #[test]
    fn for_pages_agrees_with_for_bytes() {
        for pages in 0..=1024_u64 {
            assert_eq!(PageOrder::for_pages(pages), PageOrder::for_bytes(pages as usize * 4096), "{pages}");
        }
        assert_eq!(PageOrder::for_pages(u64::MAX), None);
    }
}
