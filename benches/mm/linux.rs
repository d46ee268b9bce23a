//! The running kernel's own figures, for orientation: they pay for the way into the kernel and back, and for page tables; ours do not.

use crate::ours;
use crate::targets::Verdict;
use crate::workloads::now;
use kernmm::addr::VirtAddr;
use kernmm::flags::{MapFlags, Prot};
use kernmm::mm::{Mm, MmContext, NullTables};
use kernmm::syscall::{self, MmapArgs};
use std::ptr::null_mut;
use std::time::Duration;

const PAGE: u64 = 4096;
/// VMAs of the address space that is copied: fewer than the kernel's limit allows.
const FORKED: usize = 20_000;
const CALLS: u32 = 20_000;
/// Forks of which the fastest counts.
const FORKS: u32 = 5;

/// Between stacks: as much as the guard below one takes, so that there is room for nothing.
const GUARD: u64 = 256;
/// What is looked for among stacks, in pages: it fits into every gap but for the guard.
const AMONG: u64 = 200;

/// Prints both, in ns an operation; whether the target of fork was missed.
pub fn print(effort: &crate::workloads::Effort) -> bool {
    let calls = CALLS.min(effort.changes as u32);
    println!("{:28}{:>16}{:>16}   (Linux: with the way into the kernel and back)", "", "kernmm", "Linux");
    let mut space = Ours::new();
    row("mmap+munmap", space.map_and_unmap(calls), linux_map_and_unmap(calls));
    row("mprotect, split and merge", space.split_and_merge(calls), linux_split_and_merge(calls));
    let forked = if effort.rounds > 1 { FORKED } else { 100 };
    for stacks in [1_000, 10_000] {
        let name = format!("mmap+munmap, {stacks} guards");
        row(&name, among_stacks(stacks, calls.min(100)), linux_among_stacks(stacks, calls.min(100)));
    }
    let (ours, linux) = (fork(forked), linux_fork(forked));
    row("fork, for a VMA", ours, linux);
    let verdict = Verdict::new("fork_a_vma/linux", ours / linux, 0.5);
    println!("{}", verdict.line);
    verdict.missed
}

fn row(name: &str, ours: f64, linux: f64) {
    println!("{name:28}{ours:>16.1}{linux:>16.1}");
}

fn ns_each(start: Duration, calls: u32) -> f64 {
    (now() - start).as_nanos() as f64 / f64::from(calls)
}

/// An address space of ours with a few mappings, as a small program has.
struct Ours {
    mm: Mm<'static>,
    tables: NullTables,
}

fn anonymous(addr: u64, pages: u64, prot: Prot, flags: MapFlags) -> MmapArgs {
    let flags = flags | MapFlags::PRIVATE | MapFlags::ANONYMOUS;
    MmapArgs { addr, len: pages * PAGE, prot, flags, file: Ok(None), offset: 0 }
}

const RW: Prot = Prot::READ.union(Prot::WRITE);
const FAR: u64 = 0x2000_0000_0000;

impl Ours {
    fn new() -> Self {
        Self::with(ours::context(30), 30)
    }

    /// So many VMAs of two pages that do not touch each other.
    fn with(context: &'static MmContext<'static>, vmas: usize) -> Self {
        let mut ours =
            Self { mm: Mm::new(context).expect("an address space"), tables: NullTables::default() };
        for vma in 0..vmas as u64 {
            ours.mmap(&anonymous(FAR + vma * 4 * PAGE, 2, RW, MapFlags::FIXED));
        }
        ours
    }

    fn mmap(&mut self, args: &MmapArgs) -> VirtAddr {
        let at = syscall::mmap(&mut self.mm, &mut self.tables, args).expect("mmap");
        self.mm.end_section();
        at
    }

    fn map_and_unmap(&mut self, calls: u32) -> f64 {
        let start = now();
        for _ in 0..calls {
            let at = self.mmap(&anonymous(0, 4, RW, MapFlags::empty()));
            syscall::munmap(&mut self.mm, &mut self.tables, at.get(), 4 * PAGE).expect("munmap");
            self.mm.end_section();
        }
        ns_each(start, calls)
    }

    fn split_and_merge(&mut self, calls: u32) -> f64 {
        let at = self.mmap(&anonymous(0, 3, RW, MapFlags::empty())).get() + PAGE;
        let start = now();
        for _ in 0..calls {
            for prot in [Prot::READ, RW] {
                syscall::mprotect(&mut self.mm, &mut self.tables, at, PAGE, prot).expect("mprotect");
                self.mm.end_section();
            }
        }
        ns_each(start, calls)
    }
}

