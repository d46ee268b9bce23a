//! All RAM, given to kernmm: the firmware's map, the nodes, the CPUs.

use kernmm::addr::{PAGE_SIZE_U64, PageOrder, Pfn};
#[cfg(feature = "check")]
use kernmm::fault::FrameTally;
use kernmm::flags::GfpFlags;
use kernmm::memory::{Memory, Options, ShrinkRequest, Shrinker, Vm, VmLimits};
use kernmm::mm::Sysctl;
use kernmm::phys::{AllocError, Config, FreeError, MAX_NODES, NoReclaim, PageSource, Phys, Plan, ZoneLimits};
#[cfg(feature = "check")]
use kernmm::platform::testing::{Expected, check_platform};
use kernmm::platform::{MemoryKind, MemoryMap, MemoryRange, NodeRange};
use kernmm::report::Counters;
use kernmm::slab::GlobalHeap;
use kernmm::table::{EntryFormat, X86_64};
use spin::Once;

use crate::acpi::Acpi;
use crate::cpu::{self, MAX_CPUS};
use crate::platform::{MACHINE, Machine, highmem_from};
use crate::pvh::{Kind, Range};
use crate::{paging, println};

/// Node ranges that are kept; what none of them names belongs to node 0.
const MAX_NODE_RANGES: usize = 64;

/// All memory of this machine.
pub type Frames = Memory<'static, Machine>;
/// What its processes share.
pub type VirtualMemory = Vm<'static, Frames>;

static FRAMES: Once<Frames> = Once::new();
static VIRTUAL: Once<VirtualMemory> = Once::new();

/// kmalloc: the kernel's `Box`, `Vec` and all else of `alloc`, from [`init`] on.
#[global_allocator]
pub static HEAP: GlobalHeap<HeapFrames> = GlobalHeap::new();

/// Where the heap gets its frames: from the reserves too. The kernel's own objects are few and small, and the end of a process, which brings frames back,
/// needs some; programs get nothing below the low watermark, so they are out of memory long before the kernel is.
///
/// # Linux
/// `PF_MEMALLOC` in `include/linux/sched.h`, for tasks that free memory.
pub struct HeapFrames(NoReclaim<'static, Machine>);

// SAFETY: all is left to a source that keeps the promise; only the flags of a request change.
unsafe impl PageSource for HeapFrames {
    type Platform = Machine;

    fn platform(&self) -> &Machine {
        self.0.platform()
    }

    fn phys(&self) -> &Phys<'_> {
        self.0.phys()
    }

    fn alloc_pages(&self, gfp: GfpFlags, order: PageOrder) -> Result<Pfn, AllocError> {
        let block = self.0.alloc_pages(gfp | GfpFlags::MEMALLOC, order)?;
        HEAPS_OWN.call_once(|| block);
        Ok(block)
    }

    fn free_pages(&self, pfn: Pfn, order: PageOrder) -> Result<(), FreeError> {
        self.0.free_pages(pfn, order)
    }
}

/// The first block that the heap got: its own data.
static HEAPS_OWN: Once<Pfn> = Once::new();

/// The heap gives back slabs without objects when memory is short.
struct HeapShrinker;

impl Shrinker for HeapShrinker {
    fn shrink(&self, _: &ShrinkRequest) -> u64 {
        HEAP.get().map_or(0, |(slabs, source)| slabs.shrink(source))
    }
}

/// The frames; `None` until [`init`] is done.
pub fn frames() -> Option<&'static Frames> {
    FRAMES.get()
}

/// The allocator of frames; `None` until [`init`] is done.
pub fn phys() -> Option<&'static Phys<'static>> {
    FRAMES.get().map(Memory::phys)
}

/// What processes share.
///
/// # Panics
/// Before [`init`].
pub fn vm() -> &'static VirtualMemory {
    VIRTUAL.get().expect("memory comes before processes")
}

