//! When neighbours become one VMA: pure rules over values. The [room](super) draws them.
//!
//! # Linux
//! `vma_merge_new_range`, `vma_merge_existing_range` and what they call, in `mm/vma.c` (6.18).

use super::anon::AnonVma;
use super::vma::{Backing, Vma, pgoff_after};
use crate::addr::{PAGE_SHIFT, PgOff, VirtAddr};
use crate::flags::VmFlags;

/// A range that is to look like this.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "vma_merge_struct")]
pub(crate) struct Proposal {
    pub(crate) start: VirtAddr,
    pub(crate) end: VirtAddr,
    pub(crate) flags: VmFlags,
    pub(crate) pgoff: PgOff,
    pub(crate) backing: Backing,
    pub(crate) anon: Option<AnonVma>,
    /// Whether a VMA stands behind it, whose lineage counts.
    pub(crate) source: Source,
}

/// Whether a VMA stands behind a [`Proposal`], besides the neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// None: the range is new.
    None,
    /// The one that changes, or that is moved there.
    Vma,
}

impl Proposal {
    /// `vma` as a proposal: the part that changes, or its copy elsewhere.
    pub(crate) fn of(vma: &Vma) -> Self {
        Self {
            start: vma.start,
            end: vma.end,
            flags: vma.flags,
            pgoff: vma.pgoff,
            backing: vma.backing,
            anon: vma.anon,
            source: Source::Vma,
        }
    }
}

/// With which neighbours a range merges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Merge {
    Neither,
    Prev,
    Next,
    Both,
}

/// Which neighbours merging may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    BothSides,
    OnlyPrev,
    Neither,
}

/// With which neighbours `new` merges. `prev` and `next` are the nearest VMAs below and above, touching or not.
pub(crate) fn merge(prev: Option<&Vma>, next: Option<&Vma>, new: &Proposal, reach: Reach) -> Merge {
    if reach == Reach::Neither || new.flags.intersects(VmFlags::SPECIAL) {
        return Merge::Neither;
    }
    let prev = prev.filter(|prev| merges_after(prev, new));
    let next = next
        .filter(|next| reach == Reach::BothSides && merges_before(new, next))
        .filter(|next| prev.is_none_or(|prev| same_or_none(prev.anon, next.anon)));
    match (prev, next) {
        (None, None) => Merge::Neither,
        (Some(_), None) => Merge::Prev,
        (None, Some(_)) => Merge::Next,
        (Some(_), Some(_)) => Merge::Both,
    }
}

#[doc(alias = "can_vma_merge_after")]
fn merges_after(prev: &Vma, new: &Proposal) -> bool {
    prev.end == new.start
        && alike(prev, new)
        && anon_compatible(prev, new)
        && pgoff_after(prev.pgoff, prev.pages()) == new.pgoff
}

#[doc(alias = "can_vma_merge_before")]
fn merges_before(new: &Proposal, next: &Vma) -> bool {
    let pages = (new.end.get() - new.start.get()) >> PAGE_SHIFT;
    next.start == new.end
        && alike(next, new)
        && anon_compatible(next, new)
        && pgoff_after(new.pgoff, pages) == next.pgoff
}

#[doc(alias = "is_mergeable_vma")]
fn alike(vma: &Vma, new: &Proposal) -> bool {
    (vma.flags ^ new.flags).difference(VmFlags::STICKY).is_empty() && vma.backing == new.backing
}

/// Whether one owner can serve `target` and the proposal.
///
/// An inherited owner is not lent to memory that has none: its chain leads to the parents, and every fault and every
/// reverse look-up would pay for it.
#[doc(alias = "is_mergeable_anon_vma")]
fn anon_compatible(target: &Vma, new: &Proposal) -> bool {
    match (target.anon, new.anon) {
        (None, Some(anon)) => new.source == Source::None || !anon.is_inherited(),
        (Some(anon), None) => !anon.is_inherited(),
        (ours, theirs) => same(ours, theirs),
    }
}

fn same_or_none(a: Option<AnonVma>, b: Option<AnonVma>) -> bool {
    a.is_none() || b.is_none() || same(a, b)
}

fn same(a: Option<AnonVma>, b: Option<AnonVma>) -> bool {
    a.map(AnonVma::id) == b.map(AnonVma::id)
}

/// Whether `lower` and `upper` would have been merged when one of them came to be. No two such neighbours exist,
/// except where something that merges nothing has made them alike.
pub(crate) fn would_merge(lower: &Vma, upper: &Vma) -> bool {
    merge(Some(lower), None, &Proposal::of(upper), Reach::OnlyPrev) == Merge::Prev
}

/// Whether `b` may use the owner of `a`'s anonymous pages when it is first touched (or the other way round), so that
/// the two merge as soon as their protections are alike.
///
/// # Linux
/// `anon_vma_compatible` in `mm/vma.c`.
pub(crate) fn may_share_anon(a: &Vma, b: &Vma) -> bool {
    a.end == b.start
        && a.backing == b.backing
        && (a.flags ^ b.flags).difference(VmFlags::ACCESS | VmFlags::STICKY).is_empty()
        && pgoff_after(a.pgoff, a.pages()) == b.pgoff
}
