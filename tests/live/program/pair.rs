//! One program on both sides.

use std::os::unix::fs::FileExt;
use std::path::Path;

use kernmm::flags::VmFlags;
use kernmm::memory::{Memory, Vm};
use kernmm::mm::{Backing, FileKind, FileRef, Vma};
use kernmm::platform::CpuId;
use kernmm::platform::hosted::{HostFiles, Machine};

use super::maker::{Maker, View};
use super::op::{Op, Outcome, PROCESSES, Step};
use super::ours::Ours;
use super::place::{self, OPENINGS, PAGE, REGULAR};
use super::table::Table;
use super::theirs::{Line, Seen, Theirs, WithFlags};
use crate::live::call::Call;
use crate::live::host::sysctl;
use crate::live::shown;

/// RAM of the simulated machine.
const RAM: u64 = 128 << 20;
/// Between so many operations everything is compared.
const INTERVAL: usize = 16;

/// What the steps of a program come from.
pub(crate) enum Script<'s> {
    /// So many random ones. They are noted as they are made.
    Random { seed: u64, steps: usize, made: &'s mut dyn FnMut(Step) },
    /// These.
    Steps(&'s [Step]),
}

struct Pair<'v, 'a, 'm> {
    ours: Ours<'v, 'a, 'm>,
    theirs: Theirs,
    /// Inodes of the objects of shared anonymous mappings: theirs for ours.
    objects: Vec<(u32, u64)>,
}

/// Runs a program on both sides, and compares what it finds, and what it leaves. The answer is the first difference.
pub(crate) fn run(script: Script<'_>, directory: &Path, table: &mut Table) -> Result<(), String> {
    let (theirs, ours) = (directory.join("theirs"), directory.join("ours"));
    std::fs::write(&ours, place::contents(REGULAR)).map_err(|error| error.to_string())?;
    let theirs = Theirs::new(&theirs)?;
    let store = HostFiles::new();
    let inode = store.open(&ours).map_err(|error| error.to_string())?;
    let machine = Machine::pc(RAM).build().map_err(|error| error.to_string())?;
    let _cpu = machine.cpu(CpuId::BOOT).map_err(|error| error.to_string())?;
    let memory = Memory::on(&machine).map_err(|error| error.to_string())?;
    let vm = Vm::on_with(&memory, sysctl()).map_err(|error| error.to_string())?;
    let free = |memory: &Memory<'_, Machine>| {
        memory.phys().drain_all(&memory.pin());
        memory.phys().free_pages_total()
    };
    let before = free(&memory);
    let mut pair =
        Pair { ours: Ours::new(&vm, &store, inode, theirs.pipe_is_noexec())?, theirs, objects: Vec::new() };
    pair.perform_all(script, table)?;
    pair.compare_contents()?;
    pair.compare_files(&ours)?;
    pair.ours.close()?;
    drop(pair);
    let after = free(&memory);
    if after != before {
        return Err(format!("{before} frames were free, and {after} are left"));
    }
    Ok(())
}

