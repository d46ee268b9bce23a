//! The address space of a process.

use super::anon::{AnonVma, Lineage};
use super::context::{MmContext, ProtectionKeys, Sysctl};
use super::error::MmError;
use super::layout::{MmapLayout, legacy_base};
use super::limits::{Rlimits, Totals};
use super::merge::may_share_anon;
use super::set::VmaSet;
use super::shared::{MmId, MmRef, MmSlot};
use super::slot::{VmaNode, VmaSlot};
use super::tables::Touch;
use super::vma::Vma;
use crate::addr::{VirtAddr, VirtRange};
use crate::collections::Slot;
use crate::flags::{Prot, VmFlags};

/// Where the parts of the program lie.
///
/// # Linux
/// The fields of the same names in `struct mm_struct`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Image {
    /// The first byte of code.
    pub start_code: VirtAddr,
    /// The end of the code.
    pub end_code: VirtAddr,
    /// The first byte of initialised data.
    pub start_data: VirtAddr,
    /// The end of the initialised data.
    pub end_data: VirtAddr,
    /// Where the heap begins.
    pub start_brk: VirtAddr,
    /// Where the heap ends, to the byte.
    pub brk: VirtAddr,
    /// The stack pointer at the start of the program.
    pub start_stack: VirtAddr,
    /// The first byte of the arguments' text.
    pub arg_start: VirtAddr,
    /// The end of it.
    pub arg_end: VirtAddr,
    /// The first byte of the environment's text.
    pub env_start: VirtAddr,
    /// The end of it.
    pub env_end: VirtAddr,
}

/// The address space of a process, shared by its threads.
///
/// The value is what the address space's lock protects: `&Mm` means that it is held for reading, `&mut Mm` that it is
/// held for writing. The room's description has the lock order.
///
/// An address space that is dropped with VMAs in it keeps their slots and its own for ever;
/// [`exit`](crate::syscall::exit) gives them back.
///
/// # Linux
/// `struct mm_struct` in `include/linux/mm_types.h`.
#[derive(Debug)]
#[doc(alias = "mm_struct")]
pub struct Mm<'c> {
    pub(super) context: &'c MmContext<'c>,
    pub(super) set: VmaSet<'c>,
    pub(super) totals: Totals,
    /// The most pages that were mapped at a time, as of the last time that some were unmapped.
    pub(super) hiwater_vm: u64,
    /// Flags that every new VMA gets (`mlockall(MCL_FUTURE)`).
    pub(crate) def_flags: VmFlags,
    pub(crate) image: Image,
    pub(crate) rlimits: Rlimits,
    shared: MmRef<'c>,
    layout: MmapLayout,
    mmap_base: VirtAddr,
    mmap_legacy_base: VirtAddr,
}

impl<'c> Mm<'c> {
    /// An empty address space, searched top-down from the highest address, with default limits.
    ///
    /// # Errors
    /// [`MmError::OutOfSpaces`].
    #[doc(alias = "mm_alloc")]
    pub fn new(context: &'c MmContext<'c>) -> Result<Self, MmError> {
        let task_size = context.sysctl.task_size;
        let shared = context.mms.take()?;
        Ok(Self {
            context,
            set: VmaSet::new(context, &shared),
            totals: Totals::default(),
            hiwater_vm: 0,
            def_flags: VmFlags::empty(),
            image: Image::default(),
            rlimits: Rlimits::default(),
            shared,
            layout: MmapLayout::TopDown,
            mmap_base: VirtAddr::from(task_size),
            mmap_legacy_base: VirtAddr::from(legacy_base(task_size)),
        })
    }

    /// An empty address space with the layout and the limits of this one, for [`fork`](crate::syscall::fork) or
    /// [`exec`](crate::syscall::exec) to fill.
    ///
    /// # Errors
    /// [`MmError::OutOfSpaces`].
    pub fn new_child(&self) -> Result<Self, MmError> {
        let mut child = Self::new(self.context)?;
        child.inherit(self);
        Ok(child)
    }

    /// Takes over the layout and the limits of `parent`.
    pub(crate) const fn inherit(&mut self, parent: &Self) {
        self.image = parent.image;
        self.rlimits = parent.rlimits;
        self.layout = parent.layout;
        self.mmap_base = parent.mmap_base;
        self.mmap_legacy_base = parent.mmap_legacy_base;
    }

    /// Its name.
    pub const fn id(&self) -> MmId {
        self.shared.id()
    }

