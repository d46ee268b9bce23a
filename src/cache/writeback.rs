//! What is newer than the store goes there.

use crate::addr::{PAGE_SHIFT, PAGE_SIZE_U64, Pfn, PgOff, VirtAddr, VirtRange};
use crate::collections::Slot;
use crate::flags::PageFlags;
use crate::phys::PageSource;
use crate::platform::{BackingStore, Cluster, CpuPin, Platform};
use crate::rmap::{Copies, MmAccess, Place, Walk};

use super::PageCache;
use super::error::CacheError;
use super::fetch::place;
use super::files::StoreKey;
use super::io::{IoKind, IoTicket, Reach};
use super::mapping::FileId;
use super::pages::{Pages, Tag};
use super::plug::Submission;
use super::room::Full;

/// The most pages that are written in one piece.
const CLUSTER: usize = 32;

/// How far a call has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "there may be something to wait for"]
pub enum Step {
    /// It is through.
    Done,
    /// When [`PageCache::io_done`] says that this is over, the call is to be made again.
    Wait(IoTicket),
}

/// What a write-back waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncMode {
    /// For nothing: writes are begun, as many as the store takes.
    ///
    /// # Linux
    /// `WB_SYNC_NONE`.
    Start,
    /// Until the pages are in the store, and will survive whatever comes.
    ///
    /// # Linux
    /// `WB_SYNC_ALL`, and the flush that `fsync` ends with.
    Wait,
}

/// A write-back under way: which pages, and how far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteBack {
    file: FileId,
    first: u32,
    end: u32,
    mode: SyncMode,
    stage: Stage,
    /// The dirty page whose former write was waited for: if it is dirty and being written once more, what it held before is being written.
    again: Option<u32>,
    waiting: Option<IoTicket>,
    /// How many pages may still be written.
    left: u32,
    users: Users,
    /// The page behind the last one whose write was begun.
    reached: Option<u32>,
    /// Why it has begun no more.
    full: Option<Full>,
}

/// For whom a file is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Users {
    Any,
    /// Only as long as nobody has it open or mapped: entries are not looked for.
    Nobody,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Dirty pages from here on are to be written.
    Write(u32),
    /// Those from here on are to be waited for.
    Settle(u32),
    /// What was written is to be made to last.
    Barrier,
    Over,
}

impl WriteBack {
    /// Of the pages from `first` up to and without `end`.
    ///
    /// # Linux
    /// `struct writeback_control` in `include/linux/writeback.h`.
    #[doc(alias = "writeback_control")]
    pub fn new(file: FileId, first: PgOff, end: PgOff, mode: SyncMode) -> Self {
        let clip = |at: PgOff| at.get().min(u64::from(u32::MAX)) as u32;
        let (first, end) = (clip(first), clip(end));
        Self {
            file,
            first,
            end,
            mode,
            stage: Stage::Write(first),
            again: None,
            waiting: None,
            left: u32::MAX,
            users: Users::Any,
            reached: None,
            full: None,
        }
    }

    /// Of the whole file.
    pub fn all(file: FileId, mode: SyncMode) -> Self {
        Self::new(file, PgOff::ZERO, PgOff::MAX, mode)
    }

    /// The same, of not more than so many pages.
    #[doc(alias = "nr_to_write")]
    #[must_use]
    pub const fn of_at_most(self, pages: u32) -> Self {
        Self { left: pages, ..self }
    }

    /// How many pages it may still write.
    pub(super) const fn left(&self) -> u32 {
        self.left
    }

    /// The page behind the last one whose write was begun.
    pub(super) const fn reached(&self) -> Option<u32> {
        self.reached
    }

    /// The same, as long as nobody has the file open or mapped.
    pub(super) const fn of_unused(self) -> Self {
        Self { users: Users::Nobody, ..self }
    }

    /// Why it was over before all was begun, if it does not [wait](SyncMode::Wait).
    pub(super) const fn full(&self) -> Option<Full> {
        self.full
    }

    /// Begins no more.
    const fn stop(&mut self, full: Full) {
        (self.full, self.stage) = (Some(full), Stage::Over);
    }

    fn wait(&mut self, ticket: IoTicket) -> Step {
        self.waiting = Some(ticket);
        Step::Wait(ticket)
    }
}

/// How an attempt to write the next pages ended.
enum Written {
    /// The store may take more by now: it is tried again from this page on.
    From(u32),
    /// The pages before this one are being written. `full` if their store has refused them: it is asked again when this is over, and for no more before.
    Begun { after: u32, pages: u32, full: Option<(Full, IoTicket)> },
    /// This page, which is dirty, is still being written.
    Again { at: u32, ticket: IoTicket },
    /// No more can be written until this is over.
    Full(Full, IoTicket),
    /// No page is dirty.
    None,
}

