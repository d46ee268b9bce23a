//! What `/proc` shows of a process and of virtual memory: byte for byte, and beside the running kernel's own.

use std::fmt::Display;

use kernmm::addr::{PageOrder, VirtAddr};
use kernmm::fault::{Access, PinTerm, PinUse, Signal};
use kernmm::flags::{Advice, MapFlags, MremapFlags, Prot};
use kernmm::memory::{FaultCounts, Memory, Process, Refused, User, Vm};
use kernmm::mm::{FileRef, ProtectionKeys, Sysctl};
use kernmm::phys::FailRule;
use kernmm::platform::CpuId;
use kernmm::platform::hosted::{Disk, Latency, Machine};
use kernmm::report::{FileName, Names};
use kernmm::syscall::{MmapArgs, OpenMode};

const PAGE: u64 = 4096;
const RW: Prot = Prot::READ.union(Prot::WRITE);
/// MADV_GUARD_INSTALL.
const GUARD_INSTALL: i32 = 102;

type Mem<'m> = Memory<'m, Machine>;
type Proc<'v, 'a, 'm> = Process<'v, 'a, Mem<'m>>;

struct DevZero;

impl Names for DevZero {
    fn file(&self, _: FileRef) -> FileName<'_> {
        FileName { major: 0, minor: 1, inode: 7, path: "/dev/zero (deleted)" }
    }

    fn special(&self, _: u32) -> &str {
        "[vdso]"
    }
}

fn on_machine(test: impl FnOnce(&Vm<'_, Mem<'_>>)) {
    on_machine_with(ProtectionKeys::Absent, test);
}

fn on_machine_with(protection_keys: ProtectionKeys, test: impl FnOnce(&Vm<'_, Mem<'_>>)) {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on_with(&memory, Sysctl { protection_keys, ..Sysctl::default() }).unwrap();
    test(&vm);
}

fn map(process: &Proc<'_, '_, '_>, at: u64, pages: u64, sharing: MapFlags) -> VirtAddr {
    let flags = sharing | MapFlags::ANONYMOUS | MapFlags::FIXED;
    let args = MmapArgs { addr: at, len: pages * PAGE, prot: RW, flags, file: Ok(None), offset: 0 };
    process.mmap(&args).unwrap()
}

fn page(start: VirtAddr, number: u64) -> VirtAddr {
    start.checked_add(number * PAGE).unwrap()
}

/// Compares a report with a file; with `BLESS` set it writes the file instead.
fn check(name: &str, report: impl Display) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let report = report.to_string();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &report).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert!(report == golden, "{name} is\n{report}\nand should be\n{golden}");
}

fn text(write: impl FnOnce(&mut String) -> std::fmt::Result) -> String {
    let mut text = String::new();
    write(&mut text).unwrap();
    text
}

/// A process with a child: eight private pages, of which five are written and one is read, two of the five are written again by the child; four
/// shared ones, of which two are written; a locked page; a guard page.
fn with_family(look: impl FnOnce(&Vm<'_, Mem<'_>>, &Proc<'_, '_, '_>, &Proc<'_, '_, '_>)) {
    with_family_and(ProtectionKeys::Absent, look);
}

fn with_family_and(
    keys: ProtectionKeys,
    look: impl FnOnce(&Vm<'_, Mem<'_>>, &Proc<'_, '_, '_>, &Proc<'_, '_, '_>),
) {
    on_machine_with(keys, |vm| {
        let parent: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let user = User::new(&parent);
        let private = map(&parent, 0x10_0000, 8, MapFlags::PRIVATE);
        let shared = map(&parent, 0x20_0000, 4, MapFlags::SHARED);
        let locked = map(&parent, 0x30_0000, 2, MapFlags::PRIVATE);
        (0..5).for_each(|number| user.store(page(private, number), &[1]).unwrap());
        user.load_byte(page(private, 5)).unwrap();
        (0..2).for_each(|number| user.store(page(shared, number), &[2]).unwrap());
        parent.mlock(locked.get(), PAGE).unwrap();
        let child: Proc<'_, '_, '_> = parent.fork().unwrap();
        let son = User::new(&child);
        (0..2).for_each(|number| son.store(page(private, number), &[3]).unwrap());
        son.load_byte(shared).unwrap();
        parent.madvise(page(private, 7).get(), PAGE, GUARD_INSTALL).unwrap();
        look(vm, &parent, &child);
    });
}

