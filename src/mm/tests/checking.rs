//! `check` names what is broken.

use super::*;

/// Breaks something in an address space of 60 VMAs; what `check` says.
fn broken(damage: impl FnOnce(&mut Mm<'_>)) -> Violation {
    let rooms = Rooms::new(128, 32);
    let context = rooms.context();
    let mut mm = Mm::new(&context).unwrap();
    let mut tables = NullTables::default();
    for page in 0..60 {
        mmap(&mut mm, &mut tables, AT + 2 * page * PAGE, 1, RW, 0x10);
    }
    mm.set.prepare_gaps(mm.mmap_base());
    assert!(mm.set.gaps.is_built());
    mm.check().unwrap();
    damage(&mut mm);
    let violation = mm.check().unwrap_err();
    // What is broken must not be taken apart.
    core::mem::forget(mm);
    violation
}

#[test]
fn check_names_what_is_broken() {
    use crate::collections::HasListLink;
    let at = |mm: &Mm<'_>, page: u64| mm.lookup(VirtAddr::from(AT + page * PAGE)).unwrap();
    let list = broken(|mm| {
        let (slot, other) = (at(mm, 20), at(mm, 40));
        HasListLink::<ByAddress>::list_link(mm.set.at(slot)).corrupt(Some(other), Some(other));
    });
    assert!(matches!(list, Violation::List(ListFault::BackLink(_))), "{list:?}");
    let tree = broken(|mm| {
        use crate::collections::HasTreeLink;
        let slot = mm.set.rb.root().unwrap();
        HasTreeLink::<MmRb>::tree_link(mm.set.node(slot)).corrupt(None, None);
    });
    assert!(matches!(tree, Violation::Tree(_)), "{tree:?}");
    let mark = broken(|mm| {
        let node = mm.set.node(at(mm, 20));
        // As one that was never on a tree.
        crate::collections::HasTreeLink::tree_mark(node).unwrap().clear();
    });
    assert!(matches!(mark, Violation::Tree(TreeFault::Mark(_))), "{mark:?}");
    let root = broken(|mm| mm.shared().set_root(None));
    assert_eq!(root, Violation::Root);
    let cache = broken(|mm| {
        let free = mm.context.pool.take().unwrap();
        mm.shared().recent().note_last(free);
    });
    assert_eq!(cache, Violation::Cache);
    let gaps = broken(|mm| {
        let used = VirtRange::with_len(VirtAddr::from(AT + 4 * PAGE), PAGE).unwrap();
        mm.set.note_free(used, None);
    });
    assert!(matches!(gaps, Violation::Gaps(_)), "{gaps:?}");
    let totals = broken(|mm| mm.totals.locked_vm += 1);
    assert_eq!(totals, Violation::Totals);
    let order = broken(|mm| {
        let slot = at(mm, 4);
        let end = VirtAddr::from(AT + 7 * PAGE);
        mm.set.resize(slot, VirtAddr::from(AT + 4 * PAGE), end, anon_pgoff(end));
    });
    assert_eq!(order, Violation::Order);
    let unmerged = broken(|mm| {
        let (slot, next) = (at(mm, 4), at(mm, 6));
        let end = VirtAddr::from(AT + 6 * PAGE);
        let start = VirtAddr::from(AT + 4 * PAGE);
        mm.set.resize(slot, start, end, anon_pgoff(start));
        let vma = mm.vma(next);
        assert_eq!(vma.pgoff, anon_pgoff(vma.start));
    });
    assert_eq!(unmerged, Violation::Unmerged);
}

#[test]
fn check_finds_a_shared_vma_that_may_write_what_was_opened_to_read() {
    use crate::syscall::{MapFile, OpenMode};
    let check = |mode, added| {
        let rooms = Rooms::new(16, 4);
        let context = rooms.context();
        let (mut mm, mut tables) = (Mm::new(&context).unwrap(), NullTables::default());
        let file = MapFile::new(FileRef::new(1, 1, FileKind::Regular).unwrap(), mode);
        let (prot, flags) = (Prot::READ, MapFlags::SHARED | MapFlags::FIXED);
        let args = MmapArgs { addr: AT, len: PAGE, prot, flags, file: Ok(Some(file)), offset: 0 };
        syscall::mmap(&mut mm, &mut tables, &args).unwrap();
        mm.check().unwrap();
        let at = mm.set.at(mm.lookup(VirtAddr::from(AT)).unwrap());
        at.set_flags(at.flags() | added);
        let found = mm.check();
        core::mem::forget(mm);
        found
    };
    for added in [VmFlags::MAYWRITE, VmFlags::SHARED, VmFlags::SHARED | VmFlags::MAYWRITE | VmFlags::WRITE] {
        assert_eq!(check(OpenMode::ReadOnly, added), Err(Violation::Opening), "{added:?}");
    }
    assert_eq!(check(OpenMode::ReadWrite, VmFlags::WRITE), Ok(()));
}
