//! Open files: what read, write, mmap and their like do to the page cache.

use core::num::NonZeroU32;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lock_api::RawRwLock;

use super::process::{Process, Refused};
use super::uio::UserBytes;
use super::vm::{Vm, WRITE_OUTS};
use crate::addr::{PgOff, VirtAddr};
use crate::cache::{CacheError, FileId, Moved, Pattern, ReadAhead, Step, SyncMode, WriteBack};
use crate::error::Errno;
use crate::mm::{FileKind, FileRef, OpenId};
use crate::phys::PageSource;
use crate::platform::{BackingStore, Platform};
use crate::sync::{Rank, SpinLock};
use crate::syscall::{MapFile, OpenMode};
use crate::table::{EntryFormat, X86_64};

/// A file that is open.
///
/// Its bytes are those that mappings show: they are read and written in the page cache, and reach the store by write-back, by
/// [`sync`](Self::sync) or msync. Calls wait for the store where they have to, with no lock held. Dropping it closes the file; mappings keep theirs open.
/// What was written and not synced is written by [`Vm::write_back`], which somebody must call every few seconds.
///
/// Positions are the caller's: a table of descriptors with one for each is all that read and write lack.
///
/// # Locking
/// Calls that change a file's length ([`write_at`](Self::write_at) beyond its end, [`truncate`](Self::truncate)) exclude each other by a lock of the
/// caller (Linux: the inode's `i_rwsem`); if they do not, the length is that of one of them, bytes that were written may be gone, and bytes that were cut
/// off be there.
#[derive(Debug)]
#[doc(alias = "file")]
pub struct File<'v, 'a, S: PageSource, F: EntryFormat = X86_64> {
    vm: &'v Vm<'a, S, F>,
    reference: FileRef,
    mode: OpenMode,
    reading: SpinLock<Reading>,
    errors: SpinLock<crate::cache::ErrorsSeen>,
}

/// How a file is read by calls.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    ahead: ReadAhead,
    pattern: Pattern,
}

/// Why a file's bytes did not get to a process, or from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransferError {
    /// The page cache refused.
    File(CacheError),
    /// The process's memory could not be reached.
    User(Refused),
}

impl TransferError {
    /// Linux's number.
    pub const fn errno(self) -> Errno {
        match self {
            Self::File(error) => error.errno(),
            Self::User(refused) => refused.errno(),
        }
    }
}

impl core::fmt::Display for TransferError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::User(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for TransferError {}

impl From<CacheError> for TransferError {
    fn from(error: CacheError) -> Self {
        Self::File(error)
    }
}

impl<'a, S: PageSource, F: EntryFormat> Vm<'a, S, F> {
    /// Opens a file of a store. Each call is an opening of its own, as mmap tells them apart.
    ///
    /// The store is borrowed for as long as the frames are, since pages of it may have to be written after the file is closed: a store that comes and goes is
    /// kept in an `Arc` or the like of the kernel's, and unmounted when it has [released](BackingStore::release) all files: none is open or mapped, no page pinned, and
    /// [`reap`](Self::reap) has answered 0. Whoever passes files on
    /// names both lifetimes:
    ///
    /// ```
    /// use kernmm::cache::CacheError;
    /// use kernmm::memory::{File, Vm};
    /// use kernmm::phys::PageSource;
    /// use kernmm::platform::BackingStore;
    /// use kernmm::syscall::OpenMode;
    ///
    /// fn open<'v, 'a, S: PageSource>(
    ///     vm: &'v Vm<'a, S>,
    ///     store: &'a dyn BackingStore,
    ///     inode: u64,
    /// ) -> Result<File<'v, 'a, S>, CacheError> {
    ///     vm.open_file(store, inode, OpenMode::ReadWrite)
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`PageCache::open`](crate::cache::PageCache::open).
    pub fn open_file(
        &self,
        store: &'a dyn BackingStore,
        inode: u64,
        mode: OpenMode,
    ) -> Result<File<'_, 'a, S, F>, CacheError> {
        let file = self.cache().open(self.source(), store, inode)?;
        File::new(self, file, FileKind::Regular, mode)
    }

    /// Makes a file that lives in memory alone, `size` bytes of zeros; it is gone when its last user is.
    ///
    /// # Errors
    /// As [`PageCache::create_memory`](crate::cache::PageCache::create_memory).
    #[doc(alias = "memfd_create")]
    pub fn memory_file(&self, size: u64) -> Result<File<'_, 'a, S, F>, CacheError> {
        let file = self.cache().create_memory(self.source(), size)?;
        File::new(self, file, FileKind::Memory, OpenMode::ReadWrite)
    }
}

