//! Two threads of one process: what one maps and writes, the other finds.

use crate::{Addr, Calls, Errno, MapFlags, System};

const PAGES: u64 = 16;
const ROUNDS: u32 = 500;

/// Writes to every second page.
fn fill<S: System>(sys: &S, memory: Addr, first: u64, counter: Addr) {
    for page in (first..PAGES).step_by(2) {
        sys.store_u32(memory + page * 4096, page as u32 + 100);
    }
    for _ in 0..ROUNDS {
        sys.fetch_add(counter, 1);
    }
}

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let words = sys.map_anonymous(4096, MapFlags::PRIVATE)?;
    let (counter, where_mapped) = (words, words + 8);
    let memory = sys.map_anonymous(PAGES * 4096, MapFlags::PRIVATE)?;
    let thread = sys.thread(move |sys| {
        fill(sys, memory, 1, counter);
        // What a thread maps is there for all.
        if let Ok(own) = sys.map_anonymous(4096, MapFlags::PRIVATE) {
            sys.store(own, b"from the other thread");
            sys.store(where_mapped, &own.to_le_bytes());
        }
    })?;
    fill(sys, memory, 0, counter);
    sys.join(thread)?;
    let right = (0..PAGES).filter(|&page| sys.load_u32(memory + page * 4096) == page as u32 + 100).count();
    say!(sys, "threads: {right} of {PAGES} pages are as they were written");
    say!(sys, "threads: two counted to {}", sys.load_u32(counter));
    let mut own = [0; 8];
    sys.load(where_mapped, &mut own);
    let own = u64::from_le_bytes(own);
    say!(sys, "threads: a message {}", crate::bytes::Bytes::new(sys, own, 21));
    sys.munmap(own, 4096)?;
    sys.munmap(memory, PAGES * 4096)?;
    sys.munmap(words, 4096)
}
