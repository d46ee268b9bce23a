//! What others than the holder of the lock must reach of an address space: who counts on it, where its tables are, what is
//! resident.

use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use super::error::MmError;
use super::recent::Recent;
use super::vma_lock::Sections;
use crate::addr::Pfn;
use crate::collections::{FreeStack, Slot};
use crate::platform::CpuSet;
use crate::sync::TaskLock;
use crate::sync::words::Word32;

/// What a page that is resident, or in swap, is counted as.
///
/// # Linux
/// `MM_FILEPAGES` and its neighbours in `include/linux/mm_types_task.h`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "MM_FILEPAGES")]
pub enum RssKind {
    /// A page of a file.
    File,
    /// An anonymous page.
    Anon,
    /// A page of shared memory.
    Shmem,
    /// An anonymous page that is in swap.
    Swap,
}

impl RssKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::File, Self::Anon, Self::Shmem, Self::Swap];

    /// Those of pages in memory.
    const RESIDENT: [Self; 3] = [Self::File, Self::Anon, Self::Shmem];
}

/// Names an address space; no other will ever have had the same name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MmId {
    slot: Slot,
    generation: u32,
}

impl MmId {
    /// Its slot, by which VMAs name their address space.
    pub const fn slot(self) -> Slot {
        self.slot
    }

    /// How often that slot has been given out and taken back.
    pub const fn generation(self) -> u32 {
        self.generation
    }

    /// The name as one word, never 0.
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.slot.code() as u64
    }

    /// The name that such a word means.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        match Slot::from_code(bits as u32) {
            Some(slot) => Some(Self { slot, generation: (bits >> 32) as u32 }),
            None => None,
        }
    }
}

/// The part of an address space that can be reached without its lock. It stays an address space's for ever, so that whoever
/// comes too late meets another, or an empty one, and no other thing.
///
/// # Linux
/// The fields of `struct mm_struct` that are not under `mmap_lock`.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct MmSlot {
    /// Counts how often the slot was given out and taken back: odd while it is in use.
    generation: AtomicU32,
    /// The root of the page tables, plus one.
    pgd: AtomicU64,
    cpus: CpuSet,
    rss: [AtomicU64; RssKind::ALL.len()],
    hiwater_rss: AtomicU64,
    table_bytes: AtomicU64,
    /// Whether it counts as a user of the huge page of zeros.
    huge_zero: AtomicBool,
    table_lock: TaskLock<()>,
    /// The next free slot, plus one.
    free: AtomicU32,
    /// The root of the tree of VMAs, as a slot's code.
    root: Word32,
    sections: Sections<Word32>,
    recent: Recent,
}

impl MmSlot {
    /// Room for one address space.
    pub const fn new() -> Self {
        Self {
            generation: AtomicU32::new(0),
            pgd: AtomicU64::new(0),
            cpus: CpuSet::new(),
            rss: [const { AtomicU64::new(0) }; RssKind::ALL.len()],
            hiwater_rss: AtomicU64::new(0),
            table_bytes: AtomicU64::new(0),
            huge_zero: AtomicBool::new(false),
            table_lock: TaskLock::new(()),
            free: AtomicU32::new(0),
            root: Word32::new(0),
            sections: Sections::new(Word32::new(1)),
            recent: Recent::new(),
        }
    }

    /// The root of the page tables, once there are any.
    pub fn pgd(&self) -> Option<Pfn> {
        // Acquire pairs with the Release of `set_pgd`: who sees the root sees the table.
        Pfn::new(self.pgd.load(Acquire).checked_sub(1)?)
    }

    /// The root of the page tables of an address space, if it is this slot's yet.
    #[cfg(feature = "std")]
    pub(crate) fn pgd_of(&self, id: MmId) -> Option<Pfn> {
        self.pgd().filter(|_| self.generation.load(Relaxed) == id.generation())
    }

    /// Sets the root of the page tables; whoever keeps the tables does.
    pub fn set_pgd(&self, pgd: Option<Pfn>) {
        self.pgd.store(pgd.map_or(0, |pgd| pgd.get() + 1), Release);
    }

