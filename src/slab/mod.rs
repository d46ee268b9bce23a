//! Objects smaller than a block of pages: caches of one size, and kmalloc.
//!
//! ```text
//!  Slabs::kmalloc, kfree, krealloc    13 size classes of 8 bytes to 8 KiB; above them whole blocks
//!    SlabCache::alloc, free           objects of one size; frees are checked in release builds too
//!      CpuObjects                     what a CPU keeps: no lock, no atomic read-modify-write
//!        SlabLists                    a cache's slabs: partial, full, empty
//!          Slab                       a block of pages; free objects chained by 16-bit numbers
//! ```
//!
//! Pages come from a [`PageSource`](crate::phys::PageSource), which is an argument of each call that may need one: the façade, which reclaims, is one.
//! It is called without a pin and without a lock. Nothing here is global, so that a process can have many slab allocators.
//!
//! The cache of an object is found from its page: the flag [`SLAB`](crate::flags::PageFlags::SLAB) and the mapping of the block's first page. The state of
//! each object, kept apart from its memory, says whether it is allocated; so a double free is found at once, and a write to
//! a free object leads no pointer astray. With feature `check` each object has a red zone, and free ones are poisoned.
//!
//! # How objects lie in a slab
//! ```text
//! smaller than a page:   | object | object | … | object |  waste  | states, 2 bytes each |
//! a page or larger:      | object              | object              | …   states in the pages' metadata
//! ```
//!
//! Objects begin at multiples of their size, so a power-of-two size is naturally aligned.
//!
//! # Linux
//! `mm/slub.c` for the interface and the sizes of slabs, `mm/slab.c` (6.7 and earlier) for the per-CPU lists.
#![expect(unsafe_code, reason = "objects are raw memory, and their states lie in it")]

mod cache;
mod check;
mod cpu_objects;
mod create;
mod debug;
mod error;
mod facade;
mod global;
mod info;
mod kmalloc;
mod layout;
mod lists;
mod registry;
mod release;
mod slab_page;

pub use cache::{CacheConfig, CacheId, Constructor, SlabCache};
pub use check::SlabCheckError;
pub use error::{CreateError, DestroyError, ObjectError};
pub use global::GlobalHeap;
pub use info::SlabInfo;
pub use kmalloc::{KMALLOC_MAX_CACHE_SIZE, KMALLOC_MAX_SIZE, Slabs, ZERO_SIZE_PTR};

#[cfg(not(any(loom, shuttle)))]
static_assertions::assert_impl_all!(Slabs<'static>: Send, Sync);
#[cfg(not(any(loom, shuttle)))]
static_assertions::assert_impl_all!(SlabCache<'static>: Send, Sync);
