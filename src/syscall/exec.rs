//! exec: a new program in place of the old.

use super::mmap::round_hint;
use super::{exit, page_align, range};
use crate::addr::{PAGE_OFFSET_MASK, PAGE_SHIFT, PAGE_SIZE_U64, PgOff, VirtAddr, VirtRange};
use crate::flags::{Prot, VmFlags};
use crate::mm::{Backing, Content, Exact, FileRef, Image, Mm, MmError, Sharing, Tables, Window, Wish};

/// A loadable segment of a program, as its headers have it: its addresses may be moved when it is loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
}

impl Segment {
    /// Nothing, to be filled in.
    pub const EMPTY: Self = Self { addr: 0, file_len: 0, mem_len: 0, offset: 0, prot: Prot::empty() };

    /// Where its first page begins, moved by `bias`.
    fn start(&self, bias: u64) -> u64 {
        self.addr.wrapping_add(bias) & !PAGE_OFFSET_MASK
    }

    /// Where the bytes from the file end, moved by `bias`.
    pub(crate) const fn file_end(&self, bias: u64) -> u64 {
        self.addr.wrapping_add(self.file_len).wrapping_add(bias)
    }

    /// Whether a byte of the page at `page`, which begins there, is this segment's.
    pub(crate) fn covers(&self, bias: u64, page: u64) -> bool {
        self.mem_len != 0
            && page >= self.start(bias)
            && page < self.addr.wrapping_add(self.mem_len).wrapping_add(bias)
    }

    /// Whether it lies below `task_size` when it is moved by `bias`.
    fn fits(&self, task_size: u64, bias: u64) -> bool {
        let end = self.addr.wrapping_add(bias).checked_add(self.mem_len);
        self.file_len <= self.mem_len && end.is_some_and(|end| end <= task_size)
    }
}

/// Where a program wants to lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ElfType {
    /// Where its headers say.
    #[doc(alias = "ET_EXEC")]
    Fixed,
    /// Anywhere.
    #[doc(alias = "ET_DYN")]
    Relocatable,
}

/// A file to be loaded: a program or an interpreter.
#[derive(Clone, Copy, Debug)]
pub struct Binary<'a> {
    /// The file.
    pub file: FileRef,
    /// Where it wants to lie.
    pub kind: ElfType,
    /// What its address shall be a multiple of, in bytes: a power of two, of a page at least, or 0 for anything. Interpreters do not get it.
    pub align: u64,
    /// Its segments. A page that two of them share is the later one's.
    pub segments: &'a [Segment],
}

impl Binary<'_> {
    /// From the first page of the first segment to the last byte of the last; 0 if there are none.
    #[doc(alias = "total_mapping_size")]
    fn span(&self) -> Result<u64, MmError> {
        let start = self.segments.iter().map(|segment| segment.start(0)).min().unwrap_or(0);
        let ends = self.segments.iter().map(|segment| segment.addr.checked_add(segment.mem_len));
        let end = ends.max().flatten().unwrap_or(0);
        let all_end = self.segments.iter().all(|segment| segment.addr.checked_add(segment.mem_len).is_some());
        match end.checked_sub(start).and_then(|len| len.checked_next_multiple_of(PAGE_SIZE_U64)) {
            Some(len) if all_end => Ok(len),
            _ => Err(MmError::BadSegment),
        }
    }
}

/// The stack of a new program, from its end downwards. [`Vectors::stack`](super::Vectors::stack) fills it in.
#[derive(Clone, Copy, Debug)]
pub struct StackImage {
    /// Where it ends: [`Mm::stack_top`].
    pub top: u64,
    /// Bytes of the program's path, below 8 bytes of zeros.
    pub path_bytes: u64,
    /// Bytes of the environment's texts, below it.
    pub env_bytes: u64,
    /// Bytes of the arguments' texts.
    pub arg_bytes: u64,
    /// Bytes of what lies below all of them and a multiple of 16: pointers to them, their count, the auxiliary vector.
    pub vector_bytes: u64,
    /// What may be done to it: reading and writing, and execution if the program asks for it ([`Elf::stack_prot`](super::Elf::stack_prot)).
    pub prot: Prot,
}

impl StackImage {
    /// Where the program's path begins, the environment's texts, and those of the arguments, from the end of the stack downwards.
    fn texts(&self) -> Option<[u64; 3]> {
        let path = self.top.checked_sub(self.path_bytes)?.checked_sub(size_of::<u64>() as u64)?;
        let env = path.checked_sub(self.env_bytes)?;
        Some([path, env, env.checked_sub(self.arg_bytes)?])
    }

