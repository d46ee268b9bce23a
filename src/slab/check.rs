//! Everything that a cache counts, recounted.

use crate::addr::{Pfn, VirtAddr};
use crate::flags::PageFlags;
use crate::phys::PageSource;
use crate::platform::Platform;

use super::cache::{CacheId, SlabCache};
use super::debug;
use super::kmalloc::Slabs;
use super::lists::{SlabLists, Which};
use super::registry::At;
use super::slab_page::{Object, Slab, Whereabouts};

/// What [`Slabs::check`] found wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SlabCheckError {
    /// A block on a list of the cache is not marked as its slab.
    NotSlab(CacheId, Pfn),
    /// A slab is on a list that its number of free objects does not fit.
    WrongList(CacheId, Pfn),
    /// A slab's chain of free objects is damaged, or its length is not the one noted.
    BrokenChain(CacheId, Pfn),
    /// A CPU keeps something that is no object of the cache, or not marked as kept.
    Misplaced(CacheId, VirtAddr),
    /// A free object, or a red zone, was written. Found with feature `check` alone.
    Written(CacheId, VirtAddr),
    /// A counter of the cache differs from a recount: its name, the counter, the recount.
    Count(CacheId, &'static str, u64, u64),
    /// The source is over other frames than the slab allocator.
    WrongSource,
}

impl core::fmt::Display for SlabCheckError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotSlab(id, pfn) => write!(f, "cache {}: frame {pfn:#x} is no slab of it", id.get()),
            Self::WrongList(id, pfn) => write!(f, "cache {}: slab {pfn:#x} is on the wrong list", id.get()),
            Self::BrokenChain(id, pfn) => {
                write!(f, "cache {}: slab {pfn:#x} has a broken chain of free objects", id.get())
            }
            Self::Misplaced(id, object) => {
                write!(f, "cache {}: a CPU keeps {object:#x}, which is not free", id.get())
            }
            Self::Written(id, object) => {
                write!(f, "cache {}: {object:#x} was written after its end", id.get())
            }
            Self::Count(id, what, counter, recount) => {
                write!(f, "cache {}: {what}: counted {counter}, found {recount}", id.get())
            }
            Self::WrongSource => f.write_str("the source is over other frames"),
        }
    }
}

impl core::error::Error for SlabCheckError {}

/// What a walk over a cache's slabs finds.
#[derive(Default)]
struct Recount {
    slabs: u64,
    pages: u64,
    objects: u64,
    free: u64,
    on_cpu: u64,
    allocated: u64,
    lost: u64,
}

impl Slabs<'_> {
    /// Recounts everything that the caches count, from scratch.
    ///
    /// No other CPU may allocate or free meanwhile: its lists would change under the count.
    ///
    /// # Errors
    /// The first thing found wrong.
    ///
    /// # Locking
    /// Takes the list of caches, and each one's list of slabs.
    pub fn check<S: PageSource>(&self, source: &S) -> Result<(), SlabCheckError> {
        if source.phys().identity() != self.shared.identity() {
            return Err(SlabCheckError::WrongSource);
        }
        let pin = source.platform().pin();
        let at = At::new(source.phys(), &pin);
        self.shared.caches.lock(&pin).iter().try_for_each(|cache| cache.check_at(at))
    }
}

