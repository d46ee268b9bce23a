//! Objects that a CPU keeps, to be handed out without a lock.
//!
//! The last one freed is the first one handed out, since it is likely to be in the CPU's cache still.
//!
//! # Linux
//! `struct array_cache` of `mm/slab.c` (6.7 and earlier).

use core::ptr::NonNull;

use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::slab_page::Object;

/// A place for an object, with its state beside it so that handing it out asks nothing of the memory map.
#[derive(Debug)]
pub(super) struct Entry {
    object: AtomicPtr<u8>,
    state: AtomicPtr<()>,
}

impl Entry {
    pub(super) fn new() -> Self {
        Self { object: AtomicPtr::new(core::ptr::null_mut()), state: AtomicPtr::new(core::ptr::null_mut()) }
    }

    #[inline]
    fn get(&self) -> Option<Object> {
        let start = NonNull::new(self.object.load(Relaxed))?;
        let state = NonNull::new(self.state.load(Relaxed))?;
        // SAFETY: `set` put in an object's parts, and an object on a CPU's list keeps its slab.
        Some(unsafe { Object::from_parts(start, state) })
    }

    #[inline]
    fn set(&self, object: Object) {
        let (start, state) = object.into_parts();
        self.object.store(start.as_ptr(), Relaxed);
        self.state.store(state.as_ptr(), Relaxed);
    }
}

/// What one CPU keeps of one cache. Who may touch it is the CPU's gate's affair; so all accesses are plain.
#[derive(Debug)]
#[cfg_attr(not(any(loom, shuttle)), repr(align(64)))]
pub(super) struct CpuObjects<'m> {
    len: AtomicU32,
    allocated: AtomicU64,
    freed: AtomicU64,
    entries: &'m [Entry],
}

impl<'m> CpuObjects<'m> {
    pub(super) fn new(entries: &'m [Entry]) -> Self {
        Self { len: AtomicU32::new(0), allocated: AtomicU64::new(0), freed: AtomicU64::new(0), entries }
    }

    /// Objects kept.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.len.load(Relaxed)
    }

    /// The most objects kept.
    pub(super) fn capacity(&self) -> u32 {
        self.entries.len() as u32
    }

    /// How many objects move to or from the slabs at once.
    ///
    /// # Linux
    /// `batchcount` of `struct array_cache`.
    #[inline]
    pub(super) fn batch(&self) -> u32 {
        (self.entries.len() as u32).div_ceil(2)
    }

    /// Objects that this CPU ever handed out, and took back.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.allocated.load(Relaxed), self.freed.load(Relaxed))
    }

    #[inline]
    pub(super) fn note_allocated(&self) {
        self.allocated.store(self.allocated.load(Relaxed) + 1, Relaxed);
    }

    #[inline]
    pub(super) fn note_freed(&self) {
        self.freed.store(self.freed.load(Relaxed) + 1, Relaxed);
    }

    /// Takes the object that came last.
    #[inline]
    pub(super) fn pop(&self) -> Option<Object> {
        let len = self.len().checked_sub(1)?;
        let object = self.entries.get(len as usize)?.get()?;
        self.len.store(len, Relaxed);
        Some(object)
    }

    /// Adds an object, unless there is no room.
    #[inline]
    pub(super) fn push(&self, object: Object) -> bool {
        let len = self.len();
        let Some(entry) = self.entries.get(len as usize) else { return false };
        entry.set(object);
        self.len.store(len + 1, Relaxed);
        true
    }

    /// Takes out the `count` objects that came first, giving each to `take`.
    pub(super) fn shift_out(&self, count: u32, mut take: impl FnMut(Object)) {
        let len = self.len();
        let count = count.min(len);
        for object in self.entries.iter().take(count as usize).filter_map(Entry::get) {
            take(object);
        }
        for at in count..len {
            let kept = self.entries.get(at as usize).and_then(Entry::get);
            if let (Some(object), Some(entry)) = (kept, self.entries.get((at - count) as usize)) {
                entry.set(object);
            }
        }
        self.len.store(len - count, Relaxed);
    }

    /// The objects kept, for `check`.
    pub(super) fn iter(&self) -> impl Iterator<Item = Object> {
        self.entries.iter().take(self.len() as usize).filter_map(Entry::get)
    }
}
