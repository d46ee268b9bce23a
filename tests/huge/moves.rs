//! Moves of huge pages, and onto them.

use super::*;

pub(super) fn moves_onto_huge<F: Arch>(vm: &Virt<'_, '_, F>) {
    let to = AT + 4 * HUGE;
    // Small pages onto a huge one, a huge one onto two halves, small pages onto a huge page of zeros.
    for (source, target, zeros) in [(0, 0, false), (HUGE, PAGE, false), (0, 0, true)] {
        let process = Process::new(vm).unwrap();
        let user = User::new(&process);
        map(&process, AT, HUGE, RW);
        if source != 0 {
            process.madvise(AT, HUGE, Advice::HugePage as i32).unwrap();
        }
        for page in 0..PAGES {
            user.store_u32(at(AT + page * PAGE), page as u32 + 1).unwrap();
        }
        map_huge(&process, to, 2 * HUGE);
        for index in 0..2 {
            match zeros {
                true => assert_eq!(user.load_u32(at(to + index * HUGE)), Ok(0)),
                false => user.store_u32(at(to + index * HUGE), 99).unwrap(),
            }
        }
        process.mremap(AT, HUGE, HUGE, FIXED, to + target).unwrap();
        for page in 0..PAGES {
            assert_eq!(user.load_u32(at(to + target + page * PAGE)), Ok(page as u32 + 1), "page {page}");
        }
        check(&[&process]);
    }
}

pub(super) fn moves<F: Arch>(vm: &Virt<'_, '_, F>) {
    let to = AT + 16 * HUGE;
    with_one(vm, |process, user| {
        process.mremap(AT, HUGE, HUGE, FIXED, to).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (1, 0)));
        assert_filled(&user, to, 0..PAGES);
        assert_eq!(signal(user.load_byte(at(AT))), Signal::NotMapped);
        // Onto memory that has a table, which is empty by then.
        map(process, AT, HUGE, RW);
        fill(&user, AT, 3);
        process.mremap(to, HUGE, HUGE, FIXED, AT).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (1, 0)));
        assert_filled(&user, AT, 0..PAGES);
        // To where it would lie across two.
        process.mremap(AT, HUGE, HUGE, FIXED, to + PAGE).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (0, 0)));
        assert_filled(&user, to + PAGE, 0..PAGES);
    });
    with_one(vm, |process, user| {
        // A part moves, the rest stays.
        process.mremap(AT + 8 * PAGE, 16 * PAGE, 16 * PAGE, FIXED, to).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (0, 0)));
        for page in 8..24 {
            assert_eq!(user.load_u32(at(to + (page - 8) * PAGE + 8)), Ok(page as u32 + 1));
        }
        assert_filled(&user, AT, 0..8);
        assert_filled(&user, AT, 24..PAGES);
    });
    // Two that move together with what lies around them.
    let process = Process::new(vm).unwrap();
    let user = User::new(&process);
    map_huge(&process, AT - 4 * PAGE, 2 * HUGE + 8 * PAGE);
    fill(&user, AT - 4 * PAGE, 2 * PAGES + 8);
    assert_eq!((rss(&process), huge(&process)), (2 * PAGES + 8, (2, 0)));
    process.mremap(AT - 4 * PAGE, 2 * HUGE + 8 * PAGE, 2 * HUGE + 8 * PAGE, FIXED, to - 4 * PAGE).unwrap();
    assert_eq!((rss(&process), huge(&process)), (2 * PAGES + 8, (2, 0)));
    assert_filled(&user, to - 4 * PAGE, 0..2 * PAGES + 8);
    // The zeros move too, and DONTUNMAP leaves the old place empty.
    map_huge(&process, AT, HUGE);
    user.load_byte(at(AT)).unwrap();
    let keep = FIXED | MremapFlags::DONTUNMAP;
    process.mremap(AT, HUGE, HUGE, keep, to + 8 * HUGE).unwrap();
    assert_eq!((incore(&process, AT, PAGES), incore(&process, to + 8 * HUGE, PAGES)), (0, 512));
    assert_eq!(huge(&process), (2, 1));
    check(&[&process]);
    // Growing where that means to move.
    map(&process, to + 9 * HUGE, PAGE, RW);
    let grown = process.mremap(to, 2 * HUGE, 5 * HUGE, MremapFlags::MAYMOVE, 0).unwrap().get();
    for page in 0..2 * PAGES {
        assert_eq!(user.load_u32(at(grown + page * PAGE + 8)), Ok(page as u32 + 5));
    }
    check(&[&process]);
}
