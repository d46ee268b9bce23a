//! The floors: what a buddy and per-CPU lists cost when nothing at all is checked.

use crate::frames::{CPUS, FRAMES, Frames, MAX_ORDER};
use spin::mutex::SpinMutex;

const ORDERS: u32 = MAX_ORDER + 1;

/// The links of a free block, or the head of an order's circular list.
#[derive(Clone, Copy)]
struct Link {
    next: u32,
    /// The previous block, and above [`STATE_SHIFT`] the order plus one: 0 where no free block starts.
    prev: u32,
}

const STATE_SHIFT: u32 = 28;
const INDEX: u32 = (1 << STATE_SHIFT) - 1;

/// A bare buddy: links in a side array, no check of what the caller says.
struct Buddy {
    /// Bit k: the list of order k has a block.
    nonempty: u32,
    /// One element a frame, then one head an order.
    links: Box<[Link]>,
}

impl Buddy {
    fn new() -> Self {
        let head = |order| Link { next: FRAMES as u32 + order, prev: FRAMES as u32 + order };
        let frames = (0..FRAMES).map(|_| Link { next: 0, prev: 0 });
        let mut buddy = Self { nonempty: 0, links: frames.chain((0..ORDERS).map(head)).collect() };
        for block in (0..FRAMES as u32).step_by(1 << MAX_ORDER).rev() {
            buddy.push(block, MAX_ORDER);
        }
        buddy
    }

    #[inline(always)]
    fn link(&mut self, index: u32) -> &mut Link {
        debug_assert!((index as usize) < self.links.len());
        // SAFETY: callers pass a frame or a head; both are elements of `links`.
        unsafe { self.links.get_unchecked_mut(index as usize) }
    }

    #[inline(always)]
    fn push(&mut self, block: u32, order: u32) {
        let head = FRAMES as u32 + order;
        let state = (order + 1) << STATE_SHIFT;
        let first = self.link(head).next;
        *self.link(block) = Link { next: first, prev: head | state };
        self.link(first).prev = block | state;
        self.link(head).next = block;
        self.nonempty |= 1 << order;
    }

    /// All blocks of a list are of one order, so a neighbour's link passes on with its state.
    #[inline(always)]
    fn unlink(&mut self, block: u32, order: u32) {
        let Link { next, prev } = *self.link(block);
        self.link(prev & INDEX).next = next;
        self.link(next).prev = prev;
        self.link(block).prev = 0;
        if next == prev & INDEX && next >= FRAMES as u32 {
            self.nonempty &= !(1 << order);
        }
    }

    #[inline(always)]
    fn take(&mut self, order: u32) -> Option<u32> {
        let fitting = self.nonempty >> order;
        if fitting == 0 {
            return None;
        }
        let mut larger = order + fitting.trailing_zeros();
        let block = self.link(FRAMES as u32 + larger).next;
        self.unlink(block, larger);
        while larger > order {
            larger -= 1;
            self.push(block + (1 << larger), larger);
        }
        Some(block)
    }

    #[inline(always)]
    fn give(&mut self, mut block: u32, mut order: u32) {
        while order < MAX_ORDER {
            let buddy = block ^ (1 << order);
            if self.link(buddy).prev >> STATE_SHIFT != order + 1 {
                break;
            }
            self.unlink(buddy, order);
            block &= !(1 << order);
            order += 1;
        }
        self.push(block, order);
    }

    fn metadata_bytes(&self) -> u64 {
        size_of_val(&*self.links) as u64
    }
}

/// The buddy under a spin lock.
pub struct LockedBuddy(SpinMutex<Buddy>);

impl Frames for LockedBuddy {
    type Cpu<'a> = ();
    const NAME: &'static str = "floor: locked side-array buddy";

    fn new() -> Self {
        Self(SpinMutex::new(Buddy::new()))
    }

    fn cpu(&self, _id: usize) {}

    #[inline(never)]
    fn alloc(&self, (): &mut (), order: u32) -> Option<u64> {
        self.0.lock().take(order).map(u64::from)
    }

    #[inline(never)]
    fn free(&self, (): &mut (), pfn: u64, order: u32) {
        self.0.lock().give(pfn as u32, order);
    }

    fn metadata_bytes(&self) -> Option<u64> {
        Some(self.0.lock().metadata_bytes())
    }
}

/// Orders that the per-CPU lists hold.
const LISTED: usize = 4;
/// Blocks that a list takes from the buddy or gives to it at once.
const BATCH: usize = 63;
/// Blocks that a list holds at most.
const HIGH: usize = 4 * BATCH;

