//! A doubly linked list over slots.

use core::num::NonZeroU32;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use intrusive_collections::LinkedList;

use super::slots::{LinkError, Place, Slot, Slots};
use adapter::ListAdapter;

mod adapter;
mod head;

pub use head::ListHead;

/// What `next` holds while the slot is on no list.
const UNLINKED: u32 = u32::MAX;

/// The links of an element on one list: 8 bytes.
///
/// Plain loads and stores: whoever changes a list holds the lock of all lists that use this link.
#[doc(alias = "list_head")]
pub struct ListLink {
    next: AtomicU32,
    prev: AtomicU32,
}

impl ListLink {
    /// A link that is on no list.
    #[inline]
    pub const fn new() -> Self {
        Self { next: AtomicU32::new(UNLINKED), prev: AtomicU32::new(0) }
    }

    /// Whether the slot is on a list.
    #[inline]
    pub fn is_linked(&self) -> bool {
        self.next.load(Relaxed) != UNLINKED
    }

    #[inline]
    pub(crate) fn next(&self) -> Option<Slot> {
        match self.next.load(Relaxed) {
            UNLINKED => None,
            code => Slot::from_code(code),
        }
    }

    #[inline]
    fn prev(&self) -> Option<Slot> {
        Slot::from_code(self.prev.load(Relaxed))
    }

    /// Overwrites the links, so that a test can see `check` find it.
    #[cfg(test)]
    pub(crate) fn corrupt(&self, next: Option<Slot>, prev: Option<Slot>) {
        self.next.store(Slot::code_of(next), Relaxed);
        self.prev.store(Slot::code_of(prev), Relaxed);
    }
}

impl Default for ListLink {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for ListLink {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(if self.is_linked() { "linked" } else { "unlinked" })
    }
}

/// Which of the lists over a store this is. The element keeps it in whatever form it likes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct ListId(NonZeroU32);

