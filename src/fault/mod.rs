//! Page faults: which page an access needs, and how it comes to be mapped.
//!
//! | file | what |
//! |---|---|
//! | `held` | what keeps the VMA from changing meanwhile |
//! | `missing` | nothing is mapped: anonymous memory, a file's page, the private copy of one |
//! | `present` | something is mapped that forbids the access: copy-on-write, the first write to a shared file's page |
//! | `populate` | pages that are wanted before they are touched |
//! | `query` | what the tables say of a range, as data |
//! | `usage` | the sums of smaps |
//! | `huge`, `huge_range`, `huge_zero`, `huge_events` | pages of 2 MiB: their faults, what the calls do to those of a range, the one of zeros, what is counted |
//! | `entry` | what goes with an entry: counts, owners, resident sizes |
//! | `zap`, `protect`, `moves`, `fork` | what the calls do to the pages of a range |
//! | `pin` | pages whose frames somebody outside uses |
//! | `special` | frames that nobody counts: a device's memory |
//! | `tables` | the calls' [`Tables`](crate::mm::Tables), made of those |
//! | `check` | recounts everything from scratch |
//! | `access` | [`MmAccess`](crate::rmap::MmAccess): entries of any address space, for those who come from a file |
//!
//! # Locking
//! A fault runs with its VMA locked, or with the address space's lock held for reading, so many run at a time, and by the first way also beside a call
//! that changes other VMAs ([`mm`](crate::mm) has the order). What it needs (a frame, a page of a file, page
//! tables) it gets with no spin lock held; then it locks the one leaf table, looks whether the entry is still what it was, and
//! changes it. If it is not, another fault was there, and the access is simply tried again.
//!
//! Nobody asks a store for a page inside, nor waits for one (for the room of a page that is to be written it is asked): what is to be read is [prepared](MmPager::take_plug), [`Fault::Wait`] hands out the ticket, the caller
//! drops its locks, submits, waits, and faults again.

mod access;
mod check;
mod count;
mod entry;
mod fork;
mod gather;
mod held;
mod huge;
mod huge_events;
mod huge_range;
mod huge_zero;
mod missing;
mod moves;
mod pin;
mod populate;
mod present;
mod protect;
mod query;
mod special;
mod tables;
mod usage;
mod zap;

use core::marker::PhantomData;
pub(crate) use pin::PinAttempt;
pub use pin::{PinTerm, PinUse};

pub use check::{FrameTally, PagesCheckError, Recount};
pub use count::FaultTally;
pub use huge_events::HugeCounts;
pub use huge_zero::HugeZeroPage;
pub use query::{EntryState, PageKind, ResidentPage};
pub use tables::{FileHole, FileSync};
pub use usage::MemUsage;

#[doc(no_inline)]
pub use crate::platform::Access;

use count::Faults;
use entry::{allows, noted};
use fork::LostRights;
use gather::Gather;
use held::Held;

use crate::addr::{PAGE_SHIFT, PageOrder, Pfn, VirtAddr, VirtRange};
use crate::cache::{FileId, IoTicket, PageCache, Plug};
use crate::flags::VmFlags;
use crate::mm::{Mm, MmContext, MmSlot, Populate, Vma};
use crate::phys::{KmapError, PageSource};
use crate::platform::{CpuMask, Platform, TlbFlush, Window};
use crate::table::{
    EntryFormat, Found, Leaf, Mapped, PageTable, Pte, PteBits, TableError, TlbGather, scope_of,
};

/// Why a process gets a signal, with Linux's `si_code`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Signal {
    /// SIGSEGV, `SEGV_MAPERR`: nothing is mapped there.
    NotMapped,
    /// SIGSEGV, `SEGV_ACCERR`: the mapping forbids it.
    Denied,
    /// SIGSEGV, `SEGV_PKUERR`: a protection key forbids it.
    DeniedByKey,
    /// SIGSEGV, `SI_KERNEL`: no address of the user's at all.
    NonCanonical,
    /// SIGBUS, `BUS_ADRERR`: the file has no such page, or its store failed.
    NoPage,
    /// SIGBUS, `BUS_ADRALN`: an atomic access across the end of its word.
    Misaligned,
}

