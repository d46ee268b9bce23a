//! Our stores: whole calls on an address space, its set of VMAs alone, and the gap index of that alone.

use crate::stores::Vmas;
use kernmm::addr::{PgOff, VirtAddr, VirtRange};
use kernmm::collections::{Slot, Slots};
use kernmm::flags::{MapFlags, Prot, VmFlags};
use kernmm::mm::gap::{Fit, GapIndex, GapNode, GapNodes};
use kernmm::mm::{
    Backing, BareSet, FileKind, FileRef, GapRoom, Mm, MmContext, MmSlot, MmStores, NullTables, Overcommit,
    OvercommitMode, Sysctl, Vma, VmaNode, VmaSlot,
};
use kernmm::rmap::AnonNode;
use kernmm::syscall::{self, MapFile, MmapArgs, OpenMode};
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::ops::Range;

const PAGE: u64 = 4096;
/// Slots beyond those that are needed at once: a call may take some before it gives others back.
const SPARE: usize = 64;

/// Memory that a store lies in and that its parts refer to. It goes with the store, so that rounds with a million VMAs fit one after another.
struct Held<T: ?Sized>(*mut T);

impl<T: ?Sized> Held<T> {
    fn new(value: Box<T>) -> Self {
        Self(Box::into_raw(value))
    }

    /// # Safety
    /// Who refers to it is dropped before it is.
    unsafe fn get(&self) -> &'static T {
        // SAFETY: it came from a box, is given back by `drop` only, and is nowhere borrowed for writing.
        unsafe { &*self.0 }
    }
}

