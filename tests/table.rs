//! Page tables by their public face, in every format, with tables in the direct map and in HIGHMEM.

mod machines;

use kernmm::addr::{Pfn, VirtAddr, VirtRange};
use kernmm::flags::{GfpFlags, PageFlags};
use kernmm::memory::Memory;
use kernmm::platform::hosted::Machine;
use kernmm::platform::{CpuSet, Platform};
use kernmm::sync::TaskLock;
use kernmm::table::{
    EntryFormat, HUGE_SIZE, Leaf, Mapped, Pae, PageTable, PreparedTable, Pte, PteBits, Sv39, TableError,
    TableRef, TlbGather, X86_64,
};

use machines::on_machines;

type Mem<'m> = Memory<'m, Machine>;

const RW: PteBits = PteBits::READ.union(PteBits::WRITE).union(PteBits::USER);

fn range(start: u64, len: u64) -> VirtRange {
    VirtRange::with_len(VirtAddr::from(start), len).unwrap()
}

/// What the leaf table of `addr`, which is there, says.
fn with_leaf<F: EntryFormat, R>(
    table: PageTable<'_, Mem<'_>, F>,
    addr: u64,
    work: impl FnOnce(&TableRef<'_, F>) -> R,
) -> R {
    let pin = table.source().pin();
    match table.lock(&pin, VirtAddr::from(addr)) {
        Leaf::Table(leaf) => work(&leaf),
        other => panic!("no table at {addr:#x}: {other:?}"),
    }
}

fn destroy<F: EntryFormat>(table: PageTable<'_, Mem<'_>, F>) {
    let cpus = CpuSet::new();
    let mut gather = TlbGather::new(table.source(), table.pgd(), &cpus);
    table.destroy(&mut gather);
    gather.finish();
}

fn entries_are_written_read_and_counted<F: EntryFormat>(memory: &Mem<'_>) {
    let table = PageTable::<_, F>::create(memory, None).unwrap();
    let fixed = table.tables();
    let frame = memory.alloc_pages(GfpFlags::HIGHUSER, Default::default()).unwrap();
    for at in [0, 0x1f_f000, 0x4000_0000, F::USER_END - 0x1000] {
        let addr = VirtAddr::from(at);
        table.ensure(addr, GfpFlags::HIGHUSER).unwrap();
        with_leaf(table, at, |leaf| {
            assert!(leaf.get(addr).is_none());
            leaf.set(addr, Pte::mapping(frame, RW));
            assert_eq!(leaf.get(addr), Pte::mapping(frame, RW));
            let old = leaf.update(addr, |pte| {
                pte.mapped().map_or(pte, |old| Pte::mapping(old.pfn, old.bits | PteBits::DIRTY))
            });
            assert_eq!(old, Pte::mapping(frame, RW));
            assert_eq!(leaf.get(VirtAddr::from(at ^ HUGE_SIZE)), Pte::None, "not of this table");
        });
        assert_eq!(table.get(&memory.pin(), addr), Pte::mapping(frame, RW | PteBits::DIRTY));
    }
    with_leaf(table, 0, |leaf| {
        assert_eq!(leaf.used(), 2);
        assert_eq!(leaf.iter(range(0, HUGE_SIZE)).count(), 2);
        assert_eq!(leaf.take(VirtAddr::from(0)), Pte::mapping(frame, RW | PteBits::DIRTY));
        assert_eq!(leaf.take(VirtAddr::from(0)), Pte::None);
        assert_eq!(leaf.used(), 1);
    });
    assert!(table.tables() > fixed);
    assert_eq!(table.ensure(VirtAddr::from(F::KERNEL_START.wrapping_neg()), GfpFlags::USER).is_ok(), {
        F::half(VirtAddr::from(F::KERNEL_START.wrapping_neg())).is_some()
    });
    destroy(table);
    memory.free_pages(frame, Default::default()).unwrap();
}

#[test]
fn entries_are_written_read_and_counted_in_every_format() {
    on_machines(entries_are_written_read_and_counted::<X86_64>);
    on_machines(entries_are_written_read_and_counted::<Pae>);
    on_machines(entries_are_written_read_and_counted::<Sv39>);
}

fn holes_are_as_large_as_they_are<F: EntryFormat>(memory: &Mem<'_>) {
    let table = PageTable::<_, F>::create(memory, None).unwrap();
    let hole = |at: u64| match table.lock(&memory.pin(), VirtAddr::from(at)) {
        Leaf::Absent { next } => next.get(),
        other => panic!("{other:?}"),
    };
    let gib = 1 << 30;
    let top = if F::LEVELS == 4 { 1 << 39 } else { gib };
    assert_eq!(hole(0x1234_5678), if F::ROOT_IS_CACHED { 0x1240_0000 } else { top });
    table.ensure(VirtAddr::from(gib), GfpFlags::HIGHUSER).unwrap();
    assert_eq!(hole(gib + HUGE_SIZE), gib + 2 * HUGE_SIZE);
    if F::LEVELS == 4 {
        assert_eq!((hole(0), hole(2 * gib), hole(top)), (gib, 3 * gib, 2 * top));
    }
    if F::USER_END != F::KERNEL_START {
        assert_eq!(hole(F::USER_END), F::KERNEL_START);
        assert_eq!(table.ensure(VirtAddr::from(F::USER_END), GfpFlags::USER), Err(TableError::OutOfRange));
    }
    destroy(table);
}

#[test]
fn walks_skip_holes_of_every_size() {
    on_machines(holes_are_as_large_as_they_are::<X86_64>);
    on_machines(holes_are_as_large_as_they_are::<Pae>);
    on_machines(holes_are_as_large_as_they_are::<Sv39>);
}

#[test]
fn of_the_empty_tables_in_a_hole_those_of_a_range_go() {
    fn test<F: EntryFormat>(memory: &Mem<'_>) {
        let table = PageTable::<_, F>::create(memory, None).unwrap();
        let (lock, cpus, fixed) = (TaskLock::new(()), CpuSet::new(), table.tables());
        // Three leaf tables behind one table above them.
        for at in [0, HUGE_SIZE, 2 * HUGE_SIZE] {
            table.ensure(VirtAddr::from(at), GfpFlags::HIGHUSER).unwrap();
        }
        let all = table.tables();
        let free = |part, hole| {
            let mut gather = TlbGather::new(memory, table.pgd(), &cpus);
            table.free_empty_around(part, hole, &lock, &mut gather);
            gather.finish();
            table.tables()
        };
        let hole = range(0x1000, F::USER_END - 0x1000);
        assert_eq!(free(range(0x1000, 0x1000), hole), all, "its table lies in the hole in part");
        assert_eq!(
            free(range(HUGE_SIZE + 0x5000, 0x1000), hole),
            all - 1,
            "the range is a small part of its table"
        );
        let upper = range(HUGE_SIZE, F::USER_END - HUGE_SIZE);
        assert_eq!(
            free(range(2 * HUGE_SIZE - 0x1000, 0x2000), upper),
            all - 2,
            "one that is half in it goes too"
        );
        assert_eq!(
            free(range(0x1000, 0x1000), range(0, F::USER_END)),
            fixed,
            "with the last, what is above it"
        );
        destroy(table);
    }
    on_machines(test::<X86_64>);
    on_machines(test::<Pae>);
    on_machines(test::<Sv39>);
}

fn empty_tables_go<F: EntryFormat>(memory: &Mem<'_>) {
    let table = PageTable::<_, F>::create(memory, None).unwrap();
    let lock = TaskLock::new(());
    let cpus = CpuSet::new();
    let fixed = table.tables();
    for at in [0, HUGE_SIZE, 2 * HUGE_SIZE] {
        table.ensure(VirtAddr::from(at), GfpFlags::HIGHUSER).unwrap();
    }
    let all = table.tables();
    with_leaf(table, HUGE_SIZE, |leaf| leaf.set(VirtAddr::from(HUGE_SIZE), Pte::Guard));
    let free = |hole| {
        let mut gather = TlbGather::new(memory, table.pgd(), &cpus);
        table.free_empty(hole, &lock, &mut gather);
        gather.finish();
        table.tables()
    };
    assert_eq!(
        free(range(0x1000, 4 * HUGE_SIZE)),
        all - 1,
        "the first lies in the hole in part, the second is in use"
    );
    assert_eq!(free(range(0, 4 * HUGE_SIZE)), all - 2);
    with_leaf(table, HUGE_SIZE, |leaf| leaf.set(VirtAddr::from(HUGE_SIZE), Pte::None));
    assert_eq!(free(range(0, F::USER_END)), fixed);
    destroy(table);
}

#[test]
fn empty_tables_inside_the_hole_go_and_no_others() {
    on_machines(empty_tables_go::<X86_64>);
    on_machines(empty_tables_go::<Pae>);
    on_machines(empty_tables_go::<Sv39>);
}

/// A huge entry whose table is out of reach, since all slots are in use, stays what it is, and its table stays kept.
fn no_slot_is_left_for_a_split<F: EntryFormat>(
    memory: &Mem<'_>,
    table: PageTable<'_, Mem<'_>, F>,
    at: VirtAddr,
    block: Pfn,
) {
    let pin = memory.pin();
    let before = (table.get(&pin, at), table.tables());
    let Leaf::Huge(huge) = table.lock(&pin, at) else { panic!("no huge entry") };
    let slots: Vec<_> = std::iter::from_fn(|| memory.kmap(&pin, block).ok()).collect();
    assert!(!slots.is_empty() && !huge.split_with(|_, whole| whole));
    drop(slots);
    assert_eq!((table.get(&pin, at), table.tables()), before);
}

fn huge_entries_split<F: EntryFormat>(memory: &Mem<'_>) {
    let table = PageTable::<_, F>::create(memory, None).unwrap();
    let cpus = CpuSet::new();
    let order = kernmm::addr::PageOrder::MAX;
    let block = memory.alloc_pages(GfpFlags::HIGHUSER_MOVABLE, order).unwrap();
    let at = VirtAddr::from(4 * HUGE_SIZE);
    let mut gather = TlbGather::new(memory, table.pgd(), &cpus);
    let mapped = Mapped { pfn: block, bits: RW | PteBits::ACCESSED };
    let set = |at: VirtAddr, mapped| table.set_huge(at, mapped, GfpFlags::HIGHUSER);
    assert_eq!(set(VirtAddr::from(4096), mapped), Err(TableError::Misaligned));
    table.ensure(at, GfpFlags::HIGHUSER).unwrap();
    let with_leaf_table = table.tables();
    assert_eq!(set(at, mapped), Err(TableError::Occupied), "others may be about to use the table");
    table.collapse(at, mapped, GfpFlags::HIGHUSER, &mut gather).unwrap();
    assert_eq!(table.tables(), with_leaf_table, "the empty leaf table went, and one is kept for the split");
    assert_eq!(set(at, mapped), Err(TableError::Occupied));
    gather.finish();
    assert_eq!(table.get(&memory.pin(), VirtAddr::from(at.get() + 0x5000)), Pte::Present(mapped));
    if memory.platform().direct_map(block).is_none() {
        no_slot_is_left_for_a_split(memory, table, at, block);
    }
    let spare = PreparedTable::new(memory, GfpFlags::HIGHUSER).unwrap();
    match table.lock(&memory.pin(), at) {
        Leaf::Huge(huge) => {
            huge.update(|old| Mapped { bits: old.bits | PteBits::DIRTY, ..old });
            assert!(huge.split(spare));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(table.tables(), with_leaf_table);
    with_leaf(table, at.get(), |leaf| {
        assert_eq!(leaf.used(), 512);
        for (index, (_, pte)) in leaf.iter(range(at.get(), HUGE_SIZE)).enumerate() {
            let pfn = block.checked_add(index as u64).unwrap();
            assert_eq!(pte, Pte::mapping(pfn, mapped.bits | PteBits::DIRTY));
        }
    });
    destroy(table);
    memory.free_pages(block, order).unwrap();
}

#[test]
fn a_huge_entry_becomes_a_table_that_says_the_same() {
    on_machines(huge_entries_split::<X86_64>);
    on_machines(huge_entries_split::<Pae>);
    on_machines(huge_entries_split::<Sv39>);
}

#[test]
fn tables_are_marked_as_such_and_unmarked_when_they_are_freed() {
    on_machines(|memory| {
        let table = PageTable::<_, X86_64>::create(memory, None).unwrap();
        let page = memory.phys().page(table.pgd()).unwrap();
        assert!(page.flags().contains(PageFlags::TABLE));
        assert!(memory.free_pages(table.pgd(), Default::default()).is_err(), "it is in use");
        destroy(table);
        assert!(!page.flags().contains(PageFlags::TABLE));
        let pin = memory.pin();
        let gone = table.lock(&pin, VirtAddr::from(0));
        assert!(matches!(gone, Leaf::Absent { .. }), "a copy of the handle finds nothing");
    });
}

fn a_table_that_is_no_root_leads_nowhere<F: EntryFormat>(memory: &Mem<'_>) {
    let table = PageTable::<_, F>::create(memory, None).unwrap();
    let addr = VirtAddr::from(0x1000);
    table.ensure(addr, GfpFlags::KERNEL).unwrap();
    // Its entries, taken for ways to tables, would lead into data.
    let data = memory.alloc_pages(GfpFlags::KERNEL, Default::default()).unwrap();
    with_leaf(table, 0x1000, |leaf| {
        (0..4).for_each(|page| leaf.set(VirtAddr::from(page << 12), Pte::mapping(data, RW)));
    });
    let mut below = vec![];
    table.visit_tables(|pfn| below.push(pfn));
    assert_eq!(below[0], table.pgd());
    for &pfn in &below[1..] {
        let other = PageTable::<_, F>::at(memory, pfn);
        assert_eq!(other.get(&memory.pin(), addr), Pte::None);
        assert!(matches!(other.lock(&memory.pin(), addr), Leaf::Absent { .. }));
        assert_eq!(other.ensure(addr, GfpFlags::KERNEL), Err(TableError::NotATable));
        assert_eq!(other.tables(), 0);
    }
    with_leaf(table, 0x1000, |leaf| (0..4).for_each(|page| leaf.set(VirtAddr::from(page << 12), Pte::None)));
    memory.free_pages(data, Default::default()).unwrap();
    destroy(table);
}

#[test]
fn only_a_root_is_walked_from() {
    on_machines(|memory| {
        a_table_that_is_no_root_leads_nowhere::<X86_64>(memory);
        a_table_that_is_no_root_leads_nowhere::<Pae>(memory);
        a_table_that_is_no_root_leads_nowhere::<Sv39>(memory);
    });
}