impl Pair<'_, '_, '_> {
    fn perform_all(&mut self, script: Script<'_>, table: &mut Table) -> Result<(), String> {
        match script {
            Script::Random { seed, steps, made } => {
                let mut maker = Maker::new(seed);
                for n in 0..steps {
                    let step = self.make(&mut maker);
                    made(step);
                    self.perform(n, &step, n % INTERVAL == INTERVAL - 1, table)?;
                }
            }
            Script::Steps(steps) => {
                for (n, step) in steps.iter().enumerate() {
                    // A list is short.
                    self.perform(n, step, true, table)?;
                }
            }
        }
        Ok(())
    }

    fn make(&self, maker: &mut Maker) -> Step {
        let alive = self.ours.alive();
        let view = View {
            alive: &alive,
            may_fork: alive.len() < PROCESSES,
            arena: &|by| self.ours.arena(by),
            size: &|file| self.ours.size(file),
            end_of_file: &|vma| self.ours.end_of_file(vma),
        };
        maker.next(&view)
    }

    /// Performs one step, if it is in scope.
    fn perform(&mut self, n: usize, step: &Step, everything: bool, table: &mut Table) -> Result<(), String> {
        let Step { by, op } = *step;
        let alive = self.ours.alive();
        let possible = match op {
            Op::Fork => alive.len() < PROCESSES,
            Op::Exit => alive.len() > 1,
            _ => true,
        };
        if !alive.contains(&by) || !possible || self.ours.is_out_of_scope(by, &op) {
            return Ok(());
        }
        let op = self.ours.instead(by, op);
        self.perform_here(by, &op, everything, table).map_err(|what| format!("step {n} {step:x?}: {what}"))
    }

    fn perform_here(
        &mut self,
        by: usize,
        op: &Op,
        everything: bool,
        table: &mut Table,
    ) -> Result<(), String> {
        let (ours, label) = self.ours.perform(by, op)?;
        let theirs = self.theirs.perform(by, op)?;
        if !self.are_equal(by, op, &ours, &theirs) {
            return Err(format!("ours {ours:x?}, theirs {theirs:x?}\n{}", self.both(by)));
        }
        table.note(op.verb(), label);
        if everything {
            for by in self.ours.alive() {
                self.compare_process(by, WithFlags::Yes)
                    .map_err(|what| format!("{what}\n{}", self.both(by)))?;
            }
        } else if op.is_call() && *op != Op::Exit {
            self.compare_process(by, WithFlags::No).map_err(|what| format!("{what}\n{}", self.both(by)))?;
        }
        Ok(())
    }

    fn are_equal(&self, by: usize, op: &Op, ours: &Outcome, theirs: &Outcome) -> bool {
        let Op::Mincore { addr, .. } = *op else { return ours == theirs };
        // What is in memory of a file in a file system is that system's affair.
        let (Outcome::Bytes(a, ours), Outcome::Bytes(b, theirs)) = (ours, theirs) else { return false };
        let arena = self.ours.arena(by);
        let known = |index: usize| {
            let addr = addr + index as u64 * PAGE;
            arena.iter().find(|vma| vma.range().contains(addr.into())).is_none_or(is_predictable)
        };
        a == b
            && ours.len() == theirs.len()
            && ours
                .iter()
                .zip(theirs)
                .enumerate()
                .all(|(index, (ours, theirs))| ours == theirs || !known(index))
    }

    /// Compares layout, sums and entries of a process.
    fn compare_process(&mut self, by: usize, with_flags: WithFlags) -> Result<(), String> {
        self.ours.check(by)?;
        let arena = self.ours.arena(by);
        let lines = self.theirs.layout(by, with_flags)?;
        for (vma, line) in arena.iter().zip(&lines) {
            self.compare_line(vma, line)?;
        }
        if arena.len() != lines.len() {
            return Err(format!("we have {} VMAs, they have {}", arena.len(), lines.len()));
        }
        let (ours, theirs) = (self.ours.locked(by), self.theirs.locked(by)?);
        if ours != theirs {
            return Err(format!("we have {ours} pages locked, they have {theirs}"));
        }
        if with_flags == WithFlags::Yes {
            arena.iter().try_for_each(|vma| self.compare_entries(by, vma))?;
        }
        Ok(())
    }

    fn compare_line(&mut self, vma: &Vma, line: &Line) -> Result<(), String> {
        let (offset, known) = match vma.backing {
            Backing::File(file) => (vma.pgoff.get() * PAGE, self.is_inode(file, line.inode)),
            _ => (0, line.inode == 0),
        };
        let flags = shown::codes(vma.flags);
        let equal = (line.start, line.end) == (vma.start.get(), vma.end.get())
            && line.perms == shown::perms(vma.flags)
            && line.offset == offset
            && known
            && line.flags.as_ref().is_none_or(|theirs| *theirs == flags);
        if equal { Ok(()) } else { Err(format!("ours {vma:x?}, theirs {line:x?}")) }
    }

    fn is_inode(&mut self, file: FileRef, inode: u64) -> bool {
        if let Some(number) = self.ours.file_of(file) {
            return self.theirs.file_of(inode) == Some(number);
        }
        let number = file.file.0.get();
        match self.objects.iter().find(|(ours, theirs)| *ours == number || *theirs == inode) {
            Some(pair) => *pair == (number, inode),
            None => {
                self.objects.push((number, inode));
                true
            }
        }
    }

    /// Which pages are there, and whose they are.
    fn compare_entries(&self, by: usize, vma: &Vma) -> Result<(), String> {
        let (start, end) = (vma.start.get(), vma.end.get());
        // When the kernel makes huge pages is its affair.
        if vma.flags.contains(VmFlags::HUGEPAGE) {
            return Ok(());
        }
        let ours = self.ours.pagemap(by, start, end);
        let theirs = self.theirs.pagemap(by, start, end)?;
        let comparable = |seen: &Seen| match is_predictable(vma) {
            true => *seen,
            // Anonymous pages and guards are there in any case.
            false => Seen {
                present: seen.present && !seen.file,
                file: false,
                exclusive: seen.exclusive && !seen.file,
                guard: seen.guard,
            },
        };
        for (page, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            if comparable(ours) != comparable(theirs) {
                let addr = start + page as u64 * PAGE;
                return Err(format!("the entry for {addr:x} of {vma:x?}: ours {ours:?}, theirs {theirs:?}"));
            }
        }
        Ok(())
    }

    /// Compares all bytes that are mapped.
    fn compare_contents(&mut self) -> Result<(), String> {
        for by in self.ours.alive() {
            self.compare_memory(by)
                .map_err(|what| format!("at the end, process {by}: {what}\n{}", self.both(by)))?;
        }
        Ok(())
    }

    fn compare_memory(&mut self, by: usize) -> Result<(), String> {
        for vma in self.ours.arena(by) {
            if !vma.flags.contains(VmFlags::READ) {
                let (addr, len) = (vma.start.get(), vma.range().len());
                self.perform_here(
                    by,
                    &Op::Call(Call::Mprotect { addr, len, prot: 1 }),
                    false,
                    &mut Table::default(),
                )?;
            }
        }
        let memory = self.theirs.memory(by)?;
        for vma in self.ours.arena(by) {
            let mut bytes = vec![0; PAGE as usize];
            for addr in (vma.start.get()..vma.end.get()).step_by(PAGE as usize) {
                let theirs = memory.read_exact_at(&mut bytes, addr).is_ok();
                match self.ours.page(by, addr) {
                    Ok(page) if theirs && page == bytes => {}
                    Ok(page) if theirs => {
                        let at =
                            page.iter().zip(&bytes).position(|(ours, theirs)| ours != theirs).unwrap_or(0);
                        let (ours, theirs) = (page[at], bytes[at]);
                        return Err(format!(
                            "the byte at {:x}: ours {ours:x}, theirs {theirs:x}",
                            addr + at as u64
                        ));
                    }
                    // The signal itself is compared.
                    ours => {
                        let op = Op::Load { addr, len: 1 };
                        self.perform_here(by, &op, false, &mut Table::default())?;
                        if ours.is_ok() {
                            return Err(format!("the page at {addr:x} cannot be read with them"));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Compares what the files hold, and what has reached the store.
    fn compare_files(&self, store: &Path) -> Result<(), String> {
        for (opening, (number, opened)) in OPENINGS.into_iter().enumerate() {
            if opened != place::Opened::ReadWrite {
                continue;
            }
            let (ours, theirs) = (self.ours.contents(number)?, self.theirs.contents(opening)?);
            compare_bytes(&ours, &theirs).map_err(|what| format!("at the end, file {number}: {what}"))?;
            if number == REGULAR {
                self.ours.write_back()?;
                let stored = std::fs::read(store).map_err(|error| error.to_string())?;
                compare_bytes(&stored, &theirs)
                    .map_err(|what| format!("at the end, in the store: {what}"))?;
            }
        }
        Ok(())
    }

    fn both(&self, by: usize) -> String {
        let ours = self.ours.arena(by).iter().map(|vma| format!("  {vma:x?}\n")).collect::<String>();
        let lines = self.theirs.layout(by, WithFlags::No).unwrap_or_default();
        let theirs = lines.iter().map(|line| format!("  {line:x?}\n")).collect::<String>();
        format!("ours:\n{ours}theirs:\n{theirs}")
    }
}

/// Whether it can be told which pages of a VMA are there.
fn is_predictable(vma: &Vma) -> bool {
    vma.backing.file().is_none_or(|file| file.kind != FileKind::Regular)
        && !vma.flags.contains(VmFlags::HUGEPAGE)
}

fn compare_bytes(ours: &[u8], theirs: &[u8]) -> Result<(), String> {
    if ours.len() != theirs.len() {
        return Err(format!("our length {}, theirs {}", ours.len(), theirs.len()));
    }
    match ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs) {
        None => Ok(()),
        Some(at) => Err(format!("the byte at {at:x}: ours {:x}, theirs {:x}", ours[at], theirs[at])),
    }
}
