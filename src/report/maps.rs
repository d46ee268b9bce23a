//! `/proc/PID/maps`, the `VmFlags` line of `smaps`, `statm`, and the memory part of `status`.
//!
//! # Linux
//! `fs/proc/task_mmu.c` (6.18).

use core::fmt::{self, Write};

use crate::addr::{PAGE_OFFSET_MASK, PAGE_SHIFT};
use crate::flags::{VM_FLAG_CODES, VmFlags};
use crate::mm::{Backing, FileRef, Mm, RssKind, Vma};

/// What a file is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileName<'a> {
    /// The device's major number.
    pub major: u32,
    /// The device's minor number.
    pub minor: u32,
    /// The inode's number.
    pub inode: u64,
    /// The path; line feeds in it are shown as `\012`.
    pub path: &'a str,
}

/// Knows what files and pages of the kernel are called.
pub trait Names {
    /// What a file is called.
    fn file(&self, file: FileRef) -> FileName<'_>;

    /// What a mapping of the kernel's own is called, such as `[vdso]`.
    fn special(&self, id: u32) -> &str;

    /// What the file of a device is called: of [`Backing::Device`]. By default it is that of no file system, called as [`special`](Self::special) says.
    fn device(&self, id: u32) -> FileName<'_> {
        FileName { major: 0, minor: 0, inode: 0, path: self.special(id) }
    }
}

/// Files have the number of their place in the page cache, and no names: for who has no file system to ask.
impl Names for () {
    fn file(&self, file: FileRef) -> FileName<'_> {
        FileName { major: 0, minor: 0, inode: u64::from(file.file.0.get()), path: "" }
    }

    fn special(&self, _: u32) -> &str {
        ""
    }
}

/// What an anonymous VMA is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Label {
    /// The heap.
    Heap,
    /// The stack of the first thread.
    Stack,
}

impl Label {
    /// As `/proc/PID/maps` has it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Heap => "[heap]",
            Self::Stack => "[stack]",
        }
    }
}

/// What a VMA without a file is used for, as far as the fields of the image tell.
///
/// # Linux
/// `vma_is_initial_heap` and `vma_is_initial_stack` in `include/linux/mm.h`.
pub fn label(mm: &Mm<'_>, vma: &Vma) -> Option<Label> {
    let image = mm.image();
    if !vma.backing.is_anonymous() {
        None
    } else if vma.start < image.brk && vma.end > image.start_brk {
        Some(Label::Heap)
    } else if vma.start <= image.start_stack && vma.end >= image.start_stack {
        Some(Label::Stack)
    } else {
        None
    }
}

/// Writes `/proc/PID/maps`.
///
/// # Errors
/// The writer's.
pub fn maps(out: &mut impl Write, mm: &Mm<'_>, names: &impl Names) -> fmt::Result {
    mm.vmas().iter().try_for_each(|(_, vma)| maps_line(out, &vma, label(mm, &vma), names))
}

/// The column that names begin in.
pub(super) const NAME_COLUMN: usize = 73;

/// Writes a line of `/proc/PID/maps`.
///
/// # Errors
/// The writer's.
///
/// # Linux
/// `show_map_vma` and `show_vma_header_prefix`.
pub fn maps_line(out: &mut impl Write, vma: &Vma, label: Option<Label>, names: &impl Names) -> fmt::Result {
    let (file, name) = match vma.backing {
        Backing::File(file) => (Some(names.file(file)), ""),
        Backing::Device(id) => (Some(names.device(id)), ""),
        Backing::Special(id) => (None, names.special(id)),
        Backing::Anonymous => (None, label.map_or("", Label::text)),
    };
    let name = file.map_or(name, |file| file.path);
    let (major, minor, inode) = file.map_or((0, 0, 0), |file| (file.major, file.minor, file.inode));
    let offset = if file.is_some() { vma.pgoff.get() << PAGE_SHIFT } else { 0 };
    let letter = |flag, letter, none| if vma.flags.contains(flag) { letter } else { none };
    let mut out = Columns { out, column: 0 };
    write!(
        out,
        "{:08x}-{:08x} {}{}{}{} {offset:08x} {major:02x}:{minor:02x} {inode} ",
        vma.start.get(),
        vma.end.get(),
        letter(VmFlags::READ, 'r', '-'),
        letter(VmFlags::WRITE, 'w', '-'),
        letter(VmFlags::EXEC, 'x', '-'),
        letter(VmFlags::MAYSHARE, 's', 'p'),
    )?;
    if !name.is_empty() {
        // One blank at least, whatever the column.
        for _ in out.column..NAME_COLUMN.max(out.column + 1) {
            out.write_char(' ')?;
        }
        for char in name.chars() {
            if char == '\n' { out.write_str("\\012")? } else { out.write_char(char)? }
        }
    }
    out.write_char('\n')
}

