//! A process: an address space, its lock, its page tables; its calls, faults and context switches in files of their own.

mod calls;
mod faults;
mod switch;
mod uaccess;

pub(super) use uaccess::in_page;

use core::fmt;
use core::ops::{Deref, DerefMut};

use lock_api::{RawRwLock, RwLock, RwLockWriteGuard};

use super::events::FaultEvents;
use super::vm::Vm;
use crate::addr::{VirtAddr, VirtRange};
use crate::error::Errno;
use crate::fault::{Attempt, EntryState, MmPager, Signal};
use crate::mm::{Mm, MmError, MmSlot, Vma};
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::sync::words::{Ordering::Relaxed, Word64};
use crate::sync::{Rank, SpinLock};
use crate::syscall::{self, ExecImage, LoadBias};
use crate::table::{EntryFormat, PageTable, X86_64};

/// The lock of an address space where nothing else is said: a spin lock.
pub type SpinRwLock = spin::RwLock<()>;

/// Why an access of a process cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The process gets this signal (or, where the kernel accessed its memory for it, the call answers EFAULT).
    Signal(Signal),
    /// No frame is left.
    OutOfMemory,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => signal.fmt(f),
            Self::OutOfMemory => f.write_str("out of memory"),
        }
    }
}

impl core::error::Error for Refused {}

impl Refused {
    /// Linux's number, where the kernel accessed memory for a call.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Signal(_) => Errno::EFAULT,
            Self::OutOfMemory => Errno::ENOMEM,
        }
    }
}

/// A process.
///
/// Its threads share it by reference: all calls take `&self`. `L` is the lock of the address space (Linux: `mmap_lock`), on which a kernel with
/// a scheduler lets its threads sleep: a call may wait with it held ([`Platform::wait_until`]). Who spins for it is right where nobody else runs meanwhile.
///
/// Dropping it is its exit: everything is unmapped, and frames, tables and files that nobody else has are free again. What it has written to files by a
/// shared mapping is written to their stores, and these pages are free, when [`Vm::write_back`] or [`Vm::reap`] was called often enough.
#[doc(alias = "task_struct")]
pub struct Process<'v, 'a, S: PageSource, F: EntryFormat = X86_64, L: RawRwLock = SpinRwLock> {
    vm: &'v Vm<'a, S, F>,
    mm: RwLock<L, Mm<'v>>,
    /// Which address space that is, for faults that do without its lock.
    id: Word64,
    /// What CPUs that walk the tables must know: the scheduler cannot wait for `mm`, whose holder may wait for a CPU. Whoever changes it has left the tables
    /// that it named before.
    active: SpinLock<&'v MmSlot>,
    events: FaultEvents,
}

/// An address space, its lock held for writing.
struct Section<'p, 'v, L: RawRwLock> {
    mm: RwLockWriteGuard<'p, L, Mm<'v>>,
    id: &'p Word64,
}

impl<'v, L: RawRwLock> Deref for Section<'_, 'v, L> {
    type Target = Mm<'v>;

    fn deref(&self) -> &Mm<'v> {
        &self.mm
    }
}

impl<L: RawRwLock> DerefMut for Section<'_, '_, L> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.mm
    }
}

impl<L: RawRwLock> Drop for Section<'_, '_, L> {
    fn drop(&mut self) {
        // exec has put another in its place.
        self.id.store(self.mm.id().to_bits(), Relaxed);
        self.mm.end_section();
    }
}

/// The pages of one address space of a [`Vm`].
type Pages<'v, 'a, S, F> = MmPager<'v, 'a, S, F>;

impl<'v, 'a, S: PageSource, F: EntryFormat, L: RawRwLock> Process<'v, 'a, S, F, L> {
    /// A process with nothing mapped.
    ///
    /// # Errors
    /// [`MmError::OutOfSpaces`], [`MmError::OutOfMemory`].
    pub fn new(vm: &'v Vm<'a, S, F>) -> Result<Self, MmError> {
        Self::with_mm(vm, Mm::new(vm.context())?)
    }

    pub(super) fn with_mm(vm: &'v Vm<'a, S, F>, mm: Mm<'v>) -> Result<Self, MmError> {
        let kernel = vm.kernel_tables().pgd();
        let table = PageTable::<_, F>::create(vm.source(), Some(kernel)).map_err(|_| MmError::OutOfMemory)?;
        mm.shared().set_pgd(Some(table.pgd()));
        let (id, active) = (Word64::new(mm.id().to_bits()), SpinLock::new(Rank::Leaf, mm.shared()));
        Ok(Self { vm, mm: RwLock::new(mm), id, active, events: FaultEvents::new() })
    }

    /// What it shares with other processes.
    pub const fn vm(&self) -> &'v Vm<'a, S, F> {
        self.vm
    }

    pub(super) const fn events(&self) -> &FaultEvents {
        &self.events
    }

