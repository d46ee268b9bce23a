//! Ranges of page tables do what the same changes do one by one, in every format: what they map, change, show and take out, and what CPUs are
//! told to forget.

mod common;
mod machines;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};

use common::{Random, long};
use kernmm::addr::{PageOrder, Pfn, VirtAddr, VirtRange};
use kernmm::flags::GfpFlags;
use kernmm::memory::Memory;
use kernmm::phys::FailRule;
use kernmm::platform::hosted::Machine;
use kernmm::platform::{CpuId, CpuSet, FlushScope, Platform};
use kernmm::sync::TaskLock;
use kernmm::table::{
    Change, EntryFormat, HUGE_SIZE, Leaf, Mapped, Pae, PageTable, Pte, PteBits, Sv39, SwapEntry, TableError,
    TlbGather, X86_64, Zap,
};

use machines::on_machines;

type Mem<'m> = Memory<'m, Machine>;

const PAGE: u64 = 4096;
/// Pages of a leaf table.
const LEAF: u64 = HUGE_SIZE / PAGE;
/// Four leaf tables, of which two hang on one table above and two on the next.
const BASE: u64 = (1 << 30) - 2 * HUGE_SIZE;
const PAGES: u64 = 4 * LEAF;

/// What hardware has nothing to note in.
const SETTLED: PteBits = PteBits::READ.union(PteBits::ACCESSED).union(PteBits::DIRTY);

/// Memory that a program may execute only, which has a key on x86-64.
const EXECUTE_ONLY: PteBits =
    PteBits::EXEC.union(PteBits::USER).union(PteBits::ACCESSED).union(PteBits::DIRTY);

/// Bits as entries have them: mostly of memory in use, but also any others.
const BITS: [PteBits; 12] = [
    SETTLED.union(PteBits::WRITE).union(PteBits::USER),
    SETTLED.union(PteBits::USER),
    SETTLED.union(PteBits::WRITE).union(PteBits::SPECIAL),
    SETTLED.union(PteBits::WRITE).union(PteBits::EXEC).union(PteBits::GLOBAL),
    SETTLED.union(PteBits::UNCACHED),
    PteBits::READ.union(PteBits::WRITE).union(PteBits::USER),
    PteBits::READ.union(PteBits::USER).union(PteBits::ACCESSED).union(PteBits::EXEC),
    PteBits::EXEC.union(PteBits::ACCESSED).union(PteBits::DIRTY),
    SETTLED.union(PteBits::WRITE).union(PteBits::PROT_NONE),
    PteBits::USER,
    EXECUTE_ONLY,
    EXECUTE_ONLY.union(PteBits::WRITE),
];

/// What is cleared or set: alone, or two of them together.
const FLAGS: [PteBits; 12] = [
    PteBits::empty(),
    PteBits::WRITE,
    PteBits::WRITE,
    PteBits::READ,
    PteBits::EXEC,
    PteBits::USER,
    PteBits::ACCESSED,
    PteBits::DIRTY,
    PteBits::SPECIAL,
    PteBits::UNCACHED,
    PteBits::WRITE_COMBINING,
    PteBits::PROT_NONE,
];

fn pages(first: u64, count: u64) -> VirtRange {
    VirtRange::with_len(VirtAddr::from(BASE + first * PAGE), count * PAGE).unwrap()
}

/// All addresses of a process.
fn user<F: EntryFormat>() -> VirtRange {
    VirtRange::new(VirtAddr::ZERO, VirtAddr::from(F::USER_END)).unwrap()
}

fn pfn(number: u64) -> Pfn {
    Pfn::new((1 << 20) + number).unwrap()
}

/// What is read of what was written.
fn written<F: EntryFormat>(pte: Pte) -> Pte {
    F::decode(0, F::encode(0, pte))
}

/// Whether a CPU that knows an entry must forget it when its bits are these.
fn is_stale(old: PteBits, new: PteBits) -> bool {
    let caching = PteBits::UNCACHED | PteBits::WRITE_COMBINING;
    let lost = old - new - PteBits::SPECIAL;
    !old.contains(PteBits::PROT_NONE)
        && (new.contains(PteBits::PROT_NONE) || !lost.is_empty() || (old ^ new).intersects(caching))
}

