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

#[cfg(all(test, feature = "std", not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::addr::VirtAddr;
    use crate::fault::Access;
    use crate::flags::Prot;
    use crate::mm::RssKind;
    use crate::phys::Page;
    use crate::platform::CpuId;
    use crate::platform::hosted::Machine;
    use crate::syscall::MmapArgs;

    type Space<'v, 'a, 'm> = Process<'v, 'a, Memory<'m, Machine>>;

    /// What is found after `wreck` has changed a count of a process with one page; `mend` takes it back.
    fn found(
        wreck: impl FnOnce(&Space<'_, '_, '_>, VirtAddr),
        mend: impl FnOnce(&Space<'_, '_, '_>, VirtAddr),
    ) -> Result<(), Broken> {
        let machine = Machine::pc(16 << 20).build().unwrap();
        let _cpu = machine.cpu(CpuId::BOOT).unwrap();
        let memory = Memory::on(&machine).unwrap();
        let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
        let process = vm.process().unwrap();
        let args = MmapArgs::anonymous(4096, Prot::READ | Prot::WRITE);
        let addr = process.mmap(&args).unwrap();
        process.fault(addr, Access::Write).unwrap();
        vm.assert_sound(&[&process]);
        wreck(&process, addr);
        let mut tallies = std::vec![FrameTally::new(); memory.phys().slots()];
        let found = vm.check(&[&process], |_| 0, &mut tallies);
        mend(&process, addr);
        vm.assert_sound(&[&process]);
        found
    }

    #[test]
    fn resident_sizes_that_are_not_what_is_resident() {
        for kind in RssKind::ALL {
            let found = found(
                |process, _| process.with(|mm| mm.shared().add_rss(kind, 1)),
                |process, _| assert!(process.with(|mm| mm.shared().sub_rss(kind, 1))),
            );
            let there = u64::from(kind == RssKind::Anon);
            let is_told = matches!(
                found,
                Err(Broken::Pages(PagesCheckError::Rss(_, told, says, has))) if (told, says, has) == (kind, there + 1, there)
            );
            assert!(is_told, "{kind:?}: {found:?}");
        }
    }

    #[test]
    fn a_page_that_says_it_is_mapped_more_often_than_it_is() {
        fn page<'a>(process: &'a Space<'_, '_, '_>, addr: VirtAddr) -> &'a Page {
            let pfn = process.entry_state(addr).and_then(|state| state.resident()).unwrap().pfn;
            process.vm().source().phys().page(pfn).unwrap()
        }
        let found = found(
            |process, addr| page(process, addr).add_map(),
            |process, addr| assert_eq!(page(process, addr).remove_map(), Some(1)),
        );
        assert!(matches!(found, Err(Broken::Pages(PagesCheckError::MapCount(_, 2, 1)))), "{found:?}");
    }
}
