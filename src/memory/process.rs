//! A process: an address space, its lock, its page tables, and the calls.

mod faults;
mod uaccess;

use core::fmt;
use core::ops::{Deref, DerefMut};

use lock_api::{RawRwLock, RwLock, RwLockWriteGuard};

use super::events::FaultEvents;
use super::vm::Vm;
use crate::addr::{Pfn, VirtAddr, VirtRange};
use crate::error::Errno;
use crate::fault::{Attempt, EntryState, MmPager, Signal};
use crate::flags::{MlockFlags, MlockallFlags, MremapFlags, MsyncFlags, Prot};
use crate::mm::{Mm, MmError, MmSlot, Vma};
use crate::phys::PageSource;
use crate::platform::{CpuPin, Platform};
use crate::sync::words::{Ordering::Relaxed, Word64};
use crate::sync::{Rank, SpinLock};
use crate::syscall::{self, Device, ExecImage, LoadBias, Mincore, MmapArgs, Msync, Residency};
use crate::table::{Caching, EntryFormat, PageTable, X86_64};

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
/// a scheduler may let its threads sleep.
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

    /// Maps a file or new memory; answers where.
    ///
    /// # Errors
    /// As [`syscall::mmap`].
    pub fn mmap(&self, args: &MmapArgs) -> Result<VirtAddr, MmError> {
        self.call_and_populate(|mm, pages| syscall::mmap(mm, pages, args))
    }

    /// The same with the offset in pages, as 32-bit programs give it.
    ///
    /// # Errors
    /// As [`syscall::mmap2`].
    pub fn mmap2(&self, args: &MmapArgs) -> Result<VirtAddr, MmError> {
        self.call_and_populate(|mm, pages| syscall::mmap2(mm, pages, args))
    }

    /// Maps a device's memory.
    ///
    /// # Errors
    /// As [`syscall::mmap_device`].
    pub fn mmap_device(&self, args: &MmapArgs, device: &Device) -> Result<VirtAddr, MmError> {
        self.call(|mm, pages| syscall::mmap_device(mm, pages, args, device))
    }

    /// Maps frames that nobody counts into a VMA of bare frames.
    ///
    /// # Errors
    /// As [`syscall::remap_pfn_range`].
    pub fn remap_pfn_range(
        &self,
        addr: VirtAddr,
        first: Pfn,
        bytes: u64,
        caching: Caching,
    ) -> Result<(), MmError> {
        self.call(|mm, pages| syscall::remap_pfn_range(mm, pages, addr, first, bytes, caching))
    }

    /// Takes away what is mapped in a range.
    ///
    /// # Errors
    /// As [`syscall::munmap`].
    pub fn munmap(&self, addr: u64, len: u64) -> Result<(), MmError> {
        self.call(|mm, pages| syscall::munmap(mm, pages, addr, len))
    }

    /// Changes what accesses a range allows.
    ///
    /// # Errors
    /// As [`syscall::mprotect`].
    pub fn mprotect(&self, addr: u64, len: u64, prot: Prot) -> Result<(), MmError> {
        self.call_and_populate(|mm, pages| syscall::mprotect(mm, pages, addr, len, prot))
    }

    /// Moves a mapping, or makes it longer or shorter; answers where it is.
    ///
    /// # Errors
    /// As [`syscall::mremap`].
    pub fn mremap(
        &self,
        addr: u64,
        old_len: u64,
        new_len: u64,
        flags: MremapFlags,
        new_addr: u64,
    ) -> Result<VirtAddr, MmError> {
        self.call_and_populate(|mm, pages| {
            syscall::mremap(mm, pages, addr, old_len, new_len, flags, new_addr)
        })
    }

    /// Moves the end of the heap to an address, if that can be; answers where it is then.
    ///
    /// # Errors
    /// [`MmError::NoTables`].
    pub fn brk(&self, addr: u64) -> Result<VirtAddr, MmError> {
        self.call_and_populate(|mm, pages| Ok(syscall::brk(mm, pages, addr)))
    }

    /// Moves the end of the heap by `delta` bytes; answers where it was.
    ///
    /// # Errors
    /// As [`syscall::sbrk`].
    pub fn sbrk(&self, delta: i64) -> Result<VirtAddr, MmError> {
        self.call_and_populate(|mm, pages| syscall::sbrk(mm, pages, delta))
    }

    /// Follows advice about a range, by its Linux number.
    ///
    /// # Errors
    /// As [`syscall::madvise`].
    pub fn madvise(&self, addr: u64, len: u64, advice: i32) -> Result<(), MmError> {
        self.call_and_populate(|mm, pages| syscall::madvise(mm, pages, addr, len, advice))
    }

    /// Makes a range resident and keeps it so.
    ///
    /// # Errors
    /// As [`syscall::mlock`].
    pub fn mlock(&self, addr: u64, len: u64) -> Result<(), MmError> {
        self.call_and_populate(|mm, pages| syscall::mlock(mm, pages, addr, len))
    }

    /// The same, at once or as pages are touched.
    ///
    /// # Errors
    /// As [`syscall::mlock2`].
    pub fn mlock2(&self, addr: u64, len: u64, flags: MlockFlags) -> Result<(), MmError> {
        self.call_and_populate(|mm, pages| syscall::mlock2(mm, pages, addr, len, flags))
    }

    /// Lets the pages of a range go again.
    ///
    /// # Errors
    /// As [`syscall::munlock`].
    pub fn munlock(&self, addr: u64, len: u64) -> Result<(), MmError> {
        self.call(|mm, pages| syscall::munlock(mm, pages, addr, len))
    }

    /// Locks all that is mapped, all that will be, or both.
    ///
    /// # Errors
    /// As [`syscall::mlockall`].
    pub fn mlockall(&self, flags: MlockallFlags) -> Result<(), MmError> {
        self.call_and_populate(|mm, pages| syscall::mlockall(mm, pages, flags))
    }

    /// Unlocks everything, and what is mapped from now on is not locked either.
    ///
    /// # Errors
    /// [`MmError::NoTables`].
    pub fn munlockall(&self) -> Result<(), MmError> {
        self.call(|mm, pages| {
            syscall::munlockall(mm, pages);
            Ok(())
        })
    }

    /// Writes what a range of mapped files has been given, or looks whether it could be.
    ///
    /// # Errors
    /// As [`syscall::msync`].
    pub fn msync(&self, addr: u64, len: u64, flags: MsyncFlags) -> Result<(), MmError> {
        let mut call = Msync::new(addr, len, flags)?;
        loop {
            let sync = {
                let mm = self.mm.read();
                let Some((vma, part)) = call.next(&mm)? else { return Ok(()) };
                self.pages(&mm)?.begin_sync(&vma, part)?
            };
            sync.map_or(Ok(()), |sync| self.vm.pager().finish_sync(sync))?;
        }
    }

    /// Tells of each page of a range whether it is in memory. The answers are written with no lock held, so that they may go to memory of the process.
    ///
    /// # Errors
    /// As [`syscall::mincore`].
    pub fn mincore(
        &self,
        addr: u64,
        len: u64,
        answers: &mut (impl Residency + ?Sized),
    ) -> Result<(), MmError> {
        let mut call = Mincore::new(&self.mm.read(), addr, len, answers)?;
        loop {
            let resident = {
                let mm = self.mm.read();
                call.next(&mm, &mut self.pages(&mm)?)
            };
            match resident {
                Some(resident) => resident.put(answers)?,
                None => return Ok(()),
            }
        }
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

    /// Names the tables that a scheduler takes from now on. This CPU leaves those before in the same moment: a scheduler could not tell any more that they
    /// are this process's, and they are about to be freed.
    fn change_active(&self, new: &'v MmSlot) {
        let pin = self.vm.source().platform().pin();
        let mut active = self.active.lock(&pin);
        leave(self.vm.source().platform(), &pin, *active);
        *active = new;
    }

    /// Makes the caller's CPU walk this process's tables, instead of those that it walks now.
    ///
    /// The process before need not be [deactivated](Self::deactivate) for that, but should be, before or afterwards: until then this CPU is asked to
    /// forget what changes there. A process is dropped when no other CPU walks its tables. A context switch:
    ///
    /// ```
    /// use kernmm::memory::Process;
    /// use kernmm::mm::MmError;
    /// use kernmm::phys::PageSource;
    ///
    /// /// Interrupts are masked; user code of `prev` ran last, of `next` runs then. `None` is a thread of the kernel.
    /// fn switch<'v, 'a, S: PageSource>(
    ///     prev: Option<&Process<'v, 'a, S>>,
    ///     next: Option<&Process<'v, 'a, S>>,
    /// ) -> Result<(), MmError> {
    ///     if let Some(next) = next {
    ///         next.activate()?;
    ///     }
    ///     match (prev, next) {
    ///         (Some(prev), Some(next)) if core::ptr::eq(prev, next) => {}
    ///         (Some(prev), _) => prev.deactivate(),
    ///         (None, _) => {}
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`MmError::NoTables`] if the process has no page tables any more; [`MmError::UnknownCpu`] if the CPU's number is
    /// [`MAX_TLB_CPUS`](crate::platform::MAX_TLB_CPUS) or more; [`MmError::TablesUnknown`] if [`Platform::tables`] does not answer what [`Platform::switch_tables`] was told: the CPU then walks the kernel's tables alone.
    ///
    /// # Locking
    /// Does not take the address space's lock: a scheduler may call it with interrupts masked and with a lock of its own. What it does take is held
    /// with interrupts masked alone, by exec too.
    ///
    /// # Linux
    /// `switch_mm_irqs_off` in `arch/x86/mm/tlb.c`: as there, the next tables may be loaded before the CPU is taken off the previous one's set.
    #[doc(alias = "switch_mm")]
    pub fn activate(&self) -> Result<(), MmError> {
        let platform = self.vm.source().platform();
        let pin = platform.pin();
        let shared = self.active.lock(&pin);
        let pgd = shared.pgd().ok_or(MmError::NoTables)?;
        if !shared.cpus().insert(pin.cpu()) {
            return Err(MmError::UnknownCpu);
        }
        platform.switch_tables(Some(pgd));
        if platform.tables() == Some(pgd) {
            return Ok(());
        }
        // The tables would be freed under this CPU one day.
        platform.switch_tables(None);
        if !platform.keeps_tables_apart() {
            shared.cpus().remove(pin.cpu());
        }
        Err(MmError::TablesUnknown)
    }

    /// Takes the caller's CPU off those that must be told what changes here, unless it [keeps](Platform::keeps_tables_apart) what it remembers. If it walks
    /// this process's tables it walks the kernel's alone from now on; if it walks another's it goes on doing that.
    ///
    /// # Locking
    /// As [`activate`](Self::activate).
    #[doc(alias = "switch_mm")]
    pub fn deactivate(&self) {
        let pin = self.vm.source().platform().pin();
        leave(self.vm.source().platform(), &pin, *self.active.lock(&pin));
    }
}

/// Makes the caller's CPU leave tables, if it walks them.
fn leave(platform: &impl Platform, pin: &CpuPin<'_>, left: &MmSlot) {
    let walked = platform.tables();
    if walked.is_some() && walked == left.pgd() {
        platform.switch_tables(None);
    }
    if !platform.keeps_tables_apart() {
        left.cpus().remove(pin.cpu());
    }
}

impl<S: PageSource, F: EntryFormat, L: RawRwLock> Drop for Process<'_, '_, S, F, L> {
    fn drop(&mut self) {
        let mm = self.mm.get_mut();
        let Some(mut pages) = self.vm.pager().of(mm) else { return };
        // Nobody walks its tables from now on, nor can begin to, so one flush is enough for all that goes.
        {
            let platform = self.vm.source().platform();
            leave(platform, &platform.pin(), mm.shared());
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
