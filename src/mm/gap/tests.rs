use super::node::{Entry, Gap};
use super::*;
use crate::collections::{Slot, Slots};
use std::cell::RefCell;
use std::vec::Vec;

/// Nodes for one index.
struct Pool {
    nodes: Vec<GapNode>,
    free: RefCell<Vec<Slot>>,
}

impl Pool {
    fn new(count: usize) -> Self {
        let free = (0..count).rev().map(|index| Slot::from_index(index).unwrap()).collect();
        Self { nodes: (0..count).map(|_| GapNode::new()).collect(), free: RefCell::new(free) }
    }

    fn left(&self) -> usize {
        self.free.borrow().len()
    }
}

impl Slots for &Pool {
    type Item = GapNode;

    fn get(&self, slot: Slot) -> Option<&GapNode> {
        self.nodes.get(slot.index())
    }
}

impl GapNodes for &Pool {
    fn take(&self) -> Option<Slot> {
        self.free.borrow_mut().pop()
    }

    fn give(&self, node: Slot) {
        assert!(!self.free.borrow().contains(&node), "{node:?} given back twice");
        self.free.borrow_mut().push(node);
    }
}

type Index<'a> = GapIndex<&'a Pool>;

const NOTHING: [VirtRange; 0] = [];

fn range(start: u64, end: u64) -> VirtRange {
    VirtRange::new(VirtAddr::new(start).unwrap(), VirtAddr::new(end).unwrap()).unwrap()
}

/// A small generator, so that each run is the same.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(n)) >> 64) as u64
    }

    fn range(&mut self, space: u64, longest: u64) -> VirtRange {
        let start = self.below(space + 1);
        range(start, (start + self.below(longest + 1)).min(space))
    }
}

/// The model: one flag a unit of address.
struct Units(Vec<bool>);

impl Units {
    fn set(&mut self, range: VirtRange, used: bool) {
        self.0[range.start().get() as usize..range.end().get() as usize].fill(used);
    }

    /// The used ranges, ascending.
    fn vmas(&self) -> Vec<VirtRange> {
        let mut at = 0;
        let runs = self.0.chunk_by(|a, b| a == b).map(|run| {
            let start = at;
            at += run.len() as u64;
            (run[0], range(start, at))
        });
        runs.filter_map(|(used, range)| used.then_some(range)).collect()
    }

    /// The highest or lowest start of `bytes` free units inside the window, where the `guard` units below each used
    /// range that starts at a multiple of four count as used.
    fn fit(&self, bytes: u64, window: VirtRange, guard: u64, top: bool) -> Option<u64> {
        let end = window.end().get().min(self.0.len() as u64);
        let mut free = Vec::new();
        for addr in window.start().get()..end {
            let ceiling = (addr..self.0.len() as u64).find(|&at| self.0[at as usize]);
            let guarded = ceiling.is_some_and(|start| start % 4 == 0 && addr + guard >= start);
            free.push(!self.0[addr as usize] && !guarded);
        }
        let mut starts =
            free.windows(bytes as usize).enumerate().filter(|(_, room)| room.iter().all(|&free| free));
        let found = if top { starts.next_back() } else { starts.next() };
        found.map(|(at, _)| window.start().get() + at as u64)
    }
}

/// What stands between a candidate and its use in these tests: see [`Units::fit`].
fn unguarded(candidate: Candidate, guard: u64) -> Option<Candidate> {
    let end = candidate.gap().end();
    let guarded = end.get() % 4 == 0 && end.get() != SPACE;
    if guarded { candidate.below(VirtAddr::new(end.get().saturating_sub(guard))?) } else { Some(candidate) }
}

/// Asks the index for the highest or lowest fit, with no help from a list of VMAs.
fn ask(index: &mut Index<'_>, vmas: &[VirtRange], fit: Fit, guard: u64, top: bool) -> Option<u64> {
    let found = if top {
        index.highest_fit(fit, vmas.iter().rev().copied(), |found| unguarded(found, guard)?.highest())
    } else {
        index.lowest_fit(fit, vmas.iter().copied(), |found| unguarded(found, guard)?.lowest())
    };
    found.map(VirtAddr::get)
}

const SPACE: u64 = 400;

