//! The memory management unit: user code's loads, stores and fetches go through the page tables in the machine's RAM.
//!
//! Each CPU keeps what it finds there: 1536 translations, and 128 tables on the way to them, each in sets of which the oldest goes first, so runs
//! repeat exactly. Both **stay until they are flushed**, however the tables change meanwhile, with two exceptions that hardware makes
//! too: an access that faults forgets what it used, and a store through a translation that was made without the dirty bit walks again to
//! set it.
//!
//! What CPUs remember is tagged with the root of the tables (address-space identifiers), unless [`Asids::Off`] was asked for: then loading
//! another root forgets all that is not global. With tags, a CPU must be told of changes to tables that it has left behind too.
//!
//! A flush of a page or a range forgets global translations as well, one of [all](FlushScope::All) does not: as `invlpg` and a load of CR3.
//!
//! A frame that goes back to the allocator while a CPU or a device still reaches it [ends the run](Platform::frames_freed), and so does a table
//! with bits set that are reserved.

mod flush;
mod format;
mod reach;
mod stale;
mod tlb;

pub use flush::LoseFlushes;
pub use format::Mmu;
pub use stale::Stale;
pub use tlb::ReachedBy;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use super::ram::Ram;
use super::{Machine, locked, machine_check};
use crate::addr::{PAGE_SIZE, PageOrder, Pfn, VirtAddr};
use crate::platform::{Access, CpuId, CpuMask, Platform, TlbFlush, Window};

#[cfg(doc)]
use crate::platform::FlushScope;

use flush::Flushes;
use format::{Mode, Rights, Seen, shift};
use reach::Reach;
use tlb::{Entry, Tlb};

/// Whether CPUs tell the translations of different tables apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Asids {
    /// They do, and keep those of tables that they do not walk now.
    #[default]
    On,
    /// They do not, and forget all but global ones when they are given other tables.
    Off,
}

/// Who notes in entries that a page was used, and written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum AccessedDirty {
    /// The CPU itself, as on x86, and RISC-V with Svadu.
    #[default]
    Hardware,
    /// The kernel: an access that the entry does not note yet is a page fault, as on RISC-V with Svade.
    Software,
}

/// What sort of fault the CPU raises.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum FaultKind {
    /// A page fault, to be handled by whoever keeps the tables.
    Page,
    /// No address of this machine: x86 raises a general protection fault, which does not tell the address.
    ///
    /// # Linux
    /// SIGSEGV with `si_code` `SI_KERNEL` and `si_addr` 0.
    NonCanonical,
    /// An atomic access across the end of a word.
    ///
    /// # Linux
    /// SIGBUS with `si_code` `BUS_ADRALN`, where the CPU cannot do it.
    Misaligned,
}

/// Why an access was not made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MmuFault {
    /// The first byte that could not be reached.
    #[doc(alias = "cr2")]
    pub addr: VirtAddr,
    /// What was tried.
    pub access: Access,
    /// Whether the page is there but must not be used like that.
    pub present: bool,
    /// What sort of fault this is.
    pub kind: FaultKind,
}

impl std::fmt::Display for MmuFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let why = match (self.kind, self.present) {
            (FaultKind::NonCanonical, _) => "no address",
            (FaultKind::Misaligned, _) => "misaligned",
            (_, true) => "not allowed",
            (_, false) => "not present",
        };
        write!(f, "{:?} at {:#x}: {why}", self.access, self.addr)
    }
}

impl std::error::Error for MmuFault {}

/// The units of all CPUs.
pub(super) struct Unit {
    format: Mmu,
    asids: Asids,
    accessed_dirty: AccessedDirty,
    tlbs: Box<[Mutex<Tlb>]>,
    reach: Reach,
    /// How often devices use each frame.
    devices: Mutex<HashMap<Pfn, u32>>,
    flushes: Flushes,
}

impl std::fmt::Debug for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unit")
            .field("format", &self.format)
            .field("asids", &self.asids)
            .finish_non_exhaustive()
    }
}

/// What a walk ends with if not with a page: whether an entry was there.
struct Denied {
    present: bool,
}

/// One step of a walk.
enum Step {
    Down(Pfn, Rights),
    Found { target: Pfn, rights: Rights, global: bool, dirty: bool },
}

impl Unit {
    pub(super) fn keeps_tables_apart(&self) -> bool {
        self.asids == Asids::On
    }

