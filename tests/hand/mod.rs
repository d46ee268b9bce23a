//! Page tables written by hand, from the hardware manuals, and what else the tests of the simulated hardware share.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]
#![allow(clippy::allow_attributes, reason = "expect would fail in the binary that uses all of it")]

use kernmm::addr::{PageOrder, Pfn, PhysAddr, VirtAddr, VirtRange};
use kernmm::flags::GfpFlags;
use kernmm::memory::Memory;
use kernmm::platform::hosted::{FaultKind, Machine, Mmu, MmuFault};
use kernmm::platform::{Access, CpuId, CpuMask, FlushScope, Platform, TlbFlush};

pub const PAGE: u64 = 4096;
pub const LARGE: u64 = 2 << 20;
pub const GIANT: u64 = 1 << 30;

/// Bits of x86 entries.
pub mod x86 {
    pub const P: u64 = 1;
    pub const RW: u64 = 2;
    pub const US: u64 = 4;
    pub const A: u64 = 0x20;
    pub const D: u64 = 0x40;
    pub const PS: u64 = 0x80;
    pub const G: u64 = 0x100;
    pub const NX: u64 = 1 << 63;
    /// What an entry that leads to a table has, so that the last one alone decides.
    pub const TABLE: u64 = P | RW | US;
}

/// Bits of Sv39 entries.
pub mod sv39 {
    pub const V: u64 = 1;
    pub const R: u64 = 2;
    pub const W: u64 = 4;
    pub const X: u64 = 8;
    pub const U: u64 = 0x10;
    pub const G: u64 = 0x20;
    pub const A: u64 = 0x40;
    pub const D: u64 = 0x80;
}

pub const FORMATS: [Mmu; 3] = [Mmu::X86_64, Mmu::Pae, Mmu::Sv39];
/// An address that all formats have, whose indices differ at every level.
pub const AT: u64 = 0x40a0_3000;

/// 48 MiB, of which the upper 16 MiB are HIGHMEM.
pub fn machine(format: Mmu) -> Machine {
    let high = PhysAddr::new(32 << 20).unwrap();
    Machine::pc(48 << 20).cpus(3).highmem_from(high).mmu(format).build().unwrap()
}

