//! Where mappings go.

use super::*;
use crate::mm::gap::GapNodes;

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
        mm.set_layout(MmapLayout::BottomUp);
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
            let (window, flag) = match round % 7 {
                0 => (Window::Low, 0x40),
                1 => (Window::Above4G, 0x80),
                _ => (Window::Layout, 0),
            };
            let wish = Wish {
                addr: 0,
                len: pages * PAGE,
                file: None,
                pgoff: 0,
                sharing: Sharing::Private,
                exact: Exact::Hint,
                window,
            };
            let with = mm.get_unmapped_area(&wish);
            mm.set.gaps.clear();
            // Without nodes there is no index, and the walk answers the same.
            let pool = &mm.context.gap_nodes;
            let nodes: Vec<_> = core::iter::from_fn(|| GapNodes::take(&pool)).collect();
            assert_eq!((mm.get_unmapped_area(&wish), mm.set.gaps.is_built()), (with, false));
            nodes.into_iter().for_each(|node| pool.give(node));
            let at = mmap(mm, tables, 0, pages, prot, flag | if round % 5 == 0 { 0x100 } else { 0 });
            assert_eq!(Ok(VirtAddr::from(at)), with);
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

const GIB: u64 = 1 << 30;

/// What mmap answers for so many pages of anonymous memory with these flags.
fn try_mmap(
    mm: &mut Mm<'_>,
    tables: &mut NullTables,
    addr: u64,
    pages: u64,
    flags: MapFlags,
) -> Result<u64, MmError> {
    let anonymous = MmapArgs::anonymous(pages * PAGE, Prot::READ).at(addr);
    let args = MmapArgs { flags: anonymous.flags | flags, ..anonymous };
    syscall::mmap(mm, tables, &args).map(VirtAddr::get)
}

#[test]
fn memory_for_31_bits_lies_in_the_second_gibibyte_or_where_the_hint_says() {
    with_mm(|mm, tables| {
        let low = MapFlags::_32BIT | MapFlags::NORESERVE;
        let mut map = |addr, pages| try_mmap(mm, tables, addr, pages, low);
        assert_eq!(map(0, 3), Ok(GIB));
        assert_eq!(map(0, 1), Ok(GIB + 3 * PAGE));
        assert_eq!(map(GIB / 2, 1), Ok(GIB / 2));
        assert_eq!(map(2 * GIB - PAGE, 1), Ok(2 * GIB - PAGE));
        // Neither across the end nor behind it.
        assert_eq!(map(2 * GIB - 2 * PAGE, 3), Ok(GIB + 4 * PAGE));
        assert_eq!(map(2 * GIB, 1), Ok(GIB + 7 * PAGE));
        assert_eq!(map(AT, 1), Ok(GIB + 8 * PAGE));
        assert_eq!(map(0, GIB / PAGE - 9), Err(MmError::NoGap));
        // Aligned for a huge page, and then plainly.
        assert_eq!(map(0, 512), Ok(GIB + 512 * PAGE));
        assert_eq!(map(0, GIB / PAGE - 1025), Ok(GIB + 1024 * PAGE));
        assert_eq!(map(0, 512), Err(MmError::NoGap));
        assert_eq!(try_mmap(mm, tables, AT, 1, low | MapFlags::FIXED), Ok(AT));
        // It is stronger than the other wish.
        assert_eq!(try_mmap(mm, tables, 0, 1, low | MapFlags::ABOVE4G), Ok(GIB + 9 * PAGE));
    });
}

#[test]
fn memory_above_4_gibibytes_is_sought_there_first_and_only_downwards() {
    with_mm(|mm, tables| {
        mm.set_mmap_base(VirtAddr::from(4 * GIB + 8 * PAGE));
        let above = MapFlags::ABOVE4G;
        assert_eq!(try_mmap(mm, tables, 0, 7, above), Ok(4 * GIB + PAGE));
        // What is too long goes to where one looks upwards.
        let upwards = mm.mmap_legacy_base().get();
        assert_eq!(try_mmap(mm, tables, 0, 2, above), Ok(upwards));
        assert_eq!(try_mmap(mm, tables, 0, 1, above), Ok(4 * GIB));
        assert_eq!(try_mmap(mm, tables, 0, 1, MapFlags::empty()), Ok(4 * GIB - PAGE));
        assert_eq!(try_mmap(mm, tables, GIB, 1, above), Ok(GIB));
        mm.set_layout(MmapLayout::BottomUp);
        mm.set_mmap_legacy_base(VirtAddr::from(2 * GIB));
        assert_eq!(try_mmap(mm, tables, 0, 1, above), Ok(2 * GIB));
    });
}

