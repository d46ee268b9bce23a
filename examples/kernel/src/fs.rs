//! The file system: names, and where the bytes of files lie on the disk. What is cached and when is kernmm's affair, whose [`BackingStore`] this is.
//!
//! # Locking
//! [`NAMES`] may be held while somebody waits for the disk; [`STATE`] comes after it and is held for moments.

use alloc::string::String;
use alloc::vec::Vec;

use kernmm::addr::{PAGE_SIZE_U64, PgOff};
use kernmm::cache::FileId;
use kernmm::error::Errno;
use kernmm::platform::{BackingStore, Cluster, IoState, StoreError, Submitted, Ticket};
use kernmm::syscall::OpenMode;
use lock_api::{RwLock, RwLockWriteGuard};
use spin::Mutex;

use crate::disk::{self, MAX_PAGES, Request, Work};
use crate::files::File;
use crate::layout::{BLOCK, DATA, DIRECTORY, ENTRY, FILES, Inode, MAGIC, NAME};
use crate::lock::SleepLock;
use crate::{memory, println, sched};

/// The blocks of the disk that are looked at, at most: 256 MiB.
const MAX_BLOCKS: usize = 1 << 16;

struct State {
    inodes: [Inode; FILES],
    /// Its name is gone, but somebody may use it still.
    is_nameless: [bool; FILES],
    /// A bit for each block that belongs to something.
    used: [u64; MAX_BLOCKS / 64],
    blocks: u32,
    is_changed: bool,
    /// Of each block that was the last of a file that became shorter: how many of its bytes count. Those behind are to be cleared before anything else is done
    /// with the disk. Noted here, since its queue may be full. 0 for all others.
    tails: [u16; MAX_BLOCKS],
    /// How many those are.
    tails_left: usize,
    /// A bit for each block that a page was promised and that has not been written: what it holds was somebody else's, and counts as zeros.
    unwritten: [u64; MAX_BLOCKS / 64],
}

static STATE: Mutex<State> = Mutex::new(State {
    inodes: [Inode::NONE; FILES],
    is_nameless: [false; FILES],
    used: [0; MAX_BLOCKS / 64],
    blocks: 0,
    is_changed: false,
    tails: [0; MAX_BLOCKS],
    tails_left: 0,
    unwritten: [0; MAX_BLOCKS / 64],
});

/// Held by whoever gives or takes names, or asks whether a file without one has users: none comes or goes meanwhile.
static NAMES: RwLock<SleepLock, ()> = RwLock::new(());
/// That it is held.
type NamesGuard = RwLockWriteGuard<'static, SleepLock, ()>;

/// The disk's files, as kernmm sees them: by number, from 1.
pub struct Disk;

/// The one there is.
pub static DISK: Disk = Disk;

impl State {
    fn inode(&mut self, number: u64) -> Result<&mut Inode, StoreError> {
        let place = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        place.and_then(|place| self.inodes.get_mut(place)).ok_or(StoreError::Io)
    }

    fn set_used(&mut self, block: u32) {
        self.used[block as usize / 64] |= 1 << (block % 64);
    }

    fn is_free(&self, block: u32) -> bool {
        block < self.blocks && self.used[block as usize / 64] >> (block % 64) & 1 == 0
    }

    /// The block of a page, a new one if it has none: behind that of the page before if that is free.
    fn block_for(&mut self, number: u64, page: u32) -> Result<u32, StoreError> {
        let inode = *self.inode(number)?;
        if let Some(block) = inode.block_of(page) {
            return Ok(block);
        }
        let behind = page.checked_sub(1).and_then(|before| inode.block_of(before)).map(|block| block + 1);
        let near = behind.filter(|&block| self.is_free(block));
        let block = near.or_else(|| (DATA..self.blocks).find(|&block| self.is_free(block)));
        let block = block.ok_or(StoreError::NoSpace)?;
        if !self.inode(number)?.add(page, block) {
            return Err(StoreError::NoSpace);
        }
        self.set_used(block);
        self.unwritten[block as usize / 64] |= 1 << (block % 64);
        self.is_changed = true;
        Ok(block)
    }