    /// Looks at the address space and at its pages, unless it has none any more, with its lock held for reading.
    pub(super) fn with_pages<R>(&self, look: impl FnOnce(&Mm<'v>, Option<&Pages<'v, 'a, S, F>>) -> R) -> R {
        let mm = self.mm.read();
        look(&mm, self.pages(&mm).ok().as_ref())
    }

    /// Looks at the address space, with its lock held for reading.
    pub fn with<R>(&self, look: impl FnOnce(&Mm<'v>) -> R) -> R {
        look(&self.mm.read())
    }

    /// Changes the address space as a kernel may: limits, layout, fields. With its lock held for writing.
    pub fn with_mut<R>(&self, change: impl FnOnce(&mut Mm<'v>) -> R) -> R {
        change(&mut self.write())
    }

    fn write(&self) -> Section<'_, 'v, L> {
        Section { mm: self.mm.write(), id: &self.id }
    }

    /// Puts a VMA where nothing is, as [`Mm::insert_vma`]: for who brings an address space back that was taken down elsewhere.
    ///
    /// # Errors
    /// As [`Mm::insert_vma`].
    pub fn insert_vma(&self, vma: &Vma) -> Result<(), MmError> {
        self.call(|mm, pages| mm.insert_vma(pages, vma).map(drop))
    }

    fn pages(&self, mm: &Mm<'v>) -> Result<Pages<'v, 'a, S, F>, MmError> {
        self.vm.pager().of(mm).ok_or(MmError::NoTables)
    }

    /// Runs a call with the lock held for writing.
    pub(super) fn call<R>(
        &self,
        call: impl FnOnce(&mut Mm<'v>, &mut Pages<'v, 'a, S, F>) -> Result<R, MmError>,
    ) -> Result<R, MmError> {
        let mut mm = self.write();
        let mut pages = self.pages(&mm)?;
        let result = call(&mut mm, &mut pages);
        self.count_faults(&pages);
        drop(mm);
        self.submit_reads(&pages);
        result
    }

    /// Runs a call with the lock held for writing, and then makes resident what it has left to be.
    ///
    /// # Linux
    /// `vm_mmap_pgoff` in `mm/util.c`, for one.
    fn call_and_populate<R>(
        &self,
        call: impl FnOnce(&mut Mm<'v>, &mut Pages<'v, 'a, S, F>) -> Result<R, MmError>,
    ) -> Result<R, MmError> {
        let (result, left, attempt) = self.call(|mm, pages| {
            let result = call(mm, pages);
            let attempt = if pages.has_prepared() { Attempt::Again } else { Attempt::First };
            Ok((result, pages.take_deferred(), attempt))
        })?;
        // A call that was refused may have done a part.
        let populated = left.map_or(Ok(()), |left| self.populate(left, attempt));
        let result = result?;
        populated.map(|()| result)
    }

    /// Shows what is known of the pages of `range` to `each`; see [`MmPager::visit_pages`]. Nothing of this process may be asked by `each`.
    pub fn visit_pages(&self, range: VirtRange, each: impl FnMut(VirtAddr, EntryState)) {
        let mm = self.mm.read();
        if let Ok(pages) = self.pages(&mm) {
            pages.visit_pages(range, each);
        }
    }

    /// What is known of the page at an address; `None` if nothing is mapped there.
    pub fn entry_state(&self, addr: VirtAddr) -> Option<EntryState> {
        let mm = self.mm.read();
        self.pages(&mm).ok()?.entry_state(addr)
    }

    /// A child with a copy of everything, shared until one of the two writes.
    ///
    /// # Errors
    /// As [`syscall::fork`].
    pub fn fork(&self) -> Result<Self, MmError> {
        let mut mm = self.write();
        let mut pages = self.pages(&mm)?;
        let child = Self::with_mm(self.vm, Mm::new_child(&mm)?)?;
        {
            let mut child_mm = child.write();
            let mut child_pages = child.pages(&child_mm)?;
            syscall::fork(&mut mm, &mut pages, &mut child_mm, &mut child_pages)?;
        }
        Ok(child)
    }

    /// A new program in the place of the old. No other CPU walks the old one's tables: the process has one thread, as Linux sees to in `de_thread`.
    /// The caller's CPU, if it does, walks none afterwards, and has to [activate](Self::activate) the new; a scheduler may switch at any time meanwhile.
    ///
    /// # Errors
    /// As [`syscall::exec`]; the old program is intact then.
    pub fn exec(&self, image: &ExecImage<'_>) -> Result<LoadBias, MmError> {
        let mut mm = self.write();
        let mut pages = self.pages(&mm)?;
        // Afterwards this one has the old program, and ends with it.
        let other = Self::with_mm(self.vm, Mm::new_child(&mm)?)?;
        let mut new = other.write();
        let mut new_pages = self.pages(&new)?;
        let bias = syscall::replace(&mut mm, &mut pages, &mut new, &mut new_pages, image)?;
        self.change_active(mm.shared());
        Ok(bias)
    }

    /// Takes another process's memory and gives it its own.
    pub(super) fn exchange(&self, other: &Self) {
        let (mut own, mut theirs) = (self.write(), other.write());
        core::mem::swap(&mut *own, &mut *theirs);
        self.change_active(own.shared());
        other.change_active(theirs.shared());
    }
}

impl<S: PageSource, F: EntryFormat, L: RawRwLock> Drop for Process<'_, '_, S, F, L> {
    fn drop(&mut self) {
        let mm = self.mm.get_mut();
        let Some(mut pages) = self.vm.pager().of(mm) else { return };
        // Nobody walks its tables from now on, nor can begin to, so one flush is enough for all that goes.
        {
            let platform = self.vm.source().platform();
            switch::leave(platform, &platform.pin(), mm.shared());
        }
        pages.forget_everything();
        syscall::exit(mm, &mut pages);
        pages.destroy();
        mm.shared().set_pgd(None);
    }
}

impl<S: PageSource, F: EntryFormat, L: RawRwLock> fmt::Debug for Process<'_, '_, S, F, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}
