//! Random operations.

use super::call::{Call, File};
use super::random::Random;

/// A limit of a process. Those that are relative stand that far above what is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Limit {
    /// As at the start.
    Default,
    AddressSpace {
        spare_pages: u64,
    },
    Data {
        spare_pages: u64,
    },
    /// None at all, as far as the soft limit says.
    NoData,
    Stack {
        pages: u64,
    },
    /// `u64::MAX` for none.
    Memlock {
        bytes: u64,
    },
}

/// An operation. Addresses are absolute.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Call(Call),
    Mincore {
        addr: u64,
        len: u64,
    },
    Load {
        addr: u64,
    },
    Store {
        addr: u64,
    },
    /// The same as `Mmap`, with the offset in pages.
    Mmap2 {
        addr: u64,
        len: u64,
        prot: u64,
        flags: u64,
        file: File,
        pages: u64,
    },
    Sbrk {
        delta: i64,
    },
    Limit(Limit),
    /// Goes on in a child.
    Fork,
    /// Goes on in the parent.
    Exit,
    /// Runs a program in another process.
    Exec,
}

const PAGE: u64 = 4096;

/// Makes operations that often meet each other in an arena.
pub(crate) struct Maker {
    random: Random,
    base: u64,
    end: u64,
    task_size: u64,
    heap: u64,
}

impl Maker {
    pub(crate) fn new(seed: u64, base: u64, end: u64, task_size: u64, heap: u64) -> Self {
        Self { random: Random::new(seed), base, end, task_size, heap }
    }

    fn pages(&mut self) -> u64 {
        match self.random.below(40) {
            0 => 512,
            1 => 512 * (1 + self.random.below(3)),
            2 => self.random.below(300),
            3 => 0,
            _ => 1 + self.random.below(8),
        }
    }

    fn len(&mut self) -> u64 {
        match self.random.below(60) {
            0 => self.random.pick(&[u64::MAX, u64::MAX - PAGE + 1, u64::MAX - PAGE, self.task_size, 1 << 46]),
            1..=3 => self.pages() * PAGE + 1 + self.random.below(PAGE - 1),
            _ => self.pages() * PAGE,
        }
    }

    /// An address in one of a few places where things meet.
    fn addr(&mut self) -> u64 {
        let size = self.end - self.base;
        let place = match self.random.below(8) {
            0 => 0x20 * PAGE,
            1 => size - 0x40 * PAGE,
            2 => 0x200 * PAGE - 8 * PAGE,
            3 => self.heap - self.base,
            4 => 0x1000 * PAGE,
            _ => 0x2000 * PAGE,
        };
        let addr = self.base + place + self.random.below(0x28) * PAGE;
        match self.random.below(60) {
            0 => addr + 1 + self.random.below(PAGE - 1),
            1 => self.random.pick(&[
                u64::MAX - PAGE + 1,
                self.task_size,
                self.task_size - PAGE,
                self.task_size + PAGE,
            ]),
            _ => addr,
        }
    }

    fn hint(&mut self) -> u64 {
        if self.random.one_in(3) { 0 } else { self.addr() }
    }

    fn prot(&mut self) -> u64 {
        match self.random.below(30) {
            0 => self.random.pick(&[0x8, 0x10, 0x0100_0003, 0x0200_0001, 0x0300_0000, 0x80]),
            1 => self.random.below(8),
            _ => self.random.pick(&[0, 1, 1, 3, 3, 3, 5, 7, 2]),
        }
    }

    fn file(&mut self) -> File {
        match self.random.below(12) {
            0 => File::Bad,
            1 if self.random.one_in(3) => File::Pipe,
            n => File::Number((n % 4) as usize),
        }
    }

    fn mmap(&mut self) -> Op {
        let random = &mut self.random;
        let mut flags = random.pick(&[2, 2, 2, 2, 2, 1, 1, 3, 0, 8]);
        let anonymous = !random.one_in(3);
        if anonymous {
            flags |= 0x20;
        }
        for (flag, rarity) in [
            (0x10, 3),
            (0x10_0000, 6),
            (0x100, 12),
            (0x4000, 10),
            (0x2000, 12),
            (0x8000, 10),
            (0x1_0000, 20),
            (0x2_0000, 12),
        ] {
            if random.one_in(rarity) {
                flags |= flag;
            }
        }
        let huge = random.one_in(40);
        if huge {
            // Neither over anything: the kernel unmaps that, and then sees that it has no huge pages; nor where it likes, which depends on a free
            // range of huge pages; and NORESERVE would let it find out even later.
            flags &= !(0x10 | 0x4000);
            flags |= 0x10_0000 | random.pick(&[0x4_0000, 0x4_0000, 21 << 26 | 0x4_0000, 5 << 26 | 0x4_0000]);
        }
        let offset = match random.below(30) {
            0 => random.pick(&[1, 0x800, u64::MAX - PAGE + 1, 1 << 62, (1 << 63) - PAGE]),
            _ => random.below(8) * PAGE,
        };
        // Exactly at an address outside the arena the child's own memory lies.
        let fixed = flags & 0x10 != 0;
        let addr = match (huge, fixed) {
            (true, _) => self.huge(),
            (false, true) => self.fixed(),
            (false, false) => self.hint(),
        };
        let len = if fixed { self.len_within(addr) } else { self.len() };
        Op::Call(Call::Mmap {
            addr,
            len,
            prot: self.prot(),
            flags,
            file: if anonymous { File::None } else { self.file() },
            offset,
        })
    }

    /// An address where a huge page may begin, as a rule.
    fn huge(&mut self) -> u64 {
        if self.random.one_in(4) { self.fixed() } else { self.base + (self.random.below(512) << 21) }
    }

