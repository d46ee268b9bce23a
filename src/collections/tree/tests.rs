use super::*;
use core::cmp::Ordering;
use core::sync::atomic::AtomicU32;
use static_assertions::{assert_impl_all, const_assert, const_assert_eq};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::vec::Vec;

use crate::collections::SeqCount;

/// One kind of tree for all tests here: ranges `start..end`, sorted by `start`.
struct ByStart;

/// The same order, for trees whose elements keep on which one they are.
struct Marked;

struct Range {
    rb: TreeLink,
    marked: TreeLink,
    tree: TreeMark,
    start: AtomicU32,
    end: AtomicU32,
}

tree_link!(Range, ByStart => rb);
tree_link!(Range, Marked => marked, tree);

impl TreeOrder<Range> for ByStart {
    type Key = u32;

    fn key(range: &Range) -> u32 {
        range.start.load(Relaxed)
    }
}

impl TreeOrder<Range> for Marked {
    type Key = u32;

    fn key(range: &Range) -> u32 {
        ByStart::key(range)
    }
}

type Tree<'a> = IndexTree<&'a [Range], ByStart>;

const_assert_eq!(size_of::<TreeLink>(), 12);
const_assert!(size_of::<IndexTree<&&[Range], ByStart>>() <= 40);
assert_impl_all!(Tree<'static>: Send, Sync);

fn range(start: u32, len: u32) -> Range {
    Range {
        rb: TreeLink::new(),
        marked: TreeLink::new(),
        tree: TreeMark::new(),
        start: AtomicU32::new(start),
        end: AtomicU32::new(start + len),
    }
}

/// No slot, where a number is asked for.
const NONE: u32 = u32::MAX;

fn slot(n: u32) -> Slot {
    Slot::new(n).unwrap()
}

fn index(found: Option<Slot>) -> Option<u32> {
    found.map(Slot::get)
}

/// A store in which the key of slot `n` is `keys[n]`, and each range is one long.
fn store(keys: impl IntoIterator<Item = u32>) -> Vec<Range> {
    keys.into_iter().map(|key| range(key, 1)).collect()
}

fn full(store: &[Range]) -> Tree<'_> {
    let mut tree = Tree::new(store);
    (0..store.len() as u32).for_each(|n| tree.insert(slot(n)).unwrap());
    tree
}

/// A small generator, so that each run is the same.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(n)) >> 64) as u32
    }
}

/// Does one random operation on tree and model; the key of slot `n` is a fixed scramble of `n`.
fn step(rng: &mut Rng, tree: &mut Tree<'_>, model: &mut BTreeMap<u32, u32>, slots: &[Range]) {
    let n = rng.below(slots.len() as u64);
    let key = ByStart::key(&slots[n as usize]);
    let linked = model.contains_key(&key);
    match rng.below(8) {
        0 | 1 => {
            let expected = if linked { Err(LinkError::AlreadyLinked) } else { Ok(()) };
            assert_eq!(tree.insert(slot(n)), expected);
            model.insert(key, n);
        }
        2 => {
            let expected = if linked { Ok(()) } else { Err(LinkError::NotMember) };
            assert_eq!(tree.remove(slot(n)), expected);
            model.remove(&key);
        }
        3 if !linked => {
            if let Some((_, &before)) = model.range(..key).next_back() {
                tree.insert_between(Some(slot(before)), slot(n), tree.next(slot(before))).unwrap();
                model.insert(key, n);
            }
        }
        4 if !linked => {
            if let Some((_, &after)) = model.range(key..).next() {
                tree.insert_between(tree.prev(slot(after)), slot(n), Some(slot(after))).unwrap();
                model.insert(key, n);
            }
        }
        5 => {
            let place = tree.entry(|range| ByStart::key(range).cmp(&key));
            assert_eq!(place.found().found(), linked.then(|| slot(n)));
            if linked {
                assert_eq!(place.remove(), Ok(slot(n)));
                model.remove(&key);
            } else {
                place.insert(slot(n)).unwrap();
                model.insert(key, n);
            }
        }
        _ => {
            let probe = rng.below(1 << 16);
            let at = |bound| model.range((bound, Bound::Unbounded)).next().map(|(_, &n)| n);
            assert_eq!(index(tree.lower_bound(&probe)), at(Bound::Included(probe)));
            assert_eq!(index(tree.upper_bound(&probe)), at(Bound::Excluded(probe)));
            assert_eq!(index(tree.find(&probe).found()), model.get(&probe).copied());
            let before = model.range(..key).next_back().map(|(_, &n)| n);
            assert_eq!(index(tree.prev(slot(n))), before.filter(|_| linked));
            assert_eq!(index(tree.next(slot(n))), at(Bound::Excluded(key)).filter(|_| linked));
            assert_eq!(tree.contains(slot(n)), linked);
        }
    }
}

