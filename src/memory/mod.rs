//! The façade: frames for everybody, with what frames alone cannot do.
//!
//! [`Memory`] joins the allocator with the platform. A request that fails makes it *reclaim*: it asks the slab allocator and each
//! registered [`Shrinker`] to give frames back, and tries again. It zeroes, it reports a failure as Linux does, and on request it poisons free frames and
//! finds who writes to them. A [`Vm`] has what all processes share, page tables in one format; a [`Process`] is an address space with its pages, a [`File`] an
//! open file.
//!
//! A kernel keeps all that in statics, and names its types once:
//!
//! ```
//! # struct Kernel;
//! # // SAFETY: it has no frames.
//! # unsafe impl kernmm::platform::Platform for Kernel {
//! #     fn direct_map(&self, _: kernmm::addr::Pfn) -> Option<core::ptr::NonNull<u8>> { None }
//! # }
//! use kernmm::{memory, table::Sv39};
//!
//! type Memory = memory::Memory<'static, Kernel>;
//! type Vm = memory::Vm<'static, Memory, Sv39>;
//! type Process = memory::Process<'static, 'static, Memory, Sv39>;
//! type File = memory::File<'static, 'static, Memory, Sv39>;
//! # fn f(_: Memory, _: Vm, _: Process, _: File) {}
//! ```

mod access;
mod alloc;
mod check;
mod events;
mod exec;
mod file;
mod free;
mod futex;
#[cfg(feature = "std")]
mod hosted;
mod poison;
mod proc_reports;
mod process;
mod reclaim;
mod reports;
mod source;
mod uio;
#[cfg(feature = "std")]
mod user;
mod vm;
mod vm_error;
mod vm_reports;

pub use check::Broken;
pub use events::FaultCounts;
pub use exec::{ExecError, Program, Start, no_interpreter};
pub use file::{File, TransferError};
pub use futex::FutexKey;
#[cfg(feature = "std")]
pub use hosted::BootError;
pub use poison::PoisonHit;
pub use process::{Process, Refused, SpinRwLock};
pub use reclaim::{MAX_SHRINKERS, ShrinkRequest, Shrinker, TooManyShrinkers};

#[cfg(feature = "std")]
pub use user::User;
pub use vm::{Vm, VmLimits};
pub use vm_error::VmError;

use core::alloc::Layout;
use core::mem::MaybeUninit;

use crate::addr::PAGE_SIZE;
use crate::phys::{Config, InitError, Phys, Plan};
use crate::platform::{MemoryMap, MemoryRange, PinGuard, Platform};
use crate::slab::{CreateError, Slabs};

use poison::PoisonLog;
use reclaim::Shrinkers;
use reports::Events;

/// Debug aids, off unless asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// Whether free frames are filled with a pattern that is checked when they are allocated.
    pub poison: Poison,
}

impl Options {
    /// The same with free frames poisoned, or not.
    #[must_use]
    pub const fn poison(self, poison: Poison) -> Self {
        Self { poison }
    }
}

/// Whether free frames are filled with a pattern.
///
/// # Linux
/// `page_poison=` of the kernel's command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(alias = "page_poison")]
pub enum Poison {
    /// No.
    #[default]
    Off,
    /// Yes, from boot on, which touches every frame. All frames must then be allocated and freed through the façade.
    On,
}

/// The memory of a machine.
#[derive(Debug)]
pub struct Memory<'m, P: Platform> {
    platform: &'m P,
    phys: Phys<'m>,
    slabs: Option<Slabs<'m>>,
    options: Options,
    shrinkers: Shrinkers<'m>,
    poison_log: PoisonLog,
    events: Events,
}

impl<'m, P: Platform> Memory<'m, P> {
    /// The size and alignment of the metadata of a machine that was planned with this configuration: those of the frames and those of
    /// the slab allocator.
    pub fn metadata_layout(plan: &Plan, config: &Config<'_>) -> Layout {
        let slabs = Slabs::metadata_layout(config.cpus.len());
        let both = plan.metadata_layout().extend(slabs).map_or(slabs, |(both, _)| both);
        both.pad_to_align()
    }

    /// Boots from a memory map, with the metadata in `metadata`, which is as large and aligned as
    /// [`metadata_layout`](Self::metadata_layout) says, and does not lie in a usable range unless another range reserves it.
    ///
    /// # Errors
    /// [`InitError`].
    pub fn boot<I: Iterator<Item = MemoryRange> + Clone>(
        map: MemoryMap<'m, P, I>,
        config: &Config<'_>,
        options: Options,
        metadata: &'m mut [MaybeUninit<u8>],
    ) -> Result<Self, InitError> {
        let needed = Self::metadata_layout(&Plan::new(map.ranges(), config)?, config).size();
        let for_slabs = Slabs::metadata_layout(config.cpus.len()).size();
        if metadata.len() < needed {
            return Err(InitError::MetadataTooSmall(needed));
        }
        let (slabs, metadata) = metadata.split_at_mut(for_slabs);
        let phys = Phys::init(&map.platform().pin(), map.ranges(), config, metadata)?;
        Self::new(map.platform(), phys, slabs, options)
    }

