//! Replays what a program did to its address space, call by call.

#[path = "names.rs"]
mod names;

use std::collections::BTreeMap;
use std::path::Path;

use kernmm::addr::{PgOff, VirtAddr, VirtRange};
use kernmm::flags::{MapFlags, MremapFlags, MsyncFlags, Prot, VmFlags};
use kernmm::memory::{Memory, Refused, Vm, VmLimits};
use kernmm::mm::{Backing, FileKind, FileRef, Mm, MmError, Overcommit, OvercommitMode, Rlimits, Sysctl, Vma};
use kernmm::platform::CpuId;
use kernmm::platform::hosted::Machine;
use kernmm::report::{Label, label};
use kernmm::syscall::{MapFile, MmapArgs, OpenMode};

use names::{FileNames, number};

use crate::common::{ObjectNames, codes, hex, lines, prot, shown_pgoff, vm_flags};
use crate::snapshot::{Recorded, Share, Snapshots};
use crate::subject::{MadeUp, Resident, Subject, Touched};

/// RAM for the largest of the recorded programs and its files.
const RAM: u64 = 1 << 31;
/// Memory of the machine that the programs were recorded on, in pages.
const RECORDED_PAGES: u64 = 24 << 18;

/// What faults of the recordings end in, and how often: a JVM lives by null pointers and safepoints. Those that are not here have none.
const SIGNALS: [(&str, &str); 3] = [
    ("java_g1", "SIGSEGV (SEGV_MAPERR) 1"),
    ("javac", "SIGSEGV (SEGV_MAPERR) 5"),
    ("java", "SIGSEGV (SEGV_ACCERR) 74, SIGSEGV (SEGV_MAPERR) 1"),
];

/// What came of a replay.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    /// Whether nothing differed but pages of files, of which the recording does not tell all.
    pub(crate) is_equal: bool,
    /// Of how many VMAs the pages of files were equal too.
    pub(crate) files: Share,
}

/// A VMA as the recording has it.
#[derive(Clone, PartialEq, Eq)]
struct Line {
    end: u64,
    prot: String,
    pgoff: u64,
    file: String,
    tag: String,
}

/// How a recording begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    Exec,
    /// In the middle of a process: where the search begins, and the break, are not known.
    Attach,
}

struct Trace<'v, 'a, 'm> {
    subject: Subject<'v, 'a, 'm>,
    start: Start,
    started: bool,
    names: ObjectNames,
    file_names: FileNames,
    expected: BTreeMap<u64, Line>,
    snapshot: Vec<(Vma, String)>,
    snapshots: Snapshots,
    /// The call that waits for the change of layout that follows it.
    pending: Option<String>,
    start_brk: u64,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    line: usize,
    calls: usize,
    faults: usize,
    /// Faults that end in a signal.
    refused: BTreeMap<String, usize>,
    equal: usize,
    addresses: usize,
    addresses_equal: usize,
    flags_checked: usize,
    skipped: BTreeMap<String, usize>,
    differences: usize,
}

/// The tags of the kernel's own mappings; a mapping's number is its place here.
const SPECIALS: [&str; 3] = ["vdso", "vvar", "vvar_vclock"];

