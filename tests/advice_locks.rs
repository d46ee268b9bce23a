//! For which advice an address space is locked for writing: to free page tables that have no entry any more, and not where none are; to
//! put up guards where faults
//! are faster each time, and not before.

mod smp;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use kernmm::fault::{EntryState, Signal};
use kernmm::flags::{Advice, MapFlags, Prot};
use kernmm::memory::{Refused, SpinRwLock};
use kernmm::platform::hosted::Machine;
use kernmm::platform::{CpuId, Platform};
use lock_api::RawRwLock;

use smp::{AT, PAGE, Schedule, Smp, at, enter, load, map, sound, store};

const HUGE: u64 = 2 << 20;
/// Pages of 2 MiB.
const PAGES: u64 = HUGE / PAGE;
const LAZY: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);
const NOT_MAPPED: Refused = Refused::Signal(Signal::NotMapped);

/// How often one was locked for writing.
static WRITERS: AtomicU32 = AtomicU32::new(0);
/// Whether one is.
static IS_WRITTEN: AtomicBool = AtomicBool::new(false);
/// Who counts.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells when an address space is locked for writing.
struct Counted(SpinRwLock);

// SAFETY: it is the other lock's.
unsafe impl RawRwLock for Counted {
    const INIT: Self = Self(SpinRwLock::INIT);
    type GuardMarker = <SpinRwLock as RawRwLock>::GuardMarker;

    fn lock_shared(&self) {
        self.0.lock_shared();
    }

    fn try_lock_shared(&self) -> bool {
        self.0.try_lock_shared()
    }

    unsafe fn unlock_shared(&self) {
        // SAFETY: the caller holds it.
        unsafe { self.0.unlock_shared() }
    }

    fn lock_exclusive(&self) {
        self.0.lock_exclusive();
        WRITERS.fetch_add(1, SeqCst);
        IS_WRITTEN.store(true, SeqCst);
    }

    fn try_lock_exclusive(&self) -> bool {
        let locked = self.0.try_lock_exclusive();
        if locked {
            WRITERS.fetch_add(1, SeqCst);
            IS_WRITTEN.store(true, SeqCst);
        }
        locked
    }

    unsafe fn unlock_exclusive(&self) {
        IS_WRITTEN.store(false, SeqCst);
        // SAFETY: the caller holds it.
        unsafe { self.0.unlock_exclusive() }
    }
}

/// After each flush of the first CPU, as long as some are wanted and no writer has the lock, another CPU does its work.
struct AfterFlushes {
    wanted: AtomicU32,
    other: Mutex<Option<(SyncSender<()>, Receiver<usize>)>>,
}

impl Schedule for AfterFlushes {
    fn cpu(&self, machine: &Machine) -> CpuId {
        machine.cpu_id()
    }

    fn point(&self, _: CpuId) {}

    fn relax(&self) {
        thread::yield_now();
    }

    fn flushed(&self) {
        let Ok(other) = self.other.try_lock() else { return };
        let Some((asks, answers)) = &*other else { return };
        if self.wanted.load(SeqCst) != 0 && !IS_WRITTEN.load(SeqCst) {
            self.wanted.fetch_sub(1, SeqCst);
            asks.send(()).unwrap();
            assert_ne!(answers.recv(), Ok(0), "no page was faster");
        }
    }
}

type Machinery<'a, 'm> = smp::Machinery<'a, 'm, AfterFlushes>;
type Process<'v, 'a, 'm> = smp::Proc<'v, 'a, 'm, AfterFlushes, Counted>;

fn on_machine(test: impl for<'a, 'm> FnOnce(&Machinery<'a, 'm>)) {
    let _alone = alone();
    let machine = smp::machine_of(4 * PAGES);
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let schedule = AfterFlushes { wanted: AtomicU32::new(0), other: Mutex::new(None) };
    smp::boot::<_, Counted>(&Smp::new(&machine, schedule), |vm, _| test(vm));
}

/// Gives advice; how often the address space was locked for writing for that.
fn writers(process: &Process<'_, '_, '_>, addr: u64, pages: u64, advice: Advice) -> u32 {
    let before = WRITERS.load(SeqCst);
    process.madvise(addr, pages * PAGE, advice as i32).unwrap();
    WRITERS.load(SeqCst) - before
}

fn tables(process: &Process<'_, '_, '_>) -> u32 {
    process.with(|mm| process.vm().pager().tables_of(mm).unwrap().tables())
}

