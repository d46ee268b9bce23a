//! Operations on caches and kmalloc beside a naive model.
#![no_main]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use arbitrary::Arbitrary;
use kernmm::addr::{PAGE_SIZE, Pfn};
use kernmm::flags::GfpFlags;
use kernmm::phys::{AllocError, Config, FailRule, NoReclaim, Phys, Plan, WatermarkConfig};
use kernmm::platform::{CpuId, Kick, MemoryKind, MemoryRange, Platform};
use kernmm::slab::{CacheConfig, DestroyError, SlabCache, Slabs};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Op {
    Kmalloc { cpu: bool, size: u32, shift: u8, align: u8, zero: bool },
    Kfree { cpu: bool, which: u16 },
    Krealloc { cpu: bool, which: u16, size: u32, shift: u8 },
    FreeWrong { which: u16, offset: u16 },
    FreeAgain { which: u16 },
    Create { size: u16, align: u8 },
    Destroy { which: u8 },
    CacheAlloc { cpu: bool, which: u8 },
    Shrink { cpu: bool },
    Idle { cpu: bool },
    Fail { nth: u8 },
}

/// RAM: 2 MiB, and the frame it begins at.
const PAGES: usize = 512;
const FIRST_PFN: u64 = 0x300;

thread_local! {
    static CPU: Cell<u32> = const { Cell::new(0) };
}

struct Machine {
    ram: NonNull<u8>,
}

// SAFETY: the fuzzer runs on one thread.
unsafe impl Sync for Machine {}

// SAFETY: a frame's RAM is its own. One thread plays both CPUs in turn, so the other one runs nothing.
unsafe impl Platform for Machine {
    fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        let at = pfn.get().checked_sub(FIRST_PFN).filter(|&at| at < PAGES as u64)? as usize;
        // SAFETY: the frame is one of the RAM's.
        Some(unsafe { self.ram.add(at * PAGE_SIZE) })
    }

    fn virt_to_pfn(&self, address: NonNull<u8>) -> Option<Pfn> {
        let at = address.addr().get().checked_sub(self.ram.addr().get())? / PAGE_SIZE;
        (at < PAGES).then(|| Pfn::new(at as u64 + FIRST_PFN))?
    }

    fn cpu_id(&self) -> CpuId {
        CpuId(CPU.get())
    }

    fn kick(&self, _: CpuId) -> Kick {
        Kick::Halted
    }
}

/// What the model knows of memory in use.
struct Live {
    address: NonNull<u8>,
    len: usize,
    tag: u8,
    /// The cache, or kmalloc.
    cache: Option<u32>,
}

struct Model<'m> {
    machine: &'m Machine,
    phys: &'m Phys<'m>,
    source: NoReclaim<'m, Machine>,
    slabs: Slabs<'m>,
    caches: Vec<&'m SlabCache<'m>>,
    live: BTreeMap<usize, Live>,
    freed: Vec<NonNull<u8>>,
    next_tag: u8,
}

fn room(layout: std::alloc::Layout) -> Vec<MaybeUninit<[u64; 8]>> {
    vec![MaybeUninit::uninit(); layout.size() / 64 + 2]
}

fn bytes(words: &mut [MaybeUninit<[u64; 8]>]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: uninitialised words are uninitialised bytes.
    let (_, bytes, _) = unsafe { words.align_to_mut::<MaybeUninit<u8>>() };
    let skip = bytes.as_ptr().align_offset(64);
    &mut bytes[skip..]
}

fn holds(live: &Live, len: usize) -> bool {
    // SAFETY: the model filled this much of its own memory.
    unsafe { std::slice::from_raw_parts(live.address.as_ptr(), len) }.iter().all(|&byte| byte == live.tag)
}

impl<'m> Model<'m> {
    fn nth_live(&self, which: u16) -> Option<usize> {
        let at = usize::from(which) % self.live.len().max(1);
        self.live.keys().nth(at).copied()
    }

    fn note(&mut self, address: NonNull<u8>, len: usize, cache: Option<u32>) {
        let start = address.addr().get();
        let before = self.live.range(..start + len).next_back();
        assert!(before.is_none_or(|(&at, live)| at + live.len <= start), "memory in use twice");
        self.next_tag = self.next_tag.wrapping_add(1);
        let tag = self.next_tag;
        // SAFETY: the memory is the model's, of this length.
        unsafe { address.write_bytes(tag, len) };
        self.live.insert(start, Live { address, len, tag, cache });
        self.freed.retain(|&other| other != address);
    }

