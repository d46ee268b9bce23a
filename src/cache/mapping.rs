//! Files: which there are, who uses them, how long they are.

use core::mem::ManuallyDrop;
use core::num::NonZeroU32;

use crate::addr::{PAGE_SHIFT, Pfn};
use crate::phys::PageSource;
use crate::platform::{BackingStore, CpuPin, Platform, StoreError};
use crate::rmap::ShareList;
use crate::sync::{Rank, SpinLock};

use super::error::CacheError;
use super::failures::Failures;
use super::files::{Files, Key, Links, Named, key_of};
use super::hole::Hole;
use super::pages::{Pages, Tree};
use super::work::Words;
use super::{MAX_FILE_BYTES, PageCache};

/// Names a file (an inode). Its number is what the file's pages note as their [mapping](crate::phys::Page::mapping).
///
/// The place of the file among all, plus one, in the lower 20 bits; above it how often that place was given up, so that a number that was kept too long
/// names no other file for a while.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileId(pub NonZeroU32);

impl FileId {
    pub(super) const PLACE_BITS: u32 = 20;
    const PLACE_MASK: u32 = (1 << Self::PLACE_BITS) - 1;

    /// The most files of one cache.
    pub const MAX_FILES: usize = Self::PLACE_MASK as usize;

    fn new(place: usize, turn: u32) -> Option<Self> {
        let place = u32::try_from(place + 1).ok().filter(|&place| place <= Self::PLACE_MASK)?;
        NonZeroU32::new(turn << Self::PLACE_BITS | place).map(Self)
    }

    pub(super) fn place(self) -> usize {
        // 0 in these bits names no place: it becomes one that no slice has.
        ((self.0.get() & Self::PLACE_MASK) as usize).wrapping_sub(1)
    }

    fn turn(self) -> u32 {
        self.0.get() >> Self::PLACE_BITS
    }
}

/// Where the pages of a file come from.
#[derive(Clone, Copy)]
pub(super) enum Kind<'m> {
    /// There is no file.
    None,
    /// From a store.
    Store { store: &'m dyn BackingStore, inode: u64 },
    /// They are all there is: what is not there is zero.
    Memory,
}

/// A length that a file has been cut to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cut {
    pub(super) size: u64,
    /// What the store said to it. Until it is told once more it has bytes that the file has no longer; nothing yet while a truncation is under way.
    pub(super) refused: Option<StoreError>,
}

/// What a [`Mapping`]'s lock guards.
pub(super) struct State<'m> {
    /// How often the place was given up, modulo 2^12.
    pub(super) turn: u32,
    pub(super) kind: Kind<'m>,
    /// The file's length in bytes.
    pub(super) size: u64,
    /// Its store is being asked for that: all who open it do so, and the first answer counts.
    is_new: bool,
    /// A shorter length that the store has still to be told.
    pub(super) cut: Option<Cut>,
    /// Never dropped: links that are forgotten hurt nobody, and so a cache may lie beside what it is made of.
    pub(super) tree: ManuallyDrop<Tree<'m>>,
    /// Descriptors and VMAs.
    pub(super) users: u32,
    pub(super) dirty: u32,
    pub(super) writeback: u32,
    /// Of what nobody has open or mapped.
    pub(super) failures: Failures,
    pub(super) errors: ErrorLog,
    pub(super) lasting: Lasting,
    /// Where pages are being taken out of a file in memory.
    pub(super) hole: Hole,
    /// Whether the place is among those with [work](super::work::Work).
    pub(super) is_noted: bool,
}

impl core::fmt::Debug for State<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { turn, size, users, dirty, writeback, .. } = self;
        f.debug_struct("State")
            .field("turn", turn)
            .field("size", size)
            .field("pages", &self.tree.len())
            .field("users", users)
            .field("dirty", dirty)
            .field("writeback", writeback)
            .finish_non_exhaustive()
    }
}

impl<'m> State<'m> {
    fn is(&self, turn: u32) -> bool {
        !matches!(self.kind, Kind::None) && self.turn == turn
    }

    /// The file, whose place has this number, if there is one.
    pub(super) fn file(&self, place: usize) -> Option<FileId> {
        if matches!(self.kind, Kind::None) { None } else { FileId::new(place, self.turn) }
    }

    /// The store of a file that has one.
    pub(super) fn store(&self) -> Option<(&'m dyn BackingStore, u64)> {
        match self.kind {
            Kind::Store { store, inode } => Some((store, inode)),
            _ => None,
        }
    }
}

/// Room for one file: its pages, its length, and the list of the VMAs that map it.
///
/// # Linux
/// `struct address_space` with what it needs of `struct inode`, in `include/linux/fs.h`.
#[derive(Debug)]
#[doc(alias = "address_space")]
pub struct Mapping<'m> {
    pub(super) state: SpinLock<State<'m>>,
    pub(super) sharers: ShareList,
    pub(super) named: Named,
    pub(super) links: Links,
    pub(super) work: Words,
}

