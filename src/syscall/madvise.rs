//! madvise.

use super::{is_aligned, page_align, range};
use crate::addr::{VirtAddr, VirtRange};
use crate::collections::Slot;
use crate::flags::{Advice, VmFlags};
use crate::mm::{Advised, Mm, MmError, Populate, Purpose, Tables, Touch, Vma, clip};
use crate::table::HUGE_SIZE;

/// Gives advice about the use of `len` bytes from `addr`, rounded up to whole pages.
///
/// # Errors
/// [`MmError::BadAdvice`] for unknown advice, [`MmError::Unaligned`], [`MmError::OutOfRange`] (wraps): nothing is changed.
/// [`MmError::NotMapped`] if there were holes: **everything else was done**; populating stops at the first.
/// [`MmError::BadAdvice`], [`MmError::LockedMemory`], [`MmError::Denied`] where a VMA cannot follow, [`MmError::TryAgain`]
/// or [`MmError::NotDivisible`] where it would have to be split and cannot, [`MmError::Unreachable`], [`MmError::OutOfMemory`]: **the VMAs before it
/// have followed**. As in Linux.
///
/// # Linux
/// `do_madvise` in `mm/madvise.c` (6.18).
pub fn madvise(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    addr: u64,
    len: u64,
    advice: i32,
) -> Result<(), MmError> {
    let (range, advice) = check(addr, len, advice)?;
    if range.is_empty() {
        return Ok(());
    }
    match purpose(advice) {
        Some(purpose) => mm.populate(tables, range, purpose),
        None => each_vma(mm, tables, range, advice),
    }
}

fn check(addr: u64, len: u64, advice: i32) -> Result<(VirtRange, Advice), MmError> {
    let advice = match Advice::from_raw(advice) {
        None | Some(Advice::HwPoison | Advice::SoftOffline) => return Err(MmError::BadAdvice),
        Some(advice) => advice,
    };
    if !is_aligned(addr) {
        return Err(MmError::Unaligned);
    }
    let aligned = page_align(len);
    if len != 0 && aligned == 0 {
        return Err(MmError::OutOfRange);
    }
    let range = range(addr, addr.wrapping_add(aligned)).ok_or(MmError::OutOfRange)?;
    Ok((range, advice))
}

/// What pages are wanted for, where the advice is to bring them in.
const fn purpose(advice: Advice) -> Option<Purpose> {
    match advice {
        Advice::PopulateRead => Some(Purpose::Advice(Touch::Read)),
        Advice::PopulateWrite => Some(Purpose::Advice(Touch::Write)),
        Advice::WillNeed => Some(Purpose::ReadAhead),
        _ => None,
    }
}

/// What following an advice takes.
///
/// # Linux
/// `get_lock_mode` in `mm/madvise.c`. There `MADV_COLLAPSE` takes the lock for reading first.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "madvise_need_mmap_write")]
pub enum AdviceWork {
    /// Pages are brought in, with the address space's lock held for reading.
    Populate(Populate),
    /// Pages are taken away or marked, with the lock held for reading.
    Pages(PageAdvice),
    /// VMAs change, or a page table gives its place to a huge page: [`madvise`], with the lock held for writing.
    Vmas,
}

impl AdviceWork {
    /// What an advice about `len` bytes from `addr` takes.
    ///
    /// # Errors
    /// [`MmError::BadAdvice`] for unknown advice, [`MmError::Unaligned`], [`MmError::OutOfRange`], as [`madvise`].
    pub fn new(addr: u64, len: u64, advice: i32) -> Result<Self, MmError> {
        let (range, advice) = check(addr, len, advice)?;
        Ok(match (purpose(advice), advice) {
            (Some(purpose), _) => Self::Populate(Populate::new(range, purpose)),
            (
                None,
                Advice::DontNeed
                | Advice::DontNeedLocked
                | Advice::Free
                | Advice::Cold
                | Advice::PageOut
                | Advice::Remove
                | Advice::GuardInstall
                | Advice::GuardRemove,
            ) => Self::Pages(PageAdvice { range, done: range.start(), advice, hole: false, emptied: None }),
            _ => Self::Vmas,
        })
    }
}

/// Advice about pages under way. Between two steps the address space may be let go of: what is found there afterwards is looked at anew.
#[derive(Clone, Copy, Debug)]
pub struct PageAdvice {
    range: VirtRange,
    done: VirtAddr,
    advice: Advice,
    hole: bool,
    /// Where page tables have no entry any more.
    emptied: Option<VirtRange>,
}

/// How far advice about pages was followed.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub enum AdviceStep {
    /// Up to the end.
    Done,
    /// Up to a part of a file that is to get a hole, with the address space let go of.
    Hole(Vma, VirtRange),
    /// Up to where faults were faster each time: what comes next is a [step alone](PageAdvice::step_alone).
    Outrun,
}

