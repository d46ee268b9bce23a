//! The two formats of x86 with entries of 64 bits: four levels of long mode, three of PAE.

use static_assertions::const_assert_eq;

use super::{EntryFormat, EntryKind, Half, Mapped, Pte, PteBits, RIGHTS, absent};
use crate::addr::{PAGE_SIZE_U64, Pfn, VirtRange};

// Intel SDM volume 3, chapter 5 (paging), tables 5-8 to 5-11 and 5-15 to 5-20; the numbers are of the bits.
const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// Write-through. With the page attribute table as Linux programs it, alone it means write-combining.
const PWT: u64 = 1 << 3;
/// Cache disable; with PWT strictly uncached.
const PCD: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// In levels above 0: a leaf. In level 0 it is part of the memory type, which stays 0 here.
const HUGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
/// The first of three bits for software.
const SPECIAL: u64 = 1 << 9;
const FRAME: u64 = ((1 << 52) - 1) & !0xfff;
const NO_EXEC: u64 = 1 << 63;
/// The lowest bit of a protection key's number, in long mode: so the key is 1, the first that Linux gives out. No thread has its data rights.
const KEY: u64 = 1 << 59;

// In entries that hardware sees as absent, all other bits are software's.
/// As Linux: the bit of GLOBAL.
const PROT_NONE: u64 = GLOBAL;
const ABSENT_READ: u64 = 1 << 52;
const ABSENT_GLOBAL: u64 = 1 << 53;

const_assert_eq!(PRESENT | WRITE | USER | ACCESSED | DIRTY, 0x67);
const_assert_eq!(FRAME, 0x000f_ffff_ffff_f000);
const_assert_eq!(HUGE | GLOBAL, 0x180);
const_assert_eq!(PWT | PCD, 0x18);
const_assert_eq!(NO_EXEC, 0x8000_0000_0000_0000);
const_assert_eq!(KEY, 0x0800_0000_0000_0000);
/// READ is the bit of PRESENT, and goes where the key is.
const KEY_TO_READ: u32 = KEY.trailing_zeros() - PRESENT.trailing_zeros();

/// x86-64 with four levels, of which the topmost is folded into the PGD.
///
/// What may be written may be read too. What user code may execute and nothing else has protection key 1, which a thread must have no rights of, as Linux
/// sets PKRU up; a processor without keys, or with CR4.PKE clear, lets it be read. UNCACHED and WRITE_COMBINING
/// need the page attribute table as Linux programs it. In absent entries the frame's bits are inverted, so that a processor that speculates
/// through them (L1TF) reaches no RAM.
///
/// # Linux
/// `arch/x86/include/asm/pgtable_64_types.h`, `pgtable-invert.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct X86_64;

/// x86 with physical address extension: three levels, the root with four entries, which hardware reads when it is switched to.
///
/// READ is implied by every other right: there are no keys. All else as [`X86_64`].
///
/// # Linux
/// `arch/x86/include/asm/pgtable-3level.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pae;

/// What [`PteBits`] says by the same bits: copied as a whole.
const SAME: PteBits = PteBits::WRITE
    .union(PteBits::USER)
    .union(PteBits::ACCESSED)
    .union(PteBits::DIRTY)
    .union(PteBits::SPECIAL);

const_assert_eq!(SAME.bits() as u64, WRITE | USER | ACCESSED | DIRTY | SPECIAL);
const_assert_eq!(PteBits::READ.bits() as u64, PRESENT);
const_assert_eq!(PteBits::GLOBAL.bits() as u64, GLOBAL);
const_assert_eq!(PteBits::WRITE_COMBINING.bits() as u64, PWT);
const_assert_eq!(PteBits::UNCACHED.bits() as u64, PCD);

#[inline]
fn kind(level: u32, raw: u64) -> EntryKind {
    match raw {
        0 => EntryKind::Empty,
        _ if level == 0 || raw & PRESENT == 0 || raw & HUGE != 0 => EntryKind::Leaf,
        _ => EntryKind::Table(Pfn::trusted((raw & FRAME) >> 12)),
    }
}

