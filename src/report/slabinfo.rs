//! `/proc/slabinfo`.

use core::fmt;

use crate::platform::Platform;
use crate::slab::{SlabInfo, Slabs};

/// How many caches are looked at under one lock.
const BATCH: usize = 32;

/// The report of [`slabinfo`], written by its `Display`.
#[derive(Debug)]
pub struct SlabReport<'a, 'm, P> {
    platform: &'a P,
    slabs: &'a Slabs<'m>,
}

/// What each cache has, the newest first.
///
/// Caches are looked at in batches, with the list of caches locked; while text is written nothing is held. A cache made or
/// unmade between two batches may be missed or shown twice.
pub fn slabinfo<'a, 'm, P: Platform>(platform: &'a P, slabs: &'a Slabs<'m>) -> SlabReport<'a, 'm, P> {
    SlabReport { platform, slabs }
}

/// # Linux
/// `print_slabinfo_header` and `cache_show` in `mm/slab_common.c`.
impl<P: Platform> fmt::Display for SlabReport<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("slabinfo - version: 2.1\n")?;
        f.write_str("# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>")?;
        f.write_str(" : tunables <limit> <batchcount> <sharedfactor>")?;
        f.write_str(" : slabdata <active_slabs> <num_slabs> <sharedavail>\n")?;
        let mut shown = 0;
        loop {
            let mut batch: [Option<SlabInfo>; BATCH] = [None; BATCH];
            let mut number = 0;
            self.slabs.for_each_info(&self.platform.pin(), |cache| {
                if let Some(place) = usize::checked_sub(number, shown).and_then(|at| batch.get_mut(at)) {
                    *place = Some(*cache);
                }
                number += 1;
            });
            batch.iter().flatten().try_for_each(|cache| write_cache(f, cache))?;
            shown += BATCH;
            if number <= shown {
                return Ok(());
            }
        }
    }
}

fn write_cache(f: &mut fmt::Formatter<'_>, cache: &SlabInfo) -> fmt::Result {
    write!(f, "{:<17} {:6} {:6} ", cache.name, cache.active_objs, cache.num_objs)?;
    write!(f, "{:6} {:4} {:4}", cache.objsize, cache.objs_per_slab, cache.pages_per_slab)?;
    write!(f, " : tunables {:4} {:4} {:4}", cache.limit, cache.batchcount, 0)?;
    writeln!(f, " : slabdata {:6} {:6} {:6}", cache.active_slabs, cache.num_slabs, 0)
}
