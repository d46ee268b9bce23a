//! Virtual memory: what all processes of a machine share.

use core::alloc::Layout;
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU64;

use super::events::FaultEvents;
use super::process::Process;
use super::reclaim::{ShrinkRequest, Shrinker};
use super::vm_error::VmError;
use crate::addr::{PAGE_SIZE_U64, PageOrder, Pfn, VirtRange};
use crate::cache::{IoTicket, Mapping, PageCache, PageExt};
use crate::fault::{HugeZeroPage, Pager, PinUse};
use crate::flags::GfpFlags;
use crate::mm::{
    GapRoom, MmContext, MmError, MmSlot, MmStores, OpenId, Overcommit, OvercommitMode, ProtectionKeys,
    Sysctl, VmaNode, VmaPool, VmaSlot, WaitForFaults,
};
use crate::phys::{Carver, InitError, PageSource, Phys, Plan, Sizes};
use crate::platform::Platform;
use crate::rmap::AnonNode;
use crate::table::{EntryFormat, KernelTables, TableError, VmArea, X86_64};

impl<S: PageSource> WaitForFaults for S {
    fn wait_until(&self, done: &dyn Fn() -> bool) {
        let platform = self.platform();
        platform.wait_until(&|| {
            // A fault that is waited for may itself wait for what this CPU keeps.
            self.phys().serve(&platform.pin());
            done()
        });
    }

    fn wake_waiters(&self) {
        self.platform().wake_waiters();
    }
}

/// How many of each there can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmLimits {
    /// VMAs of all processes.
    pub vmas: usize,
    /// Address spaces.
    pub spaces: usize,
    /// Files that are open, have pages in memory, or were written and do not last yet.
    pub files: usize,
    /// Areas of the kernel: vmalloc, vmap, ioremap.
    pub areas: usize,
}

impl VmLimits {
    /// What suits a machine with so many frames: a VMA for 32 of them, an address space for 512.
    pub const fn for_frames(frames: u64) -> Self {
        let frames = frames as usize;
        Self {
            vmas: clamp(frames / 32, 1 << 10, 1 << 22),
            spaces: clamp(frames / 512, 1 << 6, 1 << 15),
            files: clamp(frames / 256, 1 << 7, 1 << 18),
            areas: clamp(frames / 1024, 1 << 6, 1 << 12),
        }
    }

    /// The size and alignment of the metadata for so much on a machine that is still to be booted: what to ask
    /// [`Memory::boot_in_map_with_room`](super::Memory::boot_in_map_with_room) for. It may be a little more than is needed then.
    pub fn layout(&self, plan: &Plan) -> Layout {
        self.layout_for(plan.slots())
    }

    fn layout_for(&self, slots: usize) -> Layout {
        let mut sizes = Sizes::default();
        sizes.add::<VmaNode>(self.vmas);
        sizes.add::<VmaSlot>(self.vmas);
        sizes.add::<MmSlot>(self.spaces);
        sizes.add::<AnonNode>(self.owners());
        sizes.add::<GapRoom>(self.rooms());
        sizes.add::<PageExt>(slots);
        sizes.add::<Mapping<'_>>(self.files);
        sizes.add::<VmaPool<'_>>(1);
        sizes.add::<VmArea>(self.areas);
        sizes.layout()
    }

    /// Owners of anonymous pages: a VMA has one at most, and each ancestor that is left has a page.
    const fn owners(&self) -> usize {
        self.vmas.saturating_mul(2)
    }

    /// Nodes of gap indexes.
    const fn rooms(&self) -> usize {
        self.vmas / 4 + 1
    }
}

const fn clamp(value: usize, low: usize, high: usize) -> usize {
    if value < low {
        low
    } else if value > high {
        high
    } else {
        value
    }
}

/// Virtual memory of a machine: page tables in format `F` in frames of `S`.
///
/// Dropping it gives back what it has taken from `S`: the page of zeros and the kernel's tables. All processes and open files are gone by then, since they borrow
/// it; the kernel's areas are the caller's to unmap, and what files have left to be written is to be [reaped](Self::reap) first. If
/// something is there all the same, its frames are lost, [`Platform::report`] is told, and with the feature `check` it panics.
#[derive(Debug)]
pub struct Vm<'a, S: PageSource, F: EntryFormat = X86_64> {
    source: &'a S,
    context: MmContext<'a>,
    cache: PageCache<'a>,
    zero_page: Pfn,
    huge_zero: HugeZeroPage,
    kernel: KernelTables<'a, S, F>,
    /// The number of the next opening of a file.
    openings: AtomicU64,
    /// Faults of all processes, those that have ended among them.
    events: FaultEvents,
}

