//! Each change of page tables makes exactly those CPUs forget exactly those pages that it must, and a flush that is lost is noticed.

use std::mem::ManuallyDrop;

use kernmm::addr::{PageOrder, VirtAddr, VirtRange};
use kernmm::flags::{Advice, GfpFlags, MapFlags, MremapFlags, MsyncFlags, Prot};
use kernmm::memory::{File, Memory, Process, User, Vm};
use kernmm::mm::{FileKind, FileRef};
use kernmm::phys::PageSource;
use kernmm::platform::hosted::{Asids, CpuGuard, Disk, LoseFlushes, Machine};
use kernmm::platform::{FlushScope, Platform};
use kernmm::syscall::{Binary, ElfType, ExecImage, MmapArgs, OpenMode, StackImage};

const PAGE: u64 = 4096;
const RW: Prot = Prot::READ.union(Prot::WRITE);
/// Eight pages, of which 1, 2 and 5 are written and 6 is read.
const AT: u64 = 0x4000_0000;
/// Alone in its 2 MiB, two pages written.
const ALONE: u64 = 0x4060_0000;
/// 64 pages, all written.
const LONG: u64 = 0x4020_0000;
/// A shared mapping of a file of four pages: 0 and 1 are written, 2 and 3 read.
const FILE: u64 = 0x4040_0000;
/// Nothing is here, in the same table.
const FREE: u64 = AT + 64 * PAGE;

type Mem<'m> = Memory<'m, Machine>;
type Proc<'v, 'a, 'm> = Process<'v, 'a, Mem<'m>>;

/// A process that CPUs 0 and 1 know every page of. CPU 2 knows another process.
struct Scene<'s, 'v, 'a, 'm> {
    machine: &'m Machine,
    cpus: &'s [CpuGuard<'m>],
    memory: &'a Mem<'m>,
    process: &'s Proc<'v, 'a, 'm>,
    file: &'s File<'v, 'a, Mem<'m>>,
}

/// A flush: of which CPUs, what, and whether tables with it.
type Flush = (Vec<u32>, FlushScope, bool);

fn at(addr: u64) -> VirtAddr {
    VirtAddr::from(addr)
}

fn page(addr: u64) -> FlushScope {
    FlushScope::Page(at(addr))
}

fn range(addr: u64, pages: u64) -> FlushScope {
    FlushScope::Range(VirtRange::with_len(at(addr), pages * PAGE).unwrap())
}

/// Both CPUs that know the process.
fn both(scope: FlushScope) -> Flush {
    (vec![0, 1], scope, false)
}

impl Scene<'_, '_, '_, '_> {
    /// The flushes of the process's tables that something asks for.
    fn flushes<R>(&self, change: impl FnOnce() -> R) -> Vec<Flush> {
        self.machine.take_flushes();
        change();
        let root = self.process.with(|mm| mm.shared().pgd());
        let flushes = self.machine.take_flushes().into_iter();
        let own = flushes.filter(|(_, flush)| Some(flush.pgd) == root);
        own.map(|(cpus, flush)| (cpus.iter().map(|cpu| cpu.0).collect(), flush.scope, flush.tables)).collect()
    }

    fn mprotect(&self, first: u64, pages: u64, prot: Prot) {
        self.process.mprotect(AT + first * PAGE, pages * PAGE, prot).unwrap();
    }

    fn give_back(&self, addr: u64, pages: u64) {
        self.process.madvise(addr, pages * PAGE, Advice::DontNeed as i32).unwrap();
    }

    /// Lets CPUs 0 and 1 know all pages as they are.
    fn look(&self) {
        for cpu in &self.cpus[..2] {
            cpu.run(|| {
                let user = User::new(self.process);
                for page in 0..8 {
                    let _ = user.load_byte(at(AT + page * PAGE)).is_ok();
                }
                for page in 0..4 {
                    let _ = user.load_byte(at(FILE + page * PAGE)).is_ok();
                }
            });
        }
    }
}

