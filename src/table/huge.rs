//! One entry of 2 MiB, locked.

use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::format::{self, ENTRIES, EntryFormat, Mapped, Pte, PteBits};
use super::frame::{self, Frame, TableLock};
use super::gather::TlbGather;
use super::{HUGE_SIZE, TableError};
use crate::addr::{PageOrder, Pfn, VirtAddr};
use crate::flags::GfpFlags;
use crate::phys::{Page, PageSource, Phys};
use crate::platform::CpuPin;
use crate::sync::atomic::AtomicU32;

/// A huge entry within reach, the lock of its table held.
///
/// # Linux
/// A `pmd_t *` under `pmd_trans_huge_lock`.
#[must_use = "the table is unlocked when this is dropped"]
pub struct HugeRef<'p, F: EntryFormat> {
    frame: Frame<'p>,
    /// Held; dropped last.
    _lock: TableLock<'p>,
    place: Place<'p>,
    base: VirtAddr,
    format: PhantomData<F>,
}

/// Where a huge entry is looked at.
#[derive(Clone, Copy)]
pub(super) struct Place<'p> {
    pub(super) phys: &'p Phys<'p>,
    pub(super) pin: &'p CpuPin<'p>,
    /// The page of the root.
    pub(super) root: Option<&'p Page>,
}

impl Place<'_> {
    /// Changes the number of tables that hang on the root.
    fn count(&self, change: impl FnOnce(&AtomicU32) -> u32) {
        if let Some(root) = self.root {
            change(root.table_count());
        }
    }
}

impl<F: EntryFormat> core::fmt::Debug for HugeRef<'_, F> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("HugeRef").field("base", &self.base).field("entry", &self.get()).finish()
    }
}

impl<'p, F: EntryFormat> HugeRef<'p, F> {
    pub(super) fn new(frame: Frame<'p>, lock: TableLock<'p>, place: Place<'p>, addr: VirtAddr) -> Self {
        Self { frame, _lock: lock, place, base: format::floor(1, addr), format: PhantomData }
    }

    /// The first address that the entry covers.
    pub fn base(&self) -> VirtAddr {
        self.base
    }

    /// The first address behind it, or the last of all.
    pub fn end(&self) -> VirtAddr {
        format::next(1, self.base)
    }

    /// Whether no other entry of the table that it lies in is in use.
    pub(super) fn is_alone(&self) -> bool {
        self.frame.used() == 1
    }

    /// Reads the entry.
    pub fn get(&self) -> Pte {
        F::decode(1, self.entry().load(Acquire))
    }

    /// Writes the entry. What hardware notes in the old one meanwhile is lost.
    ///
    /// # Errors
    /// [`TableError::Misaligned`] for a frame that no block of 2 MiB begins with.
    pub fn set(&self, pte: Pte) -> Result<(), TableError> {
        if pte.mapped().is_some_and(|mapped| !mapped.pfn.is_aligned(PageOrder::MAX)) {
            return Err(TableError::Misaligned);
        }
        let old = self.entry().swap(F::encode(1, pte), AcqRel);
        self.note(old, pte);
        Ok(())
    }

    /// Empties the entry and answers with what it was.
    pub fn take(&self) -> Pte {
        let old = self.entry().swap(0, AcqRel);
        self.note(old, Pte::None);
        F::decode(1, old)
    }

    /// Replaces the entry by what `change` makes of its bits, and answers with what it was; `change` runs again if hardware noted something
    /// meanwhile. An entry without a frame stays.
    pub fn update(&self, mut change: impl FnMut(Mapped) -> Mapped) -> Pte {
        let mut old = self.entry().load(Acquire);
        loop {
            let Pte::Present(mapped) = F::decode(1, old) else { return F::decode(1, old) };
            let new = Mapped { pfn: mapped.pfn, ..change(mapped) };
            match self.entry().compare_exchange(old, F::encode(1, Pte::Present(new)), AcqRel, Acquire) {
                Ok(_) => return Pte::Present(mapped),
                Err(seen) => old = seen,
            }
        }
    }

    /// Takes the entry out, with the table that was kept for its split: both can be [put](super::PageTable::put_huge) elsewhere.
    ///
    /// # Linux
    /// `pmdp_huge_get_and_clear` and `pgtable_trans_huge_withdraw`, as in `move_huge_pmd` in `mm/huge_memory.c`.
    #[doc(alias = "pmdp_huge_get_and_clear")]
    pub fn withdraw<S: PageSource>(self, source: &S) -> (Pte, PreparedTable<'_, S>) {
        let table = PreparedTable { source, pfn: self.take_kept_out() };
        (self.take(), table)
    }

    /// Takes the entry out. What CPUs are to forget is noted in the gather, which also gets the table that was kept for a split.
    ///
    /// # Linux
    /// `zap_huge_pmd` in `mm/huge_memory.c`, as far as tables go.
    #[doc(alias = "zap_huge_pmd")]
    pub fn zap<S: PageSource>(self, gather: &mut TlbGather<'_, S>) -> Pte {
        let old = self.take();
        if old.mapped().is_some_and(|mapped| !mapped.bits.contains(PteBits::PROT_NONE)) {
            if let Some(span) = format::span(1, self.base) {
                gather.flush_huge(span);
            }
        }
        if let Some(table) = self.take_kept_out() {
            gather.spare_table(table);
        }
        old
    }

