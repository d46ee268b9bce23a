//! One leaf table, locked.

use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::format::{self, ENTRIES, EntryFormat, Pte};
use super::frame::TableLock;
use super::huge::HugeRef;
use crate::addr::{PAGE_SHIFT, VirtAddr, VirtRange};
use crate::phys::Kmap;

/// What has the entry of an address.
#[derive(Debug)]
pub enum Leaf<'p, F: EntryFormat> {
    /// Nothing.
    Absent {
        /// The first address behind the hole, which may be 2 MiB, 1 GiB or 512 GiB; the greatest of all if there is none.
        next: VirtAddr,
    },
    /// A table of 512 entries.
    Table(TableRef<'p, F>),
    /// One entry of 2 MiB.
    Huge(HugeRef<'p, F>),
}

/// A leaf table within reach, its lock held.
///
/// An address that the table does not cover has no entry: reading it gives [`Pte::None`], writing does nothing.
///
/// # Linux
/// What `pte_offset_map_lock` answers with; dropping it is `pte_unmap_unlock`.
#[derive(Debug)]
#[must_use = "the table is unlocked when this is dropped"]
pub struct TableRef<'p, F: EntryFormat> {
    kmap: Kmap<'p>,
    lock: TableLock<'p>,
    base: VirtAddr,
    format: PhantomData<F>,
}

impl<'p, F: EntryFormat> TableRef<'p, F> {
    #[inline]
    pub(super) fn new(kmap: Kmap<'p>, lock: TableLock<'p>, addr: VirtAddr) -> Self {
        Self { kmap, lock: lock.counting(), base: format::floor(1, addr), format: PhantomData }
    }

    /// The first address that the table covers; it covers 2 MiB.
    #[inline]
    pub fn base(&self) -> VirtAddr {
        self.base
    }

    /// The first address behind the table, or the last of all.
    #[inline]
    pub fn end(&self) -> VirtAddr {
        format::next(1, self.base)
    }

    /// How many entries are not [`Pte::None`].
    #[inline]
    pub fn used(&self) -> u32 {
        self.lock.count()
    }

    /// Reads an entry.
    #[inline]
    pub fn get(&self, addr: VirtAddr) -> Pte {
        self.index(addr).map_or(Pte::None, |index| F::decode(0, self.raw(index)))
    }

    /// Writes an entry. What hardware notes in the old one meanwhile is lost: [`update`](Self::update) keeps it, [`take`](Self::take) tells it.
    ///
    /// # Linux
    /// `set_pte_at`.
    #[inline]
    #[doc(alias = "set_pte_at")]
    pub fn set(&self, addr: VirtAddr, pte: Pte) {
        if let Some(index) = self.index(addr) {
            self.note(self.raw(index), self.store(index, pte));
        }
    }

    /// Empties an entry and answers with what it was, all that hardware noted included.
    ///
    /// # Linux
    /// `ptep_get_and_clear`.
    #[inline]
    #[doc(alias = "ptep_get_and_clear")]
    pub fn take(&self, addr: VirtAddr) -> Pte {
        self.index(addr).map_or(Pte::None, |index| self.take_at(index))
    }

    /// Replaces an entry by what `change` makes of it, and answers with what it was. `change` runs again if hardware noted something meanwhile,
    /// so that nothing is lost.
    #[inline]
    pub fn update(&self, addr: VirtAddr, change: impl FnMut(Pte) -> Pte) -> Pte {
        self.index(addr).map_or(Pte::None, |index| self.update_at(index, change))
    }

    /// The entries of a range, so far as the table covers it, that are not [`Pte::None`].
    #[inline]
    pub fn iter(&self, range: VirtRange) -> impl Iterator<Item = (VirtAddr, Pte)> + '_ {
        let (first, end) = self.indices(range);
        let end = if self.used() == 0 { first } else { end };
        (first..end).filter_map(|index| match self.raw(index) {
            0 => None,
            raw => Some((self.addr(index), F::decode(0, raw))),
        })
    }

    /// The entries that a range has here: the first and the one after the last.
    #[inline]
    pub(super) fn indices(&self, range: VirtRange) -> (usize, usize) {
        let at = |addr: VirtAddr| {
            let offset = addr.get().saturating_sub(self.base.get()) >> PAGE_SHIFT;
            offset.min(ENTRIES as u64) as usize
        };
        let end = range.end().checked_page_ceil().unwrap_or(VirtAddr::MAX);
        (at(range.start()), at(end))
    }

    #[inline]
    pub(super) fn addr(&self, index: usize) -> VirtAddr {
        debug_assert!(index < ENTRIES, "an entry of this table");
        VirtAddr::from(self.base.get() | (index as u64) << PAGE_SHIFT)
    }

    #[inline]
    pub(super) fn entries(&self) -> &[AtomicU64; ENTRIES] {
        self.kmap.entries()
    }

    #[inline]
    fn entry(&self, index: usize) -> &AtomicU64 {
        &self.entries()[index % ENTRIES]
    }

    /// Notes how many entries are in use now.
    #[inline]
    pub(super) fn note_used(&self, used: u32) {
        self.lock.set_count(used);
    }

    #[inline]
    fn raw(&self, index: usize) -> u64 {
        self.entry(index).load(Relaxed)
    }

    /// Empties an entry. Only where hardware may still note something does that take an atomic exchange.
    #[inline]
    fn take_at(&self, index: usize) -> Pte {
        let entry = self.entry(index);
        let mut raw = entry.load(Relaxed);
        if F::may_change(raw) {
            raw = entry.swap(0, AcqRel);
        } else {
            entry.store(0, Release);
        }
        self.note(raw, 0);
        F::decode(0, raw)
    }

    #[inline]
    fn update_at(&self, index: usize, mut change: impl FnMut(Pte) -> Pte) -> Pte {
        let entry = self.entry(index);
        let mut old = entry.load(Relaxed);
        loop {
            let new = F::encode(0, change(F::decode(0, old)));
            if !F::may_change(old) {
                entry.store(new, Release);
            } else if let Err(seen) = entry.compare_exchange(old, new, AcqRel, Acquire) {
                old = seen;
                continue;
            }
            self.note(old, new);
            return F::decode(0, old);
        }
    }

    /// Writes an entry that nothing is asked of; what was written.
    #[inline]
    fn store(&self, index: usize, pte: Pte) -> u64 {
        let raw = F::encode(0, pte);
        // Release: what the frame holds was written before somebody finds it here.
        self.entry(index).store(raw, Release);
        raw
    }

    /// Counts what an entry became.
    #[inline]
    fn note(&self, old: u64, new: u64) {
        self.note_used(self.used() + u32::from(new != 0) - u32::from(old != 0));
    }

    /// The entry of an address, if the table covers it.
    #[inline]
    pub(super) fn index(&self, addr: VirtAddr) -> Option<usize> {
        let offset = addr.get().wrapping_sub(self.base.get()) >> PAGE_SHIFT;
        (offset < ENTRIES as u64).then_some(offset as usize)
    }
}
