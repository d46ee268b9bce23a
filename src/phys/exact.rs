//! Blocks whose size is no power of two, and blocks split by their owner.

use crate::addr::{PageOrder, Pfn, PfnRange};
use crate::flags::{GfpFlags, PageFlags};
use crate::platform::CpuPin;

use super::Phys;
use super::error::{AllocError, FreeError};
use super::page::{BlockWord, PageState};

impl Phys<'_> {
    /// Allocates `pages` consecutive frames: a block that holds them, of which the tail is given back at once.
    ///
    /// Each frame is then a block of its own, as after [`split_pages`](Self::split_pages).
    ///
    /// # Errors
    /// [`AllocError::InvalidCount`] for 0 or more than 512, and those of [`alloc_pages`](Self::alloc_pages).
    ///
    /// # Linux
    /// `alloc_pages_exact` in `mm/page_alloc.c`.
    pub fn alloc_pages_exact(
        &self,
        pin: &CpuPin<'_>,
        gfp: GfpFlags,
        pages: u64,
    ) -> Result<PfnRange, AllocError> {
        let order = PageOrder::for_pages(pages).ok_or(AllocError::InvalidCount)?;
        let first = self.alloc_pages(pin, gfp - GfpFlags::COMP, order)?;
        let wanted = PfnRange::with_len(first, pages).ok_or(AllocError::InvalidCount)?;
        let kept = self.keep_front(pin, first, order, pages);
        debug_assert_eq!(kept, Ok(()), "a block just allocated can be split, and its parts freed");
        Ok(wanted)
    }

    /// Halves a block again and again: what lies behind the first `pages` is given back in blocks as large as can be, the rest split into
    /// single pages.
    fn keep_front(
        &self,
        pin: &CpuPin<'_>,
        first: Pfn,
        order: PageOrder,
        pages: u64,
    ) -> Result<(), FreeError> {
        let (mut at, mut size, mut left) = (first, order, pages);
        while left < size.pages() {
            let Some(half) = size.down() else { break };
            let upper = at.checked_add(half.pages()).ok_or(FreeError::Foreign)?;
            self.split_pages(pin, at, size, half)?;
            if left <= half.pages() {
                self.free_pages(pin, upper, half)?;
            } else {
                self.split_pages(pin, at, half, PageOrder::ZERO)?;
                (at, left) = (upper, left - half.pages());
            }
            size = half;
        }
        self.split_pages(pin, at, size, PageOrder::ZERO)
    }

    /// Frees frames that [`alloc_pages_exact`](Self::alloc_pages_exact) gave.
    ///
    /// # Errors
    /// [`FreeError`] for the first frame that cannot be freed; nothing has changed.
    ///
    /// # Linux
    /// `free_pages_exact` in `mm/page_alloc.c`.
    pub fn free_pages_exact(&self, pin: &CpuPin<'_>, frames: PfnRange) -> Result<(), FreeError> {
        for pfn in frames.iter() {
            self.may_free(pfn, PageOrder::ZERO)?;
        }
        frames.iter().try_for_each(|pfn| self.free_pages(pin, pfn, PageOrder::ZERO))
    }

    /// Makes an allocated block of `order` one of `2^(order - part)` blocks of order `part`, each to be freed by itself. A compound page is none any more.
    ///
    /// # Errors
    /// As [`free_pages`](Self::free_pages) would answer for the block; [`FreeError::WrongOrder`] also if `part` is above `order`. Nothing has changed.
    ///
    /// # Locking
    /// Takes the zone's lock.
    ///
    /// # Linux
    /// `split_page` in `mm/page_alloc.c`.
    #[doc(alias = "split_page")]
    pub fn split_pages(
        &self,
        pin: &CpuPin<'_>,
        pfn: Pfn,
        order: PageOrder,
        part: PageOrder,
    ) -> Result<(), FreeError> {
        self.may_free(pfn, order)?;
        if part > order {
            return Err(FreeError::WrongOrder(order));
        }
        let (first, page) = self.sections.find(pfn).ok_or(FreeError::Foreign)?;
        let zone = self.zone(page.zone()).ok_or(FreeError::Foreign)?;
        let word = BlockWord::new(PageState::Allocated, part, page.word().migrate());
        let mut buddy = zone.lock(pin);
        for index in (first..first + order.pages() as u32).step_by(part.pages() as usize) {
            zone.map.page(index).hand_out(word, PageFlags::empty());
        }
        buddy.note_split(order, part, order.pages() >> part.get());
        Ok(())
    }

    /// Makes the `2^order` pages from `pfn` on, which were [split](Self::split_pages), one allocated block again. The caller has a reference to
    /// each; others may be looking them up.
    ///
    /// # Errors
    /// [`FreeError::Foreign`] if there are no such pages, or they do not begin as a block of `order` does; [`FreeError::Busy`] if one of them
    /// is not a block of one page, or somebody else has a reference to it or maps it. Nothing has changed.
    ///
    /// # Locking
    /// Takes the zone's lock.
    #[doc(alias = "prep_compound_page")]
    pub fn join_pages(&self, pin: &CpuPin<'_>, pfn: Pfn, order: PageOrder) -> Result<(), FreeError> {
        let (first, page) = self.sections.find(pfn).ok_or(FreeError::Foreign)?;
        let zone = self.zone(page.zone()).ok_or(FreeError::Foreign)?;
        let indices = first..first + order.pages() as u32;
        if !pfn.is_aligned(order) || indices.end as usize > zone.map.pages().len() {
            return Err(FreeError::Foreign);
        }
        let mut buddy = zone.lock(pin);
        for index in indices.clone() {
            let page = zone.map.page(index);
            let is_single = page.word().is(PageState::Allocated, PageOrder::ZERO) && page.is_unused();
            if !is_single || !page.freeze() {
                (first..index).for_each(|index| zone.map.page(index).unfreeze());
                return Err(FreeError::Busy);
            }
        }
        indices.skip(1).for_each(|index| zone.map.page(index).set_word(BlockWord::of(PageState::Interior)));
        let word = BlockWord::new(PageState::Allocated, order, page.word().migrate());
        page.hand_out(word, PageFlags::empty());
        buddy.note_join(order);
        Ok(())
    }
}
