//! The simulated memory management unit, with page tables written by hand.

mod hand;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use hand::*;
use kernmm::addr::{PageOrder, Pfn, PhysAddr};
use kernmm::flags::GfpFlags;
use kernmm::memory::Memory;
use kernmm::platform::hosted::{Access, Asids, FaultKind, LoseFlushes, Machine, Mmu, MmuFault, ReachedBy};
use kernmm::platform::{CpuId, FlushScope, Platform, TlbFlush};

const FORMATS: [Mmu; 3] = [Mmu::X86_64, Mmu::Pae, Mmu::Sv39];
/// An address that all formats have, whose indices differ at every level.
const AT: u64 = 0x40a0_3000;
const ORDER: fn(u8) -> PageOrder = |order| PageOrder::new(order).unwrap();

/// 48 MiB, of which the upper 16 MiB are HIGHMEM.
fn machine(format: Mmu) -> Machine {
    let high = PhysAddr::new(32 << 20).unwrap();
    Machine::pc(48 << 20).cpus(3).highmem_from(high).mmu(format).build().unwrap()
}

/// Runs a test on a machine of each format.
fn on_each(test: impl Fn(&Hand<'_>, &Machine)) {
    for format in FORMATS {
        on(&machine(format), format, &test);
    }
}

fn on(machine: &Machine, format: Mmu, test: impl Fn(&Hand<'_>, &Machine)) {
    let _cpus = machine.all_cpus().unwrap();
    let memory = Memory::on(machine).unwrap();
    let hand = Hand::new(&memory, format);
    hand.activate();
    test(&hand, machine);
}

fn fault(at: u64, access: Access, present: bool) -> MmuFault {
    MmuFault { addr: addr(at), access, present, kind: FaultKind::Page }
}

#[test]
fn loads_stores_and_fetches_reach_the_frame_behind_the_address() {
    on_each(|hand, machine| {
        let (one, two) = (hand.frame(0x11), hand.frame(0x22));
        assert!(machine.direct_map(one).is_none(), "HIGHMEM goes first");
        hand.map(AT, one, hand.all());
        hand.map(AT + PAGE, two, hand.all());
        assert_eq!((hand.byte(AT), hand.byte(AT + PAGE)), (Ok(0x11), Ok(0x22)));
        machine.store(addr(AT + 100), b"stored").unwrap();
        let mut found = [0; 6];
        hand.memory.read_frame(one, 100, &mut found).unwrap();
        assert_eq!(&found, b"stored");
        machine.fetch(addr(AT + 101), &mut found[..3]).unwrap();
        assert_eq!(&found[..3], b"tor");
        assert_eq!(hand.byte(AT + 2 * PAGE), Err(fault(AT + 2 * PAGE, Access::Load, false)));
        // Over the page's end, and by the kernel.
        machine.kernel_store(addr(AT + PAGE - 2), b"over").unwrap();
        machine.kernel_load(addr(AT + PAGE - 3), &mut found).unwrap();
        assert_eq!(&found, b"\x11over\x22");
        machine.switch_tables(None);
        assert_eq!(hand.byte(AT), Err(fault(AT, Access::Load, false)), "no tables, no memory");
    });
}

#[test]
fn tables_may_lie_above_the_direct_map() {
    for format in FORMATS {
        let machine = machine(format);
        let _cpus = machine.all_cpus().unwrap();
        let memory = Memory::on(&machine).unwrap();
        let hand = Hand::with_tables_in(&memory, format, GfpFlags::HIGHUSER);
        assert!(machine.direct_map(hand.root).is_none());
        hand.activate();
        hand.map(AT, hand.frame(7), hand.all());
        assert_eq!(hand.byte(AT), Ok(7));
        machine.store(addr(AT), &[8]).unwrap();
        let dirty = if format == Mmu::Sv39 { sv39::D } else { x86::D };
        assert_ne!(hand.get(AT, 0) & dirty, 0);
    }
}

#[test]
fn a_fault_names_the_first_byte_that_is_not_there() {
    on_each(|hand, machine| {
        let pfn = hand.frame(0);
        hand.map(AT, pfn, hand.all());
        let bytes = [9; 3 * PAGE as usize];
        let end = AT + PAGE;
        assert_eq!(machine.store(addr(AT + 4000), &bytes), Err(fault(end, Access::Store, false)));
        assert_eq!(hand.byte(end - 1), Ok(9), "what comes before has been written");
        assert_eq!(hand.byte(AT + 3999), Ok(0));
        let before = fault(AT - 1, Access::Fetch, false);
        assert_eq!(machine.fetch(addr(AT - 1), &mut [0; 2]), Err(before));
        assert_eq!(machine.load(addr(AT - 1), &mut []), Ok(()), "nothing is asked for");
    });
}

#[test]
fn rights_of_x86_are_those_that_all_levels_give() {
    for format in [Mmu::X86_64, Mmu::Pae] {
        on(&machine(format), format, |hand, machine| {
            let pfn = hand.frame(1);
            let can = |level: u32, bits: u64| {
                hand.map(AT, pfn, hand.all());
                let (table, index) = hand.place(AT, level);
                let before = hand.read(table, index);
                hand.write(table, index, before & !x86::TABLE | bits);
                hand.flush(&[0], FlushScope::All, true);
                let user = [
                    machine.load(addr(AT), &mut [0]),
                    machine.store(addr(AT), &[1]),
                    machine.fetch(addr(AT), &mut [0]),
                ];
                let kernel = machine.kernel_store(addr(AT), &[1]);
                for (access, result) in [Access::Load, Access::Store, Access::Fetch].into_iter().zip(user) {
                    assert!(result.is_ok() || result == Err(fault(AT, access, bits & x86::P != 0)));
                }
                hand.write(table, index, before);
                hand.flush(&[0], FlushScope::All, true);
                (user.map(|result| result.is_ok()), kernel.is_ok())
            };
            let levels = if format == Mmu::X86_64 { 0..4 } else { 0..2 };
            for level in levels {
                assert_eq!(can(level, x86::TABLE), ([true; 3], true));
                assert_eq!(can(level, x86::P | x86::US), ([true, false, true], false), "level {level}");
                assert_eq!(can(level, x86::P | x86::RW), ([false; 3], true), "level {level}: the kernel's");
                assert_eq!(can(level, x86::TABLE | x86::NX), ([true, true, false], true), "level {level}");
                assert_eq!(can(level, x86::RW | x86::US), ([false; 3], false), "level {level}");
            }
        });
    }
}

#[test]
fn rights_of_sv39_are_the_leafs() {
    use sv39::{R, U, V, W, X};
    on(&machine(Mmu::Sv39), Mmu::Sv39, |hand, machine| {
        let pfn = hand.frame(1);
        let can = |bits: u64| {
            hand.map(AT, pfn, bits);
            hand.flush(&[0], FlushScope::All, true);
            [
                machine.load(addr(AT), &mut [0]).is_ok(),
                machine.store(addr(AT), &[1]).is_ok(),
                machine.fetch(addr(AT), &mut [0]).is_ok(),
                machine.kernel_load(addr(AT), &mut [0]).is_ok(),
            ]
        };
        assert_eq!(can(V | R | U), [true, false, false, true]);
        assert_eq!(can(V | R | W | U), [true, true, false, true]);
        assert_eq!(can(V | X | U), [false, false, true, false], "to be executed alone");
        assert_eq!(can(V | R | X | U), [true, false, true, true]);
        assert_eq!(can(V | R | W | X), [false, false, false, true], "the kernel's");
        assert_eq!(can(R | W | X | U), [false; 4]);
    });
}

#[test]
fn what_is_no_address_faults_as_each_machine_does() {
    let kinds = |format, addresses: &[u64]| -> Vec<FaultKind> {
        let mut found = vec![];
        let machine = machine(format);
        let _cpus = machine.all_cpus().unwrap();
        let memory = Memory::on(&machine).unwrap();
        let hand = Hand::new(&memory, format);
        hand.activate();
        for &at in addresses {
            let fault = hand.byte(at).unwrap_err();
            assert_eq!((fault.addr, fault.present), (addr(at), false));
            found.push(fault.kind);
        }
        found
    };
    use FaultKind::{NonCanonical, Page};
    let x86 = [0x7fff_ffff_f000, 0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 0xffff_8000_0000_0000, u64::MAX];
    assert_eq!(kinds(Mmu::X86_64, &x86), [Page, NonCanonical, NonCanonical, Page, Page]);
    assert_eq!(kinds(Mmu::Pae, &[0xffff_ffff, 1 << 32]), [Page, NonCanonical]);
    assert_eq!(kinds(Mmu::Sv39, &[0x3f_ffff_ffff, 0x40_0000_0000, u64::MAX]), [Page; 3]);
}

#[test]
fn an_access_across_the_end_of_the_canonical_half_faults_there() {
    on(&machine(Mmu::X86_64), Mmu::X86_64, |hand, machine| {
        let last = 0x7fff_ffff_f000;
        hand.map(last, hand.frame(3), hand.all());
        let fault = machine.load(addr(last + 4094), &mut [0; 4]).unwrap_err();
        assert_eq!((fault.addr, fault.kind), (addr(0x8000_0000_0000), FaultKind::NonCanonical));
    });
}

#[test]
fn a_stale_translation_is_used_until_it_is_flushed() {
    on_each(|hand, machine| {
        let (old, new) = (hand.frame(1), hand.frame(2));
        hand.map(AT, old, hand.all());
        assert_eq!(hand.byte(AT), Ok(1));
        hand.map(AT, new, hand.all());
        assert_eq!(hand.byte(AT), Ok(1), "remembered");
        machine.fetch(addr(AT), &mut [0]).unwrap();
        hand.flush_page(&[1, 2], AT);
        assert_eq!(hand.byte(AT), Ok(1), "others were told");
        hand.flush_page(&[0], AT + PAGE);
        hand.flush_range(&[0], AT - 2 * PAGE, AT, false);
        hand.flush_range(&[0], AT + PAGE, AT + (100 << 20), false);
        assert_eq!(hand.byte(AT), Ok(1), "other pages were named");
        hand.flush_page(&[0], AT + 5);
        assert_eq!(hand.byte(AT), Ok(2));
        hand.unmap(AT);
        assert_eq!(hand.byte(AT), Ok(2));
        hand.flush_range(&[0], AT, AT + 1, false);
        assert_eq!(hand.byte(AT), Err(fault(AT, Access::Load, false)));
    });
}

#[test]
fn each_scope_forgets_what_it_names_and_no_more() {
    // Far apart, so that a range of a few pages and one of many both meet some of them.
    let pages = [AT, AT + PAGE, AT + 40 * PAGE, AT + 600 * PAGE];
    let left = |scope: FlushScope| {
        let (format, mut left) = (Mmu::X86_64, vec![]);
        let machine = machine(format);
        let _cpus = machine.all_cpus().unwrap();
        let memory = Memory::on(&machine).unwrap();
        let (hand, other) = (Hand::new(&memory, format), Hand::new(&memory, format));
        for space in [&hand, &other] {
            space.activate();
            for at in pages {
                space.map(at, space.frame(1), space.all());
                assert_eq!(space.byte(at), Ok(1));
                space.unmap(at);
            }
        }
        hand.flush(&[0], scope, false);
        for space in [&hand, &other] {
            space.activate();
            left.push(pages.map(|at| space.byte(at).is_ok()));
        }
        left
    };
    let range = |start, end| FlushScope::Range(kernmm::addr::VirtRange::new(addr(start), addr(end)).unwrap());
    assert_eq!(left(FlushScope::All), [[false; 4], [true; 4]]);
    assert_eq!(left(FlushScope::Page(addr(AT + PAGE))), [[true, false, true, true], [true; 4]]);
    assert_eq!(left(range(AT, AT + 2 * PAGE)), [[false, false, true, true], [true; 4]]);
    assert_eq!(left(range(AT + PAGE, AT + 600 * PAGE)), [[true, false, false, true], [true; 4]]);
    assert_eq!(left(range(AT + PAGE, AT + 600 * PAGE + 1)), [[true, false, false, false], [true; 4]]);
    assert_eq!(left(range(AT, AT)), [[true; 4], [true; 4]]);
}

#[test]
fn the_way_to_an_entry_is_remembered_until_tables_are_flushed() {
    on_each(|hand, machine| {
        hand.map(AT, hand.frame(1), hand.all());
        hand.map(AT + PAGE, hand.frame(2), hand.all());
        assert_eq!(hand.byte(AT), Ok(1));
        // Another table takes the place of the one that the CPU has walked.
        let (upper, index) = hand.place(AT, 1);
        let old = hand.read(upper, index);
        hand.write(upper, index, 0);
        hand.map(AT + PAGE, hand.frame(3), hand.all());
        hand.flush_range(&[0], AT, AT + 2 * PAGE, false);
        assert_eq!(hand.byte(AT + PAGE), Ok(2), "found in the old table");
        hand.flush_range(&[0], AT + LARGE, AT + 2 * LARGE, true);
        hand.flush_page(&[0], AT + PAGE);
        assert_eq!(hand.byte(AT + PAGE), Ok(2), "tables elsewhere were named");
        hand.flush_range(&[0], AT, AT + 2 * PAGE, true);
        assert_eq!(hand.byte(AT + PAGE), Ok(3));
        assert_eq!(hand.byte(AT), Err(fault(AT, Access::Load, false)));
        // Of a range of many pages, too.
        hand.write(upper, index, old);
        hand.flush_range(&[0], AT + PAGE, AT + 300 * PAGE, true);
        assert_eq!(hand.byte(AT + PAGE), Ok(2));
        assert_eq!(machine.reached_by(upper, PageOrder::ZERO).map(|(cpu, _)| cpu), Some(Some(CpuId(0))));
    });
}

#[test]
fn a_fault_forgets_what_it_used() {
    on(&machine(Mmu::X86_64), Mmu::X86_64, |hand, machine| {
        let pfn = hand.frame(1);
        hand.map(AT, pfn, x86::P | x86::US);
        assert_eq!(hand.byte(AT), Ok(1));
        // Made writable, and nobody was told: the CPU finds out by a fault, once.
        hand.map(AT, pfn, x86::TABLE);
        assert_eq!(machine.store(addr(AT), &[2]), Err(fault(AT, Access::Store, true)));
        assert_eq!(machine.store(addr(AT), &[2]), Ok(()));
        // What is not present is not remembered.
        assert!(hand.byte(AT + PAGE).is_err());
        hand.map(AT + PAGE, hand.frame(3), hand.all());
        assert_eq!(hand.byte(AT + PAGE), Ok(3));
    });
}

#[test]
fn accessed_and_dirty_are_set_where_hardware_sets_them() {
    on_each(|hand, machine| {
        let (accessed, dirty) = match hand.format {
            Mmu::Sv39 => (sv39::A, sv39::D),
            _ => (x86::A, x86::D),
        };
        hand.map(AT, hand.frame(1), hand.all());
        let uppers: Vec<u64> = (1..=hand.top()).map(|level| hand.get(AT, level)).collect();
        machine.load(addr(AT), &mut [0]).unwrap();
        assert_eq!(hand.get(AT, 0) & (accessed | dirty), accessed);
        for (level, before) in (1..=hand.top()).zip(uppers) {
            let has_accessed = hand.format == Mmu::X86_64 || (hand.format == Mmu::Pae && level < 2);
            let expected = if has_accessed { before | x86::A } else { before };
            assert_eq!(hand.get(AT, level), expected, "{:?} level {level}", hand.format);
        }
        let clean = hand.get(AT, 0);
        machine.store(addr(AT), &[2]).unwrap();
        assert_eq!(hand.get(AT, 0), clean | dirty, "the translation was there, without the bit");
        // Cleaned without a flush: the CPU believes that it is dirty still.
        hand.set(AT, 0, clean);
        machine.store(addr(AT), &[3]).unwrap();
        assert_eq!(hand.get(AT, 0), clean);
        hand.flush_page(&[0], AT);
        machine.store(addr(AT), &[4]).unwrap();
        assert_eq!(hand.get(AT, 0), clean | dirty);
        hand.map(AT + PAGE, hand.frame(1), hand.all());
        machine.fetch(addr(AT + PAGE), &mut [0]).unwrap();
        assert_eq!(hand.get(AT + PAGE, 0) & (accessed | dirty), accessed);
        machine.store(addr(AT + PAGE), &[1]).unwrap();
        assert_eq!(hand.get(AT + PAGE, 0) & (accessed | dirty), accessed | dirty);
    });
}

#[test]
fn the_first_store_through_a_clean_translation_looks_again() {
    on_each(|hand, machine| {
        let (one, two) = (hand.frame(1), hand.frame(2));
        let read_only = match hand.format {
            Mmu::Sv39 => hand.all() & !sv39::W,
            _ => hand.all() & !x86::RW,
        };
        let again = |raw: u64| {
            hand.flush_page(&[0], AT);
            hand.map(AT, one, hand.all());
            assert_eq!(hand.byte(AT), Ok(1));
            hand.set(AT, 0, raw);
            machine.store(addr(AT), &[7])
        };
        assert_eq!(again(hand.entry(one, read_only)), Err(fault(AT, Access::Store, true)));
        assert_eq!(again(0), Err(fault(AT, Access::Store, false)));
        assert_eq!(again(hand.entry(two, hand.all())), Ok(()));
        let mut bytes = [0];
        hand.memory.read_frame(one, 0, &mut bytes).unwrap();
        assert_eq!((bytes, hand.byte(AT)), ([1], Ok(7)), "written where the entry leads now");
    });
}

#[test]
fn a_failed_access_sets_no_bit_in_the_pages_entry() {
    on(&machine(Mmu::X86_64), Mmu::X86_64, |hand, machine| {
        hand.map(AT, hand.frame(1), x86::P | x86::US | x86::NX);
        let before = hand.get(AT, 0);
        assert!(machine.store(addr(AT), &[1]).is_err() && machine.fetch(addr(AT), &mut [0]).is_err());
        assert_eq!(hand.get(AT, 0), before);
    });
}

#[test]
fn large_pages_are_one_translation() {
    on_each(|hand, machine| {
        let block = hand.memory.alloc_pages(GfpFlags::HIGHUSER, PageOrder::MAX).unwrap();
        let frame = |at| block.checked_add(at).unwrap();
        let large = if hand.format == Mmu::Sv39 { 0 } else { x86::PS };
        let start = AT & !(LARGE - 1);
        hand.set(start, 1, hand.entry(block, hand.all() | large));
        machine.store(addr(start + 5 * PAGE + 7), &[0x55]).unwrap();
        let mut byte = [0];
        hand.memory.read_frame(frame(5), 7, &mut byte).unwrap();
        assert_eq!(byte, [0x55]);
        hand.memory.write_frame(frame(511), 4095, &[0x66]).unwrap();
        assert_eq!(hand.byte(start + LARGE - 1), Ok(0x66));
        for at in [0, 5, 300, 511] {
            let by = ReachedBy::Translation(addr(start), hand.root);
            assert_eq!(machine.reached_by(frame(at), PageOrder::ZERO), Some((Some(CpuId(0)), by)));
        }
        hand.set(start, 1, 0);
        hand.flush_page(&[0], start - 1);
        hand.flush_page(&[0], start + LARGE);
        assert_eq!(hand.byte(start), Ok(0));
        hand.flush_page(&[0], start + 100 * PAGE);
        assert_eq!(hand.byte(start), Err(fault(start, Access::Load, false)), "any of its pages names it");
        assert_eq!(machine.reached_by(block, PageOrder::MAX), None);
    });
}

#[test]
fn pages_of_a_gibibyte_lead_to_ram_and_beyond() {
    for format in [Mmu::X86_64, Mmu::Sv39] {
        on(&machine(format), format, |hand, machine| {
            let large = if format == Mmu::Sv39 { 0 } else { x86::PS };
            hand.set(GIANT, 2, hand.entry(Pfn::ZERO, hand.all() | large));
            let pfn = hand.frame(0x77);
            assert_eq!(hand.byte(GIANT + (pfn.get() << 12) + 9), Ok(0x77));
            assert!(machine.reached_by(pfn, PageOrder::ZERO).is_some());
            // There is no RAM at 800 MiB.
            assert_eq!(hand.byte(GIANT + (800 << 20)), Ok(0xff));
            assert_eq!(machine.store(addr(GIANT + (800 << 20)), &[1]), Ok(()));
            assert_eq!(hand.byte(GIANT + (800 << 20)), Ok(0xff), "lost");
            hand.set(GIANT, 2, 0);
            hand.flush(&[0], FlushScope::All, true);
            assert_eq!(machine.reached_by(pfn, PageOrder::ZERO), None);
        });
    }
}

#[test]
fn each_cpu_has_its_own_memory_of_the_tables() {
    let machine = machine(Mmu::X86_64);
    let all = machine.all_cpus().unwrap();
    let memory = Memory::on(&machine).unwrap();
    let hand = Hand::new(&memory, Mmu::X86_64);
    hand.map(AT, hand.frame(1), hand.all());
    for cpu in &all {
        cpu.run(|| {
            hand.activate();
            assert_eq!(hand.byte(AT), Ok(1));
        });
    }
    hand.map(AT, hand.frame(2), hand.all());
    hand.flush_page(&[0, 2], AT);
    let seen: Vec<_> = all.iter().map(|cpu| cpu.run(|| hand.byte(AT).unwrap())).collect();
    assert_eq!(seen, [2, 1, 2]);
    all[1].run(|| machine.switch_tables(None));
    assert_eq!(all[1].run(|| machine.tables()), None);
    assert_eq!(machine.tables(), Some(hand.root));
}

#[test]
fn translations_of_other_tables_are_kept_or_forgotten_as_asked() {
    for asids in [Asids::On, Asids::Off] {
        let machine = Machine::pc(32 << 20).asids(asids).build().unwrap();
        on(&machine, Mmu::X86_64, |hand, machine| {
            let other = Hand::new(hand.memory, Mmu::X86_64);
            hand.map(AT, hand.frame(1), hand.all());
            hand.map(AT + PAGE, hand.frame(2), hand.all() | x86::G);
            other.map(AT, hand.frame(5), hand.all());
            assert_eq!((hand.byte(AT), hand.byte(AT + PAGE)), (Ok(1), Ok(2)));
            other.activate();
            assert_eq!(other.byte(AT), Ok(5), "one space never sees the other's");
            assert_eq!(other.byte(AT + PAGE), Ok(2), "but for what is global");
            hand.unmap(AT);
            hand.activate();
            assert_eq!(hand.byte(AT).is_ok(), asids == Asids::On);
            hand.flush(&[0], FlushScope::All, true);
            assert!(hand.byte(AT).is_err());
            hand.unmap(AT + PAGE);
            assert_eq!(hand.byte(AT + PAGE), Ok(2), "all of an address space, without what is global");
            hand.flush_page(&[0], AT + PAGE);
            assert!(hand.byte(AT + PAGE).is_err());
            machine.switch_tables(None);
        });
    }
}

#[test]
fn the_oldest_of_a_set_goes_first() {
    on(&machine(Mmu::X86_64), Mmu::X86_64, |hand, machine| {
        // One set of twelve: pages 128 apart. Thirteen are one too many.
        let frames: Vec<Pfn> = (0..13).map(|at| hand.frame(at)).collect();
        let at = |page: u64| AT + page * 128 * PAGE;
        for (page, &pfn) in (0..).zip(&frames) {
            hand.map(at(page), pfn, hand.all());
            assert_eq!(hand.byte(at(page)), Ok(page as u8));
        }
        let reached: Vec<bool> =
            frames.iter().map(|&pfn| machine.reached_by(pfn, PageOrder::ZERO).is_some()).collect();
        assert_eq!(reached.iter().position(|&is| !is), Some(0));
        assert!(reached[1..].iter().all(|&is| is));
        // In all 1536.
        for page in 0..3000 {
            hand.map(at(0) + page * PAGE, frames[0], hand.all());
            hand.byte(at(0) + page * PAGE).unwrap();
        }
        hand.flush(&[0], FlushScope::All, false);
        assert!(frames.iter().all(|&pfn| machine.reached_by(pfn, PageOrder::ZERO).is_none()));
    });
}

#[test]
fn flushes_are_noted_and_lost_on_request() {
    let machine = machine(Mmu::X86_64);
    let all = machine.all_cpus().unwrap();
    let memory = Memory::on(&machine).unwrap();
    let hand = Hand::new(&memory, Mmu::X86_64);
    hand.flush_page(&[0], AT);
    assert_eq!(machine.take_flushes(), [], "nobody asked to note them");
    machine.record_flushes();
    hand.flush_page(&[0, 2], AT);
    hand.flush(&[1], FlushScope::All, true);
    let flush = |scope, tables| TlbFlush { pgd: hand.root, scope, tables };
    let page = FlushScope::Page(addr(AT));
    let noted = [(cpus(&[0, 2]), flush(page, false)), (cpus(&[1]), flush(FlushScope::All, true))];
    assert_eq!((machine.take_flushes(), machine.take_flushes()), (noted.to_vec(), vec![]));

    let seen = |which| {
        hand.map(AT, hand.frame(1), hand.all());
        hand.flush(&[0, 1], FlushScope::All, true);
        for cpu in &all[..2] {
            cpu.run(|| {
                hand.activate();
                hand.byte(AT).unwrap()
            });
        }
        hand.map(AT, hand.frame(2), hand.all());
        machine.lose_flushes(which);
        hand.flush(&[0, 1], FlushScope::All, true);
        let (table, _) = hand.place(AT, 0);
        let knows_table = machine.reached_by(table, PageOrder::ZERO).is_some();
        machine.lose_flushes(LoseFlushes::None);
        (all[0].run(|| hand.byte(AT).unwrap()), all[1].run(|| hand.byte(AT).unwrap()), knows_table)
    };
    assert_eq!(seen(LoseFlushes::None), (2, 2, false));
    assert_eq!(seen(LoseFlushes::All), (1, 1, true));
    assert_eq!(seen(LoseFlushes::Remote), (2, 1, true));
    assert_eq!(seen(LoseFlushes::Tables), (2, 2, true));
}

#[test]
fn nobody_uses_a_translation_any_more_when_its_flush_is_over() {
    let machine = machine(Mmu::X86_64);
    let boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let hand = Hand::new(&memory, Mmu::X86_64);
    let (old, stop) = (hand.frame(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _second = machine.cpu(CpuId(1)).unwrap();
            machine.switch_tables(Some(hand.root));
            let mut count = 0_u64;
            while !stop.load(SeqCst) {
                count += 1;
                // It faults while the page is away.
                let _ = machine.store(addr(AT), &count.to_ne_bytes());
            }
        });
        let value = || {
            let mut bytes = [0; 8];
            memory.read_frame(old, 0, &mut bytes).unwrap();
            u64::from_ne_bytes(bytes)
        };
        for _ in 0..50 {
            hand.map(AT, old, hand.all());
            let before = value();
            while value() == before {
                thread::yield_now();
            }
            hand.unmap(AT);
            hand.flush_page(&[1], AT);
            let after = value();
            for _ in 0..100 {
                thread::yield_now();
                assert_eq!(value(), after, "written after the flush");
            }
        }
        stop.store(true, SeqCst);
    });
    drop(boot);
}