    /// Whether the texts fit in a stack with this limit. The first page is there, however small that is.
    pub(crate) fn texts_fit(&self, limit: u64) -> bool {
        let bytes = |arg: u64| page_align(self.top).wrapping_sub(arg & !PAGE_OFFSET_MASK);
        self.texts().is_some_and(|[.., arg]| bytes(arg) <= limit.max(PAGE_SIZE_U64))
    }
}

/// A program to be run.
#[derive(Clone, Copy, Debug)]
pub struct ExecImage<'a> {
    /// The program.
    pub program: Binary<'a>,
    /// The interpreter that it asks for.
    pub interpreter: Option<Binary<'a>>,
    /// Its stack.
    pub stack: StackImage,
    /// A random number that moves the base of placement, the program and its heap, or 0 for none.
    pub seed: u64,
}

/// By how much addresses were moved, modulo 2^64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoadBias {
    /// Those of the program.
    #[doc(alias = "load_bias")]
    pub program: u64,
    /// Those of its interpreter, if it has one.
    #[doc(alias = "interp_load_addr")]
    pub interpreter: Option<u64>,
}

/// How much stack is mapped below the texts from the start, in bytes.
const STACK_EXPAND: u64 = 128 << 10;

/// Loads a new program into `new`, an empty address space with tables of its own, and swaps it with the old one, which is
/// empty then. Sets the fields of [`Image`]; the limits and the layout are the old ones. Answers where the parts lie.
///
/// A program that may lie anywhere goes below [`Mm::mmap_base`] if it has no interpreter, else to two thirds of the addresses; its interpreter goes below
/// [`Mm::mmap_base`].
///
/// The memory is mapped; the contents of the last file page beyond the file's bytes, and the stack's, are the loader's to
/// write.
///
/// # Errors
/// [`MmError::InUse`] if there are VMAs in `new`; [`MmError::BadSegment`] for segments that wrap, leave the addresses, have more bytes in the file than in
/// memory or do not lie in their page as in the file; [`MmError::OffsetOverflow`] for those that lie beyond what a file may have; [`MmError::Exists`] for a program that wants to lie where the stack does; [`MmError::StackLimit`]; those of
/// mapping. The old program is intact then (Linux would kill it), and `new` is empty.
///
/// # Linux
/// `load_elf_binary` in `fs/binfmt_elf.c`, `setup_arg_pages` in `fs/exec.c` (6.18).
pub fn exec<'c, T: Tables>(
    mm: &mut Mm<'c>,
    tables: &mut T,
    new: &mut Mm<'c>,
    new_tables: &mut T,
    image: &ExecImage<'_>,
) -> Result<LoadBias, MmError> {
    let bias = replace(mm, tables, new, new_tables, image)?;
    exit(new, new_tables);
    Ok(bias)
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
) -> Result<LoadBias, MmError> {
    if !new.vmas().is_empty() {
        return Err(MmError::InUse);
    }
    new.inherit(mm);
    let bias = load_new(new, new_tables, image)?;
    core::mem::swap(mm, new);
    core::mem::swap(tables, new_tables);
    Ok(bias)
}

/// Loads a program into an address space, and its tables, that nothing is mapped in.
///
/// # Errors
/// As [`exec`]; nothing is mapped there then.
pub(crate) fn load_new(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    image: &ExecImage<'_>,
) -> Result<LoadBias, MmError> {
    if !mm.vmas().is_empty() {
        return Err(MmError::InUse);
    }
    mm.set_image(Image::default());
    mm.randomize_mmap_base(image.seed);
    load(mm, tables, image).inspect_err(|_| exit(mm, tables))
}

fn load(mm: &mut Mm<'_>, tables: &mut impl Tables, image: &ExecImage<'_>) -> Result<LoadBias, MmError> {
    // First, so that nothing that is placed comes too near.
    let stack = map_stack(mm, tables, &image.stack)?;
    let has_interpreter = image.interpreter.is_some();
    let program = load_program(mm, tables, image)?;
    let interpreter = match &image.interpreter {
        Some(binary) => Some(load_interpreter(mm, tables, binary, program)?),
        None => None,
    };
    let fields = parts(&image.program, program, stack);
    // The heap grows upwards: beside an interpreter it would soon meet something.
    let is_moved = image.program.kind == ElfType::Relocatable && !has_interpreter;
    let mut brk = if is_moved { page_align(mm.dyn_base()) } else { page_align(fields.brk.get()) };
    if image.seed != 0 {
        let gap = if is_moved { 0 } else { PAGE_SIZE_U64 };
        brk = brk.saturating_add(gap).saturating_add(mm.heap_shift(image.seed));
    }
    let brk = VirtAddr::from(brk);
    mm.set_image(Image { start_brk: brk, brk, ..fields });
    Ok(LoadBias { program, interpreter })
}

