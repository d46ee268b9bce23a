//! The direct map: all physical memory at one fixed distance, in 2 MiB pages.
//!
//! `boot.s` maps the first 4 GiB; this file adds the RAM above. Page tables for it come from right behind the kernel's
//! image ([`EarlyFrames`]), since no allocator runs yet.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;

use crate::boot;
use crate::pvh::{Kind, Range};
use crate::x86::{flush_page, flush_tlb, page_table_root};

/// Where physical address 0 is mapped; the address that Linux uses.
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// The entry of the top table for it.
pub const TOP_ENTRY: usize = index(0, 39);
/// The direct map may grow to here (64 TiB).
const DIRECT_MAP_LIMIT: u64 = 1 << 46;
/// What `boot.s` maps.
const BOOT_MAPPED: u64 = 4 << 30;
/// Bytes of a small and of a large page.
const PAGE: u64 = 4 << 10;
const LARGE_PAGE: u64 = 2 << 20;

/// Bits of a table entry.
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Where the slots for HIGHMEM frames lie, in a corner that nothing else uses; 64 of each CPU.
const SLOTS: u64 = 0xffff_e000_0000_0000;
const SLOTS_PER_CPU: usize = 64;
const _: () = assert!(
    SLOTS_PER_CPU * crate::cpu::MAX_CPUS <= 512 && crate::platform::KMAP_SLOTS as usize <= SLOTS_PER_CPU
);
/// The leaf table of the slots, if there are any.
static SLOT_TABLE: Once<&'static Table> = Once::new();
/// The physical address of the kernel's top table, once somebody asked.
static KERNEL_ROOT: AtomicU64 = AtomicU64::new(0);

/// 512 entries.
type Table = [AtomicU64; 512];

/// The first physical address above everything that is mapped.
static MAPPED_END: AtomicU64 = AtomicU64::new(BOOT_MAPPED);

/// The virtual address of physical address `at`. Forming it is safe; it leads somewhere if `at` is mapped.
pub fn direct_map<T>(at: u64) -> *mut T {
    core::ptr::with_exposed_provenance_mut(DIRECT_MAP.wrapping_add(at) as usize)
}

/// The physical address behind an address of the direct map; `None` for one outside.
pub fn direct_map_offset(address: NonNull<u8>) -> Option<u64> {
    let at = (address.addr().get() as u64).checked_sub(DIRECT_MAP)?;
    is_mapped(at, 1).then_some(at)
}

/// Whether `len` bytes from physical address `at` lie below the end of the direct map.
pub fn is_mapped(at: u64, len: u64) -> bool {
    at.checked_add(len).is_some_and(|end| end <= MAPPED_END.load(Ordering::Relaxed))
}

/// Why RAM could not be mapped.
#[derive(Clone, Copy, Debug)]
pub enum MapError {
    /// No RAM behind the kernel is left for page tables.
    NoFrames,
    /// There is RAM beyond the largest address of the direct map.
    TooHigh,
}

/// Page frames from right behind the kernel's image, for page tables that are never freed.
pub struct EarlyFrames {
    next: u64,
    end: u64,
}

impl EarlyFrames {
    /// The rest of the RAM range in which the kernel's image lies, as far as `boot.s` mapped it.
    pub fn behind_kernel(ranges: &[Range]) -> Self {
        let (_, next) = boot::image();
        let holds_kernel =
            |range: &&Range| range.kind == Kind::Usable && range.base < next && next <= range.end();
        let end = ranges.iter().find(holds_kernel).map_or(next, |range| range.end().min(BOOT_MAPPED));
        Self { next, end }
    }

    /// What is in use from the kernel's first byte on: the image and the frames taken.
    pub fn used(&self) -> Range {
        let (base, _) = boot::image();
        Range { base, len: self.next - base, kind: Kind::Reserved }
    }

    /// Takes a frame and fills it with zeros.
    fn take(&mut self) -> Result<u64, MapError> {
        if self.end.saturating_sub(self.next) < PAGE {
            return Err(MapError::NoFrames);
        }
        let frame = self.next;
        self.next += PAGE;
        // SAFETY: the frame is RAM behind the kernel's image, mapped by boot.s and used by nobody.
        unsafe { direct_map::<u8>(frame).write_bytes(0, PAGE as usize) };
        Ok(frame)
    }
}

