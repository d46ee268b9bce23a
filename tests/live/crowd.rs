//! As many VMAs as there may be: what would make one more.

use kernmm::addr::VirtAddr;
use kernmm::flags::{MapFlags, Prot};
use kernmm::syscall::{self, MmapArgs};

use super::call::{Call, File};
use super::ops::{Limit, Op};
use super::table::Table;
use super::world::{BASE, HEAP, World};

const PAGE: u64 = 4096;
const FIXED: u64 = 0x32;
const WHERE: u64 = BASE + 0x100 * PAGE;
/// Here nothing lies.
const FREE: u64 = BASE + 0x38000 * PAGE;
/// Single pages lie from here on.
const DOTS: u64 = BASE + 0x4000 * PAGE;
const MAYMOVE: u64 = 1;
const KEEPING: u64 = 7;
const DONTFORK: i32 = 10;

/// An address so many pages behind the first that is used.
const fn at(page: u64) -> u64 {
    WHERE + page * PAGE
}

const fn map(page: u64, pages: u64, prot: u64) -> Op {
    Op::Call(Call::Mmap {
        addr: at(page),
        len: pages * PAGE,
        prot,
        flags: FIXED,
        file: File::None,
        offset: 0,
    })
}

/// What is there before it gets crowded.
const BEFORE: [Op; 3] = [map(0, 8, 3), map(16, 4, 1), Op::Call(Call::Mlock { addr: at(16), len: 4 * PAGE })];

/// Ranges that wrap, which only those who may lock without limit are told of.
const WRAPPING: [Op; 4] = [
    Op::Limit(Limit::Memlock { bytes: u64::MAX }),
    Op::Call(Call::Mlock { addr: WHERE, len: u64::MAX - PAGE }),
    Op::Call(Call::Mlock2 { addr: WHERE, len: u64::MAX - PAGE, flags: 0 }),
    Op::Limit(Limit::Default),
];

/// What is called with exactly as many VMAs as there may be, and with one more.
const CROWDED: [Op; 17] = [
    Op::Call(Call::Munmap { addr: at(2), len: PAGE }),
    Op::Call(Call::Mprotect { addr: at(2), len: PAGE, prot: 1 }),
    Op::Call(Call::Mprotect { addr: at(0), len: PAGE, prot: 0 }),
    Op::Call(Call::Madvise { addr: at(2), len: PAGE, advice: DONTFORK }),
    Op::Call(Call::Mlock { addr: at(2), len: PAGE }),
    Op::Call(Call::Mlock2 { addr: at(2), len: PAGE, flags: 1 }),
    Op::Call(Call::Munlock { addr: at(17), len: PAGE }),
    Op::Call(Call::Mremap { addr: at(2), old: PAGE, new: 2 * PAGE, flags: MAYMOVE, to: 0 }),
    // One more is allowed here.
    Op::Call(Call::Brk { addr: HEAP + PAGE }),
    Op::Call(Call::Brk { addr: HEAP + 2 * PAGE }),
    Op::Sbrk { delta: PAGE as i64 },
    map(8, 1, 3),
    Op::Mmap2 { addr: 0, len: PAGE, prot: 1, flags: 0x22, file: File::None, pages: 0 },
    // Over the middle of one.
    map(2, 1, 1),
    Op::Call(Call::Munmap { addr: at(1), len: 2 * PAGE }),
    // What trims needs none.
    Op::Call(Call::Munmap { addr: at(0), len: PAGE }),
    Op::Call(Call::Munmap { addr: at(16), len: 4 * PAGE }),
];

impl World<'_> {
    /// Fills the arena with VMAs until no more are allowed, and calls on both sides what would make one more.
    pub(crate) fn crowd(mut self, table: &mut Table) -> Result<(), String> {
        self.steps(&BEFORE, table)?;
        self.steps(&WRAPPING, table)?;
        let limit = self.mm.context().sysctl().max_map_count;
        let count = u64::from(limit - self.mm.map_count());
        for n in 0..count {
            let args = MmapArgs {
                addr: DOTS + n * 2 * PAGE,
                len: PAGE,
                prot: Prot::READ,
                flags: MapFlags::from_bits_retain(FIXED),
                file: Ok(None),
                offset: 0,
            };
            let mapped = syscall::mmap(&mut self.mm, &mut self.pages, &args);
            if mapped != Ok(VirtAddr::from(args.addr)) {
                return Err(format!("dot {n} of {count}: {mapped:?}"));
            }
        }
        let theirs = self.server.dot(DOTS, count)?;
        if theirs as u64 != count || self.mm.map_count() != limit {
            return Err(format!("{theirs} of {count} dots were mapped"));
        }
        self.compare(false)?;
        self.steps(&CROWDED, table)?;
        self.compare(false)?;
        self.move_several(table)?;
        self.leave()
    }

    /// Moves several VMAs until there are too many of them, and over VMAs that make room.
    fn move_several(&mut self, table: &mut Table) -> Result<(), String> {
        let limit = self.mm.context().sysctl().max_map_count;
        let dot = |n: u64| DOTS + n * 2 * PAGE;
        let keep = |first: u64, to: u64| {
            Op::Call(Call::Mremap { addr: dot(first), old: 20 * PAGE, new: 20 * PAGE, flags: KEEPING, to })
        };
        let mut unmapped = 0;
        let mut leave_room = |world: &mut Self, table: &mut Table| {
            while world.mm.map_count() > limit - 6 {
                world.steps(&[Op::Call(Call::Munmap { addr: dot(unmapped), len: PAGE })], table)?;
                unmapped += 1;
            }
            world.compare(false)
        };
        leave_room(self, table)?;
        self.steps(&[keep(1_000, FREE)], table)?;
        self.compare(false)?;
        if self.mm.map_count() != limit - 3 {
            return Err(format!("{} VMAs at a limit of {limit}", self.mm.map_count()));
        }
        // What lies there goes first, so that all have room but for the three for which nothing goes.
        self.steps(&[Op::Call(Call::Munmap { addr: dot(2_000), len: 5 * PAGE })], table)?;
        leave_room(self, table)?;
        self.steps(&[keep(1_000, dot(2_000))], table)?;
        self.compare(false)
    }

    fn steps(&mut self, ops: &[Op], table: &mut Table) -> Result<(), String> {
        ops.iter().try_for_each(|op| self.step(op, table).map_err(|what| format!("{op:x?}: {what}")))
    }
}
