//! A frame that is a page table: its entries within reach, and its lock.

use core::cell::Cell;
use core::sync::atomic::AtomicU64;

use super::TableError;
use super::format::ENTRIES;
use crate::addr::{PageOrder, Pfn};
use crate::flags::{GfpFlags, PageFlags};
use crate::phys::{Kmap, Page, PageSource, Phys};
use crate::platform::{CpuPin, Platform};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// In the word of a table: somebody holds it.
const LOCKED: u32 = 1 << 31;
/// In the word of a root: its kernel half is its own, not another's.
const OWNS_KERNEL: u32 = 1 << 30;
/// In the word of a root: some entries of its kernel half lead to tables that are not of this room.
const ADOPTED: u32 = 1 << 28;
/// In the word of a root: it is one. What the entries of its own half lead to are tables, and nothing else.
const ROOT: u32 = 1 << 27;
/// In the word of a table, while a check runs: it was seen.
const SEEN: u32 = 1 << 29;
/// How many entries are in use: at most 512.
const USED: u32 = (1 << 10) - 1;

/// A table, looked at.
#[derive(Debug)]
pub(super) struct Frame<'p> {
    kmap: Kmap<'p>,
    page: &'p Page,
}

impl<'p> Frame<'p> {
    /// Brings a table within reach.
    ///
    /// # Errors
    /// [`TableError::NotATable`], [`TableError::Unreachable`].
    #[inline]
    pub(super) fn open(phys: &'p Phys<'_>, pin: &'p CpuPin<'_>, pfn: Pfn) -> Result<Self, TableError> {
        let page = table_page(phys, pfn)?;
        let kmap = phys.kmap_any(pin, pfn).map_err(|_| TableError::Unreachable)?;
        Ok(Self { kmap, page })
    }

    /// A table that is within reach already.
    ///
    /// # Errors
    /// [`TableError::NotATable`].
    #[inline]
    pub(super) fn of(phys: &'p Phys<'_>, kmap: Kmap<'p>, pfn: Pfn) -> Result<Self, TableError> {
        Ok(Self { kmap, page: table_page(phys, pfn)? })
    }

    /// The entries. Hardware reads them, and sets bits in them, at any time.
    #[inline]
    pub(super) fn entries(&self) -> &[AtomicU64; ENTRIES] {
        self.kmap.entries()
    }

    #[inline]
    pub(super) fn entry(&self, index: usize) -> &AtomicU64 {
        &self.entries()[index % ENTRIES]
    }

    pub(super) fn page(&self) -> &'p Page {
        self.page
    }

    pub(super) fn into_kmap(self) -> Kmap<'p> {
        self.kmap
    }

    /// How many entries are in use.
    pub(super) fn used(&self) -> u32 {
        self.page.table_word().load(Acquire) & USED
    }

    /// Notes how many entries are in use, in a table that nobody else has yet.
    pub(super) fn set_used(&self, used: u32) {
        self.page.table_word().store(used, Relaxed);
    }

    /// Puts the way to a table, or a huge leaf, into an empty entry; `false` if it is not empty any more.
    pub(super) fn install(&self, index: usize, entry: u64) -> bool {
        // Release: who finds the way finds the table's zeroes; pairs with the acquire of every walk.
        let done = self.entry(index).compare_exchange(0, entry, AcqRel, Acquire).is_ok();
        if done {
            add_used(self.page);
        }
        done
    }
}

/// The page of a frame that is a table.
#[inline]
pub(super) fn table_page<'p>(phys: &'p Phys<'_>, pfn: Pfn) -> Result<&'p Page, TableError> {
    phys.page(pfn).filter(|page| page.flags().contains(PageFlags::TABLE)).ok_or(TableError::NotATable)
}

/// One more entry is in use, in a table that others may lock meanwhile.
pub(super) fn add_used(page: &Page) {
    page.table_word().fetch_add(1, AcqRel);
}

/// One entry fewer is in use.
pub(super) fn sub_used(page: &Page) {
    page.table_word().fetch_sub(1, AcqRel);
}

