//! Caches and kmalloc through the public interface.

mod slab_support;

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use kernmm::addr::PageOrder;
use kernmm::flags::GfpFlags;
use kernmm::phys::{AllocError, Config, FailRule, NoReclaim, PageSource, Phys, WatermarkConfig};
use kernmm::platform::Platform;
use kernmm::slab::{
    CacheConfig, CreateError, DestroyError, KMALLOC_MAX_SIZE, ObjectError, SlabCache, SlabCheckError,
    SlabInfo, Slabs, ZERO_SIZE_PTR,
};
use slab_support::{Machine, Source, random, run_on};

/// A machine with a slab allocator. All of it is leaked.
struct Booted {
    machine: &'static Machine,
    phys: &'static Phys<'static>,
    slabs: Slabs<'static>,
    source: Source,
    /// Free pages with nothing allocated.
    pages: u64,
}

fn boot(pages: usize, cpus: usize) -> Booted {
    let machine: &Machine = Box::leak(Box::new(Machine::new(pages, cpus)));
    let config = Config { watermarks: WatermarkConfig::NONE, ..Config::default() };
    let phys: &Phys<'_> = Box::leak(Box::new(machine.boot(&config)));
    // SAFETY: the frames were booted with this machine's pin, and are used by nobody else.
    let source = unsafe { NoReclaim::new(phys, machine) };
    let memory = slab_support::memory(Slabs::metadata_layout(cpus));
    // SAFETY: the machine's RAM is its own, and nothing else allocates from these frames.
    let slabs = unsafe { Slabs::new(&source, memory) }.unwrap();
    run_on(0);
    Booted { machine, phys, slabs, source, pages: phys.free_pages_total() }
}

impl Booted {
    fn kmalloc(&self, size: usize) -> Result<NonNull<u8>, AllocError> {
        self.slabs.kmalloc(&self.source, size, GfpFlags::KERNEL)
    }

    fn kfree(&self, address: NonNull<u8>) -> Result<(), ObjectError> {
        // SAFETY: the tests hold no reference into the memory.
        unsafe { self.slabs.kfree(&self.source, address) }
    }

    fn free(&self, cache: &SlabCache<'_>, address: NonNull<u8>) -> Result<(), ObjectError> {
        // SAFETY: as above.
        unsafe { cache.free(&self.source, address) }
    }

    fn check(&self) {
        self.slabs.check(&self.source).unwrap();
        self.phys.check(&self.machine.pin()).unwrap();
    }

    fn infos(&self) -> Vec<SlabInfo> {
        self.slabs.infos(&self.source).collect()
    }

    fn info(&self, name: &str) -> SlabInfo {
        self.infos().into_iter().find(|info| info.name == name).unwrap()
    }

    /// What an operation that fails must not change: objects in use and the slabs that hold them.
    fn digest(&self) -> Vec<(&'static str, u64, u64)> {
        self.infos().iter().map(|info| (info.name, info.active_objs, info.num_slabs)).collect()
    }

    /// Free pages once all CPUs gave back what they keep.
    fn free_pages(&self) -> u64 {
        self.slabs.shrink(&self.source);
        self.phys.drain_all(&self.machine.pin());
        self.phys.free_pages_total()
    }
}

fn fill(address: NonNull<u8>, len: usize, tag: u8) {
    // SAFETY: the tests fill memory of their own, of this length.
    unsafe { address.write_bytes(tag, len) };
}

fn holds(address: NonNull<u8>, len: usize, tag: u8) -> bool {
    // SAFETY: the tests look at memory of their own, of this length, that they filled.
    unsafe { std::slice::from_raw_parts(address.as_ptr(), len) }.iter().all(|&byte| byte == tag)
}

/// What the model knows of memory in use.
struct Live {
    end: usize,
    tag: u8,
    len: usize,
    cache: Option<usize>,
    address: NonNull<u8>,
}

