//! What merges, and what was left alike.

use super::*;

#[test]
fn a_range_that_changes_merges_with_whatever_is_alike() {
    for (before, from, pages, after) in [
        ("WwRrNn", 2, 2, "WwwwNn"), // the whole middle, below
        ("WwRrrN", 2, 1, "WwwRrN"), // its left part, below
        ("NnRrWw", 2, 2, "NnWwww"), // the whole middle, above
        ("NnRrrW", 4, 1, "NnRrWw"), // its right part, above
        ("WwRrWw", 2, 2, "Wwwwww"), // on both sides
        ("NRrrrN", 2, 1, "NRWRrN"), // neither
    ] {
        with_mm(|mm, tables| {
            draw(mm, tables, before);
            protect(mm, tables, from, pages, RW);
            assert_eq!(drawn(mm, 6), after, "{before}");
        });
    }
}

#[test]
fn a_new_range_merges_on_one_side_or_both() {
    for (before, after) in [("Ww-N", "WwwN"), ("N-Ww", "NWww"), ("W-Ww", "Wwww"), ("R-Nn", "RWNn")] {
        with_mm(|mm, tables| {
            draw(mm, tables, before);
            let hole = before.find('-').unwrap() as u64;
            mmap(mm, tables, AT + hole * PAGE, 1, RW, 0x10);
            assert_eq!(drawn(mm, 4), after, "{before}");
        });
    }
}

#[test]
fn two_touched_neighbours_keep_apart_what_fills_the_gap() {
    with_mm(|mm, tables| {
        draw(mm, tables, "Ww-Ww");
        touch(mm, 0);
        touch(mm, 3);
        mmap(mm, tables, AT + 2 * PAGE, 1, RW, 0x10);
        assert_eq!(drawn(mm, 5), "WwwWw");
    });
    with_mm(|mm, tables| {
        draw(mm, tables, "Ww-Ww");
        touch(mm, 3);
        mmap(mm, tables, AT + 2 * PAGE, 1, RW, 0x10);
        assert_eq!(drawn(mm, 5), "Wwwww");
        assert!(mm.vma(mm.vmas().first().unwrap()).anon.is_some());
    });
}

#[test]
fn what_is_touched_stays_so_whichever_vma_takes_it_over() {
    for touched in 0..3 {
        with_mm(|mm, tables| {
            draw(mm, tables, "Nnnnnn");
            let nothing = Prot::NONE;
            for (page, prot) in [(0, RW), (2, Prot::EXEC | RW), (4, RW)] {
                protect(mm, tables, page, 2, prot);
            }
            touch(mm, 2 * touched);
            protect(mm, tables, 2, 2, RW);
            assert_eq!(drawn(mm, 6), "Wwwwww");
            assert!(mm.vma(mm.vmas().first().unwrap()).anon.is_some(), "{touched}");
            // And so it stays charged.
            protect(mm, tables, 0, 6, nothing);
            assert_eq!(mm.totals().committed, 6);
        });
    }
}

#[test]
fn a_neighbour_that_differs_in_protection_lends_its_anonymous_owner() {
    with_mm(|mm, tables| {
        draw(mm, tables, "Wwww");
        protect(mm, tables, 2, 2, RW | Prot::EXEC);
        assert_eq!(drawn(mm, 4), "WwWw");
        touch(mm, 0);
        touch(mm, 2);
        protect(mm, tables, 2, 2, RW);
        assert_eq!(drawn(mm, 4), "Wwww");
    });
}

#[test]
fn what_was_touched_while_writable_stays_charged() {
    with_mm(|mm, tables| {
        draw(mm, tables, "Nnnn");
        protect(mm, tables, 1, 1, RW);
        protect(mm, tables, 1, 1, Prot::NONE);
        assert_eq!(drawn(mm, 4), "Nnnn");
        protect(mm, tables, 1, 1, RW);
        touch(mm, 1);
        protect(mm, tables, 1, 1, Prot::NONE);
        assert_eq!(drawn(mm, 4), "NNNn");
        assert_eq!(mm.totals().committed, 1);
    });
}

#[test]
fn inherited_memory_does_not_merge_with_new() {
    with_mm(|mm, tables| {
        draw(mm, tables, "Ww--");
        touch(mm, 0);
        let mut child_tables = tables.clone();
        let mut child = mm.new_child().unwrap();
        syscall::fork(mm, tables, &mut child, &mut child_tables).unwrap();
        mmap(&mut child, &mut child_tables, AT + 2 * PAGE, 2, RW, 0x10);
        assert_eq!(drawn(&child, 4), "WwWw");
        mmap(mm, tables, AT + 2 * PAGE, 2, RW, 0x10);
        assert_eq!(drawn(mm, 4), "Wwww");
        child.check().unwrap();
        syscall::exit(&mut child, &mut child_tables);
    });
}

#[test]
fn inherited_memory_that_grows_in_place_takes_in_an_untouched_neighbour() {
    with_mm(|mm, tables| {
        draw(mm, tables, "Ww----");
        touch(mm, 0);
        let mut child_tables = tables.clone();
        let mut child = mm.new_child().unwrap();
        syscall::fork(mm, tables, &mut child, &mut child_tables).unwrap();
        mmap(&mut child, &mut child_tables, AT + 4 * PAGE, 2, RW, 0x10);
        let nothing = MremapFlags::empty();
        syscall::mremap(&mut child, &mut child_tables, AT, 2 * PAGE, 4 * PAGE, nothing, 0).unwrap();
        assert_eq!(drawn(&child, 6), "Wwwwww");
        child.check().unwrap();
        syscall::exit(&mut child, &mut child_tables);
    });
}