    /// Boots from a memory map, with the metadata in frames of the map itself.
    ///
    /// # Errors
    /// [`InitError`].
    pub fn boot_in_map<I: Iterator<Item = MemoryRange> + Clone>(
        map: MemoryMap<'m, P, I>,
        config: &Config<'_>,
        options: Options,
    ) -> Result<Self, InitError> {
        Self::boot_in_map_with_room(map, config, options, 0).map(|(memory, _)| memory)
    }

    /// As [`boot_in_map`](Self::boot_in_map), with `room` bytes for others beside the metadata, from the start of a page: for those of a [`Vm`], which no
    /// block of the allocator may be large enough for.
    ///
    /// # Errors
    /// [`InitError`].
    ///
    /// # Linux
    /// `memblock_alloc` in `include/linux/memblock.h`.
    #[doc(alias = "memblock_alloc")]
    pub fn boot_in_map_with_room<I: Iterator<Item = MemoryRange> + Clone>(
        map: MemoryMap<'m, P, I>,
        config: &Config<'_>,
        options: Options,
        room: usize,
    ) -> Result<(Self, &'m mut [MaybeUninit<u8>]), InitError> {
        let for_slabs = Slabs::metadata_layout(config.cpus.len()).size();
        let pages = room.checked_next_multiple_of(PAGE_SIZE).ok_or(InitError::NoRoomForMetadata)?;
        let (phys, extra) = Phys::init_in_own_map(&map, config, pages.saturating_add(for_slabs))?;
        let (rest, slabs) = extra.split_at_mut_checked(pages).ok_or(InitError::NoRoomForMetadata)?;
        Ok((Self::new(map.platform(), phys, slabs, options)?, rest))
    }

    fn new(
        platform: &'m P,
        phys: Phys<'m>,
        for_slabs: &'m mut [MaybeUninit<u8>],
        options: Options,
    ) -> Result<Self, InitError> {
        let slabs = match Slabs::of_facade(&phys, platform, for_slabs) {
            Ok(slabs) => Some(slabs),
            Err(CreateError::NoVirtToPfn) => None,
            Err(CreateError::MetadataMisaligned) => return Err(InitError::MetadataMisaligned),
            Err(_) => return Err(InitError::NoRoomForMetadata),
        };
        let (shrinkers, poison_log, events) = (Shrinkers::new(), PoisonLog::new(), Events::new());
        let memory = Self { platform, phys, slabs, options, shrinkers, poison_log, events };
        if options.poison == Poison::On {
            memory.poison_all();
        }
        Ok(memory)
    }

    /// The slab allocator: caches and kmalloc. Its calls take this memory as their source of frames. `None` on a platform without
    /// [`virt_to_pfn`](Platform::virt_to_pfn).
    ///
    /// ```
    /// # use kernmm::{flags::GfpFlags, memory::Memory, platform::{CpuId, hosted::Machine}};
    /// # let machine = Machine::pc(16 << 20).build()?;
    /// # let _cpu = machine.cpu(CpuId::BOOT)?;
    /// # let memory = Memory::on(&machine)?;
    /// let slabs = memory.slabs().ok_or("the platform finds no frame by its address")?;
    /// let object = slabs.kmalloc(&memory, 100, GfpFlags::KERNEL)?;
    /// // SAFETY: nobody uses the object any more.
    /// unsafe { slabs.kfree(&memory, object) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn slabs(&self) -> Option<&Slabs<'m>> {
        self.slabs.as_ref()
    }

    /// The allocator of frames, for its state and tunables.
    pub fn phys(&self) -> &Phys<'m> {
        &self.phys
    }

    /// The platform.
    pub fn platform(&self) -> &'m P {
        self.platform
    }

    /// Keeps the caller on its CPU with interrupts masked until the answer is dropped.
    pub fn pin(&self) -> PinGuard<'m, P> {
        self.platform.pin()
    }

    /// Lets other CPUs have what this one keeps: to be called when the CPU goes idle or offline.
    ///
    /// # Linux
    /// What `cpu_vm_stats_fold` and `page_alloc_cpu_dead` do for a CPU that leaves.
    pub fn idle(&self) {
        if let Some(slabs) = &self.slabs {
            slabs.idle(self);
        }
        self.phys.idle(&self.pin());
    }

    /// Serves what other CPUs ask of this one: to be called by the handler of [`Platform::kick`]'s interrupt.
    pub fn serve(&self) {
        if let Some(slabs) = &self.slabs {
            slabs.serve(self);
        }
        self.phys.serve(&self.pin());
    }
}