#[test]
fn random_edits_and_fits_agree_with_a_flag_for_each_unit() {
    let steps = if cfg!(debug_assertions) { 3_000 } else { 100_000 };
    let pool = Pool::new(400);
    let mut index = Index::new(&pool, range(0, SPACE));
    let (mut units, mut rng) = (Units(vec![false; SPACE as usize]), Rng(0x9e37_79b9_7f4a_7c15));
    let mut border = SPACE;
    index.build(units.vmas().into_iter()).unwrap();
    for step in 0..steps {
        // Long phases of small and of large ranges, so that the tree grows high and shrinks again.
        let longest = if step / 1000 % 3 == 2 { 60 } else { 2 };
        let edit = rng.range(SPACE, longest);
        let close = rng.below(2) == 0;
        units.set(edit, close);
        index.reserve(1).unwrap();
        if close {
            index.close(edit)
        } else {
            index.open(edit)
        }
        assert!(index.is_built());
        let vmas = units.vmas();
        index.check(vmas.iter().copied()).unwrap();
        let window = match rng.below(2) {
            0 => range(rng.below(border / 4 + 1), border),
            _ => rng.range(SPACE, SPACE),
        };
        let (bytes, guard) = (1 + rng.below(9), rng.below(4) * 2);
        let fit = Fit::new(bytes, window).unwrap();
        for top in [true, false] {
            let expected = units.fit(bytes, window, guard, top);
            assert_eq!(ask(&mut index, &vmas, fit, guard, top), expected, "step {step}: {fit:?} {top}");
            if step % 100 == 0 {
                index.clear();
                assert_eq!(
                    ask(&mut index, &vmas, fit, guard, top),
                    expected,
                    "step {step}: linear, {fit:?} {top}"
                );
                border = [SPACE, rng.below(SPACE + 1)][rng.below(2) as usize];
                index.set_border(VirtAddr::new(border).unwrap());
                index.build(vmas.iter().copied()).unwrap();
                index.check(vmas.iter().copied()).unwrap();
                assert_eq!(
                    ask(&mut index, &vmas, fit, guard, top),
                    expected,
                    "step {step}: rebuilt, {fit:?} {top}"
                );
            }
        }
        index.trim(u32::from(rng.below(2) == 0));
    }
    drop(index);
    assert_eq!(pool.left(), 400);
}

/// Thousands of VMAs of one unit or more, with gaps of 1 to 8 units, one in 500 of 100.
fn crowd(rng: &mut Rng, count: usize) -> (Vec<VirtRange>, u64) {
    let mut at = 0;
    let vmas = (0..count).map(|_| {
        let start = at + if rng.below(500) == 0 { 100 } else { 1 + rng.below(8) };
        at = start + 1 + rng.below(3);
        range(start, at)
    });
    (vmas.collect(), at + 50)
}

#[test]
fn a_million_edits_of_a_crowded_space_agree_with_the_list() {
    let (vma_count, steps) = if cfg!(debug_assertions) { (600, 20_000) } else { (3_000, 1_000_000) };
    let mut rng = Rng(0x2545_f491_4f6c_dd1d);
    let (mut vmas, end) = crowd(&mut rng, vma_count);
    let pool = Pool::new(2_000);
    let mut index = Index::new(&pool, range(0, end));
    index.build(vmas.iter().copied()).unwrap();
    for step in 0..steps {
        index.reserve(2).unwrap();
        // Unmap one VMA, map one of a few units where it fits: the highest place, the lowest, or just below a limit.
        let gone = vmas.remove(rng.below(vmas.len() as u64) as usize);
        index.open(gone);
        let limit = if rng.below(2) == 0 { end } else { 1 + rng.below(end) };
        let fit = Fit::new(1 + rng.below(5), range(rng.below(limit), limit)).unwrap();
        let top = rng.below(2) == 0;
        let found = ask(&mut index, &[], fit, 0, top);
        if step % 16 == 0 {
            let gaps = fit::gaps_between(range(0, end), vmas.iter().copied()).map(|free| free.range);
            let mut parts = gaps
                .filter_map(|gap| intersection(gap, fit.window()))
                .filter(|part| part.len() >= fit.bytes());
            let expected = match top {
                true => parts.last().map(|part| part.end().get() - fit.bytes()),
                false => parts.next().map(|part| part.start().get()),
            };
            assert_eq!(found, expected, "step {step}: {fit:?} {top}");
        }
        let new = found.map_or(gone, |start| range(start, start + fit.bytes()));
        let at = vmas.partition_point(|vma| vma.start().get() < new.start().get());
        vmas.insert(at, new);
        index.close(new);
        if step % 1000 == 0 {
            index.check(vmas.iter().copied()).unwrap();
        }
    }
    index.check(vmas.iter().copied()).unwrap();
    assert!(index.is_built());
}

