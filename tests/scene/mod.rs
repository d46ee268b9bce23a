//! A machine with a disk for a test, and short words for what tests do with processes.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]
#![allow(clippy::allow_attributes, reason = "expect would fail in the binary that uses all of it")]

use kernmm::addr::{VirtAddr, VirtRange};
use kernmm::error::Errno;
use kernmm::fault::{EntryState, PageKind, ResidentPage, Signal};
use kernmm::flags::{Advice, MapFlags, Prot, VmFlags};
use kernmm::memory::{File, Memory, Options, Poison, Process, Refused, User, Vm};
use kernmm::mm::{Image, MmError, Overcommit, Rlimits, Sysctl};
use kernmm::phys::Config;
use kernmm::platform::hosted::{Disk, Machine};
use kernmm::platform::{CpuId, Platform};
use kernmm::syscall::{MmapArgs, OpenMode};

pub const PAGE: u64 = 4096;
pub const RW: Prot = Prot::READ.union(Prot::WRITE);
pub const PRIVATE: MapFlags = MapFlags::PRIVATE;
pub const SHARED: MapFlags = MapFlags::SHARED;
/// The file on the disk.
pub const INODE: u64 = 3;
/// Where nothing is.
pub const ARENA: u64 = 0x4000_0000;

pub type Mem<'m> = Memory<'m, Machine>;
pub type Proc<'v, 'a, 'm> = Process<'v, 'a, Mem<'m>>;

/// What the file holds at a byte.
pub fn content(at: u64) -> u8 {
    (at % 251) as u8 + 1
}

/// The file: three pages and 100 bytes, no byte of which is 0.
pub fn contents() -> Vec<u8> {
    (0..3 * PAGE + 100).map(content).collect()
}

/// What a test may want different.
#[derive(Default)]
pub struct Wishes {
    pub sysctl: Sysctl,
    pub overcommit: Option<Overcommit>,
}

/// Runs a test on a machine of 16 MiB with the file on its disk. Afterwards all frames must be back, and no TLB may know what is gone.
pub fn on_machine(test: impl for<'a, 'm> FnOnce(&Vm<'a, Mem<'m>>, &'a Disk<'m>)) {
    on_machine_with(Wishes::default(), test);
}

pub fn on_machine_with(wishes: Wishes, test: impl for<'a, 'm> FnOnce(&Vm<'a, Mem<'m>>, &'a Disk<'m>)) {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let options = Options::default().poison(Poison::On);
    let memory = Memory::on_with(&machine, &Config::from(&machine), options).unwrap();
    let disk = Disk::new(&machine);
    disk.put(INODE, &contents());
    let mut vm: Vm<'_, _> = Vm::on_with(&memory, wishes.sysctl).unwrap();
    if let Some(overcommit) = wishes.overcommit {
        vm = vm.with_overcommit(overcommit);
    }
    let free = || {
        memory.phys().drain_all(&memory.pin());
        memory.phys().free_pages_total()
    };
    let before = free();
    test(&vm, &disk);
    while vm.cache().reap(&memory) != 0 {
        machine.relax();
    }
    assert_eq!(free(), before, "frames were lost");
    assert_eq!(memory.poison_hits().0, 0, "free frames were written");
    assert_eq!(machine.stale_translation(), None);
    vm.assert_sound::<spin::RwLock<()>>(&[]);
}

pub fn process<'v, 'a, 'm>(vm: &'v Vm<'a, Mem<'m>>) -> Proc<'v, 'a, 'm> {
    Process::new(vm).unwrap()
}

pub fn open<'v, 'a, 'm>(vm: &'v Vm<'a, Mem<'m>>, disk: &'a Disk<'m>) -> File<'v, 'a, Mem<'m>> {
    vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap()
}

pub fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

/// The arguments for anonymous memory.
pub fn anonymous(addr: u64, pages: u64, prot: Prot, flags: MapFlags) -> MmapArgs {
    let flags = flags | MapFlags::ANONYMOUS;
    MmapArgs { addr, len: pages * PAGE, prot, flags, file: Ok(None), offset: 0 }
}

/// The arguments for a file, from its first page on.
pub fn of_file(file: &File<'_, '_, Mem<'_>>, addr: u64, pages: u64, prot: Prot, flags: MapFlags) -> MmapArgs {
    MmapArgs { addr, len: pages * PAGE, prot, flags, file: Ok(Some(file.map_file())), offset: 0 }
}

pub fn map(process: &Proc<'_, '_, '_>, pages: u64, prot: Prot, flags: MapFlags) -> u64 {
    process.mmap(&anonymous(0, pages, prot, flags)).unwrap().get()
}

