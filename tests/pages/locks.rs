//! What is made resident before it is touched, locked or not, and the heap.

use kernmm::addr::VirtAddr;
use kernmm::error::Errno;
use kernmm::flags::{Advice, MlockFlags, MlockallFlags, VmFlags};
use kernmm::mm::MmError;
use kernmm::table::EntryFormat;

use super::access::{Expected, Touch, is_private};
use super::{PAGE, TASK, World};

/// Who wants pages to be resident.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// What cannot be had is passed over, with the rest of its VMA.
    Mapping,
    /// It is an error.
    Lock,
    /// So is what is not mapped, or forbids to be read.
    Read,
    /// Or to be written.
    Write,
}

/// What is to be resident, and how the call ends.
pub(super) struct Plan {
    resident: Vec<u64>,
    own: Vec<u64>,
    due: Result<(), MmError>,
}

impl<F: EntryFormat> World<'_, '_, '_, '_, F> {
    /// What becomes resident of a range. It may be asked afterwards too.
    pub(super) fn plan(&self, addr: u64, len: u64, purpose: Purpose) -> Plan {
        let advises = matches!(purpose, Purpose::Read | Purpose::Write);
        let mut plan = Plan { resident: vec![], own: vec![], due: Ok(()) };
        let mut next = addr;
        for part in self.parts(addr, len).0 {
            if advises && part.start != next {
                break;
            }
            next = part.end;
            let flags = part.vma.flags;
            let touch = match purpose {
                Purpose::Read if flags.contains(VmFlags::READ) => Ok(Touch::Read),
                Purpose::Write if flags.contains(VmFlags::WRITE) => Ok(Touch::Write),
                Purpose::Read | Purpose::Write => Err(MmError::BadAdvice),
                _ if flags.contains(VmFlags::LOCKONFAULT) => continue,
                _ if !flags.is_accessible() => Err(MmError::NotMapped),
                _ => Ok(if flags.is_private_writable() { Touch::Write } else { Touch::Read }),
            };
            let unreachable = if advises { MmError::Unreachable } else { MmError::NotMapped };
            let mut end = touch.map(drop);
            for page in part.pages().take_while(|_| touch.is_ok()) {
                match self.reach(page, touch.unwrap()) {
                    Expected::Signal(_) => {
                        end = Err(unreachable);
                        break;
                    }
                    Expected::Page(_) => plan.resident.push(page),
                }
                if touch == Ok(Touch::Write) && is_private(&part.vma) {
                    plan.own.push(page);
                }
            }
            if end.is_err() && purpose != Purpose::Mapping {
                plan.due = end;
                return plan;
            }
        }
        if advises && next != addr + len {
            plan.due = Err(MmError::NotMapped);
        }
        plan
    }

    /// What was planned has come, unless memory is short.
    pub(super) fn follow(&mut self, plan: &Plan) {
        let is_short = self.may_be_short();
        let has_come = |page: u64| self.state(page).is_some_and(|state| state.resident().is_some());
        let missing = plan.resident.iter().find(|&&page| !has_come(page));
        assert!(is_short || missing.is_none(), "{missing:x?} is not resident");
        let shared = plan.own.iter().find(|&&page| !self.has_own(page));
        assert!(is_short || shared.is_none(), "{shared:x?} is not the process's own");
        self.learn_copies(plan.own.iter().copied());
    }

    pub(super) fn populate(&mut self, addr: u64, len: u64, advice: Advice, purpose: Purpose) {
        let plan = self.plan(addr, len, purpose);
        let result = self.on_cpu(|space| space.process.madvise(addr, len, advice as i32));
        self.settle(result, plan.due);
        self.follow(&plan);
    }

