//! The façade on the simulated machine: reclaim and retry, zeroing, poison, reports, CPUs that leave.

#[path = "memory/cpus.rs"]
mod cpus;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use kernmm::addr::{PAGE_SIZE, PageOrder, Pfn, PhysAddr};
use kernmm::error::Errno;
use kernmm::flags::{GfpFlags, PageFlags};
use kernmm::memory::{BootError, MAX_SHRINKERS, Memory, Options, Poison, ShrinkRequest, Shrinker};
use kernmm::phys::{AllocError, Config, FailRule, FreeError, KmapError, PageSource, WatermarkConfig};
use kernmm::platform::hosted::Machine;
use kernmm::platform::{CpuId, Platform};

const MIB: u64 = 1 << 20;
const ONE: PageOrder = PageOrder::ZERO;

fn order(order: u8) -> PageOrder {
    PageOrder::new(order).unwrap()
}

/// No reserves, so that every frame can be counted.
fn to_the_last(machine: &Machine) -> Config<'_> {
    Config { watermarks: WatermarkConfig::NONE, ..Config::from(machine) }
}

/// Allocates single frames until there are no more.
fn exhaust(memory: &Memory<'_, Machine>) -> Vec<Pfn> {
    let gfp = GfpFlags::KERNEL | GfpFlags::NOWARN;
    std::iter::from_fn(|| memory.alloc_pages(gfp, ONE).ok()).collect()
}

/// A cache that can do without its frames.
struct Cache<'a> {
    memory: Mutex<Option<&'a Memory<'a, Machine>>>,
    frames: Mutex<Vec<Pfn>>,
    asked: AtomicU64,
    /// The most frames that it gives back at once.
    step: usize,
}

impl<'a> Cache<'a> {
    fn new(step: usize) -> Self {
        Self { memory: Mutex::default(), frames: Mutex::default(), asked: AtomicU64::new(0), step }
    }

    fn fill(&self, memory: &'a Memory<'a, Machine>, frames: impl IntoIterator<Item = Pfn>) {
        *self.memory.lock().unwrap() = Some(memory);
        self.frames.lock().unwrap().extend(frames);
    }
}

impl Shrinker for Cache<'_> {
    fn shrink(&self, request: &ShrinkRequest) -> u64 {
        self.asked.fetch_add(1, SeqCst);
        assert!(request.pages >= request.order.pages());
        let Some(memory) = *self.memory.lock().unwrap() else { return 0 };
        let mut frames = self.frames.lock().unwrap();
        let keep = frames.len().saturating_sub(self.step.min(request.pages as usize));
        let given = frames.split_off(keep);
        given.iter().for_each(|&pfn| memory.free_pages(pfn, ONE).unwrap());
        given.len() as u64
    }
}

#[test]
fn a_request_that_fails_reclaims_and_is_tried_again() {
    let machine = Machine::pc(8 * MIB).build().unwrap();
    let cache = Cache::new(usize::MAX);
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on_with(&machine, &to_the_last(&machine), Options::default()).unwrap();
    memory.register_shrinker(&cache).unwrap();
    let frames = exhaust(&memory);
    assert_eq!(frames.len() as u64, memory.phys().managed_pages());
    let asked = cache.asked.load(SeqCst);
    assert_eq!(asked, 1, "the request that ended the loop, once: there was no progress");
    cache.fill(&memory, frames);
    let gfp = GfpFlags::KERNEL;
    for may_not in [GfpFlags::ATOMIC, GfpFlags::NOWAIT, gfp | GfpFlags::MEMALLOC] {
        assert_eq!(memory.alloc_pages(may_not, ONE), Err(AllocError::OutOfMemory));
    }
    assert_eq!(cache.asked.load(SeqCst), asked, "they may not reclaim");
    memory.alloc_pages(gfp, ONE).unwrap();
    assert_eq!(cache.asked.load(SeqCst), asked + 1);
    assert_eq!(cache.frames.lock().unwrap().len() as u64, memory.phys().managed_pages() - 32);
    let vmstat = memory.vmstat().to_string();
    assert!(vmstat.contains("\nallocstall_normal 2\n"), "{vmstat}");
}

