//! Walking a tree in order.

use super::{HasTreeLink, IndexTree};
use crate::collections::slots::{Slot, StableSlots};

impl<'a, S: StableSlots, K> IntoIterator for &'a IndexTree<S, K>
where
    S::Item: HasTreeLink<K>,
{
    type Item = Slot;
    type IntoIter = TreeIter<'a, S, K>;

    fn into_iter(self) -> TreeIter<'a, S, K> {
        self.iter()
    }
}

/// The slots of an [`IndexTree`] in ascending order, from both ends.
pub struct TreeIter<'a, S: StableSlots, K>
where
    S::Item: HasTreeLink<K>,
{
    tree: &'a IndexTree<S, K>,
    front: Option<Slot>,
    back: Option<Slot>,
    left: u32,
}

impl<'a, S: StableSlots, K> TreeIter<'a, S, K>
where
    S::Item: HasTreeLink<K>,
{
    #[inline]
    pub(super) fn new(tree: &'a IndexTree<S, K>) -> Self {
        Self { tree, front: tree.first(), back: tree.last(), left: tree.len }
    }
}

impl<S: StableSlots, K> Iterator for TreeIter<'_, S, K>
where
    S::Item: HasTreeLink<K>,
{
    type Item = Slot;

    #[inline]
    fn next(&mut self) -> Option<Slot> {
        self.left = self.left.checked_sub(1)?;
        let slot = self.front?;
        self.front = self.tree.next(slot);
        Some(slot)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl<S: StableSlots, K> DoubleEndedIterator for TreeIter<'_, S, K>
where
    S::Item: HasTreeLink<K>,
{
    #[inline]
    fn next_back(&mut self) -> Option<Slot> {
        self.left = self.left.checked_sub(1)?;
        let slot = self.back?;
        self.back = self.tree.prev(slot);
        Some(slot)
    }
}

impl<S: StableSlots, K> ExactSizeIterator for TreeIter<'_, S, K> where S::Item: HasTreeLink<K> {}

impl<S: StableSlots, K> core::fmt::Debug for TreeIter<'_, S, K>
where
    S::Item: HasTreeLink<K>,
{
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { front, back, left, .. } = self;
        f.debug_struct("TreeIter").field("front", front).field("back", back).field("left", left).finish()
    }
}
