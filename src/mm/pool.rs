//! Who gives out the slots of VMAs and the nodes of gap indexes.

use super::error::MmError;
use super::gap::{GapNode, GapNodes};
use super::slot::{VmaNode, VmaSlot};
use super::vma::{FileRef, Vma};
use crate::collections::{FreeStack, Slot, Slots};
use crate::rmap::{Place, RmapLinks, RmapNodes};

/// Gives out VMA slots. One serves all address spaces of a memory.
#[derive(Debug)]
pub struct VmaPool<'p> {
    nodes: &'p [VmaNode],
    slots: &'p [VmaSlot],
    free: FreeStack,
}

impl<'p> VmaPool<'p> {
    /// A pool of these slots, all free; each is made of a node and what belongs to it. Of more than 2^31 the rest is not used.
    pub const fn new(nodes: &'p [VmaNode], slots: &'p [VmaSlot]) -> Self {
        Self { nodes, slots, free: FreeStack::new() }
    }

    /// How many slots are in use. O(n), and right if none is taken or given back meanwhile.
    pub fn used(&self) -> u32 {
        self.free.used(|slot| self.get(slot).map(VmaSlot::free_link))
    }

    /// How many slots there are.
    pub const fn capacity(&self) -> usize {
        if self.slots.len() < self.nodes.len() { self.slots.len() } else { self.nodes.len() }
    }

    pub(super) const fn nodes(&self) -> &'p [VmaNode] {
        self.nodes
    }

    pub(super) const fn slots(&self) -> &'p [VmaSlot] {
        self.slots
    }

    /// The slot with this number, in use or not.
    pub fn get(&self, slot: Slot) -> Option<&'p VmaSlot> {
        self.slots.get(slot.index())
    }

    /// The file that the VMA in the slot with this number maps, if it is one of an address space and maps one.
    pub(crate) fn file(&self, slot: Slot) -> Option<FileRef> {
        self.get(slot)?.file()
    }

    /// How many VMAs have an owner of anonymous pages.
    pub(super) fn owned(&self) -> u64 {
        self.slots.iter().filter(|slot| slot.anon().is_some()).count() as u64
    }

    /// How many VMAs map files.
    pub(crate) fn mapping_files(&self) -> u32 {
        self.slots.iter().filter(|slot| slot.file().is_some()).count() as u32
    }

    /// The slot with this number. The number comes from this pool, so that there is one.
    #[inline]
    pub(super) fn at(&self, slot: Slot) -> &'p VmaSlot {
        &self.slots[slot.index()]
    }

    /// Where the VMA in this slot lies. The number comes from this pool, so that there is one.
    #[inline]
    pub(super) fn node(&self, slot: Slot) -> &'p VmaNode {
        &self.nodes[slot.index()]
    }

    /// A copy of the VMA in this slot. The number comes from this pool, so that there is one.
    #[inline]
    pub(super) fn load(&self, slot: Slot) -> Vma {
        self.at(slot).load(self.node(slot))
    }

    /// Takes a free slot.
    ///
    /// # Errors
    /// [`MmError::OutOfSlots`].
    pub(super) fn take(&self) -> Result<Slot, MmError> {
        let link = |slot| self.at(slot).free_link();
        let slot = self.free.take(self.capacity(), link).ok_or(MmError::OutOfSlots)?;
        self.at(slot).next_generation();
        Ok(slot)
    }

    /// How many slots were never in use.
    pub(super) fn untouched(&self) -> usize {
        self.free.untouched(self.capacity())
    }

    /// Notes that a slot was taken back and given out again, to whoever had it.
    pub(super) fn renew(&self, slot: Slot) {
        self.at(slot).next_generation();
        self.at(slot).next_generation();
    }

    /// Takes a slot back.
    pub(super) fn give(&self, slot: Slot) {
        self.at(slot).next_generation();
        self.free.give(slot, |slot| self.at(slot).free_link());
    }
}

impl RmapNodes for VmaPool<'_> {
    fn links(&self, slot: Slot) -> Option<&RmapLinks> {
        self.get(slot).map(VmaSlot::rmap_links)
    }

    fn place(&self, slot: Slot) -> Option<Place> {
        self.get(slot)?.place(self.nodes.get(slot.index())?)
    }
}

/// The most slots that one step needs: a part split out of the middle of a VMA leaves two rests.
const MAX_RESERVED: usize = 2;

/// Slots taken ahead of need, so that what follows cannot fail. What is left over goes back.
#[derive(Debug)]
#[must_use]
pub(super) struct Reserved<'p> {
    pool: &'p VmaPool<'p>,
    slots: [Option<Slot>; MAX_RESERVED],
}

impl<'p> Reserved<'p> {
    /// Takes `n` slots, at most [`MAX_RESERVED`].
    ///
    /// # Errors
    /// [`MmError::OutOfSlots`]; then none is taken.
    pub(super) fn new(pool: &'p VmaPool<'p>, n: usize) -> Result<Self, MmError> {
        let mut reserved = Self { pool, slots: [None; MAX_RESERVED] };
        for place in reserved.slots.iter_mut().take(n) {
            *place = Some(pool.take()?);
        }
        Ok(reserved)
    }

    /// One of them. There are as many as were asked for.
    #[inline]
    pub(super) fn pop(&mut self) -> Slot {
        match self.slots.iter_mut().find_map(Option::take) {
            Some(slot) => slot,
            None => unreachable!("more slots used than reserved"),
        }
    }
}

impl Drop for Reserved<'_> {
    #[inline]
    fn drop(&mut self) {
        for slot in self.slots.iter().flatten() {
            self.pool.give(*slot);
        }
    }
}

/// Room for a node of a gap index.
#[derive(Debug, Default)]
pub struct GapRoom(GapNode);

impl GapRoom {
    /// Room for one node.
    pub const fn new() -> Self {
        Self(GapNode::new())
    }
}

/// Gives out nodes of gap indexes. One serves all address spaces of a memory.
pub struct GapPool<'p> {
    rooms: &'p [GapRoom],
    free: FreeStack,
}

impl<'p> GapPool<'p> {
    /// A pool of these nodes, all free. None at all will do: looking for room is then a walk along the VMAs.
    pub const fn new(rooms: &'p [GapRoom]) -> Self {
        Self { rooms, free: FreeStack::new() }
    }

    /// How many nodes are in use. O(n), and right if none is taken or given back meanwhile.
    pub fn used(&self) -> u32 {
        self.free.used(|slot| self.rooms.get(slot.index()).map(|room| room.0.free_link()))
    }
}

impl core::fmt::Debug for GapPool<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GapPool").field("rooms", &self.rooms.len()).field("free", &self.free).finish()
    }
}

impl Slots for &GapPool<'_> {
    type Item = GapNode;

    fn get(&self, slot: Slot) -> Option<&GapNode> {
        self.rooms.get(slot.index()).map(|room| &room.0)
    }
}

impl GapNodes for &GapPool<'_> {
    fn take(&self) -> Option<Slot> {
        self.free.take(self.rooms.len(), |slot| self.rooms[slot.index()].0.free_link())
    }

    fn give(&self, node: Slot) {
        self.free.give(node, |slot| self.rooms[slot.index()].0.free_link());
    }
}
