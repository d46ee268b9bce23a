//! A file that is one hole and one byte, written through a mapping.

use crate::{Calls, Errno, MapFlags, Prot, Seek, System};

const LEN: u64 = (1 << 20) + 1;

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let fd = sys.create("hole", &[])?;
    sys.ftruncate(fd, LEN)?;
    let page = sys.page_size();
    let last_page = LEN / page * page;
    let last = sys.mmap(0, page, Prot::READ | Prot::WRITE, MapFlags::SHARED, fd, last_page)?;
    sys.store(last + LEN - 1 - last_page, b"!");
    sys.munmap(last, page)?;
    say!(sys, "sparse: the file has {} bytes", sys.file_size(fd)?);

    let file = sys.mmap(0, LEN, Prot::READ, MapFlags::SHARED, fd, 0)?;
    let zeros = (0..LEN - 1).step_by(page as usize).filter(|at| sys.load_u32(file + at) == 0).count();
    say!(sys, "sparse: {zeros} pages of the hole begin with zeros");
    say!(sys, "sparse: the last byte is {:?}", char::from(sys.load_u8(file + LEN - 1)));
    let mut two = *b"??";
    sys.lseek(fd, -2, Seek::End)?;
    let read = sys.read_bytes(fd, &mut two)?;
    say!(sys, "sparse: read of the last two: {read} bytes, {}", two.escape_ascii());
    sys.munmap(file, LEN)?;
    sys.close(fd)?;
    sys.unlink("hole")
}
