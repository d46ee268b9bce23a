//! Slices of a mapped file as byte strings, iterated, and a reader whose position advances.

use crate::bytes::{Bytes, Reader};
use crate::{Calls, Errno, MapFlags, Prot, System};

const TEXT: &[u8] = b"2 sugar\n3 flour\n5 eggs\n7 butter\n";

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let fd = sys.create("recipe.txt", TEXT)?;
    let len = sys.file_size(fd)?;
    let addr = sys.mmap(0, len, Prot::READ, MapFlags::SHARED, fd, 0)?;
    sys.close(fd)?;
    let file = Bytes::new(sys, addr, len);
    say!(sys, "slices: bytes 2 to 7 are {:?}", Text(file.slice(2, 7)));
    say!(sys, "slices: it begins with \"2 \": {}", file.starts_with(b"2 "));
    let digits: u32 = file.iter().filter_map(|byte| char::from(byte).to_digit(10)).sum();
    say!(sys, "slices: {} lines, the digits make {digits}", file.lines().count());
    let longest = file.lines().max_by_key(Bytes::len);
    if let Some(longest) = longest {
        say!(sys, "slices: the longest line is {longest}");
    }

    let mut reader = Reader::new(file);
    for part in [8, 8, 7, 100, 1] {
        let bytes = reader.take(part);
        say!(sys, "slices: asked for {part}, got {}, the position is {}", bytes.len(), reader.position());
    }
    sys.munmap(addr, len)?;
    sys.unlink("recipe.txt")
}

/// Bytes in quotes.
struct Text<'s, S>(Bytes<'s, S>);

impl<S: System> core::fmt::Debug for Text<'_, S> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}
