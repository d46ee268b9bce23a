//! The processes and files of a script, on a simulated machine, and what its operations do to them.

use std::collections::HashMap;

use kernmm::addr::{PgOff, VirtAddr, VirtRange};
use kernmm::cache::{CacheError, FileId, Moved, Pattern, ReadAhead, Step};
use kernmm::fault::{EntryState, PageKind, Signal};
use kernmm::flags::{MapFlags, MlockFlags, MremapFlags, MsyncFlags, Prot, VmFlags};
use kernmm::memory::{self, Memory, Refused, User, Vm};
use kernmm::mm::{Backing, FileKind, FileRef, Image, MmError, NullTables, Rlimits, Vma};
use kernmm::platform::hosted::Machine;
use kernmm::syscall::{MapFile, MmapArgs, OpenMode};

use crate::common::{ObjectNames, hex};

pub(crate) const BASE: u64 = 0x10_0000_0000;
pub(crate) const ARENA: u64 = 64 << 20;
const PAGE: u64 = 4096;
/// How many answers of mincore are recorded.
const SHOWN: usize = 256;
/// What fills the rest of the addresses.
const FOREIGN: Backing = Backing::Special(0);

type Process<'v, 'a, 'm> = memory::Process<'v, 'a, Memory<'m, Machine>>;

/// An open file.
#[derive(Clone, Copy)]
struct Open {
    file: FileId,
    mode: OpenMode,
}

/// A process of a script.
pub(crate) struct Program<'v, 'a, 'm> {
    vm: &'v Vm<'a, Memory<'m, Machine>>,
    process: Process<'v, 'a, 'm>,
    pub(crate) names: ObjectNames,
    /// Files by the script's numbers. A child has those that its parent had.
    files: HashMap<u32, Open>,
}

/// What an operation answered, as the recording has it.
pub(crate) type Answer = Result<String, String>;

impl<'v, 'a, 'm> Program<'v, 'a, 'm> {
    pub(crate) fn new(vm: &'v Vm<'a, Memory<'m, Machine>>) -> Result<Self, MmError> {
        let (process, sysctl) = (Process::new(vm)?, *vm.context().sysctl());
        process.with_mut(|mm| {
            mm.set_mmap_base(VirtAddr::from(BASE + ARENA));
            mm.set_rlimits(Rlimits { memlock: Rlimits::INFINITY, ..Rlimits::default() });
            let (floor, ceiling) = (sysctl.mmap_min_addr, sysctl.task_size);
            for (start, end) in [(floor, BASE), (BASE + ARENA, ceiling)] {
                let vma = Vma {
                    start: VirtAddr::from(start),
                    end: VirtAddr::from(end),
                    flags: VmFlags::DONTEXPAND,
                    pgoff: PgOff::ZERO,
                    backing: FOREIGN,
                    anon: None,
                };
                mm.insert_vma(&mut NullTables::default(), &vma)?;
            }
            Ok(())
        })?;
        Ok(Self { vm, process, names: ObjectNames::default(), files: HashMap::new() })
    }

    pub(crate) fn fork(&self) -> Result<Self, MmError> {
        let process = self.process.fork()?;
        for open in self.files.values() {
            self.vm.cache().add_user(self.vm.source(), open.file).map_err(|_| MmError::BadDescriptor)?;
        }
        Ok(Self { vm: self.vm, process, names: self.names.clone(), files: self.files.clone() })
    }

    /// The VMAs of the arena, if all is well with them.
    pub(crate) fn layout(&self) -> Result<Vec<Vma>, String> {
        self.process.with(|mm| {
            mm.check().map_err(|violation| format!("check: {violation:?}"))?;
            let all = mm.vmas().iter().map(|(_, vma)| vma);
            Ok(all.filter(|vma| (BASE..BASE + ARENA).contains(&vma.start.get())).collect())
        })
    }

    /// What the script calls the file behind a VMA.
    pub(crate) fn file_name(&self, vma: &Vma) -> String {
        let Some(file) = vma.backing.file() else { return String::new() };
        let named = self.files.iter().find(|(_, open)| open.file.0 == file.file.0);
        named.map_or(String::new(), |(number, _)| format!("f{number}"))
    }

    pub(crate) fn limit_locked(&self, bytes: u64) {
        self.process.with_mut(|mm| mm.set_rlimits(Rlimits { memlock: bytes, ..*mm.rlimits() }));
    }

