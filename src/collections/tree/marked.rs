//! Marks of elements, and of all that lies below a node: the next element with a mark is found without a look at those that have none.
//!
//! The two uppermost bits of a node's words for its children keep them: that of the left child which marks the node has itself, that of the
//! right child which marks it or anything below it has. The second ones are made anew where a child is set, which includes all that balances
//! the tree.

use super::{BLACK, CODE, HasTreeLink, IndexTree, MAX_DEPTH, Relaxed, Side, TreeLink};
use crate::collections::slots::{Slot, StableSlots};

/// A mark that an element of a tree can have. A kind of tree has two, if its [links](crate::tree_link) are `marked`.
///
/// # Linux
/// `xa_mark_t` in `include/linux/xarray.h`.
#[doc(alias = "xa_mark_t")]
#[doc(alias = "XA_MARK_0")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XaMark(u32);

impl XaMark {
    /// The first mark.
    pub const MARK_0: Self = Self(CODE + 1);
    /// The second one.
    pub const MARK_1: Self = Self((CODE + 1) << 1);

    /// Both.
    pub(super) const ALL: u32 = !CODE;
}

impl TreeLink {
    /// The marks of the node itself.
    #[inline]
    pub(super) fn own_marks(&self) -> u32 {
        self.child[Side::Left as usize].load(Relaxed) & XaMark::ALL
    }

    /// The marks of the node and of all below it.
    #[inline]
    pub(super) fn marks_below(&self) -> u32 {
        self.child[Side::Right as usize].load(Relaxed) & XaMark::ALL
    }

    #[inline]
    fn put_marks(&self, side: Side, marks: u32) {
        let word = &self.child[side as usize];
        word.store(word.load(Relaxed) & CODE | marks, Relaxed);
    }

    #[inline]
    fn add_mark(&self, side: Side, mark: XaMark) {
        let word = &self.child[side as usize];
        word.store(word.load(Relaxed) | mark.0, Relaxed);
    }

    #[inline]
    fn take_mark(&self, side: Side, mark: XaMark) {
        let word = &self.child[side as usize];
        word.store(word.load(Relaxed) & !mark.0, Relaxed);
    }

    /// The parent of a node that is on a tree.
    #[inline]
    fn above(&self) -> Option<Slot> {
        Slot::from_code(self.parent_color.load(Relaxed) & !BLACK)
    }

    /// Takes all marks away from a node that is on no tree.
    #[inline]
    pub(super) fn clear_marks(&self) {
        self.put_marks(Side::Left, 0);
        self.put_marks(Side::Right, 0);
    }

    /// Takes the node's own marks away, which those above it are told of when the node goes.
    #[inline]
    pub(super) fn clear_own_marks(&self) {
        self.put_marks(Side::Left, 0);
    }

    /// Overwrites the marks, so that a test can see `check` find it.
    #[cfg(test)]
    pub(crate) fn corrupt_marks(&self, own: Option<XaMark>, below: Option<XaMark>) {
        self.put_marks(Side::Left, own.map_or(0, |mark| mark.0));
        self.put_marks(Side::Right, below.map_or(0, |mark| mark.0));
    }
}

/// The marks of a node and of all below it, made of its own and of what its children say.
pub(super) fn gathered<'s>(link: &TreeLink, at: impl Fn(Slot) -> Option<&'s TreeLink>) -> u32 {
    let of = |child: Option<Slot>| child.and_then(&at).map_or(0, TreeLink::marks_below);
    link.own_marks() | of(link.left()) | of(link.right())
}

/// Makes the marks of a node anew that has another child, or another mark, and those above it as far as they change by that.
pub(super) fn renew<'s>(node: Option<&'s TreeLink>, at: impl Fn(Slot) -> Option<&'s TreeLink>) {
    let mut next = node;
    for _ in 0..MAX_DEPTH {
        let Some(link) = next else { return };
        let marks = gathered(link, &at);
        if marks == link.marks_below() {
            return;
        }
        link.put_marks(Side::Right, marks);
        next = link.above().and_then(&at);
    }
}

