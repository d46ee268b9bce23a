//! A root and the ways from it.

mod lock;
mod walk;

use core::marker::PhantomData;
use core::sync::atomic::Ordering::{Acquire, Release};

use super::TableError;
use super::format::{self, EntryFormat, EntryKind, Half, Pte};
use super::frame::{self, Frame, TableLock};
use super::gather::TlbGather;
use super::huge::PreparedTable;
use super::range::Found;
use super::{HUGE_SIZE, Mapped};
use crate::addr::{PageOrder, Pfn, VirtAddr};
use crate::flags::GfpFlags;
use crate::phys::{Page, PageSource};
use crate::platform::{CpuPin, Platform};
use crate::sync::atomic::Ordering::Relaxed;
pub(super) use lock::{AtLeaf, Cursor, Whole};
pub(super) use walk::Reached;

/// The page tables of an address space, by their root.
///
/// A handle that is copied freely: the tables are freed by [`destroy`](Self::destroy), not by its end. A copy that outlives them finds nothing.
///
/// # Linux
/// `pgd_t *` of `struct mm_struct`.
#[doc(alias = "pgd_t")]
pub struct PageTable<'a, S, F> {
    pub(super) source: &'a S,
    pub(super) pgd: Pfn,
    format: PhantomData<F>,
}

impl<S, F> Clone for PageTable<'_, S, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, F> Copy for PageTable<'_, S, F> {}

impl<S, F> core::fmt::Debug for PageTable<'_, S, F> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let format = core::any::type_name::<F>();
        f.debug_struct("PageTable").field("pgd", &self.pgd).field("format", &format).finish()
    }
}

impl<'a, S: PageSource, F: EntryFormat> PageTable<'a, S, F> {
    /// Makes a root with nothing in the user's half. The kernel's half is that of `kernel_half`, another root: what is behind the entries that
    /// this has now is shared. Without one it is empty, and the new root's own.
    ///
    /// # Errors
    /// [`TableError::OutOfMemory`], [`TableError::NotATable`], [`TableError::Unreachable`].
    ///
    /// # Linux
    /// `pgd_alloc` in `arch/x86/mm/pgtable.c`.
    #[doc(alias = "pgd_alloc")]
    pub fn create(source: &'a S, kernel_half: Option<Pfn>) -> Result<Self, TableError> {
        let table = Self { source, pgd: alloc_root::<S, F>(source)?, format: PhantomData };
        match table.fill_root(kernel_half) {
            Ok(()) => Ok(table),
            Err(error) => {
                table.free_all();
                Err(error)
            }
        }
    }

    /// The tables with a root that [`create`](Self::create) made, with the same source and format.
    pub fn at(source: &'a S, pgd: Pfn) -> Self {
        Self { source, pgd, format: PhantomData }
    }

    /// The root, as the platform's `switch_tables` wants it.
    pub fn pgd(&self) -> Pfn {
        self.pgd
    }