    /// An address for calls that would do harm outside the arena.
    fn fixed(&mut self) -> u64 {
        match self.random.below(50) {
            0 => 0,
            1 => PAGE - 1,
            2 => self.task_size,
            _ => loop {
                let addr = self.addr();
                if (self.base..self.end).contains(&addr) {
                    break addr;
                }
            },
        }
    }

    /// A length that stays in the arena from there, or is refused for its size.
    fn len_within(&mut self, addr: u64) -> u64 {
        let len = self.len();
        if addr < self.base {
            return len.min(PAGE);
        }
        let room = (self.end + PAGE - 1).saturating_sub(addr) & !(PAGE - 1);
        if len < 1 << 40 {
            len.min(room.saturating_sub(PAGE))
        } else {
            u64::MAX - PAGE + 2 + self.random.below(PAGE - 2)
        }
    }

    fn range(&mut self) -> (u64, u64) {
        let addr = self.fixed();
        let len = self.len_within(addr);
        (addr, len)
    }

    /// A range that may also be nonsense, for calls that change nothing outside the arena.
    fn loose(&mut self) -> (u64, u64) {
        let (addr, len) = self.range();
        // From the arena these wrap around; from address 0 they would reach the child's own memory.
        if addr >= self.base && self.random.one_in(40) {
            (addr, self.random.pick(&[u64::MAX, u64::MAX - PAGE]))
        } else {
            (addr, len)
        }
    }

    fn mremap(&mut self) -> Op {
        // A shrink unmaps what the old length reaches, so that it must stay in the arena.
        let (addr, mut old) = self.range();
        if self.random.one_in(20) {
            old = 0;
        }
        let flags = match self.random.below(20) {
            0 => self.random.below(16),
            _ => self.random.pick(&[0, 1, 1, 1, 3, 3, 3, 5, 7]),
        };
        let same = self.random.one_in(2);
        let to = if flags & 2 != 0 { self.fixed() } else { self.hint() };
        let new = if same { old } else { self.len_within(to.max(self.base)) };
        let new = if flags & 2 != 0 { new.min(self.end.saturating_sub(to)) } else { new };
        Op::Call(Call::Mremap { addr, old, new, flags, to })
    }

    fn limit(&mut self) -> Limit {
        let bytes = self.random.pick(&[0, 0, 8 * PAGE, u64::MAX, u64::MAX]);
        let spare_pages = self.random.pick(&[0, 1, 5, 40]);
        match self.random.below(9) {
            0 => Limit::AddressSpace { spare_pages },
            1 if self.random.one_in(4) => Limit::NoData,
            1 => Limit::Data { spare_pages },
            2 => Limit::Stack { pages: self.random.pick(&[1, 8, 64]) },
            3..=4 => Limit::Memlock { bytes },
            _ => Limit::Default,
        }
    }

    /// What is done to the process rather than to its memory, and what is only called otherwise.
    fn rare(&mut self) -> Option<Op> {
        Some(match self.random.below(1_000) {
            0 => Op::Fork,
            1 => Op::Exit,
            2 if self.random.one_in(3) => Op::Exec,
            3..=14 => Op::Limit(self.limit()),
            15..=17 => Op::Sbrk { delta: self.random.below(0x60) as i64 * 2_000 - 0x50_000 / 2 },
            18..=33 => {
                let Op::Call(Call::Mmap { addr, len, prot, flags, file, offset }) = self.mmap() else {
                    return None;
                };
                let pages = match self.random.below(10) {
                    0 => self.random.pick(&[1 << 50, (1 << 52) - 1, (1 << 51) - 1]),
                    _ => offset / PAGE,
                };
                Op::Mmap2 { addr, len, prot, flags, file, pages }
            }
            _ => return None,
        })
    }

    pub(crate) fn next(&mut self) -> Op {
        if let Some(op) = self.rare() {
            return op;
        }
        match self.random.below(100) {
            0..=27 => self.mmap(),
            28..=38 => {
                let (addr, len) = self.range();
                Op::Call(Call::Munmap { addr, len })
            }
            39..=52 => {
                let (addr, len) = self.range();
                Op::Call(Call::Mprotect { addr, len, prot: self.prot() })
            }
            53..=62 => self.mremap(),
            63..=72 => {
                let (addr, len) = self.loose();
                let advice = self.random.pick(&[
                    0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 102, 103,
                    99, 5,
                ]);
                Op::Call(Call::Madvise { addr, len, advice })
            }
            73..=75 => {
                let (addr, len) = self.loose();
                Op::Call(Call::Mlock { addr, len })
            }
            76 => {
                let (addr, len) = self.loose();
                Op::Call(Call::Mlock2 { addr, len, flags: self.random.pick(&[0, 1, 1, 2]) })
            }
            77..=78 => {
                let (addr, len) = self.loose();
                Op::Call(Call::Munlock { addr, len })
            }
            79 => match self.random.below(4) {
                0 => Op::Call(Call::Mlockall { flags: self.random.pick(&[0, 1, 2, 2, 4, 6, 8, 3]) }),
                _ => Op::Call(Call::Munlockall),
            },
            80..=82 => {
                let (addr, len) = self.loose();
                Op::Call(Call::Msync { addr, len, flags: self.random.pick(&[0, 1, 2, 4, 5, 6, 8, 3]) })
            }
            83..=84 => {
                let (addr, len) = self.loose();
                Op::Mincore { addr, len: len.min(1 << 48) }
            }
            85..=87 => Op::Call(Call::Brk {
                addr: self.heap + self.random.below(0x30) * PAGE + self.random.below(3) - 1,
            }),
            88..=90 => Op::Load { addr: self.fixed() },
            _ => Op::Store { addr: self.fixed() },
        }
    }
}
