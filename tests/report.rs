//! Reports byte for byte, and their layout beside that of the running kernel's own.

use std::collections::BTreeSet;
use std::fmt::Display;

use kernmm::addr::{PageOrder, Pfn, PhysAddr};
use kernmm::flags::GfpFlags;
use kernmm::memory::Memory;
use kernmm::phys::DeferredBound;
use kernmm::platform::hosted::Machine;

const MIB: u64 = 1 << 20;

/// Two nodes and all kinds of zones, with a little of each in use.
fn with_memory(look: impl FnOnce(&Memory<'_, Machine>)) {
    let highmem = PhysAddr::new(40 * MIB).unwrap();
    let machine = Machine::pc(64 * MIB).cpus(2).nodes(2).highmem_from(highmem).build().unwrap();
    let cpus = machine.all_cpus().unwrap();
    let memory = Memory::on(&machine).unwrap();
    let order = |order| PageOrder::new(order).unwrap();
    let alloc = |gfp, order| memory.alloc_pages(gfp, order).unwrap();
    alloc(GfpFlags::KERNEL, order(0));
    alloc(GfpFlags::HIGHUSER_MOVABLE, order(9));
    let large = alloc(GfpFlags::KERNEL | GfpFlags::DMA, order(4));
    alloc(GfpFlags::KERNEL | GfpFlags::RECLAIMABLE, order(3));
    memory.free_pages(large, order(4)).unwrap();
    cpus[1].run(|| {
        let frames: Vec<Pfn> = (0..3).map(|_| alloc(GfpFlags::HIGHUSER, order(0))).collect();
        memory.free_pages(frames[1], order(0)).unwrap();
    });
    memory.slabs().unwrap().kmalloc(&memory, 40_000, GfpFlags::KERNEL).unwrap();
    look(&memory);
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

#[test]
fn reports_are_what_they_were() {
    with_memory(|memory| {
        // The only one that merges nothing comes first.
        check("mem_info", memory.mem_info());
        check("zoneinfo", memory.zoneinfo());
        check("vmstat", memory.vmstat());
        check("meminfo", memory.meminfo());
        check("buddyinfo", memory.buddyinfo());
        check("pagetypeinfo", memory.pagetypeinfo());
        // With feature `check` objects have red zones, and so other sizes.
        if cfg!(not(feature = "check")) {
            use_objects(memory);
            check("slabinfo", memory.slabinfo().unwrap());
        }
    });
}

/// Leaves 70 of 100 objects in use.
fn use_objects(memory: &Memory<'_, Machine>) {
    let slabs = memory.slabs().unwrap();
    let objects: Vec<_> = (0..100).map(|_| slabs.kmalloc(memory, 192, GfpFlags::KERNEL).unwrap()).collect();
    for &object in &objects[..30] {
        // SAFETY: nobody uses the object any more.
        unsafe { slabs.kfree(memory, object) }.unwrap();
    }
}

#[test]
fn buddyinfo_shows_what_could_be_allocated() {
    with_memory(|memory| {
        memory.phys().set_batch(&memory.pin(), Some(0));
        memory.phys().set_deferred_bound(&memory.pin(), DeferredBound::Pages(64));
        let before = memory.buddyinfo().to_string();
        let frames: Vec<Pfn> =
            (0..16).map(|_| memory.alloc_pages(GfpFlags::KERNEL, PageOrder::ZERO).unwrap()).collect();
        memory.free_pages_bulk(&frames, PageOrder::ZERO).unwrap();
        let waiting =
            || memory.phys().zones().iter().map(|zone| zone.stat(&memory.pin()).deferred).sum::<u64>();
        assert_ne!(waiting(), 0, "some frames wait for their merge");
        assert_eq!(memory.buddyinfo().to_string(), before);
        assert_eq!(waiting(), 0);
    });
}

/// The running kernel's reports.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod live {
    use super::*;

    fn proc(name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{name}")).unwrap()
    }

    /// Whether the running kernel prints all that the reports have, of which `nr_free_pages_blocks` came last, with 6.16.
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

    /// A line without its numbers and all that pads them.
    fn label(line: &str) -> String {
        let cut =
            line.trim_end().trim_end_matches(|char: char| char.is_ascii_digit() || " ()->,kB".contains(char));
        let indent = line.len() - line.trim_start().len();
        format!("{indent} {}", cut.trim())
    }

    /// The column in which the last number of a line begins.
    fn column(line: &str) -> usize {
        let line = line.trim_end();
        line.len() - line.bytes().rev().take_while(u8::is_ascii_digit).count()
    }

    #[test]
    fn buddyinfo_has_the_columns_of_the_running_kernel() {
        let live = proc("buddyinfo");
        let line = live.lines().next().unwrap();
        let (head, counts) = line.split_at(line.find("zone").unwrap() + "zone ".len() + 9);
        with_memory(|memory| {
            let ours = memory.buddyinfo().to_string();
            for ours in ours.lines() {
                let (own_head, own_counts) = ours.split_at(head.len());
                assert!(own_head.starts_with("Node ") && own_head[6..13] == head[6..13], "{ours}");
                assert_eq!(own_counts.len(), 10 * 7, "each order takes as much as in {counts:?}");
                assert!(own_counts.ends_with(' ') && counts.ends_with(' '));
            }
        });
    }

    #[test]
    fn zoneinfo_has_only_lines_of_the_running_kernel() {
        if !is_recent() {
            return;
        }
        let live = proc("zoneinfo");
        let known: BTreeSet<String> = live.lines().map(label).collect();
        let columns: BTreeSet<(String, usize)> =
            live.lines().map(|line| (label(line), column(line))).collect();
        with_memory(|memory| {
            let ours = memory.zoneinfo().to_string();
            let (heads, fields): (Vec<&str>, Vec<&str>) =
                ours.lines().partition(|line| line.starts_with("Node"));
            assert_eq!(heads[0], live.lines().next().unwrap(), "both have a node 0 with DMA");
            assert!(heads.iter().all(|line| line.len() == heads[0].len()));
            for line in fields {
                assert!(known.contains(&label(line)), "{line:?}");
                assert!(
                    line.contains("protection") || columns.contains(&(label(line), column(line))),
                    "{line:?}"
                );
            }
        });
    }

    #[test]
    fn slabinfo_has_the_columns_of_the_running_kernel() {
        let Ok(live) = std::fs::read_to_string("/proc/slabinfo") else {
            println!("not compared: /proc/slabinfo is for root alone");
            return;
        };
        let live: Vec<&str> = live.lines().collect();
        let columns = |line: &str| {
            let marks = [" : tunables", " : slabdata"].map(|mark| line.find(mark).unwrap());
            (marks, line.len())
        };
        let is_usual = |line: &&&str| {
            line.split_whitespace().all(|word| word.len() <= 6) || line.starts_with("kmalloc-1k ")
        };
        let usual = live[2..].iter().find(is_usual).unwrap();
        with_memory(|memory| {
            use_objects(memory);
            let ours = memory.slabinfo().unwrap().to_string();
            let ours: Vec<&str> = ours.lines().collect();
            assert_eq!(ours[..2], live[..2]);
            assert!(ours.len() > 12);
            assert!(ours[2..].iter().all(|line| columns(line) == columns(usual)), "{ours:#?}\n{usual}");
        });
    }

    #[test]
    fn vmstat_and_meminfo_have_names_of_the_running_kernel() {
        if !is_recent() {
            return;
        }
        let name = |line: &str| line.split_whitespace().next().unwrap().to_owned();
        let known: BTreeSet<String> =
            [proc("vmstat"), proc("meminfo")].iter().flat_map(|live| live.lines().map(name)).collect();
        let meminfo = proc("meminfo");
        let width = meminfo.lines().next().unwrap().len();
        let not_there =
            |name: &str| name.contains("_high") || name.starts_with("High") || name.starts_with("Low");
        with_memory(|memory| {
            for line in memory
                .vmstat()
                .to_string()
                .lines()
                .take_while(|line| !line.starts_with("nr_free_pages_deferred"))
            {
                assert!(known.contains(&name(line)) || not_there(line), "{line}");
            }
            for line in memory.meminfo().to_string().lines() {
                assert!(known.contains(&name(line)) || not_there(line), "{line}");
                assert_eq!(line.len(), width, "{line}");
            }
        });
    }
}
