//! A place in a tree: found once, then filled or emptied.

use super::{HasTreeLink, IndexTree, Search, TreeOrder, XaMark};
use crate::collections::slots::{LinkError, Slot, StableSlots};

/// A place in a tree, found by [`IndexTree::entry`]. The tree cannot change while this is held.
pub struct TreeEntry<'a, S: StableSlots, K>
where
    S::Item: HasTreeLink<K>,
{
    tree: &'a mut IndexTree<S, K>,
    found: Search,
}

impl<'a, S: StableSlots, K> TreeEntry<'a, S, K>
where
    S::Item: HasTreeLink<K>,
{
    #[inline]
    pub(super) const fn new(tree: &'a mut IndexTree<S, K>, found: Search) -> Self {
        Self { tree, found }
    }
}

impl<S: StableSlots, K: TreeOrder<S::Item>> TreeEntry<'_, S, K>
where
    S::Item: HasTreeLink<K>,
{
    /// What is there.
    #[inline]
    pub const fn found(&self) -> Search {
        self.found
    }

    /// Puts `slot` there.
    ///
    /// # Errors
    /// `KeyExists` if an element compares equal, `OutOfOrder` if the key does not lie between those of the neighbours, else as
    /// [`IndexTree::insert`].
    #[inline]
    pub fn insert(self, slot: Slot) -> Result<(), LinkError> {
        match self.found {
            Search::Found(_) => Err(LinkError::KeyExists),
            Search::Missing { before, after } => self.tree.insert_at(slot, before, after),
        }
    }

    /// The same, and answers with the place right behind `slot`: for elements that come in order, of which only the first is looked for.
    ///
    /// # Errors
    /// As [`Self::insert`].
    #[inline]
    pub fn insert_and_go_on(self, slot: Slot) -> Result<Self, LinkError> {
        match self.found {
            Search::Found(_) => Err(LinkError::KeyExists),
            Search::Missing { before, after } => {
                self.tree.insert_at(slot, before, after)?;
                Ok(Self { tree: self.tree, found: Search::Missing { before: Some(slot), after } })
            }
        }
    }

    /// Gives an element of the tree a mark, as [`IndexTree::set_mark`].
    #[inline]
    pub fn set_mark(&mut self, slot: Slot, mark: XaMark) {
        self.tree.set_mark(slot, mark);
    }

    /// Takes out the element that compares equal and answers its slot.
    ///
    /// # Errors
    /// `NotMember` if there is none.
    #[inline]
    pub fn remove(self) -> Result<Slot, LinkError> {
        let slot = self.found.found().ok_or(LinkError::NotMember)?;
        self.tree.unhang(slot);
        Ok(slot)
    }
}

impl<S: StableSlots, K> core::fmt::Debug for TreeEntry<'_, S, K>
where
    S::Item: HasTreeLink<K>,
{
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("TreeEntry").field(&self.found).finish()
    }
}