impl PageAdvice {
    /// Follows the advice up to the end, or up to what is not to be done like this.
    ///
    /// # Locking
    /// The address space's lock is held, reading is enough.
    ///
    /// # Errors
    /// As [`madvise`].
    ///
    /// # Linux
    /// `madvise_walk_vmas` and `madvise_remove` in `mm/madvise.c`.
    pub fn step(&mut self, mm: &Mm<'_>, tables: &mut impl Tables) -> Result<AdviceStep, MmError> {
        while let Some((slot, part)) = self.next(mm) {
            allow_for_pages(&mm.vma(slot), self.advice)?;
            if self.advice == Advice::Remove {
                return Ok(AdviceStep::Hole(mm.vma(slot), part));
            }
            match advise_pages(mm, tables, slot, part, self.advice)? {
                Advised::Done => {}
                Advised::Emptied(tables) => self.note_emptied(tables),
                Advised::Outrun => {
                    self.done = part.start();
                    return Ok(AdviceStep::Outrun);
                }
            }
        }
        if self.hole { Err(MmError::NotMapped) } else { Ok(AdviceStep::Done) }
    }

    /// Follows the advice in one VMA more, with faults kept out of it.
    ///
    /// # Errors
    /// As [`madvise`].
    ///
    /// # Locking
    /// The address space's lock is held for writing.
    ///
    /// # Linux
    /// There `madvise_guard_install` in `mm/madvise.c` begins anew, by `restart_syscall`, as long as faults are faster. A library has no
    /// signals to let in before it
    /// does, and its callers no such answer.
    pub fn step_alone(&mut self, mm: &mut Mm<'_>, tables: &mut impl Tables) -> Result<(), MmError> {
        let Some((slot, part)) = self.next(mm) else { return Ok(()) };
        allow_for_pages(&mm.vma(slot), self.advice)?;
        mm.lock_vmas(part);
        match advise_pages(mm, tables, slot, part, self.advice)? {
            Advised::Done => Ok(()),
            Advised::Emptied(tables) => {
                self.note_emptied(tables);
                Ok(())
            }
            // Whoever puts pages there holds no lock that keeps this away.
            Advised::Outrun => Err(MmError::TryAgain),
        }
    }

    fn note_emptied(&mut self, tables: VirtRange) {
        let noted = self.emptied.unwrap_or(tables);
        self.emptied = VirtRange::new(noted.start().min(tables.start()), noted.end().max(tables.end()));
    }

    fn next(&mut self, mm: &Mm<'_>) -> Option<(Slot, VirtRange)> {
        let rest = VirtRange::new(self.done, self.range.end()).filter(|rest| !rest.is_empty())?;
        let Some(slot) = mm.find_vma_intersection(rest.start(), rest.end()) else {
            (self.hole, self.done) = (true, rest.end());
            return None;
        };
        let part = clip(&mm.vma(slot), rest).range();
        self.hole |= part.start() > rest.start();
        self.done = part.end();
        Some((slot, part))
    }

    /// What was gone along of a range in which page tables have no entry any more, which need the lock held for writing to go:
    /// [`Mm::free_empty_tables`]. None goes that lies in the range in part.
    pub fn emptied(&self) -> Option<VirtRange> {
        let done = VirtRange::new(self.range.start(), self.done)?;
        let tables = self.emptied?;
        let first = tables.start().max(done.start()).get().checked_next_multiple_of(HUGE_SIZE)?;
        (first.checked_add(HUGE_SIZE)? <= tables.end().min(done.end()).get()).then_some(done)
    }
}

/// Advises VMA by VMA; holes are passed over and reported at the end.
#[doc(alias = "madvise_walk_vmas")]
fn each_vma(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    range: VirtRange,
    advice: Advice,
) -> Result<(), MmError> {
    let mut hole = false;
    let mut done = range.start();
    while done < range.end() {
        let Some(slot) = mm.find_vma_intersection(done, range.end()) else {
            hole = true;
            break;
        };
        hole |= mm.vma(slot).start > done;
        let part = clip(&mm.vma(slot), VirtRange::new(done, range.end()).ok_or(MmError::OutOfRange)?).range();
        let slot = advise_part(mm, tables, slot, part, advice)?;
        done = part.end().max(mm.vma(slot).end);
    }
    if hole { Err(MmError::NotMapped) } else { Ok(()) }
}

#[doc(alias = "madvise_vma_behavior")]
fn advise_part(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    slot: Slot,
    part: VirtRange,
    advice: Advice,
) -> Result<Slot, MmError> {
    let vma = mm.vma(slot);
    if let Some(flags) = new_flags(&vma, advice)? {
        if flags == vma.flags {
            return Ok(slot);
        }
        return mm.modify_flags(tables, slot, part, flags).map_err(|error| match error {
            MmError::NotDivisible => error,
            _ => MmError::TryAgain,
        });
    }
    allow_for_pages(&vma, advice)?;
    mm.lock_vmas(part);
    match advise_pages(mm, tables, slot, part, advice)? {
        Advised::Done => Ok(slot),
        Advised::Emptied(_) => {
            mm.free_empty_tables(tables, part);
            Ok(slot)
        }
        // Whoever puts pages there holds no lock that keeps this away.
        Advised::Outrun => Err(MmError::TryAgain),
    }
}

