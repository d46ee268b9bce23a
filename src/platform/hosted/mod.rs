//! A simulated machine: RAM, nodes and CPUs in a process of an operating system, for tests and for fuzzing.
//!
//! ```
//! use kernmm::platform::hosted::Machine;
//! use kernmm::platform::{CpuId, Platform};
//!
//! let machine = Machine::pc(64 << 20).cpus(2).build()?;
//! let boot = machine.cpu(CpuId::BOOT)?;
//! let second = machine.cpu(CpuId(1))?;
//! assert_eq!(machine.pin().cpu(), CpuId::BOOT);
//! assert_eq!(second.run(|| machine.pin().cpu()), CpuId(1));
//! # drop(boot);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **RAM** has any size: the host gives memory for what is touched. The map is a PC's, with its holes, or one of your own.
//!
//! **CPUs are threads.** A thread [claims](Machine::cpu) a CPU before it calls into the library, and runs as it until the guard is
//! dropped. One thread may have several CPUs and [switch](CpuGuard::run) between them, which makes tests of several CPUs
//! deterministic. A CPU that nobody claimed is halted, and so, for as long as a thread runs as one of its CPUs, are its others:
//! [`kick`](Platform::kick) lets the kicking CPU serve in their place, and nobody claims them before it is done. A CPU claimed by
//! another thread is running: it sees a kick at its next allocation or free, or asks by [`poll`](Machine::poll) whether there was one.
//!
//! **HIGHMEM is real.** Frames [above the direct map](MachineBuilder::highmem_from) have no address at all but in one of the eight kmap slots that each CPU
//! has. On Linux an open slot is a shared mapping of the frame, so several CPUs may have one frame open and see each other's writes; an address
//! is not used again for the next 64 openings of its slot, and a touch of it after `kunmap`, or beyond the frame's end, ends the process. On
//! other systems the frame's bytes move to a buffer while it is open (all who have it open share it), and a write to a closed one ends the process when
//! the buffer's turn comes again. Opening an open slot or closing a closed one ends the process too. Slots that are still open when
//! the CPU's last pin goes [are counted](Machine::kmap_leaks): nobody will ever close them.
//!
//! **User code touches memory through page tables.** [`load`](Machine::load), [`store`](Machine::store) and [`fetch`](Machine::fetch) walk the real tables, in
//! the machine's RAM, as the CPU that the thread runs as. Each CPU keeps the translations that it has found until it is told to forget
//! them, and a frame that is freed while one leads there ends the run: a missing flush is found when it happens.
//!
//! **Files** come from a [`Disk`] that is slow, fails and loses power as a test asks it to, or are [those of the host](HostFiles).

mod cpus;
mod disk;
mod host_files;
#[cfg(all(target_os = "linux", not(miri)))]
mod linux;
mod map;
mod mmu;
#[cfg(any(test, not(target_os = "linux"), miri))]
mod portable;
mod ram;

use std::alloc::Layout;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel};
use std::sync::{Mutex, MutexGuard};

pub use disk::{Disk, Failure, Files, Latency, Operation, Request, Room, Stage, Unsafe};
pub use host_files::HostFiles;
pub use mmu::{AccessedDirty, Asids, FaultKind, LoseFlushes, Mmu, MmuFault, ReachedBy, Stale};

use super::{CpuId, CpuMask, Kick, MemoryMap, MemoryRange, NodeRange, Platform, TlbFlush};
use crate::addr::{PageOrder, Pfn, PhysAddr};

use cpus::Cpus;
use mmu::Unit;
use ram::Ram;

/// kmap slots of each CPU.
pub const KMAP_SLOTS: u32 = 8;
/// The most CPUs.
const MAX_CPUS: usize = 4096;
/// The distance to another node.
const REMOTE: u8 = 20;
/// The distance to the own node.
const LOCAL: u8 = 10;

/// Why no machine was built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MachineError {
    /// A range of the map ends beyond 2^52.
    RangeTooHigh,
    /// No CPU, or more than 4096, or no node.
    BadCount,
    /// The host has no addresses or memory for the RAM.
    NoHostMemory,
}

impl std::fmt::Display for MachineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::RangeTooHigh => "a range of the memory map ends beyond 2^52",
            Self::BadCount => "no CPU or no node, or too many",
            Self::NoHostMemory => "the host has no memory for the machine's",
        })
    }
}

impl std::error::Error for MachineError {}

/// Why a CPU was not claimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ClaimError {
    /// The machine has no such CPU.
    UnknownCpu,
    /// A thread has claimed it, or a pin of this thread keeps it halted.
    Busy,
}

