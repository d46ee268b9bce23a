//! Many entries at once: one descent for each leaf table.

mod map;
mod moves;
mod protect;
mod visit;
mod zap;

use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use super::format::{EntryFormat, Pte, PteBits, RIGHTS};
use super::huge::HugeRef;
use super::leaf::TableRef;
use super::root::{AtLeaf, Cursor, PageTable};
use crate::addr::{PAGE_SHIFT, PageOrder, Pfn, VirtAddr, VirtRange};
use crate::phys::PageSource;
use crate::platform::Platform;
pub use protect::Change;
pub use zap::Zap;
pub(crate) use zap::Zapper;

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

/// Entries one behind the other, each with the frame behind that of the one before, which say the same besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first of them.
    pub first: Found,
    /// How many there are; never 0.
    pub len: usize,
}

impl Run {
    /// Each of them.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = Found> {
        let Found { addr, pte, order } = self.first;
        (0..self.len as u64).map(move |index| {
            let pages = index << order.get();
            let pte = match pte {
                Pte::Present(first) => Pte::mapping(Pfn::trusted(first.pfn.get() + pages), first.bits),
                other => other,
            };
            Found { addr: VirtAddr::from(addr.get() + (pages << PAGE_SHIFT)), pte, order }
        })
    }
}

/// What a walk along a range does with each leaf; where it is to go on then.
trait Walker<F: EntryFormat> {
    /// Before each leaf, while nothing is locked.
    #[inline]
    fn prepare(&mut self) {}

    fn table(&mut self, table: &TableRef<'_, F>, rest: VirtRange) -> VirtAddr;

    fn huge(&mut self, huge: HugeRef<'_, F>, rest: VirtRange) -> VirtAddr;
}

/// One leaf of a walk.
struct Step<'w, W> {
    walker: &'w mut W,
    rest: VirtRange,
}

impl<'p, F: EntryFormat, W: Walker<F>> AtLeaf<'p, F> for Step<'_, W> {
    type Answer = VirtAddr;

    #[inline]
    fn absent(self, next: VirtAddr) -> VirtAddr {
        next
    }

    #[inline]
    fn table(self, table: TableRef<'p, F>) -> VirtAddr {
        self.walker.table(&table, self.rest)
    }

    #[inline]
    fn huge(self, huge: HugeRef<'p, F>) -> VirtAddr {
        self.walker.huge(huge, self.rest)
    }
}

impl<S: PageSource, F: EntryFormat> PageTable<'_, S, F> {
    /// Goes from leaf to leaf.
    #[inline]
    fn over(&self, range: VirtRange, walker: &mut impl Walker<F>) {
        let (mut addr, mut cursor) = (range.start(), Cursor::start());
        while addr < range.end() {
            walker.prepare();
            let pin = self.source.platform().pin();
            let step = Step { walker, rest: rest(range, addr) };
            let next = self.lock_along(&pin, addr, &mut cursor, step);
            debug_assert!(next >= addr, "a walk that goes back");
            addr = next;
        }
    }
}

/// What is left of a range from `addr` on.
#[inline]
fn rest(range: VirtRange, addr: VirtAddr) -> VirtRange {
    VirtRange::new(addr.min(range.end()), range.end()).unwrap_or(range)
}

impl<F: EntryFormat> TableRef<'_, F> {
    /// The entries of a range.
    #[inline]
    fn groups(&self, range: VirtRange) -> Groups<'_> {
        let (first, end) = self.indices(range);
        Groups { entries: self.entries().get(first..end).unwrap_or_default(), end }
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
    /// The index behind the last of them.
    end: usize,
}

impl<'e> Groups<'e> {
    fn is_done(&self) -> bool {
        self.entries.is_empty()
    }

    /// The index of the next entry.
    #[inline]
    fn next(&self) -> usize {
        self.end - self.entries.len()
    }

    /// The first entry of whole groups that hardware sees, if those behind it go on as it does, and how many they are: each has the next frame, and
    /// the same besides.
    #[inline]
    fn take_run<F: EntryFormat>(&mut self) -> Option<(u64, usize)> {
        let first = self.entries.first()?.load(Relaxed);
        if first & F::SEEN == 0 {
            return None;
        }
        let len = run_len::<F>(self.entries, first);
        self.entries = self.entries.get(len..).unwrap_or_default();
        (len != 0).then_some((first, len))
    }

    /// A group of which anything may be, or what is left of one, each entry with its index.
    #[inline]
    fn take(&mut self) -> impl Iterator<Item = (usize, &'e AtomicU64)> + use<'e> {
        let first = self.next();
        let (group, behind) = self.entries.split_at(self.entries.len().min(GROUP));
        self.entries = behind;
        (first..).zip(group)
    }
}

/// So many groups are gone along before it is asked again how to go on: a CPU foresees the end of a loop of eight steps, not of one of sixty-four.
const BLOCK: usize = 8 * GROUP;

/// How many entries there are in whole groups for which `is_so` holds one behind the other; it is told how many came before.
#[inline(always)]
fn groups_len(entries: &[AtomicU64], mut is_so: impl FnMut(&[AtomicU64; GROUP], usize) -> bool) -> usize {
    let mut len = 0;
    let (blocks, behind) = (entries.chunks_exact(BLOCK), entries.chunks_exact(BLOCK).remainder());
    for block in blocks {
        for group in block.chunks_exact(GROUP) {
            match group.first_chunk() {
                Some(group) if is_so(group, len) => len += GROUP,
                _ => return len,
            }
        }
    }
    for group in behind.chunks_exact(GROUP) {
        match group.first_chunk() {
            Some(group) if is_so(group, len) => len += GROUP,
            _ => return len,
        }
    }
    len
}

/// How many entries there are in whole groups that go on as the first: each has the next frame, and the same besides.
#[inline(never)]
fn run_len<F: EntryFormat>(entries: &[AtomicU64], first: u64) -> usize {
    groups_len(entries, |group, before| {
        let due = |index: usize| first.wrapping_add(((before + index) as u64) << F::FRAME.trailing_zeros());
        group.iter().enumerate().all(|(index, entry)| entry.load(Relaxed) == due(index))
    })
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

    /// The same, if it is thought to be as the last one; that is not noted, so it costs nothing where nobody asks what it says.
    #[inline]
    fn decode_alike(&self, raw: u64) -> Pte {
        if raw & !F::FRAME == self.rest { Pte::mapping(F::frame(raw), self.bits) } else { F::decode(0, raw) }
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

    /// Pages behind all that were added before, or none.
    #[inline]
    fn add_range(&mut self, first: usize, end: usize) {
        if first < end {
            self.first = self.first.min(first);
            self.end = end;
        }
    }

    fn range<F: EntryFormat>(&self, table: &TableRef<'_, F>) -> Option<VirtRange> {
        let pages = self.end.checked_sub(self.first)? as u64;
        VirtRange::with_len(table.addr(self.first), pages << PAGE_SHIFT)
    }
}
