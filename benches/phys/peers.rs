//! The peers from crates.io, each as its documentation sets it up.

use crate::frames::{CPUS, FRAMES, Frames, MAX_ORDER};
use bitmap_allocator::{BitAlloc, BitAlloc1M};
use buddy_slab_allocator::BuddyAllocator;
use buddy_system_allocator::FrameAllocator;
use frame_alloc::{
    CpuId, DepotAllocator, PageSize, PhysicalAllocator, Provenance, RegionInit, SummaryBuddyAllocator,
};
use spin::mutex::SpinMutex;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::num::NonZeroUsize;
use std::ptr::{NonNull, with_exposed_provenance_mut};

const PAGE_SIZE: usize = 4096;
const ORDERS: usize = MAX_ORDER as usize + 1;
const LARGEST_BYTES: usize = PAGE_SIZE << MAX_ORDER;

/// Address space that stands in for RAM, for peers that keep metadata inside it; only what they touch gets backed.
struct Ram {
    start: NonNull<u8>,
    layout: Layout,
}

impl Ram {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, LARGEST_BYTES).expect("a power of two");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: `alloc` returned `start` for this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

// SAFETY: `Ram` only names the memory; who reaches into it is the peer's business.
unsafe impl Send for Ram {}
// SAFETY: as for `Send`.
unsafe impl Sync for Ram {}

/// buddy_system_allocator: a set of block numbers an order, under a lock.
pub struct BuddySystem(SpinMutex<FrameAllocator<ORDERS>>);

impl Frames for BuddySystem {
    type Cpu<'a> = ();
    const NAME: &'static str = "buddy_system_allocator 0.13";

    fn new() -> Self {
        let mut frames = FrameAllocator::new();
        frames.add_frame(0, FRAMES as usize);
        Self(SpinMutex::new(frames))
    }

    fn cpu(&self, _id: usize) {}

    #[inline(never)]
    fn alloc(&self, (): &mut (), order: u32) -> Option<u64> {
        self.0.lock().alloc(1 << order).map(|pfn| pfn as u64)
    }

    #[inline(never)]
    fn free(&self, (): &mut (), pfn: u64, order: u32) {
        self.0.lock().dealloc(pfn as usize, 1 << order);
    }

    fn metadata_bytes(&self) -> Option<u64> {
        None
    }
}

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
}

/// Reads the id that `cpu` gave this thread, as a kernel reads its per-CPU register.
struct ThreadCpu;

impl CpuId for ThreadCpu {
    #[inline(always)]
    fn current_cpu() -> usize {
        CPU.get()
    }
}

struct Direct;

// SAFETY: addresses are those of `Ram`, whose provenance `new` exposes, so both ways are the identity.
unsafe impl Provenance for Direct {
    unsafe fn create(phys: usize) -> NonNull<u8> {
        NonNull::new(with_exposed_provenance_mut(phys)).expect("RAM is not at address 0")
    }

    unsafe fn destroy<T>(ptr: NonNull<T>) -> usize {
        ptr.addr().get()
    }
}

const BASE: PageSize = PageSize::from_log2(12);

/// frame-alloc: its lock-free summary buddy behind its own magazines and depot, in the sizes it defaults to.
pub struct FrameDepot {
    depot: Box<DepotAllocator<SummaryBuddyAllocator<ORDERS, Direct>, ThreadCpu, CPUS>>,
    start: usize,
    _ram: Ram,
}

impl Frames for FrameDepot {
    type Cpu<'a> = ();
    const NAME: &'static str = "frame-alloc 0.1 + depot";

    fn new() -> Self {
        let ram = Ram::new(FRAMES as usize * PAGE_SIZE);
        let depot = Box::new(DepotAllocator::new(BASE, SummaryBuddyAllocator::new(BASE)));
        let start = ram.start.as_ptr().expose_provenance();
        // SAFETY: the span is `ram`, aligned to the largest block, not yet shared and initialised once.
        unsafe { depot.init_region(start, FRAMES as usize * PAGE_SIZE) };
        Self { depot, start, _ram: ram }
    }

    fn cpu(&self, id: usize) {
        CPU.set(id);
    }

    #[inline(never)]
    fn alloc(&self, (): &mut (), order: u32) -> Option<u64> {
        let count = NonZeroUsize::new(1 << order)?;
        let address = self.depot.allocate_physical(BASE, count).ok()?;
        Some(((address - self.start) / PAGE_SIZE) as u64)
    }

    #[inline(never)]
    fn free(&self, (): &mut (), pfn: u64, order: u32) {
        let Some(count) = NonZeroUsize::new(1 << order) else { return };
        let address = self.start + pfn as usize * PAGE_SIZE;
        // SAFETY: the workloads free what they allocated, once, with the order it had.
        unsafe { self.depot.deallocate_physical(BASE, count, address) };
    }

