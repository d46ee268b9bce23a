//! Owners of anonymous pages: [`AnonVmas`].

use core::sync::atomic::{
    AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

mod check;

pub use check::AnonFault;

use super::{Place, RmapNodes, Walked};
use crate::addr::{PgOff, VirtAddr};
use crate::collections::{FreeStack, LinkError, ListHead, ListLink, Slot};
use crate::sync::{TaskGuard, TaskLock};

/// Names an owner of anonymous pages, among all address spaces of one memory. Its number is that of its node plus one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AnonVmaId(Slot);

impl AnonVmaId {
    /// The number, never 0.
    pub const fn get(self) -> u32 {
        self.0.code()
    }

    /// The owner with this number, whether there is one or not; `None` for 0.
    pub const fn new(raw: u32) -> Option<Self> {
        match Slot::from_code(raw) {
            Some(slot) => Some(Self(slot)),
            None => None,
        }
    }
}

/// Room for an owner of anonymous pages.
#[derive(Debug, Default)]
#[doc(alias = "anon_vma")]
pub struct AnonNode {
    /// The VMAs whose new pages belong to it.
    vmas: ListHead,
    children: ListHead,
    /// Its place among the children of its parent.
    sibling: ListLink,
    /// The owner that it was forked from, as number.
    parent: AtomicU32,
    /// The same for all that were forked from one, however often; 0 while the room is free.
    family: AtomicU32,
    /// Pages that belong to it.
    pages: AtomicU32,
    /// How many of them a recount has met.
    met: AtomicU32,
    /// The next free one, plus one.
    free: AtomicU32,
}

impl AnonNode {
    /// Room for one.
    pub const fn new() -> Self {
        Self {
            vmas: ListHead::new(),
            children: ListHead::new(),
            sibling: ListLink::new(),
            parent: AtomicU32::new(0),
            family: AtomicU32::new(0),
            pages: AtomicU32::new(0),
            met: AtomicU32::new(0),
            free: AtomicU32::new(0),
        }
    }

    fn parent(&self) -> Option<Slot> {
        Slot::from_code(self.parent.load(Relaxed))
    }
}

/// How many families can be changed at a time.
const LOCKS: usize = 64;

/// The owners of anonymous pages of all address spaces of one memory.
///
/// ```text
///   A ──┬── B ──── D        A's pages are mapped by VMAs of A, B, C and D only,
///       └── C               B's by those of B and D
/// ```
///
/// A VMA with anonymous pages has an owner, on whose list it is, and new pages of it belong to that owner. When a process
/// forks, the child's copy of the VMA gets an owner of its own below the parent's: it may map pages of all owners above it.
/// So who maps a page is found among the VMAs of its owner and of the owners below that one, and nowhere else.
///
/// An owner lives as long as it has a VMA or a page. One that has neither goes at once, and those below it move up; so there
/// are never more owners without VMAs than there are pages.
///
/// # Locking
/// One lock for a family, that is for all owners that go back to one by forks; families share a few locks. A lock of the
/// family and not of its root, because the root goes when it has nothing left, and its children then are several roots.
/// It is held while a walk visits a VMA: until it is let go the VMA stays where it is, and with it its address space and
/// its tables.
#[derive(Debug)]
pub struct AnonVmas<'c> {
    nodes: &'c [AnonNode],
    free: FreeStack,
    families: AtomicU32,
    locks: [TaskLock<()>; LOCKS],
}

fn anon_link<'n>(nodes: &'n dyn RmapNodes) -> impl Fn(Slot) -> Option<&'n ListLink> {
    move |slot| nodes.links(slot).map(|links| &links.anon)
}

impl<'c> AnonVmas<'c> {
    /// None yet, with room for as many as there are nodes.
    pub const fn new(nodes: &'c [AnonNode]) -> Self {
        Self {
            nodes,
            free: FreeStack::new(),
            families: AtomicU32::new(0),
            locks: [const { TaskLock::new(()) }; LOCKS],
        }
    }

    /// How many owners there are. O(n), and right if none comes or goes meanwhile.
    pub fn used(&self) -> u32 {
        self.free.used(|slot| self.nodes.get(slot.index()).map(|node| &node.free))
    }

