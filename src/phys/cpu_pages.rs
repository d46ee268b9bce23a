//! Per-CPU pages: free blocks that a CPU takes and gives back without a lock.
//!
//! For each order that is kept (0–3 and 9) and each migrate type a CPU has two magazines of a zone, chains of blocks
//! linked through their pages: the one it works from and a spare. Only when both are empty (or both full) is anything shared touched, and
//! then a whole magazine moves: to or from the zone's [`Depot`](super::depot::Depot), or its free lists. That is Bonwick's scheme
//! ("Magazines and Vmem", USENIX ATC 2001); a CPU that only frees thus feeds one that only allocates.
//!
//! The fast path takes no atomic read-modify-write. All fields are atomics with plain accesses: the [`CpuPin`](crate::platform::CpuPin) says
//! that the caller is alone on its CPU, and a [`Gate`] hands what it keeps to another one. Frames on these lists count as
//! allocated: watermarks are looked at when a magazine is filled, not when it is used.
//!
//! # Linux
//! `struct per_cpu_pages` in `include/linux/mmzone.h`.

use crate::addr::PageOrder;
use crate::sync::atomic::{
    AtomicU16, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use super::migrate::MigrateType;
use super::page::{NIL, Page};

/// Places for the lists that a CPU has for a zone, at `order << 2 | migrate type`. A power of two: an index needs no check.
pub(super) const LISTS: usize = 64;

/// The numbers of all lists, with what they hold.
pub(super) fn lists() -> impl Iterator<Item = (usize, PageOrder, MigrateType)> {
    PageOrder::all()
        .flat_map(|order| MigrateType::ALL.map(|migrate| (list_of(order, migrate), order, migrate)))
}

/// The number of the list for this order and type.
#[inline]
pub(super) fn list_of(order: PageOrder, migrate: MigrateType) -> usize {
    list_number(order, migrate as usize)
}

/// The same by the migrate type's number, or the [mobility bits](crate::flags::GfpFlags::mobility_bits) of a request.
#[inline]
pub(super) const fn list_number(order: PageOrder, mobility: usize) -> usize {
    order.index() << 2 | mobility
}

/// A chain of free blocks of one order and type, linked by `next`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    pub(super) head: u32,
    pub(super) len: u16,
}

impl Chain {
    pub(super) const EMPTY: Self = Self { head: NIL, len: 0 };

    pub(super) fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Adds a block at the front.
    #[inline]
    pub(super) fn push(&mut self, map: &[Page], index: u32) {
        map[index as usize].set_next(self.head);
        self.head = index;
        self.len += 1;
    }

    /// The blocks, front to back. The next one is read before a block is handed out, so that it may be changed.
    pub(super) fn iter<'a>(self, map: &'a [Page]) -> impl Iterator<Item = u32> + use<'a> {
        let mut rest = self;
        core::iter::from_fn(move || {
            let index = (rest.len != 0).then_some(rest.head)?;
            rest = Self { head: map.get(index as usize)?.next(), len: rest.len - 1 };
            Some(index)
        })
    }
}

/// A magazine at work and a spare one.
#[derive(Debug)]
pub(super) struct Magazines {
    loaded: AtomicU32,
    loaded_len: AtomicU16,
    /// The most blocks a magazine holds; 0 turns the list off.
    capacity: AtomicU16,
    spare: AtomicU32,
    spare_len: AtomicU16,
    /// Blocks ever allocated and freed by the CPU, through this list or past it.
    allocated: AtomicU64,
    freed: AtomicU64,
}

