//! Lists of free blocks, linked through the pages' metadata.
//!
//! Links never lie in the free frames themselves: a bulk free would touch every one of them.

use super::page::{NIL, Page};

/// A doubly linked list of pages of one zone, by their index in the zone's map.
#[derive(Debug)]
pub(crate) struct PageList {
    head: u32,
    tail: u32,
}

impl PageList {
    pub(crate) const fn new() -> Self {
        Self { head: NIL, tail: NIL }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head == NIL
    }

    #[inline]
    pub(crate) fn front(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    #[inline]
    pub(crate) fn back(&self) -> Option<u32> {
        (self.tail != NIL).then_some(self.tail)
    }

    #[inline]
    pub(crate) fn push_front(&mut self, map: &[Page], index: u32) {
        let page = &map[index as usize];
        page.set_prev(NIL);
        page.set_next(self.head);
        match self.head {
            NIL => self.tail = index,
            head => map[head as usize].set_prev(index),
        }
        self.head = index;
    }

    #[inline]
    pub(crate) fn push_back(&mut self, map: &[Page], index: u32) {
        let page = &map[index as usize];
        page.set_next(NIL);
        page.set_prev(self.tail);
        match self.tail {
            NIL => self.head = index,
            tail => map[tail as usize].set_next(index),
        }
        self.tail = index;
    }

    /// Takes a page out that is on this list.
    #[inline]
    pub(crate) fn remove(&mut self, map: &[Page], index: u32) {
        let page = &map[index as usize];
        let (prev, next) = (page.prev(), page.next());
        match prev {
            NIL => self.head = next,
            prev => map[prev as usize].set_next(next),
        }
        match next {
            NIL => self.tail = prev,
            next => map[next as usize].set_prev(prev),
        }
    }

    /// The pages, first to last.
    pub(crate) fn iter<'a>(&self, map: &'a [Page]) -> impl Iterator<Item = u32> + use<'a> {
        let mut at = self.head;
        core::iter::from_fn(move || {
            let index = (at != NIL).then_some(at)?;
            at = map[index as usize].next();
            Some(index)
        })
    }
}
