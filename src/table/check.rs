//! Recounting a tree of tables from scratch.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use super::format::{self, ENTRIES, EntryFormat, EntryKind, Half, Pte};
use super::frame::{self, Frame};
use super::root::PageTable;
use crate::addr::{PageOrder, Pfn, VirtAddr};
use crate::phys::PageSource;
use crate::platform::{CpuPin, Platform};

/// What is wrong with a tree of tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TableCheckError {
    /// An entry leads to a frame that is no table, or that cannot be reached.
    NotATable(Pfn),
    /// Two entries lead to one table.
    Twice(Pfn),
    /// A table notes another number of entries in use than it has.
    WrongUsed(Pfn),
    /// The root notes another number of tables than there are.
    WrongTables(u32),
    /// An entry has bits that the format has no meaning for, or none that it writes.
    BadEntry(VirtAddr),
    /// An entry of the root lies outside the format's addresses.
    OutsideGeometry(usize),
    /// A huge entry has no table kept for its split.
    NothingKept(Pfn),
    /// A table that is kept for a split is in use.
    KeptInUse(Pfn),
    /// An area of the kernel's half is out of order, or not mapped as a whole.
    BadArea(VirtAddr),
    /// Something is mapped among the areas of the kernel's half and belongs to none.
    OutsideAreas(VirtAddr),
}

impl core::fmt::Display for TableCheckError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotATable(pfn) => write!(f, "an entry leads to frame {pfn:#x}, which is no table"),
            Self::Twice(pfn) => write!(f, "two entries lead to table {pfn:#x}"),
            Self::WrongUsed(pfn) => write!(f, "table {pfn:#x} notes a wrong number of entries"),
            Self::WrongTables(count) => write!(f, "the root's number of tables is not {count}"),
            Self::BadEntry(addr) => write!(f, "the entry of {addr:#x} is none of the format's"),
            Self::OutsideGeometry(index) => write!(f, "entry {index} of the root has no address"),
            Self::NothingKept(pfn) => write!(f, "table {pfn:#x} keeps too few tables for its huge entries"),
            Self::BadArea(addr) => write!(f, "the area at {addr:#x} is out of order or not mapped"),
            Self::OutsideAreas(addr) => write!(f, "{addr:#x} is mapped, and lies in no area"),
            Self::KeptInUse(pfn) => write!(f, "table {pfn:#x} is kept and in use"),
        }
    }
}

impl core::error::Error for TableCheckError {}

/// What was counted below a table.
#[derive(Clone, Copy, Default)]
struct Counted {
    tables: u32,
}

