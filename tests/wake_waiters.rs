//! A platform whose waiters sleep until they are told: nobody is forgotten, whoever asked the store.

mod smp;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kernmm::addr::{Pfn, PgOff, VirtAddr, VirtRange};
use kernmm::cache::{Fetched, Pattern, ReadAhead, Wanted};
use kernmm::collections::Slot;
use kernmm::fault::Access;
use kernmm::flags::{MapFlags, Prot};
use kernmm::memory::{Process, SpinRwLock};
use kernmm::platform::hosted::Machine;
use kernmm::platform::{BackingStore, Cluster, CpuId, IoState, Platform, StoreError, Submitted, Ticket};
use kernmm::rmap::{Copies, MmAccess, ShareList};
use kernmm::syscall::{MmapArgs, OpenMode};

use smp::{PAGE, Schedule, Smp};

/// As long as nobody sleeps who ought to have been woken.
const LONG: Duration = Duration::from_secs(20);

/// Waiters sleep, and ask again when they are told.
#[derive(Default)]
struct Sleepers {
    told: Mutex<u64>,
    changed: Condvar,
    asleep: AtomicUsize,
    relaxed: AtomicUsize,
}

impl Sleepers {
    fn tell(&self) {
        *self.told.lock().unwrap() += 1;
        self.changed.notify_all();
    }

    fn until_asleep(&self, count: usize) {
        let start = Instant::now();
        while self.asleep.load(SeqCst) < count {
            assert!(start.elapsed() < LONG, "nobody went to sleep");
            thread::yield_now();
        }
    }
}

impl Schedule for Sleepers {
    fn cpu(&self, machine: &Machine) -> CpuId {
        machine.cpu_id()
    }

    fn point(&self, _: CpuId) {}

    fn relax(&self) {
        self.relaxed.fetch_add(1, SeqCst);
        thread::yield_now();
    }

    fn wait_until(&self, done: &dyn Fn() -> bool) {
        loop {
            let seen = *self.told.lock().unwrap();
            if done() {
                return;
            }
            self.asleep.fetch_add(1, SeqCst);
            let told = self.told.lock().unwrap();
            let (told, late) = self.changed.wait_timeout_while(told, LONG, |told| *told == seen).unwrap();
            drop(told);
            self.asleep.fetch_sub(1, SeqCst);
            assert!(!late.timed_out(), "a waiter was forgotten");
        }
    }

    fn wake_waiters(&self) {
        self.tell();
    }
}

/// What happens while the store is asked how a read stands, or is given one; the second time nothing.
type Meanwhile<'s> = &'s (dyn Fn() + Sync);

/// A store of one page, each byte 7, whose device is done when it is told to be.
struct Slow<'s> {
    is_done: AtomicBool,
    in_read: Meanwhile<'s>,
    in_poll: Meanwhile<'s>,
}

impl BackingStore for Slow<'_> {
    fn size(&self, _: u64) -> Result<u64, StoreError> {
        Ok(PAGE)
    }

    fn read(&self, _: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError> {
        assert!(pages.fill(0, 0, &[7; PAGE as usize]));
        (self.in_read)();
        Ok(Submitted::Pending(Ticket(1)))
    }

    fn write(&self, _: u64, _: &Cluster<'_>, _: u64) -> Result<Submitted, StoreError> {
        Err(StoreError::Io)
    }

    fn set_size(&self, _: u64, _: u64) -> Result<(), StoreError> {
        Err(StoreError::Io)
    }

    fn poll(&self, _: Ticket) -> IoState {
        // How it stands is asked first, and told last: what happens in between is seen by nobody.
        let is_done = self.is_done.load(SeqCst);
        (self.in_poll)();
        if is_done { IoState::Ended(Ok(())) } else { IoState::Pending }
    }
}