fn model_run(seed: u64, steps: u64) {
    let booted = boot(560, 3);
    let configs = [("a", 24, 8), ("b", 100, 64), ("c", 700, 512), ("d", 5000, 8), ("e", 40_000, 4096)];
    let caches = configs.map(|(name, size, align)| {
        let config = CacheConfig { name, size, align, constructor: None };
        booted.slabs.create(&booted.source, &config).unwrap()
    });
    let before = booted.free_pages();
    let mut state = seed;
    let mut live: BTreeMap<usize, Live> = BTreeMap::new();
    let mut failed = 0;
    for step in 0..steps {
        run_on((random(&mut state) % 3) as usize);
        // Waves, so that memory runs short and slabs empty again.
        let grows = random(&mut state) % 100 < if step / 3000 % 2 == 0 { 65 } else { 35 };
        if grows || live.is_empty() {
            let which = (random(&mut state) % 10) as usize;
            let (address, len, align) = match caches.get(which) {
                Some(cache) => {
                    (cache.alloc(&booted.source, GfpFlags::KERNEL), cache.object_size(), cache.align())
                }
                None => {
                    let len = 1 + (random(&mut state) % (1 << (random(&mut state) % 18))) as usize;
                    (booted.kmalloc(len), len, if len.is_power_of_two() { len } else { 8 })
                }
            };
            let address = match address {
                Ok(address) => address,
                Err(error) => {
                    assert_eq!(error, AllocError::OutOfMemory);
                    failed += 1;
                    continue;
                }
            };
            let (start, end) = (address.addr().get(), address.addr().get() + len);
            assert_eq!(start % align.min(8192), 0, "{len} bytes");
            assert!(live.range(..end).next_back().is_none_or(|(_, before)| before.end <= start));
            let tag = random(&mut state) as u8;
            fill(address, len, tag);
            live.insert(
                start,
                Live { end, tag, len, cache: (which < caches.len()).then_some(which), address },
            );
        } else {
            let from = *live.keys().next().unwrap();
            let span = *live.keys().next_back().unwrap() - from;
            let near = from + (random(&mut state) % (span as u64 + 1)) as usize;
            let start = *live.range(near..).next().unwrap().0;
            let gone = live.remove(&start).unwrap();
            assert!(holds(gone.address, gone.len, gone.tag), "contents stay");
            let freed = match gone.cache {
                Some(which) => booted.free(caches[which], gone.address),
                None => booted.kfree(gone.address),
            };
            assert_eq!(freed, Ok(()));
        }
        match step % 1000 {
            0 => booted.check(),
            500 => drop(booted.slabs.shrink(&booted.source)),
            750 => booted.slabs.idle(&booted.source),
            _ => {}
        }
    }
    assert!(failed > 0, "memory ran short, too");
    for gone in live.values() {
        let freed = match gone.cache {
            Some(which) => booted.free(caches[which], gone.address),
            None => booted.kfree(gone.address),
        };
        assert_eq!(freed, Ok(()));
    }
    booted.check();
    assert_eq!(booted.free_pages(), before, "all pages came back");
    for cache in caches {
        // SAFETY: nobody uses the cache any more.
        unsafe { booted.slabs.destroy(&booted.source, cache) }.unwrap();
    }
    assert_eq!(booted.free_pages(), booted.pages);
    booted.check();
}

#[test]
fn caches_and_kmalloc_agree_with_a_model() {
    for seed in 0..3 {
        model_run(seed, 24_000);
    }
}

#[test]
fn a_power_of_two_is_aligned_to_its_size() {
    let booted = boot(8192, 1);
    for shift in 0..=21 {
        let size = 1 << shift;
        let all: Vec<_> = (0..5).map(|_| booted.kmalloc(size).unwrap()).collect();
        assert!(all.iter().all(|address| address.addr().get() % size == 0), "{size}");
        for address in all {
            assert!(booted.slabs.ksize(&booted.source, address).unwrap() >= size);
            booted.kfree(address).unwrap();
        }
    }
    for (size, align) in [(96, 32), (192, 64), (1, 4096), (100, 256), (9, 2 << 20)] {
        let address = booted.slabs.kmalloc_aligned(&booted.source, size, align, GfpFlags::KERNEL).unwrap();
        assert_eq!(address.addr().get() % align, 0);
        booted.kfree(address).unwrap();
    }
    booted.check();
}

