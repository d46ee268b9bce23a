//! Programs of several processes, files and CPUs, and a naive model of what every byte is: shared by the model test and the fuzz target.
//!
//! The model has the bytes that a process has for itself, by process and page, those of files and shared memory, by file, and what devices have pinned. All else
//! it reads off the VMAs, which other models judge. It decides how each call ends: which error or signal, after how many bytes; that memory was short is believed only where it may
//! be, and that a store has failed only where it was told to. After every operation everything is recounted, what each CPU remembers is compared with the tables, and every
//! resident or pinned page with the bytes that it should have.

mod access;
mod advice;
mod calls;
#[path = "../live/executable.rs"]
#[expect(dead_code, reason = "fixed programs without an interpreter are enough here")]
mod executable;
mod files;
mod locks;
mod op;
mod pins;
mod program;
mod store;
mod verify;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use kernmm::addr::{PageOrder, Pfn, VirtAddr};
use kernmm::cache::FileId;
use kernmm::error::Errno;
use kernmm::fault::FrameTally;
use kernmm::flags::{GfpFlags, VmFlags};
use kernmm::memory::{File, Memory, Options, Poison, Process, Vm};
use kernmm::mm::{HugePages, Image, MmError, Rlimits, Sysctl, Vma};
use kernmm::phys::{Config, FailRule};
use kernmm::platform::hosted::{CpuGuard, Latency, Machine, Mmu};
use kernmm::syscall::OpenMode;
use kernmm::table::{EntryFormat, Pae, Sv39, X86_64};

use calls::protection;
use files::Object;
pub(crate) use op::Op;
use pins::Pin;
use store::Store;

const PAGE: u64 = 4096;
const TASK: u64 = 0xb000_0000;
/// Addresses are few, so that operations meet; two of the three places lie across the border of page tables.
const PLACES: [u64; 3] = [0x40_0000 - 24 * PAGE, 0x4000_0000 - 24 * PAGE, 0x800_0000];
const PAGES_OF_PLACE: u64 = 48;
const MAX_PROCESSES: usize = 4;
const MAX_FILE_PAGES: u64 = 12;
const FILES: usize = 4;
/// Where the heap begins, in the middle of a page among the third place's mappings.
const HEAP: u64 = PLACES[2] + 26 * PAGE + 16;

/// The machine that operations run on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) mmu: Mmu,
    /// How many frames are left free at the start; as many as there are if none is said.
    pub(crate) frames: Option<u64>,
    pub(crate) huge: HugePages,
}

/// How often things happened that a test wants to have happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tried {
    pub(crate) out_of_memory: u64,
    /// The same, because an allocation was made to fail.
    pub(crate) injected: u64,
    /// Other things by their names.
    pub(crate) seen: BTreeMap<&'static str, u64>,
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
/// A page of a process's own, which others may have pinned.
type Own = Rc<RefCell<Bytes>>;

fn own(bytes: Bytes) -> Own {
    Rc::new(RefCell::new(bytes))
}

fn run_in<F: EntryFormat>(operations: &[Op], setup: Setup) -> Tried {
    let machine = Machine::pc(8 << 20).cpus(2).mmu(setup.mmu).build().unwrap();
    let cpus = machine.all_cpus().unwrap();
    let store = Store::new(&machine);
    let poison = Options::default().poison(Poison::On);
    let memory = Memory::on_with(&machine, &Config::from(&machine), poison).unwrap();
    let sysctl = Sysctl { task_size: TASK, huge_pages: setup.huge, ..Sysctl::default() };
    let vm: Vm<'_, Mem<'_>, F> = Vm::on_with(&memory, sysctl).unwrap();
    let before = free(&memory);
    let tried = {
        let mut world = World::new(&machine, &cpus, &store, &memory, &vm, setup);
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
    /// How many errors each opening has been told of.
    told: [u32; 2],
    /// The store could not be told of a length.
    owes: bool,
}

struct Space<'v, 'a, 'm, F: EntryFormat> {
    process: Process<'v, 'a, Mem<'m>, F>,
    /// Pages that are the process's own, by number.
    private: BTreeMap<u64, Own>,
    /// Pages that are marks of guard regions.
    guards: BTreeSet<u64>,
    /// How what it maps from now on is locked.
    future: VmFlags,
    /// Where its heap begins and ends.
    heap: (u64, u64),
}

