//! `/proc/slabinfo`.

use core::fmt;

use crate::phys::PageSource;
use crate::slab::{SlabInfo, Slabs};

/// What each cache is made of, a line for each.
///
/// The columns `limit` and `batchcount` are those of the CPUs' lists, as `mm/slab.c` (6.7 and earlier) had them; SLUB prints 0 there.
/// `active_slabs` counts the slabs that have an object in use or on a CPU's list.
///
/// # Linux
/// `slab_show` in `mm/slab_common.c`, version 2.1 of the format.
pub fn slabinfo<'a, 'm, S: PageSource>(slabs: &'a Slabs<'m>, source: &'a S) -> SlabReport<'a, 'm, S> {
    SlabReport { slabs, source }
}

/// A report of all caches, written by its `Display`.
#[derive(Debug)]
pub struct SlabReport<'a, 'm, S> {
    slabs: &'a Slabs<'m>,
    source: &'a S,
}

impl<S: PageSource> fmt::Display for SlabReport<'_, '_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("slabinfo - version: 2.1\n")?;
        f.write_str("# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>")?;
        f.write_str(" : tunables <limit> <batchcount> <sharedfactor>")?;
        f.write_str(" : slabdata <active_slabs> <num_slabs> <sharedavail>\n")?;
        self.slabs.infos(self.source).try_for_each(|info| write_line(f, &info))
    }
}

fn write_line(f: &mut fmt::Formatter<'_>, info: &SlabInfo) -> fmt::Result {
    write!(f, "{:<17} {:6} {:6}", info.name, info.active_objs, info.num_objs)?;
    write!(f, " {:6} {:4} {:4}", info.objsize, info.objs_per_slab, info.pages_per_slab)?;
    write!(f, " : tunables {:4} {:4} {:4}", info.limit, info.batchcount, 0)?;
    writeln!(f, " : slabdata {:6} {:6} {:6}", info.active_slabs, info.num_slabs, 0)
}
