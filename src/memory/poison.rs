//! Free frames filled with a pattern, to find who writes to what it has freed.

use crate::addr::{PAGE_SIZE, PageOrder, Pfn};
use crate::phys::{Page, PoisonNote};
use crate::platform::{CpuPin, Platform, Window};
use crate::sync::{Rank, SpinLock};

use super::access::frames;
use super::{Memory, Poison};

/// What stands in free frames.
///
/// # Linux
/// `PAGE_POISON` in `include/linux/poison.h`.
const PATTERN: u8 = 0xaa;

/// A byte of a free frame that was written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PoisonHit {
    /// The frame.
    pub pfn: Pfn,
    /// The place of its first wrong byte.
    pub offset: usize,
    /// What stands there.
    pub found: u8,
}

/// What checks found.
#[derive(Debug)]
pub(super) struct PoisonLog {
    log: SpinLock<(u64, Option<PoisonHit>)>,
}

impl PoisonLog {
    pub(super) fn new() -> Self {
        Self { log: SpinLock::new(Rank::Leaf, (0, None)) }
    }
}

impl<P: Platform> Memory<'_, P> {
    /// How many frames were written to while they were free, and the last of them. It was handed out nevertheless.
    pub fn poison_hits(&self) -> (u64, Option<PoisonHit>) {
        *self.poison_log.log.lock(&self.pin())
    }

    pub(super) fn is_poisoning(&self) -> bool {
        self.options.poison == Poison::On
    }

    /// Fills all frames, which are all free, with the pattern.
    pub(super) fn poison_all(&self) {
        for pfn in self.phys.managed_frames() {
            self.poison_block(&self.pin(), pfn, PageOrder::ZERO);
        }
    }

    /// Fills a block that is about to be freed with the pattern. A frame that cannot be reached now, such as when all slots of the CPU are in
    /// use, is noted, and not checked later.
    ///
    /// # Linux
    /// `__kernel_poison_pages` in `mm/page_poison.c`.
    pub(super) fn poison_block(&self, pin: &CpuPin<'_>, first: Pfn, order: PageOrder) {
        for pfn in frames(first, order) {
            let filled = self.phys.kmap_any(pin, pfn).map(|frame| frame.fill(PATTERN));
            let note = if filled.is_ok() { PoisonNote::Poisoned } else { PoisonNote::Unpoisoned };
            if let Some(page) = self.phys.page(pfn) {
                page.note_poison(note);
            }
        }
    }

    /// Notes and reports the first byte of a frame just allocated that is not the pattern's.
    ///
    /// # Linux
    /// `check_poison_mem` in `mm/page_poison.c`.
    pub(super) fn check_poison(&self, pfn: Pfn) {
        if self.phys.page(pfn).is_some_and(Page::take_unpoisoned) {
            return;
        }
        let found = self.phys.kmap(&self.pin(), pfn).ok().and_then(|frame| {
            let (offset, found) = frame.find_other(PATTERN)?;
            Some((offset, found, count_other(&frame)))
        });
        let Some((offset, found, wrong)) = found else { return };
        {
            let pin = self.pin();
            let mut log = self.poison_log.log.lock(&pin);
            *log = (log.0.saturating_add(1), Some(PoisonHit { pfn, offset, found }));
        }
        let what = match wrong == 1 && (found ^ PATTERN).is_power_of_two() {
            true => "single bit error",
            false => "memory corruption",
        };
        self.platform.report(format_args!(
            "pagealloc: {what}\npfn {pfn:#x}: byte {offset:#x} is {found:#04x}, expected {PATTERN:#04x}; {wrong} of {PAGE_SIZE} bytes differ\n"
        ));
    }
}

/// How many bytes of a frame are not the pattern's.
fn count_other(frame: &Window<'_>) -> usize {
    let mut bytes = [0; 64];
    let differ = |at: usize| {
        let inside = frame.read(at, &mut bytes);
        debug_assert!(inside, "steps through the frame");
        bytes.iter().filter(|&&byte| byte != PATTERN).count()
    };
    (0..PAGE_SIZE).step_by(64).map(differ).sum()
}
