//! kernmm's hooks: all that the library has to know of this machine. The file to copy from.
//!
//! Only [`Platform::direct_map`] is required; each hook here says what it is for and what the library counts on. What they stand on is
//! the kernel's own: `paging` maps all RAM at one distance, `cpu` numbers the CPUs and interrupts them, `sched` runs something else
//! while a thread waits.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[cfg(feature = "check")]
use kernmm::addr::PageOrder;
use kernmm::addr::{PAGE_SIZE_U64, Pfn};
use kernmm::platform::{CpuId, CpuMask, FlushScope, Kick, Platform, TlbFlush};
use spin::Mutex;

use crate::{cpu, paging, print, sched, x86};

/// This machine: RAM in the direct map, CPUs that interrupt each other.
pub struct Machine;

/// The one there is.
pub static MACHINE: Machine = Machine;

/// The first frame that the library is told not to be in the direct map: HIGHMEM begins there. By default there is none; the kernel's
/// command line can make RAM that a 64-bit kernel would reach directly look like what a 32-bit one cannot.
static HIGHMEM_FROM: AtomicU64 = AtomicU64::new(u64::MAX);

/// Slots of each CPU for HIGHMEM frames.
pub const KMAP_SLOTS: u32 = 16;

/// Makes HIGHMEM begin at a frame; before the library is booted.
pub fn limit_direct_map(first_high: Pfn) {
    HIGHMEM_FROM.store(first_high.get(), Ordering::Relaxed);
}

/// Where HIGHMEM begins.
pub fn highmem_from() -> Pfn {
    Pfn::new(HIGHMEM_FROM.load(Ordering::Relaxed)).unwrap_or(Pfn::MAX)
}

// SAFETY:
// - `direct_map`: `paging` maps RAM at a fixed distance, so consecutive frames have consecutive addresses. Who does not own
//   a frame does not touch it: the kernel's own image and tables are reserved in the map that kernmm is given.
// - `virt_to_pfn` is its inverse, for the same addresses.
// - `irq_save` keeps interrupts out, and nothing else could take the CPU away: the kernel is left only where it waits, and it does not wait
//   with interrupts masked.
// - `cpu_id`: CPUs are numbered from 0 without gaps.
// - `kick` never says that a CPU is halted.
unsafe impl Platform for Machine {
    // ------------------------------------------------------------------------------------ reaching frames

    /// A frame's address. The only hook without a default.
    fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        if pfn >= highmem_from() {
            return None;
        }
        let at = pfn.addr().get();
        NonNull::new(paging::direct_map(at)).filter(|_| paging::is_mapped(at, PAGE_SIZE_U64))
    }

    /// And back. kmalloc finds by it which slab an object lies in.
    fn virt_to_pfn(&self, address: NonNull<u8>) -> Option<Pfn> {
        let at = paging::direct_map_offset(address)?;
        Pfn::new(at / PAGE_SIZE_U64).filter(|&pfn| pfn < highmem_from())
    }

    /// HIGHMEM frames are seen through slots, a few of each CPU. Where all RAM is in the direct map these three can be left out.
    fn kmap_slots(&self) -> u32 {
        if highmem_from() == Pfn::MAX { 0 } else { KMAP_SLOTS }
    }

    fn kmap(&self, cpu: CpuId, slot: u32, pfn: Pfn) -> Option<NonNull<u8>> {
        NonNull::new(paging::open_slot(cpu.index(), slot as usize, pfn.addr().get()))
    }

    fn kunmap(&self, cpu: CpuId, slot: u32) {
        paging::close_slot(cpu.index(), slot as usize);
    }

    // ------------------------------------------------------------------------------------ CPUs and interrupts

    /// Masks interrupts. The answer says whether they were let in before, and nothing else.
    fn irq_save(&self) -> usize {
        let were_enabled = x86::interrupts_enabled();
        x86::disable_interrupts();
        usize::from(were_enabled)
    }

    unsafe fn irq_restore(&self, were_enabled: usize) {
        if were_enabled != 0 {
            x86::enable_interrupts();
        }
    }

    /// Which CPU this is; one load relative to `gs`.
    fn cpu_id(&self) -> CpuId {
        CpuId(cpu::id() as u32)
    }

    /// Interrupts another CPU, whose handler calls `memory::serve`: it gives back frames that it keeps for itself.
    fn kick(&self, cpu: CpuId) -> Kick {
        cpu::kick(cpu.index());
        Kick::Sent
    }

    /// Runs other threads until `done` says yes; a fault that waits for the disk comes here.
    fn wait_until(&self, done: &dyn Fn() -> bool) {
        sched::wait_for_io(done);
    }

    /// Threads that wait there ask again.
    fn wake_waiters(&self) {
        sched::IO.wake(0, usize::MAX);
    }

    // ------------------------------------------------------------------------------------ page tables

    /// Loads CR3, which also empties the TLB. Without tables the CPU walks the kernel's own, in which no user is mapped.
    fn switch_tables(&self, pgd: Option<Pfn>) {
        let root = match pgd {
            Some(pgd) => pgd.addr().get(),
            None => paging::kernel_root(),
        };
        // Noted first: a request to forget that comes in between flushes once too often, not once too little. (None: whoever leaves tables has interrupts
        // masked until they are left, so that no such request is looked at in between.)
        cpu::current().tables.store(pgd.map_or(u64::MAX, Pfn::get), Ordering::Relaxed);
        // SAFETY: the tables have the kernel's half, and the library frees them only when no CPU walks them any more.
        unsafe { x86::set_page_table_root(root) };
    }

    /// What this CPU walks.
    fn tables(&self) -> Option<Pfn> {
        Pfn::new(cpu::current().tables.load(Ordering::Relaxed))
    }

    /// Forgets translations here and on other CPUs; returns when all have.
    ///
    /// The library holds no lock of its own and no pin, so interrupts are let in: while one CPU waits here for another, it answers the
    /// other's requests.
    fn flush_tlb(&self, cpus: &CpuMask, flush: &TlbFlush) {
        let me = {
            let pin = self.pin();
            if cpus.contains(pin.cpu()) {
                forget(flush);
            }
            pin.cpu()
        };
        // Threads of the kernel change CPUs only where they wait, and nothing waits from here on.
        let others = cpus.iter().filter(|&cpu| cpu != me && cpu.index() < cpu::online());
        let asked = others.fold(0, |asked, cpu| asked | 1 << cpu.index());
        if asked != 0 && !IS_SHOOT_DOWN_OFF.load(Ordering::Relaxed) {
            shoot_down(asked, flush);
        }
    }

    /// Here only to check: tables that a CPU walks must not be freed.
    #[cfg(feature = "check")]
    fn frames_freed(&self, pfn: Pfn, order: PageOrder) {
        let block = pfn.get()..pfn.get() + order.pages();
        let walks = |cpu: &cpu::Cpu| block.contains(&cpu.tables.load(Ordering::Relaxed));
        assert!(!cpu::all().any(walks), "a CPU walks the tables at frame {pfn:#x}, which is freed");
    }

    // ------------------------------------------------------------------------------------ reports

    /// What the library has to say, such as the state of memory after a failed allocation.
    fn report(&self, text: core::fmt::Arguments<'_>) {
        print!("{text}");
    }
}