/// Two CPUs read the same page. `second` is let go once, by whoever runs it, in the first's `read` or `poll`.
fn two_readers(ends_at_once: bool, in_read: bool) {
    let machine = smp::machine();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let smp = Smp::new(&machine, Sleepers::default());
    let (go, was_here) = (AtomicBool::new(false), AtomicBool::new(false));
    let meanwhile = || {
        if machine.cpu_id() == CpuId::BOOT && !was_here.swap(true, SeqCst) {
            // The second CPU finds the page under way, and cannot ask for itself: it sleeps.
            go.store(true, SeqCst);
            smp.schedule.until_asleep(1);
        }
    };
    let nothing = || {};
    let slow = Slow {
        is_done: AtomicBool::new(ends_at_once),
        in_read: if in_read { &meanwhile } else { &nothing },
        in_poll: if in_read { &nothing } else { &meanwhile },
    };
    // The store's interrupt comes once, and before the second CPU sleeps if the device is done at once.
    smp::boot_with::<_, SpinRwLock, _>(&smp, &slow, |vm, slow| {
        let file = vm.open_file(slow, 1, OpenMode::ReadOnly).unwrap();
        let read = || {
            let mut byte = [0];
            assert_eq!(file.read_at(0, &mut byte), Ok(1));
            assert_eq!(byte, [7]);
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let _cpu = machine.cpu(CpuId(1)).unwrap();
                smp.run(CpuId(1), || {
                    while !go.load(SeqCst) {
                        thread::yield_now();
                    }
                    read();
                });
            });
            if !ends_at_once {
                scope.spawn(|| {
                    smp.schedule.until_asleep(2);
                    slow.is_done.store(true, SeqCst);
                    smp.schedule.tell();
                });
            }
            read();
        });
    });
}

#[test]
fn whoever_could_not_ask_is_woken_when_another_has_seen_to_the_pages() {
    two_readers(true, false);
}

#[test]
fn whoever_could_not_ask_while_a_read_was_begun_is_woken_when_it_can_be_asked() {
    two_readers(true, true);
}

#[test]
fn the_interrupt_of_the_store_is_enough_for_all() {
    two_readers(false, false);
    two_readers(false, true);
}

/// A store of one page that takes no request for a while, although it has none.
struct Full {
    refusals: AtomicUsize,
}

