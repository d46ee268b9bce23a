//! Zones: ranges of a node's frames that differ in who can reach them.

use crate::addr::{PageOrder, Pfn, PfnRange};
use crate::flags::GfpFlags;
use crate::platform::CpuPin;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use crate::sync::{Rank, SpinGuard, SpinLock};

use super::buddy::Buddy;
use super::cpu_pages::{Chain, CpuPages, CpuPagesOf, lists};
use super::deferred::{DeferredBound, Merging};
use super::depot::Depot;
use super::mem_map::MemMap;
use super::migrate::MigrateType;
use super::page::PageState;
use super::stat::ZoneStat;
use super::watermark::{Reach, Watermarks, zone_batch};

/// What a zone is for.
///
/// # Linux
/// `enum zone_type` in `include/linux/mmzone.h`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[doc(alias = "zone_type")]
#[repr(u8)]
pub enum ZoneKind {
    /// Reached by devices with narrow address lines: below 16 MiB.
    Dma = 0,
    /// In the direct map.
    Normal = 1,
    /// Above the direct map: reached by `kmap` alone.
    HighMem = 2,
}

impl ZoneKind {
    /// How many kinds there are.
    pub const COUNT: usize = 3;
    /// All kinds, lowest first.
    pub const ALL: [Self; Self::COUNT] = [Self::Dma, Self::Normal, Self::HighMem];

    /// The highest zone that an allocation may come from; `None` if the flags contradict themselves.
    ///
    /// # Linux
    /// `gfp_zone` in `include/linux/gfp.h`.
    pub(crate) const fn highest_for(gfp: GfpFlags) -> Option<Self> {
        match (gfp.contains(GfpFlags::DMA), gfp.contains(GfpFlags::HIGHMEM)) {
            (false, false) => Some(Self::Normal),
            (true, false) => Some(Self::Dma),
            (false, true) => Some(Self::HighMem),
            (true, true) => None,
        }
    }

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dma => "DMA",
            Self::Normal => "Normal",
            Self::HighMem => "HighMem",
        }
    }
}

/// The number of a populated zone, among all nodes'.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ZoneId(u8);

impl ZoneId {
    #[inline]
    pub(super) const fn new(id: u8) -> Self {
        Self(id)
    }

    /// The raw number.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// Where a zone lies and how large it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZoneSpan {
    /// From the first managed frame to the last, holes included.
    pub span: PfnRange,
    /// Managed frames.
    pub managed_pages: u64,
}

/// What a zone is made of, at boot.
#[derive(Debug)]
pub(super) struct ZoneParts<'m> {
    pub(super) id: ZoneId,
    pub(super) kind: ZoneKind,
    pub(super) node: u8,
    pub(super) span: ZoneSpan,
    pub(super) map: MemMap<'m>,
    pub(super) cpu_pages: CpuPagesOf<'m>,
}

/// A zone of a node.
///
/// # Linux
/// `struct zone` in `include/linux/mmzone.h`.
#[derive(Debug)]
#[doc(alias = "struct zone")]
pub struct Zone<'m> {
    /// The pages of the zone.
    pub(super) map: MemMap<'m>,
    id: ZoneId,
    kind: ZoneKind,
    node: u8,
    span: ZoneSpan,
    /// What each CPU keeps.
    pub(super) cpu_pages: CpuPagesOf<'m>,
    /// The low mark plus the lowmem reserve, by the two zone bits of the allocation flags.
    easy_marks: [AtomicU64; 4],
    marks: [AtomicU64; 3],
    lowmem_reserve: [AtomicU64; ZoneKind::COUNT],
    free_pages: AtomicU64,
    /// Frames that are RAM, managed or not, in the page blocks of the zone. Counted at boot.
    pub(super) present_pages: AtomicU64,
    /// A bit a list, set while the depot has magazines of it.
    stocked: AtomicU64,
    /// How many CPUs are out of memory and about to look again.
    pub(super) starving: AtomicU32,
    buddy: SpinLock<Buddy>,
    depot: SpinLock<Depot>,
}

/// The two zone bits of the allocation flags, for each kind of highest zone.
const ZONE_BITS_OF: [usize; ZoneKind::COUNT] = [GfpFlags::DMA.zone_bits(), 0, GfpFlags::HIGHMEM.zone_bits()];

impl<'m> Zone<'m> {
    pub(super) fn new(parts: ZoneParts<'m>, buddy: Buddy) -> Self {
        let ZoneParts { id, kind, node, span, map, cpu_pages } = parts;
        Self {
            map,
            id,
            kind,
            node,
            span,
            cpu_pages,
            easy_marks: [u64::MAX; 4].map(AtomicU64::new),
            marks: [0; 3].map(AtomicU64::new),
            lowmem_reserve: [0; ZoneKind::COUNT].map(AtomicU64::new),
            free_pages: AtomicU64::new(buddy.free_pages()),
            present_pages: AtomicU64::new(0),
            stocked: AtomicU64::new(0),
            starving: AtomicU32::new(0),
            buddy: SpinLock::new(Rank::Zone, buddy),
            depot: SpinLock::new(Rank::Depot, Depot::new()),
        }
    }

