//! Recounts a tree from scratch.

use super::marked::gathered;
use super::{HasTreeLink, IndexTree, MAX_DEPTH, TreeLink, TreeOrder};
use crate::collections::slots::{Place, Slot, StableSlots};

/// A fault that [`IndexTree::check`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TreeFault {
    /// A link names a slot that the store does not have.
    OutOfRange(Slot),
    /// A link leads to a slot that is on no tree.
    Unlinked(Slot),
    /// The slot keeps that it is on another tree, or on none.
    Mark(Slot),
    /// The slot does not say truly which marks it and those below it have.
    Below(Slot),
    /// The slot's parent is not the slot that leads to it.
    BackLink(Slot),
    /// The slot's key is not greater than the one before it.
    Order(Slot),
    /// The root is red.
    RedRoot(Slot),
    /// The slot is red, and so is its parent.
    RedRed(Slot),
    /// The two sides below the slot differ in how many black nodes lead down.
    BlackHeight(Slot),
    /// The links lead further down than any tree is deep.
    Depth(Slot),
    /// The head's root is not the root of the nodes.
    Root,
    /// The head's count is wrong.
    Count {
        /// How many slots the links lead to, or one more than `kept` if they go on.
        counted: u32,
        /// How many the head says there are.
        kept: u32,
    },
}

impl core::fmt::Display for TreeFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::OutOfRange(slot) => write!(f, "{slot:?} is outside the store"),
            Self::Unlinked(slot) => write!(f, "{slot:?} is reached but not linked"),
            Self::Mark(slot) => write!(f, "{slot:?} is reached but names another tree"),
            Self::Below(slot) => write!(f, "{slot:?} says wrongly what is marked below it"),
            Self::BackLink(slot) => write!(f, "{slot:?} has a wrong parent"),
            Self::Order(slot) => write!(f, "{slot:?} is out of order"),
            Self::RedRoot(slot) => write!(f, "{slot:?} is a red root"),
            Self::RedRed(slot) => write!(f, "{slot:?} is red under a red parent"),
            Self::BlackHeight(slot) => write!(f, "{slot:?} has sides of different black height"),
            Self::Depth(slot) => write!(f, "{slot:?} is too deep"),
            Self::Root => f.write_str("the kept root is not the root"),
            Self::Count { counted, kept } => write!(f, "{counted} slots counted, {kept} kept"),
        }
    }
}

impl core::error::Error for TreeFault {}

impl<S: StableSlots, K: TreeOrder<S::Item>> IndexTree<S, K>
where
    S::Item: HasTreeLink<K>,
{
    /// Verifies the links both ways, the marks, the order of the keys, the red-black rules and the count. O(n), and never more
    /// even over broken links.
    ///
    /// # Errors
    /// The first fault in ascending order.
    pub fn check(&self) -> Result<(), TreeFault> {
        let mut walk = Walk { tree: self, seen: 0, last: None };
        if let Some(root) = self.root {
            if self.link(root).is_some_and(|link| link.is_linked() && !link.is_black()) {
                return Err(TreeFault::RedRoot(root));
            }
            walk.subtree(root, None, 0)?;
        }
        if walk.seen != self.len {
            return Err(TreeFault::Count { counted: walk.seen, kept: self.len });
        }
        if self.first() != self.nodes.front().get_ptr().map(|place| Place::slot(place.as_ptr())) {
            return Err(TreeFault::Root);
        }
        Ok(())
    }
}

/// A check under way: what has been seen in ascending order.
struct Walk<'a, S: StableSlots, K: TreeOrder<S::Item>>
where
    S::Item: HasTreeLink<K>,
{
    tree: &'a IndexTree<S, K>,
    seen: u32,
    last: Option<K::Key>,
}

impl<S: StableSlots, K: TreeOrder<S::Item>> Walk<'_, S, K>
where
    S::Item: HasTreeLink<K>,
{
    /// Verifies `node` and what is below; answers its black height.
    fn subtree(&mut self, node: Slot, parent: Option<&TreeLink>, depth: u32) -> Result<u32, TreeFault> {
        let tree = self.tree;
        let item = tree.slots.get(node).ok_or(TreeFault::OutOfRange(node))?;
        let link: &TreeLink = item.tree_link();
        if !link.is_linked() {
            return Err(TreeFault::Unlinked(node));
        }
        if item.tree_mark().is_some_and(|mark| !mark.is(tree.id)) {
            return Err(TreeFault::Mark(node));
        }
        if depth == MAX_DEPTH {
            return Err(TreeFault::Depth(node));
        }
        let above = link.parent().and_then(|above| tree.link(above));
        if link.parent().is_some() != parent.is_some()
            || !above.zip(parent).is_none_or(|(above, parent)| core::ptr::eq(above, parent))
        {
            return Err(TreeFault::BackLink(node));
        }
        if !link.is_black() && parent.is_some_and(|parent| !parent.is_black()) {
            return Err(TreeFault::RedRed(node));
        }
        let left = match link.left() {
            Some(left) => self.subtree(left, Some(link), depth + 1)?,
            None => 0,
        };
        self.visit(node, K::key(item))?;
        let right = match link.right() {
            Some(right) => self.subtree(right, Some(link), depth + 1)?,
            None => 0,
        };
        if S::Item::MARKED && gathered(link, |slot| tree.link(slot)) != link.marks_below() {
            return Err(TreeFault::Below(node));
        }
        if left != right { Err(TreeFault::BlackHeight(node)) } else { Ok(left + u32::from(link.is_black())) }
    }

    /// Counts a node and compares its key with the one before.
    fn visit(&mut self, node: Slot, key: K::Key) -> Result<(), TreeFault> {
        if self.seen == self.tree.len {
            return Err(TreeFault::Count { counted: self.seen + 1, kept: self.tree.len });
        }
        self.seen += 1;
        if self.last.replace(key).zip(self.last.as_ref()).is_some_and(|(before, now)| before >= *now) {
            return Err(TreeFault::Order(node));
        }
        Ok(())
    }
}