    pub(super) fn new(format: Mmu, asids: Asids, accessed_dirty: AccessedDirty, cpus: usize) -> Self {
        let tlbs = (0..cpus).map(|_| Mutex::new(Tlb::new())).collect();
        let (reach, devices, flushes) = (Reach::default(), Mutex::default(), Flushes::default());
        Self { format, asids, accessed_dirty, tlbs, reach, devices, flushes }
    }

    fn tlb(&self, cpu: CpuId) -> &Mutex<Tlb> {
        self.tlbs.get(cpu.index()).unwrap_or_else(|| machine_check(format_args!("no CPU {}", cpu.0)))
    }

    pub(super) fn switch(&self, cpu: CpuId, root: Option<Pfn>) {
        let mut tlb = locked(self.tlb(cpu));
        if self.asids == Asids::Off {
            tlb.forget_own(&self.reach);
        }
        tlb.set_root(root, &self.reach);
    }

    /// Makes an access page by page: `touch` gets the frame, where in it, and which of the bytes; no frame where there is no RAM.
    fn access(
        &self,
        ram: &Ram,
        who: (CpuId, Mode, Access),
        (addr, len): (VirtAddr, usize),
        mut touch: impl FnMut(Option<&Window<'_>>, usize, Range<usize>),
    ) -> Result<(), MmuFault> {
        let (cpu, mode, access) = who;
        let mut done = 0;
        while done < len {
            let at = VirtAddr::from(addr.get().wrapping_add(done as u64));
            let offset = at.page_offset() as usize;
            let bytes = done..len.min(done + (PAGE_SIZE - offset));
            let mut tlb = locked(self.tlb(cpu));
            let pfn = self.translate(ram, &mut tlb, mode, access, at)?;
            // Still under the lock: when a flush has had it, nobody uses what it made forget.
            if ram.with_frame(pfn, |frame| touch(Some(frame), offset, bytes.clone())).is_none() {
                touch(None, offset, bytes.clone());
            }
            done = bytes.end;
        }
        Ok(())
    }

    /// The frame behind an address.
    fn translate(
        &self,
        ram: &Ram,
        tlb: &mut Tlb,
        mode: Mode,
        access: Access,
        addr: VirtAddr,
    ) -> Result<Pfn, MmuFault> {
        let fault = |kind, present| MmuFault { addr, access, present, kind };
        if !self.format.is_canonical(addr.get()) {
            let kind = if self.format == Mmu::Sv39 { FaultKind::Page } else { FaultKind::NonCanonical };
            return Err(fault(kind, false));
        }
        let root = tlb.root().ok_or(fault(FaultKind::Page, false))?;
        let page = match tlb.page(root, addr.get()) {
            Some(page) if !page.rights.allow(mode, access) => Err(Denied { present: true }),
            Some(page) if access != Access::Write || page.dirty => Ok(page),
            _ => self.walk(ram, tlb, (root, addr.get()), mode, access),
        };
        let page = page.map_err(|denied| {
            tlb.forget_addr(root, addr.get(), &self.reach);
            fault(FaultKind::Page, denied.present)
        })?;
        let inside = addr.vpn().get() & ((1 << (9 * u32::from(page.size))) - 1);
        page.target.checked_add(inside).ok_or(fault(FaultKind::Page, false))
    }

    /// Walks the tables from the lowest one that the CPU remembers, and remembers what it finds.
    fn walk(
        &self,
        ram: &Ram,
        tlb: &mut Tlb,
        (root, addr): (Pfn, u64),
        mode: Mode,
        access: Access,
    ) -> Result<Entry, Denied> {
        let (mut table, mut level, mut allowed) = match tlb.table(root, addr) {
            Some(entry) => (entry.target, entry.level - 1, entry.rights),
            None => (root, self.format.top(), Rights::ALL),
        };
        loop {
            let step = ram.with_frame(table, |frame| self.step(frame, level, allowed, addr, mode, access));
            let Some(step) = step else {
                machine_check(format_args!(
                    "the page table in frame {table:#x} of root {root:#x} is not in RAM"
                ));
            };
            let entry = |target, size, rights, dirty, global| Entry {
                root,
                level,
                number: addr >> shift(level),
                target,
                size,
                rights,
                dirty,
                global,
            };
            match step? {
                Step::Down(target, rights) => {
                    tlb.remember_table(entry(target, 0, rights, false, false), &self.reach);
                    (table, allowed, level) = (target, rights, level - 1);
                }
                Step::Found { target, rights, global, dirty } => {
                    let page = entry(target, level, rights, dirty, global);
                    tlb.remember_page(page, &self.reach);
                    return Ok(page);
                }
            }
        }
    }

    /// Looks at an entry and sets its accessed and dirty bits, if nobody changed it meanwhile.
    fn step(
        &self,
        table: &Window<'_>,
        level: u8,
        allowed: Rights,
        addr: u64,
        mode: Mode,
        access: Access,
    ) -> Result<Step, Denied> {
        let index = self.format.index(addr, level);
        let Some(entry) = table.entry(index) else { machine_check(format_args!("no entry {index}")) };
        // Acquire pairs with whatever made the entry: what it leads to was written before.
        let mut raw = entry.load(Acquire);
        loop {
            let (step, used) = match self.format.see(level, raw) {
                Seen::NotPresent => return Err(Denied { present: false }),
                Seen::Corrupt => machine_check(format_args!(
                    "page table corrupted: entry {raw:#x} of level {level} for address {addr:#x} has reserved bits set"
                )),
                Seen::Table { target, rights } => {
                    (Step::Down(target, allowed.and(rights)), self.format.used_table(level))
                }
                Seen::Page { target, rights, global } => {
                    let rights = allowed.and(rights);
                    if !rights.allow(mode, access) {
                        return Err(Denied { present: true });
                    }
                    let used = self.format.used_page(access);
                    if self.accessed_dirty == AccessedDirty::Software && raw & used != used {
                        return Err(Denied { present: true });
                    }
                    let dirty = self.format.is_dirty(raw | used);
                    (Step::Found { target, rights, global, dirty }, used)
                }
            };
            if raw | used == raw {
                return Ok(step);
            }
            match entry.compare_exchange(raw, raw | used, AcqRel, Acquire) {
                Ok(_) => return Ok(step),
                Err(now) => raw = now,
            }
        }
    }

    /// Who reaches a frame of a block.
    pub(super) fn reached_by(&self, pfn: Pfn, order: PageOrder) -> Option<(Option<CpuId>, ReachedBy)> {
        if !self.reach.may_reach(pfn, order) {
            return None;
        }
        let by_cpu = (0..).map(CpuId).zip(&self.tlbs).find_map(|(cpu, tlb)| {
            let by = locked(tlb).reaching(pfn, order)?;
            Some((Some(cpu), by))
        });
        by_cpu.or_else(|| {
            let devices = locked(&self.devices);
            let mut frames = (0..order.pages()).filter_map(|at| pfn.checked_add(at));
            frames.any(|pfn| devices.contains_key(&pfn)).then_some((None, ReachedBy::Device))
        })
    }

    /// Ends the run if a block that goes back to the allocator is still reached.
    pub(super) fn check_freed(&self, pfn: Pfn, order: PageOrder) {
        let Some((cpu, by)) = self.reached_by(pfn, order) else { return };
        let cpu = cpu.map_or(0, |cpu| cpu.0);
        let what = format_args!("frames {pfn:#x} of order {}", order.get()).to_string();
        match by {
            ReachedBy::Root => {
                machine_check(format_args!("{what} freed while CPU {cpu} walks its tables from there"))
            }
            ReachedBy::Translation(addr, root) => machine_check(format_args!(
                "{what} freed while CPU {cpu} translates {addr:#x} of root {root:#x} to there"
            )),
            ReachedBy::Table(addr, root) => machine_check(format_args!(
                "{what} freed while CPU {cpu} finds the table for {addr:#x} of root {root:#x} there"
            )),
            ReachedBy::Device => machine_check(format_args!("{what} freed while a device uses it")),
        }
    }

    /// Notes that a device begins to use a frame.
    pub(super) fn begin_device(&self, pfn: Pfn) {
        *locked(&self.devices).entry(pfn).or_default() += 1;
        self.reach.add(pfn, 0);
    }

    /// Undoes a `begin_device`.
    pub(super) fn end_device(&self, pfn: Pfn) {
        let mut devices = locked(&self.devices);
        if let Some(uses) = devices.get_mut(&pfn) {
            *uses -= 1;
            if *uses == 0 {
                devices.remove(&pfn);
            }
            self.reach.remove(pfn, 0);
        }
    }
}

/// What user code on the CPU that the calling thread runs as does to memory. Whoever gives a CPU its tables by
/// [`switch_tables`](Platform::switch_tables) vouches for them: what they map is read and written.
///
/// An access may cross pages; it is made page by page, and when it faults, the bytes before the fault's address have been
/// touched. Addresses wrap around. Where there is no RAM, loads find ones and stores are lost.
///
/// # Panics
/// All of them if this thread has claimed no CPU of the machine.
impl Machine {
    /// Reads.
    ///
    /// # Errors
    /// [`MmuFault`].
    pub fn load(&self, addr: VirtAddr, out: &mut [u8]) -> Result<(), MmuFault> {
        self.read_as(Mode::User, Access::Read, addr, out)
    }