    fn kmalloc(&mut self, size: usize, align: usize, zero: bool) {
        let gfp = if zero { GfpFlags::KERNEL | GfpFlags::ZERO } else { GfpFlags::KERNEL };
        match self.slabs.kmalloc_aligned(&self.source, size, align, gfp) {
            Ok(_) if size == 0 => {}
            Ok(address) => {
                assert_eq!(address.addr().get() % align, 0);
                assert!(self.slabs.ksize(&self.source, address).unwrap() >= size);
                // SAFETY: the memory is the model's, of this length; zeroed, or made by the machine's RAM which is initialised.
                let old = unsafe { std::slice::from_raw_parts(address.as_ptr(), size) };
                assert!(!zero || old.iter().all(|&byte| byte == 0));
                self.note(address, size, None);
            }
            Err(error) => assert!(matches!(
                error,
                AllocError::OutOfMemory | AllocError::Injected | AllocError::InvalidCount
            )),
        }
    }

    fn free(&mut self, start: usize) {
        let Some(gone) = self.live.remove(&start) else { return };
        assert!(holds(&gone, gone.len));
        let freed = match gone.cache.and_then(|id| self.caches.iter().find(|cache| cache.id().get() == id)) {
            // SAFETY: the model forgets the memory.
            Some(cache) => unsafe { cache.free(&self.source, gone.address) },
            // SAFETY: as above.
            None => unsafe { self.slabs.kfree(&self.source, gone.address) },
        };
        assert_eq!(freed, Ok(()));
        self.freed.push(gone.address);
    }

    fn krealloc(&mut self, start: usize, size: usize) {
        let Some(live) = self.live.get(&start).filter(|live| live.cache.is_none()) else { return };
        // SAFETY: nobody else uses the memory.
        let answer = unsafe { self.slabs.krealloc(&self.source, live.address, size, 1, GfpFlags::KERNEL) };
        let Ok(address) = answer else { return assert!(holds(live, live.len)) };
        let Some(mut old) = self.live.remove(&start) else { return };
        if size == 0 {
            return self.freed.push(old.address);
        }
        let moved_from = std::mem::replace(&mut old.address, address);
        assert!(holds(&old, old.len.min(size)));
        if moved_from != address {
            self.freed.push(moved_from);
        }
        self.note(address, size, None);
    }

    fn refuse(&self, address: NonNull<u8>) {
        // A cache keeps its own data in an object of kmalloc's, which is in use although the model does not know it.
        let of_a_cache = !self.caches.is_empty() && self.slabs.ksize(&self.source, address).is_ok();
        if !of_a_cache && !self.live.contains_key(&address.addr().get()) {
            // SAFETY: nothing in use begins at this address.
            assert!(unsafe { self.slabs.kfree(&self.source, address) }.is_err());
        }
    }

    fn destroy(&mut self, which: u8) {
        let at = usize::from(which) % self.caches.len().max(1);
        let Some(&cache) = self.caches.get(at) else { return };
        let id = cache.id().get();
        let in_use = self.live.values().filter(|live| live.cache == Some(id)).count() as u64;
        // SAFETY: if it works the model forgets the cache.
        match unsafe { self.slabs.destroy(&self.source, cache) } {
            Ok(()) => {
                assert_eq!(in_use, 0);
                self.caches.swap_remove(at);
            }
            Err(error) => assert_eq!(error, DestroyError::InUse(in_use)),
        }
    }