fn agree(tree: &Tree<'_>, model: &BTreeMap<u32, u32>) {
    tree.check().unwrap();
    assert_eq!(tree.len(), model.len());
    assert_eq!(index(tree.first()), model.values().next().copied());
    assert_eq!(index(tree.last()), model.values().next_back().copied());
    assert!(tree.iter().map(Slot::get).eq(model.values().copied()));
    assert!(tree.iter().rev().map(Slot::get).eq(model.values().rev().copied()));
}

#[test]
fn random_operations_agree_with_btree_map() {
    for (slots, steps) in [(3, 2_000), (12, 5_000), (150, 10_000)] {
        let store = store((0..slots).map(|n: u32| n.wrapping_mul(40_503) & 0xffff));
        let (mut tree, mut model, mut rng) = (Tree::new(&store), BTreeMap::new(), Rng(0x2545_f491_4f6c_dd1d));
        for _ in 0..steps {
            step(&mut rng, &mut tree, &mut model, &store);
            agree(&tree, &model);
        }
    }
}

#[test]
fn a_large_tree_stays_shallow_and_empties() {
    let store = store(0..50_000);
    let mut tree = full(&store);
    tree.check().unwrap();
    let mut rng = Rng(1);
    let mut looks = 0;
    tree.search(|range| {
        looks += 1;
        ByStart::key(range).cmp(&49_999)
    });
    assert!(looks <= 32, "{looks}");
    while let Some(root) = tree.root() {
        let gone = if rng.below(2) == 0 { root } else { slot(rng.below(50_000)) };
        let _ = tree.remove(gone);
        if rng.below(500) == 0 {
            tree.check().unwrap();
        }
        if tree.len() < 1000 {
            tree.check().unwrap();
            if let Some(last) = tree.last() {
                tree.remove(last).unwrap();
            }
        }
    }
    assert_eq!((tree.len(), tree.first(), tree.last()), (0, None, None));
    assert!(store.iter().all(|range| !range.rb.is_linked()));
}

#[test]
fn an_overlap_equal_comparison_stops_early_and_finds_the_next() {
    let store: Vec<Range> = (0..100).map(|n| range(n * 10, 4)).collect();
    let tree = full(&store);
    let find_vma = |addr: u32| {
        tree.search(|range| match (range.start.load(Relaxed), range.end.load(Relaxed)) {
            (start, _) if addr < start => Ordering::Greater,
            (_, end) if addr < end => Ordering::Equal,
            _ => Ordering::Less,
        })
    };
    for addr in 0..1000 {
        let (n, inside) = (addr / 10, addr % 10 < 4);
        let next = Slot::new(n + 1).filter(|next| next.get() < 100);
        let expected = if inside {
            Search::Found(slot(n))
        } else {
            Search::Missing { before: Some(slot(n)), after: next }
        };
        assert_eq!(find_vma(addr), expected);
        assert_eq!(find_vma(addr).found_or_after(), if inside { Some(slot(n)) } else { next });
    }
}

