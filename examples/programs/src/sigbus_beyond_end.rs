//! A mapping may be longer than its file; but what lies beyond the file's last page is not there: SIGBUS.

use crate::{Calls, Errno, MapFlags, Prot, SIGBUS, SigInfo, System};

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let page = sys.page_size();
    let fd = sys.create("short", b"short")?;
    let file = sys.mmap(0, 2 * page, Prot::READ | Prot::WRITE, MapFlags::SHARED, fd, 0)?;
    say!(sys, "sigbus_beyond_end: the rest of the page is zero: {}", sys.load_u32(file + page - 4) == 0);
    sys.fork(move |sys| sys.load_u8(file + page).into())?;
    say!(sys, "sigbus_beyond_end: the page behind it: {:?}", sys.wait()?.1);

    // A file that becomes longer has the page; one that is cut has it no more.
    sys.ftruncate(fd, page + 1)?;
    sys.store(file + page, b"y");
    say!(sys, "sigbus_beyond_end: after ftruncate it is there");
    sys.ftruncate(fd, 5)?;
    sys.fork(move |sys| {
        if let Err(errno) = sys.on_signal(SIGBUS, Some(tell)) {
            return errno.0;
        }
        sys.store(file + page, b"z");
        0
    })?;
    say!(sys, "sigbus_beyond_end: when it is cut: {:?}", sys.wait()?.1);
    // The kernel does not die of it: a call answers with an error.
    match sys.write(1, file + page, 1) {
        Ok(_) => say!(sys, "sigbus_beyond_end: written"),
        Err(errno) => say!(sys, "sigbus_beyond_end: write from there: {errno}"),
    }
    sys.munmap(file, 2 * page)?;
    sys.close(fd)?;
    sys.unlink("short")
}

fn tell<S: System>(sys: &S, info: &SigInfo) {
    say!(sys, "sigbus_beyond_end: signal {}, code {}", info.signal, info.code);
    sys.exit(4)
}