impl Magazines {
    fn new() -> Self {
        Self {
            loaded: AtomicU32::new(NIL),
            loaded_len: AtomicU16::new(0),
            capacity: AtomicU16::new(0),
            spare: AtomicU32::new(NIL),
            spare_len: AtomicU16::new(0),
            allocated: AtomicU64::new(0),
            freed: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(super) fn capacity(&self) -> u16 {
        self.capacity.load(Relaxed)
    }

    pub(super) fn set_capacity(&self, blocks: u16) {
        self.capacity.store(blocks, Relaxed);
    }

    /// Blocks in both magazines.
    pub(super) fn len(&self) -> u64 {
        u64::from(self.loaded_len.load(Relaxed)) + u64::from(self.spare_len.load(Relaxed))
    }

    /// Takes a block from the magazine at work.
    #[inline]
    pub(super) fn pop<'m>(&self, map: &'m [Page]) -> Option<(u32, &'m Page)> {
        let index = self.loaded.load(Relaxed);
        let page = map.get(index as usize)?;
        self.loaded.store(page.next(), Relaxed);
        self.loaded_len.store(self.loaded_len.load(Relaxed) - 1, Relaxed);
        Some((index, page))
    }

    /// Puts a block into the magazine at work, unless it is full.
    #[inline]
    pub(super) fn push(&self, page: &Page, index: u32) -> bool {
        let len = self.loaded_len.load(Relaxed);
        if len >= self.capacity() {
            return false;
        }
        page.set_next(self.loaded.load(Relaxed));
        self.loaded.store(index, Relaxed);
        self.loaded_len.store(len + 1, Relaxed);
        true
    }

    #[inline]
    pub(super) fn note_allocated(&self) {
        self.allocated.store(self.allocated.load(Relaxed) + 1, Relaxed);
    }

    #[inline]
    pub(super) fn note_freed(&self) {
        self.freed.store(self.freed.load(Relaxed) + 1, Relaxed);
    }

    /// Exchanges the two magazines.
    pub(super) fn swap(&self) {
        let (loaded, spare) = (self.loaded_chain(), self.spare_chain());
        self.set_loaded(spare);
        self.set_spare(loaded);
    }

    pub(super) fn loaded_chain(&self) -> Chain {
        Chain { head: self.loaded.load(Relaxed), len: self.loaded_len.load(Relaxed) }
    }

    pub(super) fn spare_chain(&self) -> Chain {
        Chain { head: self.spare.load(Relaxed), len: self.spare_len.load(Relaxed) }
    }

    pub(super) fn set_loaded(&self, chain: Chain) {
        self.loaded.store(chain.head, Relaxed);
        self.loaded_len.store(chain.len, Relaxed);
    }

    pub(super) fn set_spare(&self, chain: Chain) {
        self.spare.store(chain.head, Relaxed);
        self.spare_len.store(chain.len, Relaxed);
    }
}

/// What one CPU keeps of one zone.
#[derive(Debug)]
#[doc(alias = "per_cpu_pages")]
#[cfg_attr(not(any(loom, shuttle)), repr(align(64)))]
pub(super) struct CpuPages {
    pub(super) gate: Gate,
    /// What to add to a page's index to have its frame, or [`SCATTERED`](super::mem_map::SCATTERED).
    pub(super) shift: u64,
    pub(super) lists: [Magazines; LISTS],
}

impl CpuPages {
    pub(super) fn new(shift: u64) -> Self {
        Self { gate: Gate::new(), shift, lists: core::array::from_fn(|_| Magazines::new()) }
    }

    /// The list for an order and a type's two bits.
    #[inline]
    pub(super) fn list(&self, list: usize) -> &Magazines {
        &self.lists[list % LISTS]
    }

    /// Pages on all lists.
    pub(super) fn pages(&self) -> u64 {
        lists().map(|(list, order, _)| self.lists[list].len() * order.pages()).sum()
    }

    /// Whether there seems to be anything on the lists. Their CPU may be changing that at this moment.
    pub(super) fn keeps_any(&self) -> bool {
        self.lists.iter().any(|list| list.len() != 0)
    }

    /// Pages that this CPU ever allocated from the zone, and freed to it.
    pub(super) fn counts(&self) -> (u64, u64) {
        lists().fold((0, 0), |sum, (list, order, _)| {
            let (allocated, freed) = (&self.lists[list].allocated, &self.lists[list].freed);
            (sum.0 + (allocated.load(Relaxed) << order.get()), sum.1 + (freed.load(Relaxed) << order.get()))
        })
    }
}

/// What each CPU keeps of one zone.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuPagesOf<'m> {
    /// What each CPU keeps of each zone: a CPU's of all zones, then the next CPU's.
    all: &'m [CpuPages],
    zone: usize,
    zones: usize,
}

impl<'m> CpuPagesOf<'m> {
    pub(super) fn new(all: &'m [CpuPages], zone: usize, zones: usize) -> Self {
        Self { all, zone, zones }
    }

    #[inline]
    pub(super) fn get(&self, cpu: usize) -> Option<&'m CpuPages> {
        self.all.get(cpu.checked_mul(self.zones)? + self.zone)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &'m CpuPages> + use<'m> {
        self.all.iter().skip(self.zone).step_by(self.zones)
    }

    /// How many CPUs there are.
    pub(super) fn len(&self) -> usize {
        self.all.len() / self.zones
    }
}

