//! Bugs that memory managers really had, by the rule that each of them broke.
//!
//! | Rule | Here | Elsewhere |
//! |---|---|---|
//! | Copy-on-write | `a_private_store_reaches_neither_…`, `a_store_by_the_kernel_…`, `a_pinned_copy_…` | `pin` (after fork, unsharing), `huge` (forks, zeros), `model_fault` (every byte of several processes), `fault_races`, `huge_races` and `shuttle_fault` (another CPU at each moment) |
//! | TLB | `no_cpu_reaches_…`, `a_right_that_is_taken_…` | `flushes` (exact ranges and CPUs, each flush lost), `hosted_tlb` (what is freed too early ends the run), `shuttle_fault` (each flush lost) |
//! | Look-up | `find_vma_answers_…` | `shuttle_mm` (against a writer), `src/mm/tests.rs` (list, tree, cache, index broken), `model_mm` |
//! | Ranges | `ranges_at_the_edges_…` | `mm_bad_input` (every call, every edge), `ltp` |
//! | Atomicity | `what_is_refused_has_unmapped_nothing` | `mm_failures`, `fault_failures` (every n-th allocation, every n-th request of a store) |
//! | Floors | `no_call_maps_below_the_floor`, `a_stack_keeps_…` | `src/mm/tests.rs` (placement), `ltp` (mmap_18) |
//! | Counts, rmap | `a_count_that_is_full_…`, `families_that_end_…` | `check` (each count broken), `model_fault` |
//! | Ceiling | `no_call_gives_a_right_…` | `mm_bad_input` |
//! | Accounting | `every_limit_holds_…`, `sums_are_those_of_the_vmas_…` | `model_mm`, `src/mm/tests.rs` |
//! | Leaks | `memory_that_was_another_s_…`, `the_page_of_zeros_…` | `check` (frames that nobody has), `slab` (recycled objects), `model_fault` |
//!
//! That unmapping does not slow down with the number of VMAs is shown in `benches/mm` and gated in `benches/fault_ir`; that mincore tells what others
//! have touched (CVE-2019-5489) only of files that one owns or may write, in `files`.

mod scene;

use std::collections::BTreeMap;

use kernmm::addr::Pfn;
use kernmm::error::Errno;
use kernmm::fault::{Access, PinTerm, PinUse};
use kernmm::flags::{Advice, MapFlags, MremapFlags, Prot, VmFlags};
use kernmm::memory::{Memory, Refused, User, Vm};
use kernmm::mm::MmError;
use kernmm::platform::hosted::Machine;
use kernmm::syscall::{MmapArgs, OpenMode};

use scene::*;

const TO: MremapFlags = MremapFlags::MAYMOVE.union(MremapFlags::FIXED);

fn pin(process: &Proc<'_, '_, '_>, addr: u64, access: Access) -> Result<Pfn, Refused> {
    let mut one = [Pfn::ZERO];
    process.pin_pages(at(addr), access, PinTerm::Short, &mut one).map(|_| one[0])
}

/// Copy-on-write: CVE-2016-5195 (a write beside DONTNEED), FreeBSD's 2021-29626.
#[test]
fn a_private_store_reaches_neither_the_file_nor_a_sibling() {
    on_machine(|vm, disk| {
        let (parent, file) = (process(vm), open(vm, disk));
        let copy = map_file(&parent, &file, 4, RW, PRIVATE);
        let shared = map_file(&parent, &file, 4, RW, SHARED);
        let child = parent.fork().unwrap();
        for round in 0..4 {
            for page in 0..4 {
                let addr = copy + page * PAGE;
                load(&parent, addr).unwrap();
                store(&parent, addr, 252 + round).unwrap();
                assert_eq!(load(&child, addr), Ok(content(page * PAGE)));
                assert_eq!(load(&parent, shared + page * PAGE), Ok(content(page * PAGE)));
                advise(&parent, addr, 1, Advice::DontNeed).unwrap();
                assert_eq!(load(&parent, addr), Ok(content(page * PAGE)));
                store(&parent, addr + 1, 252).unwrap();
            }
        }
        file.sync().unwrap();
        assert_eq!(disk.files().contents(INODE).unwrap(), contents());
        vm.assert_sound(&[&parent, &child]);
    });
}