#[test]
fn reports_of_a_process_are_what_they_were() {
    with_family(|_, parent, child| {
        check("smaps_parent", text(|out| parent.smaps(out, &DevZero)));
        check("smaps_child", text(|out| child.smaps(out, &DevZero)));
        check("smaps_rollup", text(|out| parent.smaps_rollup(out)));
        check("status", text(|out| parent.status(out)));
        check("statm", text(|out| parent.statm(out)));
    });
}

/// The numbers of a report's lines that begin with a name.
#[test]
fn smaps_shows_the_key_of_execute_only_memory_before_the_flags_where_there_are_keys() {
    let shown = |keys| {
        let mut lines = Vec::new();
        on_machine_with(keys, |vm| {
            let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
            for (at, prot) in [(0x1000_0000, RW), (0x2000_0000, Prot::EXEC)] {
                let args = MmapArgs::anonymous(PAGE, prot).fixed(at);
                process.mmap(&args).unwrap();
            }
            let smaps = text(|out| process.smaps(out, &DevZero));
            lines = smaps.lines().map(String::from).collect();
        });
        let last: Vec<String> = lines
            .split(|line| line.starts_with("VmFlags:"))
            .map(|vma| vma.last().cloned().unwrap_or_default())
            .collect();
        last[..2].to_vec()
    };
    assert_eq!(shown(ProtectionKeys::Present), ["ProtectionKey:         0", "ProtectionKey:         1"]);
    assert_eq!(shown(ProtectionKeys::Absent), ["THPeligible:           0", "THPeligible:           0"]);
}

fn numbers(report: &str, name: &str) -> Vec<u64> {
    let lines = report.lines().filter(|line| line.split([':', ' ']).next() == Some(name));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect()
}

#[test]
fn parts_of_shared_pages_add_up_to_whole_pages() {
    with_family(|vm, parent, child| {
        let report = text(|out| parent.smaps(out, &DevZero));
        let pss = |process: &Proc<'_, '_, '_>| {
            numbers(&text(|out| process.smaps_rollup(out)), "Pss").iter().sum::<u64>()
        };
        // Five private pages, the locked one, two shared (which the child got at one fault); and its two copies.
        assert_eq!(pss(parent) + pss(child), 4 * (5 + 1 + 2 + 2));
        assert_eq!(numbers(&report, "Shared_Dirty"), [12, 8, 4, 0]);
        assert_eq!(numbers(&report, "Private_Dirty"), [8, 0, 0, 0]);
        let [anon, file, tables] = ["nr_anon_pages", "nr_file_pages", "nr_page_table_pages"]
            .map(|name| numbers(&vm.vmstat().to_string(), name)[0]);
        assert_eq!((anon, file), (8, 2));
        let own = |process: &Proc<'_, '_, '_>| numbers(&text(|out| process.status(out)), "VmPTE")[0] / 4;
        // Each has a root beside; so has the kernel, with a table for vmalloc.
        assert_eq!(tables, own(parent) + own(child) + 2 + 2);
    });
}

#[test]
fn pagemap_has_linux_bits() {
    with_family(|_, parent, _| {
        let mut entries = [0; 8];
        let at = |start: u64| VirtAddr::from(start);
        assert_eq!(parent.pagemap(at(0x10_0000), &mut entries), 8);
        let high = |entry: u64| entry >> 55;
        let kinds: Vec<u64> = entries.iter().map(|&entry| high(entry)).collect();
        // Present is 0x100, swapped 0x80, a file's 0x40, guard 8, exclusive 2.
        assert_eq!(kinds, [0x102, 0x102, 0x100, 0x100, 0x100, 0x100, 0, 0x88]);
        assert_eq!(entries[7] & ((1 << 55) - 1), 0x9f, "as Linux writes the mark of a guard region");
        parent.pagemap(at(0x20_0000), &mut entries[..3]);
        assert_eq!([high(entries[0]), high(entries[1]), high(entries[2])], [0x140, 0x140, 0]);
        let top = 0x7fff_ffff_f000;
        assert_eq!(parent.pagemap(at(top - 2 * PAGE), &mut entries), 2, "the user's addresses end");
        assert_eq!(parent.pagemap(at(top), &mut entries), 0);
    });
}

