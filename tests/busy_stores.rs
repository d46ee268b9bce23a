//! Stores that are too busy, and stores that never answer: nobody is told that something is done which is not, and nobody waits for another store.

mod scene;

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use kernmm::cache::{Step, SyncMode, WriteBack};
use kernmm::memory::{Memory, Vm};
use kernmm::platform::hosted::{Disk, Failure, Latency, Machine, Operation, Stage, Unsafe};
use kernmm::platform::{BackingStore, Cluster, CpuId, IoState, StoreError, Submitted, Ticket};
use kernmm::syscall::OpenMode;
use scene::*;

/// A disk that is too busy for a write, once, and says so when it is told to.
struct Refusing<'d, 'm> {
    disk: &'d Disk<'m>,
    /// How to tell that the write has come, and what to wait for then.
    refusal: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

impl BackingStore for Refusing<'_, '_> {
    fn size(&self, inode: u64) -> Result<u64, StoreError> {
        self.disk.size(inode)
    }

    fn read(&self, inode: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError> {
        self.disk.read(inode, pages)
    }

    fn write(&self, inode: u64, pages: &Cluster<'_>, len: u64) -> Result<Submitted, StoreError> {
        let refusal = self.refusal.lock().unwrap().take();
        let Some((come, answer)) = refusal else { return self.disk.write(inode, pages, len) };
        come.send(()).unwrap();
        answer.recv().unwrap();
        Err(StoreError::Busy)
    }

    fn barrier(&self, inode: u64) -> Result<Submitted, StoreError> {
        self.disk.barrier(inode)
    }

    fn set_size(&self, inode: u64, size: u64) -> Result<(), StoreError> {
        self.disk.set_size(inode, size)
    }

    fn poll(&self, ticket: Ticket) -> IoState {
        self.disk.poll(ticket)
    }
}

/// What a power cut leaves now of the first byte of a file.
fn lasts(disk: &Disk<'_>, inode: u64) -> u8 {
    disk.crash_image(disk.log_len(), Unsafe::Lost).unwrap().contents(inode).unwrap()[0]
}

/// Fails if what another's write was refused is not written again by who has waited for that write.
#[test]
fn a_sync_that_waits_for_the_flushers_write_writes_the_page_itself_when_the_store_was_too_busy() {
    for latency in [Latency::None, Latency::Polls(2)] {
        let machine = Machine::pc(16 << 20).cpus(2).build().unwrap();
        let _cpu = machine.cpu(CpuId::BOOT).unwrap();
        let disk = Disk::new(&machine);
        disk.put(INODE, b"o");
        disk.set_latency(latency);
        disk.start_log();
        let ((come, comes), (answers, answer)) = (channel(), channel());
        let store = Refusing { disk: &disk, refusal: Mutex::new(Some((come, answer))) };
        let memory = Memory::on(&machine).unwrap();
        let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
        let file = vm.open_file(&store, INODE, OpenMode::ReadWrite).unwrap();
        file.write_at(0, b"n").unwrap();
        thread::scope(|scope| {
            let (vm, disk, file, machine) = (&vm, &disk, file.id(), &machine);
            scope.spawn(move || {
                let _cpu = machine.cpu(CpuId(1)).unwrap();
                comes.recv().unwrap();
                let mut job = WriteBack::all(file, SyncMode::Wait);
                let mut sync =
                    || vm.cache().write_back(vm.source(), &vm.pager().entries(), &mut job).unwrap();
                let first = sync();
                assert!(matches!(first, Step::Wait(_)), "it has to wait for the other's write");
                answers.send(()).unwrap();
                while let Step::Wait(ticket) = sync() {
                    vm.cache().wait(vm.source(), ticket);
                }
                assert_eq!(lasts(disk, INODE), b'n');
            });
            vm.write_back(8);
        });
        assert_eq!(vm.cache().stat(vm.source(), file.id()).unwrap().dirty, 0);
        file.sync().unwrap();
    }
}

/// Fails if a write or a barrier that ends with [`StoreError::Busy`] counts as done.
#[test]
fn what_ends_because_the_store_is_too_busy_is_asked_for_again() {
    for operation in [Operation::Read, Operation::Write, Operation::Barrier] {
        for (latency, times) in [(Latency::None, 1), (Latency::Polls(2), 1), (Latency::Polls(1), 3)] {
            on_machine(|vm, disk| {
                disk.set_latency(latency);
                disk.start_log();
                let (error, stage) = (StoreError::Busy, Stage::Completion);
                let failure = Failure { operation: Some(operation), after: 0, times, error, stage };
                disk.fail(failure);
                let file = open(vm, disk);
                let mut byte = [0];
                assert_eq!((file.read_at(PAGE, &mut byte), byte[0]), (Ok(1), content(PAGE)));
                file.write_at(0, b"\0").unwrap();
                assert_eq!(file.sync(), Ok(()));
                assert_eq!(lasts(disk, INODE), 0, "{operation:?} {latency:?}");
                // Nobody has it open any more when the flusher writes it.
                file.write_at(0, b"\xff").unwrap();
                drop(file);
                disk.fail(failure);
                for _ in 0..20 {
                    vm.reap();
                }
                assert_eq!(lasts(disk, INODE), 0xff, "{operation:?} {latency:?}");
            });
        }
    }
}

/// Fails if a sync takes the refusal of its own write for another's.
#[test]
fn a_sync_whose_own_write_was_refused_does_not_begin_again() {
    on_machine(|vm, disk| {
        disk.set_latency(Latency::Polls(2));
        let file = open(vm, disk);
        assert_eq!([0, 2].map(|page| file.write_at(page * PAGE, b"x")), [Ok(1), Ok(1)]);
        let (operation, error, stage) = (Some(Operation::Write), StoreError::Busy, Stage::Submission);
        disk.fail(Failure { operation, after: 1, times: 1, error, stage });
        let mut job = WriteBack::all(file.id(), SyncMode::Wait);
        let mut sync = || vm.cache().write_back(vm.source(), &vm.pager().entries(), &mut job).unwrap();
        assert!(matches!(sync(), Step::Wait(_)), "the second page is to be written yet");
        // The first one is somebody else's to write.
        file.write_at(0, b"y").unwrap();
        while let Step::Wait(ticket) = sync() {
            vm.cache().wait(vm.source(), ticket);
        }
        assert_eq!(vm.cache().stat(vm.source(), file.id()).unwrap().dirty, 1);
        assert_eq!(disk.files().contents(INODE).unwrap()[2 * PAGE as usize], b'x');
    });
}
