//! Ranges of page tables: mapped, protected, asked and unmapped by us and by two crates.

use crate::machine::Mem;
use kernmm::addr::{PAGE_SIZE, PAGE_SIZE_U64, Pfn, VirtAddr, VirtRange};
use kernmm::flags::GfpFlags;
use kernmm::memory::Vm;
use kernmm::platform::CpuSet;
use kernmm::table::{Change, Found, PageTable, PteBits, TlbGather, X86_64};

use page_table_entry::x86_64::X64PTE;
use page_table_multiarch::{MappingFlags, PageSize, PageTable64, PagingHandler, PagingMetaData};
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageTable as PeerTable, PageTableFlags, PhysFrame,
    Size4KiB,
};

/// What is done to a range, in this order.
pub const STEPS: [&str; 4] = ["map", "protect", "query", "unmap"];
/// Where ranges begin.
const START: u64 = 0x10_0000_0000;
/// The first frame that is mapped: none of the tables.
const FIRST: u64 = 1 << 20;

/// The ns a page of each step.
pub type Times = [f64; STEPS.len()];

fn timed<T>(pages: u64, work: impl FnOnce() -> T) -> f64 {
    crate::clock::timed(work).1 / pages as f64
}

/// What hardware has noted in the entries that are mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// That they were used and written, as of memory in use: it has nothing to note any more, so they are changed by plain stores.
    All,
    /// Nothing: it may do so at any moment, so they are changed by atomic exchanges.
    Nothing,
}

pub fn ours(vm: &'static Vm<'static, Mem, X86_64>, pages: u64, noted: Noted) -> Times {
    let source = vm.source();
    let table = PageTable::<_, X86_64>::create(source, None).expect("a root");
    let range = VirtRange::with_len(VirtAddr::from(START), pages * PAGE_SIZE_U64).expect("a range");
    let first = Pfn::new(FIRST).expect("a frame");
    let mut bits = PteBits::READ | PteBits::WRITE | PteBits::USER | PteBits::SPECIAL;
    bits.set(PteBits::ACCESSED | PteBits::DIRTY, noted == Noted::All);
    let read_only = Change { clear: PteBits::WRITE, ..Change::default() };
    let cpus = CpuSet::new();
    let gather = || TlbGather::new(source, table.pgd(), &cpus);
    let map = timed(pages, || table.map_range(range, first, bits, GfpFlags::KERNEL).expect("empty"));
    let protect = timed(pages, || {
        let mut gather = gather();
        table.protect_range(range, &mut gather, read_only);
        gather.finish();
    });
    let mut sum = 0;
    let query = timed(pages, || {
        let frame = |found: Found| found.pte.mapped().map_or(0, |entry| entry.pfn.get());
        table.visit_runs(range, |run| sum += run.iter().map(frame).sum::<u64>());
    });
    assert_eq!(sum, sum_of(pages));
    let unmap = timed(pages, || {
        let mut gather = gather();
        table.unmap_range(range, &mut gather, |_, _| {});
        gather.finish();
    });
    let mut gather = gather();
    table.destroy(&mut gather);
    gather.finish();
    [map, protect, query, unmap]
}

fn sum_of(pages: u64) -> u64 {
    (FIRST..FIRST + pages).sum()
}

/// Frames for the peers' tables: pages of the heap, at their own addresses, kept for the next round.
struct Heap;

static FREE: std::sync::Mutex<Vec<usize>> = std::sync::Mutex::new(Vec::new());

fn take_frame() -> usize {
    let kept = FREE.lock().expect("one thread").pop();
    let at = kept.unwrap_or_else(|| {
        let page = Box::leak(Box::new([Aligned([0; PAGE_SIZE])]));
        (&raw mut page[0]).expose_provenance()
    });
    // SAFETY: the page is nobody's, and was made above.
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(at).write_bytes(0, PAGE_SIZE) };
    at
}

