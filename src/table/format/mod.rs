//! What an entry of a page table says, and how each architecture writes it down.

mod sv39;
mod x86;

pub use sv39::Sv39;
pub use x86::{Pae, X86_64};

use bitflags::bitflags;

use crate::addr::{PAGE_SHIFT, Pfn, VirtAddr, VirtRange};

/// log2 of the entries in a table.
pub(super) const INDEX_BITS: u32 = 9;
/// Entries in a table.
pub const ENTRIES: usize = 1 << INDEX_BITS;
/// log2 of the bytes that a leaf table covers, or one huge leaf.
pub(super) const LEAF_SHIFT: u32 = PAGE_SHIFT + INDEX_BITS;
/// Bytes that a leaf table covers, or one huge leaf: 2 MiB.
pub const HUGE_SIZE: u64 = 1 << LEAF_SHIFT;

bitflags! {
    /// What an entry that maps a frame says besides the frame.
    ///
    /// Not every format can say everything: each states what it makes of the rest. Where x86 has a bit for it, that is the number here too.
    ///
    /// # Linux
    /// `_PAGE_PRESENT` and its like in `arch/*/include/asm/pgtable*.h`.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    #[doc(alias = "pgprot_t")]
    pub struct PteBits: u32 {
        /// May be read.
        const READ = 1 << 0;
        /// May be written.
        const WRITE = 1 << 1;
        /// By user code.
        const USER = 1 << 2;
        /// Not cached; writes may be gathered.
        const WRITE_COMBINING = 1 << 3;
        /// Not cached, in order.
        const UNCACHED = 1 << 4;
        /// Used since this was last cleared; set by hardware.
        const ACCESSED = 1 << 5;
        /// Written since this was last cleared; set by hardware.
        const DIRTY = 1 << 6;
        /// May be executed.
        const EXEC = 1 << 7;
        /// In every address space: not forgotten when the tables are switched.
        const GLOBAL = 1 << 8;
        /// The frame is not counted as mapped: the zero page, a device's memory.
        const SPECIAL = 1 << 9;
        /// Kept, but hardware does not see it: nobody may touch the page.
        #[doc(alias = "_PAGE_PROTNONE")]
        const PROT_NONE = 1 << 10;
    }
}

/// How accesses to a mapping go through caches.
///
/// # Linux
/// `enum page_cache_mode` in `arch/x86/include/asm/pgtable_types.h`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[doc(alias = "page_cache_mode")]
pub enum Caching {
    /// As RAM.
    #[default]
    #[doc(alias = "_PAGE_CACHE_MODE_WB")]
    WriteBack,
    /// Not at all, but writes may be gathered: for the memory of displays.
    #[doc(alias = "_PAGE_CACHE_MODE_WC")]
    #[doc(alias = "pgprot_writecombine")]
    WriteCombining,
    /// Not at all, and in order: for registers.
    #[doc(alias = "_PAGE_CACHE_MODE_UC")]
    #[doc(alias = "pgprot_noncached")]
    Uncached,
}

impl Caching {
    /// The bits of an entry that say so.
    pub const fn bits(self) -> PteBits {
        match self {
            Self::WriteBack => PteBits::empty(),
            Self::WriteCombining => PteBits::WRITE_COMBINING,
            Self::Uncached => PteBits::UNCACHED,
        }
    }
}

/// The bits that give a right to touch the page.
pub(super) const RIGHTS: PteBits = PteBits::READ.union(PteBits::WRITE).union(PteBits::EXEC);

/// A frame, and what may be done to it through an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// The frame, below [`Pfn::MAX`]; the first of 512 in a huge entry.
    pub pfn: Pfn,
    /// What may be done.
    pub bits: PteBits,
}

/// Where a page lies that is in no frame: a swap area's number in 5 bits, a place in it in 50.
///
/// # Linux
/// `swp_entry_t` in `include/linux/mm_types.h`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "swp_entry_t")]
pub struct SwapEntry(u64);

impl SwapEntry {
    const AREA_SHIFT: u32 = 50;
    /// The greatest number of an area.
    pub const MAX_AREA: u8 = 31;
    /// The greatest place in an area.
    pub const MAX_OFFSET: u64 = (1 << Self::AREA_SHIFT) - 1;

