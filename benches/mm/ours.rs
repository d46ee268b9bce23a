//! Our store: the list, the tree and the gap index that an address space is made of.

use crate::stores::Vmas;
use kernmm::addr::{VirtAddr, VirtRange};
use kernmm::collections::{
    HasListLink, IndexList, IndexTree, ListId, ListLink, Search, Slot, Slots, TreeLink, TreeOrder,
};
use kernmm::mm::gap::{BUILD_AT, Fit, GapIndex, GapNode, GapNodes};
use kernmm::tree_link;
use std::cell::RefCell;
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

struct Vma {
    start: AtomicU64,
    end: AtomicU64,
    rb: TreeLink,
    list: ListLink,
    list_id: AtomicU32,
}

/// Marks the links of the VMA list and tree.
struct Mm;

tree_link!(Vma, Mm => rb);

impl TreeOrder<Vma> for Mm {
    type Key = u64;

    fn key(vma: &Vma) -> u64 {
        vma.start.load(Relaxed)
    }
}

impl HasListLink<Mm> for Vma {
    fn list_link(&self) -> &ListLink {
        &self.list
    }

    fn list_id(&self) -> Option<ListId> {
        ListId::new(self.list_id.load(Relaxed))
    }

    fn set_list_id(&self, id: Option<ListId>) {
        self.list_id.store(id.map_or(0, ListId::get), Relaxed);
    }
}

/// Nodes of the gap index.
struct Pool {
    nodes: Box<[GapNode]>,
    free: RefCell<Vec<Slot>>,
}

impl Slots for &'static Pool {
    type Item = GapNode;

    #[inline]
    fn get(&self, slot: Slot) -> Option<&GapNode> {
        self.nodes.get(slot.index())
    }
}

impl GapNodes for &'static Pool {
    fn take(&self) -> Option<Slot> {
        self.free.borrow_mut().pop()
    }

    fn give(&self, node: Slot) {
        self.free.borrow_mut().push(node);
    }
}

fn slots(count: usize) -> Vec<Slot> {
    (0..count).rev().filter_map(Slot::from_index).collect()
}

fn range(range: Range<u64>) -> VirtRange {
    let addr = |raw| VirtAddr::new(raw).expect("any number is an address");
    VirtRange::new(addr(range.start), addr(range.end)).expect("the range ascends")
}

/// Equal if the VMA holds the address, so that a look-up can stop early.
#[inline]
fn compare(vma: &Vma, addr: u64) -> Ordering {
    let (start, end) = (vma.start.load(Relaxed), vma.end.load(Relaxed));
    if addr.wrapping_sub(start) < end - start { Ordering::Equal } else { start.cmp(&addr) }
}

/// List, tree and gap index, which is built when room is looked for; without the cache.
pub struct Uncached {
    vmas: &'static [Vma],
    free: Vec<Slot>,
    list: IndexList<&'static [Vma], Mm>,
    tree: IndexTree<&'static [Vma], Mm>,
    gaps: GapIndex<&'static Pool>,
}

impl Uncached {
    #[inline]
    fn holds(&self, slot: Slot, addr: u64) -> Option<u64> {
        let vma = &self.vmas[slot.index()];
        let start = vma.start.load(Relaxed);
        (start <= addr && addr < vma.end.load(Relaxed)).then_some(start)
    }

    #[inline]
    fn search(&self, addr: u64) -> Search {
        self.tree.search(|vma| compare(vma, addr))
    }

    /// Puts a VMA on the list and the tree.
    fn link(&mut self, vma: &Range<u64>) {
        let slot = self.free.pop().expect("a free slot");
        self.vmas[slot.index()].start.store(vma.start, Relaxed);
        self.vmas[slot.index()].end.store(vma.end, Relaxed);
        let place = self.tree.entry(|other| compare(other, vma.start));
        let Search::Missing { before, .. } = place.found() else { unreachable!("no overlap") };
        place.insert(slot).expect("a fresh slot");
        match before {
            Some(before) => self.list.insert_after(before, slot),
            None => self.list.push_front(slot),
        }
        .expect("a fresh slot");
    }