/// The page of a frame that is a root.
#[inline]
pub(super) fn root_page<'p>(phys: &'p Phys<'_>, pfn: Pfn) -> Result<&'p Page, TableError> {
    table_page(phys, pfn)
        .ok()
        .filter(|page| page.table_word().load(Relaxed) & ROOT != 0)
        .ok_or(TableError::NotATable)
}

pub(super) fn note_root(page: &Page) {
    page.table_word().fetch_or(ROOT, Relaxed);
}

pub(super) fn owns_kernel(page: &Page) -> bool {
    page.table_word().load(Relaxed) & OWNS_KERNEL != 0
}

pub(super) fn note_owns_kernel(page: &Page) {
    page.table_word().fetch_or(OWNS_KERNEL, Relaxed);
}

pub(super) fn is_adopted(page: &Page) -> bool {
    page.table_word().load(Relaxed) & ADOPTED != 0
}

pub(super) fn note_adopted(page: &Page) {
    page.table_word().fetch_or(ADOPTED, Relaxed);
}

/// Notes for a check that a table was seen; whether it had been before.
pub(super) fn note_seen(page: &Page) -> bool {
    page.table_word().fetch_or(SEEN, Relaxed) & SEEN != 0
}

/// Forgets it; whether it had been noted.
pub(super) fn forget_seen(page: &Page) -> bool {
    page.table_word().fetch_and(!SEEN, Relaxed) & SEEN != 0
}

/// Instead of a number of entries in use: it is counted in the table's word.
const UNCOUNTED: u32 = u32::MAX;

/// The lock of a table, held.
///
/// # Linux
/// `pte_lockptr` and `pmd_lockptr` in `include/linux/mm.h`: split page table locks.
#[derive(Debug)]
#[doc(alias = "ptl")]
pub(super) struct TableLock<'p> {
    page: &'p Page,
    /// Of a leaf table, how many entries are in use, to be noted when it is let go of; else [`UNCOUNTED`].
    used: Cell<u32>,
    #[cfg(feature = "check")]
    rank: (&'p CpuPin<'p>, crate::sync::Rank),
}

impl<'p> TableLock<'p> {
    /// Waits until the lock is free and takes it.
    #[inline]
    pub(super) fn take(pin: &'p CpuPin<'_>, page: &'p Page) -> Self {
        #[cfg(feature = "check")]
        let rank = (pin, note_rank(pin));
        let word = page.table_word();
        loop {
            let seen = word.load(Relaxed) & !LOCKED;
            // Acquire: pairs with the release of `drop`.
            if word.compare_exchange_weak(seen, seen | LOCKED, Acquire, Relaxed).is_ok() {
                break;
            }
            pin.platform().relax();
        }
        Self {
            page,
            used: Cell::new(UNCOUNTED),
            #[cfg(feature = "check")]
            rank,
        }
    }

    /// How many entries are in use.
    #[inline]
    pub(super) fn used(&self) -> u32 {
        self.page.table_word().load(Relaxed) & USED
    }

    /// The lock of a leaf table: how many entries are in use is kept here, and noted once it is let go of. Nobody else notes it of one, and there
    /// are no marks of it but a check's.
    #[inline]
    pub(super) fn counting(self) -> Self {
        self.used.set(self.used());
        self
    }

    /// How many entries of a leaf table are in use.
    #[inline]
    pub(super) fn count(&self) -> u32 {
        self.used.get()
    }

    #[inline]
    pub(super) fn set_count(&self, used: u32) {
        self.used.set(used);
    }
}

impl Drop for TableLock<'_> {
    #[inline]
    fn drop(&mut self) {
        match self.used.get() {
            // Of a leaf table nobody else writes the word while it is locked, so one store notes the number and unlocks.
            UNCOUNTED => {
                self.page.table_word().fetch_and(!LOCKED, Release);
            }
            used => {
                let marks = self.page.table_word().load(Relaxed) & SEEN;
                self.page.table_word().store(marks | used, Release);
            }
        }
        #[cfg(feature = "check")]
        self.rank.0.note_unlocked(self.rank.1 as u32);
    }
}