impl Full {
    fn refuses(&self) -> bool {
        self.refusals.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

impl BackingStore for Full {
    fn size(&self, _: u64) -> Result<u64, StoreError> {
        Ok(PAGE)
    }

    fn read(&self, _: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError> {
        if self.refuses() {
            return Err(StoreError::Busy);
        }
        assert!(pages.fill(0, 0, &[7; PAGE as usize]));
        Ok(Submitted::Done)
    }

    fn write(&self, _: u64, _: &Cluster<'_>, _: u64) -> Result<Submitted, StoreError> {
        if self.refuses() { Err(StoreError::Busy) } else { Ok(Submitted::Done) }
    }

    fn prepare_write(&self, _: u64, _: PgOff) -> Result<(), StoreError> {
        if self.refuses() { Err(StoreError::Busy) } else { Ok(()) }
    }

    fn barrier(&self, _: u64) -> Result<Submitted, StoreError> {
        if self.refuses() { Err(StoreError::Busy) } else { Ok(Submitted::Done) }
    }

    fn set_size(&self, _: u64, _: u64) -> Result<(), StoreError> {
        Err(StoreError::Io)
    }

    fn poll(&self, _: Ticket) -> IoState {
        unreachable!("it has begun nothing")
    }
}

/// What it was full of may have ended just before it is looked at: then nobody tells of that any more.
///
#[test]
fn a_fault_does_not_sleep_for_room_in_a_store_that_has_nothing_under_way() {
    for refusals in [3, 1000] {
        let machine = smp::machine();
        let _boot = machine.cpu(CpuId::BOOT).unwrap();
        let smp = Smp::new(&machine, Sleepers::default());
        let full = Full { refusals: AtomicUsize::new(refusals) };
        smp::boot_with::<_, SpinRwLock, _>(&smp, &full, |vm, full| {
            let process = Process::<_, _, SpinRwLock>::new(vm).unwrap();
            let file = vm.open_file(full, 1, OpenMode::ReadOnly).unwrap();
            let args = MmapArgs::file(file.map_file(), PAGE, Prot::READ, MapFlags::PRIVATE);
            let start = process.mmap(&args).unwrap().get();
            smp::enter(&process);
            assert_eq!(smp::load(&process, start), Ok(7));
            process.deactivate();
        });
    }
}

/// Fails if who is refused asks again and again without a break, or sleeps.
#[test]
fn a_store_that_refuses_writes_though_it_has_nothing_under_way_is_asked_again_after_a_break() {
    const TIMES: usize = 5;
    let machine = smp::machine();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let smp = Smp::new(&machine, Sleepers::default());
    let full = Full { refusals: AtomicUsize::new(0) };
    smp::boot_with::<_, SpinRwLock, _>(&smp, &full, |vm, full| {
        let process = Process::<_, _, SpinRwLock>::new(vm).unwrap();
        let file = vm.open_file(full, 1, OpenMode::ReadWrite).unwrap();
        smp::map_file(&process, smp::AT, 1, &file, MapFlags::SHARED);
        smp::enter(&process);
        assert_eq!(smp::load(&process, smp::AT), Ok(7));
        let breaks = |call: &dyn Fn()| {
            let before = smp.schedule.relaxed.load(SeqCst);
            full.refusals.store(TIMES, SeqCst);
            call();
            assert_eq!(full.refusals.load(SeqCst), 0);
            smp.schedule.relaxed.load(SeqCst) - before
        };
        assert_eq!(breaks(&|| smp::store(&process, smp::AT, 8).unwrap()), TIMES);
        assert_eq!(breaks(&|| file.sync().unwrap()), TIMES);
        assert_eq!(breaks(&|| file.sync().unwrap()), TIMES, "the barrier");
        process.deactivate();
    });
}

/// A store that is too busy for a second request.
struct One {
    /// Of the one it has.
    is_done: AtomicBool,
    has: AtomicBool,
}

impl BackingStore for One {
    fn size(&self, _: u64) -> Result<u64, StoreError> {
        Ok(PAGE)
    }

    fn read(&self, _: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError> {
        assert!(pages.fill(0, 0, &[7; PAGE as usize]));
        self.has.store(true, SeqCst);
        Ok(Submitted::Pending(Ticket(1)))
    }

    fn write(&self, _: u64, _: &Cluster<'_>, _: u64) -> Result<Submitted, StoreError> {
        if self.has.load(SeqCst) { Err(StoreError::Busy) } else { Ok(Submitted::Done) }
    }

    fn set_size(&self, _: u64, _: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn poll(&self, _: Ticket) -> IoState {
        if !self.is_done.load(SeqCst) {
            return IoState::Pending;
        }
        self.has.store(false, SeqCst);
        IoState::Ended(Ok(()))
    }
}

/// The store tells nobody: who asks after the read does.
#[test]
fn who_sleeps_for_room_in_a_store_is_woken_by_who_ends_another_request() {
    let machine = smp::machine();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let smp = Smp::new(&machine, Sleepers::default());
    let one = One { is_done: AtomicBool::new(false), has: AtomicBool::new(false) };
    smp::boot_with::<_, SpinRwLock, _>(&smp, &one, |vm, one| {
        let files = [1, 2].map(|inode| vm.open_file(one, inode, OpenMode::ReadWrite).unwrap());
        files[0].write_at(0, &[9; PAGE as usize]).unwrap();
        vm.cache().will_need(vm.source(), files[1].id(), PgOff::ZERO, 1).unwrap();
        assert!(one.has.load(SeqCst));
        sleeps_until(
            &smp,
            || smp.run(CpuId(1), || files[0].sync().unwrap()),
            || {
                one.is_done.store(true, SeqCst);
                assert_eq!(vm.reap(), 0);
            },
        );
    });
}

/// A store that has one request, which takes long, and refuses all others until that has ended, and so often afterwards.
struct Stalled<'s> {
    is_done: AtomicBool,
    refusals: AtomicUsize,
    refused: AtomicUsize,
    meanwhile: Meanwhile<'s>,
}

impl<'s> Stalled<'s> {
    fn new(meanwhile: Meanwhile<'s>, refusals: usize) -> Self {
        let (is_done, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { is_done, refusals: AtomicUsize::new(refusals), refused, meanwhile }
    }
}

impl BackingStore for Stalled<'_> {
    fn size(&self, _: u64) -> Result<u64, StoreError> {
        Ok(PAGE)
    }

    fn read(&self, inode: u64, pages: &Cluster<'_>) -> Result<Submitted, StoreError> {
        if inode != 1 && !self.is_done.load(SeqCst) {
            self.refused.fetch_add(1, SeqCst);
            (self.meanwhile)();
            return Err(StoreError::Busy);
        }
        if inode != 1 && self.refusals.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(StoreError::Busy);
        }
        assert!(pages.fill(0, 0, &[7; PAGE as usize]));
        Ok(if inode == 1 { Submitted::Pending(Ticket(1)) } else { Submitted::Done })
    }

    fn write(&self, _: u64, _: &Cluster<'_>, _: u64) -> Result<Submitted, StoreError> {
        Err(StoreError::Io)
    }

    fn set_size(&self, _: u64, _: u64) -> Result<(), StoreError> {
        Err(StoreError::Io)
    }

    fn poll(&self, _: Ticket) -> IoState {
        if self.is_done.load(SeqCst) { IoState::Ended(Ok(())) } else { IoState::Pending }
    }
}

/// Fails if a store that has refused a read is asked again before anything has ended: each who waits then wakes the other by that.
#[test]
fn two_who_wait_for_room_in_a_store_sleep_until_one_of_its_requests_has_ended() {
    for files in [[2, 2], [2, 3]] {
        let machine = smp::machine();
        let _boot = machine.cpu(CpuId::BOOT).unwrap();
        let smp = Smp::new(&machine, Sleepers::default());
        let refused = AtomicUsize::new(0);
        // While one is refused, the other sees that and goes to sleep.
        let meanwhile = || {
            let start = Instant::now();
            while smp.schedule.asleep.load(SeqCst) == 0 && start.elapsed() < Duration::from_millis(20) {
                thread::yield_now();
            }
        };
        let stalled = Stalled::new(&meanwhile, 0);
        smp::boot_with::<_, SpinRwLock, _>(&smp, &stalled, |vm, stalled| {
            let first = vm.open_file(stalled, 1, OpenMode::ReadOnly).unwrap();
            vm.cache().will_need(vm.source(), first.id(), PgOff::ZERO, 1).unwrap();
            let read = |cpu: u32, inode: u64| {
                let _cpu = machine.cpu(CpuId(cpu)).unwrap();
                smp.run(CpuId(cpu), || {
                    let file = vm.open_file(stalled, inode, OpenMode::ReadOnly).unwrap();
                    let mut byte = [0];
                    assert_eq!((file.read_at(0, &mut byte), byte), (Ok(1), [7]));
                });
            };
            thread::scope(|scope| {
                let read = &read;
                scope.spawn(move || read(1, files[0]));
                scope.spawn(move || read(2, files[1]));
                let enough = || stalled.refused.load(SeqCst) > 20;
                let start = Instant::now();
                let mut still = 0;
                while still < 1000 && !enough() && start.elapsed() < LONG {
                    still = if smp.schedule.asleep.load(SeqCst) == 2 { still + 1 } else { 0 };
                    thread::yield_now();
                }
                refused.store(stalled.refused.load(SeqCst), SeqCst);
                stalled.is_done.store(true, SeqCst);
                smp.schedule.tell();
            });
        });
        let reads = if files[0] == files[1] { 1 } else { 2 };
        assert_eq!(refused.load(SeqCst), reads, "each read is refused once");
    }
}

/// Fails without `wake_waiters` in `PageCache::io_done`.
#[test]
fn who_is_refused_when_the_store_has_nothing_any_more_does_not_sleep() {
    let machine = smp::machine();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let smp = Smp::new(&machine, Sleepers::default());
    let stalled = Stalled::new(&|| (), 3);
    smp::boot_with::<_, SpinRwLock, _>(&smp, &stalled, |vm, stalled| {
        let files = [1, 2].map(|inode| vm.open_file(stalled, inode, OpenMode::ReadOnly).unwrap());
        let (file, mut state) = (files[0].id(), ReadAhead::new());
        let asked = vm
            .cache()
            .fetch(vm.source(), file, Wanted::page(PgOff::ZERO, Pattern::Random), &mut state)
            .unwrap();
        let Fetched::Wait(first) = asked else { panic!("the store has begun to read") };
        let read = || {
            let mut byte = [0];
            assert_eq!((files[1].read_at(0, &mut byte), byte), (Ok(1), [7]));
        };
        let ends = || {
            stalled.is_done.store(true, SeqCst);
            assert!(vm.io_done(first));
        };
        sleeps_until(&smp, || smp.run(CpuId(1), read), ends);
    });
}

/// The second CPU sleeps in `sleeps` until `ends`.
fn sleeps_until(smp: &Smp<'_, Sleepers>, sleeps: impl FnOnce() + Send, ends: impl FnOnce()) {
    thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            let _cpu = smp.machine.cpu(CpuId(1)).unwrap();
            sleeps();
        });
        smp.schedule.until_asleep(1);
        ends();
        sleeper.join().unwrap();
    });
}