/// Consecutive pages to be written.
struct Dirty {
    frames: [Pfn; CLUSTER],
    first: u32,
    count: usize,
    /// How many of their bytes belong to the file.
    bytes: u64,
}

impl<'m> PageCache<'m> {
    /// Writes dirty pages to the store, in clusters. A page that is written to meanwhile is written as it was before or after, and is
    /// dirty again.
    ///
    /// With [`SyncMode::Wait`] it answers [`Step::Wait`] as often as there is something to wait for. It ends when each page that was dirty or being written when it began has been
    /// written since, whatever others write to the file or have refused meanwhile. With [`SyncMode::Start`] it never waits: it passes over what is being written, and is
    /// [`Step::Done`] where the store, or the table of writes, takes no more.
    ///
    /// A write that its store is too [busy](crate::platform::StoreError::Busy) for has begun: its pages are under write-back, and the store is asked again when it takes more, by
    /// who waits for it, by the next write, or by [`reap`](Self::reap) and [`write_dirty`](Self::write_dirty). What a write met with is told by
    /// [`take_error`](Self::take_error) afterwards; its pages stay dirty as long as somebody has the file open or mapped, and those of a file that
    /// nobody has until its store has failed eight times.
    ///
    /// # Errors
    /// [`CacheError::BadFile`]; [`CacheError::Unreachable`] if what lies behind the end of the file cannot be set to zero. With [`SyncMode::Wait`]
    /// [`CacheError::Io`] and [`CacheError::NoSpace`], once all is written, if the store has refused to [cut](Self::truncate) the file.
    ///
    /// # Linux
    /// `__filemap_fdatawrite_range` and `file_write_and_wait_range` in `mm/filemap.c`; a page whose write failed is clean there.
    #[doc(alias = "file_write_and_wait_range")]
    pub fn write_back<S: PageSource>(
        &self,
        source: &S,
        access: &impl MmAccess,
        job: &mut WriteBack,
    ) -> Result<Step, CacheError> {
        loop {
            if let Some(ticket) = job.waiting {
                if !self.io_done(source, ticket) {
                    return Ok(Step::Wait(ticket));
                }
                job.waiting = None;
            }
            match job.stage {
                Stage::Write(_) if job.left == 0 => job.stage = Stage::Settle(job.first),
                Stage::Settle(_) if job.mode == SyncMode::Start => job.stage = Stage::Over,
                Stage::Write(next) => match self.write_some(source, access, job, next)? {
                    Written::From(next) => job.stage = Stage::Write(next),
                    Written::Begun { after, pages, full } => {
                        (job.left, job.reached) = (job.left.saturating_sub(pages), Some(after));
                        job.stage = Stage::Write(after);
                        match full {
                            Some((full, _)) if job.mode == SyncMode::Start => job.stop(full),
                            Some((_, ticket)) => return Ok(job.wait(ticket)),
                            None => {}
                        }
                    }
                    Written::Again { at, .. } if job.mode == SyncMode::Start || job.again == Some(at) => {
                        job.stage = Stage::Write(at.saturating_add(1));
                    }
                    Written::Again { at, ticket } => {
                        job.again = Some(at);
                        return Ok(job.wait(ticket));
                    }
                    Written::Full(full, _) if job.mode == SyncMode::Start => job.stop(full),
                    Written::Full(_, ticket) => return Ok(job.wait(ticket)),
                    Written::None => job.stage = Stage::Settle(job.first),
                },
                Stage::Settle(next) => match self.first_under_write(source, job.file, next, job.end)? {
                    Some((index, ticket)) => {
                        // Written again after this, it is somebody else's to wait for.
                        job.stage = Stage::Settle(index.saturating_add(1));
                        return Ok(job.wait(ticket));
                    }
                    None => job.stage = Stage::Barrier,
                },
                Stage::Barrier => match self.barrier(source, job.file)? {
                    Flush::Full(_, ticket) => return Ok(job.wait(ticket)),
                    Flush::Begun { ticket, .. } => (job.stage, job.waiting) = (Stage::Over, Some(ticket)),
                    Flush::Done => job.stage = Stage::Over,
                },
                Stage::Over => return self.end_write_back(source, job),
            }
        }
    }

    /// What a write-back comes to that is through: not even what was written lasts as it should while the store has more than the file.
    fn end_write_back<S: PageSource>(&self, source: &S, job: &WriteBack) -> Result<Step, CacheError> {
        let pin = source.platform().pin();
        let refused = self.lock(source, &pin, job.file)?.cut.and_then(|cut| cut.refused);
        match refused.filter(|_| job.mode == SyncMode::Wait) {
            Some(error) => Err(error.into()),
            None => Ok(Step::Done),
        }
    }