    /// The zone's number.
    pub fn id(&self) -> ZoneId {
        self.id
    }

    /// What the zone is for.
    pub fn kind(&self) -> ZoneKind {
        self.kind
    }

    /// The node that the zone belongs to.
    pub fn node(&self) -> u8 {
        self.node
    }

    /// Where the zone lies.
    pub fn span(&self) -> ZoneSpan {
        self.span
    }

    /// Free pages, deferred ones included; those on CPUs' lists are not.
    #[inline]
    pub fn free_pages(&self) -> u64 {
        self.free_pages.load(Relaxed)
    }

    /// The watermarks.
    pub fn watermarks(&self) -> Watermarks {
        let [min, low, high] = self.marks.each_ref().map(|mark| mark.load(Relaxed));
        Watermarks { min, low, high }
    }

    /// Pages kept from requests that could use zones up to `highest`.
    ///
    /// # Linux
    /// `lowmem_reserve` of `struct zone`.
    pub fn lowmem_reserve(&self, highest: ZoneKind) -> u64 {
        self.lowmem_reserve[highest as usize].load(Relaxed)
    }

    /// The pages of a magazine for single pages: what moves between a CPU and the zone at once. 0: the lists are off.
    pub fn batch(&self) -> u64 {
        let list = super::cpu_pages::list_of(PageOrder::ZERO, MigrateType::Unmovable);
        self.cpu_pages.get(0).map_or(0, |cpu| u64::from(cpu.lists[list].capacity()))
    }

    /// Whether a request may take a block of `order` now, whatever its rights.
    #[inline]
    pub(super) fn is_easy(&self, zone_bits: usize, order: PageOrder) -> bool {
        self.free_pages() >= self.easy_marks[zone_bits & 3].load(Relaxed).saturating_add(order.pages())
    }

    /// Whether a request may take a block of `order` now.
    ///
    /// # Linux
    /// `zone_watermark_ok` in `mm/page_alloc.c`.
    pub(super) fn watermark_ok(&self, order: PageOrder, highest: ZoneKind, reach: Reach) -> bool {
        let Some(floor) = reach.floor(self.watermarks()) else { return true };
        let kept = floor.saturating_add(self.lowmem_reserve(highest));
        self.free_pages() >= kept.saturating_add(order.pages())
    }

    /// Whether a request could have a block of `order` if all frames of the zone were free.
    pub(super) fn may_ever_hold(&self, order: PageOrder, highest: ZoneKind, reach: Reach) -> bool {
        let kept = reach
            .floor(self.watermarks())
            .map_or(0, |floor| floor.saturating_add(self.lowmem_reserve(highest)));
        let is_managed =
            |index| !matches!(self.map.page(index).state(), PageState::Absent | PageState::Reserved);
        let whole = |first: &u32| (*first..*first + (1 << order.get())).all(is_managed);
        self.span.managed_pages >= kept.saturating_add(order.pages())
            && self.map.own().step_by(1 << order.get()).any(|first| whole(&first))
    }

