use std::collections::BTreeMap;
use std::vec::Vec;

use super::*;
use crate::addr::{PAGE_SIZE_U64 as PAGE, PgOff};
use crate::flags::VmFlags;
use crate::mm::{Backing, GapRoom, MmSlot, MmStores, Overcommit, OvercommitMode, Sysctl, VmaNode, VmaSlot};

const AT: u64 = 0x10_0000;

fn addr(page: u64) -> VirtAddr {
    VirtAddr::from(AT + page * PAGE)
}

fn vma(from: u64, to: u64) -> Vma {
    Vma {
        start: addr(from),
        end: addr(to),
        flags: VmFlags::READ,
        pgoff: PgOff::ZERO,
        backing: Backing::Anonymous,
        anon: None,
    }
}

fn with_set(vmas: usize, gaps: usize, test: impl FnOnce(&mut BareSet<'_>)) {
    let mms = [MmSlot::new()];
    let vma_nodes: Vec<_> = (0..vmas).map(|_| VmaNode::new()).collect();
    let slots: Vec<_> = (0..vmas).map(|_| VmaSlot::new()).collect();
    let gaps: Vec<_> = (0..gaps).map(|_| GapRoom::new()).collect();
    let stores = MmStores { mms: &mms, vma_nodes: &vma_nodes, vmas: &slots, anon_vmas: &[], gaps: &gaps };
    let overcommit = Overcommit::new(OvercommitMode::Always, 0, 0);
    let context = MmContext::new(stores, Sysctl::default(), overcommit);
    let mut set = BareSet::new(&context).unwrap();
    test(&mut set);
    set.check().unwrap();
    drop(set);
    assert_eq!((context.pool().used(), context.gap_nodes().used(), context.mms().used()), (0, 0, 0));
}

fn insert(set: &mut BareSet<'_>, from: u64, to: u64) -> Result<Slot, MmError> {
    let vacant = set.reserve()?;
    set.insert(vacant, &vma(from, to))
}

/// Random changes of 100 pages against a sorted map, with room looked for from both ends.
fn random_changes(gaps: usize) {
    const PAGES: u64 = 300;
    let mut seed = 1_u64;
    let mut below = |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    with_set(256, gaps, |set| {
        let mut model = BTreeMap::<u64, u64>::new();
        let window = VirtRange::new(addr(0), addr(PAGES)).unwrap();
        for step in 0..4_000 {
            let (from, len) = (below(PAGES), 1 + below(3));
            let (to, is_filling) = ((from + len).min(PAGES), step % 1_000 < 500);
            let is_free = model.range(..to).next_back().is_none_or(|(_, &end)| end <= from);
            match below(4) {
                0 | 1 if is_filling => {
                    let inserted = insert(set, from, to);
                    assert_eq!(inserted.err(), if is_free { None } else { Some(MmError::Exists) });
                    if is_free {
                        model.insert(from, to);
                    }
                }
                0 | 1 => {
                    let there = model.range(..=from).next_back().map(|(&start, &end)| (start, end));
                    let there = there.filter(|&(_, end)| from < end);
                    let removed = set.remove(addr(from));
                    assert_eq!(
                        removed.map(|vma| (vma.start, vma.end)),
                        there.map(|(a, b)| (addr(a), addr(b)))
                    );
                    if let Some((start, _)) = there {
                        model.remove(&start);
                    }
                }
                2 => {
                    let fits = |page: &u64| {
                        page + len <= PAGES
                            && model.range(..page + len).next_back().is_none_or(|(_, &end)| end <= *page)
                    };
                    let room = [set.highest_room(len * PAGE, window), set.lowest_room(len * PAGE, window)];
                    let pages = [(0..PAGES).rev().find(fits), (0..PAGES).find(fits)];
                    assert_eq!(room, pages.map(|page| page.map(addr)));
                }
                _ => {
                    let found = set.vmas().find(addr(from)).map(|slot| set.vmas().get(slot).start);
                    let first = model.iter().find(|&(_, &end)| end > from).map(|(&start, _)| addr(start));
                    assert_eq!(found, first);
                }
            }
            set.check().unwrap();
            if below(8) == 0 {
                set.end_section();
            }
        }
    });
}

#[test]
fn random_changes_and_searches_answer_as_a_sorted_map_does_with_a_gap_index() {
    random_changes(64);
}

#[test]
fn random_changes_and_searches_answer_as_a_sorted_map_does_without_a_gap_index() {
    random_changes(0);
}

#[test]
fn what_is_refused_leaves_the_set_as_it_was_and_room_that_was_taken_goes_back() {
    with_set(2, 0, |set| {
        insert(set, 1, 3).unwrap();
        let task_size = Sysctl::default().task_size;
        let refused = |set: &mut BareSet<'_>, from: VirtAddr, to: VirtAddr| {
            let vacant = set.reserve().unwrap();
            set.insert(vacant, &Vma { start: from, end: to, ..vma(0, 1) }).unwrap_err()
        };
        assert_eq!(refused(set, addr(4), addr(4)), MmError::OutOfRange);
        assert_eq!(refused(set, addr(5), addr(4)), MmError::OutOfRange);
        assert_eq!(refused(set, addr(4), VirtAddr::from(task_size + 1)), MmError::OutOfRange);
        assert_eq!(refused(set, addr(2), addr(4)), MmError::Exists);
        assert_eq!(refused(set, addr(0), addr(4)), MmError::Exists);
        assert_eq!(set.remove(addr(3)), None);
        let vacant = set.reserve().unwrap();
        assert_eq!(set.reserve().unwrap_err(), MmError::OutOfSlots);
        set.insert(vacant, &vma(3, 4)).unwrap();
        assert_eq!(set.vmas().len(), 2);
    });
}

