//! The heap and its relatives: brk, a mapping that grows, pages that are given back, and which of them are resident.

use crate::{Calls, Errno, MapFlags, System};

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let start = sys.brk(0);
    let end = sys.brk(start + 10_000);
    say!(sys, "heap: brk grew by {}", end - start);
    sys.store_u32((end - 4) & !3, 77);
    sys.brk(start);
    sys.brk(start + 10_000);
    say!(sys, "heap: after it shrank and grew again there is {}", sys.load_u32((end - 4) & !3));
    sys.brk(start);

    let small = sys.map_anonymous(2 * 4096, MapFlags::PRIVATE)?;
    sys.store(small + 4096, b"kept");
    let large = sys.mremap(small, 2 * 4096, 64 * 4096)?;
    say!(sys, "heap: after mremap the bytes are {}", crate::bytes::Bytes::new(sys, large + 4096, 4));
    residency(sys, large)?;
    sys.store(large + 3 * 4096, b"x");
    residency(sys, large)?;
    sys.madvise_dontneed(large, 2 * 4096)?;
    residency(sys, large)?;
    say!(sys, "heap: what was given back reads as {}", sys.load_u32(large + 4096));
    sys.mlock(large, 4 * 4096)?;
    residency(sys, large)?;
    sys.munlock(large, 4 * 4096)?;
    sys.munmap(large, 64 * 4096)
}

/// Prints which of the first six pages are resident.
fn residency<S: System>(sys: &S, memory: u64) -> Result<(), Errno> {
    let mut pages = [0; 6];
    sys.mincore(memory, 6 * 4096, &mut pages)?;
    let [a, b, c, d, e, f] = pages.map(|page| if page & 1 == 1 { 'x' } else { '.' });
    say!(sys, "heap: resident: {a}{b}{c}{d}{e}{f}");
    Ok(())
}