    /// A new owner that nothing was inherited from; `None` if there is no room. It has no VMA yet: the caller gives it
    /// one, or gives it back by [`release`](Self::release).
    pub fn fresh(&self) -> Option<AnonVmaId> {
        let id = self.take()?;
        // Relaxed, and 0 is passed over: only the value matters. Two families of one number share a lock, which is all.
        let family = self.families.fetch_add(1, Relaxed).wrapping_add(1).max(1);
        self.node(id)?.family.store(family, Release);
        Some(id)
    }

    /// A new owner below `parent`, for a child's copy of a VMA; `None` if there is no room. It has no VMA yet, as a
    /// [`fresh`](Self::fresh) one.
    #[doc(alias = "anon_vma_fork")]
    pub fn fork(&self, parent: AnonVmaId) -> Option<AnonVmaId> {
        let id = self.take()?;
        let (Some(node), Some(_family)) = (self.node(id), self.lock(parent)) else {
            self.give(id);
            return None;
        };
        self.adopt(Some(parent.0), id.0);
        node.family.store(self.nodes[parent.0.index()].family.load(Relaxed), Release);
        Some(id)
    }

    /// Gives back an owner that got no VMA.
    pub fn release(&self, id: AnonVmaId) {
        if let Some(_family) = self.lock(id) {
            self.reap(id);
        }
    }

    /// Puts a VMA, which is in its slot, on its owner's list.
    ///
    /// # Errors
    /// `OutOfRange` if there is no such owner or slot, `AlreadyLinked` if the VMA is on an owner's list.
    #[doc(alias = "anon_vma_interval_tree_insert")]
    pub fn link(&self, nodes: &dyn RmapNodes, id: AnonVmaId, slot: Slot) -> Result<(), LinkError> {
        let _family = self.lock(id).ok_or(LinkError::OutOfRange)?;
        self.nodes[id.0.index()].vmas.push_back(slot, anon_link(nodes))
    }

    /// Puts a VMA on an owner's list if `claim`, called with the list's lock held, has given it that owner; else the owner
    /// goes back if it has nothing.
    pub fn link_if(
        &self,
        nodes: &dyn RmapNodes,
        id: AnonVmaId,
        slot: Slot,
        claim: impl FnOnce() -> bool,
    ) -> Result<(), LinkError> {
        let _family = self.lock(id).ok_or(LinkError::OutOfRange)?;
        if claim() {
            return self.nodes[id.0.index()].vmas.push_back(slot, anon_link(nodes));
        }
        self.reap(id);
        Ok(())
    }

    /// Takes a VMA off its owner's list; the owner goes if that was all it had.
    ///
    /// # Errors
    /// `OutOfRange` if there is no such owner or slot, `NotMember` if the VMA is not on this list.
    #[doc(alias = "unlink_anon_vmas")]
    pub fn unlink(&self, nodes: &dyn RmapNodes, id: AnonVmaId, slot: Slot) -> Result<(), LinkError> {
        let _family = self.lock(id).ok_or(LinkError::OutOfRange)?;
        self.nodes[id.0.index()].vmas.remove(slot, anon_link(nodes))?;
        self.reap(id);
        Ok(())
    }

    /// Counts a page that belongs to the owner from now on. The owner has a VMA, so it does not go meanwhile.
    pub fn add_page(&self, id: AnonVmaId) {
        self.add_pages(id, 1);
    }

    /// As [`add_page`](Self::add_page), for many pages.
    pub fn add_pages(&self, id: AnonVmaId, pages: u32) {
        if let Some(node) = self.node(id) {
            // Relaxed: who finds it at 0 under the lock has taken the last VMA off, after the page came.
            node.pages.fetch_add(pages, Relaxed);
        }
    }

    /// Counts a page that is freed. The owner goes if that was all it had; `false`, and nothing is changed, if it had none.
    #[must_use]
    pub fn remove_page(&self, id: AnonVmaId) -> bool {
        self.remove_pages(id, 1)
    }

    /// As [`remove_page`](Self::remove_page), for many pages; `false`, and nothing is changed, if it had not so many.
    #[must_use]
    pub fn remove_pages(&self, id: AnonVmaId, gone: u32) -> bool {
        let Some(node) = self.node(id) else { return false };
        // The last one under the lock, so that the owner goes once.
        let fewer = |pages: u32| pages.checked_sub(gone).filter(|&left| left != 0);
        if node.pages.fetch_update(AcqRel, Relaxed, fewer).is_ok() {
            return true;
        }
        let Some(_family) = self.lock(id) else { return false };
        let removed = node.pages.fetch_update(AcqRel, Relaxed, |pages| pages.checked_sub(gone)).is_ok();
        self.reap(id);
        removed
    }

