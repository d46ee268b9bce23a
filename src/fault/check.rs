//! The laws of pages, recounted: what entries allow, how often frames are in use and by whom, and that none is lost.
//!
//! A [`Recount`] is shown every address space, the kernel's tables and the page cache, and counts for each frame how often it met it. At its end
//! every frame must have been met as often as it says itself.

use super::entry::one_page;
use super::{MmPager, Pager};
use crate::addr::{PAGE_SHIFT, PageOrder, Pfn, PgOff, VirtAddr, VirtRange};
use crate::cache::{CacheCheckError, FileId};
use crate::collections::Slot;
use crate::flags::{PageFlags, VmFlags};
use crate::mm::{Mm, RssKind, Vma};
use crate::phys::{Page, PageSource, PageState};
use crate::platform::Platform;
use crate::rmap::{AnonFault, AnonVmaId, Place};
use crate::table::{EntryFormat, Found, KernelTables, Mapped, PageTable, Pte, PteBits};

/// What a recount notes of one frame.
#[derive(Clone, Copy, Default, Debug)]
pub struct FrameTally {
    /// Entries of processes that map it.
    entries: u32,
    /// References that entries of the kernel's half have to the block that it heads.
    kernel: u32,
    /// How often it is a table.
    tables: u16,
    /// How often it is in the page cache.
    cached: u16,
}

impl FrameTally {
    /// Of a frame that was not met.
    pub const fn new() -> Self {
        Self { entries: 0, kernel: 0, tables: 0, cached: 0 }
    }
}

/// What is wrong with pages, or with entries that map them. An address comes with the root of its tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PagesCheckError {
    /// There are fewer tallies than frames.
    TooFewTallies,
    /// An entry lies where no VMA is.
    NoVma(Pfn, VirtAddr),
    /// An entry allows more than its VMA: these bits.
    TooMuch(Pfn, VirtAddr, PteBits),
    /// A private entry may be written through, and its page is not this process's alone.
    WritableShared(Pfn, VirtAddr, Pfn),
    /// A page of a file may be written to without its file's knowing.
    WritableClean(Pfn, VirtAddr, Pfn),
    /// An entry for something that is not counted may be written through or lies where there is none.
    Special(Pfn, VirtAddr, Pfn),
    /// An entry leads to a frame that is no page in use.
    NotAPage(Pfn, VirtAddr, Pfn),
    /// An entry shows another page than its VMA has there: of another file or owner, or from another place.
    WrongPage(Pfn, VirtAddr, Pfn),
    /// A process counts so many resident pages of a kind, and has so many.
    Rss(Pfn, RssKind, u64, u64),
    /// A frame counts so many entries, and so many map it.
    MapCount(Pfn, u32, u32),
    /// A frame counts so many references, and so many were found.
    Count(Pfn, u32, u32),
    /// So many entries map a frame, and so many are found from it.
    Unreached(Pfn, u32, u32),
    /// A frame says that one entry alone maps it, and it is not so.
    NotExclusive(Pfn),
    /// A frame is reached as a table so often, which should be once if it is one and never if not.
    Table(Pfn, u16),
    /// A frame is in the page cache more than once.
    CachedTwice(Pfn),
    /// Nobody has this allocated frame.
    Leaked(Pfn),
    /// The page of zeros has another byte than 0, at this place.
    ZeroPage(usize),
    /// So many VMAs map files, and so many are on files' lists.
    Unlisted(u32, u32),
    /// The owners of anonymous pages.
    Anon(AnonFault),
    /// The page cache.
    Cache(CacheCheckError),
}

