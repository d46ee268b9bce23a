//! What the caches of one slab allocator share: who may touch which CPU's lists, and the list of all caches.

use core::ptr::NonNull;

use crate::phys::{Gate, Patience, Phys};
use crate::platform::{CpuId, CpuPin};
use crate::sync::{Rank, SpinLock};

use super::cache::{CacheId, SlabCache};

/// The frames and the CPU that an operation works with.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    pub(super) phys: &'a Phys<'a>,
    pub(super) pin: &'a CpuPin<'a>,
}

impl<'a> At<'a> {
    #[inline]
    pub(super) fn new(phys: &'a Phys<'a>, pin: &'a CpuPin<'a>) -> Self {
        Self { phys, pin }
    }
}

/// The list of caches.
#[derive(Debug)]
pub(super) struct Caches<'m> {
    first: Option<NonNull<SlabCache<'m>>>,
    last_id: u32,
}

// SAFETY: the pointer leads to caches, which are `Sync`, and which live as long as they are on the list.
unsafe impl Send for Caches<'_> {}

impl<'m> Caches<'m> {
    /// A number that no cache has had.
    pub(super) fn next_id(&mut self) -> Option<CacheId> {
        self.last_id = self.last_id.checked_add(1).filter(|&id| id != CacheId::LARGE.get())?;
        Some(CacheId::new(self.last_id))
    }

    pub(super) fn add(&mut self, cache: &'m SlabCache<'m>) {
        cache.set_next(self.first.map_or(core::ptr::null_mut(), NonNull::as_ptr));
        self.first = Some(NonNull::from(cache));
    }

    /// Takes a cache off the list.
    pub(super) fn remove(&mut self, cache: &SlabCache<'m>) {
        let gone = NonNull::from(cache);
        let after = NonNull::new(cache.next());
        if self.first == Some(gone) {
            self.first = after;
        } else if let Some(before) = self.iter().find(|other| NonNull::new(other.next()) == Some(gone)) {
            before.set_next(cache.next());
        }
    }

    /// The caches, the newest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &SlabCache<'m>> {
        let mut next = self.first;
        core::iter::from_fn(move || {
            // SAFETY: caches on the list live, and the list is locked as long as it is borrowed.
            let cache = unsafe { next?.as_ref() };
            next = NonNull::new(cache.next());
            Some(cache)
        })
    }
}

/// Who may touch a CPU's lists, of all caches, in a cache line of its own.
#[derive(Debug)]
#[cfg_attr(not(any(loom, shuttle)), repr(align(64)))]
pub(super) struct CpuGate(Gate);

impl CpuGate {
    pub(super) fn new() -> Self {
        Self(Gate::new())
    }
}

/// What all caches have in common.
#[derive(Debug)]
pub(super) struct Shared<'m> {
    /// Who may touch a CPU's lists, of all caches.
    gates: &'m [CpuGate],
    pub(super) caches: SpinLock<Caches<'m>>,
    /// Which frames the slabs are made of.
    identity: usize,
}

impl<'m> Shared<'m> {
    pub(super) fn new(gates: &'m [CpuGate], identity: usize) -> Self {
        Self { gates, caches: SpinLock::new(Rank::Caches, Caches { first: None, last_id: 0 }), identity }
    }

    #[inline]
    pub(super) fn identity(&self) -> usize {
        self.identity
    }

    /// How many CPUs there are.
    pub(super) fn cpus(&self) -> usize {
        self.gates.len()
    }

    /// Whether the CPU may use its lists at once.
    #[inline]
    pub(super) fn is_active(&self, pin: &CpuPin<'_>) -> bool {
        self.gates.get(pin.cpu().index()).is_some_and(|gate| gate.0.is_open())
    }

    /// Makes the CPU's lists its own again, and drains them if another CPU asked for that.
    pub(super) fn attend(&self, at: At<'_>) {
        if let Some(CpuGate(gate)) = self.gates.get(at.pin.cpu().index()) {
            gate.attend(|| at.pin.platform().relax(), || self.drain_lists_of(at, at.pin.cpu()), || false);
        }
    }

    /// Lets other CPUs drain this one's lists.
    pub(super) fn publish(&self, at: At<'_>) {
        self.attend(at);
        if let Some(CpuGate(gate)) = self.gates.get(at.pin.cpu().index()) {
            gate.publish();
        }
    }

    /// Serves what other CPUs ask of this one.
    pub(super) fn serve(&self, at: At<'_>) {
        if self.gates.get(at.pin.cpu().index()).is_some_and(|gate| gate.0.is_requested()) {
            self.attend(at);
        }
    }

    /// Brings the objects that CPUs keep back to their slabs, as far as that can be had.
    pub(super) fn gather(&self, at: At<'_>, patience: Patience) {
        self.attend(at);
        self.drain_lists_of(at, at.pin.cpu());
        for (cpu, CpuGate(gate)) in (0..).map(CpuId).zip(self.gates) {
            if cpu != at.pin.cpu() && self.keeps_any(at, cpu) {
                let serve = || {
                    self.serve(at);
                    at.phys.serve(at.pin);
                };
                gate.drain_other(at.pin, cpu, patience, || self.drain_lists_of(at, cpu), serve);
            }
        }
    }

    /// Empties a CPU's lists of all caches, which the caller has to itself.
    fn drain_lists_of(&self, at: At<'_>, cpu: CpuId) {
        for cache in self.caches.lock(at.pin).iter() {
            cache.drain_cpu(at, cpu.index());
        }
    }

    /// Whether a CPU seems to keep objects. It may be changing that at this moment.
    fn keeps_any(&self, at: At<'_>, cpu: CpuId) -> bool {
        let caches = self.caches.lock(at.pin);
        caches.iter().any(|cache| cache.cpus.get(cpu.index()).is_some_and(|own| own.len() != 0))
    }
}