#[test]
fn only_x86_64_places_by_31_bits() {
    use crate::table::Sv39;
    let rooms = Rooms::new(16, 0);
    let context = rooms.context_with(Sysctl::for_format::<Sv39>());
    let (mut mm, mut tables) = (Mm::new(&context).unwrap(), NullTables::default());
    mm.set_mmap_base(VirtAddr::from(4 * GIB));
    for flags in [MapFlags::_32BIT, MapFlags::ABOVE4G] {
        let at = try_mmap(&mut mm, &mut tables, 0, 1, flags).unwrap();
        assert!(at < 4 * GIB && at > 4 * GIB - 3 * PAGE);
    }
    syscall::exit(&mut mm, &mut tables);
}

/// An address space with enough VMAs for a gap index, and above them one of four pages at `TOP`, where top-down searches begin.
fn below_top<'c>(context: &'c MmContext<'c>, flags: u64) -> (Mm<'c>, NullTables) {
    let (mut mm, mut tables) = (Mm::new(context).unwrap(), NullTables::default());
    for page in 0..60 {
        mmap(&mut mm, &mut tables, AT + 2 * page * PAGE, 1, RW, 0x10);
    }
    mm.set_mmap_base(VirtAddr::from(TOP));
    mmap(&mut mm, &mut tables, TOP - 4 * PAGE, 4, RW, 0x10 | flags);
    (mm, tables)
}

const TOP: u64 = AT + 2_000 * PAGE;

fn one_page_anywhere(mm: &mut Mm<'_>) -> VirtAddr {
    let (file, pgoff, sharing, exact) = (None, 0, Sharing::Private, Exact::Hint);
    let wish = Wish { addr: 0, len: PAGE, file, pgoff, sharing, exact, window: Window::Layout };
    let found = mm.get_unmapped_area(&wish).unwrap();
    assert!(mm.set.gaps.is_built());
    mm.check().unwrap();
    found
}

#[test]
fn a_stack_whose_slot_went_to_its_upper_part_keeps_its_guard() {
    let rooms = Rooms::new(128, 32);
    let context = rooms.context();
    let (mut mm, mut tables) = below_top(&context, 0x100);
    let below_guard = one_page_anywhere(&mut mm);
    assert!(below_guard.get() < TOP - 5 * PAGE);
    syscall::mprotect(&mut mm, &mut tables, TOP - 3 * PAGE, 3 * PAGE, Prot::READ).unwrap();
    assert_eq!(one_page_anywhere(&mut mm), below_guard);
}

#[test]
fn a_vma_of_another_address_space_in_the_slot_of_the_one_above_is_not_taken_for_it() {
    let rooms = Rooms::new(128, 32);
    let context = rooms.context();
    let (mut mm, mut tables) = below_top(&context, 0);
    assert_eq!(one_page_anywhere(&mut mm).get(), TOP - 5 * PAGE);
    let slot = mm.lookup(VirtAddr::from(TOP - PAGE)).unwrap();
    // The slot goes to the upper part, and with that to another address space, for a stack at the same place.
    syscall::mprotect(&mut mm, &mut tables, TOP - 3 * PAGE, 3 * PAGE, Prot::READ).unwrap();
    syscall::munmap(&mut mm, &mut tables, TOP - 3 * PAGE, 3 * PAGE).unwrap();
    let (mut other, mut others) = (Mm::new(&context).unwrap(), NullTables::default());
    mmap(&mut other, &mut others, TOP - 4 * PAGE, 1, RW, 0x110);
    assert_eq!(other.lookup(VirtAddr::from(TOP - 4 * PAGE)), Some(slot));
    mmap(&mut mm, &mut tables, TOP - 3 * PAGE, 3, Prot::READ, 0x10);
    assert_eq!(one_page_anywhere(&mut mm).get(), TOP - 5 * PAGE);
}