/// Tables, and what their pages should say.
struct Both<'t, 'm, F: EntryFormat> {
    table: PageTable<'t, Mem<'m>, F>,
    cpus: CpuSet,
    lock: TaskLock<()>,
    pages: BTreeMap<u64, Pte>,
    /// Leaves of which one entry maps all.
    huge: Vec<u64>,
    random: Random,
}

impl<'m, F: EntryFormat> Both<'_, 'm, F> {
    fn at<T: Copy>(&self, all: &[T]) -> T {
        all[self.random.below(all.len() as u64) as usize]
    }

    /// A range of pages: as often short as long, and often of whole tables.
    fn range(&self) -> (u64, u64) {
        let first = self.random.below(PAGES);
        let len = self.at(&[1, 7, 8, 20, 33, LEAF, 2 * LEAF]);
        let first = if self.random.below(3) == 0 { first / LEAF * LEAF } else { first };
        (first, len.min(PAGES - first))
    }

    fn is_free(&self, (first, len): (u64, u64)) -> bool {
        self.pages.range(first..first + len).next().is_none()
    }

    fn step(&mut self) {
        let at = self.range();
        match self.random.below(9) {
            0 | 1 => self.map_range(at),
            2..4 => self.map_with(at),
            4..6 => self.protect(at),
            6 => self.zap(at, |_| true),
            7 => self.zap(at, |pte| pte.mapped().is_some_and(|entry| entry.pfn.get() % 3 == 0)),
            _ => self.set_huge(at.0 / LEAF),
        }
    }

    fn map_range(&mut self, at: (u64, u64)) {
        let (bits, first) = (self.at(&BITS), self.random.below(1 << 20));
        let mapped = self.table.map_range(pages(at.0, at.1), pfn(first), bits, GfpFlags::HIGHUSER);
        if !self.is_free(at) {
            assert_eq!(mapped, Err(TableError::Occupied));
            return;
        }
        mapped.unwrap();
        for page in 0..at.1 {
            self.pages.insert(at.0 + page, written::<F>(Pte::mapping(pfn(first + page), bits)));
        }
    }

    /// Mostly groups of frames that lie anywhere, with equal bits, and sometimes something else among them.
    fn map_with(&mut self, at: (u64, u64)) {
        let (bits, odd) = (self.at(&BITS), self.at(&[2, 9, 1000]));
        let mut ptes = vec![];
        let random = &self.random;
        let other = [Pte::None, Pte::Guard, Pte::Swap(SwapEntry::new(3, random.below(1 << 50)).unwrap())];
        let mapped = self.table.map_with(pages(at.0, at.1), GfpFlags::HIGHUSER, |addr| {
            assert_eq!(addr.get(), BASE + (at.0 + ptes.len() as u64) * PAGE, "in order");
            let pte = match random.below(odd) {
                0 => other[random.below(3) as usize],
                1 => Pte::mapping(pfn(random.below(1 << 20)), BITS[random.below(12) as usize]),
                _ => Pte::mapping(pfn(random.below(1 << 20)), bits),
            };
            ptes.push(written::<F>(pte));
            pte
        });
        if !self.is_free(at) {
            assert_eq!((mapped, ptes.len()), (Err(TableError::Occupied), 0));
            return;
        }
        mapped.unwrap();
        self.pages.extend((at.0..).zip(ptes).filter(|(_, pte)| !pte.is_none()));
    }

    fn protect(&mut self, (first, len): (u64, u64)) {
        let flags = || self.at(&FLAGS) | self.at(&FLAGS);
        let change = Change { clear: flags(), set: flags() };
        let whole = self.split_edges((first, len));
        let mut stale = vec![];
        for (&page, pte) in self.pages.range_mut(first..first + len) {
            if let Pte::Present(old) = *pte {
                let bits = change.of(old.bits);
                if is_stale(old.bits, bits) {
                    stale.push(page);
                }
                *pte = written::<F>(Pte::mapping(old.pfn, bits));
            }
        }
        self.flushing(whole, &stale, |table, gather| {
            table.protect_range(pages(first, len), gather, change);
        });
    }

    fn zap(&mut self, (first, len): (u64, u64), wanted: impl Fn(Pte) -> bool) {
        // A huge entry is asked for as a whole, by its first frame.
        let huge = |leaf: &&u64| !wanted(self.pages[&(**leaf * LEAF)]);
        let kept: Vec<u64> = self.huge.iter().filter(huge).copied().collect();
        let is_wanted = |page: u64, pte: Pte| !kept.contains(&(page / LEAF)) && wanted(pte);
        let due: Vec<_> = self.pages.range(first..first + len).map(|(&page, &pte)| (page, pte)).collect();
        let (whole, split): (Vec<u64>, Vec<u64>) = self
            .huge
            .iter()
            .filter(|leaf| !kept.contains(leaf))
            .filter(|&&leaf| leaf * LEAF < first + len && (leaf + 1) * LEAF > first)
            .partition(|&&leaf| leaf * LEAF >= first && (leaf + 1) * LEAF <= first + len);
        let due: Vec<_> = due
            .into_iter()
            .filter(|&(page, pte)| whole.contains(&(page / LEAF)) || is_wanted(page, pte))
            .collect();
        self.huge.retain(|leaf| !whole.contains(leaf) && !split.contains(leaf));
        let seen = |pte: Pte| pte.mapped().is_some_and(|entry| !entry.bits.contains(PteBits::PROT_NONE));
        let stale: Vec<u64> = due.iter().filter(|&&(_, pte)| seen(pte)).map(|&(page, _)| page).collect();
        due.iter().for_each(|(page, _)| assert!(self.pages.remove(page).is_some()));
        let mut taken = vec![];
        self.flushing(!whole.is_empty(), &stale, |table, gather| {
            let choose = |found: kernmm::table::Found| if wanted(found.pte) { Zap::Take } else { Zap::Keep };
            table.zap_range(pages(first, len), gather, choose, |_, found| {
                taken.extend(spread(found.addr.get(), found.pte, found.order.pages()));
            });
        });
        assert_eq!(taken, due);
    }

    /// Huge entries that lie in a range in part are small ones from now on. Whether there are any that lie in it as a whole.
    fn split_edges(&mut self, (first, len): (u64, u64)) -> bool {
        let is_in = |leaf: u64| leaf * LEAF < first + len && (leaf + 1) * LEAF > first;
        let is_whole = |leaf: u64| leaf * LEAF >= first && (leaf + 1) * LEAF <= first + len;
        self.huge.retain(|&leaf| !is_in(leaf) || is_whole(leaf));
        self.huge.iter().any(|&leaf| is_whole(leaf))
    }

    fn set_huge(&mut self, leaf: u64) {
        if !self.is_free((leaf * LEAF, LEAF)) {
            return;
        }
        let entry = Mapped { pfn: pfn(self.random.below(1 << 10) * LEAF), bits: BITS[0] };
        let mut gather = TlbGather::new(self.table.source(), self.table.pgd(), &self.cpus);
        let addr = pages(leaf * LEAF, LEAF).start();
        self.table.collapse(addr, entry, GfpFlags::KERNEL, &mut gather).unwrap();
        gather.finish();
        self.huge.push(leaf);
        self.pages.extend(spread(addr.get(), Pte::Present(entry), LEAF));
    }

    /// Runs a change, which is to make the CPU forget exactly these pages and what lies between them; where huge entries may be among them, at
    /// least these.
    fn flushing(
        &self,
        huge: bool,
        stale: &[u64],
        change: impl FnOnce(&PageTable<'_, Mem<'m>, F>, &mut TlbGather<'_, Mem<'m>>),
    ) {
        let machine = self.table.source().platform();
        machine.take_flushes();
        let mut gather = TlbGather::new(self.table.source(), self.table.pgd(), &self.cpus);
        change(&self.table, &mut gather);
        gather.finish();
        let scopes: Vec<FlushScope> =
            machine.take_flushes().into_iter().map(|(_, flush)| flush.scope).collect();
        let (Some(&first), Some(&last)) = (stale.first(), stale.last()) else {
            assert_eq!(scopes, []);
            return;
        };
        let count = last - first + 1;
        match scopes[..] {
            [FlushScope::Page(page)] if !huge => assert_eq!((page, 1), (pages(first, 1).start(), count)),
            [FlushScope::Range(range)] if !huge => assert_eq!(range, pages(first, count)),
            [FlushScope::Range(range)] => assert!(range.encloses(pages(first, count))),
            [FlushScope::All] => assert!(huge || count > 33, "{count} pages are stale"),
            _ => panic!("{scopes:?} for {count} pages"),
        }
    }

    fn verify(&self) {
        self.table.check().unwrap();
        let mut seen = BTreeMap::new();
        self.table.visit_range(user::<F>(), |found| {
            seen.extend(spread(found.addr.get(), found.pte, found.order.pages()));
        });
        assert!(seen == self.pages, "what is shown is not what there is");
        let mut by_runs = BTreeMap::new();
        self.table.visit_runs(user::<F>(), |run| {
            assert!(run.len > 0 && run.iter().next() == Some(run.first));
            assert!(run.len == 1 || run.first.pte.mapped().is_some(), "only frames make a run");
            by_runs.extend(
                run.iter().flat_map(|found| spread(found.addr.get(), found.pte, found.order.pages())),
            );
        });
        assert!(by_runs == seen, "runs leave something out");
    }
}

