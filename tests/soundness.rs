//! What safe calls, in whatever combination, must not do: each test is a way in that was open once.

use kernmm::addr::{PageOrder, Pfn, PhysAddr};
use kernmm::flags::GfpFlags;
use kernmm::memory::{Memory, Options, Poison};
use kernmm::phys::{AllocError, Config, FreeError, KmapError, WatermarkConfig, ZoneLimits};
use kernmm::platform::hosted::{KMAP_SLOTS, Machine};
use kernmm::platform::{CpuId, Kick, Platform};
use kernmm::slab::ObjectError;

const MIB: u64 = 1 << 20;
const ONE: PageOrder = PageOrder::ZERO;

fn order(order: u8) -> PageOrder {
    PageOrder::new(order).unwrap()
}

/// 20 MiB, of which the upper two are HIGHMEM.
fn with_highmem() -> Machine {
    Machine::pc(20 * MIB).cpus(2).highmem_from(PhysAddr::new(18 * MIB).unwrap()).build().unwrap()
}

#[test]
fn another_machines_pin_is_refused_where_it_is_looked_at() {
    let (machine, other) = (with_highmem(), with_highmem());
    let (_boot, _other_boot) = (machine.cpu(CpuId::BOOT).unwrap(), other.cpu(CpuId::BOOT).unwrap());
    let memory = Memory::on(&machine).unwrap();
    let wrong = other.pin();
    // The CPU has not allocated yet, so nothing takes the fast path.
    assert_eq!(memory.phys().alloc_pages(&wrong, GfpFlags::KERNEL, ONE), Err(AllocError::WrongPlatform));
    let pfn = {
        let pin = memory.pin();
        memory.phys().alloc_pages_node(&pin, 0, GfpFlags::KERNEL, order(5)).unwrap()
    };
    memory.idle();
    let node = memory.phys().alloc_pages_node(&wrong, 0, GfpFlags::KERNEL, ONE);
    assert_eq!(node, Err(AllocError::WrongPlatform));
    assert_eq!(memory.phys().free_pages(&wrong, pfn, order(5)), Err(FreeError::WrongPlatform));
    assert_eq!(memory.kmap(&wrong, pfn).map(drop), Err(KmapError::WrongPlatform));
    memory.free_pages(pfn, order(5)).unwrap();
    memory.phys().check(&memory.pin()).unwrap();
}

#[test]
fn a_block_with_an_open_window_is_not_freed() {
    let machine = with_highmem();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    for gfp in [GfpFlags::KERNEL, GfpFlags::HIGHUSER] {
        let block = memory.alloc_pages(gfp, order(1)).unwrap();
        let pin = memory.pin();
        let first = memory.kmap(&pin, block).unwrap();
        let last = memory.kmap(&pin, block.checked_add(1).unwrap()).unwrap();
        assert_eq!(memory.phys().page(block).unwrap().count(), 3);
        drop(first);
        assert_eq!(memory.free_pages(block, order(1)), Err(FreeError::Busy));
        assert!(last.write(0, b"still here"));
        drop(last);
        assert_eq!(memory.free_pages(block, order(1)), Ok(()));
        assert_eq!(memory.kmap(&pin, block).map(drop), Err(KmapError::Free));
    }
    memory.phys().check(&memory.pin()).unwrap();
}

#[test]
fn the_length_of_a_magazine_is_not_an_owners_to_write() {
    let machine = Machine::pc(16 * MIB).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let gfp = GfpFlags::KERNEL | GfpFlags::NOWARN;
    let frames: Vec<Pfn> = std::iter::from_fn(|| memory.alloc_pages(gfp, ONE).ok()).collect();
    let pages = |write: fn(&kernmm::phys::Page) -> bool| {
        frames.iter().filter(|&&pfn| write(memory.phys().page(pfn).unwrap())).count()
    };
    assert_eq!(pages(|page| page.set_index(0) && page.set_mapping(0)), frames.len(), "while they are owned");
    memory.free_pages_bulk(&frames, ONE).unwrap();
    assert_eq!(
        pages(|page| page.set_index(0) || page.set_mapping(0)),
        0,
        "free: in magazines, the depot, lists"
    );
    let again = std::iter::from_fn(|| memory.alloc_pages(gfp, ONE).ok()).count();
    assert_eq!(again, frames.len());
    memory.phys().check(&memory.pin()).unwrap();
}

