//! Every allocation, and every request of a store, fails once in every call and every kind of fault: nothing panics, nothing has changed but what Linux
//! changes too, and in the end nothing is lost.

#[path = "live/executable.rs"]
#[expect(dead_code, reason = "one shape is enough here")]
mod executable;
mod failures;

use kernmm::addr::{Pfn, PgOff, VirtAddr};
use kernmm::cache::{CacheError, SyncMode, WriteBack};
use kernmm::error::Errno;
use kernmm::fault::{Access, FrameTally, PinTerm, PinUse, Signal};
use kernmm::flags::{Advice, MapFlags, MlockFlags, MlockallFlags, MremapFlags, MsyncFlags, Prot};
use kernmm::memory::{ExecError, File, Memory, Process, Program, Refused, TransferError, User, Vm};
use kernmm::mm::{MmError, Vma};
use kernmm::phys::FailRule;
use kernmm::platform::hosted::{Disk, Failure, Latency, Machine, Stage};
use kernmm::platform::{CpuId, StoreError};
use kernmm::syscall::{
    Binary, Device, ElfMachine, ElfType, ExecImage, MapFile, MmapArgs, OpenMode, Segment, StackImage,
};
use kernmm::table::Caching;

use executable::{Executable, Kind, Shape, Stack};
use failures::Digest;
use failures::May::{
    self, Cached, Cleaned, Come, Copied, Cut, Gone, Grown, InMemory, Locked, MaybeGuard, Owner, Protected,
    Synced,
};

const PAGE: u64 = 4096;
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Private memory: two pages written, one read, the rest untouched. The first is shared with the child.
const ANON: u64 = 0x1000_0000;
/// A private mapping of a file: the first page is a copy, the second was read.
const COPY: u64 = 0x1020_0000;
/// A shared mapping of it: the first page was written, the second read.
const SHARED: u64 = 0x1040_0000;
/// Shared memory, of which the first page was written.
const SHMEM: u64 = 0x1060_0000;
/// The same four without any page, table, or page in the cache.
const FRESH: u64 = 0x5000_0000;
const FRESH_COPY: u64 = 0x5020_0000;
const FRESH_SHARED: u64 = 0x5040_0000;
const FRESH_SHMEM: u64 = 0x5060_0000;
const STACK: u64 = 0x6000_0000;
const HEAP: u64 = 0x7000_0000;
/// Nothing is here.
const FREE: u64 = 0x9000_0000;

type Mem<'m> = Memory<'m, Machine>;
type Proc<'v, 'a, 'm> = Process<'v, 'a, Mem<'m>>;

struct Scene<'s, 'v, 'a, 'm> {
    memory: &'a Mem<'m>,
    vm: &'v Vm<'a, Mem<'m>>,
    parent: &'s Proc<'v, 'a, 'm>,
    child: &'s Proc<'v, 'a, 'm>,
    file: &'s File<'v, 'a, Mem<'m>>,
    fresh: &'s File<'v, 'a, Mem<'m>>,
    disk: &'a Disk<'m>,
}

/// A program that asks for an interpreter, and that.
const PROGRAM: u64 = 3;
const INTERPRETER: u64 = 4;

/// Why something was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refusal {
    Memory,
    Store,
    Other,
}

impl From<MmError> for Refusal {
    fn from(error: MmError) -> Self {
        match error.errno() {
            Errno::ENOMEM | Errno::EAGAIN => Self::Memory,
            Errno::EIO | Errno::ENOSPC => Self::Store,
            // MADV_POPULATE answers so where the store fails.
            Errno::EFAULT => Self::Store,
            _ => Self::Other,
        }
    }
}

impl From<ExecError> for Refusal {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Map(error) => error.into(),
            ExecError::File(error) => error.into(),
            ExecError::Memory(refused) => refused.into(),
            ExecError::NoInterpreter(Errno::ENOMEM) => Self::Memory,
            ExecError::NoInterpreter(Errno::EIO | Errno::ENOSPC) => Self::Store,
            _ => Self::Other,
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::OutOfMemory => Self::Memory,
            Refused::Signal(Signal::NoPage) => Self::Store,
            Refused::Signal(_) => Self::Other,
        }
    }
}