#[test]
fn what_cannot_be_allocated_is_refused() {
    let booted = boot(2048, 1);
    let (slabs, source) = (&booted.slabs, &booted.source);
    assert_eq!(booted.kmalloc(KMALLOC_MAX_SIZE + 1), Err(AllocError::InvalidCount));
    assert_eq!(booted.kmalloc(usize::MAX), Err(AllocError::InvalidCount));
    assert_eq!(slabs.kmalloc_aligned(source, 8, 24, GfpFlags::KERNEL), Err(AllocError::InvalidCount));
    assert_eq!(slabs.kmalloc_aligned(source, 8, 0, GfpFlags::KERNEL), Err(AllocError::InvalidCount));
    assert_eq!(slabs.kmalloc_aligned(source, 8, 4 << 20, GfpFlags::KERNEL), Err(AllocError::InvalidCount));
    for size in [8, 100_000] {
        for flag in [GfpFlags::HIGHMEM, GfpFlags::MOVABLE, GfpFlags::RECLAIMABLE] {
            assert_eq!(slabs.kmalloc(source, size, GfpFlags::KERNEL | flag), Err(AllocError::InvalidFlags));
        }
    }
    let other = boot(2048, 1);
    assert_eq!(slabs.kmalloc(&other.source, 8, GfpFlags::KERNEL), Err(AllocError::WrongSource));
    assert_eq!(slabs.kmalloc(&other.source, 100_000, GfpFlags::KERNEL), Err(AllocError::WrongSource));
    let theirs = other.kmalloc(8).unwrap();
    // SAFETY: nobody uses the memory.
    assert_eq!(unsafe { slabs.kfree(&other.source, theirs) }, Err(ObjectError::WrongSource));
    assert_eq!(booted.kfree(theirs), Err(ObjectError::Foreign), "many memories, each with its own addresses");
    assert_eq!(booted.kmalloc(0), Ok(ZERO_SIZE_PTR));
    assert_eq!(booted.kfree(ZERO_SIZE_PTR), Ok(()));
    let config = |size, align| CacheConfig { name: "odd", size, align, constructor: None };
    assert_eq!(slabs.create(source, &config(0, 8)).err(), Some(CreateError::InvalidSize));
    assert_eq!(slabs.create(source, &config(usize::MAX, 8)).err(), Some(CreateError::InvalidSize));
    assert_eq!(slabs.create(source, &config(8, 3)).err(), Some(CreateError::InvalidAlign));
    assert_eq!(slabs.create(&other.source, &config(8, 8)).err(), Some(CreateError::WrongSource));
    booted.check();
}

#[test]
fn a_wrong_free_is_told_and_changes_nothing() {
    let booted = boot(2048, 2);
    let cache = booted.slabs.create(&booted.source, &CacheConfig::of::<[u64; 5]>("five")).unwrap();
    let object = cache.alloc(&booted.source, GfpFlags::KERNEL).unwrap();
    let small = booted.kmalloc(100).unwrap();
    let page_sized = booted.kmalloc(4096).unwrap();
    let large = booted.kmalloc(20_000).unwrap();
    let freed: Vec<_> = [100, 4096, 20_000].map(|size| booted.kmalloc(size).unwrap()).to_vec();
    for &address in &freed {
        booted.kfree(address).unwrap();
    }
    let frame = booted.source.alloc_pages(GfpFlags::KERNEL, PageOrder::ZERO).unwrap();
    let plain = booted.source.direct_map(frame).unwrap();
    let inside = |address: NonNull<u8>, offset: usize| {
        // SAFETY: the offsets stay within the object.
        unsafe { address.add(offset) }
    };
    let mut local = 0_u8;
    let before = booted.infos();
    let pages = booted.phys.free_pages_total();
    let wrong_cache = Err(ObjectError::WrongCache(cache.id()));
    let cases = [
        (booted.kfree(NonNull::from(&mut local)), Err(ObjectError::Foreign)),
        (booted.kfree(plain), Err(ObjectError::NotSlab)),
        (booted.kfree(inside(small, 8)), Err(ObjectError::Interior)),
        (booted.kfree(inside(small, 1)), Err(ObjectError::Interior)),
        (booted.kfree(inside(page_sized, 2048)), Err(ObjectError::Interior)),
        (booted.kfree(inside(large, 8)), Err(ObjectError::Interior)),
        (booted.kfree(inside(large, 4096)), Err(ObjectError::Interior)),
        (booted.kfree(freed[0]), Err(ObjectError::DoubleFree)),
        (booted.kfree(freed[1]), Err(ObjectError::DoubleFree)),
        (booted.kfree(freed[2]), Err(ObjectError::NotSlab)),
        (booted.kfree(object), wrong_cache),
        (booted.free(cache, inside(object, 8)), Err(ObjectError::Interior)),
    ];
    for (case, (answer, expected)) in cases.into_iter().enumerate() {
        assert_eq!(answer, expected, "case {case}");
    }
    assert!(matches!(booted.free(cache, small), Err(ObjectError::WrongCache(_))));
    assert!(matches!(booted.free(cache, large), Err(ObjectError::WrongCache(_))));
    assert_eq!(booted.infos(), before);
    assert_eq!(booted.phys.free_pages_total(), pages);
    booted.check();
    // Back in their slabs, and the slabs back with the source, they are told all the same.
    booted.free(cache, object).unwrap();
    booted.slabs.shrink(&booted.source);
    assert_eq!(booted.free(cache, object), Err(ObjectError::NotSlab));
    assert_eq!(booted.kfree(freed[0]), Err(ObjectError::DoubleFree), "its slab still has another object");
    booted.check();
}

