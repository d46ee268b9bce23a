//! Programs that try this kernel hard. What they print is the same on every run.

use core::sync::atomic::{AtomicU32, Ordering};

use kernmm_programs::{Addr, Calls, Errno, MapFlags, Prot, Ring3, Status, System};

use crate::say;

const PAGE: u64 = 4096;

/// Runs the program of this name and answers with its exit status.
pub fn run(sys: &Ring3, name: &str) -> Option<i32> {
    let result = match name {
        "shoot_down" => shoot_down(sys),
        "stress" => stress(sys),
        "demand" => demand(sys),
        "cost" => cost(sys),
        _ => return None,
    };
    Some(match result {
        Ok(()) => 0,
        Err(errno) => {
            say(sys, format_args!("{name}: {errno}"));
            1
        }
    })
}

/// Waits for one child and says whether it ended well.
fn wait_well(sys: &Ring3) -> Result<bool, Errno> {
    Ok(matches!(sys.wait()?, (_, Status::Exited(0))))
}

fn fill(sys: &Ring3, memory: Addr, pages: u64, with: u32) {
    (0..pages).for_each(|page| sys.store_u32(memory + page * PAGE, with ^ page as u32));
}

fn holds(sys: &Ring3, memory: Addr, pages: u64, with: u32) -> bool {
    (0..pages).all(|page| sys.load_u32(memory + page * PAGE) == with ^ page as u32)
}

/// One thread reads a page all the time while another gives it back and fills a new one: the reader must never see the old page after it was
/// told of the new. It does where its CPU is not made to forget.
fn shoot_down(sys: &Ring3) -> Result<(), Errno> {
    static PHASE: AtomicU32 = AtomicU32::new(0);
    static STALE: AtomicU32 = AtomicU32::new(0);
    static READS: AtomicU32 = AtomicU32::new(0);
    const PHASES: u32 = 40;
    const LOOKS: u32 = 1 << 20;
    let page = sys.map_anonymous(PAGE, MapFlags::PRIVATE)?;
    sys.store_u32(page, 0);
    // Their pages are this process's own from here on: copied later, they would be what the reader never sees again, and it would never end.
    for word in [&PHASE, &STALE, &READS] {
        word.store(0, Ordering::Relaxed);
    }
    let reader = sys.thread(move |sys| {
        loop {
            let phase = PHASE.load(Ordering::Acquire);
            if phase > PHASES {
                return;
            }
            // 0 is a page that has just come, for the next phase.
            if (1..phase).contains(&sys.load_u32(page)) {
                STALE.fetch_add(1, Ordering::Relaxed);
            }
            READS.fetch_add(1, Ordering::Release);
        }
    })?;
    for phase in 2..=PHASES {
        // The reader has read the page, so its CPU knows the way.
        let reads = READS.load(Ordering::Acquire);
        let mut looks = 0_u32;
        while READS.load(Ordering::Acquire) < reads + 2 {
            // It reads on the other CPU, if there is one and this one is kept; where it is the same, it is let on.
            looks += 1;
            match looks % LOOKS {
                0 => sys.sched_yield(),
                _ => core::hint::spin_loop(),
            }
        }
        sys.madvise_dontneed(page, PAGE)?;
        // Whoever still knows the way to the old page's frame finds this there.
        let other = sys.map_anonymous(PAGE, MapFlags::PRIVATE)?;
        sys.store_u32(other, 1);
        sys.store_u32(page, phase);
        PHASE.store(phase, Ordering::Release);
        sys.munmap(other, PAGE)?;
    }
    PHASE.store(PHASES + 1, Ordering::Release);
    sys.join(reader)?;
    match STALE.load(Ordering::Relaxed) {
        0 => {
            say(sys, format_args!("shoot_down: {PHASES} pages replaced, and no old one seen"));
            Ok(())
        }
        _ => {
            say(sys, format_args!("shoot_down: old pages were seen"));
            Err(Errno::EFAULT)
        }
    }
}

/// Takes all memory there is: this process ends, the one that it began before goes on, and tells its parent.
fn stress(sys: &Ring3) -> Result<(), Errno> {
    let small = sys.map_anonymous(16 * PAGE, MapFlags::PRIVATE)?;
    fill(sys, small, 16, 42);
    let eater = sys.fork(|sys| {
        let mut pages = 0_u64;
        // In parts, since a single request for more than there is would be refused.
        while let Ok(part) = sys.map_anonymous(256 * PAGE, MapFlags::PRIVATE | MapFlags::POPULATE) {
            for page in 0..256 {
                sys.store_u32(part + page * PAGE, page as u32);
                pages += 1;
            }
        }
        say(sys, format_args!("stress: mmap refused after {pages} pages"));
        1
    })?;
    let (pid, status) = sys.wait()?;
    let survived = holds(sys, small, 16, 42);
    match (pid == eater, status, survived) {
        (true, Status::Killed(9), true) => {
            say(
                sys,
                format_args!("stress: the process that took all memory was killed, its parent is whole"),
            );
            Ok(())
        }
        (_, status, whole) => {
            say(sys, format_args!("stress: {status:?}, parent whole: {whole}"));
            Err(Errno::EFAULT)
        }
    }
}

