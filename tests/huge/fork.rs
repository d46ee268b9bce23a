//! Children and huge pages.

use super::*;

pub(super) fn forks<F: Arch>(vm: &Virt<'_, '_, F>) {
    let parent = Process::new(vm).unwrap();
    let user = User::new(&parent);
    map_huge(&parent, AT, 2 * HUGE);
    fill(&user, AT, 2 * PAGES);
    let (tables, free_before) = (entries(&parent).len(), free(vm.source()));
    let child = parent.fork().unwrap();
    let son = User::new(&child);
    assert_eq!((huge(&parent), huge(&child), rss(&child), tables), ((2, 0), (2, 0), 2 * PAGES, 2));
    assert!(free_before - free(vm.source()) <= 8, "tables alone were allocated");
    check(&[&parent, &child]);
    assert_filled(&son, AT, 0..2 * PAGES);
    // The child's write costs it one page, and its huge entry; the parent's stays.
    let before = free(vm.source());
    son.store_u32(at(AT + 8), 1000).unwrap();
    son.store_u32(at(AT + 3 * PAGE + 8), 1003).unwrap();
    assert_eq!(free(vm.source()), before - 2);
    assert_eq!((huge(&parent), huge(&child)), ((2, 0), (1, 0)));
    assert_eq!((rss(&parent), rss(&child)), (2 * PAGES, 2 * PAGES));
    check(&[&parent, &child]);
    assert_filled(&user, AT, 0..2 * PAGES);
    assert_eq!((son.load_u32(at(AT + 8)), son.load_u32(at(AT + 3 * PAGE + 8))), (Ok(1000), Ok(1003)));
    assert_filled(&son, AT, 4..2 * PAGES);
    // A grandchild shares both kinds.
    let grandchild = child.fork().unwrap();
    check(&[&parent, &child, &grandchild]);
    drop(grandchild);
    // What the child gives back is the parent's alone, and the next write finds that for all of it.
    child.munmap(AT + HUGE, HUGE).unwrap();
    user.store_u32(at(AT + HUGE + 8), 513).unwrap();
    assert_eq!(huge(&parent), (2, 0), "nobody else has the second");
    vm.source().platform().store(at(AT + HUGE + 9 * PAGE), &[0]).unwrap();
    // Of the first the child has all but two: one more is copied.
    let before = free(vm.source());
    user.store_u32(at(AT + 5 * PAGE + 8), 6).unwrap();
    assert_eq!(huge(&parent), (1, 0));
    user.store_u32(at(AT + 8), 1).unwrap();
    assert_eq!(free(vm.source()), before - 1, "the page that the child has copied is the parent's alone");
    check(&[&parent, &child]);
    assert_filled(&son, AT, 4..PAGES);
    drop(child);
    assert_filled(&user, AT, 0..2 * PAGES);
    user.store_u32(at(AT + 6 * PAGE + 8), 7).unwrap();
    assert_eq!(rss(&parent), 2 * PAGES);
    check(&[&parent]);
}

#[test]
fn a_pinned_page_of_a_huge_one_stays_its_owners_and_the_child_gets_a_copy() {
    on_machine::<X86_64>(HugePages::Madvise, |vm| {
        with_one(vm, |process, user| {
            let mut pinned = [Pfn::ZERO];
            let (term, place) = (PinTerm::Long, at(AT + 9 * PAGE));
            assert_eq!(process.pin_pages(place, Access::Write, term, &mut pinned), Ok(1));
            let child = process.fork().unwrap();
            assert_eq!((huge(process), huge(&child)), ((0, 0), (0, 0)));
            user.store_u32(place, 77).unwrap();
            let own = process.entry_state(place).and_then(EntryState::resident).map(|page| page.pfn);
            assert_eq!(own, Some(pinned[0]), "a write goes to the page that is pinned");
            let son = User::new(&child);
            assert_eq!((son.load_u32(place), son.load_u32(at(AT + 9 * PAGE + 8))), (Ok(0), Ok(10)));
            assert_eq!(vm.unpin_pages(&pinned, PinUse::Dirtied), 1);
        });
    });
}
