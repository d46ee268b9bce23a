//! exec: a new program in place of the old.

use super::{exit, page_align};
use crate::addr::{PAGE_OFFSET_MASK, PAGE_SHIFT, PgOff, VirtAddr, VirtRange};
use crate::flags::{Prot, VmFlags};
use crate::mm::{Backing, Content, FileRef, Image, Mm, MmError, Rlimits, Tables};

/// A part of a program: a loadable segment of an ELF file, moved to where it will run.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// The first byte.
    pub addr: u64,
    /// How many bytes come from the file.
    pub file_len: u64,
    /// How many bytes there are; those beyond the file's are zero.
    pub mem_len: u64,
    /// Where in the file, in bytes; lies in its page as `addr` does in its own.
    pub offset: u64,
    /// The protection.
    pub prot: Prot,
    /// Whether it belongs to the program itself or to its interpreter, which does not move the heap.
    pub part: Part,
    /// The file.
    pub file: FileRef,
}

impl Segment {
    /// Nothing of a file, to be filled in.
    pub const fn empty(file: FileRef) -> Self {
        let part = Part::Program;
        Self { addr: 0, file_len: 0, mem_len: 0, offset: 0, prot: Prot::empty(), part, file }
    }
}

/// Whether a segment belongs to the program itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// To the program.
    Program,
    /// To the interpreter that the program names.
    Interpreter,
}

/// A program to be run.
#[derive(Clone, Copy, Debug)]
pub struct ExecImage<'a> {
    /// Its parts, in any order.
    pub segments: &'a [Segment],
    /// The end of the stack.
    pub stack_top: u64,
    /// Bytes of the arguments' text.
    pub arg_bytes: u64,
    /// Bytes of the environment's text.
    pub env_bytes: u64,
    /// Bytes below both: pointers to them, their count, the auxiliary vector.
    pub vector_bytes: u64,
    /// What may be done to the stack: reading and writing, and execution if the program asks for it
    /// ([`Elf::stack_prot`](super::Elf::stack_prot)).
    pub stack_prot: Prot,
    /// A random number that moves the base of placement, or 0 for none.
    pub seed: u64,
}

/// How much stack is mapped below the arguments from the start, in bytes.
const STACK_EXPAND: u64 = 128 << 10;

/// Loads a new program into `new`, an empty address space with tables of its own, and swaps it with the old one, which is
/// empty then. Sets the fields of [`Image`]; the limits are the old ones.
///
/// The memory is mapped; the contents of the last file page beyond the file's bytes, and the stack's, are the loader's to
/// write.
///
/// # Errors
/// [`MmError::InUse`] if there are VMAs in `new`; [`MmError::BadFlags`] for segments that overlap, wrap or do not lie in
/// their page as in the file; [`MmError::StackLimit`]; those of mapping. The old program is intact then (Linux would kill
/// it), and `new` is empty.
///
/// # Linux
/// `load_elf_binary` in `fs/binfmt_elf.c`, `setup_arg_pages` in `fs/exec.c` (6.18).
pub fn exec<'c, T: Tables>(
    mm: &mut Mm<'c>,
    tables: &mut T,
    new: &mut Mm<'c>,
    new_tables: &mut T,
    image: &ExecImage<'_>,
) -> Result<(), MmError> {
    replace(mm, tables, new, new_tables, image)?;
    exit(new, new_tables);
    Ok(())
}

/// As [`exec`], but `new` has the old program afterwards, and is the caller's to bring to its [end](exit()), when nobody walks its tables any more.
///
/// # Errors
/// As [`exec`].
///
/// # Linux
/// `exec_mmap` in `fs/exec.c`.
#[doc(alias = "exec_mmap")]
pub(crate) fn replace<'c, T: Tables>(
    mm: &mut Mm<'c>,
    tables: &mut T,
    new: &mut Mm<'c>,
    new_tables: &mut T,
    image: &ExecImage<'_>,
) -> Result<(), MmError> {
    if !new.vmas().is_empty() {
        return Err(MmError::InUse);
    }
    new.inherit(mm);
    new.set_image(Image::default());
    new.randomize_mmap_base(image.seed);
    match load(new, new_tables, image) {
        Ok(()) => {
            core::mem::swap(mm, new);
            core::mem::swap(tables, new_tables);
            Ok(())
        }
        Err(error) => {
            exit(new, new_tables);
            Err(error)
        }
    }
}

