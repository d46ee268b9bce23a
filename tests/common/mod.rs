//! What the tests of the frame allocator share: a platform without hardware, memory for the metadata, memory maps.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]
#![allow(clippy::allow_attributes, reason = "expect would fail in the binary that uses all of it")]

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use kernmm::addr::{PageOrder, Pfn};
use kernmm::phys::{Config, Phys, Plan};
use kernmm::platform::{CpuId, CpuPin, Kick, MemoryKind, MemoryRange, Platform};

/// A machine whose frames nobody touches, with all CPUs driven from one thread in turn: whoever runs, the others are halted.
pub struct Bare;

// SAFETY: no frame is mapped; the CPUs take turns on one thread, so a CPU that is asked for its lists runs nothing.
unsafe impl Platform for Bare {
    fn direct_map(&self, _: Pfn) -> Option<NonNull<u8>> {
        None
    }

    fn kick(&self, _: CpuId) -> Kick {
        Kick::Halted
    }
}

/// The pin of a CPU of [`Bare`]. Tests hold one for each CPU and use them in turn.
pub fn pin(cpu: u32) -> CpuPin<'static> {
    // SAFETY: each test drives its machine from one thread and makes one pin a CPU.
    unsafe { CpuPin::new(&Bare, CpuId(cpu)) }
}

/// Memory for metadata that is never given back.
pub fn leaked(layout: std::alloc::Layout) -> &'static mut [MaybeUninit<u8>] {
    #[derive(Clone, Copy)]
    #[repr(align(64))]
    struct Line([MaybeUninit<u8>; 64]);
    assert!(layout.align() <= 64);
    let lines = vec![Line([MaybeUninit::uninit(); 64]); layout.size().div_ceil(64)].leak();
    let bytes = size_of_val(lines);
    // SAFETY: the leaked lines are that many bytes, of which nothing is asked.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), bytes) }
}

pub fn boot(ranges: &[MemoryRange], config: &Config<'_>) -> Phys<'static> {
    let plan = Plan::new(ranges.iter().copied(), config).expect("a good map");
    let memory = leaked(plan.metadata_layout());
    Phys::init(&pin(0), ranges.iter().copied(), config, memory).expect("a good map")
}

pub fn order(order: u8) -> PageOrder {
    PageOrder::new(order).expect("at most 9")
}

pub fn pfn(raw: u64) -> Pfn {
    Pfn::new(raw).expect("below 2^40")
}

pub fn line(kind: MemoryKind, base: u64, len: u64) -> MemoryRange {
    MemoryRange { base, len, kind }
}

pub fn usable(base: u64, len: u64) -> MemoryRange {
    line(MemoryKind::Usable, base, len)
}

/// Usable frames, by their numbers.
pub fn frames(first: u64, count: u64) -> MemoryRange {
    usable(first << 12, count << 12)
}

/// The map of a PC with so much RAM: the hole below 1 MiB, ACPI tables at the end, devices below 4 GiB.
pub fn pc(bytes: u64) -> Vec<MemoryRange> {
    vec![
        usable(0, 0x9_fc00),
        line(MemoryKind::Reserved, 0x9_fc00, 0x400),
        line(MemoryKind::Reserved, 0xf_0000, 0x1_0000),
        usable(0x10_0000, bytes - 0x10_0000 - 0x2_0000),
        line(MemoryKind::AcpiReclaimable, bytes - 0x2_0000, 0x2_0000),
        line(MemoryKind::Reserved, 0xfffc_0000, 0x4_0000),
    ]
}

/// Whether the long suite is asked for.
pub fn long() -> bool {
    std::env::var_os("KERNMM_LONG").is_some_and(|value| value != "0")
}

/// SplitMix64.
pub struct Random(Cell<u64>);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    pub fn next(&self) -> u64 {
        self.0.set(self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let mixed = (self.0.get() ^ self.0.get() >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`.
    pub fn below(&self, limit: u64) -> u64 {
        self.next() % limit
    }
}
