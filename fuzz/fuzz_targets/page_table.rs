//! Page tables alone, in all three formats, against a map from pages to what their entries say.
//!
//! ```text
//! cargo +nightly fuzz run page_table -- -max_total_time=60
//! ```
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use kernmm::addr::{Pfn, VirtAddr, VirtRange};
use kernmm::flags::GfpFlags;
use kernmm::memory::Memory;
use kernmm::phys::FailRule;
use kernmm::platform::hosted::Machine;
use kernmm::platform::{CpuId, CpuSet};
use kernmm::sync::TaskLock;
use kernmm::table::{
    Change, EntryFormat, HUGE_SIZE, Leaf, Mapped, Pae, PageTable, PreparedTable, Pte, PteBits, Sv39,
    SwapEntry, TableError, TlbGather, X86_64,
};
use libfuzzer_sys::fuzz_target;

const PAGE: u64 = 4096;
const PAGES: u64 = HUGE_SIZE / PAGE;

/// An operation; `at` is one of eight leaf tables and a page in it.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Op {
    Set {
        at: u16,
        entry: Entry,
    },
    Take {
        at: u16,
    },
    Update {
        at: u16,
        bits: u16,
    },
    Map {
        at: u16,
        pages: u16,
        pfn: u32,
        bits: u16,
    },
    Unmap {
        at: u16,
        pages: u16,
    },
    /// Takes out those entries alone whose frame is odd.
    Zap {
        at: u16,
        pages: u16,
    },
    Protect {
        at: u16,
        pages: u16,
        off: u16,
        on: u16,
    },
    Move {
        from: u16,
        to: u16,
        pages: u8,
    },
    SetHuge {
        at: u16,
        pfn: u16,
        bits: u16,
    },
    Collapse {
        at: u16,
        pfn: u16,
        bits: u16,
    },
    Split {
        at: u16,
    },
    TakeHuge {
        at: u16,
    },
    FreeEmpty {
        at: u16,
        pages: u16,
    },
    /// The n-th allocation of the next operation fails.
    Fail {
        nth: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Entry {
    None,
    Page { pfn: u32, bits: u16 },
    Swap { area: u8, offset: u64 },
    Guard,
}

fuzz_target!(|input: (u8, Vec<Op>)| {
    let (format, operations) = input;
    match format % 3 {
        0 => run::<X86_64>(&operations),
        1 => run::<Pae>(&operations),
        _ => run::<Sv39>(&operations),
    }
});

fn run<F: EntryFormat>(operations: &[Op]) {
    let machine = Machine::pc(4 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let free = || {
        memory.phys().drain_all(&memory.pin());
        memory.phys().free_pages_total()
    };
    let before = free();
    let (cpus, lock) = (CpuSet::new(), TaskLock::new(()));
    let mut tables = Tables::<F> {
        table: PageTable::create(&memory, None).unwrap(),
        memory: &memory,
        cpus: &cpus,
        lock: &lock,
        pages: BTreeMap::new(),
    };
    let bare = tables.table.tables();
    for op in operations {
        tables.step(op);
        if !matches!(op, Op::Fail { .. }) {
            memory.phys().set_fail_rule(&memory.pin(), FailRule::Never);
        }
        tables.verify(op);
    }
    memory.phys().set_fail_rule(&memory.pin(), FailRule::Never);
    let all = VirtRange::new(VirtAddr::ZERO, VirtAddr::from(F::USER_END)).unwrap();
    tables.unmap(all);
    tables.free_empty(all);
    assert_eq!(tables.table.tables(), bare, "empty tables stay");
    let table = tables.table;
    let mut gather = TlbGather::new(&memory, table.pgd(), &cpus);
    table.destroy(&mut gather);
    gather.finish();
    memory.phys().check(&memory.pin()).unwrap();
    assert_eq!(free(), before, "frames were lost");
}

struct Tables<'t, 'm, F> {
    table: PageTable<'t, Memory<'m, Machine>, F>,
    memory: &'t Memory<'m, Machine>,
    cpus: &'t CpuSet,
    lock: &'t TaskLock<()>,
    /// What each page's entry says.
    pages: BTreeMap<u64, Pte>,
}

fn bits(raw: u16) -> PteBits {
    // What a frame of RAM in the user's half can have.
    let allowed = PteBits::READ
        | PteBits::WRITE
        | PteBits::EXEC
        | PteBits::ACCESSED
        | PteBits::DIRTY
        | PteBits::SPECIAL
        | PteBits::PROT_NONE;
    (PteBits::from_bits_truncate(u32::from(raw)) & allowed) | PteBits::USER
}

/// What a format makes of an entry.
fn written<F: EntryFormat>(level: u32, pte: Pte) -> Pte {
    F::decode(level, F::encode(level, pte))
}

fn pfn(raw: u32) -> Pfn {
    Pfn::new(u64::from(raw & 0xf_ffff)).unwrap()
}

impl<'t, 'm, F: EntryFormat> Tables<'t, 'm, F> {
    fn address(at: u16) -> u64 {
        let far = if F::USER_END > 1 << 40 { 1 << 39 } else { 3 << 29 };
        let places = [
            0,
            HUGE_SIZE,
            2 * HUGE_SIZE,
            (1 << 30) - HUGE_SIZE,
            1 << 30,
            far,
            F::USER_END - 2 * HUGE_SIZE,
            F::USER_END - HUGE_SIZE,
        ];
        places[usize::from(at >> 9 & 7)] + u64::from(at & 511) * PAGE
    }

    fn range(at: u16, pages: u16) -> VirtRange {
        let start = Self::address(at);
        let end = (start + u64::from(pages % 1200) * PAGE).min(F::USER_END);
        VirtRange::new(VirtAddr::from(start), VirtAddr::from(end)).unwrap()
    }

    fn gather(&self) -> TlbGather<'t, Memory<'m, Machine>> {
        TlbGather::new(self.memory, self.table.pgd(), self.cpus)
    }

    fn in_range(&self, range: VirtRange) -> Vec<(u64, Pte)> {
        let pages = self.pages.range(range.start().get()..range.end().get());
        pages.map(|(&at, &pte)| (at, pte)).collect()
    }

    fn put(&mut self, at: u64, pte: Pte) {
        match pte {
            Pte::None => {
                self.pages.remove(&at);
            }
            pte => {
                self.pages.insert(at, pte);
            }
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Set { at, entry } => self.set(Self::address(at), entry),
            Op::Take { at } => {
                let at = Self::address(at);
                let pin = self.memory.pin();
                if let Leaf::Table(leaf) = self.table.lock(&pin, VirtAddr::from(at)) {
                    let taken = leaf.take(VirtAddr::from(at));
                    assert_eq!(taken, self.pages.remove(&at).unwrap_or_default());
                }
            }
            Op::Update { at, bits: raw } => {
                let at = Self::address(at);
                let pin = self.memory.pin();
                let Leaf::Table(leaf) = self.table.lock(&pin, VirtAddr::from(at)) else { return };
                let old = leaf.update(VirtAddr::from(at), |pte| match pte {
                    Pte::Present(entry) => Pte::mapping(entry.pfn, bits(raw)),
                    other => other,
                });
                assert_eq!(old, self.pages.get(&at).copied().unwrap_or_default());
                if let Pte::Present(entry) = old {
                    self.pages.insert(at, written::<F>(0, Pte::mapping(entry.pfn, bits(raw))));
                }
            }
            Op::Map { at, pages, pfn: first, bits: raw } => {
                self.map(Self::range(at, pages), pfn(first), bits(raw))
            }
            Op::Unmap { at, pages } => self.unmap(Self::range(at, pages)),
            Op::Zap { at, pages } => self.zap(Self::range(at, pages)),
            Op::Protect { at, pages, off, on } => self.protect(Self::range(at, pages), bits(off), bits(on)),
            Op::Move { from, to, pages } => {
                self.shift(Self::address(from), Self::address(to), u64::from(pages))
            }
            Op::SetHuge { at, pfn, bits: raw } => {
                self.set_huge(Self::address(at), pfn, bits(raw), Over::Nothing)
            }
            Op::Collapse { at, pfn, bits: raw } => {
                self.set_huge(Self::address(at), pfn, bits(raw), Over::Empty)
            }
            Op::Split { at } => {
                let Ok(spare) = PreparedTable::new(self.memory, GfpFlags::KERNEL) else { return };
                let pin = self.memory.pin();
                if let Leaf::Huge(huge) = self.table.lock(&pin, VirtAddr::from(Self::address(at))) {
                    huge.split(spare);
                };
            }
            Op::TakeHuge { at } => {
                let base = Self::address(at) & !(HUGE_SIZE - 1);
                let is_huge = {
                    let pin = self.memory.pin();
                    matches!(self.table.lock(&pin, VirtAddr::from(base)), Leaf::Huge(_))
                };
                if is_huge {
                    self.unmap(VirtRange::with_len(VirtAddr::from(base), HUGE_SIZE).unwrap());
                }
            }
            Op::FreeEmpty { at, pages } => self.free_empty(Self::range(at, pages)),
            Op::Fail { nth } => {
                let rule = FailRule::Nth(1 + u64::from(nth % 8));
                self.memory.phys().set_fail_rule(&self.memory.pin(), rule);
            }
        }
    }

    fn set(&mut self, at: u64, entry: Entry) {
        let pte = match entry {
            Entry::None => Pte::None,
            Entry::Page { pfn: raw, bits: flags } => Pte::mapping(pfn(raw), bits(flags)),
            Entry::Swap { area, offset } => {
                Pte::Swap(SwapEntry::new(area % 32, offset & SwapEntry::MAX_OFFSET).unwrap())
            }
            Entry::Guard => Pte::Guard,
        };
        let addr = VirtAddr::from(at);
        if self.table.ensure(addr, GfpFlags::HIGHUSER).is_err() {
            return;
        }
        let pin = self.memory.pin();
        let Leaf::Table(leaf) = self.table.lock(&pin, addr) else { return };
        leaf.set(addr, pte);
        self.put(at, written::<F>(0, pte));
    }

    fn map(&mut self, range: VirtRange, first: Pfn, bits: PteBits) {
        let occupied = !self.in_range(range).is_empty();
        match self.table.map_range(range, first, bits, GfpFlags::HIGHUSER) {
            Ok(()) => {
                assert!(!occupied, "mapped over something");
                for (page, at) in (range.start().get()..range.end().get()).step_by(PAGE as usize).enumerate()
                {
                    let pfn = first.checked_add(page as u64).unwrap();
                    self.pages.insert(at, written::<F>(0, Pte::mapping(pfn, bits)));
                }
            }
            Err(TableError::Occupied) => assert!(occupied),
            Err(TableError::OutOfMemory) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn unmap(&mut self, range: VirtRange) {
        let mut found = vec![];
        let mut gather = self.gather();
        self.table.unmap_range(range, &mut gather, |_, entry| found.push(entry));
        gather.finish();
        let found: u64 = found.iter().map(|found| found.order.pages()).sum();
        let due = self.in_range(range);
        assert_eq!(found, due.len() as u64);
        for (at, _) in due {
            self.pages.remove(&at);
        }
    }

    fn zap(&mut self, range: VirtRange) {
        let is_odd = |pte: Pte| pte.mapped().is_some_and(|entry| entry.pfn.get() & 1 == 1);
        let mut gather = self.gather();
        self.table.zap_range(
            range,
            &mut gather,
            |found| if is_odd(found.pte) { kernmm::table::Zap::Take } else { kernmm::table::Zap::Keep },
            |_, found| assert!(is_odd(found.pte)),
        );
        gather.finish();
        // The frame of a huge entry is even, and so all of it stays.
        for (at, pte) in self.in_range(range) {
            if is_odd(pte) && !self.is_huge(at) {
                self.pages.remove(&at);
            }
        }
    }

    fn is_huge(&self, at: u64) -> bool {
        let pin = self.memory.pin();
        matches!(self.table.lock(&pin, VirtAddr::from(at)), Leaf::Huge(_))
    }

    fn protect(&mut self, range: VirtRange, off: PteBits, on: PteBits) {
        let mut gather = self.gather();
        let change = Change { clear: off, set: on };
        self.table.protect_range(range, &mut gather, change);
        gather.finish();
        for (at, pte) in self.in_range(range) {
            if let Pte::Present(entry) = pte {
                self.pages.insert(at, written::<F>(0, Pte::mapping(entry.pfn, change.of(entry.bits))));
            }
        }
    }

    /// Moves entries one by one, as mremap does.
    fn shift(&mut self, from: u64, to: u64, pages: u64) {
        for page in 0..pages {
            let (from, to) = (from + page * PAGE, to + page * PAGE);
            if from.max(to) >= F::USER_END || self.pages.contains_key(&to) {
                return;
            }
            if self.table.ensure(VirtAddr::from(to), GfpFlags::KERNEL).is_err() {
                return;
            }
            let taken = {
                let pin = self.memory.pin();
                let Leaf::Table(leaf) = self.table.lock(&pin, VirtAddr::from(from)) else { return };
                leaf.take(VirtAddr::from(from))
            };
            assert_eq!(taken, self.pages.remove(&from).unwrap_or_default());
            let pin = self.memory.pin();
            let Leaf::Table(leaf) = self.table.lock(&pin, VirtAddr::from(to)) else {
                panic!("no table where one was ensured")
            };
            leaf.set(VirtAddr::from(to), taken);
            self.put(to, taken);
        }
    }

    fn set_huge(&mut self, at: u64, raw: u16, bits: PteBits, over: Over) {
        let base = at & !(HUGE_SIZE - 1);
        let mapped = Mapped { pfn: Pfn::new(u64::from(raw & 0x3ff) * PAGES).unwrap(), bits };
        let range = VirtRange::with_len(VirtAddr::from(base), HUGE_SIZE).unwrap();
        let addr = VirtAddr::from(base);
        let result = match over {
            Over::Nothing => self.table.set_huge(addr, mapped, GfpFlags::KERNEL),
            Over::Empty => {
                let mut gather = self.gather();
                let result = self.table.collapse(addr, mapped, GfpFlags::KERNEL, &mut gather);
                gather.finish();
                result
            }
        };
        match result {
            Ok(()) => {
                assert!(self.in_range(range).is_empty(), "a huge entry over something");
                let Pte::Present(written) = written::<F>(1, Pte::Present(mapped)) else {
                    panic!("a huge entry that is none")
                };
                for page in 0..PAGES {
                    let pfn = written.pfn.checked_add(page).unwrap();
                    self.pages.insert(base + page * PAGE, Pte::mapping(pfn, written.bits));
                }
            }
            Err(TableError::Occupied | TableError::OutOfMemory) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn free_empty(&mut self, hole: VirtRange) {
        if self.in_range(hole).is_empty() {
            let mut gather = self.gather();
            self.table.free_empty(hole, self.lock, &mut gather);
            gather.finish();
        }
    }

    fn verify(&self, op: &Op) {
        self.table.check().unwrap_or_else(|error| panic!("{op:?}: {error}"));
        let all = VirtRange::new(VirtAddr::ZERO, VirtAddr::from(F::USER_END)).unwrap();
        let mut seen = BTreeMap::new();
        self.table.visit_range(all, |found| {
            for page in 0..found.order.pages() {
                let pte = match found.pte {
                    Pte::Present(entry) => Pte::mapping(entry.pfn.checked_add(page).unwrap(), entry.bits),
                    other => other,
                };
                seen.insert(found.addr.get() + page * PAGE, pte);
            }
        });
        if seen != self.pages {
            let at = seen.keys().chain(self.pages.keys()).find(|at| seen.get(at) != self.pages.get(at));
            let at = at.copied().unwrap_or(0);
            panic!("{op:?}: {at:#x} is {:?}, should be {:?}", seen.get(&at), self.pages.get(&at));
        }
    }
}

/// What may be in a huge entry's place.
#[derive(Clone, Copy)]
enum Over {
    Nothing,
    Empty,
}