    /// Performs an operation.
    pub(crate) fn operate(&mut self, words: &[&str]) -> Answer {
        let process = &self.process;
        let arg = |n: usize| operand(words.get(n).copied().unwrap_or("0"));
        Ok(match words[0] {
            "mmap" => return self.mmap(words),
            "munmap" => none(process.munmap(arg(1)?, arg(2)?)),
            "mprotect" => none(process.mprotect(arg(1)?, arg(2)?, Prot::from_bits_retain(arg(3)?))),
            "mremap" => {
                let flags = MremapFlags::from_bits_retain(arg(4)?);
                address(process.mremap(arg(1)?, arg(2)?, arg(3)?, flags, arg(5)?))
            }
            "madvise" => {
                let advice = words[3].parse().map_err(|_| format!("not advice: {}", words[3]))?;
                none(process.madvise(arg(1)?, arg(2)?, advice))
            }
            "mlock" => none(process.mlock(arg(1)?, arg(2)?)),
            "mlock2" => none(process.mlock2(arg(1)?, arg(2)?, MlockFlags::from_bits_retain(arg(3)? as u32))),
            "munlock" => none(process.munlock(arg(1)?, arg(2)?)),
            "msync" => none(process.msync(arg(1)?, arg(2)?, MsyncFlags::from_bits_retain(arg(3)? as u32))),
            "mincore" => self.mincore(arg(1)?, arg(2)?),
            "brkinit" => {
                let start = VirtAddr::from(arg(1)?);
                process.with_mut(|mm| mm.set_image(Image { start_brk: start, brk: start, ..*mm.image() }));
                "0".to_owned()
            }
            "brk" => address(process.brk(arg(1)?)),
            "load" => {
                let loaded = User::new(process).load_byte(VirtAddr::from(arg(1)?));
                touched(loaded.map(|byte| format!("ok {byte:02x}")))
            }
            "store" => {
                let stored = User::new(process).store(VirtAddr::from(arg(1)?), &[arg(2)? as u8]);
                touched(stored.map(|()| "ok".to_owned()))
            }
            "exec" => {
                let fetched = User::new(process).fetch(VirtAddr::from(arg(1)?), &mut [0]);
                touched(fetched.map(|()| "ok".to_owned()))
            }
            "kload" => {
                let mut byte = [0];
                let copied = process.copy_from_user(VirtAddr::from(arg(1)?), &mut byte);
                copied.map_or("-EFAULT".to_owned(), |()| format!("ok {:02x}", byte[0]))
            }
            "kstore" => {
                let copied = process.copy_to_user(VirtAddr::from(arg(1)?), &[arg(2)? as u8]);
                copied.map_or("-EFAULT".to_owned(), |()| "ok".to_owned())
            }
            "pm" => self.page_states(VirtAddr::from(arg(1)?), arg(2)?),
            "rss" => self.resident()?,
            "file" => self.make_file(words)?,
            "trunc" => self.truncate(self.open(words[1])?, hex(words[2])?)?,
            "fread" => self.read(self.open(words[1])?, hex(words[2])?)?,
            "fwrite" => self.write(self.open(words[1])?, hex(words[2])?, hex(words[3])? as u8)?,
            other => return Err(format!("unknown operation {other}")),
        })
    }

    fn mmap(&self, words: &[&str]) -> Answer {
        let file = match words[5] {
            "-" => Ok(None),
            "x" => Err(MmError::BadDescriptor),
            number => {
                let number = number.parse::<u32>().map_err(|_| format!("not a file: {number}"))?;
                let open = self.files.get(&number).ok_or(MmError::BadDescriptor);
                open.map(|open| {
                    let file = FileRef::new(open.file.0.get(), number + 1, FileKind::Memory);
                    // Whoever recorded it had made the files.
                    file.map(|file| MapFile::new(file, open.mode).owned())
                })
            }
        };
        let args = MmapArgs {
            addr: operand(words[1])?,
            len: operand(words[2])?,
            prot: Prot::from_bits_retain(operand(words[3])?),
            flags: MapFlags::from_bits_retain(operand(words[4])?),
            file,
            offset: operand(words[6])?,
        };
        Ok(address(self.process.mmap(&args)))
    }

    fn mincore(&self, addr: u64, len: u64) -> String {
        let mut answers = vec![0; (ARENA / PAGE) as usize];
        match self.process.mincore(addr, len, answers.as_mut_slice()) {
            Ok(()) => {
                let shown = (len.div_ceil(PAGE) as usize).min(SHOWN);
                let bits: String =
                    answers[..shown].iter().map(|&there| if there == 0 { '0' } else { '1' }).collect();
                format!("0 {}", if bits.is_empty() { "-" } else { &bits })
            }
            Err(error) => errno(error),
        }
    }

    /// As `/proc/PID/pagemap` tells it: there, a guard is a swap entry.
    fn page_states(&self, start: VirtAddr, pages: u64) -> String {
        let mut letters = vec!['.'; pages as usize];
        let range = VirtRange::with_len(start.page_floor(), pages * PAGE).unwrap_or_default();
        self.process.visit_pages(range, |at, state| {
            letters[((at.get() - range.start().get()) / PAGE) as usize] = match state {
                EntryState::Guard | EntryState::Swapped(_) => 's',
                EntryState::Resident(page) => match page.kind {
                    PageKind::Zero => 'z',
                    PageKind::Anonymous if page.mappings == 1 => 'a',
                    PageKind::Anonymous => 'A',
                    PageKind::File | PageKind::Shmem | PageKind::Device => 'f',
                },
            };
        });
        letters.into_iter().collect()
    }

