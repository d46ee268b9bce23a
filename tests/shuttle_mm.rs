//! An address space whose VMAs are looked up, faulted on and changed at once, under thousands of schedules.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --release --test shuttle_mm --target-dir target/shuttle`
//!
//! Shuttle interleaves at every word that a look-up reads, of VMAs and of the tree that leads to them, and at the locks. Each model names the lines whose
//! removal makes it fail, where that was tried and seen. A look-up may always answer that it does not know; so each model also sees to it that some find
//! what they seek while a call is under way, and that all do when none is.
#![cfg(shuttle)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool as PlainBool, AtomicUsize as PlainUsize};

use kernmm::addr::{VirtAddr, VirtRange};
use kernmm::flags::{MapFlags, Prot, VmFlags};
use kernmm::mm::{
    EmptyTables, FileRef, GapRoom, LockedVma, Mm, MmContext, MmError, MmId, MmSlot, MmStores, NullTables,
    Overcommit, OvercommitMode, Sysctl, Tables, VmaNode, VmaSlot,
};
use kernmm::rmap::AnonNode;
use kernmm::syscall::{self, MmapArgs};
use shuttle::sync::RwLock;
use shuttle::sync::atomic::{AtomicBool, Ordering::SeqCst};
use shuttle::thread;

const PAGE: u64 = 4096;
const AT: u64 = 0x10_0000_0000;
const RW: Prot = Prot::READ.union(Prot::WRITE);

fn leaked<T: Default>(count: usize) -> &'static [T] {
    Vec::leak((0..count).map(|_| T::default()).collect())
}

/// The VMAs that there are at first: so many that the next one above turns the tree over at its root.
const VMAS: u64 = 7;

/// What one execution works on; its memory is leaked, for threads keep it.
struct Space {
    context: &'static MmContext<'static>,
    id: MmId,
    mm: RwLock<Mm<'static>>,
    /// Whether a call is under way. This and the next are not shuttle's: it switches nowhere because of them.
    changing: PlainBool,
    /// How many look-ups have found something meanwhile, in all executions of the model.
    found: &'static PlainUsize,
}

impl Space {
    /// Four pages mapped at every eighth.
    fn new(found: &'static PlainUsize) -> Arc<Self> {
        let stores = MmStores {
            mms: leaked::<MmSlot>(1),
            vma_nodes: leaked::<VmaNode>(16),
            vmas: leaked::<VmaSlot>(16),
            anon_vmas: leaked::<AnonNode>(16),
            gaps: leaked::<GapRoom>(0),
        };
        let overcommit = Overcommit::new(OvercommitMode::Always, 1 << 20, 0);
        let context: &MmContext<'_> =
            Box::leak(Box::new(MmContext::new(stores, Sysctl::default(), overcommit)));
        let mut mm = Mm::new(context).unwrap();
        for at in 0..VMAS {
            map(&mut mm, &mut NullTables::default(), at * 8, 4, MapFlags::empty());
        }
        mm.end_section();
        let changing = PlainBool::new(false);
        Arc::new(Self { context, id: mm.id(), mm: RwLock::new(mm), changing, found })
    }

    /// Runs a call as a kernel does: locked for writing, the section ended.
    fn call<R>(&self, call: impl FnOnce(&mut Mm<'static>) -> R) -> R {
        let mut mm = self.mm.write().unwrap();
        self.changing.store(true, SeqCst);
        let result = call(&mut mm);
        mm.end_section();
        self.changing.store(false, SeqCst);
        result
    }

    /// Looks a page up without the lock.
    fn look_up(&self, at: u64) -> Option<LockedVma<'static>> {
        let locked = self.context.lock_vma(self.id, page(at));
        if locked.is_some() && self.changing.load(SeqCst) {
            self.found.fetch_add(1, SeqCst);
        }
        locked
    }

