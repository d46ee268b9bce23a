//! Giving the entries of a range other bits.

use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::fence;

use super::{Groups, Reader, Stale, Walker, groups_len, is_plain};
use crate::addr::{Pfn, VirtAddr, VirtRange};
use crate::phys::PageSource;
use crate::table::format::{self, EntryFormat, Mapped, Pte, PteBits};
use crate::table::gather::TlbGather;
use crate::table::huge::HugeRef;
use crate::table::leaf::TableRef;
use crate::table::root::PageTable;

const CACHING: PteBits = PteBits::UNCACHED.union(PteBits::WRITE_COMBINING);

/// What entries that map frames are to say instead: some bits less, and then some more.
///
/// # Linux
/// `pte_modify` in `arch/*/include/asm/pgtable.h`, where what is not of the new protection stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(alias = "pte_modify")]
pub struct Change {
    /// What goes.
    pub clear: PteBits,
    /// What comes, also where it has just gone.
    pub set: PteBits,
}

impl Change {
    /// What becomes of these bits.
    #[inline]
    pub fn of(self, bits: PteBits) -> PteBits {
        (bits - self.clear) | self.set
    }
}

impl<S: PageSource, F: EntryFormat> PageTable<'_, S, F> {
    /// Changes the bits of all frames that a range maps. What hardware notes meanwhile is not lost. A huge entry that lies in the range in part is
    /// split first. What CPUs are to forget is noted in the gather: where a right, a mark of use or a kind of caching went.
    ///
    /// # Locking
    /// As [`unmap_range`](Self::unmap_range).
    ///
    /// # Linux
    /// `change_protection` in `mm/mprotect.c`.
    #[doc(alias = "change_protection")]
    pub fn protect_range(&self, range: VirtRange, gather: &mut TlbGather<'_, S>, change: Change) {
        self.protect(range, gather, Same::of::<F>(change), |_| change);
    }

    /// As [`protect_range`](Self::protect_range), by what `choose` answers for each entry that maps a frame.
    ///
    /// # Locking
    /// As [`unmap_range`](Self::unmap_range); `choose` is called with a table locked.
    ///
    /// # Linux
    /// `change_pte_range` in `mm/mprotect.c`, which asks `can_change_pte_writable` of each.
    #[doc(alias = "change_pte_range")]
    pub fn protect_with(
        &self,
        range: VirtRange,
        gather: &mut TlbGather<'_, S>,
        choose: impl FnMut(Mapped) -> Change,
    ) {
        self.protect(range, gather, Same::NEVER, choose);
    }

    #[inline]
    fn protect(
        &self,
        range: VirtRange,
        gather: &mut TlbGather<'_, S>,
        same: Same,
        choose: impl FnMut(Mapped) -> Change,
    ) {
        self.over(range, &mut Protector { gather, same, choose });
    }
}

/// Changes what a walk comes to.
struct Protector<'c, 'g, S: PageSource, C> {
    gather: &'c mut TlbGather<'g, S>,
    same: Same,
    choose: C,
}

impl<S: PageSource, F: EntryFormat, C: FnMut(Mapped) -> Change> Walker<F> for Protector<'_, '_, S, C> {
    #[inline]
    fn table(&mut self, table: &TableRef<'_, F>, rest: VirtRange) -> VirtAddr {
        protect_table(table, rest, self.gather, self.same, &mut self.choose)
    }

    #[inline]
    fn huge(&mut self, huge: HugeRef<'_, F>, rest: VirtRange) -> VirtAddr {
        protect_huge(huge, rest, self.gather, &mut self.choose)
    }
}

/// Whether CPUs that know the old entry must forget it.
#[inline]
fn is_stale(old: PteBits, new: PteBits) -> bool {
    let hidden = !old.contains(PteBits::PROT_NONE) && new.contains(PteBits::PROT_NONE);
    let lost = old - new - PteBits::SPECIAL;
    !old.contains(PteBits::PROT_NONE) && (hidden || !lost.is_empty() || (old ^ new).intersects(CACHING))
}

