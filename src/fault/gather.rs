//! What goes when entries were taken out, once no lock is held.

use super::Pager;
use super::entry::Gone;
use crate::addr::{Pfn, VirtRange};
use crate::cache::PageCache;
use crate::mm::{MmContext, MmSlot, RssKind};
use crate::phys::{Page, PageSource};
use crate::rmap::AnonVmaId;
use crate::table::TlbGather;

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

/// How many written pages of files wait at a time.
const WRITTEN: usize = 32;

/// Pages of files that were written through entries which are gone. A CPU that still has the translation may write on until it has forgotten it;
/// what was written back before that is then older again.
#[derive(Debug)]
struct Written {
    pages: [Pfn; WRITTEN],
    len: usize,
}

/// Pages and translations on their way out, and the owners that lose pages.
#[derive(Debug)]
#[must_use = "what it holds goes when it is finished"]
pub(super) struct Gather<'a, 'm, S: PageSource> {
    pub(super) tlb: TlbGather<'a, S>,
    pub(super) owners: Owners,
    written: Written,
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
            written: Written { pages: [Pfn::ZERO; WRITTEN], len: 0 },
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
        self.tlb.has_room(pages) && self.owners.has_room(pages) && self.written.len + pages <= WRITTEN
    }

    pub(super) fn flush_range(&mut self, range: VirtRange) {
        self.tlb.flush_range(range);
    }

    /// Takes the reference to a page that an entry mapped.
    pub(super) fn page(&mut self, page: Gone) {
        self.gone[page.kind as usize] += 1;
        if let Some(place) = self.written.pages.get_mut(self.written.len).filter(|_| page.written) {
            *place = page.pfn;
            self.written.len += 1;
        }
        self.tlb.page(page.pfn);
    }

    /// Lets go of all.
    pub(super) fn finish(self) {
        drop(self);
    }

    /// Lets go of all, and goes on. No lock is held.
    pub(super) fn let_go(&mut self) {
        for (kind, gone) in RssKind::ALL.into_iter().zip(&mut self.gone).filter(|(_, gone)| **gone != 0) {
            let counted = self.shared.sub_rss(kind, core::mem::take(gone));
            debug_assert!(counted, "more pages went than there were");
        }
        let written = core::mem::take(&mut self.written.len);
        if written != 0 {
            self.tlb.forget();
        }
        let written = self.written.pages.get(..written).unwrap_or_default();
        after_flush(self.source, self.cache, written, || self.tlb.flush());
        self.owners.tell(self.context);
    }
}

impl<S: PageSource> Drop for Gather<'_, '_, S> {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Lets go of pages that entries mapped which are gone, once no CPU can write through them any more: only then are files' pages dirty for good that were
/// `written`, and only then do the references go that kept them.
pub(super) fn after_flush<S: PageSource>(
    source: &S,
    cache: &PageCache<'_>,
    written: &[Pfn],
    drop_pages: impl FnOnce(),
) {
    for &pfn in written {
        // A page that a truncation took from its file is nobody's to write back.
        cache.set_dirty(source, pfn);
    }
    drop_pages();
}
