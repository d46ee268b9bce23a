//! Names of files, descriptors and positions.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use kernmm::addr::VirtAddr;
use kernmm::error::Errno;
use kernmm::memory::{File, Memory};
use kernmm::platform::hosted::Machine;
use kernmm::syscall::OpenMode;
use kernmm::table::EntryFormat;

use super::{Os, Proc, locked};

/// What files are called.
#[derive(Default)]
pub(super) struct Directory {
    names: BTreeMap<String, u64>,
    last: u64,
    /// Files without a name, which go with their last users.
    nameless: Vec<u64>,
    /// The inode and the name of each file that was ever opened, by its number in the page cache.
    pub(super) opened: HashMap<u32, (u64, String)>,
}

impl Directory {
    /// A new file of this name.
    pub(super) fn create(&mut self, path: &str) -> u64 {
        self.last += 1;
        self.names.insert(path.to_owned(), self.last);
        self.last
    }
}

/// An open file with its position, as descriptors share it.
pub(super) enum Open<'v, 'a, 'm, F: EntryFormat> {
    Console,
    File(File<'v, 'a, Memory<'m, Machine>, F>, Mutex<u64>),
}

pub(super) type OpenFile<'v, 'a, 'm, F> = Arc<Open<'v, 'a, 'm, F>>;

/// The descriptors of a process.
pub(super) struct Descriptors<'v, 'a, 'm, F: EntryFormat>(Vec<Option<OpenFile<'v, 'a, 'm, F>>>);

impl<F: EntryFormat> Clone for Descriptors<'_, '_, '_, F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<'v, 'a, 'm, F: EntryFormat> Descriptors<'v, 'a, 'm, F> {
    /// Input, output and errors of a new process.
    pub(super) fn console() -> Self {
        Self(vec![Some(Arc::new(Open::Console)); 3])
    }

    pub(super) fn get(&self, fd: u64) -> Result<OpenFile<'v, 'a, 'm, F>, Errno> {
        let open = usize::try_from(fd).ok().and_then(|fd| self.0.get(fd)?.clone());
        open.ok_or(Errno::EBADF)
    }

    pub(super) fn add(&mut self, open: OpenFile<'v, 'a, 'm, F>) -> u64 {
        let free = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        if free == self.0.len() {
            self.0.push(None);
        }
        self.0[free] = Some(open);
        free as u64
    }

    pub(super) fn close(&mut self, fd: u64) -> Result<OpenFile<'v, 'a, 'm, F>, Errno> {
        let place = usize::try_from(fd).ok().and_then(|fd| self.0.get_mut(fd));
        place.and_then(Option::take).ok_or(Errno::EBADF)
    }
}

const O_ACCMODE: u64 = 3;
const O_CREAT: u64 = 0x40;
const O_TRUNC: u64 = 0x200;

impl<'v, 'a, 'm, F: EntryFormat> Os<'v, 'a, 'm, F> {
    pub(super) fn open(&self, path: &str, flags: u64) -> Result<OpenFile<'v, 'a, 'm, F>, Errno> {
        Ok(Arc::new(Open::File(self.open_regular(path, flags)?, Mutex::new(0))))
    }

    /// The file alone.
    pub(super) fn open_regular(
        &self,
        path: &str,
        flags: u64,
    ) -> Result<File<'v, 'a, Memory<'m, Machine>, F>, Errno> {
        let mode = match flags & O_ACCMODE {
            0 => OpenMode::ReadOnly,
            1 => OpenMode::WriteOnly,
            2 => OpenMode::ReadWrite,
            _ => return Err(Errno::EINVAL),
        };
        let file = {
            let mut directory = self.lock(&self.directory);
            let inode = match directory.names.get(path) {
                Some(&inode) => inode,
                None if flags & O_CREAT != 0 => {
                    let inode = directory.create(path);
                    self.disk.put(inode, &[]);
                    inode
                }
                None => return Err(Errno::ENOENT),
            };
            let file = self.vm.open_file(self.disk, inode, mode).map_err(|error| error.errno())?;
            directory.opened.insert(file.id().0.get(), (inode, path.to_owned()));
            file
        };
        if flags & O_TRUNC != 0 {
            let _changing = self.lock(&self.changing);
            file.truncate(0).map_err(|error| error.errno())?;
        }
        Ok(file)
    }

    pub(super) fn unlink(&self, path: &str) -> Result<(), Errno> {
        let mut directory = self.lock(&self.directory);
        let inode = directory.names.remove(path).ok_or(Errno::ENOENT)?;
        directory.nameless.push(inode);
        drop(directory);
        self.sweep();
        Ok(())
    }

    /// Takes files off the disk that have neither a name nor a user.
    pub(super) fn sweep(&self) {
        let mut directory = self.lock(&self.directory);
        directory.nameless.retain(|&inode| {
            let Ok(file) = self.vm.open_file(self.disk, inode, OpenMode::ReadWrite) else { return true };
            let stat = self.vm.cache().stat(self.vm.source(), file.id());
            let unused = stat.is_ok_and(|stat| stat.users == 1) && file.truncate(0).is_ok();
            drop(file);
            if unused {
                self.disk.remove(inode);
            }
            !unused
        });
    }

    /// ftruncate(2).
    pub(super) fn truncate(&self, open: &Open<'v, 'a, 'm, F>, len: u64) -> Result<u64, Errno> {
        let Open::File(file, _) = open else { return Err(Errno::EINVAL) };
        let _changing = self.lock(&self.changing);
        file.truncate(len).map(|()| 0).map_err(|error| error.errno())
    }

    /// read(2).
    pub(super) fn read(
        &self,
        process: &Proc<'v, 'a, 'm, F>,
        open: &Open<'v, 'a, 'm, F>,
        to: VirtAddr,
        len: u64,
    ) -> Result<u64, Errno> {
        let Open::File(file, position) = open else { return Ok(0) };
        let mut position = self.lock(position);
        let read = file.read_to_user(process, *position, to, len).map_err(|error| error.errno())?;
        *position += read;
        Ok(read)
    }

    /// write(2).
    pub(super) fn write(
        &self,
        process: &Proc<'v, 'a, 'm, F>,
        open: &Open<'v, 'a, 'm, F>,
        from: VirtAddr,
        len: u64,
    ) -> Result<u64, Errno> {
        match open {
            Open::File(file, position) => {
                let mut position = self.lock(position);
                let _changing = self.lock(&self.changing);
                let written =
                    file.write_from_user(process, *position, from, len).map_err(|error| error.errno())?;
                *position += written;
                Ok(written)
            }
            Open::Console => {
                let len = len.min(1 << 16) as usize;
                let mut bytes = vec![0; len];
                process.copy_from_user(from, &mut bytes).map_err(|_| Errno::EFAULT)?;
                locked(&self.console).extend_from_slice(&bytes);
                Ok(len as u64)
            }
        }
    }
}
