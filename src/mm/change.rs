//! Putting a range into an address space, and changing the flags of one that is there.

use super::anon::AnonVma;
use super::error::MmError;
use super::limits::Totals;
use super::merge::{Merge, Proposal, Reach, merge};
use super::pool::Reserved;
use super::set::{Beside, sound};
use super::space::Mm;
use super::tables::Tables;
use super::vma::{Vma, huge_page_around, pgoff_before};
use crate::addr::{VirtAddr, VirtRange};
use crate::collections::{LinkError, Slot};
use crate::flags::VmFlags;

/// A part of a VMA is to get other flags.
struct Change {
    slot: Slot,
    /// The VMA as it was.
    middle: Vma,
    /// The part of it that changes.
    part: Vma,
    flags: VmFlags,
    /// The VMA below, if the part reaches down to it.
    prev: Option<(Slot, Vma)>,
    /// The VMA above, if the part reaches up to it.
    next: Option<(Slot, Vma)>,
    merged: Merge,
}

impl Change {
    fn is_at_start(&self) -> bool {
        self.part.start == self.middle.start
    }

    /// How many VMAs there are more afterwards, if it merges with none.
    fn splits(&self) -> usize {
        match self.merged {
            Merge::Neither => {
                usize::from(!self.is_at_start()) + usize::from(self.part.end != self.middle.end)
            }
            Merge::Prev | Merge::Next | Merge::Both => 0,
        }
    }

    /// The neighbours that take the part over.
    const fn grows(&self) -> [Option<(Slot, Vma)>; 2] {
        match self.merged {
            Merge::Neither => [None, None],
            Merge::Prev => [self.prev, None],
            Merge::Next => [None, self.next],
            Merge::Both => [self.prev, self.next],
        }
    }
}

