//! Files of the host as a store.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::{Arc, RwLock, RwLockWriteGuard};

use crate::addr::{PAGE_SIZE, PAGE_SIZE_U64};
use crate::platform::{BackingStore, Cluster, StoreError, Submitted};

/// Real files, read and written in place. A call does its work before it returns.
///
/// ```
/// use kernmm::platform::BackingStore;
/// use kernmm::platform::hosted::HostFiles;
///
/// let files = HostFiles::new();
/// let inode = files.open("Cargo.toml")?;
/// assert_eq!(files.size(inode), Ok(std::fs::metadata("Cargo.toml")?.len()));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct HostFiles(RwLock<Table>);

#[derive(Debug, Default)]
struct Table {
    files: BTreeMap<u64, Open>,
    next: u64,
}

#[derive(Debug)]
struct Open {
    /// `None` if it was emptied when nobody had it open here: it is another file now.
    file: Option<Arc<File>>,
    /// What the host calls it; `None` where it cannot be told from others.
    identity: Option<(u64, u64)>,
    writable: bool,
    users: u64,
    /// How often page caches hold it.
    held: u64,
}

impl Table {
    /// A file may have lost the last that kept it.
    fn forget_unused(&mut self, inode: u64) {
        if self.files.get(&inode).is_some_and(|open| open.users == 0 && open.held == 0) {
            self.files.remove(&inode);
        }
    }
}

impl HostFiles {
    /// No files yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a file that exists, for writing too if the host allows it; answers with its number from now on. A file that is open already, by
    /// whatever path, keeps its number.
    ///
    /// # Errors
    /// The host's.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<u64> {
        let path = path.as_ref();
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => self.add(file, true),
            Err(_) => self.add(File::open(path)?, false),
        }
    }

    /// Opens a file, which is empty afterwards and need not have existed. One that is open already is emptied on the host, and nobody is told: truncate it by its
    /// [`File`](crate::memory::File) instead.
    ///
    /// # Errors
    /// The host's.
    pub fn create(&self, path: impl AsRef<Path>) -> io::Result<u64> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if let Some(old) = self.cut_off(identity(&file)?) {
            // Who is writing to it now does so before it is emptied.
            while Arc::strong_count(&old) > 1 {
                std::thread::yield_now();
            }
        }
        file.set_len(0)?;
        self.add(file, true)
    }

    /// Undoes an `open` or a `create`. After the last one the number means nothing, as soon as no page cache has anything of the file left to be written; opened before
    /// that, it has the same number.
    pub fn close(&self, inode: u64) {
        let mut table = self.table();
        if let Some(open) = table.files.get_mut(&inode) {
            open.users = open.users.saturating_sub(1);
        }
        table.forget_unused(inode);
    }

    /// Makes what page caches hold of a file that nobody has open here another file's, of which nothing is there any more.
    fn cut_off(&self, identity: Option<(u64, u64)>) -> Option<Arc<File>> {
        let mut table = self.table();
        let left = |open: &&mut Open| open.users == 0 && identity.is_some() && open.identity == identity;
        let open = table.files.values_mut().find(left)?;
        open.identity = None;
        open.file.take()
    }

    fn table(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn add(&self, file: File, writable: bool) -> io::Result<u64> {
        let identity = identity(&file)?;
        let mut table = self.table();
        let known = table.files.iter_mut().find(|(_, open)| identity.is_some() && open.identity == identity);
        if let Some((&inode, open)) = known {
            open.users += 1;
            if writable && !open.writable {
                (open.file, open.writable) = (Some(Arc::new(file)), true);
            }
            return Ok(inode);
        }
        let inode = table.next;
        table.next += 1;
        table.files.insert(inode, Open { file: Some(Arc::new(file)), identity, writable, users: 1, held: 0 });
        Ok(inode)
    }

    /// A file for as long as the caller needs it, without keeping others from opening some.
    fn file(&self, inode: u64) -> Result<Arc<File>, StoreError> {
        let table = self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        table.files.get(&inode).and_then(|open| open.file.clone()).ok_or(StoreError::Io)
    }
}

