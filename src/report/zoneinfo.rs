//! `/proc/zoneinfo`.

use core::fmt;

use super::Source;
use crate::addr::PageOrder;
use crate::phys::{Zone, ZoneKind, ZoneStat};
use crate::platform::Platform;

/// The lines that every zone has, those without frames too.
#[derive(Default)]
struct Header {
    free: u64,
    min: u64,
    low: u64,
    high: u64,
    promo: u64,
    spanned: u64,
    present: u64,
    managed: u64,
    protection: [u64; ZoneKind::COUNT],
}

/// # Linux
/// `zoneinfo_show_print` in `mm/vmstat.c`.
pub(super) fn write<P: Platform>(source: &Source<'_, P>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (id, node) in source.phys.nodes().iter().enumerate() {
        let mut first = true;
        for kind in ZoneKind::ALL {
            write!(f, "Node {id}, zone {:>8}", kind.name())?;
            let zone = node.zone(kind).and_then(|zone| source.phys.zone(zone));
            if zone.is_some() && core::mem::take(&mut first) {
                f.write_str("\n  per-node stats")?;
            }
            match zone {
                Some(zone) => write_zone(source, f, zone)?,
                None => write_header(f, &Header::default())?,
            }
            f.write_str("\n")?;
        }
    }
    Ok(())
}

fn write_zone<P: Platform>(
    source: &Source<'_, P>,
    f: &mut fmt::Formatter<'_>,
    zone: &Zone<'_>,
) -> fmt::Result {
    let stat = source.stat(zone);
    write_header(f, &header(zone, &stat))?;
    let whole_blocks = stat.free_blocks(PageOrder::MAX) * PageOrder::MAX.pages();
    for (name, value) in [("nr_free_pages", stat.free), ("nr_free_pages_blocks", whole_blocks)] {
        write!(f, "\n      {name:<12} {value}")?;
    }
    f.write_str("\n  pagesets")?;
    for (cpu, lists) in zone.cpu_stats().enumerate() {
        write!(f, "\n    cpu: {cpu}")?;
        write!(f, "\n              count:    {}", lists.pages)?;
        write!(f, "\n              high:     {}", lists.high)?;
        write!(f, "\n              batch:    {}", lists.batch)?;
        write!(f, "\n              high_min: {}", lists.high)?;
        write!(f, "\n              high_max: {}", lists.high)?;
    }
    write!(f, "\n  node_unreclaimable:  0\n  start_pfn:           {}", zone.span().span.start().get())
}

fn header(zone: &Zone<'_>, stat: &ZoneStat) -> Header {
    let marks = zone.watermarks();
    Header {
        free: stat.free,
        min: marks.min,
        low: marks.low,
        high: marks.high,
        promo: marks.high.saturating_add(marks.high.saturating_sub(marks.low)),
        spanned: zone.span().span.len(),
        present: zone.present_pages(),
        managed: zone.span().managed_pages,
        protection: ZoneKind::ALL.map(|highest| zone.lowmem_reserve(highest)),
    }
}

fn write_header(f: &mut fmt::Formatter<'_>, header: &Header) -> fmt::Result {
    write!(f, "\n  pages free     {}", header.free)?;
    let fields = [
        ("boost", 0),
        ("min", header.min),
        ("low", header.low),
        ("high", header.high),
        ("promo", header.promo),
        ("spanned", header.spanned),
        ("present", header.present),
        ("managed", header.managed),
        ("cma", 0),
    ];
    for (name, value) in fields {
        write!(f, "\n        {name:<8} {value}")?;
    }
    let [dma, normal, high] = header.protection;
    write!(f, "\n        protection: ({dma}, {normal}, {high})")
}
