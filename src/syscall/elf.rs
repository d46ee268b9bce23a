//! ELF files: which segments a program has, read from the first bytes of its file.
//!
//! Nothing is mapped or allocated here: what the headers allege is checked once, and comes out as [`Segment`]s for [`exec`](super::exec()).

use super::exec::{Part, Segment};
use crate::addr::{PAGE_OFFSET_MASK, PAGE_SIZE};
use crate::error::Errno;
use crate::flags::Prot;
use crate::mm::FileRef;

/// The most loadable segments of a program.
pub const MAX_SEGMENTS: usize = 16;
/// The size of the file's header, in bytes.
const HEADER: usize = 64;
/// The size of a program header, in bytes.
const PROGRAM_HEADER: usize = 56;
/// The longest name of an interpreter, its end mark included.
const PATH_MAX: u64 = 4096;

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
    BadInterpreter => ENOEXEC, "The interpreter's name is too short or too long.";
    NoSegments => ENOEXEC, "Nothing is to be loaded.";
    TooManySegments => ENOEXEC, "There are too many segments.";
    FileLongerThanMemory => EINVAL, "A segment has more bytes in the file than in memory.";
    Empty => EINVAL, "A segment has no bytes.";
    Wraps => EINVAL, "A segment leaves the addresses or the file.";
    Misaligned => EINVAL, "A segment does not lie in its page as it does in the file.";
    OutOfOrder => EINVAL, "The segments overlap, or do not ascend.";
    BadEntry => EINVAL, "The entry lies in no segment that can be executed.";
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

/// Where a program wants to lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ElfType {
    /// Where its headers say (`ET_EXEC`).
    Fixed,
    /// Anywhere (`ET_DYN`).
    Relocatable,
}

/// The headers of an ELF file.
///
/// # Linux
/// What `load_elf_binary` in `fs/binfmt_elf.c` (6.18) looks at.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "load_elf_binary")]
pub struct Elf<'b> {
    headers: &'b [u8],
    headers_offset: u64,
    kind: ElfType,
    entry: u64,
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
}

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_GNU_STACK: u32 = 0x6474_e551;

impl<'b> Elf<'b> {
    /// How many of a file's first bytes are enough.
    pub const HEAD: usize = PAGE_SIZE;

    /// Reads the headers from the first bytes of a file.
    ///
    /// # Errors
    /// [`ElfError`], without those of segments.
    pub fn parse(head: &'b [u8], machine: ElfMachine) -> Result<Self, ElfError> {
        let header = head.get(..HEADER).ok_or(ElfError::NotElf)?;
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
        let (offset, count) = (long(header, 32), usize::from(half(header, 56)));
        if count == 0 || count > PAGE_SIZE / PROGRAM_HEADER {
            return Err(ElfError::NoHeaders);
        }
        let start = usize::try_from(offset).map_err(|_| ElfError::HeadersOutOfReach)?;
        let end = start.checked_add(count * PROGRAM_HEADER).ok_or(ElfError::HeadersOutOfReach)?;
        let headers = head.get(start..end).ok_or(ElfError::HeadersOutOfReach)?;
        Ok(Self { headers, headers_offset: offset, kind, entry: long(header, 24) })
    }

    /// Where it wants to lie.
    pub const fn kind(&self) -> ElfType {
        self.kind
    }

