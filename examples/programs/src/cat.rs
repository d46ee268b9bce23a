//! `cat`: a file is written to the standard output straight from its mapping.

use crate::{Calls, Errno, MapFlags, Open, Prot, System};

const TEXT: &[u8] = b"cat: memory is a file's pages,\ncat: and a file is pages on their way to a disk.\n";

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let fd = sys.create("verse.txt", TEXT)?;
    sys.close(fd)?;
    cat(sys, "verse.txt")?;
    sys.unlink("verse.txt")?;
    if let Err(errno) = cat(sys, "verse.txt") {
        say!(sys, "cat: verse.txt: {errno}");
    }
    Ok(())
}

fn cat<S: System>(sys: &S, path: &str) -> Result<(), Errno> {
    let fd = sys.open(path, Open::READ)?;
    let len = sys.file_size(fd)?;
    let text = sys.mmap(0, len, Prot::READ, MapFlags::SHARED, fd, 0)?;
    sys.close(fd)?;
    sys.write_all(1, text, len)?;
    sys.munmap(text, len)
}