#[test]
fn a_call_that_waits_for_a_truncation_and_a_truncation_that_waits_for_a_call_are_woken() {
    let machine = smp::machine();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let smp = Smp::new(&machine, Sleepers::default());
    let list = ShareList::new();
    let settled = list.settle(&smp);
    sleeps_until(&smp, || list.begin_change(&smp), || drop(settled));
    list.begin_change(&smp);
    // Two changes are under way: the last one that ends tells.
    let told = || *smp.schedule.told.lock().unwrap();
    let before = told();
    let end_both = || {
        list.end_change(&smp);
        assert_eq!(told(), before);
        list.end_change(&smp);
    };
    sleeps_until(&smp, || drop(list.settle(&smp)), end_both);
}

/// The page tables as they are, and something that happens in the middle of each hole.
struct InHole<'h, A> {
    entries: A,
    meanwhile: &'h (dyn Fn() + Sync),
}

impl<A: MmAccess> MmAccess for InHole<'_, A> {
    fn clean(&self, mm: Slot, addr: VirtAddr, pfn: Pfn) -> bool {
        self.entries.clean(mm, addr, pfn)
    }

    fn zap(&self, mm: Slot, range: VirtRange, copies: Copies) -> Option<VirtAddr> {
        self.entries.zap(mm, range, copies)
    }

    fn flush(&self) {
        self.entries.flush();
        (self.meanwhile)();
    }
}

