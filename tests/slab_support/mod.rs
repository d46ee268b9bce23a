//! A machine for the tests of the slab: RAM from the operating system, CPUs that threads claim for the time of a pin.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kernmm::addr::{PAGE_SIZE, Pfn};
use kernmm::phys::{Config, NoReclaim, Phys, Plan};
use kernmm::platform::{CpuId, Kick, MemoryKind, MemoryRange, Platform};

/// The most CPUs.
pub(crate) const MAX_CPUS: usize = 8;
/// The first frame with RAM: physical memory does not begin at 0, so that numbers and indices differ.
const FIRST_PFN: u64 = 0x400;

thread_local! {
    /// The machine (by address), the CPU and how many pins deep. No destructor, so that an allocator may use it.
    static CURRENT: Cell<(usize, usize, usize)> = const { Cell::new((0, 0, 0)) };
    /// CPUs that the thread keeps halted until it takes interrupts again, as bits.
    static HALTED: Cell<u32> = const { Cell::new(0) };
    /// The CPU that the thread had last.
    static LAST: Cell<usize> = const { Cell::new(0) };
}

/// A CPU.
struct Cpu {
    is_claimed: AtomicBool,
    is_kicked: AtomicBool,
}

/// The machine.
pub(crate) struct Machine {
    ram: NonNull<u8>,
    pages: usize,
    cpus: [Cpu; MAX_CPUS],
    online: usize,
    next: AtomicUsize,
    /// What a kicked CPU does when it takes interrupts again.
    handler: OnceLock<&'static (dyn Fn() + Sync)>,
}

// SAFETY: the RAM is the machine's own; who touches which part of it is the allocator's affair.
unsafe impl Sync for Machine {}
// SAFETY: as above.
unsafe impl Send for Machine {}

impl Machine {
    /// A machine with so much RAM, aligned to the largest block, that is never given back to the system.
    pub(crate) fn new(pages: usize, online: usize) -> Self {
        let layout = Layout::from_size_align(pages * PAGE_SIZE, 2 << 20).unwrap();
        // SAFETY: the layout has a size.
        let ram = NonNull::new(unsafe { System.alloc(layout) }).expect("the host has memory");
        let cpus = [const { Cpu { is_claimed: AtomicBool::new(false), is_kicked: AtomicBool::new(false) } };
            MAX_CPUS];
        Self { ram, pages, cpus, online, next: AtomicUsize::new(0), handler: OnceLock::new() }
    }

    /// What a kicked CPU does.
    pub(crate) fn on_kick(&self, handler: &'static (dyn Fn() + Sync)) {
        assert!(self.handler.set(handler).is_ok());
    }

    /// Boots the frames of the machine, whose metadata come from the system.
    pub(crate) fn boot(&self, config: &Config<'_>) -> Phys<'static> {
        let cpus = [0; MAX_CPUS];
        let config = Config { cpus: &cpus[..self.online], ..*config };
        let base = FIRST_PFN * PAGE_SIZE as u64;
        let map = [MemoryRange { base, len: (self.pages * PAGE_SIZE) as u64, kind: MemoryKind::Usable }];
        let plan = Plan::new(map.into_iter(), &config).unwrap();
        Phys::init(&self.pin(), map.into_iter(), &config, memory(plan.metadata_layout())).unwrap()
    }

    fn try_claim(&self, cpu: usize) -> bool {
        !self.cpus[cpu].is_claimed.swap(true, Ordering::Acquire)
    }

    fn release(&self, cpu: usize) {
        self.cpus[cpu].is_claimed.store(false, Ordering::Release);
    }

    fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Runs the handler of a kick for as long as there are kicks; the CPU is claimed, and free afterwards.
    fn take_interrupts(&self, cpu: usize) {
        loop {
            while self.cpus[cpu].is_kicked.swap(false, Ordering::AcqRel) {
                CURRENT.set((self.id(), cpu, 1));
                if let Some(handler) = self.handler.get() {
                    handler();
                }
            }
            CURRENT.set((0, 0, 0));
            self.release(cpu);
            // A kick that came between the look and the release finds nobody else to serve it.
            if !self.cpus[cpu].is_kicked.load(Ordering::Acquire) || !self.try_claim(cpu) {
                return;
            }
        }
    }
}

// SAFETY: a frame's RAM is the frame's own, and consecutive for consecutive frames. A thread has a CPU to itself from
// irq_save to irq_restore. A CPU said to be halted was claimed for the thread that asked, and is released when that one takes
// interrupts again.
unsafe impl Platform for Machine {
    fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        let at = pfn.get().checked_sub(FIRST_PFN).filter(|&at| at < self.pages as u64)? as usize;
        // SAFETY: the frame is one of the RAM's.
        Some(unsafe { self.ram.add(at * PAGE_SIZE) })
    }

    fn virt_to_pfn(&self, address: NonNull<u8>) -> Option<Pfn> {
        let at = address.addr().get().checked_sub(self.ram.addr().get())? / PAGE_SIZE;
        (at < self.pages).then(|| Pfn::new(at as u64 + FIRST_PFN))?
    }

    fn irq_save(&self) -> usize {
        let (machine, cpu, depth) = CURRENT.get();
        if depth != 0 {
            assert_eq!(machine, self.id(), "one machine a thread at a time");
            CURRENT.set((machine, cpu, depth + 1));
            return depth;
        }
        let mut cpu = LAST.get() % self.online;
        while !self.try_claim(cpu) {
            cpu = self.next.fetch_add(1, Ordering::Relaxed) % self.online;
            std::thread::yield_now();
        }
        LAST.set(cpu);
        CURRENT.set((self.id(), cpu, 1));
        0
    }

    unsafe fn irq_restore(&self, depth: usize) {
        let (machine, cpu, _) = CURRENT.get();
        if depth != 0 {
            CURRENT.set((machine, cpu, depth));
            return;
        }
        let halted = HALTED.replace(0);
        for other in (0..self.online).filter(|other| halted & 1 << other != 0) {
            self.take_interrupts(other);
        }
        self.take_interrupts(cpu);
    }

    fn cpu_id(&self) -> CpuId {
        CpuId(CURRENT.get().1 as u32)
    }

    fn kick(&self, cpu: CpuId) -> Kick {
        self.cpus[cpu.index()].is_kicked.store(true, Ordering::Release);
        if !self.try_claim(cpu.index()) {
            return Kick::Sent;
        }
        HALTED.set(HALTED.get() | 1 << cpu.0);
        Kick::Halted
    }

    fn relax(&self) {
        std::thread::yield_now();
    }
}

/// Memory from the system, which is never given back.
pub(crate) fn memory(layout: Layout) -> &'static mut [MaybeUninit<u8>] {
    // SAFETY: metadata always have a size.
    let start = unsafe { System.alloc(layout) }.cast::<MaybeUninit<u8>>();
    assert!(!start.is_null(), "the host has memory");
    // SAFETY: just allocated with this size, and leaked.
    unsafe { std::slice::from_raw_parts_mut(start, layout.size()) }
}

/// Makes the thread's next pins claim this CPU, if nobody else has it.
pub(crate) fn run_on(cpu: usize) {
    LAST.set(cpu);
}

/// SplitMix64.
pub(crate) fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Frames without reclaim.
pub(crate) type Source = NoReclaim<'static, Machine>;
