//! Caches and kmalloc through the public interface.

#[path = "slab/misuse.rs"]
mod misuse;
#[path = "slab/model.rs"]
mod model;
mod slab_support;

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use kernmm::flags::GfpFlags;
use kernmm::phys::{AllocError, Config, FailRule, NoReclaim, Phys, WatermarkConfig};
use kernmm::platform::Platform;
use kernmm::slab::{
    CacheConfig, CreateError, DestroyError, ObjectError, SlabCache, SlabInfo, Slabs, ZERO_SIZE_PTR,
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
