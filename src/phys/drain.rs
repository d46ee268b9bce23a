//! Getting frames back from CPUs' lists, one's own and others'.
//!
//! A CPU that is idle, or has not allocated yet, has published its lists: anybody may drain them. One that runs is asked, by
//! a flag that it looks at whenever it allocates or frees and by [`Platform::kick`](crate::platform::Platform::kick), and drains them itself. Whoever
//! waits for another CPU serves requests to itself meanwhile, so two that wait for each other both get on.

use crate::platform::{CpuId, CpuPin, Kick};

use super::Phys;
use super::cpu_pages::{Chain, CpuSlot, lists};
use super::free::free_chain;
use super::zone::Zone;

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
        self.attend(pin);
        if self.slot(pin).is_some() {
            self.drain_lists_of(pin, pin.cpu());
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
        self.gather(pin, true);
    }

    /// Lets other CPUs drain this one's lists until it allocates or frees again: to be called when the CPU goes idle or offline.
    ///
    /// A CPU that halts without this keeps its frames out of the others' reach, unless its platform's `kick` makes it serve.
    pub fn idle(&self, pin: &CpuPin<'_>) {
        self.attend(pin);
        if let Some(slot) = self.slot(pin) {
            slot.publish();
        }
    }

    /// Serves what other CPUs ask of this one: to be called by the handler of [`Platform::kick`](crate::platform::Platform::kick)'s interrupt.
    ///
    /// # Locking
    /// Takes each zone's lock, one after the other, if lists are to be drained.
    pub fn serve(&self, pin: &CpuPin<'_>) {
        if let Some(slot) = self.slot(pin).filter(|slot| slot.is_requested()) {
            self.attend_slot(pin, slot);
        }
    }

    /// Makes the CPU's lists its own again, and drains them if another CPU asked for that.
    pub(super) fn attend(&self, pin: &CpuPin<'_>) {
        if let Some(slot) = self.slot(pin) {
            self.attend_slot(pin, slot);
        }
    }

    /// Brings all frames that can be had to the free lists, and merges them.
    pub(super) fn gather(&self, pin: &CpuPin<'_>, wait: bool) {
        self.drain_own(pin);
        for (cpu, slot) in (0..).map(CpuId).zip(self.cpus) {
            if cpu != pin.cpu() && self.zones.iter().any(|zone| keeps_any(zone, cpu)) {
                self.drain_other(pin, cpu, slot, wait);
            }
        }
        for zone in self.zones {
            drain_depot(zone, pin);
            zone.coalesce(pin);
        }
    }

    fn slot(&self, pin: &CpuPin<'_>) -> Option<&CpuSlot> {
        self.cpus.get(pin.cpu().index())
    }

    fn attend_slot(&self, pin: &CpuPin<'_>, slot: &CpuSlot) {
        slot.attend(|| pin.platform().relax(), || self.drain_lists_of(pin, pin.cpu()));
    }

    /// Gets another CPU's lists drained: by ourselves where it sleeps, else by itself. Without `wait` a running one is only asked.
    fn drain_other(&self, pin: &CpuPin<'_>, cpu: CpuId, slot: &CpuSlot, wait: bool) {
        let mut asked = false;
        let mut halted = false;
        loop {
            if slot.try_steal(halted) {
                self.drain_lists_of(pin, cpu);
                slot.end_steal();
                return;
            }
            if !asked {
                slot.request();
                halted = pin.platform().kick(cpu) == Kick::Halted;
                asked = true;
                continue;
            }
            if !slot.is_requested() || !(wait || halted) {
                return;
            }
            self.serve(pin);
            pin.platform().relax();
        }
    }

    /// Empties a CPU's magazines, which the caller has to itself.
    fn drain_lists_of(&self, pin: &CpuPin<'_>, cpu: CpuId) {
        for zone in self.zones {
            let Some(own) = zone.cpu_pages.get(cpu.index()) else { continue };
            for (list, order, _) in lists() {
                let magazines = &own.lists[list];
                for chain in [magazines.loaded_chain(), magazines.spare_chain()] {
                    free_chain(zone, pin, chain, order);
                }
                magazines.set_loaded(Chain::EMPTY);
                magazines.set_spare(Chain::EMPTY);
            }
        }
    }
}

/// Whether a CPU seems to keep frames of a zone. It may be changing that at this moment.
fn keeps_any(zone: &Zone<'_>, cpu: CpuId) -> bool {
    zone.cpu_pages.get(cpu.index()).is_some_and(|own| own.lists.iter().any(|list| list.len() != 0))
}

/// Gives back a zone's full magazines.
fn drain_depot(zone: &Zone<'_>, pin: &CpuPin<'_>) {
    for (list, order, _) in lists() {
        loop {
            let chain = zone.depot(pin).take(zone.map.pages(), list);
            let Some(chain) = chain else { break };
            free_chain(zone, pin, chain, order);
        }
    }
}