#[repr(align(4096))]
struct Aligned(#[expect(dead_code, reason = "only its address is used")] [u8; PAGE_SIZE]);

impl PagingHandler for Heap {
    fn alloc_frames(_num: usize, _align: usize) -> Option<memory_addr::PhysAddr> {
        Some(take_frame().into())
    }

    fn dealloc_frames(at: memory_addr::PhysAddr, _num: usize) {
        FREE.lock().expect("one thread").push(at.into());
    }

    fn phys_to_virt(at: memory_addr::PhysAddr) -> memory_addr::VirtAddr {
        usize::from(at).into()
    }
}

/// x86-64 without a TLB to flush.
struct NoTlb;

impl PagingMetaData for NoTlb {
    const LEVELS: usize = 4;
    const PA_MAX_BITS: usize = 52;
    const VA_MAX_BITS: usize = 48;
    type VirtAddr = memory_addr::VirtAddr;

    fn flush_tlb(_: Option<memory_addr::VirtAddr>) {}
}

pub fn multiarch(pages: u64) -> Times {
    let mut table = PageTable64::<NoTlb, X64PTE, Heap>::try_new().expect("a root");
    let (start, bytes) = (memory_addr::VirtAddr::from(START as usize), pages as usize * PAGE_SIZE);
    let flags = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::USER;
    let target = |at: memory_addr::VirtAddr| {
        memory_addr::PhysAddr::from(usize::from(at) - START as usize + FIRST as usize * PAGE_SIZE)
    };
    let map = timed(pages, || table.cursor().map_region(start, target, bytes, flags, false).expect("empty"));
    let read_only = MappingFlags::READ | MappingFlags::USER;
    let protect = timed(pages, || table.cursor().protect_region(start, bytes, read_only).expect("mapped"));
    let mut sum = 0;
    let query = timed(pages, || {
        for page in 0..pages as usize {
            let (at, _, size) = table.query(start + page * PAGE_SIZE).expect("mapped");
            assert!(size == PageSize::Size4K);
            sum += (usize::from(at) / PAGE_SIZE) as u64;
        }
    });
    assert_eq!(sum, sum_of(pages));
    let unmap = timed(pages, || table.cursor().unmap_region(start, bytes).expect("mapped"));
    [map, protect, query, unmap]
}

/// What it takes to load and store as many words as there are entries, as relaxed atomics, eight a step, and nothing else: no walk, no table to be made,
/// no lock, no look at what an entry says.
pub fn floor(pages: u64) -> Times {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    let entries: Vec<AtomicU64> = (0..pages).map(|_| AtomicU64::new(0)).collect();
    let (entries, rest) = std::hint::black_box(&entries[..]).as_chunks::<8>();
    assert!(rest.is_empty(), "whole steps");
    let map = timed(pages, || {
        let mut raw = (FIRST * PAGE_SIZE_U64) | 0x67;
        for step in entries {
            for entry in step {
                entry.store(raw, Relaxed);
                raw += PAGE_SIZE_U64;
            }
        }
    });
    let protect = timed(pages, || {
        for step in entries {
            step.iter().for_each(|entry| entry.store(entry.load(Relaxed) ^ 2, Relaxed));
        }
    });
    let mut sum = 0;
    let query = timed(pages, || {
        for step in entries {
            sum += step.iter().map(|entry| entry.load(Relaxed) / PAGE_SIZE_U64).sum::<u64>();
        }
    });
    assert_eq!(sum, sum_of(pages));
    let unmap = timed(pages, || {
        for step in entries {
            sum += step.iter().map(|entry| entry.load(Relaxed) & 1).sum::<u64>();
            step.iter().for_each(|entry| entry.store(0, Relaxed));
        }
    });
    assert_eq!(sum, sum_of(pages) + pages);
    [map, protect, query, unmap]
}

// SAFETY: the pages are nobody else's.
unsafe impl FrameAllocator<Size4KiB> for Heap {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        Some(PhysFrame::containing_address(x86_64::PhysAddr::new(take_frame() as u64)))
    }
}

pub fn x86_64(pages: u64) -> Times {
    let root = std::ptr::with_exposed_provenance_mut::<PeerTable>(take_frame());
    // SAFETY: the page is zeroed, aligned, ours alone, and lives for the run.
    let root = unsafe { &mut *root };
    // SAFETY: tables lie at their own addresses.
    let mut table = unsafe { OffsetPageTable::new(root, x86_64::VirtAddr::zero()) };
    let page = |number: u64| {
        let at = x86_64::VirtAddr::new(START + number * PAGE_SIZE_U64);
        Page::<Size4KiB>::containing_address(at)
    };
    let frame =
        |number: u64| PhysFrame::containing_address(x86_64::PhysAddr::new((FIRST + number) * PAGE_SIZE_U64));
    let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE | PageTableFlags::USER_ACCESSIBLE;
    let map = timed(pages, || {
        for number in 0..pages {
            // SAFETY: nobody walks these tables.
            let mapped = unsafe { table.map_to(page(number), frame(number), flags, &mut Heap) };
            mapped.expect("empty").ignore();
        }
    });
    let protect = timed(pages, || {
        for number in 0..pages {
            let read_only = PageTableFlags::PRESENT | PageTableFlags::USER_ACCESSIBLE;
            // SAFETY: nobody walks these tables.
            let changed = unsafe { table.update_flags(page(number), read_only) };
            changed.expect("mapped").ignore();
        }
    });
    let mut sum = 0;
    let query = timed(pages, || {
        for number in 0..pages {
            let frame = table.translate_page(page(number)).expect("mapped");
            sum += frame.start_address().as_u64() / PAGE_SIZE_U64;
        }
    });
    assert_eq!(sum, sum_of(pages));
    let unmap = timed(pages, || {
        for number in 0..pages {
            table.unmap(page(number)).expect("mapped").1.ignore();
        }
    });
    [map, protect, query, unmap]
}