/// Where the program's code and data lie; the heap would begin at `brk`.
fn parts(program: &Binary<'_>, bias: u64, stack: Image) -> Image {
    let (mut start_code, mut end_code, mut start_data, mut end_data, mut brk) = (u64::MAX, 0, 0, 0, 0);
    for segment in program.segments {
        let (start, end) = (segment.addr, segment.file_end(0));
        if segment.prot.contains(Prot::EXEC) {
            (start_code, end_code) = (start.min(start_code), end.max(end_code));
        }
        (start_data, end_data) = (start.max(start_data), end.max(end_data));
        brk = segment.addr.wrapping_add(segment.mem_len).max(brk);
    }
    let moved = |addr: u64| VirtAddr::from(addr.wrapping_add(bias));
    Image {
        start_code: moved(start_code),
        end_code: moved(end_code),
        start_data: moved(start_data),
        end_data: moved(end_data),
        brk: moved(brk),
        ..stack
    }
}

fn load_program(mm: &mut Mm<'_>, tables: &mut impl Tables, image: &ExecImage<'_>) -> Result<u64, MmError> {
    let program = &image.program;
    let Some(first) = program.segments.first() else { return Ok(0) };
    let task_size = mm.sysctl().task_size;
    if !program.segments.iter().all(|segment| segment.fits(task_size, 0)) {
        return Err(MmError::BadSegment);
    }
    // Without an alignment not even to a page.
    let align = program.align.max(1);
    let aligned = |addr: u64| (addr & !(align - 1)).wrapping_sub(first.addr) & !PAGE_OFFSET_MASK;
    let (bias, reserved) = match (program.kind, &image.interpreter) {
        // Holes between its segments are nobody's.
        (ElfType::Fixed, _) => (0, page_align(first.addr + first.mem_len) - first.start(0)),
        (ElfType::Relocatable, Some(_)) => (aligned(mm.dyn_program_base(image.seed)), program.span()?),
        (ElfType::Relocatable, None) => {
            let addr = unmapped_area(mm, program, first, 0)?;
            let bias = if align <= PAGE_SIZE_U64 { addr.wrapping_sub(first.start(0)) } else { aligned(addr) };
            (bias, program.span()?)
        }
    };
    let start = VirtAddr::from(first.start(bias));
    let end = start.checked_add(reserved).ok_or(MmError::BadSegment)?;
    if mm.find_vma_intersection(start, end).is_some() {
        return Err(MmError::Exists);
    }
    program.segments.iter().try_for_each(|segment| load_segment(mm, tables, program.file, segment, bias))?;
    Ok(bias)
}

/// Loads the interpreter of a program that was moved by `program`.
///
/// # Linux
/// `load_elf_interp` in `fs/binfmt_elf.c`.
fn load_interpreter(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    binary: &Binary<'_>,
    program: u64,
) -> Result<u64, MmError> {
    let first = binary.segments.first().ok_or(MmError::BadSegment)?;
    let bias = match binary.kind {
        ElfType::Fixed => 0,
        ElfType::Relocatable => {
            // Beside a program that lies where it says, the interpreter may too.
            let hint = if program == 0 { first.addr } else { 0 };
            unmapped_area(mm, binary, first, hint)?.wrapping_sub(first.start(0))
        }
    };
    binary.segments.iter().try_for_each(|segment| load_segment(mm, tables, binary.file, segment, bias))?;
    Ok(bias)
}

/// Room for all of a binary, of which the first segment is looked at as mmap would.
fn unmapped_area(mm: &mut Mm<'_>, binary: &Binary<'_>, first: &Segment, hint: u64) -> Result<u64, MmError> {
    let wish = Wish {
        addr: round_hint(hint, mm.sysctl().mmap_min_addr),
        len: binary.span()?.max(PAGE_SIZE_U64),
        file: Some(binary.file.kind),
        pgoff: first.offset >> PAGE_SHIFT,
        sharing: Sharing::Private,
        exact: Exact::Hint,
        window: Window::Layout,
    };
    Ok(mm.get_unmapped_area(&wish)?.get())
}

