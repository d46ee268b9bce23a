//! The way down from a root.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Acquire;

use super::{Cursor, PageTable, reachable};
use crate::addr::{Pfn, VirtAddr};
use crate::phys::{Kmap, PageSource};
use crate::platform::{CpuPin, Window};
use crate::table::TableError;
use crate::table::format::{self, ENTRIES, EntryFormat, EntryKind};
use crate::table::frame::{self, Frame};

/// How far a walk came: a table, its level, and its entry for the address.
pub(super) struct Way<'p> {
    pub(super) table: Kmap<'p>,
    pub(super) pfn: Pfn,
    pub(super) level: u32,
    pub(super) raw: u64,
}

/// The same with the table's page.
pub(in crate::table) struct Reached<'p> {
    pub(in crate::table) frame: Frame<'p>,
    pub(in crate::table) level: u32,
    pub(in crate::table) raw: u64,
}

impl<'a, S: PageSource, F: EntryFormat> PageTable<'a, S, F> {
    /// Goes down until a table of level `to`, or as far as the way leads.
    #[inline]
    pub(in crate::table) fn reach<'p>(
        &self,
        pin: &'p CpuPin<'_>,
        addr: VirtAddr,
        to: u32,
    ) -> Result<Reached<'p>, TableError>
    where
        'a: 'p,
    {
        self.reached(self.way(pin, addr, to)?)
    }

    pub(super) fn reached<'p>(&self, way: Way<'p>) -> Result<Reached<'p>, TableError>
    where
        'a: 'p,
    {
        let frame = Frame::of(self.source.phys(), way.table, way.pfn)?;
        Ok(Reached { frame, level: way.level, raw: way.raw })
    }

    /// The table above the leaf of an address that a walk along a range has come to.
    ///
    /// # Errors
    /// [`TableError::NotATable`], [`TableError::Unreachable`]; [`TableError::OutOfRange`] if it is not there.
    #[inline]
    pub(in crate::table) fn reach_along<'p>(
        &self,
        pin: &'p CpuPin<'_>,
        addr: VirtAddr,
        cursor: &Cursor,
    ) -> Result<Frame<'p>, TableError>
    where
        'a: 'p,
    {
        if let Some(above) = cursor.table_for(addr) {
            return Frame::open(self.source.phys(), pin, above);
        }
        let at = self.reach(pin, addr, 1)?;
        if at.level == 1 { Ok(at.frame) } else { Err(TableError::OutOfRange) }
    }

    /// As [`reach`](Self::reach), without a look at the pages of the tables on the way: that the root is one says what they are.
    #[inline(always)]
    pub(super) fn way<'p>(&self, pin: &'p CpuPin<'_>, addr: VirtAddr, to: u32) -> Result<Way<'p>, TableError>
    where
        'a: 'p,
    {
        frame::root_page(self.source.phys(), self.pgd)?;
        self.way_from(pin, addr, to, (F::LEVELS - 1, self.pgd))
    }

    /// As [`way`](Self::way), from a table of the tree on.
    #[inline(always)]
    pub(super) fn way_from<'p>(
        &self,
        pin: &'p CpuPin<'_>,
        addr: VirtAddr,
        to: u32,
        (from, mut pfn): (u32, Pfn),
    ) -> Result<Way<'p>, TableError>
    where
        'a: 'p,
    {
        for level in (to..=from).rev() {
            let Some(table) = Window::direct(self.source.platform(), pfn) else {
                return self.way_by_slots(pin, addr, to, (level, pfn));
            };
            let raw = entry_of::<F>(&table, level, addr).load(Acquire);
            match F::kind(level, raw) {
                EntryKind::Table(next) if level > to => pfn = self.next_table(addr, next)?,
                _ => return Ok(Way { table: Kmap::direct(table), pfn, level, raw }),
            }
        }
        Err(TableError::OutOfRange)
    }

    /// Goes on from a table that is out of reach of the direct map.
    #[cold]
    #[inline(never)]
    pub(super) fn way_by_slots<'p>(
        &self,
        pin: &'p CpuPin<'_>,
        addr: VirtAddr,
        to: u32,
        (mut level, mut pfn): (u32, Pfn),
    ) -> Result<Way<'p>, TableError>
    where
        'a: 'p,
    {
        loop {
            let table = self.window(pin, pfn)?;
            let raw = entry_of::<F>(&table, level, addr).load(Acquire);
            match F::kind(level, raw) {
                EntryKind::Table(next) if level > to => pfn = self.next_table(addr, next)?,
                _ => return Ok(Way { table, pfn, level, raw }),
            }
            level -= 1;
        }
    }

    /// The table that an entry leads to. In the kernel's half it may be one of others.
    #[inline]
    pub(super) fn next_table(&self, addr: VirtAddr, next: Pfn) -> Result<Pfn, TableError> {
        if addr.get() >= F::USER_END {
            frame::table_page(self.source.phys(), next)?;
        }
        Ok(next)
    }

    /// Brings a frame that is a table within reach.
    #[inline]
    pub(super) fn window<'p>(&self, pin: &'p CpuPin<'_>, pfn: Pfn) -> Result<Kmap<'p>, TableError>
    where
        'a: 'p,
    {
        let source = self.source;
        source.phys().kmap_on(source.platform(), pin, pfn).map_err(|_| TableError::Unreachable)
    }

    /// Brings a leaf table within reach; `None` if it is none of ours.
    #[inline]
    pub(super) fn open<'p>(&self, pin: &'p CpuPin<'_>, pfn: Pfn) -> Option<Frame<'p>>
    where
        'a: 'p,
    {
        reachable(self.window(pin, pfn).and_then(|kmap| Frame::of(self.source.phys(), kmap, pfn)))
    }
}

/// The entry of a table of `level` that an address leads through. Its loads are Acquire, which pairs with the release of `install`.
#[inline]
pub(super) fn entry_of<'w, F: EntryFormat>(
    table: &'w Window<'_>,
    level: u32,
    addr: VirtAddr,
) -> &'w AtomicU64 {
    &table.entries()[format::index::<F>(level, addr) % ENTRIES]
}
