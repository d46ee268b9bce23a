//! What the CPUs of the simulated machine remember of page tables, and that nobody reuses what they still reach.

mod hand;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use hand::*;
use kernmm::addr::{PageOrder, Pfn};
use kernmm::flags::GfpFlags;
use kernmm::memory::Memory;
use kernmm::platform::hosted::{Asids, LoseFlushes, Machine, Mmu};
use kernmm::platform::{Access, CpuId, FlushScope, Platform, TlbFlush};

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
        assert_eq!(hand.byte(AT), Err(fault(AT, Access::Read, false)));
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
        assert_eq!(hand.byte(AT), Err(fault(AT, Access::Read, false)));
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
        assert_eq!(machine.store(addr(AT), &[2]), Err(fault(AT, Access::Write, true)));
        assert_eq!(machine.store(addr(AT), &[2]), Ok(()));
        // What is not present is not remembered.
        assert!(hand.byte(AT + PAGE).is_err());
        hand.map(AT + PAGE, hand.frame(3), hand.all());
        assert_eq!(hand.byte(AT + PAGE), Ok(3));
    });
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

    fn order(order: u8) -> PageOrder {
        PageOrder::new(order).unwrap()
    }

    fn free(hand: &Hand<'_>, pfn: Pfn, size: u8) {
        println!("about to do it");
        hand.memory.free_pages(pfn, order(size)).unwrap();
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
            hand.memory.phys().split_pages(&hand.memory.pin(), block, PageOrder::MAX, order(0)).unwrap();
            free(hand, block.checked_add(77).unwrap(), 0);
        });
    }

    #[test]
    fn free_a_block_with_a_page_that_is_translated_to() {
        alone(|hand, _| {
            let block = hand.memory.alloc_pages(GfpFlags::HIGHUSER, order(4)).unwrap();
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