    fn metadata_bytes(&self) -> Option<u64> {
        None
    }
}

/// bitmap-allocator: a tree of 16-bit words, under a lock.
pub struct Bitmap(SpinMutex<Box<BitAlloc1M>>);

impl Frames for Bitmap {
    type Cpu<'a> = ();
    const NAME: &'static str = "bitmap-allocator 0.4";
    const SLOWNESS: u64 = 20;

    fn new() -> Self {
        let layout = Layout::new::<BitAlloc1M>();
        // SAFETY: the tree is not a zero-sized type.
        let tree = unsafe { alloc_zeroed(layout) };
        let Some(tree) = NonNull::new(tree) else { handle_alloc_error(layout) };
        // SAFETY: allocated for this type, and all zero is its empty state (128 KiB too many for a stack).
        let mut tree = unsafe { Box::from_raw(tree.cast::<BitAlloc1M>().as_ptr()) };
        tree.insert(0..FRAMES as usize);
        Self(SpinMutex::new(tree))
    }

    fn cpu(&self, _id: usize) {}

    #[inline(never)]
    fn alloc(&self, (): &mut (), order: u32) -> Option<u64> {
        let mut tree = self.0.lock();
        let first =
            if order == 0 { tree.alloc() } else { tree.alloc_contiguous(None, 1 << order, order as usize) };
        first.map(|pfn| pfn as u64)
    }

    #[inline(never)]
    fn free(&self, (): &mut (), pfn: u64, order: u32) {
        let mut tree = self.0.lock();
        if order == 0 {
            tree.dealloc(pfn as usize);
        } else {
            tree.dealloc_contiguous(pfn as usize, 1 << order);
        }
    }

    fn metadata_bytes(&self) -> Option<u64> {
        Some(size_of::<BitAlloc1M>() as u64)
    }
}

/// buddy-slab-allocator: its page allocator, a buddy with metadata in front of the heap, under a lock. Its largest order is fixed at
/// 20, so a pair in free memory splits and merges twenty times.
pub struct BuddySlab {
    pages: SpinMutex<BuddyAllocator<PAGE_SIZE>>,
    start: usize,
    _ram: Ram,
}

impl BuddySlab {
    /// Metadata in front, rounded up so that the heap starts aligned to the largest block.
    const FRONT: usize =
        BuddyAllocator::<PAGE_SIZE>::required_meta_size(FRAMES as usize * PAGE_SIZE) + LARGEST_BYTES;
}

impl Frames for BuddySlab {
    type Cpu<'a> = ();
    const NAME: &'static str = "buddy-slab-allocator 0.6";

    fn new() -> Self {
        let heap_bytes = FRAMES as usize * PAGE_SIZE;
        let meta_bytes = BuddyAllocator::<PAGE_SIZE>::required_meta_size(heap_bytes);
        let ram = Ram::new(Self::FRONT.next_multiple_of(LARGEST_BYTES) + heap_bytes);
        let unused = ram.layout.size() - heap_bytes - meta_bytes - PAGE_SIZE;
        // SAFETY: `unused` is less than the size of `ram`.
        let region = unsafe { ram.start.add(unused) };
        // SAFETY: the rest of `ram`, which nothing else refers to.
        let region = unsafe { NonNull::slice_from_raw_parts(region, ram.layout.size() - unused).as_mut() };
        let mut pages = BuddyAllocator::new();
        // SAFETY: `ram` lives as long as the allocator.
        unsafe { pages.init(region) }.expect("a region with room for its metadata");
        let section = pages.section(0).expect("the section just added");
        assert_eq!(section.total_pages, FRAMES as usize);
        Self { start: section.start, pages: SpinMutex::new(pages), _ram: ram }
    }

    fn cpu(&self, _id: usize) {}

    #[inline(never)]
    fn alloc(&self, (): &mut (), order: u32) -> Option<u64> {
        let address = self.pages.lock().alloc_pages(1 << order, PAGE_SIZE << order).ok()?;
        Some(((address - self.start) / PAGE_SIZE) as u64)
    }

    #[inline(never)]
    fn free(&self, (): &mut (), pfn: u64, order: u32) {
        self.pages.lock().dealloc_pages(self.start + pfn as usize * PAGE_SIZE, 1 << order);
    }

    fn metadata_bytes(&self) -> Option<u64> {
        Some(BuddyAllocator::<PAGE_SIZE>::required_meta_size(FRAMES as usize * PAGE_SIZE) as u64)
    }
}