    /// Where the tables come from.
    pub fn source(&self) -> &'a S {
        self.source
    }

    /// How many tables hang on the root, those that are kept for splits included, itself not counted.
    ///
    /// # Linux
    /// `mm_pgtables_bytes` in `include/linux/mm.h`, in tables.
    #[doc(alias = "mm_pgtables_bytes")]
    pub fn tables(&self) -> u32 {
        self.root_page().map_or(0, |page| page.table_count().load(Relaxed))
    }

    /// Reads the entry of `addr` without a lock, be it small or huge; which may be another one the next moment.
    pub fn get(&self, pin: &CpuPin<'_>, addr: VirtAddr) -> Pte {
        self.find(pin, addr).pte
    }

    /// As [`get`](Self::get), with what the entry covers.
    pub fn find(&self, pin: &CpuPin<'_>, addr: VirtAddr) -> Found {
        let small = |pte| Found { addr: addr.page_floor(), pte, order: PageOrder::ZERO };
        let found = F::half(addr).and_then(|_| reachable(self.way(pin, addr, 0)));
        let Some(at) = found else { return small(Pte::None) };
        match (at.level, F::kind(at.level, at.raw)) {
            (0, _) => small(F::decode(0, at.raw)),
            (1, EntryKind::Leaf) => {
                Found { addr: format::floor(1, addr), pte: F::decode(1, at.raw), order: PageOrder::MAX }
            }
            _ => small(Pte::None),
        }
    }

    /// Makes the tables that lead to the entry of `addr`, the leaf table included. Nothing is to do where a huge entry is.
    ///
    /// # Errors
    /// [`TableError::OutOfMemory`], with what tables there were; [`TableError::OutOfRange`]; [`TableError::Occupied`] if the way ends in an
    /// entry larger than 2 MiB.
    ///
    /// # Locking
    /// Allocates with none held, and so is called with none.
    ///
    /// # Linux
    /// `__pte_alloc` and `__pmd_alloc` in `mm/memory.c`.
    #[doc(alias = "pte_alloc")]
    pub fn ensure(&self, addr: VirtAddr, gfp: GfpFlags) -> Result<(), TableError> {
        self.ensure_level(addr, 0, gfp)
    }

    /// Makes the tables down to the one of `level`.
    pub(super) fn ensure_level(&self, addr: VirtAddr, level: u32, gfp: GfpFlags) -> Result<(), TableError> {
        let half = F::half(addr).ok_or(TableError::OutOfRange)?;
        let mut spare = None;
        let made = loop {
            match self.step(addr, level, half, &mut spare) {
                Err(Missing::Nothing) => break Ok(()),
                Err(Missing::Failed(error)) => break Err(error),
                Err(Missing::Table(of)) => match frame::alloc(self.source, for_level(gfp, of)) {
                    Ok(table) => spare = Some(table),
                    Err(error) => break Err(error),
                },
                Ok(()) => {}
            }
        };
        if let Some(table) = spare {
            frame::free(self.source, table);
        }
        made
    }

    /// Puts `spare` in where the way to the table of `level` breaks off; says what is missing for that.
    fn step(&self, addr: VirtAddr, level: u32, half: Half, spare: &mut Option<Pfn>) -> Result<(), Missing> {
        let pin = self.source.platform().pin();
        let at = self.way(&pin, addr, level + 1).map_err(Missing::Failed)?;
        match F::kind(at.level, at.raw) {
            EntryKind::Table(_) => Err(Missing::Nothing),
            EntryKind::Leaf if at.level == 1 => Err(Missing::Nothing),
            EntryKind::Leaf => Err(Missing::Failed(TableError::Occupied)),
            EntryKind::Empty => {
                let at = self.reached(at).map_err(Missing::Failed)?;
                let table = spare.take().ok_or(Missing::Table(at.level - 1))?;
                let entry = F::table(at.level, half, table);
                if !at.frame.install(format::index::<F>(at.level, addr), entry) {
                    *spare = Some(table);
                    return Ok(());
                }
                self.count_table();
                if at.level == level + 1 { Err(Missing::Nothing) } else { Ok(()) }
            }
        }
    }

    /// Maps 2 MiB by one entry where neither an entry nor a leaf table is. A leaf table is kept aside, so that a split never lacks it.
    ///
    /// # Errors
    /// [`TableError::Misaligned`]; [`TableError::Occupied`] if a table or a huge entry is there; as [`ensure`](Self::ensure).
    ///
    /// # Locking
    /// Allocates; called with no lock held. Others may walk here meanwhile, and make a leaf table first.
    ///
    /// # Linux
    /// `set_huge_pmd` in `mm/huge_memory.c`, with `pgtable_trans_huge_deposit`.
    #[doc(alias = "set_pmd_at")]
    pub fn set_huge(&self, addr: VirtAddr, mapped: Mapped, gfp: GfpFlags) -> Result<(), TableError> {
        self.set_huge_over(addr, mapped, gfp, None)
    }

    /// As [`set_huge`](Self::set_huge), also where an empty leaf table is: it goes to the gather.
    ///
    /// # Errors
    /// As [`set_huge`](Self::set_huge); [`TableError::Occupied`] if the leaf table is in use.
    ///
    /// # Locking
    /// As [`free_empty`](Self::free_empty): nobody else walks to these addresses, be it by `table_lock` or otherwise.
    ///
    /// # Linux
    /// `collapse_huge_page` in `mm/khugepaged.c`, its last part.
    #[doc(alias = "pmdp_collapse_flush")]
    pub fn collapse(
        &self,
        addr: VirtAddr,
        mapped: Mapped,
        gfp: GfpFlags,
        gather: &mut TlbGather<'_, S>,
    ) -> Result<(), TableError> {
        gather.make_room();
        self.set_huge_over(addr, mapped, gfp, Some(gather))
    }

    fn set_huge_over(
        &self,
        addr: VirtAddr,
        mapped: Mapped,
        gfp: GfpFlags,
        gather: Option<&mut TlbGather<'_, S>>,
    ) -> Result<(), TableError> {
        if addr.get() % HUGE_SIZE != 0 || !mapped.pfn.is_aligned(PageOrder::MAX) {
            return Err(TableError::Misaligned);
        }
        self.ensure_huge(addr, gfp)?;
        let table = PreparedTable::new(self.source, gfp)?;
        let pin = self.source.platform().pin();
        self.put_huge(&pin, addr, mapped, table, gather, || {}).map_err(|_| TableError::Occupied)
    }

    /// Makes the tables that lead to the huge entry of `addr`, and not the leaf table.
    ///
    /// # Errors
    /// As [`ensure`](Self::ensure).
    ///
    /// # Linux
    /// `pmd_alloc` in `include/linux/mm.h`.
    #[doc(alias = "pmd_alloc")]
    pub fn ensure_huge(&self, addr: VirtAddr, gfp: GfpFlags) -> Result<(), TableError> {
        self.ensure_level(addr, 1, gfp)
    }

    /// Maps 2 MiB by one entry with `table` kept for its split, where nothing is, or, with a gather, which has [room](TlbGather::make_room), where an
    /// empty leaf table is: that goes to the gather. `book` is called with the entry's lock held, once it is written.
    ///
    /// # Errors
    /// The table comes back if something is there, or the tables on the way are not, or `addr` or the frame is not aligned.
    ///
    /// # Locking
    /// As [`set_huge`](Self::set_huge), but nothing is allocated, and another table may be locked already. With a gather as [`collapse`](Self::collapse).
    pub fn put_huge<'s>(
        &self,
        pin: &CpuPin<'_>,
        addr: VirtAddr,
        mapped: Mapped,
        table: PreparedTable<'s, S>,
        gather: Option<&mut TlbGather<'_, S>>,
        book: impl FnOnce(),
    ) -> Result<(), PreparedTable<'s, S>> {
        let is_aligned = addr.get() % HUGE_SIZE == 0 && mapped.pfn.is_aligned(PageOrder::MAX);
        let reached = self.reach(pin, addr, 1).ok().filter(|at| is_aligned && at.level == 1);
        let Some(at) = reached else { return Err(table) };
        let _lock = TableLock::take(pin, at.frame.page());
        let index = format::index::<F>(1, addr);
        let (entry, raw) = (at.frame.entry(index), F::encode(1, Pte::Present(mapped)));
        match (F::kind(1, entry.load(Acquire)), gather) {
            // Who makes a leaf table takes no lock for it, and may be faster.
            (EntryKind::Empty, _) if at.frame.install(index, raw) => {}
            (EntryKind::Table(pfn), Some(gather)) => {
                let leaf = self.open(pin, pfn);
                if leaf.is_none_or(|leaf| TableLock::take(pin, leaf.page()).used() != 0) {
                    return Err(table);
                }
                entry.store(raw, Release);
                self.uncount_table();
                gather.table_at(pfn, addr, format::span(1, addr));
            }
            _ => return Err(table),
        }
        book();
        if let Some(table) = table.into_pfn() {
            frame::keep(self.source.phys(), at.frame.page(), table);
            self.count_table();
        }
        Ok(())
    }

    pub(super) fn root_page(&self) -> Option<&'a Page> {
        frame::root_page(self.source.phys(), self.pgd).ok()
    }

    pub(super) fn count_table(&self) {
        if let Some(root) = self.root_page() {
            root.table_count().fetch_add(1, Relaxed);
        }
    }

    pub(super) fn uncount_table(&self) {
        if let Some(root) = self.root_page() {
            root.table_count().fetch_sub(1, Relaxed);
        }
    }

    /// Takes over the kernel's half, and makes what hardware wants to be there from the start.
    fn fill_root(&self, kernel_half: Option<Pfn>) -> Result<(), TableError> {
        let first_kernel = format::index::<F>(F::LEVELS - 1, VirtAddr::from(F::KERNEL_START));
        {
            let pin = self.source.platform().pin();
            let root = Frame::open(self.source.phys(), &pin, self.pgd)?;
            match kernel_half {
                None => frame::note_owns_kernel(root.page()),
                Some(other) => {
                    let other = Frame::open(self.source.phys(), &pin, other)?;
                    for index in first_kernel..F::root_entries() {
                        root.entry(index).store(other.entry(index).load(Acquire), Relaxed);
                    }
                }
            }
        }
        if !F::ROOT_IS_CACHED {
            return Ok(());
        }
        let own = if kernel_half.is_none() { F::root_entries() } else { first_kernel };
        (0..own as u64).try_for_each(|index| {
            let addr = VirtAddr::from(index << format::shift(F::LEVELS - 1));
            self.ensure_level(addr, F::LEVELS - 2, GfpFlags::KERNEL)
        })
    }
}