    /// Locks the free lists.
    pub(super) fn lock<'a>(&'a self, pin: &'a CpuPin<'_>) -> ZoneGuard<'a, 'm> {
        ZoneGuard { buddy: self.buddy.lock(pin), zone: self }
    }

    /// Locks the depot.
    pub(super) fn depot<'a>(&'a self, pin: &'a CpuPin<'_>) -> SpinGuard<'a, Depot> {
        self.depot.lock(pin)
    }

    /// Takes a full magazine from the depot; does not lock it if there is none.
    pub(super) fn take_from_depot(&self, pin: &CpuPin<'_>, list: usize) -> Option<Chain> {
        if self.stocked.load(Relaxed) & 1 << list == 0 {
            return None;
        }
        let mut depot = self.depot(pin);
        let chain = depot.take(self.map.pages(), list);
        self.note_stock(&depot);
        chain
    }

    /// Publishes of which lists the depot, locked by the caller, has magazines.
    pub(super) fn note_stock(&self, depot: &Depot) {
        self.stocked.store(depot.stocked(), Relaxed);
    }

    /// A bit a list, set while the depot has magazines of it.
    pub(super) fn stocked(&self) -> u64 {
        self.stocked.load(Relaxed)
    }

    /// Puts a full magazine into the depot, unless that has enough.
    pub(super) fn put_into_depot(&self, pin: &CpuPin<'_>, list: usize, chain: Chain) -> bool {
        let mut depot = self.depot(pin);
        let put = depot.put(self.map.pages(), list, chain);
        self.note_stock(&depot);
        put
    }

    /// Sets watermarks and reserves, and with them the bound on deferred pages.
    pub(super) fn set_limits(
        &self,
        pin: &CpuPin<'_>,
        marks: Watermarks,
        reserve: [u64; ZoneKind::COUNT],
        batch: u64,
        bound: DeferredBound,
    ) {
        for (slot, mark) in self.marks.iter().zip([marks.min, marks.low, marks.high]) {
            slot.store(mark, Relaxed);
        }
        for (kind, pages) in reserve.into_iter().enumerate() {
            self.lowmem_reserve[kind].store(pages, Relaxed);
            self.easy_marks[ZONE_BITS_OF[kind]].store(marks.low.saturating_add(pages), Relaxed);
        }
        let mut buddy = self.lock(pin);
        buddy.set_limits(&self.map, marks.low, batch, self.cpu_pages.len() as u64, bound);
    }

    /// Switches between deferred and immediate merging.
    pub(super) fn set_merging(&self, pin: &CpuPin<'_>, merging: Merging) {
        self.lock(pin).set_merging(&self.map, merging);
    }

    /// Sets how many blocks each CPU keeps, and the depot; the lists must be empty or become so.
    pub(super) fn set_capacities(&self, pin: &CpuPin<'_>, batch: u64) {
        for (list, order, _) in lists() {
            let blocks = self.capacity_of(order, batch);
            for cpu in self.cpu_pages.iter() {
                cpu.lists[list].set_capacity(blocks);
            }
        }
        let cpus = self.cpu_pages.len() as u64;
        self.depot(pin).set_limit((4 * batch * cpus).min(self.span.managed_pages / 16));
    }

    /// How many blocks of an order a magazine holds: a batch's worth of pages for orders 0 to 3, one block of the largest order
    /// where the zone is large enough that this is under 1 % of it.
    fn capacity_of(&self, order: PageOrder, batch: u64) -> u16 {
        let blocks = match order.get() {
            0..=3 if batch != 0 => (batch >> order.get()).max(1),
            9 => u64::from(batch != 0 && self.is_large_for_whole_blocks()),
            _ => 0,
        };
        u16::try_from(blocks).unwrap_or(u16::MAX)
    }

    fn is_large_for_whole_blocks(&self) -> bool {
        let kept = 2 * MigrateType::COUNT as u64 * self.cpu_pages.len() as u64 * PageOrder::MAX.pages();
        self.span.managed_pages / 100 >= kept
    }

    /// The zone's state.
    ///
    /// # Locking
    /// Takes the depot's lock, then the zone's.
    pub fn stat(&self, pin: &CpuPin<'_>) -> ZoneStat {
        let in_depot = self.depot(pin).pages();
        let buddy = self.lock(pin);
        let counts = self.cpu_pages.iter().map(CpuPages::counts);
        let (allocated, freed) = counts.fold((0, 0), |sum, cpu| (sum.0 + cpu.0, sum.1 + cpu.1));
        ZoneStat {
            free: buddy.free_pages(),
            deferred: buddy.deferred.pages(),
            on_cpus: self.cpu_pages.iter().map(CpuPages::pages).sum(),
            in_depot,
            blocks: core::array::from_fn(|order| {
                PageOrder::new(order as u8).map_or([0; MigrateType::COUNT], |order| buddy.free_blocks(order))
            }),
            deferred_blocks: core::array::from_fn(|order| {
                PageOrder::new(order as u8).map_or(0, |order| buddy.deferred.blocks(order))
            }),
            allocated_ever: allocated,
            freed_ever: freed,
            events: buddy.events,
        }
    }

    /// Merges all that waits for its merge.
    ///
    /// # Locking
    /// Takes the zone's lock.
    pub fn coalesce(&self, pin: &CpuPin<'_>) {
        let mut buddy = self.lock(pin);
        if buddy.deferred.pages() != 0 {
            buddy.events.coalesced_asked += 1;
            buddy.coalesce(&self.map);
        }
    }

    /// When freed blocks of this zone are merged.
    pub fn merging(&self, pin: &CpuPin<'_>) -> Merging {
        self.lock(pin).deferred.merging()
    }

    /// The most pages that may wait for their merge.
    pub fn deferred_bound(&self, pin: &CpuPin<'_>) -> u64 {
        self.lock(pin).deferred.bound()
    }

    /// The frame of the page at `index`.
    #[inline]
    pub(super) fn pfn(&self, index: u32) -> Pfn {
        self.map.pfn(index)
    }
}

/// Linux's batch for a zone of this size, or the one asked for.
pub(super) fn batch_for(managed: u64, asked: Option<u64>) -> u64 {
    asked.unwrap_or_else(|| zone_batch(managed)).min(u64::from(u16::MAX))
}

/// The free lists of a zone, locked; the number of free pages is published when the guard goes.
#[derive(Debug)]
pub(super) struct ZoneGuard<'a, 'm> {
    buddy: SpinGuard<'a, Buddy>,
    zone: &'a Zone<'m>,
}

impl core::ops::Deref for ZoneGuard<'_, '_> {
    type Target = Buddy;

    #[inline]
    fn deref(&self) -> &Buddy {
        &self.buddy
    }
}

impl core::ops::DerefMut for ZoneGuard<'_, '_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Buddy {
        &mut self.buddy
    }
}

impl Drop for ZoneGuard<'_, '_> {
    #[inline]
    fn drop(&mut self) {
        self.zone.free_pages.store(self.buddy.free_pages(), Relaxed);
    }
}
