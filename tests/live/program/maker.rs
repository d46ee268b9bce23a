//! Random operations that meet what is there.

use kernmm::mm::Vma;

use super::op::{ACCESS, Bytes, Op, Step};
use super::place::{self, ARENA, BASE, END, HEAP, MAX_SIZE, OPENINGS, PAGE, REGULAR, TASK_SIZE};
use crate::live::call::{Call, File};
use crate::live::random::Random;

/// What is known of the world that an operation is made for.
pub(crate) struct View<'a> {
    /// The processes that live.
    pub(crate) alive: &'a [usize],
    /// Whether there is room for another.
    pub(crate) may_fork: bool,
    /// What a process has mapped in the arena.
    pub(crate) arena: &'a dyn Fn(usize) -> Vec<Vma>,
    /// The length of a file.
    pub(crate) size: &'a dyn Fn(usize) -> u64,
    /// Where in a VMA its file ends.
    pub(crate) end_of_file: &'a dyn Fn(&Vma) -> Option<u64>,
}

/// A process's memory.
struct Memory<'a> {
    vmas: Vec<Vma>,
    end_of_file: &'a dyn Fn(&Vma) -> Option<u64>,
}

pub(crate) struct Maker(Random);

const READ: u64 = 1;
const WRITE: u64 = 2;
const EXEC: u64 = 4;
const SHARED: u64 = 0x1;
const PRIVATE: u64 = 0x2;
const FIXED: u64 = 0x10;
const ANONYMOUS: u64 = 0x20;

impl Maker {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    pub(crate) fn next(&mut self, view: &View<'_>) -> Step {
        let by = self.0.pick(view.alive);
        let memory = Memory { vmas: (view.arena)(by), end_of_file: view.end_of_file };
        let op = match self.0.below(1000) {
            0..70 => self.mmap(&memory),
            70..100 => self.on_range(&memory, |addr, len| Op::Call(Call::Munmap { addr, len })),
            100..150 => {
                let prot = self.prot();
                self.on_range(&memory, |addr, len| Op::Call(Call::Mprotect { addr, len, prot }))
            }
            150..205 => self.mremap(&memory),
            205..300 => self.madvise(&memory),
            300..330 => self.lock(&memory),
            330..345 => {
                let flags = self.0.pick(&[1, 2, 4, 4, 6, 0]);
                self.on_range(&memory, |addr, len| Op::Call(Call::Msync { addr, len, flags }))
            }
            345..360 => self.on_range(&memory, |addr, len| Op::Mincore { addr, len }),
            360..375 => Op::Call(Call::Brk { addr: HEAP + self.0.below(0x18) * PAGE + self.0.below(3) - 1 }),
            375..535 => Op::Load { addr: self.byte(&memory), len: self.access() },
            535..735 => {
                let addr = self.byte(&memory);
                Op::Store { addr, bytes: self.bytes(addr) }
            }
            735..750 => self.exchange(&memory),
            750..775 => Op::Fetch { addr: self.page(&memory) },
            775..800 => Op::WritePipe { addr: self.byte(&memory), len: self.access() },
            800..835 => {
                let addr = self.byte(&memory);
                Op::ReadPipe { addr, bytes: self.bytes(addr) }
            }
            835..890 => self.file_call(&memory, view),
            890..920 => self.others(view),
            920..950 => self.truncate(view),
            950..976 if view.may_fork => Op::Fork,
            976..990 if view.alive.len() > 1 => Op::Exit,
            _ => Op::Load { addr: self.byte(&memory), len: 1 },
        };
        Step { by, op }
    }

    /// How many pages, not many as a rule.
    fn pages(&mut self) -> u64 {
        match self.0.below(60) {
            0 => 512,
            1 => 512 + self.0.below(600),
            2..=4 => self.0.below(80),
            5 => 0,
            _ => 1 + self.0.below(8),
        }
    }

