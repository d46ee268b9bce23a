//! The heap of a kernel that uses `alloc`.

use core::alloc::{GlobalAlloc, Layout};
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use spin::Once;

use crate::addr::PageOrder;
use crate::flags::GfpFlags;
use crate::phys::{AllocError, PageSource};

use super::error::CreateError;
use super::kmalloc::Slabs;
use super::release::give_back;

/// kmalloc for `#[global_allocator]`: a static that is filled in at boot. Before that, allocation answers with null.
///
/// ```no_run
/// # use core::ptr::NonNull;
/// # use kernmm::addr::Pfn;
/// # struct Kernel;
/// # unsafe impl kernmm::platform::Platform for Kernel {
/// #     fn direct_map(&self, _: Pfn) -> Option<NonNull<u8>> { None }
/// # }
/// use kernmm::phys::NoReclaim;
/// use kernmm::slab::GlobalHeap;
///
/// #[global_allocator]
/// static HEAP: GlobalHeap<NoReclaim<'static, Kernel>> = GlobalHeap::new();
/// # fn main() {}
/// ```
///
/// At boot, once the frames are known, `HEAP.init(source)` with a [`NoReclaim`](crate::phys::NoReclaim) of them makes it work.
///
/// Over a [`Memory`](crate::memory::Memory), `GlobalHeap<Memory<'static, Kernel>>` [shares](Self::share) the façade's slab allocator, so that reclaim shrinks the heap too. With
/// `init` the heap has an allocator of its own: it is shrunk by [`Slabs::shrink`] with what [`get`](Self::get) answers, by a
/// [`Shrinker`](crate::memory::Shrinker) for one.
///
/// Requests above 2 MiB answer with null.
#[derive(Debug)]
pub struct GlobalHeap<S: 'static> {
    heap: Once<Heap<S>>,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one, in a static")]
enum Heap<S: 'static> {
    Own(Slabs<'static>, S),
    Shared(&'static Slabs<'static>, &'static S),
}

impl<S: 'static> GlobalHeap<S> {
    /// A heap that has no memory yet.
    pub const fn new() -> Self {
        Self { heap: Once::new() }
    }
}

impl<S: 'static> Default for GlobalHeap<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: PageSource> GlobalHeap<S> {
    /// Gives the heap its memory. Once it has some, later calls change nothing.
    ///
    /// # Errors
    /// [`CreateError::NoVirtToPfn`]; [`CreateError::Alloc`] if there is no block for the allocator's own data.
    ///
    /// # Safety
    /// As for [`Slabs::new`]. The frames and the platform are never given up.
    pub unsafe fn init(&self, source: S) -> Result<(), CreateError> {
        let made = self.heap.try_call_once(|| {
            let cpus = source.phys().cpu_count();
            let layout = Slabs::metadata_layout(cpus);
            let order = PageOrder::for_bytes(layout.size());
            let order = order.ok_or(CreateError::Alloc(AllocError::InvalidCount))?;
            let pfn = source.alloc_pages(GfpFlags::KERNEL, order).map_err(CreateError::Alloc)?;
            let made = source.direct_map(pfn).ok_or(CreateError::NoVirtToPfn).and_then(|start| {
                let start = start.cast::<MaybeUninit<u8>>().as_ptr();
                // SAFETY: the block was just allocated and is never freed once the allocator is made.
                let memory = unsafe { core::slice::from_raw_parts_mut(start, order.bytes()) };
                // SAFETY: the caller vouches for the source.
                unsafe { Slabs::new(&source, memory) }
            });
            if made.is_err() {
                give_back(&source, pfn, order);
            }
            Ok(Heap::Own(made?, source))
        });
        made.map(|_| ())
    }

    /// Makes the heap that of a slab allocator that is there already, with the source that it allocates from:
    /// `HEAP.share(memory.slabs()?, memory)`. Once the heap has memory, later calls change nothing.
    ///
    /// Calls with a source of other frames than the allocator's answer with null.
    pub fn share(&self, slabs: &'static Slabs<'static>, source: &'static S) {
        self.heap.call_once(|| Heap::Shared(slabs, source));
    }

    /// The allocator and its source, to shrink it or report on it; `None` before [`init`](Self::init) or [`share`](Self::share).
    #[inline]
    pub fn get(&self) -> Option<(&Slabs<'static>, &S)> {
        match self.heap.get()? {
            Heap::Own(slabs, source) => Some((slabs, source)),
            Heap::Shared(slabs, source) => Some((slabs, source)),
        }
    }
}

// SAFETY: kmalloc answers with memory of its own that holds the layout, and keeps it until it is freed.
unsafe impl<S: PageSource> GlobalAlloc for GlobalHeap<S> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((slabs, source)) = self.get() else { return core::ptr::null_mut() };
        or_null(slabs.kmalloc_aligned(source, layout.size(), layout.align(), GfpFlags::KERNEL))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some((slabs, source)) = self.get() else { return core::ptr::null_mut() };
        let gfp = GfpFlags::KERNEL | GfpFlags::ZERO;
        or_null(slabs.kmalloc_aligned(source, layout.size(), layout.align(), gfp))
    }

    #[inline]
    unsafe fn dealloc(&self, address: *mut u8, _: Layout) {
        let (Some((slabs, source)), Some(address)) = (self.get(), NonNull::new(address)) else { return };
        // SAFETY: the caller gives the memory up.
        let freed = unsafe { slabs.kfree(source, address) };
        // An address that is not ours leaves the heap as it was; there is nobody to tell.
        debug_assert_eq!(freed, Ok(()), "freed memory is the heap's own");
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (Some((slabs, source)), Some(address)) = (self.get(), NonNull::new(address)) else {
            return core::ptr::null_mut();
        };
        // SAFETY: the caller owns the memory, and uses the answer from now on.
        or_null(unsafe { slabs.krealloc(source, address, size, layout.align(), GfpFlags::KERNEL) })
    }
}

fn or_null(address: Result<NonNull<u8>, AllocError>) -> *mut u8 {
    address.map_or(core::ptr::null_mut(), NonNull::as_ptr)
}
