//! Calls that read, write and cut off files.

use kernmm::cache::{CacheError, Moved, Pattern, ReadAhead};
use kernmm::error::Errno;

use super::super::answers::cut_short;

use super::*;

impl Ours<'_, '_, '_> {
    /// pread(2) to memory.
    pub(super) fn read_file(
        &self,
        by: usize,
        opening: usize,
        addr: u64,
        len: u64,
        offset: u64,
    ) -> Result<Outcome, String> {
        let (file, opened) = OPENINGS[opening];
        if !opened.reads() {
            return Ok(Outcome::Result(errno(Errno::EBADF)));
        }
        if addr.checked_add(len).is_none_or(|end| end > TASK_SIZE) {
            return Ok(Outcome::Result(errno(Errno::EFAULT)));
        }
        let mut bytes = vec![0; len as usize];
        let read = self.read_from(file, offset, &mut bytes).map_err(|error| error.to_string())?;
        let mut done = 0;
        for (start, len) in pieces(addr, read) {
            if let Err(refused) = self.process(by).copy_to_user(at(start), &bytes[done..done + len]) {
                return cut_short(refused, done);
            }
            done += len;
        }
        Ok(Outcome::Result(done as i64))
    }

    /// pwrite(2) of memory.
    pub(super) fn write_file(
        &self,
        by: usize,
        opening: usize,
        addr: u64,
        len: u64,
        offset: u64,
    ) -> Result<Outcome, String> {
        let (file, opened) = OPENINGS[opening];
        if !opened.writes() {
            return Ok(Outcome::Result(errno(Errno::EBADF)));
        }
        if addr.checked_add(len).is_none_or(|end| end > TASK_SIZE) {
            return Ok(Outcome::Result(errno(Errno::EFAULT)));
        }
        let mut done = 0;
        for (start, len) in pieces(addr, len as usize) {
            let mut bytes = vec![0; len];
            if let Err(refused) = self.process(by).copy_from_user(at(start), &mut bytes) {
                return cut_short(refused, done);
            }
            let written = self.write_to(file, offset + done as u64, &bytes);
            done += written.map_err(|error| error.to_string())?;
        }
        Ok(Outcome::Result(done as i64))
    }

    pub(super) fn read_from(&self, file: usize, offset: u64, out: &mut [u8]) -> Result<usize, CacheError> {
        let (cache, source) = (self.vm.cache(), self.vm.source());
        let (mut state, mut done) = (ReadAhead::new(), 0);
        loop {
            let at = offset + done as u64;
            let moved =
                cache.read_at(source, self.files[file], at, &mut out[done..], &mut state, Pattern::Mapped)?;
            done += moved.bytes;
            if !self.has_waited(&moved) {
                return Ok(done);
            }
        }
    }

    pub(super) fn write_to(&self, file: usize, offset: u64, bytes: &[u8]) -> Result<usize, CacheError> {
        let (cache, source) = (self.vm.cache(), self.vm.source());
        let mut done = 0;
        loop {
            let moved = cache.write_at(source, self.files[file], offset + done as u64, &bytes[done..])?;
            done += moved.bytes;
            if !self.has_waited(&moved) {
                return Ok(done);
            }
        }
    }

    fn has_waited(&self, moved: &Moved) -> bool {
        moved.wait.inspect(|&ticket| self.vm.cache().wait(self.vm.source(), ticket)).is_some()
    }

    pub(super) fn truncate(&mut self, file: usize, size: u64) -> Result<Answer, String> {
        let before = self.size(file);
        let copies = self.private_copies(file, size);
        let (cache, source) = (self.vm.cache(), self.vm.source());
        let entries = self.vm.pager().entries();
        while let Progress::Wait(ticket) =
            cache.truncate(source, &entries, self.files[file], size).map_err(|error| error.to_string())?
        {
            cache.wait(source, ticket);
        }
        drop(entries);
        let label = match size.cmp(&before) {
            std::cmp::Ordering::Less if copies > self.private_copies(file, size) => "killed private copies",
            std::cmp::Ordering::Less => "down",
            std::cmp::Ordering::Equal => "same",
            std::cmp::Ordering::Greater => "up",
        };
        Ok((Outcome::Result(0), label))
    }

    /// How many private copies of a file's pages there are beyond a size.
    fn private_copies(&self, file: usize, size: u64) -> usize {
        let mut copies = 0;
        for by in self.alive() {
            for vma in self.arena(by) {
                if vma.backing.file().and_then(|file| self.file_of(file)) != Some(file) {
                    continue;
                }
                self.process(by).visit_pages(vma.range(), |addr, state| {
                    let private = state.resident().is_some_and(|page| page.kind == PageKind::Anonymous);
                    copies += usize::from(private && vma.pgoff_at(addr).get() * PAGE >= size);
                });
            }
        }
        copies
    }
}
