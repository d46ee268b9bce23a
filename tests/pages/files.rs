//! The bytes of files and of shared memory, and what is done to them by calls.

use kernmm::addr::PgOff;
use kernmm::flags::{MsyncFlags, VmFlags};
use kernmm::phys::PageSource;
use kernmm::table::EntryFormat;

use super::{FILES, MAX_FILE_PAGES, PAGE, World, at};

/// The bytes of a file or of shared memory, whole pages of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Object {
    pub(super) bytes: Vec<u8>,
    pub(super) size: u64,
}

impl Object {
    pub(super) fn new(size: u64) -> Self {
        Self { bytes: vec![0; size.next_multiple_of(PAGE) as usize], size }
    }

    pub(super) fn page(&self, index: u64) -> Option<&[u8]> {
        self.bytes.chunks(PAGE as usize).nth(index as usize)
    }

    /// What lies beyond the old end is zero if it appears, and gone if it lies beyond the new one.
    pub(super) fn resize(&mut self, size: u64) {
        self.clear_to(size.max(self.size));
        if size < self.size {
            self.bytes[size as usize..].fill(0);
        }
        self.bytes.resize(size.next_multiple_of(PAGE) as usize, 0);
        self.size = size;
    }

    /// The bytes from the end on, up to another place, are zero.
    pub(super) fn clear_to(&mut self, to: u64) {
        let to = to.min(self.bytes.len() as u64).max(self.size);
        self.bytes[self.size as usize..to as usize].fill(0);
    }

    /// What was stored beyond the end through mappings stays there, or is zero as soon as the file thinks of it: the model follows.
    pub(super) fn follow_tail(&mut self, now: &[u8; PAGE as usize]) {
        let within = (self.size % PAGE) as usize;
        let start = self.bytes.len() - PAGE as usize;
        for (due, &now) in self.bytes[start..].iter_mut().zip(now).skip(within) {
            assert!(now == *due || now == 0, "beyond the end of a file are bytes that nobody stored there");
            *due = now;
        }
    }
}

impl<F: EntryFormat> World<'_, '_, '_, '_, F> {
    pub(super) fn file_read(&mut self, file: u8, from: u16, len: u16) {
        let kept = &self.files[usize::from(file) % FILES];
        let (from, len) = (u64::from(from) % (MAX_FILE_PAGES * PAGE), usize::from(len) % 9000);
        let mut bytes = vec![0; len];
        let result = self.cpus[self.cpu].run(|| kept.both.read_at(from, &mut bytes));
        let object = &self.objects[&kept.both.id()];
        // What stops it before the end is told by the next call.
        if let Ok(read) = result {
            let end = (from + len as u64).min(object.size).max(from);
            assert!(read as u64 <= end - from);
            assert_eq!(
                &bytes[..read],
                object.bytes.get(from as usize..from as usize + read).unwrap_or_default()
            );
        }
    }

    pub(super) fn file_write(&mut self, file: u8, from: u16, len: u16, byte: u8) {
        let kept = &self.files[usize::from(file) % FILES];
        let from = u64::from(from) % ((MAX_FILE_PAGES - 3) * PAGE);
        let bytes: Vec<u8> = (0..len % 9000).map(|at| byte.wrapping_add(at as u8)).collect();
        let result = self.cpus[self.cpu].run(|| kept.both.write_at(from, &bytes));
        let object = self.objects.get_mut(&kept.both.id()).unwrap();
        let Some(written) = result.ok().filter(|&written| written != 0) else { return };
        let end = from + written as u64;
        if end > object.size {
            object.resize(end);
        }
        object.bytes[from as usize..end as usize].copy_from_slice(&bytes[..written]);
    }

    pub(super) fn truncate(&mut self, file: u8, size: u16) {
        let kept = &self.files[usize::from(file) % FILES];
        let size = u64::from(size) % (MAX_FILE_PAGES * PAGE);
        self.cpus[self.cpu].run(|| kept.both.truncate(size)).unwrap();
        let id = kept.both.id();
        self.objects.get_mut(&id).unwrap().resize(size);
        let end = size.div_ceil(PAGE);
        // Copies of what is gone go too.
        for space in &mut self.spaces {
            let gone = |page: u64| {
                let vma = space.process.with(|mm| Some(mm.vma(mm.lookup(at(page))?)));
                vma.is_some_and(|vma| {
                    vma.backing.file().is_some_and(|file| file.file == id)
                        && vma.pgoff_at(at(page)).get() >= end
                })
            };
            let gone: Vec<u64> = space.private.keys().copied().filter(|&page| gone(page)).collect();
            gone.iter().for_each(|page| drop(space.private.remove(page)));
        }
    }

    pub(super) fn msync(&mut self, addr: u64, len: u64) {
        let result = self.on_cpu(|space| space.process.msync(addr, len, MsyncFlags::SYNC));
        if self.note(result).is_none() {
            return;
        }
        self.tried.syncs += 1;
        for page in self.mapped(addr, len) {
            let vma = self.vma(page).unwrap();
            let Some(file) = vma.backing.file().filter(|_| vma.flags.contains(VmFlags::SHARED)) else {
                continue;
            };
            let kept = self.files.iter().find(|kept| kept.both.id() == file.file);
            let Some(inode) = kept.and_then(|kept| kept.inode) else { continue };
            let object = &self.objects[&file.file];
            let start = vma.pgoff_at(at(page)).get() * PAGE;
            let end = (start + PAGE).min(object.size);
            if start < end {
                let mut bytes = vec![0; (end - start) as usize];
                self.disk.files().read(inode, start, &mut bytes);
                assert_eq!(bytes, object.bytes[start as usize..end as usize], "page {page:#x} on the disk");
            }
        }
    }

    /// After a sync the disk has what the file has.
    pub(super) fn compare_disk(&self, file: usize) {
        let kept = &self.files[file];
        let Some(inode) = kept.inode else { return };
        let object = &self.objects[&kept.both.id()];
        let contents = self.disk.files().contents(inode).unwrap();
        assert!(contents == object.bytes[..object.size as usize], "file {file} is another on the disk");
    }

    /// Follows what has become of the bytes beyond the ends of files.
    pub(super) fn follow_tails(&mut self) {
        for kept in &self.files {
            let object = self.objects.get_mut(&kept.both.id()).unwrap();
            if object.size % PAGE == 0 {
                continue;
            }
            let last = PgOff::new(object.size / PAGE).unwrap();
            let mut bytes = [0; PAGE as usize];
            if let Some(pfn) = self.vm.cache().find(self.memory, kept.both.id(), last) {
                self.memory.read_frame(pfn, 0, &mut bytes).unwrap();
                self.memory.put_page(pfn).unwrap();
            }
            object.follow_tail(&bytes);
        }
    }
}
