//! `check_platform` passes what is right and finds each thing that is wrong.

use std::cell::Cell;
use std::ptr::NonNull;

use kernmm::addr::{PAGE_SIZE, Pfn, PhysAddr};
use kernmm::platform::hosted::Machine;
use kernmm::platform::{CpuId, MemoryMap, MemoryRange, Platform};
use kernmm::testing::{Expected, PlatformFault, check_platform};

const MIB: u64 = 1 << 20;

fn machine() -> Machine {
    Machine::pc(48 * MIB).cpus(2).highmem_from(PhysAddr::new(32 * MIB).unwrap()).build().unwrap()
}

fn expected(machine: &Machine) -> Expected {
    Expected { cpus: 2, direct_map_end: machine.highmem_from(), root: Pfn::new(0x500) }
}

#[test]
fn the_simulated_machine_is_right() {
    let machine = machine();
    let cpus = machine.all_cpus().unwrap();
    let map = machine.take_map().unwrap();
    for cpu in &cpus {
        assert_eq!(cpu.run(|| check_platform(&map, expected(&machine))), Ok(()));
    }
    assert!(
        cpus.iter().all(|cpu| cpu.run(|| machine.tables()).is_none()),
        "they walk what they walked before"
    );
    assert_eq!(machine.kmap_leaks(), 0);
    assert!(machine.pin().cpu() == CpuId::BOOT);
}

/// What is made wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mistake {
    CpuTooHigh,
    CpuMoves,
    IrqLost,
    HoleInTheMap,
    OffByAWord,
    TwoFramesInOne,
    Wandering,
    Scattered,
    WrongWayBack,
    HighmemMapped,
    OneSlot,
    SlotRefuses,
    SlotsShareAnAddress,
    SlotShowsAnotherFrame,
    CopiesInSlots,
    TablesForgotten,
    TablesKept,
}

/// A machine with one mistake in its hooks.
struct Wrong {
    machine: Machine,
    mistake: Mistake,
    asked: Cell<u32>,
    spare: Vec<u64>,
}

// SAFETY: none: that is what the tests are about. One thread uses it, and all addresses it gives are real memory.
unsafe impl Sync for Wrong {}

impl Wrong {
    fn is(&self, mistake: Mistake) -> bool {
        self.mistake == mistake
    }

    /// Counts the questions, so that answers can differ.
    fn turn(&self) -> u32 {
        self.asked.set(self.asked.get() + 1);
        self.asked.get()
    }

    /// A page of memory that is no frame's.
    fn spare(&self, page: usize) -> Option<NonNull<u8>> {
        let start = self.spare.as_ptr().cast::<u8>().cast_mut();
        let skip = start.align_offset(PAGE_SIZE);
        NonNull::new(start.wrapping_add(skip + page * PAGE_SIZE))
    }
}

// SAFETY: as above.
unsafe impl Platform for Wrong {
    fn direct_map(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        let address = self.machine.direct_map(pfn);
        let odd = pfn.get() == 0x1fff;
        match self.mistake {
            Mistake::HoleInTheMap if odd => None,
            Mistake::OffByAWord if odd => NonNull::new(address?.as_ptr().wrapping_sub(8)),
            Mistake::TwoFramesInOne if pfn.get() >= 0x1000 => {
                self.machine.direct_map(Pfn::new(pfn.get() - 0xe00)?)
            }
            Mistake::Wandering if odd => self.spare(self.turn() as usize % 2),
            Mistake::Scattered if odd => self.spare(0),
            Mistake::HighmemMapped if pfn.get() == 0x2fdf => self.spare(0),
            _ => address,
        }
    }

    fn virt_to_pfn(&self, address: NonNull<u8>) -> Option<Pfn> {
        let pfn = self.machine.virt_to_pfn(address).filter(|_| self.is(Mistake::WrongWayBack))?;
        if address.as_ptr().addr() % PAGE_SIZE > PAGE_SIZE / 2 { pfn.checked_add(1) } else { Some(pfn) }
    }

    fn irq_save(&self) -> usize {
        match self.mistake {
            Mistake::IrqLost => self.turn().min(2) as usize,
            _ => self.machine.irq_save(),
        }
    }

    unsafe fn irq_restore(&self, flags: usize) {
        if !self.is(Mistake::IrqLost) {
            // SAFETY: as the caller promises.
            unsafe { self.machine.irq_restore(flags) };
        }
    }

