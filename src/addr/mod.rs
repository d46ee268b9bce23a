//! Addresses, page numbers and orders: one type a unit, so that a page number is never added to a byte count.
//!
//! | type | unit | limit |
//! |---|---|---|
//! | [`PhysAddr`] | bytes | 2^52 |
//! | [`Pfn`] | page frames | 2^40 |
//! | [`VirtAddr`] | bytes | 2^64 |
//! | [`Vpn`] | virtual pages | 2^52 |
//! | [`PgOff`] | pages of a file | 2^52 |
//! | [`PageOrder`] | log2 of a number of pages | 9 |
//!
//! Constructors that can be given a bad value return an `Option`; arithmetic is checked.

mod order;
mod physical;
mod virt;

pub use order::PageOrder;
pub use physical::{Pfn, PfnRange, PhysAddr, PhysRange};
pub use virt::{PgOff, VirtAddr, VirtRange, Vpn};

use static_assertions::const_assert_eq;

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Bytes in a page, for arithmetic on 64-bit addresses.
pub const PAGE_SIZE_U64: u64 = 1 << PAGE_SHIFT;
/// The bits of an address that lie inside a page.
pub const PAGE_OFFSET_MASK: u64 = PAGE_SIZE_U64 - 1;

const_assert_eq!(PAGE_SIZE, 4096);
const_assert_eq!(PageOrder::MAX.bytes(), 2 << 20);

/// Implements what every unit newtype has: raw access, checked arithmetic, ordering, hexadecimal formatting.
macro_rules! unit {
    ($name:ident, $max:expr, $what:literal) => {
        impl $name {
            /// The first value of this unit.
            pub const ZERO: Self = Self(0);
            /// The greatest value of this unit.
            pub const MAX: Self = Self($max);

            #[doc = concat!("Makes ", $what, " of a raw number; `None` if it is above [`Self::MAX`].")]
            #[inline]
            pub const fn new(raw: u64) -> Option<Self> {
                if raw <= $max { Some(Self(raw)) } else { None }
            }

            /// The raw number.
            #[inline]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// `self + n` in this type's unit, unless that leaves its range.
            #[inline]
            pub const fn checked_add(self, n: u64) -> Option<Self> {
                match self.0.checked_add(n) {
                    Some(raw) => Self::new(raw),
                    None => None,
                }
            }

            /// `self - n` in this type's unit, unless that leaves its range.
            #[inline]
            pub const fn checked_sub(self, n: u64) -> Option<Self> {
                match self.0.checked_sub(n) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// The distance from `earlier` to `self`, unless `earlier` is the later one.
            #[inline]
            pub const fn checked_since(self, earlier: Self) -> Option<u64> {
                self.0.checked_sub(earlier.0)
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl core::fmt::LowerHex for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}
pub(crate) use unit;

/// Implements a half-open range of a unit that is never inverted.
macro_rules! unit_range {
    ($range:ident, $unit:ident) => {
        impl $range {
            /// The range `start..end`; `None` if `end` is before `start`.
            #[inline]
            pub const fn new(start: $unit, end: $unit) -> Option<Self> {
                if start.get() <= end.get() { Some(Self { start, end }) } else { None }
            }

            /// The range of `len` units from `start`; `None` if it leaves the unit's range.
            #[inline]
            pub const fn with_len(start: $unit, len: u64) -> Option<Self> {
                match start.checked_add(len) {
                    Some(end) => Some(Self { start, end }),
                    None => None,
                }
            }

            /// The first unit inside.
            #[inline]
            pub const fn start(self) -> $unit {
                self.start
            }

            /// The first unit after.
            #[inline]
            pub const fn end(self) -> $unit {
                self.end
            }

            /// How many units lie inside.
            #[inline]
            pub const fn len(self) -> u64 {
                self.end.get() - self.start.get()
            }

            /// Whether nothing lies inside.
            #[inline]
            pub const fn is_empty(self) -> bool {
                self.start.get() == self.end.get()
            }

            /// Whether `at` lies inside.
            #[inline]
            pub const fn contains(self, at: $unit) -> bool {
                self.start.get() <= at.get() && at.get() < self.end.get()
            }

            /// Whether all of `other` lies inside; an empty range lies in every range that holds its start.
            #[inline]
            pub const fn encloses(self, other: Self) -> bool {
                self.start.get() <= other.start.get() && other.end.get() <= self.end.get()
            }

            /// Whether the two share a unit.
            #[inline]
            pub const fn overlaps(self, other: Self) -> bool {
                self.start.get() < other.end.get()
                    && other.start.get() < self.end.get()
                    && !self.is_empty()
                    && !other.is_empty()
            }
        }

        impl core::fmt::Debug for $range {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{:#x}..{:#x}", self.start.get(), self.end.get())
            }
        }
    };
}
pub(crate) use unit_range;
