//! What a cache is made of, as data for reports.

use crate::phys::PageSource;
use crate::platform::{CpuPin, Platform};

use super::cache::SlabCache;
use super::kmalloc::Slabs;

/// A line of `/proc/slabinfo`.
///
/// # Linux
/// `struct slabinfo` in `mm/slab.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
#[doc(alias = "slabinfo")]
pub struct SlabInfo {
    /// The cache.
    pub name: &'static str,
    /// Objects in use.
    pub active_objs: u64,
    /// Objects of all slabs.
    pub num_objs: u64,
    /// Bytes from one object to the next.
    pub objsize: u32,
    /// Objects of a slab of the usual order.
    pub objs_per_slab: u32,
    /// Pages of a slab of the usual order.
    pub pages_per_slab: u32,
    /// Objects that a CPU keeps, at most.
    pub limit: u32,
    /// Objects that move between a CPU and the slabs at once.
    pub batchcount: u32,
    /// Slabs that have an object in use or on a CPU's list.
    pub active_slabs: u64,
    /// Slabs.
    pub num_slabs: u64,
    /// Pages of all slabs.
    pub num_pages: u64,
    /// Objects on CPUs' lists.
    pub on_cpus: u64,
    /// Objects out of use because they were found damaged.
    pub lost: u64,
    /// Allocations since the cache was made.
    pub allocated_ever: u64,
    /// Frees since the cache was made.
    pub freed_ever: u64,
}

impl SlabCache<'_> {
    /// What the cache is made of. What other CPUs do at this moment may or may not be counted.
    ///
    /// # Locking
    /// Takes the list of slabs.
    ///
    /// # Linux
    /// `get_slabinfo` in `mm/slub.c`.
    #[doc(alias = "get_slabinfo")]
    pub fn info(&self, pin: &CpuPin<'_>) -> SlabInfo {
        let lists = self.lists.lock(pin);
        let on_cpus = self.cpus.iter().map(|own| u64::from(own.len())).sum();
        let own = self.cpus.first();
        let (allocated_ever, freed_ever) = self.counts();
        SlabInfo {
            name: self.name(),
            active_objs: lists.objects.saturating_sub(lists.free + lists.lost + on_cpus),
            num_objs: lists.objects,
            objsize: self.layout.size,
            objs_per_slab: u32::from(self.layout.usual.count),
            pages_per_slab: self.layout.usual.order.pages() as u32,
            limit: own.map_or(0, |own| own.capacity()),
            batchcount: own.map_or(0, |own| own.batch()),
            active_slabs: lists.slabs - u64::from(lists.empties),
            num_slabs: lists.slabs,
            num_pages: lists.pages,
            on_cpus,
            lost: lists.lost,
            allocated_ever,
            freed_ever,
        }
    }
}

impl Slabs<'_> {
    /// What each cache is made of, the newest first, as Linux has them. Nothing is held between two answers.
    ///
    /// # Locking
    /// Pins the CPU for each answer, and takes the list of caches and one's list of slabs.
    pub fn infos<S: PageSource>(&self, source: &S) -> impl Iterator<Item = SlabInfo> {
        let mut last = None;
        core::iter::from_fn(move || {
            let pin = source.platform().pin();
            let caches = self.shared.caches.lock(&pin);
            let older = caches.iter().filter(|cache| last.is_none_or(|last| cache.id() < last));
            let next = older.max_by_key(|cache| cache.id())?;
            last = Some(next.id());
            Some(next.info(&pin))
        })
    }
}