fn map(process: &Proc<'_, '_, '_>, addr: u64, pages: u64, file: Option<&File<'_, '_, Mem<'_>>>) {
    let kind = if file.is_some() { MapFlags::SHARED } else { MapFlags::PRIVATE | MapFlags::ANONYMOUS };
    let file = Ok(file.map(File::map_file));
    let flags = kind | MapFlags::FIXED;
    process.mmap(&MmapArgs { addr, len: pages * PAGE, prot: RW, flags, file, offset: 0 }).unwrap();
}

/// Whether the scene is tidied up at its end, or left as it is, since it is broken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Tidy,
    Broken,
}

fn on_machine(asids: Asids, end: End, test: impl FnOnce(&Scene<'_, '_, '_, '_>)) {
    let machine = Machine::pc(8 << 20).cpus(3).asids(asids).build().unwrap();
    let cpus = machine.all_cpus().unwrap();
    let disk = Disk::new(&machine);
    disk.put(1, &[7; 4 * PAGE as usize]);
    let memory = Memory::on(&machine).unwrap();
    // What was broken is past tidying up.
    let vm: ManuallyDrop<Vm<'_, _>> = ManuallyDrop::new(Vm::on(&memory).unwrap());
    let file = vm.open_file(&disk, 1, OpenMode::ReadWrite).unwrap();
    let (process, other) = (Process::new(&vm).unwrap(), Process::new(&vm).unwrap());
    map(&process, AT, 8, None);
    map(&process, ALONE, 2, None);
    map(&process, LONG, 64, None);
    map(&process, FILE, 4, Some(&file));
    map(&other, AT, 1, None);
    cpus[2].run(|| User::new(&other).store(at(AT), b"other").unwrap());
    for cpu in &cpus[..2] {
        cpu.run(|| {
            let user = User::new(&process);
            for written in [1, 2, 5] {
                user.store(at(AT + written * PAGE), b"!").unwrap();
            }
            user.load_byte(at(AT + 6 * PAGE)).unwrap();
            (0..2).for_each(|page| user.store(at(ALONE + page * PAGE), b"!").unwrap());
            (0..64).for_each(|page| user.store(at(LONG + page * PAGE), b"!").unwrap());
            (0..2).for_each(|page| user.store(at(FILE + page * PAGE), b"!").unwrap());
            for page in 2..4 {
                user.load_byte(at(FILE + page * PAGE)).unwrap();
            }
        });
    }
    machine.record_flushes();
    assert_eq!(machine.stale_translation(), None);
    test(&Scene { machine: &machine, cpus: &cpus, memory: &memory, process: &process, file: &file });
    if end == End::Broken {
        std::mem::forget((process, other, file));
        return;
    }
    assert_eq!(machine.stale_translation(), None);
    vm.assert_sound(&[&process, &other]);
    for cpu in &cpus {
        cpu.run(|| machine.switch_tables(None));
    }
    drop((process, other, file));
    cpus[0].run(|| drop(ManuallyDrop::into_inner(vm)));
}

fn tidy(test: impl FnOnce(&Scene<'_, '_, '_, '_>)) {
    on_machine(Asids::On, End::Tidy, test);
}

#[test]
fn munmap_forgets_what_was_resident_from_the_first_page_to_the_last() {
    tidy(|s| {
        let unmap = |addr, pages| s.flushes(|| s.process.munmap(addr, pages * PAGE).unwrap());
        assert_eq!(unmap(AT, 1), [], "nothing was there");
        assert_eq!(unmap(AT + PAGE, 4), [both(range(AT + PAGE, 2))]);
        assert_eq!(unmap(AT + 5 * PAGE, 1), [both(page(AT + 5 * PAGE))]);
        assert_eq!(unmap(LONG + 8 * PAGE, 33), [both(range(LONG + 8 * PAGE, 33))]);
    });
    tidy(|s| {
        // One page more than is flushed page by page.
        let flushes = s.flushes(|| s.process.munmap(LONG + 8 * PAGE, 34 * PAGE).unwrap());
        assert_eq!(flushes, [both(FlushScope::All)]);
    });
}

