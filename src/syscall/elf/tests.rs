use super::*;
use crate::mm::FileKind;

fn file() -> FileRef {
    FileRef::new(1, 1, FileKind::Regular).unwrap()
}

/// A program with a text and a data segment, and a stack that is not executable.
fn program() -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    for (at, value) in [(16, 2), (18, 62), (20, 1), (52, 64), (54, 56), (56, 3)] {
        bytes[at] = value;
    }
    bytes[24..32].copy_from_slice(&0x40_0123_u64.to_le_bytes());
    bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
    for (kind, flags, fields) in [
        (PT_LOAD, 5_u32, [0, 0x40_0000, 0, 0x1800, 0x1800, 0x1000_u64]),
        (PT_LOAD, 6, [0x1800, 0x40_2800, 0, 0x10, 0x3000, 0x1000]),
        (PT_GNU_STACK, 6, [0; 6]),
    ] {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    }
    bytes
}

const SEGMENTS: usize = HEADER;
const SECOND: usize = HEADER + PROGRAM_HEADER;

fn with(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = program();
    change(&mut bytes);
    bytes
}

fn set(at: usize, value: u64) -> Vec<u8> {
    with(|bytes| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes()))
}

fn error(bytes: &[u8]) -> ElfError {
    let mut room = [Segment::empty(file()); MAX_SEGMENTS];
    match Elf::parse(bytes, ElfMachine::X86_64) {
        Err(error) => error,
        Ok(elf) => elf.segments(0, file(), Part::Program, &mut room).unwrap_err(),
    }
}

#[test]
fn segments_are_where_the_headers_say_and_move_with_the_base() {
    let bytes = program();
    let elf = Elf::parse(&bytes, ElfMachine::X86_64).unwrap();
    for base in [0, 0x5555_0000_0000] {
        let mut room = [Segment::empty(file()); MAX_SEGMENTS];
        let segments = elf.segments(base, file(), Part::Program, &mut room).unwrap();
        let of = |segment: &Segment| (segment.addr - base, segment.offset, segment.file_len, segment.mem_len);
        assert_eq!(of(&segments[0]), (0x40_0000, 0, 0x1800, 0x1800));
        assert_eq!(of(&segments[1]), (0x40_2800, 0x1800, 0x10, 0x3000));
        assert_eq!(segments[0].prot, Prot::READ | Prot::EXEC);
        assert_eq!(segments[1].prot, Prot::READ | Prot::WRITE);
        assert!(segments.len() == 2 && segments.iter().all(|segment| segment.part == Part::Program));
        assert_eq!(elf.entry(base), base + 0x40_0123);
        assert_eq!(elf.headers_addr(base), Some(base + 0x40_0040));
    }
    assert_eq!((elf.kind(), elf.header_count(), elf.header_len()), (ElfType::Fixed, 3, 56));
    assert_eq!(elf.interpreter(), Ok(None));
}

#[test]
fn the_stack_may_be_executed_unless_the_program_says_otherwise() {
    let prot = |bytes: &[u8]| Elf::parse(bytes, ElfMachine::X86_64).unwrap().stack_prot();
    let stack = SECOND + PROGRAM_HEADER;
    assert_eq!(prot(&program()), Prot::READ | Prot::WRITE);
    assert_eq!(prot(&with(|bytes| bytes[stack + 4] = 7)), Prot::READ | Prot::WRITE | Prot::EXEC);
    assert_eq!(prot(&with(|bytes| bytes[stack] = 0)), Prot::READ | Prot::WRITE | Prot::EXEC);
}

#[test]
fn each_wrong_field_is_told() {
    use ElfError::*;
    let cases: [(Vec<u8>, ElfError); 21] = [
        (program()[..63].to_vec(), NotElf),
        (with(|bytes| bytes[3] = b'f'), NotElf),
        (with(|bytes| bytes[4] = 1), NotElf64),
        (with(|bytes| bytes[5] = 2), NotElf64),
        (with(|bytes| bytes[6] = 0), NotElf64),
        (with(|bytes| bytes[16] = 1), BadType),
        (with(|bytes| bytes[18] = 243), WrongMachine),
        (with(|bytes| bytes[54] = 32), BadHeaderSize),
        (with(|bytes| bytes[56] = 0), NoHeaders),
        (with(|bytes| bytes[57] = 1), NoHeaders),
        (with(|bytes| bytes.truncate(HEADER + 3 * PROGRAM_HEADER - 1)), HeadersOutOfReach),
        (set(32, u64::MAX), HeadersOutOfReach),
        (with(|bytes| (bytes[SEGMENTS], bytes[SECOND]) = (0, 0)), NoSegments),
        (set(SECOND + 32, 0x3001), FileLongerThanMemory),
        (with(|bytes| bytes[SECOND + 32..SECOND + 48].fill(0)), Empty),
        (set(SECOND + 16, u64::MAX - 0x7ff), Wraps),
        (set(SECOND + 40, u64::MAX), Wraps),
        (set(SECOND + 16, 0x40_2801), Misaligned),
        (set(SECOND + 16, 0x40_0800), OutOfOrder),
        (set(24, 0x40_1800), BadEntry),
        (set(24, 0x40_2800), BadEntry),
    ];
    for (at, (bytes, expected)) in cases.iter().enumerate() {
        assert_eq!(error(bytes), *expected, "case {at}");
    }
    let offset = with(|bytes| {
        bytes[SECOND + 8..SECOND + 16].copy_from_slice(&(u64::MAX - 0x7ff).to_le_bytes());
        bytes[SECOND + 32..SECOND + 40].copy_from_slice(&0x1000_u64.to_le_bytes());
    });
    assert_eq!(error(&offset), Wraps);
}

#[test]
fn an_interpreter_has_a_name() {
    let named = |len: u64| {
        with(|bytes| {
            bytes[SECOND] = PT_INTERP as u8;
            bytes[SECOND + 32..SECOND + 40].copy_from_slice(&len.to_le_bytes());
        })
    };
    let asked = |bytes: &[u8]| Elf::parse(bytes, ElfMachine::X86_64).unwrap().interpreter();
    assert_eq!(asked(&named(28)), Ok(Some((0x1800, 28))));
    assert_eq!(asked(&named(PATH_MAX)), Ok(Some((0x1800, PATH_MAX))));
    assert_eq!(asked(&named(1)), Err(ElfError::BadInterpreter));
    assert_eq!(asked(&named(PATH_MAX + 1)), Err(ElfError::BadInterpreter));
}

#[test]
fn there_is_room_for_so_many_segments() {
    let many = |count: usize| {
        with(|bytes| {
            let load = bytes[SEGMENTS..SECOND].to_vec();
            bytes.truncate(HEADER);
            bytes[56] = count as u8;
            for at in 0..count as u64 {
                let mut load = load.clone();
                load[16..24].copy_from_slice(&(0x40_0000 + at * 0x2000).to_le_bytes());
                bytes.extend(load);
            }
        })
    };
    assert_eq!(error(&many(MAX_SEGMENTS + 1)), ElfError::TooManySegments);
    let bytes = many(MAX_SEGMENTS);
    let elf = Elf::parse(&bytes, ElfMachine::X86_64).unwrap();
    let mut room = [Segment::empty(file()); MAX_SEGMENTS];
    assert_eq!(elf.segments(0, file(), Part::Program, &mut room).unwrap().len(), MAX_SEGMENTS);
}
