//! What calls do to a part of a huge page, and to all of it.

use super::*;

pub(super) fn parts<F: Arch>(vm: &Virt<'_, '_, F>) {
    let (part, len) = (AT + 100 * PAGE, 56 * PAGE);
    let rest = |user: User<'_, '_, '_, '_, F>| {
        assert_filled(&user, AT, 0..100);
        assert_filled(&user, AT, 156..PAGES);
    };
    let all_left = |advice: Advice| {
        with_one(vm, |process, user| {
            process.madvise(part, len, advice as i32).unwrap();
            assert_eq!((rss(process), huge(process)), (PAGES, (0, 0)), "{advice:?}");
            assert_filled(&user, AT, 0..PAGES);
        });
    };
    with_one(vm, |process, user| {
        let free_before = free(vm.source());
        process.munmap(part, len).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES - 56, (0, 0)));
        // The table was kept for this, and the pages are free at once.
        assert_eq!(free(vm.source()), free_before + 56);
        assert_eq!(signal(user.load_byte(at(part))), Signal::NotMapped);
        assert_eq!(signal(user.load_byte(at(part + len - 1))), Signal::NotMapped);
        rest(user);
    });
    with_one(vm, |process, user| {
        process.mprotect(part, len, Prot::READ).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (0, 0)));
        assert_eq!(signal(user.store(at(part), &[1])), Signal::Denied);
        assert_eq!(signal(user.store(at(part + len - 1), &[1])), Signal::Denied);
        user.store(at(part - 1), &[1]).unwrap();
        user.store(at(part + len), &[1]).unwrap();
        assert_filled(&user, AT, 0..PAGES);
        process.mprotect(part, len, RW).unwrap();
        user.store(at(part), &[1]).unwrap();
    });
    with_one(vm, |process, user| {
        process.madvise(part, len, Advice::DontNeed as i32).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES - 56, (0, 0)));
        assert_eq!(incore(process, AT, PAGES), 512 - 56);
        assert_eq!((user.load_u32(at(part + 8)), user.load_u32(at(part + len - PAGE + 8))), (Ok(0), Ok(0)));
        rest(user);
        user.store(at(part), &[1]).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES - 55, (0, 0)), "a table is there");
    });
    with_one(vm, |process, user| {
        process.madvise(part, len, Advice::GuardInstall as i32).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES - 56, (0, 0)));
        assert_eq!(signal(user.load_byte(at(part))), Signal::NotMapped);
        assert_eq!(signal(user.load_byte(at(part + len - 1))), Signal::NotMapped);
        rest(user);
        process.madvise(AT, HUGE, Advice::GuardRemove as i32).unwrap();
        assert_eq!(user.load_byte(at(part)), Ok(0));
    });
    with_one(vm, |process, user| {
        process.mlock(part, len).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (0, 0)));
        assert_filled(&user, AT, 0..PAGES);
    });
    for advice in [Advice::DontFork, Advice::NoHugePage, Advice::Free, Advice::Cold, Advice::PageOut] {
        all_left(advice);
    }
    // One end of it is enough.
    for (part, len) in [(AT, PAGE), (AT + HUGE - PAGE, PAGE)] {
        with_one(vm, |process, _| {
            process.munmap(part, len).unwrap();
            assert_eq!((rss(process), huge(process)), (PAGES - 1, (0, 0)));
        });
    }
    // What others have too is left alone by advice about one's own pages.
    with_one(vm, |process, _| {
        let child = process.fork().unwrap();
        process.madvise(part, len, Advice::Free as i32).unwrap();
        assert_eq!((huge(process), huge(&child)), ((1, 0), (1, 0)));
        drop(child);
        process.madvise(part, len, Advice::Free as i32).unwrap();
        assert_eq!(huge(process), (0, 0));
    });
}

pub(super) fn wholes<F: Arch>(vm: &Virt<'_, '_, F>) {
    with_one(vm, |process, user| {
        process.mprotect(AT, HUGE, Prot::READ).unwrap();
        assert_eq!((rss(process), huge(process)), (PAGES, (1, 0)));
        assert_eq!(signal(user.store(at(AT + 3 * PAGE), &[1])), Signal::Denied);
        assert_filled(&user, AT, 0..PAGES);
        process.mprotect(AT, HUGE, Prot::empty()).unwrap();
        assert_eq!(signal(user.load_byte(at(AT + 3 * PAGE))), Signal::Denied);
        process.mprotect(AT, HUGE, RW).unwrap();
        // Nobody else has it: no fault is needed to write.
        vm.source().platform().store(at(AT + 4 * PAGE), &[1]).unwrap();
        process.mlock(AT, HUGE).unwrap();
        process.munlock(AT, HUGE).unwrap();
        for advice in [Advice::Free, Advice::Cold, Advice::PageOut, Advice::DontFork, Advice::NoHugePage] {
            process.madvise(AT, HUGE, advice as i32).unwrap();
        }
        assert_eq!((rss(process), huge(process)), (PAGES, (1, 0)));
        process.madvise(AT, HUGE, Advice::DontNeed as i32).unwrap();
        assert_eq!((rss(process), huge(process), incore(process, AT, PAGES)), (0, (0, 0), 0));
        assert_eq!(user.load_u32(at(AT + 8)), Ok(0));
    });
    with_one(vm, |process, user| {
        process.madvise(AT, HUGE, Advice::GuardInstall as i32).unwrap();
        assert_eq!((rss(process), huge(process)), (0, (0, 0)));
        assert_eq!(signal(user.load_byte(at(AT + 77 * PAGE))), Signal::NotMapped);
    });
    // mlock brings huge pages as a store does.
    let process = Process::new(vm).unwrap();
    map_huge(&process, AT, HUGE);
    User::new(&process).store(at(AT), &[1]).unwrap();
    process.madvise(AT, HUGE, Advice::DontNeed as i32).unwrap();
    process.mlock(AT, PAGE).unwrap();
    assert_eq!(huge(&process), (0, 0), "the locked VMA is too small");
    check(&[&process]);
}