impl Default for Mapping<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl Mapping<'_> {
    /// The file that is here, in the place with this number.
    pub(super) fn file(&self, pin: &CpuPin<'_>, place: usize) -> Option<FileId> {
        self.state.lock(pin).file(place)
    }

    /// Room for a file.
    pub fn new() -> Self {
        let state = State {
            turn: 0,
            kind: Kind::None,
            size: 0,
            is_new: false,
            cut: None,
            tree: ManuallyDrop::new(Tree::new(&[])),
            users: 0,
            dirty: 0,
            writeback: 0,
            failures: Failures::NONE,
            errors: ErrorLog::default(),
            lasting: Lasting::default(),
            hole: Hole::NONE,
            is_noted: false,
        };
        Self {
            state: SpinLock::new(Rank::Mapping, state),
            sharers: ShareList::new(),
            named: Named::default(),
            links: Links::new(),
            work: Words::default(),
        }
    }
}

/// What a file is at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct FileStat {
    /// Its length in bytes.
    pub bytes: u64,
    /// Its pages in memory, those that are being read among them.
    pub pages: u32,
    /// Those of them that are newer than the store, or have none.
    pub dirty: u32,
    /// Those that are being written.
    pub writeback: u32,
    /// Descriptors and VMAs.
    pub users: u32,
}

impl<'m> PageCache<'m> {
    /// The file with this number in a store: the same one as long as anybody uses it. The caller is one user more.
    ///
    /// # Errors
    /// [`CacheError::TooManyFiles`], [`CacheError::TooLarge`]; [`CacheError::Io`] and [`CacheError::NoSpace`] of a store that cannot tell the file's
    /// [size](BackingStore::size).
    ///
    /// # Locking
    /// The caller holds no lock and no pin: the store is asked.
    ///
    /// # Linux
    /// `iget_locked` in `fs/inode.c`; a file that is `I_NEW` is waited for there.
    #[doc(alias = "I_NEW")]
    pub fn open<S: PageSource>(
        &self,
        source: &S,
        store: &'m dyn BackingStore,
        inode: u64,
    ) -> Result<FileId, CacheError> {
        // Who finds it in its place asks the store at once, so it is held before.
        store.hold(inode);
        // It has its place before the store is asked: else it might be opened, made longer and closed by others, before the answer comes.
        let (file, is_made, is_new) = {
            let pin = source.platform().pin();
            let mut files = self.files.lock(&pin);
            match self.open_known(&pin, &files, key_of(store, inode)) {
                Some((file, is_new)) => (Ok(file), false, is_new),
                None => match self.place_file(&pin, &mut files, Kind::Store { store, inode }, 0) {
                    Ok(file) => (Ok(file), true, true),
                    Err(error) => (Err(error), false, false),
                },
            }
        };
        if !is_made {
            store.release(inode);
        }
        let file = file?;
        if !is_new {
            return Ok(file);
        }
        let size = match store.size(inode) {
            Ok(size) if size > MAX_FILE_BYTES => Err(CacheError::TooLarge),
            Ok(size) => Ok(size),
            Err(error) => Err(error.into()),
        };
        match size.and_then(|size| self.set_first_size(source, file, size)) {
            Ok(()) => Ok(file),
            Err(error) => {
                self.put_user(source, file)?;
                Err(error)
            }
        }
    }

    /// Notes what the store says is the length of a file that is being opened, unless another who opens it has by now.
    fn set_first_size<S: PageSource>(&self, source: &S, file: FileId, size: u64) -> Result<(), CacheError> {
        let pin = source.platform().pin();
        let mut pages = self.lock(source, &pin, file)?;
        if core::mem::replace(&mut pages.is_new, false) {
            pages.size = size;
        }
        Ok(())
    }

    /// A file with this name, if there is one, with a user more; whether its length is still to be asked for.
    fn open_known(&self, pin: &CpuPin<'_>, files: &Files<'m>, key: Key) -> Option<(FileId, bool)> {
        let slot = files.find(key)?;
        let mut state = self.mappings.get(slot.index())?.state.lock(pin);
        let file = FileId::new(slot.index(), state.turn)?;
        state.users = state.users.saturating_add(1);
        state.failures = Failures::NONE;
        Some((file, state.is_new))
    }

    /// A file in memory alone, `size` bytes of zeros. The caller is its user.
    ///
    /// # Errors
    /// [`CacheError::TooManyFiles`], [`CacheError::TooLarge`].
    ///
    /// # Linux
    /// `shmem_file_setup` in `mm/shmem.c`.
    #[doc(alias = "shmem_file_setup")]
    pub fn create_memory<S: PageSource>(&self, source: &S, size: u64) -> Result<FileId, CacheError> {
        if size > MAX_FILE_BYTES {
            return Err(CacheError::TooLarge);
        }
        let pin = source.platform().pin();
        let mut files = self.files.lock(&pin);
        self.place_file(&pin, &mut files, Kind::Memory, size)
    }