    fn run(&mut self, op: &Op) {
        let sized = |size: u32, shift: u8| (size >> (shift % 33).min(31)) as usize;
        match *op {
            Op::Kmalloc { cpu, size, shift, align, zero } => {
                CPU.set(cpu.into());
                self.kmalloc(sized(size, shift), 1 << (align % 16), zero);
            }
            Op::Kfree { cpu, which } => {
                CPU.set(cpu.into());
                self.nth_live(which).into_iter().for_each(|start| self.free(start));
            }
            Op::Krealloc { cpu, which, size, shift } => {
                CPU.set(cpu.into());
                self.nth_live(which).into_iter().for_each(|start| self.krealloc(start, sized(size, shift)));
            }
            Op::FreeWrong { which, offset } => {
                if let Some(start) = self.nth_live(which) {
                    self.refuse(
                        self.live[&start]
                            .address
                            .with_addr((start + usize::from(offset)).try_into().unwrap()),
                    );
                }
            }
            Op::FreeAgain { which } => {
                let at = usize::from(which) % self.freed.len().max(1);
                self.freed.get(at).copied().into_iter().for_each(|address| self.refuse(address));
            }
            Op::Create { size, align } => {
                let config = CacheConfig {
                    name: "fuzz",
                    size: size.into(),
                    align: 1 << (align % 13),
                    constructor: None,
                };
                if self.caches.len() < 4 {
                    self.caches.extend(self.slabs.create(&self.source, &config));
                }
            }
            Op::Destroy { which } => self.destroy(which),
            Op::CacheAlloc { cpu, which } => {
                CPU.set(cpu.into());
                let at = usize::from(which) % self.caches.len().max(1);
                let Some(&cache) = self.caches.get(at) else { return };
                if let Ok(address) = cache.alloc(&self.source, GfpFlags::KERNEL) {
                    assert_eq!(address.addr().get() % cache.align(), 0);
                    self.note(address, cache.object_size(), Some(cache.id().get()));
                }
            }
            Op::Shrink { cpu } => {
                CPU.set(cpu.into());
                let pages = self.slabs.shrink(&self.source);
                let again = self.slabs.shrink(&self.source);
                assert!(pages <= PAGES as u64 && again == 0);
            }
            Op::Idle { cpu } => {
                CPU.set(cpu.into());
                self.slabs.idle(&self.source);
            }
            Op::Fail { nth } => {
                let rule = if nth == 0 { FailRule::Never } else { FailRule::Nth(nth.into()) };
                self.phys.set_fail_rule(&self.machine.pin(), rule);
            }
        }
    }

    fn check(&self) {
        self.slabs.check(&self.source).unwrap();
        self.phys.check(&self.machine.pin()).unwrap();
        let in_use: u64 = self.slabs.infos(&self.source).map(|info| info.active_objs).sum();
        let small = self.live.values().filter(|live| {
            live.cache.is_some() || self.slabs.ksize(&self.source, live.address).unwrap() <= 8192
        });
        // Large blocks are no objects; an object for each cache's own data may be one.
        assert!((0..=self.caches.len() as u64).contains(&(in_use - small.count() as u64)));
    }
}

fuzz_target!(|ops: Vec<Op>| {
    let layout = std::alloc::Layout::from_size_align(PAGES * PAGE_SIZE, 2 << 20).unwrap();
    // SAFETY: the layout has a size.
    let ram = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).unwrap();
    {
        CPU.set(0);
        let machine = Machine { ram };
        let map = [MemoryRange {
            base: FIRST_PFN * PAGE_SIZE as u64,
            len: (PAGES * PAGE_SIZE) as u64,
            kind: MemoryKind::Usable,
        }];
        let config = Config { cpus: &[0, 0], watermarks: WatermarkConfig::NONE, ..Config::default() };
        let plan = Plan::new(map.into_iter(), &config).unwrap();
        let mut phys_room = room(plan.metadata_layout());
        let mut slab_room = room(Slabs::metadata_layout(2));
        let phys = Phys::init(&machine.pin(), map.into_iter(), &config, bytes(&mut phys_room)).unwrap();
        // SAFETY: the frames were booted with this machine's pin, and are used by nobody else.
        let source = unsafe { NoReclaim::new(&phys, &machine) };
        let all = phys.free_pages_total();
        // SAFETY: the RAM is the machine's own, and nothing else allocates from these frames.
        let slabs = unsafe { Slabs::new(&source, bytes(&mut slab_room)) }.unwrap();
        let mut model = Model {
            machine: &machine,
            phys: &phys,
            source,
            slabs,
            caches: vec![],
            live: BTreeMap::new(),
            freed: vec![],
            next_tag: 0,
        };
        for op in &ops {
            model.run(op);
            model.check();
        }
        phys.set_fail_rule(&machine.pin(), FailRule::Never);
        model.live.keys().copied().collect::<Vec<_>>().into_iter().for_each(|start| model.free(start));
        while !model.caches.is_empty() {
            model.destroy(0);
        }
        model.slabs.shrink(&source);
        phys.drain_all(&machine.pin());
        assert_eq!(phys.free_pages_total(), all, "all pages came back");
    }
    // SAFETY: allocated with this layout, and nothing uses it any more.
    unsafe { std::alloc::dealloc(ram.as_ptr(), layout) };
});