    fn is_unwritten(&self, block: u32) -> bool {
        self.unwritten[block as usize / 64] >> (block % 64) & 1 != 0
    }

    fn set_written(&mut self, block: u32) {
        self.unwritten[block as usize / 64] &= !(1 << (block % 64));
    }

    fn resize(&mut self, number: u64, size: u64) -> Result<(), StoreError> {
        let mut inode = *self.inode(number)?;
        let (before, within) = (inode.size, (size % PAGE_SIZE_U64) as u16);
        inode.cut(size.div_ceil(PAGE_SIZE_U64).min(u64::from(u32::MAX)) as u32, |block| {
            self.used[block as usize / 64] &= !(1 << (block % 64));
            self.set_tail(block, 0);
            self.set_written(block);
        });
        inode.size = size;
        // Bytes that the file loses must not come back when it grows.
        let last = inode.block_of((size / PAGE_SIZE_U64) as u32).filter(|_| size < before && within != 0);
        if let Some(block) = last {
            let noted = self.tails[block as usize];
            self.set_tail(block, if noted == 0 { within } else { noted.min(within) });
        }
        *self.inode(number)? = inode;
        self.is_changed = true;
        Ok(())
    }

    fn set_tail(&mut self, block: u32, len: u16) {
        let before = core::mem::replace(&mut self.tails[block as usize], len);
        self.tails_left = self.tails_left + usize::from(len != 0) - usize::from(before != 0);
    }

    fn find(&self, name: &[u8; NAME]) -> Option<u64> {
        let place = self
            .inodes
            .iter()
            .zip(self.is_nameless)
            .position(|(inode, gone)| !gone && inode.name == *name)?;
        Some(place as u64 + 1)
    }
}

/// What a request says of a cluster's pages.
fn request(
    work: Work,
    pages: &Cluster<'_>,
    mut block: impl FnMut(u32) -> Result<u32, StoreError>,
) -> Result<Request, StoreError> {
    let mut request = Request::new(work);
    let first = u32::try_from(pages.first().get()).map_err(|_| StoreError::Io)?;
    if pages.frames().len() > MAX_PAGES {
        return Err(StoreError::Io);
    }
    for (page, &frame) in (first..).zip(pages.frames()) {
        request.frames[request.pages] = frame;
        request.blocks[request.pages] = block(page)?;
        request.pages += 1;
    }
    Ok(request)
}

impl BackingStore for Disk {
    fn size(&self, number: u64) -> Result<u64, StoreError> {
        STATE.lock().inode(number).map(|inode| inode.size)
    }