#[test]
fn faults_are_counted_for_a_process_and_for_all() {
    on_machine(|vm| {
        let total = || numbers(&vm.vmstat().to_string(), "pgfault")[0];
        let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let user = User::new(&process);
        let start = map(&process, 0x10_0000, 4, MapFlags::PRIVATE);
        assert_eq!((process.faults(), total()), (FaultCounts::default(), 0));
        user.store(start, &[1]).unwrap();
        user.store(start, &[2]).unwrap();
        user.load_byte(page(start, 1)).unwrap();
        user.store(page(start, 1), &[1]).unwrap();
        assert_eq!(process.faults(), FaultCounts { minor: 3, major: 0 });
        assert!(user.load_byte(page(start, 9)).is_err(), "not resolved, not counted");
        assert_eq!(total(), 3);
        drop(process);
        assert_eq!(total(), 3, "those of a process that has ended stay");
        assert_eq!(numbers(&vm.vmstat().to_string(), "pgmajfault"), [0]);
    });
}

#[test]
fn faults_that_a_call_makes_are_counted_too() {
    // What getrusage of Linux 6.18 says of the same calls.
    on_machine(|vm| {
        let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let minor = |call: &dyn Fn()| {
            let before = process.faults().minor;
            call();
            process.faults().minor - before
        };
        let at = |number: u64| 0x100_0000 * number;
        let advise = |number, advice: Advice| {
            process.madvise(at(number), 100 * PAGE, advice as i32).unwrap();
        };
        let populated = || _ = map(&process, at(1), 100, MapFlags::PRIVATE | MapFlags::POPULATE);
        assert_eq!(minor(&populated), 100);
        map(&process, at(2), 100, MapFlags::PRIVATE);
        assert_eq!(minor(&|| process.mlock(at(2), 100 * PAGE).unwrap()), 100);
        map(&process, at(3), 100, MapFlags::PRIVATE);
        assert_eq!(minor(&|| advise(3, Advice::PopulateRead)), 100);
        assert_eq!(minor(&|| advise(3, Advice::PopulateWrite)), 100);
        assert_eq!(minor(&|| advise(3, Advice::PopulateWrite)), 0, "nothing is left to do");
        assert_eq!(process.faults(), FaultCounts { minor: 400, major: 0 });
        assert_eq!(numbers(&vm.vmstat().to_string(), "pgfault"), [400]);
    });
}

#[test]
fn a_fault_that_waited_for_its_store_is_one_major_fault_whoever_made_it() {
    let machine = Machine::pc(16 << 20).build().unwrap();
    let _cpu = machine.cpu(CpuId::BOOT).unwrap();
    let disk = Disk::new(&machine);
    let memory = Memory::on(&machine).unwrap();
    let vm: Vm<'_, _> = Vm::on(&memory).unwrap();
    disk.put(1, &[7; 2 * PAGE as usize]);
    disk.put(2, &[7; 2 * PAGE as usize]);
    disk.set_latency(Latency::Polls(2));
    let process: Proc<'_, '_, '_> = Process::new(&vm).unwrap();
    let counts = || (process.faults(), numbers(&vm.vmstat().to_string(), "pgmajfault")[0]);
    for (round, populate) in [(1, MapFlags::empty()), (2, MapFlags::POPULATE)] {
        let file = vm.open_file(&disk, round, OpenMode::ReadWrite).unwrap();
        let flags = MapFlags::PRIVATE | populate;
        let args = MmapArgs { addr: 0, len: 1, prot: RW, flags, file: Ok(Some(file.map_file())), offset: 0 };
        let start = process.mmap(&args).unwrap();
        User::new(&process).store(start, b"!").unwrap();
        assert_eq!(counts(), (FaultCounts { minor: 0, major: round }, round));
    }
}

#[test]
fn faults_that_fail_are_counted_for_all_alone() {
    on_machine(|vm| {
        let total = || numbers(&vm.vmstat().to_string(), "pgfault")[0];
        let process: Proc<'_, '_, '_> = Process::new(vm).unwrap();
        let user = User::new(&process);
        let start = map(&process, 0x10_0000, 4, MapFlags::SHARED);
        process.mremap(start.get(), 4 * PAGE, 5 * PAGE, MremapFlags::empty(), 0).unwrap();
        let beyond = user.load_byte(page(start, 4));
        assert_eq!(beyond, Err(Refused::Signal(Signal::NoPage)));
        assert_eq!((process.faults(), total()), (FaultCounts::default(), 1));
        let memory = vm.source();
        memory.phys().set_fail_rule(&memory.pin(), FailRule::Every(1));
        assert_eq!(user.load_byte(start), Err(Refused::OutOfMemory));
        memory.phys().set_fail_rule(&memory.pin(), FailRule::Never);
        assert_eq!((process.faults(), total()), (FaultCounts::default(), 2));
        process.mprotect(start.get(), PAGE, Prot::empty()).unwrap();
        assert_eq!(user.load_byte(start), Err(Refused::Signal(Signal::Denied)));
        assert!(user.load_byte(page(start, 9)).is_err());
        assert_eq!(
            (process.faults(), total()),
            (FaultCounts::default(), 2),
            "no fault in a VMA that allows it"
        );
    });
}

