//! Holes being punched into files in memory: faults there wait until they are there.

use crate::phys::PageSource;
use crate::platform::Platform;

use super::PageCache;
use super::io::IoTicket;
use super::mapping::{FileId, Mapping};

/// Where pages are being taken out of a file: nobody finds them there, nor puts new ones in their place for a fault, until that is over. Else a process could still see
/// the old page when another sees the new one, or map it again as often as it is taken away.
///
/// One hole of a file is punched after the other. Faults that were held back by one come before the next, if they come at once: else those who punch could keep a fault
/// from its page for ever.
///
/// # Linux
/// `struct shmem_falloc` in `mm/shmem.c`; callers exclude each other by the inode's lock there.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "shmem_falloc")]
pub(super) struct Hole {
    first: u32,
    end: u32,
    is_open: bool,
    /// How many holes there were before.
    turn: u32,
    is_awaited: bool,
    /// How many faults this hole, or the last one, has held back that have not got their page since.
    held_back: u32,
}

/// How often a caller looks by itself whether the faults that the last hole has held back have their pages.
const TRIES: u32 = if cfg!(any(loom, shuttle)) { 1 } else { 64 };

/// Whose turn it is when somebody is about to punch a hole.
enum Turn {
    Ours,
    /// Another hole is being punched.
    Hole(IoTicket),
    Faults,
}

impl Hole {
    pub(super) const NONE: Self =
        Self { first: 0, end: 0, is_open: false, turn: 0, is_awaited: false, held_back: 0 };

    /// Holds back a fault on a page there: what it waits for.
    pub(super) fn hold_back(&mut self, file: FileId, index: u32) -> Option<IoTicket> {
        if !self.has(index) {
            return None;
        }
        self.held_back = self.held_back.saturating_add(1);
        Some(IoTicket::of_hole(file, self.turn))
    }

    pub(super) fn has(&self, index: u32) -> bool {
        self.is_open && (self.first..self.end).contains(&index)
    }

    /// A fault has got a page.
    #[inline]
    pub(super) fn got(&mut self, index: u32) {
        if self.held_back != 0 && !self.is_open && (self.first..self.end).contains(&index) {
            self.held_back -= 1;
        }
    }

    fn begin(&mut self, file: FileId, (first, end): (u32, u32), patient: bool) -> Turn {
        if self.is_open {
            return Turn::Hole(IoTicket::of_hole(file, self.turn));
        }
        if patient && self.held_back != 0 {
            return Turn::Faults;
        }
        *self = Self { first, end, is_open: true, held_back: 0, ..*self };
        Turn::Ours
    }

    /// Whether somebody waits for what is over now.
    fn finish(&mut self) -> bool {
        self.is_open = false;
        self.turn = self.turn.wrapping_add(1);
        core::mem::take(&mut self.is_awaited)
    }
}

/// Whether who asks is going to wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// He is, and is to be told.
    ToWait,
    /// He only looks.
    ToKnow,
}

impl PageCache<'_> {
    /// Runs `punch` while nobody finds the pages from `first` up to and without `end`.
    ///
    /// # Locking
    /// The caller holds no pin, and at most the lock of an address space: another hole of the file is waited for, whose caller waits for changes of VMAs that have begun.
    pub(super) fn with_hole<S: PageSource, R>(
        &self,
        source: &S,
        file: FileId,
        hole: (u32, u32),
        punch: impl FnOnce() -> R,
    ) -> R {
        let mapping = self.mappings.get(file.place());
        if let Some(mapping) = mapping {
            self.begin_hole(source, mapping, file, hole);
        }
        let result = punch();
        let ended = mapping.is_some_and(|mapping| mapping.state.lock(&source.platform().pin()).hole.finish());
        if ended {
            source.platform().wake_waiters();
        }
        result
    }

    fn begin_hole<S: PageSource>(&self, source: &S, mapping: &Mapping<'_>, file: FileId, hole: (u32, u32)) {
        let mut tries = 0;
        loop {
            let turn = mapping.state.lock(&source.platform().pin()).hole.begin(file, hole, tries < TRIES);
            match turn {
                Turn::Ours => return,
                Turn::Hole(ticket) => {
                    self.wait(source, ticket);
                    tries = 0;
                }
                Turn::Faults => {
                    source.platform().relax();
                    tries += 1;
                }
            }
        }
    }

    /// Whether a hole is there that somebody had to wait for.
    pub(super) fn hole_is_over<S: PageSource>(
        &self,
        source: &S,
        place: usize,
        turn: u32,
        asks: Asks,
    ) -> bool {
        let Some(mapping) = self.mappings.get(place) else { return true };
        let pin = source.platform().pin();
        let mut state = mapping.state.lock(&pin);
        let hole = &mut state.hole;
        let is_over = !hole.is_open || hole.turn != turn;
        hole.is_awaited |= !is_over && asks == Asks::ToWait;
        is_over
    }
}

#[cfg(test)]
mod tests {
    use core::num::NonZeroU32;

    use super::*;

    #[test]
    fn a_hole_comes_after_the_faults_that_the_last_one_held_back() {
        let (file, mut hole) = (FileId(NonZeroU32::MIN), Hole::NONE);
        assert!(matches!(hole.begin(file, (4, 8), true), Turn::Ours));
        let (first, again) = (hole.hold_back(file, 4), hole.hold_back(file, 7));
        assert!(first.is_some() && first == again);
        assert_eq!((hole.hold_back(file, 3), hole.hold_back(file, 8)), (None, None));
        assert!(matches!(hole.begin(file, (0, 1), false), Turn::Hole(ticket) if Some(ticket) == first));
        hole.finish();
        // Of other pages nobody was held back.
        for got in [3, 7, 8] {
            assert!(matches!(hole.begin(file, (0, 1), true), Turn::Faults));
            hole.got(got);
        }
        hole.got(4);
        assert!(matches!(hole.begin(file, (0, 1), true), Turn::Ours));
        assert!(hole.hold_back(file, 0).is_some_and(|ticket| Some(ticket) != first));
        // Who does not come is not waited for.
        hole.finish();
        assert!(matches!(hole.begin(file, (4, 8), true), Turn::Faults));
        assert!(matches!(hole.begin(file, (4, 8), false), Turn::Ours));
        hole.finish();
        assert!(matches!(hole.begin(file, (4, 8), true), Turn::Ours));
    }
}