impl<'a, S: PageSource, F: EntryFormat> Vm<'a, S, F> {
    /// The size and alignment of the metadata for so much, on a machine with the frames of `phys`; for one that is still to be booted,
    /// [`VmLimits::layout`].
    pub fn metadata_layout(phys: &Phys<'_>, limits: &VmLimits) -> Layout {
        limits.layout_for(phys.slots())
    }

    /// Virtual memory with its metadata in `metadata`, which is as large and aligned as [`metadata_layout`](Self::metadata_layout) says.
    ///
    /// # Errors
    /// [`VmError`]; [`BadTaskSize`](VmError::BadTaskSize) if processes would have addresses that tables in format `F` cannot translate:
    /// [`Sysctl::for_format`] has those that they can.
    pub fn new(
        source: &'a S,
        limits: &VmLimits,
        sysctl: Sysctl,
        metadata: &'a mut [MaybeUninit<u8>],
    ) -> Result<Self, VmError> {
        let phys = source.phys();
        let ends_at_page = sysctl.task_size % PAGE_SIZE_U64 == 0;
        if sysctl.task_size == 0 || sysctl.task_size > F::TASK_SIZE || !ends_at_page {
            return Err(VmError::BadTaskSize(F::TASK_SIZE));
        }
        if sysctl.protection_keys == ProtectionKeys::Present && !F::HAS_EXECUTE_ONLY {
            return Err(VmError::NoProtectionKeys);
        }
        let mut carver = Carver::new(metadata, Self::metadata_layout(phys, limits))?;
        let vma_nodes: &'a [VmaNode] = carver.cut(limits.vmas, |_| Ok(VmaNode::new()))?;
        let vmas: &'a [VmaSlot] = carver.cut(limits.vmas, |_| Ok(VmaSlot::new()))?;
        let spaces: &'a [MmSlot] = carver.cut(limits.spaces, |_| Ok(MmSlot::new()))?;
        let owners: &'a [AnonNode] = carver.cut(limits.owners(), |_| Ok(AnonNode::new()))?;
        let rooms: &'a [GapRoom] = carver.cut(limits.rooms(), |_| Ok(GapRoom::new()))?;
        let pages: &'a [PageExt] = carver.cut(phys.slots(), |_| Ok(PageExt::new()))?;
        let files: &'a [Mapping<'a>] = carver.cut(limits.files, |_| Ok(Mapping::new()))?;
        // Only to tell where VMAs lie: it gives none out.
        let places: &'a [VmaPool<'a>] = carver.cut(1, |_| Ok(VmaPool::new(vma_nodes, vmas)))?;
        let areas = carver.cut(limits.areas, |_| Ok(VmArea::FREE))?;
        let overcommit = Overcommit::new(OvercommitMode::Guess, phys.managed_pages(), 0);
        let stores = MmStores { mms: spaces, vma_nodes, vmas, anon_vmas: owners, gaps: rooms };
        let context = MmContext::new(stores, sysctl, overcommit).with_waiter(source);
        let nodes = places.first().ok_or(InitError::MapChanged)?;
        let cache = PageCache::new(pages, files, nodes);
        let zero_page = zero_page(source).ok_or(VmError::NoZeroPage)?;
        let kernel = KernelTables::create(source, areas).map_err(|_| {
            free(source, zero_page);
            VmError::NoKernelTables
        })?;
        Ok(Self {
            source,
            context,
            cache,
            zero_page,
            huge_zero: HugeZeroPage::new(),
            kernel,
            events: FaultEvents::new(),
            openings: AtomicU64::new(1),
        })
    }

    /// A process with nothing mapped, whose address space has a spin lock: [`Process::new`] makes one with a lock of your own.
    ///
    /// # Errors
    /// As [`Process::new`].
    pub fn process(&self) -> Result<Process<'_, 'a, S, F>, MmError> {
        Process::new(self)
    }

    /// This virtual memory with another rule for how much may be promised. Without it, as much as [`OvercommitMode::Guess`] allows.
    #[must_use]
    pub fn with_overcommit(mut self, overcommit: Overcommit) -> Self {
        self.context.set_overcommit(overcommit);
        self
    }

    /// Where frames come from.
    pub const fn source(&self) -> &'a S {
        self.source
    }

    /// What address spaces share.
    pub const fn context(&self) -> &MmContext<'a> {
        &self.context
    }

    /// The pages of files.
    pub const fn cache(&self) -> &PageCache<'a> {
        &self.cache
    }

    /// Begins to write dirty pages of files to their stores, `pages` of them at most, and asks the stores after all that is under way. It goes on where the last
    /// call ended. Answers how many it has begun to write.
    ///
    /// **Somebody must call it** every few seconds, as Linux's flusher threads work: a thread of its own, a work queue, the idle loop. Nothing else writes what a
    /// [`File`](super::File) or a mapping has stored until somebody syncs it (`MS_ASYNC` does nothing, as in Linux): the store has the old bytes,
    /// and what nobody uses any more keeps its frames. Before it writes a page it forbids writing to it by mappings, so that a later store faults
    /// and makes it dirty again; one that is stored to all the time costs a fault and a write for each call.
    ///
    /// ```
    /// use kernmm::memory::Vm;
    /// use kernmm::phys::PageSource;
    ///
    /// /// What a thread of the kernel runs.
    /// fn flusher<S: PageSource>(vm: &Vm<'_, S>, sleep_some_seconds: impl Fn(), is_stopping: impl Fn() -> bool) {
    ///     while !is_stopping() {
    ///         vm.write_back(1024); // 4 MiB, so that others get at the disk in between.
    ///         sleep_some_seconds();
    ///     }
    ///     vm.sync();
    /// }
    /// ```
    ///
    /// # Locking
    /// The caller holds no lock and no pin, and is a thread: in a timer's interrupt it would spin for a lock that the interrupted thread holds.
    ///
    /// # Linux
    /// `wb_workfn` in `fs/fs-writeback.c`, which every `dirty_writeback_centisecs` writes what has been dirty for `dirty_expire_centisecs`.
    #[doc(alias = "wb_workfn")]
    #[doc(alias = "wakeup_flusher_threads")]
    pub fn write_back(&self, pages: u32) -> u32 {
        self.cache.write_dirty(self.source, &self.pager().entries(), pages)
    }

    /// Writes all that is newer in memory than in the stores, and waits until it lasts; but for what is written to meanwhile.
    ///
    /// What a write met with is told to those who sync the file. Files that nobody has open or mapped any more are made to last too.
    ///
    /// # Locking
    /// As [`write_back`](Self::write_back).
    ///
    /// # Linux
    /// `sync(2)`: `ksys_sync` in `fs/sync.c`.
    #[doc(alias = "ksys_sync")]
    pub fn sync(&self) {
        self.cache.sync(self.source, &self.pager().entries());
    }

    /// Has some dirty pages written, and waits until something is over that was under way: what a caller without locks does who is short of memory, before it tries again. Whether
    /// that is worth it: `false` if nothing was to be written. [`File`](super::File)s and [`Process::fault`] do so some times before they answer that memory is short.
    ///
    /// # Locking
    /// As [`write_back`](Self::write_back).
    ///
    /// # Linux
    /// `reclaim_throttle` in `mm/vmscan.c`, with the flushers that it waits for.
    #[doc(alias = "reclaim_throttle")]
    #[cold]
    #[inline(never)]
    pub fn write_out(&self) -> bool {
        self.cache.write_out(self.source, &self.pager().entries(), WRITE_OUT_PAGES)
    }

    /// Begins to write what files that nobody has open or mapped any more have left, asks the stores after all that is under way, frees the pages
    /// that are written, and has the stores make such files last. Answers how many reads, writes and barriers are still under way, and how many such files
    /// have something to be written yet, as after a write that failed: 0 if all is done that can be.
    ///
    /// It is called again and again until it answers 0 before the `Vm` is dropped, when all pins are back. While the machine runs, [`write_back`](Self::write_back) does this work.
    ///
    /// # Locking
    /// The caller holds no lock and no pin.
    pub fn reap(&self) -> usize {
        self.cache.reap(self.source)
    }

    /// Whether a read or write is over that [`Fault::Wait`](crate::fault::Fault::Wait) or a call told to wait for: asks its store. A scheduler runs others until it is,
    /// and has the fault tried again.
    ///
    /// # Locking
    /// The caller holds no lock and no pin.
    pub fn io_done(&self, ticket: IoTicket) -> bool {
        self.cache.io_done(self.source, ticket)
    }

    /// The page of zeros that is mapped where memory is read before it is written.
    #[doc(alias = "ZERO_PAGE")]
    pub const fn zero_page(&self) -> Pfn {
        self.zero_page
    }

    /// The huge page of zeros, which is there while a process uses it.
    pub const fn huge_zero_page(&self) -> &HugeZeroPage {
        &self.huge_zero
    }

    /// The kernel's half of the addresses, which all processes share.
    #[doc(alias = "init_mm")]
    pub const fn kernel_tables(&self) -> &KernelTables<'a, S, F> {
        &self.kernel
    }

    /// Lets all processes share the kernel's half that a kernel booted with, whose root is `boot`, with `vmalloc` for what is mapped there later.
    ///
    /// # Errors
    /// As [`KernelTables::adopt`]; nothing has changed then.
    pub fn adopt_kernel_half(&mut self, boot: Pfn, vmalloc: VirtRange) -> Result<(), TableError> {
        self.kernel.adopt(boot, vmalloc)
    }

    /// A number for another opening of a file.
    pub(super) fn next_opening(&self) -> OpenId {
        super::file::opening(&self.openings)
    }

    /// Takes pins back, of pages that were written meanwhile or not. Answers how many of them were pinned: all, unless the caller is wrong.
    ///
    /// # Linux
    /// `unpin_user_pages_dirty_lock` in `mm/gup.c`.
    #[doc(alias = "unpin_user_pages")]
    #[doc(alias = "unpin_user_pages_dirty_lock")]
    pub fn unpin_pages(&self, pinned: &[Pfn], used: PinUse) -> usize {
        let pager = self.pager();
        pinned.iter().filter(|&&pfn| pager.unpin(pfn, used)).count()
    }

    pub(super) const fn events(&self) -> &FaultEvents {
        &self.events
    }

    /// Faults of all processes.
    pub fn pager(&self) -> Pager<'_, 'a, S, F> {
        Pager::new(self.source, &self.context, &self.cache, self.zero_page, &self.huge_zero)
    }
}

