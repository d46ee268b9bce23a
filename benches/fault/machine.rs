//! A machine with nothing simulated: RAM that is mapped at one offset, one CPU, nobody who flushes.

use kernmm::addr::{PAGE_SIZE, PAGE_SIZE_U64, Pfn};
use kernmm::memory::{Memory, Options, Process, SpinRwLock, Vm, VmLimits};
use kernmm::mm::Sysctl;
use kernmm::phys::{Config, Plan, ZoneLimits};
use kernmm::platform::{MemoryKind, MemoryMap, MemoryRange, Platform};
use kernmm::table::X86_64;
use std::alloc::Layout;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// RAM at an address of this process.
pub struct Flat {
    start: NonNull<u8>,
    frames: u64,
}

// SAFETY: what `start` points to is this machine's alone.
unsafe impl Sync for Flat {}

// SAFETY: every frame below `frames` lies at its place behind `start`, is never freed, and is touched by its owner alone; one thread is the CPU.
unsafe impl Platform for Flat {
    fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        let at = usize::try_from(pfn.get()).ok().filter(|_| pfn.get() < self.frames)? * PAGE_SIZE;
        // SAFETY: the frame lies in the RAM.
        Some(unsafe { self.start.add(at) })
    }

    fn virt_to_pfn(&self, address: NonNull<u8>) -> Option<Pfn> {
        let at = address.addr().get().checked_sub(self.start.addr().get())? / PAGE_SIZE;
        Pfn::new(at as u64).filter(|pfn| pfn.get() < self.frames)
    }
}

pub type Mem = Memory<'static, Flat>;
pub type Proc = Process<'static, 'static, Mem, X86_64, SpinRwLock>;

/// RAM that the host has mapped, in its largest pages, before anything is measured.
fn ram(bytes: usize) -> NonNull<u8> {
    // SAFETY: a new anonymous mapping, wherever the host likes.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes + (2 << 20),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert!(start != libc::MAP_FAILED, "the host has no {bytes} bytes");
    let aligned = start.wrapping_byte_add((2 << 20) - 1).map_addr(|at| at & !((2 << 20) - 1));
    // SAFETY: the range lies in the mapping, and the advice changes no bytes.
    unsafe { libc::madvise(aligned, bytes, libc::MADV_HUGEPAGE) };
    // SAFETY: as before. A child that measures Linux has no use for it, and fork not the time.
    unsafe { libc::madvise(aligned, bytes, libc::MADV_DONTFORK) };
    // SAFETY: it is ours alone, and writable.
    unsafe { aligned.cast::<u8>().write_bytes(1, bytes) };
    NonNull::new(aligned.cast()).expect("not at 0")
}

/// Memory for what is known of the RAM, in the host's largest pages too, as a kernel has it in its direct map.
fn metadata(layout: Layout) -> &'static mut [MaybeUninit<u8>] {
    let start = ram(layout.size());
    assert!(layout.align() <= 2 << 20, "a plain layout");
    // SAFETY: the mapping is ours alone, for the rest of the run, and has been written.
    unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast(), layout.size()) }
}

/// Virtual memory of a machine with so many frames, for the rest of the run.
pub fn boot(frames: u64) -> &'static Vm<'static, Mem, X86_64> {
    let flat: &'static Flat = Box::leak(Box::new(Flat { start: ram(frames as usize * PAGE_SIZE), frames }));
    let ram = [MemoryRange { base: 0, len: frames * PAGE_SIZE_U64, kind: MemoryKind::Usable }];
    let zones = ZoneLimits { dma_end: Pfn::ZERO, ..ZoneLimits::default() };
    let config = Config { zones, ..Config::default() };
    let plan = Plan::new(ram.iter().copied(), &config).expect("a plain memory map");
    let room = metadata(Mem::metadata_layout(&plan, &config));
    // SAFETY: the map is the platform's, and it is booted from once.
    let map = unsafe { MemoryMap::new(flat, ram.iter().copied()) };
    let memory = Memory::boot(map, &config, Options::default(), room).expect("what the plan asked for");
    let memory: &'static Mem = Box::leak(Box::new(memory));
    let limits = VmLimits { vmas: 1 << 17, ..VmLimits::for_frames(frames) };
    let sysctl = Sysctl { max_map_count: 1 << 17, ..Sysctl::default() };
    let room = metadata(Vm::<Mem, X86_64>::metadata_layout(memory.phys(), &limits));
    let vm = Vm::new(memory, &limits, sysctl, room).expect("what the layout asked for");
    Box::leak(Box::new(vm))
}
