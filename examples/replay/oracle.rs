//! Replays scripts of calls and compares with what the kernel answered.
//!
//! What a load or a store reads or writes, and which pages are resident, is not answered by VMAs alone: those results are
//! counted as uncovered. Their effects on VMAs (an owner for anonymous pages, a stack that grows) are followed.

use std::collections::HashMap;

use kernmm::addr::{PgOff, VirtAddr};
use kernmm::flags::{MapFlags, MlockFlags, MremapFlags, MsyncFlags, Prot, VmFlags};
use kernmm::mm::{
    Backing, FileKind, FileRef, Image, Mm, MmContext, MmError, Overcommit, OvercommitMode, Rlimits, Sysctl,
    Touch, Vma,
};
use kernmm::syscall::{self, MapFile, MmapArgs, OpenMode};

use crate::common::{ObjectNames, codes, hex, lines, prot, shown_pgoff};
use crate::pages::Pages;
use crate::stores::Stores;

const BASE: u64 = 0x10_0000_0000;
const ARENA: u64 = 64 << 20;
/// What fills the rest of the addresses.
const FOREIGN: Backing = Backing::Special(0);

/// A process of a script.
struct Process<'c> {
    mm: Mm<'c>,
    pages: Pages,
    names: ObjectNames,
    /// The files that it has open, and how.
    modes: HashMap<u32, OpenMode>,
}

struct Script<'c> {
    context: &'c MmContext<'c>,
    /// The process that runs, on top of those that wait for it.
    processes: Vec<Process<'c>>,
    memlock: Option<u64>,
    operation: String,
    answer: Option<Answer>,
    layout: Vec<String>,
    /// How many layout lines are to come.
    awaited: usize,
}

/// What an operation answered.
enum Answer {
    /// To be compared.
    Exact(String),
    /// Only whether it failed, and how.
    Errno(Result<(), MmError>),
    /// Not a matter of VMAs.
    Uncovered,
}

#[derive(Default)]
struct Counts {
    line: usize,
    scripts: usize,
    operations: usize,
    mismatches: usize,
    uncovered: usize,
}

/// Replays one file; whether nothing differed.
pub(crate) fn replay(path: &str) -> Result<bool, String> {
    let stores = Stores::new(1 << 12, 1 << 8);
    // The recording process was allowed to map the lowest addresses.
    let sysctl = Sysctl { dac_mmap_min_addr: 0, ..Sysctl::default() };
    let context = MmContext::new(stores.lend(), sysctl, Overcommit::new(OvercommitMode::Guess, 24 << 18, 0));
    let mut script = Script::new(&context);
    let mut counts = Counts::default();
    let mut heading = String::new();
    // After a mismatch everything that follows in a script would differ too.
    let mut lost = false;
    for line in lines(path)? {
        counts.line += 1;
        if let Some(head) = line.strip_prefix("S ") {
            script.end();
            heading = head.to_owned();
            counts.scripts += 1;
            lost = false;
            script.begin().map_err(|error| error.to_string())?;
            continue;
        }
        counts.operations += usize::from(line.starts_with("O "));
        if lost {
            continue;
        }
        let done = script.line(&line, &mut counts);
        if let Err(what) = done {
            counts.mismatches += 1;
            lost = true;
            if counts.mismatches <= 10 {
                println!("{path} line {}: script {heading}: {}\n    {what}", counts.line, script.operation);
            }
        }
    }
    script.end();
    let Counts { scripts, operations, mismatches, uncovered, .. } = counts;
    println!(
        "{path}: scripts {scripts}, operations {operations}, mismatches {mismatches}, uncovered {uncovered}"
    );
    Ok(mismatches == 0 && operations > 0)
}

impl<'c> Script<'c> {
    fn new(context: &'c MmContext<'c>) -> Self {
        Self {
            context,
            processes: Vec::new(),
            memlock: None,
            operation: String::new(),
            answer: None,
            layout: Vec::new(),
            awaited: 0,
        }
    }

    fn begin(&mut self) -> Result<(), MmError> {
        let mut mm = Mm::new(self.context)?;
        let mut pages = Pages::default();
        mm.set_mmap_base(VirtAddr::from(BASE + ARENA));
        mm.set_rlimits(Rlimits { memlock: Rlimits::INFINITY, ..Rlimits::default() });
        let sysctl = self.context.sysctl();
        for (start, end) in [(sysctl.mmap_min_addr, BASE), (BASE + ARENA, sysctl.task_size)] {
            let vma = Vma {
                start: VirtAddr::from(start),
                end: VirtAddr::from(end),
                flags: VmFlags::DONTEXPAND,
                pgoff: PgOff::ZERO,
                backing: FOREIGN,
                anon: None,
            };
            mm.insert_vma(&mut pages, &vma)?;
        }
        self.processes.push(Process { mm, pages, names: ObjectNames::default(), modes: HashMap::new() });
        Ok(())
    }

