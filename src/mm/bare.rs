//! The VMAs of an address space by themselves, for whoever has rules of his own.

use super::check::Violation;
use super::context::MmContext;
use super::error::MmError;
use super::gap::Fit;
use super::pool::VmaPool;
use super::set::VmaSet;
use super::shared::{MmId, MmRef};
use super::vma::Vma;
use crate::addr::{VirtAddr, VirtRange};
use crate::collections::Slot;

/// The VMAs of an address space and nothing else: by address, with the highest room in O(log n). It is the set that an [`Mm`](super::Mm) consists of, without
/// an `Mm`'s limits, sums, merging and page tables, for kernels that have rules of their own. It keeps the room of the VMA that was taken out last for
/// the next one, if there is more than all sets can keep at that moment: who shares a pool of VMAs among sets counts one more for each.
///
/// ```
/// use kernmm::addr::{PgOff, VirtAddr, VirtRange};
/// use kernmm::flags::VmFlags;
/// use kernmm::mm::{Backing, BareSet, MmContext, MmSlot, MmStores, Overcommit, OvercommitMode, Sysctl, Vma, VmaNode, VmaSlot};
///
/// let (mms, vma_nodes, vmas): ([MmSlot; 1], [VmaNode; 8], [VmaSlot; 8]) = Default::default();
/// let stores = MmStores { mms: &mms, vma_nodes: &vma_nodes, vmas: &vmas, anon_vmas: &[], gaps: &[] };
/// let overcommit = Overcommit::new(OvercommitMode::Always, 0, 0);
/// let context = MmContext::new(stores, Sysctl::default(), overcommit);
///
/// let mut set = BareSet::new(&context)?;
/// let window = VirtRange::new(VirtAddr::from(0x1000), VirtAddr::from(0x10_0000)).unwrap();
/// let start = set.highest_room(0x2000, window).unwrap();
/// let end = VirtAddr::from(start.get() + 0x2000);
/// let vacant = set.reserve()?;
/// let vma = Vma { start, end, flags: VmFlags::READ, pgoff: PgOff::ZERO, backing: Backing::Anonymous, anon: None };
/// let slot = set.insert(vacant, &vma)?;
/// assert_eq!(set.vmas().find(VirtAddr::from(0xf_e123)), Some(slot));
/// set.end_section();
/// # Ok::<(), kernmm::mm::MmError>(())
/// ```
///
/// # Locking
/// As an `Mm`: `&mut` is the address space's lock held for writing; [`MmContext::lock_vma`] finds VMAs without it.
#[derive(Debug)]
pub struct BareSet<'c> {
    set: VmaSet<'c>,
    context: &'c MmContext<'c>,
    shared: MmRef<'c>,
    /// Where [`highest_room`](Self::highest_room) begins.
    top: VirtAddr,
    /// The room of the VMA that was taken out last, for the next one.
    kept: Option<Vacant<'c>>,
}

/// Room for one VMA, taken ahead of need, so that putting it in cannot fail for want of room. It goes back if it is not used.
#[derive(Debug)]
#[must_use]
pub struct Vacant<'c> {
    /// Whose it is.
    pool: &'c VmaPool<'c>,
    slot: Slot,
}

impl Drop for Vacant<'_> {
    fn drop(&mut self) {
        self.pool.give(self.slot);
    }
}

impl<'c> BareSet<'c> {
    /// An empty set.
    ///
    /// # Errors
    /// [`MmError::OutOfSpaces`].
    pub fn new(context: &'c MmContext<'c>) -> Result<Self, MmError> {
        let shared = context.mms.take()?;
        let set = VmaSet::new(context, &shared);
        let top = set.space().end();
        Ok(Self { set, context, shared, top, kept: None })
    }

    /// Says where windows end in which [`highest_room`](Self::highest_room) looks: it is fastest there. At the end of the user's addresses at first.
    #[doc(alias = "mmap_base")]
    pub const fn set_mmap_base(&mut self, base: VirtAddr) {
        self.top = base;
    }

