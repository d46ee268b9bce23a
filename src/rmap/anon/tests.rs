use super::*;
use crate::collections::ListFault;
use crate::rmap::RmapLinks;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::vec::Vec;

const VMAS: usize = 64;

/// VMAs that all show the same page at an address of their own.
struct Vmas([RmapLinks; VMAS]);

impl Vmas {
    fn new() -> Self {
        Self([const { RmapLinks::new() }; VMAS])
    }
}

impl RmapNodes for Vmas {
    fn links(&self, slot: Slot) -> Option<&RmapLinks> {
        self.0.get(slot.index())
    }

    fn place(&self, slot: Slot) -> Option<Place> {
        let start = VirtAddr::from(u64::from(slot.get()) << 16);
        Some(Place { mm: slot, start, pages: 1, pgoff: PgOff::ZERO })
    }
}

fn slot(n: usize) -> Slot {
    Slot::from_index(n).unwrap()
}

/// Owners by number, each with its VMAs and pages, and every owner above it that there ever was.
#[derive(Default)]
struct Model {
    owners: Vec<Owner>,
}

struct Owner {
    id: AnonVmaId,
    above: BTreeSet<usize>,
    vmas: BTreeSet<usize>,
    pages: u64,
}

impl Owner {
    fn lives(&self) -> bool {
        !self.vmas.is_empty() || self.pages > 0
    }
}

struct World<'n> {
    vmas: &'n Vmas,
    anon: AnonVmas<'n>,
    model: RefCell<Model>,
}

impl World<'_> {
    fn add(&self, id: Option<AnonVmaId>, parent: Option<usize>, vma: usize) {
        let Some(id) = id else { return };
        self.anon.link(self.vmas, id, slot(vma)).unwrap();
        let mut model = self.model.borrow_mut();
        let mut above = parent.map_or_else(BTreeSet::new, |parent| model.owners[parent].above.clone());
        above.extend(parent);
        model.owners.push(Owner { id, above, vmas: BTreeSet::from([vma]), pages: 0 });
    }

    fn verify(&self) {
        let model = self.model.borrow();
        let owner_of = |slot: Slot| {
            let owner = model.owners.iter().find(|owner| owner.vmas.contains(&slot.index()));
            owner.map(|owner| owner.id)
        };
        let owned = model.owners.iter().map(|owner| owner.vmas.len() as u64).sum();
        self.anon.check(self.vmas, owner_of, owned).unwrap();
        let living = model.owners.iter().filter(|owner| owner.lives()).count();
        assert_eq!(self.anon.used() as usize, living);
        for (n, owner) in model.owners.iter().enumerate().filter(|(_, owner)| owner.lives()) {
            let mut visited = BTreeSet::new();
            let walked = self.anon.walk_page(self.vmas, owner.id, PgOff::ZERO, |place, addr| {
                assert_eq!(addr, place.start);
                assert!(visited.insert(place.mm.index()), "visited twice");
                true
            });
            let below =
                model.owners.iter().enumerate().filter(|(m, other)| *m == n || other.above.contains(&n));
            let expected: BTreeSet<usize> = below.flat_map(|(_, other)| other.vmas.iter().copied()).collect();
            assert_eq!(visited, expected);
            let count = expected.len() as u32;
            assert_eq!(walked, Walked { vmas_visited: count, entries: count });
            assert_eq!(self.anon.pages(owner.id), owner.pages);
        }
    }
}

fn random(seed: &mut u64, below: usize) -> usize {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*seed >> 33) as usize % below
}

#[test]
fn a_walk_visits_the_vmas_of_the_owner_and_of_those_forked_from_it_and_no_others() {
    for run in 0..20 {
        let (vmas, nodes) = (Vmas::new(), [const { AnonNode::new() }; 40]);
        let world = World { vmas: &vmas, anon: AnonVmas::new(&nodes), model: RefCell::default() };
        let mut seed = run;
        for _ in 0..400 {
            step(&world, &mut seed);
            world.verify();
        }
        let owners = world.model.take().owners;
        for owner in owners {
            owner.vmas.iter().for_each(|&vma| world.anon.unlink(&vmas, owner.id, slot(vma)).unwrap());
            (0..owner.pages).for_each(|_| assert!(world.anon.remove_page(owner.id)));
        }
        assert_eq!(world.anon.used(), 0);
    }
}

/// Does one thing to an owner.
fn step(world: &World<'_>, seed: &mut u64) {
    let free = (0..VMAS).find(|&vma| !vmas_in_use(world).contains(&vma));
    let living: Vec<usize> = {
        let model = world.model.borrow();
        (0..model.owners.len()).filter(|&n| model.owners[n].lives()).collect()
    };
    let chosen = if living.is_empty() { None } else { Some(living[random(seed, living.len())]) };
    match (random(seed, 8), chosen, free) {
        (0, _, Some(vma)) => world.add(world.anon.fresh(), None, vma),
        (1 | 2, Some(n), Some(vma)) => {
            let parent = world.model.borrow().owners[n].id;
            // A process without the VMA has nothing to fork.
            if !world.model.borrow().owners[n].vmas.is_empty() {
                world.add(world.anon.fork(parent), Some(n), vma);
            }
        }
        (3, Some(n), Some(vma)) => {
            let owner = &mut world.model.borrow_mut().owners[n];
            if !owner.vmas.is_empty() {
                world.anon.link(world.vmas, owner.id, slot(vma)).unwrap();
                owner.vmas.insert(vma);
            }
        }
        (4 | 5, Some(n), _) => {
            let owner = &mut world.model.borrow_mut().owners[n];
            if let Some(vma) = owner.vmas.pop_first() {
                world.anon.unlink(world.vmas, owner.id, slot(vma)).unwrap();
            }
        }
        (6, Some(n), _) => {
            let owner = &mut world.model.borrow_mut().owners[n];
            if !owner.vmas.is_empty() {
                world.anon.add_page(owner.id);
                owner.pages += 1;
            }
        }
        (7, Some(n), _) => {
            let owner = &mut world.model.borrow_mut().owners[n];
            assert_eq!(world.anon.remove_page(owner.id), owner.pages > 0);
            owner.pages = owner.pages.saturating_sub(1);
        }
        _ => {}
    }
}

