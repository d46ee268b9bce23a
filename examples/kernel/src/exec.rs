//! Programs: ELF files of the disk, mapped and read as they are touched.

use alloc::vec::Vec;

use kernmm::error::Errno;
use kernmm::memory::Program;
use kernmm::syscall::{ElfMachine, OpenMode};

use crate::fs::{self, Missing};
use crate::interrupts::Frame;
use crate::process::Space;

/// Puts the program at `path` in the place of what was in the address space; answers with the registers that it begins with.
///
/// # Errors
/// ENOENT, and those of kernmm; the old program is intact then.
pub fn exec(
    space: &Space,
    path: &str,
    arguments: &[Vec<u8>],
    environment: &[Vec<u8>],
) -> Result<Frame, Errno> {
    let open = |path: &str| fs::open(path, OpenMode::ReadOnly, Missing::Refuse).map(|(file, _)| file);
    // A name that is no text is none that a file has.
    let open_interpreter = |path: &[u8]| open(core::str::from_utf8(path).map_err(|_| Errno::ENOENT)?);
    let args: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
    let env: Vec<&[u8]> = environment.iter().map(Vec::as_slice).collect();
    let program = Program { path: path.as_bytes(), env: &env, ..Program::new(ElfMachine::X86_64, &args) };
    let start = space.exec_elf(&open(path)?, &program, open_interpreter).map_err(|error| error.errno())?;
    Ok(Frame::of_user(start.entry.get(), start.stack.get()))
}