/// Follows advice about the pages of a part of a VMA that allows it.
fn advise_pages(
    mm: &Mm<'_>,
    tables: &mut impl Tables,
    slot: Slot,
    part: VirtRange,
    advice: Advice,
) -> Result<Advised, MmError> {
    if advice == Advice::GuardInstall {
        if mm.vma(slot).backing.is_anonymous() {
            mm.prepare_anon(slot)?;
        }
        // The tables hold from here on what the flags do not say.
        mm.note_guards(slot);
    }
    tables.advise(&mm.vma(slot), part, advice)
}

/// The flags that the advice asks for; `None` if it is about pages.
fn new_flags(vma: &Vma, advice: Advice) -> Result<Option<VmFlags>, MmError> {
    let flags = vma.flags;
    let refuse = |condition: bool| if condition { Err(MmError::BadAdvice) } else { Ok(()) };
    Ok(Some(match advice {
        Advice::Normal => flags - VmFlags::RAND_READ - VmFlags::SEQ_READ,
        Advice::Sequential => (flags - VmFlags::RAND_READ) | VmFlags::SEQ_READ,
        Advice::Random => (flags - VmFlags::SEQ_READ) | VmFlags::RAND_READ,
        Advice::DontFork => flags | VmFlags::DONTCOPY,
        Advice::DoFork => {
            refuse(flags.contains(VmFlags::IO))?;
            flags - VmFlags::DONTCOPY
        }
        Advice::WipeOnFork => {
            refuse(vma.backing.file().is_some() || flags.contains(VmFlags::SHARED))?;
            flags | VmFlags::WIPEONFORK
        }
        Advice::KeepOnFork => {
            refuse(flags.contains(VmFlags::DROPPABLE))?;
            flags - VmFlags::WIPEONFORK
        }
        Advice::DontDump => flags | VmFlags::DONTDUMP,
        Advice::DoDump => {
            refuse(flags.intersects(VmFlags::SPECIAL | VmFlags::DROPPABLE))?;
            flags - VmFlags::DONTDUMP
        }
        Advice::Mergeable if may_be_mergeable(flags) => flags | VmFlags::MERGEABLE,
        Advice::Mergeable => flags,
        Advice::Unmergeable => flags - VmFlags::MERGEABLE,
        Advice::HugePage => (flags - VmFlags::NOHUGEPAGE) | VmFlags::HUGEPAGE,
        Advice::NoHugePage => (flags - VmFlags::HUGEPAGE) | VmFlags::NOHUGEPAGE,
        _ => return Ok(None),
    }))
}

#[doc(alias = "vma_ksm_compatible")]
fn may_be_mergeable(flags: VmFlags) -> bool {
    !flags.intersects(VmFlags::SHARED | VmFlags::MAYSHARE | VmFlags::SPECIAL | VmFlags::DROPPABLE)
}

/// Whether a VMA can follow advice about its pages.
fn allow_for_pages(vma: &Vma, advice: Advice) -> Result<(), MmError> {
    let locked = vma.flags.contains(VmFlags::LOCKED);
    let bare = vma.flags.contains(VmFlags::PFNMAP);
    match advice {
        Advice::DontNeed | Advice::Free | Advice::Cold | Advice::PageOut if locked => {
            Err(MmError::LockedMemory)
        }
        Advice::DontNeed | Advice::DontNeedLocked | Advice::Free | Advice::Cold | Advice::PageOut if bare => {
            Err(MmError::BadAdvice)
        }
        Advice::Free if !vma.backing.is_anonymous() => Err(MmError::BadAdvice),
        Advice::Remove if locked => Err(MmError::LockedMemory),
        Advice::Remove if vma.backing.file().is_none() => Err(MmError::BadAdvice),
        Advice::Remove if !vma.is_shared_writable() => Err(MmError::Denied),
        Advice::GuardInstall if locked => Err(MmError::LockedMemory),
        Advice::GuardInstall | Advice::GuardRemove if vma.flags.intersects(VmFlags::SPECIAL) => {
            Err(MmError::BadAdvice)
        }
        Advice::Collapse if !may_be_collapsed(vma) => Err(MmError::BadAdvice),
        _ => Ok(()),
    }
}

/// Whether small pages of it may become huge ones on demand: it is anonymous memory that has been touched.
///
/// # Linux
/// `__thp_vma_allowable_orders` in `mm/huge_memory.c`, as `madvise_collapse` asks.
fn may_be_collapsed(vma: &Vma) -> bool {
    vma.backing.is_anonymous()
        && vma.anon.is_some()
        && vma.holds_huge_page()
        && !vma.flags.intersects(VmFlags::SPECIAL | VmFlags::NOHUGEPAGE)
}