/// Copy-on-write: CVE-2016-5195 and CVE-2022-2590, in which the kernel wrote for a process what that could not have written.
#[test]
fn a_store_by_the_kernel_needs_the_right_and_makes_a_copy_as_one_by_the_process() {
    on_machine(|vm, disk| {
        let process = process(vm);
        let disk_file = open(vm, disk);
        let memory_file = vm.memory_file(4 * PAGE).unwrap();
        memory_file.write_at(0, &contents()).unwrap();
        for file in [&disk_file, &memory_file] {
            let start = map_file(&process, file, 1, Prot::READ, PRIVATE);
            load(&process, start).unwrap();
            assert_eq!(process.copy_to_user(at(start), b"x"), Err(DENIED));
            assert_eq!(pin(&process, start, Access::Write), Err(DENIED));
            process.mprotect(start, PAGE, RW).unwrap();
            process.copy_to_user(at(start), b"x").unwrap();
            advise(&process, start, 1, Advice::DontNeed).unwrap();
            assert_eq!(load(&process, start), Ok(content(0)));
            process.copy_to_user(at(start), b"y").unwrap();
            let mut byte = [0];
            file.read_at(0, &mut byte).unwrap();
            assert_eq!((byte[0], load(&process, start)), (content(0), Ok(b'y')));
        }
    });
}

/// Copy-on-write: CVE-2020-29374 with a page of a file.
#[test]
fn a_pinned_copy_of_a_file_s_page_is_what_a_device_writes() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        let start = map_file(&process, &file, 1, RW, PRIVATE);
        load(&process, start).unwrap();
        let pinned = pin(&process, start, Access::Write).unwrap();
        vm.source().write_frame(pinned, 0, b"D").unwrap();
        let mut byte = [0];
        file.read_at(0, &mut byte).unwrap();
        assert_eq!((byte[0], load(&process, start)), (content(0), Ok(b'D')));
        let child = process.fork().unwrap();
        store(&process, start, b'P').unwrap();
        vm.source().read_frame(pinned, 0, &mut byte).unwrap();
        assert_eq!((byte[0], load(&child, start)), (b'P', Ok(b'D')));
        assert_eq!(vm.unpin_pages(&[pinned], PinUse::Dirtied), 1);
    });
}

