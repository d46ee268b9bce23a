//! What hardware sees in the entries of page tables.
//!
//! Written from the manuals, and from them alone, so that it judges what the library writes: Intel SDM volume 3A, chapter 5 ("Paging");
//! AMD APM volume 2, chapter 5; RISC-V privileged architecture, section "Sv39".

use crate::addr::{PAGE_SHIFT, Pfn};

use crate::platform::Access;

/// Which page tables the machine walks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Mmu {
    /// Four levels, 48-bit addresses, as an x86 CPU in 64-bit mode with protection keys.
    #[default]
    X86_64,
    /// Three levels, 32-bit addresses, as an x86 CPU with physical address extension. The four entries of the top are remembered when they are
    /// used, not all of them when the root is loaded: AMD's CPUs do so.
    Pae,
    /// Three levels, 39-bit addresses, as a RISC-V CPU that updates the accessed and dirty bits (Svadu) and knows memory types (Svpbmt).
    Sv39,
}

/// What a translation allows, ANDed along the walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rights(u8);

impl Rights {
    const READ: Self = Self(1);
    const WRITE: Self = Self(2);
    const EXEC: Self = Self(4);
    const USER: Self = Self(8);
    pub(super) const ALL: Self = Self(15);

    fn when(self, condition: bool) -> Self {
        if condition { self } else { Self(0) }
    }

    fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether code in this mode may do that. The kernel may touch what is the user's (no SMAP; SUM set), and is bound by write protection
    /// (CR0.WP set).
    pub(super) fn allow(self, mode: Mode, access: Access) -> bool {
        let needed = match access {
            Access::Read => Self::READ,
            Access::Write => Self::WRITE,
            Access::Exec => Self::EXEC,
        };
        let needed = needed.or(Self::USER.when(mode == Mode::User));
        self.and(needed) == needed
    }
}

/// Who makes an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    User,
    Kernel,
}

/// An entry as hardware sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// It ends the walk.
    NotPresent,
    /// It leads to a table of the level below.
    Table { target: Pfn, rights: Rights },
    /// It maps a page of the level's size.
    Page { target: Pfn, rights: Rights, global: bool },
    /// Bits that must be zero are not.
    Corrupt,
}

impl Seen {
    /// Of a user's page with a key, PKRU allows no data access, by user code or the kernel: all keys but 0 are denied, as Linux has it for each thread.
    fn keyed(self, raw: u64) -> Self {
        match self {
            Self::Page { target, rights, global } if raw & x86::US != 0 && raw & x86::KEY != 0 => {
                Self::Page { target, rights: rights.and(Rights::EXEC.or(Rights::USER)), global }
            }
            other => other,
        }
    }
}

/// Bits of an x86 entry.
mod x86 {
    pub(super) const P: u64 = 1 << 0;
    pub(super) const RW: u64 = 1 << 1;
    pub(super) const US: u64 = 1 << 2;
    pub(super) const A: u64 = 1 << 5;
    pub(super) const D: u64 = 1 << 6;
    /// In the two middle levels; in the last one it is part of the memory type (PAT).
    pub(super) const PS: u64 = 1 << 7;
    pub(super) const G: u64 = 1 << 8;
    pub(super) const ADDR: u64 = 0x000f_ffff_ffff_f000;
    /// The number of a protection key, in 64-bit mode with CR4.PKE set.
    pub(super) const KEY: u64 = 0xf << 59;
    pub(super) const NX: u64 = 1 << 63;
    /// PAT in an entry that maps a large page.
    pub(super) const LARGE_PAT: u64 = 1 << 12;
    /// Reserved in PAE's entries, below NX.
    pub(super) const PAE_RESERVED: u64 = 0x7ff << 52;
    /// Reserved in PAE's four top entries, which have no rights, accessed bit or NX.
    pub(super) const PDPTE_RESERVED: u64 = RW | US | 0xf << 5 | NX;
}

/// Bits of an Sv39 entry.
mod sv39 {
    pub(super) const V: u64 = 1 << 0;
    pub(super) const R: u64 = 1 << 1;
    pub(super) const W: u64 = 1 << 2;
    pub(super) const X: u64 = 1 << 3;
    pub(super) const U: u64 = 1 << 4;
    pub(super) const G: u64 = 1 << 5;
    pub(super) const A: u64 = 1 << 6;
    pub(super) const D: u64 = 1 << 7;
    pub(super) const PPN_SHIFT: u32 = 10;
    pub(super) const PPN_BITS: u64 = (1 << 44) - 1;
    /// Bits 54 to 60, and N (Svnapot), which this machine does not have.
    pub(super) const RESERVED: u64 = 0x7f << 54 | 1 << 63;
    /// The memory type; its highest value is reserved.
    pub(super) const PBMT: u64 = 3 << 61;
}

/// log2 of the bytes that an entry of a level covers: 12, 21, 30 and 39 in all three formats.
pub(super) const fn shift(level: u8) -> u32 {
    PAGE_SHIFT + 9 * level as u32
}

