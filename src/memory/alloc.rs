//! Allocating: allocate, reclaim, retry.

use crate::addr::{PageOrder, Pfn, PfnRange};
use crate::flags::GfpFlags;
use crate::phys::AllocError;
use crate::platform::{CpuPin, Platform};
use crate::report::GfpNames;

use super::{Memory, Poison, ShrinkRequest};

/// The largest order that is retried as long as reclaim makes progress.
///
/// # Linux
/// `PAGE_ALLOC_COSTLY_ORDER` in `include/linux/mmzone.h`.
const COSTLY_ORDER: u8 = 3;
/// How often a larger one is retried.
///
/// # Linux
/// `MAX_RECLAIM_RETRIES` in `mm/internal.h`.
const MAX_RETRIES: u32 = 16;
/// Reclaim asks for no fewer pages than this.
///
/// # Linux
/// `SWAP_CLUSTER_MAX` in `include/linux/swap.h`.
const RECLAIM_BATCH: u64 = 32;

impl<P: Platform> Memory<'_, P> {
    /// Allocates a block of `2^order` frames as [`Phys::alloc_pages`](crate::phys::Phys::alloc_pages) does; reclaims and retries as the flags allow.
    ///
    /// [`GfpFlags::DIRECT_RECLAIM`] allows to reclaim, unless [`GfpFlags::MEMALLOC`] says that the caller itself does;
    /// [`GfpFlags::NORETRY`] allows one round. With [`GfpFlags::NOFAIL`] the request is retried, from the reserves too, until it
    /// succeeds; once memory is short it is refused if it never can: if it must not reclaim, or none of its zones is large enough. [`GfpFlags::ZERO`] fills the block with zeros. A failure is [reported](Platform::report) with the state of the
    /// memory, unless [`GfpFlags::NOWARN`] forbids it.
    ///
    /// # Errors
    /// [`AllocError`]; [`AllocError::InvalidFlags`] also for NOFAIL where the request would never end.
    ///
    /// # Locking
    /// The caller holds no lock and no pin if it allows to reclaim. Interrupts are masked for one attempt, or one
    /// frame, at a time.
    ///
    /// # Linux
    /// `__alloc_pages` and `__alloc_pages_slowpath` in `mm/page_alloc.c`.
    #[doc(alias = "__alloc_pages")]
    pub fn alloc_pages(&self, gfp: GfpFlags, order: PageOrder) -> Result<Pfn, AllocError> {
        let pfn = self.retry(None, gfp, order, |pin, gfp| self.phys.alloc_pages(pin, gfp, order))?;
        self.prepare(pfn, gfp, order)
    }

    /// Allocates a block from a given node, or the nearest to it.
    ///
    /// # Errors
    /// [`AllocError`].
    ///
    /// # Locking
    /// As [`alloc_pages`](Self::alloc_pages).
    ///
    /// # Linux
    /// `alloc_pages_node` in `include/linux/gfp.h`.
    pub fn alloc_pages_node(&self, node: u8, gfp: GfpFlags, order: PageOrder) -> Result<Pfn, AllocError> {
        let pfn =
            self.retry(Some(node), gfp, order, |pin, gfp| self.phys.alloc_pages_node(pin, node, gfp, order))?;
        self.prepare(pfn, gfp, order)
    }

    /// Allocates `pages` consecutive frames, each a block of its own.
    ///
    /// # Errors
    /// [`AllocError`].
    ///
    /// # Locking
    /// As [`alloc_pages`](Self::alloc_pages).
    ///
    /// # Linux
    /// `alloc_pages_exact` in `mm/page_alloc.c`.
    pub fn alloc_pages_exact(&self, gfp: GfpFlags, pages: u64) -> Result<PfnRange, AllocError> {
        let order = PageOrder::for_pages(pages).ok_or(AllocError::InvalidCount)?;
        let range = self.retry(None, gfp, order, |pin, gfp| self.phys.alloc_pages_exact(pin, gfp, pages))?;
        for pfn in range.iter() {
            if let Err(error) = self.prepare_frame(pfn, gfp) {
                let freed = self.phys.free_pages_exact(&self.pin(), range);
                debug_assert_eq!(freed, Ok(()), "frames just allocated can be freed");
                return Err(error);
            }
        }
        Ok(range)
    }

    /// Allocates blocks of one order until `out` is full or memory is short; answers with how many there are, at least one. Only for
    /// the first it reclaims.
    ///
    /// # Errors
    /// [`AllocError`] for the first block; [`AllocError::InvalidCount`] if `out` is empty.
    ///
    /// # Locking
    /// As [`alloc_pages`](Self::alloc_pages).
    ///
    /// # Linux
    /// `alloc_pages_bulk` in `mm/page_alloc.c`, for any order.
    pub fn alloc_pages_bulk(
        &self,
        gfp: GfpFlags,
        order: PageOrder,
        out: &mut [Pfn],
    ) -> Result<usize, AllocError> {
        let (first, rest) = out.split_first_mut().ok_or(AllocError::InvalidCount)?;
        *first = self.alloc_pages(gfp, order)?;
        let mut count = 1;
        for slot in rest {
            let block = self.phys.alloc_pages(&self.pin(), gfp, order);
            let Ok(pfn) = block.and_then(|pfn| self.prepare(pfn, gfp, order)) else { break };
            *slot = pfn;
            count += 1;
        }
        Ok(count)
    }

    /// Tries once and, if memory is short, again after reclaim, as often as the flags allow.
    fn retry<T>(
        &self,
        node: Option<u8>,
        gfp: GfpFlags,
        order: PageOrder,
        attempt: impl Fn(&CpuPin<'_>, GfpFlags) -> Result<T, AllocError>,
    ) -> Result<T, AllocError> {
        // The pin goes before reclaim begins.
        let first = attempt(&self.pin(), gfp);
        match first {
            Err(AllocError::OutOfMemory) => self.retry_slow(node, gfp, order, attempt),
            result => result,
        }
    }

    #[cold]
    #[inline(never)]
    fn retry_slow<T>(
        &self,
        node: Option<u8>,
        gfp: GfpFlags,
        order: PageOrder,
        attempt: impl Fn(&CpuPin<'_>, GfpFlags) -> Result<T, AllocError>,
    ) -> Result<T, AllocError> {
        let must_succeed = gfp.contains(GfpFlags::NOFAIL);
        let reserves = if must_succeed { GfpFlags::HIGH } else { GfpFlags::empty() };
        let may_reclaim = gfp.contains(GfpFlags::DIRECT_RECLAIM) && !gfp.contains(GfpFlags::MEMALLOC);
        if must_succeed && !(may_reclaim && self.phys.may_ever_hold(&self.pin(), node, gfp, order)) {
            return Err(AllocError::InvalidFlags);
        }
        let request = ShrinkRequest { pages: order.pages().max(RECLAIM_BATCH), order, gfp };
        let mut retries = 0;
        loop {
            if may_reclaim {
                self.events.note_stall(gfp);
            }
            let progress = may_reclaim && self.shrink(&request) != 0;
            let next = attempt(&self.pin(), gfp | reserves);
            if !matches!(next, Err(AllocError::OutOfMemory)) {
                return next;
            }
            if must_succeed {
                self.platform.relax();
                continue;
            }
            retries = if progress && order.get() <= COSTLY_ORDER { 0 } else { retries + 1 };
            if !progress || gfp.contains(GfpFlags::NORETRY) || retries > MAX_RETRIES {
                self.report_failure(gfp, order);
                return Err(AllocError::OutOfMemory);
            }
        }
    }

    /// Checks and zeroes a block just allocated, as options and flags ask; gives it back if that fails.
    #[inline]
    fn prepare(&self, pfn: Pfn, gfp: GfpFlags, order: PageOrder) -> Result<Pfn, AllocError> {
        if self.options.poison == Poison::Off && !gfp.contains(GfpFlags::ZERO) {
            return Ok(pfn);
        }
        let prepared = super::access::frames(pfn, order).try_for_each(|pfn| self.prepare_frame(pfn, gfp));
        prepared.map(|()| pfn).inspect_err(|_| {
            let freed = self.free_pages(pfn, order);
            debug_assert_eq!(freed, Ok(()), "a block just allocated can be freed");
        })
    }

    fn prepare_frame(&self, pfn: Pfn, gfp: GfpFlags) -> Result<(), AllocError> {
        if self.options.poison == Poison::On {
            self.check_poison(pfn);
        }
        if gfp.contains(GfpFlags::ZERO) {
            self.zero_frame(pfn).map_err(|_| AllocError::Unreachable)?;
        }
        Ok(())
    }

    /// Says what was asked for and what there was.
    ///
    /// # Linux
    /// `warn_alloc` in `mm/page_alloc.c`, without a limit on how often.
    fn report_failure(&self, gfp: GfpFlags, order: PageOrder) {
        if gfp.contains(GfpFlags::NOWARN) {
            return;
        }
        let (order, bits, names) = (order.get(), gfp.bits(), GfpNames(gfp));
        let state = self.mem_info();
        self.platform.report(format_args!(
            "kernmm: page allocation failure: order:{order}, mode:{bits:#x}({names}), nodemask=(null)\n{state}"
        ));
    }
}