impl ListId {
    /// Makes an id; `None` for 0.
    #[inline]
    pub const fn new(id: u32) -> Option<Self> {
        match NonZeroU32::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The list that belongs to an element of another store.
    #[inline]
    pub const fn of(slot: Slot) -> Self {
        Self(slot.non_zero())
    }

    /// The raw number, never 0.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// An element that can be on one list of the kind `Tag`.
pub trait HasListLink<Tag> {
    /// The links of this kind.
    fn list_link(&self) -> &ListLink;

    /// The list of this kind that the element is on, as last set.
    fn list_id(&self) -> Option<ListId>;

    /// Notes the list that the element is on from now on; `None` when it leaves.
    fn set_list_id(&self, id: Option<ListId>);
}

/// A doubly linked list of slots. Dropping it unlinks them all.
///
/// The head is the store's handle and 16 bytes. Lists that share a link kind over one store must have different ids:
/// that is how a slot of another list is told from one's own. No operation is more than O(1) unless it says so.
#[doc(alias = "list_head")]
pub struct IndexList<S: Slots, Tag>
where
    S::Item: HasListLink<Tag>,
{
    links: LinkedList<ListAdapter<S, Tag>>,
    slots: S,
    id: ListId,
    len: u32,
}

impl<S: Slots, Tag> IndexList<S, Tag>
where
    S::Item: HasListLink<Tag>,
{
    /// An empty list over `slots`.
    #[inline]
    pub const fn new(slots: S, id: ListId) -> Self {
        Self { links: LinkedList::new(ListAdapter::new(slots)), slots, id, len: 0 }
    }

    /// The store.
    #[inline]
    pub const fn slots(&self) -> S {
        self.slots
    }

    /// The id that elements of this list note.
    #[inline]
    pub const fn id(&self) -> ListId {
        self.id
    }

    /// How many slots are on the list.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether no slot is on the list.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first slot.
    #[inline]
    #[doc(alias = "list_first_entry")]
    pub fn front(&self) -> Option<Slot> {
        self.links.front().get_ptr().map(|place| Place::slot(place.as_ptr()))
    }

    /// The last slot.
    #[inline]
    #[doc(alias = "list_last_entry")]
    pub fn back(&self) -> Option<Slot> {
        self.links.back().get_ptr().map(|place| Place::slot(place.as_ptr()))
    }

    /// The slot after `slot`; `None` if that is the last one or not on this list.
    #[inline]
    pub fn next(&self, slot: Slot) -> Option<Slot> {
        self.member(slot).ok()?.next()
    }

    /// The slot before `slot`; `None` if that is the first one or not on this list.
    #[inline]
    pub fn prev(&self, slot: Slot) -> Option<Slot> {
        self.member(slot).ok()?.prev()
    }

    /// Whether `slot` is on this list.
    #[inline]
    pub fn contains(&self, slot: Slot) -> bool {
        self.member(slot).is_ok()
    }

    /// The slots from front to back; both ends can be taken from.
    #[inline]
    pub fn iter(&self) -> ListIter<'_, S, Tag> {
        ListIter { list: self, front: self.front(), back: self.back(), left: self.len }
    }

    /// Puts `slot` at the front.
    ///
    /// # Errors
    /// `OutOfRange` if the store has no such slot, `AlreadyLinked` if it is on a list of this kind.
    #[inline]
    #[doc(alias = "list_add")]
    pub fn push_front(&mut self, slot: Slot) -> Result<(), LinkError> {
        self.admit(slot)?;
        self.links.push_front(slot);
        Ok(())
    }

    /// Puts `slot` at the back.
    ///
    /// # Errors
    /// As [`Self::push_front`].
    #[inline]
    #[doc(alias = "list_add_tail")]
    pub fn push_back(&mut self, slot: Slot) -> Result<(), LinkError> {
        self.admit(slot)?;
        self.links.push_back(slot);
        Ok(())
    }

    /// Puts `slot` right after `at`.
    ///
    /// # Errors
    /// `NotMember` if `at` is not on this list, else as [`Self::push_front`].
    pub fn insert_after(&mut self, at: Slot, slot: Slot) -> Result<(), LinkError> {
        self.member(at)?;
        self.admit(slot)?;
        // SAFETY: `at` is on this list, as `member` saw.
        let mut cursor = unsafe { self.links.cursor_mut_from_ptr(Place::of(at)) };
        cursor.insert_after(slot);
        Ok(())
    }

    /// Puts `slot` right before `at`.
    ///
    /// # Errors
    /// As [`Self::insert_after`].
    pub fn insert_before(&mut self, at: Slot, slot: Slot) -> Result<(), LinkError> {
        self.member(at)?;
        self.admit(slot)?;
        // SAFETY: `at` is on this list, as `member` saw.
        let mut cursor = unsafe { self.links.cursor_mut_from_ptr(Place::of(at)) };
        cursor.insert_before(slot);
        Ok(())
    }

    /// Takes `slot` off the list.
    ///
    /// # Errors
    /// `OutOfRange` if the store has no such slot, `NotMember` if it is not on this list.
    #[inline]
    #[doc(alias = "list_del")]
    pub fn remove(&mut self, slot: Slot) -> Result<(), LinkError> {
        self.member(slot)?;
        // SAFETY: `slot` is on this list, as `member` saw.
        let mut cursor = unsafe { self.links.cursor_mut_from_ptr(Place::of(slot)) };
        cursor.remove();
        self.dismiss(slot);
        Ok(())
    }

    /// Takes the first slot off the list.
    #[inline]
    pub fn pop_front(&mut self) -> Option<Slot> {
        let slot = self.links.pop_front()?;
        self.dismiss(slot);
        Some(slot)
    }

    /// Takes the last slot off the list.
    #[inline]
    pub fn pop_back(&mut self) -> Option<Slot> {
        let slot = self.links.pop_back()?;
        self.dismiss(slot);
        Some(slot)
    }

    /// Moves all slots into a new list with the same id and leaves this one empty.
    pub fn take(&mut self) -> Self {
        let len = core::mem::take(&mut self.len);
        Self { links: self.links.take(), slots: self.slots, id: self.id, len }
    }

    /// Moves all slots of `other` to the back, in their order. O(1) if both lists have one id, else O(`other.len()`),
    /// since each slot notes its list.
    ///
    /// # Errors
    /// `ForeignStore` if `other` is over another store.
    #[doc(alias = "list_splice_tail_init")]
    pub fn append(&mut self, other: &mut Self) -> Result<(), LinkError> {
        if other.back().is_none() {
            return Ok(());
        }
        self.adopt(other)?;
        let links = other.links.take();
        self.links.back_mut().splice_after(links);
        self.len += core::mem::take(&mut other.len);
        Ok(())
    }

    /// Moves all slots of `other` to the front, in their order. Costs what [`Self::append`] costs.
    ///
    /// # Errors
    /// `ForeignStore` if `other` is over another store.
    #[doc(alias = "list_splice_init")]
    pub fn prepend(&mut self, other: &mut Self) -> Result<(), LinkError> {
        if other.back().is_none() {
            return Ok(());
        }
        self.adopt(other)?;
        let links = other.links.take();
        self.links.front_mut().splice_before(links);
        self.len += core::mem::take(&mut other.len);
        Ok(())
    }

    /// Takes all slots off the list. O(n).
    pub fn clear(&mut self) {
        while self.pop_front().is_some() {}
    }

    /// Verifies the links both ways, the noted ids and the count. O(n), and never more even over broken links.
    ///
    /// # Errors
    /// The first fault from the front.
    pub fn check(&self) -> Result<(), ListFault> {
        let (mut before, mut seen) = (None, 0);
        let mut at = self.front();
        while let Some(slot) = at {
            if seen == self.len {
                return Err(ListFault::Count { counted: seen + 1, kept: self.len });
            }
            let item = self.slots.get(slot).ok_or(ListFault::OutOfRange(slot))?;
            let link = item.list_link();
            if !link.is_linked() {
                return Err(ListFault::Unlinked(slot));
            }
            if item.list_id() != Some(self.id) {
                return Err(ListFault::Foreign(slot));
            }
            if link.prev() != before {
                return Err(ListFault::BackLink(slot));
            }
            (before, at, seen) = (at, link.next(), seen + 1);
        }
        if before != self.back() {
            return Err(ListFault::Tail);
        }
        if seen != self.len { Err(ListFault::Count { counted: seen, kept: self.len }) } else { Ok(()) }
    }

    /// The links of `slot`, if the slot says that it is on this list.
    #[inline]
    fn member(&self, slot: Slot) -> Result<&ListLink, LinkError> {
        let item = self.slots.get(slot).ok_or(LinkError::OutOfRange)?;
        let link = item.list_link();
        if item.list_id() == Some(self.id) && link.is_linked() { Ok(link) } else { Err(LinkError::NotMember) }
    }

    /// Refuses a slot that cannot join, else notes that it has.
    #[inline]
    fn admit(&mut self, slot: Slot) -> Result<(), LinkError> {
        let item = self.slots.get(slot).ok_or(LinkError::OutOfRange)?;
        if item.list_link().is_linked() {
            return Err(LinkError::AlreadyLinked);
        }
        item.set_list_id(Some(self.id));
        self.len += 1;
        Ok(())
    }

    /// Notes that a slot has left.
    #[inline]
    fn dismiss(&mut self, slot: Slot) {
        if let Some(item) = self.slots.get(slot) {
            item.set_list_id(None);
        }
        self.len = self.len.saturating_sub(1);
    }

    /// Gives the slots of `other` this list's id, before they are moved here.
    fn adopt(&mut self, other: &Self) -> Result<(), LinkError> {
        let first = other.front().ok_or(LinkError::NotMember)?;
        let (ours, theirs) = (self.slots.get(first), other.slots.get(first));
        if !ours.zip(theirs).is_some_and(|(ours, theirs)| core::ptr::eq(ours, theirs)) {
            return Err(LinkError::ForeignStore);
        }
        if other.id != self.id {
            for slot in other {
                if let Some(item) = self.slots.get(slot) {
                    item.set_list_id(Some(self.id));
                }
            }
        }
        Ok(())
    }
}

impl<S: Slots, Tag> Drop for IndexList<S, Tag>
where
    S::Item: HasListLink<Tag>,
{
    fn drop(&mut self) {
        self.clear();
    }
}

impl<'a, S: Slots, Tag> IntoIterator for &'a IndexList<S, Tag>
where
    S::Item: HasListLink<Tag>,
{
    type Item = Slot;
    type IntoIter = ListIter<'a, S, Tag>;

    fn into_iter(self) -> ListIter<'a, S, Tag> {
        self.iter()
    }
}