#[test]
fn reclaim_goes_on_as_long_as_there_is_progress() {
    let machine = Machine::pc(8 * MIB).build().unwrap();
    let cache = Cache::new(1);
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on_with(&machine, &to_the_last(&machine), Options::default()).unwrap();
    let mut frames = exhaust(&memory);
    frames.sort();
    memory.register_shrinker(&cache).unwrap();
    cache.fill(&memory, frames.split_off(frames.len() - 64));
    let quiet = GfpFlags::KERNEL | GfpFlags::NOWARN;
    assert_eq!(memory.alloc_pages(quiet | GfpFlags::NORETRY, order(3)), Err(AllocError::OutOfMemory));
    assert_eq!(cache.asked.load(SeqCst), 1, "one round");
    memory.alloc_pages(quiet, order(3)).unwrap();
    assert_eq!(cache.asked.load(SeqCst), 8, "eight frames, one at a time");
    assert_eq!(memory.alloc_pages(quiet, order(5)), Err(AllocError::OutOfMemory));
    assert_eq!(cache.asked.load(SeqCst), 8 + 17, "a costly order is given up after 16 retries");
}

#[test]
fn nofail_waits_until_somebody_frees() {
    let machine = Machine::pc(8 * MIB).cpus(2).build().unwrap();
    let started = AtomicBool::new(false);
    let boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on_with(&machine, &to_the_last(&machine), Options::default()).unwrap();
    let frames = exhaust(&memory);
    drop(boot);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let _second = machine.cpu(CpuId(1)).unwrap();
            started.store(true, SeqCst);
            memory.alloc_pages(GfpFlags::KERNEL | GfpFlags::NOFAIL, ONE)
        });
        let _boot = machine.cpu(CpuId::BOOT).unwrap();
        while !started.load(SeqCst) {
            memory.serve();
            thread::yield_now();
        }
        for _ in 0..50 {
            memory.serve();
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!waiting.is_finished());
        memory.free_pages(frames[7], ONE).unwrap();
        memory.idle();
        assert_eq!(waiting.join().unwrap(), Ok(frames[7]));
    });
    assert_eq!(machine.take_reports(), "", "it did not fail");
}

#[test]
fn nofail_uses_the_reserves() {
    let machine = Machine::pc(8 * MIB).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    exhaust(&memory);
    assert!(memory.phys().free_pages_total() > 0, "watermarks hold");
    assert!(memory.alloc_pages(GfpFlags::KERNEL | GfpFlags::NOFAIL, ONE).is_ok());
}

#[test]
fn an_injected_failure_is_answered_at_once() {
    let machine = Machine::pc(8 * MIB).build().unwrap();
    let cache = Cache::new(1);
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    memory.register_shrinker(&cache).unwrap();
    memory.phys().set_fail_rule(&memory.pin(), FailRule::Every(1));
    assert_eq!(memory.alloc_pages(GfpFlags::KERNEL, ONE), Err(AllocError::Injected));
    assert!(memory.alloc_pages(GfpFlags::KERNEL | GfpFlags::NOFAIL, ONE).is_ok());
    assert_eq!(cache.asked.load(SeqCst), 0);
}

