//! ACPI tables: which CPUs there are (MADT) and which memory is near which of them (SRAT, SLIT).
//!
//! The tables are the firmware's: each is checked (length, checksum) when it is found, and what does not parse is left
//! out.

use crate::paging::{direct_map, is_mapped};

/// Bytes of the header that all tables share.
const HEADER: usize = 36;
/// Where the records start in MADT and SRAT.
const MADT_RECORDS: usize = 44;
const SRAT_RECORDS: usize = 48;
/// Where the distances start in SLIT.
const SLIT_MATRIX: usize = 44;
/// Distances where SLIT has none, as Linux has them.
const LOCAL_DISTANCE: u8 = 10;
const REMOTE_DISTANCE: u8 = 20;

/// The tables that matter here; empty where the firmware has none.
#[derive(Clone, Copy, Default)]
pub struct Acpi {
    madt: &'static [u8],
    srat: &'static [u8],
    slit: &'static [u8],
}

/// A range of memory that belongs to a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeMemory {
    /// The node: ACPI's proximity domain.
    pub node: u32,
    /// The first byte's physical address.
    pub base: u64,
    /// The number of bytes.
    pub len: u64,
}

impl Acpi {
    /// Finds the tables through the root pointer at the physical address `rsdp` (0 if there is none).
    ///
    /// # Safety
    /// The firmware's tables must still be in place, and stay: the map calls their memory ACPI data or reserved.
    pub unsafe fn find(rsdp: u64) -> Self {
        if rsdp == 0 {
            return Self::default();
        }
        // SAFETY: the caller vouches for what lies there.
        let Some(pointer) = (unsafe { bytes(rsdp, 20) }) else { return Self::default() };
        if !pointer.starts_with(b"RSD PTR ") || !sums_to_zero(pointer) {
            return Self::default();
        }
        // From revision 2 on there is a table of 64-bit pointers.
        // SAFETY: the caller vouches for what lies there.
        let extended = if pointer[15] >= 2 { unsafe { bytes(rsdp, 36) } } else { None };
        let (root, size) = match extended.and_then(|pointer| u64_at(pointer, 24)) {
            Some(xsdt) if xsdt != 0 => (xsdt, 8),
            _ => (u64::from(u32_at(pointer, 16).unwrap_or(0)), 4),
        };
        // SAFETY: the caller vouches for what lies there.
        let Some(root) = (unsafe { table(root) }) else { return Self::default() };
        let mut found = Self::default();
        for entry in root[HEADER..].chunks_exact(size) {
            let at = entry.iter().rev().fold(0, |address, &byte| address << 8 | u64::from(byte));
            // SAFETY: the caller vouches for what lies there.
            match unsafe { table(at) } {
                Some(table) if table.starts_with(b"APIC") => found.madt = table,
                Some(table) if table.starts_with(b"SRAT") => found.srat = table,
                Some(table) if table.starts_with(b"SLIT") && has_sane_distances(table) => found.slit = table,
                _ => {}
            }
        }
        found
    }

    /// The APIC ids of the CPUs that are there and enabled.
    pub fn cpus(&self) -> impl Iterator<Item = u32> + use<> {
        records(self.madt, MADT_RECORDS).filter_map(|record| {
            let (id, flags) = match record.first()? {
                0 => (u32::from(*record.get(3)?), u32_at(record, 4)?),
                9 => (u32_at(record, 4)?, u32_at(record, 8)?),
                _ => return None,
            };
            (flags & 1 != 0).then_some(id)
        })
    }

    /// The memory of each node, in the firmware's order, without what is empty or leaves the address space.
    pub fn memory(&self) -> impl Iterator<Item = NodeMemory> + Clone + use<> {
        records(self.srat, SRAT_RECORDS).filter_map(|record| {
            if record.first() != Some(&1) || u32_at(record, 28)? & 1 == 0 {
                return None;
            }
            let memory =
                NodeMemory { node: u32_at(record, 2)?, base: u64_at(record, 8)?, len: u64_at(record, 16)? };
            (memory.len > 0 && memory.base.checked_add(memory.len).is_some()).then_some(memory)
        })
    }