impl Mmu {
    /// The level of the root; that of the entries that map 4 KiB is 0.
    pub(super) fn top(self) -> u8 {
        match self {
            Self::X86_64 => 3,
            Self::Pae | Self::Sv39 => 2,
        }
    }

    /// Whether the address can be translated at all: whether the bits that no table is indexed by are what they must be.
    pub(super) fn is_canonical(self, addr: u64) -> bool {
        let is_extended = |bits: u32| addr == ((addr << (64 - bits)) as i64 >> (64 - bits)) as u64;
        match self {
            Self::X86_64 => is_extended(48),
            Self::Pae => addr >> 32 == 0,
            Self::Sv39 => is_extended(39),
        }
    }

    /// The place of an address's entry in a table of a level.
    pub(super) fn index(self, addr: u64, level: u8) -> usize {
        (addr >> shift(level)) as usize % 512
    }

    /// What hardware sees in an entry of a level.
    pub(super) fn see(self, level: u8, raw: u64) -> Seen {
        match self {
            Self::X86_64 => see_x86(level, raw, 0).keyed(raw),
            Self::Pae if raw & x86::P == 0 => Seen::NotPresent,
            Self::Pae if level == 2 => see_pdpte(raw),
            Self::Pae => see_x86(level, raw, x86::PAE_RESERVED),
            Self::Sv39 => see_sv39(level, raw),
        }
    }

    /// The bits that hardware sets in an entry that leads to a table.
    pub(super) fn used_table(self, level: u8) -> u64 {
        match self {
            Self::X86_64 => x86::A,
            Self::Pae if level < 2 => x86::A,
            Self::Pae | Self::Sv39 => 0,
        }
    }

    /// The bits that hardware sets in an entry that maps a page.
    pub(super) fn used_page(self, access: Access) -> u64 {
        let (accessed, dirty) = match self {
            Self::X86_64 | Self::Pae => (x86::A, x86::D),
            Self::Sv39 => (sv39::A, sv39::D),
        };
        if access == Access::Write { accessed | dirty } else { accessed }
    }

    /// Whether an entry that maps a page has the dirty bit.
    pub(super) fn is_dirty(self, raw: u64) -> bool {
        let dirty = match self {
            Self::X86_64 | Self::Pae => x86::D,
            Self::Sv39 => sv39::D,
        };
        raw & dirty != 0
    }
}

fn see_x86(level: u8, raw: u64, reserved: u64) -> Seen {
    if raw & x86::P == 0 {
        return Seen::NotPresent;
    }
    let is_large = (1..=2).contains(&level) && raw & x86::PS != 0;
    let below = (1 << shift(level)) - 1;
    // Of the address, a large page's entry has the bits above its size; PAT is among those below.
    let reserved = reserved | if is_large { x86::ADDR & below & !x86::LARGE_PAT } else { 0 };
    if raw & reserved != 0 || (level == 3 && raw & x86::PS != 0) {
        return Seen::Corrupt;
    }
    let rights = Rights::READ
        .or(Rights::WRITE.when(raw & x86::RW != 0))
        .or(Rights::USER.when(raw & x86::US != 0))
        .or(Rights::EXEC.when(raw & x86::NX == 0));
    let frame = |mask| Pfn::new((raw & mask) >> PAGE_SHIFT);
    match (is_large || level == 0, frame(x86::ADDR), frame(x86::ADDR & !below)) {
        (true, _, Some(target)) => Seen::Page { target, rights, global: raw & x86::G != 0 },
        (false, Some(target), _) => Seen::Table { target, rights },
        _ => Seen::Corrupt,
    }
}

fn see_pdpte(raw: u64) -> Seen {
    match Pfn::new((raw & x86::ADDR) >> PAGE_SHIFT) {
        Some(target) if raw & (x86::PDPTE_RESERVED | x86::PAE_RESERVED) == 0 => {
            Seen::Table { target, rights: Rights::ALL }
        }
        _ => Seen::Corrupt,
    }
}

fn see_sv39(level: u8, raw: u64) -> Seen {
    if raw & sv39::V == 0 {
        return Seen::NotPresent;
    }
    let number = raw >> sv39::PPN_SHIFT & sv39::PPN_BITS;
    let is_page = raw & (sv39::R | sv39::W | sv39::X) != 0;
    let is_bad = raw & sv39::RESERVED != 0
        || raw & sv39::PBMT == sv39::PBMT
        || raw & (sv39::R | sv39::W) == sv39::W
        || (is_page && number % (1 << (9 * u32::from(level))) != 0)
        || (!is_page && (level == 0 || raw & (sv39::U | sv39::A | sv39::D | sv39::PBMT) != 0));
    match Pfn::new(number) {
        Some(target) if !is_bad && is_page => {
            let rights = Rights::READ
                .when(raw & sv39::R != 0)
                .or(Rights::WRITE.when(raw & sv39::W != 0))
                .or(Rights::EXEC.when(raw & sv39::X != 0))
                .or(Rights::USER.when(raw & sv39::U != 0));
            Seen::Page { target, rights, global: raw & sv39::G != 0 }
        }
        Some(target) if !is_bad => Seen::Table { target, rights: Rights::ALL },
        _ => Seen::Corrupt,
    }
}