    fn end(&mut self) {
        for process in &mut self.processes {
            syscall::exit(&mut process.mm, &mut process.pages);
        }
        *self = Self::new(self.context);
    }

    fn line(&mut self, line: &str, counts: &mut Counts) -> Result<(), String> {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        match kind {
            "O" => {
                self.operation = rest.to_owned();
                let words: Vec<&str> = rest.split(' ').collect();
                self.answer = Some(self.operate(&words)?);
                Ok(())
            }
            "R" => {
                let answer = self.answer.take().ok_or("an answer without an operation")?;
                self.compare_answer(answer, rest, counts)
            }
            "L" if rest == "=" => self.compare_layout(),
            "L" => {
                self.layout.clear();
                self.awaited = rest.parse().map_err(|_| format!("not a count: {rest}"))?;
                if self.awaited == 0 { self.compare_layout() } else { Ok(()) }
            }
            "V" => {
                self.layout.push(rest.to_owned());
                self.awaited -= 1;
                if self.awaited == 0 { self.compare_layout() } else { Ok(()) }
            }
            "E" => Ok(()),
            _ => Err(format!("unknown line {line}")),
        }
    }

    fn compare_answer(&self, answer: Answer, recorded: &str, counts: &mut Counts) -> Result<(), String> {
        let ours = match answer {
            Answer::Exact(ours) => ours,
            Answer::Errno(result) => {
                counts.uncovered += 1;
                let first = recorded.split(' ').next().unwrap_or_default();
                let ours = result.map_or_else(errno, |()| "0".to_owned());
                return if ours == first {
                    Ok(())
                } else {
                    Err(format!("answered {ours}, recorded {recorded}"))
                };
            }
            Answer::Uncovered => {
                counts.uncovered += 1;
                return Ok(());
            }
        };
        if ours == recorded { Ok(()) } else { Err(format!("answered {ours}, recorded {recorded}")) }
    }

    fn compare_layout(&mut self) -> Result<(), String> {
        let process = self.processes.last_mut().ok_or("no process")?;
        process.mm.check().map_err(|violation| format!("check: {violation:?}"))?;
        let mut recorded = self.layout.iter();
        let arena = BASE..BASE + ARENA;
        for (_, vma) in process.mm.vmas().iter().filter(|(_, vma)| arena.contains(&vma.start.get())) {
            let own = match vma.backing {
                Backing::File(file) => format!("f{}", file.file.0.get() - 1),
                _ => String::new(),
            };
            let ours = format!(
                "{:x} {:x} {} {:x}",
                vma.start.get().wrapping_sub(BASE),
                vma.end.get().wrapping_sub(BASE),
                prot(vma.flags),
                shown_pgoff(&vma)
            );
            let line = recorded.next().map(String::as_str).unwrap_or("nothing");
            let words: Vec<&str> = line.split(' ').collect();
            let equal = words.len() == 6
                && words[..4].join(" ") == ours
                && words[5] == codes(vma.flags)
                && process.names.agree(vma.backing, &own, words[4]);
            if !equal {
                return Err(format!(
                    "ours {ours} {own} {} {:?}, recorded {line}",
                    codes(vma.flags),
                    vma.anon
                ));
            }
        }
        recorded.next().map_or(Ok(()), |line| Err(format!("ours ends, recorded {line}")))
    }

    fn operate(&mut self, words: &[&str]) -> Result<Answer, String> {
        match words[0] {
            "file" => return self.make_file(words),
            "trunc" => {
                let pages = hex(words[2])?.div_ceil(4096);
                self.process()?.pages.set_size(file_number(words[1])?, pages);
                return Ok(Answer::Uncovered);
            }
            "fread" | "fwrite" | "pm" | "rss" => return Ok(Answer::Uncovered),
            "memlock" => return self.limit_locked(hex(words[1])?),
            "fork" => return self.fork(),
            "endfork" => {
                let mut child = self.processes.pop().ok_or("no child")?;
                syscall::exit(&mut child.mm, &mut child.pages);
                return Ok(Answer::Exact("parent".to_owned()));
            }
            "mmap" => return self.mmap(words),
            _ => {}
        }
        let Process { mm, pages, .. } = self.process()?;
        let arg = |n: usize| operand(words.get(n).copied().unwrap_or("0"));
        let none =
            |result: Result<(), MmError>| Answer::Exact(result.map_or_else(errno, |()| "0".to_owned()));
        Ok(match words[0] {
            "munmap" => none(syscall::munmap(mm, pages, arg(1)?, arg(2)?)),
            "mprotect" => {
                none(syscall::mprotect(mm, pages, arg(1)?, arg(2)?, Prot::from_bits_retain(arg(3)?)))
            }
            "mremap" => {
                let flags = MremapFlags::from_bits_retain(arg(4)?);
                address(syscall::mremap(mm, pages, arg(1)?, arg(2)?, arg(3)?, flags, arg(5)?))
            }
            "madvise" => {
                let advice = words[3].parse().map_err(|_| format!("not advice: {}", words[3]))?;
                none(syscall::madvise(mm, pages, arg(1)?, arg(2)?, advice))
            }
            "mlock" => none(syscall::mlock(mm, pages, arg(1)?, arg(2)?)),
            "mlock2" => {
                none(syscall::mlock2(mm, pages, arg(1)?, arg(2)?, MlockFlags::from_bits_retain(arg(3)?)))
            }
            "munlock" => none(syscall::munlock(mm, pages, arg(1)?, arg(2)?)),
            "msync" => {
                none(syscall::msync(mm, pages, arg(1)?, arg(2)?, MsyncFlags::from_bits_retain(arg(3)?)))
            }
            "mincore" => {
                let mut answers = vec![0; 1 << 16];
                Answer::Errno(syscall::mincore(mm, pages, arg(1)?, arg(2)?, answers.as_mut_slice()))
            }
            "brkinit" => {
                let start = VirtAddr::from(arg(1)?);
                mm.set_image(Image { start_brk: start, brk: start, ..*mm.image() });
                Answer::Exact("0".to_owned())
            }
            "brk" => address(Ok(syscall::brk(mm, pages, arg(1)?))),
            "load" | "kload" | "exec" => touch(mm, pages, arg(1)?, Touch::Read),
            "store" | "kstore" => touch(mm, pages, arg(1)?, Touch::Write),
            other => return Err(format!("unknown operation {other}")),
        })
    }

