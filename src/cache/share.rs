//! The VMAs that map a file.

use crate::addr::{PgOff, VirtAddr, VirtRange};
use crate::collections::{LinkError, Slot};
use crate::rmap::Place;

/// Where VMAs lie.
pub trait RmapNodes: Sync {
    /// Where the VMA in a slot lies.
    fn place(&self, slot: Slot) -> Option<Place>;
}

/// The list of the VMAs that map a file.
#[derive(Debug)]
pub(super) struct ShareList(spin::Mutex<[Option<Slot>; 32]>);

impl ShareList {
    pub(super) const fn new() -> Self {
        Self(spin::Mutex::new([None; 32]))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().iter().all(Option::is_none)
    }

    pub(super) fn add(&self, _: &dyn RmapNodes, slot: Slot) -> Result<(), LinkError> {
        let mut list = self.0.lock();
        *list.iter_mut().find(|place| place.is_none()).ok_or(LinkError::OutOfRange)? = Some(slot);
        Ok(())
    }

    pub(super) fn remove(&self, _: &dyn RmapNodes, slot: Slot) -> Result<(), LinkError> {
        let mut list = self.0.lock();
        *list.iter_mut().find(|place| **place == Some(slot)).ok_or(LinkError::NotMember)? = None;
        Ok(())
    }

    pub(super) fn walk(
        &self,
        nodes: &dyn RmapNodes,
        first: PgOff,
        end: PgOff,
        mut visit: impl FnMut(&Place, VirtRange) -> u32,
    ) {
        for place in self.0.lock().iter().flatten().filter_map(|&slot| nodes.place(slot)) {
            place.range_of(first, end).map_or(0, |range| visit(&place, range));
        }
    }

    pub(super) fn walk_page(
        &self,
        nodes: &dyn RmapNodes,
        index: PgOff,
        mut visit: impl FnMut(&Place, VirtAddr) -> bool,
    ) -> Walked {
        let mut walked = Walked::default();
        for place in self.0.lock().iter().flatten().filter_map(|&slot| nodes.place(slot)) {
            let seen = place.addr_of(index).is_some_and(|addr| visit(&place, addr));
            walked.entries += u32::from(seen);
        }
        walked
    }
}

#[derive(Default)]
pub(super) struct Walked {
    pub(super) entries: u32,
}