/// A frame full of zeros.
fn zero_page(source: &impl PageSource) -> Option<Pfn> {
    let pfn = source.alloc_pages(GfpFlags::KERNEL, PageOrder::ZERO).ok()?;
    let zeroed = {
        let pin = source.platform().pin();
        source.phys().kmap(&pin, pfn).map(|frame| frame.fill(0)).is_ok()
    };
    if !zeroed {
        free(source, pfn);
    }
    zeroed.then_some(pfn)
}

fn free(source: &impl PageSource, zero_page: Pfn) {
    let freed = source.free_pages(zero_page, PageOrder::ZERO);
    debug_assert!(freed.is_ok(), "the page of zeros was somebody else's: {freed:?}");
}

impl<S: PageSource, F: EntryFormat> Drop for Vm<'_, S, F> {
    fn drop(&mut self) {
        self.reap();
        let (spaces, pages) = (self.context.mms().used(), self.cache.pages(self.source));
        let mut areas = 0;
        // An address space that was forgotten may still be walked.
        if spaces == 0 {
            free(self.source, self.zero_page);
            areas = self.kernel.take_down().err().unwrap_or(0);
        }
        let all_back = spaces == 0 && pages == 0 && areas == 0;
        if all_back {
            return;
        }
        self.source.platform().report(format_args!(
            "kernmm: a Vm was dropped with {spaces} address spaces, {pages} pages of files and {areas} areas of the kernel: their frames are lost\n"
        ));
        #[cfg(all(feature = "check", feature = "std"))]
        let unwinding = std::thread::panicking();
        #[cfg(all(feature = "check", not(feature = "std")))]
        let unwinding = false;
        #[cfg(feature = "check")]
        assert!(all_back || unwinding, "a Vm was dropped while something of it was in use");
    }
}