/// Maps a segment, over what lies there.
///
/// # Linux
/// `elf_load` in `fs/binfmt_elf.c`; `vm_brk_flags` in `mm/vma.c` for the zeros, which may be written whatever the segment says.
fn load_segment(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    file: FileRef,
    segment: &Segment,
    bias: u64,
) -> Result<(), MmError> {
    let Segment { file_len, mem_len, offset, prot, .. } = *segment;
    if !segment.fits(mm.sysctl().task_size, bias) {
        return Err(MmError::BadSegment);
    }
    let addr = segment.addr.wrapping_add(bias);
    let start = segment.start(bias);
    let zero = if file_len == 0 { start } else { page_align(addr + file_len) };
    let end = page_align(addr + mem_len);
    if file_len != 0 {
        if (addr ^ offset) & PAGE_OFFSET_MASK != 0 {
            return Err(MmError::BadSegment);
        }
        // No file is longer.
        let pages = (zero - start) >> PAGE_SHIFT;
        let pgoff = PgOff::new(offset >> PAGE_SHIFT).ok_or(MmError::OffsetOverflow)?;
        if pgoff.get().checked_add(pages).is_none_or(|end| end > i64::MAX as u64 >> PAGE_SHIFT) {
            return Err(MmError::OffsetOverflow);
        }
        let flags = mm.access_flags(prot) | VmFlags::MAY_ACCESS;
        map_exactly(mm, tables, start, zero, flags, Content::Backed(Backing::File(file), pgoff))?;
    }
    // Bytes behind those of the file in their last page come with it.
    if mem_len > file_len && end > zero {
        let exec = if prot.contains(Prot::EXEC) { VmFlags::EXEC } else { VmFlags::empty() };
        map_exactly(mm, tables, zero, end, VmFlags::DATA_DEFAULT | exec, Content::Anonymous)?;
    }
    Ok(())
}

/// The stack: the texts on top, the vectors below, and some room. Answers with the fields that say where they lie.
///
/// # Linux
/// `setup_arg_pages` and `get_arg_page` in `fs/exec.c`, `create_elf_tables` in `fs/binfmt_elf.c`.
fn map_stack(mm: &mut Mm<'_>, tables: &mut impl Tables, stack: &StackImage) -> Result<Image, MmError> {
    let (limit, top) = (mm.rlimits().stack, page_align(stack.top));
    let [env_end, env, arg] = stack.texts().ok_or(MmError::StackLimit)?;
    let down = |from: u64, bytes: u64| from.checked_sub(bytes).ok_or(MmError::StackLimit);
    let pointer = down(arg & !15, stack.vector_bytes)? & !15;
    if top < stack.top || !stack.texts_fit(limit) {
        return Err(MmError::StackLimit);
    }
    let texts = top - (arg & !PAGE_OFFSET_MASK);
    let room = (limit & !PAGE_OFFSET_MASK).min(texts.saturating_add(STACK_EXPAND));
    let mut start = down(top, texts.max(room))?;
    if pointer < start {
        start = pointer & !PAGE_OFFSET_MASK;
        if top - start > limit {
            return Err(MmError::StackLimit);
        }
    }
    let flags = VmFlags::MAY_ACCESS | VmFlags::GROWSDOWN | stack.prot.vm_flags();
    map_exactly(mm, tables, start, top, flags, Content::Anonymous)?;
    if let Some(slot) = mm.lookup(VirtAddr::from(pointer)) {
        mm.prepare_anon(slot)?;
    }
    Ok(Image {
        start_stack: VirtAddr::from(pointer),
        arg_start: VirtAddr::from(arg),
        arg_end: VirtAddr::from(env),
        env_start: VirtAddr::from(env),
        env_end: VirtAddr::from(env_end),
        ..Image::default()
    })
}

/// Maps exactly there, over what lies there.
fn map_exactly(
    mm: &mut Mm<'_>,
    tables: &mut impl Tables,
    start: u64,
    end: u64,
    flags: VmFlags,
    content: Content,
) -> Result<(), MmError> {
    let range: VirtRange = range(start, end).filter(|range| !range.is_empty()).ok_or(MmError::BadSegment)?;
    mm.get_unmapped_area(&Wish {
        addr: start,
        len: range.len(),
        file: None,
        pgoff: 0,
        sharing: Sharing::Private,
        exact: Exact::Fixed,
        window: Window::Layout,
    })?;
    mm.map_region(tables, range, flags, content).map(drop)
}
