//! What the slab asks of the frames it owns: pages by one number for all zones, and blocks by any of their pages.

use crate::addr::Pfn;

use super::Phys;
use super::page::{Page, PageState};

impl<'m> Phys<'m> {
    /// All zones' pages, by place. An owner may link allocated pages by it.
    #[inline]
    pub(crate) fn all_pages(&self) -> &'m [Page] {
        self.sections.pages
    }

    /// The place of the first page of the allocated block that holds a frame, and how many pages that is before it.
    #[inline]
    pub(crate) fn head_place(&self, pfn: Pfn) -> Option<(u32, u32)> {
        let (place, page) = self.sections.find(pfn)?;
        match page.state() {
            PageState::Allocated => Some((place, 0)),
            PageState::Interior => self.head_of_interior(place, page),
            _ => None,
        }
    }

    #[inline(never)]
    fn head_of_interior(&self, place: u32, page: &Page) -> Option<(u32, u32)> {
        let zone = self.zone(page.zone())?;
        let (head, word) = zone.map.head_of(place)?;
        (word.state() == PageState::Allocated).then_some((head, place - head))
    }

    /// The frame of the page at a place.
    #[inline]
    pub(crate) fn pfn_at(&self, place: u32) -> Option<Pfn> {
        self.sections.pages.get(place as usize)?;
        Some(self.sections.pfn(place))
    }

    /// The same for as long as these frames have metadata, and different for any other frames.
    #[inline]
    pub(crate) fn identity(&self) -> usize {
        self.sections.pages.as_ptr().addr()
    }
}
