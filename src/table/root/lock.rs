//! Locking what has the entry of an address.

use core::sync::atomic::Ordering::Acquire;

use super::walk::{Way, entry_of};
use super::{PageTable, reachable};
use crate::addr::{Pfn, VirtAddr};
use crate::phys::{Kmap, PageSource};
use crate::platform::{CpuPin, Window};
use crate::table::TableError;
use crate::table::format::{self, EntryFormat, EntryKind};
use crate::table::frame::{self, Frame, TableLock};
use crate::table::huge::{HugeRef, Place};
use crate::table::leaf::{Leaf, TableRef};

/// Where a walk along a range found its last leaf: the table above it, and the 1 GiB that this covers. The next walk begins there.
///
/// # Locking
/// Good for one walk along addresses whose tables nobody takes out, by the rule of the [room](crate::table): the table above goes no more than the
/// leaves.
pub(in crate::table) struct Cursor(Option<(VirtAddr, Pfn)>);

impl Cursor {
    pub(in crate::table) const fn start() -> Self {
        Self(None)
    }

    /// The table above the leaf of an address, if the walk has been there.
    #[inline]
    pub(in crate::table) fn table_for(&self, addr: VirtAddr) -> Option<Pfn> {
        self.0.filter(|&(base, _)| base == format::floor(2, addr)).map(|(_, table)| table)
    }

    #[inline]
    fn note(&mut self, addr: VirtAddr, table: Pfn) {
        self.0 = Some((format::floor(2, addr), table));
    }
}

