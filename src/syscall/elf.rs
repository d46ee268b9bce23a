//! ELF files: what a program's headers ask for, read from the first bytes of its file.
//!
//! Nothing is mapped or allocated here: what the headers allege is checked once, and comes out as a [`Binary`] for [`exec`](super::exec()).

use super::exec::{Binary, ElfType, Segment};
use crate::addr::{PAGE_OFFSET_MASK, PAGE_SIZE, PAGE_SIZE_U64};
use crate::error::Errno;
use crate::flags::Prot;
use crate::mm::FileRef;

/// The most loadable segments of a program.
pub const MAX_SEGMENTS: usize = 16;
/// The size of a program header, in bytes.
const PROGRAM_HEADER: usize = 56;
/// The longest name of an interpreter, its end mark included.
const PATH_MAX: u64 = 4096;
const PATH_TOO_LONG: u64 = PATH_MAX + 1;

macro_rules! causes {
    ($($name:ident => $errno:ident, $what:literal;)*) => {
        /// Why a file cannot be run.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum ElfError {
            $(#[doc = $what] $name,)*
        }

        impl ElfError {
            /// The Linux error number.
            pub const fn errno(self) -> Errno {
                match self { $(Self::$name => Errno::$errno,)* }
            }
        }

        impl core::fmt::Display for ElfError {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(match self { $(Self::$name => $what,)* })
            }
        }
    };
}

causes! {
    NotElf => ENOEXEC, "The file does not begin as ELF files do.";
    NotElf64 => ENOEXEC, "The file is not for 64 bits, little-endian.";
    BadType => ENOEXEC, "The file is neither a program nor a position-independent one.";
    WrongMachine => ENOEXEC, "The program is for another machine.";
    BadHeaderSize => ENOEXEC, "The program headers have another size than they should.";
    NoHeaders => ENOEXEC, "There are no program headers, or too many.";
    HeadersOutOfReach => ENOEXEC, "The program headers do not lie in the first bytes of the file.";
    BadInterpreter => ENOEXEC, "The interpreter's name is too short or too long, or does not end.";
    InterpreterNowhere => EINVAL, "The interpreter's name lies where no file reaches.";
    NoSegments => ENOEXEC, "Nothing is to be loaded.";
    TooManySegments => ENOEXEC, "There are too many segments.";
    FileLongerThanMemory => EINVAL, "A segment has more bytes in the file than in memory.";
    Wraps => EINVAL, "A segment leaves the addresses or the file.";
    Misaligned => EINVAL, "A segment does not lie in its page as it does in the file.";
}

impl core::error::Error for ElfError {}

/// Which machines' programs can be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum ElfMachine {
    /// x86-64 (`EM_X86_64`).
    X86_64 = 62,
    /// RISC-V (`EM_RISCV`).
    RiscV = 243,
}

impl ElfMachine {
    /// What programs are told that they run on, if they are.
    #[doc(alias = "ELF_PLATFORM")]
    pub(crate) const fn platform(self) -> Option<&'static [u8]> {
        match self {
            Self::X86_64 => Some(b"x86_64"),
            Self::RiscV => None,
        }
    }
}

/// What the headers of an ELF file ask for.
///
/// # Linux
/// What `load_elf_binary` in `fs/binfmt_elf.c` (6.18) looks at.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "load_elf_binary")]
pub struct Elf {
    kind: ElfType,
    entry: u64,
    headers: u64,
    header_count: u16,
    interpreter: Option<(u64, u64)>,
    stack_prot: Prot,
    align: u64,
    segments: [Segment; MAX_SEGMENTS],
    segment_count: usize,
}

/// A program header.
#[derive(Clone, Copy, Debug)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    addr: u64,
    file_len: u64,
    mem_len: u64,
    align: u64,
}

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_GNU_STACK: u32 = 0x6474_e551;
const RW: Prot = Prot::READ.union(Prot::WRITE);

impl Elf {
    /// The size of the file's header, in bytes.
    pub const HEADER: usize = 64;

    /// Reads the headers from the first bytes of a file.
    ///
    /// # Errors
    /// [`ElfError`].
    pub fn parse(head: &[u8], machine: ElfMachine) -> Result<Self, ElfError> {
        let header = head.get(..Self::HEADER).ok_or(ElfError::NotElf)?;
        if !header.starts_with(b"\x7fELF") {
            return Err(ElfError::NotElf);
        }
        // Class, data and version.
        if header.get(4..7) != Some(&[2, 1, 1]) {
            return Err(ElfError::NotElf64);
        }
        let kind = match half(header, 16) {
            2 => ElfType::Fixed,
            3 => ElfType::Relocatable,
            _ => return Err(ElfError::BadType),
        };
        if half(header, 18) != machine as u16 {
            return Err(ElfError::WrongMachine);
        }
        if usize::from(half(header, 54)) != PROGRAM_HEADER {
            return Err(ElfError::BadHeaderSize);
        }
        let (offset, header_count) = (long(header, 32), half(header, 56));
        if header_count == 0 || usize::from(header_count) > PAGE_SIZE / PROGRAM_HEADER {
            return Err(ElfError::NoHeaders);
        }
        let start = usize::try_from(offset).map_err(|_| ElfError::HeadersOutOfReach)?;
        let len = usize::from(header_count) * PROGRAM_HEADER;
        let end = start.checked_add(len).ok_or(ElfError::HeadersOutOfReach)?;
        let bytes = head.get(start..end).ok_or(ElfError::HeadersOutOfReach)?;
        let headers = || bytes.chunks_exact(PROGRAM_HEADER).map(ProgramHeader::read);
        let asks = headers().find(|header| header.kind == PT_INTERP);
        let interpreter = asks.map(|header| (header.offset, header.file_len));
        let stack = headers().rfind(|header| header.kind == PT_GNU_STACK);
        let stack_prot = if stack.is_some_and(|stack| stack.flags & 1 != 0) { RW | Prot::EXEC } else { RW };
        let (entry, segments) = (long(header, 24), [Segment::EMPTY; MAX_SEGMENTS]);
        let mut elf = Self {
            kind,
            entry,
            headers: 0,
            header_count,
            interpreter,
            stack_prot,
            align: 0,
            segments,
            segment_count: 0,
        };
        headers().filter(|header| header.kind == PT_LOAD).try_for_each(|load| elf.add(&load, offset))?;
        if elf.segment_count == 0 { Err(ElfError::NoSegments) } else { Ok(elf) }
    }