    /// Begins to write the first dirty pages from `next` on that follow each other.
    fn write_some<S: PageSource>(
        &self,
        source: &S,
        access: &impl MmAccess,
        job: &mut WriteBack,
        next: u32,
    ) -> Result<Written, CacheError> {
        let (file, ended) = (job.file, self.ended());
        let full = |store, ended| (Full::Store(store), self.room_in(source, file, store, ended));
        let found = {
            let pin = source.platform().pin();
            let mut pages = self.lock(source, &pin, file)?;
            if job.users == Users::Nobody && pages.users != 0 {
                return Ok(Written::None);
            }
            let Some((store, inode)) = pages.store() else { return Ok(Written::None) };
            if job.mode == SyncMode::Wait {
                // What others append from now on is not waited for.
                job.end = job.end.min(pages.end());
            }
            let dirty = match Dirty::collect(&pages, next, job.end, job.left) {
                Collected::Pages(dirty) => dirty,
                Collected::Again(at) => {
                    let ticket = self.io_of(&pin, file, at);
                    return Ok(Written::Again { at, ticket });
                }
                Collected::None => return Ok(Written::None),
            };
            if self.has_refused_write(&pin, StoreKey::of(store)) {
                Err(StoreKey::of(store))
            } else {
                dirty.zero_tail(&pages, &pin)?;
                let ticket = match self.begin_io(&pin, file, store, IoKind::Write) {
                    Ok(ticket) => ticket,
                    Err((full, other)) => return Ok(Written::Full(full, other)),
                };
                dirty.mark(&mut pages);
                self.set_io_pages(&pin, ticket, dirty.first, dirty.count as u32);
                Ok((dirty, Write { store, inode, ticket }))
            }
        };
        let (dirty, Write { store, inode, ticket }) = match found {
            Ok(found) => found,
            Err(store) if self.is_too_busy(source, store) => {
                let (full, ticket) = full(store, ended);
                return Ok(Written::Full(full, ticket));
            }
            Err(_) => return Ok(Written::From(next)),
        };
        self.protect(source, access, file, &dirty);
        let (reach, ended) = (Reach(source), self.ended());
        let cluster = Cluster::new(place(dirty.first), dirty.frames(), &reach);
        let answer = store.write(inode, &cluster, dirty.bytes);
        let full = match self.submitted(source, ticket, ended, answer) {
            Submission::Refused { store, .. } => Some(full(store, ended)),
            Submission::Over | Submission::UnderWay => None,
        };
        let pages = dirty.count as u32;
        Ok(Written::Begun { after: dirty.first + pages, pages, full })
    }

    /// Write-protects all entries of pages that are about to be written, so that the next write through one is noticed.
    ///
    /// # Linux
    /// `folio_mkclean` in `mm/rmap.c`.
    #[doc(alias = "folio_mkclean")]
    fn protect<S: PageSource>(&self, source: &S, access: &impl MmAccess, file: FileId, dirty: &Dirty) {
        let Some(mapping) = self.mappings.get(file.place()) else { return };
        if mapping.sharers.is_empty() {
            return;
        }
        // An entry on its way to another place would be missed.
        let mut settled = mapping.sharers.settle(source.platform());
        let (first, end) = (place(dirty.first), place(dirty.first.saturating_add(dirty.count as u32)));
        loop {
            let walk = settled.walk(self.nodes, first, end, |shown, range| dirty.clean(access, shown, range));
            access.flush();
            if walk == Walk::Through {
                return;
            }
        }
    }

    /// The first page that is being written.
    fn first_under_write<S: PageSource>(
        &self,
        source: &S,
        file: FileId,
        first: u32,
        end: u32,
    ) -> Result<Option<(u32, IoTicket)>, CacheError> {
        let pin = source.platform().pin();
        let pages = self.lock(source, &pin, file)?;
        let page = pages.tagged_from(first, Tag::Writeback).filter(|page| page.index < end);
        Ok(page.map(|page| (page.index, self.io_of(&pin, file, page.index))))
    }

    /// Has the store make last what it was given.
    pub(super) fn barrier<S: PageSource>(&self, source: &S, file: FileId) -> Result<Flush, CacheError> {
        let (store, inode, ticket) = {
            let pin = source.platform().pin();
            let pages = self.lock(source, &pin, file)?;
            let Some((store, inode)) = pages.store() else { return Ok(Flush::Done) };
            let done = pages.lasting.done();
            match self.begin_io(&pin, file, store, IoKind::Barrier { done }) {
                Ok(ticket) => (store, inode, ticket),
                Err((full, other)) => return Ok(Flush::Full(full, other)),
            }
        };
        let ended = self.ended();
        Ok(match self.submitted(source, ticket, ended, store.barrier(inode)) {
            Submission::Over => Flush::Done,
            Submission::UnderWay => Flush::Begun { ticket, full: None },
            Submission::Refused { store, .. } => Flush::Begun { ticket, full: Some(Full::Store(store)) },
        })
    }
}

