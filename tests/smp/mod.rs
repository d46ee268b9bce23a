//! Processes on several CPUs, with a say at each moment at which one CPU may be overtaken by another: before interrupts are masked, which they are
//! before each spin lock, after they are unmasked, before each CPU of a flush forgets, before each access of a program.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]
#![allow(clippy::allow_attributes, reason = "expect would fail in the binary that uses all of it")]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use kernmm::addr::{PageOrder, Pfn, VirtAddr};
use kernmm::fault::FrameTally;
use kernmm::flags::{MapFlags, Prot};
use kernmm::memory::{File, Memory, Options, Process, Refused, Vm, VmLimits};
use kernmm::mm::Sysctl;
use kernmm::phys::{Config, DeferredBound, Merging, Plan, WatermarkConfig, ZoneLimits};
use kernmm::platform::hosted::{Disk, Machine, MmuFault};
use kernmm::platform::{CpuId, CpuMask, Kick, MemoryKind, MemoryMap, MemoryRange, Platform, TlbFlush};
use kernmm::syscall::MmapArgs;
use lock_api::RawRwLock;

pub const PAGE: u64 = 4096;
pub const AT: u64 = 0x10_0000_0000;
pub const CPUS: usize = 3;
pub const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Who decides which CPU runs.
pub trait Schedule: Sync {
    /// The CPU that the caller runs as.
    fn cpu(&self, machine: &Machine) -> CpuId;
    /// Another CPU may run here.
    fn point(&self, cpu: CpuId);
    /// The caller waits for another CPU.
    fn relax(&self);
    /// The caller waits for a store, or for faults.
    fn wait_until(&self, done: &dyn Fn() -> bool) {
        while !done() {
            self.relax();
        }
    }
    /// Whoever does is to ask again.
    fn wake_waiters(&self) {}
    /// All CPUs have forgotten what they were to.
    fn flushed(&self) {}
}

/// A machine whose CPUs a [`Schedule`] drives.
pub struct Smp<'m, C> {
    pub machine: &'m Machine,
    pub schedule: C,
    running: [AtomicU32; CPUS],
}

impl<'m, C: Schedule> Smp<'m, C> {
    pub fn new(machine: &'m Machine, schedule: C) -> Self {
        Self { machine, schedule, running: Default::default() }
    }

    fn here(&self) -> CpuId {
        self.schedule.cpu(self.machine)
    }

    /// Runs what the machine does in one piece.
    fn at_once<R>(&self, work: impl FnOnce(&Machine) -> R) -> R {
        self.machine.run_on(self.here(), || work(self.machine)).unwrap()
    }

    /// Also with interrupts masked: other CPUs run on.
    fn point(&self) {
        self.schedule.point(self.here());
    }

    /// Runs `work`, a thread's, as a CPU that is halted before and after.
    pub fn run<R>(&self, cpu: CpuId, work: impl FnOnce() -> R) -> R {
        self.running[cpu.index()].store(1, SeqCst);
        let result = work();
        self.running[cpu.index()].store(0, SeqCst);
        result
    }
}

// SAFETY: frames and CPUs are the machine's; a thread that runs as a CPU is the only one, and there are no interrupts. A CPU is halted
// that no thread runs as, and none begins to while another allocates.
unsafe impl<C: Schedule> Platform for Smp<'_, C> {
    fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        self.machine.direct_map(pfn)
    }

    fn irq_save(&self) -> usize {
        self.point();
        0
    }

    unsafe fn irq_restore(&self, _: usize) {
        self.point();
    }

    fn cpu_id(&self) -> CpuId {
        self.here()
    }

    fn kick(&self, cpu: CpuId) -> Kick {
        if self.running[cpu.index()].load(SeqCst) == 0 { Kick::Halted } else { Kick::Sent }
    }

    fn relax(&self) {
        self.schedule.relax();
    }

    fn wait_until(&self, done: &dyn Fn() -> bool) {
        self.schedule.wait_until(done);
    }

    fn wake_waiters(&self) {
        self.schedule.wake_waiters();
    }

    fn switch_tables(&self, pgd: Option<Pfn>) {
        self.at_once(|machine| machine.switch_tables(pgd));
    }

    fn tables(&self) -> Option<Pfn> {
        self.at_once(|machine| machine.tables())
    }

    fn keeps_tables_apart(&self) -> bool {
        self.machine.keeps_tables_apart()
    }

    fn flush_tlb(&self, cpus: &CpuMask, flush: &TlbFlush) {
        for cpu in cpus.iter() {
            self.point();
            let mut one = CpuMask::EMPTY;
            assert!(one.insert(cpu));
            self.at_once(|machine| machine.flush_tlb(&one, flush));
        }
        self.schedule.flushed();
    }

    fn frames_freed(&self, pfn: Pfn, order: PageOrder) {
        let reached = self.machine.reached_by(pfn, order);
        assert_eq!(reached, None, "frame {pfn:?} of order {order:?} freed while it is reached");
    }
}

pub type Mem<'m, C> = Memory<'m, Smp<'m, C>>;
pub type Machinery<'a, 'm, C> = Vm<'a, Mem<'m, C>>;
pub type Proc<'v, 'a, 'm, C, L> = Process<'v, 'a, Mem<'m, C>, kernmm::table::X86_64, L>;
pub type Opened<'v, 'a, 'm, C> = File<'v, 'a, Mem<'m, C>>;

/// A machine of 1 MiB and three CPUs.
pub fn machine() -> Machine {
    machine_of(256)
}

