//! All states of a small arena, all calls on them, against an array of pages.
//!
//! The arena has 6 pages, without optimisation 5, with `KERNMM_LONG=1` 8.

mod space;

use kernmm::addr::VirtAddr;
use kernmm::flags::{MremapFlags, Prot, VmFlags};
use kernmm::mm::{Mm, MmContext, NullTables, Sysctl};
use kernmm::syscall;
use space::{PAGE, Stores, context, map};

const AT: u64 = 0x10_0000_0000;

/// A page: unmapped, or its protection.
type Page = Option<Prot>;

const STATES: [Page; 4] = [None, Some(Prot::NONE), Some(Prot::READ), Some(Prot::READ.union(Prot::WRITE))];

/// What to do, by page numbers: from, length, and what else it takes.
#[derive(Clone, Copy, Debug)]
enum Op {
    Map(usize, usize, Prot),
    Unmap(usize, usize),
    Protect(usize, usize, Prot),
    Move(usize, usize, usize),
}

fn operations(n: usize) -> Vec<Op> {
    let mut operations = Vec::new();
    for from in 0..n {
        for len in 1..=n - from {
            operations.push(Op::Unmap(from, len));
            for prot in STATES.into_iter().flatten() {
                operations.push(Op::Map(from, len, prot));
                operations.push(Op::Protect(from, len, prot));
            }
            for to in 0..=n - len {
                if to + len <= from || from + len <= to {
                    operations.push(Op::Move(from, len, to));
                }
            }
        }
    }
    operations
}

/// What the array looks like afterwards, and whether the call succeeds.
fn expected(pages: &[Page], op: Op) -> (Vec<Page>, bool) {
    let mut after = pages.to_vec();
    let good = match op {
        Op::Map(from, len, prot) => {
            after[from..from + len].fill(Some(prot));
            true
        }
        Op::Unmap(from, len) => {
            after[from..from + len].fill(None);
            true
        }
        Op::Protect(from, len, prot) => {
            let mapped = pages[from..from + len].iter().take_while(|page| page.is_some()).count();
            after[from..from + mapped].fill(Some(prot));
            mapped == len
        }
        // The first page must be mapped. A hole in the source moves nothing, and leaves its target alone.
        Op::Move(from, ..) if pages[from].is_none() => false,
        Op::Move(from, len, to) => {
            for page in 0..len {
                if let Some(prot) = after[from + page].take() {
                    after[to + page] = Some(prot);
                }
            }
            true
        }
    };
    (after, good)
}

fn perform(mm: &mut Mm<'_>, tables: &mut NullTables, op: Op) -> bool {
    let at = |page: usize| AT + page as u64 * PAGE;
    match op {
        Op::Map(from, len, prot) => map(mm, tables, at(from), len as u64, prot).is_ok(),
        Op::Unmap(from, len) => syscall::munmap(mm, tables, at(from), len as u64 * PAGE).is_ok(),
        Op::Protect(from, len, prot) => {
            syscall::mprotect(mm, tables, at(from), len as u64 * PAGE, prot).is_ok()
        }
        Op::Move(from, len, to) => {
            let flags = MremapFlags::MAYMOVE | MremapFlags::FIXED;
            let len = len as u64 * PAGE;
            syscall::mremap(mm, tables, at(from), len, len, flags, at(to)).is_ok()
        }
    }
}

fn pages_of(mm: &Mm<'_>, n: usize) -> Vec<Page> {
    let page = |page| {
        let vma = mm.vma(mm.lookup(VirtAddr::from(AT + page * PAGE))?);
        Some(Prot::from_bits_retain((vma.flags & VmFlags::ACCESS).bits()))
    };
    (0..n as u64).map(page).collect()
}

/// Untouched memory of one protection is one VMA, however it came about.
fn runs(pages: &[Page]) -> u32 {
    let starts = |i: usize| pages[i].is_some() && (i == 0 || pages[i - 1] != pages[i]);
    (0..pages.len()).filter(|&i| starts(i)).count() as u32
}

fn furnish<'c>(context: &'c MmContext<'c>, tables: &mut NullTables, pages: &[Page]) -> Mm<'c> {
    let mut mm = Mm::new(context).unwrap();
    let mut from = 0;
    for run in pages.chunk_by(|a, b| a == b) {
        if let Some(prot) = run[0] {
            assert!(perform(&mut mm, tables, Op::Map(from, run.len(), prot)));
        }
        from += run.len();
    }
    mm
}

#[test]
fn every_call_on_every_state_does_to_pages_what_it_says() {
    let n = match std::env::var_os("KERNMM_LONG") {
        Some(_) => 8,
        None if cfg!(debug_assertions) => 5,
        None => 6,
    };
    let stores = Stores::new(32, 0);
    let context = context(&stores, Sysctl::default());
    let operations = operations(n);
    let mut tables = NullTables::default();
    for state in 0..4_usize.pow(n as u32) {
        let pages: Vec<Page> = (0..n).map(|page| STATES[state >> (2 * page) & 3]).collect();
        for &op in &operations {
            let mut mm = furnish(&context, &mut tables, &pages);
            let (after, good) = expected(&pages, op);
            assert_eq!(perform(&mut mm, &mut tables, op), good, "{op:?} on {pages:?}");
            assert_eq!(pages_of(&mm, n), after, "{op:?} on {pages:?}");
            assert_eq!(mm.map_count(), runs(&after), "{op:?} on {pages:?}");
            mm.check().unwrap_or_else(|violation| panic!("{op:?} on {pages:?}: {violation:?}"));
            syscall::exit(&mut mm, &mut tables);
        }
    }
    assert_eq!(context.overcommit().committed(), 0);
}