impl SlabCache<'_> {
    /// Recounts everything that the cache counts, as [`Slabs::check`] does for all.
    ///
    /// # Errors
    /// The first thing found wrong.
    ///
    /// # Locking
    /// Takes the list of slabs.
    pub fn check<S: PageSource>(&self, source: &S) -> Result<(), SlabCheckError> {
        if source.phys().identity() != self.shared.identity() {
            return Err(SlabCheckError::WrongSource);
        }
        let pin = source.platform().pin();
        self.check_at(At::new(source.phys(), &pin))
    }

    fn check_at(&self, at: At<'_>) -> Result<(), SlabCheckError> {
        let lists = self.lists.lock(at.pin);
        let recount = self.walk(at, &lists)?;
        self.equal("slabs", lists.slabs, recount.slabs)?;
        self.equal("pages", lists.pages, recount.pages)?;
        self.equal("objects", lists.objects, recount.objects)?;
        self.equal("free objects in slabs", lists.free, recount.free)?;
        self.equal("lost objects", lists.lost, recount.lost)?;
        let kept: u64 = self.cpus.iter().map(|own| u64::from(own.len())).sum();
        self.equal("objects kept by CPUs", kept, recount.on_cpu)?;
        let (allocated, freed) = self.counts();
        self.equal("objects in use", allocated.wrapping_sub(freed), recount.allocated)?;
        self.check_cpus(at)
    }

    /// Objects that all CPUs ever handed out, and took back.
    pub(super) fn counts(&self) -> (u64, u64) {
        let counts = self.cpus.iter().map(|own| own.counts());
        counts.fold((0, 0), |sum, own| (sum.0.wrapping_add(own.0), sum.1.wrapping_add(own.1)))
    }

    fn walk(&self, at: At<'_>, lists: &SlabLists) -> Result<Recount, SlabCheckError> {
        let mut recount = Recount::default();
        let mut empties = 0;
        for which in [Which::Partial, Which::Full, Which::Empty] {
            for place in lists.iter(at.phys.all_pages(), which) {
                let pfn = at.phys.pfn_at(place).unwrap_or(Pfn::ZERO);
                let slab = self.slab_at(at, place).ok_or(SlabCheckError::NotSlab(self.id(), pfn))?;
                let head = slab.head();
                if !head.flags().contains(PageFlags::SLAB) || head.mapping() != self.id().get() {
                    return Err(SlabCheckError::NotSlab(self.id(), pfn));
                }
                if Which::of(&slab) != which {
                    return Err(SlabCheckError::WrongList(self.id(), pfn));
                }
                empties += u64::from(which == Which::Empty);
                self.check_slab(&slab, pfn, &mut recount)?;
            }
        }
        self.equal("empty slabs", u64::from(lists.empties), empties)?;
        Ok(recount)
    }

    fn check_slab(&self, slab: &Slab<'_>, pfn: Pfn, recount: &mut Recount) -> Result<(), SlabCheckError> {
        recount.slabs += 1;
        recount.pages += slab.geometry().order.pages();
        recount.objects += u64::from(slab.geometry().count);
        let mut free = 0;
        for object in slab.objects() {
            let whereabouts = object.whereabouts(&self.layout);
            match whereabouts {
                Whereabouts::Allocated => recount.allocated += 1,
                Whereabouts::OnCpu => recount.on_cpu += 1,
                Whereabouts::Lost => recount.lost += 1,
                Whereabouts::Free(_) => free += 1,
            }
            let is_kept = matches!(whereabouts, Whereabouts::OnCpu | Whereabouts::Free(_));
            let is_sound = match whereabouts {
                Whereabouts::Lost => true,
                _ if is_kept => debug::is_intact(self, object),
                _ => debug::check_red_zone(self, object).is_ok(),
            };
            if !is_sound {
                return Err(SlabCheckError::Written(self.id(), address_of(object)));
            }
        }
        if slab.free() != free || slab.chain_len() != Some(free) {
            return Err(SlabCheckError::BrokenChain(self.id(), pfn));
        }
        recount.free += u64::from(free);
        Ok(())
    }

    /// What CPUs keep are objects of the cache that say so, each once.
    fn check_cpus(&self, at: At<'_>) -> Result<(), SlabCheckError> {
        for own in self.cpus {
            for (nth, object) in own.iter().enumerate() {
                let start = object.start();
                let misplaced = SlabCheckError::Misplaced(self.id(), address_of(object));
                let slab = self.slab_of(at, start).ok_or(misplaced)?;
                let (_, found) = slab.find(start).ok_or(misplaced)?;
                let is_single = own.iter().take(nth).all(|other| other.start() != start);
                if found.whereabouts(&self.layout) != Whereabouts::OnCpu || !is_single || found != object {
                    return Err(misplaced);
                }
            }
        }
        Ok(())
    }

    fn equal(&self, what: &'static str, counter: u64, recount: u64) -> Result<(), SlabCheckError> {
        match counter == recount {
            true => Ok(()),
            false => Err(SlabCheckError::Count(self.id(), what, counter, recount)),
        }
    }
}

fn address_of(object: Object) -> VirtAddr {
    VirtAddr::new(object.start().addr().get() as u64).unwrap_or(VirtAddr::ZERO)
}
