//! What `/proc/PID` shows of a process.

use core::fmt::{self, Write};

use lock_api::RawRwLock;

use super::events::FaultCounts;
use super::process::Process;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE_U64, VirtAddr, VirtRange};
use crate::fault::MemUsage;
use crate::phys::PageSource;
use crate::report::{self, Names};
use crate::table::EntryFormat;

/// Each looks with the address space's lock held for reading.
impl<S: PageSource, F: EntryFormat, L: RawRwLock> Process<'_, '_, S, F, L> {
    /// Writes `/proc/PID/maps`.
    ///
    /// # Errors
    /// The writer's.
    pub fn maps(&self, out: &mut impl Write, names: &impl Names) -> fmt::Result {
        self.with(|mm| report::maps(out, mm, names))
    }

    /// Writes `/proc/PID/smaps`.
    ///
    /// # Errors
    /// The writer's.
    pub fn smaps(&self, out: &mut impl Write, names: &impl Names) -> fmt::Result {
        self.with_pages(|mm, pages| {
            report::smaps(out, mm, names, |vma| {
                let mut usage = MemUsage::default();
                if let Some(pages) = pages {
                    pages.add_usage(vma, &mut usage);
                }
                usage
            })
        })
    }

    /// Writes `/proc/PID/smaps_rollup`.
    ///
    /// # Errors
    /// The writer's.
    pub fn smaps_rollup(&self, out: &mut impl Write) -> fmt::Result {
        self.with_pages(|mm, pages| {
            let mut usage = MemUsage::default();
            if let Some(pages) = pages {
                mm.vmas().iter().for_each(|(_, vma)| pages.add_usage(&vma, &mut usage));
            }
            report::smaps_rollup(out, mm, &usage)
        })
    }

    /// Reads `/proc/PID/pagemap`: what [`report::pagemap_entry`] says of the pages from the one that holds `first` on. Answers how many pages there are
    /// up to the end of the user's addresses, at most as many as `out` has room for.
    ///
    /// # Linux
    /// `pagemap_read` in `fs/proc/task_mmu.c`.
    pub fn pagemap(&self, first: VirtAddr, out: &mut [u64]) -> usize {
        self.with_pages(|mm, pages| {
            let first = first.page_floor().get();
            let there = mm.sysctl().task_size.saturating_sub(first) >> PAGE_SHIFT;
            let count = there.min(out.len() as u64) as usize;
            let out = out.get_mut(..count).unwrap_or_default();
            out.fill(report::pagemap_entry(None));
            let range = VirtRange::with_len(VirtAddr::from(first), count as u64 * PAGE_SIZE_U64);
            if let (Some(range), Some(pages)) = (range, pages) {
                pages.visit_pages(range, |at, state| {
                    let index = (at.get() - first) >> PAGE_SHIFT;
                    if let Some(place) = out.get_mut(index as usize) {
                        *place = report::pagemap_entry(Some(state));
                    }
                });
            }
            count
        })
    }

    /// Writes the lines `VmPeak` to `VmSwap` of `/proc/PID/status`.
    ///
    /// # Errors
    /// The writer's.
    pub fn status(&self, out: &mut impl Write) -> fmt::Result {
        self.with_pages(|mm, pages| {
            let tables = pages.map_or(0, |pages| u64::from(pages.tables()));
            mm.shared().set_table_bytes(tables * PAGE_SIZE_U64);
            report::status(out, mm)
        })
    }

    /// Writes `/proc/PID/statm`.
    ///
    /// # Errors
    /// The writer's.
    pub fn statm(&self, out: &mut impl Write) -> fmt::Result {
        self.with(|mm| report::statm(out, mm))
    }

    /// How many faults were resolved, those too that a call made to have pages resident: `MAP_POPULATE`, mlock, `MADV_POPULATE_READ`.
    ///
    /// # Linux
    /// `min_flt` and `maj_flt` of `struct task_struct`, as `getrusage` and `/proc/PID/stat` show them.
    #[doc(alias = "min_flt")]
    #[doc(alias = "maj_flt")]
    pub fn faults(&self) -> FaultCounts {
        self.events().counts()
    }
}