    /// Gives a new file a place. The list of files is locked.
    fn place_file(
        &self,
        pin: &CpuPin<'_>,
        files: &mut Files<'m>,
        kind: Kind<'m>,
        size: u64,
    ) -> Result<FileId, CacheError> {
        let slot = files.take_place().ok_or(CacheError::TooManyFiles)?;
        let mapping = self.mappings.get(slot.index()).ok_or(CacheError::TooManyFiles)?;
        let mut state = mapping.state.lock(pin);
        let Some(file) = FileId::new(slot.index(), state.turn) else {
            files.give_up(slot);
            return Err(CacheError::TooManyFiles);
        };
        if let Kind::Store { store, inode } = kind {
            let named = files.name(slot, key_of(store, inode));
            debug_assert!(named.is_ok(), "a file has a name twice: {named:?}");
        }
        let (turn, hole, is_noted) = (state.turn, state.hole, state.is_noted);
        let tree = ManuallyDrop::new(Tree::new(self.ext));
        let (errors, lasting) = (ErrorLog::default(), Lasting::default());
        *state = State {
            turn,
            kind,
            size,
            is_new: matches!(kind, Kind::Store { .. }),
            cut: None,
            tree,
            users: 1,
            dirty: 0,
            writeback: 0,
            failures: Failures::NONE,
            errors,
            lasting,
            hole,
            is_noted,
        };
        Ok(file)
    }

    /// Counts one more user: a descriptor or a VMA.
    ///
    /// # Errors
    /// [`CacheError::BadFile`].
    #[doc(alias = "get_file")]
    pub fn add_user<S: PageSource>(&self, source: &S, file: FileId) -> Result<(), CacheError> {
        let pin = source.platform().pin();
        let mut pages = self.lock(source, &pin, file)?;
        pages.users = pages.users.saturating_add(1);
        Ok(())
    }

    /// Counts one user less. With the last one a file in memory is gone, and the pages of another are dropped, those that have first to be written
    /// when that is done or its store has failed eight times, those that are pinned with the last pin, and the file when all that was written lasts,
    /// which [`reap`](Self::reap) and [`write_dirty`](Self::write_dirty) see to: here nothing is read or written. Answers whether this call has ended the
    /// file: of all that drop users of one, at most one is told so.
    ///
    /// # Errors
    /// [`CacheError::BadFile`].
    #[doc(alias = "fput")]
    pub fn put_user<S: PageSource>(&self, source: &S, file: FileId) -> Result<bool, CacheError> {
        {
            let pin = source.platform().pin();
            let mut pages = self.lock(source, &pin, file)?;
            pages.users = pages.users.saturating_sub(1);
            if pages.users != 0 {
                return Ok(false);
            }
        }
        Ok(self.drop_unused(source, file, 0..u32::MAX))
    }

    /// What a file is at this moment.
    ///
    /// # Errors
    /// [`CacheError::BadFile`].
    pub fn stat<S: PageSource>(&self, source: &S, file: FileId) -> Result<FileStat, CacheError> {
        let pin = source.platform().pin();
        let pages = self.lock(source, &pin, file)?;
        let State { size, users, dirty, writeback, .. } = *pages;
        Ok(FileStat { bytes: size, pages: pages.tree.len() as u32, dirty, writeback, users })
    }

    /// The length of a file in bytes.
    ///
    /// # Errors
    /// [`CacheError::BadFile`].
    ///
    /// # Linux
    /// `i_size_read` in `include/linux/fs.h`.
    #[doc(alias = "i_size_read")]
    pub fn size<S: PageSource>(&self, source: &S, file: FileId) -> Result<u64, CacheError> {
        self.stat(source, file).map(|stat| stat.bytes)
    }

    /// Locks a file.
    pub(super) fn lock<'a, S: PageSource>(
        &'a self,
        source: &'a S,
        pin: &'a CpuPin<'_>,
        file: FileId,
    ) -> Result<Pages<'a, 'm>, CacheError> {
        let mapping = self.mappings.get(file.place()).ok_or(CacheError::BadFile)?;
        let state = mapping.state.lock(pin);
        if !state.is(file.turn()) {
            return Err(CacheError::BadFile);
        }
        Ok(Pages::new(state, source.phys(), file))
    }
}

/// Frames that have left a file, to be let go of when it is no longer locked.
pub(super) struct Batch {
    frames: [Pfn; Self::ROOM],
    len: usize,
}

/// The most pages of a file that are looked at with it locked.
pub(super) const LOOKS: usize = 512;

impl Batch {
    const ROOM: usize = 64;

