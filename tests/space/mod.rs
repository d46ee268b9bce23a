//! What tests of address spaces share.

use kernmm::flags::{MapFlags, Prot};
use kernmm::mm::{Mm, MmContext, MmError, Overcommit, OvercommitMode, Sysctl, Tables};
use kernmm::syscall::{self, MmapArgs};

#[path = "../../examples/common/stores.rs"]
mod stores;

pub(crate) use stores::Stores;

pub(crate) const PAGE: u64 = 4096;

/// 4 GiB.
pub(crate) const RAM_PAGES: u64 = 1 << 20;

/// So much memory, with these settings.
pub(crate) fn context(stores: &Stores, sysctl: Sysctl) -> MmContext<'_> {
    MmContext::new(stores.lend(), sysctl, Overcommit::new(OvercommitMode::Guess, RAM_PAGES, 0))
}

pub(crate) fn anonymous(addr: u64, pages: u64, prot: Prot, flags: MapFlags) -> MmapArgs {
    let flags = flags | MapFlags::ANONYMOUS;
    let flags = if flags.contains(MapFlags::SHARED) { flags } else { flags | MapFlags::PRIVATE };
    MmapArgs { addr, len: pages * PAGE, prot, flags, file: Ok(None), offset: 0 }
}

/// Maps private anonymous pages exactly there.
pub(crate) fn map(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    addr: u64,
    pages: u64,
    prot: Prot,
) -> Result<(), MmError> {
    syscall::mmap(mm, tables, &anonymous(addr, pages, prot, MapFlags::FIXED)).map(drop)
}
