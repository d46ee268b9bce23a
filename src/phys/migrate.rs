//! Migrate types: pages that can move are kept apart from pages that cannot.
//!
//! A page block of 512 pages has one type, and its free blocks lie on that type's lists. A request whose own lists are
//! empty takes from another type: the largest block first, together with the rest of its page block where that pays, so
//! that few page blocks are ever mixed.

use static_assertions::const_assert;

use crate::addr::PageOrder;
use crate::flags::GfpFlags;

// The fast path goes from the flags to the list without a table.
const_assert!(GfpFlags::MOVABLE.mobility_bits() == MigrateType::Movable as usize);
const_assert!(GfpFlags::RECLAIMABLE.mobility_bits() == MigrateType::Reclaimable as usize);

/// How the pages of a page block can be got back.
///
/// # Linux
/// `enum migratetype` in `include/linux/mmzone.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "migratetype")]
#[repr(u8)]
pub enum MigrateType {
    /// Not at all: the kernel's own data.
    Unmovable = 0,
    /// By moving the contents elsewhere: user memory.
    Movable = 1,
    /// By reclaiming them: caches.
    Reclaimable = 2,
}

impl MigrateType {
    /// How many types there are.
    pub const COUNT: usize = 3;
    /// All types.
    pub const ALL: [Self; Self::COUNT] = [Self::Unmovable, Self::Movable, Self::Reclaimable];

    /// The type in the two low bits; the unused fourth value counts as unmovable.
    #[inline]
    pub(super) const fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            1 => Self::Movable,
            2 => Self::Reclaimable,
            _ => Self::Unmovable,
        }
    }

    /// The types by the [mobility bits](GfpFlags::mobility_bits) of requests, none where these contradict each other.
    pub(super) const BY_MOBILITY: [Option<Self>; 4] =
        [Some(Self::Unmovable), Some(Self::Movable), Some(Self::Reclaimable), None];
    /// The same where types are not told apart.
    pub(super) const UNGROUPED: [Option<Self>; 4] =
        [Some(Self::Unmovable), Some(Self::Unmovable), Some(Self::Unmovable), None];

    /// The types to take from when this one's lists are empty, best first.
    ///
    /// # Linux
    /// `fallbacks` in `mm/page_alloc.c`.
    pub(super) const fn fallbacks(self) -> [Self; Self::COUNT - 1] {
        match self {
            Self::Unmovable => [Self::Reclaimable, Self::Movable],
            Self::Movable => [Self::Reclaimable, Self::Unmovable],
            Self::Reclaimable => [Self::Unmovable, Self::Movable],
        }
    }

    /// Whether a request of this type may claim the page block around a block of `order` that it takes.
    ///
    /// Movable requests claim only around large blocks: the pages they leave behind can be moved away later.
    ///
    /// # Linux
    /// `should_try_claim_block` in `mm/page_alloc.c` (6.15).
    pub(super) fn claims(self, order: PageOrder) -> bool {
        order.get() >= PageOrder::MAX.get() / 2 || self != Self::Movable
    }

    /// The type's name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unmovable => "Unmovable",
            Self::Movable => "Movable",
            Self::Reclaimable => "Reclaimable",
        }
    }
}
