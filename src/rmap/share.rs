//! The sharing list of a file: all VMAs that map it.

use super::{Place, RmapNodes, Walked};
use crate::addr::{PgOff, VirtAddr, VirtRange};
use crate::collections::{LinkError, ListFault, ListHead, ListLink, Slot};
use crate::platform::Platform;
use crate::sync::TaskLock;
use crate::sync::words::{
    Ordering::{Acquire, Relaxed, Release},
    Word32,
};

/// All VMAs that map one file, in no order that means anything.
///
/// It lives with what is known of the file, borrows nothing and can be made in a constant.
///
/// # Locking
/// Has a lock of its own, which is held while a walk visits a VMA: until it is let go the VMA stays on the list, and with
/// it its address space and its tables.
///
/// A VMA that is split, merged or moved is for a moment not where its pages are. Many may be [changing](Self::begin_change) at a time, and whoever must
/// miss no page [waits](Self::settle) until none is, and keeps others from beginning. So a truncation never waits for more than the changes that have begun, and
/// they never wait for it.
///
/// # Linux
/// `i_mmap` in `struct address_space`, an interval tree there.
#[derive(Debug, Default)]
#[doc(alias = "i_mmap")]
pub struct ShareList {
    head: TaskLock<Sharers>,
    /// How many changes are under way, and [`SETTLED`].
    changes: Word32,
}

/// What a list's lock guards.
#[derive(Debug, Default)]
struct Sharers {
    list: ListHead,
    /// Where the walk of who has [settled](ShareList::settle) the list is to go on: the next VMA, and the first address in it.
    next: Option<(Slot, VirtAddr)>,
}

/// How far a [walk](Settled::walk) has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "there may be more to visit"]
pub enum Walk {
    /// All VMAs were visited.
    Through,
    /// The visitor has stopped it.
    Stopped,
}

/// No change begins, and nobody else may set this.
const SETTLED: u32 = 1 << 31;
/// Somebody is about to sleep until the word is another.
const AWAITED: u32 = 1 << 30;
/// How many changes are under way.
const CHANGES: u32 = AWAITED - 1;

/// How often a CPU looks by itself: what is waited for is short.
const TRIES: u32 = if cfg!(any(loom, shuttle)) { 1 } else { 64 };

/// No VMA of a file is changing, until this is dropped.
#[derive(Debug)]
#[must_use = "VMAs may change again when this is dropped"]
pub struct Settled<'s, P: Platform> {
    list: &'s ShareList,
    platform: &'s P,
    begun: bool,
}

impl<P: Platform> Settled<'_, P> {
    /// Visits every VMA that shows pages of the file from `first` up to and without `end`, once, with the addresses that show them. A visitor that answers with an
    /// address stops the walk; the next call goes on there. VMAs that are new meanwhile may be missed, and may have no pages that matter.
    ///
    /// # Locking
    /// The list is locked while a VMA is visited, and not between two calls.
    ///
    /// # Linux
    /// `unmap_mapping_range_tree` in `mm/memory.c`.
    #[doc(alias = "unmap_mapping_range_tree")]
    pub fn walk(
        &mut self,
        nodes: &dyn RmapNodes,
        first: PgOff,
        end: PgOff,
        mut visit: impl FnMut(&Place, VirtRange) -> Option<VirtAddr>,
    ) -> Walk {
        let mut head = self.list.head.lock();
        if !core::mem::replace(&mut self.begun, true) {
            head.next = head.list.front().map(|slot| (slot, VirtAddr::ZERO));
        }
        while let Some((slot, from)) = head.next {
            let place = nodes.place(slot);
            let shown = place.and_then(|place| Some((place, place.range_of(first, end)?)));
            let rest = shown.and_then(|(place, range)| {
                let rest = VirtRange::new(range.start().max(from), range.end())?;
                visit(&place, rest)
            });
            if let Some(rest) = rest {
                head.next = Some((slot, rest));
                return Walk::Stopped;
            }
            head.next = after(nodes, slot);
        }
        Walk::Through
    }
}

