//! Which pages to read before they are asked for.
//!
//! # Linux
//! `page_cache_sync_ra`, `page_cache_async_ra`, `get_init_ra_size`, `get_next_ra_size` in `mm/readahead.c` and `do_sync_mmap_readahead`, `do_async_mmap_readahead` in
//! `mm/filemap.c` (6.18), for a file without large folios on a device that takes no more than a window at a time. Readers through a mapping miss the page
//! *around* which is read; who reads a file
//! gets a window that fits what he asks for and grows as long as he goes on where he was, and whose mark starts the next one before he is through.

#[cfg(test)]
mod tests;

use crate::addr::{PAGE_SHIFT, PgOff};

/// The pages of a window at most: 128 KiB.
///
/// # Linux
/// `VM_READAHEAD_PAGES`, which `ra_pages` is at first.
const MAX_WINDOW: u32 = 32;
/// Twice that where a reader of a file has said that he goes straight through it.
const MAX_SEQUENTIAL: u32 = 64;
/// So many misses more than hits, and a mapping is not read around any more.
///
/// # Linux
/// `MMAP_LOTSAMISS`.
const LOTS_OF_MISSES: u8 = 100;
/// A window that another is followed by ends at a multiple of so many pages.
///
/// # Linux
/// `page_cache_async_ra`, which has windows end where a folio of the next order would.
const ALIGN: u32 = 4;

/// How a file is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pattern {
    /// By calls that say how much they want: found out from where they go on.
    #[default]
    Stream,
    /// By such calls, straight through: `POSIX_FADV_SEQUENTIAL`. Windows may be twice as large.
    Sequential,
    /// Through a mapping, without advice: pages around the one that is missing.
    Mapped,
    /// Through a mapping, straight through: `MADV_SEQUENTIAL`. From the page that is missing on, a whole window.
    MappedSequential,
    /// Here and there: `MADV_RANDOM`, `POSIX_FADV_RANDOM`. What is asked for is read.
    Random,
}

impl Pattern {
    /// # Linux
    /// `ra_pages` of `struct file_ra_state`, which `generic_fadvise` in `mm/fadvise.c` doubles.
    #[doc(alias = "ra_pages")]
    const fn max(self) -> u32 {
        match self {
            Self::Sequential => MAX_SEQUENTIAL,
            _ => MAX_WINDOW,
        }
    }
}

/// What is asked for of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// The page that is needed now.
    pub index: PgOff,
    /// How many pages the caller is going to need from there on, this one among them.
    pub pages: u32,
    /// How it is read.
    pub pattern: Pattern,
}

impl Wanted {
    /// One page.
    pub const fn page(index: PgOff, pattern: Pattern) -> Self {
        Self { index, pages: 1, pattern }
    }

    /// How much a window is to hold. Of a mapping nobody says how much is needed.
    const fn request(&self) -> u32 {
        match self.pattern {
            Pattern::Mapped | Pattern::MappedSequential => MAX_WINDOW,
            _ if self.pages == 0 => 1,
            _ => self.pages,
        }
    }
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
    /// One more than the page in which the last call ended, 0 before the first.
    ended: u32,
}

/// Pages to read, and which of them bears the mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Window {
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) mark: Option<u32>,
}

impl Window {
    /// Pages that no others follow.
    pub(super) const fn unmarked(first: u32, count: u32) -> Self {
        Self { first, count, mark: None }
    }
}

impl ReadAhead {
    /// Nothing was read yet.
    pub const fn new() -> Self {
        Self { start: 0, size: 0, async_size: 0, misses: 0, ended: 0 }
    }

