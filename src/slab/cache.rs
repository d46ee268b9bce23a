//! A cache of objects of one size.

use core::mem::MaybeUninit;
use core::num::NonZeroUsize;
use core::ptr::NonNull;

use crate::addr::{PageOrder, Pfn};
use crate::flags::{GfpFlags, PageFlags};
use crate::phys::{AllocError, Page, PageSource, Patience};
use crate::platform::Platform;
use crate::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use crate::sync::{Rank, SpinLock};

use super::cpu_objects::CpuObjects;
use super::create::bytes_of;
use super::debug;
use super::error::ObjectError;
use super::layout::ObjectLayout;
use super::lists::SlabLists;
use super::registry::{At, Shared};
use super::release::{Detached, give_back};
use super::slab_page::{Object, Slab};

/// The number of a cache: the mapping of its slabs' pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CacheId(u32);

impl CacheId {
    /// Blocks that [`Slabs::kmalloc`](super::Slabs::kmalloc) took from the buddy allocator.
    pub(super) const LARGE: Self = Self(u32::MAX);

    pub(super) const fn new(id: u32) -> Self {
        Self(id)
    }

    /// The raw number.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Makes a new object of its bytes; called once for each object when its slab is made, not at each allocation.
///
/// Whoever frees an object leaves it as the constructor did.
pub type Constructor = fn(&mut [MaybeUninit<u8>]);

/// Where a cache's own data lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Home {
    /// With the slab allocator's: a kmalloc class.
    Class,
    /// In memory that the caller gave.
    Caller,
    /// In memory of kmalloc, which begins at this address.
    Kmalloc(NonZeroUsize),
}

/// What a cache is for.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "kmem_cache_args")]
pub struct CacheConfig {
    /// The name in reports.
    pub name: &'static str,
    /// Bytes of an object.
    pub size: usize,
    /// The alignment of objects, a power of two; those below 8 mean 8.
    pub align: usize,
    /// What makes objects.
    pub constructor: Option<Constructor>,
}

impl CacheConfig {
    /// A cache of values of a type, without a constructor.
    pub const fn of<T>(name: &'static str) -> Self {
        Self { name, size: size_of::<T>(), align: align_of::<T>(), constructor: None }
    }
}

/// Empty slabs that a cache keeps while memory is not short.
///
/// # Linux
/// `MIN_PARTIAL` in `mm/slub.c`.
const KEEP_EMPTY: u32 = 5;

/// Flags that ask for more than an object as it is.
const SPECIAL: GfpFlags = GfpFlags::DMA
    .union(GfpFlags::HIGHMEM)
    .union(GfpFlags::MOVABLE)
    .union(GfpFlags::RECLAIMABLE)
    .union(GfpFlags::ZERO);

/// A cache of objects of one size.
///
/// Made by [`Slabs::create`](super::Slabs::create). Each CPU keeps some objects that it hands out and takes back without a lock and without an atomic
/// read-modify-write; behind them are the slabs, under a lock.
///
/// # Linux
/// `struct kmem_cache`.
#[derive(Debug)]
#[doc(alias = "kmem_cache")]
pub struct SlabCache<'m> {
    pub(super) layout: ObjectLayout,
    pub(super) cpus: &'m [CpuObjects<'m>],
    pub(super) shared: &'m Shared<'m>,
    id: CacheId,
    constructor: Option<Constructor>,
    name: &'static str,
    home: Home,
    pub(super) lists: SpinLock<SlabLists>,
    /// The next cache of the slab allocator, changed under its lock.
    next: AtomicPtr<SlabCache<'m>>,
}

/// A page in use by the slab: the first one of the block that holds an address.
pub(super) struct Found<'a> {
    pub(super) pfn: Pfn,
    pub(super) head: &'a Page,
    place: u32,
}