/// Maps the RAM above 4 GiB. The ranges' ends are rounded outwards to 2 MiB.
///
/// # Errors
/// [`MapError::NoFrames`] or [`MapError::TooHigh`]; what was mapped until then stays.
pub fn map_ram(ranges: &[Range], frames: &mut EarlyFrames) -> Result<(), MapError> {
    for range in ranges.iter().filter(|range| range.kind == Kind::Usable && range.len > 0) {
        let end = range.end();
        if end > DIRECT_MAP_LIMIT {
            return Err(MapError::TooHigh);
        }
        let mut at = range.base.max(BOOT_MAPPED) & !(LARGE_PAGE - 1);
        while at < end {
            let directory = next_table(&top_table()[index(at, 39)], frames)?;
            let large_pages = next_table(&directory[index(at, 30)], frames)?;
            large_pages[index(at, 21)].store(at | LARGE | WRITABLE | PRESENT, Ordering::Relaxed);
            at += LARGE_PAGE;
        }
        MAPPED_END.fetch_max(at, Ordering::Relaxed);
    }
    Ok(())
}

/// Maps the 2 MiB around a device's registers without caching. They must lie below 4 GiB.
pub fn make_uncached(at: u64) {
    assert!(at < BOOT_MAPPED, "a device at {at:#x}, above what boot.s maps");
    let directory = table_of(&top_table()[index(at, 39)]);
    let large_pages = table_of(&directory[index(at, 30)]);
    large_pages[index(at, 21)].fetch_or(CACHE_DISABLE | WRITE_THROUGH, Ordering::Relaxed);
    flush_tlb();
}

/// Unmaps the low half, which only code on its way through `boot.s` needs. Each CPU flushes its TLB itself.
pub fn forget_low_half() {
    top_table()[0].store(0, Ordering::Relaxed);
}

/// The table that an entry names, new and empty if it names none.
fn next_table(entry: &AtomicU64, frames: &mut EarlyFrames) -> Result<&'static Table, MapError> {
    if entry.load(Ordering::Relaxed) & PRESENT == 0 {
        entry.store(frames.take()? | WRITABLE | PRESENT, Ordering::Relaxed);
    }
    Ok(table_of(entry))
}

/// The table that a present entry names.
fn table_of(entry: &AtomicU64) -> &'static Table {
    let entry = entry.load(Ordering::Relaxed);
    assert!(entry & (PRESENT | LARGE) == PRESENT, "{entry:#x} names no table");
    // SAFETY: entries name tables of boot.s or early frames; both are in the direct map and never freed.
    unsafe { &*direct_map(entry & ADDRESS) }
}

/// The kernel's top table, in boot.s. It was the first that any CPU walked.
fn top_table() -> &'static Table {
    // SAFETY: it is in boot.s, in the direct map, and never freed.
    unsafe { &*direct_map(kernel_root()) }
}

/// The physical address of the kernel's top table.
pub fn kernel_root() -> u64 {
    let known = KERNEL_ROOT.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let root = page_table_root();
    KERNEL_ROOT.store(root, Ordering::Relaxed);
    root
}

/// Makes room for the slots through which CPUs see HIGHMEM frames: a leaf table of their own.
///
/// # Errors
/// [`MapError::NoFrames`].
pub fn make_slots(frames: &mut EarlyFrames) -> Result<(), MapError> {
    let large = next_table(&top_table()[table_index(SLOTS, 39)], frames)?;
    let directory = next_table(&large[table_index(SLOTS, 30)], frames)?;
    let leaf = next_table(&directory[table_index(SLOTS, 21)], frames)?;
    SLOT_TABLE.call_once(|| leaf);
    Ok(())
}

/// The address of a CPU's slot.
const fn slot_address(cpu: usize, slot: usize) -> u64 {
    SLOTS + ((cpu * SLOTS_PER_CPU + slot) as u64) * PAGE
}

/// Shows a frame in a slot of the running CPU, at the address that it answers with; null if there are no slots.
pub fn open_slot(cpu: usize, slot: usize, frame: u64) -> *mut u8 {
    let Some(entry) = SLOT_TABLE.get().and_then(|table| table.get(cpu * SLOTS_PER_CPU + slot)) else {
        return core::ptr::null_mut();
    };
    entry.store(frame | WRITABLE | PRESENT | NO_EXECUTE, Ordering::Relaxed);
    core::ptr::with_exposed_provenance_mut(slot_address(cpu, slot) as usize)
}

/// Ends it. Only the slot's own CPU has ever looked, so only it has to forget.
pub fn close_slot(cpu: usize, slot: usize) {
    if let Some(entry) = SLOT_TABLE.get().and_then(|table| table.get(cpu * SLOTS_PER_CPU + slot)) {
        entry.store(0, Ordering::Relaxed);
        flush_page(slot_address(cpu, slot));
    }
}

/// The index of an address's entry in a table whose entries are `1 << shift` bytes apart.
const fn table_index(address: u64, shift: u32) -> usize {
    (address >> shift & 511) as usize
}

/// The index of the entry for physical address `at` in a table whose entries are `1 << shift` bytes apart.
const fn index(at: u64, shift: u32) -> usize {
    (DIRECT_MAP.wrapping_add(at) >> shift & 511) as usize
}
