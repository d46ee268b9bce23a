//! Memory of the host, on Linux: through `mmap`, so that a window on HIGHMEM is an address that faults before and after.

use std::ffi::{c_char, c_int, c_long, c_uint, c_void};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{NonNull, null_mut};

use crate::addr::PAGE_SIZE;
use crate::platform::Window;

// SAFETY: these are the signatures of the C library that `std` links to anyway. `mmap64` takes a 64-bit offset on 32-bit
// machines too.
unsafe extern "C" {
    fn mmap64(
        addr: *mut c_void,
        len: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn munmap(addr: *mut c_void, len: usize) -> c_int;
    fn memfd_create(name: *const c_char, flags: c_uint) -> c_int;
    fn sysconf(name: c_int) -> c_long;
}

const PROT_NONE: c_int = 0;
const PROT_READ_WRITE: c_int = 1 | 2;
const MAP_SHARED: c_int = 1;
const MAP_PRIVATE: c_int = 2;
const MAP_FIXED: c_int = 0x10;
const MAP_ANONYMOUS: c_int = 0x20;
const MAP_NORESERVE: c_int = 0x4000;
const MFD_CLOEXEC: c_uint = 1;
const SC_PAGESIZE: c_int = 30;

/// How many addresses a slot uses in turn: so long does a stale one fault.
const TURNS: usize = 64;
/// Each address is followed by a page that is never mapped.
const STRIDE: usize = 2 * PAGE_SIZE;

/// A range of addresses of our own.
#[derive(Debug)]
struct Area {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the addresses belong to the process, not to a thread.
unsafe impl Send for Area {}
// SAFETY: the methods only compute addresses or map memory, which any thread may do.
unsafe impl Sync for Area {}

impl Area {
    /// Zeroed memory that takes none from the host before it is touched, or addresses without memory.
    fn new(len: usize, prot: c_int) -> Option<Self> {
        Self::map(len, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1)
    }

    /// All of a file.
    fn of_file(file: &File, len: u64) -> Option<Self> {
        let len = usize::try_from(len).ok()?;
        Self::map(len, PROT_READ_WRITE, MAP_SHARED | MAP_NORESERVE, file.as_raw_fd())
    }

    fn map(len: usize, prot: c_int, flags: c_int, fd: c_int) -> Option<Self> {
        // SAFETY: a mapping at addresses that the host chooses touches nobody else's.
        let start = unsafe { mmap64(null_mut(), len.max(1), prot, flags, fd, 0) };
        // Failure is address -1.
        (start.addr() != usize::MAX).then_some(())?;
        Some(Self { start: NonNull::new(start.cast())?, len: len.max(1) })
    }

    fn at(&self, offset: usize) -> Option<NonNull<u8>> {
        (offset < self.len).then_some(())?;
        // SAFETY: the offset lies inside.
        Some(unsafe { self.start.add(offset) })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the range was mapped as a whole, and its owner goes.
        unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// RAM in the direct map.
#[derive(Debug)]
pub(super) struct Lowmem(Area);

impl Lowmem {
    /// So many bytes, zeroed; `None` if the host has no addresses left.
    pub(super) fn new(len: usize) -> Option<Self> {
        Area::new(len, PROT_READ_WRITE).map(Self)
    }

    pub(super) fn at(&self, offset: usize) -> Option<NonNull<u8>> {
        self.0.at(offset)
    }
}

/// RAM that has no address but in a window.
#[derive(Debug)]
pub(super) struct Highmem {
    frames: File,
    windows: Area,
    /// All frames, for the machine's hardware, which needs no window.
    whole: Area,
}

impl Highmem {
    /// So many bytes, zeroed, and so many windows. `None` if the host cannot.
    pub(super) fn new(len: u64, windows: usize) -> Option<Self> {
        // SAFETY: the call takes no pointer.
        let page_size = unsafe { sysconf(SC_PAGESIZE) };
        (usize::try_from(page_size) == Ok(PAGE_SIZE)).then_some(())?;
        // SAFETY: the name ends with a zero.
        let fd = unsafe { memfd_create(c"highmem".as_ptr(), MFD_CLOEXEC) };
        (fd >= 0).then_some(())?;
        // SAFETY: the descriptor is new, so nobody else owns it.
        let frames = unsafe { File::from_raw_fd(fd) };
        frames.set_len(len).ok()?;
        let windows = Area::new(windows.checked_mul(TURNS)?.checked_mul(STRIDE)?, PROT_NONE)?;
        let whole = Area::of_file(&frames, len)?;
        Some(Self { frames, windows, whole })
    }

    /// Lets the machine's hardware at the frame at `offset` of the store.
    pub(super) fn with<R>(&self, offset: u64, work: impl FnOnce(&Window<'_>) -> R) -> Option<R> {
        let start = self.whole.at(usize::try_from(offset).ok()?)?;
        // SAFETY: the frame is in our memory and aligned, and frames above the direct map are accessed through windows alone.
        let window = unsafe { Window::new(start) };
        Some(work(&window))
    }

    /// Opens a closed window at the frame at `offset` of the store. `turn` counts the openings of this window.
    pub(super) fn open(&self, window: usize, turn: usize, offset: u64) -> Option<NonNull<u8>> {
        let at = self.address(window, turn)?;
        let (fd, offset) = (self.frames.as_raw_fd(), i64::try_from(offset).ok()?);
        // SAFETY: the page is one of our windows, which are closed before they are opened: nobody uses the old mapping.
        let page = unsafe {
            mmap64(at.as_ptr().cast(), PAGE_SIZE, PROT_READ_WRITE, MAP_SHARED | MAP_FIXED, fd, offset)
        };
        (page == at.as_ptr().cast()).then_some(at)
    }

    /// Closes a window that was opened for the `turn`-th time: any touch of its address now ends the process.
    pub(super) fn close(&self, window: usize, turn: usize) -> bool {
        let Some(at) = self.address(window, turn) else { return false };
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
        // SAFETY: the page is one of our windows, and whoever used it has closed it.
        let page = unsafe { mmap64(at.as_ptr().cast(), PAGE_SIZE, PROT_NONE, flags, -1, 0) };
        page == at.as_ptr().cast()
    }

    fn address(&self, window: usize, turn: usize) -> Option<NonNull<u8>> {
        self.windows.at((window * TURNS + turn % TURNS) * STRIDE)
    }
}
