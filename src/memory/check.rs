//! Everything recounted: frames, slabs, address spaces, their tables, entries, pages and files.

use lock_api::RawRwLock;

use super::Memory;
use super::process::Process;
use super::vm::Vm;
use crate::addr::Pfn;
use crate::collections::Slot;
use crate::fault::{FrameTally, PagesCheckError, Recount};
use crate::mm::{MmId, Violation};
use crate::phys::{CheckError, PageSource};
use crate::platform::Platform;
use crate::rmap::AnonFault;
use crate::slab::SlabCheckError;
use crate::table::{EntryFormat, TableCheckError};

/// What [`Memory::check`] or [`Vm::check`] found wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Broken {
    /// The allocator of frames.
    Frames(CheckError),
    /// The slab allocator.
    Slabs(SlabCheckError),
    /// The VMAs of an address space.
    Space(MmId, Violation),
    /// The page tables of an address space.
    Tables(MmId, TableCheckError),
    /// The page tables of the kernel's half.
    KernelTables(TableCheckError),
    /// The owners of anonymous pages.
    Anon(AnonFault),
    /// Pages, the entries that map them, or the page cache.
    Pages(PagesCheckError),
    /// There are so many address spaces with page tables, and so many were given.
    Spaces(u32, u32),
    /// So many slots of VMAs are in use, and the address spaces have so many.
    Vmas(u32, u32),
}

impl core::fmt::Display for Broken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Frames(error) => error.fmt(f),
            Self::Slabs(error) => error.fmt(f),
            Self::Space(id, violation) => write!(f, "address space {:?}: {violation}", id.slot()),
            Self::Tables(id, error) => write!(f, "address space {:?}: {error}", id.slot()),
            Self::KernelTables(error) => write!(f, "the kernel's half: {error}"),
            Self::Anon(fault) => fault.fmt(f),
            Self::Pages(error) => error.fmt(f),
            Self::Spaces(there, given) => {
                write!(f, "{there} address spaces have tables, and {given} were given")
            }
            Self::Vmas(used, found) => write!(f, "{used} VMAs are in use, and address spaces have {found}"),
        }
    }
}

impl core::error::Error for Broken {}

impl<P: Platform> Memory<'_, P> {
    /// Recounts the frames and the slabs.
    ///
    /// # Errors
    /// The first thing found wrong.
    ///
    /// # Locking
    /// None is held. No other CPU allocates or frees meanwhile.
    pub fn check(&self) -> Result<(), Broken> {
        self.phys().check(&self.pin()).map_err(Broken::Frames)?;
        self.slabs().map_or(Ok(()), |slabs| slabs.check(self).map_err(Broken::Slabs))
    }
}

impl<'a, S: PageSource, F: EntryFormat> Vm<'a, S, F> {
    /// Recounts the address spaces of `processes`, which are all that there are, their tables and pages, the page cache, and the frames: what entries
    /// allow, how often each page is mapped and in use and by whom, what is resident, and that every allocated frame is somebody's.
    ///
    /// `held` answers how many references to the block that a frame heads others have: the embedder that allocated it, a driver that has pinned it.
    /// `tallies` are as many as [`Phys::slots`](crate::phys::Phys::slots); what stands in them does not matter.
    ///
    /// # Errors
    /// The first thing found wrong.
    ///
    /// # Locking
    /// Takes each process's lock for reading, and all others one by one. Nobody changes anything meanwhile.
    pub fn check<'v, L: RawRwLock>(
        &'v self,
        processes: &[&Process<'v, 'a, S, F, L>],
        held: impl Fn(Pfn) -> u32,
        tallies: &mut [FrameTally],
    ) -> Result<(), Broken> {
        let pin = self.source().platform().pin();
        self.source().phys().check(&pin).map_err(Broken::Frames)?;
        drop(pin);
        let mut recount = Recount::new(self.pager(), tallies).map_err(Broken::Pages)?;
        let mut vmas = 0;
        for process in processes {
            vmas += process.check(&mut recount)?;
        }
        self.check_spaces(processes.len(), vmas)?;
        self.context().check_anon().map_err(Broken::Anon)?;
        self.kernel_tables().table().check().map_err(Broken::KernelTables)?;
        recount.kernel(self.kernel_tables());
        recount.cache().map_err(Broken::Pages)?;
        recount.finish(held).map_err(Broken::Pages)
    }

    fn check_spaces(&self, given: usize, vmas: u32) -> Result<(), Broken> {
        let mms = self.context().mms();
        let all = (0..).map_while(|index| mms.get(Slot::from_index(index)?));
        let there = all.filter(|mm| mm.pgd().is_some()).count() as u32;
        if there as usize != given {
            return Err(Broken::Spaces(there, given as u32));
        }
        let used = self.context().pool().used();
        if used == vmas { Ok(()) } else { Err(Broken::Vmas(used, vmas)) }
    }
}

impl<'v, 'a, S: PageSource, F: EntryFormat, L: RawRwLock> Process<'v, 'a, S, F, L> {
    /// Recounts one address space; how many VMAs it has.
    fn check(&self, recount: &mut Recount<'_, 'v, 'a, S, F>) -> Result<u32, Broken> {
        self.with(|mm| {
            mm.check().map_err(|violation| Broken::Space(mm.id(), violation))?;
            if let Some(table) = self.vm().pager().tables_of(mm) {
                table.check().map_err(|error| Broken::Tables(mm.id(), error))?;
            }
            recount.space(mm).map_err(Broken::Pages)?;
            Ok(mm.map_count())
        })
    }
}
