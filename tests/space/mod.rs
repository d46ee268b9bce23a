//! What tests of address spaces share.

use kernmm::flags::{MapFlags, Prot};
use kernmm::mm::{GapRoom, Mm, MmContext, MmError, Overcommit, OvercommitMode, Sysctl, Tables, VmaSlot};
use kernmm::syscall::{self, MmapArgs};

pub(crate) const PAGE: u64 = 4096;

pub(crate) fn slots(n: usize) -> Vec<VmaSlot> {
    (0..n).map(|_| VmaSlot::new()).collect()
}

pub(crate) fn rooms(n: usize) -> Vec<GapRoom> {
    (0..n).map(|_| GapRoom::new()).collect()
}

/// 4 GiB of memory, with these settings.
pub(crate) fn context<'c>(slots: &'c [VmaSlot], rooms: &'c [GapRoom], sysctl: Sysctl) -> MmContext<'c> {
    MmContext::new(slots, rooms, sysctl, Overcommit::new(OvercommitMode::Guess, 1 << 20, 0))
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