/// Builds the allocator of all RAM that the firmware calls usable and the kernel does not use itself, the heap, and virtual memory.
///
/// # Panics
/// If kernmm rejects the firmware's map.
///
/// # Safety
/// `used` is all usable RAM that anybody uses, now or later, without asking kernmm for it. `paging::map_ram` has mapped the rest.
pub unsafe fn init(ranges: &'static [Range], used: Range, acpi: &Acpi) {
    let map = ranges.iter().copied().chain([used]).map(|range| MemoryRange {
        base: range.base,
        len: range.len,
        kind: match range.kind {
            Kind::Usable => MemoryKind::Usable,
            Kind::AcpiTables => MemoryKind::AcpiReclaimable,
            Kind::AcpiStorage => MemoryKind::AcpiNvs,
            Kind::Bad => MemoryKind::Bad,
            Kind::Reserved | Kind::Other(_) => MemoryKind::Reserved,
        },
    });
    let (node_ranges, found) = node_ranges(acpi);
    let nodes = acpi.nodes().min(MAX_NODES);
    let distances: [u8; MAX_NODES * MAX_NODES] =
        core::array::from_fn(|at| acpi.distance(at / nodes, at % nodes));
    let cpus: [u8; MAX_CPUS] = core::array::from_fn(|id| {
        let node = acpi.node_of_cpu(cpu::apic_id(id)) as usize;
        if node < nodes { node as u8 } else { 0 }
    });
    let limits = ZoneLimits::default();
    let zones = ZoneLimits { dma_end: limits.dma_end.min(highmem_from()), normal_end: highmem_from() };
    let one_node = Config { zones, cpus: &[0; MAX_CPUS][..cpu::online()], ..Config::default() };
    let with_nodes = Config {
        zones,
        nodes: &node_ranges[..found],
        distances: &distances[..nodes * nodes],
        cpus: &cpus[..cpu::online()],
        ..Config::default()
    };
    // What the firmware says of nodes may be nonsense; without it the map alone decides.
    let (config, plan) = match Plan::new(map.clone(), &with_nodes) {
        Ok(plan) => (with_nodes, plan),
        Err(error) => {
            println!("kernmm: {error}; going on without nodes");
            let plan = Plan::new(map.clone(), &one_node).expect("kernmm takes the firmware's map");
            (one_node, plan)
        }
    };
    let vm_limits = VmLimits::for_frames(plan.managed_pages());
    let for_vm = vm_limits.layout(&plan).size();
    // SAFETY: the caller vouches that the map's usable frames are free; it is used once.
    let map = unsafe { MemoryMap::new(&MACHINE, map) };
    #[cfg(feature = "check")]
    {
        let root = Pfn::new(paging::kernel_root() / PAGE_SIZE_U64);
        let expected = Expected { cpus: cpu::online(), direct_map_end: highmem_from(), root };
        check_platform(&map, expected).expect("the platform keeps its promises");
        println!("kernmm: the platform keeps its promises");
    }
    let (frames, for_vm) = Memory::boot_in_map_with_room(map, &config, Options::default(), for_vm)
        .expect("kernmm takes the firmware's map");
    let for_metadata = plan.managed_pages() - frames.phys().managed_pages();
    println!("kernmm: {} pages managed, {for_metadata} for metadata", frames.phys().managed_pages());
    let frames = FRAMES.call_once(|| frames);
    // SAFETY: the frames were booted with a pin of this machine, and are used by nobody else.
    let source = HeapFrames(unsafe { NoReclaim::new(frames.phys(), &MACHINE) });
    // SAFETY: these are all frames of this machine, and neither they nor the machine are ever given up.
    unsafe { HEAP.init(source) }.expect("there is RAM for the heap's own data");
    frames.register_shrinker(&HeapShrinker).expect("it is the first");
    let mut vm: VirtualMemory =
        Vm::new(frames, &vm_limits, Sysctl::default(), for_vm).expect("there is RAM for a page of zeros");
    // Every process gets the upper half of the tables that the kernel runs on: what is entered in their root is in place now.
    let boot = Pfn::new(paging::kernel_root() / PAGE_SIZE_U64).expect("a root lies in RAM");
    vm.adopt_kernel_half(boot, X86_64::VMALLOC).expect("nothing of the kernel's lies where vmalloc does");
    let vm = VIRTUAL.call_once(|| vm);
    frames.register_shrinker(vm).expect("it is the second");
}

