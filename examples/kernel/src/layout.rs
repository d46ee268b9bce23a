//! How the file system lies on the disk: a flat directory of files, each a list of extents. `mkfs.rs`, which runs on the host, uses this file too.
//!
//! | block | |
//! |---|---|
//! | 0 | the magic number and the number of blocks |
//! | 1 to 4 | the directory: 64 files, 256 bytes each |
//! | from 5 | data |
//!
//! Which blocks are free is not written down: those that belong to no file that has a name.

/// Bytes in a block: a page.
pub const BLOCK: usize = 4096;
/// The first eight bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"kernmmfs");
/// Files.
pub const FILES: usize = 64;
/// Bytes that a file takes in the directory.
pub const ENTRY: usize = 256;
/// The first block of the directory, and of the data.
pub const DIRECTORY: u32 = 1;
pub const DATA: u32 = DIRECTORY + (FILES * ENTRY / BLOCK) as u32;
/// Bytes of a name; the rest is zero.
pub const NAME: usize = 40;
/// Extents of a file.
pub const EXTENTS: usize = 16;

/// Consecutive blocks of a file that are consecutive on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Extent {
    /// The first one's place in the file, in blocks.
    pub at: u32,
    /// Its place on the disk.
    pub block: u32,
    /// How many there are; 0 for an extent that is not used.
    pub len: u32,
}

/// A file, as the directory has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inode {
    /// Zeros for a file that does not exist.
    pub name: [u8; NAME],
    /// In bytes.
    pub size: u64,
    /// Where its blocks are, in no order. What none has is a hole.
    pub extents: [Extent; EXTENTS],
}

impl Inode {
    /// No file.
    pub const NONE: Self =
        Self { name: [0; NAME], size: 0, extents: [Extent { at: 0, block: 0, len: 0 }; EXTENTS] };

    /// The block that has a page of the file; `None` for a hole.
    pub fn block_of(&self, page: u32) -> Option<u32> {
        let holds = |extent: &&Extent| page.checked_sub(extent.at).is_some_and(|at| at < extent.len);
        self.extents.iter().find(holds).map(|extent| extent.block + (page - extent.at))
    }

    /// Gives a page its block; `false` if there is no room for another extent.
    pub fn add(&mut self, page: u32, block: u32) -> bool {
        let goes_on = |e: &&mut Extent| e.len != 0 && e.at + e.len == page && e.block + e.len == block;
        if let Some(extent) = self.extents.iter_mut().find(goes_on) {
            extent.len += 1;
            return true;
        }
        let free = self.extents.iter_mut().find(|extent| extent.len == 0);
        free.map(|extent| *extent = Extent { at: page, block, len: 1 }).is_some()
    }

    /// Takes the blocks of all pages from `pages` on away; each goes to `gone`.
    pub fn cut(&mut self, pages: u32, mut gone: impl FnMut(u32)) {
        for extent in &mut self.extents {
            let keep = pages.saturating_sub(extent.at).min(extent.len);
            (keep..extent.len).for_each(|at| gone(extent.block + at));
            extent.len = keep;
        }
    }

    /// As the directory has it.
    pub fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..NAME].copy_from_slice(&self.name);
        bytes[NAME..NAME + 8].copy_from_slice(&self.size.to_le_bytes());
        for (extent, place) in self.extents.iter().zip(bytes[NAME + 8..].chunks_exact_mut(12)) {
            place[..4].copy_from_slice(&extent.at.to_le_bytes());
            place[4..8].copy_from_slice(&extent.block.to_le_bytes());
            place[8..].copy_from_slice(&extent.len.to_le_bytes());
        }
        bytes
    }

    /// And back: `bytes` are at least [`ENTRY`].
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut inode = Self::NONE;
        inode.name.copy_from_slice(&bytes[..NAME]);
        inode.size = u64::from(word(NAME)) | u64::from(word(NAME + 4)) << 32;
        for (number, extent) in inode.extents.iter_mut().enumerate() {
            let at = NAME + 8 + 12 * number;
            *extent = Extent { at: word(at), block: word(at + 4), len: word(at + 8) };
        }
        inode
    }

    /// Its name in the directory's form; `None` if it is none, or too long.
    pub fn name_of(text: &str) -> Option<[u8; NAME]> {
        let mut name = [0; NAME];
        name.get_mut(..text.len())
            .filter(|_| !text.is_empty() && text.len() < NAME)?
            .copy_from_slice(text.as_bytes());
        Some(name)
    }
}

const _: () = assert!(NAME + 8 + EXTENTS * 12 <= ENTRY && FILES * ENTRY % BLOCK == 0);