#[test]
fn a_table_that_goes_is_forgotten_with_what_was_in_it() {
    tidy(|s| {
        let unmap = |addr, pages| s.flushes(|| s.process.munmap(addr, pages * PAGE).unwrap());
        assert_eq!(unmap(ALONE + PAGE, 1), [both(page(ALONE + PAGE))]);
        assert_eq!(unmap(ALONE, 1), [(vec![0, 1], page(ALONE), true)]);
    });
    tidy(|s| {
        // What was in it went before: one address is enough to forget the way.
        assert_eq!(s.flushes(|| s.give_back(ALONE + PAGE, 1)), [both(page(ALONE + PAGE))]);
        map(s.process, ALONE + 5 * PAGE, 1, None);
        assert_eq!(s.flushes(|| s.process.munmap(ALONE, 2 * PAGE).unwrap()), [both(page(ALONE))]);
        assert_eq!(
            s.flushes(|| s.process.munmap(ALONE + 5 * PAGE, PAGE).unwrap()),
            [(vec![0, 1], page(ALONE + 5 * PAGE), true)]
        );
    });
}

/// Every other page of `pages` is a VMA of one page, written by CPUs 0 and 1.
fn map_apart(s: &Scene<'_, '_, '_, '_>, addr: u64, vmas: u64, file: Option<&File<'_, '_, Mem<'_>>>) {
    let starts = (0..vmas).map(|vma| addr + 2 * vma * PAGE);
    starts.clone().for_each(|start| map(s.process, start, 1, file));
    for cpu in &s.cpus[..2] {
        cpu.run(|| starts.clone().for_each(|start| User::new(s.process).store(at(start), b"!").unwrap()));
    }
}

#[test]
fn a_munmap_makes_cpus_forget_once_however_many_vmas_there_are() {
    const FAR: u64 = 0x5000_0000;
    tidy(|s| {
        let unmap = |pages| s.flushes(|| s.process.munmap(FAR, pages * PAGE).unwrap());
        map(s.process, FAR + 30 * PAGE, 1, None);
        map_apart(s, FAR, 10, None);
        assert_eq!(unmap(20), [both(range(FAR, 19))], "a neighbour keeps the table");
        map_apart(s, FAR, 10, Some(s.file));
        assert_eq!(unmap(31), [(vec![0, 1], range(FAR, 19), true)], "the table goes too");
        for file in [None, Some(s.file)] {
            map_apart(s, FAR, 1_000, file);
            assert_eq!(unmap(2_000), [(vec![0, 1], FlushScope::All, true)]);
        }
    });
}

#[test]
fn all_that_a_mapping_replaces_is_forgotten_at_once() {
    const FAR: u64 = 0x5000_0000;
    tidy(|s| {
        map_apart(s, FAR, 300, None);
        assert_eq!(s.flushes(|| map(s.process, FAR, 600, None)), [(vec![0, 1], FlushScope::All, true)]);
    });
}

#[test]
fn where_no_frame_is_left_a_munmap_flushes_when_it_is_full() {
    const FAR: u64 = 0x5000_0000;
    tidy(|s| {
        map_apart(s, FAR, 400, None);
        let mut taken = vec![];
        while let Ok(pfn) =
            s.memory.alloc_pages(GfpFlags::ATOMIC | GfpFlags::MEMALLOC | GfpFlags::NOWARN, PageOrder::ZERO)
        {
            taken.push(pfn);
        }
        let flushes = s.flushes(|| s.process.munmap(FAR, 800 * PAGE).unwrap());
        taken.into_iter().for_each(|pfn| s.memory.free_pages(pfn, PageOrder::ZERO).unwrap());
        assert!((2..=4).contains(&flushes.len()), "{flushes:?}");
    });
}

#[test]
fn mprotect_forgets_what_has_lost_a_right_and_nothing_else() {
    tidy(|s| {
        assert_eq!(s.flushes(|| s.mprotect(0, 8, Prot::READ)), [both(range(AT + PAGE, 5))]);
        assert_eq!(s.flushes(|| s.mprotect(0, 8, RW)), [], "rights were given");
        assert_eq!(s.flushes(|| s.mprotect(3, 2, Prot::NONE)), [], "nothing is there");
        s.mprotect(3, 2, RW);
        s.look();
        assert_eq!(s.flushes(|| s.mprotect(2, 1, Prot::NONE)), [both(page(AT + 2 * PAGE))]);
        assert_eq!(s.flushes(|| s.mprotect(2, 1, RW)), []);
        assert_eq!(s.flushes(|| s.mprotect(6, 1, Prot::READ)), [], "the page of zeros could not be written");
    });
}

