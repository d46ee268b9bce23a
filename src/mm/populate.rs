//! Making a range resident, as mlock and `MAP_POPULATE` do.
//!
//! Pages may have to be read from a store for that, so it is no part of the call that asks for it: the call leaves a [`Populate`], which is done
//! when its lock has been let go of, a piece at a time and each under the lock held for reading.
//!
//! # Linux
//! `__mm_populate` and `populate_vma_page_range` in `mm/gup.c`.

use super::error::MmError;
use super::space::Mm;
use super::tables::{Tables, Touch};
use super::unmap::clip;
use super::vma::Vma;
use crate::addr::{VirtAddr, VirtRange};
use crate::cache::{IoTicket, Step};
use crate::collections::Slot;
use crate::flags::VmFlags;
use crate::table::HUGE_SIZE;

/// Who wants pages to be resident, and what is to be done about those that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// mmap, brk, mremap, mlockall: holes are passed over, and at a page that cannot be had the next VMA is gone on with.
    Mapping,
    /// mlock: holes are passed over, a page that cannot be had is an error, by POSIX's names.
    Lock,
    /// `MADV_WILLNEED`: reads are begun and not waited for, unless there are too many; holes are an error when all else is done.
    ReadAhead,
    /// `MADV_POPULATE_READ` and `MADV_POPULATE_WRITE`: a hole, a VMA that forbids it and a page that cannot be had are errors.
    Advice(Touch),
}

/// What a call leaves to be made resident, and how far that is.
///
/// # Linux
/// The `populate` argument of `do_mmap`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "mm_populate")]
#[must_use = "nothing is resident until it is done"]
pub struct Populate {
    rest: VirtRange,
    purpose: Purpose,
    hole: bool,
    /// Whether it is to be told that memory is short before that is an error.
    is_patient: bool,
}

impl Populate {
    pub(crate) const fn new(range: VirtRange, purpose: Purpose) -> Self {
        Self { rest: range, purpose, hole: false, is_patient: false }
    }

    /// Whether [`MmError::OutOfMemory`] is no more than a hint that memory is short where it stands: when there is some, it can go on.
    pub const fn is_patient(&self) -> bool {
        self.is_patient
    }

    /// Says whether it is: at first a page for which there is no memory is one that cannot be had.
    pub const fn set_patient(&mut self, is_patient: bool) {
        self.is_patient = is_patient;
    }

    /// Goes on. After [`Step::Wait`] the address space may be let go of: what is found there afterwards is looked at anew. So that others have their turn, that may come
    /// where nothing has to be waited for.
    ///
    /// # Errors
    /// What the call that left this answers with, where pages cannot be had; but [`MmError::OutOfMemory`] as long as it is [patient](Self::is_patient).
    pub fn step(&mut self, mm: &Mm<'_>, tables: &mut impl Tables) -> Result<Step, MmError> {
        while let Some((slot, mut part, wanted)) = self.next(mm)? {
            let end = part.end();
            let step = match wanted {
                Wanted::Resident(touch) => tables.populate(mm, slot, &mut part, touch),
                Wanted::Read => Ok(tables.read_ahead(&mm.vma(slot), &mut part)),
            };
            self.go_on_at(part.start());
            match step {
                Ok(Step::Done) => self.go_on_at(end),
                Ok(wait) => return Ok(wait),
                Err(MmError::OutOfMemory) if self.is_patient => return Err(MmError::OutOfMemory),
                Err(error) => {
                    self.refuse(error)?;
                    self.go_on_at(end);
                }
            }
        }
        let failed = self.hole && self.purpose == Purpose::ReadAhead;
        if failed { Err(MmError::NotMapped) } else { Ok(Step::Done) }
    }

    fn go_on_at(&mut self, at: VirtAddr) {
        self.rest = VirtRange::new(at, self.rest.end()).unwrap_or_default();
    }

    /// The next part to be touched: in one VMA, which allows it.
    fn next(&mut self, mm: &Mm<'_>) -> Result<Option<(Slot, VirtRange, Wanted)>, MmError> {
        while !self.rest.is_empty() {
            let found = mm.find_vma(self.rest.start()).map(|slot| (slot, mm.vma(slot)));
            if matches!(self.purpose, Purpose::Advice(_)) {
                found.filter(|(_, vma)| vma.start <= self.rest.start()).ok_or(MmError::NotMapped)?;
            }
            self.hole |= found.is_none_or(|(_, vma)| vma.start > self.rest.start());
            let Some((slot, vma)) = found.filter(|(_, vma)| vma.start < self.rest.end()) else { break };
            let part = clip(&vma, self.rest).range();
            match how(&vma, self.purpose) {
                How::Do(wanted) => return Ok(Some((slot, part, wanted))),
                How::Pass => {}
                How::Refuse(error) => self.refuse(error)?,
            }
            self.go_on_at(part.end());
        }
        Ok(None)
    }

