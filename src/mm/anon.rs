//! Who owns the anonymous pages of a VMA, as far as merging depends on it.
//!
//! A VMA that gets its first anonymous page gets an [`AnonVma`]. Parts of a split VMA keep the one they had; a child gets
//! one of its own for each VMA, chained to its parent's. Two VMAs merge only if one [`AnonVma`] can serve both, and a VMA
//! that was inherited does not lend its own to a neighbour, so that a parent's pages do not drag ever more chains along.
//!
//! This module holds identity and lineage, which is all that a layout depends on; it is the only place that makes, copies
//! and drops them, so that the owner of the chains themselves has one door to stand at.

use core::num::NonZeroU32;
use core::sync::atomic::{AtomicU32, Ordering};

/// The anonymous pages' owner: two VMAs with equal ones share it.
///
/// # Linux
/// `vma->anon_vma` and `vma->anon_vma_chain` (`include/linux/rmap.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "anon_vma")]
pub struct AnonVma {
    id: AnonVmaId,
    lineage: Lineage,
}

/// Names an owner of anonymous pages, among all address spaces of one memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AnonVmaId(NonZeroU32);

/// Whether the chain of a VMA holds more than its own owner.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lineage {
    /// Only its own (Linux: `list_is_singular(&vma->anon_vma_chain)`).
    Own,
    /// Also those of the parents that it was copied from at fork.
    Inherited,
}

impl AnonVma {
    /// The owner with this identity and lineage.
    pub const fn new(id: AnonVmaId, lineage: Lineage) -> Self {
        Self { id, lineage }
    }

    /// Its identity.
    pub const fn id(self) -> AnonVmaId {
        self.id
    }

    /// Whether the chain holds only this owner.
    pub const fn lineage(self) -> Lineage {
        self.lineage
    }

    /// Whether the VMA was copied by fork.
    #[doc(alias = "vma_is_fork_child")]
    pub const fn is_inherited(self) -> bool {
        matches!(self.lineage, Lineage::Inherited)
    }
}

impl AnonVmaId {
    /// The raw number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// Gives out identities. One serves all address spaces of a memory.
#[derive(Debug)]
pub struct AnonIds(AtomicU32);

impl AnonIds {
    /// Nothing given out yet.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// A new identity. After 2^32 of them old ones come again; Linux's come again sooner, being addresses.
    pub fn next(&self) -> AnonVmaId {
        loop {
            // Only the value matters, no other memory is published with it.
            let id = self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if let Some(id) = NonZeroU32::new(id) {
                return AnonVmaId(id);
            }
        }
    }

    /// A new owner that nothing was inherited from.
    pub fn fresh(&self) -> AnonVma {
        AnonVma::new(self.next(), Lineage::Own)
    }

    /// The owner that a child's copy of a VMA gets.
    #[doc(alias = "anon_vma_fork")]
    pub fn forked(&self, parent: Option<AnonVma>) -> Option<AnonVma> {
        parent.map(|_| AnonVma::new(self.next(), Lineage::Inherited))
    }
}

impl Default for AnonIds {
    fn default() -> Self {
        Self::new()
    }
}

/// How a slot keeps an owner: the identity in one word, the lineage in the top bit of nothing else.
pub(super) mod packed {
    use super::{AnonVma, AnonVmaId, Lineage};
    use core::num::NonZeroU32;

    const INHERITED: u64 = 1 << 32;

    pub(in crate::mm) fn pack(anon: Option<AnonVma>) -> u64 {
        match anon {
            None => 0,
            Some(anon) => u64::from(anon.id.get()) | if anon.is_inherited() { INHERITED } else { 0 },
        }
    }

    pub(in crate::mm) fn unpack(raw: u64) -> Option<AnonVma> {
        let id = AnonVmaId(NonZeroU32::new(raw as u32)?);
        let lineage = if raw & INHERITED != 0 { Lineage::Inherited } else { Lineage::Own };
        Some(AnonVma { id, lineage })
    }
}
