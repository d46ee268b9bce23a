//! ELF files by hand, of every shape that a loader tells apart.

/// What the code does: it raises SIGSTOP, for ever.
const STOP: [u8; 23] = [
    0xb8, 39, 0, 0, 0, 0x0f, 0x05, // getpid
    0x89, 0xc7, 0xbe, 19, 0, 0, 0, 0xb8, 62, 0, 0, 0, 0x0f, 0x05, // kill with SIGSTOP
    0xeb, 0xe9,
];

/// How far behind its beginning it has stopped.
pub(crate) const STOPPED_AT: u64 = 21;

pub(crate) const PAGE: u64 = 4096;
const R: u32 = 4;
const W: u32 = 2;
const X: u32 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// `ET_EXEC`.
    Fixed,
    /// `ET_DYN`.
    Anywhere,
}

/// What says whether the stack may be executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stack {
    Unsaid,
    Data,
    Code,
}

/// How the segments lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// Code, then data with zeros behind.
    CodeFirst,
    /// Headers that may be read only, code, data.
    ReadFirst,
    /// Headers, code, and a last segment that may be read only, with zeros behind.
    ReadOnlyZeros,
    /// Zeros that may be executed.
    CodeZeros,
    /// Code, and a segment without bytes in the file.
    OnlyZeros,
    /// Code; data of which the second part has the page of the first's end.
    Shared,
    /// Data before code, with a hole of three pages between them.
    Descending,
    /// The first segment begins in the middle of a page.
    MidPage,
    /// An empty segment behind the others.
    Empty,
}

pub(crate) const SHAPES: [Shape; 9] = [
    Shape::CodeFirst,
    Shape::ReadFirst,
    Shape::ReadOnlyZeros,
    Shape::CodeZeros,
    Shape::OnlyZeros,
    Shape::Shared,
    Shape::Descending,
    Shape::MidPage,
    Shape::Empty,
];

/// A file to be made.
#[derive(Clone, Debug)]
pub(crate) struct Executable {
    pub(crate) kind: Kind,
    pub(crate) stack: Stack,
    pub(crate) shape: Shape,
    pub(crate) align: u64,
    /// The interpreter's path with what ends it, if there is one.
    pub(crate) interpreter: Option<Vec<u8>>,
}

/// A program header.
#[derive(Clone, Copy)]
struct Header {
    kind: u32,
    flags: u32,
    offset: u64,
    addr: u64,
    file_len: u64,
    mem_len: u64,
    align: u64,
}

/// Where in the file the name of the interpreter lies.
const NAME: u64 = 4 * PAGE;
const CODE: u64 = PAGE + 0x200;

impl Executable {
    /// The segments: flags, offset, address, bytes in the file and in memory.
    fn loads(&self) -> Vec<(u32, u64, u64, u64, u64)> {
        let code = (R | X, PAGE, PAGE, 0x300, 0x300);
        let head = (R, 0, 0, 0x300, 0x300);
        let data = (R | W, 2 * PAGE + 0x100, 2 * PAGE + 0x100, 0x80, 0x3000);
        match self.shape {
            Shape::CodeFirst => vec![(R | X, 0, 0, PAGE + 0x300, PAGE + 0x300), data],
            Shape::ReadFirst => vec![head, code, data],
            Shape::ReadOnlyZeros => vec![head, code, (R, 2 * PAGE, 2 * PAGE, 0x80, 0x3000)],
            Shape::CodeZeros => vec![head, code, (R | W | X, 2 * PAGE, 2 * PAGE, 0x80, 0x3000)],
            Shape::OnlyZeros => vec![head, code, (R | W, 0, 2 * PAGE + 0x123, 0, 0x2000)],
            Shape::Shared => {
                let again = (R | W, 3 * PAGE + 0x90, 2 * PAGE + 0x90, 0x40, 0x5000);
                vec![head, code, (R | W, 2 * PAGE, 2 * PAGE, 0x80, 0x88), again]
            }
            Shape::Descending => vec![(R | W, 2 * PAGE, 7 * PAGE, 0x80, 0x1100), head, code],
            Shape::MidPage => vec![(R, 0x40, 0x40, 0x300, 0x300), code, data],
            Shape::Empty => vec![head, code, data, (R | W, 0, 9 * PAGE, 0, 0)],
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let base = if self.kind == Kind::Fixed { 0x40_0000 } else { 0 };
        let mut headers = vec![];
        let mut header = |kind, flags, offset, addr, file_len, mem_len, align| {
            headers.push(Header { kind, flags, offset, addr, file_len, mem_len, align });
        };
        if let Some(name) = &self.interpreter {
            header(3, R, NAME, base + NAME, name.len() as u64, name.len() as u64, 1);
        }
        for (flags, offset, addr, file_len, mem_len) in self.loads() {
            header(1, flags, offset, base + addr, file_len, mem_len, self.align);
        }
        match self.stack {
            Stack::Unsaid => {}
            Stack::Data => header(0x6474_e551, R | W, 0, 0, 0, 0, 16),
            Stack::Code => header(0x6474_e551, R | W | X, 0, 0, 0, 0, 16),
        }
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let kind = if self.kind == Kind::Fixed { 2_u16 } else { 3 };
        file.extend([kind, 62].iter().flat_map(|half| half.to_le_bytes()));
        file.extend(1_u32.to_le_bytes());
        file.extend([base + CODE, 64, 0].iter().flat_map(|long| long.to_le_bytes()));
        file.extend(0_u32.to_le_bytes());
        file.extend([64_u16, 56, headers.len() as u16, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
        for header in headers {
            let Header { kind, flags, offset, addr, file_len, mem_len, align } = header;
            file.extend([kind, flags].iter().flat_map(|word| word.to_le_bytes()));
            let longs = [offset, addr, addr, file_len, mem_len, align];
            file.extend(longs.iter().flat_map(|long| long.to_le_bytes()));
        }
        file.resize(5 * PAGE as usize, 0xee);
        file[CODE as usize..][..STOP.len()].copy_from_slice(&STOP);
        let name = self.interpreter.as_deref().unwrap_or_default();
        file[NAME as usize..][..name.len()].copy_from_slice(name);
        file
    }
}
