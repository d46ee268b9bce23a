//! The bytes of files and of shared memory, and what is done to them by calls.

use kernmm::addr::{PgOff, VirtAddr};
use kernmm::cache::{CacheError, FileId, SyncMode, WriteBack};
use kernmm::flags::{MsyncFlags, VmFlags};
use kernmm::memory::{Refused, TransferError};
use kernmm::mm::MmError;
use kernmm::phys::PageSource;
use kernmm::platform::StoreError;
use kernmm::platform::hosted::Stage;
use kernmm::syscall::OpenMode;
use kernmm::table::EntryFormat;

use super::access::{Expected, file_page, pieces};
use super::calls::Part;
use super::store::Refusals;
use super::{FILES, MAX_FILE_PAGES, PAGE, World, at};

/// Bytes that go to a process, or from it, as they go at a time: what was moved before, and how many.
fn chunks(user: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let (before, here) = (done, (len - done).min(512).min(PAGE - (user + done) % PAGE));
        done += here;
        (here != 0).then_some((before, here))
    })
}

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
    fn refusals(&self, file: usize) -> Refusals {
        self.files[file].inode.map_or(Refusals::NONE, |inode| self.store.refusals(inode))
    }

    /// How many bytes of a file can be read, one page after the other.
    fn can_read(&self, file: usize, from: u64, len: u64) -> Result<u64, CacheError> {
        let id = self.files[file].both.id();
        let len = self.objects[&id].size.saturating_sub(from).min(len);
        let readable = pieces(from, len).take_while(|&(at, _)| self.is_readable(id, at / PAGE));
        let bytes = readable.map(|(_, len)| len as u64).sum();
        if bytes == 0 && len != 0 { Err(CacheError::Io) } else { Ok(bytes) }
    }

    /// How many can be written; and whether the store knows then how long the file is.
    fn can_write(
        &self,
        file: usize,
        pieces: impl Iterator<Item = (u64, usize)>,
    ) -> (Result<u64, CacheError>, bool) {
        let (kept, refusals) = (&self.files[file], self.refusals(file));
        let id = kept.both.id();
        let (mut size, mut owes) = (self.objects[&id].size, kept.owes);
        let (mut done, mut error, mut there) = (0, None, None);
        for (at, len) in pieces {
            let (start, end) = (at & !(PAGE - 1), at + len as u64);
            if end > size && owes && refusals.sizes.is_some() {
                error = refusals.sizes.map(CacheError::from);
                break;
            }
            owes &= end <= size;
            error = refusals.room.map(CacheError::from);
            let covers = start >= size || at == start && (len as u64 == PAGE || end >= size);
            if error.is_none() && !covers && there != Some(start) && !self.is_readable(id, at / PAGE) {
                error = Some(CacheError::Io);
            }
            if error.is_some() {
                break;
            }
            there = Some(start);
            size = size.max(end);
            done += len as u64;
        }
        (error.filter(|_| done == 0).map_or(Ok(done), Err), owes)
    }

    /// How many bytes a call has moved, if as many as it should; fewer only where memory is short.
    fn moved<E: PartialEq + std::fmt::Debug + Copy>(
        &mut self,
        got: Result<u64, E>,
        due: Result<u64, E>,
        out_of_memory: E,
    ) -> u64 {
        let is_fewer = match (got, due) {
            (Err(error), _) => error == out_of_memory,
            (Ok(got), Ok(due)) => got < due,
            _ => false,
        };
        match is_fewer && got != due {
            true => self.note_out_of_memory(),
            false => assert_eq!(got, due),
        }
        got.unwrap_or(0)
    }

    pub(super) fn file_read(&mut self, file: u8, from: u16, len: u16) {
        let file = usize::from(file) % FILES;
        let (from, len) = (u64::from(from) % (MAX_FILE_PAGES * PAGE), u64::from(len) % 9000);
        let due = self.can_read(file, from, len);
        let mut bytes = vec![0; len as usize];
        let result = self.cpus[self.cpu].run(|| self.files[file].both.read_at(from, &mut bytes));
        let read = self.moved(result.map(|read| read as u64), due, CacheError::OutOfMemory);
        let object = &self.objects[&self.files[file].both.id()];
        let there = object.bytes.get(from as usize..(from + read) as usize).unwrap_or_default();
        assert!(&bytes[..read as usize] == there, "{read} bytes from {from}");
    }

    pub(super) fn file_write(&mut self, file: u8, from: u16, len: u16, byte: u8) {
        let file = usize::from(file) % FILES;
        let from = u64::from(from) % ((MAX_FILE_PAGES - 3) * PAGE);
        let bytes: Vec<u8> = (0..len % 9000).map(|at| byte.wrapping_add(at as u8)).collect();
        let (due, owes) = self.can_write(file, pieces(from, bytes.len() as u64));
        let result = self.cpus[self.cpu].run(|| self.files[file].both.write_at(from, &bytes));
        let written = self.moved(result.map(|written| written as u64), due, CacheError::OutOfMemory);
        self.written(file, from, &bytes[..written as usize]);
        self.note_length(file, owes, result.is_ok() && result == due.map(|due| due as usize));
    }

    /// Whether the store has not been told of a length; where memory was short it may have been.
    fn note_length(&mut self, file: usize, owes: bool, is_sure: bool) {
        let kept = &mut self.files[file];
        if kept.owes && !owes && !is_sure {
            let size = self.objects[&kept.both.id()].size;
            // It has been told if it has no more.
            let stored = kept.inode.and_then(|inode| self.store.disk.files().size(inode));
            kept.owes = stored.is_some_and(|stored| stored > size);
        } else {
            kept.owes = owes;
        }
    }

    fn written(&mut self, file: usize, from: u64, bytes: &[u8]) {
        let object = self.objects.get_mut(&self.files[file].both.id()).unwrap();
        let end = from + bytes.len() as u64;
        if bytes.is_empty() {
            return;
        }
        if end > object.size {
            object.resize(end);
        }
        object.bytes[from as usize..end as usize].copy_from_slice(bytes);
    }

    /// Bytes go from a file to memory, or back, a piece at a time.
    pub(super) fn transfer(&mut self, file: u8, from: u16, addr: u64, len: u16, how: u8) {
        let file = usize::from(file) % FILES;
        let (from, len) = (u64::from(from) % ((MAX_FILE_PAGES - 3) * PAGE), u64::from(len) % 9000);
        let id = self.files[file].both.id();
        let is_of_file = |page: u64| {
            self.vma(page).and_then(|vma| Some(file_page(&vma, page)?.0.file == id)).unwrap_or(false)
        };
        let writes = how & 1 != 0;
        // A file that grows changes what can be reached of itself.
        if writes && pieces(addr, len).any(|(at, _)| is_of_file(at & !(PAGE - 1))) {
            return;
        }
        let rights = if writes { VmFlags::ACCESS } else { VmFlags::WRITE };
        let (mut reached, mut signal) = (0, None);
        for (at, len) in pieces(addr, len) {
            if let Expected::Signal(due) = self.expected(at & !(PAGE - 1), rights) {
                signal = Some(TransferError::User(Refused::Signal(due)));
                break;
            }
            reached += len as u64;
        }
        let (can_move, owes) = match writes {
            true => {
                let all = chunks(addr, reached).flat_map(|(done, len)| pieces(from + done, len));
                self.can_write(file, all)
            }
            false => (self.can_read(file, from, len), self.files[file].owes),
        };
        // Who is to give the bytes is asked first.
        let due = match (writes, can_move, signal) {
            (_, _, Some(signal)) if reached == 0 && (writes || can_move.is_ok_and(|bytes| bytes != 0)) => {
                Err(signal)
            }
            (_, Err(error), _) => Err(TransferError::File(error)),
            (_, Ok(bytes), _) => Ok(bytes.min(reached)),
        };
        let result = self.on_cpu(|space| {
            let file = &self.files[file].both;
            match writes {
                true => file.write_from_user(&space.process, from, VirtAddr::from(addr), len),
                false => file.read_to_user(&space.process, from, VirtAddr::from(addr), len),
            }
        });
        let short = match result {
            Err(TransferError::User(_)) => TransferError::User(Refused::OutOfMemory),
            _ => TransferError::File(CacheError::OutOfMemory),
        };
        let moved = self.moved(result, due, short);
        self.saw(if moved == len { "whole transfers" } else { "partial transfers" });
        for (done, here) in chunks(addr, moved) {
            let (user, start) = (addr + done, from + done);
            if writes {
                let (page, within) = (user & !(PAGE - 1), (user % PAGE) as usize);
                let Some(Expected::Page(bytes)) = self.contents(self.space(), page) else { unreachable!() };
                self.written(file, start, &bytes[within..within + here as usize]);
            } else {
                let bytes = self.objects[&id].bytes[start as usize..(start + here) as usize].to_vec();
                self.stored(user, &bytes);
            }
        }
        self.note_length(file, owes, result == due);
    }

    pub(super) fn truncate(&mut self, file: u8, size: u16) {
        let file = usize::from(file) % FILES;
        let size = u64::from(size) % (MAX_FILE_PAGES * PAGE);
        let (id, old) = (self.files[file].both.id(), self.objects[&self.files[file].both.id()].size);
        let grows = size > old;
        let due = self.refusals(file).sizes.map_or(Ok(()), |error| Err(CacheError::from(error)));
        let result = self.cpus[self.cpu].run(|| self.files[file].both.truncate(size));
        if result == Err(CacheError::OutOfMemory) {
            return self.note_out_of_memory();
        }
        assert_eq!(result, due, "truncation to {size}");
        let kept = &mut self.files[file];
        kept.owes = if grows { kept.owes && due.is_err() } else { due.is_err() };
        if grows && due.is_err() {
            return;
        }
        let end = size.div_ceil(PAGE);
        self.detach_pins(id, end..u64::MAX);
        self.objects.get_mut(&id).unwrap().resize(size);
        // Copies of what is gone go too.
        for space in &mut self.spaces {
            let gone = |page: u64| {
                let vma = space.process.with(|mm| Some(mm.vma(mm.lookup(at(page))?)));
                let file = vma.and_then(|vma| file_page(&vma, page));
                file.is_some_and(|(file, index)| file.file == id && index >= end)
            };
            let gone: Vec<u64> = space.private.keys().copied().filter(|&page| gone(page)).collect();
            gone.iter().for_each(|page| drop(space.private.remove(page)));
        }
    }

    /// The file of the store that msync writes for a part of a range.
    fn synced(&self, part: &Part) -> Option<u64> {
        self.inode(part.vma.backing.file().filter(|_| part.vma.flags.contains(VmFlags::SHARED))?.file)
    }

    /// Writes what one file has in a range.
    pub(super) fn msync(&mut self, addr: u64, len: u64) {
        let (mut parts, mut hole) = self.parts(addr, len);
        let inode = parts.iter().find_map(|part| self.synced(part));
        // Of several files it is not known which one told of an error.
        let mut len = len;
        let is_other = |part: &Part| self.synced(part).is_some_and(|other| Some(other) != inode);
        if let Some(other) = parts.iter().find(|part| is_other(part)) {
            len = other.start - addr;
            (parts, hole) = self.parts(addr, len);
        }
        let before = inode.map_or(0, |inode| self.store.errors(inode).so_far());
        let result = self.on_cpu(|space| space.process.msync(addr, len, MsyncFlags::SYNC));
        if self.files.iter().any(|kept| kept.owes && kept.inode == inode && inode.is_some()) {
            assert!(
                matches!(result, Err(MmError::Io | MmError::NoSpace)),
                "the store has more than the file"
            );
            self.settle(result, result);
            return;
        }
        let errors = inode.map(|inode| self.store.errors(inode)).filter(|errors| errors.count != before);
        let due = match errors.and_then(|errors| errors.last) {
            Some(StoreError::NoSpace) => Err(MmError::NoSpace),
            Some(_) => Err(MmError::Io),
            None if hole => Err(MmError::NotMapped),
            None => Ok(()),
        };
        if let (Some(inode), Some(_)) = (inode, errors) {
            self.store.note_told(inode);
            self.saw("errors of writes");
        }
        self.settle(result, due);
        if errors.is_some() {
            return;
        }
        self.tried.syncs += 1;
        for part in parts.iter().filter(|part| self.synced(part).is_some()) {
            for page in part.pages() {
                let (file, index) = file_page(&part.vma, page).unwrap();
                self.compare_page(file.file, index);
            }
        }
    }

    /// Makes a file last, by one of its openings; whether that went well.
    pub(super) fn sync(&mut self, file: u8) -> bool {
        let number = usize::from(file) % FILES;
        let kept = &self.files[number];
        let opening = usize::from(file & 0x80 != 0 && kept.read_only.is_some());
        let opened = if opening == 1 { kept.read_only.as_ref().unwrap() } else { &kept.both };
        let result = opened.sync();
        if kept.owes {
            assert!(
                matches!(result, Err(CacheError::Io | CacheError::NoSpace)),
                "the store has more than the file"
            );
            self.saw("syncs of files that are not cut");
            return false;
        }
        let errors = kept.inode.map(|inode| self.store.errors(inode)).unwrap_or_default();
        let due = match errors.last.filter(|_| errors.count != kept.told[opening]) {
            Some(error) => Err(CacheError::from(error)),
            None => Ok(()),
        };
        assert_eq!(result, due, "file {number}, opening {opening}");
        if let (Some(inode), Err(_)) = (kept.inode, due) {
            self.store.note_told(inode);
            self.files[number].told[opening] = errors.count;
            self.saw("errors of writes");
            return false;
        }
        self.tried.syncs += 1;
        self.compare_disk(number);
        true
    }

    pub(super) fn write_back(&mut self, file: u8) {
        let file = self.files[usize::from(file) % FILES].both.id();
        let mut job = WriteBack::all(file, SyncMode::Start);
        let _ = self.vm.cache().write_back(self.memory, &self.vm.pager().entries(), &mut job).unwrap();
    }

    /// Waits until nothing is under way.
    pub(super) fn quiet(&self) {
        while self.vm.reap() != 0 {}
    }

    /// From now on the store refuses this, or nothing any more.
    pub(super) fn fail_store(&mut self, file: u8, how: u8, kind: u8) {
        let Some(inode) = self.files[usize::from(file) % FILES].inode else { return };
        // What is under way ends as it was begun.
        self.quiet();
        let error = Some(if kind & 1 == 0 { StoreError::Io } else { StoreError::NoSpace });
        let stage = if kind & 2 == 0 { Stage::Submission } else { Stage::Completion };
        let none = Refusals { stage, ..Refusals::NONE };
        let refusals = match how % 16 {
            0..=1 => Refusals { reads: true, ..none },
            2..=4 | 8 => Refusals { writes: error, ..none },
            9 => Refusals { barriers: error, ..none },
            5 => Refusals { room: error, ..none },
            6 => Refusals { sizes: error, ..none },
            7 => Refusals { reads: true, writes: error, barriers: error, room: error, sizes: error, stage },
            _ => Refusals::NONE,
        };
        self.store.refuse(inode, refusals);
    }

    /// A file is closed, and opened again: if nobody else has it, its bytes are read again.
    pub(super) fn reopen(&mut self, file: u8) {
        let number = usize::from(file) % FILES;
        let kept = &self.files[number];
        let Some(inode) = kept.inode.filter(|_| !kept.owes && !self.has_pins(kept.both.id())) else { return };
        self.store.refuse(inode, Refusals::NONE);
        while !self.sync(number as u8) {}
        self.quiet();
        let old = self.files.remove(number);
        let id = old.both.id();
        let object = self.objects.remove(&id).unwrap();
        drop(old);
        self.quiet();
        let errors = self.store.errors(inode).so_far();
        let opened = [OpenMode::ReadWrite, OpenMode::ReadOnly]
            .map(|mode| self.vm.open_file(self.store, inode, mode).unwrap());
        let [both, read_only] = opened;
        self.objects.insert(both.id(), object);
        let kept = super::Kept {
            both,
            read_only: Some(read_only),
            inode: Some(inode),
            told: [errors; 2],
            owes: false,
        };
        self.files.insert(number, kept);
        self.saw("files opened again");
    }

    /// After a sync the disk has what the file has.
    pub(super) fn compare_disk(&self, file: usize) {
        let kept = &self.files[file];
        let Some(inode) = kept.inode else { return };
        let object = &self.objects[&kept.both.id()];
        let size = self.store.disk.files().size(inode);
        assert_eq!(size, Some(object.size), "the length of file {file} on the disk");
        (0..object.size.div_ceil(PAGE)).for_each(|index| self.compare_page(kept.both.id(), index));
    }

    fn compare_page(&self, file: FileId, index: u64) {
        let Some(inode) = self.inode(file).filter(|_| !self.is_written_behind(file, index)) else { return };
        let object = &self.objects[&file];
        let (start, end) = (index * PAGE, ((index + 1) * PAGE).min(object.size));
        if start < end {
            let mut bytes = vec![0; (end - start) as usize];
            self.store.disk.files().read(inode, start, &mut bytes);
            assert!(
                bytes == object.bytes[start as usize..end as usize],
                "page {index} is another on the disk"
            );
        }
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
