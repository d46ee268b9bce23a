//! A write to read-only memory: SIGSEGV. So is a read of what is not mapped any more.

use crate::{Calls, Errno, MapFlags, Prot, SIGSEGV, SigInfo, System};

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let constant = sys.map_anonymous(4096, MapFlags::PRIVATE)?;
    sys.store_u32(constant, 99);
    sys.mprotect(constant, 4096, Prot::READ)?;
    sys.fork(move |sys| {
        say!(sys, "segv_read_only: the child reads {}, and writes", sys.load_u32(constant));
        sys.store_u32(constant, 100);
        say!(sys, "segv_read_only: the child wrote");
        0
    })?;
    say!(sys, "segv_read_only: the child: {:?}", sys.wait()?.1);
    say!(sys, "segv_read_only: the parent reads {}", sys.load_u32(constant));

    sys.munmap(constant, 4096)?;
    sys.fork(move |sys| {
        if let Err(errno) = sys.on_signal(SIGSEGV, Some(tell)) {
            return errno.0;
        }
        sys.load_u32(constant) as i32
    })?;
    say!(sys, "segv_read_only: the second child: {:?}", sys.wait()?.1);
    Ok(())
}

fn tell<S: System>(sys: &S, info: &SigInfo) {
    say!(sys, "segv_read_only: signal {}, code {}, {} bytes into a page", info.signal, info.code, info.addr % 4096);
    sys.exit(3)
}
