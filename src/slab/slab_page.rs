//! A slab: a block of pages that holds objects of one cache.
//!
//! Its first page carries [`PageFlags::SLAB`], the cache's number as its mapping, and one word: the first free object and how
//! many are free. Free objects are chained through their states, which are kept apart from the objects' memory:
//! whoever writes to a free object changes no link. A link is checked against the slab each time it is followed, and the state of
//! an object that is not free is no link at all; so a chain that was overwritten ends, and leads nowhere else.
//!
//! # Linux
//! `struct slab` in `mm/slab.h`; the chain of indices is `freelist_idx_t` of `mm/slab.c` (6.7 and earlier).

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, Ordering::Relaxed};

use crate::flags::PageFlags;
use crate::phys::Page;

use super::layout::{Geometry, ObjectLayout, StatesIn};

/// The object is its owner's.
const ALLOCATED: u16 = u16::MAX;
/// The object is on a CPU's list.
const ON_CPU: u16 = u16::MAX - 1;
/// The object is never handed out again, since it was found damaged.
const LOST: u16 = u16::MAX - 2;
/// The object is free in its slab, and the last of the chain.
const END: u16 = u16::MAX - 3;

/// A state in eight bits, where a slab holds no more than [`MAX_IN_PAGES`](super::layout::MAX_IN_PAGES) objects.
#[inline]
const fn packed(state: u16) -> u8 {
    state as u8
}

#[inline]
const fn unpacked(state: u8) -> u16 {
    if state < packed(END) { state as u16 } else { END | state as u16 }
}

static_assertions::const_assert!(super::layout::MAX_IN_PAGES < packed(END) as usize);
static_assertions::const_assert!(unpacked(packed(LOST)) == LOST && unpacked(packed(ALLOCATED)) == ALLOCATED);

/// Where an object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Whereabouts {
    /// With its owner.
    Allocated,
    /// On a CPU's list.
    OnCpu,
    /// Out of use.
    Lost,
    /// In its slab; with the link to the next free one, which may be damaged.
    Free(u16),
}

impl Whereabouts {
    fn of(state: u16) -> Self {
        match state {
            ALLOCATED => Self::Allocated,
            ON_CPU => Self::OnCpu,
            LOST => Self::Lost,
            link => Self::Free(link),
        }
    }
}

/// An object: its first byte, and where its state is kept. Both stay good while its slab is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Object {
    start: NonNull<u8>,
    /// An `AtomicU16` in the slab, or the `Page` where the object begins, as the layout says.
    state: NonNull<()>,
}

impl Object {
    #[inline]
    pub(super) fn into_parts(self) -> (NonNull<u8>, NonNull<()>) {
        (self.start, self.state)
    }

    /// # Safety
    /// The parts come from [`into_parts`](Self::into_parts) of an object whose slab still is one.
    #[inline]
    pub(super) unsafe fn from_parts(start: NonNull<u8>, state: NonNull<()>) -> Self {
        Self { start, state }
    }

    #[inline]
    pub(super) fn start(self) -> NonNull<u8> {
        self.start
    }

    /// The state, in a cache whose states are kept in this place.
    #[inline]
    fn state(self, states_in: StatesIn) -> u16 {
        match states_in {
            StatesIn::Slab => {
                // SAFETY: objects of such a cache point to the state in their slab, which is memory of the slab while it is one.
                let state = unsafe { self.state.cast::<AtomicU16>().as_ref() };
                state.load(Relaxed)
            }
            StatesIn::Pages => {
                // SAFETY: objects of such a cache point to a page of the memory map, which outlives the cache.
                let page = unsafe { self.state.cast::<Page>().as_ref() };
                unpacked(page.object_state())
            }
        }
    }

    #[inline]
    fn set_state(self, states_in: StatesIn, state: u16) {
        match states_in {
            StatesIn::Slab => {
                // SAFETY: as in `state`.
                let place = unsafe { self.state.cast::<AtomicU16>().as_ref() };
                place.store(state, Relaxed);
            }
            StatesIn::Pages => {
                // SAFETY: as in `state`.
                let page = unsafe { self.state.cast::<Page>().as_ref() };
                page.set_object_state(packed(state));
            }
        }
    }

    #[inline]
    pub(super) fn whereabouts(self, layout: &ObjectLayout) -> Whereabouts {
        Whereabouts::of(self.state(layout.states_in))
    }

    #[inline]
    pub(super) fn is_allocated(self, layout: &ObjectLayout) -> bool {
        self.state(layout.states_in) == ALLOCATED
    }

    #[inline]
    pub(super) fn note_allocated(self, layout: &ObjectLayout) {
        self.set_state(layout.states_in, ALLOCATED);
    }

    #[inline]
    pub(super) fn note_on_cpu(self, layout: &ObjectLayout) {
        self.set_state(layout.states_in, ON_CPU);
    }

    /// Takes the object out of use for good.
    pub(super) fn note_lost(self, layout: &ObjectLayout) {
        self.set_state(layout.states_in, LOST);
    }
}

/// A slab's chain of free objects was found damaged; none of them is ever handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Damage {
    /// How many were noted as free.
    pub(super) noted: u16,
    /// How many were found, and are lost.
    pub(super) lost: u16,
}