    fn read(&self, number: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError> {
        let mut state = STATE.lock();
        let inode = *state.inode(number)?;
        let written = |page| inode.block_of(page).filter(|&block| !state.is_unwritten(block));
        let mut request = request(Work::Read, pages, |page| Ok(written(page).unwrap_or(0)))?;
        drop(state);
        request.len = inode.size.saturating_sub(pages.offset());
        disk::submit(&request).map(Submitted::Pending)
    }

    fn write(&self, number: u64, pages: &Cluster<'_>, len: u64) -> Result<Submitted, StoreError> {
        let mut state = STATE.lock();
        let end = pages.offset().saturating_add(len);
        let count = len.div_ceil(PAGE_SIZE_U64);
        let behind = pages.first().get() + count;
        let mut request = request(Work::Write, pages, |page| match u64::from(page) < behind {
            true => state.block_for(number, page),
            false => Ok(0),
        })?;
        request.len = len;
        let inode = state.inode(number)?;
        if inode.size < end {
            inode.size = end;
            state.is_changed = true;
        }
        drop(state);
        disk::submit(&request).map(Submitted::Pending)
    }

    /// The page gets its block now: a program that stores to a hole of a full disk has a SIGBUS, and nothing is lost later.
    fn prepare_write(&self, number: u64, page: PgOff) -> Result<(), StoreError> {
        let page = u32::try_from(page.get()).map_err(|_| StoreError::NoSpace)?;
        STATE.lock().block_for(number, page).map(drop)
    }

    fn barrier(&self, _: u64) -> Result<Submitted, StoreError> {
        disk::submit(&Request::new(Work::Sync)).map(Submitted::Pending)
    }

    fn set_size(&self, number: u64, size: u64) -> Result<(), StoreError> {
        STATE.lock().resize(number, size)
    }

    fn poll(&self, ticket: Ticket) -> IoState {
        disk::poll(ticket)
    }
}

/// A block whose bytes from some place on are to be cleared before anything else is done with the disk.
pub fn next_tail() -> Option<(u32, u16)> {
    let state = STATE.lock();
    if state.tails_left == 0 {
        return None;
    }
    (0..).zip(state.tails.iter().copied()).find(|(_, len)| *len != 0)
}

/// They are, unless the file has lost more of it meanwhile.
pub fn tail_is_clear(block: u32, len: u16) {
    let mut state = STATE.lock();
    if state.tails[block as usize] == len {
        state.set_tail(block, 0);
    }
}

/// A block that the directory may give to a file, and whose bytes are not that file's.
pub fn next_unwritten() -> Option<u32> {
    let state = STATE.lock();
    let word = state.unwritten.iter().position(|&word| word != 0)?;
    Some(word as u32 * 64 + state.unwritten[word].trailing_zeros())
}

/// They are, by now; all of them, so that nothing is left to be cleared either.
pub fn block_is_written(block: u32) {
    let mut state = STATE.lock();
    state.set_written(block);
    state.set_tail(block, 0);
}

/// From where on the bytes of a block count as cleared, although the disk has others yet.
pub fn tail_of(block: u32) -> usize {
    let len = STATE.lock().tails[block as usize];
    if len == 0 { BLOCK } else { usize::from(len) }
}

/// Reads the directory; `false` if there is no disk, or no file system on it.
pub fn mount() -> bool {
    let mut buffer = [0; BLOCK];
    if !disk::init() || disk::read_block(0, &mut buffer).is_err() || buffer[..8] != MAGIC.to_le_bytes() {
        return false;
    }
    let blocks = u64::from_le_bytes(core::array::from_fn(|at| buffer[8 + at]));
    let mut state = STATE.lock();
    state.blocks = blocks.min(MAX_BLOCKS as u64) as u32;
    (0..DATA).for_each(|block| state.set_used(block));
    for block in DIRECTORY..DATA {
        if disk::read_block(block, &mut buffer).is_err() {
            return false;
        }
        let first = (block - DIRECTORY) as usize * (BLOCK / ENTRY);
        for (place, entry) in (first..).zip(buffer.chunks_exact(ENTRY)) {
            let mut inode = Inode::from_bytes(entry);
            if inode.name[0] == 0 {
                inode = Inode::NONE;
            }
            // What does not lie on the disk is no file's: the image may be damaged.
            let bounds = state.blocks;
            inode
                .extents
                .iter_mut()
                .filter(|e| e.block.checked_add(e.len).is_none_or(|end| end > bounds))
                .for_each(|e| e.len = 0);
            inode
                .extents
                .iter()
                .for_each(|e| (e.block..e.block + e.len).for_each(|block| state.set_used(block)));
            state.inodes[place] = inode;
        }
    }
    let files = state.inodes.iter().filter(|inode| inode.name[0] != 0).count();
    println!("fs: {files} files, {} blocks", state.blocks);
    true
}

/// Writes the directory to the disk, if it has changed; the disk's thread does that.
///
/// # Errors
/// [`StoreError::Io`].
pub fn write_directory(buffer: &mut [u8; BLOCK]) -> Result<(), StoreError> {
    if !core::mem::replace(&mut STATE.lock().is_changed, false) {
        return Ok(());
    }
    for block in DIRECTORY..DATA {
        let first = (block - DIRECTORY) as usize * (BLOCK / ENTRY);
        {
            let state = STATE.lock();
            for (place, entry) in (first..).zip(buffer.chunks_exact_mut(ENTRY)) {
                let inode = if state.is_nameless[place] { Inode::NONE } else { state.inodes[place] };
                entry.copy_from_slice(&inode.to_bytes());
            }
        }
        disk::write_block(block, buffer).inspect_err(|_| STATE.lock().is_changed = true)?;
    }
    Ok(())
}

/// What an opening asks for beyond how it reads and writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A file that is not there is an error.
    Refuse,
    /// It is made.
    Create,
    /// It is made, and one that is there is an error.
    CreateNew,
}