impl<'c> Mm<'c> {
    /// Takes slots for later.
    ///
    /// # Errors
    /// [`MmError::OutOfSlots`].
    pub(super) fn reserve(&self, n: usize) -> Result<Reserved<'c>, MmError> {
        Reserved::new(&self.context.pool, n)
    }

    /// Puts a VMA where nothing lies, right above `below`. Sums and gaps are noted apart.
    pub(super) fn insert(&mut self, tables: &mut impl Tables, below: Option<Slot>, slot: Slot, vma: &Vma) {
        self.set.insert(below, slot, vma);
        tables.open(slot, vma);
    }

    /// Takes a VMA out, which looked like `vma` last, and gives its slot back.
    pub(super) fn remove(&mut self, tables: &mut impl Tables, slot: Slot, vma: &Vma) {
        tables.close(slot, vma);
        self.set.remove(slot);
    }

    /// The neighbours of a range in which, as the caller has seen to, no VMA lies.
    pub(super) fn beside(&mut self, range: VirtRange) -> Beside {
        sound(self.set.beside(range).ok_or(LinkError::KeyExists))
    }

    /// Puts a new range where nothing lies, between its neighbours, as part of a neighbour or in a slot of its own, and adds it to the sums.
    /// Answers the VMA that it is part of, which may be larger. Cannot fail.
    ///
    /// # Linux
    /// `vma_merge_new_range` and `__mmap_new_vma` in `mm/vma.c`.
    pub(super) fn place_new(
        &mut self,
        tables: &mut impl Tables,
        new: &Proposal,
        beside: Beside,
        reach: Reach,
        spare: &mut Reserved<'c>,
    ) -> Slot {
        let vma = new.vma();
        let Beside { below: prev, above: next } = beside;
        // Only what touches can merge; of the rest nothing is read.
        let touches_below = prev.filter(|&prev| self.set.node(prev).end() == new.start);
        let touches_above = next.filter(|&next| self.set.node(next).start() == new.end);
        let get = |slot: Option<Slot>| slot.map(|slot| self.set.get(slot));
        let (below, above) = (get(touches_below), get(touches_above));
        let sticky = new.flags & VmFlags::STICKY;
        self.totals.add(&Totals::of_vma(&vma));
        if reach == Reach::BothSides {
            self.clear_seam(touches_above);
        }
        let slot = match (merge(below.as_ref(), above.as_ref(), new, reach), prev, next, below, above) {
            (Merge::Prev, Some(prev), _, Some(below), _) => {
                self.lend(prev, new.anon, sticky);
                self.set.resize(prev, below.start, new.end, below.pgoff);
                prev
            }
            (Merge::Next, _, Some(next), _, Some(above)) => {
                self.lend(next, new.anon, sticky);
                self.set.resize(next, new.start, above.end, new.pgoff);
                next
            }
            (Merge::Both, Some(prev), Some(next), Some(below), Some(above)) => {
                self.lend(prev, above.anon.or(new.anon), sticky | above.flags & VmFlags::STICKY);
                self.set.lock(prev);
                self.set.lock(next);
                tables.begin_change(&vma);
                self.remove(tables, next, &above);
                self.set.resize(prev, below.start, above.end, below.pgoff);
                tables.end_change(&vma);
                prev
            }
            _ => {
                let slot = spare.pop();
                self.insert(tables, prev, slot, &vma);
                slot
            }
        };
        self.set.note_used(vma.range(), slot);
        slot
    }

    /// Notes that a VMA and the one below were asked whether they merge: whatever left them apart before counts no more.
    fn clear_seam(&self, slot: Option<Slot>) {
        if let Some(slot) = slot {
            self.set.at(slot).clear_seam();
        }
    }

    /// Gives a VMA that is about to take over others' memory what it needs for that, while those still have it: an owner of
    /// anonymous pages goes with its last VMA.
    #[doc(alias = "dup_anon_vma")]
    fn lend(&mut self, slot: Slot, anon: Option<AnonVma>, sticky: VmFlags) {
        let vma = self.set.get(slot);
        self.set.set_attributes(slot, &Vma { flags: vma.flags | sticky, anon: vma.anon.or(anon), ..vma });
    }

    /// Gives `range`, a part of the VMA in `slot`, new flags: merges it with neighbours that have them, else splits it off.
    /// The sums follow. Answers the VMA that the range is part of then.
    ///
    /// # Errors
    /// [`MmError::TooManyVmas`], [`MmError::NotDivisible`] and [`MmError::OutOfSlots`] if it would have to be split off; then nothing has changed.
    /// (Linux may leave the first of two splits behind.)
    ///
    /// # Linux
    /// `vma_modify_flags` in `mm/vma.c`.
    pub(crate) fn modify_flags(
        &mut self,
        tables: &mut impl Tables,
        slot: Slot,
        range: VirtRange,
        flags: VmFlags,
    ) -> Result<Slot, MmError> {
        let change = self.plan_change(slot, range, flags);
        let splits = change.splits();
        self.may_split(&change.middle, range, splits)?;
        let mut spare = self.reserve(splits)?;
        self.clear_seam(Some(slot).filter(|_| change.is_at_start()));
        self.clear_seam(change.next.map(|(next, _)| next));
        self.split_huge_at(tables, slot, change.part.range());
        self.totals.sub(&Totals::of_vma(&change.part));
        self.totals.add(&Totals::of(flags, change.part.pages()));
        self.set.lock(slot);
        for (neighbour, _) in change.grows().into_iter().flatten() {
            self.set.lock(neighbour);
        }
        tables.begin_change(&change.middle);
        let modified = self.apply_change(tables, &change, &mut spare);
        tables.end_change(&change.middle);
        Ok(modified)
    }

    /// What giving a part of a VMA other flags comes to: with which neighbours it merges.
    fn plan_change(&self, slot: Slot, range: VirtRange, flags: VmFlags) -> Change {
        let middle = self.set.get(slot);
        let part = middle.part(range.start(), range.end());
        let prev = if part.start == middle.start { self.set.prev(slot) } else { None };
        let next = if part.end == middle.end { self.set.next(slot) } else { None };
        let with_copy = |slot: Option<Slot>| slot.map(|slot| (slot, self.set.get(slot)));
        let (prev, next) = (with_copy(prev), with_copy(next));
        let new = Proposal { flags, ..Proposal::of(&part) };
        let (below, above) = (prev.as_ref().map(|(_, vma)| vma), next.as_ref().map(|(_, vma)| vma));
        let merged = merge(below, above, &new, Reach::BothSides);
        Change { slot, middle, part, flags, prev, next, merged }
    }

    /// Whether a VMA may be split so many times, around `range`.
    ///
    /// # Errors
    /// In Linux's order, which splits first at the one end and then at the other: [`MmError::TooManyVmas`] where there is no room at all,
    /// [`MmError::NotDivisible`], [`MmError::TooManyVmas`] where there is room for one of two.
    fn may_split(&self, vma: &Vma, range: VirtRange, splits: usize) -> Result<(), MmError> {
        let room = u64::from(self.sysctl().max_map_count).saturating_sub(u64::from(self.map_count()));
        if splits == 0 {
            return Ok(());
        }
        if room == 0 {
            return Err(MmError::TooManyVmas);
        }
        vma.may_split_around(range)?;
        if room < splits as u64 { Err(MmError::TooManyVmas) } else { Ok(()) }
    }

    /// Changes borders and flags as planned. Answers the VMA that the part belongs to then.
    fn apply_change(&mut self, tables: &mut impl Tables, change: &Change, spare: &mut Reserved<'c>) -> Slot {
        let Change { slot, middle, part, flags, merged, .. } = *change;
        let sticky = flags & VmFlags::STICKY;
        match (merged, change.prev, change.next) {
            (Merge::Prev, Some((prev, below)), _) => {
                self.lend(prev, middle.anon, sticky);
                self.shrink_or_remove(tables, slot, &middle, &part);
                self.set.resize(prev, below.start, part.end, below.pgoff);
                prev
            }
            (Merge::Next, _, Some((next, above))) => {
                self.lend(next, middle.anon, sticky);
                self.shrink_or_remove(tables, slot, &middle, &part);
                self.set.resize(next, part.start, above.end, pgoff_before(above.pgoff, part.pages()));
                next
            }
            (Merge::Both, Some((prev, below)), Some((next, above))) => {
                self.lend(prev, above.anon.or(middle.anon), sticky | above.flags & VmFlags::STICKY);
                self.shrink_or_remove(tables, slot, &middle, &part);
                self.remove(tables, next, &above);
                self.set.resize(prev, below.start, above.end, below.pgoff);
                prev
            }
            _ => {
                self.split_off(tables, slot, &middle, &part, spare);
                self.set.set_flags(slot, flags);
                slot
            }
        }
    }

    /// Leaves no huge page across the borders that a VMA with anonymous pages is about to get.
    fn split_huge_at(&mut self, tables: &mut impl Tables, slot: Slot, part: VirtRange) {
        let vma = self.set.get(slot);
        let is_inside = |border: &VirtAddr| vma.start < *border && *border < vma.end;
        if vma.anon.is_none() || !vma.backing.is_anonymous() {
            return;
        }
        for border in [part.start(), part.end()].into_iter().filter(is_inside) {
            if huge_page_around(border).is_some_and(|page| page.start() < border) {
                // So that no fault makes one of small pages huge again before the border is there.
                self.set.lock(slot);
                tables.split_huge(border);
            }
        }
    }

    /// Takes `part`, which lies at one end of `middle` or is all of it, out of the slot; a neighbour takes it over.
    fn shrink_or_remove(&mut self, tables: &mut impl Tables, slot: Slot, middle: &Vma, part: &Vma) {
        if part.range() == middle.range() {
            self.remove(tables, slot, middle);
        } else if part.start == middle.start {
            self.set.resize(slot, part.end, middle.end, middle.pgoff_at(part.end));
        } else {
            self.set.resize(slot, middle.start, part.start, middle.pgoff);
        }
    }

    /// Leaves `part` in the slot and puts what lies below and above it into slots of their own.
    fn split_off(
        &mut self,
        tables: &mut impl Tables,
        slot: Slot,
        middle: &Vma,
        part: &Vma,
        spare: &mut Reserved<'c>,
    ) {
        let seam = self.set.at(slot).has_seam();
        self.set.resize(slot, part.start, part.end, part.pgoff);
        for rest in [middle.part(middle.start, part.start), middle.part(part.end, middle.end)] {
            if rest.start < rest.end {
                let new = spare.pop();
                let below = if rest.start == middle.start { self.set.prev(slot) } else { Some(slot) };
                self.insert(tables, below, new, &rest);
                if seam && rest.start == middle.start {
                    self.set.at(new).set_seam();
                }
            }
        }
    }
}

impl Proposal {
    /// The VMA that it becomes if it merges with none.
    pub(super) fn vma(&self) -> Vma {
        Vma {
            start: self.start,
            end: self.end,
            flags: self.flags,
            pgoff: self.pgoff,
            backing: self.backing,
            anon: self.anon,
        }
    }
}
