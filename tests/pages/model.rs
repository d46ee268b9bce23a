//! Programs of several processes, files and CPUs, and a naive model of what every byte is: shared by the model test and the fuzz target.
//!
//! The model has the bytes that a process has for itself, by process and page, and those of files and shared memory, by file. All else it reads off the
//! VMAs, which other models judge. After every operation everything is recounted, what each CPU remembers is compared with the tables, and every
//! resident page with the bytes that it should have.

mod calls;
mod files;
mod op;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kernmm::addr::{PageOrder, Pfn, VirtAddr, VirtRange};
use kernmm::cache::{FileId, SyncMode, WriteBack};
use kernmm::fault::{FrameTally, Signal};
use kernmm::flags::{GfpFlags, VmFlags};
use kernmm::memory::{File, Memory, Options, Poison, Process, Refused, User, Vm};
use kernmm::mm::{Backing, HugePages, MmError, Sysctl, Vma};
use kernmm::phys::Config;
use kernmm::platform::hosted::{CpuGuard, Disk, Latency, Machine, Mmu};
use kernmm::syscall::OpenMode;
use kernmm::table::{EntryFormat, Pae, Sv39, X86_64};

use calls::protection;
use files::Object;
pub(crate) use op::Op;

const PAGE: u64 = 4096;
const TASK: u64 = 0xb000_0000;
/// Addresses are few, so that operations meet; two of the three places lie across the border of page tables.
const PLACES: [u64; 3] = [0x40_0000 - 24 * PAGE, 0x4000_0000 - 24 * PAGE, 0x800_0000];
const PAGES_OF_PLACE: u64 = 48;
const MAX_PROCESSES: usize = 4;
const MAX_FILE_PAGES: u64 = 12;
const FILES: usize = 4;

/// The machine that operations run on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) mmu: Mmu,
    /// How many frames are left free at the start; as many as there are if none is said.
    pub(crate) frames: Option<u64>,
    pub(crate) huge: HugePages,
}

/// How often things happened that a test wants to have happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tried {
    pub(crate) out_of_memory: u64,
    pub(crate) signals: u64,
    pub(crate) accesses: u64,
    pub(crate) syncs: u64,
    pub(crate) calls: u64,
    pub(crate) refused_calls: u64,
}

/// Runs operations on a fresh machine and verifies everything after each.
pub(crate) fn run(operations: &[Op], setup: Setup) -> Tried {
    match setup.mmu {
        Mmu::X86_64 => run_in::<X86_64>(operations, setup),
        Mmu::Pae => run_in::<Pae>(operations, setup),
        Mmu::Sv39 => run_in::<Sv39>(operations, setup),
    }
}

type Mem<'m> = Memory<'m, Machine>;
type Bytes = Box<[u8; PAGE as usize]>;

fn run_in<F: EntryFormat>(operations: &[Op], setup: Setup) -> Tried {
    let machine = Machine::pc(8 << 20).cpus(2).mmu(setup.mmu).build().unwrap();
    let cpus = machine.all_cpus().unwrap();
    let disk = Disk::new(&machine);
    let poison = Options::default().poison(Poison::On);
    let memory = Memory::on_with(&machine, &Config::from(&machine), poison).unwrap();
    let sysctl = Sysctl { task_size: TASK, huge_pages: setup.huge, ..Sysctl::default() };
    let vm: Vm<'_, Mem<'_>, F> = Vm::on_with(&memory, sysctl).unwrap();
    let before = free(&memory);
    let tried = {
        let mut world = World::new(&machine, &cpus, &disk, &memory, &vm);
        // The first process is there by now.
        world.hogged = hog(&memory, setup.frames);
        for op in operations {
            world.step(op);
            world.verify(op);
        }
        world.end()
    };
    vm.assert_sound(&[] as &[&Process<'_, '_, Mem<'_>, F>]);
    assert_eq!(free(&memory), before, "frames were lost");
    assert_eq!(vm.context().overcommit().committed(), 0);
    assert_eq!(vm.context().anon_vmas().used(), 0);
    tried
}

fn free(memory: &Mem<'_>) -> u64 {
    memory.phys().drain_all(&memory.pin());
    memory.phys().free_pages_total()
}

/// Takes all but so many frames, as far as the reserves allow.
fn hog(memory: &Mem<'_>, frames: Option<u64>) -> BTreeSet<Pfn> {
    let mut hogged = BTreeSet::new();
    while frames.is_some_and(|frames| memory.phys().free_pages_total() > frames) {
        let frame = memory.alloc_pages(GfpFlags::KERNEL | GfpFlags::NOWARN, PageOrder::ZERO);
        let Ok(frame) = frame else { break };
        hogged.insert(frame);
    }
    hogged
}

/// A file, and what its bytes should be.
struct Kept<'v, 'a, 'm, F: EntryFormat> {
    both: File<'v, 'a, Mem<'m>, F>,
    /// Another opening of the same, for files of the disk.
    read_only: Option<File<'v, 'a, Mem<'m>, F>>,
    inode: Option<u64>,
}

struct Space<'v, 'a, 'm, F: EntryFormat> {
    process: Process<'v, 'a, Mem<'m>, F>,
    /// Pages that are the process's own, by number.
    private: BTreeMap<u64, Bytes>,
}

