//! CPUs: their numbers, and the proof that a caller keeps one.

use core::marker::PhantomData;
use core::ops::Deref;

use super::Platform;

/// The number of a CPU, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CpuId(pub u32);

impl CpuId {
    /// The CPU that boots the machine.
    pub const BOOT: Self = Self(0);

    /// The number as an index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// How a CPU accesses memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// By a load.
    Read,
    /// By a store.
    Write,
    /// By the fetch of an instruction.
    Exec,
}

/// What became of a [`Platform::kick`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kick {
    /// The CPU runs and will serve the request.
    Sent,
    /// The CPU runs none of the library's code until the caller drops its pin: the caller may serve in its place.
    Halted,
}

/// Proof that the caller has one CPU to itself: it is not moved, and no interrupt handler of that CPU allocates.
///
/// Per-CPU lists are reached only with it, which is why their fast path takes no atomic read-modify-write. Locks are
/// taken only with it too, so an interrupt handler never spins on a lock that its own CPU holds.
pub struct CpuPin<'p> {
    cpu: CpuId,
    platform: &'p dyn Platform,
    /// The ranks of the locks held, one bit each.
    #[cfg(feature = "check")]
    held: core::cell::Cell<u32>,
    /// A pin stays on its thread.
    not_send: PhantomData<*mut ()>,
}

impl<'p> CpuPin<'p> {
    /// Makes a pin of the caller's word.
    ///
    /// # Safety
    /// While the pin lives, the caller runs as `cpu` of this platform, and nobody else does: no other thread and no interrupt handler of that CPU
    /// uses a pin for it. The caller itself may have others: pins nest, and each of them proves the same. Feature `check` counts the
    /// locks of each pin apart: it misses an inversion between two of them.
    ///
    /// A pin is good for the frames that were given at boot with a pin of the same platform. Others refuse it where they look, which is not
    /// on the fast path: whoever makes pins for several machines in one program keeps them apart.
    #[inline]
    pub unsafe fn new(platform: &'p dyn Platform, cpu: CpuId) -> Self {
        Self {
            cpu,
            platform,
            #[cfg(feature = "check")]
            held: core::cell::Cell::new(0),
            not_send: PhantomData,
        }
    }

    /// The CPU that the caller keeps.
    #[inline]
    pub fn cpu(&self) -> CpuId {
        self.cpu
    }

    /// The hooks of the platform that the CPU belongs to.
    #[inline]
    pub fn platform(&self) -> &'p dyn Platform {
        self.platform
    }

    /// Tells platforms apart as long as they stay where they are; 0 for all that have no size, of which there may be copies anywhere.
    pub(crate) fn platform_id(&self) -> usize {
        if size_of_val(self.platform) == 0 { 0 } else { core::ptr::from_ref(self.platform).addr() }
    }

    /// Notes that a lock of `rank` is taken; `false` if one of the same or a higher rank is held already.
    #[cfg(feature = "check")]
    pub(crate) fn note_locked(&self, rank: u32) -> bool {
        let held = self.held.get();
        self.held.set(held | 1 << rank);
        held >> rank == 0
    }

    /// Notes that the lock of `rank` is free again.
    #[cfg(feature = "check")]
    pub(crate) fn note_unlocked(&self, rank: u32) {
        self.held.set(self.held.get() & !(1 << rank));
    }
}

impl core::fmt::Debug for CpuPin<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("CpuPin").field(&self.cpu.0).finish()
    }
}

/// A [`CpuPin`] that gives the CPU back when it is dropped.
#[derive(Debug)]
pub struct PinGuard<'p, P: Platform> {
    pin: CpuPin<'p>,
    owner: Irq<'p, P>,
}

impl<'p, P: Platform> PinGuard<'p, P> {
    #[inline]
    pub(super) fn new(platform: &'p P) -> Self {
        let owner = Irq { platform, flags: platform.irq_save() };
        // SAFETY: interrupts are masked until `owner` is dropped with us, so by the contract of `Platform` nobody else
        // runs as this CPU.
        let pin = unsafe { CpuPin::new(platform, platform.cpu_id()) };
        Self { pin, owner }
    }

    /// The platform that the CPU belongs to.
    #[inline]
    pub fn owner(&self) -> &'p P {
        self.owner.platform
    }
}

impl<'p, P: Platform> Deref for PinGuard<'p, P> {
    type Target = CpuPin<'p>;

    #[inline]
    fn deref(&self) -> &CpuPin<'p> {
        &self.pin
    }
}

/// Interrupts masked, until it is dropped.
struct Irq<'p, P: Platform> {
    platform: &'p P,
    flags: usize,
}

impl<P: Platform> Drop for Irq<'_, P> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: this is the `irq_save` of `new`; the pin that relies on it goes with us.
        unsafe { self.platform.irq_restore(self.flags) };
    }
}

impl<P: Platform> core::fmt::Debug for Irq<'_, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Irq").field("flags", &self.flags).finish()
    }
}
