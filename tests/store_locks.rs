//! A store is asked with no lock held, whoever asks: while it works, another CPU changes the very VMA that the page is for, and maps and unmaps beside it.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use kernmm::addr::VirtAddr;
use kernmm::fault::{Access, PinTerm, PinUse};
use kernmm::flags::{Advice, MapFlags, MlockallFlags, MsyncFlags, Prot};
use kernmm::memory::{File, Memory, Process, User, Vm};
use kernmm::platform::hosted::{Disk, Machine};
use kernmm::platform::{BackingStore, Cluster, CpuId, IoState, StoreError, Submitted, Ticket};
use kernmm::syscall::{MmapArgs, OpenMode};

const PAGE: u64 = 4096;
/// Of each file.
const PAGES: u64 = 128;
const AT: u64 = 0x1000_0000;
const RW: Prot = Prot::READ.union(Prot::WRITE);
/// How long the other CPU may take. It takes all of this if it waits for a lock that the one in the store holds.
const PATIENCE: Duration = Duration::from_secs(3);

type Proc<'v, 'a, 'm> = Process<'v, 'a, Memory<'m, Machine>>;
type Open<'v, 'a, 'm> = File<'v, 'a, Memory<'m, Machine>>;

/// How a store does its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    AtOnce,
    /// When it is polled.
    Later,
}

/// Asks the other CPU to change things, and how to say that it has.
type Probe = Sender<Sender<()>>;

/// A disk that lets the other CPU work first, whatever it is asked for.
struct Watched<'d, 'm> {
    disk: &'d Disk<'m>,
    work: Work,
    probe: Mutex<Option<Probe>>,
    /// What it was asked for, and whether the other CPU was through in time.
    asked: Mutex<Vec<(&'static str, bool)>>,
}

impl Watched<'_, '_> {
    fn ask(&self, what: &'static str) {
        let probe = self.probe.lock().unwrap().clone();
        let Some(probe) = probe else { return };
        let (done, through) = channel();
        probe.send(done).unwrap();
        let free = through.recv_timeout(PATIENCE).is_ok();
        self.asked.lock().unwrap().push((what, free));
    }

    fn begun(&self, done: Result<Submitted, StoreError>) -> Result<Submitted, StoreError> {
        match self.work {
            Work::AtOnce => done,
            Work::Later => done.map(|_| Submitted::Pending(Ticket(1))),
        }
    }
}

impl BackingStore for Watched<'_, '_> {
    fn size(&self, inode: u64) -> Result<u64, StoreError> {
        self.disk.size(inode)
    }

    fn read(&self, inode: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError> {
        self.ask("read");
        self.begun(self.disk.read(inode, pages))
    }

    fn write(&self, inode: u64, pages: &Cluster<'_>, len: u64) -> Result<Submitted, StoreError> {
        self.ask("write");
        self.begun(self.disk.write(inode, pages, len))
    }

    fn barrier(&self, inode: u64) -> Result<Submitted, StoreError> {
        self.ask("barrier");
        self.disk.barrier(inode)
    }

    fn set_size(&self, inode: u64, size: u64) -> Result<(), StoreError> {
        self.ask("set_size");
        self.disk.set_size(inode, size)
    }

    fn poll(&self, _: Ticket) -> IoState {
        self.ask("poll");
        IoState::Ended(Ok(()))
    }
}

/// The process that calls are made on, and the file that is mapped at [`AT`] in it, all of it.
struct Scene<'s, 'v, 'a, 'm> {
    process: &'s Proc<'v, 'a, 'm>,
    file: &'s Open<'v, 'a, 'm>,
}

impl Scene<'_, '_, '_, '_> {
    fn load(&self, page: u64) {
        assert_eq!(User::new(self.process).load_byte(at(page)), Ok(7));
    }

    fn store(&self, page: u64) {
        User::new(self.process).store(at(page), &[9]).unwrap();
    }

