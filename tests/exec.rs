//! Programs from ELF files on the simulated machine.

#[path = "../examples/common/elf.rs"]
mod elf;
#[path = "live/executable.rs"]
#[expect(dead_code, reason = "not every shape is needed here")]
mod executable;

use executable::{Executable, Kind, Shape, Stack};
use kernmm::addr::{PgOff, VirtAddr};
use kernmm::error::Errno;
use kernmm::fault::Signal;
use kernmm::memory::{
    ExecError, File, Memory, Process, Program, Refused, Start, User, Vm, VmLimits, no_interpreter,
};
use kernmm::mm::{MmError, RssKind, Sysctl};
use kernmm::phys::PageSource;
use kernmm::platform::hosted::{Disk, Latency, Machine};
use kernmm::platform::{CpuId, Platform};
use kernmm::syscall::{ElfError, ElfMachine, OpenMode, aux};

const PAGE: u64 = 4096;

/// A program of 40 pages of text, whose data end in the middle of a page with zeros behind.
fn program() -> elf::Program {
    let text = (0..40 * PAGE).map(|at| (at / PAGE) as u8).collect();
    elf::Program { base: 0x40_0000, text, data: (1..=200).collect(), bss: 3 * PAGE }
}

fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

/// Runs a test on a machine with a disk, and looks afterwards whether all frames are back.
fn on_machine(latency: Latency, test: impl for<'a, 'm> FnOnce(&Vm<'a, Memory<'m, Machine>>, &'a Disk<'m>)) {
    let machine = Machine::pc(32 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disk = Disk::new(&machine);
    disk.set_latency(latency);
    let free = || {
        memory.phys().drain_all(&memory.pin());
        memory.phys().free_pages_total()
    };
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let before = free();
    test(&vm, &disk);
    while vm.cache().reap(&memory) != 0 {
        machine.relax();
    }
    assert_eq!(free(), before, "frames were lost");
}

const INODE: u64 = 9;

type Proc<'v, 'a, 'm> = Process<'v, 'a, Memory<'m, Machine>>;

fn new<'v, 'a, 'm>(vm: &'v Vm<'a, Memory<'m, Machine>>) -> Proc<'v, 'a, 'm> {
    Process::new(vm).unwrap()
}

