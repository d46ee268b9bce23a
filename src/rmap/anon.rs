//! Owners of anonymous pages, by lineage.

use core::sync::atomic::AtomicU32;

/// Room for an owner of anonymous pages.
#[derive(Debug, Default)]
#[doc(alias = "anon_vma")]
pub struct AnonNode {
    /// The next free one, plus one.
    free: AtomicU32,
}

impl AnonNode {
    /// Room for one.
    pub const fn new() -> Self {
        Self { free: AtomicU32::new(0) }
    }
}
