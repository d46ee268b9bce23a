//! exec of an ELF file: its segments are mapped, and read when they are touched.

use core::borrow::Borrow;
use core::fmt;

use lock_api::RawRwLock;

use super::file::{File, TransferError};
use super::process::{Process, Refused};
use crate::addr::{PAGE_OFFSET_MASK, PAGE_SIZE, PAGE_SIZE_U64, VirtAddr};
use crate::cache::CacheError;
use crate::error::Errno;
use crate::flags::Prot;
use crate::mm::{Mm, MmError};
use crate::phys::PageSource;
use crate::syscall::{self, Elf, ElfError, ElfMachine, ExecImage, LoadBias, Segment, Vectors, aux};
use crate::table::EntryFormat;

/// A program to be run.
#[derive(Clone, Copy, Debug)]
pub struct Program<'p> {
    /// For which machine.
    pub machine: ElfMachine,
    /// The path that it is called by.
    #[doc(alias = "AT_EXECFN")]
    pub path: &'p [u8],
    /// The arguments, its name first.
    pub args: &'p [&'p [u8]],
    /// The environment.
    pub env: &'p [&'p [u8]],
    /// What else it is told: keys of the auxiliary vector that are the embedder's to know, such as `AT_HWCAP`, `AT_UID` and `AT_SECURE`, with their values.
    pub aux: &'p [(u64, u64)],
    /// 16 random bytes for the program's own use.
    pub random: [u8; 16],
    /// A random number that moves the stack, the base of placement, the program and its heap, or 0 for none.
    pub seed: u64,
}

impl<'p> Program<'p> {
    /// A program for `machine` with these arguments, called by the first of them, without an environment and without randomness.
    pub const fn new(machine: ElfMachine, args: &'p [&'p [u8]]) -> Self {
        let path = if let [first, ..] = args { *first } else { b"" };
        Self { machine, path, args, env: &[], aux: &[], random: [0; 16], seed: 0 }
    }
}

/// Where a new program begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// Its first instruction.
    pub entry: VirtAddr,
    /// Its stack pointer: the number of its arguments lies there.
    pub stack: VirtAddr,
}

/// Why a program does not run. The old one is intact.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ExecError {
    /// The file is none that can be run.
    Elf(ElfError),
    /// The file of the interpreter that the program asks for could not be opened.
    NoInterpreter(Errno),
    /// The interpreter is none.
    Interpreter(ElfError),
    /// A file ends before what it must have: a name of an interpreter, or an interpreter's header.
    CutShort,
    /// The first instruction does not lie in the user's addresses.
    BadEntry,
    /// The file could not be read.
    File(CacheError),
    /// The segments or the stack could not be mapped.
    Map(MmError),
    /// The new program's memory could not be written.
    Memory(Refused),
    /// The arguments and the environment are too long.
    TooLong,
}

impl ExecError {
    /// Linux's number.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Elf(error) => error.errno(),
            Self::NoInterpreter(errno) => errno,
            Self::Interpreter(_) => Errno::ELIBBAD,
            Self::CutShort => Errno::EIO,
            Self::BadEntry => Errno::EINVAL,
            Self::File(error) => error.errno(),
            Self::Map(error) => error.errno(),
            Self::Memory(refused) => TransferError::User(refused).errno(),
            Self::TooLong => Errno::E2BIG,
        }
    }
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(error) => error.fmt(f),
            Self::NoInterpreter(errno) => write!(f, "the interpreter cannot be opened: {errno}"),
            Self::Interpreter(error) => write!(f, "the interpreter cannot be run: {error}"),
            Self::CutShort => f.write_str("a file ends too early"),
            Self::BadEntry => f.write_str("the first instruction lies outside the user's addresses"),
            Self::File(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
            Self::Memory(refused) => refused.fmt(f),
            Self::TooLong => f.write_str("the arguments and the environment are too long"),
        }
    }
}

impl core::error::Error for ExecError {}

impl From<ElfError> for ExecError {
    fn from(error: ElfError) -> Self {
        Self::Elf(error)
    }
}

impl From<MmError> for ExecError {
    fn from(error: MmError) -> Self {
        Self::Map(error)
    }
}

impl From<CacheError> for ExecError {
    fn from(error: CacheError) -> Self {
        Self::File(error)
    }
}

/// However small the stack may be, arguments may have so many bytes.
///
/// # Linux
/// `ARG_MAX` in `include/uapi/linux/limits.h`, for `bprm_stack_limits` in `fs/exec.c`.
const ARG_MIN: u64 = 128 << 10;
/// However large, no more than so many.
///
/// # Linux
/// `_STK_LIM / 4 * 3`.
const ARG_MAX: u64 = 6 << 20;
/// The longest argument, in bytes.
#[doc(alias = "MAX_ARG_STRLEN")]
const TEXT_MAX: u64 = 128 << 10;

