//! The dump after a failed allocation.

use core::fmt;

use super::{Source, kib};
use crate::addr::PageOrder;
use crate::phys::{MigrateType, Zone, ZoneKind, ZoneStat};
use crate::platform::Platform;

/// # Linux
/// `__show_mem` and `show_free_areas` in `mm/show_mem.c`.
pub(super) fn write<P: Platform>(source: &Source<'_, P>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let stats = |of: fn(&ZoneStat) -> u64| source.sum(|zone| of(&source.stat(zone)));
    f.write_str("Mem-Info:\n")?;
    writeln!(f, " free:{} free_pcp:{}", stats(|stat| stat.free), stats(kept))?;
    for zone in source.zones() {
        write_zone(source, f, zone)?;
    }
    for zone in source.zones() {
        write_orders(source, f, zone)?;
    }
    let present = source.sum(|zone| zone.present_pages());
    let high = |zone: &Zone<'_>| if zone.kind() == ZoneKind::HighMem { zone.present_pages() } else { 0 };
    writeln!(f, "{present} pages RAM")?;
    writeln!(f, "{} pages HighMem/MovableOnly", source.sum(high))?;
    writeln!(f, "{} pages reserved", present - source.phys.managed_pages())
}

/// What CPUs and the depot keep of a zone.
fn kept(stat: &ZoneStat) -> u64 {
    stat.on_cpus + stat.in_depot
}

fn write_zone<P: Platform>(
    source: &Source<'_, P>,
    f: &mut fmt::Formatter<'_>,
    zone: &Zone<'_>,
) -> fmt::Result {
    let stat = source.stat(zone);
    let here = source.platform.pin().cpu().index();
    let local = zone.cpu_stats().nth(here).map_or(0, |lists| lists.pages);
    let marks = zone.watermarks();
    write!(f, "Node {} {}", zone.node(), zone.kind().name())?;
    let fields = [
        ("free", stat.free),
        ("boost", 0),
        ("min", marks.min),
        ("low", marks.low),
        ("high", marks.high),
        ("present", zone.present_pages()),
        ("managed", zone.span().managed_pages),
        ("free_pcp", kept(&stat)),
        ("local_pcp", local),
        ("free_cma", 0),
    ];
    for (name, pages) in fields {
        write!(f, " {name}:{}kB", kib(pages))?;
    }
    let [dma, normal, high] = ZoneKind::ALL.map(|highest| zone.lowmem_reserve(highest));
    writeln!(f, "\nlowmem_reserve[]: {dma} {normal} {high}")
}

/// The free blocks of a zone, each order with the types of its blocks.
fn write_orders<P: Platform>(
    source: &Source<'_, P>,
    f: &mut fmt::Formatter<'_>,
    zone: &Zone<'_>,
) -> fmt::Result {
    let stat = source.stat(zone);
    write!(f, "Node {} {}: ", zone.node(), zone.kind().name())?;
    for order in PageOrder::all() {
        let blocks = stat.free_blocks(order) + stat.deferred_blocks[order.index()];
        write!(f, "{blocks}*{}kB ", kib(order.pages()))?;
        let types = stat.blocks[order.index()];
        if types.iter().any(|&blocks| blocks != 0) {
            let shown = MigrateType::ALL.into_iter().filter(|&migrate| types[migrate as usize] != 0);
            f.write_str("(")?;
            shown.map(letter).try_for_each(|letter| f.write_str(letter))?;
            f.write_str(") ")?;
        }
    }
    writeln!(f, "= {}kB", kib(stat.free))
}

/// # Linux
/// `show_migration_types`.
fn letter(migrate: MigrateType) -> &'static str {
    match migrate {
        MigrateType::Unmovable => "U",
        MigrateType::Movable => "M",
        MigrateType::Reclaimable => "E",
    }
}