#[inline]
fn encode<const KEYS: bool>(level: u32, pte: Pte) -> u64 {
    let Pte::Present(Mapped { pfn, bits }) = pte else { return absent::encode(pte, FRAME) };
    let caching = bits & (PteBits::UNCACHED | PteBits::WRITE_COMBINING);
    let common = pfn.addr().get() & FRAME
        | u64::from((bits & SAME).bits())
        | u64::from(caching.bits())
        | if caching.contains(PteBits::UNCACHED) { PWT } else { 0 }
        | if level == 0 { 0 } else { HUGE }
        | if bits.contains(PteBits::EXEC) { 0 } else { NO_EXEC };
    if bits & (PteBits::READ | PteBits::PROT_NONE) == PteBits::READ {
        common | PRESENT | u64::from((bits & PteBits::GLOBAL).bits())
    } else {
        encode_unreadable::<KEYS>(common, bits)
    }
}

/// An entry that hardware does not see, or that says nothing of reading: what user code may execute alone has a key.
#[cold]
fn encode_unreadable<const KEYS: bool>(common: u64, bits: PteBits) -> u64 {
    if bits.contains(PteBits::PROT_NONE) || !bits.intersects(RIGHTS) {
        return encode_unseen(common, bits);
    }
    let needs_key = KEYS && bits.contains(PteBits::EXEC | PteBits::USER) && !bits.contains(PteBits::WRITE);
    common | PRESENT | u64::from((bits & PteBits::GLOBAL).bits()) | if needs_key { KEY } else { 0 }
}

/// An entry that keeps its frame while hardware does not see it.
fn encode_unseen(common: u64, bits: PteBits) -> u64 {
    let bit = |flag: PteBits, raw: u64| if bits.contains(flag) { raw } else { 0 };
    (common | PROT_NONE | bit(PteBits::READ, ABSENT_READ) | bit(PteBits::GLOBAL, ABSENT_GLOBAL)) ^ FRAME
}

#[inline]
fn decode(raw: u64) -> Pte {
    match raw & (PRESENT | PROT_NONE) {
        0 => absent::decode(raw, FRAME),
        PROT_NONE => decode_unseen(raw),
        state => frame_and(raw, PteBits::from_bits_retain((state & !(raw >> KEY_TO_READ)) as u32)),
    }
}

#[cold]
fn decode_unseen(raw: u64) -> Pte {
    let bit = |at: u64, flag: PteBits| if raw & at != 0 { flag } else { PteBits::empty() };
    let state = PteBits::PROT_NONE | bit(ABSENT_READ, PteBits::READ) | bit(ABSENT_GLOBAL, PteBits::GLOBAL);
    frame_and(raw ^ FRAME, state)
}

/// The frame, `state`, and what an entry says in all states.
#[inline]
fn frame_and(raw: u64, state: PteBits) -> Pte {
    let cache = match raw & (PCD | PWT) {
        0 => PteBits::empty(),
        PWT => PteBits::WRITE_COMBINING,
        _ => PteBits::UNCACHED,
    };
    let exec = if raw & NO_EXEC == 0 { PteBits::EXEC } else { PteBits::empty() };
    let bits = state | PteBits::from_bits_retain(raw as u32) & SAME | exec | cache;
    Pte::Present(Mapped { pfn: Pfn::trusted((raw & FRAME) >> 12), bits })
}

#[inline]
fn may_change(raw: u64) -> bool {
    raw & PRESENT != 0 && (raw & ACCESSED == 0 || raw & (WRITE | DIRTY) == WRITE)
}

/// An entry that leads to a table: rights are what the leaf says.
fn table(half: Half, table: Pfn) -> u64 {
    let user = match half {
        Half::User => USER,
        Half::Kernel => 0,
    };
    table.addr().get() & FRAME | PRESENT | WRITE | ACCESSED | user
}