    /// The place `offset` of an area; `None` if either number is too great.
    pub const fn new(area: u8, offset: u64) -> Option<Self> {
        if area <= Self::MAX_AREA && offset <= Self::MAX_OFFSET {
            Some(Self((area as u64) << Self::AREA_SHIFT | offset))
        } else {
            None
        }
    }

    /// The area's number.
    pub const fn area(self) -> u8 {
        (self.0 >> Self::AREA_SHIFT) as u8
    }

    /// The place in the area.
    pub const fn offset(self) -> u64 {
        self.0 & Self::MAX_OFFSET
    }
}

/// An entry of a leaf table, or a huge one, read.
///
/// # Linux
/// `pte_t`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(alias = "pte_t")]
pub enum Pte {
    /// Nothing.
    #[default]
    None,
    /// A frame.
    Present(Mapped),
    /// A page that was swapped out.
    Swap(SwapEntry),
    /// The mark of a guard region: a touch is a fault, whatever the VMA says.
    ///
    /// # Linux
    /// `PTE_MARKER_GUARD` in `include/linux/swapops.h`.
    Guard,
}

impl Pte {
    /// An entry for a frame.
    pub const fn mapping(pfn: Pfn, bits: PteBits) -> Self {
        Self::Present(Mapped { pfn, bits })
    }

    /// The frame and its bits, if there is one.
    pub const fn mapped(self) -> Option<Mapped> {
        match self {
            Self::Present(mapped) => Some(mapped),
            _ => None,
        }
    }

    /// Whether there is nothing.
    pub const fn is_none(self) -> bool {
        matches!(self, Self::None)
    }
}

/// What an entry of any level is to a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// Nothing.
    Empty,
    /// The way to the table of the next level.
    Table(Pfn),
    /// The end of the way: a page, or something that stands for one.
    Leaf,
}

/// Which half of the addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Half {
    /// The lower: one address space's own.
    User,
    /// The upper: the same in all.
    Kernel,
}

/// How an architecture writes page tables down: tables of one frame, entries of 64 bits.
///
/// Levels are counted from the leaf tables, 0, to the root, `LEVELS - 1`. The three names are: PTE for level 0, PMD for level 1, PGD for all
/// above; a fourth level of hardware is folded into the last, so nobody outside this room sees it.
pub trait EntryFormat: Copy + core::fmt::Debug + Send + Sync + 'static {
    /// The architecture's name for it.
    const NAME: &'static str;
    /// How many levels hardware walks.
    const LEVELS: u32;
    /// How many bits of an address are translated. Those above repeat the highest of them, unless there are none above.
    const ADDRESS_BITS: u32;
    /// The first address of the kernel's half.
    const KERNEL_START: u64;
    /// The end of the user's half.
    const USER_END: u64;
    /// The first address that no process may have, in bytes: where the user's half ends, or a little before.
    #[doc(alias = "TASK_SIZE_MAX")]
    const TASK_SIZE: u64;
    /// The addresses of the kernel's half that vmalloc gives out, where the embedder says nothing else.
    const VMALLOC: VirtRange;
    /// The root lies below this frame.
    const ROOT_BELOW: u64 = Pfn::MAX.get();
    /// Where a leaf of level 0 that hardware sees has its frame: a number in these bits. The bit above them is 0, so no two such leaves differ by a carry.
    const FRAME: u64;
    /// The bit of a leaf of level 0 that hardware sees.
    const SEEN: u64;
    /// The bits of such a leaf in which hardware has nothing to note: it was used, and written. Of these [`may_change`](Self::may_change) is `false`.
    const SETTLED: u64;
    /// Whether user code may be let execute what it may not read.
    const HAS_EXECUTE_ONLY: bool = false;
    /// Whether hardware reads the root's entries only when it is switched to: all that they lead to is then there from the start.
    const ROOT_IS_CACHED: bool = false;
    /// Bits that are zero in every entry that a walk follows, by level.
    fn reserved(level: u32, raw: u64) -> u64;

    /// What an entry of `level` is.
    fn kind(level: u32, raw: u64) -> EntryKind;
    /// An entry of `level` that leads to a table.
    fn table(level: u32, half: Half, table: Pfn) -> u64;
    /// A leaf of level 0 or 1, written down.
    fn encode(level: u32, pte: Pte) -> u64;
    /// A leaf of level 0 or 1, read.
    fn decode(level: u32, raw: u64) -> Pte;
    /// Whether hardware may still set a bit of this leaf, so that it is to be changed by an atomic read-modify-write. Its frame has no say in that.
    fn may_change(raw: u64) -> bool;

    /// The frame of a leaf of level 0 that hardware sees.
    #[inline]
    fn frame(raw: u64) -> Pfn {
        // A format may have room for more bits than are in use.
        Pfn::trusted((raw & Self::FRAME) >> Self::FRAME.trailing_zeros() & (Pfn::MAX.get() - 1))
    }

    /// How many entries the root has.
    fn root_entries() -> usize {
        1 << (Self::ADDRESS_BITS - root_shift::<Self>())
    }

    /// Which half an address lies in; `None` for one that is translated to nothing.
    #[inline]
    fn half(addr: VirtAddr) -> Option<Half> {
        match addr.get() {
            addr if addr < Self::USER_END => Some(Half::User),
            addr if addr >= Self::KERNEL_START && fits::<Self>(addr) => Some(Half::Kernel),
            _ => None,
        }
    }
}