/// Runs a test with a process of a few written pages that CPU 1 knows too.
fn two_cpus(
    test: impl FnOnce(&Proc<'_, '_, '_>, &dyn Fn(u64) -> Result<u8, Refused>, &dyn Fn(u64) -> Result<(), Refused>),
) {
    let machine = Machine::pc(16 << 20).cpus(2).build().unwrap();
    let cpus = machine.all_cpus().unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let process: Proc<'_, '_, '_> = process(&vm);
    map_at(&process, ARENA, 512, RW, PRIVATE);
    for cpu in &cpus {
        cpu.run(|| {
            (0..512).for_each(|page| User::new(&process).store(at(ARENA + page * PAGE), &[7]).unwrap());
        });
    }
    let there = |addr| cpus[1].run(|| load(&process, addr));
    let write = |addr| cpus[1].run(|| store(&process, addr, 9));
    cpus[0].run(|| test(&process, &there, &write));
    assert_eq!(machine.stale_translation(), None);
    vm.assert_sound(&[&process]);
    // Nobody walks its tables when it ends.
    cpus[1].run(|| process.deactivate());
}

/// TLB: CVE-2018-18281, CVE-2022-41222 (mremap moved entries or whole tables before others had forgotten them), CVE-2020-10757.
#[test]
fn no_cpu_reaches_what_was_moved_or_freed_by_another() {
    two_cpus(|process, there, _| {
        // A part of a table moves: that stays, and nothing but the move itself makes the other CPU forget.
        let part = ARENA + (6 << 20);
        process.mremap(ARENA, 64 * PAGE, 64 * PAGE, TO, part).unwrap();
        assert_eq!(there(ARENA + 5 * PAGE), Err(NOT_MAPPED));
        assert_eq!(there(part + 5 * PAGE), Ok(7));
        process.mremap(part, 64 * PAGE, 64 * PAGE, TO, ARENA).unwrap();
        assert_eq!(there(part + 5 * PAGE), Err(NOT_MAPPED));
        assert_eq!(there(ARENA + 5 * PAGE), Ok(7));
        let to = ARENA + (8 << 20);
        // A whole table moves, then its pages go.
        process.mremap(ARENA, 512 * PAGE, 512 * PAGE, TO, to).unwrap();
        assert_eq!(there(ARENA + 5 * PAGE), Err(NOT_MAPPED));
        assert_eq!(there(to + 5 * PAGE), Ok(7));
        advise(process, to, 512, Advice::DontNeed).unwrap();
        assert_eq!(there(to + 5 * PAGE), Ok(0));
        process.munmap(to, 512 * PAGE).unwrap();
        assert_eq!(there(to + 5 * PAGE), Err(NOT_MAPPED));
        // Whatever gets the frames now.
        map_at(process, ARENA, 512, RW, PRIVATE | MapFlags::POPULATE);
        assert_eq!(there(to + 5 * PAGE), Err(NOT_MAPPED));
    });
}

/// TLB: CVE-2022-39188 (unmapping), CVE-2021-4002 (a flush that was left out).
#[test]
fn a_right_that_is_taken_is_taken_on_every_cpu() {
    two_cpus(|process, there, write| {
        process.mprotect(ARENA, 512 * PAGE, Prot::READ).unwrap();
        assert_eq!((there(ARENA), write(ARENA)), (Ok(7), Err(DENIED)));
        process.mprotect(ARENA, 512 * PAGE, RW).unwrap();
        assert_eq!(write(ARENA), Ok(()));
        let child = process.fork().unwrap();
        assert_eq!(write(ARENA + PAGE), Ok(()));
        assert_eq!((load(&child, ARENA + PAGE), there(ARENA + PAGE)), (Ok(7), Ok(9)));
    });
}

/// Look-up: CVE-2018-17182 (an old answer kept), CVE-2005-0001.
#[test]
fn find_vma_answers_as_a_scan_of_the_list_whatever_was_looked_for_before() {
    on_machine(|vm, _| {
        let process = process(vm);
        let mut state = 1_u64;
        let mut below = |limit: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % limit
        };
        for _ in 0..1500 {
            let (start, pages) = (ARENA + below(40) * PAGE, 1 + below(6));
            match below(4) {
                0 => map_at(&process, start, pages, if below(2) == 0 { RW } else { Prot::READ }, PRIVATE),
                1 => process.munmap(start, pages * PAGE).unwrap(),
                2 => drop(process.mprotect(start, pages * PAGE, Prot::READ)),
                _ => drop(process.mremap(start, PAGE, PAGE, TO, ARENA + (50 + below(6)) * PAGE)),
            }
            let probe = [below(60), below(60), below(60)];
            process.with(|mm| {
                for page in probe {
                    let addr = at(ARENA + page * PAGE);
                    let scanned = mm.vmas().iter().find(|(_, vma)| vma.end > addr).map(|(slot, _)| slot);
                    assert_eq!(mm.find_vma(addr), scanned);
                    assert_eq!(mm.find_vma(addr), scanned, "the second time from the cache");
                }
                mm.check().unwrap();
            });
        }
    });
}