#[test]
fn who_forgets_to_kick_is_not_taken_for_halted() {
    struct Plain;
    // SAFETY: it has no frame, and one CPU.
    unsafe impl Platform for Plain {
        fn direct_map(&self, _: Pfn) -> Option<std::ptr::NonNull<u8>> {
            None
        }
    }
    assert_eq!(Plain.kick(CpuId(1)), Kick::Sent);
}

#[test]
fn nofail_that_never_succeeds_is_refused() {
    let machine = Machine::pc(8 * MIB).nodes(1).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    // Node 1 has no memory, and no zone is called DMA.
    let distances = [10, 20, 20, 10];
    let nodes = [kernmm::platform::NodeRange { base: 1 << 40, len: MIB, node: 1 }, machine.nodes()[0]];
    let zones = ZoneLimits { dma_end: Pfn::new(0).unwrap(), ..ZoneLimits::default() };
    let config = Config { nodes: &nodes, distances: &distances, zones, ..Config::from(&machine) };
    let memory = Memory::on_with(&machine, &config, Options::default()).unwrap();
    let nofail = GfpFlags::KERNEL | GfpFlags::NOFAIL;
    let refused = Err(AllocError::InvalidFlags);
    assert_eq!(memory.phys().nodes().len(), 2);
    assert_eq!(memory.alloc_pages_node(1, nofail | GfpFlags::THISNODE, ONE), refused);
    assert_eq!(memory.alloc_pages(nofail | GfpFlags::DMA, ONE), refused);
    assert!(memory.alloc_pages(nofail, PageOrder::MAX).is_ok(), "while there is one");
    while memory.alloc_pages(GfpFlags::KERNEL | GfpFlags::NOWARN | GfpFlags::MEMALLOC, ONE).is_ok() {}
    assert_eq!(memory.alloc_pages(GfpFlags::NOWAIT | GfpFlags::NOFAIL, ONE), refused);
    assert_eq!(memory.alloc_pages(nofail | GfpFlags::MEMALLOC, ONE), refused);
}

#[test]
fn nofail_asks_for_no_block_larger_than_any_zone_can_hold() {
    let machine = Machine::with_map([kernmm::platform::MemoryRange {
        base: MIB,
        len: MIB,
        kind: kernmm::platform::MemoryKind::Usable,
    }]);
    let machine = machine.build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let nofail = GfpFlags::KERNEL | GfpFlags::NOFAIL;
    assert_eq!(memory.alloc_pages(nofail, order(9)), Err(AllocError::InvalidFlags));
}

#[test]
fn reports_stand_watermarks_at_the_top() {
    let machine = with_highmem();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let watermarks = WatermarkConfig { scale_factor: u64::MAX, ..WatermarkConfig::default() };
    let memory =
        Memory::on_with(&machine, &Config { watermarks, ..Config::from(&machine) }, Options::default());
    let memory = memory.unwrap();
    assert!(memory.zoneinfo().to_string().contains(&format!("promo    {}", u64::MAX)));
    assert!(memory.meminfo().to_string().contains("MemAvailable:          0 kB"));
    assert!(memory.mem_info().to_string().contains(&format!("high:{}kB", u64::MAX)));
}

