//! Reports as Linux's `/proc` prints them, byte for byte, so that tools and eyes that know those can read them.
//!
//! The layout is that of Linux 6.18. A line of fixed fields keeps all of them, with 0 for what does not exist here (CMA, boosted
//! watermarks), as a Linux prints it that was built without; lists of named counters have only the counters that exist. Orders are those
//! of a Linux whose `MAX_PAGE_ORDER` is 9.
//!
//! | function | file | in |
//! |---|---|---|
//! | [`buddyinfo`](buddyinfo()) | `/proc/buddyinfo` | `mm/vmstat.c` |
//! | [`pagetypeinfo`](pagetypeinfo()) | `/proc/pagetypeinfo` | `mm/vmstat.c` |
//! | [`zoneinfo`](zoneinfo()) | `/proc/zoneinfo` | `mm/vmstat.c` |
//! | [`vmstat`](vmstat()) | `/proc/vmstat` | `mm/vmstat.c` |
//! | [`meminfo`](meminfo()) | `/proc/meminfo` | `fs/proc/meminfo.c` |
//! | [`slabinfo`](slabinfo()) | `/proc/slabinfo` | `mm/slab_common.c` |
//! | [`mem_info`](mem_info()) | the dump after a failed allocation | `mm/show_mem.c` |
//! | [`maps()`] | `/proc/PID/maps` | `fs/proc/task_mmu.c` |
//! | [`smaps()`], [`smaps_rollup`] | `/proc/PID/smaps`, `smaps_rollup` | `fs/proc/task_mmu.c` |
//! | [`pagemap_entry`] | `/proc/PID/pagemap` | `fs/proc/task_mmu.c` |
//! | [`vm_flags`] | a line of `/proc/PID/smaps` | `fs/proc/task_mmu.c` |
//! | [`statm`], [`status`] | `/proc/PID/statm`, `/proc/PID/status` | `fs/proc/array.c`, `fs/proc/task_mmu.c` |
//!
//! A [`Report`] is written by its `Display`, zone after zone. Each zone is looked at with its lock held and interrupts masked, for a time that
//! grows with the number of its free blocks; between zones and while text is written nothing is held.

mod buddyinfo;
mod gfp;
mod maps;
mod mem_info;
mod meminfo;
mod pagemap;
mod pagetypeinfo;
mod slabinfo;
mod smaps;
mod vmstat;
mod zoneinfo;

pub use gfp::GfpNames;
pub use maps::{FileName, Label, Names, label, maps, maps_line, statm, status, vm_flags};
pub use pagemap::pagemap_entry;
pub use slabinfo::{SlabReport, slabinfo};
pub use smaps::{smaps, smaps_rollup};

use core::fmt;

use crate::phys::{Phys, Zone, ZoneKind, ZoneStat};
use crate::platform::Platform;

/// What is counted above the frames, for [`vmstat`](vmstat()) and [`meminfo`](meminfo()).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Counters {
    /// How often a request had to reclaim, by the highest zone that it could use.
    pub allocstall: [u64; ZoneKind::COUNT],
    /// Pages of slabs, and of kmalloc's blocks.
    pub nr_slab_unreclaimable: u64,
    /// What there is of virtual memory, where there is any.
    pub vm: Option<VmCounters>,
}

/// What is counted of virtual memory, by Linux's names; in pages but for the faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names are Linux's, and the whole of what is known of them")]
pub struct VmCounters {
    pub nr_anon_pages: u64,
    pub nr_mapped: u64,
    pub nr_file_pages: u64,
    pub nr_dirty: u64,
    pub nr_writeback: u64,
    pub nr_shmem: u64,
    pub nr_page_table_pages: u64,
    pub nr_anon_transparent_hugepages: u64,
    pub pgfault: u64,
    pub pgmajfault: u64,
    pub commit_limit: u64,
    pub committed_as: u64,
    pub vmalloc_total: u64,
    pub vmalloc_used: u64,
    pub thp_fault_alloc: u64,
    pub thp_fault_fallback: u64,
    pub thp_split_pmd: u64,
    pub thp_zero_page_alloc: u64,
    pub thp_zero_page_alloc_failed: u64,
}