#[test]
fn meminfo_shows_what_virtual_memory_uses() {
    with_family(|vm, parent, _| {
        let line = |name: &str| numbers(&vm.meminfo().to_string(), name)[0];
        assert_eq!((line("AnonPages"), line("Cached"), line("Shmem")), (32, 8, 8));
        assert_eq!((line("Mapped"), line("Dirty"), line("Writeback")), (8, 0, 0));
        assert_eq!(line("VmallocUsed"), 0);
        let at = vm.kernel_tables().vmalloc(3 * PAGE, kernmm::flags::GfpFlags::KERNEL).unwrap();
        assert_eq!(line("VmallocUsed"), 12);
        vm.kernel_tables().vfree(at).unwrap();
        // A page that is unmapped under a pin is nobody's anonymous page any more.
        let mut pinned = [kernmm::addr::Pfn::ZERO];
        parent.pin_pages(VirtAddr::from(0x10_0000), Access::Write, PinTerm::Short, &mut pinned).unwrap();
        parent.munmap(0x10_0000, PAGE).unwrap();
        assert_eq!(line("AnonPages"), 28);
        vm.unpin_pages(&pinned, PinUse::Dirtied);
        let order = PageOrder::ZERO;
        assert!(vm.source().free_pages(pinned[0], order).is_err(), "it is free");
    });
}

/// The running kernel's reports.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod live {
    use super::*;

    /// A line's name, and the column in which its first number ends.
    fn shape(line: &str) -> (String, usize) {
        let name: String = line.chars().take_while(|char| *char != ':').collect();
        let digits = line.find(|char: char| char.is_ascii_digit()).unwrap_or(line.len());
        let end =
            line[digits..].find(|char: char| !char.is_ascii_digit()).map_or(line.len(), |end| digits + end);
        (name, end)
    }

    fn proc(name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{name}")).unwrap_or_default()
    }

    fn is_recent() -> bool {
        let release = proc("sys/kernel/osrelease");
        let mut numbers =
            release.split(|char: char| !char.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version < (6, 16) {
            println!("not compared: the running kernel is {}", release.trim());
        }
        version >= (6, 16)
    }

    /// The lines of the first VMA of smaps.
    fn first(smaps: &str) -> Vec<(String, usize)> {
        let lines = smaps
            .lines()
            .skip(1)
            .take_while(|line| line.split(' ').next().is_some_and(|name| name.ends_with(':')));
        lines.filter(|line| !line.starts_with("VmFlags")).map(shape).collect()
    }

    #[test]
    fn smaps_has_the_lines_of_the_running_kernel() {
        if !is_recent() {
            return;
        }
        let live = proc("self/smaps");
        let keys = match live.contains("\nProtectionKey:") {
            true => ProtectionKeys::Present,
            false => ProtectionKeys::Absent,
        };
        with_family_and(keys, |_, parent, _| {
            let ours = text(|out| parent.smaps(out, &DevZero));
            assert_eq!(first(&ours), first(&live));
            let rollup = |text: &str| text.lines().skip(1).map(shape).collect::<Vec<_>>();
            let ours = text(|out| parent.smaps_rollup(out));
            assert_eq!(rollup(&ours), rollup(&proc("self/smaps_rollup")));
            let head = |text: &str| text.lines().next().unwrap_or_default().find("[rollup]");
            assert_eq!(head(&ours), head(&proc("self/smaps_rollup")));
        });
    }

    #[test]
    fn vmstat_and_meminfo_have_the_running_kernels_names_in_its_order() {
        if !is_recent() {
            return;
        }
        with_family(|vm, _, _| {
            for (ours, theirs) in [(vm.vmstat().to_string(), "vmstat"), (vm.meminfo().to_string(), "meminfo")]
            {
                let names = |text: &str| -> Vec<String> {
                    text.lines().filter_map(|line| line.split([' ', ':']).next().map(String::from)).collect()
                };
                let live = names(&proc(theirs));
                let places: Vec<usize> = names(&ours)
                    .iter()
                    .filter_map(|name| live.iter().position(|other| other == name))
                    .collect();
                assert!(places.len() > 10 && places.is_sorted(), "{theirs}: {places:?}");
            }
        });
    }
}