    /// The CPUs whose memory management unit uses the tables.
    #[doc(alias = "mm_cpumask")]
    pub const fn cpus(&self) -> &CpuSet {
        &self.cpus
    }

    /// Keeps page tables from going: held by whoever frees tables, and by those who come from a page and have no other
    /// lock of this address space.
    ///
    /// # Locking
    /// Inside the lists of who maps a page, outside the locks of single tables.
    #[doc(alias = "page_table_lock")]
    pub const fn table_lock(&self) -> &TaskLock<()> {
        &self.table_lock
    }

    /// How many pages of a kind there are.
    pub fn rss(&self, kind: RssKind) -> u64 {
        self.rss[kind as usize].load(Relaxed)
    }

    /// Counts pages that came.
    pub(crate) fn add_rss(&self, kind: RssKind, pages: u64) {
        self.rss[kind as usize].fetch_add(pages, Relaxed);
    }

    /// Counts pages that went; `false`, and nothing is changed, if there were not so many.
    #[must_use]
    pub(crate) fn sub_rss(&self, kind: RssKind, pages: u64) -> bool {
        self.hiwater_rss.fetch_max(self.resident(), Relaxed);
        self.rss[kind as usize].fetch_update(Relaxed, Relaxed, |now| now.checked_sub(pages)).is_ok()
    }

    /// All pages that are in memory.
    #[doc(alias = "get_mm_rss")]
    pub fn resident(&self) -> u64 {
        RssKind::RESIDENT.into_iter().map(|kind| self.rss(kind)).fold(0, u64::saturating_add)
    }

    /// The most pages that were in memory at a time, as of the last time that some went, or now.
    #[doc(alias = "hiwater_rss")]
    pub fn peak_resident(&self) -> u64 {
        self.hiwater_rss.load(Relaxed).max(self.resident())
    }

    /// Bytes of page tables.
    #[doc(alias = "pgtables_bytes")]
    pub fn table_bytes(&self) -> u64 {
        self.table_bytes.load(Relaxed)
    }

    /// Notes how many bytes the page tables have; whoever keeps the tables does.
    pub(crate) fn set_table_bytes(&self, bytes: u64) {
        self.table_bytes.store(bytes, Relaxed);
    }

    /// Whether the huge page of zeros may be mapped here.
    ///
    /// # Linux
    /// `MMF_HUGE_ZERO_FOLIO` in `include/linux/mm_types.h`.
    #[doc(alias = "MMF_HUGE_ZERO_FOLIO")]
    pub fn uses_huge_zero(&self) -> bool {
        self.huge_zero.load(Acquire)
    }

    /// Notes whether it may, and answers whether it might before; whoever keeps that page does.
    pub(crate) fn set_uses_huge_zero(&self, uses: bool) -> bool {
        self.huge_zero.swap(uses, AcqRel)
    }

    /// The root of the tree of VMAs, for those who go down it without the lock.
    pub(super) fn root(&self) -> Option<Slot> {
        Slot::from_code(self.root.load(Relaxed))
    }

    /// Tells those what the root is now.
    pub(super) fn set_root(&self, root: Option<Slot>) {
        // Whoever comes by it believes nothing that he finds until he has locked it.
        self.root.store(Slot::code_of(root), Relaxed);
    }

    pub(super) const fn sections(&self) -> &Sections<Word32> {
        &self.sections
    }

    pub(super) const fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Whether this is the address space of that name now.
    pub(super) fn id_is(&self, id: MmId) -> bool {
        self.generation.load(Acquire) == id.generation
    }

    fn reset(&self) {
        self.root.store(0, Relaxed);
        self.recent.clear();
        self.pgd.store(0, Relaxed);
        self.rss.iter().for_each(|count| count.store(0, Relaxed));
        self.hiwater_rss.store(0, Relaxed);
        self.table_bytes.store(0, Relaxed);
        self.cpus.load().iter().for_each(|cpu| self.cpus.remove(cpu));
    }
}

