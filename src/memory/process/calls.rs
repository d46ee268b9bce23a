//! The calls of the mmap family, on a process.
//!
//! Each takes the address space's lock for writing, msync, mincore and advice about pages for reading, and then makes resident what it has left to be.

use lock_api::RawRwLock;

use super::Process;
use crate::addr::{Pfn, VirtAddr};
use crate::fault::Attempt;
use crate::flags::{MlockFlags, MlockallFlags, MremapFlags, MsyncFlags, Prot};
use crate::mm::MmError;
use crate::phys::PageSource;
use crate::syscall::{self, AdviceStep, AdviceWork, Device, Mincore, MmapArgs, Msync, PageAdvice, Residency};
use crate::table::{Caching, EntryFormat};

impl<S: PageSource, F: EntryFormat, L: RawRwLock> Process<'_, '_, S, F, L> {
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
        match AdviceWork::new(addr, len, advice)? {
            AdviceWork::Populate(left) => self.populate(left, Attempt::First),
            AdviceWork::Pages(work) => self.advise_pages(work),
            AdviceWork::Vmas => {
                self.call_and_populate(|mm, pages| syscall::madvise(mm, pages, addr, len, advice))
            }
        }
    }

    /// Follows advice about pages beside faults and other readers; tables that it has emptied go in a section of their own.
    fn advise_pages(&self, mut work: PageAdvice) -> Result<(), MmError> {
        let advised = loop {
            let hole = {
                let mm = self.mm.read();
                let mut pages = self.pages(&mm)?;
                match work.step(&mm, &mut pages) {
                    Ok(AdviceStep::Done) => break Ok(()),
                    Ok(AdviceStep::Hole(vma, part)) => pages.begin_hole(&vma, part).map(Some),
                    Ok(AdviceStep::Outrun) => Ok(None),
                    Err(error) => Err(error),
                }
            };
            let done = hole.and_then(|hole| match hole {
                Some(hole) => self.vm.pager().finish_hole(hole),
                None => self.call(|mm, pages| work.step_alone(mm, pages)),
            });
            if let Err(error) = done {
                break Err(error);
            }
        };
        match work.emptied() {
            Some(range) => self.call(|mm, pages| {
                mm.free_empty_tables(pages, range);
                advised
            }),
            None => advised,
        }
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
}