#[test]
fn an_atomic_update_is_one_on_all_cpus() {
    let machine = machine(Mmu::X86_64);
    let boot = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let hand = Hand::new(&memory, Mmu::X86_64);
    // Two addresses of one frame, as in two processes that share memory.
    let pfn = hand.frame(0);
    hand.map(AT, pfn, hand.all());
    hand.map(AT + PAGE, pfn, hand.all());
    drop(boot);
    thread::scope(|scope| {
        for cpu in 0..2 {
            let (machine, root) = (&machine, hand.root);
            scope.spawn(move || {
                let _cpu = machine.cpu(CpuId(cpu)).unwrap();
                machine.switch_tables(Some(root));
                let at = addr(AT + u64::from(cpu) * PAGE + 8);
                for _ in 0..2000 {
                    let mut seen = 0;
                    loop {
                        match machine.compare_exchange(at, seen, seen + 1).unwrap() {
                            now if now == seen => break,
                            now => seen = now,
                        }
                    }
                }
            });
        }
    });
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let mut bytes = [0; 4];
    memory.read_frame(pfn, 8, &mut bytes).unwrap();
    assert_eq!(u32::from_ne_bytes(bytes), 4000);
    hand.activate();
    let misaligned = machine.compare_exchange(addr(AT + 2), 0, 1).unwrap_err();
    assert_eq!(misaligned.kind, FaultKind::Misaligned);
    hand.map(AT, pfn, x86::P | x86::US);
    hand.flush_page(&[0], AT);
    assert_eq!(machine.compare_exchange(addr(AT), 0, 1), Err(fault(AT, Access::Store, true)));
}

