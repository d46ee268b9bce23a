//! How intrusive-collections reaches the links of a tree.

use core::marker::PhantomData;
use core::sync::atomic::Ordering::{Relaxed, Release};

use intrusive_collections::rbtree::{Color, RBTreeOps};
use intrusive_collections::{Adapter, LinkOps};

use super::marked::renew;
use super::{BLACK, CLAIMED, HasTreeLink, Side, TreeLink, UNLINKED};
use crate::collections::slots::{ByNumber, Place, Slot, StableSlots};

/// Reaches the links of a slot without looking back: whatever a tree links, its store has and keeps.
pub(super) struct TreeAdapter<S, K> {
    slots: S,
    kind: PhantomData<fn() -> K>,
}

impl<S, K> TreeAdapter<S, K> {
    #[inline]
    pub(super) const fn new(slots: S) -> Self {
        Self { slots, kind: PhantomData }
    }
}

impl<S: Copy, K> Clone for TreeAdapter<S, K> {
    #[inline]
    fn clone(&self) -> Self {
        Self::new(self.slots)
    }
}

impl<S: StableSlots, K> TreeAdapter<S, K>
where
    S::Item: HasTreeLink<K>,
{
    /// # Safety
    /// The store has answered with an element for `slot` before.
    #[inline]
    unsafe fn link(&self, slot: Slot) -> &TreeLink {
        let item = self.slots.get(slot);
        // SAFETY: a stable store answers as before.
        unsafe { item.unwrap_unchecked() }.tree_link()
    }

    /// Sets a child, and makes the marks below the node anew. While nodes change places a mark may be missing or left over above them; it is put
    /// right when the last of them gets its child: whoever gets one has its own parent by then, so that the change goes up from there.
    #[inline]
    fn set_child(&self, link: &TreeLink, side: Side, child: Option<Slot>) {
        if S::Item::MARKED {
            link.change_child(side, child);
            let at = |slot| self.slots.get(slot).map(HasTreeLink::tree_link);
            // Most trees have few marks.
            if link.marks_below() != 0 || child.and_then(at).is_some_and(|child| child.marks_below() != 0) {
                renew(Some(link), at);
            }
        } else {
            link.set_child(side, child);
        }
    }
}

// SAFETY: only a slot that this tree has claimed is acquired; a claim excludes all other trees until the release.
unsafe impl<S: StableSlots, K> LinkOps for TreeAdapter<S, K>
where
    S::Item: HasTreeLink<K>,
{
    type LinkPtr = Slot;

    #[inline]
    unsafe fn acquire_link(&mut self, slot: Slot) -> bool {
        // SAFETY: slots are inserted after the store has answered for them.
        let link = unsafe { self.link(slot) };
        // Other threads leave a claimed slot alone, so this need not be one step.
        let ours = link.parent_color.load(Relaxed) == CLAIMED;
        if ours {
            link.parent_color.store(BLACK, Relaxed);
        }
        ours
    }

    #[inline]
    unsafe fn release_link(&mut self, slot: Slot) {
        // SAFETY: the slot is on this tree.
        let link = unsafe { self.link(slot) };
        // Release pairs with the Acquire of `claim`: who claims the slot writes after us.
        link.parent_color.store(UNLINKED, Release);
    }
}

// SAFETY: reads answer what was written last; nothing panics.
unsafe impl<S: StableSlots, K> RBTreeOps for TreeAdapter<S, K>
where
    S::Item: HasTreeLink<K>,
{
    #[inline]
    unsafe fn left(&self, slot: Slot) -> Option<Slot> {
        // SAFETY: the slot is on this tree.
        unsafe { self.link(slot) }.left()
    }

    #[inline]
    unsafe fn right(&self, slot: Slot) -> Option<Slot> {
        // SAFETY: the slot is on this tree.
        unsafe { self.link(slot) }.right()
    }

    #[inline]
    unsafe fn parent(&self, slot: Slot) -> Option<Slot> {
        // SAFETY: the slot is on this tree.
        unsafe { self.link(slot) }.parent()
    }

    #[inline]
    unsafe fn color(&self, slot: Slot) -> Color {
        // SAFETY: the slot is on this tree.
        if unsafe { self.link(slot) }.is_black() { Color::Black } else { Color::Red }
    }

    #[inline]
    unsafe fn set_left(&mut self, slot: Slot, left: Option<Slot>) {
        // SAFETY: the slot is on this tree.
        let link = unsafe { self.link(slot) };
        self.set_child(link, Side::Left, left);
    }

    #[inline]
    unsafe fn set_right(&mut self, slot: Slot, right: Option<Slot>) {
        // SAFETY: the slot is on this tree.
        let link = unsafe { self.link(slot) };
        self.set_child(link, Side::Right, right);
    }

    #[inline]
    unsafe fn set_parent(&mut self, slot: Slot, parent: Option<Slot>) {
        // SAFETY: the slot is on this tree.
        let link = unsafe { self.link(slot) };
        let color = link.parent_color.load(Relaxed) & BLACK;
        link.parent_color.store(Slot::code_of(parent) | color, Relaxed);
    }

    #[inline]
    unsafe fn set_color(&mut self, slot: Slot, color: Color) {
        // SAFETY: the slot is on this tree.
        let link = unsafe { self.link(slot) };
        let parent = link.parent_color.load(Relaxed) & !BLACK;
        let color = if color == Color::Black { BLACK } else { 0 };
        link.parent_color.store(parent | color, Relaxed);
    }
}

// SAFETY: a place and a slot are the same number.
unsafe impl<S: StableSlots, K> Adapter for TreeAdapter<S, K>
where
    S::Item: HasTreeLink<K>,
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