fn vmas_in_use(world: &World<'_>) -> BTreeSet<usize> {
    world.model.borrow().owners.iter().flat_map(|owner| owner.vmas.iter().copied()).collect()
}

#[test]
fn a_chain_of_forks_whose_parents_exit_keeps_no_more_owners_than_pages() {
    let (vmas, nodes) = (Vmas::new(), [const { AnonNode::new() }; 4]);
    let anon = AnonVmas::new(&nodes);
    let mut last = anon.fresh().unwrap();
    anon.link(&vmas, last, slot(0)).unwrap();
    anon.add_page(last);
    let first = last;
    for n in 1..1000 {
        let child = anon.fork(last).unwrap();
        anon.link(&vmas, child, slot(n % 2)).unwrap();
        anon.unlink(&vmas, last, slot((n - 1) % 2)).unwrap();
        last = child;
        assert!(anon.used() <= 2);
        let walked = anon.walk_page(&vmas, first, PgOff::ZERO, |_, _| true);
        assert_eq!(walked, Walked { vmas_visited: 1, entries: 1 });
    }
    assert!(anon.remove_page(first));
    assert_eq!(anon.used(), 1);
    anon.unlink(&vmas, last, slot(1)).unwrap();
    assert_eq!(anon.used(), 0);
}

#[test]
fn without_room_there_is_no_owner_and_one_that_got_no_vma_goes_back() {
    let (vmas, nodes) = (Vmas::new(), [const { AnonNode::new() }; 2]);
    let anon = AnonVmas::new(&nodes);
    let parent = anon.fresh().unwrap();
    anon.link(&vmas, parent, slot(0)).unwrap();
    let child = anon.fork(parent).unwrap();
    assert!(anon.fork(parent).is_none() && anon.fresh().is_none());
    anon.release(child);
    assert!(!anon.remove_page(child) && !anon.remove_page(parent));
    assert_eq!(anon.fork(child), None);
    // Of two that claim a VMA, the one that comes too late gives its owner back.
    let late = anon.fresh().unwrap();
    anon.link_if(&vmas, late, slot(0), || false).unwrap();
    assert_eq!(anon.used(), 1);
    anon.unlink(&vmas, parent, slot(0)).unwrap();
    anon.check(&vmas, |_| None, 0).unwrap();
    assert_eq!(anon.used(), 0);
}

#[test]
fn check_names_what_is_broken() {
    let broken = |damage: fn(&[AnonNode; 4], &Vmas), owned: u64| {
        let (vmas, nodes) = (Vmas::new(), [const { AnonNode::new() }; 4]);
        let anon = AnonVmas::new(&nodes);
        let parent = anon.fresh().unwrap();
        anon.link(&vmas, parent, slot(0)).unwrap();
        let child = anon.fork(parent).unwrap();
        anon.link(&vmas, child, slot(1)).unwrap();
        damage(&nodes, &vmas);
        anon.check(&vmas, |slot| [parent, child].get(slot.index()).copied(), owned).unwrap_err()
    };
    let (parent, child) = (AnonVmaId(slot(0)), AnonVmaId(slot(1)));
    assert_eq!(broken(|_, _| (), 3), AnonFault::Unlisted);
    let taken_off = |nodes: &[AnonNode; 4], vmas: &Vmas| {
        nodes[1].vmas.remove(slot(1), |slot| vmas.0.get(slot.index()).map(|links| &links.anon)).unwrap();
    };
    assert_eq!(broken(taken_off, 2), AnonFault::Empty(child));
    let other_parent = |nodes: &[AnonNode; 4], _: &Vmas| nodes[1].parent.store(3, Relaxed);
    let foreign = AnonFault::Children(parent, ListFault::Foreign(slot(1)));
    assert_eq!(broken(other_parent, 2), foreign);
    let other_family = |nodes: &[AnonNode; 4], _: &Vmas| nodes[1].family.store(9, Relaxed);
    assert_eq!(broken(other_family, 2), AnonFault::Family(child));
    let forgotten = |nodes: &[AnonNode; 4], _: &Vmas| nodes[3].family.store(9, Relaxed);
    assert_eq!(broken(forgotten, 2), AnonFault::Empty(AnonVmaId(slot(3))));
    let strange = |nodes: &[AnonNode; 4], vmas: &Vmas| {
        let link = |slot: Slot| vmas.0.get(slot.index()).map(|links| &links.anon);
        nodes[1].vmas.push_back(slot(2), link).unwrap();
    };
    assert_eq!(broken(strange, 3), AnonFault::Vmas(child, ListFault::Foreign(slot(2))));
}
