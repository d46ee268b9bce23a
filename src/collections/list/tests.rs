use super::*;
use static_assertions::{assert_impl_all, const_assert, const_assert_eq};
use std::collections::VecDeque;
use std::vec::Vec;

/// One kind of link for all tests here.
struct Lru;

#[derive(Default)]
struct Frame {
    lru: ListLink,
    on: AtomicU32,
}

impl HasListLink<Lru> for Frame {
    fn list_link(&self) -> &ListLink {
        &self.lru
    }

    fn list_id(&self) -> Option<ListId> {
        ListId::new(self.on.load(Relaxed))
    }

    fn set_list_id(&self, id: Option<ListId>) {
        self.on.store(id.map_or(0, ListId::get), Relaxed);
    }
}

type List<'a> = IndexList<&'a [Frame], Lru>;

const_assert_eq!(size_of::<ListLink>(), 8);
const_assert_eq!(size_of::<Option<Slot>>(), 4);
const_assert!(size_of::<IndexList<&&[Frame], Lru>>() <= 32);
assert_impl_all!(List<'static>: Send, Sync);

fn frames(n: usize) -> Vec<Frame> {
    (0..n).map(|_| Frame::default()).collect()
}

fn id(n: u32) -> ListId {
    ListId::new(n).unwrap()
}

fn slot(n: u32) -> Slot {
    Slot::new(n).unwrap()
}

fn of<'a>(frames: &'a [Frame], name: u32, slots: &[u32]) -> List<'a> {
    let mut list = List::new(frames, id(name));
    slots.iter().for_each(|&n| list.push_back(slot(n)).unwrap());
    list
}