#[test]
fn zero_means_zero_in_every_zone() {
    let machine = Machine::pc(64 * MIB).highmem_from(PhysAddr::new(48 * MIB).unwrap()).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    for gfp in [GfpFlags::DMA | GfpFlags::KERNEL, GfpFlags::KERNEL, GfpFlags::HIGHUSER_MOVABLE] {
        for order in [order(0), order(3)] {
            let first = memory.alloc_pages(gfp, order).unwrap();
            let frames = || (0..order.pages()).map(|at| first.checked_add(at).unwrap());
            frames().for_each(|pfn| memory.write_frame(pfn, 0, &[0x5a; PAGE_SIZE]).unwrap());
            memory.free_pages(first, order).unwrap();
            let again = memory.alloc_pages(gfp | GfpFlags::ZERO, order).unwrap();
            assert_eq!(again, first, "the block just freed comes first");
            let mut bytes = [0xff; PAGE_SIZE];
            frames().for_each(|pfn| {
                memory.read_frame(pfn, 0, &mut bytes).unwrap();
                assert_eq!(bytes, [0; PAGE_SIZE], "{gfp:?} {pfn:?}");
            });
        }
    }
    let mut blocks = [Pfn::ZERO; 5];
    assert_eq!(memory.alloc_pages_bulk(GfpFlags::KERNEL | GfpFlags::ZERO, ONE, &mut blocks), Ok(5));
    memory.free_pages_bulk(&blocks, ONE).unwrap();
    assert_eq!(memory.free_pages_bulk(&blocks, ONE).map_err(|(at, _)| at), Err(0));
    let range = memory.alloc_pages_exact(GfpFlags::KERNEL | GfpFlags::ZERO, 5).unwrap();
    assert_eq!(range.len(), 5);
    memory.free_pages_exact(range).unwrap();
    assert!(memory.free_pages_exact(range).is_err());
}

#[test]
fn only_allocated_data_frames_can_be_reached() {
    let machine = Machine::pc(8 * MIB).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let block = memory.alloc_pages(GfpFlags::KERNEL, order(2)).unwrap();
    let last = block.checked_add(3).unwrap();
    assert_eq!(memory.zero_frame(last), Ok(()), "inside a block too");
    let object = memory.slabs().unwrap().kmalloc(&memory, 3 * PAGE_SIZE, GfpFlags::KERNEL).unwrap();
    let of_slab = PageSource::virt_to_pfn(&memory, object).unwrap();
    assert_eq!(memory.zero_frame(of_slab), Err(KmapError::NotData));
    let page = PageSource::page(&memory, of_slab).unwrap();
    page.clear_flags(PageFlags::SLAB);
    assert!(!page.set_mapping(0) && !page.set_index(0));
    assert_eq!(memory.write_frame(of_slab, 0, &[1]), Err(KmapError::NotData), "whatever its flags are told");
    assert_eq!(memory.free_pages(of_slab, order(2)), Err(FreeError::Busy));
    // SAFETY: nobody uses the object.
    unsafe { memory.slabs().unwrap().kfree(&memory, object) }.unwrap();
    memory.free_pages(block, order(2)).unwrap();
    assert_eq!(memory.zero_frame(last), Err(KmapError::Free));
    assert_eq!(memory.zero_frame(Pfn::MAX), Err(KmapError::Foreign));
    let bios = PhysAddr::new(0x9_f000).unwrap().pfn();
    assert_eq!(memory.zero_frame(bios), Err(KmapError::Foreign), "reserved");
}