#[test]
fn advice_forgets_what_it_takes() {
    tidy(|s| {
        let advise = |first: u64, pages, advice| {
            s.flushes(|| s.process.madvise(AT + first * PAGE, pages * PAGE, advice as i32).unwrap())
        };
        assert_eq!(advise(0, 3, Advice::DontNeed), [both(range(AT + PAGE, 2))]);
        assert_eq!(advise(0, 3, Advice::DontNeed), []);
        assert_eq!(advise(5, 1, Advice::GuardInstall), [both(page(AT + 5 * PAGE))]);
        assert_eq!(advise(5, 1, Advice::GuardRemove), []);
        assert_eq!(advise(0, 8, Advice::Random), []);
        assert_eq!(advise(0, 8, Advice::WillNeed), []);
        assert_eq!(advise(0, 2, Advice::PopulateWrite), []);
    });
}

#[test]
fn a_move_forgets_the_old_place() {
    tidy(|s| {
        let flags = MremapFlags::MAYMOVE | MremapFlags::FIXED;
        let flushes = s.flushes(|| s.process.mremap(AT, 4 * PAGE, 4 * PAGE, flags, FREE).unwrap());
        assert_eq!(flushes, [both(range(AT + PAGE, 2))]);
    });
}

#[test]
fn fork_forgets_what_the_parent_may_no_longer_write() {
    tidy(|s| {
        let mut children = vec![];
        let flushes = s.flushes(|| children.push(s.process.fork().unwrap()));
        // Once for all VMAs.
        assert_eq!(flushes, [both(FlushScope::All)]);
        assert_eq!(s.flushes(|| children.push(s.process.fork().unwrap())), [], "all is shared already");
    });
}

#[test]
fn a_write_to_a_shared_page_forgets_that_page_everywhere_and_to_ones_own_nothing() {
    tidy(|s| {
        let child = s.process.fork().unwrap();
        let fresh = || s.cpus[0].run(|| User::new(s.process).store(at(AT + 3 * PAGE), b"?").unwrap());
        assert_eq!(s.flushes(fresh), [], "nothing was there");
        s.look();
        let store =
            |addr| s.flushes(|| s.cpus[0].run(|| User::new(s.process).store(at(addr), b"?").unwrap()));
        assert_eq!(store(AT + PAGE), [both(page(AT + PAGE))], "copied");
        assert_eq!(store(AT + PAGE), []);
        drop(child);
        assert_eq!(store(AT + 2 * PAGE), [], "nobody else has it any more");
        assert_eq!(store(AT + 6 * PAGE), [both(page(AT + 6 * PAGE))], "in the place of the page of zeros");
        assert_eq!(store(FILE + 2 * PAGE), [], "a right was given");
    });
}

#[test]
fn a_cpu_that_has_a_stale_translation_forgets_it_alone() {
    tidy(|s| {
        s.mprotect(5, 1, Prot::READ);
        s.look();
        s.mprotect(5, 1, RW);
        // CPU 1 believes that it may not write; the tables say that it may.
        let flushes =
            s.flushes(|| s.cpus[1].run(|| User::new(s.process).store(at(AT + 5 * PAGE), b"?").unwrap()));
        assert!(flushes.iter().all(|flush| *flush == (vec![1], page(AT + 5 * PAGE), false)), "{flushes:?}");
    });
}