    /// How many pages belong to the owner.
    pub fn pages(&self, id: AnonVmaId) -> u64 {
        self.node(id).map_or(0, |node| u64::from(node.pages.load(Relaxed)))
    }

    /// Visits every VMA that may show the page `index` of those that belong to the owner, with the address that shows it:
    /// VMAs of the owner and of those below it. The visitor answers whether it has found an entry.
    ///
    /// # Linux
    /// `rmap_walk_anon` in `mm/rmap.c`.
    #[doc(alias = "rmap_walk_anon")]
    pub fn walk_page(
        &self,
        nodes: &dyn RmapNodes,
        id: AnonVmaId,
        index: PgOff,
        mut visit: impl FnMut(&Place, VirtAddr) -> bool,
    ) -> Walked {
        let mut walked = Walked::default();
        let Some(_family) = self.lock(id) else { return walked };
        let mut at = Some(id.0);
        while let Some(node) = at {
            for slot in self.nodes[node.index()].vmas.iter(anon_link(nodes)) {
                let place = nodes.place(slot);
                let shown = place.and_then(|place| place.addr_of(index).map(|addr| (place, addr)));
                walked.count(shown.map_or(0, |(place, addr)| u32::from(visit(&place, addr))));
            }
            at = self.after(node, id.0);
        }
        walked
    }

    /// The one after `node` of those below `top`: its first child, else its next sibling, else that of the nearest parent
    /// which has one.
    fn after(&self, node: Slot, top: Slot) -> Option<Slot> {
        if let Some(child) = self.nodes[node.index()].children.front() {
            return Some(child);
        }
        let mut at = node;
        while at != top {
            let here = &self.nodes[at.index()];
            if let Some(next) = here.sibling.next() {
                return Some(next);
            }
            at = here.parent()?;
        }
        None
    }

    fn node(&self, id: AnonVmaId) -> Option<&'c AnonNode> {
        self.nodes.get(id.0.index())
    }

    fn sibling(&self) -> impl Fn(Slot) -> Option<&'c ListLink> {
        let nodes = self.nodes;
        move |slot| nodes.get(slot.index()).map(|node| &node.sibling)
    }

    fn free_link(&self, slot: Slot) -> &'c AtomicU32 {
        &self.nodes[slot.index()].free
    }

    fn take(&self) -> Option<AnonVmaId> {
        self.free.take(self.nodes.len(), |slot| self.free_link(slot)).map(AnonVmaId)
    }

    fn give(&self, id: AnonVmaId) {
        self.free.give(id.0, |slot| self.free_link(slot));
    }

    /// Takes the lock of the owner's family; `None` if there is no such owner.
    fn lock(&self, id: AnonVmaId) -> Option<TaskGuard<'_, ()>> {
        let node = self.node(id)?;
        loop {
            // Acquire pairs with the Release of whoever made or freed the owner.
            let family = node.family.load(Acquire);
            if family == 0 {
                return None;
            }
            let guard = self.locks[family as usize % LOCKS].lock();
            // It may have become another's before the lock was had.
            if node.family.load(Acquire) == family {
                return Some(guard);
            }
        }
    }

    /// Puts a node below another, or at the top.
    fn adopt(&self, parent: Option<Slot>, child: Slot) {
        self.nodes[child.index()].parent.store(Slot::code_of(parent), Relaxed);
        if let Some(parent) = parent {
            sound(self.nodes[parent.index()].children.push_back(child, self.sibling()));
        }
    }

    /// Frees an owner that has neither a VMA nor a page; those below it move up.
    fn reap(&self, id: AnonVmaId) {
        let node = &self.nodes[id.0.index()];
        if !node.vmas.is_empty() || node.pages.load(Acquire) != 0 {
            return;
        }
        let parent = node.parent();
        while let Some(child) = node.children.front() {
            sound(node.children.remove(child, self.sibling()));
            self.adopt(parent, child);
        }
        if let Some(parent) = parent {
            sound(self.nodes[parent.index()].children.remove(id.0, self.sibling()));
        }
        node.parent.store(0, Relaxed);
        node.family.store(0, Release);
        self.give(id);
    }
}

/// The forest knows what is where; an error means that it was corrupted.
fn sound(result: Result<(), LinkError>) {
    if let Err(error) = result {
        panic!("the owners of anonymous pages are corrupted: {error}");
    }
}

#[cfg(test)]
mod tests;