#[test]
fn a_write_to_a_free_frame_is_found_when_it_is_allocated() {
    let machine = Machine::pc(20 * MIB).highmem_from(PhysAddr::new(18 * MIB).unwrap()).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let options = Options::default().poison(Poison::On);
    let memory = Memory::on_with(&machine, &Config::from(&machine), options).unwrap();
    let block = memory.alloc_pages(GfpFlags::KERNEL, order(1)).unwrap();
    assert_eq!(memory.poison_hits(), (0, None), "poisoned since boot");
    let address = machine.direct_map(block.checked_add(1).unwrap()).unwrap();
    memory.free_pages(block, order(1)).unwrap();
    // SAFETY: none but that the frame is RAM: this is the mistake to be found.
    unsafe { address.as_ptr().wrapping_add(1000).write(0x77) };
    // SAFETY: as before.
    unsafe { address.as_ptr().wrapping_add(2000).write(0x78) };
    assert_eq!(memory.alloc_pages(GfpFlags::KERNEL, order(1)), Ok(block));
    let (hits, last) = memory.poison_hits();
    let last = last.unwrap();
    assert_eq!((hits, last.pfn, last.offset, last.found), (1, block.checked_add(1).unwrap(), 1000, 0x77));
    let report = machine.take_reports();
    assert!(report.starts_with("pagealloc: memory corruption\n"), "{report}");
    assert!(report.contains("byte 0x3e8 is 0x77, expected 0xaa; 2 of 4096 bytes differ"), "{report}");

    memory.free_pages(block, order(1)).unwrap();
    // SAFETY: as before.
    unsafe { address.as_ptr().wrapping_add(5).write(0xab) };
    memory.alloc_pages(GfpFlags::KERNEL, order(1)).unwrap();
    assert!(machine.take_reports().starts_with("pagealloc: single bit error\n"));
}

#[test]
fn poison_stays_quiet_while_nobody_misbehaves() {
    let machine = Machine::pc(20 * MIB).highmem_from(PhysAddr::new(18 * MIB).unwrap()).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let options = Options::default().poison(Poison::On);
    let memory = Memory::on_with(&machine, &Config::from(&machine), options).unwrap();
    let mut blocks = vec![];
    let mut random = 12345_u64;
    for _ in 0..3000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (dice, order) = (random >> 40, order((random >> 60) as u8 % 4));
        let zero = if dice & 8 == 0 { GfpFlags::ZERO } else { GfpFlags::empty() };
        match memory.alloc_pages(GfpFlags::HIGHUSER | GfpFlags::NOWARN | zero, order) {
            Ok(pfn) if dice & 3 != 0 => {
                memory.write_frame(pfn, 0, &[dice as u8; 64]).unwrap();
                blocks.push((pfn, order));
            }
            Ok(pfn) => memory.free_pages(pfn, order).unwrap(),
            Err(_) => {
                for (pfn, order) in blocks.drain(..) {
                    memory.free_pages(pfn, order).unwrap();
                }
            }
        }
    }
    let frames = memory.alloc_pages_exact(GfpFlags::KERNEL, 5).unwrap();
    memory.free_pages_exact(frames).unwrap();
    assert_eq!(memory.poison_hits(), (0, None));
    assert_eq!(machine.kmap_leaks(), 0);
    memory.phys().check(&memory.pin()).unwrap();
}

#[test]
fn a_failure_is_reported_with_the_state_of_the_memory() {
    let machine = Machine::pc(8 * MIB).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on_with(&machine, &to_the_last(&machine), Options::default()).unwrap();
    let frames = exhaust(&memory);
    assert_eq!(machine.take_reports(), "", "GFP_NOWARN");
    memory.free_pages(frames[0], ONE).unwrap();
    memory.free_pages(frames[2], ONE).unwrap();
    assert!(memory.alloc_pages(GfpFlags::KERNEL | GfpFlags::COMP, order(1)).is_err());
    let managed = memory.phys().managed_pages();
    let report = machine.take_reports();
    let head = "kernmm: page allocation failure: order:1, mode:0x40cc0(GFP_KERNEL|__GFP_COMP), nodemask=(null)\n\
                Mem-Info:\n free:2 free_pcp:0\nNode 0 DMA free:8kB boost:0kB min:0kB low:0kB high:0kB ";
    assert!(report.starts_with(head), "{report}");
    assert!(report.contains("\nNode 0 DMA: 2*4kB (U) 0*8kB "), "{report}");
    assert!(report.contains(&format!(" managed:{}kB ", managed * 4)), "{report}");
    assert!(report.ends_with("\n0 pages HighMem/MovableOnly\n17 pages reserved\n"), "{report}");
}