/// What is done at a leaf once it is locked. One function for each sort, so that none is moved from where it was made.
pub(in crate::table) trait AtLeaf<'p, F: EntryFormat>: Sized {
    type Answer;

    /// Nothing is there before an address.
    fn absent(self, next: VirtAddr) -> Self::Answer;

    fn table(self, table: TableRef<'p, F>) -> Self::Answer;

    fn huge(self, huge: HugeRef<'p, F>) -> Self::Answer;

    #[inline]
    fn leaf(self, leaf: Leaf<'p, F>) -> Self::Answer {
        match leaf {
            Leaf::Absent { next } => self.absent(next),
            Leaf::Table(table) => self.table(table),
            Leaf::Huge(huge) => self.huge(huge),
        }
    }
}

/// Answers with the leaf.
pub(in crate::table) struct Whole;

impl<'p, F: EntryFormat> AtLeaf<'p, F> for Whole {
    type Answer = Leaf<'p, F>;

    #[inline]
    fn absent(self, next: VirtAddr) -> Leaf<'p, F> {
        Leaf::Absent { next }
    }

    #[inline]
    fn table(self, table: TableRef<'p, F>) -> Leaf<'p, F> {
        Leaf::Table(table)
    }

    #[inline]
    fn huge(self, huge: HugeRef<'p, F>) -> Leaf<'p, F> {
        Leaf::Huge(huge)
    }
}

/// How far the way to a leaf table leads through the direct map.
enum Above<'p> {
    /// To the table that it hangs on.
    Table(Window<'p>, Pfn),
    /// Nothing is there before an address.
    Absent(VirtAddr),
    OutOfReach,
}

impl<'a, S: PageSource, F: EntryFormat> PageTable<'a, S, F> {
    /// Locks what has the entry of `addr`: one leaf table or one huge entry, for as long as the answer lives.
    ///
    /// # Locking
    /// Takes the table's lock; a second table may be locked inside one, for two address spaces or for a move. See the [room](crate::table) on who may
    /// walk.
    ///
    /// # Panics
    /// If the platform does not map a table that it mapped before.
    ///
    /// # Linux
    /// `pte_offset_map_lock` in `include/linux/mm.h`, `pmd_trans_huge_lock`.
    #[inline]
    #[doc(alias = "pte_offset_map_lock")]
    pub fn lock<'p>(&self, pin: &'p CpuPin<'_>, addr: VirtAddr) -> Leaf<'p, F>
    where
        'a: 'p,
    {
        match self.above(addr) {
            Above::Table(table, pfn) => {
                self.lock_in(pin, addr, (table, pfn), Whole).unwrap_or_else(|_| self.lock_by_slots(pin, addr))
            }
            Above::Absent(next) => Leaf::Absent { next },
            Above::OutOfReach => self.lock_by_slots(pin, addr),
        }
    }

    /// As [`lock`](Self::lock), for who goes along a range; does there what there is to do.
    #[inline(always)]
    pub(in crate::table) fn lock_along<'p, A: AtLeaf<'p, F>>(
        &self,
        pin: &'p CpuPin<'_>,
        addr: VirtAddr,
        cursor: &mut Cursor,
        at: A,
    ) -> A::Answer
    where
        'a: 'p,
    {
        let known = cursor.table_for(addr);
        let known = known.and_then(|pfn| Some((Window::direct(self.source.platform(), pfn)?, pfn)));
        let above = match known {
            Some(above) => above,
            None => match self.above_anew(addr) {
                Above::Table(table, pfn) => {
                    cursor.note(addr, pfn);
                    (table, pfn)
                }
                Above::Absent(next) => return at.absent(next),
                Above::OutOfReach => return at.leaf(self.lock_by_slots(pin, addr)),
            },
        };
        match self.lock_in(pin, addr, above, at) {
            Ok(answer) => answer,
            Err(at) => at.leaf(self.lock_by_slots(pin, addr)),
        }
    }

    /// As [`above`](Self::above), once for each GiB of a range.
    #[inline(never)]
    fn above_anew<'p>(&self, addr: VirtAddr) -> Above<'p>
    where
        'a: 'p,
    {
        self.above(addr)
    }

    /// The table that the leaf table of an address hangs on.
    #[inline(always)]
    fn above<'p>(&self, addr: VirtAddr) -> Above<'p>
    where
        'a: 'p,
    {
        if F::half(addr).is_none() {
            return Above::Absent(after_gap::<F>(addr));
        }
        if frame::root_page(self.source.phys(), self.pgd).is_err() {
            return Above::Absent(format::next(1, addr));
        }
        let mut pfn = self.pgd;
        for level in (1..F::LEVELS).rev() {
            let Some(table) = Window::direct(self.source.platform(), pfn) else { return Above::OutOfReach };
            if level == 1 {
                return Above::Table(table, pfn);
            }
            let EntryKind::Table(next) = F::kind(level, entry_of::<F>(&table, level, addr).load(Acquire))
            else {
                return Above::Absent(format::next(level, addr));
            };
            match self.next_table(addr, next) {
                Ok(next) => pfn = next,
                Err(_) => break,
            }
        }
        Above::Absent(format::next(1, addr))
    }

    /// Locks what hangs on a table at an address. Nothing is done if it became something else meanwhile, or is out of reach of the direct map.
    #[inline(always)]
    fn lock_in<'p, A: AtLeaf<'p, F>>(
        &self,
        pin: &'p CpuPin<'_>,
        addr: VirtAddr,
        (above, pfn): (Window<'p>, Pfn),
        at: A,
    ) -> Result<A::Answer, A>
    where
        'a: 'p,
    {
        let raw = entry_of::<F>(&above, 1, addr).load(Acquire);
        let next = match F::kind(1, raw) {
            EntryKind::Table(next) => next,
            EntryKind::Empty => return Ok(at.absent(format::next(1, addr))),
            EntryKind::Leaf => {
                let way = Way { table: Kmap::direct(above), pfn, level: 1, raw };
                return match self.lock_huge(pin, addr, way) {
                    Some(huge) => Ok(at.huge(huge)),
                    None => Err(at),
                };
            }
        };
        let Some(table) = Window::direct(self.source.platform(), next) else { return Err(at) };
        let Ok(page) = frame::table_page(self.source.phys(), next) else {
            return Ok(at.absent(format::next(1, addr)));
        };
        let lock = TableLock::take(pin, page);
        if entry_of::<F>(&above, 1, addr).load(Acquire) != raw {
            return Err(at);
        }
        Ok(at.table(TableRef::new(Kmap::direct(table), lock, addr)))
    }

    /// As [`lock`](Self::lock), where a table may be out of reach of the direct map.
    #[cold]
    #[inline(never)]
    fn lock_by_slots<'p>(&self, pin: &'p CpuPin<'_>, addr: VirtAddr) -> Leaf<'p, F>
    where
        'a: 'p,
    {
        loop {
            let way = self.way(pin, addr, 1);
            if let Some(leaf) = self.lock_found(pin, addr, way) {
                return leaf;
            }
        }
    }

    /// Locks what a walk has found; `None` if it is something else by then.
    fn lock_found<'p>(
        &self,
        pin: &'p CpuPin<'_>,
        addr: VirtAddr,
        way: Result<Way<'p>, TableError>,
    ) -> Option<Leaf<'p, F>>
    where
        'a: 'p,
    {
        let Some(at) = reachable(way) else { return Some(Leaf::Absent { next: format::next(1, addr) }) };
        match (at.level, F::kind(at.level, at.raw)) {
            (1, EntryKind::Table(pfn)) => match self.open(pin, pfn) {
                Some(frame) => lock_leaf(pin, addr, &at, frame, pfn).map(Leaf::Table),
                None => Some(Leaf::Absent { next: format::next(1, addr) }),
            },
            (1, EntryKind::Leaf) => self.lock_huge(pin, addr, at).map(Leaf::Huge),
            (level, _) => Some(Leaf::Absent { next: format::next(level, addr) }),
        }
    }

    /// Locks a huge entry; `None` if it is none by then.
    #[inline(never)]
    fn lock_huge<'p>(&self, pin: &'p CpuPin<'_>, addr: VirtAddr, at: Way<'p>) -> Option<HugeRef<'p, F>>
    where
        'a: 'p,
    {
        let frame = Frame::of(self.source.phys(), at.table, at.pfn).ok()?;
        let lock = TableLock::take(pin, frame.page());
        let raw = frame.entry(format::index::<F>(1, addr)).load(Acquire);
        let place = Place { phys: self.source.phys(), pin, root: self.root_page() };
        (F::kind(1, raw) == EntryKind::Leaf).then(|| HugeRef::new(frame, lock, place, addr))
    }
}

/// Locks the leaf table that an entry led to; `None` if the entry is another one by then.
#[inline]
fn lock_leaf<'p, F: EntryFormat>(
    pin: &'p CpuPin<'_>,
    addr: VirtAddr,
    at: &Way<'p>,
    frame: Frame<'p>,
    pfn: Pfn,
) -> Option<TableRef<'p, F>> {
    let lock = TableLock::take(pin, frame.page());
    let raw = entry_of::<F>(&at.table, 1, addr).load(Acquire);
    (F::kind(1, raw) == EntryKind::Table(pfn)).then(|| TableRef::new(frame.into_kmap(), lock, addr))
}

/// The first address behind the gap between the halves, or the last of all.
fn after_gap<F: EntryFormat>(addr: VirtAddr) -> VirtAddr {
    if addr.get() < F::KERNEL_START { VirtAddr::from(F::KERNEL_START) } else { VirtAddr::MAX }
}
