//! Frames and tables on their way out.

mod spill;

use core::sync::atomic::{Ordering::SeqCst, fence};

use super::format::LEAF_SHIFT;
use super::frame;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE_U64, PageOrder, Pfn, VirtAddr, VirtRange};
use crate::phys::PageSource;
use crate::platform::{CpuMask, CpuSet, FlushScope, Platform, TlbFlush};
use spill::Spill;

/// How many frames and tables wait in the gather itself.
const BATCH: usize = 128;
/// A range of more pages than this is not flushed page by page.
///
/// # Linux
/// `tlb_single_page_flush_ceiling` in `arch/x86/mm/tlb.c`.
const MAX_SINGLE: u64 = 33;

/// In a word of the batch: the frame is a table.
const TABLE: u64 = 1 << 63;
/// In a word of the batch: the frame is the first of the 512 pages of a huge entry.
const HUGE: u64 = 1 << 62;
/// In a word of the batch: CPUs may write to the frame through translations that they have not forgotten yet, and somebody is to know it then.
const WRITTEN: u64 = 1 << 61;

/// Frames and tables that entries were taken out for, kept until no CPU can reach them any more.
///
/// Ends with [`finish`](Self::finish), or by being dropped: then CPUs forget what was noted, and the frames are given up. Is there nothing to forget, or no
/// CPU to forget it, then no CPU is asked.
///
/// # Locking
/// Whoever finishes it, or adds to a [full](Self::is_full) one, holds no lock and no pin: a flush waits for other CPUs.
///
/// # Linux
/// `struct mmu_gather` in `include/asm-generic/tlb.h`.
#[derive(Debug)]
#[doc(alias = "mmu_gather")]
#[must_use = "what it holds is flushed and freed when it is finished"]
pub struct TlbGather<'a, S: PageSource> {
    source: &'a S,
    pgd: Pfn,
    cpus: Cpus<'a>,
    /// What CPUs are to forget: all noted ranges and what lies between them.
    range: Option<VirtRange>,
    /// log2 of the bytes of the smallest page in it.
    stride: u32,
    /// Whether tables were taken out.
    tables: bool,
    /// Whether it is one of those that [gather](CpuSet::begin_gather).
    is_begun: bool,
    batch: [u64; BATCH],
    len: usize,
    spill: Spill,
}

/// Which CPUs are to forget.
#[derive(Debug)]
enum Cpus<'a> {
    /// Those that have an address space's tables in use.
    Active(&'a CpuSet),
    /// All: what they forget is the kernel's.
    All,
}

impl<'a, S: PageSource> TlbGather<'a, S> {
    /// Gathers for the tables with the root `pgd`, which are in use on `cpus`.
    ///
    /// # Linux
    /// `tlb_gather_mmu` in `mm/mmu_gather.c`.
    #[doc(alias = "tlb_gather_mmu")]
    pub fn new(source: &'a S, pgd: Pfn, cpus: &'a CpuSet) -> Self {
        Self::with(source, pgd, Cpus::Active(cpus))
    }

    /// Gathers for the kernel's half, with the root `pgd`: all CPUs forget, whatever tables they have in use.
    ///
    /// # Linux
    /// `flush_tlb_kernel_range` in `arch/x86/mm/tlb.c`.
    #[doc(alias = "flush_tlb_kernel_range")]
    pub(super) fn for_kernel(source: &'a S, pgd: Pfn) -> Self {
        Self::with(source, pgd, Cpus::All)
    }

    fn with(source: &'a S, pgd: Pfn, cpus: Cpus<'a>) -> Self {
        let (batch, spill) = ([0; BATCH], Spill::new());
        if let Cpus::Active(cpus) = cpus {
            cpus.begin_gather();
        }
        let (range, stride) = (None, LEAF_SHIFT);
        Self { source, pgd, cpus, range, stride, tables: false, is_begun: true, batch, len: 0, spill }
    }

    /// Notes that CPUs are to forget the pages of a range.
    ///
    /// # Linux
    /// `tlb_flush_pte_range` in `include/asm-generic/tlb.h`.
    #[inline]
    #[doc(alias = "tlb_flush_pte_range")]
    pub fn flush_range(&mut self, range: VirtRange) {
        self.note(range, PAGE_SHIFT);
    }

    /// Notes that CPUs are to forget huge pages of a range.
    ///
    /// # Linux
    /// `tlb_flush_pmd_range` in `include/asm-generic/tlb.h`.
    #[doc(alias = "tlb_flush_pmd_range")]
    pub fn flush_huge(&mut self, range: VirtRange) {
        self.note(range, LEAF_SHIFT);
    }