    /// Puts a table of 512 entries that say the same in the huge one's place: the one that [`set_huge`](super::PageTable::set_huge) kept for that, or else
    /// this one. What CPUs remember of the old entry leads to the same frames with the same rights; whoever changes one of the new
    /// entries afterwards flushes it as ever. `false` and no change if the table is not within reach: it is in HIGHMEM, and all slots of this CPU
    /// are in use.
    ///
    /// # Linux
    /// `__split_huge_pmd_locked` in `mm/huge_memory.c`. Linux makes the entry absent and flushes before it puts the table in, for processors that
    /// do not bear two sizes of one translation.
    #[doc(alias = "split_huge_pmd")]
    pub fn split<S: PageSource>(self, mut table: PreparedTable<'_, S>) -> bool {
        if self.kept().is_some() {
            return self.split_kept();
        }
        let Some((pfn, way)) = table.pfn.and_then(|pfn| Some((pfn, self.open(pfn)?))) else { return false };
        table.pfn = None;
        self.place.count(|tables| tables.fetch_add(1, Relaxed));
        self.split_into(pfn, &way, |index, huge| part(huge, index));
        true
    }

    /// Splits by the table that was kept for that, into what `entry` answers for each of the 512 and the huge one; `false` and no change if
    /// no table was kept, or it is not within reach. `entry` may be asked more than once.
    pub fn split_with(self, entry: impl FnMut(u64, Mapped) -> Mapped) -> bool {
        // It stays kept if it cannot be written now.
        let opened = self.kept().and_then(|pfn| self.open(pfn));
        let Some((table, pfn)) = opened.and_then(|table| Some((table, self.take_kept()?))) else {
            return false;
        };
        self.split_into(pfn, &table, entry);
        true
    }

    /// Splits by the table that was kept for that; `false` and no change if there is none, or it is not within reach.
    pub(super) fn split_kept(self) -> bool {
        self.split_with(|index, huge| part(huge, index))
    }

    /// Takes a table that was kept for a split, out of the tree.
    fn take_kept_out(&self) -> Option<Pfn> {
        self.take_kept().inspect(|_| self.place.count(|tables| tables.fetch_sub(1, Relaxed)))
    }

    /// Takes a table that was kept for a split, for that.
    fn take_kept(&self) -> Option<Pfn> {
        frame::take_kept(self.place.phys, self.frame.page())
    }

    /// The table that is taken next.
    fn kept(&self) -> Option<Pfn> {
        self.frame.page().kept_table()
    }

    fn open(&self, pfn: Pfn) -> Option<Frame<'p>> {
        Frame::open(self.place.phys, self.place.pin, pfn).ok()
    }

    fn split_into(&self, pfn: Pfn, table: &Frame<'_>, mut small: impl FnMut(u64, Mapped) -> Mapped) {
        let half = F::half(self.base).unwrap_or(format::Half::User);
        let way = F::table(1, half, pfn);
        let mut old = self.entry().load(Acquire);
        loop {
            table.set_used(fill::<F>(table, F::decode(1, old), &mut small));
            match self.entry().compare_exchange(old, way, AcqRel, Acquire) {
                Ok(_) => break,
                Err(seen) => old = seen,
            }
        }
    }

    fn entry(&self) -> &AtomicU64 {
        self.frame.entry(format::index::<F>(1, self.base))
    }

    fn note(&self, old: u64, new: Pte) {
        match (old == 0, new.is_none()) {
            (true, false) => frame::add_used(self.frame.page()),
            (false, true) => frame::sub_used(self.frame.page()),
            _ => {}
        }
    }
}

/// An empty table that is in no tree yet. Dropped, it is freed.
#[derive(Debug)]
#[must_use = "the table is freed when this is dropped"]
pub struct PreparedTable<'a, S: PageSource> {
    source: &'a S,
    pfn: Option<Pfn>,
}

impl<'a, S: PageSource> PreparedTable<'a, S> {
    /// Allocates a table, for a [split](HugeRef::split).
    ///
    /// # Errors
    /// [`TableError::OutOfMemory`], [`TableError::Unreachable`].
    ///
    /// # Linux
    /// `pte_alloc_one`.
    #[doc(alias = "pte_alloc_one")]
    pub fn new(source: &'a S, gfp: GfpFlags) -> Result<Self, TableError> {
        Ok(Self { source, pfn: Some(frame::alloc(source, gfp)?) })
    }

    /// The table, which is the caller's now.
    pub(super) fn into_pfn(mut self) -> Option<Pfn> {
        self.pfn.take()
    }
}

/// The entry of one of the 512 pages that a huge one maps.
fn part(huge: Mapped, index: u64) -> Mapped {
    Mapped { pfn: huge.pfn.checked_add(index).unwrap_or(huge.pfn), ..huge }
}

/// Writes the entries that a huge one is split into, into a table that is in no tree; how many are in use.
fn fill<F: EntryFormat>(table: &Frame<'_>, huge: Pte, small: &mut impl FnMut(u64, Mapped) -> Mapped) -> u32 {
    let mut used = 0;
    for (index, entry) in table.entries().iter().enumerate() {
        let small = match huge {
            Pte::Present(huge) => Pte::Present(small(index as u64, huge)),
            other => other,
        };
        entry.store(F::encode(0, small), Release);
        used += u32::from(!small.is_none());
    }
    used
}

impl<S: PageSource> Drop for PreparedTable<'_, S> {
    fn drop(&mut self) {
        if let Some(pfn) = self.pfn.take() {
            frame::free(self.source, pfn);
        }
    }
}

static_assertions::const_assert_eq!(HUGE_SIZE as usize, ENTRIES << crate::addr::PAGE_SHIFT);
