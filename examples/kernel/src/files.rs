//! Open files of a process: descriptors, positions.

use alloc::sync::Arc;
use alloc::vec::Vec;

use kernmm::syscall::MapFile;
use lock_api::{RwLock, RwLockWriteGuard};

use crate::lock::SleepLock;
use crate::memory::Frames;

/// An opening of a file: its bytes are in kernmm's page cache.
pub type File = kernmm::memory::File<'static, 'static, Frames>;

/// Held by whoever may change the length of a file.
pub static LENGTHS: RwLock<SleepLock, ()> = RwLock::new(());

/// What a descriptor stands for.
pub enum Open {
    /// The serial console.
    Console,
    /// A file of the disk.
    File(OpenFile),
}

/// A file of the disk, and where its next byte is read or written.
pub struct OpenFile {
    pub file: File,
    pub inode: u64,
    pub writes: Writes,
    /// Held while bytes are read or written there: threads that share the opening get, and leave, different ones.
    position: RwLock<SleepLock, u64>,
}

/// Where bytes are written to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// At the position.
    There,
    /// At the end of the file.
    AtItsEnd,
}

impl OpenFile {
    /// An opening, at the beginning of the file.
    pub fn new(file: File, inode: u64, writes: Writes) -> Self {
        Self { file, inode, writes, position: RwLock::new(0) }
    }

    /// Its position, for one call.
    ///
    /// # Linux
    /// `fdget_pos` in `fs/file.c`.
    pub fn position(&self) -> RwLockWriteGuard<'_, SleepLock, u64> {
        self.position.write()
    }
}

/// Descriptors of a process, at most.
const MAX_DESCRIPTORS: usize = 64;

/// The descriptors of a process. A child's name the same openings.
#[derive(Clone)]
pub struct Files(Vec<Option<Arc<Open>>>);

impl Files {
    /// Input, output and errors are the console's.
    pub fn of_console() -> Self {
        let console = Arc::new(Open::Console);
        Self((0..3).map(|_| Some(console.clone())).collect())
    }

    /// What a descriptor stands for.
    pub fn get(&self, fd: i32) -> Option<Arc<Open>> {
        self.0.get(usize::try_from(fd).ok()?)?.clone()
    }

    /// What mmap must know of it; a console cannot be mapped.
    pub fn map_file(&self, fd: i32) -> Option<MapFile> {
        match &*self.get(fd)? {
            // There is one user, who owns all.
            Open::File(open) => Some(open.file.map_file().owned()),
            Open::Console => None,
        }
    }

    /// The lowest free descriptor for an opening; `None` if all are in use.
    pub fn add(&mut self, open: Open) -> Option<i32> {
        let free = self.0.iter().position(Option::is_none);
        if free.is_none() && self.0.len() == MAX_DESCRIPTORS {
            return None;
        }
        let place = free.unwrap_or_else(|| {
            self.0.push(None);
            self.0.len() - 1
        });
        self.0[place] = Some(Arc::new(open));
        Some(place as i32)
    }

    /// Gives a descriptor up; answers with what it stood for.
    pub fn close(&mut self, fd: i32) -> Option<Arc<Open>> {
        self.0.get_mut(usize::try_from(fd).ok()?)?.take()
    }

    /// Gives all up.
    pub fn close_all(&mut self) {
        self.0.clear();
    }
}
