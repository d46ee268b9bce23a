//! A red-black tree over slots.

use intrusive_collections::RBTree;

use super::slots::{LinkError, Place, Slot, StableSlots};
use super::words::{Ordering::Acquire, Ordering::Relaxed, Word32};
use adapter::TreeAdapter;
use mark::TreeId;

pub use check::TreeFault;
pub use entry::TreeEntry;
pub use iter::TreeIter;
pub use mark::TreeMark;
pub use marked::XaMark;
pub use search::{Lies, Search, search_from};

mod adapter;
mod check;
mod entry;
mod iter;
mod mark;
mod marked;
mod search;

/// The colour of a node, beside the parent's code.
const BLACK: u32 = 1 << 31;
/// What `parent_color` holds while the slot is on no tree.
const UNLINKED: u32 = BLACK - 1;
/// What `parent_color` holds between the claim of a slot and its insertion.
const CLAIMED: u32 = BLACK - 2;
/// What of a word for a child is its code. The bits above it are marks.
const CODE: u32 = (1 << 30) - 1;
/// The greatest index a tree can number: its code must fit beside the colour, and beside the marks.
const MAX_INDEX: u32 = CODE - 1;
/// More levels than any red-black tree of `MAX_INDEX` nodes has.
const MAX_DEPTH: u32 = 64;

/// A side of a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// The links of an element on one tree: 12 bytes.
#[doc(alias = "rb_node")]
pub struct TreeLink {
    /// The left and the right child, each with two marks above it.
    child: [Word32; 2],
    parent_color: Word32,
}

impl TreeLink {
    /// A link that is on no tree.
    #[inline]
    pub const fn new() -> Self {
        Self { child: [const { Word32::new(0) }; 2], parent_color: Word32::new(UNLINKED) }
    }

    /// Whether the slot is on a tree, or about to be.
    #[inline]
    pub fn is_linked(&self) -> bool {
        self.parent_color.load(Relaxed) != UNLINKED
    }

    #[inline]
    fn child(&self, side: Side) -> Option<Slot> {
        Slot::from_code(self.child[side as usize].load(Relaxed) & CODE)
    }

    /// The right child if `right`, else the left one: without a branch, and without waiting for the answer to read either.
    #[inline]
    fn child_if(&self, right: bool) -> Option<Slot> {
        let [lower, upper] = self.child.each_ref().map(|child| child.load(Relaxed));
        Slot::from_code((lower ^ ((lower ^ upper) & u32::from(right).wrapping_neg())) & CODE)
    }

    #[inline]
    fn set_child(&self, side: Side, child: Option<Slot>) {
        self.child[side as usize].store(Slot::code_of(child), Relaxed);
    }

    /// The same, and the marks stay.
    #[inline]
    fn change_child(&self, side: Side, child: Option<Slot>) {
        let marks = self.child[side as usize].load(Relaxed) & !CODE;
        self.child[side as usize].store(Slot::code_of(child) | marks, Relaxed);
    }

    #[inline]
    fn left(&self) -> Option<Slot> {
        self.child(Side::Left)
    }

    #[inline]
    fn right(&self) -> Option<Slot> {
        self.child(Side::Right)
    }

    #[inline]
    fn parent(&self) -> Option<Slot> {
        match self.parent_color.load(Relaxed) & !BLACK {
            UNLINKED | CLAIMED => None,
            code => Slot::from_code(code),
        }
    }

    #[inline]
    fn is_parent_of(&self, node: Slot) -> bool {
        let [lower, upper] = self.child.each_ref().map(|child| child.load(Relaxed) & CODE == node.code());
        // Which of the two cannot be guessed, so there is no branch on it.
        lower | upper
    }

    #[inline]
    fn is_black(&self) -> bool {
        self.parent_color.load(Relaxed) & BLACK != 0
    }

    /// Overwrites the children, so that a test can see `check` find it. The tree must then be forgotten, not used.
    #[cfg(test)]
    pub(crate) fn corrupt(&self, left: Option<Slot>, right: Option<Slot>) {
        self.set_child(Side::Left, left);
        self.set_child(Side::Right, right);
    }