    /// The state in one word, for those who keep it in an atomic. It lacks where the last [call](Self::read_to) ended, of which there are none through a mapping.
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
        Self { start: bits as u32, size, async_size, misses: (bits >> 48) as u8, ended: 0 }
    }

    /// Notes that a call has read up to this byte of the file, and not it.
    ///
    /// # Linux
    /// `prev_pos`, which `filemap_read` in `mm/filemap.c` notes.
    #[doc(alias = "prev_pos")]
    pub fn read_to(&mut self, offset: u64) {
        self.ended = u32::try_from(offset >> PAGE_SHIFT).map_or(0, |page| page.saturating_add(1));
    }

    /// Whether a call that begins in page `index` goes on where the last one ended: in that page or the next.
    fn goes_on(&self, index: u32) -> bool {
        self.ended.checked_sub(1).is_some_and(|ended| index.wrapping_sub(ended) <= 1)
    }

    /// Notes a page that was asked for and was there.
    pub(super) fn hit(&mut self, pattern: Pattern) {
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

    /// What to read if the page at `index` is not there, the first of those that are wanted. `before` is how many pages right before it are, as far as
    /// [that matters](Self::history).
    pub(super) fn miss(&mut self, index: u32, wanted: &Wanted, before: u32) -> Window {
        let (max, pages) = (wanted.pattern.max(), wanted.request());
        match wanted.pattern {
            Pattern::Random => return Window::unmarked(index, pages.min(max)),
            Pattern::Mapped => {
                self.misses = self.misses.saturating_add(1);
                if self.misses > LOTS_OF_MISSES {
                    return Window::unmarked(index, 1);
                }
                self.set(index.saturating_sub(max / 2), max, max / 4);
            }
            _ if index == 0 || pages > max || self.goes_on(index) => {
                let size = first_size(pages, max);
                self.set(index, size, if size > pages { size - pages } else { size / 2 });
            }
            // Nobody has come here from far.
            _ if before <= pages => return Window::unmarked(index, pages),
            _ => {
                // What is there from the beginning of the file on tells of one who goes all the way.
                let history = if before == index { before.saturating_mul(2) } else { before };
                self.set(index, history.saturating_add(pages).min(max), 1);
            }
        }
        self.window()
    }

    /// What to read if a marked page was asked for; `gap` is the first page from there on that is not in the cache.
    pub(super) fn marked(&mut self, index: u32, wanted: &Wanted, gap: u32) -> Option<Window> {
        let (max, mark) = (wanted.pattern.max(), self.window().mark);
        let (start, size) = match wanted.pattern {
            Pattern::Random => return None,
            _ if mark == Some(index) => {
                let size = u32::from(self.size);
                (self.start.saturating_add(size), next_size(size, max).max(size))
            }
            _ => {
                // Somebody else's mark: go on from where his window ends.
                let ahead = gap.checked_sub(index).filter(|&ahead| ahead <= max)?;
                (gap, next_size(ahead.saturating_add(wanted.request()), max))
            }
        };
        let end = start.saturating_add(size);
        let size = match end - end % ALIGN {
            aligned if aligned > start => aligned - start,
            _ => size,
        };
        self.set(start, size, size);
        Some(self.window())
    }

    /// How far back [`miss`](Self::miss) wants to know what is there.
    pub(super) const fn history(pattern: Pattern) -> u32 {
        match pattern {
            Pattern::Stream | Pattern::Sequential => pattern.max(),
            // That would have to be more than a window.
            Pattern::Mapped | Pattern::MappedSequential | Pattern::Random => 0,
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

/// The first window, for a request of so many pages.
///
/// # Linux
/// `get_init_ra_size` in `mm/readahead.c`.
#[doc(alias = "get_init_ra_size")]
const fn first_size(pages: u32, max: u32) -> u32 {
    if pages > max / 4 {
        return max;
    }
    let size = pages.next_power_of_two();
    if size <= max / 32 {
        size * 4
    } else if size <= max / 4 {
        size * 2
    } else {
        max
    }
}

/// The window after one of `size` pages.
///
/// # Linux
/// `get_next_ra_size` in `mm/readahead.c`.
#[doc(alias = "get_next_ra_size")]
const fn next_size(size: u32, max: u32) -> u32 {
    if size < max / 16 {
        size * 4
    } else if size <= max / 2 {
        size * 2
    } else {
        max
    }
}
