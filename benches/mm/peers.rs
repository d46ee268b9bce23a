//! The peers: memory_set of ArceOS, the standard BTreeMap and rangemap.

use crate::stores::Vmas;
use memory_addr::{AddrRange, VirtAddr};
use memory_set::{MappingBackend, MemoryArea};
use std::collections::BTreeMap;
use std::ops::Range;

/// A backend that maps nothing.
#[derive(Clone)]
pub struct Nothing;

impl MappingBackend for Nothing {
    type Addr = VirtAddr;
    type Flags = u8;
    type PageTable = ();

    fn map(&self, _: VirtAddr, _: usize, _: u8, _: &mut ()) -> bool {
        true
    }

    fn unmap(&self, _: VirtAddr, _: usize, _: &mut ()) -> bool {
        true
    }

    fn protect(&self, _: VirtAddr, _: usize, _: u8, _: &mut ()) -> bool {
        true
    }
}

/// memory_set 0.4.
pub struct MemorySet(memory_set::MemorySet<Nothing>);

impl Vmas for MemorySet {
    const NAME: &'static str = "memory_set";
    const ROOM_FROM_BELOW: bool = true;
    const REPLACE_AT_MOST: usize = 100_000;

    fn new(vmas: &[Range<u64>], _: Range<u64>, _: usize) -> Self {
        let mut set = Self(memory_set::MemorySet::new());
        vmas.iter().for_each(|vma| set.insert(vma.clone()));
        set
    }

    #[inline]
    fn find(&mut self, addr: u64) -> Option<u64> {
        self.0.find(VirtAddr::from(addr as usize)).map(|area| area.start().as_usize() as u64)
    }

    fn remove(&mut self, vma: Range<u64>) {
        let start = VirtAddr::from(vma.start as usize);
        self.0.unmap(start, (vma.end - vma.start) as usize, &mut ()).expect("unmap");
    }

    fn insert(&mut self, vma: Range<u64>) {
        let start = VirtAddr::from(vma.start as usize);
        let area = MemoryArea::new(start, (vma.end - vma.start) as usize, 0, Nothing);
        self.0.map(area, &mut (), false).expect("map");
    }

    fn room(&mut self, bytes: u64, space: Range<u64>) -> Option<u64> {
        let addr = |raw: u64| VirtAddr::from(raw as usize);
        let limit = AddrRange::new(addr(space.start), addr(space.end));
        let found = self.0.find_free_area(addr(space.start), bytes as usize, limit, 4096);
        found.map(|addr| addr.as_usize() as u64)
    }
}

/// The standard map from a VMA's start to its end, with a walk for room.
pub struct BTree(BTreeMap<u64, u64>);

impl Vmas for BTree {
    const NAME: &'static str = "BTreeMap";
    const ROOM_FROM_BELOW: bool = false;

    fn new(vmas: &[Range<u64>], _: Range<u64>, _: usize) -> Self {
        Self(vmas.iter().map(|vma| (vma.start, vma.end)).collect())
    }

    #[inline]
    fn find(&mut self, addr: u64) -> Option<u64> {
        self.0.range(..=addr).next_back().filter(|&(_, &end)| addr < end).map(|(&start, _)| start)
    }

    fn remove(&mut self, vma: Range<u64>) {
        self.0.remove(&vma.start).expect("a VMA of the store");
    }

    fn insert(&mut self, vma: Range<u64>) {
        self.0.insert(vma.start, vma.end);
    }

    fn room(&mut self, bytes: u64, space: Range<u64>) -> Option<u64> {
        let mut top = space.end;
        for (&start, &end) in self.0.range(..space.end).rev() {
            if end.max(space.start) + bytes <= top {
                return Some(top - bytes);
            }
            top = start.min(top);
            if top <= space.start {
                return None;
            }
        }
        (space.start + bytes <= top).then(|| top - bytes)
    }
}

/// rangemap 1.
pub struct RangeMap {
    map: rangemap::RangeMap<u64, u64>,
}

impl Vmas for RangeMap {
    const NAME: &'static str = "rangemap";
    const ROOM_FROM_BELOW: bool = true;

    fn new(vmas: &[Range<u64>], _: Range<u64>, _: usize) -> Self {
        Self { map: vmas.iter().map(|vma| (vma.clone(), vma.start)).collect() }
    }

    #[inline]
    fn find(&mut self, addr: u64) -> Option<u64> {
        self.map.get(&addr).copied()
    }

    fn remove(&mut self, vma: Range<u64>) {
        self.map.remove(vma);
    }

    fn insert(&mut self, vma: Range<u64>) {
        self.map.insert(vma.clone(), vma.start);
    }

    fn room(&mut self, bytes: u64, space: Range<u64>) -> Option<u64> {
        self.map.gaps(&space).find(|gap| gap.end - gap.start >= bytes).map(|gap| gap.start)
    }
}