    /// Makes the slot ours if it is on no tree; exactly one of several threads succeeds.
    #[inline]
    fn claim(&self) -> Result<(), LinkError> {
        // Acquire pairs with the Release of `release_link`: the former tree has written its last here.
        match self.parent_color.compare_exchange(UNLINKED, CLAIMED, Acquire, Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => Err(LinkError::AlreadyLinked),
        }
    }
}

impl Default for TreeLink {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for TreeLink {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(if self.is_linked() { "linked" } else { "unlinked" })
    }
}

/// An element that can be on one tree of the kind `K`. [`tree_link!`](crate::tree_link) implements it for a field.
///
/// # Safety
/// `tree_link` and `tree_mark` answer with the same fields, at the same addresses inside the element, each time, and do not panic. Nobody
/// replaces them while the element is shared, and no other kind of tree has the same mark.
pub unsafe trait HasTreeLink<K> {
    /// Whether elements can have [marks](XaMark) on trees of this kind.
    const MARKED: bool = false;

    /// The links of this kind.
    fn tree_link(&self) -> &TreeLink;

    /// Where the element keeps on which tree it is, if it has room for that: then a tree knows its own at once, and else by a walk to the root.
    #[inline]
    fn tree_mark(&self) -> Option<&TreeMark> {
        None
    }
}

/// Says in which field an element keeps its links for a kind of tree, `tree_link!(Vma, MmRb => rb)`, and if there is room, in which on which tree
/// it is: `tree_link!(Vma, MmRb => rb, tree)`. Elements of `tree_link!(marked Page, ByIndex => links)` can have
/// [marks](crate::collections::XaMark).
#[macro_export]
macro_rules! tree_link {
    (marked $item:ty, $kind:ty => $field:ident $(, $mark:ident)?) => {
        $crate::tree_link!(@ true, $item, $kind => $field $(, $mark)?);
    };
    (@ $marked:literal, $item:ty, $kind:ty => $field:ident $(, $mark:ident)?) => {
        #[expect(unsafe_code, reason = "names a field of the element itself, which is always the same")]
        // SAFETY: fields of `self`, named once and for all; neither type offers a way to replace it while shared. Kinds that are given one mark for both
        // only miss elements of theirs: a mark names a tree only while the element is on it.
        unsafe impl $crate::collections::HasTreeLink<$kind> for $item {
            const MARKED: bool = $marked;

            #[inline]
            fn tree_link(&self) -> &$crate::collections::TreeLink {
                let Self { $field: link, .. } = self;
                link
            }

            $(
                #[inline]
                fn tree_mark(&self) -> Option<&$crate::collections::TreeMark> {
                    let Self { $mark: mark, .. } = self;
                    Some(mark)
                }
            )?
        }
    };
    ($item:ty, $kind:ty => $field:ident $(, $mark:ident)?) => {
        $crate::tree_link!(@ false, $item, $kind => $field $(, $mark)?);
    };
}

/// The order of a kind of tree: by which key elements of type `T` are sorted.
pub trait TreeOrder<T> {
    /// The key. No two elements of a tree may have equal keys.
    type Key: Ord;

    /// The key of an element. While the element is on a tree its key may change only so far that the order stays.
    fn key(item: &T) -> Self::Key;
}

/// A red-black tree of slots, sorted by the key that `K` names. Dropping it unlinks them all.
///
/// The head is two copies of the store's handle and 16 bytes. Operations are O(log n) unless they say otherwise.
#[doc(alias = "rb_root")]
pub struct IndexTree<S: StableSlots, K>
where
    S::Item: HasTreeLink<K>,
{
    nodes: RBTree<TreeAdapter<S, K>>,
    slots: S,
    /// What the root of `nodes` is, which RBTree does not tell.
    root: Option<Slot>,
    len: u32,
    /// What is noted in the elements that keep on which tree they are.
    id: TreeId,
}

