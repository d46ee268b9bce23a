//! The calls of the mmap family: each decodes its arguments and makes one call of kernmm.

use kernmm::flags::{MapFlags, MremapFlags, MsyncFlags, Prot};
use kernmm::mm::{MmError, Sysctl};
use kernmm::syscall::{MapFile, MmapArgs, Residency};

use super::{Answer, Call};

/// kernmm's error in Linux's number.
fn number(error: MmError) -> i32 {
    error.errno().get()
}

pub fn mmap(call: &Call<'_>) -> Answer {
    let [addr, len, prot, flags, fd, offset] = call.args;
    let (prot, flags) = (Prot::from_bits_retain(prot), MapFlags::from_bits_retain(flags));
    let file = call.process.files.lock().map_file(fd as i32).map(Some).ok_or(MmError::BadDescriptor);
    let file: Result<Option<MapFile>, _> = if flags.contains(MapFlags::ANONYMOUS) { Ok(None) } else { file };
    let args = MmapArgs { addr, len, prot, flags, file, offset };
    call.process.space().mmap(&args).map(|addr| addr.get()).map_err(number)
}

pub fn munmap(call: &Call<'_>) -> Answer {
    let [addr, len, ..] = call.args;
    call.process.space().munmap(addr, len).map(|()| 0).map_err(number)
}

pub fn mprotect(call: &Call<'_>) -> Answer {
    let [addr, len, prot, ..] = call.args;
    let prot = Prot::from_bits_retain(prot);
    call.process.space().mprotect(addr, len, prot).map(|()| 0).map_err(number)
}

pub fn mremap(call: &Call<'_>) -> Answer {
    let [addr, old_len, new_len, flags, new_addr, _] = call.args;
    let flags = MremapFlags::from_bits_retain(flags);
    let moved = call.process.space().mremap(addr, old_len, new_len, flags, new_addr);
    moved.map(|addr| addr.get()).map_err(number)
}

pub fn msync(call: &Call<'_>) -> Answer {
    let [addr, len, flags, ..] = call.args;
    let flags = MsyncFlags::from_bits_retain(flags as u32);
    call.process.space().msync(addr, len, flags).map(|()| 0).map_err(number)
}

pub fn madvise(call: &Call<'_>) -> Answer {
    let [addr, len, advice, ..] = call.args;
    call.process.space().madvise(addr, len, advice as i32).map(|()| 0).map_err(number)
}

pub fn brk(call: &Call<'_>) -> Answer {
    call.process.space().brk(call.args[0]).map(|end| end.get()).map_err(number)
}

pub fn mlock(call: &Call<'_>) -> Answer {
    let [addr, len, ..] = call.args;
    call.process.space().mlock(addr, len).map(|()| 0).map_err(number)
}

pub fn munlock(call: &Call<'_>) -> Answer {
    let [addr, len, ..] = call.args;
    call.process.space().munlock(addr, len).map(|()| 0).map_err(number)
}

pub fn mincore(call: &Call<'_>) -> Answer {
    let [addr, len, vector, ..] = call.args;
    call.process.space().mincore(addr, len, &mut Answers { call, vector }).map(|()| 0).map_err(number)
}

/// Where the answers of mincore go: kernmm holds no lock when it has some.
struct Answers<'c, 'f> {
    call: &'c Call<'f>,
    vector: u64,
}

impl Residency for Answers<'_, '_> {
    fn can_hold(&self, pages: u64) -> bool {
        self.vector.checked_add(pages).is_some_and(|end| end <= Sysctl::default().task_size)
    }

    fn put(&mut self, index: u64, resident: bool) -> Result<(), MmError> {
        self.call.write(self.vector + index, &[u8::from(resident)]).map(drop).map_err(|_| MmError::BadVector)
    }
}