/// Where a report gets its numbers.
#[derive(Debug)]
struct Source<'a, P> {
    platform: &'a P,
    phys: &'a Phys<'a>,
    counters: Counters,
}

impl<'a, P: Platform> Source<'a, P> {
    /// The zones, those of a node in the order of their addresses.
    fn zones(&self) -> impl Iterator<Item = &'a Zone<'a>> {
        let phys = self.phys;
        let of_node = move |node: &'a crate::phys::Node| {
            ZoneKind::ALL.into_iter().filter_map(|kind| phys.zone(node.zone(kind)?))
        };
        phys.nodes().iter().flat_map(of_node)
    }

    fn stat(&self, zone: &Zone<'_>) -> ZoneStat {
        zone.stat(&self.platform.pin())
    }

    /// The state of a zone with all merged.
    fn merged_stat(&self, zone: &Zone<'_>) -> ZoneStat {
        zone.coalesce(&self.platform.pin());
        self.stat(zone)
    }

    /// The sum of something over all zones.
    fn sum(&self, of: impl Fn(&Zone<'_>) -> u64) -> u64 {
        self.zones().map(of).sum()
    }
}

/// A report, written by its `Display`.
pub struct Report<'a, P> {
    source: Source<'a, P>,
    write: Writer<'a, P>,
}

type Writer<'a, P> = fn(&Source<'a, P>, &mut fmt::Formatter<'_>) -> fmt::Result;

impl<'a, P: Platform> Report<'a, P> {
    fn new(platform: &'a P, phys: &'a Phys<'_>, write: Writer<'a, P>) -> Self {
        Self { source: Source { platform, phys, counters: Counters::default() }, write }
    }

    fn with(mut self, counters: Counters) -> Self {
        self.source.counters = counters;
        self
    }
}

impl<P: Platform> fmt::Display for Report<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.write)(&self.source, f)
    }
}

impl<P> fmt::Debug for Report<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report").finish_non_exhaustive()
    }
}

/// How many free blocks each zone has, by order.
///
/// Merges what waits for its merge first, and so shows what could be allocated, not what the lists hold at the moment.
pub fn buddyinfo<'a, P: Platform>(platform: &'a P, phys: &'a Phys<'_>) -> Report<'a, P> {
    Report::new(platform, phys, buddyinfo::write)
}

/// How many free blocks each zone has by order and migrate type, and how many page blocks of each type.
///
/// Merges what waits for its merge first.
pub fn pagetypeinfo<'a, P: Platform>(platform: &'a P, phys: &'a Phys<'_>) -> Report<'a, P> {
    Report::new(platform, phys, pagetypeinfo::write)
}

/// Sizes, watermarks and per-CPU lists of each zone.
///
/// A node's zones that have no frames are shown too, without watermarks (Linux gives an empty HighMem some). `present` counts the
/// frames of the zone's span that the memory map mentions. There are no per-CPU counters to fold, so no `vm stats threshold`.
pub fn zoneinfo<'a, P: Platform>(platform: &'a P, phys: &'a Phys<'_>) -> Report<'a, P> {
    Report::new(platform, phys, zoneinfo::write)
}

/// Counters, one a line. Those that Linux does not have, of deferred merging, come last.
pub fn vmstat<'a, P: Platform>(platform: &'a P, phys: &'a Phys<'_>, counters: Counters) -> Report<'a, P> {
    Report::new(platform, phys, vmstat::write).with(counters)
}

/// The use of memory in kB.
pub fn meminfo<'a, P: Platform>(platform: &'a P, phys: &'a Phys<'_>, counters: Counters) -> Report<'a, P> {
    Report::new(platform, phys, meminfo::write).with(counters)
}

/// All that one wants to know when an allocation has failed. Merges nothing: it shows the state as it is.
///
/// `free_pcp` counts the depots too.
#[doc(alias = "show_mem")]
pub fn mem_info<'a, P: Platform>(platform: &'a P, phys: &'a Phys<'_>) -> Report<'a, P> {
    Report::new(platform, phys, mem_info::write)
}

/// KiB in so many pages.
const fn kib(pages: u64) -> u64 {
    pages.saturating_mul(1 << (crate::addr::PAGE_SHIFT - 10))
}
