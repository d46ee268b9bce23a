//! mremap moves pages: a leaf table as one where 2 MiB move to where 2 MiB begin, the rest entry by entry. CPUs forget the old place once
//! a call, and every page
//! arrives with its contents.

mod scene;

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;

use kernmm::addr::{PageOrder, Pfn, VirtRange};
use kernmm::fault::EntryState;
use kernmm::flags::{Advice, MremapFlags};
use kernmm::memory::{Memory, Process, User, Vm};
use kernmm::mm::{MmError, Overcommit, OvercommitMode};
use kernmm::platform::hosted::{CpuGuard, Machine};
use kernmm::platform::{FlushScope, Platform};
use kernmm::table::{PageTable, X86_64};

use scene::{ARENA, Mem, NOT_MAPPED, PAGE, PRIVATE, Proc, RW, SHARED, Wishes};
use scene::{advise, at, load, map_at, on_machine_with, process, store};

const HUGE: u64 = 2 << 20;
/// Pages of 2 MiB.
const PAGES: u64 = HUGE / PAGE;
const TO: u64 = ARENA + 16 * HUGE;
const MOVE: MremapFlags = MremapFlags::MAYMOVE.union(MremapFlags::FIXED);
const KEEP: MremapFlags = MOVE.union(MremapFlags::DONTUNMAP);

fn shift(process: &Proc<'_, '_, '_>, from: u64, pages: u64, to: u64) {
    assert_eq!(process.mremap(from, pages * PAGE, pages * PAGE, MOVE, to), Ok(at(to)));
}

/// The page tables of a process.
fn tables(vm: &Vm<'_, Mem<'_>>, process: &Proc<'_, '_, '_>) -> Vec<Pfn> {
    let mut tables = vec![];
    let root = process.with(|mm| mm.shared().pgd()).unwrap();
    PageTable::<_, X86_64>::at(vm.source(), root).visit_tables(|table| tables.push(table));
    tables.sort();
    tables
}

/// Runs a test that may map more than there is.
fn with_memory(test: impl for<'a, 'm> FnOnce(&Vm<'a, Mem<'m>>)) {
    let overcommit = Some(Overcommit::new(OvercommitMode::Always, 1 << 12, 0));
    on_machine_with(Wishes { overcommit, ..Wishes::default() }, |vm, _| test(vm));
}

fn small(process: &Proc<'_, '_, '_>, addr: u64, pages: u64) {
    map_at(process, addr, pages, RW, PRIVATE);
    advise(process, addr, pages, Advice::NoHugePage).unwrap();
}

