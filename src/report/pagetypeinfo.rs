//! `/proc/pagetypeinfo`.

use core::fmt;

use super::Source;
use crate::addr::PageOrder;
use crate::phys::MigrateType;
use crate::platform::Platform;

/// Above this Linux stops counting.
const MOST: u64 = 100_000;

/// # Linux
/// `pagetypeinfo_show` in `mm/vmstat.c`.
pub(super) fn write<P: Platform>(source: &Source<'_, P>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "Page block order: {}", PageOrder::MAX.get())?;
    writeln!(f, "Pages per block:  {}\n", PageOrder::MAX.pages())?;
    write_free(source, f)?;
    write_blocks(source, f)
}

/// # Linux
/// `pagetypeinfo_showfree_print`.
fn write_free<P: Platform>(source: &Source<'_, P>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{:<43} ", "Free pages count per migrate type at order")?;
    for order in PageOrder::all() {
        write!(f, "{:6} ", order.get())?;
    }
    f.write_str("\n")?;
    for zone in source.zones() {
        let stat = source.merged_stat(zone);
        for migrate in MigrateType::ALL {
            let (node, zone, migrate_name) = (zone.node(), zone.kind().name(), migrate.name());
            write!(f, "Node {node:4}, zone {zone:>8}, type {migrate_name:>12} ")?;
            for blocks in stat.blocks.map(|blocks| blocks[migrate as usize]) {
                let more = if blocks >= MOST { ">" } else { "" };
                write!(f, "{more}{:6} ", blocks.min(MOST))?;
            }
            f.write_str("\n")?;
        }
    }
    Ok(())
}

/// # Linux
/// `pagetypeinfo_showblockcount`.
fn write_blocks<P: Platform>(source: &Source<'_, P>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "\n{:<23}", "Number of blocks type ")?;
    for migrate in MigrateType::ALL {
        write!(f, "{:>12} ", migrate.name())?;
    }
    f.write_str("\n")?;
    for zone in source.zones() {
        write!(f, "Node {}, zone {:>8} ", zone.node(), zone.kind().name())?;
        for blocks in zone.page_blocks() {
            write!(f, "{blocks:12} ")?;
        }
        f.write_str("\n")?;
    }
    Ok(())
}