fn load(mm: &mut Mm<'_>, tables: &mut impl Tables, image: &ExecImage<'_>) -> Result<(), MmError> {
    let mut fields = Image { start_code: VirtAddr::MAX, ..Image::default() };
    let mut brk = 0;
    for segment in image.segments {
        load_segment(mm, tables, segment)?;
        if segment.part == Part::Interpreter {
            continue;
        }
        let file_end = VirtAddr::from(segment.addr + segment.file_len);
        fields.start_code = fields.start_code.min(VirtAddr::from(segment.addr));
        fields.start_data = fields.start_data.max(VirtAddr::from(segment.addr));
        fields.end_data = fields.end_data.max(file_end);
        if segment.prot.contains(Prot::EXEC) {
            fields.end_code = fields.end_code.max(file_end);
        }
        brk = brk.max(segment.addr + segment.mem_len);
    }
    fields.start_brk = VirtAddr::from(page_align(brk));
    fields.brk = fields.start_brk;
    map_stack(mm, tables, image, &mut fields)?;
    mm.set_image(fields);
    Ok(())
}

fn load_segment(mm: &mut Mm<'_>, tables: &mut impl Tables, segment: &Segment) -> Result<(), MmError> {
    let Segment { addr, file_len, mem_len, offset, .. } = *segment;
    let fits = addr.checked_add(mem_len).is_some_and(|end| end <= mm.sysctl().task_size)
        && offset.checked_add(file_len).is_some()
        && file_len <= mem_len
        && mem_len != 0
        && (addr ^ offset) & PAGE_OFFSET_MASK == 0;
    if !fits {
        return Err(MmError::BadFlags);
    }
    let flags = segment.prot.vm_flags() | VmFlags::MAY_ACCESS;
    let start = addr & !PAGE_OFFSET_MASK;
    let zero = if file_len == 0 { start } else { page_align(addr + file_len) };
    let end = page_align(addr + mem_len);
    if zero > start {
        let pgoff = PgOff::new(offset >> PAGE_SHIFT).ok_or(MmError::OffsetOverflow)?;
        map_free(mm, tables, start, zero, flags, Content::Backed(Backing::File(segment.file), pgoff))?;
    }
    if end > zero {
        map_free(mm, tables, zero, end, flags, Content::Anonymous)?;
    }
    Ok(())
}

/// The stack: the text of the environment and the arguments on top, the vectors below, and some room.
fn map_stack(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    image: &ExecImage<'_>,
    fields: &mut Image,
) -> Result<(), MmError> {
    let top = image.stack_top;
    let down = |from: u64, bytes: u64| from.checked_sub(bytes).ok_or(MmError::StackLimit);
    let env = down(top, image.env_bytes)?;
    let arg = down(env, image.arg_bytes)?;
    let stack = down(arg, image.vector_bytes)? & !15;
    let used = top - stack;
    let room = match mm.rlimits().stack {
        Rlimits::INFINITY => STACK_EXPAND,
        limit if used > limit => return Err(MmError::StackLimit),
        limit => STACK_EXPAND.min((limit - used) & !PAGE_OFFSET_MASK),
    };
    let start = down(stack & !PAGE_OFFSET_MASK, room)?;
    let flags = VmFlags::MAY_ACCESS | VmFlags::GROWSDOWN | image.stack_prot.vm_flags();
    map_free(mm, tables, start, page_align(top), flags, Content::Anonymous)?;
    if let Some(slot) = mm.lookup(VirtAddr::from(stack)) {
        mm.prepare_anon(slot)?;
    }
    fields.start_stack = VirtAddr::from(stack);
    (fields.arg_start, fields.arg_end) = (VirtAddr::from(arg), VirtAddr::from(env));
    (fields.env_start, fields.env_end) = (VirtAddr::from(env), VirtAddr::from(top));
    Ok(())
}

/// Maps where nothing may lie yet.
fn map_free(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    start: u64,
    end: u64,
    flags: VmFlags,
    content: Content,
) -> Result<(), MmError> {
    let range = VirtRange::new(VirtAddr::from(start), VirtAddr::from(end)).ok_or(MmError::BadFlags)?;
    if range.is_empty() || start < mm.sysctl().dac_mmap_min_addr || end > mm.sysctl().task_size {
        return Err(MmError::BadFlags);
    }
    if mm.find_vma_intersection(range.start(), range.end()).is_some() {
        return Err(MmError::BadFlags);
    }
    mm.map_region(tables, range, flags, content).map(drop)
}
