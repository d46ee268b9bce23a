//! What accesses find: the program's own, and the kernel's for it.

use kernmm::addr::PgOff;
use kernmm::cache::FileId;
use kernmm::fault::{EntryState, PageKind, Signal};
use kernmm::flags::VmFlags;
use kernmm::memory::{Refused, User};
use kernmm::mm::{Backing, FileRef, Rlimits, Vma};
use kernmm::phys::PageSource;
use kernmm::table::{EntryFormat, PteBits};

use super::{Bytes, PAGE, Space, World, at, boxed, own};

/// So much stays free below a stack.
const STACK_GAP: u64 = 256 * PAGE;

/// What an access should find.
pub(super) enum Expected {
    Signal(Signal),
    Page(Bytes),
}

/// How a page is touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Touch {
    Read,
    Write,
}

/// Whether writes go to pages of the process's own.
pub(super) fn is_private(vma: &Vma) -> bool {
    !vma.flags.intersects(VmFlags::SHARED | VmFlags::MAYSHARE)
}

/// The file that a page of a VMA is of, and its place there.
pub(super) fn file_page(vma: &Vma, page: u64) -> Option<(FileRef, u64)> {
    Some((vma.backing.file()?, vma.pgoff_at(at(page)).get()))
}

impl<'v, 'a, 'm, F: EntryFormat> World<'_, 'v, 'a, 'm, F> {
    /// No page of a range is the process's own any more.
    pub(super) fn forget_pages(&mut self, addr: u64, len: u64) {
        self.private().retain(|&page, _| page < addr || page >= addr + len);
    }

    /// Nothing is left of a range.
    pub(super) fn forget(&mut self, addr: u64, len: u64) {
        self.forget_pages(addr, len);
        self.guards().retain(|&page| page < addr || page >= addr + len);
    }

    /// What a page of a process holds, all rights aside; `None` if nothing is mapped there.
    pub(super) fn contents(&self, space: &Space<'v, 'a, 'm, F>, page: u64) -> Option<Expected> {
        let vma = space.process.with(|mm| Some(mm.vma(mm.lookup(at(page))?)))?;
        if let Some(own) = space.private.get(&page) {
            return Some(Expected::Page(own.borrow().clone()));
        }
        let Backing::File(file) = vma.backing else {
            return Some(Expected::Page(Box::new([0; PAGE as usize])));
        };
        let bytes = self.objects[&file.file].page(vma.pgoff_at(at(page)).get());
        Some(bytes.map_or(Expected::Signal(Signal::NoPage), |bytes| Expected::Page(boxed(bytes))))
    }

    /// The number by which the store knows a file.
    pub(super) fn inode(&self, file: FileId) -> Option<u64> {
        self.files.iter().find(|kept| kept.both.id() == file)?.inode
    }

    /// Whether a page of a file is there or can be read.
    pub(super) fn is_readable(&self, file: FileId, index: u64) -> bool {
        let refuses = self.inode(file).is_some_and(|inode| self.store.refusals(inode).reads);
        !refuses || self.is_cached(file, index)
    }

    fn is_cached(&self, file: FileId, index: u64) -> bool {
        let found = self.vm.cache().find(self.memory, file, PgOff::new(index).unwrap());
        found.is_some_and(|pfn| self.memory.put_page(pfn).is_ok())
    }

    pub(super) fn state(&self, page: u64) -> Option<EntryState> {
        self.space().process.entry_state(at(page))
    }

    /// Whether a page is resident as the process's own.
    pub(super) fn has_own(&self, page: u64) -> bool {
        let state = self.state(page).and_then(EntryState::resident);
        state.is_some_and(|state| state.kind == PageKind::Anonymous)
    }

    /// What an access should find that the mapping allows.
    pub(super) fn reach(&self, page: u64, touch: Touch) -> Expected {
        let Some(vma) = self.vma(page) else { return Expected::Signal(Signal::NotMapped) };
        if self.space().guards.contains(&page) {
            return Expected::Signal(Signal::NotMapped);
        }
        let contents = self.contents(self.space(), page).unwrap_or(Expected::Signal(Signal::NotMapped));
        let Some((file, index)) = file_page(&vma, page) else { return contents };
        if self.space().private.contains_key(&page) || matches!(contents, Expected::Signal(_)) {
            return contents;
        }
        let refuses_room =
            self.inode(file.file).is_some_and(|inode| self.store.refusals(inode).room.is_some());
        let state = self.state(page).and_then(EntryState::resident);
        let is_writable = state.is_some_and(|state| state.bits.contains(PteBits::WRITE));
        let has_room = touch == Touch::Read || is_private(&vma) || !refuses_room || is_writable;
        match has_room && self.is_readable(file.file, index) {
            true => contents,
            false => Expected::Signal(Signal::NoPage),
        }
    }

    /// The stack that an access to a page below it makes grow.
    fn growing(&self, page: u64) -> Option<Vma> {
        let vmas: Vec<Vma> = self.space().process.with(|mm| mm.vmas().iter().map(|(_, vma)| vma).collect());
        let stack = *vmas.iter().find(|vma| vma.end.get() > page)?;
        let below = vmas.iter().rev().find(|vma| vma.end.get() <= page);
        let stops = |vma: &Vma| vma.flags.is_accessible() && !vma.flags.contains(VmFlags::GROWSDOWN);
        let is_near = below.is_some_and(|below| stops(below) && page - below.end.get() < STACK_GAP);
        let fits = stack.end.get() - page <= Rlimits::default().stack;
        (stack.flags.contains(VmFlags::GROWSDOWN) && fits && !is_near).then_some(stack)
    }

    /// What an access that needs one of these rights should find.
    pub(super) fn expected(&self, page: u64, rights: VmFlags) -> Expected {
        let (vma, stack) = (self.vma(page), self.growing(page));
        let Some(vma) = vma.or(stack) else { return Expected::Signal(Signal::NotMapped) };
        if !vma.flags.intersects(rights) {
            return Expected::Signal(Signal::Denied);
        }
        if !vma.range().contains(at(page)) {
            return Expected::Page(Box::new([0; PAGE as usize]));
        }
        self.reach(page, if rights == VmFlags::WRITE { Touch::Write } else { Touch::Read })
    }

    /// Compares how an access was refused with how it should have been.
    pub(super) fn refused(&mut self, error: Refused, expected: &Expected) {
        match (error, expected) {
            (Refused::OutOfMemory, _) => self.note_out_of_memory(),
            (Refused::Signal(signal), Expected::Signal(due)) if signal == *due => self.tried.signals += 1,
            (error, Expected::Signal(due)) => panic!("{error}, and not {due}"),
            (error, Expected::Page(_)) => panic!("{error}, where bytes are"),
        }
    }

    pub(super) fn load(&mut self, addr: u64, len: u8, how: u8) {
        for (addr, len) in pieces(addr, u64::from(len % 64) + 1) {
            self.tried.accesses += 1;
            let expected = self.expected(addr & !(PAGE - 1), VmFlags::ACCESS);
            let mut bytes = vec![0; len];
            let result = self.on_cpu(|space| match how % 3 {
                0 => space.process.copy_from_user(at(addr), &mut bytes),
                _ => User::new(&space.process).load(at(addr), &mut bytes),
            });
            match (result, &expected) {
                (Ok(()), Expected::Page(page)) => {
                    let within = (addr % PAGE) as usize;
                    assert_eq!(bytes, page[within..within + len], "at {addr:#x}");
                }
                (Ok(()), Expected::Signal(signal)) => panic!("{addr:#x} was read, which is {signal}"),
                (Err(error), expected) => return self.refused(error, expected),
            }
        }
    }

    pub(super) fn store(&mut self, addr: u64, len: u8, how: u8, byte: u8) {
        for (addr, len) in pieces(addr, u64::from(len % 64) + 1) {
            self.tried.accesses += 1;
            let expected = self.expected(addr & !(PAGE - 1), VmFlags::WRITE);
            let bytes: Vec<u8> = (0..len).map(|at| byte.wrapping_add(at as u8)).collect();
            let result = self.on_cpu(|space| match how % 3 {
                0 => space.process.copy_to_user(at(addr), &bytes),
                _ => User::new(&space.process).store(at(addr), &bytes),
            });
            match (result, expected) {
                (Ok(()), Expected::Page(_)) => self.stored(addr, &bytes),
                (Ok(()), Expected::Signal(signal)) => panic!("{addr:#x} was written, which is {signal}"),
                (Err(error), expected) => return self.refused(error, &expected),
            }
        }
    }

    /// Bytes of one page were stored.
    pub(super) fn stored(&mut self, addr: u64, bytes: &[u8]) {
        let (page, within) = (addr & !(PAGE - 1), (addr % PAGE) as usize);
        let vma = self.vma(page).unwrap();
        match file_page(&vma, page).filter(|_| !is_private(&vma)) {
            Some((file, index)) => {
                let start = (index * PAGE) as usize + within;
                let object = self.objects.get_mut(&file.file).unwrap();
                object.bytes[start..start + bytes.len()].copy_from_slice(bytes);
            }
            None => {
                self.make_own(page);
                let page = &self.space().private[&page];
                page.borrow_mut()[within..within + bytes.len()].copy_from_slice(bytes);
            }
        }
    }

    /// From now on a page is the process's own, whatever becomes of what it had.
    pub(super) fn make_own(&mut self, page: u64) {
        if self.space().private.contains_key(&page) {
            return;
        }
        let Some(Expected::Page(bytes)) = self.contents(self.space(), page) else {
            panic!("{page:#x} has no bytes to be copied")
        };
        self.private().insert(page, own(bytes));
    }

    /// What was made resident to be written is the process's own from now on, as far as it went.
    pub(super) fn learn_copies(&mut self, pages: impl IntoIterator<Item = u64>) {
        for page in pages {
            if self.has_own(page) {
                self.make_own(page);
            }
        }
    }

    /// A copy of several pages at once: all bytes before the first that cannot be reached.
    pub(super) fn copy(&mut self, addr: u64, len: u16, how: u8, byte: u8) {
        self.tried.accesses += 1;
        let len = u64::from(len) % (3 * PAGE) + 1;
        let (writes, rights) = if how & 1 == 0 { (false, VmFlags::ACCESS) } else { (true, VmFlags::WRITE) };
        let parts: Vec<(u64, usize)> = pieces(addr, len).collect();
        let expected: Vec<Expected> =
            parts.iter().map(|&(addr, _)| self.expected(addr & !(PAGE - 1), rights)).collect();
        let first_wrong = expected.iter().position(|expected| matches!(expected, Expected::Signal(_)));
        let mut bytes: Vec<u8> = (0..len).map(|at| byte.wrapping_add((at / 3) as u8)).collect();
        let result = self.on_cpu(|space| match writes {
            true => space.process.copy_to_user(at(addr), &bytes),
            false => space.process.copy_from_user(at(addr), &mut bytes),
        });
        if result == Err(Refused::OutOfMemory) {
            self.note_out_of_memory();
            if writes {
                self.learn_stored(addr, &bytes, first_wrong);
            }
            return;
        }
        let due = first_wrong.map_or(Ok(()), |at| match expected[at] {
            Expected::Signal(signal) => Err(Refused::Signal(signal)),
            Expected::Page(_) => Ok(()),
        });
        assert_eq!(result, due, "a copy of {len:#x} bytes at {addr:#x}");
        self.saw(if due.is_ok() { "whole copies" } else { "partial copies" });
        let mut rest = &bytes[..];
        for (&(addr, len), expected) in parts.iter().zip(&expected).take(first_wrong.unwrap_or(parts.len())) {
            let (part, behind) = rest.split_at(len);
            rest = behind;
            let within = (addr % PAGE) as usize;
            match expected {
                _ if writes => self.stored(addr, part),
                Expected::Page(page) => assert!(part == &page[within..within + len], "copied from {addr:#x}"),
                Expected::Signal(_) => {}
            }
        }
    }

    /// Memory was short in the middle of a copy: as far as it came, page by page.
    fn learn_stored(&mut self, addr: u64, bytes: &[u8], limit: Option<usize>) {
        let (mut rest, mut there) = (bytes, [0; PAGE as usize]);
        for (addr, len) in pieces(addr, bytes.len() as u64).take(limit.unwrap_or(usize::MAX)) {
            let (part, behind) = rest.split_at(len);
            rest = behind;
            let (page, within) = (addr & !(PAGE - 1), (addr % PAGE) as usize);
            let Some(state) = self.state(page).and_then(EntryState::resident) else { return };
            self.memory.read_frame(state.pfn, 0, &mut there).unwrap();
            let is_private = self.vma(page).is_some_and(|vma| is_private(&vma));
            if there[within..within + len] != *part || is_private && !self.has_own(page) {
                return;
            }
            self.stored(addr, part);
        }
    }
}

/// An access, cut at the borders of pages.
pub(super) fn pieces(addr: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let here = (len - done).min(PAGE - (addr + done) % PAGE);
        let piece = (here != 0).then_some((addr + done, here as usize));
        done += here;
        piece
    })
}
