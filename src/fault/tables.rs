//! What the calls do to pages.

use super::zap::Guards;
use super::{MmPager, Pager};
use crate::addr::{PAGE_SHIFT, Pfn, VirtAddr, VirtRange};
use crate::cache::{CacheError, ErrorsSeen, FileId, Step, SyncMode, WriteBack};
use crate::collections::Slot;
use crate::flags::{Advice, VmFlags};
use crate::mm::{
    Advised, Backing, EmptyTables, FileKind, FileRef, Mm, MmError, Populate, Tables, Touch, Vma,
};
use crate::phys::PageSource;
use crate::platform::{FlushScope, Platform, TlbFlush};
use crate::table::{Caching, EntryFormat, HUGE_SIZE};

impl<S: PageSource, F: EntryFormat> Tables for MmPager<'_, '_, S, F> {
    fn unmap(&mut self, parts: impl Iterator<Item = VirtRange>, emptied: Option<EmptyTables>) {
        let mut gather = self.gather();
        let mut run = VirtRange::default();
        for part in parts {
            // No entry is in use between two VMAs: those of one table are gone along at once.
            run = if is_near(run, part) {
                VirtRange::new(run.start(), part.end()).unwrap_or(part)
            } else {
                self.zap(run, Guards::Go, &mut gather);
                part
            };
        }
        self.zap(run, Guards::Go, &mut gather);
        if let Some(emptied) = emptied {
            self.free_emptied(emptied, &mut gather);
        }
        gather.finish();
    }

    fn begin_change(&mut self, vma: &Vma) {
        if let Backing::File(file) = vma.backing {
            self.pager.cache.begin_change(self.pager.source, file.file);
        }
    }

    fn end_change(&mut self, vma: &Vma) {
        if let Backing::File(file) = vma.backing {
            self.pager.cache.end_change(self.pager.source, file.file);
        }
    }

    fn free_tables(&mut self, emptied: EmptyTables) {
        let mut gather = self.gather();
        self.free_emptied(emptied, &mut gather);
        gather.finish();
    }

    fn protect(&mut self, vma: &Vma, range: VirtRange) {
        self.change_protection(vma, range);
    }

    fn split_huge(&mut self, at: VirtAddr) {
        self.split_at(at);
    }

    fn prepare_move(&mut self, _vma: &Vma, from: VirtRange, to: VirtAddr) -> Result<(), MmError> {
        self.prepare_entries(from, to)
    }

    fn move_pages(&mut self, vma: &Vma, from: VirtRange, to: VirtAddr) {
        // On their way they are in no table.
        self.begin_change(vma);
        self.move_entries(from, to);
        self.end_change(vma);
    }

    fn fork(&mut self, child: &mut Self, vma: &Vma) -> Result<(), MmError> {
        self.copy_range(child, vma)
    }

    fn forked(&mut self) {
        self.forget_lost_rights();
    }

    fn defer(&mut self, populate: Populate) -> Option<Populate> {
        if self.deferred.is_some() {
            return Some(populate);
        }
        self.deferred = Some(populate);
        None
    }

    fn populate(
        &mut self,
        mm: &Mm<'_>,
        slot: Slot,
        rest: &mut VirtRange,
        touch: Touch,
    ) -> Result<Step, MmError> {
        self.fault_in(mm, slot, rest, touch)
    }

    fn residency(&mut self, vma: &Vma, range: VirtRange, answers: &mut [bool]) {
        self.table.visit_range(range, |found| {
            let is_mapped = found.pte.mapped().is_some();
            let pages =
                (0..found.order.pages()).filter_map(|index| found.addr.checked_add(index << PAGE_SHIFT));
            for at in pages.filter(|&at| is_mapped && range.contains(at)) {
                let index = (at.get() - range.start().get()) >> PAGE_SHIFT;
                if let Some(answer) = answers.get_mut(index as usize) {
                    *answer = true;
                }
            }
        });
        let Backing::File(file) = vma.backing else { return };
        for (index, answer) in (0..).zip(answers).filter(|(_, answer)| !**answer) {
            let Some(at) = range.start().checked_add(index << PAGE_SHIFT) else { return };
            *answer = self.pager.cache.residency(self.pager.source, file.file, vma.pgoff_at(at));
        }
    }

