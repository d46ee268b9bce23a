//! `/proc/vmstat`.

use core::fmt;

use super::Source;
use crate::addr::PageOrder;
use crate::phys::{BuddyEvents, ZoneKind};
use crate::platform::Platform;

/// What the zones come to.
#[derive(Default)]
struct Totals {
    free: u64,
    free_in_whole_blocks: u64,
    deferred: u64,
    allocated: [u64; ZoneKind::COUNT],
    freed: u64,
    events: [u64; EVENTS.len()],
}

/// Counters that Linux has no name for, since it merges at once.
type Event = (&'static str, fn(&BuddyEvents) -> u64);
const EVENTS: [Event; 10] = [
    ("buddy_split", |events| events.splits),
    ("buddy_merge", |events| events.merges),
    ("buddy_deferred", |events| events.deferred),
    ("buddy_deferred_hit", |events| events.deferred_hits),
    ("buddy_coalesced_bound", |events| events.coalesced_bound),
    ("buddy_coalesced_order", |events| events.coalesced_order),
    ("buddy_coalesced_low", |events| events.coalesced_low),
    ("buddy_coalesced_asked", |events| events.coalesced_asked),
    ("pageblock_claimed", |events| events.claims),
    ("pageblock_stolen_from", |events| events.steals),
];

/// # Linux
/// `vmstat_show` in `mm/vmstat.c`.
pub(super) fn write<P: Platform>(source: &Source<'_, P>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let totals = totals(source);
    let zones = ["dma", "normal", "high"];
    writeln!(f, "nr_free_pages {}", totals.free)?;
    writeln!(f, "nr_free_pages_blocks {}", totals.free_in_whole_blocks)?;
    writeln!(f, "nr_slab_unreclaimable {}", source.counters.nr_slab_unreclaimable)?;
    if let Some(vm) = source.counters.vm {
        let pages = [
            ("nr_anon_pages", vm.nr_anon_pages),
            ("nr_mapped", vm.nr_mapped),
            ("nr_file_pages", vm.nr_file_pages),
            ("nr_dirty", vm.nr_dirty),
            ("nr_writeback", vm.nr_writeback),
            ("nr_shmem", vm.nr_shmem),
            ("nr_anon_transparent_hugepages", vm.nr_anon_transparent_hugepages),
            ("nr_page_table_pages", vm.nr_page_table_pages),
        ];
        pages.iter().try_for_each(|(name, count)| writeln!(f, "{name} {count}"))?;
    }
    for (zone, pages) in zones.iter().zip(totals.allocated) {
        writeln!(f, "pgalloc_{zone} {pages}")?;
    }
    for (zone, stalls) in zones.iter().zip(source.counters.allocstall) {
        writeln!(f, "allocstall_{zone} {stalls}")?;
    }
    writeln!(f, "pgfree {}", totals.freed)?;
    if let Some(vm) = source.counters.vm {
        writeln!(f, "pgfault {}", vm.pgfault)?;
        writeln!(f, "pgmajfault {}", vm.pgmajfault)?;
        let huge = [
            ("thp_fault_alloc", vm.thp_fault_alloc),
            ("thp_fault_fallback", vm.thp_fault_fallback),
            ("thp_split_pmd", vm.thp_split_pmd),
            ("thp_zero_page_alloc", vm.thp_zero_page_alloc),
            ("thp_zero_page_alloc_failed", vm.thp_zero_page_alloc_failed),
        ];
        huge.iter().try_for_each(|(name, count)| writeln!(f, "{name} {count}"))?;
    }
    writeln!(f, "nr_free_pages_deferred {}", totals.deferred)?;
    for ((name, _), count) in EVENTS.iter().zip(totals.events) {
        writeln!(f, "{name} {count}")?;
    }
    Ok(())
}

fn totals<P: Platform>(source: &Source<'_, P>) -> Totals {
    let mut totals = Totals::default();
    for zone in source.zones() {
        let stat = source.stat(zone);
        totals.free += stat.free;
        totals.free_in_whole_blocks += stat.free_blocks(PageOrder::MAX) * PageOrder::MAX.pages();
        totals.deferred += stat.deferred;
        totals.allocated[zone.kind() as usize] += stat.allocated_ever;
        totals.freed += stat.freed_ever;
        for (total, (_, of)) in totals.events.iter_mut().zip(EVENTS) {
            *total += of(&stat.events);
        }
    }
    totals
}
