//! brk, fork, and the limits of a machine.

use kernmm::error::Errno;
use kernmm::flags::{MapFlags, Prot};
use kernmm::memory::{Refused, Vm};
use kernmm::mm::{Overcommit, OvercommitMode, Sysctl};
use kernmm::platform::hosted::Disk;

use crate::scene::*;

#[test]
fn brk_01_the_heap_grows_and_shrinks_by_odd_sizes_and_holds_what_it_has() {
    on_machine(|vm, _| {
        let process = process(vm);
        heap(&process, ARENA);
        let step = 2 * PAGE - 1;
        for round in 1..=33 {
            let end = ARENA + round * step;
            assert_eq!(process.brk(end), Ok(at(end)));
            store(&process, end - 1, round as u8).unwrap();
            assert_eq!(process.with(|mm| mm.totals().total_vm), (round * step).div_ceil(PAGE));
        }
        for round in (1..=33).rev() {
            let end = ARENA + round * step;
            assert_eq!(load(&process, end - 1), Ok(round as u8));
            assert_eq!(process.brk(end - step), Ok(at(end - step)));
            assert_eq!(load(&process, end - 1), Err(NOT_MAPPED));
        }
        assert_eq!(vmas(&process), []);
    });
}

#[test]
fn brk_02_the_heap_grows_and_shrinks_across_a_part_with_another_protection() {
    on_machine(|vm, _| {
        let process = process(vm);
        heap(&process, ARENA);
        process.brk(ARENA + 4 * PAGE).unwrap();
        process.mprotect(ARENA + 2 * PAGE, 2 * PAGE, Prot::NONE).unwrap();
        assert_eq!(process.brk(ARENA + 8 * PAGE), Ok(at(ARENA + 8 * PAGE)));
        assert_eq!(layout(&process), [(ARENA, 2), (ARENA + 2 * PAGE, 2), (ARENA + 4 * PAGE, 4)]);
        assert_eq!(store(&process, ARENA + 3 * PAGE, 1), Err(DENIED));
        assert_eq!(store(&process, ARENA + 4 * PAGE, 1), Ok(()));
        assert_eq!(process.brk(ARENA + PAGE), Ok(at(ARENA + PAGE)));
        assert_eq!(layout(&process), [(ARENA, 1)]);
    });
}

#[test]
fn brk_stops_before_another_mapping_and_goes_on_when_that_is_gone() {
    on_machine(|vm, _| {
        let process = process(vm);
        heap(&process, ARENA);
        map_at(&process, ARENA + 8 * PAGE, 1, RW, SHARED);
        assert_eq!(process.brk(ARENA + 7 * PAGE), Ok(at(ARENA + 7 * PAGE)));
        assert_eq!(process.brk(ARENA + 8 * PAGE), Ok(at(ARENA + 7 * PAGE)), "a page stays free");
        assert_eq!(process.brk(ARENA + 20 * PAGE), Ok(at(ARENA + 7 * PAGE)));
        process.munmap(ARENA + 8 * PAGE, PAGE).unwrap();
        assert_eq!(process.brk(ARENA + 20 * PAGE), Ok(at(ARENA + 20 * PAGE)));
    });
}

#[test]
fn fork_04_neither_sees_what_the_other_changes_afterwards() {
    on_machine(|vm, disk| {
        let (parent, file) = (process(vm), open(vm, disk));
        let private = map(&parent, 2, RW, PRIVATE);
        let copy = map_file(&parent, &file, 1, RW, PRIVATE);
        store(&parent, private, 1).unwrap();
        store(&parent, copy, 1).unwrap();
        let child = parent.fork().unwrap();
        for start in [private, copy] {
            store(&child, start, 2).unwrap();
            assert_eq!((load(&parent, start), load(&child, start)), (Ok(1), Ok(2)));
            store(&parent, start, 3).unwrap();
            assert_eq!((load(&parent, start), load(&child, start)), (Ok(3), Ok(2)));
        }
        child.munmap(private, PAGE).unwrap();
        map(&child, 9, RW, PRIVATE);
        child.mprotect(private + PAGE, PAGE, Prot::READ).unwrap();
        assert_eq!(load(&parent, private), Ok(3));
        assert_eq!(store(&parent, private + PAGE, 1), Ok(()));
        vm.assert_sound(&[&parent, &child]);
    });
}

#[test]
fn fork_14_more_pages_than_32_bits_count_are_copied_as_many() {
    on_machine(|vm, _| {
        let parent = process(vm);
        let huge = (1u64 << 32) + 5;
        let start = map(&parent, huge, RW, PRIVATE | MapFlags::NORESERVE);
        let last = start + (huge - 1) * PAGE;
        store(&parent, start, 1).unwrap();
        store(&parent, last, 2).unwrap();
        let child = parent.fork().unwrap();
        assert_eq!(child.with(|mm| mm.totals().total_vm), huge);
        assert_eq!((load(&child, start), load(&child, last)), (Ok(1), Ok(2)));
        assert_eq!(layout(&child), [(start, huge)]);
        drop(child);
        parent.munmap(start, huge * PAGE).unwrap();
    });
}