/// The pages that an entry maps.
fn spread(addr: u64, pte: Pte, count: u64) -> impl Iterator<Item = (u64, Pte)> {
    let first = (addr - BASE) / PAGE;
    (0..count).map(move |page| match pte {
        Pte::Present(entry) => (first + page, Pte::mapping(entry.pfn.checked_add(page).unwrap(), entry.bits)),
        other => (first + page, other),
    })
}

fn destroy<F: EntryFormat>(table: PageTable<'_, Mem<'_>, F>) {
    let cpus = CpuSet::new();
    let mut gather = TlbGather::new(table.source(), table.pgd(), &cpus);
    table.destroy(&mut gather);
    gather.finish();
}

fn random_changes_are_those_of_a_model<F: EntryFormat>() {
    let steps = if long() { 100_000 } else { 1_000 };
    on_machines(|memory| {
        let cpus = CpuSet::new();
        assert!(cpus.insert(CpuId::BOOT));
        memory.platform().record_flushes();
        let table = PageTable::<_, F>::create(memory, None).unwrap();
        let mut both = Both {
            table,
            cpus,
            lock: TaskLock::new(()),
            pages: BTreeMap::new(),
            huge: vec![],
            random: Random::new(F::LEVELS.into()),
        };
        for step in 0..steps {
            both.step();
            both.verify();
            // From nothing again, so that tables are missing.
            if step % 50 == 0 {
                both.zap((0, PAGES), |_| true);
                let mut gather = TlbGather::new(memory, table.pgd(), &both.cpus);
                table.free_empty(user::<F>(), &both.lock, &mut gather);
                gather.finish();
            }
        }
        destroy(table);
    });
}

