//! Generations of children, all at once, each of which changes its copy of the memory and finds it as its parent had it.

use crate::{Addr, Calls, Errno, MapFlags, Status, System};

const PAGES: u64 = 32;
const ROUNDS: u32 = 4;
const CHILDREN: u32 = 6;

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let memory = sys.map_anonymous(PAGES * 4096, MapFlags::PRIVATE)?;
    let counted = sys.map_anonymous(4096, MapFlags::SHARED)?;
    for round in 0..ROUNDS {
        fill(sys, memory, round);
        for child in 0..CHILDREN {
            sys.fork(move |sys| i32::from(!lives_well(sys, memory, counted, round, 1000 + child)))?;
        }
        let well = (0..CHILDREN).filter(|_| ends_well(sys)).count();
        if well != CHILDREN as usize {
            say!(sys, "fork_storm: {well} of {CHILDREN} children found in their memory what their parents had");
            return Err(Errno::EFAULT);
        }
        if !holds(sys, memory, round) {
            say!(sys, "fork_storm: children changed their parent's memory");
            return Err(Errno::EFAULT);
        }
    }
    say!(sys, "fork_storm: {} processes, each with its own memory", sys.load_atomic(counted));
    sys.munmap(counted, 4096)?;
    sys.munmap(memory, PAGES * 4096)
}

/// A child, which has one itself.
fn lives_well<S: System>(sys: &S, memory: Addr, counted: Addr, parents: u32, mine: u32) -> bool {
    let was_parents = holds(sys, memory, parents);
    fill(sys, memory, mine);
    let grandchild = sys.fork(move |sys| {
        let is_its_parents = holds(sys, memory, mine);
        fill(sys, memory, 7);
        sys.fetch_add(counted, 1);
        i32::from(!is_its_parents)
    });
    let well = grandchild.is_ok() && ends_well(sys);
    sys.fetch_add(counted, 1);
    was_parents && well && holds(sys, memory, mine)
}

/// Waits for one child.
fn ends_well<S: System>(sys: &S) -> bool {
    matches!(sys.wait(), Ok((_, Status::Exited(0))))
}

fn fill<S: System>(sys: &S, memory: Addr, with: u32) {
    (0..PAGES).for_each(|page| sys.store_u32(memory + page * 4096, with ^ page as u32));
}

fn holds<S: System>(sys: &S, memory: Addr, with: u32) -> bool {
    (0..PAGES).all(|page| sys.load_u32(memory + page * 4096) == with ^ page as u32)
}