/// Ranges: CVE-2003-0961 (brk), CVE-2003-0985 (mremap), CVE-2013-2596 (offsets), CVE-2011-2496, CVE-2008-0007.
#[test]
fn ranges_at_the_edges_never_reach_a_page_that_is_there() {
    on_machine(|vm, disk| {
        let (process, file) = (process(vm), open(vm, disk));
        map_at(&process, ARENA, 2, RW, PRIVATE);
        store(&process, ARENA, 1).unwrap();
        heap(&process, ARENA + (1 << 20));
        let before = vmas(&process);
        let task = (1 << 47) - PAGE;
        let large = [task, task + PAGE, 1 << 47, 1 << 63, 0u64.wrapping_sub(PAGE), u64::MAX - 1, u64::MAX];
        for len in large {
            assert!(process.munmap(ARENA, len).is_err(), "{len:#x}");
            assert!(process.mremap(ARENA, PAGE, len, MremapFlags::MAYMOVE, 0).is_err(), "{len:#x}");
            assert!(process.mremap(ARENA, PAGE, PAGE, TO, len).is_err(), "{len:#x}");
            assert!(process.mmap(&MmapArgs { len, ..anonymous(0, 0, RW, PRIVATE) }).is_err(), "{len:#x}");
            let fixed = of_file(&file, len & !(PAGE - 1), 1, RW, SHARED | MapFlags::FIXED);
            assert!(process.mmap(&fixed).is_err());
            let offset = MmapArgs { offset: len, len: 2 * PAGE, ..of_file(&file, 0, 0, RW, SHARED) };
            assert!(process.mmap2(&MmapArgs { offset: u64::MAX, ..offset }).is_err());
            assert_eq!(process.brk(len), Ok(at(ARENA + (1 << 20))), "{len:#x}");
        }
        assert_eq!((vmas(&process), load(&process, ARENA)), (before, Ok(1)));
    });
}

/// Atomicity: CVE-2004-0077 and CVE-2010-0291 (mremap), CVE-2024-53096 (mmap); peers that unmap before they validate.
#[test]
fn what_is_refused_has_unmapped_nothing() {
    on_machine(|vm, disk| {
        let process = process(vm);
        map_at(&process, ARENA, 4, RW, PRIVATE);
        map_at(&process, ARENA + 8 * PAGE, 4, RW, PRIVATE);
        for page in [0, 1, 2, 3, 8, 9, 10, 11] {
            store(&process, ARENA + page * PAGE, page as u8 + 1).unwrap();
        }
        let before = (vmas(&process), process.with(|mm| *mm.totals()));
        let file = vm.open_file(disk, INODE, OpenMode::ReadOnly).unwrap();
        let over = process.mmap(&of_file(&file, ARENA + PAGE, 2, RW, SHARED | MapFlags::FIXED));
        assert_eq!(errno(over), Errno::EACCES);
        limit(&process, |rlimits| rlimits.address_space = 8 * PAGE);
        let over = process.mmap(&anonymous(ARENA + PAGE, 64, RW, PRIVATE | MapFlags::FIXED));
        assert_eq!(over, Err(MmError::AddressSpaceLimit));
        let moved = process.mremap(ARENA, 4 * PAGE, 5 * PAGE, MremapFlags::MAYMOVE, 0);
        assert_eq!(errno(moved), Errno::ENOMEM);
        limit(&process, |rlimits| rlimits.address_space = u64::MAX);
        // Two VMAs cannot grow together, and what lies where they were to go stays.
        let call = process.mremap(ARENA, 9 * PAGE, 10 * PAGE, TO, ARENA + (1 << 20));
        assert_eq!(errno(call), Errno::EFAULT);
        assert_eq!((vmas(&process), process.with(|mm| *mm.totals())), before);
        for page in [0, 1, 2, 3, 8, 9, 10, 11] {
            assert_eq!(load(&process, ARENA + page * PAGE), Ok(page as u8 + 1));
        }
    });
}

