//! Files as a device keeps them: sparse, by number.

use std::collections::BTreeMap;

use crate::addr::{PAGE_SIZE, PAGE_SIZE_U64};

/// What a device writes as a whole or not at all, in bytes.
pub(super) const SECTOR: usize = 512;

/// One file: pages that were written, and how long it is.
#[derive(Clone, Debug, Default)]
struct File {
    size: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE_SIZE]>>,
}

/// The files of a disk, or what a power cut left of them.
#[derive(Clone, Debug, Default)]
pub struct Files {
    files: BTreeMap<u64, File>,
    /// Pages that hold bytes, in all files.
    used: u64,
}

impl Files {
    /// The numbers of all files.
    pub fn inodes(&self) -> impl Iterator<Item = u64> + '_ {
        self.files.keys().copied()
    }

    /// The length of a file in bytes; `None` if there is none.
    pub fn size(&self, inode: u64) -> Option<u64> {
        Some(self.files.get(&inode)?.size)
    }

    /// All of a file; `None` if there is none.
    pub fn contents(&self, inode: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.size(inode)?).ok()?];
        self.read(inode, 0, &mut bytes);
        Some(bytes)
    }

    /// Bytes of a file: zero in holes, beyond its end, and where there is no file.
    pub fn read(&self, inode: u64, offset: u64, out: &mut [u8]) {
        out.fill(0);
        let Some(file) = self.files.get(&inode) else { return };
        let len =
            usize::try_from(file.size.saturating_sub(offset)).map_or(out.len(), |left| left.min(out.len()));
        for (page, inside, range) in pieces(offset, len) {
            if let Some(bytes) = file.pages.get(&page) {
                let len = range.len();
                out[range].copy_from_slice(&bytes[inside..inside + len]);
            }
        }
    }

    pub(super) fn used_pages(&self) -> u64 {
        self.used
    }

    /// How many pages would be used more if a range were written.
    pub(super) fn new_pages(&self, inode: u64, offset: u64, len: usize) -> u64 {
        let file = self.files.get(&inode);
        let is_new = |page| file.is_none_or(|file| !file.pages.contains_key(&page));
        pieces(offset, len).filter(|&(page, ..)| is_new(page)).count() as u64
    }

    /// Makes room for a range, as a hole that is full of zeros.
    pub(super) fn reserve(&mut self, inode: u64, offset: u64, len: usize) {
        let file = self.files.entry(inode).or_default();
        for (page, ..) in pieces(offset, len) {
            file.pages.entry(page).or_insert_with(|| {
                self.used += 1;
                Box::new([0; PAGE_SIZE])
            });
        }
    }

    pub(super) fn write(&mut self, inode: u64, offset: u64, bytes: &[u8]) {
        self.reserve(inode, offset, bytes.len());
        let Some(file) = self.files.get_mut(&inode) else { return };
        for (page, inside, range) in pieces(offset, bytes.len()) {
            if let Some(own) = file.pages.get_mut(&page) {
                let len = range.len();
                own[inside..inside + len].copy_from_slice(&bytes[range]);
            }
        }
        file.size = file.size.max(offset.saturating_add(bytes.len() as u64));
    }

    pub(super) fn set_size(&mut self, inode: u64, size: u64) {
        let file = self.files.entry(inode).or_default();
        // Beyond the end there may be room that was made for pages.
        let gone = file.pages.split_off(&size.div_ceil(PAGE_SIZE_U64));
        self.used -= gone.len() as u64;
        if size < file.size {
            if let Some(last) = file.pages.get_mut(&(size / PAGE_SIZE_U64)) {
                // What lies beyond the end must not come back when the file grows again.
                last[(size % PAGE_SIZE_U64) as usize..].fill(0);
            }
        }
        file.size = size;
    }

    pub(super) fn remove(&mut self, inode: u64) {
        if let Some(file) = self.files.remove(&inode) {
            self.used -= file.pages.len() as u64;
        }
    }
}

/// A range cut at pages: the page, where in it, and which bytes of the range.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < len).then_some(())?;
        let at = offset.checked_add(done as u64)?;
        let inside = (at % PAGE_SIZE_U64) as usize;
        let range = done..len.min(done + (PAGE_SIZE - inside));
        done = range.end;
        Some((at / PAGE_SIZE_U64, inside, range))
    })
}