/// Two CPUs punch holes in a file, each the next one before the other's is there.
///
/// Fails if a hole begins while another is punched.
#[test]
fn a_fault_gets_its_turn_among_those_who_punch_holes_all_the_time() {
    const ROUNDS: u32 = 200;
    let machine = smp::machine();
    let _boot = machine.cpu(CpuId::BOOT).unwrap();
    let smp = Smp::new(&machine, Sleepers::default());
    smp::boot::<_, SpinRwLock>(&smp, |vm, _| {
        let process = Process::<_, _, SpinRwLock>::new(vm).unwrap();
        let file = vm.memory_file(PAGE).unwrap();
        smp::map_file(&process, smp::AT, 1, &file, MapFlags::SHARED);
        let (go, through, left) = (AtomicBool::new(false), AtomicBool::new(false), AtomicUsize::new(2));
        // A hole goes on until the fault waits for it, and the other one wants the next.
        let meanwhile = || {
            go.store(true, SeqCst);
            while smp.schedule.asleep.load(SeqCst) < 2 && !through.load(SeqCst) && left.load(SeqCst) == 2 {
                thread::yield_now();
            }
        };
        let punch = |cpu: u32| {
            let _cpu = machine.cpu(CpuId(cpu)).unwrap();
            for _ in (0..ROUNDS).take_while(|_| !through.load(SeqCst)) {
                let access = InHole { entries: vm.pager().entries(), meanwhile: &meanwhile };
                vm.cache().punch_hole(vm.source(), &access, file.id(), PgOff::ZERO, PgOff::MAX).unwrap();
            }
            left.fetch_sub(1, SeqCst);
        };
        thread::scope(|scope| {
            for cpu in [1, 2] {
                let (smp, punch) = (&smp, &punch);
                scope.spawn(move || smp.run(CpuId(cpu), || punch(cpu)));
            }
            while !go.load(SeqCst) {
                thread::yield_now();
            }
            process.fault(VirtAddr::from(smp::AT), Access::Write).unwrap();
            assert_eq!(left.load(SeqCst), 2, "the fault came when there were no holes any more");
            through.store(true, SeqCst);
        });
    });
}
