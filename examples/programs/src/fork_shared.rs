//! Parent and child over shared and over private memory.

use crate::{Calls, Errno, MapFlags, Status, System};

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let shared = sys.map_anonymous(4096, MapFlags::SHARED)?;
    let private = sys.map_anonymous(4096, MapFlags::PRIVATE)?;
    sys.store_u32(shared, 1);
    sys.store_u32(private, 1);
    let child = sys.fork(move |sys| {
        say!(sys, "fork_shared: the child finds {} shared, {} private", sys.load_u32(shared), sys.load_u32(private));
        sys.store_u32(shared, 2);
        sys.store_u32(private, 2);
        say!(sys, "fork_shared: the child wrote {} shared, {} private", sys.load_u32(shared), sys.load_u32(private));
        7
    })?;
    let (pid, status) = sys.wait()?;
    let Status::Exited(status) = status else { return Err(Errno::EINTR) };
    say!(sys, "fork_shared: {} child ended with status {status}", if pid == child { "my" } else { "another" });
    say!(sys, "fork_shared: the parent finds {} shared, {} private", sys.load_u32(shared), sys.load_u32(private));
    sys.munmap(shared, 4096)?;
    sys.munmap(private, 4096)
}
