//! Where programs run, and on which files.

use crate::live::arena::Plan;
use crate::live::random::Random;

pub(crate) const PAGE: u64 = 4096;
pub(crate) const BASE: u64 = 0x2000_0000_0000;
pub(crate) const ARENA: u64 = 16 << 20;
pub(crate) const END: u64 = BASE + ARENA;
pub(crate) const HEAP: u64 = BASE + 0x800 * PAGE;
pub(crate) const TASK_SIZE: u64 = (1 << 47) - PAGE;
pub(crate) const MEMLOCK: u64 = 96 * PAGE;
/// A descriptor that is not open.
pub(crate) const BAD_FD: u64 = 999;

pub(crate) fn plan() -> Plan {
    Plan { arena: BASE..END, heap: HEAP, task_size: TASK_SIZE, memlock: MEMLOCK }
}

pub(crate) fn in_arena(addr: u64) -> bool {
    (BASE..END).contains(&addr)
}

/// How a file of the world is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opened {
    ReadWrite,
    ReadOnly,
    WriteOnly,
}

impl Opened {
    pub(crate) const fn reads(self) -> bool {
        !matches!(self, Self::WriteOnly)
    }

    pub(crate) const fn writes(self) -> bool {
        !matches!(self, Self::ReadOnly)
    }
}

/// The files of the world by the openings of them: which of [`SIZES`], and how.
pub(crate) const OPENINGS: [(usize, Opened); 6] = [
    (0, Opened::ReadWrite),
    (0, Opened::ReadOnly),
    (1, Opened::ReadWrite),
    (1, Opened::WriteOnly),
    (2, Opened::ReadWrite),
    (2, Opened::ReadOnly),
];
/// Bytes of the files at first. The last one lies in a file system, the others in memory.
pub(crate) const SIZES: [u64; 3] = [5 * PAGE + 100, 0x20 * PAGE, 11 * PAGE + 2000];
/// The file that lies in a file system.
pub(crate) const REGULAR: usize = 2;
/// No file becomes longer.
pub(crate) const MAX_SIZE: u64 = 48 * PAGE;

/// Instructions of one byte that change nothing that anybody relies on: they stand at the start of pages, where programs execute.
const CODE: [u8; 12] = [0x90, 0x91, 0x92, 0x96, 0x97, 0x98, 0x99, 0x9f, 0xc3, 0xf5, 0xf8, 0xf9];

/// Whether these bytes can be executed.
pub(crate) fn is_code(bytes: [u8; 2]) -> bool {
    CODE.contains(&bytes[0]) || bytes == [0, 0]
}

/// Random bytes for this place: code where pages start.
pub(crate) fn bytes<const N: usize>(random: &mut Random, at: u64) -> [u8; N] {
    let mut at = at;
    [(); N].map(|()| {
        let byte = if at % PAGE == 0 { random.pick(&CODE) } else { random.below(255) as u8 + 1 };
        at = at.wrapping_add(1);
        byte
    })
}

/// What a file holds at first.
pub(crate) fn contents(file: usize) -> Vec<u8> {
    let mut random = Random::new(file as u64 + 1);
    (0..SIZES[file]).map(|at| bytes::<1>(&mut random, at)[0]).collect()
}
