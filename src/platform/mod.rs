//! What an embedder supplies: the [`Platform`] trait.
//!
//! One method is required, [`Platform::direct_map`]; the defaults of the others are right for one CPU without
//! interrupts. This is a complete implementation for a kernel that maps all of its RAM at one offset:
//!
//! ```
//! use core::ptr::NonNull;
//! use kernmm::addr::Pfn;
//! use kernmm::platform::Platform;
//!
//! struct Kernel {
//!     /// Where physical address 0 is mapped.
//!     direct_map: usize,
//!     /// How many frames are mapped there.
//!     lowmem_pages: u64,
//! }
//!
//! // SAFETY: every frame below `lowmem_pages` is mapped, writable, at `direct_map`; there is one CPU, and its
//! // interrupt handlers do not allocate.
//! unsafe impl Platform for Kernel {
//!     fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>> {
//!         let address = (pfn.get() < self.lowmem_pages).then(|| self.direct_map + pfn.addr().get() as usize)?;
//!         NonNull::new(core::ptr::with_exposed_provenance_mut(address))
//!     }
//! }
//! ```
#![expect(unsafe_code, reason = "the boundary to the embedder: what it promises cannot be checked")]

mod cpu;
#[cfg(feature = "std")]
pub mod hosted;
mod memory_map;
mod store;
pub mod testing;
mod tlb;
mod window;

pub use cpu::{Access, CpuId, CpuPin, Kick, PinGuard};
pub use memory_map::{MemoryKind, MemoryMap, MemoryRange, NodeRange};
pub use store::{BackingStore, Cluster, FrameBytes, IoState, StoreError, Submitted, Ticket};
pub use tlb::{CpuMask, CpuSet, FlushScope, MAX_TLB_CPUS, TlbFlush};
pub use window::Window;

use core::ptr::NonNull;

use crate::addr::{PageOrder, Pfn};

/// The embedder's hooks.
///
/// # Preemption
/// While interrupts are masked nothing else runs. Elsewhere a thread in the library may hold a spin lock that masks nothing
/// ([`TaskLock`](crate::sync::TaskLock)), for which others spin without giving way. So a kernel that preempts its own threads does one of the two:
/// - it runs each thread that is ready again and again (time slices). Who is preempted with a lock costs others a slice at worst;
/// - it does not preempt in the library, but in [`wait_until`](Self::wait_until), in a call of a [`BackingStore`] and where a thread sleeps on an address
///   space's lock: nothing of the library's that others spin for is held there. Where a thread can be kept from running by others of a higher priority, only
///   this is right (Linux: `preempt_disable`, which `spin_lock` implies).
///
/// Where `wait_until` runs other threads, the lock of address spaces is one on which threads sleep (`L` of
/// [`Process`](crate::memory::Process)): its holder may wait. Interrupt handlers allocate and free frames and objects, and call nothing else.
///
/// # Safety
/// An implementation promises, as long as it lives:
/// - [`direct_map`](Self::direct_map) answers with the address of 4096 bytes of RAM that belong to that frame,
///   can be read and written, and are touched by nobody but the frame's owner;
///   consecutive frames that both have an address and lie in one block of the allocator have consecutive addresses.
/// - [`virt_to_pfn`](Self::virt_to_pfn) answers with a frame only if the address is one of those 4096 bytes.
/// - Between [`irq_save`](Self::irq_save) and [`irq_restore`](Self::irq_restore) the caller keeps its CPU, and nothing else runs on
///   that CPU that calls into the library (an interrupt handler that allocates, another task).
/// - [`cpu_id`](Self::cpu_id) is below the number of CPUs given at boot, and no two CPUs have the same.
/// - [`kick`](Self::kick) answers [`Kick::Halted`] only if that CPU runs none of the library's code from then until the caller
///   has dropped its pin.
/// - When [`switch_tables`](Self::switch_tables) returns, this CPU uses neither the tables that it has left nor what it remembers of them, unless
///   [`keeps_tables_apart`](Self::keeps_tables_apart) says so; and [`tables`](Self::tables) answers with the root that it was told last on the
///   caller's CPU. Both are implemented, or neither: frames of tables that a CPU walks would go to others.
/// - When [`flush_tlb`](Self::flush_tlb) returns, none of the CPUs uses a translation that it was told to forget.
#[doc(alias = "arch")]
pub unsafe trait Platform: Sync {
    /// The address of a frame in the direct map; `None` for a HIGHMEM frame.
    ///
    /// # Linux
    /// `page_address` on a lowmem page, `__va(PFN_PHYS(pfn))`.
    fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>>;