    fn headers(&self) -> impl Iterator<Item = ProgramHeader> + 'b {
        self.headers.chunks_exact(PROGRAM_HEADER).map(|header| ProgramHeader {
            kind: word(header, 0),
            flags: word(header, 4),
            offset: long(header, 8),
            addr: long(header, 16),
            file_len: long(header, 32),
            mem_len: long(header, 40),
        })
    }

    /// Where in the file the name of the interpreter lies that the program asks for, and its length with the 0 at its end.
    ///
    /// # Errors
    /// [`ElfError::BadInterpreter`].
    #[doc(alias = "PT_INTERP")]
    pub fn interpreter(&self) -> Result<Option<(u64, u64)>, ElfError> {
        match self.headers().find(|header| header.kind == PT_INTERP) {
            Some(header) if (2..=PATH_MAX).contains(&header.file_len) => {
                Ok(Some((header.offset, header.file_len)))
            }
            Some(_) => Err(ElfError::BadInterpreter),
            None => Ok(None),
        }
    }

    /// The stack's protection: executable unless the program says that it need not be.
    #[doc(alias = "PT_GNU_STACK")]
    pub fn stack_prot(&self) -> Prot {
        let rw = Prot::READ | Prot::WRITE;
        match self.headers().filter(|header| header.kind == PT_GNU_STACK).last() {
            Some(header) if header.flags & 1 == 0 => rw,
            _ => rw | Prot::EXEC,
        }
    }

    /// Fills in the segments, moved by `base`, which is a multiple of the page size and 0 for programs that lie where they say; answers with those
    /// that there are.
    ///
    /// # Errors
    /// [`ElfError`] of segments; what is in `out` then means nothing.
    pub fn segments<'o>(
        &self,
        base: u64,
        file: FileRef,
        part: Part,
        out: &'o mut [Segment; MAX_SEGMENTS],
    ) -> Result<&'o [Segment], ElfError> {
        let (mut count, mut end) = (0, 0);
        let mut entry_is_code = false;
        for header in self.headers().filter(|header| header.kind == PT_LOAD) {
            let segment = header.segment(base, file, part)?;
            if segment.addr < end {
                return Err(ElfError::OutOfOrder);
            }
            end = segment.addr + segment.mem_len;
            entry_is_code |=
                segment.prot.contains(Prot::EXEC) && (segment.addr..end).contains(&self.entry(base));
            *out.get_mut(count).ok_or(ElfError::TooManySegments)? = segment;
            count += 1;
        }
        match count {
            0 => Err(ElfError::NoSegments),
            _ if !entry_is_code => Err(ElfError::BadEntry),
            _ => Ok(out.get(..count).unwrap_or_default()),
        }
    }

    /// Where the program begins.
    #[doc(alias = "AT_ENTRY")]
    pub const fn entry(&self, base: u64) -> u64 {
        self.entry.wrapping_add(base)
    }

    /// Where its program headers lie in memory, if one of the segments, moved by `base`, has them.
    #[doc(alias = "AT_PHDR")]
    pub fn headers_addr(&self, base: u64) -> Option<u64> {
        let end = self.headers_offset.checked_add(self.headers.len() as u64)?;
        let mut loads = self.headers().filter(|header| header.kind == PT_LOAD);
        let within = loads.find(|load| {
            load.offset <= self.headers_offset
                && load.offset.checked_add(load.file_len).is_some_and(|load_end| end <= load_end)
        })?;
        Some(base.wrapping_add(within.addr).wrapping_add(self.headers_offset - within.offset))
    }

    /// How many program headers there are.
    #[doc(alias = "AT_PHNUM")]
    pub const fn header_count(&self) -> usize {
        self.headers.len() / PROGRAM_HEADER
    }

    /// The size of one of them, in bytes.
    #[doc(alias = "AT_PHENT")]
    pub const fn header_len(&self) -> usize {
        PROGRAM_HEADER
    }
}

impl ProgramHeader {
    fn segment(&self, base: u64, file: FileRef, part: Part) -> Result<Segment, ElfError> {
        let Self { offset, addr, file_len, mem_len, .. } = *self;
        if file_len > mem_len {
            return Err(ElfError::FileLongerThanMemory);
        }
        if mem_len == 0 {
            return Err(ElfError::Empty);
        }
        let addr = addr.checked_add(base).ok_or(ElfError::Wraps)?;
        if addr.checked_add(mem_len).is_none() || offset.checked_add(file_len).is_none() {
            return Err(ElfError::Wraps);
        }
        if (addr ^ offset) & PAGE_OFFSET_MASK != 0 {
            return Err(ElfError::Misaligned);
        }
        let mut prot = Prot::empty();
        prot.set(Prot::EXEC, self.flags & 1 != 0);
        prot.set(Prot::WRITE, self.flags & 2 != 0);
        prot.set(Prot::READ, self.flags & 4 != 0);
        Ok(Segment { addr, file_len, mem_len, offset, prot, part, file })
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