#[test]
fn a_block_that_cannot_be_zeroed_is_given_back() {
    let machine = Machine::pc(20 * MIB).highmem_from(PhysAddr::new(18 * MIB).unwrap()).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let pfn = memory.alloc_pages(GfpFlags::HIGHUSER, ONE).unwrap();
    {
        let pin = memory.pin();
        (0..8).for_each(|_| std::mem::forget(memory.kmap(&pin, pfn).unwrap()));
    }
    assert_eq!(machine.kmap_leaks(), 8);
    let before =
        memory.phys().zones().iter().map(|zone| zone.stat(&memory.pin()).allocated_ever).sum::<u64>();
    let zeroed = GfpFlags::HIGHUSER | GfpFlags::ZERO;
    assert_eq!(memory.alloc_pages(zeroed, order(2)), Err(AllocError::Unreachable));
    assert_eq!(memory.alloc_pages_exact(zeroed, 3), Err(AllocError::Unreachable));
    let stats = || memory.phys().zones().iter().map(|zone| zone.stat(&memory.pin()));
    assert!(stats().map(|stat| stat.allocated_ever).sum::<u64>() > before);
    assert_eq!(stats().map(|stat| stat.allocated_ever - stat.freed_ever).sum::<u64>(), 1);
}

#[test]
fn reclaim_runs_with_interrupts_as_they_were() {
    struct Looks<'a>(&'a Machine, AtomicU64);
    impl Shrinker for Looks<'_> {
        fn shrink(&self, _: &ShrinkRequest) -> u64 {
            self.1.fetch_add(1, SeqCst);
            let nested = self.0.irq_save();
            // SAFETY: just saved, and no pin relies on it.
            unsafe { self.0.irq_restore(nested) };
            assert_eq!(nested, 0, "CPU 0, masked by nobody before");
            0
        }
    }
    let machine = Machine::pc(8 * MIB).build().unwrap();
    let looks = Looks(&machine, AtomicU64::new(0));
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    memory.register_shrinker(&looks).unwrap();
    exhaust(&memory);
    assert_ne!(looks.1.load(SeqCst), 0);
}

#[test]
fn shrinkers_are_asked_in_turn_until_enough_is_freed() {
    struct Gives(u64, AtomicU64);
    impl Shrinker for Gives {
        fn shrink(&self, request: &ShrinkRequest) -> u64 {
            self.1.fetch_add(request.pages, SeqCst);
            self.0
        }
    }
    let machine = Machine::pc(8 * MIB).build().unwrap();
    let shrinkers: Vec<Gives> = [10, 22, 1].iter().map(|&pages| Gives(pages, AtomicU64::new(0))).collect();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    shrinkers.iter().for_each(|shrinker| memory.register_shrinker(shrinker).unwrap());
    // A shrinker that lies does not keep a costly order trying for ever.
    exhaust_quietly(&memory);
    let before: Vec<u64> = shrinkers.iter().map(|shrinker| shrinker.1.load(SeqCst)).collect();
    assert!(memory.alloc_pages(GfpFlags::KERNEL | GfpFlags::NORETRY | GfpFlags::NOWARN, order(0)).is_err());
    let asked: Vec<u64> =
        shrinkers.iter().zip(before).map(|(gives, before)| gives.1.load(SeqCst) - before).collect();
    assert_eq!(asked, [32, 32, 0]);
    for _ in shrinkers.len()..MAX_SHRINKERS {
        memory.register_shrinker(&shrinkers[0]).unwrap();
    }
    assert!(memory.register_shrinker(&shrinkers[0]).is_err());
}

