//! The kernel's half of the addresses, which all address spaces share.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::area::{AreaKind, Areas, VmArea};
use super::format::{self, EntryFormat, EntryKind, Half};
use super::frame::{self, Frame};
use super::gather::TlbGather;
use super::root::PageTable;
use super::{TableCheckError, TableError};
use crate::addr::{PAGE_SHIFT, Pfn, VirtAddr, VirtRange};
use crate::flags::GfpFlags;
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::sync::TaskLock;

/// The kernel's half: a root with nothing in the user's half, whose other entries every address space has too.
///
/// Entries of the root are copied when an address space is made, and never afterwards. So all that will ever be behind them is behind those that
/// are there from the start: those for vmalloc are.
///
/// # Linux
/// `init_mm` and its `swapper_pg_dir`; `preallocate_vmalloc_pages` in `arch/x86/mm/init_64.c`.
#[derive(Debug)]
#[doc(alias = "init_mm")]
#[doc(alias = "swapper_pg_dir")]
pub struct KernelTables<'a, S, F> {
    table: PageTable<'a, S, F>,
    vmalloc: VirtRange,
    areas: TaskLock<Areas<'a>>,
    /// The root that a kernel booted with, where the tables for `vmalloc` are entered too.
    boot: Option<Pfn>,
    /// Pages of vmalloc.
    pages: AtomicU64,
}

impl<'a, S: PageSource, F: EntryFormat> KernelTables<'a, S, F> {
    /// Makes a half of its own, empty but for what [vmalloc](EntryFormat::VMALLOC) needs. There are as many areas at a time as `room` has.
    ///
    /// # Errors
    /// [`TableError::OutOfMemory`], [`TableError::Unreachable`].
    pub fn create(source: &'a S, room: &'a mut [VmArea]) -> Result<Self, TableError> {
        let table = PageTable::create(source, None)?;
        if let Err(error) = prepare(&table, F::VMALLOC) {
            table.free_all();
            return Err(error);
        }
        let areas = TaskLock::new(Areas::new(room));
        Ok(Self { table, vmalloc: F::VMALLOC, areas, boot: None, pages: AtomicU64::new(0) })
    }

    /// Takes the half over that a kernel booted with, from its root `boot`. What is behind its entries stays the kernel's own: it is neither looked into
    /// nor freed. The new tables for `vmalloc` are entered in `boot` as well, so that CPUs which stay on it find the same.
    ///
    /// # Errors
    /// [`TableError::OutOfRange`] if `vmalloc` does not lie in the kernel's half; [`TableError::Occupied`] if `boot` maps something behind the
    /// root's entries for it (with [`Pae`](super::Pae) there is one for the whole half, so that nothing can be taken over), or
    /// there are areas; [`TableError::Unreachable`] if `boot` cannot be reached; [`TableError::OutOfMemory`]. Nothing has changed then.
    ///
    /// # Locking
    /// Called before there are address spaces, and while nobody changes `boot`.
    pub fn adopt(&mut self, boot: Pfn, vmalloc: VirtRange) -> Result<(), TableError> {
        let last = vmalloc.end().get().checked_sub(1).map(VirtAddr::from).ok_or(TableError::OutOfRange)?;
        if [vmalloc.start(), last].map(F::half) != [Some(Half::Kernel); 2] || vmalloc.is_empty() {
            return Err(TableError::OutOfRange);
        }
        if !self.areas.lock().all().is_empty() {
            return Err(TableError::Occupied);
        }
        let table = PageTable::create(self.table.source, None)?;
        let taken = take_over(&table, boot, vmalloc);
        if let Err(error) = taken {
            forget_others(&table);
            table.free_all();
            return Err(error);
        }
        self.leave_boot();
        let old = core::mem::replace(&mut self.table, table);
        (self.vmalloc, self.boot) = (vmalloc, Some(boot));
        forget_others(&old);
        old.free_all();
        Ok(())
    }

    /// Takes the tables for vmalloc out of the root that a kernel booted with.
    fn leave_boot(&mut self) {
        let (phys, pin) = (self.table.source.phys(), self.table.source.platform().pin());
        let Some(Ok(boot)) = self.boot.take().map(|boot| phys.kmap_any(&pin, boot)) else { return };
        for index in entries_of::<F>(self.vmalloc) {
            boot.entries()[index].store(0, Release);
        }
    }

    /// Gives all tables back. If there are areas yet nothing is done, and the answer is how many.
    ///
    /// # Locking
    /// There are no address spaces any more, and nobody makes areas. CPUs that walk these tables are on the caller's own, or leave them before.
    pub(crate) fn take_down(&mut self) -> Result<(), usize> {
        let left = self.areas.lock().all().len();
        if left != 0 {
            return Err(left);
        }
        self.leave_boot();
        let platform = self.table.source.platform();
        {
            let _pin = platform.pin();
            if platform.tables() == Some(self.pgd()) {
                platform.switch_tables(None);
            }
        }
        forget_others(&self.table);
        let mut gather = TlbGather::for_kernel(self.table.source, self.pgd());
        gather.flush_huge(self.vmalloc);
        self.table.destroy(&mut gather);
        gather.finish();
        Ok(())
    }

    /// The root.
    pub fn pgd(&self) -> Pfn {
        self.table.pgd()
    }

