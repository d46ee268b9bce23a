//! Where pages of files, and later of swap, come from and go to: [`BackingStore`].

use core::fmt;

use crate::addr::{PAGE_SIZE, Pfn, PgOff};
use crate::error::Errno;

/// Names an input or output that is under way; its store gives it out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ticket(pub u64);

/// What became of an input or output that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Submitted {
    /// It is done.
    Done,
    /// It is under way; [`BackingStore::poll`] tells when it is done. The frames belong to it until then.
    Pending(Ticket),
}

/// How an input or output that is under way stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum IoState {
    /// Not done yet.
    Pending,
    /// It ended like this. The ticket means nothing from now on.
    Ended(Result<(), StoreError>),
}

/// What a store could not do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// The device failed.
    Io,
    /// No room is left.
    NoSpace,
    /// It is full of requests; later there will be room. What it was asked for is asked for again then, unless a call says otherwise. As the end of what was under way this
    /// means the same: nothing was done, and it is asked for again.
    Busy,
}

impl StoreError {
    /// Linux's number.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Io => Errno::EIO,
            Self::NoSpace => Errno::ENOSPC,
            Self::Busy => Errno::EAGAIN,
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Io => "input or output failed",
            Self::NoSpace => "no room is left in the store",
            Self::Busy => "the store takes no more requests for now",
        })
    }
}

impl core::error::Error for StoreError {}

/// How a store without direct access to memory reaches the bytes of frames.
pub trait FrameBytes {
    /// Copies bytes out of a frame; `false` if it cannot be reached or they do not all lie in it.
    #[must_use]
    fn read(&self, pfn: Pfn, offset: usize, out: &mut [u8]) -> bool;

    /// Copies bytes into a frame; `false` if it cannot be reached or they do not all lie in it.
    #[must_use]
    fn write(&self, pfn: Pfn, offset: usize, bytes: &[u8]) -> bool;
}

/// Consecutive pages of a file, and the frames that hold them.
#[derive(Clone, Copy)]
pub struct Cluster<'a> {
    first: PgOff,
    frames: &'a [Pfn],
    reach: &'a dyn FrameBytes,
}

impl<'a> Cluster<'a> {
    /// The pages from `first` on, one a frame.
    pub const fn new(first: PgOff, frames: &'a [Pfn], reach: &'a dyn FrameBytes) -> Self {
        Self { first, frames, reach }
    }

    /// The first page's place in the file.
    pub const fn first(&self) -> PgOff {
        self.first
    }

    /// The frames, for a store that reaches memory itself.
    pub const fn frames(&self) -> &'a [Pfn] {
        self.frames
    }

    /// Where its first byte lies in the file.
    pub const fn offset(&self) -> u64 {
        self.first.get().saturating_mul(PAGE_SIZE as u64)
    }

    /// Copies bytes into its page number `page`.
    #[must_use]
    pub fn fill(&self, page: usize, offset: usize, bytes: &[u8]) -> bool {
        self.frames.get(page).is_some_and(|&pfn| self.reach.write(pfn, offset, bytes))
    }

    /// Copies bytes out of its page number `page`.
    #[must_use]
    pub fn fetch(&self, page: usize, offset: usize, out: &mut [u8]) -> bool {
        self.frames.get(page).is_some_and(|&pfn| self.reach.read(pfn, offset, out))
    }
}

impl fmt::Debug for Cluster<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("first", &self.first).field("frames", &self.frames).finish()
    }
}

/// A device or file system: it reads and writes clusters of pages of its files, which it knows by numbers of its own.
///
/// A call either does the work before it returns, or begins it and answers with a ticket. It may do neither block for long nor
/// allocate from the memory whose pages it writes. It is called with no lock of the library's held, neither a spin lock nor an address space's or a
/// VMA's, but for [`prepare_write`](Self::prepare_write) and [`release`](Self::release):
/// what a fault is to read is prepared first, and asked for when the fault has let go of its locks. One that does the work before it returns delays
/// nobody but the thread that asks. (Where memory is short, an allocation [asks](Self::poll) how things stand, and may be for a caller that has an address space locked.)
///
/// # Linux
/// `struct address_space_operations` in `include/linux/fs.h`, with the block layer behind it.
#[doc(alias = "address_space_operations")]
pub trait BackingStore: Sync {
    /// The size of a file in bytes; of one that does not exist 0, or [`Io`](StoreError::Io). It is asked when a file is opened that nobody has open or mapped.
    ///
    /// # Errors
    /// [`StoreError`]: the file is not opened then. [`Busy`](StoreError::Busy) is as good as [`Io`](StoreError::Io).
    fn size(&self, inode: u64) -> Result<u64, StoreError>;

