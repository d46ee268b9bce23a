//! Recounts who owns anonymous pages.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use super::{AnonVmaId, AnonVmas, anon_link};
use crate::collections::{ListFault, Slot};
use crate::rmap::RmapNodes;

/// What is wrong with the owners of anonymous pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AnonFault {
    /// The list of an owner's VMAs is broken, or has a VMA that is another's.
    Vmas(AnonVmaId, ListFault),
    /// The list of an owner's children is broken, or has one that is another's.
    Children(AnonVmaId, ListFault),
    /// An owner and its parent are of different families.
    Family(AnonVmaId),
    /// An owner has neither a VMA nor a page.
    Empty(AnonVmaId),
    /// There are more or fewer owners than were given out.
    Count,
    /// A VMA with an owner is not on its list, or the other way round.
    Unlisted,
    /// An owner says that it has so many pages, and so many were found.
    Pages(AnonVmaId, u32, u32),
}

impl core::fmt::Display for AnonFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Vmas(id, fault) => write!(f, "the VMAs of owner {}: {fault}", id.get()),
            Self::Children(id, fault) => write!(f, "the owners below {}: {fault}", id.get()),
            Self::Family(id) => write!(f, "owner {} and its parent are of different families", id.get()),
            Self::Empty(id) => write!(f, "owner {} has neither a VMA nor a page", id.get()),
            Self::Count => f.write_str("there are more or fewer owners than were given out"),
            Self::Unlisted => f.write_str("a VMA with an owner is not on its list, or one without is on one"),
            Self::Pages(id, says, found) => {
                write!(f, "owner {} says that it has {says} pages, and {found} were found", id.get())
            }
        }
    }
}

impl core::error::Error for AnonFault {}

impl AnonVmas<'_> {
    /// Recounts everything, while nobody changes anything. `owner_of` answers for each VMA whose list it should be on;
    /// `owned` is how many have an owner.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(
        &self,
        nodes: &dyn RmapNodes,
        owner_of: impl Fn(Slot) -> Option<AnonVmaId>,
        owned: u64,
    ) -> Result<(), AnonFault> {
        let (mut used, mut listed) = (0, 0);
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(id) = Slot::from_index(index).map(AnonVmaId) else { break };
            let family = node.family.load(Acquire);
            if family == 0 {
                continue;
            }
            used += 1;
            listed += u64::from(node.vmas.len());
            node.vmas.check(anon_link(nodes)).map_err(|fault| AnonFault::Vmas(id, fault))?;
            if let Some(slot) = node.vmas.iter(anon_link(nodes)).find(|&slot| owner_of(slot) != Some(id)) {
                return Err(AnonFault::Vmas(id, ListFault::Foreign(slot)));
            }
            node.children.check(self.sibling()).map_err(|fault| AnonFault::Children(id, fault))?;
            for child in node.children.iter(self.sibling()) {
                let below = &self.nodes[child.index()];
                if below.parent() != Some(id.0) {
                    return Err(AnonFault::Children(id, ListFault::Foreign(child)));
                }
                if below.family.load(Acquire) != family {
                    return Err(AnonFault::Family(AnonVmaId(child)));
                }
            }
            if node.sibling.is_linked() != node.parent().is_some() {
                return Err(AnonFault::Family(id));
            }
            if node.vmas.is_empty() && node.pages.load(Relaxed) == 0 {
                return Err(AnonFault::Empty(id));
            }
        }
        if used != self.used() {
            return Err(AnonFault::Count);
        }
        if listed == owned { Ok(()) } else { Err(AnonFault::Unlisted) }
    }

    /// Begins to recount pages: none was met yet. One recount runs at a time.
    pub(crate) fn begin_recount(&self) {
        self.nodes.iter().for_each(|node| node.met.store(0, Relaxed));
    }

    /// Notes that a recount has met a page of this owner; `false` if there is no such owner.
    #[must_use]
    pub(crate) fn meet_page(&self, id: AnonVmaId) -> bool {
        let node = self.node(id).filter(|node| node.family.load(Acquire) != 0);
        node.map(|node| node.met.fetch_add(1, Relaxed)).is_some()
    }

    /// Compares what was met with what the owners say.
    ///
    /// # Errors
    /// [`AnonFault::Pages`] for the first owner with more or fewer.
    pub(crate) fn end_recount(&self) -> Result<(), AnonFault> {
        for (index, node) in self.nodes.iter().enumerate() {
            let (says, met) = (node.pages.load(Relaxed), node.met.load(Relaxed));
            if let Some(slot) = Slot::from_index(index).filter(|_| says != met) {
                return Err(AnonFault::Pages(AnonVmaId(slot), says, met));
            }
        }
        Ok(())
    }
}
