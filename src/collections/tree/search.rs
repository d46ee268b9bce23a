//! Going down a tree.

use core::cmp::Ordering;

use super::{HasTreeLink, MAX_DEPTH};
use crate::collections::slots::{Slot, Slots};

/// Where a look-up ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Search {
    /// An element that compares equal.
    Found(Slot),
    /// No element compares equal; these two are where it would be.
    Missing {
        /// The last element that compares less.
        before: Option<Slot>,
        /// The first element that compares greater.
        after: Option<Slot>,
    },
}

impl Search {
    /// The element that compares equal.
    #[inline]
    pub const fn found(self) -> Option<Slot> {
        match self {
            Self::Found(slot) => Some(slot),
            Self::Missing { .. } => None,
        }
    }

    /// The first element that does not compare less: the equal one, else the next greater.
    ///
    /// # Linux
    /// What `find_vma` in `mm/mmap.c` (v6.0) answers, for a comparison that calls a VMA equal to each address inside it.
    #[inline]
    pub const fn found_or_after(self) -> Option<Slot> {
        match self {
            Self::Found(slot) => Some(slot),
            Self::Missing { after, .. } => after,
        }
    }
}

/// How an element lies to what is sought: what a comparison answers that knows both without a branch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lies {
    /// The element compares equal.
    pub there: bool,
    /// The element compares less.
    pub below: bool,
}

impl From<Ordering> for Lies {
    #[inline]
    fn from(order: Ordering) -> Self {
        Self { there: order == Ordering::Equal, below: order == Ordering::Less }
    }
}

/// Searches below `root` as [`IndexTree::search`](super::IndexTree::search) does, without the tree: for readers beside a writer.
///
/// The writer publishes [`IndexTree::root`](super::IndexTree::root) after each change and counts its changes in a [`SeqCount`](crate::collections::SeqCount). A
/// reader that meets a change half done gets some answer, always a slot of the store and always after at most 64 steps, and
/// throws it away when the count has moved.
#[inline]
pub fn search_from<S: Slots, K, L: Into<Lies>>(
    slots: S,
    root: Option<Slot>,
    mut compare: impl FnMut(&S::Item) -> L,
) -> Search
where
    S::Item: HasTreeLink<K>,
{
    let (mut before, mut after, mut node) = (None, None, root);
    for _ in 0..MAX_DEPTH {
        let Some((slot, item)) = node.and_then(|slot| Some((slot, slots.get(slot)?))) else { break };
        let Lies { there, below } = compare(item).into();
        if there {
            return Search::Found(slot);
        }
        // Which way it goes cannot be guessed, so there is no branch on it; and both ways are read while it is compared.
        (before, after) = if below { (node, after) } else { (before, node) };
        node = item.tree_link().child_if(below);
    }
    Search::Missing { before, after }
}