impl core::fmt::Display for PagesCheckError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooFewTallies => f.write_str("there are fewer tallies than frames"),
            Self::NoVma(root, at) => write!(f, "tables {root:#x}: an entry at {at:#x}, where no VMA is"),
            Self::TooMuch(root, at, bits) => {
                write!(f, "tables {root:#x}: the entry at {at:#x} allows {bits:?} against its VMA")
            }
            Self::WritableShared(root, at, pfn) => {
                write!(
                    f,
                    "tables {root:#x}: frame {pfn:#x} may be written at {at:#x}, and is not the process's alone"
                )
            }
            Self::WritableClean(root, at, pfn) => {
                write!(
                    f,
                    "tables {root:#x}: frame {pfn:#x} may be written at {at:#x}, and its file does not know"
                )
            }
            Self::Special(root, at, pfn) => {
                write!(f, "tables {root:#x}: frame {pfn:#x} cannot be mapped uncounted at {at:#x} like this")
            }
            Self::NotAPage(root, at, pfn) => {
                write!(f, "tables {root:#x}: the entry at {at:#x} leads to frame {pfn:#x}, which is no page")
            }
            Self::WrongPage(root, at, pfn) => {
                write!(f, "tables {root:#x}: frame {pfn:#x} at {at:#x} is not what the VMA has there")
            }
            Self::Rss(root, kind, says, found) => {
                write!(f, "tables {root:#x}: {kind:?} pages: counted {says}, found {found}")
            }
            Self::MapCount(pfn, says, found) => {
                write!(f, "frame {pfn:#x} counts {says} entries, and {found} map it")
            }
            Self::Count(pfn, says, found) => {
                write!(f, "frame {pfn:#x} counts {says} references, and {found} were found")
            }
            Self::Unreached(pfn, entries, found) => {
                write!(f, "{entries} entries map frame {pfn:#x}, and {found} are found from it")
            }
            Self::NotExclusive(pfn) => write!(f, "frame {pfn:#x} is not one process's alone as it says"),
            Self::Table(pfn, times) => write!(f, "frame {pfn:#x} is reached as a table {times} times"),
            Self::CachedTwice(pfn) => write!(f, "frame {pfn:#x} is in the page cache more than once"),
            Self::Leaked(pfn) => write!(f, "frame {pfn:#x} is allocated, and nobody has it"),
            Self::ZeroPage(at) => write!(f, "byte {at:#x} of the page of zeros is another"),
            Self::Unlisted(vmas, listed) => {
                write!(f, "{vmas} VMAs map files, and {listed} are on the files' lists")
            }
            Self::Anon(fault) => fault.fmt(f),
            Self::Cache(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for PagesCheckError {}

/// A recount under way.
///
/// # Locking
/// Nobody changes anything meanwhile.
#[derive(Debug)]
pub struct Recount<'t, 'a, 'm, S, F> {
    pager: Pager<'a, 'm, S, F>,
    tallies: &'t mut [FrameTally],
}

type Checked = Result<(), PagesCheckError>;

/// What maps a page: its entry, or one of so many pages.
struct Seen {
    at: VirtAddr,
    pte: Pte,
    order: PageOrder,
}

impl Seen {
    /// An entry of many pages as the one of a page in it.
    fn nth(found: Found, index: u64) -> Self {
        let pte = match found.pte {
            Pte::Present(entry) => {
                let pfn = entry.pfn.checked_add(index).unwrap_or(entry.pfn);
                Pte::Present(Mapped { pfn, ..entry })
            }
            other => other,
        };
        Self { at: VirtAddr::from(found.addr.get() + (index << PAGE_SHIFT)), pte, order: found.order }
    }
}

impl<'t, 'a, 'm, S: PageSource, F: EntryFormat> Recount<'t, 'a, 'm, S, F> {
    /// Begins, with as many tallies as there are [slots](crate::phys::Phys::slots) of frames.
    ///
    /// # Errors
    /// [`PagesCheckError::TooFewTallies`].
    pub fn new(pager: Pager<'a, 'm, S, F>, tallies: &'t mut [FrameTally]) -> Result<Self, PagesCheckError> {
        let count = pager.source.phys().slots();
        let tallies = tallies.get_mut(..count).ok_or(PagesCheckError::TooFewTallies)?;
        tallies.fill(FrameTally::new());
        pager.context.anon_vmas().begin_recount();
        Ok(Self { pager, tallies })
    }

