//! A program in the running kernel and on the simulated machine.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use kernmm::addr::VirtAddr;
use kernmm::error::Errno;
use kernmm::flags::VmFlags;
use kernmm::memory::{Memory, Process, Program, Start, Vm};
use kernmm::mm::{Backing, FileRef, MmapLayout, Rlimits};
use kernmm::platform::CpuId;
use kernmm::platform::hosted::{Disk, Machine};
use kernmm::syscall::{ElfMachine, OpenMode, aux};

use crate::executable::{Executable, Kind, PAGE, SHAPES, STOPPED_AT, Shape, Stack};
use crate::host;

const MAIN: u64 = 1;
const INTERPRETER: u64 = 2;

type Proc<'v, 'a, 'm> = Process<'v, 'a, Memory<'m, Machine>>;

/// Why nothing is shown.
pub(crate) enum Outcome {
    Skipped(String),
    Differs(String),
}

impl From<String> for Outcome {
    fn from(what: String) -> Self {
        Self::Differs(what)
    }
}

/// How a program is run.
#[derive(Clone, Debug)]
struct Run {
    main: Vec<u8>,
    interpreter: Vec<u8>,
    stack_limit: u64,
    layout: MmapLayout,
    args: Vec<Vec<u8>>,
    env: Vec<u8>,
}

/// What is to be seen of a program that runs.
#[derive(PartialEq, Eq)]
struct Seen {
    /// Address range, permissions, and which file from which offset on.
    maps: Vec<(u64, u64, String, u64, u64)>,
    /// Fields 26 to 28 and 45 to 51 of `/proc/PID/stat`.
    fields: [u64; 10],
    /// The first instruction, and the stack pointer that it finds.
    begins: [u64; 2],
    /// In order of keys.
    auxv: Vec<(u64, u64)>,
    /// `VmData` and `VmStk` in pages.
    sums: [u64; 2],
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (start, end, perms, file, offset) in &self.maps {
            writeln!(f, "  {start:x}-{end:x} {perms} {file} {offset:x}")?;
        }
        writeln!(f, "  fields {:x?}, begins {:x?}\n  auxv {:x?}", self.fields, self.begins, self.auxv)?;
        writeln!(f, "  sums {:?}", self.sums)
    }
}

/// How it went: what is to be seen, the number of an error, or that it was killed on its way.
#[derive(PartialEq, Eq, Debug)]
enum Went {
    Runs(Seen),
    Fails(i32),
    Dies,
}

/// A directory that goes when it is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("kernmm-exec-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file anew, so that whoever runs the old one is not in the way.
    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), String> {
        let path = self.file(name);
        let _ = std::fs::remove_file(&path);
        let written = std::fs::write(&path, bytes)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)));
        written.map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn compare_all() -> Result<(), Outcome> {
    host::comparable().map_err(Outcome::Skipped)?;
    let directory = Directory::new()?;
    directory.write("data", &[0; 200], 0o644)?;
    let name = |name: &str| [directory.file(name).as_os_str().as_bytes(), b"\0"].concat();
    let error = |error: &dyn std::fmt::Display| error.to_string();
    let machine = Machine::pc(48 << 20).build().map_err(|what| error(&what))?;
    let _cpu = machine.cpu(CpuId::BOOT).map_err(|what| error(&what))?;
    let memory = Memory::on(&machine).map_err(|what| error(&what))?;
    let disk = Disk::new(&machine);
    let vm: Vm<'_, _> = Vm::on_with(&memory, host::sysctl()).map_err(|what| error(&what))?;
    let (mut ran, mut refused, mut died, mut differ) = (0, 0, 0, vec![]);
    for (number, (what, run)) in (0..).zip(layouts(&name).into_iter().chain(refusals(&name))) {
        let ours = Ours { vm: &vm, disk: &disk, number };
        match compare(&directory, &ours, &what, &run) {
            Ok(Went::Runs(_)) => ran += 1,
            Ok(Went::Fails(_)) => refused += 1,
            Ok(Went::Dies) => died += 1,
            Err(Outcome::Differs(what)) => differ.push(what),
            Err(skipped) => return Err(skipped),
        }
        while vm.cache().reap(&memory) != 0 {}
    }
    if !differ.is_empty() {
        differ.push(format!("{} programs differ", differ.len()));
        return Err(Outcome::Differs(differ.join("\n")));
    }
    println!("{ran} programs run, {refused} are refused, {died} die on their way");
    assert!(ran > 300 && refused > 20 && died > 5, "{ran} run, {refused} are refused, {died} die");
    Ok(())
}

