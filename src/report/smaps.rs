//! `/proc/PID/smaps` and `smaps_rollup`.
//!
//! # Linux
//! `show_smap`, `__show_smap` and `show_smaps_rollup` in `fs/proc/task_mmu.c` (6.18).

use core::fmt::{self, Write};

use super::maps::{NAME_COLUMN, Names, label, maps_line, vm_flags};
use crate::addr::PAGE_SIZE_U64;
use crate::fault::MemUsage;
use crate::mm::{Mm, ProtectionKeys, Vma};

/// Whose lines are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    /// A VMA's.
    Vma,
    /// The sum's.
    Rollup,
}

/// Writes `/proc/PID/smaps`; `usage` answers what the pages of a VMA come to.
///
/// # Errors
/// The writer's.
pub fn smaps(
    out: &mut impl Write,
    mm: &Mm<'_>,
    names: &impl Names,
    mut usage: impl FnMut(&Vma) -> MemUsage,
) -> fmt::Result {
    mm.vmas().iter().try_for_each(|(_, vma)| {
        maps_line(out, &vma, label(mm, &vma), names)?;
        line(out, "Size", vma.end.get() - vma.start.get())?;
        line(out, "KernelPageSize", PAGE_SIZE_U64)?;
        line(out, "MMUPageSize", PAGE_SIZE_U64)?;
        write(out, &usage(&vma), Lines::Vma)?;
        writeln!(out, "THPeligible:    {:>8}", u8::from(vma.may_be_huge(mm.sysctl().huge_pages)))?;
        if mm.sysctl().protection_keys == ProtectionKeys::Present {
            writeln!(out, "ProtectionKey:  {:>8}", vma.protection_key())?;
        }
        vm_flags(out, vma.flags)
    })
}

/// Writes `/proc/PID/smaps_rollup`: the sums of all VMAs.
///
/// # Errors
/// The writer's.
pub fn smaps_rollup(out: &mut impl Write, mm: &Mm<'_>, usage: &MemUsage) -> fmt::Result {
    let (mut start, mut end) = (None, 0);
    for (_, vma) in mm.vmas().iter() {
        start = start.or(Some(vma.start.get()));
        end = vma.end.get();
    }
    let mut columns = 0;
    let mut count = Counted { out, columns: &mut columns };
    write!(count, "{:08x}-{end:08x} ---p 00000000 00:00 0 ", start.unwrap_or(0))?;
    let blanks = NAME_COLUMN.saturating_sub(columns).max(1);
    writeln!(out, "{:blanks$}[rollup]", "")?;
    write(out, usage, Lines::Rollup)
}

struct Counted<'a, W: Write> {
    out: &'a mut W,
    columns: &'a mut usize,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        *self.columns += text.len();
        self.out.write_str(text)
    }
}

fn write(out: &mut impl Write, usage: &MemUsage, lines: Lines) -> fmt::Result {
    line(out, "Rss", usage.resident)?;
    line(out, "Pss", usage.pss())?;
    line(out, "Pss_Dirty", usage.pss_dirty())?;
    if lines == Lines::Rollup {
        line(out, "Pss_Anon", usage.pss_anon())?;
        line(out, "Pss_File", usage.pss_file())?;
        line(out, "Pss_Shmem", usage.pss_shmem())?;
    }
    let rest = [
        ("Shared_Clean", usage.shared_clean),
        ("Shared_Dirty", usage.shared_dirty),
        ("Private_Clean", usage.private_clean),
        ("Private_Dirty", usage.private_dirty),
        ("Referenced", usage.referenced),
        ("Anonymous", usage.anonymous),
        ("KSM", 0),
        ("LazyFree", usage.lazy_free),
        ("AnonHugePages", usage.anonymous_huge),
        ("ShmemPmdMapped", 0),
        ("FilePmdMapped", 0),
        ("Shared_Hugetlb", 0),
        ("Private_Hugetlb", 0),
        ("Swap", usage.swap),
        ("SwapPss", usage.swap),
        ("Locked", usage.pss_locked()),
    ];
    rest.iter().try_for_each(|&(name, bytes)| line(out, name, bytes))
}

/// A line: the name, padded, and kB. Nothing is padded in a name's column of 16 twice: the number has eight places of its own.
fn line(out: &mut impl Write, name: &str, bytes: u64) -> fmt::Result {
    let blanks = 15_usize.saturating_sub(name.len());
    writeln!(out, "{name}:{:blanks$}{:>8} kB", "", bytes >> 10)
}