impl std::fmt::Display for ClaimError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::UnknownCpu => "the machine has no such CPU",
            Self::Busy => "the CPU is in use",
        })
    }
}

impl std::error::Error for ClaimError {}

/// What a machine will be.
#[derive(Clone, Debug)]
#[must_use]
pub struct MachineBuilder {
    map: Vec<MemoryRange>,
    cpus: usize,
    nodes: u8,
    highmem_from: Pfn,
    mmu: Mmu,
    asids: Asids,
    accessed_dirty: AccessedDirty,
}

impl MachineBuilder {
    /// How many CPUs; 1 if nothing is said.
    pub fn cpus(mut self, count: usize) -> Self {
        self.cpus = count;
        self
    }

    /// How many nodes share RAM and CPUs in equal parts; 1 if nothing is said.
    pub fn nodes(mut self, count: u8) -> Self {
        self.nodes = count;
        self
    }

    /// Where the direct map ends: the frame of this address and all above are HIGHMEM. None are if nothing is said.
    pub fn highmem_from(mut self, end: PhysAddr) -> Self {
        self.highmem_from = end.pfn();
        self
    }

    /// Which page tables the CPUs walk; those of x86-64 if nothing is said.
    pub fn mmu(mut self, format: Mmu) -> Self {
        self.mmu = format;
        self
    }

    /// Whether the CPUs keep translations of tables that they have left; they do if nothing is said.
    pub fn asids(mut self, asids: Asids) -> Self {
        self.asids = asids;
        self
    }

    /// Who notes that pages were used and written; the CPUs if nothing is said.
    pub fn accessed_dirty(mut self, by: AccessedDirty) -> Self {
        self.accessed_dirty = by;
        self
    }

    /// Builds the machine.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn build(self) -> Result<Machine, MachineError> {
        if !(1..=MAX_CPUS).contains(&self.cpus) || self.nodes == 0 {
            return Err(MachineError::BadCount);
        }
        let nodes = map::nodes(&self.map, self.nodes).ok_or(MachineError::RangeTooHigh)?;
        let banks = map::banks(&self.map, self.highmem_from).ok_or(MachineError::RangeTooHigh)?;
        let slots = self.cpus * KMAP_SLOTS as usize;
        let ram = Ram::new(&banks, self.highmem_from, slots).ok_or(MachineError::NoHostMemory)?;
        let count = usize::from(self.nodes);
        let distance = |at: usize| if at / count == at % count { LOCAL } else { REMOTE };
        Ok(Machine {
            distances: (0..count * count).map(distance).collect(),
            cpu_nodes: (0..self.cpus).map(|cpu| (cpu * count / self.cpus) as u8).collect(),
            map: self.map,
            nodes,
            highmem_from: self.highmem_from,
            ram,
            cpus: Cpus::new(self.cpus),
            mmu: Unit::new(self.mmu, self.asids, self.accessed_dirty, self.cpus),
            booted: AtomicBool::new(false),
            aside: Mutex::default(),
            reports: Mutex::default(),
        })
    }
}

/// A simulated machine.
#[derive(Debug)]
pub struct Machine {
    map: Vec<MemoryRange>,
    nodes: Vec<NodeRange>,
    distances: Vec<u8>,
    cpu_nodes: Vec<u8>,
    highmem_from: Pfn,
    ram: Ram,
    cpus: Cpus,
    mmu: Unit,
    booted: AtomicBool,
    /// Memory apart from the RAM that was asked for.
    aside: Mutex<Vec<Box<[Line]>>>,
    reports: Mutex<String>,
}

/// A cache line, to allocate memory that is aligned to one.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "only its size and alignment matter")] MaybeUninit<[u8; 64]>);

impl Machine {
    /// A machine with the memory map of a PC with so much RAM.
    pub fn pc(ram_bytes: u64) -> MachineBuilder {
        Self::with_map(map::pc(ram_bytes))
    }

    /// A machine with a memory map of your own. There is RAM behind all ranges that are neither reserved nor bad.
    pub fn with_map(map: impl IntoIterator<Item = MemoryRange>) -> MachineBuilder {
        let map = map.into_iter().collect();
        MachineBuilder {
            map,
            cpus: 1,
            nodes: 1,
            highmem_from: Pfn::MAX,
            mmu: Mmu::default(),
            asids: Asids::default(),
            accessed_dirty: AccessedDirty::default(),
        }
    }

