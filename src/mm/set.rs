//! The VMAs of one address space, by address: a sorted list, a red-black tree, and an index of the gaps between them.

use super::anon::AnonVma;
use super::context::MmContext;
use super::gap::{BUILD_AT, Candidate, Fit, Free, GapIndex, Used};
use super::pool::{GapPool, VmaPool};
use super::shared::{MmRef, MmSlot};
use super::slot::{VmaNode, VmaSlot};
use super::vma::Vma;
use super::vma_lock::{Sectioned, Waiter};
use crate::addr::{PgOff, VirtAddr, VirtRange};
use crate::collections::{IndexList, IndexTree, Lies, LinkError, ListId, Slot, TreeOrder};
use crate::flags::VmFlags;
use crate::rmap::AnonVmas;

/// How far above the VMA found last the next one is tried before the tree is gone down, in bytes.
const NEAR: u64 = 256 << 10;
/// How many VMAs make that worth while: the way down a small tree is as short.
const MANY: usize = 512;
/// How many VMAs make the way down the tree longer than that down the gap index and along what is above the gap.
const CROWD: usize = if cfg!(test) { 2 } else { 4_096 };
/// How many VMAs above a gap are gone along.
const RUN: usize = 8;

/// The kind of list that VMAs are on.
#[derive(Debug)]
pub struct ByAddress;

/// The kind of tree that VMAs are on.
#[derive(Debug)]
#[doc(alias = "mm_rb")]
pub struct MmRb;

impl TreeOrder<VmaNode> for MmRb {
    type Key = VirtAddr;

    fn key(item: &VmaNode) -> VirtAddr {
        item.start()
    }
}

/// The neighbours of a free range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Beside {
    /// The next VMA below.
    pub(super) below: Option<Slot>,
    /// The next VMA above.
    pub(super) above: Option<Slot>,
}

/// The VMAs of one address space, in the order of their addresses.
///
/// They never overlap, not even for a moment: a VMA shrinks before another takes its place, so that a search may stop at the
/// first VMA that holds the address.
pub struct VmaSet<'p> {
    pool: &'p VmaPool<'p>,
    anon_vmas: &'p AnonVmas<'p>,
    /// The address space's.
    mm: &'p MmSlot,
    waiter: Waiter<'p>,
    pub(super) list: IndexList<&'p [VmaSlot], ByAddress>,
    pub(super) rb: IndexTree<&'p [VmaNode], MmRb>,
    pub(super) gaps: GapIndex<&'p GapPool<'p>>,
}

impl<'p> VmaSet<'p> {
    /// No VMAs of the address space `mm`.
    pub(super) fn new(context: &'p MmContext<'p>, mm: &MmRef<'p>) -> Self {
        let space = VirtRange::with_len(VirtAddr::ZERO, context.sysctl.task_size).unwrap_or_default();
        let pool = &context.pool;
        Self {
            pool,
            anon_vmas: &context.anon_vmas,
            mm: mm.slot(),
            waiter: context.waiter,
            list: IndexList::new(pool.slots(), ListId::of(mm.id().slot())),
            rb: IndexTree::new(pool.nodes()),
            gaps: GapIndex::new(&context.gap_nodes, space),
        }
    }