    /// What others reach of it without its lock.
    pub const fn shared(&self) -> &'c MmSlot {
        self.shared.slot()
    }

    /// What it shares with the other address spaces.
    pub const fn context(&self) -> &'c MmContext<'c> {
        self.context
    }

    pub(crate) const fn sysctl(&self) -> &'c Sysctl {
        &self.context.sysctl
    }

    /// Its VMAs.
    pub const fn vmas(&self) -> &VmaSet<'c> {
        &self.set
    }

    /// How many VMAs it has.
    pub const fn map_count(&self) -> u32 {
        self.set.len()
    }

    /// Sums over its VMAs.
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The most pages that were mapped at a time.
    #[doc(alias = "hiwater_vm")]
    pub fn peak_vm(&self) -> u64 {
        self.hiwater_vm.max(self.totals.total_vm)
    }

    /// Flags that every new VMA gets: those of `mlockall(MCL_FUTURE)`.
    pub const fn def_flags(&self) -> VmFlags {
        self.def_flags
    }

    /// Where the parts of the program lie.
    pub const fn image(&self) -> &Image {
        &self.image
    }

    /// Sets where the parts of the program lie; for loaders that do it themselves, as with `PR_SET_MM`.
    pub const fn set_image(&mut self, image: Image) {
        self.image = image;
    }

    /// Its limits.
    pub const fn rlimits(&self) -> &Rlimits {
        &self.rlimits
    }

    /// Changes its limits.
    pub const fn set_rlimits(&mut self, rlimits: Rlimits) {
        self.rlimits = rlimits;
    }

    /// Which end of the free addresses placement begins with.
    pub const fn layout(&self) -> MmapLayout {
        self.layout
    }

    /// Changes where placement begins.
    pub const fn set_layout(&mut self, layout: MmapLayout) {
        self.layout = layout;
    }

    /// Where the search downwards begins.
    pub const fn mmap_base(&self) -> VirtAddr {
        self.mmap_base
    }

    /// Sets where the search downwards begins.
    pub const fn set_mmap_base(&mut self, base: VirtAddr) {
        self.mmap_base = base;
    }

    /// Where the search upwards begins.
    pub const fn mmap_legacy_base(&self) -> VirtAddr {
        self.mmap_legacy_base
    }

    /// Sets where the search upwards begins.
    pub const fn set_mmap_legacy_base(&mut self, base: VirtAddr) {
        self.mmap_legacy_base = base;
    }

    /// The first VMA that ends above `addr`; `addr` may lie below it.
    ///
    /// # Linux
    /// `find_vma` in `mm/mmap.c`.
    #[inline]
    pub fn find_vma(&self, addr: VirtAddr) -> Option<Slot> {
        self.set.find(addr)
    }

    /// The VMA that holds `addr`.
    #[doc(alias = "vma_lookup")]
    pub fn lookup(&self, addr: VirtAddr) -> Option<Slot> {
        self.find_vma(addr).filter(|&slot| self.set.node(slot).start() <= addr)
    }

    /// The first VMA that shares a byte with `start..end`.
    pub fn find_vma_intersection(&self, start: VirtAddr, end: VirtAddr) -> Option<Slot> {
        self.find_vma(start).filter(|&slot| self.set.node(slot).start() < end)
    }

    /// What [`find_vma`](Self::find_vma) finds, and the VMA below `addr`.
    pub fn find_vma_prev(&self, addr: VirtAddr) -> (Option<Slot>, Option<Slot>) {
        let next = self.find_vma(addr);
        let prev = match next {
            Some(next) => self.set.prev(next),
            None => self.set.last(),
        };
        (next, prev)
    }

    /// A copy of a VMA.
    pub fn vma(&self, slot: Slot) -> Vma {
        self.set.get(slot)
    }

    /// Where a VMA lies, without a copy of the rest.
    #[inline]
    pub fn vma_node(&self, slot: Slot) -> &'c VmaNode {
        self.set.node(slot)
    }

    /// Where a VMA is kept: what is not in its copy.
    pub fn vma_slot(&self, slot: Slot) -> &'c VmaSlot {
        self.set.at(slot)
    }

    /// Keeps faults out of the VMAs that share a byte with `range`, until the section is over.
    pub(crate) fn lock_vmas(&mut self, range: VirtRange) {
        let mut at = self.find_vma_intersection(range.start(), range.end());
        while let Some(slot) = at {
            self.set.lock(slot);
            at = self.set.next(slot).filter(|&next| self.set.node(next).start() < range.end());
        }
    }

    /// Lets faults into the VMAs again that were changed. To be called before the address space's lock is let go that was held for writing; else
    /// faults in them take the lock until somebody does.
    ///
    /// # Linux
    /// `mmap_write_unlock` in `include/linux/mmap_lock.h`: `vma_end_write_all`.
    #[doc(alias = "vma_end_write_all")]
    pub fn end_section(&mut self) {
        self.set.end_section();
    }

    /// Gives a VMA an owner for its anonymous pages, if it has none: a neighbour's if the two may merge some day,
    /// else a new one.
    ///
    /// # Errors
    /// [`MmError::OutOfMemory`] if no owner can be had.
    ///
    /// # Locking
    /// Reading is enough: of two CPUs that fault at a time, one gives it, and both use it.
    ///
    /// # Linux
    /// `anon_vma_prepare` in `mm/rmap.c`, `find_mergeable_anon_vma` in `mm/vma.c`.
    #[doc(alias = "anon_vma_prepare")]
    pub fn prepare_anon(&self, slot: Slot) -> Result<(), MmError> {
        let vma = self.set.get(slot);
        if vma.anon.is_some() {
            return Ok(());
        }
        let lend = |other: Vma, lower: &Vma, upper: &Vma| {
            other.anon.filter(|anon| !anon.is_inherited() && may_share_anon(lower, upper))
        };
        let next = self.set.next(slot).map(|next| self.set.get(next));
        let prev = self.set.prev(slot).map(|prev| self.set.get(prev));
        let lent = next
            .and_then(|next| lend(next, &vma, &next))
            .or_else(|| prev.and_then(|prev| lend(prev, &prev, &vma)));
        let anon = match lent {
            Some(anon) => anon,
            None => {
                let id = self.context.anon_vmas.fresh().ok_or(MmError::OutOfMemory)?;
                AnonVma::new(id, Lineage::Own)
            }
        };
        self.set.claim_anon(slot, anon);
        Ok(())
    }

    pub(crate) fn set_anon(&mut self, slot: Slot, anon: Option<AnonVma>) {
        let vma = self.set.get(slot);
        self.set.set_attributes(slot, &Vma { anon, ..vma });
    }

    pub(crate) fn set_flags(&mut self, slot: Slot, flags: VmFlags) {
        self.set.set_flags(slot, flags);
    }

    /// Whether a first touch at `addr` needs an owner for anonymous pages: a store to private memory does, and a load
    /// where a huge page fits.
    pub fn touch_needs_anon(&self, vma: &Vma, addr: VirtAddr, touch: Touch) -> bool {
        if vma.flags.contains(VmFlags::SHARED) {
            return false;
        }
        touch == Touch::Write || vma.huge_page_at(addr, self.sysctl().huge_pages).is_some()
    }

    /// The flags of a protection that is asked for: execute-only memory is put behind a key where there are keys.
    pub(crate) fn access_flags(&self, prot: Prot) -> VmFlags {
        let keyed = prot == Prot::EXEC && self.sysctl().protection_keys == ProtectionKeys::Present;
        prot.vm_flags() | if keyed { VmFlags::EXECUTE_ONLY_KEY } else { VmFlags::empty() }
    }

    /// Whether the limits allow so many more pages with these flags.
    #[doc(alias = "may_expand_vm")]
    pub(crate) fn may_expand(&self, flags: VmFlags, pages: u64) -> Result<(), MmError> {
        self.totals.may_expand(&self.rlimits, flags, pages)
    }

    /// Whether the limit on locked memory allows so many more bytes, if the flags say that they are to be locked.
    #[doc(alias = "mlock_future_ok")]
    pub(crate) fn may_lock_future(&self, flags: VmFlags, bytes: u64) -> Result<(), MmError> {
        if self.totals.may_lock_future(&self.rlimits, flags, bytes) {
            Ok(())
        } else {
            Err(MmError::LockLimit)
        }
    }

    /// Charges `pages` to the committed memory of the system; the sums change when the VMAs do.
    pub(crate) fn charge(&self, pages: u64) -> Result<(), MmError> {
        self.context.overcommit.charge(pages, self.totals.total_vm)
    }

    /// Undoes [`charge`](Self::charge).
    pub(crate) fn uncharge(&self, pages: u64) {
        self.context.overcommit.uncharge(pages);
    }
}

impl Drop for Mm<'_> {
    fn drop(&mut self) {
        // VMAs that are left name this address space for ever.
        if !self.set.is_empty() {
            self.shared.keep_for_ever();
        }
    }
}