    /// When no call is under way, look-ups without the lock find what those with it do.
    fn all_are_found(&self) {
        let mm = self.mm.read().unwrap();
        for at in (0..=VMAS).flat_map(|vma| [0, 2, 4].map(|at| vma * 8 + at)).chain([989, 990, 1_001]) {
            // Asked first, for a look-up leaves the name of what it has found.
            let locked = self.look_up(at).map(|locked| locked.slot());
            assert_eq!(locked, mm.lookup(page(at)), "page {at}");
        }
    }

    fn end(&self) {
        self.all_are_found();
        self.call(|mm| {
            mm.check().unwrap();
            syscall::exit(mm, &mut NullTables::default());
        });
    }
}

fn page(page: u64) -> VirtAddr {
    VirtAddr::from(AT + page * PAGE)
}

fn map(mm: &mut Mm<'_>, tables: &mut impl Tables, at: u64, pages: u64, flags: MapFlags) {
    let flags = flags | MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED;
    let args =
        MmapArgs { addr: page(at).get(), len: pages * PAGE, prot: RW, flags, file: Ok(None), offset: 0 };
    syscall::mmap(mm, tables, &args).unwrap();
}

fn run(model: fn(&'static PlainUsize)) {
    let runs = if std::env::var_os("KERNMM_LONG").is_some() { 200_000 } else { 3_000 };
    let found: &PlainUsize = Box::leak(Box::default());
    shuttle::check_random(move || model(found), runs);
    shuttle::check_pct(move || model(found), runs, 3);
    let found = found.load(SeqCst);
    println!("{found} look-ups found a VMA while a call was under way");
    assert!(found > runs / 100, "only {found} look-ups found a VMA while a call was under way");
}

/// A look-up without the lock finds what a scan would have found before or after the change, whole, and it stays so until it is let go.
///
/// Fails without: `before & WRITER == 0` or `!self.is_locked(sections)` after the count in `VmaLock::try_enter`; the loop that waits in `VmaLock::lock`;
/// `set_root` in `VmaSet::remove`.
fn look_up_beside_a_writer(found: &'static PlainUsize) {
    let space = Space::new(found);
    let readers = [0, 1].map(|reader| {
        let space = Arc::clone(&space);
        thread::spawn(move || {
            for at in [reader, 41, 9, 3, 57, reader] {
                let Some(locked) = space.look_up(at) else { continue };
                let vma = locked.vma();
                assert!(vma.start <= page(at) && page(at) < vma.end, "{vma:?} for page {at}");
                // What a program without the change, or with all of it, has.
                let first = vma.start.vpn().get() - page(0).vpn().get();
                let what = (first, vma.pages(), vma.flags.contains(VmFlags::WRITE));
                let whole = match at {
                    8.. => what == (at & !7, 4, true),
                    _ => [(0, 4, true), (0, 2, true), (2, 2, false)].contains(&what),
                };
                assert!(whole, "half a change: {vma:?}");
                thread::yield_now();
                assert_eq!(locked.vma(), vma, "changed in a fault's hands");
            }
        })
    });
    let mut tables = NullTables::default();
    // One more turns the tree over. Pages 2 and 3 read-only, gone, and mapped again, as another VMA's; then all one again; and the tree turns back.
    space.call(|mm| map(mm, &mut tables, VMAS * 8, 4, MapFlags::empty()));
    space.call(|mm| syscall::mprotect(mm, &mut tables, page(2).get(), 2 * PAGE, Prot::READ).unwrap());
    space.call(|mm| syscall::munmap(mm, &mut tables, page(2).get(), 2 * PAGE).unwrap());
    space.call(|mm| map(mm, &mut tables, 2, 2, MapFlags::empty()));
    space.call(|mm| syscall::munmap(mm, &mut tables, page(32).get(), (VMAS * 8 - 28) * PAGE).unwrap());
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    space.end();
}

#[test]
fn a_look_up_sees_a_vma_before_or_after_a_change_and_never_during_it() {
    run(look_up_beside_a_writer);
}

/// Pages as faults put them and calls take them.
struct Pages {
    mapped: [AtomicBool; 16],
}

/// The calls' side of them.
struct Side(Arc<Pages>);

impl Tables for Side {
    fn unmap(&mut self, parts: impl Iterator<Item = VirtRange>, _: Option<EmptyTables>) {
        for part in parts {
            for (at, mapped) in self.0.mapped.iter().enumerate() {
                if part.contains(page(at as u64)) {
                    mapped.store(false, SeqCst);
                }
            }
        }
    }

    fn shared_anonymous(&mut self, _: &Mm<'_>, _: u64, _: VmFlags) -> Result<FileRef, MmError> {
        Err(MmError::OutOfMemory)
    }
}

/// No page is left where no VMA is: a fault that has looked at its VMA before a munmap has put its page there before the munmap takes pages away.
///
/// Fails without: `self.set.lock(slot)` in `Mm::commit_unmap_keeping_tables`; the owner or the second `node.holds` in `MmContext::enter`; the loop that waits in
/// `VmaLock::lock`; `set_root` in `VmaSet::remove`.
fn fault_beside_munmap(found: &'static PlainUsize) {
    let space = Space::new(found);
    let pages = Arc::new(Pages { mapped: [const { AtomicBool::new(false) }; 16] });
    // The munmap takes a part of the one VMA, and all of the other.
    let faults = [1, 9].map(|at: usize| {
        let (space, pages) = (Arc::clone(&space), Arc::clone(&pages));
        thread::spawn(move || {
            let put = || pages.mapped[at].store(true, SeqCst);
            match space.look_up(at as u64) {
                Some(_locked) => put(),
                None => {
                    let mm = space.mm.read().unwrap();
                    if mm.lookup(page(at as u64)).is_some() {
                        put();
                    }
                }
            }
        })
    });
    let mut tables = Side(Arc::clone(&pages));
    space.call(|mm| syscall::munmap(mm, &mut tables, page(1).get(), 15 * PAGE).unwrap());
    faults.into_iter().for_each(|fault| fault.join().unwrap());
    assert!(pages.mapped.iter().all(|mapped| !mapped.load(SeqCst)), "a page where nothing is mapped");
    space.end();
}

#[test]
fn a_fault_leaves_no_page_behind_a_munmap() {
    run(fault_beside_munmap);
}

/// Two threads touch pages below one stack: it reaches down to the lower one, each page is counted once, and a look-up that succeeds meanwhile sees it before or
/// after.
///
/// Fails without: `if vma.start <= addr` in `Mm::find_vma_or_grow`, which looks again with the lock held; `self.lock(slot)` in `VmaSet::resize`; the loop that
/// waits in `VmaLock::lock`; `set_root` in `VmaSet::insert`.
fn one_stack_grows_for_two(found: &'static PlainUsize) {
    let space = Space::new(found);
    space.call(|mm| map(mm, &mut NullTables::default(), 1_000, 2, MapFlags::GROWSDOWN));
    let threads = [995, 990].map(|at| {
        let space = Arc::clone(&space);
        thread::spawn(move || {
            if let Some(locked) = space.look_up(1_001) {
                let range = locked.vma().range();
                thread::yield_now();
                assert_eq!(locked.vma().range(), range, "changed in a fault's hands");
            }
            if let Some(locked) = space.look_up(at) {
                assert!(locked.vma().start <= page(at) && locked.vma().end == page(1_002));
                return;
            }
            let found = { space.mm.read().unwrap().lookup(page(at)) };
            if found.is_none() {
                space.call(|mm| mm.find_vma_or_grow(page(at)).unwrap());
            }
            let locked = space.look_up(at);
            assert!(locked.is_none_or(|locked| locked.vma().start <= page(at)));
        })
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    space.call(|mm| {
        let stack = mm.vma(mm.lookup(page(1_001)).unwrap());
        assert_eq!((stack.start, stack.end, mm.totals().stack_vm), (page(990), page(1_002), 12));
        assert_eq!(stack.pgoff.get(), page(990).vpn().get());
    });
    space.end();
}

#[test]
fn a_stack_that_grows_for_two_threads_grows_once() {
    run(one_stack_grows_for_two);
}