#[test]
fn a_refused_slot_leaves_the_tree_as_it_was() {
    let store = store([10, 20, 30, 20, 25, 5]);
    let mut tree = Tree::new(&store);
    (0..3).for_each(|n| tree.insert(slot(n)).unwrap());
    assert_eq!(tree.insert(slot(1)), Err(LinkError::AlreadyLinked));
    assert_eq!(tree.insert(slot(3)), Err(LinkError::KeyExists));
    assert_eq!(tree.insert(slot(6)), Err(LinkError::OutOfRange));
    let mut between = |before, n, after| {
        let some = |n: u32| Slot::new(n).filter(|_| n != NONE);
        tree.insert_between(some(before), slot(n), some(after))
    };
    assert_eq!(between(4, 5, 0), Err(LinkError::NotMember));
    assert_eq!(between(NONE, 5, 4), Err(LinkError::NotMember));
    assert_eq!(between(0, 4, 1), Err(LinkError::OutOfOrder));
    assert_eq!(between(1, 3, 2), Err(LinkError::OutOfOrder));
    assert_eq!(between(0, 3, 1), Err(LinkError::OutOfOrder));
    assert_eq!(between(NONE, 4, NONE), Err(LinkError::OutOfOrder));
    assert_eq!(between(2, 3, NONE), Err(LinkError::OutOfOrder));
    assert_eq!(between(2, 2, NONE), Err(LinkError::AlreadyLinked));
    assert_eq!(between(0, 1, 1), Err(LinkError::AlreadyLinked));
    assert_eq!(between(NONE, 6, 0), Err(LinkError::OutOfRange));
    assert_eq!(tree.entry(|_| Ordering::Less).insert(slot(4)), Err(LinkError::OutOfOrder));
    assert_eq!(tree.entry(|_| Ordering::Greater).insert(slot(1)), Err(LinkError::AlreadyLinked));
    assert_eq!(tree.entry(|_| Ordering::Greater).remove(), Err(LinkError::NotMember));
    assert_eq!(tree.entry(|_| Ordering::Equal).insert(slot(4)), Err(LinkError::KeyExists));
    assert_eq!(tree.remove(slot(4)), Err(LinkError::NotMember));
    assert_eq!(tree.remove(slot(6)), Err(LinkError::OutOfRange));
    assert_eq!(tree.iter().map(Slot::get).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(!store[3].rb.is_linked() && !store[4].rb.is_linked());
    tree.insert_between(Some(slot(1)), slot(4), Some(slot(2))).unwrap();
    tree.insert_between(None, slot(5), Some(slot(0))).unwrap();
    tree.check().unwrap();
    assert_eq!(tree.iter().map(Slot::get).collect::<Vec<_>>(), [5, 0, 1, 4, 2]);
}

#[test]
fn a_tree_is_built_in_order_from_its_end() {
    let store = store(0..1000);
    let mut tree = Tree::new(&store);
    for n in 0_u32..1000 {
        tree.insert_between(n.checked_sub(1).map(slot), slot(n), None).unwrap();
        tree.check().unwrap();
    }
    assert!(tree.iter().map(Slot::get).eq(0..1000));
}

/// Fails if the place behind an element is not bounded by it, or not by the element behind the first place.
#[test]
fn a_place_goes_on_behind_what_is_put_there() {
    let store = store(0..200);
    for (first, end) in [(0, 200), (0, 60), (90, 150), (120, 200)] {
        let mut tree = Tree::new(&store);
        (0..first).chain(end..200).for_each(|n| tree.insert(slot(n)).unwrap());
        let mut place = tree.entry(|range| ByStart::key(range).cmp(&ByStart::key(&store[first as usize])));
        for n in first..end - 1 {
            place = place.insert_and_go_on(slot(n)).unwrap();
            assert_eq!(place.found().found_or_after(), (end < 200).then(|| slot(end)));
        }
        assert_eq!(place.insert_and_go_on(slot(end - 2)).map(drop), Err(LinkError::AlreadyLinked));
        tree.check().unwrap();
        let mut late = tree.entry(|range| ByStart::key(range).cmp(&ByStart::key(&store[end as usize - 1])));
        late = late.insert_and_go_on(slot(end - 1)).unwrap();
        assert_eq!(
            late.found(),
            Search::Missing { before: Some(slot(end - 1)), after: (end < 200).then(|| slot(end)) }
        );
        assert!(tree.iter().map(Slot::get).eq(0..200));
        tree.check().unwrap();
        tree.clear();
        let mut backwards = tree.entry(|range| ByStart::key(range).cmp(&0));
        backwards = backwards.insert_and_go_on(slot(5)).unwrap();
        assert_eq!(backwards.insert_and_go_on(slot(4)).map(drop), Err(LinkError::OutOfOrder));
        tree.clear();
    }
}

/// Runs a test for trees whose elements keep on which one they are, and for others.
macro_rules! with_and_without_marks {
    ($($name:ident => $test:ident;)*) => {
        $(
            #[test]
            fn $name() {
                $test::<ByStart>();
                $test::<Marked>();
            }
        )*
    };
}

with_and_without_marks! {
    a_slot_of_another_tree_is_refused_even_over_a_shifted_store => foreign_slots;
    what_has_left_a_tree_is_no_member_of_it => former_slots;
    one_of_several_threads_claims_a_slot => claimed_slots;
}

fn foreign_slots<K: TreeOrder<Range, Key = u32>>()
where
    Range: HasTreeLink<K>,
{
    let store = store(0..64);
    let mut evens = IndexTree::<_, K>::new(&store[..]);
    (0..64).step_by(2).for_each(|n| evens.insert(slot(n)).unwrap());
    // The odd ones in a tree over the same elements, whose numbers are one less there.
    let mut odds = IndexTree::<_, K>::new(&store[1..]);
    assert!(!odds.contains(slot(1)));
    (0..63).step_by(2).for_each(|n| odds.insert(slot(n)).unwrap());
    for n in 0..63 {
        assert_eq!(evens.contains(slot(n)), n % 2 == 0, "{n}");
        assert_eq!(odds.contains(slot(n)), n % 2 == 0, "{n}");
        if n % 2 == 1 {
            assert_eq!(evens.remove(slot(n)), Err(LinkError::NotMember));
            assert_eq!(odds.remove(slot(n)), Err(LinkError::NotMember));
            assert_eq!(odds.insert(slot(n)), Err(LinkError::AlreadyLinked));
            assert_eq!(evens.insert_between(Some(slot(n)), slot(63), None), Err(LinkError::NotMember));
        }
    }
    evens.check().unwrap();
    odds.check().unwrap();
}

fn former_slots<K: TreeOrder<Range, Key = u32>>()
where
    Range: HasTreeLink<K>,
{
    let store = store([0, 10, 20, 30]);
    let mut one = IndexTree::<_, K>::new(&store[..]);
    let mut other = IndexTree::<_, K>::new(&store[..]);
    for n in 0..3 {
        one.insert(slot(n)).unwrap();
    }
    other.insert(slot(3)).unwrap();
    // One is taken out and put on another tree.
    one.remove(slot(1)).unwrap();
    assert_eq!(one.remove(slot(1)), Err(LinkError::NotMember));
    other.insert(slot(1)).unwrap();
    assert_eq!(one.remove(slot(1)), Err(LinkError::NotMember));
    assert_eq!(one.insert_between(Some(slot(1)), slot(1), None), Err(LinkError::NotMember));
    // All of them go, and the tree is filled again.
    let moved = one.take();
    assert!(!one.contains(slot(2)) && moved.contains(slot(2)));
    other.clear();
    assert!(!other.contains(slot(1)) && !other.contains(slot(3)));
    one.insert(slot(3)).unwrap();
    assert!(!other.contains(slot(3)) && !moved.contains(slot(3)) && one.contains(slot(3)));
    one.remove(slot(3)).unwrap();
    one.insert(slot(1)).unwrap();
    assert!(one.contains(slot(1)) && !one.contains(slot(3)));
    drop(moved);
    assert!(!one.contains(slot(0)) && !one.contains(slot(2)));
    [&one, &other].into_iter().for_each(|tree| tree.check().unwrap());
}

fn claimed_slots<K: TreeOrder<Range, Key = u32>>()
where
    Range: HasTreeLink<K>,
{
    let store = store(0..2_000);
    let trees: Vec<IndexTree<&[Range], K>> = std::thread::scope(|scope| {
        let claim = || {
            let mut tree = IndexTree::new(&store[..]);
            (0..2_000).for_each(|n| assert_ne!(tree.insert(slot(n)), Err(LinkError::KeyExists)));
            tree
        };
        [scope.spawn(claim), scope.spawn(claim)].map(|thread| thread.join().unwrap()).into()
    });
    trees.iter().for_each(|tree| tree.check().unwrap());
    assert_eq!(trees.iter().map(IndexTree::len).sum::<usize>(), 2_000);
    for slot in (0..2_000).map(slot) {
        assert_eq!(trees.iter().filter(|tree| tree.contains(slot)).count(), 1);
    }
}

#[test]
fn a_tree_moves_whole_and_frees_its_slots_when_dropped() {
    let store = store(0..20);
    let mut tree = full(&store);
    let taken = tree.take();
    tree.check().unwrap();
    taken.check().unwrap();
    assert_eq!((tree.len(), taken.len(), tree.insert(slot(3))), (0, 20, Err(LinkError::AlreadyLinked)));
    drop(taken);
    tree.insert(slot(3)).unwrap();
    tree.clear();
    tree.insert(slot(3)).unwrap();
    tree.check().unwrap();
}

#[test]
fn readers_search_beside_a_writer() {
    let store = store((0..64).map(|n| n * 2));
    let seq = SeqCount::new(core::sync::atomic::AtomicU64::new(0));
    let (root, stop) = (AtomicU32::new(0), core::sync::atomic::AtomicBool::new(false));
    let find = |key: u32| {
        seq.read(1000, || {
            let from = Slot::from_code(root.load(Relaxed));
            search_from::<_, ByStart, _>(&store[..], from, |range| ByStart::key(range).cmp(&key))
        })
    };
    std::thread::scope(|scope| {
        // Slots 0 and 63 stay on the tree; all else comes and goes.
        let reader = scope.spawn(|| {
            let mut answers = 0;
            while !stop.load(Relaxed) || answers == 0 {
                if root.load(Relaxed) != 0 {
                    for key in [0, 126] {
                        if let Some(found) = find(key) {
                            assert_eq!(found.found(), Slot::new(key / 2));
                            answers += 1;
                        }
                    }
                }
            }
        });
        let (mut tree, mut rng) = (Tree::new(&store[..]), Rng(7));
        for n in [0, 63] {
            let _write = seq.write();
            tree.insert(slot(n)).unwrap();
        }
        for _ in 0..100_000 {
            let n = slot(1 + rng.below(62));
            let _write = seq.write();
            if tree.remove(n).is_err() {
                tree.insert(n).unwrap();
            }
            root.store(Slot::code_of(tree.root()), Relaxed);
        }
        stop.store(true, Relaxed);
        reader.join().unwrap();
        tree.check().unwrap();
    });
}

fn redden(range: &Range) {
    range.rb.parent_color.fetch_and(!BLACK, Relaxed);
}

#[test]
fn check_names_each_corruption() {
    // Keys 0..7 in order give: 1 over 0 and 3, 3 red over 2 and 5, 5 over 4 and 6 (4 and 6 red).
    let fault = |spoil: fn(&[Range], &mut Tree<'_>)| {
        let store = store(0..7);
        let mut tree = full(&store);
        assert_eq!(tree.root(), Some(slot(1)));
        tree.check().unwrap();
        spoil(&store, &mut tree);
        let fault = tree.check().unwrap_err();
        core::mem::forget(tree);
        fault
    };
    assert_eq!(
        fault(|store, _| store[5].rb.corrupt(Slot::new(4), Slot::new(99))),
        TreeFault::OutOfRange(slot(99))
    );
    assert_eq!(
        fault(|store, _| store[0].rb.parent_color.store(UNLINKED, Relaxed)),
        TreeFault::Unlinked(slot(0))
    );
    assert_eq!(
        fault(|store, _| store[2].rb.parent_color.store(BLACK | 1, Relaxed)),
        TreeFault::BackLink(slot(2))
    );
    assert_eq!(fault(|store, _| store[4].rb.corrupt(Slot::new(3), None)), TreeFault::BackLink(slot(3)));
    assert_eq!(fault(|store, _| store[2].start.store(4, Relaxed)), TreeFault::Order(slot(3)));
    assert_eq!(fault(|store, _| redden(&store[1])), TreeFault::RedRoot(slot(1)));
    assert_eq!(fault(|store, _| redden(&store[5])), TreeFault::RedRed(slot(5)));
    assert_eq!(fault(|store, _| redden(&store[0])), TreeFault::BlackHeight(slot(1)));
    assert_eq!(fault(|store, _| store[3].rb.corrupt(Slot::new(2), None)), TreeFault::BlackHeight(slot(3)));
    assert_eq!(fault(|_, tree| tree.len = 6), TreeFault::Count { counted: 7, kept: 6 });
    assert_eq!(fault(|_, tree| tree.len = 8), TreeFault::Count { counted: 7, kept: 8 });
    assert_eq!(fault(|_, tree| tree.root = None), TreeFault::Count { counted: 0, kept: 7 });
    assert_eq!(fault(|_, tree| tree.root = Slot::new(3)), TreeFault::RedRoot(slot(3)));
}
