//! All RAM, given to kernmm: the firmware's map, the nodes, the CPUs.

use kernmm::phys::{Config, MAX_NODES, MemoryKind, MemoryRange, NoReclaim, NodeRange, Phys};
use kernmm::platform::Platform;
use kernmm::slab::GlobalHeap;
use spin::Once;

use crate::acpi::Acpi;
use crate::cpu::{self, MAX_CPUS};
use crate::platform::{MACHINE, Machine};
use crate::println;
use crate::pvh::{Kind, Range};

/// Node ranges that are kept; what none of them names belongs to node 0.
const MAX_NODE_RANGES: usize = 64;

static PHYS: Once<Phys<'static>> = Once::new();

/// kmalloc: the kernel's `Box`, `Vec` and all else of `alloc`, from [`init`] on.
#[global_allocator]
pub static HEAP: GlobalHeap<NoReclaim<'static, Machine>> = GlobalHeap::new();

/// The frames; `None` until [`init`] is done.
pub fn phys() -> Option<&'static Phys<'static>> {
    PHYS.get()
}

/// Builds the allocator of all RAM that the firmware calls usable and the kernel does not use itself.
///
/// # Panics
/// If kernmm rejects the firmware's map.
///
/// # Safety
/// `used` is all usable RAM that anybody uses, now or later, without asking kernmm for it.
pub unsafe fn init(ranges: &[Range], used: Range, acpi: &Acpi) {
    let map = ranges.iter().chain([&used]).map(|range| MemoryRange {
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
    let one_node = Config { cpus: &[0; MAX_CPUS][..cpu::online()], ..Config::default() };
    let with_nodes = Config {
        nodes: &node_ranges[..found],
        distances: &distances[..nodes * nodes],
        cpus: &cpus[..cpu::online()],
        ..Config::default()
    };
    let pin = MACHINE.pin();
    // SAFETY: the caller vouches that the map's usable frames are free; `paging::map_ram` has mapped them all.
    let build = |config| unsafe { Phys::init_in_map(&pin, map.clone(), config) };
    let built = build(&with_nodes).or_else(|error| {
        println!("kernmm: {error}; going on without nodes");
        build(&one_node)
    });
    let (phys, metadata) = built.expect("kernmm takes the firmware's map");
    println!("kernmm: {} pages managed, {} for metadata", phys.managed_pages(), metadata.len());
    let phys = PHYS.call_once(|| phys);
    drop(pin);
    // SAFETY: the frames were booted with a pin of this machine, and are used by nobody else.
    let source = unsafe { NoReclaim::new(phys, &MACHINE) };
    // SAFETY: these are all frames of this machine, and neither they nor the machine are ever given up.
    unsafe { HEAP.init(source) }.expect("there is RAM for the heap's own data");
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
    if let Some(phys) = phys() {
        phys.serve(&MACHINE.pin());
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
    if let Some(phys) = phys() {
        phys.idle(&MACHINE.pin());
    }
}