/// What comes after a VMA in a walk.
fn after(nodes: &dyn RmapNodes, slot: Slot) -> Option<(Slot, VirtAddr)> {
    Some((file_link(nodes)(slot)?.next()?, VirtAddr::ZERO))
}

impl<P: Platform> Drop for Settled<'_, P> {
    fn drop(&mut self) {
        // Release pairs with `begin_change` and `settle`.
        let before = self.list.changes.fetch_and(!(SETTLED | AWAITED), Release);
        if before & AWAITED != 0 {
            self.platform.wake_waiters();
        }
    }
}

/// The way to the link of this kind.
fn file_link<'n>(nodes: &'n dyn RmapNodes) -> impl Fn(Slot) -> Option<&'n ListLink> {
    move |slot| nodes.links(slot).map(|links| &links.file)
}

impl ShareList {
    /// A file that nobody maps.
    pub const fn new() -> Self {
        let sharers = Sharers { list: ListHead::new(), next: None };
        Self { head: TaskLock::new(sharers), changes: Word32::new(0) }
    }

    /// A VMA of the file is about to be split, merged or moved: until [`end_change`](Self::end_change) its pages may be where no VMA on the list says.
    ///
    /// # Locking
    /// Waits while the list is [settled](Self::settle). The VMAs are locked: no fault has to be waited for until the end. One change of an address space at a
    /// time: a second one begun inside would wait for ever.
    ///
    /// # Linux
    /// `vma_prepare` in `mm/vma.c` and `take_rmap_locks` in `mm/mremap.c`, which hold `i_mmap_rwsem`.
    #[doc(alias = "i_mmap_lock_write")]
    #[doc(alias = "take_rmap_locks")]
    pub fn begin_change(&self, platform: &impl Platform) {
        let more = |changes: u32| (changes & SETTLED == 0).then_some(changes + 1);
        // Acquire pairs with the release of `Settled::drop`.
        while self.changes.fetch_update(Acquire, Relaxed, more).is_err() {
            self.wait_until(platform, |changes| changes & SETTLED == 0);
        }
    }

    /// It is where its pages are.
    ///
    /// # Linux
    /// `vma_complete` in `mm/vma.c`, `drop_rmap_locks` in `mm/mremap.c`.
    #[doc(alias = "i_mmap_unlock_write")]
    #[doc(alias = "drop_rmap_locks")]
    pub fn end_change(&self, platform: &impl Platform) {
        // Release pairs with `settle`.
        let before = self.changes.fetch_sub(1, Release);
        if before & CHANGES == 1 && before & AWAITED != 0 {
            self.changes.fetch_and(!AWAITED, Relaxed);
            platform.wake_waiters();
        }
    }

    /// Waits until no VMA of the file is changing, and keeps them from it.
    ///
    /// # Locking
    /// No spin lock is held. A caller that holds an address space's lock has begun no change. Changes that have begun wait for flushes, and for CPUs
    /// that look at a VMA which is no more, and for nothing else.
    ///
    /// # Linux
    /// `i_mmap_lock_read` in `include/linux/fs.h`.
    #[doc(alias = "i_mmap_lock_read")]
    pub fn settle<'s, P: Platform>(&'s self, platform: &'s P) -> Settled<'s, P> {
        // Acquire pairs with `Settled::drop`.
        while self.changes.fetch_or(SETTLED, Acquire) & SETTLED != 0 {
            self.wait_until(platform, |changes| changes & SETTLED == 0);
        }
        // Acquire, in there, pairs with `end_change`.
        self.wait_until(platform, |changes| changes & CHANGES == 0);
        Settled { list: self, platform, begun: false }
    }

