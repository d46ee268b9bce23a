//! The kernel at a process's memory: bytes copied out of it and into it, pages pinned.

use lock_api::RawRwLock;

use super::{Process, Refused};
use crate::addr::{PAGE_SHIFT, Pfn, VirtAddr};
use crate::fault::{Access, PinAttempt, PinTerm, Signal, Stop};
use crate::memory::vm::WRITE_OUTS;
use crate::phys::PageSource;
use crate::table::EntryFormat;

impl<S: PageSource, F: EntryFormat, L: RawRwLock> Process<'_, '_, S, F, L> {
    /// Copies bytes out of the process's memory, for the kernel.
    ///
    /// # Errors
    /// [`Refused`] at the first byte that cannot be read; those before it were copied.
    pub fn copy_from_user(&self, addr: VirtAddr, out: &mut [u8]) -> Result<(), Refused> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = addr.checked_add(done as u64).ok_or(Refused::Signal(Signal::NonCanonical))?;
            let here = in_page(at, rest.len());
            self.reach(at, Access::Read, |frame, offset| {
                rest.get_mut(..here).is_some_and(|part| frame.read(offset, part))
            })?;
            done += here;
        }
        Ok(())
    }

    /// Copies bytes into the process's memory, for the kernel.
    ///
    /// # Errors
    /// [`Refused`] at the first byte that cannot be written; those before it were copied.
    pub fn copy_to_user(&self, addr: VirtAddr, bytes: &[u8]) -> Result<(), Refused> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let at = addr.checked_add(done as u64).ok_or(Refused::Signal(Signal::NonCanonical))?;
            let here = in_page(at, rest.len());
            self.reach(at, Access::Write, |frame, offset| {
                rest.get(..here).is_some_and(|part| frame.write(offset, part))
            })?;
            done += here;
        }
        Ok(())
    }

    /// Runs `touch` with the frame that an address leads to, faulting until it leads to one that allows the access.
    pub(in crate::memory) fn reach(
        &self,
        at: VirtAddr,
        access: Access,
        mut touch: impl FnMut(&crate::platform::Window<'_>, usize) -> bool,
    ) -> Result<(), Refused> {
        loop {
            match self.try_reach(at, access, &mut touch)? {
                Some(true) => return Ok(()),
                Some(false) => return Err(Refused::OutOfMemory),
                None => self.fault(at, access)?,
            };
        }
    }

    /// Runs `touch` with the frame that an address leads to, if that allows the access. The table is locked meanwhile, and keeps the frame.
    ///
    /// # Linux
    /// `copy_from_user` with page faults disabled, in `include/linux/uaccess.h`.
    pub(in crate::memory) fn try_reach<R>(
        &self,
        at: VirtAddr,
        access: Access,
        touch: impl FnOnce(&crate::platform::Window<'_>, usize) -> R,
    ) -> Result<Option<R>, Refused> {
        let mm = self.mm.read();
        let pages = self.pages(&mm).map_err(|_| Refused::Signal(Signal::NotMapped))?;
        pages.with_frame(at, access, touch).map_err(|_| Refused::Signal(Signal::NoPage))
    }

    /// Pins the pages from the one that holds `addr` on, faulting them in, one for each place of `out`: they stay the process's, and their frames
    /// stay what they are, until they are [unpinned](crate::memory::Vm::unpin_pages), whatever is unmapped meanwhile. Answers how many were pinned.
    ///
    /// # Errors
    /// [`Refused`] if not even the first could be: of memory without pages, of a device's, or that forbids the access; and with
    /// [`PinTerm::Long`] of a file whose pages must be clean at times. The system call answers EFAULT.
    ///
    /// # Linux
    /// `pin_user_pages` in `mm/gup.c`.
    #[doc(alias = "pin_user_pages")]
    #[doc(alias = "get_user_pages")]
    pub fn pin_pages(
        &self,
        addr: VirtAddr,
        access: Access,
        term: PinTerm,
        out: &mut [Pfn],
    ) -> Result<usize, Refused> {
        for (index, place) in out.iter_mut().enumerate() {
            let at = addr.page_floor().checked_add((index as u64) << PAGE_SHIFT);
            let pinned =
                at.ok_or(Refused::Signal(Signal::NotMapped)).and_then(|at| self.pin(at, access, term));
            match pinned {
                Ok(pfn) => *place = pfn,
                Err(refused) if index == 0 => return Err(refused),
                Err(_) => return Ok(index),
            }
        }
        Ok(out.len())
    }

    fn pin(&self, at: VirtAddr, access: Access, term: PinTerm) -> Result<Pfn, Refused> {
        let mut write_outs = 0;
        loop {
            let pinned = {
                let mm = self.mm.read();
                let pages = self.pages(&mm).map_err(|_| Refused::Signal(Signal::NotMapped))?;
                pages.pin_page(&mm, at, access, term)
            };
            match pinned {
                Ok(PinAttempt::Page(pfn)) => return Ok(pfn),
                Ok(PinAttempt::Again) => {}
                Ok(PinAttempt::Fault) => {
                    self.fault(at, access)?;
                }
                Err(Stop::Signal(signal)) => return Err(Refused::Signal(signal)),
                Err(Stop::Wait(ticket)) => self.vm.cache().wait(self.vm.source(), ticket),
                Err(Stop::OutOfMemory) if write_outs < WRITE_OUTS && self.vm.write_out() => write_outs += 1,
                Err(Stop::OutOfMemory) => return Err(Refused::OutOfMemory),
            }
        }
    }
}

/// How many of `len` bytes from `at` lie in the same page.
pub(in crate::memory) fn in_page(at: VirtAddr, len: usize) -> usize {
    let left = crate::addr::PAGE_SIZE as u64 - at.page_offset();
    len.min(left as usize)
}