    /// Adds a segment of the file whose headers lie at an offset.
    fn add(&mut self, load: &ProgramHeader, headers: u64) -> Result<(), ElfError> {
        *self.segments.get_mut(self.segment_count).ok_or(ElfError::TooManySegments)? = load.segment()?;
        self.segment_count += 1;
        if load.align.is_power_of_two() {
            self.align = self.align.max(load.align).max(PAGE_SIZE_U64);
        }
        if (load.offset..load.offset.saturating_add(load.file_len)).contains(&headers) {
            self.headers = load.addr.wrapping_add(headers - load.offset);
        }
        Ok(())
    }

    /// Where it wants to lie.
    pub const fn kind(&self) -> ElfType {
        self.kind
    }

    /// Where in the file the name of the interpreter lies that the program asks for, and its length with the 0 at its end. What an interpreter asks for itself counts for
    /// nothing.
    ///
    /// # Errors
    /// [`ElfError::BadInterpreter`], [`ElfError::InterpreterNowhere`].
    #[doc(alias = "PT_INTERP")]
    pub const fn interpreter(&self) -> Result<Option<(u64, u64)>, ElfError> {
        match self.interpreter {
            Some((_, ..2 | PATH_TOO_LONG..)) => Err(ElfError::BadInterpreter),
            // Offsets are signed.
            Some((offset, len)) if offset > i64::MAX as u64 - len => Err(ElfError::InterpreterNowhere),
            other => Ok(other),
        }
    }

    /// The stack's protection: not executable unless the program asks for it.
    ///
    /// # Linux
    /// The table in `arch/x86/include/asm/elf.h`, for programs of 64 bits; RISC-V is the same.
    #[doc(alias = "PT_GNU_STACK")]
    pub const fn stack_prot(&self) -> Prot {
        self.stack_prot
    }

    /// The segments, where the headers say.
    pub fn segments(&self) -> &[Segment] {
        self.segments.get(..self.segment_count).unwrap_or_default()
    }

    /// What is to be loaded from `file`, of which these are the headers.
    pub fn binary(&self, file: FileRef) -> Binary<'_> {
        Binary { file, kind: self.kind, align: self.align, segments: self.segments() }
    }

    /// Where the program begins, moved by `bias`.
    #[doc(alias = "AT_ENTRY")]
    pub const fn entry(&self, bias: u64) -> u64 {
        self.entry.wrapping_add(bias)
    }

    /// Where its program headers lie in memory, moved by `bias`: in the last segment that has the first of them; at `bias` itself if none has.
    #[doc(alias = "AT_PHDR")]
    pub const fn headers_addr(&self, bias: u64) -> u64 {
        self.headers.wrapping_add(bias)
    }

    /// How many program headers there are.
    #[doc(alias = "AT_PHNUM")]
    pub const fn header_count(&self) -> u64 {
        self.header_count as u64
    }

    /// The size of one of them, in bytes.
    #[doc(alias = "AT_PHENT")]
    pub const fn header_len(&self) -> u64 {
        PROGRAM_HEADER as u64
    }
}

impl ProgramHeader {
    fn read(bytes: &[u8]) -> Self {
        Self {
            kind: word(bytes, 0),
            flags: word(bytes, 4),
            offset: long(bytes, 8),
            addr: long(bytes, 16),
            file_len: long(bytes, 32),
            mem_len: long(bytes, 40),
            align: long(bytes, 48),
        }
    }

    fn segment(&self) -> Result<Segment, ElfError> {
        let Self { offset, addr, file_len, mem_len, .. } = *self;
        if file_len > mem_len {
            return Err(ElfError::FileLongerThanMemory);
        }
        if addr.checked_add(mem_len).is_none() || offset.checked_add(file_len).is_none() {
            return Err(ElfError::Wraps);
        }
        if file_len != 0 && (addr ^ offset) & PAGE_OFFSET_MASK != 0 {
            return Err(ElfError::Misaligned);
        }
        let mut prot = Prot::empty();
        prot.set(Prot::EXEC, self.flags & 1 != 0);
        prot.set(Prot::WRITE, self.flags & 2 != 0);
        prot.set(Prot::READ, self.flags & 4 != 0);
        Ok(Segment { addr, file_len, mem_len, offset, prot })
    }
}

/// A little-endian number of 16 bits; the callers have checked that it is there.
fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests;
