//! Looking VMAs up, from a page or beside others, and what a slot keeps.

use super::*;

#[test]
fn readers_on_other_cpus_may_hold_an_address_space() {
    fn shared<T: Send + Sync>() {}
    shared::<Mm<'_>>();
    shared::<MmContext<'_>>();
}

#[test]
fn two_faults_at_a_time_agree_on_the_owner_of_the_pages() {
    for _ in 0..100 {
        with_mm(|mm, tables| {
            draw(mm, tables, "Wwww");
            let mm = &*mm;
            let start = std::sync::Barrier::new(2);
            let fault = |page: u64| {
                start.wait();
                let slot = mm.lookup(VirtAddr::from(AT + page * PAGE)).unwrap();
                mm.prepare_anon(slot).unwrap();
                mm.vma(slot).anon.unwrap()
            };
            let (first, second) = std::thread::scope(|scope| {
                let other = scope.spawn(|| fault(3));
                (fault(0), other.join().unwrap())
            });
            assert_eq!(first, second);
        });
    }
}

#[test]
fn who_comes_from_a_page_learns_where_a_vma_lies() {
    with_mm(|mm, tables| {
        draw(mm, tables, "Wwww");
        touch(mm, 0);
        let nodes = mm.context().rmap_nodes();
        let slot = mm.lookup(VirtAddr::from(AT)).unwrap();
        let place = nodes.place(slot).unwrap();
        assert_eq!((place.mm, place.start.get(), place.pages), (mm.id().slot(), AT, 4));
        syscall::munmap(mm, tables, AT, PAGE).unwrap();
        let place = nodes.place(slot).unwrap();
        assert_eq!((place.start.get(), place.pages), (AT + PAGE, 3));
        assert_eq!(place.addr_of(anon_pgoff(VirtAddr::from(AT))), None);
        assert_eq!(place.addr_of(anon_pgoff(VirtAddr::from(AT + PAGE))), Some(VirtAddr::from(AT + PAGE)));
        syscall::munmap(mm, tables, AT, 4 * PAGE).unwrap();
        assert_eq!(nodes.place(slot), None);
    });
}

#[test]
fn a_page_is_looked_for_in_its_owner_s_vmas_and_in_those_of_children() {
    with_mm(|mm, tables| {
        draw(mm, tables, "WwwwRr");
        touch(mm, 0);
        touch(mm, 4);
        protect(mm, tables, 1, 1, Prot::READ);
        let mut child_tables = tables.clone();
        let mut child = mm.new_child().unwrap();
        syscall::fork(mm, tables, &mut child, &mut child_tables).unwrap();
        let context = mm.context();
        let owner = |mm: &Mm<'_>, page: u64| {
            mm.vma(mm.lookup(VirtAddr::from(AT + page * PAGE)).unwrap()).anon.unwrap().id()
        };
        let walk = |id, page: u64| {
            let mut found = Vec::new();
            let index = anon_pgoff(VirtAddr::from(AT + page * PAGE));
            let walked = context.anon_vmas().walk_page(context.rmap_nodes(), id, index, |place, addr| {
                assert_eq!(addr.get(), AT + page * PAGE);
                found.push(place.mm);
                true
            });
            assert_eq!(walked.entries as usize, found.len());
            (walked.vmas_visited, found)
        };
        let (parent_id, child_id) = (mm.id().slot(), child.id().slot());
        assert_eq!(walk(owner(mm, 1), 1), (6, [parent_id, child_id].into()));
        assert_eq!(walk(owner(&child, 1), 1), (1, [child_id].into()));
        // The parent goes; its page stays the child's to find.
        let first = owner(mm, 1);
        context.anon_vmas().add_page(first);
        syscall::munmap(mm, tables, AT, 6 * PAGE).unwrap();
        context.check_anon().unwrap();
        assert_eq!(walk(first, 1), (3, [child_id].into()));
        syscall::exit(&mut child, &mut child_tables);
        assert_eq!((context.anon_vmas().used(), walk(first, 1).0), (1, 0));
        assert!(context.anon_vmas().remove_page(first));
    });
}

#[test]
fn a_page_gets_at_first_what_the_flags_and_the_backing_allow() {
    use crate::flags::PageProt as P;
    let shared = VmFlags::SHARED;
    let regular = Backing::File(FileRef::new(1, 1, FileKind::Regular).unwrap());
    let memory = Backing::File(FileRef::new(1, 1, FileKind::Memory).unwrap());
    for (flags, backing, prot) in [
        (VmFlags::empty(), Backing::Anonymous, P::empty()),
        (VmFlags::READ | VmFlags::WRITE, Backing::Anonymous, P::READ),
        (VmFlags::WRITE, regular, P::READ),
        (VmFlags::READ | VmFlags::WRITE | shared, memory, P::READ | P::WRITE),
        (VmFlags::READ | VmFlags::WRITE | shared, regular, P::READ),
        (VmFlags::EXEC, Backing::Anonymous, P::READ | P::EXEC),
        (VmFlags::EXEC | VmFlags::EXECUTE_ONLY_KEY, Backing::Anonymous, P::EXEC),
    ] {
        let start = VirtAddr::from(AT);
        let vma = Vma { start, end: start, flags, pgoff: PgOff::ZERO, backing, anon: None };
        assert_eq!(vma.page_prot(), prot, "{flags:?}");
    }
    with_mm(|mm, tables| {
        draw(mm, tables, "Ww");
        let slot = mm.lookup(VirtAddr::from(AT)).unwrap();
        assert_eq!(mm.vma(slot).page_prot(), P::READ);
        protect(mm, tables, 0, 2, Prot::NONE);
        assert_eq!(mm.vma(slot).page_prot(), P::empty());
    });
}

#[test]
fn a_call_finds_from_wherever_it_looked_last_what_the_tree_finds() {
    with_mm(|mm, tables| {
        draw(mm, tables, "-Ww-R--WRr-W---Rrr-");
        let slots: Vec<Slot> = mm.vmas().iter().map(|(slot, _)| slot).collect();
        for page in 0..20 {
            let addr = VirtAddr::from(AT + page * PAGE);
            let expected = mm.vmas().iter().find(|(_, vma)| vma.end > addr).map(|(slot, _)| slot);
            for &last in &slots {
                mm.shared().recent().clear();
                mm.shared().recent().note_last(last);
                assert_eq!(mm.set.find_to_change(addr), expected, "page {page} after {last:?}");
                // And again, near what it has noted itself.
                assert_eq!(mm.set.find_to_change(addr), expected, "page {page}, again");
                mm.shared().recent().clear();
                mm.shared().recent().note_last(last);
                assert_eq!(mm.find_vma(addr), expected, "page {page} above {last:?}");
            }
            mm.shared().recent().clear();
            assert_eq!((mm.set.find_to_change(addr), mm.find_vma(addr)), (expected, expected));
        }
    });
}

#[test]
fn a_vma_that_shrinks_is_forgotten_where_it_was() {
    let rooms = Rooms::new(16, 0);
    let context = rooms.context();
    let (mut mm, mut tables) = (Mm::new(&context).unwrap(), NullTables::default());
    // Its halves are in different classes.
    let half = 512 * PAGE;
    let at = mmap(&mut mm, &mut tables, AT, 1_024, RW, 0x10);
    for addr in [at, at + half, at + 2 * half - 1] {
        assert!(mm.find_vma(VirtAddr::from(addr)).is_some());
    }
    syscall::munmap(&mut mm, &mut tables, at + half, half).unwrap();
    mm.check().unwrap();
    assert_eq!(mm.find_vma(VirtAddr::from(at + half)), None);
}
