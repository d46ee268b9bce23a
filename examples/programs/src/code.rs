//! Code that is loaded, run and unloaded while the program runs.

use crate::{Addr, Calls, Errno, MapFlags, Prot, SIGSEGV, SigInfo, System};

/// `mov eax, value; ret`
fn function(value: u32) -> [u8; 6] {
    let [a, b, c, d] = value.to_le_bytes();
    [0xb8, a, b, c, d, 0xc3]
}

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    // A plug-in: two functions in a file, a page apart.
    let page = sys.page_size();
    let fd = sys.create("plugin", &function(42))?;
    sys.lseek(fd, page as i64, crate::Seek::Start)?;
    sys.write_bytes(fd, &mut function(1_000_000))?;
    let text = sys.mmap(0, 2 * page, Prot::READ | Prot::EXEC, MapFlags::PRIVATE, fd, 0)?;
    sys.close(fd)?;
    say!(sys, "code: the loaded functions answer {} and {}", sys.call(text), sys.call(text + page));

    // Code of one's own: written, then made executable.
    let own = sys.map_anonymous(page, MapFlags::PRIVATE)?;
    sys.store(own, &function(7));
    refused(sys, "not executable yet", own)?;
    sys.mprotect(own, page, Prot::READ | Prot::EXEC)?;
    say!(sys, "code: the function made here answers {}", sys.call(own));
    sys.mprotect(own, page, Prot::READ | Prot::WRITE)?;
    sys.store(own, &function(8));
    sys.mprotect(own, page, Prot::READ | Prot::EXEC)?;
    say!(sys, "code: rewritten, it answers {}", sys.call(own));

    sys.munmap(text, 2 * page)?;
    refused(sys, "unloaded", text)?;
    sys.munmap(own, page)?;
    sys.unlink("plugin")
}

/// Lets a child call what cannot be called.
fn refused<S: System>(sys: &S, why: &str, function: Addr) -> Result<(), Errno> {
    sys.fork(move |sys| {
        if let Err(errno) = sys.on_signal(SIGSEGV, Some(tell)) {
            return errno.0;
        }
        sys.call(function) as i32
    })?;
    say!(sys, "code: {why}: {:?}", sys.wait()?.1);
    Ok(())
}

fn tell<S: System>(sys: &S, info: &SigInfo) {
    say!(sys, "code: signal {}, code {}", info.signal, info.code);
    sys.exit(5)
}