/// How many pages are written where memory is short before it is tried again.
const WRITE_OUT_PAGES: u32 = 256;

/// How often in a row that is done for a call or a fault.
pub(super) const WRITE_OUTS: u32 = 16;

/// Where memory is short, clean pages of files are freed that no process maps and nobody uses; and if the request allows input and output, stores are asked what they have
/// written. Nothing is written or made to last for that, since the caller may have an address space locked: [`Vm::write_back`] does it, and [`Vm::write_out`].
impl<S: PageSource, F: EntryFormat> Shrinker for Vm<'_, S, F> {
    fn shrink(&self, request: &ShrinkRequest) -> u64 {
        let before = self.cache.dropped();
        if request.gfp.contains(GfpFlags::IO | GfpFlags::FS) {
            self.cache.collect(self.source);
        }
        let written = self.cache.dropped().wrapping_sub(before);
        written.saturating_add(self.cache.shrink(self.source, request.pages.saturating_sub(written)))
    }
}

#[cfg(feature = "std")]
impl<'a, 'm, F: EntryFormat> Vm<'a, super::Memory<'m, crate::platform::hosted::Machine>, F> {
    /// Virtual memory of a simulated machine, with its metadata apart from the machine's RAM and Linux's settings.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn on(memory: &'a super::Memory<'m, crate::platform::hosted::Machine>) -> Result<Self, VmError> {
        Self::on_with(memory, Sysctl::for_format::<F>())
    }

    /// The same with settings of your own.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn on_with(
        memory: &'a super::Memory<'m, crate::platform::hosted::Machine>,
        sysctl: Sysctl,
    ) -> Result<Self, VmError> {
        let limits = VmLimits::for_frames(memory.phys().managed_pages());
        let metadata = memory.platform().set_aside(Self::metadata_layout(memory.phys(), &limits));
        Self::new(memory, &limits, sysctl, metadata)
    }
}