/// Programs of every shape, under every limit, from both ends.
fn layouts(name: &dyn Fn(&str) -> Vec<u8>) -> Vec<(String, Run)> {
    let every = std::env::var_os("KERNMM_LONG").is_some();
    let limits = [8 << 20, 100_000, (200 << 20) + 1234, Rlimits::INFINITY];
    let ways = limits.iter().flat_map(|&limit| [(limit, MmapLayout::TopDown), (limit, MmapLayout::BottomUp)]);
    let ways: Vec<(u64, MmapLayout)> = ways.collect();
    let mut runs = vec![];
    for kind in [Kind::Fixed, Kind::Anywhere] {
        for interpreter in [None, Some(Kind::Anywhere), Some(Kind::Fixed)] {
            for (at, shape) in SHAPES.into_iter().enumerate() {
                for stack in [Stack::Unsaid, Stack::Data, Stack::Code] {
                    let file = Executable {
                        kind,
                        stack,
                        shape,
                        align: [PAGE, 0x4000, 0x20_0000, 0x3000][(at + stack as usize) % 4],
                        interpreter: interpreter.map(|_| name("interpreter")),
                    };
                    // Another address than the program's.
                    let shape = SHAPES[(at * 2 + 1) % SHAPES.len()];
                    let mut other = Executable { shape, interpreter: None, ..file.clone() };
                    other.kind = interpreter.unwrap_or(Kind::Anywhere);
                    let mut interpreter = other.bytes();
                    if other.kind == Kind::Fixed {
                        move_up(&mut interpreter, 0x1000_0000);
                    }
                    let first = runs.len();
                    for (way, &(stack_limit, layout)) in ways.iter().enumerate() {
                        let n = runs.len();
                        let whole = stack == Stack::Unsaid && other.kind == Kind::Anywhere;
                        if !every && !whole && way != first % ways.len() {
                            continue;
                        }
                        let args = (0..n % 7).map(|arg| vec![b'a'; arg * 5 + n % 17]).collect();
                        let env = vec![b'e'; [0, 1, 5000, 40_000][n % 4] + n % 16];
                        let (main, interpreter) = (file.bytes(), interpreter.clone());
                        let run = Run { main, interpreter, stack_limit, layout, args, env };
                        runs.push((format!("{file:?} {}", other.kind as u8), run));
                    }
                }
            }
        }
    }
    runs
}

/// Moves a file that lies where it says.
fn move_up(file: &mut [u8], by: u64) {
    let add = |bytes: &mut [u8]| {
        let old = u64::from_le_bytes((*bytes).try_into().expect("8 bytes"));
        bytes.copy_from_slice(&(old + by).to_le_bytes());
    };
    add(&mut file[24..32]);
    for header in 0..usize::from(file[56]) {
        add(&mut file[64 + header * 56 + 16..][..8]);
    }
}