/// mmap below so many stacks, each with a gap below that is long enough but for the stack's guard.
fn among_stacks(stacks: u64, calls: u32) -> f64 {
    let mut ours = Ours::with(ours::context(stacks as usize), 0);
    let top = ours.mm.mmap_base().get();
    for stack in 0..stacks {
        let at = top - stack * (GUARD + 1) * PAGE - PAGE;
        ours.mmap(&anonymous(at, 1, RW, MapFlags::FIXED | MapFlags::GROWSDOWN));
    }
    let lowest = top - stacks * (GUARD + 1) * PAGE;
    let start = now();
    for _ in 0..calls {
        let at = ours.mmap(&anonymous(0, AMONG, RW, MapFlags::empty()));
        assert!(at.get() < lowest, "room among the guards");
        syscall::munmap(&mut ours.mm, &mut ours.tables, at.get(), AMONG * PAGE).expect("munmap");
        ours.mm.end_section();
    }
    ns_each(start, calls)
}

/// What a fork takes for a VMA, until it is back in the parent: the best of some.
fn fork(vmas: usize) -> f64 {
    let once = |_| {
        let mut parent = Ours::with(ours::context(2 * vmas), vmas);
        let mut child = parent.mm.new_child().expect("an address space");
        let mut tables = parent.tables.clone();
        let start = now();
        syscall::fork(&mut parent.mm, &mut parent.tables, &mut child, &mut tables).expect("fork");
        ns_each(start, vmas as u32)
    };
    (0..FORKS).map(once).fold(f64::INFINITY, f64::min)
}

/// As [`among_stacks`], wherever this process has room.
fn linux_among_stacks(stacks: u64, calls: u32) -> f64 {
    let pages = stacks * (GUARD + 1);
    let at = linux_map(pages, libc::PROT_NONE);
    // Whatever else there is room in above is taken.
    let mut taken = Vec::new();
    loop {
        let filler = linux_map(AMONG, libc::PROT_NONE);
        taken.push(filler);
        if filler < at {
            break;
        }
    }
    // The highest page of each stretch is a stack, with its gap below.
    for stack in 0..stacks {
        let gap = at + stack * (GUARD + 1) * PAGE;
        linux_unmap(gap, GUARD + 1);
        linux_map_stack(gap + GUARD * PAGE);
    }
    taken.pop().into_iter().for_each(|below| linux_unmap(below, AMONG));
    let start = now();
    for _ in 0..calls {
        let found = linux_map(AMONG, LINUX_RW);
        assert!(found < at, "room among the guards");
        linux_unmap(found, AMONG);
    }
    let took = ns_each(start, calls);
    linux_unmap(at, pages);
    taken.into_iter().for_each(|filler| linux_unmap(filler, AMONG));
    took
}

fn linux_map(pages: u64, prot: i32) -> u64 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping where nothing is.
    let at = unsafe { libc::mmap(null_mut(), (pages * PAGE) as usize, prot, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "mmap");
    at as u64
}

fn linux_map_stack(at: u64) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new mapping where nothing is.
    let got = unsafe { libc::mmap(at as *mut libc::c_void, PAGE as usize, LINUX_RW, flags, -1, 0) };
    assert_eq!(got as u64, at, "mmap of a stack");
}

fn linux_unmap(at: u64, pages: u64) {
    // SAFETY: a mapping that this module made, and whose memory nobody uses.
    let result = unsafe { libc::munmap(at as *mut libc::c_void, (pages * PAGE) as usize) };
    assert_eq!(result, 0, "munmap");
}

fn linux_protect(at: u64, prot: i32) {
    // SAFETY: a page of a mapping that this module made, and whose memory nobody uses.
    let result = unsafe { libc::mprotect(at as *mut libc::c_void, PAGE as usize, prot) };
    assert_eq!(result, 0, "mprotect");
}

const LINUX_RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn linux_map_and_unmap(calls: u32) -> f64 {
    let start = now();
    (0..calls).for_each(|_| linux_unmap(linux_map(4, LINUX_RW), 4));
    ns_each(start, calls)
}

fn linux_split_and_merge(calls: u32) -> f64 {
    let at = linux_map(3, LINUX_RW);
    let start = now();
    for _ in 0..calls {
        linux_protect(at + PAGE, libc::PROT_READ);
        linux_protect(at + PAGE, LINUX_RW);
    }
    let took = ns_each(start, calls);
    linux_unmap(at, 3);
    took
}

/// What a fork takes longer with so many VMAs more, for each: until it is back in the parent. Neither side has pages to share.
fn linux_fork(vmas: usize) -> f64 {
    let before = linux_fork_once();
    // Every other page unmapped, so that no two are neighbours.
    let at = linux_map(2 * vmas as u64, LINUX_RW);
    (0..vmas as u64).for_each(|page| linux_unmap(at + 2 * page * PAGE, 1));
    let after = linux_fork_once();
    linux_unmap(at, 2 * vmas as u64);
    (after - before) / vmas as f64
}

fn linux_fork_once() -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..FORKS {
        let start = now();
        // SAFETY: the child does nothing but end.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: ends at once, without the parent's handlers.
            unsafe { libc::_exit(0) };
        }
        best = best.min((now() - start).as_nanos() as f64);
        // SAFETY: waits for the child that was made above.
        let waited = unsafe { libc::waitpid(child, null_mut(), 0) };
        assert_eq!(waited, child, "waitpid");
    }
    best
}
