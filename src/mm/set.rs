//! The VMAs of one address space, by address.

use super::slot::{Slot, VmaPool, VmaSlot};
use super::vma::Vma;
use crate::addr::{PgOff, VirtAddr};
use crate::flags::VmFlags;

/// The VMAs of one address space, in the order of their addresses.
#[derive(Debug)]
pub struct VmaSet<'p> {
    pool: &'p VmaPool<'p>,
    owner: u32,
    first: Option<Slot>,
    last: Option<Slot>,
    len: u32,
}

impl<'p> VmaSet<'p> {
    /// No VMAs.
    pub(super) const fn new(pool: &'p VmaPool<'p>, owner: u32) -> Self {
        Self { pool, owner, first: None, last: None, len: 0 }
    }

    /// How many VMAs there are.
    #[doc(alias = "map_count")]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The lowest.
    #[doc(alias = "mmap")]
    pub const fn first(&self) -> Option<Slot> {
        self.first
    }

    /// The highest.
    pub const fn last(&self) -> Option<Slot> {
        self.last
    }

    /// The next one above.
    #[doc(alias = "vm_next")]
    pub fn next(&self, slot: Slot) -> Option<Slot> {
        self.at(slot).next()
    }

    /// The next one below.
    #[doc(alias = "vm_prev")]
    pub fn prev(&self, slot: Slot) -> Option<Slot> {
        self.at(slot).prev()
    }

    /// A copy of one.
    pub fn get(&self, slot: Slot) -> Vma {
        self.at(slot).load()
    }

    /// The first VMA that ends above `addr`.
    pub fn find(&self, addr: VirtAddr) -> Option<Slot> {
        let mut at = self.first;
        while let Some(slot) = at {
            if self.at(slot).end() > addr {
                return Some(slot);
            }
            at = self.next(slot);
        }
        None
    }

    /// The VMAs, upwards.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, Vma)> + '_ {
        let mut at = self.first;
        core::iter::from_fn(move || {
            let slot = at?;
            at = self.next(slot);
            Some((slot, self.get(slot)))
        })
    }

    /// Whether the slot is in use for this address space.
    pub(super) fn owns(&self, slot: Slot) -> bool {
        self.at(slot).owner() == self.owner && self.at(slot).generation() % 2 == 1
    }

    pub(super) fn at(&self, slot: Slot) -> &'p VmaSlot {
        self.pool.at(slot)
    }

    /// Fills a slot and puts it in its place, where nothing may lie.
    pub(super) fn insert(&mut self, slot: Slot, vma: &Vma) {
        let next = self.find(vma.start);
        let prev = match next {
            Some(next) => self.prev(next),
            None => self.last,
        };
        let at = self.at(slot);
        at.store(vma);
        at.set_owner(self.owner);
        at.set_prev(prev);
        at.set_next(next);
        match prev {
            Some(prev) => self.at(prev).set_next(Some(slot)),
            None => self.first = Some(slot),
        }
        match next {
            Some(next) => self.at(next).set_prev(Some(slot)),
            None => self.last = Some(slot),
        }
        self.len += 1;
    }

    /// Takes a VMA out and gives its slot back.
    pub(super) fn remove(&mut self, slot: Slot) {
        let (prev, next) = (self.prev(slot), self.next(slot));
        match prev {
            Some(prev) => self.at(prev).set_next(next),
            None => self.first = next,
        }
        match next {
            Some(next) => self.at(next).set_prev(prev),
            None => self.last = prev,
        }
        self.len -= 1;
        self.pool.give(slot);
    }

    /// Moves the borders of a VMA, to where nothing else lies.
    pub(super) fn resize(&mut self, slot: Slot, start: VirtAddr, end: VirtAddr, pgoff: PgOff) {
        self.at(slot).set_range(start, end, pgoff);
    }

    pub(super) fn set_flags(&mut self, slot: Slot, flags: VmFlags) {
        self.at(slot).set_flags(flags);
    }

    /// Replaces all but the borders.
    pub(super) fn set_attributes(&mut self, slot: Slot, vma: &Vma) {
        let old = self.get(slot);
        self.at(slot).store(&Vma { start: old.start, end: old.end, pgoff: old.pgoff, ..*vma });
    }

    /// The highest free range of `len` bytes in `low..high`: its start and end.
    pub(super) fn highest_gap(
        &self,
        low: VirtAddr,
        high: VirtAddr,
        len: u64,
    ) -> Option<(VirtAddr, VirtAddr)> {
        let mut end = high;
        let mut below = match self.find(high) {
            Some(slot) if self.at(slot).start() < high => {
                end = self.at(slot).start();
                self.prev(slot)
            }
            Some(slot) => self.prev(slot),
            None => self.last,
        };
        loop {
            let start = below.map_or(low, |slot| self.at(slot).end().max(low));
            if end.get().saturating_sub(start.get()) >= len {
                return Some((start, end));
            }
            let slot = below?;
            end = self.at(slot).start();
            if end <= low {
                return None;
            }
            below = self.prev(slot);
        }
    }

    /// The lowest free range of `len` bytes in `low..high`: its start and end.
    pub(super) fn lowest_gap(&self, low: VirtAddr, high: VirtAddr, len: u64) -> Option<(VirtAddr, VirtAddr)> {
        let mut start = low;
        let mut above = self.find(low);
        loop {
            let end = above.map_or(high, |slot| self.at(slot).start().min(high));
            if end.get().saturating_sub(start.get()) >= len {
                return Some((start, end));
            }
            let slot = above?;
            start = self.at(slot).end();
            if start >= high {
                return None;
            }
            above = self.next(slot);
        }
    }
}