    pub(super) const fn new() -> Self {
        Self { frames: [Pfn::ZERO; Self::ROOM], len: 0 }
    }

    pub(super) const fn is_full(&self) -> bool {
        self.len == Self::ROOM
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, pfn: Pfn) {
        if let Some(place) = self.frames.get_mut(self.len) {
            *place = pfn;
            self.len += 1;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Pfn> + use<> {
        self.frames.into_iter().take(self.len)
    }

    /// Drops a reference of each.
    pub(super) fn put_all<S: PageSource>(self, source: &S) {
        self.iter().for_each(|pfn| put(source, pfn));
    }
}

/// Drops a reference that the cache has.
pub(super) fn put<S: PageSource>(source: &S, pfn: Pfn) {
    let result = source.put_page(pfn);
    debug_assert!(result.is_ok(), "the cache had a reference to {pfn:?}: {result:?}");
}

/// The errors of a file's writes, each to be told once to everyone who has the file open.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ErrorLog {
    count: u32,
    last: Option<StoreError>,
    /// Whether anybody has been told of the last.
    seen: bool,
}

/// How much of what was done to a file in its store a barrier has made to last: writes, and changes of its length.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lasting {
    /// How often something was done, modulo 2^32.
    done: u32,
    /// How often of that before a barrier.
    lasts: u32,
    /// How often a barrier was refused since one was made.
    refused: u32,
}

impl Lasting {
    pub(super) const fn is_all(&self) -> bool {
        self.done == self.lasts
    }

    /// What a barrier makes to last that is asked for now.
    pub(super) const fn done(&self) -> u32 {
        self.done
    }

    /// Whether a barrier is over before which so much was done.
    const fn has(&self, done: u32) -> bool {
        self.done.wrapping_sub(self.lasts) <= self.done.wrapping_sub(done)
    }

    /// A barrier was refused; whether often enough to give up.
    pub(super) const fn note_refused(&mut self) -> bool {
        self.refused = self.refused.saturating_add(1);
        self.refused >= Failures::TRIES
    }

    pub(super) const fn note_done(&mut self) {
        self.done = self.done.wrapping_add(1);
    }

    /// A barrier is over before which so much was done.
    pub(super) const fn note_barrier(&mut self, done: u32) {
        self.refused = 0;
        // Of two that overlap the earlier may end later.
        if !self.has(done) {
            self.lasts = done;
        }
    }
}

/// Which errors of a file one opening of it has been told of.
///
/// # Linux
/// `errseq_t` in `lib/errseq.c`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(alias = "errseq_t")]
pub struct ErrorsSeen(u32);

impl ErrorLog {
    pub(super) fn note(&mut self, error: StoreError) {
        *self = Self { count: self.count.wrapping_add(1), last: Some(error), seen: false };
    }
}

impl<'m> PageCache<'m> {
    /// What a new opening of a file has been told of: all errors but one that nobody has been told of yet.
    ///
    /// # Errors
    /// [`CacheError::BadFile`].
    ///
    /// # Linux
    /// `errseq_sample` in `lib/errseq.c`.
    #[doc(alias = "errseq_sample")]
    pub fn errors_so_far<S: PageSource>(&self, source: &S, file: FileId) -> Result<ErrorsSeen, CacheError> {
        let pin = source.platform().pin();
        let errors = self.lock(source, &pin, file)?.errors;
        let untold = u32::from(errors.last.is_some() && !errors.seen);
        Ok(ErrorsSeen(errors.count.wrapping_sub(untold)))
    }

    /// Tells an opening of the last error that a write of the file met with, if it has not been told.
    ///
    /// # Errors
    /// That error, [`CacheError::Io`] or [`CacheError::NoSpace`]; [`CacheError::BadFile`].
    ///
    /// # Linux
    /// `file_check_and_advance_wb_err` in `mm/filemap.c`.
    #[doc(alias = "file_check_and_advance_wb_err")]
    pub fn take_error<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        seen: &mut ErrorsSeen,
    ) -> Result<(), CacheError> {
        let pin = source.platform().pin();
        let mut pages = self.lock(source, &pin, file)?;
        let told = core::mem::replace(&mut seen.0, pages.errors.count);
        if told == pages.errors.count {
            return Ok(());
        }
        pages.errors.seen = true;
        pages.errors.last.map_or(Ok(()), |error| Err(error.into()))
    }

    /// The place of a byte of a file: the page, and the byte in it.
    pub(super) fn locate(offset: u64) -> Result<(u32, usize), CacheError> {
        let index = u32::try_from(offset >> PAGE_SHIFT).map_err(|_| CacheError::TooLarge)?;
        if offset >= MAX_FILE_BYTES {
            return Err(CacheError::TooLarge);
        }
        Ok((index, (offset & crate::addr::PAGE_OFFSET_MASK) as usize))
    }
}