#[test]
fn a_page_of_a_slab_cannot_be_freed_as_a_frame() {
    let booted = boot(2048, 1);
    for size in [64, 4096, 50_000] {
        let address = booted.kmalloc(size).unwrap();
        let pfn = booted.source.virt_to_pfn(address).unwrap();
        let head = booted.phys.head_of(pfn).unwrap();
        let order = booted.phys.page(head).unwrap().order().unwrap();
        assert!(booted.source.free_pages(head, order).is_err());
        booted.kfree(address).unwrap();
    }
}

#[test]
fn each_failing_page_allocation_leaves_the_state_as_it_was() {
    let booted = boot(2048, 2);
    let kept: Vec<_> = [8, 90, 600, 9000].map(|size| booted.kmalloc(size).unwrap()).to_vec();
    let config = CacheConfig { name: "new", size: 300, align: 64, constructor: None };
    // No slab has room and no CPU keeps anything: each of these asks for pages.
    let sizes = [10, 60, 100, 190, 250, 500, 2000, 8000, 10_000, 2 << 20];
    for nth in 1..=2 {
        for size in sizes {
            booted.slabs.shrink(&booted.source);
            let before = (booted.free_pages(), booted.digest());
            booted.phys.set_fail_rule(&booted.machine.pin(), FailRule::Nth(nth));
            let answer = booted.kmalloc(size);
            booted.phys.set_fail_rule(&booted.machine.pin(), FailRule::Never);
            match answer {
                Ok(address) => booted.kfree(address).unwrap(),
                Err(error) => assert_eq!(error, AllocError::Injected),
            }
            assert_eq!((booted.free_pages(), booted.digest()), before, "{size} bytes, failure {nth}");
            booted.check();
        }
    }
    let before = booted.free_pages();
    booted.phys.set_fail_rule(&booted.machine.pin(), FailRule::Every(1));
    for size in sizes {
        assert_eq!(booted.kmalloc(size), Err(AllocError::Injected), "{size}");
    }
    assert_eq!(
        booted.slabs.create(&booted.source, &config).err(),
        Some(CreateError::Alloc(AllocError::Injected))
    );
    booted.phys.set_fail_rule(&booted.machine.pin(), FailRule::Never);
    assert_eq!(booted.free_pages(), before);
    booted.check();
    for address in kept {
        booted.kfree(address).unwrap();
    }
    assert_eq!(booted.free_pages(), booted.pages);
}

#[test]
fn a_slab_of_the_least_order_does_when_the_usual_one_cannot_be_had() {
    let booted = boot(2048, 1);
    booted.phys.set_fail_rule(&booted.machine.pin(), FailRule::Nth(1));
    let address = booted.kmalloc(1000).unwrap();
    booted.phys.set_fail_rule(&booted.machine.pin(), FailRule::Never);
    let info = booted.info("kmalloc-1k");
    assert!(info.num_objs < u64::from(info.objs_per_slab));
    booted.check();
    booted.kfree(address).unwrap();
    assert_eq!(booted.free_pages(), booted.pages);
}

