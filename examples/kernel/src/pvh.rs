//! The PVH boot protocol: what the firmware hands over.
//!
//! `hvm_start_info` and the memory map it points to (xen/include/public/arch-x86/hvm/start_info.h) lie in memory that may
//! be given away later, so they are copied at once.

use core::ffi::{CStr, c_char};
use core::fmt;

use crate::paging::direct_map;

/// `hvm_start_info` starts with this number.
const MAGIC: u32 = 0x336e_c578;
/// Ranges that are kept; firmware gives about ten, and a line is printed if there were more.
const MAX_RANGES: usize = 128;
/// Bytes of the command line that are kept.
const MAX_COMMAND_LINE: usize = 256;

/// `struct hvm_start_info`, version 1.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawStartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawRange {
    base: u64,
    len: u64,
    kind: u32,
    reserved: u32,
}

/// What a range of physical addresses is, by the numbers of e820.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// RAM for the kernel to use.
    Usable,
    /// Not to be touched.
    Reserved,
    /// ACPI tables; RAM once they have been read.
    AcpiTables,
    /// ACPI's own storage.
    AcpiStorage,
    /// RAM with errors.
    Bad,
    /// A number that e820 did not have when this was written.
    Other(u32),
}

impl From<u32> for Kind {
    fn from(number: u32) -> Self {
        match number {
            1 => Self::Usable,
            2 => Self::Reserved,
            3 => Self::AcpiTables,
            4 => Self::AcpiStorage,
            5 => Self::Bad,
            other => Self::Other(other),
        }
    }
}

/// A range of physical addresses, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// The first byte.
    pub base: u64,
    /// The number of bytes.
    pub len: u64,
    /// What lies there.
    pub kind: Kind,
}

impl Range {
    /// The first byte after; saturates, as the firmware is not trusted.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.len)
    }
}

impl fmt::Display for Range {
    /// As Linux prints e820: the last byte, not the one after.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[mem {:#018x}-{:#018x}] ", self.base, self.end().wrapping_sub(1))?;
        match self.kind {
            Kind::Usable => f.write_str("usable"),
            Kind::Reserved => f.write_str("reserved"),
            Kind::AcpiTables => f.write_str("ACPI data"),
            Kind::AcpiStorage => f.write_str("ACPI NVS"),
            Kind::Bad => f.write_str("unusable"),
            Kind::Other(number) => write!(f, "type {number}"),
        }
    }
}

/// A copy of what the firmware handed over.
pub struct StartInfo {
    rsdp: u64,
    ranges: [Range; MAX_RANGES],
    range_count: usize,
    ranges_left_out: usize,
    command_line: [u8; MAX_COMMAND_LINE],
    command_line_len: usize,
}

impl StartInfo {
    /// Copies the start info at the physical address `at`; `None` if it is none, or has no memory map.
    ///
    /// # Safety
    /// `at` must be what the loader left in EBX, and nothing that it handed over may have been overwritten.
    pub unsafe fn read(at: u64) -> Option<Self> {
        // SAFETY: the loader points to a start info below 4 GiB, which is in the direct map.
        let raw = unsafe { direct_map::<RawStartInfo>(at).read_unaligned() };
        if raw.magic != MAGIC || raw.version == 0 || raw.memory_map_entries == 0 {
            return None;
        }
        let found = raw.memory_map_entries as usize;
        let mut info = Self {
            rsdp: raw.rsdp,
            ranges: [Range { base: 0, len: 0, kind: Kind::Reserved }; MAX_RANGES],
            range_count: found.min(MAX_RANGES),
            ranges_left_out: found.saturating_sub(MAX_RANGES),
            command_line: [0; MAX_COMMAND_LINE],
            command_line_len: 0,
        };
        let entries = direct_map::<RawRange>(raw.memory_map);
        for (index, range) in info.ranges[..info.range_count].iter_mut().enumerate() {
            // SAFETY: the loader's array has `memory_map_entries` elements.
            let entry = unsafe { entries.wrapping_add(index).read_unaligned() };
            *range = Range { base: entry.base, len: entry.len, kind: Kind::from(entry.kind) };
        }
        if raw.command_line != 0 {
            // SAFETY: the loader's command line ends with a zero byte.
            let text = unsafe { CStr::from_ptr(direct_map::<c_char>(raw.command_line)) }.to_bytes();
            info.command_line_len = text.len().min(MAX_COMMAND_LINE);
            info.command_line[..info.command_line_len].copy_from_slice(&text[..info.command_line_len]);
        }
        Some(info)
    }

    /// The physical address of ACPI's root pointer; 0 if there is none.
    pub fn rsdp(&self) -> u64 {
        self.rsdp
    }

    /// The memory map, in the firmware's order.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges[..self.range_count]
    }

    /// How many ranges did not fit.
    pub fn ranges_left_out(&self) -> usize {
        self.ranges_left_out
    }

    /// The words of the command line.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        let text = core::str::from_utf8(&self.command_line[..self.command_line_len]).unwrap_or_default();
        text.split(' ').filter(|word| !word.is_empty())
    }

    /// Whether `word` stands on the command line.
    pub fn has_option(&self, word: &str) -> bool {
        self.words().any(|found| found == word)
    }

    /// What stands on the command line behind `key`, such as `run=`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.words().find_map(|word| word.strip_prefix(key))
    }

    /// The number behind `key`.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.value(key)?.parse().ok()
    }
}
