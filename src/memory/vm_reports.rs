//! What `/proc` shows of virtual memory as a whole.

use super::{Memory, Vm};
use crate::addr::PAGE_SHIFT;
use crate::flags::PageFlags;
use crate::phys::{Page, PageState};
use crate::platform::Platform;
use crate::report::{self, Counters, Report, VmCounters};
use crate::table::EntryFormat;

impl<'m, P: Platform, F: EntryFormat> Vm<'_, Memory<'m, P>, F> {
    /// [`report::vmstat`] of this memory, with the counters of virtual memory.
    ///
    /// What is counted by page is counted now, by a look at each frame's metadata: nothing has to be kept in the meantime.
    pub fn vmstat(&self) -> Report<'_, P> {
        report::vmstat(self.source().platform(), self.source().phys(), self.counters())
    }

    /// [`report::meminfo`] of this memory, with the lines of virtual memory. As for [`vmstat`](Self::vmstat).
    pub fn meminfo(&self) -> Report<'_, P> {
        report::meminfo(self.source().platform(), self.source().phys(), self.counters())
    }

    /// What those two show, as numbers: pages by what they are used for, among others.
    pub fn counters(&self) -> Counters {
        let mut vm = VmCounters::default();
        self.source().phys().all_pages().iter().for_each(|page| add(&mut vm, page));
        (vm.pgfault, vm.pgmajfault) = (self.events().all(), self.events().counts().major);
        let overcommit = self.context().overcommit();
        (vm.commit_limit, vm.committed_as) = (overcommit.limit(), overcommit.committed());
        let kernel = self.kernel_tables();
        vm.vmalloc_total = kernel.vmalloc_range().len() >> PAGE_SHIFT;
        vm.vmalloc_used = kernel.vmalloc_pages();
        let huge = self.huge_zero_page().counts();
        vm.nr_anon_transparent_hugepages = huge.nr_anon_transparent_hugepages;
        (vm.thp_fault_alloc, vm.thp_fault_fallback) = (huge.thp_fault_alloc, huge.thp_fault_fallback);
        vm.thp_split_pmd = huge.thp_split_pmd;
        vm.thp_zero_page_alloc = huge.thp_zero_page_alloc;
        vm.thp_zero_page_alloc_failed = huge.thp_zero_page_alloc_failed;
        Counters { vm: Some(vm), ..self.source().counters() }
    }
}

/// Counts a page by what it is.
fn add(vm: &mut VmCounters, page: &Page) {
    if page.state() != PageState::Allocated {
        return;
    }
    let flags = page.flags();
    let mapped = u64::from(page.map_count() != 0);
    if flags.contains(PageFlags::TABLE) {
        vm.nr_page_table_pages += 1;
    } else if flags.contains(PageFlags::ANON) {
        vm.nr_anon_pages += mapped;
    } else if page.mapping() != 0 && !flags.contains(PageFlags::SLAB) {
        vm.nr_file_pages += 1;
        vm.nr_mapped += mapped;
        let in_memory = flags.contains(PageFlags::SWAP_BACKED);
        vm.nr_shmem += u64::from(in_memory);
        vm.nr_dirty += u64::from(flags.contains(PageFlags::DIRTY) && !in_memory);
        vm.nr_writeback += u64::from(flags.contains(PageFlags::WRITEBACK));
    }
}