#[test]
fn objects_that_another_cpu_keeps_are_found_when_memory_is_short() {
    let booted = boot(600, 2);
    run_on(0);
    let mut all = Vec::new();
    while let Ok(address) = booted.kmalloc(64) {
        all.push(address);
    }
    // CPU 1 frees some of them and is never heard of again.
    run_on(1);
    for address in all.split_off(all.len() - 5) {
        booted.kfree(address).unwrap();
    }
    run_on(0);
    for _ in 0..5 {
        all.push(booted.kmalloc(64).expect("five objects are free"));
    }
    assert_eq!(booted.kmalloc(64), Err(AllocError::OutOfMemory));
    // The pages of slabs that became empty on CPU 1 serve other classes.
    run_on(1);
    for address in all.drain(..) {
        booted.kfree(address).unwrap();
    }
    run_on(0);
    let block = booted.kmalloc(1 << 20).expect("nearly all is free");
    booted.kfree(block).unwrap();
    booted.check();
    assert_eq!(booted.free_pages(), booted.pages);
}

#[test]
fn shrink_answers_with_the_pages_it_freed() {
    let booted = boot(2048, 1);
    let all: Vec<_> = (0..200).map(|_| booted.kmalloc(2000).unwrap()).collect();
    for address in all {
        booted.kfree(address).unwrap();
    }
    let pages: u64 = booted.infos().iter().map(|info| info.num_pages).sum();
    assert!(pages > 0, "some empty slabs are kept");
    assert_eq!(booted.slabs.shrink(&booted.source), pages);
    assert_eq!(booted.slabs.shrink(&booted.source), 0);
    assert_eq!(booted.free_pages(), booted.pages);
}

#[test]
fn a_constructor_runs_once_for_each_object() {
    fn construct(bytes: &mut [MaybeUninit<u8>]) {
        assert_eq!(bytes.len(), 48);
        bytes.fill(MaybeUninit::new(0x42));
    }
    let booted = boot(2048, 1);
    let config = CacheConfig { name: "made", size: 48, align: 16, constructor: Some(construct) };
    let cache = booted.slabs.create(&booted.source, &config).unwrap();
    let objects: Vec<_> = (0..300).map(|_| cache.alloc(&booted.source, GfpFlags::KERNEL).unwrap()).collect();
    assert!(objects.iter().all(|&object| holds(object, 48, 0x42)));
    fill(objects[7], 48, 0x43);
    booted.free(cache, objects[7]).unwrap();
    let again = cache.alloc(&booted.source, GfpFlags::KERNEL).unwrap();
    assert_eq!(again, objects[7], "the last one freed is the first one handed out");
    assert!(holds(again, 48, 0x43), "as its last owner left it");
    let zeroed = cache.alloc(&booted.source, GfpFlags::KERNEL | GfpFlags::ZERO);
    assert_eq!(zeroed, Err(AllocError::InvalidFlags), "zeroing would undo the constructor");
    booted.check();
}

#[test]
fn a_cache_in_use_is_not_destroyed() {
    let booted = boot(2048, 1);
    let config = CacheConfig { name: "mine", size: 40, align: 8, constructor: None };
    let memory = slab_support::memory(booted.slabs.cache_layout(&config));
    let short = slab_support::memory(booted.slabs.cache_layout(&config));
    let short = &mut short[64..];
    assert!(matches!(
        booted.slabs.create_in(&booted.source, &config, short),
        Err(CreateError::MetadataTooSmall(_))
    ));
    let placed = booted.slabs.create_in(&booted.source, &config, memory).unwrap();
    let made = booted.slabs.create(&booted.source, &config).unwrap();
    assert_ne!(placed.id(), made.id());
    for cache in [placed, made] {
        let object = cache.alloc(&booted.source, GfpFlags::KERNEL).unwrap();
        // SAFETY: the cache is not used while it is in doubt.
        let refused = unsafe { booted.slabs.destroy(&booted.source, cache) };
        assert_eq!(refused, Err(DestroyError::InUse(1)));
        booted.check();
        booted.free(cache, object).unwrap();
        // SAFETY: nobody uses the cache any more.
        unsafe { booted.slabs.destroy(&booted.source, cache) }.unwrap();
        booted.check();
    }
    assert!(booted.infos().iter().all(|info| info.name != "mine"));
    assert_eq!(booted.free_pages(), booted.pages);
}

