//! The size of a page: mappings begin at multiples of it, and are as long as it allows.

use crate::{Calls, Errno, MapFlags, System};

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let page = sys.page_size();
    say!(sys, "page_size: a page has {page} bytes");
    let addr = sys.map_anonymous(1, MapFlags::PRIVATE)?;
    say!(sys, "page_size: a byte is mapped {} bytes into a page", addr % page);
    sys.store(addr + page - 1, b"x");
    say!(sys, "page_size: the last byte of its page is {:?} then", char::from(sys.load_u8(addr + page - 1)));
    if let Err(errno) = sys.munmap(addr + 1, page) {
        say!(sys, "page_size: munmap of an address inside the page: {errno}");
    }
    sys.munmap(addr, 1)
}