#[test]
fn a_frame_that_could_not_be_poisoned_is_no_corruption() {
    let machine = with_highmem();
    let cpus = machine.all_cpus().unwrap();
    let options = Options::default().poison(Poison::On);
    let memory = Memory::on_with(&machine, &Config::from(&machine), options).unwrap();
    let alloc = || memory.alloc_pages(GfpFlags::HIGHUSER, ONE).unwrap();
    let (held, freed) = (alloc(), alloc());
    memory.write_frame(freed, 0, b"its owner's").unwrap();
    {
        let pin = memory.pin();
        let open: Vec<_> = (0..KMAP_SLOTS).map(|_| memory.kmap(&pin, held).unwrap()).collect();
        memory.free_pages(freed, ONE).unwrap();
        drop(open);
    }
    assert_eq!(alloc(), freed, "the last one in");
    assert_eq!(memory.poison_hits(), (0, None));
    memory.free_pages(freed, ONE).unwrap();
    assert_eq!(alloc(), freed);
    assert_eq!((memory.poison_hits(), machine.take_reports()), ((0, None), String::new()));
    drop(cpus);
}

#[test]
fn an_object_that_is_not_freed_keeps_its_contents() {
    let machine = Machine::pc(8 * MIB).cpus(2).build().unwrap();
    let cpus = machine.all_cpus().unwrap();
    let memory =
        Memory::on_with(&machine, &Config { cpus: &[0], ..Config::from(&machine) }, Options::default());
    let memory = memory.unwrap();
    let slabs = memory.slabs().unwrap();
    let object = slabs.kmalloc(&memory, 64, GfpFlags::KERNEL).unwrap();
    // SAFETY: the object is ours, of this size.
    unsafe { object.write_bytes(0x42, 64) };
    // SAFETY: nobody else uses it.
    let refused = cpus[1].run(|| unsafe { slabs.kfree(&memory, object) });
    assert_eq!(refused, Err(ObjectError::UnknownCpu));
    // SAFETY: it is still ours.
    let bytes = unsafe { object.cast::<[u8; 64]>().read() };
    assert_eq!(bytes, [0x42; 64]);
    // SAFETY: nobody uses it any more.
    unsafe { slabs.kfree(&memory, object) }.unwrap();
}

#[test]
fn a_source_of_other_frames_is_refused_on_every_path() {
    let (machine, other) = (Machine::pc(8 * MIB).build().unwrap(), Machine::pc(8 * MIB).build().unwrap());
    let (_boot, _other) = (machine.cpu(CpuId::BOOT).unwrap(), other.cpu(CpuId::BOOT).unwrap());
    let (memory, wrong) = (Memory::on(&machine).unwrap(), Memory::on(&other).unwrap());
    let slabs = memory.slabs().unwrap();
    // From now on the CPU keeps objects: what follows would be the fast path.
    let object = slabs.kmalloc(&memory, 64, GfpFlags::KERNEL).unwrap();
    assert_eq!(slabs.kmalloc(&wrong, 64, GfpFlags::KERNEL), Err(AllocError::WrongSource));
    slabs.idle(&wrong);
    slabs.serve(&wrong);
    assert_eq!(slabs.shrink(&wrong), 0);
    // SAFETY: nobody uses the object.
    assert!(unsafe { slabs.kfree(&wrong, object) }.is_err());
    // SAFETY: as above.
    assert_eq!(unsafe { slabs.kfree(&memory, object) }, Ok(()));
}

#[test]
fn reclaim_leaves_cpus_their_objects_if_empty_slabs_are_enough() {
    let machine = Machine::pc(16 * MIB).build().unwrap();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let slabs = memory.slabs().unwrap();
    let slabs_of = |name| slabs.infos(&memory).find(|info| info.name == name).unwrap().num_slabs;
    let objects: Vec<_> = (0..200).map(|_| slabs.kmalloc(&memory, 4096, GfpFlags::KERNEL).unwrap()).collect();
    for object in objects {
        // SAFETY: nobody uses the object any more.
        unsafe { slabs.kfree(&memory, object) }.unwrap();
    }
    let before = slabs_of("kmalloc-4k");
    let quiet = GfpFlags::KERNEL | GfpFlags::NOWARN;
    while memory.phys().alloc_pages(&memory.pin(), quiet, ONE).is_ok() {}
    memory.alloc_pages(quiet, ONE).unwrap();
    let after = slabs_of("kmalloc-4k");
    assert!(0 < after && after < before, "from {before} slabs to {after}");
    slabs.shrink(&memory);
    assert_eq!(slabs_of("kmalloc-4k"), 0);
}