#[test]
fn krealloc_keeps_contents_and_alignment() {
    let booted = boot(4096, 1);
    let krealloc = |address, size, align| {
        // SAFETY: nobody else uses the memory.
        unsafe { booted.slabs.krealloc(&booted.source, address, size, align, GfpFlags::KERNEL) }
    };
    let mut address = booted.slabs.kmalloc_aligned(&booted.source, 10, 64, GfpFlags::KERNEL).unwrap();
    fill(address, 10, 9);
    for size in [60, 65, 200, 5000, 9000, 100_000, 1 << 20] {
        address = krealloc(address, size, 64).unwrap();
        assert!(holds(address, 10, 9) && address.addr().get() % 64 == 0, "{size}");
    }
    assert_eq!(krealloc(address, 20, 64), Ok(address), "what fits stays");
    assert_eq!(krealloc(address, 3 << 20, 8), Err(AllocError::InvalidCount));
    assert!(holds(address, 10, 9), "a failure leaves the old memory");
    assert_eq!(krealloc(address, 0, 8), Ok(ZERO_SIZE_PTR));
    assert_eq!(booted.kfree(address), Err(ObjectError::NotSlab), "and frees it if nothing is asked for");
    assert_eq!(krealloc(address, 30, 8), Err(AllocError::BadObject), "it is nobody's any more");
    let fresh = krealloc(ZERO_SIZE_PTR, 30, 8).unwrap();
    booted.kfree(fresh).unwrap();
    assert_eq!(booted.free_pages(), booted.pages);
}

#[test]
fn zeroed_memory_is_zero_however_it_was_used() {
    let booted = boot(2048, 1);
    for size in [8, 96, 1000, 5000, 70_000] {
        let address = booted.kmalloc(size).unwrap();
        fill(address, size, 0xee);
        booted.kfree(address).unwrap();
        let gfp = GfpFlags::KERNEL | GfpFlags::ZERO;
        let address = booted.slabs.kmalloc(&booted.source, size, gfp).unwrap();
        assert!(holds(address, size, 0), "{size}");
        booted.kfree(address).unwrap();
    }
}

#[test]
fn a_damaged_slab_hands_out_no_wild_pointer() {
    let mut state = 5;
    for round in 0..200 {
        let booted = boot(600, 1);
        let first = booted.kmalloc(64).unwrap();
        let base = first.addr().get() & !4095;
        let live: Vec<_> = (0..40).map(|_| booted.kmalloc(64).unwrap()).collect();
        for &address in live.iter().step_by(3) {
            booted.kfree(address).unwrap();
        }
        // The CPU's list is empty now, and the chain of free objects lies in the slab.
        booted.slabs.shrink(&booted.source);
        // The states are at the end of the page, after the objects.
        let info = booted.info("kmalloc-64");
        let end = base + 4096;
        let states = end - 2 * info.objs_per_slab as usize;
        for _ in 0..=round % 8 {
            let at = states + (random(&mut state) as usize) % (end - states);
            // SAFETY: the byte is in the machine's RAM, which nothing else uses at the moment.
            unsafe { first.with_addr(at.try_into().unwrap()).write(random(&mut state) as u8) };
        }
        for _ in 0..200 {
            let address = booted.kmalloc(64).unwrap().addr().get();
            assert_eq!(address % 64, 0);
            assert!(
                address & !4095 != base
                    || (address - base) / info.objsize as usize * info.objsize as usize == address - base
            );
            assert!(address & !4095 != base || address < states);
        }
    }
}