    /// The node of the CPU with this APIC id; 0 if SRAT does not say.
    pub fn node_of_cpu(&self, apic_id: u32) -> u32 {
        self.cpu_nodes().find(|&(id, _)| id == apic_id).map_or(0, |(_, node)| node)
    }

    /// The number of nodes: one more than the highest that has memory or a CPU.
    pub fn nodes(&self) -> usize {
        let of_memory = self.memory().map(|memory| memory.node);
        let of_cpus = self.cpu_nodes().map(|(_, node)| node);
        of_memory.chain(of_cpus).max().unwrap_or(0) as usize + 1
    }

    /// The distance between two nodes: 10 is near.
    pub fn distance(&self, from: usize, to: usize) -> u8 {
        let row = distance_rows(self.slit).nth(from);
        row.and_then(|row| row.get(to)).copied().unwrap_or(if from == to {
            LOCAL_DISTANCE
        } else {
            REMOTE_DISTANCE
        })
    }

    /// Pairs of an APIC id and the CPU's node.
    fn cpu_nodes(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        records(self.srat, SRAT_RECORDS).filter_map(|record| {
            let (id, node, flags) = match record.first()? {
                0 => {
                    let high = [*record.get(9)?, *record.get(10)?, *record.get(11)?];
                    let node = u32::from_le_bytes([*record.get(2)?, high[0], high[1], high[2]]);
                    (u32::from(*record.get(3)?), node, u32_at(record, 4)?)
                }
                2 => (u32_at(record, 8)?, u32_at(record, 4)?, u32_at(record, 12)?),
                _ => return None,
            };
            (flags & 1 != 0).then_some((id, node))
        })
    }
}

/// The rows of SLIT; none if the table is cut short.
fn distance_rows(slit: &'static [u8]) -> impl Iterator<Item = &'static [u8]> {
    let matrix = slit.get(SLIT_MATRIX..).unwrap_or(&[]);
    let nodes = u64_at(slit, HEADER).and_then(|nodes| usize::try_from(nodes).ok()).unwrap_or(0);
    let whole = nodes.checked_mul(nodes).is_some_and(|len| len <= matrix.len());
    let nodes = if whole { nodes } else { 0 };
    matrix.chunks_exact(nodes.max(1)).take(nodes)
}

/// Whether each node is at the local distance from itself, and farther from all others.
///
/// # Linux
/// `slit_valid` in `drivers/acpi/numa/srat.c`.
fn has_sane_distances(slit: &'static [u8]) -> bool {
    distance_rows(slit).enumerate().all(|(from, row)| {
        row.iter().enumerate().all(|(to, &distance)| {
            if from == to { distance == LOCAL_DISTANCE } else { distance > LOCAL_DISTANCE }
        })
    })
}

/// The records of a table: each starts with a byte for its type and one for its length.
fn records(table: &'static [u8], first: usize) -> impl Iterator<Item = &'static [u8]> + Clone {
    let mut rest = table.get(first..).unwrap_or(&[]);
    core::iter::from_fn(move || {
        let len = usize::from(*rest.get(1)?);
        let (record, behind) = rest.split_at_checked(len.max(2))?;
        rest = behind;
        Some(record)
    })
}

/// The table at a physical address, if its header fits, its length is sane and its bytes sum to zero.
///
/// # Safety
/// As for [`bytes`].
unsafe fn table(at: u64) -> Option<&'static [u8]> {
    // SAFETY: the caller vouches for what lies there.
    let header = unsafe { bytes(at, HEADER as u64)? };
    let len = u64::from(u32_at(header, 4)?);
    // SAFETY: the caller vouches for what lies there.
    let table = unsafe { bytes(at, len)? };
    (len >= HEADER as u64 && sums_to_zero(table)).then_some(table)
}

/// `len` bytes of physical memory, if the direct map goes so far.
///
/// # Safety
/// Nobody may write there as long as the kernel runs.
unsafe fn bytes(at: u64, len: u64) -> Option<&'static [u8]> {
    // SAFETY: the range is mapped; the caller vouches that nobody writes to it.
    is_mapped(at, len).then(|| unsafe { core::slice::from_raw_parts(direct_map(at), len as usize) })
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)) == 0
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