    fn range_of(&self, slot: Slot) -> VirtRange {
        let vma = &self.vmas[slot.index()];
        range(vma.start.load(Relaxed)..vma.end.load(Relaxed))
    }
}

impl Vmas for Uncached {
    const NAME: &'static str = "kernmm";
    const ROOM_FROM_BELOW: bool = false;

    fn new(vmas: &[Range<u64>], space: Range<u64>) -> Self {
        let spare = vmas.len() + 16_384;
        let store: &'static [Vma] = Vec::leak(
            (0..spare)
                .map(|_| Vma {
                    start: AtomicU64::new(0),
                    end: AtomicU64::new(0),
                    rb: TreeLink::new(),
                    list: ListLink::new(),
                    list_id: AtomicU32::new(0),
                })
                .collect(),
        );
        let nodes = vmas.len() / 4 + 2_000;
        let pool = Pool { nodes: (0..nodes).map(|_| GapNode::new()).collect(), free: slots(nodes).into() };
        let mut ours = Self {
            vmas: store,
            free: slots(spare),
            list: IndexList::new(store, ListId::new(1).expect("not 0")),
            tree: IndexTree::new(store),
            gaps: GapIndex::new(Box::leak(Box::new(pool)), range(space)),
        };
        vmas.iter().for_each(|vma| ours.link(vma));
        ours
    }

    #[inline]
    fn find(&mut self, addr: u64) -> Option<u64> {
        self.holds(self.search(addr).found()?, addr)
    }

    fn remove(&mut self, vma: Range<u64>) {
        let place = self.tree.entry(|other| compare(other, vma.start));
        let slot = place.remove().expect("a VMA of the store");
        self.list.remove(slot).expect("on the list");
        self.free.push(slot);
        self.gaps.reserve(1).expect("enough nodes");
        self.gaps.open(range(vma));
    }

    fn insert(&mut self, vma: Range<u64>) {
        self.link(&vma);
        self.gaps.reserve(1).expect("enough nodes");
        self.gaps.close(range(vma));
    }

    #[inline]
    fn room(&mut self, bytes: u64, space: Range<u64>) -> Option<u64> {
        if !self.gaps.is_built() && self.list.len() >= BUILD_AT {
            let vmas = self.list.iter().map(|slot| self.range_of(slot)).collect::<Vec<_>>();
            self.gaps.build(vmas.into_iter()).expect("enough nodes");
        }
        let fit = Fit::new(bytes, range(space))?;
        let vmas = self.list.iter().rev().map(|slot| self.range_of(slot));
        self.gaps.highest_fit(fit, vmas, |found| found.highest()).map(VirtAddr::get)
    }
}

/// The same with a cache of four VMAs, placed by address as Linux's `vmacache` (v6.0) does, and emptied by any change.
pub struct Cached {
    store: Uncached,
    recent: [Option<Slot>; RECENT],
}

const RECENT: usize = 4;

/// Where a VMA that holds `addr` is cached: one 2 MiB range beside the next.
const fn place(addr: u64) -> usize {
    (addr >> 21) as usize % RECENT
}

impl Vmas for Cached {
    const NAME: &'static str = "kernmm+cache";
    const ROOM_FROM_BELOW: bool = Uncached::ROOM_FROM_BELOW;

    fn new(vmas: &[Range<u64>], space: Range<u64>) -> Self {
        Self { store: Uncached::new(vmas, space), recent: [None; RECENT] }
    }

    #[inline]
    fn find(&mut self, addr: u64) -> Option<u64> {
        let first = place(addr);
        let mut cached = (0..RECENT).filter_map(|next| self.recent[(first + next) % RECENT]);
        if let Some(start) = cached.find_map(|slot| self.store.holds(slot, addr)) {
            return Some(start);
        }
        let found = self.store.search(addr).found()?;
        self.recent[first] = Some(found);
        self.store.holds(found, addr)
    }

    fn remove(&mut self, vma: Range<u64>) {
        self.recent = [None; RECENT];
        self.store.remove(vma);
    }

    fn insert(&mut self, vma: Range<u64>) {
        self.recent = [None; RECENT];
        self.store.insert(vma);
    }

    fn room(&mut self, bytes: u64, space: Range<u64>) -> Option<u64> {
        self.store.room(bytes, space)
    }
}
