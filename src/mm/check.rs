//! Recounts an address space from scratch.

use super::gap::GapFault;
use super::limits::Totals;
use super::merge::would_merge;
use super::set::VmaSet;
use super::space::Mm;
use super::vma::Vma;
use crate::addr::{PAGE_SIZE_U64, VirtAddr};
use crate::collections::{ListFault, TreeFault};
use crate::flags::VmFlags;

/// What is wrong with an address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Violation {
    /// A VMA is empty, inverted, unaligned or outside the user's addresses.
    Range,
    /// Two VMAs overlap or are out of order.
    Order,
    /// The list is broken.
    List(ListFault),
    /// The tree is broken.
    Tree(TreeFault),
    /// The root that look-ups without the lock begin with is not that of the tree.
    Root,
    /// The list and the tree hold different VMAs, or in another order.
    ListAndTree,
    /// The gap index is broken, or not what the VMAs leave free.
    Gaps(GapFault),
    /// A slot on the list belongs to another address space, or to none.
    Owner,
    /// A VMA allows more than it may be given.
    Ceiling,
    /// A shared VMA may be made writable, though its file was not opened for writing.
    Opening,
    /// Two neighbours are alike and were not merged.
    Unmerged,
    /// A sum is not the sum over the VMAs.
    Totals,
    /// A VMA with an owner of anonymous pages is on no owner's list, or one without is.
    Anon,
    /// One of the VMAs found last is not one of this address space.
    Cache,
}

impl core::fmt::Display for Violation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Range => "a VMA is empty, inverted, unaligned or outside the user's addresses",
            Self::Order => "two VMAs overlap or are out of order",
            Self::List(fault) => return write!(f, "the list of VMAs is broken: {fault:?}"),
            Self::Tree(fault) => return write!(f, "the tree of VMAs is broken: {fault:?}"),
            Self::Root => "the root that look-ups without the lock begin with is not that of the tree",
            Self::ListAndTree => "the list and the tree hold different VMAs, or in another order",
            Self::Gaps(fault) => return write!(f, "the gap index is wrong: {fault:?}"),
            Self::Owner => "a slot on the list belongs to another address space, or to none",
            Self::Ceiling => "a VMA allows more than it may be given",
            Self::Opening => "a shared VMA may be made writable, though its file was not opened for writing",
            Self::Unmerged => "two neighbours are alike and were not merged",
            Self::Totals => "a sum is not the sum over the VMAs",
            Self::Anon => "a VMA with an owner of anonymous pages is on no owner's list, or one without is",
            Self::Cache => "one of the VMAs found last is not one of this address space",
        })
    }
}

impl core::error::Error for Violation {}

impl VmaSet<'_> {
    /// Compares the list, the tree and what was found last with each other.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(super) fn check_links(&self) -> Result<(), Violation> {
        self.list.check().map_err(Violation::List)?;
        self.rb.check().map_err(Violation::Tree)?;
        if self.shared().root() != self.rb.root() {
            return Err(Violation::Root);
        }
        if !self.iter().map(|(slot, _)| slot).eq(self.rb.iter()) {
            return Err(Violation::ListAndTree);
        }
        let mut end = VirtAddr::ZERO;
        for (slot, vma) in self.iter() {
            if vma.start >= vma.end || vma.end > self.space().end() {
                return Err(Violation::Range);
            }
            if vma.start < end {
                return Err(Violation::Order);
            }
            if !self.owns(slot) {
                return Err(Violation::Owner);
            }
            end = vma.end;
        }
        let recent = self.shared().recent();
        let is_right = |slot| self.owns(slot) && recent.names_rightly(slot, self.node(slot).range());
        if !recent.slots().all(is_right) {
            return Err(Violation::Cache);
        }
        Ok(())
    }

    /// Compares the gap index with what the VMAs leave free.
    pub(super) fn check_gaps(&self) -> Result<(), Violation> {
        self.gaps.check(self.used()).map_err(Violation::Gaps)
    }
}

impl Mm<'_> {
    /// Recounts everything.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), Violation> {
        self.set.check_links()?;
        let floor = VirtAddr::from(self.sysctl().dac_mmap_min_addr);
        let mut totals = Totals::default();
        let mut below: Option<Vma> = None;
        for (slot, vma) in self.set.iter() {
            let aligned = (vma.start.get() | vma.end.get()) % PAGE_SIZE_U64 == 0;
            if !aligned || vma.start < floor {
                return Err(Violation::Range);
            }
            if !vma.flags.is_within_ceiling() {
                return Err(Violation::Ceiling);
            }
            let writes = vma.flags.intersects(VmFlags::SHARED | VmFlags::MAYWRITE);
            let read_only = vma.backing.file().is_some_and(|file| file.read_only);
            if vma.flags.contains(VmFlags::MAYSHARE) && read_only && writes {
                return Err(Violation::Opening);
            }
            let alike = below.is_some_and(|below| would_merge(&below, &vma));
            if alike && !self.set.at(slot).has_seam() {
                return Err(Violation::Unmerged);
            }
            below = Some(vma);
            if self.set.at(slot).rmap_links().is_on_anon() != vma.anon.is_some() {
                return Err(Violation::Anon);
            }
            totals.add(&Totals::of_vma(&vma));
        }
        self.set.check_gaps()?;
        if totals != self.totals {
            return Err(Violation::Totals);
        }
        Ok(())
    }
}
