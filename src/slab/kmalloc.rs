//! Memory of any size: size classes, and whole blocks above them.

use core::alloc::Layout;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use crate::addr::{PageOrder, Pfn};
use crate::flags::{GfpFlags, PageFlags};
use crate::phys::{AllocError, Carver, InitError, PageSource, Patience, Sizes};
use crate::platform::Platform;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::cache::{CacheConfig, CacheId, Found, Home, SlabCache, find};
use super::cpu_objects::{CpuObjects, Entry};
use super::error::{CreateError, ObjectError};
use super::layout::ObjectLayout;
use super::registry::{At, CpuGate, Shared};
use super::release::{Detached, give_back};

/// The sizes of the classes, in bytes, and their names in reports.
///
/// # Linux
/// `kmalloc_info` in `mm/slab_common.c`.
pub(super) const CLASSES: [(usize, &str); 13] = [
    (8, "kmalloc-8"),
    (16, "kmalloc-16"),
    (32, "kmalloc-32"),
    (64, "kmalloc-64"),
    (96, "kmalloc-96"),
    (128, "kmalloc-128"),
    (192, "kmalloc-192"),
    (256, "kmalloc-256"),
    (512, "kmalloc-512"),
    (1024, "kmalloc-1k"),
    (2048, "kmalloc-2k"),
    (4096, "kmalloc-4k"),
    (8192, "kmalloc-8k"),
];

/// The largest class; what is larger comes from the buddy allocator.
///
/// # Linux
/// `KMALLOC_MAX_CACHE_SIZE`.
pub const KMALLOC_MAX_CACHE_SIZE: usize = CLASSES[CLASSES.len() - 1].0;

/// The most bytes that can be asked for: the largest block.
///
/// # Linux
/// `KMALLOC_MAX_SIZE`.
pub const KMALLOC_MAX_SIZE: usize = PageOrder::MAX.bytes();

/// What is answered when no bytes are asked for. It may be freed and must not be used.
///
/// # Linux
/// `ZERO_SIZE_PTR` in `include/linux/slab.h`.
pub const ZERO_SIZE_PTR: NonNull<u8> = match NonNull::new(core::ptr::without_provenance_mut(16)) {
    Some(address) => address,
    None => unreachable!(),
};

/// The alignment that a class keeps: its size if that is a power of two, else the largest power of two that divides it.
const fn class_align(size: usize) -> usize {
    1 << size.trailing_zeros()
}

/// For each multiple of 8 bytes up to 8 KiB the smallest class that holds it.
const CLASS_OF: [u8; KMALLOC_MAX_CACHE_SIZE / 8 + 1] = {
    let mut table = [0; KMALLOC_MAX_CACHE_SIZE / 8 + 1];
    let mut class = 0;
    let mut eighths = 0;
    while eighths < table.len() {
        if eighths * 8 > CLASSES[class].0 {
            class += 1;
        }
        table[eighths] = class as u8;
        eighths += 1;
    }
    table
};

/// The class for so many bytes of this alignment; `None` if it must be a block.
#[inline]
fn class_for(size: usize, align: usize) -> Option<usize> {
    let class = usize::from(*CLASS_OF.get(size.div_ceil(8))?);
    if align <= 8 {
        return Some(class);
    }
    (class..CLASSES.len()).find(|&class| class_align(CLASSES[class].0) >= align)
}

/// The slab allocator of a machine: the kmalloc classes, and the list of all caches.
///
/// # Linux
/// `kmalloc_caches` and `slab_caches` of `mm/slab_common.c`.
#[derive(Debug)]
#[doc(alias = "kmalloc_caches")]
pub struct Slabs<'m> {
    pub(super) shared: &'m Shared<'m>,
    pub(super) classes: &'m [SlabCache<'m>],
    /// Pages that were handed out as blocks.
    large_pages: AtomicU64,
}

impl<'m> Slabs<'m> {
    /// The size and alignment of the memory that the allocator needs on a machine of so many CPUs.
    pub fn metadata_layout(cpus: usize) -> Layout {
        let mut sizes = Sizes::default();
        sizes.add::<CpuGate>(cpus);
        sizes.add::<Shared<'_>>(1);
        for (size, _) in CLASSES {
            add_cpus(&mut sizes, size, cpus);
        }
        sizes.add::<SlabCache<'_>>(CLASSES.len());
        sizes.layout()
    }