    /// Writes.
    ///
    /// # Errors
    /// [`MmuFault`].
    pub fn store(&self, addr: VirtAddr, bytes: &[u8]) -> Result<(), MmuFault> {
        self.write_as(Mode::User, addr, bytes)
    }

    /// Reads what is to be executed.
    ///
    /// # Errors
    /// [`MmuFault`].
    pub fn fetch(&self, addr: VirtAddr, out: &mut [u8]) -> Result<(), MmuFault> {
        self.read_as(Mode::User, Access::Exec, addr, out)
    }

    /// Writes `new` where `current` stands, atomically; answers with what stood there.
    ///
    /// # Errors
    /// [`MmuFault`], for a store.
    pub fn compare_exchange(&self, addr: VirtAddr, current: u32, new: u32) -> Result<u32, MmuFault> {
        let (access, kind) = (Access::Write, FaultKind::Misaligned);
        if addr.get() % 4 != 0 {
            return Err(MmuFault { addr, access, present: false, kind });
        }
        let mut found = u32::MAX;
        self.mmu.access(&self.ram, (self.cpu_id(), Mode::User, access), (addr, 4), |frame, offset, _| {
            if let Some(word) = frame.and_then(|frame| frame.half(offset)) {
                found = word.compare_exchange(current, new, AcqRel, Acquire).unwrap_or_else(|found| found);
            }
        })?;
        Ok(found)
    }