/// Whether the address has no bits beyond those that are translated or repeated.
const fn fits<F: EntryFormat>(addr: u64) -> bool {
    F::KERNEL_START >> F::ADDRESS_BITS != 0 || addr >> F::ADDRESS_BITS == 0
}

/// log2 of the bytes that one entry of `level` covers.
#[inline]
pub(super) const fn shift(level: u32) -> u32 {
    PAGE_SHIFT + INDEX_BITS * level
}

pub(super) const fn root_shift<F: EntryFormat>() -> u32 {
    shift(F::LEVELS - 1)
}

/// The entry of a table of `level` that an address leads through.
#[inline]
pub(super) fn index<F: EntryFormat>(level: u32, addr: VirtAddr) -> usize {
    let bits = if level + 1 == F::LEVELS { F::ADDRESS_BITS - root_shift::<F>() } else { INDEX_BITS };
    (addr.get() >> shift(level)) as usize & ((1 << bits) - 1)
}

/// The first address that an entry of `level` for `addr` covers.
#[inline]
pub(super) fn floor(level: u32, addr: VirtAddr) -> VirtAddr {
    VirtAddr::from(addr.get() & !((1 << shift(level)) - 1))
}

/// The first address behind what an entry of `level` for `addr` covers, or the last address of all.
#[inline]
pub(super) fn next(level: u32, addr: VirtAddr) -> VirtAddr {
    floor(level, addr).checked_add(1 << shift(level)).unwrap_or(VirtAddr::MAX)
}

/// What an entry of `level` for `addr` covers; `None` if it reaches the very end of the addresses.
pub(super) fn span(level: u32, addr: VirtAddr) -> Option<VirtRange> {
    VirtRange::new(floor(level, addr), next(level, addr))
}

/// The marks of entries that hardware sees as absent. They are the same in all formats: bit 1 for swap, bit 2 for a guard; a frame that nobody
/// may touch has a bit that each format chooses, and is looked for first.
pub(super) mod absent {
    use super::{Pte, SwapEntry};

    const SWAP: u64 = 1 << 1;
    const GUARD: u64 = 1 << 2;
    const OFFSET_SHIFT: u32 = 9;
    const AREA_SHIFT: u32 = 59;

    /// `inverted` bits are written as their opposite.
    pub(in super::super) fn encode(pte: Pte, inverted: u64) -> u64 {
        match pte {
            Pte::Swap(entry) => {
                (entry.offset() << OFFSET_SHIFT | u64::from(entry.area()) << AREA_SHIFT) ^ inverted | SWAP
            }
            Pte::Guard => GUARD,
            Pte::None | Pte::Present(_) => 0,
        }
    }

    pub(in super::super) fn decode(raw: u64, inverted: u64) -> Pte {
        if raw & GUARD != 0 {
            return Pte::Guard;
        }
        if raw & SWAP == 0 {
            return Pte::None;
        }
        let plain = raw ^ inverted;
        let (area, offset) = ((plain >> AREA_SHIFT) as u8, plain >> OFFSET_SHIFT & SwapEntry::MAX_OFFSET);
        SwapEntry::new(area, offset).map_or(Pte::None, Pte::Swap)
    }

    static_assertions::const_assert_eq!(OFFSET_SHIFT + SwapEntry::AREA_SHIFT, AREA_SHIFT);
}

#[cfg(test)]
mod tests;