/// Floors: CVE-2019-9213 (a stack that grew below the floor), CVE-2010-2240.
#[test]
fn no_call_maps_below_the_floor() {
    on_machine(|vm, _| {
        let process = process(vm);
        let sysctl = *vm.context().sysctl();
        map_at(&process, ARENA, 1, RW, PRIVATE);
        assert_eq!(errno(process.mmap(&anonymous(0, 1, RW, PRIVATE | MapFlags::FIXED))), Errno::EPERM);
        assert_eq!(errno(process.mremap(ARENA, PAGE, PAGE, TO, 0)), Errno::EPERM);
        let hinted = process.mmap(&anonymous(PAGE, 1, RW, PRIVATE)).unwrap().get();
        assert!(hinted >= sysctl.mmap_min_addr);
        process.munmap(hinted, PAGE).unwrap();
        map_at(&process, sysctl.mmap_min_addr + PAGE, 1, RW, PRIVATE | MapFlags::GROWSDOWN);
        assert_eq!(store(&process, sysctl.mmap_min_addr, 1), Ok(()));
        assert_eq!(store(&process, sysctl.mmap_min_addr - PAGE, 1), Err(NOT_MAPPED));
        assert_eq!(process.copy_to_user(at(sysctl.mmap_min_addr - PAGE), b"x"), Err(NOT_MAPPED));
        assert!(vmas(&process).iter().all(|vma| vma.0 >= sysctl.mmap_min_addr));
    });
}

/// Floors: CVE-2017-1000364, the stack clash, by each path that could bring the two together.
#[test]
fn a_stack_keeps_its_gap_against_growth_placement_and_the_heap() {
    on_machine(|vm, _| {
        let process = process(vm);
        let gap = vm.context().sysctl().stack_guard_gap;
        let stack = ARENA + 2048 * PAGE;
        map_at(&process, stack, 1, RW, PRIVATE | MapFlags::GROWSDOWN);
        heap(&process, ARENA);
        let highest = stack - gap;
        assert_eq!(process.brk(highest), Ok(at(ARENA)), "the heap keeps a page more");
        assert_eq!(process.brk(highest - PAGE), Ok(at(highest - PAGE)));
        assert_eq!(store(&process, stack - PAGE, 1), Ok(()), "the gap is for growing: a page of it");
        assert_eq!(store(&process, stack - 2 * PAGE, 1), Err(NOT_MAPPED));
        process.brk(ARENA).unwrap();
        process.with_mut(|mm| mm.set_mmap_base(at(stack)));
        let placed = map(&process, 4, RW, PRIVATE);
        assert_eq!(placed + 4 * PAGE, stack - PAGE - gap);
    });
}

/// Counts: CVE-2019-11487 (a page count that wraps), CVE-2016-0728's kind.
#[test]
fn a_count_that_is_full_refuses_more_pins_and_frees_nothing_too_early() {
    on_machine(|vm, _| {
        let process = process(vm);
        let start = map(&process, 1, RW, PRIVATE);
        store(&process, start, 5).unwrap();
        let first = pin(&process, start, Access::Write).unwrap();
        let mut pins = 1_u64;
        let refused = loop {
            match pin(&process, start, Access::Write) {
                Ok(pfn) => assert_eq!(pfn, first),
                Err(refused) => break refused,
            }
            pins += 1;
            assert!(pins < 1 << 23, "it never fills up");
        };
        assert_eq!(refused, Refused::OutOfMemory);
        assert!(pins > 1 << 20, "{pins}");
        let count = vm.source().phys().page(first).unwrap().count();
        assert!(u64::from(count) > pins);
        (0..pins).for_each(|_| assert_eq!(vm.unpin_pages(&[first], PinUse::Clean), 1));
        assert_eq!(vm.unpin_pages(&[first], PinUse::Clean), 0);
        assert_eq!(load(&process, start), Ok(5));
        vm.assert_sound(&[&process]);
    });
}

/// Counts and rmap: CVE-2022-42703 (an owner that was used after its end), CVE-2009-0024, CVE-2018-1000200 (locked pages at exit).
#[test]
fn families_that_end_in_any_order_leave_nothing() {
    on_machine(|vm, _| {
        for order in 0..24_usize {
            let first = process(vm);
            let start = map(&first, 4, RW, PRIVATE);
            (0..4).for_each(|page| store(&first, start + page * PAGE, 1).unwrap());
            first.mlock(start, PAGE).unwrap();
            let second = first.fork().unwrap();
            store(&second, start, 2).unwrap();
            let third = second.fork().unwrap();
            third.munmap(start + PAGE, PAGE).unwrap();
            let fourth = third.fork().unwrap();
            store(&fourth, start + 2 * PAGE, 4).unwrap();
            let mut family = vec![first, second, third, fourth];
            for choice in [order % 4, order / 4 % 3, order / 12 % 2, 0] {
                drop(family.remove(choice));
                vm.assert_sound(&family.iter().collect::<Vec<_>>());
                for one in &family {
                    assert!(matches!(load(one, start + 2 * PAGE), Ok(1 | 4)));
                }
            }
        }
    });
}

