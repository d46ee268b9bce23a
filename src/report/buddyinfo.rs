//! `/proc/buddyinfo`.

use core::fmt;

use super::Source;
use crate::addr::PageOrder;
use crate::platform::Platform;

/// # Linux
/// `frag_show_print` in `mm/vmstat.c`.
pub(super) fn write<P: Platform>(source: &Source<'_, P>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for zone in source.zones() {
        let stat = source.merged_stat(zone);
        write!(f, "Node {}, zone {:>8} ", zone.node(), zone.kind().name())?;
        for order in PageOrder::all() {
            write!(f, "{:6} ", stat.free_blocks(order) + stat.deferred_blocks[order.index()])?;
        }
        f.write_str("\n")?;
    }
    Ok(())
}
