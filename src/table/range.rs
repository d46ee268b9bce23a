//! Many entries at once: one descent for each leaf table.

use core::marker::PhantomData;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU64, fence};

use super::TableError;
use super::format::{self, ENTRIES, EntryFormat, Mapped, Pte, PteBits, RIGHTS};
use super::gather::TlbGather;
use super::huge::HugeRef;
use super::leaf::{Leaf, TableRef};
use super::root::{Cursor, Ensured, PageTable};
use crate::addr::{PAGE_SHIFT, PageOrder, Pfn, VirtAddr, VirtRange};
use crate::flags::GfpFlags;
use crate::phys::PageSource;
use crate::platform::Platform;

/// An entry that a range has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The first address that it covers.
    pub addr: VirtAddr,
    /// What it says; never [`Pte::None`].
    pub pte: Pte,
    /// How much it covers: one page, or 512.
    pub order: PageOrder,
}

/// Whether an entry is to be taken out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zap {
    /// Yes.
    Take,
    /// It stays as it is.
    Keep,
}

impl<'a, S: PageSource, F: EntryFormat> PageTable<'a, S, F> {
    /// Maps the frames from `first` on at the pages of a range, all with the same bits.
    ///
    /// # Errors
    /// [`TableError::Misaligned`] if the range is not one of whole pages; [`TableError::OutOfRange`] if addresses or frames end before it does;
    /// [`TableError::Occupied`] if anything is mapped in it; as [`ensure`](Self::ensure). No page is mapped then, but there may be tables more.
    ///
    /// # Locking
    /// Allocates; called with no lock held. Nobody else maps anything in the range meanwhile.
    ///
    /// # Linux
    /// `remap_pfn_range` in `mm/memory.c`, `vmap_range` in `mm/vmalloc.c`.
    #[doc(alias = "remap_pfn_range")]
    #[doc(alias = "vmap_range")]
    pub fn map_range(
        &self,
        range: VirtRange,
        first: Pfn,
        bits: PteBits,
        gfp: GfpFlags,
    ) -> Result<(), TableError> {
        let pages = range.len() >> PAGE_SHIFT;
        first.checked_add(pages).ok_or(TableError::OutOfRange)?;
        self.prepare(range, gfp)?;
        // From frame to frame an entry changes by the same number: the frame's field is counted up, or down where it is written inverted.
        let encode = |pfn| F::encode(0, Pte::mapping(pfn, bits));
        let mut raw = encode(first);
        let step = first.checked_add(1).map_or(0, |second| encode(second).wrapping_sub(raw));
        self.fill_range(range, |table, rest| raw = table.fill_run(rest, raw, step))
    }

    /// Writes what `entry` answers into the empty entries of a range, in order of their addresses.
    ///
    /// # Errors
    /// As [`map_range`](Self::map_range).
    ///
    /// # Locking
    /// As [`map_range`](Self::map_range); `entry` is called with a table locked.
    pub fn map_with(
        &self,
        range: VirtRange,
        gfp: GfpFlags,
        mut entry: impl FnMut(VirtAddr) -> Pte,
    ) -> Result<(), TableError> {
        self.prepare(range, gfp)?;
        self.fill_range(range, |table, rest| table.fill(rest, |addr| F::encode(0, entry(addr))))
    }

    /// Takes all entries of a range out and hands them to `each`, which gives what they led to to the gather: one frame for each at most. A huge
    /// entry that lies in the range in part is split first. What CPUs are to forget is noted in the gather.
    ///
    /// # Locking
    /// Called with no lock held: the gather may flush between two tables. `each` is called with a table locked.
    ///
    /// # Linux
    /// `unmap_page_range` in `mm/memory.c`.
    #[doc(alias = "unmap_page_range")]
    pub fn unmap_range<'g>(
        &self,
        range: VirtRange,
        gather: &mut TlbGather<'g, S>,
        each: impl FnMut(&mut TlbGather<'g, S>, Found),
    ) {
        self.zap_range(range, gather, |_| Zap::Take, each);
    }

    /// As [`unmap_range`](Self::unmap_range), of those entries alone that `choose` wants out. It may be asked more than once, and of a huge entry
    /// before that is split.
    ///
    /// # Linux
    /// `zap_page_range_single` in `mm/memory.c`.
    #[doc(alias = "zap_page_range")]
    pub fn zap_range<'g>(
        &self,
        range: VirtRange,
        gather: &mut TlbGather<'g, S>,
        mut choose: impl FnMut(Found) -> Zap,
        mut each: impl FnMut(&mut TlbGather<'g, S>, Found),
    ) {
        self.over(range, gather, |gather, leaf, rest| match leaf {
            Leaf::Absent { next } => next,
            Leaf::Table(table) => zap_table(&table, rest, gather, &mut choose, &mut each),
            Leaf::Huge(huge) => zap_huge(huge, rest, gather, &mut choose, &mut each),
        });
    }