#[test]
fn slabs_give_their_empty_pages_back_when_memory_is_short() {
    let machine = Machine::pc(8 * MIB).cpus(2).build().unwrap();
    let cpus = machine.all_cpus().unwrap();
    let memory = Memory::on_with(&machine, &to_the_last(&machine), Options::default()).unwrap();
    let slabs = memory.slabs().unwrap();
    let objects: Vec<NonNull<u8>> =
        (0..2000).map(|_| slabs.kmalloc(&memory, 500, GfpFlags::KERNEL).unwrap()).collect();
    let frame = machine.virt_to_pfn(objects[0]).unwrap();
    assert_eq!(memory.write_frame(frame, 0, &[0]), Err(KmapError::NotData), "no way round kmalloc");
    let head = memory.phys().head_of(frame).unwrap();
    let order = memory.phys().page(head).unwrap().order().unwrap();
    assert_eq!(memory.free_pages(head, order), Err(FreeError::Busy));
    for (at, &object) in objects.iter().enumerate() {
        // SAFETY: nobody uses the object any more.
        cpus[at % 2].run(|| unsafe { slabs.kfree(&memory, object) }.unwrap());
    }
    let slab_pages = || slabs.infos(&memory).map(|cache| cache.num_pages).sum::<u64>();
    assert_ne!(slab_pages(), 0, "some are kept for the next");
    assert_eq!(exhaust(&memory).len() as u64, memory.phys().managed_pages());
    assert_eq!(slab_pages(), 0);
    slabs.check(&memory).unwrap();
}

#[test]
fn idle_and_serve_are_for_the_slabs_too() {
    let machine = Machine::pc(8 * MIB).cpus(2).build().unwrap();
    let boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on_with(&machine, &to_the_last(&machine), Options::default()).unwrap();
    drop(boot);
    let (ready, done) = (Barrier::new(2), AtomicBool::new(false));
    for idle in [true, false] {
        done.store(false, SeqCst);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _second = machine.cpu(CpuId(1)).unwrap();
                let slabs = memory.slabs().unwrap();
                let object = slabs.kmalloc(&memory, 64, GfpFlags::KERNEL).unwrap();
                // SAFETY: nobody uses the object any more.
                unsafe { slabs.kfree(&memory, object) }.unwrap();
                if idle {
                    memory.idle();
                }
                ready.wait();
                while !done.load(SeqCst) {
                    if !idle {
                        memory.serve();
                    }
                    thread::yield_now();
                }
            });
            let _boot = machine.cpu(CpuId::BOOT).unwrap();
            ready.wait();
            let frames = exhaust(&memory);
            done.store(true, SeqCst);
            assert_eq!(frames.len() as u64, memory.phys().managed_pages(), "idle: {idle}");
            memory.free_pages_bulk(&frames, ONE).unwrap();
        });
    }
}

fn exhaust_quietly(memory: &Memory<'_, Machine>) {
    while memory.alloc_pages(GfpFlags::NOWAIT, ONE).is_ok() {}
}

#[test]
fn a_machine_is_booted_once() {
    let machine = Machine::pc(8 * MIB).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let first = Memory::on(&machine);
    assert!(first.is_ok() && matches!(Memory::on(&machine), Err(BootError::Running)));
}

#[test]
fn metadata_may_lie_in_the_map_itself() {
    let machine = Machine::pc(24 * MIB).nodes(2).cpus(2).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let map = machine.take_map().unwrap();
    let options = Options::default().poison(Poison::On);
    let memory = Memory::boot_in_map(map, &Config::from(&machine), options).unwrap();
    let all = (24 * MIB / 4096) as f64;
    let managed = memory.phys().managed_pages() as f64;
    assert!(managed < all * 0.99 && managed > all * 0.94, "{managed} of {all}");
    let frames = exhaust(&memory);
    for &pfn in &frames {
        memory.write_frame(pfn, 0, &[0xff; PAGE_SIZE]).unwrap();
    }
    memory.phys().check(&memory.pin()).unwrap();
    assert!(memory.mem_info().to_string().contains(" pages reserved\n"));
    memory.free_pages_bulk(&frames, ONE).unwrap();
    assert_eq!(memory.free_pages(frames[0], ONE).map_err(FreeError::errno), Err(Errno::EINVAL));
    memory.phys().check(&memory.pin()).unwrap();
}
