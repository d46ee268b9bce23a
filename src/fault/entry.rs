//! What goes with an entry: rights, counts, owners, resident sizes.

use core::sync::atomic::{Ordering::SeqCst, fence};

use super::gather::{Gather, Owners, dirty};
use super::{Access, MmPager, Pager, Signal, Stop};
use crate::addr::{PageOrder, Pfn, PgOff, VirtAddr, VirtRange};
use crate::flags::{GfpFlags, PageFlags, PageProt, VmFlags};
use crate::mm::{AnonVma, FileKind, RssKind, Vma};
use crate::phys::{AllocError, Kmap, KmapError, Page, PageSource, PageState};
use crate::platform::{CpuPin, Platform};
use crate::table::{EntryFormat, Mapped, PteBits};

/// What an anonymous page has beside its owner.
pub(super) const ANONYMOUS: PageFlags =
    PageFlags::ANON.union(PageFlags::SWAP_BACKED).union(PageFlags::UPTODATE);

/// What a page is for that is not copied to and from.
const NOT_DATA: PageFlags = PageFlags::SLAB.union(PageFlags::TABLE);

/// What an entry allows, all else aside.
pub(super) const RIGHTS: PteBits =
    PteBits::READ.union(PteBits::WRITE).union(PteBits::EXEC).union(PteBits::PROT_NONE);

/// What a VMA's entries allow at first.
pub(super) fn rights(vma: &Vma) -> PteBits {
    let prot = vma.page_prot();
    let mut bits = PteBits::USER;
    bits.set(PteBits::READ, prot.contains(PageProt::READ));
    bits.set(PteBits::WRITE, prot.contains(PageProt::WRITE));
    bits.set(PteBits::EXEC, prot.contains(PageProt::EXEC));
    bits.set(PteBits::PROT_NONE, prot.is_empty());
    bits
}

/// Whether an entry with these bits lets an access pass.
pub(super) fn allows(bits: PteBits, access: Access) -> bool {
    let needed = match access {
        Access::Read => PteBits::READ,
        Access::Write => PteBits::WRITE,
        Access::Exec => PteBits::EXEC,
    };
    bits.contains(needed) && !bits.contains(PteBits::PROT_NONE)
}

/// What an access leaves in the entry that it goes through.
pub(super) fn noted(access: Access) -> PteBits {
    match access {
        Access::Write => PteBits::ACCESSED | PteBits::DIRTY,
        Access::Read | Access::Exec => PteBits::ACCESSED,
    }
}

/// `bits` with the right to write, if the VMA has it.
#[doc(alias = "maybe_mkwrite")]
pub(super) fn writable(bits: PteBits, flags: VmFlags) -> PteBits {
    if flags.contains(VmFlags::WRITE) {
        bits | PteBits::WRITE | PteBits::DIRTY
    } else {
        bits | PteBits::DIRTY
    }
}

/// A page that an entry mapped, whose reference is still there.
pub(super) struct Gone {
    pub(super) pfn: Pfn,
    /// What it is no longer counted as.
    pub(super) kind: RssKind,
    /// Whether it is one of a file that was written through the entry.
    pub(super) written: bool,
}

/// A reference to a page, or one to each page of a block: dropped with this, unless it becomes an entry's.
#[must_use]
pub(super) struct PageHold<'a, S: PageSource> {
    source: &'a S,
    pfn: Pfn,
    order: PageOrder,
}

impl<'a, S: PageSource> PageHold<'a, S> {
    /// The caller's reference to a page.
    pub(super) const fn new(source: &'a S, pfn: Pfn) -> Self {
        Self { source, pfn, order: PageOrder::ZERO }
    }

    /// The caller's references to the pages of a block of 2 MiB, split or about to be.
    pub(super) const fn of_block(source: &'a S, pfn: Pfn) -> Self {
        Self { source, pfn, order: PageOrder::MAX }
    }

    pub(super) const fn pfn(&self) -> Pfn {
        self.pfn
    }

    /// The reference is an entry's from now on.
    pub(super) fn leave(self) {
        core::mem::forget(self);
    }
}

