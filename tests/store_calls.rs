//! What a store is asked, and from where: a file is held once, however many open it, and the stack is no deeper for many requests.

mod scene;

use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use kernmm::addr::PgOff;
use kernmm::cache::{CacheError, Fetched, IoTicket, Pattern, ReadAhead, Wanted};
use kernmm::memory::{File, Memory, Vm};
use kernmm::phys::PageSource;
use kernmm::platform::hosted::{Disk, Machine};
use kernmm::platform::{BackingStore, Cluster, CpuId, IoState, StoreError, Submitted, Ticket};
use kernmm::syscall::OpenMode;
use scene::*;

/// A disk that counts how often its files are held and released, and tells late how long one is, once.
struct Counting<'d, 'm> {
    disk: &'d Disk<'m>,
    /// How to tell that this was asked, and what to wait for then.
    size: Mutex<Option<(Sender<()>, Receiver<()>)>>,
    held: AtomicU32,
    released: AtomicU32,
    refuses: AtomicBool,
}

impl Counting<'_, '_> {
    /// How often the file is held and was not released.
    fn held(&self) -> u32 {
        self.held.load(SeqCst) - self.released.load(SeqCst)
    }
}

impl BackingStore for Counting<'_, '_> {
    fn size(&self, inode: u64) -> Result<u64, StoreError> {
        // Not locked while it waits: others are asked the same.
        let meeting = self.size.lock().unwrap().take();
        if let Some((come, answer)) = meeting {
            come.send(()).unwrap();
            answer.recv().unwrap();
        }
        assert_ne!(self.held(), 0, "it is held when it is asked how long it is");
        if self.refuses.load(SeqCst) { Err(StoreError::Io) } else { self.disk.size(inode) }
    }

    fn hold(&self, _: u64) {
        self.held.fetch_add(1, SeqCst);
    }

    fn release(&self, _: u64) {
        self.released.fetch_add(1, SeqCst);
    }

    fn read(&self, inode: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError> {
        self.disk.read(inode, pages)
    }

    fn write(&self, inode: u64, pages: &Cluster<'_>, len: u64) -> Result<Submitted, StoreError> {
        self.disk.write(inode, pages, len)
    }

    fn set_size(&self, inode: u64, size: u64) -> Result<(), StoreError> {
        self.disk.set_size(inode, size)
    }
}

/// Fails if who opens a file before its length is known holds it for good, or who opens it at all, or nobody does.
#[test]
fn a_file_is_held_once_however_many_have_it_open_and_released_in_the_end() {
    let machine = Machine::pc(16 << 20).cpus(2).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let disk = Disk::new(&machine);
    disk.put(INODE, b"old");
    let ((come, comes), (answers, answer)) = (channel(), channel());
    let store = Counting {
        disk: &disk,
        size: Mutex::new(Some((come, answer))),
        held: AtomicU32::new(0),
        released: AtomicU32::new(0),
        refuses: AtomicBool::new(false),
    };
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let open = || vm.open_file(&store, INODE, OpenMode::ReadWrite);
    thread::scope(|scope| {
        let (machine, store, open) = (&machine, &store, &open);
        scope.spawn(move || {
            let _cpu = machine.cpu(CpuId(1)).unwrap();
            comes.recv().unwrap();
            // The first asks how long the file is, and has not been told.
            drop((open().unwrap(), open().unwrap()));
            assert_eq!(store.held(), 1);
            answers.send(()).unwrap();
        });
        let first = open().unwrap();
        let second = open().unwrap();
        assert_eq!(store.held(), 1);
        drop(first);
        second.write_at(0, b"n").unwrap();
        drop(second);
    });
    while vm.reap() != 0 {}
    assert_eq!(store.held(), 0);
    drop(open().unwrap());
    assert_eq!(store.held(), 0);
    store.refuses.store(true, SeqCst);
    assert_eq!(open().err(), Some(CacheError::Io));
    assert_eq!(store.held(), 0, "one that could not be opened is let go of");
}

/// A store that takes one request at a time, or none, and notes how deep in the stack it is asked.
struct Deep {
    /// The request that it has; 0 if it has none.
    under_way: AtomicU64,
    /// How often it was asked after that.
    polls: AtomicU32,
    takes: AtomicU32,
    asked: AtomicU64,
    /// The lowest address of the stack since this was last told.
    lowest: AtomicUsize,
}

/// How a [`Deep`] store answers.
#[derive(Clone, Copy, Debug)]
enum Takes {
    Nothing,
    /// It ends one when it is asked after it for the third time.
    One,
    /// It does each before it answers.
    All,
}

impl Deep {
    fn new(takes: Takes) -> Self {
        let (under_way, asked, lowest) = (AtomicU64::new(0), AtomicU64::new(0), AtomicUsize::new(usize::MAX));
        Self { under_way, polls: AtomicU32::new(0), takes: AtomicU32::new(takes as u32), asked, lowest }
    }

