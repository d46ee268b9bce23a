//! exec of an ELF file: its segments are mapped, and read when they are touched.

use core::fmt;

use lock_api::RawRwLock;

use super::file::{File, TransferError};
use super::process::{Process, Refused};
use crate::addr::{PAGE_SIZE, PAGE_SIZE_U64, VirtAddr};
use crate::cache::CacheError;
use crate::error::Errno;
use crate::flags::Prot;
use crate::mm::{Mm, MmError};
use crate::phys::PageSource;
use crate::syscall::{
    Elf, ElfError, ElfMachine, ElfType, ExecImage, MAX_SEGMENTS, Part, Segment, Vectors, aux,
};
use crate::table::EntryFormat;

/// A program to be run.
#[derive(Clone, Copy, Debug)]
pub struct Program<'p> {
    /// For which machine.
    pub machine: ElfMachine,
    /// The arguments, its name first.
    pub args: &'p [&'p [u8]],
    /// The environment.
    pub env: &'p [&'p [u8]],
    /// 16 random bytes for the program's own use.
    pub random: [u8; 16],
    /// A random number that moves the base of placement, or 0 for none.
    pub seed: u64,
}

impl<'p> Program<'p> {
    /// A program for `machine` with these arguments, without an environment and without randomness.
    pub const fn new(machine: ElfMachine, args: &'p [&'p [u8]]) -> Self {
        Self { machine, args, env: &[], random: [0; 16], seed: 0 }
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
    /// The program asks for an interpreter: the embedder's to load.
    NeedsInterpreter,
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
            Self::NeedsInterpreter => Errno::ENOENT,
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
            Self::NeedsInterpreter => f.write_str("the program needs an interpreter"),
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

impl<'v, 'a, S: PageSource, F: EntryFormat, L: RawRwLock> Process<'v, 'a, S, F, L> {
    /// Runs an ELF file in place of the old program. Its segments are mapped from the file, and nothing of them is read before it is touched but
    /// what is needed here: the headers, and the page that file and zeros share.
    ///
    /// The caller's other threads are gone before; what the CPUs walk is the caller's to set with [`activate`](Self::activate).
    ///
    /// # Errors
    /// [`ExecError`]; the old program is intact then.
    ///
    /// # Locking
    /// Takes the address space's lock, and not while it waits for the file.
    ///
    /// # Linux
    /// `load_elf_binary` in `fs/binfmt_elf.c`. A file with fewer segments, more checks: headers lie in the first page, and the entry in code.
    #[doc(alias = "execve")]
    pub fn exec_elf(&self, file: &File<'v, 'a, S, F>, program: &Program<'_>) -> Result<Start, ExecError> {
        let mut head = [0; PAGE_SIZE];
        let len = file.read_at(0, &mut head)?;
        let elf = Elf::parse(head.get(..len).unwrap_or_default(), program.machine)?;
        if elf.interpreter()?.is_some() {
            return Err(ExecError::NeedsInterpreter);
        }
        let (task_size, stack_limit) = self.with(|mm| (mm.sysctl().task_size, mm.rlimits().stack));
        let base = match elf.kind() {
            ElfType::Fixed => 0,
            ElfType::Relocatable => dyn_base(task_size),
        };
        let mut room = [Segment::empty(file.reference()); MAX_SEGMENTS];
        let segments = elf.segments(base, file.reference(), Part::Program, &mut room)?;
        let auxv = [
            (aux::PHDR, elf.headers_addr(base).unwrap_or(0)),
            (aux::PHENT, elf.header_len() as u64),
            (aux::PHNUM, elf.header_count() as u64),
            (aux::PAGESZ, PAGE_SIZE_U64),
            (aux::ENTRY, elf.entry(base)),
        ];
        let vectors = Vectors { args: program.args, env: program.env, aux: &auxv, random: program.random };
        let (arg_bytes, env_bytes) = (vectors.arg_bytes(), vectors.env_bytes());
        let vector_bytes = vectors.vector_bytes();
        if arg_bytes + env_bytes + vector_bytes > (stack_limit / 4).clamp(ARG_MIN, ARG_MAX) {
            return Err(ExecError::TooLong);
        }
        let image = ExecImage {
            segments,
            stack_top: task_size & !(PAGE_SIZE_U64 - 1),
            arg_bytes,
            env_bytes,
            vector_bytes,
            stack_prot: elf.stack_prot(),
            seed: program.seed,
        };
        // All is made beside the old program, which ends only when nothing can fail any more.
        let next = {
            let mm = self.with(Mm::new_child)?;
            Self::with_mm(self.vm(), mm)?
        };
        next.exec(&image)?;
        segments.iter().try_for_each(|segment| next.zero_tail(segment))?;
        let placed = next.with(|mm| *mm.image());
        let stack = placed.start_stack;
        vectors
            .write(stack.get(), placed.arg_start.get(), placed.env_start.get(), |at, bytes| {
                next.copy_to_user(VirtAddr::from(at), bytes)
            })
            .map_err(ExecError::Memory)?;
        self.exchange(&next);
        Ok(Start { entry: VirtAddr::from(elf.entry(base)), stack })
    }

    /// Writes zeros behind the bytes that a segment has from its file, up to the end of their page.
    ///
    /// # Linux
    /// `padzero` in `fs/binfmt_elf.c`: only where the program can write to the page, since nobody else would see the difference.
    #[doc(alias = "padzero")]
    fn zero_tail(&self, segment: &Segment) -> Result<(), ExecError> {
        let end = segment.addr + segment.file_len;
        let left = PAGE_SIZE_U64 - end % PAGE_SIZE_U64;
        let has_tail = segment.file_len != 0 && segment.mem_len > segment.file_len && left != PAGE_SIZE_U64;
        if !has_tail || !segment.prot.contains(Prot::WRITE) {
            return Ok(());
        }
        let zeros = [0; PAGE_SIZE];
        let zeros = zeros.get(..left as usize).unwrap_or_default();
        self.copy_to_user(VirtAddr::from(end), zeros).map_err(ExecError::Memory)
    }
}

/// Where programs lie that may lie anywhere: two thirds up.
///
/// # Linux
/// `ELF_ET_DYN_BASE` in `arch/x86/include/asm/elf.h`.
#[doc(alias = "ELF_ET_DYN_BASE")]
const fn dyn_base(task_size: u64) -> u64 {
    (task_size / 3 * 2) & !(PAGE_SIZE_U64 - 1)
}