    fn len(&mut self) -> u64 {
        match self.0.below(40) {
            0 => self.0.pick(&[u64::MAX, u64::MAX - PAGE + 1, TASK_SIZE, 1 << 46]),
            1..=2 => self.pages() * PAGE + 1 + self.0.below(PAGE - 1),
            _ => self.pages() * PAGE,
        }
    }

    /// A page where others are wont to be: around the start, the first 2 MiB, the heap and the end.
    fn place(&mut self) -> u64 {
        let at = self.0.pick(&[0x20, 0x1f8, 0x800, ARENA / PAGE - 0x40, ARENA / PAGE - 0x40]);
        BASE + (at + self.0.below(0x20)) * PAGE
    }

    fn vma<'m>(&mut self, memory: &'m Memory<'_>) -> Option<&'m Vma> {
        let vmas = &memory.vmas;
        vmas.get(self.0.below(vmas.len().max(1) as u64) as usize)
    }

    /// A page, of a VMA as a rule.
    fn page(&mut self, memory: &Memory<'_>) -> u64 {
        let Some(vma) = self.vma(memory).filter(|_| !self.0.one_in(12)) else {
            return match self.0.below(30) {
                0 => self.0.pick(&[0, TASK_SIZE, 1 << 63, u64::MAX - PAGE + 1, 1 << 47]),
                _ => self.place(),
            };
        };
        let last = vma.pages() - 1;
        let page = match self.0.below(4) {
            0 => 0,
            1 => last,
            _ => self.0.below(last.min(40) + 1),
        };
        let at = vma.start.get() + page * PAGE;
        match self.0.below(20) {
            0 => vma.end.get(),
            1 => vma.start.get() - PAGE,
            _ => at,
        }
    }

    /// A byte: at the start of a page, at its end, around the end of a file, anywhere.
    fn byte(&mut self, memory: &Memory<'_>) -> u64 {
        let vma = self.vma(memory).filter(|_| self.0.one_in(5));
        if let Some(end) = vma.and_then(|vma| (memory.end_of_file)(vma)) {
            return end + self.0.below(40) - 10;
        }
        let page = self.page(memory);
        let offset = match self.0.below(8) {
            0..4 => self.0.below(24),
            4..6 => PAGE - 1 - self.0.below(6),
            6 => self.0.pick(&[98, 99, 100, 101, 1999, 2000, 2001]),
            _ => self.0.below(PAGE),
        };
        page + offset
    }

    /// How many bytes are touched at once.
    fn access(&mut self) -> usize {
        self.0.pick(&[1, 1, 1, 2, 4, ACCESS])
    }

    fn bytes(&mut self, at: u64) -> Bytes {
        let bytes = place::bytes(&mut self.0, at);
        Bytes::new(bytes, self.access())
    }

    fn prot(&mut self) -> u64 {
        match self.0.below(40) {
            0 => self.0.pick(&[0x8, 0x10, 0x0100_0003, 0x0200_0001, 0x80]),
            _ => self.0.pick(&[0, READ, READ, 3, 3, 3, 3, 3, 5, 7, 7, WRITE, EXEC, 6]),
        }
    }

    /// An address that calls may do harm to: in the arena, or one that is refused.
    fn fixed(&mut self, memory: &Memory<'_>) -> u64 {
        if self.0.one_in(60) {
            return self.0.pick(&[0, PAGE - 1, TASK_SIZE]);
        }
        let page = match self.0.below(3) {
            0 => self.place(),
            _ => self.page(memory),
        };
        let page = page.clamp(BASE, END - PAGE);
        if self.0.one_in(80) { page + 1 + self.0.below(PAGE - 1) } else { page }
    }

    /// A length that stays in the arena from there, or is refused for its size.
    fn len_within(&mut self, addr: u64) -> u64 {
        let len = self.len();
        if addr < BASE {
            return len.min(PAGE);
        }
        let room = END.saturating_sub(addr) & !(PAGE - 1);
        match len < 1 << 40 {
            true => len.min(room),
            false => u64::MAX - PAGE + 2 + self.0.below(PAGE - 2),
        }
    }

