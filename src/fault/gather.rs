//! What goes when entries were taken out, once no lock is held.

use super::Pager;
use super::entry::Gone;
use crate::addr::{Pfn, VirtRange};
use crate::cache::PageCache;
use crate::mm::{MmContext, MmSlot, RssKind};
use crate::phys::{Page, PageSource};
use crate::rmap::AnonVmaId;
use crate::table::{TlbGather, WithRoom};

/// How many owners wait at a time.
const OWNERS: usize = 16;

/// Owners of anonymous pages that have lost some. They are told later: their lock stands outside those of page tables.
#[derive(Debug, Default)]
pub(super) struct Owners([Option<(AnonVmaId, u32)>; OWNERS]);

impl Owners {
    /// Whether one more owner might not fit.
    pub(super) fn is_full(&self) -> bool {
        !self.has_room(1)
    }

    /// Whether so many owners more fit. Places are filled one behind the other.
    #[inline]
    fn has_room(&self, owners: usize) -> bool {
        OWNERS.checked_sub(owners).and_then(|last| self.0.get(last)).is_some_and(Option::is_none)
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
pub(super) struct Gather<'a, 'm, S: PageSource> {
    pub(super) tlb: TlbGather<'a, S>,
    pub(super) owners: Owners,
    /// How many pages of each kind are to be counted off.
    gone: [u64; RssKind::ALL.len()],
    source: &'a S,
    shared: &'a MmSlot,
    cache: &'a PageCache<'m>,
    context: &'a MmContext<'a>,
}

impl<'a, 'm, S: PageSource> Gather<'a, 'm, S> {
    pub(super) fn new<F>(pager: &Pager<'a, 'm, S, F>, shared: &'a MmSlot, tlb: TlbGather<'a, S>) -> Self {
        Self {
            tlb,
            owners: Owners::default(),
            gone: [0; RssKind::ALL.len()],
            source: pager.source,
            shared,
            cache: pager.cache,
            context: pager.context,
        }
    }

    /// Whether so many pages more fit for sure.
    #[inline]
    pub(super) fn has_room(&self, pages: usize) -> bool {
        self.tlb.has_room(pages) && self.owners.has_room(pages)
    }

    pub(super) fn flush_range(&mut self, range: VirtRange) {
        self.tlb.flush_range(range);
    }

    /// Takes the reference to a page that an entry mapped. A CPU that still has the translation may write on to one of a file until it has forgotten it;
    /// what was written back before that is then older again.
    pub(super) fn page(&mut self, page: Gone) {
        self.gone[page.kind as usize] += 1;
        match page.written {
            true => self.tlb.written_page(page.pfn),
            false => self.tlb.page(page.pfn),
        }
    }

    /// Lets go of all.
    pub(super) fn finish(self) {
        drop(self);
    }

    /// Makes room for so many pages. No lock is held.
    pub(super) fn make_room(&mut self, pages: usize) {
        self.settle();
        if !self.tlb.has_room(pages) {
            let (source, cache) = (self.source, self.cache);
            self.tlb.make_room_with(|pfn| dirty(source, cache, pfn));
        }
    }

    /// Counts pages off. Their frames may be in use yet.
    fn settle(&mut self) {
        for (kind, gone) in RssKind::ALL.into_iter().zip(&mut self.gone).filter(|(_, gone)| **gone != 0) {
            let counted = self.shared.sub_rss(kind, core::mem::take(gone));
            debug_assert!(counted, "more pages went than there were");
        }
        self.owners.tell(self.context);
    }
}

impl<'a, S: PageSource> WithRoom<'a, S> for Gather<'a, '_, S> {
    fn with_room(&mut self) -> &mut TlbGather<'a, S> {
        if self.tlb.is_full() {
            self.make_room(1);
        }
        &mut self.tlb
    }
}

impl<S: PageSource> Drop for Gather<'_, '_, S> {
    fn drop(&mut self) {
        let (source, cache) = (self.source, self.cache);
        self.tlb.finish_with(|pfn| dirty(source, cache, pfn));
        self.settle();
    }
}

/// Notes that a page of a file was written through an entry that is gone, once no CPU can write through it any more: only then is it dirty for good. The
/// reference that kept it goes after that.
pub(super) fn dirty<S: PageSource>(source: &S, cache: &PageCache<'_>, pfn: Pfn) {
    // A page that a truncation took from its file is nobody's to write back.
    cache.set_dirty(source, pfn);
}