impl core::fmt::Display for Signal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NotMapped => "SIGSEGV (SEGV_MAPERR)",
            Self::Denied => "SIGSEGV (SEGV_ACCERR)",
            Self::DeniedByKey => "SIGSEGV (SEGV_PKUERR)",
            Self::NonCanonical => "SIGSEGV (SI_KERNEL)",
            Self::NoPage => "SIGBUS (BUS_ADRERR)",
            Self::Misaligned => "SIGBUS (BUS_ADRALN)",
        })
    }
}

impl Signal {
    /// The signal's number: SIGSEGV or SIGBUS.
    pub const fn number(self) -> u32 {
        match self {
            Self::NoPage | Self::Misaligned => 7,
            _ => 11,
        }
    }

    /// Linux's `si_code`.
    pub const fn code(self) -> u32 {
        match self {
            Self::NotMapped | Self::Misaligned => 1,
            Self::Denied | Self::NoPage => 2,
            Self::DeniedByKey => 4,
            Self::NonCanonical => 128,
        }
    }
}

/// How a fault that was resolved was resolved.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Resolved {
    /// Without input from a store.
    Minor,
    /// A store had to be read.
    Major,
}

/// Whether a fault is the first for its access, or comes again.
///
/// # Linux
/// `FAULT_FLAG_TRIED` in `include/linux/mm_types.h`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "FAULT_FLAG_TRIED")]
pub enum Attempt {
    /// It is the first.
    First,
    /// It was [waited](Fault::Wait) for something. What comes of it is a major fault, wherever the page is by now.
    Again,
}

impl Attempt {
    /// How a fault was resolved, all its attempts taken together.
    pub(crate) const fn all_in_all(self, resolved: Resolved) -> Resolved {
        match self {
            Self::First => resolved,
            Self::Again => Resolved::Major,
        }
    }
}

/// What came of a fault.
///
/// # Linux
/// `vm_fault_t` in `include/linux/mm_types.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "vm_fault_t")]
#[must_use]
pub enum Fault {
    /// The access can be tried again.
    Done(Resolved),
    /// The page is on its way. The caller drops the address space's lock, [submits](MmPager::take_plug) what was prepared, waits until [`Vm::io_done`](crate::memory::Vm::io_done) says that the ticket's
    /// read is over, running something else meanwhile, and faults [again](Attempt::Again).
    Wait(IoTicket),
    /// The process gets a signal.
    Signal(Signal),
    /// No frame or table is left, even after reclaim; or the platform does not let the bytes of a new frame be reached.
    OutOfMemory,
}

/// Why a fault was not resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    Wait(IoTicket),
    Signal(Signal),
    OutOfMemory,
}

impl From<Result<Resolved, Stop>> for Fault {
    fn from(result: Result<Resolved, Stop>) -> Self {
        match result {
            Ok(resolved) => Self::Done(resolved),
            Err(Stop::Wait(ticket)) => Self::Wait(ticket),
            Err(Stop::Signal(signal)) => Self::Signal(signal),
            Err(Stop::OutOfMemory) => Self::OutOfMemory,
        }
    }
}

/// What faults of all address spaces share.
#[derive(Debug)]
pub struct Pager<'a, 'm, S, F> {
    source: &'a S,
    context: &'a MmContext<'a>,
    cache: &'a PageCache<'m>,
    zero_page: Pfn,
    huge_zero: &'a HugeZeroPage,
    format: PhantomData<F>,
}

impl<S, F> Clone for Pager<'_, '_, S, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, F> Copy for Pager<'_, '_, S, F> {}

impl<'a, 'm, S: PageSource, F: EntryFormat> Pager<'a, 'm, S, F> {
    /// Faults that are served with frames of `source` and files of `cache`. `zero_page` is an allocated frame full of zeros, which nobody ever
    /// writes.
    pub const fn new(
        source: &'a S,
        context: &'a MmContext<'a>,
        cache: &'a PageCache<'m>,
        zero_page: Pfn,
        huge_zero: &'a HugeZeroPage,
    ) -> Self {
        Self { source, context, cache, zero_page, huge_zero, format: PhantomData }
    }

    /// The pages of one address space; `None` if it has no page tables.
    pub fn of(self, mm: &Mm<'a>) -> Option<MmPager<'a, 'm, S, F>> {
        self.of_space(mm.shared())
    }