    fn range(&mut self, memory: &Memory<'_>) -> (u64, u64) {
        if let Some(vma) = self.vma(memory).filter(|_| self.0.one_in(6)) {
            return (vma.start.get(), vma.range().len());
        }
        let addr = self.fixed(memory);
        let len = self.len_within(addr);
        // No longer than the VMA, as a rule.
        let end = memory.vmas.iter().find(|vma| vma.range().contains(addr.into())).map(|vma| vma.end.get());
        match end.filter(|_| self.0.one_in(2)) {
            Some(end) => (addr, len.min(end - addr)),
            None => (addr, len),
        }
    }

    fn on_range(&mut self, memory: &Memory<'_>, op: impl FnOnce(u64, u64) -> Op) -> Op {
        let (addr, len) = self.range(memory);
        op(addr, len)
    }

    fn mmap(&mut self, memory: &Memory<'_>) -> Op {
        let file = match self.0.below(40) {
            0 if self.0.one_in(2) => File::Pipe,
            0 => File::Bad,
            1..20 => File::None,
            _ => File::Number(self.0.below(OPENINGS.len() as u64) as usize),
        };
        let mut flags = self.0.pick(&[PRIVATE, PRIVATE, PRIVATE, SHARED, SHARED]);
        if self.0.one_in(30) {
            flags = self.0.pick(&[0, 3]);
        }
        if file == File::None {
            flags |= ANONYMOUS;
        }
        for (flag, rarity) in [
            (FIXED, 3),
            (0x10_0000, 12),
            (0x100, 16),
            (0x4000, 16),
            (0x2000, 16),
            (0x8000, 8),
            (0x1_0000, 20),
            (0x2_0000, 20),
        ] {
            if self.0.one_in(rarity) {
                flags |= flag;
            }
        }
        let fixed = flags & (FIXED | 0x10_0000) != 0;
        let addr = match fixed {
            true => self.fixed(memory),
            false if self.0.one_in(2) => 0,
            false => self.place(),
        };
        let mut len = if fixed { self.len_within(addr) } else { self.len() };
        // Long mappings of files are placed as the file system likes.
        if matches!(file, File::Number(file) if OPENINGS[file].0 == REGULAR) && len < 1 << 40 {
            len = len.min(64 * PAGE);
        }
        let offset = match self.0.below(40) {
            0 => self.0.pick(&[1, 0x800, u64::MAX - PAGE + 1, 1 << 62]),
            1..20 => 0,
            _ => self.0.below(12) * PAGE,
        };
        Op::Call(Call::Mmap { addr, len, prot: self.prot(), flags, file, offset })
    }

    fn mremap(&mut self, memory: &Memory<'_>) -> Op {
        let (addr, mut old) = self.range(memory);
        if self.0.one_in(15) {
            old = 0;
        }
        let flags = match self.0.below(20) {
            0 => self.0.below(16),
            _ => self.0.pick(&[0, 1, 1, 1, 1, 3, 3, 5, 7]),
        };
        let to = match flags & 2 != 0 {
            true => self.fixed(memory),
            false => self.place(),
        };
        let new = if self.0.one_in(2) { old } else { self.len_within(to.max(BASE)) };
        let new = if flags & 2 != 0 { new.min(END.saturating_sub(to)) } else { new };
        Op::Call(Call::Mremap { addr, old, new, flags, to })
    }

    fn madvise(&mut self, memory: &Memory<'_>) -> Op {
        let anonymous = self.vma(memory).filter(|vma| vma.backing.is_anonymous()).copied();
        if let Some(vma) = anonymous.filter(|_| self.0.one_in(20)) {
            // Huge pages are made of small ones there alone: no whole one is named.
            let page = self.0.below(vma.pages());
            let addr = vma.start.get() + page * PAGE;
            let len = (1 + self.0.below(6)).min(vma.pages() - page) * PAGE;
            return Op::Call(Call::Madvise { addr, len, advice: 25 });
        }
        let advice = self.advice();
        self.on_range(memory, |addr, len| Op::Call(Call::Madvise { addr, len, advice }))
    }