    fn tally(&mut self, pfn: Pfn) -> Option<&mut FrameTally> {
        let slot = self.pager.source.phys().slot_of(pfn)?;
        self.tallies.get_mut(slot.index())
    }

    /// Counts the tables that hang on a root.
    pub fn tables(&mut self, table: PageTable<'_, S, F>) {
        table.visit_tables(|pfn| {
            if let Some(tally) = self.tally(pfn) {
                tally.tables = tally.tables.saturating_add(1);
            }
        });
    }

    /// Counts the tables of the kernel's half, and what vmalloc and vmap have mapped there: each entry has a reference to its block.
    pub fn kernel(&mut self, kernel: &KernelTables<'_, S, F>) {
        self.tables(kernel.table());
        let phys = self.pager.source.phys();
        kernel.table().visit_range(kernel.vmalloc_range(), |found| {
            let head = found.pte.mapped().and_then(|entry| phys.head_of(entry.pfn));
            if let Some(tally) = head.and_then(|head| self.tally(head)) {
                tally.kernel = tally.kernel.saturating_add(1);
            }
        });
    }

    /// Counts the entries of an address space, and compares each with its VMA.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn space(&mut self, mm: &Mm<'a>) -> Checked {
        let Some(pages) = self.pager.of(mm) else { return Ok(()) };
        self.tables(pages.table);
        let mut vmas = mm.vmas().iter().map(|(_, vma)| vma).peekable();
        let mut rss = [0; RssKind::ALL.len()];
        let mut result = Ok(());
        pages.table.visit_range(whole_half::<F>(), |found| {
            for index in 0..found.order.pages() {
                let seen = Seen::nth(found, index);
                while vmas.peek().is_some_and(|vma| vma.end <= seen.at) {
                    vmas.next();
                }
                let vma = vmas.peek().filter(|vma| vma.start <= seen.at);
                if result.is_ok() {
                    result = self.entry(&pages, vma, seen, &mut rss);
                }
            }
        });
        result?;
        let root = pages.table.pgd();
        let (kinds, counted) = (RssKind::ALL, |kind| pages.shared.rss(kind));
        let differs = kinds.into_iter().find(|&kind| counted(kind) != rss[kind as usize]);
        differs
            .map_or(Ok(()), |kind| Err(PagesCheckError::Rss(root, kind, counted(kind), rss[kind as usize])))
    }

    fn entry(
        &mut self,
        pages: &MmPager<'a, 'm, S, F>,
        vma: Option<&Vma>,
        Seen { at, pte, order }: Seen,
        rss: &mut [u64; RssKind::ALL.len()],
    ) -> Checked {
        let root = pages.table.pgd();
        let vma = vma.ok_or(PagesCheckError::NoVma(root, at))?;
        let entry = match pte {
            Pte::Present(entry) => entry,
            Pte::Swap(_) => {
                rss[RssKind::Swap as usize] += 1;
                return Ok(());
            }
            Pte::None | Pte::Guard => return Ok(()),
        };
        let excess = excess(entry.bits, vma.flags);
        if !excess.is_empty() {
            return Err(PagesCheckError::TooMuch(root, at, excess));
        }
        let (pfn, writable) = (entry.pfn, entry.bits.contains(PteBits::WRITE));
        if entry.bits.contains(PteBits::SPECIAL) {
            return match self.is_special(entry, order, vma) {
                true => Ok(()),
                false => Err(PagesCheckError::Special(root, at, pfn)),
            };
        }
        let page = self.pager.page(pfn).filter(|page| page.state() == PageState::Allocated);
        let kinds = PageFlags::TABLE | PageFlags::SLAB;
        let page = page.filter(|page| !page.flags().intersects(kinds));
        let page = page.ok_or(PagesCheckError::NotAPage(root, at, pfn))?;
        if !is_page_of(page, vma, at) {
            return Err(PagesCheckError::WrongPage(root, at, pfn));
        }
        let is = |flag| page.flags().contains(flag);
        if writable && !vma.flags.contains(VmFlags::SHARED) && !is(PageFlags::ANON_EXCLUSIVE) {
            return Err(PagesCheckError::WritableShared(root, at, pfn));
        }
        if writable && vma.wants_notice() && !is(PageFlags::DIRTY) {
            return Err(PagesCheckError::WritableClean(root, at, pfn));
        }
        rss[pages.rss_kind(page) as usize] += 1;
        if let Some(tally) = self.tally(pfn) {
            tally.entries = tally.entries.saturating_add(1);
        }
        Ok(())
    }

    /// Whether what is not counted may be mapped like this.
    fn is_special(&self, entry: Mapped, order: PageOrder, vma: &Vma) -> bool {
        if vma.flags.intersects(VmFlags::PFNMAP | VmFlags::MIXEDMAP) {
            return true;
        }
        // The page of zeros of this size: nothing keeps the huge one for a small entry.
        let is_zero = match order {
            PageOrder::ZERO => entry.pfn == self.pager.zero_page,
            _ => self.is_huge_zero(entry.pfn),
        };
        is_zero && !entry.bits.contains(PteBits::WRITE) && vma.backing.is_anonymous()
    }

    fn is_zero(&self, pfn: Pfn) -> bool {
        pfn == self.pager.zero_page || self.is_huge_zero(pfn)
    }

    fn is_huge_zero(&self, pfn: Pfn) -> bool {
        let first = self.pager.huge_zero.pfn();
        first.is_some_and(|first| pfn.get().wrapping_sub(first.get()) < PageOrder::MAX.pages())
    }

    /// Counts the pages of files, with a check of the page cache.
    ///
    /// # Errors
    /// [`PagesCheckError::Cache`], [`PagesCheckError::Unlisted`].
    pub fn cache(&mut self) -> Checked {
        let Pager { source, context, cache, .. } = self.pager;
        let maps = |slot: Slot| context.pool().file(slot).map(|file| file.file);
        let each = |pfn| {
            if let Some(tally) = self.tally(pfn) {
                tally.cached = tally.cached.saturating_add(1);
            }
        };
        let listed = cache.check(source, maps, each).map_err(PagesCheckError::Cache)?;
        let mapping = context.pool().mapping_files();
        if listed == mapping { Ok(()) } else { Err(PagesCheckError::Unlisted(mapping, listed)) }
    }

    /// Compares what was counted with what frames say. `held` answers how many references to a block others have whom this room does not know: the
    /// embedder, those who have pinned a page.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn finish(self, held: impl Fn(Pfn) -> u32) -> Checked {
        let phys = self.pager.source.phys();
        for (index, tally) in self.tallies.iter().enumerate() {
            let Some((pfn, page)) = Slot::from_index(index).and_then(|slot| phys.at_slot(slot)) else {
                break;
            };
            self.frame(pfn, page, tally, held(pfn))?;
        }
        self.pager.context.anon_vmas().end_recount().map_err(PagesCheckError::Anon)?;
        self.zero_page()
    }

    fn frame(&self, pfn: Pfn, page: &Page, tally: &FrameTally, held: u32) -> Checked {
        let flags = page.flags();
        let is_table = page.state() == PageState::Allocated && flags.contains(PageFlags::TABLE);
        if tally.tables != u16::from(is_table) {
            return Err(PagesCheckError::Table(pfn, tally.tables));
        }
        if page.state() != PageState::Allocated || flags.intersects(PageFlags::TABLE | PageFlags::SLAB) {
            return Ok(());
        }
        if tally.cached > 1 {
            return Err(PagesCheckError::CachedTwice(pfn));
        }
        // A count that has reached the top stays there, and its page is never freed.
        let stuck = page.map_count() == u32::MAX || page.count() == u32::MAX;
        if page.map_count() != tally.entries && !stuck {
            return Err(PagesCheckError::MapCount(pfn, page.map_count(), tally.entries));
        }
        let own = u32::from(self.is_zero(pfn));
        let found = [u32::from(tally.cached), tally.kernel, held, own];
        let found = found.into_iter().fold(tally.entries, u32::saturating_add);
        if found == 0 {
            return Err(PagesCheckError::Leaked(pfn));
        }
        if page.count() != found && !stuck {
            return Err(PagesCheckError::Count(pfn, page.count(), found));
        }
        if flags.contains(PageFlags::ANON_EXCLUSIVE) && tally.entries > 1 {
            return Err(PagesCheckError::NotExclusive(pfn));
        }
        if tally.entries == 0 { Ok(()) } else { self.reached(pfn, page, tally.entries) }
    }

    /// Walks from a page to its entries.
    fn reached(&self, pfn: Pfn, page: &Page, entries: u32) -> Checked {
        let context = self.pager.context;
        let Some(index) = PgOff::new(page.index()) else { return Ok(()) };
        let visit = |place: &Place, at| self.maps(place.mm, at, pfn);
        let walked = if page.flags().contains(PageFlags::ANON) {
            let Some(owner) = AnonVmaId::new(page.mapping()) else { return Ok(()) };
            if !context.anon_vmas().meet_page(owner) {
                return Err(PagesCheckError::Unreached(pfn, entries, 0));
            }
            context.anon_vmas().walk_page(context.rmap_nodes(), owner, index, visit)
        } else {
            let file = core::num::NonZeroU32::new(page.mapping()).map(FileId);
            file.map_or_else(Default::default, |file| self.pager.cache.walk_page(file, index, visit))
        };
        match walked.entries == entries {
            true => Ok(()),
            false => Err(PagesCheckError::Unreached(pfn, entries, walked.entries)),
        }
    }

    /// Whether an address of an address space leads to a frame.
    fn maps(&self, mm: Slot, at: VirtAddr, pfn: Pfn) -> bool {
        let Some(root) = self.pager.context.mms().get(mm).and_then(|shared| shared.pgd()) else {
            return false;
        };
        let mut maps = false;
        PageTable::<_, F>::at(self.pager.source, root).visit_range(one_page(at), |found| {
            let index = (at.get() - found.addr.get()) >> PAGE_SHIFT;
            let entry = Seen::nth(found, index).pte.mapped();
            maps |= entry.is_some_and(|entry| entry.pfn == pfn && !entry.bits.contains(PteBits::SPECIAL));
        });
        maps
    }

    fn zero_page(&self) -> Checked {
        let huge = self.pager.huge_zero.pfn().into_iter().flat_map(super::huge::frames);
        core::iter::once(self.pager.zero_page).chain(huge).try_for_each(|pfn| {
            let pin = self.pager.source.platform().pin();
            let frame = self.pager.source.phys().kmap_any(&pin, pfn);
            let other = frame.ok().and_then(|frame| frame.find_other(0));
            other.map_or(Ok(()), |(at, _)| Err(PagesCheckError::ZeroPage(at)))
        })
    }
}

/// Whether a page is what a VMA has at an address.
fn is_page_of(page: &Page, vma: &Vma, at: VirtAddr) -> bool {
    let belongs = if page.flags().contains(PageFlags::ANON) {
        vma.anon.is_some()
    } else {
        vma.backing.file().is_some_and(|file| file.file.0.get() == page.mapping())
    };
    belongs && page.index() == vma.pgoff_at(at).get()
}

/// What an entry allows that its VMA does not.
fn excess(bits: PteBits, flags: VmFlags) -> PteBits {
    if bits.contains(PteBits::PROT_NONE) {
        return PteBits::empty();
    }
    let mut excess = bits & (PteBits::READ | PteBits::WRITE | PteBits::EXEC);
    // What may be written or executed can be read.
    if flags.is_accessible() {
        excess -= PteBits::READ;
    }
    if flags.contains(VmFlags::WRITE) {
        excess -= PteBits::WRITE;
    }
    if flags.contains(VmFlags::EXEC) {
        excess -= PteBits::EXEC;
    }
    excess
}

/// All addresses of the user.
fn whole_half<F: EntryFormat>() -> VirtRange {
    VirtRange::new(VirtAddr::ZERO, VirtAddr::from(F::USER_END)).unwrap_or_default()
}