    /// What the firmware reports of the RAM.
    pub fn map(&self) -> impl Iterator<Item = MemoryRange> + Clone + '_ {
        self.map.iter().copied()
    }

    /// The memory map with the right to use the frames; `None` if it was taken before, since two memory managers would both use
    /// them.
    pub fn take_map(&self) -> Option<MemoryMap<'_, Self, impl Iterator<Item = MemoryRange> + Clone + '_>> {
        // SAFETY: the map is given out once, and nobody but its taker gets at the machine's RAM by safe means.
        (!self.booted.swap(true, AcqRel)).then(|| unsafe { MemoryMap::new(self, self.map()) })
    }

    /// Which addresses belong to which node.
    pub fn nodes(&self) -> &[NodeRange] {
        &self.nodes
    }

    /// The distances between the nodes, row by row.
    pub fn distances(&self) -> &[u8] {
        &self.distances
    }

    /// The node of each CPU.
    pub fn cpu_nodes(&self) -> &[u8] {
        &self.cpu_nodes
    }

    /// The first frame above the direct map.
    pub fn highmem_from(&self) -> Pfn {
        self.highmem_from
    }

    /// Memory apart from the machine's RAM, as a boot loader would set it aside for the memory manager's metadata. It lives as long
    /// as the machine.
    ///
    /// # Panics
    /// If `layout` asks for an alignment above 64.
    #[expect(clippy::mut_from_ref, reason = "each call makes new memory")]
    pub fn set_aside(&self, layout: Layout) -> &mut [MaybeUninit<u8>] {
        assert!(layout.align() <= align_of::<Line>(), "memory is set aside in cache lines");
        let lines = vec![Line(MaybeUninit::uninit()); layout.size().div_ceil(64)];
        let mut aside = locked(&self.aside);
        aside.push(lines.into_boxed_slice());
        let lines = aside.last_mut().map_or(&mut [][..], |lines| lines);
        let (start, len) = (lines.as_mut_ptr().cast::<MaybeUninit<u8>>(), size_of_val(lines));
        // SAFETY: the lines lie in a box that stays where it is and is not touched again before the machine is dropped.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// Claims a CPU for this thread: it runs as that CPU until the guard is dropped, unless it has claimed another one before.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn cpu(&self, cpu: CpuId) -> Result<CpuGuard<'_>, ClaimError> {
        self.cpus.claim(cpu)?;
        Ok(CpuGuard { machine: self, cpu, not_send: PhantomData })
    }

    /// Claims all CPUs for this thread, which runs as the first. [`CpuGuard::run`] switches.
    ///
    /// # Errors
    /// [`ClaimError::Busy`].
    pub fn all_cpus(&self) -> Result<Vec<CpuGuard<'_>>, ClaimError> {
        (0..).map(CpuId).take(self.cpu_count()).map(|cpu| self.cpu(cpu)).collect()
    }

    /// Runs `work` as `cpu`, which is claimed for as long if this thread does not have it.
    ///
    /// # Errors
    /// [`ClaimError`]; `work` has not run.
    pub fn run_on<R>(&self, cpu: CpuId, work: impl FnOnce() -> R) -> Result<R, ClaimError> {
        let claimed = if self.cpus.is_own(cpu) { None } else { Some(self.cpu(cpu)?) };
        let result = self.switched(cpu, work);
        drop(claimed);
        Ok(result)
    }

    /// How many CPUs the machine has.
    pub fn cpu_count(&self) -> usize {
        self.cpus.count()
    }

    /// Whether another CPU kicked this one since it last asked. If so the caller is to do what an interrupt handler would: call
    /// [`Phys::serve`](crate::phys::Phys::serve).
    pub fn poll(&self) -> bool {
        self.cpus.take_kick(self.cpu_id())
    }

    /// How many kmap slots were left open when their CPU's last pin went.
    pub fn kmap_leaks(&self) -> u32 {
        self.cpus.leaked_slots()
    }

    /// What was reported since this was last asked.
    pub fn take_reports(&self) -> String {
        std::mem::take(&mut *locked(&self.reports))
    }

    fn switched<R>(&self, cpu: CpuId, work: impl FnOnce() -> R) -> R {
        /// Switches back, also when `work` unwinds.
        struct Back<'a>(&'a Cpus, Option<CpuId>);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                if let Some(before) = self.1.filter(|&before| self.0.is_own(before)) {
                    self.0.switch(before);
                }
            }
        }
        let _back = Back(&self.cpus, self.cpus.switch(cpu));
        work()
    }
}

/// A CPU claimed by the thread that has this.
///
/// It is dropped after all pins of the CPU: a machine check ends the process otherwise, since another thread could claim a CPU that a pin
/// still promises to this one.
#[derive(Debug)]
#[must_use = "the CPU is given up when the guard is dropped"]
pub struct CpuGuard<'a> {
    machine: &'a Machine,
    cpu: CpuId,
    not_send: PhantomData<*mut ()>,
}