    fn advise(&mut self, vma: &Vma, range: VirtRange, advice: Advice) -> Result<Advised, MmError> {
        match advice {
            Advice::DontNeed | Advice::DontNeedLocked => {
                let mut gather = self.gather();
                let emptied = self.zap(range, Guards::Stay, &mut gather);
                gather.finish();
                return Ok(emptied.map_or(Advised::Done, Advised::Emptied));
            }
            Advice::GuardInstall => return self.install_guards(range),
            Advice::Remove => self.punch(vma, range)?,
            Advice::GuardRemove => self.remove_guards(range),
            Advice::Collapse => self.collapse(range)?,
            Advice::Free | Advice::Cold | Advice::PageOut => self.split_own_edges(range),
            // Advice for reclaim: as long as no page is taken away, following it changes nothing that can be seen.
            _ => {}
        }
        Ok(Advised::Done)
    }

    fn read_ahead(&mut self, vma: &Vma, rest: &mut VirtRange) -> Step {
        let Backing::File(file) = vma.backing else { return Step::Done };
        let (mut next, end) = (vma.pgoff_at(rest.start()), vma.pgoff_at(rest.end()).get());
        let Pager { source, cache, .. } = self.pager;
        // Advice that cannot be followed is no error.
        let full = cache.will_need_plugged(source, file.file, &mut next, end, &self.plug).unwrap_or(None);
        let Some(ticket) = full else { return Step::Done };
        let done = next.get().saturating_sub(vma.pgoff_at(rest.start()).get()) << PAGE_SHIFT;
        let from = rest.start().checked_add(done);
        *rest = from.and_then(|from| VirtRange::new(from, rest.end())).unwrap_or_default();
        Step::Wait(ticket)
    }

    fn sync(&mut self, vma: &Vma, range: VirtRange) -> Result<(), MmError> {
        let Some(sync) = self.begin_sync(vma, range)? else { return Ok(()) };
        self.pager.finish_sync(sync)
    }

    fn shared_anonymous(&mut self, mm: &Mm<'_>, pages: u64, flags: VmFlags) -> Result<FileRef, MmError> {
        let charged = if flags.contains(VmFlags::NORESERVE) { 0 } else { pages };
        mm.charge(charged)?;
        match self.pager.cache.create_memory(self.pager.source, pages << PAGE_SHIFT) {
            Ok(file) => {
                self.unclaimed = Some(file);
                FileRef::new(file.0.get(), file.0.get(), FileKind::SharedAnonymous)
                    .ok_or(MmError::OutOfMemory)
            }
            Err(error) => {
                self.pager.context.overcommit().uncharge(charged);
                Err(cause(error))
            }
        }
    }

    fn map_frames(
        &mut self,
        vma: &Vma,
        range: VirtRange,
        first: Pfn,
        caching: Caching,
    ) -> Result<(), MmError> {
        self.map_special(vma, range, first, caching)
    }

    fn open(&mut self, slot: Slot, vma: &Vma) {
        let Backing::File(file) = vma.backing else { return };
        let file = file.file;
        // What made an object for a mapping counts as its user until the mapping is there.
        if self.unclaimed == Some(file) {
            self.unclaimed = None;
        } else {
            let counted = self.pager.cache.add_user(self.pager.source, file);
            debug_assert!(counted.is_ok(), "a file is mapped that is not there: {counted:?}");
        }
        let shared = self.pager.cache.share(file, slot);
        debug_assert!(shared.is_ok(), "a VMA is new, and on a file's list already: {shared:?}");
    }

