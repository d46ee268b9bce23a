//! Freeing a block.

use crate::addr::{PageOrder, Pfn};
use crate::platform::CpuPin;

use super::Phys;
use super::cpu_pages::{Chain, Magazines};
use super::error::FreeError;
use super::page::{BlockWord, Page, PageState};
use super::zone::Zone;

impl Phys<'_> {
    /// Frees a block that was allocated with `order`.
    ///
    /// It is for the block's one owner, who has removed it from every place where others look it up. A second free is an error; only if
    /// two CPUs free one block at the very same moment may both succeed, and the block is then handed out twice, since nothing here is
    /// an atomic read-modify-write. For the same reason nobody may call [`Page::try_get`](super::Page::try_get) on it meanwhile.
    ///
    /// # Errors
    /// [`FreeError`]; nothing has changed.
    ///
    /// # Locking
    /// None on the fast path; otherwise the zone's depot lock or lock, one after the other.
    ///
    /// # Linux
    /// `__free_pages` in `mm/page_alloc.c`.
    #[inline]
    pub fn free_pages(&self, pin: &CpuPin<'_>, pfn: Pfn, order: PageOrder) -> Result<(), FreeError> {
        match self.free_fast(pin, pfn, order) {
            Some(()) => Ok(()),
            None => self.free_slow(pin, pfn, order),
        }
    }

    /// Puts a block into the CPU's own magazine; `None` if anything is out of the ordinary.
    #[inline]
    fn free_fast(&self, pin: &CpuPin<'_>, pfn: Pfn, order: PageOrder) -> Option<()> {
        let (index, page) = self.sections.find_near(pfn)?;
        let word = page.word();
        if !word.is(PageState::Allocated, order) || !page.is_unused() {
            return None;
        }
        let place = pin.cpu().index() * self.zones.len() + usize::from(page.zone().get());
        let own = self.cpu_pages.get(place).filter(|own| own.gate.is_open())?;
        let list = own.list(word.list());
        if !list.push(page, index) {
            return None;
        }
        page.set_word(word.with_state(PageState::OnCpu));
        page.take_back();
        list.note_freed();
        Some(())
    }

    /// Frees a block to the free lists, or to a magazine that room must be made in first; or says why not.
    #[cold]
    #[inline(never)]
    fn free_slow(&self, pin: &CpuPin<'_>, pfn: Pfn, order: PageOrder) -> Result<(), FreeError> {
        let (index, page) = self.sections.find(pfn).ok_or(FreeError::Foreign)?;
        let zone = self.zone(page.zone()).ok_or(FreeError::Foreign)?;
        let word = page.word();
        verdict(zone, index, page, order)?;
        if !self.owns(pin) {
            return Err(FreeError::WrongPlatform);
        }
        let own = zone.attended(pin).ok_or(FreeError::UnknownCpu)?;
        page.take_back();
        let magazines = own.list(word.list());
        magazines.note_freed();
        if !own.gate.is_lean() && keep(zone, pin, magazines, word, index) {
            page.set_word(word.with_state(PageState::OnCpu));
        } else {
            zone.lock(pin).free(&zone.map, index, order);
        }
        Ok(())
    }
}

/// Puts a block into a magazine; `false` if the list is off, which another CPU may make it at any moment.
fn keep(zone: &Zone<'_>, pin: &CpuPin<'_>, magazines: &Magazines, word: BlockWord, index: u32) -> bool {
    let page = zone.map.page(index);
    if magazines.capacity() == 0 {
        return false;
    }
    if magazines.push(page, index) {
        return true;
    }
    make_room(zone, pin, magazines, word);
    magazines.push(page, index)
}

/// Empties the full magazine at work: it becomes the spare, and a full spare goes to the depot or to the free lists.
fn make_room(zone: &Zone<'_>, pin: &CpuPin<'_>, magazines: &Magazines, word: BlockWord) {
    let spare = magazines.spare_chain();
    magazines.set_spare(magazines.loaded_chain());
    magazines.set_loaded(Chain::EMPTY);
    if !spare.is_empty() && !zone.put_into_depot(pin, word.list(), spare) {
        free_chain(zone, pin, spare, word.order());
    }
}

/// Frees all blocks of a chain to the zone's free lists.
///
/// # Linux
/// `free_pcppages_bulk` in `mm/page_alloc.c`.
pub(super) fn free_chain(zone: &Zone<'_>, pin: &CpuPin<'_>, chain: Chain, order: PageOrder) {
    if chain.is_empty() {
        return;
    }
    for index in chain.iter(zone.map.pages()) {
        zone.map.touch_buddies(index, order);
    }
    let mut buddy = zone.lock(pin);
    for index in chain.iter(zone.map.pages()) {
        buddy.free(&zone.map, index, order);
    }
}

/// Whether the block at `index` may be freed with this order.
pub(super) fn verdict(zone: &Zone<'_>, index: u32, page: &Page, order: PageOrder) -> Result<(), FreeError> {
    match page.word().is(PageState::Allocated, order) && page.is_unused() {
        true => Ok(()),
        false => Err(diagnose(zone, index, page, order)),
    }
}

/// Says why a page cannot be freed.
///
/// # Linux
/// `free_page_is_bad` in `mm/page_alloc.c`.
#[cold]
#[inline(never)]
fn diagnose(zone: &Zone<'_>, index: u32, page: &Page, order: PageOrder) -> FreeError {
    let word = page.word();
    match word.state() {
        PageState::Absent => FreeError::Foreign,
        PageState::Reserved => FreeError::Reserved,
        PageState::Allocated if word.order() != order => FreeError::WrongOrder(word.order()),
        PageState::Allocated => FreeError::Busy,
        PageState::Free => FreeError::DoubleFree,
        PageState::Deferred => FreeError::DoubleFreeDeferred,
        PageState::OnCpu => FreeError::DoubleFreeOnCpu,
        PageState::Interior => match zone.map.head_of(index) {
            Some((head, word)) if word.state() == PageState::Allocated => FreeError::Interior(zone.pfn(head)),
            _ => FreeError::DoubleFree,
        },
    }
}
