//! Rules by example, and that `check` names what is broken.

use std::string::String;
use std::vec::Vec;

use super::merge::{Merge, Proposal, Reach, merge};
use super::vma::anon_pgoff;
use super::*;
use crate::addr::{PAGE_SIZE_U64 as PAGE, PgOff, VirtAddr, VirtRange};
use crate::collections::{ListFault, Slot};
use crate::flags::{MapFlags, MlockFlags, MremapFlags, Prot, VmFlags};
use crate::rmap::AnonNode;
use crate::syscall::{self, ExecImage, MmapArgs, Part, Segment};

const AT: u64 = 0x10_0000_0000;
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// What a context borrows.
struct Rooms {
    mms: Vec<MmSlot>,
    vma_nodes: Vec<VmaNode>,
    vmas: Vec<VmaSlot>,
    anon_vmas: Vec<AnonNode>,
    gaps: Vec<GapRoom>,
}

impl Rooms {
    fn new(vmas: usize, gaps: usize) -> Self {
        Self {
            mms: (0..4).map(|_| MmSlot::new()).collect(),
            vma_nodes: (0..vmas).map(|_| VmaNode::new()).collect(),
            vmas: (0..vmas).map(|_| VmaSlot::new()).collect(),
            anon_vmas: (0..vmas).map(|_| AnonNode::new()).collect(),
            gaps: (0..gaps).map(|_| GapRoom::new()).collect(),
        }
    }

    fn context(&self) -> MmContext<'_> {
        let Self { mms, vma_nodes, vmas, anon_vmas, gaps } = self;
        let overcommit = Overcommit::new(OvercommitMode::Guess, 1 << 20, 0);
        MmContext::new(MmStores { mms, vma_nodes, vmas, anon_vmas, gaps }, Sysctl::default(), overcommit)
    }
}