/// The same with so many pages of RAM.
pub fn machine_of(pages: u64) -> Machine {
    let ram = [MemoryRange { base: 0, len: pages * PAGE, kind: MemoryKind::Usable }];
    Machine::with_map(ram).cpus(CPUS).build().unwrap()
}

/// A file of two pages on the disk, each byte 1.
pub const INODE: u64 = 3;

/// Boots, runs `test` as the first CPU, and recounts everything.
pub fn boot<'m, C: Schedule + 'm, L: RawRwLock>(
    smp: &'m Smp<'m, C>,
    test: impl for<'a> FnOnce(&Machinery<'a, 'm, C>, &'a Disk<'m>),
) {
    let disk = Disk::new(smp.machine);
    disk.put(INODE, &[1; 2 * PAGE as usize]);
    boot_with::<C, L, _>(smp, &disk, test);
}

/// The same with another store.
pub fn boot_with<'m, C: Schedule + 'm, L: RawRwLock, D>(
    smp: &'m Smp<'m, C>,
    disk: &D,
    test: impl for<'a> FnOnce(&Machinery<'a, 'm, C>, &'a D),
) {
    smp.run(CpuId::BOOT, || {
        let config = Config {
            zones: ZoneLimits { dma_end: Pfn::ZERO, normal_end: Pfn::MAX },
            nodes: &[],
            distances: &[],
            cpus: &[0; CPUS],
            merging: Merging::Deferred,
            deferred_bound: DeferredBound::Pages(4),
            batch: Some(4),
            watermarks: WatermarkConfig::NONE,
        };
        let plan = Plan::new(smp.machine.map(), &config).unwrap();
        let metadata = smp.machine.set_aside(Mem::<C>::metadata_layout(&plan, &config));
        // SAFETY: nobody else uses the machine's frames.
        let map = unsafe { MemoryMap::new(smp, smp.machine.map()) };
        let memory = Memory::boot(map, &config, Options::default(), metadata).unwrap();
        let limits = VmLimits { vmas: 32, spaces: 6, files: 4, areas: 1 };
        let room = smp.machine.set_aside(Machinery::<C>::metadata_layout(memory.phys(), &limits));
        let vm: Machinery<'_, '_, C> = Vm::new(&memory, &limits, Sysctl::default(), room).unwrap();
        let free = || {
            memory.phys().drain_all(&memory.pin());
            memory.phys().free_pages_total()
        };
        let before = free();
        test(&vm, disk);
        while vm.cache().reap(&memory) != 0 {}
        assert_eq!(free(), before, "frames were lost");
        sound::<C, L>(&vm, &[]);
    });
}

/// Recounts everything, and looks for translations that no table has any more.
pub fn sound<'v, 'a, 'm, C: Schedule, L: RawRwLock>(
    vm: &'v Machinery<'a, 'm, C>,
    processes: &[&Proc<'v, 'a, 'm, C, L>],
) {
    let mut tallies = vec![FrameTally::new(); vm.source().phys().slots()];
    vm.check(processes, |_| 0, &mut tallies).unwrap();
    vm.source().check().unwrap();
    assert_eq!(vm.source().platform().machine.stale_translation(), None);
}

pub fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

/// Maps anonymous memory at a place.
pub fn map<C: Schedule, L: RawRwLock>(
    process: &Proc<'_, '_, '_, C, L>,
    addr: u64,
    pages: u64,
    flags: MapFlags,
) {
    let flags = flags | MapFlags::ANONYMOUS | MapFlags::FIXED;
    let args = MmapArgs { addr, len: pages * PAGE, prot: RW, flags, file: Ok(None), offset: 0 };
    process.mmap(&args).unwrap();
}

/// Maps a file from its first page on.
pub fn map_file<C: Schedule, L: RawRwLock>(
    process: &Proc<'_, '_, '_, C, L>,
    addr: u64,
    pages: u64,
    file: &Opened<'_, '_, '_, C>,
    flags: MapFlags,
) {
    let flags = flags | MapFlags::FIXED;
    let args =
        MmapArgs { addr, len: pages * PAGE, prot: RW, flags, file: Ok(Some(file.map_file())), offset: 0 };
    process.mmap(&args).unwrap();
}

/// Makes an access as a program does, until it needs no fault any more.
fn access<C: Schedule, L: RawRwLock, R>(
    process: &Proc<'_, '_, '_, C, L>,
    access: impl Fn(&Machine) -> Result<R, MmuFault>,
) -> Result<R, Refused> {
    let smp = process.vm().source().platform();
    loop {
        smp.point();
        if smp.tables().is_none() {
            process.activate().unwrap();
        }
        let fault = match smp.at_once(&access) {
            Ok(done) => return Ok(done),
            Err(fault) => fault,
        };
        process.fault(fault.addr, fault.access)?;
    }
}

/// Makes the caller's CPU walk the tables of this process.
pub fn enter<C: Schedule, L: RawRwLock>(process: &Proc<'_, '_, '_, C, L>) {
    process.activate().unwrap();
}

pub fn load<C: Schedule, L: RawRwLock>(process: &Proc<'_, '_, '_, C, L>, addr: u64) -> Result<u8, Refused> {
    access(process, |machine| {
        let mut byte = [0];
        machine.load(at(addr), &mut byte).map(|()| byte[0])
    })
}

pub fn store<C: Schedule, L: RawRwLock>(
    process: &Proc<'_, '_, '_, C, L>,
    addr: u64,
    byte: u8,
) -> Result<(), Refused> {
    access(process, |machine| machine.store(at(addr), &[byte]))
}