    /// What becomes of an error.
    fn refuse(&self, error: MmError) -> Result<(), MmError> {
        match (self.purpose, error) {
            (Purpose::Mapping | Purpose::ReadAhead, _) => Ok(()),
            (Purpose::Lock, MmError::Unreachable) => Err(MmError::NotMapped),
            (Purpose::Lock, _) => Err(MmError::TryAgain),
            (Purpose::Advice(_), error) => Err(error),
        }
    }
}

/// What is wanted of pages.
enum Wanted {
    /// That they are mapped.
    Resident(Touch),
    /// That they are on their way from their file.
    Read,
}

/// What is to be done with a VMA.
enum How {
    Do(Wanted),
    Pass,
    Refuse(MmError),
}

fn how(vma: &Vma, purpose: Purpose) -> How {
    let bare = vma.flags.intersects(VmFlags::IO | VmFlags::PFNMAP);
    match purpose {
        Purpose::Advice(touch) => {
            let needed = if touch == Touch::Write { VmFlags::WRITE } else { VmFlags::READ };
            if bare || !vma.flags.contains(needed) {
                How::Refuse(MmError::BadAdvice)
            } else {
                How::Do(Wanted::Resident(touch))
            }
        }
        Purpose::ReadAhead => How::Do(Wanted::Read),
        Purpose::Mapping | Purpose::Lock => {
            if bare || vma.flags.contains(VmFlags::LOCKONFAULT) {
                How::Pass
            } else {
                touch_to_lock(vma)
                    .map_or(How::Refuse(MmError::Unreachable), |touch| How::Do(Wanted::Resident(touch)))
            }
        }
    }
}

/// How memory is touched that is to be locked: by writing where that breaks copy-on-write, else by reading; not at all if nobody may.
fn touch_to_lock(vma: &Vma) -> Option<Touch> {
    let allowed = vma.flags.is_accessible() && !vma.flags.contains(VmFlags::EXECUTE_ONLY_KEY);
    allowed.then_some(if vma.flags.is_private_writable() { Touch::Write } else { Touch::Read })
}

impl Mm<'_> {
    /// Leaves a range to be made resident, or does it at once where nothing can have to be waited for.
    ///
    /// # Errors
    /// As [`Populate::step`].
    pub(crate) fn populate(
        &self,
        tables: &mut impl Tables,
        range: VirtRange,
        purpose: Purpose,
    ) -> Result<(), MmError> {
        match tables.defer(Populate::new(range, purpose)) {
            Some(mut now) => {
                while now.step(self, tables)? == Step::Wait(IoTicket::OVER) {}
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Makes copies now of what may be written in a part of a VMA that is locked. From the first page on that must be read this is left until the lock has been let
    /// go of; what cannot be had, and what a second VMA of one call has to be read, is left to faults.
    pub(crate) fn populate_locked(&self, tables: &mut impl Tables, slot: Slot, part: VirtRange) {
        let vma = self.vma(slot);
        if let Some(touch) = touch_to_lock(&vma).filter(|_| !vma.flags.contains(VmFlags::LOCKONFAULT)) {
            let mut rest = part;
            // Linux ignores errors here as well.
            if let Ok(Step::Wait(_)) = tables.populate(self, slot, &mut rest, touch) {
                let _to_faults = tables.defer(Populate::new(rest, Purpose::Mapping));
            }
        }
    }

    /// Does to the VMA in `slot` what touching all pages of a part of it does, which allows that.
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`] if it cannot have an owner for anonymous pages.
    pub(super) fn touch_range(&self, slot: Slot, range: VirtRange, touch: Touch) -> Result<(), MmError> {
        match self.needs_anon_in(&self.vma(slot), range, touch) {
            true => self.prepare_anon(slot),
            false => Ok(()),
        }
    }

    fn needs_anon_in(&self, vma: &Vma, range: VirtRange, touch: Touch) -> bool {
        let last = VirtAddr::from(range.end().get().saturating_sub(1));
        let inner = VirtAddr::from((range.start().get() | (HUGE_SIZE - 1)).saturating_add(1));
        // A huge page that fits at all fits at the start, at the end, or after the first boundary.
        self.touch_needs_anon(vma, range.start(), touch)
            || self.touch_needs_anon(vma, last, touch)
            || (inner < range.end() && self.touch_needs_anon(vma, inner, touch))
    }
}