    /// The pages of the address space in a slot; `None` if it has no page tables.
    ///
    /// # Locking
    /// The address space's lock is held, or that of a VMA of it; or the caller comes from a page and holds the list that a VMA of it is on.
    pub fn of_space(self, shared: &'a MmSlot) -> Option<MmPager<'a, 'm, S, F>> {
        let table = PageTable::at(self.source, shared.pgd()?);
        Some(MmPager {
            pager: self,
            shared,
            table,
            unclaimed: None,
            deferred: None,
            faults: Faults::new(),
            plug: Plug::new(),
            lost: LostRights::default(),
        })
    }

    /// The page tables of one address space, if it has any.
    pub fn tables_of(self, mm: &Mm<'a>) -> Option<PageTable<'a, S, F>> {
        Some(PageTable::at(self.source, mm.shared().pgd()?))
    }
}

/// The pages of one address space.
///
/// A small value: each call makes one. What it stands for lies in the tables.
#[derive(Debug)]
pub struct MmPager<'a, 'm, S: PageSource, F: EntryFormat> {
    pager: Pager<'a, 'm, S, F>,
    shared: &'a MmSlot,
    table: PageTable<'a, S, F>,
    /// A file in memory that was made for a mapping which is not there yet.
    unclaimed: Option<FileId>,
    /// What a call has left to be made resident.
    deferred: Option<Populate>,
    /// Those that are over, and nobody has counted yet.
    faults: Faults,
    /// Reads that were prepared, and that no store was asked for yet.
    plug: Plug,
    /// What a fork has made read-only.
    lost: LostRights,
}

/// What an entry says, before anything is done about it.
enum Look {
    Nothing,
    Guard,
    Page(Mapped),
    Huge(Mapped),
}

impl<'a, 'm, S: PageSource, F: EntryFormat> MmPager<'a, 'm, S, F> {
    /// Resolves an access that the hardware refused. `None` if the address lies below a stack: [`Mm::find_vma_or_grow`] decides, for which the lock
    /// must be held for writing, and the fault is tried again.
    ///
    /// # Locking
    /// The address space's lock is held, reading is enough. No pin, no spin lock.
    ///
    /// # Linux
    /// `handle_mm_fault` in `mm/memory.c`, with the checks of `do_user_addr_fault` in `arch/x86/mm/fault.c` (6.18).
    #[doc(alias = "handle_mm_fault")]
    pub fn handle_fault(&self, mm: &Mm<'_>, addr: VirtAddr, access: Access) -> Option<Fault> {
        if addr.get() >= mm.sysctl().task_size {
            return Some(Fault::Signal(outside::<F>(addr)));
        }
        let Some(slot) = mm.find_vma(addr) else { return Some(Fault::Signal(Signal::NotMapped)) };
        let vma = mm.vma(slot);
        if vma.start > addr {
            return match vma.flags.contains(VmFlags::GROWSDOWN) {
                true => None,
                false => Some(Fault::Signal(Signal::NotMapped)),
            };
        }
        if let Some(signal) = refusal(&vma, access) {
            return Some(Fault::Signal(signal));
        }
        let at = At { mm: Held::Space(mm), slot, vma, page: addr.page_floor(), access };
        Some(self.resolve_and_count(&at).into())
    }

    /// The reads that were prepared since this was asked last: to be [submitted](PageCache::finish_plug) once the caller holds no lock. A read that is
    /// not is submitted by whoever waits for it.
    pub fn take_plug(&self) -> Plug {
        self.plug.take()
    }

    /// Whether any was.
    #[inline]
    pub fn has_prepared(&self) -> bool {
        !self.plug.is_empty()
    }

    fn resolve(&self, at: &At<'_, '_>) -> Result<Resolved, Stop> {
        match self.look(at.page) {
            Look::Nothing => self.missing(at),
            Look::Guard => Err(Stop::Signal(Signal::NotMapped)),
            Look::Page(entry) => self.present(at, entry),
            Look::Huge(entry) => self.present_huge(at, entry),
        }
    }

    fn look(&self, page: VirtAddr) -> Look {
        let found = self.find(page);
        match found.pte {
            Pte::Present(entry) if found.order == PageOrder::MAX => Look::Huge(entry),
            Pte::Present(entry) => Look::Page(entry),
            Pte::Guard => Look::Guard,
            Pte::None | Pte::Swap(_) => Look::Nothing,
        }
    }