    /// The frame that an address of the direct map belongs to; `None` for any other address. The slab finds an object's
    /// cache with it, and is not built on a platform that does not offer it.
    ///
    /// # Linux
    /// `virt_to_pfn`, `__pa` after `virt_addr_valid`.
    #[inline]
    fn virt_to_pfn(&self, address: NonNull<u8>) -> Option<Pfn> {
        let _ = address;
        None
    }

    /// Masks interrupts on this CPU and keeps the caller on it; the answer goes back to `irq_restore`.
    ///
    /// # Linux
    /// `local_irq_save`.
    #[inline]
    fn irq_save(&self) -> usize {
        0
    }

    /// Undoes the `irq_save` that gave `flags`.
    ///
    /// # Safety
    /// That `irq_save` is undone once, on its CPU, and no [`CpuPin`] relies on it any more. Nested ones are undone the last one first.
    ///
    /// # Linux
    /// `local_irq_restore`.
    #[inline]
    unsafe fn irq_restore(&self, flags: usize) {
        let _ = flags;
    }

    /// The CPU that the caller runs on. Called with interrupts masked.
    #[inline]
    fn cpu_id(&self) -> CpuId {
        CpuId::BOOT
    }

    /// Makes `cpu`, another one, call [`Phys::serve`](crate::phys::Phys::serve) and, where there is one,
    /// [`Slabs::serve`](crate::slab::Slabs::serve) soon: an inter-processor interrupt.
    ///
    /// Called with interrupts masked; must not wait. By default nobody is interrupted, which is right for one CPU. Where there are more, they then
    /// serve at their next allocation or free alone, and a request that waits for one that makes none waits as long.
    fn kick(&self, cpu: CpuId) -> Kick {
        let _ = cpu;
        Kick::Sent
    }

    /// Called again and again while the library waits for another CPU.
    #[inline]
    fn relax(&self) {
        core::hint::spin_loop();
    }

    /// Waits until `done` answers yes: an input or output is over. A scheduler runs something else meanwhile, and asks again when a store has
    /// finished something (which its embedder knows: an interrupt), and when [`wake_waiters`](Self::wake_waiters) is called; nothing else makes
    /// `done` answer yes. By default the CPU asks all the time.
    ///
    /// Called without a pin, by who may wait: the handler of a fault, which holds no lock of the library's then; a call that changes an
    /// address space, which holds that one's lock for writing: it waits for the faults that are in a VMA, or for a truncation, a hole or a write-back of the
    /// file that it maps; and these, for such a call. `done` may be asked again after it has answered yes.
    ///
    /// # Linux
    /// `wait_event` in `include/linux/wait.h`.
    #[doc(alias = "wait_event")]
    fn wait_until(&self, done: &dyn Fn() -> bool) {
        while !done() {
            self.relax();
        }
    }

    /// Something that [`wait_until`](Self::wait_until) may wait for is over: whoever waits is to ask again. What a store finishes is told here once the
    /// pages have been seen to, by whoever asked the store; a fault that is in a VMA tells when it leaves, a call when a file's VMA is changed, a truncation
    /// when it has gone through them, a hole when it is there. Only called if somebody was told to wait.
    ///
    /// Called without a pin; of the library's locks only an address space's or a VMA's may be held. Must not wait. By default nothing is done, which is right where waiters ask all the time.
    ///
    /// # Linux
    /// `wake_up` in `include/linux/wait.h`.
    #[doc(alias = "wake_up")]
    fn wake_waiters(&self) {}