impl From<TransferError> for Refusal {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::File(error) => error.into(),
            TransferError::User(refused) => refused.into(),
        }
    }
}

impl From<CacheError> for Refusal {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::OutOfMemory => Self::Memory,
            CacheError::Io | CacheError::NoSpace => Self::Store,
            _ => Self::Other,
        }
    }
}

/// The files of the scene, as [`May`] names them.
const FILE: usize = 0;
const NEW: usize = 1;

type Call = fn(&Scene<'_, '_, '_, '_>) -> Result<(), Refusal>;

fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

fn load(scene: &Scene<'_, '_, '_, '_>, addr: u64) -> Result<(), Refusal> {
    Ok(User::new(scene.parent).load_byte(at(addr)).map(drop)?)
}

fn store(scene: &Scene<'_, '_, '_, '_>, addr: u64) -> Result<(), Refusal> {
    Ok(User::new(scene.parent).store(at(addr), b"!")?)
}

fn advise(scene: &Scene<'_, '_, '_, '_>, addr: u64, pages: u64, advice: Advice) -> Result<(), Refusal> {
    Ok(scene.parent.madvise(addr, pages * PAGE, advice as i32)?)
}

fn mremap(
    scene: &Scene<'_, '_, '_, '_>,
    from: u64,
    old: u64,
    new: u64,
    flags: MremapFlags,
    to: u64,
) -> Result<(), Refusal> {
    Ok(scene.parent.mremap(from, old * PAGE, new * PAGE, flags, to).map(drop)?)
}

fn map_at(
    process: &Proc<'_, '_, '_>,
    addr: u64,
    pages: u64,
    flags: MapFlags,
    file: Option<MapFile>,
) -> Result<(), MmError> {
    let anonymous = if file.is_some() { MapFlags::empty() } else { MapFlags::ANONYMOUS };
    let flags = flags | anonymous | MapFlags::FIXED;
    process.mmap(&MmapArgs { addr, len: pages * PAGE, prot: RW, flags, file: Ok(file), offset: 0 }).map(drop)
}

/// Where a device's registers begin, which are no RAM.
const REGISTERS: Pfn = Pfn::new(0xfe000).unwrap();

/// Maps a device of so many pages.
fn map_device(scene: &Scene<'_, '_, '_, '_>, pages: u64) -> Result<(), MmError> {
    let flags = MapFlags::SHARED | MapFlags::FIXED;
    let args = MmapArgs { addr: FREE, len: pages * PAGE, prot: RW, flags, file: Ok(None), offset: 0 };
    let (mode, first) = (OpenMode::ReadWrite, REGISTERS);
    let device = Device { special: 9, mode, first, pages, caching: Caching::Uncached };
    scene.parent.mmap_device(&args, &device).map(drop)
}

fn vmas(process: &Proc<'_, '_, '_>) -> Vec<Vma> {
    process.with(|mm| mm.vmas().iter().map(|(_, vma)| vma).collect())
}

const MOVE: MremapFlags = MremapFlags::MAYMOVE.union(MremapFlags::FIXED);