/// Notes the lock as the first or the second table held.
#[cfg(feature = "check")]
fn note_rank(pin: &CpuPin<'_>) -> crate::sync::Rank {
    use crate::sync::Rank;
    if pin.note_locked(Rank::Table as u32) {
        return Rank::Table;
    }
    assert!(pin.note_locked(Rank::SecondTable as u32), "lock of a table taken out of order");
    Rank::SecondTable
}

/// What a table may be allocated with: it is zeroed here, and does not move.
const NOT_FOR_TABLES: GfpFlags = GfpFlags::ZERO.union(GfpFlags::MOVABLE).union(GfpFlags::COMP);

/// Allocates an empty table.
pub(super) fn alloc<S: PageSource>(source: &S, gfp: GfpFlags) -> Result<Pfn, TableError> {
    alloc_with(source, gfp, |frame| frame.fill(0))
}

/// Allocates a table whose entries are anything: nothing may lead to it before all of them are written.
pub(super) fn alloc_unfilled<S: PageSource>(source: &S, gfp: GfpFlags) -> Result<Pfn, TableError> {
    alloc_with(source, gfp, |_| {})
}

fn alloc_with<S: PageSource>(
    source: &S,
    gfp: GfpFlags,
    fill: impl FnOnce(&Kmap<'_>),
) -> Result<Pfn, TableError> {
    let pfn = source.alloc_pages(gfp - NOT_FOR_TABLES, PageOrder::ZERO)?;
    let made = {
        let pin = source.platform().pin();
        let frame = source.phys().kmap_any(&pin, pfn).map_err(|_| TableError::Unreachable);
        frame.and_then(|frame| {
            fill(&frame);
            source.page(pfn).ok_or(TableError::Unreachable)
        })
    };
    match made {
        Ok(page) => {
            page.table_word().store(0, Relaxed);
            page.table_count().store(0, Relaxed);
            page.set_kept_table(None);
            page.set_kind(PageFlags::TABLE);
            Ok(pfn)
        }
        Err(error) => {
            let _ = source.free_pages(pfn, PageOrder::ZERO);
            Err(error)
        }
    }
}

/// Keeps an empty table, with the lock of `page`'s table held: a huge entry of that can be split whenever it has to be.
///
/// # Linux
/// `pgtable_trans_huge_deposit` in `mm/pgtable-generic.c`.
pub(super) fn keep(phys: &Phys<'_>, page: &Page, table: Pfn) {
    if let Ok(kept) = table_page(phys, table) {
        kept.set_kept_table(page.kept_table());
        page.set_kept_table(Some(table));
    }
}

/// Takes a table that was kept, with the lock held.
///
/// # Linux
/// `pgtable_trans_huge_withdraw` in `mm/pgtable-generic.c`.
pub(super) fn take_kept(phys: &Phys<'_>, page: &Page) -> Option<Pfn> {
    let table = page.kept_table()?;
    let kept = table_page(phys, table).ok()?;
    page.set_kept_table(kept.kept_table());
    kept.set_kept_table(None);
    Some(table)
}

/// The tables that one keeps.
pub(super) fn kept_tables<'p>(phys: &'p Phys<'_>, page: &Page) -> impl Iterator<Item = Pfn> + use<'p> {
    let next = move |table: &Pfn| table_page(phys, *table).ok().and_then(Page::kept_table);
    core::iter::successors(page.kept_table(), next)
}

/// Frees a table that nothing leads to any more, with those that it keeps.
pub(super) fn free<S: PageSource>(source: &S, pfn: Pfn) {
    if let Ok(page) = table_page(source.phys(), pfn) {
        while let Some(kept) = take_kept(source.phys(), page) {
            free(source, kept);
        }
        page.table_word().store(0, Relaxed);
        page.table_count().store(0, Relaxed);
        page.clear_kind(PageFlags::TABLE);
        // Nobody else has it, so nothing is wrong with freeing it.
        let _ = source.free_pages(pfn, PageOrder::ZERO);
    }
}
