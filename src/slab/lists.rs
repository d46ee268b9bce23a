//! The slabs of a cache, on three lists.
//!
//! Slabs are linked through the metadata of their first pages, so a cache needs no memory for them.
//!
//! # Linux
//! `struct kmem_cache_node` of `mm/slab.c` (6.7 and earlier).

use core::ptr::NonNull;

use crate::phys::{Page, PageList};

use super::slab_page::{Object, Slab};

/// A cache's slabs.
#[derive(Debug)]
#[doc(alias = "kmem_cache_node")]
pub(super) struct SlabLists {
    /// Slabs with some objects free.
    partial: PageList,
    /// Slabs with none free.
    full: PageList,
    /// Slabs with all free.
    empty: PageList,
    pub(super) slabs: u64,
    pub(super) empties: u32,
    pub(super) pages: u64,
    /// Objects of all slabs.
    pub(super) objects: u64,
    /// Objects free in their slabs; those on CPUs' lists are not.
    pub(super) free: u64,
    /// Objects taken out of use because they or their slab's chain were found damaged.
    pub(super) lost: u64,
}

/// Which list a slab is on, or belongs on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Partial,
    Full,
    Empty,
}

impl Which {
    pub(super) fn of(slab: &Slab<'_>) -> Self {
        match slab.free() {
            0 => Self::Full,
            free if free == slab.geometry().count => Self::Empty,
            _ => Self::Partial,
        }
    }
}

impl SlabLists {
    pub(super) const fn new() -> Self {
        Self {
            partial: PageList::new(),
            full: PageList::new(),
            empty: PageList::new(),
            slabs: 0,
            empties: 0,
            pages: 0,
            objects: 0,
            free: 0,
            lost: 0,
        }
    }

    /// The slab to take the next object from: one in use before an empty one, so that empty ones can be given back.
    pub(super) fn next(&self) -> Option<u32> {
        self.partial.front().or_else(|| self.empty.front())
    }

    /// A slab with all objects free.
    pub(super) fn first_empty(&self) -> Option<u32> {
        self.empty.front()
    }

    /// The slabs of a list.
    pub(super) fn iter<'a>(&self, map: &'a [Page], which: Which) -> impl Iterator<Item = u32> + use<'a> {
        let list = match which {
            Which::Partial => &self.partial,
            Which::Full => &self.full,
            Which::Empty => &self.empty,
        };
        list.iter(map)
    }

    /// Adds a new slab.
    pub(super) fn add(&mut self, map: &[Page], slab: &Slab<'_>) {
        let geometry = slab.geometry();
        self.slabs += 1;
        self.pages += geometry.order.pages();
        self.objects += u64::from(geometry.count);
        self.free += u64::from(slab.free());
        self.link(map, slab);
    }

    /// Takes a slab out that has all objects free.
    pub(super) fn remove(&mut self, map: &[Page], slab: &Slab<'_>) {
        let geometry = slab.geometry();
        self.unlink(map, slab, Which::Empty);
        self.slabs -= 1;
        self.pages -= geometry.order.pages();
        self.objects -= u64::from(geometry.count);
        self.free -= u64::from(slab.free());
    }

    /// Takes an object out of a slab; `None` if the slab is found damaged, which is then of no use any more.
    pub(super) fn take(&mut self, map: &[Page], slab: &Slab<'_>) -> Option<Object> {
        let before = Which::of(slab);
        let taken = slab.pop();
        match taken {
            Ok(_) => self.free -= 1,
            Err(damage) => {
                self.free -= u64::from(damage.noted);
                self.lost += u64::from(damage.lost);
            }
        }
        self.relink(map, slab, before);
        taken.ok()
    }

    /// Puts the object at an address back into its slab.
    pub(super) fn put(&mut self, map: &[Page], slab: &Slab<'_>, address: NonNull<u8>) {
        let Some((index, object)) = slab.find(address) else { return };
        let before = Which::of(slab);
        slab.push(index, object);
        self.free += 1;
        self.relink(map, slab, before);
    }

    fn relink(&mut self, map: &[Page], slab: &Slab<'_>, before: Which) {
        if Which::of(slab) != before {
            self.unlink(map, slab, before);
            self.link(map, slab);
        }
    }

    fn link(&mut self, map: &[Page], slab: &Slab<'_>) {
        let which = Which::of(slab);
        self.empties += u32::from(which == Which::Empty);
        self.list(which).push_front(map, slab.place());
    }

    fn unlink(&mut self, map: &[Page], slab: &Slab<'_>, which: Which) {
        self.empties -= u32::from(which == Which::Empty);
        self.list(which).remove(map, slab.place());
    }

    fn list(&mut self, which: Which) -> &mut PageList {
        match which {
            Which::Partial => &mut self.partial,
            Which::Full => &mut self.full,
            Which::Empty => &mut self.empty,
        }
    }
}
