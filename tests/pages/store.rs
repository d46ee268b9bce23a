//! A store that refuses what it is told to refuse, and remembers what it has said.

use std::collections::BTreeMap;
use std::sync::Mutex;

use kernmm::addr::PgOff;
use kernmm::platform::hosted::{Disk, Failure, Machine, Stage};
use kernmm::platform::{BackingStore, Cluster, IoState, StoreError, Submitted, Ticket};

/// What a store refuses for one file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusals {
    pub(super) reads: bool,
    pub(super) writes: Option<StoreError>,
    pub(super) barriers: Option<StoreError>,
    /// When a page is about to be written to in memory.
    pub(super) room: Option<StoreError>,
    pub(super) sizes: Option<StoreError>,
    /// When reads, writes and barriers are refused.
    pub(super) stage: Stage,
}

impl Refusals {
    pub(super) const NONE: Self = Self {
        reads: false,
        writes: None,
        barriers: None,
        room: None,
        sizes: None,
        stage: Stage::Submission,
    };
}

/// The errors that writes of a file have met with, as `errseq_t` keeps them.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct ErrorLog {
    pub(super) count: u32,
    pub(super) last: Option<StoreError>,
    pub(super) is_told: bool,
}

impl ErrorLog {
    /// What who begins to listen now has missed: all but an error that nobody was told of.
    pub(super) fn so_far(&self) -> u32 {
        self.count - u32::from(self.last.is_some() && !self.is_told)
    }
}

#[derive(Default)]
struct State {
    refusals: BTreeMap<u64, Refusals>,
    errors: BTreeMap<u64, ErrorLog>,
    /// Which file writes and barriers are for that are under way.
    writes: BTreeMap<u64, u64>,
    every: u64,
    requests: u64,
}

impl State {
    fn refusals(&self, inode: u64) -> Refusals {
        self.refusals.get(&inode).copied().unwrap_or(Refusals::NONE)
    }

    /// How the store is too busy for this request, if it is.
    fn busy(&mut self) -> Option<(StoreError, Stage)> {
        self.requests += 1;
        // By chance, so that nobody who asks again is refused for ever.
        let chance = self.requests.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let is_busy = self.every != 0 && chance % self.every == 0;
        let stage = if chance & 0x8000 == 0 { Stage::Completion } else { Stage::Submission };
        is_busy.then_some((StoreError::Busy, stage))
    }

    fn note(&mut self, inode: u64, error: StoreError) {
        if error != StoreError::Busy {
            let log = self.errors.entry(inode).or_default();
            *log = ErrorLog { count: log.count + 1, last: Some(error), is_told: false };
        }
    }
}

/// A disk before which somebody stands.
pub(super) struct Store<'m> {
    pub(super) disk: Disk<'m>,
    state: Mutex<State>,
}

impl<'m> Store<'m> {
    pub(super) fn new(machine: &'m Machine) -> Self {
        Self { disk: Disk::new(machine), state: Mutex::default() }
    }

    pub(super) fn refusals(&self, inode: u64) -> Refusals {
        self.state.lock().unwrap().refusals(inode)
    }

    pub(super) fn refuse(&self, inode: u64, refusals: Refusals) {
        self.state.lock().unwrap().refusals.insert(inode, refusals);
    }

    /// Refuses one request in so many for want of room; none if 0.
    pub(super) fn set_busy(&self, every: u64) {
        self.state.lock().unwrap().every = every;
    }

    pub(super) fn errors(&self, inode: u64) -> ErrorLog {
        self.state.lock().unwrap().errors.get(&inode).copied().unwrap_or_default()
    }

    pub(super) fn note_told(&self, inode: u64) {
        self.state.lock().unwrap().errors.entry(inode).or_default().is_told = true;
    }

    /// Passes a request on, which fails if it is to.
    fn ask(
        &self,
        refuses: impl FnOnce(&Refusals) -> Option<StoreError>,
        inode: u64,
        ask: impl FnOnce(&Disk<'m>) -> Result<Submitted, StoreError>,
    ) -> Result<Submitted, StoreError> {
        let mut state = self.state.lock().unwrap();
        let refusals = state.refusals(inode);
        let refusal = state.busy().or_else(|| Some((refuses(&refusals)?, refusals.stage)));
        if let Some((error, stage)) = refusal {
            self.disk.fail(Failure { operation: None, after: 0, times: 1, error, stage });
        }
        let answer = ask(&self.disk);
        self.disk.clear_failures();
        answer
    }

    fn ask_to_write(
        &self,
        refuses: impl FnOnce(&Refusals) -> Option<StoreError>,
        inode: u64,
        ask: impl FnOnce(&Disk<'m>) -> Result<Submitted, StoreError>,
    ) -> Result<Submitted, StoreError> {
        let answer = self.ask(refuses, inode, ask);
        let mut state = self.state.lock().unwrap();
        match answer {
            Ok(Submitted::Pending(ticket)) => drop(state.writes.insert(ticket.0, inode)),
            Ok(Submitted::Done) => {}
            Err(error) => state.note(inode, error),
        }
        answer
    }
}

impl BackingStore for Store<'_> {
    fn size(&self, inode: u64) -> Result<u64, StoreError> {
        self.disk.size(inode)
    }

    fn read(&self, inode: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError> {
        self.ask(|refusals| refusals.reads.then_some(StoreError::Io), inode, |disk| disk.read(inode, pages))
    }

    fn write(&self, inode: u64, pages: &Cluster<'_>, len: u64) -> Result<Submitted, StoreError> {
        self.ask_to_write(|refusals| refusals.writes, inode, |disk| disk.write(inode, pages, len))
    }

    fn prepare_write(&self, inode: u64, _page: PgOff) -> Result<(), StoreError> {
        let mut state = self.state.lock().unwrap();
        match state.busy() {
            Some((error, _)) => Err(error),
            None => state.refusals(inode).room.map_or(Ok(()), Err),
        }
    }

    fn barrier(&self, inode: u64) -> Result<Submitted, StoreError> {
        self.ask_to_write(|refusals| refusals.barriers, inode, |disk| disk.barrier(inode))
    }

    fn set_size(&self, inode: u64, size: u64) -> Result<(), StoreError> {
        self.refusals(inode).sizes.map_or_else(|| self.disk.set_size(inode, size), Err)
    }

    fn poll(&self, ticket: Ticket) -> IoState {
        let state = self.disk.poll(ticket);
        if let IoState::Ended(result) = state {
            let mut noted = self.state.lock().unwrap();
            let inode = noted.writes.remove(&ticket.0);
            if let (Some(inode), Err(error)) = (inode, result) {
                noted.note(inode, error);
            }
        }
        state
    }
}
