//! A disk: a device that takes its time, fails on request, and forgets what no barrier made safe when the power goes.
//!
//! ```
//! use kernmm::platform::hosted::{Disk, Latency, Machine, Unsafe};
//!
//! let machine = Machine::pc(16 << 20).build()?;
//! let disk = Disk::new(&machine);
//! disk.put(7, b"what the file holds");
//! disk.set_latency(Latency::Ticks(10));
//! // Requests made by the page cache now end when the clock has moved on.
//! disk.advance(10);
//! assert_eq!(disk.files().size(7), Some(19));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Frames are read and written when a request *ends*, by direct access to the machine's RAM. Until then they belong to the
//! device: a frame that goes back to the allocator meanwhile ends the run, like one that a TLB reaches.
//!
//! A request is refused ([`StoreError::Io`]) where the caller itself could not reach the frames.

mod files;
mod log;

pub use files::Files;
pub use log::Unsafe;

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::{Machine, locked};
use crate::addr::{PAGE_SIZE, PAGE_SIZE_U64, Pfn, PgOff};
use crate::platform::{BackingStore, Cluster, IoState, StoreError, Submitted, Ticket};

use log::Log;

/// How long requests take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Latency {
    /// They are done when they return.
    #[default]
    None,
    /// They end when they are polled for once more than so often.
    Polls(u32),
    /// They end when the clock, which [`Disk::advance`] moves, has moved on by so much.
    Ticks(u64),
}

/// What a disk is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// To read pages.
    Read,
    /// To write pages.
    Write,
    /// To make writes safe.
    Barrier,
    /// To change a file's length.
    SetSize,
    /// To make room for a page.
    Reserve,
}

/// When a request fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// When it is made: nothing is under way.
    Submission,
    /// When it ends. A read has then filled frames with rubbish.
    Completion,
}

/// When a disk finds out that it has no [room](Disk::set_capacity) for a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Room {
    /// When the page is written to it.
    #[default]
    WhenWritten,
    /// When the page is about to be written in memory.
    WhenDirtied,
}

/// A failure to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Which operations are counted; all if `None`.
    pub operation: Option<Operation>,
    /// How many of them go well before.
    pub after: u64,
    /// How many fail then.
    pub times: u64,
    /// With what.
    pub error: StoreError,
    /// When.
    pub stage: Stage,
}

/// A request that was made, for tests of what is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What for.
    pub operation: Operation,
    /// Of which file.
    pub inode: u64,
    /// The first page; for a change of length the page that holds the new end.
    pub first: PgOff,
    /// How many pages.
    pub pages: u64,
}

/// What stands in the frames of a read that failed.
const RUBBISH: u8 = 0xbd;

/// A request under way.
#[derive(Debug)]
struct Pending {
    job: Job,
    polls: u32,
    due: u64,
    /// How it ended, once it has.
    ended: Option<Result<(), StoreError>>,
    failure: Option<StoreError>,
}

/// What a request is to do when it ends.
#[derive(Debug)]
enum Job {
    Read { inode: u64, offset: u64, frames: Vec<Pfn> },
    Write { inode: u64, offset: u64, len: usize, frames: Vec<Pfn> },
    Barrier { inode: u64, before: usize },
}

#[derive(Debug, Default)]
struct State {
    files: Files,
    log: Option<Log>,
    latency: Latency,
    now: u64,
    next_ticket: u64,
    pending: BTreeMap<u64, Pending>,
    failures: Vec<Failure>,
    capacity: Option<u64>,
    room: Room,
    depth: Option<usize>,
    operations: u64,
    requests: Option<Vec<Request>>,
}

/// A disk of a machine.
#[derive(Debug)]
pub struct Disk<'m> {
    machine: &'m Machine,
    state: Mutex<State>,
}

impl<'m> Disk<'m> {
    /// An empty disk.
    pub fn new(machine: &'m Machine) -> Self {
        Self::with_files(machine, Files::default())
    }

    /// A disk with files: those that a power cut left, for a machine that is started again.
    pub fn with_files(machine: &'m Machine, files: Files) -> Self {
        Self { machine, state: Mutex::new(State { files, ..State::default() }) }
    }