#[test]
fn write_back_forgets_pages_that_were_written_and_truncation_those_that_go() {
    tidy(|s| {
        let sync = || s.flushes(|| s.process.msync(FILE, 4 * PAGE, MsyncFlags::SYNC).unwrap());
        assert_eq!(sync(), [both(range(FILE, 2))]);
        assert_eq!(sync(), [], "all is clean");
        s.cpus[1].run(|| User::new(s.process).store(at(FILE + PAGE), b"?").unwrap());
        assert_eq!(s.flushes(|| s.file.sync().unwrap()), [both(page(FILE + PAGE))]);
        assert_eq!(s.flushes(|| s.file.truncate(3 * PAGE).unwrap()), [both(page(FILE + 3 * PAGE))]);
        assert_eq!(s.flushes(|| s.file.truncate(PAGE / 2).unwrap()), [both(range(FILE + PAGE, 2))]);
        assert_eq!(s.flushes(|| s.file.truncate(4 * PAGE).unwrap()), []);
    });
}

#[test]
fn who_has_left_is_told_if_translations_are_kept_apart_and_else_not() {
    let leave = |s: &Scene<'_, '_, '_, '_>| s.cpus[1].run(|| s.process.deactivate());
    on_machine(Asids::On, End::Tidy, |s| {
        leave(s);
        assert_eq!(s.flushes(|| s.mprotect(1, 1, Prot::READ)), [both(page(AT + PAGE))]);
    });
    on_machine(Asids::Off, End::Tidy, |s| {
        leave(s);
        assert_eq!(s.flushes(|| s.mprotect(1, 1, Prot::READ)), [(vec![0], page(AT + PAGE), false)]);
    });
}