impl EntryFormat for X86_64 {
    const NAME: &'static str = "x86-64";
    const FRAME: u64 = FRAME;
    const SEEN: u64 = PRESENT;
    const SETTLED: u64 = PRESENT | ACCESSED | DIRTY;
    const LEVELS: u32 = 4;
    const ADDRESS_BITS: u32 = 48;
    const KERNEL_START: u64 = 0xffff_8000_0000_0000;
    const USER_END: u64 = 0x0000_8000_0000_0000;
    // `TASK_SIZE_MAX` in `arch/x86/include/asm/page_64_types.h`: a return to an address behind the last page would fault in the kernel.
    const TASK_SIZE: u64 = Self::USER_END - PAGE_SIZE_U64;
    const HAS_EXECUTE_ONLY: bool = true;
    // Linux has 32 TiB from there on; one entry of the root is 512 GiB.
    const VMALLOC: VirtRange = VirtRange::between(0xffff_c900_0000_0000, 0xffff_c980_0000_0000);

    fn reserved(level: u32, raw: u64) -> u64 {
        match level {
            _ if raw & PRESENT == 0 => 0,
            3 => HUGE,
            2 if raw & HUGE != 0 => 0x3fff_e000,
            1 if raw & HUGE != 0 => 0x1f_e000,
            _ => 0,
        }
    }

    #[inline]
    fn kind(level: u32, raw: u64) -> EntryKind {
        kind(level, raw)
    }

    fn table(_: u32, half: Half, frame: Pfn) -> u64 {
        table(half, frame)
    }

    #[inline]
    fn encode(level: u32, pte: Pte) -> u64 {
        encode::<true>(level, pte)
    }

    #[inline]
    fn decode(_: u32, raw: u64) -> Pte {
        decode(raw)
    }

    #[inline]
    fn may_change(raw: u64) -> bool {
        may_change(raw)
    }
}

/// The bits of a present entry that PAE has no meaning for.
const PAE_RESERVED: u64 = 0x7ff0_0000_0000_0000;
/// And those of the root's entries.
const PAE_ROOT_RESERVED: u64 = 0xfff0_0000_0000_01e6;

impl EntryFormat for Pae {
    const NAME: &'static str = "PAE";
    const FRAME: u64 = FRAME;
    const SEEN: u64 = PRESENT;
    const SETTLED: u64 = PRESENT | ACCESSED | DIRTY;
    const LEVELS: u32 = 3;
    const ADDRESS_BITS: u32 = 32;
    const KERNEL_START: u64 = 0xc000_0000;
    const USER_END: u64 = 0xc000_0000;
    // `TASK_SIZE` in `arch/x86/include/asm/page_32_types.h`.
    const TASK_SIZE: u64 = Self::USER_END;
    const VMALLOC: VirtRange = VirtRange::between(0xf780_0000, 0xff80_0000);
    // CR3 has 32 bits.
    const ROOT_BELOW: u64 = 1 << 20;
    const ROOT_IS_CACHED: bool = true;

    fn reserved(level: u32, raw: u64) -> u64 {
        match level {
            _ if raw & PRESENT == 0 => 0,
            2 => PAE_ROOT_RESERVED,
            1 if raw & HUGE != 0 => PAE_RESERVED | 0x1f_e000,
            _ => PAE_RESERVED,
        }
    }

    #[inline]
    fn kind(level: u32, raw: u64) -> EntryKind {
        kind(level, raw)
    }

    fn table(level: u32, half: Half, frame: Pfn) -> u64 {
        // The root's entries know no rights.
        if level == 2 { frame.addr().get() & FRAME | PRESENT } else { table(half, frame) }
    }

    #[inline]
    fn encode(level: u32, pte: Pte) -> u64 {
        encode::<false>(level, pte)
    }

    #[inline]
    fn decode(_: u32, raw: u64) -> Pte {
        decode(raw)
    }

    #[inline]
    fn may_change(raw: u64) -> bool {
        may_change(raw)
    }
}
