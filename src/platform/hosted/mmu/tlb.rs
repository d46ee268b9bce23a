//! What a CPU remembers of page tables: translations, and the way to them.

use crate::addr::{PAGE_SIZE_U64, PageOrder, Pfn, VirtAddr, VirtRange};
use crate::platform::{FlushScope, TlbFlush};

use super::format::{Rights, shift};
use super::reach::Reach;

/// Entries of the cache of translations: 128 sets of 12, as the second-level TLB of many CPUs.
const PAGE_SETS: usize = 128;
const PAGE_WAYS: usize = 12;
/// Entries of the cache of the way.
const TABLE_SETS: usize = 32;
const TABLE_WAYS: usize = 4;
/// Levels that an entry can be of.
const LEVELS: u8 = 4;
/// Up to so many pages are looked up one by one; beyond that everything is looked at.
const FEW_PAGES: u64 = 64;

/// Something remembered of an entry of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// The root of the tables.
    pub(super) root: Pfn,
    /// The entry's level.
    pub(super) level: u8,
    /// The address, without the bits that lie below that level.
    pub(super) number: u64,
    /// Where it leads to: the first frame of the page, or the frame of the table.
    pub(super) target: Pfn,
    /// As how many levels that is large: 0 for a frame, 1 for 2 MiB, 2 for 1 GiB.
    pub(super) size: u8,
    pub(super) rights: Rights,
    /// Whether the page's entry is known to have the dirty bit.
    pub(super) dirty: bool,
    /// Whether it is good for all roots.
    pub(super) global: bool,
}

impl Entry {
    fn is_for(&self, root: Pfn, addr: u64, level: u8) -> bool {
        self.level == level && self.number == addr >> shift(level) && (self.global || self.root == root)
    }

    /// Whether a flush speaks of it.
    fn is_hit(&self, flush: &TlbFlush) -> bool {
        let (first, span) = (self.number << shift(self.level), 1 << shift(self.level));
        let last = first + (span - 1);
        match flush.scope {
            FlushScope::All => !self.global && self.root == flush.pgd,
            FlushScope::Page(addr) => {
                (self.global || self.root == flush.pgd) && (first..=last).contains(&addr.get())
            }
            FlushScope::Range(range) => (self.global || self.root == flush.pgd) && meets(range, first, last),
            FlushScope::Kernel(range) => meets(range, first, last),
        }
    }

    /// Whether it leads to a frame of a block.
    fn reaches(&self, pfn: Pfn, order: PageOrder) -> bool {
        let (start, len) = (self.target.get(), 1 << (9 * u32::from(self.size)));
        start < pfn.get() + order.pages() && pfn.get() < start + len
    }
}

fn meets(range: VirtRange, first: u64, last: u64) -> bool {
    first < range.end().get() && range.start().get() <= last && !range.is_empty()
}

/// A cache of entries: sets of a few, in each of which the oldest goes first.
#[derive(Debug)]
struct Cache {
    sets: usize,
    ways: usize,
    /// Empty before the first entry comes.
    entries: Vec<Option<Entry>>,
    /// The next to go in each set.
    turns: Vec<usize>,
    /// How many there are of each level.
    counts: [usize; LEVELS as usize],
}

impl Cache {
    const fn new(sets: usize, ways: usize) -> Self {
        Self { sets, ways, entries: Vec::new(), turns: Vec::new(), counts: [0; LEVELS as usize] }
    }

    fn place(&self, root: Pfn, addr: u64, level: u8) -> Option<usize> {
        if self.counts[usize::from(level)] == 0 {
            return None;
        }
        let first = (addr >> shift(level)) as usize % self.sets * self.ways;
        let set = first..first + self.ways;
        set.into_iter().find(|&at| self.entries[at].is_some_and(|entry| entry.is_for(root, addr, level)))
    }

    fn find(&self, root: Pfn, addr: u64, level: u8) -> Option<&Entry> {
        self.entries[self.place(root, addr, level)?].as_ref()
    }

    fn insert(&mut self, entry: Entry, reach: &Reach) {
        if self.entries.is_empty() {
            self.entries = vec![None; self.sets * self.ways];
            self.turns = vec![0; self.sets];
        }
        let set = entry.number as usize % self.sets;
        let first = set * self.ways;
        let own = self.place(entry.root, entry.number << shift(entry.level), entry.level);
        let at = own.or_else(|| (first..first + self.ways).find(|&at| self.entries[at].is_none()));
        let at = at.unwrap_or_else(|| {
            let turn = self.turns[set];
            self.turns[set] = (turn + 1) % self.ways;
            first + turn
        });
        self.remove(at, reach);
        reach.add(entry.target, entry.size);
        self.counts[usize::from(entry.level)] += 1;
        self.entries[at] = Some(entry);
    }

    fn remove(&mut self, at: usize, reach: &Reach) {
        if let Some(old) = self.entries[at].take() {
            reach.remove(old.target, old.size);
            self.counts[usize::from(old.level)] -= 1;
        }
    }

