//! Copies a file by read and write, and by mappings, and measures both.

use crate::{Addr, Calls, Errno, MapFlags, Open, Prot, Seek, System};

const PAGES: u64 = 64;

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let page = sys.page_size();
    let len = PAGES * page;
    let from = sys.create("original", &[])?;
    sys.ftruncate(from, len)?;
    let source = sys.mmap(0, len, Prot::READ | Prot::WRITE, MapFlags::SHARED, from, 0)?;
    for at in 0..PAGES {
        sys.store_u32(source + at * page, at as u32 * 3 + 1);
    }
    let by_calls = sys.open("by_calls", Open::READ_WRITE | Open::CREATE | Open::TRUNCATE)?;
    let by_mapping = sys.open("by_mapping", Open::READ_WRITE | Open::CREATE | Open::TRUNCATE)?;

    let start = sys.clock()?;
    let buffer = sys.map_anonymous(4 * page, MapFlags::PRIVATE)?;
    sys.lseek(from, 0, Seek::Start)?;
    loop {
        let read = sys.read(from, buffer, 4 * page)?;
        if read == 0 {
            break;
        }
        sys.write_all(by_calls, buffer, read)?;
    }
    let middle = sys.clock()?;
    sys.ftruncate(by_mapping, len)?;
    let copy = sys.mmap(0, len, Prot::READ | Prot::WRITE, MapFlags::SHARED, by_mapping, 0)?;
    let mut part = [0; 512];
    for at in (0..len).step_by(part.len()) {
        sys.load(source + at, &mut part);
        sys.store(copy + at, &part);
    }
    let end = sys.clock()?;

    let read_back = sys.mmap(0, len, Prot::READ, MapFlags::SHARED, by_calls, 0)?;
    say!(sys, "measure: by read and write: sum {}", sum(sys, read_back, page));
    say!(sys, "measure: by two mappings: sum {}", sum(sys, copy, page));
    let microseconds = |from: u64, to: u64| (to - from) / 1000;
    say!(sys, "# measure: {PAGES} pages: {} us by calls, {} us by mappings", microseconds(start, middle), microseconds(middle, end));
    for (addr, len) in [(source, len), (copy, len), (read_back, len), (buffer, 4 * page)] {
        sys.munmap(addr, len)?;
    }
    for (fd, path) in [(from, "original"), (by_calls, "by_calls"), (by_mapping, "by_mapping")] {
        sys.close(fd)?;
        sys.unlink(path)?;
    }
    Ok(())
}

fn sum<S: System>(sys: &S, file: Addr, page: u64) -> u32 {
    (0..PAGES).map(|at| sys.load_u32(file + at * page)).sum()
}
