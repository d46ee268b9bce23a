//! Copies a file by two mappings: no read, no write.

use crate::bytes::Bytes;
use crate::{Calls, Errno, MapFlags, Open, Prot, System};

const LEN: u64 = 3 * 4096 + 1234;

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let from = sys.create("source", &[])?;
    let mut part = [0; 64];
    for at in (0..LEN).step_by(part.len()) {
        let here = (LEN - at).min(part.len() as u64) as usize;
        for (byte, place) in part.iter_mut().zip(at..) {
            *byte = ((place * 31) >> 3) as u8;
        }
        sys.write_bytes(from, part.get_mut(..here).unwrap_or_default())?;
    }

    let to = sys.open("copy", Open::READ_WRITE | Open::CREATE | Open::TRUNCATE)?;
    sys.ftruncate(to, LEN)?;
    let source = sys.mmap(0, LEN, Prot::READ, MapFlags::SHARED, from, 0)?;
    let copy = sys.mmap(0, LEN, Prot::READ | Prot::WRITE, MapFlags::SHARED, to, 0)?;
    for at in (0..LEN).step_by(part.len()) {
        let here = (LEN - at).min(part.len() as u64) as usize;
        let bytes = part.get_mut(..here).unwrap_or_default();
        sys.load(source + at, bytes);
        sys.store(copy + at, bytes);
    }
    let equal = Bytes::new(sys, source, LEN).equals(&Bytes::new(sys, copy, LEN));
    say!(sys, "copy_mappings: {LEN} bytes copied, equal in memory: {equal}");
    sys.munmap(copy, LEN)?;

    // And what read finds is what was stored.
    sys.lseek(to, 0, crate::Seek::Start)?;
    let (mut read, mut equal) = (0, true);
    loop {
        let got = sys.read_bytes(to, &mut part)?;
        if got == 0 {
            break;
        }
        equal &= (source + read..).zip(part.iter().take(got as usize)).all(|(at, &byte)| sys.load_u8(at) == byte);
        read += got;
    }
    say!(sys, "copy_mappings: {read} bytes read back, equal: {equal}");
    sys.munmap(source, LEN)?;
    sys.close(from)?;
    sys.close(to)?;
    sys.unlink("source")?;
    sys.unlink("copy")
}
