//! Address spaces: VMAs, the rules for merging, splitting and placing them, and the sums over them.
//!
//! | file | what |
//! |---|---|
//! | `vma`, `anon` | [`Vma`] as a value; who owns its anonymous pages |
//! | `merge`, `place` | pure rules: when neighbours become one, where a mapping goes |
//! | `slot`, `pool`, `set` | where VMAs live, who gives them out, and in which order |
//! | [`gap`] | where there is room, in O(log n) |
//! | `space`, `limits`, `context` | [`Mm`], its sums and limits, and what all address spaces share |
//! | `bare` | [`BareSet`]: the set by itself, without sums, limits and merging |
//! | `shared` | [`MmSlot`]: what is reached of an address space without its lock |
//! | `recent`, `vma_lock`, `locked` | the VMAs found last; the lock of one; finding one without the lock of the address space |
//! | `unmap`, `change`, `map`, `copy`, `stack`, `populate`, `family` | what the calls in [`syscall`](crate::syscall) are made of |
//! | `tables` | [`Tables`]: what happens to pages |
//! | `check` | recounts everything from scratch |
//!
//! # Merging
//! Neighbours that are alike and fit together are one VMA, in the memory and in the file:
//!
//! ```text
//!            new range                          range of an existing VMA that changes
//!
//!   PPPP      NNNN   Neither          PPPP....NNNN   whole middle:  PPPP[mmm]NNNN
//!   PPPP****  NNNN   Prev             PPPP****NNNN   its left part: PPPP[mm]m
//!   PPPP  ****NNNN   Next             its right part:                   m[mm]NNNN
//!   PPPP****NNNN     Both
//! ```
//!
//! # Locking
//! An [`Mm`] is the data of the address space's lock (Linux: `mmap_lock`): `&mut Mm` is the lock held for writing, `&Mm`
//! held for reading. Each VMA has a lock of its own besides, which lets a fault in it run beside a call that changes others.
//!
//! ```text
//! lock of the address space            &Mm, &mut Mm
//!   locks of VMAs                      shared by faults, which never wait for it; a writer waits for the faults
//!     rmap: a file's sharing list, an anon_vma
//!       page tables                    behind Tables
//!     the pool of slots                no lock: one compare-and-exchange
//!     committed memory                 no lock: one atomic
//! ```
//!
//! A fault goes the first way that is open to it:
//!
//! 1. [`MmContext::lock_vma`]: no lock of the address space. The VMA is guessed by what was found last or by a walk down the tree, which may be
//!    changing; it is locked, and only then asked whether it is the one ([`LockedVma`]).
//! 2. The address space's lock held for reading: the VMA is locked by a writer, must get an owner of anonymous pages, or forbids the access.
//! 3. Held for writing: a stack grows.
//!
//! Who holds the address space's lock for writing locks each VMA before he changes it or its pages; [`Mm::end_section`], before the lock is let go
//! of, opens them all again by counting one section more.
//!
//! | | look-up, fault by 1 | look-up, fault by 2 | stack growth | a call that changes VMAs |
//! |---|---|---|---|---|
//! | **look-up, fault by 1** | run together | run together | together in other VMAs | together in other VMAs |
//! | **look-up, fault by 2** | run together | run together | excluded | excluded |
//! | **stack growth** | together in other VMAs | excluded | excluded | excluded |
//! | **a call that changes VMAs** | together in other VMAs | excluded | excluded | excluded |
//!
//! A call prepares (slots, charges, objects: all that can fail), then commits (cannot fail), so that an error leaves the
//! address space as it was, except where Linux itself works VMA by VMA: mprotect, madvise, mlock, munlock and mremap of several VMAs keep
//! what was done before the error.

mod anon;
mod bare;
mod change;
mod check;
mod context;
mod copy;
mod error;
mod family;
pub mod gap;
mod layout;
mod limits;
mod locked;
mod map;
mod merge;
mod place;
mod pool;
mod populate;
mod recent;
mod set;
mod shared;
mod slot;
mod space;
mod stack;
mod tables;
mod unmap;
mod vma;
mod vma_lock;
#[cfg(all(test, loom))]
mod vma_lock_model;

#[cfg(test)]
mod tests;

pub use anon::{AnonVma, Lineage};
pub use bare::{BareSet, Vacant};
pub use check::Violation;
pub use context::{
    HugeAlignment, HugePages, MmContext, MmStores, Overcommit, OvercommitMode, ProtectionKeys, Sysctl,
};
pub use error::MmError;
pub use layout::MmapLayout;
pub use limits::{Rlimits, Totals};
pub use locked::LockedVma;
pub use pool::{GapPool, GapRoom, VmaPool};
pub use populate::Populate;
pub use set::{ByAddress, MmRb, VmaSet};
pub use shared::{MmId, MmPool, MmRef, MmSlot, RssKind};
pub use slot::{VmaNode, VmaSlot};
pub use space::{Image, Mm};
pub use tables::{Advised, EmptyTables, NullTables, Tables, Touch};
pub(crate) use vma::huge_page_around;
pub use vma::{Backing, FileKind, FileRef, OpenId, Vma};
pub use vma_lock::WaitForFaults;

pub(crate) use copy::SourceFate;
pub(crate) use map::Content;
pub(crate) use place::{Exact, Sharing, Window, Wish};
pub(crate) use populate::Purpose;
pub(crate) use unmap::clip;
