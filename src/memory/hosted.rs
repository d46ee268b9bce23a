//! Booting on the simulated machine.

use std::fmt;

use lock_api::RawRwLock;

use crate::fault::FrameTally;
use crate::phys::{Config, InitError, Plan, ZoneLimits};
use crate::platform::hosted::Machine;
use crate::table::EntryFormat;

use super::{Memory, Options, Process, Vm};

/// Why a simulated machine was not booted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BootError {
    /// It runs already.
    Running,
    /// Its memory map or the configuration is bad.
    Init(InitError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("the machine runs already"),
            Self::Init(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BootError {}

impl From<InitError> for BootError {
    fn from(error: InitError) -> Self {
        Self::Init(error)
    }
}

impl<'a> From<&'a Machine> for Config<'a> {
    /// The machine's nodes and CPUs; HIGHMEM begins where its direct map ends.
    fn from(machine: &'a Machine) -> Self {
        let limits = ZoneLimits::default();
        let normal_end = machine.highmem_from();
        Self {
            zones: ZoneLimits { dma_end: limits.dma_end.min(normal_end), normal_end },
            nodes: machine.nodes(),
            distances: machine.distances(),
            cpus: machine.cpu_nodes(),
            ..Self::default()
        }
    }
}

impl<'m> Memory<'m, Machine> {
    /// Boots a simulated machine as [`Config::from`] describes it, the metadata apart from its RAM. The thread must have claimed one
    /// of its CPUs.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn on(machine: &'m Machine) -> Result<Self, BootError> {
        Self::on_with(machine, &Config::from(machine), Options::default())
    }

    /// Boots a simulated machine with a configuration of your own and with debug aids.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn on_with(machine: &'m Machine, config: &Config<'_>, options: Options) -> Result<Self, BootError> {
        let plan = Plan::new(machine.map(), config)?;
        let metadata = machine.set_aside(Self::metadata_layout(&plan, config));
        let map = machine.take_map().ok_or(BootError::Running)?;
        Ok(Self::boot(map, config, options, metadata)?)
    }
}

impl<'a, 'm, F: EntryFormat> Vm<'a, Memory<'m, Machine>, F> {
    /// As [`check`](Self::check) on a simulated machine, of which nobody else has frames; the slabs too.
    ///
    /// # Panics
    /// If anything is wrong, saying what.
    #[track_caller]
    pub fn assert_sound<'v, L: RawRwLock>(
        &'v self,
        processes: &[&Process<'v, 'a, Memory<'m, Machine>, F, L>],
    ) {
        let mut tallies = std::vec![FrameTally::new(); self.source().phys().slots()];
        let checked = self.check(processes, |_| 0, &mut tallies).and_then(|()| self.source().check());
        if let Err(broken) = checked {
            panic!("{broken}");
        }
    }
}