impl<'v, 'a, S: PageSource, F: EntryFormat> File<'v, 'a, S, F> {
    /// The caller's user of `file` becomes the opening's.
    fn new(vm: &'v Vm<'a, S, F>, file: FileId, kind: FileKind, mode: OpenMode) -> Result<Self, CacheError> {
        let errors = vm.cache().errors_so_far(vm.source(), file);
        let reference = FileRef { file, open: vm.next_opening(), kind, read_only: !mode.writes() };
        let errors = errors.inspect_err(|_| {
            let _ = vm.cache().put_user(vm.source(), file);
        })?;
        let errors = SpinLock::new(Rank::Leaf, errors);
        let reading = SpinLock::new(Rank::Leaf, Reading::default());
        Ok(Self { vm, reference, mode, reading, errors })
    }

    /// What names it in the page cache.
    pub const fn id(&self) -> FileId {
        self.reference.file
    }

    /// What names it, and this opening of it, in VMAs.
    pub const fn reference(&self) -> FileRef {
        self.reference
    }

    /// How it was opened.
    pub const fn mode(&self) -> OpenMode {
        self.mode
    }

    /// What mmap must know of it.
    pub const fn map_file(&self) -> MapFile {
        MapFile::new(self.reference, self.mode)
    }

    fn must_read(&self) -> Result<(), CacheError> {
        if self.mode.reads() { Ok(()) } else { Err(CacheError::NotReadable) }
    }

    fn must_write(&self) -> Result<(), CacheError> {
        if self.mode.writes() { Ok(()) } else { Err(CacheError::NotWritable) }
    }

    /// Its length in bytes.
    ///
    /// # Errors
    /// [`CacheError::BadFile`].
    pub fn size(&self) -> Result<u64, CacheError> {
        self.vm.cache().size(self.vm.source(), self.id())
    }

    /// Says how calls are going to read this opening of the file: [`Pattern::Stream`] if nothing is known, [`Pattern::Sequential`] or [`Pattern::Random`].
    ///
    /// # Linux
    /// `POSIX_FADV_NORMAL`, `POSIX_FADV_SEQUENTIAL` and `POSIX_FADV_RANDOM` of `posix_fadvise(2)`: `generic_fadvise` in `mm/fadvise.c`.
    #[doc(alias = "posix_fadvise")]
    #[doc(alias = "POSIX_FADV_SEQUENTIAL")]
    #[doc(alias = "POSIX_FADV_RANDOM")]
    pub fn advise(&self, pattern: Pattern) {
        self.reading.lock(&self.vm.source().platform().pin()).pattern = pattern;
    }

    /// Copies bytes out, as many as there are.
    ///
    /// # Errors
    /// [`CacheError::NotReadable`]; else as [`PageCache::read_at`](crate::cache::PageCache::read_at).
    #[doc(alias = "pread")]
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize, CacheError> {
        self.must_read()?;
        let file = |error| match error {
            TransferError::File(error) => error,
            // The bytes are the kernel's own.
            TransferError::User(_) => CacheError::Unreachable,
        };
        let len = out.len();
        let mut read = |done: usize, ahead: &mut ReadAhead, pattern| {
            let rest = out.get_mut(done..).unwrap_or_default();
            let at = offset.saturating_add(done as u64);
            self.vm.cache().read_at(self.vm.source(), self.id(), at, rest, ahead, pattern).map_err(Into::into)
        };
        self.read_with(len, &mut read).map_err(file)
    }