    /// Gives the frames that a range maps the bits that `change` makes of their bits, which is the same for the same bits. What hardware notes
    /// meanwhile is not lost: `change` is asked again. A huge entry that lies in the range in part is split first. What CPUs are to forget is noted in the gather: where a right, a mark of
    /// use or a kind of caching went.
    ///
    /// # Locking
    /// As [`unmap_range`](Self::unmap_range).
    ///
    /// # Linux
    /// `change_protection` in `mm/mprotect.c`.
    #[doc(alias = "change_protection")]
    pub fn protect_range(
        &self,
        range: VirtRange,
        gather: &mut TlbGather<'_, S>,
        change: impl Fn(PteBits) -> PteBits,
    ) {
        self.over(range, gather, |gather, leaf, rest| match leaf {
            Leaf::Absent { next } => next,
            Leaf::Table(table) => protect_table(&table, rest, gather, &change),
            Leaf::Huge(huge) => protect_huge(huge, rest, gather, &change),
        });
    }

    /// Shows the entries of a range to `each`, in order of their addresses; holes cost nothing.
    ///
    /// # Locking
    /// `each` is called with a table locked.
    ///
    /// # Linux
    /// `walk_page_range` in `mm/pagewalk.c`.
    #[doc(alias = "walk_page_range")]
    pub fn visit_range(&self, range: VirtRange, mut each: impl FnMut(Found)) {
        let (mut addr, mut cursor) = (range.start(), Cursor::start());
        while addr < range.end() {
            let pin = self.source.platform().pin();
            addr = match self.lock_along(&pin, addr, &mut cursor) {
                Leaf::Absent { next } => next,
                Leaf::Table(table) => {
                    visit_table(&table, rest(range, addr), &mut each);
                    table.end()
                }
                Leaf::Huge(huge) => {
                    each(Found { addr: huge.base(), pte: huge.get(), order: PageOrder::MAX });
                    huge.end()
                }
            };
        }
    }

    /// Goes from leaf to leaf; `work` says where to go on.
    fn over<'g>(
        &self,
        range: VirtRange,
        gather: &mut TlbGather<'g, S>,
        mut work: impl FnMut(&mut TlbGather<'g, S>, Leaf<'_, F>, VirtRange) -> VirtAddr,
    ) {
        let (mut addr, mut cursor) = (range.start(), Cursor::start());
        while addr < range.end() {
            gather.make_room();
            let pin = self.source.platform().pin();
            addr = work(gather, self.lock_along(&pin, addr, &mut cursor), rest(range, addr));
        }
    }

    /// Makes the tables of a range, in which nothing is mapped.
    fn prepare(&self, range: VirtRange, gfp: GfpFlags) -> Result<(), TableError> {
        if !range.start().is_page_aligned() || !range.end().is_page_aligned() {
            return Err(TableError::Misaligned);
        }
        let mut addr = range.start();
        while addr < range.end() {
            // Nobody else maps anything here meanwhile, so a new table is empty.
            if self.ensure_or_make(addr, 0, gfp)? == Ensured::Made {
                addr = format::next(1, addr);
                continue;
            }
            let pin = self.source.platform().pin();
            let Leaf::Table(table) = self.lock(&pin, addr) else { return Err(TableError::Occupied) };
            if table.iter(rest(range, addr)).next().is_some() {
                return Err(TableError::Occupied);
            }
            addr = table.end();
        }
        Ok(())
    }

    /// Fills the entries of a range that has been prepared.
    #[inline]
    fn fill_range(
        &self,
        range: VirtRange,
        mut fill: impl FnMut(&TableRef<'_, F>, VirtRange),
    ) -> Result<(), TableError> {
        let (mut addr, mut cursor) = (range.start(), Cursor::start());
        while addr < range.end() {
            let pin = self.source.platform().pin();
            let Leaf::Table(table) = self.lock_along(&pin, addr, &mut cursor) else {
                return Err(TableError::Occupied);
            };
            fill(&table, rest(range, addr));
            addr = table.end();
        }
        Ok(())
    }
}

