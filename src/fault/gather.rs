//! What goes when entries were taken out, once no lock is held.

use super::Pager;
use crate::addr::{Pfn, VirtRange};
use crate::mm::MmContext;
use crate::phys::{Page, PageSource};
use crate::rmap::AnonVmaId;
use crate::table::TlbGather;

/// How many owners wait at a time.
const OWNERS: usize = 8;

/// Owners of anonymous pages that have lost some. They are told later: their lock stands outside those of page tables.
#[derive(Debug, Default)]
pub(super) struct Owners([Option<(AnonVmaId, u32)>; OWNERS]);

impl Owners {
    /// Whether one more owner might not fit.
    pub(super) fn is_full(&self) -> bool {
        self.0.iter().all(Option::is_some)
    }

    /// One page of this owner is mapped no more.
    pub(super) fn lose(&mut self, page: &Page) {
        let Some(owner) = AnonVmaId::new(page.mapping()) else { return };
        let own = |place: &&mut Option<(AnonVmaId, u32)>| place.is_none_or(|(other, _)| other == owner);
        if let Some(place) = self.0.iter_mut().find(own) {
            *place = Some((owner, place.map_or(1, |(_, pages)| pages + 1)));
        }
    }

    /// Tells them.
    pub(super) fn tell(&mut self, context: &MmContext<'_>) {
        for (owner, pages) in self.0.iter_mut().filter_map(Option::take) {
            let counted = context.anon_vmas().remove_pages(owner, pages);
            debug_assert!(counted, "an owner lost pages that it did not have");
        }
    }
}

/// Pages and translations on their way out, and the owners that lose pages.
#[derive(Debug)]
#[must_use = "what it holds goes when it is finished"]
pub(super) struct Gather<'a, S: PageSource> {
    pub(super) tlb: TlbGather<'a, S>,
    pub(super) owners: Owners,
    context: &'a MmContext<'a>,
}

impl<'a, S: PageSource> Gather<'a, S> {
    pub(super) fn new<F>(pager: &Pager<'a, '_, S, F>, tlb: TlbGather<'a, S>) -> Self {
        Self { tlb, owners: Owners::default(), context: pager.context }
    }

    /// Whether one more page might not fit.
    pub(super) fn is_full(&self) -> bool {
        self.tlb.is_full() || self.owners.is_full()
    }

    /// Lets go of all if one more page might not fit.
    pub(super) fn make_room(&mut self) {
        if self.is_full() {
            self.tlb.flush();
            self.owners.tell(self.context);
        }
    }

    pub(super) fn flush_range(&mut self, range: VirtRange) {
        self.tlb.flush_range(range);
    }

    pub(super) fn page(&mut self, pfn: Pfn) {
        self.tlb.page(pfn);
    }

    /// Lets go of all.
    pub(super) fn finish(mut self) {
        self.tlb.flush();
        self.owners.tell(self.context);
    }
}
