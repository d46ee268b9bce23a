//! Faults of a process, and pages that are wanted before they are touched.

use lock_api::RawRwLock;

use super::{Pages, Process, Refused};
use crate::addr::VirtAddr;
use crate::cache::Step;
use crate::fault::{Access, Attempt, Fault, Resolved, Signal};
use crate::memory::vm::WRITE_OUTS;
use crate::mm::{MmError, MmId, Populate};
use crate::phys::PageSource;
use crate::sync::words::Ordering::Relaxed;
use crate::table::EntryFormat;

impl<'v, 'a, S: PageSource, F: EntryFormat, L: RawRwLock> Process<'v, 'a, S, F, L> {
    /// Resolves an access that the hardware refused; for the handler of page faults.
    ///
    /// # Locking
    /// Takes the lock of the VMA alone where that is enough: the fault then runs beside a call that changes other VMAs. Else takes the address
    /// space's lock, for writing only to grow a stack. A store is asked when both are free again: one that does all at once makes nobody [wait](Fault::Wait).
    ///
    /// # Linux
    /// `do_user_addr_fault` in `arch/x86/mm/fault.c`.
    #[doc(alias = "do_user_addr_fault")]
    pub fn handle_fault(&self, addr: VirtAddr, access: Access, attempt: Attempt) -> Fault {
        match self.fault_beside_writers(addr, access, attempt) {
            Some(done) => done,
            None => self.fault_in_space(addr, access, attempt),
        }
    }

    fn fault_in_space(&self, addr: VirtAddr, access: Access, attempt: Attempt) -> Fault {
        loop {
            let mm = self.mm.read();
            let Ok(pages) = self.pages(&mm) else { return Fault::Signal(Signal::NotMapped) };
            pages.note_attempt(attempt);
            let fault = pages.handle_fault(&mm, addr, access);
            self.count_faults(&pages);
            drop(mm);
            if pages.has_prepared() {
                return self.submit_and_fault(&pages, fault, addr, access, attempt);
            }
            if let Some(fault) = fault {
                return fault;
            }
            if self.write().find_vma_or_grow(addr).is_err() {
                return Fault::Signal(Signal::NotMapped);
            }
        }
    }

    fn fault_beside_writers(&self, addr: VirtAddr, access: Access, attempt: Attempt) -> Option<Fault> {
        let locked = self.vm.context().lock_vma(MmId::from_bits(self.id.load(Relaxed))?, addr)?;
        let pages = self.vm.pager().of_space(locked.mm())?;
        pages.note_attempt(attempt);
        let fault = pages.handle_fault_in(&locked, addr, access);
        self.count_faults(&pages);
        drop(locked);
        if pages.has_prepared() {
            return Some(self.submit_and_fault(&pages, fault, addr, access, attempt));
        }
        fault
    }

    /// Has the store asked for what a fault has prepared, and faults again if it has done that at once.
    #[cold]
    fn submit_and_fault(
        &self,
        pages: &Pages<'v, 'a, S, F>,
        fault: Option<Fault>,
        addr: VirtAddr,
        access: Access,
        attempt: Attempt,
    ) -> Fault {
        self.submit_reads(pages);
        let over = |ticket| self.vm.cache().io_is_over(self.vm.source(), ticket);
        match (fault, attempt) {
            (Some(Fault::Wait(ticket)), Attempt::First) if over(ticket) => {
                self.handle_fault(addr, access, Attempt::Again)
            }
            (Some(fault), _) => fault,
            // Only what needs a page prepares a read.
            (None, _) => self.handle_fault(addr, access, attempt),
        }
    }

    /// Counts the faults that are over.
    ///
    /// # Linux
    /// `mm_account_fault` in `mm/memory.c`.
    #[doc(alias = "mm_account_fault")]
    pub(super) fn count_faults(&self, pages: &Pages<'v, 'a, S, F>) {
        let faults = pages.take_faults();
        self.events.note(faults);
        self.vm.events().note(faults);
    }

    /// Like [`handle_fault`](Self::handle_fault), waiting where that says so; where memory is short, for [dirty pages](crate::memory::Vm::write_out) to be written.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn fault(&self, addr: VirtAddr, access: Access) -> Result<Resolved, Refused> {
        match self.fault_and_wait(addr, access) {
            Err(Refused::OutOfMemory) => self.fault_short_of_memory(addr, access),
            done => done,
        }
    }

    #[cold]
    fn fault_short_of_memory(&self, addr: VirtAddr, access: Access) -> Result<Resolved, Refused> {
        for _ in 0..WRITE_OUTS {
            if !self.vm.write_out() {
                break;
            }
            match self.fault_and_wait(addr, access) {
                Err(Refused::OutOfMemory) => {}
                done => return done,
            }
        }
        Err(Refused::OutOfMemory)
    }

    #[inline]
    fn fault_and_wait(&self, addr: VirtAddr, access: Access) -> Result<Resolved, Refused> {
        let mut attempt = Attempt::First;
        loop {
            match self.handle_fault(addr, access, attempt) {
                Fault::Done(resolved) => return Ok(resolved),
                Fault::Wait(ticket) => {
                    self.vm.cache().wait(self.vm.source(), ticket);
                    attempt = Attempt::Again;
                }
                Fault::Signal(signal) => return Err(Refused::Signal(signal)),
                Fault::OutOfMemory => return Err(Refused::OutOfMemory),
            }
        }
    }

    /// Makes resident what a call has left to be. No lock is held while a store is asked or waited for, and none where memory is short, while pages are
    /// [written](crate::memory::Vm::write_out).
    ///
    /// # Linux
    /// `__mm_populate` in `mm/gup.c`.
    #[doc(alias = "mm_populate")]
    pub(super) fn populate(&self, mut left: Populate, mut attempt: Attempt) -> Result<(), MmError> {
        let mut write_outs = 0;
        left.set_patient(true);
        loop {
            let (step, pages) = {
                let mm = self.mm.read();
                let mut pages = self.pages(&mm)?;
                pages.note_attempt(attempt);
                let step = left.step(&mm, &mut pages);
                self.count_faults(&pages);
                (step, pages)
            };
            self.submit_reads(&pages);
            match step {
                Ok(Step::Done) => return Ok(()),
                Ok(Step::Wait(ticket)) => self.vm.cache().wait(self.vm.source(), ticket),
                Err(MmError::OutOfMemory) if left.is_patient() => {
                    write_outs += 1;
                    if write_outs > WRITE_OUTS || !self.vm.write_out() {
                        left.set_patient(false);
                    }
                }
                Err(error) => return Err(error),
            }
            attempt = Attempt::Again;
        }
    }

    /// Has the stores asked for what was prepared with a lock held, when none is.
    pub(super) fn submit_reads(&self, pages: &Pages<'v, 'a, S, F>) {
        if pages.has_prepared() {
            self.vm.cache().finish_plug(self.vm.source(), pages.take_plug());
        }
    }
}
