//! What happens to whole processes: limits, fork, exit, exec.

use std::io::Write;
use std::mem::replace;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use kernmm::flags::Prot;
use kernmm::mm::{FileKind, FileRef, Rlimits, Totals, Vma};
use kernmm::syscall::{self, Binary, ElfType, ExecImage, Segment, StackImage};

use super::arena::Callee;
use super::host::{last_error, memfd, parse_range, read};
use super::ops::{Limit, Op};
use super::table::Table;
use super::world::{LIMITS, World, failed};
use crate::elf;

const PAGE: u64 = 4096;
/// How many processes wait for the one that works, at most.
const DEPTH: usize = 3;
/// What a process ends with.
const CODE: u64 = 7;

type Answers = (&'static str, i64, i64);

/// A program that waits for ever.
pub(super) struct Program {
    elf: elf::Program,
    fd: OwnedFd,
    pub(super) file: FileRef,
    pub(super) inode: u64,
}

impl Program {
    pub(super) fn new() -> Result<Self, String> {
        use std::os::unix::fs::MetadataExt;
        // pause(), again and again.
        let mut text = vec![0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
        text.resize(3 * PAGE as usize, 0);
        let elf = elf::Program { base: 0x40_0000, text, data: vec![1; 100], bss: 5 * PAGE };
        let mut opened = std::fs::File::from(memfd()?);
        opened.write_all(&elf.file(62)).map_err(|error| error.to_string())?;
        let inode = opened.metadata().map_err(|error| error.to_string())?.ino();
        let file = FileRef::new(9, 9, FileKind::Memory).ok_or("numbers from 1")?;
        Ok(Self { elf, fd: opened.into(), file, inode })
    }

    fn segments(&self) -> [Segment; 2] {
        let text_len = self.elf.entry() - self.elf.base + self.elf.text.len() as u64;
        let data_len = self.elf.data.len() as u64;
        let text = Segment {
            addr: self.elf.base,
            file_len: text_len,
            mem_len: text_len,
            offset: 0,
            prot: Prot::READ | Prot::EXEC,
        };
        let data = Segment {
            addr: self.elf.data_addr(),
            file_len: data_len,
            mem_len: data_len + self.elf.bss,
            offset: text_len,
            prot: Prot::READ | Prot::WRITE,
        };
        [text, data]
    }
}

impl World<'_> {
    /// Performs a fork, exit or exec on both sides; `None` if it cannot be done now.
    pub(super) fn perform_on_process(&mut self, op: &Op) -> Result<Option<Answers>, String> {
        match op {
            Op::Fork if self.ancestors.len() < DEPTH => self.fork().map(Some),
            Op::Exit if !self.ancestors.is_empty() => self.exit().map(Some),
            Op::Exec if *self.mm.rlimits() == LIMITS => self.exec().map(Some),
            _ => Ok(None),
        }
    }

    fn fork(&mut self) -> Result<Answers, String> {
        let mut child = self.mm.new_child().map_err(|error| error.to_string())?;
        let mut pages = self.pages.of_child();
        let forked = syscall::fork(&mut self.mm, &mut self.pages, &mut child, &mut pages);
        let theirs = self.server.fork()?.min(0);
        if forked.is_ok() && theirs == 0 {
            self.ancestors.push((replace(&mut self.mm, child), replace(&mut self.pages, pages)));
            self.compare(true)?;
        }
        Ok(("fork", forked.map_or_else(failed, |()| 0), theirs))
    }

    fn exit(&mut self) -> Result<Answers, String> {
        self.leave()?;
        let status = self.server.exit(CODE)?;
        let Some((mm, pages)) = self.ancestors.pop() else { return Err("nobody waits".to_owned()) };
        (self.mm, self.pages) = (mm, pages);
        // The parent has what it had.
        self.compare(true)?;
        Ok(("exit", 0, status - ((CODE as i64) << 8)))
    }

    /// Our side of the end of a process: nothing is left.
    pub(super) fn leave(&mut self) -> Result<(), String> {
        syscall::exit(&mut self.mm, &mut self.pages);
        match (*self.mm.totals(), self.mm.map_count()) {
            (totals, 0) if totals == Totals::default() => Ok(()),
            left => Err(format!("left over: {left:?}")),
        }
    }

    /// A child runs a program: what it has mapped then, apart from what the kernel maps for itself, is what ours has.
    fn exec(&mut self) -> Result<Answers, String> {
        let mut child = self.mm.new_child().map_err(|error| error.to_string())?;
        let mut pages = self.pages.of_child();
        syscall::fork(&mut self.mm, &mut self.pages, &mut child, &mut pages)
            .map_err(|error| error.to_string())?;
        let mut new = child.new_child().map_err(|error| error.to_string())?;
        let mut new_pages = self.pages.of_child();
        let pid = self.server.spawn(self.program.fd.as_raw_fd())?;
        if pid < 0 {
            return Err(format!("no process for a program: {pid}"));
        }
        let text = self.maps_of_program(pid)?;
        self.server.end(pid)?;
        let theirs: Vec<&str> = text.lines().filter(|line| !line.contains("[v")).collect();
        // Where the stack ends is random.
        let stack = theirs.last().filter(|line| line.ends_with("[stack]")).ok_or("no stack")?;
        let (top, prot) = (parse_range(stack).1, Prot::READ | Prot::WRITE);
        let stack = StackImage { top, path_bytes: 8, arg_bytes: 8, env_bytes: 0, vector_bytes: 600, prot };
        let segments = &self.program.segments();
        let program = Binary { file: self.program.file, kind: ElfType::Fixed, align: 0, segments };
        let image = ExecImage { program, interpreter: None, stack, seed: 0 };
        let ours = syscall::exec(&mut child, &mut pages, &mut new, &mut new_pages, &image);
        let vmas: Vec<Vma> = child.vmas().iter().map(|(_, vma)| vma).collect();
        for (vma, line) in vmas.iter().zip(&theirs) {
            self.compare_line(vma, line)?;
        }
        if vmas.len() != theirs.len() {
            return Err(format!("of the program: ours {vmas:x?}, theirs {text}"));
        }
        syscall::exit(&mut child, &mut pages);
        Ok(("exec", ours.map_or_else(failed, |_| 0), 0))
    }

    /// What the program has mapped, once the kernel has mapped all of it.
    fn maps_of_program(&self, pid: i64) -> Result<String, String> {
        for _ in 0..2_000 {
            let text = read(&format!("/proc/{pid}/maps"))?;
            let begins = text.lines().next().map(|line| parse_range(line).0);
            // The kernel's own pages are mapped last.
            if begins == Some(self.program.elf.base) && text.contains("[vdso]") {
                return Ok(text);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // The last word of a process that has ended is how.
        Err(format!("the program does not begin: {}", read(&format!("/proc/{pid}/stat"))?))
    }

    /// Sets a limit on both sides, as far above what is in use as it says.
    pub(super) fn limit(&mut self, limit: Limit, table: &mut Table) -> Result<(), String> {
        let above = |pages: u64, spare: u64| (pages + spare) * PAGE;
        let totals = *self.mm.totals();
        let rlimits = *self.mm.rlimits();
        let (resource, ours, theirs) = match limit {
            Limit::AddressSpace { spare_pages } => {
                let theirs = self.theirs("VmSize")?;
                if theirs.wrapping_sub(totals.total_vm) != self.foreign {
                    return Err(format!("ours {totals:?}, theirs {theirs}"));
                }
                let address_space = above(totals.total_vm, spare_pages);
                (libc::RLIMIT_AS, Rlimits { address_space, ..rlimits }, above(theirs, spare_pages))
            }
            Limit::Data { spare_pages } => {
                let theirs = self.theirs("VmData")?;
                if theirs != totals.data_vm {
                    return Err(format!("ours {totals:?}, theirs {theirs}"));
                }
                let data = above(theirs, spare_pages);
                (libc::RLIMIT_DATA, Rlimits { data, ..rlimits }, data)
            }
            Limit::NoData => (libc::RLIMIT_DATA, Rlimits { data: 0, ..rlimits }, 0),
            Limit::Stack { pages } => {
                (libc::RLIMIT_STACK, Rlimits { stack: pages * PAGE, ..rlimits }, pages * PAGE)
            }
            Limit::Memlock { bytes } => (libc::RLIMIT_MEMLOCK, Rlimits { memlock: bytes, ..rlimits }, bytes),
            Limit::Default => {
                self.set_theirs(libc::RLIMIT_AS, LIMITS.address_space, table)?;
                self.set_theirs(libc::RLIMIT_DATA, LIMITS.data, table)?;
                self.set_theirs(libc::RLIMIT_STACK, LIMITS.stack, table)?;
                (libc::RLIMIT_MEMLOCK, LIMITS, LIMITS.memlock)
            }
        };
        if self.set_theirs(resource, theirs, table)? {
            self.mm.set_rlimits(ours);
        }
        Ok(())
    }

    /// Whether the limit could be set: without privileges none rises above what it was at first.
    fn set_theirs(
        &self,
        resource: libc::__rlimit_resource_t,
        value: u64,
        table: &mut Table,
    ) -> Result<bool, String> {
        let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `old` has room for the limits.
        if unsafe { libc::prlimit(self.server.pid(), resource, std::ptr::null(), &raw mut old) } != 0 {
            return Err(last_error());
        }
        let new = libc::rlimit { rlim_cur: value, rlim_max: old.rlim_max.max(value) };
        // SAFETY: `new` holds the limits.
        if unsafe { libc::prlimit(self.server.pid(), resource, &raw const new, std::ptr::null_mut()) } == 0 {
            return Ok(true);
        }
        table.note_unprivileged();
        Ok(false)
    }
}