#[test]
fn random_changes_are_those_of_a_model_on_x86_64() {
    random_changes_are_those_of_a_model::<X86_64>();
}

#[test]
fn random_changes_are_those_of_a_model_on_pae() {
    random_changes_are_those_of_a_model::<Pae>();
}

#[test]
fn random_changes_are_those_of_a_model_on_sv39() {
    random_changes_are_those_of_a_model::<Sv39>();
}

/// Nothing is mapped in the range but what was there.
fn assert_shows<F: EntryFormat + Debug>(table: PageTable<'_, Mem<'_>, F>, due: &[u64]) {
    let mut shown = vec![];
    table.visit_range(pages(0, PAGES), |found| shown.push((found.addr.get() - BASE) / PAGE));
    assert_eq!(shown, due);
    table.check().unwrap();
}

/// How often a range cannot be mapped for want of a table before it can.
fn failures_of_mapping(memory: &Mem<'_>, first: u64, len: u64) -> u64 {
    let table = PageTable::<_, X86_64>::create(memory, None).unwrap();
    let mut failures = 0;
    loop {
        memory.phys().drain_all(&memory.pin());
        memory.phys().set_fail_rule(&memory.pin(), FailRule::Nth(failures + 1));
        let mapped = table.map_range(pages(first, len), pfn(0), BITS[0], GfpFlags::KERNEL);
        memory.phys().set_fail_rule(&memory.pin(), FailRule::Never);
        if mapped.is_ok() {
            break;
        }
        assert_eq!(mapped, Err(TableError::OutOfMemory));
        assert_shows(table, &[]);
        failures += 1;
    }
    assert_shows(table, &Vec::from_iter(first..first + len));
    destroy(table);
    failures
}

