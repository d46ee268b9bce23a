//! Allocating a block.

use crate::addr::{PageOrder, Pfn};
use crate::flags::{GfpFlags, PageFlags};
use crate::platform::CpuPin;

use super::cpu_pages::{Chain, Magazines, list_number, list_of};
use super::error::AllocError;
use super::mem_map::SCATTERED;
use super::migrate::MigrateType;
use super::page::{BlockWord, Page, PageState};
use super::watermark::Reach;
use super::zone::{Zone, ZoneKind};
use super::{Patience, Phys};

/// What is asked for, with the flags taken apart.
#[derive(Clone, Copy)]
struct Request {
    order: PageOrder,
    highest: ZoneKind,
    migrate: MigrateType,
    gfp: GfpFlags,
    /// Whose zonelist is followed.
    node: u8,
}

impl Phys<'_> {
    /// Allocates a block of `2^order` frames, aligned to its size, from the caller's node or the nearest one that has it.
    ///
    /// Its first page has a reference count of 1 and, with [`GfpFlags::COMP`] and an order above 0, the flag
    /// [`PageFlags::HEAD`]. The contents are what the last owner left: [`GfpFlags::ZERO`], reclaim and retries are the façade's affair.
    ///
    /// # Errors
    /// [`AllocError::OutOfMemory`], [`AllocError::InvalidFlags`], [`AllocError::UnknownCpu`], [`AllocError::Injected`].
    ///
    /// # Locking
    /// None on the fast path; otherwise the zone's depot lock or lock, one after the other. Does not reclaim. With
    /// [`GfpFlags::DIRECT_RECLAIM`] it may wait for another CPU to drain its lists before it fails.
    ///
    /// # Linux
    /// `alloc_pages` in `mm/page_alloc.c`.
    #[inline]
    pub fn alloc_pages(&self, pin: &CpuPin<'_>, gfp: GfpFlags, order: PageOrder) -> Result<Pfn, AllocError> {
        match self.alloc_fast(pin, gfp, order) {
            Some(pfn) => Ok(pfn),
            None => self.alloc_near(pin, gfp, order),
        }
    }

    /// Allocates a block as [`alloc_pages`](Self::alloc_pages) does, from a given node or the nearest to it; with
    /// [`GfpFlags::THISNODE`] from that node alone.
    ///
    /// # Errors
    /// [`AllocError::UnknownNode`], and those of `alloc_pages`.
    ///
    /// # Linux
    /// `alloc_pages_node` in `include/linux/gfp.h`.
    pub fn alloc_pages_node(
        &self,
        pin: &CpuPin<'_>,
        node: u8,
        gfp: GfpFlags,
        order: PageOrder,
    ) -> Result<Pfn, AllocError> {
        if usize::from(node) >= self.nodes.len() {
            return Err(AllocError::UnknownNode);
        }
        let own = self.cpus.get(pin.cpu().index()).map(|slot| slot.node);
        if own == Some(node) {
            return self.alloc_pages(pin, gfp, order);
        }
        self.alloc_slow(pin, gfp, order, Some(node))
    }

    /// Takes a block from the CPU's own magazine of the first zone; `None` if anything is out of the ordinary.
    #[inline]
    fn alloc_fast(&self, pin: &CpuPin<'_>, gfp: GfpFlags, order: PageOrder) -> Option<Pfn> {
        let slot = self.cpus.get(pin.cpu().index())?;
        let place = slot.first[gfp.zone_bits()];
        let own = self.cpu_pages.get(place as usize).filter(|own| own.gate.is_open())?;
        let number = list_number(order, gfp.mobility_bits());
        let list = own.list(number);
        let (index, page) = list.pop(self.sections.pages)?;
        list.note_allocated();
        page.hand_out(BlockWord::of_list(PageState::Allocated, number), head_flag(gfp, order));
        Some(match own.shift {
            SCATTERED => self.sections.pfn(index),
            shift => Pfn::trusted(shift.wrapping_add(u64::from(index))),
        })
    }

    /// Takes a block from the first zone if that is well above its marks, else from wherever one may be had.
    #[cold]
    #[inline(never)]
    fn alloc_near(&self, pin: &CpuPin<'_>, gfp: GfpFlags, order: PageOrder) -> Result<Pfn, AllocError> {
        self.take_near(pin, gfp, order).map_or_else(|| self.alloc_slow(pin, gfp, order, None), Ok)
    }

    #[inline]
    fn take_near(&self, pin: &CpuPin<'_>, gfp: GfpFlags, order: PageOrder) -> Option<Pfn> {
        let zone_bits = gfp.zone_bits();
        let first = self.cpus.get(pin.cpu().index()).filter(|_| self.owns(pin))?.first_zone[zone_bits];
        let zone = self.zones.get(usize::from(first)).filter(|zone| zone.is_easy(zone_bits, order))?;
        if gfp.contains(GfpFlags::THISNODE) || self.faults.is_armed() {
            return None;
        }
        let migrate = self.migrate_type(gfp)?;
        let index = take_from(zone, pin, order, migrate)?;
        let word = BlockWord::new(PageState::Allocated, order, migrate);
        zone.map.page(index).hand_out(word, head_flag(gfp, order));
        Some(zone.pfn(index))
    }

    #[cold]
    #[inline(never)]
    fn alloc_slow(
        &self,
        pin: &CpuPin<'_>,
        gfp: GfpFlags,
        order: PageOrder,
        node: Option<u8>,
    ) -> Result<Pfn, AllocError> {
        let request = self.request(pin, gfp, order, node)?;
        if self.faults.is_armed() && !gfp.contains(GfpFlags::NOFAIL) && self.faults.should_fail(pin) {
            return Err(AllocError::Injected);
        }
        if let Some(pfn) = self.try_zones(pin, &request, Reach::Low) {
            return Ok(pfn);
        }
        if gfp.contains(GfpFlags::KSWAPD_RECLAIM) {
            pin.platform().wake_background(request.node);
        }
        let reach = Reach::of(gfp);
        if let Some(pfn) = self.try_zones(pin, &request, reach) {
            return Ok(pfn);
        }
        let _starving = self.gather(pin, Patience::of(gfp), self.zones_of(&request));
        self.try_zones(pin, &request, reach).ok_or(AllocError::OutOfMemory)
    }

    fn request(
        &self,
        pin: &CpuPin<'_>,
        gfp: GfpFlags,
        order: PageOrder,
        node: Option<u8>,
    ) -> Result<Request, AllocError> {
        if !self.owns(pin) {
            return Err(AllocError::WrongPlatform);
        }
        let slot = self.cpus.get(pin.cpu().index()).ok_or(AllocError::UnknownCpu)?;
        let highest = ZoneKind::highest_for(gfp).ok_or(AllocError::InvalidFlags)?;
        let migrate = self.migrate_type(gfp).ok_or(AllocError::InvalidFlags)?;
        Ok(Request { order, highest, migrate, gfp, node: node.unwrap_or(slot.node) })
    }

    /// The type that a request's frames are taken from; `None` if its flags contradict each other.
    ///
    /// # Linux
    /// `gfp_migratetype` in `include/linux/gfp.h`.
    #[doc(alias = "gfp_migratetype")]
    #[inline]
    fn migrate_type(&self, gfp: GfpFlags) -> Option<MigrateType> {
        self.migrate_of[gfp.mobility_bits()]
    }

    /// The zones that a request may use, in the order in which it tries them.
    fn zones_of(&self, request: &Request) -> impl Iterator<Item = &Zone<'_>> + Clone {
        let this_node = request.gfp.contains(GfpFlags::THISNODE).then_some(request.node);
        self.zonelists
            .list(request.node, request.highest)
            .filter_map(|zone| self.zones.get(zone))
            .filter(move |zone| this_node.is_none_or(|node| zone.node() == node))
    }

    /// Whether a zone that the request may use could give a block of `order` if all its frames were free.
    pub(crate) fn may_ever_hold(
        &self,
        pin: &CpuPin<'_>,
        node: Option<u8>,
        gfp: GfpFlags,
        order: PageOrder,
    ) -> bool {
        let Ok(request) = self.request(pin, gfp, order, node) else { return false };
        let reach = Reach::of(gfp | GfpFlags::HIGH);
        self.zones_of(&request).any(|zone| zone.may_ever_hold(order, request.highest, reach))
    }

    /// Takes a block from the first zone of the request's zonelist that may give one.
    ///
    /// # Linux
    /// `get_page_from_freelist`.
    fn try_zones(&self, pin: &CpuPin<'_>, request: &Request, reach: Reach) -> Option<Pfn> {
        self.zones_of(request)
            .filter(|zone| zone.watermark_ok(request.order, request.highest, reach))
            .find_map(|zone| {
                let index = take_from(zone, pin, request.order, request.migrate)?;
                let page = zone.map.page(index);
                let word = BlockWord::new(PageState::Allocated, request.order, request.migrate);
                page.hand_out(word, head_flag(request.gfp, request.order));
                Some(zone.pfn(index))
            })
    }
}