/// The CPU is idle or was never seen: another one may drain its lists.
const IDLE: u32 = 1 << 0;
/// Another CPU is draining its lists.
const STEALING: u32 = 1 << 1;
/// Another CPU asks for its lists to be drained.
const DRAIN: u32 = 1 << 2;
/// All allocations take the slow path, which consults the debug aids.
const SLOW: u32 = 1 << 3;
/// A CPU is out of memory: until it has looked again, this one takes only what it needs and keeps nothing.
const LEAN: u32 = 1 << 4;

/// Who may touch what a CPU keeps of a zone: the CPU itself while the gate is 0, which the fast path checks by one load.
///
/// | from | to | by | |
/// |---|---|---|---|
/// | 0 | IDLE | the CPU | [`publish`](Self::publish), release: what it did to its lists is seen by whoever drains them |
/// | IDLE | 0 | the CPU | [`attend`](Self::attend), acquire: it sees what another one did to them |
/// | IDLE | IDLE, STEALING | another | [`try_steal`](Self::try_steal), acquire |
/// | IDLE, STEALING | IDLE, LEAN | the other | [`end_steal`](Self::end_steal), release |
/// | 0 | DRAIN | another | [`request`](Self::request) |
/// | DRAIN | LEAN | the CPU | [`attend`](Self::attend), once it has drained, release |
/// | LEAN | 0 | the CPU | [`attend`](Self::attend), when nobody is out of memory any more |
#[derive(Debug)]
pub(crate) struct Gate(AtomicU32);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(IDLE))
    }

    /// Whether the CPU may use its lists at once.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.0.load(Relaxed) == 0
    }

    /// Whether the CPU must not keep blocks on its lists.
    pub(crate) fn is_lean(&self) -> bool {
        self.0.load(Relaxed) & LEAN != 0
    }

    /// Makes the lists the CPU's own again and runs `drain` if another one asked for them. As long as some CPU is `starving`, they stay empty.
    pub(crate) fn attend(&self, relax: impl Fn(), drain: impl FnOnce(), starving: impl Fn() -> bool) {
        while self.0.load(Relaxed) & (IDLE | STEALING) != 0 {
            let keep = self.0.load(Relaxed) & (DRAIN | SLOW | LEAN);
            if self.0.compare_exchange(IDLE | keep, keep, AcqRel, Relaxed).is_err() {
                relax();
            }
        }
        if self.is_requested() {
            drain();
            self.0.fetch_or(LEAN, Relaxed);
            self.0.fetch_and(!DRAIN, Release);
        }
        if self.is_lean() && !starving() {
            self.0.fetch_and(!LEAN, Relaxed);
        }
    }

    /// Lets others drain the lists, until the CPU attends again.
    pub(crate) fn publish(&self) {
        self.0.fetch_or(IDLE, Release);
    }

    /// Asks the CPU to drain its lists.
    pub(crate) fn request(&self) {
        self.0.fetch_or(DRAIN, AcqRel);
    }

    /// Whether a request is not served yet.
    pub(crate) fn is_requested(&self) -> bool {
        self.0.load(Acquire) & DRAIN != 0
    }

    /// Takes the lists of a CPU that is idle or, by its platform's word, halted.
    pub(crate) fn try_steal(&self, halted: bool) -> bool {
        let seen = self.0.load(Relaxed);
        seen & STEALING == 0
            && (halted || seen & IDLE != 0)
            && self.0.compare_exchange(seen, seen | STEALING, AcqRel, Relaxed).is_ok()
    }

    /// Gives the lists back, drained.
    pub(crate) fn end_steal(&self) {
        self.0.fetch_or(LEAN, Relaxed);
        self.0.fetch_and(!(STEALING | DRAIN), Release);
    }

    /// Sends all allocations of the CPU by the slow path, or no longer.
    pub(crate) fn set_slow(&self, slow: bool) {
        if slow {
            self.0.fetch_or(SLOW, AcqRel);
        } else {
            self.0.fetch_and(!SLOW, AcqRel);
        }
    }
}

/// What does not change of a CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuSlot {
    /// Where what it keeps of the zone to try first lies among all CPUs', by the two zone bits of the allocation flags; beyond them
    /// all if there is no such zone.
    pub(super) first: [u32; 4],
    /// That zone, or [`NO_ZONE`](super::node::NO_ZONE).
    pub(super) first_zone: [u8; 4],
    /// The node that the CPU belongs to.
    pub(super) node: u8,
}