/// Files and arguments that something is wrong with.
fn refusals(name: &dyn Fn(&str) -> Vec<u8>) -> Vec<(String, Run)> {
    let file = |interpreter: Option<Vec<u8>>| {
        let (kind, stack, shape) = (Kind::Anywhere, Stack::Data, Shape::ReadFirst);
        Executable { kind, stack, shape, align: PAGE, interpreter }
    };
    let plain = file(None).bytes();
    let fixed = Executable { kind: Kind::Fixed, ..file(None) }.bytes();
    let with = file(Some(name("interpreter"))).bytes();
    let (stack_limit, layout) = (8 << 20, MmapLayout::TopDown);
    let base = Run {
        main: with.clone(),
        interpreter: plain.clone(),
        stack_limit,
        layout,
        args: vec![b"p".to_vec()],
        env: vec![b'e'],
    };
    let changed = |bytes: &[u8], at: usize, new: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let long = |value: u64| value.to_le_bytes();
    let mut runs = vec![];
    let mut add = |what: &str, run: Run| runs.push((what.to_owned(), run));
    for (what, name) in [
        ("no such interpreter", name("missing")),
        ("an interpreter that may not be executed", name("data")),
        ("a directory as interpreter", b"/\0".to_vec()),
        ("a name that does not end", name("interpreter!")[..name("interpreter!").len() - 1].to_vec()),
        ("a name of one byte", b"\0".to_vec()),
        ("an empty name", b"\0\0".to_vec()),
        ("a name that ends early", [name("interpreter"), b"rest\0".to_vec()].concat()),
    ] {
        add(what, Run { main: file(Some(name)).bytes(), ..base.clone() });
    }
    let name_header = 64;
    let cut = |at: usize, new: &[u8]| Run { main: changed(&with, name_header + at, new), ..base.clone() };
    add("a name beyond the end", cut(8, &long(6 * PAGE)));
    add("a name that is too long", cut(32, &long(PAGE + 1)));
    let len = name("interpreter").len() as u64;
    for offset in
        [1 << 62, (1 << 63) - 1 - len, (1 << 63) - len, (1 << 63) - 1, 1 << 63, u64::MAX - 1, u64::MAX]
    {
        add(&format!("a name at {offset:#x}"), cut(8, &long(offset)));
    }
    // An interpreter's own is not asked for, whatever its name is.
    let named =
        |at: usize, new: &[u8]| Run { interpreter: changed(&with, name_header + at, new), ..base.clone() };
    add("an interpreter with another one's name", named(8, &long(3 * PAGE)));
    add("an interpreter with a name that is too long", named(32, &long(PAGE + 1)));
    add("an interpreter with an empty name", named(32, &long(0)));
    add("an interpreter with a name at no place of a file", named(8, &long(1 << 63)));
    // Headers of the interpreter.
    for (what, at, new) in [
        ("an interpreter that is none", 1, &b"L"[..]),
        ("an interpreter for another machine", 18, &[243]),
        ("an interpreter with other headers", 54, &[32]),
        ("an interpreter without headers", 56, &[0]),
    ] {
        add(what, Run { interpreter: changed(&plain, at, new), ..base.clone() });
    }
    add("an interpreter that is too short", Run { interpreter: plain[..63].to_vec(), ..base.clone() });
    // Headers of the program, and what is found when it is too late.
    let load = |n: usize| 64 + n * 56;
    for (what, bytes) in [
        ("none", changed(&plain, 1, b"L")),
        ("another type", changed(&plain, 16, &[1])),
        ("another machine", changed(&plain, 18, &[243])),
        ("other headers", changed(&plain, 54, &[32])),
        ("no headers", changed(&plain, 56, &[0])),
        ("longer in the file", changed(&plain, load(1) + 32, &long(0x301))),
        ("wraps", changed(&plain, load(1) + 40, &long(u64::MAX - 10))),
        ("beyond the addresses", changed(&fixed, load(1) + 16, &long(1 << 47))),
        ("not as in its page", changed(&plain, load(1) + 16, &long(PAGE + 1))),
        ("nothing to load", changed(&changed(&changed(&plain, load(0), &[4]), load(1), &[4]), load(2), &[4])),
        ("the offset wraps", changed(&plain, load(1) + 8, &long(u64::MAX - 0xfff))),
        ("where the stack is", changed(&fixed, load(0) + 16, &long(0x7fff_ffff_e000))),
        ("begins nowhere", changed(&plain, 24, &long(1 << 50))),
    ] {
        add(what, Run { main: bytes, ..base.clone() });
    }
    for (what, args, env, stack_limit) in [
        ("an argument as long as may be", vec![vec![b'a'; (128 << 10) - 1]], 1, 8 << 20),
        ("an argument that is too long", vec![vec![b'a'; 128 << 10]], 1, 8 << 20),
        ("a text of the environment as long as may be", vec![], (128 << 10) - 3, 8 << 20),
        ("a text of the environment that is too long", vec![], (128 << 10) - 2, 8 << 20),
        ("too much under the least limit", vec![vec![b'a'; 70_000]; 2], 1, 512 << 10),
        ("a quarter of the limit", vec![vec![b'a'; 70_000]; 7], 1, 2 << 20),
        ("more than a quarter of the limit", vec![vec![b'a'; 70_000]; 8], 1, 2 << 20),
        ("more than the stack may have", vec![vec![b'a'; 30_000]; 4], 1, 100_000),
        ("three quarters of 8 MiB", vec![vec![b'a'; 70_000]; 89], 1, 1 << 30),
        ("more than three quarters of 8 MiB", vec![vec![b'a'; 70_000]; 90], 1, 1 << 30),
    ] {
        let (main, env) = (plain.clone(), vec![b'e'; env]);
        add(what, Run { main, args, env, stack_limit, ..base.clone() });
    }
    runs
}