    fn takes(&self, takes: Takes) {
        self.takes.store(takes as u32, SeqCst);
    }

    fn note(&self) {
        let here = 0_u8;
        self.lowest.fetch_min(std::hint::black_box(&raw const here).addr(), SeqCst);
    }

    fn ask(&self) -> Result<Submitted, StoreError> {
        self.note();
        let takes = self.takes.load(SeqCst);
        if takes == Takes::All as u32 {
            return Ok(Submitted::Done);
        }
        let ticket = self.asked.fetch_add(1, SeqCst) + 1;
        let is_free = || self.under_way.compare_exchange(0, ticket, SeqCst, SeqCst).is_ok();
        if takes == Takes::One as u32 && is_free() {
            Ok(Submitted::Pending(Ticket(ticket)))
        } else {
            Err(StoreError::Busy)
        }
    }

    /// How many bytes of the stack `work` takes until the store is asked, at most.
    fn depth(&self, work: impl FnOnce()) -> usize {
        let here = 0_u8;
        self.lowest.store(usize::MAX, SeqCst);
        work();
        let lowest = self.lowest.load(SeqCst);
        assert_ne!(lowest, usize::MAX, "the store was not asked");
        std::hint::black_box(&raw const here).addr() - lowest
    }
}

impl BackingStore for Deep {
    fn size(&self, _: u64) -> Result<u64, StoreError> {
        Ok(40 * PAGE)
    }

    fn read(&self, _: u64, _: &Cluster<'_>) -> Result<Submitted, StoreError> {
        self.ask()
    }

    fn write(&self, _: u64, _: &Cluster<'_>, _: u64) -> Result<Submitted, StoreError> {
        self.ask()
    }

    fn set_size(&self, _: u64, _: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn poll(&self, ticket: Ticket) -> IoState {
        self.note();
        assert_eq!(self.under_way.load(SeqCst), ticket.0, "asked after what is not under way");
        if self.polls.fetch_add(1, SeqCst) % 3 != 2 {
            return IoState::Pending;
        }
        self.under_way.store(0, SeqCst);
        IoState::Ended(Ok(()))
    }
}

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

/// How deep the stack is at most when `count` reads, which their store has refused, are asked after, while it takes some again.
fn depth_of_reads(count: u64, takes: Takes) -> usize {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let store = Deep::new(Takes::Nothing);
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let file = vm.open_file(&store, INODE, OpenMode::ReadWrite).unwrap();
    let tickets: Vec<IoTicket> = (0..count).map(|page| ask(&vm, &file, page).unwrap()).collect();
    store.takes(takes);
    store.depth(|| {
        while tickets.iter().filter(|&&ticket| !vm.io_done(ticket)).count() != 0 {}
        (0..count).for_each(|page| assert_eq!(ask(&vm, &file, page), None));
    })
}

/// How deep it is when `count` pages, none of which follows another, are written.
fn depth_of_writes(count: u64, takes: Takes) -> usize {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let store = Deep::new(takes);
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    let file = vm.open_file(&store, INODE, OpenMode::ReadWrite).unwrap();
    (0..count).for_each(|page| assert_eq!(file.write_at(2 * page * PAGE, &[1; PAGE as usize]), Ok(4096)));
    store.depth(|| file.sync().unwrap())
}

/// Fails if who asks after a request that was refused asks after another by the same call, and that after a third.
#[test]
fn the_stack_is_as_deep_for_many_requests_as_for_few() {
    for takes in [Takes::One, Takes::All] {
        let few = [depth_of_reads(8, takes), depth_of_writes(8, takes)];
        let many = [depth_of_reads(40, takes), depth_of_writes(40, takes)];
        let deeper = many[0].saturating_sub(few[0]).max(many[1].saturating_sub(few[1]));
        assert!(deeper < 512, "{few:?} bytes of the stack for 8 requests and {many:?} for 40, {takes:?}");
    }
}