#[test]
fn whatever_table_is_missing_a_range_is_mapped_as_a_whole_or_not_at_all() {
    on_machines(|memory| {
        // One table above all leaves, two above two leaf tables each: what an attempt has linked, the next one finds.
        assert!(failures_of_mapping(memory, 0, PAGES) > 2);
        assert!(failures_of_mapping(memory, 3, PAGES - 5) > 2);
        assert!(failures_of_mapping(memory, 2 * LEAF, LEAF) > 1);
    });
}

#[test]
fn entries_that_go_on_as_the_one_before_are_shown_as_runs() {
    on_machines(|memory| {
        let table = PageTable::<_, X86_64>::create(memory, None).unwrap();
        table.map_range(pages(0, 64), pfn(0), BITS[0], GfpFlags::KERNEL).unwrap();
        let lens = || {
            let mut lens = vec![];
            table.visit_runs(pages(0, LEAF), |run| lens.push(run.len));
            lens
        };
        let whole = lens().len();
        assert!(lens().iter().all(|&len| len > 1), "{:?}", lens());
        for entry in [
            Pte::mapping(pfn(12), BITS[0] - PteBits::DIRTY),
            Pte::mapping(pfn(13), BITS[0]),
            Pte::mapping(pfn(12), BITS[8]),
            Pte::Guard,
            Pte::None,
        ] {
            set(table, memory, 12, entry);
            let odd = lens();
            assert_eq!(odd.iter().sum::<usize>(), 64 - usize::from(entry.is_none()));
            assert!(odd.len() > whole, "{entry:?} is no part of a run");
            set(table, memory, 12, Pte::mapping(pfn(12), BITS[0]));
            assert_eq!(lens().len(), whole);
        }
        destroy(table);
    });
}

/// Fails if entries keep their key with another right, or with no right, in whole groups or alone.
#[test]
fn what_may_be_executed_only_has_its_key_as_long_as_that_is_so() {
    const KEY: u64 = 1 << 59;
    on_machines(|memory| {
        let read = |bits| written::<X86_64>(Pte::mapping(pfn(0), bits)).mapped().unwrap().bits;
        assert_ne!(X86_64::encode(0, Pte::mapping(pfn(0), EXECUTE_ONLY)) & KEY, 0);
        let changes = FLAGS.into_iter().flat_map(|clear| FLAGS.map(|set| Change { clear, set }));
        let of_two = PteBits::EXEC | PteBits::DIRTY;
        for change in changes.chain([Change { clear: of_two, set: PteBits::empty() }]) {
            for len in [1, 7, 8, 65] {
                let table = PageTable::<_, X86_64>::create(memory, None).unwrap();
                table.map_range(pages(0, 80), pfn(0), EXECUTE_ONLY, GfpFlags::KERNEL).unwrap();
                let cpus = CpuSet::new();
                let mut gather = TlbGather::new(memory, table.pgd(), &cpus);
                table.protect_range(pages(0, len), &mut gather, change);
                gather.finish();
                let mut shown = vec![];
                table.visit_range(user::<X86_64>(), |found| shown.push(found.pte.mapped().unwrap().bits));
                let (changed, rest) = shown.split_at(len as usize);
                let due = read(change.of(EXECUTE_ONLY));
                assert!(changed.iter().all(|&bits| bits == due), "{len} by {change:?}: {:?}", changed[0]);
                assert!(rest.iter().all(|&bits| bits == EXECUTE_ONLY));
                destroy(table);
            }
        }
    });
}

/// Writes the entry of a page.
fn set(table: PageTable<'_, Mem<'_>, X86_64>, memory: &Mem<'_>, page: u64, entry: Pte) {
    let pin = memory.platform().pin();
    let addr = pages(page, 1).start();
    let Leaf::Table(leaf) = table.lock(&pin, addr) else { panic!("a leaf table") };
    leaf.set(addr, entry);
}