    /// Reads until so many bytes are copied, or there are no more; `read` is told how many were before, and how the file is read.
    fn read_with(
        &self,
        len: usize,
        read: &mut dyn FnMut(usize, &mut ReadAhead, Pattern) -> Result<Moved, TransferError>,
    ) -> Result<usize, TransferError> {
        let source = self.vm.source();
        let Reading { mut ahead, pattern } = *self.reading.lock(&source.platform().pin());
        let mut done = Done::default();
        loop {
            let moved = read(done.bytes, &mut ahead, pattern);
            self.reading.lock(&source.platform().pin()).ahead = ahead;
            match self.wait_for(moved, &mut done, len)? {
                Go::On => {}
                Go::Done => return Ok(done.bytes),
            }
        }
    }

    /// Copies bytes in; the file grows if they go beyond its end. Fewer are copied only up to the largest file that can be.
    ///
    /// # Errors
    /// [`CacheError::NotWritable`]; else as [`PageCache::write_at`](crate::cache::PageCache::write_at).
    #[doc(alias = "pwrite")]
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<usize, CacheError> {
        self.must_write()?;
        let (mut done, len) = (Done::default(), bytes.len());
        loop {
            let Some(rest) = bytes.get(done.bytes..) else { return Ok(done.bytes) };
            let at = offset.saturating_add(done.bytes as u64);
            let moved = self.vm.cache().write_at(self.vm.source(), self.id(), at, rest);
            match self.wait_for(moved, &mut done, len)? {
                Go::On => {}
                Go::Done => return Ok(done.bytes),
            }
        }
    }

    /// Counts what was copied of `len` bytes, and waits where there is something to wait for. An error after some bytes is the next call's.
    fn wait_for<E: Lacks>(&self, moved: Result<Moved, E>, done: &mut Done, len: usize) -> Result<Go, E> {
        match moved {
            Ok(Moved { bytes, wait }) => {
                done.bytes += bytes;
                if bytes != 0 {
                    done.write_outs = 0;
                }
                match wait {
                    Some(ticket) => self.vm.cache().wait(self.vm.source(), ticket),
                    None if bytes == 0 || done.bytes == len => return Ok(Go::Done),
                    // It ends there, or met with something: the next attempt tells.
                    None => {}
                }
                Ok(Go::On)
            }
            // All that is clean has gone by now.
            Err(error) if error.lacks_frames() && done.write_outs < WRITE_OUTS && self.vm.write_out() => {
                done.write_outs += 1;
                Ok(Go::On)
            }
            Err(_) if done.bytes != 0 => Ok(Go::Done),
            Err(error) => Err(error),
        }
    }

    /// Copies bytes to a process's memory: the work of read(2). Answers with how many; fewer at the end of the file, or where the memory ends.
    ///
    /// # Errors
    /// [`TransferError`], if nothing was copied.
    pub fn read_to_user<L: RawRwLock>(
        &self,
        process: &Process<'v, 'a, S, F, L>,
        offset: u64,
        to: VirtAddr,
        len: u64,
    ) -> Result<u64, TransferError> {
        self.must_read()?;
        let (cache, source) = (self.vm.cache(), self.vm.source());
        let end = offset.saturating_add(len);
        let mut read = |done: usize, ahead: &mut ReadAhead, pattern| {
            let wanted = offset.saturating_add(done as u64)..end;
            let to = to.checked_add(done as u64).ok_or_else(no_address)?;
            cache.read_to(source, self.id(), wanted, &mut UserBytes::new(process, to), ahead, pattern)
        };
        self.read_with(in_memory(len), &mut read).map(|read| read as u64)
    }