/// Takes a block of a zone: from the CPU's magazines, the depot, or the free lists, which then also fill a magazine.
///
/// # Linux
/// `rmqueue` in `mm/page_alloc.c`.
fn take_from(zone: &Zone<'_>, pin: &CpuPin<'_>, order: PageOrder, migrate: MigrateType) -> Option<u32> {
    let map = zone.map.pages();
    let own = zone.attended(pin)?;
    let list = list_of(order, migrate);
    let magazines = own.list(list);
    let index = match magazines.capacity() {
        0 => zone.lock(pin).take(&zone.map, order, migrate),
        _ if own.gate.is_lean() => zone.lock(pin).take(&zone.map, order, migrate),
        _ => pop(magazines, map).or_else(|| match zone.take_from_depot(pin, list) {
            Some(chain) => {
                magazines.set_loaded(chain);
                pop(magazines, map)
            }
            None => refill(zone, pin, magazines, order, migrate),
        }),
    }?;
    magazines.note_allocated();
    Some(index)
}

/// Takes a block from either magazine.
fn pop(magazines: &Magazines, map: &[Page]) -> Option<u32> {
    let loaded = magazines.pop(map).or_else(|| {
        magazines.swap();
        magazines.pop(map)
    });
    Some(loaded?.0)
}

/// Takes one block and fills the empty magazine at work with others, as long as the zone is well above its marks.
///
/// # Linux
/// `rmqueue_bulk` in `mm/page_alloc.c`.
fn refill(
    zone: &Zone<'_>,
    pin: &CpuPin<'_>,
    magazines: &Magazines,
    order: PageOrder,
    migrate: MigrateType,
) -> Option<u32> {
    let high = zone.watermarks().high;
    let mut buddy = zone.lock(pin);
    let first = buddy.take(&zone.map, order, migrate)?;
    let spare_pages = buddy.free_pages().saturating_sub(high) / 2;
    let wanted = u64::from(magazines.capacity()).min(spare_pages >> order.get());
    let mut chain = Chain::EMPTY;
    for _ in 1..wanted {
        let Some(index) = buddy.take_own(&zone.map, order, migrate) else { break };
        chain.push(zone.map.pages(), index);
    }
    drop(buddy);
    magazines.set_loaded(chain);
    Some(first)
}

/// The flag of a compound page's head, where one is asked for.
#[inline]
fn head_flag(gfp: GfpFlags, order: PageOrder) -> PageFlags {
    match gfp.contains(GfpFlags::COMP) && order != PageOrder::ZERO {
        true => PageFlags::HEAD,
        false => PageFlags::empty(),
    }
}