    /// What others reach of the address space without its lock.
    pub(super) const fn shared(&self) -> &'p MmSlot {
        self.mm
    }

    /// Where VMAs may lie, and room is found.
    pub(super) const fn space(&self) -> VirtRange {
        self.gaps.space()
    }

    /// How many VMAs there are.
    #[doc(alias = "map_count")]
    pub const fn len(&self) -> u32 {
        self.list.len() as u32
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The lowest.
    #[doc(alias = "mmap")]
    pub fn first(&self) -> Option<Slot> {
        self.list.front()
    }

    /// The highest.
    pub fn last(&self) -> Option<Slot> {
        self.list.back()
    }

    /// The next one above.
    #[doc(alias = "vm_next")]
    pub fn next(&self, slot: Slot) -> Option<Slot> {
        self.list.next(slot)
    }

    /// The next one below.
    #[doc(alias = "vm_prev")]
    pub fn prev(&self, slot: Slot) -> Option<Slot> {
        self.list.prev(slot)
    }

    /// A copy of one.
    pub fn get(&self, slot: Slot) -> Vma {
        self.pool.load(slot)
    }

    /// Where one lies, without a copy of the rest.
    #[inline]
    pub fn place(&self, slot: Slot) -> &'p VmaNode {
        self.node(slot)
    }

    /// The first VMA that ends above `addr`: one of those found last, or by a way down the tree.
    ///
    /// # Linux
    /// `find_vma` in `mm/mmap.c` (v6.0).
    #[doc(alias = "find_vma")]
    #[inline]
    pub fn find(&self, addr: VirtAddr) -> Option<Slot> {
        match self.find_recent(addr) {
            Some(slot) => Some(slot),
            None => self.find_anew(addr),
        }
    }

    /// What [`find`](Self::find) finds, if that is none of the VMAs found last.
    fn find_anew(&self, addr: VirtAddr) -> Option<Slot> {
        let found =
            self.find_above_last(addr).or_else(|| self.rb.search(|vma| hold(vma, addr)).found_or_after())?;
        if self.node(found).start() <= addr {
            self.mm.recent().note(addr, found);
        }
        Some(found)
    }

    /// What [`find`](Self::find) finds, if that is the VMA above the one found last, and not far: programs go through their memory upwards.
    #[inline]
    fn find_above_last(&self, addr: VirtAddr) -> Option<Slot> {
        let last = self.mm.recent().last().filter(|_| self.list.len() >= MANY)?;
        let beyond = addr.get().checked_sub(self.node(last).end().get())?;
        if beyond >= NEAR {
            return None;
        }
        self.rb.next(last).filter(|&next| self.node(next).end() > addr)
    }

    /// What [`find`](Self::find) finds, for a call that looks at one place several times and changes it: it tries the neighbours of the VMA
    /// noted last, too, then goes down to the gap that will change, and notes what it finds above a gap. Look-ups that only look do not, for links of the
    /// list lie farther than the next node of the tree.
    pub(super) fn find_to_change(&mut self, addr: VirtAddr) -> Option<Slot> {
        if let Some(slot) = self.find_recent(addr) {
            return Some(slot);
        }
        let near = self.mm.recent().last().and_then(|last| self.find_near(last, addr));
        let found = match near.or_else(|| self.find_above_gap(addr)) {
            Some(found) => found,
            None => self.rb.search(|vma| hold(vma, addr)).found_or_after()?,
        };
        self.mm.recent().note_last(found);
        Some(found)
    }

    /// The first VMA that ends above `addr`, if it is one of the first above the gap before.
    fn find_above_gap(&mut self, addr: VirtAddr) -> Option<Slot> {
        if self.list.len() < CROWD {
            return None;
        }
        let gap = self.gaps.up_to(addr)?;
        let first = self.above().guess(gap.range.end(), gap.above);
        core::iter::successors(first, |&slot| self.next(slot))
            .take(RUN)
            .find(|&slot| self.node(slot).end() > addr)
    }

    /// Notes a VMA near which the next call is likely to look.
    pub(super) fn note_near(&self, slot: Option<Slot>) {
        slot.inspect(|&slot| self.mm.recent().note_last(slot));
    }

    /// The VMA that holds `addr`, if it is one of those found last.
    #[inline]
    fn find_recent(&self, addr: VirtAddr) -> Option<Slot> {
        // What is named there is ours: a VMA is forgotten when it goes.
        self.mm.recent().probe(addr, |slot| self.node(slot).holds(addr).then_some(slot))
    }

    /// The first VMA that ends above `addr`, if it is `last`, which does not hold `addr`, or the one on that side of it.
    #[inline]
    fn find_near(&self, last: Slot, addr: VirtAddr) -> Option<Slot> {
        let place = self.node(last);
        // Most are not near at all.
        let from = place.start().get().wrapping_sub(NEAR);
        if addr.get().wrapping_sub(from) >= place.end().get().wrapping_sub(from).wrapping_add(NEAR) {
            return None;
        }
        if self.node(last).end() <= addr {
            return self.next(last).filter(|&next| self.node(next).end() > addr);
        }
        match self.prev(last) {
            Some(prev) if self.node(prev).end() <= addr => Some(last),
            Some(prev) if self.node(prev).start() <= addr => Some(prev),
            Some(_) => None,
            None => Some(last),
        }
    }

    /// Locks a VMA until the section is over: no fault is in it, and none gets in. What changes a VMA here does so first; who changes its
    /// pages asks for it.
    #[doc(alias = "vma_start_write")]
    pub(super) fn lock(&mut self, slot: Slot) {
        self.at(slot).lock().lock(self.mm.sections(), self.waiter);
    }

    /// Ends a section: all VMAs that were locked are open to faults again.
    #[doc(alias = "vma_end_write_all")]
    pub(super) fn end_section(&mut self) {
        if self.mm.sections().next() == Sectioned::Wrapped {
            self.forget_sections();
        }
        self.mm.sections().end();
    }

    #[cold]
    fn forget_sections(&self) {
        self.walk(self.first(), |slot| self.next(slot)).for_each(|slot| self.at(slot).lock().forget());
    }

    /// The VMAs right below and above `range`; `None` if one lies in it.
    pub(super) fn beside(&mut self, range: VirtRange) -> Option<Beside> {
        let above = self.find_to_change(range.start());
        let free = above.is_none_or(|above| self.node(above).start() >= range.end());
        free.then(|| Beside { below: above.map_or(self.last(), |above| self.prev(above)), above })
    }

    /// The VMAs, upwards.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, Vma)> + '_ {
        self.walk(self.first(), |slot| self.next(slot)).map(|slot| (slot, self.get(slot)))
    }

    fn walk<'s>(
        &'s self,
        from: Option<Slot>,
        step: impl Fn(Slot) -> Option<Slot> + 's,
    ) -> impl Iterator<Item = Slot> + 's {
        core::iter::successors(from, move |&slot| step(slot))
    }

    /// Where the VMAs lie, upwards.
    pub(super) fn used(&self) -> impl Iterator<Item = Used> + '_ {
        used(self.pool, self.first(), |slot| self.next(slot))
    }

    /// Whether the slot is in use for this address space.
    pub(super) fn owns(&self, slot: Slot) -> bool {
        self.at(slot).owner() == self.list.id().get() && self.at(slot).generation() % 2 == 1
    }

    #[inline]
    pub(super) fn at(&self, slot: Slot) -> &'p VmaSlot {
        self.pool.at(slot)
    }

    #[inline]
    pub(super) fn node(&self, slot: Slot) -> &'p VmaNode {
        self.pool.node(slot)
    }

    /// Fills a slot and puts it after `below`, the next VMA below it, or before all others.
    pub(super) fn insert(&mut self, below: Option<Slot>, slot: Slot, vma: &Vma) {
        let above = below.map_or(self.first(), |below| self.next(below));
        self.put(Beside { below, above }, slot, vma);
        self.link_anon(slot, vma.anon);
    }

    /// Fills a slot and puts it between its neighbours; on the list of its owner of anonymous pages it is not yet.
    pub(super) fn put(&mut self, Beside { below, above }: Beside, slot: Slot, vma: &Vma) {
        self.at(slot).lock().lock_anew(self.mm.sections(), self.waiter);
        self.at(slot).init(self.node(slot), vma);
        sound(match below {
            Some(below) => self.list.insert_after(below, slot),
            None => self.list.push_front(slot),
        });
        sound(self.rb.insert_between(below, slot, above));
        self.mm.set_root(self.rb.root());
        self.mm.recent().note_last(slot);
    }

    /// Puts a VMA on the list of its owner of anonymous pages.
    fn link_anon(&self, slot: Slot, anon: Option<AnonVma>) {
        if let Some(anon) = anon {
            sound(self.anon_vmas.link(self.pool, anon.id(), slot));
        }
    }

    fn unlink_anon(&self, slot: Slot, anon: Option<AnonVma>) {
        if let Some(anon) = anon {
            sound(self.anon_vmas.unlink(self.pool, anon.id(), slot));
        }
    }

    /// Gives a VMA that has no owner of anonymous pages this one, unless another CPU is faster.
    pub(super) fn claim_anon(&self, slot: Slot, anon: AnonVma) {
        let claim = || self.at(slot).claim_anon(anon);
        sound(self.anon_vmas.link_if(self.pool, anon.id(), slot, claim));
    }

    /// Takes a VMA out and gives its slot back.
    pub(super) fn remove(&mut self, slot: Slot) {
        self.take_out(slot);
        self.pool.give(slot);
    }

    /// Takes a VMA out; its slot is the caller's.
    pub(super) fn take_out(&mut self, slot: Slot) {
        self.lock(slot);
        self.unlink_anon(slot, self.at(slot).anon());
        self.at(slot).forget_anon();
        sound(self.list.remove(slot));
        sound(self.rb.remove(slot));
        self.mm.set_root(self.rb.root());
        self.mm.recent().forget(slot, self.node(slot).range());
    }

    /// Moves the borders of a VMA, to where nothing else lies. Gaps are noted apart.
    pub(super) fn resize(&mut self, slot: Slot, start: VirtAddr, end: VirtAddr, pgoff: PgOff) {
        self.lock(slot);
        let old = self.node(slot).range();
        if start > old.start() || end < old.end() {
            self.mm.recent().forget_classes(slot, old);
        }
        self.at(slot).set_range(self.node(slot), start, end, pgoff);
    }

    pub(super) fn set_flags(&mut self, slot: Slot, flags: VmFlags) {
        self.lock(slot);
        self.at(slot).set_flags(flags);
    }

    /// Replaces all but the borders.
    pub(super) fn set_attributes(&mut self, slot: Slot, vma: &Vma) {
        self.lock(slot);
        let old = self.at(slot).anon();
        if old == vma.anon {
            self.at(slot).set_attributes(vma);
            return;
        }
        self.unlink_anon(slot, old);
        self.at(slot).set_attributes(vma);
        self.link_anon(slot, vma.anon);
    }

    /// Notes that all of `range` is free now, up to the VMA `above`.
    pub(super) fn note_free(&mut self, range: VirtRange, above: Option<Slot>) {
        if self.gaps.reserve(1).is_err() {
            self.gaps.clear();
        }
        self.gaps.open(Free { range, above });
    }

    /// Notes that all of `range` is in use now, as a part of the VMA in `slot`, which begins with it or below.
    pub(super) fn note_used(&mut self, range: VirtRange, slot: Slot) {
        if self.gaps.reserve(1).is_err() {
            self.gaps.clear();
        }
        self.gaps.close(Used { range, slot: Some(slot) });
    }

    /// Builds the gap index if there are enough VMAs to make it worth while, for searches that begin at `top`. Without nodes there is none, and looking for
    /// room walks along the VMAs.
    pub(super) fn prepare_gaps(&mut self, top: VirtAddr) {
        self.gaps.set_border(top);
        if self.gaps.is_built() || self.list.len() < BUILD_AT {
            return;
        }
        let list = &self.list;
        // Failing is no error: the walk answers the same.
        let _ = self.gaps.build(used(self.pool, list.front(), |slot| list.next(slot)));
    }

    const fn above(&self) -> Above<'_, 'p> {
        Above { pool: self.pool, list: &self.list, rb: &self.rb }
    }

    /// The highest address that `accept` makes of a gap; it can ask for the VMA above one.
    pub(super) fn highest_fit(
        &mut self,
        fit: Fit,
        mut accept: impl FnMut(Candidate, &Above<'_, 'p>) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        let (above, list) = (Above { pool: self.pool, list: &self.list, rb: &self.rb }, &self.list);
        let vmas = used(self.pool, list.back(), |slot| list.prev(slot));
        let mut near = None;
        let found = self.gaps.highest_fit(fit, vmas, |gap| {
            let found = accept(gap, &above)?;
            near = above.guess(gap.gap().end(), gap.above());
            Some(found)
        });
        self.note_near(near);
        found
    }

    /// The lowest address that `accept` makes of a gap; it can ask for the VMA above one.
    pub(super) fn lowest_fit(
        &mut self,
        fit: Fit,
        mut accept: impl FnMut(Candidate, &Above<'_, 'p>) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        let (above, list) = (Above { pool: self.pool, list: &self.list, rb: &self.rb }, &self.list);
        let vmas = used(self.pool, list.front(), |slot| list.next(slot));
        self.gaps.lowest_fit(fit, vmas, |gap| accept(gap, &above))
    }
}