/// Words of [`TABLE`]: 2 MiB.
const TABLE_WORDS: usize = 512 << 10;

/// A table that comes with the program: much more of the file than is ever looked at.
#[unsafe(link_section = ".rodata.table")]
static TABLE: [u32; TABLE_WORDS] = {
    let mut table = [0; TABLE_WORDS];
    let mut at = 0;
    while at < TABLE_WORDS {
        table[at] = (at as u32).wrapping_mul(0x9e37_79b9);
        at += 1;
    }
    table
};

/// Looks at a few places of a large table in the program's own file: only those are read from the disk.
fn demand(sys: &Ring3) -> Result<(), Errno> {
    const PAGES: u64 = (TABLE_WORDS as u64 * 4) / PAGE;
    let start = (&raw const TABLE) as u64;
    let first = start.next_multiple_of(PAGE);
    let mut sum = 0_u32;
    for place in [0, TABLE_WORDS / 3, TABLE_WORDS / 3 * 2, TABLE_WORDS - 1] {
        sum = sum.wrapping_add(sys.load_u32(start + 4 * place as u64));
    }
    let mut resident = [0; PAGES as usize - 1];
    let len = (PAGES - 1) * PAGE;
    let told = sys
        .lend(&mut resident, |to| sys.syscall(kernmm_programs::number::MINCORE, [first, len, to, 0, 0, 0]));
    if told != 0 {
        return Err(Errno::ENOMEM);
    }
    let there = resident.iter().filter(|byte| **byte & 1 == 1).count() as u64;
    say(sys, format_args!("demand: four of {TABLE_WORDS} words sum to {sum:#x}"));
    say(sys, format_args!("# demand: {there} of {PAGES} pages of the table are in memory"));
    say(sys, format_args!("demand: most of it was never read: {}", there < PAGES / 2));
    Ok(())
}

/// The time-stamp counter. With QEMU's `-icount shift=0` it counts instructions.
fn now() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// What a first touch, mmap, munmap, and a child cost, with more and more VMAs, and with more and more pages to copy.
fn cost(sys: &Ring3) -> Result<(), Errno> {
    const TOUCHED: u64 = 64;
    let own = Prot::READ | Prot::WRITE;
    let mut vmas = 0;
    for more in [0, 90, 800] {
        // Every other page is protected otherwise, so that none of them merge.
        let range = sys.map_anonymous((more + 1) * PAGE, MapFlags::PRIVATE)?;
        for page in (0..more).step_by(2) {
            sys.mprotect(range + page * PAGE, PAGE, Prot::READ)?;
        }
        vmas += more;
        let memory = sys.map_anonymous(TOUCHED * PAGE, MapFlags::PRIVATE)?;
        let start = now();
        (0..TOUCHED).for_each(|page| sys.store_u32(memory + page * PAGE, 1));
        let touch = (now() - start) / TOUCHED;
        let (mut map, mut unmap) = (0, 0);
        for _ in 0..TOUCHED {
            let start = now();
            let page = sys.mmap(0, PAGE, own, MapFlags::SHARED | MapFlags::ANONYMOUS, -1, 0)?;
            map += now() - start;
            let start = now();
            sys.munmap(page, PAGE)?;
            unmap += now() - start;
        }
        let (fork, child) = child_cost(sys)?;
        say(
            sys,
            format_args!(
                "# cost: {vmas} more VMAs: first touch {touch}, mmap {}, munmap {}, fork {fork}, fork+exit+wait {child}",
                map / TOUCHED,
                unmap / TOUCHED
            ),
        );
        sys.munmap(memory, TOUCHED * PAGE)?;
    }
    for pages in [256, 1024] {
        let memory = sys.map_anonymous(pages * PAGE, MapFlags::PRIVATE)?;
        fill(sys, memory, pages, 1);
        let (fork, child) = child_cost(sys)?;
        say(sys, format_args!("# cost: {pages} pages more: fork {fork}, fork+exit+wait {child}"));
        sys.munmap(memory, pages * PAGE)?;
    }
    Ok(())
}

/// What fork costs until the parent goes on, and with the child's end: the least of some, since a tick may let others run in between.
fn child_cost(sys: &Ring3) -> Result<(u64, u64), Errno> {
    const CHILDREN: u64 = 4;
    let (mut fork, mut all) = (u64::MAX, u64::MAX);
    for _ in 0..CHILDREN {
        let start = now();
        sys.fork(|_| 0)?;
        fork = fork.min(now() - start);
        wait_well(sys)?;
        all = all.min(now() - start);
    }
    Ok((fork, all))
}