/// Runs a test on a machine of each format.
pub fn on_each(test: impl Fn(&Hand<'_>, &Machine)) {
    for format in FORMATS {
        on(&machine(format), format, &test);
    }
}

pub fn on(machine: &Machine, format: Mmu, test: impl Fn(&Hand<'_>, &Machine)) {
    let _cpus = machine.all_cpus().unwrap();
    let memory = Memory::on(machine).unwrap();
    let hand = Hand::new(&memory, format);
    hand.activate();
    test(&hand, machine);
}

pub fn fault(at: u64, access: Access, present: bool) -> MmuFault {
    MmuFault { addr: addr(at), access, present, kind: FaultKind::Page }
}

pub fn addr(raw: u64) -> VirtAddr {
    VirtAddr::from(raw)
}

pub fn cpus(list: &[u32]) -> CpuMask {
    let mut mask = CpuMask::EMPTY;
    assert!(list.iter().all(|&cpu| mask.insert(CpuId(cpu))));
    mask
}

/// Tables of one address space, with the frames of one machine.
pub struct Hand<'a> {
    pub memory: &'a Memory<'a, Machine>,
    pub format: Mmu,
    pub root: Pfn,
    /// Where tables come from.
    gfp: GfpFlags,
}

impl<'a> Hand<'a> {
    pub fn new(memory: &'a Memory<'a, Machine>, format: Mmu) -> Self {
        Self::with_tables_in(memory, format, GfpFlags::KERNEL)
    }

    pub fn with_tables_in(memory: &'a Memory<'a, Machine>, format: Mmu, gfp: GfpFlags) -> Self {
        let root = memory.alloc_pages(gfp | GfpFlags::ZERO, PageOrder::ZERO).expect("memory");
        Self { memory, format, root, gfp }
    }

    pub fn top(&self) -> u32 {
        if self.format == Mmu::X86_64 { 3 } else { 2 }
    }

    /// An entry that leads to a frame.
    pub fn entry(&self, pfn: Pfn, bits: u64) -> u64 {
        match self.format {
            Mmu::Sv39 => pfn.get() << 10 | bits,
            _ => pfn.get() << 12 | bits,
        }
    }

    fn target(&self, raw: u64) -> Pfn {
        let number = match self.format {
            Mmu::Sv39 => raw >> 10 & ((1 << 44) - 1),
            _ => raw >> 12 & ((1 << 40) - 1),
        };
        Pfn::new(number).expect("a frame")
    }

    /// The bits of an entry that leads to a table of a level.
    fn table_bits(&self, level: u32) -> u64 {
        match self.format {
            Mmu::X86_64 => x86::TABLE,
            Mmu::Pae if level == 2 => x86::P,
            Mmu::Pae => x86::TABLE,
            Mmu::Sv39 => sv39::V,
        }
    }

    pub fn read(&self, table: Pfn, index: u64) -> u64 {
        let mut raw = [0; 8];
        self.memory.read_frame(table, index as usize * 8, &mut raw).expect("a table");
        u64::from_ne_bytes(raw)
    }

    pub fn write(&self, table: Pfn, index: u64, raw: u64) {
        self.memory.write_frame(table, index as usize * 8, &raw.to_ne_bytes()).expect("a table");
    }

    /// Where the entry of a level for an address is; tables on the way are made if need be.
    pub fn place(&self, at: u64, level: u32) -> (Pfn, u64) {
        let mut table = self.root;
        for upper in (level + 1..=self.top()).rev() {
            let index = at >> (12 + 9 * upper) & 511;
            let raw = self.read(table, index);
            table = if raw & 1 != 0 {
                self.target(raw)
            } else {
                let new =
                    self.memory.alloc_pages(self.gfp | GfpFlags::ZERO, PageOrder::ZERO).expect("memory");
                self.write(table, index, self.entry(new, self.table_bits(upper)));
                new
            };
        }
        (table, at >> (12 + 9 * level) & 511)
    }

    /// Writes the entry of a level.
    pub fn set(&self, at: u64, level: u32, raw: u64) {
        let (table, index) = self.place(at, level);
        self.write(table, index, raw);
    }

    pub fn get(&self, at: u64, level: u32) -> u64 {
        let (table, index) = self.place(at, level);
        self.read(table, index)
    }

    /// Maps 4 KiB.
    pub fn map(&self, at: u64, pfn: Pfn, bits: u64) {
        self.set(at, 0, self.entry(pfn, bits));
    }

    pub fn unmap(&self, at: u64) {
        self.set(at, 0, 0);
    }

    /// A fresh frame that holds a byte everywhere.
    pub fn frame(&self, byte: u8) -> Pfn {
        let pfn = self.memory.alloc_pages(GfpFlags::HIGHUSER, PageOrder::ZERO).expect("memory");
        self.memory.write_frame(pfn, 0, &[byte; 4096]).expect("data");
        pfn
    }

    /// Bits for a page that the user may do anything with, and nobody has used.
    pub fn all(&self) -> u64 {
        match self.format {
            Mmu::Sv39 => sv39::V | sv39::R | sv39::W | sv39::X | sv39::U,
            _ => x86::P | x86::RW | x86::US,
        }
    }

    pub fn activate(&self) {
        self.memory.platform().switch_tables(Some(self.root));
    }

    pub fn flush(&self, on: &[u32], scope: FlushScope, tables: bool) {
        self.memory.platform().flush_tlb(&cpus(on), &TlbFlush { pgd: self.root, scope, tables });
    }

    pub fn flush_page(&self, on: &[u32], at: u64) {
        self.flush(on, FlushScope::Page(addr(at)), false);
    }

    pub fn flush_range(&self, on: &[u32], start: u64, end: u64, tables: bool) {
        let range = VirtRange::new(addr(start), addr(end)).expect("a range");
        self.flush(on, FlushScope::Range(range), tables);
    }

    /// What the user reads there.
    pub fn byte(&self, at: u64) -> Result<u8, MmuFault> {
        let mut byte = [0];
        self.memory.platform().load(addr(at), &mut byte).map(|()| byte[0])
    }
}

/// Runs a test of this binary in a process of its own, with a variable that lets it do the forbidden thing.
pub fn run_alone(test: &str) -> std::process::Output {
    let binary = std::env::current_exe().expect("our path");
    let mut command = std::process::Command::new(binary);
    command.args(["--exact", test, "--nocapture"]).env("DO_THE_FORBIDDEN", "1").output().expect("it runs")
}

pub fn is_alone() -> bool {
    std::env::var_os("DO_THE_FORBIDDEN").is_some()
}