    /// Makes the allocator of the frames of `source`, with its own data in `memory`, which is as large and aligned as
    /// [`metadata_layout`](Self::metadata_layout) says.
    ///
    /// # Errors
    /// [`CreateError::MetadataTooSmall`], [`CreateError::MetadataMisaligned`], [`CreateError::NoVirtToPfn`].
    ///
    /// # Safety
    /// The source, here and in all later calls, allocates blocks of its [`phys`](PageSource::phys) that nobody else uses until they are freed, and
    /// that were given to it by its [`platform`](PageSource::platform). All later calls are made with this source, or one with the same frames and platform, which are there as long as `'m` lasts.
    ///
    /// # Linux
    /// `kmem_cache_init` in `mm/slub.c`.
    #[doc(alias = "kmem_cache_init")]
    pub unsafe fn new<S: PageSource>(
        source: &S,
        memory: &'m mut [MaybeUninit<u8>],
    ) -> Result<Self, CreateError> {
        let cpus = source.phys().cpu_count();
        may_find_frames(source)?;
        let mut carver = Carver::new(memory, Self::metadata_layout(cpus)).map_err(of_memory)?;
        let gates = carver.cut(cpus, |_| Ok(CpuGate::new())).map_err(of_memory)?;
        let identity = source.phys().identity();
        let shared = carver.cut(1, |_| Ok(Shared::new(gates, identity))).map_err(of_memory)?;
        let shared = &shared[0];
        let mut lists: [&'m [CpuObjects<'m>]; CLASSES.len()] = [&[]; CLASSES.len()];
        let mut layouts = [None; CLASSES.len()];
        for (class, (size, _)) in CLASSES.into_iter().enumerate() {
            layouts[class] =
                Some(ObjectLayout::new(size, class_align(size).min(KMALLOC_MAX_CACHE_SIZE), cpus)?);
            lists[class] = cut_cpus(&mut carver, size, cpus)?;
        }
        let pin = source.platform().pin();
        let mut caches = shared.caches.lock(&pin);
        let classes = carver.cut(CLASSES.len(), |class| {
            let (size, name) = CLASSES[class];
            let config = CacheConfig { name, size, align: class_align(size), constructor: None };
            let id = caches.next_id().ok_or(InitError::MapChanged)?;
            let layout = layouts[class].ok_or(InitError::MapChanged)?;
            Ok(SlabCache::new(id, &config, layout, lists[class], shared, Home::Class))
        });
        let classes: &'m [SlabCache<'m>] = classes.map_err(of_memory)?;
        classes.iter().for_each(|cache| caches.add(cache));
        Ok(Self { shared, classes, large_pages: AtomicU64::new(0) })
    }

    /// Allocates at least `size` bytes, aligned to their size if that is a power of two, else to 8 bytes or more.
    ///
    /// No bytes: [`ZERO_SIZE_PTR`].
    ///
    /// # Errors
    /// [`AllocError::InvalidCount`] above [`KMALLOC_MAX_SIZE`], [`AllocError::InvalidFlags`] for HIGHMEM, MOVABLE and RECLAIMABLE, and those of
    /// [`PageSource::alloc_pages`].
    ///
    /// # Locking
    /// As [`SlabCache::alloc`].
    ///
    /// # Linux
    /// `kmalloc` in `include/linux/slab.h`. There DMA has classes of its own; here it gets whole pages.
    #[inline]
    pub fn kmalloc<S: PageSource>(
        &self,
        source: &S,
        size: usize,
        gfp: GfpFlags,
    ) -> Result<NonNull<u8>, AllocError> {
        self.kmalloc_aligned(source, size, 1, gfp)
    }

    /// Allocates as [`kmalloc`](Self::kmalloc) does, with at least this alignment, a power of two.
    ///
    /// # Errors
    /// Those of `kmalloc`; [`AllocError::InvalidCount`] also for an alignment that is no power of two or above 2 MiB.
    #[inline]
    pub fn kmalloc_aligned<S: PageSource>(
        &self,
        source: &S,
        size: usize,
        align: usize,
        gfp: GfpFlags,
    ) -> Result<NonNull<u8>, AllocError> {
        match class_for(size, align).and_then(|class| self.classes.get(class)) {
            Some(cache) if size != 0 && !gfp.contains(GfpFlags::DMA) && align.is_power_of_two() => {
                let address = cache.alloc(source, gfp);
                if address.is_err() { self.retry(source, cache, gfp, address) } else { address }
            }
            _ => self.kmalloc_large(source, size, align, gfp),
        }
    }

    /// Tries again after all caches gave their empty slabs back.
    #[cold]
    fn retry<S: PageSource>(
        &self,
        source: &S,
        cache: &SlabCache<'m>,
        gfp: GfpFlags,
        failed: Result<NonNull<u8>, AllocError>,
    ) -> Result<NonNull<u8>, AllocError> {
        match failed {
            Err(AllocError::OutOfMemory) if self.release_all(source) != 0 => cache.alloc(source, gfp),
            failed => failed,
        }
    }

    /// Allocates a block.
    ///
    /// # Linux
    /// `kmalloc_large` in `mm/slub.c`.
    #[inline(never)]
    fn kmalloc_large<S: PageSource>(
        &self,
        source: &S,
        size: usize,
        align: usize,
        gfp: GfpFlags,
    ) -> Result<NonNull<u8>, AllocError> {
        if !align.is_power_of_two() {
            return Err(AllocError::InvalidCount);
        }
        if size == 0 {
            return Ok(ZERO_SIZE_PTR);
        }
        if gfp.intersects(GfpFlags::HIGHMEM | GfpFlags::MOVABLE | GfpFlags::RECLAIMABLE) {
            return Err(AllocError::InvalidFlags);
        }
        if source.phys().identity() != self.shared.identity() {
            return Err(AllocError::WrongSource);
        }
        let order = PageOrder::for_bytes(size.max(align)).ok_or(AllocError::InvalidCount)?;
        let flags = (gfp | GfpFlags::COMP) - GfpFlags::ZERO;
        let pfn = match source.alloc_pages(flags, order) {
            Err(AllocError::OutOfMemory) if self.release_all(source) != 0 => source.alloc_pages(flags, order),
            first => first,
        }?;
        let (Some(address), Some(head)) = (source.direct_map(pfn), source.page(pfn)) else {
            give_back(source, pfn, order);
            return Err(AllocError::Unreachable);
        };
        head.set_cache(CacheId::LARGE.get());
        head.set_kind(PageFlags::SLAB);
        self.large_pages.fetch_add(order.pages(), Relaxed);
        if gfp.contains(GfpFlags::ZERO) {
            // SAFETY: the block was just allocated, and is memory of this size.
            unsafe { address.write_bytes(0, order.bytes()) };
        }
        Ok(address)
    }

    /// Frees what [`kmalloc`](Self::kmalloc) gave.
    ///
    /// # Errors
    /// [`ObjectError`]; nothing has changed.
    ///
    /// # Safety
    /// If the address is an allocated one, nobody uses the memory any more. (Any other address is answered with an error, but memory must not be
    /// freed by two CPUs at the same moment.)
    ///
    /// # Locking
    /// As [`SlabCache::free`].
    ///
    /// # Linux
    /// `kfree` in `mm/slub.c`.
    #[inline]
    pub unsafe fn kfree<S: PageSource>(&self, source: &S, address: NonNull<u8>) -> Result<(), ObjectError> {
        if address == ZERO_SIZE_PTR {
            return Ok(());
        }
        let found = find(source, address)?;
        match self.class_of(&found) {
            // SAFETY: the caller gives the memory up.
            Some(cache) => unsafe { cache.free_found(source, &found, address) },
            None => self.kfree_large(source, &found, address),
        }
    }

    /// The class that a page belongs to.
    #[inline]
    fn class_of(&self, found: &Found<'_>) -> Option<&'m SlabCache<'m>> {
        // The classes are made first, so their numbers begin at 1.
        self.classes.get((found.head.mapping() as usize).wrapping_sub(1))
    }

    #[inline(never)]
    fn kfree_large<S: PageSource>(
        &self,
        source: &S,
        found: &Found<'_>,
        address: NonNull<u8>,
    ) -> Result<(), ObjectError> {
        let order = self.check_large(source, found, address)?;
        found.head.set_cache(0);
        found.head.clear_kind(PageFlags::SLAB);
        self.large_pages.fetch_sub(order.pages(), Relaxed);
        give_back(source, found.pfn, order);
        Ok(())
    }

    /// The order of the block that begins at an address.
    fn check_large<S: PageSource>(
        &self,
        source: &S,
        found: &Found<'_>,
        address: NonNull<u8>,
    ) -> Result<PageOrder, ObjectError> {
        if found.head.mapping() != CacheId::LARGE.get() {
            return Err(ObjectError::WrongCache(CacheId::new(found.head.mapping())));
        }
        if source.phys().identity() != self.shared.identity() {
            return Err(ObjectError::WrongSource);
        }
        if source.direct_map(found.pfn) != Some(address) {
            return Err(ObjectError::Interior);
        }
        found.head.order().ok_or(ObjectError::NotSlab)
    }

    /// How many bytes may be used of what [`kmalloc`](Self::kmalloc) gave: as many as were asked for, or more.
    ///
    /// # Errors
    /// [`ObjectError`], as for [`kfree`](Self::kfree).
    ///
    /// # Linux
    /// `ksize` in `mm/slab_common.c`.
    pub fn ksize<S: PageSource>(&self, source: &S, address: NonNull<u8>) -> Result<usize, ObjectError> {
        if address == ZERO_SIZE_PTR {
            return Ok(0);
        }
        let found = find(source, address)?;
        match self.class_of(&found) {
            Some(cache) => cache.find_object(source, &found, address).map(|_| cache.object_size()),
            None => self.check_large(source, &found, address).map(PageOrder::bytes),
        }
    }

    /// Makes what [`kmalloc_aligned`](Self::kmalloc_aligned) gave hold `size` bytes: where it is, if they fit, or elsewhere, with the old contents.
    ///
    /// # Errors
    /// [`AllocError::BadObject`] for an address that `kfree` would refuse, and those of `kmalloc_aligned`; the old memory is as it was.
    ///
    /// # Safety
    /// If the address is an allocated one, nobody but the caller uses the memory, and nobody uses the old address afterwards unless it is the answer.
    ///
    /// # Linux
    /// `krealloc` in `mm/slub.c`.
    pub unsafe fn krealloc<S: PageSource>(
        &self,
        source: &S,
        address: NonNull<u8>,
        size: usize,
        align: usize,
        gfp: GfpFlags,
    ) -> Result<NonNull<u8>, AllocError> {
        let room = self.ksize(source, address).map_err(|_| AllocError::BadObject)?;
        if size != 0 && size <= room && address.addr().get() & align.wrapping_sub(1) == 0 {
            return Ok(address);
        }
        let fresh = self.kmalloc_aligned(source, size, align, gfp)?;
        // SAFETY: both are allocated, apart from each other, and hold this many bytes.
        unsafe { fresh.copy_from_nonoverlapping(address, room.min(size)) };
        // SAFETY: the caller gives the old memory up.
        let freed = unsafe { self.kfree(source, address) };
        debug_assert_eq!(freed, Ok(()), "the memory was looked at before");
        Ok(fresh)
    }

    /// Gives back to the source what no object needs: all CPUs put the objects that they keep back into their slabs, then all empty slabs of all
    /// caches are freed. Answers how many pages that were.
    ///
    /// # Locking
    /// Takes the list of caches and their lists of slabs. May wait for other CPUs, which must not wait for a lock that the caller holds.
    pub fn shrink<S: PageSource>(&self, source: &S) -> u64 {
        if source.phys().identity() != self.shared.identity() {
            return 0;
        }
        self.shared.gather(At::new(source.phys(), &source.platform().pin()), Patience::Waits);
        self.release_all(source)
    }

    /// As [`shrink`](Self::shrink), until so many pages are given back: what CPUs keep stays with them if the empty slabs are enough.
    pub(crate) fn shrink_by<S: PageSource>(&self, source: &S, pages: u64) -> u64 {
        if source.phys().identity() != self.shared.identity() {
            return 0;
        }
        let empty = self.release(source, pages);
        if empty >= pages {
            return empty;
        }
        self.shared.gather(At::new(source.phys(), &source.platform().pin()), Patience::Waits);
        empty + self.release(source, pages - empty)
    }

    /// Lets other CPUs drain this one's lists until it allocates or frees again: to be called when the CPU goes idle or offline, as
    /// [`Phys::idle`](crate::phys::Phys::idle) is.
    pub fn idle<S: PageSource>(&self, source: &S) {
        if source.phys().identity() == self.shared.identity() {
            self.shared.publish(At::new(source.phys(), &source.platform().pin()));
        }
    }

    /// Serves what other CPUs ask of this one: to be called by the handler of [`Platform::kick`]'s interrupt, as
    /// [`Phys::serve`](crate::phys::Phys::serve) is.
    pub fn serve<S: PageSource>(&self, source: &S) {
        if source.phys().identity() == self.shared.identity() {
            self.shared.serve(At::new(source.phys(), &source.platform().pin()));
        }
    }

    /// Pages that are handed out as blocks, to requests above [`KMALLOC_MAX_CACHE_SIZE`].
    pub fn large_pages(&self) -> u64 {
        self.large_pages.load(Relaxed)
    }

    /// Gives back all empty slabs of all caches.
    fn release_all<S: PageSource>(&self, source: &S) -> u64 {
        self.release(source, u64::MAX)
    }

    /// Gives back empty slabs, some at a time, until `wanted` pages are given back or none is left.
    fn release<S: PageSource>(&self, source: &S, wanted: u64) -> u64 {
        let mut pages = 0;
        loop {
            let mut detached = Detached::default();
            {
                let pin = source.platform().pin();
                let at = At::new(source.phys(), &pin);
                for cache in self.shared.caches.lock(&pin).iter() {
                    cache.detach_empty(at, 0, &mut detached);
                }
            }
            pages += detached.pages();
            if !detached.give_back(source) || pages >= wanted {
                return pages;
            }
        }
    }
}