impl BackingStore for HostFiles {
    fn size(&self, inode: u64) -> Result<u64, StoreError> {
        self.file(inode)?.metadata().map(|metadata| metadata.len()).map_err(|error| cause(&error))
    }

    fn hold(&self, inode: u64) {
        if let Some(open) = self.table().files.get_mut(&inode) {
            open.held += 1;
        }
    }

    fn release(&self, inode: u64) {
        let mut table = self.table();
        if let Some(open) = table.files.get_mut(&inode) {
            open.held = open.held.saturating_sub(1);
        }
        table.forget_unused(inode);
    }

    fn read(&self, inode: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError> {
        let file = self.file(inode)?;
        for page in 0..pages.frames().len() {
            let mut bytes = [0; PAGE_SIZE];
            let offset = page as u64 * PAGE_SIZE_U64;
            let at = pages.offset().checked_add(offset).ok_or(StoreError::Io)?;
            read_at(&file, at, &mut bytes).map_err(|error| cause(&error))?;
            if !pages.fill(page, 0, &bytes) {
                return Err(StoreError::Io);
            }
        }
        Ok(Submitted::Done)
    }

    fn write(&self, inode: u64, pages: &Cluster<'_>, len: u64) -> Result<Submitted, StoreError> {
        let file = self.file(inode)?;
        let len = len.min(pages.frames().len() as u64 * PAGE_SIZE_U64);
        let starts = (0..len).step_by(PAGE_SIZE).enumerate();
        for (page, start) in starts {
            let mut bytes = [0; PAGE_SIZE];
            let bytes = &mut bytes[..PAGE_SIZE.min((len - start) as usize)];
            if !pages.fetch(page, 0, bytes) {
                return Err(StoreError::Io);
            }
            let at = pages.offset().checked_add(start).ok_or(StoreError::NoSpace)?;
            write_at(&file, at, bytes).map_err(|error| cause(&error))?;
        }
        Ok(Submitted::Done)
    }

    fn barrier(&self, inode: u64) -> Result<Submitted, StoreError> {
        self.file(inode)?.sync_data().map(|()| Submitted::Done).map_err(|error| cause(&error))
    }

    fn set_size(&self, inode: u64, size: u64) -> Result<(), StoreError> {
        self.file(inode)?.set_len(size).map_err(|error| cause(&error))
    }
}

fn cause(error: &io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StoreError::NoSpace
        }
        _ => StoreError::Io,
    }
}

/// Reads up to the end of the file, or of the buffer.
fn read_at(file: &File, offset: u64, mut out: &mut [u8]) -> io::Result<()> {
    let mut at = offset;
    while !out.is_empty() {
        match positional::read(file, at, out) {
            Ok(0) => break,
            Ok(read) => (at, out) = (at.saturating_add(read as u64), &mut out[read..]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write_at(file: &File, offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    let mut at = offset;
    while !bytes.is_empty() {
        match positional::write(file, at, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => (at, bytes) = (at.saturating_add(written as u64), &bytes[written..]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What tells a file from others.
#[cfg(unix)]
fn identity(file: &File) -> io::Result<Option<(u64, u64)>> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata()?;
    Ok(Some((metadata.dev(), metadata.ino())))
}

#[cfg(not(unix))]
fn identity(_: &File) -> io::Result<Option<(u64, u64)>> {
    Ok(None)
}

#[cfg(unix)]
mod positional {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;

    pub(super) fn read(file: &File, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        file.read_at(out, offset)
    }

    pub(super) fn write(file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        file.write_at(bytes, offset)
    }
}

#[cfg(not(unix))]
mod positional {
    use std::fs::File;
    use std::io::{self, Read, Seek, SeekFrom, Write};
    use std::sync::Mutex;

    /// A file has one position, which each access sets.
    static POSITION: Mutex<()> = Mutex::new(());

    pub(super) fn read(mut file: &File, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let _position = super::super::locked(&POSITION);
        file.seek(SeekFrom::Start(offset))?;
        file.read(out)
    }

    pub(super) fn write(mut file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let _position = super::super::locked(&POSITION);
        file.seek(SeekFrom::Start(offset))?;
        file.write(bytes)
    }
}