#[test]
fn edits_over_several_gaps_and_outside_the_space_are_clipped() {
    let pool = Pool::new(20);
    let mut index = Index::new(&pool, range(100, 1000));
    index.build([range(0, 150), range(200, 300), range(400, 500), range(950, 2000)].into_iter()).unwrap();
    index.check([range(0, 150), range(200, 300), range(400, 500), range(950, 2000)].into_iter()).unwrap();
    index.close(range(160, 450));
    index.check([range(0, 150), range(160, 500), range(950, 1000)].into_iter()).unwrap();
    index.open(range(0, 170));
    index.open(range(990, 5000));
    index.check([range(170, 500), range(950, 990)].into_iter()).unwrap();
    index.open(range(300, 300));
    index.close(range(600, 600));
    index.open(range(0, 100));
    index.close(range(1000, 1200));
    index.check([range(170, 500), range(950, 990)].into_iter()).unwrap();
    index.close(range(0, 5000));
    index.check([range(0, 5000)].into_iter()).unwrap();
    let fit = Fit::new(1, range(0, u64::MAX)).unwrap();
    assert_eq!(ask(&mut index, &[], fit, 0, true), None);
    index.open(range(0, u64::MAX));
    index.check(NOTHING.into_iter()).unwrap();
    assert_eq!(ask(&mut index, &[], fit, 0, true), Some(999));
}

#[test]
fn a_split_that_brings_the_largest_gap_is_known_up_to_the_root() {
    let pool = Pool::new(60);
    let mut index = Index::new(&pool, range(0, 20_000));
    let mut units = Units(vec![true; 20_000]);
    (0..200).for_each(|n| units.set(range(n * 100, n * 100 + 1), false));
    index.build(units.vmas().into_iter()).unwrap();
    index.reserve(4).unwrap();
    // Three gaps make the first leaf full, the fourth splits it and stays in its lower half.
    for gap in [range(50, 51), range(150, 151), range(250, 251), range(350, 390)] {
        units.set(gap, false);
        index.open(gap);
        index.check(units.vmas().into_iter()).unwrap();
    }
    assert_eq!(ask(&mut index, &[], Fit::new(40, range(0, 20_000)).unwrap(), 0, true), Some(350));
}

#[test]
fn the_way_to_a_gap_is_forgotten_when_its_nodes_split() {
    let pool = Pool::new(100);
    let mut index = Index::new(&pool, range(0, 40_000));
    let mut units = Units(vec![true; 40_000]);
    index.build(units.vmas().into_iter()).unwrap();
    for at in (0..400).map(|n| n * 77 % 400 * 100) {
        // A new gap comes after the one below it, the end of which is used next.
        let below = units.vmas().iter().rev().map(|vma| vma.start().get()).find(|&end| end != 0 && end < at);
        units.set(range(at, at + 50), false);
        index.reserve(2).unwrap();
        index.open(range(at, at + 50));
        if let Some(below) = below {
            units.set(range(below - 1, below), true);
            index.close(range(below - 1, below));
        }
        index.check(units.vmas().into_iter()).unwrap();
    }
}

#[test]
fn the_window_clips_gaps_at_both_ends() {
    let pool = Pool::new(20);
    let mut index = Index::new(&pool, range(0, 100));
    for built in [false, true] {
        let vmas = [range(40, 50)];
        if built {
            index.build(vmas.into_iter()).unwrap();
        }
        let index = RefCell::new(&mut index);
        let ask = |bytes, low, high, top| {
            ask(&mut index.borrow_mut(), &vmas, Fit::new(bytes, range(low, high)).unwrap(), 0, top)
        };
        let highest = |bytes, low, high| ask(bytes, low, high, true);
        let lowest = |bytes, low, high| ask(bytes, low, high, false);
        assert_eq!((highest(10, 0, 100), lowest(10, 0, 100)), (Some(90), Some(0)));
        assert_eq!((highest(10, 0, 60), lowest(10, 31, 100)), (Some(50), Some(50)));
        assert_eq!((highest(11, 0, 60), lowest(10, 30, 100)), (Some(29), Some(30)));
        assert_eq!((highest(11, 30, 60), lowest(11, 30, 60)), (None, None));
        assert_eq!((highest(50, 0, 100), lowest(50, 0, 100)), (Some(50), Some(50)));
        assert_eq!((highest(51, 0, 100), lowest(1, 45, 45)), (None, None));
    }
    assert_eq!(Fit::new(0, range(0, 1)), None);
}

