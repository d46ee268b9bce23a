//! Flushes: who is told, and what tests see of them.

use std::sync::Mutex;

use crate::platform::{CpuId, CpuMask, TlbFlush};

use super::super::{locked, machine_check};
use super::Unit;

/// What goes wrong with flushes, for tests that show that a missing one is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum LoseFlushes {
    /// Nothing.
    #[default]
    None,
    /// None is done at all.
    All,
    /// No other CPU hears of them.
    Remote,
    /// What CPUs remember of tables stays.
    Tables,
}

/// Flushes asked for, if anybody wants to know, and what is to become of them.
#[derive(Debug, Default)]
pub(super) struct Flushes(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    log: Option<Vec<(CpuMask, TlbFlush)>>,
    lost: LoseFlushes,
}

impl Flushes {
    pub(super) fn record(&self) {
        locked(&self.0).log.get_or_insert_default();
    }

    pub(super) fn take(&self) -> Vec<(CpuMask, TlbFlush)> {
        locked(&self.0).log.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn lose(&self, which: LoseFlushes) {
        locked(&self.0).lost = which;
    }

    /// Notes a flush; answers what is to go wrong with it.
    fn note(&self, cpus: &CpuMask, flush: &TlbFlush) -> LoseFlushes {
        let mut notes = locked(&self.0);
        if let Some(log) = &mut notes.log {
            log.push((*cpus, *flush));
        }
        notes.lost
    }
}

impl Unit {
    /// Makes CPUs forget. Each CPU's lock is held for every access that it makes, so whoever has had it knows that none goes on.
    pub(in super::super) fn flush(&self, cpus: &CpuMask, flush: &TlbFlush, own: Option<CpuId>) {
        let lost = self.flushes.note(cpus, flush);
        let tables = flush.tables && lost != LoseFlushes::Tables;
        let flush = TlbFlush { tables, ..*flush };
        for cpu in cpus.iter() {
            let Some(tlb) = self.tlbs.get(cpu.index()) else {
                machine_check(format_args!("a flush for CPU {}, which there is not", cpu.0));
            };
            let is_lost = lost == LoseFlushes::All || (lost == LoseFlushes::Remote && own != Some(cpu));
            if !is_lost {
                locked(tlb).flush(&flush, &self.reach);
            }
        }
    }
}