/// Ceiling: CVE-2006-2071 (mprotect gave what the file's open mode had not).
#[test]
fn no_call_gives_a_right_that_the_open_mode_did_not() {
    on_machine(|vm, disk| {
        let process = process(vm);
        for mode in [OpenMode::ReadOnly, OpenMode::WriteOnly, OpenMode::ReadWrite] {
            let file = vm.open_file(disk, INODE, mode).unwrap();
            for (bits, sharing) in (0..8).flat_map(|bits| [(bits, SHARED), (bits, PRIVATE)]) {
                let prot = Prot::from_bits_retain(bits);
                let reads = mode != OpenMode::WriteOnly;
                let may_write = sharing == PRIVATE || mode == OpenMode::ReadWrite;
                let result = process.mmap(&of_file(&file, ARENA, 3, prot, sharing | MapFlags::FIXED));
                let allowed = reads && (may_write || !prot.contains(Prot::WRITE));
                assert_eq!(result.is_ok(), allowed, "{mode:?} {prot:?} {sharing:?}");
                if result.is_err() {
                    continue;
                }
                // Through a split, a move and a fork.
                let _ = process.mprotect(ARENA + PAGE, PAGE, Prot::NONE);
                let moved = ARENA + (1 << 20);
                process.mremap(ARENA + PAGE, PAGE, PAGE, TO, moved).unwrap();
                let child = process.fork().unwrap();
                for one in [&process, &child] {
                    for addr in [ARENA, moved, ARENA + 2 * PAGE] {
                        let result = one.mprotect(addr, PAGE, RW);
                        assert_eq!(result.is_ok(), may_write, "{mode:?} {prot:?} {sharing:?}");
                        assert_eq!(store(one, addr, content(0)).is_ok(), may_write);
                    }
                }
                drop(child);
                process.munmap(ARENA, 1 << 21).unwrap();
            }
        }
    });
}

/// Accounting: CVE-2004-0491, CVE-2005-0179, CVE-2010-4243.
#[test]
fn every_limit_holds_to_the_page_on_every_path() {
    on_machine(|vm, _| {
        let space = |process: &Proc<'_, '_, '_>, pages| {
            limit(process, |rlimits| rlimits.address_space = pages * PAGE)
        };
        let p = process(vm);
        map_at(&p, ARENA, 4, RW, PRIVATE);
        let grow = |to| p.mremap(ARENA, 4 * PAGE, to * PAGE, MremapFlags::MAYMOVE, 0);
        space(&p, 7);
        assert_eq!(errno(grow(8)), Errno::ENOMEM);
        assert_eq!(errno(p.mmap(&anonymous(0, 4, RW, PRIVATE))), Errno::ENOMEM);
        heap(&p, ARENA + (1 << 20));
        assert_eq!(p.brk(ARENA + (1 << 20) + 4 * PAGE), Ok(at(ARENA + (1 << 20))));
        assert_eq!(p.brk(ARENA + (1 << 20) + 3 * PAGE), Ok(at(ARENA + (1 << 20) + 3 * PAGE)));
        p.brk(ARENA + (1 << 20)).unwrap();
        assert_eq!(grow(7), Ok(at(ARENA)));

        let p = process(vm);
        limit(&p, |rlimits| rlimits.memlock = 4 * PAGE);
        map_at(&p, ARENA, 4, RW, PRIVATE | MapFlags::LOCKED);
        assert_eq!(errno(p.mmap(&anonymous(0, 1, RW, PRIVATE | MapFlags::LOCKED))), Errno::EAGAIN);
        let grown = p.mremap(ARENA, 4 * PAGE, 5 * PAGE, MremapFlags::MAYMOVE, 0);
        assert_eq!(errno(grown), Errno::EAGAIN);
        let other = map(&p, 1, RW, PRIVATE);
        assert_eq!(errno(p.mlock(other, 1)), Errno::ENOMEM);
        let stack = ARENA + (4 << 20);
        p.munlock(ARENA, PAGE).unwrap();
        map_at(&p, stack, 1, RW, PRIVATE | MapFlags::GROWSDOWN | MapFlags::LOCKED);
        assert_eq!(store(&p, stack - PAGE, 1), Err(NOT_MAPPED), "a locked stack grows within the limit");
        assert_eq!(locked(&p), 4);

        let p = process(vm);
        limit(&p, |rlimits| rlimits.stack = 3 * PAGE);
        map_at(&p, stack, 1, RW, PRIVATE | MapFlags::GROWSDOWN);
        assert_eq!(store(&p, stack - 2 * PAGE, 1), Ok(()));
        assert_eq!(store(&p, stack - 3 * PAGE, 1), Err(NOT_MAPPED));
        limit(&p, |rlimits| rlimits.data = 2 * PAGE);
        let read_only = map(&p, 3, Prot::READ, PRIVATE);
        assert_eq!(errno(p.mprotect(read_only, 3 * PAGE, RW)), Errno::ENOMEM);
        assert_eq!(p.mprotect(read_only, 2 * PAGE, RW), Ok(()));
    });
}