/// Finds the slab, or large block, that an address lies in.
#[inline]
pub(super) fn find<S: PageSource>(source: &S, address: NonNull<u8>) -> Result<Found<'_>, ObjectError> {
    let phys = source.phys();
    let pfn = source.virt_to_pfn(address).ok_or(ObjectError::Foreign)?;
    let Some((place, skipped)) = phys.head_place(pfn) else {
        return Err(if phys.page(pfn).is_some() { ObjectError::NotSlab } else { ObjectError::Foreign });
    };
    let head = phys.all_pages().get(place as usize).ok_or(ObjectError::Foreign)?;
    let pfn = pfn.checked_sub(u64::from(skipped)).ok_or(ObjectError::Foreign)?;
    if !head.flags().contains(PageFlags::SLAB) {
        return Err(ObjectError::NotSlab);
    }
    Ok(Found { pfn, head, place })
}

impl<'m> SlabCache<'m> {
    pub(super) fn new(
        id: CacheId,
        config: &CacheConfig,
        layout: ObjectLayout,
        cpus: &'m [CpuObjects<'m>],
        shared: &'m Shared<'m>,
        home: Home,
    ) -> Self {
        Self {
            layout,
            cpus,
            shared,
            id,
            constructor: config.constructor,
            name: config.name,
            home,
            lists: SpinLock::new(Rank::Slab, SlabLists::new()),
            next: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    /// The name in reports.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The cache's number: the mapping of its pages.
    pub fn id(&self) -> CacheId {
        self.id
    }

    /// Bytes of an object.
    #[inline]
    pub fn object_size(&self) -> usize {
        self.layout.object_size as usize
    }

    /// The alignment of objects.
    pub fn align(&self) -> usize {
        self.layout.align as usize
    }

    /// Allocates an object. It is as the constructor or its last owner left it, zeroed with [`GfpFlags::ZERO`].
    ///
    /// # Errors
    /// [`AllocError::InvalidFlags`] for DMA, HIGHMEM, MOVABLE and RECLAIMABLE, and for ZERO with a constructor;
    /// [`AllocError::WrongSource`], and those of [`PageSource::alloc_pages`] if a slab has to be made.
    ///
    /// # Locking
    /// Pins the CPU; none on the fast path, otherwise the lists of slabs. The source is called without a pin or a lock.
    ///
    /// # Linux
    /// `kmem_cache_alloc` in `mm/slub.c`.
    #[inline]
    #[doc(alias = "kmem_cache_alloc")]
    pub fn alloc<S: PageSource>(&self, source: &S, gfp: GfpFlags) -> Result<NonNull<u8>, AllocError> {
        if gfp.intersects(SPECIAL) {
            return self.alloc_special(source, gfp);
        }
        self.alloc_plain(source, gfp)
    }

    #[cold]
    fn alloc_special<S: PageSource>(&self, source: &S, gfp: GfpFlags) -> Result<NonNull<u8>, AllocError> {
        if gfp.intersects(SPECIAL - GfpFlags::ZERO) || self.constructor.is_some() {
            return Err(AllocError::InvalidFlags);
        }
        let start = self.alloc_plain(source, gfp - GfpFlags::ZERO)?;
        // SAFETY: the object is fresh and of this size.
        unsafe { start.write_bytes(0, self.object_size()) };
        Ok(start)
    }

    #[inline]
    fn alloc_plain<S: PageSource>(&self, source: &S, gfp: GfpFlags) -> Result<NonNull<u8>, AllocError> {
        if source.phys().identity() != self.shared.identity() {
            return Err(AllocError::WrongSource);
        }
        loop {
            let local = self.take_local(&source.platform().pin());
            let object = match local {
                Some(object) => object,
                None => self.alloc_slow(source, gfp)?,
            };
            if debug::is_intact(self, object) {
                return Ok(object.start());
            }
            self.lose(source, object);
        }
    }

    /// Takes an object that the CPU keeps.
    #[inline]
    fn take_local(&self, pin: &crate::platform::CpuPin<'_>) -> Option<Object> {
        if !self.shared.is_active(pin) {
            return None;
        }
        let own = self.cpus.get(pin.cpu().index())?;
        let object = own.pop()?;
        object.note_allocated(&self.layout);
        own.note_allocated();
        Some(object)
    }

    #[cold]
    #[inline(never)]
    fn alloc_slow<S: PageSource>(&self, source: &S, gfp: GfpFlags) -> Result<Object, AllocError> {
        let pin = source.platform().pin();
        if self.cpus.get(pin.cpu().index()).is_none() {
            return Err(AllocError::UnknownCpu);
        }
        if let Some(object) = self.take_shared(At::new(source.phys(), &pin)) {
            return Ok(object);
        }
        drop(pin);
        self.grow(source, gfp).or_else(|error| {
            let pin = source.platform().pin();
            let at = At::new(source.phys(), &pin);
            self.shared.gather(at, Patience::of(gfp));
            self.take_shared(at).ok_or(error)
        })
    }

    /// Takes an object out of a slab, and others for the CPU to keep.
    ///
    /// # Linux
    /// `cache_alloc_refill` of `mm/slab.c` (6.7 and earlier).
    fn take_shared(&self, at: At<'_>) -> Option<Object> {
        self.shared.attend(at);
        let own = self.cpus.get(at.pin.cpu().index())?;
        let first = own.pop().or_else(|| {
            let mut lists = self.lists.lock(at.pin);
            let first = self.take_from_slabs(&mut lists, at)?;
            for _ in 1..own.batch() {
                let Some(object) = self.take_from_slabs(&mut lists, at) else { break };
                object.note_on_cpu(&self.layout);
                own.push(object);
            }
            Some(first)
        })?;
        first.note_allocated(&self.layout);
        own.note_allocated();
        Some(first)
    }

    fn take_from_slabs(&self, lists: &mut SlabLists, at: At<'_>) -> Option<Object> {
        loop {
            let slab = self.slab_at(at, lists.next()?)?;
            // A slab that gives none is damaged and out of use now.
            if let Some(object) = lists.take(at.phys.all_pages(), &slab) {
                return Some(object);
            }
        }
    }

    /// Makes a slab and takes an object out of it.
    ///
    /// # Linux
    /// `allocate_slab` in `mm/slub.c`.
    fn grow<S: PageSource>(&self, source: &S, gfp: GfpFlags) -> Result<Object, AllocError> {
        let (pfn, order) = self.alloc_block(source, gfp)?;
        let phys = source.phys();
        let place = phys.head_place(pfn).map(|(place, _)| place);
        let slab = place.zip(source.direct_map(pfn)).and_then(|(place, base)| {
            // SAFETY: the block was just allocated for this cache, with an order of its layout.
            unsafe { Slab::new(&self.layout, phys.all_pages(), place, base) }
        });
        let Some(slab) = slab else {
            give_back(source, pfn, order);
            return Err(AllocError::Unreachable);
        };
        slab.init(self.id.get());
        for object in slab.objects() {
            debug::prepare(self, object);
            if let Some(constructor) = self.constructor {
                // SAFETY: the object is memory of its size that nobody uses yet.
                constructor(unsafe { bytes_of(object.start(), self.object_size()) });
            }
        }
        let pin = source.platform().pin();
        let at = At::new(phys, &pin);
        self.shared.attend(at);
        let mut lists = self.lists.lock(at.pin);
        lists.add(phys.all_pages(), &slab);
        let object = lists.take(phys.all_pages(), &slab).ok_or(AllocError::OutOfMemory)?;
        object.note_allocated(&self.layout);
        if let Some(own) = self.cpus.get(pin.cpu().index()) {
            own.note_allocated();
        }
        Ok(object)
    }

    /// Allocates a block for a slab: of the usual order if that can be had without effort, else of the least.
    fn alloc_block<S: PageSource>(&self, source: &S, gfp: GfpFlags) -> Result<(Pfn, PageOrder), AllocError> {
        let (usual, least) = (self.layout.usual.order, self.layout.least.order);
        let flags_for =
            |gfp: GfpFlags, order| if order == PageOrder::ZERO { gfp } else { gfp | GfpFlags::COMP };
        if usual > least {
            let easy = (gfp | GfpFlags::NOWARN | GfpFlags::NORETRY | GfpFlags::NOMEMALLOC)
                - (GfpFlags::NOFAIL | GfpFlags::RECLAIM);
            if let Ok(pfn) = source.alloc_pages(flags_for(easy, usual), usual) {
                return Ok((pfn, usual));
            }
        }
        Ok((source.alloc_pages(flags_for(gfp, least), least)?, least))
    }

    /// Frees an object.
    ///
    /// # Errors
    /// [`ObjectError`]; nothing has changed.
    ///
    /// # Safety
    /// If the object is an allocated one of this cache, nobody uses it any more. (Any other address is answered with an error, but an
    /// object must not be freed by two CPUs at the same moment.)
    ///
    /// # Locking
    /// Pins the CPU; none on the fast path, otherwise the lists of slabs. The source is called without a pin or a lock.
    ///
    /// # Linux
    /// `kmem_cache_free` in `mm/slub.c`.
    #[inline]
    #[doc(alias = "kmem_cache_free")]
    pub unsafe fn free<S: PageSource>(&self, source: &S, address: NonNull<u8>) -> Result<(), ObjectError> {
        let found = find(source, address)?;
        // SAFETY: the caller gives the object up.
        unsafe { self.free_found(source, &found, address) }
    }

    /// Frees an object whose slab was found.
    ///
    /// # Safety
    /// As for [`free`](Self::free).
    #[inline]
    pub(super) unsafe fn free_found<S: PageSource>(
        &self,
        source: &S,
        found: &Found<'_>,
        address: NonNull<u8>,
    ) -> Result<(), ObjectError> {
        let object = self.find_object(source, found, address)?;
        debug::check_red_zone(self, object)?;
        let has_excess = {
            let pin = source.platform().pin();
            let own = self.cpus.get(pin.cpu().index()).ok_or(ObjectError::UnknownCpu)?;
            // No earlier: an object that is not freed keeps its contents.
            debug::poison(self, object);
            object.note_on_cpu(&self.layout);
            own.note_freed();
            if self.shared.is_active(&pin) && own.push(object) {
                return Ok(());
            }
            self.free_slow(At::new(source.phys(), &pin), own, object)
        };
        if has_excess {
            self.release(source, KEEP_EMPTY);
        }
        Ok(())
    }

    /// The allocated object that begins at an address.
    #[inline]
    pub(super) fn find_object<S: PageSource>(
        &self,
        source: &S,
        found: &Found<'_>,
        address: NonNull<u8>,
    ) -> Result<Object, ObjectError> {
        if found.head.mapping() != self.id.get() {
            return Err(ObjectError::WrongCache(CacheId::new(found.head.mapping())));
        }
        let phys = source.phys();
        if phys.identity() != self.shared.identity() {
            return Err(ObjectError::WrongSource);
        }
        let base = source.direct_map(found.pfn).ok_or(ObjectError::Foreign)?;
        // SAFETY: the page says that the block is a slab of this cache; it stays one while the object that is freed is allocated.
        let slab = unsafe { Slab::new(&self.layout, phys.all_pages(), found.place, base) };
        let slab = slab.ok_or(ObjectError::NotSlab)?;
        let (_, object) = slab.find(address).ok_or(ObjectError::Interior)?;
        if !object.is_allocated(&self.layout) {
            return Err(ObjectError::DoubleFree);
        }
        Ok(object)
    }

    /// Puts an object on the CPU's list after the oldest ones went back to their slabs. Answers whether there are more empty slabs than
    /// are kept.
    #[cold]
    #[inline(never)]
    fn free_slow(&self, at: At<'_>, own: &CpuObjects<'_>, object: Object) -> bool {
        self.shared.attend(at);
        let mut has_excess = false;
        if !own.push(object) {
            has_excess = self.flush(at, own, own.batch());
            own.push(object);
        }
        has_excess
    }

    /// Puts the oldest `count` objects of a CPU's list back into their slabs. Answers whether there are more empty slabs than are kept.
    ///
    /// # Linux
    /// `cache_flusharray` of `mm/slab.c` (6.7 and earlier).
    fn flush(&self, at: At<'_>, own: &CpuObjects<'_>, count: u32) -> bool {
        let mut lists = self.lists.lock(at.pin);
        own.shift_out(count, |object| {
            if let Some(slab) = self.slab_of(at, object.start()) {
                lists.put(at.phys.all_pages(), &slab, object.start());
            }
        });
        lists.empties > KEEP_EMPTY
    }

    /// Puts all objects of a CPU's list, which the caller has to itself, back into their slabs.
    pub(super) fn drain_cpu(&self, at: At<'_>, cpu: usize) {
        if let Some(own) = self.cpus.get(cpu).filter(|own| own.len() != 0) {
            self.flush(at, own, own.len());
        }
    }

    /// Gives all empty slabs back to the source, after all CPUs put the objects that they keep back into their slabs. Answers how many
    /// pages that were.
    ///
    /// # Locking
    /// As [`Slabs::shrink`](super::Slabs::shrink).
    ///
    /// # Linux
    /// `kmem_cache_shrink` in `mm/slab_common.c`.
    #[doc(alias = "kmem_cache_shrink")]
    pub fn shrink<S: PageSource>(&self, source: &S) -> u64 {
        if source.phys().identity() != self.shared.identity() {
            return 0;
        }
        self.shared.gather(At::new(source.phys(), &source.platform().pin()), Patience::Waits);
        self.release(source, 0)
    }

    /// Gives empty slabs back to the source until `keep` are left. Answers how many pages that were.
    pub(super) fn release<S: PageSource>(&self, source: &S, keep: u32) -> u64 {
        let mut pages = 0;
        loop {
            let mut detached = Detached::default();
            self.detach_empty(At::new(source.phys(), &source.platform().pin()), keep, &mut detached);
            pages += detached.pages();
            if !detached.give_back(source) {
                return pages;
            }
        }
    }

    /// Takes empty slabs off the list, as many as `detached` has room for, until `keep` are left. They are plain blocks then.
    pub(super) fn detach_empty(&self, at: At<'_>, keep: u32, detached: &mut Detached) {
        let mut lists = self.lists.lock(at.pin);
        while lists.empties > keep && !detached.is_full() {
            let place = lists.first_empty();
            let Some((place, pfn)) = place.and_then(|place| Some((place, at.phys.pfn_at(place)?))) else {
                return;
            };
            let Some(slab) = self.slab_at(at, place) else { return };
            lists.remove(at.phys.all_pages(), &slab);
            slab.deinit();
            detached.push(pfn, slab.geometry().order);
        }
    }

    /// Takes a damaged object out of use.
    #[cold]
    fn lose<S: PageSource>(&self, source: &S, object: Object) {
        let pin = source.platform().pin();
        object.note_lost(&self.layout);
        self.lists.lock(&pin).lost += 1;
        if let Some(own) = self.cpus.get(pin.cpu().index()) {
            own.note_freed();
        }
    }

    /// The slab whose first page has this place; it is on one of the cache's lists, which are locked.
    pub(super) fn slab_at<'a>(&'a self, at: At<'a>, place: u32) -> Option<Slab<'a>> {
        let base = at.pin.platform().direct_map(at.phys.pfn_at(place)?)?;
        // SAFETY: a block on a list of the cache is a slab of it, and leaves the lists before it is given back.
        unsafe { Slab::new(&self.layout, at.phys.all_pages(), place, base) }
    }

    /// The slab that holds an object of this cache that is not free in its slab.
    pub(super) fn slab_of<'a>(&'a self, at: At<'a>, address: NonNull<u8>) -> Option<Slab<'a>> {
        let pfn = at.pin.platform().virt_to_pfn(address)?;
        self.slab_at(at, at.phys.head_place(pfn)?.0)
    }

    pub(super) fn next(&self) -> *mut Self {
        self.next.load(Relaxed)
    }

    pub(super) fn set_next(&self, next: *mut Self) {
        self.next.store(next, Relaxed);
    }

    pub(super) fn home(&self) -> Home {
        self.home
    }

    /// Whether free objects are what a constructor made of them, and not poison.
    #[cfg(feature = "check")]
    pub(super) fn has_constructor(&self) -> bool {
        self.constructor.is_some()
    }
}