    /// Reads as the kernel: its own addresses, or the user's as `copy_from_user` does.
    ///
    /// # Errors
    /// [`MmuFault`].
    pub fn kernel_load(&self, addr: VirtAddr, out: &mut [u8]) -> Result<(), MmuFault> {
        self.read_as(Mode::Kernel, Access::Read, addr, out)
    }

    /// Writes as the kernel: its own addresses, or the user's as `copy_to_user` does.
    ///
    /// # Errors
    /// [`MmuFault`].
    pub fn kernel_store(&self, addr: VirtAddr, bytes: &[u8]) -> Result<(), MmuFault> {
        self.write_as(Mode::Kernel, addr, bytes)
    }

    /// The root of the tables that the CPU walks.
    pub fn tables(&self) -> Option<Pfn> {
        locked(self.mmu.tlb(self.cpu_id())).root()
    }

    /// Which CPU reaches a frame of a block, and how; no CPU if a device does.
    pub fn reached_by(&self, pfn: Pfn, order: PageOrder) -> Option<(Option<CpuId>, ReachedBy)> {
        self.mmu.reached_by(pfn, order)
    }

    /// From now on notes each flush that is asked for.
    pub fn record_flushes(&self) {
        self.mmu.flushes.record();
    }

    /// The flushes asked for since this was last asked; none before [`record_flushes`](Self::record_flushes).
    pub fn take_flushes(&self) -> Vec<(CpuMask, TlbFlush)> {
        self.mmu.flushes.take()
    }

    /// Makes something go wrong with all flushes from now on.
    pub fn lose_flushes(&self, which: LoseFlushes) {
        self.mmu.flushes.lose(which);
    }

    fn read_as(&self, mode: Mode, access: Access, addr: VirtAddr, out: &mut [u8]) -> Result<(), MmuFault> {
        let who = (self.cpu_id(), mode, access);
        self.mmu.access(&self.ram, who, (addr, out.len()), |frame, offset, bytes| match frame {
            Some(frame) => {
                let inside = frame.read(offset, &mut out[bytes]);
                debug_assert!(inside, "an access is cut at pages");
            }
            None => out[bytes].fill(0xff),
        })
    }

    fn write_as(&self, mode: Mode, addr: VirtAddr, from: &[u8]) -> Result<(), MmuFault> {
        let who = (self.cpu_id(), mode, Access::Write);
        self.mmu.access(&self.ram, who, (addr, from.len()), |frame, offset, bytes| {
            let inside = frame.is_none_or(|frame| frame.write(offset, &from[bytes]));
            debug_assert!(inside, "an access is cut at pages");
        })
    }
}
