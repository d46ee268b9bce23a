//! How often a store has failed to write what nobody has open or mapped.

use core::ops::Range;

/// The failures of a file that has no users. The page that comes first stands for all: each is tried as often, once by each who goes through the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failures {
    /// The first page that could not be written.
    first: u32,
    /// The page behind the last that has been tried with it.
    end: u32,
    /// How often.
    times: u32,
}

impl Failures {
    pub(super) const NONE: Self = Self { first: 0, end: 0, times: 0 };

    /// So often something is tried. Then it is given up, and its memory is free.
    pub(super) const TRIES: u32 = 8;

    /// These pages were written.
    pub(super) fn written(&mut self, pages: &Range<u32>) {
        if pages.contains(&self.first) {
            *self = Self::NONE;
        }
    }

    /// They could not be; whether they are given up.
    pub(super) fn failed(&mut self, pages: &Range<u32>) -> bool {
        let is_before = pages.start < self.first && !pages.contains(&self.first);
        // What the store had no room for until now was not tried with the others.
        let is_new = self.times >= Self::TRIES && pages.start >= self.end;
        if self.times == 0 || is_before || is_new {
            *self = Self { first: pages.start, end: pages.end, times: 0 };
        }
        if self.times < Self::TRIES {
            self.end = self.end.max(pages.end);
        }
        if pages.contains(&self.first) {
            self.times = self.times.saturating_add(1);
        }
        self.times >= Self::TRIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_is_tried_as_often_before_it_is_given_up() {
        let mut failures = Failures::NONE;
        let mut round = || [4..8, 8..12, 12..13].map(|pages| failures.failed(&pages));
        for _ in 0..7 {
            assert_eq!(round(), [false; 3]);
        }
        assert_eq!(round(), [true; 3]);
        failures.written(&(4..8));
        assert_eq!([8..12, 4..8, 8..12, 0..8].map(|pages| failures.failed(&pages)), [false; 4]);
        failures.written(&(8..12));
        let fails = (0..6).map(|_| failures.failed(&(3..5))).last();
        assert_eq!((fails, failures.failed(&(4..5))), (Some(true), true), "it was tried twice before");
    }

    #[test]
    fn what_was_not_tried_with_the_others_is_not_given_up_with_them() {
        let mut failures = Failures::NONE;
        let fails = (0..8).map(|_| failures.failed(&(4..8))).last();
        assert_eq!(fails, Some(true));
        let mut times = 0;
        while !failures.failed(&(8..12)) {
            times += 1;
        }
        assert_eq!(times, 7);
    }
}