impl<S: Slots, Tag> core::fmt::Debug for IndexList<S, Tag>
where
    S::Item: HasListLink<Tag>,
{
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

/// The slots of an [`IndexList`], from both ends. Ends after as many as the list counts, even over broken links.
pub struct ListIter<'a, S: Slots, Tag>
where
    S::Item: HasListLink<Tag>,
{
    list: &'a IndexList<S, Tag>,
    front: Option<Slot>,
    back: Option<Slot>,
    left: u32,
}

impl<S: Slots, Tag> ListIter<'_, S, Tag>
where
    S::Item: HasListLink<Tag>,
{
    fn link(&self, slot: Slot) -> Option<&ListLink> {
        self.list.slots.get(slot).map(HasListLink::list_link)
    }
}

impl<S: Slots, Tag> Iterator for ListIter<'_, S, Tag>
where
    S::Item: HasListLink<Tag>,
{
    type Item = Slot;

    #[inline]
    fn next(&mut self) -> Option<Slot> {
        self.left = self.left.checked_sub(1)?;
        let slot = self.front?;
        self.front = self.link(slot).and_then(ListLink::next);
        Some(slot)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl<S: Slots, Tag> DoubleEndedIterator for ListIter<'_, S, Tag>
where
    S::Item: HasListLink<Tag>,
{
    #[inline]
    fn next_back(&mut self) -> Option<Slot> {
        self.left = self.left.checked_sub(1)?;
        let slot = self.back?;
        self.back = self.link(slot).and_then(ListLink::prev);
        Some(slot)
    }
}

impl<S: Slots, Tag> ExactSizeIterator for ListIter<'_, S, Tag> where S::Item: HasListLink<Tag> {}

impl<S: Slots, Tag> core::fmt::Debug for ListIter<'_, S, Tag>
where
    S::Item: HasListLink<Tag>,
{
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { front, back, left, .. } = self;
        f.debug_struct("ListIter").field("front", front).field("back", back).field("left", left).finish()
    }
}

/// A fault that [`IndexList::check`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ListFault {
    /// A link names a slot that the store does not have.
    OutOfRange(Slot),
    /// A link leads to a slot that is on no list.
    Unlinked(Slot),
    /// A slot on this list notes another.
    Foreign(Slot),
    /// The slot's `prev` is not the slot that leads to it.
    BackLink(Slot),
    /// The list does not end with the slot that its head calls the last.
    Tail,
    /// The head's count is wrong.
    Count {
        /// How many slots the links lead to, or one more than `kept` if they go on.
        counted: u32,
        /// How many the head says there are.
        kept: u32,
    },
}

impl core::fmt::Display for ListFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::OutOfRange(slot) => write!(f, "{slot:?} is outside the store"),
            Self::Unlinked(slot) => write!(f, "{slot:?} is reached but not linked"),
            Self::Foreign(slot) => write!(f, "{slot:?} notes another list"),
            Self::BackLink(slot) => write!(f, "{slot:?} has a wrong back link"),
            Self::Tail => f.write_str("the list does not end at its tail"),
            Self::Count { counted, kept } => write!(f, "{counted} slots counted, {kept} kept"),
        }
    }
}

impl core::error::Error for ListFault {}

#[cfg(test)]
mod tests;
