//! Who owns the anonymous pages of a VMA, as far as merging depends on it.
//!
//! A VMA that gets its first anonymous page gets an [`AnonVma`]. Parts of a split VMA keep the one they had; a child gets
//! one of its own for each VMA, below its parent's. Two VMAs merge only if one [`AnonVma`] can serve both, and a VMA
//! that was inherited does not lend its own to a neighbour, so that looking for who maps a parent's page visits no more VMAs
//! than it must.
//!
//! This module holds identity and lineage, which is all that a layout depends on; the owners themselves are the
//! [`rmap`](crate::rmap) room's.

use crate::rmap::AnonVmaId;

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

/// How a slot keeps an owner: the identity in the lower 32 bits of a word, the lineage in the bit above them.
pub(super) mod packed {
    use super::{AnonVma, AnonVmaId, Lineage};

    const INHERITED: u64 = 1 << 32;

    pub(in crate::mm) fn pack(anon: Option<AnonVma>) -> u64 {
        match anon {
            None => 0,
            Some(anon) => u64::from(anon.id.get()) | if anon.is_inherited() { INHERITED } else { 0 },
        }
    }

    pub(in crate::mm) fn unpack(raw: u64) -> Option<AnonVma> {
        let id = AnonVmaId::new(raw as u32)?;
        let lineage = if raw & INHERITED != 0 { Lineage::Inherited } else { Lineage::Own };
        Some(AnonVma { id, lineage })
    }
}