#[test]
fn each_candidate_is_offered_once_from_the_top() {
    let pool = Pool::new(60);
    let vmas: Vec<_> = (0..200).map(|n| range(n * 10, n * 10 + 5)).collect();
    let mut index = Index::new(&pool, range(0, 2000));
    index.build(vmas.iter().copied()).unwrap();
    let mut offered = Vec::new();
    let fit = Fit::new(5, range(3, 1998)).unwrap();
    let none = index.highest_fit(fit, NOTHING.into_iter(), |candidate| {
        offered.push(candidate.part().start().get());
        None
    });
    // The last gap has but 3 units below the window's end.
    assert_eq!((none, offered), (None, (0..199).rev().map(|n| n * 10 + 5).collect()));
}

#[test]
fn what_was_found_last_is_found_again_until_something_higher_fits() {
    let pool = Pool::new(60);
    let vmas: Vec<_> = (0..100).map(|n| range(n * 10, n * 10 + 8)).collect();
    let mut index = Index::new(&pool, range(0, 2_000));
    index.set_border(VirtAddr::new(995).unwrap());
    index.build(vmas.iter().copied()).unwrap();
    let mut used = vmas.clone();
    // Offers a gap that is refused once, too.
    let highest = |index: &mut Index<'_>, bytes, refused: &[u64]| {
        let mut offered = Vec::new();
        let found =
            index.highest_fit(Fit::new(bytes, range(0, 995)).unwrap(), NOTHING.into_iter(), |found| {
                offered.push(found.gap().start().get());
                found.highest().filter(|_| !refused.contains(&found.gap().start().get()))
            });
        (found.map(VirtAddr::get), offered)
    };
    let memo = |index: &Index<'_>| index.memo.map(|memo| (memo.bytes(), memo.gap().start));
    assert_eq!(highest(&mut index, 2, &[]), (Some(988), vec![988]));
    assert_eq!(highest(&mut index, 2, &[988]), (Some(978), vec![988, 978]));
    assert_eq!(memo(&index), Some((2, 988)));
    let mut edit = |index: &mut Index<'_>, range: VirtRange, free: bool| {
        index.reserve(1).unwrap();
        if free {
            used.retain(|vma| *vma != range);
            index.open(range);
        } else {
            used.push(range);
            used.sort_by_key(|vma| vma.start());
            index.close(range);
        }
        index.check(used.iter().copied()).unwrap();
    };
    // What is found is taken: there is no gap of that size left above it that would not be found anew.
    edit(&mut index, range(988, 990), false);
    assert_eq!((memo(&index), highest(&mut index, 2, &[]).0), (None, Some(978)));
    // Below it something larger comes to be, and then above.
    edit(&mut index, vmas[50], true);
    assert_eq!((memo(&index), highest(&mut index, 10, &[]).0), (Some((2, 978)), Some(500)));
    assert_eq!(memo(&index), Some((10, 498)));
    edit(&mut index, vmas[60], true);
    assert_eq!((memo(&index), highest(&mut index, 12, &[]).0), (Some((10, 598)), Some(598)));
    // Of a gap that is cut in two the upper part counts, if it is large enough.
    edit(&mut index, range(599, 600), false);
    assert_eq!(memo(&index), Some((10, 600)));
    edit(&mut index, range(609, 610), false);
    assert_eq!((memo(&index), highest(&mut index, 10, &[]).0), (None, Some(500)));
}