/// Runs a program on both sides; how it went.
fn compare(directory: &Directory, ours: &Ours<'_, '_, '_>, what: &str, run: &Run) -> Result<Went, Outcome> {
    directory.write("main", &run.main, 0o755)?;
    directory.write("interpreter", &run.interpreter, 0o755)?;
    let (theirs, others) = run_theirs(directory, run)?;
    let ours = ours.run(directory, run, &others)?;
    let alike = match (&theirs, &ours) {
        // What cannot be undone there is an error here, and the old program goes on.
        (Went::Dies, Went::Fails(_)) => true,
        _ => theirs == ours,
    };
    if alike {
        return Ok(theirs);
    }
    let Run { stack_limit, layout, args, env, .. } = run;
    let lens: Vec<usize> = args.iter().map(Vec::len).collect();
    let how = format!("stack limit {stack_limit}, {layout:?}, arguments {lens:?}, environment {}", env.len());
    Err(Outcome::Differs(format!("{what}\n{how}\ntheirs {theirs:?}\nours {ours:?}")))
}

/// The program in the running kernel; also what it is told that only that kernel knows.
fn run_theirs(directory: &Directory, run: &Run) -> Result<(Went, Vec<(u64, u64)>), Outcome> {
    let (limit, is_legacy) = (run.stack_limit, run.layout == MmapLayout::BottomUp);
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|error| error.to_string());
    let path = text(directory.file("main").as_os_str().as_bytes())?;
    let args: Vec<CString> = run.args.iter().map(|arg| text(arg)).collect::<Result<_, _>>()?;
    let env = [text(&[b"E=", run.env.as_slice()].concat())?];
    let mut command = Command::new("main");
    let prepare = move || {
        let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        let persona = libc::ADDR_NO_RANDOMIZE | if is_legacy { libc::ADDR_COMPAT_LAYOUT } else { 0 };
        // SAFETY: `old` has room for the limits.
        unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut old) };
        let new = libc::rlimit { rlim_cur: limit, rlim_max: old.rlim_max.max(limit) };
        // SAFETY: `new` holds the limits.
        if unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const new) } != 0 {
            return Err(std::io::Error::from_raw_os_error(libc::EXDEV));
        }
        // SAFETY: it changes what the next program finds, and nothing here.
        unsafe { libc::personality(persona as libc::c_ulong) };
        // SAFETY: no memory is named.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let ends = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
        let (args, env): (Vec<_>, Vec<_>) = (ends(&args), ends(&env));
        // Not by the library, which has a shell try what is refused with ENOEXEC.
        // SAFETY: path, arguments and environment are texts that end in 0, and their lists end in null.
        unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
        Err(std::io::Error::last_os_error())
    };
    // SAFETY: between fork and exec system calls are made, and memory taken, which no other thread has a lock of.
    unsafe { command.pre_exec(prepare) };
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
            return Err(Outcome::Skipped("the stack's limit may not be raised here".to_owned()));
        }
        Err(error) => return Ok((Went::Fails(error.raw_os_error().unwrap_or(0)), vec![])),
    };
    let pid = child.id();
    let mut status = 0;
    // SAFETY: `status` has room for it, and the child is ours.
    unsafe { libc::waitpid(pid as i32, &raw mut status, libc::WUNTRACED) };
    if !libc::WIFSTOPPED(status) {
        return Ok((Went::Dies, vec![]));
    }
    let seen = see_theirs(directory, pid);
    // SAFETY: the child has not been waited for to its end.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    // SAFETY: as before.
    unsafe { libc::waitpid(pid as i32, &raw mut status, 0) };
    let (seen, others) = seen?;
    Ok((Went::Runs(seen), others))
}

