//! Metadata in 2 MiB pages, as a kernel's direct map has it: with 4 KiB pages the contenders would be told apart by their TLB misses.

use std::alloc::{GlobalAlloc, Layout, System};

const HUGE: usize = 2 << 20;

/// The system's allocator; what is as large as a huge page is aligned to one, and Linux is asked for them.
pub struct HugePages;

fn widened(layout: Layout) -> Layout {
    match layout.size() >= HUGE {
        true => layout.align_to(HUGE).unwrap_or(layout),
        false => layout,
    }
}

// SAFETY: every call goes to the system's allocator, always with the same layout for the same memory.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let layout = widened(layout);
        // SAFETY: the caller promises a layout of some size, and widening keeps it.
        let memory = unsafe { System.alloc(layout) };
        if layout.size() >= HUGE && !memory.is_null() {
            advise(memory, layout.size());
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from `alloc` with this layout, so from the system with the widened one.
        unsafe { System.dealloc(memory, widened(layout)) }
    }
}

#[cfg(target_os = "linux")]
fn advise(memory: *mut u8, len: usize) {
    const MADV_HUGEPAGE: i32 = 14;
    unsafe extern "C" {
        fn madvise(start: *mut u8, len: usize, advice: i32) -> i32;
    }
    // SAFETY: the advice changes no contents; should Linux not take it, nothing is lost but time.
    unsafe { madvise(memory, len & !(HUGE - 1), MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise(_memory: *mut u8, _len: usize) {}