    /// The tables.
    pub fn table(&self) -> PageTable<'a, S, F> {
        self.table
    }

    /// The addresses that vmalloc gives out.
    #[doc(alias = "VMALLOC_START")]
    pub fn vmalloc_range(&self) -> VirtRange {
        self.vmalloc
    }

    pub(super) fn source(&self) -> &'a S {
        self.table.source
    }

    pub(super) fn areas(&self) -> &TaskLock<Areas<'a>> {
        &self.areas
    }

    pub(super) fn pages(&self) -> &AtomicU64 {
        &self.pages
    }

    /// Recounts everything: as [`PageTable::check`]; areas are sorted and apart; their pages are mapped and nothing else is.
    ///
    /// # Errors
    /// [`TableCheckError`]: the first thing found wrong.
    ///
    /// # Locking
    /// Nobody makes or unmaps areas meanwhile.
    pub fn check(&self) -> Result<(), TableCheckError> {
        self.table.check()?;
        let areas = self.areas.lock();
        if let Some(wrong) = areas.first_wrong(self.vmalloc) {
            return Err(TableCheckError::BadArea(wrong.start()));
        }
        let (mut mapped, mut outside) = (0, None);
        self.table.visit_range(self.vmalloc, |found| match areas.find(found.addr) {
            Some(_) => mapped += 1,
            None => outside = outside.or(Some(found.addr)),
        });
        let of = |area: &VmArea| area.bytes() >> PAGE_SHIFT;
        let vmalloc = areas.all().iter().filter(|area| area.kind() == AreaKind::Vmalloc).map(of).sum::<u64>();
        match outside {
            Some(addr) => Err(TableCheckError::OutsideAreas(addr)),
            None if mapped != areas.all().iter().map(of).sum::<u64>()
                || vmalloc != self.pages.load(Relaxed) =>
            {
                Err(TableCheckError::BadArea(self.vmalloc.start()))
            }
            None => Ok(()),
        }
    }

    /// The frames that areas hold a reference to, one for each page of vmalloc and vmap, for those who recount.
    pub fn for_each_frame(&self, mut each: impl FnMut(Pfn)) {
        let areas = self.areas.lock();
        for area in areas.all().iter().filter(|area| !matches!(area.kind(), AreaKind::Ioremap(..))) {
            self.table.visit_range(area.range(), |found| {
                if let Some(entry) = found.pte.mapped() {
                    each(entry.pfn);
                }
            });
        }
    }

    /// The areas, from the lowest on.
    pub fn for_each_area(&self, each: impl FnMut(&VmArea)) {
        self.areas.lock().all().iter().for_each(each);
    }
}

/// The root's entries of the kernel's half.
fn root_entries<F: EntryFormat>() -> core::ops::Range<usize> {
    format::index::<F>(F::LEVELS - 1, VirtAddr::from(F::KERNEL_START))..F::root_entries()
}

/// The root's entries for a range of the kernel's half.
fn entries_of<F: EntryFormat>(range: VirtRange) -> core::ops::RangeInclusive<usize> {
    let index = |addr: u64| format::index::<F>(F::LEVELS - 1, VirtAddr::from(addr));
    index(range.start().get())..=index(range.end().get() - 1)
}

/// Makes the tables behind the root's entries for a range.
fn prepare<S: PageSource, F: EntryFormat>(
    table: &PageTable<'_, S, F>,
    range: VirtRange,
) -> Result<(), TableError> {
    let mut addr = range.start();
    while addr < range.end() {
        table.ensure_level(addr, F::LEVELS - 2, GfpFlags::KERNEL)?;
        addr = format::next(F::LEVELS - 1, addr);
    }
    Ok(())
}

/// Copies the entries of `boot`, makes those for `vmalloc`, and enters these in `boot`.
fn take_over<S: PageSource, F: EntryFormat>(
    table: &PageTable<'_, S, F>,
    boot: Pfn,
    vmalloc: VirtRange,
) -> Result<(), TableError> {
    let phys = table.source.phys();
    {
        let pin = table.source.platform().pin();
        let from = phys.kmap_any(&pin, boot).map_err(|_| TableError::Unreachable)?;
        let root = Frame::open(phys, &pin, table.pgd)?;
        let theirs = |index: usize| from.entries()[index].load(Acquire);
        if entries_of::<F>(vmalloc).any(|index| theirs(index) != 0) {
            return Err(TableError::Occupied);
        }
        frame::note_adopted(root.page());
        for index in root_entries::<F>().filter(|&index| theirs(index) != 0) {
            if !root.install(index, theirs(index)) {
                return Err(TableError::Occupied);
            }
        }
    }
    prepare(table, vmalloc)?;
    let pin = table.source.platform().pin();
    let into = phys.kmap_any(&pin, boot).map_err(|_| TableError::Unreachable)?;
    let root = Frame::open(phys, &pin, table.pgd)?;
    for index in entries_of::<F>(vmalloc) {
        // Release: the tables' zeroes were written before.
        into.entries()[index].store(root.entry(index).load(Acquire), Release);
    }
    Ok(())
}

/// Takes out the root's entries that lead to tables of others.
fn forget_others<S: PageSource, F: EntryFormat>(table: &PageTable<'_, S, F>) {
    let phys = table.source.phys();
    let pin = table.source.platform().pin();
    let Ok(root) = Frame::open(phys, &pin, table.pgd) else { return };
    for index in root_entries::<F>() {
        let is_ours = match F::kind(F::LEVELS - 1, root.entry(index).load(Acquire)) {
            EntryKind::Table(next) => frame::table_page(phys, next).is_ok(),
            EntryKind::Empty => true,
            EntryKind::Leaf => false,
        };
        if !is_ours {
            root.entry(index).store(0, Release);
            frame::sub_used(root.page());
        }
    }
}
