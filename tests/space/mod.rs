//! What tests of address spaces share.

use kernmm::flags::{MapFlags, Prot};
use kernmm::mm::{
    GapRoom, Image, Mm, MmContext, MmError, Overcommit, OvercommitMode, Sysctl, Tables, Totals, Vma, VmaSlot,
};
use kernmm::syscall::{self, MmapArgs};

pub const PAGE: u64 = 4096;

/// Everything that a refused call must leave as it was.
#[derive(Clone, PartialEq, Debug)]
pub struct Digest {
    vmas: Vec<Vma>,
    totals: Totals,
    image: Image,
    def_flags: u64,
    committed: u64,
    slots: u32,
}

pub fn digest(mm: &Mm<'_>) -> Digest {
    Digest {
        vmas: mm.vmas().iter().map(|(_, vma)| vma).collect(),
        totals: *mm.totals(),
        image: *mm.image(),
        def_flags: mm.def_flags().bits(),
        committed: mm.context().overcommit().committed(),
        slots: mm.context().pool().used(),
    }
}

pub fn slots(n: usize) -> Vec<VmaSlot> {
    (0..n).map(|_| VmaSlot::new()).collect()
}

pub fn rooms(n: usize) -> Vec<GapRoom> {
    (0..n).map(|_| GapRoom::new()).collect()
}

pub fn context<'c>(slots: &'c [VmaSlot], rooms: &'c [GapRoom]) -> MmContext<'c> {
    MmContext::new(slots, rooms, Sysctl::default(), Overcommit::new(OvercommitMode::Guess, 1 << 20, 0))
}

pub fn anonymous(addr: u64, pages: u64, prot: Prot, flags: MapFlags) -> MmapArgs {
    let flags = flags | MapFlags::ANONYMOUS;
    let flags = if flags.contains(MapFlags::SHARED) { flags } else { flags | MapFlags::PRIVATE };
    MmapArgs { addr, len: pages * PAGE, prot, flags, file: Ok(None), offset: 0 }
}

/// Maps private anonymous pages exactly there.
pub fn map(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    addr: u64,
    pages: u64,
    prot: Prot,
) -> Result<(), MmError> {
    syscall::mmap(mm, tables, &anonymous(addr, pages, prot, MapFlags::FIXED)).map(drop)
}
