//! Accesses that nothing allows: the process ends, and its parent is told why.

use crate::{Calls, Errno, MapFlags, Prot, System};

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    sys.fork(|sys| {
        sys.store_u32(0x1000, 1);
        0
    })?;
    say!(sys, "segfault: the child that wrote to nowhere: {:?}", sys.wait()?.1);
    let text = sys.mmap(0, 4096, Prot::READ, MapFlags::PRIVATE | MapFlags::ANONYMOUS, -1, 0)?;
    sys.fork(move |sys| {
        sys.store_u32(text, 1);
        0
    })?;
    say!(sys, "segfault: the one that wrote to read-only memory: {:?}", sys.wait()?.1);
    sys.munmap(text, 4096)?;
    sys.fork(move |sys| i32::from(sys.load_u8(text) == 0))?;
    say!(sys, "segfault: the one that read what was unmapped: {:?}", sys.wait()?.1);
    Ok(())
}