/// Hardware notes use and writes in entries with no lock, also while a range is shown and changed.
#[test]
fn what_hardware_notes_meanwhile_is_not_lost_and_disturbs_nothing() {
    let machine = Machine::pc(32 << 20).cpus(2).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let table = PageTable::<_, X86_64>::create(&memory, None).unwrap();
    let cpus = CpuSet::new();
    assert!(cpus.insert(CpuId(1)));
    let gather = || TlbGather::new(&memory, table.pgd(), &cpus);
    let (range, fresh) = (pages(0, 64), PteBits::READ | PteBits::WRITE | PteBits::USER);
    let (added, noted) = (PteBits::EXEC, PteBits::ACCESSED | PteBits::DIRTY);
    for round in 0..if long() { 10_000 } else { 500 } {
        table.map_range(range, pfn(0), fresh, GfpFlags::KERNEL).unwrap();
        let written = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _cpu = machine.cpu(CpuId(1)).unwrap();
                machine.switch_tables(Some(table.pgd()));
                for page in 0..64 {
                    machine.store(pages(page, 1).start(), &[1]).unwrap();
                    written.store(page + 1, Release);
                }
                machine.switch_tables(None);
            });
            while written.load(Acquire) < round % 64 {
                std::hint::spin_loop();
            }
            let mut shown = vec![];
            table.visit_range(range, |found| shown.push(found.pte.mapped().unwrap().pfn));
            assert_eq!(shown, Vec::from_iter((0..64).map(pfn)));
            let mut gather = gather();
            table.protect_range(range, &mut gather, Change { set: added, ..Change::default() });
            gather.finish();
        });
        let (mut gather, mut taken) = (gather(), vec![]);
        table.unmap_range(range, &mut gather, |_, found| taken.push(found.pte));
        gather.finish();
        let due = Vec::from_iter((0..64).map(|page| Pte::mapping(pfn(page), fresh | added | noted)));
        assert!(taken == due, "round {round}");
    }
    // The CPU that has left remembers tables, too.
    let mut gather = gather();
    table.free_empty(user::<X86_64>(), &TaskLock::new(()), &mut gather);
    gather.finish();
    destroy(table);
}

#[test]
fn a_gather_that_is_full_at_the_end_of_a_table_takes_nothing_before_the_range() {
    on_machines(|memory| {
        for len in (8..LEAF).step_by(8) {
            let table = PageTable::<_, X86_64>::create(memory, None).unwrap();
            // The second table ends where one begins that another table above has, the first does not.
            table.map_range(pages(0, 2 * LEAF), pfn(0), SETTLED, GfpFlags::KERNEL).unwrap();
            let cpus = CpuSet::new();
            for end in [2 * LEAF, LEAF] {
                let mut gather = TlbGather::new(memory, table.pgd(), &cpus);
                table.unmap_range(pages(end - len, len), &mut gather, |gather, _| {
                    gather.page(memory.alloc_pages(GfpFlags::KERNEL, PageOrder::ZERO).unwrap());
                });
                gather.finish();
            }
            let mut left = vec![];
            table.visit_range(user::<X86_64>(), |found| left.push((found.addr.get() - BASE) / PAGE));
            assert_eq!(left, Vec::from_iter((0..LEAF - len).chain(LEAF..2 * LEAF - len)), "{len} pages");
            destroy(table);
        }
    });
}

#[test]
fn a_range_that_cannot_be_mapped_is_refused_by_its_cause() {
    on_machines(|memory| {
        let table = PageTable::<_, X86_64>::create(memory, None).unwrap();
        let map = |range, first| table.map_range(range, first, BITS[0], GfpFlags::KERNEL);
        let odd = VirtRange::with_len(VirtAddr::from(BASE + 1), PAGE).unwrap();
        assert_eq!(map(odd, pfn(0)), Err(TableError::Misaligned));
        let last = Pfn::new(Pfn::MAX.get() - 2).unwrap();
        assert_eq!(map(pages(0, 3), last), Err(TableError::OutOfRange), "no such frame");
        let behind = VirtRange::with_len(VirtAddr::from(X86_64::USER_END - PAGE), 2 * PAGE).unwrap();
        assert_eq!(map(behind, pfn(0)), Err(TableError::OutOfRange));
        map(pages(2 * LEAF + 7, 1), pfn(0)).unwrap();
        assert_eq!(map(pages(0, PAGES), pfn(0)), Err(TableError::Occupied));
        assert_shows(table, &[2 * LEAF + 7]);
        destroy(table);
    });
}
