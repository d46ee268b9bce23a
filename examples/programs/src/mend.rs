//! A handler that catches SIGSEGV, mends the protection and returns: the store is made again, and goes through. So garbage collectors and
//! databases learn which pages were written to.

use crate::{Addr, Calls, Errno, MapFlags, Prot, SIGSEGV, SigInfo, System};

/// Where the program counts its signals; the handler knows no other way to find it.
const COUNTER: Addr = 0x2000_0000;
const PAGES: u64 = 8;

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let rw = Prot::READ | Prot::WRITE;
    sys.mmap(COUNTER, 4096, rw, MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED, -1, 0)?;
    let memory = sys.map_anonymous(PAGES * 4096, MapFlags::PRIVATE)?;
    sys.mprotect(memory, PAGES * 4096, Prot::READ)?;
    sys.on_signal(SIGSEGV, Some(mend))?;
    for page in [1, 5, 1, 5, 5, 2] {
        sys.store_u32(memory + page * 4096 + 8, 1000 + page as u32);
    }
    say!(sys, "mend: {} signals for 6 stores to 3 pages", sys.load_u32(COUNTER));
    let sum: u32 = (0..PAGES).map(|page| sys.load_u32(memory + page * 4096 + 8)).sum();
    say!(sys, "mend: the pages hold {sum}");
    sys.on_signal(SIGSEGV, None)?;
    sys.munmap(memory, PAGES * 4096)?;
    sys.munmap(COUNTER, 4096)
}

fn mend<S: System>(sys: &S, info: &SigInfo) {
    sys.store_u32(COUNTER, sys.load_u32(COUNTER) + 1);
    let page = info.addr & !4095;
    if sys.mprotect(page, 4096, Prot::READ | Prot::WRITE).is_err() {
        sys.exit(1);
    }
}
