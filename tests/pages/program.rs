//! exec: what a program finds in its memory.

use kernmm::addr::VirtAddr;
use kernmm::flags::{Prot, VmFlags};
use kernmm::memory::{ExecError, Program, Refused, Start, no_interpreter};
use kernmm::mm::{Backing, MmError};
use kernmm::syscall::{ElfMachine, OpenMode};
use kernmm::table::EntryFormat;

use super::executable::{Executable, Kind, SHAPES, Stack};
use super::files::Object;
use super::{PAGE, World, own};

/// The numbers that programs have in the store begin here.
const FIRST: u64 = 100;
const ARGS: [&[u8]; 2] = [b"program", b"an argument"];
const RANDOM: [u8; 16] = *b"sixteen bytes...";

/// A segment as the headers have it.
struct Load {
    prot: Prot,
    offset: u64,
    addr: u64,
    file_len: u64,
    mem_len: u64,
}

impl Load {
    /// The pages that show the file.
    fn file_pages(&self) -> impl Iterator<Item = u64> + use<> {
        let end = if self.file_len == 0 { 0 } else { self.addr + self.file_len };
        (self.addr & !(PAGE - 1)..end.next_multiple_of(PAGE)).step_by(PAGE as usize)
    }

    fn end(&self) -> u64 {
        self.addr + self.mem_len
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The segments of a file, read by the format's rules.
fn loads(bytes: &[u8]) -> Vec<Load> {
    let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
    let headers = (0..count).map(|index| &bytes[64 + 56 * index..][..56]);
    let loads = headers.filter(|header| header[0] == 1);
    let prot = |flags: u8| {
        [(4, Prot::READ), (2, Prot::WRITE), (1, Prot::EXEC)]
            .iter()
            .filter(|(bit, _)| flags & bit != 0)
            .map(|&(_, prot)| prot)
            .collect()
    };
    let load = |header: &[u8]| Load {
        prot: prot(header[4]),
        offset: word(header, 8),
        addr: word(header, 16),
        file_len: word(header, 32),
        mem_len: word(header, 40),
    };
    loads.map(load).collect()
}

impl<'v, 'a, 'm, F: EntryFormat> World<'_, 'v, 'a, 'm, F> {
    pub(super) fn exec(&mut self, shape: u8) {
        let shape = usize::from(shape) % SHAPES.len();
        let bytes = Executable {
            kind: Kind::Fixed,
            stack: Stack::Data,
            shape: SHAPES[shape],
            align: PAGE,
            interpreter: None,
        }
        .bytes();
        let number = FIRST + shape as u64;
        if !self.programs.contains_key(&shape) {
            self.store.disk.put(number, &bytes);
            let opened = self.vm.open_file(self.store, number, OpenMode::ReadOnly).unwrap();
            let size = bytes.len() as u64;
            self.objects.insert(opened.id(), Object { bytes: bytes.clone(), size });
            self.programs.insert(shape, opened);
        }
        // One thread is left, and walks the old tables no more.
        self.leave(self.space());
        let program = Program { random: RANDOM, ..Program::new(ElfMachine::X86_64, &ARGS) };
        let result =
            self.on_cpu(|space| space.process.exec_elf(&self.programs[&shape], &program, no_interpreter));
        self.tried.calls += 1;
        match result {
            Ok(start) => self.begun(start, &loads(&bytes), shape),
            Err(ExecError::Map(MmError::OutOfMemory) | ExecError::Memory(Refused::OutOfMemory)) => {
                self.note_out_of_memory();
            }
            Err(ExecError::File(error)) => {
                assert_eq!(error, kernmm::cache::CacheError::OutOfMemory);
                self.note_out_of_memory();
            }
            Err(error) => panic!("exec: {error}"),
        }
    }

    /// All is the program's now.
    fn begun(&mut self, start: Start, loads: &[Load], shape: usize) {
        // Where an empty one would lie counts too.
        let end = loads.iter().map(Load::end).max().unwrap().next_multiple_of(PAGE);
        let space = &mut self.spaces[self.current];
        space.private.clear();
        space.guards.clear();
        space.future = VmFlags::empty();
        space.heap = (end, end);
        let image = space.process.with(|mm| *mm.image());
        assert_eq!((image.start_brk.get(), image.brk.get()), (end, end), "where the heap begins");
        let file = self.programs[&shape].id();
        let lowest =
            loads.iter().filter(|load| load.mem_len != 0).map(|load| load.addr & !(PAGE - 1)).min().unwrap();
        for page in (lowest..end).step_by(PAGE as usize) {
            // A page that two segments share is the later one's.
            let of_file = loads.iter().rev().find(|load| load.file_pages().any(|at| at == page));
            let covers =
                |load: &&Load| load.mem_len > load.file_len && page < load.end() && load.addr < page + PAGE;
            let vma = self.vma(page);
            let Some(load) = of_file else {
                let zeros = loads.iter().any(|load| covers(&load));
                assert_eq!(vma.map(|vma| vma.backing), zeros.then_some(Backing::Anonymous), "at {page:#x}");
                continue;
            };
            let vma = vma.unwrap_or_else(|| panic!("the segment at {page:#x} is missing"));
            assert_eq!(vma.flags & VmFlags::ACCESS, load.prot.vm_flags(), "at {page:#x}");
            assert!(!vma.flags.intersects(VmFlags::LOCKED | VmFlags::SHARED));
            assert_eq!(vma.backing.file().map(|file| file.file), Some(file));
            let offset = (load.offset & !(PAGE - 1)) + page - (load.addr & !(PAGE - 1));
            assert_eq!(vma.pgoff_at(page.into()).get() * PAGE, offset, "at {page:#x}");
            let used = load.addr + load.file_len - page;
            if used < PAGE && load.mem_len > load.file_len && load.prot.contains(Prot::WRITE) {
                self.make_own(page);
                self.space().private[&page].borrow_mut()[used as usize..].fill(0);
            }
        }
        self.check_stack(start);
        self.saw("programs");
    }

    /// The stack has what a program is told; the rest of its bytes is followed.
    fn check_stack(&mut self, start: Start) {
        let stack = self.vma(start.stack.get()).expect("a stack");
        for page in (stack.start.get()..stack.end.get()).step_by(PAGE as usize) {
            if let Some(state) =
                self.state(page).and_then(|state| state.resident()).filter(|_| self.has_own(page))
            {
                let mut bytes = Box::new([0; PAGE as usize]);
                self.memory.read_frame(state.pfn, 0, &mut *bytes).unwrap();
                self.private().insert(page, own(bytes));
            }
        }
        let bytes = |addr: u64, len: usize| {
            let mut bytes = vec![0; len];
            self.space().process.copy_from_user(VirtAddr::from(addr), &mut bytes).unwrap();
            bytes
        };
        let word = |index: u64| word(&bytes(start.stack.get() + 8 * index, 8), 0);
        assert_eq!(word(0), ARGS.len() as u64);
        for (index, text) in ARGS.iter().enumerate() {
            assert_eq!(bytes(word(1 + index as u64), text.len() + 1), [text, &[0][..]].concat());
        }
        // No environment; then pairs.
        let first = 1 + ARGS.len() as u64 + 2;
        let pairs: Vec<(u64, u64)> = (0..30)
            .map(|pair| (word(first + 2 * pair), word(first + 2 * pair + 1)))
            .take_while(|pair| pair.0 != 0)
            .collect();
        let value = |key: u64| pairs.iter().find(|pair| pair.0 == key).map(|pair| pair.1);
        assert_eq!(value(9), Some(start.entry.get()), "AT_ENTRY");
        assert_eq!(value(25).map(|addr| bytes(addr, 16)), Some(RANDOM.to_vec()), "AT_RANDOM");
    }
}