#[inline(never)]
fn protect_table<S: PageSource, F: EntryFormat>(
    table: &TableRef<'_, F>,
    rest: VirtRange,
    gather: &mut TlbGather<'_, S>,
    same: Same,
    choose: &mut impl FnMut(Mapped) -> Change,
) -> VirtAddr {
    if table.used() == 0 {
        return table.end();
    }
    let mut groups = table.groups(rest);
    // Release: who finds a changed entry finds what its frame held when it was mapped.
    fence(Release);
    let first = groups.next();
    groups.entries = same.change(groups.entries);
    let mut stale = Stale::NONE;
    if same.is_stale {
        stale.add_range(first, groups.next());
    }
    if !groups.is_done() {
        stale = protect_mixed(groups, stale, same, choose, PhantomData::<F>);
    }
    if let Some(stale) = stale.range(table) {
        gather.flush_range(stale);
    }
    table.end()
}

/// Changes entries of which anything may be, and those behind them; what is stale then.
#[inline(never)]
fn protect_mixed<F: EntryFormat>(
    mut groups: Groups<'_>,
    mut stale: Stale,
    same: Same,
    choose: &mut impl FnMut(Mapped) -> Change,
    _: PhantomData<F>,
) -> Stale {
    let mut changed = Changed::<F>::new();
    while !groups.is_done() {
        for (index, entry) in groups.take() {
            if changed.entry(entry, choose) {
                stale.add(index);
            }
        }
        let first = groups.next();
        groups.entries = same.change(groups.entries);
        if same.is_stale {
            stale.add_range(first, groups.next());
        }
    }
    stale
}

/// What a change is to entries that hardware sees and has nothing to note in, as a whole: a number of bits less and some more.
#[derive(Clone, Copy)]
struct Same {
    /// The bits of those for which this holds. All bits, which no entry has, if it holds for none.
    needed: u64,
    keep: u64,
    set: u64,
    /// Whether CPUs that know them must forget all of them.
    is_stale: bool,
}

impl Same {
    /// Changes whole groups that have what is needed; what is left from the first on that has not.
    #[inline]
    fn change(self, entries: &[AtomicU64]) -> &[AtomicU64] {
        // Mostly nothing comes.
        if self.set == 0 {
            change_groups(entries, self.needed, |raw| raw & self.keep)
        } else {
            change_groups(entries, self.needed, |raw| raw & self.keep | self.set)
        }
    }

    const NEVER: Self = Self { needed: u64::MAX, keep: u64::MAX, set: 0, is_stale: false };

    /// Only where the entries can be read before and after can they be changed without a look at each; and only by a bit that each of them has
    /// and loses can all of them be known to be stale.
    fn of<F: EntryFormat>(change: Change) -> Self {
        let clear = change.clear - change.set - PteBits::PROT_NONE;
        if clear.contains(PteBits::READ)
            || change.set.contains(PteBits::PROT_NONE)
            || (clear | change.set).intersects(CACHING)
        {
            return Self::NEVER;
        }
        let raw = |bits: PteBits| F::encode(0, Pte::mapping(Pfn::ZERO, PteBits::READ | bits));
        let plain = raw(PteBits::empty());
        let lost = clear - PteBits::SPECIAL;
        let mark = lost.iter().map(|bit| raw(bit) & !plain).find(|&mark| mark != 0);
        if mark.is_none() && !lost.is_empty() {
            return Self::NEVER;
        }
        let changed = raw(clear | change.set) ^ plain;
        let same = Self {
            needed: F::SETTLED | plain & raw(PteBits::EXEC) | mark.unwrap_or(0),
            keep: !changed,
            set: raw(change.set) & changed,
            is_stale: mark.is_some(),
        };
        // What has a key lacks the right to write, by which the others are known then.
        if lost.contains(PteBits::WRITE) || same.is_right_for_locked::<F>(change) {
            same
        } else {
            Self::NEVER
        }
    }

