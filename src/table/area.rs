//! The areas of the kernel's half that are given out: which, and where there is room.

use super::VmallocError;
use super::format::Caching;
use crate::addr::{PAGE_SIZE_U64, PhysAddr, VirtAddr, VirtRange};

/// What an area is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AreaKind {
    /// Frames of its own, which are freed with it.
    #[doc(alias = "VM_ALLOC")]
    Vmalloc,
    /// Frames of somebody else.
    #[doc(alias = "VM_MAP")]
    Vmap,
    /// A device's memory, from this address on.
    #[doc(alias = "VM_IOREMAP")]
    Ioremap(PhysAddr, Caching),
}

/// How far an area is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Being mapped: nobody knows the address.
    Coming,
    There,
    /// Being unmapped: its addresses are nobody else's yet.
    Going,
}

/// A range that was given out.
///
/// # Linux
/// `struct vm_struct` in `include/linux/vmalloc.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "vm_struct")]
pub struct VmArea {
    range: VirtRange,
    kind: AreaKind,
    state: State,
}

impl VmArea {
    /// Room for one.
    pub(crate) const FREE: Self =
        Self { range: VirtRange::between(0, 0), kind: AreaKind::Vmap, state: State::Coming };

    /// The pages that it has. One page behind them is never mapped.
    pub fn range(&self) -> VirtRange {
        self.range
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.range.len()
    }

    /// What it is for.
    pub fn kind(&self) -> AreaKind {
        self.kind
    }

    /// The first address behind its guard page.
    fn end(&self) -> u64 {
        self.range.end().get().saturating_add(PAGE_SIZE_U64)
    }
}

/// All areas, sorted by their addresses.
#[derive(Debug)]
pub(super) struct Areas<'a> {
    room: &'a mut [VmArea],
    used: usize,
}

impl<'a> Areas<'a> {
    pub(super) fn new(room: &'a mut [VmArea]) -> Self {
        Self { room, used: 0 }
    }

    pub(super) fn all(&self) -> &[VmArea] {
        self.room.get(..self.used).unwrap_or_default()
    }

    /// Takes the lowest range of `inside` that has room for so many bytes, whole pages, and a guard page.
    ///
    /// # Errors
    /// [`VmallocError::TooManyAreas`], [`VmallocError::NoRange`].
    ///
    /// # Linux
    /// `__get_vm_area_node` and `alloc_vmap_area` in `mm/vmalloc.c`.
    pub(super) fn take(
        &mut self,
        inside: VirtRange,
        bytes: u64,
        kind: AreaKind,
    ) -> Result<VirtRange, VmallocError> {
        if self.used == self.room.len() {
            return Err(VmallocError::TooManyAreas);
        }
        let needed = bytes.checked_add(PAGE_SIZE_U64).ok_or(VmallocError::NoRange)?;
        let mut start = inside.start().get();
        let fits = |from: u64, to: u64| to.checked_sub(from).is_some_and(|room| room >= needed);
        let mut place = self.used;
        for (at, area) in self.all().iter().enumerate() {
            if fits(start, area.range.start().get()) {
                place = at;
                break;
            }
            start = area.end();
        }
        if place == self.used && !fits(start, inside.end().get()) {
            return Err(VmallocError::NoRange);
        }
        let range = VirtRange::with_len(VirtAddr::from(start), bytes).ok_or(VmallocError::NoRange)?;
        self.used += 1;
        if let Some(from_here) = self.room.get_mut(place..self.used) {
            from_here.rotate_right(1);
        }
        if let Some(area) = self.room.get_mut(place) {
            *area = VmArea { range, kind, state: State::Coming };
        }
        Ok(range)
    }

    fn place_of(&self, start: VirtAddr) -> Option<usize> {
        self.all().binary_search_by_key(&start, |area| area.range.start()).ok()
    }

    fn at(&mut self, start: VirtAddr) -> Option<&mut VmArea> {
        let place = self.place_of(start)?;
        self.room.get_mut(place)
    }

    /// The area that begins at an address is mapped.
    pub(super) fn note_there(&mut self, start: VirtAddr) {
        if let Some(area) = self.at(start) {
            area.state = State::There;
        }
    }

    /// The area that begins at an address is about to be unmapped, if it is of the right kind; it is nobody else's to unmap then.
    ///
    /// # Errors
    /// [`VmallocError::NoArea`], [`VmallocError::OtherKind`].
    pub(super) fn begin_unmap(
        &mut self,
        start: VirtAddr,
        is_right: impl FnOnce(AreaKind) -> bool,
    ) -> Result<VmArea, VmallocError> {
        let area = self.at(start).filter(|area| area.state == State::There);
        let area = area.ok_or(VmallocError::NoArea)?;
        if !is_right(area.kind) {
            return Err(VmallocError::OtherKind);
        }
        area.state = State::Going;
        Ok(*area)
    }

    /// The area that begins at an address is unmapped: others may have its addresses.
    pub(super) fn give(&mut self, start: VirtAddr) {
        if let Some(place) = self.place_of(start) {
            if let Some(from_here) = self.room.get_mut(place..self.used) {
                from_here.rotate_left(1);
            }
            self.used -= 1;
        }
    }