    /// Forgets what is used to translate an address.
    fn forget_addr(&mut self, root: Pfn, addr: u64, reach: &Reach) {
        for level in 0..LEVELS {
            // A global entry and one of this root may both be there.
            while let Some(at) = self.place(root, addr, level) {
                self.remove(at, reach);
            }
        }
    }

    fn forget_if(&mut self, reach: &Reach, is_hit: impl Fn(&Entry) -> bool) {
        if self.counts == [0; LEVELS as usize] {
            return;
        }
        for at in 0..self.entries.len() {
            if self.entries[at].as_ref().is_some_and(&is_hit) {
                self.remove(at, reach);
            }
        }
    }

    fn forget(&mut self, flush: &TlbFlush, reach: &Reach) {
        let few = match flush.scope {
            FlushScope::Page(addr) => Some((addr.page_floor(), 1)),
            FlushScope::Range(range) => {
                let start = range.start().page_floor();
                let pages = (range.end().get() - start.get()).div_ceil(PAGE_SIZE_U64);
                (pages <= FEW_PAGES && !range.is_empty()).then_some((start, pages))
            }
            FlushScope::All | FlushScope::Kernel(_) => None,
        };
        match few {
            Some((start, pages)) => {
                for page in 0..pages {
                    self.forget_addr(flush.pgd, start.get() + page * PAGE_SIZE_U64, reach);
                }
            }
            None => self.forget_if(reach, |entry| entry.is_hit(flush)),
        }
    }

    fn reaching(&self, pfn: Pfn, order: PageOrder) -> Option<&Entry> {
        self.entries.iter().flatten().find(|entry| entry.reaches(pfn, order))
    }
}

/// One CPU's memory management unit.
#[derive(Debug)]
pub(super) struct Tlb {
    root: Option<Pfn>,
    pages: Cache,
    tables: Cache,
}

/// How a CPU reaches a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ReachedBy {
    /// It is the root of the tables that the CPU walks.
    Root,
    /// The CPU remembers a translation of this address to it, from the tables with this root.
    Translation(VirtAddr, Pfn),
    /// The CPU remembers it as the table that leads on for this address, of the tables with this root.
    Table(VirtAddr, Pfn),
    /// A device reads or writes it.
    Device,
}

impl Tlb {
    pub(super) const fn new() -> Self {
        Self {
            root: None,
            pages: Cache::new(PAGE_SETS, PAGE_WAYS),
            tables: Cache::new(TABLE_SETS, TABLE_WAYS),
        }
    }

    pub(super) fn root(&self) -> Option<Pfn> {
        self.root
    }

    pub(super) fn set_root(&mut self, root: Option<Pfn>, reach: &Reach) {
        if let Some(root) = root {
            reach.add(root, 0);
        }
        if let Some(old) = std::mem::replace(&mut self.root, root) {
            reach.remove(old, 0);
        }
    }

    /// The translation of an address, if it is remembered.
    pub(super) fn page(&self, root: Pfn, addr: u64) -> Option<Entry> {
        (0..LEVELS).find_map(|level| self.pages.find(root, addr, level)).copied()
    }

    /// All translations that are remembered.
    pub(super) fn translations(&self) -> impl Iterator<Item = &Entry> {
        self.pages.entries.iter().flatten()
    }

    pub(super) fn remember_page(&mut self, entry: Entry, reach: &Reach) {
        self.pages.insert(entry, reach);
    }

    /// The lowest table on the way to an address that is remembered.
    pub(super) fn table(&self, root: Pfn, addr: u64) -> Option<Entry> {
        (1..LEVELS).find_map(|level| self.tables.find(root, addr, level)).copied()
    }

    pub(super) fn remember_table(&mut self, entry: Entry, reach: &Reach) {
        self.tables.insert(entry, reach);
    }

    /// Forgets all that is used to translate an address.
    pub(super) fn forget_addr(&mut self, root: Pfn, addr: u64, reach: &Reach) {
        self.pages.forget_addr(root, addr, reach);
        self.tables.forget_addr(root, addr, reach);
    }

    /// Forgets all but what is global.
    pub(super) fn forget_own(&mut self, reach: &Reach) {
        self.pages.forget_if(reach, |entry| !entry.global);
        self.tables.forget_if(reach, |entry| !entry.global);
    }

    pub(super) fn flush(&mut self, flush: &TlbFlush, reach: &Reach) {
        self.pages.forget(flush, reach);
        if flush.tables {
            self.tables.forget(flush, reach);
        }
    }

    /// How this CPU reaches a frame of a block.
    pub(super) fn reaching(&self, pfn: Pfn, order: PageOrder) -> Option<ReachedBy> {
        let address = |entry: &Entry| VirtAddr::from(entry.number << shift(entry.level));
        let inside = |root: Pfn| pfn <= root && root.get() < pfn.get() + order.pages();
        if self.root.is_some_and(inside) {
            return Some(ReachedBy::Root);
        }
        let page = self.pages.reaching(pfn, order);
        let page = page.map(|entry| ReachedBy::Translation(address(entry), entry.root));
        let table = || self.tables.reaching(pfn, order);
        page.or_else(|| table().map(|entry| ReachedBy::Table(address(entry), entry.root)))
    }
}
