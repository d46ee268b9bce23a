//! Locks and atomics: one place, so that the model checkers can put their own in.
//!
//! With `--cfg loom` or `--cfg shuttle` the atomics and the lock come from that crate; all other code is the shipped one.
//! A [`SpinLock`] is taken with a [`CpuPin`](crate::platform::CpuPin), which says that interrupts are masked; with feature `check` the pin also
//! counts the ranks held, and a lock taken out of order stops the run.
//!
//! A [`TaskLock`] is for what interrupt handlers never touch: it needs no pin, and comes before all locks that do.
//!
//! The order, outermost first:
//!
//! ```text
//! Settings                   an allocator's tunables
//!   Caches                   the slab allocator's list of caches
//!     Slab                   a cache's list of slabs
//!       Table                a page table; a second one inside it is allowed
//!         Files              the page cache's list of files
//!           Mapping          a file's pages
//!             CacheIo        the page cache's inputs and outputs under way
//!               Depot        a zone's stock of full magazines
//!                 Zone       a zone's free lists
//!                   Leaf     takes nothing inside: a process's tables in use, for one
//! ```

mod lock;
mod task_lock;

pub use lock::{Rank, SpinGuard, SpinLock};
pub use task_lock::{TaskGuard, TaskLock};

/// The atomics in use: those of `core`, or a model checker's.
pub mod atomic {
    #[cfg(not(any(loom, shuttle)))]
    pub use core::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    #[cfg(loom)]
    pub use loom::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    #[cfg(shuttle)]
    pub use shuttle::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

pub(crate) use crate::collections::words;