/// What a loader tells a program by itself.
const OURS: [u64; 11] = [
    0,
    aux::PHDR,
    aux::PHENT,
    aux::PHNUM,
    aux::PAGESZ,
    aux::BASE,
    aux::FLAGS,
    aux::ENTRY,
    aux::PLATFORM,
    aux::RANDOM,
    aux::EXECFN,
];

fn see_theirs(directory: &Directory, pid: u32) -> Result<(Seen, Vec<(u64, u64)>), String> {
    let inode = |name| std::fs::metadata(directory.file(name)).map_or(0, |metadata| metadata.ino());
    let (main, interpreter) = (inode("main"), inode("interpreter"));
    let mut maps = vec![];
    // What the kernel maps for itself comes last, and is not ours.
    for line in host::read(&format!("/proc/{pid}/maps"))?.lines().filter(|line| !line.contains("[v")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = host::parse_range(line);
        let number = |at: usize, radix| u64::from_str_radix(words[at], radix).map_err(|_| line.to_owned());
        let file = match number(4, 10)? {
            0 => 0,
            inode if inode == main => MAIN,
            inode if inode == interpreter => INTERPRETER,
            _ => return Err(format!("an unknown file: {line}")),
        };
        maps.push((start, end, words[1].to_owned(), file, number(2, 16)?));
    }
    let stat = host::read(&format!("/proc/{pid}/stat"))?;
    let rest: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // The first behind the name is field 3.
    let field = |number: usize| rest.get(number - 3).and_then(|word| word.parse().ok()).unwrap_or(0);
    let fields = [26, 27, 28, 45, 46, 47, 48, 49, 50, 51].map(field);
    let auxv = std::fs::read(format!("/proc/{pid}/auxv")).map_err(|error| error.to_string())?;
    let words: Vec<u64> =
        auxv.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes"))).collect();
    let auxv: Vec<(u64, u64)> = words.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    let others = auxv.iter().copied().filter(|(key, _)| !OURS.contains(key)).collect();
    let status = host::read(&format!("/proc/{pid}/status"))?;
    let pages = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 4
    };
    let sums = [pages("VmData:"), pages("VmStk:")];
    // Where it has stopped: behind its second call.
    let call = host::read(&format!("/proc/{pid}/syscall"))?;
    let word = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap_or(0);
    let last: Vec<u64> = call.split_whitespace().rev().take(2).map(word).collect();
    let begins = match *last {
        [instruction, stack] => [instruction.wrapping_sub(STOPPED_AT), stack],
        _ => return Err(format!("where it stopped: {call}")),
    };
    Ok((Seen { maps, fields, begins, auxv: sorted(auxv), sums }, others))
}

fn sorted(mut auxv: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    auxv.sort_unstable();
    auxv
}

/// The simulated machine.
struct Ours<'v, 'a, 'm> {
    vm: &'v Vm<'a, Memory<'m, Machine>>,
    disk: &'a Disk<'m>,
    /// Counts the programs.
    number: u64,
}