/// A write that has its place.
struct Write<'m> {
    store: &'m dyn BackingStore,
    inode: u64,
    ticket: IoTicket,
}

/// How an attempt to have the store make things last ended.
pub(super) enum Flush {
    Done,
    /// It is under way; or it will be when its store takes more, which has refused it.
    Begun {
        ticket: IoTicket,
        full: Option<Full>,
    },
    /// It could not begin until this is over.
    Full(Full, IoTicket),
}

/// The page tables of a file that nobody maps.
pub(super) struct NoEntries;

impl MmAccess for NoEntries {
    fn clean(&self, _: Slot, _: VirtAddr, _: Pfn) -> bool {
        false
    }

    fn zap(&self, _: Slot, _: VirtRange, _: Copies) -> Option<VirtAddr> {
        None
    }

    fn flush(&self) {}
}

/// What was found to write.
#[expect(clippy::large_enum_variant, reason = "it is taken apart where it was made, and there is no heap")]
enum Collected {
    Pages(Dirty),
    /// This page is dirty, and being written.
    Again(u32),
    None,
}

impl Dirty {
    /// The first dirty pages from `next` on, as long as one follows the other, and `most` of them. What lies beyond the end of the file is a
    /// truncation's.
    fn collect(pages: &Pages<'_, '_>, next: u32, end: u32, most: u32) -> Collected {
        let end = end.min(pages.end());
        let mut found = Self { frames: [Pfn::ZERO; CLUSTER], first: next, count: 0, bytes: 0 };
        if pages.dirty == 0 {
            return Collected::None;
        }
        let mut at = pages.tagged_from(next, Tag::Dirty);
        while let Some(page) = at.filter(|page| page.index < end) {
            if found.count as u32 == most {
                break;
            }
            let follows = found.count != 0 && page.index == found.first + found.count as u32;
            match page.is(PageFlags::WRITEBACK) {
                true if found.count == 0 => return Collected::Again(page.index),
                false if found.count == 0 => found.first = page.index,
                false if follows => {}
                _ => break,
            }
            let Some(place) = found.frames.get_mut(found.count) else { break };
            *place = page.pfn;
            found.count += 1;
            // What does not follow is left to the next call.
            at = pages.after(&page).filter(|page| page.is(PageFlags::DIRTY));
        }
        if found.count == 0 {
            return Collected::None;
        }
        found.bytes = pages.bytes_in(found.first, found.count as u32);
        Collected::Pages(found)
    }

    /// Write-protects the entries of a VMA that show these pages, or as many as fit in before the next flush: answers where to go on then.
    fn clean(&self, access: &impl MmAccess, shown: &Place, range: VirtRange) -> Option<VirtAddr> {
        let before = (range.start().get() - shown.start.get()) >> PAGE_SHIFT;
        let first = shown.pgoff.get() + before;
        let skipped = first.saturating_sub(u64::from(self.first)) as usize;
        let mut addr = range.start();
        for &pfn in self.frames().iter().skip(skipped).take((range.len() >> PAGE_SHIFT) as usize) {
            if access.is_full() {
                return Some(addr);
            }
            access.clean(shown.mm, addr, pfn);
            addr = addr.checked_add(PAGE_SIZE_U64)?;
        }
        None
    }

    fn frames(&self) -> &[Pfn] {
        self.frames.get(..self.count).unwrap_or_default()
    }

    /// Sets to zero what was written behind the end of the file, through mappings.
    ///
    /// # Linux
    /// `ext4_bio_write_folio` in `fs/ext4/page-io.c`, and its like of other file systems.
    fn zero_tail(&self, pages: &Pages<'_, '_>, pin: &CpuPin<'_>) -> Result<(), CacheError> {
        let is_one = |last: &u32| last.checked_sub(self.first).is_some_and(|at| at < self.count as u32);
        let last = pages.end().checked_sub(1).filter(is_one);
        match last.and_then(|last| pages.at(last)) {
            Some(last) => pages.zero_tail(&last, pin, u64::MAX),
            None => Ok(()),
        }
    }

    /// Notes the pages as clean and being written.
    fn mark(&self, pages: &mut Pages<'_, '_>) {
        let (mut next, end) = (pages.from(self.first), self.first.saturating_add(self.count as u32));
        while let Some(page) = next.filter(|page| page.index < end) {
            next = pages.after(&page);
            pages.clear_dirty(&page);
            pages.begin_writeback(&page);
        }
    }
}

#[cfg(all(test, feature = "std", not(any(loom, shuttle))))]
mod tests;
