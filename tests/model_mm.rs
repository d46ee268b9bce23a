//! Random calls on several address spaces against a naive model of pages.
//!
//! `KERNMM_LONG=1` runs a hundred times as long; `KERNMM_SEED=n` begins with another seed.

#[path = "space/model.rs"]
mod model;

use model::{Limits, Means, Op};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Places where operations meet.
    fn at(&mut self) -> u16 {
        let place = [0x20, 0x800, 0xf80][self.below(3) as usize];
        let page = place + self.below(0x40);
        (page << 3) as u16 | if self.one_in(50) { 7 } else { 0 }
    }

    fn len(&mut self) -> u16 {
        (self.below(10) << 4) as u16 | if self.one_in(40) { 15 } else { 0 }
    }

    fn flags(&mut self) -> u32 {
        let mut flags = [2, 2, 2, 1, 3][self.below(5) as usize];
        for (flag, rarity) in [
            (0x20, 2),
            (0x10, 2),
            (0x10_0000, 8),
            (0x100, 12),
            (0x4000, 8),
            (0x2000, 12),
            (0x8000, 12),
            (0x2_0000, 12),
        ] {
            if self.one_in(rarity) {
                flags |= flag;
            }
        }
        flags
    }

    fn op(&mut self) -> Op {
        let (at, len) = (self.at(), self.len());
        let prot = [0, 1, 3, 3, 5, 7, 2, 8][self.below(8) as usize];
        let byte = self.next() as u8;
        match self.below(64) {
            0..=17 => Op::Mmap { at, len, prot, flags: self.flags(), file: byte >> 4, offset: byte & 15 },
            18..=25 => Op::Munmap { at, len },
            26..=33 => Op::Mprotect { at, len, prot },
            34..=40 => {
                let new = if self.one_in(2) { len } else { self.len() };
                let flags = [0, 1, 1, 3, 3, 5, 7, 8][self.below(8) as usize];
                Op::Mremap { at, old: len, new, flags, to: self.at() }
            }
            41..=47 => Op::Madvise { at, len, advice: byte % 26 },
            48..=49 => Op::Mlock { at, len, flags: byte & 1 },
            50 => Op::Munlock { at, len },
            51 => Op::Mlockall { flags: byte },
            52 => Op::Munlockall,
            53 => Op::Msync { at, len, flags: byte },
            54..=55 => Op::Brk { to: len },
            56..=59 => Op::Touch { at, write: byte & 1 == 0 },
            60 => Op::Fork,
            61 => Op::Exit,
            62 => Op::Switch { to: byte },
            _ => Op::Wild { verb: byte, a: self.wild(), b: self.wild(), c: self.wild(), d: self.wild() },
        }
    }

    fn wild(&mut self) -> u64 {
        let edges =
            [0, 1, 4095, 4096, (16 << 20) - 4096, 16 << 20, u64::MAX - 4096, u64::MAX - 4095, u64::MAX];
        edges[self.below(edges.len() as u64) as usize]
    }
}

fn seeds() -> std::ops::Range<u64> {
    let runs = if std::env::var_os("KERNMM_LONG").is_some() { 5_000 } else { 50 };
    let first = std::env::var("KERNMM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("seeds {first} to {}", first + runs - 1);
    first..first + runs
}

fn run(means: Means) {
    for seed in seeds() {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let operations: Vec<Op> = (0..400).map(|_| random.op()).collect();
        println!("seed {seed}");
        model::run(&operations, means);
    }
}

#[test]
fn random_calls_do_to_pages_what_they_say() {
    run(Means { slots: 1024, limits: Limits::Linux });
}

#[test]
fn random_calls_with_few_slots_fail_cleanly() {
    run(Means { slots: 20, limits: Limits::Linux });
}

#[test]
fn random_calls_with_tight_limits_are_refused_for_a_want_alone() {
    run(Means { slots: 1024, limits: Limits::Tight });
}
