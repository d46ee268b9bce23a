//! A variable that outlives its process: its page is a file's, mapped where the program wants its variables.

use crate::{Calls, Errno, MapFlags, Open, Prot, System};

/// Where the variables of the program lie, in every run.
const VARIABLES: u64 = 0x1000_0000;
/// The counter is the first of them.
const RUNS: u64 = VARIABLES;

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let page = sys.page_size();
    let fd = sys.open("variables", Open::READ_WRITE | Open::CREATE)?;
    if sys.file_size(fd)? < page {
        sys.ftruncate(fd, page)?;
    }
    let flags = MapFlags::SHARED | MapFlags::FIXED;
    let at = sys.mmap(VARIABLES, page, Prot::READ | Prot::WRITE, flags, fd, 0)?;
    sys.close(fd)?;
    say!(sys, "persistent: the variables lie at {at:#x}");
    sys.store_u32(RUNS, sys.load_u32(RUNS) + 1);
    say!(sys, "persistent: this is run {}", sys.load_u32(RUNS));
    sys.msync(VARIABLES, page)
}
