//! `/proc/meminfo`.

use core::fmt;

use super::{Source, kib};
use crate::addr::PageOrder;
use crate::phys::{Zone, ZoneKind};
use crate::platform::Platform;

/// # Linux
/// `meminfo_proc_show` in `fs/proc/meminfo.c`.
pub(super) fn write<P: Platform>(source: &Source<'_, P>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let high = |of: fn(&Zone<'_>) -> u64| {
        source.sum(|zone| if zone.kind() == ZoneKind::HighMem { of(zone) } else { 0 })
    };
    let (total, free) = (source.phys.managed_pages(), source.phys.free_pages_total());
    let high_total = high(|zone| zone.span().managed_pages);
    let high_free = high(|zone| zone.free_pages());
    write_line(f, "MemTotal:", total)?;
    write_line(f, "MemFree:", free)?;
    let vm = source.counters.vm;
    // Pages of files can be dropped, but not those in memory alone; half of them, or what is to stay free, is left to them.
    let reserved = reserved_pages(source);
    let droppable = vm.map_or(0, |vm| vm.nr_file_pages.saturating_sub(vm.nr_shmem));
    let droppable = droppable - (droppable / 2).min(low_watermarks(source));
    write_line(f, "MemAvailable:", free.saturating_sub(reserved).saturating_add(droppable))?;
    if let Some(vm) = vm {
        write_line(f, "Cached:", vm.nr_file_pages)?;
    }
    if high_total != 0 {
        write_line(f, "HighTotal:", high_total)?;
        write_line(f, "HighFree:", high_free)?;
        write_line(f, "LowTotal:", total - high_total)?;
        write_line(f, "LowFree:", free.saturating_sub(high_free))?;
    }
    if let Some(vm) = vm {
        write_line(f, "Dirty:", vm.nr_dirty)?;
        write_line(f, "Writeback:", vm.nr_writeback)?;
        write_line(f, "AnonPages:", vm.nr_anon_pages)?;
        write_line(f, "Mapped:", vm.nr_mapped)?;
        write_line(f, "Shmem:", vm.nr_shmem)?;
    }
    let slab = source.counters.nr_slab_unreclaimable;
    write_line(f, "Slab:", slab)?;
    write_line(f, "SUnreclaim:", slab)?;
    if let Some(vm) = vm {
        write_line(f, "PageTables:", vm.nr_page_table_pages)?;
        write_line(f, "CommitLimit:", vm.commit_limit)?;
        write_line(f, "Committed_AS:", vm.committed_as)?;
        write_line(f, "VmallocTotal:", vm.vmalloc_total)?;
        write_line(f, "VmallocUsed:", vm.vmalloc_used)?;
        write_line(f, "VmallocChunk:", 0)?;
        let huge = vm.nr_anon_transparent_hugepages.saturating_mul(PageOrder::MAX.pages());
        write_line(f, "AnonHugePages:", huge)?;
    }
    Ok(())
}

fn write_line(f: &mut fmt::Formatter<'_>, name: &str, pages: u64) -> fmt::Result {
    writeln!(f, "{name:<16}{:8} kB", kib(pages))
}

/// Pages that user space does not get before reclaim begins: each zone's high watermark and largest lowmem reserve.
///
/// # Linux
/// `calculate_totalreserve_pages` in `mm/page_alloc.c`.
fn reserved_pages<P: Platform>(source: &Source<'_, P>) -> u64 {
    source.sum(|zone| {
        let reserve = ZoneKind::ALL.map(|highest| zone.lowmem_reserve(highest)).into_iter().max();
        reserve.unwrap_or(0).saturating_add(zone.watermarks().high).min(zone.span().managed_pages)
    })
}

/// # Linux
/// The sum of `low_wmark_pages` in `si_mem_available` in `mm/show_mem.c`.
fn low_watermarks<P: Platform>(source: &Source<'_, P>) -> u64 {
    source.sum(|zone| zone.watermarks().low)
}
