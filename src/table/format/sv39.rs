//! RISC-V's three-level format.

use static_assertions::const_assert_eq;

use super::{EntryFormat, EntryKind, Half, Mapped, Pte, PteBits, RIGHTS, absent};
use crate::addr::{Pfn, VirtRange};

// The RISC-V Instruction Set Manual, volume II, "Sv39: Page-Based 39-bit Virtual-Memory System"; the numbers are of the bits.
const VALID: u64 = 1 << 0;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 2;
const EXEC: u64 = 1 << 3;
const USER: u64 = 1 << 4;
const GLOBAL: u64 = 1 << 5;
const ACCESSED: u64 = 1 << 6;
const DIRTY: u64 = 1 << 7;
/// The first of two bits for software.
const SPECIAL: u64 = 1 << 8;
const FRAME_SHIFT: u32 = 10;
const FRAME: u64 = ((1 << 44) - 1) << FRAME_SHIFT;
/// Svpbmt: not cached, idempotent, weakly ordered.
const NON_CACHEABLE: u64 = 1 << 61;
/// Svpbmt: not cached, strongly ordered.
const IO: u64 = 1 << 62;
const RESERVED: u64 = 0x7f << 54;

// In entries that are not valid all other bits are software's.
/// As Linux: the bit of GLOBAL.
const PROT_NONE: u64 = GLOBAL;
const ABSENT_GLOBAL: u64 = 1 << 54;

const_assert_eq!(VALID | READ | WRITE | EXEC, 0xf);
const_assert_eq!(USER | GLOBAL | ACCESSED | DIRTY, 0xf0);
const_assert_eq!(FRAME, 0x003f_ffff_ffff_fc00);
const_assert_eq!(RESERVED | NON_CACHEABLE | IO, 0x7fc0_0000_0000_0000);

/// RISC-V Sv39: three levels, 39 bits.
///
/// What may be written may be read too. UNCACHED and WRITE_COMBINING need the extension Svpbmt.
///
/// # Linux
/// `arch/riscv/include/asm/pgtable-bits.h`, `pgtable-64.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sv39;

/// The frame of an entry. The format has 44 bits for it, of which 40 are in use.
#[inline]
fn frame(raw: u64) -> Pfn {
    Pfn::trusted(((raw & FRAME) >> FRAME_SHIFT) & (Pfn::MAX.get() - 1))
}

impl EntryFormat for Sv39 {
    const NAME: &'static str = "Sv39";
    const FRAME: u64 = FRAME;
    const SEEN: u64 = VALID;
    const HAS_EXECUTE_ONLY: bool = true;
    const SETTLED: u64 = VALID | ACCESSED | DIRTY;
    const LEVELS: u32 = 3;
    const ADDRESS_BITS: u32 = 39;
    const KERNEL_START: u64 = 0xffff_ffc0_0000_0000;
    const USER_END: u64 = 0x40_0000_0000;
    // `TASK_SIZE_64` in `arch/riscv/include/asm/pgtable.h`: half of what the root's entries cover.
    const TASK_SIZE: u64 = Self::USER_END;
    // Where Linux has it, with 64 GiB; each entry of the root is 1 GiB.
    const VMALLOC: VirtRange = VirtRange::between(0xffff_ffc8_0000_0000, 0xffff_ffc9_0000_0000);

    fn reserved(level: u32, raw: u64) -> u64 {
        let leaf = raw & (READ | WRITE | EXEC) != 0;
        match level {
            _ if raw & VALID == 0 => 0,
            // The way to a table says nothing of its own.
            _ if !leaf => RESERVED | NON_CACHEABLE | IO | USER | ACCESSED | DIRTY,
            0 => RESERVED,
            level => RESERVED | ((1 << (9 * level)) - 1) << FRAME_SHIFT,
        }
    }

    #[inline]
    fn kind(level: u32, raw: u64) -> EntryKind {
        match raw {
            0 => EntryKind::Empty,
            _ if level == 0 || raw & (VALID | READ | WRITE | EXEC) != VALID => EntryKind::Leaf,
            _ => EntryKind::Table(frame(raw)),
        }
    }

    fn table(_: u32, _: Half, table: Pfn) -> u64 {
        table.get() << FRAME_SHIFT | VALID
    }

    #[inline]
    fn encode(_: u32, pte: Pte) -> u64 {
        let Pte::Present(Mapped { pfn, bits }) = pte else { return absent::encode(pte, 0) };
        let bit = |flag: PteBits, raw: u64| if bits.contains(flag) { raw } else { 0 };
        let common = pfn.get() << FRAME_SHIFT
            | bit(PteBits::EXEC, EXEC)
            | bit(PteBits::USER, USER)
            | bit(PteBits::ACCESSED, ACCESSED)
            | bit(PteBits::DIRTY, DIRTY)
            | bit(PteBits::SPECIAL, SPECIAL)
            | bit(PteBits::UNCACHED, IO)
            | bit(PteBits::WRITE_COMBINING, NON_CACHEABLE);
        if bits.contains(PteBits::PROT_NONE) || !bits.intersects(RIGHTS) {
            let rights = bit(PteBits::READ, READ) | bit(PteBits::WRITE, WRITE);
            return common | rights | PROT_NONE | bit(PteBits::GLOBAL, ABSENT_GLOBAL);
        }
        // To write without reading is reserved.
        common
            | VALID
            | bit(PteBits::READ, READ)
            | bit(PteBits::WRITE, READ | WRITE)
            | bit(PteBits::GLOBAL, GLOBAL)
    }

    #[inline]
    fn decode(_: u32, raw: u64) -> Pte {
        let bit = |at: u64, flag: PteBits| if raw & at != 0 { flag } else { PteBits::empty() };
        let state = match raw & (VALID | PROT_NONE) {
            0 => return absent::decode(raw, 0),
            PROT_NONE => PteBits::PROT_NONE | bit(ABSENT_GLOBAL, PteBits::GLOBAL),
            _ => bit(GLOBAL, PteBits::GLOBAL),
        };
        let bits = state
            | bit(READ, PteBits::READ)
            | bit(WRITE, PteBits::WRITE)
            | bit(EXEC, PteBits::EXEC)
            | bit(USER, PteBits::USER)
            | bit(ACCESSED, PteBits::ACCESSED)
            | bit(DIRTY, PteBits::DIRTY)
            | bit(SPECIAL, PteBits::SPECIAL)
            | bit(IO, PteBits::UNCACHED)
            | bit(NON_CACHEABLE, PteBits::WRITE_COMBINING);
        Pte::Present(Mapped { pfn: frame(raw), bits })
    }

    #[inline]
    fn may_change(raw: u64) -> bool {
        raw & VALID != 0 && (raw & ACCESSED == 0 || raw & (WRITE | DIRTY) == WRITE)
    }
}