/// Counts the columns of what passes through.
struct Columns<'a, W: Write> {
    out: &'a mut W,
    column: usize,
}

impl<W: Write> Write for Columns<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.column += text.len();
        self.out.write_str(text)
    }
}

/// Writes the `VmFlags` line of `/proc/PID/smaps`.
///
/// # Errors
/// The writer's.
///
/// # Linux
/// `show_smap_vma_flags`.
pub fn vm_flags(out: &mut impl Write, flags: VmFlags) -> fmt::Result {
    out.write_str("VmFlags: ")?;
    for (_, code) in VM_FLAG_CODES.iter().filter(|(flag, _)| flags.contains(*flag)) {
        write!(out, "{code} ")?;
    }
    out.write_char('\n')
}

/// Writes `/proc/PID/statm`, in pages: all, resident, resident and shared, code, 0, data and stack, 0.
///
/// # Errors
/// The writer's.
///
/// # Linux
/// `task_statm`, and `proc_pid_statm` in `fs/proc/array.c`.
pub fn statm(out: &mut impl Write, mm: &Mm<'_>) -> fmt::Result {
    let (totals, shared) = (mm.totals(), mm.shared());
    writeln!(
        out,
        "{} {} {} {} 0 {} 0",
        totals.total_vm,
        shared.resident(),
        shared.rss(RssKind::File).saturating_add(shared.rss(RssKind::Shmem)),
        text_bytes(mm) >> PAGE_SHIFT,
        totals.data_vm + totals.stack_vm,
    )
}

/// The code of the program, in whole pages.
fn text_bytes(mm: &Mm<'_>) -> u64 {
    let image = mm.image();
    let end = image.end_code.get().wrapping_add(PAGE_OFFSET_MASK) & !PAGE_OFFSET_MASK;
    end.saturating_sub(image.start_code.get() & !PAGE_OFFSET_MASK)
}

/// Writes the lines `VmPeak` to `VmSwap` of `/proc/PID/status`. Nothing can be pinned.
///
/// # Errors
/// The writer's.
///
/// # Linux
/// `task_mem`.
pub fn status(out: &mut impl Write, mm: &Mm<'_>) -> fmt::Result {
    let (totals, shared) = (mm.totals(), mm.shared());
    let kib = |pages: u64| pages << (PAGE_SHIFT - 10);
    let rss = |kind| kib(shared.rss(kind));
    let text = text_bytes(mm).min(totals.exec_vm << PAGE_SHIFT);
    let library = (totals.exec_vm << PAGE_SHIFT) - text;
    let lines = [
        ("VmPeak", kib(mm.peak_vm())),
        ("VmSize", kib(totals.total_vm)),
        ("VmLck", kib(totals.locked_vm)),
        ("VmPin", 0),
        ("VmHWM", kib(shared.peak_resident())),
        ("VmRSS", kib(shared.resident())),
        ("RssAnon", rss(RssKind::Anon)),
        ("RssFile", rss(RssKind::File)),
        ("RssShmem", rss(RssKind::Shmem)),
        ("VmData", kib(totals.data_vm)),
        ("VmStk", kib(totals.stack_vm)),
        ("VmExe", text >> 10),
        ("VmLib", library >> 10),
        ("VmPTE", shared.table_bytes() >> 10),
        ("VmSwap", rss(RssKind::Swap)),
    ];
    lines.iter().try_for_each(|(name, value)| writeln!(out, "{name}:\t{value:>8} kB"))
}

#[cfg(test)]
mod tests;