/// For [`Process::exec_elf`]: there are no interpreters.
///
/// # Errors
/// ENOENT.
pub const fn no_interpreter<'v, 'a, S: PageSource, F: EntryFormat>(
    _path: &[u8],
) -> Result<File<'v, 'a, S, F>, Errno> {
    Err(Errno::ENOENT)
}

impl<'v, 'a, S: PageSource, F: EntryFormat, L: RawRwLock> Process<'v, 'a, S, F, L> {
    /// Runs an ELF file in place of the old program. Its segments are mapped from the file, and nothing of them is read before it is touched but
    /// what is needed here: the headers, and the page that file and zeros share.
    ///
    /// If the program asks for an interpreter, `open` gets its path, without a 0, and answers with the file, open for reading, or why it cannot be run (ENOENT, EACCES, …);
    /// [`no_interpreter`] is for those who have none. The interpreter is loaded beside the program, and begins in its place.
    ///
    /// The caller's other threads are gone before; what the CPUs walk is the caller's to set with [`activate`](Self::activate).
    ///
    /// ```
    /// use kernmm::error::Errno;
    /// use kernmm::memory::{ExecError, File, Process, Program, Start};
    /// use kernmm::phys::PageSource;
    /// use kernmm::syscall::ElfMachine;
    ///
    /// fn execve<'v, 'a, S: PageSource>(
    ///     process: &Process<'v, 'a, S>,
    ///     open: impl Fn(&[u8]) -> Result<File<'v, 'a, S>, Errno>,
    ///     path: &[u8],
    ///     args: &[&[u8]],
    ///     env: &[&[u8]],
    /// ) -> Result<Start, Errno> {
    ///     let program = Program { path, env, ..Program::new(ElfMachine::X86_64, args) };
    ///     process.exec_elf(&open(path)?, &program, open).map_err(ExecError::errno)
    /// }
    /// ```
    ///
    /// # Errors
    /// [`ExecError`]; the old program is intact then. [`MmError::OutOfSpaces`] where all address spaces are in use: the new program takes one before the old one
    /// gives its back.
    ///
    /// # Locking
    /// Takes the address space's lock, and not while it waits for a file or calls `open`.
    ///
    /// # Linux
    /// `load_elf_binary` in `fs/binfmt_elf.c` (6.18), and `bprm_mm_init` in `fs/exec.c`, which makes the other address space there. A file with fewer segments, one more check: headers lie in the first page.
    #[doc(alias = "execve")]
    pub fn exec_elf<I: Borrow<File<'v, 'a, S, F>>>(
        &self,
        file: &File<'v, 'a, S, F>,
        program: &Program<'_>,
        open: impl FnOnce(&[u8]) -> Result<I, Errno>,
    ) -> Result<Start, ExecError> {
        let mut page = [0; PAGE_SIZE];
        let elf = Elf::parse(read_head(file, &mut page)?, program.machine)?;
        let interpreter = match elf.interpreter()? {
            None => None,
            Some(name) => {
                let path = read_path(file, name, &mut page)?;
                let opened = open(path).map_err(ExecError::NoInterpreter)?;
                let elf = interpreter_headers(opened.borrow(), program.machine, &mut page)?;
                Some((opened, elf))
            }
        };
        // All is made beside the old program, which ends only when nothing can fail any more.
        let next = {
            let mm = self.with(Mm::new_child)?;
            Self::with_mm(self.vm(), mm)?
        };
        let interpreter = interpreter.as_ref().map(|(file, elf)| (file.borrow(), elf));
        let start = next.load(program, (file, &elf), interpreter)?;
        self.exchange(&next);
        Ok(start)
    }

    /// Fills an empty process with a program.
    fn load(
        &self,
        program: &Program<'_>,
        (file, elf): (&File<'v, 'a, S, F>, &Elf),
        interpreter: Option<(&File<'v, 'a, S, F>, &Elf)>,
    ) -> Result<Start, ExecError> {
        let (limit, top) = self.with(|mm| (mm.rlimits().stack, mm.stack_top(program.seed)));
        // Where everything lies is known later; that there is room for it must be known now.
        let nowhere = auxiliary(elf, LoadBias { program: 0, interpreter: None });
        let vectors = program.vectors(&nowhere);
        let stack = vectors.stack(top.get(), elf.stack_prot());
        let fits = vectors.longest() <= TEXT_MAX && stack.texts_fit(limit);
        if !fits || vectors.counted_bytes() > (limit / 4).clamp(ARG_MIN, ARG_MAX) {
            return Err(ExecError::TooLong);
        }
        let image = ExecImage {
            program: elf.binary(file.reference()),
            interpreter: interpreter.map(|(file, elf)| elf.binary(file.reference())),
            stack,
            seed: program.seed,
        };
        let bias = self.call(|mm, pages| syscall::load_new(mm, pages, &image))?;
        let above = interpreter.map(|(_, interpreter)| interpreter.segments()).zip(bias.interpreter);
        self.zero_tails(elf.segments(), bias.program, above)?;
        let mut entry = elf.entry(bias.program);
        if let (Some((_, interpreter)), Some(bias)) = (interpreter, bias.interpreter) {
            self.zero_tails(interpreter.segments(), bias, None)?;
            entry = interpreter.entry(bias);
        }
        let (placed, task_size) = self.with(|mm| (*mm.image(), mm.sysctl().task_size));
        if entry >= task_size {
            return Err(ExecError::BadEntry);
        }
        program.vectors(&auxiliary(elf, bias)).write(&placed, |at, bytes| {
            self.copy_to_user(VirtAddr::from(at), bytes).map_err(ExecError::Memory)
        })?;
        Ok(Start { entry: VirtAddr::from(entry), stack: placed.start_stack })
    }