/// Fails if it is not told whether a table has no entry any more, or of which addresses it is.
#[test]
fn memory_that_is_given_back_costs_a_writer_only_where_a_table_goes() {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        map(&process, AT, 4 * PAGES, LAZY);
        enter(&process);
        let give_back = |first: u64, pages| writers(&process, AT + first * PAGE, pages, Advice::DontNeed);
        assert_eq!(give_back(0, 4 * PAGES), 0, "nothing was there");
        // The tables above the leaves stay.
        store(&process, AT, 1).unwrap();
        give_back(0, PAGES);
        let none = tables(&process);
        assert_eq!(none, 2);
        store(&process, AT + 7 * PAGE, 1).unwrap();
        store(&process, AT + HUGE + 7 * PAGE, 1).unwrap();
        assert_eq!((give_back(0, 4 * PAGES), tables(&process)), (1, none));
        assert_eq!(give_back(0, 4 * PAGES), 0, "the tables are gone");

        // A table of which a part lies outside stays, be it empty.
        store(&process, AT + 7 * PAGE, 1).unwrap();
        store(&process, AT + HUGE + 7 * PAGE, 1).unwrap();
        assert_eq!((give_back(1, PAGES), tables(&process)), (0, none + 2));
        assert_eq!((give_back(1, 2 * PAGES - 1), tables(&process)), (1, none + 1));
        assert_eq!((give_back(0, PAGES), tables(&process)), (1, none), "it was empty before");

        // A guard keeps its table.
        store(&process, AT + 7 * PAGE, 1).unwrap();
        process.madvise(AT, PAGE, Advice::GuardInstall as i32).unwrap();
        assert_eq!((give_back(0, PAGES), tables(&process)), (0, none + 1));
        process.madvise(AT, PAGE, Advice::GuardRemove as i32).unwrap();
        assert_eq!((give_back(0, PAGES), tables(&process)), (1, none));

        // Two VMAs share a table.
        process.mprotect(AT + 100 * PAGE, 4 * HUGE - 100 * PAGE, Prot::READ).unwrap();
        store(&process, AT + 7 * PAGE, 1).unwrap();
        assert_eq!(load(&process, AT + 200 * PAGE), Ok(0));
        assert_eq!((give_back(0, PAGES), tables(&process)), (1, none));
        sound(vm, &[&process]);
    });
}

/// A page of 2 MiB leaves nothing behind but the table of a GiB, which goes if all of that is given back.
#[test]
fn a_huge_page_that_is_given_back_costs_a_writer_only_where_the_table_above_goes() {
    on_machine(|vm| {
        const GIB: u64 = 1 << 30;
        let process = Process::new(vm).unwrap();
        map(&process, AT, GIB / PAGE, LAZY);
        process.madvise(AT, GIB, Advice::HugePage as i32).unwrap();
        enter(&process);
        for (pages, expected, left) in [(PAGES, 0, 2), (GIB / PAGE, 1, 1), (GIB / PAGE, 0, 1)] {
            if left != tables(&process) {
                store(&process, AT + PAGE, 1).unwrap();
                let state = process.entry_state(at(AT)).and_then(EntryState::resident);
                assert_eq!(state.map(|page| page.order.pages()), Some(PAGES));
            }
            assert_eq!(writers(&process, AT, pages, Advice::DontNeed), expected);
            assert_eq!(tables(&process), left);
        }
        sound(vm, &[&process]);
    });
}

/// Nobody is asked any more when this is dropped, be it that a test has failed: who waits to be would wait for ever.
struct Ends<'s>(&'s AfterFlushes);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        *self.0.other.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Another CPU faults pages in again after each of so many flushes.
fn guards_beside(faults: u32, pages: u64, test: impl Fn(&Process<'_, '_, '_>, &AfterFlushes)) {
    on_machine(|vm| {
        let process = Process::new(vm).unwrap();
        map(&process, AT, 2 * PAGES, LAZY);
        enter(&process);
        (0..pages).for_each(|page| store(&process, AT + page * PAGE, 1).unwrap());
        let smp = vm.source().platform();
        let ((asks, asked), (answers, answered)) = (sync_channel(0), sync_channel(0));
        thread::scope(|scope| {
            let process = &process;
            scope.spawn(move || {
                let _cpu = smp.machine.cpu(CpuId(1)).unwrap();
                smp.run(CpuId(1), || {
                    while asked.recv().is_ok() {
                        enter(process);
                        let stored = (0..pages).map(|page| store(process, AT + page * PAGE, 2));
                        let stored = stored.filter(|stored| *stored != Err(NOT_MAPPED)).count();
                        process.deactivate();
                        answers.send(stored).unwrap();
                    }
                });
            });
            smp.schedule.wanted.store(faults, SeqCst);
            *smp.schedule.other.lock().unwrap() = Some((asks, answered));
            let _ends = Ends(&smp.schedule);
            test(process, &smp.schedule);
        });
        for page in 0..2 * PAGES {
            assert_eq!(process.entry_state(at(AT + page * PAGE)), Some(EntryState::Guard), "page {page}");
        }
        assert_eq!(load(&process, AT), Err(NOT_MAPPED));
        sound(vm, &[&process]);
    });
}

/// Fails without a bound for the rounds.
#[test]
fn guards_are_up_in_the_end_however_fast_faults_are() {
    guards_beside(100, 3, |process, schedule| {
        assert_eq!(writers(process, AT, 2 * PAGES, Advice::GuardInstall), 1);
        assert_eq!(100 - schedule.wanted.load(SeqCst), 5, "a round for each");
    });
}

/// Fails if the lock is taken before the rounds are used up.
#[test]
fn guards_that_a_few_faults_delay_keep_nobody_away() {
    guards_beside(4, 3, |process, schedule| {
        assert_eq!(writers(process, AT, 2 * PAGES, Advice::GuardInstall), 0);
        assert_eq!(schedule.wanted.load(SeqCst), 0);
    });
}