struct World<'w, 'v, 'a, 'm, F: EntryFormat> {
    machine: &'m Machine,
    cpus: &'w [CpuGuard<'m>],
    store: &'a Store<'m>,
    memory: &'a Mem<'m>,
    vm: &'v Vm<'a, Mem<'m>, F>,
    setup: Setup,
    files: Vec<Kept<'v, 'a, 'm, F>>,
    objects: HashMap<FileId, Object>,
    spaces: Vec<Space<'v, 'a, 'm, F>>,
    current: usize,
    cpu: usize,
    pins: Vec<Pin>,
    /// What has been executed.
    programs: BTreeMap<usize, File<'v, 'a, Mem<'m>, F>>,
    /// Which allocation of the operation under way fails.
    failing: Option<u64>,
    hogged: BTreeSet<Pfn>,
    tallies: Vec<FrameTally>,
    tried: Tried,
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
        store: &'a Store<'m>,
        memory: &'a Mem<'m>,
        vm: &'v Vm<'a, Mem<'m>, F>,
        setup: Setup,
    ) -> Self {
        let process = Process::new(vm).unwrap();
        process.with_mut(|mm| {
            let heap = VirtAddr::from(HEAP);
            mm.set_image(Image { start_brk: heap, brk: heap, ..*mm.image() });
            mm.set_rlimits(Rlimits { memlock: Rlimits::INFINITY, ..*mm.rlimits() });
        });
        let first = Space {
            process,
            private: BTreeMap::new(),
            guards: BTreeSet::new(),
            future: VmFlags::empty(),
            heap: (HEAP, HEAP),
        };
        let tallies = vec![FrameTally::new(); memory.phys().slots()];
        let mut world = World {
            machine,
            cpus,
            store,
            memory,
            vm,
            setup,
            files: vec![],
            objects: HashMap::new(),
            spaces: vec![first],
            current: 0,
            cpu: 0,
            pins: vec![],
            programs: BTreeMap::new(),
            failing: None,
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
                store.disk.put(number, &bytes);
                let open = |mode| vm.open_file(store, number, mode).unwrap();
                (open(OpenMode::ReadWrite), Some(open(OpenMode::ReadOnly)))
            } else {
                (vm.memory_file(size).unwrap(), None)
            };
            world.objects.insert(both.id(), object);
            let inode = on_disk.then_some(number);
            world.files.push(Kept { both, read_only, inode, told: [0; 2], owes: false });
        }
        world
    }

    fn space(&self) -> &Space<'v, 'a, 'm, F> {
        &self.spaces[self.current]
    }

    fn private(&mut self) -> &mut BTreeMap<u64, Own> {
        &mut self.spaces[self.current].private
    }

    fn guards(&mut self) -> &mut BTreeSet<u64> {
        &mut self.spaces[self.current].guards
    }

    fn step(&mut self, op: &Op) {
        let nth = self.failing;
        if let Some(nth) = nth {
            self.memory.phys().set_fail_rule(&self.memory.pin(), FailRule::Nth(nth));
        }
        self.perform(op);
        if nth.is_some() {
            self.memory.phys().set_fail_rule(&self.memory.pin(), FailRule::Never);
        }
        // It is for the next operation alone.
        if !matches!(op, Op::FailAllocation { .. }) {
            self.failing = None;
        }
    }

    fn perform(&mut self, op: &Op) {
        match *op {
            Op::Mmap { at, pages, prot, how, file, offset } => {
                self.mmap(address(at), length(pages), prot, how, file, offset);
            }
            Op::Munmap { at, pages } => self.munmap(address(at), length(pages)),
            Op::Mprotect { at, pages, prot } => self.mprotect(address(at), length(pages), protection(prot)),
            Op::Mremap { at, old, new, how, to } => {
                self.mremap(address(at), length(old), length(new), how, address(to));
            }
            Op::Madvise { at, pages, advice } => {
                self.madvise(self.touched(at, 0, advice >> 5 | pages << 3), length(pages), advice);
            }
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
            Op::Sync { file } => drop(self.sync(file)),
            Op::WriteBack { file } => self.write_back(file),
            Op::Reap => drop(self.vm.reap()),
            Op::Latency { polls } => self.store.disk.set_latency(match polls % 4 {
                0 => Latency::None,
                polls => Latency::Polls(u32::from(polls)),
            }),
            Op::Copy { at, within, len, how, byte } => {
                self.copy(self.touched(at, within, how), len, how, byte)
            }
            Op::Transfer { file, from, at, within, len, how } => {
                self.transfer(file, from, self.touched(at, within, how), len, how);
            }
            Op::Lock { at, pages, how } => self.lock(address(at), length(pages), how),
            Op::LockAll { how } => self.lock_all(how),
            Op::Brk { to, how } => self.brk(to, how),
            Op::Exec { shape } => self.exec(shape),
            Op::Pin { at, pages, how } => self.pin(self.touched(at, 0, how), pages, how),
            Op::Dma { pin, within, byte } => self.dma(pin, within, byte),
            Op::Unpin { pin } => self.unpin(pin),
            Op::FailStore { file, how, kind } => self.fail_store(file, how, kind),
            Op::Busy { every } => self.store.set_busy([0, 0, 2, 3, 4][usize::from(every % 5)]),
            Op::FailAllocation { nth } => {
                self.failing = Some([1, 1, 1, 2, 2, 3, 4, 6, 9][usize::from(nth % 9)])
            }
            Op::Reopen { file } => self.reopen(file),
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
        if result.as_ref().err() == Some(&MmError::OutOfMemory) {
            self.note_out_of_memory();
        }
        result.ok()
    }

    /// The same where it is known how it should have ended. Only memory may have been short.
    fn settle<R>(&mut self, result: Result<R, MmError>, due: Result<(), MmError>) -> Option<R> {
        self.tried.calls += 1;
        self.tried.refused_calls += u64::from(result.is_err());
        match (result, due) {
            (Ok(result), Ok(())) => Some(result),
            (Err(error), Err(due)) if error == due => None,
            (Err(error), due) if error != MmError::NotMapped && wants_memory(error) => {
                assert!(self.may_be_short(), "{error}, and not {due:?}");
                self.note_out_of_memory();
                None
            }
            (result, due) => panic!("{:?}, and not {due:?}", result.map(drop)),
        }
    }

    /// Memory was short. It must have been.
    fn note_out_of_memory(&mut self) {
        assert!(self.may_be_short(), "memory is not short");
        match self.has_failed() {
            true => self.tried.injected += 1,
            false => self.tried.out_of_memory += 1,
        }
        self.machine.take_reports();
    }

    fn may_be_short(&self) -> bool {
        self.setup.frames.is_some() || self.setup.huge != HugePages::Never || self.has_failed()
    }

    fn may_have_huge(&self) -> bool {
        self.setup.huge != HugePages::Never
    }

    /// Whether an allocation has failed that was to.
    fn has_failed(&self) -> bool {
        self.failing.is_some_and(|nth| self.memory.phys().fail_seen(&self.memory.pin()) >= nth)
    }

    fn saw(&mut self, what: &'static str) {
        *self.tried.seen.entry(what).or_default() += 1;
    }

    /// The address of an access: mostly one in a VMA.
    fn touched(&self, at: u8, within: u16, how: u8) -> u64 {
        let within = u64::from(within) % PAGE;
        let vmas: Vec<Vma> = self.space().process.with(|mm| mm.vmas().iter().map(|(_, vma)| vma).collect());
        if how & 7 == 0 || vmas.is_empty() {
            return address(at) + within;
        }
        let vma = vmas[usize::from(at) % vmas.len()];
        // All over what is long.
        let page = u64::from(how >> 3) * (vma.pages() / 32).max(1);
        vma.start.get() + page % vma.pages() * PAGE + within
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
}

fn wants_memory(error: MmError) -> bool {
    matches!(error.errno(), Errno::ENOMEM | Errno::EAGAIN)
}