/// Accounting, and peers whose total_vm drifts when VMAs merge; MAP_FIXED over several; shrink, enlarge, fault.
#[test]
fn sums_are_those_of_the_vmas_whatever_splits_and_merges() {
    on_machine(|vm, _| {
        let process = process(vm);
        let assert_sums = |pages: u64| {
            let listed = vmas(&process);
            let sum = |which: &dyn Fn(VmFlags) -> bool| {
                listed.iter().filter(|vma| which(vma.2)).map(|vma| vma.1).sum::<u64>()
            };
            let totals = process.with(|mm| *mm.totals());
            assert_eq!((totals.total_vm, sum(&|_| true)), (pages, pages));
            assert_eq!(totals.locked_vm, sum(&|flags| flags.contains(VmFlags::LOCKED)));
            assert_eq!(totals.committed, sum(&|flags| flags.contains(VmFlags::ACCOUNT)));
        };
        for page in [0, 2, 4, 1, 3] {
            map_at(&process, ARENA + page * PAGE, 1, RW, PRIVATE);
        }
        assert_eq!(layout(&process), [(ARENA, 5)]);
        assert_sums(5);
        (0..5).for_each(|page| store(&process, ARENA + page * PAGE, 1).unwrap());
        process.mprotect(ARENA + PAGE, PAGE, Prot::READ).unwrap();
        process.mlock(ARENA + 3 * PAGE, PAGE).unwrap();
        assert_sums(5);
        // Over all four of them and beyond.
        map_at(&process, ARENA + PAGE, 8, RW, PRIVATE);
        assert_sums(9);
        assert_eq!((load(&process, ARENA), load(&process, ARENA + 3 * PAGE)), (Ok(1), Ok(0)));
        process.mremap(ARENA, 9 * PAGE, 2 * PAGE, MremapFlags::empty(), 0).unwrap();
        assert_sums(2);
        assert_eq!(load(&process, ARENA + 2 * PAGE), Err(NOT_MAPPED));
        process.mremap(ARENA, 2 * PAGE, 9 * PAGE, MremapFlags::empty(), 0).unwrap();
        assert_eq!(load(&process, ARENA + 8 * PAGE), Ok(0));
        assert_sums(9);
        vm.assert_sound(&[&process]);
    });
}

