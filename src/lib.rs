//! A Linux-style memory manager as a `no_std` library.
//!
//! An embedder's kernel gives it a memory map and a way to reach frames, and gets what Linux's `mm/` gives Linux. The same code runs
//! in a kernel on bare metal, under `cargo test` on a host and under a fuzzer. It has no global state and needs no heap.
//!
//! # Layers
//!
//! Enter anywhere; a layer knows only those above it in this table.
//!
//! | Layer | What it has | Begin with |
//! |---|---|---|
//! | [`addr`] | addresses, page numbers and orders, one type a unit | [`addr::Pfn`] |
//! | [`flags`] | flags of allocations, pages and VMAs, and of the arguments of the mmap family | [`flags::GfpFlags`] |
//! | [`error`] | Linux's error numbers | [`error::Errno`] |
//! | [`collections`] | lists and red-black trees whose links are numbers, sequence counters | [`collections::IndexList`] |
//! | [`platform`] | what the embedder supplies | [`platform::Platform`] |
//! | [`sync`] | locks that know their rank, and atomics, replaceable by model checkers | [`sync::SpinLock`] |
//! | [`phys`] | frames: memory map, zones, buddy allocator, per-CPU pages, watermarks | [`phys::Phys`] |
//! | [`slab`] | caches of equal objects, kmalloc, a global allocator | [`slab::Slabs`] |
//! | [`table`] | page tables: entry formats, walks, locks, TLB flushes | [`table::PageTable`] |
//! | [`rmap`] | who maps a page | [`rmap::AnonVmas`] |
//! | [`cache`] | the pages of files: reading, read-ahead, write-back, truncation | [`cache::PageCache`] |
//! | [`mm`] | address spaces: VMAs, the rules for merging and placing them, limits and sums | [`mm::Mm`] |
//! | [`fault`] | page faults, and what calls do to pages | [`fault::MmPager`] |
//! | [`syscall`] | the calls of the mmap family, a file each | [`syscall::mmap`] |
//! | [`report`] | what Linux's `/proc` shows of memory | [`report::Report`] |
//! | [`memory`] | the façade: allocate, reclaim, retry; processes | [`memory::Memory`], [`memory::Process`] |
//!
//! A first use is in the README; [`platform`] opens with a complete implementation of the hooks to copy.
//!
//! # Features
//!
//! All are off by default, and additive.
//!
//! | Feature | What it adds |
//! |---|---|
//! | `std` | the hosted machine: RAM and CPUs simulated on an operating system, for tests and tools |
//! | `check` | the order of locks asserted at run time; red zones and poison in the slab |
//!
//! # Errors and panics
//!
//! Each layer has a small enum of causes, and each cause an [`Errno`](error::Errno). An error leaves the state as it was. No
//! argument makes the library panic; only corruption of its own state does.
//!
//! # Linux
//!
//! Names are Linux's, and every deviation is listed with its reason in `docs/deviations.md`. Items name the function and file that
//! they follow under a heading like this one; search finds them by their Linux names too.
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]

pub mod addr;
pub mod cache;
pub mod collections;
pub mod error;
pub mod fault;
pub mod flags;
pub mod memory;
pub mod mm;
pub mod phys;
pub mod platform;
pub mod report;
pub mod rmap;
pub mod slab;
pub mod sync;
pub mod syscall;
pub mod table;

pub use platform::testing;

/// The README's example, compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
