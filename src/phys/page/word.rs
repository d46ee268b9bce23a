//! Where a page lies, and the block that it heads, in one word.

use super::super::migrate::MigrateType;
use crate::addr::PageOrder;

/// Where a page lies: there is exactly one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum PageState {
    /// No RAM here: a hole inside a page block.
    Absent = 0,
    /// RAM that the allocator does not manage.
    Reserved = 1,
    /// Inside a block whose first page tells where it lies.
    Interior = 2,
    /// The first page of a block on a free list.
    Free = 3,
    /// The first page of a block on a deferred list: free, its merge put off.
    Deferred = 4,
    /// The first page of a block on a CPU's list or in the depot.
    OnCpu = 5,
    /// The first page of an allocated block.
    Allocated = 6,
}

impl PageState {
    /// Whether the page is the first of a block.
    pub const fn is_head(self) -> bool {
        self as u16 >= Self::Free as u16
    }
}

/// State, order and migrate type in one word, so that a free is checked by one comparison.
///
/// Bits 0–1 migrate type, 2–5 order, 6–8 state. Of pages that are no heads only the state counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::phys) struct BlockWord(pub(super) u16);

impl BlockWord {
    const ORDER_SHIFT: u32 = 2;
    const STATE_SHIFT: u32 = 6;
    const MIGRATE_MASK: u16 = 3;

    #[inline]
    pub(in crate::phys) const fn new(state: PageState, order: PageOrder, migrate: MigrateType) -> Self {
        Self((state as u16) << Self::STATE_SHIFT | (order.get() as u16) << Self::ORDER_SHIFT | migrate as u16)
    }

    /// The word of a block on, or from, the list of this number.
    #[inline]
    pub(in crate::phys) const fn of_list(state: PageState, list: usize) -> Self {
        Self((list & 63) as u16 | (state as u16) << Self::STATE_SHIFT)
    }

    /// The word of a page that is no head.
    pub(in crate::phys) const fn of(state: PageState) -> Self {
        Self((state as u16) << Self::STATE_SHIFT)
    }

    /// Whether the page heads a block of this state and order, of whatever migrate type.
    #[inline]
    pub(in crate::phys) const fn is(self, state: PageState, order: PageOrder) -> bool {
        self.0 & !Self::MIGRATE_MASK == Self::new(state, order, MigrateType::Unmovable).0
    }

    #[inline]
    pub(in crate::phys) const fn state(self) -> PageState {
        match self.0 >> Self::STATE_SHIFT {
            0 => PageState::Absent,
            1 => PageState::Reserved,
            2 => PageState::Interior,
            3 => PageState::Free,
            4 => PageState::Deferred,
            5 => PageState::OnCpu,
            _ => PageState::Allocated,
        }
    }

    /// The order of the block that the page heads.
    #[inline]
    pub(in crate::phys) const fn order(self) -> PageOrder {
        match PageOrder::new((self.0 >> Self::ORDER_SHIFT & 15) as u8) {
            Some(order) => order,
            None => PageOrder::MAX,
        }
    }

    #[inline]
    pub(in crate::phys) const fn migrate(self) -> MigrateType {
        MigrateType::from_bits(self.0 as u32)
    }

    /// Order and migrate type as a list's number: `order << 2 | migrate type`, below 64.
    #[inline]
    pub(in crate::phys) const fn list(self) -> usize {
        (self.0 & 63) as usize
    }

    /// The same block in another state.
    #[inline]
    pub(in crate::phys) const fn with_state(self, state: PageState) -> Self {
        Self(self.0 & 63 | (state as u16) << Self::STATE_SHIFT)
    }
}