    /// Waits until the word is as `is_so` says. Whoever makes it so tells, if somebody sleeps.
    fn wait_until(&self, platform: &impl Platform, is_so: impl Fn(u32) -> bool) {
        let looks = || is_so(self.changes.load(Acquire));
        for _ in 0..TRIES {
            if looks() {
                return;
            }
            platform.relax();
        }
        platform.wait_until(&|| looks() || is_so(self.changes.fetch_or(AWAITED, Acquire)));
    }

    /// How many VMAs map the file.
    pub fn len(&self) -> u32 {
        self.head.lock().list.len()
    }

    /// Whether nobody maps the file.
    #[doc(alias = "mapping_mapped")]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a VMA, which is in its slot.
    ///
    /// # Errors
    /// `OutOfRange` if there is no such slot, `AlreadyLinked` if it is on a file's list.
    #[doc(alias = "vma_interval_tree_insert")]
    pub fn add(&self, nodes: &dyn RmapNodes, slot: Slot) -> Result<(), LinkError> {
        self.head.lock().list.push_back(slot, file_link(nodes))
    }

    /// Removes a VMA, which is in its slot still.
    ///
    /// # Errors
    /// `OutOfRange` if there is no such slot, `NotMember` if it is not on this list.
    #[doc(alias = "vma_interval_tree_remove")]
    pub fn remove(&self, nodes: &dyn RmapNodes, slot: Slot) -> Result<(), LinkError> {
        let mut head = self.head.lock();
        let next = after(nodes, slot);
        head.list.remove(slot, file_link(nodes))?;
        if head.next.is_some_and(|(at, _)| at == slot) {
            head.next = next;
        }
        Ok(())
    }

    /// Visits every VMA that shows a page of the file, with the address that shows it. The visitor answers whether it has
    /// found an entry.
    #[doc(alias = "rmap_walk_file")]
    pub fn walk_page(
        &self,
        nodes: &dyn RmapNodes,
        index: PgOff,
        mut visit: impl FnMut(&Place, VirtAddr) -> bool,
    ) -> Walked {
        self.walk_places(nodes, |place| place.addr_of(index).map_or(0, |addr| u32::from(visit(place, addr))))
    }

    fn walk_places(&self, nodes: &dyn RmapNodes, mut visit: impl FnMut(&Place) -> u32) -> Walked {
        let head = self.head.lock();
        let mut walked = Walked::default();
        for slot in head.list.iter(file_link(nodes)) {
            walked.count(nodes.place(slot).as_ref().map_or(0, &mut visit));
        }
        walked
    }