impl<S: PageSource, F: EntryFormat> PageTable<'_, S, F> {
    /// Recounts everything: each table is marked as one, is reached once, and has as many entries as it notes; every entry is one that the format writes;
    /// every huge entry can be split.
    ///
    /// # Errors
    /// [`TableCheckError`]: the first thing found wrong.
    ///
    /// # Locking
    /// Takes none: nobody changes the tables meanwhile.
    pub fn check(&self) -> Result<(), TableCheckError> {
        let pin = self.source.platform().pin();
        let counted = self.check_table(&pin, self.pgd, F::LEVELS - 1, VirtAddr::ZERO);
        self.forget_marks(&pin, self.pgd, F::LEVELS - 1);
        let counted = counted?;
        match self.tables() == counted.tables {
            true => Ok(()),
            false => Err(TableCheckError::WrongTables(counted.tables)),
        }
    }

    /// Shows every table of the tree to `each`: the root, those below it, and those that are kept for splits. Those of another's kernel half are not
    /// of this tree.
    ///
    /// # Locking
    /// As [`check`](Self::check), which found nothing wrong.
    pub fn visit_tables(&self, mut each: impl FnMut(Pfn)) {
        let pin = self.source.platform().pin();
        self.visit_below(&pin, (self.pgd, F::LEVELS - 1, VirtAddr::ZERO), &mut each);
    }

    fn visit_below(
        &self,
        pin: &CpuPin<'_>,
        (pfn, level, base): (Pfn, u32, VirtAddr),
        each: &mut impl FnMut(Pfn),
    ) {
        let Ok(frame) = Frame::open(self.source.phys(), pin, pfn) else { return };
        each(pfn);
        frame::kept_tables(self.source.phys(), frame.page()).for_each(&mut *each);
        for index in (0..ENTRIES).filter(|_| level != 0) {
            let way = F::kind(level, frame.entry(index).load(Acquire));
            let (EntryKind::Table(next), Some(addr)) = (way, self.addr_of(level, base, index)) else {
                continue;
            };
            if self.is_own(level, addr) && !self.is_others(level, next) {
                self.visit_below(pin, (next, level - 1, addr), each);
            }
        }
    }

    /// Checks a table of `level` that covers what begins at `base`, and all below it.
    fn check_table(
        &self,
        pin: &CpuPin<'_>,
        pfn: Pfn,
        level: u32,
        base: VirtAddr,
    ) -> Result<Counted, TableCheckError> {
        let frame = Frame::open(self.source.phys(), pin, pfn).map_err(|_| TableCheckError::NotATable(pfn))?;
        if frame::note_seen(frame.page()) {
            return Err(TableCheckError::Twice(pfn));
        }
        let (mut used, mut huge, mut counted) = (0, 0, Counted::default());
        for index in 0..ENTRIES {
            let raw = frame.entry(index).load(Acquire);
            if raw == 0 {
                continue;
            }
            let addr = self.addr_of(level, base, index).ok_or(TableCheckError::OutsideGeometry(index))?;
            if raw & F::reserved(level, raw) != 0 {
                return Err(TableCheckError::BadEntry(addr));
            }
            let own = self.is_own(level, addr);
            used += u32::from(own);
            match F::kind(level, raw) {
                EntryKind::Table(next) if own && self.is_others(level, next) => {}
                EntryKind::Table(next) if own => {
                    let below = self.check_table(pin, next, level - 1, addr)?;
                    counted.tables += below.tables + 1;
                }
                EntryKind::Leaf if level < 2 => {
                    huge += level;
                    let pte = F::decode(level, raw);
                    let aligned =
                        level == 0 || pte.mapped().is_none_or(|at| at.pfn.is_aligned(PageOrder::MAX));
                    if pte == Pte::None || !aligned {
                        return Err(TableCheckError::BadEntry(addr));
                    }
                }
                _ => {}
            }
        }
        if used != frame.used() {
            return Err(TableCheckError::WrongUsed(pfn));
        }
        let kept = self.check_kept(&frame)?;
        if kept < huge {
            return Err(TableCheckError::NothingKept(pfn));
        }
        counted.tables += kept;
        Ok(counted)
    }

    /// Checks the tables that one keeps for splits; how many there are.
    fn check_kept(&self, frame: &Frame<'_>) -> Result<u32, TableCheckError> {
        let (mut count, mut at) = (0, frame.page().kept_table());
        while let Some(pfn) = at {
            let page =
                frame::table_page(self.source.phys(), pfn).map_err(|_| TableCheckError::NotATable(pfn))?;
            if page.table_word().load(Relaxed) != 0 {
                return Err(TableCheckError::KeptInUse(pfn));
            }
            count += 1;
            at = page.kept_table();
        }
        Ok(count)
    }

    /// The first address that an entry covers; `None` if it has none.
    fn addr_of(&self, level: u32, base: VirtAddr, index: usize) -> Option<VirtAddr> {
        let inside = VirtAddr::from(base.get() | (index as u64) << format::shift(level));
        let sign = 1_u64.checked_shl(F::ADDRESS_BITS - 1)?;
        let extended = match F::half(inside) {
            // The upper half repeats its highest bit.
            None if inside.get() & sign != 0 => VirtAddr::from(inside.get() | F::KERNEL_START),
            _ => inside,
        };
        F::half(extended).map(|_| extended)
    }

    /// Whether an entry of this level is the tree's, and not another's kernel half.
    fn is_own(&self, level: u32, addr: VirtAddr) -> bool {
        let is_shared = || !self.root_page().is_some_and(frame::owns_kernel);
        !(level + 1 == F::LEVELS && F::half(addr) == Some(Half::Kernel) && is_shared())
    }

    /// Whether a table is the one that a kernel booted with, and is not looked into.
    fn is_others(&self, level: u32, table: Pfn) -> bool {
        level + 1 == F::LEVELS
            && frame::table_page(self.source.phys(), table).is_err()
            && self.root_page().is_some_and(frame::is_adopted)
    }

    /// Forgets which tables were seen.
    fn forget_marks(&self, pin: &CpuPin<'_>, pfn: Pfn, level: u32) {
        let Ok(frame) = Frame::open(self.source.phys(), pin, pfn) else { return };
        if !frame::forget_seen(frame.page()) || level == 0 {
            return;
        }
        for entry in frame.entries() {
            if let EntryKind::Table(next) = F::kind(level, entry.load(Relaxed)) {
                self.forget_marks(pin, next, level - 1);
            }
        }
    }
}