impl<S: StableSlots, K> IndexTree<S, K>
where
    S::Item: HasTreeLink<K>,
{
    /// Whether an element has a mark. `false` if it is on no tree.
    ///
    /// # Linux
    /// `xa_get_mark` in `lib/xarray.c`.
    #[inline]
    #[doc(alias = "xa_get_mark")]
    pub fn has_mark(&self, slot: Slot, mark: XaMark) -> bool {
        self.marked(slot).is_some_and(|link| link.own_marks() & mark.0 != 0)
    }

    /// Gives an element of this tree a mark. O(log n), and O(1) next to one that has it. Nothing happens to one that is on no tree, or whose
    /// kind has no marks; one of another tree gets it there.
    ///
    /// # Linux
    /// `xa_set_mark` in `lib/xarray.c`.
    #[doc(alias = "xa_set_mark")]
    pub fn set_mark(&mut self, slot: Slot, mark: XaMark) {
        let Some(link) = self.marked(slot) else { return };
        link.add_mark(Side::Left, mark);
        // What is above has it once somebody below has.
        let mut next = Some(link);
        for _ in 0..MAX_DEPTH {
            let Some(link) = next.filter(|link| link.marks_below() & mark.0 == 0) else { return };
            link.add_mark(Side::Right, mark);
            next = link.above().and_then(|parent| self.link(parent));
        }
    }

    /// Takes a mark from an element of this tree; else as [`set_mark`](Self::set_mark).
    ///
    /// # Linux
    /// `xa_clear_mark` in `lib/xarray.c`.
    #[doc(alias = "xa_clear_mark")]
    pub fn clear_mark(&mut self, slot: Slot, mark: XaMark) {
        let Some(link) = self.marked(slot) else { return };
        link.take_mark(Side::Left, mark);
        let has = |child: Option<Slot>| {
            child.and_then(|child| self.link(child)).is_some_and(|link| link.marks_below() & mark.0 != 0)
        };
        // What is above has it no more once nobody below has.
        let mut next = Some(link);
        for _ in 0..MAX_DEPTH {
            let lasts =
                |link: &TreeLink| link.own_marks() & mark.0 != 0 || has(link.left()) || has(link.right());
            let Some(link) = next.filter(|link| link.marks_below() & mark.0 != 0 && !lasts(link)) else {
                return;
            };
            link.take_mark(Side::Right, mark);
            next = link.above().and_then(|parent| self.link(parent));
        }
    }

    /// The first element with a mark from `slot` on, which is on this tree. O(log n), however many have none.
    ///
    /// # Linux
    /// `xas_find_marked` in `lib/xarray.c`.
    #[doc(alias = "xas_find_marked")]
    pub fn marked_from(&self, slot: Slot, mark: XaMark) -> Option<Slot> {
        if self.has_mark(slot, mark) { Some(slot) } else { self.marked_after(slot, mark) }
    }

    /// The next element with a mark behind `slot`, which is on this tree.
    ///
    /// # Linux
    /// `xas_next_marked` in `include/linux/xarray.h`.
    #[doc(alias = "xas_next_marked")]
    pub fn marked_after(&self, slot: Slot, mark: XaMark) -> Option<Slot> {
        let (mut node, mut link) = (slot, self.marked(slot)?);
        let mut is_behind = true;
        for _ in 0..MAX_DEPTH {
            // Each ancestor that lies behind, and what is behind it.
            if is_behind {
                if node != slot && link.own_marks() & mark.0 != 0 {
                    return Some(node);
                }
                if let Some(found) = self.first_marked(link.right(), mark) {
                    return Some(found);
                }
            }
            let above = link.above()?;
            let above_link = self.link(above)?;
            is_behind = above_link.left() == Some(node);
            (node, link) = (above, above_link);
        }
        None
    }

    /// The first element with a mark below a node, itself included.
    fn first_marked(&self, top: Option<Slot>, mark: XaMark) -> Option<Slot> {
        let leads = |slot: &Slot| self.link(*slot).is_some_and(|link| link.marks_below() & mark.0 != 0);
        let mut node = top.filter(leads)?;
        for _ in 0..MAX_DEPTH {
            let link = self.link(node)?;
            node = match link.left().filter(leads) {
                Some(left) => left,
                None if link.own_marks() & mark.0 != 0 => return Some(node),
                None => link.right()?,
            };
        }
        None
    }

    /// The links of a slot that can have marks.
    #[inline]
    fn marked(&self, slot: Slot) -> Option<&TreeLink> {
        self.link(slot).filter(|link| S::Item::MARKED && link.is_linked())
    }
}

#[cfg(test)]
mod tests;