    /// Goes along the list, and asks of each VMA whether it maps this file. Answers how many there are.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(
        &self,
        nodes: &dyn RmapNodes,
        mut belongs: impl FnMut(Slot) -> bool,
    ) -> Result<u32, ListFault> {
        let head = self.head.lock();
        head.list.check(file_link(nodes))?;
        match head.list.iter(file_link(nodes)).find(|&slot| !belongs(slot)) {
            Some(stranger) => Err(ListFault::Foreign(stranger)),
            None => Ok(head.list.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rmap::RmapLinks;
    use std::vec::Vec;

    /// VMAs of four pages, each a page further into the file, at the same distance in memory.
    #[derive(Default)]
    struct Vmas([RmapLinks; 8]);

    impl RmapNodes for Vmas {
        fn links(&self, slot: Slot) -> Option<&RmapLinks> {
            self.0.get(slot.index())
        }

        fn place(&self, slot: Slot) -> Option<Place> {
            let n = u64::from(slot.get());
            let start = VirtAddr::from(0x10000 * (n + 1));
            Some(Place { mm: slot, start, pages: 4, pgoff: PgOff::new(n)? })
        }
    }

    fn pgoff(n: u64) -> PgOff {
        PgOff::new(n).unwrap()
    }

    #[test]
    fn a_walk_visits_those_that_show_the_page() {
        let (vmas, list) = (Vmas::default(), ShareList::new());
        let slots: Vec<Slot> = (0..6).map(|n| Slot::new(n).unwrap()).collect();
        for &slot in &slots {
            list.add(&vmas, slot).unwrap();
        }
        assert_eq!(list.add(&vmas, slots[2]), Err(LinkError::AlreadyLinked));
        assert_eq!(list.check(&vmas, |_| true), Ok(6));
        assert_eq!(list.check(&vmas, |slot| slot != slots[3]), Err(ListFault::Foreign(slots[3])));
        let mut seen = Vec::new();
        let walked = list.walk_page(&vmas, pgoff(1), |place, addr| {
            seen.push((place.mm.get(), addr.get()));
            place.mm != slots[0]
        });
        assert_eq!(seen, [(0, 0x11000), (1, 0x20000)]);
        assert_eq!(walked, Walked { vmas_visited: 6, entries: 1 });
        list.remove(&vmas, slots[0]).unwrap();
        assert_eq!(list.remove(&vmas, slots[0]), Err(LinkError::NotMember));
        let mut seen = Vec::new();
        let platform = crate::platform::hosted::Machine::pc(1 << 20).build().unwrap();
        let mut settled = list.settle(&platform);
        let walk = settled.walk(&vmas, pgoff(4), pgoff(6), |place, range| {
            seen.push((place.mm.get(), range.start().get(), range.end().get()));
            None
        });
        assert_eq!(
            seen,
            [
                (1, 0x23000, 0x24000),
                (2, 0x32000, 0x34000),
                (3, 0x41000, 0x43000),
                (4, 0x50000, 0x52000),
                (5, 0x60000, 0x61000)
            ]
        );
        assert_eq!(walk, Walk::Through);
        drop(settled);
        slots[1..].iter().for_each(|&slot| list.remove(&vmas, slot).unwrap());
        assert!(list.is_empty() && vmas.0.iter().all(|links| !links.is_on_file()));
    }

    #[test]
    fn a_walk_that_stops_goes_on_there_and_visits_nothing_twice() {
        let (vmas, list) = (Vmas::default(), ShareList::new());
        let slots: Vec<Slot> = (0..6).map(|n| Slot::new(n).unwrap()).collect();
        slots[..5].iter().for_each(|&slot| list.add(&vmas, slot).unwrap());
        let platform = crate::platform::hosted::Machine::pc(1 << 20).build().unwrap();
        let mut settled = list.settle(&platform);
        let mut seen = Vec::new();
        let mut walk = |pages: usize| {
            let mut room = pages;
            settled.walk(&vmas, PgOff::ZERO, PgOff::MAX, |place, range| {
                for addr in (range.start().get()..range.end().get()).step_by(0x1000) {
                    if room == 0 {
                        return Some(VirtAddr::from(addr));
                    }
                    room -= 1;
                    seen.push((place.mm.get(), addr & 0xffff));
                }
                None
            })
        };
        // All of the first and half of the second, which goes then, so that the third is next.
        assert_eq!(walk(6), Walk::Stopped);
        list.remove(&vmas, slots[1]).unwrap();
        assert_eq!(walk(3), Walk::Stopped);
        // One that was visited goes, one that is still to come, and a new one comes.
        list.remove(&vmas, slots[0]).unwrap();
        list.remove(&vmas, slots[3]).unwrap();
        list.add(&vmas, slots[5]).unwrap();
        assert_eq!(walk(100), Walk::Through);
        let whole = |vma| [0, 0x1000, 0x2000, 0x3000].map(|addr| (vma, addr));
        let expected = [&whole(0)[..], &whole(1)[..2], &whole(2), &whole(4), &whole(5)].concat();
        assert_eq!(seen, expected);
        drop(settled);
        // The next walk begins at the front.
        let mut first = None;
        let _ = list.settle(&platform).walk(&vmas, PgOff::ZERO, PgOff::MAX, |place, range| {
            first = Some(place.mm);
            Some(range.start())
        });
        assert_eq!(first, Some(slots[2]));
    }
}