/// Opens a file by name.
///
/// # Errors
/// ENOENT, EEXIST, ENOSPC if the directory is full, and those of kernmm.
pub fn open(path: &str, mode: OpenMode, missing: Missing) -> Result<(File, u64), Errno> {
    let name = Inode::name_of(path.trim_start_matches("./").trim_start_matches('/')).ok_or(Errno::ENOENT)?;
    let names = NAMES.write();
    forget_nameless(&names);
    let number = {
        let mut state = STATE.lock();
        match (state.find(&name), missing) {
            (Some(_), Missing::CreateNew) => return Err(Errno::EEXIST),
            (Some(number), _) => number,
            (None, Missing::Refuse) => return Err(Errno::ENOENT),
            (None, Missing::Create | Missing::CreateNew) => {
                let place = state.inodes.iter().position(|inode| inode.name[0] == 0).ok_or(Errno::ENOSPC)?;
                state.inodes[place] = Inode { name, ..Inode::NONE };
                state.is_changed = true;
                place as u64 + 1
            }
        }
    };
    let file = memory::vm().open_file(&DISK, number, mode).map_err(|error| error.errno())?;
    Ok((file, number))
}

/// Takes a name away. The file stays as long as somebody uses it.
///
/// # Errors
/// ENOENT.
pub fn unlink(path: &str) -> Result<(), Errno> {
    let name = Inode::name_of(path.trim_start_matches("./").trim_start_matches('/')).ok_or(Errno::ENOENT)?;
    let names = NAMES.write();
    {
        let mut state = STATE.lock();
        let number = state.find(&name).ok_or(Errno::ENOENT)?;
        state.is_nameless[number as usize - 1] = true;
        state.is_changed = true;
    }
    forget_nameless(&names);
    Ok(())
}

/// Frees what files without a name have left whose last user is gone.
pub fn forget_unused() {
    forget_nameless(&NAMES.write());
}

/// Frees the blocks of files without a name that nobody uses any more.
fn forget_nameless(_: &NamesGuard) {
    for place in 0..FILES {
        let number = place as u64 + 1;
        if !STATE.lock().is_nameless[place] {
            continue;
        }
        let Ok(file) = memory::vm().open_file(&DISK, number, OpenMode::ReadWrite) else { continue };
        let vm = memory::vm();
        // Nobody else opens it: it has no name. Whoever has it open could hand it on to a child, and is a user meanwhile.
        let is_alone = vm.cache().stat(vm.source(), file.id()).is_ok_and(|stat| stat.users == 1);
        // Emptied through the cache, it has nothing left that could still be written.
        if is_alone && file.truncate(0).is_ok() {
            drop(file);
            let mut state = STATE.lock();
            state.inodes[place] = Inode::NONE;
            state.is_nameless[place] = false;
            state.is_changed = true;
        }
    }
}

/// The files by what kernmm calls them: number and name.
pub fn open_names() -> Vec<(FileId, u64, String)> {
    let _held = NAMES.write();
    let mut names = Vec::new();
    for number in 1..=FILES as u64 {
        let inode = STATE.lock().inode(number).map_or(Inode::NONE, |inode| *inode);
        let len = inode.name.iter().position(|&byte| byte == 0).unwrap_or(NAME);
        if len == 0 {
            continue;
        }
        let Ok(file) = memory::vm().open_file(&DISK, number, OpenMode::ReadOnly) else { continue };
        let mut name = String::from("/");
        name.push_str(&String::from_utf8_lossy(&inode.name[..len]));
        names.push((file.id(), number, name));
    }
    names
}

/// Writes everything to the disk and waits for it.
pub fn sync() {
    memory::vm().sync();
    // Files that nobody uses have no barrier of their own any more.
    let submitted = loop {
        match DISK.barrier(0) {
            Err(StoreError::Busy) => sched::yield_now(),
            other => break other,
        }
    };
    if let Ok(Submitted::Pending(ticket)) = submitted {
        sched::wait_for_io(&|| matches!(disk::poll(ticket), IoState::Ended(_)));
    }
}
