//! Maps a file and reads an int from it, as if the file were an array.

use crate::{Calls, Errno, MapFlags, Prot, System};

const NUMBERS: [u32; 6] = [4, 8, 15, 16, 23, 42];

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let fd = sys.create("numbers", &[])?;
    for number in NUMBERS {
        sys.write_bytes(fd, &mut number.to_le_bytes())?;
    }
    let len = sys.file_size(fd)?;
    let numbers = sys.mmap(0, len, Prot::READ, MapFlags::PRIVATE, fd, 0)?;
    sys.close(fd)?;
    say!(sys, "read_int: the file has {len} bytes, the third int is {}", sys.load_u32(numbers + 2 * 4));
    let sum: u32 = (0..len / 4).map(|at| sys.load_u32(numbers + at * 4)).sum();
    say!(sys, "read_int: the sum of all is {sum}");
    sys.munmap(numbers, len)?;
    sys.unlink("numbers")
}