    /// Puts a file on the disk in no time, in place of the one of that number.
    pub fn put(&self, inode: u64, contents: &[u8]) {
        let mut state = locked(&self.state);
        state.files.remove(inode);
        state.files.set_size(inode, 0);
        state.files.write(inode, 0, contents);
        if let Some(log) = &mut state.log {
            log.note_put(inode, contents);
        }
    }

    /// Takes a file off the disk in no time.
    pub fn remove(&self, inode: u64) {
        let mut state = locked(&self.state);
        state.files.remove(inode);
        if let Some(log) = &mut state.log {
            log.note_remove(inode);
        }
    }

    /// The files as they are now, with all writes that have ended.
    pub fn files(&self) -> Files {
        locked(&self.state).files.clone()
    }

    /// From now on requests take so long.
    pub fn set_latency(&self, latency: Latency) {
        locked(&self.state).latency = latency;
    }

    /// Moves the clock on; what is due ends, in the order in which it falls due.
    pub fn advance(&self, ticks: u64) {
        let mut state = locked(&self.state);
        state.now = state.now.saturating_add(ticks);
        let now = state.now;
        let due = |(&ticket, pending): (&u64, &Pending)| {
            (pending.ended.is_none() && pending.due <= now).then_some((pending.due, ticket))
        };
        let mut tickets: Vec<_> = state.pending.iter().filter_map(due).collect();
        tickets.sort_unstable();
        for (_, ticket) in tickets {
            self.finish(&mut state, ticket);
        }
    }

    /// How many requests have not ended yet.
    pub fn under_way(&self) -> usize {
        locked(&self.state).pending.values().filter(|pending| pending.ended.is_none()).count()
    }

    /// Makes requests fail.
    pub fn fail(&self, failure: Failure) {
        locked(&self.state).failures.push(failure);
    }

    /// Forgets failures that have not come yet.
    pub fn clear_failures(&self) {
        locked(&self.state).failures.clear();
    }

    /// How many requests were made, those that failed among them.
    pub fn operations(&self) -> u64 {
        locked(&self.state).operations
    }

    /// Room for so many pages of 4 KiB in all; without limit if `None`.
    pub fn set_capacity(&self, pages: Option<u64>) {
        locked(&self.state).capacity = pages;
    }

    /// Has the disk find out sooner or later that a page has no room.
    pub fn set_room(&self, room: Room) {
        locked(&self.state).room = room;
    }

    /// No more than so many requests are under way at a time; more are answered with [`StoreError::Busy`].
    pub fn set_depth(&self, requests: Option<usize>) {
        locked(&self.state).depth = requests;
    }

    /// From now on notes each request.
    pub fn record_requests(&self) {
        locked(&self.state).requests.get_or_insert_default();
    }