fn words(process: &Proc<'_, '_, '_>, from: u64, count: usize) -> Vec<u64> {
    let mut bytes = vec![0; count * 8];
    process.copy_from_user(at(from), &mut bytes).unwrap();
    bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

fn text(process: &Proc<'_, '_, '_>, from: u64) -> String {
    let bytes = (from..).map(|addr| {
        let mut byte = [0];
        process.copy_from_user(at(addr), &mut byte).unwrap();
        byte[0]
    });
    String::from_utf8(bytes.take_while(|&byte| byte != 0).collect()).unwrap()
}

#[test]
fn a_program_is_mapped_from_its_file_and_read_as_it_is_touched() {
    on_machine(Latency::Polls(3), |vm, disk| {
        let program = program();
        disk.put(INODE, &program.file(62));
        let file = vm.open_file(disk, INODE, OpenMode::ReadOnly).unwrap();
        let process = new(vm);
        let user = User::new(&process);
        let start =
            process.exec_elf(&file, &Program::new(ElfMachine::X86_64, &[b"prog"]), no_interpreter).unwrap();
        drop(file);
        assert_eq!(start.entry, at(program.entry()));
        let resident = |kind| process.with(|mm| mm.shared().rss(kind));
        assert_eq!(resident(RssKind::File), 0, "no page of text was touched");

        let mut code = [0xff; 8];
        user.fetch(start.entry, &mut code).unwrap();
        assert_eq!(code, [0; 8]);
        let mapped = resident(RssKind::File);
        assert!((1..=16).contains(&mapped), "{mapped} of 41 pages are mapped");
        user.fetch(at(program.entry() + 30 * PAGE), &mut code).unwrap();
        assert_eq!(code, [30; 8]);
        assert_eq!(user.store_u32(start.entry, 1), Err(Refused::Signal(Signal::Denied)));

        // Data, the zeros behind them in the same page, and the pages of zeros; none of them is code.
        let data = program.data_addr();
        let mut bytes = vec![0xff; 200 + 3 * PAGE as usize];
        user.load(at(data), &mut bytes).unwrap();
        assert!(bytes[..200].iter().copied().eq(1..=200));
        assert!(bytes[200..].iter().all(|&byte| byte == 0));
        assert_eq!(user.fetch(at(data), &mut code), Err(Refused::Signal(Signal::Denied)));
        user.store(at(data), b"written").unwrap();
        let brk = process.brk(0).unwrap().get();
        assert_eq!(brk, (data + 200 + 3 * PAGE).next_multiple_of(PAGE), "the heap begins behind the zeros");
        assert_eq!(disk.files().contents(INODE).unwrap(), program.file(62), "the file is as it was");
        vm.assert_sound(&[&process]);
    });
}

#[test]
fn arguments_environment_and_auxiliary_vector_lie_on_the_stack() {
    on_machine(Latency::None, |vm, disk| {
        let elf = program();
        disk.put(INODE, &elf.file(62));
        let file = vm.open_file(disk, INODE, OpenMode::ReadOnly).unwrap();
        let process = new(vm);
        let program = Program {
            env: &[b"HOME=/"],
            random: *b"sixteen bytes ..",
            ..Program::new(ElfMachine::X86_64, &[b"prog", b"", b"two words"])
        };
        let start = process.exec_elf(&file, &program, no_interpreter).unwrap();
        assert_eq!(start.stack.get() % 16, 0);
        let found = words(&process, start.stack.get(), 7);
        assert_eq!((found[0], found[4], found[6]), (3, 0, 0));
        let texts: Vec<String> = [1, 2, 3, 5].map(|n| text(&process, found[n])).to_vec();
        assert_eq!(texts, ["prog", "", "two words", "HOME=/"]);
        let auxv = words(&process, start.stack.get() + 7 * 8, 22);
        let value = |key| auxv.chunks(2).find(|pair| pair[0] == key).map(|pair| pair[1]);
        assert_eq!(value(aux::PAGESZ), Some(PAGE));
        assert_eq!(value(aux::ENTRY), Some(elf.entry()));
        assert_eq!(
            (value(aux::PHDR), value(aux::PHENT), value(aux::PHNUM)),
            (Some(elf.base + 64), Some(56), Some(3))
        );
        assert_eq!(auxv[20..], [0, 0]);
        let mut random = [0; 16];
        process.copy_from_user(at(value(aux::RANDOM).unwrap()), &mut random).unwrap();
        assert_eq!(&random, b"sixteen bytes ..");
        // Between the vector and the texts nothing but what evens the stack out.
        let image = process.with(|mm| *mm.image());
        assert_eq!((image.arg_start.get(), image.env_start.get()), (found[1], found[5]));
        // The path, which is the first argument, and a word of zeros.
        assert_eq!(image.env_end.get(), (1 << 47) - PAGE - 8 - 5);
        assert_eq!(value(aux::EXECFN), Some(image.env_end.get()));
    });
}

fn executable(kind: Kind, interpreter: Option<&[u8]>) -> Executable {
    let interpreter = interpreter.map(<[u8]>::to_vec);
    Executable { kind, stack: Stack::Unsaid, shape: Shape::ReadFirst, align: PAGE, interpreter }
}

/// What the auxiliary vector of a program with one argument and no environment says.
fn told(process: &Proc<'_, '_, '_>, stack: VirtAddr, key: u64) -> Option<u64> {
    let auxv = words(process, stack.get() + 4 * 8, 24);
    auxv.chunks_exact(2).take_while(|pair| pair[0] != 0).find(|pair| pair[0] == key).map(|pair| pair[1])
}

#[test]
fn an_interpreter_begins_in_the_place_of_the_program_and_is_told_where_that_lies() {
    on_machine(Latency::Polls(3), |vm, disk| {
        let path = b"/lib/ld.so\0";
        disk.put(INODE, &executable(Kind::Anywhere, Some(path)).bytes());
        disk.put(INODE + 1, &executable(Kind::Anywhere, None).bytes());
        let open = |inode| vm.open_file(disk, inode, OpenMode::ReadOnly);
        let file = open(INODE).unwrap();
        let program = Program::new(ElfMachine::X86_64, &[b"prog"]);
        let processes = [(); 2].map(|()| new(vm));
        for process in &processes {
            let interpreter = |asked: &[u8]| {
                assert_eq!(asked, b"/lib/ld.so");
                open(INODE + 1).map_err(|error| error.errno())
            };
            let start = process.exec_elf(&file, &program, interpreter).unwrap();
            // The code lies at 0x1200 in both.
            let base = start.entry.get() - 0x1200;
            assert_eq!(told(process, start.stack, aux::BASE), Some(base));
            assert_eq!(told(process, start.stack, aux::ENTRY), Some(0x5555_5555_4000 + 0x1200));
            assert_eq!(told(process, start.stack, aux::PHDR), Some(0x5555_5555_4000 + 64));
            assert_eq!(told(process, start.stack, aux::PHNUM), Some(4));
            assert_eq!(told(process, start.stack, aux::FLAGS), Some(0));
            let named = told(process, start.stack, aux::EXECFN).unwrap();
            assert_eq!(text(process, named), "prog");
            assert_eq!(text(process, told(process, start.stack, aux::PLATFORM).unwrap()), "x86_64");
            let user = User::new(process);
            let mut code = [0; 8];
            user.fetch(start.entry, &mut code).unwrap();
            assert_eq!(code[..2], [0xb8, 39], "the interpreter's code");
            user.fetch(at(0x5555_5555_5200), &mut code).unwrap();
            // Its data are its own, and zeros are behind them.
            let data = base + 2 * PAGE + 0x100;
            let mut bytes = [0; 0x81];
            user.load(at(data), &mut bytes).unwrap();
            assert_eq!((bytes[0x7f], bytes[0x80]), (0xee, 0));
            user.store(at(data), b"own").unwrap();
        }
        // The interpreter is closed, and mapped by both: one frame of its code serves them, and each has its own data.
        let interpreter = open(INODE + 1).unwrap();
        for (file, page, users) in [(&interpreter, 1, 2), (&interpreter, 2, 0), (&file, 1, 2)] {
            let pfn = vm.cache().find(vm.source(), file.id(), PgOff::new(page).unwrap()).unwrap();
            assert_eq!(vm.source().phys().page(pfn).unwrap().map_count(), users, "page {page}");
            vm.source().put_page(pfn).unwrap();
        }
        vm.assert_sound(&[&processes[0], &processes[1]]);
    });
}

#[test]
fn chance_moves_all_that_may_move_and_nothing_else() {
    on_machine(Latency::None, |vm, disk| {
        let path = b"/lib/ld.so\0";
        let kinds = [(Kind::Fixed, None), (Kind::Anywhere, None), (Kind::Anywhere, Some(&path[..]))];
        disk.put(INODE, &executable(Kind::Anywhere, None).bytes());
        for (number, (kind, interpreter)) in (1..).zip(kinds) {
            disk.put(INODE + number, &executable(kind, interpreter).bytes());
            let file = vm.open_file(disk, INODE + number, OpenMode::ReadOnly).unwrap();
            let run = |seed| {
                let process = new(vm);
                let program = Program { seed, ..Program::new(ElfMachine::X86_64, &[b"prog"]) };
                let open =
                    |_: &[u8]| vm.open_file(disk, INODE, OpenMode::ReadOnly).map_err(|error| error.errno());
                let start = process.exec_elf(&file, &program, open).unwrap();
                let image = process.with(|mm| *mm.image());
                User::new(&process).fetch(start.entry, &mut [0; 4]).unwrap();
                process.brk(image.brk.get() + 3 * PAGE).unwrap();
                assert_eq!(process.brk(0).unwrap().get(), image.brk.get() + 3 * PAGE, "the heap has room");
                vm.assert_sound(&[&process]);
                [start.entry, image.start_code, image.start_brk, image.env_end].map(VirtAddr::get)
            };
            let (fixed, again, one, other) = (run(0), run(0), run(1), run(2));
            assert_eq!(fixed, again);
            let moved = |at: usize| one[at] != fixed[at] && other[at] != one[at];
            let expected = if kind == Kind::Fixed { [false, false, true, true] } else { [true; 4] };
            assert_eq!([0, 1, 2, 3].map(moved), expected, "{kind:?} {interpreter:?}");
            assert!(one[3] < fixed[3] && fixed[3] - one[3] < 1 << 34, "the stack goes down");
            assert!(one[2] > fixed[2], "the heap goes up");
        }
    });
}

#[test]
fn two_processes_have_the_text_of_a_program_in_the_same_frames() {
    on_machine(Latency::None, |vm, disk| {
        let program = program();
        disk.put(INODE, &program.file(62));
        let file = vm.open_file(disk, INODE, OpenMode::ReadOnly).unwrap();
        let processes = [(); 2].map(|()| new(vm));
        let free = || {
            vm.source().phys().drain_all(&vm.source().pin());
            vm.source().phys().free_pages_total()
        };
        let mut taken = vec![];
        for process in &processes {
            let before = free();
            process.exec_elf(&file, &Program::new(ElfMachine::X86_64, &[b"prog"]), no_interpreter).unwrap();
            for page in 0..40 {
                User::new(process).fetch(at(program.entry() + page * PAGE), &mut [0; 4]).unwrap();
            }
            taken.push(before - free());
        }
        assert!(taken[0] >= taken[1] + 40, "the second takes no frames for its text: {taken:?}");
        let map_count = |page| {
            let pfn = vm.cache().find(vm.source(), file.id(), PgOff::new(page).unwrap()).unwrap();
            let count = vm.source().phys().page(pfn).unwrap().map_count();
            vm.source().put_page(pfn).unwrap();
            count
        };
        assert_eq!([0, 1, 20, 39].map(map_count), [2; 4]);
        // What one of them writes to its data is its own.
        User::new(&processes[0]).store_u32(at(program.data_addr()), 7).unwrap();
        assert_eq!(User::new(&processes[1]).load_u32(at(program.data_addr())), Ok(0x0403_0201));
        let [first, second] = processes;
        vm.assert_sound(&[&first, &second]);
        drop(first);
        User::new(&second).fetch(at(program.entry() + 39 * PAGE), &mut [0; 4]).unwrap();
        assert_eq!(map_count(39), 1);
    });
}

#[test]
fn what_cannot_be_run_leaves_the_old_program_as_it_is() {
    on_machine(Latency::None, |vm, disk| {
        let program = program();
        disk.put(INODE, &program.file(62));
        let file = vm.open_file(disk, INODE, OpenMode::ReadOnly).unwrap();
        let process = new(vm);
        process.exec_elf(&file, &Program::new(ElfMachine::X86_64, &[b"prog"]), no_interpreter).unwrap();
        User::new(&process).store_u32(at(program.data_addr()), 7).unwrap();
        let maps = |process: &Proc<'_, '_, '_>| {
            process.with(|mm| {
                mm.vmas().iter().map(|(_, vma)| (vma.start, vma.end, vma.flags)).collect::<Vec<_>>()
            })
        };
        let before = maps(&process);

        let mut other = program.file(62);
        disk.put(INODE + 1, &program.file(243));
        other[0x40..0x44].fill(0);
        other[0x40] = 3;
        let asks = executable(Kind::Anywhere, Some(b"/lib/ld.so\0")).bytes();
        disk.put(INODE + 6, &asks);
        let mut nowhere = executable(Kind::Anywhere, None).bytes();
        nowhere[31] = 0x80;
        disk.put(INODE + 7, &nowhere);
        let mut endless = asks.clone();
        endless[0x60..0x68].copy_from_slice(&10_u64.to_le_bytes());
        disk.put(INODE + 8, &endless);
        disk.put(INODE + 2, &other);
        let mut low = program.file(62);
        for field in [0x18, 0x50] {
            low[field + 2] = 0;
        }
        disk.put(INODE + 3, &low);
        disk.put(INODE + 4, b"#!/bin/sh\n");
        let long = vec![b'x'; 3 << 20];
        let errors = [
            (INODE + 1, &b"p"[..], ExecError::Elf(ElfError::WrongMachine)),
            (INODE + 2, b"p", ExecError::Elf(ElfError::BadInterpreter)),
            (INODE + 3, b"p", ExecError::Map(MmError::BelowMinimum)),
            (INODE + 4, b"p", ExecError::Elf(ElfError::NotElf)),
            (INODE + 5, b"p", ExecError::Elf(ElfError::NotElf)),
            (INODE + 6, b"p", ExecError::NoInterpreter(Errno::ENOENT)),
            (INODE + 7, b"p", ExecError::BadEntry),
            (INODE + 8, b"p", ExecError::Elf(ElfError::BadInterpreter)),
            (INODE, &long, ExecError::TooLong),
        ];
        for (inode, arg, error) in errors {
            let bad = vm.open_file(disk, inode, OpenMode::ReadOnly).unwrap();
            assert_eq!(
                process.exec_elf(&bad, &Program::new(ElfMachine::X86_64, &[arg]), no_interpreter),
                Err(error),
                "inode {inode}"
            );
            assert_eq!(maps(&process), before, "inode {inode}");
        }
        assert_eq!(User::new(&process).load_u32(at(program.data_addr())), Ok(7));
        vm.assert_sound(&[&process]);
    });
}