/// Every kind of fault and every call that allocates.
const CALLS: &[(&str, &[May], Call)] = &[
    ("a load from fresh memory", &[], |s| load(s, FRESH)),
    ("a store to fresh memory", &[Owner(FRESH, 8)], |s| store(s, FRESH)),
    ("a store to untouched memory beside pages", &[], |s| store(s, ANON + 4 * PAGE)),
    ("a store to the page of zeros", &[], |s| store(s, ANON + 2 * PAGE)),
    ("a store to what a child has too", &[], |s| store(s, ANON)),
    ("a load from a fresh private file", &[Cached(NEW)], |s| load(s, FRESH_COPY)),
    ("a store to a fresh private file", &[Owner(FRESH_COPY, 8), Cached(NEW)], |s| {
        store(s, FRESH_COPY + PAGE)
    }),
    ("a store to a private file's page that was read", &[], |s| store(s, COPY + PAGE)),
    ("a load from a fresh shared file", &[Cached(NEW)], |s| load(s, FRESH_SHARED)),
    ("a store to a fresh shared file", &[Cached(NEW)], |s| store(s, FRESH_SHARED + PAGE)),
    ("a store to a shared file's page that was read", &[], |s| store(s, SHARED + PAGE)),
    ("a load from fresh shared memory", &[InMemory], |s| load(s, FRESH_SHMEM)),
    ("a store to fresh shared memory", &[InMemory], |s| store(s, FRESH_SHMEM)),
    ("a fault below a stack", &[Grown(STACK - PAGE, 1)], |s| store(s, STACK - PAGE)),
    ("a fetch", &[Cached(NEW)], |s| match User::new(s.parent).fetch(at(FRESH_COPY), &mut [0]) {
        // The mapping does not allow it; the page comes all the same.
        Err(Refused::Signal(Signal::Denied)) => Ok(()),
        other => Ok(other?),
    }),
    ("a copy to user memory", &[Owner(FRESH, 8), Come(FRESH, 3)], |s| {
        Ok(s.parent.copy_to_user(at(FRESH + 100), &[1; 9000])?)
    }),
    ("a copy from user memory", &[Cached(NEW)], |s| {
        Ok(s.parent.copy_from_user(at(FRESH_COPY + 100), &mut [0; 9000])?)
    }),
    ("mmap", &[], |s| Ok(map_at(s.parent, FREE, 4, MapFlags::PRIVATE, None)?)),
    ("mmap over pages", &[], |s| Ok(map_at(s.parent, ANON + PAGE, 2, MapFlags::SHARED, None)?)),
    ("mmap of a file, populated", &[], |s| {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        Ok(map_at(s.parent, FREE, 4, flags, Some(s.fresh.map_file()))?)
    }),
    ("mmap2 of a file, populated", &[], |s| {
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE | MapFlags::FIXED;
        let file = Ok(Some(s.fresh.map_file()));
        let args = MmapArgs { addr: FREE, len: 3 * PAGE, prot: RW, flags, file, offset: 1 };
        Ok(s.parent.mmap2(&args).map(drop)?)
    }),
    ("mmap of a device", &[], |s| Ok(map_device(s, 4)?)),
    ("remap_pfn_range", &[], |s| {
        map_device(s, 1)?;
        let vma = vmas(s.parent).into_iter().find(|vma| vma.start == at(FREE)).ok_or(Refusal::Other)?;
        s.parent.munmap(FREE, PAGE)?;
        s.parent.insert_vma(&vma)?;
        let mapped = s.parent.remap_pfn_range(at(FREE), REGISTERS, PAGE, Caching::Uncached);
        if mapped.is_err() {
            s.parent.munmap(FREE, PAGE)?;
        }
        Ok(mapped?)
    }),
    ("munmap in the middle", &[], |s| Ok(s.parent.munmap(ANON + PAGE, PAGE)?)),
    ("mprotect in the middle", &[], |s| Ok(s.parent.mprotect(ANON + PAGE, PAGE, Prot::READ)?)),
    ("mremap to elsewhere", &[], |s| mremap(s, ANON, 4, 4, MOVE, FREE)),
    ("mremap of a part, growing", &[], |s| mremap(s, ANON + PAGE, 2, 6, MOVE, FREE)),
    ("mremap over pages", &[], |s| mremap(s, ANON, 2, 2, MOVE, COPY)),
    ("mremap of a shared file", &[], |s| mremap(s, SHARED, 4, 4, MOVE, FREE)),
    ("mremap that leaves the source", &[], |s| mremap(s, ANON, 4, 4, MOVE | MremapFlags::DONTUNMAP, FREE)),
    ("brk", &[], |s| match s.parent.brk(HEAP + 3 * PAGE)?.get() == HEAP + 3 * PAGE {
        true => Ok(()),
        false => Err(Refusal::Memory),
    }),
    ("sbrk", &[], |s| Ok(s.parent.sbrk(3 * PAGE as i64).map(drop)?)),
    ("mlock2", &[Locked(FRESH + PAGE, 2), Owner(FRESH, 8), Come(FRESH + PAGE, 2)], |s| {
        Ok(s.parent.mlock2(FRESH + PAGE, 2 * PAGE, MlockFlags::empty())?)
    }),
    ("mlock2 on fault", &[Locked(FRESH, 4)], |s| {
        Ok(s.parent.mlock2(FRESH, 4 * PAGE, MlockFlags::ONFAULT)?)
    }),
    ("munlock in the middle", &[Locked(FRESH, 4), Owner(FRESH, 8), Come(FRESH, 4)], |s| {
        s.parent.mlock2(FRESH, 4 * PAGE, MlockFlags::empty())?;
        Ok(s.parent.munlock(FRESH + PAGE, PAGE)?)
    }),
    ("mlock", &[Locked(FRESH, 4), Owner(FRESH, 8), Come(FRESH, 4)], |s| {
        Ok(s.parent.mlock(FRESH, 4 * PAGE)?)
    }),
    (
        "mlock of a file",
        &[Locked(FRESH_COPY, 3), Owner(FRESH_COPY, 8), Come(FRESH_COPY, 3), Cached(NEW)],
        |s| Ok(s.parent.mlock(FRESH_COPY, 3 * PAGE)?),
    ),
    ("mlockall", &[], |s| Ok(s.parent.mlockall(MlockallFlags::CURRENT)?)),
    ("pinning", &[Owner(FRESH, 8)], |s| {
        let mut pinned = [Pfn::ZERO; 3];
        let (from, term) = (at(FRESH), PinTerm::Short);
        let got = s.parent.pin_pages(from, Access::Write, term, &mut pinned)?;
        s.vm.unpin_pages(&pinned[..got], PinUse::Dirtied);
        // Fewer than were wanted: the next call tells why.
        let rest =
            s.parent.pin_pages(at(FRESH + got as u64 % 3 * PAGE), Access::Write, term, &mut pinned[..1])?;
        s.vm.unpin_pages(&pinned[..rest], PinUse::Clean);
        Ok(())
    }),
    ("pinning what a child has too", &[], |s| {
        let mut pinned = [Pfn::ZERO];
        s.parent.pin_pages(at(ANON), Access::Write, PinTerm::Long, &mut pinned)?;
        s.vm.unpin_pages(&pinned, PinUse::Clean);
        Ok(())
    }),
    ("collapse", &[], |s| match advise(s, ANON, 8, Advice::Collapse) {
        // No huge page fits there.
        Err(Refusal::Other) => Ok(()),
        other => other,
    }),
    ("populating by reading", &[Cached(NEW)], |s| advise(s, FRESH_SHARED, 3, Advice::PopulateRead)),
    ("populating by writing", &[Owner(FRESH, 8), Come(FRESH, 4)], |s| {
        advise(s, FRESH, 4, Advice::PopulateWrite)
    }),
    ("populating copies", &[Copied(COPY, 3)], |s| advise(s, COPY, 3, Advice::PopulateWrite)),
    ("guards", &[Owner(FRESH, 8), MaybeGuard(FRESH, 8)], |s| advise(s, FRESH, 2, Advice::GuardInstall)),
    ("guards over pages", &[], |s| advise(s, ANON, 3, Advice::GuardInstall)),
    ("giving memory back", &[], |s| advise(s, ANON, 3, Advice::DontNeed)),
    ("a hole in shared memory", &[], |s| advise(s, SHMEM, 2, Advice::Remove)),
    ("reading ahead", &[], |s| advise(s, FRESH_SHARED, 4, Advice::WillNeed)),
    ("fork", &[Protected], |s| {
        drop(s.parent.fork()?);
        Ok(())
    }),
    ("a process", &[], |s| Ok(Process::new(s.vm).map(|process: Proc<'_, '_, '_>| drop(process))?)),
    ("exec", &[Protected], |s| {
        let process = s.parent.fork()?;
        let segment = Segment { addr: 0x40_0000, file_len: PAGE, mem_len: 3 * PAGE, offset: 0, prot: RW };
        let (file, segments) = (s.fresh.reference(), &[segment]);
        let program = Binary { file, kind: ElfType::Fixed, align: 0, segments };
        let top = 0x7fff_0000;
        let stack =
            StackImage { top, path_bytes: 8, arg_bytes: 8, env_bytes: 0, vector_bytes: 600, prot: RW };
        let image = ExecImage { program, interpreter: None, stack, seed: 0 };
        let old = vmas(&process);
        let done = process.exec(&image);
        assert_eq!(done.is_err(), vmas(&process) == old, "all of it or nothing");
        Ok(done.map(drop)?)
    }),
    ("exec of a file with an interpreter", &[Protected], |s| {
        let process = s.parent.fork()?;
        let open = |inode| s.vm.open_file(s.disk, inode, OpenMode::ReadOnly);
        let file = open(PROGRAM)?;
        let old = vmas(&process);
        let args: [&[u8]; 2] = [b"prog", &[b'x'; 5000]];
        let done = process.exec_elf(&file, &Program::new(ElfMachine::X86_64, &args), |_| {
            open(INTERPRETER).map_err(|error| error.errno())
        });
        assert_eq!(done.is_err(), vmas(&process) == old, "all of it or nothing");
        Ok(User::new(&process).fetch(done?.entry, &mut [0; 4])?)
    }),
    ("opening a file", &[], |s| Ok(s.vm.open_file(s.disk, PROGRAM, OpenMode::ReadOnly).map(drop)?)),
    ("a file in memory", &[], |s| {
        let file = s.vm.memory_file(3 * PAGE)?;
        let bytes = b"two pages";
        let written = file.write_at(PAGE - 1, bytes)?;
        // A short write has met with an error too, which the next call tells.
        Ok(file.write_at(PAGE - 1 + written as u64, &bytes[written..]).map(drop)?)
    }),
    ("msync", &[Synced(FILE), Cleaned(SHARED, 8)], |s| {
        Ok(s.parent.msync(SHARED, 4 * PAGE, MsyncFlags::SYNC)?)
    }),
    ("a read", &[], |s| {
        // A short read has met with an error too, which the next call tells.
        let read = s.fresh.read_at(100, &mut [0; 9000])?;
        if read == 9000 {
            Ok(())
        } else {
            s.fresh.read_at(100 + read as u64, &mut [0; 10]).map(drop).map_err(Refusal::from)
        }
    }),
    ("a write", &[Cached(NEW)], |s| {
        let written = s.fresh.write_at(100, &[1; 9000])?;
        if written == 9000 { Ok(()) } else { s.fresh.write_at(0, &[1; 10]).map(drop).map_err(Refusal::from) }
    }),
    ("a write beyond the end", &[], |s| Ok(s.fresh.write_at(6 * PAGE + 5, &[1; 100]).map(drop)?)),
    ("a read to user memory", &[Owner(FRESH, 8), Cached(NEW)], |s| {
        let read = s.fresh.read_to_user(s.parent, 100, at(FRESH + 100), 9000)?;
        let rest = 9000 - read;
        // A short one has met with an error too, which the next call tells.
        let again = s.fresh.read_to_user(s.parent, 100 + read, at(FRESH + 100 + read), rest);
        Ok(again.map(drop)?)
    }),
    ("a write from user memory", &[Cached(NEW)], |s| {
        let written = s.file.write_from_user(s.parent, 100, at(FRESH_COPY + 100), 9000)?;
        let (done, rest) = (100 + written, 9000 - written);
        Ok(s.file.write_from_user(s.parent, done, at(FRESH_COPY + done), rest).map(drop)?)
    }),
    ("truncation", &[Cut(FILE, PAGE / 2), Gone(SHARED + PAGE, 7), Gone(COPY + PAGE, 7)], |s| {
        Ok(s.file.truncate(PAGE / 2)?)
    }),
    ("extension", &[], |s| Ok(s.file.truncate(20 * PAGE)?)),
    ("write-back", &[Synced(FILE), Cleaned(SHARED, 8)], |s| {
        let mut job = WriteBack::new(s.file.id(), PgOff::ZERO, PgOff::MAX, SyncMode::Start);
        let _ = s.vm.cache().write_back(s.memory, &s.vm.pager().entries(), &mut job)?;
        while s.vm.cache().reap(s.memory) != 0 {}
        s.file.sync().map_err(Refusal::from)
    }),
];

fn digest(scene: &Scene<'_, '_, '_, '_>) -> Digest {
    Digest::new(scene.vm, [scene.parent, scene.child], &[scene.file.id(), scene.fresh.id()])
}

/// How a failure is arranged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fail {
    Allocation(u64),
    Store(u64, StoreError, Stage, Latency),
}

/// Runs a call while something fails; whether it went through all the same, and whether there was anything to fail.
fn run(name: &str, may: &[May], call: Call, fail: Fail) -> (Result<(), Refusal>, bool) {
    let machine = Machine::pc(8 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let disk = Disk::new(&machine);
    disk.put(1, &[5; 5 * PAGE as usize]);
    disk.put(2, &[6; 5 * PAGE as usize]);
    let program = Executable {
        kind: Kind::Anywhere,
        stack: Stack::Data,
        shape: Shape::CodeFirst,
        align: PAGE,
        interpreter: Some(b"/lib/ld.so\0".to_vec()),
    };
    disk.put(PROGRAM, &program.bytes());
    disk.put(INTERPRETER, &Executable { interpreter: None, ..program }.bytes());
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let free = || {
        memory.phys().drain_all(&memory.pin());
        memory.phys().free_pages_total()
    };
    let before = free();
    let result = {
        let file = vm.open_file(&disk, 1, OpenMode::ReadWrite).unwrap();
        let fresh = vm.open_file(&disk, 2, OpenMode::ReadWrite).unwrap();
        let parent = Process::new(&vm).unwrap();
        furnish(&parent, file.map_file(), fresh.map_file());
        let child = parent.fork().unwrap();
        let user = User::new(&parent);
        user.store(at(ANON + PAGE), b"mine").unwrap();
        let scene = Scene {
            memory: &memory,
            vm: &vm,
            parent: &parent,
            child: &child,
            file: &file,
            fresh: &fresh,
            disk: &disk,
        };
        vm.assert_sound(&[&parent, &child]);
        let state = digest(&scene);
        let operations = disk.operations();
        match fail {
            Fail::Allocation(nth) => memory.phys().set_fail_rule(&memory.pin(), FailRule::Nth(nth)),
            Fail::Store(after, error, stage, latency) => {
                disk.set_latency(latency);
                disk.fail(Failure { operation: None, after, times: 1, error, stage });
            }
        }
        let result = call(&scene);
        let reached = match fail {
            Fail::Allocation(nth) => memory.phys().fail_seen(&memory.pin()) >= nth,
            Fail::Store(after, ..) => disk.operations() - operations > after,
        };
        memory.phys().set_fail_rule(&memory.pin(), FailRule::Never);
        disk.clear_failures();
        let mut tallies = vec![FrameTally::new(); memory.phys().slots()];
        let checked = vm.check(&[&parent, &child], |_| 0, &mut tallies);
        checked.unwrap_or_else(|broken| panic!("{name}, {fail:?}: {broken}"));
        assert_eq!(machine.stale_translation(), None, "{name}, {fail:?}");
        if result.is_err() {
            let changes = state.changes(&digest(&scene), may);
            assert!(changes.is_empty(), "{name}, {fail:?}: {changes:#?}");
        }
        parent.deactivate();
        // Nothing stands in the way of trying again.
        if result.is_err() {
            let again = call(&scene);
            // An error of a write is told once to each who asks.
            let told = matches!(fail, Fail::Store(..)) && again == Err(Refusal::Store);
            assert!(again.is_ok() || told, "{name}, {fail:?}: again {again:?}");
            parent.deactivate();
        }
        (result, reached)
    };
    while vm.cache().reap(&memory) != 0 {}
    assert_eq!(free(), before, "{name}, {fail:?}: frames were lost");
    assert_eq!(vm.context().overcommit().committed(), 0, "{name}, {fail:?}");
    assert_eq!(vm.context().anon_vmas().used(), 0, "{name}, {fail:?}");
    machine.take_reports();
    result
}

fn furnish(process: &Proc<'_, '_, '_>, file: MapFile, fresh: MapFile) {
    let (private, shared) = (MapFlags::PRIVATE, MapFlags::SHARED);
    let map = |addr, flags, file| map_at(process, addr, 8, flags, file).unwrap();
    map(ANON, private, None);
    map(COPY, private, Some(file));
    map(SHARED, shared, Some(file));
    map(SHMEM, shared, None);
    map(FRESH, private, None);
    map(FRESH_COPY, private, Some(fresh));
    map(FRESH_SHARED, shared, Some(fresh));
    map(FRESH_SHMEM, shared, None);
    map(STACK, private | MapFlags::GROWSDOWN, None);
    process.with_mut(|mm| {
        let image = kernmm::mm::Image { start_brk: at(HEAP), brk: at(HEAP), ..*mm.image() };
        mm.set_image(image);
    });
    let user = User::new(process);
    for page in [ANON, ANON + PAGE, COPY, SHARED, SHMEM, STACK] {
        user.store(at(page), b"there").unwrap();
    }
    for page in [ANON + 2 * PAGE, COPY + PAGE, SHARED + PAGE] {
        user.load_byte(at(page)).unwrap();
    }
}

#[test]
fn a_failed_allocation_changes_nothing_and_loses_nothing() {
    let (mut refusals, mut tried) = (0, 0);
    for &(name, may, call) in CALLS {
        for nth in 1.. {
            let (result, reached) = run(name, may, call, Fail::Allocation(nth));
            assert!(matches!(result, Ok(()) | Err(Refusal::Memory)), "{name}, allocation {nth}: {result:?}");
            refusals += u32::from(result.is_err());
            tried += 1;
            if !reached {
                assert_eq!(result, Ok(()), "{name}");
                break;
            }
            assert!(nth < 200, "{name} allocates without end");
        }
    }
    println!("{tried} runs, {refusals} refusals");
    // Who has no lock has pages written and tries again, which goes well.
    assert!(refusals > 30, "{refusals} refusals for want of frames");
}

#[test]
fn a_failed_request_of_a_store_changes_nothing_and_loses_nothing() {
    let (mut refusals, mut tried) = (0, 0);
    let mut ways = Vec::new();
    for error in [StoreError::Io, StoreError::NoSpace, StoreError::Busy] {
        for stage in [Stage::Submission, Stage::Completion] {
            ways.extend([Latency::None, Latency::Polls(2)].map(|latency| (error, stage, latency)));
        }
    }
    for &(name, may, call) in CALLS {
        for &(error, stage, latency) in &ways {
            for nth in 0.. {
                let (result, reached) = run(name, may, call, Fail::Store(nth, error, stage, latency));
                let fine = matches!(result, Ok(()) | Err(Refusal::Store));
                // mlock tells of what cannot be read as of what cannot be had.
                let locks = name.starts_with("mlock") && result == Err(Refusal::Memory);
                assert!(fine || locks, "{name}, request {nth}, {error:?}: {result:?}");
                refusals += u32::from(result.is_err());
                tried += 1;
                if !reached {
                    assert_eq!(result, Ok(()), "{name}");
                    break;
                }
                assert!(nth < 200, "{name} asks the store without end");
            }
        }
    }
    println!("{tried} runs, {refusals} refusals");
    assert!(refusals > 20, "{refusals} refusals by the store");
}
