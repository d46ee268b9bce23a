//! Real threads on one allocator: a CPU each, random calls, blocks that change hands. No frame has two owners, and in the end
//! nothing is missing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::thread;

use kernmm::addr::{PageOrder, Pfn};
use kernmm::flags::GfpFlags;
use kernmm::memory::{Memory, Options};
use kernmm::phys::{AllocError, Config, DeferredBound, FreeError, Merging, Phys, WatermarkConfig};
use kernmm::platform::hosted::Machine;
use kernmm::platform::{CpuId, CpuPin, Platform};

#[path = "common/mod.rs"]
mod common;

const CPUS: u32 = 3;
const RAM: u64 = 24 << 20;

const GFP: [GfpFlags; 4] = [
    GfpFlags::KERNEL,
    GfpFlags::HIGHUSER_MOVABLE,
    GfpFlags::ATOMIC,
    GfpFlags::NOFS.union(GfpFlags::RECLAIMABLE),
];

type Block = (Pfn, PageOrder);

/// What all threads know.
struct Shared<'m> {
    phys: &'m Phys<'m>,
    /// Who owns a frame: 0 for nobody, else the CPU's number plus one.
    owners: Vec<AtomicU8>,
    /// Blocks that one CPU allocated and another is to free.
    handed_over: Mutex<Vec<Block>>,
    served: AtomicU64,
    failed: AtomicU64,
}

impl Shared<'_> {
    /// Notes that a block has a new owner, or none; who owned it until now.
    fn own(&self, (pfn, order): Block, from: u8, to: u8) {
        let first = pfn.get() as usize;
        for (at, owner) in self.owners[first..first + order.pages() as usize].iter().enumerate() {
            let before = owner.swap(to, Relaxed);
            assert_eq!(before, from, "frame {} of order {}", first + at, order.get());
        }
    }
}

/// One CPU's part.
struct Worker<'a, 'm> {
    shared: &'a Shared<'m>,
    random: common::Random,
    me: u8,
    held: Vec<Block>,
}

impl Worker<'_, '_> {
    fn step(&mut self, pin: &CpuPin<'_>) {
        match self.random.below(100) {
            0..48 => self.alloc(pin),
            48..88 => self.free(pin),
            88..92 => self.hand_over(),
            92..96 => self.take_over(pin),
            96 => self.shared.phys.idle(pin),
            97 => self.shared.phys.serve(pin),
            98 => self.tune(pin),
            _ => self.shared.phys.drain_own(pin),
        }
    }

    fn alloc(&mut self, pin: &CpuPin<'_>) {
        let gfp = GFP[self.random.below(GFP.len() as u64) as usize];
        let order = match self.random.below(16) {
            0 => self.random.below(10) as u8,
            1..4 => self.random.below(4) as u8,
            _ => 0,
        };
        let order = PageOrder::new(order).unwrap();
        match self.shared.phys.alloc_pages(pin, gfp, order) {
            Ok(pfn) => {
                self.shared.own((pfn, order), 0, self.me);
                self.held.push((pfn, order));
                self.shared.served.fetch_add(1, Relaxed);
            }
            Err(error) => {
                assert_eq!(error, AllocError::OutOfMemory);
                self.shared.failed.fetch_add(1, Relaxed);
                // Makes room, so that the machine is full now and then and not always.
                for _ in 0..self.held.len() / 2 {
                    self.free(pin);
                }
            }
        }
    }

    fn free(&mut self, pin: &CpuPin<'_>) {
        if self.held.is_empty() {
            return;
        }
        let at = self.random.below(self.held.len() as u64) as usize;
        self.give_back(pin, self.held[at]);
        self.held.swap_remove(at);
    }

    fn give_back(&self, pin: &CpuPin<'_>, (pfn, order): Block) {
        let other = if order == PageOrder::ZERO { PageOrder::MAX } else { PageOrder::ZERO };
        let wrong = self.shared.phys.free_pages(pin, pfn, other);
        assert!(matches!(wrong, Err(FreeError::WrongOrder(_))), "{pfn:?} {wrong:?}");
        self.shared.own((pfn, order), self.me, 0);
        assert_eq!(self.shared.phys.free_pages(pin, pfn, order), Ok(()));
    }

    fn hand_over(&mut self) {
        if let Some(block) = self.held.pop() {
            self.shared.own(block, self.me, u8::MAX);
            self.shared.handed_over.lock().unwrap().push(block);
        }
    }

    fn take_over(&mut self, pin: &CpuPin<'_>) {
        let block = self.shared.handed_over.lock().unwrap().pop();
        if let Some(block) = block {
            self.shared.own(block, u8::MAX, self.me);
            self.give_back(pin, block);
        }
    }

    /// Changes a setting, which empties lists of all CPUs.
    fn tune(&mut self, pin: &CpuPin<'_>) {
        let phys = self.shared.phys;
        match self.random.below(8) {
            0 => phys.set_batch(pin, [None, Some(0), Some(4)][self.random.below(3) as usize]),
            1 => phys.set_deferred_bound(pin, DeferredBound::Pages(self.random.below(200))),
            2 => {
                phys.set_merging(pin, [Merging::Deferred, Merging::Immediate][self.random.below(2) as usize])
            }
            3 => phys.coalesce(pin),
            4 => phys.drain_all(pin),
            _ => phys.set_merging(pin, Merging::Deferred),
        }
    }
}

#[test]
fn threads_share_one_allocator_and_no_frame_has_two_owners() {
    let steps = match (common::long(), cfg!(debug_assertions)) {
        (true, _) => 20_000_000,
        (false, true) => 40_000,
        (false, false) => 400_000,
    };
    let machine = Machine::pc(RAM).cpus(CPUS as usize).build().unwrap();
    let boot_cpu = machine.cpu(CpuId::BOOT).unwrap();
    let config = Config { watermarks: WatermarkConfig::NONE, ..Config::from(&machine) };
    let memory = Memory::on_with(&machine, &config, Options::default()).unwrap();
    let at_boot = memory.buddyinfo().to_string();
    drop(boot_cpu);
    let shared = Shared {
        phys: memory.phys(),
        owners: (0..RAM >> 12).map(|_| AtomicU8::new(0)).collect(),
        handed_over: Mutex::default(),
        served: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    };
    thread::scope(|scope| {
        for cpu in 0..CPUS {
            let (shared, machine) = (&shared, &machine);
            scope.spawn(move || {
                let _cpu = machine.cpu(CpuId(cpu)).unwrap();
                let random = common::Random::new(u64::from(cpu) + 1);
                let mut worker = Worker { shared, random, me: cpu as u8 + 1, held: vec![] };
                for _ in 0..steps {
                    worker.step(&machine.pin());
                }
                while !worker.held.is_empty() {
                    worker.free(&machine.pin());
                }
            });
        }
    });
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let pin = machine.pin();
    let phys = memory.phys();
    for (pfn, order) in shared.handed_over.into_inner().unwrap() {
        assert_eq!(phys.free_pages(&pin, pfn, order), Ok(()));
    }
    phys.drain_all(&pin);
    assert_eq!(phys.check(&pin), Ok(()));
    assert_eq!(phys.free_pages_total(), phys.managed_pages());
    drop(pin);
    assert_eq!(memory.buddyinfo().to_string(), at_boot);
    let (served, failed) = (shared.served.into_inner(), shared.failed.into_inner());
    println!("{served} served, {failed} failed");
    assert!(served > steps && failed > 0, "{served} served, {failed} failed");
}
