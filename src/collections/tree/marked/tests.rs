use super::*;
use crate::collections::{TreeFault, TreeOrder};
use core::cell::Cell;
use std::collections::BTreeMap;
use std::vec::Vec;

/// Items whose keys are their numbers, on trees with marks.
struct ByNumber;

#[derive(Default)]
struct Item {
    links: TreeLink,
    number: u32,
}

crate::tree_link!(marked Item, ByNumber => links);

impl TreeOrder<Item> for ByNumber {
    type Key = u32;

    fn key(item: &Item) -> u32 {
        item.number
    }
}

/// A store that counts how often it is asked.
#[derive(Clone, Copy)]
struct Counted<'a> {
    items: &'a [Item],
    asked: &'a Cell<u32>,
}

impl crate::collections::Slots for Counted<'_> {
    type Item = Item;

    fn get(&self, slot: Slot) -> Option<&Item> {
        self.asked.set(self.asked.get() + 1);
        self.items.get(slot.index())
    }
}

#[expect(unsafe_code, reason = "a store that counts answers what the slice answers")]
// SAFETY: a shared slice borrows its elements for its whole life.
unsafe impl StableSlots for Counted<'_> {}

const MARKS: [XaMark; 2] = [XaMark::MARK_0, XaMark::MARK_1];

fn items(count: u32) -> Vec<Item> {
    (0..count).map(|number| Item { number, ..Item::default() }).collect()
}

fn slot(number: u32) -> Slot {
    Slot::new(number).unwrap()
}

fn tree<S: StableSlots<Item = Item>>(slots: S, count: u32) -> IndexTree<S, ByNumber> {
    let mut tree = IndexTree::new(slots);
    (0..count).for_each(|number| tree.insert(slot(number)).unwrap());
    tree
}

/// The same marks as the model, found from every place on.
fn compare(tree: &IndexTree<&[Item], ByNumber>, model: &BTreeMap<u32, [bool; 2]>) {
    tree.check().unwrap();
    for (at, mark) in MARKS.into_iter().enumerate() {
        let found = tree.first().and_then(|first| tree.marked_from(first, mark));
        let all = core::iter::successors(found, |&slot| tree.marked_after(slot, mark)).map(Slot::get);
        let expected: Vec<u32> =
            model.iter().filter(|(_, marks)| marks[at]).map(|(&number, _)| number).collect();
        assert_eq!(all.collect::<Vec<_>>(), expected);
        for &number in model.keys() {
            let next = expected.iter().copied().find(|&marked| marked >= number);
            assert_eq!(tree.marked_from(slot(number), mark).map(Slot::get), next);
            assert_eq!(tree.has_mark(slot(number), mark), next == Some(number));
        }
    }
}

#[test]
fn marks_stay_with_their_elements_and_are_found_whatever_is_put_in_and_taken_out() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |end: u32| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        ((u128::from(random) * u128::from(end)) >> 64) as u32
    };
    for count in [1, 2, 3, 7, 20, 60] {
        let items = items(count);
        let (mut tree, mut model) = (IndexTree::<_, ByNumber>::new(&items[..]), BTreeMap::new());
        for _ in 0..if cfg!(miri) { 60 } else { 1500 } {
            let (number, at) = (below(count), below(2) as usize);
            match below(6) {
                0 | 1 => {
                    if tree.insert(slot(number)).is_ok() {
                        model.insert(number, [false; 2]);
                    }
                }
                2 => {
                    assert_eq!(tree.remove(slot(number)).is_ok(), model.remove(&number).is_some());
                }
                3 | 4 => {
                    tree.set_mark(slot(number), MARKS[at]);
                    model.entry(number).and_modify(|marks| marks[at] = true);
                }
                _ => {
                    tree.clear_mark(slot(number), MARKS[at]);
                    model.entry(number).and_modify(|marks| marks[at] = false);
                }
            }
            compare(&tree, &model);
        }
    }
}

#[test]
fn an_element_comes_to_another_tree_without_the_marks_it_had() {
    let items = items(3);
    let mut first = tree(&items[..], 3);
    (0..3).for_each(|number| first.set_mark(slot(number), XaMark::MARK_0));
    first.clear();
    let second = tree(&items[..], 3);
    assert_eq!(second.marked_from(slot(0), XaMark::MARK_0), None);
    second.check().unwrap();
}

#[test]
fn what_has_no_mark_is_not_looked_at() {
    const COUNT: u32 = if cfg!(miri) { 256 } else { 1 << 14 };
    let (items, asked) = (items(COUNT), Cell::new(0));
    let mut tree = tree(Counted { items: &items, asked: &asked }, COUNT);
    let marked = [COUNT / 5, COUNT / 2, COUNT - 2];
    asked.set(0);
    marked.iter().for_each(|&number| tree.set_mark(slot(number), XaMark::MARK_1));
    let found = tree.marked_from(slot(0), XaMark::MARK_1);
    let found = core::iter::successors(found, |&slot| tree.marked_after(slot, XaMark::MARK_1));
    assert_eq!(found.map(Slot::get).collect::<Vec<_>>(), marked);
    assert_eq!(tree.marked_from(slot(0), XaMark::MARK_0), None);
    marked.iter().for_each(|&number| tree.clear_mark(slot(number), XaMark::MARK_1));
    // Eleven ways through the tree, each of which asks a few times a level, and no more than 28 levels.
    let most = 11 * 4 * 28;
    assert!(asked.get() < most, "{} elements were asked for, of {COUNT}", asked.get());
    // A mark beside one that is there is no way through the tree.
    (0..COUNT).for_each(|number| tree.set_mark(slot(number), XaMark::MARK_0));
    asked.set(0);
    let run = core::iter::successors(Some(slot(0)), |&slot| tree.marked_after(slot, XaMark::MARK_0));
    assert_eq!(run.count(), COUNT as usize);
    assert!(asked.get() < 12 * COUNT, "{} for {COUNT}", asked.get());
}

#[test]
fn check_finds_wrong_marks() {
    let fault = |spoil: fn(&[Item])| {
        let items = items(7);
        let mut tree = tree(&items[..], 7);
        tree.set_mark(slot(0), XaMark::MARK_0);
        tree.check().unwrap();
        spoil(&items);
        let fault = tree.check().unwrap_err();
        core::mem::forget(tree);
        fault
    };
    assert_eq!(
        fault(|items| items[0].links.corrupt_marks(None, Some(XaMark::MARK_0))),
        TreeFault::Below(slot(0))
    );
    assert_eq!(fault(|items| items[1].links.corrupt_marks(None, None)), TreeFault::Below(slot(1)));
    assert_eq!(
        fault(|items| items[6].links.corrupt_marks(Some(XaMark::MARK_1), None)),
        TreeFault::Below(slot(6))
    );
    assert_eq!(
        fault(|items| items[3].links.corrupt_marks(None, Some(XaMark::MARK_1))),
        TreeFault::Below(slot(3))
    );
}