impl<S: PageSource> Drop for PageHold<'_, S> {
    fn drop(&mut self) {
        if self.order != PageOrder::ZERO {
            return self.source.put_pages(self.pfn, self.order);
        }
        let dropped = self.source.put_page(self.pfn);
        debug_assert!(dropped.is_ok(), "a page that somebody held was free: {dropped:?}");
    }
}

/// The addresses of one page.
pub(super) fn one_page(page: VirtAddr) -> VirtRange {
    VirtRange::with_len(page, crate::addr::PAGE_SIZE as u64).unwrap_or_default()
}

impl<'a, S: PageSource, F: EntryFormat> Pager<'a, '_, S, F> {
    pub(super) fn page(&self, pfn: Pfn) -> Option<&'a Page> {
        self.source.page(pfn)
    }

    /// Drops a reference to a page, and frees it if that was the last.
    pub(super) fn drop_page(&self, pfn: Pfn) {
        // An entry or a look-up gave us the reference, so it is one of an allocated page.
        let dropped = self.source.put_page(pfn);
        debug_assert!(dropped.is_ok(), "a page that is mapped was free: {dropped:?}");
    }

    /// Takes a reference to a page, if somebody has one.
    pub(super) fn try_hold(&self, pfn: Pfn) -> Option<PageHold<'a, S>> {
        let held = self.page(pfn).is_some_and(Page::try_get);
        held.then(|| PageHold::new(self.source, pfn))
    }

    /// A frame for a process, whose bytes are anything.
    pub(super) fn user_frame(&self) -> Result<PageHold<'a, S>, Stop> {
        let allocated = self.source.alloc_pages(GfpFlags::HIGHUSER_MOVABLE, PageOrder::ZERO);
        allocated.map(|pfn| PageHold::new(self.source, pfn)).map_err(|_: AllocError| Stop::OutOfMemory)
    }

    /// A frame for a process, full of zeros.
    #[doc(alias = "vma_alloc_zeroed_movable_folio")]
    pub(super) fn zeroed_frame(&self) -> Result<PageHold<'a, S>, Stop> {
        let new = self.user_frame()?;
        let pin = self.source.platform().pin();
        // Just allocated, so nobody else's.
        match self.source.phys().kmap_on(self.source.platform(), &pin, new.pfn()) {
            Ok(frame) => frame.fill(0),
            Err(_) => return Err(Stop::OutOfMemory),
        }
        Ok(new)
    }

    /// Brings a frame within reach that somebody has a reference to. What is no block of its own is looked at more closely.
    fn reach_data<'p>(&self, pin: &'p CpuPin<'_>, pfn: Pfn) -> Result<Kmap<'p>, KmapError>
    where
        'a: 'p,
    {
        let own = |page: &&Page| page.state() == PageState::Allocated && !page.flags().intersects(NOT_DATA);
        match self.page(pfn).filter(own) {
            Some(_) => self.source.phys().kmap_on(self.source.platform(), pin, pfn),
            None => self.source.phys().kmap(pin, pfn),
        }
    }

    /// A frame for a process with the bytes of another, to which the caller has a reference.
    pub(super) fn copied_frame(&self, from: Pfn) -> Result<PageHold<'a, S>, Stop> {
        let to = self.user_frame()?;
        if self.copy(to.pfn(), from) { Ok(to) } else { Err(Stop::OutOfMemory) }
    }

    /// Copies the bytes of a frame; whether both were within reach.
    pub(super) fn copy(&self, to: Pfn, from: Pfn) -> bool {
        let pin = self.source.platform().pin();
        let phys = self.source.phys();
        // The caller's alone, as opposed to the other.
        let to = phys.kmap_on(self.source.platform(), &pin, to);
        let (Ok(from), Ok(to)) = (self.reach_data(&pin, from), to) else { return false };
        to.copy_from(&from);
        true
    }
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Makes a new page an anonymous one, for the place `pgoff`.
    ///
    /// # Errors
    /// [`Signal::NoPage`] if a page cannot name that place: nobody would find its entries.
    pub(super) fn dress(page: &Page, anon: AnonVma, pgoff: PgOff, extra: PageFlags) -> Result<(), Stop> {
        if !(page.set_mapping(anon.id().get()) && page.set_index(pgoff.get())) {
            return Err(Stop::Signal(Signal::NoPage));
        }
        page.set_flags(ANONYMOUS | extra);
        Ok(())
    }

    /// Books a new anonymous page that an entry maps from now on. The frame's one reference is the entry's.
    ///
    /// # Linux
    /// `folio_add_new_anon_rmap` in `mm/rmap.c`.
    #[doc(alias = "folio_add_new_anon_rmap")]
    pub(super) fn book_new_anon(&self, page: &Page, anon: AnonVma) {
        self.pager.context.anon_vmas().add_page(anon.id());
        page.add_map();
        self.shared.add_rss(RssKind::Anon, 1);
    }

    /// What kind of resident page this is.
    ///
    /// # Linux
    /// `mm_counter` in `include/linux/mm.h`.
    pub(super) fn rss_kind(&self, page: &Page) -> RssKind {
        let flags = page.flags();
        if flags.contains(PageFlags::ANON) {
            RssKind::Anon
        } else if flags.contains(PageFlags::SWAP_BACKED) {
            RssKind::Shmem
        } else {
            RssKind::File
        }
    }

    /// Books that an entry, which has been taken out, maps its page no more. The page's reference goes to `gather`.
    ///
    /// # Linux
    /// `zap_present_folio_ptes` in `mm/memory.c`.
    pub(super) fn unbook(&self, entry: Mapped, gather: &mut Gather<'_, '_, S>) {
        if let Some(gone) = self.unmap_page(entry, &mut gather.owners) {
            gather.page(gone);
        }
    }

    /// As [`unbook`](Self::unbook) with a gather of this one page.
    ///
    /// # Locking
    /// None: CPUs are waited for.
    ///
    /// # Linux
    /// `ptep_clear_flush` in `mm/pgtable-generic.c`.
    #[doc(alias = "ptep_clear_flush")]
    pub(super) fn let_go_of(&self, entry: Mapped, addr: VirtAddr) {
        let mut owners = Owners::default();
        let gone = self.unmap_page(entry, &mut owners);
        // The entry was changed before the set is looked at; see `CpuSet`.
        fence(SeqCst);
        let cpus = self.shared.cpus().load();
        if !cpus.is_empty() {
            self.flush(&cpus, one_page(addr));
        }
        let Some(gone) = gone else { return };
        self.sub_rss(gone.kind, 1);
        if gone.written {
            dirty(self.pager.source, self.pager.cache, gone.pfn);
        }
        self.pager.drop_page(gone.pfn);
        owners.tell(self.pager.context);
    }

    /// Books that an entry, which has been taken out, maps its page no more; `None` if it was never booked. The caller counts it off, and lets go of
    /// its reference after a flush; one that was written is [dirty] then.
    pub(super) fn unmap_page(&self, entry: Mapped, owners: &mut Owners) -> Option<Gone> {
        let Mapped { pfn, bits } = entry;
        let page = self.pager.page(pfn).filter(|_| !bits.contains(PteBits::SPECIAL))?;
        let kind = self.rss_kind(page);
        let dirty = kind != RssKind::Anon && bits.contains(PteBits::DIRTY);
        if dirty {
            // A page that a truncation took from its file is nobody's to write back.
            self.pager.cache.set_dirty(self.pager.source, pfn);
        }
        if page.remove_map() == Some(0) && kind == RssKind::Anon {
            owners.lose(page);
        }
        Some(Gone { pfn, kind, written: dirty && kind == RssKind::File })
    }

    /// Counts pages off.
    pub(super) fn sub_rss(&self, kind: RssKind, pages: u64) {
        let counted = self.shared.sub_rss(kind, pages);
        debug_assert!(counted, "more pages went than there were");
    }

    /// What the resident pages of a file are counted as.
    pub(super) fn file_rss(vma: &Vma) -> RssKind {
        match vma.backing.file().map(|file| file.kind) {
            Some(FileKind::Memory | FileKind::SharedAnonymous) => RssKind::Shmem,
            Some(FileKind::Regular) | None => RssKind::File,
        }
    }
}