    /// Reads the entry of an address, small or huge, which may be another one the next moment.
    pub(crate) fn find(&self, addr: VirtAddr) -> Found {
        let pin = self.pager.source.platform().pin();
        self.table.find(&pin, addr)
    }

    /// Runs `touch` with the frame at an address and the place in it, if the entry there allows the access. The entry is noted as used, and as
    /// written to, as hardware would.
    ///
    /// # Errors
    /// [`KmapError`] if the entry allows the access and the platform does not reach the frame: a device's.
    ///
    /// # Linux
    /// `follow_page_pte` in `mm/gup.c`.
    #[doc(alias = "follow_page")]
    pub fn with_frame<R>(
        &self,
        addr: VirtAddr,
        access: Access,
        touch: impl FnOnce(&Window<'_>, usize) -> R,
    ) -> Result<Option<R>, KmapError> {
        let used = noted(access);
        let allowed = |entry: &Mapped| entry.bits.contains(PteBits::USER) && allows(entry.bits, access);
        let page = addr.page_floor();
        let pin = self.pager.source.platform().pin();
        let leaf = self.table.lock(&pin, page);
        let entry = match &leaf {
            Leaf::Absent { .. } => None,
            Leaf::Table(table) => table.get(page).mapped().filter(allowed).inspect(|_| {
                table.update(page, |now| match now {
                    Pte::Present(now) => Pte::Present(Mapped { bits: now.bits | used, ..now }),
                    other => other,
                });
            }),
            Leaf::Huge(huge) => huge.get().mapped().filter(allowed).and_then(|entry| {
                huge.update(|now| Mapped { bits: now.bits | used, ..now });
                self.part_of(entry, page)
            }),
        };
        let Some(entry) = entry else { return Ok(None) };
        // The table's lock keeps the entry, and that the frame.
        let frame = self.pager.source.phys().kmap_any(&pin, entry.pfn)?;
        Ok(Some(touch(&frame, addr.page_offset() as usize)))
    }

    /// Makes CPUs forget pages.
    fn flush(&self, cpus: &CpuMask, range: VirtRange) {
        let scope = scope_of(range, PAGE_SHIFT);
        let flush = TlbFlush { pgd: self.table.pgd(), scope, tables: false };
        self.pager.source.platform().flush_tlb(cpus, &flush);
    }

    fn gather(&self) -> Gather<'a, 'm, S> {
        let tlb = TlbGather::new(self.pager.source, self.table.pgd(), self.shared.cpus());
        Gather::new(&self.pager, self.shared, tlb)
    }
}

/// A fault on its way.
struct At<'f, 'c> {
    mm: Held<'f, 'c>,
    slot: crate::collections::Slot,
    vma: Vma,
    page: VirtAddr,
    access: Access,
}

/// What an access outside of the user's addresses gets.
fn outside<F: EntryFormat>(addr: VirtAddr) -> Signal {
    match F::half(addr) {
        Some(_) => Signal::NotMapped,
        None => Signal::NonCanonical,
    }
}

/// Why there is no table for an address: where the tables cannot translate it, a VMA that lies there does not help, nor would more memory.
fn no_table<F: EntryFormat>(error: TableError, addr: VirtAddr) -> Stop {
    match error {
        TableError::OutOfRange => Stop::Signal(outside::<F>(addr)),
        _ => Stop::OutOfMemory,
    }
}

/// Why a VMA forbids an access.
///
/// # Linux
/// `access_error` in `arch/x86/mm/fault.c`.
#[doc(alias = "access_error")]
fn refusal(vma: &Vma, access: Access) -> Option<Signal> {
    if vma.flags.contains(VmFlags::EXECUTE_ONLY_KEY) && access != Access::Exec {
        return Some(Signal::DeniedByKey);
    }
    let allowed = match access {
        Access::Write => vma.flags.contains(VmFlags::WRITE),
        // Of pages that can be written or executed the hardware allows reading. A fetch is taken for a load until the page is there, and refused then.
        Access::Read | Access::Exec => vma.flags.is_accessible(),
    };
    (!allowed).then_some(Signal::Denied)
}
