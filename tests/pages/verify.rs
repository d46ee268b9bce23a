//! What must hold after each operation, and at the end.

use kernmm::addr::{PageOrder, Pfn, VirtRange};
use kernmm::fault::EntryState;
use kernmm::flags::VmFlags;
use kernmm::phys::Page;
use kernmm::platform::hosted::Latency;
use kernmm::table::EntryFormat;

use super::access::Expected;
use super::store::Refusals;
use super::{FILES, Op, PAGE, Space, TASK, Tried, World, at};

impl<'v, 'a, 'm, F: EntryFormat> World<'_, 'v, 'a, 'm, F> {
    pub(super) fn verify(&mut self, op: &Op) {
        self.follow_tails();
        let processes: Vec<_> = self.spaces.iter().map(|space| &space.process).collect();
        let pins = |pfn: Pfn| self.pins.iter().filter(|pin| pin.pfn == pfn).count() as u32;
        let held = |pfn: Pfn| u32::from(self.hogged.contains(&pfn)) + pins(pfn) * Page::PIN_BIAS;
        if let Err(broken) = self.vm.check(&processes, held, &mut self.tallies) {
            panic!("{op:?}: {broken}");
        }
        assert_eq!(self.machine.stale_translation(), None, "{op:?}");
        assert_eq!(self.memory.poison_hits(), (0, None), "{op:?}");
        for (number, space) in self.spaces.iter().enumerate() {
            self.verify_pages(op, number, space);
            let future = space.process.with(|mm| mm.def_flags() & VmFlags::LOCKED_MASK);
            assert_eq!(future, space.future, "{op:?}: process {number}");
        }
        self.verify_pins(op);
    }

    /// Every page that is resident has the bytes that it should have, and guards are where they should be.
    fn verify_pages(&self, op: &Op, number: usize, space: &Space<'v, 'a, 'm, F>) {
        let (mut resident, mut guards) = (vec![], vec![]);
        space.process.visit_pages(VirtRange::new(at(0), at(TASK)).unwrap(), |page, state| match state {
            EntryState::Resident(state) => resident.push((page.get(), state.pfn)),
            EntryState::Guard => guards.push(page.get()),
            EntryState::Swapped(_) => panic!("{op:?}: nothing is swapped out"),
        });
        assert!(
            guards.iter().eq(&space.guards),
            "{op:?}: process {number}: {guards:x?}, {:x?}",
            space.guards
        );
        let mut bytes = [0; PAGE as usize];
        for (page, pfn) in resident {
            self.memory.read_frame(pfn, 0, &mut bytes).unwrap();
            match self.contents(space, page) {
                Some(Expected::Page(due)) if *due == bytes => {}
                Some(Expected::Page(due)) => {
                    let differs = (0..bytes.len()).find(|&at| bytes[at] != due[at]).unwrap_or(0);
                    panic!(
                        "{op:?}: process {number}, page {page:#x}, frame {pfn:#x}: byte {differs:#x} is {:#x}, should be {:#x}",
                        bytes[differs], due[differs]
                    );
                }
                _ => panic!("{op:?}: process {number}: page {page:#x} is resident, and should not be"),
            }
        }
    }

    pub(super) fn end(mut self) -> Tried {
        self.store.disk.set_latency(Latency::None);
        self.store.set_busy(0);
        (0..FILES as u64).for_each(|inode| self.store.refuse(inode, Refusals::NONE));
        for space in std::mem::take(&mut self.spaces) {
            self.leave(&space);
        }
        while !self.pins.is_empty() {
            self.unpin(0);
        }
        self.quiet();
        for file in 0..FILES {
            // What was to be told is told, and what out of memory or the store has kept from the disk is there now.
            while !self.sync(file as u8) {}
            assert!(self.sync(file as u8), "an error is told once");
        }
        self.files.clear();
        self.programs.clear();
        self.quiet();
        for &pfn in &self.hogged {
            self.memory.free_pages(pfn, PageOrder::ZERO).unwrap();
        }
        self.machine.take_reports();
        assert_eq!(self.memory.poison_hits(), (0, None));
        std::mem::take(&mut self.tried)
    }
}