#[test]
fn gaps_on_both_sides_of_the_border_are_one() {
    let pool = Pool::new(60);
    let mut index = Index::new(&pool, range(0, 1_000));
    index.set_border(VirtAddr::new(500).unwrap());
    let used = |start, end, slot| Used { range: range(start, end), slot: Slot::new(slot) };
    index.build([used(0, 450, 1), used(520, 600, 2), used(700, 1_000, 3)].into_iter()).unwrap();
    let mut offered = |bytes, window: VirtRange, top| {
        let (mut seen, fit) = (Vec::new(), Fit::new(bytes, window).unwrap());
        let mut accept = |found: Candidate| {
            let (gap, above) = (found.gap(), found.above().map(Slot::get));
            seen.push((gap.start().get(), gap.end().get(), found.part().end().get(), above));
            None
        };
        match top {
            true => index.highest_fit(fit, NOTHING.into_iter(), &mut accept),
            false => index.lowest_fit(fit, NOTHING.into_iter(), &mut accept),
        };
        seen
    };
    let (across, above) = ((450, 520, 520, Some(2)), (600, 700, 700, Some(3)));
    assert_eq!(offered(60, range(0, 1_000), true), [above, across]);
    assert_eq!(offered(60, range(0, 1_000), false), [across, above]);
    // A window that ends at the border sees the whole gap, and what it may use of it.
    for top in [true, false] {
        assert_eq!(offered(50, range(0, 500), top), [(450, 520, 500, Some(2))]);
        assert_eq!(offered(51, range(0, 500), top), []);
        assert_eq!(offered(20, range(500, 550), top), [across]);
    }
    index.reserve(3).unwrap();
    index.close(used(480, 510, 4));
    index
        .check([used(0, 450, 1), used(480, 510, 4), used(520, 600, 2), used(700, 1_000, 3)].into_iter())
        .unwrap();
    index.open(range(480, 510));
    index.open(range(700, 1_000));
    index.check([used(0, 450, 1), used(520, 600, 2)].into_iter()).unwrap();
}

#[test]
fn a_store_without_nodes_costs_the_index_but_no_answer() {
    let vmas: Vec<_> = (0..60).map(|n| range(n * 10, n * 10 + 5)).collect();
    let pool = Pool::new(3);
    let mut index = Index::new(&pool, range(0, 600));
    assert_eq!(index.build(vmas.iter().copied()), Err(GapError::NoNodes));
    assert_eq!((index.is_built(), pool.left()), (false, 3));
    index.build(vmas[..30].iter().copied()).unwrap_err();
    index.build(vmas[..5].iter().copied()).unwrap();
    assert_eq!((index.reserve(1), index.reserve(2)), (Ok(()), Err(GapError::NoNodes)));
    index.trim(0);
    // Without a reserve the leaf fills up, and then there is no node to split it.
    let mut used = vmas[..5].to_vec();
    for vma in &vmas[5..] {
        index.close(*vma);
        used.push(*vma);
        index.check(used.iter().copied()).unwrap();
        let fit = Fit::new(5, range(0, 600)).unwrap();
        assert_eq!(ask(&mut index, &used, fit, 0, true), Some(595), "{vma:?}");
    }
    assert_eq!((index.is_built(), pool.left()), (false, 3));
    assert_eq!(index.reserve(100), Ok(()));
}

#[test]
fn what_is_reserved_is_enough() {
    // Every edit splits a gap; the reserve is made for a few at a time, from a store that has no more.
    let pool = Pool::new(1_000);
    let mut index = Index::new(&pool, range(0, 100_000));
    index.build(NOTHING.into_iter()).unwrap();
    let mut rng = Rng(3);
    let mut used: Vec<VirtRange> = Vec::new();
    for _ in 0..400 {
        let edits = 1 + rng.below(4) as u32;
        index.reserve(edits).unwrap();
        let hidden = core::mem::take(&mut *pool.free.borrow_mut());
        for _ in 0..edits {
            let start = rng.below(49_999) * 2 + 1;
            index.close(range(start, start + 1));
            if let Err(at) = used.binary_search_by_key(&start, |vma| vma.start().get()) {
                used.insert(at, range(start, start + 1));
            }
        }
        pool.free.borrow_mut().extend(hidden);
        assert!(index.is_built());
        index.check(used.iter().copied()).unwrap();
        index.trim(0);
    }
}