/// What SRAT says of memory, as kernmm wants it, and the number of ranges.
fn node_ranges(acpi: &Acpi) -> ([NodeRange; MAX_NODE_RANGES], usize) {
    let mut ranges = [NodeRange { base: 0, len: 0, node: 0 }; MAX_NODE_RANGES];
    let mut found = 0;
    for (range, memory) in ranges.iter_mut().zip(acpi.memory()) {
        // A node above 255 is refused by kernmm like any that is too high.
        *range = NodeRange {
            base: memory.base,
            len: memory.len,
            node: u8::try_from(memory.node).unwrap_or(u8::MAX),
        };
        found += 1;
    }
    (ranges, found)
}

/// Gives back what other CPUs ask of this one; in the handler of their kick.
pub fn serve() {
    if let Some(frames) = frames() {
        frames.serve();
    }
    if let Some((slabs, source)) = HEAP.get() {
        slabs.serve(source);
    }
}

/// Lets other CPUs have what this one keeps, until it allocates again; before it sleeps.
pub fn idle() {
    if let Some((slabs, source)) = HEAP.get() {
        slabs.idle(source);
    }
    if let Some(frames) = frames() {
        frames.idle();
    }
}

/// What a recount counts in: a place for each frame.
#[cfg(feature = "check")]
static TALLIES: spin::Mutex<alloc::vec::Vec<FrameTally>> = spin::Mutex::new(alloc::vec::Vec::new());

/// Makes room for [`check`].
#[cfg(feature = "check")]
pub fn prepare_check() {
    *TALLIES.lock() = alloc::vec![FrameTally::default(); vm().source().phys().slots()];
}

/// Recounts everything: frames, slabs, tables, pages, address spaces. Nobody changes anything meanwhile.
///
/// # Panics
/// If something is wrong.
#[cfg(feature = "check")]
pub fn check() {
    let processes = crate::process::all();
    let spaces: alloc::vec::Vec<_> = processes.iter().map(|process| process.space()).collect();
    let mut own = crate::thread::stacks();
    own.extend(HEAPS_OWN.get());
    own.sort_unstable();
    let held = |pfn| u32::from(own.binary_search(&pfn).is_ok());
    let mut tallies = TALLIES.lock();
    if let Some((slabs, source)) = HEAP.get() {
        slabs.check(source).expect("the heap's invariants hold");
    }
    vm().source().check().expect("the invariants of frames hold");
    vm().check(&spaces, held, &mut tallies).expect("the invariants of virtual memory hold");
}

/// Frames by what they are used for, after everything that keeps some for later has given them back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owners {
    /// Free, in lists of any kind.
    pub free: u64,
    /// Slabs of the heap, and its large blocks.
    pub heap: u64,
    /// Page tables, the kernel's among them.
    pub tables: u64,
    /// Anonymous memory of processes.
    pub anonymous: u64,
    /// Pages of files and of shared memory: the page cache.
    pub files: u64,
    /// All others: stacks of the kernel, the page of zeros.
    pub other: u64,
}

/// Frames of the heap.
fn heap_pages() -> u64 {
    HEAP.get().map_or(0, |(slabs, source)| {
        slabs.large_pages() + slabs.infos(source).map(|cache| cache.num_pages).sum::<u64>()
    })
}

/// What `vmstat` and `meminfo` show, the kernel's heap among it: it is a slab allocator of its own, of which the library's reports know nothing.
pub fn counters() -> Counters {
    let mut counters = vm().counters();
    counters.nr_slab_unreclaimable += heap_pages();
    counters
}

/// Counts frames by owner. The page cache of files without users, slabs without objects and the lists of the CPUs are emptied first, through their own calls.
pub fn owners() -> Owners {
    let frames = frames().expect("memory comes first");
    while vm().cache().reap(frames) != 0 {
        crate::sched::yield_now();
    }
    if let Some((slabs, source)) = HEAP.get() {
        slabs.shrink(source);
    }
    let heap = heap_pages();
    frames.phys().drain_all(&frames.pin());
    let free = frames.phys().free_pages_total();
    let vm = vm().counters().vm.unwrap_or_default();
    let (tables, anonymous, files) = (vm.nr_page_table_pages, vm.nr_anon_pages, vm.nr_file_pages);
    let other = frames.phys().managed_pages() - free - heap - tables - anonymous - files;
    Owners { free, heap, tables, anonymous, files, other }
}