#[test]
fn a_look_up_without_the_lock_finds_what_a_section_that_is_over_put_in() {
    let (mms, vma_nodes, vmas): ([MmSlot; 1], [VmaNode; 4], [VmaSlot; 4]) = Default::default();
    let stores = MmStores { mms: &mms, vma_nodes: &vma_nodes, vmas: &vmas, anon_vmas: &[], gaps: &[] };
    let context = MmContext::new(stores, Sysctl::default(), Overcommit::new(OvercommitMode::Always, 0, 0));
    let mut set = BareSet::new(&context).unwrap();
    let slot = insert(&mut set, 1, 3).unwrap();
    assert!(context.lock_vma(set.id(), addr(2)).is_none());
    set.end_section();
    assert_eq!(context.lock_vma(set.id(), addr(2)).map(|locked| locked.slot()), Some(slot));
    assert_eq!(set.remove(addr(2)).map(|vma| vma.range()), Some(vma(1, 3).range()));
    assert!(context.lock_vma(set.id(), addr(2)).is_none());
}

#[test]
fn room_that_another_context_gave_is_refused() {
    let mms = [[MmSlot::new()], [MmSlot::new()]];
    let vma_nodes = [[VmaNode::new()], [VmaNode::new()]];
    let slots = [[VmaSlot::new()], [VmaSlot::new()]];
    let contexts = [0, 1].map(|at: usize| {
        let (mms, vma_nodes, vmas) = (&mms[at], &vma_nodes[at], &slots[at]);
        let stores = MmStores { mms, vma_nodes, vmas, anon_vmas: &[], gaps: &[] };
        let overcommit = Overcommit::new(OvercommitMode::Always, 0, 0);
        MmContext::new(stores, Sysctl::default(), overcommit)
    });
    let (mut first, mut second) = (BareSet::new(&contexts[0]).unwrap(), BareSet::new(&contexts[1]).unwrap());
    let vacant = first.reserve().unwrap();
    assert_eq!(second.insert(vacant, &vma(0, 1)), Err(MmError::OutOfSlots));
    assert_eq!(contexts.each_ref().map(|context| context.pool().used()), [0, 0]);
    insert(&mut second, 0, 1).unwrap();
    second.check().unwrap();
}

#[test]
fn a_set_keeps_the_room_of_one_vma_while_there_is_more_than_all_sets_can_keep() {
    let (mms, vma_nodes, vmas): ([MmSlot; 2], [VmaNode; 4], [VmaSlot; 4]) = Default::default();
    let stores = MmStores { mms: &mms, vma_nodes: &vma_nodes, vmas: &vmas, anon_vmas: &[], gaps: &[] };
    let context = MmContext::new(stores, Sysctl::default(), Overcommit::new(OvercommitMode::Always, 0, 0));
    let (mut first, mut second) = (BareSet::new(&context).unwrap(), BareSet::new(&context).unwrap());
    let slots = [(0, 1), (2, 3)].map(|(from, to)| insert(&mut first, from, to).unwrap());
    // Two were never in use: it keeps one, and no more than one.
    (first.remove(addr(0)), first.remove(addr(2))).1.unwrap();
    assert_eq!(context.pool().used(), 1);
    assert_eq!(insert(&mut first, 4, 5), Ok(slots[1]));
    assert_eq!(context.pool().used(), 1);
    assert!(context.pool().get(slots[1]).unwrap().generation() % 2 == 1);
    // One was never in use: it keeps none, and the other gets all.
    for (from, to) in [(0, 1), (2, 3)] {
        insert(&mut second, from, to).unwrap();
    }
    first.remove(addr(4)).unwrap();
    assert_eq!(context.pool().used(), 2);
    for (from, to) in [(4, 5), (6, 7)] {
        insert(&mut second, from, to).unwrap();
    }
    first.check().unwrap();
    second.check().unwrap();
    second.remove(addr(0)).unwrap();
    drop((first, second));
    assert_eq!(context.pool().used(), 0);
}