/// What is left of a range from `addr` on.
#[inline]
fn rest(range: VirtRange, addr: VirtAddr) -> VirtRange {
    VirtRange::new(addr.min(range.end()), range.end()).unwrap_or(range)
}

impl<F: EntryFormat> TableRef<'_, F> {
    /// The entries of a range, and the index of the first.
    #[inline]
    fn slice(&self, range: VirtRange) -> (&[AtomicU64], usize) {
        let (first, end) = self.indices(range);
        (self.entries().get(first..end).unwrap_or_default(), first)
    }

    /// Writes entries that nothing is known of but that they are empty.
    #[inline]
    fn fill(&self, range: VirtRange, mut raw: impl FnMut(VirtAddr) -> u64) {
        let (entries, first) = self.slice(range);
        let mut used = self.used();
        // Release: what the frames hold was written before somebody finds them here.
        fence(Release);
        for (index, entry) in (first..).zip(entries) {
            let raw = raw(self.addr(index));
            used += u32::from(raw != 0);
            entry.store(raw, Relaxed);
        }
        self.note_used(used);
    }

    /// Writes entries of frames, of which each is by `step` greater than the one before, into empty ones; what follows the last.
    #[inline]
    fn fill_run(&self, range: VirtRange, first: u64, step: u64) -> u64 {
        let (entries, _) = self.slice(range);
        let mut raw = first;
        // Release: as in `fill`.
        fence(Release);
        for entry in entries {
            entry.store(raw, Relaxed);
            raw = raw.wrapping_add(step);
        }
        self.note_used(self.used() + entries.len() as u32);
        raw
    }
}

/// So many entries are looked at at once: mostly they say the same but for the frame.
const GROUP: usize = 16;

/// A whole group, if all in it say `rest` besides their frames, which nobody changes while the table is locked.
#[inline]
fn alike<F: EntryFormat>(group: &[AtomicU64], rest: u64) -> Option<&[AtomicU64; GROUP]> {
    let group: &[AtomicU64; GROUP] = group.try_into().ok()?;
    let differ = group.iter().fold(0, |differ, entry| differ | (entry.load(Relaxed) ^ rest));
    (differ & !F::FRAME == 0).then_some(group)
}

/// Reads entries, most of which say the same but for the frame.
struct Reader<F> {
    /// What the last one that hardware sees had besides its frame; no entry's before the first.
    rest: u64,
    bits: PteBits,
    /// Whether hardware may change such an entry.
    may_change: bool,
    format: PhantomData<F>,
}

impl<F: EntryFormat> Reader<F> {
    const fn new() -> Self {
        Self { rest: u64::MAX, bits: PteBits::empty(), may_change: true, format: PhantomData }
    }

    #[inline]
    fn decode(&mut self, raw: u64) -> Pte {
        if raw & !F::FRAME == self.rest {
            return Pte::mapping(F::frame(raw), self.bits);
        }
        let pte = F::decode(0, raw);
        if let Some(mapped) = pte.mapped().filter(|mapped| is_plain(mapped.bits)) {
            (self.rest, self.bits, self.may_change) = (raw & !F::FRAME, mapped.bits, F::may_change(raw));
        }
        pte
    }

    /// An entry that says the same as the last one, but for the frame.
    #[inline]
    fn same(&self, raw: u64) -> Pte {
        Pte::mapping(F::frame(raw), self.bits)
    }
}

/// Whether an entry with these bits has its frame where hardware looks for it.
#[inline]
fn is_plain(bits: PteBits) -> bool {
    !bits.contains(PteBits::PROT_NONE) && bits.intersects(RIGHTS)
}

#[inline]
fn visit_table<F: EntryFormat>(table: &TableRef<'_, F>, rest: VirtRange, each: &mut impl FnMut(Found)) {
    if table.used() == 0 {
        return;
    }
    let (entries, first) = table.slice(rest);
    let mut reader = Reader::<F>::new();
    let found = |index, pte| Found { addr: table.addr(index), pte, order: PageOrder::ZERO };
    for (first, group) in (first..).step_by(GROUP).zip(entries.chunks(GROUP)) {
        if let Some(group) = alike::<F>(group, reader.rest) {
            for (index, entry) in (first..).zip(group) {
                each(found(index, reader.same(entry.load(Relaxed))));
            }
            continue;
        }
        for (index, entry) in (first..).zip(group) {
            let raw = entry.load(Relaxed);
            if raw != 0 {
                each(found(index, reader.decode(raw)));
            }
        }
    }
}