    pub(super) fn lock(&mut self, addr: u64, len: u64, how: u8) {
        let (parts, hole) = self.parts(addr, len);
        // Bytes in the middle stand for their pages.
        let (from, bytes) = if how & 8 == 0 { (addr, len) } else { (addr + 7, len - 9) };
        let result = self.on_cpu(|space| match how % 8 {
            0..=2 => space.process.mlock(from, bytes),
            3 => space.process.mlock2(from, bytes, MlockFlags::empty()),
            4..=5 => space.process.mlock2(from, bytes, MlockFlags::ONFAULT),
            _ => space.process.munlock(from, bytes),
        });
        let populates = how % 8 < 4 && !hole;
        let plan = populates.then(|| self.plan(addr, len, Purpose::Lock));
        let due = if hole { Err(MmError::NotMapped) } else { plan.as_ref().map_or(Ok(()), |plan| plan.due) };
        self.settle(result, due);
        plan.iter().for_each(|plan| self.follow(plan));
        if result.is_ok() || result == due {
            let first = parts.iter().take_while(|part| !self.parts(addr, part.end - addr).1);
            let flags = first.filter_map(|part| Some(self.vma(part.start)?.flags & VmFlags::LOCKED_MASK));
            let wanted = match how % 8 {
                0..=3 => VmFlags::LOCKED,
                4..=5 => VmFlags::LOCKED_MASK,
                _ => VmFlags::empty(),
            };
            assert!(
                flags.into_iter().all(|flags| flags == wanted),
                "{addr:#x} is not locked as it should be"
            );
        }
        self.saw(if how % 8 < 6 { "locks" } else { "unlocks" });
    }

    pub(super) fn lock_all(&mut self, how: u8) {
        let flags = MlockallFlags::from_bits_retain([0, 1, 2, 3, 4, 5, 6, 7][usize::from(how % 8)]);
        if how & 0x18 != 0 {
            let result = self.on_cpu(|space| space.process.munlockall());
            self.settle(result, Ok(()));
            return self.spaces[self.current].future = VmFlags::empty();
        }
        let result = self.on_cpu(|space| space.process.mlockall(flags));
        let refuses = flags.is_empty() || flags == MlockallFlags::ONFAULT;
        let due = if refuses { Err(MmError::BadFlags) } else { Ok(()) };
        if self.settle(result, due).is_none() {
            return;
        }
        let on_fault = flags.contains(MlockallFlags::ONFAULT);
        let lock = if on_fault { VmFlags::LOCKED_MASK } else { VmFlags::LOCKED };
        let future = flags.contains(MlockallFlags::FUTURE);
        self.spaces[self.current].future = if future { lock } else { VmFlags::empty() };
        if flags.contains(MlockallFlags::CURRENT) {
            let plan = self.plan(0, TASK, Purpose::Mapping);
            self.follow(&plan);
            self.saw("all locked");
        }
    }

    /// Moves the end of the heap, by one call or the other.
    pub(super) fn brk(&mut self, to: u16, how: u8) {
        let (start, old) = self.space().heap;
        let new = start - 2 * PAGE + u64::from(to) % (18 * PAGE);
        let (old_end, new_end) = (old.next_multiple_of(PAGE), new.next_multiple_of(PAGE));
        let is_free = |from: u64, end: u64| self.parts(from, end - from).0.is_empty();
        let moves = new >= start
            && match new_end.cmp(&old_end) {
                std::cmp::Ordering::Less => !is_free(new_end, old_end),
                std::cmp::Ordering::Equal => true,
                // A page stays free behind it.
                std::cmp::Ordering::Greater => is_free(old_end, new_end + PAGE),
            };
        let by_brk = how & 1 == 0;
        let moved = match by_brk {
            true => self.on_cpu(|space| space.process.brk(new)) == Ok(VirtAddr::from(new)),
            false => {
                let answer = self.on_cpu(|space| space.process.sbrk(new as i64 - old as i64));
                let fine = answer.map_or_else(|error| error.errno() == Errno::ENOMEM, |was| was.get() == old);
                assert!(fine, "sbrk: {answer:?}");
                answer.is_ok()
            }
        };
        self.tried.calls += 1;
        // To stay is to have moved, for brk.
        let due = moves || by_brk && new == old;
        if moved != due {
            assert!(due, "the heap cannot end at {new:#x}");
            return self.note_out_of_memory();
        }
        if !moved {
            return self.saw("heaps that stay");
        }
        self.spaces[self.current].heap.1 = new;
        if new_end < old_end {
            self.forget(new_end, old_end - new_end);
        } else if new_end > old_end {
            let vma = self.vma(old_end).expect("the heap has grown");
            let wanted = VmFlags::READ | VmFlags::WRITE | self.space().future;
            assert!(vma.flags.contains(wanted) && vma.backing.is_anonymous() && vma.end.get() >= new_end);
            if self.space().future.contains(VmFlags::LOCKED) {
                let plan = self.plan(old_end, new_end - old_end, Purpose::Mapping);
                self.follow(&plan);
            }
            self.saw("heaps that grow");
        }
    }
}
