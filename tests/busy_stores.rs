//! Stores that are too busy, and stores that never answer: nobody is told that something is done which is not, and nobody waits for another store.

mod scene;

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use kernmm::addr::PgOff;
use kernmm::cache::{Fetched, IoTicket, MAX_IOS, Pattern, ReadAhead, Step, SyncMode, Wanted, WriteBack};
use kernmm::memory::{File, Memory, Vm};
use kernmm::phys::PageSource;
use kernmm::platform::hosted::{Disk, Failure, Latency, Machine, Operation, Room, Stage, Unsafe};
use kernmm::platform::{BackingStore, Cluster, CpuId, IoState, StoreError, Submitted, Ticket};
use kernmm::syscall::OpenMode;
use scene::*;

/// How to tell that a request has come, and what to wait for then.
type Meeting = Mutex<Option<(Sender<()>, Receiver<()>)>>;

/// A disk that is too busy for a write, once, and says so when it is told to; or that says as late how long a file was.
struct Refusing<'d, 'm> {
    disk: &'d Disk<'m>,
    refusal: Meeting,
    size: Meeting,
}

/// Meets another CPU, once; whether it did.
fn meet(meeting: &Meeting) -> bool {
    let Some((come, answer)) = meeting.lock().unwrap().take() else { return false };
    come.send(()).unwrap();
    answer.recv().unwrap();
    true
}

impl BackingStore for Refusing<'_, '_> {
    fn size(&self, inode: u64) -> Result<u64, StoreError> {
        let size = self.disk.size(inode);
        meet(&self.size);
        size
    }