/// Runs `test` on an empty address space.
fn with_mm(test: impl FnOnce(&mut Mm<'_>, &mut NullTables)) {
    let rooms = Rooms::new(512, 64);
    let context = rooms.context();
    let mut mm = Mm::new(&context).unwrap();
    let mut tables = NullTables::default();
    test(&mut mm, &mut tables);
    mm.check().unwrap();
    context.check_anon().unwrap();
    syscall::exit(&mut mm, &mut tables);
    assert_eq!((context.pool().used(), context.gap_nodes().used()), (0, 0));
    context.check_anon().unwrap();
    assert_eq!((context.anon_vmas().used(), context.mms().used()), (0, 1));
    drop(mm);
    assert_eq!(context.mms().used(), 0);
}

fn mmap(mm: &mut Mm<'_>, tables: &mut NullTables, addr: u64, pages: u64, prot: Prot, flags: u64) -> u64 {
    let flags = MapFlags::from_bits_retain(flags | 0x22);
    let args = MmapArgs { addr, len: pages * PAGE, prot, flags, file: Ok(None), offset: 0 };
    syscall::mmap(mm, tables, &args).unwrap().get()
}

/// The VMAs as a drawing: a letter for each page, upper case at the start of a VMA; `-` where there is none.
fn drawn(mm: &Mm<'_>, pages: u64) -> String {
    let page = |page: u64| {
        let at = VirtAddr::from(AT + page * PAGE);
        let Some(slot) = mm.lookup(at) else { return '-' };
        let vma = mm.vma(slot);
        let letter = match (vma.flags.contains(VmFlags::WRITE), vma.flags.contains(VmFlags::READ)) {
            (true, _) => 'w',
            (false, true) => 'r',
            (false, false) => 'n',
        };
        if vma.start == at { letter.to_ascii_uppercase() } else { letter }
    };
    (0..pages).map(page).collect()
}

/// Maps what a drawing shows, one VMA after the other.
fn draw(mm: &mut Mm<'_>, tables: &mut NullTables, drawing: &str) {
    for (page, letter) in (0..).zip(drawing.chars()) {
        let prot = match letter.to_ascii_lowercase() {
            'w' => RW,
            'r' => Prot::READ,
            'n' => Prot::NONE,
            _ => continue,
        };
        mmap(mm, tables, AT + page * PAGE, 1, prot, 0x10);
    }
    assert_eq!(drawn(mm, drawing.len() as u64), drawing);
}

fn touch(mm: &mut Mm<'_>, page: u64) {
    let slot = mm.lookup(VirtAddr::from(AT + page * PAGE)).unwrap();
    mm.prepare_anon(slot).unwrap();
}

fn protect(mm: &mut Mm<'_>, tables: &mut NullTables, from: u64, pages: u64, prot: Prot) {
    syscall::mprotect(mm, tables, AT + from * PAGE, pages * PAGE, prot).unwrap();
}

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
fn who_let_go_of_the_lock_sees_whether_anything_was_changed() {
    with_mm(|mm, tables| {
        draw(mm, tables, "Ww-Rr");
        let look = |mm: &Mm<'_>| {
            let slot = mm.lookup(VirtAddr::from(AT)).unwrap();
            (slot, mm.vma_slot(slot).generation(), mm.sequence())
        };
        let same = |mm: &Mm<'_>, seen: (Slot, u32, u64)| mm.vma_unchanged(seen.0, seen.1, seen.2);
        let seen = look(mm);
        // A fault beside it is no change.
        touch(mm, 0);
        assert!(same(mm, seen));
        assert!(!mm.vma_unchanged(seen.0, seen.1 + 2, seen.2));
        let changes: [fn(&mut Mm<'_>, &mut NullTables); 4] = [
            |mm, tables| protect(mm, tables, 0, 2, Prot::READ),
            |mm, tables| syscall::munmap(mm, tables, AT + PAGE, PAGE).unwrap(),
            |mm, tables| syscall::munmap(mm, tables, AT, PAGE).unwrap(),
            |mm, tables| draw(mm, tables, "W"),
        ];
        for change in changes {
            let seen = mm.lookup(VirtAddr::from(AT)).map(|_| look(mm));
            change(mm, tables);
            assert!(seen.is_none_or(|seen| !same(mm, seen)));
        }
        // The slot is in use again, with another generation.
        let again = look(mm);
        assert!(again.0 == seen.0 && again.1 != seen.1 && same(mm, again));
    });
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
fn what_a_slot_keeps_beside_the_vma_goes_with_its_parts_and_copies() {
    with_mm(|mm, tables| {
        draw(mm, tables, "Wwwwww--");
        let data = |mm: &Mm<'_>, page: u64| {
            mm.vma_slot(mm.lookup(VirtAddr::from(AT + page * PAGE)).unwrap()).private_data()
        };
        mm.vma_slot(mm.lookup(VirtAddr::from(AT)).unwrap()).set_private_data(7);
        protect(mm, tables, 1, 1, Prot::READ);
        syscall::munmap(mm, tables, AT + 3 * PAGE, PAGE).unwrap();
        assert_eq!([0, 1, 2, 4].map(|page| data(mm, page)), [7; 4]);
        let flags = MremapFlags::MAYMOVE | MremapFlags::FIXED;
        touch(mm, 5);
        syscall::mremap(mm, tables, AT + 5 * PAGE, PAGE, PAGE, flags, AT + 7 * PAGE).unwrap();
        assert_eq!(data(mm, 7), 7);
        mmap(mm, tables, AT + 3 * PAGE, 1, Prot::NONE, 0x10);
        assert_eq!(data(mm, 3), 0);
        let mut child = mm.new_child().unwrap();
        let mut child_tables = tables.clone();
        syscall::fork(mm, tables, &mut child, &mut child_tables).unwrap();
        assert_eq!([0, 3].map(|page| data(&child, page)), [7, 0]);
        syscall::exit(&mut child, &mut child_tables);
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
        assert_eq!(mm.vma_slot(slot).page_prot(), P::READ);
        protect(mm, tables, 0, 2, Prot::NONE);
        assert_eq!(mm.vma_slot(slot).page_prot(), P::empty());
    });
}

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

#[test]
fn the_guard_gap_of_a_stack_is_kept_free_by_placement_and_growth() {
    with_mm(|mm, tables| {
        let top = AT + 0x1000 * PAGE;
        mm.set_mmap_base(VirtAddr::from(top));
        mmap(mm, tables, top - 4 * PAGE, 4, RW, 0x110);
        // Below the gap, though there is room above.
        let placed = mmap(mm, tables, 0, 1, RW, 0);
        assert_eq!(placed, top - 4 * PAGE - 257 * PAGE);
        // A hint inside is not taken, one exactly below is.
        assert_eq!(mmap(mm, tables, top - 260 * PAGE, 1, Prot::READ, 0), placed - PAGE);
        let exact = top - 4 * PAGE - 300 * PAGE;
        assert_eq!(mmap(mm, tables, exact, 1, RW, 0), exact);
        // 256 pages must stay between.
        let grown = |mm: &mut Mm<'_>, addr| mm.find_vma_or_grow(VirtAddr::from(addr));
        assert_eq!(grown(mm, top - 5 * PAGE).map(drop), Err(MmError::StackGap));
        syscall::munmap(mm, tables, placed, PAGE).unwrap();
        assert!(grown(mm, top - 5 * PAGE).is_ok());
        assert_eq!(grown(mm, top - 6 * PAGE).map(drop), Err(MmError::StackGap));
    });
}

#[test]
fn the_legacy_layout_begins_at_the_bottom_and_keeps_the_guard_gap_free() {
    with_mm(|mm, tables| {
        mm.set_layout(Layout::BottomUp);
        mm.set_mmap_legacy_base(VirtAddr::from(AT));
        let stack = AT + 300 * PAGE;
        mmap(mm, tables, stack, 1, RW, 0x110);
        assert_eq!(mmap(mm, tables, 0, 44, Prot::READ, 0), AT);
        assert_eq!(mmap(mm, tables, 0, 1, RW, 0), stack + PAGE);
        syscall::munmap(mm, tables, AT, 44 * PAGE).unwrap();
        assert_eq!(mmap(mm, tables, 0, 45, Prot::READ, 0), stack + 2 * PAGE);
    });
}

#[test]
fn placement_answers_the_same_with_and_without_an_index() {
    with_mm(|mm, tables| {
        let mut seed = 7_u64;
        for round in 0..400 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let pages = (seed >> 60) + 1;
            let prot = if round % 2 == 0 { RW } else { Prot::READ };
            let wish = Wish {
                addr: 0,
                len: pages * PAGE,
                file: None,
                pgoff: 0,
                sharing: Sharing::Private,
                exact: Exact::Hint,
            };
            mm.prepare_gaps();
            let with = mm.get_unmapped_area(&wish);
            mm.set.gaps.clear();
            assert_eq!(mm.get_unmapped_area(&wish), with);
            let at = mmap(mm, tables, 0, pages, prot, if round % 5 == 0 { 0x100 } else { 0 });
            if round % 3 == 0 {
                syscall::munmap(mm, tables, at, PAGE).unwrap();
            }
            mm.check().unwrap();
        }
        assert!(mm.map_count() > gap::BUILD_AT as u32);
    });
}