    /// Asks for background reclaim on a node whose free frames fell below the low watermark.
    ///
    /// Called with interrupts masked, perhaps often; must not wait or allocate.
    ///
    /// # Linux
    /// `wakeup_kswapd` in `mm/vmscan.c`.
    fn wake_background(&self, node: u8) {
        let _ = node;
    }

    /// How many `kmap` slots each CPU has; none where all RAM is in the direct map.
    #[inline]
    fn kmap_slots(&self) -> u32 {
        0
    }

    /// Maps a frame in a slot of this CPU and answers with its address, which stays good until `kunmap`.
    ///
    /// Called with the caller pinned to `cpu`, on a free slot below [`kmap_slots`](Self::kmap_slots).
    ///
    /// # Linux
    /// `kmap_local_pfn` in `mm/highmem.c`.
    fn kmap(&self, cpu: CpuId, slot: u32, pfn: Pfn) -> Option<NonNull<u8>> {
        let _ = (cpu, slot, pfn);
        None
    }

    /// Ends the mapping of a slot.
    fn kunmap(&self, cpu: CpuId, slot: u32) {
        let _ = (cpu, slot);
    }

    /// Makes this CPU walk the page tables with this root from now on, for addresses of the user; `None` for the kernel's alone. It must forget the
    /// translations of the tables that it leaves, unless it keeps those of several apart.
    ///
    /// # Linux
    /// `switch_mm_irqs_off` in `arch/x86/mm/tlb.c`.
    #[doc(alias = "switch_mm")]
    fn switch_tables(&self, pgd: Option<Pfn>) {
        let _ = pgd;
    }

    /// The root of the page tables that this CPU walks, as [`switch_tables`](Self::switch_tables) was told; for those whose tables are about to go.
    /// Whoever implements the one implements the other: [`Process::activate`](crate::memory::Process::activate) refuses if they do not agree.
    fn tables(&self) -> Option<Pfn> {
        None
    }

    /// Whether a CPU that leaves tables keeps their translations (x86: PCID, RISC-V: ASID). It is then asked to forget them when they change, even while it
    /// walks other tables.
    fn keeps_tables_apart(&self) -> bool {
        false
    }

    /// Makes `cpus` forget translations. When it returns they have: none of them uses one any more. This CPU may be among them.
    ///
    /// Called without a pin and with no lock of the library's held, so it may wait for the others' answers. By default nothing is done, which is
    /// right where nothing walks page tables.
    ///
    /// # Linux
    /// `flush_tlb_mm_range` in `arch/x86/mm/tlb.c`.
    #[doc(alias = "flush_tlb_range")]
    fn flush_tlb(&self, cpus: &CpuMask, flush: &TlbFlush) {
        let _ = (cpus, flush);
    }

    /// Called before a block goes back to the allocator: for platforms that check that nothing reaches it any more. By default nothing is done.
    ///
    /// Called with interrupts masked; must not wait or allocate. A block that the allocator refuses to take back is named too.
    ///
    /// # Linux
    /// `debug_pagealloc_unmap_pages` in `include/linux/mm.h` stands at the same place.
    #[inline]
    fn frames_freed(&self, pfn: Pfn, order: PageOrder) {
        let _ = (pfn, order);
    }

    /// Takes a report for people to read, such as the dump after a failed allocation; default: nobody reads it. It begins with who reports,
    /// `kernmm: ` or as in Linux `pagealloc: `, and has as many lines as it needs, each ended by a line feed: print it as it is. A time or a level is yours to add.
    ///
    /// Called with interrupts as the caller had them and no lock held.
    ///
    /// # Linux
    /// `printk`.
    #[doc(alias = "printk")]
    fn report(&self, text: core::fmt::Arguments<'_>) {
        let _ = text;
    }

    /// Pins the caller to its CPU with interrupts masked until the answer is dropped. Pins nest; the last one goes first.
    #[inline]
    fn pin(&self) -> PinGuard<'_, Self>
    where
        Self: Sized,
    {
        PinGuard::new(self)
    }
}
