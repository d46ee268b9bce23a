//! Two threads touch the same fresh pages at the same time, on two CPUs if there are: each page comes once, and no store is lost.

use crate::{Addr, Calls, Errno, MapFlags, System};

const PAGES: u64 = 256;
const ROUNDS: u32 = 8;

/// Waits until a word has come to a value.
fn await_word<S: System>(sys: &S, word: Addr, value: u32) {
    while sys.load_atomic(word) != value {
        sys.sched_yield();
    }
}

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let gates = sys.map_anonymous(4096, MapFlags::PRIVATE)?;
    let (begins, ends) = (gates, gates + 4);
    let memory = sys.map_anonymous(PAGES * 4096, MapFlags::PRIVATE)?;
    let other = sys.thread(move |sys| {
        for round in 1..=ROUNDS {
            await_word(sys, begins, round);
            // The other way round: the two meet in the middle, and race for each page there.
            (0..PAGES).rev().for_each(|page| _ = sys.fetch_add(memory + page * 4096, 1));
            sys.fetch_add(ends, 1);
        }
    })?;
    let mut wrong = 0;
    for round in 1..=ROUNDS {
        sys.madvise_dontneed(memory, PAGES * 4096)?;
        sys.fetch_add(begins, 1);
        (0..PAGES).for_each(|page| _ = sys.fetch_add(memory + page * 4096, 1));
        await_word(sys, ends, round);
        wrong += (0..PAGES).filter(|page| sys.load_u32(memory + page * 4096) != 2).count();
    }
    sys.join(other)?;
    if wrong != 0 {
        say!(sys, "both_cpus: {wrong} pages lost what a thread wrote");
        return Err(Errno::EFAULT);
    }
    say!(sys, "both_cpus: {ROUNDS} rounds of {PAGES} pages, both threads' writes in each");
    sys.munmap(memory, PAGES * 4096)?;
    sys.munmap(gates, 4096)
}