/// The pages that CPUs are to forget, of one table.
struct Stale {
    first: usize,
    end: usize,
}

impl Stale {
    const NONE: Self = Self { first: ENTRIES, end: 0 };

    #[inline]
    fn add(&mut self, index: usize) {
        self.add_range(index, index + 1);
    }

    /// Pages behind all that were added before.
    #[inline]
    fn add_range(&mut self, first: usize, end: usize) {
        self.first = self.first.min(first);
        self.end = end;
    }

    fn note<S: PageSource, F: EntryFormat>(&self, table: &TableRef<'_, F>, gather: &mut TlbGather<'_, S>) {
        if self.first < self.end {
            let pages = (self.end - self.first) as u64;
            let range = VirtRange::with_len(table.addr(self.first), pages << PAGE_SHIFT);
            if let Some(range) = range {
                gather.flush_range(range);
            }
        }
    }
}

/// Whether a CPU may know the entry.
#[inline]
fn is_seen(pte: Pte) -> bool {
    pte.mapped().is_some_and(|mapped| !mapped.bits.contains(PteBits::PROT_NONE))
}

/// Whether CPUs that know the old entry must forget it.
#[inline]
fn is_stale(old: Mapped, new: PteBits) -> bool {
    const CACHING: PteBits = PteBits::UNCACHED.union(PteBits::WRITE_COMBINING);
    let hidden = !old.bits.contains(PteBits::PROT_NONE) && new.contains(PteBits::PROT_NONE);
    let lost = old.bits - new - PteBits::SPECIAL;
    !old.bits.contains(PteBits::PROT_NONE)
        && (hidden || !lost.is_empty() || (old.bits ^ new).intersects(CACHING))
}

/// Takes entries out of a table; where to go on, which is inside it if the gather is full.
#[inline]
fn zap_table<'g, S: PageSource, F: EntryFormat>(
    table: &TableRef<'_, F>,
    rest: VirtRange,
    gather: &mut TlbGather<'g, S>,
    choose: &mut impl FnMut(Found) -> Zap,
    each: &mut impl FnMut(&mut TlbGather<'g, S>, Found),
) -> VirtAddr {
    let (entries, first) = table.slice(rest);
    let (mut stale, mut left, mut next) = (Stale::NONE, table.used(), None);
    let mut reader = Reader::<F>::new();
    let found = |index, pte| Found { addr: table.addr(index), pte, order: PageOrder::ZERO };
    for (first, group) in (first..).step_by(GROUP).zip(entries.chunks(GROUP)) {
        if left == 0 || next.is_some() {
            break;
        }
        if let Some(group) = alike::<F>(group, reader.rest).filter(|_| !reader.may_change) {
            // Which of the group were taken, by bits.
            let mut taken = 0_u32;
            for (at, entry) in group.iter().enumerate() {
                let found = found(first + at, reader.same(entry.load(Relaxed)));
                if choose(found) == Zap::Keep {
                    continue;
                }
                if gather.is_full() {
                    next = Some(found.addr);
                    break;
                }
                entry.store(0, Relaxed);
                taken |= 1 << at;
                each(gather, found);
            }
            if taken != 0 {
                left -= taken.count_ones();
                stale.add_range(first + taken.trailing_zeros() as usize, first + taken.ilog2() as usize + 1);
            }
            continue;
        }
        for (index, entry) in (first..).zip(group) {
            let raw = entry.load(Relaxed);
            if raw == 0 {
                continue;
            }
            let mut found = found(index, reader.decode(raw));
            if choose(found) == Zap::Keep {
                continue;
            }
            if gather.is_full() {
                next = Some(found.addr);
                break;
            }
            if F::may_change(raw) {
                found.pte = F::decode(0, entry.swap(0, AcqRel));
            } else {
                entry.store(0, Relaxed);
            }
            left -= 1;
            if is_seen(found.pte) {
                stale.add(index);
            }
            each(gather, found);
        }
    }
    table.note_used(left);
    stale.note(table, gather);
    next.unwrap_or(table.end())
}

/// Takes a huge entry out, or splits it; where to go on.
fn zap_huge<'g, S: PageSource, F: EntryFormat>(
    huge: HugeRef<'_, F>,
    rest: VirtRange,
    gather: &mut TlbGather<'g, S>,
    choose: &mut impl FnMut(Found) -> Zap,
    each: &mut impl FnMut(&mut TlbGather<'g, S>, Found),
) -> VirtAddr {
    let mut found = Found { addr: huge.base(), pte: huge.get(), order: PageOrder::MAX };
    let next = huge.end();
    if choose(found) == Zap::Keep {
        return next;
    }
    if !format::span(1, huge.base()).is_some_and(|span| rest.encloses(span)) {
        return split(huge, rest);
    }
    if gather.is_full() {
        return found.addr;
    }
    found.pte = huge.zap(gather);
    each(gather, found);
    next
}