    fn close(&mut self, slot: Slot, vma: &Vma) {
        let Backing::File(file) = vma.backing else { return };
        let unshared = self.pager.cache.unshare(file.file, slot);
        debug_assert!(unshared.is_ok(), "a VMA was not on its file's list: {unshared:?}");
        self.pager.put_file(file, vma.flags);
    }
}

impl<S: PageSource, F: EntryFormat> MmPager<'_, '_, S, F> {
    /// Notes what msync is to write of a VMA's file; `None` if it has none. The address space may be let go of: the file stays until the end.
    ///
    /// # Errors
    /// [`MmError::BadDescriptor`] if there is no such file.
    pub fn begin_sync(&self, vma: &Vma, range: VirtRange) -> Result<Option<FileSync>, MmError> {
        // What lies in memory alone has nowhere to go; a user of it would be one too many when its mapping ends.
        let Some(file) = vma.backing.file().filter(FileRef::has_store) else { return Ok(None) };
        let Pager { source, cache, .. } = self.pager;
        let file = file.file;
        cache.add_user(source, file).map_err(cause)?;
        let (first, end) = (vma.pgoff_at(range.start()), vma.pgoff_at(range.end()));
        let seen = cache.errors_so_far(source, file).map_err(cause)?;
        Ok(Some(FileSync { file, job: WriteBack::new(file, first, end, SyncMode::Wait), seen }))
    }

    /// Notes where `MADV_REMOVE` makes a hole in a VMA's file. The address space may be let go of: the file stays until the end.
    ///
    /// # Errors
    /// [`MmError::BadAdvice`] if it has none, [`MmError::BadDescriptor`] if there is no such file.
    pub fn begin_hole(&self, vma: &Vma, range: VirtRange) -> Result<FileHole, MmError> {
        let file = vma.backing.file().ok_or(MmError::BadAdvice)?;
        self.pager.cache.add_user(self.pager.source, file.file).map_err(cause)?;
        Ok(FileHole { vma: *vma, range, file })
    }

    /// MADV_REMOVE: the file gets a hole.
    fn punch(&self, vma: &Vma, range: VirtRange) -> Result<(), MmError> {
        let Backing::File(file) = vma.backing else { return Err(MmError::BadAdvice) };
        let (first, end) = (vma.pgoff_at(range.start()), vma.pgoff_at(range.end()));
        let entries = self.pager.entries();
        self.pager.cache.punch_hole(self.pager.source, &entries, file.file, first, end).map_err(cause)
    }

    /// Makes all CPUs forget everything of an address space that nobody runs any more, before it is taken down: what goes then is flushed no more.
    ///
    /// # Locking
    /// None, no pin: CPUs are waited for. No CPU walks its tables any more, nor will.
    ///
    /// # Linux
    /// `tlb_gather_mmu_fullmm` in `mm/mmu_gather.c`, with which `exit_mmap` flushes once.
    #[doc(alias = "tlb_gather_mmu_fullmm")]
    pub(crate) fn forget_everything(&self) {
        let cpus = self.shared.cpus().load();
        if cpus.is_empty() {
            return;
        }
        let flush = TlbFlush { pgd: self.table.pgd(), scope: FlushScope::All, tables: true };
        self.pager.source.platform().flush_tlb(&cpus, &flush);
        cpus.iter().for_each(|cpu| self.shared.cpus().remove(cpu));
    }

    /// Gives the tables of an address space back that has nothing mapped any more.
    pub fn destroy(self) {
        let mut gather = self.gather();
        self.table.destroy(&mut gather.tlb);
        gather.finish();
        self.leave_huge_zero();
    }
}

/// Pages of a file that are to be in its store. The file has a user more until this is finished.
///
/// # Linux
/// What `msync` hands to `vfs_fsync_range`.
#[derive(Debug)]
#[must_use = "the file stays until this is finished"]
pub struct FileSync {
    file: FileId,
    job: WriteBack,
    seen: ErrorsSeen,
}