struct World<'w, 'v, 'a, 'm, F: EntryFormat> {
    machine: &'m Machine,
    cpus: &'w [CpuGuard<'m>],
    disk: &'w Disk<'m>,
    memory: &'a Mem<'m>,
    vm: &'v Vm<'a, Mem<'m>, F>,
    files: Vec<Kept<'v, 'a, 'm, F>>,
    objects: HashMap<FileId, Object>,
    spaces: Vec<Space<'v, 'a, 'm, F>>,
    current: usize,
    cpu: usize,
    hogged: BTreeSet<Pfn>,
    tallies: Vec<FrameTally>,
    tried: Tried,
}

/// What an access should find.
enum Expected {
    Signal(Signal),
    Page(Bytes),
}

fn address(at: u8) -> u64 {
    let (place, page) = (u64::from(at) / PAGES_OF_PLACE, u64::from(at) % PAGES_OF_PLACE);
    PLACES[(place % 3) as usize] + page * PAGE
}

fn length(pages: u8) -> u64 {
    // Now and then nearly two page tables.
    if pages >= 250 { 1000 * PAGE } else { (u64::from(pages) % 12 + 1) * PAGE }
}

fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

fn boxed(bytes: &[u8]) -> Bytes {
    let mut page = Box::new([0; PAGE as usize]);
    page.copy_from_slice(bytes);
    page
}

impl<F: EntryFormat> Drop for World<'_, '_, '_, '_, F> {
    fn drop(&mut self) {
        // What is broken is not to be taken apart.
        if std::thread::panicking() {
            std::mem::take(&mut self.spaces).into_iter().for_each(std::mem::forget);
        }
    }
}

