//! Writes to three pages of a mapped file, and waits until the middle one is on the device.

use crate::{Calls, Errno, MapFlags, Prot, Seek, System};

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let page = sys.page_size();
    let fd = sys.create("journal", &[])?;
    sys.ftruncate(fd, 3 * page)?;
    let file = sys.mmap(0, 3 * page, Prot::READ | Prot::WRITE, MapFlags::SHARED, fd, 0)?;
    for (at, text) in [(0, b"begin"), (page, b"entry"), (2 * page, b"end..")] {
        sys.store(file + at, text);
    }
    sys.msync(file + page, page)?;
    say!(sys, "msync_page: the entry is safe");
    let mut entry = [0; 5];
    sys.lseek(fd, page as i64, Seek::Start)?;
    sys.read_bytes(fd, &mut entry)?;
    say!(sys, "msync_page: read finds {}", entry.escape_ascii());
    sys.munmap(file + 2 * page, page)?;
    for (what, addr) in [("from inside a page", file + 1), ("over a hole", file + page)] {
        if let Err(errno) = sys.msync(addr, 2 * page) {
            say!(sys, "msync_page: {what}: {errno}");
        }
    }
    sys.munmap(file, 2 * page)?;
    sys.close(fd)?;
    sys.unlink("journal")
}