    /// Copies bytes from a process's memory: the work of write(2). Answers with how many; fewer where the memory ends.
    ///
    /// # Errors
    /// [`TransferError`], if nothing was copied.
    pub fn write_from_user<L: RawRwLock>(
        &self,
        process: &Process<'v, 'a, S, F, L>,
        offset: u64,
        from: VirtAddr,
        len: u64,
    ) -> Result<u64, TransferError> {
        self.must_write()?;
        let (mut done, len) = (Done::default(), in_memory(len));
        loop {
            let at = offset.saturating_add(done.bytes as u64);
            let moved = from.checked_add(done.bytes as u64).ok_or_else(no_address).and_then(|from| {
                let mut from = UserBytes::new(process, from);
                self.vm.cache().write_from(self.vm.source(), self.id(), at, len - done.bytes, &mut from)
            });
            match self.wait_for(moved, &mut done, len)? {
                Go::On => {}
                Go::Done => return Ok(done.bytes as u64),
            }
        }
    }

    /// Makes the file so long; what it loses is gone from mappings too, what it gains is a hole.
    ///
    /// # Errors
    /// [`CacheError::NotResizable`]; else as [`PageCache::truncate`](crate::cache::PageCache::truncate).
    #[doc(alias = "ftruncate")]
    pub fn truncate(&self, size: u64) -> Result<(), CacheError> {
        self.must_write().map_err(|_| CacheError::NotResizable)?;
        let (cache, source) = (self.vm.cache(), self.vm.source());
        loop {
            // Dropped before the wait, so that what it took out of tables is flushed.
            let step = cache.truncate(source, &self.vm.pager().entries(), self.id(), size)?;
            let Step::Wait(ticket) = step else { return Ok(()) };
            cache.wait(source, ticket);
        }
    }

    /// Writes what is newer here than in the store, and waits until it lasts.
    ///
    /// # Errors
    /// What the store met with since this opening was last told.
    #[doc(alias = "fsync")]
    pub fn sync(&self) -> Result<(), CacheError> {
        self.sync_pages(PgOff::ZERO, PgOff::MAX)
    }

    /// The same for the pages from `first` up to and without `end`.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    #[doc(alias = "sync_file_range")]
    pub fn sync_pages(&self, first: PgOff, end: PgOff) -> Result<(), CacheError> {
        let (cache, source) = (self.vm.cache(), self.vm.source());
        let mut job = WriteBack::new(self.id(), first, end, SyncMode::Wait);
        while let Step::Wait(ticket) = cache.write_back(source, &self.vm.pager().entries(), &mut job)? {
            cache.wait(source, ticket);
        }
        let mut seen = *self.errors.lock(&source.platform().pin());
        let told = cache.take_error(source, self.id(), &mut seen);
        *self.errors.lock(&source.platform().pin()) = seen;
        told
    }
}

/// How far a call has come.
#[derive(Clone, Copy, Default)]
struct Done {
    bytes: usize,
    /// How often something was written out since.
    write_outs: u32,
}

/// Whether a call is to be made again.
enum Go {
    On,
    Done,
}

fn no_address() -> TransferError {
    TransferError::User(Refused::Signal(crate::fault::Signal::NonCanonical))
}

/// As many bytes as memory can have.
fn in_memory(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// What a call met with that may do better when something was written out.
trait Lacks {
    /// Whether the file lacks a frame.
    fn lacks_frames(&self) -> bool;
}

impl Lacks for CacheError {
    fn lacks_frames(&self) -> bool {
        *self == Self::OutOfMemory
    }
}

impl Lacks for TransferError {
    fn lacks_frames(&self) -> bool {
        matches!(self, Self::File(error) if error.lacks_frames())
    }
}

impl<S: PageSource, F: EntryFormat> Drop for File<'_, '_, S, F> {
    fn drop(&mut self) {
        let put = self.vm.cache().put_user(self.vm.source(), self.id());
        debug_assert!(put.is_ok(), "an open file was gone: {put:?}");
    }
}

/// Numbers for openings, which mappings compare: none is 0.
pub(super) fn opening(counter: &AtomicU64) -> OpenId {
    let next = counter.fetch_add(1, Relaxed);
    OpenId(NonZeroU32::new(next as u32).unwrap_or(NonZeroU32::MAX))
}
