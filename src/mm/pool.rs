//! Who gives out the slots of VMAs and the nodes of gap indexes.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use super::error::MmError;
use super::gap::{GapNode, GapNodes};
use super::slot::VmaSlot;
use crate::collections::{Slot, Slots};

/// The numbers of a store that are free.
///
/// # Locking
/// None: the free numbers are a stack that is changed by one compare-and-exchange of its head, whose upper half counts the
/// changes, so that a head that left and came back is not taken for one that stayed.
#[derive(Debug)]
struct FreeStack {
    /// The number on top, plus one, below the count of changes.
    head: AtomicU64,
    /// How many numbers were given out at least once.
    touched: AtomicU32,
    used: AtomicU32,
}

impl FreeStack {
    const fn new() -> Self {
        Self { head: AtomicU64::new(0), touched: AtomicU32::new(0), used: AtomicU32::new(0) }
    }

    /// A free number of a store of `len`; `link` is where a number keeps the next one.
    fn take<'p>(&self, len: usize, link: impl Fn(Slot) -> &'p AtomicU32) -> Option<Slot> {
        let slot = self.pop(link).or_else(|| self.touch(len))?;
        self.used.fetch_add(1, Relaxed);
        Some(slot)
    }

    fn pop<'p>(&self, link: impl Fn(Slot) -> &'p AtomicU32) -> Option<Slot> {
        // Acquire pairs with the Release of `give`: who gets the number sees its link.
        let mut head = self.head.load(Acquire);
        loop {
            let slot = Slot::new((head as u32).checked_sub(1)?)?;
            let next = link(slot).load(Relaxed);
            match self.head.compare_exchange_weak(head, changed(head, next), Acquire, Acquire) {
                Ok(_) => return Some(slot),
                Err(now) => head = now,
            }
        }
    }

    fn touch(&self, len: usize) -> Option<Slot> {
        let limit = u32::try_from(len).unwrap_or(u32::MAX).min(Slot::MAX_INDEX >> 1);
        let index = self.touched.fetch_update(Relaxed, Relaxed, |n| (n < limit).then(|| n + 1)).ok()?;
        Slot::new(index)
    }

    fn give<'p>(&self, slot: Slot, link: impl Fn(Slot) -> &'p AtomicU32) {
        self.used.fetch_sub(1, Relaxed);
        let mut head = self.head.load(Relaxed);
        loop {
            link(slot).store(head as u32, Relaxed);
            match self.head.compare_exchange_weak(head, changed(head, slot.get() + 1), Release, Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

const fn changed(head: u64, top: u32) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | top as u64
}

/// Gives out VMA slots. One serves all address spaces of a memory.
#[derive(Debug)]
pub struct VmaPool<'p> {
    slots: &'p [VmaSlot],
    free: FreeStack,
}

impl<'p> VmaPool<'p> {
    /// A pool of these slots, all free. Of more than 2^31 the rest is not used.
    pub const fn new(slots: &'p [VmaSlot]) -> Self {
        Self { slots, free: FreeStack::new() }
    }

    /// How many slots are in use.
    pub fn used(&self) -> u32 {
        self.free.used.load(Relaxed)
    }

    /// How many slots there are.
    pub const fn capacity(&self) -> usize {
        self.slots.len()
    }

    pub(super) const fn slots(&self) -> &'p [VmaSlot] {
        self.slots
    }

    /// The slot with this number. The number comes from this pool, so that there is one.
    pub(super) fn at(&self, slot: Slot) -> &'p VmaSlot {
        &self.slots[slot.index()]
    }

    /// Takes a free slot.
    ///
    /// # Errors
    /// [`MmError::OutOfSlots`].
    pub(super) fn take(&self) -> Result<Slot, MmError> {
        let link = |slot| self.at(slot).free_link();
        let slot = self.free.take(self.slots.len(), link).ok_or(MmError::OutOfSlots)?;
        self.at(slot).next_generation();
        Ok(slot)
    }

    /// Takes a slot back.
    pub(super) fn give(&self, slot: Slot) {
        self.at(slot).next_generation();
        self.free.give(slot, |slot| self.at(slot).free_link());
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
    pub(super) fn pop(&mut self) -> Slot {
        match self.slots.iter_mut().find_map(Option::take) {
            Some(slot) => slot,
            None => unreachable!("more slots used than reserved"),
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        for slot in self.slots.iter().flatten() {
            self.pool.give(*slot);
        }
    }
}

/// Room for a node of a gap index.
#[derive(Debug, Default)]
pub struct GapRoom {
    node: GapNode,
    free: AtomicU32,
}

impl GapRoom {
    /// Room for one node.
    pub const fn new() -> Self {
        Self { node: GapNode::new(), free: AtomicU32::new(0) }
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

    /// How many nodes are in use.
    pub fn used(&self) -> u32 {
        self.free.used.load(Relaxed)
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
        self.rooms.get(slot.index()).map(|room| &room.node)
    }
}

impl GapNodes for &GapPool<'_> {
    fn take(&self) -> Option<Slot> {
        self.free.take(self.rooms.len(), |slot| &self.rooms[slot.index()].free)
    }

    fn give(&self, node: Slot) {
        self.free.give(node, |slot| &self.rooms[slot.index()].free);
    }
}
