//! Finding a VMA without the address space's lock.

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

use super::context::MmContext;
use super::set::{MmRb, hold};
use super::shared::{MmId, MmSlot};
use super::slot::{VmaNode, VmaSlot};
use super::vma::Vma;
use crate::addr::VirtAddr;
use crate::collections::{ListId, Slot, search_from};

/// A VMA that stays as it is, with its address space and the page tables for its addresses, for as long as this lives.
///
/// Whoever changes VMAs holds the address space's lock for writing, from the beginning to the end of a *section*. Before it touches a VMA, or
/// the pages of one, it locks it: faults that are in it are waited for, and no other gets in until the section is over. All VMAs that were
/// locked are unlocked at once, by counting one section more. Faults never wait: who does not get in takes the address space's lock.
///
/// ```text
///   section of the address space   4          4                 4                       5
///   last section of the VMA        2          2, count 1        4, count 0              4, count 1
///                                  nobody     a fault is in it  locked until 4 is over  a fault is in it again
/// ```
///
/// # Linux
/// What `lock_vma_under_rcu` in `mm/memory.c` answers with; dropping it is `vma_end_read`.
#[derive(Debug)]
#[must_use = "the VMA is let go when this is dropped"]
pub struct LockedVma<'c> {
    context: &'c MmContext<'c>,
    mm: &'c MmSlot,
    slot: Slot,
    node: &'c VmaNode,
    at: &'c VmaSlot,
}

impl<'c> LockedVma<'c> {
    /// What the address spaces share.
    pub const fn context(&self) -> &'c MmContext<'c> {
        self.context
    }

    /// What is reached of its address space without its lock.
    pub const fn mm(&self) -> &'c MmSlot {
        self.mm
    }

    /// Its slot.
    pub const fn slot(&self) -> Slot {
        self.slot
    }

    /// A copy of it.
    pub fn vma(&self) -> Vma {
        self.at.load(self.node)
    }

    /// Where it is kept.
    pub const fn vma_slot(&self) -> &'c VmaSlot {
        self.at
    }
}

impl Drop for LockedVma<'_> {
    fn drop(&mut self) {
        self.at.lock().leave(self.context.waiter);
    }
}

impl MmContext<'_> {
    /// The VMA of the address space `id` that holds `addr`, locked. `None` if there is none, if somebody is changing it or has changed it in the
    /// section that is not over yet, or if the way to it was being changed: who wants to know more takes the address space's lock.
    ///
    /// The way there proves nothing: what it leads to is locked and only then asked whether it is the VMA that was sought. Slots stay slots of
    /// VMAs, so it may be asked whatever became of it.
    ///
    /// # Locking
    /// Takes none that anybody could wait for, and never waits.
    ///
    /// # Linux
    /// `lock_vma_under_rcu` in `mm/memory.c` (6.4).
    #[doc(alias = "lock_vma_under_rcu")]
    pub fn lock_vma(&self, id: MmId, addr: VirtAddr) -> Option<LockedVma<'_>> {
        let mm = self.mms.get(id.slot())?;
        if let Some(found) = mm.recent().probe(addr, |slot| self.enter(mm, id, slot, addr)) {
            return Some(found);
        }
        let found = search_from::<_, MmRb, _>(self.pool.nodes(), mm.root(), |vma| hold(vma, addr)).found()?;
        let locked = self.enter(mm, id, found, addr)?;
        mm.recent().note(addr, found);
        Some(locked)
    }

    /// Locks the VMA in a slot if it is the one of the address space `id` that holds `addr`.
    fn enter<'s>(&'s self, mm: &'s MmSlot, id: MmId, slot: Slot, addr: VirtAddr) -> Option<LockedVma<'s>> {
        let node = self.pool.nodes().get(slot.index()).filter(|node| node.holds(addr))?;
        let at = self.pool.get(slot)?;
        if !at.lock().try_enter(mm.sections(), self.waiter) {
            return None;
        }
        let locked = LockedVma { context: self, mm, slot, node, at };
        let ours = at.owner() == ListId::of(id.slot()).get() && mm.id_is(id);
        (ours && node.holds(addr)).then_some(locked)
    }
}