#[test]
fn anonymous_neighbours_of_which_one_was_forked_never_merge() {
    on_machine(|vm, _| {
        let parent = process(vm);
        map_at(&parent, ARENA, 1, RW, PRIVATE);
        store(&parent, ARENA, 1).unwrap();
        let child = parent.fork().unwrap();
        // The child's page is its parent's still: one owner for both VMAs would have to lead to two processes.
        map_at(&child, ARENA + PAGE, 1, RW, PRIVATE);
        store(&child, ARENA + PAGE, 2).unwrap();
        child.mprotect(ARENA, 2 * PAGE, Prot::READ).unwrap();
        child.mprotect(ARENA, 2 * PAGE, RW).unwrap();
        assert_eq!(layout(&child), [(ARENA, 1), (ARENA + PAGE, 1)]);
        assert_eq!((load(&child, ARENA), load(&child, ARENA + PAGE)), (Ok(1), Ok(2)));
        vm.assert_sound(&[&parent, &child]);
    });
}

#[test]
fn max_map_count_is_the_limit_of_mappings_and_a_merge_needs_none() {
    let sysctl = Sysctl { max_map_count: 64, ..Sysctl::default() };
    on_machine_with(Wishes { sysctl, ..Wishes::default() }, |vm, _| {
        let process = process(vm);
        let fixed = PRIVATE | MapFlags::FIXED;
        let mut count = 0;
        let refused = loop {
            match process.mmap(&anonymous(ARENA + count * 2 * PAGE, 1, RW, fixed)) {
                Ok(_) => count += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((count, refused.errno()), (65, Errno::ENOMEM));
        process.munmap(ARENA, PAGE).unwrap();
        assert!(process.mmap(&anonymous(ARENA + 3 * PAGE, 1, RW, fixed)).is_ok(), "joins two");
        assert_eq!(vmas(&process).len(), 63);
    });
}

fn overcommit(
    mode: OvercommitMode,
    pages: u64,
    test: impl for<'a, 'm> FnOnce(&Vm<'a, Mem<'m>>, &'a Disk<'m>),
) {
    let overcommit = Some(Overcommit::new(mode, pages, 0).with_reserves(0, 0));
    on_machine_with(Wishes { overcommit, ..Wishes::default() }, test);
}

#[test]
fn overcommit_memory_decides_what_may_be_promised() {
    let total = 1000;
    let ask =
        |process: &Proc<'_, '_, '_>, pages, flags| process.mmap(&anonymous(0, pages, RW, PRIVATE | flags));
    let none = MapFlags::empty();
    overcommit(OvercommitMode::Guess, total, |vm, _| {
        let process = process(vm);
        assert_eq!(errno(ask(&process, total + 1, none)), Errno::ENOMEM, "more than there is at all");
        (0..10).for_each(|_| assert!(ask(&process, total, none).is_ok()));
        ask(&process, 10 * total, MapFlags::NORESERVE).unwrap();
    });
    overcommit(OvercommitMode::Always, total, |vm, _| {
        ask(&process(vm), 1000 * total, none).unwrap();
    });
    overcommit(OvercommitMode::Never, total, |vm, _| {
        let process = process(vm);
        assert_eq!(vm.context().overcommit().limit(), total / 2);
        ask(&process, total / 2 - 10, none).unwrap();
        assert_eq!(errno(ask(&process, 10, none)), Errno::ENOMEM, "less than the limit, never all of it");
        assert_eq!(errno(ask(&process, 10, MapFlags::NORESERVE)), Errno::ENOMEM, "NORESERVE is not heeded");
        assert_eq!(errno(process.fork()), Errno::ENOMEM, "a child may write all of it");
        ask(&process, 9, none).unwrap();
        assert_eq!(vm.context().overcommit().committed(), total / 2 - 1);
    });
}

#[test]
fn overcommit_leaves_a_reserve_to_who_maps_shared_memory_too() {
    // Of 2000 pages to promise the administrator has 100 in reserve, the user 300, or a 32nd part of what the process has mapped.
    let rule = Overcommit::new(OvercommitMode::Never, 4000, 0).with_reserves(300, 100);
    on_machine_with(Wishes { overcommit: Some(rule), ..Wishes::default() }, |vm, _| {
        let process = process(vm);
        let shared = |pages| process.mmap(&anonymous(0, pages, RW, MapFlags::SHARED));
        let is_last = |pages: u64| {
            let before = vm.context().overcommit().committed();
            assert_eq!(errno(shared(pages + 1)), Errno::ENOMEM);
            assert_eq!(vm.context().overcommit().committed(), before);
            process.munmap(shared(pages).unwrap().get(), pages * PAGE).unwrap();
        };
        is_last(1899);
        // What is only reserved counts, too: a 32nd part of 3200 pages.
        process.mmap(&anonymous(0, 3200, Prot::NONE, PRIVATE)).unwrap();
        is_last(1799);
        // The reserve is the user's at most.
        process.mmap(&anonymous(0, 32_000, Prot::NONE, PRIVATE)).unwrap();
        is_last(1599);
    });
}

#[test]
fn out_of_memory_ends_the_store_that_needs_it_and_nothing_else() {
    on_machine(|vm, _| {
        let survivor = process(vm);
        let kept = map(&survivor, 1, RW, PRIVATE);
        store(&survivor, kept, 7).unwrap();
        let greedy = process(vm);
        let start = map(&greedy, 16 << 8, RW, PRIVATE | MapFlags::NORESERVE);
        let mut page = 0;
        let refused = loop {
            match store(&greedy, start + page * PAGE, 1) {
                Ok(()) => page += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, Refused::OutOfMemory);
        assert!(page > 2000, "{page} pages of 4096");
        vm.assert_sound(&[&survivor, &greedy]);
        assert_eq!((load(&greedy, start), load(&survivor, kept)), (Ok(1), Ok(7)));
        drop(greedy);
        let more = map(&survivor, page / 2, RW, PRIVATE);
        (0..page / 2).for_each(|page| store(&survivor, more + page * PAGE, 1).unwrap());
    });
}
