//! Page tables: PGD → PMD → PTE.
//!
//! ```text
//!  PageTable          a root: walks, makes tables, takes empty ones out
//!    TableRef         one leaf table, locked: 512 entries for one descent
//!    HugeRef          one entry of 2 MiB, locked
//!  KernelTables       the kernel's half, which all roots share: vmalloc, vmap, ioremap
//!  TlbGather          frames and tables on their way out: freed after the flush, not before
//!  EntryFormat        how an architecture writes an entry down: X86_64, Pae, Sv39
//! ```
//!
//! Tables are frames with [`PageFlags::TABLE`](crate::flags::PageFlags::TABLE). What a table notes of itself, its lock and how many of its entries are in use,
//! lies in the frame's [`Page`](crate::phys::Page); so a table may be a HIGHMEM frame, which is reached through a kmap slot for as
//! long as it is looked at.
//!
//! # Locking
//! An entry is changed with its table's lock held, a bit in the table's page, which [`PageTable::lock`] takes. Tables come without a lock (a new one is
//! put in place by compare-exchange) and go by one rule: **who takes tables out keeps walkers away from their addresses.** There are two sorts of
//! walkers.
//!
//! - Those that come from an address hold the address space's lock, or that of a VMA. No VMA lies in what
//!   [`PageTable::free_empty`] is given, so none of them is there.
//! - Those that come from a page (reverse mapping) hold no such lock. They hold the address space's `table_lock`
//!   from before they look for a table until they have let go of it. `free_empty` takes it too.
//!
//! A leaf table may also move as it is, by the one entry that leads to it: who moves it keeps walkers away from both its addresses, and locks it. Whoever has
//! waited for its lock looks again what leads to it, and finds that it is another address's.
//!
//! Hardware is the third walker: what is taken out goes to a [`TlbGather`], and is freed when no CPU knows it any more.

mod area;
mod check;
mod error;
mod format;
mod frame;
mod free;
mod gather;
mod huge;
mod kernel;
mod leaf;
mod range;
mod root;
mod vmalloc;

pub use area::{AreaKind, VmArea};
pub use check::TableCheckError;
pub use error::TableError;
pub use format::{
    Caching, ENTRIES, EntryFormat, EntryKind, HUGE_SIZE, Half, Mapped, Pae, Pte, PteBits, Sv39, SwapEntry,
    X86_64,
};
pub use gather::TlbGather;
pub(crate) use gather::{WithRoom, scope_of};
pub use huge::{HugeRef, PreparedTable};
pub use kernel::KernelTables;
pub use leaf::{Leaf, TableRef};
pub(crate) use range::Zapper;
pub use range::{Change, Found, Run, Zap};
pub use root::PageTable;
pub use vmalloc::VmallocError;