fn order(list: &List<'_>) -> Vec<u32> {
    list.iter().map(Slot::get).collect()
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

#[test]
fn random_operations_agree_with_vec_deque() {
    const SLOTS: u64 = 60;
    let store = frames(SLOTS as usize);
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    let mut lists = [of(&store, 1, &[]), of(&store, 2, &[])];
    let mut models = [VecDeque::<u32>::new(), VecDeque::new()];
    for _ in 0..20_000 {
        let which = rng.below(2) as usize;
        let n = rng.below(SLOTS);
        let at = rng.below(SLOTS);
        let linked = models.iter().any(|model| model.contains(&n));
        let fresh = if linked { Err(LinkError::AlreadyLinked) } else { Ok(()) };
        let op = rng.below(10);
        let (list, model) = (&mut lists[which], &mut models[which]);
        let place = model.iter().position(|&m| m == at);
        match op {
            0 | 1 => {
                assert_eq!(list.push_front(slot(n)), fresh);
                if !linked {
                    model.push_front(n);
                }
            }
            2 | 3 => {
                assert_eq!(list.push_back(slot(n)), fresh);
                if !linked {
                    model.push_back(n);
                }
            }
            4 | 5 => {
                let after = op == 4;
                let put = if after { List::insert_after } else { List::insert_before };
                let expected = if place.is_none() { Err(LinkError::NotMember) } else { fresh };
                assert_eq!(put(list, slot(at), slot(n)), expected);
                if let (Some(place), Ok(())) = (place, expected) {
                    model.insert(place + usize::from(after), n);
                }
            }
            6 | 7 => {
                let expected = place.map(|place| model.remove(place)).map(drop).ok_or(LinkError::NotMember);
                assert_eq!(list.remove(slot(at)), expected);
            }
            8 => assert_eq!(list.pop_front().map(Slot::get), model.pop_front()),
            _ => assert_eq!(list.pop_back().map(Slot::get), model.pop_back()),
        }
        if rng.below(200) == 0 {
            let [a, b] = &mut lists;
            let [model_a, model_b] = &mut models;
            if rng.below(2) == 0 {
                a.append(b).unwrap();
                model_a.append(model_b);
            } else {
                a.prepend(b).unwrap();
                model_b.append(model_a);
                core::mem::swap(model_a, model_b);
            }
        }
        for (list, model) in lists.iter().zip(&models) {
            list.check().unwrap();
            assert_eq!(list.len(), model.len());
            assert!(list.iter().map(Slot::get).eq(model.iter().copied()));
            assert!(list.iter().rev().map(Slot::get).eq(model.iter().rev().copied()));
        }
    }
}

#[test]
fn next_and_prev_answer_for_members_alone() {
    let store = frames(6);
    let (list, other) = (of(&store, 1, &[4, 0, 2]), of(&store, 2, &[5, 3]));
    assert_eq!((list.prev(slot(4)), list.next(slot(4))), (None, Some(slot(0))));
    assert_eq!((list.prev(slot(2)), list.next(slot(2))), (Some(slot(0)), None));
    assert_eq!(
        (list.prev(slot(3)), list.next(slot(5)), list.next(slot(1)), list.next(slot(6))),
        (None, None, None, None)
    );
    assert!(other.contains(slot(3)) && !list.contains(slot(3)) && !list.contains(slot(1)));
}

#[test]
fn the_ends_meet_in_the_middle() {
    let store = frames(5);
    let list = of(&store, 1, &[0, 1, 2, 3, 4]);
    let mut iter = list.iter();
    assert_eq!(iter.len(), 5);
    assert_eq!((iter.next(), iter.next_back(), iter.next()), (Some(slot(0)), Some(slot(4)), Some(slot(1))));
    assert_eq!(
        (iter.next_back(), iter.next_back(), iter.next(), iter.next_back()),
        (Some(slot(3)), Some(slot(2)), None, None)
    );
}

#[test]
fn a_slot_of_another_list_or_none_is_refused() {
    let store = frames(4);
    let (mut a, mut b) = (of(&store, 1, &[0, 1]), of(&store, 2, &[2]));
    assert_eq!(a.remove(slot(2)), Err(LinkError::NotMember));
    assert_eq!(a.remove(slot(3)), Err(LinkError::NotMember));
    assert_eq!(a.remove(slot(4)), Err(LinkError::OutOfRange));
    assert_eq!(a.push_back(slot(4)), Err(LinkError::OutOfRange));
    assert_eq!(a.push_back(slot(2)), Err(LinkError::AlreadyLinked));
    assert_eq!(a.insert_after(slot(2), slot(3)), Err(LinkError::NotMember));
    assert_eq!(a.insert_before(slot(0), slot(2)), Err(LinkError::AlreadyLinked));
    assert_eq!((order(&a), order(&b)), (vec![0, 1], vec![2]));
    b.clear();
    a.push_back(slot(2)).unwrap();
    a.check().unwrap();
}

#[test]
fn whole_lists_move_and_take_the_new_id() {
    let (store, elsewhere) = (frames(6), frames(6));
    let (mut a, mut b) = (of(&store, 1, &[0, 1]), of(&store, 2, &[2, 3]));
    let mut taken = a.take();
    assert_eq!((a.len(), order(&taken)), (0, vec![0, 1]));
    b.append(&mut taken).unwrap();
    assert_eq!((order(&b), taken.is_empty()), (vec![2, 3, 0, 1], true));
    a.prepend(&mut b).unwrap();
    b.append(&mut taken).unwrap();
    assert_eq!((order(&a), order(&b)), (vec![2, 3, 0, 1], vec![]));
    a.remove(slot(0)).unwrap();
    a.check().unwrap();
    b.check().unwrap();
    let mut foreign = of(&elsewhere, 1, &[5]);
    assert_eq!(a.append(&mut foreign), Err(LinkError::ForeignStore));
    assert_eq!(foreign.len(), 1);
}

#[test]
fn dropping_a_list_frees_its_slots() {
    let store = frames(3);
    drop(of(&store, 1, &[0, 1, 2]));
    assert!(store.iter().all(|frame| !frame.lru.is_linked() && frame.list_id().is_none()));
    assert_eq!(order(&of(&store, 2, &[2, 1, 0])), [2, 1, 0]);
}

#[test]
fn check_names_each_corruption() {
    let fault = |spoil: fn(&[Frame], &mut List<'_>)| {
        let store = frames(5);
        let mut list = of(&store, 1, &[0, 1, 2, 3]);
        list.check().unwrap();
        spoil(&store, &mut list);
        let fault = list.check().unwrap_err();
        core::mem::forget(list);
        fault
    };
    assert_eq!(
        fault(|store, _| store[1].lru.corrupt(Slot::new(9), Slot::new(0))),
        ListFault::OutOfRange(slot(9))
    );
    assert_eq!(
        fault(|store, _| store[3].lru.corrupt(Slot::new(4), Slot::new(2))),
        ListFault::Count { counted: 5, kept: 4 }
    );
    assert_eq!(
        fault(|store, _| store[1].lru.corrupt(Slot::new(4), Slot::new(0))),
        ListFault::Unlinked(slot(4))
    );
    assert_eq!(fault(|store, _| store[2].set_list_id(Some(id(2)))), ListFault::Foreign(slot(2)));
    assert_eq!(
        fault(|store, _| store[2].lru.corrupt(Slot::new(3), Slot::new(0))),
        ListFault::BackLink(slot(2))
    );
    assert_eq!(
        fault(|store, _| store[2].lru.corrupt(Slot::new(0), Slot::new(1))),
        ListFault::BackLink(slot(0))
    );
    assert_eq!(fault(|store, _| store[2].lru.corrupt(None, Slot::new(1))), ListFault::Tail);
    assert_eq!(fault(|_, list| list.len = 3), ListFault::Count { counted: 4, kept: 3 });
    assert_eq!(fault(|_, list| list.len = 5), ListFault::Count { counted: 4, kept: 5 });
}

#[test]
fn broken_links_end_iteration_and_removal() {
    let store = frames(4);
    let mut list = of(&store, 1, &[0, 1, 2, 3]);
    store[1].lru.corrupt(Slot::new(0), Slot::new(77));
    assert_eq!(list.iter().count(), 4);
    assert_eq!(list.iter().rev().count(), 4);
    list.remove(slot(1)).unwrap();
    list.clear();
    assert!(list.is_empty() || list.check().is_err());
}