fn run<'v, 'a, 'm>(
    process: &Proc<'v, 'a, 'm>,
    file: &File<'v, 'a, Memory<'m, Machine>>,
) -> Result<Start, ExecError> {
    process.exec_elf(file, &Program::new(ElfMachine::X86_64, &[b"prog"]), no_interpreter)
}

/// As in Linux, where `bprm_mm_init` makes it.
///
/// Fails if a third address space is taken, or if what is of the old program goes before the second is there.
#[test]
fn a_program_takes_one_address_space_more_before_the_old_one_ends() {
    let machine = Machine::pc(32 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disk = Disk::new(&machine);
    disk.put(INODE, &program().file(62));
    let limits = VmLimits { spaces: 2, ..VmLimits::for_frames(8192) };
    let room = machine.set_aside(Vm::<'_, Memory<'_, Machine>>::metadata_layout(memory.phys(), &limits));
    let vm: Vm<'_, _> = Vm::new(&memory, &limits, Sysctl::default(), room).unwrap();
    let file = vm.open_file(&disk, INODE, OpenMode::ReadOnly).unwrap();
    let process = new(&vm);
    let start = run(&process, &file).unwrap();
    assert_eq!(run(&process, &file), Ok(start), "the one of the old program is back");
    User::new(&process).store_u32(at(program().data_addr()), 7).unwrap();
    let child = process.fork().unwrap();
    let full = Err(ExecError::Map(MmError::OutOfSpaces));
    assert_eq!((run(&child, &file), run(&process, &file)), (full, full));
    for process in [&process, &child] {
        assert_eq!(User::new(process).load_u32(at(program().data_addr())), Ok(7));
    }
    vm.assert_sound(&[&process, &child]);
    drop(process);
    assert_eq!(run(&child, &file), Ok(start));
    vm.assert_sound(&[&child]);
}
