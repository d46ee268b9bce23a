//! `/proc/PID/pagemap`: a number for each page.

use crate::fault::{EntryState, PageKind};

/// Mapped here alone.
const EXCLUSIVE: u64 = 1 << 56;
/// The mark of a guard region.
const GUARD: u64 = 1 << 58;
/// A page of a file or of shared memory.
const FILE: u64 = 1 << 61;
/// Not in memory: in a swap area, or a mark.
const SWAP: u64 = 1 << 62;
/// In memory.
const PRESENT: u64 = 1 << 63;
/// Where Linux keeps the mark of a guard region: as the offset with this number, of the area with the highest number.
const GUARD_PLACE: u64 = 4 << AREA_BITS | 31;
/// Bits of an area's number.
const AREA_BITS: u32 = 5;

/// What `/proc/PID/pagemap` says of a page: the frame in bits 0 to 54, or the area in bits 0 to 4 and the place in it above; whether it is mapped here
/// alone (56), a guard region (58), a file's (61), swapped out (62), in memory (63). Writes are not tracked (55,
/// soft-dirty, which is 0 on a Linux without `CONFIG_MEM_SOFT_DIRTY` too; 57).
///
/// # Linux
/// `pte_to_pagemap_entry` in `fs/proc/task_mmu.c` (6.18).
#[doc(alias = "pte_to_pagemap_entry")]
pub fn pagemap_entry(state: Option<EntryState>) -> u64 {
    match state {
        None => 0,
        Some(EntryState::Guard) => SWAP | GUARD | GUARD_PLACE,
        Some(EntryState::Swapped(entry)) => SWAP | entry.offset() << AREA_BITS | u64::from(entry.area()),
        Some(EntryState::Resident(page)) => {
            let is_file = matches!(page.kind, PageKind::File | PageKind::Shmem);
            PRESENT
                | page.pfn.get()
                | if is_file { FILE } else { 0 }
                | if page.mappings == 1 { EXCLUSIVE } else { 0 }
        }
    }
}