/// Runs a test with a process that CPUs 0 and 1 know.
fn known_to_two(
    written: &[u64],
    test: impl FnOnce(&Proc<'_, '_, '_>, &dyn Fn(&dyn Fn()) -> Vec<(FlushScope, bool)>),
) {
    let machine = Machine::pc(16 << 20).cpus(2).build().unwrap();
    let cpus: Vec<CpuGuard<'_>> = machine.all_cpus().unwrap();
    let memory = Memory::on(&machine).unwrap();
    // What a failed test leaves behind is past tidying up.
    let vm: ManuallyDrop<Vm<'_, _>> = ManuallyDrop::new(Vm::on(&memory).unwrap());
    let process = ManuallyDrop::new(Process::new(&vm).unwrap());
    small(&process, ARENA, 4 * PAGES);
    for cpu in &cpus {
        cpu.run(|| {
            written.iter().for_each(|page| User::new(&process).store(at(ARENA + page * PAGE), b"!").unwrap())
        });
    }
    machine.record_flushes();
    let root = process.with(|mm| mm.shared().pgd()).unwrap();
    test(&process, &|change| {
        machine.take_flushes();
        change();
        assert_eq!(machine.stale_translation(), None);
        let own = machine.take_flushes().into_iter().filter(|(_, flush)| flush.pgd == root);
        own.map(|(cpus, flush)| {
            assert_eq!(cpus.iter().count(), 2);
            (flush.scope, flush.tables)
        })
        .collect()
    });
    vm.assert_sound(&[&process]);
    cpus.iter().for_each(|cpu| cpu.run(|| machine.switch_tables(None)));
    drop(ManuallyDrop::into_inner(process));
    cpus[0].run(|| drop(ManuallyDrop::into_inner(vm)));
}

fn range(page: u64, pages: u64) -> FlushScope {
    FlushScope::Range(VirtRange::with_len(at(ARENA + page * PAGE), pages * PAGE).unwrap())
}

/// Fails with a flush for each batch of entries or for each table, without the way among what is forgotten when a table moves, or with
/// pages that nobody knows.
#[test]
fn a_move_forgets_the_old_place_once_whatever_it_moves() {
    let all: Vec<u64> = (0..4 * PAGES).collect();
    type Case<'c> = (&'c [u64], u64, u64, u64, &'c [(FlushScope, bool)]);
    let cases: [Case<'_>; 8] = [
        // Two whole tables: so many pages are forgotten with all others, and the ways to them.
        (&all, 0, 2 * PAGES, TO, &[(FlushScope::All, true)]),
        // A table of one page.
        (&[PAGES + 7], PAGES, PAGES, TO, &[(FlushScope::All, true)]),
        // A table, and parts of those beside it.
        (&all, PAGES - 9, PAGES + 20, TO - 9 * PAGE, &[(FlushScope::All, true)]),
        // A page beside where tables begin. The two that are empty by that go with their mapping.
        (&all, 0, 2 * PAGES, TO + PAGE, &[(FlushScope::All, false), (FlushScope::All, true)]),
        // Few pages by two tables, here and there: the first and the last that are there.
        (&[PAGES - 3, PAGES + 2], PAGES - 10, 20, TO - 5 * PAGE, &[(range(PAGES - 3, 6), false)]),
        // No more than are forgotten one by one.
        (&all, PAGES - 16, 33, TO - PAGE, &[(range(PAGES - 16, 33), false)]),
        (&[3], 3, 1, TO, &[(FlushScope::Page(at(ARENA + 3 * PAGE)), false)]),
        // Nothing is there; in the second table nothing either.
        (&[3], 4, 2 * PAGES, TO + 4 * PAGE, &[]),
    ];
    for (index, (written, first, pages, to, expected)) in cases.into_iter().enumerate() {
        known_to_two(written, |process, flushes| {
            let flushes = flushes(&|| shift(process, ARENA + first * PAGE, pages, to));
            assert_eq!(flushes, expected, "case {index}");
        });
    }
}

/// The table is the same afterwards, and no other is made; with whatever is in it.
///
/// Fails if entries are moved instead, or a table is made for them.
#[test]
fn a_whole_table_moves_by_its_entry() {
    with_memory(|vm| {
        let process = process(vm);
        // The tables above the leaves are there, for both places.
        small(&process, ARENA, 20 * PAGES);
        let seen = [5, 100, 511].map(|page| ARENA + HUGE + page * PAGE);
        seen.iter().for_each(|&addr| store(&process, addr, 9).unwrap());
        advise(&process, seen[1], 1, Advice::GuardInstall).unwrap();
        let before = tables(vm, &process);
        for [from, to] in [[ARENA + HUGE, TO], [TO, TO + 7 * HUGE], [TO + 7 * HUGE, ARENA + HUGE]] {
            shift(&process, from, PAGES, to);
            assert_eq!(tables(vm, &process), before, "to {to:#x}");
            vm.assert_sound(&[&process]);
            let shifted = seen.map(|addr| addr - (ARENA + HUGE) + to);
            assert_eq!(process.entry_state(at(shifted[1])), Some(EntryState::Guard));
            assert_eq!([0, 2].map(|page| load(&process, shifted[page])), [Ok(9), Ok(9)]);
            assert_eq!(load(&process, shifted[0] + PAGE), Ok(0));
            assert_eq!(load(&process, from), Err(NOT_MAPPED));
            advise(&process, shifted[0] + PAGE, 1, Advice::DontNeed).unwrap();
        }
    });
}

/// What was mapped at the target leaves an empty table behind, which goes. A source that stays mapped has none.
///
/// Fails if the target's table is lost, counted on, or in the way.
#[test]
fn a_table_takes_the_place_of_an_empty_one() {
    with_memory(|vm| {
        for flags in [MOVE, KEEP] {
            let process = process(vm);
            small(&process, ARENA, PAGES);
            small(&process, TO, PAGES);
            store(&process, ARENA + 5 * PAGE, 5).unwrap();
            (0..3).for_each(|page| store(&process, TO + page * PAGE, 7).unwrap());
            let before = tables(vm, &process);
            process.mremap(ARENA, HUGE, HUGE, flags, TO).unwrap();
            let after = tables(vm, &process);
            assert_eq!(after.len() + 1, before.len(), "{flags:?}");
            assert!(after.iter().all(|table| before.contains(table)), "a table was made");
            vm.assert_sound(&[&process]);
            assert_eq!((load(&process, TO), load(&process, TO + 5 * PAGE)), (Ok(0), Ok(5)));
            let left = if flags == KEEP { Ok(0) } else { Err(NOT_MAPPED) };
            assert_eq!(load(&process, ARENA + 5 * PAGE), left);
            vm.assert_sound(&[&process]);
        }
    });
}

/// Fails if more is prepared for a move than the way to an entry of 2 MiB.
#[test]
fn whole_tables_move_where_no_frame_is_left() {
    with_memory(|vm| {
        let process = process(vm);
        // More than are kept for those who must have one.
        const TABLES: u64 = 40;
        let to = TO + 64 * HUGE;
        small(&process, ARENA, TABLES * PAGES);
        (0..TABLES).for_each(|table| store(&process, ARENA + table * HUGE, 1).unwrap());
        small(&process, to + 64 * HUGE, 4096);
        let filled = (0..4096).find(|page| store(&process, to + 64 * HUGE + page * PAGE, 1).is_err());
        assert!(filled.is_some());
        shift(&process, ARENA, TABLES * PAGES, to);
        let beside = process.mremap(to, TABLES * HUGE, TABLES * HUGE, MOVE, ARENA + PAGE);
        assert_eq!(beside, Err(MmError::OutOfMemory));
        vm.assert_sound(&[&process]);
        (0..TABLES).for_each(|table| assert_eq!(load(&process, to + table * HUGE), Ok(1)));
    });
}

/// Memory shared by a file of memory moves with its pages.
#[test]
fn shared_pages_move_as_private_ones_do() {
    with_memory(|vm| {
        let process = process(vm);
        map_at(&process, ARENA, 2 * PAGES, RW, SHARED);
        let seen = [0, 7, PAGES + 1];
        seen.iter().for_each(|page| store(&process, ARENA + page * PAGE, 3).unwrap());
        let child = process.fork().unwrap();
        for [from, to] in [[ARENA, TO], [TO, ARENA + PAGE], [ARENA + PAGE, TO + HUGE]] {
            shift(&process, from, 2 * PAGES, to);
            vm.assert_sound(&[&process, &child]);
            seen.iter().for_each(|page| assert_eq!(load(&process, to + page * PAGE), Ok(3)));
        }
        store(&process, TO + HUGE, 4).unwrap();
        assert_eq!(load(&child, ARENA), Ok(4));
    });
}

/// What a page of the random moves is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Is {
    Written(u8),
    Guard,
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn of(&mut self, choices: &[u64]) -> u64 {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Moves of all sizes, at and beside where tables begin, of small and huge pages and guards, over what is mapped there: each page is where
/// it was moved to, and
/// nothing else is.
#[test]
fn every_page_arrives_by_whichever_way_it_goes() {
    // So many pages of address space.
    const ALL: u64 = 8 * PAGES;
    for seed in 1..=3 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        with_memory(|vm| {
            let process = process(vm);
            let mut pages: BTreeMap<u64, Is> = BTreeMap::new();
            map_at(&process, ARENA, 3 * PAGES, RW, PRIVATE);
            let (mut moves, mut whole) = (0, 0);
            for step in 0..1000 {
                let mut count =
                    random.of(&[1, 3, 40, PAGES - 1, PAGES, PAGES, PAGES + 1, 2 * PAGES, 2 * PAGES + 3]);
                let place = |random: &mut Random| {
                    let beside = random.of(&[0, 0, 0, 1, 300, PAGES - 1]);
                    (random.below(7) * PAGES + beside).min(ALL - count)
                };
                let (mut from, to) = (place(&mut random), place(&mut random));
                let areas = scene::layout(&process);
                if let Some(&(start, pages)) = areas.get(random.below(2 * areas.len() as u64) as usize) {
                    (from, count) = ((start - ARENA) / PAGE, count.min(pages));
                }
                let addr = |page: u64| ARENA + page * PAGE;
                let to = if random.below(2) == 0 { to / PAGES * PAGES + from % PAGES } else { to };
                let to = to.min(ALL - count);
                match random.below(10) {
                    0 => {
                        let (first, count) = (from.min(ALL - 2 * PAGES) / PAGES * PAGES, 2 * PAGES);
                        map_at(&process, addr(first), count, RW, PRIVATE);
                        let advice = if random.below(3) == 0 { Advice::HugePage } else { Advice::NoHugePage };
                        advise(&process, addr(first), count, advice).unwrap();
                        pages.retain(|page, _| !(first..first + count).contains(page));
                    }
                    1 => {
                        if advise(&process, addr(from), 1, Advice::GuardInstall).is_ok() {
                            pages.insert(from, Is::Guard);
                        }
                    }
                    2..=4 => {
                        let (page, byte) = (from + random.below(count), step as u8 | 1);
                        if pages.get(&page) != Some(&Is::Guard) && store(&process, addr(page), byte).is_ok() {
                            pages.insert(page, Is::Written(byte));
                        }
                    }
                    _ => {
                        let flags = if random.below(5) == 0 { KEEP } else { MOVE };
                        let lens = count * PAGE;
                        // Of several VMAs the first may move and the second not.
                        let is_one = areas.iter().any(|&(start, pages)| {
                            start <= addr(from) && addr(from + count) <= start + pages * PAGE
                        });
                        if is_one && process.mremap(addr(from), lens, lens, flags, addr(to)).is_ok() {
                            moves += 1;
                            whole += u64::from(from % PAGES == to % PAGES && count >= PAGES);
                            let moved: Vec<_> =
                                pages.range(from..from + count).map(|(&page, &is)| (page, is)).collect();
                            pages.retain(|page, _| {
                                !(from..from + count).contains(page) && !(to..to + count).contains(page)
                            });
                            pages.extend(moved.into_iter().map(|(page, is)| (page - from + to, is)));
                        }
                    }
                }
                if step % 8 == 0 {
                    vm.assert_sound(&[&process]);
                }
                let mut found = BTreeMap::new();
                let area = VirtRange::with_len(at(ARENA), ALL * PAGE).unwrap();
                process.visit_pages(area, |addr, state| {
                    let page = (addr.get() - ARENA) / PAGE;
                    match state.resident() {
                        None => _ = found.insert(page, Is::Guard),
                        // Of a huge page most are zeros.
                        Some(resident) if resident.order == PageOrder::MAX && !pages.contains_key(&page) => {}
                        Some(_) => _ = found.insert(page, Is::Written(0)),
                    }
                });
                for (&page, &is) in &pages {
                    match is {
                        Is::Written(byte) => {
                            assert_eq!(
                                load(&process, addr(page)),
                                Ok(byte),
                                "seed {seed}, step {step}, page {page}"
                            );
                        }
                        Is::Guard => assert_eq!(found.get(&page), Some(&Is::Guard)),
                    }
                }
                let strangers =
                    found.iter().filter(|(page, is)| !pages.contains_key(page) && **is == Is::Guard);
                assert_eq!(strangers.count(), 0, "seed {seed}, step {step}");
            }
            assert!(moves > 100 && whole > 8, "{moves} moves, {whole} of whole tables");
            vm.assert_sound(&[&process]);
        });
    }
}