    /// Writes zeros behind the bytes that segments have from their file, up to the end of their page, unless other segments or those that were mapped
    /// `above` them have it.
    ///
    /// # Linux
    /// `padzero` in `fs/binfmt_elf.c`: only where the program can write to the page, since nobody else would see the difference.
    #[doc(alias = "padzero")]
    fn zero_tails(
        &self,
        segments: &[Segment],
        bias: u64,
        above: Option<(&[Segment], u64)>,
    ) -> Result<(), ExecError> {
        const ZEROS: &[u8; PAGE_SIZE] = &[0; PAGE_SIZE];
        for (at, segment) in segments.iter().enumerate() {
            let end = segment.file_end(bias);
            let used = end & PAGE_OFFSET_MASK;
            let has_tail = segment.file_len != 0 && segment.mem_len > segment.file_len && used != 0;
            let later = segments.get(at + 1..).unwrap_or_default();
            // Nothing is seen of this one then.
            let covers = |&(segments, bias): &(&[Segment], u64)| {
                segments.iter().any(|segment| segment.covers(bias, end - used))
            };
            let is_hidden = covers(&(later, bias)) || above.as_ref().is_some_and(covers);
            if has_tail && segment.prot.contains(Prot::WRITE) && !is_hidden {
                let zeros = ZEROS.get(used as usize..).unwrap_or_default();
                self.copy_to_user(VirtAddr::from(end), zeros).map_err(ExecError::Memory)?;
            }
        }
        Ok(())
    }
}

impl<'p> Program<'p> {
    fn vectors(&self, own: &'p [(u64, u64)]) -> Vectors<'p> {
        let Self { machine, path, args, env, aux, random, .. } = *self;
        Vectors { path, args, env, aux: [own, aux], platform: machine.platform(), random }
    }
}

/// What a program is told of itself.
const fn auxiliary(elf: &Elf, bias: LoadBias) -> [(u64, u64); 7] {
    [
        (aux::PAGESZ, PAGE_SIZE_U64),
        (aux::PHDR, elf.headers_addr(bias.program)),
        (aux::PHENT, elf.header_len()),
        (aux::PHNUM, elf.header_count()),
        (aux::BASE, if let Some(interpreter) = bias.interpreter { interpreter } else { 0 }),
        (aux::FLAGS, 0),
        (aux::ENTRY, elf.entry(bias.program)),
    ]
}

/// The first bytes of a file.
fn read_head<'p, S: PageSource, F: EntryFormat>(
    file: &File<'_, '_, S, F>,
    page: &'p mut [u8; PAGE_SIZE],
) -> Result<&'p [u8], ExecError> {
    let len = file.read_at(0, page)?;
    Ok(page.get(..len).unwrap_or_default())
}

/// The path of an interpreter, which lies in a file at an offset and has so many bytes with the 0 at its end.
fn read_path<'p, S: PageSource, F: EntryFormat>(
    file: &File<'_, '_, S, F>,
    (offset, len): (u64, u64),
    page: &'p mut [u8; PAGE_SIZE],
) -> Result<&'p [u8], ExecError> {
    let room = page.get_mut(..len as usize).ok_or(ElfError::BadInterpreter)?;
    if file.read_at(offset, room)? != room.len() {
        return Err(ExecError::CutShort);
    }
    match room {
        [.., 0] => Ok(room.split(|&byte| byte == 0).next().unwrap_or_default()),
        _ => Err(ElfError::BadInterpreter.into()),
    }
}

/// The headers of an interpreter.
fn interpreter_headers<S: PageSource, F: EntryFormat>(
    file: &File<'_, '_, S, F>,
    machine: ElfMachine,
    page: &mut [u8; PAGE_SIZE],
) -> Result<Elf, ExecError> {
    let head = read_head(file, page)?;
    if head.len() < Elf::HEADER {
        return Err(ExecError::CutShort);
    }
    Elf::parse(head, machine).map_err(ExecError::Interpreter)
}
