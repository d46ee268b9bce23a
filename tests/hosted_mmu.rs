//! How the simulated memory management unit translates addresses, with page tables written by hand.

mod hand;

use std::thread;

use hand::*;
use kernmm::addr::{PageOrder, Pfn};
use kernmm::flags::GfpFlags;
use kernmm::memory::Memory;
use kernmm::platform::hosted::{FaultKind, Mmu, ReachedBy};
use kernmm::platform::{Access, CpuId, FlushScope, Platform};

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
        assert_eq!(hand.byte(AT + 2 * PAGE), Err(fault(AT + 2 * PAGE, Access::Read, false)));
        // Over the page's end, and by the kernel.
        machine.kernel_store(addr(AT + PAGE - 2), b"over").unwrap();
        machine.kernel_load(addr(AT + PAGE - 3), &mut found).unwrap();
        assert_eq!(&found, b"\x11over\x22");
        machine.switch_tables(None);
        assert_eq!(hand.byte(AT), Err(fault(AT, Access::Read, false)), "no tables, no memory");
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
        assert_eq!(machine.store(addr(AT + 4000), &bytes), Err(fault(end, Access::Write, false)));
        assert_eq!(hand.byte(end - 1), Ok(9), "what comes before has been written");
        assert_eq!(hand.byte(AT + 3999), Ok(0));
        let before = fault(AT - 1, Access::Exec, false);
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
                for (access, result) in [Access::Read, Access::Write, Access::Exec].into_iter().zip(user) {
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
        assert_eq!(again(hand.entry(one, read_only)), Err(fault(AT, Access::Write, true)));
        assert_eq!(again(0), Err(fault(AT, Access::Write, false)));
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
        assert_eq!(hand.byte(start), Err(fault(start, Access::Read, false)), "any of its pages names it");
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
    assert_eq!(machine.compare_exchange(addr(AT), 0, 1), Err(fault(AT, Access::Write, true)));
}