impl Ours<'_, '_, '_> {
    /// The same file here.
    fn run(&self, directory: &Directory, run: &Run, others: &[(u64, u64)]) -> Result<Went, String> {
        let Self { vm, disk, number } = *self;
        let process: Proc<'_, '_, '_> = Process::new(vm).map_err(|error| error.to_string())?;
        process.with_mut(|mm| {
            mm.set_rlimits(Rlimits { stack: run.stack_limit, ..Rlimits::default() });
            mm.set_layout(run.layout);
        });
        let (main, interpreter) = (2 * number + 1, 2 * number + 2);
        disk.put(main, &run.main);
        disk.put(interpreter, &run.interpreter);
        let file = vm.open_file(disk, main, OpenMode::ReadOnly).map_err(|error| error.to_string())?;
        let env = [b"E=", run.env.as_slice()].concat();
        let args: Vec<&[u8]> = run.args.iter().map(Vec::as_slice).collect();
        let path = directory.file("main");
        let program = Program {
            path: path.as_os_str().as_bytes(),
            env: &[&env],
            aux: others,
            ..Program::new(ElfMachine::X86_64, &args)
        };
        let open = |path: &[u8]| {
            may_execute(Path::new(OsStr::from_bytes(path)))?;
            vm.open_file(disk, interpreter, OpenMode::ReadOnly).map_err(|error| error.errno())
        };
        let seen = match process.exec_elf(&file, &program, open) {
            Ok(start) => Went::Runs(see_ours(&process, file.reference(), start)?),
            Err(error) => Went::Fails(error.errno().get()),
        };
        // All frames are looked at, which takes its time.
        if number % 16 == 0 {
            vm.assert_sound(&[&process]);
        }
        Ok(seen)
    }
}

/// As `open_exec` in Linux' `fs/exec.c` asks.
fn may_execute(path: &Path) -> Result<(), Errno> {
    // Without a name it is the working directory.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let metadata = std::fs::metadata(path).map_err(|_| Errno::ENOENT)?;
    let is_fine = metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
    if is_fine { Ok(()) } else { Err(Errno::EACCES) }
}

fn see_ours(process: &Proc<'_, '_, '_>, main: FileRef, start: Start) -> Result<Seen, String> {
    let mut maps = vec![];
    let (image, totals) = process.with(|mm| {
        for (_, vma) in mm.vmas().iter() {
            let letter = |flag, letter, none| if vma.flags.contains(flag) { letter } else { none };
            let perms = [
                letter(VmFlags::READ, 'r', '-'),
                letter(VmFlags::WRITE, 'w', '-'),
                letter(VmFlags::EXEC, 'x', '-'),
                letter(VmFlags::MAYSHARE, 's', 'p'),
            ];
            let (file, offset) = match vma.backing {
                Backing::File(file) if file == main => (MAIN, vma.pgoff.get() * PAGE),
                Backing::File(_) => (INTERPRETER, vma.pgoff.get() * PAGE),
                _ => (0, 0),
            };
            maps.push((vma.start.get(), vma.end.get(), perms.iter().collect(), file, offset));
        }
        (*mm.image(), *mm.totals())
    });
    let fields = [
        image.start_code,
        image.end_code,
        image.start_stack,
        image.start_data,
        image.end_data,
        image.start_brk,
        image.arg_start,
        image.arg_end,
        image.env_start,
        image.env_end,
    ];
    let word = |at: u64| {
        let mut bytes = [0; 8];
        let copied = process.copy_from_user(VirtAddr::from(at), &mut bytes);
        copied.map(|()| u64::from_le_bytes(bytes)).map_err(|error| format!("the stack at {at:x}: {error}"))
    };
    // Behind argc, argv and envp.
    let mut at = start.stack.get() + 8;
    for _ in 0..2 {
        while word(at)? != 0 {
            at += 8;
        }
        at += 8;
    }
    let mut auxv = vec![];
    while auxv.last().is_none_or(|&(key, _)| key != 0) {
        auxv.push((word(at)?, word(at + 8)?));
        at += 16;
    }
    let begins = [start.entry.get(), start.stack.get()];
    let sums = [totals.data_vm, totals.stack_vm];
    Ok(Seen { maps, fields: fields.map(VirtAddr::get), begins, auxv: sorted(auxv), sums })
}