#[test]
fn check_finds_a_damaged_chain() {
    let booted = boot(600, 1);
    let all: Vec<_> = (0..200).map(|_| booted.kmalloc(64).unwrap()).collect();
    for &address in all.iter().step_by(2) {
        booted.kfree(address).unwrap();
    }
    booted.slabs.shrink(&booted.source);
    booted.check();
    let end = all[0].addr().get() | 4095;
    // SAFETY: the byte is in the machine's RAM: the state of the slab's last object, in use or not.
    unsafe { all[0].with_addr((end - 1).try_into().unwrap()).write(0x77) };
    assert!(matches!(
        booted.slabs.check(&booted.source),
        Err(SlabCheckError::BrokenChain(..) | SlabCheckError::Count(..))
    ));
}

#[cfg(feature = "check")]
#[test]
fn a_write_beyond_an_object_is_found_when_it_is_freed() {
    let booted = boot(2048, 1);
    for size in [8, 96, 4096] {
        let address = booted.kmalloc(size).unwrap();
        // SAFETY: the byte after the object is its red zone, in the machine's RAM.
        let zone = unsafe { address.add(size) };
        // SAFETY: as above.
        unsafe { zone.write(0) };
        assert_eq!(booted.kfree(address), Err(ObjectError::RedZone));
        assert!(matches!(booted.slabs.check(&booted.source), Err(SlabCheckError::Written(..))));
        // SAFETY: as above.
        unsafe { zone.write(0xbb) };
        assert_eq!(booted.kfree(address), Ok(()));
        booted.check();
    }
}

#[cfg(feature = "check")]
#[test]
fn an_object_written_after_its_end_is_never_handed_out() {
    let booted = boot(2048, 1);
    for size in [8, 200, 8192] {
        let address = booted.kmalloc(size).unwrap();
        booted.kfree(address).unwrap();
        fill(address, 1, 1);
        assert!(matches!(booted.slabs.check(&booted.source), Err(SlabCheckError::Written(..))));
        for _ in 0..300 {
            assert_ne!(booted.kmalloc(size).unwrap(), address);
        }
        booted.check();
        assert_eq!(booted.kfree(address), Err(ObjectError::DoubleFree));
    }
    assert_eq!(booted.infos().iter().map(|info| info.lost).sum::<u64>(), 3);
}

#[test]
fn threads_share_a_cache() {
    let booted = boot(4096, 4);
    let cache = booted.slabs.create(&booted.source, &CacheConfig::of::<[u64; 4]>("shared")).unwrap();
    let booted = &booted;
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let mut state = seed;
                let mut live = Vec::new();
                for step in 0..20_000_u64 {
                    if live.len() < 400 && random(&mut state) % 2 == 0 {
                        let address = cache.alloc(&booted.source, GfpFlags::KERNEL).unwrap();
                        let tag = random(&mut state) as u8;
                        fill(address, 32, tag);
                        live.push((address, tag));
                    } else if !live.is_empty() {
                        let (address, tag) = live.swap_remove(random(&mut state) as usize % live.len());
                        assert!(holds(address, 32, tag));
                        booted.free(cache, address).unwrap();
                    }
                    if step % 1000 == seed {
                        cache.shrink(&booted.source);
                    }
                }
                for (address, _) in live {
                    booted.free(cache, address).unwrap();
                }
            });
        }
    });
    booted.check();
    assert_eq!(booted.info("shared").active_objs, 0);
}

#[test]
fn slabinfo_has_a_line_for_each_cache_in_linux_columns() {
    let booted = boot(2048, 1);
    booted.slabs.create(&booted.source, &CacheConfig::of::<[u64; 3]>("triple")).unwrap();
    // Three, and the data of the new cache.
    let _kept: Vec<_> = (0..3).map(|_| booted.kmalloc(4096).unwrap()).collect();
    let text = kernmm::report::slabinfo(&booted.slabs, &booted.source).to_string();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2 + 13 + 1);
    assert_eq!(lines[0], "slabinfo - version: 2.1");
    assert!(lines[1].starts_with("# name            <active_objs> <num_objs> <objsize>"));
    assert!(lines[2].starts_with("triple  "), "the newest first");
    assert!(lines[15].starts_with("kmalloc-8  "));
    #[cfg(not(feature = "check"))]
    assert_eq!(
        lines[4],
        "kmalloc-4k             4      8   4096    8    8 : tunables   24   12    0 : slabdata      1      1      0"
    );
}