    /// Takes a reference to a frame, or to the block that it is the first of: it is dropped after the flush, and the block freed if it was the last.
    ///
    /// # Linux
    /// `tlb_remove_page` in `include/asm-generic/tlb.h`.
    #[inline]
    #[doc(alias = "tlb_remove_page")]
    pub fn page(&mut self, pfn: Pfn) {
        self.push(pfn.get());
    }

    /// As [`page`](Self::page), of a frame that was written to through the entry: [`flush_with`](Self::flush_with) tells when no CPU writes to it any more.
    #[inline]
    pub(crate) fn written_page(&mut self, pfn: Pfn) {
        self.push(pfn.get() | WRITTEN);
    }

    /// Takes a reference to each of the 512 pages, from `first` on, that a huge entry mapped: all are dropped after the flush, and if those were the last,
    /// the block is freed as one.
    ///
    /// # Linux
    /// `tlb_remove_page_size` in `include/asm-generic/tlb.h`.
    #[doc(alias = "tlb_remove_page_size")]
    pub fn huge_page(&mut self, first: Pfn) {
        self.push(first.get() | HUGE);
    }

    /// Takes a table that nothing leads to any more.
    ///
    /// # Linux
    /// `tlb_remove_table` in `mm/mmu_gather.c`.
    #[doc(alias = "tlb_remove_table")]
    pub fn table(&mut self, pfn: Pfn) {
        self.tables = true;
        self.push(pfn.get() | TABLE);
    }

    /// Takes a table that no CPU ever knew.
    pub(super) fn spare_table(&mut self, pfn: Pfn) {
        self.push(pfn.get() | TABLE);
    }

    /// Takes a table that led to the addresses of `span`, `addr` among them. Of these at least one is noted, which is enough to forget the way.
    ///
    /// # Linux
    /// `pte_free_tlb` in `include/asm-generic/tlb.h`.
    #[doc(alias = "pte_free_tlb")]
    pub(super) fn table_at(&mut self, pfn: Pfn, addr: VirtAddr, span: Option<VirtRange>) {
        let noted = self.range.zip(span);
        let is_noted =
            noted.is_some_and(|(noted, span)| noted.start() < span.end() && span.start() < noted.end());
        if let Some(page) = VirtRange::with_len(addr.page_floor(), PAGE_SIZE_U64).filter(|_| !is_noted) {
            self.note(page, PAGE_SHIFT);
        }
        self.table(pfn);
    }

    /// Notes that CPUs are to forget the pages of a range, and the way that led to them: their table is another range's now.
    pub(super) fn moved_table(&mut self, span: VirtRange) {
        self.note(span, PAGE_SHIFT);
        self.tables = true;
    }