pub fn map_at(process: &Proc<'_, '_, '_>, addr: u64, pages: u64, prot: Prot, flags: MapFlags) {
    assert_eq!(process.mmap(&anonymous(addr, pages, prot, flags | MapFlags::FIXED)), Ok(at(addr)));
}

pub fn map_file(
    process: &Proc<'_, '_, '_>,
    file: &File<'_, '_, Mem<'_>>,
    pages: u64,
    prot: Prot,
    flags: MapFlags,
) -> u64 {
    process.mmap(&of_file(file, 0, pages, prot, flags)).unwrap().get()
}

pub fn store(process: &Proc<'_, '_, '_>, addr: u64, byte: u8) -> Result<(), Refused> {
    User::new(process).store(at(addr), &[byte])
}

pub fn load(process: &Proc<'_, '_, '_>, addr: u64) -> Result<u8, Refused> {
    User::new(process).load_byte(at(addr))
}

pub fn fetch(process: &Proc<'_, '_, '_>, addr: u64) -> Result<(), Refused> {
    User::new(process).fetch(at(addr), &mut [0])
}

pub fn load_all(process: &Proc<'_, '_, '_>, addr: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; len as usize];
    User::new(process).load(at(addr), &mut bytes).unwrap();
    bytes
}

pub fn advise(process: &Proc<'_, '_, '_>, addr: u64, pages: u64, advice: Advice) -> Result<(), MmError> {
    process.madvise(addr, pages * PAGE, advice as i32)
}

pub const NOT_MAPPED: Refused = Refused::Signal(Signal::NotMapped);
pub const DENIED: Refused = Refused::Signal(Signal::Denied);
pub const NO_PAGE: Refused = Refused::Signal(Signal::NoPage);

#[track_caller]
pub fn errno<T: std::fmt::Debug>(result: Result<T, MmError>) -> Errno {
    result.unwrap_err().errno()
}

/// The VMAs: where they begin, how many pages they have, their flags.
pub fn vmas(process: &Proc<'_, '_, '_>) -> Vec<(u64, u64, VmFlags)> {
    process.with(|mm| mm.vmas().iter().map(|(_, vma)| (vma.start.get(), vma.pages(), vma.flags)).collect())
}

/// The VMAs in an area.
pub fn layout(process: &Proc<'_, '_, '_>) -> Vec<(u64, u64)> {
    vmas(process).into_iter().map(|(start, pages, _)| (start, pages)).collect()
}

pub fn locked(process: &Proc<'_, '_, '_>) -> u64 {
    process.with(|mm| mm.totals().locked_vm)
}

pub fn limit(process: &Proc<'_, '_, '_>, change: impl FnOnce(&mut Rlimits)) {
    process.with_mut(|mm| {
        let mut rlimits = *mm.rlimits();
        change(&mut rlimits);
        mm.set_rlimits(rlimits);
    });
}

/// Has the heap begin at an address.
pub fn heap(process: &Proc<'_, '_, '_>, start: u64) {
    process.with_mut(|mm| {
        let image = Image { start_brk: at(start), brk: at(start), ..*mm.image() };
        mm.set_image(image);
    });
}

pub fn resident(process: &Proc<'_, '_, '_>, addr: u64) -> Option<ResidentPage> {
    process.entry_state(at(addr)).and_then(EntryState::resident)
}

/// The pages from `start` on, a letter each: `.` nothing, `z` the zero page, `a` anonymous, `f` of a file or shared memory, `g` a guard.
pub fn pages(process: &Proc<'_, '_, '_>, start: u64, pages: u64) -> String {
    let mut letters = vec!['.'; pages as usize];
    let range = VirtRange::with_len(at(start), pages * PAGE).unwrap();
    process.visit_pages(range, |page, state| {
        letters[((page.get() - start) / PAGE) as usize] = match state {
            EntryState::Guard => 'g',
            EntryState::Swapped(_) => 's',
            EntryState::Resident(page) => match page.kind {
                PageKind::Zero => 'z',
                PageKind::Anonymous => 'a',
                _ => 'f',
            },
        };
    });
    letters.into_iter().collect()
}

/// What mincore says, a 0 or 1 for each page.
pub fn incore(process: &Proc<'_, '_, '_>, addr: u64, pages: u64) -> String {
    let mut answers = vec![7; pages as usize];
    process.mincore(addr, pages * PAGE, answers.as_mut_slice()).unwrap();
    answers.into_iter().map(|answer| char::from(b'0' + answer)).collect()
}