#[test]
fn what_was_flushed_may_be_freed() {
    on_each(|hand, machine| {
        let pfn = hand.frame(1);
        hand.map(AT, pfn, hand.all());
        assert_eq!(hand.byte(AT), Ok(1));
        let (table, _) = hand.place(AT, 0);
        hand.unmap(AT);
        let (upper, index) = hand.place(AT, 1);
        hand.write(upper, index, 0);
        hand.flush_range(&[0], AT, AT + PAGE, true);
        assert_eq!(machine.reached_by(table, PageOrder::ZERO), None);
        hand.memory.free_pages(pfn, PageOrder::ZERO).unwrap();
        hand.memory.free_pages(table, PageOrder::ZERO).unwrap();
        machine.switch_tables(None);
        assert!(machine.reached_by(hand.root, PageOrder::ZERO).is_none());
        hand.memory.free_pages(hand.root, PageOrder::ZERO).unwrap();
    });
}

/// What must end the run: each is a test that does nothing unless it runs in a process of its own.
mod forbidden {
    use super::*;

    fn alone(test: impl Fn(&Hand<'_>, &Machine)) {
        if is_alone() {
            on(&machine(Mmu::X86_64), Mmu::X86_64, |hand, machine| {
                test(hand, machine);
                println!("survived");
            });
        }
    }

    fn free(hand: &Hand<'_>, pfn: Pfn, order: u8) {
        println!("about to do it");
        hand.memory.free_pages(pfn, ORDER(order)).unwrap();
    }

    #[test]
    fn free_a_page_that_is_translated_to() {
        alone(|hand, _| {
            let pfn = hand.frame(1);
            hand.map(AT, pfn, hand.all());
            hand.byte(AT).unwrap();
            hand.unmap(AT);
            hand.flush_page(&[1, 2], AT);
            free(hand, pfn, 0);
        });
    }

    #[test]
    fn free_a_page_that_left_tables_translate_to() {
        alone(|hand, machine| {
            let pfn = hand.frame(1);
            hand.map(AT, pfn, hand.all());
            hand.byte(AT).unwrap();
            hand.unmap(AT);
            machine.switch_tables(None);
            free(hand, pfn, 0);
        });
    }

    #[test]
    fn free_a_table_on_the_way() {
        alone(|hand, _| {
            hand.map(AT, hand.frame(1), hand.all());
            hand.byte(AT).unwrap();
            let (table, _) = hand.place(AT, 0);
            let (upper, index) = hand.place(AT, 1);
            hand.write(upper, index, 0);
            hand.flush(&[0], FlushScope::All, false);
            free(hand, table, 0);
        });
    }

    #[test]
    fn free_the_root_of_tables_in_use() {
        alone(|hand, _| free(hand, hand.root, 0));
    }

    #[test]
    fn free_a_page_inside_a_large_translation() {
        alone(|hand, _| {
            let block = hand.memory.alloc_pages(GfpFlags::HIGHUSER, PageOrder::MAX).unwrap();
            hand.set(LARGE, 1, hand.entry(block, hand.all() | x86::PS));
            hand.byte(LARGE).unwrap();
            hand.memory.phys().split_pages(&hand.memory.pin(), block, PageOrder::MAX, ORDER(0)).unwrap();
            free(hand, block.checked_add(77).unwrap(), 0);
        });
    }

    #[test]
    fn free_a_block_with_a_page_that_is_translated_to() {
        alone(|hand, _| {
            let block = hand.memory.alloc_pages(GfpFlags::HIGHUSER, ORDER(4)).unwrap();
            hand.map(AT, block.checked_add(15).unwrap(), hand.all());
            hand.byte(AT).unwrap();
            free(hand, block, 4);
        });
    }

    #[test]
    fn walk_a_table_with_reserved_bits() {
        alone(|hand, _| {
            hand.set(LARGE, 1, hand.entry(Pfn::ZERO, hand.all() | x86::PS | 1 << 13));
            println!("about to do it");
            let _ = hand.byte(LARGE);
        });
    }

    #[test]
    fn walk_a_table_that_is_not_in_ram() {
        alone(|hand, _| {
            hand.set(LARGE, 1, hand.entry(Pfn::new(1 << 30).unwrap(), x86::TABLE));
            println!("about to do it");
            let _ = hand.byte(LARGE);
        });
    }

    #[test]
    fn flush_with_interrupts_masked() {
        alone(|hand, machine| {
            let _pin = machine.pin();
            println!("about to do it");
            hand.flush_page(&[1], AT);
        });
    }
}

#[test]
fn what_is_forbidden_ends_the_run() {
    let cases = [
        ("free_a_page_that_is_translated_to", "CPU 0 translates 0x40a03000"),
        ("free_a_page_that_left_tables_translate_to", "CPU 0 translates 0x40a03000"),
        ("free_a_table_on_the_way", "CPU 0 finds the table for 0x40a00000"),
        ("free_the_root_of_tables_in_use", "CPU 0 walks its tables from there"),
        ("free_a_page_inside_a_large_translation", "CPU 0 translates 0x200000"),
        ("free_a_block_with_a_page_that_is_translated_to", "CPU 0 translates 0x40a03000"),
        ("walk_a_table_with_reserved_bits", "page table corrupted"),
        ("walk_a_table_that_is_not_in_ram", "is not in RAM"),
        ("flush_with_interrupts_masked", "with interrupts masked"),
    ];
    for (test, why) in cases {
        let output = run_alone(&format!("forbidden::{test}"));
        let said = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("about to do it"), "{test} came to the point: {said}");
        assert!(!said.contains("survived") && !output.status.success(), "{test}: {said}");
        assert!(error.contains("machine check") && error.contains(why), "{test}: {error}");
    }
}
