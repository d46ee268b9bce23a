//! Frames: the memory map, zones, the buddy allocator and what stands before it.
//!
//! ```text
//!  alloc_pages, free_pages          checked; a pin says which CPU asks
//!    CpuPages                       a CPU's own magazines: no lock, no atomic read-modify-write
//!      Depot                        a zone's full magazines
//!        Buddy                      free lists by order and migrate type, split and merged
//!          DeferredLists            freed blocks whose merge is put off
//!            MemMap                 the pages (32 bytes a frame) and page blocks of a zone
//! ```
//!
//! A request looks through a [zonelist](GfpFlags): nearest node first, highest allowed zone first. A zone may be used
//! while its free frames stay above a watermark that depends on the request's rights. Before a request fails, the lists of
//! all CPUs and the depots are drained and everything is merged; it fails only if it would fail with every merge done.
//!
//! [`Phys`] takes no platform parameter: what it needs of one it asks of the [`CpuPin`].

mod alloc;
mod boot;
mod buddy;
mod bulk;
mod check;
mod cpu_pages;
mod deferred;
mod depot;
mod drain;
mod error;
mod exact;
mod fail;
mod free;
mod free_area;
#[cfg(all(test, loom))]
mod gate_model;
mod kmap;
mod mem_map;
mod migrate;
mod node;
mod owner;
mod page;
mod range;
mod settings;
mod source;
mod stat;
mod watermark;
mod zone;

pub use boot::{Config, Plan, ZoneLimits};
pub use check::CheckError;
pub use deferred::{DeferredBound, Merging};
pub use error::{AllocError, FreeError, InitError};
pub use fail::FailRule;
pub use kmap::{Kmap, KmapError};
pub use migrate::MigrateType;
pub use node::{LOCAL_DISTANCE, MAX_NODES, Node, REMOTE_DISTANCE};
pub(crate) use page::PoisonNote;
pub use page::{Page, PageState};
pub use source::{NoReclaim, PageSource};
pub use stat::{BuddyEvents, CpuPagesStat, ZoneStat};
pub use watermark::{WatermarkConfig, Watermarks};
pub use zone::{Zone, ZoneId, ZoneKind, ZoneSpan};

pub(crate) use boot::{Carver, Sizes};
pub(crate) use cpu_pages::Gate;
pub(crate) use drain::Patience;
pub(crate) use free_area::PageList;

#[cfg(doc)]
use crate::flags::GfpFlags;
#[cfg(doc)]
use crate::platform::CpuPin;

use crate::addr::Pfn;
use crate::collections::Slot;
use crate::sync::SpinLock;

use cpu_pages::{CpuPages, CpuSlot};
use fail::FaultInjector;
use kmap::KmapSlots;
use mem_map::Sections;
use node::Zonelists;
use settings::Settings;

/// The frames of a machine.
#[derive(Debug)]
pub struct Phys<'m> {
    /// Which platform the frames belong to: [`CpuPin::platform_id`](crate::platform::CpuPin).
    platform: usize,
    sections: Sections<'m>,
    zones: &'m [Zone<'m>],
    nodes: &'m [Node],
    zonelists: Zonelists<'m>,
    cpus: &'m [CpuSlot],
    kmaps: &'m [KmapSlots],
    /// What each CPU keeps of each zone: a CPU's of all zones, then the next CPU's.
    cpu_pages: &'m [CpuPages],
    /// The migrate type by a request's [mobility bits](GfpFlags::mobility_bits). All requests count as unmovable where there are too few page blocks to keep the types
    /// apart; the lists of other types then stay empty. Both flags at once name lists that are always empty.
    migrate_of: [Option<MigrateType>; 4],
    settings: SpinLock<Settings>,
    faults: FaultInjector,
}

impl<'m> Phys<'m> {
    /// Whether a pin is of the platform that the frames belong to. Not asked on the fast path.
    fn owns(&self, pin: &crate::platform::CpuPin<'_>) -> bool {
        pin.platform_id() == self.platform
    }

    /// The populated zones, by node and kind.
    pub fn zones(&self) -> &'m [Zone<'m>] {
        self.zones
    }

    /// The nodes, those without memory included.
    pub fn nodes(&self) -> &'m [Node] {
        self.nodes
    }

    /// How many CPUs were given at boot.
    pub fn cpu_count(&self) -> usize {
        self.cpus.len()
    }

    /// What is known of a frame; `None` for one without metadata.
    ///
    /// # Linux
    /// `pfn_to_page` after `pfn_valid`.
    #[inline]
    #[doc(alias = "pfn_to_page")]
    pub fn page(&self, pfn: Pfn) -> Option<&'m Page> {
        Some(self.sections.find(pfn)?.1)
    }

    /// How many frames have metadata, those in holes of page blocks included: the numbers that [`slot_of`](Self::slot_of) answers with are
    /// below it. Whoever keeps something for each frame needs so many places.
    pub fn slots(&self) -> usize {
        self.sections.pages.len()
    }

    /// The number of a frame among all frames with metadata; `None` for one without.
    #[inline]
    pub fn slot_of(&self, pfn: Pfn) -> Option<Slot> {
        Slot::new(self.sections.find(pfn)?.0)
    }

    /// The frame with this number, and what is known of it; `None` if there are not so many.
    #[inline]
    pub fn at_slot(&self, slot: Slot) -> Option<(Pfn, &'m Page)> {
        let page = self.sections.pages.get(slot.index())?;
        Some((self.sections.pfn(slot.get()), page))
    }

    /// The zone that a frame belongs to; `None` for one without metadata.
    #[doc(alias = "page_zone")]
    pub fn zone_of(&self, pfn: Pfn) -> Option<&'m Zone<'m>> {
        self.zone(self.page(pfn)?.zone())
    }

    /// A zone by its number.
    #[inline]
    pub fn zone(&self, id: ZoneId) -> Option<&'m Zone<'m>> {
        self.zones.get(usize::from(id.get()))
    }

    /// The first frame of the block that holds a frame, free or not; `None` for a frame that no block holds.
    ///
    /// Found by looking at the at most ten places where such a block may begin, so that tail pages need no link.
    ///
    /// # Linux
    /// `compound_head` in `include/linux/page-flags.h`.
    #[doc(alias = "compound_head")]
    pub fn head_of(&self, pfn: Pfn) -> Option<Pfn> {
        let (index, page) = self.sections.find(pfn)?;
        let zone = self.zone(page.zone())?;
        Some(zone.pfn(zone.map.head_of(index)?.0))
    }

    /// The managed frames, free or not.
    pub(crate) fn managed_frames(&self) -> impl Iterator<Item = Pfn> {
        let is_managed = |zone: &Zone<'_>, index| {
            !matches!(zone.map.page(index).state(), PageState::Absent | PageState::Reserved)
        };
        let managed = move |zone: &'m Zone<'m>| {
            zone.map.own().filter(move |&index| is_managed(zone, index)).map(|index| zone.pfn(index))
        };
        self.zones.iter().flat_map(managed)
    }

    /// Managed frames.
    pub fn managed_pages(&self) -> u64 {
        self.zones.iter().map(|zone| zone.span().managed_pages).sum()
    }

    /// Free pages, deferred ones included; those on CPUs' lists are not.
    pub fn free_pages_total(&self) -> u64 {
        self.zones.iter().map(Zone::free_pages).sum()
    }

    /// Merges all that waits for its merge, in all zones.
    pub fn coalesce(&self, pin: &crate::platform::CpuPin<'_>) {
        for zone in self.zones {
            zone.coalesce(pin);
        }
    }
}