/// Tells which VMA is above a gap.
pub(super) struct Above<'s, 'p> {
    pool: &'p VmaPool<'p>,
    list: &'s IndexList<&'p [VmaSlot], ByAddress>,
    rb: &'s IndexTree<&'p [VmaNode], MmRb>,
}

impl Above<'_, '_> {
    /// What the gap index says of the VMA above the gap that ends there, if it is so.
    #[inline]
    fn guess(&self, end: VirtAddr, above: Option<Slot>) -> Option<Slot> {
        let begins_there = |&slot: &Slot| self.pool.node(slot).start() == end;
        above.filter(|&slot| self.pool.at(slot).owner() == self.list.id().get()).filter(begins_there)
    }

    /// The VMA above a gap, if there is one.
    #[inline]
    pub(super) fn find(&self, gap: Candidate) -> Option<Slot> {
        let search = || self.rb.search(|vma| hold(vma, gap.gap().end())).found_or_after();
        self.guess(gap.gap().end(), gap.above()).or_else(search)
    }
}

/// Where VMAs lie, from one on.
fn used<'p>(
    pool: &'p VmaPool<'p>,
    from: Option<Slot>,
    step: impl Fn(Slot) -> Option<Slot>,
) -> impl Iterator<Item = Used> {
    core::iter::successors(from, move |&slot| step(slot))
        .map(|slot| Used { range: pool.node(slot).range(), slot: Some(slot) })
}

impl core::fmt::Debug for VmaSet<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter().map(|(_, vma)| vma)).finish()
    }
}

/// How a VMA lies to an address; equal if it holds that, so that a search may stop there.
#[inline]
pub(super) fn hold(vma: &VmaNode, addr: VirtAddr) -> Lies {
    let (start, end, addr) = (vma.start().get(), vma.end().get(), addr.get());
    // Which side it lies on is anybody's guess: so whether it holds the address is one comparison, in which no branch on the side can hide.
    Lies { there: addr.wrapping_sub(start) < end.wrapping_sub(start), below: end <= addr }
}

/// The set knows what is on its list and its tree; an error means that they were corrupted.
pub(super) fn sound<T>(result: Result<T, LinkError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("the VMAs of an address space are corrupted: {error}"),
    }
}
