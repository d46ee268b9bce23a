//! Memory of the host, by means of `std` alone.
//!
//! Where addresses cannot be unmapped, a window is a buffer: the frame's bytes are moved into it when the first CPU opens one,
//! and back when the last one closes it. All who have the frame open share the buffer, so they see each other's
//! writes. A closed buffer is filled with a pattern and rests in a queue; when its turn comes again and the pattern is
//! not whole, somebody wrote through a stale address. A stale read finds the pattern.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{HashMap, VecDeque};
use std::ptr::NonNull;
use std::sync::Mutex;

use crate::addr::PAGE_SIZE;
use crate::platform::Window;

/// What stands in a closed buffer.
const CLOSED: u8 = 0xdb;
/// How many closed buffers rest before the oldest is used again.
const RESTING: usize = 64;

/// Zeroed memory, aligned to pages.
#[derive(Debug)]
struct Area {
    start: NonNull<u8>,
    memory: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory belongs to the area, not to a thread.
unsafe impl Send for Area {}
// SAFETY: the methods only compute addresses.
unsafe impl Sync for Area {}

impl Area {
    fn new(len: usize) -> Option<Self> {
        // A small alignment lets the host give fresh pages, which are zero and take no memory before they are touched.
        let layout = Layout::from_size_align(len.checked_add(PAGE_SIZE)?, 16).ok()?;
        // SAFETY: the size is not 0.
        let memory = NonNull::new(unsafe { System.alloc_zeroed(layout) })?;
        let skip = memory.align_offset(PAGE_SIZE);
        // SAFETY: less than a page is skipped, and there is one to spare.
        let start = unsafe { memory.add(skip) };
        Some(Self { start, memory, layout })
    }

    fn at(&self, offset: usize) -> Option<NonNull<u8>> {
        (offset < self.layout.size() - PAGE_SIZE).then_some(())?;
        // SAFETY: the offset lies inside.
        Some(unsafe { self.start.add(offset) })
    }

    fn window(&self, offset: usize) -> Option<Window<'_>> {
        let at = self.at(offset)?;
        // SAFETY: the page is in our memory and aligned; frames are accessed through windows alone.
        Some(unsafe { Window::new(at) })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the memory was allocated with this layout.
        unsafe { System.dealloc(self.memory.as_ptr(), self.layout) };
    }
}

/// RAM in the direct map.
#[derive(Debug)]
pub(super) struct Lowmem(Area);

impl Lowmem {
    /// So many bytes, zeroed; `None` if the host has no memory for them.
    pub(super) fn new(len: usize) -> Option<Self> {
        Area::new(len).map(Self)
    }

    pub(super) fn at(&self, offset: usize) -> Option<NonNull<u8>> {
        self.0.at(offset)
    }
}

/// RAM that has no address but in a window.
#[derive(Debug)]
pub(super) struct Highmem {
    frames: Area,
    buffers: Area,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// For each open frame its buffer, and how many windows it is open in.
    open: HashMap<u64, (usize, usize)>,
    /// For each open window its frame.
    windows: Vec<Option<u64>>,
    resting: VecDeque<usize>,
}

impl Highmem {
    /// So many bytes, zeroed, and so many windows. `None` if the host cannot.
    pub(super) fn new(len: u64, windows: usize) -> Option<Self> {
        let count = windows.checked_add(RESTING)?;
        let buffers = Area::new(count.checked_mul(PAGE_SIZE)?)?;
        for buffer in 0..count {
            buffers.window(buffer * PAGE_SIZE)?.fill(CLOSED);
        }
        let state =
            State { open: HashMap::new(), windows: vec![None; windows], resting: (0..count).collect() };
        Some(Self { frames: Area::new(usize::try_from(len).ok()?)?, buffers, state: Mutex::new(state) })
    }

    /// Opens a closed window at the frame at `offset` of the store.
    pub(super) fn open(&self, window: usize, _turn: usize, offset: u64) -> Option<NonNull<u8>> {
        let mut state = self.state.lock().ok()?;
        let state = &mut *state;
        let place = state.windows.get_mut(window).filter(|place| place.is_none())?;
        let frame = self.frames.window(usize::try_from(offset).ok()?)?;
        let (buffer, users) = match state.open.get(&offset) {
            Some(&(buffer, users)) => (buffer, users),
            None => {
                let buffer = state.resting.pop_front()?;
                let bytes = self.buffers.window(buffer * PAGE_SIZE)?;
                if let Some((byte, _)) = bytes.find_other(CLOSED) {
                    super::machine_check(format_args!("byte {byte} of a closed kmap slot was written to"));
                }
                bytes.copy_from(&frame);
                (buffer, 0)
            }
        };
        state.open.insert(offset, (buffer, users + 1));
        *place = Some(offset);
        self.buffers.at(buffer * PAGE_SIZE)
    }

    /// Lets the machine's hardware at the frame at `offset` of the store: at the buffer if it is open. Nobody opens or closes a window meanwhile.
    pub(super) fn with<R>(&self, offset: u64, work: impl FnOnce(&Window<'_>) -> R) -> Option<R> {
        let state = self.state.lock().ok()?;
        let frame = match state.open.get(&offset) {
            Some(&(buffer, _)) => self.buffers.window(buffer * PAGE_SIZE),
            None => self.frames.window(usize::try_from(offset).ok()?),
        };
        Some(work(&frame?))
    }

    /// Closes an open window.
    pub(super) fn close(&self, window: usize, _turn: usize) -> bool {
        self.try_close(window).is_some()
    }

    fn try_close(&self, window: usize) -> Option<()> {
        let mut state = self.state.lock().ok()?;
        let offset = state.windows.get_mut(window)?.take()?;
        let (buffer, users) = state.open.remove(&offset)?;
        if users > 1 {
            state.open.insert(offset, (buffer, users - 1));
        } else {
            let bytes = self.buffers.window(buffer * PAGE_SIZE)?;
            self.frames.window(usize::try_from(offset).ok()?)?.copy_from(&bytes);
            bytes.fill(CLOSED);
            state.resting.push_back(buffer);
        }
        Some(())
    }
}
