//! Replays scripts of calls, touches and file operations on a simulated machine, and compares with what the kernel answered.

use kernmm::memory::{Memory, Vm};
use kernmm::mm::Sysctl;
use kernmm::platform::CpuId;
use kernmm::platform::hosted::Machine;

use crate::common::{codes, hex, lines, prot, shown_pgoff};
use crate::program::{BASE, Program};

/// RAM for an arena, for what its children copy, and for files.
const RAM: u64 = 256 << 20;

struct Script<'v, 'a, 'm> {
    vm: &'v Vm<'a, Memory<'m, Machine>>,
    /// The process that runs, on top of those that wait for it.
    programs: Vec<Program<'v, 'a, 'm>>,
    memlock: Option<u64>,
    operation: String,
    /// What the operation answered, until that is compared.
    answer: Option<String>,
    layout: Vec<String>,
    /// How many layout lines are to come.
    awaited: usize,
}

#[derive(Default)]
struct Counts {
    line: usize,
    scripts: usize,
    operations: usize,
    mismatches: usize,
    /// Operations whose answer was not compared.
    uncovered: usize,
}

/// Replays one file; whether nothing differed.
pub(crate) fn replay(path: &str) -> Result<bool, String> {
    let machine = Machine::pc(RAM).build().map_err(|error| error.to_string())?;
    let _cpu = machine.cpu(CpuId::BOOT).map_err(|error| error.to_string())?;
    let memory = Memory::on(&machine).map_err(|error| error.to_string())?;
    // The recording process was allowed to map the lowest addresses.
    let sysctl = Sysctl { dac_mmap_min_addr: 0, ..Sysctl::default() };
    let vm = Vm::on_with(&memory, sysctl).map_err(|error| error.to_string())?;
    replay_on(path, &memory, &vm)
}

fn replay_on<'v, 'a, 'm>(
    path: &str,
    memory: &Memory<'m, Machine>,
    vm: &'v Vm<'a, Memory<'m, Machine>>,
) -> Result<bool, String> {
    let free = || {
        memory.phys().drain_all(&memory.pin());
        memory.phys().free_pages_total()
    };
    let mut script = Script::new(vm);
    let mut counts = Counts::default();
    let mut heading = String::new();
    // After a mismatch everything that follows in a script would differ too.
    let mut lost = false;
    let mut before = free();
    for line in lines(path)? {
        counts.line += 1;
        if let Some(head) = line.strip_prefix("S ") {
            heading = head.to_owned();
            counts.scripts += 1;
            lost = false;
            script.end();
            before = free();
            script.begin()?;
            continue;
        }
        let is_operation = line.starts_with("O ");
        counts.operations += usize::from(is_operation);
        if lost {
            counts.uncovered += usize::from(is_operation);
            continue;
        }
        let mut done = script.line(&line);
        if line == "E" {
            script.end();
            let left = before - free();
            done = done.and(if left == 0 { Ok(()) } else { Err(format!("{left} frames are lost")) });
        }
        if let Err(what) = done {
            counts.mismatches += 1;
            lost = true;
            println!("{path} line {}: script {heading}: {}\n    {what}", counts.line, script.operation);
        }
    }
    script.end();
    let Counts { scripts, operations, mismatches, uncovered, .. } = counts;
    println!(
        "{path}: scripts {scripts}, operations {operations}, mismatches {mismatches}, uncovered {uncovered}"
    );
    Ok(mismatches == 0 && uncovered == 0 && operations > 0)
}

impl<'v, 'a, 'm> Script<'v, 'a, 'm> {
    fn new(vm: &'v Vm<'a, Memory<'m, Machine>>) -> Self {
        Self {
            vm,
            programs: Vec::new(),
            memlock: None,
            operation: String::new(),
            answer: None,
            layout: Vec::new(),
            awaited: 0,
        }
    }

    fn begin(&mut self) -> Result<(), String> {
        self.programs.push(Program::new(self.vm).map_err(|error| error.to_string())?);
        Ok(())
    }

    fn end(&mut self) {
        // Children before their parents.
        while self.programs.pop().is_some() {}
        *self = Self { operation: std::mem::take(&mut self.operation), ..Self::new(self.vm) };
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        match kind {
            "O" => {
                self.operation = rest.to_owned();
                let words: Vec<&str> = rest.split(' ').collect();
                self.answer = Some(self.operate(&words)?);
                Ok(())
            }
            "R" => match self.answer.take().ok_or("an answer without an operation")? {
                ours if ours == rest => Ok(()),
                ours => Err(format!("answered {ours}, recorded {rest}")),
            },
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

    fn compare_layout(&mut self) -> Result<(), String> {
        let program = self.programs.last_mut().ok_or("no process")?;
        let mut recorded = self.layout.iter();
        for vma in program.layout()? {
            let own = program.file_name(&vma);
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
                && program.names.agree(vma.backing, &own, words[4]);
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

    fn operate(&mut self, words: &[&str]) -> Result<String, String> {
        let program = self.programs.last_mut().ok_or("no process")?;
        match words[0] {
            "fork" => {
                let child = program.fork().map_err(|error| error.to_string())?;
                self.programs.push(child);
                Ok("child".to_owned())
            }
            "endfork" => {
                self.programs.pop().filter(|_| !self.programs.is_empty()).ok_or("no child")?;
                Ok("parent".to_owned())
            }
            // The limit once lowered, only the lowering of it is allowed.
            "memlock" => {
                let bytes = hex(words[1])?;
                if self.memlock.is_some_and(|now| bytes > now) {
                    return Ok("-EPERM".to_owned());
                }
                self.memlock = Some(bytes);
                program.limit_locked(bytes);
                Ok("0".to_owned())
            }
            _ => program.operate(words),
        }
    }
}