impl<'w, 'v, 'a, 'm, F: EntryFormat> World<'w, 'v, 'a, 'm, F> {
    fn new(
        machine: &'m Machine,
        cpus: &'w [CpuGuard<'m>],
        disk: &'a Disk<'m>,
        memory: &'a Mem<'m>,
        vm: &'v Vm<'a, Mem<'m>, F>,
    ) -> Self
    where
        'a: 'w,
    {
        let tallies = vec![FrameTally::new(); memory.phys().slots()];
        let mut world = World {
            machine,
            cpus,
            disk,
            memory,
            vm,
            files: vec![],
            objects: HashMap::new(),
            spaces: vec![Space { process: Process::new(vm).unwrap(), private: BTreeMap::new() }],
            current: 0,
            cpu: 0,
            hogged: BTreeSet::new(),
            tallies,
            tried: Tried::default(),
        };
        for number in 0..FILES as u64 {
            let size = [3 * PAGE, 5 * PAGE + 100, 2 * PAGE, 0][number as usize];
            let mut object = Object::new(size);
            let on_disk = number != 2;
            let (both, read_only) = if on_disk {
                let bytes: Vec<u8> = (0..size).map(|at| (at / 7 + number) as u8).collect();
                object.bytes[..size as usize].copy_from_slice(&bytes);
                disk.put(number, &bytes);
                let open = |mode| vm.open_file(disk, number, mode).unwrap();
                (open(OpenMode::ReadWrite), Some(open(OpenMode::ReadOnly)))
            } else {
                (vm.memory_file(size).unwrap(), None)
            };
            world.objects.insert(both.id(), object);
            world.files.push(Kept { both, read_only, inode: on_disk.then_some(number) });
        }
        world
    }

    fn space(&self) -> &Space<'v, 'a, 'm, F> {
        &self.spaces[self.current]
    }

    fn private(&mut self) -> &mut BTreeMap<u64, Bytes> {
        &mut self.spaces[self.current].private
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Mmap { at, pages, prot, how, file, offset } => {
                self.mmap(address(at), length(pages), prot, how, file, offset);
            }
            Op::Munmap { at, pages } => {
                let (addr, len) = (address(at), length(pages));
                let result = self.on_cpu(|space| space.process.munmap(addr, len));
                if self.note(result).is_some() {
                    self.forget(addr, len);
                }
            }
            Op::Mprotect { at, pages, prot } => {
                let prot = protection(prot);
                let result = self.on_cpu(|space| space.process.mprotect(address(at), length(pages), prot));
                self.note(result);
            }
            Op::Mremap { at, old, new, how, to } => {
                self.mremap(address(at), length(old), length(new), how, address(to));
            }
            Op::Madvise { at, pages, advice } => self.madvise(address(at), length(pages), advice),
            Op::Load { at, within, len, how } => self.load(self.touched(at, within, how), len, how),
            Op::Store { at, within, len, how, byte } => {
                self.store(self.touched(at, within, how), len, how, byte);
            }
            Op::Fork => self.fork(),
            Op::Exit => self.exit(),
            Op::Switch { to } => self.current = usize::from(to) % self.spaces.len(),
            Op::Cpu { to } => self.cpu = usize::from(to) % self.cpus.len(),
            Op::FileRead { file, at, len } => self.file_read(file, at, len),
            Op::FileWrite { file, at, len, byte } => self.file_write(file, at, len, byte),
            Op::Truncate { file, size } => self.truncate(file, size),
            Op::Msync { at, pages } => self.msync(address(at), length(pages)),
            Op::Sync { file } => {
                let file = usize::from(file) % FILES;
                if self.files[file].both.sync().is_ok() {
                    self.tried.syncs += 1;
                    self.compare_disk(file);
                }
            }
            Op::WriteBack { file } => {
                let file = self.files[usize::from(file) % FILES].both.id();
                let mut job = WriteBack::all(file, SyncMode::Start);
                let _ =
                    self.vm.cache().write_back(self.memory, &self.vm.pager().entries(), &mut job).unwrap();
            }
            Op::Reap => {
                let _ = self.vm.cache().reap(self.memory);
            }
            Op::Latency { polls } => self.disk.set_latency(match polls % 4 {
                0 => Latency::None,
                polls => Latency::Polls(u32::from(polls)),
            }),
        }
    }

    /// Runs something as the CPU that is the program's turn.
    fn on_cpu<R>(&self, work: impl FnOnce(&Space<'v, 'a, 'm, F>) -> R) -> R {
        self.cpus[self.cpu].run(|| work(self.space()))
    }

    /// Counts how a call ended.
    fn note<R>(&mut self, result: Result<R, MmError>) -> Option<R> {
        self.tried.calls += 1;
        self.tried.refused_calls += u64::from(result.is_err());
        self.tried.out_of_memory += u64::from(result.as_ref().err() == Some(&MmError::OutOfMemory));
        result.ok()
    }

    fn vma(&self, addr: u64) -> Option<Vma> {
        self.space().process.with(|mm| Some(mm.vma(mm.lookup(at(addr))?)))
    }

    /// The pages of a range that are mapped.
    fn mapped(&self, addr: u64, len: u64) -> Vec<u64> {
        (addr..addr + len).step_by(PAGE as usize).filter(|&page| self.vma(page).is_some()).collect()
    }

    /// The address of an access: mostly one in a VMA.
    fn touched(&self, at: u8, within: u16, how: u8) -> u64 {
        let within = u64::from(within) % PAGE;
        let vmas: Vec<Vma> = self.space().process.with(|mm| mm.vmas().iter().map(|(_, vma)| vma).collect());
        if how & 7 == 0 || vmas.is_empty() {
            return address(at) + within;
        }
        let vma = vmas[usize::from(at) % vmas.len()];
        vma.start.get() + u64::from(how >> 3) % vma.pages() * PAGE + within
    }

    /// Nothing of a range is the process's own any more.
    fn forget(&mut self, addr: u64, len: u64) {
        self.private().retain(|&page, _| page < addr || page >= addr + len);
    }

    /// What a page of a process holds, all rights aside; `None` if nothing is mapped there.
    fn contents(&self, space: &Space<'v, 'a, 'm, F>, page: u64) -> Option<Expected> {
        let vma = space.process.with(|mm| Some(mm.vma(mm.lookup(at(page))?)))?;
        if let Some(own) = space.private.get(&page) {
            return Some(Expected::Page(own.clone()));
        }
        let Backing::File(file) = vma.backing else {
            return Some(Expected::Page(Box::new([0; PAGE as usize])));
        };
        let bytes = self.objects[&file.file].page(vma.pgoff_at(at(page)).get());
        Some(bytes.map_or(Expected::Signal(Signal::NoPage), |bytes| Expected::Page(boxed(bytes))))
    }

    /// What an access that needs one of these rights should find.
    fn expected(&self, page: u64, rights: VmFlags) -> Expected {
        let Some(vma) = self.vma(page) else { return Expected::Signal(Signal::NotMapped) };
        if !vma.flags.intersects(rights) {
            return Expected::Signal(Signal::Denied);
        }
        self.contents(self.space(), page).unwrap_or(Expected::Signal(Signal::NotMapped))
    }

    /// Compares how an access was refused with how it should have been.
    fn refused(&mut self, error: Refused, expected: &Expected) {
        match (error, expected) {
            (Refused::OutOfMemory, _) => {
                self.tried.out_of_memory += 1;
                self.machine.take_reports();
            }
            (Refused::Signal(signal), Expected::Signal(due)) if signal == *due => self.tried.signals += 1,
            (error, Expected::Signal(due)) => panic!("{error}, and not {due}"),
            (error, Expected::Page(_)) => panic!("{error}, where bytes are"),
        }
    }

    fn load(&mut self, addr: u64, len: u8, how: u8) {
        for (addr, len) in pieces(addr, len) {
            self.tried.accesses += 1;
            let expected = self.expected(addr & !(PAGE - 1), VmFlags::ACCESS);
            let mut bytes = vec![0; len];
            let result = self.on_cpu(|space| match how % 3 {
                0 => space.process.copy_from_user(at(addr), &mut bytes),
                _ => User::new(&space.process).load(at(addr), &mut bytes),
            });
            match (result, &expected) {
                (Ok(()), Expected::Page(page)) => {
                    let within = (addr % PAGE) as usize;
                    assert_eq!(bytes, page[within..within + len], "at {addr:#x}");
                }
                (Ok(()), Expected::Signal(signal)) => panic!("{addr:#x} was read, which is {signal}"),
                (Err(error), expected) => return self.refused(error, expected),
            }
        }
    }

    fn store(&mut self, addr: u64, len: u8, how: u8, byte: u8) {
        for (addr, len) in pieces(addr, len) {
            self.tried.accesses += 1;
            let page = addr & !(PAGE - 1);
            let expected = self.expected(page, VmFlags::WRITE);
            let bytes: Vec<u8> = (0..len).map(|at| byte.wrapping_add(at as u8)).collect();
            let result = self.on_cpu(|space| match how % 3 {
                0 => space.process.copy_to_user(at(addr), &bytes),
                _ => User::new(&space.process).store(at(addr), &bytes),
            });
            match (result, expected) {
                (Ok(()), Expected::Page(before)) => self.stored(page, before, (addr % PAGE) as usize, &bytes),
                (Ok(()), Expected::Signal(signal)) => panic!("{addr:#x} was written, which is {signal}"),
                (Err(error), expected) => return self.refused(error, &expected),
            }
        }
    }

    fn stored(&mut self, page: u64, mut before: Bytes, within: usize, bytes: &[u8]) {
        let vma = self.vma(page).unwrap();
        match vma.backing {
            Backing::File(file) if vma.flags.contains(VmFlags::SHARED) => {
                let start = (vma.pgoff_at(at(page)).get() * PAGE) as usize + within;
                let object = self.objects.get_mut(&file.file).unwrap();
                object.bytes[start..start + bytes.len()].copy_from_slice(bytes);
            }
            _ => {
                before[within..within + bytes.len()].copy_from_slice(bytes);
                self.private().insert(page, before);
            }
        }
    }

    fn fork(&mut self) {
        if self.spaces.len() == MAX_PROCESSES {
            return;
        }
        let result = self.on_cpu(|space| space.process.fork());
        let Some(process) = self.note(result) else { return };
        let lost = VmFlags::DONTCOPY | VmFlags::WIPEONFORK;
        let kept = |page: u64| self.vma(page).is_some_and(|vma| !vma.flags.intersects(lost));
        let own = self.space().private.iter().filter(|&(&page, _)| kept(page));
        let private = own.map(|(&page, bytes)| (page, bytes.clone())).collect();
        self.spaces.push(Space { process, private });
    }

    fn exit(&mut self) {
        if self.spaces.len() > 1 {
            let space = self.spaces.swap_remove(self.current);
            self.current = 0;
            self.leave(&space);
        }
    }

    /// No CPU walks the tables of a process that ends.
    fn leave(&self, space: &Space<'v, 'a, 'm, F>) {
        let root = space.process.with(|mm| mm.shared().pgd());
        for cpu in self.cpus {
            cpu.run(|| {
                if self.machine.tables() == root {
                    space.process.deactivate();
                }
            });
        }
    }

    fn verify(&mut self, op: &Op) {
        self.follow_tails();
        let processes: Vec<_> = self.spaces.iter().map(|space| &space.process).collect();
        let hogged = |pfn: Pfn| u32::from(self.hogged.contains(&pfn));
        if let Err(broken) = self.vm.check(&processes, hogged, &mut self.tallies) {
            panic!("{op:?}: {broken}");
        }
        assert_eq!(self.machine.stale_translation(), None, "{op:?}");
        assert_eq!(self.memory.poison_hits(), (0, None), "{op:?}");
        for (number, space) in self.spaces.iter().enumerate() {
            self.verify_pages(op, number, space);
        }
    }

    /// Every page that is resident has the bytes that it should have.
    fn verify_pages(&self, op: &Op, number: usize, space: &Space<'v, 'a, 'm, F>) {
        let mut resident = vec![];
        space.process.visit_pages(VirtRange::new(at(0), at(TASK)).unwrap(), |page, state| {
            resident.extend(state.resident().map(|state| (page.get(), state.pfn)));
        });
        let mut bytes = [0; PAGE as usize];
        for (page, pfn) in resident {
            self.memory.read_frame(pfn, 0, &mut bytes).unwrap();
            match self.contents(space, page) {
                Some(Expected::Page(due)) if *due == bytes => {}
                Some(Expected::Page(due)) => {
                    let differs = (0..bytes.len()).find(|&at| bytes[at] != due[at]).unwrap_or(0);
                    panic!(
                        "{op:?}: process {number}, page {page:#x}, frame {pfn:#x}: byte {differs:#x} is {:#x}, should be {:#x}",
                        bytes[differs], due[differs]
                    );
                }
                _ => panic!("{op:?}: process {number}: page {page:#x} is resident, and should not be"),
            }
        }
    }

    fn end(mut self) -> Tried {
        self.disk.set_latency(Latency::None);
        for space in std::mem::take(&mut self.spaces) {
            self.leave(&space);
        }
        while self.vm.cache().reap(self.memory) != 0 {}
        for file in 0..FILES {
            // What out of memory has kept from the disk is there now.
            self.files[file].both.sync().unwrap();
            self.compare_disk(file);
        }
        self.files.clear();
        while self.vm.cache().reap(self.memory) != 0 {}
        for &pfn in &self.hogged {
            self.memory.free_pages(pfn, PageOrder::ZERO).unwrap();
        }
        self.machine.take_reports();
        assert_eq!(self.memory.poison_hits(), (0, None));
        std::mem::take(&mut self.tried)
    }
}

/// An access, cut at the borders of pages.
fn pieces(addr: u64, len: u8) -> impl Iterator<Item = (u64, usize)> {
    let len = u64::from(len % 64) + 1;
    let first = len.min(PAGE - addr % PAGE);
    [(addr, first as usize), (addr + first, (len - first) as usize)].into_iter().filter(|&(_, len)| len != 0)
}