    /// The requests made since this was last asked; none before [`record_requests`](Self::record_requests).
    pub fn take_requests(&self) -> Vec<Request> {
        locked(&self.state).requests.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Starts the log of writes, from the files as they are, all of which are safe.
    pub fn start_log(&self) {
        let mut state = locked(&self.state);
        for pending in state.pending.values_mut() {
            if let Job::Barrier { before, .. } = &mut pending.job {
                *before = 0;
            }
        }
        state.log = Some(Log::new(state.files.clone()));
    }

    /// How many events the log has: writes, changes of length and barriers that have ended.
    pub fn log_len(&self) -> usize {
        locked(&self.state).log.as_ref().map_or(0, Log::len)
    }

    /// What a power cut leaves when `cut` events of the log have happened: all that a barrier which ended before made safe, and of the rest what
    /// `rest` says. `None` if no log was started.
    ///
    /// A barrier is for one file, and makes safe what had *ended* when it was asked for; that it was itself under way is not enough.
    pub fn crash_image(&self, cut: usize, rest: Unsafe) -> Option<Files> {
        Some(locked(&self.state).log.as_ref()?.image(cut, rest))
    }

    /// Counts a request, notes it, and finds out how it is to fail.
    fn begin(&self, state: &mut State, request: Request) -> Result<Option<StoreError>, StoreError> {
        state.operations += 1;
        if let Some(requests) = &mut state.requests {
            requests.push(request);
        }
        let mut failing = None;
        for failure in &mut state.failures {
            let is_counted = failure.operation.is_none_or(|operation| operation == request.operation);
            if !is_counted || failure.times == 0 {
                continue;
            }
            match failure.after.checked_sub(1) {
                Some(after) => failure.after = after,
                None => {
                    failure.times -= 1;
                    failing = Some(*failure);
                }
            }
        }
        let under_way = state.pending.values().filter(|pending| pending.ended.is_none()).count();
        let full = state.depth.is_some_and(|depth| under_way >= depth);
        match failing {
            Some(failure) if failure.stage == Stage::Submission => Err(failure.error),
            _ if full => Err(StoreError::Busy),
            failing => Ok(failing.map(|failure| failure.error)),
        }
    }

    fn submit(
        &self,
        state: &mut State,
        job: Job,
        failure: Option<StoreError>,
    ) -> Result<Submitted, StoreError> {
        for &pfn in job.frames() {
            self.machine.mmu.begin_device(pfn);
        }
        let (polls, due) = match state.latency {
            Latency::None => {
                let result = self.perform(state, &job, failure);
                self.let_go(&job);
                return result.map(|()| Submitted::Done);
            }
            Latency::Polls(polls) => (polls, u64::MAX),
            Latency::Ticks(ticks) => (u32::MAX, state.now.saturating_add(ticks)),
        };
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.pending.insert(ticket, Pending { job, polls, due, ended: None, failure });
        Ok(Submitted::Pending(Ticket(ticket)))
    }

    fn finish(&self, state: &mut State, ticket: u64) {
        let Some(mut pending) = state.pending.remove(&ticket) else { return };
        let result = self.perform(state, &pending.job, pending.failure);
        self.let_go(&pending.job);
        pending.ended = Some(result);
        state.pending.insert(ticket, pending);
    }

    fn let_go(&self, job: &Job) {
        for &pfn in job.frames() {
            self.machine.mmu.end_device(pfn);
        }
    }

    fn perform(&self, state: &mut State, job: &Job, failure: Option<StoreError>) -> Result<(), StoreError> {
        match job {
            Job::Read { inode, offset, frames } => {
                let mut bytes = [RUBBISH; PAGE_SIZE];
                for (&pfn, page) in frames.iter().zip(0..) {
                    if failure.is_none() {
                        let at = offset.saturating_add(page * PAGE_SIZE_U64);
                        state.files.read(*inode, at, &mut bytes);
                    }
                    self.machine.ram.with_frame(pfn, |frame| frame.write(0, &bytes));
                }
            }
            Job::Write { inode, offset, len, frames } if failure.is_none() => {
                let mut bytes = vec![0; *len];
                for (&pfn, page) in frames.iter().zip(bytes.chunks_mut(PAGE_SIZE)) {
                    self.machine.ram.with_frame(pfn, |frame| frame.read(0, page));
                }
                state.files.write(*inode, *offset, &bytes);
                if let Some(log) = &mut state.log {
                    log.note_write(*inode, *offset, &bytes);
                }
            }
            Job::Barrier { inode, before } if failure.is_none() => {
                if let Some(log) = &mut state.log {
                    log.note_barrier(*inode, *before);
                }
            }
            Job::Write { .. } | Job::Barrier { .. } => {}
        }
        failure.map_or(Ok(()), Err)
    }

    /// The frames of a request, if the caller may touch them all and there is RAM behind them.
    fn frames_of(&self, pages: &Cluster<'_>) -> Result<Vec<Pfn>, StoreError> {
        let within_reach = |(page, &pfn): (usize, &Pfn)| {
            pages.fetch(page, 0, &mut [0]) && self.machine.ram.with_frame(pfn, |_| ()).is_some()
        };
        let frames = pages.frames();
        frames.iter().enumerate().all(within_reach).then(|| frames.to_vec()).ok_or(StoreError::Io)
    }
}

impl Job {
    fn frames(&self) -> &[Pfn] {
        match self {
            Self::Read { frames, .. } | Self::Write { frames, .. } => frames,
            Self::Barrier { .. } => &[],
        }
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let state = locked(&self.state);
        for pending in state.pending.values().filter(|pending| pending.ended.is_none()) {
            self.let_go(&pending.job);
        }
    }
}

impl BackingStore for Disk<'_> {
    fn size(&self, inode: u64) -> Result<u64, StoreError> {
        Ok(locked(&self.state).files.size(inode).unwrap_or(0))
    }

