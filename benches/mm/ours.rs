//! Our stores: a whole address space, and the gap index alone.

use crate::stores::Vmas;
use kernmm::addr::{VirtAddr, VirtRange};
use kernmm::collections::{Slot, Slots};
use kernmm::flags::{MapFlags, Prot};
use kernmm::mm::gap::{Fit, GapIndex, GapNode, GapNodes};
use kernmm::mm::{
    FileKind, FileRef, GapRoom, Mm, MmContext, MmSlot, MmStores, NullTables, Overcommit, OvercommitMode,
    Sysctl, VmaNode, VmaSlot,
};
use kernmm::rmap::AnonNode;
use kernmm::syscall::{self, MapFile, MmapArgs, OpenMode};
use std::cell::RefCell;
use std::ops::Range;

/// Slots beyond those of the layout.
const SPARE: usize = 16_384;

fn leaked<T>(count: usize, new: impl Fn() -> T) -> &'static [T] {
    Vec::leak((0..count).map(|_| new()).collect())
}

/// A context for so many VMAs that stays for ever.
pub fn context(vmas: usize) -> &'static MmContext<'static> {
    let stores = MmStores {
        mms: leaked(4, MmSlot::new),
        vma_nodes: leaked(vmas + SPARE, VmaNode::new),
        vmas: leaked(vmas + SPARE, VmaSlot::new),
        anon_vmas: leaked(16, AnonNode::new),
        gaps: leaked(vmas / 4 + 2_000, GapRoom::new),
    };
    let sysctl = Sysctl { max_map_count: u32::MAX - 1, mmap_min_addr: 4096, ..Sysctl::default() };
    Box::leak(Box::new(MmContext::new(stores, sysctl, Overcommit::new(OvercommitMode::Always, 1 << 20, 0))))
}

/// An address space: every change is a whole system call, with its checks, sums, limits and merging.
pub struct Space {
    mm: Mm<'static>,
    tables: NullTables,
    /// Each mapping is of a file opened anew: neighbours do not merge, as those of the other stores do not.
    opened: u32,
}

impl Space {
    fn mmap(&mut self, addr: u64, len: u64, flags: MapFlags) -> Option<u64> {
        self.opened += 1;
        let file = FileRef::new(1, self.opened, FileKind::Memory)
            .map(|file| MapFile::new(file, OpenMode::ReadWrite));
        let flags = flags | MapFlags::SHARED;
        let args = MmapArgs { addr, len, prot: Prot::READ | Prot::WRITE, flags, file: Ok(file), offset: 0 };
        let mapped = syscall::mmap(&mut self.mm, &mut self.tables, &args).ok()?;
        self.mm.end_section();
        Some(mapped.get())
    }
}

impl Vmas for Space {
    const NAME: &'static str = "kernmm";
    const ROOM_FROM_BELOW: bool = false;
    const HAS_ROOM: bool = false;

    fn new(vmas: &[Range<u64>], space: Range<u64>) -> Self {
        let mut mm = Mm::new(context(vmas.len())).expect("an address space is free");
        mm.set_mmap_base(VirtAddr::from(space.end));
        let mut ours = Self { mm, tables: NullTables::default(), opened: 0 };
        vmas.iter().for_each(|vma| ours.insert(vma.clone()));
        ours
    }

    #[inline]
    fn find(&mut self, addr: u64) -> Option<u64> {
        let addr = VirtAddr::from(addr);
        let start = self.mm.vma_node(self.mm.find_vma(addr)?).start();
        (start <= addr).then_some(start.get())
    }

    fn remove(&mut self, vma: Range<u64>) {
        syscall::munmap(&mut self.mm, &mut self.tables, vma.start, vma.end - vma.start)
            .expect("a VMA of the store");
        self.mm.end_section();
    }

    fn insert(&mut self, vma: Range<u64>) {
        self.mmap(vma.start, vma.end - vma.start, MapFlags::FIXED).expect("room for it");
    }

    /// Found and mapped by one call.
    fn insert_anywhere(&mut self, bytes: u64, _: Range<u64>) -> Option<u64> {
        self.mmap(0, bytes, MapFlags::empty())
    }
}

/// Nodes of the gap index.
struct Pool {
    nodes: &'static [GapNode],
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

/// The index by which an address space looks for room, alone.
pub struct Gaps(GapIndex<&'static Pool>);

impl Vmas for Gaps {
    const NAME: &'static str = "its gap index";
    const ROOM_FROM_BELOW: bool = false;
    const HAS_VMAS: bool = false;

    fn new(vmas: &[Range<u64>], space: Range<u64>) -> Self {
        let count = vmas.len() / 4 + 2_000;
        let free = (0..count).rev().filter_map(Slot::from_index).collect::<Vec<_>>().into();
        let pool = Pool { nodes: leaked(count, GapNode::new), free };
        let mut index = GapIndex::new(&*Box::leak(Box::new(pool)), range(space));
        let mut sorted: Vec<_> = vmas.iter().cloned().map(range).collect();
        sorted.sort_by_key(|vma| vma.start());
        index.build(sorted.into_iter()).expect("enough nodes");
        Self(index)
    }

    fn find(&mut self, _: u64) -> Option<u64> {
        None
    }

    fn remove(&mut self, vma: Range<u64>) {
        self.0.reserve(1).expect("enough nodes");
        self.0.open(range(vma));
    }

    fn insert(&mut self, vma: Range<u64>) {
        self.0.reserve(1).expect("enough nodes");
        self.0.close(range(vma));
    }

    #[inline]
    fn room(&mut self, bytes: u64, space: Range<u64>) -> Option<u64> {
        let fit = Fit::new(bytes, range(space))?;
        self.0.highest_fit(fit, core::iter::empty(), |found| found.highest()).map(VirtAddr::get)
    }
}

fn range(range: Range<u64>) -> VirtRange {
    let addr = |raw| VirtAddr::new(raw).expect("any number is an address");
    VirtRange::new(addr(range.start), addr(range.end)).expect("the range ascends")
}