    /// Resident, anonymous and locked pages, as the sums over `/proc/PID/smaps` tell them, in whole pages of each VMA: of a page that is mapped more than once a part is locked.
    fn resident(&self) -> Answer {
        let (mut resident, mut anonymous, mut locked) = (0, 0, 0);
        for vma in self.layout()? {
            let mut share = 0;
            self.process.visit_pages(vma.range(), |_, state| {
                let Some(page) = state.resident().filter(|page| page.mappings != 0) else { return };
                resident += 1;
                anonymous += u64::from(page.kind == PageKind::Anonymous);
                share += (PAGE << 12) / u64::from(page.mappings);
            });
            if vma.flags.contains(VmFlags::LOCKED) {
                locked += (share >> 22) / 4;
            }
        }
        Ok(format!("{resident} {anonymous} {locked}"))
    }

    fn open(&self, number: &str) -> Result<Open, String> {
        let number: u32 = number.parse().map_err(|_| format!("not a file: {number}"))?;
        self.files.get(&number).copied().ok_or(format!("no file {number}"))
    }

    /// Each byte of a file's page `p` is `number * 53 + p * 7 + 1`.
    fn make_file(&mut self, words: &[&str]) -> Answer {
        let number: u32 = words[1].parse().map_err(|_| format!("not a file: {}", words[1]))?;
        let mode = match words[3] {
            "ro" => OpenMode::ReadOnly,
            "wo" => OpenMode::WriteOnly,
            _ => OpenMode::ReadWrite,
        };
        let size = hex(words[2])?;
        let (cache, source) = (self.vm.cache(), self.vm.source());
        let file = cache.create_memory(source, size).map_err(failed)?;
        for page in 0..size.div_ceil(PAGE) {
            let byte = (u64::from(number) * 53 + page * 7 + 1) as u8;
            let len = (size - page * PAGE).min(PAGE) as usize;
            let moved = cache.write_at(source, file, page * PAGE, &vec![byte; len]).map_err(failed)?;
            if moved != (Moved { bytes: len, wait: None }) {
                return Err(format!("a file was not filled: {moved:?}"));
            }
        }
        self.files.insert(number, Open { file, mode });
        Ok("0".to_owned())
    }

    fn truncate(&self, open: Open, size: u64) -> Answer {
        let entries = self.vm.pager().entries();
        match self.vm.cache().truncate(self.vm.source(), &entries, open.file, size).map_err(failed)? {
            Step::Done => Ok("0".to_owned()),
            Step::Wait(_) => Err("a file in memory has to be waited for".to_owned()),
        }
    }

    fn read(&self, open: Open, offset: u64) -> Answer {
        let (mut byte, mut ahead) = ([0], ReadAhead::new());
        let (cache, source) = (self.vm.cache(), self.vm.source());
        let moved = cache
            .read_at(source, open.file, offset, &mut byte, &mut ahead, Pattern::Stream)
            .map_err(failed)?;
        Ok(if moved.bytes == 0 { "0".to_owned() } else { format!("ok {:02x}", byte[0]) })
    }

    fn write(&self, open: Open, offset: u64, byte: u8) -> Answer {
        let moved = self.vm.cache().write_at(self.vm.source(), open.file, offset, &[byte]).map_err(failed)?;
        Ok(moved.bytes.to_string())
    }
}

impl Drop for Program<'_, '_, '_> {
    fn drop(&mut self) {
        for (_, open) in self.files.drain() {
            let closed = self.vm.cache().put_user(self.vm.source(), open.file);
            assert!(closed.is_ok(), "an open file was gone");
        }
    }
}

fn failed(error: CacheError) -> String {
    format!("the page cache failed: {error:?}")
}

fn none(result: Result<(), MmError>) -> String {
    result.map_or_else(errno, |()| "0".to_owned())
}

fn address(result: Result<VirtAddr, MmError>) -> String {
    match result {
        Ok(addr) if (BASE..=BASE + ARENA).contains(&addr.get()) => format!("@{:x}", addr.get() - BASE),
        Ok(addr) => format!("={:x}", addr.get()),
        Err(error) => errno(error),
    }
}

fn touched(result: Result<String, Refused>) -> String {
    let signal = |signal: Signal| {
        let name = if signal.number() == 7 { "SIGBUS" } else { "SIGSEGV" };
        format!("{name} {}", signal.code())
    };
    match result {
        Ok(answer) => answer,
        Err(Refused::Signal(refused)) => signal(refused),
        Err(refused) => refused.to_string(),
    }
}

fn errno(error: MmError) -> String {
    format!("-{}", error.errno())
}

/// `@x` is relative to the arena, `=x` absolute, anything else a plain number.
fn operand(text: &str) -> Result<u64, String> {
    if let Some(relative) = text.strip_prefix('@') {
        return Ok(BASE.wrapping_add(hex(relative)?));
    }
    hex(text.strip_prefix('=').unwrap_or(text))
}