// ---------------------------------------------------------------------------------------- forgetting translations

/// So many pages are forgotten one by one; for more the whole TLB is emptied, which is cheaper.
///
/// # Linux
/// `tlb_single_page_flush_ceiling` in `arch/x86/mm/tlb.c`.
const FEW_PAGES: u64 = 33;

/// What other CPUs are to forget; one request at a time.
static REQUEST: Mutex<Option<TlbFlush>> = Mutex::new(None);
/// Held by the CPU whose request it is.
static REQUESTING: Mutex<()> = Mutex::new(());
/// The CPUs that have not answered yet.
static UNANSWERED: AtomicU64 = AtomicU64::new(0);
/// Requests that were made.
static REQUESTS: AtomicU64 = AtomicU64::new(0);
/// Other CPUs are not asked: a test shows that this goes wrong.
static IS_SHOOT_DOWN_OFF: AtomicBool = AtomicBool::new(false);

/// From now on other CPUs are not asked to forget anything.
pub fn switch_shoot_down_off() {
    IS_SHOOT_DOWN_OFF.store(true, Ordering::Relaxed);
}

/// How often other CPUs were asked.
pub fn shoot_downs() -> u64 {
    REQUESTS.load(Ordering::Relaxed)
}

/// Asks CPUs and waits for their answers.
fn shoot_down(asked: u64, flush: &TlbFlush) {
    let _requesting = REQUESTING.lock();
    x86::without_interrupts(|| *REQUEST.lock() = Some(*flush));
    // Release: who sees its bit sees the request. The changed entries were written before.
    UNANSWERED.store(asked, Ordering::Release);
    for cpu in (0..cpu::online()).filter(|&cpu| asked >> cpu & 1 == 1) {
        cpu::ask_to_forget(cpu);
    }
    // Acquire: pairs with `asked_to_forget`; what they did before they answered has happened.
    while UNANSWERED.load(Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
    REQUESTS.fetch_add(1, Ordering::Relaxed);
}

/// The handler of the other CPUs' interrupt.
pub fn asked_to_forget() {
    if let Some(flush) = *REQUEST.lock() {
        forget(&flush);
    }
    UNANSWERED.fetch_and(!(1 << cpu::id()), Ordering::Release);
}

/// Makes this CPU forget. What belongs to a process's tables it knows only while it walks them: it has left others behind by loading CR3. The kernel's
/// addresses are in all tables; no page is global, so that a load of CR3 forgets them as well.
fn forget(flush: &TlbFlush) {
    let range = match flush.scope {
        FlushScope::Kernel(range) => range,
        _ if MACHINE.tables() != Some(flush.pgd) => return,
        // INVLPG also forgets the way to the entry.
        FlushScope::Page(page) => return x86::flush_page(page.get()),
        FlushScope::Range(range) => range,
        FlushScope::All => return x86::flush_tlb(),
    };
    if flush.tables || range.len() > FEW_PAGES * PAGE_SIZE_U64 {
        return x86::flush_tlb();
    }
    let pages = range.len() / PAGE_SIZE_U64;
    (0..pages).for_each(|page| x86::flush_page(range.start().get() + page * PAGE_SIZE_U64));
}