/// Splits a huge entry by the table that was kept for that; where to go on: at the same address, unless there was none.
fn split<F: EntryFormat>(huge: HugeRef<'_, F>, rest: VirtRange) -> VirtAddr {
    let next = huge.end();
    if huge.split_kept() { rest.start() } else { next }
}

#[inline]
fn protect_table<S: PageSource, F: EntryFormat>(
    table: &TableRef<'_, F>,
    rest: VirtRange,
    gather: &mut TlbGather<'_, S>,
    change: &impl Fn(PteBits) -> PteBits,
) -> VirtAddr {
    if table.used() == 0 {
        return table.end();
    }
    let (entries, first) = table.slice(rest);
    let mut stale = Stale::NONE;
    let mut last = Change::<F>::NONE;
    // Release: who finds a changed entry finds what its frame held when it was mapped.
    fence(Release);
    for (first, group) in (first..).step_by(GROUP).zip(entries.chunks(GROUP)) {
        if let Some(group) = alike::<F>(group, last.old).filter(|_| !last.may_change) {
            let flip = last.old ^ last.new;
            for entry in group {
                entry.store(entry.load(Relaxed) ^ flip, Relaxed);
            }
            if last.is_stale {
                stale.add_range(first, first + GROUP);
            }
            continue;
        }
        for (index, entry) in (first..).zip(group) {
            if protect_entry(entry, &mut last, change) {
                stale.add(index);
            }
        }
    }
    stale.note(table, gather);
    table.end()
}

/// Changes one entry; whether CPUs that know the old one must forget it.
#[inline]
fn protect_entry<F: EntryFormat>(
    entry: &AtomicU64,
    last: &mut Change<F>,
    change: &impl Fn(PteBits) -> PteBits,
) -> bool {
    let mut raw = entry.load(Relaxed);
    while raw != 0 {
        let Some((new, is_stale)) = last.of(raw, change) else { break };
        if !F::may_change(raw) {
            entry.store(new, Release);
        } else if let Err(seen) = entry.compare_exchange(raw, new, AcqRel, Acquire) {
            raw = seen;
            continue;
        }
        return is_stale;
    }
    false
}

/// What was made of the last entry that hardware sees, besides its frame.
struct Change<F> {
    old: u64,
    new: u64,
    is_stale: bool,
    /// Whether hardware may change such an entry.
    may_change: bool,
    format: PhantomData<F>,
}

impl<F: EntryFormat> Change<F> {
    const NONE: Self = Self { old: u64::MAX, new: 0, is_stale: false, may_change: true, format: PhantomData };

    /// What becomes of an entry, and whether CPUs that know the old one must forget it; `None` for one without a frame.
    #[inline]
    fn of(&mut self, raw: u64, change: &impl Fn(PteBits) -> PteBits) -> Option<(u64, bool)> {
        if raw & !F::FRAME == self.old {
            return Some((raw & F::FRAME | self.new, self.is_stale));
        }
        let old = F::decode(0, raw).mapped()?;
        let bits = change(old.bits);
        let (new, is_stale) = (F::encode(0, Pte::mapping(old.pfn, bits)), is_stale(old, bits));
        if is_plain(old.bits) && is_plain(bits) {
            (self.old, self.new, self.is_stale) = (raw & !F::FRAME, new & !F::FRAME, is_stale);
            self.may_change = F::may_change(raw);
        }
        Some((new, is_stale))
    }
}

fn protect_huge<S: PageSource, F: EntryFormat>(
    huge: HugeRef<'_, F>,
    rest: VirtRange,
    gather: &mut TlbGather<'_, S>,
    change: &impl Fn(PteBits) -> PteBits,
) -> VirtAddr {
    let Some(span) = format::span(1, huge.base()).filter(|&span| rest.encloses(span)) else {
        return split(huge, rest);
    };
    let mut new = PteBits::empty();
    let old = huge.update(|old| {
        new = change(old.bits);
        Mapped { bits: new, ..old }
    });
    if old.mapped().is_some_and(|old| is_stale(old, new)) {
        gather.flush_huge(span);
    }
    huge.end()
}
