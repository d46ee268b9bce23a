//! Getting frames back from CPUs' lists, one's own and others'.
//!
//! A CPU that is idle, or has not allocated yet, has published its lists: anybody may drain them. One that runs is asked, by
//! a flag that it looks at whenever it allocates or frees and by [`Platform::kick`](crate::platform::Platform::kick), and drains them itself. Whoever
//! waits for another CPU serves requests to itself meanwhile, so two that wait for each other both get on.

use crate::flags::GfpFlags;
use crate::platform::{CpuId, CpuPin, Kick};
use crate::sync::atomic::Ordering::{AcqRel, Acquire};

use super::Phys;
use super::cpu_pages::{Chain, CpuPages, Gate, lists};
use super::free::free_chain;
use super::zone::Zone;

/// After so many rounds of waiting a CPU is kicked again.
const KICK_AGAIN: u32 = 1024;

impl Phys<'_> {
    /// Gives back what the caller's CPU keeps.
    ///
    /// # Locking
    /// Takes each zone's lock, one after the other.
    ///
    /// # Linux
    /// `drain_local_pages` in `mm/page_alloc.c`.
    #[doc(alias = "drain_local_pages")]
    pub fn drain_own(&self, pin: &CpuPin<'_>) {
        for zone in self.zones {
            if let Some(own) = zone.attended(pin) {
                drain_lists(zone, pin, own);
            }
        }
    }

    /// Gives back what all CPUs and the depots keep, as far as that can be had: a running CPU drains its own lists, and is waited
    /// for.
    ///
    /// # Locking
    /// Takes each zone's lock and depot lock, one after the other. May wait for other CPUs, which must not wait for a lock that
    /// the caller holds.
    ///
    /// # Linux
    /// `drain_all_pages` in `mm/page_alloc.c`.
    #[doc(alias = "drain_all_pages")]
    pub fn drain_all(&self, pin: &CpuPin<'_>) {
        drop(self.gather(pin, Patience::Waits, self.zones.iter()));
    }

    /// Lets other CPUs drain this one's lists until it allocates or frees again: to be called when the CPU goes idle or offline.
    ///
    /// A CPU that halts without this keeps its frames out of the others' reach, unless its platform's `kick` makes it serve.
    pub fn idle(&self, pin: &CpuPin<'_>) {
        for own in self.zones.iter().filter_map(|zone| zone.attended(pin)) {
            own.gate.publish();
        }
    }

    /// Serves what other CPUs ask of this one: to be called by the handler of [`Platform::kick`](crate::platform::Platform::kick)'s interrupt.
    ///
    /// # Locking
    /// Takes each zone's lock, one after the other, if lists are to be drained.
    pub fn serve(&self, pin: &CpuPin<'_>) {
        let own = |zone: &Zone<'_>| {
            zone.cpu_pages.get(pin.cpu().index()).is_some_and(|own| own.gate.is_requested())
        };
        for zone in self.zones.iter().filter(|zone| own(zone)) {
            zone.attended(pin);
        }
    }

    /// Brings all frames of some zones that can be had to the free lists, and merges them. They stay there until the answer is dropped or
    /// somebody needs them: no CPU fills its lists meanwhile.
    pub(super) fn gather<'a>(
        &'a self,
        pin: &CpuPin<'_>,
        patience: Patience,
        zones: impl Iterator<Item = &'a Zone<'a>> + Clone,
    ) -> Starving<'a> {
        let starving = Starving::new(self.zones);
        for zone in zones.clone() {
            if let Some(own) = zone.attended(pin) {
                drain_lists(zone, pin, own);
            }
        }
        for cpu in (0..self.cpus.len() as u32).map(CpuId).filter(|&cpu| cpu != pin.cpu()) {
            for zone in zones.clone() {
                self.drain_other(pin, cpu, zone, patience);
            }
        }
        for zone in zones {
            drain_depot(zone, pin);
            zone.coalesce(pin);
        }
        starving
    }

    /// Gets what another CPU keeps of a zone drained: by ourselves where that CPU sleeps, else by itself.
    ///
    /// Whoever waits asks in any case: a CPU that seems to keep nothing may be about to fill its lists.
    fn drain_other(&self, pin: &CpuPin<'_>, cpu: CpuId, zone: &Zone<'_>, patience: Patience) {
        let asks = |other: &&CpuPages| patience == Patience::Waits || other.keeps_any();
        let Some(other) = zone.cpu_pages.get(cpu.index()).filter(asks) else { return };
        other.gate.drain_other(pin, cpu, patience, || drain_lists(zone, pin, other), || self.serve(pin));
    }
}