    fn advice(&mut self) -> i32 {
        match self.0.below(30) {
            0 => self.0.pick(&[0, 1, 2, 99, 5]),
            // Of those that ask for reclaim only the one that takes nothing away.
            1 => self.0.pick(&[12, 13, 16, 17, 20]),
            _ => self.0.pick(&[
                4, 4, 4, 4, 8, 8, 9, 9, 10, 11, 11, 18, 18, 19, 22, 22, 23, 23, 24, 102, 102, 103, 103, 14,
                15, 3,
            ]),
        }
    }

    fn lock(&mut self, memory: &Memory<'_>) -> Op {
        let kind = self.0.below(20);
        let flags = self.0.pick(&[0, 1, 1, 2]);
        match kind {
            0 => Op::Call(Call::Mlockall { flags: self.0.pick(&[0, 1, 2, 2, 6, 4]) }),
            1..4 => Op::Call(Call::Munlockall),
            4..9 => self.on_range(memory, |addr, len| Op::Call(Call::Munlock { addr, len })),
            9..13 => self.on_range(memory, |addr, len| Op::Call(Call::Mlock2 { addr, len, flags })),
            _ => self.on_range(memory, |addr, len| Op::Call(Call::Mlock { addr, len })),
        }
    }

    fn exchange(&mut self, memory: &Memory<'_>) -> Op {
        let addr = self.byte(memory) & !3;
        let new = u32::from_le_bytes(place::bytes(&mut self.0, addr));
        Op::Exchange { addr, current: 0, new }
    }

    /// An offset in a file: near its end as a rule.
    fn offset(&mut self, size: u64) -> u64 {
        match self.0.below(3) {
            0 => self.0.below(size + 1),
            1 => size.saturating_sub(self.0.below(2 * PAGE)),
            _ => size + self.0.below(PAGE),
        }
    }

    fn file_call(&mut self, memory: &Memory<'_>, view: &View<'_>) -> Op {
        let file = self.0.below(OPENINGS.len() as u64) as usize;
        let offset = self.offset((view.size)(OPENINGS[file].0)).min(MAX_SIZE - 3 * PAGE);
        let addr = self.byte(memory);
        let len = self.0.pick(&[1, 8, 100, PAGE, PAGE, 2 * PAGE + 50]);
        match self.0.one_in(2) {
            true => Op::ReadFile { file, addr, len, offset },
            false => Op::WriteFile { file, addr, len, offset },
        }
    }

    fn others(&mut self, view: &View<'_>) -> Op {
        let file = self.0.pick(&[0, 2, 4]);
        let offset = self.offset((view.size)(OPENINGS[file].0)).min(MAX_SIZE - PAGE);
        match self.0.one_in(3) {
            true => Op::OtherReads { file, len: 64, offset },
            false => Op::OtherWrites { file, bytes: self.bytes(offset), offset },
        }
    }

    fn truncate(&mut self, view: &View<'_>) -> Op {
        let file = self.0.pick(&[0, 2, 4]);
        let size = (view.size)(OPENINGS[file].0);
        let pages = self.0.below(8);
        let size = match self.0.below(4) {
            0 => size.saturating_sub(pages * PAGE),
            1 => size + pages * PAGE,
            2 => size.saturating_sub(self.0.below(pages * PAGE + 1)),
            _ => size + self.0.below(2 * pages * PAGE + 1),
        };
        // Files that have become short grow again.
        let size = if size < 2 * PAGE && self.0.one_in(2) { size + 12 * PAGE } else { size };
        Op::Truncate { file, size: size.min(MAX_SIZE) }
    }
}