#[test]
fn huge_alignment_is_that_of_linux() {
    with_mm(|mm, tables| {
        let huge = 2 << 20;
        mm.set_mmap_base(VirtAddr::from(AT + 5 * PAGE));
        assert_eq!(mmap(mm, tables, 0, huge / PAGE, RW, 0) % huge, 0);
        // Not a multiple of it: plain first fit, at the top.
        let len = huge - PAGE;
        mm.set_mmap_base(VirtAddr::from(AT / 2 + 5 * PAGE));
        assert_eq!(mmap(mm, tables, 0, len / PAGE, RW, 0), AT / 2 + 5 * PAGE - len);
    });
}

#[test]
fn a_stack_does_not_grow_beyond_its_limits() {
    with_mm(|mm, tables| {
        mmap(mm, tables, AT, 1, RW, 0x110);
        mm.set_rlimits(Rlimits { stack: 3 * PAGE, ..*mm.rlimits() });
        let grow =
            |mm: &mut Mm<'_>, pages: u64| mm.find_vma_or_grow(VirtAddr::from(AT - pages * PAGE)).map(drop);
        assert_eq!(grow(mm, 3), Err(MmError::StackLimit));
        assert_eq!(grow(mm, 2), Ok(()));
        assert_eq!(mm.totals().stack_vm, 3);
        mm.set_rlimits(Rlimits { address_space: 3 * PAGE, ..Rlimits::default() });
        assert_eq!(grow(mm, 3), Err(MmError::AddressSpaceLimit));
    });
}

#[test]
fn limits_are_inclusive_and_what_is_replaced_counts_for_what_replaces_it() {
    with_mm(|mm, tables| {
        let map = |mm: &mut Mm<'_>, tables: &mut NullTables, page: u64, pages: u64, prot| {
            let flags = MapFlags::from_bits_retain(0x32);
            let (addr, len) = (AT + page * PAGE, pages * PAGE);
            syscall::mmap(mm, tables, &MmapArgs { addr, len, prot, flags, file: Ok(None), offset: 0 })
                .map(drop)
        };
        mm.set_rlimits(Rlimits { address_space: 4 * PAGE, data: 2 * PAGE, ..Rlimits::default() });
        assert_eq!(map(mm, tables, 0, 3, RW), Err(MmError::AddressSpaceLimit));
        assert_eq!(map(mm, tables, 0, 2, RW), Ok(()));
        assert_eq!(map(mm, tables, 8, 1, RW), Err(MmError::AddressSpaceLimit));
        assert_eq!(map(mm, tables, 8, 2, Prot::NONE), Ok(()));
        assert_eq!(map(mm, tables, 16, 1, Prot::NONE), Err(MmError::AddressSpaceLimit));
        assert_eq!(map(mm, tables, 7, 3, Prot::READ), Err(MmError::AddressSpaceLimit));
        assert_eq!(map(mm, tables, 8, 2, Prot::READ), Ok(()));
        mm.set_rlimits(Rlimits { data: 2 * PAGE, ..Rlimits::default() });
        let to_data = syscall::mprotect(mm, tables, AT + 8 * PAGE, PAGE, RW);
        assert_eq!(to_data, Err(MmError::AddressSpaceLimit));
        mm.set_rlimits(Rlimits { memlock: 2 * PAGE, ..Rlimits::default() });
        assert_eq!(syscall::mlock(mm, tables, AT, 2 * PAGE), Ok(()));
        assert_eq!(syscall::mlock(mm, tables, AT, 2 * PAGE), Ok(()));
        assert_eq!(syscall::mlock(mm, tables, AT + 8 * PAGE, 1), Err(MmError::LockLimitNoMemory));
    });
}