    fn advise(&self, advice: Advice) {
        self.process.madvise(AT, PAGES * PAGE, advice as i32).unwrap();
    }
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::from(AT + page * PAGE)
}

fn args(addr: u64, flags: MapFlags, file: &Open<'_, '_, '_>) -> MmapArgs {
    let file = Ok(Some(file.map_file()));
    MmapArgs { addr, len: PAGES * PAGE, prot: RW, flags: flags | MapFlags::FIXED, file, offset: 0 }
}

/// What the other CPU does: it changes all VMAs of the process, so that it needs each one's lock, and maps and unmaps.
fn change(process: &Proc<'_, '_, '_>, requests: &Receiver<Sender<()>>) {
    while let Ok(done) = requests.recv() {
        let own = MapFlags::PRIVATE | MapFlags::ANONYMOUS;
        let args = MmapArgs { addr: 0, len: 4 * PAGE, prot: RW, flags: own, file: Ok(None), offset: 0 };
        let new = process.mmap(&args).unwrap().get();
        process.mprotect(new, PAGE, Prot::READ).unwrap();
        process.munmap(new, 4 * PAGE).unwrap();
        for advice in [Advice::DontFork, Advice::DoFork] {
            // What the call itself has unmapped is not there.
            let _ = process.madvise(AT, PAGES * PAGE, advice as i32);
        }
        // Who has given up hears it no more.
        let _ = done.send(());
    }
}

/// Runs `call` and answers what the store was asked for.
fn watched(
    work: Work,
    sharing: MapFlags,
    prepare: impl FnOnce(&Scene<'_, '_, '_, '_>),
    call: impl FnOnce(&Scene<'_, '_, '_, '_>, &dyn Fn()),
) -> Vec<&'static str> {
    let machine = Machine::pc(16 << 20).cpus(2).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let disk = Disk::new(&machine);
    disk.put(1, &[7; (PAGES * PAGE) as usize]);
    let store = Watched { disk: &disk, work, probe: Mutex::new(None), asked: Mutex::new(Vec::new()) };
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let file = vm.open_file(&store, 1, OpenMode::ReadWrite).unwrap();
    let process: Proc<'_, '_, '_> = Process::new(&vm).unwrap();
    process.mmap(&args(AT, sharing, &file)).unwrap();
    let scene = Scene { process: &process, file: &file };
    prepare(&scene);
    let (probe, requests) = channel();
    *store.probe.lock().unwrap() = Some(probe);
    thread::scope(|scope| {
        let (machine, process) = (&machine, &process);
        scope.spawn(move || {
            let _cpu = machine.cpu(CpuId(1)).unwrap();
            change(process, &requests);
        });
        call(&scene, &|| while vm.reap() != 0 {});
        // The other CPU's work is over with the last of these.
        *store.probe.lock().unwrap() = None;
    });
    drop(process);
    drop(file);
    while vm.reap() != 0 {}
    let asked = std::mem::take(&mut *store.asked.lock().unwrap());
    let (what, in_time): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
    assert!(
        in_time.iter().all(|&free| free),
        "a lock was held: {:?}",
        what.iter().zip(in_time).collect::<Vec<_>>()
    );
    what
}

/// The same, by stores of both kinds, for calls that read.
fn reads(sharing: MapFlags, prepare: impl Fn(&Scene<'_, '_, '_, '_>), call: impl Fn(&Scene<'_, '_, '_, '_>)) {
    for work in [Work::AtOnce, Work::Later] {
        let asked = watched(work, sharing, &prepare, |scene, reap| {
            call(scene);
            reap();
        });
        assert!(asked.contains(&"read"), "{work:?}: nothing was read: {asked:?}");
        assert_eq!(asked.contains(&"poll"), work == Work::Later, "{asked:?}");
    }
}

fn nothing(_: &Scene<'_, '_, '_, '_>) {}

#[test]
fn a_load_reads_with_no_lock_held() {
    reads(MapFlags::SHARED, nothing, |scene| scene.load(40));
    reads(MapFlags::PRIVATE, nothing, |scene| scene.load(40));
}

#[test]
fn a_store_to_a_shared_or_a_private_mapping_reads_with_no_lock_held() {
    reads(MapFlags::SHARED, nothing, |scene| scene.store(40));
    reads(MapFlags::PRIVATE, nothing, |scene| scene.store(40));
    // With an owner of anonymous pages the VMA alone is locked.
    reads(MapFlags::PRIVATE, |scene| scene.store(1), |scene| scene.store(100));
}

#[test]
fn read_ahead_begun_by_a_page_that_is_there_reads_with_no_lock_held() {
    let straight_through = |scene: &Scene<'_, '_, '_, '_>| {
        scene.advise(Advice::Sequential);
        scene.load(0);
    };
    // These are there, and one of them bears the mark.
    reads(MapFlags::SHARED, straight_through, |scene| (1..=16).for_each(|page| scene.load(page)));
}

#[test]
fn pages_that_are_wanted_before_they_are_touched_are_read_with_no_lock_held() {
    reads(MapFlags::SHARED, nothing, |scene| {
        let populate = args(AT, MapFlags::SHARED | MapFlags::POPULATE, scene.file);
        scene.process.mmap(&populate).map(drop).unwrap();
    });
    reads(MapFlags::SHARED, nothing, |scene| scene.advise(Advice::PopulateRead));
    reads(MapFlags::PRIVATE, nothing, |scene| scene.advise(Advice::PopulateWrite));
    reads(MapFlags::SHARED, nothing, |scene| scene.advise(Advice::WillNeed));
    reads(MapFlags::PRIVATE, nothing, |scene| scene.process.mlock(AT, PAGES * PAGE).unwrap());
    reads(MapFlags::SHARED, nothing, |scene| scene.process.mlockall(MlockallFlags::CURRENT).unwrap());
}

#[test]
fn a_call_that_makes_locked_memory_writable_reads_with_no_lock_held() {
    let locked = |scene: &Scene<'_, '_, '_, '_>| {
        scene.process.mprotect(AT, PAGES * PAGE, Prot::NONE).unwrap();
        // Nobody may touch it, so nothing is read.
        scene.process.mlock(AT, PAGES * PAGE).unwrap_err();
    };
    reads(MapFlags::PRIVATE, locked, |scene| {
        scene.process.mprotect(AT, PAGES * PAGE, RW).unwrap();
        assert_eq!(scene.process.with(|mm| mm.shared().resident()), PAGES, "locked memory is there");
    });
}

#[test]
fn the_kernel_at_a_process_s_memory_reads_with_no_lock_held() {
    reads(MapFlags::SHARED, nothing, |scene| {
        let mut byte = [0];
        scene.process.copy_from_user(at(3), &mut byte).unwrap();
        assert_eq!(byte, [7]);
    });
    reads(MapFlags::PRIVATE, nothing, |scene| scene.process.copy_to_user(at(3), &[9]).unwrap());
    reads(MapFlags::SHARED, nothing, |scene| {
        let mut pinned = [kernmm::addr::Pfn::ZERO; 2];
        let count = scene.process.pin_pages(at(3), Access::Write, PinTerm::Short, &mut pinned);
        assert_eq!(count, Ok(2));
        assert_eq!(scene.process.vm().unpin_pages(&pinned, PinUse::Clean), 2);
    });
}

#[test]
fn what_was_written_goes_to_its_store_with_no_lock_held() {
    type Call<'c> = &'c dyn Fn(&Scene<'_, '_, '_, '_>);
    let calls: [(&str, Call<'_>); 4] = [
        ("write", &|scene| scene.process.msync(AT, PAGES * PAGE, MsyncFlags::SYNC).unwrap()),
        ("barrier", &|scene| scene.file.sync().unwrap()),
        ("set_size", &|scene| scene.file.truncate(50 * PAGE + 1).unwrap()),
        ("set_size", &|scene| scene.file.truncate(2 * PAGES * PAGE).unwrap()),
    ];
    for work in [Work::AtOnce, Work::Later] {
        for (what, call) in calls {
            let written =
                |scene: &Scene<'_, '_, '_, '_>| [3, 4, 80].into_iter().for_each(|page| scene.store(page));
            let asked = watched(work, MapFlags::SHARED, written, |scene, _| call(scene));
            assert!(asked.contains(&what), "{asked:?}");
        }
        let asked = watched(
            work,
            MapFlags::SHARED,
            |scene| scene.store(3),
            |scene, reap| {
                scene.process.munmap(AT, PAGES * PAGE).unwrap();
                reap();
                scene.file.sync().unwrap();
            },
        );
        assert!(asked.contains(&"write"), "{asked:?}");
    }
}