    fn read(&self, inode: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError> {
        let frames = self.frames_of(pages)?;
        let mut state = locked(&self.state);
        let (operation, first, count) = (Operation::Read, pages.first(), frames.len() as u64);
        let failure = self.begin(&mut state, Request { operation, inode, first, pages: count })?;
        self.submit(&mut state, Job::Read { inode, offset: pages.offset(), frames }, failure)
    }

    fn write(&self, inode: u64, pages: &Cluster<'_>, len: u64) -> Result<Submitted, StoreError> {
        let mut frames = self.frames_of(pages)?;
        let mut state = locked(&self.state);
        let (operation, first, count) = (Operation::Write, pages.first(), frames.len() as u64);
        let failure = self.begin(&mut state, Request { operation, inode, first, pages: count })?;
        let len = usize::try_from(len).map_or(usize::MAX, |len| len).min(frames.len() * PAGE_SIZE);
        frames.truncate(len.div_ceil(PAGE_SIZE));
        let offset = pages.offset();
        let new = state.files.new_pages(inode, offset, len);
        if state.capacity.is_some_and(|capacity| state.files.used_pages().saturating_add(new) > capacity) {
            return Err(StoreError::NoSpace);
        }
        // What is under way has its room.
        state.files.reserve(inode, offset, len);
        self.submit(&mut state, Job::Write { inode, offset, len, frames }, failure)
    }

    /// With [`Room::WhenDirtied`] a page gets its room, which a file that becomes shorter gives back.
    fn prepare_write(&self, inode: u64, page: PgOff) -> Result<(), StoreError> {
        let mut state = locked(&self.state);
        if state.room == Room::WhenWritten {
            return Ok(());
        }
        let request = Request { operation: Operation::Reserve, inode, first: page, pages: 1 };
        if let Some(error) = self.begin(&mut state, request)? {
            return Err(error);
        }
        let offset = page.get().checked_mul(PAGE_SIZE_U64).ok_or(StoreError::NoSpace)?;
        let new = state.files.new_pages(inode, offset, PAGE_SIZE);
        if state.capacity.is_some_and(|capacity| state.files.used_pages().saturating_add(new) > capacity) {
            return Err(StoreError::NoSpace);
        }
        state.files.reserve(inode, offset, PAGE_SIZE);
        Ok(())
    }

    fn barrier(&self, inode: u64) -> Result<Submitted, StoreError> {
        let mut state = locked(&self.state);
        let request = Request { operation: Operation::Barrier, inode, first: PgOff::ZERO, pages: 0 };
        let failure = self.begin(&mut state, request)?;
        let before = state.log.as_ref().map_or(0, Log::len);
        self.submit(&mut state, Job::Barrier { inode, before }, failure)
    }

    fn set_size(&self, inode: u64, size: u64) -> Result<(), StoreError> {
        let mut state = locked(&self.state);
        let first = PgOff::new(size / PAGE_SIZE_U64).unwrap_or(PgOff::MAX);
        let request = Request { operation: Operation::SetSize, inode, first, pages: 0 };
        if let Some(error) = self.begin(&mut state, request)? {
            return Err(error);
        }
        state.files.set_size(inode, size);
        if let Some(log) = &mut state.log {
            log.note_size(inode, size);
        }
        Ok(())
    }

    /// # Panics
    /// If the ticket is not one of this disk's, or was said to have ended before.
    fn poll(&self, ticket: Ticket) -> IoState {
        let mut state = locked(&self.state);
        let pending = state.pending.get_mut(&ticket.0);
        let pending = pending.unwrap_or_else(|| panic!("nothing under way has ticket {}", ticket.0));
        if pending.ended.is_none() && pending.due == u64::MAX {
            match pending.polls.checked_sub(1) {
                Some(polls) => pending.polls = polls,
                None => self.finish(&mut state, ticket.0),
            }
        }
        match state.pending.get(&ticket.0).and_then(|pending| pending.ended) {
            Some(result) => {
                state.pending.remove(&ticket.0);
                IoState::Ended(result)
            }
            None => IoState::Pending,
        }
    }
}