/// A slab, looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slab<'a> {
    layout: &'a ObjectLayout,
    geometry: &'a Geometry,
    base: NonNull<u8>,
    /// The pages of the block.
    pages: &'a [Page],
    head: &'a Page,
    place: u32,
}

impl<'a> Slab<'a> {
    /// Looks at the slab whose first page has this place among all pages and whose memory begins at `base`.
    ///
    /// # Safety
    /// The block belongs to a cache of this layout, and stays its own while the answer and its objects are used; `base` is its
    /// address in the direct map.
    #[inline]
    pub(super) unsafe fn new(
        layout: &'a ObjectLayout,
        all: &'a [Page],
        place: u32,
        base: NonNull<u8>,
    ) -> Option<Self> {
        let pages = all.get(place as usize..)?;
        let head = pages.first()?;
        let geometry = layout.geometry(head.order()?);
        Some(Self { layout, geometry, base, pages, head, place })
    }

    /// The first page.
    pub(super) fn head(&self) -> &'a Page {
        self.head
    }

    /// The place of the first page among all pages.
    pub(super) fn place(&self) -> u32 {
        self.place
    }

    #[inline]
    pub(super) fn geometry(&self) -> &'a Geometry {
        self.geometry
    }

    /// How many objects are free in the slab.
    #[inline]
    pub(super) fn free(&self) -> u16 {
        self.head.slab_word() as u16
    }

    fn first_free(&self) -> u16 {
        (self.head.slab_word() >> 16) as u16
    }

    fn set_word(&self, first_free: u16, free: u16) {
        self.head.set_slab_word(u32::from(first_free) << 16 | u32::from(free));
    }

    /// The object that begins at this address.
    #[inline]
    pub(super) fn find(&self, address: NonNull<u8>) -> Option<(u16, Object)> {
        let offset = address.addr().get().checked_sub(self.base.addr().get())?;
        let index = self.layout.index_of(self.geometry, offset)?;
        Some((index, self.object(index)?))
    }

    /// An object by its number.
    #[inline]
    pub(super) fn object(&self, index: u16) -> Option<Object> {
        if index >= self.geometry.count {
            return None;
        }
        let offset = self.layout.offset_of(index);
        // SAFETY: the layout keeps all `count` objects within the block.
        let start = unsafe { self.base.add(offset) };
        let state = match self.layout.states_in {
            StatesIn::Slab => {
                let at = self.geometry.states_at as usize + usize::from(index) * size_of::<AtomicU16>();
                // SAFETY: the layout keeps all `count` states within the block.
                unsafe { self.base.add(at) }.cast()
            }
            StatesIn::Pages => NonNull::from(self.pages.get(offset >> crate::addr::PAGE_SHIFT)?).cast(),
        };
        Some(Object { start, state })
    }

    /// All objects.
    pub(super) fn objects(&self) -> impl Iterator<Item = Object> {
        (0..self.geometry.count).filter_map(|index| self.object(index))
    }

    /// Makes a fresh block a slab of the cache `mapping`, all objects free.
    pub(super) fn init(&self, mapping: u32) {
        let count = self.geometry.count;
        for (index, object) in self.objects().enumerate() {
            let next = index as u16 + 1;
            object.set_state(self.layout.states_in, if next < count { next } else { END });
        }
        self.set_word(0, count);
        self.head.set_cache(mapping);
        self.head.set_kind(PageFlags::SLAB);
    }

    /// Makes the slab a plain block again, so that it may be freed.
    pub(super) fn deinit(&self) {
        if self.layout.states_in == StatesIn::Pages {
            for object in self.objects() {
                object.set_state(StatesIn::Pages, 0);
            }
        }
        self.set_word(0, 0);
        self.head.set_cache(0);
        self.head.clear_kind(PageFlags::SLAB);
    }

    /// Takes a free object; it is on no list then, and its state is the caller's to set.
    ///
    /// # Errors
    /// [`Damage`], if the chain does not lead to as many objects as are free.
    pub(super) fn pop(&self) -> Result<Object, Damage> {
        let (first, free) = (self.first_free(), self.free());
        let object = self.object(first).ok_or_else(|| self.give_up())?;
        let next = object.state(self.layout.states_in);
        let is_last = free == 1;
        if is_last != (next == END) || !(is_last || next < self.geometry.count) {
            return Err(self.give_up());
        }
        self.set_word(next, free - 1);
        Ok(object)
    }

    /// Takes all free objects out of use, since their chain is damaged.
    #[cold]
    fn give_up(&self) -> Damage {
        let noted = self.free();
        self.set_word(END, 0);
        let mut lost = 0;
        for object in self.objects() {
            if matches!(object.whereabouts(self.layout), Whereabouts::Free(_)) {
                object.note_lost(self.layout);
                lost += 1;
            }
        }
        Damage { noted, lost }
    }

    /// Puts an object back that [`find`](Self::find) found.
    pub(super) fn push(&self, index: u16, object: Object) {
        let (first, free) = (self.first_free(), self.free());
        object.set_state(self.layout.states_in, if free == 0 { END } else { first });
        self.set_word(index, free + 1);
    }

    /// The length of the chain of free objects; `None` if it is damaged.
    pub(super) fn chain_len(&self) -> Option<u16> {
        let (mut at, mut len) = (self.first_free(), 0);
        while len < self.free() {
            at = self.object(at)?.state(self.layout.states_in);
            len += 1;
        }
        (len == 0 || at == END).then_some(len)
    }
}
