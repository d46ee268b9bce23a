//! Windows as Linux computes them: first page, size, and how many pages before its end the mark is.

use std::vec::Vec;

use super::*;
use crate::addr::PAGE_SIZE_U64 as PAGE;

/// A window and its `async_size`.
type Seen = (u32, u32, u32);

fn wanted(index: u32, pages: u32, pattern: Pattern) -> Wanted {
    Wanted { index: PgOff::new(index.into()).unwrap(), pages, pattern }
}

fn seen(window: Window) -> Seen {
    let Window { first, count, mark } = window;
    (first, count, mark.map_or(0, |mark| first + count - mark))
}

/// The window for a page that is missing.
fn miss(state: &mut ReadAhead, index: u32, pages: u32, pattern: Pattern, before: u32) -> Seen {
    seen(state.miss(index, &wanted(index, pages, pattern), before))
}

/// The windows that follow a first one if each page is asked for by itself, as many as are named, and the last of them.
fn follow(state: &mut ReadAhead, pattern: Pattern, windows: usize) -> Vec<Seen> {
    let next = |_| {
        let mark = state.window().mark.unwrap();
        state.marked(mark, &wanted(mark, 1, pattern), mark + 1).map(seen).unwrap()
    };
    (0..windows).map(next).collect()
}

#[test]
fn the_first_window_fits_the_request() {
    let first = |pages, pattern| miss(&mut ReadAhead::new(), 0, pages, pattern, 0);
    for (pages, window) in
        [(1, (0, 4, 3)), (2, (0, 4, 2)), (3, (0, 8, 5)), (4, (0, 8, 4)), (8, (0, 16, 8)), (9, (0, 32, 23))]
    {
        assert_eq!(first(pages, Pattern::Stream), window, "{pages}");
    }
    assert_eq!(first(32, Pattern::Stream), (0, 32, 16));
    assert_eq!([first(2, Pattern::Sequential), first(64, Pattern::Sequential)], [(0, 8, 6), (0, 64, 32)]);
    // More than a window is never taken for a jump.
    assert_eq!(miss(&mut ReadAhead::new(), 500, 33, Pattern::Stream, 0), (500, 32, 16));
    assert_eq!(miss(&mut ReadAhead::new(), 500, 33, Pattern::Sequential, 0), (500, 33, 0));
    assert_eq!(first(u32::MAX, Pattern::Stream), (0, 32, 16));
}

#[test]
fn windows_grow_as_long_as_the_reader_goes_on() {
    let mut state = ReadAhead::new();
    assert_eq!(miss(&mut state, 0, 1, Pattern::Stream, 0), (0, 4, 3));
    let windows = follow(&mut state, Pattern::Stream, 5);
    assert_eq!(windows, [(4, 8, 8), (12, 16, 16), (28, 32, 32), (60, 32, 32), (92, 32, 32)]);
    let mut state = ReadAhead::new();
    assert_eq!(miss(&mut state, 0, 1, Pattern::Sequential, 0), (0, 4, 3));
    let windows = follow(&mut state, Pattern::Sequential, 5);
    assert_eq!(windows, [(4, 8, 8), (12, 16, 16), (28, 32, 32), (60, 64, 64), (124, 64, 64)]);
}

#[test]
fn windows_that_follow_end_at_a_multiple_of_four_pages() {
    let mut state = ReadAhead::new();
    state.read_to(50 * PAGE);
    assert_eq!(miss(&mut state, 51, 3, Pattern::Stream, 0), (51, 8, 5));
    assert_eq!(follow(&mut state, Pattern::Stream, 3), [(59, 13, 13), (72, 24, 24), (96, 32, 32)]);
}

#[test]
fn a_call_goes_on_in_the_page_where_the_last_one_ended_or_the_next() {
    let goes_on = |offset, index| {
        let mut state = ReadAhead::new();
        state.read_to(offset);
        miss(&mut state, index, 1, Pattern::Stream, 0) == (index, 4, 3)
    };
    for (offset, from) in [(100 * PAGE + 10, 100), (101 * PAGE - 1, 100), (101 * PAGE, 101)] {
        let on = [from - 1, from, from + 1, from + 2].map(|index| goes_on(offset, index));
        assert_eq!(on, [false, true, true, false], "{offset}");
    }
    assert!(!goes_on(u64::MAX, 7));
}

#[test]
fn a_jump_reads_what_is_asked_for_and_leaves_the_state_alone() {
    let mut state = ReadAhead::new();
    miss(&mut state, 0, 1, Pattern::Stream, 0);
    let before = state;
    for history in [0, 3] {
        assert_eq!(miss(&mut state, 100, 3, Pattern::Stream, history), (100, 3, 0));
    }
    assert_eq!(miss(&mut state, 100, 5, Pattern::Random, 32), (100, 5, 0));
    assert_eq!(miss(&mut state, 0, 100, Pattern::Random, 0), (0, 32, 0));
    assert_eq!(state.marked(1, &wanted(1, 1, Pattern::Random), 2), None);
    assert_eq!(state, before);
}

#[test]
fn what_lies_right_before_tells_how_much_is_read() {
    assert_eq!(miss(&mut ReadAhead::new(), 100, 3, Pattern::Stream, 4), (100, 7, 1));
    assert_eq!(miss(&mut ReadAhead::new(), 100, 3, Pattern::Stream, 32), (100, 32, 1));
    // From the beginning of the file on it counts twice.
    assert_eq!(miss(&mut ReadAhead::new(), 10, 2, Pattern::Stream, 10), (10, 22, 1));
    assert_eq!(miss(&mut ReadAhead::new(), 20, 2, Pattern::Sequential, 20), (20, 42, 1));
}

#[test]
fn who_meets_the_mark_of_another_goes_on_where_that_one_s_window_ends() {
    let marked = |index, pages, pattern, gap| {
        ReadAhead::new().marked(index, &wanted(index, pages, pattern), gap).map(seen)
    };
    assert_eq!(marked(64, 1, Pattern::Stream, 72), Some((72, 16, 16)));
    assert_eq!(marked(64, 8, Pattern::Stream, 72), Some((72, 32, 32)));
    assert_eq!(marked(10, 1, Pattern::Stream, 42), Some((42, 30, 30)));
    assert_eq!(marked(10, 1, Pattern::Stream, 43), None, "more than a window is there");
    assert_eq!(marked(60, 1, Pattern::MappedSequential, 70), Some((70, 30, 30)));
}

#[test]
fn through_a_mapping_pages_around_are_read_and_with_advice_those_from_there_on() {
    let mut state = ReadAhead::new();
    assert_eq!(miss(&mut state, 100, 1, Pattern::Mapped, 0), (84, 32, 8));
    assert_eq!(follow(&mut state, Pattern::Mapped, 2), [(116, 32, 32), (148, 32, 32)]);
    assert_eq!(miss(&mut state, 101, 1, Pattern::Mapped, 0), (85, 32, 8));
    assert_eq!(follow(&mut state, Pattern::Mapped, 1), [(117, 31, 31)]);
    assert_eq!(miss(&mut state, 7, 1, Pattern::Mapped, 0), (0, 32, 8));
    let mut state = ReadAhead::new();
    assert_eq!(miss(&mut state, 0, 1, Pattern::MappedSequential, 0), (0, 32, 16));
    assert_eq!(follow(&mut state, Pattern::MappedSequential, 2), [(32, 32, 32), (64, 32, 32)]);
    assert_eq!(miss(&mut state, 300, 1, Pattern::MappedSequential, 0), (300, 32, 0));
}