    fn read(&self, inode: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError> {
        self.disk.read(inode, pages)
    }

    fn write(&self, inode: u64, pages: &Cluster<'_>, len: u64) -> Result<Submitted, StoreError> {
        if meet(&self.refusal) { Err(StoreError::Busy) } else { self.disk.write(inode, pages, len) }
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
        let store =
            Refusing { disk: &disk, refusal: Mutex::new(Some((come, answer))), size: Mutex::default() };
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

/// Syncs a file step by step, with `meanwhile` before each wait; how many waits there were.
fn sync_beside(
    vm: &Vm<'_, Mem<'_>>,
    file: &File<'_, '_, Mem<'_>>,
    mut meanwhile: impl FnMut(u64),
    mut wait: impl FnMut(IoTicket),
) -> u64 {
    let mut job = WriteBack::all(file.id(), SyncMode::Wait);
    for round in 1..20 {
        match vm.cache().write_back(vm.source(), &vm.pager().entries(), &mut job).unwrap() {
            Step::Done => return round - 1,
            Step::Wait(ticket) => {
                meanwhile(round);
                wait(ticket);
            }
        }
    }
    panic!("others keep the sync from its end");
}

/// Fails if a sync begins again because another's write of the file was refused.
#[test]
fn a_sync_ends_whatever_writes_of_later_pages_are_refused_meanwhile() {
    on_machine(|vm, disk| {
        disk.set_latency(Latency::Polls(2));
        disk.start_log();
        let file = open(vm, disk);
        file.write_at(0, b"x").unwrap();
        let (operation, error, stage) = (Some(Operation::Write), StoreError::Busy, Stage::Submission);
        let others = |round| {
            file.write_at(2 * round * PAGE, b"y").unwrap();
            disk.fail(Failure { operation, after: 0, times: 1, error, stage });
            vm.write_back(8);
        };
        sync_beside(vm, &file, others, |ticket| vm.cache().wait(vm.source(), ticket));
        assert_eq!(lasts(disk, INODE), b'x');
        disk.clear_failures();
    });
}

/// Fails if a sync goes on to what was appended after it began, and writes or waits for it.
#[test]
fn a_sync_ends_though_another_appends_all_the_time() {
    on_machine(|vm, disk| {
        disk.set_latency(Latency::Polls(2));
        let file = open(vm, disk);
        let page = |page: u64| assert_eq!(file.write_at(page * PAGE, b"x"), Ok(1));
        let sync = |meanwhile: &dyn Fn(u64)| {
            page(0);
            page(2);
            sync_beside(vm, &file, meanwhile, |ticket| vm.cache().wait(vm.source(), ticket));
            assert_eq!([0, 2 * PAGE].map(|at| disk.files().contents(INODE).unwrap()[at as usize]), [b'x'; 2]);
        };
        // The disk takes one request at a time: what is appended is there before the last page of the sync is begun.
        disk.set_depth(Some(1));
        sync(&|round| (0..2).for_each(|one| page(2 + 4 * round + 2 * one)));
        disk.set_depth(None);
        // What is appended is being written by another when the sync comes to wait for writes.
        sync(&|round| {
            page(100 + 2 * round);
            vm.write_back(8);
        });
    });
}

/// Fails if a sync waits for each write of a page that is written to all the time.
#[test]
fn a_sync_ends_though_a_page_is_always_dirty_and_being_written() {
    with_two_disks(|vm, [disk, _], [file, _]| {
        disk.start_log();
        let dirty_and_written = |byte: u8| {
            file.write_at(0, &[byte; PAGE as usize]).unwrap();
            vm.write_back(8);
            file.write_at(0, &[byte + 1; PAGE as usize]).unwrap();
        };
        dirty_and_written(10);
        let wait = |ticket| {
            disk.advance(10);
            assert!(vm.io_done(ticket));
            dirty_and_written(20);
        };
        sync_beside(vm, file, |_| (), wait);
        assert!(lasts(disk, INODE) >= 11, "what was dirty when the sync began is not safe");
    });
}

/// Fails if who makes a file shorter waits for room to write what is gone by that.
#[test]
fn a_write_that_was_refused_is_over_when_its_pages_are_gone() {
    on_machine(|vm, disk| {
        let file = open(vm, disk);
        file.write_at(2 * PAGE, &[9; 2 * PAGE as usize]).unwrap();
        let (operation, error, stage) = (Some(Operation::Write), StoreError::Busy, Stage::Submission);
        disk.fail(Failure { operation, after: 0, times: u64::MAX, error, stage });
        assert_eq!(vm.write_back(8), 2);
        let stat = || vm.cache().stat(vm.source(), file.id()).unwrap();
        assert_eq!((stat().dirty, stat().writeback), (0, 2));
        vm.assert_sound::<spin::RwLock<()>>(&[]);
        let truncate =
            |size| vm.cache().truncate(vm.source(), &vm.pager().entries(), file.id(), size).unwrap();
        let Step::Wait(ticket) = truncate(2 * PAGE) else { panic!("the pages are being written") };
        assert!(vm.io_done(ticket));
        assert_eq!(truncate(2 * PAGE), Step::Done);
        assert_eq!((stat().writeback, disk.files().size(INODE)), (0, Some(2 * PAGE)));

        // What is left of one that was refused is written.
        file.write_at(0, &[8; 2 * PAGE as usize]).unwrap();
        assert_eq!(vm.write_back(8), 2);
        let Step::Wait(ticket) = truncate(5) else { panic!("the pages are being written") };
        assert!(!vm.io_done(ticket));
        disk.clear_failures();
        disk.record_requests();
        assert!(vm.io_done(ticket));
        let written = disk.take_requests();
        assert_eq!(
            written.iter().map(|request| (request.operation, request.pages)).collect::<Vec<_>>(),
            [(Operation::Write, 1)]
        );
        assert_eq!(truncate(5), Step::Done);
        assert_eq!(disk.files().contents(INODE).unwrap(), [8; 5]);
    });
}

/// Two disks of a machine that end nothing before [`Disk::advance`], with a file of many pages each, open.
fn with_two_disks(
    test: impl for<'v, 'a, 'm> FnOnce(&'v Vm<'a, Mem<'m>>, [&'a Disk<'m>; 2], [&File<'v, 'a, Mem<'m>>; 2]),
) {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let disks = [Disk::new(&machine), Disk::new(&machine)];
    disks.iter().for_each(|disk| disk.put(INODE, &[7; (MANY * PAGE) as usize]));
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    disks.iter().for_each(|disk| disk.set_latency(Latency::Ticks(10)));
    let files = disks.each_ref().map(|disk| vm.open_file(disk, INODE, OpenMode::ReadWrite).unwrap());
    test(&vm, disks.each_ref(), files.each_ref());
    drop(files);
    // What a store has had no room for yet is begun by the next call.
    while vm.reap() != 0 || vm.cache().pages(&memory) != 0 {
        disks.iter().for_each(|disk| disk.advance(10));
    }
    vm.assert_sound::<spin::RwLock<()>>(&[]);
}

/// More than there are places for reads.
const MANY: u64 = MAX_IOS as u64 + 8;

/// Asks for a page, alone; `None` if it is there.
fn ask(vm: &Vm<'_, Mem<'_>>, file: &File<'_, '_, Mem<'_>>, page: u64) -> Option<IoTicket> {
    let (page, mut state) = (PgOff::new(page).unwrap(), ReadAhead::new());
    match vm.cache().fetch(vm.source(), file.id(), Wanted::page(page, Pattern::Random), &mut state).unwrap() {
        Fetched::Wait(ticket) => Some(ticket),
        Fetched::Ready { pfn, .. } => {
            vm.source().put_page(pfn).unwrap();
            None
        }
    }
}

/// Fails if a read that finds no place waits for whatever has the first one.
#[test]
fn of_more_reads_than_there_are_places_those_that_found_none_wait_for_no_other_store() {
    with_two_disks(|vm, [_, disk], [stalled, file]| {
        let first = ask(vm, stalled, 0).unwrap();
        let tickets: Vec<_> = (0..MANY).map(|page| ask(vm, file, page).unwrap()).collect();
        assert!(tickets.iter().all(|&ticket| !vm.io_done(ticket)));
        disk.advance(10);
        assert!(vm.io_done(tickets[MANY as usize - 1]), "places are free");
        for page in 0..MANY {
            while let Some(ticket) = ask(vm, file, page) {
                disk.advance(10);
                assert!(vm.io_done(ticket), "page {page}");
            }
        }
        assert!(!vm.io_done(first));
    });
}

#[test]
fn a_store_that_never_answers_leaves_places_for_the_others() {
    with_two_disks(|vm, [_, disk], [stalled, file]| {
        for page in 0..MANY {
            stalled.write_at(page * PAGE, &[8; PAGE as usize]).unwrap();
            vm.write_back(u32::MAX);
            ask(vm, stalled, page);
        }
        for page in 0..MANY {
            let ticket = ask(vm, file, page).unwrap();
            disk.advance(10);
            assert!(vm.io_done(ticket));
            assert_eq!(ask(vm, file, page), None);
        }
    });
}

/// What a sync waits for, which is not over yet.
fn wait_of(vm: &Vm<'_, Mem<'_>>, job: &mut WriteBack) -> IoTicket {
    match vm.cache().write_back(vm.source(), &vm.pager().entries(), job).unwrap() {
        Step::Wait(ticket) => ticket,
        Step::Done => panic!("there is nothing to wait for"),
    }
}

/// Fails if who finds a store too busy waits for the first read or write of all.
#[test]
fn who_finds_a_store_too_busy_waits_for_any_request_of_this_one() {
    with_two_disks(|vm, [_, disk], [stalled, file]| {
        let elsewhere = ask(vm, stalled, 0).unwrap();
        // One that takes long, and one that does not.
        disk.set_latency(Latency::Ticks(1000));
        let long = ask(vm, file, 0).unwrap();
        disk.set_latency(Latency::Ticks(10));
        disk.set_depth(Some(2));
        disk.set_room(Room::WhenDirtied);
        let over = |ticket| {
            let before = vm.io_done(ticket);
            disk.advance(10);
            (before, vm.io_done(ticket))
        };

        assert!(ask(vm, file, 1).is_some());
        let room = vm.cache().prepare_write(vm.source(), file.id(), PgOff::new(9).unwrap()).unwrap();
        assert_eq!(over(room.unwrap()), (false, true), "to store to a page");

        file.write_at(5 * PAGE, &[9; PAGE as usize]).unwrap();
        assert!(ask(vm, file, 2).is_some());
        let mut job = WriteBack::all(file.id(), SyncMode::Wait);
        assert_eq!(over(wait_of(vm, &mut job)), (false, true), "to write");
        assert_eq!(over(wait_of(vm, &mut job)), (false, true), "until it is written");
        assert!(ask(vm, file, 3).is_some());
        // What was refused comes by itself, whoever waits for it: it is submitted when another request has ended.
        let barrier = wait_of(vm, &mut job);
        assert_eq!(over(barrier), (false, false), "to make it last");
        assert_eq!(over(barrier), (false, true), "to make it last");
        assert!(ask(vm, file, 4).is_some());
        let refused = ask(vm, file, 6).unwrap();
        assert!(!vm.io_done(refused));
        disk.advance(10);
        assert!(!vm.io_done(refused), "it was submitted by that");
        disk.advance(10);
        assert!(vm.io_done(refused));
        assert!(!vm.io_done(elsewhere) && !vm.io_done(long));
        disk.set_depth(None);
        disk.advance(1000);
    });
}

/// Fails if a length counts that the store has told before the file was opened, made longer and closed by another.
#[test]
fn a_file_that_another_opens_makes_longer_and_closes_meanwhile_has_its_new_length() {
    let machine = Machine::pc(16 << 20).cpus(2).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let disk = Disk::new(&machine);
    disk.put(INODE, b"old");
    let ((come, comes), (answers, answer)) = (channel(), channel());
    let store = Refusing { disk: &disk, refusal: Mutex::default(), size: Mutex::new(Some((come, answer))) };
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let open = || vm.open_file(&store, INODE, OpenMode::ReadWrite).unwrap();
    thread::scope(|scope| {
        let (vm, machine, open) = (&vm, &machine, &open);
        scope.spawn(move || {
            let _cpu = machine.cpu(CpuId(1)).unwrap();
            comes.recv().unwrap();
            let file = open();
            assert_eq!(file.size(), Ok(3));
            file.write_at(PAGE, b"new").unwrap();
            file.sync().unwrap();
            drop(file);
            assert_eq!(vm.reap(), 0);
            answers.send(()).unwrap();
        });
        let (file, mut bytes) = (open(), [0; 5]);
        assert_eq!(file.size(), Ok(PAGE + 3));
        assert_eq!((file.read_at(PAGE - 2, &mut bytes), &bytes), (Ok(5), b"\0\0new"));
    });
    vm.assert_sound::<spin::RwLock<()>>(&[]);
}