impl<S: StableSlots, K> IndexTree<S, K>
where
    S::Item: HasTreeLink<K>,
{
    /// An empty tree over `slots`.
    #[inline]
    pub const fn new(slots: S) -> Self {
        Self { nodes: RBTree::new(TreeAdapter::new(slots)), slots, root: None, len: 0, id: TreeId::NONE }
    }

    /// The store.
    #[inline]
    pub const fn slots(&self) -> S {
        self.slots
    }

    /// How many slots are on the tree.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether no slot is on the tree.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The root, for [`search_from`].
    #[inline]
    pub const fn root(&self) -> Option<Slot> {
        self.root
    }

    /// The slot with the least key.
    #[inline]
    #[doc(alias = "rb_first")]
    pub fn first(&self) -> Option<Slot> {
        self.outermost(self.root?, TreeLink::left)
    }

    /// The slot with the greatest key.
    #[inline]
    #[doc(alias = "rb_last")]
    pub fn last(&self) -> Option<Slot> {
        self.outermost(self.root?, TreeLink::right)
    }

    /// The slot after `slot`; `None` if that is the last one or on no tree. O(1) on average. A slot of another tree
    /// answers with its neighbour there.
    #[inline]
    #[doc(alias = "rb_next")]
    pub fn next(&self, slot: Slot) -> Option<Slot> {
        self.neighbour(slot, TreeLink::right, TreeLink::left)
    }

    /// The slot before `slot`; `None` if that is the first one or on no tree. O(1) on average. A slot of another tree
    /// answers with its neighbour there.
    #[inline]
    #[doc(alias = "rb_prev")]
    pub fn prev(&self, slot: Slot) -> Option<Slot> {
        self.neighbour(slot, TreeLink::left, TreeLink::right)
    }

    /// Whether `slot` is on this tree.
    pub fn contains(&self, slot: Slot) -> bool {
        self.member(slot).is_ok()
    }

    /// Searches by a comparison of an element with what is sought; stops at the first element that compares equal.
    ///
    /// `compare` must be monotonic over the order of the tree, as for `slice::binary_search_by`. A comparison may call many
    /// keys equal, all addresses inside a range for example.
    #[inline]
    #[doc(alias = "rb_find")]
    pub fn search<L: Into<Lies>>(&self, compare: impl FnMut(&S::Item) -> L) -> Search {
        search_from::<S, K, L>(self.slots, self.root, compare)
    }

    /// The slots in ascending order; both ends can be taken from.
    #[inline]
    pub fn iter(&self) -> TreeIter<'_, S, K> {
        TreeIter::new(self)
    }

    /// Takes `slot` off the tree.
    ///
    /// # Errors
    /// `OutOfRange` if the store has no such slot, `NotMember` if it is not on this tree.
    #[doc(alias = "rb_erase")]
    pub fn remove(&mut self, slot: Slot) -> Result<(), LinkError> {
        self.member(slot)?;
        self.unhang(slot);
        Ok(())
    }

    /// Takes all slots off the tree. O(n).
    pub fn clear(&mut self) {
        // Others may have the slots before their marks are overwritten, so this name is not used again.
        self.id = TreeId::NONE;
        self.nodes.clear();
        self.root = None;
        self.len = 0;
    }

    /// Moves all slots into a new tree and leaves this one empty. O(1).
    pub fn take(&mut self) -> Self {
        let (root, len) = (self.root.take(), core::mem::take(&mut self.len));
        let id = core::mem::replace(&mut self.id, TreeId::NONE);
        Self { nodes: self.nodes.take(), slots: self.slots, root, len, id }
    }

    /// The links of a slot, if the store has it.
    #[inline]
    fn link(&self, slot: Slot) -> Option<&TreeLink> {
        self.slots.get(slot).map(HasTreeLink::tree_link)
    }

    /// The links of `slot`, if it is on this tree: its mark says so, or, if it keeps none, its chain of parents ends at our root, and each parent on it
    /// calls the node below its child. Nodes of this tree have no other children, so no slot of another tree passes, not
    /// even over another store.
    #[inline]
    fn member(&self, slot: Slot) -> Result<&TreeLink, LinkError> {
        let item = self.slots.get(slot).ok_or(LinkError::OutOfRange)?;
        match item.tree_mark().filter(|_| self.id != TreeId::NONE) {
            Some(mark) if mark.is(self.id) => Ok(item.tree_link()),
            Some(_) => Err(LinkError::NotMember),
            None => self.climb_from(slot, item.tree_link()),
        }
    }

    fn climb_from<'s>(&self, slot: Slot, link: &'s TreeLink) -> Result<&'s TreeLink, LinkError> {
        let (mut node, mut above) = (slot, link.parent());
        for _ in 0..MAX_DEPTH {
            let Some(parent) = above else { break };
            let parent_link = self.link(parent).ok_or(LinkError::NotMember)?;
            if !parent_link.is_parent_of(node) {
                return Err(LinkError::NotMember);
            }
            (node, above) = (parent, parent_link.parent());
        }
        if above.is_none() && self.root == Some(node) { Ok(link) } else { Err(LinkError::NotMember) }
    }

    /// The root above a node of this tree: a step or two, if `node` was the root before a change.
    fn top(&self, mut node: Slot) -> Slot {
        for _ in 0..MAX_DEPTH {
            match self.link(node).and_then(TreeLink::parent) {
                Some(parent) => node = parent,
                None => break,
            }
        }
        node
    }

    /// The last node on the way from `node` down one side.
    fn outermost(&self, mut node: Slot, side: fn(&TreeLink) -> Option<Slot>) -> Option<Slot> {
        for _ in 0..MAX_DEPTH {
            match side(self.link(node)?) {
                Some(child) => node = child,
                None => return Some(node),
            }
        }
        None
    }

    /// The next node on the `near` side: down there and back outward, or up to the first ancestor that lies there.
    fn neighbour(
        &self,
        node: Slot,
        near: fn(&TreeLink) -> Option<Slot>,
        far: fn(&TreeLink) -> Option<Slot>,
    ) -> Option<Slot> {
        let link = self.link(node).filter(|link| link.is_linked())?;
        if let Some(child) = near(link) {
            return self.outermost(child, far);
        }
        let (mut below, mut above) = (node, link.parent());
        for _ in 0..MAX_DEPTH {
            let parent_link = self.link(above?)?;
            if near(parent_link) != Some(below) {
                return above;
            }
            (below, above) = (above?, parent_link.parent());
        }
        None
    }

    /// Takes off a slot that the caller has found on this tree.
    fn unhang(&mut self, slot: Slot) {
        if let Some(mark) = self.slots.get(slot).and_then(HasTreeLink::tree_mark) {
            // Before the slot is anybody's.
            mark.set(TreeId::NONE);
        }
        if S::Item::MARKED {
            self.link(slot).into_iter().for_each(TreeLink::clear_own_marks);
        }
        let child = |link: &TreeLink| link.left().or(link.right());
        let stays = if self.root == Some(slot) { self.link(slot).and_then(child) } else { self.root };
        // SAFETY: the caller found `slot` on this tree.
        let mut cursor = unsafe { self.nodes.cursor_mut_from_ptr(Place::of(slot)) };
        cursor.remove();
        self.len -= 1;
        self.root = stays.map(|node| self.top(node));
    }

    /// Hangs `slot` between two neighbours of which at least one exists unless the tree is empty.
    fn hang(&mut self, slot: Slot, before: Option<Slot>, after: Option<Slot>) -> Result<(), LinkError> {
        if slot.get() > MAX_INDEX {
            return Err(LinkError::OutOfRange);
        }
        let item = self.slots.get(slot).ok_or(LinkError::OutOfRange)?;
        item.tree_link().claim()?;
        if S::Item::MARKED {
            item.tree_link().clear_marks();
        }
        if let Some(mark) = item.tree_mark() {
            if self.is_empty() && self.id == TreeId::NONE {
                self.id = TreeId::new();
            }
            mark.set(self.id);
        }
        let free = before.filter(|&node| self.link(node).is_some_and(|link| link.right().is_none()));
        match (free, after) {
            (Some(before), _) => {
                // SAFETY: the caller found `before` on this tree.
                let mut cursor = unsafe { self.nodes.cursor_mut_from_ptr(Place::of(before)) };
                cursor.insert_after(slot);
            }
            (None, Some(after)) => {
                // SAFETY: the caller found `after` on this tree.
                let mut cursor = unsafe { self.nodes.cursor_mut_from_ptr(Place::of(after)) };
                cursor.insert_before(slot);
            }
            (None, None) => self.nodes.cursor_mut().insert_before(slot),
        }
        self.len += 1;
        self.root = Some(self.top(self.root.unwrap_or(slot)));
        Ok(())
    }
}

