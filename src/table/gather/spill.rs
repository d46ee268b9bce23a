//! What waits for a flush and has no room in the gather: it lies in frames.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::BATCH;
use crate::addr::{PageOrder, Pfn};
use crate::flags::GfpFlags;
use crate::phys::PageSource;
use crate::platform::Platform;
use crate::table::format::ENTRIES;

/// How many frames there are at most: 8,000 pages wait in them, so that those of one call do not take all memory before any of it is free again.
///
/// # Linux
/// `MAX_GATHER_BATCH_COUNT` in `include/asm-generic/tlb.h`: 10,000 pages.
const FRAMES: usize = 16;
/// How many batches a frame holds.
const PER_FRAME: usize = ENTRIES / BATCH;
/// A word that stands for nothing.
const NOTHING: u64 = u64::MAX;

/// Batches in frames.
///
/// # Linux
/// `struct mmu_gather_batch` in `include/asm-generic/tlb.h`.
#[derive(Debug)]
#[doc(alias = "mmu_gather_batch")]
pub(super) struct Spill {
    frames: [Pfn; FRAMES],
    batches: usize,
}

impl Spill {
    pub(super) const fn new() -> Self {
        Self { frames: [Pfn::ZERO; FRAMES], batches: 0 }
    }

    /// Puts a batch into a frame; `false` if there is none. No lock is held.
    #[cold]
    pub(super) fn put<S: PageSource>(&mut self, source: &S, batch: &[u64]) -> bool {
        let (at, place) = (self.batches / PER_FRAME, self.batches % PER_FRAME);
        let Some(frame) = self.frames.get_mut(at) else { return false };
        if place == 0 {
            let Ok(new) = source.alloc_pages(GfpFlags::NOWAIT, PageOrder::ZERO) else { return false };
            *frame = new;
        }
        let padded = batch.iter().copied().chain(core::iter::repeat(NOTHING));
        let put = with_words(source, *frame, place, |words| {
            words.iter().zip(padded).for_each(|(word, value)| word.store(value, Relaxed));
        });
        if put.is_none() && place == 0 {
            free(source, *frame);
        }
        self.batches += usize::from(put.is_some());
        put.is_some()
    }

    /// Hands out all words, and frees the frames.
    #[inline]
    pub(super) fn take_all<S: PageSource>(&mut self, source: &S, each: impl FnMut(u64)) {
        if self.batches != 0 {
            self.take_batches(source, each);
        }
    }

    #[cold]
    fn take_batches<S: PageSource>(&mut self, source: &S, mut each: impl FnMut(u64)) {
        let batches = core::mem::take(&mut self.batches);
        for index in 0..batches {
            let (frame, place) = (self.frames[index / PER_FRAME], index % PER_FRAME);
            let mut batch = [NOTHING; BATCH];
            let read = with_words(source, frame, place, |words| {
                batch.iter_mut().zip(words).for_each(|(value, word)| *value = word.load(Relaxed));
            });
            debug_assert!(read.is_some(), "a frame that was in reach is not any more");
            // With nothing locked, and no CPU kept.
            batch.into_iter().filter(|&word| word != NOTHING).for_each(&mut each);
        }
        self.frames[..batches.div_ceil(PER_FRAME)].iter().for_each(|&frame| free(source, frame));
    }
}

/// Runs `work` with the words of a batch; `None` if the frame is not in reach.
fn with_words<S: PageSource, R>(
    source: &S,
    frame: Pfn,
    place: usize,
    work: impl FnOnce(&[AtomicU64]) -> R,
) -> Option<R> {
    let pin = source.platform().pin();
    // Allocated for this alone.
    let window = source.phys().kmap_on(source.platform(), &pin, frame).ok()?;
    window.entries().chunks_exact(BATCH).nth(place).map(work)
}

fn free(source: &impl PageSource, frame: Pfn) {
    let freed = source.free_pages(frame, PageOrder::ZERO);
    debug_assert!(freed.is_ok(), "a frame just allocated can be freed: {freed:?}");
}