    fn cpu_id(&self) -> CpuId {
        match self.mistake {
            Mistake::CpuTooHigh => CpuId(2),
            Mistake::CpuMoves => CpuId(self.turn() / 2),
            _ => CpuId::BOOT,
        }
    }

    fn switch_tables(&self, pgd: Option<Pfn>) {
        if pgd.is_some() || !self.is(Mistake::TablesKept) {
            self.machine.switch_tables(pgd);
        }
    }

    fn tables(&self) -> Option<Pfn> {
        self.machine.tables().filter(|_| !self.is(Mistake::TablesForgotten))
    }

    fn kmap_slots(&self) -> u32 {
        if self.is(Mistake::OneSlot) { 1 } else { self.machine.kmap_slots() }
    }

    fn kmap(&self, cpu: CpuId, slot: u32, pfn: Pfn) -> Option<NonNull<u8>> {
        match self.mistake {
            Mistake::SlotRefuses if slot == 3 => None,
            Mistake::SlotsShareAnAddress if slot >= 4 => self.spare(4),
            Mistake::SlotShowsAnotherFrame if slot == 5 => self.machine.kmap(
                cpu,
                slot,
                pfn.checked_sub(1).filter(|&pfn| pfn >= self.machine.highmem_from())?,
            ),
            Mistake::CopiesInSlots => self.spare(slot as usize),
            _ => self.machine.kmap(cpu, slot, pfn),
        }
    }

    fn kunmap(&self, cpu: CpuId, slot: u32) {
        let spare = self.is(Mistake::SlotsShareAnAddress) && slot >= 4 || self.is(Mistake::CopiesInSlots);
        if !spare {
            self.machine.kunmap(cpu, slot);
        }
    }
}

fn check_with(mistake: Mistake) -> Result<(), PlatformFault> {
    let machine = machine();
    let (lines, expected): (Vec<MemoryRange>, _) = (machine.map().collect(), expected(&machine));
    let wrong = Wrong { machine, mistake, asked: Cell::new(0), spare: vec![0; 12 * PAGE_SIZE / 8] };
    let _boot = wrong.machine.cpu(CpuId::BOOT).unwrap();
    // SAFETY: nobody else uses the machine.
    let map = unsafe { MemoryMap::new(&wrong, lines.iter().copied()) };
    check_platform(&map, expected)
}

#[test]
fn each_mistake_is_found() {
    let pfn = |raw| Pfn::new(raw).unwrap();
    let found = |mistake| check_with(mistake).expect_err(&format!("{mistake:?} is not found"));
    assert_eq!(found(Mistake::CpuTooHigh), PlatformFault::CpuOutOfRange(CpuId(2)));
    assert_eq!(found(Mistake::CpuMoves), PlatformFault::CpuChanged(CpuId(0), CpuId(1)));
    assert_eq!(found(Mistake::IrqLost), PlatformFault::IrqUnbalanced(1, 2));
    assert_eq!(found(Mistake::HoleInTheMap), PlatformFault::NotMapped(pfn(0x1fff)));
    assert_eq!(found(Mistake::OffByAWord), PlatformFault::Misaligned(pfn(0x1fff)));
    assert!(matches!(found(Mistake::TwoFramesInOne), PlatformFault::Forgets(_)));
    assert_eq!(found(Mistake::Wandering), PlatformFault::Unstable(pfn(0x1fff)));
    assert_eq!(found(Mistake::Scattered), PlatformFault::NotConsecutive(pfn(0x1fff)));
    assert_eq!(found(Mistake::WrongWayBack), PlatformFault::WrongWayBack(pfn(0), pfn(1)));
    assert_eq!(found(Mistake::HighmemMapped), PlatformFault::MappedAbove(pfn(0x2fdf)));
    assert_eq!(found(Mistake::OneSlot), PlatformFault::TooFewSlots(1));
    assert!(matches!(found(Mistake::SlotRefuses), PlatformFault::SlotRefused(3, _)));
    assert_eq!(found(Mistake::SlotsShareAnAddress), PlatformFault::SlotsOverlap(4, 5));
    assert!(matches!(
        found(Mistake::SlotShowsAnotherFrame),
        PlatformFault::SlotForgets(..) | PlatformFault::SlotRefused(..)
    ));
    assert!(matches!(found(Mistake::CopiesInSlots), PlatformFault::SlotForgets(..)));
    let root = Some(pfn(0x500));
    assert_eq!(found(Mistake::TablesForgotten), PlatformFault::TablesUnknown(root, None));
    assert_eq!(found(Mistake::TablesKept), PlatformFault::TablesUnknown(None, root));
}
