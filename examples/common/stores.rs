//! Memory for address spaces, from the heap.
#![allow(dead_code, reason = "not everybody who shares this counts all kinds")]
#![allow(clippy::allow_attributes, reason = "expect would fail where all of it is used")]

use kernmm::mm::{GapRoom, MmSlot, MmStores, VmaNode, VmaSlot};
use kernmm::rmap::AnonNode;

/// Owns what an `MmContext` borrows.
pub(crate) struct Stores {
    mms: Vec<MmSlot>,
    vma_nodes: Vec<VmaNode>,
    vmas: Vec<VmaSlot>,
    anon_vmas: Vec<AnonNode>,
    gaps: Vec<GapRoom>,
}

fn some<T: Default>(n: usize) -> Vec<T> {
    (0..n).map(|_| T::default()).collect()
}

impl Stores {
    /// For so many VMAs, with as many owners of anonymous pages, in at most eight address spaces.
    pub(crate) fn new(vmas: usize, gaps: usize) -> Self {
        Self {
            mms: some(8),
            vma_nodes: some(vmas),
            vmas: some(vmas),
            anon_vmas: some(vmas),
            gaps: some(gaps),
        }
    }

    /// The same with so many owners of anonymous pages.
    pub(crate) fn with_anon_vmas(mut self, n: usize) -> Self {
        self.anon_vmas = some(n);
        self
    }

    /// The same with so many address spaces.
    pub(crate) fn with_mms(mut self, n: usize) -> Self {
        self.mms = some(n);
        self
    }

    pub(crate) fn lend(&self) -> MmStores<'_> {
        MmStores {
            mms: &self.mms,
            vma_nodes: &self.vma_nodes,
            vmas: &self.vmas,
            anon_vmas: &self.anon_vmas,
            gaps: &self.gaps,
        }
    }
}
