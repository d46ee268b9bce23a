//! Maps a text file, prints it, overwrites its beginning and closes it: the file is changed, its length is not.

use crate::bytes::Bytes;
use crate::{Calls, Errno, MapFlags, Open, Prot, System};

const TEXT: &[u8] = b"The quick brown fox\njumps over the lazy dog.\n";

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let fd = sys.create("fox.txt", TEXT)?;
    let len = sys.file_size(fd)?;
    let text = sys.mmap(0, len, Prot::READ | Prot::WRITE, MapFlags::SHARED, fd, 0)?;
    for line in Bytes::new(sys, text, len).lines() {
        say!(sys, "overwrite: before: {line}");
    }
    sys.store(text, b"One small");
    // Beyond the end, but inside the page: it is memory, and never part of the file.
    sys.store(text + len, b"lost");
    sys.munmap(text, len)?;
    sys.close(fd)?;

    let fd = sys.open("fox.txt", Open::READ)?;
    let mut after = [0; 64];
    let read = sys.read_bytes(fd, &mut after)?;
    let lines = after.get(..read as usize).unwrap_or_default().split(|&byte| byte == b'\n');
    for line in lines.filter(|line| !line.is_empty()) {
        say!(sys, "overwrite: after: {}", line.escape_ascii());
    }
    say!(sys, "overwrite: {len} bytes before, {} after", sys.file_size(fd)?);
    sys.close(fd)?;
    sys.unlink("fox.txt")
}
