//! Holes being punched into files in memory: faults there wait until they are there.

use crate::phys::PageSource;
use crate::platform::Platform;

use super::PageCache;
use super::io::IoTicket;
use super::mapping::FileId;

/// Where pages are being taken out of a file: nobody finds them there, nor puts new ones in their place for a fault, until that is over. Else a process could still see
/// the old page when another sees the new one, or map it again as often as it is taken away.
///
/// Holes of several callers are one that has them all.
///
/// # Linux
/// `struct shmem_falloc` in `mm/shmem.c`.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "shmem_falloc")]
pub(super) struct Hole {
    first: u32,
    end: u32,
    /// How many callers are at it.
    punchers: u32,
    /// How often all were through.
    turn: u32,
    is_awaited: bool,
}

impl Hole {
    pub(super) const NONE: Self = Self { first: 0, end: 0, punchers: 0, turn: 0, is_awaited: false };

    /// What a fault on a page there waits for.
    pub(super) fn ticket_for(&self, file: FileId, index: u32) -> Option<IoTicket> {
        self.has(index).then(|| IoTicket::of_hole(file, self.turn))
    }

    pub(super) fn has(&self, index: u32) -> bool {
        self.punchers != 0 && (self.first..self.end).contains(&index)
    }

    fn begin(&mut self, first: u32, end: u32) {
        let (first, end) = match self.punchers {
            0 => (first, end),
            _ => (self.first.min(first), self.end.max(end)),
        };
        *self = Self { first, end, punchers: self.punchers + 1, ..*self };
    }

    /// Whether somebody waits for what is over now.
    fn finish(&mut self) -> bool {
        self.punchers -= 1;
        if self.punchers != 0 {
            return false;
        }
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
    pub(super) fn with_hole<S: PageSource, R>(
        &self,
        source: &S,
        file: FileId,
        (first, end): (u32, u32),
        punch: impl FnOnce() -> R,
    ) -> R {
        let mapping = self.mappings.get(file.place());
        if let Some(mapping) = mapping {
            mapping.state.lock(&source.platform().pin()).hole.begin(first, end);
        }
        let result = punch();
        let ended = mapping.is_some_and(|mapping| mapping.state.lock(&source.platform().pin()).hole.finish());
        if ended {
            source.platform().wake_waiters();
        }
        result
    }

    /// Whether a hole is there that a fault had to wait for.
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
        let is_over = hole.punchers == 0 || hole.turn != turn;
        hole.is_awaited |= !is_over && asks == Asks::ToWait;
        is_over
    }
}
