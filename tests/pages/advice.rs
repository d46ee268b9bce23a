//! madvise: which part of a range follows, and what comes of it.

use kernmm::fault::EntryState;
use kernmm::flags::{Advice, VmFlags};
use kernmm::mm::MmError;
use kernmm::table::EntryFormat;

use super::calls::Part;
use super::locks::Purpose;
use super::{PAGE, World};

const HUGE: u64 = 512 * PAGE;

const ADVICE: [Advice; 32] = [
    Advice::DontNeed,
    Advice::DontNeed,
    Advice::DontNeed,
    Advice::Remove,
    Advice::WillNeed,
    Advice::Free,
    Advice::PopulateRead,
    Advice::PopulateWrite,
    Advice::DontFork,
    Advice::DoFork,
    Advice::WipeOnFork,
    Advice::KeepOnFork,
    Advice::Random,
    Advice::Normal,
    Advice::HugePage,
    Advice::NoHugePage,
    Advice::GuardInstall,
    Advice::GuardInstall,
    Advice::GuardInstall,
    Advice::GuardInstall,
    Advice::GuardRemove,
    Advice::GuardRemove,
    Advice::DontNeedLocked,
    Advice::DontNeedLocked,
    Advice::Collapse,
    Advice::Collapse,
    Advice::Cold,
    Advice::PageOut,
    Advice::DontNeed,
    Advice::Free,
    Advice::PopulateWrite,
    Advice::HugePage,
];

impl<F: EntryFormat> World<'_, '_, '_, '_, F> {
    pub(super) fn madvise(&mut self, addr: u64, len: u64, advice: u8) {
        let advice = ADVICE[usize::from(advice) % ADVICE.len()];
        match advice {
            Advice::PopulateRead => return self.populate(addr, len, advice, Purpose::Read),
            Advice::PopulateWrite => return self.populate(addr, len, advice, Purpose::Write),
            _ => {}
        }
        let (parts, hole) = self.parts(addr, len);
        let mut due = if hole { Err(MmError::NotMapped) } else { Ok(()) };
        let mut done = vec![];
        for part in parts {
            if let Err(error) = self.follows(&part, advice) {
                due = Err(error);
                break;
            }
            done.push(part);
        }
        let result = self.on_cpu(|space| space.process.madvise(addr, len, advice as i32));
        let is_short = result.is_err() && result != due;
        self.settle(result, due);
        for part in done {
            match (is_short, advice) {
                (true, Advice::GuardInstall) => self.learn_guards(&part),
                (true, _) => {}
                (false, advice) => self.advised(&part, advice),
            }
        }
    }

    /// Whether what lies in a part of a range can follow advice.
    fn follows(&self, part: &Part, advice: Advice) -> Result<(), MmError> {
        let Part { vma, .. } = part;
        let is_locked = vma.flags.contains(VmFlags::LOCKED);
        let refuse = |refuses: bool, error| if refuses { Err(error) } else { Ok(()) };
        match advice {
            Advice::DontNeed | Advice::Cold | Advice::PageOut | Advice::GuardInstall => {
                refuse(is_locked, MmError::LockedMemory)
            }
            Advice::Free => {
                refuse(is_locked, MmError::LockedMemory)?;
                refuse(!vma.backing.is_anonymous(), MmError::BadAdvice)
            }
            Advice::Remove => {
                refuse(is_locked, MmError::LockedMemory)?;
                let file = vma.backing.file().ok_or(MmError::BadAdvice)?;
                refuse(!vma.flags.contains(VmFlags::SHARED | VmFlags::MAYWRITE), MmError::Denied)?;
                refuse(file.has_store(), MmError::UnsupportedFlag)
            }
            Advice::WipeOnFork => refuse(!vma.backing.is_anonymous(), MmError::BadAdvice),
            Advice::Collapse => self.collapses(part),
            _ => Ok(()),
        }
    }

    /// What a wish for huge pages is answered with: there are no others than those that are there.
    fn collapses(&self, part: &Part) -> Result<(), MmError> {
        let Part { vma, start, end } = *part;
        let whole = |start: u64, end: u64| (start.next_multiple_of(HUGE), end & !(HUGE - 1));
        let (first, last) = whole(vma.start.get(), vma.end.get());
        let is_wanted = vma.backing.is_anonymous() && vma.anon.is_some() && first < last;
        if !is_wanted || vma.flags.contains(VmFlags::NOHUGEPAGE) {
            return Err(MmError::BadAdvice);
        }
        let (first, last) = whole(start, end);
        let mut answer = if first > last { Err(MmError::BadAdvice) } else { Ok(()) };
        for huge in (first..last).step_by(HUGE as usize) {
            let states: Vec<_> =
                (huge..huge + HUGE).step_by(PAGE as usize).map(|page| self.state(page)).collect();
            let is_huge = |state: &Option<EntryState>| {
                state.and_then(EntryState::resident).is_some_and(|page| page.order.pages() > 1)
            };
            if states.iter().all(Option::is_none) {
                answer = Err(MmError::BadAdvice);
            } else if !states.iter().all(is_huge) {
                return Err(MmError::OutOfMemory);
            }
        }
        answer
    }

    /// What was advised has been done.
    fn advised(&mut self, part: &Part, advice: Advice) {
        match advice {
            Advice::DontNeed | Advice::DontNeedLocked => self.forget_pages(part.start, part.len()),
            Advice::GuardInstall => {
                self.forget_pages(part.start, part.len());
                self.guards().extend(part.pages());
                self.saw("guards");
            }
            Advice::GuardRemove => self.guards().retain(|page| !(part.start..part.end).contains(page)),
            Advice::Remove => {
                let file = part.vma.backing.file().unwrap();
                let first = part.vma.pgoff_at(part.start.into()).get();
                self.detach_pins(file.file, first..first + part.len() / PAGE);
                let object = self.objects.get_mut(&file.file).unwrap();
                let end = ((first * PAGE) + part.len()).min(object.bytes.len() as u64);
                if first * PAGE < end {
                    object.bytes[(first * PAGE) as usize..end as usize].fill(0);
                }
            }
            // What is to be freed is kept as long as memory is not reclaimed.
            _ => {}
        }
    }

    /// Memory was short among guards: those before stand, and behind them nothing is left, or all is as it was.
    fn learn_guards(&mut self, part: &Part) {
        let mut stands = true;
        for page in part.pages() {
            let state = self.state(page);
            let is_guard = state == Some(EntryState::Guard);
            assert!(stands || !is_guard || self.space().guards.contains(&page), "guards behind a gap");
            stands &= is_guard;
            if is_guard {
                self.guards().insert(page);
            }
            if state.and_then(EntryState::resident).is_none() {
                self.private().remove(&page);
            }
        }
    }
}