impl CpuGuard<'_> {
    /// The CPU's number.
    pub fn id(&self) -> CpuId {
        self.cpu
    }

    /// Runs `work` as this CPU, whichever of its CPUs the thread ran as before.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        self.machine.switched(self.cpu, work)
    }
}

impl Drop for CpuGuard<'_> {
    fn drop(&mut self) {
        self.machine.cpus.release(self.cpu);
    }
}

/// What `irq_save` answers with: the CPU, so that the right one is unmasked after a switch, and how often it was masked before.
fn pack(cpu: CpuId, before: u32) -> usize {
    cpu.index() << 16 | before as usize
}

// SAFETY: each frame of the direct map has its own place in a bank's memory, in order. `cpu_id` is that of a CPU claimed by this
// thread alone, which it has until it drops the guard; as `CpuGuard` cannot leave the thread, nobody else runs as it. `kick`
// answers `Halted` for a CPU of this thread, which runs nothing else meanwhile, and for one that it has put on hold: until its own
// interrupts are unmasked nobody can claim that.
unsafe impl Platform for Machine {
    #[inline]
    fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        self.ram.direct_map(pfn)
    }

    #[inline]
    fn virt_to_pfn(&self, address: NonNull<u8>) -> Option<Pfn> {
        self.ram.virt_to_pfn(address)
    }

    fn irq_save(&self) -> usize {
        let cpu = self.cpu_id();
        pack(cpu, self.cpus.mask(cpu))
    }

    unsafe fn irq_restore(&self, flags: usize) {
        self.cpus.unmask(CpuId((flags >> 16) as u32));
    }

    /// # Panics
    /// If this thread has claimed no CPU of the machine.
    fn cpu_id(&self) -> CpuId {
        self.cpus.current().expect("this thread has claimed no CPU of the machine")
    }

    fn kick(&self, cpu: CpuId) -> Kick {
        self.cpus.kick(self.cpu_id(), cpu)
    }

    fn relax(&self) {
        std::thread::yield_now();
    }

    fn kmap_slots(&self) -> u32 {
        KMAP_SLOTS
    }

    fn kmap(&self, cpu: CpuId, slot: u32, pfn: Pfn) -> Option<NonNull<u8>> {
        let frame = self.ram.highmem(pfn)?;
        let Some(turn) = self.cpus.open_slot(cpu, slot) else {
            machine_check(format_args!("kmap slot {slot} of CPU {} opened twice", cpu.0));
        };
        let address = frame.open(window(cpu, slot), turn as usize);
        if address.is_none() {
            self.cpus.close_slot(cpu, slot);
        }
        address
    }

    fn kunmap(&self, cpu: CpuId, slot: u32) {
        let closed = self.cpus.close_slot(cpu, slot);
        if !closed.is_some_and(|turn| self.ram.close(window(cpu, slot), turn as usize)) {
            machine_check(format_args!("kmap slot {slot} of CPU {} closed twice", cpu.0));
        }
    }

    fn switch_tables(&self, pgd: Option<Pfn>) {
        self.mmu.switch(self.cpu_id(), pgd);
    }

    fn tables(&self) -> Option<Pfn> {
        Self::tables(self)
    }

    fn keeps_tables_apart(&self) -> bool {
        self.mmu.keeps_tables_apart()
    }

    fn flush_tlb(&self, cpus: &CpuMask, flush: &TlbFlush) {
        let own = self.cpus.current();
        // Other CPUs could not answer: they may wait for what this one keeps.
        if let Some(cpu) = own.filter(|&cpu| self.cpus.is_masked(cpu)) {
            machine_check(format_args!("CPU {} flushes translations with interrupts masked", cpu.0));
        }
        self.mmu.flush(cpus, flush, own);
    }

    fn frames_freed(&self, pfn: Pfn, order: PageOrder) {
        self.mmu.check_freed(pfn, order);
    }

    fn report(&self, text: std::fmt::Arguments<'_>) {
        use std::fmt::Write;
        let _ = locked(&self.reports).write_fmt(text);
    }
}

fn window(cpu: CpuId, slot: u32) -> usize {
    cpu.index() * KMAP_SLOTS as usize + slot as usize
}

/// Locks; what a panic left behind is as good as anything.
fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Ends the run: real hardware would have gone on with other bytes than those meant.
fn machine_check(what: std::fmt::Arguments<'_>) -> ! {
    eprintln!("machine check: {what}");
    std::process::abort();
}