/// A peer with 70,000 VMAs after as many small mappings, since it placed them in the direction in which they do not merge.
#[test]
fn many_small_mappings_are_one_vma() {
    on_machine(|vm, _| {
        let process = process(vm);
        let first = map(&process, 1, RW, PRIVATE);
        (1..5000).for_each(|_| assert!(map(&process, 1, RW, PRIVATE) < first));
        assert_eq!(layout(&process), [(first - 4999 * PAGE, 5000)]);
    });
}

/// Leaks: CVE-2017-16994, CVE-2015-3288, CVE-2022-0847: what was another's is never seen.
#[test]
fn memory_that_was_another_s_is_zero_however_it_comes() {
    on_machine(|vm, disk| {
        let secret = process(vm);
        let start = map(&secret, 2500, RW, PRIVATE);
        for page in 0..2500 {
            User::new(&secret).store(at(start + page * PAGE), &[0x5e; PAGE as usize]).unwrap();
        }
        drop(secret);
        let (process, file) = (process(vm), open(vm, disk));
        file.truncate(8 * PAGE + 1).unwrap();
        heap(&process, ARENA);
        process.brk(ARENA + 300 * PAGE).unwrap();
        map_at(&process, ARENA + (8 << 20), 1, RW, PRIVATE | MapFlags::GROWSDOWN);
        let areas = [
            (map(&process, 300, RW, PRIVATE), 300),
            (map(&process, 300, RW, SHARED), 300),
            (map_file(&process, &file, 9, RW, SHARED) + 4 * PAGE, 5),
            (map_file(&process, &file, 9, RW, PRIVATE) + 4 * PAGE, 5),
            (map_file(&process, &vm.memory_file(50 * PAGE).unwrap(), 50, RW, SHARED), 50),
            (ARENA, 300),
            (ARENA + (8 << 20) - 100 * PAGE, 100),
        ];
        for (start, pages) in areas {
            // The deepest first: a stack grows then as far as it will.
            for page in 0..pages {
                store(&process, start + page * PAGE, 0).unwrap();
                let bytes = load_all(&process, start + page * PAGE, PAGE);
                assert!(bytes.iter().all(|&byte| byte == 0), "{start:#x} {page}");
            }
        }
    });
}

/// Leaks: CVE-2017-1000405's kind: nobody writes the page that all share.
#[test]
fn the_page_of_zeros_is_never_written() {
    on_machine(|vm, _| {
        let parent = process(vm);
        let start = map(&parent, 16, RW, PRIVATE);
        let read = || (0..16).for_each(|page| assert_eq!(load(&parent, start + page * PAGE), Ok(0)));
        read();
        assert_eq!(pages(&parent, start, 16), "z".repeat(16));
        let child = parent.fork().unwrap();
        store(&child, start, 1).unwrap();
        store(&parent, start + PAGE, 1).unwrap();
        parent.copy_to_user(at(start + 2 * PAGE), b"x").unwrap();
        let pinned = pin(&parent, start + 3 * PAGE, Access::Write).unwrap();
        assert_ne!(pinned, vm.zero_page());
        vm.source().write_frame(pinned, 0, b"d").unwrap();
        vm.unpin_pages(&[pinned], PinUse::Dirtied);
        User::new(&parent).compare_exchange(at(start + 4 * PAGE), 0, 1).unwrap();
        parent.mprotect(start, 16 * PAGE, Prot::READ).unwrap();
        parent.mprotect(start, 16 * PAGE, RW).unwrap();
        store(&parent, start + 5 * PAGE, 1).unwrap();
        parent.mlock(start, 16 * PAGE).unwrap();
        store(&parent, start + 6 * PAGE, 1).unwrap();
        let mut zero = vec![1; PAGE as usize];
        vm.source().read_frame(vm.zero_page(), 0, &mut zero).unwrap();
        assert!(zero.iter().all(|&byte| byte == 0));
        let mut seen = BTreeMap::new();
        for page in 0..16 {
            let page = resident(&child, start + page * PAGE);
            *seen.entry(page.map(|page| page.pfn == vm.zero_page())).or_insert(0) += 1;
        }
        assert_eq!(seen.get(&Some(false)), Some(&1), "{seen:?}");
        vm.assert_sound(&[&parent, &child]);
    });
}