#[test]
fn special_memory_never_merges() {
    let vma = |start: u64, flags| Vma {
        start: VirtAddr::from(AT + start * PAGE),
        end: VirtAddr::from(AT + (start + 1) * PAGE),
        flags,
        pgoff: PgOff::new(start).unwrap(),
        backing: Backing::Anonymous,
        anon: None,
    };
    let sides = |flags| {
        let (below, middle, above) = (vma(0, flags), vma(1, flags), vma(2, flags));
        merge(Some(&below), Some(&above), &Proposal::of(&middle), Reach::BothSides)
    };
    assert_eq!(sides(VmFlags::READ), Merge::Both);
    for special in [VmFlags::IO, VmFlags::PFNMAP, VmFlags::DONTEXPAND, VmFlags::MIXEDMAP] {
        assert_eq!(sides(VmFlags::READ | special), Merge::Neither);
    }
    // Guard regions do not stand in the way.
    let guarded = vma(0, VmFlags::READ | VmFlags::MAYBE_GUARD);
    let plain = Proposal::of(&vma(1, VmFlags::READ));
    assert_eq!(merge(Some(&guarded), None, &plain, Reach::BothSides), Merge::Prev);
}

#[test]
fn a_moved_range_keeps_its_offset_only_if_it_was_touched() {
    for (touched, after) in [(false, "--Wwww"), (true, "--WWww")] {
        with_mm(|mm, tables| {
            draw(mm, tables, "W--Www");
            if touched {
                touch(mm, 0);
            }
            let flags = MremapFlags::MAYMOVE | MremapFlags::FIXED;
            syscall::mremap(mm, tables, AT, PAGE, PAGE, flags, AT + 2 * PAGE).unwrap();
            assert_eq!(drawn(mm, 6), after);
        });
    }
}

/// ```text
/// W|wRr     two VMAs that were apart only for a lock, as a child inherits them: alike, and not merged
/// ```
fn with_seam(test: impl FnOnce(&mut Mm<'_>, &mut NullTables)) {
    with_mm(|mm, tables| {
        draw(mm, tables, "WwRr");
        syscall::mlock2(mm, tables, AT, PAGE, MlockFlags::ONFAULT).unwrap();
        let mut child = mm.new_child().unwrap();
        syscall::fork(mm, tables, &mut child, &mut NullTables::default()).unwrap();
        assert_eq!(drawn(&child, 4), "WWRr");
        child.check().unwrap();
        let second = child.lookup(VirtAddr::from(AT + PAGE)).unwrap();
        assert!(child.vma_slot(second).has_seam());
        test(&mut child, tables);
        syscall::exit(&mut child, tables);
        drop(child);
    });
}

/// What `check` says when the VMA at `page` gets the flags of the one at `like` and nobody asks whether it merges, as no call does.
fn unasked(mm: &mut Mm<'_>, page: u64, like: u64) -> Result<(), Violation> {
    let at = |mm: &Mm<'_>, page| mm.lookup(VirtAddr::from(AT + page * PAGE)).unwrap();
    let (slot, flags) = (at(mm, page), mm.vma(at(mm, like)).flags);
    let old = mm.vma(slot).flags;
    mm.retag(slot, flags);
    let answer = mm.check();
    mm.retag(slot, old);
    answer
}

#[test]
fn what_a_fork_left_alike_is_forgotten_when_a_change_asks_again() {
    for (page, other) in [(0, 1), (1, 0)] {
        with_seam(|mm, tables| {
            protect(mm, tables, page, 1, Prot::NONE);
            mm.check().unwrap();
            assert_eq!(unasked(mm, page, other), Err(Violation::Unmerged), "page {page}");
        });
    }
}

#[test]
fn what_a_fork_left_alike_is_forgotten_when_something_new_comes_there() {
    with_seam(|mm, tables| {
        syscall::munmap(mm, tables, AT, PAGE).unwrap();
        mmap(mm, tables, AT, 1, Prot::NONE, 0x10);
        assert_eq!(drawn(mm, 4), "NWRr");
        assert_eq!(unasked(mm, 0, 1), Err(Violation::Unmerged));
    });
}

#[test]
fn a_fork_excuses_no_neighbours_that_are_not_alike() {
    with_seam(|mm, _| assert_eq!(unasked(mm, 2, 1), Err(Violation::Unmerged)));
}

#[test]
fn what_follows_in_the_file_but_not_in_memory_does_not_merge() {
    let file = FileRef::new(1, 1, FileKind::Memory).map(Backing::File).unwrap();
    let vma = |at: u64, first: u64| Vma {
        start: VirtAddr::from(AT + at * PAGE),
        end: VirtAddr::from(AT + (at + 2) * PAGE),
        flags: VmFlags::READ | VmFlags::SHARED,
        pgoff: PgOff::new(first).unwrap(),
        backing: file,
        anon: None,
    };
    let (below, middle, above) = (vma(0, 0), Proposal::of(&vma(4, 2)), vma(8, 4));
    assert_eq!(merge(Some(&below), Some(&above), &middle, Reach::BothSides), Merge::Neither);
    let (below, above) = (vma(2, 0), vma(6, 4));
    assert_eq!(merge(Some(&below), Some(&above), &middle, Reach::BothSides), Merge::Both);
}