impl<S: StableSlots, K: TreeOrder<S::Item>> IndexTree<S, K>
where
    S::Item: HasTreeLink<K>,
{
    /// Puts `slot` where its key belongs.
    ///
    /// # Errors
    /// `OutOfRange` if the store has no such slot or its index is above 2^30 - 2, `AlreadyLinked` if it is on a tree of this
    /// kind, `KeyExists` if an element of the tree has an equal key.
    #[doc(alias = "rb_insert_color")]
    pub fn insert(&mut self, slot: Slot) -> Result<(), LinkError> {
        let slots = self.slots;
        let key = K::key(slots.get(slot).ok_or(LinkError::OutOfRange)?);
        if self.link(slot).is_some_and(TreeLink::is_linked) {
            return Err(LinkError::AlreadyLinked);
        }
        match self.find(&key) {
            Search::Found(_) => Err(LinkError::KeyExists),
            Search::Missing { before, after } => self.hang(slot, before, after),
        }
    }

    /// Looks for the place of an element that `compare` describes, to put one there or to take out the one that is there:
    /// one way down for both.
    ///
    /// # Linux
    /// `find_vma_links` and `vma_link` in `mm/mmap.c` (v6.0).
    #[inline]
    #[doc(alias = "find_vma_links")]
    pub fn entry<L: Into<Lies>>(&mut self, compare: impl FnMut(&S::Item) -> L) -> TreeEntry<'_, S, K> {
        let found = self.search(compare);
        TreeEntry::new(self, found)
    }

    /// Puts `slot` between two neighbours, or at an end of the tree, without comparing its way down. That they are neighbours is the caller's word: if
    /// they are not, the tree may be out of order.
    ///
    /// # Errors
    /// `NotMember` if one of the two is not on this tree, `OutOfOrder` if the key does not lie between theirs or both are wanting on a tree that is not
    /// empty, else as [`Self::insert`].
    ///
    /// # Linux
    /// `vma_link` in `mm/mmap.c` (v6.0), for a place that `find_vma_links` has found.
    #[doc(alias = "vma_link")]
    pub(crate) fn insert_between(
        &mut self,
        before: Option<Slot>,
        slot: Slot,
        after: Option<Slot>,
    ) -> Result<(), LinkError> {
        [before, after].into_iter().flatten().try_for_each(|at| self.member(at).map(|_| ()))?;
        if before.is_none() && after.is_none() && !self.is_empty() {
            return Err(LinkError::OutOfOrder);
        }
        debug_assert_eq!(before.map_or(self.first(), |before| self.next(before)), after);
        self.insert_at(slot, before, after)
    }

    /// Searches by key.
    #[inline]
    pub fn find(&self, key: &K::Key) -> Search {
        self.search(|item| K::key(item).cmp(key))
    }

    /// The first slot whose key is not less than `key`.
    pub fn lower_bound(&self, key: &K::Key) -> Option<Slot> {
        self.find(key).found_or_after()
    }

    /// The first slot whose key is greater than `key`.
    pub fn upper_bound(&self, key: &K::Key) -> Option<Slot> {
        match self.find(key) {
            Search::Found(slot) => self.next(slot),
            Search::Missing { after, .. } => after,
        }
    }

    /// Puts `slot` between what are neighbours on this tree.
    fn insert_at(&mut self, slot: Slot, before: Option<Slot>, after: Option<Slot>) -> Result<(), LinkError> {
        let key_of = |slot| self.slots.get(slot).map(K::key);
        let key = key_of(slot).ok_or(LinkError::OutOfRange)?;
        if self.link(slot).is_some_and(TreeLink::is_linked) {
            return Err(LinkError::AlreadyLinked);
        }
        let (low, high) = (before.and_then(key_of), after.and_then(key_of));
        if low.is_some_and(|low| low >= key) || high.is_some_and(|high| key >= high) {
            return Err(LinkError::OutOfOrder);
        }
        self.hang(slot, before, after)
    }
}

impl<S: StableSlots, K> core::fmt::Debug for IndexTree<S, K>
where
    S::Item: HasTreeLink<K>,
{
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests;