    /// The name by which [`MmContext::lock_vma`] finds its VMAs.
    pub const fn id(&self) -> MmId {
        self.shared.id()
    }

    /// The VMAs, to look at.
    pub const fn vmas(&self) -> &VmaSet<'c> {
        &self.set
    }

    /// Takes room for a VMA: that of the one taken out last, if the set still has it.
    ///
    /// # Errors
    /// [`MmError::OutOfSlots`].
    #[inline]
    pub fn reserve(&mut self) -> Result<Vacant<'c>, MmError> {
        match self.kept.take() {
            Some(kept) => Ok(kept),
            None => Ok(Vacant { pool: &self.context.pool, slot: self.context.pool.take()? }),
        }
    }

    /// Puts in a VMA, as it is but for an owner of anonymous pages, which it has none of.
    ///
    /// # Errors
    /// [`MmError::OutOfRange`] if it is empty or not in the user's addresses, [`MmError::Exists`] if another one has part of them,
    /// [`MmError::OutOfSlots`] if the room is of another context; the set is as it was.
    pub fn insert(&mut self, vacant: Vacant<'c>, vma: &Vma) -> Result<Slot, MmError> {
        if !core::ptr::eq(vacant.pool, &raw const self.context.pool) {
            return Err(MmError::OutOfSlots);
        }
        if vma.start >= vma.end || vma.end > self.set.space().end() {
            return Err(MmError::OutOfRange);
        }
        let beside = self.set.beside(vma.range()).ok_or(MmError::Exists)?;
        let slot = vacant.slot;
        core::mem::forget(vacant);
        self.set.put(beside, slot, vma);
        self.set.at(slot).forget_anon();
        self.set.note_used(vma.range(), slot);
        Ok(slot)
    }

    /// Takes out the VMA that holds `addr`, and answers what it was.
    pub fn remove(&mut self, addr: VirtAddr) -> Option<Vma> {
        let slot = self.set.find_to_change(addr).filter(|&slot| self.set.node(slot).start() <= addr)?;
        let vma = self.set.get(slot);
        let (below, above) = (self.set.prev(slot), self.set.next(slot));
        self.set.take_out(slot);
        self.set.note_free(vma.range(), above);
        self.set.note_near(above.or(below));
        self.keep(slot);
        Some(vma)
    }

    /// Keeps the slot of a VMA that is gone for the next one, which so needs none that all share; but only while more were never in use than
    /// all sets together can keep.
    fn keep(&mut self, slot: Slot) {
        let pool = &self.context.pool;
        pool.renew(slot);
        let vacant = Vacant { pool, slot };
        self.kept = Some(vacant).filter(|_| pool.untouched() >= self.context.mms.capacity());
    }

    /// The highest address in `window` from which on `bytes` are free.
    #[doc(alias = "unmapped_area_topdown")]
    pub fn highest_room(&mut self, bytes: u64, window: VirtRange) -> Option<VirtAddr> {
        self.set.prepare_gaps(self.top);
        self.set.highest_fit(Fit::new(bytes, window)?, |gap, _| gap.highest())
    }

    /// The lowest address in `window` from which on `bytes` are free.
    #[doc(alias = "unmapped_area")]
    pub fn lowest_room(&mut self, bytes: u64, window: VirtRange) -> Option<VirtAddr> {
        self.set.prepare_gaps(self.top);
        self.set.lowest_fit(Fit::new(bytes, window)?, |gap, _| gap.lowest())
    }

    /// Lets look-ups into the VMAs again that were put in. To be called before the lock is let go of.
    #[doc(alias = "vma_end_write_all")]
    pub fn end_section(&mut self) {
        self.set.end_section();
    }

    /// Compares list, tree, gap index and what was found last with each other. O(n).
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), Violation> {
        self.set.check_links()?;
        self.set.check_gaps()
    }
}

impl Drop for BareSet<'_> {
    fn drop(&mut self) {
        while let Some(slot) = self.set.first() {
            self.set.remove(slot);
        }
        self.set.end_section();
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