impl<T: ?Sized> Drop for Held<T> {
    fn drop(&mut self) {
        // SAFETY: it came from a box, and by the promise of `get` nobody refers to it any more.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

fn held<T>(count: usize, new: impl Fn() -> T) -> Held<[T]> {
    Held::new((0..count).map(|_| new()).collect())
}

type Stores = (Held<[MmSlot]>, Held<[VmaNode]>, Held<[VmaSlot]>, Held<[AnonNode]>, Held<[GapRoom]>);

/// A context with its stores, in the order in which they must go.
struct Context {
    context: Held<MmContext<'static>>,
    _stores: Stores,
}

impl Context {
    fn new(vmas: usize) -> Self {
        let held = (
            held(4, MmSlot::new),
            held(vmas + SPARE, VmaNode::new),
            held(vmas + SPARE, VmaSlot::new),
            held(16, AnonNode::new),
            held(vmas / 4 + SPARE, GapRoom::new),
        );
        // SAFETY: the context, which refers to it, goes first.
        let mms = unsafe { held.0.get() };
        // SAFETY: likewise.
        let vma_nodes = unsafe { held.1.get() };
        // SAFETY: likewise.
        let vmas = unsafe { held.2.get() };
        // SAFETY: likewise.
        let anon_vmas = unsafe { held.3.get() };
        // SAFETY: likewise.
        let gaps = unsafe { held.4.get() };
        let stores = MmStores { mms, vma_nodes, vmas, anon_vmas, gaps };
        let sysctl = Sysctl { max_map_count: u32::MAX - 1, mmap_min_addr: 4096, ..Sysctl::default() };
        let overcommit = Overcommit::new(OvercommitMode::Always, 1 << 20, 0);
        Self { context: Held::new(Box::new(MmContext::new(stores, sysctl, overcommit))), _stores: held }
    }
}

/// A context for so many VMAs that stays for ever.
pub fn context(vmas: usize) -> &'static MmContext<'static> {
    let context = ManuallyDrop::new(Context::new(vmas));
    // SAFETY: it is never dropped.
    unsafe { context.context.get() }
}

/// An address space: every change is a whole system call, with its checks, sums, limits and merging.
pub struct Space {
    mm: Mm<'static>,
    tables: NullTables,
    /// What `mm` lies in, so that it goes after it.
    _context: Context,
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
    const NAME: &'static str = "kernmm calls";
    const ROOM_FROM_BELOW: bool = false;
    const HAS_ROOM: bool = false;

    fn new(vmas: &[Range<u64>], space: Range<u64>, most: usize) -> Self {
        let context = Context::new(most);
        // SAFETY: `mm`, which refers to it, goes before it.
        let mut mm = Mm::new(unsafe { context.context.get() }).expect("an address space is free");
        mm.set_mmap_base(VirtAddr::from(space.end));
        let mut ours = Self { mm, tables: NullTables::default(), _context: context, opened: 0 };
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

/// The set of VMAs that an address space consists of: what the other stores are, and no more.
pub struct Set {
    set: BareSet<'static>,
    /// What `set` lies in, so that it goes after it.
    _context: Context,
}

impl Vmas for Set {
    const NAME: &'static str = "kernmm set";
    const ROOM_FROM_BELOW: bool = false;

    fn new(vmas: &[Range<u64>], space: Range<u64>, most: usize) -> Self {
        let context = Context::new(most);
        // SAFETY: `set`, which refers to it, goes before it.
        let mut set = BareSet::new(unsafe { context.context.get() }).expect("an address space is free");
        set.set_mmap_base(VirtAddr::from(space.end));
        let mut ours = Self { set, _context: context };
        vmas.iter().for_each(|vma| ours.insert(vma.clone()));
        // Who has never been asked for room keeps no index, which all changes are to pay for.
        ours.room(PAGE, space);
        ours
    }

    #[inline]
    fn find(&mut self, addr: u64) -> Option<u64> {
        let addr = VirtAddr::from(addr);
        let vmas = self.set.vmas();
        let start = vmas.place(vmas.find(addr)?).start();
        (start <= addr).then_some(start.get())
    }

    fn remove(&mut self, vma: Range<u64>) {
        self.set.remove(VirtAddr::from(vma.start)).expect("a VMA of the store");
        self.set.end_section();
    }

    fn insert(&mut self, vma: Range<u64>) {
        let vma = Vma {
            start: VirtAddr::from(vma.start),
            end: VirtAddr::from(vma.end),
            flags: VmFlags::READ | VmFlags::WRITE,
            pgoff: PgOff::ZERO,
            backing: Backing::Anonymous,
            anon: None,
        };
        let vacant = self.set.reserve().expect("room for one more");
        self.set.insert(vacant, &vma).expect("nothing is there");
        self.set.end_section();
    }

    #[inline]
    fn room(&mut self, bytes: u64, space: Range<u64>) -> Option<u64> {
        self.set.highest_room(bytes, range(space)).map(VirtAddr::get)
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

/// The index by which an address space looks for room, alone.
pub struct Gaps {
    index: GapIndex<&'static Pool>,
    /// What `index` lies in, so that it goes after it.
    _pool: Held<Pool>,
}

impl Vmas for Gaps {
    const NAME: &'static str = "its gap index";
    const ROOM_FROM_BELOW: bool = false;
    const HAS_VMAS: bool = false;

    fn new(vmas: &[Range<u64>], space: Range<u64>, most: usize) -> Self {
        let count = most / 4 + SPARE;
        let free = (0..count).rev().filter_map(Slot::from_index).collect::<Vec<_>>().into();
        let pool = Held::new(Box::new(Pool { nodes: (0..count).map(|_| GapNode::new()).collect(), free }));
        // SAFETY: `index`, which refers to it, goes before it.
        let mut index = GapIndex::new(unsafe { pool.get() }, range(space));
        let mut sorted: Vec<_> = vmas.iter().cloned().map(range).collect();
        sorted.sort_by_key(|vma| vma.start());
        index.build(sorted.into_iter()).expect("enough nodes");
        Self { index, _pool: pool }
    }

    fn find(&mut self, _: u64) -> Option<u64> {
        None
    }

    fn remove(&mut self, vma: Range<u64>) {
        self.index.reserve(1).expect("enough nodes");
        self.index.open(range(vma));
    }

    fn insert(&mut self, vma: Range<u64>) {
        self.index.reserve(1).expect("enough nodes");
        self.index.close(range(vma));
    }

    #[inline]
    fn room(&mut self, bytes: u64, space: Range<u64>) -> Option<u64> {
        let fit = Fit::new(bytes, range(space))?;
        self.index
            .highest_fit(fit, core::iter::empty::<VirtRange>(), |found| found.highest())
            .map(VirtAddr::get)
    }
}

fn range(range: Range<u64>) -> VirtRange {
    let addr = |raw| VirtAddr::new(raw).expect("any number is an address");
    VirtRange::new(addr(range.start), addr(range.end)).expect("the range ascends")
}