/// A hole that a file is to get. The file has a user more until this is finished.
///
/// # Linux
/// What `madvise_remove` in `mm/madvise.c` hands to `vfs_fallocate`.
#[derive(Debug)]
#[must_use = "the file stays until this is finished"]
pub struct FileHole {
    vma: Vma,
    range: VirtRange,
    file: FileRef,
}

impl<S: PageSource, F: EntryFormat> Pager<'_, '_, S, F> {
    /// Makes a hole. Another one of the file is waited for.
    ///
    /// # Errors
    /// [`MmError::UnsupportedFlag`] if the file has a store.
    ///
    /// # Locking
    /// None is held, no address space's either.
    #[doc(alias = "madvise_remove")]
    pub fn finish_hole(self, hole: FileHole) -> Result<(), MmError> {
        let FileHole { vma, range, file } = hole;
        let (first, end) = (vma.pgoff_at(range.start()), vma.pgoff_at(range.end()));
        let punched = self.cache.punch_hole(self.source, &self.entries(), file.file, first, end);
        self.put_file(file, vma.flags);
        punched.map_err(cause)
    }

    /// One fewer refers to a file that a VMA with these flags maps or mapped; with the last, what was promised for it is free again.
    fn put_file(self, file: FileRef, flags: VmFlags) {
        let was_charged = file.kind == FileKind::SharedAnonymous && !flags.contains(VmFlags::NORESERVE);
        let promised = if was_charged { self.cache.size(self.source, file.file).unwrap_or(0) } else { 0 };
        let put = self.cache.put_user(self.source, file.file);
        debug_assert!(put.is_ok(), "a file was gone before its mapping: {put:?}");
        if put == Ok(true) {
            self.context.overcommit().uncharge(promised >> PAGE_SHIFT);
        }
    }

    /// Writes, and waits until it is written.
    ///
    /// # Errors
    /// [`MmError::Io`], [`MmError::NoSpace`], [`MmError::FrameUnreachable`].
    ///
    /// # Locking
    /// None is held, no address space's either.
    ///
    /// # Linux
    /// `vfs_fsync_range` in `fs/sync.c`.
    #[doc(alias = "vfs_fsync_range")]
    pub fn finish_sync(self, sync: FileSync) -> Result<(), MmError> {
        let FileSync { file, mut job, mut seen } = sync;
        let Self { source, cache, .. } = self;
        let written = loop {
            let step = cache.write_back(source, &self.entries(), &mut job);
            match step {
                Ok(Step::Wait(ticket)) => cache.wait(source, ticket),
                Ok(Step::Done) => break cache.take_error(source, file, &mut seen),
                Err(error) => break Err(error),
            }
        };
        let put = cache.put_user(source, file);
        debug_assert!(put.is_ok(), "a file was gone before its user: {put:?}");
        written.map_err(cause)
    }
}

/// Whether a range begins in the leaf table in which the one below it ends.
fn is_near(below: VirtRange, range: VirtRange) -> bool {
    !below.is_empty() && (below.end().get() - 1) / HUGE_SIZE == range.start().get() / HUGE_SIZE
}

/// What the mmap family answers where the page cache refused.
const fn cause(error: CacheError) -> MmError {
    match error {
        CacheError::Io => MmError::Io,
        CacheError::NoSpace => MmError::NoSpace,
        CacheError::BadFile
        | CacheError::NotReadable
        | CacheError::NotWritable
        | CacheError::NotResizable => MmError::BadDescriptor,
        CacheError::Unsupported => MmError::UnsupportedFlag,
        CacheError::TooManyFiles => MmError::OutOfFiles,
        CacheError::TooLarge => MmError::FileTooLarge,
        CacheError::Unreachable => MmError::FrameUnreachable,
        // The last two are for those who read a file or make it longer.
        CacheError::OutOfMemory | CacheError::BeyondEnd | CacheError::Truncating => MmError::OutOfMemory,
    }
}