    /// Whether it is right for what user code may execute alone, too, or not for that: a format may give that a key, which goes with the first right
    /// besides, and with the last.
    fn is_right_for_locked<F: EntryFormat>(self, change: Change) -> bool {
        let locked = PteBits::EXEC | PteBits::USER | PteBits::ACCESSED | PteBits::DIRTY;
        let raw = F::encode(0, Pte::mapping(Pfn::ZERO, locked));
        let Pte::Present(old) = F::decode(0, raw) else { return true };
        let new = F::encode(0, Pte::Present(Mapped { bits: change.of(old.bits), ..old }));
        raw & self.needed != self.needed || raw & self.keep | self.set == new
    }
}

/// As [`Same::change`]; a function of its own, so that all that the loop uses is in registers.
#[inline(never)]
fn change_groups(entries: &[AtomicU64], needed: u64, change: impl Fn(u64) -> u64) -> &[AtomicU64] {
    let changed = groups_len(entries, |group, _| {
        let raws = group.each_ref().map(|entry| entry.load(Relaxed));
        let is_alike = raws.iter().fold(needed, |common, raw| common & raw) == needed;
        if is_alike {
            group.iter().zip(raws).for_each(|(entry, raw)| entry.store(change(raw), Relaxed));
        }
        is_alike
    });
    entries.get(changed..).unwrap_or_default()
}

/// What the last change made of an entry that hardware sees, besides its frame: mostly the next one is alike.
struct Changed<F> {
    reader: Reader<F>,
    change: Change,
    old: u64,
    new: u64,
    is_stale: bool,
}

impl<F: EntryFormat> Changed<F> {
    fn new() -> Self {
        Self { reader: Reader::new(), change: Change::default(), old: u64::MAX, new: 0, is_stale: false }
    }

    /// Changes one entry; whether CPUs that know the old one must forget it.
    #[inline]
    fn entry(&mut self, entry: &AtomicU64, choose: &mut impl FnMut(Mapped) -> Change) -> bool {
        let mut raw = entry.load(Relaxed);
        if raw == 0 {
            return false;
        }
        let Pte::Present(old) = self.reader.decode(raw) else { return false };
        let change = choose(old);
        loop {
            let Some((new, is_stale)) = self.of(raw, change) else { return false };
            if new == raw {
                return is_stale;
            }
            if !F::may_change(raw) {
                entry.store(new, Release);
            } else if let Err(seen) = entry.compare_exchange(raw, new, AcqRel, Acquire) {
                raw = seen;
                continue;
            }
            return is_stale;
        }
    }

    /// What becomes of an entry, and whether CPUs that know the old one must forget it; `None` for one without a frame.
    #[inline]
    fn of(&mut self, raw: u64, change: Change) -> Option<(u64, bool)> {
        if raw & !F::FRAME != self.old || change != self.change {
            let old = self.reader.decode(raw).mapped()?;
            let bits = change.of(old.bits);
            let (new, is_stale) = (F::encode(0, Pte::mapping(old.pfn, bits)), is_stale(old.bits, bits));
            if !is_plain(old.bits) || !is_plain(bits) {
                return Some((new, is_stale));
            }
            (self.change, self.is_stale) = (change, is_stale);
            (self.old, self.new) = (raw & !F::FRAME, new & !F::FRAME);
        }
        Some((raw & F::FRAME | self.new, self.is_stale))
    }
}

fn protect_huge<S: PageSource, F: EntryFormat>(
    huge: HugeRef<'_, F>,
    rest: VirtRange,
    gather: &mut TlbGather<'_, S>,
    choose: &mut impl FnMut(Mapped) -> Change,
) -> VirtAddr {
    let next = huge.end();
    let Some(span) = format::span(1, huge.base()).filter(|&span| rest.encloses(span)) else {
        return if huge.split_kept() { rest.start() } else { next };
    };
    let Some(change) = huge.get().mapped().map(choose) else { return next };
    let old = huge.update(|old| Mapped { bits: change.of(old.bits), ..old });
    if old.mapped().is_some_and(|old| is_stale(old.bits, change.of(old.bits))) {
        gather.flush_huge(span);
    }
    next
}