/// Objects that each CPU keeps of a cache, at most.
///
/// # Linux
/// `enable_cpucache` of `mm/slab.c` (6.7 and earlier), rounded to whole cache lines.
fn capacity_for(size: usize) -> usize {
    match size {
        0..=256 => 120,
        257..=1024 => 56,
        1025..=4096 => 24,
        4097..=131_072 => 8,
        _ => 4,
    }
}

/// Adds what [`cut_cpus`] cuts.
pub(super) fn add_cpus(sizes: &mut Sizes, size: usize, cpus: usize) {
    sizes.add::<Entry>(cpus.saturating_mul(capacity_for(size)));
    sizes.add::<CpuObjects<'_>>(cpus);
}

/// Cuts the CPUs' lists of a cache.
pub(super) fn cut_cpus<'m>(
    carver: &mut Carver<'m>,
    size: usize,
    cpus: usize,
) -> Result<&'m [CpuObjects<'m>], CreateError> {
    let capacity = capacity_for(size);
    let entries: &'m [Entry] = carver.cut(cpus * capacity, |_| Ok(Entry::new())).map_err(of_memory)?;
    let lists = carver.cut(cpus, |cpu| {
        let own = entries.get(cpu * capacity..(cpu + 1) * capacity).unwrap_or_default();
        Ok(CpuObjects::new(own))
    });
    Ok(lists.map_err(of_memory)?)
}