#[test]
fn an_index_that_has_shrunk_leaves_its_nodes_to_others() {
    let pool = Pool::new(1_000);
    let mut index = Index::new(&pool, range(0, 100_000));
    let vmas: Vec<_> = (0..4_000).map(|at| range(at * 10, at * 10 + 5)).collect();
    index.build(vmas.iter().copied()).unwrap();
    assert!(pool.left() < 700);
    for vma in vmas.iter().skip(11) {
        index.reserve(1).unwrap();
        index.open(*vma);
    }
    index.reserve(1).unwrap();
    assert!(index.is_built() && pool.left() >= 1_000 - 30, "{} left", pool.left());
    index.check(vmas[..11].iter().copied()).unwrap();
}

#[test]
fn check_names_each_corruption() {
    let fault = |spoil: fn(&mut Index<'_>)| {
        let pool = Pool::new(100);
        let vmas: Vec<_> = (0..300).map(|n| range(n * 10, n * 10 + 5)).collect();
        let mut index = Index::new(&pool, range(0, 3000));
        index.build(vmas.iter().copied()).unwrap();
        index.reserve(2).unwrap();
        index.check(vmas.iter().copied()).unwrap();
        spoil(&mut index);
        let fault = index.check(vmas.iter().copied()).unwrap_err();
        core::mem::forget(index);
        fault
    };
    fn tree<'a>(index: &'a mut Index<'_>) -> &'a mut GapTree {
        &mut index.trees.as_mut().unwrap().below
    }
    fn root<'a>(index: &'a Index<'_>) -> &'a GapNode {
        node::node(&index.nodes, index.trees.as_ref().unwrap().below.root)
    }
    fn top<'a>(index: &'a Index<'_>) -> (Slot, &'a GapNode) {
        let tree = &index.trees.as_ref().unwrap().below;
        let last = |slot| node::node(&index.nodes, slot).entries().last().and_then(|entry| entry.slot);
        let slot = (0..tree.height).fold(tree.root, |slot, _| last(slot).unwrap());
        (slot, node::node(&index.nodes, slot))
    }
    let first = |fault| matches!(fault, GapFault::Summary(_));
    assert!(first(fault(|index| {
        let entry = root(index).entry(1);
        root(index).corrupt(1, Entry { gap: Gap { len: 6, ..entry.gap }, ..entry });
    })));
    assert!(first(fault(|index| {
        let entry = root(index).entry(0);
        root(index).corrupt(0, Entry { gap: Gap { start: 4, ..entry.gap }, ..entry });
    })));
    assert!(matches!(
        fault(|index| {
            let entry = root(index).entry(0);
            root(index).corrupt(0, Entry { slot: None, ..entry });
        }),
        GapFault::OutOfRange(_)
    ));
    assert!(matches!(
        fault(|index| top(index).1.corrupt(2, Entry::below(top(index).1.gap(1), None))),
        GapFault::Order(_)
    ));
    assert!(matches!(
        fault(|index| {
            let gap = top(index).1.gap(1);
            top(index).1.corrupt(1, Entry::below(Gap { len: 4, ..gap }, None));
        }),
        GapFault::Differs { kept, free } if kept == free
    ));
    assert!(matches!(
        fault(|index| top(index).1.corrupt(14, Entry::below(Gap { start: u64::MAX, len: 1 }, None))),
        GapFault::Entries(_)
    ));
    assert!(matches!(fault(|index| tree(index).gaps += 1), GapFault::Count { counted: 300, kept: 301 }));
    assert!(matches!(
        fault(|index| {
            let extra = (index.nodes.take().unwrap(), tree(index).root);
            node::node(&index.nodes, extra.0).push(Entry::inner(extra.1, root(index)));
            (tree(index).root, tree(index).height) = (extra.0, tree(index).height + 1);
        }),
        GapFault::Root
    ));
    let twice = |index: &mut Index<'_>| {
        let spare = index.spares.take(&index.nodes).unwrap();
        index.spares.put(&index.nodes, spare);
        index.spares.put(&index.nodes, spare);
    };
    assert_eq!(fault(twice), GapFault::Spares);
    // A gap that is not the highest of its size, and one that is none.
    let not_highest = |index: &mut Index<'_>| {
        index.memo = Some(Memo::new(5, Entry::below(Gap { start: 1_005, len: 5 }, None)));
    };
    assert_eq!(fault(not_highest), GapFault::Memo { start: 1_005 });
    let none = |index: &mut Index<'_>| {
        index.memo = Some(Memo::new(5, Entry::below(Gap { start: 2_996, len: 4 }, None)));
    };
    assert_eq!(fault(none), GapFault::Memo { start: 2_996 });
}
