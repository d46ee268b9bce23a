//! Which files have something to be written or made to last: who sees to that looks at no others.

use crate::phys::PageSource;
use crate::platform::{CpuPin, Platform};
use crate::sync::words::{Ordering::Relaxed, Word64};

use super::PageCache;
use super::mapping::{FileId, Kind, Mapping, State};
use super::pages::Pages;

/// What the list of these files keeps in each place: a bit for each of 64 files, and a bit for each of 64 such words.
///
/// # Locking
/// It belongs to the lock of that list.
#[derive(Debug, Default)]
pub(super) struct Words {
    files: Word64,
    words: Word64,
}

/// The files that have something to be written or made to last, by their places.
///
/// # Linux
/// `b_dirty` in `struct bdi_writeback`, `include/linux/backing-dev-defs.h`.
#[doc(alias = "b_dirty")]
pub(super) struct Work<'m>(&'m [Mapping<'m>]);

impl<'m> Work<'m> {
    pub(super) const fn new(mappings: &'m [Mapping<'m>]) -> Self {
        Self(mappings)
    }

    fn words(&self, at: usize) -> Option<&'m Words> {
        let mappings: &'m [Mapping<'m>] = self.0;
        mappings.get(at).map(|mapping| &mapping.work)
    }

    fn files_of(&self, word: usize) -> u64 {
        self.words(word).map_or(0, |words| words.files.load(Relaxed))
    }

    fn add(&mut self, place: usize) {
        let (word, words) = (self.words(place / 64), self.words(place / 4096));
        if let (Some(word), Some(words)) = (word, words) {
            word.files.fetch_or(1 << (place % 64), Relaxed);
            words.words.fetch_or(1 << (place / 64 % 64), Relaxed);
        }
    }

    fn remove(&mut self, place: usize) {
        let (word, words) = (self.words(place / 64), self.words(place / 4096));
        if let (Some(word), Some(words)) = (word, words) {
            let bit = 1 << (place % 64);
            if word.files.fetch_and(!bit, Relaxed) == bit {
                words.words.fetch_and(!(1 << (place / 64 % 64)), Relaxed);
            }
        }
    }

    pub(super) fn has(&self, place: usize) -> bool {
        self.files_of(place / 64) & 1 << (place % 64) != 0
    }

    /// The first from `place` on.
    fn next(&self, place: usize) -> Option<usize> {
        let first = |word: usize, bits: u64| (bits != 0).then(|| word * 64 + bits.trailing_zeros() as usize);
        let (word, rest) = (place / 64, u64::MAX << (place % 64));
        if let Some(found) = first(word, self.files_of(word) & rest) {
            return Some(found);
        }
        let (mut group, mut rest) = ((word + 1) / 64, u64::MAX << ((word + 1) % 64));
        while group * 4096 < self.0.len() {
            let words = self.words(group)?.words.load(Relaxed) & rest;
            if let Some(word) = first(group, words) {
                return first(word, self.files_of(word));
            }
            (group, rest) = (group + 1, u64::MAX);
        }
        None
    }
}

impl State<'_> {
    /// Whether there is something to be written or made to last.
    pub(super) fn has_work(&self) -> bool {
        self.store().is_some() && (self.dirty != 0 || self.writeback != 0 || !self.lasting.is_all())
    }
}

impl<'m> PageCache<'m> {
    /// Notes a file, whose state has just changed, if it has something to be written or made to last.
    pub(super) fn note_work(&self, pin: &CpuPin<'_>, pages: &mut Pages<'_, 'm>) {
        if !pages.is_noted && pages.has_work() {
            pages.is_noted = true;
            self.work.lock(pin).add(pages.file.place());
        }
    }

    /// The places from `first` up to and without `end` of files that have something to be written or made to last.
    pub(super) fn places_with_work<S: PageSource>(
        &self,
        source: &S,
        first: u32,
        end: u32,
    ) -> impl Iterator<Item = u32> {
        let mut next = first as usize;
        core::iter::from_fn(move || {
            let found = self.work.lock(&source.platform().pin()).next(next);
            let place = found.and_then(|place| u32::try_from(place).ok()).filter(|&place| place < end)?;
            next = place as usize + 1;
            Some(place)
        })
    }

    /// The file in a place, if it is one that is wanted. One that has nothing to be written or made to last is forgotten by that.
    pub(super) fn file_with_work<S: PageSource>(
        &self,
        source: &S,
        place: u32,
        is_wanted: impl FnOnce(&State<'_>) -> bool,
    ) -> Option<FileId> {
        let pin = source.platform().pin();
        let place = place as usize;
        let mut state = self.mappings.get(place)?.state.lock(&pin);
        if !state.has_work() {
            if core::mem::replace(&mut state.is_noted, false) {
                self.work.lock(&pin).remove(place);
            }
            return None;
        }
        let is_one = !matches!(state.kind, Kind::None) && is_wanted(&state);
        if is_one { state.file(place) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn files_with_work_are_found_in_order_and_no_others_are_looked_at() {
        for files in [1, 64, 65, 4096, 4097, 20_000] {
            let mappings: Vec<Mapping<'_>> = (0..files).map(|_| Mapping::new()).collect();
            let mut work = Work::new(&mappings);
            let mut places: Vec<usize> = (0..files).filter(|place| place * 7919 % 1013 == 0).collect();
            places.extend((1..files).rev().take(1));
            places.sort_unstable();
            places.dedup();
            places.iter().for_each(|&place| work.add(place));
            let all = |work: &Work<'_>| -> Vec<usize> {
                core::iter::successors(work.next(0), |place| work.next(place + 1)).collect()
            };
            assert_eq!(all(&work), places);
            assert_eq!(work.next(files), None);
            let (gone, stay): (Vec<usize>, Vec<usize>) = places.iter().partition(|&place| place % 2 == 0);
            gone.iter().for_each(|&place| work.remove(place));
            assert_eq!(all(&work), stay);
            assert!(gone.iter().all(|&place| !work.has(place)) && stay.iter().all(|&place| work.has(place)));
            stay.iter().for_each(|&place| work.remove(place));
            assert_eq!(all(&work), []);
            let left =
                |mapping: &Mapping<'_>| mapping.work.files.load(Relaxed) | mapping.work.words.load(Relaxed);
            assert!(
                mappings.iter().all(|mapping| left(mapping) == 0),
                "an empty word is not looked at again"
            );
        }
    }
}
