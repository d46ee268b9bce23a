use super::*;
use crate::mm::FileKind;

fn file() -> FileRef {
    FileRef::new(1, 1, FileKind::Regular).unwrap()
}

/// A program with a text and a data segment, and a stack that is not executable.
fn program() -> Vec<u8> {
    let mut bytes = vec![0; Elf::HEADER];
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

const SEGMENTS: usize = Elf::HEADER;
const SECOND: usize = Elf::HEADER + PROGRAM_HEADER;

fn with(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = program();
    change(&mut bytes);
    bytes
}

fn set(at: usize, value: u64) -> Vec<u8> {
    with(|bytes| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes()))
}

fn parse(bytes: &[u8]) -> Result<Elf, ElfError> {
    Elf::parse(bytes, ElfMachine::X86_64)
}

#[test]
fn segments_are_where_the_headers_say_and_all_else_moves_with_the_bias() {
    let elf = parse(&program()).unwrap();
    let binary = elf.binary(file());
    assert_eq!((binary.kind, binary.file, binary.align), (ElfType::Fixed, file(), 0x1000));
    let code = Segment {
        addr: 0x40_0000,
        offset: 0,
        file_len: 0x1800,
        mem_len: 0x1800,
        prot: Prot::READ | Prot::EXEC,
    };
    let data = Segment { addr: 0x40_2800, offset: 0x1800, file_len: 0x10, mem_len: 0x3000, prot: RW };
    assert_eq!(binary.segments, [code, data]);
    for bias in [0, 0x5555_0000_0000] {
        assert_eq!(elf.entry(bias), bias + 0x40_0123);
        assert_eq!(elf.headers_addr(bias), bias + 0x40_0040);
    }
    assert_eq!((elf.kind(), elf.header_count(), elf.header_len()), (ElfType::Fixed, 3, 56));
    assert_eq!(elf.interpreter(), Ok(None));
    // The last that has the first header tells where they are; if there is none, nobody.
    let both = set(SECOND + 8, 0);
    assert_eq!(parse(&both).map(|elf| elf.headers_addr(0)), Err(ElfError::Misaligned));
    let both = with(|bytes| {
        bytes[SECOND + 8..SECOND + 16].fill(0);
        bytes[SECOND + 16..SECOND + 24].copy_from_slice(&0x40_3000_u64.to_le_bytes());
        bytes[SECOND + 32..SECOND + 40].copy_from_slice(&0x41_u64.to_le_bytes());
    });
    assert_eq!(parse(&both).unwrap().headers_addr(5), 0x40_3045);
    let short = set(SEGMENTS + 32, 0x40);
    assert_eq!(parse(&short).unwrap().headers_addr(7), 7);
}

#[test]
fn the_greatest_alignment_counts_if_it_is_a_power_of_two() {
    let align = |first: u64, second: u64| {
        let bytes = with(|bytes| {
            bytes[SEGMENTS + 48..SEGMENTS + 56].copy_from_slice(&first.to_le_bytes());
            bytes[SECOND + 48..SECOND + 56].copy_from_slice(&second.to_le_bytes());
        });
        parse(&bytes).unwrap().binary(file()).align
    };
    assert_eq!(align(0x1000, 0x20_0000), 0x20_0000);
    assert_eq!(align(0x1000, 0x30_0000), 0x1000);
    assert_eq!(align(0x800, 0), 0x1000);
    assert_eq!(align(0x3000, 0), 0);
}

#[test]
fn the_stack_may_be_executed_only_if_the_program_says_so() {
    let prot = |bytes: &[u8]| parse(bytes).unwrap().stack_prot();
    let stack = SECOND + PROGRAM_HEADER;
    assert_eq!(prot(&program()), RW);
    assert_eq!(prot(&with(|bytes| bytes[stack + 4] = 7)), RW | Prot::EXEC);
    assert_eq!(prot(&with(|bytes| bytes[stack + 4] = 1)), RW | Prot::EXEC);
    assert_eq!(prot(&with(|bytes| bytes[stack] = 0)), RW);
}