/// What is wrong with memory for metadata.
pub(super) fn of_memory(error: InitError) -> CreateError {
    match error {
        InitError::MetadataMisaligned => CreateError::MetadataMisaligned,
        InitError::MetadataTooSmall(bytes) => CreateError::MetadataTooSmall(bytes),
        // What cuts the memory answers these two alone.
        _ => CreateError::MetadataTooSmall(usize::MAX),
    }
}

/// Whether the platform tells frames by their address, as a sample says.
fn may_find_frames<S: PageSource>(source: &S) -> Result<(), CreateError> {
    let found = |pfn: Pfn| {
        let address = source.direct_map(pfn)?;
        Some(source.virt_to_pfn(address) == Some(pfn))
    };
    let firsts = source.phys().zones().iter().map(|zone| zone.span().span.start());
    match firsts.filter_map(found).all(|same| same) {
        true => Ok(()),
        false => Err(CreateError::NoVirtToPfn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_the_smallest_that_holds_size_and_alignment() {
        for size in 1..=KMALLOC_MAX_CACHE_SIZE {
            for align in [1, 2, 8, 16, 64, 256, 4096, 8192] {
                let class = class_for(size, align).map(|class| CLASSES[class].0);
                let naive = CLASSES
                    .iter()
                    .map(|class| class.0)
                    .find(|&class| class >= size && class_align(class) >= align.max(8));
                assert_eq!(class, naive, "{size} {align}");
            }
        }
        assert_eq!(class_for(KMALLOC_MAX_CACHE_SIZE + 1, 8), None);
        assert_eq!(class_for(8, 16384), None);
    }
}