struct List {
    len: usize,
    blocks: [u32; HIGH],
}

/// A CPU's lists, one an order.
pub struct Lists<'a> {
    buddy: &'a SpinMutex<Buddy>,
    lists: Box<[List; LISTED]>,
}

impl<'a> Lists<'a> {
    fn new(buddy: &'a SpinMutex<Buddy>) -> Self {
        Self { buddy, lists: Box::new([const { List { len: 0, blocks: [0; HIGH] } }; LISTED]) }
    }

    #[inline(always)]
    fn take(&mut self, order: u32) -> Option<u64> {
        let Some(list) = self.lists.get_mut(order as usize) else {
            return self.buddy.lock().take(order).map(u64::from);
        };
        if list.len == 0 {
            refill(self.buddy, list, order);
        }
        let last = list.len.checked_sub(1)?;
        list.len = last;
        debug_assert!(last < HIGH);
        // SAFETY: `len` was at most HIGH and is one less now.
        let block = unsafe { *list.blocks.get_unchecked(last) };
        Some(u64::from(block))
    }

    #[inline(always)]
    fn give(&mut self, pfn: u64, order: u32) {
        let Some(list) = self.lists.get_mut(order as usize) else {
            return self.buddy.lock().give(pfn as u32, order);
        };
        if list.len == HIGH {
            spill(self.buddy, list, order, HIGH - BATCH);
        }
        debug_assert!(list.len < HIGH);
        // SAFETY: `len` is below HIGH: where it was not, `spill` has lowered it.
        let slot = unsafe { list.blocks.get_unchecked_mut(list.len) };
        *slot = pfn as u32;
        list.len += 1;
    }
}

impl Drop for Lists<'_> {
    fn drop(&mut self) {
        for (order, list) in (0..).zip(self.lists.iter_mut()) {
            spill(self.buddy, list, order, 0);
        }
    }
}

#[cold]
#[inline(never)]
fn refill(buddy: &SpinMutex<Buddy>, list: &mut List, order: u32) {
    let mut buddy = buddy.lock();
    while list.len < BATCH {
        let Some(block) = buddy.take(order) else { break };
        list.blocks[list.len] = block;
        list.len += 1;
    }
}

#[cold]
#[inline(never)]
fn spill(buddy: &SpinMutex<Buddy>, list: &mut List, order: u32, keep: usize) {
    let mut buddy = buddy.lock();
    while list.len > keep {
        list.len -= 1;
        buddy.give(list.blocks[list.len], order);
    }
}

/// Array-backed per-CPU lists over the locked buddy, called out of line.
pub struct ListFloor(SpinMutex<Buddy>);

impl Frames for ListFloor {
    type Cpu<'a> = Lists<'a>;
    const NAME: &'static str = "floor: per-CPU arrays";

    fn new() -> Self {
        Self(SpinMutex::new(Buddy::new()))
    }

    fn cpu(&self, _id: usize) -> Lists<'_> {
        Lists::new(&self.0)
    }

    #[inline(never)]
    fn alloc(&self, cpu: &mut Lists<'_>, order: u32) -> Option<u64> {
        cpu.take(order)
    }

    #[inline(never)]
    fn free(&self, cpu: &mut Lists<'_>, pfn: u64, order: u32) {
        cpu.give(pfn, order);
    }

    fn metadata_bytes(&self) -> Option<u64> {
        Some(self.0.lock().metadata_bytes() + (CPUS * size_of::<[List; LISTED]>()) as u64)
    }
}

/// The same lists, inlined into the workload.
pub struct InlineListFloor(SpinMutex<Buddy>);

impl Frames for InlineListFloor {
    type Cpu<'a> = Lists<'a>;
    const NAME: &'static str = "floor: per-CPU arrays, inlined";

    fn new() -> Self {
        Self(SpinMutex::new(Buddy::new()))
    }

    fn cpu(&self, _id: usize) -> Lists<'_> {
        Lists::new(&self.0)
    }

    #[inline(always)]
    fn alloc(&self, cpu: &mut Lists<'_>, order: u32) -> Option<u64> {
        cpu.take(order)
    }

    #[inline(always)]
    fn free(&self, cpu: &mut Lists<'_>, pfn: u64, order: u32) {
        cpu.give(pfn, order);
    }

    fn metadata_bytes(&self) -> Option<u64> {
        Some(self.0.lock().metadata_bytes() + (CPUS * size_of::<[List; LISTED]>()) as u64)
    }
}
