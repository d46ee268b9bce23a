//! How intrusive-collections reaches the links of a list.

use core::marker::PhantomData;
use core::sync::atomic::Ordering::Relaxed;

use intrusive_collections::linked_list::LinkedListOps;
use intrusive_collections::{Adapter, LinkOps};

use super::{HasListLink, ListLink, UNLINKED};
use crate::collections::slots::{ByNumber, Place, Slot, Slots};

/// Reaches the links of a slot. A slot outside the store reads as one without neighbours: links that another thread
/// broke, or a store that changes its answers, can confuse a list but not make it touch other memory.
pub(super) struct ListAdapter<S, Tag> {
    slots: S,
    tag: PhantomData<fn() -> Tag>,
}

impl<S, Tag> ListAdapter<S, Tag> {
    #[inline]
    pub(super) const fn new(slots: S) -> Self {
        Self { slots, tag: PhantomData }
    }
}

impl<S: Copy, Tag> Clone for ListAdapter<S, Tag> {
    #[inline]
    fn clone(&self) -> Self {
        Self::new(self.slots)
    }
}

impl<S: Slots, Tag> ListAdapter<S, Tag>
where
    S::Item: HasListLink<Tag>,
{
    #[inline]
    fn link(&self, slot: Slot) -> Option<&ListLink> {
        self.slots.get(slot).map(HasListLink::list_link)
    }
}

// SAFETY: a slot that is linked is refused; LinkedList needs no more of a link's exclusiveness than its order.
unsafe impl<S: Slots, Tag> LinkOps for ListAdapter<S, Tag>
where
    S::Item: HasListLink<Tag>,
{
    type LinkPtr = Slot;

    #[inline]
    unsafe fn acquire_link(&mut self, slot: Slot) -> bool {
        match self.link(slot) {
            Some(link) if !link.is_linked() => {
                link.next.store(0, Relaxed);
                true
            }
            _ => false,
        }
    }

    #[inline]
    unsafe fn release_link(&mut self, slot: Slot) {
        if let Some(link) = self.link(slot) {
            link.next.store(UNLINKED, Relaxed);
        }
    }
}

// SAFETY: reads answer what was written last; nothing panics.
unsafe impl<S: Slots, Tag> LinkedListOps for ListAdapter<S, Tag>
where
    S::Item: HasListLink<Tag>,
{
    #[inline]
    unsafe fn next(&self, slot: Slot) -> Option<Slot> {
        self.link(slot)?.next()
    }

    #[inline]
    unsafe fn prev(&self, slot: Slot) -> Option<Slot> {
        self.link(slot)?.prev()
    }

    #[inline]
    unsafe fn set_next(&mut self, slot: Slot, next: Option<Slot>) {
        if let Some(link) = self.link(slot) {
            link.next.store(Slot::code_of(next), Relaxed);
        }
    }

    #[inline]
    unsafe fn set_prev(&mut self, slot: Slot, prev: Option<Slot>) {
        if let Some(link) = self.link(slot) {
            link.prev.store(Slot::code_of(prev), Relaxed);
        }
    }
}

// SAFETY: a place and a slot are the same number.
unsafe impl<S: Slots, Tag> Adapter for ListAdapter<S, Tag>
where
    S::Item: HasListLink<Tag>,
{
    type LinkOps = Self;
    type PointerOps = ByNumber;

    #[inline]
    unsafe fn get_value(&self, slot: Slot) -> *const Place {
        Place::of(slot)
    }

    #[inline]
    unsafe fn get_link(&self, place: *const Place) -> Slot {
        Place::slot(place)
    }

    #[inline]
    fn link_ops(&self) -> &Self {
        self
    }

    #[inline]
    fn link_ops_mut(&mut self) -> &mut Self {
        self
    }

    #[inline]
    fn pointer_ops(&self) -> &ByNumber {
        &ByNumber
    }
}
