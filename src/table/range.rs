//! Many entries at once: one descent for each leaf table.

mod map;
mod protect;
mod visit;
mod zap;

use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use super::format::{EntryFormat, Pte, PteBits, RIGHTS};
use super::gather::TlbGather;
use super::huge::HugeRef;
use super::leaf::{Leaf, TableRef};
use super::root::{Cursor, PageTable};
use crate::addr::{PAGE_SHIFT, PageOrder, VirtAddr, VirtRange};
use crate::phys::PageSource;
use crate::platform::Platform;
pub use protect::Change;
pub use zap::Zap;

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

impl<S: PageSource, F: EntryFormat> PageTable<'_, S, F> {
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
}

/// What is left of a range from `addr` on.
#[inline]
fn rest(range: VirtRange, addr: VirtAddr) -> VirtRange {
    VirtRange::new(addr.min(range.end()), range.end()).unwrap_or(range)
}

/// Splits a huge entry by the table that was kept for that; where to go on: at the same address, unless there was none.
fn split<F: EntryFormat>(huge: HugeRef<'_, F>, rest: VirtRange) -> VirtAddr {
    let next = huge.end();
    if huge.split_kept() { rest.start() } else { next }
}

impl<F: EntryFormat> TableRef<'_, F> {
    /// The entries of a range.
    #[inline]
    fn groups(&self, range: VirtRange) -> Groups<'_> {
        let (first, end) = self.indices(range);
        Groups { entries: self.entries().get(first..end).unwrap_or_default(), first }
    }

    /// What is found at an index.
    #[inline]
    fn found(&self, index: usize, pte: Pte) -> Found {
        Found { addr: self.addr(index), pte, order: PageOrder::ZERO }
    }
}

/// So many entries are read before it is decided how to go on: mostly they are all of one kind, and then no decision is left for each.
const GROUP: usize = 8;

/// Goes along the entries of a table, a group at a time.
struct Groups<'e> {
    entries: &'e [AtomicU64],
    /// The index of the first of them.
    first: usize,
}

impl<'e> Groups<'e> {
    fn is_done(&self) -> bool {
        self.entries.is_empty()
    }

    /// A whole group and what its entries say, if each of them has all of `bits`; who has it goes on behind it.
    #[inline]
    fn take_all_with(&mut self, bits: u64) -> Option<(&'e [AtomicU64; GROUP], [u64; GROUP])> {
        let (group, behind) = self.entries.split_first_chunk::<GROUP>()?;
        let raws = group.each_ref().map(|entry| entry.load(Relaxed));
        if raws.iter().fold(bits, |common, raw| common & raw) != bits {
            return None;
        }
        *self = Self { entries: behind, first: self.first + GROUP };
        Some((group, raws))
    }

    /// A group of which anything may be, or what is left of one, each entry with its index.
    #[inline]
    fn take(&mut self) -> impl Iterator<Item = (usize, &'e AtomicU64)> + use<'e> {
        let (group, behind) = self.entries.split_at(self.entries.len().min(GROUP));
        let first = self.first;
        *self = Self { entries: behind, first: first + group.len() };
        (first..).zip(group)
    }
}

/// Reads entries, most of which say the same but for the frame.
struct Reader<F> {
    /// What the last one that hardware sees had besides its frame; no entry's before the first.
    rest: u64,
    bits: PteBits,
    format: PhantomData<F>,
}

impl<F: EntryFormat> Reader<F> {
    const fn new() -> Self {
        Self { rest: u64::MAX, bits: PteBits::empty(), format: PhantomData }
    }

    #[inline]
    fn decode(&mut self, raw: u64) -> Pte {
        if raw & F::SEEN != 0 { self.decode_seen(raw) } else { F::decode(0, raw) }
    }

    /// An entry that hardware sees.
    #[inline]
    fn decode_seen(&mut self, raw: u64) -> Pte {
        if raw & !F::FRAME != self.rest {
            self.rest = raw & !F::FRAME;
            self.bits = F::decode(0, raw).mapped().map_or(PteBits::empty(), |mapped| mapped.bits);
        }
        Pte::mapping(F::frame(raw), self.bits)
    }
}

/// Whether an entry with these bits has its frame where hardware looks for it.
#[inline]
fn is_plain(bits: PteBits) -> bool {
    !bits.contains(PteBits::PROT_NONE) && bits.intersects(RIGHTS)
}

/// The pages that CPUs are to forget, of one table.
struct Stale {
    first: usize,
    end: usize,
}

impl Stale {
    const NONE: Self = Self { first: usize::MAX, end: 0 };

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
            if let Some(range) = VirtRange::with_len(table.addr(self.first), pages << PAGE_SHIFT) {
                gather.flush_range(range);
            }
        }
    }
}
