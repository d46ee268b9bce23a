//! Random programs over several processes, files and CPUs, against a naive model of all bytes.
//!
//! `KERNMM_LONG=1` runs a hundred times as long; `KERNMM_SEED=n` begins with another seed.

#[path = "pages/model.rs"]
mod model;

use kernmm::mm::HugePages;
use kernmm::platform::hosted::Mmu;
use model::{Op, Setup, Tried};

struct Random {
    state: u64,
    /// One mapping in so many is long enough for a huge page.
    rarity: u64,
}

impl Random {
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 25) % n
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// Few places at a time, so that operations meet.
    fn at(&mut self) -> u8 {
        ([0, 48, 96][self.below(3) as usize] + 16 + self.below(16)) as u8
    }

    fn pages(&mut self) -> u8 {
        if self.below(self.rarity) == 0 { 255 } else { self.below(9) as u8 }
    }

    /// Ends of pages and their middles.
    fn within(&mut self) -> u16 {
        [0, 1, 2000, 4080, 4095][self.below(5) as usize]
    }

    fn op(&mut self) -> Op {
        let (at, pages, byte, file) = (self.at(), self.pages(), self.byte(), self.below(4) as u8);
        if self.below(4) == 0 {
            return self.rarer(at, pages, byte, file);
        }
        match self.below(100) {
            0..=12 => {
                // What is long enough for a huge page is of a kind that may have some, if any may.
                let kinds = if pages == 255 && self.rarity < 60 { !7 } else { !0 };
                Op::Mmap { at, pages, prot: byte, how: self.byte() & kinds, file, offset: self.byte() }
            }
            13..=14 => Op::Munmap { at, pages },
            15..=19 => Op::Mprotect { at, pages, prot: byte },
            20..=24 => Op::Mremap { at, old: pages, new: self.pages(), how: byte, to: self.at() },
            25..=31 => Op::Madvise { at, pages, advice: byte },
            32..=48 => Op::Load { at, within: self.within(), len: self.byte(), how: byte },
            49..=68 => Op::Store { at, within: self.within(), len: self.byte(), how: self.byte(), byte },
            69..=72 => Op::Fork,
            73..=75 => Op::Exit,
            76..=79 => Op::Switch { to: byte },
            80..=82 => Op::Cpu { to: byte },
            83..=85 => Op::FileRead { file, at: self.next() as u16, len: self.next() as u16 },
            86..=89 => Op::FileWrite { file, at: self.next() as u16, len: self.next() as u16, byte },
            90..=92 => Op::Truncate { file, size: self.next() as u16 },
            93..=94 => Op::Msync { at, pages },
            95 => Op::Sync { file: file | byte & 0x80 },
            96..=97 => Op::WriteBack { file },
            98 => Op::Reap,
            _ => Op::Latency { polls: byte },
        }
    }

    fn rarer(&mut self, at: u8, pages: u8, byte: u8, file: u8) -> Op {
        match self.below(100) {
            0..=15 => Op::Copy { at, within: self.within(), len: self.next() as u16, how: self.byte(), byte },
            16..=31 => Op::Transfer {
                file,
                from: self.next() as u16,
                at,
                within: self.within(),
                len: self.next() as u16,
                how: self.byte(),
            },
            32..=40 => Op::Lock { at, pages: pages % 12, how: byte },
            41 => Op::LockAll { how: byte },
            42..=46 => Op::Brk { to: self.next() as u16, how: byte },
            47 => Op::Exec { shape: byte },
            48..=60 => Op::Pin { at, pages, how: self.byte() },
            61..=67 => Op::Dma { pin: self.byte(), within: self.within(), byte },
            68..=73 => Op::Unpin { pin: byte },
            74..=85 => Op::FailStore { file, how: byte, kind: self.byte() },
            86..=88 => Op::Busy { every: byte },
            89..=96 => Op::FailAllocation { nth: byte },
            _ => Op::Reopen { file },
        }
    }
}

/// Runs 2,500 operations, or a hundred times as many, in programs of 250.
fn run(setup: Setup) -> Tried {
    let programs = if std::env::var_os("KERNMM_LONG").is_some() { 1000 } else { 10 };
    let first = std::env::var("KERNMM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1_u64);
    println!("{setup:?}: seeds {first} to {}", first + programs - 1);
    let mut all = Tried::default();
    for seed in first..first + programs {
        println!("seed {seed}");
        let rarity = if setup.huge == HugePages::Never { 60 } else { 8 };
        let mut random = Random { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, rarity };
        let furnish = (0..8).map(|n| Op::Mmap {
            at: 8 * n as u8,
            pages: 3,
            prot: 0,
            how: random.byte() & 0x4f,
            file: random.byte(),
            offset: 0,
        });
        let mut furnish: Vec<Op> = furnish.collect();
        if setup.huge != HugePages::Never {
            furnish.push(Op::Mmap { at: 143, pages: 255, prot: 0, how: 0, file: 0, offset: 0 });
        }
        let operations: Vec<Op> = furnish.into_iter().chain((0..250).map(|_| random.op())).collect();
        let tried = model::run(&operations, setup);
        all.out_of_memory += tried.out_of_memory;
        all.injected += tried.injected;
        for (what, times) in tried.seen {
            *all.seen.entry(what).or_default() += times;
        }
        all.signals += tried.signals;
        all.accesses += tried.accesses;
        all.syncs += tried.syncs;
        all.calls += tried.calls;
        all.refused_calls += tried.refused_calls;
    }
    println!("{all:?}");
    let missing: Vec<_> = WANTED.iter().filter(|&what| !all.seen.contains_key(what)).collect();
    assert!(missing.is_empty(), "never happened: {missing:?}");
    assert!(all.signals > 100 && all.accesses > 2 * all.signals && all.syncs > 20, "{all:?}");
    all
}

/// What every run is to see.
const WANTED: &[&str] = &[
    "errors of writes",
    "files opened again",
    "guards",
    "heaps that grow",
    "heaps that stay",
    "locks",
    "partial copies",
    "partial transfers",
    "pins",
    "refused pins",
    "unlocks",
    "whole copies",
    "whole transfers",
    "writes by a device",
];

const PLENTY: Setup = Setup { mmu: Mmu::X86_64, frames: None, huge: HugePages::Never };

#[test]
fn bytes_are_right_with_tables_of_x86_64() {
    assert_eq!(run(PLENTY).out_of_memory, 0);
}

#[test]
fn bytes_are_right_with_tables_of_pae() {
    assert_eq!(run(Setup { mmu: Mmu::Pae, ..PLENTY }).out_of_memory, 0);
}

#[test]
fn bytes_are_right_with_tables_of_sv39() {
    assert_eq!(run(Setup { mmu: Mmu::Sv39, ..PLENTY }).out_of_memory, 0);
}

#[test]
fn bytes_are_right_when_memory_is_short() {
    assert!(run(Setup { frames: Some(110), ..PLENTY }).out_of_memory > 20);
}

#[test]
fn bytes_are_right_in_huge_pages() {
    run(Setup { huge: HugePages::Always, ..PLENTY });
}