    /// Whether it is about to flush: a frame and a table have room yet.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.len >= BATCH - 2
    }

    /// Whether so many frames more do not fill it.
    #[inline]
    pub(crate) fn has_room(&self, frames: usize) -> bool {
        self.len + frames < BATCH - 2
    }

    /// If it is full, puts what it has into frames until the flush; flushes and frees where there are none.
    #[inline]
    pub fn make_room(&mut self) {
        if self.is_full() {
            self.make_room_with(|_| {});
        }
    }

    /// Makes room, as [`make_room`](Self::make_room), for as many as an empty one has.
    ///
    /// # Linux
    /// `tlb_next_batch` in `mm/mmu_gather.c`.
    #[doc(alias = "tlb_next_batch")]
    pub(crate) fn make_room_with(&mut self, written: impl FnMut(Pfn)) {
        if self.is_awaited() && self.spill.put(self.source, &self.batch[..self.len]) {
            self.len = 0;
        } else {
            self.flush_with(written);
        }
    }

    /// Whether a flush would ask a CPU. If not, nothing is gained by putting it off.
    fn is_awaited(&self) -> bool {
        match self.cpus {
            Cpus::Active(cpus) => !cpus.load().is_empty(),
            Cpus::All => true,
        }
    }

    /// Makes CPUs forget what was noted, and gives the frames up. If others have changed entries of the same tables and CPUs may not have forgotten these
    /// yet, they forget everything now: what was found gone here is gone for them too.
    ///
    /// # Linux
    /// `tlb_finish_mmu` in `mm/mmu_gather.c`.
    #[doc(alias = "tlb_finish_mmu")]
    pub fn finish(mut self) {
        self.finish_with(|_| {});
    }

    /// As [`finish`](Self::finish); `written` as in [`flush_with`](Self::flush_with). Nothing is gathered afterwards.
    pub(crate) fn finish_with(&mut self, written: impl FnMut(Pfn)) {
        if !core::mem::take(&mut self.is_begun) {
            return;
        }
        if let Cpus::Active(cpus) = self.cpus {
            if cpus.gathers() > 1 {
                self.note(VirtRange::between(0, u64::MAX), PAGE_SHIFT);
            }
        }
        self.flush_with(written);
        if let Cpus::Active(cpus) = self.cpus {
            cpus.end_gather();
        }
    }

    /// As [`finish`](Self::finish), and goes on.
    ///
    /// # Linux
    /// `tlb_flush_mmu` in `mm/mmu_gather.c`.
    #[doc(alias = "tlb_flush_mmu")]
    pub fn flush(&mut self) {
        self.flush_with(|_| {});
    }

    /// As [`flush`](Self::flush); `written` hears of frames that were [written](Self::written_page) to, when no CPU writes to them any more and before their
    /// references go.
    pub(crate) fn flush_with(&mut self, mut written: impl FnMut(Pfn)) {
        self.forget();
        let mut let_go = |word| let_go(self.source, word, &mut written);
        self.batch[..core::mem::take(&mut self.len)].iter().copied().for_each(&mut let_go);
        self.spill.take_all(self.source, let_go);
    }

    /// Makes CPUs forget what was noted; the frames are kept yet.
    fn forget(&mut self) {
        let (range, tables) = (self.range.take(), core::mem::take(&mut self.tables));
        let stride = core::mem::replace(&mut self.stride, LEAF_SHIFT);
        let scope = match (range, &self.cpus) {
            (Some(range), Cpus::All) => FlushScope::Kernel(range),
            (Some(range), Cpus::Active(_)) => scope_of(range, stride),
            (None, _) if tables => FlushScope::All,
            (None, _) => return,
        };
        // The entries were changed before the set is looked at; see `CpuSet`.
        fence(SeqCst);
        let cpus = match self.cpus {
            Cpus::Active(cpus) => cpus.load(),
            Cpus::All => CpuMask::first(self.source.phys().cpu_count()),
        };
        if !cpus.is_empty() {
            self.source.platform().flush_tlb(&cpus, &TlbFlush { pgd: self.pgd, scope, tables });
        }
    }

    #[inline]
    fn note(&mut self, range: VirtRange, stride: u32) {
        if range.is_empty() {
            return;
        }
        self.stride = self.stride.min(stride);
        self.range = match self.range {
            Some(noted) => {
                let (start, end) = (noted.start().min(range.start()), noted.end().max(range.end()));
                VirtRange::new(start, end)
            }
            None => Some(range),
        };
    }

    #[inline]
    fn push(&mut self, word: u64) {
        if self.len == BATCH {
            self.flush();
        }
        self.batch[self.len] = word;
        self.len += 1;
    }
}

/// Lets go of what a word of the batch stands for.
fn let_go<S: PageSource>(source: &S, word: u64, written: &mut impl FnMut(Pfn)) {
    let pfn = Pfn::trusted(word & !(TABLE | HUGE | WRITTEN));
    match word & (TABLE | HUGE) {
        0 => {
            if word & WRITTEN != 0 {
                written(pfn);
            }
            // Whoever took the entry out gave us its reference.
            let put = source.put_page(pfn);
            debug_assert!(put.is_ok(), "a page that was mapped was free: {put:?}");
        }
        TABLE => frame::free(source, pfn),
        _ => source.put_pages(pfn, PageOrder::MAX),
    }
}

impl<S: PageSource> Drop for TlbGather<'_, S> {
    fn drop(&mut self) {
        self.finish_with(|_| {});
    }
}

/// Gathers tables, with whatever else goes.
pub(crate) trait WithRoom<'g, S: PageSource> {
    /// Where a table more can be put. No lock is held: what is full is flushed.
    fn with_room(&mut self) -> &mut TlbGather<'g, S>;
}

impl<'g, S: PageSource> WithRoom<'g, S> for TlbGather<'g, S> {
    fn with_room(&mut self) -> &mut Self {
        self.make_room();
        self
    }
}

/// How a range of pages of `1 << stride` bytes is best forgotten.
pub(crate) fn scope_of(range: VirtRange, stride: u32) -> FlushScope {
    match range.len().div_ceil(1 << stride) {
        1 if range.len() <= 1 << PAGE_SHIFT => FlushScope::Page(range.start().page_floor()),
        pages if pages <= MAX_SINGLE => FlushScope::Range(range),
        _ => FlushScope::All,
    }
}