/// Replays one file and prints the sum. At the end, before the process exits, `show` may look at it.
pub(crate) fn replay(path: &str, show: impl FnOnce(&Mm<'_>, &FileNames)) -> Result<Outcome, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let store = MadeUp::default();
    let machine = Machine::pc(RAM).build().map_err(|error| text(&error))?;
    let _cpu = machine.cpu(CpuId::BOOT).map_err(|error| text(&error))?;
    let memory = Memory::on(&machine).map_err(|error| text(&error))?;
    let limits = VmLimits { files: 1 << 13, ..VmLimits::for_frames(memory.phys().managed_pages()) };
    let metadata = machine.set_aside(Vm::<Memory<'_, Machine>>::metadata_layout(memory.phys(), &limits));
    let vm: Vm<'_, _> =
        Vm::new(&memory, &limits, Sysctl::default(), metadata).map_err(|error| text(&error))?;
    let vm = vm.with_overcommit(Overcommit::new(OvercommitMode::Guess, RECORDED_PAGES, 0));
    replay_on(path, &vm, &store, show)
}

fn replay_on<'a>(
    path: &str,
    vm: &Vm<'a, Memory<'_, Machine>>,
    store: &'a MadeUp,
    show: impl FnOnce(&Mm<'_>, &FileNames),
) -> Result<Outcome, String> {
    let mut trace = Trace {
        subject: Subject::new(vm, store).map_err(|error| error.to_string())?,
        start: Start::Exec,
        started: false,
        names: ObjectNames::default(),
        file_names: FileNames::default(),
        expected: BTreeMap::new(),
        snapshot: Vec::new(),
        snapshots: Snapshots::default(),
        pending: None,
        start_brk: 0,
        counts: Counts::default(),
    };
    for line in lines(path)? {
        trace.counts.line += 1;
        trace.line(&line).map_err(|error| format!("line {}: {error}", trace.counts.line))?;
        if trace.counts.differences >= 10 {
            println!("{path}: stopped after 10 differences");
            break;
        }
    }
    trace.settle()?;
    trace.snapshots.settle(&trace.subject);
    trace.subject.process.with(|mm| show(mm, &trace.file_names));
    for what in trace.snapshots.differences.iter().take(10) {
        println!("{what}");
    }
    let Counts { calls, faults, equal, addresses, addresses_equal, flags_checked, skipped, refused, .. } =
        &trace.counts;
    let (calls, differences) = (*calls, trace.counts.differences + trace.snapshots.differences.len());
    let named = |counts: &BTreeMap<String, usize>| {
        let named: Vec<String> = counts.iter().map(|(what, n)| format!("{what} {n}")).collect();
        if named.is_empty() { "none".to_owned() } else { named.join(", ") }
    };
    println!(
        "{path}: calls {calls}, layouts equal {equal}, addresses equal {addresses_equal}/{addresses}, \
         flag lines equal {flags_checked}, faults {faults}, \
         signals {}, {}, skipped {}, differences {differences}",
        named(refused),
        trace.snapshots.sum(),
        named(skipped)
    );
    print!("{}", trace.snapshots.rest());
    let signals = named(refused);
    let expected = expected_signals(path);
    if signals != expected {
        println!("{path}: signals {signals}, expected {expected}");
    }
    let is_equal = differences == 0 && signals == expected && calls > 0;
    Ok(Outcome { is_equal, files: trace.snapshots.files })
}

/// What faults of a recording end in.
fn expected_signals(path: &str) -> &'static str {
    let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
    SIGNALS.iter().find(|(name, _)| *name == stem).map_or("none", |(_, signals)| signals)
}

impl Trace<'_, '_, '_> {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split(' ').collect();
        if !matches!(words[0], "-" | "+") {
            self.settle()?;
        }
        match words[0] {
            "H" => self.header(&words),
            "I" => {
                let kind = match words[5] {
                    "file" => FileKind::Regular,
                    "anonshm" => FileKind::SharedAnonymous,
                    _ => FileKind::Memory,
                };
                self.subject.learn(number(words[1])?, kind, words[4].parse().unwrap_or(0));
                self.file_names.learn(&words)?;
                Ok(())
            }
            "M" if words[2] == "fork" => {
                self.begin()?;
                // What the child did is not recorded; what its birth did to the parent is done by that alone.
                self.subject.process.fork().map(drop).map_err(|error| error.to_string())
            }
            "S" | "M" => Ok(()),
            "V" => self.snapshot_line(&words),
            "-" => {
                self.expected.remove(&hex(words[1])?);
                Ok(())
            }
            "+" => {
                self.expected.insert(hex(words[1])?, parse_line(&words[2..])?);
                Ok(())
            }
            "C" => {
                self.begin()?;
                self.pending = Some(line.to_owned());
                Ok(())
            }
            "F" => {
                self.begin()?;
                self.fault(hex(words[2])? << 12, words[3])
            }
            _ => Err(format!("unknown line {line}")),
        }
    }

    fn header(&mut self, words: &[&str]) -> Result<(), String> {
        let process = &self.subject.process;
        let mut rlimits = process.with(|mm| *mm.rlimits());
        let limit = |text: &str| match text {
            "unlimited" => Ok(Rlimits::INFINITY),
            _ => text.parse().map_err(|_| format!("not a limit: {text}")),
        };
        match words[1] {
            "start" if words[2] == "attach" => self.start = Start::Attach,
            "start_brk" => self.start_brk = hex(words[2])?,
            "mmap_base" => {
                let base = VirtAddr::from(hex(words[2])?);
                process.with_mut(|mm| mm.set_mmap_base(base));
            }
            "rlimit_stack" => rlimits.stack = limit(words[2])?,
            "rlimit_memlock" => rlimits.memlock = limit(words[2])?,
            _ => {}
        }
        process.with_mut(|mm| mm.set_rlimits(rlimits));
        Ok(())
    }

    fn file(&mut self, id: &str, mode: &str) -> Result<FileRef, String> {
        let id = number(id)?;
        let open = id * 4 + ["ro", "wo", "rw"].iter().position(|known| *known == mode).unwrap_or(3) as u32;
        let file = self.subject.file(id, open + 1)?;
        self.file_names.number(file, id);
        Ok(file)
    }

    /// A line of a snapshot: the first one makes the layout, later ones are compared with it.
    fn snapshot_line(&mut self, words: &[&str]) -> Result<(), String> {
        let start = hex(words[1])?;
        let line = parse_line(&words[2..])?;
        let flags = vm_flags(words[7])?;
        if self.started {
            let count = |text: &str| text.parse().map_err(|_| format!("not a count: {text}"));
            let resident = Resident { all: count(words[8])?, anon: count(words[9])? };
            let range = VirtRange::new(VirtAddr::from(start), VirtAddr::from(line.end)).unwrap_or_default();
            self.snapshots.compare(&self.subject, self.counts.line, Recorded { range, resident });
            return self.compare_flags(start, flags);
        }
        let backing = match (line.file.as_str(), line.tag.as_str()) {
            ("-", tag) if SPECIALS.contains(&tag) => {
                Backing::Special(SPECIALS.iter().position(|special| *special == tag).unwrap_or(0) as u32)
            }
            ("-", _) => Backing::Anonymous,
            // How it was opened shows in what the mapping may become, if it is shared.
            (id, _) => {
                Backing::File(self.file(id, if flags.contains(VmFlags::SHARED) { "rw" } else { "ro" })?)
            }
        };
        let pgoff = match backing {
            Backing::Anonymous => start >> 12,
            _ => line.pgoff,
        };
        let vma = Vma {
            start: VirtAddr::from(start),
            end: VirtAddr::from(line.end),
            flags,
            pgoff: PgOff::new(pgoff).ok_or("offset too large")?,
            backing,
            anon: None,
        };
        self.snapshot.push((vma, words[9].to_owned()));
        self.expected.insert(start, line);
        Ok(())
    }

    /// Loads the first snapshot, once it is complete.
    fn begin(&mut self) -> Result<(), String> {
        if self.started {
            return Ok(());
        }
        self.started = true;
        self.snapshots.begin(self.snapshot.iter().map(|(vma, _)| vma.range()));
        let process = &self.subject.process;
        let mut image = process.with(|mm| *mm.image());
        image.start_brk = VirtAddr::from(self.start_brk);
        image.brk = image.start_brk;
        for (vma, _) in &self.snapshot {
            process.insert_vma(vma).map_err(|error| error.to_string())?;
            let line = &self.expected[&vma.start.get()];
            if line.tag == "heap" && self.start == Start::Attach {
                (image.start_brk, image.brk) = (vma.start, vma.end);
            }
            if line.tag == "stack" {
                image.start_stack = vma.end;
            }
        }
        process.with_mut(|mm| mm.set_image(image));
        for (vma, anon) in &self.snapshot {
            if anon != "0" && !vma.flags.contains(VmFlags::SHARED) {
                process.with(|mm| {
                    let slot = mm.lookup(vma.start).ok_or("snapshot not loaded")?;
                    mm.prepare_anon(slot).map_err(|error| error.to_string())
                })?;
            }
        }
        Ok(())
    }

    /// Makes the access that faulted when it was recorded.
    fn fault(&mut self, addr: u64, how: &str) -> Result<(), String> {
        self.counts.faults += 1;
        let touched = match (how.starts_with('w'), how.starts_with('x'), how.contains('k')) {
            (true, _, true) => Touched::KernelStore,
            (true, _, false) => Touched::Store,
            (false, true, _) => Touched::Fetch,
            (false, false, true) => Touched::KernelLoad,
            (false, false, false) => Touched::Load,
        };
        let addr = VirtAddr::from(addr);
        match self.subject.touch(addr, touched) {
            Err(Refused::OutOfMemory) => return Err(format!("out of memory at {addr:?}")),
            Err(refused) => *self.counts.refused.entry(refused.to_string()).or_default() += 1,
            Ok(()) => self.snapshots.touched(&self.subject, addr),
        }
        Ok(())
    }

    /// Performs the call that was read last, now that the layout after it is known, and compares.
    fn settle(&mut self) -> Result<(), String> {
        let Some(call) = self.pending.take() else { return Ok(()) };
        self.snapshots.settle(&self.subject);
        let (call_text, recorded) = call.rsplit_once(" = ").ok_or("a call without a result")?;
        let words: Vec<&str> = call_text.split(' ').skip(2).collect();
        let before = self.counts.differences;
        match words[0] {
            "prctl" | "pkey_alloc" => self.skip(words[0]),
            "shmat" | "shmdt" => {
                self.skip(words[0]);
                self.adopt()?;
            }
            _ => {
                let ours = self.call(&words, recorded)?;
                self.compare_result(&call, &ours, recorded);
            }
        }
        self.counts.calls += 1;
        self.compare_layout(&call);
        self.subject
            .process
            .with(|mm| mm.check())
            .map_err(|violation| format!("{violation:?} after {call}"))?;
        self.counts.equal += usize::from(self.counts.differences == before);
        Ok(())
    }

    fn skip(&mut self, call: &str) {
        *self.counts.skipped.entry(call.to_owned()).or_default() += 1;
    }

    /// Takes over what the recording says, for calls that are out of scope.
    fn adopt(&mut self) -> Result<(), String> {
        let ours: Vec<Vma> = self.subject.process.with(|mm| mm.vmas().iter().map(|(_, vma)| vma).collect());
        for vma in ours.iter().filter(|vma| !self.expected.contains_key(&vma.start.get())) {
            let (start, len) = (vma.start.get(), vma.range().len());
            self.subject.process.munmap(start, len).map_err(|error| error.to_string())?;
        }
        for (start, line) in self.expected.clone() {
            if ours.iter().any(|vma| vma.start.get() == start) {
                continue;
            }
            let vma = Vma {
                start: VirtAddr::from(start),
                end: VirtAddr::from(line.end),
                flags: vm_flags("rd,wr,sh,mr,mw,me,ms")?,
                pgoff: PgOff::new(line.pgoff).ok_or("offset too large")?,
                backing: Backing::File(self.file(&line.file, "rw")?),
                anon: None,
            };
            self.subject.process.insert_vma(&vma).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn call(&mut self, words: &[&str], recorded: &str) -> Result<Result<u64, MmError>, String> {
        let arg = |n: usize| hex(words.get(n).copied().unwrap_or("0"));
        let process = &self.subject.process;
        let none = |result: Result<(), MmError>| result.map(|()| 0);
        Ok(match words[0] {
            "mmap" => return self.mmap(words, recorded),
            "munmap" => none(process.munmap(arg(1)?, arg(2)?)),
            "mprotect" => none(process.mprotect(arg(1)?, arg(2)?, Prot::from_bits_retain(arg(3)?))),
            "mremap" => {
                let mut flags = MremapFlags::from_bits_retain(arg(4)?);
                let mut new_addr = arg(5)?;
                let moved = hex(recorded).is_ok_and(|to| to != arg(1).unwrap_or(0));
                if self.start == Start::Attach && moved && !flags.contains(MremapFlags::FIXED) {
                    new_addr = hex(recorded)?;
                    process.with(|mm| ensure_free(mm, new_addr, arg(3)?))?;
                    flags |= MremapFlags::FIXED;
                }
                let result = process.mremap(arg(1)?, arg(2)?, arg(3)?, flags, new_addr);
                if moved && self.start == Start::Exec {
                    self.count_address(result, recorded);
                }
                result.map(VirtAddr::get)
            }
            "brk" => process.brk(arg(1)?).map(VirtAddr::get),
            "madvise" => none(process.madvise(arg(1)?, arg(2)?, arg(3)? as i32)),
            "msync" => none(process.msync(arg(1)?, arg(2)?, MsyncFlags::from_bits_retain(arg(3)? as u32))),
            other => return Err(format!("unknown call {other}")),
        })
    }

    fn mmap(&mut self, words: &[&str], recorded: &str) -> Result<Result<u64, MmError>, String> {
        let mut flags = MapFlags::from_bits_retain(hex(words[4])?);
        let mut addr = hex(words[1])?;
        let len = hex(words[2])?;
        let file = match words[5] {
            "-" => None,
            id => {
                let mode = match words[7] {
                    "ro" => OpenMode::ReadOnly,
                    "wo" => OpenMode::WriteOnly,
                    _ => OpenMode::ReadWrite,
                };
                Some(MapFile::new(self.file(id, words[7])?, mode))
            }
        };
        // Bytes are marked by a letter that is a digit too; only calls that failed for it have them.
        let offset = match words[6].strip_prefix('b') {
            Some(bytes) if recorded == "-EINVAL" => hex(bytes)?,
            _ => hex(words[6])? << 12,
        };
        let placed = !flags.contains(MapFlags::FIXED) && !recorded.starts_with('-');
        if placed && self.start == Start::Attach {
            addr = hex(recorded)?;
            self.subject.process.with(|mm| ensure_free(mm, addr, len))?;
            flags |= MapFlags::FIXED;
        }
        let args = MmapArgs {
            addr,
            len,
            prot: Prot::from_bits_retain(hex(words[3])?),
            flags,
            file: Ok(file),
            offset,
        };
        let result = self.subject.process.mmap(&args);
        if placed && self.start == Start::Exec {
            self.count_address(result, recorded);
        }
        Ok(result.map(VirtAddr::get))
    }

    fn count_address(&mut self, ours: Result<VirtAddr, MmError>, recorded: &str) {
        self.counts.addresses += 1;
        let equal = ours.is_ok_and(|addr| hex(recorded) == Ok(addr.get()));
        self.counts.addresses_equal += usize::from(equal);
    }

    fn differ(&mut self, call: &str, what: &str) {
        self.counts.differences += 1;
        println!("line {}: {call}\n    {what}", self.counts.line);
    }

    fn compare_result(&mut self, call: &str, ours: &Result<u64, MmError>, recorded: &str) {
        let ours = match ours {
            Ok(value) => format!("{value:x}"),
            Err(error) => format!("-{}", error.errno()),
        };
        if ours != recorded {
            self.differ(call, &format!("result {ours}"));
        }
    }

    fn compare_layout(&mut self, call: &str) {
        let Self { subject, expected, names, .. } = self;
        let mut expected = expected.iter();
        let mut different = subject.process.with(|mm| {
            mm.vmas().iter().find_map(|(_, vma)| {
                let own = match vma.backing {
                    Backing::File(file) => subject.number(file).map_or(String::new(), |id| id.to_string()),
                    _ => "-".to_owned(),
                };
                let line = expected.next();
                let equal = line.is_some_and(|(&start, line)| {
                    start == vma.start.get()
                        && line.end == vma.end.get()
                        && line.prot == prot(vma.flags)
                        && line.pgoff == shown_pgoff(&vma)
                        && names.agree(vma.backing, &own, &line.file)
                        && tag_agrees(label(mm, &vma), &line.tag)
                });
                let theirs = || {
                    line.map_or("nothing".to_owned(), |(start, line)| {
                        format!("{start:x} {:x} {} {:x} {}", line.end, line.prot, line.pgoff, line.file)
                    })
                };
                (!equal).then(|| format!("ours {}, expected {}", show(&vma), theirs()))
            })
        });
        if different.is_none() {
            different = expected.next().map(|(start, _)| format!("ours ends, expected {start:x}"));
        }
        if let Some(different) = different {
            self.differ(call, &different);
        }
    }

    fn compare_flags(&mut self, start: u64, flags: VmFlags) -> Result<(), String> {
        let ours = self.subject.process.with(|mm| {
            let slot = mm.lookup(VirtAddr::from(start));
            slot.map_or(VmFlags::empty(), |slot| mm.vma(slot).flags)
        });
        if ours == flags {
            self.counts.flags_checked += 1;
        } else {
            self.differ("snapshot", &format!("{start:x}: flags {}, expected {}", codes(ours), codes(flags)));
        }
        Ok(())
    }
}

fn ensure_free(mm: &Mm<'_>, addr: u64, len: u64) -> Result<(), String> {
    let end = addr + len;
    match mm.find_vma_intersection(VirtAddr::from(addr), VirtAddr::from(end)) {
        None => Ok(()),
        Some(_) => Err(format!("the recorded address {addr:x} is not free")),
    }
}

fn show(vma: &Vma) -> String {
    let (start, end) = (vma.start.get(), vma.end.get());
    format!("{start:x} {end:x} {} {:x} ({:?}, {:?})", prot(vma.flags), shown_pgoff(vma), vma.pgoff, vma.anon)
}

/// Whether the label is the recorded one; pages of the kernel keep theirs from the first snapshot.
fn tag_agrees(label: Option<Label>, tag: &str) -> bool {
    match label {
        Some(label) => label.text().trim_matches(['[', ']']) == tag,
        None => !matches!(tag, "heap" | "stack"),
    }
}

fn parse_line(words: &[&str]) -> Result<Line, String> {
    Ok(Line {
        end: hex(words[0])?,
        prot: words[1].to_owned(),
        pgoff: hex(words[2])?,
        file: words[3].to_owned(),
        tag: words[4].to_owned(),
    })
}