/// What a walk answers; `None` where the way leads into a table that is none of ours.
#[inline]
fn reachable<T>(found: Result<T, TableError>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(TableError::Unreachable) => unreachable_table(),
        Err(_) => None,
    }
}

/// What keeps a step from being made.
enum Missing {
    /// The table is there.
    Nothing,
    /// A table of this level.
    Table(u32),
    /// There is no way.
    Failed(TableError),
}

/// Only leaf tables may be in HIGHMEM: those above are looked at in each walk.
fn for_level(gfp: GfpFlags, level: u32) -> GfpFlags {
    if level == 0 { gfp } else { gfp - GfpFlags::HIGHMEM }
}

/// Allocates a root where hardware can find it.
fn alloc_root<S: PageSource, F: EntryFormat>(source: &S) -> Result<Pfn, TableError> {
    for gfp in [GfpFlags::KERNEL, GfpFlags::KERNEL | GfpFlags::DMA] {
        let root = frame::alloc(source, gfp)?;
        match frame::table_page(source.phys(), root) {
            Ok(page) if root.get() < F::ROOT_BELOW => {
                frame::note_root(page);
                return Ok(root);
            }
            _ => frame::free(source, root),
        }
    }
    Err(TableError::OutOfMemory)
}

/// A table that was zeroed through a kmap slot cannot be reached any more: there is nothing that could go on.
#[cold]
fn unreachable_table() -> ! {
    panic!("the platform does not map a page table that it has mapped before")
}