    fn process(&mut self) -> Result<&mut Process<'c>, String> {
        self.processes.last_mut().ok_or("no process".to_owned())
    }

    fn make_file(&mut self, words: &[&str]) -> Result<Answer, String> {
        let number = file_number(words[1])?;
        let mode = match words[3] {
            "ro" => OpenMode::ReadOnly,
            "wo" => OpenMode::WriteOnly,
            _ => OpenMode::ReadWrite,
        };
        let pages = hex(words[2])?.div_ceil(4096);
        let process = self.process()?;
        process.modes.insert(number, mode);
        process.pages.set_size(number, pages);
        Ok(Answer::Uncovered)
    }

    /// The limit once lowered, only the lowering of it is allowed.
    fn limit_locked(&mut self, bytes: u64) -> Result<Answer, String> {
        if self.memlock.is_some_and(|now| bytes > now) {
            return Ok(Answer::Exact("-EPERM".to_owned()));
        }
        self.memlock = Some(bytes);
        let mm = &mut self.process()?.mm;
        mm.set_rlimits(Rlimits { memlock: bytes, ..*mm.rlimits() });
        Ok(Answer::Exact("0".to_owned()))
    }

    fn fork(&mut self) -> Result<Answer, String> {
        let parent = self.process()?;
        let mut pages = parent.pages.clone();
        let mut mm = parent.mm.new_child().map_err(|error| error.to_string())?;
        syscall::fork(&mut parent.mm, &mut parent.pages, &mut mm, &mut pages)
            .map_err(|error| error.to_string())?;
        let (names, modes) = (parent.names.clone(), parent.modes.clone());
        self.processes.push(Process { mm, pages, names, modes });
        Ok(Answer::Exact("child".to_owned()))
    }

    fn mmap(&mut self, words: &[&str]) -> Result<Answer, String> {
        let file = match words[5] {
            "-" => Ok(None),
            "x" => Err(MmError::BadDescriptor),
            number => {
                let number = file_number(number)?;
                match (self.process()?.modes.get(&number), FileRef::new(number, number, FileKind::Memory)) {
                    (Some(&mode), Some(file)) => Ok(Some(MapFile::new(file, mode))),
                    _ => Err(MmError::BadDescriptor),
                }
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
        let Process { mm, pages, .. } = self.process()?;
        Ok(address(syscall::mmap(mm, pages, &args)))
    }
}

/// What touching a byte does to VMAs.
fn touch(mm: &mut Mm<'_>, pages: &Pages, addr: u64, touch: Touch) -> Answer {
    let addr = VirtAddr::from(addr);
    if let Ok(slot) = mm.find_vma_or_grow(addr) {
        let vma = mm.vma(slot);
        let allowed = touch == Touch::Read || vma.flags.contains(VmFlags::WRITE);
        let guarded = pages.is_guard(addr);
        if allowed && !guarded && vma.flags.is_accessible() && mm.touch_needs_anon(&vma, addr, touch) {
            // Without an owner there are no pages, and nothing to be seen.
            let _ = mm.prepare_anon(slot);
        }
    }
    Answer::Uncovered
}

fn address(result: Result<VirtAddr, MmError>) -> Answer {
    Answer::Exact(match result {
        Ok(addr) if (BASE..=BASE + ARENA).contains(&addr.get()) => format!("@{:x}", addr.get() - BASE),
        Ok(addr) => format!("={:x}", addr.get()),
        Err(error) => errno(error),
    })
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

/// Files count from 0, ours from 1.
fn file_number(text: &str) -> Result<u32, String> {
    text.parse::<u32>().map(|number| number + 1).map_err(|_| format!("not a file number: {text}"))
}
