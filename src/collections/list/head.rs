//! The head of a list that borrows nothing and is never dropped.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{LinkError, ListFault, ListLink, Slot, UNLINKED};

/// The head of a list, for lists whose heads live in a store themselves: 12 bytes.
///
/// Every operation is given the way from a slot to its link. It makes sure that the slot's neighbours know it before it
/// takes one out; a slot from the middle of another list would pass for one of this list.
///
/// Plain loads and stores: whoever changes a list holds the lock of all lists that use these links, whoever walks it too.
#[derive(Debug, Default)]
#[doc(alias = "list_head")]
pub struct ListHead {
    front: AtomicU32,
    back: AtomicU32,
    len: AtomicU32,
}

impl ListHead {
    /// The head of an empty list.
    pub const fn new() -> Self {
        Self { front: AtomicU32::new(0), back: AtomicU32::new(0), len: AtomicU32::new(0) }
    }

    /// How many slots are on the list.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len.load(Relaxed)
    }

    /// Whether no slot is on the list.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first slot.
    #[inline]
    pub fn front(&self) -> Option<Slot> {
        Slot::from_code(self.front.load(Relaxed))
    }

    fn back(&self) -> Option<Slot> {
        Slot::from_code(self.back.load(Relaxed))
    }

    /// Puts `slot` at the back.
    ///
    /// # Errors
    /// `OutOfRange` if there is no such slot, `AlreadyLinked` if it is on a list.
    pub fn push_back<'s>(
        &self,
        slot: Slot,
        link: impl Fn(Slot) -> Option<&'s ListLink>,
    ) -> Result<(), LinkError> {
        let new = link(slot).ok_or(LinkError::OutOfRange)?;
        if new.is_linked() {
            return Err(LinkError::AlreadyLinked);
        }
        let back = self.back();
        new.next.store(0, Relaxed);
        new.prev.store(Slot::code_of(back), Relaxed);
        match back.and_then(link) {
            Some(last) => last.next.store(slot.code(), Relaxed),
            None => self.front.store(slot.code(), Relaxed),
        }
        self.back.store(slot.code(), Relaxed);
        self.len.store(self.len() + 1, Relaxed);
        Ok(())
    }

    /// Takes `slot` off the list.
    ///
    /// # Errors
    /// `OutOfRange` if there is no such slot, `NotMember` if it is not on this list, as far as its neighbours know.
    pub fn remove<'s>(
        &self,
        slot: Slot,
        link: impl Fn(Slot) -> Option<&'s ListLink>,
    ) -> Result<(), LinkError> {
        let old = link(slot).ok_or(LinkError::OutOfRange)?;
        if !old.is_linked() {
            return Err(LinkError::NotMember);
        }
        let (next, prev) = (old.next(), old.prev());
        let (after, before) = (next.and_then(&link), prev.and_then(&link));
        let known_before = before.map_or_else(|| self.front(), ListLink::next) == Some(slot);
        let known_after = after.map_or_else(|| self.back(), ListLink::prev) == Some(slot);
        let Some(len) = self.len().checked_sub(1).filter(|_| known_before && known_after) else {
            return Err(LinkError::NotMember);
        };
        before.map_or(&self.front, |before| &before.next).store(Slot::code_of(next), Relaxed);
        after.map_or(&self.back, |after| &after.prev).store(Slot::code_of(prev), Relaxed);
        old.next.store(UNLINKED, Relaxed);
        old.prev.store(0, Relaxed);
        self.len.store(len, Relaxed);
        Ok(())
    }

    /// The slots from front to back, no more than the head says there are. The slot that was given last may be taken off
    /// only after the next one has been asked for.
    pub fn iter<'s>(&self, link: impl Fn(Slot) -> Option<&'s ListLink>) -> impl Iterator<Item = Slot> {
        core::iter::successors(self.front(), move |&slot| link(slot)?.next()).take(self.len() as usize)
    }

    /// Goes along the list and compares all that is kept twice.
    ///
    /// # Errors
    /// The first fault.
    pub fn check<'s>(&self, link: impl Fn(Slot) -> Option<&'s ListLink>) -> Result<(), ListFault> {
        let (mut counted, mut prev, mut at) = (0, None, self.front());
        while let Some(slot) = at {
            let here = link(slot).ok_or(ListFault::OutOfRange(slot))?;
            if !here.is_linked() {
                return Err(ListFault::Unlinked(slot));
            }
            if here.prev() != prev {
                return Err(ListFault::BackLink(slot));
            }
            counted += 1;
            if counted > self.len() {
                break;
            }
            (prev, at) = (at, here.next());
        }
        if counted != self.len() {
            return Err(ListFault::Count { counted, kept: self.len() });
        }
        if prev == self.back() { Ok(()) } else { Err(ListFault::Tail) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn slot(n: u32) -> Slot {
        Slot::new(n).unwrap()
    }

    #[test]
    fn slots_come_and_go_anywhere_and_the_head_knows() {
        let links: [ListLink; 5] = Default::default();
        let link = |slot: Slot| links.get(slot.index());
        let (head, other) = (ListHead::new(), ListHead::new());
        for n in 0..4 {
            head.push_back(slot(n), link).unwrap();
            head.check(link).unwrap();
        }
        assert_eq!(head.push_back(slot(2), link), Err(LinkError::AlreadyLinked));
        assert_eq!(head.push_back(slot(5), link), Err(LinkError::OutOfRange));
        assert_eq!(head.remove(slot(4), link), Err(LinkError::NotMember));
        assert_eq!(other.remove(slot(0), link), Err(LinkError::NotMember));
        for (gone, left) in
            [(1, [0, 2, 3].as_slice()), (0, [2, 3].as_slice()), (3, [2].as_slice()), (2, [].as_slice())]
        {
            head.remove(slot(gone), link).unwrap();
            head.check(link).unwrap();
            assert_eq!(head.iter(link).map(Slot::get).collect::<Vec<_>>(), left);
        }
        assert!(head.is_empty() && head.front().is_none());
    }

    #[test]
    fn check_names_what_is_broken() {
        let broken = |damage: fn(&ListHead, &[ListLink; 4])| {
            let links: [ListLink; 4] = Default::default();
            let link = |slot: Slot| links.get(slot.index());
            let head = ListHead::new();
            (0..3).for_each(|n| head.push_back(slot(n), link).unwrap());
            damage(&head, &links);
            head.check(link).unwrap_err()
        };
        assert_eq!(
            broken(|_, links| links[1].corrupt(Slot::new(9), Slot::new(0))),
            ListFault::OutOfRange(slot(9))
        );
        assert_eq!(
            broken(|_, links| links[1].corrupt(Slot::new(3), Slot::new(0))),
            ListFault::Unlinked(slot(3))
        );
        assert_eq!(broken(|_, links| links[1].corrupt(Slot::new(2), None)), ListFault::BackLink(slot(1)));
        assert_eq!(broken(|head, _| head.len.store(2, Relaxed)), ListFault::Count { counted: 3, kept: 2 });
        assert_eq!(broken(|head, _| head.back.store(2, Relaxed)), ListFault::Tail);
        let cut = broken(|_, links| links[1].corrupt(None, Slot::new(0)));
        assert_eq!(cut, ListFault::Count { counted: 2, kept: 3 });
    }
}
