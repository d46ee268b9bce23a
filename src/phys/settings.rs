//! What can be tuned while the allocator runs.

use crate::platform::CpuPin;
use crate::sync::{Rank, SpinLock};

use super::Phys;
use super::boot::Config;
use super::deferred::{DeferredBound, Merging};
use super::watermark::{WatermarkConfig, default_min_free_kbytes, zone_watermarks};
use super::zone::{ZoneKind, batch_for};

/// The tunables in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    merging: Merging,
    deferred_bound: DeferredBound,
    batch: Option<u64>,
    watermarks: WatermarkConfig,
}

impl Settings {
    pub(super) fn lock(config: &Config<'_>) -> SpinLock<Self> {
        SpinLock::new(
            Rank::Settings,
            Self {
                merging: config.merging,
                deferred_bound: config.deferred_bound,
                batch: config.batch,
                watermarks: config.watermarks,
            },
        )
    }
}

impl Phys<'_> {
    /// Changes the watermarks, and the bound on deferred pages that hangs on them.
    ///
    /// # Locking
    /// Takes the settings' lock, then each zone's.
    ///
    /// # Linux
    /// `min_free_kbytes_sysctl_handler` and its like in `mm/page_alloc.c`.
    #[doc(alias = "min_free_kbytes")]
    pub fn set_watermarks(&self, pin: &CpuPin<'_>, watermarks: WatermarkConfig) {
        self.settings.lock(pin).watermarks = watermarks;
        self.apply_settings(pin);
    }

    /// Switches between deferred and immediate merging. What waits for its merge is merged when immediate merging begins.
    pub fn set_merging(&self, pin: &CpuPin<'_>, merging: Merging) {
        self.settings.lock(pin).merging = merging;
        self.apply_settings(pin);
    }

    /// Changes how many pages of each zone may wait for their merge. What is above the bound is merged.
    pub fn set_deferred_bound(&self, pin: &CpuPin<'_>, bound: DeferredBound) {
        self.settings.lock(pin).deferred_bound = bound;
        self.apply_settings(pin);
    }

    /// Changes how many pages move between a CPU's lists and a zone at once: `None` for Linux's number, 0 for no lists.
    ///
    /// What lies on lists that are from now on too long is found by the next drain.
    pub fn set_batch(&self, pin: &CpuPin<'_>, batch: Option<u64>) {
        self.settings.lock(pin).batch = batch;
        self.apply_settings(pin);
        self.drain_own(pin);
    }

    /// The frames of all lowmem zones kept as a reserve, in KiB.
    pub fn min_free_kbytes(&self, pin: &CpuPin<'_>) -> u64 {
        let asked = self.settings.lock(pin).watermarks.min_free_kbytes;
        asked.unwrap_or_else(|| default_min_free_kbytes(self.lowmem_pages()))
    }

    /// Gives every zone the marks, reserves, batch and bound that the settings come to.
    ///
    /// # Linux
    /// `setup_per_zone_wmarks` and `setup_per_zone_lowmem_reserve` in `mm/page_alloc.c`.
    pub(super) fn apply_settings(&self, pin: &CpuPin<'_>) {
        let settings = self.settings.lock(pin);
        let lowmem = self.lowmem_pages();
        let min_free = settings.watermarks.min_free_kbytes.unwrap_or_else(|| default_min_free_kbytes(lowmem));
        for zone in self.zones {
            let managed = zone.span().managed_pages;
            let highmem = zone.kind() == ZoneKind::HighMem;
            let marks = zone_watermarks(&settings.watermarks, min_free, managed, lowmem, highmem);
            let reserve = self.lowmem_reserve_of(zone.node(), zone.kind(), &settings.watermarks);
            let batch = batch_for(managed, settings.batch);
            zone.set_capacities(pin, batch);
            // With the lists off the bound is what it would be with Linux's batch: the lists and the deferral are apart.
            let bound_batch = if batch == 0 { batch_for(managed, None) } else { batch };
            zone.set_limits(pin, marks, reserve, bound_batch, settings.deferred_bound);
            zone.set_merging(pin, settings.merging);
        }
    }

    /// Managed frames of all zones in the direct map.
    fn lowmem_pages(&self) -> u64 {
        let lowmem = self.zones.iter().filter(|zone| zone.kind() != ZoneKind::HighMem);
        lowmem.map(|zone| zone.span().managed_pages).sum()
    }

    /// What a node's zone keeps from requests that could use higher zones: one page in `ratio` of the higher ones.
    fn lowmem_reserve_of(
        &self,
        node: u8,
        kind: ZoneKind,
        config: &WatermarkConfig,
    ) -> [u64; ZoneKind::COUNT] {
        let ratio = config.lowmem_reserve_ratio[kind as usize];
        ZoneKind::ALL.map(|highest| {
            let between = |other: ZoneKind| kind < other && other <= highest;
            let higher = self.zones.iter().filter(|zone| zone.node() == node && between(zone.kind()));
            higher.map(|zone| zone.span().managed_pages).sum::<u64>().checked_div(ratio).unwrap_or(0)
        })
    }
}