/// A change, by name.
type Change = (&'static str, fn(&Scene<'_, '_, '_, '_>));

/// Changes that lose a flush each, and what is left of it: some CPU believes what the tables contradict.
const CHANGES: &[Change] = &[
    ("munmap", |s| s.process.munmap(AT + PAGE, PAGE).unwrap()),
    ("mprotect", |s| s.mprotect(1, 1, Prot::READ)),
    ("mprotect to nothing", |s| s.mprotect(1, 1, Prot::NONE)),
    ("giving memory back", |s| s.process.madvise(AT + PAGE, PAGE, Advice::DontNeed as i32).unwrap()),
    ("a guard", |s| s.process.madvise(AT + PAGE, PAGE, Advice::GuardInstall as i32).unwrap()),
    ("a move", |s| {
        let flags = MremapFlags::MAYMOVE | MremapFlags::FIXED;
        s.process.mremap(AT, 4 * PAGE, 4 * PAGE, flags, FREE).map(drop).unwrap();
    }),
    ("mmap over it", |s| map(s.process, AT, 3, None)),
    ("fork", |s| std::mem::forget(s.process.fork().unwrap())),
    ("the page of zeros replaced", |s| {
        s.cpus[0].run(|| User::new(s.process).store(at(AT + 6 * PAGE), b"?").unwrap());
    }),
    ("write-back", |s| s.process.msync(FILE, PAGE, MsyncFlags::SYNC).unwrap()),
    ("truncation", |s| s.file.truncate(0).unwrap()),
];

#[test]
fn each_flush_that_is_lost_is_noticed() {
    for &(name, change) in CHANGES {
        for lost in [LoseFlushes::All, LoseFlushes::Remote] {
            on_machine(Asids::On, End::Broken, |s| {
                // Frames that were freed would end the run at once.
                let all = VirtRange::new(at(AT), at(AT + (1 << 30))).unwrap();
                s.process.visit_pages(all, |_, state| {
                    let pfn = state.resident().map(|page| page.pfn);
                    assert!(pfn.and_then(|pfn| s.memory.page(pfn)).is_none_or(|page| page.try_get()));
                });
                assert_eq!(s.machine.stale_translation(), None, "{name}");
                s.machine.lose_flushes(lost);
                change(s);
                let stale = s.machine.stale_translation();
                assert!(stale.is_some(), "{name}: {lost:?}: nobody notices");
                assert!(lost == LoseFlushes::All || stale.is_some_and(|stale| stale.cpu.0 == 1), "{name}");
            });
        }
    }
}

/// A second process, with three mappings of 300 written pages each that CPUs 0 and 1 know, and that CPU 0 runs.
fn large<'v, 'a, 'm>(s: &Scene<'_, 'v, 'a, 'm>) -> Proc<'v, 'a, 'm> {
    const PAGES: u64 = 300;
    let process = Process::new(s.process.vm()).unwrap();
    let starts = [0x6000_0000, 0x7000_0000, 0x8000_0000];
    starts.iter().for_each(|&start| map(&process, start, PAGES, None));
    for cpu in [1, 0] {
        s.cpus[cpu].run(|| {
            let user = User::new(&process);
            for page in starts.iter().flat_map(|start| (0..PAGES).map(move |page| start + page * PAGE)) {
                user.store(at(page), b"!").unwrap();
            }
            // Who drops a process sees to it that no other CPU walks its tables.
            if cpu == 1 {
                process.deactivate();
            }
        });
    }
    process
}

#[test]
fn an_exit_makes_cpus_forget_once_whatever_was_mapped() {
    let everything = |cpus| (cpus, FlushScope::All, true);
    // Without tags CPU 0 has forgotten all when it leaves the tables, and CPU 1 has left before.
    for (asids, expected) in [(Asids::On, vec![everything(vec![0, 1])]), (Asids::Off, vec![])] {
        on_machine(asids, End::Tidy, |s| {
            let process = large(s);
            let root = process.with(|mm| mm.shared().pgd()).unwrap();
            s.machine.take_flushes();
            s.cpus[0].run(|| drop(process));
            let of_it = s.machine.take_flushes().into_iter().filter(|(_, flush)| flush.pgd == root);
            let flushes: Vec<Flush> = of_it
                .map(|(cpus, flush)| (cpus.iter().map(|cpu| cpu.0).collect(), flush.scope, flush.tables))
                .collect();
            assert_eq!(flushes, expected, "{asids:?}");
            assert_eq!(s.machine.stale_translation(), None);
        });
    }
}

#[test]
fn an_exec_makes_cpus_forget_the_old_program_once() {
    on_machine(Asids::On, End::Tidy, |s| {
        let process = large(s);
        let root = process.with(|mm| mm.shared().pgd()).unwrap();
        let file = FileRef::new(1, 1, FileKind::Regular).unwrap();
        let program = Binary { file, kind: ElfType::Fixed, align: 0, segments: &[] };
        let top = 0x7000_0000_0000;
        let stack = StackImage { top, path_bytes: 0, arg_bytes: 0, env_bytes: 0, vector_bytes: 16, prot: RW };
        let image = ExecImage { program, interpreter: None, stack, seed: 0 };
        s.machine.take_flushes();
        s.cpus[0].run(|| process.exec(&image).unwrap());
        let of_old = s.machine.take_flushes().into_iter().filter(|(_, flush)| flush.pgd == root);
        assert_eq!(of_old.map(|(_, flush)| flush.scope).collect::<Vec<_>>(), [FlushScope::All]);
        s.cpus[0].run(|| drop(process));
    });
}

#[test]
fn a_copy_on_write_whose_flush_is_lost_is_noticed() {
    on_machine(Asids::On, End::Broken, |s| {
        let child = s.process.fork().unwrap();
        s.look();
        s.machine.lose_flushes(LoseFlushes::Remote);
        s.cpus[0].run(|| User::new(s.process).store(at(AT + PAGE), b"?").unwrap());
        let stale = s.machine.stale_translation().unwrap();
        assert_eq!((stale.cpu.0, stale.addr.get()), (1, AT + PAGE));
        std::mem::forget(child);
    });
}

#[test]
fn many_pages_that_a_file_loses_are_forgotten_with_all_others() {
    on_machine(Asids::Off, End::Tidy, |s| {
        const FAR: u64 = 0x5000_0000;
        map(s.process, FAR, 40, Some(s.file));
        // The first four are mapped elsewhere too.
        for (end, scope) in [(37, range(FAR + 4 * PAGE, 33)), (38, FlushScope::All)] {
            s.file.truncate(end * PAGE).unwrap();
            for cpu in &s.cpus[..2] {
                cpu.run(|| {
                    let user = User::new(s.process);
                    for page in 4..end {
                        user.store(at(FAR + page * PAGE), b"!").unwrap();
                    }
                });
            }
            let lose = || s.file.truncate(4 * PAGE).unwrap();
            assert_eq!(s.flushes(lose), [both(scope)], "up to page {end}");
        }
    });
}