#[test]
fn the_first_of_the_heap_is_a_vma_of_its_own() {
    with_mm(|mm, tables| {
        draw(mm, tables, "Ww--");
        let start_brk = VirtAddr::from(AT + 2 * PAGE);
        mm.set_image(Image { start_brk, brk: start_brk, ..Image::default() });
        let grow = |mm: &mut Mm<'_>, tables: &mut NullTables| syscall::sbrk(mm, tables, PAGE as i64).unwrap();
        grow(mm, tables);
        assert_eq!(drawn(mm, 4), "WwW-");
        grow(mm, tables);
        assert_eq!(drawn(mm, 4), "WwWw");
        assert_eq!(syscall::sbrk(mm, tables, -(2 * PAGE as i64)), Ok(VirtAddr::from(AT + 4 * PAGE)));
        assert_eq!(drawn(mm, 4), "Ww--");
    });
}

#[test]
fn exec_replaces_everything_or_nothing() {
    with_mm(|mm, tables| {
        draw(mm, tables, "WwRr");
        let file = FileRef::new(1, 1, FileKind::Regular).unwrap();
        let code = Segment {
            addr: 0x40_0000,
            file_len: 0x1234,
            mem_len: 0x1234,
            offset: 0,
            prot: Prot::READ | Prot::EXEC,
            part: Part::Program,
            file,
        };
        let data =
            Segment { addr: 0x40_2100, file_len: 0x80, mem_len: 0x3000, offset: 0x2100, prot: RW, ..code };
        let image = ExecImage {
            segments: &[code, data],
            stack_top: 0x7fff_ffff_e000,
            arg_bytes: 10,
            env_bytes: 20,
            vector_bytes: 300,
            stack_prot: RW,
            seed: 0,
        };
        let mut other = NullTables::default();
        let mut new = mm.new_child().unwrap();
        let overlapping = ExecImage { segments: &[code, code], ..image };
        assert_eq!(syscall::exec(mm, tables, &mut new, &mut other, &overlapping), Err(MmError::BadFlags));
        assert_eq!(drawn(mm, 4), "WwRr");
        syscall::exec(mm, tables, &mut new, &mut other, &image).unwrap();
        assert!(new.vmas().is_empty());
        let ranges: Vec<(u64, u64)> =
            mm.vmas().iter().map(|(_, vma)| (vma.start.get(), vma.end.get())).collect();
        assert_eq!(ranges[..3], [(0x40_0000, 0x40_2000), (0x40_2000, 0x40_3000), (0x40_3000, 0x40_6000)]);
        assert_eq!(ranges[3], (0x7fff_ffff_e000 - (33 << 12), 0x7fff_ffff_e000));
        let fields = mm.image();
        let numbers =
            [fields.start_code, fields.end_code, fields.start_data, fields.end_data, fields.start_brk];
        assert_eq!(numbers.map(VirtAddr::get), [0x40_0000, 0x40_1234, 0x40_2100, 0x40_2180, 0x40_6000]);
        assert_eq!(fields.arg_end, fields.env_start);
        assert_eq!(syscall::brk(mm, tables, 0x40_7001).get(), 0x40_7001);
    });
}

/// Breaks something in an address space of 60 VMAs; what `check` says.
fn broken(damage: impl FnOnce(&mut Mm<'_>)) -> Violation {
    let rooms = Rooms::new(128, 32);
    let context = rooms.context();
    let mut mm = Mm::new(&context).unwrap();
    let mut tables = NullTables::default();
    for page in 0..60 {
        mmap(&mut mm, &mut tables, AT + 2 * page * PAGE, 1, RW, 0x10);
    }
    mm.prepare_gaps();
    assert!(mm.set.gaps.is_built());
    mm.check().unwrap();
    damage(&mut mm);
    let violation = mm.check().unwrap_err();
    // What is broken must not be taken apart.
    core::mem::forget(mm);
    violation
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
    let cache = broken(|mm| {
        let free = mm.context.pool.take().unwrap();
        mm.shared().recent().note_last(free);
    });
    assert_eq!(cache, Violation::Cache);
    let gaps = broken(|mm| {
        let used = VirtRange::with_len(VirtAddr::from(AT + 4 * PAGE), PAGE).unwrap();
        mm.set.note_free(used);
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