/// Gives out the slots of address spaces.
#[derive(Debug)]
pub struct MmPool<'c> {
    slots: &'c [MmSlot],
    free: FreeStack,
}

impl<'c> MmPool<'c> {
    pub(super) const fn new(slots: &'c [MmSlot]) -> Self {
        Self { slots, free: FreeStack::new() }
    }

    /// How many address spaces there can be.
    pub(super) const fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// How many address spaces there are. O(n), and right if none comes or goes meanwhile.
    pub fn used(&self) -> u32 {
        self.free.used(|slot| self.slots.get(slot.index()).map(|mm| &mm.free))
    }

    /// The slot with this number, in use or not.
    pub fn get(&self, slot: Slot) -> Option<&'c MmSlot> {
        self.slots.get(slot.index())
    }

    /// Makes an address space.
    pub(super) fn take(&'c self) -> Result<MmRef<'c>, MmError> {
        let slot = self.free.take(self.slots.len(), |slot| self.link(slot)).ok_or(MmError::OutOfSpaces)?;
        let mm = &self.slots[slot.index()];
        mm.reset();
        let generation = mm.generation.fetch_add(1, AcqRel).wrapping_add(1);
        Ok(MmRef { pool: self, mm, id: MmId { slot, generation }, is_kept: false })
    }

    fn link(&self, slot: Slot) -> &AtomicU32 {
        &self.slots[slot.index()].free
    }
}

/// The slot of an address space, which is nobody else's as long as there is this.
///
/// # Linux
/// `mm_count`, of which whoever looks at an address space from outside has a part; here those ask by [`MmId`] whether it is still the same.
#[derive(Debug)]
#[doc(alias = "mm_count")]
pub struct MmRef<'c> {
    pool: &'c MmPool<'c>,
    mm: &'c MmSlot,
    id: MmId,
    is_kept: bool,
}

impl<'c> MmRef<'c> {
    /// The name of the address space.
    pub const fn id(&self) -> MmId {
        self.id
    }

    /// What is shared, for as long as the pool lives; it is another address space's once this is gone.
    pub const fn slot(&self) -> &'c MmSlot {
        self.mm
    }

    /// Keeps the slot from ever being given out again.
    pub(super) const fn keep_for_ever(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for MmRef<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.mm.generation.fetch_add(1, Release);
            self.pool.free.give(self.id.slot, |slot| self.pool.link(slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_resident_is_counted_by_kind_and_never_below_nothing() {
        let mm = MmSlot::new();
        mm.add_rss(RssKind::Anon, 3);
        mm.add_rss(RssKind::Swap, 5);
        assert!(!mm.sub_rss(RssKind::File, 1) && mm.sub_rss(RssKind::Anon, 2));
        assert_eq!(
            (mm.rss(RssKind::Anon), mm.rss(RssKind::Swap), mm.resident(), mm.peak_resident()),
            (1, 5, 1, 3)
        );
        mm.reset();
        assert_eq!((mm.rss(RssKind::Swap), mm.peak_resident()), (0, 0));
    }

    /// Fails if who names an address space that has gone gets the tables of the one that has its slot now.
    #[test]
    fn tables_are_found_by_the_address_space_and_not_by_its_slot() {
        let slots = [MmSlot::new()];
        let pool = MmPool::new(&slots);
        let tables = |number| Pfn::new(number).unwrap();
        let first = pool.take().unwrap();
        let old = first.id();
        assert_eq!(first.slot().pgd_of(old), None);
        first.slot().set_pgd(Some(tables(7)));
        assert_eq!(first.slot().pgd_of(old), Some(tables(7)));
        drop(first);
        let second = pool.take().unwrap();
        second.slot().set_pgd(Some(tables(8)));
        assert_eq!((second.id().slot(), second.slot().pgd()), (old.slot(), Some(tables(8))));
        assert_eq!((slots[0].pgd_of(old), slots[0].pgd_of(second.id())), (None, Some(tables(8))));
    }
}
