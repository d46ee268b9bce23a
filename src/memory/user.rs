//! Programs of a simulated machine: they touch memory through the machine's memory management unit, and fault.

use lock_api::RawRwLock;

use super::Memory;
use super::process::{Process, Refused, SpinRwLock};
use crate::addr::VirtAddr;
use crate::fault::{Resolved, Signal};
use crate::mm::MmError;
use crate::platform::hosted::{FaultKind, Machine, MmuFault};
use crate::table::{EntryFormat, X86_64};

/// A thread of a process, on the CPU that the calling thread runs as.
///
/// Each access is translated by the CPU, with its TLB and the process's tables; where it faults, the fault is handled as a kernel would,
/// and the access is tried again.
///
/// Several may take turns on one CPU: each makes it walk its own process's tables.
#[derive(Debug)]
pub struct User<'p, 'v, 'a, 'm, F: EntryFormat = X86_64, L: RawRwLock = SpinRwLock> {
    process: &'p Process<'v, 'a, Memory<'m, Machine>, F, L>,
}

impl<F: EntryFormat, L: RawRwLock> Clone for User<'_, '_, '_, '_, F, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: EntryFormat, L: RawRwLock> Copy for User<'_, '_, '_, '_, F, L> {}

impl<'p, 'v, 'a, 'm, F: EntryFormat, L: RawRwLock> User<'p, 'v, 'a, 'm, F, L> {
    /// A thread of `process`.
    pub const fn new(process: &'p Process<'v, 'a, Memory<'m, Machine>, F, L>) -> Self {
        Self { process }
    }

    /// The process.
    pub const fn process(&self) -> &'p Process<'v, 'a, Memory<'m, Machine>, F, L> {
        self.process
    }

    /// Loads bytes.
    ///
    /// # Errors
    /// [`Refused`]; bytes before the one that was refused may have been loaded.
    pub fn load(&self, addr: VirtAddr, out: &mut [u8]) -> Result<(), Refused> {
        self.run(|machine| machine.load(addr, out))
    }

    /// Stores bytes.
    ///
    /// # Errors
    /// [`Refused`]; bytes before the one that was refused may have been stored.
    pub fn store(&self, addr: VirtAddr, bytes: &[u8]) -> Result<(), Refused> {
        self.run(|machine| machine.store(addr, bytes))
    }

    /// Fetches bytes to be executed.
    ///
    /// # Errors
    /// [`Refused`].
    #[doc(alias = "exec")]
    pub fn fetch(&self, addr: VirtAddr, out: &mut [u8]) -> Result<(), Refused> {
        self.run(|machine| machine.fetch(addr, out))
    }

    /// Loads one byte.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn load_byte(&self, addr: VirtAddr) -> Result<u8, Refused> {
        let mut byte = [0];
        self.load(addr, &mut byte)?;
        Ok(byte[0])
    }

    /// Loads a word of 32 bits.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn load_u32(&self, addr: VirtAddr) -> Result<u32, Refused> {
        let mut bytes = [0; 4];
        self.load(addr, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Stores a word of 32 bits.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn store_u32(&self, addr: VirtAddr, word: u32) -> Result<(), Refused> {
        self.store(addr, &word.to_le_bytes())
    }

    /// Puts `new` where `current` stands, atomically; answers with what stood there.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn compare_exchange(&self, addr: VirtAddr, current: u32, new: u32) -> Result<u32, Refused> {
        self.run(|machine| machine.compare_exchange(addr, current, new))
    }

    /// Makes an access until it needs no fault any more.
    fn run<R>(&self, mut access: impl FnMut(&Machine) -> Result<R, MmuFault>) -> Result<R, Refused> {
        let machine = self.process.vm().source().platform();
        loop {
            if !self.process.is_active() {
                self.process.activate().map_err(|_: MmError| Refused::OutOfMemory)?;
            }
            match access(machine) {
                Ok(done) => return Ok(done),
                Err(fault) => self.resolve(fault)?,
            };
        }
    }

    fn resolve(&self, fault: MmuFault) -> Result<Resolved, Refused> {
        match fault.kind {
            FaultKind::NonCanonical => Err(Refused::Signal(Signal::NonCanonical)),
            FaultKind::Misaligned => Err(Refused::Signal(Signal::Misaligned)),
            _ => self.process.fault(fault.addr, fault.access),
        }
    }
}
