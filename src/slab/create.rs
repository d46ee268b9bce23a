//! Caches made and unmade while the machine runs.

use core::alloc::Layout;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use crate::flags::GfpFlags;
use crate::phys::{Carver, PageSource, Sizes};
use crate::platform::Platform;

use super::cache::{CacheConfig, Home, SlabCache};
use super::error::{CreateError, DestroyError};
use super::kmalloc::{Slabs, add_cpus, cut_cpus, of_memory};
use super::layout::ObjectLayout;

impl<'m> Slabs<'m> {
    /// The size and alignment of the memory that a cache takes, for [`create_in`](Self::create_in).
    pub fn cache_layout(&self, config: &CacheConfig) -> Layout {
        let mut sizes = Sizes::default();
        add_cpus(&mut sizes, config.size, self.shared.cpus());
        sizes.add::<SlabCache<'_>>(1);
        sizes.layout()
    }

    /// Makes a cache, in memory of kmalloc.
    ///
    /// # Errors
    /// [`CreateError::InvalidSize`] for no bytes or more than 2 MiB with their red zone, [`CreateError::InvalidAlign`], [`CreateError::WrongSource`],
    /// [`CreateError::Alloc`]. Nothing has changed.
    ///
    /// # Locking
    /// As [`kmalloc`](Self::kmalloc), and the list of caches.
    ///
    /// # Linux
    /// `kmem_cache_create` in `mm/slab_common.c`. Caches of one size are not merged.
    #[doc(alias = "kmem_cache_create")]
    pub fn create<S: PageSource>(
        &self,
        source: &S,
        config: &CacheConfig,
    ) -> Result<&'m SlabCache<'m>, CreateError> {
        self.objects(source, config)?;
        let layout = self.cache_layout(config);
        let start = self.kmalloc_aligned(source, layout.size(), layout.align(), GfpFlags::KERNEL);
        let start = start.map_err(CreateError::Alloc)?;
        // SAFETY: just allocated with this size, and given up by `destroy` alone.
        let memory = unsafe {
            core::slice::from_raw_parts_mut(start.cast::<MaybeUninit<u8>>().as_ptr(), layout.size())
        };
        self.place(source, config, memory, Home::Kmalloc(start.addr())).inspect_err(|_| {
            // SAFETY: the cache was not made, so nobody uses its memory.
            let freed = unsafe { self.kfree(source, start) };
            debug_assert_eq!(freed, Ok(()), "the memory was just allocated");
        })
    }

    /// Makes a cache, in memory that the caller supplies: as large and aligned as [`cache_layout`](Self::cache_layout) says.
    ///
    /// # Errors
    /// Those of [`create`](Self::create); [`CreateError::MetadataTooSmall`], [`CreateError::MetadataMisaligned`].
    ///
    /// # Locking
    /// The list of caches.
    pub fn create_in<S: PageSource>(
        &self,
        source: &S,
        config: &CacheConfig,
        memory: &'m mut [MaybeUninit<u8>],
    ) -> Result<&'m SlabCache<'m>, CreateError> {
        self.place(source, config, memory, Home::Caller)
    }

    fn objects<S: PageSource>(&self, source: &S, config: &CacheConfig) -> Result<ObjectLayout, CreateError> {
        if source.phys().identity() != self.shared.identity() {
            return Err(CreateError::WrongSource);
        }
        ObjectLayout::new(config.size, config.align, self.shared.cpus())
    }

    fn place<S: PageSource>(
        &self,
        source: &S,
        config: &CacheConfig,
        memory: &'m mut [MaybeUninit<u8>],
        home: Home,
    ) -> Result<&'m SlabCache<'m>, CreateError> {
        let objects = self.objects(source, config)?;
        let mut carver = Carver::new(memory, self.cache_layout(config)).map_err(of_memory)?;
        let cpus = cut_cpus(&mut carver, config.size, self.shared.cpus())?;
        let pin = source.platform().pin();
        let mut caches = self.shared.caches.lock(&pin);
        let id = caches.next_id().ok_or(CreateError::TooManyCaches)?;
        let made = carver.cut(1, |_| Ok(SlabCache::new(id, config, objects, cpus, self.shared, home)));
        let made: &'m [SlabCache<'m>] = made.map_err(of_memory)?;
        let cache = made.first().ok_or(CreateError::MetadataTooSmall(0))?;
        caches.add(cache);
        Ok(cache)
    }

    /// Unmakes a cache: all its slabs go back to the source, and its memory to kmalloc if it came from there.
    ///
    /// # Errors
    /// [`DestroyError::InUse`] while objects are in use or lost, [`DestroyError::Foreign`] for a kmalloc class or a cache of another allocator.
    /// The cache goes on as it was, without empty slabs.
    ///
    /// # Safety
    /// Nobody uses the cache any more, now or later, unless the answer is an error.
    ///
    /// # Locking
    /// As [`shrink`](Self::shrink).
    ///
    /// # Linux
    /// `kmem_cache_destroy` in `mm/slab_common.c`.
    #[doc(alias = "kmem_cache_destroy")]
    pub unsafe fn destroy<S: PageSource>(
        &self,
        source: &S,
        cache: &'m SlabCache<'m>,
    ) -> Result<(), DestroyError> {
        let is_own = core::ptr::eq(cache.shared, self.shared);
        if !is_own || source.phys().identity() != self.shared.identity() || cache.home() == Home::Class {
            return Err(DestroyError::Foreign);
        }
        cache.shrink(source);
        {
            let pin = source.platform().pin();
            let mut caches = self.shared.caches.lock(&pin);
            let lists = cache.lists.lock(&pin);
            if lists.slabs != 0 {
                return Err(DestroyError::InUse(lists.objects - lists.free));
            }
            caches.remove(cache);
        }
        let Home::Kmalloc(start) = cache.home() else { return Ok(()) };
        // The slab finds its own way to the memory; only the address counts.
        if let Some(start) = NonNull::new(core::ptr::without_provenance_mut(start.get())) {
            // SAFETY: the cache is on no list, and the caller promises that nobody else knows it.
            let freed = unsafe { self.kfree(source, start) };
            debug_assert_eq!(freed, Ok(()), "the cache's memory is kmalloc's");
        }
        Ok(())
    }
}

/// The memory of an allocated object, as a constructor gets it.
///
/// # Safety
/// The object is memory of this size that nobody else uses while the answer lives.
pub(super) unsafe fn bytes_of<'a>(start: NonNull<u8>, size: usize) -> &'a mut [MaybeUninit<u8>] {
    let start = start.cast::<MaybeUninit<u8>>().as_ptr();
    // SAFETY: the caller promises it.
    unsafe { core::slice::from_raw_parts_mut(start, size) }
}