    /// The area whose pages hold an address, if it is mapped.
    pub(super) fn find(&self, addr: VirtAddr) -> Option<VmArea> {
        let behind = self.all().partition_point(|area| area.range.start() <= addr);
        let area = self.all().get(behind.checked_sub(1)?)?;
        (area.range.end() > addr && area.state == State::There).then_some(*area)
    }

    /// The first area that is not sorted, overlaps the guard page of the one before, or leaves `inside`.
    pub(super) fn first_wrong(&self, inside: VirtRange) -> Option<VirtRange> {
        let mut start = inside.start().get();
        self.all().iter().find_map(|area| {
            let is_right = area.range.start().get() >= start
                && area.range.start().is_page_aligned()
                && area.range.end().is_page_aligned()
                && !area.range.is_empty()
                && area.end() <= inside.end().get();
            start = area.end();
            (!is_right).then_some(area.range)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: VirtRange = VirtRange::between(0x10_0000, 0x10_8000);

    fn take(areas: &mut Areas<'_>, pages: u64) -> Result<u64, VmallocError> {
        let taken = areas.take(INSIDE, pages * PAGE_SIZE_U64, AreaKind::Vmalloc);
        assert_eq!(areas.first_wrong(INSIDE), None);
        taken.map(|range| (range.start().get() - INSIDE.start().get()) / PAGE_SIZE_U64)
    }

    fn give(areas: &mut Areas<'_>, page: u64) {
        areas.give(VirtAddr::from(INSIDE.start().get() + page * PAGE_SIZE_U64));
        assert_eq!(areas.first_wrong(INSIDE), None);
    }

    #[test]
    fn the_lowest_range_with_room_for_the_guard_page_is_taken() {
        let mut room = [VmArea::FREE; 4];
        let mut areas = Areas::new(&mut room);
        // Eight pages.          0 1 2 3 4 5 6 7
        assert_eq!(take(&mut areas, 1), Ok(0)); // A g . . . . . .
        assert_eq!(take(&mut areas, 2), Ok(2)); // A g B B g . . .
        assert_eq!(take(&mut areas, 3), Err(VmallocError::NoRange), "without a guard page it would fit");
        assert_eq!(take(&mut areas, 1), Ok(5)); // A g B B g C g .
        assert_eq!(take(&mut areas, 1), Err(VmallocError::NoRange));
        give(&mut areas, 2); //                    A g . . . C g .
        assert_eq!(take(&mut areas, 3), Err(VmallocError::NoRange));
        assert_eq!(take(&mut areas, 2), Ok(2));
        give(&mut areas, 0); //                    . . B B g C g .
        assert_eq!(take(&mut areas, 2), Err(VmallocError::NoRange));
        assert_eq!(take(&mut areas, 1), Ok(0));
        give(&mut areas, 5);
        give(&mut areas, 2);
        assert_eq!(take(&mut areas, 5), Ok(2));
        assert_eq!(take(&mut areas, u64::MAX / PAGE_SIZE_U64), Err(VmallocError::NoRange));
    }

    #[test]
    fn no_more_areas_are_given_out_than_there_is_room_for() {
        let mut room = [VmArea::FREE; 2];
        let mut areas = Areas::new(&mut room);
        assert_eq!((take(&mut areas, 1), take(&mut areas, 1)), (Ok(0), Ok(2)));
        assert_eq!(take(&mut areas, 1), Err(VmallocError::TooManyAreas));
        give(&mut areas, 0);
        assert_eq!(take(&mut areas, 1), Ok(0));
    }

    #[test]
    fn an_area_is_found_by_its_pages_and_unmapped_once() {
        let mut room = [VmArea::FREE; 2];
        let mut areas = Areas::new(&mut room);
        let at = |page: u64| VirtAddr::from(INSIDE.start().get() + page * PAGE_SIZE_U64);
        let any = |_| true;
        take(&mut areas, 2).unwrap();
        assert_eq!(areas.find(at(1)), None, "not yet mapped");
        assert_eq!(areas.begin_unmap(at(0), any), Err(VmallocError::NoArea));
        areas.note_there(at(0));
        assert_eq!(areas.find(at(1)).map(|area| area.range().start()), Some(at(0)));
        assert_eq!(areas.find(at(2)), None, "the guard page");
        assert_eq!(areas.begin_unmap(at(1), any), Err(VmallocError::NoArea), "not its beginning");
        let other = areas.begin_unmap(at(0), |kind| kind == AreaKind::Vmap);
        assert_eq!(other, Err(VmallocError::OtherKind));
        assert!(areas.begin_unmap(at(0), any).is_ok());
        assert_eq!(areas.begin_unmap(at(0), any), Err(VmallocError::NoArea), "twice");
        assert_eq!(areas.find(at(0)), None);
        assert_eq!(take(&mut areas, 1), Ok(3), "its addresses are not given out before they are forgotten");
    }
}