#[test]
fn a_segment_may_be_empty_or_all_zeros_wherever_it_lies_and_overlap_another() {
    assert!(parse(&with(|bytes| bytes[SECOND + 32..SECOND + 48].fill(0))).is_ok());
    let zeros = with(|bytes| {
        bytes[SECOND + 16] = 1;
        bytes[SECOND + 32..SECOND + 40].fill(0);
    });
    assert_eq!(parse(&zeros).unwrap().segments()[1].addr, 0x40_2801);
    assert!(parse(&set(SECOND + 16, 0x40_0800)).is_ok());
}

#[test]
fn each_wrong_field_is_told() {
    use ElfError::*;
    let cases: [(Vec<u8>, ElfError); 17] = [
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
        (with(|bytes| bytes.truncate(Elf::HEADER + 3 * PROGRAM_HEADER - 1)), HeadersOutOfReach),
        (set(32, u64::MAX), HeadersOutOfReach),
        (with(|bytes| (bytes[SEGMENTS], bytes[SECOND]) = (0, 0)), NoSegments),
        (set(SECOND + 32, 0x3001), FileLongerThanMemory),
        (set(SECOND + 16, u64::MAX - 0x7ff), Wraps),
        (set(SECOND + 40, u64::MAX), Wraps),
        (set(SECOND + 16, 0x40_2801), Misaligned),
    ];
    for (at, (bytes, expected)) in cases.iter().enumerate() {
        assert_eq!(parse(bytes).err(), Some(*expected), "case {at}");
    }
    let offset = with(|bytes| {
        bytes[SECOND + 8..SECOND + 16].copy_from_slice(&(u64::MAX - 0x7ff).to_le_bytes());
        bytes[SECOND + 32..SECOND + 40].copy_from_slice(&0x1000_u64.to_le_bytes());
    });
    assert_eq!(parse(&offset).err(), Some(Wraps));
}

#[test]
fn an_interpreter_has_a_name() {
    let named = |len: u64| {
        with(|bytes| {
            bytes[SECOND] = PT_INTERP as u8;
            bytes[SECOND + 32..SECOND + 40].copy_from_slice(&len.to_le_bytes());
        })
    };
    let asked = |len| parse(&named(len)).and_then(|elf| elf.interpreter());
    assert_eq!(asked(28), Ok(Some((0x1800, 28))));
    assert_eq!(asked(PATH_MAX), Ok(Some((0x1800, PATH_MAX))));
    assert_eq!(asked(1), Err(ElfError::BadInterpreter));
    assert_eq!(asked(PATH_MAX + 1), Err(ElfError::BadInterpreter));
    assert!(parse(&named(1)).is_ok(), "for an interpreter that is no matter");
    let lies = |offset: u64| {
        let mut bytes = named(28);
        bytes[SECOND + 8..SECOND + 16].copy_from_slice(&offset.to_le_bytes());
        parse(&bytes).and_then(|elf| elf.interpreter())
    };
    let last = i64::MAX as u64 - 28;
    assert_eq!(lies(last), Ok(Some((last, 28))));
    assert_eq!([last + 1, 1 << 63, u64::MAX].map(lies), [Err(ElfError::InterpreterNowhere); 3]);
}

#[test]
fn there_is_room_for_so_many_segments() {
    let many = |count: usize| {
        with(|bytes| {
            let load = bytes[SEGMENTS..SECOND].to_vec();
            bytes.truncate(Elf::HEADER);
            bytes[56] = count as u8;
            for at in 0..count as u64 {
                let mut load = load.clone();
                load[16..24].copy_from_slice(&(0x40_0000 + at * 0x2000).to_le_bytes());
                bytes.extend(load);
            }
        })
    };
    assert_eq!(parse(&many(MAX_SEGMENTS + 1)).err(), Some(ElfError::TooManySegments));
    assert_eq!(parse(&many(MAX_SEGMENTS)).unwrap().segments().len(), MAX_SEGMENTS);
}