impl Gate {
    /// Gets what another CPU keeps behind its gate drained: with `drain` where that CPU sleeps, else by that CPU itself.
    ///
    /// Whoever waits calls `serve`, which serves requests to the own CPU: so two that wait for each other both get on.
    pub(crate) fn drain_other(
        &self,
        pin: &CpuPin<'_>,
        cpu: CpuId,
        patience: Patience,
        drain: impl FnOnce(),
        serve: impl Fn(),
    ) {
        let mut kicked = None;
        let mut rounds = 0_u32;
        while !self.try_steal(kicked == Some(Kick::Halted)) {
            if kicked.is_none() {
                self.request();
                kicked = Some(pin.platform().kick(cpu));
                continue;
            }
            let hopeless = kicked == Some(Kick::Sent) && patience == Patience::Asks;
            if hopeless || !self.is_requested() {
                return;
            }
            serve();
            pin.platform().relax();
            rounds += 1;
            if rounds % KICK_AGAIN == 0 {
                // It may have gone offline before it saw the request.
                kicked = Some(pin.platform().kick(cpu));
            }
        }
        drain();
        self.end_steal();
    }
}

/// A CPU out of memory, which brings together what all CPUs keep and then looks again.
#[derive(Debug)]
#[must_use = "the CPUs fill their lists again when it is dropped"]
pub(super) struct Starving<'a>(&'a [Zone<'a>]);

impl<'a> Starving<'a> {
    fn new(zones: &'a [Zone<'a>]) -> Self {
        zones.iter().for_each(|zone| _ = zone.starving.fetch_add(1, AcqRel));
        Self(zones)
    }
}

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|zone| _ = zone.starving.fetch_sub(1, AcqRel));
    }
}

/// Whether a request waits for CPUs that run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// It waits until they have drained their lists.
    Waits,
    /// It asks them, and goes on without.
    Asks,
}

impl Patience {
    /// That of an allocation: it waits if it may block.
    pub(crate) const fn of(gfp: GfpFlags) -> Self {
        if gfp.contains(GfpFlags::DIRECT_RECLAIM) { Self::Waits } else { Self::Asks }
    }
}

impl<'m> Zone<'m> {
    /// What the caller's CPU keeps of the zone, with the gate open: drained first, if another CPU asked for that.
    pub(super) fn attended(&self, pin: &CpuPin<'_>) -> Option<&'m CpuPages> {
        let own = self.cpu_pages.get(pin.cpu().index())?;
        if !own.gate.is_open() {
            let starving = || self.starving.load(Acquire) != 0;
            own.gate.attend(|| pin.platform().relax(), || drain_lists(self, pin, own), starving);
        }
        Some(own)
    }
}

/// Empties the magazines of a CPU, which the caller has to itself.
fn drain_lists(zone: &Zone<'_>, pin: &CpuPin<'_>, kept: &CpuPages) {
    for (list, order, _) in lists() {
        let magazines = kept.list(list);
        for chain in [magazines.loaded_chain(), magazines.spare_chain()] {
            free_chain(zone, pin, chain, order);
        }
        magazines.set_loaded(Chain::EMPTY);
        magazines.set_spare(Chain::EMPTY);
    }
}

/// Gives back a zone's full magazines.
///
/// The depot stays locked until they are on the free lists: else another CPU that is out of memory finds them in neither place.
fn drain_depot(zone: &Zone<'_>, pin: &CpuPin<'_>) {
    let mut depot = zone.depot(pin);
    for (list, order, _) in lists() {
        while let Some(chain) = depot.take(zone.map.pages(), list) {
            free_chain(zone, pin, chain, order);
        }
    }
    zone.note_stock(&depot);
}
