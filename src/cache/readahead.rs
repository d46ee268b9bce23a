//! Which pages to read before they are asked for.
//!
//! # Linux
//! `page_cache_sync_ra`, `page_cache_async_ra`, `get_init_ra_size`, `get_next_ra_size` in `mm/readahead.c` and `do_sync_mmap_readahead` in
//! `mm/filemap.c`, 6.12. Readers through a mapping miss the page *around* which is read; who reads a file gets a window that doubles as long as he goes on where
//! he was, and whose mark starts the next one before he is through.

/// The pages of a window at most: 128 KiB.
const MAX_WINDOW: u32 = 32;
/// Twice that where the reader has said that he goes straight through.
const MAX_SEQUENTIAL: u32 = 64;
/// So many misses more than hits, and a mapping is not read around any more.
///
/// # Linux
/// `MMAP_LOTSAMISS`.
const LOTS_OF_MISSES: u8 = 100;

/// How a file is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pattern {
    /// By read calls: found out from where they go on.
    #[default]
    Stream,
    /// Through a mapping, without advice.
    Mapped,
    /// Straight through: `MADV_SEQUENTIAL`, `POSIX_FADV_SEQUENTIAL`.
    Sequential,
    /// Here and there: `MADV_RANDOM`, `POSIX_FADV_RANDOM`. Nothing is read ahead.
    Random,
}

/// What was last read ahead: the caller keeps one for each opening of a file or VMA.
///
/// # Linux
/// `struct file_ra_state` in `include/linux/fs.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(alias = "file_ra_state")]
pub struct ReadAhead {
    /// The first page of the last window.
    start: u32,
    /// Its length in pages.
    size: u8,
    /// How many pages before its end the mark is.
    async_size: u8,
    /// Misses of a mapping, less hits.
    misses: u8,
    /// The page after the one asked for last, 0 for none.
    next: u32,
}

/// Pages to read, and which of them bears the mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Window {
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) mark: Option<u32>,
}

impl Window {
    pub(super) const fn single(index: u32) -> Self {
        Self { first: index, count: 1, mark: None }
    }
}

impl ReadAhead {
    /// Nothing was read yet.
    pub const fn new() -> Self {
        Self { start: 0, size: 0, async_size: 0, misses: 0, next: 0 }
    }

    /// The state in one word, for those who keep it in an atomic. It lacks what only [`Pattern::Stream`] needs.
    pub const fn to_bits(self) -> u64 {
        self.start as u64
            | (self.size as u64) << 32
            | (self.async_size as u64) << 40
            | (self.misses as u64) << 48
    }

    /// The state from such a word; any word is one.
    pub const fn from_bits(bits: u64) -> Self {
        let max = MAX_SEQUENTIAL as u8;
        let (size, async_size) = ((bits >> 32) as u8, (bits >> 40) as u8);
        let size = if size > max { max } else { size };
        let async_size = if async_size > size { size } else { async_size };
        Self { start: bits as u32, size, async_size, misses: (bits >> 48) as u8, next: 0 }
    }

    /// Notes a page that was asked for and was there.
    pub(super) fn hit(&mut self, index: u32, pattern: Pattern) {
        self.next = index.saturating_add(1);
        if pattern == Pattern::Mapped {
            self.misses = self.misses.saturating_sub(1);
        }
    }

    /// Notes pages that were mapped around one that was asked for, so that nobody will ask for them.
    ///
    /// # Linux
    /// `filemap_map_pages` in `mm/filemap.c`, which lowers `mmap_miss`.
    #[doc(alias = "mmap_miss")]
    pub fn mapped(&mut self, pages: u32) {
        self.misses = self.misses.saturating_sub(pages.min(u32::from(u8::MAX)) as u8);
    }

    /// What to read if the page at `index` is not there. `before` is how many pages right before it are, as far as that matters.
    pub(super) fn miss(&mut self, index: u32, pattern: Pattern, before: u32) -> Window {
        let last = core::mem::replace(&mut self.next, index.saturating_add(1));
        let max = if pattern == Pattern::Sequential { MAX_SEQUENTIAL } else { MAX_WINDOW };
        match pattern {
            Pattern::Random => return Window::single(index),
            Pattern::Mapped => {
                self.misses = self.misses.saturating_add(1);
                if self.misses > LOTS_OF_MISSES {
                    return Window::single(index);
                }
                self.set(index.saturating_sub(max / 2), max, max / 4);
            }
            Pattern::Stream | Pattern::Sequential
                if index == 0 || last != 0 && index.wrapping_sub(last) <= 1 =>
            {
                let size = first_size(max);
                self.set(index, size, if size > 1 { size - 1 } else { size / 2 });
            }
            Pattern::Stream | Pattern::Sequential => {
                if before <= 1 {
                    return Window::single(index);
                }
                // Cached from the beginning of the file: it was read by others before.
                let history = if before == index { before.saturating_mul(2) } else { before };
                self.set(index, history.saturating_add(1).min(max), 1);
            }
        }
        self.window()
    }

    /// What to read if a marked page was asked for; `gap` is the first page from there on that is not in the cache.
    pub(super) fn marked(&mut self, index: u32, pattern: Pattern, gap: u32) -> Option<Window> {
        let max = if pattern == Pattern::Sequential { MAX_SEQUENTIAL } else { MAX_WINDOW };
        if pattern == Pattern::Random {
            return None;
        }
        let mark = self.start.saturating_add(u32::from(self.size.saturating_sub(self.async_size)));
        if index == mark && self.size != 0 {
            let size = next_size(u32::from(self.size), max);
            self.set(self.start.saturating_add(u32::from(self.size)), size, size);
        } else {
            // Somebody else's mark: go on from where his window ends.
            let ahead = gap.checked_sub(index).filter(|&ahead| ahead <= max)?;
            let size = next_size(ahead.saturating_add(1), max);
            self.set(gap, size, size);
        }
        Some(self.window())
    }

    /// How far back [`miss`](Self::miss) wants to know what is there.
    pub(super) const fn history(pattern: Pattern) -> u32 {
        match pattern {
            Pattern::Stream => MAX_WINDOW,
            Pattern::Sequential => MAX_SEQUENTIAL,
            Pattern::Mapped | Pattern::Random => 0,
        }
    }

    fn set(&mut self, start: u32, size: u32, async_size: u32) {
        // None is above `MAX_SEQUENTIAL`.
        (self.start, self.size, self.async_size) = (start, size as u8, async_size as u8);
    }

    fn window(&self) -> Window {
        let (first, count) = (self.start, u32::from(self.size));
        let mark = (self.async_size != 0).then(|| first.saturating_add(count - u32::from(self.async_size)));
        Window { first, count, mark }
    }
}

/// The first window, for a request of one page.
fn first_size(max: u32) -> u32 {
    if max / 32 >= 1 { 4 } else { 2 }
}

/// The window after one of `size` pages.
fn next_size(size: u32, max: u32) -> u32 {
    if size < max / 16 {
        size * 4
    } else if size <= max / 2 {
        size * 2
    } else {
        max
    }
}