    /// A page cache begins to use a file: it is asked for its [size](Self::size), read and written until the cache has [released](Self::release) it as often
    /// as it was held, though whoever has opened it may have closed it before. Who opens a file that the cache has holds it for a moment more.
    ///
    /// # Linux
    /// `alloc_inode` in `struct super_operations`, `include/linux/fs.h`.
    fn hold(&self, inode: u64) {
        let _ = inode;
    }

    /// A page cache gives back one time that it has [held](Self::hold) a file. With the last it is through with it: nobody has it open or mapped, and
    /// nothing of it is left to be written or made to last. It may hold it again by now.
    ///
    /// As an unmapping may do that, and an allocation that is short of memory, the caller may have an address space locked: what takes long is noted, and done later.
    ///
    /// # Linux
    /// `evict_inode` in `struct super_operations`, `include/linux/fs.h`.
    #[doc(alias = "evict_inode")]
    fn release(&self, inode: u64) {
        let _ = inode;
    }

    /// Reads pages. Bytes beyond the end of the file, and in holes, are to be zero.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is under way then.
    fn read(&self, inode: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError>;

    /// Writes the first `len` bytes of the pages; what the store holds beyond them stays as it was. The file may
    /// grow by that.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is under way then.
    fn write(&self, inode: u64, pages: &Cluster<'_>, len: u64) -> Result<Submitted, StoreError>;

    /// A page of a file is about to be written in memory, by a store through a mapping or by a call: makes room for it, if it has none, so that
    /// [`write`](Self::write) finds some later. What is refused here the program learns at once: as a SIGBUS, or as the error of its call. Until the page is
    /// written the store holds zeros for it. It may lie beyond the end of the file, which grows when it is written. Asked again for the same page, for each time that it
    /// becomes dirty, it may have nothing to do.
    ///
    /// By default all is well, and a store without room says so when the page is written: the program hears of it by `msync` or `fsync`, or never.
    ///
    /// A fault asks this with its VMA locked, or its address space for reading. To note how much room is promised is enough, as file systems with delayed allocation do;
    /// what takes longer delays calls that change the VMA.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is promised then. [`Busy`](StoreError::Busy): the access is tried again later.
    ///
    /// # Linux
    /// `page_mkwrite` in `struct vm_operations_struct`, `include/linux/mm.h`, and `write_begin` in `struct address_space_operations`.
    #[doc(alias = "page_mkwrite")]
    #[doc(alias = "write_begin")]
    fn prepare_write(&self, inode: u64, page: PgOff) -> Result<(), StoreError> {
        let _ = (inode, page);
        Ok(())
    }

    /// What was written of the file before this call, and its length, will survive whatever comes after the end of it. It is asked for by fsync, msync and sync, and of a file that
    /// nobody has open or mapped any more when all of it is written.
    ///
    /// # Errors
    /// [`StoreError`].
    fn barrier(&self, inode: u64) -> Result<Submitted, StoreError> {
        let _ = inode;
        Ok(Submitted::Done)
    }

    /// Makes the file `size` bytes long; what comes to lie beyond the end is gone, what appears is a hole.
    ///
    /// # Errors
    /// [`StoreError`], and nothing has changed then. [`Busy`](StoreError::Busy) is as good as [`Io`](StoreError::Io): nobody comes again, so a store whose device
    /// is to do something notes that, and does it before anything else.
    fn set_size(&self, inode: u64, size: u64) -> Result<(), StoreError>;

    /// How an input or output that is under way stands. Told once that it ended, it is not asked again.
    fn poll(&self, ticket: Ticket) -> IoState {
        let _ = ticket;
        IoState::Ended(Ok(()))
    }
}
